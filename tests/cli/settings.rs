//! Where the settings of the connection come from, and which of several wins.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::support::net::{Call, HUNG_UP};
use crate::support::*;

/// The one call that `pglock` made to `fake`, and to nobody else.
#[track_caller]
fn call(fake: &FakeServer, pglock: &Pglock) -> Call {
    let output = pglock.clone().command(["true"]).run();
    output.assert_failed(&[HUNG_UP]);
    let mut calls = fake.calls();
    assert_eq!(calls.len(), 1, "{}", output.report());
    calls.remove(0)
}

/// What a call was about.
fn summary(call: &Call) -> (&str, &str, bool) {
    (
        &call.parameters["user"],
        &call.parameters["database"],
        call.tls,
    )
}

/// What may be said about a connection, by one source.
struct Source<'a> {
    host: &'a str,
    port: &'a str,
    user: &'a str,
    database: &'a str,
    sslmode: &'a str,
}

impl Source<'_> {
    fn flags(&self, pglock: Pglock) -> Pglock {
        pglock.flags([
            "--host",
            self.host,
            "--port",
            self.port,
            "--user",
            self.user,
            "--sslmode",
            self.sslmode,
        ])
    }

    fn variables(&self, pglock: Pglock) -> Pglock {
        let pglock = pglock
            .env("PGLOCK_HOST", self.host)
            .env("PGLOCK_PORT", self.port);
        pglock
            .env("PGLOCK_USER", self.user)
            .env("PGLOCK_SSLMODE", self.sslmode)
    }

    fn pairs(&self, between: &str) -> String {
        let Source {
            host,
            port,
            user,
            database,
            sslmode,
        } = self;
        [
            format!("host={host}"),
            format!("port={port}"),
            format!("user={user}"),
            format!("dbname={database}"),
            format!("sslmode={sslmode}"),
        ]
        .join(between)
    }

    fn uri(&self) -> String {
        let Source {
            host,
            port,
            user,
            database,
            sslmode,
        } = self;
        format!("postgresql://{user}@{host}:{port}/{database}?sslmode={sslmode}")
    }

    fn libpq(&self, pglock: Pglock) -> Pglock {
        let pglock = pglock
            .env("PGHOST", self.host)
            .env("PGPORT", self.port)
            .env("PGUSER", self.user);
        pglock
            .env("PGDATABASE", self.database)
            .env("PGSSLMODE", self.sslmode)
    }

    fn service(&self, pglock: Pglock, scratch: &Scratch) -> Pglock {
        let file = scratch.file("services", 0o644, format!("[ours]\n{}\n", self.pairs("\n")));
        pglock.env("PGSERVICEFILE", file).env("PGSERVICE", "ours")
    }
}

