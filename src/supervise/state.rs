//! What becomes of the command and of its lock, decided: a state and an event in, effects out. Nothing here asks for the
//! time, does I/O or waits; `supervise.rs` turns what happens into events, and effects into calls.
//!
//! Each pair of stage and event is decided by name. `matrix.txt`, beside this file, has them all in one table, which a
//! test holds against the code.
//!
//! What is known when a session has ended: that session held the lock, and is gone. Others may have the lock at once if
//! it was ended alone; nobody can have it before a ttl is over if the server has lost all sessions with it, for
//! newcomers hold off then. The message of a session that an administrator ends is the same as that of one which ends in a
//! shutdown, and in a smart shutdown the sessions of others live on: so a command is frozen until its lock is retaken. It runs
//! on meanwhile only where the server has said, in the holding session, that all sessions end, or where it is seen to
//! have gone down right after: by a server that has said something of an end, and has served nobody since. Where nothing was
//! said, it may be a program in between that has gone.
//!
//! The way back begins where the session was, at home, and goes on to the other hosts in turn. A server that was promoted since
//! the last sign of the one before is to a holder what one is that has restarted since: newcomers hold off there, and an old
//! primary answers nobody once another is promoted. That a server was promoted is told by its timeline, for it is another than
//! that on which the lock was held; and that it was since then, by a time that is an upper bound, and so alone is proof of
//! nothing. A lock on any other server is worth nothing.
#![deny(
    clippy::wildcard_enum_match_arm,
    clippy::match_wildcard_for_single_variants
)]

use std::fmt;
use std::time::Duration;

use crate::lease::{Lease, Terms};
use crate::lock::{History, Past};
use crate::moment::{Moment, seconds};
use crate::sys::{Change, Signal};

/// How long to wait between two attempts to reach the server again.
const RETRY: Duration = Duration::from_millis(100);
/// The longest such wait, for a server that lets in and closes, or does not let in.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// How long to leave a pooler alone whose server has gone. PgBouncer, if it finds that it cannot log in, does not try again
/// for its `server_login_retry`, 15 s by default: so the first attempt has to come when the server is back.
const POOLED_RETRY: Duration = Duration::from_secs(4);
/// How long one attempt to reach it may take before another is made, which may take twice as long.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Until when after the end of a session what is heard on the way back tells why it ended. Later, others may have come and
/// gone.
const FRESH: Duration = Duration::from_secs(2);
/// How long to wait for a killed group to be gone where no lease says how long the server keeps the lock: a process that
/// hangs in the kernel does not even die of SIGKILL.
const DYING: Duration = Duration::from_secs(2);
/// How long a command without a lease stays stopped, after pglock was, until the server says that the lock is held.
const RESUME: Duration = Duration::from_secs(2);
/// How often to look whether the rest of a command's group is gone, or has been continued: no event tells.
const LOOK: Duration = Duration::from_millis(20);
/// When to rename a session that has waited, and to ask where its server stands. By then the command runs: while it is being
/// started, an answer on the connection would look as if the server had ended the session. And many have ended by then.
const SETTLED: Duration = Duration::from_secs(1);
/// How long before the guardian would pglock kills a command that is frozen, or has no grace: it would look as if pglock
/// had been frozen itself.
const AHEAD: Duration = Duration::from_millis(100);
/// How long to wait for the lease to be lifted before stopping without that.
const LIFT: Duration = Duration::from_secs(1);

/// What is happening to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It runs, or somebody else has stopped it.
    Running,
    /// pglock has stopped it until it is known what has become of the lock.
    Frozen,
    /// The lock is lost: it was told to end, and is killed at this moment.
    Terminating(Moment),
    /// It was killed, at this moment.
    Killed(Moment),
    /// It is stopped, and pglock is about to stop too, at this moment at the latest.
    Suspending(Moment),
    /// It is stopped, and so is pglock.
    Suspended,
    /// It is stopped, and continues when the lock is known to be held, by this moment.
    Resuming(Moment),
    /// It has ended, and the lock is kept until this moment.
    Holding(Moment),
}

/// What there is of a connection to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A session on which nothing is asked.
    Idle,
    /// A session on which this was asked, at this moment.
    Asked(Question, Moment),
    /// An attempt to connect again.
    Connecting,
    /// Nothing; to be tried again at this moment.
    Down(Moment),
    /// Nothing, for good.
    Gone,
}

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether it is there.
    Beat,
    /// The same, by naming the session.
    Rename,
    /// For the lock, on a new session.
    Retake,
    /// Where the server stands in the history of its cluster.
    History,
    /// About its past, now that the lock is retaken.
    Past,
    /// Since when the backend of the session that is gone has been there, if it still holds the lock.
    Holder,
    /// To end that backend, and for the lock.
    Evict,
    /// To keep the session while pglock is stopped.
    Lift,
    /// Whether the lock is still held, now that pglock is continued.
    Check,
}

/// What the server's last words in a session say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The connection closed without a word.
    Cut,
    /// That session is ended, it says; nothing is known of others.
    One,
    /// The server ends all of them.
    All,
}

/// Why there is no way back to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// It is there, but does not serve: it goes down or comes up.
    NotServing,
    /// It comes up: there are no sessions of before.
    Starting,
    /// Nobody listens at its Unix socket: it is down.
    Down,
    /// It could not be reached, be it that it is down or that something is in the way.
    Unreachable,
    /// It serves, and says that it does not let this client in.
    Denied,
    /// This client is not let in, be it by a pooler or by what there is on the way, or cannot connect.
    Refused,
    /// It has let this client in, but there is no guardian to be bound to the session.
    Unguarded,
    /// No answer in time.
    Silence,
}

/// The server's answer to an attempt to take the lock again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retake {
    /// It is held, by a server of this past.
    Held(Past),
    /// Somebody holds it, on a server of this past.
    Busy(Past),
    /// It is a standby.
    Standby,
    /// It cannot tell yet.
    NotReady,
}

/// An answer of the server, to what [`Link::Asked`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Question::Beat`], [`Question::Rename`] or [`Question::Lift`]: any.
    Alive,
    /// To [`Question::Retake`] or [`Question::Evict`].
    Retake(Retake),
    /// To [`Question::History`], where the server tells.
    History(Option<History>),
    /// To [`Question::Past`].
    Past(Past),
    /// To [`Question::Holder`]: that backend's age if it still holds the lock.
    Holder(Option<Duration>),
    /// To [`Question::Check`]: whether the lock is held.
    Check(bool),
    /// To any, where it was to be confirmed by replication and was not; and why.
    Unconfirmed(String),
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is closed, for this reason.
    SessionLost(Loss, String),
    /// An attempt to connect again has failed, for this reason.
    NotConnected(Barrier, String),
    /// An attempt to connect again has led to a session.
    Connected,
    /// The server has answered.
    Answered(Answer),
    /// The command was stopped by this signal; whether pglock's own group has the terminal.
    CommandStopped(Signal, bool),
    /// The command was continued, by whom ever.
    CommandContinued,
    /// The command itself has ended; others of its group may be left. Whether the lock may be kept after it: not for one that
    /// did not run, or that was ended by its user.
    CommandEnded(Change, bool),
    /// Nobody of its group is left.
    GroupGone,
    /// The guardian has killed the command, since pglock did not in time.
    GuardianFired,
    /// A signal came for the command.
    Signal(Signal),
    /// pglock has come back from stopping itself; whether it was stopped at all.
    Woken(bool),
    /// Nothing but time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send this signal to the command's group.
    Signal(Signal),
    /// Send it, and SIGCONT behind it.
    SignalAwake(Signal),
    /// Continue the command, in the foreground if that is where the shell has put pglock.
    Continue,
    /// Kill the command's group.
    Kill,
    /// Ask this on the session.
    Ask(Question),
    /// Connect again, to this place, within this time: 0 is where the session was that held the lock, the other hosts follow.
    Connect(u32, Duration),
    /// Close the session.
    Disconnect,
    /// Tell the guardian until when the lock is held.
    Guard(Option<Moment>),
    /// Have the guardian look at a deadline that there was not before.
    WakeGuardian,
    /// Stop pglock itself; [`Event::Woken`] follows.
    Suspend,
    /// Leave what there is of the command's group alone from now on, and take the terminal back: only the lock is kept.
    Hold,
    /// Log this.
    Say(Line),
}

