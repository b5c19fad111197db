//! The lock itself: the SQL that takes, proves and gives it up, and what the answers mean.
//!
//! One simple query of several statements is one round trip. Where a statement waits, another before it makes
//! the session's settings, since one that is made in the same statement would come too late for it. The last
//! but one tells how it went, and the last brings what the lock table has of this session: the proof, looked
//! at here. To a backend that has just been started everything that it looks up for the first time is
//! expensive: so functions stand where operators could, and what can be compared here is.
//!
//! What others have planted in the database is never called: see [`query`]. Functions are named in full all the same.
//!
//! The keys: lock N is `pg_advisory_lock(N)`, the lock of a name `hashtextextended(name, 0)`. Of several
//! slots the first is the lock itself. Slot i > 1 of lock N is `pg_advisory_lock(N, i)`, with N - 2^32 from 2^31 on, that of a
//! name `hashtextextended(name, i - 1)`. Beside each lock there are two more keys, `(N, 0)` and `(N, -1)`, for a name
//! with the upper half of its hash in the place of N. Who waits for a slot queues at the door, `(N, 0)`; only
//! the first in the queue looks for a free slot. Who waits for the exclusive lock holds the gate, `(N, -1)`, in
//! share: between its turns in the server's queue no newcomer passes it who wants to share.

#[cfg(test)]
mod golden;
mod release;

pub use release::release;

use std::ffi::CString;
use std::fmt;
use std::time::Duration;

use crate::pq::{Error, Outcome};
use crate::server::dialect::Dialect;
use crate::server::session_settings::{Hold, Settings};
use crate::sys;

/// How long one turn in the server's queue is, in milliseconds. A statement that waits holds a snapshot,
/// and so holds back vacuum and `CREATE INDEX CONCURRENTLY`; between turns none is held. Shorter than
/// the server's `deadlock_timeout`, 1 s, it also spares the server a deadlock check for each waiter.
pub const TURN: u32 = 900;

/// When the postmaster started. A restart moves it.
const START: &str = "pg_catalog.pg_postmaster_start_time()";

/// When the statistics of the background writer were reset. A crash of a backend, which ends all sessions and restarts the
/// rest under the same postmaster, resets all statistics. An administrator may reset these too, see [`resets`]; but where
/// they were not, there was no crash.
const RESET: &str = "pg_catalog.pg_stat_get_bgwriter_stat_reset_time()";

/// How long a waiter makes sure that the server is not being shut down, in seconds. A shutdown ends one
/// backend after the other: the holder's may be gone, and its lock granted to a waiter whose own backend
/// is still to be ended, while the holder goes by its lease. A backend that lives on for so long is not
/// being ended. A holder that gives its lock up says so beforehand, by the name of its session; then there
/// is nothing to make sure of.
const SETTLE: &str = "0.06";

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

/// A lock that is wanted, and how it is to be held.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its name.
    pub name: Name,
    /// Whether others may share it.
    pub shared: bool,
    /// How many may hold it at once, each a slot of it; at least 1.
    pub slots: u32,
    /// How the session that holds it is set up, the lease above all.
    pub settings: Settings,
    /// Whether each holder gets a fencing token.
    pub fence: bool,
}

/// How an attempt treats a server that lost its sessions less than a ttl ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caution {
    /// It does not try.
    HoldOff,
    /// It tries: nobody can have held the lock then but the one who tries.
    None,
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
    fn parse(text: &str) -> Option<Self> {
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

    /// The condition that a row of the lock table is about this key.
    fn condition(self) -> String {
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

/// The second number of the door's key.
const DOOR: i32 = 0;
/// The second number of the gate's key.
const GATE: i32 = -1;

/// A lock that is held, or was.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    key: Key,
    shared: bool,
    hold: Hold,
    settings: Settings,
}

/// The server's word on an attempt to take the lock.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The lock is held: this key stands in the server's lock table under the own backend. With the fencing
    /// token, if one was asked for.
    Held(Key, Option<u64>),
    /// Others hold it.
    Busy,
    /// Others hold it, or all its slots, and this session has the gate or is the first of those at the door.
    First,
    /// The server lost its sessions less than a ttl ago: an earlier holder may be about to take its lock
    /// again.
    Young,
    /// A pooler is between pglock and the server: the lock can only be bound to a transaction.
    Pooled,
    /// The server is a standby, whose locks do not exclude those of its primary.
    Standby,
    /// The attempt failed. The message says why.
    Refused(Error),
}

