//! The keys of a lock in the server's lock table, and the SQL that names them.
//!
//! Lock N is `pg_advisory_lock(N)`, the lock of a name `hashtextextended(name, 0)`, that of a pair `pg_advisory_lock(a, b)`. Of
//! several slots the first is the lock itself. Slot i > 1 of a lock N from 0 to 2^32 - 1 is `pg_advisory_lock(N, i)`, with N -
//! 2^32 from 2^31 on, of any other number `hashint8extended(N, i - 1)`, of a name `hashtextextended(name, i - 1)`. A pair has
//! no slots. Each lock has some [companions](CompanionKey) besides, and each of its keys has two that tell that it was [given
//! up](Key::release).
//!
//! Whoever asks for the pair `(N, i)` asks for a slot of lock N, or for a key that its waiters wait with: the pair is excluded
//! by whoever has that, and excludes it. It can make others wait, and never lets two hold one key.

use std::fmt;

use super::request_sql::LockRequest;
use crate::pq::Error;
use crate::server::dialect::Dialect;

/// What a lock is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// By its key.
    Key(Key),
    /// By a text, which the server makes a number of.
    Text(String),
}

impl Name {
    /// That of lock ID N.
    pub fn id(id: u32) -> Self {
        Self::Key(Key::One(id.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Key(key) => key.fmt(f),
            // Where it is shown it stays on its line.
            Self::Text(text) => text.replace(char::is_control, " ").fmt(f),
        }
    }
}

/// The key of an advisory lock, in one of the server's two key spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `pg_advisory_lock(bigint)`.
    One(i64),
    /// `pg_advisory_lock(integer, integer)`.
    Two(i32, i32),
}

impl Key {
    /// Reads a key as it is shown.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.split_once(',') {
            Some((first, second)) => Self::Two(first.parse().ok()?, second.parse().ok()?),
            None => Self::One(text.parse().ok()?),
        })
    }

    /// The first number of the pairs that are its slots and companions, where it has such by itself.
    fn first(self) -> Option<i32> {
        match self {
            Self::One(key) => u32::try_from(key).ok().map(|id| id as i32),
            Self::Two(..) => None,
        }
    }

    /// The sign that this one is given up: a key that one who does so holds for a moment, so that those see it who wait for the
    /// lock `alone`, or to share it.
    pub fn release(self, alone: bool) -> Self {
        let (first, slot) = match self {
            Self::One(key) => (self.first().unwrap_or((key >> 32) as i32), 1),
            Self::Two(first, slot) => (first, slot),
        };
        Self::Two(first, release(alone).wrapping_sub(slot))
    }

    /// The columns `classid`, `objid` and `objsubid` of its row in the lock table.
    fn columns(self) -> (u32, u32, u32) {
        match self {
            Self::One(key) => ((key as u64 >> 32) as u32, key as u32, 1),
            Self::Two(first, second) => (first as u32, second as u32, 2),
        }
    }

    /// Reads the columns of a row of the lock table, `None` if it is not about an advisory lock.
    pub fn of_row(fields: &[Option<String>]) -> Option<Self> {
        let [kind, class, object, space] = fields.first_chunk()?;
        if kind.as_deref() != Some("advisory") {
            return None;
        }
        let number = |field: &Option<String>| field.as_ref()?.parse::<u32>().ok();
        let (class, object) = (number(class)?, number(object)?);
        match space.as_deref()? {
            "1" => Some(Self::One(
                (u64::from(class) << 32 | u64::from(object)) as i64,
            )),
            "2" => Some(Self::Two(class as i32, object as i32)),
            _ => None,
        }
    }

    /// The first columns of its row in the lock table: the type, and where it is.
    pub fn row(self) -> [Option<String>; 4] {
        let (class, object, space) = self.columns();
        [
            Some("advisory".to_owned()),
            Some(class.to_string()),
            Some(object.to_string()),
            Some(space.to_string()),
        ]
    }

    /// The condition that a row of the lock table is about the queue for a slot of the lock of which this is one; where only the
    /// server could tell which that is, about any such queue.
    pub fn queue_condition(self) -> String {
        let first = match self {
            Self::One(_) => self.first(),
            Self::Two(first, _) => Some(first),
        };
        let queue = CompanionKey::Queue;
        match first {
            Some(first) => Self::Two(first, queue.second()).condition(),
            None => queue.condition(),
        }
    }

    /// The condition that a row of the lock table is about this key.
    pub fn condition(self) -> String {
        let (class, object, space) = self.columns();
        format!("classid = '{class}' and objid = '{object}' and objsubid = '{space}'")
    }
}

