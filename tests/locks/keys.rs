//! Keys of every kind: any bigint, and a pair of integers.

use crate::support::pgbouncer::Pgbouncer;
use crate::support::*;

fn keyed(server: &Server, key: &str) -> Pglock {
    Pglock::on(server).flags(["--lockkey", key, "--conflict-exit-code", "9"])
}

const KEYS: [&str; 9] = [
    "0",
    "-1",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "7,0",
    "7,-1",
    "-2147483648,2147483647",
    "0,7",
];

/// As an argument of SQL's functions.
fn in_sql(key: &str) -> String {
    match key.contains(',') {
        true => key.to_owned(),
        false => format!("'{key}'"),
    }
}

#[test]
fn a_key_is_the_lock_that_sql_takes() {
    let server = Server::new();
    let mut session = server.session();
    for key in KEYS {
        let arguments = in_sql(key);
        let holder = keyed(&server, key).hold();
        holder.wait_for_line(&format!("Lock ID {key} obtained successfully!"));
        let status = keyed(&server, key).flag("--status").run();
        let table = status.assert_status(9).stdout();
        assert!(table.contains("holder  exclusive"), "{key}: {table}");
        assert_eq!(
            session.exec(&format!("select pg_try_advisory_lock({arguments})")),
            "f",
            "{key}"
        );
        for other in KEYS.iter().filter(|other| **other != key) {
            keyed(&server, other)
                .command(["true"])
                .run()
                .assert_status(0);
        }
        holder.finish().assert_status(0);
        assert_eq!(
            session.exec(&format!("select pg_try_advisory_lock({arguments})")),
            "t",
            "{key}"
        );
        keyed(&server, key).command(["true"]).run().assert_status(9);
        session.exec("select pg_advisory_unlock_all()");
    }
}

#[test]
fn a_key_is_waited_for_and_shared() {
    let server = Server::new();
    for key in KEYS {
        let holder = keyed(&server, key).hold();
        let waiter = keyed(&server, key).flag("--block").open_input();
        let waiter = waiter.command(["cat"]).spawn();
        waiter.wait_for_line("Obtaining lock without timeout..");
        eventually("it waits", PATIENCE, || {
            let waiting = server
                .psql("select count(*) from pg_locks where locktype = 'advisory' and not granted");
            (waiting == "1").then_some(())
        });
        holder.finish().assert_status(0);
        waiter.wait_for_line(&format!("Lock ID {key} obtained successfully!"));
        waiter.finish().assert_status(0);
        let first = keyed(&server, key).flag("--shared").hold();
        let second = keyed(&server, key).flag("--shared").hold();
        keyed(&server, key).command(["true"]).run().assert_status(9);
        first.finish().assert_status(0);
        second.finish().assert_status(0);
    }
}

#[test]
fn a_number_of_any_size_has_slots() {
    let server = Server::new();
    for key in ["7", "-1", "4294967296", "-9223372036854775808"] {
        let slots = |count: &str| keyed(&server, key).flags(["--slots", count]);
        let first = slots("2").hold();
        let second = slots("2").hold();
        slots("2").command(["true"]).run().assert_status(9);
        // A neighbour has slots of its own.
        let neighbour = Pglock::on(&server).flags(["--lockkey=-2", "--slots", "2"]);
        neighbour.command(["true"]).run().assert_status(0);
        let table = slots("2").flag("--status").run().stdout();
        assert_eq!(table.matches("holder").count(), 2, "{key}: {table}");
        let waiter = slots("2").flag("--block").open_input();
        let waiter = waiter.command(["cat"]).spawn();
        waiter.wait_for_line("Obtaining lock without timeout..");
        first.finish().assert_status(0);
        waiter.wait_for_line(&format!("Lock ID {key} obtained successfully!"));
        waiter.finish().assert_status(0);
        second.finish().assert_status(0);
    }
}

#[test]
fn a_pair_that_is_a_slot_excludes_and_is_excluded_there() {
    let server = Server::new();
    let slots = || keyed(&server, "7").flags(["--slots", "3"]);
    let pair = keyed(&server, "7,2").hold();
    let first = slots().hold();
    let third = slots().hold();
    slots().command(["true"]).run().assert_status(9);
    pair.finish().assert_status(0);
    let second = slots().hold();
    keyed(&server, "7,2")
        .command(["true"])
        .run()
        .assert_status(9);
    for slot in [first, second, third] {
        slot.finish().assert_status(0);
    }
}

#[test]
fn a_key_is_taken_again_after_a_restart_and_held_behind_a_pooler() {
    let server = Server::new();
    let held = "select count(*) from pg_locks where locktype = 'advisory' and granted";
    for key in ["-9223372036854775808", "7,-1"] {
        let holder = keyed(&server, key).hold();
        server.restart(Stop::Fast);
        eventually("it is taken again", PATIENCE, || {
            (server.psql(held) == "1").then_some(())
        });
        holder.finish().assert_status(0);
        let bouncer = Pgbouncer::new(&server, "transaction", 5, &[]);
        // Without a lease nobody holds off from the server that was restarted.
        let pooled = bouncer.pglock().flags(["--lockkey", key, "--ttl", "0"]);
        let pooled = pooled.flags(["--conflict-exit-code", "9"]);
        let holder = pooled.clone().hold();
        pooled.command(["true"]).run().assert_status(9);
        holder.finish().assert_status(0);
    }
}
