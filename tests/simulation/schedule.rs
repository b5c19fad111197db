//! What a run of the simulation is made of: who takes part, and what goes wrong when. A seed makes all of it; a run that has
//! failed is made shorter by leaving parts out.

use std::fmt;

use super::random::Random;
use super::time::{MILLISECOND, SECOND, Time};
use crate::acquire::state as acquire;
use crate::cli::config::Wait;
use crate::supervise::state::Question;

/// A run.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub ttl: u64,
    pub grace: u64,
    pub slots: u32,
    /// The pool has so many places, and leaves a server that it could not log in to alone for so long.
    pub pool: (usize, Time),
    /// How many places the server's queue has.
    pub places: usize,
    /// Whether the server is reached by a Unix socket, and so are its ends.
    pub is_local: bool,
    pub clients: Vec<Invocation>,
    pub faults: Vec<Fault>,
    pub traps: Vec<Trap>,
}

/// Something that goes wrong as soon as something else happens: what is rare by chance is not by design.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    pub cue: Cue,
    /// How often it lets that pass.
    pub passes: u32,
    /// How long after that, and what.
    pub after: Time,
    pub fault: Fault,
}

/// What a trap waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cue {
    /// A holder asks this.
    Asks(Question),
    /// A holder connects again.
    Connects,
    /// A command is killed.
    Kills,
    /// The server ends a session that was silent for too long.
    TimesOut,
    /// One who is on the way to the lock does this.
    Orders(Ordered),
}

/// What one who is on the way to the lock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordered {
    Connect,
    ConnectBeside,
    Try,
    Wait,
    Glance,
    Rollback,
    Age,
    Holders,
    Token,
    Renew,
    PauseTurn,
    PauseRound,
    Watch,
    Cancel,
    Withdraw,
    EndTransaction,
    Release,
    Other,
}

impl Ordered {
    pub const ALL: [Self; 17] = [
        Self::Connect,
        Self::ConnectBeside,
        Self::Try,
        Self::Wait,
        Self::Glance,
        Self::Rollback,
        Self::Age,
        Self::Holders,
        Self::Token,
        Self::Renew,
        Self::PauseTurn,
        Self::PauseRound,
        Self::Watch,
        Self::Cancel,
        Self::Withdraw,
        Self::EndTransaction,
        Self::Release,
    ];

    pub fn of(order: &acquire::Order) -> Self {
        use acquire::Order;
        match order {
            Order::Connect(_) => Self::Connect,
            Order::ConnectBeside(_) => Self::ConnectBeside,
            Order::Ask { question, .. } => match question {
                acquire::Question::Try { .. } => Self::Try,
                acquire::Question::Look { .. } | acquire::Question::Wait { .. } => Self::Wait,
                acquire::Question::Glance => Self::Glance,
                acquire::Question::Rollback => Self::Rollback,
                acquire::Question::Age { .. } => Self::Age,
                acquire::Question::Holders => Self::Holders,
                acquire::Question::Token => Self::Token,
                acquire::Question::Renew => Self::Renew,
                acquire::Question::Standbys | acquire::Question::Listing => Self::Other,
            },
            Order::Pause {
                keeps_session: true,
                ..
            } => Self::PauseTurn,
            Order::Pause { .. } => Self::PauseRound,
            Order::Watch(_) => Self::Watch,
            Order::Cancel => Self::Cancel,
            Order::Withdraw => Self::Withdraw,
            Order::Rollback => Self::EndTransaction,
            Order::Release => Self::Release,
            Order::End(_) => Self::Other,
        }
    }
}

/// An invocation of pglock, each on a host of its own.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub begin: Time,
    pub wait: Wait,
    pub shared: bool,
    pub pooled: bool,
    pub kill_on_loss: bool,
    pub has_lease: bool,
    /// How long the lock is held at least.
    pub hold: Time,
    pub fence: bool,
    pub verbose: bool,
    /// Whether there is a terminal, and a shell that sees pglock stopped.
    pub terminal: (bool, bool),
    pub command: Behaviour,
}

