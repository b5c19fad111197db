//! Descriptors: what the command finds open, and what pglock does about a log that cannot be written.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::support::processes::{self, command_of};
use crate::support::*;

const PGLOCK: &str = env!("CARGO_BIN_EXE_pglock");

/// Tells on descriptor 9 which of the first twenty are open. Opens none for that.
const LIST: &str = "list=; i=0; while [ $i -lt 20 ]; do \
                    if [ -e /proc/$$/fd/$i ]; then list=\"$list $i\"; fi; i=$((i + 1)); done; echo $list >&9";

/// The redirections that close each set of the standard descriptors.
const CLOSED: [&str; 8] = [
    "",
    "<&-",
    ">&-",
    "2>&-",
    "<&- >&-",
    "<&- 2>&-",
    ">&- 2>&-",
    "<&- >&- 2>&-",
];

/// Each of them, and the redirection that closes it.
const STANDARD: [(i32, &str); 3] = [(0, "<&-"), (1, ">&-"), (2, "2>&-")];

/// A file to be descriptor 9.
fn book(scratch: &Scratch) -> (std::path::PathBuf, File) {
    let path = scratch.file("book", 0o644, "");
    let file = File::options().append(true).open(&path).expect("open");
    (path, file)
}

/// Runs pglock, or whatever `program` is, from a shell that redirects first.
fn redirected(pglock: Pglock, redirections: &str, program: &[&str]) -> Pglock {
    let script = format!("exec \"$0\" \"$@\" {redirections}");
    let mut words = vec!["sh", "-c", &script];
    words.extend(program);
    pglock.without_pglock().command(words)
}

/// Waits until a process is `sleep`, and asleep: it has then loaded its libraries and closed their files again.
#[track_caller]
fn asleep(pid: nix::unistd::Pid) {
    eventually("the command sleeps", PATIENCE, || {
        (processes::name(pid) == "sleep" && server::state(pid) == Some('S')).then_some(())
    });
}

#[test]
fn a_standard_descriptor_that_is_closed_is_closed_for_the_command() {
    let server = Server::builder().tcp().start();
    for pglock in [Pglock::on(&server), Pglock::at(server.port())] {
        for redirections in CLOSED {
            let scratch = Scratch::new();
            let (path, file) = book(&scratch);
            let pglock = pglock.clone().descriptor(file, 9);
            let command = ["sh", "-c", LIST];
            let with = [&[PGLOCK][..], &command].concat();
            let output = redirected(pglock.clone(), redirections, &with).run();
            output.assert_status(0);
            redirected(pglock, redirections, &command)
                .run()
                .assert_status(0);
            let text = fs::read_to_string(path).expect("read");
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 2, "{redirections:?}: {lines:?}");
            assert_eq!(lines[0], lines[1], "{redirections:?}");
        }
    }
}

#[test]
fn nothing_of_pglock_s_own_is_a_standard_descriptor() {
    let server = Server::new();
    for redirections in CLOSED {
        let words = [PGLOCK, "sleep", "1000"];
        let run = redirected(Pglock::on(&server), redirections, &words).spawn();
        let pglock = eventually("the shell has become pglock", PATIENCE, || {
            (processes::name(run.pid()) == "pglock").then_some(run.pid())
        });
        let command = command_of(pglock);
        asleep(command);
        for (number, sign) in STANDARD {
            let found = processes::descriptor(pglock, number).expect("an open descriptor");
            // What is closed for the command is a null device here, so that no socket takes its place.
            let is_closed = redirections
                .split_whitespace()
                .any(|redirection| redirection == sign);
            if is_closed {
                assert_eq!(found, "/dev/null", "{redirections:?}, {number}");
                assert_eq!(processes::descriptor(command, number), None);
            } else {
                assert_eq!(processes::descriptor(command, number), Some(found));
            }
        }
    }
}

