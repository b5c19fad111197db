//! Bad input is refused before anything is connected, in one line that names the culprit.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::support::*;

/// A pglock that would give itself away if it connected or ran its command.
struct Trial {
    witness: Witness,
    marker: Marker,
}

impl Trial {
    fn new() -> Trial {
        Trial {
            witness: Witness::new(),
            marker: Marker::new(),
        }
    }

    /// One that only the test's own flags and variables can stop.
    fn pglock(&self) -> Pglock {
        Pglock::at(self.witness.port()).command(self.marker.command())
    }

    #[track_caller]
    fn assert_refused(&self, pglock: &Pglock, words: &[&str]) {
        let output = pglock.run();
        output.assert_refused(words);
        assert!(
            !self.witness.was_disturbed(),
            "it connected\n{}",
            output.report()
        );
        assert!(
            !self.marker.exists(),
            "the command ran\n{}",
            output.report()
        );
    }
}

fn variable(flag: &str) -> String {
    format!(
        "PGLOCK_{}",
        flag.trim_start_matches('-')
            .replace('-', "_")
            .to_uppercase()
    )
}

const NUMBERS: [(&str, &str); 4] = [
    ("--lockid", "4294967296"),
    ("--wait", "4294967296"),
    ("--conflict-exit-code", "256"),
    ("--connect-timeout", "4294967296"),
];

const TEXTS: [&str; 4] = ["--database", "--host", "--user", "--sslmode"];

const SWITCHES: [&str; 3] = ["--block", "--quiet", "--verbose"];

/// All flags that take a value.
fn with_value() -> impl Iterator<Item = &'static str> {
    NUMBERS
        .iter()
        .map(|(flag, _)| *flag)
        .chain(TEXTS)
        .chain(["--port"])
}

#[test]
fn a_number_that_is_none_is_refused() {
    let trial = Trial::new();
    let ports = ("--port", "65536");
    for (flag, too_large) in NUMBERS.into_iter().chain([ports]) {
        for value in [
            "abc",
            "-1",
            too_large,
            "99999999999999999999999",
            "1.5",
            "1e3",
            "0x10",
            "7 7",
            "--wait",
            "\u{0661}",
        ] {
            trial.assert_refused(&trial.pglock().flags([flag, value]), &[flag, value]);
            trial.assert_refused(
                &trial.pglock().flag(format!("{flag}={value}")),
                &[flag, value],
            );
            let name = variable(flag);
            trial.assert_refused(&trial.pglock().env(&name, value), &[&name, value]);
        }
    }
}

const DURATIONS: [&str; 4] = ["--wait", "--ttl", "--grace", "--connect-timeout"];

#[test]
fn a_duration_has_seconds_minutes_or_hours_and_the_log_says_seconds() {
    let server = Server::new();
    for (given, seconds) in [("90", 90), ("90s", 90), ("2m", 120), ("1h", 3600)] {
        let line = format!("Obtaining lock with {seconds} seconds timeout..");
        let pglock = Pglock::on(&server).command(["true"]);
        for pglock in [
            pglock.clone().flags(["--wait", given]),
            pglock.env("PGLOCK_WAIT", given),
        ] {
            let output = pglock.run();
            output.assert_status(0);
            assert!(output.log().contains(&line), "{}", output.report());
        }
        let pglock = Pglock::on(&server).flags(["--verbose", "--connect-timeout", given]);
        let output = pglock
            .flags(["--ttl", given, "--grace", "1s"])
            .command(["true"])
            .run();
        output.assert_status(0);
        let lease = format!("with a lease of {seconds} s.");
        assert!(output.stderr().contains(&lease), "{}", output.report());
    }
    let trial = Trial::new();
    let ttl = trial.pglock().flags(["--ttl", "1m", "--grace", "1h"]);
    trial.assert_refused(&ttl, &["--grace 3600", "--ttl 60", "at most --grace 38"]);
}