/// What a command does.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// How long it works.
    pub work: Time,
    /// How long it takes to end when it is told to; for ever, if it does not listen.
    pub ends_in: Option<Time>,
    /// How many it starts, and whether they are there when it has ended.
    pub others: u32,
    pub leaves: bool,
    /// How many more are being started when the group is killed.
    pub late_others: u32,
    /// How long it hangs in the kernel before it dies of SIGKILL, in place of those: it starts nobody then.
    pub hangs: Time,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at: Time,
    pub kind: Kind,
    /// Whom it is about.
    pub client: usize,
    /// How long it lasts.
    pub time: Time,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    // The server.
    CrashBackend,
    StopFast,
    StopImmediate,
    StopSmart,
    KillPostmaster,
    Terminate,
    ResetOne,
    ResetAll,
    FreezeServer,
    StepClockBack,
    StepClock,
    Promote,
    // The way to it.
    Cut,
    CutTo,
    CutFrom,
    /// What comes from the server is there when what pglock is at is over.
    HoldBack,
    ResetClient,
    ResetServer,
    Reset,
    Refuse,
    Slow,
    // The host.
    FreezeHost,
    PowerOff,
    NoProcesses,
    Busy,
    /// It loses interrupts of its timers.
    LateTimers,
    FreezePglock,
    KillPglock,
    FreezeGuardian,
    KillGuardian,
    KillBoth,
    // The command and who uses it.
    /// An invocation that has not begun yet does.
    Arrive,
    KillCommand,
    StopCommand,
    SuspendCommand,
    ContinueCommand,
    Interrupt,
    Terminated,
    TypedStop,
    TellToContinue,
    // The pool, and who administers the server.
    Deny,
    Garble,
    CancelQuery,
    /// The next question is answered by an error.
    Fail,
    Standby,
    RestartPool,
}

impl Kind {
    /// All that happen without being asked for, those more often that mostly lead to more.
    const COMMON: [Self; 61] = [
        Self::Promote,
        Self::Promote,
        Self::CrashBackend,
        Self::CrashBackend,
        Self::StopFast,
        Self::StopFast,
        Self::StopImmediate,
        Self::StopImmediate,
        Self::StopSmart,
        Self::StopSmart,
        Self::KillPostmaster,
        Self::KillPostmaster,
        Self::Terminate,
        Self::Terminate,
        Self::Terminate,
        Self::ResetOne,
        Self::ResetAll,
        Self::FreezeServer,
        Self::Cut,
        Self::Cut,
        Self::Cut,
        Self::CutTo,
        Self::CutFrom,
        Self::CutFrom,
        Self::HoldBack,
        Self::ResetClient,
        Self::ResetClient,
        Self::ResetServer,
        Self::Reset,
        Self::Reset,
        Self::Refuse,
        Self::Refuse,
        Self::Slow,
        Self::FreezeHost,
        Self::PowerOff,
        Self::NoProcesses,
        Self::Busy,
        Self::LateTimers,
        Self::LateTimers,
        Self::FreezePglock,
        Self::FreezePglock,
        Self::KillPglock,
        Self::KillPglock,
        Self::FreezeGuardian,
        Self::KillGuardian,
        Self::KillCommand,
        Self::StopCommand,
        Self::SuspendCommand,
        Self::SuspendCommand,
        Self::ContinueCommand,
        Self::Interrupt,
        Self::Terminated,
        Self::TypedStop,
        Self::TellToContinue,
        Self::RestartPool,
        Self::StepClockBack,
        Self::Deny,
        Self::Garble,
        Self::CancelQuery,
        Self::Fail,
        Self::Standby,
    ];

    /// Those of which two in a row are rarest.
    const TRAPS: [Self; 17] = [
        Self::Arrive,
        Self::Arrive,
        Self::SuspendCommand,
        Self::StopCommand,
        Self::TellToContinue,
        Self::Slow,
        Self::Cut,
        Self::CutFrom,
        Self::HoldBack,
        Self::HoldBack,
        Self::Fail,
        Self::Terminate,
        Self::StopFast,
        Self::KillGuardian,
        Self::NoProcesses,
        Self::Deny,
        Self::Standby,
    ];

