//! Signals: which of them reach the command, and what they do when there is no command yet.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::processes::{self, command_of, guardian_of, there_is, wait_for_state};
use crate::support::*;

/// Those that people send to a program.
const FORWARDED: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGTERM,
];

/// Those of them that end a program which does not know them.
const FATAL: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
];

/// A shell and two more, its children, that say what they get, until they get TERM. The two say it at once, the
/// shell itself when they have ended.
const REPORTERS: &str = r#"
report() {
    for signal in HUP INT QUIT USR1 USR2 ALRM WINCH CONT TSTP; do
        trap "echo $1 got $signal >&3" $signal
    done
    trap "echo $1 got TERM >&3; $2" TERM
    echo "$1 is ready" >&3
}
member() {
    report "$1" exit
    while :; do sleep 1000 >/dev/null 2>&1 3>&- & wait $!; done
}
exec 3>&1
report leader :
member first | member second
exit 7
"#;

/// The name of a signal as a shell spells it.
fn short(signal: Signal) -> &'static str {
    &signal.as_str()["SIG".len()..]
}

#[test]
fn a_signal_to_pglock_reaches_the_whole_group_of_the_command() {
    let server = Server::new();
    let run = Pglock::on(&server).sh(REPORTERS).spawn();
    for member in ["leader", "first", "second"] {
        run.wait_for_output(&format!("{member} is ready"));
    }
    for signal in FORWARDED {
        run.signal(signal);
        for member in ["first", "second"] {
            run.wait_for_output(&format!("{member} got {}", short(signal)));
        }
    }
    let output = run.wait();
    output.assert_status(7);
    for signal in FORWARDED {
        for member in ["leader", "first", "second"] {
            let line = format!("{member} got {}", short(signal));
            let times = output.stdout().lines().filter(|said| *said == line).count();
            // TERM, like HUP, is followed by a CONT, for a group that may be stopped.
            let expected = match (signal, member) {
                // A stop and a continue that is not noticed in time cancel each other, see signal(7).
                (Signal::SIGTSTP, "leader") => 0..=1,
                (Signal::SIGCONT, "leader") => 0..=1,
                (Signal::SIGCONT, _) => 1..=3,
                _ => 1..=1,
            };
            assert!(
                expected.contains(&times),
                "{times} times {line}\n{}",
                output.report()
            );
        }
    }
}

#[test]
fn a_real_time_signal_reaches_the_command() {
    let server = Server::new();
    let number = nix::libc::SIGRTMIN() + 3;
    let run = Pglock::on(&server)
        .sh("echo ready; exec sleep 1000")
        .spawn();
    run.wait_for_output("ready");
    let sent = std::process::Command::new("kill")
        .args([format!("-{number}"), run.pid().to_string()])
        .status();
    assert!(sent.expect("start kill").success());
    run.wait().assert_status(128 + number);
}

#[test]
fn the_command_leads_a_group_of_its_own_in_the_session_of_its_caller() {
    let server = Server::new();
    let run = Pglock::on(&server).sh("sleep 1000 | sleep 1000").spawn();
    let command = command_of(run.pid());
    let members = eventually("the pipeline runs", PATIENCE, || {
        let members = processes::children(command);
        let run = members
            .iter()
            .filter(|pid| processes::name(**pid) == "sleep");
        (run.count() == 2).then_some(members)
    });
    for member in members.into_iter().chain([command]) {
        assert_eq!(processes::group(member), Some(command));
        assert_eq!(processes::session(member), processes::session(run.pid()));
    }
    // The harness has made pglock the leader of its own.
    assert_eq!(processes::group(run.pid()), Some(run.pid()));
    let guardian = guardian_of(run.pid());
    assert_ne!(processes::group(guardian), Some(command));
    assert_ne!(processes::group(guardian), Some(run.pid()));
}

