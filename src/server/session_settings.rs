//! What is set on the session that takes a lock: the lease, and off with the timeouts that a role or a
//! database may have set for itself, and that would end the wait or the holder's session.

use std::time::Duration;

use crate::pq::Error;
use crate::server::dialect::Dialect;

/// The first version with `idle_session_timeout`.
const IDLE_TIMEOUT_SINCE: i32 = 140_000;

/// All that may be set, but for `lock_timeout`, without which there are no turns to wait in.
const NAMES: [&str; 8] = [
    "statement_timeout",
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "tcp_user_timeout",
    "transaction_timeout",
];

/// What a server is asked about its own past, and need not tell every role, or any: a role may not be let, and some managed
/// servers that are not made of PostgreSQL's own storage say that they do not support it.
const PAST: [&str; 5] = [
    "pg_last_wal_replay_lsn",
    "pg_control_system",
    "pg_control_checkpoint",
    "pg_walfile_name",
    "pg_current_wal_lsn",
];

/// What a server refuses that can be done without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispensable {
    /// A setting.
    Setting,
    /// To tell when it was promoted.
    Promotion,
}

/// What a lock is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockScope {
    /// The session.
    Session,
    /// An open transaction: behind a pooler, which may lend the session to others between two.
    Transaction,
}

/// How a session is set up to hold a lock.
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// How long the server keeps the lock without a sign of the holder; `None` for as long as the session
    /// lasts.
    pub ttl: Option<Duration>,
    /// What this server does not let us set, one bit for each of [`NAMES`].
    refused: u8,
    /// Whether it does not tell us when it was promoted.
    hides_promotion: bool,
}

impl SessionSettings {
    /// With this lease, if any.
    pub fn new(ttl: Option<Duration>) -> Self {
        Self {
            ttl,
            refused: 0,
            hides_promotion: false,
        }
    }

    /// Whether the server tells when it was promoted, as far as is known. Before version 10 it has other words for it.
    pub fn tells_promotion(self, dialect: &dyn Dialect) -> bool {
        !self.hides_promotion && dialect.server_version() >= 100_000
    }

    /// The same without a lease.
    pub fn without_lease(self) -> Self {
        Self { ttl: None, ..self }
    }

    /// Whether the server itself ends a session that is silent for a ttl.
    pub fn has_lease(self, dialect: &dyn Dialect, scope: LockScope) -> bool {
        let name = match scope {
            LockScope::Session => "idle_session_timeout",
            LockScope::Transaction => "idle_in_transaction_session_timeout",
        };
        let values = self.values(dialect.server_version(), scope);
        self.ttl.is_some() && values.iter().any(|(other, _)| *other == name)
    }

    /// Takes note that a server does not let us set something, as some managed ones do not, or does not tell us something,
    /// and says what it is if it can be done without.
    pub fn refuse(&mut self, error: &Error) -> Option<Dispensable> {
        let state = error.sqlstate.as_deref();
        // Servers speak many languages, each with quotes of its own; the name is the same in all.
        let is_between = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let words: Vec<&str> = error.message.split(is_between).collect();
        // insufficient_privilege, cant_change_runtime_param, undefined_object, invalid_parameter_value.
        let is_refusal = matches!(state, Some("42501" | "55P02" | "42704" | "22023"));
        let bit = NAMES.iter().position(|name| words.contains(name));
        if let Some(bit) = bit.filter(|bit| is_refusal && self.refused & (1 << bit) == 0) {
            self.refused |= 1 << bit;
            return Some(Dispensable::Setting);
        }
        // insufficient_privilege, undefined_function, feature_not_supported; object_not_in_prerequisite_state is what Aurora
        // says of some of them, by way of the setting that would let it.
        let is_hidden = match state {
            Some("42501" | "42883" | "0A000") => PAST.iter().any(|name| words.contains(name)),
            Some("55000") => words.contains(&"wal_level"),
            _ => false,
        };
        if is_hidden && !self.hides_promotion {
            self.hides_promotion = true;
            return Some(Dispensable::Promotion);
        }
        None
    }

