//! The command while its connection is away: it stands still until it is known what has become of the lock, ends if that is
//! lost, and is deaf to nobody meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, mkfifo};

use crate::lease::lease::{
    DEAF, LATE, LONG, POLITE, SHORT, SINGLE, UNTIL_TOLD, assert_never_says, assert_says, at, on,
    start, terminate_holder,
};
use crate::support::processes::{
    self, command_of, guardian_of, is_alive, there_is, wait_for_end, wait_for_state,
};
use crate::support::*;

/// A session that waits for the lock of this number.
#[track_caller]
fn waiter(server: &Server, key: i64) -> Session {
    let mut session = server.session();
    session.send(&format!("select pg_advisory_lock({key})"));
    eventually("it waits", PATIENCE, || {
        server.waiters(key).first().copied()
    });
    session
}

/// A command that writes to a file as long as it runs, and takes no notice of a SIGTERM.
struct Clock {
    scratch: Scratch,
}

impl Clock {
    fn new() -> Clock {
        Clock {
            scratch: Scratch::new(),
        }
    }

    fn file(&self) -> PathBuf {
        self.scratch.path().join("ticks")
    }

    fn script(&self) -> String {
        let file = self.file();
        let file = file.display();
        format!("trap '' TERM; echo ready; while :; do echo tick >>{file}; sleep 0.02; done")
    }

    fn ticks(&self) -> u64 {
        fs::metadata(self.file()).map_or(0, |file| file.len())
    }

    /// The command of this run stops within a moment, and does not run again before its end.
    #[track_caller]
    fn stands_still_to_the_end(&self, run: Running) -> Output {
        let struck = Instant::now();
        wait_for_state("the command", command_of(run.pid()), "T");
        assert!(struck.elapsed() < LATE, "{:?}", struck.elapsed());
        let ticks = self.ticks();
        let output = run.wait();
        assert_eq!(self.ticks(), ticks, "it has run on\n{}", output.report());
        output
    }
}

/// A run whose connection has been reset, and that finds no way back: its command is frozen.
#[track_caller]
fn frozen(proxy: &Proxy, pglock: Pglock, script: &str) -> (Running, Pid) {
    let run = start(pglock, script);
    let command = command_of(run.pid());
    proxy.refuse();
    proxy.strike(What::Reset);
    wait_for_state("the command", command, "T");
    (run, command)
}

// A session that is ended alone

#[test]
fn a_terminated_session_without_a_way_back_leaves_the_command_stopped() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let clock = Clock::new();
    let run = start(at(&proxy), &clock.script());
    let mut other = waiter(&server, 1);
    proxy.refuse();
    terminate_holder(&server, 1);
    other.answer();
    let output = clock.stands_still_to_the_end(run);
    output.assert_status(124).assert_stdout("ready\n");
    assert_says(
        &output,
        &[
            "terminating connection due to administrator command",
            "the lock is lost: no answer from the server for ",
            "Connection refused",
            "; killing the command",
        ],
    );
}

#[test]
fn a_session_terminated_in_a_smart_shutdown_leaves_the_command_stopped() {
    let server = Server::new();
    let clock = Clock::new();
    let run = start(on(&server), &clock.script());
    let mut other = waiter(&server, 1);
    let mut administrator = server.session();
    let holder = server.holders(1)[0];
    kill(server.pid(), Signal::SIGTERM).expect("a smart shutdown");
    eventually("newcomers are refused", PATIENCE, || {
        server
            .log()
            .contains("received smart shutdown request")
            .then_some(())
    });
    administrator.exec(&format!("select pg_terminate_backend({holder})"));
    other.answer();
    let output = clock.stands_still_to_the_end(run);
    output.assert_status(124).assert_stdout("ready\n");
    assert_says(
        &output,
        &["the lock is lost: no answer", "is shutting down", "killing"],
    );
}

#[test]
fn one_that_is_refused_by_a_server_that_serves_is_not_continued_when_it_stops() {
    let server = Server::new();
    let clock = Clock::new();
    server.psql("create role keeper login");
    let run = start(on(&server).env("PGLOCK_USER", "keeper"), &clock.script());
    let mut other = waiter(&server, 1);
    server.psql("alter role keeper nologin");
    terminate_holder(&server, 1);
    other.answer();
    wait_for_state("the command", command_of(run.pid()), "T");
    eventually("it was refused", PATIENCE, || {
        server
            .log()
            .contains("not permitted to log in")
            .then_some(())
    });
    server.stop(Stop::Fast);
    let output = clock.stands_still_to_the_end(run);
    output.assert_status(124).assert_stdout("ready\n");
}

