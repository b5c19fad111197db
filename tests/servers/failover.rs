//! A standby takes the place of its primary: who may have the lock there, and from when on.

use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::support::cluster::{follow, grow_old, lists, primary, promote, standby};
use crate::support::pgbouncer::Pgbouncer;
use crate::support::pty::Pty;
use crate::support::server::Builder;
use crate::support::wait::within;
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
    // Who may be told is.
    let told = on(&standby).flags(["--lockid", "2"]);
    let told = told.command(["true"]).spawn();
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
    let output = told.wait();
    assert!(output.stderr().contains(PROMOTED), "{}", output.report());
}

#[test]
fn a_server_that_does_not_support_what_tells_of_promotions_is_used_without() {
    // In the words of Aurora, as people report them.
    let server = Server::builder()
        .conf("allow_system_table_mods = on")
        .start();
    let replace = |function: &str, sqlstate: &str, message: &str| {
        // One that is built in is found by its number, whatever stands in its row.
        let away =
            format!("update pg_proc set proname = 'away_{function}' where proname = '{function}'");
        server.psql(&away);
        server.psql(&format!(
            "create function pg_catalog.{function}() returns pg_lsn language plpgsql as \
             $$begin raise exception using errcode = '{sqlstate}', message = '{message}'; end$$"
        ));
    };
    let message = "wal_level must be set to \"logical\"";
    replace("pg_current_wal_lsn", "55000", message);
    let holder = on(&server).flag("--verbose").hold();
    eventually("it has been asked where it stands", PATIENCE, || {
        server.log().contains(message).then_some(())
    });
    // It holds its lock all the same.
    assert_eq!(server.holders(1).len(), 1);
    holder.finish().assert_status(0);
    let message = "Function pg_last_wal_replay_lsn() is currently not supported for Aurora";
    replace("pg_last_wal_replay_lsn", "0A000", message);
    let output = on(&server).flag("--verbose").command(["true"]).run();
    output.assert_status(0);
    assert!(
        output
            .stderr()
            .contains("does not tell when it was promoted")
            && output.stderr().contains(message),
        "{}",
        output.report()
    );
}

/// How the primary goes.
#[derive(Clone, Copy, Debug)]
enum Going {
    /// It is stopped, as in a planned switchover.
    Switchover,
    /// Its postmaster is killed.
    Crash,
    /// It lives on, but for the sessions.
    SplitBrain,
}

/// A primary, its standby, and a file that every command holds for as long as it lives.
struct Rig {
    primary: Server,
    standby: Server,
    scratch: Scratch,
}

/// With these a command lives through a failover of up to 9 s.
const LONG: [&str; 4] = ["--ttl", "15", "--grace", "5"];

impl Rig {
    fn new() -> Rig {
        Rig::made(primary)
    }

    /// Of two servers that are made so.
    fn made(builder: impl Fn() -> Builder) -> Rig {
        let primary = builder().start();
        let standby = standby(&primary, builder());
        Rig {
            primary,
            standby,
            scratch: Scratch::new(),
        }
    }

    fn on(&self, servers: &[&Server]) -> Pglock {
        let (hosts, ports) = lists(servers);
        Pglock::new()
            .flags(["--user", "postgres", "--host", &hosts, "--port", &ports])
            .flags(LONG)
    }

    /// A pglock that is told of both.
    fn both(&self) -> Pglock {
        self.on(&[&self.primary, &self.standby])
    }

    /// A command that holds the file, then does this. It does not heed SIGTERM.
    fn script(&self, script: &str) -> String {
        let dir = self.scratch.path().display();
        format!(
            "trap '' TERM; exec 9>>{dir}/witness; flock -n 9 || echo $$ >>{dir}/overlaps; {script}"
        )
    }

    /// A holder with such a command, which says "alive" when it is asked.
    fn holder(&self, pglock: Pglock) -> Running {
        let script = self.script("echo the command runs; while read -r line; do echo $line; done");
        let holder = pglock.open_input().sh(&script).spawn();
        holder.wait_for_output("the command runs");
        // It asks where its server stands when it has settled. So does this question, and the one before may not have ended.
        eventually("the holder has settled", PATIENCE, || {
            let asked = "select count(*) from pg_stat_activity where query like '%system_identifier%' \
                         and query not like '%pg_stat_activity%' and state = 'idle'";
            let servers = [&self.primary, &self.standby];
            servers
                .iter()
                .any(|server| server.psql(asked) != "0")
                .then_some(())
        });
        holder
    }

    /// One who takes the lock for a moment.
    fn short(&self, pglock: Pglock) -> Running {
        pglock.sh(&self.script("echo in turn")).spawn()
    }

