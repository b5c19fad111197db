//! The controlling terminal.

use super::{Pid, check};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The controlling terminal.
pub struct Terminal {
    descriptor: OwnedFd,
    modes: libc::termios,
}

impl Terminal {
    /// The controlling terminal, if there is one.
    pub fn open() -> Option<Self> {
        let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NOCTTY;
        // SAFETY: the path lives for ever; what is opened, nobody else owns.
        let descriptor = unsafe {
            let descriptor = check(libc::open(c"/dev/tty".as_ptr(), flags)).ok()?;
            OwnedFd::from_raw_fd(descriptor)
        };
        let mut modes = MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: the call fills the structure, for which all zeros are a value too.
        let modes = unsafe {
            check(libc::tcgetattr(descriptor.as_raw_fd(), modes.as_mut_ptr())).ok()?;
            modes.assume_init()
        };
        Some(Self { descriptor, modes })
    }

    /// Whether it is also where the program's input comes from and its output goes to: in a pipeline it
    /// may be for another program, a pager say, to use the terminal.
    pub fn is_input_and_output(&self) -> bool {
        // SAFETY: the calls take numbers only.
        unsafe { libc::isatty(libc::STDIN_FILENO) == 1 && libc::isatty(libc::STDOUT_FILENO) == 1 }
    }

    /// The process group in its foreground.
    pub fn foreground(&self) -> Pid {
        // SAFETY: the call takes a number only.
        Pid(unsafe { libc::tcgetpgrp(self.descriptor.as_raw_fd()) })
    }

    /// Puts a process group into its foreground. Does nothing where the group has ended.
    pub fn give_to(&self, group: Pid) {
        // SAFETY: the call takes numbers only.
        unsafe {
            libc::tcsetpgrp(self.descriptor.as_raw_fd(), group.0);
        }
    }

    /// Puts its modes back as they were when it was opened.
    pub fn restore_modes(&self) {
        // SAFETY: the call reads the structure.
        unsafe {
            libc::tcsetattr(self.descriptor.as_raw_fd(), libc::TCSADRAIN, &self.modes);
        }
    }
}
