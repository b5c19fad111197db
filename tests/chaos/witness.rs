//! The witness: what the command does with it, and the scripts that are run as commands.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::libc;

/// The descriptor on which the command and all its children have the witness file.
const WITNESS: i32 = 9;

/// The command: `sh script helper dir run flavour tenths`.
pub const SCRIPT: &str = r#"
unset LD_PRELOAD
exec 9>>"$2/witness"
"$1" claim "$2/log" "$3"
work() { n=0; while [ $n -lt "$1" ]; do sleep 0.1; n=$((n + 1)); done; }
case $4 in
plain) work "$5" ;;
child) work "$5" & wait ;;
children) work "$5" & work "$5" & (work "$5" & wait) & wait ;;
deaf-child) (trap '' TERM; work "$5") & wait ;;
deaf-children) (trap '' TERM; work "$5" & work "$5" & wait) & work "$5" & wait ;;
deaf) trap '' TERM; work "$5" & wait ;;
polite) trap 'sleep 0.3; exit 3' TERM; work "$5" & wait ;;
esac
"$1" end "$2/log" "$3"
"#;

pub const FLAVOURS: [&str; 7] = [
    "plain",
    "child",
    "children",
    "deaf-child",
    "deaf-children",
    "deaf",
    "polite",
];

/// A claimant that has not looked for so long was stopped.
const PAUSE: Duration = Duration::from_millis(100);

/// The time since the machine was started, which is one for all processes.
pub fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the structure.
    #[allow(unsafe_code)]
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
    }
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Takes the witness for the caller and its relatives; false if somebody else has it.
fn take() -> bool {
    // SAFETY: the call takes numbers. The lock belongs to the open file, so it stays when this process ends.
    #[allow(unsafe_code)]
    unsafe {
        libc::flock(WITNESS, libc::LOCK_EX | libc::LOCK_NB) == 0
    }
}

/// The program when a command calls it: `claim log run` at its beginning, `end log run` at its end.
pub fn main(words: &[String]) -> ExitCode {
    let [what, log, run] = words else {
        return ExitCode::from(2);
    };
    match what.as_str() {
        "claim" => {
            wait(log, run);
            let group = nix::unistd::getpgrp().to_string();
            fs::write(holder(log), group).expect("write down the holder");
            note(log, "claim", run, now());
        }
        _ => note(log, "end", run, now()),
    }
    ExitCode::SUCCESS
}

/// Where the process group stands that has the witness.
fn holder(log: &str) -> String {
    format!("{log}.holder")
}

/// Takes the witness, however long that takes, and notes each time in which two commands ran. One that is stopped
/// overlaps with nobody.
fn wait(log: &str, run: &str) {
    let mut overlaps = false;
    let mut last = now();
    while !take() {
        let time = now();
        if overlaps && time - last > PAUSE {
            // It is the caller that was stopped.
            note(log, "over", run, last);
            overlaps = false;
        }
        last = time;
        let runs = holder_runs(log);
        if runs != overlaps {
            note(log, if runs { "overlap" } else { "over" }, run, time);
            overlaps = runs;
        }
        thread::sleep(Duration::from_micros(500));
    }
    if overlaps {
        let time = now();
        // Here, too, the caller may have been stopped, or not have got its turn.
        note(
            log,
            "over",
            run,
            if time - last > PAUSE { last } else { time },
        );
    }
}

/// Whether any process of the group that has the witness is running; also where it is not known which that is.
fn holder_runs(log: &str) -> bool {
    let group = fs::read_to_string(holder(log)).unwrap_or_default();
    let processes = fs::read_dir("/proc").expect("list /proc");
    let members: Vec<Member> = processes
        .filter_map(|process| {
            let process = process.ok()?;
            let stat = fs::read_to_string(process.path().join("stat")).ok()?;
            let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let [state, parent, of, ..] = words[..] else {
                return None;
            };
            (of == group).then(|| Member {
                pid: process.file_name().to_string_lossy().into_owned(),
                parent: parent.to_owned(),
                state: state.to_owned(),
            })
        })
        .collect();
    let is_stopped = |member: &Member| matches!(member.state.as_str(), "T" | "t");
    // A shell that is stopped between vfork and exec waits in the kernel for its child, and only that is seen to be
    // stopped.
    let waits = |member: &Member| {
        let mut others = members.iter();
        member.state == "D" && others.any(|other| other.parent == member.pid && is_stopped(other))
    };
    let is_gone = |member: &Member| matches!(member.state.as_str(), "Z" | "X");
    members.is_empty()
        || members
            .iter()
            .any(|member| !is_stopped(member) && !waits(member) && !is_gone(member))
}

/// A process of the group, as `/proc` tells of it.
struct Member {
    pid: String,
    parent: String,
    state: String,
}

fn note(log: &str, what: &str, run: &str, time: Duration) {
    let line = format!("{what} {run} {}\n", time.as_nanos());
    // One write to a file that is open for appending: lines of different processes do not mix.
    let mut log = File::options()
        .append(true)
        .create(true)
        .open(Path::new(log))
        .expect("open the log");
    log.write_all(line.as_bytes()).expect("write to the log");
}
