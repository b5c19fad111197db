//! When anything is wrong before the lock is held, the command does not run: one clear line, status 125, in bounded time.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::support::net::{READY, error};
use crate::support::*;

/// Both end: without waiting at once, with it when the time is over, for a server that is away may come back.
const BOUNDED: [&[&str]; 2] = [&[], &["--wait", "2"]];

/// What no patience helps against ends at once, even where one waits without limit.
const ALL: [&[&str]; 3] = [&[], &["--wait", "30"], &["--block"]];

/// Long enough for a busy machine, and far below what a system takes to give up a connection.
const BOUND: Duration = Duration::from_secs(15);

/// Invocations that must fail, side by side.
#[derive(Default)]
struct Trials(Vec<Trial>);

struct Trial {
    name: String,
    words: Vec<String>,
    marker: Marker,
    run: Running,
    /// It stays until its trial is over.
    _proxy: Option<Proxy>,
}

impl Trials {
    fn start(&mut self, name: &str, pglock: Pglock, modes: &[&[&str]], words: &[&str]) {
        for mode in modes {
            self.add(name, pglock.clone().flags(*mode), words, None);
        }
    }

    /// On a network to `server` that has a trap.
    fn trap(&mut self, server: &Server, when: When, what: &What, flags: &[&str]) {
        let proxy = Proxy::new(server);
        proxy.trap(when, what.clone());
        let pglock = Pglock::at(proxy.port()).flags(flags);
        self.add(&format!("{what:?} at {when:?}"), pglock, &[], Some(proxy));
    }

    fn add(&mut self, name: &str, pglock: Pglock, words: &[&str], proxy: Option<Proxy>) {
        // A lock of its own for each: a server that did get the call may have granted it.
        let lock = self.0.len().to_string();
        let marker = Marker::new();
        let run = pglock
            .env("PGLOCK_LOCKID", lock)
            .command(marker.command())
            .spawn();
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.0.push(Trial {
            name: name.to_owned(),
            words,
            marker,
            run,
            _proxy: proxy,
        });
    }

