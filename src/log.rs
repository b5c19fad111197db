//! Log lines on standard error: `2018/09/05 11:17:39 text`, local time.
//!
//! Logging never fails and never waits: a full disk, a closed pipe or a reader that has stopped
//! reading must not hold up the one thread that keeps the lock alive. A line that cannot be written
//! now is dropped.

use std::fmt::Display;

use crate::sys;
use crate::text;

/// The longest line, in bytes: what servers, hosts and users say may be of any length.
const LONGEST: usize = 2000;

/// How much to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors.
    Quiet,
    /// What happens.
    Normal,
    /// Also to whom and how.
    Verbose,
}

/// Writes what the chosen verbosity lets through.
#[derive(Clone, Copy)]
pub struct Log {
    verbosity: Verbosity,
}

impl Log {
    /// A log of this verbosity.
    pub fn new(verbosity: Verbosity) -> Self {
        Self { verbosity }
    }

    /// Whether [`detail`](Self::detail) says anything.
    pub fn is_verbose(self) -> bool {
        self.verbosity >= Verbosity::Verbose
    }

    /// Says what happens, unless `--quiet`.
    pub fn info(self, text: impl Display) {
        if self.verbosity >= Verbosity::Normal {
            write(&line(sys::wall_clock(), text));
        }
    }

    /// Says more of it, under `--verbose`.
    pub fn detail(self, text: impl Display) {
        if self.is_verbose() {
            write(&line(sys::wall_clock(), text));
        }
    }

    /// Says what went wrong, always.
    pub fn error(self, text: impl Display) {
        write(&error_line(sys::wall_clock(), text));
    }
}

/// The line that [`Log::error`] would write at `time`, in seconds since 1970.
pub fn error_line(time: i64, text: impl Display) -> String {
    line(time, format_args!("pglock: {text}"))
}

/// One line, whatever the text holds.
fn line(time: i64, text: impl Display) -> String {
    let stamp = sys::local_time(time);
    let room = LONGEST.saturating_sub(stamp.len() + 2);
    format!("{stamp} {}\n", text::line(&text.to_string(), room))
}

/// In pieces that a pipe takes at once if it takes anything, see pipe(7); once it does not, the rest is
/// dropped.
fn write(line: &str) {
    for piece in line.as_bytes().chunks(sys::PIPE_BUF) {
        if !sys::is_writable_now(sys::stderr()) {
            return;
        }
        let _ = sys::write_all(sys::stderr(), piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_line_and_has_an_end() {
        let line = line(0, "x".repeat(24_000_000));
        assert_eq!(line.len(), LONGEST);
        assert!(line.ends_with("x...\n"));
        assert!(error_line(0, "a\nb").ends_with(" pglock: a b\n"));
    }
}
