//! From a [`Config`] to a held lock: connect, try, and wait in turns. Nothing is running yet, so every
//! signal that ends a process ends the attempt, at any point of it.

use std::ffi::{CStr, CString};
use std::fmt;
use std::time::Duration;

use crate::config::{Config, Wait};
use crate::connect::Target;
use crate::exit::Exit;
use crate::lock::{Lock, TURN, Verdict};
use crate::log::{self, Log};
use crate::pq::{Error, Interest};
use crate::session::{Event, Session};
use crate::sys::{self, Signal, Signals};

/// How long to wait for a server's answer to a cancel or an unlock before leaving the rest to the close of
/// the connection.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A lock that is held, and the session that holds it.
pub struct Held {
    /// The session. The lock is gone when it is.
    pub session: Session,
    /// The lock.
    pub lock: Lock,
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
    let attempt = Attempt {
        config,
        signals,
        log,
        lock: Lock::new(config.lock_id),
        wait_until: match config.wait {
            Wait::Seconds(seconds) => Some(start + Duration::from_secs(seconds.into())),
            Wait::No | Wait::Forever => None,
        },
    };
    let target = Target::new(&config.server).map_err(failed)?;
    log.info(format_args!("Connecting to PostgreSQL at {target}."));
    let mut session = attempt.connect(&target, start)?;
    attempt.describe(&session);
    match config.wait {
        Wait::No => log.info("Trying to obtain lock."),
        Wait::Seconds(seconds) => log.info(format_args!(
            "Obtaining lock with {seconds} seconds timeout.."
        )),
        Wait::Forever => log.info("Obtaining lock without timeout.."),
    }
    if attempt.obtain(&mut session)? {
        Ok(Held {
            session,
            lock: attempt.lock,
        })
    } else {
        Err(Stop::NotObtained)
    }
}

/// Gives the lock up and waits for the server's word that it is free. `false` where the server did not
/// say so: then the lock goes when the server notices that the session has.
pub fn release(held: &mut Held, signals: &Signals) -> bool {
    let sql = held.lock.release_sql();
    if held.session.ask(&sql).is_err() {
        return false;
    }
    let deadline = Some(sys::now() + LAST_WORD);
    loop {
        match drive(&mut held.session, signals, deadline) {
            Ok(Event::Answered(outcomes)) => return Lock::was_released(&outcomes),
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
}

impl Attempt<'_> {
    /// Connects to the first host that takes the connection. The time there is is shared among the hosts
    /// that are left, so that one that does not answer leaves some to the next.
    fn connect(&self, target: &Target, start: Duration) -> Result<Session, Stop> {
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
                Ok(session) => return Ok(session),
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

    /// Under `--verbose`: which server and backend this is.
    fn describe(&self, session: &Session) {
        let connection = session.connection();
        self.log.detail(format_args!(
            "Connected to PostgreSQL {}, backend {}; exclusive lock of the session.",
            connection.reported(c"server_version").unwrap_or_default(),
            connection.backend_pid(),
        ));
    }

    /// Tries once, then waits in turns if there is anything to wait for.
    fn obtain(&self, session: &mut Session) -> Result<bool, Stop> {
        let sql = self.lock.try_sql(session.connection());
        let mut verdict = self.ask(session, &sql, Duration::ZERO)?;
        loop {
            match verdict {
                Verdict::Held => return Ok(true),
                Verdict::Refused(error) => return Err(failed(error)),
                Verdict::Busy => {}
            }
            let left = match (self.config.wait, left(self.wait_until)) {
                (Wait::No, _) | (_, Some(Duration::ZERO)) => return Ok(false),
                (_, left) => left.unwrap_or(Duration::MAX),
            };
            let turn = left.as_millis().clamp(1, TURN.into()) as u32;
            let sql = self.lock.wait_sql(session.connection(), turn);
            verdict = self.ask(session, &sql, Duration::from_millis(turn.into()))?;
        }
    }

    /// Asks for the lock. The answer may take as long as the turn in the queue, and as connecting might.
    fn ask(&self, session: &mut Session, sql: &CStr, turn: Duration) -> Result<Verdict, Stop> {
        session.ask(sql).map_err(failed)?;
        let patience = self.config.connect_timeout;
        let deadline = patience.map(|patience| sys::now() + turn + patience);
        loop {
            match drive(session, self.signals, deadline) {
                Ok(Event::Answered(outcomes)) => {
                    return Ok(Lock::verdict(&outcomes, !turn.is_zero()));
                }
                Ok(Event::Connected) => {}
                Err(Interrupt::Signal(signal)) => {
                    self.withdraw(session, !turn.is_zero());
                    return Err(Stop::Signal(signal));
                }
                Err(Interrupt::Late) => {
                    return Err(Stop::Failed(format!(
                        "no answer to the lock call within {} s",
                        patience.unwrap_or_default().as_secs()
                    )));
                }
                Err(Interrupt::Failed(error)) => {
                    return Err(Stop::Failed(format!("the lock call failed: {error}")));
                }
            }
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
                    if Lock::verdict(&outcomes, waited) == Verdict::Held
                        && session.ask(&self.lock.release_sql()).is_ok()
                    {
                        continue;
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
        let Some((descriptor, interest)) = session.wants() else {
            return Ok(());
        };
        let mut waits = [
            sys::Wait::read(signals.descriptor()),
            match interest {
                Interest::Read => sys::Wait::read(descriptor),
                Interest::Write if session.is_connecting() => sys::Wait::write(descriptor),
                Interest::Write => sys::Wait::both(descriptor),
            },
        ];
        sys::poll(&mut waits, left(deadline)).map_err(|error| {
            Interrupt::Failed(Error {
                sqlstate: None,
                message: format!("poll: {error}"),
            })
        })?;
        for signal in signals.take() {
            if signal == Signal::TSTP {
                sys::stop_self();
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
