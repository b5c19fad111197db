//! How a lock is come by, decided: a state and an event in; out comes what to say and the one thing to do next, whose end is
//! the next event. Nothing here asks for the time, draws lots, does I/O or waits; `acquire.rs` does what is ordered.
//!
//! Each pair of phase and event is decided by name. `matrix.txt`, beside this file, has them all in one table, which a
//! test holds against the code. What cannot come in a phase ends the attempt if it does: when in doubt there is no lock.
#![deny(
    clippy::wildcard_enum_match_arm,
    clippy::match_wildcard_for_single_variants
)]

use std::fmt;
use std::mem;
use std::time::Duration;

use crate::cli::config::Wait;
use crate::lock::{self, PLACES_PER_TRY, RestartCheck, TURN};
use crate::moment::{Moment, seconds};
use crate::server::retry::Again;
use crate::server::session_settings::{Dispensable, LockScope};
use crate::sys::Signal;

/// How long to pause before it is looked again for the lock behind a pooler, on the average and at least: a waiter there must
/// not sit on one of the pool's few connections. What is noted there of others who wait can make it longer.
const POOLED_PAUSE: Duration = Duration::from_millis(500);
/// How long one who has no place in the server's queue rests before the next look for one. By it the server hears of the
/// session, too: it is shorter than any lease.
const REST: Duration = Duration::from_millis(900);
/// How long the lock may take that is granted at once, and a connection, to count at once.
///
/// A server that goes down ends its newest sessions first. Who is slower than this may have the older session, and be granted the
/// lock of a holder who came later and whose session was just ended.
const PROMPT: Duration = Duration::from_millis(50);
const PROMPT_CONNECTION: Duration = Duration::from_millis(500);
/// How long the session is watched then: as the server waits itself before it grants a lock that was waited for.
const SETTLE: Duration = Duration::from_millis(60);
/// How long after its time an answer may come that is under way.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// The first and the longest pause before a server is tried again that is down, starting or full.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// How long to wait before it is looked again whether others count the slots of the lock otherwise, on the average; and how
/// often it is looked, the first time included. Newcomers who are turned away for that see each other, and so would turn away
/// each other.
const RECOUNT: Duration = Duration::from_millis(150);
const COUNTS: u32 = 3;

/// What failed if the lock could not be asked for.
const LOCK_CALL: &str = "the lock call failed";

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The lock.
    Lock,
    /// The list of who holds it.
    Listing,
}

/// What an attempt is to keep to.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it is made for.
    pub goal: Goal,
    /// The server, as it is shown.
    pub server: String,
    /// How many hosts there are to try; at least 1.
    pub hosts: u32,
    /// How long to wait for a lock that others hold.
    pub wait: Wait,
    /// How long connecting may take, and an answer; `None` for however long.
    pub patience: Option<Duration>,
    /// How long the lease lasts, if there is one.
    pub ttl: Option<Duration>,
    /// Whether each holder gets a fencing token.
    pub fence: bool,
    /// Whether what is taken counts only when replication has confirmed it.
    pub sync: bool,
    /// Whether more is said, such as who holds a lock that is not obtained.
    pub verbose: bool,
    /// How many may hold the lock at once.
    pub slots: u32,
}

/// Why there is no lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcquireError {
    /// Somebody else holds it.
    NotObtained,
    /// A signal came.
    Signal(Signal),
    /// pglock or the server failed; the message says how.
    Failed(String),
}

/// What went wrong with one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// In words.
    pub message: String,
    /// Whether it is worth another attempt.
    pub again: Again,
}

impl HostError {
    /// The same, with what failed by it.
    fn of(self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }
}

/// Why there is no lock from one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptError {
    /// Nor will there be from another.
    Stop(AcquireError),
    /// The next may have it.
    Host(HostError),
}

/// What is asked of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// For the lock, without waiting.
    Try {
        /// What to bind it to.
        scope: LockScope,
        /// What to make of a server that has just lost its sessions.
        check: RestartCheck,
        /// Whether there would be a wait for it.
        waits: bool,
        /// Whether somebody else has held it before.
        waited: bool,
        /// Whether it is to be known in which database those are who count slots.
        exact: bool,
    },
    /// For a place in the server's queue.
    Look {
        /// The first place to look at; `None` where this session has not looked before, and looks at all.
        from: Option<u32>,
    },
    /// Behind a pooler, whether the lock could be had, and if not, when to look again.
    Glance,
    /// For the lock, in a turn in the server's queue.
    Wait {
        /// How long the turn is.
        milliseconds: u32,
        /// Whether this session is the first in the queue.
        first: bool,
        /// Its place there.
        place: u32,
    },
    /// To end the transaction in which the lock was not obtained: the pool's connection goes back to the pool.
    Rollback,
    /// How long ago the server lost its sessions.
    Age {
        /// What the lock would be bound to.
        scope: LockScope,
    },
    /// Who holds the lock.
    Holders,
    /// For a fencing token, on the connection beside that of the lock.
    Token,
    /// For a sign of the server.
    Renew,
    /// Which standbys confirm what is asked.
    Standbys,
    /// Who holds the lock and who waits for it, or any lock.
    Listing,
}

impl Question {
    /// How long the server may take its time over it.
    fn turn(self) -> Duration {
        match self {
            Self::Wait { milliseconds, .. } => Duration::from_millis(milliseconds.into()),
            Self::Try { .. }
            | Self::Look { .. }
            | Self::Glance
            | Self::Rollback
            | Self::Age { .. }
            | Self::Holders
            | Self::Token
            | Self::Renew
            | Self::Standbys
            | Self::Listing => Duration::ZERO,
        }
    }

    /// Whether it is answered only when replication has confirmed it, where that is wanted.
    pub fn is_confirmed(self) -> bool {
        match self {
            Self::Try { .. } | Self::Wait { .. } | Self::Renew => true,
            Self::Look { .. }
            | Self::Glance
            | Self::Rollback
            | Self::Age { .. }
            | Self::Holders
            | Self::Token
            | Self::Standbys
            | Self::Listing => false,
        }
    }

    /// Whether the lease begins with it, and a guardian is to be there: it is asked on the session of the lock.
    pub fn is_guarded(self) -> bool {
        match self {
            Self::Try { .. }
            | Self::Look { .. }
            | Self::Wait { .. }
            | Self::Rollback
            | Self::Age { .. }
            | Self::Holders
            | Self::Renew => true,
            // It brings no lock.
            Self::Glance => false,
            // The lease began with what was asked before.
            Self::Token | Self::Standbys | Self::Listing => false,
        }
    }
}

