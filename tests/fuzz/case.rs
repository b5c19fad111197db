//! One case: which answer is bent, and how; and what pglock does meanwhile. A seed and a number determine it.

use std::fmt;
use std::time::Duration;

use super::bend::{Bend, Kind};
use super::random::Random;

/// What pglock is at when it gets an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It asks for TLS.
    Tls,
    /// It authenticates itself.
    Auth,
    /// It is let in.
    Welcome,
    /// It tries to take the lock.
    Lock,
    /// It waits for the lock.
    Wait,
    /// It asks how long ago the server was started.
    Age,
    /// It asks who holds the lock, or `--status` does.
    Holders,
    Beat,
    Rename,
    Token,
    /// It takes the lock again on a new connection.
    Retake,
    Release,
    Rollback,
    Other,
}

impl Stage {
    /// Of a query.
    pub fn of(sql: &str) -> Stage {
        let has = |words: &str| sql.contains(words);
        let takes = has("pg_try_advisory");
        match () {
            () if sql.trim() == ";" => Stage::Beat,
            () if has("lock_not_available") => Stage::Wait,
            () if has("select pg_catalog.pg_advisory_unlock") => Stage::Release,
            () if takes && has("extract(epoch") => Stage::Retake,
            () if takes => Stage::Lock,
            () if has("client_addr") => Stage::Holders,
            () if has("extract(epoch") => Stage::Age,
            () if has("application_name to") => Stage::Rename,
            () if has("txid_current") => Stage::Token,
            () if has("rollback") => Stage::Rollback,
            () => Stage::Other,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Stage::Auth => Kind::Demand,
            Stage::Welcome => Kind::Welcome,
            _ => Kind::Answer,
        }
    }
}

/// Whether somebody else has the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    Nobody,
    Holds,
    /// Until this time after the start of pglock.
    HoldsUntil(Duration),
}

/// How the connection is lost while the command runs, after this time.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub after: Duration,
    pub reset: bool,
    /// Whether the server has not noticed, so that its session goes on with the lock.
    pub half: bool,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub number: u64,
    pub stage: Stage,
    /// Which of the answers at this stage is bent, from 1.
    pub nth: u32,
    /// Whether all that come after it are, too.
    pub all: bool,
    pub bend: Bend,
    /// What TLS is asked for, and the first bytes of the answer to that.
    pub tls: Option<(&'static str, Vec<u8>)>,
    /// What the first attempt at the lock is answered, so that pglock gets where it would not be led to.
    pub word: Option<&'static str>,
    pub flags: Vec<String>,
    pub lock: Name,
    pub slots: u32,
    pub password: bool,
    pub other: Other,
    pub loss: Option<Loss>,
    /// When SIGTERM comes, after the start.
    pub term: Option<Duration>,
    /// How long the command runs.
    pub time: Duration,
    /// For what is random in the bending itself.
    pub seed: u64,
}

/// What the lock is called, which no other case's is.
#[derive(Clone, Debug)]
pub enum Name {
    Id(u32),
    Text(String),
}

impl Case {
    pub fn new(seed: u64, number: u64) -> Case {
        let mut random = Random::new(Random::new(seed).next() ^ number);
        let random = &mut random;
        let stage = stage(random);
        let late = matches!(stage, Stage::Welcome | Stage::Auth) && random.chance(35);
        let lost = stage == Stage::Retake || late;
        let lasts = lost || matches!(stage, Stage::Beat | Stage::Rename);
        let waits = matches!(stage, Stage::Wait | Stage::Rename) || random.chance(25);
        let is_status = stage == Stage::Holders && random.chance(60);
        let pooled = matches!(stage, Stage::Token | Stage::Rollback) || random.chance(10);
        let other = match stage {
            Stage::Wait | Stage::Rollback if random.chance(50) => Other::Holds,
            Stage::Wait | Stage::Rename | Stage::Rollback => {
                Other::HoldsUntil(random.time(200, 1200))
            }
            Stage::Holders if !is_status => Other::Holds,
            Stage::Lock if random.chance(30) => Other::Holds,
            _ => Other::Nobody,
        };
        let slots = if random.chance(15) { 2 } else { 1 };
        let lock = match random.chance(20) {
            true => Name::Text(format!("case {seed}; '{number}'")),
            false => Name::Id(1000 + number as u32),
        };
        let id = match lock {
            Name::Id(id) => Some(id),
            Name::Text(_) => None,
        };
        let mut case = Case {
            number,
            stage,
            nth: match stage {
                Stage::Auth if late => 3 + random.below(2) as u32,
                Stage::Auth => 1 + random.below(2) as u32,
                Stage::Welcome | Stage::Retake => 1 + u32::from(late),
                _ if random.chance(15) => 2,
                _ => 1,
            },
            all: random.chance(30),
            bend: Bend::random(stage.kind(), id, random),
            tls: None,
            word: match stage {
                Stage::Age => Some("young"),
                _ if pooled => Some("pooled"),
                _ => None,
            },
            flags: Vec::new(),
            lock,
            slots,
            password: stage == Stage::Auth || random.chance(15),
            other,
            loss: lost.then(|| Loss {
                after: random.time(50, 600),
                reset: random.chance(50),
                half: random.chance(25),
            }),
            term: random.chance(15).then(|| random.time(0, 2500)),
            time: match lasts {
                true => Duration::from_millis(1600),
                false => random.time(0, 300),
            },
            seed: random.next(),
        };
        if stage == Stage::Tls {
            let mode = random.of(&["prefer", "require", "allow", "verify-full"]);
            let answer = match random.below(6) {
                0 => vec![],
                1 => b"NN".to_vec(),
                2 => b"SS".to_vec(),
                3 => b"E\0\0\0\x10SFATAL\0\0".to_vec(),
                _ => vec![random.of(b"NSE\0GX")],
            };
            case.tls = Some((mode, answer));
        }
        case.flags = case.choose_flags(is_status, waits, random);
        case
    }

