//! Behind a pooler, PgBouncer: there a session is not the client's own, and a lock is held by a transaction.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::support::net::{READY, error};
use crate::support::pgbouncer::Pgbouncer;
use crate::support::processes::{command_of, wait_for_state};
use crate::support::wait::within;
use crate::support::*;

const CONFLICT: [&str; 2] = ["--conflict-exit-code", "9"];

#[track_caller]
fn assert_skips(pglock: &Pglock, flags: &[&str]) {
    let output = pglock
        .clone()
        .flags(flags)
        .flags(CONFLICT)
        .command(["true"])
        .run();
    output.assert_status(9).assert_stdout("");
}

#[track_caller]
fn assert_runs(pglock: &Pglock, flags: &[&str]) {
    let output = pglock
        .clone()
        .flags(flags)
        .flags(CONFLICT)
        .command(["echo", "it runs"])
        .run();
    output.assert_status(0).assert_stdout("it runs\n");
}

/// The backends of the pool, and whether each is in a transaction.
fn backends(server: &Server) -> String {
    server.psql(
        "select pid, state, backend_xid is null, backend_xmin is null from pg_stat_activity
         where backend_type = 'client backend' and pid <> pg_backend_pid() order by pid",
    )
}

#[test]
fn two_clients_of_one_pool_exclude_each_other() {
    let server = Server::new();
    for mode in ["transaction", "session"] {
        let pooler = Pgbouncer::new(&server, mode, 5, &[]);
        let pglock = pooler.pglock();
        // Each kind of lock, and who else is still let in.
        for (flags, alike) in [
            (&[][..], false),
            (&["--lockid", "4294967295"], false),
            (&["--lockname", "nightly report"], false),
            (&["--shared"], true),
            (&["--slots", "2"], true),
            (&["--slots", "2", "--lockname", "nightly report"], true),
        ] {
            let holder = pglock.clone().flags(flags).hold();
            if alike {
                let second = pglock.clone().flags(flags).hold();
                let exclusive: Vec<&str> =
                    flags.iter().copied().filter(|f| *f != "--shared").collect();
                assert_skips(&pglock, &exclusive);
                second.finish().assert_status(0);
                assert_runs(&pglock, flags);
            } else {
                assert_skips(&pglock, flags);
                assert_runs(&pglock, &["--lockid", "77"]);
            }
            holder.finish().assert_status(0);
            assert_runs(&pglock, flags);
        }
    }
}

#[test]
fn a_holder_behind_a_pooler_and_one_without_exclude_each_other() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let (pooled, direct) = (pooler.pglock(), Pglock::on(&server));
    for flags in [
        &[][..],
        &["--lockname", "a name"],
        &["--shared"],
        &["--slots", "1"],
    ] {
        for (one, other) in [(&pooled, &direct), (&direct, &pooled)] {
            let holder = one.clone().flags(flags).hold();
            let exclusive: Vec<&str> = flags.iter().copied().filter(|f| *f != "--shared").collect();
            assert_skips(other, &exclusive);
            if flags.contains(&"--shared") {
                assert_runs(other, flags);
            }
            holder.finish().assert_status(0);
            assert_runs(other, flags);
        }
    }
    // SQL takes the same lock.
    let mut session = server.session();
    session.hold(1);
    assert_skips(&pooled, &[]);
    session.release(1);
    let holder = pooled.clone().hold();
    assert!(!session.try_hold(1));
    holder.finish().assert_status(0);
    assert!(session.try_hold(1));
}

#[test]
fn the_lock_is_free_when_a_pooled_holder_has_exited() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    for _ in 0..50 {
        assert_runs(&pooler.pglock(), &[]);
    }
    // Also where it has no time to say so.
    for _ in 0..5 {
        let holder = pooler.pglock().hold();
        holder.signal(Signal::SIGKILL);
        eventually("the lock is free", PATIENCE, || {
            server.holders(1).is_empty().then_some(())
        });
        drop(holder);
        assert_runs(&pooler.pglock(), &[]);
    }
}

#[test]
fn a_frozen_pooled_holder_loses_the_lock_when_its_lease_is_over() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let lease = ["--ttl", "4", "--grace", "0"];
    let holder = pooler.pglock().flags(lease).hold();
    let backend = server.holders(1)[0];
    // Longer than the lease: heartbeats keep it.
    thread::sleep(Duration::from_secs(5));
    assert_eq!(server.holders(1), [backend]);
    let guardian = processes::guardian_of(holder.pid());
    for pid in [holder.pid(), guardian] {
        kill(pid, Signal::SIGSTOP).expect("freeze");
        processes::wait_for_state("it", pid, "T");
    }
    let frozen = Instant::now();
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
    let time = frozen.elapsed();
    println!("a frozen holder lost the lock after {time:.1?} of a ttl of 4 s");
    // The last heartbeat was up to a third of the ttl ago.
    assert!(time > Duration::from_millis(4000 * 2 / 3 - 300), "{time:?}");
    assert!(time < Duration::from_millis(5500), "{time:?}");
    assert_runs(&pooler.pglock(), &lease);
    for pid in [guardian, holder.pid()] {
        kill(pid, Signal::SIGCONT).expect("thaw");
    }
    // Either says so; the command is not left running without the lock.
    holder.wait().assert_status(124);
}

