//! What is said by one who waits for a lock behind a pooler: is it free yet, and if not, when to ask again?
//!
//! Those who wait there hold nothing in between, for the pool's connections are few, and so do not see each other. But each
//! asks on a connection that others have asked on, and there a note is left, a setting of the session: the time for which the
//! last one was told to come again. Whoever comes next is told to come a little later than that. So they come one after the
//! other at even intervals, however many they are, and one who has got the lock leaves no gap. A note is a number and of use
//! to nobody else; where the pooler wipes it off, it is as if nobody waited.

use std::time::Duration;

use super::query::{Query, Statements};
use super::request_sql::LockRequest;
use crate::pq::Error;
use crate::server::dialect::Dialect;
use crate::server::session_settings::LockScope;

/// How far apart those come who wait for a lock that one may hold, while they are few; in milliseconds. Where several may, one
/// more often comes in vain, and one more often in time.
const APART: u32 = 250;
/// As how many slots a lock counts that may be shared by any number.
const SHARED: u32 = 5;
/// How far ahead one is told to come at most, in milliseconds. The nearer the last one is to that the closer follows the next,
/// so that there is room for any number. It is how late the lock may be taken when most of many waiters are killed.
const AHEAD: u32 = 10_000;
/// The longest that one is told to pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(AHEAD as u64);
/// How many notes there are on a connection at most: locks share them where they are more.
const NOTES: u32 = 256;

/// What one has seen who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glance {
    /// The lock may be had: it is worth an attempt.
    Free,
    /// Others have it; after this time it is one's turn to ask again, as far as is known of others who wait.
    Busy(Duration),
}

impl LockRequest {
    /// Asks whether the lock could be had, and notes when this one is to ask again. It is taken for that, and given back with the
    /// statement. It must not be asked in a transaction, with which the note would be gone.
    ///
    /// What may be another server than the primary says that it could: an attempt will tell.
    ///
    /// # Errors
    /// The name of the lock cannot be said to the server.
    pub fn glance_query(&self, dialect: &dyn Dialect) -> Result<Query<Glance>, Error> {
        let function = self.function("try_advisory", LockScope::Transaction);
        let is_free = match (self.slots, self.shared) {
            (1, false) => self.call(dialect, &function, "1")?,
            (1, true) => format!(
                "not {} and {}",
                self.writer_waits_sql(dialect)?,
                self.call(dialect, &function, "1")?
            ),
            (slots, _) => format!(
                "exists (select from pg_catalog.generate_series(1, {slots}) slot where {})",
                self.call(dialect, &function, "slot")?
            ),
        };
        // All who wait for the lock come to the same.
        let note = format!("'pglock.turn_{}'", self.count_class() as u32 % NOTES);
        let apart = match self.shared {
            true => APART / SHARED,
            false => (APART / self.slots).max(1),
        };
        let mut statements = Statements::new();
        let word = statements.add(format!(
            "select case when pg_catalog.pg_is_in_recovery() or {is_free} then 'free' else \
             (select pg_catalog.concat('busy ', ahead, \
             pg_catalog.left(pg_catalog.set_config({note}, (present + ahead)::text, false), 0)) from \
             (select present, {apart} + greatest(0, least({AHEAD}, last - present)) * {} / {AHEAD} as ahead from \
             (select (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint as present, \
             case when noted ~ '^[0-9]{{1,15}}$' then noted::bigint else 0 end as last from \
             pg_catalog.current_setting({note}, true) noted) times) turn) end",
            AHEAD - apart
        ));
        Ok(statements.query(move |answer| read(answer.field(word, 0))))
    }
}

fn read(word: Option<&str>) -> Result<Glance, &'static str> {
    let ahead = |word: &str| word.strip_prefix("busy ")?.parse().ok();
    match word.unwrap_or_default() {
        "free" => Ok(Glance::Free),
        word => match ahead(word) {
            Some(ahead) => Ok(Glance::Busy(
                Duration::from_millis(ahead).min(LONGEST_PAUSE),
            )),
            None => {
                Err("the server gave an unexpected answer to the question whether the lock is free")
            }
        },
    }
}