impl Claim {
    /// Tries to take the lock, without waiting. `waits` tells whether the claimant would queue for a slot,
    /// and so does not go before those who do; `waited`, whether somebody else has held the lock before.
    ///
    /// # Errors
    /// The name of the lock cannot be said to the server.
    pub fn try_sql(
        &self,
        dialect: &dyn Dialect,
        hold: Hold,
        caution: Caution,
        waits: bool,
        waited: bool,
    ) -> Result<CString, Error> {
        let try_lock = self.function("try_advisory", hold);
        let attempt = if self.slots == 1 {
            let call = self.call(dialect, &try_lock, "1")?;
            let gate = if self.shared {
                format!("not {} and ", self.gate_is_held(dialect)?)
            } else {
                String::new()
            };
            let settle = if waited {
                format!(" and pg_catalog.pg_sleep({SETTLE})::text is not null")
            } else {
                String::new()
            };
            format!(
                "when not ({gate}{call}{settle}) then 'busy' else {}",
                self.held(dialect, "1", hold)?
            )
        } else {
            let door = self.beside(dialect, DOOR)?;
            let gate = if waits && hold == Hold::Session {
                // Given back with the end of this query's own transaction.
                format!("pg_catalog.pg_try_advisory_xact_lock({door})")
            } else {
                "true".to_owned()
            };
            self.any_slot(
                dialect,
                hold,
                &format!(
                    "(select slot from pg_catalog.generate_series(1, {}) slot where {gate} and {} limit 1) s",
                    self.slots,
                    self.call(dialect, &try_lock, "slot")?
                ),
            )?
        };
        // The statement that sleeps begins before its own settings are in force.
        let unhurried = if waited {
            "select pg_catalog.set_config('statement_timeout', '0', true); "
        } else {
            ""
        };
        Ok(query(&format!(
            "{}{unhurried}select {}when {} then '' {attempt} end; {PROOF}",
            begin(hold),
            guards(dialect, hold, caution, self.settings.ttl),
            self.settings.condition(dialect, hold, 0),
        )))
    }

    /// Waits for the lock in the session's own right, for at most this many milliseconds, at least 1 and at
    /// most [`TURN`]. `first` tells whether this session has had a turn after which it was
    /// [first](Verdict::First).
    ///
    /// That the time is over without the lock is not an error to the server, and not a line in its log:
    /// the blocks catch it, and the last statement finds the lock not held.
    ///
    /// # Errors
    /// As [`try_sql`](Self::try_sql).
    pub fn wait_sql(
        &self,
        dialect: &dyn Dialect,
        milliseconds: u32,
        first: bool,
    ) -> Result<CString, Error> {
        let turn = milliseconds.clamp(1, TURN);
        let lock = self.function("advisory", Hold::Session);
        let (enter, wait) = if self.slots == 1 {
            let wait = format!("perform {};", self.call(dialect, &lock, "1")?);
            let leave = if self.shared {
                String::new()
            } else {
                let gate = self.beside(dialect, GATE)?;
                format!("perform pg_catalog.pg_advisory_unlock_shared({gate});")
            };
            (
                self.enter_gate(dialect, turn, first)?,
                format!("{wait} {leave}"),
            )
        } else {
            let door = self.beside(dialect, DOOR)?;
            let enter = if first {
                String::new()
            } else {
                format!("perform pg_catalog.pg_advisory_lock({door});")
            };
            let try_lock = self.function("try_advisory", Hold::Session);
            let wait = format!(
                "<<search>> loop \
                 for place in 1..{slots} loop \
                 slot := place; \
                 exit search when {call}; \
                 end loop; \
                 if pg_catalog.clock_timestamp() > pg_catalog.now() + interval '{turn} ms' then return; end if; \
                 perform pg_catalog.pg_sleep(0.02); \
                 end loop; \
                 perform pg_catalog.pg_advisory_unlock({door});",
                slots = self.slots,
                call = self.call(dialect, &try_lock, "slot")?,
            );
            (enter, wait)
        };
        let key = self.key_sql(dialect, "slot")?;
        // The look for who has released the lock is made once before, so that it is quick when it counts: the
        // session of whoever has is soon gone.
        let block = dialect.quote(&format!(
            "declare slot int := 1; released bool; begin \
             begin {enter} exception when lock_not_available then return; end; \
             perform pg_catalog.set_config('pglock.first', 'yes', true); \
             begin \
             for look in 1..2 loop \
             if look = 2 then {wait} perform pg_catalog.set_config('pglock.slot', slot::text, true); \
             perform pg_catalog.pg_stat_clear_snapshot(); end if; \
             released := exists (select from pg_catalog.pg_stat_get_activity(null) \
             where application_name = pg_catalog.concat('{RELEASED}', {key})); \
             end loop; \
             if not released then perform pg_catalog.pg_sleep({SETTLE}); end if; \
             exception when lock_not_available then end; end"
        ))?;
        let slot = "(select pg_catalog.current_setting('pglock.slot', true)::int as slot \
                    where pg_catalog.current_setting('pglock.slot', true) <> '') s";
        Ok(query(&format!(
            "{}; do {block}; select {}{} end; {PROOF}",
            self.settings.sql(dialect, Hold::Session, turn),
            guards(dialect, Hold::Session, Caution::None, self.settings.ttl),
            self.any_slot(dialect, Hold::Session, slot)?
        )))
    }

