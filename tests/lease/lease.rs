//! The lease: whatever breaks, the command of a lost lock is stopped before anybody else can have it; and what need not
//! disturb a command does not.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::processes::{command_of, guardian_of, is_alive, wait_for_end};
use crate::support::*;

/// The lease of most tests: a beat every 1.7 s, SIGTERM 3 s and SIGKILL 4 s after the last sign, 5 s at the server.
pub const SHORT: [&str; 4] = ["--ttl", "5", "--grace", "1"];
pub const TTL: Duration = Duration::from_secs(5);
const BEAT: Duration = Duration::from_millis(1667);

/// For tests with restarts, which take their time on a busy machine: 6 s from the last sign to SIGTERM.
pub const LONG: [&str; 4] = ["--ttl", "8", "--grace", "1"];
const LONG_TTL: Duration = Duration::from_secs(8);

/// What a busy machine may be late.
pub const LATE: Duration = Duration::from_secs(2);

/// Runs until its input ends, then exits with 7.
pub const UNTIL_TOLD: &str = "echo the command runs; cat; exit 7";

/// Says so when it gets a SIGTERM, and runs on.
pub const DEAF: &str = "trap 'echo told' TERM; echo ready; while :; do sleep 0.05; done";

/// A single process: a shell that starts another waits for it in the kernel, and pglock does not learn meanwhile that it
/// is stopped.
pub const SINGLE: &str = "echo ready; exec cat";

/// Says so when it gets a SIGTERM, and ends.
pub const POLITE: &str = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done";

pub fn on(server: &Server) -> Pglock {
    Pglock::on(server).flags(SHORT)
}

pub fn at(proxy: &Proxy) -> Pglock {
    Pglock::at(proxy.port()).flags(SHORT)
}

/// Starts it with this script, and waits for its first word.
#[track_caller]
pub fn start(pglock: Pglock, script: &str) -> Running {
    let run = pglock.open_input().sh(script).spawn();
    run.wait_for_output("\n");
    run
}

/// As in 150018 for 15.18.
fn version(server: &Server) -> u32 {
    let number = server.psql("show server_version_num");
    number.parse().expect("a number")
}

#[track_caller]
pub fn assert_says(output: &Output, words: &[&str]) {
    let log = output.stderr();
    for word in words {
        assert!(
            log.contains(word),
            "not said: {word:?}\n{}",
            output.report()
        );
    }
}

#[track_caller]
pub fn assert_never_says(output: &Output, words: &[&str]) {
    let log = output.stderr();
    for word in words {
        assert!(!log.contains(word), "said: {word:?}\n{}", output.report());
    }
}

/// The seconds that follow `words` in the log: the time since the last sign of the server.
#[track_caller]
fn seconds_after(output: &Output, words: &str) -> f64 {
    let log = output.stderr();
    let text = log.split_once(words).map(|(_, text)| text.trim_start());
    text.and_then(|text| text.split_once(" s")?.0.parse().ok())
        .unwrap_or_else(|| panic!("no seconds after {words:?}\n{}", output.report()))
}

#[track_caller]
pub fn assert_between(what: &str, time: Duration, from: Duration, to: Duration) {
    assert!(
        from <= time && time <= to,
        "{what}: {time:?}, not between {from:?} and {to:?}"
    );
}

/// Ends the session that holds the lock.
#[track_caller]
pub fn terminate_holder(server: &Server, key: i64) {
    let holders = server.holders(key);
    assert_eq!(holders.len(), 1, "{holders:?}");
    let ended = server.psql(&format!("select pg_terminate_backend({})", holders[0]));
    assert_eq!(ended, "t");
}

/// Nothing of the run is left.
#[track_caller]
fn assert_gone(pids: &[Pid]) {
    eventually("the group is gone", PATIENCE, || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
}

#[derive(Clone, Copy, Debug)]
enum Restart {
    Stop(Stop),
    Crash,
}

impl Restart {
    fn strike(self, server: &Server) {
        match self {
            Restart::Stop(how) => server.restart(how),
            Restart::Crash => {
                let ready = || server.log().matches("ready to accept connections").count();
                let before = ready();
                let mut session = server.session();
                let pid = session.pid();
                server.crash_backend(pid);
                eventually("the server has recovered", PATIENCE, || {
                    (ready() > before).then_some(())
                });
            }
        }
    }
}

// The network

#[test]
fn a_silent_cut_stops_the_command_before_the_lease_is_over() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let run = start(at(&proxy), DEAF);
    let polite = start(at(&proxy).flags(["--lockid", "2"]), POLITE);
    let pids = run.processes();
    let command = command_of(run.pid());
    proxy.silence();
    let cut = Instant::now();
    run.wait_for_output("told");
    let told = cut.elapsed();
    wait_for_end("the command", command);
    let killed = cut.elapsed();
    let output = run.wait_within(LATE);
    output.assert_status(124);
    // The last answered message was sent a beat before the cut, or later. The first bound leaves room for the moment that a
    // message was on its way.
    let early = BEAT + Duration::from_millis(300);
    assert_between(
        "SIGTERM",
        told,
        Duration::from_secs(3) - early,
        Duration::from_secs(4),
    );
    assert_between("SIGKILL", killed, Duration::from_secs(4) - early, TTL);
    assert_between(
        "the grace",
        killed - told,
        Duration::from_millis(700),
        Duration::from_millis(1700),
    );
    assert_says(
        &output,
        &[
            "the lock is lost: no answer from the server for 3.",
            "did not end in time; killing it",
        ],
    );
    let silence = seconds_after(&output, "no answer from the server for ");
    assert!((3.0..4.0).contains(&silence), "{silence}");
    assert_gone(&pids);
    // One that ends when it is told to is not killed.
    let output = polite.wait_within(LATE);
    output.assert_status(124).assert_stdout("ready\ntold\n");
    assert_never_says(&output, &["killing"]);
    // The server ends the sessions by itself.
    proxy.heal();
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
}

