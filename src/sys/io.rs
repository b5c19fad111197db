//! Descriptors: pipes, and what is read from and written to them.

use super::check;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The descriptor of standard output.
pub fn stdout() -> BorrowedFd<'static> {
    standard(libc::STDOUT_FILENO)
}

/// The descriptor of standard error.
pub fn stderr() -> BorrowedFd<'static> {
    standard(libc::STDERR_FILENO)
}

/// A standard descriptor, in a process that has its own.
fn standard(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: it is open from the start, see `occupy_standard_descriptors`, and nobody owns it, so that nobody closes
    // it. Where it could not be opened, nothing of pglock's has taken its number by the time that is said: the write
    // fails.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// How much a pipe that takes anything takes at once.
pub const PIPE_BUF: usize = libc::PIPE_BUF;

/// A pipe whose ends close when a command is executed, and never block: where to read, where to write.
///
/// # Errors
/// No descriptor is free.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    #[cfg(target_os = "linux")]
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call fills the array of two.
    #[cfg(target_os = "linux")]
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), flags) })?;
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    check(unsafe { libc::pipe(ends.as_mut_ptr()) })?;
    // SAFETY: the call has opened both, and nobody else owns them.
    let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    #[cfg(not(target_os = "linux"))]
    for end in [&read, &write] {
        let end = end.as_raw_fd();
        // SAFETY: the calls set flags of a descriptor that is open.
        unsafe {
            check(libc::fcntl(end, libc::F_SETFD, libc::FD_CLOEXEC))?;
            check(libc::fcntl(end, libc::F_SETFL, libc::O_NONBLOCK))?;
        }
    }
    Ok((read, write))
}

/// Reads what is there now, up to the size of the buffer; 0 bytes at the end.
pub(super) fn read(descriptor: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let descriptor = descriptor.as_fd().as_raw_fd();
    // SAFETY: the buffer is as long as the call is told.
    let count = unsafe { libc::read(descriptor, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes all of it.
///
/// # Errors
/// Not all of it could be written.
pub fn write_all(descriptor: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    let descriptor = descriptor.as_fd().as_raw_fd();
    while !bytes.is_empty() {
        // SAFETY: the bytes are as many as the call is told.
        let count = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(count) {
            Ok(count) => bytes = &bytes[count..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// How many bytes have arrived at a socket that nobody has read yet.
pub fn unread(socket: impl AsFd) -> usize {
    let socket = socket.as_fd().as_raw_fd();
    let mut count: c_int = 0;
    // SAFETY: the call fills the number.
    let result = unsafe { libc::ioctl(socket, libc::FIONREAD, &mut count) };
    match check(result) {
        Ok(_) => usize::try_from(count).unwrap_or(0),
        Err(_) => 0,
    }
}

/// Has a number stand for what this descriptor stands for.
pub(super) fn duplicate(descriptor: BorrowedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: the call takes numbers only; what it closes, nobody in this process uses any more.
    check(unsafe { libc::dup2(descriptor.as_raw_fd(), number) }).map(drop)
}

/// Closes all descriptors from this one on.
pub(super) fn close_from(first: RawFd) {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes numbers only; what it closes, nobody in this process uses any more.
    if unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) } == 0 {
        return;
    }
    // SAFETY: the call takes a number only.
    let most = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) }.clamp(256, 1 << 20) as RawFd;
    let close = |descriptor| {
        // SAFETY: as above.
        unsafe {
            libc::close(descriptor);
        }
    };
    match open_descriptors() {
        Some(open) => open
            .into_iter()
            .filter(|open| *open >= first)
            .for_each(close),
        None => (first..most).for_each(close),
    }
}

/// The numbers that are open, where the system lists them: there may be a million that are not.
fn open_descriptors() -> Option<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    entries
        .map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The next byte of a pipe, `None` at its end.
///
/// # Errors
/// There is none now, or it cannot be read.
pub fn read_byte(descriptor: impl AsFd) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let count = read(descriptor, &mut byte)?;
    Ok((count == 1).then_some(byte[0]))
}