/// All settings of all the connections of a pool of this size.
fn settings(pooler: &Pgbouncer, size: usize) -> Vec<String> {
    let mut clients: Vec<Session> = (0..size).map(|_| pooler.session()).collect();
    let mut settings = Vec::new();
    for client in &mut clients {
        let pid = client.exec("begin; select pg_backend_pid()");
        let all = client.exec("show all");
        assert!(
            all.contains("\nidle_in_transaction_session_timeout|0|"),
            "{all}"
        );
        // Of the transaction itself, and so not of the session.
        settings.extend(all.lines().map(|line| format!("{pid}: {line}")));
    }
    for client in &mut clients {
        client.exec("commit");
    }
    settings.sort();
    settings
}

#[track_caller]
fn assert_same(before: &[String], after: &[String], when: &str) {
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        let only = one.iter().filter(|line| !other.contains(line));
        only.take(5).cloned().collect()
    };
    let (gone, new) = (only(before, after), only(after, before));
    assert!(
        gone.is_empty() && new.is_empty(),
        "{when}: {gone:#?} became {new:#?}"
    );
}

#[test]
fn nothing_that_pglock_sets_is_there_for_the_pool_s_next_client() {
    const SIZE: usize = 2;
    let server = Server::new();
    for mode in ["transaction", "session"] {
        let pooler = Pgbouncer::new(&server, mode, SIZE as u32, &[]);
        let before = settings(&pooler, SIZE);
        let check = |when: &str| {
            assert_same(
                &before,
                &settings(&pooler, SIZE),
                &format!("{mode}, {when}"),
            );
        };
        for flags in [
            &[][..],
            &["--fence"],
            &["--ttl", "0"],
            &["--slots", "3"],
            &["--shared", "--lockname", "x", "--wait", "10"],
        ] {
            assert_runs(&pooler.pglock(), flags);
            check(&format!("{flags:?}"));
        }
        // Nor where the lock was not obtained, at once or after a while, or the wait was cut short.
        let mut session = server.session();
        session.hold(1);
        assert_skips(&pooler.pglock(), &[]);
        check("skipped");
        assert_skips(&pooler.pglock(), &["--wait", "1"]);
        check("given up");
        let waiter = pooler.pglock().flag("--block").command(["true"]).spawn();
        waiter.wait_for_line("Obtaining lock");
        if mode == "transaction" {
            // It gives the connection back between two attempts.
            check("waiting");
        }
        waiter.signal(Signal::SIGTERM);
        waiter.wait().assert_status(143);
        check("interrupted");
        // Nor while one holds it: the others have other connections.
        session.release(1);
        let holder = pooler.pglock().hold();
        let mut client = pooler.session();
        let all = client.exec("show all");
        assert!(
            all.contains("\nidle_in_transaction_session_timeout|0|"),
            "{all}"
        );
        drop(client);
        holder.finish().assert_status(0);
        check("held");
        eventually("no client is left", PATIENCE, || {
            (pooler.clients() == 0).then_some(())
        });
    }
}

#[test]
fn waiters_leave_the_pool_s_connections_to_others() {
    const QUERIES: u32 = 200;
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let mut application = pooler.session();
    // How long the application's queries took: the median and the longest.
    let mut work = || {
        let mut times: Vec<Duration> = (0..QUERIES)
            .map(|i| {
                let start = Instant::now();
                let answer =
                    application.exec(&format!("select count(*) from pg_class where {i} = {i}"));
                assert_ne!(answer, "0");
                start.elapsed()
            })
            .collect();
        times.sort();
        (times[times.len() / 2], times[times.len() - 1])
    };
    work();
    let alone = work();
    let holder = pooler.pglock().hold();
    let waiters: Vec<Running> = (0..50)
        .map(|_| {
            let waiter = pooler.pglock().flags(["--wait", "120"]);
            waiter.command(["echo", "my turn"]).spawn()
        })
        .collect();
    for waiter in &waiters {
        waiter.wait_for_line("Obtaining lock");
    }
    eventually("all are connected", PATIENCE, || {
        (pooler.clients() == 52).then_some(())
    });
    let crowded = work();
    let in_use = server.psql(
        "select count(*) from pg_stat_activity where application_name like 'pglock%' and state <> 'idle'",
    );
    println!(
        "an application's {QUERIES} queries on a pool of 5, median and longest: alone {alone:.2?}, beside 50 waiters {crowded:.2?}; \
         connections in use by pglock at the end: {in_use}"
    );
    // One that had to wait for a slot would have waited until the holder is done, which is never.
    assert!(crowded.1 < Duration::from_secs(3), "{crowded:?}");
    // Nobody is left in a transaction but the holder.
    eventually("only the holder is in a transaction", PATIENCE, || {
        let open =
            server.psql("select count(*) from pg_stat_activity where state like 'idle in trans%'");
        (open == "1").then_some(())
    });
    for waiter in &waiters {
        assert_eq!(waiter.stdout(), "");
    }
    for waiter in &waiters {
        waiter.signal(Signal::SIGTERM);
    }
    for waiter in waiters {
        waiter.wait().assert_status(143).assert_stdout("");
    }
    holder.finish().assert_status(0);
    assert_runs(&pooler.pglock(), &[]);
}

