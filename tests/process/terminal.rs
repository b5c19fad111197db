//! At a terminal: what `^C`, `^\`, `^Z`, `fg` and `bg` do in a real interactive shell, and programs that take the
//! whole terminal.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::processes::{
    self, command_of, group, is_alive, there_is, wait_for_end, wait_for_state,
};
use crate::support::pty::{CTRL_BACKSLASH, CTRL_C, CTRL_D, CTRL_Q, CTRL_S, CTRL_Z, Pty};
use crate::support::*;

/// A command that is ready when it says so, and ends by what is typed only.
const READY: &str = "sh -c 'echo rea\"\"dy; exec sleep 1000'";

/// Waits until the command's group is in the foreground.
#[track_caller]
fn wait_for_foreground(pty: &Pty, group: Pid) {
    eventually("it is in the foreground", PATIENCE, || {
        (pty.foreground() == group).then_some(())
    });
}

/// The exit status that the shell has seen last.
#[track_caller]
fn status(pty: &mut Pty) -> String {
    pty.run("echo $?").trim().to_owned()
}

#[track_caller]
fn wait_for_free_lock(server: &Server) {
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
}

#[test]
fn the_command_has_the_terminal_and_gives_it_back() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line("pglock sh -c 'echo rea\"\"dy; read -r line; echo got $line; exit 7'");
    pty.expect("ready");
    let pglock = pty.pglock();
    let command = command_of(pglock);
    assert_eq!(group(command), Some(command));
    assert_eq!(processes::session(command), Some(pty.pid()));
    wait_for_foreground(&pty, command);
    pty.line("a word");
    pty.expect("got a word");
    pty.prompt();
    assert_eq!(status(&mut pty), "7");
    assert_eq!(pty.foreground(), pty.pid());
}

#[test]
fn ctrl_c_ends_the_command_and_a_loop_of_the_shell() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!(
        "for i in 1 2 3; do echo round $i; pglock {READY}; done; echo after"
    ));
    pty.expect("ready");
    wait_for_foreground(&pty, command_of(pty.pglock()));
    pty.press(CTRL_C);
    let said = pty.prompt();
    assert!(
        !said.contains("round 2") && !said.contains("after"),
        "{said}"
    );
    assert_eq!(status(&mut pty), "130");
    assert!(server.holders(1).is_empty());
    pty.run("stty -echo");
}

#[test]
fn ctrl_c_stops_a_script_that_runs_pglock() {
    let server = Server::new();
    let scratch = Scratch::new();
    for shell in ["bash", "sh"] {
        let script = scratch.file(
            shell,
            0o755,
            format!("for i in 1 2 3; do echo round $i; pglock {READY}; done; echo after\n"),
        );
        let mut pty = Pty::new(&server);
        pty.line(&format!("{shell} {}", script.display()));
        pty.expect("ready");
        let foreground = pty.foreground();
        pty.press(CTRL_C);
        let said = pty.prompt();
        assert!(
            !said.contains("round 2") && !said.contains("after"),
            "{shell}: {said}"
        );
        assert_eq!(status(&mut pty), "130", "{shell}");
        assert_ne!(foreground, pty.pid());
    }
}

#[test]
fn the_calling_script_gets_the_interrupt_too() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!(
        "bash -c 'trap \"echo the script was interrupted\" INT; pglock {}; echo status $?'",
        READY.replace('\'', "'\\''")
    ));
    pty.expect("ready");
    pty.press(CTRL_C);
    let said = pty.prompt();
    assert!(
        said.contains("the script was interrupted") && said.contains("status 130"),
        "{said}"
    );
}

#[test]
fn a_command_that_ends_of_itself_after_ctrl_c_does_not_stop_the_loop() {
    // So it is without pglock: a shell goes on if what it ran has handled the interrupt.
    let server = Server::new();
    let mut pty = Pty::new(&server);
    let command = "sh -c 'trap \"echo handled; exit 3\" INT; echo rea\"\"dy; while :; do sleep 1000 & wait; done'";
    for program in ["", "pglock --quiet "] {
        pty.line(&format!(
            "for i in 1 2; do {program}{command}; echo status $?; done"
        ));
        for _ in 0..2 {
            pty.expect("ready");
            pty.press(CTRL_C);
            pty.expect("handled");
            pty.expect("status 3");
        }
        pty.prompt();
    }
}