#[test]
fn nor_where_there_is_no_null_device() {
    let server = Server::new();
    // In a `/dev` of its own.
    let alone = ["unshare", "--mount", "sh", "-c"];
    let bare = "mount -t tmpfs none /dev && exec \"$@\"";
    let tried = std::process::Command::new(alone[0])
        .args(&alone[1..])
        .args([bare, "sh", "true"])
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no permission to mount a /dev without devices");
        return;
    }
    for redirections in CLOSED {
        let scratch = Scratch::new();
        let (path, file) = book(&scratch);
        let words = [PGLOCK, "--verbose", "sh", "-c", LIST];
        let output = redirected(
            Pglock::on(&server).descriptor(file, 9),
            redirections,
            &words,
        )
        .preceded_by([&alone[..], &[bare, "sh"]].concat())
        .run();
        output.assert_status(0);
        let open = fs::read_to_string(path).expect("read");
        for (number, sign) in STANDARD {
            let is_closed = redirections.split_whitespace().any(|one| one == sign);
            let is_open = open.split_whitespace().any(|one| one == number.to_string());
            assert_ne!(is_closed, is_open, "{redirections:?}: {open}");
        }
    }
}

#[test]
fn the_command_inherits_what_pglock_inherits_and_nothing_else() {
    let server = Server::new();
    let scratch = Scratch::new();
    let (_, file) = book(&scratch);
    let more = File::open("/dev/null").expect("open");
    let pglock = Pglock::on(&server)
        .descriptor(file, 9)
        .descriptor(more, 57)
        .command(["sleep", "1000"]);
    let direct = pglock.clone().without_pglock().spawn();
    asleep(direct.pid());
    let expected = processes::descriptors(direct.pid());
    for number in [0, 1, 2, 9, 57] {
        assert!(expected.contains(&number), "{expected:?}");
    }
    let run = pglock.spawn();
    let command = command_of(run.pid());
    asleep(command);
    assert_eq!(processes::descriptors(command), expected);
    for number in expected.iter().copied() {
        assert_eq!(
            processes::descriptor(command, number),
            processes::descriptor(run.pid(), number)
        );
    }
    // The guardian keeps none of them open: what reads from the command's output would wait for it.
    let guardian = processes::guardian_of(run.pid());
    for number in processes::descriptors(guardian) {
        let found = processes::descriptor(guardian, number).unwrap_or_default();
        assert!(
            ["socket:", "pipe:", "anon_inode:"]
                .iter()
                .any(|kind| found.starts_with(kind)),
            "{number}: {found}"
        );
        for inherited in [0, 1, 2, 9, 57] {
            assert_ne!(
                Some(&found),
                processes::descriptor(command, inherited).as_ref()
            );
        }
    }
}

#[test]
fn a_failure_is_told_by_the_status_when_everything_is_closed() {
    let server = Server::new();
    let closed = "<&- >&- 2>&-";
    for (flags, command, status) in [
        (&[][..], "/nonexistent", 127),
        (&[], "/", 126),
        (&["--bogus"], "true", 125),
        (&["--port", "1"], "true", 125),
        (&[], "true", 0),
        (&[], "false", 1),
    ] {
        let words = [&[PGLOCK][..], flags, &[command]].concat();
        let output = redirected(Pglock::on(&server), closed, &words).run();
        output.assert_status(status).assert_stdout("");
    }
}

#[test]
fn a_command_that_closes_its_descriptors_is_waited_for() {
    let server = Server::new();
    let scratch = Scratch::new();
    let fifo = scratch.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("mkfifo");
    let script = format!(
        "exec <&- >&- 2>&-; read -r line <{}; exit 4",
        fifo.display()
    );
    let mut run = Pglock::on(&server).sh(&script).spawn();
    // Opening it waits until the command reads from it.
    let mut line = File::options().write(true).open(&fifo).expect("open");
    assert!(run.is_running());
    assert_eq!(server.holders(1).len(), 1);
    line.write_all(b"go\n").expect("write");
    let output = run.wait();
    output.assert_status(4);
    assert_eq!(
        output.log().last().map(String::as_str),
        Some("Execution finished, exiting and cleaning up lock."),
        "{}",
        output.report()
    );
}

