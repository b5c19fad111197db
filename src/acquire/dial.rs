//! The way to one host: its addresses, and a session at the first of them where there is a server.

use super::state::Dial;
use crate::exit::Exit;
use crate::log;
use crate::moment::Moment;
use crate::pq::{Conninfo, Error};
use crate::server::resolve::resolve;
use crate::server::session::{Event, Session};
use crate::server::wait::{self, Interrupt, left};
use crate::sys::{self, Signals};

/// Connects to a host. libpq may block for all the time there is, in Kerberos say, which cannot be taken back: that ends
/// pglock at the deadline, with `late` for its last words.
///
/// # Errors
/// What came before there was a session.
pub fn connect(
    settings: &Conninfo,
    dial: Dial,
    late: &str,
    signals: &Signals,
) -> Result<Session, Interrupt> {
    let last_line = log::error_line(sys::wall_clock() + dial.time.as_secs() as i64, late);
    let status = Exit::Failed.status();
    let start = |settings: &Conninfo, until| {
        let mut session = signals
            .while_blocking(dial.deadline, &last_line, status, || {
                Session::start(settings)
            })
            .map_err(Interrupt::Failed)?;
        loop {
            wait::wait_ready(&session, signals, until)?;
            let event = signals
                .while_blocking(dial.deadline, &last_line, status, || session.step())
                .map_err(Interrupt::Failed)?;
            if event == Some(Event::Connected) {
                return Ok(session);
            }
            wait::check_deadline(until)?;
        }
    };
    let addresses = resolve(settings, signals, dial.until)?;
    first_to_answer(&addresses, dial.until, start)
}

/// Starts a session at the first of a host's addresses where there is a server, whatever it says then. So does libpq,
/// but to a first one that swallows all packets it would give the time of all.
fn first_to_answer(
    addresses: &[Conninfo],
    deadline: Option<Moment>,
    mut start: impl FnMut(&Conninfo, Option<Moment>) -> Result<Session, Interrupt>,
) -> Result<Session, Interrupt> {
    let mut messages: Vec<String> = Vec::new();
    for (place, address) in addresses.iter().enumerate() {
        let addresses_left = addresses.len() - place;
        match start(address, share(deadline, addresses_left as u32)) {
            Err(Interrupt::Late) => {}
            Err(Interrupt::Failed(error)) if !error.reached && addresses.len() > 1 => {
                messages.push(error.message);
            }
            result => return result,
        }
    }
    if messages.is_empty() {
        return Err(Interrupt::Late);
    }
    if messages.len() < addresses.len() {
        messages.push("no answer from its other addresses".to_owned());
    }
    Err(Interrupt::Failed(Error {
        message: messages.join("; "),
        ..Error::default()
    }))
}

/// When the first of so many has had its part of the time until a deadline.
fn share(deadline: Option<Moment>, among: u32) -> Option<Moment> {
    left(deadline).map(|left| sys::now() + left / among)
}