#[test]
fn a_waiter_behind_a_pooler_gets_the_lock_after_the_holder() {
    let server = Server::new();
    for mode in ["transaction", "session"] {
        let pooler = Pgbouncer::new(&server, mode, 5, &[]);
        let holder = pooler.pglock().hold();
        let start = |flags: &[&str]| {
            let waiter = pooler.pglock().flags(flags).flags(CONFLICT);
            waiter.command(["echo", "at last"]).spawn()
        };
        let (patient, hasty) = (start(&["--wait", "60"]), start(&["--wait", "1"]));
        let hasty = hasty.wait();
        hasty.assert_status(9).assert_stdout("");
        assert!(
            hasty.elapsed >= Duration::from_secs(1),
            "{}",
            hasty.report()
        );
        assert!(hasty.elapsed < Duration::from_secs(3), "{}", hasty.report());
        assert_eq!(patient.stdout(), "");
        let released = Instant::now();
        holder.finish().assert_status(0);
        patient.wait().assert_status(0).assert_stdout("at last\n");
        println!("{mode} mode: handed over within {:.2?}", released.elapsed());
    }
}

#[test]
fn a_fenced_holder_behind_a_pooler_holds_nothing_back() {
    let server = Server::new();
    // Such a default must not matter.
    server.psql("alter role postgres set default_transaction_isolation = 'serializable'");
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let mut last: u64 = 0;
    for flags in [&["--fence"][..], &["--fence", "--slots", "2"]] {
        let mut holder = pooler
            .pglock()
            .flags(flags)
            .open_input()
            .sh("echo token $PGLOCK_TOKEN.; exec cat")
            .spawn();
        holder.wait_for_output(".\n");
        let token: u64 = holder
            .stdout()
            .trim_start_matches("token ")
            .trim_end()
            .trim_end_matches('.')
            .parse()
            .expect("a token");
        assert!(token > last, "{token} after {last}");
        last = token;
        let backends = backends(&server);
        assert!(backends.contains("|idle in transaction|t|t"), "{backends}");
        assert!(!backends.contains("|f"), "{backends}");
        // What would hang if it did.
        server.psql("create table t (x int)");
        server.psql("create index concurrently on t (x)");
        server.psql("drop table t");
        holder.close_input();
        holder.wait().assert_status(0);
    }
}

#[test]
fn a_token_that_comes_late_spoils_neither_the_wait_nor_the_lease() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 2, &[]);
    let mut busy = pooler.session();
    busy.send("select pg_sleep(3.8)");
    eventually("one of the two connections is busy", PATIENCE, || {
        backends(&server).contains("|active|").then_some(())
    });
    // The token needs the busy one, when the wait is over and there is less left of the lease than the grace.
    let output = pooler
        .pglock()
        .flags(["--fence", "--wait", "1", "--ttl", "5", "--grace", "1"])
        .sh("sleep 0.5; exit 7")
        .run();
    output.assert_status(7);
    assert!(
        output.elapsed > Duration::from_secs(3),
        "{}",
        output.report()
    );
}

#[test]
fn a_pool_without_room_for_the_token_is_said_to_be_too_small() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 1, &[]);
    let marker = Marker::new();
    pooler
        .pglock()
        .flags(["--fence", "--connect-timeout", "1"])
        .command(marker.command())
        .run()
        .assert_failed(&["no fencing token", "a second connection"]);
    assert!(!marker.exists());
    // The lock did not stay behind.
    pooler.pglock().command(["true"]).run().assert_status(0);
}