#[test]
fn one_that_was_refused_before_a_restart_does_not_take_the_lock_for_its_own() {
    let server = Server::new();
    server.psql("create role keeper login");
    let run = start(
        Pglock::on(&server).flags(LONG).env("PGLOCK_USER", "keeper"),
        POLITE,
    );
    let mut other = waiter(&server, 1);
    server.psql("alter role keeper nologin");
    terminate_holder(&server, 1);
    other.answer();
    eventually("it was refused", PATIENCE, || {
        server
            .log()
            .contains("not permitted to log in")
            .then_some(())
    });
    server.restart(Stop::Immediate);
    server.psql("alter role keeper login");
    // Whoever had it meanwhile runs on by the lease, and is about to take it again.
    let output = run.wait();
    output.assert_status(124).assert_stdout("ready\n");
    assert_says(&output, &["somebody may have had it meanwhile; killing"]);
    assert_never_says(&output, &["nobody has had it"]);
}

#[test]
fn a_command_in_its_grace_whose_lock_is_lost_again_is_killed_at_once() {
    let server = Server::new();
    let run = start(
        Pglock::on(&server).flags(["--ttl", "60", "--grace", "30"]),
        DEAF,
    );
    terminate_holder(&server, 1);
    run.wait_for_output("told");
    let mut other = waiter(&server, 1);
    let ended = Instant::now();
    terminate_holder(&server, 1);
    other.answer();
    let output = run.wait();
    assert!(ended.elapsed() < LATE, "{:?}", ended.elapsed());
    output.assert_status(124).assert_stdout("ready\ntold\n");
    assert_says(
        &output,
        &["the session that held it is gone while the command was ending; killing the command"],
    );
}

#[test]
fn a_forwarder_of_a_unix_socket_that_goes_away_is_no_server_that_goes_down() {
    let server = Server::new();
    let mut forwarder = net::Forwarder::new(&server.socket());
    let clock = Clock::new();
    let run = start(
        on(&server).env("PGLOCK_HOST", forwarder.socket_dir()),
        &clock.script(),
    );
    let mut other = waiter(&server, 1);
    forwarder.end();
    other.answer();
    let output = clock.stands_still_to_the_end(run);
    output.assert_status(124).assert_stdout("ready\n");
}

// A connection that is reset on one side

#[test]
fn a_reset_that_the_server_does_not_see_has_the_command_told_to_end() {
    let server = Server::new();
    let kinds: [&[&str]; 4] = [
        &[],
        &["--slots", "2"],
        &["--lockname", "nightly"],
        &["--shared"],
    ];
    for flags in kinds {
        let proxy = Proxy::new(&server);
        // Of two slots the second.
        let first = flags
            .contains(&"--slots")
            .then(|| start(on(&server).flags(flags), SINGLE));
        let run = start(at(&proxy).flags(flags), POLITE);
        let struck = Instant::now();
        proxy.strike(What::ResetClient);
        let output = run.wait();
        assert!(struck.elapsed() < LATE, "{:?}", struck.elapsed());
        output.assert_status(124).assert_stdout("ready\ntold\n");
        assert_says(
            &output,
            &[" after the server's last sign, while the server ran on; "],
        );
        assert_never_says(&output, &["somebody else has it"]);
        drop(first);
    }
    eventually("no lock is left", PATIENCE, || {
        let locks = server.psql("select count(*) from pg_locks where locktype = 'advisory'");
        (locks == "0").then_some(())
    });
}

#[test]
fn a_reset_that_the_server_does_not_see_gives_the_lock_to_who_waits() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let run = start(at(&proxy), DEAF);
    let mut other = waiter(&server, 1);
    let struck = Instant::now();
    proxy.strike(What::ResetClient);
    other.answer();
    let output = run.wait();
    assert!(struck.elapsed() < LATE, "{:?}", struck.elapsed());
    output.assert_status(124).assert_stdout("ready\n");
    assert_says(&output, &["somebody else has it now; killing the command"]);
}