#[test]
fn the_stronger_source_wins() {
    let fake = FakeServer::new();
    let witness = Witness::new();
    let scratch = Scratch::new();
    let (right_port, wrong_port) = (fake.port().to_string(), witness.port().to_string());
    let right = Source {
        host: "127.0.0.1",
        port: &right_port,
        user: "right",
        database: "right",
        sslmode: "disable",
    };
    let wrong = Source {
        host: "127.0.0.9",
        port: &wrong_port,
        user: "wrong",
        database: "wrong",
        sslmode: "require",
    };
    let nothing = Pglock::new;
    // A connection string in --database that says it all but for the database; that can come from nowhere stronger.
    let mixed = Source {
        database: "right",
        ..wrong
    };

    let cases: Vec<(&str, Pglock)> = vec![
        ("flags over all", {
            let weaker = wrong.service(wrong.libpq(wrong.variables(nothing())), &scratch);
            right.flags(weaker).flags(["--database", &mixed.pairs(" ")])
        }),
        (
            "flags over a URI",
            right.flags(nothing()).flags(["--database", &mixed.uri()]),
        ),
        ("a plain --database over everybody's", {
            right
                .flags(wrong.libpq(nothing()))
                .env("PGLOCK_DATABASE", wrong.pairs(" "))
                .flags(["--database", "right"])
        }),
        ("variables over all but flags", {
            right
                .variables(wrong.service(wrong.libpq(nothing()), &scratch))
                .flags(["--database", &mixed.pairs(" ")])
        }),
        ("variables, with the connection string among them", {
            right
                .variables(wrong.libpq(nothing()))
                .env("PGLOCK_DATABASE", mixed.uri())
        }),
        (
            "a plain PGLOCK_DATABASE",
            right
                .variables(wrong.libpq(nothing()))
                .env("PGLOCK_DATABASE", "right"),
        ),
        ("a connection string over libpq's own", {
            wrong
                .service(wrong.libpq(nothing()), &scratch)
                .flags(["--database", &right.pairs(" ")])
        }),
        (
            "a URI over libpq's own",
            wrong.libpq(nothing()).flags(["--database", &right.uri()]),
        ),
        (
            "a URI in the environment over libpq's own",
            wrong.libpq(nothing()).env("PGLOCK_DATABASE", right.uri()),
        ),
        // libpq's own order.
        (
            "a service over libpq's variables",
            right.service(wrong.libpq(nothing()), &scratch),
        ),
        (
            "libpq's variables over the defaults",
            right.libpq(nothing()),
        ),
    ];
    for (name, pglock) in cases {
        let output = pglock.clone().command(["true"]).run();
        assert!(
            output.stderr().contains(HUNG_UP),
            "{name}\n{}",
            output.report()
        );
        let calls = fake.calls();
        assert_eq!(
            calls.iter().map(summary).collect::<Vec<_>>(),
            [("right", "right", false)],
            "{name}\n{}",
            output.report()
        );
        assert!(!witness.was_disturbed(), "{name}\n{}", output.report());
        // And the log says so.
        let line = format!("Connecting to PostgreSQL at right@127.0.0.1:{right_port}/right.");
        assert_eq!(output.log()[0], line, "{name}\n{}", output.report());
    }
}

#[test]
fn each_setting_has_its_own_order() {
    // From five sources at once.
    let fake = FakeServer::new();
    let pglock = Pglock::new()
        .flags(["--user", "from-flag"])
        .env("PGLOCK_PORT", fake.port().to_string())
        .flags(["--database", "host=127.0.0.1"])
        .env("PGDATABASE", "from-libpq");
    let call = call(&fake, &pglock);
    assert_eq!(summary(&call), ("from-flag", "from-libpq", false));
}

#[test]
fn the_defaults_are_those_of_the_go_tool() {
    let fake = FakeServer::new();
    let pglock = Pglock::new().flags(["--port", &fake.port().to_string(), "--user", "u"]);
    let output = pglock.command(["true"]).run();
    output.assert_failed(&[HUNG_UP]);
    let calls = fake.calls();
    assert_eq!(
        calls.iter().map(summary).collect::<Vec<_>>(),
        [("u", "postgres", false)]
    );
    let line = format!(
        "Connecting to PostgreSQL at u@localhost:{}/postgres.",
        fake.port()
    );
    assert_eq!(output.log()[0], line);
    // The default port, at a place where nobody listens on it.
    let output = Pglock::new()
        .flags(["--host", "/nonexistent", "--user", "u"])
        .command(["true"])
        .run();
    output.assert_failed(&["/nonexistent/.s.PGSQL.5432"]);
}

#[test]
fn the_mode_of_tls_comes_from_every_source() {
    let cases: [(&str, Pglock); 5] = [
        ("flag", Pglock::new().flags(["--sslmode", "require"])),
        ("variable", Pglock::new().env("PGLOCK_SSLMODE", "require")),
        (
            "connection string",
            Pglock::new().flags(["--database", "sslmode=require"]),
        ),
        (
            "URI",
            Pglock::new().flags(["--database", "postgresql://?sslmode=require"]),
        ),
        (
            "libpq's variable",
            Pglock::new().env("PGSSLMODE", "require"),
        ),
    ];
    for (name, pglock) in cases {
        let fake = FakeServer::new();
        let port = fake.port().to_string();
        let output = pglock
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", &port)
            .env("PGUSER", "u")
            .command(["true"])
            .run();
        output.assert_failed(&["SSL"]);
        // It hangs up on a server that has no TLS, and the fake server then sees it.
        let calls = eventually("the call is in the book", PATIENCE, || {
            Some(fake.calls()).filter(|calls| !calls.is_empty())
        });
        assert!(calls[0].tls, "{name}\n{}", output.report());
        assert!(
            calls[0].parameters.is_empty(),
            "{name}: it went on without TLS\n{}",
            output.report()
        );
    }
}

