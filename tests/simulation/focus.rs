//! Where chance seldom leads: a session that ends right after a sign of the server, a question that is long under way, and what
//! goes wrong just then.

use super::random::Random;
use super::schedule::{Cue, Kind, Ordered, Schedule, Trap};
use super::time::{MILLISECOND, SECOND, Time};
use crate::cli::config::Wait;
use crate::supervise::state::Question;

/// What goes wrong: how long after its cue, and how long it lasts, where that matters.
struct Blow {
    kind: Kind,
    after: Range,
    lasts: Option<Range>,
}

type Range = (Time, Time);

/// At once, for any time.
const fn now(kind: Kind) -> Blow {
    blow(kind, (0, 1), None)
}

/// At once, for a time between these.
const fn lasting(kind: Kind, from: Time, to: Time) -> Blow {
    blow(kind, (0, 1), Some((from, to)))
}

/// A while after that.
const fn later(kind: Kind, from: Time, to: Time) -> Blow {
    blow(kind, (from, to), None)
}

const fn blow(kind: Kind, after: Range, lasts: Option<Range>) -> Blow {
    Blow { kind, after, lasts }
}

/// What ends the session that holds the lock.
const ENDS: [&[Blow]; 10] = [
    &[now(Kind::Promote)],
    &[now(Kind::CrashBackend)],
    &[lasting(Kind::StopImmediate, 0, SECOND)],
    &[now(Kind::Terminate)],
    &[now(Kind::ResetClient)],
    &NO_CRASH,
    &ALL_AND_PROMOTED,
    &TAKEN_AND_PROMOTED,
    &SEEMS_DOWN,
    &SEEMS_DOWN_AND_PROMOTED,
];
/// A crash that seems to have been none.
const NO_CRASH: [Blow; 2] = [
    now(Kind::CrashBackend),
    later(Kind::ResetOne, SECOND / 4, SECOND / 2),
];
/// All sessions end, and then another server is there.
const ALL_AND_PROMOTED: [Blow; 2] = [
    lasting(Kind::StopImmediate, 0, 2 * SECOND),
    later(Kind::Promote, 1, SECOND / 2),
];
/// Somebody else has the lock before another server is there.
const TAKEN_AND_PROMOTED: [Blow; 3] = [
    now(Kind::Terminate),
    lasting(Kind::Refuse, SECOND / 2, 2 * SECOND),
    later(Kind::Promote, SECOND / 5, 2 * SECOND),
];
/// Somebody else has it before all seems to have been reset.
const TAKEN_AND_RESET: [Blow; 3] = [
    now(Kind::Terminate),
    lasting(Kind::Refuse, SECOND / 2, 2 * SECOND),
    later(Kind::ResetAll, 1, 2 * SECOND),
];
/// It comes up when the lease is nearly over.
const STARTS_AND_HELD_BACK: [Blow; 2] = [
    lasting(Kind::StopImmediate, SECOND, 3 * SECOND / 2),
    later(Kind::HoldBack, SECOND, 2 * SECOND),
];
/// Whoever waits gets the lock when the lease is over, and the host of the holder is late to notice.
const CUT_OFF_AND_LATE: [Blow; 2] = [
    lasting(Kind::Cut, 10 * SECOND, 14 * SECOND),
    lasting(Kind::LateTimers, 10 * SECOND, 14 * SECOND),
];
/// It is a standby when it is back.
const AS_STANDBY: [Blow; 2] = [
    lasting(Kind::StopImmediate, 0, SECOND / 2),
    blow(Kind::Standby, (1, SECOND / 4), Some((SECOND, 6 * SECOND))),
];
/// The same in a smart shutdown, in which something on the way makes the server seem down.
const SEEMS_DOWN: [Blow; 3] = [SMART, ALONE, BLIP];
const SEEMS_DOWN_AND_PROMOTED: [Blow; 4] = [
    SMART,
    ALONE,
    BLIP,
    later(Kind::Promote, SECOND / 2, 3 * SECOND),
];
const SEEMS_DOWN_AND_HELD_BACK: [Blow; 4] = [
    SMART,
    ALONE,
    BLIP,
    later(Kind::HoldBack, 60 * MILLISECOND, SECOND / 2),
];
const SMART: Blow = lasting(Kind::StopSmart, SECOND, 6 * SECOND);
const ALONE: Blow = later(Kind::Terminate, 1, 50 * MILLISECOND);
const BLIP: Blow = blow(
    Kind::Refuse,
    (51 * MILLISECOND, 200 * MILLISECOND),
    Some((50 * MILLISECOND, 300 * MILLISECOND)),
);