#[test]
fn ctrl_backslash_ends_the_command() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!("pglock {READY}"));
    pty.expect("ready");
    wait_for_foreground(&pty, command_of(pty.pglock()));
    pty.press(CTRL_BACKSLASH);
    let said = pty.prompt();
    assert!(said.contains("Quit"), "{said}");
    assert_eq!(status(&mut pty), "131");
    assert!(server.holders(1).is_empty());
}

#[test]
fn ctrl_c_reaches_one_that_waits_for_the_lock() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let marker = Marker::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!(
        "for i in 1 2 3; do pglock --block touch {}; done",
        marker.path().display()
    ));
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    pty.press(CTRL_C);
    pty.prompt();
    assert_eq!(status(&mut pty), "130");
    assert!(!marker.exists());
    eventually("nothing waits", PATIENCE, || {
        server.waiters(1).is_empty().then_some(())
    });
}

#[test]
fn ctrl_c_stops_the_loop_at_any_moment() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    for round in 0..40 {
        pty.line("for i in 1 2 3; do pglock --quiet sleep 1000; done");
        // Before that it is bash's business, which may miss it.
        pty.pglock();
        // Before there is a command, while it is started, or when it has the terminal.
        let now = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970");
        let delay =
            Duration::from_micros(u64::from(now.subsec_nanos()) / 7 % 1000 + round % 20 * 1000);
        std::thread::sleep(delay);
        pty.press(CTRL_C);
        let said = pty.prompt();
        pty.line(&format!("echo \"a \"\"word {round}\""));
        pty.expect(&format!("a word {round}"));
        pty.prompt();
        assert!(!said.contains("word"), "after {delay:?}: {said}");
    }
    wait_for_free_lock(&server);
}

#[test]
fn ctrl_z_fg_and_bg_do_what_they_do_to_a_command() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line("pglock sh -c 'echo rea\"\"dy; read -r line; echo got $line; exec sleep 1000'");
    pty.expect("ready");
    let pglock = pty.pglock();
    let command = command_of(pglock);
    wait_for_foreground(&pty, command);
    for _ in 0..3 {
        pty.press(CTRL_Z);
        pty.expect("Stopped");
        pty.prompt();
        wait_for_state("the command", command, "T");
        wait_for_state("pglock", pglock, "T");
        assert_eq!(pty.foreground(), pty.pid());
        let jobs = pty.run("jobs");
        assert!(
            jobs.contains("Stopped") && jobs.contains("pglock"),
            "{jobs}"
        );
        assert_eq!(server.holders(1).len(), 1);
        pty.line("fg");
        wait_for_foreground(&pty, command);
        wait_for_state("the command", command, "S");
    }
    // The terminal is the command's again, also its input.
    pty.line("a word");
    pty.expect("got a word");
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    pty.run("bg");
    wait_for_state("the command", command, "S");
    wait_for_state("pglock", pglock, "S");
    assert_eq!(pty.foreground(), pty.pid());
    let jobs = pty.run("jobs");
    assert!(jobs.contains("Running"), "{jobs}");
    // fg of a job that runs: bash sends no signal then.
    pty.line("fg");
    eventually("the shell has given the terminal away", PATIENCE, || {
        (pty.foreground() != pty.pid()).then_some(())
    });
    pty.press(CTRL_C);
    pty.prompt();
    assert_eq!(status(&mut pty), "130");
    wait_for_end("the command", command);
    wait_for_free_lock(&server);
}