/// As `--lockkey` takes it.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::One(key) => write!(f, "{key}"),
            Self::Two(first, second) => write!(f, "{first},{second}"),
        }
    }
}

/// The keys by which it is told that slot i of lock N was given up are `(N, -1000 - i)` and `(N, -20000 - i)`, with i = 1 where
/// there is but one, and of a pair `(N, i)` the same; of other numbers and names they are `(H, -1001)` and `(H, -20001)` with H
/// for the upper half of the key. One who has got the lock alone finds the first, those who have got it together the second.
fn release(alone: bool) -> i32 {
    match alone {
        true => -1000,
        false => -20_000,
    }
}

/// How many of those who wait for a lock stand in the server's queue. The others rest, and look for a place there now and then.
pub const PLACES: u32 = 96;

/// Of how many places next to each other one is tried in a look of one who has rested. Where nearly all are taken a look at each costs
/// more than it brings.
pub const PLACES_PER_TRY: u32 = 12;

/// A key beside that of a lock: `(N, 0)`, `(N, -1)`, `(N, -100)` to `(N, -195)`, `(N, -198)` or `(N, -199)`; for a name, a pair
/// or a number that is none from 0 to 2^32 - 1 with the upper half of its hash in the place of N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompanionKey {
    /// Who waits for a slot queues for it; only the first in the queue looks for a free slot.
    Queue,
    /// Who waits for the exclusive lock holds it in share: between its turns in the server's queue no newcomer passes it who
    /// wants to share.
    WriterIntent,
    /// A place in the server's queue, below [`PLACES`]: who has it waits there.
    Place(u32),
    /// Who waits in a session of its own for the exclusive lock, in the queue or at rest, holds it in share, so that it is seen.
    Waiter,
    /// Who waits to share holds this one.
    WaiterToShare,
}

/// The second number of the first place.
const FIRST_PLACE: i32 = -100;

impl CompanionKey {
    /// The second number of the key.
    pub fn second(self) -> i32 {
        match self {
            Self::Queue => 0,
            Self::WriterIntent => -1,
            Self::Place(place) => FIRST_PLACE - place as i32,
            Self::Waiter => -199,
            Self::WaiterToShare => -198,
        }
    }

    /// That by which one is seen that waits in a session of its own.
    pub fn waiter(shared: bool) -> Self {
        match shared {
            true => Self::WaiterToShare,
            false => Self::Waiter,
        }
    }

    /// The condition that a row of the lock table is about such a key, of whatever lock.
    pub fn condition(self) -> String {
        format!("objsubid = '2' and objid = '{}'", self.second() as u32)
    }
}

/// The condition that a row of the lock table is about a place in a queue or tells that a lock was given up, of whatever lock.
pub fn is_aside() -> String {
    let column = |second: i32| second as u32;
    format!(
        "objsubid = '2' and (objid::bigint between '{}' and '{}' or objid::bigint between '{}' and '{}')",
        column(CompanionKey::Place(PLACES - 1).second()),
        column(FIRST_PLACE),
        column(2 * release(false)),
        column(release(true)),
    )
}

impl LockRequest {
    /// Whether this is a key of the lock that is wanted, or of a slot of it. What the server makes of a name or a number by its
    /// hash only the server knows.
    pub fn comes_to(&self, key: Key) -> bool {
        match &self.name {
            Name::Key(own) if *own == key => true,
            Name::Key(_) if self.slots == 1 => false,
            Name::Key(own) => match (own.first(), key) {
                (Some(own), Key::Two(first, slot)) => {
                    own == first && slot > 1 && i64::from(slot) <= self.slots.into()
                }
                (None, Key::One(_)) => true,
                (Some(_), Key::One(_)) | (None, Key::Two(..)) => false,
            },
            Name::Text(_) => matches!(key, Key::One(_)),
        }
    }

