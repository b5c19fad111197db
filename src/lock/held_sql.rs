//! What is said to the server by one who holds a lock, or did: to take it again, to look, to give it up.

use std::time::Duration;

use super::keys::{Key, OWN_DATABASE};
use super::query::{CONFIRMED, Query, Statements};
use super::request_sql::{SETTLE, SLOT_PAUSE};
use super::restart::{History, Past, PastPlace, RestartCheck, history_query, past_query};
use super::verdict::{self, Verdict, VerdictPlace};
use crate::pq::Error;
use crate::server::dialect::Dialect;
use crate::server::session_settings::{LockScope, SessionSettings};

/// A lock that is held, or was.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    pub(super) key: Key,
    pub(super) shared: bool,
    pub(super) scope: LockScope,
    pub(super) settings: SessionSettings,
    pub(super) sync: bool,
    /// The key that tells others how many slots there are.
    pub(super) count: Option<Key>,
}

/// What the server says to an attempt to take a lock again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retaken {
    /// What it says of its past.
    pub past: Past,
    /// How the attempt went.
    pub verdict: Verdict,
}

/// How long at most the server waits for the sign to be seen by which a lock is given up for which somebody waits, in
/// milliseconds.
const LINGER: u32 = 10;
/// How often it is looked at once whether the sign is seen. Who waits may be about to wake up on the very processor that this
/// keeps busy.
const AT_ONCE: u32 = 100;

/// What has become of a lock that was to be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// It was not held.
    NotHeld,
    /// It is free, or somebody else's, and no sign is left.
    Seen,
    /// It is free, and who waits for it is still to see the sign.
    Unseen,
}

/// The condition that somebody waits for this sign to be withdrawn.
fn is_seen(sign: Key) -> String {
    format!(
        "not (pg_catalog.pg_try_advisory_lock_shared({sign}) and pg_catalog.pg_advisory_unlock_shared({sign}))"
    )
}

/// Withdraws it, and is true.
fn withdraw(sign: Key) -> String {
    format!("pg_catalog.pg_advisory_unlock({sign})")
}

impl Lock {
    /// What it is bound to.
    pub fn scope(self) -> LockScope {
        self.scope
    }

    /// Takes note of an error for an answer, if it is about something that can be done without.
    pub fn do_without(&mut self, error: &Error) {
        self.settings.refuse(error);
    }

    /// Whether what is said about it counts only when replication has confirmed it.
    pub fn is_confirmed(self) -> bool {
        self.sync
    }

    /// Asks for a sign of the server that counts.
    pub fn sign_query(self) -> Query<()> {
        match self.sync {
            true => Query::confirmed_sign_of_life(),
            false => Query::sign_of_life(),
        }
    }

    /// Asks where the server stands, of a lock that is bound to the session; it counts as a sign.
    pub fn history_query(self) -> Query<Option<History>> {
        history_query(self.sync)
    }

    /// Asks about the server's past.
    pub fn past_query(self, dialect: &dyn Dialect) -> Query<Past> {
        past_query(dialect, self.settings)
    }

    /// Tries to take the lock again on a new connection, and asks about the server's past.
    pub fn retake_query(self, dialect: &dyn Dialect) -> Query<Retaken> {
        self.retake(dialect, Statements::new())
    }

    /// Ends a backend, and waits until it is gone, for a second at most; then tries to take the lock as
    /// [`retake_query`](Self::retake_query) does.
    pub fn evict_query(self, dialect: &dyn Dialect, backend: i32) -> Query<Retaken> {
        let limit = match dialect.server_version() {
            ..140_000 => "",
            140_000.. => ", 1000",
        };
        let mut statements = Statements::new();
        statements.add(format!(
            "select pg_catalog.pg_terminate_backend({backend}{limit})"
        ));
        self.retake(dialect, statements)
    }

