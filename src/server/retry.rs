//! Whether an attempt that failed is worth another: what each SQLSTATE means, and where that does not tell, what the
//! words mean of the poolers, which have one state for all their troubles, and of libpq, which has none.
//!
//! What is not known to be final is tried again for as long as there is to wait: to give up a wait for nothing is worse
//! than to wait for what never comes.

use crate::pq::Error;

/// Whether a host is worth another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Again {
    /// It would refuse again.
    Never,
    /// It is down, or not the primary, or something is wrong that may pass: by the time that a waiter has, it may have.
    IfWaiting,
    /// It is starting, or full: it will take connections in a moment.
    Soon,
}

use Again::{IfWaiting, Never, Soon};

/// What PgBouncer says in statement mode to one who begins a transaction (its server.c), and what an old one does.
const STATEMENT_MODE: [&str; 2] = [
    "transaction blocks not allowed in statement pooling mode",
    "long transactions not allowed",
];

/// The beginning of a SQLSTATE, words of the message in lower case, and what they mean.
type Row = (&'static str, &'static str, Again);

/// The first row that fits decides.
static TABLE: &[Row] = &[
    // SQLSTATEs, as in PostgreSQL's appendix "Error Codes".
    // cannot_connect_now: starting, shutting down, in recovery; or a standby that takes no connections at all.
    ("57P03", "hot standby mode is disabled", IfWaiting),
    ("57P03", "", Soon),
    // too_many_connections: max_connections, a role's limit or a database's, those of Odyssey (its frontend.c).
    ("53300", "", Soon),
    // feature_not_supported; of "serializable" as the role's default a standby says so until it is promoted.
    ("0A", "in a hot standby", IfWaiting),
    ("0A", "", Never),
    // Data exception: a setting or a name that the server cannot read.
    ("22", "", Never),
    // Invalid authorization: role, password, pg_hba.conf.
    ("28", "", Never),
    // Invalid catalog name: there is no such database, or pooler's route to it.
    ("3D", "", Never),
    // Syntax error or access rule violation: a privilege, a function that is not there.
    ("42", "", Never),
    // Program limit exceeded.
    ("54", "", Never),
    // cant_change_runtime_param: a setting that no session may make.
    ("55P02", "", Never),
    // Invalid transaction state: read-only, as a primary is that steps down; the timeouts of the lease.
    ("25", "", IfWaiting),
    // Transaction rollback: a deadlock, a serialization failure.
    ("40", "", IfWaiting),
    // Insufficient resources: memory, locks, disk.
    ("53", "", IfWaiting),
    // Object not in prerequisite state: a database that is closed for a while; the end of a turn, which is fatal under a
    // role's exit_on_error.
    ("55", "", IfWaiting),
    // Operator intervention: a shutdown, a crash, an administrator's cancel; the timeout of the lease.
    ("57", "", IfWaiting),
    // Configuration file error.
    ("F0", "", IfWaiting),
    //
    // Poolers: PgBouncer with 08P01 (its client.c, objects.c, proto.c), Supavisor with XX000 (its lib/supavisor/errors),
    // RDS Proxy with 08000 (the RDS user guide, "Troubleshooting for RDS Proxy"). Of their troubles nothing else is final:
    // a server that is down, a pool that had no room for as long as one may queue for it (query_wait_timeout and its
    // like), a database that is paused or disabled.
    //
    // They are full.
    ("", "no more connections allowed", Soon),
    ("", "client connections exceeded", Soon),
    ("", "max client connections reached", Soon),
    ("", "max clients reached", Soon),
    ("", "maximum number of client connections", Soon),
    ("", "rate of connection to proxy exceeded", Soon),
    ("", "too many competing requests", Soon),
    // A server's words that they pass on, as PgBouncer 1.18 does without the state.
    ("", "too many clients already", Soon),
    ("", "too many connections for", Soon),
    ("", "remaining connection slots are reserved", Soon),
    ("", "the database system is", Soon),
    ("", "is not permitted to log in", Never),
    ("", "pg_hba.conf", Never),
    ("", "permission denied for database", Never),
    ("", "does not exist", Never),
    // No lock can be held through it.
    ("", STATEMENT_MODE[0], Never),
    ("", STATEMENT_MODE[1], Never),
    // They refuse the client: PgBouncer; "authentication failed" is a word of all.
    ("", "no such database", Never),
    ("", "no such user", Never),
    ("", "authentication failed", Never),
    ("", "login rejected", Never),
    ("", "startup parameter", Never),
    ("", "ssl required", Never),
    ("", "username too long", Never),
    ("", "no username supplied", Never),
    ("", "empty password returned", Never),
    ("", "an invalid sasl authentication mechanism", Never),
    ("", "pqexec disallowed", Never),
    // Supavisor.
    ("", "tenant or user not found", Never),
    ("", "tenant/user", Never),
    ("", "no tenant identifier", Never),
    ("", "invalid format for user or db_name", Never),
    ("", "not in tenant allow_list", Never),
    ("", "ssl connection is required", Never),
    // RDS Proxy.
    ("", "has no credentials for the role", Never),
    ("", "password that was provided for the role", Never),
    ("", "supports only iam or md5 authentication", Never),
    ("", "only with ssl connections", Never),
    ("", "requires tls", Never),
    ("", "feature not supported", Never),
    // PgDog (its error_response.rs).
    ("", "must connect with tls", Never),
    //
    // libpq's own (its fe-*.c), which says what the system and OpenSSL say to it. That nobody answers, or that the
    // connection ends, is not final, nor is a refusal of the socket: its permissions are set after it was bound.
    //
    // EAGAIN: more clients knock at the server's Unix socket than it has let in yet.
    ("", "resource temporarily unavailable", Soon),
    // Settings.
    ("", "value: \"", Never),
    ("", "invalid port number", Never),
    ("", "invalid integer value", Never),
    ("", "invalid connection option", Never),
    ("", "check openssl version", Never),
    ("", "support is not compiled in", Never),
    ("", "weak sslmode", Never),
    ("", "require_auth method", Never),
    ("", "\" is greater than \"", Never),
    ("", "could not match", Never),
    ("", "could not parse network address", Never),
    ("", "is too long (maximum", Never),
    ("", "host name must be specified", Never),
    ("", "service file", Never),
    ("", "definition of service", Never),
    // TLS: files, what the server is and says of itself, what either side does not take.
    ("", "certificate file", Never),
    ("", "root certificate", Never),
    ("", "private key", Never),
    ("", "private ssl key", Never),
    ("", "certificate verify failed", Never),
    ("", "does not match host name", Never),
    ("", "server's host name from server certificate", Never),
    ("", "does not support ssl", Never),
    ("", "received unencrypted data", Never),
    ("", "valid ssl certificate", Never),
    ("", "request an ssl certificate", Never),
    ("", "ssl protocol version", Never),
    ("", "unsupported protocol", Never),
    ("", "no protocols available", Never),
    ("", "wrong version number", Never),
    ("", "key too small", Never),
    ("", "alpn protocol", Never),
    ("", "alert no application protocol", Never),
    ("", "alert protocol version", Never),
    ("", "alert handshake failure", Never),
    ("", "alert insufficient security", Never),
    ("", "alert unrecognized name", Never),
    ("", "alert unknown ca", Never),
    ("", "alert access denied", Never),
    ("", "alert bad certificate", Never),
    ("", "alert unsupported certificate", Never),
    ("", "alert certificate", Never),
    // Authentication.
    ("", "no password supplied", Never),
    ("", "authentication method", Never),
    ("", "authentication not supported", Never),
    ("", "sasl authentication mechanisms are supported", Never),
    ("", "channel binding", Never),
    ("", "malformed scram message", Never),
    ("", "invalid scram response", Never),
    ("", "incorrect server signature", Never),
    ("", "server did not complete authentication", Never),
    ("", "requirepeer specifies", Never),
    ("", "gssapi encryption required", Never),
    ("", "support gssapi encryption", Never),
    ("", "no kerberos credentials", Never),
    ("", "not found in kerberos database", Never),
    ("", "requires oauth authentication", Never),
    ("", "no oauth flows", Never),
    ("", "rejected oauth bearer token", Never),
    // Something else than a server, or one of another age.
    ("", "expected authentication request from server", Never),
    ("", "invalid response to ssl negotiation", Never),
    ("", "invalid response to gssapi negotiation", Never),
    ("", "invalid protocol negotiation message", Never),
    ("", "server only supports protocol version", Never),
];

