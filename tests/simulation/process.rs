//! The processes of one invocation: pglock, its guardian and its command. What they decide is the product's; here is done what
//! it orders, as `acquire.rs`, `supervise.rs` and `guardian.rs` do it in the kernel.

mod acquiring;
mod command;
mod guardian;
mod host;
mod releasing;
mod supervising;

use std::collections::VecDeque;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use super::judge::{Excuse, Reason};
use super::random::Random;
use super::schedule::{Behaviour, Cue, Kind, Ordered, Schedule};
use super::server::{MADE_UP, OWN, Phase};
use super::time::{Clock, MILLISECOND, SECOND, Time, micros};
use super::world::{Event, ToClient, ToServer, World};
use crate::acquire::asked as acquire_asked;
use crate::acquire::state as acquire;
use crate::cli::config::Wait;
use crate::guardian::rule;
use crate::lease::{Lease, Terms};
use crate::lock::{self, GivenUp, Key, Lock, LockRequest};
use crate::moment::Moment;
use crate::pq::{Error, Outcome};
use crate::server::dialect::Dialect;
use crate::server::session_settings::{LockScope, SessionSettings};
use crate::supervise::asked as supervise_asked;
use crate::supervise::reason;
use crate::supervise::start::Obstacle;
use crate::supervise::state as supervise;
use crate::sys::{Change, Signal};

/// How long a process takes to get its turn, on a host that is busy.
const BUSY: Time = 50 * MILLISECOND;
/// By how much a timer of a host may be late that loses some: what lies between a deadline and what it precedes is a second.
const LATE_TIMER: Time = 800 * MILLISECOND;
/// What an excuse lasts beyond the moment that ends it: a turn of a process on a busy host, and the death of a group.
const SLACK: Time = BUSY + 15 * MILLISECOND;
/// How long a process takes to die of SIGKILL.
const DYING: Time = 3 * MILLISECOND;
/// How long a waiter waits for a server that it has dialed.
const PATIENCE: Time = 10 * SECOND;
/// As `server/wait.rs` has it.
const EXIT_PATIENCE: Time = SECOND;

/// The server as it is spoken to.
pub struct Spoken(i32);

impl Dialect for Spoken {
    fn server_version(&self) -> i32 {
        150_018
    }

    fn backend_pid(&self) -> i32 {
        self.0
    }

    fn quote(&self, text: &str) -> Result<String, Error> {
        Ok(format!("'{}'", text.replace('\'', "''")))
    }
}

/// What pglock is at.
enum Life {
    Unborn,
    Acquiring(Box<Acquiring>),
    Supervising(Box<Supervising>),
    Releasing(Releasing),
    Exited,
}

struct Acquiring {
    state: acquire::State,
    request: LockRequest,
    asked: Option<Rc<acquire_asked::Asked>>,
    lock: Option<Lock>,
    order: Pending,
    beside: Option<usize>,
}

/// What is waited for on the way to the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Connect(Time),
    ConnectBeside(Time),
    Answer(Option<Time>),
    Pause(Time),
    Watch(Time),
    Cancel(Time),
    Withdraw(Time),
    Rollback(Time),
    Release,
}

struct Supervising {
    state: supervise::State,
    lock: Lock,
    backend: i32,
    wire: Wire,
    name: Option<String>,
    /// Whether pglock has stopped itself, and what it does once it is continued.
    suspended: bool,
    later: Vec<supervise::Effect>,
    /// Whether the server was asked to take the lease out of force.
    is_lifted: bool,
}

/// What there is of a connection.
enum Wire {
    Up(usize, Option<supervise_asked::Asked>),
    Connecting(usize, Time),
    None,
}

/// The lock is being given up.
struct Releasing {
    lock: Lock,
    step: ReleaseStep,
    until: Time,
    /// The attempt that goes on afterwards.
    then: Option<Box<Acquiring>>,
}