    /// The statements that a waiter begins its turn of so many milliseconds with: one who wants the exclusive
    /// lock takes the gate and keeps it from turn to turn, one who would share waits until it is free.
    fn enter_gate(&self, dialect: &dyn Dialect, turn: u32, first: bool) -> Result<String, Error> {
        let gate = self.beside(dialect, GATE)?;
        let (suffix, leave) = match self.shared {
            true => (
                "",
                format!(" perform pg_catalog.pg_advisory_unlock({gate});"),
            ),
            false if first => return Ok(String::new()),
            false => ("_shared", String::new()),
        };
        Ok(format!(
            "if not pg_catalog.pg_try_advisory_lock{suffix}({gate}) then \
             perform pg_catalog.pg_advisory_lock{suffix}({gate}); \
             perform pg_catalog.set_config('lock_timeout', greatest(1, '{turn}' - extract(epoch \
             from pg_catalog.clock_timestamp() - pg_catalog.now()) * '1000')::int::text, false); \
             end if;{leave}"
        ))
    }

    /// Asks how much of its first ttl is left to the server, in seconds, and whether this is the first start
    /// of a new cluster: then nobody can have held a lock before it. At a first start the statistics are those
    /// of initdb, before the start, and know of no checkpoint; a clean stop counts one, and after any other
    /// the statistics begin anew, after the start. Before version 15 they do not tell. And whether a holder has
    /// its lock again, so that who does not wait for the lock need not wait here; with slots it may not be the last.
    /// A session that is to hold off gets its settings first, or a timeout of the role's own would end it meanwhile.
    ///
    /// # Errors
    /// As [`try_sql`](Self::try_sql).
    pub fn age_sql(&self, dialect: &dyn Dialect, hold: Hold) -> Result<CString, Error> {
        let ttl = self.settings.ttl.unwrap_or_default().as_secs();
        let lost = lost_at_the_latest(dialect);
        let first = |of_counters: [&str; 3]| {
            let [reset, timed, requested] =
                of_counters.map(|name| format!("pg_catalog.pg_stat_get_{name}()"));
            format!("{reset} < {START} and {timed} + {requested} = 0")
        };
        let is_first = match dialect.server_version() {
            ..150_000 => "false".to_owned(),
            150_000..170_000 => first([
                "bgwriter_stat_reset_time",
                "bgwriter_timed_checkpoints",
                "bgwriter_requested_checkpoints",
            ]),
            170_000.. => first([
                "checkpointer_stat_reset_time",
                "checkpointer_num_timed",
                "checkpointer_num_requested",
            ]),
        };
        let is_held = if self.slots == 1 {
            let mode = if self.shared {
                "and mode = 'ExclusiveLock'"
            } else {
                ""
            };
            format!(
                "exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' and granted {mode} \
                 and {} and {OWN_DATABASE})",
                self.condition(dialect)?
            )
        } else {
            "false".to_owned()
        };
        let settings = match hold {
            Hold::Session => format!("{}; ", self.settings.sql(dialect, hold, 0)),
            Hold::Transaction => String::new(),
        };
        Ok(query(&format!(
            "{settings}select '{ttl}' - extract(epoch from pg_catalog.clock_timestamp() - {lost}), {is_first}, {is_held}"
        )))
    }

    /// Takes a fencing token, in a transaction of its own: the transaction's number is larger than that of
    /// any earlier holder, for it is assigned while the lock is held. The message makes the commit one
    /// that is flushed to disk.
    pub fn token_sql() -> CString {
        query(&format!("select {TOKEN}"))
    }

    /// What the answer to [`try_sql`](Self::try_sql) or [`wait_sql`](Self::wait_sql) means.
    pub fn verdict(&self, outcomes: &[Outcome]) -> Verdict {
        verdict(outcomes, self.shared, |key| self.comes_to(key))
    }

