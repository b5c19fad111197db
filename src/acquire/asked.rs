//! A question to the server in its words, and what the answer means.

use std::ffi::CStr;

use super::state::{Age, Answer, Event, Glance, HostError, Loss, Question, Refusal, Verdict};
use crate::lock::holders::{self, Holders, Row};
use crate::lock::{self, HoldOff, Lock, LockRequest, Query, Unanswered};
use crate::pq::{Error, Outcome};
use crate::server::dialect::Dialect;
use crate::server::retry;
use crate::server::session_settings::{Dispensable, LockScope};
use crate::status;

/// A question as it is put to the server, which knows what its answer means.
pub enum Asked {
    /// For the lock, to be bound to this.
    Verdict(Query<lock::Verdict>, LockScope),
    /// Whether the lock could be had.
    Glance(Query<lock::Glance>),
    /// For the server's age.
    Age(Query<HoldOff>),
    /// For those who hold the lock.
    Holders(Query<Holders>),
    /// For a fencing token.
    Token(Query<u64>),
    /// The same, for people to look at.
    Listing(Query<Holders>),
    /// For the end of a transaction.
    Rollback,
    /// For a sign of life.
    Renew(Query<()>),
    /// For the standbys that the server waits for.
    Standbys(Query<String>),
}

/// What an answer has brought.
pub struct Reading {
    /// The event that it is.
    pub event: Event,
    /// The lock, where it was granted.
    pub lock: Option<Lock>,
    /// The rows, where they were asked for.
    pub listing: Option<Vec<Row>>,
}

impl From<Event> for Reading {
    fn from(event: Event) -> Self {
        Self {
            event,
            lock: None,
            listing: None,
        }
    }
}

impl Asked {
    /// A question of this request in the words of this server. `names_lock` tells whether a listing is of the lock alone.
    ///
    /// # Errors
    /// It cannot be said to this server.
    pub fn new(
        question: Question,
        request: &LockRequest,
        names_lock: bool,
        dialect: &dyn Dialect,
    ) -> Result<Self, Error> {
        Ok(match question {
            Question::Try {
                scope,
                check,
                waits,
                waited,
                exact,
            } => {
                let query = request.try_query(dialect, scope, check, waits, waited, exact)?;
                Self::Verdict(query, scope)
            }
            Question::Look { from } => {
                let query = request.look_query(dialect, from)?;
                Self::Verdict(query, LockScope::Session)
            }
            Question::Wait {
                milliseconds,
                first,
                place,
            } => {
                let query = request.wait_query(dialect, milliseconds, first, place)?;
                Self::Verdict(query, LockScope::Session)
            }
            Question::Glance => Self::Glance(request.glance_query(dialect)?),
            Question::Rollback => Self::Rollback,
            Question::Renew => Self::Renew(request.renew_query()),
            Question::Standbys => Self::Standbys(LockRequest::standbys_query()),
            Question::Age { scope } => Self::Age(request.age_query(dialect, scope)?),
            Question::Holders => Self::Holders(holders::query(dialect, Some(request))?),
            Question::Token => Self::Token(LockRequest::token_query()),
            Question::Listing => {
                Self::Listing(holders::query(dialect, names_lock.then_some(request))?)
            }
        })
    }

    /// What to send.
    pub fn sql(&self) -> &CStr {
        match self {
            Self::Verdict(query, _) => query.sql(),
            Self::Glance(query) => query.sql(),
            Self::Age(query) => query.sql(),
            Self::Holders(query) | Self::Listing(query) => query.sql(),
            Self::Token(query) => query.sql(),
            Self::Rollback => c"rollback",
            Self::Renew(query) => query.sql(),
            Self::Standbys(query) => query.sql(),
        }
    }

