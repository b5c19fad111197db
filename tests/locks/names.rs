//! Locks that have a name: any text, and the same lock that SQL takes.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::Duration;

use crate::support::*;

/// Names that an encoding of one byte a character has too.
fn names() -> Vec<String> {
    let mut names = [
        "nightly-backup",
        "1",
        "-1",
        "--lockid",
        " ",
        " a  b ",
        "Grüße, señor",
        "it's",
        "''",
        "\"quoted\"",
        "back\\slash\\",
        "\\'; select 1; --",
        "' || pg_sleep(1000) || '",
        "$$",
        "$do$ $1 $$; end $$",
        ":name :'name' %s %I %%",
        "E'\\x41'",
        "a\nb",
        "\r\n\ttabs and lines\n",
        "\u{1}\u{7f}\u{1b}[31m",
        "/* comment",
        "now()",
    ]
    .map(str::to_owned)
    .to_vec();
    // One argument may have 128 KiB.
    names.push("x".repeat(100_000));
    names.push("é".repeat(50_000));
    names.push("'\\".repeat(30_000));
    names
}

/// A literal, if backslashes are ordinary characters, as they are by default.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A session that speaks UTF-8, whatever its database has.
fn session_in(server: &Server, database: &str) -> Session {
    let mut session = server.session_in(database);
    session.exec("set client_encoding = 'UTF8'");
    session
}

fn named(server: &Server, database: &str, name: &str) -> Pglock {
    Pglock::on(server)
        .env("PGLOCK_DATABASE", database)
        .flag(format!("--lockname={name}"))
        .flags(["--conflict-exit-code", "9"])
}

/// pglock and SQL exclude each other by this name, and by no other.
#[track_caller]
fn assert_same_lock(server: &Server, database: &str, name: &str) {
    let mut session = session_in(server, database);
    let key = format!("hashtextextended({}, 0)", literal(name));

    // SQL takes it, by the very text that the manual has.
    session.exec(&format!("select pg_advisory_lock({key})"));
    let marker = Marker::new();
    let output = named(server, database, name)
        .command(marker.command())
        .run();
    output.assert_status(9);
    assert!(!marker.exists(), "{}", output.report());
    // Each line of the log stays a line.
    assert!(output.log().len() == 3, "{}", output.report());
    let other = named(server, database, &format!("{name}?"));
    other.command(marker.command()).run().assert_status(0);
    assert!(marker.exists());
    assert_eq!(
        session.exec(&format!("select pg_advisory_unlock({key})")),
        "t"
    );

    // pglock takes it.
    let holder = named(server, database, name).hold();
    let try_it = format!("select pg_try_advisory_lock({key})");
    assert_eq!(session.exec(&try_it), "f", "{database}: {name:.40?}");
    let output = holder.finish();
    output.assert_status(0);
    assert!(output.log().len() == 5, "{}", output.report());
    assert_eq!(session.exec(&try_it), "t", "{database}: {name:.40?}");
}

#[test]
fn a_name_is_the_lock_that_sql_takes() {
    let server = Server::new();
    let mut names = names();
    for name in ["日本語 🐘", "\u{2028}\u{85}\u{feff}", "\u{10ffff}"] {
        names.push(name.to_owned());
    }
    names.push("🐘".repeat(25_000));
    for name in names {
        assert_same_lock(&server, "postgres", &name);
    }
}

#[test]
fn a_name_is_the_lock_that_sql_takes_whatever_encoding_the_database_has() {
    let server = Server::new();
    thread::scope(|scope| {
        for encoding in ["LATIN1", "SQL_ASCII"] {
            let server = &server;
            scope.spawn(move || {
                server.psql(&format!(
                    "create database {encoding} template template0 encoding '{encoding}'"
                ));
                let database = encoding.to_lowercase();
                for name in names() {
                    assert_same_lock(server, &database, &name);
                }
            });
        }
    });
    // Bytes are bytes there.
    assert_same_lock(&server, "sql_ascii", "日本語 🐘");
}

#[test]
fn a_name_that_the_database_s_encoding_does_not_have_is_refused() {
    let server = Server::new();
    server.psql("create database latin1 template template0 encoding 'LATIN1'");
    let marker = Marker::new();
    for flags in [&[][..], &["--wait", "60"], &["--block"], &["--slots", "3"]] {
        let output = named(&server, "latin1", "日本語")
            .flags(flags)
            .command(marker.command())
            .run();
        output.assert_failed(&["LATIN1"]);
        assert!(!marker.exists(), "{}", output.report());
    }
    let output = named(&server, "latin1", "日本語").flag("--status").run();
    output.assert_refused(&["LATIN1"]);
}

