//! System calls that fail: each call that pglock and its children make fails once, and pglock is killed in each. Whichever
//! it is, no command runs without the lock, nothing is left over, and the end comes soon and is told.
//!
//! `PGLOCK_SYSCALLS=full` takes every one of the calls, and several errors for each; without it those that are made often
//! are represented by a few.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::processes::{self, there_is};
use crate::support::wait::within;
use crate::support::*;

/// How long a run may take whatever fails.
const LONGEST: Duration = Duration::from_secs(10);
/// How many of one process's calls of one name are tried, where not all are.
const SAMPLE: usize = 3;
/// How many runs go on at once.
const WORKERS: usize = 2;

/// A command to tell by that it runs, which ends at the end of its input. It has another process, for the kernel kills the
/// first by itself when pglock dies.
const COMMAND: [&str; 3] = [
    "sh",
    "-c",
    "sleep 1000 >/dev/null 2>&1 & echo ran; read -r line; kill $!; exit 4",
];

/// What cannot fail, or not so that anybody could do anything about it.
const NEVER_FAIL: [&str; 11] = [
    // It has no error: what comes back is the end of the heap, and -ENOMEM would be one.
    "brk",
    "execve",
    // The end of a thread.
    "exit",
    "exit_group",
    // The C library ends a process that it fails.
    "futex",
    "getpid",
    "getppid",
    "restart_syscall",
    "rt_sigreturn",
    "set_robust_list",
    "set_tid_address",
];

/// Whether programs can be traced here: not without the privilege, nor in many a container.
fn can_trace() -> bool {
    if !there_is("strace") {
        return false;
    }
    let tried = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: no permission to trace a program");
    }
    can
}

fn is_full() -> bool {
    std::env::var("PGLOCK_SYSCALLS").is_ok_and(|value| value == "full")
}

/// The errors that a call of this name may have; the first is the one for a short run.
fn errors(call: &str) -> &'static [&'static str] {
    match call {
        "clone" | "clone3" | "fork" => &["EAGAIN", "ENOMEM"],
        "mmap" | "mprotect" | "munmap" | "mremap" | "timerfd_settime" => &["ENOMEM"],
        "openat" | "socket" | "pipe2" | "fcntl" | "timerfd_create" => &["EMFILE", "ENFILE"],
        "dup2" => &["EBUSY", "EMFILE"],
        "poll" | "ppoll" => &["ENOMEM", "EINTR"],
        "read" | "write" => &["EIO", "EINTR", "EAGAIN"],
        "recvfrom" | "sendto" | "recvmsg" | "sendmmsg" => &["ECONNRESET", "ENOMEM", "EINTR"],
        "connect" => &["ECONNREFUSED", "EAGAIN", "EINTR"],
        "wait4" | "close" => &["EINTR"],
        "close_range" => &["ENOSYS"],
        "getdents64" => &["EINVAL", "ENOENT"],
        _ => &["EPERM", "ENOMEM"],
    }
}

/// How often each call is made by a process, those of the time before its `main` apart.
#[derive(Default)]
struct Calls(BTreeMap<String, (usize, usize)>);

impl Calls {
    /// The numbers, from 1, of the calls that `main` makes: all of them, or a sample.
    fn own(&self, whole: bool) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().flat_map(move |(name, &(before, all))| {
            let numbers = (before + 1..=all).enumerate();
            let number = all - before;
            numbers
                .filter(move |(place, _)| whole || is_in_sample(*place, number))
                .map(|(_, number)| (name.as_str(), number))
        })
    }
}

/// Whether the call is among those that stand for all of its name: the first, the last, and some between.
fn is_in_sample(place: usize, of: usize) -> bool {
    of <= SAMPLE || (0..SAMPLE).any(|part| place == part * (of - 1) / (SAMPLE - 1))
}

/// What `strace -f` has written, by process; pglock is the first.
fn calls_of(trace: &Path) -> Vec<Calls> {
    let text = fs::read(trace).expect("read the trace");
    let text = String::from_utf8_lossy(&text);
    let mut pids: Vec<&str> = Vec::new();
    let mut calls: Vec<Calls> = Vec::new();
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let place = pids.iter().position(|other| *other == pid);
        let place = place.unwrap_or_else(|| {
            pids.push(pid);
            calls.push(Calls::default());
            pids.len() - 1
        });
        let Some((name, arguments)) = rest.trim_start().split_once('(') else {
            continue;
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            continue;
        }
        // The first that pglock does.
        if place == 0 && name == "fcntl" && arguments.starts_with("0, F_GETFD") {
            for (before, all) in calls[0].0.values_mut() {
                *before = *all;
            }
        }
        if !NEVER_FAIL.contains(&name) {
            calls[place].0.entry(name.to_owned()).or_default().1 += 1;
        }
    }
    calls
}