#[test]
fn ctrl_z_stops_all_of_a_command_also_what_ignores_it() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line("pglock sh -c '(trap \"\" TSTP; echo rea\"\"dy; exec sleep 1000) & wait'");
    pty.expect("ready");
    let command = command_of(pty.pglock());
    wait_for_foreground(&pty, command);
    let deaf = command_of(command);
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    wait_for_state("what ignores it", deaf, "T");
    pty.line("fg");
    wait_for_foreground(&pty, command);
    wait_for_state("what ignores it", deaf, "S");
    pty.press(CTRL_C);
    pty.prompt();
    assert_eq!(status(&mut pty), "130");
}

#[test]
fn pglock_does_not_stop_for_a_command_that_is_continued_at_once() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(
        "pglock --ttl 3 --grace 0 sh -c 'echo rea\"\"dy; read -r line; echo got $line; exec sleep 1000'",
    );
    pty.expect("ready");
    let pglock = pty.pglock();
    let command = command_of(pglock);
    wait_for_foreground(&pty, command);
    // It does not answer that the lease is lifted before the command is continued.
    let backend = Pid::from_raw(server.holders(1)[0]);
    kill(backend, Signal::SIGSTOP).expect("freeze the backend");
    let before = processes::sleeps(pglock);
    kill(command, Signal::SIGSTOP).expect("stop the command");
    eventually("pglock has seen it", PATIENCE, || {
        (processes::sleeps(pglock) > before).then_some(())
    });
    kill(command, Signal::SIGCONT).expect("continue the command");
    wait_for_state("the command", command, "S");
    kill(backend, Signal::SIGCONT).expect("thaw the backend");
    pty.line("a word");
    pty.expect("got a word");
    // The lease is in force: the guardian acts on the deadline.
    wait_for_state("pglock", pglock, "S");
    kill(pglock, Signal::SIGSTOP).expect("freeze pglock");
    wait_for_end("the command", command);
    kill(pglock, Signal::SIGCONT).expect("thaw pglock");
    wait_for_end("pglock", pglock);
}

#[test]
fn a_command_that_wants_the_terminal_where_no_shell_is_stays_stopped() {
    let server = Server::new();
    let scratch = Scratch::new();
    let file = scratch.path().join("command");
    let mut pty = Pty::new(&server);
    // The shells in between have ended: nobody could bring it to the foreground.
    pty.run(&format!(
        "( (pglock sh -c 'echo $$ >{0}.new; mv {0}.new {0}; read -r line </dev/tty' </dev/null >/dev/null 2>&1 &) )",
        file.display()
    ));
    let command = eventually("the command runs", PATIENCE, || {
        let number = fs::read_to_string(&file).ok()?;
        Some(Pid::from_raw(number.trim().parse().expect("a number")))
    });
    wait_for_state("the command", command, "T");
    // Whether pglock lets it try again would show by how often it has gone to sleep.
    eventually("it rests", PATIENCE, || {
        let before = processes::sleeps(command);
        std::thread::sleep(Duration::from_millis(500));
        (processes::sleeps(command) == before).then_some(())
    });
    kill(command, Signal::SIGKILL).expect("end the command");
    wait_for_free_lock(&server);
}

#[test]
fn a_background_job_that_reads_from_the_terminal_is_stopped_until_fg() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.run("pglock sh -c 'read -r line; echo got $line; exit 4' &");
    let pglock = pty.pglock();
    let command = command_of(pglock);
    wait_for_state("the command", command, "T");
    wait_for_state("pglock", pglock, "T");
    assert_eq!(pty.foreground(), pty.pid());
    let jobs = pty.run("jobs");
    assert!(jobs.contains("Stopped"), "{jobs}");
    pty.line("fg");
    wait_for_foreground(&pty, command);
    pty.line("a word");
    pty.expect("got a word");
    pty.prompt();
    assert_eq!(status(&mut pty), "4");
}

#[test]
fn a_running_background_job_gets_the_terminal_when_it_is_in_the_foreground() {
    let server = Server::new();
    let scratch = Scratch::new();
    let go = scratch.path().join("go");
    let mut pty = Pty::new(&server);
    // It reads when it is told, which is when it has long been in the foreground.
    pty.run(&format!(
        "pglock sh -c 'until [ -e {} ]; do sleep 0.02; done; read -r line; echo got $line; exit 4' &",
        go.display()
    ));
    let command = command_of(pty.pglock());
    wait_for_state("the command", command, "S");
    pty.line("fg");
    eventually("the shell has given the terminal away", PATIENCE, || {
        (pty.foreground() != pty.pid()).then_some(())
    });
    fs::write(&go, "").expect("write");
    pty.line("a word");
    pty.expect("got a word");
    pty.prompt();
    assert_eq!(status(&mut pty), "4");
}

