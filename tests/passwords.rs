//! Passwords of all kinds get through, and get out nowhere.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::support::*;

/// Each of them breaks something when it is pasted into a URI, a connection string, a password file or a shell.
const PASSWORDS: [&str; 12] = [
    "plain-secret",
    "p@ss/w%rd",
    "it's \\ \"quoted\"",
    " leading and trailing ",
    "colon:and\\colon:",
    "%41%zz%",
    "#?&=;+",
    "$HOME `id` $(id)",
    "'; drop table t; --",
    "\\\\\\'",
    "pässwörd €",
    "host=evil port=1",
];

/// A server that asks the role `keeper` for a password, over SCRAM.
fn server() -> Server {
    let server = Server::builder()
        .tcp()
        .hba("host all keeper all scram-sha-256")
        .start();
    server.psql("create role keeper login");
    server
}

fn set_password(server: &Server, password: &str) {
    server.psql(&format!("alter role keeper password {}", literal(password)));
}

/// A string for SQL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A value for a connection string.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A part of a URI.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn every_password_gets_through_from_every_source_and_is_shown_nowhere() {
    let server = server();
    let scratch = Scratch::new();
    let port = server.port();
    for password in PASSWORDS {
        set_password(&server, password);
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        let file = scratch.file("pgpass", 0o600, format!("*:*:*:keeper:{escaped}\n"));
        let keeper = || {
            Pglock::at(port)
                .env("PGLOCK_USER", "keeper")
                .flag("--verbose")
        };
        let sources = [
            ("PGLOCK_PASS", keeper().env("PGLOCK_PASS", password)),
            ("PGPASSWORD", keeper().env("PGPASSWORD", password)),
            (".pgpass", keeper().env("PGPASSFILE", file)),
            (
                "string",
                keeper().flags(["--database", &format!("password={}", quoted(password))]),
            ),
            (
                "URI",
                keeper().flags([
                    "--database",
                    &format!(
                        "postgresql://keeper:{}@127.0.0.1:{port}/postgres",
                        encoded(password)
                    ),
                ]),
            ),
        ];
        for (source, pglock) in sources {
            let output = pglock.command(["echo", source]).run();
            output
                .assert_status(0)
                .assert_stdout(&format!("{source}\n"))
                .assert_nowhere(password.trim());
        }
    }
}

#[test]
fn a_wrong_password_is_refused_in_one_line_without_it() {
    let server = server();
    set_password(&server, "right-secret");
    let marker = Marker::new();
    let cases = [
        (
            "PGLOCK_PASS",
            "wrong-secret",
            Pglock::at(server.port()).env("PGLOCK_PASS", "wrong-secret"),
        ),
        (
            "PGPASSWORD",
            "wrong-secret",
            Pglock::at(server.port()).env("PGPASSWORD", "wrong-secret"),
        ),
        (
            "--database",
            "wrong-secret",
            Pglock::at(server.port()).flags(["--database", "password=wrong-secret"]),
        ),
    ];
    for (source, password, pglock) in cases {
        let output = pglock
            .flags(["--user", "keeper", "--verbose"])
            .command(marker.command())
            .run();
        output
            .assert_failed(&["password authentication failed", "keeper"])
            .assert_nowhere(password);
        assert!(!marker.exists(), "{source}");
    }
    let output = Pglock::at(server.port())
        .flags(["--user", "keeper"])
        .command(marker.command())
        .run();
    output.assert_failed(&["password"]);
    assert!(!marker.exists());
}