    fn choose_flags(&mut self, is_status: bool, waits: bool, random: &mut Random) -> Vec<String> {
        let mut flags: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| flags.extend(words.iter().map(|word| (*word).to_owned()));
        add(&["--connect-timeout", "2", "--grace", "0"]);
        // The shortest lease, or none.
        add(&["--ttl", if random.chance(90) { "3" } else { "0" }]);
        match &self.lock {
            Name::Id(id) => add(&["--lockid", &id.to_string()]),
            Name::Text(text) => add(&["--lockname", text]),
        }
        if self.slots > 1 {
            add(&["--slots", &self.slots.to_string()]);
        } else if random.chance(15) {
            add(&["--shared"]);
        }
        if let Some((mode, _)) = &self.tls {
            add(&["--sslmode", mode]);
        }
        if is_status {
            add(&["--status"]);
            return flags;
        }
        add(&["--conflict-exit-code", "75"]);
        if self.stage == Stage::Token || random.chance(15) {
            add(&["--fence"]);
        }
        if self.stage == Stage::Holders || random.chance(20) {
            add(&["--verbose"]);
        }
        if random.chance(10) {
            add(&["--on-loss", "continue"]);
        }
        if waits && random.chance(30) {
            add(&["--block"]);
            let term = random.time(0, 3000);
            self.term.get_or_insert(term);
        } else if waits {
            add(&["--wait", "2"]);
        }
        flags
    }

    pub fn is_status(&self) -> bool {
        self.flags.iter().any(|flag| flag == "--status")
    }

    /// Whether an answer may be long.
    pub fn may_be_long(&self) -> bool {
        self.stage == Stage::Holders
    }

    /// The condition that a row of `pg_locks` is about the lock, any of its slots.
    pub fn condition(&self) -> String {
        let slots = self.slots;
        match &self.lock {
            Name::Id(id) => format!(
                "(objsubid = 1 and classid = 0 and objid = {id} or objsubid = 2 and classid = {id} \
                 and objid::bigint between 2 and {slots})"
            ),
            Name::Text(text) => format!(
                "(objsubid = 1 and (classid::bigint << 32 | objid::bigint) in \
                 (select hashtextextended({}, slot - 1) from generate_series(1, {slots}) slot))",
                quoted(text)
            ),
        }
    }

    /// The call that takes the lock, or gives it up, in all its slots.
    pub fn call(&self, function: &str) -> String {
        let slots = 1..=self.slots;
        let calls: Vec<String> = slots
            .map(|slot| match &self.lock {
                Name::Id(id) if slot == 1 => format!("{function}({id})"),
                Name::Id(id) => format!("{function}({id}, {slot})"),
                Name::Text(text) => {
                    format!("{function}(hashtextextended({}, {slot} - 1))", quoted(text))
                }
            })
            .collect();
        format!("select {}", calls.join(", "))
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn stage(random: &mut Random) -> Stage {
    const WEIGHTS: [(Stage, usize); 13] = [
        (Stage::Tls, 3),
        (Stage::Auth, 9),
        (Stage::Welcome, 15),
        (Stage::Lock, 24),
        (Stage::Wait, 8),
        (Stage::Age, 5),
        (Stage::Holders, 6),
        (Stage::Beat, 9),
        (Stage::Rename, 2),
        (Stage::Token, 3),
        (Stage::Retake, 8),
        (Stage::Release, 7),
        (Stage::Rollback, 3),
    ];
    let mut number = random.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
    for (stage, weight) in WEIGHTS {
        match number.checked_sub(weight) {
            Some(rest) => number = rest,
            None => return stage,
        }
    }
    Stage::Lock
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let all = if self.all { " and all after it" } else { "" };
        write!(f, "{:?} {}{all}, {:?}", self.stage, self.nth, self.bend)?;
        if let Some((_, answer)) = &self.tls {
            write!(f, ", TLS answered {:?}", String::from_utf8_lossy(answer))?;
        }
        if let Some(word) = self.word {
            write!(f, ", first told {word:?}")?;
        }
        if self.other != Other::Nobody {
            write!(f, ", another {:?}", self.other)?;
        }
        if let Some(loss) = &self.loss {
            write!(f, ", {loss:?}")?;
        }
        if let Some(term) = self.term {
            write!(f, ", SIGTERM after {term:?}")?;
        }
        if self.password {
            write!(f, ", with a password")?;
        }
        write!(f, ", {}", self.flags.join(" "))
    }
}