    #[track_caller]
    fn assert_failed(self) {
        for Trial {
            name,
            words,
            marker,
            run,
            _proxy,
        } in self.0
        {
            let output = run.wait();
            println!("{name}");
            output.assert_failed(&words.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(
                !marker.exists(),
                "{name}: the command ran without the lock\n{}",
                output.report()
            );
            assert!(
                output.elapsed < BOUND,
                "{name}: after {:?}\n{}",
                output.elapsed,
                output.report()
            );
        }
    }
}

#[test]
fn an_address_where_nobody_answers() {
    let (closed, hole) = (ClosedPort::new(), BlackHole::new());
    let (closed_port, hole_port) = (closed.port().to_string(), hole.port().to_string());
    let mut trials = Trials::default();
    trials.start(
        "a closed port",
        Pglock::at(closed.port()),
        &BOUNDED,
        &["127.0.0.1", &closed_port, "refused"],
    );
    let hasty = Pglock::at(hole.port()).flags(["--connect-timeout", "1"]);
    trials.start("a black hole", hasty, &BOUNDED, &["127.0.0.1", &hole_port]);
    trials.start(
        "a black hole, and a short wait",
        Pglock::at(hole.port()),
        &[&["--wait", "1"]],
        &[&hole_port],
    );
    let nowhere = Pglock::new().flags(["--host", "/nonexistent", "--user", "u"]);
    trials.start("no socket", nowhere, &BOUNDED, &["/nonexistent"]);
    let lost = Pglock::new().flags(["--host", "no.such.host.invalid", "--user", "u"]);
    trials.start("no host", lost, &BOUNDED, &["no.such.host.invalid"]);
    trials.assert_failed();
}

#[test]
fn a_server_that_comes_back_is_found_by_one_who_waits() {
    let server = Server::new();
    for flags in [&["--block"][..], &["--wait", "60"]] {
        let proxy = Proxy::new(&server);
        proxy.refuse();
        let marker = Marker::new();
        let run = Pglock::at(proxy.port())
            .flags(flags)
            .command(marker.command())
            .spawn();
        run.wait_for_line("refused");
        assert!(!marker.exists());
        proxy.accept();
        run.wait().assert_status(0);
        assert!(marker.exists());
    }
}

#[test]
fn the_limit_for_connecting_is_for_all_attempts_together() {
    let (one, two) = (BlackHole::new(), BlackHole::new());
    let output = Pglock::new()
        .flags([
            "--host",
            "127.0.0.1,127.0.0.1,127.0.0.1",
            "--user",
            "u",
            "--connect-timeout",
            "1",
        ])
        .flags([
            "--port",
            &format!("{},{},{}", one.port(), two.port(), one.port()),
        ])
        .command(["true"])
        .run();
    output.assert_failed(&[]);
    assert!(
        output.elapsed >= Duration::from_millis(900),
        "{:?}\n{}",
        output.elapsed,
        output.report()
    );
    assert!(
        output.elapsed < Duration::from_millis(2500),
        "{:?}\n{}",
        output.elapsed,
        output.report()
    );
}

#[test]
fn a_server_that_goes_away_at_any_point() {
    let server = Server::new();
    let mut trials = Trials::default();
    for what in [What::Close, What::Reset] {
        for when in [
            When::Connected,
            When::Request(1),
            When::Answer(1),
            // In the middle of the first message; after "authenticated"; somewhere among the parameters.
            When::Bytes(1),
            When::Bytes(9),
            When::Bytes(100),
            // During the lock call: before the server gets it, and before pglock gets the answer.
            When::Request(2),
            When::Answer(2),
        ] {
            for mode in BOUNDED {
                trials.trap(&server, when, &what, mode);
            }
        }
    }
    trials.assert_failed();
    // And nothing is left of it.
    eventually("no lock is held", PATIENCE, || {
        (server.psql("select count(*) from pg_locks where locktype = 'advisory'") == "0")
            .then_some(())
    });
    eventually("no backend is left", PATIENCE, || {
        server.clients().is_empty().then_some(())
    });
}

#[test]
fn a_server_that_falls_silent_at_any_point() {
    let server = Server::new();
    let mut trials = Trials::default();
    for when in [
        When::Connected,
        When::Request(1),
        When::Answer(1),
        When::Bytes(9),
        When::Request(2),
        When::Answer(2),
    ] {
        trials.trap(&server, when, &What::Silence, &["--connect-timeout", "1"]);
        trials.trap(
            &server,
            when,
            &What::Silence,
            &["--connect-timeout", "1", "--wait", "2"],
        );
    }
    trials.assert_failed();
}

#[test]
fn a_server_that_talks_nonsense() {
    let server = Server::new();
    let mut trials = Trials::default();
    let nonsense: [&[u8]; 6] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        &[0xff; 1000],
        &[0; 1000],
        b"E\x7f\xff\xff\xff",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        // "Authenticated", and then nothing that could follow.
        b"R\0\0\0\x08\0\0\0\0nonsense",
    ];
    for words in nonsense {
        for when in [
            When::Request(1),
            When::Answer(1),
            When::Request(2),
            When::Answer(2),
        ] {
            for mode in BOUNDED {
                trials.trap(&server, when, &What::Say(words.to_vec()), mode);
            }
        }
    }
    trials.assert_failed();
}

#[test]
fn an_answer_that_is_none() {
    // Well-formed messages in the place of the lock call's answer.
    let server = Server::new();
    let complete = b"C\0\0\0\rSELECT 1\0Z\0\0\0\x05I";
    let cases: [(&str, Vec<u8>); 6] = [
        (
            "no rows",
            [&b"T\0\0\0\x06\0\0"[..], b"C\0\0\0\rSELECT 0\0Z\0\0\0\x05I"].concat(),
        ),
        (
            "no column",
            [&b"T\0\0\0\x06\0\0D\0\0\0\x06\0\0"[..], complete].concat(),
        ),
        ("an empty query", b"I\0\0\0\x04Z\0\0\0\x05I".to_vec()),
        ("ready, and nothing before", b"Z\0\0\0\x05I".to_vec()),
        (
            "an error",
            b"E\0\0\0\x29SERROR\0VERROR\0C42883\0Mno such thing\0\0Z\0\0\0\x05I".to_vec(),
        ),
        ("one column, false", {
            let mut row =
                b"T\0\0\0\x1a\0\x01c\0\0\0\0\0\0\0\0\0\0\x10\0\x01\xff\xff\xff\xff\0\0".to_vec();
            row.extend(b"D\0\0\0\x0b\0\x01\0\0\0\x01f");
            [&row[..], complete].concat()
        }),
    ];
    for (name, answer) in cases {
        let proxy = Proxy::new(&server);
        proxy.trap(When::Answer(2), What::Say(answer));
        let marker = Marker::new();
        let output = Pglock::at(proxy.port()).command(marker.command()).run();
        assert!(
            !marker.exists(),
            "{name}: the command ran without the lock\n{}",
            output.report()
        );
        if name != "one column, false" {
            // That one may be read as "somebody else has it".
            output.assert_failed(&[]);
        }
    }
}

