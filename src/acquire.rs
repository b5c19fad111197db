//! From a [`Config`] to a held lock: connect, try, and wait; or to who holds it. Nothing is running yet, so every signal that
//! ends a process ends the attempt, at any point of it.

use std::ffi::CStr;
use std::fmt;
use std::time::Duration;

use crate::cli::config::{Config, Wait};
use crate::exit::Exit;
use crate::guardian::Guardian;
use crate::held::Held;
use crate::lease::{Lease, Terms};
use crate::lock::{self, Caution, Claim, Lock, TURN, Verdict};
use crate::log::{self, Log};
use crate::pq::{Conninfo, Error, Outcome};
use crate::server::conninfo::Target;
use crate::server::resolve::{self, resolve};
use crate::server::retry::{self, Again};
use crate::server::session::{Event, Session};
use crate::server::session_settings::{Hold, Settings};
use crate::server::wait::{self, Interrupt, drive, left};
use crate::status;
use crate::sys::{self, Signal, Signals, Ward};

/// How long to wait between two attempts behind a pooler, on the average: a waiter there must not sit on
/// one of the pool's few connections.
const POOLED_PAUSE: Duration = Duration::from_millis(500);
/// How long after its time an answer may come that is under way.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// The first and the longest pause before a server is tried again that is down, starting or full.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// What failed if the lock could not be asked for.
const LOCK_CALL: &str = "the lock call failed";

/// Why there is no lock.
pub enum Stop {
    /// Somebody else holds it.
    NotObtained,
    /// A signal came.
    Signal(Signal),
    /// pglock or the server failed; the message says how.
    Failed(String),
}

/// Takes the lock as the configuration wants it. `start` is when pglock was started, on the clock of
/// [`sys::now`].
///
/// # Errors
/// There is no lock, for the reason given. Nothing is left waiting on the server.
pub fn acquire(
    config: &Config,
    start: Duration,
    signals: &Signals,
    log: Log,
) -> Result<Held, Stop> {
    let target = Target::new(&config.server, &config.command).map_err(failed)?;
    let mut attempt = Attempt::new(config, start, signals, log, &target)?;
    log.info(format_args!("Connecting to PostgreSQL at {target}."));
    attempt.run(Attempt::try_host)
}

/// Asks who holds the lock that the configuration names, or any.
///
/// # Errors
/// The server could not be asked.
pub fn status(
    config: &Config,
    start: Duration,
    signals: &Signals,
    log: Log,
) -> Result<Vec<Outcome>, Stop> {
    let target = Target::new(&config.server, &config.command).map_err(failed)?;
    let mut attempt = Attempt::new(config, start, signals, log, &target)?;
    attempt.run(|attempt, settings, hosts_left| {
        let mut session = attempt.connect(settings, hosts_left, attempt.until)?;
        let claim = config.names_lock.then_some(&attempt.claim);
        let sql = status::sql(session.connection(), claim).map_err(unsaid)?;
        session.allow_table();
        let outcomes = attempt.exchange(&mut session, &sql, Duration::ZERO, false)?;
        match outcomes.last() {
            Some(Outcome::Failed(error)) => Err(refused("the server could not be asked", error)),
            _ if status::is_standby(&outcomes) => Err(standby()),
            _ => Ok(outcomes),
        }
    })
}

/// What went wrong with one host.
struct Trouble {
    message: String,
    again: Again,
}

/// Why there is no lock from one host.
enum Failure {
    Stop(Stop),
    Host(Trouble),
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

struct Attempt<'a> {
    config: &'a Config,
    signals: &'a Signals,
    log: Log,
    claim: Claim,
    target: &'a Target,
    /// When to give up: the end of the wait, or of the time for connecting where there is no wait.
    until: Option<Duration>,
    ward: Ward,
    guardian: Option<Guardian>,
    /// When the last message was sent that has to do with the lock.
    sent: Duration,
    /// How many hosts are left to try, the one at hand included.
    hosts_left: u32,
    /// Whether the lock is held.
    held: bool,
    /// Whether it was said that the lock is being obtained.
    announced: bool,
    /// Whether others held the lock at first.
    waited: bool,
    /// What the lock can be bound to on the connection that there is.
    hold: Hold,
    /// Why the last round failed: more telling than that the time is over now.
    reason: Option<String>,
}

