//! Processes and process groups: who lives, and what became of them.

use super::{Signal, check};
use std::fmt;
use std::io;
use std::ptr;

/// The number of a process, or of the process group that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pid(pub(super) libc::pid_t);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The group of which pglock itself is a member.
pub fn own_group() -> Pid {
    // SAFETY: the call takes nothing and cannot fail.
    Pid(unsafe { libc::getpgrp() })
}

/// Whether a process group has a member that has not ended. One that has, and that nobody has waited for
/// yet, is still a member to the kernel; where `/proc` can tell the two apart, it does not count here. What cannot be
/// told counts as alive.
pub fn group_is_alive(leader: Pid) -> bool {
    // SAFETY: signal 0 is only a question.
    match check(unsafe { libc::kill(-leader.0, 0) }) {
        Ok(_) => live_members(leader).unwrap_or(true),
        // All that are left have become other users', whom `/proc` may hide from us.
        Err(error) => error.raw_os_error() != Some(libc::ESRCH),
    }
}

/// Looks for a live member of a group in `/proc`, which only Linux has in this form; see proc(5). `None` where it does
/// not show all processes.
pub(super) fn live_members(leader: Pid) -> Option<bool> {
    // In a PID namespace it may be the host's, with other numbers.
    let own = std::fs::read_link("/proc/self").ok()?;
    if own.as_os_str() != std::process::id().to_string().as_str() {
        return None;
    }
    let mut shows_all = false;
    for entry in std::fs::read_dir("/proc").ok()? {
        let name = entry.ok()?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if is_live_member(leader, Pid(pid)) {
            return Some(true);
        }
        // The first is always there, and mostly root's: where `hidepid` hides the processes of others, it is missing.
        shows_all |= pid == 1;
    }
    shows_all.then_some(false)
}

/// Whether a process of `/proc` is a member of a group and has not ended.
pub(super) fn is_live_member(leader: Pid, pid: Pid) -> bool {
    // Asked first, for the kernel tells it of any process, also where `/proc` does not let us look at it.
    // SAFETY: the call takes a number only.
    match check(unsafe { libc::getpgid(pid.0) }) {
        Ok(group) if group != leader.0 => return false,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return false,
        _ => {}
    }
    match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => tells_of_live_member(&stat, leader),
        Err(error) => !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

/// Whether the line of `/proc/PID/stat` is that of a member of a group that has not ended, as one counts that is
/// not understood.
pub(super) fn tells_of_live_member(stat: &[u8], leader: Pid) -> bool {
    // The name, in parentheses, may hold anything, half a letter too, for it is cut off after 15 bytes. What follows is
    // state, parent and group.
    let after_name = stat.iter().rposition(|byte| *byte == b')');
    let rest = after_name.and_then(|end| str::from_utf8(&stat[end + 1..]).ok());
    let mut fields = rest.unwrap_or_default().split_ascii_whitespace();
    let state = fields.next();
    let mut number = |skipped| fields.nth(skipped)?.parse::<i32>().ok();
    // One whose first thread has ended looks as if it had ended too, and may run on in others.
    let (Some(group), Some(threads)) = (number(1), number(14)) else {
        return true;
    };
    let has_ended = matches!(state, Some("Z" | "X")) && threads <= 1;
    group == leader.0 && !has_ended
}

/// Sends a signal to every process of a group.
///
/// # Errors
/// There is no such group any more, or none of its processes may be signalled.
pub fn signal_group(leader: Pid, signal: Signal) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::kill(-leader.0, signal.0) }).map(drop)
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It ended by itself, with this status.
    Exited(u8),
    /// A signal ended it.
    Killed(Signal),
    /// A signal stopped it.
    Stopped(Signal),
    /// It was continued.
    Continued,
}

/// A child whose state has changed, `None` where none has.
pub fn reap() -> Option<(Pid, Change)> {
    let mut status = 0;
    // SAFETY: the call fills the number.
    let pid = unsafe {
        libc::waitpid(
            -1,
            &mut status,
            libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED,
        )
    };
    if pid <= 0 {
        return None;
    }
    let change = if libc::WIFCONTINUED(status) {
        Change::Continued
    } else if libc::WIFSTOPPED(status) {
        Change::Stopped(Signal(libc::WSTOPSIG(status)))
    } else if libc::WIFSIGNALED(status) {
        Change::Killed(Signal(libc::WTERMSIG(status)))
    } else {
        Change::Exited(libc::WEXITSTATUS(status) as u8)
    };
    Some((Pid(pid), change))
}

/// Whether a child is still running, as one is that the system says nothing of. One that has ended is waited for.
pub fn is_running(child: Pid) -> bool {
    // SAFETY: the call takes numbers and a null pointer, which asks for no status.
    match check(unsafe { libc::waitpid(child.0, ptr::null_mut(), libc::WNOHANG) }) {
        Ok(pid) => pid == 0,
        Err(error) => error.raw_os_error() != Some(libc::ECHILD),
    }
}

/// Kills a child; [`end`] has to follow.
///
/// # Errors
/// It may not be signalled.
pub fn kill(child: Pid) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::kill(child.0, libc::SIGKILL) }).map(drop)
}

/// Kills a child that was not waited for yet, and waits for its end.
///
/// # Errors
/// It may not be signalled. Then it is not waited for either.
pub fn end(child: Pid) -> io::Result<()> {
    kill(child)?;
    // SAFETY: as in `is_running`.
    while unsafe { libc::waitpid(child.0, ptr::null_mut(), 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    Ok(())
}

/// pglock's own process id.
pub fn own_pid() -> Pid {
    // SAFETY: the call takes nothing and cannot fail.
    Pid(unsafe { libc::getpid() })
}

/// Whether the parent of this process is still the one that had this number for itself.
pub fn has_parent(parent: Pid) -> bool {
    // SAFETY: the call takes nothing and cannot fail.
    let now = unsafe { libc::getppid() };
    // One in another PID namespace has no number here.
    now == parent.0 || now == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_tells_a_live_member_of_a_group_whatever_its_name() {
        let line = |name: &[u8], state: &str, group: i32, threads: i32| {
            let rest =
                format!(") {state} 1 {group} 9 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 8 0\n");
            [b"17 (", name, rest.as_bytes()].concat()
        };
        let leader = Pid(7);
        let names: [&[u8]; 5] = [b"sleep", b"a) Z 1 8", b"\xd0\xb1\xd0", b"", b"(\n\xff"];
        for name in names {
            for (state, group, threads, lives) in [
                ("S", 7, 1, true),
                ("T", 7, 1, true),
                ("S", 8, 1, false),
                ("Z", 7, 1, false),
                ("Z", 7, 0, false),
                ("X", 7, 0, false),
                ("Z", 7, 2, true),
                ("Z", 8, 2, false),
            ] {
                let line = line(name, state, group, threads);
                assert_eq!(
                    tells_of_live_member(&line, leader),
                    lives,
                    "{}",
                    String::from_utf8_lossy(&line)
                );
            }
        }
    }

    #[test]
    fn a_line_of_proc_that_is_not_understood_counts_as_alive() {
        for line in [
            "",
            "17",
            "17 (a",
            "17 (a) Z 1 7",
            "17 (a) Z 1 x",
            "17 (a) \u{e9}",
        ] {
            assert!(tells_of_live_member(line.as_bytes(), Pid(7)), "{line:?}");
        }
    }
}