    /// Those that are put into every order.
    pub const ORDERED: [Self; 8] = [
        Self::CrashBackend,
        Self::StopFast,
        Self::Terminate,
        Self::Cut,
        Self::ResetClient,
        Self::FreezePglock,
        Self::KillPglock,
        Self::TellToContinue,
    ];
}

/// The stage that a holder is in when something goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Running,
    Frozen,
    Terminating,
    Killed,
    Suspending,
    Suspended,
    Resuming,
    Holding,
}

impl Stage {
    pub const ALL: [Self; 8] = [
        Self::Running,
        Self::Frozen,
        Self::Terminating,
        Self::Killed,
        Self::Suspending,
        Self::Suspended,
        Self::Resuming,
        Self::Holding,
    ];

    /// What leads there, with the time that it lasts, and how long it takes until then.
    fn way(self) -> (&'static [(Kind, Time)], Time) {
        const LONG: Time = 20 * SECOND;
        match self {
            Self::Running | Self::Holding => (&[], 0),
            Self::Frozen => (
                &[(Kind::Refuse, LONG), (Kind::Terminate, 0)],
                5 * MILLISECOND,
            ),
            Self::Terminating => (&[(Kind::Cut, LONG)], 3 * SECOND + 100 * MILLISECOND),
            Self::Killed => (&[(Kind::Reset, 0)], 2 * MILLISECOND),
            Self::Suspending => (
                &[(Kind::CutTo, SECOND), (Kind::SuspendCommand, 0)],
                MILLISECOND,
            ),
            Self::Suspended => (&[(Kind::SuspendCommand, 0)], 20 * MILLISECOND),
            Self::Resuming => (
                &[
                    (Kind::SuspendCommand, 0),
                    (Kind::Slow, 2 * SECOND),
                    (Kind::TellToContinue, 0),
                ],
                20 * MILLISECOND,
            ),
        }
    }
}

impl Schedule {
    /// The schedule of a seed. `extra` are kinds that happen only if they are asked for.
    pub fn random(seed: u64, extra: &[Kind]) -> Self {
        let mut random = Random::new(seed);
        let mut schedule = Self::quiet(seed, &mut random);
        let is_focused = random.chance(40);
        let count = match is_focused {
            true => [0, 0, 0, 0, 1, 1, 2, 3][random.below(8)],
            false => [1, 2, 2, 3, 3, 4, 5, 6][random.below(8)],
        };
        let mut at = 300 * MILLISECOND + random.next() % (4 * SECOND);
        for _ in 0..count {
            let kind = match extra.len() {
                extra_kinds if extra_kinds > 0 && random.chance(30) => {
                    extra[random.below(extra_kinds)]
                }
                _ => random.of(&Kind::COMMON),
            };
            let fault = schedule.fault(kind, at, &mut random);
            schedule.faults.push(fault);
            at += schedule.pause(&mut random);
        }
        if is_focused {
            schedule.focus(&mut random);
        }
        let count = match is_focused {
            true => [0, 0, 0, 1],
            false => [0, 1, 2, 2],
        };
        for place in 0..count[random.below(4)] {
            let mut trap = schedule.trap(&mut random);
            // Two on one cue, mostly.
            if place > 0 && random.chance(60) {
                trap.cue = schedule.traps[0].cue;
            }
            schedule.traps.push(trap);
        }
        schedule
    }