#[test]
fn a_connection_that_is_reset_or_closed_ends_the_command() {
    let server = Server::new();
    for what in [What::Reset, What::Close] {
        let proxy = Proxy::new(&server);
        let run = start(at(&proxy), POLITE);
        let holder = server.holders(1);
        proxy.refuse();
        proxy.strike(what.clone());
        eventually("the session has ended", PATIENCE, || {
            (server.holders(1) != holder).then_some(())
        });
        let ended = Instant::now();
        proxy.accept();
        let output = run.wait();
        assert!(ended.elapsed() < LATE, "{what:?}: {:?}", ended.elapsed());
        output.assert_status(124).assert_stdout("ready\ntold\n");
        assert_says(
            &output,
            &[
                "the connection to the server was lost, ",
                " s after its last sign",
                "the lock is lost: the session that held it ended",
                "while the server ran on",
            ],
        );
        assert!(
            seconds_after(&output, "the connection to the server was lost,") < 4.0,
            "{}",
            output.report()
        );
        assert!(server.holders(1).is_empty());
    }
}

/// A pglock whose connection has been reset, with no way back yet, and the session that has its lock since. Nobody
/// knows of that one yet: the command stands still.
#[track_caller]
fn replaced(server: &Server, proxy: &Proxy) -> (Running, Session) {
    let run = start(at(proxy), DEAF);
    let command = command_of(run.pid());
    let mut other = server.session();
    other.send("select pg_advisory_lock(1)");
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    proxy.refuse();
    proxy.strike(What::Reset);
    other.answer();
    processes::wait_for_state("the command", command, "T");
    (run, other)
}

#[test]
fn a_reset_that_lets_another_have_the_lock_kills_the_command_at_once() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let (run, _other) = replaced(&server, &proxy);
    let opened = Instant::now();
    proxy.accept();
    let output = run.wait();
    assert!(opened.elapsed() < LATE, "{:?}", opened.elapsed());
    output.assert_status(124).assert_stdout("ready\n");
    assert_says(&output, &["somebody else has it now; killing the command"]);
}

#[test]
fn after_a_reset_the_command_does_not_run_on_beside_another_holder_while_there_is_no_way_back() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let (run, _other) = replaced(&server, &proxy);
    // Not for that either: it would be for the command to end, which it cannot without running on.
    run.signal(Signal::SIGTERM);
    let output = run.wait();
    output.assert_status(124).assert_stdout("ready\n");
    assert_says(
        &output,
        &[
            "the lock is lost: no answer from the server for ",
            "; killing the command",
        ],
    );
}

#[test]
fn a_partition_that_heals_in_time_kills_nothing() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let runs: Vec<Running> = (1..=20)
        .map(|id: u32| {
            Pglock::at(proxy.port())
                .flags(["--ttl", "15", "--lockid", &id.to_string()])
                .open_input()
                .sh(UNTIL_TOLD)
                .spawn()
        })
        .collect();
    runs[0].wait_for_output("the command runs");
    let begun = Instant::now();
    for run in &runs {
        run.wait_for_output("the command runs");
    }
    // The heartbeat is due 5 s after the start.
    thread::sleep((begun + Duration::from_secs(4)).saturating_duration_since(Instant::now()));
    proxy.silence();
    thread::sleep(Duration::from_secs(3));
    proxy.heal();
    thread::sleep(Duration::from_secs(1));
    for run in runs {
        let output = run.finish();
        output.assert_status(7);
        assert_never_says(&output, &["lost", "pglock: "]);
    }
}

// The session

#[test]
fn a_terminated_session_ends_the_command() {
    let server = Server::new();
    let run = start(on(&server), POLITE);
    let ended = Instant::now();
    terminate_holder(&server, 1);
    let output = run.wait();
    assert!(ended.elapsed() < LATE, "{:?}", ended.elapsed());
    output.assert_status(124).assert_stdout("ready\ntold\n");
    assert_says(
        &output,
        &[
            "the connection to the server was lost, ",
            "terminating connection due to administrator command",
            "the lock is lost: the session that held it ended",
            "somebody may have had it meanwhile; stopping the command",
            "The command was stopped.",
        ],
    );
    assert!(server.holders(1).is_empty());
}

#[test]
fn a_terminated_session_whose_lock_a_waiter_has_got_kills_the_command() {
    let server = Server::new();
    let run = start(on(&server), DEAF);
    let pids = run.processes();
    let waiter = on(&server)
        .flags(["--wait", "60"])
        .sh("echo mine")
        .open_input()
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    // Between two turns of waiting there is nobody in the queue for an instant.
    let mut other = server.session();
    other.send("select pg_advisory_lock(1)");
    eventually("both wait", PATIENCE, || {
        (server.waiters(1).len() == 2).then_some(())
    });
    let ended = Instant::now();
    terminate_holder(&server, 1);
    let output = run.wait();
    assert!(ended.elapsed() < LATE, "{:?}", ended.elapsed());
    output.assert_status(124).assert_stdout("ready\n");
    assert_says(&output, &["somebody else has it now; killing the command"]);
    assert_gone(&pids);
    other.answer();
    other.release(1);
    waiter.wait().assert_status(0).assert_stdout("mine\n");
}

