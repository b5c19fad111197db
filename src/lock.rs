//! The lock itself: the SQL that takes, proves and gives it up, and what the answers mean.
//!
//! One simple query of several statements is one round trip. The first statement makes the session's
//! settings, since one that is made in the same statement as the lock is taken would come too late for
//! it; the last tells how it went. Functions are named in full, so that no `search_path` puts others in
//! their place.

use std::ffi::CString;
use std::time::Duration;

use crate::pq::{Connection, Error, Outcome};

/// How long one turn in the server's queue is, in milliseconds. A statement that waits holds a snapshot,
/// and so holds back vacuum and `CREATE INDEX CONCURRENTLY`; between turns none is held. Shorter than
/// the server's `deadlock_timeout`, 1 s, it also spares the server a deadlock check for each waiter.
pub const TURN: u32 = 900;

/// The first version with `idle_session_timeout`.
const IDLE_TIMEOUT_SINCE: i32 = 140_000;

/// The moment when the server last lost all its sessions: a clean restart moves the start of the
/// postmaster, a crash of a backend restarts the rest under the same postmaster and resets the statistics.
const LOST: &str = "greatest(pg_catalog.pg_postmaster_start_time(), \
                    pg_catalog.pg_stat_get_bgwriter_stat_reset_time())";

/// The server's word on an attempt to take the lock.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The lock is held: it stands in the server's lock table under the own backend. With the fencing
    /// token, if one was asked for.
    Held(Option<u64>),
    /// Somebody else holds it.
    Busy,
    /// The server lost its sessions less than a ttl ago: an earlier holder may be about to take its lock
    /// again.
    Young,
    /// It must not be taken here, or the attempt failed. The message says why.
    Refused(Error),
}

/// One advisory lock, `pg_advisory_lock(bigint)`, and how it is to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Its key.
    pub key: i64,
    /// How long the server keeps it without a sign of the holder; `None` for as long as the session
    /// lasts.
    pub ttl: Option<Duration>,
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

impl Lock {
    /// Tries to take the lock, without waiting.
    pub fn try_sql(self, connection: &Connection, caution: Caution) -> CString {
        let try_lock = format!("pg_catalog.pg_try_advisory_lock({})", self.key);
        let settings = self.settings_sql(connection, 0);
        let verdict = self.verdict_sql(connection, caution, &try_lock, self.fence);
        sql(format!("{settings}; {verdict}"))
    }

    /// Waits for the lock, for at most this many milliseconds, at least 1 and at most [`TURN`].
    ///
    /// That the time is over without the lock is not an error to the server, and not a line in its log:
    /// the block catches it, and the last statement finds the lock not held.
    pub fn wait_sql(self, connection: &Connection, milliseconds: u32) -> CString {
        let key = self.key;
        let settings = self.settings_sql(connection, milliseconds.clamp(1, TURN));
        let verdict = self.verdict_sql(connection, Caution::None, "true", self.fence);
        sql(format!(
            "{settings}; do $$ begin perform pg_catalog.pg_advisory_lock({key}); \
             exception when lock_not_available then end $$; {verdict}"
        ))
    }

    /// Tries to take the lock again on a new connection, and asks how long ago the server lost all its
    /// sessions.
    pub fn retake_sql(self, connection: &Connection) -> CString {
        let try_lock = format!("pg_catalog.pg_try_advisory_lock({})", self.key);
        let settings = self.settings_sql(connection, 0);
        let verdict = self.verdict_sql(connection, Caution::None, &try_lock, false);
        sql(format!(
            "{settings}; \
             select extract(epoch from pg_catalog.clock_timestamp() - {LOST}); \
             {verdict}"
        ))
    }

    /// Puts the lease in force again, and asks whether the lock is still held.
    pub fn check_sql(self, connection: &Connection) -> CString {
        let settings = self.settings_sql(connection, 0);
        let verdict = self.verdict_sql(connection, Caution::None, "true", false);
        sql(format!("{settings}; {verdict}"))
    }

    /// Takes the lease out of force: the session lasts however long it is silent.
    pub fn lift_sql(self, connection: &Connection) -> CString {
        sql(Self { ttl: None, ..self }.settings_sql(connection, 0))
    }

    /// Asks how much of its first ttl is left to the server, in seconds, and whether it was made less
    /// than a ttl before it lost its sessions: then there was no time for anybody to hold a lock.
    pub fn age_sql(self) -> CString {
        let ttl = self.ttl.unwrap_or_default().as_secs();
        sql(format!(
            "select {ttl} - extract(epoch from pg_catalog.clock_timestamp() - {LOST}), \
             (system_identifier >> 32) > extract(epoch from {LOST}) - {ttl} \
             from pg_catalog.pg_control_system()"
        ))
    }

    /// Gives the lock up.
    pub fn release_sql(self) -> CString {
        let key = self.key;
        sql(format!("select pg_catalog.pg_advisory_unlock({key})"))
    }

    /// The statement that makes the session's settings, unless a pooler would lend the session to others.
    fn settings_sql(self, connection: &Connection, lock_timeout: u32) -> String {
        let pid = connection.backend_pid();
        let calls: Vec<String> = self
            .settings(connection.server_version())
            .into_iter()
            .chain([("lock_timeout", lock_timeout.into())])
            .map(|(name, value)| format!("pg_catalog.set_config('{name}', '{value}', false)"))
            .collect();
        format!(
            "select case when pg_catalog.pg_backend_pid() = {pid} then pg_catalog.concat({}) end",
            calls.join(", ")
        )
    }