#[test]
fn the_key_of_a_name_is_its_hash() {
    let server = Server::new();
    let mut signs = [false; 2];
    for name in ["nightly-backup", "a", "b", "c", "d", "e"] {
        let key: i64 = server
            .psql(&format!("select hashtextextended('{name}', 0)"))
            .parse()
            .expect("a bigint");
        signs[usize::from(key < 0)] = true;
        let holder = named(&server, "postgres", name).hold();
        assert_eq!(server.holders(key).len(), 1, "{name}");
        let waiter = named(&server, "postgres", name)
            .flags(["--wait", "60"])
            .command(["true"])
            .spawn();
        eventually("the waiter waits", PATIENCE, || {
            server.waiters(key).first().copied()
        });
        holder.finish().assert_status(0);
        waiter.wait().assert_status(0);
        assert_eq!(server.holders(key), []);
    }
    assert_eq!(signs, [true; 2], "the keys should have both signs");
}

#[test]
fn the_name_of_a_number_is_not_that_number() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(7);
    named(&server, "postgres", "7")
        .command(["true"])
        .run()
        .assert_status(0);
}

#[test]
fn the_log_has_the_name() {
    let server = Server::new();
    let output = named(&server, "postgres", "nightly-backup")
        .command(["true"])
        .run();
    let log = output.assert_status(0).log();
    assert_eq!(log[2], "Lock nightly-backup obtained successfully!");
    let _holder = named(&server, "postgres", "nightly-backup").hold();
    let output = named(&server, "postgres", "nightly-backup")
        .command(["true"])
        .run();
    let log = output.assert_status(9).log();
    assert_eq!(
        log[2],
        "Could not obtain lock nightly-backup, skipping command"
    );
}

#[test]
fn what_the_eye_would_miss_is_a_question_mark_in_the_log() {
    let server = Server::new();
    let unseen = "a\u{202e}b\u{2066}c\u{200b}d\u{e0041}e\u{ad}f\u{feff}g";
    let shown = "a?b?c?d?e?f?g";
    let pglock = || named(&server, "postgres", unseen);
    let output = pglock().command(["echo", unseen]).run();
    output
        .assert_status(0)
        .assert_stdout(&format!("{unseen}\n"));
    assert_eq!(
        output.log()[2..4],
        [
            format!("Lock {shown} obtained successfully!"),
            format!("Executing command: [echo {shown}]")
        ]
    );
    let _holder = pglock().hold();
    let output = pglock().command(["true"]).run();
    let line = format!("Could not obtain lock {shown}, skipping command");
    assert_eq!(output.assert_status(9).log()[2], line);
    // Ordinary text stays as it is, in whatever script.
    let name = "Grüße שָׁלוֹם हिन्दी ไทย 日本語　🐘";
    let output = named(&server, "postgres", name).command(["true"]).run();
    let line = format!("Lock {name} obtained successfully!");
    assert_eq!(output.assert_status(0).log()[2], line);
}