/// The server's word on an attempt to take the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is held; with the fencing token, if one came with it.
    Held(Option<u64>),
    /// Others hold it.
    Busy,
    /// Others hold it, and this session is the first of those who wait.
    QueueHead,
    /// Others hold it, and this session has this place in the queue.
    Place(u32),
    /// The server has just lost its sessions.
    RecentlyRestarted,
    /// A pooler is in between.
    Pooled,
    /// The server is a standby.
    Standby,
    /// Others count so many slots.
    Differs(u32),
    /// Others may: it is to be asked exactly.
    Doubtful,
    /// No answer to what was asked, or one that does not hold.
    Lie(String),
}

/// What was seen of a lock behind a pooler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glance {
    /// It could be had.
    Free,
    /// Others have it, and those who wait for it look in turn: this one's turn is after this time.
    Busy(Duration),
}

/// What a server says of its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// How much is left of the ttl after the loss of its sessions in which an earlier holder may take its lock again.
    pub left: Duration,
    /// Whether a holder has it again.
    pub is_held: bool,
    /// Whether it was promoted then, and not restarted.
    pub is_promotion: bool,
}

/// An answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Question::Try`], [`Question::Look`] or [`Question::Wait`].
    Verdict(Verdict),
    /// To [`Question::Glance`], if it is one.
    Glance(Option<Glance>),
    /// To [`Question::Age`], if it is one.
    Age(Option<Age>),
    /// To [`Question::Holders`], in words.
    Holders(Vec<String>),
    /// To [`Question::Token`], if it is one.
    Token(Option<u64>),
    /// To [`Question::Listing`].
    Listing {
        /// Whether it is that of a standby, whose locks are its own; `None` if it is none.
        is_standby: Option<bool>,
    },
    /// To [`Question::Standbys`], if it is one; empty where there are none.
    Standbys(Option<String>),
    /// To [`Question::Rollback`], be it an error, or to [`Question::Renew`].
    Any,
}

/// That a question was answered by an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error.
    pub error: HostError,
    /// What it is about, if it can be done without, and will not be asked for again.
    pub can_do_without: Option<Dispensable>,
}

/// That a connection was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Why.
    pub error: HostError,
    /// Whether a pooler says that it lets no transaction stay open.
    pub is_statement_mode: bool,
}

/// What a server says of itself when it has let us in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    /// Its version.
    pub version: String,
    /// Where it is.
    pub place: String,
    /// The version of the CockroachDB that it is.
    pub cockroach: Option<String>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The attempt begins.
    Begin,
    /// There is a session.
    Connected(Welcome),
    /// There is none, for this reason.
    NotConnected(HostError),
    /// The server has answered what was asked.
    Answered(Answer),
    /// It has answered by an error.
    Refused(Refusal),
    /// It has answered although nothing was asked.
    Unasked,
    /// The question cannot be said to this server.
    Unsaid(String),
    /// The question is asked, but there is no guardian.
    Unguarded(String),
    /// There was no answer, or no connection, in time.
    Late,
    /// The session is closed; where there is none, time cannot be let pass.
    Lost(Loss),
    /// The time has passed.
    Passed,
    /// A signal came that ends a process.
    Signal(Signal),
    /// The question was taken back.
    Withdrawn {
        /// Whether it was answered all the same, be it by an error.
        answered: bool,
        /// Whether the lock was granted by that.
        granted: bool,
    },
    /// What was ordered is done: [`Order::Cancel`], [`Order::Rollback`] or [`Order::Release`].
    Finished,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Close what session there is, and connect.
    Connect(Dial),
    /// Connect once more, beside the session that holds the lock.
    ConnectBeside(Dial),
    /// Ask this.
    Ask {
        /// What.
        question: Question,
        /// The moment from which on it counts.
        asked: Moment,
        /// When it has to be answered.
        answer_by: Option<Moment>,
    },
    /// Let time pass.
    Pause {
        /// Until when.
        until: Moment,
        /// Whether the session is to be there afterwards.
        keeps_session: bool,
    },
    /// Let time pass, and watch the session, which has nothing to say.
    Watch(Moment),
    /// Have the server leave off what it was asked.
    Cancel,
    /// The same, and wait for its answer.
    Withdraw,
    /// End the transaction, as the last word on the session on which was asked.
    Rollback,
    /// Give the lock up that was granted.
    Release,
    /// That was it.
    End(Ending),
}

/// How to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// To which host; the first is 0.
    pub host: u32,
    /// By when, so that one that does not answer leaves some of the time to the next.
    pub until: Option<Moment>,
    /// When all of the time is over: then even what blocks is left.
    pub deadline: Option<Moment>,
    /// How long that is.
    pub time: Duration,
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The lock is held.
    Taken(Taken),
    /// The list is there.
    Listed,
    /// Neither.
    Stopped(AcquireError),
}

/// What is known of a lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The fencing token, if there was to be one.
    pub token: Option<u64>,
    /// When the last message was sent that the server has answered since it is held, the one that took it included.
    pub sent: Moment,
    /// Whether others held it at first.
    pub waited: bool,
}

/// What to say, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The lines of the log that come first.
    pub lines: Vec<Line>,
    /// The one thing to do.
    pub order: Order,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Where to.
    Connecting(String),
    /// To whom.
    Connected {
        /// The server's version.
        version: String,
        /// Where it is.
        place: String,
    },
    /// How long there is to wait.
    Obtaining(Wait),
    /// Why the first round has failed.
    TryingAgain(String),
    /// The server refuses something that can be done without.
    Refused(Dispensable, String),
    /// The server has lost its sessions, or was promoted: so long is to be held off.
    HoldingOff {
        /// How long.
        time: Duration,
        /// Whether it was promoted.
        is_promotion: bool,
    },
    /// The server waits for no standby to confirm anything.
    NoStandbys,
    /// Who holds the lock.
    HeldBy(String),
    /// How the lock is held.
    Held {
        /// Whether it is shared.
        shared: bool,
        /// The backend of the session, or that it is bound to a transaction.
        backend: Option<i32>,
        /// The lease, if there is one.
        ttl: Option<Duration>,
        /// Whether it is the server that keeps it.
        has_lease: bool,
    },
}

