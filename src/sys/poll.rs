//! Waiting for descriptors, and for moments.

use super::{check, now};
use crate::moment::Moment;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
#[cfg(target_os = "linux")]
use std::os::fd::{FromRawFd, OwnedFd};
#[cfg(target_os = "linux")]
use std::ptr;
use std::time::Duration;

/// Whether a write of a line would not block; not where the system does not say so.
pub fn is_writable_now(descriptor: impl AsFd) -> bool {
    let mut waits = [Wait::write(descriptor.as_fd())];
    poll(&mut waits, Some(Duration::ZERO)).is_ok() && waits[0].ready
}

/// Whether a read would not block: there is something to read, or the end, or the system does not say.
pub fn is_readable_now(descriptor: impl AsFd) -> bool {
    let mut waits = [Wait::read(descriptor.as_fd())];
    poll_once(&mut waits, Some(Duration::ZERO)).is_err() || waits[0].ready
}

/// One descriptor to wait for.
pub struct Wait<'fd> {
    /// `None` where only the timeout ends the wait.
    descriptor: Option<BorrowedFd<'fd>>,
    events: i16,
    /// Set by [`poll`]: what is waited for is there, or the descriptor has failed, which a read or a
    /// write will tell.
    pub ready: bool,
}

impl<'fd> Wait<'fd> {
    /// For something to read.
    pub fn read(descriptor: BorrowedFd<'fd>) -> Self {
        Self {
            descriptor: Some(descriptor),
            events: libc::POLLIN,
            ready: false,
        }
    }

    /// For nothing: only the timeout ends such a wait.
    pub fn none() -> Self {
        Self {
            descriptor: None,
            events: 0,
            ready: false,
        }
    }

    /// For room to write.
    pub fn write(descriptor: BorrowedFd<'fd>) -> Self {
        Self {
            descriptor: Some(descriptor),
            events: libc::POLLOUT,
            ready: false,
        }
    }

    /// For room to write or something to read.
    pub fn both(descriptor: BorrowedFd<'fd>) -> Self {
        Self {
            descriptor: Some(descriptor),
            events: libc::POLLIN | libc::POLLOUT,
            ready: false,
        }
    }
}

/// Waits until one of the descriptors is ready, or the timeout is over; `None` waits for ever. Also
/// returns when a signal was handled.
///
/// # Errors
/// The kernel is out of memory.
pub fn poll(waits: &mut [Wait], timeout: Option<Duration>) -> io::Result<()> {
    match poll_once(waits, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        result => result,
    }
}

/// The same, but a signal is an error.
pub(super) fn poll_once(waits: &mut [Wait], timeout: Option<Duration>) -> io::Result<()> {
    for wait in &mut *waits {
        wait.ready = false;
    }
    let mut polled: Vec<libc::pollfd> = waits
        .iter()
        .map(|wait| libc::pollfd {
            // Passed over where it is negative.
            fd: wait
                .descriptor
                .map_or(-1, |descriptor| descriptor.as_raw_fd()),
            events: wait.events,
            revents: 0,
        })
        .collect();
    // Rounded up: rounded down, the last millisecond would be a busy wait.
    let timeout = timeout.map_or(-1, |timeout| {
        let up = timeout.saturating_add(Duration::from_nanos(999_999));
        c_int::try_from(up.as_millis()).unwrap_or(c_int::MAX)
    });
    // SAFETY: the array is as long as the call is told.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    check(result)?;
    for (wait, polled) in waits.iter_mut().zip(&polled) {
        wait.ready = polled.revents != 0;
    }
    Ok(())
}

/// Waits until there is something to read, the end of a pipe counting (`true`), or the time has come.
///
/// # Errors
/// The kernel is out of memory.
pub fn wait_until(descriptor: impl AsFd, deadline: Option<Moment>) -> io::Result<bool> {
    let timer = Timer::new();
    timer.set(deadline);
    let mut waits = [Wait::read(descriptor.as_fd()), timer.wait()];
    let left = deadline.map(|deadline| deadline.since(now()));
    poll(&mut waits, left)?;
    Ok(waits[0].ready)
}

/// A clock that wakes [`poll`] at a moment of [`now`]'s clock, also when the machine was suspended before
/// it: the timeout of `poll` itself would not count that time.
pub struct Timer {
    #[cfg(target_os = "linux")]
    descriptor: Option<OwnedFd>,
}

impl Timer {
    /// A timer that is not set. Where there is none, or it cannot be set, the timeout of `poll` is all there is.
    pub fn new() -> Self {
        #[cfg(target_os = "linux")]
        {
            let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
            // SAFETY: the call takes numbers only. What it opens, nobody else owns.
            let descriptor = unsafe {
                check(libc::timerfd_create(libc::CLOCK_BOOTTIME, flags))
                    .ok()
                    .map(|descriptor| OwnedFd::from_raw_fd(descriptor))
            };
            Self { descriptor }
        }
        #[cfg(not(target_os = "linux"))]
        Self {}
    }

    /// Sets the moment, or none.
    pub fn set(&self, _moment: Option<Moment>) {
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            // All zeros would disarm it.
            let moment = _moment.map(|moment| moment.since_first().max(Duration::from_nanos(1)));
            let moment = moment.unwrap_or_default();
            let zero = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let time = libc::itimerspec {
                it_interval: zero,
                it_value: libc::timespec {
                    tv_sec: moment.as_secs() as _,
                    tv_nsec: moment.subsec_nanos() as _,
                },
            };
            let flags = libc::TFD_TIMER_ABSTIME;
            // SAFETY: the call reads the structure.
            unsafe {
                libc::timerfd_settime(descriptor.as_raw_fd(), flags, &time, ptr::null_mut());
            }
        }
    }

    /// What to give to [`poll`], beside a timeout for where there is no such timer.
    pub fn wait(&self) -> Wait<'_> {
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            return Wait::read(descriptor.as_fd());
        }
        Wait::none()
    }
}