#[test]
fn a_start_up_that_is_cut_after_each_byte() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    // How much does the server say before it gets the lock call?
    proxy.trap(When::Request(2), What::Close);
    Pglock::at(proxy.port())
        .command(["true"])
        .run()
        .assert_failed(&[]);
    let total = proxy.traffic()[0].to_client;
    assert!(total > 200, "{total}");
    std::thread::scope(|scope| {
        for part in 0..4 {
            let server = &server;
            scope.spawn(move || {
                let (proxy, marker) = (Proxy::new(server), Marker::new());
                for bytes in (1..=total).filter(|bytes| bytes % 4 == part) {
                    proxy.trap(When::Bytes(bytes), What::Close);
                    let output = Pglock::at(proxy.port()).command(marker.command()).run();
                    output.assert_failed(&[]);
                    assert!(
                        !marker.exists(),
                        "after {bytes} of {total} bytes\n{}",
                        output.report()
                    );
                }
            });
        }
    });
}

/// How many bytes the server answers the lock call with, at least: the verdict and its proof.
const ANSWER: usize = 300;

#[test]
fn an_answer_to_the_lock_call_that_lacks_its_end() {
    let server = Server::new();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let server = &server;
            scope.spawn(move || {
                let (proxy, marker) = (Proxy::new(server), Marker::new());
                for missing in (1..=ANSWER).filter(|missing| missing % 4 == part) {
                    proxy.trap(When::Truncated(2, missing), What::Close);
                    // A lock of its own, for the server may have granted the one before.
                    let output = Pglock::at(proxy.port())
                        .flags(["--lockid", &missing.to_string()])
                        .command(marker.command())
                        .run();
                    output.assert_failed(&[]);
                    assert!(
                        !marker.exists(),
                        "without the last {missing} bytes\n{}",
                        output.report()
                    );
                }
            });
        }
    });
}

#[test]
fn a_connection_that_ends_with_the_answer_to_the_lock_call() {
    let server = Server::new();
    let (proxy, marker) = (Proxy::new(&server), Marker::new());
    proxy.trap(When::Truncated(2, 0), What::Close);
    // The end may be noticed with the answer, or a moment later, when the lock has been taken.
    Pglock::at(proxy.port())
        .command(marker.command())
        .run()
        .assert_status(125);
    assert!(!marker.exists(), "the command ran");
}

#[test]
fn a_connection_that_ends_just_before_the_command_is_executed() {
    let server = Server::new();
    let (proxy, marker) = (Proxy::new(&server), Marker::new());
    // Forking takes so long that it can end meanwhile.
    let slow = ["strace", "-f", "-qq", "-o", "/dev/null"];
    let slow = [&slow[..], &["-e", "inject=clone:delay_enter=500000"]].concat();
    let works = Command::new(slow[0]).args(&slow[1..]).arg("true").status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no strace, or it may not trace");
        return;
    }
    let pglock = env!("CARGO_BIN_EXE_pglock");
    let words = [slow, vec![pglock]].concat();
    let words = words.into_iter().map(OsString::from);
    let run = Pglock::at(proxy.port())
        .without_pglock()
        .command(words.chain(marker.command().iter().map(OsString::from)))
        .spawn();
    run.wait_for_line("Executing command");
    proxy.strike(What::Close);
    let output = run.wait();
    output.assert_status(125);
    let why = "the server ended the session before the command could start";
    assert!(output.stderr().contains(why), "{}", output.report());
    assert!(!marker.exists(), "the command ran");
}

