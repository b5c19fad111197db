//! The process itself: its entry point, its standard descriptors, its environment, its end.

use super::check;
use std::ffi::{CStr, CString, OsString, c_char, c_int};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// Makes `$run`, a `fn(Vec<OsString>) -> u8`, the program's C `main`.
///
/// Rust's own start-up would ignore SIGPIPE and open the standard descriptors that it finds closed, and
/// so hide from pglock how the command is to find them.
#[macro_export]
macro_rules! c_main {
    ($run:path) => {
        /// The entry point that the C library calls.
        // SAFETY: the name is reserved for the program's entry point, and this is it.
        #[allow(unsafe_code)]
        #[cfg(not(test))]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn main(
            count: std::ffi::c_int,
            words: *const *const std::ffi::c_char,
        ) -> std::ffi::c_int {
            // SAFETY: these are the two values that the C library passes to `main`.
            let arguments = unsafe { $crate::sys::arguments(count, words) };
            $crate::sys::exit($run(arguments))
        }

        /// Stands in where the test harness has an entry point of its own.
        #[cfg(test)]
        fn main() {
            $run(Vec::new());
        }
    };
}

/// The arguments of `main`, without the name of the program.
///
/// # Safety
/// `count` and `words` are those that the C library passed to `main`.
#[cfg_attr(test, expect(dead_code))]
pub unsafe fn arguments(count: c_int, words: *const *const c_char) -> Vec<OsString> {
    (1..usize::try_from(count).unwrap_or(0))
        .map(|index| {
            // SAFETY: C passes `count` pointers to null-terminated strings that live as long as the
            // process.
            let word = unsafe { CStr::from_ptr(*words.add(index)) };
            OsString::from_vec(word.to_bytes().to_vec())
        })
        .collect()
}

/// Ends the process at once. What libraries would do at an orderly exit serves nobody here and takes time.
pub fn exit(status: u8) -> ! {
    // SAFETY: the call does not return, and nothing that it leaves undone is needed.
    unsafe { libc::_exit(c_int::from(status)) }
}

/// Opens the standard descriptors that are closed, so that no descriptor of pglock's own takes their
/// number. They close again when the command is executed, which finds them as pglock did.
///
/// # Errors
/// One could not be opened.
pub fn occupy_standard_descriptors() -> io::Result<()> {
    for descriptor in 0..=libc::STDERR_FILENO {
        // SAFETY: the call takes numbers only.
        let is_closed = check(unsafe { libc::fcntl(descriptor, libc::F_GETFD) })
            .is_err_and(|error| error.raw_os_error() == Some(libc::EBADF));
        if is_closed {
            // It gets the lowest number that is free, which is this one, since those below it are open.
            let opened = open(c"/dev/null", libc::O_RDWR).or_else(|_| open(c"/", NEITHER))?;
            // Nobody is to own it, and so to close it.
            let _ = opened.into_raw_fd();
        }
    }
    Ok(())
}

/// How to open what can be neither read nor written, and need not be there for more than its number.
#[cfg(target_os = "linux")]
pub(super) const NEITHER: c_int = libc::O_PATH;

/// As near to that as other systems come: it cannot be read if it is a folder.
#[cfg(not(target_os = "linux"))]
pub(super) const NEITHER: c_int = libc::O_RDONLY;

pub(super) fn open(path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the string is null-terminated. What the call opens, nobody else owns.
    unsafe {
        let opened = check(libc::open(path.as_ptr(), flags | libc::O_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(opened))
    }
}

/// Has names of users and hosts looked up in files and by DNS only. The static program would load what else the
/// host's `nsswitch.conf` names, made for the host's own glibc, and crash in it.
pub fn load_no_modules() {
    #[cfg(all(feature = "static", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
        }
        for (database, services) in [(c"passwd", c"files"), (c"hosts", c"files dns")] {
            // SAFETY: declared as in nss.h. Both strings live for ever, and there is one thread.
            unsafe {
                __nss_configure_lookup(database.as_ptr(), services.as_ptr());
            }
        }
    }
}

/// The name of the machine, as far as it is UTF-8.
pub fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: the buffer is one byte longer than the call is told, so what it fills in ends with a null.
    unsafe {
        libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1);
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&name[..end]).into_owned()
}

/// The environment as the process has it: `NAME=value`, and whatever else stands there.
pub fn environment() -> Vec<CString> {
    let mut entries = Vec::new();
    // SAFETY: `environ` is null or an array of strings that ends with a null pointer. Nobody changes it
    // meanwhile: there is one thread.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            entries.push(CStr::from_ptr(*entry).to_owned());
            entry = entry.add(1);
        }
    }
    entries
}

/// Sets a variable of pglock's own environment, unless it has a value.
pub fn set_default_variable(name: &CStr, value: &CStr) {
    // SAFETY: both strings are null-terminated and copied. There is one thread, so nobody reads the
    // environment meanwhile.
    unsafe {
        let current = libc::getenv(name.as_ptr());
        let is_empty = current.is_null() || *current == 0;
        if is_empty && libc::setenv(name.as_ptr(), value.as_ptr(), 1) == -1 {
            // Without it libpq would connect to something else.
            std::alloc::handle_alloc_error(std::alloc::Layout::for_value(value.to_bytes()));
        }
    }
}

/// Removes a variable from pglock's own environment.
pub fn remove_variable(name: &CStr) {
    // SAFETY: as in `set_default_variable`.
    unsafe {
        libc::unsetenv(name.as_ptr());
    }
}

unsafe extern "C" {
    pub(super) static mut environ: *const *const c_char;
}
