//! Carries a session on by `poll` while nothing else runs: before the command has started, and after it has
//! ended. A signal or a deadline gets through at any point.

use std::ffi::CStr;
use std::time::Duration;

use crate::exit::Exit;
use crate::log;
use crate::moment::Moment;
use crate::pq::{Error, Interest, Outcome};
use crate::server::session::{Event, Session};
use crate::sys::{self, Signal, Signals};
use crate::text;

/// How long to wait for a server's answer to a cancel or an unlock before leaving the rest to the close of
/// the connection.
const EXIT_PATIENCE: Duration = Duration::from_secs(1);

/// What keeps a session from going on.
#[derive(Debug)]
pub enum Interrupt {
    /// A signal came that ends a process.
    Signal(Signal),
    /// The deadline passed.
    Late,
    /// The connection could not be made, or is closed.
    Failed(Error),
}

/// Carries a session on until something has happened on it.
///
/// # Errors
/// What came before that.
pub fn next_event(
    session: &mut Session,
    signals: &Signals,
    deadline: Option<Moment>,
) -> Result<Event, Interrupt> {
    loop {
        wait_ready(session, signals, deadline)?;
        if let Some(event) = step(session, signals, deadline).map_err(Interrupt::Failed)? {
            return Ok(event);
        }
        check_deadline(deadline)?;
    }
}

/// Has a session take a step. Over a table libpq may take long, so a signal or the deadline ends pglock then.
fn step(
    session: &mut Session,
    signals: &Signals,
    deadline: Option<Moment>,
) -> Result<Option<Event>, Error> {
    if !session.allows_table() {
        return session.step();
    }
    let time = left(deadline).unwrap_or_default();
    let last_line = log::error_line(
        sys::wall_clock() + time.as_secs() as i64,
        "no answer from the server in time",
    );
    signals.while_blocking(deadline, &last_line, Exit::Failed.status(), || {
        session.step()
    })
}

/// Sees to a deadline where there is always something to do: a server may send without end.
///
/// # Errors
/// It has passed.
pub fn check_deadline(deadline: Option<Moment>) -> Result<(), Interrupt> {
    match left(deadline) {
        Some(Duration::ZERO) => Err(Interrupt::Late),
        _ => Ok(()),
    }
}

/// Waits until a session can take a step.
///
/// # Errors
/// What came before that.
pub fn wait_ready(
    session: &Session,
    signals: &Signals,
    deadline: Option<Moment>,
) -> Result<(), Interrupt> {
    let Some(wait) = wait_for(session) else {
        return Ok(());
    };
    wait_or_signal(wait, signals, deadline)
}

/// Lets time pass.
///
/// # Errors
/// A signal came before it was over.
pub fn pause(signals: &Signals, until: Moment) -> Result<(), Interrupt> {
    match wait_or_signal(sys::Wait::none(), signals, Some(until)) {
        Ok(()) | Err(Interrupt::Late) => Ok(()),
        Err(interrupt) => Err(interrupt),
    }
}

/// Waits until something else than a session is ready.
///
/// # Errors
/// What came before that.
pub fn wait_or_signal(
    wait: sys::Wait<'_>,
    signals: &Signals,
    deadline: Option<Moment>,
) -> Result<(), Interrupt> {
    let mut waits = [sys::Wait::read(signals.descriptor()), wait];
    loop {
        sys::poll(&mut waits, left(deadline)).map_err(|error| {
            Interrupt::Failed(Error {
                message: format!("poll: {}", text::reason(&error)),
                ..Error::default()
            })
        })?;
        for signal in signals.take() {
            if signal == Signal::TSTP {
                sys::stop_own_group();
            } else if signal == Signal::CHLD {
                // As process 1 pglock has children that it did not start.
                while sys::reap().is_some() {}
            } else if !signal.is_harmless() {
                return Err(Interrupt::Signal(signal));
            }
        }
        if waits[1].ready {
            return Ok(());
        }
        check_deadline(deadline)?;
    }
}

/// What to poll for a session.
pub fn wait_for(session: &Session) -> Option<sys::Wait<'_>> {
    let (descriptor, interest) = session.wants()?;
    Some(match interest {
        Interest::Read => sys::Wait::read(descriptor),
        Interest::Write => sys::Wait::write(descriptor),
        Interest::Both => sys::Wait::both(descriptor),
    })
}

/// The time until a deadline; zero when it has passed.
pub fn left(deadline: Option<Moment>) -> Option<Duration> {
    deadline.map(|deadline| deadline.since(sys::now()))
}

/// Asks something when all is over, and waits a moment for the answer. A signal does not hurry it: the
/// end has begun already.
pub fn query_at_exit(session: &mut Session, sql: &CStr, signals: &Signals) -> Option<Vec<Outcome>> {
    let until = ask_at_exit(session, sql, signals)?;
    answer_at_exit(session, signals, until)
}

/// Asks it, and returns until when to wait for the [answer](answer_at_exit).
pub fn ask_at_exit(session: &mut Session, sql: &CStr, signals: &Signals) -> Option<Moment> {
    let until = sys::now() + EXIT_PATIENCE;
    if session.is_asking() {
        // What was asked before is answered first.
        answer_at_exit(session, signals, until)?;
    }
    session.ask(sql).ok()?;
    Some(until)
}

/// The answer to what was [asked](ask_at_exit) when all is over.
pub fn answer_at_exit(
    session: &mut Session,
    signals: &Signals,
    until: Moment,
) -> Option<Vec<Outcome>> {
    loop {
        match next_event(session, signals, Some(until)) {
            Ok(Event::Answered(outcomes)) => return Some(outcomes),
            Ok(Event::Connected) | Err(Interrupt::Signal(_)) => {}
            Err(Interrupt::Late | Interrupt::Failed(_)) => return None,
        }
    }
}

/// Has the server leave off what it was asked.
pub fn cancel(session: &Session) {
    if let Some(canceller) = session.connection().canceller() {
        sys::run_in_child(EXIT_PATIENCE, || canceller.cancel());
    }
}

/// Takes a question back, so that no backend works on what nobody wants any more. Returns the answer, if
/// the server gave one all the same.
pub fn cancel_and_drain(session: &mut Session, signals: &Signals) -> Option<Vec<Outcome>> {
    let until = sys::now() + EXIT_PATIENCE;
    cancel(session);
    if session.is_asking() {
        // It may have taken all of the time to be told.
        answer_at_exit(session, signals, until.max(sys::now() + EXIT_PATIENCE / 2))
    } else {
        None
    }
}
