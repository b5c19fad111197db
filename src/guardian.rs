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

pub mod rule;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use self::rule::{Event, Order, State, View};
use crate::moment::Moment;
use crate::sys::{self, Pid, Report, SharedState, Signal};

/// How often to look again where no event tells.
const LOOK: Duration = Duration::from_millis(1);

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
    let mut state = State::Watching;
    let mut event = Event::Look;
    loop {
        // What pglock may have moved meanwhile is looked at each time.
        let group = shared.group();
        let view = View {
            has_group: group.is_some(),
            deadline: shared.deadline(),
            has_fired: shared.has_fired(),
        };
        let kill = || {
            if let Some(group) = group {
                let _ = sys::signal_group(group, Signal::KILL);
            }
        };
        event = match state.on(event, view, sys::now()) {
            Order::Watch(until) => watch(pglock, end, until),
            Order::Fire => {
                shared.set_fired();
                kill();
                Event::Look
            }
            Order::Kill => {
                kill();
                if group.is_some_and(sys::group_is_alive) {
                    sys::pause(LOOK);
                    Event::Look
                } else {
                    Event::GroupGone
                }
            }
            Order::End => return,
        };
    }
}

/// Waits for what the pipe to pglock has to say.
fn watch(pglock: Pid, end: BorrowedFd, until: Option<Moment>) -> Event {
    if !sys::wait_until(end, until).unwrap_or(true) {
        return Event::Look;
    }
    match sys::read_byte(end) {
        Ok(Some(DISMISS)) => Event::Dismissed,
        Ok(Some(_)) => Event::Look,
        Ok(None) => Event::Orphaned,
        // It cannot see the pipe, but whose child it is.
        Err(_) if !sys::has_parent(pglock) => Event::Orphaned,
        Err(_) => {
            sys::pause(LOOK);
            Event::Look
        }
    }
}