/// Why the lock is lost, or may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The server has been silent for so long; and what the last attempt to reach it came to.
    Silence(Duration, Option<String>),
    /// The server has been silent for so long, and pglock was told to end a command that may not run meanwhile.
    ToldToEnd(Duration),
    /// The session is gone, and no lease says that others hold off.
    NoLease,
    /// The session is gone while the command was ending.
    GoneAgain,
    /// The session is gone while pglock was stopped.
    GoneMeanwhile,
    /// The server did not answer when pglock was continued.
    NoAnswer,
    /// The lock was not held any more when pglock was continued.
    NotHeld,
    /// Somebody else holds it.
    Taken,
    /// It was retaken too late.
    RetakenLate,
    /// It was held when pglock was continued, but the answer came too late.
    CheckedLate,
    /// It was retaken, this long after the server's last sign, and somebody may have had it meanwhile.
    EndedAlone(Duration),
    /// It was retaken, this long after the server's last sign, on a server that is not known to have followed it.
    Elsewhere(Duration),
}

/// What has ended the session that held the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionEnd {
    /// The server lost all its sessions: nobody has had the lock since.
    Restart,
    /// Another was promoted in its place: nobody has had the lock since.
    Promotion,
    /// It is not known, for this is another server.
    Elsewhere,
    /// Something that left others their sessions: somebody may have had the lock since.
    Alone,
    /// The same, and then the server lost all: somebody may hold the lock by a lease, without a session.
    AloneBeforeRestart,
}

/// What was heard on the way back, right after the end of the session that held the lock: whether the server went down with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearsay {
    /// Nothing of that.
    Nothing,
    /// It does not serve.
    NotServing,
    /// It is down, and a frozen command runs again by that.
    Down,
    /// That it is down, and then that it is there: it was something else, and what is heard counts no more.
    Denied,
}

/// What the server that there is is to the one that held the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kinship {
    /// The same.
    Same,
    /// One that was promoted after it was.
    Successor,
    /// Another, or it is not known.
    None,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The connection was lost this long after the server's last sign, for this reason.
    ConnectionLost(Duration, String),
    /// The lock is lost, and the command is told to end.
    Terminating(Why),
    /// The lock is lost, and the command is killed.
    Killing(Why),
    /// The lock is lost, and the command runs on.
    CarryingOn(Why),
    /// The lock was lost and retaken, and the command runs on.
    CarryingOnRetaken(Why),
    /// The command did not end in its grace.
    Overdue,
    /// The lock was retaken, this long after the server's last sign, from a server that has restarted.
    Restarted(Duration),
    /// The guardian has killed the command, this long after the server's last sign.
    Fired(Duration),
    /// The lock was retaken, this long after the last sign of the server before, from one that was promoted since.
    Promoted(Duration),
    /// The command has ended, and the lock is kept for so long.
    Holding(Duration),
    /// The lock is lost that was kept after the command.
    HoldLost(Why),
    /// The lock was lost that was kept after the command, and is kept on, for it was retaken.
    HoldRetaken(Why),
    /// This signal has ended the time for which the lock was kept.
    HoldEnded(Signal),
}

impl Line {
    /// Whether it is shown in spite of `--quiet`.
    pub fn is_error(&self) -> bool {
        match self {
            Self::ConnectionLost(..)
            | Self::Terminating(_)
            | Self::Killing(_)
            | Self::CarryingOn(_)
            | Self::CarryingOnRetaken(_)
            | Self::Overdue
            | Self::Fired(_)
            | Self::HoldLost(_)
            | Self::HoldRetaken(_) => true,
            Self::Restarted(_) | Self::Promoted(_) | Self::Holding(_) | Self::HoldEnded(_) => false,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Silence(time, None) => {
                write!(f, "no answer from the server for {} s", seconds(*time))
            }
            Self::Silence(time, Some(reason)) => write!(
                f,
                "no answer from the server for {} s ({reason})",
                seconds(*time)
            ),
            Self::ToldToEnd(time) => write!(
                f,
                "no answer from the server for {} s, and pglock was told to end the command",
                seconds(*time)
            ),
            Self::NoLease => f.write_str("the session that held it is gone, and there is no lease"),
            Self::GoneAgain => {
                f.write_str("the session that held it is gone while the command was ending")
            }
            Self::GoneMeanwhile => f.write_str("the session that held it is gone"),
            Self::NoAnswer => {
                f.write_str("no answer from the server, now that pglock is continued")
            }
            Self::NotHeld => f.write_str("it was no longer held when pglock was continued"),
            Self::Taken => {
                f.write_str("the session that held it ended, and somebody else has it now")
            }
            Self::RetakenLate => f.write_str("the answer that it was taken again came too late"),
            Self::CheckedLate => f.write_str("the answer that it is still held came too late"),
            Self::EndedAlone(time) => write!(
                f,
                "the session that held it ended {} s after the server's last sign, while the server ran on; \
                 somebody may have had it meanwhile",
                seconds(*time)
            ),
            Self::Elsewhere(time) => write!(
                f,
                "the server that there is {} s after the last sign of the one that held it is not known to have been \
                 promoted in its place; somebody may have had it meanwhile",
                seconds(*time)
            ),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::ConnectionLost(time, reason) => write!(
                f,
                "the connection to the server was lost, {} s after its last sign: {reason}",
                seconds(*time)
            ),
            Self::Terminating(why) => write!(f, "the lock is lost: {why}; stopping the command"),
            Self::Killing(why) => write!(f, "the lock is lost: {why}; killing the command"),
            Self::CarryingOn(why) => write!(
                f,
                "the lock is lost: {why}; the command carries on without it (--on-loss continue)"
            ),
            Self::CarryingOnRetaken(why) => write!(
                f,
                "the lock was lost: {why}; it was taken again, and the command carries on (--on-loss continue)"
            ),
            Self::Overdue => f.write_str("the command did not end in time; killing it"),
            Self::Restarted(time) => write!(
                f,
                "The server was restarted; the lock was taken again {} s after its last sign, and nobody \
                 has had it meanwhile.",
                seconds(*time)
            ),
            Self::Fired(time) => write!(
                f,
                "pglock itself was stopped for too long, {} s without a sign of the server: the guardian \
                 has killed the command",
                seconds(*time)
            ),
            Self::Promoted(time) => write!(
                f,
                "Another server was promoted; the lock was taken again {} s after the last sign of the one before, and \
                 nobody has had it meanwhile.",
                seconds(*time)
            ),
            Self::Holding(time) => write!(
                f,
                "The command has ended; keeping the lock for {} s more.",
                seconds(*time)
            ),
            Self::HoldLost(why) => write!(
                f,
                "the lock is lost: {why}; the command had ended before, and it is not kept any longer"
            ),
            Self::HoldRetaken(why) => write!(
                f,
                "the lock was lost: {why}; it was taken again, and is kept (--on-loss continue)"
            ),
            Self::HoldEnded(signal) => write!(f, "{signal} came; the lock is kept no longer."),
        }
    }
}

