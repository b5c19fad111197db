//! The connection of a run, and the guardian that is bound to it: what is asked, what comes back, and the way back when it is lost.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Supervisor;
use super::asked::Asked;
use super::reason::{barrier, loss};
use super::reconnect::{self, Failure, Reconnect};
use super::state::{Answer, Barrier, Event, Loss, Question, Retake};
use crate::guardian::Guardian;
use crate::moment::Moment;
use crate::pq::{self, Conninfo, Outcome};
use crate::server::resolve::LookUp;
use crate::server::session::{self, Session};
use crate::server::session_name;
use crate::sys;
use crate::text;

/// What there is of a connection.
pub enum Wire {
    /// A session, with what is asked on it.
    Up(Session, Option<Asked>),
    /// A look-up of where to connect again, and by when that is to be done.
    LookingUp(LookUp, Moment),
    /// An attempt to connect again.
    Connecting(Reconnect),
    /// Nothing.
    None,
}

impl Wire {
    /// The socket of the session, if there is one.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Up(session, _) => session.connection().socket(),
            Self::LookingUp(..) | Self::Connecting(_) | Self::None => None,
        }
    }

    /// When something is to be done about it though nothing comes; an attempt to connect sees to its own time.
    pub fn deadline(&self) -> Option<Moment> {
        match self {
            Self::LookingUp(_, until) => Some(*until),
            Self::Up(..) | Self::Connecting(_) | Self::None => None,
        }
    }

    /// Whether that time has come.
    pub fn is_late(&self, now: Moment) -> bool {
        self.deadline().is_some_and(|until| until <= now)
    }
}