impl<'a> Attempt<'a> {
    fn new(
        config: &'a Config,
        start: Duration,
        signals: &'a Signals,
        log: Log,
        target: &'a Target,
    ) -> Result<Self, Stop> {
        let connect_until = target.timeout().map(|timeout| start + timeout);
        Ok(Self {
            config,
            signals,
            log,
            claim: Claim {
                name: config.lock.clone(),
                shared: config.shared,
                slots: config.slots,
                settings: Settings::new(config.terms.map(Terms::ttl)),
                fence: config.fence,
            },
            target,
            until: match config.wait {
                Wait::Seconds(seconds) => Some(start + Duration::from_secs(seconds.into())),
                Wait::No => connect_until,
                Wait::Forever => None,
            },
            ward: Ward::new().map_err(|error| failed(format_args!("no memory: {error}")))?,
            guardian: None,
            sent: start,
            hosts_left: 1,
            held: false,
            announced: false,
            waited: false,
            hold: Hold::Session,
            reason: None,
        })
    }

    /// Goes through the hosts, and again as long as that is worth it, until one gives what `each` wants of
    /// it. `each` is told how many hosts are left, itself included.
    fn run<T>(
        &mut self,
        mut each: impl FnMut(&mut Self, &Conninfo, u32) -> Result<T, Failure>,
    ) -> Result<T, Stop> {
        for round in 0_u32.. {
            let mut again = Again::Never;
            let mut messages: Vec<String> = Vec::new();
            let hosts = self.target.hosts();
            let mut hosts_left = hosts.len() as u32;
            for settings in hosts {
                self.hosts_left = hosts_left;
                self.held = false;
                let trouble = match each(self, &settings, hosts_left) {
                    Ok(wanted) => return Ok(wanted),
                    Err(Failure::Stop(stop)) => return Err(stop),
                    Err(Failure::Host(trouble)) => trouble,
                };
                hosts_left -= 1;
                again = again.max(trouble.again);
                messages.push(trouble.message);
            }
            messages.dedup();
            let message = messages.join("; ");
            self.reason = Some(message.clone());
            let worth_it = match self.config.wait {
                Wait::No => again == Again::Soon,
                Wait::Seconds(_) | Wait::Forever => again >= Again::IfWaiting,
            };
            if !worth_it || left(self.until) == Some(Duration::ZERO) {
                return Err(Stop::Failed(message));
            }
            if round == 0 {
                self.log.info(format_args!("{message}; trying again."));
            }
            let [first, longest] = RETRY;
            let pause = jittered((first * 2_u32.pow(round.min(10))).min(longest));
            self.pause(pause)?;
            if left(self.until) == Some(Duration::ZERO) {
                return Err(Stop::Failed(message));
            }
        }
        Err(failed("no attempt is left"))
    }

    /// Lets time pass, but not beyond the end of the wait.
    fn pause(&self, time: Duration) -> Result<(), Stop> {
        let then = sys::now() + time;
        let then = self.until.map_or(then, |until| until.min(then));
        wait::pause(self.signals, then).map_err(|interrupt| match interrupt {
            Interrupt::Signal(signal) => Stop::Signal(signal),
            Interrupt::Late => Stop::NotObtained,
            Interrupt::Failed(error) => failed(error),
        })
    }

