//! A terminal, and a person at it: an interactive bash on a pseudo-terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Pid, setsid};

use super::janitor;
use super::server::Server;
use super::wait::PATIENCE;

/// Typed at a terminal, these are signals to what runs in its foreground.
pub const CTRL_C: &str = "\x03";
pub const CTRL_BACKSLASH: &str = "\x1c";
pub const CTRL_Z: &str = "\x1a";
/// Stops the output of the terminal, and lets it go on.
pub const CTRL_S: &str = "\x13";
pub const CTRL_Q: &str = "\x11";
/// The end of the input.
pub const CTRL_D: &str = "\x04";

/// bash's prompt.
const PROMPT: &str = "<prompt>";

/// What has come out of the terminal, and whether it is closed.
type Screen = Arc<(Mutex<(Vec<u8>, bool)>, Condvar)>;

/// A pseudo-terminal with an interactive bash in it, which has the job control that people have. The terminal does
/// not echo what is typed, so that what comes out is what a program has said.
pub struct Pty {
    terminal: Option<Arc<File>>,
    /// Collects what comes out, until the pipe is closed.
    reader: Option<(OwnedFd, JoinHandle<()>)>,
    bash: Child,
    tag: String,
    screen: Screen,
    /// How much of what came out has been looked at.
    seen: usize,
}

impl Pty {
    /// With `pglock` in the PATH, and variables that lead it to `server`.
    #[track_caller]
    pub fn new(server: &Server) -> Pty {
        let host = server.socket_dir().display().to_string();
        Pty::with(&host, server.port())
    }

    /// The same with another way to a server.
    #[track_caller]
    pub fn with(host: &str, port: u16) -> Pty {
        let OpenptyResult { master, slave } = openpty(
            &Winsize {
                ws_row: 24,
                ws_col: 80,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
            None,
        )
        .expect("a pseudo-terminal");
        for end in [&master, &slave] {
            nix::fcntl::fcntl(
                end,
                nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
            )
            .expect("close on exec");
        }
        let mut modes = tcgetattr(&slave).expect("the terminal's modes");
        modes.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&slave, SetArg::TCSANOW, &modes).expect("no echo");

        let tag = janitor::tag();
        let program = Path::new(env!("CARGO_BIN_EXE_pglock"));
        let folder = program.parent().expect("a folder").display();
        let path = std::env::var("PATH").expect("PATH");
        let mut command = Command::new("bash");
        command
            .args(["--norc", "--noprofile", "--noediting", "-i"])
            .env_clear()
            .env("PATH", format!("{folder}:{path}"))
            .env("TERM", "xterm")
            .env("LC_ALL", "C")
            .env("PS1", PROMPT)
            .env("HOME", "/nonexistent")
            .env("INPUTRC", "/nonexistent")
            .env("HISTFILE", "/nonexistent/history")
            .env("PSQLRC", "/nonexistent")
            .env("PGPASSFILE", "/nonexistent")
            .env("PGLOCK_HOST", host)
            .env("PGLOCK_PORT", port.to_string())
            .env("PGLOCK_USER", "postgres")
            .env(janitor::TAG, &tag)
            .current_dir("/")
            .stdin(clone(&slave))
            .stdout(clone(&slave))
            .stderr(clone(&slave));
        for name in ["LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        // SAFETY: the closure runs between fork and exec and makes two system calls.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let bash = command
            .spawn()
            .unwrap_or_else(|e| panic!("the tests at a terminal need bash: {e}"));
        let screen: Screen = Arc::default();
        let terminal = Arc::new(File::from(master));
        let (stopped, stop) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let (book, output) = (Arc::clone(&screen), Arc::clone(&terminal));
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let mut waits = [
                    PollFd::new(output.as_fd(), PollFlags::POLLIN),
                    PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                ];
                let _ = poll(&mut waits, PollTimeout::NONE);
                let goes_on = waits[1].revents().is_none_or(|events| events.is_empty());
                // An error says that nobody has the terminal open any more.
                let count = match goes_on {
                    true => (&*output).read(&mut buffer).unwrap_or(0),
                    false => 0,
                };
                let mut state = book.0.lock().expect("the screen");
                state.0.extend_from_slice(&buffer[..count]);
                state.1 = count == 0;
                book.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        let mut pty = Pty {
            terminal: Some(terminal),
            reader: Some((stop, reader)),
            bash,
            tag,
            screen,
            seen: 0,
        };
        pty.prompt();
        // No core files, and no messages in the middle of others.
        pty.run("ulimit -c 0; set +o notify");
        pty
    }

    /// The process id of bash.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.bash.id() as i32)
    }

    /// Types something.
    #[track_caller]
    pub fn press(&mut self, keys: &str) {
        let mut terminal: &File = self.terminal.as_ref().expect("an open terminal");
        terminal.write_all(keys.as_bytes()).expect("type");
    }

    /// Types a line.
    #[track_caller]
    pub fn line(&mut self, line: &str) {
        self.press(&format!("{line}\r"));
    }

    /// Types a line and waits for the prompt that follows; answers with what came before it.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> String {
        self.line(line);
        self.prompt()
    }

    /// Waits for the next prompt of the shell; answers with what came before it.
    #[track_caller]
    pub fn prompt(&mut self) -> String {
        self.expect(PROMPT)
    }

    /// Waits until this text comes out, after what was looked at before; answers with what came before it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        match self.look_for(text) {
            Some(before) => before,
            None => panic!(
                "the terminal does not say {text:?}; it said {:?} and since then {:?}",
                String::from_utf8_lossy(&self.output()[..self.seen]),
                self.unseen()
            ),
        }
    }

    fn look_for(&mut self, text: &str) -> Option<String> {
        let (lock, changed) = &*self.screen;
        let deadline = Instant::now() + PATIENCE;
        let mut state = lock.lock().expect("the screen");
        loop {
            let new = &state.0[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                let before = String::from_utf8_lossy(&new[..at]).replace('\r', "");
                self.seen += at + text.len();
                return Some(before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = changed.wait_timeout(state, left).expect("the screen").0;
        }
    }

    /// Everything that came out so far.
    fn output(&self) -> Vec<u8> {
        self.screen.0.lock().expect("the screen").0.clone()
    }

    /// What came out and was not looked at yet.
    pub fn unseen(&self) -> String {
        String::from_utf8_lossy(&self.output()[self.seen..]).into_owned()
    }

    /// The process group in the foreground.
    #[track_caller]
    pub fn foreground(&self) -> Pid {
        let terminal = self.terminal.as_ref().expect("an open terminal");
        nix::unistd::tcgetpgrp(terminal).expect("the foreground")
    }

    /// The one pglock that bash has started itself.
    #[track_caller]
    pub fn pglock(&self) -> Pid {
        super::eventually("bash has started pglock", PATIENCE, || {
            let mut children = super::processes::children(self.pid()).into_iter();
            children.find(|pid| super::processes::name(*pid) == "pglock")
        })
    }

    /// Closes the terminal, as when the window is closed or the line breaks.
    pub fn hang_up(&mut self) {
        if let Some((stop, reader)) = self.reader.take() {
            drop(stop);
            let _ = reader.join();
        }
        self.terminal = None;
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        self.hang_up();
        janitor::kill_tagged(&self.tag);
        let _ = self.bash.kill();
        let _ = self.bash.wait();
    }
}

fn clone(descriptor: &OwnedFd) -> OwnedFd {
    descriptor.try_clone().expect("dup")
}