    /// Whether this is a key of the lock that is wanted, or of a slot of it. Of a name only the server knows it.
    fn comes_to(&self, key: Key) -> bool {
        match (&self.name, key) {
            (Name::Id(id), Key::One(key)) => i64::from(*id) == key,
            (Name::Id(id), Key::Two(first, slot)) => {
                *id as i32 == first && slot > 1 && i64::from(slot) <= self.slots.into()
            }
            (Name::Text(_), key) => matches!(key, Key::One(_)),
        }
    }

    /// The lock that this claim has come to.
    pub fn lock(&self, key: Key, hold: Hold) -> Lock {
        Lock {
            key,
            shared: self.shared,
            hold,
            settings: self.settings,
        }
    }

    /// The condition that a row of the lock table is about this lock, any of its slots or its door.
    ///
    /// # Errors
    /// As [`try_sql`](Self::try_sql).
    pub fn condition(&self, dialect: &dyn Dialect) -> Result<String, Error> {
        let slots = self.slots;
        Ok(match &self.name {
            Name::Id(id) => {
                let one = Key::One((*id).into()).condition();
                let slots = match slots {
                    1 => String::new(),
                    slots => format!(
                        " or (classid = '{id}' and objid::bigint between '{DOOR}' and '{slots}' and objsubid = '2')"
                    ),
                };
                format!("(({one}){slots})")
            }
            Name::Text(text) => {
                let text = literal(dialect, text)?;
                let door = match slots {
                    1 => String::new(),
                    _ => format!(" or ({})", self.is_beside(dialect, DOOR)?),
                };
                format!(
                    "((objsubid = '1' and {BIGINT} in (select pg_catalog.hashtextextended({text}, slot) \
                     from pg_catalog.generate_series(0, {}) slot)){door})",
                    slots - 1
                )
            }
        })
    }

    /// The arguments of the key beside the lock with this second number.
    fn beside(&self, dialect: &dyn Dialect, second: i32) -> Result<String, Error> {
        Ok(match &self.name {
            Name::Id(id) => Key::Two(*id as i32, second).to_string(),
            Name::Text(text) => {
                let hash = hash(dialect, text, "1")?;
                format!("({hash} >> 32)::int, {second}")
            }
        })
    }

    /// The condition that a row of the lock table is about that key.
    fn is_beside(&self, dialect: &dyn Dialect, second: i32) -> Result<String, Error> {
        let class = match &self.name {
            Name::Id(id) => id.to_string(),
            Name::Text(text) => format!("{} >> 32 & 4294967295", hash(dialect, text, "1")?),
        };
        let object = second as u32;
        Ok(format!(
            "objsubid = '2' and objid = '{object}' and classid::bigint = ({class})::bigint"
        ))
    }

    /// Whether somebody waits for the exclusive lock, and so holds the gate.
    fn gate_is_held(&self, dialect: &dyn Dialect) -> Result<String, Error> {
        Ok(format!(
            "exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' and granted \
             and mode = 'ShareLock' and {} and {OWN_DATABASE})",
            self.is_beside(dialect, GATE)?
        ))
    }

    /// `pg_try_advisory_xact_lock_shared`, say.
    fn function(&self, verb: &str, hold: Hold) -> String {
        let transaction = match hold {
            Hold::Session => "",
            Hold::Transaction => "_xact",
        };
        let shared = if self.shared { "_shared" } else { "" };
        format!("pg_catalog.pg_{verb}{transaction}_lock{shared}")
    }