/// What a run is to keep to.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The lease, if there is one.
    pub terms: Option<Terms>,
    /// How long the command gets between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Whether a command that has lost its lock is stopped.
    pub kill_on_loss: bool,
    /// Whether a pooler is in between.
    pub pooled: bool,
    /// How many places there are to look for the server beside the one where it was.
    pub others: u32,
    /// Whether the session is to be renamed: it has waited, and its name says so.
    pub rename: bool,
    /// Whether there is a terminal, and so perhaps a shell to stop for.
    pub has_terminal: bool,
    /// Until when the lock is kept, though the command has ended before.
    pub hold_until: Option<Moment>,
}

/// The state of a run, from the start of the command to its end.
#[derive(Clone, Debug)]
pub struct State {
    policy: Policy,
    stage: Stage,
    link: Link,
    /// When the last message was sent that the server answered: the one last sign of it.
    heard: Moment,
    /// When to rename the session, if it is to be.
    rename_at: Option<Moment>,
    /// When to ask where the server stands, if that is to be known.
    learn_at: Option<Moment>,
    /// Where the server stands that holds the lock, or held it last.
    history: Option<History>,
    /// When to ask again what was not confirmed.
    ask_again_at: Moment,
    /// Where the next attempt to reach a server goes, or the last has gone.
    place: u32,
    /// When the next round through the places may begin, as far as this one tells.
    next_round_at: Moment,
    /// Whether nobody has answered in this round.
    is_silent: bool,
    /// How long the next round may take.
    patience: Duration,
    /// How many sessions in a row came to nothing, though somebody was there: they ended before a beat was answered.
    losses: u32,
    /// When the session was lost that held the lock.
    lost_at: Moment,
    /// Whether the server has said that it ended that session.
    was_told: bool,
    /// What was heard of it since, right after.
    hearsay: Hearsay,
    /// Since when it is known to have served without that session: if it goes down later, that is not what ended it. Of
    /// a server behind a pooler this is never known: that lets in whether or not it is there, and its words may be its own.
    served_at: Option<Moment>,
    /// When a server has let pglock in that may yet turn out to be a standby, which serves no locks.
    let_in_at: Option<Moment>,
    /// Whether pglock has tried to end the backend of that session.
    evicted: bool,
    /// Why the last attempt to reach the server failed.
    reason: Option<String>,
    /// By when a frozen command is to be dead that pglock was told to end.
    end_by: Option<Moment>,
    /// Until when the lock is kept though the command has ended before.
    hold_until: Option<Moment>,
    /// How the command itself ended.
    ended: Option<Change>,
    group_gone: bool,
    lock_is_lost: bool,
    /// Whether somebody else than pglock has stopped the command.
    stopped_by_user: bool,
    /// Whether it stopped because it wants the terminal, which only a shell could give it.
    wants_terminal: bool,
    effects: Vec<Effect>,
}

impl State {
    /// A command that has just been started under a lock, at `now`; `sent` is when the message was sent whose answer
    /// said that the lock is held.
    pub fn new(policy: Policy, sent: Moment, now: Moment) -> Self {
        Self {
            policy,
            stage: Stage::Running,
            link: Link::Idle,
            heard: sent,
            rename_at: policy.rename.then(|| now + SETTLED),
            // A refusal would end the transaction that the lock is bound to behind a pooler, and with it the lock.
            learn_at: (policy.terms.is_some() && !policy.pooled).then(|| now + SETTLED),
            history: None,
            ask_again_at: Moment::FIRST,
            place: 0,
            next_round_at: now,
            is_silent: true,
            patience: ATTEMPT,
            losses: 0,
            lost_at: sent,
            was_told: false,
            hearsay: Hearsay::Nothing,
            served_at: None,
            let_in_at: None,
            evicted: false,
            reason: None,
            end_by: None,
            hold_until: policy.hold_until,
            ended: None,
            group_gone: false,
            lock_is_lost: false,
            stopped_by_user: false,
            wants_terminal: false,
            effects: Vec::new(),
        }
    }

    /// What is asked on the session, if anything is.
    pub fn asked(&self) -> Option<Question> {
        match self.link {
            Link::Asked(question, _) => Some(question),
            Link::Idle | Link::Connecting | Link::Down(_) | Link::Gone => None,
        }
    }

    /// Whether the lock was lost while the command ran, or while it was kept after that.
    pub fn lock_is_lost(&self) -> bool {
        self.lock_is_lost
    }

    /// How the command itself ended, if it has.
    pub fn ended(&self) -> Option<Change> {
        self.ended
    }

    /// Whether it is not known what has become of the lock.
    pub fn is_frozen(&self) -> bool {
        self.stage == Stage::Frozen
    }

    /// Whether the command has ended by itself and the lock is, or was, kept after it.
    pub fn is_holding(&self) -> bool {
        matches!(self.stage, Stage::Holding(_))
    }

    /// When the last message was sent that the server answered.
    #[cfg(test)]
    pub fn heard(&self) -> Moment {
        self.heard
    }

