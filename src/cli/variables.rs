//! Which variables are pglock's. A misspelt one must not be passed over, or another lock is taken than was meant, or none is waited
//! for; but others than its users set variables that begin with `PGLOCK_` too: Kubernetes for a Service of that name, Docker for a
//! link, images for what they have installed.

use crate::cli::flags::{FLAGS, Flag, Id, OTHER_VARIABLES, PASSWORD, ValueType};
use crate::cli::spelling::{nearest, plain};
use crate::cli::values::URI_SCHEMES;

/// What all of them begin with.
pub const PREFIX: &str = "PGLOCK_";

/// What becomes of a variable that begins so.
#[derive(Debug, PartialEq, Eq)]
pub enum Role {
    /// It stands in for this flag.
    Flag(Id),
    /// It is known, and read elsewhere.
    Own,
    /// It is not for pglock.
    Other,
    /// It looks like a mistake for this.
    Mistaken(String),
}

/// How the names of well-known flags are written elsewhere, in the form of [`plain`], and what they are called here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("PASSWORD", "PASS"),
    ("PASSWD", "PASS"),
    ("PASSPHRASE", "PASS"),
    ("PGPASSWORD", "PASS"),
    ("DBPASSWORD", "PASS"),
    ("PWD", "PASS"),
    ("SECRET", "PASS"),
    ("DB", "DATABASE"),
    ("DBNAME", "DATABASE"),
    ("DATABASENAME", "DATABASE"),
    ("DATABASEURL", "DATABASE"),
    ("CONNECTIONSTRING", "DATABASE"),
    ("CONNINFO", "DATABASE"),
    ("DSN", "DATABASE"),
    ("HOSTNAME", "HOST"),
    ("HOSTADDR", "HOST"),
    ("SERVER", "HOST"),
    ("DBHOST", "HOST"),
    ("DBPORT", "PORT"),
    ("USERNAME", "USER"),
    ("DBUSER", "USER"),
    ("ROLE", "USER"),
    ("SSL", "SSLMODE"),
    ("TLS", "SSLMODE"),
    ("LOCK", "LOCKNAME"),
    ("ID", "LOCKID"),
    ("KEY", "LOCKKEY"),
    ("LOCKNUMBER", "LOCKID"),
    ("BLOCKING", "BLOCK"),
    ("NOWAIT", "WAIT"),
    ("WAITSECONDS", "WAIT"),
    ("WAITTIMEOUT", "WAIT"),
    ("LOCKTIMEOUT", "WAIT"),
    ("TIMEOUT", "CONNECT_TIMEOUT"),
    ("CONNECTIONTIMEOUT", "CONNECT_TIMEOUT"),
    ("EXITCODE", "CONFLICT_EXIT_CODE"),
    ("LEASE", "TTL"),
    ("LOCKTTL", "TTL"),
    ("GRACEPERIOD", "GRACE"),
    ("FENCING", "FENCE"),
];

/// What a flag is called here that has this name elsewhere, in the form of [`plain`].
pub fn called_here(given: &str) -> Option<&'static str> {
    let found = ELSEWHERE.iter().find(|(other, _)| *other == given);
    found.map(|(_, meant)| *meant)
}

/// The role of a variable whose name begins with [`PREFIX`], with its value.
pub fn role(name: &str, value: &str) -> Role {
    if OTHER_VARIABLES.contains(&name) {
        return Role::Own;
    }
    match FLAGS.iter().find(|flag| flag.variable() == name) {
        // Images keep the version that they have installed in such a variable.
        Some(flag) if !flag.has_variable() => Role::Other,
        Some(flag) if flag.value == ValueType::Ports && is_of_a_service(value) => Role::Other,
        Some(flag) => Role::Flag(flag.id),
        None if is_of_a_service(value) => Role::Other,
        None => mistaken(name, value).map_or(Role::Other, Role::Mistaken),
    }
}

/// What Kubernetes and Docker put into `NAME_PORT`, `tcp://10.0.0.1:5432`.
fn is_of_a_service(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
}