#[test]
fn a_background_job_runs_to_its_end_without_the_terminal() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    let said = pty.run("pglock --quiet sh -c 'exit 9' & wait $!; echo status $?");
    assert!(said.contains("status 9"), "{said}");
    assert_eq!(pty.foreground(), pty.pid());
}

#[test]
fn a_script_goes_on_with_the_terminal_while_its_pglock_runs_beside_it() {
    let server = Server::new();
    let scratch = Scratch::new();
    let runs = scratch.path().join("runs");
    let script = scratch.file(
        "script",
        0o755,
        format!(
            "pglock --quiet sh -c '>{0}; exec sleep 1000' &\n\
             until [ -e {0} ]; do sleep 0.02; done\n\
             echo your name, please\n\
             read -r name\n\
             echo hello $name\n\
             kill $!\n\
             wait\n\
             exit 3\n",
            runs.display()
        ),
    );
    for shell in ["bash", "sh"] {
        let _ = fs::remove_file(&runs);
        let mut pty = Pty::new(&server);
        pty.line(&format!("{shell} {}", script.display()));
        pty.expect("your name, please");
        pty.line("Ada");
        // If the terminal were the background command's, the script would be stopped here.
        pty.expect("hello Ada");
        pty.prompt();
        assert_eq!(status(&mut pty), "3", "{shell}");
    }
}

#[test]
fn a_pager_at_the_end_of_the_pipeline_has_the_terminal() {
    if !there_is("less") {
        return;
    }
    let server = Server::new();
    let scratch = Scratch::new();
    let go = scratch.path().join("go");
    // pglock runs on for as long as somebody looks at the pager, and less shows the next page.
    let lines = format!(
        "sh -c 'i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line no $i; done; \
         until [ -e {} ]; do sleep 0.02; done'",
        go.display()
    );
    let mut pty = Pty::new(&server);
    for program in ["", "pglock --quiet "] {
        let _ = fs::remove_file(&go);
        pty.line(&format!("{program}{lines} | less"));
        pty.expect("line no 20");
        pty.press(" ");
        pty.expect("line no 40");
        fs::write(&go, "").expect("write");
        pty.press("q");
        pty.prompt();
        assert_eq!(pty.run("jobs"), "");
    }
}

#[test]
fn two_of_them_in_one_pipeline_end_by_one_ctrl_c() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!(
        "pglock --quiet sh -c 'echo one >&2; exec sleep 1000' | pglock --quiet --lockid 2 {READY}"
    ));
    pty.expect("one");
    eventually("both hold their locks", PATIENCE, || {
        (server.holders(1).len() + server.holders(2).len() == 2).then_some(())
    });
    let pglocks: Vec<Pid> = processes::children(pty.pid());
    for pglock in &pglocks {
        let command = command_of(*pglock);
        eventually("its command sleeps", PATIENCE, || {
            (processes::name(command) == "sleep").then_some(())
        });
    }
    pty.press(CTRL_C);
    pty.prompt();
    assert_eq!(status(&mut pty), "130");
    wait_for_free_lock(&server);
    assert!(server.holders(2).is_empty());
}

#[test]
fn a_stopped_pglock_dies_with_its_command_when_it_is_told_to_end() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    for signal in ["TERM", "HUP"] {
        pty.line(&format!("pglock {READY}"));
        pty.expect("ready");
        let command = command_of(pty.pglock());
        wait_for_foreground(&pty, command);
        pty.press(CTRL_Z);
        pty.expect("Stopped");
        pty.prompt();
        // bash sends a CONT after it.
        pty.run(&format!("kill -{signal} %1; wait"));
        wait_for_end("the command", command);
        wait_for_free_lock(&server);
        pty.run("jobs");
    }
}