#[test]
fn a_signal_ends_the_command_and_its_status_is_pglock_s() {
    let server = Server::new();
    for signal in FATAL {
        let run = Pglock::on(&server)
            .sh("ulimit -c 0; echo ready; sleep 1000 | sleep 1000")
            .spawn();
        run.wait_for_output("ready");
        run.signal(signal);
        let output = run.wait();
        output.assert_status(128 + signal as i32);
        assert!(
            output
                .log()
                .contains(&"Execution finished, exiting and cleaning up lock.".to_owned()),
            "{}",
            output.report()
        );
        assert!(server.holders(1).is_empty(), "{signal}");
    }
}

#[test]
fn without_a_terminal_a_stopped_command_continues_and_ends_as_it_is_told() {
    let server = Server::new();
    for (last, status) in [
        (Signal::SIGCONT, 3),
        (Signal::SIGTERM, 128 + Signal::SIGTERM as i32),
        (Signal::SIGHUP, 128 + Signal::SIGHUP as i32),
    ] {
        let mut run = Pglock::on(&server)
            .open_input()
            .sh("echo ready; read -r line; exit 3")
            .spawn();
        run.wait_for_output("ready");
        let command = command_of(run.pid());
        run.signal(Signal::SIGTSTP);
        wait_for_state("the command", command, "T");
        // Nobody is there who would continue it.
        assert!(processes::is_alive(run.pid()));
        assert_ne!(server::state(run.pid()), Some('T'));
        run.signal(last);
        if last == Signal::SIGCONT {
            wait_for_state("the command", command, "SR");
            run.write("line\n");
        }
        run.wait().assert_status(status);
    }
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let server = Server::new();
    let scratch = Scratch::new();
    // As a cron job or a person would start it; nohup writes to a file where there would be a terminal.
    let mut run = Pglock::on(&server)
        .without_pglock()
        .open_input()
        .dir(scratch.path())
        .command([
            "nohup",
            env!("CARGO_BIN_EXE_pglock"),
            "sh",
            "-c",
            "echo ready; read -r line; echo $line; exit 3",
        ])
        .spawn();
    run.wait_for_output("ready");
    // nohup has become pglock.
    for _ in 0..3 {
        run.signal(Signal::SIGHUP);
    }
    // What is not ignored is passed on, so the others would have been by now.
    run.signal(Signal::SIGWINCH);
    run.write("still here\n");
    run.wait()
        .assert_status(3)
        .assert_stdout("ready\nstill here\n");
}

#[test]
fn an_ignored_signal_does_not_end_a_waiter() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let run = Pglock::on(&server)
        .ignoring(Signal::SIGHUP)
        .ignoring(Signal::SIGINT)
        .flag("--block")
        .sh("echo ran")
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    run.signal(Signal::SIGHUP);
    run.signal(Signal::SIGINT);
    // Neither is one that ends nobody.
    for signal in [
        Signal::SIGWINCH,
        Signal::SIGCONT,
        Signal::SIGCHLD,
        Signal::SIGURG,
    ] {
        run.signal(signal);
    }
    session.release(1);
    run.wait().assert_status(0).assert_stdout("ran\n");
}

#[test]
fn a_signal_ends_one_that_finds_nobody_to_connect_to() {
    let hole = BlackHole::new();
    for signal in FATAL {
        let marker = Marker::new();
        let run = Pglock::at(hole.port()).command(marker.command()).spawn();
        run.wait_for_line("Connecting to PostgreSQL");
        let start = Instant::now();
        run.signal(signal);
        let output = run.wait();
        output.assert_status(128 + signal as i32);
        assert!(start.elapsed() < Duration::from_secs(5), "{signal}");
        assert!(!marker.exists());
    }
}