    /// The call of a function for the slot of this number or expression.
    fn call(&self, dialect: &dyn Dialect, function: &str, slot: &str) -> Result<String, Error> {
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
    fn key_sql(&self, dialect: &dyn Dialect, slot: &str) -> Result<String, Error> {
        Ok(match &self.name {
            Name::Id(id) if self.slots == 1 => format!("'{id}'"),
            Name::Id(id) => format!(
                "case {slot} when 1 then '{id}' else pg_catalog.concat({}, ',', {slot}) end",
                *id as i32
            ),
            Name::Text(text) => hash(dialect, text, slot)?,
        })
    }

    /// The last branch of the verdict for a lock of which a slot may have been taken; `slot` is a table of that
    /// slot, empty where none was.
    fn any_slot(&self, dialect: &dyn Dialect, hold: Hold, slot: &str) -> Result<String, Error> {
        Ok(format!(
            "else coalesce((select {} from {slot}), case pg_catalog.current_setting('pglock.first', true) \
             when 'yes' then 'first' else 'busy' end)",
            self.held(dialect, "slot", hold)?
        ))
    }

    /// The word for a lock that is held in this slot, its key and the token. In a transaction that is to stay
    /// open the token would hold back vacuum: there it needs another, see [`token_sql`](Self::token_sql).
    fn held(&self, dialect: &dyn Dialect, slot: &str, hold: Hold) -> Result<String, Error> {
        let key = self.key_sql(dialect, slot)?;
        Ok(match &self.name {
            _ if self.fence && hold == Hold::Session => {
                format!("pg_catalog.concat('held ', {key}, ' ', {TOKEN})")
            }
            Name::Id(id) if self.slots == 1 => format!("'held {id}'"),
            _ => format!("pg_catalog.concat('held ', {key})"),
        })
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

/// The condition that a row of the lock table is about a lock of the database that pglock is connected to.
pub const OWN_DATABASE: &str = "database = \
     (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())";

/// Asks for what the server's lock table has of the session that asks. One that can ask waits for nothing, so
/// all of it is granted.
const PROOF: &str = "select locktype, classid, objid, objsubid, mode from pg_catalog.pg_lock_status() \
     where not pg_catalog.int4ne(pid, pg_catalog.pg_backend_pid())";

/// Whether the answer to [`PROOF`] has this key, shared or not.
fn is_proven(proof: &Outcome, key: Key, shared: bool) -> bool {
    let mode = if shared { "ShareLock" } else { "ExclusiveLock" };
    let expected: Vec<_> = row(key)
        .into_iter()
        .chain([Some(mode.to_owned())])
        .collect();
    matches!(proof, Outcome::Done { rows } if rows.contains(&expected))
}

/// The first columns of a row of the lock table that is about this key: its type, and where it is.
fn row(key: Key) -> [Option<String>; 4] {
    let (class, object, space) = key.columns();
    [
        Some("advisory".to_owned()),
        Some(class.to_string()),
        Some(object.to_string()),
        Some(space.to_string()),
    ]
}

/// See [`Claim::token_sql`].
const TOKEN: &str = "pg_catalog.concat(pg_catalog.txid_current(), \
     pg_catalog.left(pg_catalog.pg_logical_emit_message(true, 'pglock', '')::text, 0), \
     case when pg_catalog.current_setting('synchronous_commit') = 'off' then pg_catalog.left(\
     pg_catalog.set_config('synchronous_commit', 'local', true), 0) end)";

impl Lock {
    /// What it is bound to.
    pub fn hold(self) -> Hold {
        self.hold
    }

    /// Tries to take the lock again on a new connection, and asks how long ago the server lost all its
    /// sessions.
    pub fn retake_sql(&self, dialect: &dyn Dialect) -> CString {
        query(&self.retake(dialect))
    }

    fn retake(&self, dialect: &dyn Dialect) -> String {
        let transaction = match self.hold {
            Hold::Session => "",
            Hold::Transaction => "_xact",
        };
        let taken = format!(
            "pg_catalog.pg_try_advisory{transaction}_lock{}({})",
            self.suffix(),
            self.key
        );
        format!(
            "{}{}; {}; {}",
            begin(self.hold),
            self.settings.sql(dialect, self.hold, 0),
            lost(dialect),
            self.verdict_sql(dialect, &taken)
        )
    }

    /// Puts the lease in force again, and asks whether the lock is still held.
    pub fn check_sql(&self, dialect: &dyn Dialect) -> CString {
        query(&format!(
            "{}; {}",
            self.settings.sql(dialect, self.hold, 0),
            self.verdict_sql(dialect, "true")
        ))
    }

    /// Takes the lease out of force: the session lasts however long it is silent.
    pub fn lift_sql(&self, dialect: &dyn Dialect) -> CString {
        let settings = self.settings.without_lease();
        query(&settings.sql(dialect, self.hold, 0))
    }

    /// Renames the session for people who look at the server. By a statement that needs no snapshot: one may have to be
    /// waited for, where a role's transactions are deferrable by default.
    ///
    /// # Errors
    /// The name cannot be said to the server.
    pub fn rename_sql(&self, dialect: &dyn Dialect, name: &str) -> Result<CString, Error> {
        let scope = match self.hold {
            Hold::Session => "session",
            Hold::Transaction => "local",
        };
        let name = dialect.quote(name)?;
        Ok(query(&format!("set {scope} application_name to {name}")))
    }

    /// Gives the lock up, and says so beforehand to those who wait. Asks then whether somebody has waited for
    /// it, and has it now: an exclusive lock could otherwise be taken once more; of a shared one only the lock
    /// table can tell.
    pub fn release_sql(&self) -> CString {
        let local = self.hold == Hold::Transaction;
        let key = self.key;
        let say =
            format!("select pg_catalog.set_config('application_name', '{RELEASED}{key}', {local})");
        let unlock = format!("pg_catalog.pg_advisory_unlock{}({key})", self.suffix());
        query(&match self.hold {
            Hold::Transaction => format!("{say}; commit"),
            Hold::Session if self.shared => format!(
                "{say}; select {unlock}; select locktype, classid, objid, objsubid \
                 from pg_catalog.pg_lock_status() where locktype = 'advisory' and mode = 'ExclusiveLock' and {}",
                key.condition()
            ),
            Hold::Session => format!(
                "{say}; select {unlock}; \
                 select case when pg_catalog.pg_try_advisory_lock({key}) then {unlock} else false end"
            ),
        })
    }

    /// Whether the answer to [`release_sql`](Self::release_sql) says that the lock was held until then.
    pub fn was_released(&self, outcomes: &[Outcome]) -> bool {
        match (self.hold, outcomes) {
            (Hold::Session, [_path, _said, unlocked, ..]) => unlocked.field(0) == Some("t"),
            (Hold::Transaction, [.., Outcome::Done { .. }]) => true,
            _ => false,
        }
    }

    /// Whether it says that somebody has waited for the lock.
    pub fn is_waited_for(&self, outcomes: &[Outcome]) -> bool {
        match outcomes.last() {
            Some(Outcome::Done { rows }) if self.shared => rows.contains(&row(self.key).to_vec()),
            Some(answer) => answer.field(0) == Some("f"),
            None => false,
        }
    }

    /// Asks for the age of a backend, in seconds, if it holds this lock.
    pub fn holder_sql(&self, backend: i32) -> CString {
        query(&format!(
            "select extract(epoch from pg_catalog.clock_timestamp() - backend_start) \
             from pg_catalog.pg_stat_get_activity({backend}) \
             where exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' and granted \
             and pid = {backend} and {} and {OWN_DATABASE})",
            self.key.condition()
        ))
    }

    /// Ends a backend, and waits until it is gone, for a second at most; then tries to take the lock as
    /// [`retake_sql`](Self::retake_sql) does.
    pub fn evict_sql(&self, dialect: &dyn Dialect, backend: i32) -> CString {
        let limit = match dialect.server_version() {
            ..140_000 => "",
            140_000.. => ", 1000",
        };
        query(&format!(
            "select pg_catalog.pg_terminate_backend({backend}{limit}); {}",
            self.retake(dialect)
        ))
    }

    /// What the answer to [`retake_sql`](Self::retake_sql) or [`check_sql`](Self::check_sql) means.
    pub fn verdict(&self, outcomes: &[Outcome]) -> Verdict {
        verdict(outcomes, self.shared, |key| key == self.key)
    }

    fn suffix(&self) -> &'static str {
        if self.shared { "_shared" } else { "" }
    }

    fn verdict_sql(&self, dialect: &dyn Dialect, taken: &str) -> String {
        format!(
            "select {}when {taken} then 'held {}' else 'busy' end; {PROOF}",
            guards(dialect, self.hold, Caution::None, self.settings.ttl),
            self.key
        )
    }
}

/// What the session of a holder is called that has given its lock up: this and the key.
const RELEASED: &str = "pglock released ";

/// Opens the transaction that a lock behind a pooler is bound to. A stronger isolation, which a role may
/// have as its default, would keep a snapshot, and so hold back vacuum and `CREATE INDEX CONCURRENTLY`.
fn begin(hold: Hold) -> &'static str {
    match hold {
        Hold::Session => "",
        Hold::Transaction => "begin isolation level read committed; ",
    }
}

/// The first branches of a verdict: where the lock must not be taken.
fn guards(dialect: &dyn Dialect, hold: Hold, caution: Caution, ttl: Option<Duration>) -> String {
    let pid = dialect.backend_pid();
    let pooled = match hold {
        Hold::Session => {
            format!("when pg_catalog.int4ne(pg_catalog.pg_backend_pid(), {pid}) then 'pooled' ")
        }
        Hold::Transaction => String::new(),
    };
    let young = match (caution, ttl) {
        (Caution::HoldOff, Some(ttl)) => {
            let is_late = |moment: &str| {
                format!(
                    "pg_catalog.timestamptz_gt({moment}, \
                     pg_catalog.timestamptz_mi_interval('now', '{} s'))",
                    ttl.as_secs()
                )
            };
            let lost = match hold {
                // What tells a crash from a reset is dear to a new backend: where it may be either, `age_sql` asks.
                Hold::Session => format!("{} or {}", is_late(START), is_late(RESET)),
                // The next question may come to another server than this one.
                Hold::Transaction => is_late(&lost_at_the_latest(dialect)),
            };
            format!("when {lost} then 'young' ")
        }
        _ => String::new(),
    };
    format!("case {pooled}when pg_catalog.pg_is_in_recovery() then 'standby' {young}")
}

/// What the answer to an attempt at a lock, `shared` or not, means; `wanted` tells whether a key is the lock's.
fn verdict(outcomes: &[Outcome], shared: bool, wanted: impl Fn(Key) -> bool) -> Verdict {
    let refused = |message: &str| {
        Verdict::Refused(Error {
            message: message.to_owned(),
            reached: true,
            ..Error::default()
        })
    };
    let (word, proof) = match outcomes {
        [.., Outcome::Failed(error)] => return Verdict::Refused(error.clone()),
        _ if outcomes
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Failed(_))) =>
        {
            return refused("the server goes on after an error");
        }
        [.., word, proof] => (word.field(0).unwrap_or_default(), proof),
        _ => return refused("the server gave no answer to the lock call"),
    };
    match word {
        "busy" => Verdict::Busy,
        "first" => Verdict::First,
        "young" => Verdict::Young,
        "pooled" => Verdict::Pooled,
        "standby" => Verdict::Standby,
        word => {
            let mut parts = word.split(' ');
            let held = parts.next() == Some("held");
            let key = parts.next().and_then(Key::parse);
            let token = parts.next().map(str::parse).transpose();
            match (held, key, token) {
                (true, Some(key), Ok(_)) if !wanted(key) => {
                    refused("the server granted another lock than the one that it was asked for")
                }
                (true, Some(key), Ok(token)) if is_proven(proof, key, shared) => {
                    Verdict::Held(key, token)
                }
                (true, Some(_), Ok(_)) => refused(
                    "the server says that it granted the lock, but its lock table does not show it: its \
                     advisory locks do not exclude anybody",
                ),
                _ => refused("the server gave an unexpected answer to the lock call"),
            }
        }
    }
}

