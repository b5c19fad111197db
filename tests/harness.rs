//! The harness keeps what it promises.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::net::HUNG_UP;
use crate::support::server::state;
use crate::support::session::psql;
use crate::support::wait::within;
use crate::support::*;

/// psql through a port of 127.0.0.1, to try the network with.
fn through(port: u16, sql: &str) -> Result<String, String> {
    let mut command = psql(&server::psql(), Path::new("127.0.0.1"), port, "postgres");
    let output = command
        .env("PGSSLMODE", "disable")
        .args(["-c", sql])
        .stdin(Stdio::null())
        .output()
        .expect("start psql");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

fn session_through(port: u16) -> Session {
    let mut command = psql(&server::psql(), Path::new("127.0.0.1"), port, "postgres");
    command.env("PGSSLMODE", "disable");
    Session::open(command)
}

#[test]
fn a_server_starts_and_is_removed() {
    let server = Server::new();
    assert_eq!(server.psql("select 6 * 7"), "42");
    let (dir, pid) = (server.data(), server.pid());
    assert!(dir.exists());
    drop(server);
    assert!(!dir.exists(), "{} is still there", dir.display());
    assert!(kill(pid, None).is_err(), "postmaster {pid} is still there");
}

#[test]
fn a_server_listens_on_tcp_when_asked() {
    let server = Server::builder().tcp().start();
    assert_eq!(through(server.port(), "select 1"), Ok("1".to_owned()));
    assert_eq!(Server::new().psql("show listen_addresses"), "");
}

#[test]
fn a_server_takes_settings_and_rules() {
    let server = Server::builder()
        .conf("work_mem = '123kB'")
        .durable()
        .tcp()
        .hba("host all postgres 127.0.0.1/32 reject")
        .start();
    assert_eq!(
        server.psql("select current_setting('work_mem'), current_setting('fsync')"),
        "123kB|on"
    );
    assert!(
        through(server.port(), "select 1")
            .unwrap_err()
            .contains("rejects")
    );
    assert!(server.log().contains("rejects"), "{}", server.log());
}

#[test]
fn a_server_stops_and_starts_in_every_way() {
    let server = Server::builder().tcp().start();
    let mut session = server.session();
    server.restart(Stop::Fast);
    session.send("select 1");
    assert!(session.try_answer(PATIENCE).expect("an answer").is_err());
    server.restart(Stop::Immediate);
    assert_eq!(server.psql("select 1"), "1");
    server.restart(Stop::Smart);
    assert_eq!(through(server.port(), "select 1"), Ok("1".to_owned()));
    server.crash();
    server.start();
    assert_eq!(server.psql("select 1"), "1");
    server.stop(Stop::Fast);
    assert!(through(server.port(), "select 1").is_err());
}

#[test]
fn a_crashed_backend_ends_all_sessions_but_not_the_server() {
    let server = Server::new();
    let (mut victim, mut other) = (server.session(), server.session());
    let postmaster = server.pid();
    let pid = victim.pid();
    server.crash_backend(pid);
    // Asked twice, psql would have ended at the first.
    eventually("all sessions have ended", PATIENCE, || {
        let log = server.log();
        log.contains("all server processes terminated")
            .then_some(())
    });
    other.send("select 1");
    let answer = other.try_answer(PATIENCE).expect("an answer");
    assert!(answer.is_err(), "{answer:?}");
    eventually("the server has recovered", PATIENCE, || {
        server.log().contains("ready to accept").then_some(())
    });
    assert_eq!(server.pid(), postmaster);
}

#[test]
fn a_frozen_server_does_nothing_until_it_thaws() {
    let server = Server::new();
    let mut session = server.session();
    server.freeze();
    assert_eq!(state(server.pid()), Some('T'));
    session.send("select 'awake'");
    assert!(session.try_answer(Duration::from_millis(200)).is_none());
    server.thaw();
    assert_eq!(session.answer(), "awake");
    // Dropped frozen, it goes all the same.
    server.freeze();
    let dir = server.data();
    drop(server);
    assert!(!dir.exists());
}

#[test]
fn a_session_holds_a_lock_and_the_server_says_who() {
    let server = Server::new();
    let (mut one, mut two) = (server.session(), server.session());
    let high = 5_000_000_000;
    one.hold(high);
    assert!(!two.try_hold(high));
    assert_eq!(server.holders(high), [one.pid()]);
    two.send(&format!("select pg_advisory_lock({high})"));
    let waiting = eventually("two waits", PATIENCE, || {
        server.waiters(high).first().copied()
    });
    one.release(high);
    assert_eq!(two.answer(), "");
    assert_eq!(waiting, two.pid());
    assert_eq!(server.holders(high), [two.pid()]);
    assert_eq!(server.holders(high & 0xffff_ffff), []);
    assert_eq!(server.clients(), []);
}

#[test]
fn a_refused_statement_is_an_error() {
    let server = Server::new();
    let mut session = server.session();
    session.send("select 1 / 0");
    assert!(
        session
            .try_answer(PATIENCE)
            .expect("an answer")
            .unwrap_err()
            .contains("division by zero")
    );
    assert_eq!(session.exec("select 2"), "2");
}

#[test]
fn a_server_speaks_tls_with_the_certificate_asked_for() {
    let server = Server::builder().tls("localhost").start();
    let ask = |host: &str, authority: &Path| {
        let conn = format!(
            "host={host} port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
            server.port(),
            authority.display()
        );
        let output = Command::new(server::psql())
            .args(["-X", "-A", "-t", "-d", &conn])
            .args(["-c", "select 'hello'"])
            .output();
        String::from_utf8_lossy(&output.expect("start psql").stdout)
            .trim()
            .to_owned()
    };
    assert_eq!(ask("localhost", &server.authority()), "hello");
    assert_eq!(ask("127.0.0.1", &server.authority()), "");
    let scratch = Scratch::new();
    let other = tls::Authority::new(&scratch.path().join("other"), "somebody-else");
    assert_eq!(ask("localhost", &other.certificate()), "");
}

#[test]
fn a_proxy_carries_and_counts() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    {
        let mut session = session_through(proxy.port());
        let before = proxy.traffic()[0].round_trips;
        session.exec("select 1");
        session.exec("select 2");
        assert_eq!(proxy.traffic()[0].round_trips, before + 2);
        assert_eq!(proxy.open_links(), 1);
    }
    let megabytes = through(proxy.port(), "select repeat('x', 3000000)").expect("an answer");
    assert_eq!(megabytes.len(), 3_000_000);
    eventually("both links are closed", PATIENCE, || {
        (proxy.open_links() == 0).then_some(())
    });
    assert_eq!(proxy.traffic().len(), 2);
    assert!(proxy.traffic()[1].to_client > 3_000_000);
}

