//! The exit statuses of pglock, after the conventions of the shell and of timeout(1).

use std::io;

use crate::sys::{Change, Signal};

/// How a run of pglock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command ran and ended with this status; also the status chosen for a lock that was not
    /// obtained.
    Status(u8),
    /// This signal ended the command, or pglock before the command ran.
    Signal(Signal),
    /// The lock was lost, and the command was stopped.
    Lost,
    /// pglock itself failed; the command did not run.
    Failed,
    /// The command could not be executed.
    NotExecutable,
    /// The command was not found.
    NotFound,
}

impl Exit {
    /// The status for the shell.
    pub fn status(self) -> u8 {
        match self {
            Self::Status(status) => status,
            Self::Signal(signal) => signal.exit_status(),
            Self::Lost => 124,
            Self::Failed => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }

    /// For a command that could not be executed.
    pub fn of_exec_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            // None of the system's: it is about pglock's own part in it.
            io::ErrorKind::Other => Self::Failed,
            _ => Self::NotExecutable,
        }
    }

    /// For a command that has ended.
    pub fn of_change(change: Change) -> Self {
        match change {
            Change::Exited(status) => Self::Status(status),
            Change::Killed(signal) | Change::Stopped(signal) => Self::Signal(signal),
            // No end, and so no success.
            Change::Continued => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_command_that_exited_with_0_is_a_success() {
        for change in [
            Change::Exited(1),
            Change::Killed(Signal::KILL),
            Change::Stopped(Signal::STOP),
            Change::Continued,
        ] {
            assert_ne!(Exit::of_change(change).status(), 0, "{change:?}");
        }
        assert_eq!(Exit::of_change(Change::Exited(0)).status(), 0);
    }
}