    fn trap(&self, random: &mut Random) -> Trap {
        const QUESTIONS: [Question; 10] = [
            Question::Beat,
            Question::Rename,
            Question::Retake,
            Question::History,
            Question::Past,
            Question::Holder,
            Question::Evict,
            Question::Lift,
            Question::Check,
            Question::Check,
        ];
        let cue = match random.below(8) {
            0..4 => Cue::Asks(random.of(&QUESTIONS)),
            4 => Cue::Connects,
            5 if random.chance(50) => Cue::TimesOut,
            5 => Cue::Kills,
            _ => Cue::Orders(random.of(&Ordered::ALL)),
        };
        let kind = match random.chance(50) {
            true => random.of(&Kind::TRAPS),
            false => random.of(&Kind::COMMON),
        };
        Trap {
            cue,
            passes: 0,
            after: match random.below(3) {
                0 => 0,
                1 => random.next() % MILLISECOND,
                _ => random.next() % (20 * MILLISECOND),
            },
            fault: self.fault(kind, 0, random),
        }
    }

    /// These faults in this order, after a holder has come to this stage.
    pub fn ordered(seed: u64, stage: Stage, kinds: &[Kind]) -> Self {
        let mut random = Random::new(seed);
        let mut schedule = Self::quiet(seed, &mut random);
        (schedule.ttl, schedule.grace, schedule.slots) = (6, 2, 1);
        schedule.is_local = false;
        for (place, client) in schedule.clients.iter_mut().enumerate() {
            client.begin = place as Time * 20 * MILLISECOND;
            client.wait = Wait::Forever;
            client.kill_on_loss = true;
            client.terminal = (true, true);
            client.shared = false;
            client.fence = false;
            client.hold = 0;
        }
        schedule.clients[0].command.work = 10 * SECOND;
        if stage == Stage::Holding {
            schedule.clients[0].command.work = SECOND / 3;
            schedule.clients[0].hold = 10 * SECOND;
        }
        if stage == Stage::Terminating {
            schedule.clients[0].command.ends_in = None;
        }
        let mut at = SECOND + random.next() % SECOND;
        let (way, time) = stage.way();
        for (place, (kind, time)) in way.iter().enumerate() {
            let last = place + 1 == way.len();
            let at = if last { at } else { at - 15 * MILLISECOND };
            schedule.faults.push(Fault {
                at,
                kind: *kind,
                client: 0,
                time: *time,
            });
        }
        at += time;
        for kind in kinds {
            let mut fault = schedule.fault(*kind, at, &mut random);
            // Most are about the holder.
            if random.chance(85) {
                fault.client = 0;
            }
            schedule.faults.push(fault);
            at += match random.below(3) {
                0 => random.next() % (3 * MILLISECOND),
                1 => random.next() % (200 * MILLISECOND),
                _ => random.next() % (2 * SECOND),
            };
        }
        schedule
    }

    /// Nothing goes wrong yet.
    fn quiet(seed: u64, random: &mut Random) -> Self {
        let (ttl, grace) = random.of(&[(3, 0), (4, 0), (5, 1), (6, 2), (9, 3)]);
        let pooled = [0, 0, 0, 50, 100][random.below(5)];
        let slots = [1, 1, 1, 1, 1, 2, 3][random.below(7)];
        let shares = slots == 1 && random.chance(20);
        let count = 2 + random.below(3) + slots as usize - 1;
        // Apart from the others, which stay what they are.
        let mut holds = Random::new(seed ^ 0x402f);
        let begin_apart = random.of(&[MILLISECOND, 100 * MILLISECOND, SECOND]);
        let clients = (0..count).map(|place| Invocation {
            // The last one comes late, unless something calls it.
            begin: match place + 1 == count && count > 2 {
                true => 12 * SECOND,
                false => place as Time * 20 * MILLISECOND + random.next() % begin_apart,
            },
            wait: match random.below(10) {
                0 => Wait::No,
                1..4 => Wait::Seconds(1 + random.below(20) as u32),
                _ => Wait::Forever,
            },
            shared: shares && random.chance(60),
            pooled: random.chance(pooled),
            kill_on_loss: !random.chance(4),
            has_lease: true,
            hold: match holds.chance(25) {
                true => holds.of(&[SECOND, 3 * SECOND, 8 * SECOND]),
                false => 0,
            },
            fence: random.chance(10),
            verbose: random.chance(15),
            terminal: (random.chance(50), random.chance(80)),
            command: Behaviour {
                work: random.of(&[SECOND / 3, 2 * SECOND, 5 * SECOND, 10 * SECOND]),
                ends_in: match random.below(3) {
                    0 => None,
                    _ => Some(random.next() % (SECOND / 2)),
                },
                others: random.below(2) as u32,
                leaves: random.chance(20),
                late_others: random.below(8) as u32 / 7,
                hangs: match random.below(16) {
                    0 => random.next() % (ttl * SECOND + SECOND),
                    1 | 2 => random.next() % (SECOND / 2),
                    _ => 0,
                },
            },
        });
        Self {
            seed,
            ttl,
            grace,
            slots,
            clients: clients.collect(),
            pool: (
                1 + random.below(4),
                random.of(&[SECOND, SECOND, 15 * SECOND]),
            ),
            places: 1 + (seed % 3) as usize,
            is_local: random.chance(30),
            faults: Vec::new(),
            traps: Vec::new(),
        }
    }