    fn go(&self, how: Going) {
        match how {
            Going::Switchover => self.primary.stop(Stop::Fast),
            Going::Crash => self.primary.crash(),
            Going::SplitBrain => {}
        }
        promote(&self.standby);
    }

    #[track_caller]
    fn assert_no_overlap(&self) {
        let overlaps = std::fs::read_to_string(self.scratch.path().join("overlaps"));
        assert!(overlaps.is_err(), "two at once: {overlaps:?}");
    }
}

const RETAKEN: &str = "was promoted; the lock was taken again";

#[track_caller]
fn assert_alive(holder: &mut Running) {
    holder.write("alive\n");
    holder.wait_for_output("alive");
}

#[test]
fn after_a_switchover_the_lock_moves_and_its_command_lives() {
    the_lock_moves(Going::Switchover);
}

#[test]
fn after_a_crash_the_lock_moves_and_its_command_lives() {
    the_lock_moves(Going::Crash);
}

fn the_lock_moves(how: Going) {
    let rig = Rig::new();
    let mut holder = rig.holder(rig.both());
    let before = rig.short(rig.both().flag("--block"));
    eventually("one waits", PATIENCE, || {
        (!rig.primary.waiters(1).is_empty()).then_some(())
    });
    let at_the_door = [0, 1].map(|_| rig.short(rig.both().flags(["--wait", "100"])));
    rig.go(how);
    let newcomer = rig.short(rig.on(&[&rig.standby]).flags(["--wait", "100"]));
    holder.wait_for_line(RETAKEN);
    assert_alive(&mut holder);
    assert_eq!(rig.standby.holders(1).len(), 1);
    let status = rig
        .on(&[&rig.standby])
        .flags(["--status", "--lockid", "1"])
        .run();
    assert!(status.stdout().contains("holder"), "{}", status.report());
    let skipped = rig.on(&[&rig.standby]).command(["true"]).run();
    skipped.assert_status(0);
    assert!(
        skipped.stderr().contains("skipping command"),
        "{}",
        skipped.report()
    );
    let output = holder.finish();
    output.assert_status(0);
    assert!(
        output.stderr().contains("nobody has had it meanwhile"),
        "{}",
        output.report()
    );
    for waiter in at_the_door.into_iter().chain([before, newcomer]) {
        waiter.wait().assert_status(0).assert_stdout("in turn\n");
    }
    rig.assert_no_overlap();
}

#[test]
fn an_address_that_leads_to_the_promoted_server_is_one_place_among_others() {
    // A balancer, or a virtual address: first to the one, then to the other.
    let rig = Rig::new();
    let way = Proxy::new(&rig.primary);
    let at = || Pglock::at(way.port()).flags(LONG);
    let mut holder = rig.holder(at());
    rig.primary.stop(Stop::Fast);
    promote(&rig.standby);
    way.lead_to(&rig.standby);
    holder.wait_for_line(RETAKEN);
    assert_alive(&mut holder);
    holder.finish().assert_status(0);
}

#[test]
fn a_host_that_is_a_name_is_looked_up_on_the_way() {
    let rig = Rig::made(|| primary().tcp());
    let ports = format!("{},{}", rig.primary.port(), rig.standby.port());
    let pglock = Pglock::new()
        .flags(["--user", "postgres", "--host", "localhost,localhost"])
        .flags(["--port", &ports])
        .flags(LONG);
    let mut holder = rig.holder(pglock);
    rig.go(Going::Crash);
    holder.wait_for_line(RETAKEN);
    assert_alive(&mut holder);
    holder.finish().assert_status(0);
}

#[test]
fn a_lock_moves_twice_and_back_to_a_primary_that_was_a_standby() {
    let rig = Rig::new();
    let mut holder = rig.holder(rig.both());
    let newcomer = |server| rig.short(rig.on(&[server]).flags(["--wait", "100"]));
    rig.primary.stop(Stop::Fast);
    promote(&rig.standby);
    holder.wait_for_line(RETAKEN);
    let first = newcomer(&rig.standby);
    follow(&rig.primary, &rig.standby);
    rig.standby.stop(Stop::Fast);
    promote(&rig.primary);
    let second = newcomer(&rig.primary);
    eventually("it has moved back", PATIENCE, || {
        (holder.stderr().matches(RETAKEN).count() == 2).then_some(())
    });
    assert_alive(&mut holder);
    assert_eq!(rig.primary.holders(1).len(), 1);
    // A crash restart of a promoted server is a restart.
    let mut session = rig.primary.session();
    let pid = session.pid();
    rig.primary.crash_backend(pid);
    holder.wait_for_line("The server was restarted");
    assert_alive(&mut holder);
    drop(first);
    holder.finish().assert_status(0);
    second.wait().assert_status(0);
    rig.assert_no_overlap();
}