    /// Connects to one host and obtains the lock there. The time there is for connecting is shared with the
    /// hosts that are left, so that one that does not answer leaves some to the next.
    fn try_host(&mut self, settings: &Conninfo, hosts_left: u32) -> Result<Held, Failure> {
        let mut session = self.connect(settings, hosts_left, self.until)?;
        self.hold = Hold::Session;
        let connection = session.connection();
        if let Some(version) = connection.reported(c"crdb_version") {
            return Err(failed(format_args!(
                "the server is CockroachDB ({version}), whose advisory locks do not exclude anybody"
            ))
            .into());
        }
        self.log.detail(format_args!(
            "Connected to PostgreSQL {} at {}.",
            connection.reported(c"server_version").unwrap_or_default(),
            connection.place(),
        ));
        if !self.announced {
            self.announced = true;
            match self.config.wait {
                Wait::No => self.log.info("Trying to obtain lock."),
                Wait::Seconds(seconds) => self.log.info(format_args!(
                    "Obtaining lock with {seconds} seconds timeout.."
                )),
                Wait::Forever => self.log.info("Obtaining lock without timeout.."),
            }
        }
        // A guardian is bound to one connection.
        self.guardian = None;
        let (lock, mut token) = self.obtain(&mut session)?;
        self.held = true;
        if self.config.fence && token.is_none() {
            token = Some(self.token(settings, &mut session, lock)?);
        }
        // An answer that was long under way, in a pool's queue say, leaves little of the lease: one more sign
        // of the server, and it is whole.
        if let Some(ttl) = self.claim.settings.ttl
            && sys::now() > self.sent + ttl / 3
        {
            self.exchange(&mut session, c";", Duration::ZERO, true)?;
        }
        self.describe(&session, lock.hold());
        let guardian = self.guardian.take().ok_or_else(|| failed("no guardian"))?;
        Ok(Held {
            settings: same_server(settings, &session),
            session,
            lock,
            sent: self.sent,
            token,
            ward: self.ward,
            guardian,
            waited: self.waited,
        })
    }

    /// Connects to one host, by the end of the wait if it is that. libpq may block for all that, in Kerberos say,
    /// which cannot be taken back: that ends pglock at the deadline.
    fn connect(
        &self,
        settings: &Conninfo,
        hosts_left: u32,
        until: Option<Duration>,
    ) -> Result<Session, Failure> {
        let timeout = self.target.timeout().map(|timeout| sys::now() + timeout);
        let deadline = timeout.into_iter().chain(until).min();
        let time = left(deadline).unwrap_or_default();
        let late = format!(
            "could not connect: no answer from {} within {} s",
            self.target,
            tenths(time)
        );
        let last_line = log::error_line(sys::wall_clock() + time.as_secs() as i64, &late);
        let status = Exit::Failed.status();
        let signals = self.signals;
        let start = |settings: &Conninfo, until| {
            let mut session = signals
                .while_blocking(deadline, &last_line, status, || Session::start(settings))
                .map_err(Interrupt::Failed)?;
            loop {
                wait::ready(&session, signals, until)?;
                let event = signals
                    .while_blocking(deadline, &last_line, status, || session.step())
                    .map_err(Interrupt::Failed)?;
                if event == Some(Event::Connected) {
                    return Ok(session);
                }
                wait::keep(until)?;
            }
        };
        let until = share(deadline, hosts_left);
        let connected = resolve(settings, signals, until)
            .and_then(|addresses| first_to_answer(&addresses, until, start));
        connected.map_err(|interrupt| match interrupt {
            Interrupt::Signal(signal) => Stop::Signal(signal).into(),
            Interrupt::Late => Failure::Host(Trouble {
                message: self.reason.clone().unwrap_or(late),
                again: Again::IfWaiting,
            }),
            Interrupt::Failed(error) => refused("could not connect", &error),
        })
    }

