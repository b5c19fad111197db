//! The way back to a server while the command runs: an attempt to connect again, in a thread of its own. libpq may
//! block in it, in a key derivation that the server asks for, in Kerberos, in a password file that is a pipe; and
//! meanwhile signals, deadlines and the command want to be seen to.
//!
//! It is the only thread beside the first, which forks nothing while there is one: see [`Thread`].

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::moment::Moment;
use crate::pq::{Conninfo, Error};
use crate::server::session::{Event, Session};
use crate::server::wait::{check_deadline, left, wait_for};
use crate::sys::{self, Thread, Wait};

/// An attempt to connect.
pub struct Reconnect {
    thread: Thread<Result<Session, Failure>>,
    /// Ends when the attempt does.
    end: OwnedFd,
}

/// Why an attempt came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// No answer in time.
    Late,
    /// It was refused, or nobody was there.
    Refused(Error),
}

impl Reconnect {
    /// Begins to connect to a server by one of these ways, to the first where there is one, to be done by `until`.
    ///
    /// # Errors
    /// The system has no thread or descriptor left.
    pub fn start(ways: &[Conninfo], until: Moment) -> io::Result<Self> {
        let (end, held_open) = sys::pipe()?;
        let ways = ways.to_vec();
        let thread = Thread::start(move || {
            let result = connect_to_any(&ways, until);
            drop(held_open);
            result
        })?;
        Ok(Self { thread, end })
    }

    /// What to poll for its end.
    pub fn wait(&self) -> Wait<'_> {
        Wait::read(self.end.as_fd())
    }

    /// What came of it; to be called when it has ended.
    pub fn finish(self) -> Result<Session, Failure> {
        self.thread.join().unwrap_or_else(|| {
            Err(Failure::Refused(Error {
                message: "the attempt to connect broke off".to_owned(),
                ..Error::default()
            }))
        })
    }
}

/// Each of those where nobody is leaves the time to the next.
fn connect_to_any(ways: &[Conninfo], until: Moment) -> Result<Session, Failure> {
    let mut failure = Failure::Late;
    for (place, settings) in ways.iter().enumerate() {
        let among = (ways.len() - place) as u32;
        let share = sys::now() + until.since(sys::now()) / among;
        match connect(settings, share) {
            Err(Failure::Late) => {}
            Err(Failure::Refused(error)) if !error.reached && among > 1 => {
                failure = Failure::Refused(error);
            }
            result => return result,
        }
    }
    Err(failure)
}

fn connect(settings: &Conninfo, until: Moment) -> Result<Session, Failure> {
    let mut session = Session::start(settings).map_err(Failure::Refused)?;
    loop {
        if let Some(wait) = wait_for(&session) {
            let mut waits = [wait];
            // Where it fails the step tells.
            let _ = sys::poll(&mut waits, left(Some(until)));
            if !waits[0].ready {
                check_deadline(Some(until)).map_err(|_| Failure::Late)?;
                continue;
            }
        }
        if session.step().map_err(Failure::Refused)? == Some(Event::Connected) {
            return Ok(session);
        }
        check_deadline(Some(until)).map_err(|_| Failure::Late)?;
    }
}

/// Whether these settings lead to a Unix socket.
pub fn is_to_socket(settings: &Conninfo) -> bool {
    let value = |wanted: &CStr| {
        let found = settings
            .iter()
            .find(|(keyword, _)| keyword.as_c_str() == wanted);
        found.map(|(_, value)| value.to_bytes())
    };
    value(c"hostaddr").is_none() && value(c"host").is_some_and(|host| host.starts_with(b"/"))
}