    /// The statement that makes the settings: for the session, unless a pooler would lend it to others, or
    /// for the transaction. A statement that waits for a lock gives up after `lock_timeout` milliseconds, 0
    /// being without limit.
    pub fn sql(self, dialect: &dyn Dialect, scope: LockScope, lock_timeout: u32) -> String {
        let made = self.condition(dialect, scope, lock_timeout);
        match scope {
            LockScope::Session => {
                let pid = dialect.backend_pid();
                format!("select case when pg_catalog.pg_backend_pid() = {pid} then {made} end")
            }
            LockScope::Transaction => format!("select {made}"),
        }
    }

    /// A condition that is never true, but makes the settings when it is looked at.
    pub fn condition(self, dialect: &dyn Dialect, scope: LockScope, lock_timeout: u32) -> String {
        let local = scope == LockScope::Transaction;
        let calls: Vec<String> = self
            .values(dialect.server_version(), scope)
            .into_iter()
            .chain([("lock_timeout", lock_timeout.into())])
            .map(|(name, value)| {
                format!("pg_catalog.set_config('{name}', '{value}', {local}) is null")
            })
            .collect();
        calls.join(" or ")
    }

    /// What to set, with its value.
    fn values(self, server_version: i32, scope: LockScope) -> Vec<(&'static str, u64)> {
        let lease = self.ttl.unwrap_or_default();
        let milliseconds = lease.as_millis() as u64;
        let mut values = vec![("statement_timeout", 0)];
        if scope == LockScope::Transaction {
            values.push(("idle_in_transaction_session_timeout", milliseconds));
        } else if server_version >= IDLE_TIMEOUT_SINCE && !self.is_refused("idle_session_timeout") {
            values.push(("idle_session_timeout", milliseconds));
        } else if self.ttl.is_some() {
            // As good as it gets there: the server notices that the client's host is gone. Not before the
            // lease is over, or it would free the lock too early.
            let idle = lease.as_secs().saturating_sub(2).max(1);
            values.push(("tcp_keepalives_idle", idle));
            values.push(("tcp_keepalives_interval", 1));
            values.push(("tcp_keepalives_count", 2));
            if server_version >= 120_000 {
                values.push(("tcp_user_timeout", milliseconds));
            }
        }
        if server_version >= 170_000 {
            values.push(("transaction_timeout", 0));
        }
        values.retain(|(name, _)| !self.is_refused(name));
        values
    }

