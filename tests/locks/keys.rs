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

/// What stands for the lock in the keys beside it, by the manual.
fn beside(key: &str) -> String {
    if let Some((first, second)) = key.split_once(',') {
        let first: i64 = first.parse().expect("a number");
        let second: i32 = second.parse().expect("a number");
        let number = (first << 32) + i64::from(second as u32);
        return format!("(hashint8extended('{number}', -1) >> 32)::int");
    }
    match key.parse::<u32>() {
        Ok(id) => (id as i32).to_string(),
        Err(_) => format!("(hashint8extended('{key}', 0) >> 32)::int"),
    }
}

/// Waits until somebody has what this argument of SQL's functions names.
#[track_caller]
fn wait_until_taken(session: &mut Session, arguments: &str) {
    eventually(&format!("{arguments} is taken"), PATIENCE, || {
        let question = format!("select pg_try_advisory_xact_lock({arguments})");
        (session.exec(&question) == "f").then_some(())
    });
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
    let mut session = server.session();
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
        wait_until_taken(&mut session, &format!("{}, -1", beside(key)));
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
    let mut session = server.session();
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
        wait_until_taken(&mut session, &format!("{}, 0", beside(key)));
        let slot = match key {
            "7" => "7, 2".to_owned(),
            _ => format!("hashint8extended('{key}', 1)"),
        };
        wait_until_taken(&mut session, &slot);
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
