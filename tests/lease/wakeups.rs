//! How often pglock wakes up: for heartbeats only, and about once a second while it waits for the lock.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::support::processes::{command_of, guardian_of, sleeps};
use crate::support::*;

/// For how long the processes are watched.
const WATCHED: Duration = Duration::from_secs(5);

/// Waits for the time, which is what is measured here.
#[track_caller]
fn watch() {
    let since = Instant::now();
    eventually("the time has passed", PATIENCE, || {
        (since.elapsed() >= WATCHED).then_some(())
    });
}

/// How often a process wakes up while it is watched.
#[track_caller]
fn wake_ups(processes: &[Pid]) -> Vec<u64> {
    let before: Vec<u64> = processes.iter().map(|pid| sleeps(*pid)).collect();
    watch();
    let after = processes.iter().map(|pid| sleeps(*pid));
    after
        .zip(before)
        .map(|(after, before)| after - before)
        .collect()
}

#[test]
fn while_the_command_sleeps_it_wakes_up_for_heartbeats_only() {
    let server = Server::new();
    let start = |flags: &[&str]| {
        let pglock = Pglock::on(&server).flags(flags);
        let run = pglock.command(["sleep", "1000"]).spawn();
        command_of(run.pid());
        run
    };
    // One with a beat every second, and one with the lease as it is, where there is one every five.
    let fast = start(&["--ttl", "3", "--grace", "0"]);
    let slow = start(&["--lockid", "2"]);
    let pglocks = [fast.pid(), slow.pid()];
    let ups = wake_ups(&[
        pglocks[0],
        guardian_of(pglocks[0]),
        pglocks[1],
        guardian_of(pglocks[1]),
    ]);
    // To send, and for the answer.
    assert!((4..=14).contains(&ups[0]), "{ups:?}");
    assert!(ups[2] <= 4, "{ups:?}");
    // The guardian looks at its deadline, to find that it has moved on.
    assert!(ups[1] <= 6 && ups[3] <= 3, "{ups:?}");
}

#[test]
fn without_a_lease_it_does_not_wake_up_at_all() {
    let server = Server::new();
    let run = Pglock::on(&server)
        .flags(["--ttl", "0"])
        .command(["sleep", "1000"])
        .spawn();
    command_of(run.pid());
    let ups = wake_ups(&[run.pid(), guardian_of(run.pid())]);
    assert!(ups[0] <= 1 && ups[1] <= 1, "{ups:?}");
}

#[test]
fn while_it_waits_it_wakes_up_about_once_a_second() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let run = Pglock::on(&server)
        .flag("--block")
        .command(["true"])
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    let ups = wake_ups(&[run.pid(), guardian_of(run.pid())]);
    // Turns of 0.9 s.
    assert!((3..=8).contains(&ups[0]), "pglock: {ups:?}");
    assert!(ups[1] <= 1, "guardian: {ups:?}");
}

/// What strace says of a pglock that it follows.
struct Trace {
    run: Running,
    file: PathBuf,
}

impl Trace {
    /// Starts pglock under strace. `None` where there is no strace, or it must not look.
    fn start(scratch: &Scratch, pglock: Pglock, words: &[&str]) -> Option<Trace> {
        let tried = Command::new("strace")
            .args(["-o", "/dev/null", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !tried.is_ok_and(|status| status.success()) {
            eprintln!("skipped: there is no strace, or it is not permitted");
            return None;
        }
        let file = scratch.path().join("trace");
        let output = file.display().to_string();
        let strace = ["strace", "-o", &output, env!("CARGO_BIN_EXE_pglock")];
        let run = pglock
            .without_pglock()
            .command([&strace[..], words].concat())
            .spawn();
        Some(Trace { run, file })
    }

    /// The system calls so far, by name.
    fn calls(&self) -> Vec<String> {
        read_calls(&self.file)
    }

    /// Those that pglock makes while it is watched.
    #[track_caller]
    fn watch(&self) -> Vec<String> {
        let before = self.calls().len();
        watch();
        self.calls().split_off(before)
    }
}

fn read_calls(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('('))
        .map(|(call, _)| call.to_owned())
        .collect()
}

fn count(calls: &[String], name: &str) -> usize {
    calls.iter().filter(|call| *call == name).count()
}

#[test]
fn the_system_calls_of_a_heartbeat_are_few() {
    let server = Server::new();
    let scratch = Scratch::new();
    let words = [
        "--ttl",
        "3",
        "--grace",
        "0",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ];
    let Some(trace) = Trace::start(&scratch, Pglock::on(&server), &words) else {
        return;
    };
    trace.run.wait_for_output("ready");
    let calls = trace.watch();
    let beats = count(&calls, "sendto");
    assert!((3..=6).contains(&beats), "{calls:?}");
    assert!(count(&calls, "poll") <= 2 * beats + 2, "{calls:?}");
    assert!(calls.len() <= 20 * (beats + 1), "{calls:?}");
}

#[test]
fn the_system_calls_of_a_turn_are_few() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let scratch = Scratch::new();
    let words = ["--block", "true"];
    let Some(trace) = Trace::start(&scratch, Pglock::on(&server), &words) else {
        return;
    };
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    let calls = trace.watch();
    let turns = count(&calls, "sendto");
    assert!((3..=7).contains(&turns), "{calls:?}");
    assert!(count(&calls, "poll") <= turns + 2, "{calls:?}");
    assert!(calls.len() <= 20 * (turns + 1), "{calls:?}");
}