#[test]
fn children_that_ignore_sigterm_are_killed_after_the_grace() {
    let server = Server::new();
    let script = "(trap '' TERM; sleep 1000) & (trap '' TERM INT HUP; while :; do sleep 1000; done) & \
                  trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let run = start(on(&server), script);
    let group = eventually("all of it runs", PATIENCE, || {
        let pids = run.processes();
        (pids.len() >= 6).then_some(pids)
    });
    terminate_holder(&server, 1);
    run.wait_for_output("told");
    let told = Instant::now();
    let output = run.wait();
    assert_between(
        "the grace",
        told.elapsed(),
        Duration::from_millis(700),
        Duration::from_secs(1) + LATE,
    );
    output.assert_status(124);
    assert_says(&output, &["did not end in time; killing it"]);
    let left: Vec<&Pid> = group.iter().filter(|pid| is_alive(**pid)).collect();
    assert!(left.is_empty(), "{left:?}\n{}", output.report());
}

#[test]
fn on_loss_continue_only_says_so() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let terminated = start(
        on(&server).flags(["--on-loss", "continue", "--lockid", "1"]),
        UNTIL_TOLD,
    );
    let taken = start(
        on(&server).flags(["--on-loss=continue", "--lockid", "2"]),
        UNTIL_TOLD,
    );
    let cut = start(
        at(&proxy).flags(["--on-loss=continue", "--lockid", "3"]),
        UNTIL_TOLD,
    );
    proxy.silence();
    terminate_holder(&server, 1);
    let mut other = server.session();
    other.send("select pg_advisory_lock(2)");
    eventually("it waits", PATIENCE, || server.waiters(2).first().copied());
    terminate_holder(&server, 2);
    other.answer();
    let runs = [terminated, taken, cut];
    let [without, again] = [
        "the command carries on without it",
        "it was taken again, and the command carries on",
    ];
    for (run, how) in runs.iter().zip([again, without, without]) {
        run.wait_for_line(&format!("{how} (--on-loss continue)"));
    }
    // Longer than the grace, and than a lease that nobody renews.
    thread::sleep(TTL + Duration::from_secs(1));
    assert_eq!(
        server.holders(1).len(),
        1,
        "what was taken again was not kept"
    );
    for run in runs {
        let output = run.finish();
        output.assert_status(7);
        assert_says(
            &output,
            &["the lock ", "lost: ", "Execution finished, exiting"],
        );
        assert_never_says(&output, &["stopping", "killing"]);
    }
}

#[test]
fn on_loss_continue_nobody_kills_for_a_frozen_pglock_either() {
    let server = Server::new();
    let flags = ["--on-loss", "continue", "--ttl", "3", "--grace", "0"];
    let run = start(Pglock::on(&server).flags(flags), UNTIL_TOLD);
    run.signal(Signal::SIGSTOP);
    eventually("the server has freed the lock", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
    run.signal(Signal::SIGCONT);
    run.wait_for_line("the command carries on without it (--on-loss continue)");
    run.finish().assert_status(7);
}

#[test]
fn without_a_lease_silence_is_no_loss_but_the_end_of_the_session_is() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let mut run = start(Pglock::at(proxy.port()).flags(["--ttl", "0"]), POLITE);
    proxy.silence();
    thread::sleep(Duration::from_secs(4));
    assert!(run.is_running());
    proxy.heal();
    assert_eq!(server.holders(1).len(), 1);
    let ended = Instant::now();
    terminate_holder(&server, 1);
    let output = run.wait();
    assert!(ended.elapsed() < LATE, "{:?}", ended.elapsed());
    output.assert_status(124).assert_stdout("ready\ntold\n");
    assert_says(&output, &["the lock is lost: ", "there is no lease"]);
}

// The server

/// A restart does not disturb the command; who comes anew waits until nobody can come back any more.
fn survives(restart: Restart) {
    let server = Server::new();
    let run = start(Pglock::on(&server).flags(LONG), UNTIL_TOLD);
    let before = server.holders(1);
    let struck = Instant::now();
    restart.strike(&server);
    let newcomer = Pglock::on(&server)
        .flags(LONG)
        .flags(["--wait", "60"])
        .sh("echo mine")
        .spawn();
    let hasty = Pglock::on(&server)
        .flags(LONG)
        .flags(["--wait", "1", "--conflict-exit-code", "77"])
        .sh("echo mine")
        .spawn();
    run.wait_for_line("The server was restarted; the lock was taken again ");
    let after = server.holders(1);
    assert_eq!(after.len(), 1, "{restart:?}");
    assert_ne!(before, after);
    for other in [&newcomer, &hasty] {
        other.wait_for_line("The server was restarted and lost its locks: holding off for ");
        other.wait_for_line("in which an earlier holder may take its lock again");
    }
    hasty.wait().assert_status(77).assert_stdout("");
    // One who does not wait need not wait for that either: the lock is held.
    let skipped = Instant::now();
    Pglock::on(&server)
        .flags(LONG)
        .flags(["--conflict-exit-code", "77"])
        .sh("echo mine")
        .run()
        .assert_status(77)
        .assert_stdout("");
    assert!(skipped < struck + LONG_TTL, "it came too late to tell");
    assert_eq!(server.holders(1), after);
    let output = run.finish();
    output.assert_status(7);
    assert_says(
        &output,
        &["s after its last sign, and nobody has had it meanwhile."],
    );
    assert_never_says(&output, &["the lock is lost"]);
    // Also now that the lock is free.
    newcomer.wait_for_output("mine");
    assert!(
        struck.elapsed() >= LONG_TTL,
        "{restart:?}: {:?}",
        struck.elapsed()
    );
    newcomer.wait().assert_status(0);
}

