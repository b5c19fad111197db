//! A server that is starting, down or full, and many that want it at once.
//!
//! The storms are short here; `make storm` has them whole.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::pgbouncer::Pgbouncer;
use crate::support::*;

/// Where the server is restarted on purpose, newcomers hold off only for a moment.
const SHORT: [&str; 4] = ["--ttl", "3", "--grace", "0"];

fn is_whole() -> bool {
    std::env::var("PGLOCK_STORM").is_ok_and(|value| value == "full")
}

/// A script that tells whether it was alone.
fn alone(scratch: &Scratch) -> String {
    format!(
        "mkdir {0}/inside || echo overlap; sleep 0.01; rmdir {0}/inside; echo done",
        scratch.path().display()
    )
}

/// How long a storm may last, to the end of each invocation.
const LONGEST: Duration = Duration::from_secs(580);

/// Starts so many at once, `held` back by a frozen server until all are there, and waits until all have ended. Answers with
/// how many ran the command and how many had to try again, after having made sure that no two ran at a time and that all
/// have exited with 0.
#[track_caller]
fn storm(name: &str, server: &Server, pglock: &Pglock, count: usize, held: bool) -> (usize, usize) {
    let scratch = Scratch::new();
    let pglock = pglock.clone().sh(&alone(&scratch));
    // A superuser's connection, made before the rush.
    let mut session = server.session();
    let over = AtomicBool::new(false);
    // All are at the door when it opens.
    if held {
        server.freeze();
    }
    let mut start = Instant::now();
    let runs: Vec<Running> = (0..count).map(|_| pglock.spawn()).collect();
    for run in &runs {
        run.wait_for_line("Connecting to");
    }
    if held {
        start = Instant::now();
        server.thaw();
    }
    let (ran, time, peak, retries) = thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            while !over.load(Ordering::SeqCst) {
                let now = session.exec("select count(*) - 1 from pg_stat_activity where backend_type = 'client backend'");
                peak = peak.max(now.parse().expect("a number"));
                thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let outputs: Vec<Output> = runs
            .into_iter()
            .map(|run| run.wait_within(LONGEST))
            .collect();
        let time = start.elapsed();
        over.store(true, Ordering::SeqCst);
        let mut ran = 0;
        for output in &outputs {
            output.assert_status(0);
            match output.stdout().as_str() {
                "done\n" => ran += 1,
                "" => (),
                other => panic!("{other}\n{}", output.report()),
            }
        }
        let retries = outputs
            .iter()
            .filter(|output| output.stderr().contains("trying again"))
            .count();
        let peak: u32 = sampler.join().expect("the sampler");
        (ran, time, peak, retries)
    });
    println!(
        "{name}: {count} at once in {time:.2?}; {ran} ran ({:.0} a second); up to {peak} connections; {retries} had to try again",
        ran as f64 / time.as_secs_f64()
    );
    (ran, retries)
}

#[test]
fn a_storm_that_does_not_wait_ends_in_runs_and_skips() {
    let count = if is_whole() { 1000 } else { 100 };
    for tcp in [true, false] {
        let server = Server::builder().tcp().conf("max_connections = 20").start();
        let (name, pglock) = if tcp {
            ("without --wait, TCP", Pglock::at(server.port()))
        } else {
            // Whose queue the system keeps short: the rest is turned away without a word from the server.
            ("without --wait, Unix socket", Pglock::on(&server))
        };
        let pglock = pglock.flags(["--connect-timeout", "60"]);
        // Of very many on TCP the system would make those whom its queue has no room for wait longer and longer.
        let held = !(tcp && is_whole());
        let (ran, retries) = storm(name, &server, &pglock, count, held);
        assert!(ran >= 1 && ran <= count, "{ran}");
        assert!(tcp || retries > 0, "that was no storm");
    }
}

#[test]
fn a_storm_that_waits_runs_to_the_last_one() {
    let count = if is_whole() { 500 } else { 50 };
    let server = Server::builder().tcp().conf("max_connections = 20").start();
    let pglock = Pglock::at(server.port()).flags(["--wait", "120"]);
    let (ran, _) = storm("with --wait 120", &server, &pglock, count, !is_whole());
    assert_eq!(ran, count);
}