/// When the server's statistics were reset, by their kinds: those that a crash resets at one and the same moment; and, from
/// version 15 on, some that stand in shared memory and nowhere else, and are as old as that, which a crash makes anew before it
/// resets the others.
fn resets(dialect: &dyn Dialect) -> (Vec<String>, Option<String>) {
    let version = dialect.server_version();
    let of_kind = |kind| format!("(select stats_reset from pg_catalog.pg_stat_get_{kind}())");
    let mut at_once = vec![RESET.to_owned(), of_kind("archiver")];
    if version >= 140_000 {
        at_once.push(of_kind("wal"));
    }
    let memory = (version >= 150_000).then(|| of_kind("recovery_prefetch"));
    (at_once, memory)
}

/// When the server last lost all its sessions, for one who has to know of every time that it did. An administrator who
/// resets one kind of statistics changes nothing; one who resets all makes it seem later than it was.
fn lost_at_the_latest(dialect: &dyn Dialect) -> String {
    let (mut resets, memory) = resets(dialect);
    resets.extend(memory);
    format!("greatest({START}, least({}))", resets.join(", "))
}

/// The same for one who has to be sure that it did: where an administrator may have reset statistics since, it seems
/// earlier than it was.
fn lost_at_the_earliest(dialect: &dyn Dialect) -> String {
    let (at_once, memory) = resets(dialect);
    let mut is_crash: Vec<String> = at_once.windows(2).map(|two| two.join(" = ")).collect();
    is_crash.extend(memory.iter().map(|memory| format!("{memory} < {RESET}")));
    format!(
        "greatest({START}, case when {} then {} end)",
        is_crash.join(" and "),
        memory.as_deref().unwrap_or(RESET)
    )
}