enum ReleaseStep {
    /// What was asked before is answered first.
    Drain,
    Asked,
    /// Somebody waits who is still to see the sign: it is looked at again.
    Looking,
    /// It is waited for that it is seen.
    Lingering,
}

/// What pglock and its guardian both see.
#[derive(Clone, Copy, Default)]
struct Shared {
    has_group: bool,
    deadline: Option<Moment>,
    has_fired: bool,
    has_asked: bool,
}

struct Guardian {
    is_alive: bool,
    is_frozen: bool,
    connection: Option<usize>,
    state: rule::State,
    told: bool,
}

/// The command's group.
struct Group {
    has_begun: bool,
    main: bool,
    others: u32,
    late_others: u32,
    is_stopped: bool,
    ended: Option<Change>,
    work: Time,
    since: Option<Time>,
    serial: u64,
    /// Told to end while stopped.
    is_told: bool,
    /// pglock or its guardian means to end it.
    is_to_end: bool,
    is_dying: bool,
}

pub struct Client {
    clock: Clock,
    behaviour: Behaviour,
    ttl: u64,
    grace: u64,
    slots: u32,
    wait: Wait,
    shared_lock: bool,
    pooled: bool,
    kill_on_loss: bool,
    has_lease: bool,
    hold: Time,
    fence: bool,
    verbose: bool,
    has_terminal: bool,
    has_shell: bool,

    life: Life,
    pub connection: Option<usize>,
    spoken: i32,
    inbox: VecDeque<(usize, ToClient)>,
    signals: Vec<Signal>,
    change: Option<Change>,
    guardian_died: bool,
    is_frozen: u32,
    host_frozen: u32,
    busy: u32,
    late_timers: u32,
    no_processes: u32,
    is_dead: bool,
    /// When its next turn is.
    next_turn: Time,

    shared: Shared,
    is_fire_noted: bool,
    guardians: Vec<Guardian>,
    guardian: Option<usize>,
    group: Option<Group>,
    /// Whether its command is stopped when the lock is lost. What runs on promises nothing.
    believes: bool,
    /// Until when its lock is kept at least, as far as nothing goes wrong.
    keeps_until: Time,
    pub was_granted: bool,
    pub excuses: Vec<Excuse>,
    /// Whether the next question is answered by an error.
    pub fails: bool,
    /// Whether the session that held the lock was ended alone, and the lock was not asked for since.
    ended_alone: bool,
    heard: Moment,
    /// Who has run a command under its lock since it was last known to hold it, and since when.
    overtaken: Option<(usize, Time)>,
}

impl Client {
    pub fn new(schedule: &Schedule, place: usize, random: &mut Random) -> Self {
        let invocation = &schedule.clients[place];
        let base = random.next() % (1000 * SECOND);
        let rate = random.below(401) as i64 - 200;
        Self {
            clock: Clock::new(base, rate),
            behaviour: invocation.command,
            ttl: schedule.ttl,
            grace: schedule.grace,
            slots: schedule.slots,
            wait: invocation.wait,
            shared_lock: invocation.shared,
            pooled: invocation.pooled,
            kill_on_loss: invocation.kill_on_loss,
            has_lease: invocation.has_lease,
            hold: invocation.hold,
            fence: invocation.fence,
            verbose: invocation.verbose,
            has_terminal: invocation.terminal.0,
            has_shell: invocation.terminal.1,
            life: Life::Unborn,
            connection: None,
            spoken: 0,
            inbox: VecDeque::new(),
            signals: Vec::new(),
            change: None,
            guardian_died: false,
            is_frozen: 0,
            host_frozen: 0,
            busy: 0,
            late_timers: 0,
            fails: false,
            no_processes: 0,
            is_dead: false,
            next_turn: 0,
            shared: Shared::default(),
            is_fire_noted: false,
            guardians: Vec::new(),
            guardian: None,
            group: None,
            believes: invocation.kill_on_loss,
            keeps_until: 0,
            was_granted: false,
            excuses: Vec::new(),
            ended_alone: false,
            heard: Moment::FIRST,
            overtaken: None,
        }
    }

