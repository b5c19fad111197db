//! The lock itself: its key, who it excludes, when it is free again.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::support::*;

#[test]
fn sql_that_holds_the_key_excludes_pglock() {
    let server = Server::new();
    let marker = Marker::new();
    let mut session = server.session();
    session.hold(7);
    let seven = Pglock::on(&server)
        .flags(["--lockid", "7", "--conflict-exit-code", "9"])
        .command(marker.command());
    seven.run().assert_status(9);
    assert!(!marker.exists());
    // Another key is another lock.
    let eight = Pglock::on(&server)
        .flags(["--lockid", "8", "--conflict-exit-code", "9"])
        .command(marker.command());
    eight.run().assert_status(0);
    assert!(marker.exists());
    marker.reset();
    session.release(7);
    seven.run().assert_status(0);
    assert!(marker.exists());
}

#[test]
fn pglock_that_holds_the_key_excludes_sql() {
    let server = Server::new();
    let mut session = server.session();
    let holder = Pglock::on(&server).flags(["--lockid", "7"]).hold();
    assert!(!session.try_hold(7));
    assert!(session.try_hold(8));
    // The key space of two integers is another one.
    assert_eq!(session.exec("select pg_try_advisory_lock(0, 7)"), "t");
    // Transactions use the same keys as sessions.
    assert_eq!(session.exec("select pg_try_advisory_xact_lock(7)"), "f");
    holder.finish().assert_status(0);
    assert!(session.try_hold(7));
}

#[test]
fn the_key_is_a_bigint_whatever_its_size() {
    let server = Server::new();
    for key in [0, 1, 7, 2_147_483_648, 4_294_967_295_u32] {
        let holder = Pglock::on(&server)
            .flags(["--lockid", &key.to_string()])
            .hold();
        let rows = server.psql(
            "select classid, objid, objsubid, mode, granted, d.datname
             from pg_locks l join pg_database d on d.oid = l.database where locktype = 'advisory'",
        );
        assert_eq!(rows, format!("0|{key}|1|ExclusiveLock|t|postgres"));
        holder.finish().assert_status(0);
        assert_eq!(server.holders(key.into()), []);
    }
}

#[test]
fn each_database_has_locks_of_its_own() {
    let server = Server::new();
    server.psql("create database other");
    let mut session = server.session_in("other");
    session.hold(1);
    let skip = Pglock::on(&server).flags(["--database", "other", "--conflict-exit-code", "9"]);
    skip.command(["true"]).run().assert_status(9);
    Pglock::on(&server)
        .flags(["--conflict-exit-code", "9"])
        .command(["true"])
        .run()
        .assert_status(0);
}

#[test]
fn the_lock_is_free_as_soon_as_pglock_has_exited_however_the_command_ended() {
    let server = Server::new();
    let mut session = server.session();
    let scratch = Scratch::new();
    let text = scratch
        .file("text", 0o644, "no program\n")
        .display()
        .to_string();
    let commands: [(&[&str], i32); 5] = [
        (&["true"], 0),
        (&["false"], 1),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&[&text], 126),
        (&["/nonexistent/program"], 127),
    ];
    for (command, status) in commands {
        for flags in [&[][..], &["--wait", "30"], &["--block"]] {
            let output = Pglock::on(&server).flags(flags).command(command).run();
            output.assert_status(status);
            // At once, not eventually.
            assert!(
                session.try_hold(1),
                "the lock is not free\n{}",
                output.report()
            );
            session.release(1);
        }
    }
}

#[test]
fn the_lock_is_free_when_pglock_has_exited_however_slow_the_network() {
    // What only closes its connection has left before the server knows.
    let server = Server::new();
    let mut session = server.session();
    let proxy = Proxy::new(&server);
    proxy.delay(Duration::from_millis(300));
    for flags in [&[][..], &["--wait", "30"]] {
        let output = Pglock::at(proxy.port())
            .flags(flags)
            .command(["true"])
            .run();
        output.assert_status(0);
        assert!(
            session.try_hold(1),
            "the lock is not free\n{}",
            output.report()
        );
        session.release(1);
    }
}

