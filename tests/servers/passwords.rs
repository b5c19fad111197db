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

/// What people paste who know another library, another program's flags, or not quite the form of libpq's strings.
const STRINGS: [&str; 76] = [
    "jdbc:postgresql://h/db?user=me&password=hunter2",
    "jdbc:postgresql://me:hunter2@h:5432/db",
    "Host=h;Port=5432;Database=db;Username=me;Password=hunter2",
    "host=h;port=5432;database=db;user=me;password=hunter2",
    "host=127.0.0.1;password=hunter2",
    "hostaddr=127.0.0.1;password=hunter2",
    "Server=h;Port=5432;Database=db;User Id=me;Password=hunter2;",
    "server=h;uid=me;pwd=hunter2",
    "Driver={PostgreSQL Unicode};Server=h;Uid=me;Pwd=hunter2;",
    "dbname=db;user=me;password=hunter2",
    "user=me;password=hunter2",
    "user=me,password=hunter2",
    "user=me&pass=hunter2",
    "dbname=app;pwd=hunter2",
    "port=5432;password=hunter2",
    "sslmode=disable;password=hunter2",
    "application_name=job;password=hunter2",
    "application_name=job,password=hunter2",
    "host=h,password=hunter2,user=me",
    "pgsql:host=h;dbname=db;user=me;password=hunter2",
    "dbi:Pg:dbname=db;host=h;password=hunter2",
    "postgresql+psycopg2://me:hunter2@h/db",
    "postgresql+asyncpg://me:hunter2@h/db?ssl=require",
    "postgis://me:hunter2@h/db",
    "ecto://me:hunter2@h/db",
    "psql://me:hunter2@h/db?sslmode=disable",
    "me:hunter2@h",
    "me:hunter2@h/db",
    "me:hunter2@h:5432/db",
    "me:hunter2@tcp(h:5432)/db",
    "me:hunter2",
    ":hunter2@h/db",
    "hunter2@h/db",
    "me/hunter2@h",
    "me/hunter2@h:5432/db",
    "//me:hunter2@h/db",
    "postgres:me:hunter2",
    "postgresql:me:hunter2@h/db",
    "h:5432:db:me:hunter2",
    "*:*:*:me:hunter2",
    "\"postgresql://me:hunter2@h/db\"",
    "'postgresql://me:hunter2@h/db'",
    "\"host=h user=me password=hunter2\"",
    "'host=h user=me password=hunter2'",
    " postgresql://me:hunter2@h/db",
    " postgresql://me:hunter2@h/db?sslmode=disable",
    "DATABASE_URL=postgresql://me:hunter2@h/db",
    "PGPASSWORD=hunter2",
    "psql postgresql://me:hunter2@h/db",
    "db user=me password=hunter2",
    "PASSWORD=hunter2",
    "pwd=hunter2",
    "password = hunter2",
    "password = 'hunter2 b'",
    "password=hunter2 user",
    "password= hunter2 b",
    "password:hunter2",
    "host=h\nuser=me\npassword=hunter2",
    "{\"host\":\"h\",\"user\":\"me\",\"password\":\"hunter2\"}",
    "{host: h, user: me, password: hunter2}",
    "postgresql://me:hunter2@h/db;sslmode=disable",
    "postgresql://h/db&password=hunter2",
    "postgresql://h/db;password=hunter2",
    "postgresql://h/db?user=me:hunter2@h",
    "postgresql://h/db?passwd=hunter2",
    "postgresql://h/db?PASSWORD=hunter2",
    "postgresql://h/db?password=hunter2",
    "postgresql://h/db?sslpassword=hunter2",
    "postgresql://me:a@b/hunter2@h/db",
    "postgresql://me:12/hunter2@h/db",
    "postgresql://me:a?hunter2@h/db",
    "postgresql://me:50%hunter2@h/db",
    "postgresql://me:a#hunter2@h/db",
    "dbname=postgresql://me:hunter2@h/db",
    "dbname='me:hunter2@h/db'",
    "service=me:hunter2@h",
];

