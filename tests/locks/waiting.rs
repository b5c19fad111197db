//! Waiting for the lock: with a limit, without one, and giving up.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use crate::support::*;

/// A pglock that has given up has left the server's queue before it exited, and no backend stays.
#[track_caller]
fn assert_nothing_waits(server: &Server) {
    assert_eq!(server.waiters(1), [], "somebody waits still");
    eventually("no backend is left behind", PATIENCE, || {
        server.clients().is_empty().then_some(())
    });
}

#[test]
fn the_wait_ends_after_that_many_seconds() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    for seconds in [1, 2] {
        let output = Pglock::on(&server)
            .flags(["--wait", &seconds.to_string(), "--conflict-exit-code", "9"])
            .command(["true"])
            .run();
        output.assert_status(9);
        let limit = Duration::from_secs(seconds);
        assert!(
            output.elapsed >= limit,
            "{:?}\n{}",
            output.elapsed,
            output.report()
        );
        assert!(
            output.elapsed < limit + Duration::from_millis(900),
            "{:?}\n{}",
            output.elapsed,
            output.report()
        );
        assert_nothing_waits(&server);
    }
}

#[test]
fn the_wait_includes_connecting() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let proxy = Proxy::new(&server);
    proxy.silence();
    let run = Pglock::at(proxy.port())
        .flags(["--wait", "3", "--conflict-exit-code", "9"])
        .command(["true"])
        .spawn();
    // The server takes this long to answer.
    std::thread::sleep(Duration::from_millis(1500));
    proxy.heal();
    run.wait_for_line("Obtaining lock");
    let output = run.wait();
    output.assert_status(9);
    assert!(
        output.elapsed >= Duration::from_secs(3),
        "{:?}\n{}",
        output.elapsed,
        output.report()
    );
    assert!(
        output.elapsed < Duration::from_millis(4200),
        "{:?}\n{}",
        output.elapsed,
        output.report()
    );
}

#[test]
fn zero_does_not_wait() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let output = Pglock::on(&server)
        .flags(["--wait", "0", "--conflict-exit-code", "9"])
        .command(["true"])
        .run();
    output.assert_status(9);
    assert!(
        output.log().contains(&"Trying to obtain lock.".to_owned()),
        "{}",
        output.report()
    );
    assert!(
        output.elapsed < Duration::from_secs(5),
        "{}",
        output.report()
    );
}

#[test]
fn a_waiter_gets_the_lock_when_it_is_released_and_not_before() {
    for flags in [
        &["--wait", "600"][..],
        &["--wait", "2147483648"],
        &["--wait", "4294967295"],
        &["--block"],
    ] {
        let server = Server::new();
        let marker = Marker::new();
        let mut session = server.session();
        session.hold(1);
        let waiter = Pglock::on(&server)
            .flags(flags)
            .command(marker.command())
            .spawn();
        eventually("the waiter waits", PATIENCE, || {
            server.waiters(1).first().copied()
        });
        assert!(!marker.exists(), "{flags:?}");
        session.release(1);
        waiter.wait().assert_status(0);
        assert!(marker.exists(), "{flags:?}");
    }
}

#[test]
fn the_longest_wait_is_said_as_it_was_given() {
    let server = Server::new();
    let output = Pglock::on(&server)
        .flags(["--wait", "4294967295"])
        .command(["true"])
        .run();
    output.assert_status(0);
    assert_eq!(
        output.log()[1],
        "Obtaining lock with 4294967295 seconds timeout..",
        "{}",
        output.report()
    );
}

#[test]
fn the_environment_can_ask_for_blocking() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    for (word, waits) in [
        ("true", true),
        ("YES", true),
        ("1", true),
        ("false", false),
        ("No", false),
        ("0", false),
        ("", false),
    ] {
        let mut run = Pglock::on(&server)
            .env("PGLOCK_BLOCK", word)
            .flags(["--conflict-exit-code", "9"])
            .command(["true"])
            .spawn();
        if waits {
            eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
            assert!(run.is_running(), "{word}");
        } else {
            run.wait().assert_status(9);
        }
    }
}