#[test]
fn a_user_whom_nobody_names_is_the_operating_system_s() {
    let id = Command::new("id").arg("-un").output().expect("start id");
    let me = String::from_utf8(id.stdout)
        .expect("a name")
        .trim()
        .to_owned();
    let server = Server::new();
    server.psql(&format!(
        "do $$ begin create role \"{me}\" login; exception when duplicate_object then end $$"
    ));
    // What the environment says about the user is not asked, neither by psql.
    let holder = Pglock::on(&server)
        .env_remove("PGLOCK_USER")
        .env("USER", "wrong")
        .env("LOGNAME", "wrong")
        .hold();
    let user = server.psql(&format!(
        "select usename from pg_stat_activity where pid = {}",
        server.holders(1)[0]
    ));
    assert_eq!(user, me);
    let output = holder.finish();
    assert!(
        output.assert_status(0).log()[0].contains(&format!(" {me}@")),
        "{}",
        output.report()
    );
}

#[test]
fn the_database_can_be_a_connection_string() {
    let server = Server::builder().tcp().start();
    server.psql("create database other");
    server.psql("create database \"strange name=1\"");
    let (dir, port) = (server.socket_dir().display().to_string(), server.port());
    let encoded = dir.replace('/', "%2F");
    let cases = [
        (
            format!("host={dir} port={port} user=postgres dbname=other"),
            "other",
        ),
        (
            format!("host = '{dir}'  port='{port}' user = postgres dbname = 'strange name=1'"),
            "strange name=1",
        ),
        (
            format!("postgresql://postgres@{encoded}:{port}/other"),
            "other",
        ),
        (
            format!("postgres://postgres@/other?host={dir}&port={port}"),
            "other",
        ),
        (
            format!("postgresql://postgres@127.0.0.1:{port}/strange%20name%3D1"),
            "strange name=1",
        ),
        (
            format!("postgresql://postgres@localhost:{port}/"),
            "postgres",
        ),
        (
            format!("postgresql:///?host={dir}&port={port}&user=postgres&dbname=other"),
            "other",
        ),
        (format!("host={dir} port={port} user=postgres"), "postgres"),
    ];
    for (string, database) in cases {
        for pglock in [
            Pglock::new().flags(["--database", &string]),
            Pglock::new().env("PGLOCK_DATABASE", &string),
        ] {
            let holder = pglock.hold();
            let found = server.psql(&format!(
                "select datname from pg_stat_activity where pid = {}",
                server
                    .holders(1)
                    .first()
                    .unwrap_or_else(|| panic!("{string}: nobody holds the lock"))
            ));
            assert_eq!(found, database, "{string}");
            holder.finish().assert_status(0);
        }
    }
}

#[test]
fn other_settings_in_a_connection_string_reach_the_server() {
    let server = Server::new();
    let string = format!(
        "host={} user=postgres application_name=nightly options='-c work_mem=321kB'",
        server.socket_dir().display()
    );
    let holder = Pglock::new().flags(["--database", &string]).hold();
    let name = server.psql(&format!(
        "select application_name from pg_stat_activity where pid = {}",
        server.holders(1)[0]
    ));
    assert_eq!(name, "nightly");
    holder.finish().assert_status(0);
}

#[test]
fn a_malformed_connection_string_is_refused_before_anything_is_connected() {
    let witness = Witness::new();
    let marker = Marker::new();
    let port = witness.port();
    for string in [
        format!("host=127.0.0.1 port={port} nonsense=1"),
        format!("host=127.0.0.1 port={port} user"),
        format!("host=127.0.0.1 port={port} user='unfinished"),
        format!("postgresql://127.0.0.1:{port}/db?nonsense=1"),
        format!("postgresql://[127.0.0.1:{port}/db"),
        format!("postgresql://127.0.0.1:{port}/%zz"),
        format!("host=127.0.0.1 port={port} sslmode=sometimes"),
    ] {
        for (name, pglock) in [
            (
                "--database",
                Pglock::at(port).flags(["--database", &string]),
            ),
            (
                "PGLOCK_DATABASE",
                Pglock::at(port).env("PGLOCK_DATABASE", &string),
            ),
        ] {
            let output = pglock.command(marker.command()).run();
            output.assert_refused(&[name]);
            assert!(
                !witness.was_disturbed() && !marker.exists(),
                "{}",
                output.report()
            );
        }
    }
}