#[test]
fn a_stopped_pglock_that_is_killed_takes_its_command_along() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!("pglock {READY}"));
    pty.expect("ready");
    let command = command_of(pty.pglock());
    wait_for_foreground(&pty, command);
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    pty.run("kill -KILL %1");
    wait_for_end("the command", command);
    wait_for_free_lock(&server);
}

#[test]
fn a_pglock_that_is_killed_at_the_terminal_leaves_it_to_the_shell() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!("pglock {READY}"));
    pty.expect("ready");
    let pglock = pty.pglock();
    let command = command_of(pglock);
    wait_for_foreground(&pty, command);
    kill(pglock, Signal::SIGKILL).expect("kill pglock");
    let said = pty.prompt();
    assert!(said.contains("Killed"), "{said}");
    wait_for_end("the command", command);
    assert_eq!(pty.run("echo here"), "here\n");
}

#[test]
fn the_end_of_the_terminal_is_the_end_of_the_command() {
    let server = Server::new();
    for stopped in [false, true] {
        let mut pty = Pty::new(&server);
        pty.line(&format!("pglock {READY}"));
        pty.expect("ready");
        let pglock = pty.pglock();
        let command = command_of(pglock);
        wait_for_foreground(&pty, command);
        if stopped {
            pty.press(CTRL_Z);
            pty.expect("Stopped");
            pty.prompt();
        }
        pty.hang_up();
        wait_for_end("the command", command);
        wait_for_end("pglock", pglock);
        wait_for_free_lock(&server);
    }
}

#[test]
fn a_stopped_pglock_keeps_the_lock_longer_than_the_lease() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(
        "pglock --ttl 3 --grace 0 sh -c 'echo rea\"\"dy; read -r line; echo got $line; exit 6'",
    );
    pty.expect("ready");
    let command = command_of(pty.pglock());
    wait_for_foreground(&pty, command);
    let holder = server.holders(1);
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    // Longer than the lease: this is what is tested here.
    let since = std::time::Instant::now();
    eventually("the lease would be over", PATIENCE, || {
        assert_eq!(server.holders(1), holder);
        (since.elapsed() > Duration::from_millis(3800)).then_some(())
    });
    assert!(is_alive(command));
    pty.line("fg");
    wait_for_foreground(&pty, command);
    pty.line("a word");
    pty.expect("got a word");
    pty.prompt();
    assert_eq!(status(&mut pty), "6");
}

#[test]
fn the_lease_is_in_force_again_after_fg() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!("pglock --ttl 3 --grace 0 {READY}"));
    pty.expect("ready");
    let pglock = pty.pglock();
    let command = command_of(pglock);
    wait_for_foreground(&pty, command);
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    pty.line("fg");
    wait_for_foreground(&pty, command);
    wait_for_state("the command", command, "S");
    // Frozen, and not by ^Z: the guardian acts on the deadline, and the server frees the lock.
    kill(pglock, Signal::SIGSTOP).expect("freeze pglock");
    wait_for_end("the command", command);
    wait_for_free_lock(&server);
    kill(pglock, Signal::SIGCONT).expect("thaw pglock");
    wait_for_end("pglock", pglock);
}

#[test]
fn a_late_answer_to_the_stop_does_not_undo_fg() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line("pglock sh -c 'echo rea\"\"dy; read -r line; echo got $line; exit 6'");
    pty.expect("ready");
    let pglock = pty.pglock();
    wait_for_foreground(&pty, command_of(pglock));
    let backend = Pid::from_raw(server.holders(1)[0]);
    kill(backend, Signal::SIGSTOP).expect("freeze the backend");
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    pty.line("fg");
    wait_for_state("pglock", pglock, "S");
    kill(backend, Signal::SIGCONT).expect("thaw the backend");
    pty.line("a word");
    pty.expect("got a word");
    pty.prompt();
    assert_eq!(status(&mut pty), "6");
}

