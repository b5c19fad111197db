//! What the command gets, and what its end makes of pglock's.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;

use nix::sys::signal::Signal;

use crate::support::*;

#[test]
fn the_status_is_the_command_s_own() {
    let server = Server::new();
    for status in [
        0, 1, 2, 3, 9, 42, 64, 77, 100, 124, 125, 126, 127, 128, 129, 143, 200, 254, 255,
    ] {
        let output = Pglock::on(&server).sh(&format!("exit {status}")).run();
        output.assert_status(status);
        let last = output.log().pop().expect("a line");
        assert_eq!(
            last,
            "Execution finished, exiting and cleaning up lock.",
            "{}",
            output.report()
        );
    }
}

#[test]
fn a_signal_that_ends_the_command_is_128_and_its_number() {
    let server = Server::new();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGABRT,
        Signal::SIGKILL,
        Signal::SIGUSR1,
        Signal::SIGSEGV,
        Signal::SIGPIPE,
        Signal::SIGALRM,
        Signal::SIGTERM,
    ] {
        let number = signal as i32;
        let output = Pglock::on(&server)
            .sh(&format!("ulimit -c 0; kill -{number} $$"))
            .run();
        output.assert_status(128 + number);
    }
}

#[test]
fn what_cannot_be_executed_is_126_and_what_is_not_there_127() {
    let server = Server::new();
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    scratch.file("not-executable", 0o644, "#!/bin/sh\nexit 0\n");
    fs::create_dir(scratch.path().join("folder")).expect("create a folder");
    scratch.file("in-path", 0o644, "#!/bin/sh\nexit 0\n");
    for (command, status) in [
        (path("not-executable"), 126),
        (path("folder"), 126),
        (path("missing"), 127),
        ("no-such-program-anywhere".to_owned(), 127),
        (path("not-executable/below"), 126),
        (String::new(), 127),
    ] {
        let output = Pglock::on(&server).command([&command, "argument"]).run();
        output.assert_status(status).assert_stdout("");
        let log = output.log();
        let errors: Vec<&String> = log
            .iter()
            .filter(|line| line.starts_with("pglock: "))
            .collect();
        assert!(
            errors.len() == 1 && errors[0].contains(&command),
            "one error that names it\n{}",
            output.report()
        );
        assert!(
            log.contains(&"Lock ID 1 obtained successfully!".to_owned()),
            "{}",
            output.report()
        );
    }
    // A line of shell in one word, or with a variable before it.
    for words in [&["echo hello"][..], &["true && true"], &["A=1", "true"]] {
        let output = Pglock::on(&server).command(words).run();
        output.assert_status(127).assert_stdout("");
        let stderr = output.stderr();
        let is_told = stderr.contains("No such file or directory; ") && stderr.contains("sh -c");
        assert!(is_told, "{}", output.report());
        output.assert_nowhere("os error");
    }
    // Found in PATH, but not executable.
    let output = Pglock::on(&server)
        .env("PATH", scratch.path())
        .command(["in-path"])
        .run();
    output.assert_status(126);
}

#[test]
fn a_script_without_an_interpreter_line_is_run_by_the_shell() {
    let server = Server::new();
    let scratch = Scratch::new();
    let script = scratch.file("script", 0o755, "echo \"$1 and $#\"\nexit 5\n");
    let output = Pglock::on(&server)
        .command([script.as_os_str(), "one two".as_ref(), "three".as_ref()])
        .run();
    output.assert_status(5).assert_stdout("one two and 2\n");
}

#[test]
fn the_command_is_looked_up_as_a_shell_does() {
    let server = Server::new();
    let scratch = Scratch::new();
    scratch.file("greet", 0o755, "#!/bin/sh\necho hello from $0 in $PWD\n");
    let dir = scratch.path().display();
    let path = format!(
        "/nonexistent:{dir}:{}",
        std::env::var("PATH").expect("PATH")
    );
    let output = Pglock::on(&server)
        .env("PATH", &path)
        .dir("/".as_ref())
        .command(["greet"])
        .run();
    output
        .assert_status(0)
        .assert_stdout(&format!("hello from {dir}/greet in /\n"));
    // A path is taken from the working directory, which is the caller's.
    let output = Pglock::on(&server)
        .dir(scratch.path())
        .command(["./greet"])
        .run();
    output
        .assert_status(0)
        .assert_stdout(&format!("hello from ./greet in {dir}\n"));
    let output = Pglock::on(&server)
        .dir(scratch.path())
        .command(["greet"])
        .run();
    output.assert_status(127);
}