    /// The call of a function for the slot of this number or expression.
    pub fn call(&self, dialect: &dyn Dialect, function: &str, slot: &str) -> Result<String, Error> {
        Ok(match &self.name {
            Name::Key(key) if self.slots == 1 => format!("{function}({key})"),
            Name::Key(key) => {
                let other = match key.first() {
                    Some(first) => format!("{first}, {slot}"),
                    None => self.hash(dialect, slot)?,
                };
                format!("case {slot} when 1 then {function}({key}) else {function}({other}) end")
            }
            Name::Text(_) => format!("{function}({})", self.hash(dialect, slot)?),
        })
    }

    /// The key of the slot of this number or expression, as [`Key`] shows it.
    pub fn key_sql(&self, dialect: &dyn Dialect, slot: &str) -> Result<String, Error> {
        Ok(match &self.name {
            Name::Key(key) if self.slots == 1 => format!("'{key}'"),
            Name::Key(key) => {
                let other = match key.first() {
                    Some(first) => format!("pg_catalog.concat({first}, ',', {slot})"),
                    None => format!("pg_catalog.concat({})", self.hash(dialect, slot)?),
                };
                format!("case {slot} when 1 then '{key}' else {other} end")
            }
            Name::Text(_) => self.hash(dialect, slot)?,
        })
    }

    /// The condition that a row of the lock table is about this lock, any of its slots or its queue.
    ///
    /// # Errors
    /// The name of the lock cannot be said to the server.
    pub fn condition(&self, dialect: &dyn Dialect) -> Result<String, Error> {
        let queue = match self.slots {
            1 => String::new(),
            _ => format!(" or ({})", self.is_companion(dialect, CompanionKey::Queue)?),
        };
        let hashed = |first: u32| -> Result<String, Error> {
            let hash = self.hash(dialect, "slot")?;
            Ok(format!(
                "(objsubid = '1' and {BIGINT} in (select {hash} from pg_catalog.generate_series({first}, {}) slot))",
                self.slots
            ))
        };
        Ok(match &self.name {
            Name::Key(key) => {
                let one = key.condition();
                let slots = match key.first() {
                    _ if self.slots == 1 => String::new(),
                    Some(first) => format!(
                        " or (classid = '{}' and objid::bigint between '2' and '{}' and objsubid = '2')",
                        first as u32, self.slots
                    ),
                    None => format!(" or {}", hashed(2)?),
                };
                format!("(({one}){slots}{queue})")
            }
            Name::Text(_) => format!("({}{queue})", hashed(1)?),
        })
    }

    /// The condition that a row of the lock table is about the lock itself, of several slots the first. By functions that are
    /// called anyway.
    ///
    /// # Errors
    /// The name of the lock cannot be said to the server.
    pub fn is_first_slot(&self, dialect: &dyn Dialect) -> Result<String, Error> {
        let [class, object] = match &self.name {
            Name::Key(key) => {
                let (class, object, _) = key.columns();
                [class, object].map(|half| (half as i32).to_string())
            }
            Name::Text(_) => {
                let hash = self.hash(dialect, "1")?;
                [
                    format!("({hash} >> 32)::int"),
                    format!("({hash} << 32 >> 32)::int"),
                ]
            }
        };
        Ok(format!(
            "(not pg_catalog.int4ne(classid::int, {class}) and not pg_catalog.int4ne(objid::int, {object}))"
        ))
    }

    /// A companion of the lock's key, as the arguments of the server's functions.
    pub fn companion(&self, dialect: &dyn Dialect, which: CompanionKey) -> Result<String, Error> {
        let second = which.second();
        Ok(match self.first() {
            Some(first) => Key::Two(first, second).to_string(),
            None => format!("({} >> 32)::int, {second}", self.hash(dialect, "1")?),
        })
    }