/// What lands in the wrong place of the right form.
const SLIPS: [(&str, &str); 28] = [
    ("PGLOCK_USER", "me:hunter2"),
    ("PGLOCK_USER", "me:hunter2@h"),
    ("PGLOCK_USER", "me/hunter2@h"),
    ("PGLOCK_USER", "me;password=hunter2"),
    ("PGLOCK_HOST", "me:hunter2@h"),
    ("PGLOCK_HOST", "hunter2@h"),
    ("PGLOCK_HOST", "//me:hunter2@h"),
    ("PGLOCK_HOST", "h;password=hunter2"),
    ("PGLOCK_HOST", "h,me:hunter2@h"),
    ("PGLOCK_HOST", "jdbc:postgresql://me:hunter2@h/db"),
    ("PGLOCK_PORT", "hunter2@5432"),
    ("PGLOCK_PORT", "5432;password=hunter2"),
    ("PGLOCK_SSLMODE", "disable;password=hunter2"),
    ("PGLOCK_SSLMODE", "me:hunter2@h"),
    ("PGLOCK_LOCKID", "me:hunter2@h"),
    ("PGLOCK_WAIT", "password=hunter2"),
    ("PGLOCK_QUIET", "password=hunter2"),
    ("PGUSER", "me:hunter2"),
    ("PGUSER", "me:hunter2@h"),
    ("PGDATABASE", "postgresql://me:hunter2@h/db"),
    ("PGDATABASE", "password=hunter2"),
    ("PGDATABASE", "me:hunter2@h/db"),
    ("PGHOST", "me:hunter2@h"),
    ("PGHOSTADDR", "me:hunter2@h"),
    ("PGPORT", "hunter2@5432"),
    ("PGPORT", "hunter2"),
    ("PGSSLMODE", "hunter2"),
    ("PGSERVICE", "me:hunter2@h"),
];

#[test]
fn a_password_in_a_string_of_another_form_or_in_the_wrong_place_is_shown_nowhere() {
    let server = Server::builder()
        .tcp()
        .conf("log_connections = on")
        .conf("log_statement = all")
        .conf("log_line_prefix = '%m [%p] %q%u@%d %a '")
        .start();
    let closed = ClosedPort::new();
    let scratch = Scratch::new();
    let mut complaints = Vec::new();
    let mut asks = false;
    let mut told = |pglock: Pglock, what: &str| {
        // By turns, for both tell where they connect to and what went wrong.
        asks = !asks;
        let pglock = match asks {
            true => pglock.flag("--status"),
            false => pglock.command(["true"]),
        };
        let output = pglock.run();
        let shown = output.stdout() + &output.stderr();
        if shown.contains("hunter2") {
            complaints.push(format!("shown: {what}\n{shown}"));
        }
    };
    // What is not said otherwise leads to a server that tells what it was asked for, or to none.
    for port in [server.port(), closed.port()] {
        let port = port.to_string();
        let weak = || {
            Pglock::new()
                .flag("--verbose")
                .env("PGHOST", "127.0.0.1")
                .env("PGPORT", &port)
                .env("PGUSER", "postgres")
        };
        let strong = || {
            weak()
                .env("PGLOCK_HOST", "127.0.0.1")
                .env("PGLOCK_PORT", &port)
        };
        for string in STRINGS {
            let given = strong().env("PGLOCK_DATABASE", string);
            told(given, &format!("PGLOCK_DATABASE={string}"));
        }
        for (name, value) in SLIPS {
            told(weak().env(name, value), &format!("{name}={value}"));
            if let Some(flag) = name.strip_prefix("PGLOCK_") {
                let flag = format!("--{}={value}", flag.to_lowercase());
                told(weak().flag(&flag), &flag);
            } else if let Some(keyword) = name.strip_prefix("PG") {
                let keyword = keyword.to_lowercase().replace("database", "dbname");
                let service = format!("[ours]\n{keyword}={value}\n");
                let file = scratch.file("services", 0o600, &service);
                let variable = format!("PG{}", keyword.to_uppercase());
                let served = weak().env_remove(variable).env("PGSERVICEFILE", file);
                told(served.clone().env("PGSERVICE", "ours"), &service);
                let flags = ["--host=127.0.0.1", "--database=service=ours"];
                told(served.flags(flags), &service);
            }
        }
        // Where it is given as the password too, it is hidden as that.
        for (name, value) in [
            ("PGTARGETSESSIONATTRS", "hunter2"),
            ("PGKEEPALIVES", "hunter2"),
        ] {
            let given = weak().env("PGLOCK_PASS", "hunter2").env(name, value);
            told(given, &format!("{name}={value}"));
        }
        for flag in [
            "--wait=hunter2",
            "--sslmode=hunter2",
            "--block=pwd:hunter2",
            "--pwd=hunter2",
        ] {
            told(weak().env("PGLOCK_PASS", "hunter2").flag(flag), flag);
        }
    }
    for string in STRINGS {
        let flag = format!("--database={string}");
        told(Pglock::at(server.port()).flag(&flag), &flag);
    }
    let words = ["--status", "me:hunter2@h"];
    let output = Pglock::at(server.port()).flags(words).run();
    output
        .assert_refused(&["--status"])
        .assert_nowhere("hunter2");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    // What was connected for all the same has told the server nothing either.
    let log = server.log();
    let learnt = log.lines().find(|line| line.contains("hunter2"));
    assert_eq!(learnt, None);
}

