//! Counted locks: up to N holders at once.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::*;

fn slots(server: &Server, number: u32) -> Pglock {
    Pglock::on(server).flags(["--conflict-exit-code", "9", "--slots", &number.to_string()])
}

/// The keys of all advisory locks that are held.
fn keys(server: &Server) -> String {
    server.psql(
        "select string_agg(classid || ',' || objid || '/' || objsubid, ' ' order by objsubid, objid)
         from pg_locks where locktype = 'advisory' and granted",
    )
}

/// Takes one of `number` places, each a file that only one may lock: fails where there is none.
fn place(scratch: &Scratch, number: u32) -> String {
    let dir = scratch.path().display();
    format!(
        "for i in $(seq {number}); do exec 9>{dir}/place-$i; \
         if flock -n 9; then echo $i >>{dir}/runs; sleep 0.05; exit 0; fi; done; echo >>{dir}/overlap; exit 1"
    )
}

#[test]
fn the_slots_have_the_keys_that_are_written_down() {
    let server = Server::new();
    let holders: Vec<_> = (0..3)
        .map(|_| slots(&server, 3).flags(["--lockid", "7"]).hold())
        .collect();
    assert_eq!(keys(&server), "0,7/1 7,2/2 7,3/2");
    slots(&server, 3)
        .flags(["--lockid", "7"])
        .sh("exit 1")
        .run()
        .assert_status(9);
    // The first slot is the lock itself.
    Pglock::on(&server)
        .flags(["--lockid", "7", "--conflict-exit-code", "9"])
        .sh("exit 1")
        .run()
        .assert_status(9);
    let waiter = slots(&server, 3)
        .flags(["--lockid", "7", "--block"])
        .sh("exit 4")
        .spawn();
    eventually("it stands at the door", PATIENCE, || {
        keys(&server).contains("7,0/2").then_some(())
    });
    for holder in holders {
        holder.finish().assert_status(0);
    }
    waiter.wait().assert_status(4);
    assert_eq!(keys(&server), "");
}

#[test]
fn the_slots_of_a_name_are_its_hashes() {
    let server = Server::new();
    let named = || slots(&server, 2).flags(["--lockname", "it's"]);
    let first = named().hold();
    let second = named().hold();
    for seed in [0, 1] {
        let held = server.psql(&format!(
            "select pg_try_advisory_lock(hashtextextended('it''s', {seed}))"
        ));
        assert_eq!(held, "f", "seed {seed}");
    }
    named().sh("exit 1").run().assert_status(9);
    let waiter = named().flag("--block").sh("exit 4").spawn();
    eventually("it stands at the door", PATIENCE, || {
        let door = server.psql("select pg_try_advisory_lock(hashtextextended('it''s', -1))");
        (door == "f").then_some(())
    });
    first.finish().assert_status(0);
    waiter.wait().assert_status(4);
    second.finish().assert_status(0);
}

#[test]
fn a_hundred_run_three_at_a_time_and_all_of_them() {
    let server = Server::builder().conf("max_connections = 120").start();
    let scratch = Scratch::new();
    let script = place(&scratch, 3);
    let runs: Vec<_> = (0..100)
        .map(|_| {
            let pglock = slots(&server, 3).flags(["--wait", "120", "--connect-timeout", "60"]);
            pglock.limit(Duration::from_secs(120)).sh(&script).spawn()
        })
        .collect();
    for run in runs {
        run.wait_within(Duration::from_secs(120)).assert_status(0);
    }
    let places = fs::read_to_string(scratch.path().join("runs")).expect("read");
    assert_eq!(places.lines().count(), 100);
    assert!(!scratch.path().join("overlap").exists());
    // The third place is taken only while the other two are.
    assert!(
        places.lines().any(|place| place == "3"),
        "never three at once"
    );
}

#[test]
fn a_hundred_waiters_leave_the_server_alone() {
    let server = Server::builder().conf("max_connections = 120").start();
    let holder = slots(&server, 2).hold();
    let other = slots(&server, 2).hold();
    let waiters: Vec<_> = (0..100)
        .map(|_| {
            slots(&server, 2)
                .flags(["--block", "--connect-timeout", "60"])
                .sh("exit 0")
                .spawn()
        })
        .collect();
    let queue =
        "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2 and objid = 0";
    eventually("all wait", PATIENCE, || {
        (server.psql(queue).parse::<u32>().expect("a number") >= 99).then_some(())
    });
    // Each statement that ends is a transaction; backends report theirs at least once a second or so.
    let count = || {
        let sum = "select sum(xact_commit + xact_rollback) from pg_stat_database";
        server.psql(sum).parse::<u32>().expect("a number")
    };
    let before = count();
    std::thread::sleep(Duration::from_secs(6));
    let rate = f64::from(count() - before) / 6.0;
    println!("{rate} statements a second");
    assert!(rate < 150.0, "{rate} statements a second");
    holder.finish().assert_status(0);
    other.finish().assert_status(0);
    for waiter in waiters {
        waiter.wait_within(Duration::from_secs(60)).assert_status(0);
    }
}

#[test]
fn a_slot_is_free_again_after_a_kill_and_lost_with_its_session() {
    let server = Server::new();
    let killed = slots(&server, 2).sh("echo ready; sleep 1000").spawn();
    killed.wait_for_output("ready");
    let terminated = slots(&server, 2).sh("echo ready; sleep 1000").spawn();
    terminated.wait_for_output("ready");
    let waiter = slots(&server, 2)
        .flags(["--wait", "60"])
        .sh("exit 4")
        .spawn();
    eventually("it stands at the door", PATIENCE, || {
        keys(&server).contains("1,0/2").then_some(())
    });
    killed.signal(Signal::SIGKILL);
    waiter.wait().assert_status(4);
    server.psql(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objsubid = 2",
    );
    terminated.wait().assert_status(124);
    assert_eq!(keys(&server), "");
}

#[test]
fn a_slot_is_retaken_after_a_restart() {
    let server = Server::new();
    let first = slots(&server, 2).hold();
    let second = slots(&server, 2).hold();
    server.restart(Stop::Immediate);
    for holder in [&first, &second] {
        holder.wait_for_line("the lock was taken again");
    }
    assert_eq!(keys(&server), "0,1/1 1,2/2");
    first.finish().assert_status(0);
    second.finish().assert_status(0);
}

#[test]
fn numbers_of_slots_that_cannot_be_are_refused() {
    let server = Server::new();
    for number in ["0", "10001", "-1", "x"] {
        let pglock = Pglock::on(&server).flags(["--slots", number]);
        pglock
            .sh("exit 0")
            .run()
            .assert_refused(&["--slots", number]);
    }
    let shared = Pglock::on(&server).flags(["--slots", "2", "--shared"]);
    shared
        .sh("exit 0")
        .run()
        .assert_refused(&["--slots", "--shared"]);
}
