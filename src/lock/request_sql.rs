//! What is said to the server by one who wants a lock: to try, to wait for a turn, to take a token.
//!
//! Where a statement waits, another before it makes the session's settings, since one that is made in the same statement
//! would come too late for it. To a backend that has just been started everything that it looks up for the first time is
//! expensive: so functions stand where operators could, and what can be compared here is.

use super::held_sql::Lock;
use super::keys::{CompanionKey, Key, Name, OWN_DATABASE, PLACES, PLACES_PER_TRY};
use super::query::{CONFIRMED, Query, Statements};
use super::restart::RestartCheck;
use super::verdict::{self, TurnPlace, Verdict, VerdictPlace, counted_proof};
use crate::pq::Error;
use crate::server::dialect::Dialect;
use crate::server::session_settings::{LockScope, SessionSettings};

/// How long one turn in the server's queue is, in milliseconds. A statement that waits holds a snapshot,
/// and so holds back vacuum and `CREATE INDEX CONCURRENTLY`; between turns none is held. Shorter than
/// the server's `deadlock_timeout`, 1 s, it also spares the server a deadlock check for each waiter.
pub const TURN: u32 = 900;

/// How long a waiter makes sure that the server is not being shut down, in seconds. A shutdown ends one
/// backend after the other: the holder's may be gone, and its lock granted to a waiter whose own backend
/// is still to be ended, while the holder goes by its lease. A backend that lives on for so long is not
/// being ended. Where a holder has given the lock up by a [sign](super::held_sql::Lock::release_query) there is nothing to make
/// sure of.
pub const SETTLE: &str = "0.06";

/// How long at most one who is first in the queue for a slot pauses before the next look for one, in milliseconds.
pub const SLOT_PAUSE: u32 = 20;

/// See [`LockRequest::token_query`].
const TOKEN: &str = "pg_catalog.txid_current()";

/// A lock that is wanted, and how it is to be held.
#[derive(Clone, Debug)]
pub struct LockRequest {
    /// Its name.
    pub name: Name,
    /// Whether others may share it.
    pub shared: bool,
    /// How many may hold it at once, each a slot of it; at least 1.
    pub slots: u32,
    /// How the session that holds it is set up, the lease above all.
    pub settings: SessionSettings,
    /// Whether each holder gets a fencing token.
    pub fence: bool,
    /// Whether what is taken counts only when replication has confirmed it.
    pub sync: bool,
}

/// Notes this expression's value as the word on a turn, for the last statement of its query to show.
fn note(word: &str) -> String {
    format!("pg_catalog.set_config('pglock.word', {word}, true)")
}

impl LockRequest {
    /// The lock that this request has come to.
    pub fn lock(&self, key: Key, scope: LockScope) -> Lock {
        Lock {
            key,
            shared: self.shared,
            scope,
            settings: self.settings,
            sync: self.sync,
            count: (self.slots > 1).then(|| self.count_key()),
        }
    }

