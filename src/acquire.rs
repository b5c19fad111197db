//! From a [`Config`] to a held lock: connect, try, and wait in turns. Nothing is running yet, so every
//! signal that ends a process ends the attempt, at any point of it.

use std::ffi::{CStr, CString};
use std::fmt;
use std::time::Duration;

use crate::config::{Config, Wait};
use crate::connect::Target;
use crate::exit::Exit;
use crate::guardian::Guardian;
use crate::lease::Terms;
use crate::lock::{self, Caution, Lock, TURN, Verdict};
use crate::log::{self, Log};
use crate::pq::{Error, Interest, Outcome};
use crate::session::{Event, Session};
use crate::sys::{self, Signal, Signals, Ward};

/// How long to wait for a server's answer to a cancel or an unlock before leaving the rest to the close of
/// the connection.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A lock that is held, and what holds it.
pub struct Held {
    /// The session. The lock is gone when it is.
    pub session: Session,
    /// The lock.
    pub lock: Lock,
    /// When the message was sent whose answer said that it is held.
    pub sent: Duration,
    /// The holder's fencing token, if there was to be one.
    pub token: Option<u64>,
    /// What is to be killed with pglock.
    pub ward: Ward,
    /// Who does it.
    pub guardian: Guardian,
    /// How to connect to the same server again, without a look-up that may block.
    pub settings: Vec<(CString, CString)>,
}

/// Why there is no lock.
pub enum Stop {
    /// Somebody else holds it.
    NotObtained,
    /// A signal came.
    Signal(Signal),
    /// pglock or the server failed; the message says how.
    Failed(String),
}

/// Takes the lock as the configuration wants it. `start` is when pglock was started, on the clock of
/// [`sys::now`].
///
/// # Errors
/// There is no lock, for the reason given. Nothing is left waiting on the server.
pub fn acquire(
    config: &Config,
    start: Duration,
    signals: &Signals,
    log: Log,
) -> Result<Held, Stop> {
    let ward = Ward::new().map_err(|error| failed(format_args!("no memory: {error}")))?;
    let target = Target::new(&config.server).map_err(failed)?;
    let mut attempt = Attempt {
        config,
        signals,
        log,
        lock: Lock {
            key: config.lock_id.into(),
            ttl: config.terms.map(Terms::ttl),
            fence: config.fence,
        },
        wait_until: match config.wait {
            Wait::Seconds(seconds) => Some(start + Duration::from_secs(seconds.into())),
            Wait::No | Wait::Forever => None,
        },
        ward,
        guardian: None,
    };
    log.info(format_args!("Connecting to PostgreSQL at {target}."));
    let (mut session, settings) = attempt.connect(&target, start)?;
    attempt.describe(&session);
    match config.wait {
        Wait::No => log.info("Trying to obtain lock."),
        Wait::Seconds(seconds) => log.info(format_args!(
            "Obtaining lock with {seconds} seconds timeout.."
        )),
        Wait::Forever => log.info("Obtaining lock without timeout.."),
    }
    let (sent, token) = attempt.obtain(&mut session)?;
    let Some(guardian) = attempt.guardian else {
        return Err(failed("no guardian"));
    };
    Ok(Held {
        settings: same_server(settings, &session),
        session,
        lock: attempt.lock,
        sent,
        token,
        ward: attempt.ward,
        guardian,
    })
}

/// The settings with the address that they have led to, so that no name has to be looked up again.
fn same_server(
    mut settings: Vec<(CString, CString)>,
    session: &Session,
) -> Vec<(CString, CString)> {
    if let Some(address) = session.connection().address() {
        settings.push((
            c"hostaddr".into(),
            CString::new(address).unwrap_or_default(),
        ));
    }
    settings
}

