//! The loop that ties the lock, the lease and the command together: one `poll` a turn over the signals, the
//! connection and one timer. Nothing else in it waits while the command runs, but for libpq where Kerberos is asked
//! for in a reconnect; there the guardian keeps the deadline.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::acquire::Held;
use crate::command::{Command, End, Words};
use crate::config::Config;
use crate::drive;
use crate::exit::Exit;
use crate::guardian::Guardian;
use crate::label;
use crate::lease::{Lease, Moment};
use crate::lock::{self, Lock, Verdict};
use crate::log::Log;
use crate::pq::{self, Conninfo};
use crate::session::{Event, Session};
use crate::sys::{self, Change, Signal, Signals, Terminal, Timer, Ward};

/// How long to wait between two attempts to reach the server again.
const RETRY: Duration = Duration::from_millis(100);
/// How long one attempt to reach it may take before another is made, which may take twice as long.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long to wait for a killed group to be gone: a process that hangs in the kernel does not even die of SIGKILL.
const DYING: Duration = Duration::from_secs(2);
/// How long a command without a lease stays stopped, after pglock was, until the server says that the lock is held.
const RESUME: Duration = Duration::from_secs(2);
/// How often to look whether the rest of a command's group is gone: no event tells.
const LOOK: Duration = Duration::from_millis(20);
/// When to rename a session that has waited. By then the command runs: while it is being started, an answer
/// on the connection would look as if the server had ended the session.
const RENAME: Duration = Duration::from_secs(1);
/// How long before the guardian would pglock kills a command that is paused: it would look as if pglock had been
/// frozen.
const AHEAD: Duration = Duration::from_millis(100);
/// How long to wait for the lease to be lifted before stopping without that.
const LIFT: Duration = Duration::from_secs(1);

/// Runs the command to its end, then gives the lock up.
pub fn run(
    config: &Config,
    held: Held,
    environment: Vec<CString>,
    signals: &Signals,
    log: Log,
) -> Exit {
    let words = Words(&config.command);
    // What has come since the lock was taken has met no command yet.
    let early = signals
        .take()
        .into_iter()
        .find(|signal| !signal.is_harmless());
    if let Some(signal) = early {
        log.error(format_args!("{signal} came before the command ran"));
        return give_up(held, signals, Exit::Signal(signal));
    }
    log.info(format_args!("Executing command: {words}"));
    let lease = config.terms.map(|terms| Lease::new(terms, held.sent));
    let terminal = Terminal::open();
    // Otherwise the command gets the terminal when it first wants it.
    let in_foreground = terminal.as_ref().filter(|terminal| {
        terminal.is_input_and_output() && terminal.foreground() == sys::own_group()
    });
    let socket = held.session.wants().map(|(descriptor, _)| descriptor);
    let started = Command::start(
        &config.command,
        environment,
        held.token,
        signals,
        |own_group| {
            held.ward.set_group(Some(own_group));
            if let Some(terminal) = in_foreground {
                terminal.give_to(own_group);
            }
            // pglock may have been frozen since it got the lock, and the server, which says nothing unasked but
            // that it ends the session, may be going down. Nothing has been asked yet.
            let errno = if lease.is_some_and(|lease| lease.kill_at() <= sys::now()) {
                sys::ETIME
            } else if socket.is_some_and(sys::is_readable_now) {
                sys::ECONNRESET
            } else {
                return Ok(());
            };
            Err(io::Error::from_raw_os_error(errno))
        },
    );
    let command = match started {
        Ok(command) => command,
        Err(error) => {
            log.error(format_args!("could not start {words}: {error}"));
            return give_up(held, signals, Exit::Failed);
        }
    };
    let new_name = held.waited.then(|| label::label(&config.command));
    let mut supervisor = Supervisor {
        config,
        signals,
        log,
        settings: &held.settings,
        lock: held.lock,
        ward: held.ward,
        guardian: Some(held.guardian),
        link: Link::Up(held.session, None),
        new_name: new_name.clone(),
        name: new_name,
        rename_at: sys::now() + RENAME,
        lease,
        heard: held.sent,
        patience: ATTEMPT,
        stage: Stage::Running,
        ended: None,
        lost: false,
        halted: false,
        wants_terminal: false,
        out_of_reach: false,
        farewell: false,
        terminal: terminal.as_ref(),
        command,
        timer: Timer::new(),
    };
    // It may have been killed while pglock waited for the lock.
    if !supervisor
        .guardian
        .as_ref()
        .is_some_and(Guardian::is_on_post)
    {
        supervisor.replace_guardian();
    }
    supervisor.run()
}