#[test]
fn a_pooler_in_statement_mode_is_refused() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "statement", 5, &[]);
    let marker = Marker::new();
    for flags in [
        &[][..],
        &["--wait", "30"],
        &["--block"],
        &["--fence"],
        &["--shared"],
        &["--slots", "2"],
    ] {
        let output = pooler.pglock().flags(flags).command(marker.command()).run();
        output.assert_failed(&["pooler", "transaction or session mode"]);
        assert!(
            output.elapsed < Duration::from_secs(10),
            "{}",
            output.report()
        );
        assert!(!marker.exists(), "{flags:?}");
    }
    assert_eq!(server.holders(1), [], "a lock was left in the pool");
}

#[test]
fn signals_end_a_pooled_waiter_and_leave_the_pool_as_it_was() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 1, &[]);
    let backend = pooler.psql("select pg_backend_pid()");
    let mut session = server.session();
    session.hold(1);
    for (i, signal) in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGTERM,
    ]
    .into_iter()
    .enumerate()
    {
        let waiter = pooler.pglock().flag("--block").command(["true"]).spawn();
        waiter.wait_for_line("Obtaining lock");
        // In the midst of an attempt or of a pause.
        thread::sleep(Duration::from_millis(i as u64 * 170));
        waiter.signal(signal);
        let output = waiter.wait();
        assert!(
            output.status.code() == Some(128 + signal as i32)
                || std::os::unix::process::ExitStatusExt::signal(&output.status)
                    == Some(signal as i32),
            "{}",
            output.report()
        );
        eventually("no client is left", PATIENCE, || {
            (pooler.clients() == 0).then_some(())
        });
        let now = pooler.psql("select pg_backend_pid()");
        assert_eq!(now, backend, "the pool had to make a new connection");
    }
}

#[test]
fn one_that_skips_leaves_the_pool_s_connection_as_it_was() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 1, &[]);
    let backend = pooler.psql("select pg_backend_pid()");
    let mut session = server.session();
    session.hold(1);
    for flags in [&[][..], &["--verbose"], &["--shared"], &["--lockname", "x"]] {
        if flags.contains(&"x") {
            session.exec("select pg_advisory_lock(hashtextextended('x', 0))");
        }
        assert_skips(&pooler.pglock(), flags);
        eventually("the pool's connection is idle", PATIENCE, || {
            let state = server.psql(&format!(
                "select state from pg_stat_activity where pid = {backend}"
            ));
            (state == "idle").then_some(())
        });
        assert_eq!(pooler.psql("select pg_backend_pid()"), backend, "{flags:?}");
    }
    session.release(1);
    // Nor does one that runs end it.
    assert_runs(&pooler.pglock(), &[]);
    assert_eq!(pooler.psql("select pg_backend_pid()"), backend);
}

#[test]
fn many_that_wait_behind_a_pooler_run_one_at_a_time_and_all_of_them() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 3, &[]);
    let scratch = Scratch::new();
    let script = format!(
        "mkdir {0}/inside || echo overlap; sleep 0.02; rmdir {0}/inside; echo done",
        scratch.path().display()
    );
    let start = Instant::now();
    let runs: Vec<Running> = (0..20)
        .map(|_| pooler.pglock().flags(["--wait", "100"]).sh(&script).spawn())
        .collect();
    for run in runs {
        run.wait_within(Duration::from_secs(110))
            .assert_status(0)
            .assert_stdout("done\n");
    }
    println!(
        "20 runs of 20 ms through a pool of 3: {:.1?}",
        start.elapsed()
    );
}

#[test]
fn a_pooler_that_goes_away_ends_the_command_and_a_direct_newcomer_never_meets_it() {
    let server = Server::new();
    let mut pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let holder = pooler.pglock().flags(["--ttl", "6", "--grace", "1"]).hold();
    pooler.stop();
    let output = holder.wait();
    output.assert_status(124);
    assert_runs(&Pglock::on(&server), &["--wait", "30"]);
}

/// What PgBouncer has been told to do after a connection that failed: to try again soon.
const RETRY: &str = "server_login_retry = 1";

#[test]
fn a_server_that_restarts_behind_the_pooler_is_found_by_one_who_waits() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[RETRY]);
    let mut session = server.session();
    session.hold(1);
    let waiter = pooler
        .pglock()
        .flags(["--wait", "60", "--ttl", "5", "--grace", "0"])
        .command(["echo", "at last"])
        .spawn();
    waiter.wait_for_line("Obtaining lock");
    eventually(
        "the pool's connection was used and given back",
        PATIENCE,
        || backends(&server).contains("|idle|").then_some(()),
    );
    server.stop(Stop::Fast);
    thread::sleep(Duration::from_millis(700));
    drop(session);
    server.start();
    // Another may have held it until the server stopped, and take it again.
    let started = Instant::now();
    let output = waiter.wait();
    output.assert_status(0).assert_stdout("at last\n");
    assert!(
        started.elapsed() > Duration::from_millis(4500),
        "{:?} after the restart\n{}",
        started.elapsed(),
        output.report()
    );
}

