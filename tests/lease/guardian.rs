//! The guardian: when pglock is killed, its command is dead before anybody else gets the lock.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::processes::{self, command_of, guardian_of, is_alive, wait_for_end};
use crate::support::*;

/// A shell that runs a pipeline of shells and what they have started, and ends at no signal that can be ignored.
const PIPELINE: &str = "trap '' TERM HUP INT; \
                        (while :; do sleep 1000 >/dev/null 2>&1; done | (sleep 1000; true) | cat | sh -c 'cat; sleep 1000') & \
                        echo ready; while :; do sleep 1000 | sleep 1000; done";

/// A file that whoever is under test inherits open and locked. As long as one process that has inherited it lives, the
/// lock cannot be taken.
struct Thread {
    scratch: Scratch,
}

impl Thread {
    fn new() -> Thread {
        let scratch = Scratch::new();
        scratch.file("thread", 0o644, "");
        Thread { scratch }
    }

    fn path(&self) -> std::path::PathBuf {
        self.scratch.path().join("thread")
    }

    /// Hands it down to `pglock`, as descriptor 17. What is handed down is gone from here when the result is.
    fn hand_to(&self, pglock: Pglock) -> Pglock {
        let file = File::open(self.path()).expect("open");
        // SAFETY: the call takes numbers only. The lock belongs to the open file, and so to all who inherit it.
        #[allow(unsafe_code)]
        let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) };
        assert_eq!(result, 0, "nobody else has locked it");
        pglock.descriptor(file, 17)
    }

    /// Whether an heir is alive.
    fn is_held(&self) -> bool {
        loop {
            let file = File::open(self.path()).expect("open");
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(_) => return false,
                Err((_, Errno::EWOULDBLOCK)) => (),
                Err((_, e)) => panic!("flock: {e}"),
            }
            // A child of ours, of another test perhaps, that has not executed its program yet is no heir.
            let own = std::fs::read_link("/proc/self/exe").expect("our own program");
            let heirs = self.heirs();
            let is_ours = |pid: &Pid| {
                std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == own)
            };
            if heirs.is_empty() || !heirs.iter().all(is_ours) {
                return true;
            }
        }
    }

    /// Who has it open.
    fn heirs(&self) -> Vec<Pid> {
        let path = self.path();
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        entries
            .filter_map(|entry| Some(Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)))
            .filter(|pid| {
                let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter();
                open.flatten()
                    .flatten()
                    .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link == path))
            })
            .collect()
    }
}

/// What is left of the processes of a run, other than pglock itself, for the text of a failure.
fn survivors(run: &Running) -> Vec<(Pid, String)> {
    let pids = run.processes().into_iter().filter(|pid| is_alive(*pid));
    pids.map(|pid| (pid, processes::name(pid))).collect()
}

