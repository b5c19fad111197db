//! One question and its answer on a session, and what there is to do with a question whose answer is not waited for.

use std::io;

use super::asked::{Asked, Reading, lost, unconfirmed};
use super::state::{Answer, Event, Question, Verdict};
use crate::cli::config::Config;
use crate::guardian::{Guardian, LONG_WAY};
use crate::lease::Lease;
use crate::lock::holders::Row;
use crate::lock::{self, Lock, LockRequest};
use crate::moment::Moment;
use crate::pq::{Error, Outcome};
use crate::server::session::{self, Session};
use crate::server::session_settings::SessionSettings;
use crate::server::wait::{self, Interrupt, next_event};
use crate::sys::{SharedState, Signals};
use crate::text;

/// What is wrong where there is nobody to ask.
const NO_SESSION: &str = "there is no session";

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
                sync: config.sync,
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
        let (signals, config) = (self.signals, self.config);
        let session = match self.session() {
            Ok(session) => session,
            Err(error) => return lost(&error),
        };
        // What the server has remarked before is not about this.
        session.connection().take_remark();
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
            return Event::Unguarded(text::reason(&error));
        }
        loop {
            let session = match self.session() {
                Ok(session) => session,
                Err(error) => return lost(&error),
            };
            match next_event(session, signals, answer_by) {
                Ok(session::Event::Answered(outcomes)) => {
                    let remark = session.connection().take_remark();
                    let event = match remark.filter(|_| question.is_confirmed() && config.sync) {
                        Some(remark) => unconfirmed(&remark),
                        None => self.read(&outcomes),
                    };
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
        session.ok_or_else(|| Error::new(NO_SESSION))
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

    /// A question in the words of the server that it is for.
    fn wording(&mut self, question: Question) -> Result<Asked, Error> {
        let session = self.beside.as_ref().or(self.session.as_ref());
        let session = session.ok_or_else(|| Error::new(NO_SESSION))?;
        let names_lock = self.config.names_lock;
        Asked::new(question, &self.request, names_lock, session.connection())
    }

    /// What the outcomes of the last question mean.
    fn read(&mut self, outcomes: &[Outcome]) -> Event {
        let Some(asked) = self.asked.take() else {
            return Event::Unasked;
        };
        let Reading {
            event,
            lock,
            listing,
        } = asked.read(outcomes, &mut self.request);
        self.lock = lock.or(self.lock);
        self.listing = listing.unwrap_or_default();
        event
    }
}
