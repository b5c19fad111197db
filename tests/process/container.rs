//! pglock as process 1 of a container, or under a process 1 that waits for nobody but its own children.

use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::processes::{children, name, there_is, wait_for_end};
use crate::support::*;

const PGLOCK: &str = env!("CARGO_BIN_EXE_pglock");

/// What makes the program that follows process 1, with a `/proc` of its own.
const CONTAINER: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];

/// Tells which zombies there are, and waits for a while for them to go.
const NO_ZOMBIES: &str = "\
    tries=0; while [ $tries -lt 200 ]; do \
        zombies=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '); \
        [ $zombies -eq 0 ] && break; tries=$((tries + 1)); sleep 0.02; \
    done; echo $zombies zombies";

/// Whether containers can be made here: not without privileges, nor in a container that has none to give.
fn can_contain() -> bool {
    let tried = Command::new(CONTAINER[0])
        .args(&CONTAINER[1..])
        .args(["true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: no permission for {}", CONTAINER.join(" "));
    }
    can
}

/// A process 1 of these words.
fn contained(pglock: Pglock, words: &[&str]) -> Pglock {
    pglock
        .without_pglock()
        .command([&CONTAINER[..], words].concat())
}

/// The process 1 that a run of [`contained`] has started, by its number out here.
#[track_caller]
fn first(run: &Running) -> Pid {
    eventually("process 1 runs", PATIENCE, || {
        let mut children = children(run.pid()).into_iter();
        children.find(|pid| name(*pid).starts_with("pglock"))
    })
}

#[test]
fn as_process_1_it_waits_for_orphans() {
    if !can_contain() {
        return;
    }
    let server = Server::new();
    // Each of them ends after its parent has, and is then a child of process 1.
    let script = format!(
        "[ $PPID -eq 1 ] || exit 99; \
         for i in 1 2 3 4 5; do (sh -c 'sleep 0.1' & exit 0); done; \
         while grep -qx sleep /proc/[0-9]*/comm 2>/dev/null; do sleep 0.02; done; {NO_ZOMBIES}; exit 5"
    );
    let output = contained(Pglock::on(&server), &[PGLOCK, "sh", "-c", &script]).run();
    output.assert_status(5).assert_stdout("0 zombies\n");
    assert!(server.holders(1).is_empty());
}

#[test]
fn as_process_1_it_waits_for_orphans_while_it_waits_for_the_lock() {
    if !can_contain() {
        return;
    }
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let run = contained(Pglock::on(&server), &[PGLOCK, "--block", "true"]).spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    let first = first(&run);
    // As `docker exec` would.
    let entered = Command::new("nsenter")
        .args(["--target", &first.to_string(), "--pid", "--mount"])
        .args(["sh", "-c", "(sleep 0.05 &)"])
        .status();
    assert!(entered.expect("start nsenter").success());
    eventually("no zombie is left", PATIENCE, || {
        children(first)
            .into_iter()
            .all(|pid| name(pid) == "lock-guardian")
            .then_some(())
    });
    session.release(1);
    run.wait().assert_status(0);
}

#[test]
fn as_process_1_it_passes_signals_on() {
    if !can_contain() {
        return;
    }
    let server = Server::new();
    // Process 1 gets no signal that it does not catch, so a shell in that place would not end.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let words = [PGLOCK, "sh", "-c", "echo ready; exec sleep 1000"];
        let run = contained(Pglock::on(&server), &words).spawn();
        run.wait_for_output("ready");
        kill(first(&run), signal).expect("signal pglock");
        run.wait().assert_status(128 + signal as i32);
        assert!(server.holders(1).is_empty());
    }
}

#[test]
fn as_process_1_it_can_be_told_to_end_while_it_waits() {
    if !can_contain() {
        return;
    }
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let run = contained(Pglock::on(&server), &[PGLOCK, "--block", "true"]).spawn();
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        kill(first(&run), signal).expect("signal pglock");
        run.wait().assert_status(128 + signal as i32);
        eventually("nothing waits", PATIENCE, || {
            server.waiters(1).is_empty().then_some(())
        });
    }
}

#[test]
fn with_the_proc_of_its_host_it_finds_the_last_of_the_command_too() {
    if !can_contain() {
        return;
    }
    let server = Server::new();
    let command = "(trap '' TERM; exec sleep 1000) & trap 'exit 0' TERM; echo ready; wait";
    // The shell stays: the end of process 1 would be the end of all.
    let script = format!("\"$0\" --grace 1 sh -c \"{command}\"; echo ended $?; read -r line");
    let run = Pglock::on(&server)
        .without_pglock()
        .command(["unshare", "--pid", "--fork", "sh", "-c", &script, PGLOCK])
        .open_input()
        .spawn();
    run.wait_for_output("ready");
    let backend = server.holders(1)[0];
    server.psql(&format!("select pg_terminate_backend({backend})"));
    run.wait_for_output("ended 124");
    let names: Vec<String> = run.processes().into_iter().map(name).collect();
    assert!(!names.contains(&"sleep".to_owned()), "{names:?}");
    run.finish();
}

#[test]
fn outside_of_the_namespace_of_its_children_it_is_their_parent_all_the_same() {
    if !can_contain() {
        return;
    }
    let server = Server::new();
    // Without a fork between, the first of its children is process 1, and to them pglock has no number.
    let words = ["unshare", "--pid", PGLOCK, "sh", "-c", "echo ran; exit 4"];
    let output = Pglock::on(&server).without_pglock().command(words).run();
    output.assert_status(4).assert_stdout("ran\n");
}

#[test]
fn a_killed_container_frees_the_lock() {
    if !can_contain() {
        return;
    }
    let server = Server::new();
    let words = [PGLOCK, "sh", "-c", "echo ready; sleep 1000 | sleep 1000"];
    let run = contained(Pglock::on(&server), &words).spawn();
    run.wait_for_output("ready");
    let first = first(&run);
    kill(first, Signal::SIGKILL).expect("kill pglock");
    wait_for_end("process 1", first);
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
}

#[test]
fn under_a_process_1_that_waits_for_nobody_else_it_leaves_no_zombie() {
    if !can_contain() || !there_is("perl") {
        return;
    }
    let server = Server::new();
    // perl's `system` waits for that one child only, as many a server that is process 1 of its container does.
    let script = "for (1..5) { system($ARGV[0], '--quiet', 'true') == 0 or die } \
                  system('sh', '-c', $ARGV[1])";
    let words = ["perl", "-e", script, PGLOCK, NO_ZOMBIES];
    let output = contained(Pglock::on(&server), &words).run();
    output.assert_status(0).assert_stdout("0 zombies\n");
}