/// What goes wrong in a run.
#[derive(Clone, Debug)]
enum Fault {
    /// This call of pglock's fails.
    Own(String, usize, &'static str),
    /// This call fails in pglock and in each of its children that makes it.
    Each(String, usize, &'static str),
    /// All calls of this name do.
    All(String, &'static str),
    /// pglock is killed in this call.
    Killed(String, usize),
}

impl Fault {
    /// The words that have a program suffer it.
    fn words(&self) -> Vec<String> {
        let (call, how) = match self {
            Fault::Own(call, number, error) | Fault::Each(call, number, error) => {
                (call, format!("error={error}:when={number}"))
            }
            Fault::All(call, error) => (call, format!("error={error}")),
            Fault::Killed(call, number) => (call, format!("signal=KILL:when={number}")),
        };
        let trace = format!("trace={call}");
        let inject = format!("inject={call}:{how}");
        let words = match self {
            Fault::Own(..) | Fault::Killed(..) => &STRACE[..],
            Fault::Each(..) | Fault::All(..) => &STRACE_ALL,
        };
        let more = ["-o", "/dev/null", "-e", &trace, "-e", &inject];
        words
            .iter()
            .chain(&more)
            .map(|word| (*word).to_owned())
            .collect()
    }

    /// Whether it has to do with the making of a process.
    fn is_about_children(&self) -> bool {
        const CALLS: [&str; 12] = [
            "chdir",
            "clone",
            "close_range",
            "dup2",
            "fcntl",
            "mmap",
            "pipe2",
            "prctl",
            "rt_sigaction",
            "rt_sigprocmask",
            "setpgid",
            "setsid",
        ];
        match self {
            Fault::Own(call, ..) | Fault::Each(call, ..) | Fault::All(call, ..) => {
                CALLS.contains(&call.as_str())
            }
            Fault::Killed(..) => false,
        }
    }
}

/// Traces a program without its children, and with all of them but what they execute.
const STRACE: [&str; 2] = ["strace", "-qq"];
const STRACE_ALL: [&str; 5] = ["strace", "-qq", "-f", "-b", "execve"];

/// How a command that runs is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By itself.
    Own,
    /// pglock is killed.
    Killed,
    /// The lock is lost.
    Lost,
}

/// A lock and a role of a worker's own, and a session to look at them with.
struct Place<'a> {
    server: &'a Server,
    session: Session,
    number: usize,
}

impl<'a> Place<'a> {
    fn new(server: &'a Server, number: usize) -> Place<'a> {
        server.psql(&format!("create role worker_{number} login"));
        Place {
            server,
            session: server.session(),
            number,
        }
    }

    fn pglock(&self, command: &[&str]) -> Pglock {
        let lock = (self.number + 1).to_string();
        Pglock::at(self.server.port())
            .env("PGLOCK_HOST", "localhost")
            .env("PGLOCK_USER", format!("worker_{}", self.number))
            .flags(["--lockid", &lock, "--ttl", "5", "--grace", "1"])
            // What libpq could not send it takes for sent, and waits for an answer.
            .flags(["--connect-timeout", "3"])
            .command(command)
            .open_input()
    }

    /// What each process of a run calls in which nothing fails; pglock is the first.
    #[track_caller]
    fn calls(&mut self, command: &[&str], end: End) -> Vec<Calls> {
        let scratch = Scratch::new();
        let trace = scratch.path().join("trace");
        let words = STRACE_ALL.map(OsStr::new);
        let mut run = self
            .pglock(command)
            .preceded_by(words.into_iter().chain(["-o".as_ref(), trace.as_os_str()]))
            .spawn();
        let outcome = self.watch(&mut run, end);
        assert_eq!(outcome, Ok(()), "{}", run.stderr());
        calls_of(&trace)
    }

    /// How many have the lock.
    fn holders(&mut self) -> String {
        let lock = self.number + 1;
        self.session.exec(&format!(
            "select count(*) from pg_locks where locktype = 'advisory' and granted and objid = {lock}"
        ))
    }

    fn is_left_alone(&mut self) -> bool {
        let user = format!("worker_{}", self.number);
        let sql = format!("select count(*) from pg_stat_activity where usename = '{user}'");
        self.session.exec(&sql) == "0" && self.holders() == "0"
    }

    /// Has pglock suffer a fault, and tells what is wrong with how it takes it.
    fn suffer(&mut self, command: &[&str], fault: &Fault, end: End) -> Result<(), String> {
        let mut run = self.pglock(command).preceded_by(fault.words()).spawn();
        let outcome = self.watch(&mut run, end);
        let said = run.stderr();
        outcome.map_err(|what| format!("{fault:?}, {end:?}: {what}\n{said}"))
    }

    fn watch(&mut self, run: &mut Running, end: End) -> Result<(), String> {
        let started = within(LONGEST, || {
            (run.stdout().contains("ran") || !run.is_running()).then_some(())
        });
        started.ok_or("neither runs nor fails")?;
        if run.stdout().contains("ran") {
            if self.holders() == "0" && !runners(run).is_empty() {
                return Err("the command runs without the lock".to_owned());
            }
            let is_in_own_group = |pid: &Pid| processes::group(*pid) == Some(run.pid());
            if runners(run).iter().any(is_in_own_group) {
                return Err("the command runs in pglock's group".to_owned());
            }
            self.end(run, end);
        }
        within(LONGEST, || run.status()).ok_or("does not end")?;
        self.look_after(run, end)
    }

    /// Has a command end that runs.
    fn end(&mut self, run: &mut Running, end: End) {
        match end {
            End::Own => run.close_input(),
            End::Killed => {
                for pid in processes::children(run.pid()) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            End::Lost => {
                let user = format!("worker_{}", self.number);
                self.session.exec(&format!(
                    "select pg_terminate_backend(pid, 1000) from pg_stat_activity where usename = '{user}'"
                ));
            }
        }
    }

    /// What is to be seen when pglock has ended.
    fn look_after(&mut self, run: &mut Running, end: End) -> Result<(), String> {
        let status = run.status().expect("a status");
        let is_killed = status.signal() == Some(Signal::SIGKILL as i32);
        if is_killed {
            let freed = within(LONGEST, || (self.holders() == "0").then_some(()));
            freed.ok_or("the lock is not free")?;
            if !runners(run).is_empty() {
                return Err("the command outlives pglock, and the lock".to_owned());
            }
        }
        run.read_to_end();
        let ran = run.stdout().contains("ran");
        let is_right = match status.code() {
            Some(4) => ran && end == End::Own,
            Some(124) => ran,
            Some(125 | 127) => !ran,
            _ => is_killed,
        };
        if !is_right {
            return Err(format!("{status}, and it ran: {ran}"));
        }
        if !ran && run.stderr().contains("Execution finished") {
            return Err("it is said to have run".to_owned());
        }
        let alone = within(LONGEST, || {
            (run.processes().is_empty() && self.is_left_alone()).then_some(())
        });
        alone.ok_or_else(|| {
            let left = run.processes().into_iter().map(processes::name);
            format!("left behind: {:?}", left.collect::<Vec<_>>())
        })
    }
}

/// The processes of the command that run, and are not only stopped.
fn runners(run: &Running) -> Vec<Pid> {
    let mut runners = run.processes();
    runners.retain(|pid| {
        ["sh", "sleep"].contains(&processes::name(*pid).as_str())
            && !matches!(server::state(*pid), None | Some('T' | 'Z' | 'X'))
    });
    runners
}

/// Has several workers try all of it, and says what was wrong with which.
#[track_caller]
fn assert_all<T: Sync>(
    server: &Server,
    trials: &[T],
    attempt: impl Fn(&mut Place, &T) -> Result<(), String> + Sync,
) {
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..WORKERS {
            let (next, wrong, attempt) = (&next, &wrong, &attempt);
            scope.spawn(move || {
                let mut place = Place::new(server, number);
                while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(what) = attempt(&mut place, trial) {
                        wrong.lock().expect("the list").push(what);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("the list");
    let (few, all) = (wrong.len(), trials.len());
    assert!(wrong.is_empty(), "{few} of {all}:\n{}", wrong.join("\n"));
}

/// The faults that calls may have: all of them, or a sample.
fn faults(calls: &[Calls], whole: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (call, number) in calls[0].own(whole) {
        faults.extend(errors_of(call).map(|error| Fault::Own(call.to_owned(), number, error)));
    }
    // Only what does not fail before `main` too.
    let is_later = |call: &str, number| {
        let before = calls[0].0.get(call).map_or(0, |(before, _)| *before);
        number > before
    };
    for (call, number) in calls[1..].iter().flat_map(|calls| calls.own(whole)) {
        if is_later(call, number) {
            faults.extend(errors_of(call).map(|error| Fault::Each(call.to_owned(), number, error)));
        }
    }
    faults
}

/// The errors of this call that are tried.
fn errors_of(call: &str) -> impl Iterator<Item = &'static str> {
    let all = errors(call);
    all.iter()
        .copied()
        .take(if is_full() { all.len() } else { 1 })
}

/// Has each call fail, those that have to do with the making of a process at least.
#[track_caller]
fn assert_safe(end: End, all: bool) {
    let server = Server::builder().tcp().start();
    let calls = Place::new(&server, WORKERS).calls(&COMMAND, end);
    let mut faults = faults(&calls, is_full());
    faults.retain(|fault| all || is_full() || fault.is_about_children());
    assert_all(&server, &faults, |place, fault| {
        place.suffer(&COMMAND, fault, end)
    });
}

#[test]
fn whichever_call_fails_no_command_runs_without_the_lock_and_nothing_is_left() {
    if can_trace() {
        assert_safe(End::Own, true);
    }
}

#[test]
fn whichever_call_fails_the_command_dies_with_pglock() {
    if can_trace() {
        assert_safe(End::Killed, false);
    }
}

#[test]
fn whichever_call_fails_the_command_ends_when_the_lock_is_lost() {
    if can_trace() {
        assert_safe(End::Lost, false);
    }
}

#[test]
fn whichever_call_always_fails_no_command_runs_without_the_lock_and_nothing_is_left() {
    if !can_trace() {
        return;
    }
    let server = Server::builder().tcp().start();
    let calls = Place::new(&server, WORKERS).calls(&COMMAND, End::Lost);
    let mut names: Vec<&String> = calls.iter().flat_map(|calls| calls.0.keys()).collect();
    names.sort();
    names.dedup();
    // Without these no command can be waited for, or ended.
    names.retain(|name| !["wait4", "kill"].contains(&name.as_str()));
    // Only what does not fail before `main` too.
    names.retain(|name| calls[0].0.get(*name).is_none_or(|(before, _)| *before == 0));
    let faults = names
        .into_iter()
        .map(|name| Fault::All(name.clone(), errors(name)[0]));
    let trials: Vec<(Fault, End)> = faults
        .flat_map(|fault| [End::Own, End::Killed, End::Lost].map(|end| (fault.clone(), end)))
        .collect();
    assert_all(&server, &trials, |place, (fault, end)| {
        place.suffer(&COMMAND, fault, *end)
    });
}

#[test]
fn in_whichever_call_pglock_is_killed_nothing_is_left() {
    if !can_trace() {
        return;
    }
    let server = Server::builder().tcp().start();
    let calls = Place::new(&server, WORKERS).calls(&COMMAND, End::Own);
    let own = calls[0]
        .own(is_full())
        .map(|(call, number)| (call.to_owned(), number));
    let faults: Vec<_> = own
        .map(|(call, number)| Fault::Killed(call, number))
        .collect();
    assert_all(&server, &faults, |place, fault| {
        place.suffer(&COMMAND, fault, End::Own)
    });
}

#[test]
fn whichever_call_fails_a_command_that_cannot_be_executed_is_not_said_to_have_run() {
    if !can_trace() {
        return;
    }
    let server = Server::builder().tcp().start();
    let missing = ["/nonexistent/command"];
    let calls = Place::new(&server, WORKERS).calls(&missing, End::Own);
    let mut faults = faults(&calls, true);
    let is_telling = |fault: &Fault| match fault {
        Fault::Own(call, ..) | Fault::Each(call, ..) => call == "read" || call == "write",
        Fault::All(..) | Fault::Killed(..) => false,
    };
    faults.retain(|fault| is_full() || is_telling(fault));
    assert_all(&server, &faults, |place, fault| {
        place.suffer(&missing, fault, End::Own)
    });
}

/// A command with a process that nobody waits for when it has ended: its parent has left the group. So the guardian has to
/// look who of the group lives.
const WITH_ZOMBIE: [&str; 3] = [
    "sh",
    "-c",
    "(sleep 1000 & exec setsid sleep 1000) >/dev/null 2>&1 & echo ran; read -r line",
];

/// Has strace look at a process that runs.
fn attached(words: &[String], to: Pid) -> Child {
    let mut strace = Command::new(&words[0])
        .args(words[1..].iter().filter(|word| *word != "-qq"))
        .args(["-p", &to.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start strace");
    let mut said = String::new();
    let errors = strace.stderr.take().expect("a pipe");
    BufReader::new(errors)
        .read_line(&mut said)
        .expect("a line of strace's");
    assert!(said.contains("attached"), "{said}");
    strace
}

/// Kills pglock while strace looks at its guardian, and tells what is wrong with what the guardian does.
fn bereave(place: &mut Place, words: &[String]) -> Result<(), String> {
    let run = place.pglock(&WITH_ZOMBIE).spawn();
    run.wait_for_output("ran");
    let group = Some(processes::command_of(run.pid()));
    let mut strace = attached(words, processes::guardian_of(run.pid()));
    run.signal(Signal::SIGKILL);
    let freed = within(LONGEST, || (place.holders() == "0").then_some(()));
    // The kernel kills the command itself, but none of the others.
    let mut members = run.processes().into_iter();
    let outlives = members.any(|pid| processes::group(pid) == group && processes::is_alive(pid));
    drop(run);
    strace.wait().expect("wait for strace");
    match freed {
        None => Err("the lock is not free".to_owned()),
        Some(()) if outlives => Err("the command outlives the lock".to_owned()),
        Some(()) => Ok(()),
    }
}

#[test]
fn whichever_call_of_the_guardian_s_fails_the_command_is_dead_before_the_lock_is_free() {
    if !can_trace() {
        return;
    }
    let server = Server::builder().tcp().start();
    let scratch = Scratch::new();
    let trace = scratch.path().join("trace");
    let words = ["strace", "-f", "-o", trace.to_str().expect("UTF-8")].map(str::to_owned);
    bereave(&mut Place::new(&server, WORKERS), &words).expect("a guardian at work");
    let calls = calls_of(&trace);
    for call in ["kill", "getpgid", "read"] {
        assert!(calls[0].0.contains_key(call), "it makes no {call}");
    }
    assert_all(&server, &faults(&calls, is_full()), |place, fault| {
        bereave(place, &fault.words()).map_err(|what| format!("{fault:?}: {what}"))
    });
}

#[test]
fn a_child_whose_pglock_is_killed_before_it_could_ask_to_die_with_it_runs_nothing() {
    if !can_trace() {
        return;
    }
    let server = Server::new();
    let marker = Marker::new();
    // Both sides of the fork stop in it.
    let stopped = ["-e", "trace=setpgid", "-e", "inject=setpgid:signal=STOP"];
    let run = Pglock::on(&server)
        // The kernel sends one to a group that is stopped when nobody is left to continue it.
        .ignoring(Signal::SIGHUP)
        .command(marker.command())
        .preceded_by(STRACE_ALL.iter().chain(&stopped))
        .spawn();
    let pglock = eventually("strace has started pglock", PATIENCE, || {
        let mut children = processes::children(run.pid()).into_iter();
        children.find(|pid| processes::name(*pid) == "pglock")
    });
    let guardian = processes::guardian_of(pglock);
    let child = eventually("the command is about to be started", PATIENCE, || {
        let mut children = processes::children(pglock).into_iter();
        children.find(|pid| *pid != guardian)
    });
    kill(guardian, Signal::SIGKILL).expect("kill the guardian");
    kill(pglock, Signal::SIGKILL).expect("kill pglock");
    processes::wait_for_end("pglock", pglock);
    eventually("the child has ended", PATIENCE, || {
        // Whenever it has stopped.
        let _ = kill(child, Signal::SIGCONT);
        (!processes::is_alive(child)).then_some(())
    });
    assert!(!marker.exists(), "the command has run");
}

#[test]
fn an_answer_to_what_pglock_asks_does_not_keep_a_slow_command_from_being_started() {
    if !can_trace() {
        return;
    }
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    // The command's process asks to die with pglock before it looks for news of the server. pglock sets its timer before it reads
    // the answer to what it asks after the first second.
    let slow = [
        "-e",
        "trace=prctl,timerfd_settime",
        "-e",
        "inject=prctl:delay_enter=1300ms",
        "-e",
        "inject=timerfd_settime:delay_enter=600ms",
    ];
    let run = Pglock::on(&server)
        .flag("--block")
        .command(["echo", "it runs"])
        .preceded_by(STRACE_ALL.iter().chain(&slow))
        .spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    // Who has waited gives its session another name soon.
    session.release(1);
    run.wait().assert_status(0).assert_stdout("it runs\n");
}
