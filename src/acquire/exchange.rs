//! One question and its answer on a session, and what there is to do with a question whose answer is not waited for.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;

use super::host_error;
use super::state::{Age, Answer, Event, Loss, Question, Refusal, Verdict};
use crate::cli::config::Config;
use crate::guardian::Guardian;
use crate::lease::{Lease, Moment};
use crate::lock::{self, Claim, Lock};
use crate::pq::{Error, Outcome};
use crate::server::retry;
use crate::server::session::{self, Session};
use crate::server::session_settings::{Hold, Settings};
use crate::server::wait::{self, Interrupt, drive};
use crate::status;
use crate::sys::{Signals, Ward};

/// What the outcomes of a question mean.
type Reading = fn(&mut Exchange, Vec<Outcome>) -> Event;

/// The conversation with the server at hand.
pub struct Exchange<'a> {
    config: &'a Config,
    signals: &'a Signals,
    /// What is wanted; where the server refuses settings that can be done without, without them from then on.
    pub claim: Claim,
    /// What a guardian looks at.
    pub ward: Ward,
    /// Bound to the session, from the first question on that may bring the lock.
    pub guardian: Option<Guardian>,
    /// The session that is to hold the lock.
    session: Option<Session>,
    /// The one beside it, for a fencing token.
    beside: Option<Session>,
    /// The last question, and what its outcomes mean.
    question: Option<(Question, Reading)>,
    /// The lock as it was last granted.
    pub lock: Option<Lock>,
    /// The last answer to [`Question::Listing`].
    pub listing: Vec<Outcome>,
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
            claim: Claim {
                name: config.lock.clone(),
                shared: config.shared,
                slots: config.slots,
                settings: Settings::new(config.terms.map(|terms| terms.ttl())),
                fence: config.fence,
            },
            ward: Ward::new()?,
            guardian: None,
            session: None,
            beside: None,
            question: None,
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
        let (sql, reading) = match self.wording(question) {
            Ok(wording) => wording,
            Err(error) => return Event::Unsaid(error.message),
        };
        self.question = Some((question, reading));
        if question.is_guarded() {
            let terms = self.config.terms.filter(|_| self.config.kill_on_loss);
            let lease = terms.map(|terms| Lease::new(terms, asked));
            self.ward.set_deadline(lease.map(|lease| lease.kill_at()));
        }
        let signals = self.signals;
        let session = match self.session() {
            Ok(session) => session,
            Err(error) => return lost(&error),
        };
        if matches!(question, Question::Holders | Question::Listing) {
            session.allow_table();
        }
        if let Err(error) = session.ask(&sql) {
            return lost(&error);
        }
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
            match drive(session, signals, answer_by) {
                Ok(session::Event::Answered(outcomes)) => {
                    let event = reading(self, outcomes);
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

    /// Posts a guardian if there is none. Made while the server is busy, it costs no time.
    fn guard(&mut self) -> io::Result<()> {
        if !self.guardian.as_ref().is_some_and(Guardian::is_on_post) {
            let session = self.session.as_ref();
            let wants = session.and_then(Session::wants);
            let socket = wants.map(|(descriptor, _)| descriptor);
            self.guardian = Some(Guardian::post(&self.ward, socket)?);
        }
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
        match drive(session, signals, Some(until)) {
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
            Ok(session) => wait::take_back(session, signals),
            Err(_) => None,
        };
        let answered = outcomes.is_some();
        let mut granted = false;
        if let (Some(outcomes), Some((_, reading))) = (outcomes, self.question) {
            let event = reading(self, outcomes);
            granted = matches!(event, Event::Answered(Answer::Verdict(Verdict::Held(_))));
        }
        Event::Withdrawn { answered, granted }
    }

    /// Ends the transaction, without more ado.
    pub fn roll_back(&mut self) -> Event {
        let signals = self.signals;
        if let Ok(session) = self.session() {
            wait::last_word(session, c"rollback", signals);
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

    /// What a question is in SQL, and what its outcomes mean.
    fn wording(&mut self, question: Question) -> Result<(Cow<'static, CStr>, Reading), Error> {
        let session = self.beside.as_ref().or(self.session.as_ref());
        let Some(session) = session else {
            return Err(Error::new("there is no session"));
        };
        let connection = session.connection();
        let claim = &self.claim;
        Ok(match question {
            Question::Try {
                hold,
                caution,
                waits,
                waited,
            } => {
                let sql = claim.try_sql(connection, hold, caution, waits, waited)?;
                let reading: Reading = match hold {
                    Hold::Session => |this, outcomes| this.verdict(&outcomes, Hold::Session),
                    Hold::Transaction => {
                        |this, outcomes| this.verdict(&outcomes, Hold::Transaction)
                    }
                };
                (sql.into(), reading)
            }
            Question::Wait {
                milliseconds,
                first,
            } => (
                claim.wait_sql(connection, milliseconds, first)?.into(),
                |this, outcomes| this.verdict(&outcomes, Hold::Session),
            ),
            Question::Rollback => (c"rollback".into(), |_, _| Event::Answered(Answer::Any)),
            Question::Renew => (c";".into(), |_, _| Event::Answered(Answer::Any)),
            Question::Age { hold } => (
                claim.age_sql(connection, hold)?.into(),
                |this, outcomes| match outcomes.last() {
                    Some(Outcome::Failed(error)) => this.refused(error),
                    Some(Outcome::Done { .. }) | None => {
                        let age = lock::hold_off(&outcomes).map(|left| Age {
                            left,
                            is_held: lock::is_held(&outcomes),
                        });
                        Event::Answered(Answer::Age(age))
                    }
                },
            ),
            Question::Holders => (
                status::sql(connection, Some(claim))?.into(),
                |_, outcomes| Event::Answered(Answer::Holders(status::holders(&outcomes))),
            ),
            Question::Token => (Claim::token_sql().into(), |_, outcomes| {
                match outcomes.last() {
                    Some(Outcome::Failed(error)) => refused(error),
                    Some(Outcome::Done { .. }) | None => {
                        Event::Answered(Answer::Token(lock::token(&outcomes)))
                    }
                }
            }),
            Question::Listing => (
                status::sql(connection, self.config.names_lock.then_some(claim))?.into(),
                |this, outcomes| match outcomes.last() {
                    Some(Outcome::Failed(error)) => refused(error),
                    Some(Outcome::Done { .. }) | None => {
                        let is_standby = status::is_standby(&outcomes);
                        this.listing = outcomes;
                        Event::Answered(Answer::Listing { is_standby })
                    }
                },
            ),
        })
    }

    /// What the outcomes of a call for the lock mean.
    fn verdict(&mut self, outcomes: &[Outcome], hold: Hold) -> Event {
        Event::Answered(Answer::Verdict(match self.claim.verdict(outcomes) {
            lock::Verdict::Held(key, token) => {
                self.lock = Some(self.claim.lock(key, hold));
                Verdict::Held(token)
            }
            lock::Verdict::Busy => Verdict::Busy,
            lock::Verdict::First => Verdict::First,
            lock::Verdict::Young => Verdict::Young,
            lock::Verdict::Pooled => Verdict::Pooled,
            lock::Verdict::Standby => Verdict::Standby,
            lock::Verdict::Refused(error) => match outcomes.last() {
                Some(Outcome::Failed(_)) => return self.refused(&error),
                Some(Outcome::Done { .. }) | None => Verdict::Lie(error.to_string()),
            },
        }))
    }

    /// An error for an answer, which may be about a setting that can be done without.
    fn refused(&mut self, error: &Error) -> Event {
        let can_do_without = self.claim.settings.refuse(error);
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