#[test]
fn a_server_that_refuses() {
    let server = Server::builder()
        .tcp()
        .hba("host all nobody-here 127.0.0.1/32 reject")
        .start();
    server.psql("create role limited login connection limit 0; create role unloved; create role \"nobody-here\" login");
    let at = || Pglock::at(server.port());
    let mut trials = Trials::default();
    for (flag, value, text) in [
        ("--database", "nope", "database \"nope\" does not exist"),
        ("--user", "nope", "role \"nope\" does not exist"),
        (
            "--user",
            "unloved",
            "role \"unloved\" is not permitted to log in",
        ),
        ("--user", "nobody-here", "pg_hba.conf rejects"),
    ] {
        trials.start(text, at().flags([flag, value]), &ALL, &[text]);
    }
    // That may pass.
    let limited = at().flags(["--user", "limited", "--connect-timeout", "1"]);
    trials.start(
        "too many",
        limited,
        &BOUNDED,
        &["too many connections for role \"limited\""],
    );
    trials.assert_failed();
}

#[test]
fn what_no_patience_helps_against() {
    let server = Server::builder()
        .tcp()
        .hba("host all locked 127.0.0.1/32 scram-sha-256")
        .start();
    server.psql("create role locked login password 'right'");
    let at = || Pglock::at(server.port());
    let mut trials = Trials::default();
    let locked = at().flags(["--user", "locked"]);
    let wrong = locked.clone().env("PGLOCK_PASS", "wrong");
    trials.start(
        "a wrong password",
        wrong,
        &ALL,
        &["password authentication failed"],
    );
    trials.start("no password", locked, &ALL, &["no password supplied"]);
    let encrypted = at().flags(["--sslmode", "require"]);
    trials.start("no TLS", encrypted, &ALL, &["does not support SSL"]);
    let bound = at().env("PGCHANNELBINDING", "require");
    trials.start("no channel to bind to", bound, &ALL, &["channel binding"]);
    let unknown = at().env("PGCHANNELBINDING", "nonsense");
    trials.start(
        "a setting",
        unknown,
        &ALL,
        &["invalid channel_binding value"],
    );
    let deep = Pglock::new()
        .env("PGLOCK_HOST", format!("/{}", "d".repeat(108)))
        .env("PGLOCK_USER", "u");
    trials.start("a long path", deep, &ALL, &["socket path", "is too long"]);
    trials.assert_failed();
}

#[test]
fn a_lock_call_that_fails_for_something_that_passes_is_made_again() {
    let server = Server::new();
    let passing = [
        ("40001", "could not serialize access"),
        ("40P01", "deadlock detected"),
        ("53200", "out of shared memory"),
        ("57014", "canceling statement due to user request"),
        ("XX000", "something unheard of"),
        ("", "no state at all"),
    ];
    for (state, text) in passing {
        let said = What::Say([&error("ERROR", state, text), READY].concat());
        let proxy = Proxy::new(&server);
        proxy.trap(When::Request(2), said.clone());
        let pglock = Pglock::at(proxy.port()).flags(["--lockname", text]);
        let patient = pglock.clone().flags(["--wait", "60"]);
        let run = patient.command(["echo", "at last"]).spawn();
        run.wait_for_line(&format!("{text}; trying again"));
        // Who does not wait is told.
        let hasty = pglock.command(["true"]).run();
        // An error without a state is as good as none to go on with.
        let what = match state {
            "" => "the connection was lost",
            _ => "the lock call failed",
        };
        hasty.assert_failed(&[what, text]);
        proxy.disarm();
        run.wait().assert_status(0).assert_stdout("at last\n");
    }
    // What does not pass is not.
    let proxy = Proxy::new(&server);
    let final_one = error("ERROR", "42501", "permission denied");
    proxy.trap(When::Request(2), What::Say([&final_one, READY].concat()));
    let pglock = Pglock::at(proxy.port());
    let mut trials = Trials::default();
    trials.start("no privilege", pglock, &ALL, &["permission denied"]);
    trials.assert_failed();
}

