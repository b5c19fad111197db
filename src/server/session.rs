//! A connection and what is under way on it: connecting, a query, or nothing. Whoever polls calls
//! [`Session::step`] when what the session [wants](Session::wants) is there; nothing here waits.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use crate::pq::{Connection, Conninfo, Error, Interest, Outcome, Progress};
use crate::sys;

/// How many bytes a server may send between two answers, where no answer has a tenth of that. What is more is no answer, and
/// libpq, which keeps most of it, takes the longer for each piece the more it has; of a message that claims to be long it
/// would take in whatever comes, without a pause.
const MOST: usize = 64 << 10;

/// How much of that an answer gives back: a server that sends more than that between any two is left in the end.
const BACK: usize = 8 << 10;

/// How much memory the rows of a table may take.
const TABLE: usize = 64 << 20;

/// A conversation with a server.
pub struct Session {
    connection: Connection,
    stage: Stage,
    /// How many bytes the server may send before the next answer.
    left: usize,
    /// Whether it may send a table instead.
    of_table: bool,
}

enum Stage {
    Connecting,
    Idle,
    Asking(Question),
}

/// A query that was sent.
struct Question {
    /// How many statements it has.
    statements: usize,
    /// What has been answered of it.
    outcomes: Vec<Outcome>,
}

impl Question {
    /// Whether all statements are answered, up to the first that failed.
    fn is_answered(&self) -> bool {
        self.outcomes.len() == self.statements
            || matches!(self.outcomes.last(), Some(Outcome::Failed(_)))
    }
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
            left: MOST,
            of_table: false,
        })
    }

    /// The connection itself, for what it knows.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Which descriptor to poll, and for what.
    pub fn wants(&self) -> Option<(BorrowedFd<'_>, Interest)> {
        self.connection.wants()
    }

    /// Whether a query was sent that is not answered yet.
    pub fn is_asking(&self) -> bool {
        matches!(self.stage, Stage::Asking(_))
    }

    /// Lets the answer to the next query be as long as a table of the server's. libpq may take its time over it, so only
    /// for when nothing is held.
    pub fn allow_table(&mut self) {
        self.of_table = true;
    }

    /// Whether the answer that comes next may be that long.
    pub fn allows_table(&self) -> bool {
        self.of_table
    }

    /// Sends a query; only after the last one was answered.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn ask(&mut self, sql: &CStr) -> Result<(), Error> {
        self.connection.send(sql)?;
        self.stage = Stage::Asking(Question {
            statements: statements(sql),
            outcomes: Vec::new(),
        });
        Ok(())
    }

    /// Does what can be done without waiting, and not more than what has arrived by now makes necessary, so that
    /// whoever calls it gets to look at signals and deadlines. All that libpq has is dealt with: nothing is left to be
    /// done before the descriptor is ready again.
    ///
    /// # Errors
    /// The connection could not be made, or is closed; or what the server sends is no answer to what it was asked. Then the
    /// session is of no use any more.
    pub fn step(&mut self) -> Result<Option<Event>, Error> {
        self.bound()?;
        if let Stage::Connecting = self.stage {
            return Ok(match self.connection.connect()? {
                Progress::Pending => None,
                Progress::Ready => {
                    self.connection.forget_notifications();
                    self.stage = Stage::Idle;
                    Some(Event::Connected)
                }
            });
        }
        let taken = self.connection.advance();
        let answered = self.take_outcomes()?;
        self.connection.forget_notifications();
        if let Some(error) = self.connection.take_complaint() {
            return Err(error);
        }
        if let Some(outcomes) = answered {
            return Ok(Some(Event::Answered(outcomes)));
        }
        if self.connection.is_bad() {
            return Err(self.last_words(taken));
        }
        taken.map(|()| None)
    }

    /// Sees to it that a server does not send without end: libpq would take in and keep all of it, and be deaf meanwhile.
    fn bound(&mut self) -> Result<(), Error> {
        if self.of_table {
            return match sys::heap() {
                ..TABLE => Ok(()),
                _ => Err(Error::new("the server's answer is too long")),
            };
        }
        let arrived = self.connection.socket().map_or(0, sys::unread);
        match self.left.checked_sub(arrived) {
            Some(left) => self.left = left,
            None => {
                return Err(Error::new(
                    "the server sends far more than it was asked for",
                ));
            }
        }
        Ok(())
    }

    /// Takes what has been answered. Also where nothing was asked: it has libpq take in what the server says unasked.
    /// Returns the outcomes when they are complete.
    fn take_outcomes(&mut self) -> Result<Option<Vec<Outcome>>, Error> {
        while !self.connection.is_busy() {
            let Stage::Asking(question) = &mut self.stage else {
                break;
            };
            match self.connection.next_outcome()? {
                // libpq's own: there is no sense in what comes, or nothing comes any more.
                Some(Outcome::Failed(error)) if error.sqlstate.is_none() => {
                    return Err(self.last_words(Err(error)));
                }
                Some(outcome) if question.outcomes.len() < question.statements => {
                    question.outcomes.push(outcome);
                }
                // A server may end the session when all is answered.
                Some(Outcome::Failed(error)) => return Err(self.last_words(Err(error))),
                Some(Outcome::Done { .. }) => {
                    return Err(Error::new("the server answers more than it was asked"));
                }
                None if self.connection.is_bad() => break,
                None if !question.is_answered() => {
                    return Err(Error::new("the server answers less than it was asked"));
                }
                None => {
                    let outcomes = std::mem::take(&mut question.outcomes);
                    self.stage = Stage::Idle;
                    self.left = MOST.min(self.left + BACK);
                    self.of_table = false;
                    // What has come behind the answer is not the answer to the next question.
                    self.connection.is_busy();
                    return Ok(Some(outcomes));
                }
            }
        }
        Ok(None)
    }

    /// Why the connection is closed. A server that ends a session says so, in place of an answer or unasked,
    /// before it closes the connection: worth more than that it was closed.
    fn last_words(&mut self, closed: Result<(), Error>) -> Error {
        let answer = match &mut self.stage {
            Stage::Asking(question) => {
                let mut outcomes = question.outcomes.drain(..);
                outcomes.find_map(|outcome| match outcome {
                    Outcome::Failed(error) if error.sqlstate.is_some() => Some(error),
                    _ => None,
                })
            }
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

/// How many statements a query of ours has. It has no quotes but those around texts, and no comments.
pub fn statements(sql: &CStr) -> usize {
    let mut quoted = false;
    let statements = sql.to_bytes().split(|byte| {
        quoted ^= *byte == b'\'';
        *byte == b';' && !quoted
    });
    // One that is empty has an outcome if it is all there is.
    let count = statements.filter(|statement| !statement.trim_ascii().is_empty());
    count.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_counted_outside_of_texts() {
        for (sql, count) in [
            (c";", 1),
            (c"rollback", 1),
            (c"begin; select 1; select '1'", 3),
            (c"select 'a;b', 'it''s;', E'\\\\'; ", 1),
            (c"do 'begin x; y(''z;''); end'; select 2", 2),
        ] {
            assert_eq!(statements(sql), count, "{sql:?}");
        }
    }
}
