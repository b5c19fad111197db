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

/// A row of the table of exit statuses.
pub struct Row {
    /// The status, or what it is one of.
    pub status: &'static str,
    /// What ends so; for the man page and the README, as a sentence that has yet to begin with a capital.
    pub when: &'static str,
    /// Its part of the one sentence that the help makes of all.
    pub in_help: &'static str,
}

/// All statuses. The help and the man page are made from this table, and the README is held against it.
pub const STATUSES: &[Row] = &[
    Row {
        status: "the command's own",
        when: "it ran to its end",
        in_help: "the command's own",
    },
    Row {
        status: "128+N",
        when: "signal N ended the command, or ended pglock before the command ran",
        in_help: ", or 128+N if signal N ended it",
    },
    Row {
        status: "0, or --conflict-exit-code",
        when: "the lock was not obtained; the command did not run",
        in_help: "; 0 (or the conflict exit code) if the lock was not obtained",
    },
    Row {
        status: "124",
        when: "the lock was lost and the command was stopped",
        in_help: "; 124 if the lock was lost and the command was stopped",
    },
    Row {
        status: "125",
        when: "pglock itself failed: bad flag or variable, connection, server, lock call; the command did not run",
        in_help: "; 125 if pglock itself failed",
    },
    Row {
        status: "126",
        when: "the command could not be executed",
        in_help: "; 126 if the command could not be executed",
    },
    Row {
        status: "127",
        when: "the command was not found",
        in_help: "; 127 if it was not found",
    },
];

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
    fn each_status_of_pglock_s_own_is_in_the_table_and_the_table_says_no_other() {
        let own = [
            Exit::Lost,
            Exit::Failed,
            Exit::NotExecutable,
            Exit::NotFound,
        ];
        let own = own.map(|exit| exit.status().to_string());
        let rows = STATUSES
            .iter()
            .filter(|row| row.status.parse::<u8>().is_ok());
        let rows: Vec<&str> = rows.map(|row| row.status).collect();
        assert_eq!(rows, own);
        for row in STATUSES {
            let first = row.status.split(',').next().unwrap_or_default();
            assert!(row.in_help.contains(first), "{}", row.in_help);
        }
    }

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