#[test]
fn a_restart_of_the_server_does_not_disturb_a_pooled_holder_s_command() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[RETRY]);
    let holder = pooler.pglock().hold();
    for times in 1..=2 {
        server.restart(if times == 1 {
            Stop::Fast
        } else {
            Stop::Immediate
        });
        let again = within(PATIENCE, || {
            (holder.stderr().matches("taken again").count() == times).then_some(())
        });
        assert!(again.is_some(), "{}\n{}", holder.stderr(), pooler.log());
        assert_eq!(server.holders(1).len(), 1);
    }
    holder.finish().assert_status(0);
}

#[test]
fn a_server_that_is_down_behind_the_pooler_is_waited_for() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[RETRY]);
    server.stop(Stop::Fast);
    let start = |flags: &[&str]| {
        let pglock = pooler
            .pglock()
            .flags(["--ttl", "3", "--grace", "0"])
            .flags(flags);
        pglock.command(["echo", "at last"]).spawn()
    };
    let patient = start(&["--wait", "60"]);
    let failed = start(&["--connect-timeout", "3"]).wait();
    failed.assert_failed(&[]);
    let failed = start(&["--wait", "2"]).wait();
    failed.assert_failed(&[]);
    server.start();
    patient.wait().assert_status(0).assert_stdout("at last\n");
}

/// The shortest that a pool's connections may be away for without a word, and that a new holder holds off for.
const SHORT: [&str; 4] = ["--ttl", "3", "--grace", "0"];

#[test]
fn a_server_that_has_been_down_for_a_while_behind_the_pooler_is_waited_for() {
    let server = Server::new();
    // With its default for how long it does not try again what has failed.
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let pglock = pooler.pglock().flags(SHORT);
    assert_runs(&pglock, &[]);
    server.stop(Stop::Fast);
    // The first to come after that queues for the connection that cannot be made; the others are turned away.
    let first = pglock.clone().flags(["--connect-timeout", "2"]);
    first.command(["true"]).run().assert_failed(&[]);
    let turned_away = "server login has been failing, try again later";
    let hasty = pglock.clone().command(["true"]).run();
    hasty.assert_failed(&[turned_away]);
    let late = pglock
        .clone()
        .flags(["--wait", "2"])
        .command(["true"])
        .run();
    late.assert_failed(&[turned_away]);
    let start = |flags: &[&str]| {
        let patient = pglock.clone().flags(flags);
        patient.command(["echo", "at last"]).spawn()
    };
    let patient = [start(&["--wait", "90"]), start(&["--block"])];
    for run in &patient {
        run.wait_for_line("trying again");
    }
    server.start();
    for run in patient {
        let output = run.wait_within(Duration::from_secs(90));
        output.assert_status(0).assert_stdout("at last\n");
        // It is said once, not at each attempt.
        let said = output.stderr().matches("trying again").count();
        assert_eq!(said, 1, "{}", output.report());
    }
}

/// A pooler with one connection, for which nobody queues for longer than a second.
fn tight(server: &Server) -> Pgbouncer {
    Pgbouncer::new(server, "transaction", 1, &["query_wait_timeout = 1"])
}

const QUEUED: &str = "query_wait_timeout";

#[test]
fn a_pool_that_is_full_is_waited_for() {
    let server = Server::new();
    let pooler = tight(&server);
    let start = |flags: &[&str]| {
        let pglock = pooler.pglock().flags(flags);
        pglock.command(["echo", "at last"]).spawn()
    };
    // One that has waited before, and then finds the pool full.
    let mut session = server.session();
    session.hold(1);
    let old = start(&["--block"]);
    old.wait_for_line("Obtaining lock");
    eventually("it is in a pause", PATIENCE, || {
        backends(&server).contains("|idle|").then_some(())
    });
    let mut application = pooler.session();
    application.exec("begin; select 1");
    old.wait_for_line(&format!("{QUEUED}; trying again"));
    // New ones.
    let new = start(&["--wait", "60", "--lockid", "2"]);
    new.wait_for_line(&format!("{QUEUED}; trying again"));
    for flags in [&["--lockid", "3"][..], &["--lockid", "3", "--wait", "3"]] {
        let output = start(flags).wait();
        output.assert_failed(&[QUEUED]);
        let said = output.stderr();
        assert!(!said.contains("transaction stay open"), "{said}");
    }
    application.exec("commit");
    new.wait().assert_status(0).assert_stdout("at last\n");
    session.release(1);
    old.wait().assert_status(0).assert_stdout("at last\n");
}