    fn retake(self, dialect: &dyn Dialect, mut statements: Statements) -> Query<Retaken> {
        let transaction = match self.scope {
            LockScope::Session => "",
            LockScope::Transaction => "_xact",
        };
        let taken = format!(
            "pg_catalog.pg_try_advisory{transaction}_lock{}({})",
            self.suffix(),
            self.key
        );
        // As a newcomer does: another may have it by the sign. Who does not get it closes the session.
        let no_sign = format!(
            "pg_catalog.pg_try_advisory_xact_lock_shared({})",
            self.key.release(true)
        );
        let taken = format!(
            "{taken} and case when {no_sign} then true when pg_catalog.pg_sleep({SETTLE})::text is null then false else {no_sign} end"
        );
        let taken = match self.count {
            Some(count) => format!(
                "{taken} and pg_catalog.pg_try_advisory{transaction}_lock_shared({count}) is not null"
            ),
            None => taken,
        };
        verdict::begin(&mut statements, self.scope);
        statements.add(self.settings.sql(dialect, self.scope, 0));
        let past = PastPlace::ask(&mut statements, dialect, self.settings);
        let verdict = VerdictPlace::ask(&mut statements, self.verdict_sql(dialect, &taken));
        statements.query(move |answer| {
            Ok(Retaken {
                past: past.read(answer)?,
                verdict: verdict.read(answer, self.shared, |key| key == self.key)?,
            })
        })
    }

    /// Puts the lease in force again, and asks whether the lock is still held.
    pub fn check_query(self, dialect: &dyn Dialect) -> Query<Verdict> {
        let mut statements = Statements::new();
        statements.add(self.settings.sql(dialect, self.scope, 0));
        let verdict = VerdictPlace::ask(&mut statements, self.verdict_sql(dialect, "true"));
        statements.query(move |answer| verdict.read(answer, self.shared, |key| key == self.key))
    }

    /// Takes the lease out of force: the session lasts however long it is silent.
    pub fn lift_query(self, dialect: &dyn Dialect) -> Query<()> {
        let settings = self.settings.without_lease();
        let mut statements = Statements::new();
        statements.add(settings.sql(dialect, self.scope, 0));
        statements.query(|_| Ok(()))
    }

    /// Renames the session for people who look at the server; it counts as a sign. By a statement that needs no snapshot: one
    /// may have to be waited for, where a role's transactions are deferrable by default.
    ///
    /// # Errors
    /// The name cannot be said to the server.
    pub fn rename_query(self, dialect: &dyn Dialect, name: &str) -> Result<Query<()>, Error> {
        let level = match self.scope {
            LockScope::Session => "session",
            LockScope::Transaction => "local",
        };
        let name = dialect.quote(name)?;
        let mut statements = Statements::new();
        statements.add(format!("set {level} application_name to {name}"));
        if self.sync {
            statements.read_committed();
            statements.confirm();
        }
        Ok(statements.query(|_| Ok(())))
    }

    /// Asks for the age of a backend, if it holds this lock.
    pub fn holder_query(self, backend: i32) -> Query<Option<Duration>> {
        let mut statements = Statements::new();
        let age = statements.add(format!(
            "select extract(epoch from pg_catalog.clock_timestamp() - backend_start) \
             from pg_catalog.pg_stat_get_activity({backend}) \
             where exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' and granted \
             and pid = {backend} and {} and {OWN_DATABASE})",
            self.key.condition()
        ));
        statements.query(move |answer| Ok(answer.seconds(age, 0)))
    }