    pub fn shares(&self) -> bool {
        self.shared_lock
    }

    pub fn has_exited(&self) -> bool {
        self.is_dead || matches!(self.life, Life::Exited)
    }

    /// Whether it runs a command that it believes to be under the lock, or keeps the lock of one that did.
    pub fn is_running(&self, now: Time) -> bool {
        let runs = self.group.as_ref().is_some_and(|group| {
            let counts = group.main || (group.others > 0 && group.is_to_end);
            // What hangs in the kernel does nothing any more.
            let hangs = group.is_dying && self.behaviour.hangs > 0;
            group.has_begun && counts && !group.is_stopped && !hangs
        });
        self.believes && self.host_frozen == 0 && (runs || now < self.keeps_until)
    }

    /// Whether it has not begun yet.
    pub fn is_unborn(&self) -> bool {
        matches!(self.life, Life::Unborn)
    }

    /// What there is of it when all is over, if anything.
    pub fn left(&self) -> Option<&'static str> {
        if !self.has_exited() {
            return Some("pglock itself");
        }
        if self.guardians.iter().any(|guardian| guardian.is_alive) {
            return Some("the guardian");
        }
        // With nobody to end it the command stays.
        let is_unguarded = |excuse: &Excuse| excuse.reason == Reason::Unguarded;
        if self.excuses.iter().any(is_unguarded) {
            return None;
        }
        let group = self.group.as_ref()?;
        (group.main || (group.others > 0 && group.is_to_end)).then_some("the command")
    }

    fn keys(&self) -> Vec<Key> {
        let others = (2..=self.slots as i32).map(|slot| Key::Two(1, slot));
        [Key::One(1)].into_iter().chain(others).collect()
    }

    fn terms(&self) -> Option<Terms> {
        let seconds = Duration::from_secs;
        self.has_lease
            .then(|| Terms::new(seconds(self.ttl), seconds(self.grace)).expect("terms"))
    }

    /// Whether it is there, waits for the lock, and could take it.
    pub fn can_take(&self, is_way_clear: bool) -> bool {
        let waits = match &self.life {
            Life::Acquiring(_) => self.wait != Wait::No,
            Life::Unborn | Life::Supervising(_) | Life::Releasing(_) | Life::Exited => false,
        };
        // A token takes a second place in the pool, which may have none.
        let has_room = !(self.pooled && self.fence);
        waits && has_room && is_way_clear && self.is_free()
    }

    fn is_free(&self) -> bool {
        !self.is_dead
            && self.is_frozen == 0
            && self.host_frozen == 0
            && self.busy == 0
            && self.late_timers == 0
            && self.no_processes == 0
    }

    /// Whether it may hold the lock until it has a second place in the pool.
    pub fn waits_for_token(&self) -> bool {
        self.pooled && self.fence && matches!(self.life, Life::Acquiring(_))
    }

    /// Whether there is a command, or the rest of one, that holds others up, or a pglock that its user has stopped with it.
    pub fn has_command(&self) -> bool {
        let is_suspended = match &self.life {
            Life::Supervising(run) => run.suspended,
            Life::Unborn | Life::Acquiring(_) | Life::Releasing(_) | Life::Exited => false,
        };
        let group = self.group.as_ref();
        is_suspended
            || group.is_some_and(|group| group.main || (group.others > 0 && group.is_to_end))
    }

    /// Whether it keeps the lock of a command that has ended.
    pub fn is_holding(&self) -> bool {
        match &self.life {
            Life::Supervising(run) => run.state.is_holding(),
            Life::Unborn | Life::Acquiring(_) | Life::Releasing(_) | Life::Exited => false,
        }
    }

    pub fn is_direct(&self) -> bool {
        !self.pooled
    }

    fn excuse(&mut self, reason: Reason, from: Time, until: Time) {
        self.excuses.push(Excuse {
            reason,
            from,
            until,
        });
    }

    /// When the lease is over that it has, and the command is dead.
    fn lease_over(&self) -> Time {
        let ttl = self.terms().map_or(Duration::ZERO, Terms::ttl);
        self.clock.time(self.heard + ttl) + SLACK
    }

    /// Whoever has got its lock meanwhile runs on by its lease; the last answer may be under way.
    pub fn server_goes_down(&mut self, now: Time) {
        if self.ended_alone {
            let until = now + self.ttl * SECOND + SLACK;
            self.excuse(Reason::DownAfterAlone, now, until);
        }
    }

    /// Somebody else's command begins under the lock that it holds, or held.
    fn is_overtaken(&mut self, by: usize, now: Time) {
        if let Life::Supervising(_) = self.life {
            self.overtaken.get_or_insert((by, now));
        }
    }

    /// It says that nobody has had its lock since. Returns who has, unless that is excused.
    fn trusts(&mut self) -> Option<usize> {
        let (by, then) = self.overtaken?;
        let is_excused =
            |excuse: &Excuse| excuse.reason != Reason::EndedAlone && then < excuse.until;
        (!self.excuses.iter().any(is_excused)).then_some(by)
    }

    /// What ends with the moment in which pglock has heard of the end of its session.
    fn heard_of_loss(&mut self, now: Time) {
        // One that was just being started dies of a second one.
        let turn = if self.busy > 0 { BUSY } else { 0 };
        for excuse in &mut self.excuses {
            if excuse.reason == Reason::EndedAlone {
                excuse.until = excuse.until.min(now + 3 * DYING + turn);
            }
        }
    }

    /// pglock is frozen before it has done all that it does then: the guardian will, when the lease is over.
    fn is_held_up(&mut self, now: Time) {
        let lease_over = self.lease_over();
        for excuse in &mut self.excuses {
            if excuse.reason == Reason::EndedAlone && now < excuse.until {
                excuse.until = excuse.until.max(lease_over);
            }
        }
    }
}