#[test]
fn a_reset_that_the_server_does_not_see_leaves_a_command_that_is_to_carry_on_its_lock() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let run = start(at(&proxy).flags(["--on-loss", "continue"]), UNTIL_TOLD);
    proxy.strike(What::ResetClient);
    run.wait_for_line("it was taken again, and the command carries on");
    assert_eq!(server.holders(1).len(), 1);
    run.finish().assert_status(7);
}

// The lock and the group

#[test]
fn the_lock_is_not_free_before_the_group_is_gone() {
    let server = Server::new();
    // It takes the kernel some time to free what this has in memory; until then it is there.
    let run = start(
        Pglock::on(&server).flags(["--ttl", "60", "--grace", "1"]),
        "exec 3>&1; trap '' TERM; { head -c 300000000 /dev/zero; echo ready >&3; exec sleep 1000; } | tail >/dev/null",
    );
    let group = processes::members(command_of(run.pid()));
    // The session is ended, and the lock taken again: it is held for the time of the grace.
    terminate_holder(&server, 1);
    run.wait_for_line("while the server ran on");
    let mut other = waiter(&server, 1);
    other.answer();
    let left: Vec<Pid> = group.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert!(left.is_empty(), "{left:?}\n{}", run.stderr());
    let output = run.wait();
    output.assert_status(124);
    assert_says(&output, &["did not end in time; killing it"]);
}

// A command that is frozen

#[test]
fn a_frozen_command_that_somebody_continues_is_stopped_again() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let (run, command) = frozen(&proxy, Pglock::at(proxy.port()).flags(LONG), SINGLE);
    for _ in 0..50 {
        // When the call returns it is not stopped.
        kill(command, Signal::SIGCONT).expect("continue the command");
        wait_for_state("the command", command, "T");
    }
    proxy.accept();
    run.wait().assert_status(124);
}

#[test]
fn a_child_of_a_frozen_command_that_somebody_continues_is_stopped_again() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let script = "sleep 1000 & echo ready; wait";
    let (run, command) = frozen(&proxy, Pglock::at(proxy.port()).flags(LONG), script);
    let child = command_of(command);
    for _ in 0..20 {
        kill(child, Signal::SIGCONT).expect("continue the child");
        wait_for_state("the child", child, "T");
    }
    proxy.accept();
    run.wait().assert_status(124);
}

#[test]
fn a_frozen_command_is_told_to_end_and_does_so_in_its_grace() {
    let server = Server::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let proxy = Proxy::new(&server);
        let pglock = Pglock::at(proxy.port()).flags(["--ttl", "3600", "--grace", "1"]);
        let (run, command) = frozen(&proxy, pglock, DEAF);
        run.signal(signal);
        let output = run.wait_within(Duration::from_secs(1) + LATE);
        output.assert_status(124).assert_stdout("ready\n");
        assert_says(
            &output,
            &["pglock was told to end the command; killing the command"],
        );
        assert!(!is_alive(command));
    }
}

#[test]
fn a_frozen_command_that_was_told_to_end_ends_when_it_may_run_again() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let pglock = Pglock::at(proxy.port()).flags(["--ttl", "60", "--grace", "30"]);
    let (run, _) = frozen(&proxy, pglock, POLITE);
    run.signal(Signal::SIGTERM);
    server.restart(Stop::Fast);
    proxy.accept();
    run.wait().assert_status(3).assert_stdout("ready\ntold\n");
}

#[test]
fn a_frozen_command_that_is_killed_has_not_finished() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let (run, command) = frozen(&proxy, Pglock::at(proxy.port()), SINGLE);
    kill(command, Signal::SIGKILL).expect("kill the command");
    let output = run.wait_within(LATE);
    output.assert_status(128 + Signal::SIGKILL as i32);
    assert_says(
        &output,
        &["SIGKILL has ended the command while it was stopped"],
    );
    assert_never_says(&output, &["Execution finished"]);
}

// The way back

/// As many rounds of hashing as the protocol can ask for: it takes a client half an hour.
const ENDLESS: &str = "SCRAM-SHA-256$2147483647:c2FsdHNhbHRzYWx0c2FsdA==$\
                       AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Something in which libpq blocks when it connects.