#[test]
fn a_storm_that_waits_behind_a_pooler_runs_to_the_last_one() {
    let count = if is_whole() { 2000 } else { 60 };
    let server = Server::new();
    let room = format!("max_client_conn = {}", count + 100);
    let pooler = Pgbouncer::new(&server, "transaction", 20, &[&room]);
    let pglock = pooler.pglock().flags(["--wait", "500"]);
    let (ran, _) = storm(
        "with --wait 500, a pool of 20",
        &server,
        &pglock,
        count,
        false,
    );
    assert_eq!(ran, count);
}

/// A server that has no room for this role until one of the sessions is dropped.
fn full(role: &str) -> (Server, Vec<Session>) {
    let server = Server::builder()
        .conf("max_connections = 6")
        .conf("superuser_reserved_connections = 2")
        .start();
    server.psql("create role app login");
    let room = if role == "app" { 4 } else { 6 };
    let sessions = (0..room).map(|_| server.session()).collect();
    (server, sessions)
}

#[test]
fn a_full_server_is_tried_again_until_there_is_room() {
    for (role, message) in [
        ("postgres", "too many clients"),
        ("app", "remaining connection slots"),
    ] {
        let (server, mut sessions) = full(role);
        let pglock = Pglock::on(&server)
            .env("PGLOCK_USER", role)
            .command(["echo", "it runs"]);
        // As long as there is time for connecting; or for waiting, where there is a wait.
        let trials = [
            (&["--connect-timeout", "2"][..], 2),
            (&["--wait", "2", "--connect-timeout", "1"], 2),
        ];
        let runs = trials.map(|(flags, seconds)| (pglock.clone().flags(flags).spawn(), seconds));
        let others = [
            &["--connect-timeout", "60"][..],
            &["--wait", "60"],
            &["--wait", "60", "--connect-timeout", "1"],
            &["--block"],
        ]
        .map(|flags| pglock.clone().flags(flags).spawn());
        for (run, seconds) in runs {
            let output = run.wait();
            output.assert_failed(&[message]);
            let seconds = Duration::from_secs(seconds);
            assert!(output.elapsed >= seconds, "{}", output.report());
            assert!(
                output.elapsed < seconds + Duration::from_millis(1500),
                "{}",
                output.report()
            );
        }
        for other in &others {
            other.wait_for_line("trying again");
        }
        sessions.pop();
        for other in others {
            let output = other.wait();
            // All want the one place and the one lock.
            output.assert_status(0);
            let waits = !output.stderr().contains("Trying to obtain");
            if waits {
                output.assert_stdout("it runs\n");
            }
        }
    }
}

#[test]
fn a_role_s_connection_limit_is_tried_again_until_there_is_room() {
    let server = Server::new();
    server.psql("create role limited login connection limit 1");
    let pglock = Pglock::on(&server).env("PGLOCK_USER", "limited");
    let holder = pglock.clone().hold();
    let message = "too many connections for role \"limited\"";
    let late = pglock
        .clone()
        .flags(["--connect-timeout", "1"])
        .command(["true"])
        .run();
    late.assert_failed(&[message]);
    assert!(late.elapsed >= Duration::from_secs(1), "{}", late.report());
    let others = [
        &["--connect-timeout", "60"][..],
        &["--wait", "60"],
        &["--block"],
    ]
    .map(|flags| pglock.clone().flags(flags).command(["true"]).spawn());
    for other in &others {
        other.wait_for_line(message);
        other.wait_for_line("trying again");
    }
    holder.finish().assert_status(0);
    for other in others {
        other.wait().assert_status(0);
    }
}