/// What befalls a holder who has just asked something.
const BEFALLS: [&[Blow]; 15] = [
    HELD_BACK,
    &[now(Kind::HoldBack), now(Kind::Terminated)],
    &[now(Kind::Fail)],
    &[now(Kind::Fail), now(Kind::HoldBack)],
    &[now(Kind::Terminated)],
    &[now(Kind::ContinueCommand), now(Kind::StopCommand)],
    &[now(Kind::ContinueCommand)],
    &[later(Kind::KillCommand, 1, MILLISECOND)],
    SUSPENDED[0],
    SUSPENDED[1],
    SUSPENDED[2],
    SUSPENDED[3],
    SUSPENDED[4],
    SUSPENDED[5],
    SUSPENDED[6],
];
const HELD_BACK: &[Blow] = &[now(Kind::HoldBack)];
const SUSPENDED: [&[Blow]; 7] = [
    &[now(Kind::SuspendCommand)],
    &[now(Kind::SuspendCommand), lasting(Kind::CutFrom, 1, SECOND)],
    // Beyond the time in which pglock wants to stop.
    &[
        now(Kind::SuspendCommand),
        lasting(Kind::CutFrom, SECOND, 3 * SECOND),
    ],
    &[
        now(Kind::SuspendCommand),
        lasting(Kind::CutFrom, 1, 2 * SECOND),
        now(Kind::Fail),
    ],
    &[
        now(Kind::SuspendCommand),
        lasting(Kind::CutTo, SECOND / 2, SECOND),
    ],
    // The answer is there when pglock comes to stop.
    &[
        now(Kind::SuspendCommand),
        blow(
            Kind::FreezeHost,
            (MILLISECOND, 50 * MILLISECOND),
            Some((SECOND, 10 * SECOND)),
        ),
    ],
    &[
        now(Kind::SuspendCommand),
        blow(
            Kind::FreezePglock,
            (MILLISECOND, 50 * MILLISECOND),
            Some((SECOND, 2 * SECOND)),
        ),
    ],
];

/// A session that ends like this, then something that befalls whoever asks this.
struct Way {
    ends: &'static [&'static [Blow]],
    /// What is long under way.
    late: &'static [Question],
    asked: &'static [Question],
    befalls: &'static [&'static [Blow]],
    /// Whether the command carries on without its lock, if that is to be so or not.
    carries_on: Option<bool>,
}