    /// Tries to take the lock, without waiting. `waits` tells whether the requester would queue for a slot,
    /// and so does not go before those who do; `waited`, whether somebody else has held the lock before; `exact`, that it is to
    /// be known in which database those are who count its slots.
    ///
    /// # Errors
    /// The name of the lock cannot be said to the server.
    pub fn try_query(
        &self,
        dialect: &dyn Dialect,
        scope: LockScope,
        check: RestartCheck,
        waits: bool,
        waited: bool,
        exact: bool,
    ) -> Result<Query<Verdict>, Error> {
        // A server ends its newest sessions first (`BackendList` in its postmaster.c), so that of a newcomer before that of a
        // holder. A waiter's may be the older one, and so may a pool's.
        let settles = waited || scope == LockScope::Transaction;
        let attempt = if self.slots == 1 {
            self.try_lock(dialect, scope, settles)?
        } else {
            self.try_slots(dialect, scope, waits, settles)?
        };
        let mut statements = Statements::new();
        verdict::begin(&mut statements, scope);
        // The statement that sleeps begins before its own settings are in force.
        if waited && scope == LockScope::Session {
            statements.add("select pg_catalog.set_config('statement_timeout', '0', true)");
        }
        let settings = match scope {
            LockScope::Session => {
                format!(
                    "when {} then '' ",
                    self.settings.condition(dialect, scope, 0)
                )
            }
            // Whatever becomes of the attempt, the transaction is not to stay open when its client is gone.
            LockScope::Transaction => {
                statements.add(self.settings.sql(dialect, scope, 0));
                String::new()
            }
        };
        // Who waits is seen by those who come while it does.
        let count =
            (self.slots > 1 || waits && scope == LockScope::Session).then(|| self.count_key());
        let counts = match count {
            // Whether or not the lock can be had others are to see how many slots are counted.
            Some(count) => format!(
                "when {}({count}) is null then '' ",
                match scope {
                    LockScope::Session => "pg_catalog.pg_try_advisory_lock_shared",
                    LockScope::Transaction => "pg_catalog.pg_try_advisory_xact_lock_shared",
                }
            ),
            None => String::new(),
        };
        let attempt = format!(
            "select {}{settings}{counts}{attempt} end",
            verdict::guards(dialect, scope, check, self.settings),
        );
        let proof = counted_proof(dialect, self, exact)?;
        let place = VerdictPlace::ask_counted(&mut statements, attempt, proof);
        let request = self.clone();
        Ok(statements.query(move |answer| place.read_counted(answer, &request, count, exact)))
    }

    /// The branches for the only slot that there is.
    fn try_lock(
        &self,
        dialect: &dyn Dialect,
        scope: LockScope,
        settles: bool,
    ) -> Result<String, Error> {
        let call = self.call(dialect, &self.function("try_advisory", scope), "1")?;
        let writers = if self.shared {
            format!("not {} and ", self.writer_waits_sql(dialect)?)
        } else {
            String::new()
        };
        let settled = self.settled(dialect, scope, "1", settles)?;
        let held = self.held(dialect, "1", scope)?;
        Ok(format!(
            "when not ({writers}{call} and {settled}) then 'busy' else {held}"
        ))
    }

    /// The condition that it was made sure of that the lock counts which was just taken, in this slot. Whoever is not to settle in
    /// any case does where the sign is there that a holder has just given the lock up: somebody else may have it by that sign if
    /// this session is ended. Where it is there still, since that holder is slow, the lock is given back.
    fn settled(
        &self,
        dialect: &dyn Dialect,
        scope: LockScope,
        slot: &str,
        settles: bool,
    ) -> Result<String, Error> {
        let sign = self.release_sql(dialect, slot, true)?;
        let no_sign = format!("pg_catalog.pg_try_advisory_xact_lock_shared({sign})");
        let at_once = match settles {
            true => String::new(),
            false => format!("when {no_sign} then true "),
        };
        let give_back = match scope {
            LockScope::Session => {
                let suffix = if self.shared { "_shared" } else { "" };
                let unlock = format!("pg_catalog.pg_advisory_unlock{suffix}");
                format!("{} is null", self.call(dialect, &unlock, slot)?)
            }
            LockScope::Transaction => "false".to_owned(),
        };
        Ok(format!(
            "case {at_once}when pg_catalog.pg_sleep({SETTLE})::text is null then false when {no_sign} then true else {give_back} end"
        ))
    }

    /// The branch for any of several slots.
    fn try_slots(
        &self,
        dialect: &dyn Dialect,
        scope: LockScope,
        waits: bool,
        settles: bool,
    ) -> Result<String, Error> {
        let nobody_queues = if waits && scope == LockScope::Session {
            // Given back with the end of this query's own transaction.
            let queue = self.companion(dialect, CompanionKey::Queue)?;
            format!("pg_catalog.pg_try_advisory_xact_lock({queue})")
        } else {
            "true".to_owned()
        };
        let slots = self.slots;
        let call = self.call(dialect, &self.function("try_advisory", scope), "slot")?;
        let settled = self.settled(dialect, scope, "slot", settles)?;
        let slot = format!(
            "(select slot from pg_catalog.generate_series(1, {slots}) slot where {nobody_queues} and {call} limit 1) s \
             where {settled}"
        );
        let held = self.held(dialect, "slot", scope)?;
        Ok(format!(
            "else coalesce((select {held} from {slot}), 'busy')"
        ))
    }