#[test]
fn a_restart_or_a_crash_does_not_disturb_the_command() {
    thread::scope(|scope| {
        for restart in [
            Restart::Stop(Stop::Fast),
            Restart::Stop(Stop::Immediate),
            Restart::Crash,
        ] {
            scope.spawn(move || survives(restart));
        }
    });
}

#[test]
fn a_server_that_goes_down_and_stays_so_has_the_command_told_to_end() {
    for how in [Stop::Fast, Stop::Immediate] {
        let server = Server::new();
        let run = start(on(&server), POLITE);
        // Until then the answer may not be off its hands, and it could not say that all ends.
        processes::wait_for_state("the backend", Pid::from_raw(server.holders(1)[0]), "S");
        server.stop(how);
        let output = run.wait();
        output.assert_status(124).assert_stdout("ready\ntold\n");
        assert_says(
            &output,
            &[
                "the lock is lost: no answer from the server for ",
                "; stopping the command",
            ],
        );
    }
}

#[test]
fn a_server_that_is_far_away_is_reached_again_too() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    // Connecting takes longer than an attempt to connect again takes at first.
    proxy.delay(Duration::from_millis(1200));
    let run = start(Pglock::at(proxy.port()).flags(["--ttl", "30"]), UNTIL_TOLD);
    server.restart(Stop::Fast);
    run.wait_for_line("The server was restarted; the lock was taken again ");
    run.finish().assert_status(7);
}

#[test]
fn a_restart_does_not_continue_a_command_that_somebody_has_stopped() {
    let server = Server::new();
    let run = start(Pglock::on(&server).flags(LONG), SINGLE);
    let command = command_of(run.pid());
    run.signal(Signal::SIGTSTP);
    processes::wait_for_state("the command", command, "T");
    server.restart(Stop::Fast);
    run.wait_for_line("The server was restarted; the lock was taken again ");
    assert_eq!(server::state(command), Some('T'));
    run.signal(Signal::SIGCONT);
    processes::wait_for_state("the command", command, "SR");
    run.signal(Signal::SIGTERM);
    run.wait().assert_status(128 + Signal::SIGTERM as i32);
}

#[test]
fn one_that_is_continued_while_its_server_is_away_runs_when_it_is_back() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let run = start(Pglock::at(proxy.port()).flags(LONG), SINGLE);
    let command = command_of(run.pid());
    run.signal(Signal::SIGTSTP);
    processes::wait_for_state("the command", command, "T");
    // Nobody tells why the connection closes, so the command is paused as well.
    proxy.refuse();
    proxy.strike(What::Close);
    run.wait_for_line("the connection to the server was lost");
    run.signal(Signal::SIGCONT);
    server.restart(Stop::Fast);
    proxy.accept();
    run.wait_for_line("The server was restarted; the lock was taken again ");
    processes::wait_for_state("the command", command, "SR");
    run.signal(Signal::SIGTERM);
    run.wait().assert_status(128 + Signal::SIGTERM as i32);
}

#[test]
fn timeouts_of_a_role_do_not_end_one_who_holds_off() {
    let server = Server::new();
    server.psql("create role tight login");
    if version(&server) >= 140_000 {
        server.psql("alter role tight set idle_session_timeout = '500ms'");
    }
    server.restart(Stop::Fast);
    let output = on(&server)
        .env("PGLOCK_USER", "tight")
        .command(["true"])
        .run();
    output.assert_status(0);
    assert_says(&output, &["holding off for "]);
    assert_never_says(&output, &["pglock: "]);
}

#[test]
fn restarts_with_others_at_the_door_stop_and_overlap_nothing() {
    let server = Server::new();
    let scratch = Scratch::new();
    // flock's lock is inherited by all that the command starts, and nobody can leave it behind.
    let witness = format!(
        "exec 9>>{}; flock --nonblock 9 || echo overlap; echo the command runs",
        scratch.path().join("witness").display()
    );
    let run = start(
        Pglock::on(&server).flags(LONG),
        &format!("{witness}; cat; exit 7"),
    );
    let short = format!("{witness}; sleep 0.1; exit 3");
    let waiter = |flags: &[&str]| {
        Pglock::on(&server)
            .flags(LONG)
            .flags(["--conflict-exit-code", "77"])
            .flags(flags)
            .sh(&short)
            .spawn()
    };
    let waiters: Vec<Running> = (0..3).map(|_| waiter(&["--block"])).collect();
    let mut newcomers = Vec::new();
    let kinds = [
        Restart::Stop(Stop::Fast),
        Restart::Stop(Stop::Immediate),
        Restart::Crash,
    ];
    for (round, restart) in kinds.into_iter().chain(kinds).enumerate() {
        newcomers.push(waiter(&["--wait", "2"]));
        restart.strike(&server);
        newcomers.push(waiter(&["--wait", "2"]));
        eventually("the lock is retaken", PATIENCE, || {
            (run.stderr().matches("taken again").count() > round).then_some(())
        });
    }
    for newcomer in newcomers {
        // Or 125, if its time was over while there was no server.
        let output = newcomer.wait();
        assert!(
            matches!(output.status.code(), Some(77 | 125)),
            "{}",
            output.report()
        );
        output.assert_stdout("");
    }
    let output = run.finish();
    output.assert_status(7).assert_stdout("the command runs\n");
    assert_never_says(&output, &["the lock is lost"]);
    for waiter in waiters {
        waiter
            .wait()
            .assert_status(3)
            .assert_stdout("the command runs\n");
    }
}