/// Gives a lock up and waits for the server's word that it is free. `false` where the server did not
/// say so: then the lock goes when the server notices that the session has.
pub fn release(session: &mut Session, lock: Lock, signals: &Signals) -> bool {
    let deadline = Some(sys::now() + LAST_WORD);
    // What was asked before is answered first.
    while session.is_asking() {
        match drive(session, signals, deadline) {
            Ok(_) | Err(Interrupt::Signal(_)) => {}
            Err(Interrupt::Late | Interrupt::Failed(_)) => return false,
        }
    }
    if session.ask(&lock.release_sql()).is_err() {
        return false;
    }
    loop {
        match drive(session, signals, deadline) {
            Ok(Event::Answered(outcomes)) => return lock::was_released(&outcomes),
            // The end has begun already.
            Ok(Event::Connected) | Err(Interrupt::Signal(_)) => {}
            Err(Interrupt::Late | Interrupt::Failed(_)) => return false,
        }
    }
}

struct Attempt<'a> {
    config: &'a Config,
    signals: &'a Signals,
    log: Log,
    lock: Lock,
    wait_until: Option<Duration>,
    ward: Ward,
    guardian: Option<Guardian>,
}

impl Attempt<'_> {
    /// Connects to the first host that takes the connection. The time there is is shared among the hosts
    /// that are left, so that one that does not answer leaves some to the next.
    fn connect(
        &self,
        target: &Target,
        start: Duration,
    ) -> Result<(Session, Vec<(CString, CString)>), Stop> {
        let limit = self.config.connect_timeout.map(|timeout| start + timeout);
        let deadline = limit.into_iter().chain(self.wait_until).min();
        let late = late(target, self.config);
        let mut errors: Vec<String> = Vec::new();
        let hosts = target.hosts();
        let mut hosts_left = hosts.len() as u32;
        for settings in hosts {
            let share = left(deadline).map(|left| sys::now() + left / hosts_left);
            hosts_left -= 1;
            match self.connect_to_host(&settings, share, deadline, &late) {
                Ok(session) => return Ok((session, settings)),
                Err(Interrupt::Signal(signal)) => return Err(Stop::Signal(signal)),
                Err(Interrupt::Late) => errors.push(late.clone()),
                Err(Interrupt::Failed(error)) => errors.push(error.message),
            }
        }
        errors.dedup();
        Err(Stop::Failed(format!(
            "could not connect: {}",
            errors.join("; ")
        )))
    }

    /// Connects to one host by its own `share` of the time. A look-up of a name may block, which cannot be
    /// taken back: it ends pglock at the `deadline`, with `late` as its last word.
    fn connect_to_host(
        &self,
        settings: &[(CString, CString)],
        share: Option<Duration>,
        deadline: Option<Duration>,
        late: &str,
    ) -> Result<Session, Interrupt> {
        let then = sys::wall_clock() + left(deadline).unwrap_or_default().as_secs() as i64;
        let last_line = log::error_line(then, format_args!("could not connect: {late}"));
        let status = Exit::Failed.status();
        let mut session = self
            .signals
            .while_blocking(deadline, &last_line, status, || Session::start(settings))
            .map_err(Interrupt::Failed)?;
        loop {
            ready(&session, self.signals, share)?;
            let event = self
                .signals
                .while_blocking(deadline, &last_line, status, || session.step())
                .map_err(Interrupt::Failed)?;
            if event == Some(Event::Connected) {
                return Ok(session);
            }
        }
    }

    /// Under `--verbose`: which server and backend this is, and how it holds the lock.
    fn describe(&self, session: &Session) {
        let connection = session.connection();
        let lease = match self.lock.ttl.map(|ttl| ttl.as_secs()) {
            None => "without a lease".to_owned(),
            Some(ttl) if lock::has_lease(connection.server_version()) => {
                format!("with a lease of {ttl} s")
            }
            Some(ttl) => format!(
                "with TCP keepalive of {ttl} s in place of a lease, which servers before 14 do not have"
            ),
        };
        self.log.detail(format_args!(
            "Connected to PostgreSQL {}, backend {}; exclusive lock of the session, {lease}.",
            connection.reported(c"server_version").unwrap_or_default(),
            connection.backend_pid(),
        ));
    }

    /// Tries once, then waits in turns if there is anything to wait for. Returns when the message was sent
    /// whose answer says that the lock is held, and the fencing token.
    fn obtain(&mut self, session: &mut Session) -> Result<(Duration, Option<u64>), Stop> {
        let try_sql =
            |lock: Lock, session: &Session, caution| lock.try_sql(session.connection(), caution);
        let sql = try_sql(self.lock, session, Caution::HoldOff);
        let (mut sent, mut verdict) = self.ask(session, &sql, Duration::ZERO)?;
        loop {
            match verdict {
                Verdict::Held(token) => return Ok((sent, token)),
                Verdict::Refused(error) => return Err(failed(error)),
                Verdict::Young => {
                    let caution = self.hold_off(session)?;
                    let sql = try_sql(self.lock, session, caution);
                    (sent, verdict) = self.ask(session, &sql, Duration::ZERO)?;
                    continue;
                }
                Verdict::Busy => {}
            }
            let left = match (self.config.wait, left(self.wait_until)) {
                (Wait::No, _) | (_, Some(Duration::ZERO)) => return Err(Stop::NotObtained),
                (_, left) => left.unwrap_or(Duration::MAX),
            };
            let turn = left.as_millis().clamp(1, TURN.into()) as u32;
            let sql = self.lock.wait_sql(session.connection(), turn);
            let turn = Duration::from_millis(turn.into());
            (sent, verdict) = self.ask(session, &sql, turn)?;
        }
    }

    /// Asks for the lock. The answer may take as long as the turn in the queue, and as connecting might.
    /// Returns when it was asked for, and what the server said.
    fn ask(
        &mut self,
        session: &mut Session,
        sql: &CStr,
        turn: Duration,
    ) -> Result<(Duration, Verdict), Stop> {
        let sent = sys::now();
        let outcomes = self.call(session, sql, turn)?;
        Ok((sent, lock::verdict(&outcomes, !turn.is_zero())))
    }

    /// Sends a query that may have to do with the lock, and waits for its answer.
    fn call(
        &mut self,
        session: &mut Session,
        sql: &CStr,
        turn: Duration,
    ) -> Result<Vec<Outcome>, Stop> {
        session
            .ask(sql)
            .map_err(|error| failed(format_args!("the lock call failed: {error}")))?;
        if self.guardian.is_none() {
            // Made while the server is busy, so that it costs no time.
            let socket = session.wants().map(|(descriptor, _)| descriptor);
            match Guardian::post(&self.ward, socket) {
                Ok(guardian) => self.guardian = Some(guardian),
                Err(error) => {
                    self.withdraw(session, !turn.is_zero());
                    return Err(failed(format_args!(
                        "could not start the guardian: {error}"
                    )));
                }
            }
        }
        let patience = self.config.connect_timeout;
        let deadline = patience.map(|patience| sys::now() + turn + patience);
        loop {
            match drive(session, self.signals, deadline) {
                Ok(Event::Answered(outcomes)) => return Ok(outcomes),
                Ok(Event::Connected) => {}
                Err(Interrupt::Signal(signal)) => {
                    self.withdraw(session, !turn.is_zero());
                    return Err(Stop::Signal(signal));
                }
                Err(Interrupt::Late) => {
                    return Err(failed(format_args!(
                        "no answer to the lock call within {} s (--connect-timeout)",
                        patience.unwrap_or_default().as_secs()
                    )));
                }
                Err(Interrupt::Failed(error)) => {
                    return Err(failed(format_args!("the lock call failed: {error}")));
                }
            }
        }
    }

    /// Waits until no earlier holder can take its lock again on a server that has lost its sessions.
    fn hold_off(&mut self, session: &mut Session) -> Result<Caution, Stop> {
        let outcomes = self.call(session, &self.lock.age_sql(), Duration::ZERO)?;
        if let Some(Outcome::Failed(error)) = outcomes.last() {
            return Err(failed(error));
        }
        let time = lock::hold_off(&outcomes).ok_or_else(|| {
            failed("the server answered the question for its age with something else")
        })?;
        if time.is_zero() {
            return Ok(Caution::None);
        }
        self.log.info(format_args!(
            "The server was restarted and lost its locks: holding off for {:.1} s, in which an earlier holder \
             may take its lock again.",
            time.as_secs_f64()
        ));
        let until = sys::now() + time;
        let deadline = self
            .wait_until
            .map_or(until, |wait_until| wait_until.min(until));
        match drive(session, self.signals, Some(deadline)) {
            Err(Interrupt::Late) if deadline < until => Err(Stop::NotObtained),
            Err(Interrupt::Late) | Ok(_) => Ok(Caution::HoldOff),
            Err(Interrupt::Signal(signal)) => Err(Stop::Signal(signal)),
            Err(Interrupt::Failed(error)) => Err(failed(format_args!(
                "the connection was lost while holding off: {error}"
            ))),
        }
    }

    /// Takes a call for the lock back, so that no backend waits for a lock that nobody wants any more.
    fn withdraw(&self, session: &mut Session, waited: bool) {
        if let Some(canceller) = session.connection().canceller() {
            sys::run_in_child(LAST_WORD, || canceller.cancel());
        }
        let deadline = Some(sys::now() + LAST_WORD);
        loop {
            match drive(session, self.signals, deadline) {
                Ok(Event::Answered(outcomes)) => {
                    // Granted before the cancel came.
                    if matches!(lock::verdict(&outcomes, waited), Verdict::Held(_)) {
                        release(session, self.lock, self.signals);
                    }
                    return;
                }
                Ok(Event::Connected) | Err(Interrupt::Signal(_)) => {}
                Err(Interrupt::Late | Interrupt::Failed(_)) => return,
            }
        }
    }
}