    /// Tries once, then waits if there is anything to wait for. Returns the lock and the fencing token.
    fn obtain(&mut self, session: &mut Session) -> Result<(Lock, Option<u64>), Failure> {
        let waits = self.config.wait != Wait::No;
        let mut caution = Caution::HoldOff;
        let mut young_since = None;
        loop {
            let connection = session.connection();
            let sql = self
                .claim
                .try_sql(connection, self.hold, caution, waits, self.waited)
                .map_err(unsaid)?;
            let tried = caution;
            // Behind a pooler the server may be another one, or restarted, at the next attempt.
            caution = Caution::HoldOff;
            let mut verdict = self.ask(session, &sql, Duration::ZERO)?;
            while self.hold == Hold::Session && matches!(verdict, Verdict::Busy | Verdict::First) {
                let left = self.time_to_wait(session)?;
                let turn = left.as_millis().clamp(1, TURN.into()) as u32;
                let first = verdict == Verdict::First;
                let sql = self
                    .claim
                    .wait_sql(session.connection(), turn, first)
                    .map_err(unsaid)?;
                let turn = Duration::from_millis(turn.into());
                let asked = sys::now();
                verdict = self.ask(session, &sql, turn)?;
                // A server that does not wait would be asked without a pause.
                let early = (asked + turn / 2).saturating_sub(sys::now());
                if !early.is_zero() && matches!(verdict, Verdict::Busy | Verdict::First) {
                    self.pause(early)?;
                }
            }
            if self.hold == Hold::Transaction && !matches!(verdict, Verdict::Held(..)) {
                // The pool's connection goes back to the pool.
                self.call(session, c"rollback", Duration::ZERO)?;
            }
            match verdict {
                Verdict::Held(key, token) => {
                    return Ok((self.claim.lock(key, self.hold), token));
                }
                Verdict::Busy | Verdict::First => {
                    let left = self.time_to_wait(session)?;
                    self.pause(jittered(POOLED_PAUSE).min(left))?;
                }
                Verdict::Young => {
                    let since = *young_since.get_or_insert_with(sys::now);
                    self.believe_young(tried, since)?;
                    caution = self.hold_off(session)?;
                }
                Verdict::Pooled if self.hold == Hold::Session => self.hold = Hold::Transaction,
                Verdict::Pooled => {
                    return Err(
                        failed("the server gave an unexpected answer to the lock call").into(),
                    );
                }
                Verdict::Standby => return Err(standby()),
                Verdict::Refused(error) if self.does_without(&error) => {}
                Verdict::Refused(error) => return Err(refused(LOCK_CALL, &error)),
            }
        }
    }

    /// Whether an attempt failed for a setting that can be done without; then it is, from now on.
    fn does_without(&mut self, error: &Error) -> bool {
        let is_refusal = self.claim.settings.refuse(error);
        if is_refusal {
            self.log
                .detail(format_args!("The server refuses a setting: {error}."));
        }
        is_refusal
    }

    /// How long there is to wait yet, for a lock that others hold.
    fn time_to_wait(&mut self, session: &mut Session) -> Result<Duration, Stop> {
        self.waited = true;
        match (self.config.wait, left(self.until)) {
            (Wait::No, _) | (Wait::Seconds(_), Some(Duration::ZERO)) => {
                self.name_holders(session)?;
                Err(Stop::NotObtained)
            }
            (_, left) => Ok(left.unwrap_or(Duration::MAX)),
        }
    }

    /// Says who holds the lock that was not obtained, under `--verbose`.
    fn name_holders(&mut self, session: &mut Session) -> Result<(), Stop> {
        if !self.log.is_verbose() {
            return Ok(());
        }
        // It is only a courtesy.
        let Ok(sql) = status::sql(session.connection(), Some(&self.claim)) else {
            return Ok(());
        };
        session.allow_table();
        match self.call(session, &sql, Duration::ZERO) {
            Ok(outcomes) => {
                for holder in status::holders(&outcomes) {
                    self.log.detail(format_args!("Held by {holder}."));
                }
                Ok(())
            }
            Err(Failure::Stop(stop)) => Err(stop),
            Err(Failure::Host(_)) => Ok(()),
        }
    }

    /// Asks for the lock. Returns what the server said. An answer that is none, or a lie, is not asked for again.
    fn ask(
        &mut self,
        session: &mut Session,
        sql: &CStr,
        turn: Duration,
    ) -> Result<Verdict, Failure> {
        let outcomes = self.call(session, sql, turn)?;
        match self.claim.verdict(&outcomes) {
            Verdict::Refused(judged) if !matches!(outcomes.last(), Some(Outcome::Failed(_))) => {
                Err(failed(format_args!("{LOCK_CALL}: {judged}")).into())
            }
            verdict => Ok(verdict),
        }
    }