/// A cluster that initdb has just made, with the programs and the owner of another server.
struct Fresh {
    home: Scratch,
    programs: PathBuf,
    owner: (u32, u32),
}

impl Fresh {
    fn like(server: &Server) -> Fresh {
        let program = fs::read_link(format!("/proc/{}/exe", server.pid())).expect("postgres");
        let data = fs::metadata(server.data()).expect("the data directory");
        let fresh = Fresh {
            home: Scratch::new(),
            programs: program.parent().expect("a folder").to_owned(),
            owner: (data.uid(), data.gid()),
        };
        for folder in ["data", "s"] {
            let folder = fresh.home.path().join(folder);
            fs::create_dir(&folder).expect("a folder");
            chown(&folder, Some(fresh.owner.0), Some(fresh.owner.1)).expect("chown");
        }
        let data = fresh.home.path().join("data").into_os_string();
        let sockets = fresh.home.path().join("s").display().to_string();
        let words = ["-A", "trust", "-U", "postgres", "--locale=C", "-N", "-D"];
        let words = words.map(OsString::from);
        fresh.call("initdb", words.into_iter().chain([data.clone()]));
        // Without -N, on a slow disk or in a package's installation it takes longer from here to the first start.
        thread::sleep(Duration::from_secs(2));
        let options = format!("-c listen_addresses= -k {sockets} -c autovacuum=off -c fsync=off");
        let log = fresh.home.path().join("data/log").into_os_string();
        let words = ["-w", "-o", &options, "start", "-l"].map(OsString::from);
        let place = [log, "-D".into(), data];
        fresh.call("pg_ctl", words.into_iter().chain(place));
        fresh
    }

    fn call(&self, program: &str, words: impl IntoIterator<Item = OsString>) {
        let mut command = Command::new(self.programs.join(program));
        if nix::unistd::Uid::effective().is_root() {
            command.uid(self.owner.0).gid(self.owner.1);
        }
        let status = command
            .args(words)
            .env_remove("PGDATA")
            .env_remove("PGPORT")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let status = status.expect("start a program of PostgreSQL");
        assert!(status.success() || thread::panicking(), "{program}");
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let words = ["-m", "immediate", "stop", "-D"].map(OsString::from);
        let data = self.home.path().join("data").into_os_string();
        self.call("pg_ctl", words.into_iter().chain([data]));
    }
}

#[test]
fn a_fresh_cluster_delays_nobody() {
    let server = Server::new();
    if version(&server) < 150_000 {
        eprintln!("skipped: before version 15 a server does not tell that it is fresh");
        return;
    }
    let fresh = Fresh::like(&server);
    let output = Pglock::new()
        .env("PGLOCK_HOST", fresh.home.path().join("s"))
        .env("PGLOCK_USER", "postgres")
        .sh("echo mine")
        .run();
    output.assert_status(0).assert_stdout("mine\n");
    assert_never_says(&output, &["holding off"]);
    assert!(output.elapsed < LATE, "{:?}", output.elapsed);
}

#[test]
fn a_cluster_that_is_young_but_was_used_is_not_fresh() {
    thread::scope(|scope| {
        for restart in [
            Restart::Stop(Stop::Fast),
            Restart::Stop(Stop::Immediate),
            Restart::Crash,
        ] {
            scope.spawn(move || {
                let server = Server::new();
                let proxy = Proxy::new(&server);
                let run = start(Pglock::at(proxy.port()).flags(LONG), UNTIL_TOLD);
                // It cannot take its lock again, and does not know yet that it is gone.
                proxy.silence();
                restart.strike(&server);
                let output = Pglock::on(&server)
                    .flags(LONG)
                    .flags(["--wait", "1", "--conflict-exit-code", "77"])
                    .sh("echo mine")
                    .run();
                assert!(is_alive(command_of(run.pid())), "{restart:?}");
                assert!(
                    output.stdout.is_empty(),
                    "{restart:?}: two run\n{}",
                    output.report()
                );
                output.assert_status(77);
                assert_says(&output, &["holding off"]);
            });
        }
    });
}

// The statistics, by which a crash is known

/// Resets these kinds of statistics, in one statement.
fn reset(kinds: &[&str]) -> String {
    let calls: Vec<String> = kinds
        .iter()
        .map(|kind| format!("pg_stat_reset_shared('{kind}')"))
        .collect();
    format!("select {}", calls.join(", "))
}

/// All kinds that this server has. Those by which a new cluster is known stand alone at first.
fn all_kinds(version: u32) -> Vec<&'static str> {
    [
        (170_000, "checkpointer"),
        (140_000, "archiver"),
        (140_000, "bgwriter"),
        (140_000, "wal"),
        (150_000, "recovery_prefetch"),
        (160_000, "io"),
        (170_000, "slru"),
    ]
    .into_iter()
    .filter_map(|(since, kind)| (version >= since).then_some(kind))
    .collect()
}