/// Gives the lock up without having run the command.
fn give_up(mut held: Held, signals: &Signals, exit: Exit) -> Exit {
    drive::release(&mut held.session, held.lock, signals, || {
        held.guardian.retire();
    });
    exit
}

/// What holds the lock at the server.
enum Link {
    /// A session, and what was asked on it and when, if that is not answered yet.
    Up(Session, Option<(Question, Moment)>),
    /// An attempt to connect again, to be abandoned at this moment.
    Connecting(Session, Moment),
    /// Nothing; to be tried again at this moment.
    Down(Moment),
    /// Nothing, for good.
    Gone,
}

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Whether the server is there.
    Beat,
    /// For the lock, on a new connection.
    Retake,
    /// How long ago the server lost its sessions, now that the lock is retaken.
    Age,
    /// To keep the session while pglock is stopped.
    Lift,
    /// Whether the lock is still held, now that pglock is continued.
    Check,
}

/// What is happening to the command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// pglock has stopped it until it knows what has become of the lock, see [`Supervisor::pause`].
    Paused,
    /// The lock is lost: it was told to end, and is killed at this moment.
    Stopping(Moment),
    /// It was killed, at this moment.
    Killed(Moment),
    /// It is stopped, and pglock is about to stop too, at this moment at the latest.
    Suspending(Moment),
    /// It is stopped, and continues when the lock is known to be held, by this moment.
    Resuming(Moment),
}

struct Supervisor<'a> {
    config: &'a Config,
    signals: &'a Signals,
    log: Log,
    /// How to reach the server again.
    settings: &'a Conninfo,
    lock: Lock,
    ward: Ward,
    guardian: Option<Guardian>,
    link: Link,
    /// What the session is to be called, if it was called something else while it waited.
    name: Option<String>,
    /// The same, until it is called so.
    new_name: Option<String>,
    /// Not before this moment.
    rename_at: Moment,
    /// In force until the lock is lost.
    lease: Option<Lease>,
    /// When the last message was sent that the server answered.
    heard: Moment,
    /// How long the next attempt to reach it may take.
    patience: Duration,
    stage: Stage,
    /// How the command itself ended; others of its group may be left.
    ended: Option<Change>,
    lost: bool,
    /// Whether somebody else than pglock has stopped the command.
    halted: bool,
    /// Whether it stopped because it wants the terminal, which only a shell could give it.
    wants_terminal: bool,
    /// Whether it could not be killed.
    out_of_reach: bool,
    /// Whether the server has said of itself that it ends sessions, when it ended this one.
    farewell: bool,
    /// The controlling terminal, where there is a shell to stop for.
    terminal: Option<&'a Terminal>,
    command: Command,
    timer: Timer,
}