    /// Sends a query that has to do with the lock, and waits for its answer.
    fn call(
        &mut self,
        session: &mut Session,
        sql: &CStr,
        turn: Duration,
    ) -> Result<Vec<Outcome>, Failure> {
        self.exchange(session, sql, turn, true)
    }

    /// Sends a query and waits for its answer, which may take as long as the turn in the queue, and as
    /// connecting might. `guarded` where a lock may come of it: the lease begins, and a guardian is posted.
    fn exchange(
        &mut self,
        session: &mut Session,
        sql: &CStr,
        turn: Duration,
        guarded: bool,
    ) -> Result<Vec<Outcome>, Failure> {
        let lost = |error: Error| {
            if retry::is_statement_mode(&error) {
                refused(
                    "the pooler in between does not let a transaction stay open, so no lock can be held \
                     through it; it would have to be in transaction or session mode",
                    &error,
                )
            } else {
                refused("the connection was lost before the server answered", &error)
            }
        };
        if guarded {
            self.sent = sys::now();
            let terms = self.config.terms.filter(|_| self.config.kill_on_loss);
            let lease = terms.map(|terms| Lease::new(terms, self.sent));
            self.ward.set_deadline(lease.map(|lease| lease.kill_at()));
        }
        session.ask(sql).map_err(lost)?;
        let on_post = self.guardian.as_ref().is_some_and(Guardian::is_on_post);
        if guarded && !on_post {
            // Made while the server is busy, so that it costs no time.
            let socket = session.wants().map(|(descriptor, _)| descriptor);
            match Guardian::post(&self.ward, socket) {
                Ok(guardian) => self.guardian = Some(guardian),
                Err(error) => {
                    self.withdraw(session);
                    return Err(
                        failed(format_args!("could not start the guardian: {error}")).into(),
                    );
                }
            }
        }
        let asked = sys::now();
        let deadline = self.answer_by(asked, turn);
        loop {
            match drive(session, self.signals, deadline) {
                Ok(Event::Answered(outcomes)) => {
                    self.reason = None;
                    return Ok(outcomes);
                }
                Ok(Event::Connected) => {}
                Err(Interrupt::Signal(signal)) => {
                    self.withdraw(session);
                    return Err(Stop::Signal(signal).into());
                }
                Err(Interrupt::Late) => {
                    // It may be at it yet, with the lock held: without a client it would only notice in the end.
                    wait::cancel(session);
                    let late = format!(
                        "no answer from the server within {} s",
                        tenths(deadline.unwrap_or(asked).saturating_sub(asked))
                    );
                    let waits = matches!(self.config.wait, Wait::Seconds(_));
                    let is_over = waits && left(self.until) == Some(Duration::ZERO);
                    let reason = self.reason.clone().filter(|_| is_over);
                    return Err(Failure::Host(Trouble {
                        message: reason.unwrap_or(late),
                        again: Again::IfWaiting,
                    }));
                }
                Err(Interrupt::Failed(error)) => return Err(lost(error)),
            }
        }
    }

    /// When a question that is asked now, and may take a turn in the queue, has to be answered. While the lock is
    /// not held the end of the wait counts, and the hosts that are left want some of the time.
    fn answer_by(&self, now: Duration, turn: Duration) -> Option<Duration> {
        let patience = self.target.timeout();
        let mut limits = vec![patience.map(|patience| now + turn + patience)];
        if !self.held {
            if let Wait::Seconds(_) = self.config.wait {
                limits.push(self.until.map(|until| until.max(now) + UNDER_WAY));
            }
            if self.hosts_left > 1 {
                let share = left(self.until).map(|left| (left / self.hosts_left).max(UNDER_WAY));
                limits.push(share.map(|share| now + turn + share));
            }
        }
        limits.into_iter().flatten().min()
    }

    /// Takes a call for the lock back.
    fn withdraw(&self, session: &mut Session) {
        let Some(outcomes) = wait::take_back(session, self.signals) else {
            return;
        };
        if self.hold == Hold::Transaction {
            // A pooler closes the server's connection too if its client leaves in a transaction.
            wait::last_word(session, c"rollback", self.signals);
        } else if let Verdict::Held(key, _) = self.claim.verdict(&outcomes) {
            // Granted before the cancel came.
            lock::release(
                session,
                self.claim.lock(key, self.hold),
                self.signals,
                || (),
            );
        }
    }