impl Supervisor<'_> {
    // The guardian

    /// Starts a guardian in place of one that was killed.
    pub(super) fn replace_guardian(&mut self) {
        self.log.error("the guardian was killed; starting another");
        self.guardian = None;
        if let Err(error) = self.spawn_guardian() {
            self.say_unguarded(&error);
        }
    }

    /// Starts a guardian over the connection there is, in place of the one there was. While there is an attempt to connect,
    /// and so a thread, nothing is forked: its end is followed by a guardian anyway.
    pub(super) fn spawn_guardian(&mut self) -> io::Result<()> {
        if let Wire::Connecting(_) = self.wire {
            return Ok(());
        }
        let started = Guardian::spawn_settled(&self.shared, self.wire.socket()).or_else(|error| {
            // There may be room for one process only.
            if error.kind() != io::ErrorKind::WouldBlock {
                self.say_unguarded(&error);
            }
            self.guardian = None;
            Guardian::spawn_settled(&self.shared, self.wire.socket())
        });
        self.guardian = Some(started?);
        self.is_unguarded_said = false;
        Ok(())
    }

    /// Says it once, for it is tried again and again.
    pub(super) fn say_unguarded(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_unguarded_said, true) {
            self.log.error(format_args!(
                "could not start a guardian: {}",
                text::reason(error)
            ));
        }
    }

    // The connection

    /// Begins to connect again, with a look-up where the place is a name.
    pub(super) fn connect(&mut self, place: u32, patience: Duration) -> Option<Event> {
        let now = sys::now();
        let until = now + patience;
        self.place = place;
        let (settings, ways) = self.places.way(place, now);
        if let Some(ways) = ways {
            return self.connect_to(&ways, until);
        }
        match LookUp::start(settings) {
            Ok(Some(look_up)) => {
                self.wire = Wire::LookingUp(look_up, until);
                None
            }
            Ok(None) => {
                let settings = settings.clone();
                self.connect_to(&[settings], until)
            }
            Err(error) => Some(Event::NotConnected(Barrier::Unreachable, error.message)),
        }
    }

    /// A look-up has ended, or is late.
    fn looked_up(&mut self, look_up: LookUp, until: Moment) -> Option<Event> {
        let now = sys::now();
        if until <= now {
            return Some(Event::NotConnected(
                Barrier::Silence,
                "no answer from the name server in time".to_owned(),
            ));
        }
        let (settings, _) = self.places.way(self.place, now);
        match look_up.finish(settings) {
            Ok(ways) => {
                self.places.found(self.place, &ways, now);
                self.connect_to(&ways, until)
            }
            Err(error) => Some(Event::NotConnected(Barrier::Unreachable, error.message)),
        }
    }

    fn connect_to(&mut self, ways: &[Conninfo], until: Moment) -> Option<Event> {
        let started = Reconnect::start(ways, until).or_else(|_| {
            // There may be room for one process or thread only; the guardian is bound to the old connection.
            self.guardian = None;
            Reconnect::start(ways, until)
        });
        match started {
            Ok(reconnect) => {
                self.wire = Wire::Connecting(reconnect);
                None
            }
            Err(error) => Some(Event::NotConnected(
                Barrier::Refused,
                format!("could not start a thread: {}", text::reason(&error)),
            )),
        }
    }

    /// Sends a question on the session.
    pub(super) fn ask(&mut self, question: Question) -> Option<Event> {
        let Wire::Up(session, asked) = &mut self.wire else {
            return Some(Event::SessionLost(Loss::Cut, "there is none".to_owned()));
        };
        let (lock, backend) = (self.lock, self.backend_pid);
        // A name of the user's choice stays.
        let name = self.name.as_deref().filter(|_| {
            question == Question::Rename && session_name::is_label(session.connection())
        });
        let query = Asked::new(question, lock, session.connection(), backend, name);
        // On another session than that which the command's process looks at, there is no answer for it to mistake.
        if session.connection().backend_pid() == backend {
            self.shared.set_asked();
        }
        let sent = session.ask(query.sql());
        *asked = Some(query);
        sent.err().map(|error| self.lost(&error))
    }

    /// Takes in what has arrived on the connection.
    pub(super) fn step_wire(&mut self) {
        let event = match std::mem::replace(&mut self.wire, Wire::None) {
            Wire::Up(mut session, mut asked) => {
                let step = session.step();
                let answered = match &step {
                    Ok(Some(session::Event::Answered(_))) => asked.take(),
                    Ok(Some(session::Event::Connected) | None) | Err(_) => None,
                };
                self.wire = Wire::Up(session, asked);
                match step {
                    Ok(Some(session::Event::Answered(outcomes))) => {
                        answered.map(|asked| self.answered(&asked, &outcomes))
                    }
                    Ok(Some(session::Event::Connected) | None) => None,
                    Err(error) => Some(self.lost(&error)),
                }
            }
            Wire::LookingUp(look_up, until) => self.looked_up(look_up, until),
            Wire::Connecting(reconnect) => Some(self.connected(reconnect.finish())),
            Wire::None => None,
        };
        if let Some(event) = event {
            self.feed(event);
        }
    }

    /// An attempt to connect again has ended.
    pub(super) fn connected(&mut self, result: Result<Session, Failure>) -> Event {
        match result {
            Ok(session) => {
                self.wire = Wire::Up(session, None);
                // The guardian first: from the moment that the lock is taken it must be bound to it.
                match self.spawn_guardian() {
                    Ok(()) => Event::Connected,
                    Err(error) => {
                        self.wire = Wire::None;
                        self.say_unguarded(&error);
                        Event::NotConnected(Barrier::Unguarded, text::reason(&error))
                    }
                }
            }
            Err(Failure::Late) => {
                Event::NotConnected(Barrier::Silence, "no answer in time".to_owned())
            }
            Err(Failure::Refused(error)) => Event::NotConnected(
                barrier(&error, reconnect::is_to_socket(self.places.home())),
                error.message,
            ),
        }
    }

    /// The session is closed.
    pub(super) fn lost(&mut self, error: &pq::Error) -> Event {
        self.wire = Wire::None;
        Event::SessionLost(loss(error, self.lock.is_confirmed()), error.message.clone())
    }

    /// What the server has said beside its answer, where that is to be confirmed by replication: a wait for that which was
    /// broken off is answered, too, but with a warning.
    fn remark(&self) -> Option<String> {
        let Wire::Up(session, _) = &self.wire else {
            return None;
        };
        let remark = session.connection().take_remark();
        remark
            .filter(|_| self.lock.is_confirmed())
            .map(|remark| remark.to_string())
    }

    /// Reads an answer to what was asked.
    pub(super) fn answered(&mut self, asked: &Asked, outcomes: &[Outcome]) -> Event {
        if self.guardian.is_none()
            && let Err(error) = self.spawn_guardian()
        {
            self.say_unguarded(&error);
        }
        let event = match self.remark() {
            Some(remark) => Event::Answered(Answer::Unconfirmed(remark)),
            None => asked.read(outcomes, &mut self.lock),
        };
        if let Event::SessionLost(..) = event {
            self.wire = Wire::None;
        } else if let (Event::Answered(Answer::Retake(Retake::Held(_))), Wire::Up(session, _)) =
            (&event, &self.wire)
        {
            self.backend_pid = session.connection().backend_pid();
            self.places.move_to(self.place, session);
            self.place = 0;
        }
        event
    }
}