fn random(limit: Duration) -> Duration {
    let now = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970");
    let scrambled = (now.as_nanos() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
    limit.mul_f64(scrambled as f64 / (1u64 << 53) as f64)
}

fn pause(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

#[track_caller]
fn kill_pglock(run: &Running) {
    run.signal(Signal::SIGKILL);
}

#[test]
fn nobody_survives_a_killed_pglock_when_the_next_has_the_lock() {
    let server = Server::new();
    let mut session = server.session();
    let mut observer = server.session();
    let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    for round in 0..100 {
        let thread = Thread::new();
        let run = thread.hand_to(Pglock::on(&server)).sh(PIPELINE).spawn();
        // The moment of the kill: somewhere around fork and exec, or later.
        let kind = round % 4;
        match kind {
            // From the first instruction on.
            0 => {
                pause(random(Duration::from_millis(30)));
                kill_pglock(&run);
                session.hold(1);
            }
            // Frozen when it is about to start the command, so that the next can queue behind it.
            1 | 2 => {
                run.wait_for_line(if kind == 1 {
                    "obtained"
                } else {
                    "Executing command"
                });
                pause(random(Duration::from_micros(500)));
                run.signal(Signal::SIGSTOP);
                session.send("select pg_advisory_lock(1)");
                eventually("the next waits", PATIENCE, || {
                    (observer.exec(waits) == "1").then_some(())
                });
                run.signal(Signal::SIGCONT);
                pause(random(Duration::from_millis(3)));
                kill_pglock(&run);
                session.answer();
            }
            // When all of the command runs.
            _ => {
                run.wait_for_output("ready");
                session.send("select pg_advisory_lock(1)");
                eventually("the next waits", PATIENCE, || {
                    (observer.exec(waits) == "1").then_some(())
                });
                pause(random(Duration::from_millis(3)));
                kill_pglock(&run);
                session.answer();
            }
        }
        // This is the moment at which the next one has it.
        let survived = thread.is_held();
        assert!(
            !survived || kind == 0 && !run.stderr().contains("obtained"),
            "round {round}, kind {kind}: {:?}\n{}",
            survivors(&run),
            run.stderr()
        );
        session.release(1);
        wait_for_end("pglock", run.pid());
        eventually("nothing is left", PATIENCE, || {
            survivors(&run).is_empty().then_some(())
        });
    }
}

#[test]
fn another_pglock_that_waits_finds_no_survivor() {
    let server = Server::new();
    for _ in 0..15 {
        let thread = Thread::new();
        let run = thread.hand_to(Pglock::on(&server)).sh(PIPELINE).spawn();
        run.wait_for_output("ready");
        let path = thread.path().display().to_string();
        let waiter = Pglock::on(&server)
            .flags(["--wait", "60"])
            .command(["flock", "--exclusive", "--nonblock", &path, "echo", "alone"])
            .spawn();
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        pause(random(Duration::from_millis(20)));
        kill_pglock(&run);
        waiter.wait().assert_status(0).assert_stdout("alone\n");
    }
}

#[test]
fn a_command_that_is_stopped_dies_with_pglock_too() {
    let server = Server::new();
    let run = Pglock::on(&server).sh(PIPELINE).spawn();
    run.wait_for_output("ready");
    let command = command_of(run.pid());
    kill(Pid::from_raw(-command.as_raw()), Signal::SIGSTOP).expect("stop the group");
    processes::wait_for_state("the command", command, "T");
    let mut session = server.session();
    session.send("select pg_advisory_lock(1)");
    kill_pglock(&run);
    session.answer();
    wait_for_end("the command", command);
    assert!(survivors(&run).is_empty(), "{:?}", survivors(&run));
}

#[test]
fn a_guardian_that_is_killed_has_a_successor_as_good_as_itself() {
    let server = Server::new();
    for _ in 0..100 {
        let thread = Thread::new();
        let run = thread.hand_to(Pglock::on(&server)).sh(PIPELINE).spawn();
        run.wait_for_output("ready");
        let command = command_of(run.pid());
        let mut guardian = guardian_of(run.pid());
        for times in 1..=3 {
            kill(guardian, Signal::SIGKILL).expect("kill the guardian");
            eventually("pglock says so", PATIENCE, || {
                let said = run.stderr();
                (said.matches("guardian was killed").count() == times).then_some(())
            });
            let next = guardian_of(run.pid());
            assert_ne!(next, guardian);
            guardian = next;
            assert!(is_alive(command), "the command carries on");
            assert!(processes::zombies_of(&run).is_empty());
        }
        let mut session = server.session();
        session.send("select pg_advisory_lock(1)");
        eventually("the next waits", PATIENCE, || {
            server.waiters(1).first().copied()
        });
        kill_pglock(&run);
        session.answer();
        assert!(!thread.is_held(), "{:?}", survivors(&run));
        drop(session);
        // The next round does not wait for it: it would skip its command.
        eventually("the lock is free", PATIENCE, || {
            server.holders(1).is_empty().then_some(())
        });
    }
}

#[test]
fn a_pglock_that_is_killed_together_with_its_guardian_takes_the_command_along() {
    let server = Server::new();
    let run = Pglock::on(&server).hold();
    let command = command_of(run.pid());
    let guardian = guardian_of(run.pid());
    // So that it cannot post another.
    run.signal(Signal::SIGSTOP);
    kill(guardian, Signal::SIGKILL).expect("kill the guardian");
    kill_pglock(&run);
    wait_for_end("the command", command);
}

#[test]
fn who_kills_all_that_is_called_pglock_does_not_kill_the_guardian() {
    let server = Server::new();
    let run = Pglock::on(&server).sh(PIPELINE).spawn();
    run.wait_for_output("ready");
    let name = processes::name(guardian_of(run.pid()));
    assert!(!name.contains("pglock"), "{name}");
    run.signal(Signal::SIGTERM);
}

#[test]
fn the_command_ends_as_ever_under_another_guardian() {
    let server = Server::new();
    let run = Pglock::on(&server).hold();
    let guardian = guardian_of(run.pid());
    kill(guardian, Signal::SIGKILL).expect("kill the guardian");
    run.wait_for_line("guardian was killed");
    let output = run.finish();
    output.assert_status(0);
    assert_eq!(
        output.log().last().map(String::as_str),
        Some("Execution finished, exiting and cleaning up lock."),
        "{}",
        output.report()
    );
    assert!(server.holders(1).is_empty());
}

#[test]
fn a_guardian_that_is_killed_while_pglock_waits_has_a_successor_when_it_matters() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let thread = Thread::new();
    let run = thread
        .hand_to(Pglock::on(&server))
        .flag("--block")
        .sh(PIPELINE)
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    let guardian = guardian_of(run.pid());
    kill(guardian, Signal::SIGKILL).expect("kill the guardian");
    wait_for_end("the guardian", guardian);
    session.release(1);
    run.wait_for_output("ready");
    guardian_of(run.pid());
    session.send("select pg_advisory_lock(1)");
    eventually("the next waits", PATIENCE, || {
        server.waiters(1).first().copied()
    });
    kill_pglock(&run);
    session.answer();
    assert!(!thread.is_held(), "{:?}", survivors(&run));
}

#[test]
fn a_killed_waiter_leaves_nothing_waiting_on_the_server() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    for _ in 0..3 {
        let marker = Marker::new();
        let run = Pglock::on(&server)
            .flag("--block")
            .command(marker.command())
            .spawn();
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        kill_pglock(&run);
        let killed = Instant::now();
        eventually("nothing waits", PATIENCE, || {
            (server.waiters(1).is_empty() && server.clients().is_empty()).then_some(())
        });
        assert!(
            killed.elapsed() < Duration::from_secs(3),
            "{:?}",
            killed.elapsed()
        );
        eventually("its guardian is gone", PATIENCE, || {
            survivors(&run).is_empty().then_some(())
        });
        assert!(!marker.exists());
    }
}

