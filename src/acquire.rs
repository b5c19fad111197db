//! From a [`Config`] to a held lock: connect, try, and wait; or to who holds it. [`state`] decides; here is done what it
//! orders, one thing at a time, and what comes of that is its next event.

pub mod asked;
mod dial;
mod exchange;
pub mod state;

pub use state::AcquireError;

use std::fmt;
use std::time::Duration;

use self::asked::{host_error, lost};
use self::exchange::Exchange;
use self::state::{Dial, Ending, Event, Goal, Line, Order, Plan, State, Taken};
use self::state::{Step, Welcome};
use crate::cli::config::{Config, Wait};
use crate::held::Held;
use crate::lease::Terms;
use crate::lock::Lock;
use crate::lock::holders::Row;
use crate::log::Log;
use crate::moment::Moment;
use crate::pq::Conninfo;
use crate::server::conninfo::Target;
use crate::server::places::Places;
use crate::server::session::Session;
use crate::server::session_settings::LockScope;
use crate::server::wait::{self, Interrupt};
use crate::sys::{self, Signals};
use crate::text;

/// Takes the lock as the configuration wants it. `start` is when pglock was started, on the clock of
/// [`sys::now`].
///
/// # Errors
/// There is no lock, for the reason given. Nothing is left waiting on the server.
pub fn acquire(
    config: &Config,
    start: Moment,
    signals: &Signals,
    log: Log,
) -> Result<Held, AcquireError> {
    let target = target(config, start, signals)?;
    let mut attempt = Attempt::new(config, start, signals, log, &target, Goal::Lock)?;
    match attempt.run() {
        Ending::Taken(taken) => attempt.held(taken),
        Ending::Listed => Err(failed("no lock was asked for")),
        Ending::Stopped(error) => Err(error),
    }
}

/// Asks who holds the lock that the configuration names, or any.
///
/// # Errors
/// The server could not be asked.
pub fn status(
    config: &Config,
    start: Moment,
    signals: &Signals,
    log: Log,
) -> Result<Vec<Row>, AcquireError> {
    let target = target(config, start, signals)?;
    let mut attempt = Attempt::new(config, start, signals, log, &target, Goal::Listing)?;
    match attempt.run() {
        Ending::Listed => Ok(attempt.exchange.listing),
        Ending::Taken(_) => Err(failed("no list was asked for")),
        Ending::Stopped(error) => Err(error),
    }
}

/// Where to connect.
fn target(config: &Config, start: Moment, signals: &Signals) -> Result<Target, AcquireError> {
    let wait_end = match config.wait {
        Wait::Seconds(seconds) => Some(start + Duration::from_secs(seconds.into())),
        Wait::No | Wait::Forever => None,
    };
    Target::new(&config.server, config.title(), signals, start, wait_end).map_err(failed)
}

/// What does what is ordered.
struct Attempt<'a> {
    signals: &'a Signals,
    log: Log,
    target: &'a Target,
    state: State,
    exchange: Exchange<'a>,
    /// The host at hand.
    host: usize,
    /// How to connect to it.
    settings: Conninfo,
}

impl<'a> Attempt<'a> {
    fn new(
        config: &'a Config,
        start: Moment,
        signals: &'a Signals,
        log: Log,
        target: &'a Target,
        goal: Goal,
    ) -> Result<Self, AcquireError> {
        let plan = Plan {
            goal,
            server: target.to_string(),
            hosts: target.hosts().len() as u32,
            wait: config.wait,
            patience: target.timeout(),
            ttl: config.terms.map(Terms::ttl),
            fence: config.fence,
            sync: config.sync,
            verbose: log.is_verbose(),
            slots: config.slots,
        };
        Ok(Self {
            signals,
            log,
            target,
            state: State::new(plan, start),
            exchange: Exchange::new(config, signals)
                .map_err(|error| failed(format_args!("no memory: {}", text::reason(&error))))?,
            host: 0,
            settings: Conninfo::new(),
        })
    }