#[test]
fn a_waiter_whose_statement_an_administrator_cancels_waits_on() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let waiter = Pglock::on(&server)
        .flag("--block")
        .command(["echo", "at last"])
        .spawn();
    // Again and again, for a cancel may meet it between two turns.
    eventually("it was cancelled", PATIENCE, || {
        server.psql(
            "select pg_cancel_backend(pid) from pg_locks
             where locktype = 'advisory' and not granted",
        );
        waiter.stderr().contains("trying again").then_some(())
    });
    session.release(1);
    waiter.wait().assert_status(0).assert_stdout("at last\n");
}

#[test]
fn a_server_that_cannot_be_asked_for_its_age_is_asked_again() {
    let server = Server::new();
    server.restart(Stop::Fast);
    let proxy = Proxy::new(&server);
    let said = [&error("ERROR", "53200", "out of memory"), READY].concat();
    proxy.trap(When::Request(3), What::Say(said));
    let run = Pglock::at(proxy.port())
        .flags(["--wait", "60", "--ttl", "4", "--grace", "0"])
        .command(["echo", "at last"])
        .spawn();
    run.wait_for_line("out of memory; trying again");
    proxy.disarm();
    run.wait().assert_status(0).assert_stdout("at last\n");
}

#[test]
fn a_status_that_fails_for_something_that_passes_is_asked_for_again() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let said = [&error("ERROR", "53200", "out of memory"), READY].concat();
    proxy.trap(When::Request(2), What::Say(said));
    let pglock = Pglock::at(proxy.port()).flag("--status");
    pglock.run().assert_failed(&["out of memory"]);
    let run = pglock.flags(["--wait", "60"]).spawn();
    run.wait_for_line("out of memory; trying again");
    proxy.disarm();
    run.wait().assert_status(0).assert_stdout("free\n");
}

#[test]
fn a_server_that_shuts_down_while_one_waits_for_the_lock() {
    let server = Server::builder().tcp().start();
    let mut session = server.session();
    session.hold(1);
    let (hasty_marker, patient_marker) = (Marker::new(), Marker::new());
    let start = |wait: &str, marker: &Marker| {
        Pglock::at(server.port())
            .flags(["--wait", wait])
            .command(marker.command())
            .spawn()
    };
    let (hasty, patient) = (start("3", &hasty_marker), start("60", &patient_marker));
    eventually("both wait", PATIENCE, || {
        (server.waiters(1).len() == 2).then_some(())
    });
    server.stop(Stop::Fast);
    hasty.wait().assert_failed(&[]);
    assert!(!hasty_marker.exists() && !patient_marker.exists());
    server.start();
    patient.wait().assert_status(0);
    assert!(patient_marker.exists());
}

/// The functions by which a lock can be taken, as something that says yes and locks nothing.
const LOOK_ALIKES: [(&str, &str, &str); 4] = [
    ("pg_try_advisory_lock", "boolean", "select true"),
    ("pg_try_advisory_xact_lock", "boolean", "select true"),
    ("pg_advisory_lock", "void", "select"),
    ("pg_advisory_xact_lock", "void", "select"),
];

#[test]
fn a_server_that_grants_locks_and_keeps_none() {
    // Some databases that speak PostgreSQL's protocol do just that.
    let server = Server::builder()
        .conf("allow_system_table_mods = on")
        .start();
    for (name, result, body) in LOOK_ALIKES {
        let body = if result == "void" {
            "select null::void"
        } else {
            body
        };
        server.psql(&format!(
            "create or replace function pg_catalog.{name}(bigint) returns {result} volatile language sql as '{body}'"
        ));
    }
    assert_eq!(
        server.psql(
            "select pg_try_advisory_lock(1), count(*) from pg_locks where locktype = 'advisory'"
        ),
        "t|0"
    );
    let mut trials = Trials::default();
    trials.start("look-alike", Pglock::on(&server), &ALL, &[]);
    trials.assert_failed();
}