#[test]
fn a_thousand_runs_one_after_the_other_never_skip() {
    let server = Server::new();
    let run = Pglock::on(&server)
        .flags(["--conflict-exit-code", "9"])
        .command(["true"]);
    for number in 1..=1000 {
        let output = run.run();
        assert!(output.status.success(), "run {number}\n{}", output.report());
    }
}

#[test]
fn of_many_at_once_one_runs_and_the_others_skip() {
    let server = Server::new();
    let many: Vec<Running> = (0..10)
        .map(|_| {
            let one = Pglock::on(&server)
                .flags(["--conflict-exit-code", "9"])
                .open_input();
            one.command(["sh", "-c", "echo runs; exec cat"]).spawn()
        })
        .collect();
    // All but the holder end of themselves.
    let mut many = many;
    eventually("all others have skipped", PATIENCE, || {
        (many
            .iter_mut()
            .filter_map(|one| one.is_running().then_some(()))
            .count()
            == 1)
            .then_some(())
    });
    for mut one in many {
        if one.is_running() {
            one.wait_for_output("runs");
            one.finish().assert_status(0).assert_stdout("runs\n");
        } else {
            one.wait().assert_status(9).assert_stdout("");
        }
    }
}

#[test]
fn many_that_wait_run_one_at_a_time_and_all_of_them() {
    let server = Server::new();
    let scratch = Scratch::new();
    let count = scratch.file("count", 0o644, "0\n");
    // Two at a time would lose a step.
    let step = r#"read n <"$COUNT"; sleep 0.02; echo $((n + 1)) >"$COUNT""#;
    let runs: Vec<Running> = (0..12)
        .map(|_| {
            Pglock::on(&server)
                .flags(["--wait", "60"])
                .env("COUNT", &count)
                .sh(step)
                .spawn()
        })
        .collect();
    for run in runs {
        run.wait().assert_status(0);
    }
    assert_eq!(fs::read_to_string(&count).expect("read the count"), "12\n");
}

#[test]
fn an_index_is_built_concurrently_by_the_holder_while_others_wait() {
    let server = Server::new();
    server.psql("create table t as select generate_series(1, 1000) as x");
    let psql = server::psql().display().to_string();
    let build = format!(
        "read go; exec '{psql}' -X -h '{}' -p {} -U postgres -c 'create index concurrently i on t (x)' postgres",
        server.socket_dir().display(),
        server.port()
    );
    let mut holder = Pglock::on(&server).open_input().sh(&build).spawn();
    holder.wait_for_line("Executing command");
    let waiters: Vec<Running> = [
        &["--wait", "60"][..],
        &["--block"],
        &["--wait", "60"],
        &["--block"],
        &["--wait", "60"],
    ]
    .iter()
    .map(|flags| Pglock::on(&server).flags(*flags).command(["true"]).spawn())
    .collect();
    eventually("all five wait", PATIENCE, || {
        (server.waiters(1).len() == 5).then_some(())
    });
    holder.write("go\n");
    let output = holder.wait();
    output.assert_status(0).assert_stdout("CREATE INDEX\n");
    assert_eq!(
        server.psql("select indisvalid from pg_index where indexrelid = 'i'::regclass"),
        "t"
    );
    for waiter in waiters {
        waiter.wait().assert_status(0);
    }
}

#[test]
fn one_s_release_is_the_next_one_s_turn_thirty_times() {
    // A hand-over from pglock to pglock, with no pause between: nobody may be lost between two slices of waiting.
    let server = Server::new();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..10 {
                    Pglock::on(&server)
                        .flags(["--wait", "50", "--conflict-exit-code", "9"])
                        .command(["true"])
                        .run()
                        .assert_status(0);
                }
            });
        }
    });
}