/// What keeps a session from going on.
enum Interrupt {
    Signal(Signal),
    Late,
    Failed(Error),
}

/// Carries a session on until something has happened on it.
fn drive(
    session: &mut Session,
    signals: &Signals,
    deadline: Option<Duration>,
) -> Result<Event, Interrupt> {
    loop {
        ready(session, signals, deadline)?;
        if let Some(event) = session.step().map_err(Interrupt::Failed)? {
            return Ok(event);
        }
    }
}

/// Waits until a session can take a step.
fn ready(
    session: &Session,
    signals: &Signals,
    deadline: Option<Duration>,
) -> Result<(), Interrupt> {
    loop {
        let Some(wait) = wait_for(session) else {
            return Ok(());
        };
        let mut waits = [sys::Wait::read(signals.descriptor()), wait];
        sys::poll(&mut waits, left(deadline)).map_err(|error| {
            Interrupt::Failed(Error {
                sqlstate: None,
                message: format!("poll: {error}"),
            })
        })?;
        for signal in signals.take() {
            if signal == Signal::TSTP {
                sys::signal_own_group_by_default(signal);
            } else if !signal.is_harmless() {
                return Err(Interrupt::Signal(signal));
            }
        }
        if waits[1].ready {
            return Ok(());
        }
        if left(deadline) == Some(Duration::ZERO) {
            return Err(Interrupt::Late);
        }
    }
}

/// What to poll for a session.
pub fn wait_for(session: &Session) -> Option<sys::Wait> {
    let (descriptor, interest) = session.wants()?;
    Some(match interest {
        Interest::Read => sys::Wait::read(descriptor),
        Interest::Write if session.is_connecting() => sys::Wait::write(descriptor),
        Interest::Write => sys::Wait::both(descriptor),
    })
}

/// The time until a deadline; zero when it has passed.
fn left(deadline: Option<Duration>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_sub(sys::now()))
}

fn failed(error: impl fmt::Display) -> Stop {
    Stop::Failed(error.to_string())
}

/// What to say when nobody answers in time, and by which flag's word.
fn late(target: &Target, config: &Config) -> String {
    let (seconds, flag) = match (config.wait, config.connect_timeout) {
        (Wait::Seconds(wait), Some(timeout)) if u64::from(wait) < timeout.as_secs() => {
            (wait.into(), "wait")
        }
        (Wait::Seconds(wait), None) => (wait.into(), "wait"),
        (_, timeout) => (timeout.unwrap_or_default().as_secs(), "connect-timeout"),
    };
    format!("no answer from {target} within {seconds} s (--{flag})")
}
