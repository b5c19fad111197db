//! What is said to the server by one who holds a lock, or did: to take it again, to look, to give it up.

use std::time::Duration;

use super::keys::{Key, OWN_DATABASE};
use super::query::{CONFIRMED, Query, Statements};
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

/// What the server says to one who gives a lock up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Whether the lock was held until then.
    pub was_held: bool,
    /// Whether somebody has waited for it.
    pub is_waited_for: bool,
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

    /// Gives the lock up, and says so beforehand to those who wait, by [keys](Key::release) that go with the session. Asks then
    /// whether somebody has waited for it, and has it now: an exclusive lock could otherwise be taken once more; of a shared
    /// one only the lock table can tell. What comes after the unlock may fail: it was given up all the same.
    pub fn release_query(self) -> Query<Released> {
        let key = self.key;
        let mut statements = Statements::new();
        if self.scope == LockScope::Transaction {
            let commit = statements.add("commit");
            return statements.query_in_part(move |answer| Released {
                was_held: answer.is_done(commit),
                is_waited_for: false,
            });
        }
        let told = format!(
            "select pg_catalog.pg_try_advisory_lock_shared({})",
            key.release(true)
        );
        statements.add(match self.shared {
            true => told,
            false => format!(
                "{told}, pg_catalog.pg_try_advisory_lock({})",
                key.release(false)
            ),
        });
        let unlock = format!("pg_catalog.pg_advisory_unlock{}({key})", self.suffix());
        let unlocked = statements.add(format!("select {unlock}"));
        if let Some(count) = self.count {
            statements.add(format!(
                "select pg_catalog.pg_advisory_unlock_shared({count})"
            ));
        }
        let others = statements.add(if self.shared {
            format!(
                "select locktype, classid, objid, objsubid \
                 from pg_catalog.pg_lock_status() where locktype = 'advisory' and mode = 'ExclusiveLock' and {}",
                key.condition()
            )
        } else {
            format!("select case when pg_catalog.pg_try_advisory_lock({key}) then {unlock} else false end")
        });
        statements.query_in_part(move |answer| Released {
            was_held: answer.field(unlocked, 0) == Some("t"),
            is_waited_for: if self.shared {
                answer.rows(others).contains(&key.row().to_vec())
            } else {
                answer.field(others, 0) == Some("f")
            },
        })
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
    fn a_lock_is_given_up_also_when_what_is_asked_then_is_refused() {
        let key = Key::Two(1, 2);
        let read = |shared, scope, outcomes: &[Outcome]| {
            let query = lock(key, shared, scope).release_query();
            let released = query.read(outcomes).unwrap();
            (released.was_held, released.is_waited_for)
        };
        let one = |outcomes: &[Outcome]| read(false, LockScope::Session, outcomes);
        let set = said("t");
        let begin = [none(), set.clone()];
        let of = |rest: &[Outcome]| [&begin[..], rest].concat();
        assert_eq!(one(&of(&[said("t"), said("t")])), (true, false));
        assert_eq!(one(&of(&[said("t"), said("f")])), (true, true));
        assert_eq!(one(&of(&[said("f"), said("t")])), (false, false));
        assert_eq!(one(&of(&[said("t"), refusal()])), (true, false));
        assert_eq!(one(&of(&[refusal()])), (false, false));
        assert_eq!(one(&[refusal()]), (false, false));
        let shared = |outcomes: &[Outcome]| read(true, LockScope::Session, outcomes);
        let waited = rows(vec![key.row().to_vec()]);
        assert_eq!(shared(&of(&[said("t"), waited])), (true, true));
        assert_eq!(shared(&of(&[said("t"), none()])), (true, false));
        let bound = |outcomes: &[Outcome]| read(false, LockScope::Transaction, outcomes);
        assert_eq!(bound(&[none(), none()]), (true, false));
        assert_eq!(bound(&[none(), refusal()]), (false, false));
        assert_eq!(bound(&[none()]), (false, false));
    }

    #[test]
    fn the_age_of_a_backend_that_is_gone_is_not_known() {
        let query = lock(Key::One(1), false, LockScope::Session).holder_query(7);
        let age = query.read(&[none(), said("3")]);
        assert_eq!(age, Ok(Some(Duration::from_secs(3))));
        assert_eq!(query.read(&[none(), none()]), Ok(None));
    }
}
