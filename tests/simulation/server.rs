//! A server of the simulation: its backends, what they do with the statements that they are sent, how it goes down and comes up.
//! It has no clock and no network of its own; [`Out`] is what is to be done for it.

use std::collections::{BTreeMap, VecDeque};

use super::locks::{Level, Locks};
use super::sql::{
    Attempt, Glance, Look, LookAtSign, Program, Release, Settings, Settle, Statement, Take, Turn,
};
use super::time::{MILLISECOND, SECOND, Time, micros};
use crate::lock::Key;
use crate::pq::{Error, Outcome};

/// What stands in a statement for the number of the backend that it is sent to, so that it is the same for all.
pub const OWN: i32 = 1;
/// What a pooler makes up in its place.
pub const MADE_UP: i32 = 2;
/// How long `pg_terminate_backend` waits for the backend to be gone.
const TERMINATE_WAIT: Time = 1_000_000;
/// The number of the process before the first backend.
const FIRST_PID: i32 = 100;
/// How often a turn looks for a free slot.
const SLOT_POLL: Time = 20_000;

/// Whether a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Up,
    /// In a smart shutdown: those who are there may stay.
    Smart,
    /// Ending its sessions, one after the other.
    Ending,
    Down,
    /// Coming up; whether after a crash of a backend.
    Starting(bool),
}

/// Whom a backend serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Connection(usize),
    /// A place in the pool.
    Pool(usize),
}

/// What is to be done for a server.
#[derive(Debug)]
pub enum Out {
    /// Give this answer.
    Answer(Owner, Vec<Outcome>),
    /// Close the connection, with these last words.
    Close(Owner, Option<Error>),
    /// Look at this backend again.
    Wake(i32, Time),
}

struct Backend {
    owner: Owner,
    /// By the server's clock.
    start: i64,
    settings: Settings,
    local: Option<Settings>,
    in_transaction: bool,
    aborted: bool,
    /// By the server's clock, when the last one of those who wait behind a pooler was told to look again.
    turn: i64,
    /// What a turn has come to.
    taken: Option<Key>,
    /// Whether it has signed that it gives a lock up.
    has_signed: bool,
    /// How long a turn waits at once, and the word on it.
    turn_time: Time,
    word: String,
    run: Option<Run>,
    queue: VecDeque<Program>,
    idle_since: Time,
    client_is_gone: bool,
    /// Whether it has been told to end: it does before its next statement, or when it gets its turn.
    is_told_to_end: bool,
}

struct Run {
    program: Program,
    place: usize,
    outcomes: Vec<Outcome>,
    wait: Wait,
    step: Step,
    began: Time,
}

/// What a backend waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    No,
    Until(Time),
    /// A lock, until its timeout.
    Lock(Option<Time>),
    /// That a sign is seen, until then.
    Sign(Time),
    /// The end of another backend.
    End(i32, Time),
}

/// How far a statement is that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Begin,
    /// The key on the way in is waited for; whether it was granted.
    Entering(bool),
    Entered,
    /// The lock is waited for; whether it was granted.
    Waiting(bool),
    /// The lock is held for a while before that counts.
    Settling,
    /// It came with a sign, which is to be withdrawn; whether it was.
    Hearing(bool),
    /// Its own sign is to be seen until then.
    Lingering(Time),
}

pub struct Server {
    pub phase: Phase,
    pub is_standby: bool,
    /// What its clock is ahead of the true one.
    pub clock_offset: i64,
    clock_rate: i64,
    started: i64,
    /// The timeline that it writes, and the end of its recovery by the control file, which is cut to the second.
    pub timeline: u32,
    promoted: Option<i64>,
    /// The times at which statistics were reset: of one kind that can be reset by itself, of the others, and of those in shared
    /// memory.
    resets: [i64; 3],
    backends: BTreeMap<i32, Backend>,
    pub locks: Locks,
    next_pid: i32,
    tokens: u64,
    /// How many places its queues have. The rest is as if it were always taken, so that a few who wait are many.
    places: usize,
    outs: Vec<Out>,
}

impl Server {
    /// A server that was started long ago. Its clock is fast by so many parts in a million.
    pub fn new(clock_rate: i64, places: usize) -> Self {
        Self {
            phase: Phase::Up,
            is_standby: false,
            clock_offset: 0,
            clock_rate,
            started: -1_000_000_000,
            timeline: 1,
            promoted: None,
            resets: [-1_000_000_000; 3],
            backends: BTreeMap::new(),
            locks: Locks::default(),
            next_pid: FIRST_PID,
            tokens: 0,
            places,
            outs: Vec::new(),
        }
    }

    /// A standby that is promoted now in the place of this primary.
    pub fn promote(clock_rate: i64, before: &Self, now: Time) -> Self {
        let mut new = Self::new(clock_rate, before.places);
        let second = SECOND as i64;
        new.timeline = before.timeline + 1;
        new.promoted = Some(new.wall(now).div_euclid(second) * second);
        new
    }