#[test]
fn standard_input_is_the_command_s() {
    let server = Server::new();
    let output = Pglock::on(&server).input("a\n").command(["cat"]).run();
    output.assert_status(0).assert_stdout("a\n");
    // And ends when the caller's ends: no waiter before the command takes any of it.
    let mut session = server.session();
    session.hold(1);
    let waiter = Pglock::on(&server)
        .flag("--block")
        .input("patience\n")
        .command(["cat"])
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    session.release(1);
    waiter.wait().assert_status(0).assert_stdout("patience\n");
}

#[test]
fn standard_output_and_error_are_the_command_s() {
    let server = Server::new();
    let output = Pglock::on(&server)
        .sh("echo to output; echo to error >&2")
        .run();
    output.assert_status(0).assert_stdout("to output\n");
    assert!(
        output.stderr().lines().any(|line| line == "to error"),
        "{}",
        output.report()
    );
    // In the right order among pglock's own lines.
    let text = output.stderr();
    let place = |word: &str| {
        text.find(word)
            .unwrap_or_else(|| panic!("no {word}\n{}", output.report()))
    };
    assert!(
        place("Executing command") < place("to error")
            && place("to error") < place("Execution finished")
    );
}

#[test]
fn a_hundred_megabytes_pass_through_unchanged() {
    let server = Server::new();
    // Every byte value, no short period.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let data: Vec<u8> = (0..100_000_000 / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    let output = Pglock::on(&server)
        .input(data.clone())
        .command(["cat"])
        .run();
    output.assert_status(0);
    assert!(
        output.stdout == data,
        "{} bytes came out, changed",
        output.stdout.len()
    );
}

#[test]
fn arguments_reach_the_command_byte_by_byte() {
    let server = Server::new();
    let words: [&[u8]; 9] = [
        b"",
        b" ",
        b"a b",
        b"\xff\xfe",
        b"caf\xe9",
        "é".as_bytes(),
        b"*",
        b"$HOME",
        b"line\nbreak",
    ];
    let mut command = vec![OsStr::new("printf"), OsStr::new("<%s>")];
    command.extend(words.map(OsStr::from_bytes));
    let output = Pglock::on(&server).command(&command).run();
    let expected: Vec<u8> = words
        .iter()
        .flat_map(|word| [b"<", *word, b">"].concat())
        .collect();
    assert!(
        output.assert_status(0).stdout == expected,
        "{}",
        output.report()
    );
    // The name of the command may be such bytes too.
    let scratch = Scratch::new();
    let name = OsStr::from_bytes(b"caf\xe9");
    fs::copy("/bin/sh", scratch.path().join(name)).expect("copy the shell");
    let path = scratch.path().join(name);
    let output = Pglock::on(&server)
        .command([path.as_os_str(), "-c".as_ref(), "echo strange".as_ref()])
        .run();
    output.assert_status(0).assert_stdout("strange\n");
}

#[test]
fn what_follows_the_command_is_not_pglock_s() {
    let server = Server::new();
    for (words, said) in [
        (
            &["echo", "--lockid", "abc", "--help", "-h", "--", "--wait"][..],
            "--lockid abc --help -h -- --wait\n",
        ),
        (&["--", "echo", "--bogus", "--", "x"], "--bogus -- x\n"),
        (&["--wait", "5", "echo", "--wait", "x"], "--wait x\n"),
        (&["--wait=5", "--", "echo", "-V"], "-V\n"),
        (&["env", "--", "echo", "x"], "x\n"),
    ] {
        let output = Pglock::on(&server).flags(words).run();
        output.assert_status(0).assert_stdout(said);
    }
    // After -- a word with dashes is a command.
    let output = Pglock::on(&server).flags(["--", "--help"]).run();
    output.assert_status(127).assert_stdout("");
}

