//! Memory: what pglock shares with its guardian, and how much it has.

use super::Pid;
use crate::moment::Moment;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

/// How many bytes of memory have been allocated, as far as the C library says.
pub fn heap() -> usize {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the call takes nothing. Its numbers are those of 32 bits that it can say.
        let heap = unsafe { libc::mallinfo() };
        heap.uordblks as u32 as usize + heap.hblkhd as u32 as usize
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    0
}

/// What pglock, its guardian and the command's process before it executes the command all see, in memory that they share.
#[derive(Clone, Copy)]
pub struct SharedState(&'static SharedCells);

pub(super) struct SharedCells {
    group: AtomicI32,
    deadline: AtomicU64,
    fired: AtomicBool,
    asked: AtomicBool,
}

impl SharedState {
    /// No group and no deadline.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: zeros are a value of the cells, which are atomic.
        let cells = unsafe { share()? };
        let shared = Self(cells);
        shared.set_deadline(None);
        Ok(shared)
    }

    /// The process group to be killed with pglock.
    pub fn group(&self) -> Option<Pid> {
        let group = self.0.group.load(Ordering::SeqCst);
        (group != 0).then_some(Pid(group))
    }

    /// Names the group, or lets it go.
    pub fn set_group(&self, group: Option<Pid>) {
        let group = group.map_or(0, |group| group.0);
        self.0.group.store(group, Ordering::SeqCst);
    }

    /// When the group has to be dead, on the clock of [`crate::sys::now`].
    pub fn deadline(&self) -> Option<Moment> {
        let deadline = self.0.deadline.load(Ordering::SeqCst);
        (deadline != u64::MAX).then(|| Moment::after_first(Duration::from_nanos(deadline)))
    }

    /// Moves that deadline.
    pub fn set_deadline(&self, deadline: Option<Moment>) {
        let deadline = deadline.map_or(u64::MAX, |deadline| {
            u64::try_from(deadline.since_first().as_nanos()).unwrap_or(u64::MAX)
        });
        self.0.deadline.store(deadline, Ordering::SeqCst);
    }

    /// Whether the guardian has killed the group because its deadline had passed.
    pub fn has_fired(&self) -> bool {
        self.0.fired.load(Ordering::SeqCst)
    }

    /// Notes that the guardian kills it for that.
    pub fn set_fired(&self) {
        self.0.fired.store(true, Ordering::SeqCst);
    }

    /// Whether anything was asked on the session that the lock was taken on since the command's process was started.
    pub fn has_asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Notes that something is asked from now on.
    pub fn set_asked(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
    }
}

/// New memory that pglock shares with whatever it forks from here on, all zeros. It is never given back.
///
/// # Errors
/// There is no memory left.
///
/// # Safety
/// All zeros are a value of the type, and processes may use it at once, as they may atomics. It is aligned to a page at
/// the most.
pub(super) unsafe fn share<T>() -> io::Result<&'static T> {
    // SAFETY: the call makes new memory, aligned to a page and never unmapped, filled with zeros, which are a value by
    // this function's own condition.
    unsafe {
        let address = libc::mmap(
            ptr::null_mut(),
            size_of::<T>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANON,
            -1,
            0,
        );
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(&*address.cast::<T>())
    }
}