impl Line {
    /// Whether it is for `--verbose` only.
    pub fn is_detail(&self) -> bool {
        match self {
            Self::Connected { .. }
            | Self::Refused(..)
            | Self::NoStandbys
            | Self::HeldBy(_)
            | Self::Held { .. } => true,
            Self::Connecting(_)
            | Self::Obtaining(_)
            | Self::TryingAgain(_)
            | Self::HoldingOff { .. } => false,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Connecting(server) => write!(f, "Connecting to PostgreSQL at {server}."),
            Self::Connected { version, place } => {
                write!(f, "Connected to PostgreSQL {version} at {place}.")
            }
            Self::Obtaining(Wait::No) => f.write_str("Trying to obtain lock."),
            Self::Obtaining(Wait::Seconds(seconds)) => {
                write!(f, "Obtaining lock with {seconds} seconds timeout..")
            }
            Self::Obtaining(Wait::Forever) => f.write_str("Obtaining lock without timeout.."),
            Self::TryingAgain(message) => write!(f, "{message}; trying again."),
            Self::Refused(Dispensable::Setting, error) => {
                write!(f, "The server refuses a setting: {error}.")
            }
            Self::Refused(Dispensable::Promotion, error) => write!(
                f,
                "The server does not tell when it was promoted, so nobody holds off after a promotion: {error}."
            ),
            Self::HoldingOff { time, is_promotion } => {
                let what = match is_promotion {
                    true => "was promoted and does not know the locks of the primary before it",
                    false => "was restarted and lost its locks",
                };
                write!(
                    f,
                    "The server {what}: holding off for {} s, in which an earlier holder may take its lock again.",
                    seconds(*time)
                )
            }
            Self::NoStandbys => f.write_str(
                "The server has no synchronous standby (synchronous_standby_names is empty): what it confirms, it \
                 confirms alone.",
            ),
            Self::HeldBy(holder) => write!(f, "Held by {holder}."),
            Self::Held {
                shared,
                backend,
                ttl,
                has_lease,
            } => {
                let kind = if *shared { "shared" } else { "exclusive" };
                write!(f, "The lock is {kind}, ")?;
                match backend {
                    Some(backend) => write!(f, "of backend {backend}, ")?,
                    None => f.write_str("of a transaction, since a pooler is in between, ")?,
                }
                match ttl.map(|ttl| ttl.as_secs()) {
                    None => f.write_str("without a lease."),
                    Some(ttl) if *has_lease => write!(f, "with a lease of {ttl} s."),
                    Some(ttl) => write!(
                        f,
                        "with TCP keepalive of {ttl} s in place of a lease, which this server does not have."
                    ),
                }
            }
        }
    }
}

/// That there is no connection, after so much time.
pub fn no_connection(server: impl fmt::Display, time: Duration) -> String {
    format!(
        "could not connect: no answer from {server} within {} s",
        tenths(time)
    )
}

/// A time in seconds to the nearest tenth, for people; a whole number without one.
fn tenths(time: Duration) -> String {
    let seconds = seconds(time);
    match seconds.strip_suffix(".0") {
        Some(whole) => whole.to_owned(),
        None => seconds,
    }
}

/// What is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing yet.
    Ready,
    /// A connection to a host is being made, within so much time.
    Connecting(Duration),
    /// The second connection is being made.
    ConnectingBeside(Duration),
    /// This is asked.
    Asking(Question),
    /// Time is to pass before this.
    Pausing(Pause),
    /// An earlier holder may take its lock again.
    HoldingOff {
        /// Until then there is to wait.
        deadline: Moment,
        /// Until then it may.
        whole: Moment,
    },
    /// The lock is granted, and counts if the session is there a little later.
    Settling,
    /// A question whose answer is late is cancelled; then there is no lock, for this reason.
    Cancelling(AttemptError),
    /// A question is being taken back, with its answer; then the same.
    Withdrawing(AttemptError),
    /// A transaction is being ended; then the same.
    RollingBack(AttemptError),
    /// The lock is being given up; then the same.
    Releasing(AttemptError),
    /// All is over.
    Done,
}

/// What time is to pass before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// The next turn in the queue, of which this session may be the first.
    Turn(bool),
    /// The next look for a place in the queue.
    Rest,
    /// The next look behind a pooler whether the lock could be had.
    Glance,
    /// The next round through the hosts.
    Round,
}

/// What an attempt to take the lock has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reply {
    Verdict(Verdict),
    Refusal(Refusal),
}

/// The moment of an event, and the lots that may be drawn at it.
struct At<'a> {
    now: Moment,
    random: &'a mut dyn FnMut() -> f64,
}

impl At<'_> {
    /// A random number below this one.
    fn one_of(&mut self, count: u32) -> u32 {
        ((self.random)() * f64::from(count)) as u32 % count
    }

    /// A random time between half of this one and one and a half of it, so that those who were turned away
    /// together do not come back together.
    fn jittered(&mut self, time: Duration) -> Duration {
        time.mul_f64(0.5 + (self.random)())
    }
}

/// The state of an attempt, from the start of pglock to the lock.
#[derive(Clone, Debug)]
pub struct State {
    plan: Plan,
    phase: Phase,
    /// When to give up: the end of the wait, or of the time for connecting where there is no wait.
    until: Option<Moment>,
    /// How many rounds through the hosts have failed.
    round: u32,
    /// How many hosts are left to try in this round, the one at hand included.
    hosts_left: u32,
    /// Whether the round is worth another, as far as it has come.
    again: Again,
    /// Why its hosts have failed.
    messages: Vec<String>,
    /// Why the last round failed: more telling than that the time is over now.
    reason: Option<String>,
    /// Whether it was said that the lock is being obtained.
    announced: bool,
    /// Whether others held the lock at first.
    waited: bool,
    /// How often others were seen to count otherwise, one time after the other.
    differed: u32,
    /// What the lock can be bound to on the connection that there is.
    scope: LockScope,
    /// Until when it has to be there, and then the lock to be granted, for the lock to count at once.
    prompt_until: Moment,
    /// Whether this session has looked for a place in the queue, and the one that it has.
    has_looked: bool,
    place: Option<u32>,
    /// How the last attempt on it treated a server that has just lost its sessions.
    tried: RestartCheck,
    /// Since when the server there has said that it has.
    young_since: Option<Moment>,
    /// When the last question was asked, and has to be answered.
    asked: Moment,
    answer_by: Option<Moment>,
    /// What came of the attempt whose transaction is ended.
    reply: Option<Reply>,
    /// Until when is held off.
    hold_off_until: Option<Moment>,
    /// When the last message was sent that has to do with the lock.
    sent: Moment,
    /// Whether the lock is held.
    held: bool,
    /// Whether it would be, but for its fencing token.
    wants_token: bool,
    /// Whether it is to be seen yet that the session stays.
    settles: bool,
    /// Whether it is to be asked yet which standbys confirm it.
    wants_standbys: bool,
    token: Option<u64>,
    lines: Vec<Line>,
}

impl State {
    /// An attempt by this plan of a pglock that was started at this moment.
    pub fn new(plan: Plan, start: Moment) -> Self {
        let until = match plan.wait {
            Wait::Seconds(seconds) => Some(start + Duration::from_secs(seconds.into())),
            Wait::No => plan.patience.map(|patience| start + patience),
            Wait::Forever => None,
        };
        Self {
            plan,
            phase: Phase::Ready,
            until,
            round: 0,
            hosts_left: 0,
            again: Again::Never,
            messages: Vec::new(),
            reason: None,
            announced: false,
            waited: false,
            differed: 0,
            scope: LockScope::Session,
            prompt_until: start,
            has_looked: false,
            place: None,
            tried: RestartCheck::HoldOff,
            young_since: None,
            asked: start,
            answer_by: None,
            reply: None,
            hold_off_until: None,
            sent: start,
            held: false,
            wants_token: false,
            settles: false,
            wants_standbys: false,
            token: None,
            lines: Vec::new(),
        }
    }