    /// Whether somebody has to look if the group is gone.
    pub fn looks_at_group(&self) -> bool {
        match self.stage {
            Stage::Terminating(_) => self.ended.is_some(),
            Stage::Killed(_) => true,
            Stage::Running
            | Stage::Frozen
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_)
            | Stage::Holding(_) => false,
        }
    }

    /// Whether the command has ended, and the rest of its group too.
    fn is_dead(&self) -> bool {
        self.ended.is_some() && self.group_gone
    }

    /// Whether nothing is left to do but to give the lock up. What a command leaves running in the background is left
    /// alone, unless the lock is lost. A group that does not die of SIGKILL is given up when its lease is over.
    pub fn is_over(&self, now: Moment) -> bool {
        match self.stage {
            Stage::Running
            | Stage::Frozen
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_) => self.ended.is_some(),
            Stage::Terminating(_) => self.is_dead(),
            Stage::Killed(then) => self.is_dead() || self.given_up_at(then) <= now,
            Stage::Holding(until) => until <= now,
        }
    }

    /// When something is to be done though nothing happens.
    pub fn next_deadline(&self, now: Moment) -> Option<Moment> {
        let link = match self.link {
            Link::Idle => self.due_at(),
            Link::Down(retry_at) => self.reconnects().then_some(retry_at),
            Link::Asked(..) | Link::Connecting | Link::Gone => None,
        };
        let look = (self.looks_at_group() || self.is_frozen()).then(|| now + LOOK);
        let stage = self.stage_ends_at();
        [stage, link, look].into_iter().flatten().min()
    }

    /// When the stage is over though nothing happens.
    pub fn stage_ends_at(&self) -> Option<Moment> {
        match self.stage {
            Stage::Running => self.terminate_at(),
            Stage::Frozen => self.frozen_until(),
            Stage::Terminating(kill_at) => Some(self.kill_at(kill_at)),
            Stage::Killed(then) => Some(self.given_up_at(then)),
            Stage::Suspending(by) | Stage::Resuming(by) => Some(by),
            Stage::Suspended => None,
            // As for one that is to be killed.
            Stage::Holding(until) => Some(self.kill_at(until)),
        }
    }

    /// Takes an event in, and tells what is to be done. Deadlines that have passed come before it, so that nothing
    /// lets a command run that is past its own.
    pub fn on(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        // What has ended misses no deadline.
        if let Event::CommandEnded(change, _) = event {
            self.ended = Some(change);
        } else if event == Event::GroupGone {
            self.group_gone = true;
        } else if event == Event::GuardianFired {
            self.guardian_fired(now);
        }
        self.expire(now);
        match event {
            Event::SessionLost(loss, reason) => self.session_lost(loss, reason, now),
            Event::NotConnected(barrier, reason) => self.not_connected(barrier, reason, now),
            Event::Connected => self.connected(now),
            Event::Answered(answer) => self.answered(answer, now),
            Event::CommandStopped(signal, in_foreground) => {
                self.command_stopped(signal, in_foreground, now);
            }
            Event::CommandContinued => self.command_continued(now),
            Event::CommandEnded(_, may_hold) => self.command_ended(may_hold, now),
            Event::GroupGone | Event::GuardianFired => {}
            Event::Signal(signal) => self.signal(signal, now),
            Event::Woken(was_stopped) => self.woken(was_stopped, now),
            Event::Tick => self.tick(),
        }
        self.expire(now);
        self.carry_link_on(now);
        std::mem::take(&mut self.effects)
    }

    /// What is to be done when all is [over](Self::is_over), before the lock is given up.
    pub fn finish(&mut self) -> Vec<Effect> {
        match self.stage {
            // The command may have been killed meanwhile, and have left others in its group, which are left alone.
            Stage::Frozen if !self.stopped_by_user => {
                self.effects.push(Effect::Signal(Signal::CONT));
            }
            // A member may have been starting another when it was killed last, and pglock have been frozen since.
            Stage::Killed(_) if !self.is_dead() => self.effects.push(Effect::Kill),
            Stage::Frozen
            | Stage::Running
            | Stage::Terminating(_)
            | Stage::Killed(_)
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_)
            | Stage::Holding(_) => {}
        }
        self.effects.push(Effect::Guard(None));
        std::mem::take(&mut self.effects)
    }

    // Deadlines

    /// The lease as the last sign of the server has left it; none once the lock is lost and the command runs on.
    fn lease(&self) -> Option<Lease> {
        let terms = self.policy.terms?;
        Some(Lease::new(terms, self.heard))
    }

    /// Whether the server may have given the lock to somebody else by now.
    fn lease_is_over(&self, now: Moment) -> bool {
        self.lease().is_some_and(|lease| lease.kill_at() <= now)
    }

    /// When to tell a command to end that still runs.
    fn terminate_at(&self) -> Option<Moment> {
        let lease = self.lease()?;
        Some(lease.terminate_at().min(lease.kill_at() - AHEAD))
    }

    /// When to kill a command that is still frozen.
    fn frozen_until(&self) -> Option<Moment> {
        let lease = self.lease().map(|lease| lease.kill_at() - AHEAD);
        lease.into_iter().chain(self.end_by).min()
    }

    /// When to kill a command that was to be killed at this moment, or to give up a lock that was to be kept until then: the
    /// lease may end earlier.
    fn kill_at(&self, kill_at: Moment) -> Moment {
        let lease = self.lease().map(|lease| lease.kill_at());
        lease.into_iter().chain([kill_at]).min().unwrap_or(kill_at)
    }

    /// When to give up a group that does not die though it was killed then. Since no sign is given meanwhile, the server
    /// frees the lock within a ttl.
    fn given_up_at(&self, then: Moment) -> Moment {
        then + self.policy.terms.map_or(DYING, Terms::ttl)
    }

    /// When the next question is due on a session on which nothing is asked.
    fn due_at(&self) -> Option<Moment> {
        match self.stage {
            Stage::Running | Stage::Terminating(_) | Stage::Holding(_) => {
                let beat_at = self.lease().map(|lease| lease.beat_at());
                let questions = [beat_at, self.rename_at, self.learn_at];
                let due_at = questions.into_iter().flatten().min();
                due_at.map(|due_at| due_at.max(self.ask_again_at))
            }
            Stage::Frozen | Stage::Killed(_) | Stage::Suspended => None,
            // At once.
            Stage::Suspending(_) | Stage::Resuming(_) => {
                self.ended.is_none().then_some(self.ask_again_at)
            }
        }
    }

    /// Whether a connection that was lost is to be made again.
    fn reconnects(&self) -> bool {
        match self.stage {
            Stage::Running | Stage::Frozen => self.ended.is_none(),
            Stage::Holding(_) => true,
            Stage::Terminating(_)
            | Stage::Killed(_)
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_) => false,
        }
    }

    /// Does what is due because its time has come.
    fn expire(&mut self, now: Moment) {
        match self.stage {
            Stage::Running => {
                if let Some(terminate_at) = self.terminate_at()
                    && self.ended.is_none()
                    && terminate_at <= now
                {
                    let kill_at = terminate_at + self.policy.grace;
                    self.terminate(self.silence(now), kill_at, now);
                    // With no grace it is to be killed at once.
                    self.expire(now);
                }
            }
            Stage::Frozen => {
                // Continued, it might run beside another holder: a stopped command cannot end by itself.
                if self.ended.is_none() && self.frozen_until().is_some_and(|until| until <= now) {
                    let why = match self.end_by {
                        Some(by) if by <= now => Why::ToldToEnd(self.silence_time(now)),
                        Some(_) | None => self.silence(now),
                    };
                    self.kill(why, now);
                }
            }
            Stage::Terminating(kill_at) => {
                if !self.is_dead() && self.kill_at(kill_at) <= now {
                    self.say(Line::Overdue);
                    self.kill_command(now);
                }
            }
            Stage::Killed(_) | Stage::Suspended => {}
            Stage::Suspending(by) => {
                if by <= now {
                    // The server may take the lease out of force yet: with a command that the guardian has killed meanwhile
                    // the lock would stay until the shell continues pglock.
                    if self.asked() == Some(Question::Lift) {
                        self.effects.push(Effect::Guard(None));
                    }
                    self.suspend();
                }
            }
            Stage::Resuming(by) => {
                if by <= now {
                    self.kill(Why::NoAnswer, now);
                }
            }
            Stage::Holding(until) => {
                if now < until && self.lease_is_over(now) {
                    self.lose_hold(self.silence(now), now);
                }
            }
        }
    }

    fn tick(&mut self) {
        match self.stage {
            // Again and again: a member of the group may have been starting another.
            Stage::Killed(_) => self.effects.push(Effect::Kill),
            // Or somebody continues it; only of the command itself is that an event.
            Stage::Frozen => self.effects.push(Effect::Signal(Signal::STOP)),
            Stage::Running
            | Stage::Terminating(_)
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_)
            | Stage::Holding(_) => {}
        }
    }

    // The connection

    /// Does what is due on the connection, or about its absence.
    fn carry_link_on(&mut self, now: Moment) {
        match self.link {
            Link::Idle => {
                if self.due_at().is_some_and(|due_at| due_at <= now) {
                    self.ask_what_is_due(now);
                }
            }
            Link::Down(retry_at) => {
                if self.reconnects() && retry_at <= now {
                    self.link = Link::Connecting;
                    let patience = self.patience / (self.policy.others + 1);
                    self.effects.push(Effect::Connect(self.place, patience));
                }
            }
            Link::Asked(..) | Link::Connecting | Link::Gone => {}
        }
    }

    fn ask_what_is_due(&mut self, now: Moment) {
        match self.stage {
            Stage::Running | Stage::Terminating(_) | Stage::Holding(_) => {
                let is_due = |at: &mut Option<Moment>| at.take_if(|at| *at <= now).is_some();
                let question = if is_due(&mut self.rename_at) {
                    Question::Rename
                } else if is_due(&mut self.learn_at) {
                    Question::History
                } else {
                    Question::Beat
                };
                self.ask(question, now);
            }
            Stage::Suspending(_) if self.policy.terms.is_some() => self.ask(Question::Lift, now),
            Stage::Suspending(_) => self.suspend(),
            Stage::Resuming(_) => self.ask(Question::Check, now),
            Stage::Frozen | Stage::Killed(_) | Stage::Suspended => {}
        }
    }

    fn ask(&mut self, question: Question, now: Moment) {
        self.link = Link::Asked(question, now);
        self.effects.push(Effect::Ask(question));
    }

    /// Closes the session, if there is one, and makes no other.
    fn disconnect(&mut self) {
        self.link = Link::Gone;
        self.effects.push(Effect::Disconnect);
    }

    fn session_lost(&mut self, loss: Loss, reason: String, now: Moment) {
        // A deadline that came before it has closed the session.
        if self.link == Link::Gone {
            return;
        }
        let had_answered = self.lost_at <= self.heard;
        self.link = Link::Gone;
        self.note_let_in();
        // It was the holder when all ended, so nobody has had the lock since, and newcomers hold off. Else the command is
        // stopped, before anything is said.
        let freezes = self.stage == Stage::Running
            && self.ended.is_none()
            && self.policy.terms.is_some()
            && self.policy.kill_on_loss
            && loss != Loss::All;
        if freezes {
            self.effects.push(Effect::Signal(Signal::STOP));
        }
        if had_answered {
            self.say(Line::ConnectionLost(self.silence_time(now), reason.clone()));
        }
        match self.stage {
            Stage::Running if self.ended.is_some() => {}
            Stage::Running if self.policy.terms.is_none() => {
                self.terminate(Why::NoLease, now + self.policy.grace, now);
            }
            Stage::Running => {
                self.note_loss(loss, now);
                if freezes {
                    self.stage = Stage::Frozen;
                }
                self.link = Link::Down(self.first_retry_at(loss, had_answered, now));
            }
            Stage::Frozen => {
                let retry_at = self.next_retry_at(now);
                self.go_on(retry_at, now);
            }
            Stage::Terminating(_) => match loss {
                Loss::Cut | Loss::One => self.kill(Why::GoneAgain, now),
                // The lease says until when nobody else has the lock.
                Loss::All => {}
            },
            Stage::Killed(_) => {}
            // It is looked for when pglock is continued.
            Stage::Suspending(_) => {
                self.note_loss(loss, now);
                self.link = Link::Down(now);
                self.suspend();
            }
            Stage::Suspended => {
                self.note_loss(loss, now);
                self.link = Link::Down(now);
            }
            Stage::Resuming(_) => self.kill(Why::GoneMeanwhile, now),
            Stage::Holding(_) if self.policy.terms.is_none() => {
                self.lose_hold(Why::NoLease, now);
            }
            Stage::Holding(_) if had_answered => {
                self.note_loss(loss, now);
                self.link = Link::Down(self.first_retry_at(loss, had_answered, now));
            }
            Stage::Holding(_) => {
                let retry_at = self.next_retry_at(now);
                self.go_on(retry_at, now);
            }
        }
        if !had_answered {
            // It was one more attempt to reach the server.
            self.reason = Some(reason);
        }
    }

    /// The session that held the lock is gone.
    fn note_loss(&mut self, loss: Loss, now: Moment) {
        self.lost_at = now;
        self.was_told = match loss {
            Loss::Cut => false,
            Loss::One | Loss::All => true,
        };
        self.hearsay = Hearsay::Nothing;
        self.go_home();
        self.served_at = None;
        self.evicted = false;
        self.reason = None;
    }

    /// When to try again after the loss of the session that held the lock.
    fn first_retry_at(&mut self, loss: Loss, had_answered: bool, now: Moment) -> Moment {
        // At once, unless the session before it had come to nothing too: a server may grant the lock and close.
        let retry_at = if had_answered && self.losses == 0 {
            self.losses = 1;
            now
        } else {
            self.next_retry_at(now)
        };
        match loss {
            // A pooler passes on what its server has said.
            Loss::One | Loss::All if self.policy.pooled && had_answered => {
                // In time for the answer, too.
                let until = self.terminate_at().unwrap_or(now);
                retry_at.max(now + POOLED_RETRY.min(until.since(now) / 2))
            }
            Loss::Cut | Loss::One | Loss::All => retry_at,
        }
    }

    /// When to try again where an attempt has led to a session that came to nothing, or to none for a reason that lasts.
    fn next_retry_at(&mut self, now: Moment) -> Moment {
        let pause = RETRY * 2_u32.pow(self.losses.saturating_sub(1).min(10));
        self.losses += 1;
        now + pause.min(LONGEST_RETRY)
    }

    /// The way back begins anew.
    fn go_home(&mut self) {
        self.place = 0;
        self.next_round_at = Moment::FIRST;
        self.is_silent = true;
    }

    /// There is nothing at the place at hand: the next has its turn, and after the last one all of them, not before `retry_at`.
    fn go_on(&mut self, retry_at: Moment, now: Moment) {
        self.next_round_at = self.next_round_at.max(retry_at);
        if self.place < self.policy.others {
            self.place += 1;
            self.link = Link::Down(now);
        } else {
            self.link = Link::Down(self.next_round_at);
            if self.is_silent {
                self.patience *= 2;
            }
            self.go_home();
        }
    }

    /// Who has let pglock in has served, be it for a moment.
    fn note_let_in(&mut self) {
        if let Some(let_in_at) = self.let_in_at.take() {
            self.note_service(let_in_at);
        }
    }

    /// The server serves, as this client has learnt.
    fn note_service(&mut self, now: Moment) {
        if !self.policy.pooled {
            self.served_at.get_or_insert(now);
        }
    }

    fn not_connected(&mut self, barrier: Barrier, reason: String, now: Moment) {
        self.reason = Some(reason);
        match barrier {
            Barrier::Denied | Barrier::Unguarded => self.note_service(now),
            Barrier::NotServing
            | Barrier::Starting
            | Barrier::Down
            | Barrier::Unreachable
            | Barrier::Refused
            | Barrier::Silence => {}
        }
        let is_home = self.place == 0;
        if let Link::Connecting = self.link {
            self.is_silent &= barrier == Barrier::Silence;
            let retry_at = match barrier {
                Barrier::Silence => now,
                Barrier::NotServing | Barrier::Starting | Barrier::Down | Barrier::Unreachable => {
                    now + RETRY
                }
                // It would do so again.
                Barrier::Denied | Barrier::Refused | Barrier::Unguarded => self.next_retry_at(now),
            };
            self.go_on(retry_at, now);
        }
        match self.stage {
            Stage::Frozen => {
                let is_fresh = now <= self.lost_at + FRESH;
                let speaks_of_loss = is_home
                    && is_fresh
                    && self.served_at.is_none()
                    && !self.policy.pooled
                    && self.hearsay != Hearsay::Denied;
                let goes_down = self.hearsay == Hearsay::NotServing;
                let all_are_gone = match barrier {
                    Barrier::NotServing => {
                        if speaks_of_loss {
                            self.hearsay = Hearsay::NotServing;
                        }
                        false
                    }
                    // A program in between may have gone, where the server has said nothing.
                    Barrier::Starting | Barrier::Down => self.was_told || goes_down,
                    // It went down and is down: something else in the way would be a strange chance.
                    Barrier::Unreachable => goes_down,
                    Barrier::Denied | Barrier::Refused | Barrier::Unguarded | Barrier::Silence => {
                        false
                    }
                };
                if all_are_gone && speaks_of_loss {
                    self.hearsay = Hearsay::Down;
                    self.unfreeze();
                }
            }
            // A strange chance it was: in a smart shutdown somebody may have got the lock.
            Stage::Running
                if self.hearsay == Hearsay::Down
                    && barrier == Barrier::NotServing
                    && is_home
                    && self.ended.is_none() =>
            {
                self.hearsay = Hearsay::Denied;
                self.stage = Stage::Frozen;
                self.effects.push(Effect::Signal(Signal::STOP));
            }
            Stage::Running
            | Stage::Terminating(_)
            | Stage::Killed(_)
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_)
            | Stage::Holding(_) => {}
        }
    }

    fn connected(&mut self, now: Moment) {
        if self.link != Link::Connecting {
            // Given up meanwhile.
            return self.effects.push(Effect::Disconnect);
        }
        match self.stage {
            Stage::Running | Stage::Frozen | Stage::Holding(_) => {
                self.let_in_at = Some(now);
                self.is_silent = false;
                self.patience = ATTEMPT;
                self.rename_at = self.policy.rename.then_some(now);
                self.ask(Question::Retake, now);
            }
            // No lock is taken for a command that ends.
            Stage::Terminating(_) | Stage::Killed(_) => self.disconnect(),
            // One that its user has stopped is in no hurry.
            Stage::Suspending(_) | Stage::Suspended | Stage::Resuming(_) => {
                self.disconnect();
                self.link = Link::Down(now);
            }
        }
    }

    fn answered(&mut self, answer: Answer, now: Moment) {
        let Link::Asked(question, sent) = self.link else {
            return;
        };
        self.link = Link::Idle;
        match answer {
            Answer::Alive => match question {
                Question::Beat => {
                    self.losses = 0;
                    self.renew(sent);
                }
                Question::Rename => self.renew(sent),
                Question::Lift => self.lifted(),
                Question::Retake
                | Question::History
                | Question::Past
                | Question::Holder
                | Question::Evict
                | Question::Check => {}
            },
            Answer::Retake(retake) => self.retake_answered(retake, sent, now),
            Answer::History(history) => {
                self.history = history;
                self.renew(sent);
            }
            Answer::Past(past) => {
                // Asked of a server that has just answered, it says what there is to know.
                let end = self.end_of_session(past, sent, now);
                let end = end.unwrap_or_else(|| self.doubtful_end(past));
                self.retaken(end, past, sent, now);
            }
            Answer::Holder(age) => self.holder_known(age, now),
            Answer::Check(is_held) => self.checked(is_held, sent, now),
            Answer::Unconfirmed(reason) => self.unconfirmed(question, reason, now),
        }
    }

    /// The server has answered alone: to a lease that is no answer.
    fn unconfirmed(&mut self, question: Question, reason: String, now: Moment) {
        match question {
            Question::Beat
            | Question::Rename
            | Question::History
            | Question::Lift
            | Question::Check => {
                self.ask_again_at = now + RETRY;
            }
            // It may be held or not: the session goes.
            Question::Retake | Question::Past | Question::Holder | Question::Evict => {
                self.retake_answered(Retake::NotReady, now, now);
            }
        }
        self.reason = Some(reason);
    }

    /// The server has answered a message sent at this moment.
    fn renew(&mut self, sent: Moment) {
        self.heard = self.heard.max(sent);
        self.reason = None;
        if let Some(lease) = self.lease()
            && self.policy.kill_on_loss
            && !self.is_holding()
        {
            self.effects.push(Effect::Guard(Some(lease.kill_at())));
        }
    }

    /// What a server of this past is to the one that held the lock. Where one of them did not tell, it is the same if it is
    /// where the other was.
    fn kinship(&self, past: Past) -> Kinship {
        match (self.history, past.history) {
            (Some(held), Some(found)) if found == held => Kinship::Same,
            (Some(held), Some(found)) if found.is_after(held) => Kinship::Successor,
            (Some(_), Some(_)) => Kinship::None,
            (None, _) | (_, None) if self.place == 0 => Kinship::Same,
            (None, _) | (_, None) => Kinship::None,
        }
    }

    /// What has ended the session that held the lock, by the past of the server that there is; `None` where
    /// the answer was too long under way to tell.
    fn end_of_session(&self, past: Past, sent: Moment, now: Moment) -> Option<SessionEnd> {
        let (age, end, otherwise) = match self.kinship(past) {
            Kinship::Same => (past.lost, SessionEnd::Restart, SessionEnd::Alone),
            Kinship::Successor => {
                let promoted = past.promoted.unwrap_or(Duration::MAX);
                let age = past.lost.min(promoted);
                (age, SessionEnd::Promotion, SessionEnd::Elsewhere)
            }
            Kinship::None => return Some(SessionEnd::Elsewhere),
        };
        let is_since = self.lease()?.was_restarted(age, sent, now)?;
        let served_before = self
            .served_at
            .is_some_and(|served_at| age < sent.since(served_at));
        Some(match (is_since, served_before) {
            (false, _) => otherwise,
            (true, false) => end,
            (true, true) => SessionEnd::AloneBeforeRestart,
        })
    }

    /// The same where that cannot be told.
    fn doubtful_end(&self, past: Past) -> SessionEnd {
        match self.kinship(past) {
            Kinship::Same => SessionEnd::Alone,
            Kinship::Successor | Kinship::None => SessionEnd::Elsewhere,
        }
    }

    /// The answer to an attempt to take the lock again, sent at this moment.
    fn retake_answered(&mut self, retake: Retake, sent: Moment, now: Moment) {
        match retake {
            Retake::Standby => self.let_in_at = None,
            // It speaks of this very session, which its end would end.
            Retake::Held(_) => {}
            Retake::Busy(_) | Retake::NotReady => self.note_let_in(),
        }
        match (self.stage, retake) {
            // It holds the lock until the group is gone; on another server it keeps nobody off.
            (Stage::Terminating(_), Retake::Held(past)) => match self.kinship(past) {
                Kinship::Same => self.renew(sent),
                Kinship::Successor | Kinship::None => self.disconnect(),
            },
            (Stage::Killed(_), Retake::Held(_)) => {}
            (Stage::Terminating(_), Retake::Busy(_)) => self.kill(Why::Taken, now),
            (Stage::Killed(_), Retake::Busy(_))
            | (Stage::Terminating(_) | Stage::Killed(_), Retake::Standby | Retake::NotReady) => {
                self.disconnect();
            }
            (
                Stage::Running
                | Stage::Frozen
                | Stage::Suspending(_)
                | Stage::Suspended
                | Stage::Resuming(_)
                | Stage::Holding(_),
                Retake::Held(past),
            ) => match self.end_of_session(past, sent, now) {
                Some(end) => self.retaken(end, past, sent, now),
                // A pooler kept the question until the server was back.
                None => self.ask(Question::Past, now),
            },
            (
                Stage::Running
                | Stage::Frozen
                | Stage::Suspending(_)
                | Stage::Suspended
                | Stage::Resuming(_)
                | Stage::Holding(_),
                Retake::Busy(past),
            ) => {
                // Behind a pooler it is not known which backend was this one's, and on another server it was none.
                let can_be_own = match self.kinship(past) {
                    Kinship::Same => !self.evicted && !self.policy.pooled,
                    Kinship::Successor | Kinship::None => false,
                };
                if can_be_own {
                    self.ask(Question::Holder, now);
                } else {
                    self.kill(Why::Taken, now);
                }
            }
            (
                Stage::Running
                | Stage::Frozen
                | Stage::Suspending(_)
                | Stage::Suspended
                | Stage::Resuming(_)
                | Stage::Holding(_),
                Retake::Standby | Retake::NotReady,
            ) => {
                self.disconnect();
                let retry_at = match retake {
                    // It may be promoted at any moment.
                    Retake::Standby => now + RETRY,
                    Retake::Held(_) | Retake::Busy(_) | Retake::NotReady => self.next_retry_at(now),
                };
                self.go_on(retry_at, now);
                // It is asked for again, as long as the lease lasts.
                if let Stage::Resuming(_) = self.stage {
                    self.stage = Stage::Frozen;
                }
            }
        }
    }

    /// The lock is held again.
    fn retaken(&mut self, end: SessionEnd, past: Past, sent: Moment, now: Moment) {
        let time = self.silence_time(now);
        match self.stage {
            Stage::Running
            | Stage::Frozen
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_)
            | Stage::Holding(_) => {
                if end == SessionEnd::Elsewhere {
                    // It keeps off nobody who finds the server that held it.
                    return self.kill(Why::Elsewhere(time), now);
                }
                // While pglock was stopped nobody looked whether it was over, and newcomers hold off no longer.
                let was_over = self.lease_is_over(now);
                self.renew(sent);
                self.let_in_at = None;
                if past.history.is_some() {
                    self.history = past.history;
                    self.learn_at = None;
                }
                self.go_home();
                if was_over || self.lease_is_over(now) {
                    return self.kill(Why::RetakenLate, now);
                }
                match end {
                    SessionEnd::Restart => {
                        self.unfreeze();
                        self.say(Line::Restarted(time));
                    }
                    SessionEnd::Promotion => {
                        self.unfreeze();
                        self.say(Line::Promoted(time));
                    }
                    // Whoever had it meanwhile may run on, and is about to take it again.
                    SessionEnd::AloneBeforeRestart => self.kill(Why::EndedAlone(time), now),
                    SessionEnd::Alone if self.policy.kill_on_loss => {
                        self.terminate(Why::EndedAlone(time), now + self.policy.grace, now);
                    }
                    SessionEnd::Alone if self.is_holding() => {
                        self.say(Line::HoldRetaken(Why::EndedAlone(time)));
                    }
                    SessionEnd::Alone => {
                        self.unfreeze();
                        self.say(Line::CarryingOnRetaken(Why::EndedAlone(time)));
                    }
                    SessionEnd::Elsewhere => {}
                }
            }
            Stage::Terminating(_) | Stage::Killed(_) => {}
        }
    }

    /// Somebody holds the lock; if it is the backend of the session that is gone, which has not noticed yet, its age is
    /// known. A backend that was there at the last sign, under the number that it had then, is that one.
    fn holder_known(&mut self, age: Option<Duration>, now: Moment) {
        let is_own = age.is_some_and(|age| age > now.since(self.heard));
        match self.stage {
            Stage::Running
            | Stage::Frozen
            | Stage::Terminating(_)
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_)
            | Stage::Holding(_) => {
                if is_own {
                    self.evicted = true;
                    self.ask(Question::Evict, now);
                } else {
                    self.kill(Why::Taken, now);
                }
            }
            Stage::Killed(_) => self.disconnect(),
        }
    }

    /// The lease is out of force.
    fn lifted(&mut self) {
        match self.stage {
            Stage::Suspending(_) => {
                self.effects.push(Effect::Guard(None));
                self.suspend();
            }
            // It came too late to stop for; a check puts the lease in force again.
            Stage::Resuming(_) => {}
            Stage::Running
            | Stage::Frozen
            | Stage::Terminating(_)
            | Stage::Killed(_)
            | Stage::Suspended
            | Stage::Holding(_) => {}
        }
    }

    fn checked(&mut self, is_held: bool, sent: Moment, now: Moment) {
        match self.stage {
            Stage::Resuming(_) => {
                if !is_held {
                    return self.kill(Why::NotHeld, now);
                }
                self.renew(sent);
                if self.lease_is_over(now) {
                    return self.kill(Why::CheckedLate, now);
                }
                self.effects.push(Effect::WakeGuardian);
                self.stage = Stage::Running;
                if !self.wants_terminal {
                    self.continue_command();
                }
            }
            Stage::Running
            | Stage::Frozen
            | Stage::Terminating(_)
            | Stage::Killed(_)
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Holding(_) => {}
        }
    }

    // The command

    /// The command was stopped. Where there is a terminal there may be a shell that should see pglock
    /// stopped too; elsewhere it is for whoever stopped the command to continue it.
    fn command_stopped(&mut self, signal: Signal, in_foreground: bool, now: Moment) {
        match self.stage {
            // By pglock itself.
            Stage::Frozen => {}
            Stage::Running => {
                self.stopped_by_user = true;
                if !self.policy.has_terminal {
                    return;
                }
                if signal.is_about_terminal() && in_foreground {
                    // It wanted the terminal before the shell had put pglock into the foreground.
                    self.effects.push(Effect::Continue);
                    return;
                }
                self.wants_terminal = signal.is_about_terminal();
                match self.link {
                    Link::Idle | Link::Asked(..) => self.stage = Stage::Suspending(now + LIFT),
                    // There is nothing to lift.
                    Link::Connecting | Link::Down(_) | Link::Gone => self.suspend(),
                }
            }
            Stage::Terminating(_)
            | Stage::Killed(_)
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_) => self.stopped_by_user = true,
            Stage::Holding(_) => {}
        }
    }

    /// The command was continued, by whom ever.
    fn command_continued(&mut self, now: Moment) {
        self.stopped_by_user = false;
        match self.stage {
            // Nobody but pglock lets a command run whose lock may be somebody else's.
            Stage::Frozen | Stage::Suspended | Stage::Resuming(_) => {
                self.effects.push(Effect::Signal(Signal::STOP));
            }
            Stage::Suspending(_) => {
                self.stage = match self.asked() {
                    // The lease that it lifts has to be restored.
                    Some(Question::Lift) => {
                        Stage::Resuming(self.frozen_until().unwrap_or(now + LIFT))
                    }
                    Some(_) | None => Stage::Running,
                };
            }
            Stage::Running | Stage::Terminating(_) | Stage::Killed(_) | Stage::Holding(_) => {}
        }
    }

    /// The command has ended, and the lock is kept for as long as it is to be held at least. One whom its user had stopped was
    /// ended by somebody: whoever did so does not wait for a lock.
    fn command_ended(&mut self, may_hold: bool, now: Moment) {
        let until = self
            .hold_until
            .filter(|until| may_hold && now < *until && !self.lock_is_lost);
        match (self.stage, until) {
            (Stage::Running | Stage::Frozen, Some(until)) => {
                if self.stage == Stage::Frozen && !self.stopped_by_user {
                    // What is left of its group runs on.
                    self.effects.push(Effect::Signal(Signal::CONT));
                }
                self.effects.push(Effect::Hold);
                self.effects.push(Effect::Guard(None));
                self.say(Line::Holding(until.since(now)));
                self.stage = Stage::Holding(until);
                // It need not settle any more.
                self.rename_at = self.rename_at.map(|at| at.min(now));
            }
            (Stage::Running | Stage::Frozen, None)
            | (
                Stage::Terminating(_)
                | Stage::Killed(_)
                | Stage::Suspending(_)
                | Stage::Suspended
                | Stage::Resuming(_)
                | Stage::Holding(_),
                _,
            ) => {}
        }
    }

    /// The lock is lost that was kept after the command.
    fn lose_hold(&mut self, why: Why, now: Moment) {
        self.lock_is_lost = true;
        self.say(Line::HoldLost(why));
        self.stage = Stage::Holding(now);
        self.give_up_connecting();
    }

    /// The command is dead, or dying, and whatever is left of its group is to be.
    fn guardian_fired(&mut self, now: Moment) {
        match self.stage {
            Stage::Running
            | Stage::Frozen
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_) => {
                self.lock_is_lost = true;
                self.say(Line::Fired(self.silence_time(now)));
                self.kill_command(now);
                self.give_up_connecting();
            }
            // It was lost before, and the two had the same deadline.
            Stage::Terminating(_) => {
                self.say(Line::Overdue);
                self.kill_command(now);
            }
            // The lease is over, which is told by its deadline.
            Stage::Killed(_) | Stage::Holding(_) => {}
        }
    }

    /// Passes a signal on to the command.
    fn signal(&mut self, signal: Signal, now: Moment) {
        if signal == Signal::CONT {
            return self.told_to_continue();
        }
        // Whoever wants the command to end does not want to wait for a lock.
        if asks_to_end(signal) {
            self.hold_until = None;
        }
        // A stopped group would take these only when it is continued: so it is, at once or when it may run again.
        let awake = [Signal::TERM, Signal::HUP].contains(&signal);
        if awake {
            self.stopped_by_user = false;
            self.wants_terminal = false;
        }
        match self.stage {
            Stage::Running | Stage::Terminating(_) => {
                self.effects.push(if awake {
                    Effect::SignalAwake(signal)
                } else {
                    Effect::Signal(signal)
                });
            }
            Stage::Frozen => {
                // It takes the signal when it may run again. If it may not in time, it ends all the same.
                self.effects.push(Effect::Signal(signal));
                if asks_to_end(signal) {
                    self.end_by.get_or_insert(now + self.policy.grace);
                }
            }
            // Not with a SIGCONT behind it.
            Stage::Killed(_) | Stage::Suspending(_) | Stage::Suspended => {
                self.effects.push(Effect::Signal(signal));
            }
            // As a frozen one.
            Stage::Resuming(by) => {
                self.effects.push(Effect::Signal(signal));
                if asks_to_end(signal) {
                    self.stage = Stage::Resuming(by.min(now + self.policy.grace));
                }
            }
            Stage::Holding(_) if signal == Signal::TSTP && self.policy.has_terminal => {
                self.effects.push(Effect::Suspend);
            }
            Stage::Holding(until) => {
                if now < until && !signal.is_harmless() {
                    self.say(Line::HoldEnded(signal));
                    self.stage = Stage::Holding(now);
                }
            }
        }
    }

    fn told_to_continue(&mut self) {
        match self.stage {
            Stage::Running | Stage::Terminating(_) => self.continue_command(),
            // Then the command continues when the lock is known to be held.
            Stage::Frozen => self.stopped_by_user = false,
            Stage::Killed(_)
            | Stage::Suspending(_)
            | Stage::Suspended
            | Stage::Resuming(_)
            | Stage::Holding(_) => {}
        }
    }

    /// pglock has been stopped, and is continued; or it could not be stopped, since no shell is there.
    fn woken(&mut self, was_stopped: bool, now: Moment) {
        // Where no shell is, it would stop for the same reason again and again.
        self.wants_terminal &= !was_stopped;
        match self.stage {
            Stage::Suspended => match self.link {
                Link::Idle | Link::Asked(..) => {
                    let ttl = self.policy.terms.map(Terms::ttl);
                    self.stage = Stage::Resuming(now + ttl.unwrap_or(RESUME));
                }
                Link::Connecting | Link::Down(_) if self.policy.terms.is_some() => {
                    self.stage = Stage::Frozen;
                    self.stopped_by_user = false;
                    // A command that runs on without its lock need not wait for it.
                    if !self.policy.kill_on_loss {
                        self.stage = Stage::Running;
                        self.continue_command();
                    }
                }
                Link::Gone if self.lock_is_lost => {
                    self.stage = Stage::Running;
                    self.continue_command();
                }
                Link::Connecting | Link::Down(_) | Link::Gone => self.kill(Why::GoneMeanwhile, now),
            },
            Stage::Running
            | Stage::Frozen
            | Stage::Terminating(_)
            | Stage::Killed(_)
            | Stage::Suspending(_)
            | Stage::Resuming(_)
            // A lease that is over by now is noticed by its deadline.
            | Stage::Holding(_) => {}
        }
    }

    // What is done

    fn say(&mut self, line: Line) {
        self.effects.push(Effect::Say(line));
    }

    fn silence_time(&self, now: Moment) -> Duration {
        now.since(self.heard)
    }

    fn silence(&self, now: Moment) -> Why {
        Why::Silence(self.silence_time(now), self.reason.clone())
    }

    /// Continues the command; that somebody has stopped it counts no more.
    fn continue_command(&mut self) {
        self.stopped_by_user = false;
        self.effects.push(Effect::Continue);
    }

    /// Lets a command run on that was frozen, unless somebody else wants it stopped.
    fn unfreeze(&mut self) {
        if self.stage == Stage::Frozen {
            self.stage = Stage::Running;
            self.end_by = None;
            if !self.stopped_by_user {
                self.effects.push(Effect::Signal(Signal::CONT));
            }
        }
    }

    /// The command must end, for the lock is lost; where it has ended, so does the time for which the lock is kept.
    fn terminate(&mut self, why: Why, kill_at: Moment, now: Moment) {
        if self.is_holding() {
            return self.lose_hold(why, now);
        }
        self.lock_is_lost = true;
        if self.policy.kill_on_loss {
            self.say(Line::Terminating(why));
            self.effects.push(Effect::SignalAwake(Signal::TERM));
            self.stage = Stage::Terminating(kill_at);
            self.give_up_connecting();
        } else {
            self.carry_on_without(why);
        }
    }

    /// The command must end at once, for somebody else may hold the lock. The session stays until it has ended: as far as
    /// it holds the lock, nobody else shall have it before.
    fn kill(&mut self, why: Why, now: Moment) {
        if self.is_holding() {
            return self.lose_hold(why, now);
        }
        self.lock_is_lost = true;
        if self.policy.kill_on_loss {
            self.say(Line::Killing(why));
            self.kill_command(now);
            self.give_up_connecting();
        } else {
            self.carry_on_without(why);
        }
    }

    fn kill_command(&mut self, now: Moment) {
        self.stage = Stage::Killed(now);
        self.effects.push(Effect::Kill);
    }

    /// `--on-loss continue`.
    fn carry_on_without(&mut self, why: Why) {
        self.say(Line::CarryingOn(why));
        self.policy.terms = None;
        match self.stage {
            Stage::Frozen | Stage::Suspending(_) | Stage::Suspended | Stage::Resuming(_) => {
                self.continue_command();
            }
            Stage::Running | Stage::Terminating(_) | Stage::Killed(_) | Stage::Holding(_) => {}
        }
        self.stage = Stage::Running;
        self.disconnect();
    }

    /// No attempt is made any more; a session that there is stays.
    fn give_up_connecting(&mut self) {
        match self.link {
            Link::Connecting | Link::Down(_) => self.link = Link::Gone,
            Link::Idle | Link::Asked(..) | Link::Gone => {}
        }
    }

    /// Stops pglock, with the rest of its group, until the shell continues it; and what of the command is not
    /// stopped yet, for nobody is there then to stop it when the lock is lost.
    fn suspend(&mut self) {
        self.stage = Stage::Suspended;
        self.effects.push(Effect::Signal(Signal::STOP));
        self.effects.push(Effect::Suspend);
    }
}

/// Whether a signal is meant to end a process.
fn asks_to_end(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].contains(&signal)
}

#[cfg(test)]
mod names;
#[cfg(test)]
mod tests;