#[test]
fn functions_of_the_user_s_own_do_not_stand_in_for_the_server_s() {
    let server = Server::new();
    server
        .psql("create schema evil; create role victim login; grant usage on schema evil to victim");
    for (name, result, body) in LOOK_ALIKES {
        let body = if result == "void" {
            "select null::void"
        } else {
            body
        };
        server.psql(&format!(
            "create function evil.{name}(bigint) returns {result} volatile language sql as '{body}'"
        ));
    }
    server.psql("create function evil.pg_backend_pid() returns int language sql as 'select 1'");
    server.psql("create function evil.set_config(text, text, boolean) returns text language sql as 'select $1'");
    server.psql("create view evil.pg_locks as select 1 as x");
    server.psql("alter role victim set search_path = evil, pg_catalog");
    for mode in ALL {
        let holder = Pglock::on(&server)
            .env("PGLOCK_USER", "victim")
            .flags(mode)
            .hold();
        assert_eq!(
            server.holders(1).len(),
            1,
            "{mode:?}: it runs without the lock"
        );
        holder.finish().assert_status(0);
        assert_eq!(server.holders(1).len(), 0);
    }
}

// Names

/// pglock where the only name server takes questions and never answers; it asks for 10 s before it gives up.
struct Silent {
    scratch: Scratch,
    _socket: UdpSocket,
}

impl Silent {
    fn new() -> Silent {
        // All of 127/8 is this machine; resolv.conf knows port 53 only.
        let socket = (1..255)
            .find_map(|last| UdpSocket::bind((format!("127.77.54.{last}"), 53)).ok())
            .expect("an address of loopback whose port 53 is free");
        let scratch = Scratch::new();
        let address = socket.local_addr().expect("an address").ip();
        scratch.file("resolv.conf", 0o644, format!("nameserver {address}\n"));
        Silent {
            scratch,
            _socket: socket,
        }
    }

    fn pglock(&self, server: &Server, flags: &[&str]) -> Pglock {
        where_names_are_in("/etc/resolv.conf", &self.scratch, server, flags)
    }
}

/// pglock where this file is the one of that name in the scratch directory.
fn where_names_are_in(path: &str, scratch: &Scratch, server: &Server, flags: &[&str]) -> Pglock {
    let name = Path::new(path).file_name().expect("a file's path");
    let file = scratch.path().join(name).display().to_string();
    let mount = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
    let pglock = env!("CARGO_BIN_EXE_pglock");
    let words = ["unshare", "-m", "sh", "-c", mount, &file, path, pglock];
    Pglock::at(server.port())
        .without_pglock()
        .command([&words, flags, &["echo", "ran"]].concat())
}

#[test]
fn a_silent_name_server_takes_its_share_of_the_time_and_no_more() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can serve names");
        return;
    }
    let server = Server::builder().tcp().start();
    let silent = Silent::new();
    let list = ["--host", "nowhere.test,127.0.0.1", "--connect-timeout", "4"];
    let output = silent.pglock(&server, &list).run();
    output.assert_status(0).assert_stdout("ran\n");
    assert!(
        output.elapsed < Duration::from_secs(4),
        "{}",
        output.report()
    );
    // Who waits asks again.
    let waits = [
        "--host",
        "nowhere.test",
        "--connect-timeout",
        "1",
        "--wait",
        "4",
    ];
    let output = silent.pglock(&server, &waits).run();
    output.assert_failed(&["could not connect", "nowhere.test"]);
    assert!(
        output.elapsed > Duration::from_secs(3),
        "{}",
        output.report()
    );
    // Nor does the end of the process that asks go unseen.
    let run = silent.pglock(&server, &["--host", "nowhere.test"]).spawn();
    run.wait_for_line("Connecting to PostgreSQL");
    let asks = eventually("a process asks", PATIENCE, || {
        processes::children(run.pid()).first().copied()
    });
    kill(asks, Signal::SIGKILL).expect("kill the process that asks");
    run.wait().assert_failed(&["nowhere.test", "killed"]);
    // A signal gets through, and is told of.
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let run = silent.pglock(&server, &["--host", "nowhere.test"]).spawn();
        run.wait_for_line("Connecting to PostgreSQL");
        let sent = Instant::now();
        run.signal(signal);
        let output = run.wait();
        assert!(
            sent.elapsed() < Duration::from_secs(2),
            "{}",
            output.report()
        );
        output.assert_status(128 + signal as i32);
        let said = output.stderr();
        assert!(said.contains("came before the command ran"), "{said}");
    }
}

