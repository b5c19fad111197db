//! Shared locks: many sharers, or one exclusive holder.

use nix::sys::signal::Signal;

use crate::support::*;

fn shared(server: &Server) -> Pglock {
    exclusive(server).flag("--shared")
}

fn exclusive(server: &Server) -> Pglock {
    Pglock::on(server).flags(["--conflict-exit-code", "9"])
}

/// Who has the lock: the modes in the server's table.
fn modes(server: &Server) -> String {
    server
        .psql(&format!(
            "select mode from pg_locks where locktype = 'advisory' and granted and {NOT_ASIDE} order by 1"
        ))
        .replace('\n', " ")
}

fn waiters(server: &Server) -> usize {
    let count = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    server.psql(count).parse().expect("a count")
}

#[track_caller]
fn wait_for_waiters(server: &Server, count: usize) {
    eventually(&format!("{count} wait"), PATIENCE, || {
        (waiters(server) == count).then_some(())
    });
}

#[test]
fn sharers_are_together_and_an_exclusive_holder_is_alone() {
    let server = Server::new();
    for name in [&["--lockid", "7"][..], &["--lockname", "it's a \\name"]] {
        let sharers: Vec<Running> = (0..3).map(|_| shared(&server).flags(name).hold()).collect();
        assert_eq!(modes(&server), "ShareLock ShareLock ShareLock");
        exclusive(&server)
            .flags(name)
            .command(["true"])
            .run()
            .assert_status(9);
        // Others come and go, and take nobody's share with them.
        shared(&server)
            .flags(name)
            .command(["true"])
            .run()
            .assert_status(0);
        for sharer in sharers {
            exclusive(&server)
                .flags(name)
                .command(["true"])
                .run()
                .assert_status(9);
            let output = sharer.finish();
            output.assert_status(0);
            // Given up in good order.
            let log = output.log();
            assert_eq!(
                log.last().expect("a line"),
                "Execution finished, exiting and cleaning up lock."
            );
        }
        // Free at once when the last one has exited.
        let writer = exclusive(&server).flags(name).hold();
        assert_eq!(modes(&server), "ExclusiveLock");
        for other in [shared(&server), exclusive(&server)] {
            other.flags(name).command(["true"]).run().assert_status(9);
        }
        writer.finish().assert_status(0);
        shared(&server)
            .flags(name)
            .command(["true"])
            .run()
            .assert_status(0);
        assert_eq!(modes(&server), "");
    }
}

#[test]
fn sharers_share_with_sql() {
    let server = Server::new();
    let mut session = server.session();
    session.exec("select pg_advisory_lock_shared(1)");
    let sharer = shared(&server).hold();
    exclusive(&server).command(["true"]).run().assert_status(9);
    assert_eq!(session.exec("select pg_advisory_unlock_shared(1)"), "t");
    assert_eq!(session.exec("select pg_try_advisory_lock(1)"), "f");
    assert_eq!(session.exec("select pg_try_advisory_lock_shared(1)"), "t");
    sharer.finish().assert_status(0);
    // The session's own share does not stand in its way.
    assert_eq!(session.exec("select pg_try_advisory_lock(1)"), "t");
    shared(&server).command(["true"]).run().assert_status(9);

    let name = "hashtextextended('reports', 0)";
    session.exec(&format!("select pg_advisory_lock_shared({name})"));
    let named = |pglock: Pglock| pglock.flags(["--lockname", "reports"]).command(["true"]);
    named(shared(&server)).run().assert_status(0);
    named(exclusive(&server)).run().assert_status(9);
}

#[test]
fn writers_wait_for_all_sharers_and_sharers_for_the_writer() {
    for wait in [&["--wait", "60"][..], &["--block"]] {
        for name in [&["--lockid", "7"][..], &["--lockname", "reports"]] {
            let server = Server::new();
            let readers = [(); 2].map(|()| shared(&server).flags(name).hold());
            let marker = Marker::new();
            let mut writer = exclusive(&server)
                .flags(name)
                .flags(wait)
                .open_input()
                .command(["sh", "-c", "echo runs; exec cat"])
                .spawn();
            wait_for_waiters(&server, 1);
            let [first, last] = readers;
            first.finish().assert_status(0);
            // One is left.
            wait_for_waiters(&server, 1);
            assert_eq!(writer.stdout(), "");
            last.finish().assert_status(0);
            writer.wait_for_output("runs");
            assert_eq!(modes(&server), "ExclusiveLock");

            let sharers = [(); 3].map(|()| {
                let sharer = shared(&server).flags(name).flags(wait).open_input();
                sharer
                    .command([
                        "sh",
                        "-c",
                        &format!("touch {}; exec cat", marker.path().display()),
                    ])
                    .spawn()
            });
            wait_for_waiters(&server, 3);
            assert!(!marker.exists());
            writer.close_input();
            writer.wait().assert_status(0);
            // All of them at once, not one after the other.
            eventually("all sharers hold", PATIENCE, || {
                (modes(&server) == "ShareLock ShareLock ShareLock").then_some(())
            });
            for sharer in sharers {
                sharer.finish().assert_status(0);
            }
        }
    }
}