/// Whether an attempt that failed so is worth another.
pub fn again(error: &Error) -> Again {
    let row = row(error);
    row.map_or(IfWaiting, |(_, _, again)| *again)
}

/// Whether a pooler says that it lets no transaction stay open.
pub fn is_statement_mode(error: &Error) -> bool {
    row(error).is_some_and(|(_, words, _)| STATEMENT_MODE.contains(words))
}

fn row(error: &Error) -> Option<&'static Row> {
    let state = error.sqlstate.as_deref().unwrap_or_default();
    let message = error.message.to_ascii_lowercase();
    TABLE
        .iter()
        .find(|(class, words, _)| state.starts_with(class) && message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(state: &str, message: &str) -> Error {
        Error {
            sqlstate: Some(state.to_owned()).filter(|state| !state.is_empty()),
            message: message.to_owned(),
            reached: true,
            ..Error::default()
        }
    }

    /// What servers say.
    const SERVERS: &[(&str, &str, Again)] = &[
        ("57P03", "the database system is starting up", Soon),
        ("57P03", "the database system is shutting down", Soon),
        ("57P03", "the database system is in recovery mode", Soon),
        (
            "57P03",
            "FATAL:  the database system is not accepting connections; DETAIL:  Hot standby mode is disabled.",
            IfWaiting,
        ),
        ("53300", "sorry, too many clients already", Soon),
        ("53300", "too many connections for role \"app\"", Soon),
        ("0A000", "unsupported frontend protocol 3.2", Never),
        (
            "0A000",
            "cannot use serializable mode in a hot standby",
            IfWaiting,
        ),
        (
            "22023",
            "invalid value for parameter \"TimeZone\": \"x\"",
            Never,
        ),
        (
            "22021",
            "invalid byte sequence for encoding \"UTF8\"",
            Never,
        ),
        ("28000", "no pg_hba.conf entry for host \"::1\"", Never),
        ("28000", "role \"x\" is not permitted to log in", Never),
        (
            "28P01",
            "password authentication failed for user \"x\"",
            Never,
        ),
        ("3D000", "database \"x\" does not exist", Never),
        ("42501", "permission denied for database \"x\"", Never),
        (
            "42883",
            "function pg_try_advisory_lock(integer) does not exist",
            Never,
        ),
        ("54001", "stack depth limit exceeded", Never),
        ("55P02", "parameter \"x\" cannot be changed now", Never),
        (
            "25006",
            "cannot execute nextval() in a read-only transaction",
            IfWaiting,
        ),
        (
            "25P03",
            "terminating connection due to idle-in-transaction timeout",
            IfWaiting,
        ),
        ("40001", "could not serialize access", IfWaiting),
        ("40P01", "deadlock detected", IfWaiting),
        (
            "53100",
            "could not extend file: No space left on device",
            IfWaiting,
        ),
        ("53200", "out of shared memory", IfWaiting),
        (
            "55000",
            "database \"x\" is not currently accepting connections",
            IfWaiting,
        ),
        (
            "55P03",
            "canceling statement due to lock timeout",
            IfWaiting,
        ),
        (
            "57014",
            "canceling statement due to user request",
            IfWaiting,
        ),
        (
            "57P01",
            "terminating connection due to administrator command",
            IfWaiting,
        ),
        (
            "57P02",
            "terminating connection because of crash of another server process",
            IfWaiting,
        ),
        (
            "57P05",
            "terminating connection due to idle-session timeout",
            IfWaiting,
        ),
        ("58030", "could not read block 0", IfWaiting),
        ("F0000", "could not load pg_hba.conf", IfWaiting),
        ("P0001", "closed for maintenance", IfWaiting),
        ("XX000", "cache lookup failed", IfWaiting),
    ];

    /// What poolers say.
    const POOLERS: &[(&str, &str, Again)] = &[
        // PgBouncer: itself, and what it passes on.
        (
            "08P01",
            "no more connections allowed (max_client_conn)",
            Soon,
        ),
        (
            "08P01",
            "client connections exceeded (max_db_client_connections)",
            Soon,
        ),
        ("08P01", "sorry, too many clients already", Soon),
        ("08P01", "too many connections for database \"x\"", Soon),
        (
            "08P01",
            "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            Soon,
        ),
        ("08P01", "the database system is shutting down", Soon),
        (
            "08P01",
            "server login has been failing, cached error: the database system is starting up (server_login_retry)",
            Soon,
        ),
        (
            "08P01",
            "server login has been failing, try again later (server_login_retry)",
            IfWaiting,
        ),
        (
            "08P01",
            "server login has been failing, cached error: connect failed (server_login_retry)",
            IfWaiting,
        ),
        ("08P01", "query_wait_timeout", IfWaiting),
        ("08P01", "client_login_timeout (server down)", IfWaiting),
        ("08P01", "client_idle_timeout", IfWaiting),
        ("08P01", "server conn crashed?", IfWaiting),
        ("08P01", "server lifetime over", IfWaiting),
        ("08P01", "database \"x\" is disabled", IfWaiting),
        ("08P01", "bouncer config error", IfWaiting),
        ("08P01", "invalid server parameter", IfWaiting),
        (
            "08P01",
            "transaction blocks not allowed in statement pooling mode",
            Never,
        ),
        ("08P01", "Long transactions not allowed", Never),
        ("08P01", "no such database: x", Never),
        ("08P01", "no such user", Never),
        ("08P01", "password authentication failed", Never),
        ("08P01", "SASL authentication failed", Never),
        ("08P01", "\"trust\" authentication failed", Never),
        ("08P01", "unix socket login rejected", Never),
        (
            "08P01",
            "unsupported startup parameter: extra_float_digits",
            Never,
        ),
        (
            "08P01",
            "unsupported options startup parameter: only '-c config=val' is allowed",
            Never,
        ),
        ("08P01", "SSL required", Never),
        ("08P01", "username too long", Never),
        ("08P01", "no username supplied", Never),
        ("08P01", "empty password returned by client", Never),
        (
            "08P01",
            "client selected an invalid SASL authentication mechanism",
            Never,
        ),
        ("08P01", "PQexec disallowed", Never),
        ("08P01", "database \"x\" does not exist", Never),
        ("08P01", "role \"x\" is not permitted to log in", Never),
        ("08P01", "no pg_hba.conf entry for host \"::1\"", Never),
        ("08P01", "permission denied for database \"x\"", Never),
        // Supavisor, older and newer.
        ("XX000", "Max client connections reached", Soon),
        (
            "XX000",
            "(EMAXCONN) max client connections reached, limit: 200",
            Soon,
        ),
        (
            "XX000",
            "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
            Soon,
        ),
        (
            "XX000",
            "Unable to check out process from the pool due to timeout",
            IfWaiting,
        ),
        ("XX000", "DbHandler exited", IfWaiting),
        (
            "08006",
            "connection failure during authentication",
            IfWaiting,
        ),
        ("XX000", "Tenant or user not found", Never),
        (
            "XX000",
            "(ENOTFOUND) tenant/user postgres.x not found",
            Never,
        ),
        (
            "XX000",
            "no tenant identifier provided (external_id or sni_hostname required)",
            Never,
        ),
        (
            "XX000",
            "Authentication error, reason: \"Invalid format for user or db_name\"",
            Never,
        ),
        (
            "XX000",
            "Address not in tenant allow_list: {127, 0, 0, 1}",
            Never,
        ),
        ("XX000", "SSL connection is required", Never),
        // pgcat (its client.rs).
        (
            "58000",
            "could not get connection from the pool - AllServersDown",
            IfWaiting,
        ),
        // Odyssey (its frontend.c).
        (
            "53300",
            "too many tcp connections (global client_max 100)",
            Soon,
        ),
        (
            "53300",
            "too many active clients for user (pool_size for user x.y reached 1)",
            Soon,
        ),
        ("08006", "failed to get remote server connection", IfWaiting),
        (
            "08006",
            "failed to connect to remote server s1f3a8e4c7d20",
            IfWaiting,
        ),
        ("53200", "soft out of memory", IfWaiting),
        ("3D000", "route for 'x.y' is not found", Never),
        // RDS Proxy.
        (
            "08000",
            "Timed-out waiting to acquire database connection",
            IfWaiting,
        ),
        (
            "08000",
            "The maximum number of client connections to the proxy exceeded 100.",
            Soon,
        ),
        ("08000", "Rate of connection to proxy exceeded 100.", Soon),
        (
            "08000",
            "The IAM authentication failed because of too many competing requests.",
            Soon,
        ),
        (
            "08000",
            "The IAM authentication failed for the role x.",
            Never,
        ),
        (
            "08000",
            "This RDS proxy has no credentials for the role x.",
            Never,
        ),
        (
            "08000",
            "The password that was provided for the role x is wrong.",
            Never,
        ),
        (
            "08000",
            "RDS supports only IAM or MD5 authentication.",
            Never,
        ),
        ("08000", "IAM is allowed only with SSL connections.", Never),
        ("08000", "This RDS Proxy requires TLS connections.", Never),
        (
            "08000",
            "Feature not supported: RDS Proxy supports only version 3.0",
            Never,
        ),
        // PgDog (its error_response.rs).
        (
            "58000",
            "connection pool for user \"x\" and database \"y\" is down",
            IfWaiting,
        ),
        ("57P01", "PgDog is shutting down", IfWaiting),
        ("08004", "Clients must connect with TLS", Never),
        // One that names no state.
        ("", "FATAL:  the pool is full", IfWaiting),
    ];

    /// What libpq says.
    const LIBPQ: &[(&str, Again)] = &[
        (
            "connection to server on socket \"/s\" failed: Resource temporarily unavailable",
            Soon,
        ),
        (
            "connection to server on socket \"/s\" failed: No such file or directory",
            IfWaiting,
        ),
        (
            "connection to server on socket \"/s\" failed: Permission denied",
            IfWaiting,
        ),
        (
            "connection to server at \"::1\", port 1 failed: Connection refused",
            IfWaiting,
        ),
        (
            "could not translate host name \"x\" to address: Name or service not known",
            IfWaiting,
        ),
        ("server closed the connection unexpectedly", IfWaiting),
        (
            "could not receive data from server: Connection reset by peer",
            IfWaiting,
        ),
        ("could not send data to server: Broken pipe", IfWaiting),
        ("could not create socket: Too many open files", IfWaiting),
        ("SSL SYSCALL error: EOF detected", IfWaiting),
        ("SSL error: unexpected eof while reading", IfWaiting),
        (
            "server sent an error response during SSL exchange",
            IfWaiting,
        ),
        ("session is read-only", IfWaiting),
        ("server is in hot standby mode", IfWaiting),
        (
            "GSSAPI continuation error: Cannot contact any KDC for realm 'X'",
            IfWaiting,
        ),
        ("out of memory", IfWaiting),
        ("invalid channel_binding value: \"x\"", Never),
        ("invalid port number: \"0\"", Never),
        (
            "invalid integer value \"x\" for connection option \"keepalives\"",
            Never,
        ),
        ("invalid connection option \"x\"", Never),
        (
            "ssl_min_protocol_version value \"x\" is not supported (check OpenSSL version)",
            Never,
        ),
        (
            "sslmode value \"require\" invalid when SSL support is not compiled in",
            Never,
        ),
        (
            "weak sslmode \"prefer\" may not be used with sslrootcert=system",
            Never,
        ),
        (
            "require_auth method \"md5\" is specified more than once",
            Never,
        ),
        (
            "\"min_protocol_version\" is greater than \"max_protocol_version\"",
            Never,
        ),
        ("could not match 2 port numbers to 1 hosts", Never),
        (
            "could not parse network address \"x\": Name or service not known",
            Never,
        ),
        (
            "Unix-domain socket path \"/s\" is too long (maximum 107 bytes)",
            Never,
        ),
        (
            "host name must be specified for a verified SSL connection",
            Never,
        ),
        ("service file \"x\" not found", Never),
        ("definition of service \"x\" not found", Never),
        ("root certificate file \"x\" does not exist", Never),
        (
            "could not open certificate file \"x\": No such file or directory",
            Never,
        ),
        ("could not load system root certificate paths: x", Never),
        ("could not load private key file \"x\": bad decrypt", Never),
        (
            "could not read private SSL key \"x\" from engine \"y\": z",
            Never,
        ),
        ("SSL error: certificate verify failed", Never),
        (
            "server certificate for \"x\" does not match host name \"y\"",
            Never,
        ),
        (
            "could not get server's host name from server certificate",
            Never,
        ),
        ("server does not support SSL, but SSL was required", Never),
        ("received unencrypted data after SSL response", Never),
        (
            "server accepted connection without a valid SSL certificate",
            Never,
        ),
        ("server did not request an SSL certificate", Never),
        ("could not set minimum SSL protocol version: x", Never),
        ("SSL error: unsupported protocol", Never),
        ("SSL error: no protocols available", Never),
        ("SSL error: wrong version number", Never),
        ("SSL error: ee key too small", Never),
        (
            "SSL connection was established with unexpected ALPN protocol",
            Never,
        ),
        ("SSL error: tlsv1 alert no application protocol", Never),
        ("SSL error: tlsv1 alert protocol version", Never),
        ("SSL error: sslv3 alert handshake failure", Never),
        ("SSL error: tlsv1 alert insufficient security", Never),
        ("SSL error: tlsv1 alert unrecognized name", Never),
        ("SSL error: tlsv1 alert unknown ca", Never),
        ("SSL error: tlsv1 alert access denied", Never),
        ("SSL error: ssl/tls alert bad certificate", Never),
        ("SSL error: sslv3 alert unsupported certificate", Never),
        ("SSL error: tlsv13 alert certificate required", Never),
        ("SSL error: tlsv1 alert internal error", IfWaiting),
        ("fe_sendauth: no password supplied", Never),
        ("authentication method 10 not supported", Never),
        ("GSSAPI authentication not supported", Never),
        (
            "none of the server's SASL authentication mechanisms are supported",
            Never,
        ),
        ("channel binding required, but SSL not in use", Never),
        ("malformed SCRAM message (invalid salt)", Never),
        ("invalid SCRAM response (nonce mismatch)", Never),
        ("incorrect server signature", Never),
        ("server did not complete authentication", Never),
        (
            "requirepeer specifies \"x\", but actual peer user name is \"y\"",
            Never,
        ),
        ("GSSAPI encryption required but no credential cache", Never),
        (
            "server doesn't support GSSAPI encryption, but it was required",
            Never,
        ),
        (
            "could not initiate GSSAPI security context: No Kerberos credentials available",
            Never,
        ),
        (
            "GSSAPI continuation error: Server postgres/x@Y not found in Kerberos database",
            Never,
        ),
        (
            "server requires OAuth authentication, but oauth_issuer is not set",
            Never,
        ),
        (
            "no OAuth flows are available (try installing the libpq-oauth package)",
            Never,
        ),
        ("server rejected OAuth bearer token: invalid_token", Never),
        (
            "expected authentication request from server, but received H",
            Never,
        ),
        ("received invalid response to SSL negotiation: H", Never),
        ("received invalid response to GSSAPI negotiation: H", Never),
        (
            "received invalid protocol negotiation message: message too short",
            Never,
        ),
        (
            "server only supports protocol version 3.0, but \"min_protocol_version\" was set to 3.2",
            Never,
        ),
    ];

    fn samples() -> impl Iterator<Item = (Error, Again)> {
        let libpq = LIBPQ.iter().map(|(message, again)| ("", *message, *again));
        let said = SERVERS.iter().chain(POOLERS).copied().chain(libpq);
        said.map(|(state, message, again)| (error(state, message), again))
    }

    #[test]
    fn what_is_said_means_what_it_should() {
        for (error, expected) in samples() {
            assert_eq!(again(&error), expected, "{error:?}");
        }
    }

    #[test]
    fn each_row_has_its_say() {
        for wanted in TABLE {
            let fits = |(error, _): (Error, Again)| {
                row(&error).is_some_and(|row| std::ptr::eq(row, wanted))
            };
            assert!(samples().any(fits), "{wanted:?}");
        }
    }

    #[test]
    fn statement_mode_is_told_by_its_own_words() {
        let is_statement_mode = |message| is_statement_mode(&error("08P01", message));
        for words in STATEMENT_MODE {
            assert!(is_statement_mode(words));
        }
        assert!(!is_statement_mode("query_wait_timeout"));
        assert!(!is_statement_mode("server conn crashed?"));
    }
}