    pub fn fault(&self, kind: Kind, at: Time, random: &mut Random) -> Fault {
        let ttl = self.ttl * SECOND;
        Fault {
            at,
            kind,
            client: random.below(self.clients.len()),
            time: match random.below(5) {
                0 => 1 + random.next() % (20 * MILLISECOND),
                1 => random.next() % (300 * MILLISECOND),
                2 => random.next() % SECOND,
                3 => random.next() % ttl,
                _ => random.next() % (2 * ttl),
            },
        }
    }

    /// How long it is until the next fault: two within one heartbeat are what is rare.
    fn pause(&self, random: &mut Random) -> Time {
        match random.below(8) {
            0 => 0,
            1 | 2 => random.next() % (3 * MILLISECOND),
            3 => random.next() % (60 * MILLISECOND),
            4 => random.next() % (300 * MILLISECOND),
            5 => random.next() % (self.ttl * SECOND / 3),
            6 => random.next() % (self.ttl * SECOND),
            _ => random.next() % (3 * self.ttl * SECOND),
        }
    }

    /// The same with a part less, for each of its parts.
    pub fn shorter(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for place in 0..self.faults.len() {
            let mut other = self.clone();
            other.faults.remove(place);
            all.push(other);
        }
        for place in 0..self.traps.len() {
            let mut other = self.clone();
            other.traps.remove(place);
            all.push(other);
        }
        for place in (1..self.clients.len()).rev() {
            if self
                .faults
                .iter()
                .all(|fault| fault.client < self.clients.len() - 1)
                && place == self.clients.len() - 1
            {
                let mut other = self.clone();
                other.clients.remove(place);
                all.push(other);
            }
        }
        for place in 0..self.clients.len() {
            let plain = Behaviour {
                others: 0,
                leaves: false,
                late_others: 0,
                hangs: 0,
                ..self.clients[place].command
            };
            let client = &self.clients[place];
            if client.command.others > 0
                || client.command.late_others > 0
                || client.command.hangs > 0
            {
                let mut other = self.clone();
                other.clients[place].command = plain;
                all.push(other);
            }
        }
        all
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let seconds = |time: Time| format!("{:.6} s", time as f64 / SECOND as f64);
        writeln!(
            f,
            "seed {}: ttl {} s, grace {} s, {} slots{}",
            self.seed,
            self.ttl,
            self.grace,
            self.slots,
            if self.is_local {
                ", by Unix sockets"
            } else {
                ""
            }
        )?;
        for (place, client) in self.clients.iter().enumerate() {
            writeln!(f, "  pglock {place}: {client:?}")?;
        }
        for trap in &self.traps {
            writeln!(f, "  {trap:?}")?;
        }
        for fault in &self.faults {
            writeln!(
                f,
                "  at {}: {:?} of {} for {}",
                seconds(fault.at),
                fault.kind,
                fault.client,
                seconds(fault.time)
            )?;
        }
        Ok(())
    }
}
