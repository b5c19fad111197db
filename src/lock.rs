//! The lock itself: the SQL that takes, proves and gives it up, and what the answers mean.
//!
//! One simple query of several statements is one round trip. The first statement makes the session's
//! settings, since one that is made in the same statement as the lock is taken would come too late for
//! it; the last tells how it went. Functions are named in full, so that no `search_path` puts others in
//! their place.

use std::ffi::CString;

use crate::pq::{Connection, Error, Outcome};

/// How long one turn in the server's queue is, in milliseconds. A statement that waits holds a snapshot,
/// and so holds back vacuum and `CREATE INDEX CONCURRENTLY`; between turns none is held. Shorter than
/// the server's `deadlock_timeout`, 1 s, it also spares the server a deadlock check for each waiter.
pub const TURN: u32 = 900;

/// The server's word on an attempt to take the lock.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The lock is held: it stands in the server's lock table under the own backend.
    Held,
    /// Somebody else holds it.
    Busy,
    /// It must not be taken here, or the attempt failed. The message says why.
    Refused(Error),
}

/// One advisory lock, `pg_advisory_lock(bigint)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    key: i64,
}

impl Lock {
    /// The lock of this number.
    pub fn new(id: u32) -> Self {
        Self { key: id.into() }
    }

    /// Tries to take the lock, without waiting.
    pub fn try_sql(self, connection: &Connection) -> CString {
        let key = self.key;
        self.attempt(
            connection,
            0,
            "",
            &format!("pg_catalog.pg_try_advisory_lock({key})"),
        )
    }

    /// Waits for the lock, for at most this many milliseconds, at least 1 and at most [`TURN`].
    ///
    /// That the time is over without the lock is not an error to the server, and not a line in its log:
    /// the block catches it, and the last statement finds the lock not held.
    pub fn wait_sql(self, connection: &Connection, milliseconds: u32) -> CString {
        let Self { key } = self;
        let wait = format!(
            "do $$ begin perform pg_catalog.pg_advisory_lock({key}); \
             exception when lock_not_available then end $$; "
        );
        self.attempt(connection, milliseconds.clamp(1, TURN), &wait, "true")
    }

    /// The settings, then `wait`, then the verdict on whether `taken` and proven.
    fn attempt(
        self,
        connection: &Connection,
        lock_timeout: u32,
        wait: &str,
        taken: &str,
    ) -> CString {
        let pid = connection.backend_pid();
        let settings: String = settings(connection)
            .iter()
            .map(|name| format!(", pg_catalog.set_config('{name}', '0', false)"))
            .collect();
        let proof = self.proof();
        sql(format!(
            "select case when pg_catalog.pg_backend_pid() = {pid} then pg_catalog.concat(\
             pg_catalog.set_config('lock_timeout', '{lock_timeout}', false){settings}) end; \
             {wait}\
             select case when pg_catalog.pg_backend_pid() <> {pid} then 'pooled' \
             when pg_catalog.pg_is_in_recovery() then 'standby' \
             when not {taken} then 'busy' \
             when {proof} then 'held' \
             else 'missing' end"
        ))
    }

    /// Whether the lock table has the lock under the own backend.
    fn proof(self) -> String {
        let (high, low) = (self.key as u64 >> 32, self.key as u64 & 0xffff_ffff);
        format!(
            "exists (select from pg_catalog.pg_lock_status() \
             where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid() and granted \
             and mode = 'ExclusiveLock' and classid = {high} and objid = {low} and objsubid = 1)"
        )
    }

    /// Gives the lock up.
    pub fn release_sql(self) -> CString {
        let key = self.key;
        sql(format!("select pg_catalog.pg_advisory_unlock({key})"))
    }

    /// What the answer to [`try_sql`](Self::try_sql) or [`wait_sql`](Self::wait_sql) means.
    pub fn verdict(outcomes: &[Outcome], waited: bool) -> Verdict {
        let word = match outcomes.last() {
            Some(Outcome::Failed(error)) => return Verdict::Refused(error.clone()),
            Some(Outcome::Done(row)) => row.first().cloned().flatten(),
            None => None,
        };
        let refused = |message: &str| {
            Verdict::Refused(Error {
                sqlstate: None,
                message: message.to_owned(),
            })
        };
        match word.as_deref() {
            Some("held") => Verdict::Held,
            Some("busy") => Verdict::Busy,
            // The turn in the queue ended without the lock.
            Some("missing") if waited => Verdict::Busy,
            Some("missing") => refused(
                "the server says that it granted the lock, but its lock table does not show it: \
                 its advisory locks do not exclude anybody",
            ),
            Some("pooled") => refused(
                "between pglock and the server is a pooler that may hand each statement to another \
                 backend, where the lock would not last: connect to the server directly, or through a \
                 pool in session mode",
            ),
            Some("standby") => refused(
                "the server is a standby, whose locks do not exclude those of its primary: connect to the \
                 primary",
            ),
            _ => refused("the server answered the lock call with something else"),
        }
    }

    /// Whether the answer to [`release_sql`](Self::release_sql) says that the lock was held until then.
    pub fn was_released(outcomes: &[Outcome]) -> bool {
        matches!(outcomes, [Outcome::Done(row)] if row.first() == Some(&Some("t".to_owned())))
    }
}

/// The timeouts that a role or a database may have set for itself, and that would end the wait or the
/// holder's session; 0 turns each off.
fn settings(connection: &Connection) -> &'static [&'static str] {
    const SINCE_14: &[&str] = &["statement_timeout", "idle_session_timeout"];
    if connection.server_version() >= 140_000 {
        SINCE_14
    } else {
        &SINCE_14[..1]
    }
}

/// A query of ours: it holds no null byte, for it is made of numbers and of text without any.
fn sql(text: String) -> CString {
    CString::new(text).unwrap_or_default()
}
