//! Limits: too few processes, descriptors or bytes of a file for pglock or its guardian; no right to kill the command.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Uid;

use crate::support::processes::{children, guardian_of, is_alive, name, wait_for_end};
use crate::support::*;

/// Users that nobody is, one for each test: what else runs as the same user counts too.
const NOBODY_YET: u32 = 1_987_600;

/// A command to tell by that it ran.
const COMMAND: [&str; 3] = ["sh", "-c", "echo ran; exit 4"];

/// pglock as a user who may have so many processes. `None` where only root could do that.
fn limited(
    server: &Server,
    scratch: &Scratch,
    user: u32,
    processes: u32,
    command: &[&str],
) -> Option<Pglock> {
    if !Uid::effective().is_root() {
        eprintln!("skipped: only root can become a user without any other process");
        return None;
    }
    // The build may lie where that user cannot get to.
    let program = scratch.path().join("pglock");
    if !program.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_pglock"), &program).expect("copy pglock");
    }
    let user = (NOBODY_YET + user).to_string();
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    let nproc = format!("--nproc={processes}");
    let words = ["prlimit", &nproc, "setpriv", &uid, &gid, "--clear-groups"];
    let program = program.display().to_string();
    Some(
        Pglock::on(server)
            .without_pglock()
            .dir("/".as_ref())
            .command(
                words
                    .into_iter()
                    .chain([program.as_str()])
                    .chain(command.iter().copied()),
            ),
    )
}

/// Runs pglock where its user may have so many processes, which is too few.
fn fails_with_processes(processes: u32) {
    let server = Server::new();
    let scratch = Scratch::new();
    let Some(pglock) = limited(&server, &scratch, processes, processes, &COMMAND) else {
        return;
    };
    let output = pglock.run();
    output.assert_failed(&["Resource temporarily unavailable"]);
    assert!(server.holders(1).is_empty(), "{}", output.report());
}

#[test]
fn without_a_process_for_the_command_it_fails_and_frees_the_lock() {
    // pglock and the guardian, and no command.
    fails_with_processes(2);
}

#[test]
fn without_a_process_for_the_guardian_it_fails_and_frees_the_lock() {
    fails_with_processes(1);
}

#[test]
fn with_as_many_processes_as_it_needs_it_works() {
    let server = Server::new();
    let scratch = Scratch::new();
    let Some(pglock) = limited(&server, &scratch, 3, 3, &COMMAND) else {
        return;
    };
    pglock.run().assert_status(4).assert_stdout("ran\n");
}

#[test]
fn a_command_that_has_become_another_user_is_said_to_be_out_of_reach() {
    let server = Server::new();
    let scratch = Scratch::new();
    let Some(pglock) = out_of_reach(&server, &scratch, 4) else {
        return;
    };
    let run = pglock.open_input().spawn();
    run.wait_for_output("ready");
    let backend = server.holders(1)[0];
    server.psql(&format!("select pg_terminate_backend({backend})"));
    run.wait_for_line("could not kill the command, which has become another user's");
    let output = run.finish();
    output.assert_status(124).assert_stdout("ready\nended\n");
    assert!(
        !output.stderr().contains("The command was stopped."),
        "{}",
        output.report()
    );
}

#[test]
fn the_guardian_keeps_the_lock_while_such_a_command_runs() {
    let server = Server::new();
    let scratch = Scratch::new();
    if let Some(pglock) = out_of_reach(&server, &scratch, 5) {
        assert_kept_by_guardian(&server, &pglock);
    }
}

#[test]
fn the_guardian_keeps_the_lock_while_a_command_runs_that_it_cannot_see() {
    let server = Server::new();
    let scratch = Scratch::new();
    if let Some(pglock) = out_of_reach(&server, &scratch, 6)
        && can_hide_processes()
    {
        assert_kept_by_guardian(&server, &hiding_processes(pglock));
    }
}

#[test]
fn the_guardian_keeps_the_lock_while_all_that_it_can_see_of_a_command_has_ended() {
    let server = Server::new();
    let scratch = Scratch::new();
    // Beside the one that becomes root, one that is killed, and that nobody waits for: its parent has left the group.
    let script = "(sleep 1000 & exec setsid sleep 1000) >/dev/null 2>&1 & \
                  exec \"$0\" --reuid=0 sh -c 'echo ready; read -r line; echo ended'";
    let sudo = sudo(&scratch);
    let words = ["sh", "-c", script, &sudo];
    if let Some(pglock) = limited(&server, &scratch, 7, 10, &words)
        && can_hide_processes()
    {
        assert_kept_by_guardian(&server, &hiding_processes(pglock));
    }
}