/// Those by which rare places are reached.
const WAYS: [Way; 19] = [
    Way {
        ends: &[&CUT_OFF_AND_LATE],
        late: &[],
        asked: &[Question::Beat],
        befalls: &[&[]],
        carries_on: Some(false),
    },
    Way {
        ends: &[&STARTS_AND_HELD_BACK],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[&[]],
        carries_on: Some(false),
    },
    Way {
        ends: &[&SEEMS_DOWN_AND_PROMOTED],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[HELD_BACK],
        carries_on: Some(false),
    },
    Way {
        ends: &[&AS_STANDBY],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[HELD_BACK],
        carries_on: Some(false),
    },
    Way {
        ends: &[&AS_STANDBY, ENDS[3]],
        late: &[],
        asked: &[Question::Retake],
        befalls: &SUSPENDED,
        carries_on: Some(true),
    },
    Way {
        ends: &[&SEEMS_DOWN],
        late: &[],
        asked: &[Question::Holder],
        befalls: &[HELD_BACK],
        carries_on: Some(false),
    },
    Way {
        ends: &[&SEEMS_DOWN_AND_HELD_BACK, &SEEMS_DOWN_AND_PROMOTED],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[HELD_BACK],
        carries_on: Some(false),
    },
    Way {
        ends: &[&TAKEN_AND_RESET],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[&[]],
        carries_on: Some(false),
    },
    Way {
        ends: &[&ALL_AND_PROMOTED],
        late: &[Question::Retake],
        asked: &[Question::Past],
        befalls: &[HELD_BACK, HELD_BACK, &[]],
        carries_on: Some(false),
    },
    Way {
        ends: &[ENDS[0], ENDS[1], ENDS[2]],
        late: &[Question::Retake],
        asked: &[Question::Past],
        befalls: &[HELD_BACK, HELD_BACK, &[]],
        carries_on: Some(false),
    },
    Way {
        ends: &[&ALL_AND_PROMOTED],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[HELD_BACK],
        carries_on: Some(false),
    },
    Way {
        ends: &[&SEEMS_DOWN_AND_PROMOTED],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[HELD_BACK],
        carries_on: Some(false),
    },
    Way {
        ends: &[ENDS[0], &ALL_AND_PROMOTED, ENDS[1]],
        late: &[Question::Retake],
        asked: &[Question::Past],
        befalls: &SUSPENDED,
        carries_on: Some(true),
    },
    Way {
        ends: &[&TAKEN_AND_PROMOTED],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[HELD_BACK],
        carries_on: Some(false),
    },
    Way {
        ends: &[&TAKEN_AND_PROMOTED],
        late: &[],
        asked: &[Question::Retake],
        befalls: &SUSPENDED,
        carries_on: Some(true),
    },
    Way {
        ends: &[
            &SEEMS_DOWN,
            &SEEMS_DOWN_AND_PROMOTED,
            &SEEMS_DOWN_AND_HELD_BACK,
        ],
        late: &[],
        asked: &[Question::Retake, Question::Holder],
        befalls: &[HELD_BACK],
        carries_on: Some(false),
    },
    // It is taken again by a command that is about to be stopped.
    Way {
        ends: &[&NO_CRASH],
        late: &[],
        asked: &[Question::Retake],
        befalls: &[SUSPENDED[5], SUSPENDED[6]],
        carries_on: Some(false),
    },
    Way {
        ends: &[ENDS[4]],
        late: &[],
        asked: &[Question::Holder, Question::Evict],
        befalls: &SUSPENDED,
        carries_on: Some(true),
    },
    Way {
        ends: &[SUSPENDED[0]],
        late: &[],
        asked: &[Question::Lift, Question::Check],
        befalls: &BEFALLS,
        carries_on: None,
    },
];

/// The same of one who is on the way to the lock.
const BEFALLS_ON_THE_WAY: [&[Blow]; 8] = [
    &[now(Kind::KillGuardian), UNGUARDED],
    &[
        now(Kind::KillGuardian),
        UNGUARDED,
        lasting(Kind::CutFrom, SECOND, 3 * SECOND),
    ],
    &[lasting(Kind::Cut, 10 * SECOND, 14 * SECOND)],
    &[lasting(Kind::CutFrom, SECOND, 3 * SECOND)],
    &[now(Kind::Fail)],
    &[now(Kind::Terminated)],
    &[now(Kind::CancelQuery)],
    // Granted, but for the answer.
    &[
        lasting(Kind::CutFrom, SECOND / 10, SECOND),
        later(Kind::Terminated, 70 * MILLISECOND, 100 * MILLISECOND),
    ],
];
const UNGUARDED: Blow = lasting(Kind::NoProcesses, 10 * SECOND, 14 * SECOND);

/// Any.
const ANY_WAY: Way = Way {
    ends: &ENDS,
    late: &[],
    asked: &[
        Question::Retake,
        Question::Retake,
        Question::Past,
        Question::Holder,
        Question::Evict,
        Question::Beat,
        Question::History,
        Question::Rename,
    ],
    befalls: &BEFALLS,
    carries_on: None,
};

impl Schedule {
    /// Adds what leads there.
    pub fn focus(&mut self, random: &mut Random) {
        match random.below(3) {
            0 => self.focus_on_the_way(random),
            _ => self.focus_on_a_holder(random),
        }
    }

