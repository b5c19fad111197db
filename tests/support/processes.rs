//! What the kernel says of a process, read from `/proc`.

use std::collections::BTreeSet;
use std::fs;

use nix::unistd::Pid;

use super::pglock::Running;
use super::server;
use super::wait::{PATIENCE, eventually};

/// The name by which the guardian can be told from the command.
const GUARDIAN: &str = "lock-guardian";

/// The children of a process, zombies included.
pub fn children(pid: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().expect("a pid")))
        .collect()
}

/// The name of a process.
pub fn name(pid: Pid) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

/// The words of `/proc/PID/stat` after the name: state, parent, group, session and so on.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let words = stat.rsplit_once(')')?.1.split_whitespace();
    Some(words.map(str::to_owned).collect())
}

/// The process group of a process.
pub fn group(pid: Pid) -> Option<Pid> {
    Some(Pid::from_raw(stat(pid)?.get(2)?.parse().ok()?))
}

/// The processes of a group that are more than zombies.
pub fn members(of: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|entry| Some(Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)))
        .filter(|pid| group(*pid) == Some(of) && is_alive(*pid))
        .collect()
}

/// The session of a process.
pub fn session(pid: Pid) -> Option<Pid> {
    Some(Pid::from_raw(stat(pid)?.get(3)?.parse().ok()?))
}

/// Whether a process exists that is more than a zombie.
pub fn is_alive(pid: Pid) -> bool {
    server::state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Waits until a process is no more, or only a zombie that somebody else has to wait for.
#[track_caller]
pub fn wait_for_end(what: &str, pid: Pid) {
    eventually(&format!("{what} {pid} is gone"), PATIENCE, || {
        (!is_alive(pid)).then_some(())
    });
}

/// Waits until a process is in one of these states: `T` is stopped.
#[track_caller]
pub fn wait_for_state(what: &str, pid: Pid, states: &str) {
    eventually(
        &format!("{what} {pid} is in state {states}"),
        PATIENCE,
        || state(pid).filter(|state| states.contains(*state)),
    );
}

/// The letter for a process's state. One that has called vfork, as dash does for each command, waits in the kernel until
/// the child runs something else: if they are stopped meanwhile, only the child is seen to be.
fn state(pid: Pid) -> Option<char> {
    match server::state(pid)? {
        'D' if children(pid)
            .iter()
            .any(|child| server::state(*child) == Some('T')) =>
        {
            Some('T')
        }
        state => Some(state),
    }
}

/// How often a process has gone to sleep so far, which is how often it has woken up.
pub fn sleeps(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
        .expect("the count of voluntary switches");
    line.trim().parse().expect("a number")
}

/// How long a process has been on a processor in its own right, in hundredths of a second.
pub fn processor_time(pid: Pid) -> u64 {
    let words = stat(pid).expect("a process");
    words[11].parse().expect("a number")
}

/// What a descriptor of a process leads to; `None` where it is closed.
pub fn descriptor(pid: Pid, number: i32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
    Some(link.display().to_string())
}

/// The numbers of the open descriptors of a process.
pub fn descriptors(pid: Pid) -> BTreeSet<i32> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The guardian of a pglock. Waits for it to be posted.
#[track_caller]
pub fn guardian_of(pglock: Pid) -> Pid {
    eventually("the guardian is on its post", PATIENCE, || {
        let mut children = children(pglock).into_iter();
        children.find(|pid| name(*pid) == GUARDIAN && is_alive(*pid))
    })
}

/// The command of a pglock. Waits until it is executed.
#[track_caller]
pub fn command_of(pglock: Pid) -> Pid {
    eventually("the command runs", PATIENCE, || {
        let mut children = children(pglock).into_iter();
        children.find(|pid| !["pglock", GUARDIAN].contains(&name(*pid).as_str()) && is_alive(*pid))
    })
}

/// Whether `pid` is a zombie among what this pglock has started.
pub fn zombies_of(running: &Running) -> Vec<Pid> {
    let mut children = children(running.pid());
    children.retain(|pid| !is_alive(*pid));
    children
}

/// Whether a program is in the PATH. Where it is not, there is nothing to test.
pub fn there_is(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    });
    if !found {
        eprintln!("skipped: there is no {program}");
    }
    found
}