#[test]
fn a_bad_port_in_a_connection_string_is_refused() {
    for string in [
        "host=127.0.0.1 port=abc",
        "host=127.0.0.1 port=65536",
        "host=127.0.0.1 port=-1",
        "postgresql://127.0.0.1:abc/db",
    ] {
        Pglock::new()
            .flags(["--user", "u", "--database", string])
            .command(["true"])
            .run()
            .assert_refused(&["--database", "port"]);
        Pglock::new()
            .flags(["--user", "u"])
            .env("PGLOCK_DATABASE", string)
            .command(["true"])
            .run()
            .assert_refused(&["PGLOCK_DATABASE", "port"]);
    }
}

#[test]
fn of_a_list_of_hosts_the_first_that_works_is_taken() {
    let server = Server::builder().tcp().start();
    let closed = ClosedPort::new();
    let (good, bad) = (server.port(), closed.port());
    let socket = server.socket_dir().display().to_string();
    let cases: [(&str, Pglock); 6] = [
        (
            "a list of ports",
            Pglock::new().flags([
                "--host",
                "127.0.0.1,127.0.0.1",
                "--port",
                &format!("{bad},{good}"),
            ]),
        ),
        (
            "one port for all",
            Pglock::new().flags(["--host", "127.0.0.9,127.0.0.1", "--port", &good.to_string()]),
        ),
        ("variables", {
            Pglock::new()
                .env("PGLOCK_HOST", "127.0.0.1,localhost")
                .env("PGLOCK_PORT", format!("{bad},{good}"))
        }),
        (
            "a socket among them",
            Pglock::new().flags([
                "--host",
                &format!("/nonexistent,{socket}"),
                "--port",
                &good.to_string(),
            ]),
        ),
        (
            "a URI",
            Pglock::new().flags([
                "--database",
                &format!("postgresql://127.0.0.1:{bad},127.0.0.1:{good}/postgres"),
            ]),
        ),
        ("a string", {
            Pglock::new().flags([
                "--database",
                &format!("host=127.0.0.1,127.0.0.1 port={bad},{good}"),
            ])
        }),
    ];
    for (name, pglock) in cases {
        let output = pglock
            .flags(["--user", "postgres"])
            .command(["echo", name])
            .run();
        output.assert_status(0).assert_stdout(&format!("{name}\n"));
    }
}

#[test]
fn a_list_of_ports_that_does_not_fit_the_hosts_is_refused() {
    let closed = ClosedPort::new();
    let output = Pglock::new()
        .flags([
            "--host",
            "127.0.0.1",
            "--port",
            &format!("{0},{0}", closed.port()),
            "--user",
            "u",
        ])
        .command(["true"])
        .run();
    output.assert_failed(&["port numbers 2, hosts 1"]);
}

#[test]
fn the_directory_of_a_unix_socket_is_a_host() {
    let server = Server::new();
    let dir = server.socket_dir();
    for pglock in [
        Pglock::new().flags(["--host".as_ref(), dir.as_os_str()]),
        Pglock::new().env("PGLOCK_HOST", &dir),
        Pglock::new().env("PGHOST", &dir),
    ] {
        let holder = pglock.flags(["--user", "postgres"]).hold();
        let address = server.psql(&format!(
            "select client_addr is null from pg_stat_activity where pid = {}",
            server.holders(1)[0]
        ));
        assert_eq!(address, "t");
        holder.finish().assert_status(0);
    }
}

#[test]
fn an_address_spares_the_look_up_of_the_name_unless_a_stronger_source_names_the_host() {
    let fake = FakeServer::on(Ipv4Addr::LOCALHOST, false);
    let (host, port) = (fake.host(), fake.port());
    let nowhere = "no.such.host.invalid";
    let base = || Pglock::new().flags(["--user", "u", "--port", &port.to_string()]);
    for pglock in [
        base().flags(["--database", &format!("host={nowhere} hostaddr={host}")]),
        base().flags(["--database", &format!("hostaddr={host}")]),
        base().env("PGHOST", nowhere).env("PGHOSTADDR", &host),
        // The address belongs to another host than the flag's.
        base()
            .flags(["--host", &host, "--database", "hostaddr=127.0.0.9"])
            .env("PGHOSTADDR", "127.0.0.9"),
        base()
            .env("PGLOCK_HOST", &host)
            .env("PGHOSTADDR", "127.0.0.9"),
    ] {
        assert_eq!(summary(&call(&fake, &pglock)), ("u", "postgres", false));
    }
}