#[test]
fn a_stopped_pglock_whose_lock_is_lost_does_not_let_the_command_continue() {
    let server = Server::new();
    let scratch = Scratch::new();
    let file = scratch.file("continued", 0o644, "");
    for taken in [false, true] {
        let mut pty = Pty::new(&server);
        // Whoever continues it lets it write.
        pty.line(&format!(
            "pglock sh -c 'trap \"echo yes >>{}\" CONT; echo rea\"\"dy; while :; do sleep 1000 & wait; done'",
            file.display()
        ));
        pty.expect("ready");
        let command = command_of(pty.pglock());
        wait_for_foreground(&pty, command);
        pty.press(CTRL_Z);
        pty.expect("Stopped");
        pty.prompt();
        let backend = server.holders(1)[0];
        server.psql(&format!("select pg_terminate_backend({backend})"));
        wait_for_free_lock(&server);
        let mut session = server.session();
        if taken {
            session.hold(1);
        }
        pty.line("fg");
        let said = pty.prompt();
        assert!(said.contains("the lock is lost"), "{said}");
        assert_eq!(status(&mut pty), "124");
        wait_for_end("the command", command);
        assert_eq!(fs::read_to_string(&file).expect("read"), "");
    }
}

#[test]
fn a_stopped_pglock_whose_server_was_restarted_does_not_let_the_command_continue() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line(&format!("pglock {READY}"));
    pty.expect("ready");
    let command = command_of(pty.pglock());
    wait_for_foreground(&pty, command);
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    // The lease was lifted: others may have had the lock since, and given it up.
    server.restart(Stop::Fast);
    pty.line("fg");
    let said = pty.prompt();
    assert!(
        said.contains("the lock is lost: the session that held it is gone; killing"),
        "{said}"
    );
    assert_eq!(status(&mut pty), "124");
    wait_for_end("the command", command);
}

#[test]
fn the_lock_of_a_stopped_pglock_is_not_free_before_the_group_is_gone() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    // It takes the kernel some time to free what this has in memory; until then it is there.
    pty.line(
        "pglock --ttl 3 --grace 0 sh -c '{ head -c 300000000 /dev/zero; echo rea\"\"dy >/dev/tty; \
         exec sleep 1000; } | tail >/dev/null'",
    );
    pty.expect("ready");
    let command = command_of(pty.pglock());
    wait_for_foreground(&pty, command);
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    let group = processes::members(command);
    let mut other = server.session();
    other.send("select pg_advisory_lock(1)");
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    // It answers nothing until pglock gives up.
    let backend = Pid::from_raw(server.holders(1)[0]);
    kill(backend, Signal::SIGSTOP).expect("freeze the backend");
    pty.line("fg");
    pty.expect("now that pglock is continued; killing the command");
    kill(backend, Signal::SIGCONT).expect("thaw the backend");
    other.answer();
    let left: Vec<Pid> = group.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    pty.prompt();
    assert_eq!(status(&mut pty), "124");
}

#[test]
fn one_that_is_continued_while_its_server_does_not_answer_can_be_told_to_end() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    for keys in [false, true] {
        pty.line(&format!("pglock --ttl 600 --grace 1 {READY}"));
        pty.expect("ready");
        let pglock = pty.pglock();
        let command = command_of(pglock);
        wait_for_foreground(&pty, command);
        pty.press(CTRL_Z);
        pty.expect("Stopped");
        pty.prompt();
        let backend = Pid::from_raw(server.holders(1)[0]);
        kill(backend, Signal::SIGSTOP).expect("freeze the backend");
        pty.line("fg");
        wait_for_foreground(&pty, group(pglock).expect("a group"));
        if keys {
            pty.press(CTRL_C);
        } else {
            kill(pglock, Signal::SIGTERM).expect("tell pglock to end");
        }
        let said = pty.prompt();
        assert!(said.contains("killing the command"), "{said}");
        assert_eq!(status(&mut pty), "124");
        wait_for_end("the command", command);
        kill(backend, Signal::SIGCONT).expect("thaw the backend");
        wait_for_free_lock(&server);
    }
}

