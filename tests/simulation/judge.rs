//! What must never be, looked at after each event: more than so many commands that run and believe in the lock, a command
//! without a grant, one that goes on since nobody is said to have had its lock meanwhile though somebody has, a free lock that
//! nobody takes though somebody waits for it, anything that is left at the end.
//!
//! The README names the moments in which two may run. Each is an [`Excuse`] here, which is opened by what brings it about and
//! closed as soon as the README's bound is over; two that run at once without one are a fault.

use super::process::Client;
use super::schedule::Schedule;
use super::time::{MILLISECOND, SECOND, Time};

/// What may let two run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A session was ended alone, and its pglock has not heard of it.
    EndedAlone,
    /// A session was ended alone, and the server went down before its holder had reached it again.
    DownAfterAlone,
    /// A host was frozen whole, and has just been thawed.
    Thawed,
    /// pglock and its guardian are both killed or frozen.
    Unguarded,
    /// Somebody continued the command and not pglock.
    Continued,
    /// The clock of the server was set forward.
    Stepped,
    /// The server's Unix socket was removed while it lived.
    SocketGone,
}

impl Reason {
    pub const ALL: [Self; 7] = [
        Self::EndedAlone,
        Self::DownAfterAlone,
        Self::Thawed,
        Self::Unguarded,
        Self::Continued,
        Self::Stepped,
        Self::SocketGone,
    ];

    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndedAlone => "ended-alone",
            Self::DownAfterAlone => "down-after-alone",
            Self::Thawed => "thawed",
            Self::Unguarded => "unguarded",
            Self::Continued => "continued",
            Self::Stepped => "stepped",
            Self::SocketGone => "socket-gone",
        }
    }
}

/// A time in which a command may run though another has the lock.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    pub reason: Reason,
    pub from: Time,
    /// The end, at the latest.
    pub until: Time,
}

/// What is found.
pub struct Judge {
    pub wrong: Option<String>,
    slots: u32,
    /// Those who run now, each whether it shares.
    running: Vec<(usize, bool)>,
    /// Since when more than may are running.
    overlap: Option<(Time, Vec<usize>)>,
    /// Overlaps that are excused, and the longest.
    pub excused: [(u64, Time); Reason::ALL.len()],
    /// Reasons that are none.
    pub refused: Vec<Reason>,
    everybody: Vec<Excuse>,
    /// The longest time from the end of a holder to the next.
    pub longest_gap: Time,
    /// Since when the lock is free and somebody waits, of those who can.
    pub waits_since: Option<Time>,
    ended_at: Option<Time>,
    pub commands: u64,
}

impl Judge {
    pub fn new(schedule: &Schedule) -> Self {
        Self {
            wrong: None,
            slots: schedule.slots,
            running: Vec::new(),
            overlap: None,
            excused: [(0, 0); Reason::ALL.len()],
            refused: Vec::new(),
            everybody: Vec::new(),
            longest_gap: 0,
            waits_since: None,
            ended_at: None,
            commands: 0,
        }
    }

    /// Takes note of who runs now.
    pub fn look(&mut self, clients: &[Client], now: Time) {
        let running: Vec<(usize, bool)> = clients
            .iter()
            .enumerate()
            .filter(|(_, client)| client.is_running(now))
            .map(|(place, client)| (place, client.shares()))
            .collect();
        if running == self.running {
            return;
        }
        let is_too_many = match running.iter().any(|(_, shares)| !shares) {
            true => running.len() > self.slots as usize,
            false => false,
        };
        if let Some((since, who)) = self.overlap.take() {
            self.judge(since, &who, clients, now);
        }
        if is_too_many {
            let who = running.iter().map(|(place, _)| *place).collect();
            self.overlap = Some((now, who));
        }
        self.running = running;
    }

    /// Two have run at once for a while.
    fn judge(&mut self, since: Time, who: &[usize], clients: &[Client], now: Time) {
        if since == now {
            return;
        }
        let excuses = who
            .iter()
            .flat_map(|place| &clients[*place].excuses)
            .chain(&self.everybody);
        // The times of several may follow each other.
        let mut covered = since;
        let mut reason = None;
        let mut rest: Vec<Excuse> = excuses
            .copied()
            .filter(|excuse| !self.refused.contains(&excuse.reason))
            .collect();
        while let Some(place) = rest
            .iter()
            .position(|excuse| excuse.from <= covered && covered < excuse.until)
        {
            let excuse = rest.swap_remove(place);
            covered = excuse.until;
            reason = Some(excuse.reason);
        }
        let time = now - since;
        match reason {
            Some(reason) if covered >= now => {
                let place = Reason::ALL.iter().position(|other| *other == reason);
                let found = &mut self.excused[place.expect("a reason")];
                found.0 += 1;
                found.1 = found.1.max(time);
            }
            Some(_) | None => {
                self.wrong = Some(format!(
                    "{who:?} run at once for {:.3} ms{}",
                    time as f64 / MILLISECOND as f64,
                    match reason {
                        Some(reason) => format!(
                            ", {:.3} ms of them beyond what {} excuses",
                            (now - covered) as f64 / MILLISECOND as f64,
                            reason.name()
                        ),
                        None => String::new(),
                    }
                ));
            }
        }
    }

    /// A command begins.
    pub fn command_begins(&mut self, granted: bool, place: usize) {
        self.commands += 1;
        if !granted {
            self.wrong = Some(format!("the command of {place} runs without a grant"));
        }
    }

    /// Somebody says that nobody has had the lock since the session was gone that held it, and this one has.
    pub fn trusts(&mut self, place: usize, other: usize) {
        if !self.excuses_everybody() {
            self.wrong = Some(format!(
                "{place} takes it that nobody has had the lock meanwhile, and {other} has"
            ));
        }
    }

    fn excuses_everybody(&self) -> bool {
        let reasons = self.everybody.iter().map(|excuse| excuse.reason);
        reasons
            .into_iter()
            .any(|reason| !self.refused.contains(&reason))
    }

    /// The server goes down: who had lost a session before, and has not reached it again, may meet a holder of meanwhile.
    pub fn server_goes_down(&mut self, clients: &mut [Client], now: Time) {
        for client in clients {
            client.server_goes_down(now);
        }
    }

    pub fn clock_is_stepped(&mut self) {
        self.everybody.push(Excuse {
            reason: Reason::Stepped,
            from: 0,
            until: Time::MAX,
        });
    }

    /// Looks whether somebody waits who need not; `can` tells whether somebody waits who could have the lock by now, and
    /// `free` whether the server has it to give.
    pub fn look_at_waiters(
        &mut self,
        can: bool,
        free: bool,
        disturbed: Time,
        bounds: (Time, Time),
        now: Time,
    ) {
        let (lease, turn) = bounds;
        if !can {
            self.waits_since = None;
            self.ended_at = None;
            return;
        }
        let since = *self.ended_at.get_or_insert(now);
        let gap = now - since.max(disturbed);
        self.longest_gap = self.longest_gap.max(gap);
        if gap > lease {
            self.wrong = Some(format!(
                "nobody has the lock for {:.3} s, and somebody waits",
                gap as f64 / SECOND as f64
            ));
        }
        if !free {
            self.waits_since = None;
            return;
        }
        let since = *self.waits_since.get_or_insert(now);
        let time = now - since.max(disturbed);
        if time > turn {
            self.wrong = Some(format!(
                "the lock is free for {:.3} s, and somebody waits for it",
                time as f64 / SECOND as f64
            ));
        }
    }
}