#[test]
fn of_a_duration_that_is_none_it_is_said_what_is_meant() {
    let trial = Trial::new();
    for flag in DURATIONS {
        for (value, words) in [
            ("1.5", &["whole number of seconds", "did you mean 2s?"][..]),
            ("10 s", &["whole number of seconds", "did you mean 10s?"]),
            ("1h30m", &["did you mean 90m?"]),
            ("-5s", &["whole number of seconds"]),
            ("71582789m", &["more than 4294967295 seconds"]),
        ] {
            let words: Vec<&str> = words.iter().copied().chain([flag, value]).collect();
            trial.assert_refused(&trial.pglock().flags([flag, value]), &words);
            let name = variable(flag);
            let words: Vec<&str> = words
                .iter()
                .map(|w| if *w == flag { &name } else { *w })
                .collect();
            trial.assert_refused(&trial.pglock().env(&name, value), &words);
        }
    }
}

#[test]
fn a_bad_list_of_ports_is_refused() {
    let trial = Trial::new();
    for (value, shown) in [
        ("5432,abc", "5432,abc"),
        ("5432,65536", "5432,65536"),
        ("5432 5433", "5432 5433"),
        // As a part of a connection string it might hold a password.
        ("5432;5433", "..."),
    ] {
        trial.assert_refused(&trial.pglock().flags(["--port", value]), &["--port", shown]);
        trial.assert_refused(
            &trial.pglock().env("PGLOCK_PORT", value),
            &["PGLOCK_PORT", shown],
        );
    }
}

#[test]
fn an_unknown_ssl_mode_is_refused() {
    let trial = Trial::new();
    for value in ["sometimes", "verify", "true"] {
        trial.assert_refused(
            &trial.pglock().flags(["--sslmode", value]),
            &["--sslmode", value],
        );
        trial.assert_refused(
            &trial.pglock().env("PGLOCK_SSLMODE", value),
            &["PGLOCK_SSLMODE", value],
        );
    }
}