#[test]
fn a_password_in_a_malformed_connection_string_is_not_shown() {
    let closed = ClosedPort::new();
    let mut complaints = Vec::new();
    for string in [
        "postgresql://u:hunter2@[::1/db",
        "postgresql://u:hunter2%zz@h/db",
        "postgresql://u:x@hunter2:y@h/db",
        "postgresql://u:hunter2@h:port/db",
        "postgresql://u:hunter2@h/db?nonsense=1",
        "postgresql://u@h/db?password=hunter2&nonsense=1",
        "postgresql://u@h/db?password=hunter2%zz",
        "postgresql://u@h/db?passwort=hunter2",
        "postgresql://u@h/db?hunter2",
        // A slash that should have been written as %2F: what follows looks like a port or a database.
        "postgresql://u:hunter2/@h/db",
        "postgresql://u:/hunter2@h/db",
        "postgresql://u:p@ss/hunter2@h/db",
        "postgresql://u:pa@hunter2@h/db",
        // What other libraries understand.
        "postgresql+psycopg2://u:hunter2@h/db",
        "mysql://u:hunter2@h/db",
        "password=hunter2 nonsense=1",
        "password='hunter2",
        "password=correct hunter2 battery",
        "password=hunter2 user",
        "passwort=hunter2",
        "password='x' hunter2",
        "hunter2=x",
        // Quotes of its own do not open those of the message.
        "postgresql://u:a\"hunter2@[::1/db",
        "postgresql://u:a\"hunter2\"b@[::1/db",
        "postgresql://u@h/db?a\"hunter2\"b",
        "a\"hunter2\"b=x",
    ] {
        for (name, pglock) in [
            ("--database", Pglock::new().flags(["--database", string])),
            (
                "PGLOCK_DATABASE",
                Pglock::new().env("PGLOCK_DATABASE", string),
            ),
        ] {
            let output = pglock
                .env("PGLOCK_HOST", "127.0.0.1")
                .env("PGLOCK_PORT", closed.port().to_string())
                .flag("--verbose")
                .command(["true"])
                .run();
            output.assert_failed(&[]);
            let shown = output.stdout() + &output.stderr();
            if shown.contains("hunter2") {
                complaints.push(format!("shown: {string}: {shown}"));
            }
            // Some look well-formed to libpq, as long as stronger sources name host and port.
            if !shown.contains("Connecting") && !shown.contains(name) {
                complaints.push(format!("no {name} in: {shown}"));
            }
        }
    }
    // Without a stronger source it is the port or the host that is malformed.
    for string in [
        "postgresql://u:hunter2/@h/db",
        "postgresql://u:pa@hunter2@h/db",
    ] {
        let output = Pglock::new()
            .flags(["--database", string])
            .command(["true"])
            .run();
        output.assert_failed(&[]);
        if output.stderr().contains("hunter2") {
            complaints.push(format!("shown: {}", output.report()));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn a_password_in_a_good_connection_string_is_not_shown_when_connecting_fails() {
    let closed = ClosedPort::new();
    for string in [
        format!("postgresql://u:hunter2@127.0.0.1:{}/db", closed.port()),
        format!(
            "host=127.0.0.1 port={} user=u password=hunter2",
            closed.port()
        ),
        format!(
            "postgresql://127.0.0.1:{}/db?user=u&password=hunter2",
            closed.port()
        ),
    ] {
        let output = Pglock::new()
            .flags(["--verbose", "--database", &string])
            .command(["true"])
            .run();
        output
            .assert_failed(&[&closed.port().to_string()])
            .assert_nowhere("hunter2");
    }
}

#[test]
fn a_password_that_went_astray_is_not_shown() {
    let cases: [(&str, &[u8]); 5] = [
        ("PGLOCK_PASSWORD", b"hunter2"),
        ("PGLOCK_DSN", b"postgresql://u:hunter2@h/db"),
        ("PGLOCK_HOST", b"postgresql://u:hunter2@h/db"),
        ("PGLOCK_PORT", b"postgresql://u:hunter2@h/db"),
        ("PGLOCK_DATABASE", b"host=h password=hunter2\xff"),
    ];
    for (name, value) in cases {
        let value = OsStr::from_bytes(value);
        let output = Pglock::new().env(name, value).command(["true"]).run();
        output.assert_refused(&[name]).assert_nowhere("hunter2");
    }
}

#[test]
fn without_a_password_the_message_says_where_it_goes() {
    let server = server();
    Pglock::at(server.port())
        .env("PGLOCK_USER", "keeper")
        .command(["true"])
        .run()
        .assert_failed(&["no password supplied", "PGLOCK_PASS"]);
}
