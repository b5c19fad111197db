//! A thin safe wrapper over libc, and the only place besides `pq.rs` that is `unsafe`; a room for each subject. A function for a
//! call or for a sequence of calls that only makes sense whole, no policy. pglock is one thread, but for the one that connects again
//! (`fork.rs`).
#![allow(unsafe_code)]

mod clock;
mod fork;
mod io;
mod poll;
mod process;
mod shared_memory;
mod signal;
mod startup;
mod terminal;

pub use clock::*;
pub use fork::*;
pub use io::*;
pub use poll::*;
pub use process::*;
pub use shared_memory::*;
pub use signal::*;
pub use startup::*;
pub use terminal::*;

use std::ffi::{CString, c_int};

/// The error for a lease that is over; executing a program never yields it.
#[cfg(not(target_os = "freebsd"))]
pub const ETIME: i32 = libc::ETIME;
/// FreeBSD does not have it; what stands in for it, executing a program does not yield either.
#[cfg(target_os = "freebsd")]
pub const ETIME: i32 = libc::ECANCELED;

/// The error for a session that is over; executing a program never yields it.
pub const ECONNRESET: i32 = libc::ECONNRESET;

/// Turns the -1 of a failed call into the error that `errno` names.
fn check(result: c_int) -> std::io::Result<c_int> {
    if result == -1 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A string for C, of what was one before or cannot hold a null byte.
pub fn c_string(bytes: impl Into<Vec<u8>>) -> CString {
    CString::new(bytes).unwrap_or_default()
}