/// Asks how long ago the server lost all its sessions.
pub fn lost_sql(dialect: &dyn Dialect) -> CString {
    query(&lost(dialect))
}

fn lost(dialect: &dyn Dialect) -> String {
    let lost = lost_at_the_earliest(dialect);
    format!("select extract(epoch from pg_catalog.clock_timestamp() - {lost})")
}

/// From the answer to [`Lock::retake_sql`], where it stands before the verdict: how long ago the server lost
/// all its sessions.
pub fn age_with_verdict(outcomes: &[Outcome]) -> Option<Duration> {
    let [.., age, _verdict, _proof] = outcomes else {
        return None;
    };
    seconds(age.field(0)?)
}

/// From the answer to [`lost_sql`].
pub fn age(outcomes: &[Outcome]) -> Option<Duration> {
    seconds(outcomes.last()?.field(0)?)
}

/// From the answer to [`Claim::age_sql`]: whether somebody holds the lock.
pub fn is_held(outcomes: &[Outcome]) -> bool {
    outcomes.last().and_then(|answer| answer.field(2)) == Some("t")
}

/// From the answer to [`Claim::age_sql`]: for how long to hold off.
pub fn hold_off(outcomes: &[Outcome]) -> Option<Duration> {
    let answer = outcomes.last()?;
    let is_fresh = answer.field(1)? == "t";
    let left = seconds(answer.field(0)?)?;
    Some(if is_fresh { Duration::ZERO } else { left })
}