impl Supervisor<'_> {
    fn run(mut self) -> Exit {
        loop {
            self.reap();
            if self.is_over() {
                return self.finish();
            }
            self.keep_deadlines();
            self.carry_link_on();
            let link_ready = self.wait();
            // What has come meanwhile is looked at in this order, so that no signal lets a command
            // continue that is past its deadline.
            self.reap();
            if link_ready {
                self.step_link();
            }
            self.keep_deadlines();
            for signal in self.signals.take() {
                self.pass_on(signal);
            }
        }
    }

    /// Waits for a signal, the connection or the next deadline. Tells whether it was the connection.
    fn wait(&self) -> bool {
        let deadline = self.next_deadline();
        self.timer.set(deadline);
        let link = match &self.link {
            Link::Up(session, _) | Link::Connecting(session, _) => drive::wait_for(session),
            Link::Down(_) | Link::Gone => None,
        };
        let mut waits = [
            sys::Wait::read(self.signals.descriptor()),
            self.timer.wait(),
            link.unwrap_or(sys::Wait::none()),
        ];
        let left = deadline.map(|deadline| deadline.saturating_sub(sys::now()));
        if let Err(error) = sys::poll(&mut waits, left) {
            self.log.error(format_args!("poll: {error}"));
            sys::pause(RETRY);
        }
        waits[2].ready
    }

    fn next_deadline(&self) -> Option<Moment> {
        let lease = self.lease.as_ref();
        let stage = match self.stage {
            Stage::Running => lease.map(Lease::terminate_at),
            Stage::Paused => self.paused_until(),
            Stage::Stopping(kill_at) => Some(self.kill_at(kill_at)),
            Stage::Killed(_) => None,
            Stage::Suspending(by) | Stage::Resuming(by) => Some(by),
        };
        let link = match self.link {
            Link::Up(_, None) if self.beats() => self.beat_at(),
            Link::Connecting(_, until) => Some(until),
            Link::Down(retry_at) if self.reconnects() => Some(retry_at),
            _ => None,
        };
        let look = self.ended.map(|_| sys::now() + LOOK);
        [stage, link, look].into_iter().flatten().min()
    }

    /// When the next heartbeat is due.
    fn beat_at(&self) -> Option<Moment> {
        let rename_at = self.new_name.as_ref().map(|_| self.rename_at);
        let lease = self.lease.as_ref().map(Lease::beat_at);
        [rename_at, lease].into_iter().flatten().min()
    }

    /// Whether heartbeats are to be sent.
    fn beats(&self) -> bool {
        matches!(self.stage, Stage::Running | Stage::Stopping(_))
    }

    /// Whether a connection that was lost is to be made again.
    fn reconnects(&self) -> bool {
        matches!(self.stage, Stage::Running | Stage::Paused)
    }

    /// When to kill a command that was to be killed at this moment: the lease may end earlier.
    fn kill_at(&self, kill_at: Moment) -> Moment {
        let lease = self.lease.as_ref().map(Lease::kill_at);
        lease.map_or(kill_at, |lease| lease.min(kill_at))
    }

    // The command

    /// Takes note of the children whose state has changed. As process 1 pglock has others than its own.
    fn reap(&mut self) {
        while let Some((pid, change)) = sys::reap() {
            if pid == self.command.pid() {
                match change {
                    Change::Stopped(signal) => self.stopped(signal),
                    Change::Continued => self.continued(),
                    ended => self.ended = Some(ended),
                }
            } else if self
                .guardian
                .as_ref()
                .is_some_and(|guardian| guardian.pid() == pid)
                && matches!(change, Change::Exited(_) | Change::Killed(_))
            {
                self.replace_guardian();
            }
        }
    }

    /// Posts a guardian in place of one that was killed.
    fn replace_guardian(&mut self) {
        self.log.error("the guardian was killed; starting another");
        self.guardian = None;
        self.post_guardian();
    }

    /// Posts a guardian over the connection there is, in place of the one there was. Tells whether it could.
    fn post_guardian(&mut self) -> bool {
        let socket = match &self.link {
            Link::Up(session, _) | Link::Connecting(session, _) => session.wants(),
            Link::Down(_) | Link::Gone => None,
        };
        let socket = socket.map(|(descriptor, _)| descriptor);
        match Guardian::post(&self.ward, socket) {
            Ok(guardian) => {
                self.guardian = Some(guardian);
                true
            }
            Err(error) => {
                self.log
                    .error(format_args!("could not start a guardian: {error}"));
                false
            }
        }
    }

    /// Whether nothing is left to do but to give the lock up. What a command leaves running in the
    /// background is left alone, unless the lock is lost.
    fn is_over(&self) -> bool {
        if self.ended.is_none() {
            return false;
        }
        match self.stage {
            Stage::Stopping(_) => !self.command.has_members(),
            Stage::Killed(then) => !self.command.has_members() || then + DYING < sys::now(),
            Stage::Running | Stage::Paused | Stage::Suspending(_) | Stage::Resuming(_) => true,
        }
    }

    /// Passes a signal on to the command.
    fn pass_on(&mut self, signal: Signal) {
        match signal {
            Signal::CHLD => {}
            // Then, and in the other stages, the command continues when the lock is known to be held.
            Signal::CONT if self.stage == Stage::Paused => self.halted = false,
            Signal::CONT => {
                if self.beats() {
                    self.continue_command();
                }
            }
            signal if self.beats() => self.command.signal(signal),
            // Not with a SIGCONT behind it.
            signal => self.command.send(signal),
        }
    }

    /// Continues the command, in the foreground if that is where the shell has put pglock.
    fn continue_command(&self) {
        if let Some(terminal) = self.terminal
            && terminal.foreground() == sys::own_group()
        {
            terminal.give_to(self.command.pid());
        }
        self.command.signal(Signal::CONT);
    }

    /// The command was stopped. Where there is a terminal there may be a shell that should see pglock
    /// stopped too; elsewhere it is for whoever stopped the command to continue it.
    fn stopped(&mut self, signal: Signal) {
        if self.stage != Stage::Paused {
            self.halted = true;
        }
        let Some(terminal) = self.terminal else {
            return;
        };
        if self.stage != Stage::Running {
            return;
        }
        if signal.is_about_terminal() && terminal.foreground() == sys::own_group() {
            // It wanted the terminal before the shell had put pglock into the foreground.
            self.continue_command();
            return;
        }
        self.wants_terminal = signal.is_about_terminal();
        self.stage = Stage::Suspending(sys::now() + LIFT);
    }

    /// The command was continued, by whom ever.
    fn continued(&mut self) {
        self.halted = false;
        if matches!(self.stage, Stage::Suspending(_)) {
            self.stage = match self.link {
                // The lease that it lifts has to be restored.
                Link::Up(_, Some((Question::Lift, _))) => {
                    let until = self.paused_until();
                    Stage::Resuming(until.unwrap_or(sys::now() + LIFT))
                }
                _ => Stage::Running,
            };
        }
    }

    /// Stops the command for the moment that it takes to find out what has become of its lock. A session that
    /// was ended alone has left the lock to others; a server that is restarting has left it to nobody.
    fn pause(&mut self) {
        if self.config.kill_on_loss && self.ended.is_none() {
            self.command.send(Signal::STOP);
            self.stage = Stage::Paused;
        }
    }

    /// When to kill a command that is still paused.
    fn paused_until(&self) -> Option<Moment> {
        self.lease.map(|lease| lease.kill_at() - AHEAD)
    }

    /// Whether the server may have given the lock to somebody else by now.
    fn lease_is_over(&self) -> bool {
        self.lease
            .is_some_and(|lease| lease.kill_at() <= sys::now())
    }

    /// Lets a command run on that was paused, unless somebody else wants it stopped.
    fn unpause(&mut self) {
        if self.stage == Stage::Paused {
            self.stage = Stage::Running;
            if !self.halted {
                self.command.send(Signal::CONT);
            }
        }
    }

    /// Stops pglock, with the rest of its group, until the shell continues it; and what of the command is not
    /// stopped yet, for nobody is there then to stop it when the lock is lost.
    fn suspend(&mut self, lease_is_lifted: bool) {
        self.command.send(Signal::STOP);
        if lease_is_lifted {
            self.ward.set_deadline(None);
        }
        if let Some(terminal) = self.terminal
            && terminal.foreground() == self.command.pid()
        {
            terminal.give_to(sys::own_group());
        }
        let was_stopped = sys::stop_own_group();
        // Where no shell is, it would stop for the same reason again and again.
        self.wants_terminal &= !was_stopped;
        let ttl = self.lease.map(|lease| lease.terms().ttl());
        self.stage = Stage::Resuming(sys::now() + ttl.unwrap_or(RESUME));
        if !matches!(self.link, Link::Up(..)) {
            self.kill("the connection is gone, now that pglock is continued");
        }
    }

    /// The command must end, for the lock is lost.
    fn lose(&mut self, why: impl fmt::Display, kill_at: Moment) {
        self.lost = true;
        if self.config.kill_on_loss {
            self.log.error(format_args!(
                "the lock is lost: {why}; stopping the command"
            ));
            self.command.signal(Signal::TERM);
            self.stage = Stage::Stopping(kill_at);
        } else {
            self.carry_on_without(why);
        }
    }

    /// The command must end at once, for somebody else may hold the lock.
    fn kill(&mut self, why: impl fmt::Display) {
        self.lost = true;
        if self.config.kill_on_loss {
            self.log
                .error(format_args!("the lock is lost: {why}; killing the command"));
            self.kill_command();
        } else {
            self.carry_on_without(why);
        }
        self.link = Link::Gone;
    }

    fn kill_command(&mut self) {
        self.stage = Stage::Killed(sys::now());
        if let Err(error) = self.command.kill()
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            self.out_of_reach = true;
            self.log.error(format_args!(
                "could not kill the command, which has become another user's: {error}"
            ));
        }
    }

    /// `--on-loss continue`.
    fn carry_on_without(&mut self, why: impl fmt::Display) {
        self.log.error(format_args!(
            "the lock is lost: {why}; the command carries on without it (--on-loss continue)"
        ));
        self.lease = None;
        if matches!(self.stage, Stage::Suspending(_) | Stage::Resuming(_)) {
            self.continue_command();
        }
        self.stage = Stage::Running;
    }

    fn keep_deadlines(&mut self) {
        let now = sys::now();
        match self.stage {
            Stage::Running | Stage::Paused if self.ended.is_some() => {}
            // Continued, it might run beside another holder: a stopped command cannot end by itself.
            Stage::Paused => {
                if self.paused_until().is_some_and(|until| until <= now) {
                    let silence = self.silence();
                    self.kill(format_args!("no answer from the server for {silence}"));
                }
            }
            Stage::Running => {
                if let Some(lease) = self.lease
                    && lease.terminate_at() <= now
                {
                    let silence = self.silence();
                    if !self.config.kill_on_loss {
                        self.link = Link::Gone;
                    }
                    self.lose(
                        format_args!("no answer from the server for {silence}"),
                        lease.kill_at(),
                    );
                    self.keep_deadlines();
                }
            }
            Stage::Stopping(kill_at) => {
                if self.kill_at(kill_at) <= now {
                    self.log
                        .error("the command did not end in time; killing it");
                    self.kill_command();
                }
            }
            // Again and again: a member of the group may have been starting another.
            Stage::Killed(_) => self.command.send(Signal::KILL),
            Stage::Suspending(by) => {
                if by <= now {
                    self.suspend(false);
                }
            }
            Stage::Resuming(by) => {
                if by <= now {
                    self.kill("no answer from the server, now that pglock is continued");
                }
            }
        }
    }

    // The lock

    /// The time since the last sign of the server, for people.
    fn silence(&self) -> String {
        let silence = sys::now().saturating_sub(self.heard);
        format!("{:.1} s", silence.as_secs_f64())
    }

    /// Does what is due on the connection, or about its absence.
    fn carry_link_on(&mut self) {
        let now = sys::now();
        let reconnects = self.reconnects();
        match &mut self.link {
            Link::Up(_, None) => {
                let beat_is_due = self.beat_at().is_some_and(|beat_at| beat_at <= now);
                match self.stage {
                    Stage::Running | Stage::Stopping(_) if beat_is_due => self.ask(Question::Beat),
                    Stage::Suspending(_) if self.lease.is_some() => self.ask(Question::Lift),
                    Stage::Suspending(_) => self.suspend(false),
                    Stage::Resuming(_) => self.ask(Question::Check),
                    _ => {}
                }
            }
            Link::Down(retry_at) if *retry_at <= now && reconnects => {
                match Session::start(self.settings) {
                    Ok(session) => self.link = Link::Connecting(session, now + self.patience),
                    Err(error) => self.not_reconnected(&error),
                }
            }
            Link::Connecting(_, until) if *until <= now => {
                self.patience *= 2;
                self.link = Link::Down(now);
            }
            _ => {}
        }
    }

    /// Sends a question on a connection on which nothing else is asked.
    fn ask(&mut self, question: Question) {
        let Link::Up(session, asked) = &mut self.link else {
            return;
        };
        let connection = session.connection();
        let sql = match question {
            // Every question is a sign of life; with nothing to ask an empty one will do.
            Question::Beat => match self.new_name.take() {
                Some(name) if label::is_label(connection) => {
                    self.lock.rename_sql(connection, &name)
                }
                _ => c";".into(),
            },
            Question::Retake => self.lock.retake_sql(connection),
            Question::Age => lock::lost_sql(),
            Question::Lift => self.lock.lift_sql(connection),
            Question::Check => self.lock.check_sql(connection),
        };
        let sent = sys::now();
        match session.ask(&sql) {
            Ok(()) => *asked = Some((question, sent)),
            Err(error) => self.disconnected(&error),
        }
    }

    /// Takes in what has arrived on the connection.
    fn step_link(&mut self) {
        let (Link::Up(session, _) | Link::Connecting(session, _)) = &mut self.link else {
            return;
        };
        match session.step() {
            Ok(None) => {}
            Ok(Some(Event::Connected)) => {
                self.patience = ATTEMPT;
                // The guardian first: from the moment that the lock is taken it must be bound to it.
                if !self.post_guardian() {
                    self.link = Link::Down(sys::now() + RETRY);
                    return;
                }
                if let Link::Connecting(session, _) = std::mem::replace(&mut self.link, Link::Gone)
                {
                    self.link = Link::Up(session, None);
                }
                self.new_name = self.name.clone();
                self.ask(Question::Retake);
            }
            Ok(Some(Event::Answered(outcomes))) => {
                let Link::Up(_, asked) = &mut self.link else {
                    return;
                };
                if let Some((question, sent)) = asked.take() {
                    self.answered(question, sent, &outcomes);
                }
            }
            Err(error) if matches!(self.link, Link::Connecting(..)) => {
                self.not_reconnected(&error);
            }
            Err(error) => self.disconnected(&error),
        }
    }

    /// An attempt to connect again has failed. A server that goes down or comes up has no other holders; where
    /// there is nobody to say so, it is only known of one that has said so before, for there may be another way to
    /// a server that runs on.
    fn not_reconnected(&mut self, error: &pq::Error) {
        // cannot_connect_now.
        let goes_down = error.sqlstate.as_deref() == Some("57P03");
        if (goes_down || (self.farewell && !error.reached)) && !self.lease_is_over() {
            self.unpause();
        }
        self.link = Link::Down(sys::now() + RETRY);
    }

    /// The connection is closed. That is not the end yet: the lease goes on.
    fn disconnected(&mut self, error: &pq::Error) {
        let silence = self.silence();
        self.log.error(format_args!(
            "the connection to the server was lost, {silence} after its last sign: {error}"
        ));
        self.link = Link::Gone;
        // admin_shutdown, crash_shutdown.
        self.farewell = matches!(error.sqlstate.as_deref(), Some("57P01" | "57P02"));
        match self.stage {
            Stage::Running | Stage::Paused if self.lease.is_some() => {
                self.pause();
                self.link = Link::Down(sys::now());
            }
            Stage::Running if !self.lost => {
                let kill_at = sys::now() + self.config.grace;
                self.lose(
                    "the session that held it is gone, and there is no lease",
                    kill_at,
                );
            }
            Stage::Resuming(_) => self.kill("the session that held it is gone"),
            Stage::Suspending(_) => self.suspend(false),
            _ => {}
        }
    }

    fn answered(&mut self, question: Question, sent: Moment, outcomes: &[pq::Outcome]) {
        if let (Question::Beat | Question::Age | Question::Lift, Some(pq::Outcome::Failed(error))) =
            (question, outcomes.last())
        {
            self.disconnected(error);
            return;
        }
        match question {
            Question::Beat => self.renew(sent),
            Question::Lift if matches!(self.stage, Stage::Suspending(_)) => {
                self.suspend(true);
            }
            // It came too late to stop for.
            Question::Lift => {}
            Question::Retake => self.retaken(sent, outcomes),
            Question::Age => {
                // Asked of a server that has just answered, it says what there is to know.
                let age = lock::age(outcomes).unwrap_or(Duration::MAX);
                let lease = self.lease;
                let restarted = lease.and_then(|lease| lease.was_restarted(age, sent, sys::now()));
                self.keep_retaken(sent, restarted == Some(true));
            }
            Question::Check => match self.lock.verdict(outcomes) {
                Verdict::Held(..) => {
                    self.renew(sent);
                    if self.lease_is_over() {
                        return self.kill("the answer that it is still held came too late");
                    }
                    if let Some(guardian) = &self.guardian {
                        guardian.wake();
                    }
                    self.stage = Stage::Running;
                    if !self.wants_terminal {
                        self.continue_command();
                    }
                }
                _ => self.kill("it was no longer held when pglock was continued"),
            },
        }
    }

    /// The server has answered a message sent at this moment.
    fn renew(&mut self, sent: Moment) {
        self.heard = sent;
        if let Some(lease) = &mut self.lease {
            lease.renew(sent);
            if self.config.kill_on_loss {
                self.ward.set_deadline(Some(lease.kill_at()));
            }
        }
        if self.guardian.is_none() {
            self.post_guardian();
        }
    }

    /// The server has answered the attempt to take the lock again.
    fn retaken(&mut self, sent: Moment, outcomes: &[pq::Outcome]) {
        let age = lock::age_with_verdict(outcomes);
        let (Some(lease), Some(age)) = (self.lease, age) else {
            // It is not ready to answer such a question yet.
            self.link = Link::Down(sys::now() + RETRY);
            return;
        };
        match self.lock.verdict(outcomes) {
            Verdict::Held(..) => match lease.was_restarted(age, sent, sys::now()) {
                Some(restarted) => self.keep_retaken(sent, restarted),
                // A pooler kept the question until the server was back.
                None => self.ask(Question::Age),
            },
            Verdict::Busy | Verdict::First => {
                self.kill("the session that held it ended, and somebody else has it now");
            }
            // A standby, say, or a server that is shutting down.
            Verdict::Young | Verdict::Pooled | Verdict::Standby | Verdict::Refused(_) => {
                self.link = Link::Down(sys::now() + RETRY);
            }
        }
    }

    /// The lock is taken again, by a message sent at this moment.
    fn keep_retaken(&mut self, sent: Moment, restarted: bool) {
        let silence = self.silence();
        self.renew(sent);
        if self.lease_is_over() {
            self.kill("the answer that it was taken again came too late");
        } else if restarted {
            self.unpause();
            self.log.info(format_args!(
                "The server was restarted; the lock was taken again {silence} after its last sign, and nobody \
                 has had it meanwhile."
            ));
        } else {
            let why = format!(
                "the session that held it ended {silence} after the server's last sign, while the server ran on; \
                 somebody may have had it meanwhile"
            );
            if self.config.kill_on_loss {
                let kill_at = sys::now() + self.config.grace;
                self.lose(why, kill_at);
            } else {
                self.log.error(format_args!(
                    "the lock was lost: {why}; it was taken again, and the command carries on (--on-loss continue)"
                ));
            }
        }
    }

    // The end

    /// Gives the lock up, and tells how pglock ends.
    fn finish(mut self) -> Exit {
        // It may have been killed meanwhile, and have left others in its group.
        self.unpause();
        self.ward.set_group(None);
        self.ward.set_deadline(None);
        let change = self.ended.unwrap_or(Change::Exited(0));
        let had_terminal = self.take_terminal_back(change);
        if self.ward.has_fired() && !self.lost {
            self.lost = true;
            let silence = self.silence();
            self.log.error(format_args!(
                "pglock itself was stopped for too long, {silence} without a sign of the server: the guardian \
                 has killed the command"
            ));
        }
        let exit = match self.command.end(change) {
            End::NotExecuted(error) => self.not_executed(&error),
            End::Ran(_) if self.lost && self.config.kill_on_loss => {
                if !self.out_of_reach {
                    self.log.info("The command was stopped.");
                }
                Exit::Lost
            }
            End::Ran(change) => {
                self.log
                    .info("Execution finished, exiting and cleaning up lock.");
                Exit::of_change(change)
            }
        };
        let guardian = &self.guardian;
        let dismiss = || {
            if let Some(guardian) = guardian {
                guardian.retire();
            }
        };
        if let Link::Up(session, _) = &mut self.link
            && !drive::release(session, self.lock, self.signals, dismiss)
            && !self.lost
        {
            self.log.error(
                "could not release the lock: the server did not answer, and frees it when it notices that \
                 the session is gone",
            );
        }
        if let Change::Killed(signal @ (Signal::INT | Signal::QUIT)) = change
            && had_terminal
        {
            // Typed at the terminal, it was meant for the calling script as well.
            sys::signal_own_group(signal);
        }
        exit
    }

    fn not_executed(&self, error: &io::Error) -> Exit {
        let early = match error.raw_os_error() {
            Some(sys::ETIME) => Some("the lease was over"),
            Some(sys::ECONNRESET) => Some("the server ended the session"),
            _ => None,
        };
        if let Some(early) = early {
            self.log
                .error(format_args!("{early} before the command could start"));
            return Exit::Failed;
        }
        let program = &self.config.command[0];
        let is_path = program.as_bytes().contains(&b'/');
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        let hint = if is_missing && is_path && Path::new(program).exists() {
            "; it is there, so what is missing is the interpreter that its first line names"
        } else {
            ""
        };
        self.log.error(format_args!(
            "could not execute {:?}: {error}{hint}",
            program.to_string_lossy()
        ));
        Exit::of_exec_error(error)
    }

    /// Gives the foreground back to pglock's own group, and tells whether the command had it. A command that
    /// a signal has ended may have left the terminal in any mode.
    fn take_terminal_back(&self, change: Change) -> bool {
        let Some(terminal) = self
            .terminal
            .filter(|terminal| terminal.foreground() == self.command.pid())
        else {
            return false;
        };
        terminal.give_to(sys::own_group());
        if matches!(change, Change::Killed(_)) {
            terminal.restore_modes();
        }
        true
    }
}