    /// Looks whether a server that has been young since then can be so still: behind a pooler it may have been restarted
    /// again meanwhile, or be another one, but not for ever. Without a lease none is asked whether it is young.
    fn believe_young(&self, tried: Caution, since: Duration) -> Result<(), Failure> {
        let ttl = self.claim.settings.ttl;
        let can_be = ttl.is_some_and(|ttl| sys::now() <= since + ttl);
        if tried == Caution::HoldOff && can_be {
            return Ok(());
        }
        Err(Failure::Host(Trouble {
            message: "the server says again and again that it was restarted just now".to_owned(),
            again: Again::IfWaiting,
        }))
    }

    /// Waits until no earlier holder can take its lock again on a server that has lost its sessions.
    fn hold_off(&mut self, session: &mut Session) -> Result<Caution, Failure> {
        let mut until = None;
        loop {
            let asked = sys::now();
            let sql = self
                .claim
                .age_sql(session.connection(), self.hold)
                .map_err(unsaid)?;
            let outcomes = self.call(session, &sql, Duration::ZERO)?;
            match outcomes.last() {
                Some(Outcome::Failed(error)) if self.does_without(error) => continue,
                Some(Outcome::Failed(error)) => {
                    return Err(refused("the server could not be asked for its age", error));
                }
                _ => {}
            }
            let time = lock::hold_off(&outcomes).ok_or_else(|| {
                failed("the server gave an unexpected answer to the question for its age")
            })?;
            if time.is_zero() {
                return Ok(Caution::None);
            }
            // The server's clock may have been set back since it started.
            let ttl = self.claim.settings.ttl.unwrap_or(time);
            let time = time.min(ttl);
            if self.config.wait == Wait::No && lock::is_held(&outcomes) {
                self.name_holders(session)?;
                return Err(Stop::NotObtained.into());
            }
            let then = *until.get_or_insert_with(|| {
                self.log.info(format_args!(
                    "The server was restarted and lost its locks: holding off for {:.1} s, in which an earlier \
                     holder may take its lock again.",
                    time.as_secs_f64()
                ));
                sys::now() + time
            });
            let deadline = match self.config.wait {
                Wait::Seconds(_) => self.until.map_or(then, |until| until.min(then)),
                Wait::No | Wait::Forever => then,
            };
            // The session has a lease too, and would end in silence.
            match drive(session, self.signals, Some(deadline.min(asked + ttl / 3))) {
                Err(Interrupt::Late) if sys::now() < deadline => {}
                Err(Interrupt::Late) if deadline < then => return Err(Stop::NotObtained.into()),
                // It has not lost its sessions meanwhile, or this one would be gone; a pooler's may have been.
                Err(Interrupt::Late) => {
                    return Ok(match self.hold {
                        Hold::Session => Caution::None,
                        Hold::Transaction => Caution::HoldOff,
                    });
                }
                // Nothing was asked; not all of the time has passed.
                Ok(_) => {
                    return Err(failed("the server gave an answer while holding off").into());
                }
                Err(Interrupt::Signal(signal)) => return Err(Stop::Signal(signal).into()),
                Err(Interrupt::Failed(error)) => {
                    return Err(refused("the connection was lost while holding off", &error));
                }
            }
        }
    }

