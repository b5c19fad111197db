//! Exit statuses, all of them.

use std::fs;

use crate::support::*;

#[test]
fn every_status_of_the_command_is_pglock_s() {
    let server = Server::new();
    // One shell for all, which sees what a script would see.
    let script = "status=0; while [ $status -le 255 ]; do \"$0\" --quiet sh -c \"exit $status\"; \
                  [ $? -eq $status ] || echo $status is another; status=$((status + 1)); done";
    let output = Pglock::on(&server)
        .without_pglock()
        .command(["sh", "-c", script, env!("CARGO_BIN_EXE_pglock")])
        .run();
    output.assert_status(0).assert_stdout("");
    assert_eq!(output.stderr(), "");
}

#[test]
fn every_signal_that_ends_the_command_is_in_pglock_s_status() {
    use nix::libc;
    let server = Server::new();
    let harmless = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGURG,
        libc::SIGWINCH,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    let real_time = [libc::SIGRTMIN(), libc::SIGRTMIN() + 7, libc::SIGRTMAX()];
    let fatal = (1..32).filter(|number| !harmless.contains(number));
    for number in fatal.chain(real_time) {
        let direct = format!("ulimit -c 0; kill -{number} $$; sleep 1000");
        let output = Pglock::on(&server).sh(&direct).run();
        output.assert_status(128 + number);
        // That is what a shell says of it, too. One without job control has its background ignore these two.
        if ![libc::SIGINT, libc::SIGQUIT].contains(&number) {
            let script = format!("ulimit -c 0; sleep 1000 & kill -{number} $!; wait $!; exit $?");
            let shell = Pglock::on(&server).without_pglock().sh(&script).run();
            shell.assert_status(128 + number);
        }
    }
}

#[test]
fn what_is_no_program_is_126_and_the_lock_is_free_again() {
    let server = Server::new();
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    scratch.file("no-run-bit", 0o644, "#!/bin/sh\nexit 0\n");
    scratch.file("no-interpreter", 0o755, "#!/nonexistent/interpreter\n");
    scratch.file("script", 0o755, "exit 5\n");
    scratch.file("empty", 0o755, "");
    fs::create_dir(path("folder")).expect("create a folder");
    std::os::unix::fs::symlink(path("loop"), path("loop")).expect("a symbolic link");
    for (name, status) in [
        ("no-run-bit", 126),
        ("folder", 126),
        ("loop", 126),
        // What a shell says of it: the file that is not there is another one.
        ("no-interpreter", 127),
        ("missing", 127),
        ("missing/below", 127),
        // Run by the shell, as there is no line that names another interpreter.
        ("script", 5),
        ("empty", 0),
    ] {
        let output = Pglock::on(&server).command([path(name)]).run();
        output.assert_status(status);
        assert!(server.holders(1).is_empty(), "{name}");
        let is_hint = output
            .stderr()
            .contains("interpreter that its first line names");
        assert_eq!(is_hint, name == "no-interpreter", "{}", output.report());
    }
}

#[test]
fn a_shell_sees_the_status_of_the_last_of_many() {
    let server = Server::new();
    let script = "for i in 3 0 200 7; do \"$0\" --quiet sh -c \"exit $i\"; printf '%s ' $?; done";
    let output = Pglock::on(&server)
        .without_pglock()
        .command(["sh", "-c", script, env!("CARGO_BIN_EXE_pglock")])
        .run();
    output.assert_status(0).assert_stdout("3 0 200 7 ");
}