#[test]
fn where_the_old_primary_lives_on_only_the_newcomers_of_its_lease_are_kept_off() {
    // Without synchronous replication nobody can know more; the holder does not come to the other server.
    let rig = Rig::new();
    let holder = rig.holder(rig.both());
    rig.go(Going::SplitBrain);
    let output = rig.on(&[&rig.standby]).command(["true"]).run();
    assert!(output.stderr().contains(PROMOTED), "{}", output.report());
    assert!(
        output.elapsed > Duration::from_secs(14),
        "{}",
        output.report()
    );
    // It has beaten since; now its session ends, and its server is out of reach.
    rig.primary.stop(Stop::Fast);
    holder.wait_for_line("not known to have been promoted in its place");
    holder_end(holder).assert_status(124);
}

#[test]
fn a_session_that_is_ended_on_a_server_promoted_long_ago_is_no_failover() {
    let rig = Rig::new();
    rig.primary.stop(Stop::Fast);
    promote(&rig.standby);
    let holder = rig
        .on(&[&rig.standby, &rig.primary])
        .flag("--verbose")
        .hold();
    eventually("the holder has settled", PATIENCE, || {
        holder.stderr().contains("obtained").then_some(())
    });
    let pid = rig.standby.holders(1)[0];
    rig.standby.psql("checkpoint");
    rig.standby
        .psql(&format!("select pg_terminate_backend({pid})"));
    let output = holder.wait();
    output.assert_status(124);
    assert!(
        output.stderr().contains("while the server ran on"),
        "{}",
        output.report()
    );
}

#[test]
fn who_waits_or_holds_off_is_not_misled_by_a_promotion() {
    let rig = Rig::new();
    let holder = rig.holder(rig.both());
    let waiter = rig.short(rig.both().flag("--block"));
    eventually("one waits", PATIENCE, || {
        (!rig.primary.waiters(1).is_empty()).then_some(())
    });
    // The holder is gone with its host, the primary too.
    holder.signal(Signal::SIGSTOP);
    rig.go(Going::Crash);
    let newcomer = rig.short(rig.on(&[&rig.standby]).flag("--block"));
    newcomer.wait_for_line("was promoted");
    // It holds off; its server goes, and the old primary comes back as one more that was promoted.
    rig.standby.stop(Stop::Fast);
    rig.standby.start();
    newcomer.wait_for_line("trying again");
    for output in [waiter.wait(), newcomer.wait()] {
        output.assert_status(0).assert_stdout("in turn\n");
    }
    rig.assert_no_overlap();
    holder.signal(Signal::SIGCONT);
    holder_end(holder).assert_status(124);
}

#[test]
fn a_holder_that_was_stopped_by_its_user_does_not_come_back_after_a_promotion() {
    let rig = Rig::new();
    let (hosts, ports) = lists(&[&rig.primary, &rig.standby]);
    let mut pty = Pty::new(&rig.primary);
    pty.line(&format!(
        "pglock --host {hosts} --port {ports} --ttl 15 --grace 5 sh -c 'echo ready; exec sleep 1000'"
    ));
    pty.expect("ready");
    pty.press("\x1a");
    pty.expect("Stopped");
    pty.prompt();
    rig.go(Going::Crash);
    let output = rig
        .on(&[&rig.standby])
        .flags(["--wait", "60"])
        .command(["true"])
        .run();
    output.assert_status(0);
    pty.line("fg");
    pty.expect("the lock is lost");
    pty.prompt();
    assert_eq!(pty.run("echo $?").trim(), "124");
}

/// A rig whose primary waits for its standby.
fn synchronous() -> Rig {
    let rig = Rig::new();
    rig.primary
        .psql("create role loose login; alter role loose set synchronous_commit = local");
    rig.primary
        .psql("alter system set synchronous_standby_names = 'standby'");
    rig.primary.psql("select pg_reload_conf()");
    let state = "select sync_state from pg_stat_replication";
    eventually("replication is synchronous", PATIENCE, || {
        (rig.primary.psql(state) == "sync").then_some(())
    });
    rig
}