#[test]
fn a_server_that_is_starting_is_waited_for() {
    let server = Server::new();
    server.stop(Stop::Fast);
    let scratch = Scratch::new();
    let go = scratch.path().join("go");
    // Recovery asks for a file from the archive, which takes its time to say that there is none.
    let mut conf = File::options()
        .append(true)
        .open(server.data().join("postgresql.conf"))
        .expect("open postgresql.conf");
    writeln!(
        conf,
        "restore_command = 'while [ ! -e {} ]; do sleep 0.05; done; false'",
        go.display()
    )
    .expect("write to postgresql.conf");
    fs::write(server.data().join("recovery.signal"), "").expect("ask for recovery");
    let owner = fs::metadata(server.data())
        .expect("the data directory")
        .uid();
    chown(server.data().join("recovery.signal"), Some(owner), None).expect("chown");
    thread::scope(|scope| {
        let starting = scope.spawn(|| server.start());
        let start = |flags: &[&str]| {
            let pglock = Pglock::on(&server).flags(SHORT).flags(flags);
            pglock.command(["echo", "it runs"]).spawn()
        };
        // Not there at all at first.
        let block = start(&["--block"]);
        eventually("it is starting", PATIENCE, || {
            server
                .log()
                .contains("the database system is starting up")
                .then_some(())
        });
        let message = "the database system is starting up";
        let late = start(&["--connect-timeout", "1"]).wait();
        let hasty = start(&["--wait", "1"]).wait();
        for output in [late, hasty] {
            output.assert_failed(&[message]);
            assert!(
                output.elapsed >= Duration::from_secs(1),
                "{}",
                output.report()
            );
        }
        let others = [
            start(&["--connect-timeout", "60", "--lockid", "2"]),
            start(&["--wait", "60"]),
            block,
        ];
        others[0].wait_for_line(message);
        others[1].wait_for_line(message);
        fs::write(&go, "").expect("let it go on");
        starting.join().expect("a started server");
        for other in others {
            let output = other.wait();
            output.assert_status(0).assert_stdout("it runs\n");
        }
    });
}

#[test]
fn a_server_that_goes_down_in_any_way_while_one_waits_is_waited_for() {
    for how in ["fast", "immediate", "crash"] {
        let server = Server::new();
        let mut session = server.session();
        session.hold(1);
        let waiter = Pglock::on(&server)
            .flags(SHORT)
            .flags(["--wait", "60"])
            .command(["echo", "at last"])
            .spawn();
        // First it makes sure that nobody from before the start is left.
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        match how {
            "fast" => server.stop(Stop::Fast),
            "immediate" => server.stop(Stop::Immediate),
            _ => server.crash(),
        }
        waiter.wait_for_line("trying again");
        server.start();
        waiter.wait().assert_status(0).assert_stdout("at last\n");
    }
}

#[test]
fn what_would_fail_again_is_tried_once() {
    let server = Server::builder()
        .tls("localhost")
        .hba("hostssl all keeper 127.0.0.1/32 scram-sha-256")
        .hba("host all keeper 127.0.0.1/32 scram-sha-256")
        .hba("host all outsider 127.0.0.1/32 reject")
        .conf("log_connections = on")
        .start();
    server.psql("create role keeper login password 'right'; create role outsider login; create role nologin");
    let at = |user: &str| Pglock::at(server.port()).env("PGLOCK_USER", user);
    let with_tls = |mode: &str| at("postgres").env("PGLOCK_SSLMODE", mode);
    let wrong = Scratch::new();
    tls::Authority::new(&wrong.path().join("ca"), "somebody-else");
    for (pglock, message) in [
        (
            at("keeper").env("PGLOCK_PASS", "wrong"),
            "password authentication failed",
        ),
        (at("keeper"), "password"),
        (at("outsider"), "rejects"),
        (at("nobody-like-that"), "does not exist"),
        (at("nologin"), "not permitted to log in"),
        (
            at("postgres").env("PGLOCK_DATABASE", "nope"),
            "does not exist",
        ),
        (
            with_tls("verify-full").env("PGSSLROOTCERT", server.authority()),
            "does not match host name",
        ),
        (
            with_tls("verify-ca").env("PGSSLROOTCERT", wrong.path().join("ca/ca.crt")),
            "certificate verify failed",
        ),
    ] {
        for flags in [&[][..], &["--wait", "30"], &["--block"]] {
            let before = server.log().matches("connection received").count();
            let output = pglock.clone().flags(flags).command(["true"]).run();
            output.assert_failed(&[message]);
            let after = server.log().matches("connection received").count();
            assert_eq!(after - before, 1, "{flags:?}\n{}", output.report());
        }
    }
}
