//! A connection and what is under way on it: connecting, a query, or nothing. Whoever polls calls
//! [`Session::step`] when what the session [wants](Session::wants) is there; nothing here waits.

use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

use crate::pq::{Connection, Error, Interest, Outcome, Progress};

/// A conversation with a server.
pub struct Session {
    connection: Connection,
    stage: Stage,
}

enum Stage {
    Connecting,
    Idle,
    /// A query was sent; these of its statements have been answered.
    Asking(Vec<Outcome>),
}

/// What a step has brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection is ready for a query.
    Connected,
    /// The query was answered: the outcomes of its statements, up to the first that failed.
    Answered(Vec<Outcome>),
}

impl Session {
    /// Begins to connect. May block in the look-up of a host name.
    ///
    /// # Errors
    /// As [`Connection::start`].
    pub fn start(settings: &[(CString, CString)]) -> Result<Self, Error> {
        Ok(Self {
            connection: Connection::start(settings)?,
            stage: Stage::Connecting,
        })
    }

    /// The connection itself, for what it knows.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Which descriptor to poll, and for what.
    pub fn wants(&self) -> Option<(RawFd, Interest)> {
        self.connection.wants()
    }

    /// Whether the connection is still being made, so that a step may block in the look-up of a name.
    pub fn is_connecting(&self) -> bool {
        matches!(self.stage, Stage::Connecting)
    }

    /// Sends a query; only after the last one was answered.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn ask(&mut self, sql: &CStr) -> Result<(), Error> {
        self.connection.send(sql)?;
        self.stage = Stage::Asking(Vec::new());
        Ok(())
    }

    /// Does what can be done without waiting.
    ///
    /// # Errors
    /// The connection could not be made, or is closed.
    pub fn step(&mut self) -> Result<Option<Event>, Error> {
        if let Stage::Connecting = self.stage {
            return Ok(match self.connection.connect()? {
                Progress::Pending => None,
                Progress::Ready => {
                    self.stage = Stage::Idle;
                    Some(Event::Connected)
                }
            });
        }
        let taken = self.connection.advance();
        if let Stage::Asking(outcomes) = &mut self.stage {
            while !self.connection.is_busy() {
                match self.connection.next_outcome() {
                    Some(outcome) => outcomes.push(outcome),
                    // A backend that is ended says so in place of an answer, and then closes. What it
                    // said is worth more than that it closed.
                    None if self.connection.is_bad() => {
                        let last = outcomes.pop();
                        return Err(match last {
                            Some(Outcome::Failed(error)) => error,
                            _ => Error {
                                sqlstate: None,
                                message: "the server closed the connection".to_owned(),
                            },
                        });
                    }
                    None => {
                        let outcomes = std::mem::take(outcomes);
                        self.stage = Stage::Idle;
                        return Ok(Some(Event::Answered(outcomes)));
                    }
                }
            }
        }
        taken.map(|()| None)
    }
}
