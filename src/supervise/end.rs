//! The end of a run: the lock is given up, the terminal taken back, and what became of the command becomes pglock's own end.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Supervisor;
use super::link::Wire;
use super::start::Obstacle;
use crate::command::End;
use crate::exit::Exit;
use crate::held::Held;
use crate::lock;
use crate::sys::{self, Change, Signal, Signals};
use crate::text;

/// Gives the lock up without having run the command.
pub fn give_up(mut held: Held, signals: &Signals, exit: Exit) -> Exit {
    lock::release(&mut held.session, held.lock, signals, || {
        held.guardian.dismiss();
    });
    exit
}

/// Whether a command looks like what only a shell understands: a whole line in one word, or a variable before the program.
fn is_line_of_shell(command: &[OsString]) -> bool {
    let is_line = |byte: &u8| byte.is_ascii_whitespace() || b"|&;<>$`".contains(byte);
    match command {
        [] => false,
        [word] if word.as_bytes().iter().any(is_line) => true,
        [word, ..] => word.as_bytes().contains(&b'='),
    }
}

impl Supervisor<'_> {
    /// Gives the lock up, and tells how pglock ends.
    pub(super) fn finish(mut self) -> Exit {
        let was_frozen = self.state.is_frozen();
        for effect in self.state.finish() {
            let _ = self.perform(effect);
        }
        self.shared.set_group(None);
        let ended = self.state.ended();
        if ended.is_some() {
            self.take_terminal_back();
        }
        let is_lost = self.state.lock_is_lost();
        // What was lost after the command's end has not stopped it.
        let was_stopped = is_lost && self.config.kill_on_loss && !self.state.is_holding();
        let exit = match ended.map(|change| self.command.end(change)) {
            Some(End::NotExecuted(error)) => self.not_executed(&error),
            Some(End::Ran(_)) | None if was_stopped => {
                if !self.out_of_reach && ended.is_some() {
                    self.log.info("The command was stopped.");
                }
                Exit::Lost
            }
            Some(End::Ran(change)) => {
                match change {
                    Change::Killed(signal) if was_frozen => self.log.error(format_args!(
                        "{signal} has ended the command while it was stopped, before it was known what had become \
                         of the lock"
                    )),
                    _ => self
                        .log
                        .info("Execution finished, exiting and cleaning up lock."),
                }
                Exit::of_change(change)
            }
            None => Exit::Lost,
        };
        let guardian = &self.guardian;
        let dismiss = || {
            if let Some(guardian) = guardian {
                guardian.dismiss();
            }
        };
        if let Wire::Up(session, _) = &mut self.wire
            && !lock::release(session, self.lock, self.signals, dismiss)
            && !is_lost
        {
            self.log.error(
                "could not release the lock: the server did not answer, and frees it when it notices that \
                 the session is gone",
            );
        }
        if let Some(change) = ended
            && let End::Ran(_) = self.command.end(change)
        {
            self.log
                .detail(self.times.summary(change, is_lost, sys::now()));
        }
        if let Some(change @ Change::Killed(signal)) = ended
            && self.was_typed(change)
        {
            // It was meant for the calling script as well.
            sys::signal_own_group(signal);
        }
        exit
    }

    pub(super) fn not_executed(&self, error: &io::Error) -> Exit {
        if let Some(obstacle) = Obstacle::of_error(error) {
            self.log.error(obstacle.message());
            return Exit::Failed;
        }
        let program = &self.config.command[0];
        let is_path = program.as_bytes().contains(&b'/');
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        let hint = if is_missing && is_path && Path::new(program).exists() {
            "; it is there, so what is missing is the interpreter that its first line names"
        } else if is_missing && is_line_of_shell(&self.config.command) {
            "; pglock runs a program and no shell: a line of shell goes as pglock sh -c '...'"
        } else {
            ""
        };
        self.log.error(format_args!(
            "could not execute {:?}: {}{hint}",
            program.to_string_lossy(),
            text::reason(error)
        ));
        Exit::of_exec_error(error)
    }

    /// Whether the signal that has ended the command was typed at the terminal.
    pub(super) fn was_typed(&self, change: Change) -> bool {
        self.had_terminal && matches!(change, Change::Killed(Signal::INT | Signal::QUIT))
    }

    /// Gives the foreground back to pglock's own group. A command that a signal has ended may have left the terminal in any
    /// mode.
    pub(super) fn take_terminal_back(&self) {
        let Some(terminal) = self
            .terminal
            .filter(|terminal| terminal.foreground() == self.command.pid())
        else {
            return;
        };
        terminal.give_to(sys::own_group());
        if let Some(Change::Killed(_)) = self.state.ended() {
            terminal.restore_modes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_shell_is_told_from_a_program() {
        for (words, is_line) in [
            (&["echo hello"][..], true),
            (&["a|b"], true),
            (&["a&&b"], true),
            (&["$HOME/job"], true),
            (&["A=1", "job"], true),
            (&["A=1"], true),
            (&["job"], false),
            (&["/opt/job"], false),
            (&["my job", "x"], false),
            (&["job", "A=1", "a|b"], false),
            (&[], false),
        ] {
            let command: Vec<OsString> = words.iter().map(OsString::from).collect();
            assert_eq!(is_line_of_shell(&command), is_line, "{words:?}");
        }
    }
}