    /// Looks for a free place in the queue. Who has not looked before, and so comes `from` nowhere, looks at each, and is seen to wait
    /// from now on; who has, at this one, and at each that is a multiple of [`PLACES_PER_TRY`] further on.
    ///
    /// # Errors
    /// As [`try_query`](Self::try_query).
    pub fn look_query(
        &self,
        dialect: &dyn Dialect,
        from: Option<u32>,
    ) -> Result<Query<Verdict>, Error> {
        let places = match from {
            None => {
                let waiter = self.companion(dialect, CompanionKey::waiter(self.shared))?;
                let place = self.place_sql(dialect, "place")?;
                format!(
                    "when not pg_catalog.pg_try_advisory_lock_shared({waiter}) then '' \
                     else coalesce((select pg_catalog.concat('place ', place) from pg_catalog.generate_series(0, {}) place \
                     where pg_catalog.pg_try_advisory_lock({place}) limit 1), 'busy')",
                    PLACES - 1
                )
            }
            // A series of them would take the server's process more time.
            Some(from) => {
                let tries = (from..PLACES).step_by(PLACES_PER_TRY as usize);
                let tries = tries.map(|place| {
                    let key = self.companion(dialect, CompanionKey::Place(place))?;
                    Ok(format!(
                        "when pg_catalog.pg_try_advisory_lock({key}) then 'place {place}' "
                    ))
                });
                tries.collect::<Result<String, Error>>()? + "else 'busy'"
            }
        };
        let mut statements = Statements::new();
        let word = statements.add(format!(
            "select {}{places} end",
            verdict::guards(
                dialect,
                LockScope::Session,
                RestartCheck::None,
                self.settings
            ),
        ));
        Ok(statements.query(move |answer| verdict::read_look(answer.field(word, 0))))
    }

    /// Waits for the lock in the session's own right, for at most this many milliseconds, at least 1 and at
    /// most [`TURN`], in this place of the queue, which the session has. `first` tells whether it has had a turn after which it was
    /// [first](Verdict::QueueHead).
    ///
    /// That the time is over without the lock is not an error to the server, and not a line in its log: the blocks catch it. The
    /// word on the turn is noted as it goes. What is done once the lock has come stands in the statement that waits for it, and so
    /// is planned before. The place is given up with the wait.
    ///
    /// A lock that came with a sign counts when the sign is withdrawn, and is given back if it is not: nobody else can go by it
    /// then who gets the lock because this session is ended. Until it counts it is bound to the block, which gives it back when
    /// the time is over.
    ///
    /// # Errors
    /// As [`try_query`](Self::try_query).
    pub fn wait_query(
        &self,
        dialect: &dyn Dialect,
        milliseconds: u32,
        first: bool,
        place: u32,
    ) -> Result<Query<Verdict>, Error> {
        let turn = milliseconds.clamp(1, TURN);
        let take = self.take(dialect, place)?;
        let (enter, wait) = if self.slots == 1 {
            self.wait_lock(dialect, turn, first, &take)?
        } else {
            self.wait_slots(dialect, turn, first, &take)?
        };
        let (declare, late) = match self.slots {
            1 => ("", String::new()),
            // It was the sign that was not withdrawn, and somebody else is the first in the queue by now.
            _ => (
                "declare slot int; pause int := 1; ",
                format!("perform {}; ", note("'busy'")),
            ),
        };
        let begun = if enter.is_empty() { "first" } else { "busy" };
        // The session has looked for its place, so all else is known of it, and set.
        let pid = dialect.backend_pid();
        let pooled = note("'pooled'");
        let block = dialect.quote(&format!(
            "{declare}begin if pg_catalog.int4ne(pg_catalog.pg_backend_pid(), {pid}) then perform {pooled}; return; end if; \
             {enter}begin {wait}exception when lock_not_available then {late}return; end; end"
        ))?;
        let mut statements = Statements::new();
        statements.add(format!("set local lock_timeout to {turn}"));
        statements.add(format!("set local pglock.word to '{begun}'"));
        statements.add("set local pglock.place to ''");
        statements.add(format!("do {block}"));
        let place = TurnPlace::ask(&mut statements);
        let request = self.clone();
        Ok(statements.query(move |answer| place.read(answer, |key| request.comes_to(key))))
    }