#[test]
fn a_signal_ends_a_waiter_and_nothing_of_it_stays_on_the_server() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    for signal in FATAL {
        let marker = Marker::new();
        let run = Pglock::on(&server)
            .flag("--block")
            .command(marker.command())
            .spawn();
        eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        run.signal(signal);
        let output = run.wait();
        output.assert_status(128 + signal as i32);
        // Cancelled before pglock ended: a turn in the queue would last up to 900 ms longer.
        assert!(server.waiters(1).is_empty(), "{signal}");
        eventually("no backend is left", PATIENCE, || {
            server.clients().is_empty().then_some(())
        });
        assert!(!marker.exists(), "{signal}");
    }
    assert_eq!(server.holders(1).len(), 1);
}

#[test]
fn a_signal_is_lost_at_no_moment() {
    let server = Server::new();
    // It says that it has started, and from then on what it gets.
    let script = "trap 'echo got it; exit 3' TERM INT HUP USR1; echo started; \
                  while :; do sleep 1000 >/dev/null 2>&1 & wait $!; done";
    let pglock = Pglock::on(&server).sh(script);
    // How long it takes until the command runs, here and now.
    let start = Instant::now();
    let run = pglock.spawn();
    run.wait_for_output("started");
    let usual = start.elapsed();
    drop(run);
    eventually("its lock is free", PATIENCE, || {
        server.clients().is_empty().then_some(())
    });

    let mut random = Random::new();
    let (mut early, mut late) = (0, 0);
    for round in 0..160 {
        let signal = FATAL[[0, 1, 3, 6][round % 4]];
        let run = pglock.spawn();
        let delay = if round % 2 == 0 {
            random.below(usual * 3 / 2)
        } else {
            // Between this line and the first of the command are fork and exec.
            run.wait_for_line("Executing command");
            random.below(Duration::from_millis(2))
        };
        pause(delay);
        run.signal(signal);
        let output = run.wait_within(Duration::from_secs(20));
        let what = || {
            format!(
                "{signal} after {delay:?}, round {round}\n{}",
                output.report()
            )
        };
        let code = output.status.code();
        let number = 128 + signal as i32;
        if !output.stdout().is_empty() {
            late += 1;
            // It may come between the trap and the first word.
            let said = output.stdout();
            let got = said.strip_prefix("started\n").unwrap_or(&said);
            assert_eq!(got, "got it\n", "{}", what());
            assert_eq!(code, Some(3), "{}", what());
        } else {
            early += 1;
            // A process that has not come to its main function yet is simply ended by it.
            let killed = std::os::unix::process::ExitStatusExt::signal(&output.status);
            assert!(
                code == Some(number) || killed == Some(signal as i32),
                "{}",
                what()
            );
        }
        let said = output.stderr().contains("came before the command ran");
        assert!(
            !(said && output.stderr().contains("Executing command")),
            "{}",
            what()
        );
    }
    assert!(early > 0 && late > 0, "{early} early, {late} late");
    eventually("nothing holds or wants the lock", PATIENCE, || {
        server.clients().is_empty().then_some(())
    });
}

#[test]
fn an_alarm_that_the_caller_has_set_rings_for_the_command() {
    if !there_is("perl") {
        return;
    }
    let server = Server::new();
    // The timer of alarm(2) lives on through exec: a poor man's timeout.
    let words = ["perl", "-e", "alarm 1; exec @ARGV or die"];
    let exec = |program: &[&'static str]| {
        let words = words.iter().chain(program).copied();
        Pglock::on(&server)
            .without_pglock()
            .command(words.chain(["sleep", "1000"]))
            .limit(Duration::from_secs(15))
            .run()
    };
    let without = exec(&[]);
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&without.status),
        Some(Signal::SIGALRM as i32),
        "{}",
        without.report()
    );
    exec(&[env!("CARGO_BIN_EXE_pglock")]).assert_status(128 + Signal::SIGALRM as i32);
}