    /// What to set. The lease; and off with the timeouts that a role or a database may have set for
    /// itself, and that would end the wait or the holder's session.
    fn settings(self, server_version: i32) -> Vec<(&'static str, u64)> {
        let ttl = self.ttl.unwrap_or_default();
        let mut settings = vec![("statement_timeout", 0)];
        if server_version >= IDLE_TIMEOUT_SINCE {
            settings.push(("idle_session_timeout", ttl.as_millis() as u64));
        } else if self.ttl.is_some() {
            // As good as an older server can do: it notices that the client's host is gone. Not before
            // the lease is over, or it would free the lock too early.
            settings.push((
                "tcp_keepalives_idle",
                ttl.as_secs().saturating_sub(2).max(1),
            ));
            settings.push(("tcp_keepalives_interval", 1));
            settings.push(("tcp_keepalives_count", 2));
            if server_version >= 120_000 {
                settings.push(("tcp_user_timeout", ttl.as_millis() as u64));
            }
        }
        if server_version >= 170_000 {
            settings.push(("transaction_timeout", 0));
        }
        settings
    }

    /// The statement that takes the lock, if it is not taken yet, and tells what came of it.
    fn verdict_sql(
        self,
        connection: &Connection,
        caution: Caution,
        taken: &str,
        fence: bool,
    ) -> String {
        let pid = connection.backend_pid();
        let young = match (caution, self.ttl) {
            (Caution::HoldOff, Some(ttl)) => format!(
                "when pg_catalog.clock_timestamp() < {LOST} + '{} s' then 'young' ",
                ttl.as_secs()
            ),
            _ => String::new(),
        };
        let (high, low) = (self.key as u64 >> 32, self.key as u64 & 0xffff_ffff);
        let held = if fence {
            // The transaction's number is assigned here, after the lock was granted, and so is larger than
            // that of any earlier holder. The message makes the commit one that is flushed to disk.
            "pg_catalog.concat('held ', pg_catalog.txid_current(), \
             pg_catalog.left(pg_catalog.pg_logical_emit_message(true, 'pglock', '')::text, 0), \
             case when pg_catalog.current_setting('synchronous_commit') = 'off' then pg_catalog.left(\
             pg_catalog.set_config('synchronous_commit', 'local', true), 0) end)"
        } else {
            "'held'"
        };
        format!(
            "select case when pg_catalog.pg_backend_pid() <> {pid} then 'pooled' \
             when pg_catalog.pg_is_in_recovery() then 'standby' {young}\
             when not {taken} then 'busy' \
             when exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' \
             and pid = pg_catalog.pg_backend_pid() and granted and mode = 'ExclusiveLock' \
             and classid = {high} and objid = {low} and objsubid = 1) then {held} \
             else 'missing' end"
        )
    }
}

/// What the answer to an attempt means; `waited` tells whether it was one that waits.
pub fn verdict(outcomes: &[Outcome], waited: bool) -> Verdict {
    let word = match outcomes.last() {
        Some(Outcome::Failed(error)) => return Verdict::Refused(error.clone()),
        Some(Outcome::Done(row)) => row.first().cloned().flatten().unwrap_or_default(),
        None => String::new(),
    };
    let refused = |message: &str| {
        Verdict::Refused(Error {
            sqlstate: None,
            message: message.to_owned(),
        })
    };
    match word.as_str() {
        "held" => Verdict::Held(None),
        "busy" => Verdict::Busy,
        "young" => Verdict::Young,
        // The turn in the queue ended without the lock.
        "missing" if waited => Verdict::Busy,
        "missing" => refused(
            "the server says that it granted the lock, but its lock table does not show it: its advisory \
             locks do not exclude anybody",
        ),
        "pooled" => refused(
            "between pglock and the server is a pooler that may hand each statement to another backend, \
             where the lock would not last: connect to the server directly, or through a pool in session \
             mode",
        ),
        "standby" => refused(
            "the server is a standby, whose locks do not exclude those of its primary: connect to the \
             primary",
        ),
        word => match word.strip_prefix("held ").map(str::parse) {
            Some(Ok(token)) => Verdict::Held(Some(token)),
            _ => refused("the server answered the lock call with something else"),
        },
    }
}

/// From the answer to [`Lock::retake_sql`]: how long ago the server lost all its sessions.
pub fn age(outcomes: &[Outcome]) -> Option<Duration> {
    duration(outcomes.get(1)?, 0)
}

/// From the answer to [`Lock::age_sql`]: for how long to hold off.
pub fn hold_off(outcomes: &[Outcome]) -> Option<Duration> {
    let [outcome @ Outcome::Done(row)] = outcomes else {
        return None;
    };
    let fresh = row.get(1)?.as_deref() == Some("t");
    Some(if fresh {
        Duration::ZERO
    } else {
        duration(outcome, 0)?
    })
}

/// Whether the answer to [`Lock::release_sql`] says that the lock was held until then.
pub fn was_released(outcomes: &[Outcome]) -> bool {
    matches!(outcomes, [Outcome::Done(row)] if row.first() == Some(&Some("t".to_owned())))
}

/// Whether the server itself ends a session that is silent for a ttl, by its version.
pub fn has_lease(server_version: i32) -> bool {
    server_version >= IDLE_TIMEOUT_SINCE
}

/// A column that holds seconds; one that is negative counts as zero.
fn duration(outcome: &Outcome, column: usize) -> Option<Duration> {
    let Outcome::Done(row) = outcome else {
        return None;
    };
    let seconds: f64 = row.get(column)?.as_ref()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds.max(0.0)).ok()
}

/// A query of ours: it holds no null byte, for it is made of numbers and of text without any.
fn sql(text: String) -> CString {
    CString::new(text).unwrap_or_default()
}
