//! What is asked on the session while the command runs, with the query that reads its answer.

use std::ffi::CStr;
use std::time::Duration;

use super::state::{Answer, Question, Retake};
use crate::lock::{self, Lock, Query, Retaken, Unanswered, Verdict};
use crate::pq::{Connection, Error, Outcome};
use crate::server::session_name;

/// A question that was sent, to be kept until its answer comes.
pub enum Asked {
    /// For a sign of life.
    Sign(Query<()>),
    /// For the lock again.
    Retake(Query<Retaken>),
    /// For the time since the server lost all its sessions.
    Age(Query<Duration>),
    /// For the age of the backend that may hold the lock.
    Holder(Query<Option<Duration>>),
    /// Whether the lock is held.
    Check(Query<Verdict>),
}

impl Asked {
    /// The query for a question about this lock, which was held by this backend last. `name` is what the session is to be
    /// called.
    pub fn new(
        question: Question,
        lock: Lock,
        connection: &Connection,
        backend: i32,
        name: Option<&str>,
    ) -> Self {
        match question {
            // Every question is a sign of life; with nothing to ask an empty one will do.
            Question::Beat => Self::Sign(Query::sign_of_life()),
            Question::Rename => {
                let name = name.filter(|_| session_name::is_label(connection));
                let rename = name.and_then(|name| lock.rename_query(connection, name).ok());
                Self::Sign(rename.unwrap_or_else(Query::sign_of_life))
            }
            Question::Retake => Self::Retake(lock.retake_query(connection)),
            Question::Age => Self::Age(lock::lost_query(connection)),
            Question::Holder => Self::Holder(lock.holder_query(backend)),
            Question::Evict => Self::Retake(lock.evict_query(connection, backend)),
            Question::Lift => Self::Sign(lock.lift_query(connection)),
            Question::Check => Self::Check(lock.check_query(connection)),
        }
    }

    /// What to send.
    pub fn sql(&self) -> &CStr {
        match self {
            Self::Sign(query) => query.sql(),
            Self::Retake(query) => query.sql(),
            Self::Age(query) => query.sql(),
            Self::Holder(query) => query.sql(),
            Self::Check(query) => query.sql(),
        }
    }

    /// What the answer means.
    ///
    /// # Errors
    /// The server refused what it cannot refuse: the session is of no use any more.
    pub fn read(&self, outcomes: &[Outcome]) -> Result<Answer, Error> {
        Ok(match self {
            Self::Sign(query) => match query.read(outcomes) {
                Ok(()) => Answer::Alive,
                Err(unanswered) => return Err(unanswered.into()),
            },
            Self::Age(query) => match query.read(outcomes) {
                Ok(age) => Answer::Age(age),
                Err(Unanswered::Refused(error)) => return Err(error),
                Err(Unanswered::Senseless(_)) => Answer::Age(Duration::MAX),
            },
            Self::Retake(query) => Answer::Retake(match query.read(outcomes) {
                Ok(Retaken { age, verdict }) => match verdict {
                    Verdict::Held(..) => Retake::Held(age),
                    Verdict::Busy | Verdict::QueueHead => Retake::Busy,
                    // A standby, say.
                    Verdict::RecentlyRestarted | Verdict::Pooled | Verdict::Standby => {
                        Retake::NotReady
                    }
                },
                // A server that is shutting down, say.
                Err(_) => Retake::NotReady,
            }),
            Self::Holder(query) => Answer::Holder(query.read(outcomes).ok().flatten()),
            Self::Check(query) => {
                Answer::Check(matches!(query.read(outcomes), Ok(Verdict::Held(..))))
            }
        })
    }
}