    fn focus_on_the_way(&mut self, random: &mut Random) {
        let pooled = random.chance(50);
        self.ttl = random.of(&[3, 4, 6]);
        self.grace = 0;
        for client in &mut self.clients {
            client.verbose = random.chance(50);
            client.pooled = pooled;
            client.fence |= random.chance(20);
            client.hold = 0;
            if random.chance(30) {
                client.wait = random.of(&[Wait::No, Wait::Seconds(1), Wait::Seconds(3)]);
            }
        }
        let any = |random: &mut Random| BEFALLS_ON_THE_WAY[random.below(BEFALLS_ON_THE_WAY.len())];
        let (cue, blows) = match random.below(8) {
            // The answer is so long under way that the session is watched, and a sign of the server is wanted.
            0 | 1 => {
                let late = &[lasting(Kind::CutFrom, SECOND, 3 * SECOND)];
                self.strike(Cue::Orders(Ordered::Try), late, random);
                (random.of(&[Ordered::Watch, Ordered::Renew]), any(random))
            }
            2 => {
                let asked = random.of(&[Ordered::Holders, Ordered::Rollback]);
                (asked, any(random))
            }
            3 | 4 => (Ordered::Try, any(random)),
            5 => (Ordered::ConnectBeside, any(random)),
            _ => (random.of(&Ordered::ALL), any(random)),
        };
        // It may be about the next one who comes there.
        let passes = random.of(&[0, 0, 1, 1, 2, 3]);
        self.strike_later(Cue::Orders(cue), (passes, 0), blows, random);
    }

    fn focus_on_a_holder(&mut self, random: &mut Random) {
        let way = match random.chance(70) {
            true => &WAYS[random.below(WAYS.len())],
            false => &ANY_WAY,
        };
        let carries_on = way.carries_on.unwrap_or_else(|| random.chance(40));
        (self.ttl, self.grace) = random.of(&[(3, 0), (4, 0), (6, 2), (6, 2), (9, 3), (9, 3)]);
        // Mostly the command is there, else the lock is kept after it.
        let keeps = random.chance(20);
        // The first one is there for long; others take what they get.
        let is_crowded = random.chance(50);
        self.slots = 1;
        self.clients[0].begin = 0;
        self.clients[0].command.work = 10 * SECOND;
        for client in &mut self.clients {
            client.terminal = (true, true);
            client.kill_on_loss = !carries_on;
            if is_crowded {
                client.wait = Wait::Forever;
                (client.shared, client.pooled, client.fence) = (false, false, false);
                client.command.work = 10 * SECOND;
            }
            client.hold = match random.chance(25) {
                true => 10 * SECOND,
                false => 0,
            };
            if keeps {
                client.command.work = SECOND / 3;
                client.hold = 10 * SECOND;
            }
            // What is held back comes before it is dead.
            if random.chance(75) {
                client.command.hangs = SECOND + random.next() % (self.ttl * SECOND);
                client.command.ends_in = None;
            }
        }
        // Right after a sign of the server.
        let ends = way.ends[random.below(way.ends.len())];
        let then = (random.of(&[0, 0, 1]), random.next() % (SECOND / 2));
        self.strike_later(Cue::Asks(Question::Beat), then, ends, random);
        if random.chance(15) {
            const BARS: [Kind; 4] = [Kind::Deny, Kind::Garble, Kind::NoProcesses, Kind::Cut];
            let bar = lasting(random.of(&BARS), SECOND, 10 * SECOND);
            let held_back = later(Kind::HoldBack, SECOND / 4, 2 * SECOND);
            self.strike_later(Cue::Asks(Question::Beat), then, &[bar, held_back], random);
        }
        for question in [Question::Retake, Question::Past, Question::Holder] {
            if way.late.contains(&question) || random.chance(25) {
                let late = &[lasting(Kind::CutTo, SECOND / 2, 3 * SECOND)];
                self.strike(Cue::Asks(question), late, random);
            }
        }
        let blows = way.befalls[random.below(way.befalls.len())];
        self.strike(Cue::Asks(random.of(way.asked)), blows, random);
    }

    /// Has all of this wait for the same cue.
    fn strike(&mut self, cue: Cue, blows: &[Blow], random: &mut Random) {
        self.strike_later(cue, (0, 0), blows, random);
    }

    /// The same, but let that pass so often first, and wait so long then.
    fn strike_later(
        &mut self,
        cue: Cue,
        (passes, after): (u32, Time),
        blows: &[Blow],
        random: &mut Random,
    ) {
        let between = |(from, to): Range, random: &mut Random| from + random.next() % (to - from);
        for blow in blows {
            let mut fault = self.fault(blow.kind, 0, random);
            if let Some(lasts) = blow.lasts {
                fault.time = between(lasts, random);
            }
            self.traps.push(Trap {
                cue,
                passes,
                after: after + between(blow.after, random),
                fault,
            });
        }
    }
}