    /// What the outcomes mean. Where the server refuses what can be done without, the request does without it
    /// from then on.
    pub fn read(&self, outcomes: &[Outcome], request: &mut LockRequest) -> Reading {
        let mut reading = Reading::from(Event::Answered(Answer::Any));
        let answer = match self {
            Self::Verdict(query, scope) => match query.read(outcomes) {
                Ok(lock::Verdict::Held(key, token)) => {
                    reading.lock = Some(request.lock(key, *scope));
                    Answer::Verdict(Verdict::Held(token))
                }
                Ok(lock::Verdict::Busy) => Answer::Verdict(Verdict::Busy),
                Ok(lock::Verdict::QueueHead) => Answer::Verdict(Verdict::QueueHead),
                Ok(lock::Verdict::Place(place)) => Answer::Verdict(Verdict::Place(place)),
                Ok(lock::Verdict::RecentlyRestarted) => Answer::Verdict(Verdict::RecentlyRestarted),
                Ok(lock::Verdict::Pooled) => Answer::Verdict(Verdict::Pooled),
                Ok(lock::Verdict::Standby) => Answer::Verdict(Verdict::Standby),
                Ok(lock::Verdict::Differs(slots)) => Answer::Verdict(Verdict::Differs(slots)),
                Ok(lock::Verdict::Doubtful) => Answer::Verdict(Verdict::Doubtful),
                Err(Unanswered::Refused(error)) => return may_do_without(&error, request).into(),
                Err(Unanswered::Senseless(why)) => Answer::Verdict(Verdict::Lie(why.to_owned())),
            },
            Self::Glance(query) => match query.read(outcomes) {
                Ok(lock::Glance::Free) => Answer::Glance(Some(Glance::Free)),
                Ok(lock::Glance::Busy(pause)) => Answer::Glance(Some(Glance::Busy(pause))),
                Err(Unanswered::Refused(error)) => return refused(&error, None).into(),
                Err(Unanswered::Senseless(_)) => Answer::Glance(None),
            },
            Self::Age(query) => match query.read(outcomes) {
                Ok(HoldOff {
                    time,
                    is_held,
                    is_promotion,
                }) => Answer::Age(Some(Age {
                    left: time,
                    is_held,
                    is_promotion,
                })),
                Err(Unanswered::Refused(error)) => return may_do_without(&error, request).into(),
                Err(Unanswered::Senseless(_)) => Answer::Age(None),
            },
            Self::Holders(query) => match query.read(outcomes) {
                Ok(Holders::Rows(rows)) => Answer::Holders(status::holders(&rows)),
                // It is only a courtesy.
                Ok(Holders::OfStandby) | Err(_) => Answer::Holders(Vec::new()),
            },
            Self::Token(query) => match query.read(outcomes) {
                Ok(token) => Answer::Token(Some(token)),
                Err(Unanswered::Refused(error)) => return refused(&error, None).into(),
                Err(Unanswered::Senseless(_)) => Answer::Token(None),
            },
            Self::Listing(query) => match query.read(outcomes) {
                Ok(Holders::Rows(rows)) => {
                    reading.listing = Some(rows);
                    Answer::Listing {
                        is_standby: Some(false),
                    }
                }
                Ok(Holders::OfStandby) => Answer::Listing {
                    is_standby: Some(true),
                },
                Err(Unanswered::Refused(error)) => return refused(&error, None).into(),
                Err(Unanswered::Senseless(_)) => Answer::Listing { is_standby: None },
            },
            // It is only a courtesy.
            Self::Standbys(query) => Answer::Standbys(query.read(outcomes).ok()),
            Self::Rollback => Answer::Any,
            Self::Renew(query) => match query.read(outcomes) {
                Ok(()) => Answer::Any,
                Err(unanswered) => return refused(&unanswered.into(), None).into(),
            },
        };
        reading.event = Event::Answered(answer);
        reading
    }
}

/// An error for an answer, which may be about something that can be done without.
fn may_do_without(error: &Error, request: &mut LockRequest) -> Event {
    let can_do_without = request.settings.refuse(error);
    refused(error, can_do_without)
}

fn refused(error: &Error, can_do_without: Option<Dispensable>) -> Event {
    Event::Refused(Refusal {
        error: host_error(error),
        can_do_without,
    })
}

/// That replication has not confirmed what is asked, as the server remarks.
pub fn unconfirmed(remark: &Error) -> Event {
    refused(remark, None)
}

/// That the session is closed, for this reason.
pub fn lost(error: &Error) -> Event {
    Event::Lost(Loss {
        error: host_error(error),
        is_statement_mode: retry::is_statement_mode(error),
    })
}

/// That something failed at one host, in the words of the server, the pooler or libpq.
pub fn host_error(error: &Error) -> HostError {
    HostError {
        message: format!("{error}{}", advice(error)),
        again: retry::again(error),
    }
}

/// What to do about it, where libpq's words do not say.
fn advice(error: &Error) -> &'static str {
    if error.message.contains("no password supplied") {
        " (PGLOCK_PASS or a password file has it)"
    } else if error.sqlstate.as_deref() == Some("42501") && error.message.contains("plpgsql") {
        " (to wait for a lock takes it: grant usage on language plpgsql)"
    } else {
        ""
    }
}