    /// The key of a place in the queue, of which `place` is the expression of its number, as the arguments of the server's
    /// functions.
    pub fn place_sql(&self, dialect: &dyn Dialect, place: &str) -> Result<String, Error> {
        let first = match self.first() {
            Some(first) => first.to_string(),
            None => format!("({} >> 32)::int", self.hash(dialect, "1")?),
        };
        Ok(format!("{first}, {FIRST_PLACE} - {place}"))
    }

    /// The sign that the slot of this number or expression is given up, see [`Key::release`], as the arguments of the server's
    /// functions.
    pub fn release_sql(
        &self,
        dialect: &dyn Dialect,
        slot: &str,
        alone: bool,
    ) -> Result<String, Error> {
        let only = release(alone) - 1;
        Ok(match &self.name {
            Name::Key(key) if self.slots == 1 => key.release(alone).to_string(),
            Name::Key(key) => match key.first() {
                Some(first) => format!("{first}, {} - {slot}", release(alone)),
                None => format!(
                    "case {slot} when 1 then ('{key}'::bigint >> 32)::int else ({} >> 32)::int end, {only}",
                    self.hash(dialect, slot)?
                ),
            },
            Name::Text(_) => format!("({} >> 32)::int, {only}", self.hash(dialect, slot)?),
        })
    }

    /// The condition that a row of the lock table is about that key.
    pub fn is_companion(
        &self,
        dialect: &dyn Dialect,
        which: CompanionKey,
    ) -> Result<String, Error> {
        let class = match self.first() {
            Some(first) => (first as u32).to_string(),
            None => format!("{} >> 32 & 4294967295", self.hash(dialect, "1")?),
        };
        Ok(format!(
            "{} and classid::bigint = ({class})::bigint",
            which.condition()
        ))
    }

    /// See [`Key::first`].
    fn first(&self) -> Option<i32> {
        match &self.name {
            Name::Key(key) => key.first(),
            Name::Text(_) => None,
        }
    }

    /// What the lock is to the server that has no pairs of its own, for the slot of this number or expression: the hash of its
    /// name or number. A pair has no slots, and so needs it only for its companions: it counts as the number of the same bits,
    /// in a slot below the first.
    fn hash(&self, dialect: &dyn Dialect, slot: &str) -> Result<String, Error> {
        // An operator is one thing more that the server would look up.
        let seed = |first: i32| match slot.parse::<i32>() {
            Ok(slot) => (slot - first).to_string(),
            Err(_) => format!("{slot} - {first}"),
        };
        Ok(match &self.name {
            Name::Key(Key::One(key)) => {
                format!("pg_catalog.hashint8extended('{key}', {})", seed(1))
            }
            Name::Key(Key::Two(first, second)) => {
                let key = i64::from(*first) << 32 | i64::from(*second as u32);
                format!("pg_catalog.hashint8extended('{key}', {})", seed(2))
            }
            Name::Text(text) => {
                let text = literal(dialect, text)?;
                format!("pg_catalog.hashtextextended({text}, {})", seed(1))
            }
        })
    }
}

/// A name as a literal. One that arrived as another text would be the name of another lock.
fn literal(dialect: &dyn Dialect, name: &str) -> Result<String, Error> {
    dialect.quote(name).map_err(|error| Error {
        message: format!("the name of the lock cannot be said to the server: {error}"),
        ..error
    })
}

/// The key of a row of the lock table in the space of one bigint.
const BIGINT: &str = "(classid::bigint << 32 | objid::bigint)";

/// The key of a row of the lock table, as [`Key`] shows it.
pub fn key_of_row() -> String {
    format!(
        "case objsubid when 1 then {BIGINT}::text \
         else pg_catalog.concat(classid::bigint::bit(32)::int, ',', objid::bigint::bit(32)::int) end"
    )
}

/// The condition that a row of the lock table is about a lock of the database that pglock is connected to.
pub const OWN_DATABASE: &str = "database = \
     (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())";