#[test]
fn a_full_disk_or_a_closed_pipe_behind_standard_error_stops_nobody() {
    let server = Server::new();
    let marker = Marker::new();
    let script = format!("touch {}; echo said; exit 6", marker.path().display());
    for redirection in ["2>/dev/full", "2>&7", "2>&7 # with the signal ignored"] {
        marker.reset();
        let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        drop(read);
        let mut pglock = Pglock::on(&server).descriptor(File::from(write), 7);
        if redirection.contains("ignored") {
            pglock = pglock.ignoring(nix::sys::signal::Signal::SIGPIPE);
        }
        let words = [PGLOCK, "--verbose", "sh", "-c", &script];
        let output = redirected(pglock, redirection, &words).run();
        output.assert_status(6).assert_stdout("said\n");
        assert!(marker.exists(), "{redirection}");
        assert!(server.holders(1).is_empty());
    }
    // And where the lock is not obtained, or pglock fails.
    let mut session = server.session();
    session.hold(1);
    for (flags, status) in [
        (&["--conflict-exit-code", "9"][..], 9),
        (&["--port", "1"], 125),
    ] {
        let words = [&[PGLOCK][..], flags, &["true"]].concat();
        redirected(Pglock::on(&server), "2>/dev/full", &words)
            .run()
            .assert_status(status);
    }
}

#[test]
fn a_pipe_that_nobody_reads_behind_standard_error_stops_nobody() {
    let server = Server::new();
    let (_read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    // Filled to the brim.
    let flags = OFlag::from_bits_retain(fcntl(write.as_fd(), FcntlArg::F_GETFL).expect("flags"));
    fcntl(write.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).expect("O_NONBLOCK");
    let mut file = File::from(write);
    while file.write(&[b'x'; 512]).is_ok() {}
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags)).expect("no O_NONBLOCK");
    let words = [PGLOCK, "--verbose", "sh", "-c", "echo said; exit 6"];
    let pglock = Pglock::on(&server)
        .descriptor(file, 7)
        .limit(Duration::from_secs(15));
    let output = redirected(pglock, "2>&7", &words).run();
    output.assert_status(6).assert_stdout("said\n");
}

#[test]
fn a_log_line_longer_than_a_pipe_has_room_for_stops_nobody() {
    let server = Server::new();
    let (_read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    // The pipe is empty, so there is room for a line; but the line that tells the command is longer than a pipe.
    let long = "x".repeat(100_000);
    let words = [PGLOCK, "sh", "-c", "echo said; exit 6", &long];
    let pglock = Pglock::on(&server)
        .descriptor(File::from(write), 7)
        .limit(Duration::from_secs(15));
    let output = redirected(pglock, "2>&7", &words).run();
    output.assert_status(6).assert_stdout("said\n");
}

#[test]
fn what_the_command_leaves_behind_is_not_waited_for() {
    let server = Server::new();
    let scratch = Scratch::new();
    let fifo = scratch.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("mkfifo");
    let pid_file = scratch.path().join("pid");
    // It keeps standard output and error open, and ends when it is told.
    let script = format!(
        "(read -r line <{}; echo late) & echo $! >{}; exit 5",
        fifo.display(),
        pid_file.display()
    );
    let mut run = Pglock::on(&server).sh(&script).spawn();
    eventually("pglock has ended", Duration::from_secs(10), || {
        (!run.is_running()).then_some(())
    });
    assert!(server.holders(1).is_empty());
    let text = fs::read_to_string(pid_file).expect("the pid");
    let left = nix::unistd::Pid::from_raw(text.trim().parse().expect("a pid"));
    assert!(processes::is_alive(left), "it was killed");
    // Neither does the end of the guardian do it any harm.
    eventually("only what was left behind runs", PATIENCE, || {
        (run.processes() == [left]).then_some(())
    });
    let mut line = File::options().write(true).open(&fifo).expect("open");
    line.write_all(b"go\n").expect("write");
    run.wait_for_output("late");
    run.wait().assert_status(5);
}
