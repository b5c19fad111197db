//! What the README promises first: run, skip, wait, give up; and what each of them says.

use std::process::Command;

use crate::support::pglock::split_stamp;
use crate::support::*;

/// As in the README, but for host and port.
fn as_in_readme(server: &Server) -> Pglock {
    Pglock::new().env("PGLOCK_PASS", "secret-password").flags([
        "--user",
        "postgres",
        "--host",
        "localhost",
        "--port",
        &server.port().to_string(),
    ])
}

fn connecting(server: &Server) -> String {
    format!(
        "Connecting to PostgreSQL at postgres@localhost:{}/postgres.",
        server.port()
    )
}

#[test]
fn a_free_lock_lets_the_command_run() {
    let server = Server::builder().tcp().start();
    let output = as_in_readme(&server).command(["sleep", "0"]).run();
    output.assert_status(0).assert_stdout("").assert_log(&[
        &connecting(&server),
        "Trying to obtain lock.",
        "Lock ID 1 obtained successfully!",
        "Executing command: [sleep 0]",
        "Execution finished, exiting and cleaning up lock.",
    ]);
}

#[test]
fn a_taken_lock_skips_the_command_with_status_0() {
    let server = Server::builder().tcp().start();
    let marker = Marker::new();
    let holder = as_in_readme(&server).hold();
    let output = as_in_readme(&server).command(marker.command()).run();
    output.assert_status(0).assert_stdout("").assert_log(&[
        &connecting(&server),
        "Trying to obtain lock.",
        "Could not obtain lock 1, skipping command",
    ]);
    assert!(
        !marker.exists(),
        "the command ran without the lock\n{}",
        output.report()
    );
    holder.finish().assert_status(0);
}

#[test]
fn a_waiter_runs_after_the_holder() {
    let server = Server::builder().tcp().start();
    let holder = as_in_readme(&server).hold();
    let waiter = as_in_readme(&server)
        .flags(["--wait", "60"])
        .command(["echo", "at last"])
        .spawn();
    eventually("the waiter waits", PATIENCE, || {
        server.waiters(1).first().copied()
    });
    assert_eq!(waiter.stdout(), "");
    holder.finish().assert_status(0);
    waiter
        .wait()
        .assert_status(0)
        .assert_stdout("at last\n")
        .assert_log(&[
            &connecting(&server),
            "Obtaining lock with 60 seconds timeout..",
            "Lock ID 1 obtained successfully!",
            "Executing command: [echo at last]",
            "Execution finished, exiting and cleaning up lock.",
        ]);
}

#[test]
fn a_waiter_gives_up_with_status_0() {
    let server = Server::builder().tcp().start();
    let marker = Marker::new();
    let holder = as_in_readme(&server).hold();
    let output = as_in_readme(&server)
        .flags(["--wait", "1"])
        .command(marker.command())
        .run();
    output.assert_status(0).assert_stdout("").assert_log(&[
        &connecting(&server),
        "Obtaining lock with 1 seconds timeout..",
        "Could not obtain lock 1, skipping command",
    ]);
    assert!(
        !marker.exists(),
        "the command ran without the lock\n{}",
        output.report()
    );
    holder.finish().assert_status(0);
}

#[test]
fn the_log_names_the_lock_and_the_command() {
    let server = Server::new();
    let output = Pglock::on(&server)
        .flags(["--lockid", "4711"])
        .command(["printf", "%s ", "a", "b  c", ""])
        .run();
    let log = output.assert_status(0).assert_stdout("a b  c  ").log();
    assert!(
        log.contains(&"Lock ID 4711 obtained successfully!".to_owned()),
        "{}",
        output.report()
    );
    assert!(
        log.contains(&"Executing command: [printf %s  a b  c ]".to_owned()),
        "{}",
        output.report()
    );
    let _holder = Pglock::on(&server).flags(["--lockid", "4711"]).hold();
    let output = Pglock::on(&server)
        .flags(["--lockid", "4711"])
        .command(["true"])
        .run();
    assert_eq!(
        output.log().last().expect("a line"),
        "Could not obtain lock 4711, skipping command"
    );
}