impl World {
    fn now_of(&self, client: usize) -> Moment {
        self.clients[client].clock.moment(self.now)
    }

    /// A process gets its turn soon.
    fn wake_soon(&mut self, event: Event, client: usize) {
        let most = if self.clients[client].busy > 0 {
            BUSY
        } else {
            300
        };
        let time = 20 + self.random.next() % most;
        self.after(time, event);
    }

    fn wake(&mut self, client: usize) {
        let most = if self.clients[client].busy > 0 {
            BUSY
        } else {
            300
        };
        let time = 20 + self.random.next() % most;
        self.turn_at(client, self.now + time);
    }

    /// A turn at this time, unless there is one before it: that sees to what is due then.
    fn turn_at(&mut self, client: usize, time: Time) {
        let time = time.max(self.now + 1);
        let next = &mut self.clients[client].next_turn;
        if *next == 0 || time < *next {
            *next = time;
            self.at(time, Event::Pglock(client));
        }
    }

    fn wake_guardian(&mut self, client: usize, guardian: usize) {
        self.wake_soon(Event::Guardian(client, guardian), client);
    }

    /// A turn at this moment of its clock.
    fn wake_at(&mut self, client: usize, moment: Moment) {
        let at = self.clients[client].clock.time(moment);
        let at = at.max(self.now) + self.timer_delay(client);
        self.turn_at(client, at);
    }

    /// How late a timer is.
    fn timer_delay(&mut self, client: usize) -> Time {
        let it = &self.clients[client];
        let most = if it.late_timers > 0 {
            LATE_TIMER
        } else if it.busy > 0 {
            BUSY
        } else {
            300
        };
        self.random.next() % most
    }

    pub fn look(&mut self) {
        self.judge.look(&self.clients, self.now);
    }