#[test]
fn no_line_of_the_log_is_longer_than_2000_bytes() {
    let server = Server::new();
    let name = "é".repeat(5_000);
    let words: Vec<String> = ["true".to_owned()]
        .into_iter()
        .chain((0..5_000).map(|number| number.to_string()))
        .collect();
    let output = named(&server, "postgres", &name).command(&words).run();
    let text = output.assert_status(0).stderr();
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    for (place, begins) in [(2, "Lock éé"), (3, "Executing command: [true 0 1 2 ")] {
        let line = lines[place];
        assert!(line.contains(begins), "{line}");
        assert!(line.ends_with("...\n"), "{line}");
        assert!((1990..=2000).contains(&line.len()), "{}", line.len());
    }
    // What fits is not cut.
    let word = "x".repeat(1_900);
    let output = named(&server, "postgres", "a")
        .command(["true", &word])
        .run();
    let line = format!("Executing command: [true {word}]");
    assert_eq!(output.assert_status(0).log()[3], line);
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing_however_long_the_name_is() {
    let server = Server::new();
    // Kept open, and not read.
    let (_read, write) = nix::unistd::pipe().expect("a pipe");
    for length in [5_000, 100_000] {
        let output = named(&server, "postgres", &"x".repeat(length))
            .descriptor(File::from(write.try_clone().expect("dup")), 2)
            .command(["echo", "runs"])
            .limit(Duration::from_secs(10))
            .run();
        output.assert_status(0).assert_stdout("runs\n");
    }
}

#[test]
fn settings_of_the_role_do_not_change_what_a_name_means() {
    let server = Server::new();
    server.psql(
        "create role odd login; create schema odd authorization odd;
         create function odd.hashtextextended(text, bigint) returns bigint language sql as 'select 0::bigint';
         create function odd.pg_try_advisory_lock(bigint) returns boolean language sql as 'select true';
         create function odd.pg_advisory_lock(bigint) returns void language sql as '';
         create function odd.set_config(text, text, boolean) returns text language sql as 'select $2';
         grant all on all functions in schema odd to odd;
         alter role odd set search_path = odd, pg_catalog;
         alter role odd set standard_conforming_strings = off;
         alter role odd set escape_string_warning = on;
         alter role odd set client_encoding = 'LATIN1';
         alter role odd set quote_all_identifiers = on",
    );
    for name in ["a", "é", "\\x41\\'", "it''s \\\\ $$"] {
        let mut session = session_in(&server, "postgres");
        let key = format!("hashtextextended({}, 0)", literal(name));
        session.exec(&format!("select pg_advisory_lock({key})"));
        let odd = || named(&server, "postgres", name).env("PGLOCK_USER", "odd");
        odd().command(["true"]).run().assert_status(9);
        let waiter = odd().flags(["--wait", "60"]).command(["true"]).spawn();
        eventually("the waiter waits", PATIENCE, || {
            (server
                .psql("select count(*) from pg_locks where locktype = 'advisory' and not granted")
                == "1")
                .then_some(())
        });
        session.exec(&format!("select pg_advisory_unlock({key})"));
        waiter.wait().assert_status(0);
        let holder = odd().hold();
        assert_eq!(
            session.exec(&format!("select pg_try_advisory_lock({key})")),
            "f",
            "{name:?}"
        );
        holder.finish().assert_status(0);
    }
}

#[test]
fn a_name_is_not_cut_and_not_folded() {
    let server = Server::new();
    let long = "x".repeat(100_000);
    let _holders: Vec<Running> = ["name", "composed \u{e9}", &long]
        .map(|name| named(&server, "postgres", name).hold())
        .into();
    for other in [
        "Name",
        "name ",
        " name",
        "name\n",
        "composed e\u{301}",
        &long[1..],
    ] {
        named(&server, "postgres", other)
            .command(["true"])
            .run()
            .assert_status(0);
    }
    for same in ["name", "composed \u{e9}", &long] {
        let output = named(&server, "postgres", same).command(["true"]).run();
        output.assert_status(9);
    }
}

#[test]
fn a_name_that_is_not_utf_8_is_refused() {
    let witness = Witness::new();
    let marker = Marker::new();
    for bytes in [&b"caf\xe9"[..], b"\xff", b"\xed\xa0\x80", b"\xc3"] {
        let name = OsStr::from_bytes(bytes);
        let given = || Pglock::at(witness.port()).command(marker.command());
        for output in [
            given().flag("--lockname").flag(name).run(),
            given().env("PGLOCK_LOCKNAME", name).run(),
        ] {
            output.assert_refused(&["UTF-8"]);
            let named = ["--lockname", "PGLOCK_LOCKNAME"];
            assert!(
                named.iter().any(|flag| output.stderr().contains(flag)),
                "{}",
                output.report()
            );
        }
    }
    let empty = Pglock::at(witness.port()).flag("--lockname=");
    empty
        .command(marker.command())
        .run()
        .assert_refused(&["--lockname", "empty"]);
    assert!(!witness.was_disturbed());
    assert!(!marker.exists());
}

#[test]
fn a_name_and_a_number_exclude_each_other() {
    let witness = Witness::new();
    let given = || Pglock::at(witness.port()).command(["true"]);
    let both = [
        (
            given().flags(["--lockname", "a", "--lockid", "1"]),
            ["--lockname", "--lockid"],
        ),
        (
            given().flags(["--lockid=1", "--lockname=a"]),
            ["--lockname", "--lockid"],
        ),
        (
            given()
                .env("PGLOCK_LOCKNAME", "a")
                .env("PGLOCK_LOCKID", "1"),
            ["PGLOCK_LOCKNAME", "PGLOCK_LOCKID"],
        ),
    ];
    for (pglock, words) in both {
        pglock.run().assert_refused(&words);
    }
    assert!(!witness.was_disturbed());

    // A flag stands above the variable of the other.
    let server = Server::new();
    let mut session = server.session();
    session.hold(7);
    let mixed = || Pglock::on(&server).flags(["--conflict-exit-code", "9"]);
    let by_number = mixed().env("PGLOCK_LOCKNAME", "a").flags(["--lockid", "7"]);
    by_number.command(["true"]).run().assert_status(9);
    let by_name = mixed().env("PGLOCK_LOCKID", "7").flags(["--lockname", "a"]);
    by_name.command(["true"]).run().assert_status(0);
    session.exec("select pg_advisory_lock(hashtextextended('a', 0))");
    let by_name = mixed().env("PGLOCK_LOCKID", "7").flags(["--lockname", "a"]);
    by_name.command(["true"]).run().assert_status(9);
    let by_variable = mixed().env("PGLOCK_LOCKNAME", "a");
    by_variable.command(["true"]).run().assert_status(9);
    let empty = mixed().env("PGLOCK_LOCKNAME", "").env("PGLOCK_LOCKID", "7");
    empty.command(["true"]).run().assert_status(9);
}