#[test]
fn where_replication_confirms_each_sign_two_never_run_at_once() {
    let rig = synchronous();
    let confirmed = |servers: &[&Server]| {
        let pglock = rig.on(servers).flags(["--ttl", "6", "--grace", "1"]);
        pglock.flags(["--sync", "--connect-timeout", "60"])
    };
    let both = [&rig.primary, &rig.standby];
    let mut holder = rig.holder(confirmed(&both));
    let waiter = rig.short(confirmed(&both).flag("--block"));
    eventually("one waits", PATIENCE, || {
        (!rig.primary.waiters(1).is_empty()).then_some(())
    });
    assert_alive(&mut holder);
    rig.go(Going::SplitBrain);
    let newcomer = rig.short(confirmed(&[&rig.standby]).flags(["--wait", "60"]));
    let other = rig.short(
        rig.on(&[&rig.standby])
            .flags(["--ttl", "6", "--grace", "1"]),
    );
    // Of those who knock at the old primary nobody gets through.
    let old = confirmed(&[&rig.primary]).flags(["--connect-timeout", "4"]);
    let old = old.flags(["--lockid", "2"]).command(["true"]).run();
    old.assert_failed(&["no answer from the server"]);
    let output = holder_end(holder);
    output.assert_status(124);
    for output in [newcomer.wait(), other.wait()] {
        output.assert_status(0);
        assert!(output.stderr().contains(PROMOTED), "{}", output.report());
    }
    rig.assert_no_overlap();
    // The waiter still waits at the old one, whose server it has no reason to leave.
    drop(waiter);
}

#[test]
fn a_confirmed_lock_moves_to_the_promoted_server() {
    let rig = synchronous();
    let mut holder = rig.holder(rig.both().flag("--sync"));
    let newcomer = rig.on(&[&rig.standby]).flags(["--sync", "--wait", "100"]);
    rig.go(Going::Crash);
    let newcomer = rig.short(newcomer);
    holder.wait_for_line(RETAKEN);
    assert_alive(&mut holder);
    holder.finish().assert_status(0);
    newcomer.wait().assert_status(0);
    rig.assert_no_overlap();
}

#[test]
fn a_wait_for_the_standby_that_is_broken_off_is_no_answer() {
    let rig = synchronous();
    let pglock = rig.both().flags(["--ttl", "6", "--grace", "1", "--sync"]);
    let holder = rig.holder(pglock);
    let pid = rig.primary.holders(1)[0];
    rig.standby.freeze();
    let cancel = format!(
        "select pg_cancel_backend({pid}) from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep'"
    );
    let lost = within(PATIENCE, || {
        rig.primary.psql(&cancel);
        holder.stderr().contains("the lock is lost").then_some(())
    });
    assert!(lost.is_some(), "{}", holder.stderr());
    let output = holder_end(holder);
    output.assert_status(124);
    assert!(
        output
            .stderr()
            .contains("canceling wait for synchronous replication"),
        "{}",
        output.report()
    );
    rig.standby.thaw();
}

#[test]
fn what_is_to_be_confirmed_is_whatever_the_role_has_set() {
    let rig = synchronous();
    let loose = |flags: &[&str]| {
        let pglock = rig.on(&[&rig.primary]).flags(["--user", "loose"]);
        pglock.flags(["--connect-timeout", "3"]).flags(flags)
    };
    let fenced = |servers: &[&Server]| -> u64 {
        let pglock = rig
            .on(servers)
            .flags(["--user", "loose", "--fence", "--wait", "60"]);
        let output = pglock.sh("echo $PGLOCK_TOKEN").run();
        output.assert_status(0);
        output.stdout().trim().parse().expect("a token")
    };
    let before = [0; 3].map(|_| fenced(&[&rig.primary]));
    assert!(before.is_sorted_by(|one, next| one < next), "{before:?}");
    rig.standby.freeze();
    loose(&[]).command(["true"]).run().assert_status(0);
    for flags in [&["--sync"][..], &["--fence"], &["--sync", "--fence"]] {
        let output = loose(flags).command(["true"]).run();
        output.assert_failed(&["no answer from the server"]);
    }
    rig.standby.thaw();
    rig.go(Going::Crash);
    let after = fenced(&[&rig.standby]);
    assert!(after > before[2], "{before:?}, {after}");
    // Nobody confirms anything there, and through a pooler nobody could.
    let output = rig
        .on(&[&rig.standby])
        .flags(["--sync", "--verbose", "--wait", "60"])
        .command(["true"])
        .run();
    output.assert_status(0);
    assert!(
        output
            .stderr()
            .contains("synchronous_standby_names is empty")
    );
    let pooler = Pgbouncer::new(&rig.standby, "transaction", 20, &[]);
    let output = pooler.pglock().flag("--sync").command(["true"]).run();
    output.assert_failed(&["--sync", "pooler"]);
}

fn holder_end(mut holder: Running) -> Output {
    holder.close_input();
    holder.wait()
}

/// With a command that says when it began.
fn stamped(pglock: Pglock) -> Pglock {
    pglock.command(["date", "+%s%N"])
}

fn began(output: &Output) -> SystemTime {
    let nanoseconds = output.stdout().trim().parse().expect("a time");
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}
