//! What is asked on the session while the command runs, with the query that reads its answer.

use std::ffi::CStr;
use std::time::Duration;

use super::reason::loss;
use super::state::{Answer, Event, Question, Retake};
use crate::lock::{self, Lock, Query, Retaken, Unanswered, Verdict};
use crate::pq::{Error, Outcome};
use crate::server::dialect::Dialect;

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
        dialect: &dyn Dialect,
        backend: i32,
        name: Option<&str>,
    ) -> Self {
        match question {
            // Every question is a sign of life; with nothing to ask an empty one will do.
            Question::Beat => Self::Sign(Query::sign_of_life()),
            Question::Rename => {
                let rename = name.and_then(|name| lock.rename_query(dialect, name).ok());
                Self::Sign(rename.unwrap_or_else(Query::sign_of_life))
            }
            Question::Retake => Self::Retake(lock.retake_query(dialect)),
            Question::Age => Self::Age(lock::lost_query(dialect)),
            Question::Holder => Self::Holder(lock.holder_query(backend)),
            Question::Evict => Self::Retake(lock.evict_query(dialect, backend)),
            Question::Lift => Self::Sign(lock.lift_query(dialect)),
            Question::Check => Self::Check(lock.check_query(dialect)),
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

    /// What the answer means. One by which the server refuses what it cannot refuse is the end of the session, as any
    /// answer to a sign of life that is none.
    pub fn read(&self, outcomes: &[Outcome]) -> Event {
        let answer = match self {
            Self::Sign(query) => query.read(outcomes).map(|()| Answer::Alive),
            Self::Age(query) => match query.read(outcomes) {
                Err(Unanswered::Senseless(_)) => Ok(Answer::Age(Duration::MAX)),
                age => age.map(Answer::Age),
            },
            Self::Retake(query) => Ok(Answer::Retake(match query.read(outcomes) {
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
            })),
            Self::Holder(query) => Ok(Answer::Holder(query.read(outcomes).ok().flatten())),
            Self::Check(query) => Ok(Answer::Check(matches!(
                query.read(outcomes),
                Ok(Verdict::Held(..))
            ))),
        };
        match answer {
            Ok(answer) => Event::Answered(answer),
            Err(unanswered) => {
                let error = Error::from(unanswered);
                Event::SessionLost(loss(&error), error.message)
            }
        }
    }
}
