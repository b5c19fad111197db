//! One question and its answer on a session, and what there is to do with a question whose answer is not waited for.

use std::ffi::CStr;
use std::io;

use super::host_error;
use super::state::{Age, Answer, Event, Loss, Question, Refusal, Verdict};
use crate::cli::config::Config;
use crate::guardian::{Guardian, LONG_WAY};
use crate::lease::Lease;
use crate::lock::holders::{self, Holders, Row};
use crate::lock::{self, HoldOff, Lock, LockRequest, Query, Unanswered};
use crate::moment::Moment;
use crate::pq::{Error, Outcome};
use crate::server::retry;
use crate::server::session::{self, Session};
use crate::server::session_settings::{LockScope, SessionSettings};
use crate::server::wait::{self, Interrupt, next_event};
use crate::status;
use crate::sys::{SharedState, Signals};

/// A question as it is put to the server, which knows what its answer means.
enum Asked {
    /// For the lock, to be bound to this.
    Verdict(Query<lock::Verdict>, LockScope),
    Age(Query<HoldOff>),
    Holders(Query<Holders>),
    Token(Query<u64>),
    Listing(Query<Holders>),
    /// For the end of a transaction.
    Rollback,
    /// For a sign of life.
    Renew(Query<()>),
}

impl Asked {
    fn sql(&self) -> &CStr {
        match self {
            Self::Verdict(query, _) => query.sql(),
            Self::Age(query) => query.sql(),
            Self::Holders(query) | Self::Listing(query) => query.sql(),
            Self::Token(query) => query.sql(),
            Self::Rollback => c"rollback",
            Self::Renew(query) => query.sql(),
        }
    }
}

/// The conversation with the server at hand.
pub struct Exchange<'a> {
    config: &'a Config,
    signals: &'a Signals,
    /// What is wanted; where the server refuses settings that can be done without, without them from then on.
    pub request: LockRequest,
    /// What a guardian looks at.
    pub shared: SharedState,
    /// Bound to the session, from the first question on that may bring the lock.
    pub guardian: Option<Guardian>,
    /// The session that is to scope the lock.
    session: Option<Session>,
    /// The one beside it, for a fencing token.
    beside: Option<Session>,
    /// The last question.
    asked: Option<Asked>,
    /// The lock as it was last granted.
    pub lock: Option<Lock>,
    /// The last answer to [`Question::Listing`].
    pub listing: Vec<Row>,
}