#[test]
fn limits_priority_and_file_mode_mask_are_the_caller_s() {
    let server = Server::new();
    let script = "ulimit -n 200; umask 027; exec nice -n 3 \"$0\" \"$@\"";
    let look = "cat /proc/self/limits; umask; nice; ulimit -S -c; ulimit -H -c";
    let run = |program: &[&'static str]| {
        let words = ["sh", "-c", script]
            .into_iter()
            .chain(program.iter().copied());
        Pglock::on(&server)
            .without_pglock()
            .command(words.chain(["sh", "-c", look]))
            .run()
    };
    let (with, without) = (run(&[env!("CARGO_BIN_EXE_pglock")]), run(&[]));
    assert!(without.assert_status(0).stdout().contains("\n0027\n"));
    with.assert_status(0).assert_stdout(&without.stdout());
}

#[test]
fn a_signal_to_the_command_s_own_process_is_not_pglock_s_business() {
    let server = Server::new();
    let run = Pglock::on(&server)
        .sh("trap 'exit 9' USR1; echo ready; while :; do sleep 1000 >/dev/null 2>&1 & wait $!; done")
        .spawn();
    run.wait_for_output("ready");
    kill(command_of(run.pid()), Signal::SIGUSR1).expect("signal the command");
    run.wait().assert_status(9);
}

/// Waits for a time that is shorter than the system's own pauses can be.
fn pause(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

/// Numbers that are different in every run of the tests.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let now = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970");
        Random(now.as_nanos() as u64 | 1)
    }

    fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        limit.mul_f64((self.0 >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[test]
fn every_process_of_a_group_that_is_told_to_end_does() {
    let server = Server::new();
    let run = Pglock::on(&server)
        .sh("sleep 1000 | (sleep 1000; true) | cat & sleep 1000 & echo ready; wait")
        .spawn();
    run.wait_for_output("ready");
    let members: Vec<Pid> = run
        .processes()
        .into_iter()
        .filter(|pid| processes::group(*pid) != Some(run.pid()))
        .collect();
    assert!(members.len() > 3, "{members:?}");
    run.signal(Signal::SIGTERM);
    let output = run.wait();
    output.assert_status(128 + Signal::SIGTERM as i32);
    for member in members {
        processes::wait_for_end("a member", member);
    }
}

/// What a signal to pglock does.
#[derive(PartialEq)]
enum Fate {
    /// It goes to the command.
    PassedOn,
    /// It goes to the command, and a CONT after it.
    PassedOnWithContinue,
    /// Nothing.
    Dropped,
    /// It stops pglock, and not the command.
    Stops,
    /// It ends pglock, and the guardian kills the command.
    Ends,
}

/// The manual's words on signals.
fn fate(signal: Signal) -> Fate {
    match signal {
        Signal::SIGHUP | Signal::SIGTERM => Fate::PassedOnWithContinue,
        Signal::SIGCHLD | Signal::SIGPIPE | Signal::SIGTTOU | Signal::SIGXFSZ => Fate::Dropped,
        Signal::SIGSTOP | Signal::SIGTTIN => Fate::Stops,
        Signal::SIGKILL
        | Signal::SIGILL
        | Signal::SIGTRAP
        | Signal::SIGABRT
        | Signal::SIGBUS
        | Signal::SIGFPE
        | Signal::SIGSEGV
        | Signal::SIGSYS
        | Signal::SIGXCPU => Fate::Ends,
        _ => Fate::PassedOn,
    }
}

/// A shell that says the numbers of all signals that it gets; its own children's ends are not worth a word.
fn reporter() -> String {
    let numbers = Signal::iterator()
        .filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGCHLD))
        .map(|signal| (signal as i32).to_string());
    format!(
        "for n in {}; do trap \"echo got $n.\" $n; done; echo ready
         while :; do sleep 1000 >/dev/null 2>&1 & wait $!; done",
        numbers.collect::<Vec<_>>().join(" ")
    )
}

