//! The keys of a lock in the server's lock table, and the SQL that names them.
//!
//! Lock N is `pg_advisory_lock(N)`, the lock of a name `hashtextextended(name, 0)`. Of several
//! slots the first is the lock itself. Slot i > 1 of lock N is `pg_advisory_lock(N, i)`, with N - 2^32 from 2^31 on, that of a
//! name `hashtextextended(name, i - 1)`. Each lock has two [companions](CompanionKey) besides.

use std::fmt;

use super::request_sql::LockRequest;
use crate::pq::Error;
use crate::server::dialect::Dialect;

/// What a lock is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// By its number.
    Id(u32),
    /// By a text, which the server makes a number of.
    Text(String),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
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

    /// The columns `classid`, `objid` and `objsubid` of its row in the lock table.
    fn columns(self) -> (u32, u32, u32) {
        match self {
            Self::One(key) => ((key as u64 >> 32) as u32, key as u32, 1),
            Self::Two(first, second) => (first as u32, second as u32, 2),
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

    /// The condition that a row of the lock table is about this key.
    pub fn condition(self) -> String {
        let (class, object, space) = self.columns();
        format!("classid = '{class}' and objid = '{object}' and objsubid = '{space}'")
    }
}

/// As the arguments of the server's functions.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::One(key) => write!(f, "{key}"),
            Self::Two(first, second) => write!(f, "{first},{second}"),
        }
    }
}

/// A key beside that of a lock, `(N, 0)` or `(N, -1)`, for a name with the upper half of its hash in the place of N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompanionKey {
    /// Who waits for a slot queues for it; only the first in the queue looks for a free slot.
    Queue,
    /// Who waits for the exclusive lock holds it in share: between its turns in the server's queue no newcomer passes it who
    /// wants to share.
    WriterIntent,
}

impl CompanionKey {
    /// The second number of the key.
    pub fn second(self) -> i32 {
        match self {
            Self::Queue => 0,
            Self::WriterIntent => -1,
        }
    }

    /// The condition that a row of the lock table is about such a key, of whatever lock.
    pub fn condition(self) -> String {
        format!("objsubid = '2' and objid = '{}'", self.second() as u32)
    }
}

impl LockRequest {
    /// Whether this is a key of the lock that is wanted, or of a slot of it. Of a name only the server knows it.
    pub fn comes_to(&self, key: Key) -> bool {
        match (&self.name, key) {
            (Name::Id(id), Key::One(key)) => i64::from(*id) == key,
            (Name::Id(id), Key::Two(first, slot)) => {
                *id as i32 == first && slot > 1 && i64::from(slot) <= self.slots.into()
            }
            (Name::Text(_), key) => matches!(key, Key::One(_)),
        }
    }

    /// The call of a function for the slot of this number or expression.
    pub fn call(&self, dialect: &dyn Dialect, function: &str, slot: &str) -> Result<String, Error> {
        Ok(match &self.name {
            Name::Id(id) if self.slots == 1 => format!("{function}({id})"),
            Name::Id(id) => format!(
                "case {slot} when 1 then {function}({id}) else {function}({}, {slot}) end",
                *id as i32
            ),
            Name::Text(text) => format!("{function}({})", hash(dialect, text, slot)?),
        })
    }

    /// The key of the slot of this number or expression, as [`Key`] shows it.
    pub fn key_sql(&self, dialect: &dyn Dialect, slot: &str) -> Result<String, Error> {
        Ok(match &self.name {
            Name::Id(id) if self.slots == 1 => format!("'{id}'"),
            Name::Id(id) => format!(
                "case {slot} when 1 then '{id}' else pg_catalog.concat({}, ',', {slot}) end",
                *id as i32
            ),
            Name::Text(text) => hash(dialect, text, slot)?,
        })
    }

    /// The condition that a row of the lock table is about this lock, any of its slots or its queue.
    ///
    /// # Errors
    /// The name of the lock cannot be said to the server.
    pub fn condition(&self, dialect: &dyn Dialect) -> Result<String, Error> {
        let slots = self.slots;
        let queue = CompanionKey::Queue;
        Ok(match &self.name {
            Name::Id(id) => {
                let one = Key::One((*id).into()).condition();
                let slots = match slots {
                    1 => String::new(),
                    slots => format!(
                        " or (classid = '{id}' and objid::bigint between '{}' and '{slots}' and objsubid = '2')",
                        queue.second()
                    ),
                };
                format!("(({one}){slots})")
            }
            Name::Text(text) => {
                let text = literal(dialect, text)?;
                let queue = match slots {
                    1 => String::new(),
                    _ => format!(" or ({})", self.is_companion(dialect, queue)?),
                };
                format!(
                    "((objsubid = '1' and {BIGINT} in (select pg_catalog.hashtextextended({text}, slot) \
                     from pg_catalog.generate_series(0, {}) slot)){queue})",
                    slots - 1
                )
            }
        })
    }

    /// A companion of the lock's key, as the arguments of the server's functions.
    pub fn companion(&self, dialect: &dyn Dialect, which: CompanionKey) -> Result<String, Error> {
        let second = which.second();
        Ok(match &self.name {
            Name::Id(id) => Key::Two(*id as i32, second).to_string(),
            Name::Text(text) => {
                let hash = hash(dialect, text, "1")?;
                format!("({hash} >> 32)::int, {second}")
            }
        })
    }

    /// The condition that a row of the lock table is about that key.
    pub fn is_companion(
        &self,
        dialect: &dyn Dialect,
        which: CompanionKey,
    ) -> Result<String, Error> {
        let class = match &self.name {
            Name::Id(id) => id.to_string(),
            Name::Text(text) => format!("{} >> 32 & 4294967295", hash(dialect, text, "1")?),
        };
        Ok(format!(
            "{} and classid::bigint = ({class})::bigint",
            which.condition()
        ))
    }
}

/// What a name is to the server, for the slot of this number or expression.
fn hash(dialect: &dyn Dialect, text: &str, slot: &str) -> Result<String, Error> {
    let text = literal(dialect, text)?;
    Ok(format!("pg_catalog.hashtextextended({text}, {slot} - 1)"))
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