    fn run(&mut self) -> Ending {
        let mut event = Event::Begin;
        loop {
            let Step { lines, order } = self.state.on(event, sys::now(), &mut sys::random);
            for line in lines {
                self.say(&line);
            }
            event = match order {
                Order::Connect(dial) => self.connect(dial),
                Order::ConnectBeside(dial) => self.connect_beside(dial),
                Order::Ask {
                    question,
                    asked,
                    answer_by,
                } => self.exchange.ask(question, asked, answer_by),
                Order::Pause {
                    until,
                    keeps_session,
                } => self.pause(until, keeps_session),
                Order::Watch(until) => self.exchange.watch(until),
                Order::Cancel => self.exchange.cancel(),
                Order::Withdraw => self.exchange.withdraw(),
                Order::Rollback => self.exchange.roll_back(),
                Order::Release => self.exchange.release(),
                Order::End(ending) => return ending,
            };
        }
    }

    fn say(&self, line: &Line) {
        if line.is_detail() {
            self.log.detail(line);
        } else {
            self.log.info(line);
        }
    }

    fn connect(&mut self, dial: Dial) -> Event {
        self.exchange.close();
        self.host = dial.host as usize;
        self.settings = self.target.hosts().nth(self.host).unwrap_or_default();
        match self.dial(dial) {
            Ok(session) => {
                let welcome = welcome(&session);
                self.exchange.begin(session);
                Event::Connected(welcome)
            }
            Err(event) => event,
        }
    }

    fn connect_beside(&mut self, dial: Dial) -> Event {
        match self.dial(dial) {
            Ok(session) => {
                self.exchange.begin_beside(session);
                Event::Connected(Welcome::default())
            }
            Err(event) => event,
        }
    }

    fn dial(&self, dial: Dial) -> Result<Session, Event> {
        let late = state::no_connection(self.target, dial.time);
        dial::connect(&self.settings, dial, &late, self.signals).map_err(
            |interrupt| match interrupt {
                Interrupt::Signal(signal) => Event::Signal(signal),
                Interrupt::Late => Event::Late,
                Interrupt::Failed(error) => Event::NotConnected(host_error(&error)),
            },
        )
    }

    fn pause(&mut self, until: Moment, keeps_session: bool) -> Event {
        if !keeps_session {
            self.exchange.close();
        }
        match wait::pause(self.signals, until) {
            Ok(()) | Err(Interrupt::Late) => Event::Passed,
            Err(Interrupt::Signal(signal)) => Event::Signal(signal),
            Err(Interrupt::Failed(error)) => lost(&error),
        }
    }

    /// What there is, now that the lock is held.
    fn held(mut self, taken: Taken) -> Result<Held, AcquireError> {
        self.exchange.settle_guardian().map_err(|error| {
            failed(format_args!(
                "could not start the guardian: {}",
                text::reason(&error)
            ))
        })?;
        let session = self.exchange.take_session();
        let (Some(session), Some(lock)) = (session, self.exchange.lock) else {
            return Err(failed("no lock is held"));
        };
        if self.log.is_verbose() {
            self.say(&self.description(&session, lock));
        }
        let guardian = self.exchange.guardian.take();
        Ok(Held {
            places: Places::new(self.target.hosts().collect(), self.host, &session),
            session,
            lock,
            sent: taken.sent,
            token: taken.token,
            shared: self.exchange.shared,
            guardian: guardian.ok_or_else(|| failed("no guardian"))?,
            waited: taken.waited,
        })
    }

    /// How the lock is held.
    fn description(&self, session: &Session, lock: Lock) -> Line {
        let request = &self.exchange.request;
        let connection = session.connection();
        Line::Held {
            shared: request.shared,
            backend: match lock.scope() {
                LockScope::Session => Some(connection.backend_pid()),
                LockScope::Transaction => None,
            },
            ttl: request.settings.ttl,
            has_lease: request.settings.has_lease(connection, lock.scope()),
        }
    }
}

/// What a server says of itself.
fn welcome(session: &Session) -> Welcome {
    let connection = session.connection();
    let version = connection.reported(c"server_version");
    Welcome {
        version: version.unwrap_or_default(),
        place: connection.place(),
        cockroach: connection.reported(c"crdb_version"),
    }
}

fn failed(error: impl fmt::Display) -> AcquireError {
    AcquireError::Failed(error.to_string())
}