    pub fn begin(&mut self, client: usize) {
        if self.clients[client].is_dead || !self.clients[client].is_unborn() {
            return;
        }
        self.disturb();
        let now = self.now_of(client);
        let it = &mut self.clients[client];
        let plan = acquire::Plan {
            goal: acquire::Goal::Lock,
            server: "server".to_owned(),
            hosts: 1,
            wait: it.wait,
            patience: Some(Duration::from_micros(PATIENCE)),
            ttl: it.terms().map(Terms::ttl),
            fence: it.fence,
            sync: false,
            verbose: it.verbose,
            slots: it.slots,
        };
        let request = LockRequest {
            name: lock::Name::id(1),
            shared: it.shared_lock,
            slots: it.slots,
            settings: SessionSettings::new(it.terms().map(Terms::ttl)),
            fence: it.fence,
            sync: false,
        };
        it.life = Life::Acquiring(Box::new(Acquiring {
            state: acquire::State::new(plan, now),
            request,
            asked: None,
            lock: None,
            order: Pending::Pause(self.now),
            beside: None,
        }));
        self.acquire_on(client, acquire::Event::Begin);
    }

    /// Something has come on a connection of a client's.
    pub fn receive(&mut self, client: usize, connection: usize, message: ToClient) {
        self.clients[client].inbox.push_back((connection, message));
        self.wake(client);
    }

    pub fn note_grant(&mut self, connection: usize, owner: super::server::Owner) {
        let client = self.connections[connection].client;
        let keys = self.clients[client].keys();
        if self.server.holds_any(owner, &keys) {
            self.clients[client].was_granted = true;
        }
    }

    /// Whether the session that a client has holds its lock.
    fn holds_lock(&self, client: usize) -> bool {
        let it = &self.clients[client];
        let owner = it.connection.and_then(|connection| self.owner(connection));
        owner.is_some_and(|owner| self.server.holds_any(owner, &it.keys()))
    }

    /// Without a lease a server that has not heard of the end of a connection keeps the lock.
    pub fn note_lifted(&mut self, client: usize) {
        if let Life::Supervising(run) = &self.clients[client].life {
            self.takes_long |= run.is_lifted;
        }
    }

    /// The session that a client has is ended alone: until it has heard of it two may run.
    pub fn excuse_session(&mut self, client: usize) {
        let (now, it) = (self.now, &mut self.clients[client]);
        // The lock may be on its way.
        let until = it.lease_over().max(now + it.ttl * SECOND);
        it.excuse(Reason::EndedAlone, now, until);
        self.lose_session(client);
    }

    /// The session of a client's is lost, and others live on.
    pub fn lose_session(&mut self, client: usize) {
        let it = &mut self.clients[client];
        it.ended_alone |= it.was_granted;
        // It goes down already, but lets those who are there have the lock.
        if self.server.phase == Phase::Smart {
            it.server_goes_down(self.now);
        }
    }

    /// Nobody listens at the server's Unix socket, though it lives: so it seems to be down.
    pub fn excuse_socket(&mut self, client: usize, time: Time) {
        let (now, it) = (self.now, &mut self.clients[client]);
        let until = now + time + it.ttl * SECOND + SLACK;
        it.excuse(Reason::SocketGone, now, until);
    }

    fn spoken(&self, client: usize) -> Spoken {
        Spoken(match self.clients[client].pooled {
            true => MADE_UP,
            false => OWN,
        })
    }

    // pglock

    pub fn pglock_turn(&mut self, client: usize) {
        let now = self.now;
        let it = &mut self.clients[client];
        if it.next_turn <= now {
            it.next_turn = 0;
        }
        if it.has_exited() || it.is_frozen > 0 || it.host_frozen > 0 {
            return;
        }
        if let Life::Supervising(run) = &it.life
            && run.suspended
        {
            return;
        }
        match &it.life {
            Life::Unborn | Life::Exited => {}
            Life::Acquiring(_) => self.acquire_turn(client),
            Life::Supervising(_) => self.supervise_turn(client),
            Life::Releasing(_) => self.release_turn(client),
        }
    }
}

/// What libpq says of a connection that is closed.
fn closed(words: Option<Error>) -> Error {
    words.unwrap_or_else(|| Error {
        message: "server closed the connection unexpectedly".to_owned(),
        ..Error::default()
    })
}