#[test]
fn a_proxy_delays_each_direction() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let mut session = session_through(proxy.port());
    proxy.delay(Duration::from_millis(50));
    let start = Instant::now();
    session.exec("select 1");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(100), "{took:?}");
    proxy.delay(Duration::ZERO);
    let start = Instant::now();
    session.exec("select 1");
    assert!(start.elapsed() < took, "{:?}", start.elapsed());
}

#[test]
fn a_proxy_falls_silent_and_heals() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let (mut session, mut idle) = (session_through(proxy.port()), session_through(proxy.port()));
    idle.hold(9);
    proxy.silence();
    session.send("select 'late'");
    drop(idle);
    assert!(session.try_answer(Duration::from_millis(200)).is_none());
    assert_eq!(
        server.holders(9).len(),
        1,
        "the server cannot know that its client is gone"
    );
    proxy.heal();
    assert_eq!(session.answer(), "late");
    eventually(
        "the lock of the session that is gone is free",
        PATIENCE,
        || server.holders(9).is_empty().then_some(()),
    );
}

#[test]
fn a_proxy_strands_what_exists_and_carries_what_comes() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let mut session = session_through(proxy.port());
    proxy.strike(What::Silence);
    session.send("select 'never'");
    assert_eq!(through(proxy.port(), "select 1"), Ok("1".to_owned()));
    assert!(session.try_answer(Duration::from_millis(100)).is_none());
    proxy.heal();
    assert!(session.try_answer(Duration::from_millis(100)).is_none());
}

#[test]
fn a_proxy_refuses_and_accepts_again() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let mut session = session_through(proxy.port());
    proxy.refuse();
    assert!(
        through(proxy.port(), "select 1")
            .unwrap_err()
            .contains("refused")
    );
    assert_eq!(session.exec("select 'still here'"), "still here");
    proxy.accept();
    assert_eq!(through(proxy.port(), "select 1"), Ok("1".to_owned()));
}