#[test]
fn a_wait_for_a_shared_lock_ends_too() {
    let server = Server::new();
    let mut session = server.session();
    let reader = shared(&server).hold();
    let given_up = |pglock: Pglock| {
        let output = pglock.flags(["--wait", "1"]).command(["true"]).run();
        output.assert_status(9);
        assert!(output.elapsed.as_secs() >= 1, "{}", output.report());
        assert_eq!(waiters(&server), 0);
    };
    given_up(exclusive(&server));
    reader.finish().assert_status(0);
    session.hold(1);
    given_up(shared(&server));
}

#[test]
fn a_waiting_writer_is_not_passed_by_new_sharers() {
    let server = Server::new();
    // The writer of SQL stays in the queue for as long as it takes.
    let reader = shared(&server).hold();
    let mut session = server.session();
    session.send("select pg_advisory_lock(1)");
    wait_for_waiters(&server, 1);
    shared(&server).command(["true"]).run().assert_status(9);
    let mut late = shared(&server)
        .flags(["--wait", "60"])
        .open_input()
        .command(["sh", "-c", "echo runs; exec cat"])
        .spawn();
    // Longer than a turn in the queue: it comes back behind the writer each time.
    let output = shared(&server)
        .flags(["--wait", "2"])
        .command(["true"])
        .run();
    output.assert_status(9);
    assert_eq!(late.stdout(), "");
    reader.finish().assert_status(0);
    session.answer();
    assert_eq!(modes(&server), "ExclusiveLock");
    assert_eq!(late.stdout(), "");
    session.release(1);
    late.wait_for_output("runs");
    late.close_input();
    late.wait().assert_status(0);

    // That of pglock may leave it for an instant between two turns; it is there most of the time.
    let reader = shared(&server).hold();
    let writer = exclusive(&server).flag("--block").command(["true"]).spawn();
    let passed = (0..5).all(|_| {
        wait_for_waiters(&server, 1);
        let output = shared(&server).command(["true"]).run();
        output.status.code() == Some(0)
    });
    assert!(!passed, "new sharers pass a waiting writer");
    reader.finish().assert_status(0);
    writer.wait().assert_status(0);
}

#[test]
fn a_writer_gets_its_turn_though_sharers_keep_coming() {
    let server = Server::new();
    let scratch = Scratch::new();
    let over = scratch.path().join("over");
    // Overlapping at all times, were it not for the writer.
    let stream = format!(
        "i=0; while [ ! -e '{}' ] && [ $i -lt 400 ]; do i=$((i + 1)); \"$0\" --quiet --shared --wait 60 sleep 0.1; done; \
         [ $i -lt 400 ]",
        over.display()
    );
    let streams: Vec<Running> = (0..3)
        .map(|_| {
            Pglock::on(&server)
                .without_pglock()
                .command(["sh", "-c", &stream, env!("CARGO_BIN_EXE_pglock")])
                .spawn()
        })
        .collect();
    eventually("they share", PATIENCE, || {
        (server.holders(1).len() >= 2).then_some(())
    });
    let writer = exclusive(&server)
        .flag("--block")
        .command(["touch", &over.display().to_string()])
        .run();
    writer.assert_status(0);
    for stream in streams {
        stream.wait().assert_status(0);
    }
}

#[test]
fn a_writer_gets_its_turn_though_sharers_that_stay_long_keep_coming() {
    let server = Server::new();
    // Each stays for more than one turn in the queue, and at no time is there none.
    let stream = "sleep $1; i=0; while [ $i -lt 8 ]; do i=$((i + 1)); \"$0\" --quiet --shared --block sleep 1.4; done";
    let _streams = ["0", "0.5", "1"].map(|delay| {
        let program = env!("CARGO_BIN_EXE_pglock");
        Pglock::on(&server)
            .without_pglock()
            .command(["sh", "-c", stream, program, delay])
            .spawn()
    });
    eventually("they share", PATIENCE, || {
        (server.holders(1).len() >= 2).then_some(())
    });
    // The server's own queue would let it in after 1.4 s.
    let writer = exclusive(&server).flags(["--wait", "7"]);
    writer.command(["true"]).run().assert_status(0);
}

#[test]
fn a_lost_share_is_noticed_and_the_others_stay() {
    let server = Server::new();
    let lost = shared(&server).hold();
    let backend = server.holders(1)[0];
    let other = shared(&server).hold();
    server.psql(&format!("select pg_terminate_backend({backend})"));
    lost.wait().assert_status(124);
    assert_eq!(modes(&server), "ShareLock");
    other.finish().assert_status(0);
}

#[test]
fn shares_outlast_a_restart_of_the_server() {
    let server = Server::new();
    let mut sharers = [(); 2].map(|()| shared(&server).hold());
    server.restart(Stop::Immediate);
    eventually("both have their share again", PATIENCE, || {
        (modes(&server) == "ShareLock ShareLock").then_some(())
    });
    exclusive(&server).command(["true"]).run().assert_status(9);
    assert!(sharers.iter_mut().all(Running::is_running));
    for sharer in sharers {
        sharer.finish().assert_status(0);
    }
}

#[test]
fn the_share_of_a_killed_pglock_is_free_when_its_command_is_gone() {
    let server = Server::new();
    let sharer = shared(&server).hold();
    let command = processes::command_of(sharer.pid());
    let writer = exclusive(&server)
        .flags(["--wait", "60"])
        .command(["echo", "runs"])
        .spawn();
    wait_for_waiters(&server, 1);
    sharer.signal(Signal::SIGKILL);
    writer.wait_for_output("runs");
    assert!(!processes::is_alive(command));
    writer.wait().assert_status(0);
}
