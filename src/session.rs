//! A connection and what is under way on it: connecting, a query, or nothing. Whoever polls calls
//! [`Session::step`] when what the session [wants](Session::wants) is there; nothing here waits.

use std::ffi::CStr;
use std::os::fd::RawFd;

use crate::pq::{Connection, Conninfo, Error, Interest, Outcome, Progress};

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
    /// Begins to connect. May block in the look-up of a host name, if it has no address.
    ///
    /// # Errors
    /// As [`Connection::start`].
    pub fn start(settings: &Conninfo) -> Result<Self, Error> {
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

    /// Whether a query was sent that is not answered yet.
    pub fn is_asking(&self) -> bool {
        matches!(self.stage, Stage::Asking(_))
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
        // Also where nothing was asked: it has libpq take in what the server says unasked.
        while !self.connection.is_busy() {
            let Stage::Asking(outcomes) = &mut self.stage else {
                break;
            };
            match self.connection.next_outcome()? {
                Some(outcome) => outcomes.push(outcome),
                None if self.connection.is_bad() => break,
                None => {
                    let outcomes = std::mem::take(outcomes);
                    self.stage = Stage::Idle;
                    return Ok(Some(Event::Answered(outcomes)));
                }
            }
        }
        if self.connection.is_bad() {
            return Err(self.last_words(taken));
        }
        taken.map(|()| None)
    }

    /// Why the connection is closed. A server that ends a session says so, in place of an answer or unasked,
    /// before it closes the connection: worth more than that it was closed.
    fn last_words(&mut self, closed: Result<(), Error>) -> Error {
        let answer = match &mut self.stage {
            Stage::Asking(outcomes) => outcomes.drain(..).find_map(|outcome| match outcome {
                Outcome::Failed(error) if error.sqlstate.is_some() => Some(error),
                _ => None,
            }),
            Stage::Connecting | Stage::Idle => None,
        };
        let said = answer.or_else(|| self.connection.take_notice());
        said.unwrap_or_else(|| match closed {
            Err(error) => error,
            Ok(()) => Error {
                message: "the server closed the connection".to_owned(),
                ..Error::default()
            },
        })
    }
}
