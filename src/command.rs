//! The command: it runs in a process group of its own, with the environment, the signal mask and the
//! dispositions that pglock was started with, and `PGLOCK_LOCK_HELD=true`.

use std::ffi::{CString, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;

use crate::sys::{self, Change, Child, Pid, Program, Signal, Signals};

/// What tells the command, and what it starts, that the lock is held; `consul lock` has
/// `CONSUL_LOCK_HELD`.
const LOCK_HELD: (&str, &str) = ("PGLOCK_LOCK_HELD", "true");

/// Where the command finds its fencing token.
const TOKEN: &str = "PGLOCK_TOKEN";

/// A command that has been started.
pub struct Command {
    child: Child,
}

/// How a command ended.
pub enum End {
    /// It ran, and this is what became of it.
    Ran(Change),
    /// It could not be executed.
    NotExecuted(io::Error),
}

impl Command {
    /// Starts a command with this environment, and the token if there is one. `prepare` is called in the new
    /// process, see [`sys::spawn`]. Whether the command could be executed shows when it has ended.
    ///
    /// # Errors
    /// The system has no process or descriptor left.
    pub fn start(
        words: &[OsString],
        mut environment: Vec<CString>,
        token: Option<u64>,
        signals: &Signals,
        prepare: impl FnOnce(Pid) -> io::Result<()>,
    ) -> io::Result<Self> {
        let words = words
            .iter()
            .map(|word| sys::c_string(word.clone().into_vec()));
        set(&mut environment, LOCK_HELD.0, Some(LOCK_HELD.1));
        // What pglock itself was given is the token of another lock.
        let token = token.map(|token| token.to_string());
        set(&mut environment, TOKEN, token.as_deref());
        let program = Program {
            words: words.collect(),
            environment,
        };
        let child = sys::spawn(&program, signals, prepare)?;
        Ok(Self { child })
    }

    /// Its process id, and that of its process group.
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Passes a signal on to the command's group, which takes most of them only once it runs again if it
    /// is stopped. A group that has ended needs none.
    pub fn send(&self, signal: Signal) {
        let _ = sys::signal_group(self.child.pid, signal);
    }

    /// Kills the command's group.
    ///
    /// # Errors
    /// There is no such group any more, or all its processes have become another user's.
    pub fn kill(&self) -> io::Result<()> {
        sys::signal_group(self.child.pid, Signal::KILL)
    }

    /// Whether a process of its group is left.
    pub fn has_members(&self) -> bool {
        sys::group_is_alive(self.child.pid)
    }

    /// What its last change of state, by which it ended, means.
    pub fn end(&self, change: Change) -> End {
        match self.child.exec_error() {
            Some(error) => End::NotExecuted(error),
            None => End::Ran(change),
        }
    }
}

/// `[sleep 2]`, as the log shows a command.
pub struct Words<'a>(pub &'a [OsString]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(|word| word.to_string_lossy()).collect();
        write!(f, "[{}]", words.join(" "))
    }
}

/// Sets a variable of an environment, or removes it.
fn set(environment: &mut Vec<CString>, name: &str, value: Option<&str>) {
    let beginning = format!("{name}=");
    environment.retain(|other| !other.as_bytes().starts_with(beginning.as_bytes()));
    if let Some(value) = value {
        environment.push(sys::c_string(beginning + value));
    }
}