#[test]
fn the_password_comes_from_the_strongest_source() {
    let scratch = Scratch::new();
    let fake = FakeServer::asking_for_password();
    let file = scratch.file(
        "pgpass",
        0o600,
        format!("127.0.0.1:{}:postgres:postgres:from-file\n", fake.port()),
    );
    let base = || Pglock::at(fake.port());
    let with_file = || base().env("PGPASSFILE", &file);
    let with_libpq = || with_file().env("PGPASSWORD", "from-libpq");
    let with_string = || with_libpq().flags(["--database", "password=from-string"]);
    let cases = [
        (
            with_string().env("PGLOCK_PASS", "from-pglock"),
            "from-pglock",
        ),
        (
            with_libpq().env("PGLOCK_PASS", "from-pglock"),
            "from-pglock",
        ),
        (with_string(), "from-string"),
        (with_libpq(), "from-libpq"),
        (with_file(), "from-file"),
        (
            base().flags([
                "--database".as_ref(),
                format!("passfile={}", file.display()).as_ref() as &std::ffi::OsStr,
            ]),
            "from-file",
        ),
        // An empty variable counts as unset.
        (with_libpq().env("PGLOCK_PASS", ""), "from-libpq"),
    ];
    for (pglock, password) in cases {
        let call = call(&fake, &pglock);
        assert_eq!(
            call.password
                .as_deref()
                .map(String::from_utf8_lossy)
                .as_deref(),
            Some(password)
        );
    }
}

#[test]
fn the_time_for_connecting_comes_from_every_source() {
    let hole = BlackHole::new();
    let scratch = Scratch::new();
    let service = "[ours]\nconnect_timeout=1\n";
    let file = scratch.file("services", 0o600, service);
    let at = || Pglock::at(hole.port()).command(["true"]);
    let mut by = Vec::new();
    for (seconds, pglock) in [
        (1, at().env("PGCONNECT_TIMEOUT", "1")),
        (1, at().env("PGSERVICEFILE", &file).env("PGSERVICE", "ours")),
        (
            1,
            at().flags(["--database", "postgresql:///?connect_timeout=1"])
                .env("PGCONNECT_TIMEOUT", "3"),
        ),
        (
            2,
            at().flags(["--database", "connect_timeout=1", "--connect-timeout", "2"]),
        ),
        (
            2,
            at().flags(["--database", "connect_timeout=1"])
                .env("PGLOCK_CONNECT_TIMEOUT", "2"),
        ),
        // Without limit, but for the wait's.
        (
            2,
            at().flags(["--database", "connect_timeout=-1", "--wait", "2"]),
        ),
        (2, at().flags(["--wait", "2"]).env("PGCONNECT_TIMEOUT", "0")),
        (10, at().env("PGCONNECT_TIMEOUT", "")),
    ] {
        by.push((seconds, pglock.spawn()));
    }
    for (seconds, run) in by {
        let output = run.wait();
        output.assert_failed(&["no answer from"]);
        let said = output.stderr();
        let within = said.trim_end().rsplit("within ").next().expect("a time");
        let within: f64 = within.trim_end_matches(" s").parse().expect("a number");
        // What the start took is gone.
        let time = f64::from(seconds);
        assert!((time - 0.5..=time).contains(&within), "{}", output.report());
    }
    for wrong in ["", "soon", "1.5", "4294967296"] {
        let string = format!("connect_timeout='{wrong}'");
        let output = at().flags(["--database", &string]).run();
        output.assert_failed(&["connect_timeout is not a whole number of seconds"]);
    }
}

#[test]
fn a_variable_of_libpq_s_may_have_any_bytes() {
    let fake = FakeServer::new();
    let bytes = OsStr::from_bytes(b"caf\xe9");
    let pglock = Pglock::new()
        .env("PGHOST", fake.host())
        .env("PGPORT", fake.port().to_string())
        .env("PGUSER", bytes)
        .env("PGDATABASE", bytes);
    let call = call(&fake, &pglock);
    // As the fake server shows them.
    assert_eq!(summary(&call), ("caf\u{fffd}", "caf\u{fffd}", false));
}