/// What an unknown variable was meant to be.
fn mistaken(name: &str, value: &str) -> Option<String> {
    let given = plain(name.strip_prefix(PREFIX)?);
    if let Some(meant) = called_here(&given) {
        return Some(format!("{PREFIX}{meant}"));
    }
    // Whatever its name is.
    if URI_SCHEMES.iter().any(|scheme| value.starts_with(scheme)) {
        return Some(Flag::of(Id::Database).variable());
    }
    let flags = FLAGS.iter().filter(|flag| flag.has_variable());
    let known = flags.map(Flag::variable).chain([PASSWORD.to_owned()]);
    nearest(
        &given,
        known.map(|known| (plain(&known[PREFIX.len()..]), known)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_known_variable_is_taken_for_a_mistake() {
        for (name, meant) in [
            ("WIAT", "WAIT"),
            ("WAITS", "WAIT"),
            ("WAI", "WAIT"),
            ("wait", "WAIT"),
            ("Lock_Id", "LOCKID"),
            ("LOCK_ID", "LOCKID"),
            ("LOCKD", "LOCKID"),
            ("LOCKIDS", "LOCKID"),
            ("LOCK_NAME", "LOCKNAME"),
            ("LOKCNAME", "LOCKNAME"),
            ("LOCKNMAE", "LOCKNAME"),
            ("DATABSE", "DATABASE"),
            ("DATBASE", "DATABASE"),
            ("DATABASES", "DATABASE"),
            ("HSOT", "HOST"),
            ("HOSTS", "HOST"),
            ("PROT", "PORT"),
            ("USR", "USER"),
            ("SSL_MODE", "SSLMODE"),
            ("SSLMOD", "SSLMODE"),
            ("TLL", "TTL"),
            ("TLT", "TTL"),
            ("GARCE", "GRACE"),
            ("SLOT", "SLOTS"),
            ("SHARE", "SHARED"),
            ("BLCOK", "BLOCK"),
            ("FENCED", "FENCE"),
            ("ONLOSS", "ON_LOSS"),
            ("ON_LOST", "ON_LOSS"),
            ("CONFLICTEXITCODE", "CONFLICT_EXIT_CODE"),
            ("CONFLICT_EXITCODES", "CONFLICT_EXIT_CODE"),
            ("CONNECTTIMEOUT", "CONNECT_TIMEOUT"),
            ("CONNECTION_TIMEOUT", "CONNECT_TIMEOUT"),
            ("VERBSE", "VERBOSE"),
            ("QUITE", "QUIET"),
            ("STATSU", "STATUS"),
            ("PAS", "PASS"),
            ("PASSS", "PASS"),
            ("PASSWORD", "PASS"),
            ("PASSWD", "PASS"),
            ("Password", "PASS"),
            ("DB", "DATABASE"),
            ("DBNAME", "DATABASE"),
            ("DB_NAME", "DATABASE"),
            ("DSN", "DATABASE"),
            ("DATABASE_URL", "DATABASE"),
            ("USERNAME", "USER"),
            ("HOSTNAME", "HOST"),
            ("TIMEOUT", "CONNECT_TIMEOUT"),
            ("CONNECTIONTIMEOUT", "CONNECT_TIMEOUT"),
            ("LOCK", "LOCKNAME"),
            ("EXIT_CODE", "CONFLICT_EXIT_CODE"),
        ] {
            let name = format!("{PREFIX}{name}");
            let role = role(&name, "1");
            assert_eq!(role, Role::Mistaken(format!("{PREFIX}{meant}")), "{name}");
        }
        let meant = Role::Mistaken("PGLOCK_DATABASE".to_owned());
        for value in ["postgresql://h/db", "postgres://u:p@h/db"] {
            assert_eq!(role("PGLOCK_URL", value), meant);
        }
    }

    #[test]
    fn what_others_have_set_is_none_of_ours() {
        for (name, value) in [
            // Kubernetes, for a Service pglock with two ports.
            ("PORT", "tcp://10.0.0.1:5432"),
            ("PORT", "udp://10.0.0.1:5432"),
            ("PORT_5432_TCP", "tcp://10.0.0.1:5432"),
            ("PORT_5432_TCP_PROTO", "tcp"),
            ("PORT_5432_TCP_PORT", "5432"),
            ("PORT_5432_TCP_ADDR", "10.0.0.1"),
            ("PORT_53_UDP", "udp://10.0.0.1:53"),
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT", "5432"),
            ("SERVICE_PORT_HTTP", "80"),
            // For a Service pglock-db.
            ("DB_PORT", "tcp://10.0.0.1:5432"),
            ("DB_SERVICE_HOST", "10.0.0.1"),
            // Docker, for a link of that name.
            ("NAME", "/web/pglock"),
            ("ENV_LANG", "C"),
            // Images.
            ("VERSION", "1"),
            ("HELP", "1"),
            ("URL", "https://example.org/pglock"),
            ("DOWNLOAD_URL", "https://example.org/pglock"),
            ("SHA1SUM", "0"),
            ("SHA256", "0"),
            ("SHA256SUM", "0"),
            ("CHECKSUM", "0"),
            ("COMMIT", "6650a33"),
            ("REF", "main"),
            ("TAG", "v1"),
            ("ARCH", "amd64"),
            ("IMAGE", "pglock:1"),
            ("BUILD_DATE", "2026-11-27"),
            ("RELEASE", "1"),
            ("HOME", "/opt/pglock"),
            ("BIN", "/usr/bin/pglock"),
            ("PATH", "/usr/bin"),
            ("DIR", "/opt"),
            ("CONFIG", "/etc/pglock"),
            ("DATA", "/var"),
            ("UID", "1000"),
            ("GID", "1000"),
            ("ARGS", "-v"),
            ("OPTS", "-v"),
            ("LOG_LEVEL", "debug"),
            ("DEBUG", "1"),
            ("ENV", "prod"),
            ("BOGUS", "1"),
            ("X", "1"),
            ("", "1"),
            ("\u{fffd}", "1"),
        ] {
            let name = format!("{PREFIX}{name}");
            assert_eq!(role(&name, value), Role::Other, "{name}={value}");
        }
    }

    #[test]
    fn what_is_known_is_known() {
        for flag in FLAGS.iter().filter(|flag| flag.has_variable()) {
            assert_eq!(role(&flag.variable(), "x"), Role::Flag(flag.id));
        }
        for name in OTHER_VARIABLES {
            assert_eq!(role(name, "x"), Role::Own);
        }
        for (other, meant) in ELSEWHERE {
            let known = role(&format!("{PREFIX}{meant}"), "x");
            assert!(matches!(known, Role::Flag(_) | Role::Own), "{meant}");
            assert_eq!(plain(other), *other);
        }
    }
}