    /// Takes an event in, and tells what is to be said and done. `random` gives numbers between 0 and 1.
    pub fn on(&mut self, event: Event, now: Moment, random: &mut dyn FnMut() -> f64) -> Step {
        let at = &mut At { now, random };
        // Whatever sets no other phase has come to an end.
        let phase = mem::replace(&mut self.phase, Phase::Done);
        let order = match event {
            Event::Begin => self.begin(phase, at),
            Event::Connected(welcome) => self.connected(phase, welcome, at),
            Event::NotConnected(error) => self.not_connected(phase, error, at),
            Event::Answered(answer) => self.answered(phase, answer, at),
            Event::Refused(refusal) => self.refused(phase, refusal, at),
            Event::Unasked => self.unasked(phase, at),
            Event::Unsaid(message) => self.unsaid(phase, message, at),
            Event::Unguarded(message) => self.unguarded(phase, message),
            Event::Late => self.late(phase, at),
            Event::Lost(loss) => self.lost(phase, loss, at),
            Event::Passed => self.passed(phase, at),
            Event::Signal(signal) => self.signal(phase, signal, at),
            Event::Withdrawn { answered, granted } => self.withdrawn(phase, answered, granted, at),
            Event::Finished => self.finished(phase, at),
        };
        Step {
            lines: mem::take(&mut self.lines),
            order,
        }
    }

    // What happens