#[test]
fn an_empty_value_is_refused() {
    let trial = Trial::new();
    for flag in with_value() {
        trial.assert_refused(&trial.pglock().flags([flag, ""]), &[flag]);
        trial.assert_refused(&trial.pglock().flag(format!("{flag}=")), &[flag]);
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let server = Server::new();
    let mut pglock = Pglock::on(&server).flags(["--database", "postgres", "--user", "postgres"]);
    pglock = pglock
        .flags(["--host".as_ref(), server.socket_dir().as_os_str()])
        .flags(["--port", "5432"]);
    for flag in with_value().chain(SWITCHES) {
        pglock = pglock.env(variable(flag), "");
    }
    let output = pglock.command(["echo", "ran"]).run();
    output.assert_status(0).assert_stdout("ran\n");
    assert_eq!(
        output.log()[2],
        "Lock ID 1 obtained successfully!",
        "{}",
        output.report()
    );
}

#[test]
fn a_missing_value_is_refused() {
    let trial = Trial::new();
    for flag in with_value() {
        trial.assert_refused(&Pglock::at(trial.witness.port()).flag(flag), &[flag]);
    }
    // The command word is taken for the value, and is none.
    let output = Pglock::at(trial.witness.port())
        .flags(["--wait", "sleep", "2"])
        .run();
    output.assert_refused(&["--wait", "sleep"]);
}

#[test]
fn the_last_of_two_values_wins() {
    let server = Server::new();
    let holder = Pglock::on(&server)
        .flags(["--lockid", "3", "--lockid=4"])
        .hold();
    assert_eq!((server.holders(3).len(), server.holders(4).len()), (0, 1));
    let skip = Pglock::on(&server).flags([
        "--lockid",
        "4",
        "--conflict-exit-code",
        "8",
        "--conflict-exit-code",
        "9",
    ]);
    skip.clone().command(["true"]).run().assert_status(9);
    let waits = skip
        .flags(["--wait", "0", "--wait", "1"])
        .command(["true"])
        .run();
    assert!(
        waits
            .assert_status(9)
            .stderr()
            .contains("with 1 seconds timeout"),
        "{}",
        waits.report()
    );
    holder.finish().assert_status(0);

    let fake = FakeServer::new();
    let output = Pglock::new()
        .flags([
            "--host",
            "127.0.0.9",
            "--host",
            "127.0.0.1",
            "--port",
            "1",
            "--port",
            &fake.port().to_string(),
        ])
        .flags([
            "--user",
            "one",
            "--user",
            "two",
            "--database",
            "three",
            "--database",
            "four",
        ])
        .flags([
            "--sslmode",
            "require",
            "--sslmode",
            "disable",
            "--connect-timeout",
            "1",
            "--connect-timeout",
            "20",
        ])
        .command(["true"])
        .run();
    output.assert_failed(&[]);
    let calls = fake.calls();
    let call = calls
        .first()
        .unwrap_or_else(|| panic!("no call\n{}", output.report()));
    assert_eq!(
        (
            call.parameters["user"].as_str(),
            call.parameters["database"].as_str(),
            call.tls
        ),
        ("two", "four", false)
    );
}

#[test]
fn an_unknown_flag_is_refused() {
    let trial = Trial::new();
    for flag in [
        "--bogus",
        "--lock",
        "--lockid1",
        "--LOCKID",
        "-x",
        "--bogus=7",
    ] {
        let name = flag.split('=').next().expect("a name");
        trial.assert_refused(&trial.pglock().flag(flag), &[name]);
    }
}

#[test]
fn an_unknown_flag_is_refused_and_the_likely_one_named() {
    let trial = Trial::new();
    for (given, words) in [
        // psql
        (&["-U", "ops"][..], &["-U", "--user"][..]),
        (&["-p", "5432"], &["-p", "--port"]),
        (&["-p5432"], &["-p", "--port"]),
        (&["-d", "app"], &["-d", "--database"]),
        (&["-W"], &["-W", "PGLOCK_PASS"]),
        (&["--dbname", "app"], &["--dbname", "--database"]),
        (&["--username=ops"], &["--username", "--user"]),
        (&["--password=hunter2"], &["--password", "PGLOCK_PASS"]),
        // flock and consul
        (&["-w", "5"], &["-w", "--wait"]),
        (&["-n"], &["-n", "does not wait", "--slots"]),
        (&["-n=3"], &["-n", "--slots"]),
        (&["-E", "75"], &["-E", "--conflict-exit-code"]),
        (&["-c", "true"], &["-c", "sh -c"]),
        (&["-s"], &["-s", "--shared"]),
        (&["--timeout", "5"], &["--timeout", "--wait"]),
        (&["--shell"], &["--shell", "sh -c"]),
        (&["--name", "x"], &["--name", "--lockname"]),
        // A long flag with one dash.
        (&["-quiet"], &["-quiet", "did you mean --quiet?"]),
        (&["-wait", "5"], &["-wait", "did you mean --wait?"]),
        (&["-host", "db"], &["-host", "did you mean --host?"]),
        // Slips of the finger.
        (&["--wiat", "5"], &["--wiat", "did you mean --wait?"]),
        (&["--lock-id=7"], &["--lock-id", "did you mean --lockid?"]),
        (&["--LOCKID", "7"], &["--LOCKID", "did you mean --lockid?"]),
        (&["--verbos"], &["--verbos", "did you mean --verbose?"]),
        (&["--bogus"], &["--bogus", "see pglock --help"]),
    ] {
        trial.assert_refused(&trial.pglock().flags(given), words);
    }
    // What stands right behind a letter is no name, and may be a password.
    for given in ["-phunter2", "-Whunter2", "--password=hunter2", "-hhunter2"] {
        let output = trial.pglock().flag(given).run();
        output
            .assert_refused(&[&given[..2]])
            .assert_nowhere("hunter2");
    }
}

#[test]
fn no_job_is_taken_for_a_question() {
    let trial = Trial::new();
    for given in [
        &["-h"][..],
        &["--help"],
        &["-V"],
        &["--version"],
        &["--generate", "bash"],
        &["--wait", "5", "-h"],
        &["-h", "--wait", "5"],
        &["-h", "--"],
    ] {
        trial.assert_refused(&trial.pglock().flags(given), &["runs no command"]);
    }
    // As psql would be called.
    let pglock = Pglock::at(trial.witness.port());
    let psql = pglock.flags(["-h", "db", "-U", "ops"]);
    trial.assert_refused(
        &psql.command(trial.marker.command()),
        &["-h", "\"db\"", "--host"],
    );
    for given in [
        &["-U", "ops", "-h", "db"][..],
        &["-h", "-U", "ops"],
        &["-hdb"],
    ] {
        trial.assert_refused(&trial.pglock().flags(given), &["unknown flag"]);
    }
}

#[test]
fn a_variable_that_looks_like_a_known_one_is_refused_and_the_known_one_named() {
    let trial = Trial::new();
    for (name, meant) in [
        ("PGLOCK_WIAT", "did you mean PGLOCK_WAIT?"),
        ("PGLOCK_LOCKD", "did you mean PGLOCK_LOCKID?"),
        ("PGLOCK_LOCK_ID", "did you mean PGLOCK_LOCKID?"),
        (
            "PGLOCK_CONFLICTEXITCODE",
            "did you mean PGLOCK_CONFLICT_EXIT_CODE?",
        ),
        ("PGLOCK_wait", "did you mean PGLOCK_WAIT?"),
        ("PGLOCK_DBNAME", "did you mean PGLOCK_DATABASE?"),
        ("PGLOCK_PASSWORD", "did you mean PGLOCK_PASS?"),
    ] {
        let given = trial.pglock().env(name, "hunter2");
        trial.assert_refused(&given, &[&format!("unknown variable {name}: {meant}")]);
        given.run().assert_nowhere("hunter2");
        // --status looks for another lock, too.
        Pglock::at(trial.witness.port())
            .env(name, "hunter2")
            .flag("--status")
            .run()
            .assert_refused(&[name]);
    }
    assert!(!trial.witness.was_disturbed());
}

#[test]
fn variables_that_others_have_set_are_passed_over() {
    let server = Server::builder().tcp().start();
    let others = [
        ("PGLOCK_PORT", "tcp://10.0.0.1:5432"),
        ("PGLOCK_PORT_5432_TCP", "tcp://10.0.0.1:5432"),
        ("PGLOCK_PORT_5432_TCP_ADDR", "10.0.0.1"),
        ("PGLOCK_SERVICE_HOST", "10.0.0.1"),
        ("PGLOCK_SERVICE_PORT", "5432"),
        ("PGLOCK_SHA1SUM", "0"),
        ("PGLOCK_URL", "https://example.org/pglock"),
        ("PGLOCK_VERSION", "1"),
    ];
    let port = server.port().to_string();
    let mut pglock = Pglock::new()
        .env("PGLOCK_HOST", "127.0.0.1")
        .env("PGLOCK_USER", "postgres")
        .env("PGPORT", &port);
    for (name, value) in others {
        pglock = pglock.env(name, value);
    }
    let status = pglock.clone().flag("--status");
    let pglock = pglock.command(["sh", "-c", "echo $PGLOCK_URL $PGLOCK_PORT"]);
    let output = pglock.run();
    // The command gets them as it would without pglock.
    output
        .assert_status(0)
        .assert_stdout("https://example.org/pglock tcp://10.0.0.1:5432\n");
    assert_eq!(output.log().len(), 5, "{}", output.report());
    // Who wants to know is told, without the values.
    let line = others.map(|(name, _)| name).join(", ");
    let line = format!("Passed over, for they are not pglock's: {line}.");
    let output = pglock.flag("--verbose").run();
    assert_eq!(output.assert_status(0).log()[0], line);
    assert!(!output.stderr().contains("10.0.0.1"), "{}", output.report());
    let output = status.flag("--verbose").run();
    assert_eq!(output.assert_status(0).log(), [line]);
    // A flag speaks all the same.
    let closed = ClosedPort::new().port().to_string();
    let flagged = Pglock::at(1).env("PGLOCK_PORT", "tcp://10.0.0.1:5432");
    let output = flagged.flags(["--port", &closed]).command(["true"]).run();
    output.assert_failed(&[&closed]);
}

#[test]
fn variables_that_are_for_the_command_are_ignored() {
    let server = Server::new();
    for name in [
        "PGLOCK_LOCK_HELD",
        "PGLOCK_TOKEN",
        "PGLOCK_HELP",
        "PGLOCK_VERSION",
    ] {
        let output = Pglock::on(&server)
            .env(name, "nonsense")
            .command(["echo", "ran"])
            .run();
        output.assert_status(0).assert_stdout("ran\n");
    }
    // Neither do other programs' variables matter.
    for name in ["PGLOCKID", "pglock_wait", "PGLOCKER_WAIT"] {
        Pglock::on(&server)
            .env(name, "nonsense")
            .command(["true"])
            .run()
            .assert_status(0);
    }
}

#[test]
fn a_switch_takes_no_value_on_the_command_line() {
    let trial = Trial::new();
    for flag in SWITCHES {
        trial.assert_refused(&trial.pglock().flag(format!("{flag}=true")), &[flag]);
    }
}

#[test]
fn a_switch_in_the_environment_is_true_or_false() {
    let trial = Trial::new();
    for flag in SWITCHES {
        for value in ["maybe", "2", "tru", "on"] {
            let name = variable(flag);
            trial.assert_refused(&trial.pglock().env(&name, value), &[&name, value]);
        }
    }
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let trial = Trial::new();
    let bad = OsStr::from_bytes(b"a\xffb");
    for flag in with_value() {
        trial.assert_refused(&trial.pglock().flags([OsStr::new(flag), bad]), &[flag]);
        let mut glued = OsString::from(format!("{flag}="));
        glued.push(bad);
        trial.assert_refused(&trial.pglock().flag(glued), &[flag]);
        let name = variable(flag);
        trial.assert_refused(&trial.pglock().env(&name, bad), &[&name]);
    }
    for flag in SWITCHES {
        let name = variable(flag);
        trial.assert_refused(&trial.pglock().env(&name, bad), &[&name]);
    }
    trial.assert_refused(
        &trial.pglock().flag(OsStr::from_bytes(b"--a\xffb")),
        &["--a"],
    );
    trial.assert_refused(
        &trial
            .pglock()
            .env(OsStr::from_bytes(b"PGLOCK_WAI\xff"), "1"),
        &["PGLOCK_WAI", "did you mean PGLOCK_WAIT?"],
    );
}

#[test]
fn a_value_with_a_line_break_is_refused_in_one_line() {
    let trial = Trial::new();
    for value in ["1\n2", "1\r2", "\n"] {
        trial.assert_refused(&trial.pglock().flags(["--lockid", value]), &["--lockid"]);
        trial.assert_refused(
            &trial.pglock().env("PGLOCK_LOCKID", value),
            &["PGLOCK_LOCKID"],
        );
    }
    trial.assert_refused(&trial.pglock().flag("--bo\ngus"), &["--bo"]);
    // Nor does a value get at the terminal.
    let output = trial.pglock().flags(["--lockid", "\x1b[31m7"]).run();
    output.assert_refused(&["--lockid"]).assert_nowhere("\x1b");
}

#[test]
fn no_command_is_refused() {
    let trial = Trial::new();
    for flags in [&[][..], &["--"], &["--lockid", "7"], &["--wait=5", "--"]] {
        trial.assert_refused(&Pglock::at(trial.witness.port()).flags(flags), &["command"]);
    }
}

#[test]
fn flags_that_exclude_each_other_are_refused() {
    let trial = Trial::new();
    for (one, other) in [("--block", "--wait"), ("--quiet", "--verbose")] {
        let value = if other == "--wait" { "5" } else { "true" };
        let flags: &[&str] = if other == "--wait" {
            &[one, other, value]
        } else {
            &[one, other]
        };
        trial.assert_refused(&trial.pglock().flags(flags), &[one, other]);
        let (one, other) = (variable(one), variable(other));
        trial.assert_refused(
            &trial.pglock().env(&one, "true").env(&other, value),
            &[&one, &other],
        );
    }
    // A switch that is off excludes nothing.
    let server = Server::new();
    let output = Pglock::on(&server)
        .env("PGLOCK_BLOCK", "false")
        .flags(["--wait", "5"])
        .command(["true"])
        .run();
    output.assert_status(0);
}