#[test]
fn a_reset_of_statistics_delays_nobody() {
    const TTL: &str = "3";
    let server = Server::new();
    let pooler = pgbouncer::Pgbouncer::new(&server, "transaction", 2, &[]);
    eventually("the server is old enough", PATIENCE, || {
        let is_old = format!("select now() > pg_postmaster_start_time() + '{TTL} s'");
        (server.psql(&is_old) == "t").then_some(())
    });
    // All but one may be reset, and those of the database too.
    let mut kinds = all_kinds(version(&server));
    kinds.retain(|kind| *kind != "recovery_prefetch");
    if version(&server) < 150_000 {
        kinds.retain(|kind| *kind != "wal");
    }
    for reset in [reset(&["bgwriter"]), reset(&kinds)] {
        server.psql(&format!("{reset}, pg_stat_reset()"));
        for pglock in [Pglock::on(&server), pooler.pglock()] {
            let output = pglock
                .flags(["--ttl", TTL, "--grace", "0", "--conflict-exit-code", "77"])
                .sh("echo mine")
                .run();
            output.assert_status(0).assert_stdout("mine\n");
            assert_never_says(&output, &["holding off"]);
        }
    }
}

#[test]
fn a_reset_of_statistics_hides_no_crash() {
    thread::scope(|scope| {
        for restart in [Restart::Stop(Stop::Fast), Restart::Crash] {
            scope.spawn(move || {
                let server = Server::new();
                restart.strike(&server);
                for kind in all_kinds(version(&server)) {
                    server.psql(&reset(&[kind]));
                    let output = Pglock::on(&server)
                        .flags(["--ttl", "60", "--wait", "1", "--conflict-exit-code", "77"])
                        .sh("echo mine")
                        .run();
                    output.assert_status(77).assert_stdout("");
                    assert_says(&output, &["holding off"]);
                }
            });
        }
    });
}

#[test]
fn a_reset_of_statistics_is_no_restart_to_a_holder_whose_session_was_ended() {
    let server = Server::new();
    let kinds = all_kinds(version(&server));
    let mut resets: Vec<String> = kinds.iter().map(|kind| reset(&[kind])).collect();
    resets.push(reset(&kinds));
    if version(&server) >= 170_000 {
        resets.push("select pg_stat_reset_shared()".to_owned());
    }
    // All before the first: whoever comes after it holds off.
    let runs: Vec<Running> = (1..=resets.len())
        .map(|id| start(on(&server).flag(format!("--lockid={id}")), POLITE))
        .collect();
    for ((run, reset), id) in runs.into_iter().zip(resets).zip(1..) {
        server.psql(&reset);
        terminate_holder(&server, id);
        let output = run.wait();
        output.assert_status(124).assert_stdout("ready\ntold\n");
        assert_says(
            &output,
            &[
                "the lock is lost: the session that held it ended",
                "while the server ran on; somebody may have had it meanwhile",
            ],
        );
        assert_never_says(&output, &["nobody has had it meanwhile"]);
    }
}

// What is frozen

#[test]
fn a_frozen_server_stops_the_command() {
    let server = Server::new();
    let run = start(on(&server), POLITE);
    let backend = Pid::from_raw(server.holders(1)[0]);
    kill(backend, Signal::SIGSTOP).expect("freeze the backend");
    let frozen = Instant::now();
    run.wait_for_output("told");
    assert!(frozen.elapsed() < TTL, "{:?}", frozen.elapsed());
    let output = run.wait();
    output.assert_status(124);
    assert_says(
        &output,
        &["the lock is lost: no answer from the server for 3."],
    );
    kill(backend, Signal::SIGCONT).expect("thaw the backend");
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
}

#[test]
fn the_guardian_kills_the_command_of_a_frozen_pglock() {
    let server = Server::new();
    let run = start(on(&server), DEAF);
    let command = command_of(run.pid());
    let mut waiter = server.session();
    waiter.send("select pg_advisory_lock(1)");
    run.signal(Signal::SIGSTOP);
    let frozen = Instant::now();
    wait_for_end("the command", command);
    let killed = frozen.elapsed();
    assert_between(
        "the kill",
        killed,
        Duration::from_secs(4) - BEAT - Duration::from_millis(300),
        TTL,
    );
    waiter.answer();
    let pids = run.processes();
    let others: Vec<&Pid> = pids
        .iter()
        .filter(|pid| processes::group(**pid) == Some(command) && is_alive(**pid))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    run.signal(Signal::SIGCONT);
    let output = run.wait();
    output.assert_status(124);
    assert_says(
        &output,
        &[
            "pglock itself was stopped for too long, ",
            "without a sign of the server: the guardian has killed the command",
        ],
    );
    assert!(
        seconds_after(&output, "stopped for too long,") >= 3.9,
        "{}",
        output.report()
    );
    waiter.release(1);
}

#[test]
fn a_pglock_that_is_frozen_for_a_moment_carries_on() {
    let server = Server::new();
    let run = start(on(&server), UNTIL_TOLD);
    // A heartbeat falls due meanwhile.
    run.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_millis(2000));
    run.signal(Signal::SIGCONT);
    thread::sleep(Duration::from_millis(500));
    let output = run.finish();
    output.assert_status(7);
    assert_never_says(&output, &["lost", "pglock: "]);
}