#[test]
fn every_signal_does_what_the_readme_says() {
    let server = Server::new();
    let reporter = reporter();
    let got = |signal: Signal| format!("got {}.", signal as i32);
    for signal in Signal::iterator() {
        let fate = fate(signal);
        let words = ["sh", "-c", "ulimit -c 0; exec \"$0\" \"$@\""];
        // The one before may have been killed, and the server be about to notice.
        let program = [
            env!("CARGO_BIN_EXE_pglock"),
            "--block",
            "sh",
            "-c",
            &reporter,
        ];
        let run = Pglock::on(&server)
            .without_pglock()
            .command([&words[..], &program].concat())
            .spawn();
        run.wait_for_output("ready");
        let command = command_of(run.pid());
        run.signal(signal);
        if fate == Fate::Ends {
            let output = run.wait();
            let by = std::os::unix::process::ExitStatusExt::signal(&output.status);
            assert_eq!(by, Some(signal as i32), "{}", output.report());
            assert_eq!(output.stdout(), "ready\n");
            processes::wait_for_end("the command", command);
            continue;
        }
        let mut expected = match fate {
            Fate::PassedOn => vec![signal],
            Fate::PassedOnWithContinue => vec![signal, Signal::SIGCONT],
            Fate::Stops => {
                wait_for_state("pglock", run.pid(), "T");
                assert_ne!(server::state(command), Some('T'), "{signal}");
                run.signal(Signal::SIGCONT);
                vec![Signal::SIGCONT]
            }
            Fate::Dropped | Fate::Ends => vec![],
        };
        for signal in &expected {
            run.wait_for_output(&got(*signal));
        }
        // When it has said the second, it has said all that came before the first.
        for last in [Signal::SIGUSR1, Signal::SIGUSR2] {
            run.signal(last);
            run.wait_for_output(&got(last));
            expected.push(last);
        }
        let expected: BTreeSet<String> = expected.into_iter().map(got).collect();
        let stdout = run.stdout();
        let said = stdout.lines().skip(1).map(str::to_owned);
        assert_eq!(said.collect::<BTreeSet<_>>(), expected, "{signal}");
    }
}

/// A file that whoever opens it waits at, for nobody writes to it.
fn fifo(scratch: &Scratch) -> String {
    let path = scratch.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    path.display().to_string()
}

/// pglock with a service file that it waits at.
fn at_service_file(fifo: &str, marker: &Marker) -> Pglock {
    Pglock::new()
        .env("PGSERVICEFILE", fifo)
        .env("PGSERVICE", "somewhere")
        .command(marker.command())
}

/// Waits until a process sleeps in a call that opens a file.
#[track_caller]
fn wait_for_open(pid: Pid) {
    // openat; a program that is not made for this machine's own system calls has another number.
    eventually("it waits at the file", PATIENCE, || {
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
        let number = call.split_whitespace().next()?.parse().ok();
        (number == Some(nix::libc::SYS_openat)).then_some(())
    });
}

#[test]
fn a_signal_ends_one_that_waits_for_a_file_of_libpq_s() {
    let scratch = Scratch::new();
    let fifo = fifo(&scratch);
    for flags in [
        &[][..],
        &["--connect-timeout", "0"],
        &["--host", "127.0.0.1"],
    ] {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let marker = Marker::new();
            let run = at_service_file(&fifo, &marker).flags(flags).spawn();
            wait_for_open(run.pid());
            let sent = Instant::now();
            run.signal(signal);
            run.wait().assert_status(128 + signal as i32);
            assert!(sent.elapsed() < Duration::from_secs(5), "{signal}");
            assert!(!marker.exists());
        }
    }
    let run = Pglock::new()
        .env("PGSERVICEFILE", &fifo)
        .env("PGSERVICE", "somewhere")
        .flag("--status")
        .spawn();
    wait_for_open(run.pid());
    run.signal(Signal::SIGTERM);
    run.wait().assert_status(128 + Signal::SIGTERM as i32);
}

