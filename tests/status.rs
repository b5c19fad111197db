//! `--status`, and who is said to hold a lock that was not obtained.

use crate::support::*;

fn status(server: &Server, flags: &[&str]) -> Output {
    Pglock::on(server).flag("--status").flags(flags).run()
}

/// The lines of the table, each as its first words and the rest.
fn rows(output: &Output) -> Vec<Vec<String>> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    output.stdout().lines().map(words).collect()
}

#[test]
fn nobody_is_free() {
    let server = Server::new();
    for flags in [
        &[][..],
        &["--lockid", "7"],
        &["--lockname", "n"],
        &["--slots", "3"],
    ] {
        let output = status(&server, flags);
        output.assert_status(0).assert_stdout("free\n");
        assert_eq!(output.stderr(), "", "{}", output.report());
    }
}

#[test]
fn holder_and_waiter_are_listed_with_all_that_is_known_of_them() {
    let server = Server::new();
    server.psql("create role somebody login");
    server.psql("create role watcher login");
    let holder = Pglock::on(&server)
        .flags(["--lockid", "7", "--user", "somebody"])
        .sh("echo ready; cat")
        .open_input()
        .spawn();
    holder.wait_for_output("ready");
    let waiter = Pglock::on(&server)
        .flags(["--lockid", "7", "--block"])
        .sh("exit 0")
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(7).first().copied());
    // Also for an ordinary role, from which most of what others do is hidden.
    for user in ["postgres", "watcher"] {
        let table = eventually("both are listed", PATIENCE, || {
            let rows = rows(&status(&server, &["--lockid", "7", "--user", user]));
            (rows.len() == 3).then_some(rows)
        });
        assert_eq!(
            table[0],
            [
                "STATE", "MODE", "LOCK", "SINCE", "HOST", "PID", "USER", "DATABASE", "BACKEND",
                "COMMAND"
            ]
        );
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("read");
        let host: String = host.trim().chars().take(20).collect();
        let check = |row: &[String], state: &str, run: &Running, user: &str, backend: i32| {
            assert_eq!(row[..3], [state, "exclusive", "7"], "{row:?}");
            // The date and the time are two words.
            assert_eq!(row[3].len(), 10, "{row:?}");
            let rest = [
                &host,
                &run.pid().to_string(),
                user,
                "postgres",
                &backend.to_string(),
                "sh",
            ];
            assert_eq!(row[5..11], rest, "{row:?}");
        };
        check(
            &table[1],
            "holder",
            &holder,
            "somebody",
            server.holders(7)[0],
        );
        check(
            &table[2],
            "waiter",
            &waiter,
            "postgres",
            server.waiters(7)[0],
        );
        assert!(
            table[1].join(" ").ends_with("sh -c echo ready; cat"),
            "{table:?}"
        );
    }
    holder.finish().assert_status(0);
    waiter.wait().assert_status(0);
}

#[test]
fn without_a_name_every_advisory_lock_of_the_database_is_listed() {
    let server = Server::new();
    server.psql("create database other");
    let mut session = server.session();
    session.hold(-5);
    session.exec("select pg_advisory_lock_shared(3, -4)");
    let mut elsewhere = server.session_in("other");
    elsewhere.hold(99);
    let holder = Pglock::on(&server).flags(["--lockid", "7"]).hold();
    let output = status(&server, &[]);
    output.assert_status(0);
    let listed: Vec<_> = rows(&output)[1..]
        .iter()
        .map(|row| row[..3].join(" "))
        .collect();
    assert_eq!(
        listed,
        [
            "holder exclusive -5",
            "holder shared 3,-4",
            "holder exclusive 7"
        ]
    );
    // psql's session is listed by its own name.
    assert!(output.stdout().contains("psql"), "{}", output.report());
    let output = status(&server, &["--lockid", "7"]);
    assert_eq!(rows(&output).len(), 2, "{}", output.report());
    holder.finish().assert_status(0);
}