#[test]
fn a_pglock_that_is_killed_in_a_look_up_takes_it_along() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can serve names");
        return;
    }
    let server = Server::builder().tcp().start();
    let silent = Silent::new();
    let host = ["--host", "nowhere.test", "--connect-timeout", "0"];
    let run = silent.pglock(&server, &host).spawn();
    run.wait_for_line("Connecting to PostgreSQL");
    let asks = eventually("a process asks", PATIENCE, || {
        processes::children(run.pid()).first().copied()
    });
    // Whoever reads what the caller's are connected with would wait for it.
    eventually("it has none of the caller's descriptors", PATIENCE, || {
        let is_other = |number| {
            let own = processes::descriptor(asks, number);
            own.is_some() && own != processes::descriptor(run.pid(), number)
        };
        (0..=2).all(is_other).then_some(())
    });
    run.signal(Signal::SIGKILL);
    // By itself it would ask for 10 s.
    eventually("it has ended", Duration::from_secs(5), || {
        (!processes::is_alive(asks)).then_some(())
    });
}

#[test]
fn a_silent_address_of_a_name_leaves_time_to_the_next() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can give names");
        return;
    }
    // The hole is the first of two, for the system's order begins with what is nearest to the address of who asks.
    let server = Server::builder()
        .tcp_at(Ipv4Addr::new(127, 0, 0, 2))
        .start();
    let _hole = BlackHole::at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, server.port()));
    let scratch = Scratch::new();
    let names = "127.0.0.1 twofold.test\n127.0.0.2 twofold.test\n\
                 127.0.0.1 closed.test\n127.0.0.3 closed.test\n";
    scratch.file("hosts", 0o644, names);
    let run = |flags| where_names_are_in("/etc/hosts", &scratch, &server, flags).run();

    let output = run(&["--host", "twofold.test", "--connect-timeout", "3"]);
    output.assert_status(0).assert_stdout("ran\n");
    let share = Duration::from_millis(1500);
    assert!(output.elapsed >= share, "{}", output.report());
    // Where a server answers, what it says is the answer.
    let refused = [
        "--host",
        "twofold.test",
        "--user",
        "nobody",
        "--connect-timeout",
        "2",
    ];
    run(&refused).assert_failed(&["role \"nobody\" does not exist"]);
    // Where none does, it is told of all.
    let closed = ["--host", "closed.test", "--connect-timeout", "1"];
    run(&closed).assert_failed(&["Connection refused", "no answer from its other addresses"]);
}

#[test]
fn an_error_for_a_sign_that_the_lock_is_held_is_none() {
    let server = Server::new();
    // A younger one would be asked for its age as well.
    server.psql(
        "select pg_sleep_until(greatest(pg_postmaster_start_time(), stats_reset) + interval '4 s')
         from pg_stat_bgwriter",
    );
    let proxy = Proxy::new(&server);
    // So the answer to the lock call is so old that a sign is asked for, by the third request.
    proxy.delay(Duration::from_millis(600));
    let said = [&error("ERROR", "53200", "out of memory"), READY].concat();
    proxy.trap(When::Request(3), What::Say(said));
    let run = Pglock::at(proxy.port())
        .flags(["--ttl", "3", "--grace", "0", "--wait", "60"])
        .command(["echo", "at last"])
        .spawn();
    run.wait_for_line("no sign that the lock is held: out of memory; trying again");
    proxy.disarm();
    proxy.delay(Duration::ZERO);
    run.wait().assert_status(0).assert_stdout("at last\n");
}

#[test]
fn a_lock_that_is_granted_late_is_asked_after_before_the_command_runs() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    // Longer than a lock may take that counts at once. The session may be older than that of the holder before, which a
    // server that goes down ends first.
    proxy.delay(Duration::from_millis(100));
    let said = error("FATAL", "57P01", "terminating connection due to shutdown");
    proxy.trap(When::Request(3), What::Say(said));
    let run = Pglock::at(proxy.port())
        .flags(["--ttl", "0", "--wait", "60"])
        .command(["echo", "at last"])
        .spawn();
    run.wait_for_line("terminating connection due to shutdown; trying again");
    proxy.disarm();
    run.wait().assert_status(0).assert_stdout("at last\n");
}