    /// Gives the lock up, by a [sign](Key::release) that whoever gets it next goes by: a key that is held from before the lock is
    /// free until the sign is seen, or [`LINGER`] is over. The next one counts on the lock only when the sign is withdrawn, so
    /// that it is good for one.
    ///
    /// Who shares the lock gives it up by a sign only if nobody else has it: another's session may end while the sign is there.
    /// Who comes to share it meanwhile sees the sign.
    ///
    /// The sign is looked at once, by when whoever waits has as a rule seen it. Where somebody waits who has not the sign is
    /// there still, to be [looked at again](Self::look_query), and then [lingered with](Self::linger_query). What comes after the unlock may fail: the lock was given up all the same.
    pub fn release_query(self) -> Query<GivenUp> {
        let key = self.key;
        let mut statements = Statements::new();
        if self.scope == LockScope::Transaction {
            let commit = statements.add("commit");
            return statements.query_in_part(move |answer| match answer.is_done(commit) {
                true => GivenUp::Seen,
                false => GivenUp::NotHeld,
            });
        }
        let sign = key.release(true);
        let signed = match self.shared {
            true => format!(
                "pg_catalog.set_config('pglock.sign', case when not pg_catalog.pg_try_advisory_lock({sign}) then '' \
                 when exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' and granted \
                 and pg_catalog.int4ne(pid, pg_catalog.pg_backend_pid()) and {}) \
                 then pg_catalog.left(pg_catalog.pg_advisory_unlock({sign})::text, 0) else 'yes' end, true)",
                key.condition()
            ),
            false => format!(
                "pg_catalog.pg_try_advisory_lock({sign}), pg_catalog.pg_try_advisory_lock({})",
                key.release(false)
            ),
        };
        let unlocked = statements.add(format!(
            "select {signed}, pg_catalog.pg_advisory_unlock{}({key})",
            self.suffix()
        ));
        let looked = statements.add(format!("select {}", self.look_sql(sign)));
        if let Some(count) = self.count {
            statements.add(format!(
                "select pg_catalog.pg_advisory_unlock_shared({count})"
            ));
        }
        statements.query_in_part(move |answer| {
            let column = if self.shared { 1 } else { 2 };
            match (answer.field(unlocked, column), answer.field(looked, 0)) {
                (Some("t"), Some("t")) => GivenUp::Unseen,
                (Some("t"), _) => GivenUp::Seen,
                _ => GivenUp::NotHeld,
            }
        })
    }

    /// The expression that looks at the sign, tells whether it is still to be seen, and else withdraws it. It is seen by who then
    /// waits for it to be withdrawn, against whom another try at it does not come through. Those who share the lock only look
    /// whether it is withdrawn, and have a sign of their own.
    fn look_sql(self, sign: Key) -> String {
        let key = self.key;
        let withdraw = withdraw(sign);
        let seen = format!("when {} then {withdraw} is null", is_seen(sign));
        let is_free = format!(
            "when pg_catalog.pg_try_advisory_lock({key}) then (pg_catalog.pg_advisory_unlock({key}) and {withdraw}) is null"
        );
        match (self.shared, self.count) {
            (true, _) => format!(
                "case when pg_catalog.current_setting('pglock.sign') = '' then false {seen} {is_free} else true end"
            ),
            (false, None) => format!(
                "case {seen} {is_free} when pg_catalog.pg_try_advisory_lock_shared({key}) \
                 then (pg_catalog.pg_advisory_unlock_shared({key}) and {withdraw} and pg_catalog.pg_sleep({}) is null) is null \
                 else true end",
                f64::from(LINGER) / 1000.0
            ),
            // The first of those who wait looks for a slot now and then.
            (false, Some(_)) => format!(
                "case {seen} when exists (select from pg_catalog.pg_lock_status() where locktype = 'advisory' and granted \
                 and {}) then true else {withdraw} is null end",
                key.queue_condition()
            ),
        }
    }

    /// Looks once more at the sign by which the lock was given up; whether it is still to be seen. Whoever was to see it has had the
    /// time in which the client was told.
    pub fn look_query(self) -> Query<bool> {
        let sign = self.key.release(true);
        let mut statements = Statements::new();
        let looked = statements.add(format!(
            "select case when {} then {} is null else true end",
            is_seen(sign),
            withdraw(sign)
        ));
        statements.query(move |answer| Ok(answer.field(looked, 0) == Some("t")))
    }

    /// Waits until that sign is seen, and withdraws it. Looks some times at once, and then each millisecond: `pg_sleep` makes one of
    /// what is less, and two of one.
    pub fn linger_query(self) -> Query<()> {
        let sign = self.key.release(true);
        let milliseconds = match self.count {
            Some(_) => LINGER + SLOT_PAUSE,
            None => LINGER,
        };
        let mut statements = Statements::new();
        statements.add(format!(
            "select exists (select from pg_catalog.generate_series(1, {AT_ONCE} + {milliseconds}) look where case when {} then true \
             when look > {AT_ONCE} then pg_catalog.pg_sleep(0.0001) is null else false end) is not null and {}",
            is_seen(sign),
            withdraw(sign)
        ));
        statements.query(|_| Ok(()))
    }