#[test]
fn the_server_ends_a_silent_session_when_the_lease_is_over() {
    let server = Server::new();
    let run = start(on(&server), DEAF);
    let command = command_of(run.pid());
    let guardian = guardian_of(run.pid());
    let backend = server.holders(1)[0];
    // Nobody is left to stop the command, nor to close the connection.
    kill(guardian, Signal::SIGSTOP).expect("freeze the guardian");
    run.signal(Signal::SIGSTOP);
    processes::wait_for_state("pglock", run.pid(), "T");
    let last = eventually("the last message is answered", PATIENCE, || {
        let sql = format!(
            "select extract(epoch from state_change) from pg_stat_activity \
             where pid = {backend} and state = 'idle'"
        );
        server.psql(&sql).parse::<f64>().ok()
    });
    let mut waiter = server.session();
    waiter.hold(1);
    let freed: f64 = waiter
        .exec("select extract(epoch from clock_timestamp())")
        .parse()
        .expect("a time");
    let kept = freed - last;
    assert!((4.99..5.0 + 2.0).contains(&kept), "{kept}");
    kill(guardian, Signal::SIGCONT).expect("thaw the guardian");
    wait_for_end("the command", command);
    run.signal(Signal::SIGCONT);
    run.wait().assert_status(124);
}

// Settings

/// What a careful administrator may have set for a role or a database.
const TIGHT: [(&str, &str); 6] = [
    ("idle_session_timeout", "'700ms'"),
    ("statement_timeout", "'500ms'"),
    ("lock_timeout", "'300ms'"),
    ("idle_in_transaction_session_timeout", "'700ms'"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "serializable"),
];

#[test]
fn settings_of_a_role_or_a_database_disturb_neither_holder_nor_waiter() {
    let server = Server::new();
    server.psql("create role tight login");
    server.psql("create database tight");
    let newer = (version(&server) >= 170_000).then_some(("transaction_timeout", "'900ms'"));
    for (name, value) in TIGHT.into_iter().chain(newer) {
        for what in ["role tight", "database tight"] {
            server.psql(&format!("alter {what} set {name} = {value}"));
        }
    }
    let places = [("PGLOCK_USER", "tight"), ("PGLOCK_DATABASE", "tight")];
    let kinds: [&[&str]; 4] = [
        &["--lockid", "1", "--ttl", "5", "--grace", "1"],
        &["--lockid", "2", "--ttl", "0"],
        &["--lockid", "3", "--fence"],
        &["--lockid", "4", "--slots", "2"],
    ];
    let mut pairs = Vec::new();
    for (name, value) in places {
        for flags in kinds {
            let pglock = Pglock::on(&server).env(name, value).flags(flags);
            let holders: Vec<Running> = (0..1 + usize::from(flags.contains(&"--slots")))
                .map(|_| start(pglock.clone(), UNTIL_TOLD))
                .collect();
            let waiter = pglock.flags(["--wait", "60"]).sh("exit 3").spawn();
            pairs.push((holders, waiter));
        }
    }
    thread::sleep(Duration::from_secs(4));
    for (holders, mut waiter) in pairs {
        assert!(waiter.is_running(), "{}", waiter.stderr());
        for holder in holders {
            let output = holder.finish();
            output.assert_status(7);
            assert_never_says(&output, &["pglock: ", "lost"]);
        }
        let output = waiter.wait();
        output.assert_status(3);
        assert_never_says(&output, &["pglock: ", "lost"]);
    }
}

#[test]
fn terms_that_cannot_be_kept_are_refused() {
    let most = u32::MAX.to_string();
    let table: [(&[&str], &[&str]); 9] = [
        (
            &["--ttl", "15", "--grace", "9"],
            &["--ttl 15", "--grace 9", "at most --grace 8"],
        ),
        (
            &["--ttl", "15", "--grace", "15"],
            &["--ttl 15", "--grace 15", "at most --grace 8"],
        ),
        (
            &["--grace", "9"],
            &["--grace 9", "--ttl 15 (the default)", "at most --grace 8"],
        ),
        (
            &["--ttl", "6"],
            &["--ttl 6", "--grace 5 (the default)", "at most --grace 2"],
        ),
        (
            &["--ttl", "3", "--grace", "1"],
            &["--ttl 3", "--grace 1", "at most --grace 0"],
        ),
        (
            &["--ttl", "2", "--grace", "0"],
            &["--ttl 2", "at least 3, or 0"],
        ),
        (
            &["--ttl", "1", "--grace", "0"],
            &["--ttl 1", "at least 3, or 0"],
        ),
        (&["--ttl", "2147484"], &["--ttl 2147484"]),
        (
            &["--grace", &most],
            &["--grace 4294967295", "at most --grace 8"],
        ),
    ];
    // Nobody answers there: who comes so far has accepted the terms.
    let closed = net::ClosedPort::new();
    for (flags, words) in table {
        let pglock = Pglock::at(closed.port()).command(["true"]);
        pglock.clone().flags(flags).run().assert_refused(words);
        let mut by_variable = pglock;
        for pair in flags.chunks(2) {
            let name = format!("PGLOCK_{}", pair[0][2..].to_uppercase());
            by_variable = by_variable.env(name, pair[1]);
        }
        by_variable.run().assert_status(125);
    }
    let accepted: [&[&str]; 4] = [
        &["--ttl", "3", "--grace", "0"],
        &["--ttl", "15", "--grace", "8"],
        &["--ttl", "2147483"],
        &["--ttl", "0", "--grace", &most],
    ];
    for flags in accepted {
        Pglock::at(closed.port())
            .flags(flags)
            .command(["true"])
            .run()
            .assert_failed(&["could not connect"]);
    }
}