#[test]
fn a_proxy_closes_and_resets() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    for what in [What::Close, What::Reset] {
        let _session = session_through(proxy.port());
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).expect("connect");
        eventually("both have come through", PATIENCE, || {
            (proxy.open_links() == 2).then_some(())
        });
        proxy.strike(what.clone());
        let end = client.read(&mut [0]).map_err(|e| e.kind());
        let expected = if what == What::Close {
            Ok(0)
        } else {
            Err(std::io::ErrorKind::ConnectionReset)
        };
        assert_eq!(end, expected, "{what:?}");
        eventually("the server has noticed", PATIENCE, || {
            (server.psql("select count(*) from pg_stat_activity where application_name = 'psql'")
                == "1")
                .then_some(())
        });
    }
}

#[test]
fn a_proxy_springs_its_traps() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    server.psql("create table seen (x int)");
    let insert = "insert into seen values (1) returning x";
    let cases = [
        (When::Connected, What::Close, "closed", "0"),
        (When::Request(1), What::Reset, "closed", "0"),
        (When::Bytes(5), What::Close, "closed", "0"),
        (When::Request(2), What::Close, "closed", "0"),
        (When::Answer(2), What::Close, "closed", "1"),
        (
            When::Answer(2),
            What::Say(b"Zoo\0\0\0".to_vec()),
            "lost synchronization",
            "1",
        ),
    ];
    for (when, what, word, rows) in cases {
        proxy.trap(when, what.clone());
        let error = through(proxy.port(), insert).expect_err("a broken connection");
        assert!(error.contains(word), "{when:?} {what:?}: {error}");
        let seen = within(PATIENCE, || {
            (server.psql("select count(*) from seen") == rows).then_some(())
        });
        assert!(
            seen.is_some(),
            "{when:?} {what:?}: {}",
            server.psql("select count(*) from seen")
        );
        server.psql("truncate seen");
    }
    proxy.disarm();
    assert_eq!(through(proxy.port(), insert), Ok("1".to_owned()));
}

#[test]
fn a_trap_counts_bytes_exactly() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    proxy.trap(When::Bytes(7), What::Close);
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).expect("connect");
    client
        .write_all(b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0")
        .expect("write");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("read");
    assert_eq!(answer, b"R\0\0\0\x08\0\0");
    // The end of the answer is "ready for a query".
    let ask = || {
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).expect("connect");
        client
            .write_all(b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0")
            .expect("write");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("read");
        answer
    };
    proxy.trap(When::Truncated(1, 2), What::Close);
    let answer = ask();
    assert!(
        answer.ends_with(b"Z\0\0\0") && answer.starts_with(b"R\0"),
        "{answer:?}"
    );
    proxy.trap(When::Truncated(1, 100_000), What::Close);
    assert_eq!(ask(), b"");
}