    fn suffix(self) -> &'static str {
        if self.shared { "_shared" } else { "" }
    }

    fn verdict_sql(self, dialect: &dyn Dialect, taken: &str) -> String {
        let held = format!("'held {}'", self.key);
        let held = match self.sync {
            true => format!("pg_catalog.concat({held}, {CONFIRMED})"),
            false => held,
        };
        format!(
            "select {}when {taken} then {held} else 'busy' end",
            verdict::guards(dialect, self.scope, RestartCheck::None, self.settings),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Unanswered, golden::Made};
    use crate::pq::Outcome;

    fn lock(key: Key, shared: bool, scope: LockScope) -> Lock {
        Lock {
            key,
            shared,
            scope,
            settings: SessionSettings::new(None),
            sync: false,
            count: None,
        }
    }

    fn rows(rows: Vec<Vec<Option<String>>>) -> Outcome {
        Outcome::Done { rows }
    }

    fn said(text: &str) -> Outcome {
        rows(vec![vec![Some(text.to_owned())]])
    }

    fn none() -> Outcome {
        rows(vec![])
    }

    fn refusal() -> Outcome {
        Outcome::Failed(Error::new("no"))
    }

    #[test]
    fn who_takes_a_lock_again_knows_which_it_was() {
        let made = Made { version: 15 };
        let keys = [Key::One(1), Key::Two(1, 2), Key::Two(1, 3), Key::One(-7)];
        for key in keys {
            let lock = lock(key, false, LockScope::Session);
            for other in keys {
                let proof = [&other.row()[..], &[Some("ExclusiveLock".to_owned())]].concat();
                let held = [said(&format!("held {other}")), rows(vec![proof])];
                let retaken = [&[none(), none(), said("2.5")], &held[..]].concat();
                let evicted = [&[none()], &retaken[..]].concat();
                let checked = [&[none(), none()], &held[..]].concat();
                let verdict = if key == other {
                    Ok(Verdict::Held(key, None))
                } else {
                    Err(Unanswered::Senseless(
                        "the server granted another lock than the one that it was asked for",
                    ))
                };
                let past = Past {
                    lost: Duration::from_millis(2500),
                    promoted: None,
                    history: None,
                };
                let expected = verdict.clone().map(|verdict| Retaken { past, verdict });
                assert_eq!(lock.retake_query(&made).read(&retaken), expected);
                assert_eq!(lock.evict_query(&made, 7).read(&evicted), expected);
                assert_eq!(lock.check_query(&made).read(&checked), verdict);
            }
        }
    }

    #[test]
    fn a_lock_is_given_up_also_when_what_comes_then_is_refused() {
        let read = |shared, scope, outcomes: &[Outcome]| {
            let query = lock(Key::Two(1, 2), shared, scope).release_query();
            query.read(outcomes).unwrap()
        };
        for shared in [false, true] {
            let session = |unlocked: &str, looked: Outcome| {
                let signs = if shared { 1 } else { 2 };
                let mut fields = vec![Some("t".to_owned()); signs];
                fields.push(Some(unlocked.to_owned()));
                read(
                    shared,
                    LockScope::Session,
                    &[none(), rows(vec![fields]), looked],
                )
            };
            assert_eq!(session("t", said("f")), GivenUp::Seen);
            assert_eq!(session("t", said("t")), GivenUp::Unseen);
            assert_eq!(session("t", refusal()), GivenUp::Seen);
            assert_eq!(session("f", said("t")), GivenUp::NotHeld);
            let session = |outcomes: &[Outcome]| read(shared, LockScope::Session, outcomes);
            assert_eq!(session(&[none(), refusal()]), GivenUp::NotHeld);
            assert_eq!(session(&[refusal()]), GivenUp::NotHeld);
        }
        let bound = |outcomes: &[Outcome]| read(false, LockScope::Transaction, outcomes);
        assert_eq!(bound(&[none(), none()]), GivenUp::Seen);
        assert_eq!(bound(&[none(), refusal()]), GivenUp::NotHeld);
        assert_eq!(bound(&[none()]), GivenUp::NotHeld);
    }

    #[test]
    fn the_age_of_a_backend_that_is_gone_is_not_known() {
        let query = lock(Key::One(1), false, LockScope::Session).holder_query(7);
        let age = query.read(&[none(), said("3")]);
        assert_eq!(age, Ok(Some(Duration::from_secs(3))));
        assert_eq!(query.read(&[none(), none()]), Ok(None));
    }
}