#[test]
fn a_token_is_waited_for_where_the_pool_is_full() {
    let server = Server::new();
    let pooler = tight(&server);
    let pglock = pooler.pglock().flag("--fence");
    let hasty = pglock.clone().command(["true"]).run();
    hasty.assert_failed(&["no fencing token", "a second connection", QUEUED]);
    let patient = pglock.flag("--block").command(["echo", "at last"]).spawn();
    patient.wait_for_line(&format!("{QUEUED}; trying again"));
    pooler.admin("set default_pool_size = 2");
    patient.wait().assert_status(0).assert_stdout("at last\n");
}

#[test]
fn a_pooler_that_is_paused_or_lets_nobody_in_is_waited_for() {
    let server = Server::new();
    let pooler = tight(&server);
    assert_runs(&pooler.pglock(), &[]);
    for (close, open, words) in [
        ("pause", "resume", QUEUED),
        (
            "disable postgres",
            "enable postgres",
            "database \"postgres\" is disabled",
        ),
    ] {
        pooler.admin(close);
        let start = |flags: &[&str]| {
            let pglock = pooler.pglock().flags(flags);
            pglock.command(["echo", "at last"]).spawn()
        };
        start(&[]).wait().assert_failed(&[words]);
        let patient = [start(&["--wait", "60"]), start(&["--block"])];
        for run in &patient {
            run.wait_for_line(&format!("{words}; trying again"));
        }
        pooler.admin(open);
        for run in patient {
            run.wait().assert_status(0).assert_stdout("at last\n");
        }
    }
}

#[test]
fn a_pooler_that_is_restarted_is_waited_for() {
    let server = Server::new();
    let mut pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let mut session = server.session();
    session.hold(1);
    let start = |pooler: &Pgbouncer, flags: &[&str]| {
        let pglock = pooler.pglock().flags(flags);
        pglock.command(["echo", "at last"]).spawn()
    };
    let old = start(&pooler, &["--wait", "60"]);
    old.wait_for_line("Obtaining lock");
    pooler.stop();
    let new = start(&pooler, &["--block", "--lockid", "2"]);
    for run in [&old, &new] {
        run.wait_for_line("trying again");
    }
    pooler.start();
    new.wait().assert_status(0).assert_stdout("at last\n");
    session.release(1);
    old.wait().assert_status(0).assert_stdout("at last\n");
}

#[test]
fn what_no_patience_helps_against_behind_a_pooler() {
    let server = Server::new();
    let scratch = Scratch::new();
    let users = scratch.file("users", 0o644, "\"postgres\" \"right\"\n");
    let users = format!("auth_file = {}", users.display());
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let locked = Pgbouncer::new(&server, "transaction", 5, &["auth_type = plain", &users]);
    for (place, flags) in [&[][..], &["--wait", "30"], &["--block"]]
        .iter()
        .enumerate()
    {
        // A database of its own for each: the pooler tells its server's words only to the first who asks for one.
        let nowhere = format!("nowhere{place}");
        let wrong = locked.pglock().env("PGLOCK_PASS", "wrong");
        for (pglock, words) in [
            (wrong, "password authentication failed"),
            (
                pooler.pglock().env("PGLOCK_DATABASE", &nowhere),
                "does not exist",
            ),
            (
                pooler.pglock().env("PGLOCK_USER", "nobody"),
                "authentication failed",
            ),
            (
                pooler.pglock().env("PGOPTIONS", "-c geqo=off"),
                "unsupported startup parameter",
            ),
        ] {
            let output = pglock.flags(*flags).command(["true"]).run();
            output.assert_failed(&[words]);
            assert!(
                output.elapsed < Duration::from_secs(10),
                "{}",
                output.report()
            );
        }
    }
}