#[test]
fn what_has_left_the_group_before_is_not_the_guardian_s() {
    // As setsid says: it wants to be on its own.
    let server = Server::new();
    let run = Pglock::on(&server)
        .sh("setsid sleep 1000 >/dev/null 2>&1 & echo ready; exec sleep 1000")
        .spawn();
    run.wait_for_output("ready");
    let command = command_of(run.pid());
    let other = eventually("setsid has become sleep", PATIENCE, || {
        let mut processes = run.processes().into_iter();
        processes
            .find(|pid| processes::session(*pid) == Some(*pid) && processes::name(*pid) == "sleep")
    });
    kill_pglock(&run);
    wait_for_end("the command", command);
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
    assert!(is_alive(other));
}

#[test]
fn no_zombie_is_among_pglock_s_children() {
    let server = Server::builder().tcp().start();
    // A child looks the name up, and ends.
    let run = Pglock::at(server.port())
        .env("PGLOCK_HOST", "localhost")
        .sh("sleep 0 & sleep 0 | sleep 0; echo ready; exec sleep 1000")
        .spawn();
    run.wait_for_output("ready");
    command_of(run.pid());
    guardian_of(run.pid());
    assert!(processes::zombies_of(&run).is_empty());
    assert_eq!(processes::children(run.pid()).len(), 2);
}

#[test]
fn a_member_of_the_group_with_half_a_letter_in_its_name_is_waited_for() {
    let server = Server::new();
    let scratch = Scratch::new();
    // The kernel cuts its name off after 15 bytes, in the middle of the last letter.
    let name = "блокиров";
    // It waits for somebody to write, and starts nothing that has a name of its own.
    let program = "#!/bin/sh\ntrap '' TERM; echo ready; read -r line <\"$0\".fifo\n";
    let program = scratch.file(name, 0o755, program);
    let fifo = scratch.path().join(format!("{name}.fifo"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    let script = "trap 'exit 0' TERM; \"$0\" & wait";
    let run = Pglock::on(&server)
        .flags(["--grace", "1"])
        .command([
            OsStr::new("sh"),
            "-c".as_ref(),
            script.as_ref(),
            program.as_os_str(),
        ])
        .spawn();
    run.wait_for_output("ready");
    let backend = server.holders(1)[0];
    server.psql(&format!("select pg_terminate_backend({backend})"));
    wait_for_end("pglock", run.pid());
    let survivors = survivors(&run);
    assert!(survivors.is_empty(), "{survivors:?}");
    run.wait().assert_status(124);
}