#[test]
fn a_release_wakes_the_waiter_within_milliseconds() {
    let server = Server::new();
    let mut session = server.session();
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a time after 1970")
    };
    let mut delays: Vec<Duration> = (0..5)
        .map(|_| {
            session.hold(1);
            let waiter = Pglock::on(&server)
                .flags(["--wait", "60"])
                .command(["date", "+%s.%N"])
                .spawn();
            eventually("the waiter waits", PATIENCE, || {
                server.waiters(1).first().copied()
            });
            let released = now();
            session.release(1);
            let output = waiter.wait();
            let (seconds, nanos) = output
                .assert_status(0)
                .stdout()
                .trim()
                .split_once('.')
                .map_or_else(
                    || panic!("{}", output.report()),
                    |(s, n)| (s.parse().expect("seconds"), n.parse().expect("nanoseconds")),
                );
            Duration::new(seconds, nanos).saturating_sub(released)
        })
        .collect();
    // Four times in five, for the machine may be busy.
    delays.sort();
    assert!(delays[3] < Duration::from_millis(250), "{delays:?}");
}

#[test]
fn a_release_hands_the_lock_to_the_waiter_and_to_nobody_else() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let waiter = Pglock::on(&server)
        .flag("--block")
        .command(["true"])
        .spawn();
    // A waiter that stands in the server's queue is the next owner before anybody else can ask. It may
    // leave the queue for an instant between two turns; then the session has the lock again, and tries again.
    let overtaken = (0..5).all(|_| {
        eventually("the waiter waits", PATIENCE, || {
            server.waiters(1).first().copied()
        });
        session.exec("select pg_advisory_unlock(1), pg_try_advisory_lock(1)") == "t|t"
    });
    assert!(!overtaken, "the waiter does not queue");
    waiter.wait().assert_status(0);
}

#[test]
fn a_server_that_falls_silent_does_not_make_the_wait_longer() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let proxy = Proxy::new(&server);
    for flags in [&[][..], &["--connect-timeout", "0"]] {
        proxy.heal();
        let waiter = Pglock::at(proxy.port())
            .flags(["--wait", "2"])
            .flags(flags)
            .command(["true"])
            .spawn();
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        proxy.silence();
        // Without the wait's limit it is 10 s, or for ever.
        waiter
            .wait_within(Duration::from_secs(7))
            .assert_failed(&["no answer from the server"]);
    }
}

#[test]
fn all_who_wait_get_their_turn() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let scratch = Scratch::new();
    let order = scratch.file("order", 0o644, "");
    // One after the other into the queue, and nobody is released before all are in it.
    let waiters: Vec<Running> = (0..3)
        .map(|number: usize| {
            let script = format!("echo {number} >>{}", order.display());
            let waiter = Pglock::on(&server).flag("--block").sh(&script).spawn();
            eventually("it waits", PATIENCE, || {
                (server.waiters(1).len() > number).then_some(())
            });
            waiter
        })
        .collect();
    session.release(1);
    for waiter in waiters {
        waiter.wait().assert_status(0);
    }
    // Turns are nearly first come, first served, so the order is left open.
    let mut lines: Vec<String> = std::fs::read_to_string(&order)
        .expect("read")
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(lines, ["0", "1", "2"]);
}

#[test]
fn a_signal_ends_a_waiter_and_its_place_in_the_queue() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let marker = Marker::new();
        let waiter = Pglock::on(&server)
            .flag("--block")
            .command(marker.command())
            .spawn();
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        waiter.signal(signal);
        let output = waiter.wait();
        output.assert_status(128 + signal as i32);
        assert!(!marker.exists());
        assert_nothing_waits(&server);
    }
}

#[test]
fn a_signal_ends_one_that_is_still_connecting() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    proxy.silence();
    let marker = Marker::new();
    let run = Pglock::at(proxy.port()).command(marker.command()).spawn();
    eventually("it connects", PATIENCE, || {
        (proxy.open_links() == 1).then_some(())
    });
    let start = Instant::now();
    run.signal(Signal::SIGTERM);
    run.wait().assert_status(128 + Signal::SIGTERM as i32);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(!marker.exists());
}

#[test]
fn a_waiter_whose_backend_is_ended_waits_with_another() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let marker = Marker::new();
    let waiter = Pglock::on(&server)
        .flags(["--wait", "60"])
        .command(marker.command())
        .spawn();
    let backend = eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    server.psql(&format!("select pg_terminate_backend({backend})"));
    eventually("another backend waits", PATIENCE, || {
        server
            .waiters(1)
            .first()
            .copied()
            .filter(|other| *other != backend)
    });
    // The server's own words.
    assert!(
        waiter.stderr().contains("administrator"),
        "{}",
        waiter.stderr()
    );
    assert!(!marker.exists());
    session.release(1);
    waiter.wait().assert_status(0);
    assert!(marker.exists());
}