/// From the answer to [`Claim::token_sql`].
pub fn token(outcomes: &[Outcome]) -> Option<u64> {
    outcomes.last()?.field(0)?.parse().ok()
}

/// A number of seconds; one that is negative counts as zero.
fn seconds(text: &str) -> Option<Duration> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds: &f64| seconds.is_finite())?;
    Duration::try_from_secs_f64(seconds.max(0.0)).ok()
}

/// A query of these statements; all that pglock sends go through here, but for `;` and `rollback`, which look
/// nothing up.
///
/// A role or a database may have a `search_path` that puts a schema of others before `pg_catalog`, and operators, types and
/// functions there that fit as well or better. So the first statement has nothing but `pg_catalog` searched: the
/// server looks up what a statement names only when those before it have run. `pg_temp` would come before it if it were not
/// named. The statement itself looks nothing up, needs no snapshot, and what it sets is over with the transaction: with
/// that of the query, or behind a pooler with the one that is open, so that the pool's next client never meets it.
pub fn query(statements: &str) -> CString {
    sys::c_string(format!(
        "set local search_path to pg_catalog, pg_temp; {statements}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(name: Name, slots: u32) -> Claim {
        Claim {
            name,
            shared: false,
            slots,
            settings: Settings::new(None),
            fence: false,
        }
    }

    /// The answer of a server that has granted this key, and shows it in its lock table.
    fn granted(key: Key) -> [Outcome; 3] {
        let proof = row(key).into_iter().chain([Some("ExclusiveLock".into())]);
        [
            Outcome::Done { rows: vec![] },
            Outcome::Done {
                rows: vec![vec![Some(format!("held {key}"))]],
            },
            Outcome::Done {
                rows: vec![proof.collect()],
            },
        ]
    }

    #[test]
    fn no_other_key_will_do_than_that_of_the_lock() {
        let id = |id, slots| claim(Name::Id(id), slots);
        let name = |slots| claim(Name::Text("x".into()), slots);
        for (claim, key, is_right) in [
            (id(1, 1), Key::One(1), true),
            (id(1, 1), Key::One(2), false),
            (id(1, 1), Key::One(1 << 32 | 1), false),
            (id(1, 1), Key::Two(0, 1), false),
            (id(1, 1), Key::Two(1, 1), false),
            (id(1, 1), Key::Two(1, 2), false),
            (id(u32::MAX, 2), Key::One(u32::MAX.into()), true),
            (id(u32::MAX, 2), Key::One(-1), false),
            (id(u32::MAX, 2), Key::Two(-1, 2), true),
            (id(3, 5), Key::Two(3, 5), true),
            (id(3, 5), Key::Two(3, 6), false),
            (id(3, 5), Key::Two(3, 1), false),
            (id(3, 5), Key::Two(3, DOOR), false),
            (id(3, 5), Key::Two(3, GATE), false),
            (id(3, 5), Key::Two(2, 5), false),
            (name(1), Key::One(-7), true),
            (name(5), Key::One(7), true),
            (name(1), Key::Two(0, 1), false),
            (name(5), Key::Two(1, 2), false),
        ] {
            let verdict = claim.verdict(&granted(key));
            let held = Verdict::Held(key, None);
            assert_eq!(verdict == held, is_right, "{claim:?}, {key:?}: {verdict:?}");
            assert!(
                is_right || matches!(verdict, Verdict::Refused(_)),
                "{verdict:?}"
            );
        }
        // Who takes it again knows which it was.
        for key in [Key::One(1), Key::Two(1, 2), Key::One(-7)] {
            for other in [Key::One(1), Key::Two(1, 2), Key::Two(1, 3), Key::One(-7)] {
                let lock = id(1, 3).lock(key, Hold::Session);
                let held = lock.verdict(&granted(other)) == Verdict::Held(other, None);
                assert_eq!(held, key == other, "{key:?}, {other:?}");
            }
        }
    }
}
