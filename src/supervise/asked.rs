//! What is asked on the session while the command runs, with the query that reads its answer.

use std::ffi::CStr;
use std::time::Duration;

use super::reason::loss;
use super::state::{Answer, Event, Question, Retake};
use crate::lock::{History, Lock, Past, Query, Retaken, Unanswered, Verdict};
use crate::pq::{Error, Outcome};
use crate::server::dialect::Dialect;

/// A question that was sent, to be kept until its answer comes.
pub enum Asked {
    /// For a sign of life.
    Sign(Query<()>),
    /// For the lock again.
    Retake(Query<Retaken>),
    /// For where the server stands.
    History(Query<Option<History>>),
    /// For its past.
    Past(Query<Past>),
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
            Question::Beat => Self::Sign(lock.sign_query()),
            Question::Rename => {
                let rename = name.and_then(|name| lock.rename_query(dialect, name).ok());
                Self::Sign(rename.unwrap_or_else(|| lock.sign_query()))
            }
            Question::Retake => Self::Retake(lock.retake_query(dialect)),
            Question::History => Self::History(lock.history_query()),
            Question::Past => Self::Past(lock.past_query(dialect)),
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
            Self::History(query) => query.sql(),
            Self::Past(query) => query.sql(),
            Self::Holder(query) => query.sql(),
            Self::Check(query) => query.sql(),
        }
    }

    /// What the answer means, about this lock, which does without what is refused from then on where it can. One by which the
    /// server refuses what it cannot refuse is the end of the session, as any answer to a sign of life that is none.
    pub fn read(&self, outcomes: &[Outcome], lock: &mut Lock) -> Event {
        let mut note = |unanswered: &Unanswered| {
            if let Unanswered::Refused(error) = unanswered {
                lock.do_without(error);
            }
        };
        let answer = match self {
            Self::Sign(query) => query.read(outcomes).map(|()| Answer::Alive),
            // Not every role is told, and not by every server.
            Self::History(query) => {
                let history = query.read(outcomes).inspect_err(&mut note);
                Ok(Answer::History(history.ok().flatten()))
            }
            Self::Past(query) => match query.read(outcomes) {
                Err(Unanswered::Senseless(_)) => Ok(Answer::Past(Past::UNKNOWN)),
                past => past.map(Answer::Past),
            },
            Self::Retake(query) => Ok(Answer::Retake(
                match query.read(outcomes).inspect_err(&mut note) {
                    Ok(Retaken { past, verdict }) => match verdict {
                        Verdict::Held(..) => Retake::Held(past),
                        Verdict::Busy | Verdict::QueueHead => Retake::Busy(past),
                        Verdict::Standby => Retake::Standby,
                        Verdict::RecentlyRestarted
                        | Verdict::Pooled
                        | Verdict::Place(_)
                        | Verdict::Differs(_)
                        | Verdict::Doubtful => Retake::NotReady,
                    },
                    // A server that is shutting down, say.
                    Err(_) => Retake::NotReady,
                },
            )),
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
                Event::SessionLost(loss(&error, lock.is_confirmed()), error.message)
            }
        }
    }
}
