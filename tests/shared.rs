//! Shared locks: many sharers, or one exclusive holder.

use crate::support::*;

fn lock(server: &Server, flags: &[&str]) -> Pglock {
    Pglock::on(server)
        .flags(["--conflict-exit-code", "9"])
        .flags(flags)
}

#[test]
fn sharers_hold_together_and_an_exclusive_holder_alone() {
    let server = Server::new();
    for name in [&["--lockid", "7"][..], &["--lockname", "n"]] {
        let shared = lock(&server, name).flag("--shared");
        let exclusive = lock(&server, name);
        let first = shared.clone().hold();
        let second = shared.clone().hold();
        exclusive.clone().sh("exit 1").run().assert_status(9);
        first.finish().assert_status(0);
        exclusive.clone().sh("exit 1").run().assert_status(9);
        second.finish().assert_status(0);
        let alone = exclusive.clone().hold();
        shared.clone().sh("exit 1").run().assert_status(9);
        exclusive.sh("exit 1").run().assert_status(9);
        alone.finish().assert_status(0);
        shared.sh("exit 3").run().assert_status(3);
    }
}

#[test]
fn sql_shares_too() {
    let server = Server::new();
    let mut session = server.session();
    let sharer = lock(&server, &["--shared", "--lockid", "7"]).hold();
    assert_eq!(session.exec("select pg_try_advisory_lock_shared(7)"), "t");
    assert_eq!(session.exec("select pg_try_advisory_lock(7)"), "f");
    sharer.finish().assert_status(0);
    lock(&server, &["--lockid", "7"])
        .sh("exit 1")
        .run()
        .assert_status(9);
    lock(&server, &["--shared", "--lockid", "7"])
        .sh("exit 3")
        .run()
        .assert_status(3);
}

#[test]
fn a_writer_that_waits_comes_before_sharers_that_come_later() {
    let server = Server::new();
    let sharer = lock(&server, &["--shared"]).hold();
    let writer = lock(&server, &["--block"]).sh("exit 4").spawn();
    eventually("the writer waits", PATIENCE, || {
        server.waiters(1).first().copied()
    });
    // The server does not let it pass the writer, but for the moment between two turns of the writer's.
    eventually("a later sharer skips", PATIENCE, || {
        let output = lock(&server, &["--shared"]).sh("exit 0").run();
        output.report().contains("skipping command").then_some(())
    });
    sharer.finish().assert_status(0);
    writer.wait().assert_status(4);
}

#[test]
fn sharers_wait_for_an_exclusive_holder_together() {
    let server = Server::new();
    let holder = lock(&server, &[]).hold();
    let waiters: Vec<_> = (0..5)
        .map(|_| {
            lock(&server, &["--shared", "--wait", "60"])
                .sh("echo in; cat")
                .open_input()
                .spawn()
        })
        .collect();
    eventually("all wait", PATIENCE, || {
        (server.waiters(1).len() == 5).then_some(())
    });
    holder.finish().assert_status(0);
    for waiter in &waiters {
        waiter.wait_for_output("in");
    }
    assert_eq!(server.holders(1).len(), 5);
    for waiter in waiters {
        waiter.finish().assert_status(0);
    }
}