#[test]
fn names_with_odd_characters_work_but_are_not_shown() {
    let server = Server::builder().tcp().start();
    server.psql("create role \"me@example.com\" login");
    server.psql("create role \"a:b\" login");
    server.psql("create database \"password_reset\"");
    server.psql("create database \"x;y\"");
    let at = || Pglock::at(server.port()).env_remove("PGLOCK_USER");
    let hidden = "Connecting to PostgreSQL at";
    for (pglock, line) in [
        (at().flags(["--user", "me@example.com"]), "...@127.0.0.1"),
        (at().flags(["--database", "user=a:b"]), "...@127.0.0.1"),
        (
            at().flags(["--user=postgres", "--database=password_reset"]),
            "postgres@127.0.0.1",
        ),
        (
            at().flags(["--user=postgres", "--database=dbname='x;y'"]),
            "postgres@127.0.0.1",
        ),
    ] {
        let holder = pglock.clone().flag("--verbose").hold();
        holder.wait_for_line(&format!("{hidden} {line}"));
        // The table has the name for who does not go by it.
        let output = pglock.flag("--status").run();
        output.assert_status(0);
        let output = holder.finish();
        for name in ["me@example.com", "a:b", "password_reset", "x;y"] {
            output.assert_status(0).assert_nowhere(name);
        }
    }
    // The server's own words are not passed on either, nor what is left of a long name.
    let long = format!("{}@example.com", "é".repeat(40));
    for user in ["you@example.com", &long] {
        let output = at().flags(["--user", user]).command(["true"]).run();
        output
            .assert_failed(&["role \"...\" does not exist"])
            .assert_nowhere("example.com");
    }
    // What is no secret is told.
    let output = at()
        .flags(["--user", "postgres", "--database", "nope"])
        .env("PGLOCK_PASS", "postgres")
        .command(["true"])
        .run();
    output.assert_failed(&["database \"nope\" does not exist"]);
    let host = "Connecting to PostgreSQL at postgres@127.0.0.1:";
    assert!(output.log()[0].starts_with(host), "{}", output.report());
}

#[test]
fn a_password_is_in_no_list_of_processes() {
    let server = server();
    set_password(&server, "hunter2");
    let keeper = || Pglock::at(server.port()).env("PGLOCK_USER", "keeper");
    for pglock in [
        keeper().env("PGLOCK_PASS", "hunter2"),
        keeper().env("PGPASSWORD", "hunter2"),
        keeper().env("PGLOCK_DATABASE", "password=hunter2"),
        keeper().env("PGLOCK_DATABASE", "postgresql://:hunter2@/postgres"),
    ] {
        let holder = pglock.hold();
        let processes = holder.processes();
        // pglock, its guardian and the command.
        assert!(processes.len() >= 3, "{processes:?}");
        for process in processes {
            let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            assert!(!line.contains("hunter2"), "{line}");
        }
        holder.finish().assert_status(0);
    }
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