    fn begin(&mut self, phase: Phase, at: &mut At) -> Order {
        match phase {
            Phase::Ready => {
                match self.plan.goal {
                    Goal::Lock => self.say(Line::Connecting(self.plan.server.clone())),
                    Goal::Listing => {}
                }
                self.begin_round(at)
            }
            Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Asking(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn connected(&mut self, phase: Phase, welcome: Welcome, at: &mut At) -> Order {
        match phase {
            Phase::Connecting(_) => match self.plan.goal {
                Goal::Lock => self.obtain(welcome, at),
                Goal::Listing => self.ask(Question::Listing, at),
            },
            Phase::ConnectingBeside(_) => self.ask(Question::Token, at),
            Phase::Ready
            | Phase::Asking(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn not_connected(&mut self, phase: Phase, error: HostError, at: &mut At) -> Order {
        match phase {
            Phase::Connecting(_) | Phase::ConnectingBeside(_) => {
                self.fail(AttemptError::Host(error.of("could not connect")), at)
            }
            Phase::Ready
            | Phase::Asking(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn answered(&mut self, phase: Phase, answer: Answer, at: &mut At) -> Order {
        match phase {
            Phase::Asking(question) => {
                self.reason = None;
                self.answered_to(question, answer, at)
            }
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn answered_to(&mut self, question: Question, answer: Answer, at: &mut At) -> Order {
        match (answer, question) {
            (Answer::Verdict(Verdict::Place(place)), Question::Look { .. }) => {
                self.place = Some(place);
                self.queue(false, at)
            }
            (Answer::Verdict(Verdict::Busy), Question::Look { from }) => {
                self.rest(from.is_none(), at)
            }
            (
                Answer::Verdict(
                    Verdict::Held(_)
                    | Verdict::QueueHead
                    | Verdict::RecentlyRestarted
                    | Verdict::Differs(_)
                    | Verdict::Doubtful,
                ),
                Question::Look { .. },
            )
            | (Answer::Verdict(Verdict::Place(_)), Question::Try { .. } | Question::Wait { .. }) => {
                self.unexpected()
            }
            (
                Answer::Verdict(verdict),
                Question::Try { .. } | Question::Look { .. } | Question::Wait { .. },
            ) => self.judged(verdict, question.turn(), at),
            (Answer::Glance(Some(Glance::Free)), Question::Glance) => {
                self.attempt(RestartCheck::HoldOff, at)
            }
            (Answer::Glance(Some(Glance::Busy(pause))), Question::Glance) => {
                self.wait_pooled(pause, at)
            }
            (Answer::Glance(None), Question::Glance) => self.stop(
                failed(
                    "the server gave an unexpected answer to the question whether the lock is free",
                ),
                at,
            ),
            (Answer::Age(age), Question::Age { .. }) => self.age_known(age, at),
            (Answer::Holders(holders), Question::Holders) => {
                self.lines.extend(holders.into_iter().map(Line::HeldBy));
                self.stop(AcquireError::NotObtained, at)
            }
            (Answer::Token(Some(token)), Question::Token) => {
                self.wants_token = false;
                self.token = Some(token);
                self.complete(at)
            }
            (Answer::Token(None), Question::Token) => {
                self.stop(failed("the server gave no fencing token"), at)
            }
            (Answer::Listing { is_standby }, Question::Listing) => match is_standby {
                Some(false) => Order::End(Ending::Listed),
                Some(true) => self.fail(AttemptError::Host(standby()), at),
                None => self.stop(
                    failed(
                        "the server gave an unexpected answer to the question who holds the lock",
                    ),
                    at,
                ),
            },
            (Answer::Any, Question::Rollback) => match self.reply.take() {
                Some(reply) => self.replied(reply, at),
                None => self.unexpected(),
            },
            (Answer::Any, Question::Renew) => self.take(),
            (Answer::Standbys(names), Question::Standbys) => {
                if names.is_some_and(|names| names.trim().is_empty()) {
                    self.say(Line::NoStandbys);
                }
                self.complete(at)
            }
            (
                Answer::Verdict(_),
                Question::Glance
                | Question::Rollback
                | Question::Age { .. }
                | Question::Holders
                | Question::Token
                | Question::Renew
                | Question::Standbys
                | Question::Listing,
            )
            | (
                Answer::Glance(_),
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Wait { .. }
                | Question::Rollback
                | Question::Age { .. }
                | Question::Holders
                | Question::Token
                | Question::Renew
                | Question::Standbys
                | Question::Listing,
            )
            | (
                Answer::Age(_),
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Glance
                | Question::Wait { .. }
                | Question::Rollback
                | Question::Holders
                | Question::Token
                | Question::Renew
                | Question::Standbys
                | Question::Listing,
            )
            | (
                Answer::Holders(_),
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Glance
                | Question::Wait { .. }
                | Question::Rollback
                | Question::Age { .. }
                | Question::Token
                | Question::Renew
                | Question::Standbys
                | Question::Listing,
            )
            | (
                Answer::Token(_),
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Glance
                | Question::Wait { .. }
                | Question::Rollback
                | Question::Age { .. }
                | Question::Holders
                | Question::Renew
                | Question::Standbys
                | Question::Listing,
            )
            | (
                Answer::Listing { .. },
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Glance
                | Question::Wait { .. }
                | Question::Rollback
                | Question::Age { .. }
                | Question::Holders
                | Question::Token
                | Question::Renew
                | Question::Standbys,
            )
            | (
                Answer::Any,
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Glance
                | Question::Wait { .. }
                | Question::Age { .. }
                | Question::Holders
                | Question::Token
                | Question::Standbys
                | Question::Listing,
            )
            | (
                Answer::Standbys(_),
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Glance
                | Question::Wait { .. }
                | Question::Rollback
                | Question::Age { .. }
                | Question::Holders
                | Question::Token
                | Question::Renew
                | Question::Listing,
            ) => self.unexpected(),
        }
    }

    fn refused(&mut self, phase: Phase, refusal: Refusal, at: &mut At) -> Order {
        match phase {
            Phase::Asking(question) => {
                self.reason = None;
                match question {
                    Question::Try { .. } | Question::Look { .. } | Question::Wait { .. } => {
                        self.end_transaction(Reply::Refusal(refusal), at)
                    }
                    // An attempt will tell whether that matters.
                    Question::Glance => self.attempt(RestartCheck::HoldOff, at),
                    Question::Age { scope } => match refusal.can_do_without {
                        Some(what) => {
                            self.say(Line::Refused(what, refusal.error.message));
                            self.ask(Question::Age { scope }, at)
                        }
                        None => {
                            let error = refusal
                                .error
                                .of("the server could not be asked for its age");
                            self.fail(AttemptError::Host(error), at)
                        }
                    },
                    Question::Token => {
                        let error = refusal.error.of("the server refused it");
                        self.fail(AttemptError::Host(error), at)
                    }
                    Question::Listing => {
                        let error = refusal.error.of("the server could not be asked");
                        self.fail(AttemptError::Host(error), at)
                    }
                    // It is not known to be held any more.
                    Question::Renew => {
                        let error = refusal
                            .error
                            .of("the server gave no sign that the lock is held");
                        self.fail(AttemptError::Host(error), at)
                    }
                    Question::Rollback | Question::Holders | Question::Standbys => {
                        self.unexpected()
                    }
                }
            }
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn unasked(&mut self, phase: Phase, at: &mut At) -> Order {
        match phase {
            // Not all of the time has passed.
            Phase::HoldingOff { .. } => {
                self.stop(failed("the server gave an answer while holding off"), at)
            }
            Phase::Settling => self.stop(
                failed("the server gave an answer to nothing after it had granted the lock"),
                at,
            ),
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Asking(_)
            | Phase::Pausing(_)
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    /// To another server it may be said.
    fn unsaid(&mut self, phase: Phase, message: String, at: &mut At) -> Order {
        match phase {
            // It is only a courtesy.
            Phase::Asking(Question::Holders) => self.stop(AcquireError::NotObtained, at),
            Phase::Asking(
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Glance
                | Question::Wait { .. }
                | Question::Rollback
                | Question::Age { .. }
                | Question::Token
                | Question::Renew
                | Question::Standbys
                | Question::Listing,
            ) => self.fail(
                AttemptError::Host(HostError {
                    message,
                    again: Again::Never,
                }),
                at,
            ),
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn unguarded(&mut self, phase: Phase, message: String) -> Order {
        match phase {
            Phase::Asking(_) => {
                let stop = AcquireError::Failed(format!("could not start the guardian: {message}"));
                self.withdraw(stop)
            }
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn late(&mut self, phase: Phase, at: &mut At) -> Order {
        match phase {
            Phase::Connecting(time) | Phase::ConnectingBeside(time) => {
                let reason = self.reason.clone();
                let message = reason.unwrap_or_else(|| no_connection(&self.plan.server, time));
                self.fail(maybe_later(message), at)
            }
            Phase::Asking(question) => {
                let why = match question {
                    Question::Holders => AttemptError::Stop(AcquireError::NotObtained),
                    Question::Try { .. }
                    | Question::Look { .. }
                    | Question::Glance
                    | Question::Wait { .. }
                    | Question::Rollback
                    | Question::Age { .. }
                    | Question::Token
                    | Question::Renew
                    | Question::Standbys
                    | Question::Listing => maybe_later(self.no_answer(at.now)),
                };
                // It may be at it yet, with the lock held: without a client it would only notice in the end.
                self.phase = Phase::Cancelling(why);
                Order::Cancel
            }
            Phase::Ready
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn lost(&mut self, phase: Phase, loss: Loss, at: &mut At) -> Order {
        let Loss {
            error,
            is_statement_mode,
        } = loss;
        match phase {
            Phase::Asking(Question::Holders) => self.stop(AcquireError::NotObtained, at),
            Phase::Asking(
                Question::Try { .. }
                | Question::Look { .. }
                | Question::Glance
                | Question::Wait { .. }
                | Question::Rollback
                | Question::Age { .. }
                | Question::Token
                | Question::Renew
                | Question::Standbys
                | Question::Listing,
            ) => {
                let what = if is_statement_mode {
                    "the pooler in between does not let a transaction stay open, so no lock can be held \
                     through it; it would have to be in transaction or session mode"
                } else {
                    "the connection was lost before the server answered"
                };
                self.fail(AttemptError::Host(error.of(what)), at)
            }
            Phase::HoldingOff { .. } => {
                let error = error.of("the connection was lost while holding off");
                self.fail(AttemptError::Host(error), at)
            }
            Phase::Settling => {
                let error = error.of("the connection was lost right after the lock was granted");
                self.fail(AttemptError::Host(error), at)
            }
            Phase::Pausing(_) => self.stop(AcquireError::Failed(error.message), at),
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn passed(&mut self, phase: Phase, at: &mut At) -> Order {
        match phase {
            Phase::Pausing(Pause::Turn(first)) => self.queue(first, at),
            Phase::Pausing(Pause::Rest) => self.queue(false, at),
            Phase::Pausing(Pause::Glance) => self.ask(Question::Glance, at),
            Phase::Pausing(Pause::Round) => self.next_round(at),
            Phase::HoldingOff { deadline, whole } => {
                if at.now < deadline {
                    // The session has a lease too, and would end in silence.
                    self.ask(Question::Age { scope: self.scope }, at)
                } else if deadline < whole {
                    self.stop(AcquireError::NotObtained, at)
                } else {
                    // It has not lost its sessions meanwhile, or this one would be gone; a pooler's may have been.
                    let check = match self.scope {
                        LockScope::Session => RestartCheck::None,
                        LockScope::Transaction => RestartCheck::HoldOff,
                    };
                    self.attempt(check, at)
                }
            }
            Phase::Settling => self.ask(Question::Renew, at),
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Asking(_)
            | Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    /// Nothing is running yet, so every signal that ends a process ends the attempt, at any point of it.
    fn signal(&mut self, phase: Phase, signal: Signal, at: &mut At) -> Order {
        let stop = AcquireError::Signal(signal);
        match phase {
            Phase::Asking(_) => self.withdraw(stop),
            Phase::Settling => {
                self.phase = Phase::Releasing(AttemptError::Stop(stop));
                Order::Release
            }
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. } => self.stop(stop, at),
            // The end has begun already; what it was to leave behind in good order goes with the session.
            Phase::Cancelling(_)
            | Phase::Withdrawing(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_) => Order::End(Ending::Stopped(stop)),
            Phase::Done => self.unexpected(),
        }
    }

    fn withdrawn(&mut self, phase: Phase, answered: bool, granted: bool, at: &mut At) -> Order {
        match phase {
            Phase::Withdrawing(why) => match self.scope {
                // A pooler closes the server's connection too if its client leaves in a transaction.
                LockScope::Transaction if answered => {
                    self.phase = Phase::RollingBack(why);
                    Order::Rollback
                }
                // Granted before the cancel came.
                LockScope::Session if granted => {
                    self.phase = Phase::Releasing(why);
                    Order::Release
                }
                LockScope::Session | LockScope::Transaction => self.fail(why, at),
            },
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Asking(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Cancelling(_)
            | Phase::RollingBack(_)
            | Phase::Releasing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    fn finished(&mut self, phase: Phase, at: &mut At) -> Order {
        match phase {
            Phase::Cancelling(why) | Phase::RollingBack(why) | Phase::Releasing(why) => {
                self.fail(why, at)
            }
            Phase::Ready
            | Phase::Connecting(_)
            | Phase::ConnectingBeside(_)
            | Phase::Asking(_)
            | Phase::Pausing(_)
            | Phase::HoldingOff { .. }
            | Phase::Settling
            | Phase::Withdrawing(_)
            | Phase::Done => self.unexpected(),
        }
    }

    // The hosts

    fn begin_round(&mut self, at: &At) -> Order {
        self.again = Again::Never;
        self.messages.clear();
        self.hosts_left = self.plan.hosts;
        self.connect(at)
    }

    /// Connects to the host at hand. The time there is for that is shared with the hosts that are left, so that one that
    /// does not answer leaves some to the next.
    fn connect(&mut self, at: &At) -> Order {
        self.held = false;
        self.prompt_until = at.now + PROMPT_CONNECTION;
        let dial = self.dial(self.until, self.hosts_left, at.now);
        self.phase = Phase::Connecting(dial.time);
        Order::Connect(dial)
    }

    /// Connects to it once more: in the transaction that the lock is bound to a token would scope back vacuum for as long as
    /// the command runs. The wait may be over: the lock is held already.
    fn connect_beside(&mut self, at: &At) -> Order {
        self.wants_token = true;
        let dial = self.dial(None, 1, at.now);
        self.phase = Phase::ConnectingBeside(dial.time);
        Order::ConnectBeside(dial)
    }

    fn dial(&self, until: Option<Moment>, among: u32, now: Moment) -> Dial {
        let patience = self.plan.patience.map(|patience| now + patience);
        let deadline = patience.into_iter().chain(until).min();
        let time = deadline.map(|deadline| deadline.since(now));
        Dial {
            host: self.plan.hosts.saturating_sub(self.hosts_left),
            until: time.map(|time| now + time / among.max(1)),
            deadline,
            time: time.unwrap_or_default(),
        }
    }

    /// This host has failed: the next one has its turn, and after the last one all of them, as long as that is worth it.
    fn next_host(&mut self, error: HostError, at: &mut At) -> Order {
        self.again = self.again.max(error.again);
        self.messages.push(error.message);
        self.hosts_left = self.hosts_left.saturating_sub(1);
        if self.hosts_left > 0 {
            return self.connect(at);
        }
        self.messages.dedup();
        let message = self.messages.join("; ");
        self.reason = Some(message.clone());
        let worth_it = match self.plan.wait {
            Wait::No => self.again == Again::Soon,
            Wait::Seconds(_) | Wait::Forever => self.again >= Again::IfWaiting,
        };
        if !worth_it || self.is_over(at.now) {
            return self.stop(AcquireError::Failed(message), at);
        }
        if self.round == 0 {
            self.say(Line::TryingAgain(message));
        }
        let [first, longest] = RETRY;
        let pause = at.jittered((first * 2_u32.pow(self.round.min(10))).min(longest));
        self.pause(Pause::Round, at.now + pause)
    }

    fn next_round(&mut self, at: &mut At) -> Order {
        if self.is_over(at.now) {
            let message = self.reason.take().unwrap_or_default();
            return self.stop(AcquireError::Failed(message), at);
        }
        self.round = self.round.saturating_add(1);
        self.begin_round(at)
    }

    // The lock

    /// There is a session: the lock can be asked for on it.
    fn obtain(&mut self, welcome: Welcome, at: &mut At) -> Order {
        if let Some(version) = welcome.cockroach {
            return self.stop(
                AcquireError::Failed(format!(
                    "the server is CockroachDB ({version}), whose advisory locks do not exclude anybody"
                )),
                at,
            );
        }
        self.say(Line::Connected {
            version: welcome.version,
            place: welcome.place,
        });
        if !self.announced {
            self.announced = true;
            self.say(Line::Obtaining(self.plan.wait));
        }
        self.scope = LockScope::Session;
        if at.now <= self.prompt_until {
            self.prompt_until = at.now + PROMPT;
        }
        self.has_looked = false;
        self.place = None;
        self.young_since = None;
        self.attempt(RestartCheck::HoldOff, at)
    }

    /// Tries once. Whoever comes here anew is careful anew: behind a pooler the server may be another one, or restarted, at
    /// the next attempt.
    fn attempt(&mut self, check: RestartCheck, at: &At) -> Order {
        self.tried = check;
        let question = Question::Try {
            scope: self.scope,
            check,
            waits: self.plan.wait != Wait::No,
            waited: self.waited,
            exact: false,
        };
        self.ask(question, at)
    }

    /// Tries as the last time, and has the server tell more.
    fn attempt_exactly(&mut self, at: &At) -> Order {
        let question = Question::Try {
            scope: self.scope,
            check: self.tried,
            waits: self.plan.wait != Wait::No,
            waited: self.waited,
            exact: true,
        };
        self.ask(question, at)
    }

    /// The server's word on an attempt, or on a turn of this length in the queue.
    fn judged(&mut self, verdict: Verdict, turn: Duration, at: &mut At) -> Order {
        match verdict {
            // Not asked for again.
            Verdict::Lie(judged) => {
                self.stop(AcquireError::Failed(format!("{LOCK_CALL}: {judged}")), at)
            }
            Verdict::Busy | Verdict::QueueHead if self.scope == LockScope::Session => {
                self.differed = 0;
                let first = verdict == Verdict::QueueHead;
                let early = self.asked + turn / 2;
                if at.now < early {
                    // A server that does not wait would be asked without a pause.
                    self.pause(Pause::Turn(first), early)
                } else {
                    self.queue(first, at)
                }
            }
            Verdict::Held(_) => self.replied(Reply::Verdict(verdict), at),
            Verdict::Place(_) => self.unexpected(),
            Verdict::Busy
            | Verdict::QueueHead
            | Verdict::RecentlyRestarted
            | Verdict::Pooled
            | Verdict::Standby
            | Verdict::Differs(_)
            | Verdict::Doubtful => self.end_transaction(Reply::Verdict(verdict), at),
        }
    }

    /// Ends the transaction of an attempt that has not come to the lock, if it had one, before what it has come to counts.
    fn end_transaction(&mut self, reply: Reply, at: &mut At) -> Order {
        match self.scope {
            LockScope::Session => self.replied(reply, at),
            LockScope::Transaction => {
                self.reply = Some(reply);
                self.ask(Question::Rollback, at)
            }
        }
    }

    fn replied(&mut self, reply: Reply, at: &mut At) -> Order {
        match reply {
            Reply::Verdict(Verdict::Held(token)) => self.granted(token, at),
            Reply::Verdict(Verdict::Busy | Verdict::QueueHead) => {
                self.differed = 0;
                self.wait_pooled(Duration::ZERO, at)
            }
            Reply::Verdict(Verdict::Differs(slots)) => self.differs(slots, at),
            Reply::Verdict(Verdict::Doubtful) => self.attempt_exactly(at),
            Reply::Verdict(Verdict::RecentlyRestarted) => self.hold_off(at),
            Reply::Verdict(Verdict::Pooled) if self.plan.sync => self.stop(
                failed(
                    "--sync takes a session of one's own, and a pooler is in between: in the open transaction that \
                     the lock would be bound to nothing is ever confirmed",
                ),
                at,
            ),
            Reply::Verdict(Verdict::Pooled) => match self.scope {
                LockScope::Session => {
                    self.scope = LockScope::Transaction;
                    self.attempt(RestartCheck::HoldOff, at)
                }
                LockScope::Transaction => self.stop(
                    failed("the server gave an unexpected answer to the lock call"),
                    at,
                ),
            },
            Reply::Verdict(Verdict::Standby) => self.fail(AttemptError::Host(standby()), at),
            Reply::Verdict(Verdict::Place(_) | Verdict::Lie(_)) => self.unexpected(),
            Reply::Refusal(refusal) => match refusal.can_do_without {
                Some(what) => {
                    self.say(Line::Refused(what, refusal.error.message));
                    self.attempt(RestartCheck::HoldOff, at)
                }
                None => self.fail(AttemptError::Host(refusal.error.of(LOCK_CALL)), at),
            },
        }
    }

    /// Waits behind a pooler: it is looked again after this time, or after the usual one where that is longer.
    fn wait_pooled(&mut self, turn: Duration, at: &mut At) -> Order {
        match self.time_to_wait(at.now) {
            Some(left) => {
                let pause = at.jittered(POOLED_PAUSE).max(turn).min(left);
                self.pause(Pause::Glance, at.now + pause)
            }
            None => self.name_holders(at),
        }
    }

    /// Others count so many slots. Whoever is turned away for that as well is soon gone: it is looked again, without the
    /// session by which they see this one.
    fn differs(&mut self, slots: u32, at: &mut At) -> Order {
        // Whoever gives none need not know of the flag.
        let default = if self.plan.slots == 1 {
            " (the default)"
        } else {
            ""
        };
        let message = format!(
            "--slots {}{default} is asked for, but others who hold the lock or wait for it have --slots {slots}: all who \
             use a lock must give the same number",
            self.plan.slots
        );
        self.differed += 1;
        if self.differed >= COUNTS || self.is_over(at.now) {
            return self.stop(AcquireError::Failed(message), at);
        }
        self.reason = Some(message);
        let pause = at.jittered(RECOUNT);
        self.pause(Pause::Round, at.now + pause)
    }

    /// How long there is to wait yet, for a lock that others hold; `None` where there is nothing to wait for.
    fn time_to_wait(&mut self, now: Moment) -> Option<Duration> {
        self.waited = true;
        let is_over = match self.plan.wait {
            Wait::No => true,
            Wait::Seconds(_) => self.is_over(now),
            Wait::Forever => false,
        };
        let left = self.until.map(|until| until.since(now));
        (!is_over).then_some(left.unwrap_or(Duration::MAX))
    }

    /// Takes a turn in the server's queue, or looks for a place there.
    fn queue(&mut self, first: bool, at: &mut At) -> Order {
        let Some(left) = self.time_to_wait(at.now) else {
            return self.name_holders(at);
        };
        let question = match self.place {
            Some(place) => Question::Wait {
                milliseconds: left.as_millis().clamp(1, TURN.into()) as u32,
                first,
                place,
            },
            None => Question::Look {
                from: mem::replace(&mut self.has_looked, true).then(|| at.one_of(PLACES_PER_TRY)),
            },
        };
        self.ask(question, at)
    }

    /// There is no place in the queue: rests until the next look. All rest as long, so that each comes round while a place that was
    /// given up is there, but not at the same moments.
    fn rest(&mut self, first: bool, at: &mut At) -> Order {
        let time = match first {
            true => REST.mul_f64((at.random)()),
            false => REST,
        };
        self.pause(Pause::Rest, self.asked + time)
    }

    /// The lock was not obtained; who holds it is said under `--verbose`.
    fn name_holders(&mut self, at: &mut At) -> Order {
        if self.plan.verbose {
            self.ask(Question::Holders, at)
        } else {
            self.stop(AcquireError::NotObtained, at)
        }
    }

    /// The server has lost its sessions just now, and can have for a ttl: behind a pooler it may have been restarted again
    /// meanwhile, or be another one, but not for ever. Without a lease none is asked whether it has.
    fn hold_off(&mut self, at: &mut At) -> Order {
        let since = *self.young_since.get_or_insert(at.now);
        let can_be = self
            .plan
            .ttl
            .is_some_and(|ttl| at.now <= since + self.longest_hold_off(ttl));
        if self.tried == RestartCheck::HoldOff && can_be {
            self.hold_off_until = None;
            return self.ask(Question::Age { scope: self.scope }, at);
        }
        let message = "the server says again and again that it was restarted just now";
        self.fail(maybe_later(message.to_owned()), at)
    }

    /// For how long to hold off at most. Behind a pooler the server is asked anew then, and is to say the same.
    fn longest_hold_off(&self, ttl: Duration) -> Duration {
        match self.scope {
            LockScope::Session => lock::hold_off(ttl),
            LockScope::Transaction => lock::longest_hold_off(ttl),
        }
    }

    /// The server has said for how long an earlier holder can take its lock again.
    fn age_known(&mut self, age: Option<Age>, at: &mut At) -> Order {
        let Some(Age {
            left,
            is_held,
            is_promotion,
        }) = age
        else {
            return self.stop(
                failed("the server gave an unexpected answer to the question for its age"),
                at,
            );
        };
        if left.is_zero() {
            return match self.scope {
                // It stays so, for with the server this session would be gone.
                LockScope::Session => self.attempt(RestartCheck::None, at),
                // It did so meanwhile, and may have lost its sessions before the next attempt gets through.
                LockScope::Transaction => {
                    self.pause(Pause::Glance, at.now + at.jittered(POOLED_PAUSE))
                }
            };
        }
        let ttl = self.plan.ttl.unwrap_or(left);
        let left = left.min(self.longest_hold_off(ttl));
        if self.plan.wait == Wait::No && is_held {
            return self.name_holders(at);
        }
        let whole = match self.hold_off_until {
            Some(until) => until,
            None => {
                self.say(Line::HoldingOff {
                    time: left,
                    is_promotion,
                });
                at.now + left
            }
        };
        self.hold_off_until = Some(whole);
        let deadline = match self.plan.wait {
            Wait::Seconds(_) => self.by_the_end(whole),
            Wait::No | Wait::Forever => whole,
        };
        self.phase = Phase::HoldingOff { deadline, whole };
        Order::Watch(deadline.min(self.asked + ttl / 3))
    }

    /// The lock is granted.
    fn granted(&mut self, token: Option<u64>, at: &mut At) -> Order {
        self.held = true;
        // In a transaction, and where it was waited for, the server itself has waited.
        let is_prompt = at.now <= self.prompt_until;
        self.settles = !is_prompt && !self.waited && self.scope == LockScope::Session;
        self.wants_standbys = self.plan.sync && self.plan.verbose;
        self.token = token;
        if self.plan.fence && token.is_none() {
            self.connect_beside(at)
        } else {
            self.complete(at)
        }
    }

    /// All is there, and the session stays. An answer that was long under way, in a pool's queue say, leaves little of the lease:
    /// one more sign of the server, and it is whole.
    fn complete(&mut self, at: &At) -> Order {
        if mem::take(&mut self.wants_standbys) {
            return self.ask(Question::Standbys, at);
        }
        if mem::take(&mut self.settles) {
            self.phase = Phase::Settling;
            return Order::Watch(at.now + SETTLE);
        }
        match self.plan.ttl {
            Some(ttl) if at.now > self.sent + ttl / 3 => self.ask(Question::Renew, at),
            Some(_) | None => self.take(),
        }
    }

    fn take(&self) -> Order {
        Order::End(Ending::Taken(Taken {
            token: self.token,
            sent: self.sent,
            waited: self.waited,
        }))
    }

    // What is done

    fn say(&mut self, line: Line) {
        self.lines.push(line);
    }

    fn ask(&mut self, question: Question, at: &At) -> Order {
        self.asked = at.now;
        self.answer_by = self.time_for_answer(question.turn(), at.now);
        if question.is_guarded() {
            self.sent = at.now;
        }
        self.phase = Phase::Asking(question);
        Order::Ask {
            question,
            asked: self.asked,
            answer_by: self.answer_by,
        }
    }

    /// When a question that is asked now, and may take a turn in the queue, has to be answered. While the lock is
    /// not held the end of the wait counts, and the hosts that are left want some of the time.
    fn time_for_answer(&self, turn: Duration, now: Moment) -> Option<Moment> {
        let patience = self.plan.patience.map(|patience| now + turn + patience);
        let wait = match self.plan.wait {
            Wait::Seconds(_) if !self.held => self.until.map(|until| until.max(now) + UNDER_WAY),
            Wait::Seconds(_) | Wait::No | Wait::Forever => None,
        };
        let has_others = !self.held && self.hosts_left > 1;
        let share = self.until.filter(|_| has_others).map(|until| {
            let left = until.since(now);
            now + turn + (left / self.hosts_left).max(UNDER_WAY)
        });
        [patience, wait, share].into_iter().flatten().min()
    }

    /// That the question at hand was not answered in time.
    fn no_answer(&self, now: Moment) -> String {
        let is_over = match self.plan.wait {
            Wait::Seconds(_) => self.is_over(now),
            Wait::No | Wait::Forever => false,
        };
        let reason = self.reason.clone().filter(|_| is_over);
        reason.unwrap_or_else(|| {
            let by = self.answer_by.unwrap_or(self.asked);
            let time = tenths(by.since(self.asked));
            format!("no answer from the server within {time} s")
        })
    }

    /// Lets time pass, but not beyond the end of the wait.
    fn pause(&mut self, pause: Pause, until: Moment) -> Order {
        self.phase = Phase::Pausing(pause);
        Order::Pause {
            until: self.by_the_end(until),
            keeps_session: match pause {
                Pause::Turn(_) | Pause::Rest | Pause::Glance => true,
                Pause::Round => false,
            },
        }
    }

    /// This moment, or the end of the wait where that comes before it.
    fn by_the_end(&self, moment: Moment) -> Moment {
        self.until.map_or(moment, |until| until.min(moment))
    }

    /// Whether the time is over that there is.
    fn is_over(&self, now: Moment) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Takes the question at hand back, and stops then.
    fn withdraw(&mut self, stop: AcquireError) -> Order {
        self.phase = Phase::Withdrawing(AttemptError::Stop(stop));
        Order::Withdraw
    }

    /// There is no lock from the host at hand. One that is held, but for its token, is given up first.
    fn fail(&mut self, why: AttemptError, at: &mut At) -> Order {
        if mem::take(&mut self.wants_token) {
            self.phase = Phase::Releasing(match why {
                AttemptError::Host(error) => AttemptError::Host(error.of(
                    "no fencing token: behind a pooler that takes a second connection for a moment, beside the \
                     one that holds the lock",
                )),
                AttemptError::Stop(stop) => AttemptError::Stop(stop),
            });
            return Order::Release;
        }
        match why {
            AttemptError::Stop(stop) => Order::End(Ending::Stopped(stop)),
            AttemptError::Host(error) => self.next_host(error, at),
        }
    }

    fn stop(&mut self, stop: AcquireError, at: &mut At) -> Order {
        self.fail(AttemptError::Stop(stop), at)
    }

    /// What cannot be has happened: there is no lock.
    fn unexpected(&mut self) -> Order {
        Order::End(Ending::Stopped(failed(
            "what happened was not what pglock was waiting for",
        )))
    }
}

fn failed(message: &str) -> AcquireError {
    AcquireError::Failed(message.to_owned())
}

/// By the time that a waiter has, it may have passed.
fn maybe_later(message: String) -> AttemptError {
    AttemptError::Host(HostError {
        message,
        again: Again::IfWaiting,
    })
}

/// Perhaps it is about to be promoted.
fn standby() -> HostError {
    HostError {
        message: "the server is a standby, whose locks do not exclude those of its primary: connect to the primary"
            .to_owned(),
        again: Again::IfWaiting,
    }
}

#[cfg(test)]
mod names;
#[cfg(test)]
mod tests;