// Tokens

/// Starts a holder of this lock, and answers with its token.
fn token_of(pglock: &Pglock, lock: &str) -> (Running, u64) {
    let run = start(
        pglock.clone().flags(["--lockid", lock, "--fence"]),
        "echo $PGLOCK_TOKEN; exec cat",
    );
    let text = run.stdout();
    let token = text.trim().parse().unwrap_or_else(|_| {
        panic!("not a token: {text:?}\n{}", run.stderr());
    });
    assert!(token > 0);
    (run, token)
}

#[test]
fn tokens_grow_from_holder_to_holder() {
    let server = Server::new();
    let pglock = Pglock::on(&server);
    let mut last = 0;
    for _ in 0..4 {
        // Others take locks of their own all the time.
        let others: Vec<u64> = thread::scope(|scope| {
            let others: Vec<_> = (2..6)
                .map(|id: u32| {
                    let pglock = &pglock;
                    scope.spawn(move || {
                        let (run, token) = token_of(pglock, &id.to_string());
                        run.finish().assert_status(0);
                        token
                    })
                })
                .collect();
            let (run, token) = token_of(&pglock, "1");
            assert!(token > last, "{token} after {last}");
            last = token;
            run.finish().assert_status(0);
            let others = others.into_iter();
            others.map(|other| other.join().expect("a token")).collect()
        });
        let (run, token) = token_of(&pglock, "1");
        assert!(
            others.iter().all(|other| *other < token) && token > last,
            "{token} after {last} and {others:?}"
        );
        last = token;
        run.finish().assert_status(0);
    }
    // Without the flag there is none, not even that of another lock which pglock itself is run under.
    Pglock::on(&server)
        .env("PGLOCK_TOKEN", "7")
        .sh("echo ${PGLOCK_TOKEN-none}")
        .run()
        .assert_stdout("none\n");
}

#[test]
fn a_token_survives_the_crash_of_the_server() {
    let server = Server::builder()
        .durable()
        // Nobody else writes out what a commit has left in memory.
        .conf("wal_writer_delay = '10s'")
        .conf("checkpoint_timeout = '1h'")
        .start();
    server.psql("create role loose login");
    server.psql("alter role loose set default_transaction_read_only = on");
    server.psql("alter role loose set synchronous_commit = off");
    server.psql("checkpoint");
    let pglock = Pglock::on(&server).flags(["--ttl", "3", "--grace", "0"]);
    let loose = pglock.clone().env("PGLOCK_USER", "loose");
    let mut last = 0;
    for pglock in [&loose, &pglock] {
        let (run, token) = token_of(pglock, "1");
        server.crash();
        drop(run);
        assert!(token > last, "{token} after {last}");
        last = token;
        server.start();
    }
    let (run, token) = token_of(&loose, "1");
    assert!(token > last, "{token} after {last}");
    run.finish().assert_status(0);
}

#[test]
fn the_sql_of_the_manual_refuses_a_stale_token() {
    let manual = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/manual.md"));
    let manual = manual.expect("the manual");
    let block = manual
        .split("```sql\n")
        .filter_map(|text| Some(text.split_once("```")?.0))
        .find(|block| block.contains(":token"))
        .expect("SQL with a token in the manual");
    let (once, each) = block.split_once("-- As the command").expect("two parts");
    let each = format!("-- {each}");
    let server = Server::new();
    server.psql(once);
    let (old, stale) = token_of(&Pglock::on(&server), "1");
    old.finish().assert_status(0);
    let (new, token) = token_of(&Pglock::on(&server), "1");
    new.finish().assert_status(0);
    let update = |token: u64| server.psql(&each.replace(":token", &token.to_string()));
    assert_eq!(update(stale), stale.to_string());
    assert_eq!(update(token), token.to_string());
    assert_eq!(update(stale), "", "the stale one");
    assert_eq!(update(token), token.to_string());
    assert_eq!(server.psql("select token from job"), token.to_string());
}

#[test]
fn one_who_gets_no_token_leaves_no_backend_that_holds_the_lock() {
    let server = Server::new();
    // A commit waits for a standby that is not there.
    server.psql("alter system set synchronous_standby_names = 'nobody'");
    server.psql("select pg_reload_conf()");
    let output = on(&server)
        .flags(["--fence", "--connect-timeout", "1"])
        .command(["true"])
        .run();
    output.assert_failed(&["no answer from the server within 1 s"]);
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
}

#[test]
fn a_beat_waits_for_no_snapshot() {
    let server = Server::new();
    let (mut holder, mut other) = (server.session(), server.session());
    holder.hold(1);
    let transactions = "-c default_transaction_isolation=serializable -c default_transaction_read_only=on \
                        -c default_transaction_deferrable=on";
    let run = on(&server)
        .env("PGOPTIONS", transactions)
        .flag("--block")
        .open_input()
        .sh(UNTIL_TOLD)
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    holder.release(1);
    run.wait_for_output("the command runs");
    // As long as this one writes, a deferrable transaction gets no snapshot.
    other.exec("begin isolation level serializable; select txid_current()");
    thread::sleep(TTL);
    let output = run.finish();
    output.assert_status(7);
    assert_never_says(&output, &["lost"]);
}