    /// Takes a fencing token for a lock that is bound to a transaction. In that transaction it would hold
    /// back vacuum for as long as the command runs, so it needs one of its own, on another connection.
    fn token(
        &mut self,
        settings: &Conninfo,
        session: &mut Session,
        lock: Lock,
    ) -> Result<u64, Failure> {
        // The wait may be over: the lock is held already.
        let taken = self.connect(settings, 1, None).and_then(|mut other| {
            let outcomes = self.exchange(&mut other, &Claim::token_sql(), Duration::ZERO, false)?;
            match outcomes.last() {
                Some(Outcome::Failed(error)) => Err(refused("the server refused it", error)),
                _ => lock::token(&outcomes)
                    .ok_or_else(|| failed("the server gave no fencing token").into()),
            }
        });
        taken.map_err(|failure| {
            lock::release(session, lock, self.signals, || ());
            match failure {
                Failure::Host(trouble) => Failure::Host(Trouble {
                    message: format!(
                        "no fencing token: behind a pooler that takes a second connection for a moment, beside the \
                         one that holds the lock: {}",
                        trouble.message
                    ),
                    ..trouble
                }),
                stop => stop,
            }
        })
    }

    /// Under `--verbose`: how the lock is held.
    fn describe(&self, session: &Session, hold: Hold) {
        let kind = if self.claim.shared {
            "shared"
        } else {
            "exclusive"
        };
        let bound = match hold {
            Hold::Session => format!("of backend {}", session.connection().backend_pid()),
            Hold::Transaction => "of a transaction, since a pooler is in between".to_owned(),
        };
        let settings = self.claim.settings;
        let lease = match settings.ttl.map(|ttl| ttl.as_secs()) {
            None => "without a lease".to_owned(),
            Some(ttl) if settings.has_lease(session.connection(), hold) => {
                format!("with a lease of {ttl} s")
            }
            Some(ttl) => format!(
                "with TCP keepalive of {ttl} s in place of a lease, which this server does not have"
            ),
        };
        self.log
            .detail(format_args!("The lock is {kind}, {bound}, {lease}."));
    }
}

/// Starts a session at the first of a host's addresses where there is a server, whatever it says then. So does libpq,
/// but to a first one that swallows all packets it would give the time of all.
fn first_to_answer(
    addresses: &[Conninfo],
    deadline: Option<Duration>,
    mut start: impl FnMut(&Conninfo, Option<Duration>) -> Result<Session, Interrupt>,
) -> Result<Session, Interrupt> {
    let mut messages: Vec<String> = Vec::new();
    for (place, address) in addresses.iter().enumerate() {
        let addresses_left = addresses.len() - place;
        match start(address, share(deadline, addresses_left as u32)) {
            Err(Interrupt::Late) => {}
            Err(Interrupt::Failed(error)) if !error.reached && addresses.len() > 1 => {
                messages.push(error.message);
            }
            result => return result,
        }
    }
    if messages.is_empty() {
        return Err(Interrupt::Late);
    }
    if messages.len() < addresses.len() {
        messages.push("no answer from its other addresses".to_owned());
    }
    Err(Interrupt::Failed(Error {
        message: messages.join("; "),
        ..Error::default()
    }))
}

/// When the first of so many has had its part of the time until a deadline.
fn share(deadline: Option<Duration>, among: u32) -> Option<Duration> {
    left(deadline).map(|left| sys::now() + left / among)
}

/// The settings with the address that they have led to, so that no name has to be looked up again.
fn same_server(settings: &Conninfo, session: &Session) -> Conninfo {
    match session.connection().address() {
        Some(address) => resolve::at(settings, &address),
        None => settings.clone(),
    }
}

/// A time in seconds, for people.
fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// That something failed at one host, in the words of the server, the pooler or libpq.
fn refused(what: &str, error: &Error) -> Failure {
    Failure::Host(Trouble {
        message: format!("{what}: {error}{}", advice(error)),
        again: retry::again(error),
    })
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

/// A random time between half of this one and one and a half of it, so that those who were turned away
/// together do not come back together.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + sys::random())
}

/// What is to be asked cannot be said to this server; to another it may.
fn unsaid(error: Error) -> Failure {
    Failure::Host(Trouble {
        message: error.message,
        again: Again::Never,
    })
}

/// Perhaps it is about to be promoted.
fn standby() -> Failure {
    Failure::Host(Trouble {
        message: "the server is a standby, whose locks do not exclude those of its primary: connect to the primary"
            .to_owned(),
        again: Again::IfWaiting,
    })
}

fn failed(error: impl fmt::Display) -> Stop {
    Stop::Failed(error.to_string())
}
