//! The command: it runs in a process group of its own, with the environment, the signal mask and the
//! dispositions that pglock was started with, and `PGLOCK_LOCK_HELD=true`.

use std::ffi::{CString, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;

use crate::sys::{self, Change, Child, Program, Signal, Signals};

/// What tells the command, and what it starts, that the lock is held; `consul lock` has
/// `CONSUL_LOCK_HELD`.
const LOCK_HELD: (&str, &str) = ("PGLOCK_LOCK_HELD", "true");

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
    /// Starts a command with this environment. Whether it can be executed shows when it has
    /// [ended](Self::reap).
    ///
    /// # Errors
    /// The system has no process or descriptor left.
    pub fn start(
        words: &[OsString],
        environment: &[CString],
        signals: &Signals,
    ) -> io::Result<Self> {
        let words = words.iter().map(|word| c_string(word.clone().into_vec()));
        let program = Program {
            words: words.collect(),
            environment: with(environment, LOCK_HELD),
        };
        let child = sys::spawn(&program, signals)?;
        Ok(Self { child })
    }

    /// Passes a signal on to the command's group. A group that has ended needs none.
    pub fn signal(&self, signal: Signal) {
        let _ = sys::signal_group(self.child.pid, signal);
        // A stopped process takes these only once it runs again.
        if signal == Signal::TERM || signal == Signal::HUP {
            let _ = sys::signal_group(self.child.pid, Signal::CONT);
        }
    }

    /// How the command ended, if it has.
    pub fn reap(&self) -> Option<End> {
        while let Some((pid, change)) = sys::reap() {
            if pid == self.child.pid && !matches!(change, Change::Stopped(_)) {
                return Some(match self.child.exec_error() {
                    Some(error) => End::NotExecuted(error),
                    None => End::Ran(change),
                });
            }
        }
        None
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

/// The environment with one variable set.
fn with(environment: &[CString], (name, value): (&str, &str)) -> Vec<CString> {
    let entry = format!("{name}={value}");
    let prefix = &entry.as_bytes()[..=name.len()];
    let others = environment
        .iter()
        .filter(|other| !other.as_bytes().starts_with(prefix));
    others
        .cloned()
        .chain([c_string(entry.clone().into_bytes())])
        .collect()
}

/// For text from arguments or the environment, which cannot hold a null byte.
fn c_string(bytes: Vec<u8>) -> CString {
    CString::new(bytes).unwrap_or_default()
}