    fn is_refused(self, name: &str) -> bool {
        let bit = NAMES.iter().position(|other| *other == name);
        bit.is_some_and(|bit| self.refused & (1 << bit) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server of this version, of which nothing else is asked.
    struct Version(i32);

    impl Dialect for Version {
        fn server_version(&self) -> i32 {
            self.0
        }

        fn backend_pid(&self) -> i32 {
            1
        }

        fn quote(&self, text: &str) -> Result<String, Error> {
            Err(Error::new(text))
        }
    }

    fn names(settings: SessionSettings, version: i32, scope: LockScope) -> Vec<&'static str> {
        let values = settings.values(version, scope);
        values.into_iter().map(|(name, _)| name).collect()
    }

    fn refusal(name: &str) -> Error {
        Error {
            sqlstate: Some("42501".to_owned()),
            message: format!("permission denied to set parameter \"{name}\""),
            reached: true,
            ..Error::default()
        }
    }

    #[test]
    fn all_that_may_be_set_has_a_name() {
        let settings = SessionSettings::new(Some(Duration::from_secs(15)));
        for version in [110_000, 130_000, 150_000, 180_000] {
            for scope in [LockScope::Session, LockScope::Transaction] {
                for name in names(settings, version, scope) {
                    assert!(NAMES.contains(&name), "{name}");
                }
            }
        }
    }

    #[test]
    fn what_is_refused_is_done_without_and_keepalive_takes_the_place_of_the_lease() {
        let mut settings = SessionSettings::new(Some(Duration::from_secs(15)));
        let setting = Some(Dispensable::Setting);
        assert_eq!(settings.refuse(&refusal("statement_timeout")), setting);
        assert_eq!(settings.refuse(&refusal("idle_session_timeout")), setting);
        assert_eq!(
            settings.refuse(&refusal("idle_session_timeout")),
            None,
            "twice"
        );
        assert_eq!(settings.refuse(&refusal("lock_timeout")), None);
        let set = names(settings, 150_000, LockScope::Session);
        assert!(!set.contains(&"statement_timeout") && !set.contains(&"idle_session_timeout"));
        assert!(set.contains(&"tcp_keepalives_idle"));
    }

    #[test]
    fn a_refusal_is_understood_in_any_language() {
        for (sqlstate, message) in [
            ("42501", "keine Berechtigung, um Parameter »%« zu setzen"),
            ("42501", "keine Berechtigung, um Parameter „%“ zu setzen"),
            ("42501", "droit refusé pour initialiser le paramètre « % »"),
            (
                "42501",
                "droit refusé pour initialiser le paramètre «\u{a0}%\u{a0}»",
            ),
            (
                "42501",
                "se ha denegado el permiso para cambiar la opción «%»",
            ),
            ("55P02", "現在パラメータ\"%\"を変更できません"),
            (
                "55P02",
                "el parámetro «%» no se puede cambiar en este momento",
            ),
            ("42704", "paramètre de configuration « % » non reconnu"),
            ("22023", "ungültiger Wert für Parameter »%«: 15000"),
        ] {
            for name in NAMES {
                let refusal = |name: &str| Error {
                    sqlstate: Some(sqlstate.to_owned()),
                    message: message.replace('%', name),
                    reached: true,
                    ..Error::default()
                };
                let mut settings = SessionSettings::new(Some(Duration::from_secs(15)));
                assert_eq!(
                    settings.refuse(&refusal(name)),
                    Some(Dispensable::Setting),
                    "{name}: {message}"
                );
                assert!(settings.is_refused(name));
                // No more than that one, and by no part of its name.
                assert_eq!(settings.refused.count_ones(), 1, "{name}");
                for other in [
                    format!("{name}s"),
                    format!("my_{name}"),
                    format!("{name}_2"),
                ] {
                    assert_eq!(
                        SessionSettings::new(None).refuse(&refusal(&other)),
                        None,
                        "{other}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_server_need_not_tell_when_it_was_promoted() {
        let made = |version: i32| Version(version * 10_000);
        for (sqlstate, message, is_hidden) in [
            (
                "42501",
                "permission denied for function pg_control_system",
                true,
            ),
            (
                "0A000",
                "Function pg_last_wal_replay_lsn() is currently not supported for Aurora",
                true,
            ),
            (
                "42883",
                "function pg_catalog.pg_walfile_name(pg_lsn) does not exist",
                true,
            ),
            ("55000", "wal_level must be set to 'logical'", true),
            ("55000", "recovery is in progress: pg_walfile_name", false),
            (
                "42501",
                "permission denied for function pg_control_x",
                false,
            ),
            ("42501", "permission denied for table t", false),
        ] {
            let error = Error {
                sqlstate: Some(sqlstate.to_owned()),
                message: message.to_owned(),
                reached: true,
                ..Error::default()
            };
            let mut settings = SessionSettings::new(None);
            assert!(settings.tells_promotion(&made(14)) && !settings.tells_promotion(&made(9)));
            let refused = settings.refuse(&error);
            assert_eq!(
                refused,
                is_hidden.then_some(Dispensable::Promotion),
                "{message}"
            );
            assert_eq!(settings.tells_promotion(&made(14)), !is_hidden, "{message}");
            assert_eq!(settings.refuse(&error), None, "twice: {message}");
        }
    }

    #[test]
    fn an_older_server_does_not_free_the_lock_before_the_lease_is_over() {
        for ttl in [3, 4, 15, 100] {
            let settings = SessionSettings::new(Some(Duration::from_secs(ttl)));
            let values = settings.values(110_000, LockScope::Session);
            let get = |name| {
                let found = values.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| *value).unwrap()
            };
            let noticed = get("tcp_keepalives_idle")
                + get("tcp_keepalives_interval") * get("tcp_keepalives_count");
            assert!(noticed >= ttl, "{noticed} < {ttl}");
        }
    }
}