#[test]
fn neither_does_a_signal_that_comes_before_pglock_knows() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    let scratch = Scratch::new();
    let file = scratch.file("continued", 0o644, "");
    let mut pty = Pty::with("127.0.0.1", proxy.port());
    pty.line(&format!(
        "pglock --ttl 3 --grace 0 sh -c 'trap \"echo yes >>{}\" CONT TERM; echo rea\"\"dy; \
         while :; do sleep 1000 & wait; done'",
        file.display()
    ));
    pty.expect("ready");
    let command = command_of(pty.pglock());
    wait_for_foreground(&pty, command);
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    // The server does not answer any more, and somebody else gets the lock.
    let backend = server.holders(1)[0];
    proxy.silence();
    server.psql(&format!("select pg_terminate_backend({backend})"));
    wait_for_free_lock(&server);
    let mut session = server.session();
    session.hold(1);
    // bash sends TERM and CONT.
    pty.run("kill -TERM %1");
    wait_for_end("the command", command);
    assert_eq!(fs::read_to_string(&file).expect("read"), "");
}

#[test]
fn ctrl_z_stops_one_that_waits_and_fg_lets_it_wait_on() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let mut pty = Pty::new(&server);
    pty.line("pglock --block sh -c 'echo r\"\"an'");
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    let pglock = pty.pglock();
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    wait_for_state("pglock", pglock, "T");
    pty.line("fg");
    eventually("it waits again", PATIENCE, || {
        server.waiters(1).first().copied()
    });
    session.release(1);
    pty.expect("ran");
    pty.prompt();
    assert_eq!(status(&mut pty), "0");
}

#[test]
fn one_that_was_stopped_for_long_while_it_waited_waits_on() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let mut pty = Pty::new(&server);
    pty.line("pglock --block --ttl 3 --grace 0 sh -c 'echo r\"\"an'");
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    // The end of a turn, and then the ttl: the server may have ended its session.
    let since = std::time::Instant::now();
    eventually("more than a ttl has passed", PATIENCE, || {
        (since.elapsed() > Duration::from_millis(4500)).then_some(())
    });
    pty.line("fg");
    eventually("it waits again", PATIENCE, || {
        assert_eq!(
            pty.unseen().matches("pglock: ").count(),
            0,
            "{}",
            pty.unseen()
        );
        server.waiters(1).first().copied()
    });
    session.release(1);
    pty.expect("ran");
    pty.prompt();
    assert_eq!(status(&mut pty), "0");
}

#[test]
fn a_terminal_whose_output_is_stopped_does_not_keep_the_lock() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    // No lease that would end it for want of a beat.
    pty.line("pglock --ttl 0 sh -c 'echo rea\"\"dy; read -r line; exit 5'");
    pty.expect("ready");
    let pglock = pty.pglock();
    wait_for_foreground(&pty, command_of(pglock));
    // The line that the command waits for still gets in, but what pglock says of its end does not get out.
    pty.press(CTRL_S);
    pty.line("line");
    wait_for_free_lock(&server);
    assert_eq!(pty.unseen().trim(), "");
    pty.press(CTRL_Q);
    pty.prompt();
    assert_eq!(status(&mut pty), "5");
}

#[test]
fn the_modes_of_the_terminal_are_put_back_after_a_command_that_was_killed() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    let before = pty.run("stty -g");
    pty.line("pglock sh -c 'stty raw; echo rea\"\"dy; exec sleep 1000'");
    pty.expect("ready");
    let command = command_of(pty.pglock());
    wait_for_foreground(&pty, command);
    kill(command, Signal::SIGKILL).expect("kill the command");
    pty.prompt();
    assert_eq!(status(&mut pty), "137");
    assert_eq!(pty.run("stty -g"), before);
}