#[test]
fn the_time_for_connecting_ends_one_that_waits_for_a_file_of_libpq_s() {
    let scratch = Scratch::new();
    let fifo = fifo(&scratch);
    let variable = ("PGCONNECT_TIMEOUT", "1");
    let string = "service=somewhere connect_timeout=1";
    for (flags, variable) in [
        (&["--connect-timeout", "1"][..], None),
        (&["--connect-timeout", "1", "--block"], None),
        (&["--connect-timeout", "1", "--host", "127.0.0.1"], None),
        (&["--wait", "1"], None),
        (&["--wait", "1", "--connect-timeout", "0"], None),
        (&["--database", string], None),
        (&[], Some(variable)),
    ] {
        let marker = Marker::new();
        let mut pglock = at_service_file(&fifo, &marker).flags(flags);
        if let Some((name, value)) = variable {
            pglock = pglock.env(name, value);
        }
        // The deadline is pglock's own, whatever its caller thinks of such signals.
        let ignoring = pglock.clone().ignoring(Signal::SIGALRM);
        for pglock in [pglock, ignoring] {
            let output = pglock.run();
            output.assert_refused(&["service file", "within 1 s"]);
            let enough = Duration::from_secs(1)..Duration::from_secs(5);
            assert!(enough.contains(&output.elapsed), "{}", output.report());
            assert!(!marker.exists());
        }
    }
}

#[test]
fn neither_is_held_up_by_a_certificate() {
    let server = Server::builder().tls("localhost").start();
    let scratch = Scratch::new();
    let pglock = Pglock::at(server.port())
        .env("PGSSLROOTCERT", fifo(&scratch))
        .flags(["--sslmode", "verify-ca", "--connect-timeout"])
        .command(["true"]);
    let run = pglock.clone().flag("0").spawn();
    wait_for_open(run.pid());
    run.signal(Signal::SIGTERM);
    run.wait().assert_status(128 + Signal::SIGTERM as i32);
    let output = pglock.flag("1").run();
    output.assert_failed(&["could not connect", "within 1 s"]);
}

#[test]
fn a_password_file_that_is_none_holds_nobody_up() {
    let server = Server::new();
    let scratch = Scratch::new();
    let output = Pglock::on(&server)
        .env("PGPASSFILE", fifo(&scratch))
        .sh("echo ran")
        .run();
    output.assert_status(0).assert_stdout("ran\n");
}

#[test]
fn an_alarm_that_is_ignored_ends_nobody_that_waits_for_a_file_of_libpq_s() {
    let server = Server::new();
    let scratch = Scratch::new();
    let fifo = fifo(&scratch);
    let run = at_service_file(&fifo, &Marker::new())
        .ignoring(Signal::SIGALRM)
        .sh("echo ran")
        .spawn();
    wait_for_open(run.pid());
    run.signal(Signal::SIGALRM);
    let service = format!(
        "[somewhere]\nhost={}\nport={}\nuser=postgres\n",
        server.socket_dir().display(),
        server.port()
    );
    // libpq reads it once for pglock, and once for itself.
    for _ in 0..2 {
        wait_for_open(run.pid());
        std::fs::write(&fifo, &service).expect("write the service file");
    }
    run.wait().assert_status(0).assert_stdout("ran\n");
}

#[test]
fn a_signal_ends_a_table_that_nobody_reads() {
    let server = Server::new();
    let mut session = server.session();
    session.exec("select count(pg_advisory_lock(key)) from generate_series(1, 2000) key");
    let (_read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let output = std::fs::File::from(write.try_clone().expect("dup"));
    let run = Pglock::on(&server)
        .descriptor(output, 7)
        .without_pglock()
        .command([
            "sh",
            "-c",
            "exec \"$0\" --status >&7",
            env!("CARGO_BIN_EXE_pglock"),
        ])
        .spawn();
    eventually("the pipe is full", PATIENCE, || {
        let mut room = [nix::poll::PollFd::new(
            write.as_fd(),
            nix::poll::PollFlags::POLLOUT,
        )];
        (nix::poll::poll(&mut room, 0u8).expect("poll") == 0).then_some(())
    });
    run.signal(Signal::SIGTERM);
    run.wait().assert_status(128 + Signal::SIGTERM as i32);
}