#[test]
fn the_environment_is_the_caller_s_and_one_variable_more() {
    let server = Server::new();
    let pglock = Pglock::on(&server)
        .env("PGLOCK_PASS", "secret")
        .env("PGLOCK_WAIT", "5")
        .env("PGPASSWORD", "other")
        .env("PGHOSTADDR", "127.0.0.9")
        .env("EMPTY", "")
        .env("LINES", "one\ntwo")
        .env("BYTES", OsStr::from_bytes(b"\xff=\xfe"))
        .command(["env", "-0"]);
    let entries = |output: &Output| -> BTreeSet<Vec<u8>> {
        let entries = output
            .assert_status(0)
            .stdout
            .split(|byte| *byte == 0)
            .map(<[u8]>::to_vec);
        // The tag is another one for each invocation.
        entries
            .filter(|entry| !entry.starts_with(support_tag().as_bytes()) && !entry.is_empty())
            .collect()
    };
    let (with, without) = (
        entries(&pglock.run()),
        entries(&pglock.clone().without_pglock().run()),
    );
    let more: Vec<String> = with
        .difference(&without)
        .map(|entry| String::from_utf8_lossy(entry).into_owned())
        .collect();
    assert_eq!(more, ["PGLOCK_LOCK_HELD=true"]);
    assert!(without.is_subset(&with));
    // What the caller has put there does not stay.
    let output = Pglock::on(&server)
        .env("PGLOCK_LOCK_HELD", "false")
        .command(["env"])
        .run();
    let text = output.assert_status(0).stdout();
    let held: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("PGLOCK_LOCK_HELD"))
        .collect();
    assert_eq!(held, ["PGLOCK_LOCK_HELD=true"]);
}

fn support_tag() -> &'static str {
    crate::support::janitor::TAG
}

#[test]
fn signal_mask_and_dispositions_are_those_pglock_was_started_with() {
    let server = Server::new();
    let base =
        || Pglock::on(&server).command(["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]);
    let cases: [(&str, Pglock); 11] = [
        ("as they come", base()),
        ("HUP ignored", base().ignoring(Signal::SIGHUP)),
        ("PIPE ignored", base().ignoring(Signal::SIGPIPE)),
        ("PIPE not ignored", base().not_ignoring(Signal::SIGPIPE)),
        ("CHLD ignored", base().ignoring(Signal::SIGCHLD)),
        (
            "INT and QUIT ignored",
            base().ignoring(Signal::SIGINT).ignoring(Signal::SIGQUIT),
        ),
        ("TSTP, TTIN and TTOU ignored", {
            base()
                .ignoring(Signal::SIGTSTP)
                .ignoring(Signal::SIGTTIN)
                .ignoring(Signal::SIGTTOU)
        }),
        ("USR1 blocked", base().blocking(Signal::SIGUSR1)),
        ("CHLD blocked", base().blocking(Signal::SIGCHLD)),
        (
            "TERM blocked, PIPE ignored",
            base().blocking(Signal::SIGTERM).ignoring(Signal::SIGPIPE),
        ),
        ("many", {
            let many = [
                Signal::SIGHUP,
                Signal::SIGALRM,
                Signal::SIGWINCH,
                Signal::SIGCONT,
                Signal::SIGPIPE,
            ];
            many.into_iter().fold(base(), |pglock, signal| {
                pglock.blocking(signal).ignoring(signal)
            })
        }),
    ];
    for (name, pglock) in cases {
        let (with, without) = (pglock.run(), pglock.clone().without_pglock().run());
        assert_eq!(without.assert_status(0).stdout().lines().count(), 3);
        assert_eq!(
            with.assert_status(0).stdout(),
            without.stdout(),
            "{name}\n{}",
            with.report()
        );
    }
}

#[test]
fn an_ignored_child_signal_does_not_hide_the_status() {
    let server = Server::new();
    Pglock::on(&server)
        .ignoring(Signal::SIGCHLD)
        .sh("exit 7")
        .run()
        .assert_status(7);
    Pglock::on(&server)
        .blocking(Signal::SIGCHLD)
        .sh("exit 8")
        .run()
        .assert_status(8);
}

#[test]
fn the_command_gets_no_descriptor_of_pglock_s_own_and_all_of_the_caller_s() {
    let server = Server::builder().tcp().start();
    let scratch = Scratch::new();
    let list = |pglock: &Pglock| pglock.clone().command(["ls", "/proc/self/fd"]).run();
    for pglock in [Pglock::on(&server), Pglock::at(server.port())] {
        let (with, without) = (list(&pglock), list(&pglock.without_pglock()));
        assert_eq!(
            with.assert_status(0).stdout(),
            without.stdout(),
            "{}",
            with.report()
        );
    }
    let file = scratch.file("seven", 0o644, "from seven\n");
    let pglock = Pglock::on(&server).descriptor(File::open(file).expect("open"), 7);
    let (with, without) = (list(&pglock), list(&pglock.clone().without_pglock()));
    assert!(
        without.stdout().lines().any(|line| line == "7"),
        "{}",
        without.report()
    );
    assert_eq!(
        with.assert_status(0).stdout(),
        without.stdout(),
        "{}",
        with.report()
    );
    pglock
        .sh("cat <&7")
        .run()
        .assert_status(0)
        .assert_stdout("from seven\n");
}