#[test]
fn other_poolers_that_are_full_or_have_no_server_are_tried_again() {
    let server = Server::new();
    let fatal = |state: &str, text: &str| (error("FATAL", state, text), text.to_owned());
    let started = [
        // Supavisor, older and newer.
        fatal("XX000", "Max client connections reached"),
        fatal(
            "XX000",
            "(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to pool_size: 15",
        ),
        // Odyssey.
        fatal(
            "53300",
            "odyssey: c1: too many tcp connections (global client_max 1)",
        ),
        fatal(
            "08006",
            "odyssey: c1: failed to get remote server connection",
        ),
        fatal("53200", "odyssey: c1: soft out of memory"),
        // RDS Proxy.
        fatal(
            "08000",
            "The maximum number of client connections to the proxy exceeded 1.",
        ),
        // PgBouncer, newer than the one above.
        fatal(
            "08P01",
            "server login has been failing, cached error: connect failed (server_login_retry)",
        ),
        fatal(
            "08P01",
            "client connections exceeded (max_user_client_connections)",
        ),
        fatal("57P01", "the pooler is shutting down"),
        fatal("", "the pool has no room, and no word for it"),
    ];
    let asked = [
        fatal(
            "XX000",
            "Unable to check out process from the pool due to timeout",
        ),
        fatal(
            "08006",
            "odyssey: c1: failed to get remote server connection",
        ),
        fatal("08000", "Timed-out waiting to acquire database connection."),
    ];
    // pgcat answers, and stays.
    let text = "could not get connection from the pool - AllServersDown";
    let pgcat = [&error("FATAL", "58000", text), READY].concat();
    let asked = asked.into_iter().chain([(pgcat, text.to_owned())]);
    let trials = started.into_iter().map(|said| (1, said));
    thread::scope(|scope| {
        for (request, (said, words)) in trials.chain(asked.map(|said| (2, said))) {
            let server = &server;
            scope.spawn(move || {
                let proxy = Proxy::new(server);
                proxy.trap(When::Request(request), What::Say(said));
                let pglock = Pglock::at(proxy.port()).flags(["--lockname", &words]);
                let hasty = pglock.clone().flags(["--connect-timeout", "1"]);
                hasty.command(["true"]).run().assert_failed(&[&words]);
                let patient = pglock.flags(["--wait", "60"]);
                let run = patient.command(["echo", "at last"]).spawn();
                run.wait_for_line(&format!("{words}; trying again"));
                proxy.disarm();
                run.wait().assert_status(0).assert_stdout("at last\n");
            });
        }
    });
}

#[test]
fn other_poolers_that_refuse_for_good_are_not() {
    let server = Server::new();
    for (state, words) in [
        ("08P01", "no such database: nowhere"),
        ("08P01", "SASL authentication failed"),
        ("08P01", "Long transactions not allowed"),
        (
            "08P01",
            "server login has been failing, cached error: database \"x\" does not exist (server_login_retry)",
        ),
        ("XX000", "(ENOTFOUND) tenant/user postgres.x not found"),
        ("3D000", "odyssey: c1: route for 'x.y' is not found"),
        ("08000", "This RDS proxy has no credentials for the role x."),
    ] {
        let proxy = Proxy::new(&server);
        let said = What::Say(error("FATAL", state, words));
        proxy.trap(When::Request(1), said);
        for flags in [&[][..], &["--wait", "30"], &["--block"]] {
            let pglock = Pglock::at(proxy.port()).flags(flags);
            let output = pglock.command(["true"]).run();
            output.assert_failed(&[words]);
            assert!(
                output.elapsed < Duration::from_secs(10),
                "{}",
                output.report()
            );
        }
    }
}

#[test]
fn a_lock_call_that_waits_in_the_pool_s_queue_costs_no_lease() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 1, &[]);
    let mut session = server.session();
    session.hold(1);
    let waiter = pooler
        .pglock()
        .flags(["--wait", "60", "--ttl", "4", "--grace", "0"])
        .command(["echo", "at last"])
        .spawn();
    waiter.wait_for_line("Obtaining lock");
    eventually("it is in a pause", PATIENCE, || {
        backends(&server).contains("|idle|").then_some(())
    });
    let mut application = pooler.session();
    application.exec("begin; select 1");
    session.release(1);
    // Longer than a lease that counts from when the lock was asked for.
    thread::sleep(Duration::from_millis(4500));
    assert_eq!(waiter.stdout(), "");
    application.exec("commit");
    waiter.wait().assert_status(0).assert_stdout("at last\n");
}

#[test]
fn a_pooler_that_has_too_many_clients_is_tried_again() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &["max_client_conn = 1"]);
    let application = pooler.session();
    let start = |flags: &[&str]| {
        pooler
            .pglock()
            .flags(flags)
            .command(["echo", "it runs"])
            .spawn()
    };
    let late = start(&["--connect-timeout", "1"]).wait();
    late.assert_failed(&["max_client_conn"]);
    assert!(
        late.elapsed >= Duration::from_millis(900),
        "{}",
        late.report()
    );
    drop(application);
    for flags in [["--connect-timeout", "30"], ["--wait", "30"]] {
        let application = pooler.session();
        let run = start(&flags);
        run.wait_for_line("trying again");
        drop(application);
        run.wait().assert_status(0).assert_stdout("it runs\n");
    }
}