#[test]
fn all_slots_and_those_who_wait_for_one_are_listed() {
    let server = Server::new();
    let slots = |flags: &[&str]| Pglock::on(&server).flags(["--slots", "2"]).flags(flags);
    for name in [&["--lockid", "7"][..], &["--lockname", "n"]] {
        let first = slots(name).hold();
        let second = slots(name).hold();
        let waiters = [0, 1].map(|_| slots(name).flag("--block").sh("exit 0").spawn());
        eventually("all are listed", PATIENCE, || {
            let flags: Vec<&str> = name.iter().copied().chain(["--slots", "2"]).collect();
            let rows = rows(&status(&server, &flags));
            let count = |state: &str| rows.iter().filter(|row| row[0] == state).count();
            (count("holder") == 2 && count("waiter") == 2).then_some(())
        });
        first.finish().assert_status(0);
        second.finish().assert_status(0);
        for waiter in waiters {
            waiter.wait().assert_status(0);
        }
    }
}

#[test]
fn a_skip_says_who_holds_under_verbose() {
    let server = Server::new();
    for name in [
        &["--lockid", "7"][..],
        &["--lockname", "n"],
        &["--slots", "1"],
    ] {
        let holder = Pglock::on(&server)
            .flags(name)
            .sh("echo ready; cat")
            .open_input()
            .spawn();
        holder.wait_for_output("ready");
        for wait in [&[][..], &["--wait", "1"]] {
            let output = Pglock::on(&server)
                .flag("--verbose")
                .flags(name)
                .flags(wait)
                .sh("exit 1")
                .run();
            output.assert_status(0);
            let said = output.stderr();
            let line = said
                .lines()
                .find(|line| line.contains("Held by"))
                .unwrap_or_default();
            let process = format!("process {}", holder.pid());
            assert!(
                line.contains(&process) && line.contains("echo ready"),
                "{said}"
            );
        }
        holder.finish().assert_status(0);
    }
}

#[test]
fn a_waiter_that_became_holder_is_listed_since_then_by_its_renewed_name() {
    let server = Server::new();
    let holder = Pglock::on(&server).hold();
    let waiter = Pglock::on(&server)
        .flag("--block")
        .sh("echo ready; cat")
        .open_input()
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    let name = "select application_name from pg_stat_activity where application_name like 'pglock%' \
                and pid = any(select pid from pg_locks where locktype = 'advisory' and not granted)";
    let waited = eventually("it has a name", PATIENCE, || {
        Some(server.psql(name)).filter(|name| !name.is_empty())
    });
    // The name has whole seconds.
    std::thread::sleep(std::time::Duration::from_secs(1));
    holder.finish().assert_status(0);
    waiter.wait_for_output("ready");
    let held =
        "select application_name from pg_stat_activity where application_name like 'pglock%'";
    eventually("it is renamed", PATIENCE, || {
        (server.psql(held) != waited).then_some(())
    });
    waiter.finish().assert_status(0);
}

#[test]
fn what_makes_no_sense_with_it_is_refused() {
    let server = Server::new();
    let output = Pglock::on(&server).flag("--status").sh("exit 0").run();
    output.assert_refused(&["--status"]);
    let variable = Pglock::on(&server)
        .env("PGLOCK_STATUS", "true")
        .sh("exit 0")
        .run();
    variable.assert_refused(&["PGLOCK_STATUS"]);
    let closed = Pglock::new()
        .flags(["--host", "/nonexistent", "--status"])
        .run();
    closed.assert_failed(&["/nonexistent"]);
}

#[test]
fn every_pair_of_flags_works_or_is_refused_in_one_line() {
    let server = Server::new();
    let flags: [&[&str]; 12] = [
        &["--lockname", "n"],
        &["--lockid", "7"],
        &["--shared"],
        &["--slots", "2"],
        &["--wait", "5"],
        &["--block"],
        &["--fence"],
        &["--ttl", "0"],
        &["--on-loss", "continue"],
        &["--conflict-exit-code", "9"],
        &["--quiet"],
        &["--verbose"],
    ];
    let excluded = [
        ["--lockname", "--lockid"],
        ["--shared", "--slots"],
        ["--wait", "--block"],
        ["--quiet", "--verbose"],
    ];
    for (index, one) in flags.iter().enumerate() {
        for other in &flags[index + 1..] {
            let pglock = Pglock::on(&server).flags(*one).flags(*other);
            let output = pglock.sh("exit 4").run();
            if excluded.contains(&[one[0], other[0]]) {
                output.assert_refused(&[one[0], other[0]]);
            } else {
                output.assert_status(4);
            }
            let status = Pglock::on(&server)
                .flag("--status")
                .flags(*one)
                .flags(*other)
                .run();
            if !excluded.contains(&[one[0], other[0]]) {
                status.assert_status(0).assert_stdout("free\n");
            }
        }
    }
}