    /// When it was promoted at the latest.
    fn promoted_at_the_latest(&self) -> Option<i64> {
        self.promoted.map(|promoted| promoted + SECOND as i64)
    }

    fn wall(&self, now: Time) -> i64 {
        let now = now as i64;
        now + now * self.clock_rate / 1_000_000 + self.clock_offset
    }

    pub fn outs(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.outs)
    }

    pub fn has_sessions(&self) -> bool {
        !self.backends.is_empty()
    }

    /// Whom its backends serve.
    pub fn owners(&self) -> impl Iterator<Item = Owner> {
        self.backends.values().map(|backend| backend.owner)
    }

    pub fn pids(&self) -> Vec<i32> {
        self.backends.keys().copied().collect()
    }

    pub fn backend_of(&self, owner: Owner) -> Option<i32> {
        let mut backends = self.backends.iter();
        backends
            .find(|(_, backend)| backend.owner == owner)
            .map(|(pid, _)| *pid)
    }

    /// Whether the session of this owner holds a lock that counts for `holds`.
    pub fn holds_any(&self, owner: Owner, keys: &[Key]) -> bool {
        self.backend_of(owner)
            .is_some_and(|pid| self.locks.of(pid).any(|(key, _)| keys.contains(&key)))
    }

    /// Whether the session of this owner is in a transaction, be it one that has failed.
    pub fn is_in_transaction(&self, owner: Owner) -> bool {
        let backend = self
            .backend_of(owner)
            .and_then(|pid| self.backends.get(&pid));
        backend.is_some_and(|backend| backend.in_transaction)
    }

    /// What a newcomer hears, or the number of its backend.
    pub fn connect(&mut self, owner: Owner, now: Time) -> Result<i32, Option<Error>> {
        let no = |message: &str| Some(fatal("57P03", message));
        match self.phase {
            Phase::Up => {}
            Phase::Smart | Phase::Ending => return Err(no("the database system is shutting down")),
            Phase::Starting(true) => return Err(no("the database system is in recovery mode")),
            Phase::Starting(false) => return Err(no("the database system is starting up")),
            Phase::Down => return Err(None),
        }
        self.next_pid += 1;
        let pid = self.next_pid;
        let backend = Backend {
            owner,
            start: self.wall(now),
            settings: Settings::default(),
            local: None,
            in_transaction: false,
            aborted: false,
            turn: 0,
            taken: None,
            has_signed: false,
            turn_time: 0,
            word: String::new(),
            run: None,
            queue: VecDeque::new(),
            idle_since: now,
            client_is_gone: false,
            is_told_to_end: false,
        };
        self.backends.insert(pid, backend);
        Ok(pid)
    }

    pub fn query(&mut self, owner: Owner, program: Program, now: Time) {
        let Some(pid) = self.backend_of(owner) else {
            return;
        };
        let backend = self.backends.get_mut(&pid).expect("a backend");
        backend.queue.push_back(program);
        if backend.run.is_none() {
            self.begin(pid, now);
        }
    }

    /// The client has closed its side.
    pub fn close(&mut self, owner: Owner, now: Time) {
        let Some(pid) = self.backend_of(owner) else {
            return;
        };
        let backend = self.backends.get_mut(&pid).expect("a backend");
        // It reads when it has nothing to do, and not before.
        if backend.run.is_some() {
            backend.client_is_gone = true;
        } else {
            self.end(pid, None, now);
        }
    }

    /// Has a backend leave off what it does.
    pub fn cancel(&mut self, owner: Owner, now: Time) {
        let Some(pid) = self.backend_of(owner) else {
            return;
        };
        if let Some(run) = &mut self.backends.get_mut(&pid).expect("a backend").run {
            let error = Error {
                sqlstate: Some("57014".to_owned()),
                message: "canceling statement due to user request".to_owned(),
                reached: true,
                is_warning: false,
            };
            run.outcomes.push(Outcome::Failed(error));
            self.finish(pid, now);
        }
    }

    /// The next backend that a shutdown has not told to end yet. The postmaster keeps its children in a list with the newest
    /// first (`BackendList` in its `postmaster.c`), and tells them in this order.
    pub fn next_to_be_told(&self) -> Option<i32> {
        let mut backends = self.backends.iter().rev();
        let not_told = |(_, backend): &(&i32, &Backend)| !backend.is_told_to_end;
        backends.find(not_told).map(|(pid, _)| *pid)
    }

    pub fn tell_to_end(&mut self, pid: i32) {
        self.backend(pid).is_told_to_end = true;
    }

    pub fn is_there(&self, pid: i32) -> bool {
        self.backends.contains_key(&pid)
    }

    /// Ends a backend, as an administrator does.
    pub fn terminate(&mut self, pid: i32, now: Time) {
        let words = fatal(
            "57P01",
            "terminating connection due to administrator command",
        );
        self.end(pid, Some(words), now);
    }

    /// A server that crashes or is stopped at once warns everybody; one that is killed says nothing.
    pub fn lose_all(&mut self, words: Option<&str>, now: Time) {
        for pid in self.pids() {
            let words = words.map(|sqlstate| Error {
                is_warning: true,
                ..fatal(sqlstate, "terminating connection because of the end of all")
            });
            if let Some(backend) = self.backends.remove(&pid) {
                self.outs.push(Out::Close(backend.owner, words));
            }
        }
        self.locks.clear();
        let _ = now;
    }

    /// It is up again: after a crash of a backend under the same postmaster, or anew.
    pub fn start(&mut self, after_backend: bool, is_clean: bool, now: Time) {
        let wall = self.wall(now);
        self.phase = Phase::Up;
        if !after_backend {
            self.started = wall;
            // As in a container, whose processes have the same numbers each time.
            self.next_pid = FIRST_PID;
        }
        if !after_backend && is_clean {
            // The end of its recovery is forgotten.
            self.promoted = None;
        }
        if after_backend || !is_clean {
            // Shared memory is made anew before the statistics are reset.
            self.resets = [wall, wall, wall - 2000];
        } else {
            self.resets[2] = wall;
        }
    }

    /// An administrator resets statistics: of one kind, or of all.
    pub fn reset_statistics(&mut self, all: bool, now: Time) {
        let wall = self.wall(now);
        if all {
            self.resets = [wall; 3];
        } else {
            self.resets[0] = wall;
        }
    }

    /// When it lost all its sessions, as those have it who must know of every time.
    fn lost_at_the_latest(&self) -> i64 {
        let least = self.resets.into_iter().min().unwrap_or_default();
        self.started.max(least)
    }

    /// The same for those who must be sure of it.
    fn lost_at_the_earliest(&self) -> i64 {
        let [one, others, memory] = self.resets;
        if one == others && memory < one {
            self.started.max(memory)
        } else {
            self.started
        }
    }

    /// Where it stands in the history of its cluster.
    fn history(&self) -> [Option<String>; 2] {
        [Some("7".to_owned()), Some(format!("{:08X}", self.timeline))]
    }

    /// Whether newcomers hold off from it.
    pub fn is_young(&self, ttl: u64, now: Time) -> bool {
        let promoted = self.promoted_at_the_latest();
        let lost = promoted
            .into_iter()
            .chain([self.lost_at_the_latest()])
            .max();
        lost.is_some_and(|lost| self.wall(now) - lost < (ttl * SECOND) as i64)
    }

    // Backends

    /// Looks whether a backend can go on, or has been silent for too long.
    pub fn wake(&mut self, pid: i32, now: Time) {
        let Some(backend) = self.backends.get_mut(&pid) else {
            return;
        };
        let Some(run) = &mut backend.run else {
            if let Some(until) = backend.silent_until()
                && until <= now
            {
                let sqlstate = if backend.in_transaction {
                    "25P03"
                } else {
                    "57P05"
                };
                self.end(
                    pid,
                    Some(fatal(sqlstate, "terminating connection due to a timeout")),
                    now,
                );
            }
            return;
        };
        match run.wait {
            Wait::Until(until) if until <= now => {
                run.wait = Wait::No;
                self.go_on(pid, now);
            }
            Wait::Lock(Some(until)) if until <= now => {
                run.wait = Wait::No;
                let granted = self.locks.leave_queue(pid);
                self.granted(granted, now);
                self.go_on(pid, now);
            }
            Wait::End(_, until) if until <= now => {
                run.wait = Wait::No;
                self.go_on(pid, now);
            }
            // It looks again.
            Wait::Sign(_) => {
                run.wait = Wait::No;
                self.go_on(pid, now);
            }
            Wait::No | Wait::Until(_) | Wait::Lock(_) | Wait::End(..) => {}
        }
    }

    fn begin(&mut self, pid: i32, now: Time) {
        let backend = self.backends.get_mut(&pid).expect("a backend");
        let Some(program) = backend.queue.pop_front() else {
            return;
        };
        backend.taken = None;
        backend.run = Some(Run {
            program,
            place: 0,
            outcomes: Vec::new(),
            wait: Wait::No,
            step: Step::Begin,
            began: now,
        });
        self.go_on(pid, now);
    }

    /// Whoever has got a lock goes on, at once or when its host lets it.
    fn granted(&mut self, pids: Vec<i32>, now: Time) {
        for pid in pids {
            let Some(backend) = self.backends.get_mut(&pid) else {
                continue;
            };
            if let Some(run) = &mut backend.run
                && let Wait::Lock(_) = run.wait
            {
                run.wait = Wait::No;
                run.step = match run.step {
                    Step::Entering(_) => Step::Entering(true),
                    Step::Waiting(_) => Step::Waiting(true),
                    Step::Hearing(_) => Step::Hearing(true),
                    other => other,
                };
                let step = run.step;
                match lag(pid, now) {
                    0 => self.go_on(pid, now),
                    lag => {
                        self.wait(pid, Wait::Until(now + lag), step);
                    }
                }
            }
        }
    }

    /// Carries a query on until it waits or is done.
    fn go_on(&mut self, pid: i32, now: Time) {
        loop {
            let Some(backend) = self.backends.get_mut(&pid) else {
                return;
            };
            if backend.is_told_to_end {
                return self.terminate(pid, now);
            }
            let Some(run) = &mut backend.run else {
                return;
            };
            let Some(statement) = run.program.get(run.place).cloned() else {
                return self.finish(pid, now);
            };
            if backend.aborted && statement != Statement::Rollback {
                run.outcomes.push(Outcome::Failed(fatal(
                    "25P02",
                    "current transaction is aborted",
                )));
                return self.finish(pid, now);
            }
            let Some(outcome) = self.execute(pid, statement, now) else {
                return;
            };
            let Some(run) = self
                .backends
                .get_mut(&pid)
                .and_then(|backend| backend.run.as_mut())
            else {
                return;
            };
            let has_failed = matches!(outcome, Outcome::Failed(_));
            run.outcomes.push(outcome);
            if has_failed {
                return self.finish(pid, now);
            }
            run.place += 1;
            run.step = Step::Begin;
        }
    }

    /// All statements of a query are answered, or one has failed.
    fn finish(&mut self, pid: i32, now: Time) {
        let Some(backend) = self.backends.get_mut(&pid) else {
            return;
        };
        let Some(run) = backend.run.take() else {
            return;
        };
        let failed = matches!(run.outcomes.last(), Some(Outcome::Failed(_)));
        backend.aborted = failed && backend.in_transaction;
        let owner = backend.owner;
        let ends = !backend.in_transaction;
        if ends {
            backend.local = None;
        }
        backend.idle_since = now;
        let gone = backend.client_is_gone;
        if let Some(until) = backend.silent_until() {
            self.outs.push(Out::Wake(pid, until));
        }
        let mut granted = self.locks.leave_queue(pid);
        if ends || failed {
            granted.extend(self.locks.end_transaction(pid));
        }
        self.granted(granted, now);
        if gone {
            return self.end(pid, None, now);
        }
        self.outs.push(Out::Answer(owner, run.outcomes));
        self.begin(pid, now);
    }

    fn end(&mut self, pid: i32, words: Option<Error>, now: Time) {
        let Some(backend) = self.backends.remove(&pid) else {
            return;
        };
        self.outs.push(Out::Close(backend.owner, words));
        let granted = self.locks.leave(pid);
        self.granted(granted, now);
        for other in self.pids() {
            let waits = self
                .backends
                .get_mut(&other)
                .and_then(|other| other.run.as_mut());
            if let Some(run) = waits
                && let Wait::End(ended, _) = run.wait
                && ended == pid
            {
                run.wait = Wait::No;
                self.go_on(other, now);
            }
        }
    }

    /// Waits, and returns nothing.
    fn wait(&mut self, pid: i32, wait: Wait, step: Step) -> Option<Outcome> {
        let until = match wait {
            Wait::Until(until)
            | Wait::Lock(Some(until))
            | Wait::Sign(until)
            | Wait::End(_, until) => Some(until),
            Wait::No | Wait::Lock(None) => None,
        };
        if let Some(until) = until {
            self.outs.push(Out::Wake(pid, until));
        }
        if let Some(run) = self
            .backends
            .get_mut(&pid)
            .and_then(|backend| backend.run.as_mut())
        {
            run.wait = wait;
            run.step = step;
        }
        None
    }

    fn step(&self, pid: i32) -> Step {
        let backend = self.backends.get(&pid);
        let run = backend.and_then(|backend| backend.run.as_ref());
        run.map_or(Step::Begin, |run| run.step)
    }

    // Statements

    /// The outcome of a statement, unless it has to be waited for.
    fn execute(&mut self, pid: i32, statement: Statement, now: Time) -> Option<Outcome> {
        Some(match statement {
            Statement::Nothing => nothing(),
            Statement::Failing => Outcome::Failed(Error {
                sqlstate: Some("53200".to_owned()),
                message: "ERROR:  out of memory".to_owned(),
                reached: true,
                is_warning: false,
            }),
            Statement::Begin => {
                self.backend(pid).in_transaction = true;
                nothing()
            }
            Statement::Commit | Statement::Rollback => {
                let backend = self.backend(pid);
                backend.in_transaction = false;
                backend.aborted = false;
                backend.local = None;
                let granted = self.locks.end_transaction(pid);
                self.granted(granted, now);
                nothing()
            }
            Statement::Set(number, settings) => {
                if number.is_none_or(|number| number == OWN) {
                    self.set(pid, settings);
                }
                row([None])
            }
            Statement::LockTimeout(time) => {
                self.backend(pid).turn_time = micros(time);
                nothing()
            }
            Statement::Begun(first) => {
                self.backend(pid).word = turn_word(first).to_owned();
                nothing()
            }
            Statement::Word => row([Some(self.backend(pid).word.clone())]),
            Statement::PlaceLeft => match self.backend(pid).word.starts_with("held ") {
                true => row([text("tt")]),
                false => row([text("")]),
            },
            Statement::Release(release) => self.give_up(pid, release, now),
            Statement::LookAtSign(look) => return self.look_at_sign(pid, look, now),
            Statement::Linger(sign, time) => {
                self.linger(pid, sign, micros(time), now)?;
                row([None])
            }
            Statement::Look(look) => self.look_for_place(pid, &look),
            Statement::Glance(glance) => self.glance(pid, &glance, now),
            Statement::Attempt(attempt) => return self.attempt(pid, &attempt, now),
            Statement::Turn(turn) => return self.turn(pid, &turn, now),
            Statement::Proof => Outcome::Done {
                rows: self
                    .locks
                    .of(pid)
                    .map(|(key, shared)| {
                        let mode = if shared { "ShareLock" } else { "ExclusiveLock" };
                        [&key.row()[..], &[Some(mode.to_owned())]].concat()
                    })
                    .collect(),
            },
            Statement::CountedProof { alike, lock } => self.proof(pid, alike, lock),
            Statement::Left {
                whole,
                held,
                promotion,
            } => {
                let lost = self.lost_at_the_latest();
                let promoted = self.promoted_at_the_latest().filter(|_| promotion);
                let is_promotion = promoted.is_some_and(|promoted| promoted > lost);
                let age = self.wall(now) - promoted.into_iter().fold(lost, i64::max);
                let is_held = held.is_some_and(|(key, only_exclusive)| {
                    self.locks.holders(key, only_exclusive).next().is_some()
                });
                let left = whole - seconds(age);
                row([
                    Some(left.to_string()),
                    text("f"),
                    Some(truth(is_held)),
                    Some(truth(is_promotion)),
                ])
            }
            Statement::Past { at_the_latest } => {
                let lost = match at_the_latest {
                    true => self.lost_at_the_latest(),
                    false => self.lost_at_the_earliest(),
                };
                let ago = |moment| seconds(self.wall(now) - moment).to_string();
                let promoted = self.promoted_at_the_latest().map(ago);
                let [cluster, timeline] = self.history();
                row([Some(ago(lost)), promoted, cluster, timeline])
            }
            Statement::History => row(self.history()),
            Statement::Terminate(other) => {
                if self.step(pid) == Step::Begin && self.backends.contains_key(&other) {
                    self.terminate(other, now);
                    if self.backends.contains_key(&other) {
                        let wait = Wait::End(other, now + TERMINATE_WAIT);
                        return self.wait(pid, wait, Step::Waiting(true));
                    }
                }
                row([text("t")])
            }
            Statement::HolderAge(other, key) => {
                let holds = self.locks.holders(key, false).any(|holder| holder == other);
                match self.backends.get(&other) {
                    Some(backend) if holds => {
                        let age = self.wall(now) - backend.start;
                        row([Some(seconds(age).to_string())])
                    }
                    Some(_) | None => nothing(),
                }
            }
            Statement::Unlock(key, shared) => {
                let granted = self.locks.unlock(pid, key, shared);
                let was_held = granted.is_some();
                self.granted(granted.unwrap_or_default(), now);
                row([Some(truth(was_held))])
            }
            Statement::Recovery => row([Some(truth(self.is_standby))]),
            Statement::Token => row([Some(self.token())]),
            Statement::Holders => nothing(),
        })
    }

    /// What a session has, and what tells that others count otherwise.
    fn proof(&self, pid: i32, alike: Key, lock: Option<Key>) -> Outcome {
        let Key::Two(class, _) = alike else {
            panic!("{alike} tells no count")
        };
        let is_wanted = |(owner, key, _): &(i32, Key, bool)| {
            let differs = matches!(key, Key::Two(first, _) if *first == class) && *key != alike;
            *owner == pid || differs || Some(*key) == lock
        };
        let row = |(owner, key, shared): (i32, Key, bool)| {
            let mode = if shared { "ShareLock" } else { "ExclusiveLock" };
            let mut row = key.row().to_vec();
            row.extend([mode, &truth(owner == pid), "5"].map(text));
            if let Some(lock) = lock {
                let is_lock = key == lock;
                row.push(Some(truth(is_lock)));
                row.push(is_lock.then(|| truth(self.locks.holds(owner, alike, true))));
            }
            row
        };
        Outcome::Done {
            rows: self.locks.all().filter(is_wanted).map(row).collect(),
        }
    }

    fn backend(&mut self, pid: i32) -> &mut Backend {
        self.backends.get_mut(&pid).expect("a backend")
    }

    fn token(&mut self) -> String {
        self.tokens += 1;
        self.tokens.to_string()
    }

    fn set(&mut self, pid: i32, settings: Settings) {
        let backend = self.backend(pid);
        if settings.local {
            backend.local = Some(settings);
        } else {
            backend.settings = settings;
        }
    }

    fn attempt(&mut self, pid: i32, attempt: &Attempt, now: Time) -> Option<Outcome> {
        if self.step(pid) == Step::Begin {
            if attempt.pid.is_some_and(|number| number != OWN) {
                return Some(row([text("pooled")]));
            }
            if self.is_standby {
                return Some(row([text("standby")]));
            }
            if let Some((time, exact)) = attempt.young {
                let limit = self.wall(now) - time.as_micros() as i64;
                let is_young = if exact {
                    self.lost_at_the_latest() > limit
                } else {
                    self.started > limit || self.resets[0] > limit
                };
                // The quick question is about what the control file says.
                let was_promoted = match self.promoted.filter(|_| attempt.promotion) {
                    Some(promoted) => promoted + SECOND as i64 > limit,
                    None => false,
                };
                if is_young || was_promoted {
                    return Some(row([text("young")]));
                }
            }
            if let Some(settings) = attempt.settings {
                self.set(pid, settings);
            }
        }
        let level = |local| {
            if local {
                Level::Transaction
            } else {
                Level::Session
            }
        };
        let (key, token) = match &attempt.take {
            Take::Kept(key) => (Some(*key), false),
            Take::Key {
                key,
                shared,
                local,
                settle,
                after,
                count,
                counts_first,
                token,
            } => {
                if self.step(pid) == Step::Begin {
                    if let Some(count) = count.filter(|_| *counts_first) {
                        self.locks.try_lock(pid, count, true, level(*local));
                    }
                    let others_first = after
                        .is_some_and(|after| self.locks.holders(after, false).next().is_some());
                    if others_first || !self.locks.try_lock(pid, *key, *shared, level(*local)) {
                        return Some(row([text("busy")]));
                    }
                    if let Some(count) = count.filter(|_| !counts_first) {
                        self.locks.try_lock(pid, count, true, level(*local));
                    }
                    if let Some(time) = self.time_to_settle(pid, *key, *settle) {
                        return self.wait(pid, Wait::Until(now + time), Step::Settling);
                    }
                } else if let Some(settle) = settle
                    && !self.is_settled(pid, *key, *shared, *settle, now)
                {
                    return Some(row([text("busy")]));
                }
                (Some(*key), *token)
            }
            Take::Slot {
                slots,
                queue,
                count,
                local,
                settle,
                token,
            } => {
                if self.step(pid) == Step::Begin {
                    self.locks.try_lock(pid, *count, true, level(*local));
                    let may = queue.is_none_or(|queue| {
                        self.locks.try_lock(pid, queue, false, Level::Transaction)
                    });
                    let free = slots
                        .iter()
                        .copied()
                        .find(|slot| may && self.locks.try_lock(pid, *slot, false, level(*local)));
                    self.backend(pid).taken = free;
                    if let Some(slot) = free
                        && let Some(time) = self.time_to_settle(pid, slot, *settle)
                    {
                        return self.wait(pid, Wait::Until(now + time), Step::Settling);
                    }
                } else if let (Some(slot), Some(settle)) = (self.backend(pid).taken, settle)
                    && !self.is_settled(pid, slot, false, *settle, now)
                {
                    return Some(row([text("busy")]));
                }
                (self.backend(pid).taken, *token)
            }
        };
        Some(match key {
            Some(key) => {
                let token = match token {
                    true => format!(" {}", self.token()),
                    false => String::new(),
                };
                row([Some(format!("held {key}{token}"))])
            }
            None => row([text("busy")]),
        })
    }

    /// Whether the sign is gone that this lock was given up, once one has made sure of it who has just taken it. Else it is given
    /// back, if that is wanted.
    fn is_settled(&mut self, pid: i32, key: Key, shared: bool, settle: Settle, now: Time) -> bool {
        let is_settled = self
            .locks
            .try_lock(pid, key.release(true), true, Level::Transaction);
        if !is_settled && settle.gives_back {
            let granted = self.locks.unlock(pid, key, shared);
            self.granted(granted.expect("it was held"), now);
        }
        is_settled
    }

    /// For how long one who has just taken this lock makes sure of it.
    fn time_to_settle(&mut self, pid: i32, key: Key, settle: Option<Settle>) -> Option<Time> {
        let Settle { time, by_sign, .. } = settle?;
        let level = Level::Transaction;
        let no_sign = by_sign && self.locks.try_lock(pid, key.release(true), true, level);
        (!no_sign).then_some(micros(time))
    }

    /// Gives a lock up with a sign.
    fn give_up(&mut self, pid: i32, release: Release, now: Time) -> Outcome {
        let Release {
            key,
            shared,
            sign,
            other,
        } = release;
        let is_mine = self.locks.try_lock(pid, sign, false, Level::Session);
        let is_last = !shared || self.locks.holders(key, false).all(|holder| holder == pid);
        if is_mine && !is_last {
            self.withdraw(pid, sign, now);
        }
        self.backend(pid).has_signed = is_mine && is_last;
        if let Some(other) = other {
            self.locks.try_lock(pid, other, false, Level::Session);
        }
        let granted = self.locks.unlock(pid, key, shared);
        let had_lock = truth(granted.is_some());
        self.granted(granted.unwrap_or_default(), now);
        match shared {
            true => row([text("yes"), Some(had_lock)]),
            false => row([text("t"), text("t"), Some(had_lock)]),
        }
    }

    /// Looks whether the sign is still to be seen, and else withdraws it.
    fn look_at_sign(&mut self, pid: i32, look: LookAtSign, now: Time) -> Option<Outcome> {
        let level = Level::Session;
        if self.step(pid) == Step::Settling || look.if_signed && !self.backend(pid).has_signed {
            return Some(row([text("f")]));
        }
        let is_free = |locks: &mut Locks, shared| {
            let free = look
                .lock
                .filter(|lock| locks.try_lock(pid, *lock, shared, level));
            free.and_then(|lock| locks.unlock(pid, lock, shared))
        };
        let mut is_over = self.locks.is_waited_for_alone(look.sign)
            || look
                .queue
                .is_some_and(|queue| self.locks.holders(queue, false).next().is_none());
        let mut settle = None;
        if is_over {
        } else if let Some(granted) = is_free(&mut self.locks, false) {
            self.granted(granted, now);
            is_over = true;
        } else if look.shared.is_some()
            && let Some(granted) = is_free(&mut self.locks, true)
        {
            self.granted(granted, now);
            is_over = true;
            settle = look.shared;
        }
        if is_over {
            self.withdraw(pid, look.sign, now);
        }
        match settle {
            Some(time) => self.wait(pid, Wait::Until(now + micros(time)), Step::Settling),
            None => Some(row([Some(truth(!is_over))])),
        }
    }

    /// Lingers, until the sign is seen or the time is over.
    fn linger(&mut self, pid: i32, sign: Key, time: Time, now: Time) -> Option<()> {
        let until = match self.step(pid) {
            Step::Lingering(until) => until,
            _ => now + time,
        };
        if self.locks.is_waited_for_alone(sign) || until <= now {
            self.withdraw(pid, sign, now);
            return Some(());
        }
        self.wait(pid, Wait::Sign(until), Step::Lingering(until));
        None
    }

    /// Has all who linger look again.
    fn wake_signers(&mut self, now: Time) {
        for (pid, backend) in &self.backends {
            if let Some(run) = &backend.run
                && let Wait::Sign(_) = run.wait
            {
                self.outs.push(Out::Wake(*pid, now));
            }
        }
    }

    fn withdraw(&mut self, pid: i32, sign: Key, now: Time) {
        let granted = self.locks.unlock(pid, sign, false);
        self.granted(granted.unwrap_or_default(), now);
    }

    fn look_for_place(&mut self, pid: i32, look: &Look) -> Outcome {
        if look.pid != OWN {
            return row([text("pooled")]);
        }
        if self.is_standby {
            return row([text("standby")]);
        }
        if let Some(key) = look.seen {
            assert!(self.locks.try_lock(pid, key, true, Level::Session));
        }
        let is_place = |key: Key| matches!(key, Key::Two(_, -195..=-100));
        let taken = self.locks.all().filter(|(_, key, _)| is_place(*key));
        let is_full = taken.count() >= self.places;
        let mut places = look.places.iter().filter(|_| !is_full);
        let place = places.find(|(key, _)| self.locks.try_lock(pid, *key, false, Level::Session));
        row([match place {
            Some((_, place)) => Some(format!("place {place}")),
            None => text("busy"),
        }])
    }

    fn glance(&mut self, pid: i32, glance: &Glance, now: Time) -> Outcome {
        let backend = self.backend(pid);
        assert!(!backend.in_transaction, "it would be undone");
        let last = backend.turn;
        let mut others_first = glance.after.into_iter();
        let others_first =
            others_first.any(|after| self.locks.holders(after, false).next().is_some());
        // Given back with the query.
        let level = Level::Transaction;
        let mut keys = glance.keys.iter();
        let is_free = self.is_standby
            || !others_first
                && keys.any(|key| self.locks.try_lock(pid, *key, glance.shared, level));
        if is_free {
            return row([text("free")]);
        }
        let present = self.wall(now) / 1000;
        let Glance { apart, ahead, .. } = *glance;
        let pause = apart + (last - present).min(ahead).max(0) * (ahead - apart) / ahead;
        self.backend(pid).turn = present + pause;
        row([Some(format!("busy {pause}"))])
    }

    fn turn(&mut self, pid: i32, turn: &Turn, now: Time) -> Option<Outcome> {
        let timeout = self.backend(pid).turn_time;
        let began = self.backend(pid).run.as_ref().map_or(now, |run| run.began);
        // Until it counts a lock is bound to the block, which gives it back when the time is over.
        let level = Level::Transaction;
        loop {
            match self.step(pid) {
                Step::Begin if turn.pid != OWN => {
                    self.backend(pid).word = "pooled".to_owned();
                    return Some(nothing());
                }
                Step::Begin => match turn.enter {
                    Some((key, shared, _))
                        if !self.locks.try_lock(pid, key, shared, Level::Session) =>
                    {
                        self.locks.wait(pid, key, shared, Level::Session);
                        let wait = Wait::Lock(Some(now + timeout));
                        return self.wait(pid, wait, Step::Entering(false));
                    }
                    Some(_) => self.set_step(pid, Step::Entering(true)),
                    None => self.set_step(pid, Step::Entered),
                },
                Step::Entering(false) => return Some(nothing()),
                Step::Entering(true) => {
                    if let Some((key, shared, true)) = turn.enter {
                        let granted = self.locks.unlock(pid, key, shared);
                        self.granted(granted.unwrap_or_default(), now);
                    }
                    self.set_step(pid, Step::Entered);
                }
                Step::Entered => {
                    if turn.is_then_first {
                        self.backend(pid).word = turn_word(true).to_owned();
                    }
                    let mut keys = turn.keys.iter().copied();
                    let free = keys.find(|key| self.locks.try_lock(pid, *key, turn.shared, level));
                    if let Some(key) = free {
                        self.backend(pid).taken = Some(key);
                        self.set_step(pid, Step::Waiting(true));
                        continue;
                    }
                    let until = began + timeout.max(1);
                    if let [key] = turn.keys[..] {
                        self.locks.wait(pid, key, turn.shared, level);
                        self.backend(pid).taken = Some(key);
                        return self.wait(pid, Wait::Lock(Some(until)), Step::Waiting(false));
                    }
                    if began + micros(turn.time) < now {
                        return Some(nothing());
                    }
                    return self.wait(pid, Wait::Until(now + SLOT_POLL), Step::Entered);
                }
                Step::Waiting(true) => {
                    if let Some((key, shared)) = turn.left_first {
                        let granted = self.locks.unlock(pid, key, shared);
                        self.granted(granted.expect("it was held"), now);
                    }
                    let taken = self.backend(pid).taken.expect("a lock");
                    let sign = taken.release(!turn.shared);
                    if self.locks.try_lock(pid, sign, true, level) {
                        let wait = Wait::Until(now + micros(turn.settle));
                        return self.wait(pid, wait, Step::Settling);
                    }
                    let sign = taken.release(true);
                    if self.locks.try_lock(pid, sign, turn.shared, level) {
                        self.set_step(pid, Step::Hearing(true));
                        continue;
                    }
                    self.locks.wait(pid, sign, turn.shared, level);
                    self.wake_signers(now);
                    let wait = Wait::Lock(Some(now + timeout));
                    return self.wait(pid, wait, Step::Hearing(false));
                }
                Step::Waiting(false) | Step::Hearing(false) => {
                    let granted = self.locks.end_transaction(pid);
                    self.granted(granted, now);
                    if turn.left_first.is_some() {
                        self.backend(pid).word = turn_word(false).to_owned();
                    }
                    return Some(nothing());
                }
                Step::Settling | Step::Hearing(true) => {
                    let taken = self.backend(pid).taken.expect("a lock");
                    assert!(self.locks.try_lock(pid, taken, turn.shared, Level::Session));
                    let token = match turn.token {
                        true => format!(" {}", self.token()),
                        false => String::new(),
                    };
                    self.backend(pid).word = format!("held {taken}{token}");
                    let left = [
                        Some((turn.place, false)),
                        Some((turn.seen, true)),
                        turn.leave,
                    ];
                    for (key, shared) in left.into_iter().flatten() {
                        let granted = self.locks.unlock(pid, key, shared);
                        self.granted(granted.expect("it was held"), now);
                    }
                    return Some(nothing());
                }
                Step::Lingering(_) => unreachable!("it has no sign of its own"),
            }
        }
    }

    fn set_step(&mut self, pid: i32, step: Step) {
        if let Some(run) = &mut self.backend(pid).run {
            run.step = step;
        }
    }
}