#[test]
fn the_log_has_the_local_time() {
    let server = Server::new();
    for zone in ["UTC", "EAST-11:30", "WEST+9"] {
        let date = || {
            let output = Command::new("date")
                .arg("+%Y/%m/%d %H:%M:%S")
                .env("TZ", zone)
                .output()
                .expect("start date");
            String::from_utf8(output.stdout)
                .expect("a date")
                .trim()
                .to_owned()
        };
        let before = date();
        let output = Pglock::on(&server).env("TZ", zone).command(["true"]).run();
        let after = date();
        assert!(!output.stderr.is_empty());
        for line in output.assert_status(0).stderr().lines() {
            let (stamp, _) = split_stamp(line).unwrap_or_else(|| panic!("no time stamp: {line}"));
            assert!(
                (before.as_str()..=after.as_str()).contains(&stamp),
                "{zone}: {before} .. {after}: {line}"
            );
        }
    }
}

#[test]
fn the_conflict_exit_code_is_the_status_of_a_skip() {
    let server = Server::new();
    let holder = Pglock::on(&server).hold();
    for code in [0, 1, 9, 255] {
        for flags in [&[][..], &["--wait", "1"]] {
            let given = Pglock::on(&server)
                .flags(["--conflict-exit-code", &code.to_string()])
                .flags(flags);
            given.command(["false"]).run().assert_status(code);
            if code == 9 {
                let named = Pglock::on(&server)
                    .env("PGLOCK_CONFLICT_EXIT_CODE", "9")
                    .flags(flags);
                named.command(["false"]).run().assert_status(9);
            }
        }
    }
    holder.finish().assert_status(0);
    // A command that runs keeps its own status.
    Pglock::on(&server)
        .flags(["--conflict-exit-code", "9"])
        .sh("exit 3")
        .run()
        .assert_status(3);
}

#[test]
fn quiet_says_errors_only() {
    let server = Server::new();
    for quiet in [
        Pglock::on(&server).flag("--quiet"),
        Pglock::on(&server).env("PGLOCK_QUIET", "Yes"),
    ] {
        let output = quiet.command(["echo", "a"]).run();
        output.assert_status(0).assert_stdout("a\n");
        assert_eq!(output.stderr(), "", "{}", output.report());
    }
    let _holder = Pglock::on(&server).hold();
    let quiet = || {
        Pglock::on(&server)
            .flag("--quiet")
            .flags(["--conflict-exit-code", "9"])
            .command(["true"])
    };
    for skip in [quiet(), quiet().flags(["--wait", "1"])] {
        let output = skip.run();
        assert_eq!(output.assert_status(9).stderr(), "", "{}", output.report());
    }
    let closed = ClosedPort::new();
    let output = Pglock::at(closed.port())
        .flag("--quiet")
        .command(["true"])
        .run();
    output.assert_refused(&[&closed.port().to_string()]);
}

#[test]
fn verbose_also_says_who_and_what() {
    let server = Server::new();
    for verbose in [
        Pglock::on(&server).flag("--verbose"),
        Pglock::on(&server).env("PGLOCK_VERBOSE", "1"),
    ] {
        let holder = verbose.clone().hold();
        let backend = server.holders(1)[0].to_string();
        let version = server.psql("select split_part(current_setting('server_version'), ' ', 1)");
        for word in [&backend, &version] {
            assert!(
                holder.stderr().contains(word),
                "{word} is not in {}",
                holder.stderr()
            );
        }
        // On a skip: who holds the lock.
        let output = verbose.command(["true"]).run();
        assert!(
            output.assert_status(0).stderr().contains(&backend),
            "{backend} is not there\n{}",
            output.report()
        );
        // All of the ordinary lines are there, in their order.
        let log = holder.finish().assert_status(0).log();
        let mut lines = log.iter();
        for line in [
            "Connecting to",
            "Trying to obtain",
            "Lock ID 1 obtained",
            "Executing command",
            "Execution finished",
        ] {
            assert!(
                lines.any(|candidate| candidate.starts_with(line)),
                "{line}: {log:#?}"
            );
        }
    }
}
