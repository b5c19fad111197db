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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sys::{self, Pid, Report, SharedState, Signal};

/// How long to wait for a killed group to be gone, where no lease says how long the server keeps the
/// lock: it may hang in the kernel, or nobody may wait for its processes.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often to look again where no event tells.
const LOOK: Duration = Duration::from_millis(1);
/// How often to look for a group that is not there yet although its deadline has passed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long a guardian may take to be there before a command is started. The machine may be busy.
pub const LONG_WAY: Duration = Duration::from_secs(5);
/// How long pglock waits for that while a command runs.
const SHORT_WAY: Duration = Duration::from_millis(200);

/// Tells the guardian to look at the deadline, which it only knows to move forward.
const WAKE: u8 = b'w';
/// Tells it to end.
const DISMISS: u8 = b'd';

/// A guardian. When pglock ends, the group named in their shared state is killed; when only this value
/// is dropped, the guardian just ends.
pub struct Guardian {
    pid: Pid,
    life: OwnedFd,
    /// What it says when it is there, if that was not heard yet.
    report: Option<Report>,
}

impl Guardian {
    /// Starts a guardian over this state and this connection while a command runs, and waits a little until it is there.
    ///
    /// # Errors
    /// The system has no process or descriptor left, or does not let it get there.
    pub fn spawn_settled(shared: &SharedState, socket: Option<BorrowedFd>) -> io::Result<Self> {
        let mut guardian = Self::spawn(shared, socket)?;
        match guardian.settle(SHORT_WAY) {
            // pglock has deadlines to keep. One that fails yet ends, and is replaced.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(guardian),
            result => result.map(|()| guardian),
        }
    }

    /// Starts a guardian over this state and this connection; [`settle`](Self::settle) has to follow before a command is started.
    ///
    /// # Errors
    /// The system has no process or descriptor left.
    pub fn spawn(shared: &SharedState, socket: Option<BorrowedFd>) -> io::Result<Self> {
        let (end, life) = sys::pipe()?;
        // Without a socket it holds one more end of the pipe, which serves as well.
        let socket = socket.unwrap_or(end.as_fd());
        let pglock = sys::own_pid();
        let kept = [end.as_fd(), socket];
        let (pid, report) = sys::fork_detached(kept, |[end, _]| run(shared, pglock, end))?;
        Ok(Self {
            pid,
            life,
            report: Some(report),
        })
    }

    /// Waits until it is there, which it mostly is by now, but not longer than this.
    ///
    /// # Errors
    /// It was killed before, or the system does not let it get there, or it takes longer.
    pub fn settle(&mut self, limit: Duration) -> io::Result<()> {
        if let Some(report) = &self.report {
            report.wait(limit)?;
            self.report = None;
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it is there.
    pub fn is_running(&self) -> bool {
        sys::is_running(self.pid)
    }

    /// Has it look at the shared deadline now; to be called when there was none before.
    pub fn wake(&self) {
        if self.tell(WAKE).is_err() {
            // One that was killed, or that cannot be told, is replaced.
            self.dismiss();
        }
    }

    /// Ends it, without waiting until it has ended.
    pub fn dismiss(&self) {
        if self.is_running() {
            // Where that fails, it is tried again when this value is dropped.
            let _ = sys::kill(self.pid);
        }
    }

    fn tell(&self, word: u8) -> io::Result<()> {
        sys::write_all(&self.life, &[word])
    }
}

impl Drop for Guardian {
    /// Waited for, it leaves nothing behind, also where pglock's own parent waits for no orphans.
    fn drop(&mut self) {
        if self.is_running() && sys::end(self.pid).is_err() {
            // Else it would take the end of the pipe for the end of pglock.
            let _ = self.tell(DISMISS);
        }
    }
}

/// What the guardian does, with its end of the pipe.
fn run(shared: &SharedState, pglock: Pid, end: BorrowedFd) {
    loop {
        let deadline = shared.deadline().filter(|_| !shared.has_fired());
        let now = sys::now();
        let alarm = match deadline {
            // A command that would be started now sees for itself that it is late.
            Some(deadline) if deadline <= now && shared.group().is_none() => Some(now + LOOK_AGAIN),
            deadline => deadline,
        };
        if sys::wait_until(end, alarm).unwrap_or(true) {
            match sys::read_byte(end) {
                Ok(Some(DISMISS)) => return,
                Ok(Some(_)) => continue,
                Ok(None) => break,
                // It cannot see the pipe, but whose child it is.
                Err(_) if !sys::has_parent(pglock) => break,
                Err(_) => sys::pause(LOOK),
            }
        }
        // Looked at again, for pglock may have moved it meanwhile.
        if let Some(group) = shared.group()
            && shared.deadline().is_some_and(|then| then <= sys::now())
        {
            shared.set_fired();
            let _ = sys::signal_group(group, Signal::KILL);
        }
    }
    let until = shared.deadline().unwrap_or(sys::now() + LONGEST_WAIT);
    while let Some(group) = shared.group() {
        // Again and again: a member may be starting another.
        let _ = sys::signal_group(group, Signal::KILL);
        if !sys::group_is_alive(group) || sys::now() > until {
            break;
        }
        sys::pause(LOOK);
    }
}