impl Backend {
    /// Until when it may be silent.
    fn silent_until(&self) -> Option<Time> {
        let settings = match &self.local {
            Some(local) if self.in_transaction => local,
            Some(_) | None if self.in_transaction => return None,
            Some(_) | None => &self.settings,
        };
        Some(self.idle_since + micros(settings.silence?))
    }
}

/// How long after it has got a lock a session runs: as a rule at once, now and then later than another takes for its next statement,
/// or waits for it at all.
fn lag(pid: i32, now: Time) -> Time {
    match ((now / 16) ^ (now / 1024) ^ pid as Time) % 16 {
        0 => MILLISECOND / 2,
        1 => 25 * MILLISECOND,
        _ => 0,
    }
}

fn fatal(sqlstate: &str, message: &str) -> Error {
    Error {
        sqlstate: Some(sqlstate.to_owned()),
        message: format!("FATAL:  {message}"),
        reached: true,
        is_warning: false,
    }
}

/// The word on a turn which is not over.
fn turn_word(first: bool) -> &'static str {
    if first { "first" } else { "busy" }
}

fn nothing() -> Outcome {
    Outcome::Done { rows: Vec::new() }
}

fn row<const N: usize>(fields: [Option<String>; N]) -> Outcome {
    Outcome::Done {
        rows: vec![fields.to_vec()],
    }
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn truth(is_true: bool) -> String {
    if is_true { "t" } else { "f" }.to_owned()
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