    /// The expressions that make sure of a lock that has just come, and then keep it, note it, give up the place in the queue, and
    /// note that.
    fn take(&self, dialect: &dyn Dialect, place: u32) -> Result<String, Error> {
        let slot = if self.slots == 1 { "1" } else { "slot" };
        let sign = self.release_sql(dialect, slot, !self.shared)?;
        let withdrawn = self.release_sql(dialect, slot, true)?;
        let wait = self.function("advisory", LockScope::Transaction);
        let keep = self.call(
            dialect,
            &self.function("try_advisory", LockScope::Session),
            slot,
        )?;
        let held = note(&self.held(dialect, slot, LockScope::Session)?);
        let place = self.companion(dialect, CompanionKey::Place(place))?;
        let waiter = self.companion(dialect, CompanionKey::waiter(self.shared))?;
        Ok(format!(
            "case when pg_catalog.pg_try_advisory_xact_lock_shared({sign}) then pg_catalog.pg_sleep({SETTLE}) \
             else {wait}({withdrawn}) end, {keep}, {held}, \
             pg_catalog.set_config('pglock.place', pg_catalog.concat(pg_catalog.pg_advisory_unlock({place}), \
             pg_catalog.pg_advisory_unlock_shared({waiter})), true)"
        ))
    }

    /// The statements that a turn begins with, none where it goes on as the last one ended, and the one that waits, for the only
    /// slot that there is, and then does what is to be done to `take` it. One who wants the exclusive lock takes the writer-intent
    /// key and keeps it from turn to turn, one who would share waits until it is free.
    fn wait_lock(
        &self,
        dialect: &dyn Dialect,
        turn: u32,
        first: bool,
        take: &str,
    ) -> Result<(String, String), Error> {
        let intent = self.companion(dialect, CompanionKey::WriterIntent)?;
        let suffix = if self.shared { "" } else { "_shared" };
        let leave = format!("pg_catalog.pg_advisory_unlock{suffix}({intent})");
        let wait_for_intent = |at_once: &str, then: &str| {
            format!(
                "if not ({at_once}) then \
                 begin perform pg_catalog.pg_advisory_lock{suffix}({intent}){then}; \
                 exception when lock_not_available then return; end; \
                 perform pg_catalog.set_config('lock_timeout', greatest(1, '{turn}' - extract(epoch \
                 from pg_catalog.clock_timestamp() - pg_catalog.now()) * '1000')::int::text, true); \
                 end if; "
            )
        };
        let at_once = format!("pg_catalog.pg_try_advisory_lock{suffix}({intent})");
        let wait = self.call(
            dialect,
            &self.function("advisory", LockScope::Transaction),
            "1",
        )?;
        Ok(match self.shared {
            true => (
                wait_for_intent(&format!("{at_once} and {leave}"), &format!(", {leave}")),
                format!("perform {wait}, {take}; "),
            ),
            false => {
                let enter = match first {
                    true => String::new(),
                    false => {
                        let begun = note("'first'");
                        wait_for_intent(&at_once, "") + &format!("perform {begun}; ")
                    }
                };
                (enter, format!("perform {wait}, {take}, {leave}; "))
            }
        })
    }

    /// The same for any of several slots. Who is first in the queue looks often at first, for slots may come free one after the
    /// other, and then less often; once it has one the next looks, while this one makes sure. `pg_sleep` sleeps whole milliseconds
    /// until the time is over, so two where it is asked for one.
    fn wait_slots(
        &self,
        dialect: &dyn Dialect,
        turn: u32,
        first: bool,
        take: &str,
    ) -> Result<(String, String), Error> {
        let queue = self.companion(dialect, CompanionKey::Queue)?;
        let enter = if first {
            String::new()
        } else {
            format!(
                "begin perform pg_catalog.pg_advisory_lock({queue}); exception when lock_not_available then return; end; \
                 perform {}; ",
                note("'first'")
            )
        };
        let try_lock = self.function("try_advisory", LockScope::Transaction);
        let wait = format!(
            "<<search>> loop \
             for place in 1..{slots} loop \
             slot := place; \
             exit search when {call}; \
             end loop; \
             if pg_catalog.clock_timestamp() > pg_catalog.now() + interval '{turn} ms' then return; end if; \
             perform pg_catalog.pg_sleep(pause * 0.001 - 0.0005); \
             pause := least(pause + 1, {SLOT_PAUSE}); \
             end loop; \
             perform pg_catalog.pg_advisory_unlock({queue}), {take}; ",
            slots = self.slots,
            call = self.call(dialect, &try_lock, "slot")?,
        );
        Ok((enter, wait))
    }