trait Trap {
    fn disarm(&mut self);
    fn arm(&mut self);
    /// Whether libpq of this pglock has got into it.
    fn is_sprung(&mut self, pglock: Pid) -> bool;
}

/// Neither a signal nor the lease waits for a way back on which libpq blocks.
#[track_caller]
fn is_not_deaf(server: &Server, pglock: &Pglock, trap: &mut impl Trap) {
    let long = ["--ttl", "60", "--grace", "1"];
    for (flags, signal, limit) in [(SHORT, None, 4), (long, Some(Signal::SIGTERM), 1)] {
        trap.disarm();
        let run = start(pglock.clone().flags(flags), DEAF);
        let command = command_of(run.pid());
        trap.arm();
        terminate_holder(server, 1);
        eventually("libpq blocks", PATIENCE, || {
            trap.is_sprung(run.pid()).then_some(())
        });
        wait_for_state("the command", command, "T");
        if let Some(signal) = signal {
            run.signal(signal);
        }
        let output = run.wait_within(Duration::from_secs(limit) + LATE);
        output.assert_status(124).assert_stdout("ready\n");
        assert!(!is_alive(command));
    }
}

#[test]
fn a_way_back_on_which_libpq_hashes_for_half_an_hour_makes_nobody_deaf() {
    struct Rounds<'a>(&'a Server);
    impl Trap for Rounds<'_> {
        fn disarm(&mut self) {
            self.0.psql("alter role keeper password 'one'");
        }
        fn arm(&mut self) {
            // By `alter role` the server would hash as long, to see whether the password is empty.
            let sql = "update pg_authid set rolpassword = '{}' where rolname = 'keeper'";
            self.0.psql(&sql.replace("{}", ENDLESS));
        }
        fn is_sprung(&mut self, pglock: Pid) -> bool {
            processes::processor_time(pglock) > 30
        }
    }
    let server = Server::builder()
        .hba("local all keeper scram-sha-256")
        .start();
    server.psql("create role keeper login");
    let keeper = Pglock::on(&server)
        .env("PGLOCK_USER", "keeper")
        .env("PGLOCK_PASS", "one");
    is_not_deaf(&server, &keeper, &mut Rounds(&server));
}

#[test]
fn a_way_back_on_which_libpq_waits_for_a_pipe_makes_nobody_deaf() {
    struct Pipe {
        path: PathBuf,
        service: String,
        writer: Option<File>,
    }
    impl Trap for Pipe {
        fn disarm(&mut self) {
            let _ = fs::remove_file(&self.path);
            fs::write(&self.path, &self.service).expect("write the service file");
        }
        fn arm(&mut self) {
            fs::remove_file(&self.path).expect("remove the service file");
            mkfifo(&self.path, Mode::S_IRWXU).expect("mkfifo");
        }
        fn is_sprung(&mut self, _: Pid) -> bool {
            // It can be opened if somebody is about to read; nothing is ever written to it.
            let mut options = File::options();
            let options = options.write(true).custom_flags(libc::O_NONBLOCK);
            self.writer = options.open(&self.path).ok();
            self.writer.is_some()
        }
    }
    let server = Server::new();
    let scratch = Scratch::new();
    let path = scratch.path().join("services");
    let pglock = Pglock::new()
        .env("PGSERVICEFILE", &path)
        .env("PGSERVICE", "here");
    let socket = server.socket_dir();
    let service = format!("[here]\nhost={}\nuser=postgres\n", socket.display());
    let mut pipe = Pipe {
        path,
        service,
        writer: None,
    };
    is_not_deaf(&server, &pglock, &mut pipe);
}

#[test]
fn a_server_that_lets_in_and_closes_at_once_is_not_tried_without_a_pause() {
    let server = Server::new();
    for when in [When::Request(2), When::Connected] {
        let proxy = Proxy::new(&server);
        let run = start(at(&proxy), DEAF);
        proxy.trap(when, What::Close);
        proxy.strike(What::Close);
        let output = run.wait();
        output.assert_status(124);
        let said = output.stderr();
        assert_eq!(said.matches("connection to the server was lost").count(), 1);
        assert!(said.contains(" s (") && said.contains("server closed the connection"));
        let attempts = proxy.traffic().len() - 1;
        assert!(
            (3..=12).contains(&attempts),
            "{attempts} attempts, {when:?}\n{}",
            output.report()
        );
    }
}

