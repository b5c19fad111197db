//! No more processes: the limit of an ordinary user is reached when pglock forks.

use nix::unistd::Uid;

use crate::support::*;

/// Users that nobody is, one for each test: what else runs as the same user counts too.
const NOBODY_YET: u32 = 1_987_600;

/// pglock as a user who may have so many processes. `None` where only root could do that.
fn limited(server: &Server, scratch: &Scratch, user: u32, processes: u32) -> Option<Pglock> {
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
                    .chain([program.as_str(), "sh", "-c", "echo ran; exit 4"]),
            ),
    )
}

#[test]
fn without_a_process_for_the_command_it_fails_and_frees_the_lock() {
    let server = Server::new();
    let scratch = Scratch::new();
    // pglock and the guardian, and no command.
    let Some(pglock) = limited(&server, &scratch, 2, 2) else {
        return;
    };
    let output = pglock.run();
    output.assert_failed(&["Resource temporarily unavailable"]);
    assert!(server.holders(1).is_empty(), "{}", output.report());
}

#[test]
fn without_a_process_for_the_guardian_it_fails_and_frees_the_lock() {
    let server = Server::new();
    let scratch = Scratch::new();
    let Some(pglock) = limited(&server, &scratch, 1, 1) else {
        return;
    };
    let output = pglock.run();
    output.assert_failed(&["Resource temporarily unavailable"]);
    assert!(server.holders(1).is_empty(), "{}", output.report());
}

#[test]
fn with_as_many_processes_as_it_needs_it_works() {
    let server = Server::new();
    let scratch = Scratch::new();
    let Some(pglock) = limited(&server, &scratch, 3, 3) else {
        return;
    };
    pglock.run().assert_status(4).assert_stdout("ran\n");
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