    /// Takes a fencing token, in a transaction of its own: the transaction's number is larger than that of
    /// any earlier holder, for it is assigned while the lock is held. It counts when it is on disk, and where replication is
    /// synchronous on that of the standby, so that it goes on from there.
    pub fn token_query() -> Query<u64> {
        let mut statements = Statements::new();
        let token = statements.add(format!("select pg_catalog.concat({TOKEN}, {CONFIRMED})"));
        statements.query(move |answer| {
            let token = answer.field(token, 0);
            token
                .and_then(|token| token.parse().ok())
                .ok_or("the server gave no fencing token")
        })
    }

    /// Asks for a sign of the server that counts.
    pub fn renew_query(&self) -> Query<()> {
        match self.sync {
            true => Query::confirmed_sign_of_life(),
            false => Query::sign_of_life(),
        }
    }

    /// Asks which standbys the server waits for, in its own words; empty where it waits for none.
    pub fn standbys_query() -> Query<String> {
        let mut statements = Statements::new();
        let names =
            statements.add("select pg_catalog.current_setting('synchronous_standby_names')");
        statements.query(move |answer| {
            let names = answer.field(names, 0);
            names
                .map(str::to_owned)
                .ok_or("the server does not say which standbys it waits for")
        })
    }

    /// The condition that somebody waits for the exclusive lock, and so holds the writer-intent key.
    pub(super) fn writer_waits_sql(&self, dialect: &dyn Dialect) -> Result<String, Error> {
        Ok(format!(
            "exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' and granted \
             and mode = 'ShareLock' and {} and {OWN_DATABASE})",
            self.is_companion(dialect, CompanionKey::WriterIntent)?
        ))
    }

    /// The condition that somebody holds the lock in a way that keeps this one from it. With slots that is not known.
    pub fn is_held_sql(&self, dialect: &dyn Dialect) -> Result<String, Error> {
        if self.slots > 1 {
            return Ok("false".to_owned());
        }
        let mode = if self.shared {
            "and mode = 'ExclusiveLock'"
        } else {
            ""
        };
        Ok(format!(
            "exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' and granted {mode} \
             and {} and {OWN_DATABASE})",
            self.condition(dialect)?
        ))
    }

    /// `pg_try_advisory_xact_lock_shared`, say.
    pub(super) fn function(&self, verb: &str, scope: LockScope) -> String {
        let transaction = match scope {
            LockScope::Session => "",
            LockScope::Transaction => "_xact",
        };
        let shared = if self.shared { "_shared" } else { "" };
        format!("pg_catalog.pg_{verb}{transaction}_lock{shared}")
    }

    /// The word for a lock that is held in this slot, its key and the token. In a transaction that is to stay
    /// open the token would hold back vacuum: there it needs another, see [`token_query`](Self::token_query).
    fn held(&self, dialect: &dyn Dialect, slot: &str, scope: LockScope) -> Result<String, Error> {
        let key = self.key_sql(dialect, slot)?;
        Ok(match &self.name {
            _ if self.fence && scope == LockScope::Session => {
                format!("pg_catalog.concat('held ', {key}, ' ', {TOKEN}, {CONFIRMED})")
            }
            _ if self.sync => format!("pg_catalog.concat('held ', {key}, {CONFIRMED})"),
            Name::Key(key) if self.slots == 1 => format!("'held {key}'"),
            _ => format!("pg_catalog.concat('held ', {key})"),
        })
    }
}