#[test]
fn a_pooler_that_is_slow_to_try_again_has_its_server_back_in_time() {
    thread::scope(|scope| {
        for how in [Stop::Fast, Stop::Immediate] {
            scope.spawn(move || {
                let server = Server::new();
                // If it finds the server down, it does not look again for 15 s.
                let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
                let holder = pooler.pglock().hold();
                server.restart(how);
                let again = within(PATIENCE, || {
                    holder.stderr().contains("taken again").then_some(())
                });
                assert!(
                    again.is_some(),
                    "{how:?}: {}\n{}",
                    holder.stderr(),
                    pooler.log()
                );
                assert_eq!(server.holders(1).len(), 1);
                holder.finish().assert_status(0);
            });
        }
    });
}

#[test]
fn a_pooler_that_goes_away_is_no_server_that_goes_down() {
    let server = Server::new();
    let mut pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let holder = pooler.pglock().hold();
    let command = command_of(holder.pid());
    pooler.stop();
    // Nobody keeps the lock from those who know another way.
    let other = Pglock::on(&server).flags(["--wait", "30"]).hold();
    wait_for_state("the command", command, "T");
    other.finish().assert_status(0);
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_status(124);
}

#[test]
fn what_a_pooler_says_of_the_end_of_a_session_is_in_the_log() {
    let server = Server::new();
    let pooler = Pgbouncer::new(&server, "transaction", 5, &["idle_transaction_timeout = 1"]);
    let holder = pooler.pglock().hold();
    let output = holder.wait();
    output.assert_status(124);
    let log = output.stderr();
    let line = log
        .lines()
        .find(|line| line.contains("the connection to the server was lost, "));
    assert!(
        line.is_some_and(|line| line.ends_with(": idle transaction timeout")),
        "{}",
        output.report()
    );
}

/// How far ahead the last one of those who wait for lock 1 was told to look again, by the note on the pool's connection that is
/// used first.
fn turn(pooler: &Pgbouncer) -> Duration {
    let note = pooler.psql(
        "select (extract(epoch from clock_timestamp()) * 1000)::bigint, current_setting('pglock.turn_248', true)",
    );
    let numbers = note.split_once('|').expect("two fields");
    let now: u64 = numbers.0.parse().expect("a number");
    Duration::from_millis(numbers.1.parse().unwrap_or(now).saturating_sub(now))
}

#[test]
fn a_crowd_behind_a_pooler_looks_in_turn_and_comes_to_the_lock_in_turn() {
    const COUNT: usize = 40;
    let server = Server::builder().conf("log_statement = all").start();
    let looks = || server.log().matches("'pglock.turn_").count() / 2;
    let pooler = Pgbouncer::new(&server, "transaction", 5, &[]);
    let holder = pooler.pglock().hold();
    let scratch = Scratch::new();
    let inside = scratch.path().join("inside");
    let script = format!("mkdir {0} && rmdir {0} && echo alone", inside.display());
    let crowd: Vec<Running> = (0..COUNT)
        .map(|_| pooler.pglock().flag("--block").sh(&script).spawn())
        .collect();
    // Each knows of the others, and so comes less often than it would alone: every half a second.
    let alone = Duration::from_millis(500);
    eventually("all are told to come later", PATIENCE, || {
        (turn(&pooler) > 6 * alone).then_some(())
    });
    let (before, start) = (looks(), Instant::now());
    thread::sleep(6 * alone);
    let looked = looks() - before;
    let usual = COUNT as f64 * start.elapsed().as_secs_f64() / alone.as_secs_f64();
    println!("{COUNT} looked {looked} times, where {usual:.0} would be usual");
    assert!(looked > 0 && (looked as f64) < usual / 3.0, "{looked}");
    holder.finish().assert_status(0);
    for one in crowd {
        one.wait().assert_status(0).assert_stdout("alone\n");
    }
}

#[test]
fn a_note_on_a_pool_s_connection_does_no_harm() {
    let server = Server::new();
    for (settings, note) in [
        // Somebody else's.
        (&[][..], "soon"),
        (&[], "-1"),
        (&[], "99999999999999999999"),
        // Of a clock that was put back since.
        (&[], "999999999999999"),
        // A pooler that wipes off what was set.
        (&["server_reset_query_always = 1"], "999999999999999"),
    ] {
        let pooler = Pgbouncer::new(&server, "transaction", 1, settings);
        let mut session = server.session();
        session.hold(1);
        pooler.psql(&format!(
            "select set_config('pglock.turn_248', '{note}', false)"
        ));
        let waiter = pooler.pglock().flag("--block").command(["echo", "at last"]);
        let waiter = waiter.spawn();
        waiter.wait_for_line("Obtaining lock");
        if settings.is_empty() {
            eventually("the note is mended", PATIENCE, || {
                let turn = turn(&pooler);
                (!turn.is_zero() && turn <= Duration::from_secs(10)).then_some(())
            });
        }
        session.release(1);
        waiter.wait().assert_status(0).assert_stdout("at last\n");
    }
}