#[test]
fn time_limits_of_the_role_do_not_cut_the_wait() {
    let server = Server::new();
    for setting in [
        "statement_timeout = '150ms'",
        "lock_timeout = '150ms'",
        "idle_in_transaction_session_timeout = '150ms'",
    ] {
        server.psql(&format!(
            "drop role if exists hasty; create role hasty login; alter role hasty set {setting}"
        ));
        let mut session = server.session();
        session.hold(1);
        let waiter = Pglock::on(&server)
            .env("PGLOCK_USER", "hasty")
            .flags(["--wait", "60"])
            .command(["true"])
            .spawn();
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        // Longer than the limit: waiting is what is tested here.
        let since = Instant::now();
        eventually("it waits on", PATIENCE, || {
            (since.elapsed() > Duration::from_millis(400)).then_some(())
        });
        session.release(1);
        waiter.wait().assert_status(0);
    }
}

#[test]
fn a_role_that_wants_no_session_to_survive_an_error_waits_too() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let waiter = Pglock::on(&server)
        .env("PGOPTIONS", "-c exit_on_error=on")
        .flags(["--wait", "60"])
        .command(["true"])
        .spawn();
    // The end of its first turn.
    waiter.wait_for_line("trying again");
    session.release(1);
    waiter.wait().assert_status(0);
}

#[test]
fn what_the_server_says_by_the_way_is_not_why_a_connection_was_lost() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let waiter = Pglock::on(&server)
        .env("PGOPTIONS", "-c client_min_messages=log -c log_duration=on")
        .flags(["--ttl", "3", "--grace", "0", "--wait", "60"])
        .command(["true"])
        .spawn();
    let backend = eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    // The second turn: by then it has been told how long the first took.
    eventually("it waits anew", PATIENCE, || {
        let since = format!(
            "select query_start > backend_start + interval '1 s' from pg_stat_activity where pid = {backend}"
        );
        (server.psql(&since) == "t").then_some(())
    });
    server.crash_backend(backend);
    let output = waiter.wait();
    output.assert_status(0);
    assert!(!output.stderr().contains("duration"), "{}", output.report());
}

#[test]
fn a_sign_that_the_lock_is_given_up_is_good_for_one() {
    let server = Server::new();
    let mut session = server.session();
    let waits_for_sign = "select count(*) from pg_locks where not granted and classid = 1 \
                          and objid::bigint = 4294967296 - 1001 and objsubid = 2";
    let is_waited_for = |expected: &str| {
        eventually("the sign is waited for, or not", PATIENCE, || {
            (server.psql(waits_for_sign) == expected).then_some(())
        });
    };
    let marker = Marker::new();
    let release = |session: &mut Session| {
        session.hold(1);
        session.exec("select pg_advisory_lock(1, -1001)");
        let waiter = Pglock::on(&server)
            .flag("--block")
            .command(marker.command())
            .spawn();
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        session.release(1);
        is_waited_for("1");
        waiter
    };
    // As one does whose server is frozen: the lock is there for others again.
    let waiter = release(&mut session);
    session.exec("select pg_advisory_lock(1)");
    is_waited_for("0");
    assert!(!marker.exists());
    drop(waiter);
    session.exec("select pg_advisory_unlock_all()");
    let waiter = release(&mut session);
    assert!(!marker.exists());
    session.exec("select pg_advisory_unlock(1, -1001)");
    waiter.wait().assert_status(0);
    assert!(marker.exists());
}

#[test]
fn who_takes_a_lock_whose_sign_stays_does_not_count_on_it() {
    let server = Server::new();
    let mut session = server.session();
    for flags in [&[][..], &["--shared"], &["--slots", "2"]] {
        let marker = Marker::new();
        // As one has it whose host is slow, and that has not heard yet that the lock is free.
        session.exec("select pg_advisory_lock(1, -1001), pg_advisory_lock(1, -1002)");
        let newcomer = || {
            Pglock::on(&server)
                .flags(["--conflict-exit-code", "75"])
                .flags(flags)
                .command(marker.command())
                .run()
        };
        newcomer().assert_status(75);
        assert!(!marker.exists(), "{flags:?}");
        session.exec("select pg_advisory_unlock_all()");
        newcomer().assert_status(0);
        assert!(marker.exists(), "{flags:?}");
    }
}