#[test]
fn the_line_on_a_lost_lock_says_what_was_in_the_way() {
    let server = Server::builder()
        .tcp()
        .hba("host all keeper 127.0.0.1/32 scram-sha-256")
        .start();
    server.psql("create role keeper login password 'one'");
    let keeper = Pglock::at(server.port())
        .flags(LONG)
        .env("PGLOCK_USER", "keeper")
        .env("PGLOCK_PASS", "one");
    let run = start(keeper, SINGLE);
    server.psql("alter role keeper password 'two'");
    server.restart(Stop::Fast);
    let output = run.wait();
    output.assert_status(124);
    assert_says(
        &output,
        &[
            "the lock is lost: no answer from the server for ",
            "password authentication failed for user \"keeper\")",
        ],
    );
    let attempts = server
        .log()
        .matches("password authentication failed")
        .count();
    assert!((3..=15).contains(&attempts), "{attempts} attempts");
}

#[test]
fn what_was_in_the_way_once_is_not_named_for_a_later_loss() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let (run, _) = frozen(&proxy, Pglock::at(proxy.port()).flags(LONG), SINGLE);
    server.restart(Stop::Fast);
    proxy.accept();
    run.wait_for_line("nobody has had it meanwhile");
    proxy.silence();
    let output = run.wait();
    output.assert_status(124);
    assert_says(
        &output,
        &["the lock is lost: no answer from the server for "],
    );
    assert_never_says(&output, &["refused"]);
}

#[test]
fn a_restart_does_not_end_the_command_of_one_who_may_start_no_further_process() {
    if !Uid::effective().is_root() || !there_is("setpriv") || !there_is("prlimit") {
        eprintln!("skipped: root has no limit, and only root can become somebody who has");
        return;
    }
    let server = Server::new();
    let scratch = Scratch::new();
    // The folder of the build may be closed to others.
    let program = scratch.path().join("pglock");
    fs::copy(env!("CARGO_BIN_EXE_pglock"), &program).expect("copy pglock");
    // Somebody of whom there is nothing yet.
    let uid = (50_000..60_000)
        .find(|uid| {
            let held = format!("Uid:\t{uid}\t");
            let processes = fs::read_dir("/proc").expect("/proc").flatten();
            !processes.into_iter().any(|entry| {
                let status = fs::read_to_string(entry.path().join("status"));
                status.is_ok_and(|status| status.contains(&held))
            })
        })
        .expect("a user id");
    // pglock itself, the command and the guardian.
    let words = format!("setpriv --reuid={uid} --regid={uid} --clear-groups prlimit --nproc=3");
    let mut words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    words.push(program.display().to_string());
    words.extend(LONG.map(str::to_owned));
    words.extend(["sh", "-c", "echo ready; exec cat"].map(str::to_owned));
    let mut run = Pglock::on(&server)
        .without_pglock()
        .open_input()
        .command(words)
        .spawn();
    run.wait_for_output("ready");
    for times in 1..=2 {
        let guardian = guardian_of(run.pid());
        server.restart(Stop::Fast);
        eventually("the lock is taken again", PATIENCE, || {
            assert!(run.is_running(), "{}", run.stderr());
            (run.stderr().matches("taken again").count() == times).then_some(())
        });
        wait_for_end("the guardian of the old session", guardian);
        // One of its own for the new session.
        guardian_of(run.pid());
    }
    let output = run.finish();
    output.assert_status(0);
    assert_never_says(&output, &["pglock: could not"]);
}

#[test]
fn a_command_without_grace_is_killed_by_pglock_and_not_by_the_guardian() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let flags = ["--ttl", "3", "--grace", "0", "--lockid"];
    let runs: Vec<Running> = (1..=20)
        .map(|id: u32| {
            let pglock = Pglock::at(proxy.port()).flags(flags);
            start(pglock.flag(id.to_string()), SINGLE)
        })
        .collect();
    proxy.silence();
    for run in runs {
        let output = run.wait();
        output.assert_status(124);
        assert_says(
            &output,
            &["the lock is lost: no answer from the server for "],
        );
        assert_never_says(&output, &["pglock itself was stopped"]);
    }
}