#[test]
fn a_closed_port_refuses_and_a_black_hole_does_not_answer() {
    let closed = ClosedPort::new();
    let error = TcpStream::connect(("127.0.0.1", closed.port())).expect_err("a closed port");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let hole = BlackHole::new();
    let address = ([127, 0, 0, 1], hole.port()).into();
    let error =
        TcpStream::connect_timeout(&address, Duration::from_millis(300)).expect_err("a black hole");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_witness_notices_connections() {
    let witness = Witness::new();
    assert!(!witness.was_disturbed());
    let _ = TcpStream::connect(("127.0.0.1", witness.port())).expect("connect");
    eventually("the witness notices", PATIENCE, || {
        witness.was_disturbed().then_some(())
    });
    assert!(!witness.was_disturbed());
}

#[test]
fn a_fake_server_hears_who_calls() {
    let fake = FakeServer::asking_for_password();
    let mut command = psql(
        &server::psql(),
        Path::new("127.0.0.1"),
        fake.port(),
        "somewhere",
    );
    let output = command
        .env("PGPASSWORD", "open sesame")
        .args(["-c", "select 1"])
        .output()
        .expect("start psql");
    assert!(String::from_utf8_lossy(&output.stderr).contains(HUNG_UP));
    let calls = fake.calls();
    // psql's own default is to prefer TLS, and to try again without it.
    let call = calls.last().expect("a call");
    assert_eq!(call.parameters["user"], "postgres");
    assert_eq!(call.parameters["database"], "somewhere");
    assert_eq!(call.password.as_deref(), Some(&b"open sesame"[..]));
    assert!(call.tls || calls[0].tls);
    assert!(fake.calls().is_empty());
}

#[test]
fn an_invocation_that_is_dropped_leaves_nothing_behind() {
    // The harness starts the command itself: this is about the harness.
    let running = Pglock::new()
        .without_pglock()
        .sh("sleep 1000 & setsid sleep 1000 & echo ready; wait")
        .spawn();
    running.wait_for_output("ready");
    eventually("both children run", PATIENCE, || {
        (running.processes().len() >= 3).then_some(())
    });
    let processes = running.processes();
    drop(running);
    for pid in processes {
        eventually("the process is gone", PATIENCE, || {
            matches!(state(pid), None | Some('Z')).then_some(())
        });
    }
}

#[test]
#[should_panic(expected = "expected exit status 4")]
fn an_assertion_about_the_status_can_fail() {
    Pglock::new()
        .without_pglock()
        .sh("exit 3")
        .run()
        .assert_status(4);
}

#[test]
#[should_panic(expected = "still running after")]
fn an_invocation_that_hangs_is_killed() {
    Pglock::new()
        .without_pglock()
        .sh("sleep 1000")
        .limit(Duration::from_millis(50))
        .run();
}

#[test]
#[should_panic(expected = "never had \"hello\"")]
fn waiting_for_a_line_fails_when_the_stream_ends() {
    Pglock::new()
        .without_pglock()
        .sh("echo good day >&2")
        .spawn()
        .wait_for_line("hello");
}

#[test]
fn an_invocation_gets_what_the_test_sets_up() {
    let scratch = Scratch::new();
    let file = fs::File::open(scratch.file("seven", 0o644, "from seven\n")).expect("open");
    let output = Pglock::new()
        .without_pglock()
        .descriptor(file, 7)
        .env("FLAVOUR", "sweet")
        .dir(scratch.path())
        .input("from input\n")
        .sh("cat <&7; cat; echo $FLAVOUR; ls")
        .run();
    output
        .assert_status(0)
        .assert_stdout("from seven\nfrom input\nsweet\nseven\n");
    // Not through a shell: some clear the mask.
    let output = Pglock::new()
        .without_pglock()
        .ignoring(Signal::SIGHUP)
        .blocking(Signal::SIGUSR1)
        .command(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"])
        .run();
    let masks: Vec<u64> = output
        .stdout()
        .lines()
        .map(|line| {
            u64::from_str_radix(line.rsplit('\t').next().expect("a mask"), 16).expect("a number")
        })
        .collect();
    assert_eq!(
        masks[0],
        1 << (Signal::SIGUSR1 as u64 - 1),
        "{}",
        output.report()
    );
    assert_eq!(
        masks[1] & 1 << (Signal::SIGHUP as u64 - 1),
        1,
        "{}",
        output.report()
    );
}

/// The other half of the next test, which starts it in a process of its own.
#[test]
#[ignore = "waits to be killed"]
fn holds_a_server_until_killed() {
    let Some(report) = std::env::var_os("HARNESS_REPORT") else {
        return;
    };
    let server = Server::new();
    server.freeze();
    let command = Pglock::new()
        .without_pglock()
        .sh("sleep 1000 & echo ready; wait")
        .spawn();
    command.wait_for_output("ready");
    let pids: Vec<String> = command
        .processes()
        .iter()
        .chain([&server.pid()])
        .map(Pid::to_string)
        .collect();
    // The rename makes it whole or not there.
    let draft = Path::new(&report).with_extension("draft");
    fs::write(
        &draft,
        format!("{}\n{}", server.data().display(), pids.join(" ")),
    )
    .expect("write the report");
    fs::rename(&draft, &report).expect("hand in the report");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_test_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let report = scratch.path().join("report");
    let mut test = Command::new(std::env::current_exe().expect("our own path"))
        .args([
            "--exact",
            "harness::holds_a_server_until_killed",
            "--ignored",
            "--nocapture",
        ])
        .env("HARNESS_REPORT", &report)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start ourselves");
    let text = within(PATIENCE, || fs::read_to_string(&report).ok());
    test.kill().expect("kill the test");
    test.wait().expect("wait for the test");
    let text = text.expect("a report");
    let (data, pids) = text.split_once('\n').expect("two lines");
    let pids: Vec<Pid> = pids
        .split(' ')
        .map(|pid| Pid::from_raw(pid.parse().expect("a pid")))
        .collect();
    assert!(pids.len() >= 3, "{text}");
    for pid in pids {
        eventually("the process is gone", PATIENCE, || {
            matches!(state(pid), None | Some('Z')).then_some(())
        });
    }
    eventually("the directory is gone", PATIENCE, || {
        (!Path::new(data).parent()?.exists()).then_some(())
    });
}