impl<'a> Exchange<'a> {
    /// No conversation yet.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(config: &'a Config, signals: &'a Signals) -> io::Result<Self> {
        Ok(Self {
            config,
            signals,
            request: LockRequest {
                name: config.lock.clone(),
                shared: config.shared,
                slots: config.slots,
                settings: SessionSettings::new(config.terms.map(|terms| terms.ttl())),
                fence: config.fence,
            },
            shared: SharedState::new()?,
            guardian: None,
            session: None,
            beside: None,
            asked: None,
            lock: None,
            listing: Vec::new(),
        })
    }

    /// Goes on on this session. A guardian is bound to one connection.
    pub fn begin(&mut self, session: Session) {
        self.guardian = None;
        self.session = Some(session);
    }

    /// The next question goes to this one.
    pub fn begin_beside(&mut self, session: Session) {
        self.beside = Some(session);
    }

    /// Closes the session.
    pub fn close(&mut self) {
        self.session = None;
    }

    /// Gives the session away.
    pub fn take_session(&mut self) -> Option<Session> {
        self.session.take()
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, question: Question, asked: Moment, answer_by: Option<Moment>) -> Event {
        let wording = match self.wording(question) {
            Ok(wording) => wording,
            Err(error) => return Event::Unsaid(error.message),
        };
        if question.is_guarded() {
            let terms = self.config.terms.filter(|_| self.config.kill_on_loss);
            let lease = terms.map(|terms| Lease::new(terms, asked));
            self.shared.set_deadline(lease.map(|lease| lease.kill_at()));
        }
        let signals = self.signals;
        let session = match self.session() {
            Ok(session) => session,
            Err(error) => return lost(&error),
        };
        if matches!(question, Question::Holders | Question::Listing) {
            session.allow_table();
        }
        if let Err(error) = session.ask(wording.sql()) {
            return lost(&error);
        }
        self.asked = Some(wording);
        if question.is_guarded()
            && let Err(error) = self.guard()
        {
            return Event::Unguarded(error.to_string());
        }
        loop {
            let session = match self.session() {
                Ok(session) => session,
                Err(error) => return lost(&error),
            };
            match next_event(session, signals, answer_by) {
                Ok(session::Event::Answered(outcomes)) => {
                    let event = self.read(&outcomes);
                    self.beside = None;
                    return event;
                }
                Ok(session::Event::Connected) => {}
                Err(Interrupt::Signal(signal)) => return Event::Signal(signal),
                Err(Interrupt::Late) => return Event::Late,
                Err(Interrupt::Failed(error)) => {
                    self.beside = None;
                    return lost(&error);
                }
            }
        }
    }

    /// Starts a guardian if there is none. Made while the server is busy, it costs no time.
    fn guard(&mut self) -> io::Result<()> {
        if !self.guardian.as_ref().is_some_and(Guardian::is_running) {
            let session = self.session.as_ref();
            let socket = session.and_then(|session| session.connection().socket());
            self.guardian = Some(Guardian::spawn(&self.shared, socket)?);
        }
        Ok(())
    }

    /// Waits until the guardian is there, or starts another.
    ///
    /// # Errors
    /// The system does not let one get there.
    pub fn settle_guardian(&mut self) -> io::Result<()> {
        if self
            .guardian
            .as_mut()
            .is_some_and(|guardian| guardian.settle(LONG_WAY).is_ok())
        {
            return Ok(());
        }
        // It may have been killed on its way.
        let session = self.session.as_ref();
        let socket = session.and_then(|session| session.connection().socket());
        let mut guardian = Guardian::spawn(&self.shared, socket)?;
        guardian.settle(LONG_WAY)?;
        self.guardian = Some(guardian);
        Ok(())
    }

    /// The session that the last question is for.
    fn session(&mut self) -> Result<&mut Session, Error> {
        let session = self.beside.as_mut().or(self.session.as_mut());
        session.ok_or_else(|| Error::new("there is no session"))
    }

    /// Watches a session on which nothing is asked.
    pub fn watch(&mut self, until: Moment) -> Event {
        let signals = self.signals;
        let session = match self.session() {
            Ok(session) => session,
            Err(error) => return lost(&error),
        };
        match next_event(session, signals, Some(until)) {
            Ok(session::Event::Answered(_) | session::Event::Connected) => Event::Unasked,
            Err(Interrupt::Late) => Event::Passed,
            Err(Interrupt::Signal(signal)) => Event::Signal(signal),
            Err(Interrupt::Failed(error)) => lost(&error),
        }
    }

    /// Has the server leave off what it was asked.
    pub fn cancel(&mut self) -> Event {
        if let Ok(session) = self.session() {
            wait::cancel(session);
        }
        self.beside = None;
        Event::Finished
    }

    /// Takes the question back.
    pub fn withdraw(&mut self) -> Event {
        let signals = self.signals;
        let outcomes = match self.session() {
            Ok(session) => wait::cancel_and_drain(session, signals),
            Err(_) => None,
        };
        let answered = outcomes.is_some();
        let mut granted = false;
        if let Some(outcomes) = outcomes {
            let event = self.read(&outcomes);
            granted = matches!(event, Event::Answered(Answer::Verdict(Verdict::Held(_))));
        }
        Event::Withdrawn { answered, granted }
    }

    /// Ends the transaction, without more ado.
    pub fn roll_back(&mut self) -> Event {
        let signals = self.signals;
        if let Ok(session) = self.session() {
            wait::query_at_exit(session, c"rollback", signals);
        }
        Event::Finished
    }

    /// Gives the lock up that was granted.
    pub fn release(&mut self) -> Event {
        self.beside = None;
        if let (Some(session), Some(lock)) = (&mut self.session, self.lock) {
            lock::release(session, lock, self.signals, || ());
        }
        Event::Finished
    }

    /// How a question is put to the server.
    fn wording(&self, question: Question) -> Result<Asked, Error> {
        let session = self.beside.as_ref().or(self.session.as_ref());
        let Some(session) = session else {
            return Err(Error::new("there is no session"));
        };
        let connection = session.connection();
        let request = &self.request;
        Ok(match question {
            Question::Try {
                scope,
                check,
                waits,
                waited,
            } => {
                let query = request.try_query(connection, scope, check, waits, waited)?;
                Asked::Verdict(query, scope)
            }
            Question::Wait {
                milliseconds,
                first,
            } => {
                let query = request.wait_query(connection, milliseconds, first)?;
                Asked::Verdict(query, LockScope::Session)
            }
            Question::Rollback => Asked::Rollback,
            Question::Renew => Asked::Renew(Query::sign_of_life()),
            Question::Age { scope } => Asked::Age(request.age_query(connection, scope)?),
            Question::Holders => Asked::Holders(holders::query(connection, Some(request))?),
            Question::Token => Asked::Token(LockRequest::token_query()),
            Question::Listing => {
                let request = self.config.names_lock.then_some(request);
                Asked::Listing(holders::query(connection, request)?)
            }
        })
    }

    /// What the outcomes of the last question mean.
    fn read(&mut self, outcomes: &[Outcome]) -> Event {
        let Some(asked) = self.asked.take() else {
            return Event::Unasked;
        };
        Event::Answered(match asked {
            Asked::Verdict(query, scope) => match query.read(outcomes) {
                Ok(verdict) => Answer::Verdict(self.verdict(verdict, scope)),
                Err(Unanswered::Refused(error)) => return self.refused(&error),
                Err(Unanswered::Senseless(why)) => Answer::Verdict(Verdict::Lie(why.to_owned())),
            },
            Asked::Age(query) => match query.read(outcomes) {
                Ok(HoldOff { time, is_held }) => Answer::Age(Some(Age {
                    left: time,
                    is_held,
                })),
                Err(Unanswered::Refused(error)) => return self.refused(&error),
                Err(Unanswered::Senseless(_)) => Answer::Age(None),
            },
            Asked::Holders(query) => match query.read(outcomes) {
                Ok(Holders::Rows(rows)) => Answer::Holders(status::holders(&rows)),
                // It is only a courtesy.
                Ok(Holders::OfStandby) | Err(_) => Answer::Holders(Vec::new()),
            },
            Asked::Token(query) => match query.read(outcomes) {
                Ok(token) => Answer::Token(Some(token)),
                Err(Unanswered::Refused(error)) => return refused(&error),
                Err(Unanswered::Senseless(_)) => Answer::Token(None),
            },
            Asked::Listing(query) => match query.read(outcomes) {
                Ok(Holders::Rows(rows)) => {
                    self.listing = rows;
                    Answer::Listing {
                        is_standby: Some(false),
                    }
                }
                Ok(Holders::OfStandby) => Answer::Listing {
                    is_standby: Some(true),
                },
                Err(Unanswered::Refused(error)) => return refused(&error),
                Err(Unanswered::Senseless(_)) => Answer::Listing { is_standby: None },
            },
            Asked::Rollback => Answer::Any,
            Asked::Renew(query) => match query.read(outcomes) {
                Ok(()) => Answer::Any,
                Err(unanswered) => return refused(&unanswered.into()),
            },
        })
    }

    /// The server's word on a call for the lock.
    fn verdict(&mut self, verdict: lock::Verdict, scope: LockScope) -> Verdict {
        match verdict {
            lock::Verdict::Held(key, token) => {
                self.lock = Some(self.request.lock(key, scope));
                Verdict::Held(token)
            }
            lock::Verdict::Busy => Verdict::Busy,
            lock::Verdict::QueueHead => Verdict::QueueHead,
            lock::Verdict::RecentlyRestarted => Verdict::RecentlyRestarted,
            lock::Verdict::Pooled => Verdict::Pooled,
            lock::Verdict::Standby => Verdict::Standby,
        }
    }

    /// An error for an answer, which may be about a setting that can be done without.
    fn refused(&mut self, error: &Error) -> Event {
        let can_do_without = self.request.settings.refuse(error);
        Event::Refused(Refusal {
            error: host_error(error),
            can_do_without,
        })
    }
}

/// An error for an answer to what makes no settings.
fn refused(error: &Error) -> Event {
    Event::Refused(Refusal {
        error: host_error(error),
        can_do_without: false,
    })
}

fn lost(error: &Error) -> Event {
    Event::Lost(Loss {
        error: host_error(error),
        is_statement_mode: retry::is_statement_mode(error),
    })
}
