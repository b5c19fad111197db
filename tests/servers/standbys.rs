//! A primary and a streaming standby: whose lock counts, and where pglock finds it.

use std::time::Duration;

use crate::support::cluster::{lists, primary, promote, standby};
use crate::support::*;

/// Promotion comes soon after the start, and then newcomers hold off for a ttl.
const SHORT: [&str; 4] = ["--ttl", "3", "--grace", "0"];

fn on(servers: &[&Server]) -> Pglock {
    let (hosts, ports) = lists(servers);
    Pglock::new()
        .flags(["--user", "postgres", "--host", &hosts, "--port", &ports])
        .flags(SHORT)
}

#[test]
fn a_standby_is_refused() {
    let primary = primary().start();
    let standby = standby(&primary, Server::builder());
    // It would grant the lock.
    let mut session = primary.session();
    session.hold(1);
    let mut other = standby.session();
    assert!(other.try_hold(1), "a standby has become a better place");
    other.release(1);
    session.release(1);

    let marker = Marker::new();
    for flags in [
        &[][..],
        &["--wait", "2"],
        &["--shared"],
        &["--slots", "3"],
        &["--fence"],
        &["--lockname", "x"],
        &["--ttl", "0"],
    ] {
        let output = on(&[&standby]).flags(flags).command(marker.command()).run();
        output.assert_failed(&["standby", "primary"]);
        assert!(!marker.exists(), "{flags:?}");
        if flags.contains(&"--wait") {
            // By the time that a waiter has, it may be promoted.
            assert!(
                output.elapsed > Duration::from_secs(2),
                "{}",
                output.report()
            );
        }
    }
    assert_eq!(standby.holders(1), []);
    // Nor can it say who holds the lock.
    let status = on(&[&standby]).flag("--status").run();
    status
        .assert_failed(&["standby", "primary"])
        .assert_stdout("");
    session.hold(1);
    let status = on(&[&standby, &primary]).flag("--status").run();
    status.assert_status(0);
    assert!(status.stdout().contains("holder"), "{}", status.report());
}

#[test]
fn of_several_hosts_the_primary_is_found() {
    let primary = primary().tcp().start();
    let standby = standby(&primary, Server::builder().tcp());
    let closed = ClosedPort::new();
    let (p, s, c) = (
        format!("127.0.0.1:{}", primary.port()),
        format!("127.0.0.1:{}", standby.port()),
        format!("127.0.0.1:{}", closed.port()),
    );
    let split = |hosts: &[&str]| {
        let (names, ports): (Vec<&str>, Vec<&str>) =
            hosts.iter().filter_map(|host| host.split_once(':')).unzip();
        Pglock::new().flags([
            "--user",
            "postgres",
            "--host",
            &names.join(","),
            "--port",
            &ports.join(","),
        ])
    };
    let uri = |hosts: &[&str], more: &str| {
        let uri = format!("postgresql://postgres@{}/postgres{more}", hosts.join(","));
        Pglock::new().flags(["--database", &uri])
    };
    for pglock in [
        split(&[&p, &s]),
        split(&[&s, &p]),
        split(&[&c, &s, &p]),
        split(&[&s, &c, &s, &c, &p]),
        uri(&[&s, &p], ""),
        uri(&[&c, &s, &p], ""),
        // libpq's own ways to ask for it.
        uri(&[&s, &p], "?target_session_attrs=read-write"),
        uri(&[&c, &s, &p], "?target_session_attrs=primary"),
        split(&[&s, &p]).env("PGTARGETSESSIONATTRS", "read-write"),
        split(&[&s, &p]).flags(["--wait", "30"]),
        split(&[&s, &p]).flags(["--fence"]),
    ] {
        let holder = pglock.hold();
        assert_eq!(primary.holders(1).len(), 1, "{}", holder.stderr());
        assert_eq!(standby.holders(1).len(), 0, "{}", holder.stderr());
        holder.finish().assert_status(0);
    }
    // None of them.
    let output = split(&[&c, &s]).command(["true"]).run();
    output.assert_failed(&["standby", "refused"]);
}

#[test]
fn a_waiter_finds_the_new_primary_after_a_promotion() {
    let primary = primary().start();
    let standby = standby(&primary, Server::builder());
    let mut session = primary.session();
    session.hold(1);
    let waiters = [
        on(&[&primary, &standby]).flags(["--wait", "100"]),
        on(&[&standby, &primary]).flag("--block"),
        on(&[&standby]).flags(["--wait", "100"]),
        on(&[&standby])
            .flag("--block")
            .env("PGTARGETSESSIONATTRS", "read-write"),
    ]
    .map(|pglock| pglock.sh("echo at last; sleep 0.1").spawn());
    eventually("two wait", PATIENCE, || {
        (primary.waiters(1).len() == 2).then_some(())
    });
    for waiter in &waiters[2..] {
        waiter.wait_for_line("trying again");
    }
    primary.stop(Stop::Immediate);
    // As long as there is no primary, nobody gets it.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(standby.holders(1), []);
    assert!(waiters.iter().all(|waiter| waiter.stdout().is_empty()));
    promote(&standby);
    for waiter in waiters {
        let output = waiter.wait();
        output.assert_status(0).assert_stdout("at last\n");
    }
}

#[test]
fn a_holder_does_not_outlive_the_failover_for_longer_than_its_lease() {
    let primary = primary().start();
    let standby = standby(&primary, Server::builder());
    let holder = on(&[&primary, &standby]).hold();
    primary.stop(Stop::Immediate);
    let stopped = std::time::Instant::now();
    promote(&standby);
    let output = holder.wait();
    output.assert_status(124);
    let time = stopped.elapsed();
    println!("the command of a lost primary's holder was stopped after {time:.1?} of a ttl of 3 s");
    assert!(time < Duration::from_secs(3), "{time:?}");
    let output = on(&[&primary, &standby])
        .flags(["--wait", "60"])
        .command(["echo", "on the new primary"])
        .run();
    output
        .assert_status(0)
        .assert_stdout("on the new primary\n");
}
