//! A standby takes the place of its primary: who may have the lock there, and from when on.

use std::time::{Duration, SystemTime};

use crate::support::cluster::{grow_old, primary, promote, standby};
use crate::support::pgbouncer::Pgbouncer;
use crate::support::*;

/// How long newcomers to a promoted server hold off here.
const TTL: Duration = Duration::from_secs(3);
const SHORT: [&str; 4] = ["--ttl", "3", "--grace", "0"];

const PROMOTED: &str =
    "The server was promoted and does not know the locks of the primary before it: holding off for";

/// A primary and its standby, both of which were started longer ago than a lease lasts; an ordinary role can log in.
fn pair() -> (Server, Server) {
    let primary = primary().start();
    primary.psql("create role plain login; create role app login");
    let standby = standby(&primary, Server::builder());
    grow_old(&primary, TTL);
    grow_old(&standby, TTL);
    (primary, standby)
}

fn on(server: &Server) -> Pglock {
    Pglock::on(server).flags(SHORT)
}

#[test]
fn every_newcomer_to_a_promoted_server_holds_off() {
    let (primary, standby) = pair();
    let pooler = Pgbouncer::new(&standby, "transaction", 20, &[]);
    primary.stop(Stop::Fast);
    let before = SystemTime::now();
    promote(&standby);
    let newcomers = [
        on(&standby),
        on(&standby).flags(["--user", "plain", "--lockid", "2"]),
        on(&standby).flags(["--shared", "--lockid", "3"]),
        on(&standby).flags(["--slots", "2", "--lockid", "4"]),
        on(&standby).flags(["--block", "--lockid", "5", "--fence"]),
        on(&standby).flags(["--wait", "20", "--lockname", "six"]),
        pooler.pglock().flags(SHORT).flags(["--lockid", "7"]),
        pooler
            .pglock()
            .flags(SHORT)
            .flags(["--lockid", "8", "--user", "app", "--wait", "20"]),
    ]
    .map(|pglock| stamped(pglock).spawn());
    for newcomer in newcomers {
        let output = newcomer.wait();
        output.assert_status(0);
        assert!(output.stderr().contains(PROMOTED), "{}", output.report());
        let waited = began(&output).duration_since(before);
        let is_late = waited.is_ok_and(|time| time >= TTL);
        assert!(is_late, "too early: {}", output.report());
    }
}

#[test]
fn a_promotion_that_is_long_over_holds_nobody_up() {
    let (primary, standby) = pair();
    primary.stop(Stop::Fast);
    promote(&standby);
    let settled = "select now() - pg_control_last_modified > '5 s' from pg_control_system()";
    eventually("the promotion is over", PATIENCE, || {
        (standby.psql(settled) == "t").then_some(())
    });
    for flags in [
        &["--user", "postgres"][..],
        &["--user", "plain"],
        &["--slots", "2", "--user", "plain"],
    ] {
        let output = on(&standby).flags(flags).command(["true"]).run();
        output.assert_status(0);
        let is_held_up = output.stderr().contains("holding off");
        assert!(!is_held_up, "{}", output.report());
    }
}

#[test]
fn a_crash_of_a_server_that_was_never_promoted_is_no_promotion() {
    let server = Server::new();
    server.crash();
    server.start();
    grow_old(&server, TTL);
    assert_ne!(server.psql("select pg_last_wal_replay_lsn()"), "");
    server.psql("checkpoint");
    for user in ["postgres", "plain"] {
        if user == "plain" {
            server.psql("create role plain login");
        }
        let pglock = on(&server).flags(["--user", user]);
        let output = pglock.command(["true"]).run();
        output.assert_status(0);
        let is_held_up = output.stderr().contains("holding off");
        assert!(!is_held_up, "{}", output.report());
    }
}

#[test]
fn a_role_that_is_not_told_of_promotions_goes_without() {
    let (primary, standby) = pair();
    let functions = [
        "pg_last_wal_replay_lsn()",
        "pg_control_system()",
        "pg_control_checkpoint()",
        "pg_walfile_name(pg_lsn)",
        "pg_current_wal_lsn()",
    ];
    let pooler = Pgbouncer::new(&standby, "transaction", 20, &[]);
    for function in functions {
        primary.psql(&format!(
            "revoke execute on function {function} from public"
        ));
    }
    let there = primary.psql("select pg_current_wal_lsn()");
    let caught_up = format!("select pg_last_wal_replay_lsn() >= '{there}'");
    eventually("the standby has it", PATIENCE, || {
        (standby.psql(&caught_up) == "t").then_some(())
    });
    promote(&standby);
    for pglock in [on(&standby).flags(["--user", "plain"]), {
        let pooled = pooler.pglock().flags(SHORT);
        pooled.flags(["--user", "app"])
    }] {
        let output = pglock.flag("--verbose").command(["true"]).run();
        output.assert_status(0);
        let log = output.stderr();
        assert!(
            log.contains("does not tell when it was promoted")
                && log.contains("permission denied for function pg_"),
            "{log}"
        );
        assert!(!log.contains("holding off"), "{log}");
    }
    // Who may be told is.
    let output = on(&standby).command(["true"]).run();
    assert!(output.stderr().contains(PROMOTED), "{}", output.report());
}

/// With a command that says when it began.
fn stamped(pglock: Pglock) -> Pglock {
    pglock.command(["date", "+%s%N"])
}

fn began(output: &Output) -> SystemTime {
    let nanoseconds = output.stdout().trim().parse().expect("a time");
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}