/// Killed, it leaves the lock to its guardian until its command ends, which does so at the end of its input, and nobody is
/// left who has not waited for a process of its group.
#[track_caller]
fn assert_kept_by_guardian(server: &Server, pglock: &Pglock) {
    let mut run = pglock.clone().open_input().spawn();
    run.wait_for_output("ready");
    let guardian = guardian_of(run.pid());
    let mut session = server.session();
    session.send("select pg_advisory_lock(1)");
    eventually("the next waits", PATIENCE, || {
        server.waiters(1).first().copied()
    });
    run.signal(Signal::SIGKILL);
    wait_for_end("pglock", run.pid());
    // It looks every millisecond.
    assert!(session.try_answer(Duration::from_millis(300)).is_none());
    assert!(is_alive(guardian));
    run.close_input();
    for pid in run.processes() {
        if name(pid) == "sleep" {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    session.answer();
}

/// What shows a user no process of others in `/proc` to the program that follows.
const HIDDEN: [&str; 5] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t proc -o hidepid=2 proc /proc && exec \"$0\" \"$@\"",
];

fn hiding_processes(pglock: Pglock) -> Pglock {
    pglock.preceded_by(HIDDEN)
}

/// Whether they can be hidden here: not without privileges, nor in a container that has none to give.
fn can_hide_processes() -> bool {
    let mut tried = std::process::Command::new(HIDDEN[0]);
    let can = tried
        .args(&HIDDEN[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: no permission to mount a /proc that hides processes");
    }
    can
}

/// pglock as a user of its own, with a command that has become root and runs to the end of its input.
fn out_of_reach(server: &Server, scratch: &Scratch, user: u32) -> Option<Pglock> {
    let script = "echo ready; read -r line; echo ended";
    let sudo = sudo(scratch);
    let words = [&sudo, "--reuid=0", "sh", "-c", script];
    limited(server, scratch, user, 10, &words)
}

/// A program that makes whoever calls it root.
fn sudo(scratch: &Scratch) -> String {
    let sudo = scratch.path().join("sudo");
    std::fs::copy("/usr/bin/setpriv", &sudo).expect("copy setpriv");
    std::fs::set_permissions(&sudo, std::fs::Permissions::from_mode(0o4755)).expect("chmod");
    sudo.display().to_string()
}

#[test]
fn whatever_number_of_descriptors_there_is_the_guardian_has_its_own() {
    let server = Server::new();
    let mut guarded = 0;
    for descriptors in 4..30 {
        let script =
            format!("ulimit -n {descriptors}; exec \"$0\" sh -c 'echo ready; cat; exit 4'");
        let run = Pglock::on(&server)
            .without_pglock()
            .command(["sh", "-c", &script, env!("CARGO_BIN_EXE_pglock")])
            .open_input()
            .spawn();
        let ready = eventually("it runs or fails", PATIENCE, || {
            let ready = run.stdout().contains("ready");
            (ready || !is_alive(run.pid())).then_some(ready)
        });
        if !ready {
            continue;
        }
        let has_its_own = |guardian| {
            let is = |number, what| {
                let link = processes::descriptor(guardian, number);
                link.is_some_and(|link| link.starts_with(what))
            };
            assert!(is(0, "pipe:") && is(1, "socket:"), "with {descriptors}");
        };
        let guardian = guardian_of(run.pid());
        has_its_own(guardian);
        kill(guardian, Signal::SIGKILL).expect("kill the guardian");
        run.wait_for_line("the guardian was killed");
        let successor = eventually("there is another, or none", PATIENCE, || {
            let guardians = children(run.pid()).into_iter();
            let guardian = guardians
                .into_iter()
                .find(|pid| name(*pid) == "lock-guardian");
            let none = run.stderr().contains("could not start a guardian");
            (none || guardian.is_some()).then_some(guardian)
        });
        if let Some(successor) = successor {
            has_its_own(successor);
            guarded += 1;
        }
        run.finish().assert_status(4);
        if guarded == 2 {
            break;
        }
    }
    assert_eq!(guarded, 2);
}

#[test]
fn a_log_that_must_not_grow_does_not_end_the_command() {
    let server = Server::new();
    let scratch = Scratch::new();
    let log = scratch.file("log", 0o644, [b'x'; 512]);
    let script = format!(
        "ulimit -f 1; exec \"$0\" sh -c 'exit 4' 2>>{}",
        log.display()
    );
    let output = Pglock::on(&server)
        .without_pglock()
        .command(["sh", "-c", &script, env!("CARGO_BIN_EXE_pglock")])
        .run();
    output.assert_status(4);
}

#[test]
fn without_a_descriptor_it_fails_with_one_line() {
    let server = Server::new();
    // Up to the number that is enough, each of them.
    let mut statuses = Vec::new();
    for descriptors in 4..30 {
        let script = format!("ulimit -n {descriptors}; exec \"$0\" --quiet sh -c 'exit 4'");
        let output = Pglock::on(&server)
            .without_pglock()
            .command(["sh", "-c", &script, env!("CARGO_BIN_EXE_pglock")])
            .run();
        let status = output.status.code().expect("a status");
        statuses.push(status);
        if status == 4 {
            break;
        }
        // The linker itself needs one to find a library.
        if status == 127 && output.stderr().contains("shared libraries") {
            continue;
        }
        output.assert_failed(&[]);
        assert!(server.holders(1).is_empty(), "{}", output.report());
    }
    assert_eq!(statuses.last(), Some(&4), "{statuses:?}");
}

#[test]
fn the_descriptors_that_the_readme_asks_for_are_enough() {
    let server = Server::new();
    let with = |descriptors: u32| {
        let script =
            format!("ulimit -n {descriptors}; exec \"$0\" sh -c 'echo ready; cat; exit 4'");
        let run = Pglock::on(&server)
            .without_pglock()
            .command(["sh", "-c", &script, env!("CARGO_BIN_EXE_pglock")])
            .open_input()
            .spawn();
        run.wait_for_output("ready");
        run
    };
    with(10).finish().assert_status(4);
    let run = with(14);
    server.restart(Stop::Fast);
    run.wait_for_line("the lock was taken again");
    run.finish().assert_status(4);
}