#[test]
fn a_shell_with_its_own_job_control_works() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line("PS1='inner''> ' pglock bash --norc --noprofile --noediting -i");
    pty.expect("inner> ");
    let inner = command_of(pty.pglock());
    let outer = pty.pglock();
    pty.line("sleep 1000");
    let sleep = eventually("sleep runs", PATIENCE, || {
        let child = processes::children(inner).first().copied();
        child.filter(|pid| processes::name(*pid) == "sleep")
    });
    wait_for_foreground(&pty, sleep);
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.expect("inner> ");
    // It was a job of the inner shell only.
    wait_for_state("pglock", outer, "S");
    wait_for_state("sleep", sleep, "T");
    pty.line("fg");
    wait_for_foreground(&pty, sleep);
    pty.press(CTRL_C);
    pty.expect("inner> ");
    assert_eq!(server.holders(1).len(), 1);
    // The inner shell as a job of the outer one.
    pty.line("suspend");
    pty.expect("Stopped");
    pty.prompt();
    wait_for_state("pglock", outer, "T");
    pty.line("fg");
    pty.line("echo here");
    pty.expect("here");
    pty.expect("inner> ");
    pty.line("exit 11");
    pty.prompt();
    assert_eq!(status(&mut pty), "11");
    assert_eq!(pty.foreground(), pty.pid());
}

#[test]
fn a_shell_under_pglock_ends_at_the_end_of_its_input() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line("PS1='inner''> ' pglock bash --norc --noprofile --noediting -i");
    pty.expect("inner> ");
    pty.press(CTRL_D);
    pty.prompt();
    assert_eq!(status(&mut pty), "0");
}

#[test]
fn vi_edits_a_file_and_can_be_stopped_meanwhile() {
    if !there_is("vi") {
        return;
    }
    let server = Server::new();
    let scratch = Scratch::new();
    let file = scratch.file("file", 0o644, "first\n");
    let mut pty = Pty::new(&server);
    pty.line(&format!("pglock vi {}", file.display()));
    pty.expect("first");
    let command = command_of(pty.pglock());
    wait_for_foreground(&pty, command);
    // The cursor keys are for the application, so it is in control.
    pty.press("osecond\x1b");
    pty.expect("second");
    pty.press(CTRL_Z);
    pty.expect("Stopped");
    pty.prompt();
    pty.line("fg");
    wait_for_foreground(&pty, command);
    pty.expect("second");
    pty.press("othird\x1b:wq\r");
    pty.prompt();
    assert_eq!(
        fs::read_to_string(&file).expect("read"),
        "first\nsecond\nthird\n"
    );
    assert_eq!(status(&mut pty), "0");
}

#[test]
fn less_shows_a_file_page_by_page() {
    if !there_is("less") {
        return;
    }
    let server = Server::new();
    let scratch = Scratch::new();
    let text: String = (1..=100)
        .map(|number| format!("line no {number}\n"))
        .collect();
    let file = scratch.file("file", 0o644, text);
    let mut pty = Pty::new(&server);
    pty.line(&format!("pglock less {}", file.display()));
    pty.expect("line no 20");
    pty.press(" ");
    pty.expect("line no 40");
    pty.press("q");
    pty.prompt();
    assert_eq!(status(&mut pty), "0");
}

#[test]
fn psql_edits_its_lines_and_takes_ctrl_c_itself() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    let psql = server::psql().display().to_string();
    let socket = server.socket_dir().display().to_string();
    pty.line(&format!(
        "pglock {psql} -X -h {socket} -U postgres postgres"
    ));
    pty.expect("postgres=# ");
    let pglock = pty.pglock();
    // DEL rubs out the last letter.
    pty.line("select 40 + 3\x7f2 as answer;");
    pty.expect("42");
    pty.expect("postgres=# ");
    pty.line("select pg_sleep(1000);");
    eventually("it runs", PATIENCE, || {
        let running = server.psql("select count(*) from pg_stat_activity where query ~ 'pg_sleep.1000' and state = 'active' and pid <> pg_backend_pid()");
        (running == "1").then_some(())
    });
    pty.press(CTRL_C);
    pty.expect("canceling statement due to user request");
    pty.expect("postgres=# ");
    assert!(is_alive(pglock));
    pty.line("\\q");
    pty.prompt();
    assert_eq!(status(&mut pty), "0");
}
