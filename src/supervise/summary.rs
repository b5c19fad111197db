//! The last line of a run under `--verbose`: what became of the command, and how long all took.

use crate::exit::Exit;
use crate::moment::{Moment, seconds};
use crate::sys::Change;

/// The times of a run.
pub struct Times {
    /// When pglock was called.
    pub start: Moment,
    /// When it had the lock, and was about to start the command.
    pub obtained: Moment,
    /// When the command was seen to have ended.
    pub ended: Option<Moment>,
}

impl Times {
    /// The line for a command that ended so, now that the lock is given up, if it was not lost.
    pub fn summary(&self, change: Change, is_lost: bool, now: Moment) -> String {
        let status = Exit::of_change(change).status();
        let how = match change {
            Change::Killed(signal) => format!("by {signal}, status {status},"),
            Change::Exited(_) | Change::Stopped(_) | Change::Continued => {
                format!("with status {status}")
            }
        };
        let ended = self.ended.unwrap_or(now);
        let end = match is_lost {
            true => "lost".to_owned(),
            false => format!("given up {} s after the command", seconds(now.since(ended))),
        };
        format!(
            "The command ended {how} after {} s; the lock was obtained in {} s, and {end}.",
            seconds(ended.since(self.obtained)),
            seconds(self.obtained.since(self.start)),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::Signal;

    #[test]
    fn each_time_has_its_place() {
        let at = |seconds| Moment::after_first(Duration::from_secs_f64(seconds));
        let times = Times {
            start: at(100.0),
            obtained: at(100.4),
            ended: Some(at(102.4)),
        };
        for (change, words) in [
            (Change::Exited(3), "with status 3"),
            (Change::Killed(Signal::KILL), "by SIGKILL, status 137,"),
        ] {
            for (is_lost, end) in [(false, "given up 30.0 s after the command"), (true, "lost")] {
                assert_eq!(
                    times.summary(change, is_lost, at(132.4)),
                    format!(
                        "The command ended {words} after 2.0 s; the lock was obtained in 0.4 s, and {end}."
                    )
                );
            }
        }
    }
}
