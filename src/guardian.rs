//! The guardian: a process beside pglock that sees to it that the command does not outlive the lock when
//! pglock itself cannot, because it was killed or is frozen.
//!
//! It holds a duplicate of the connection's socket and one end of a pipe whose other end only pglock has.
//! When the pipe ends while a command is running, pglock is dead: the guardian kills the command's group,
//! waits until it is gone, and ends. Only then is the socket closed for the server, which frees the lock.
//! When the lease's last deadline passes and pglock has not moved it, pglock is frozen: the guardian kills
//! the group, for the server is about to free the lock.
//!
//! What leaves the command's process group is out of its reach.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::sys::{self, Pid, Signal, Ward};

/// How long to wait for a killed group to be gone, where no lease says how long the server keeps the
/// lock: it may hang in the kernel, or nobody may wait for its processes.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often to look for a group that is not there yet although its deadline has passed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Tells the guardian to look at the deadline, which it only knows to move forward.
const WAKE: &[u8] = b"w";

/// A guardian on its post. When pglock ends, the group named in its ward is killed; when only this value
/// is dropped, the guardian just ends.
pub struct Guardian {
    pid: Pid,
    life: OwnedFd,
}

impl Guardian {
    /// Posts a guardian over this ward and this connection.
    ///
    /// # Errors
    /// The system has no process or descriptor left.
    pub fn post(ward: &Ward, socket: Option<RawFd>) -> io::Result<Self> {
        let (end, life) = sys::pipe()?;
        // Without a socket it holds one more end of the pipe, which serves as well.
        let socket = socket.unwrap_or(end.as_raw_fd());
        let pid = sys::fork_apart([end.as_raw_fd(), socket], |[end, _socket]| stand(ward, end))?;
        Ok(Self { pid, life })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it is there.
    pub fn is_on_post(&self) -> bool {
        sys::is_running(self.pid)
    }

    /// Has it look at its ward's deadline now; to be called when there was none before.
    pub fn wake(&self) {
        // One that was killed needs no waking; it is replaced.
        let _ = sys::write_all(self.life.as_raw_fd(), WAKE);
    }

    /// Ends it, without waiting until it has ended.
    pub fn retire(&self) {
        if self.is_on_post() {
            sys::kill(self.pid);
        }
    }
}

impl Drop for Guardian {
    /// Waited for, it leaves nothing behind, also where pglock's own parent waits for no orphans.
    fn drop(&mut self) {
        if self.is_on_post() {
            sys::kill(self.pid);
            sys::wait_for(self.pid);
        }
    }
}

/// What the guardian does.
fn stand(ward: &Ward, end: RawFd) {
    loop {
        let deadline = ward.deadline().filter(|_| !ward.has_fired());
        let now = sys::now();
        let alarm = match deadline {
            // A command that would be started now sees for itself that it is late.
            Some(deadline) if deadline <= now && ward.group().is_none() => Some(now + LOOK_AGAIN),
            deadline => deadline,
        };
        if sys::wait_until(end, alarm) {
            match sys::read_byte(end) {
                Some(_) => continue,
                None => break,
            }
        }
        // Looked at again, for pglock may have moved it meanwhile.
        if let Some(group) = ward.group()
            && ward.deadline().is_some_and(|then| then <= sys::now())
        {
            ward.set_fired();
            let _ = sys::signal_group(group, Signal::KILL);
        }
    }
    let until = ward.deadline().unwrap_or(sys::now() + LONGEST_WAIT);
    while let Some(group) = ward.group() {
        // Again and again: a member may be starting another.
        let _ = sys::signal_group(group, Signal::KILL);
        if !sys::group_is_alive(group) || sys::now() > until {
            break;
        }
        sys::pause(Duration::from_millis(1));
    }
}
