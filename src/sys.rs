//! A thin safe wrapper over libc, and the only place besides `pq.rs` that is `unsafe`. A function for a
//! call or for a sequence of calls that only makes sense whole, no policy. pglock is one thread.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsString, c_char, c_int};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering, compiler_fence,
};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The descriptor of standard output.
pub const STDOUT: RawFd = libc::STDOUT_FILENO;
/// The error for a lease that is over; executing a program never yields it.
pub const ETIME: i32 = libc::ETIME;
/// The error for a session that is over; executing a program never yields it.
pub const ECONNRESET: i32 = libc::ECONNRESET;
/// The descriptor of standard error.
pub const STDERR: RawFd = libc::STDERR_FILENO;

/// How much a pipe that takes anything takes at once.
pub const PIPE_BUF: usize = libc::PIPE_BUF;

/// Turns the -1 of a failed call into the error that `errno` names.
fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A string for C, of what was one before or cannot hold a null byte.
pub fn c_string(bytes: impl Into<Vec<u8>>) -> CString {
    CString::new(bytes).unwrap_or_default()
}

// Start and end of the process

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
            open(c"/dev/null", libc::O_RDWR).or_else(|_| open(c"/", NEITHER))?;
        }
    }
    Ok(())
}

/// How to open what can be neither read nor written, and need not be there for more than its number.
#[cfg(target_os = "linux")]
const NEITHER: c_int = libc::O_PATH;
/// As near to that as other systems come: it cannot be read if it is a folder.
#[cfg(not(target_os = "linux"))]
const NEITHER: c_int = libc::O_RDONLY;

fn open(path: &CStr, flags: c_int) -> io::Result<RawFd> {
    // SAFETY: the string is null-terminated.
    check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })
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

// Time

/// Time since the machine started, time that it was suspended included where the system can tell.
pub fn now() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the call fills the structure, for which all zeros are a value too.
    let time = unsafe {
        if libc::clock_gettime(CLOCK, time.as_mut_ptr()) == -1 {
            // No lease can be kept without a clock. The guardian sees to the rest, or pglock to another guardian.
            exit(125);
        }
        time.assume_init()
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A number from 0 to 1 that differs from process to process and from time to time; no secret.
pub fn random() -> f64 {
    let seed = u64::from(now().subsec_nanos()) << 32 | u64::from(std::process::id());
    // The finishing steps of splitmix64, by Sebastiano Vigna.
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 32) as f64 / f64::from(u32::MAX)
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

/// Seconds since 1970.
pub fn wall_clock() -> i64 {
    // SAFETY: a null pointer tells the call to only return the time.
    unsafe { libc::time(ptr::null_mut()) }
}

/// A time in seconds since 1970 as local time, `2018/09/05 11:17:39`.
pub fn local_time(time: i64) -> String {
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: the call reads `time` and fills the structure, for which all zeros are a value too (its
    // pointer may be null).
    let parts = unsafe {
        libc::localtime_r(&time, parts.as_mut_ptr());
        parts.assume_init()
    };
    format!(
        "{:04}/{:02}/{:02} {:02}:{:02}:{:02}",
        parts.tm_year + 1900,
        parts.tm_mon + 1,
        parts.tm_mday,
        parts.tm_hour,
        parts.tm_min,
        parts.tm_sec
    )
}

// Environment

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
        if current.is_null() || *current == 0 {
            libc::setenv(name.as_ptr(), value.as_ptr(), 1);
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
    static mut environ: *const *const c_char;
}

// Descriptors

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
fn read(descriptor: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as the call is told.
    let count = unsafe { libc::read(descriptor, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes all of it.
///
/// # Errors
/// Not all of it could be written.
pub fn write_all(descriptor: RawFd, mut bytes: &[u8]) -> io::Result<()> {
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

/// Whether a write of a line would not block; not where the system does not say so.
pub fn is_writable_now(descriptor: RawFd) -> bool {
    let mut waits = [Wait::write(descriptor)];
    poll(&mut waits, Some(Duration::ZERO)).is_ok() && waits[0].ready
}

/// Whether a read would not block: there is something to read, or the end, or the system does not say.
pub fn is_readable_now(descriptor: RawFd) -> bool {
    let mut waits = [Wait::read(descriptor)];
    poll_once(&mut waits, Some(Duration::ZERO)).is_err() || waits[0].ready
}

/// How many bytes have arrived at a socket that nobody has read yet.
pub fn unread(socket: RawFd) -> usize {
    let mut count: c_int = 0;
    // SAFETY: the call fills the number.
    let result = unsafe { libc::ioctl(socket, libc::FIONREAD, &mut count) };
    match check(result) {
        Ok(_) => usize::try_from(count).unwrap_or(0),
        Err(_) => 0,
    }
}

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

/// One descriptor to wait for.
pub struct Wait {
    descriptor: RawFd,
    events: i16,
    /// Set by [`poll`]: what is waited for is there, or the descriptor has failed, which a read or a
    /// write will tell.
    pub ready: bool,
}

impl Wait {
    /// For something to read.
    pub fn read(descriptor: RawFd) -> Self {
        Self {
            descriptor,
            events: libc::POLLIN,
            ready: false,
        }
    }

    /// For nothing: only the timeout ends such a wait.
    pub fn none() -> Self {
        // `poll` passes over a negative descriptor.
        Self::read(-1)
    }

    /// For room to write.
    pub fn write(descriptor: RawFd) -> Self {
        Self {
            descriptor,
            events: libc::POLLOUT,
            ready: false,
        }
    }

    /// For room to write or something to read.
    pub fn both(descriptor: RawFd) -> Self {
        Self {
            descriptor,
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
fn poll_once(waits: &mut [Wait], timeout: Option<Duration>) -> io::Result<()> {
    for wait in &mut *waits {
        wait.ready = false;
    }
    let mut polled: Vec<libc::pollfd> = waits
        .iter()
        .map(|wait| libc::pollfd {
            fd: wait.descriptor,
            events: wait.events,
            revents: 0,
        })
        .collect();
    // Rounded up: rounded down, the last millisecond would be a busy wait.
    let timeout = timeout.map_or(-1, |timeout| {
        c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
    });
    // SAFETY: the array is as long as the call is told.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    check(result)?;
    for (wait, polled) in waits.iter_mut().zip(&polled) {
        wait.ready = polled.revents != 0;
    }
    Ok(())
}

// Signals

/// The number of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(c_int);

#[allow(missing_docs)] // POSIX says what they are
impl Signal {
    pub const CHLD: Self = Self(libc::SIGCHLD);
    pub const CONT: Self = Self(libc::SIGCONT);
    pub const HUP: Self = Self(libc::SIGHUP);
    pub const INT: Self = Self(libc::SIGINT);
    pub const KILL: Self = Self(libc::SIGKILL);
    pub const QUIT: Self = Self(libc::SIGQUIT);
    pub const STOP: Self = Self(libc::SIGSTOP);
    pub const TERM: Self = Self(libc::SIGTERM);
    pub const TSTP: Self = Self(libc::SIGTSTP);

    /// What a shell reports for a process that this signal ended: 128+N.
    pub fn exit_status(self) -> u8 {
        u8::try_from(128 + self.0).unwrap_or(u8::MAX)
    }

    /// Whether it stops a process of the background that uses the terminal.
    pub fn is_about_terminal(self) -> bool {
        [libc::SIGTTIN, libc::SIGTTOU].contains(&self.0)
    }

    /// Whether a process that does nothing about it lives on.
    pub fn is_harmless(self) -> bool {
        [
            libc::SIGCHLD,
            libc::SIGCONT,
            libc::SIGURG,
            libc::SIGWINCH,
            libc::SIGTSTP,
        ]
        .contains(&self.0)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = match self.0 {
            libc::SIGALRM => "SIGALRM",
            libc::SIGCONT => "SIGCONT",
            libc::SIGHUP => "SIGHUP",
            libc::SIGINT => "SIGINT",
            libc::SIGKILL => "SIGKILL",
            libc::SIGQUIT => "SIGQUIT",
            libc::SIGSTOP => "SIGSTOP",
            libc::SIGTERM => "SIGTERM",
            libc::SIGTSTP => "SIGTSTP",
            libc::SIGUSR1 => "SIGUSR1",
            libc::SIGUSR2 => "SIGUSR2",
            number => return write!(f, "signal {number}"),
        };
        f.write_str(name)
    }
}

/// The signals that pglock catches: those that it passes on to the command, and SIGCHLD. Not among
/// them are those that no program can catch, that tell of a fault of the program itself, that speak of
/// its own use of a terminal or of its limits.
fn caught() -> impl Iterator<Item = c_int> {
    let kept = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGSEGV,
        libc::SIGSYS,
        libc::SIGPIPE,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGXCPU,
        libc::SIGXFSZ,
    ];
    every_signal().filter(move |signal| !kept.contains(signal))
}

#[cfg(target_os = "linux")]
fn every_signal() -> impl Iterator<Item = c_int> {
    // The two or three between the standard and the real-time signals are the C library's own.
    (1..32).chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

#[cfg(not(target_os = "linux"))]
fn every_signal() -> impl Iterator<Item = c_int> {
    1..32
}

/// Where the handler writes the numbers of the signals that arrive.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);
/// Whether SIGCONT has come since [`stop_own_group`] was called.
static CONTINUED: AtomicBool = AtomicBool::new(false);
/// Whether this process is a child of pglock's, to which a signal does what it does by default.
static IN_CHILD: AtomicBool = AtomicBool::new(false);
/// Whether pglock's caller wants SIGALRM ignored, which pglock needs for itself.
static ALARM_IS_IGNORED: AtomicBool = AtomicBool::new(false);
/// Whether a call is running that a signal has to end together with pglock.
static BLOCKING: AtomicBool = AtomicBool::new(false);
/// When that call has to be over, in nanoseconds of [`now`]'s clock.
static BLOCKING_UNTIL: AtomicU64 = AtomicU64::new(u64::MAX);
/// What to write when it is not over then, and how many bytes of it.
static BLOCKING_LINE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static BLOCKING_LINE_LENGTH: AtomicUsize = AtomicUsize::new(0);
/// The exit status when it is not over then.
static BLOCKING_STATUS: AtomicI32 = AtomicI32::new(0);

/// Notes that a signal has arrived. Does only what POSIX allows a handler to do.
extern "C" fn handle(signal: c_int) {
    // SAFETY: errno is the thread's own; what follows may change it under the code that it interrupts.
    let saved = unsafe { *errno() };
    if IN_CHILD.load(Ordering::Relaxed) {
        // It comes again, and does what it does by default, when this handler is left.
        // SAFETY: both calls take numbers only and are safe in a handler.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            *errno() = saved;
        }
        return;
    }
    let is_forgotten = signal == libc::SIGALRM && ALARM_IS_IGNORED.load(Ordering::Relaxed);
    if BLOCKING.load(Ordering::Acquire) {
        let late = now().as_nanos() as u64 >= BLOCKING_UNTIL.load(Ordering::Relaxed);
        if signal == libc::SIGALRM && late {
            // SAFETY: while `BLOCKING` is set these two describe a string that is alive, see
            // `Signals::while_blocking`; `write` and `_exit` are safe in a handler.
            unsafe {
                libc::write(
                    STDERR,
                    BLOCKING_LINE.load(Ordering::Relaxed).cast(),
                    BLOCKING_LINE_LENGTH.load(Ordering::Relaxed),
                );
                libc::_exit(BLOCKING_STATUS.load(Ordering::Relaxed));
            }
        }
        if !Signal(signal).is_harmless() && !is_forgotten {
            end_by(Signal(signal));
        }
    }
    if is_forgotten {
        // SAFETY: as above.
        unsafe {
            *errno() = saved;
        }
        return;
    }
    if signal == libc::SIGCONT {
        CONTINUED.store(true, Ordering::Relaxed);
    }
    let number = signal as u8;
    // SAFETY: `write` is safe in a handler. The pipe never blocks: where it is full, signals enough are
    // waiting to be seen.
    unsafe {
        libc::write(
            SIGNAL_PIPE.load(Ordering::Relaxed),
            ptr::from_ref(&number).cast(),
            1,
        );
        *errno() = saved;
    }
}

#[cfg(target_os = "linux")]
use libc::__errno_location as errno;
#[cfg(target_os = "macos")]
use libc::__error as errno;

/// The signals that arrive, and what pglock was started with, for the command to find it so.
pub struct Signals {
    pipe: OwnedFd,
    mask: libc::sigset_t,
    /// What executing a program does not put back by itself.
    dispositions: Vec<(c_int, libc::sigaction)>,
}

impl Signals {
    /// Catches the signals that concern the command. One that is ignored stays ignored: so `nohup`
    /// wants it.
    ///
    /// # Errors
    /// No descriptor is free for the pipe that they are noted in, or the system does not let pglock catch them.
    pub fn catch() -> io::Result<Self> {
        let (pipe, write_end) = pipe()?;
        SIGNAL_PIPE.store(write_end.as_raw_fd(), Ordering::Relaxed);
        // The handler needs it for as long as the process lives.
        std::mem::forget(write_end);

        // Blocked meanwhile, so that what comes for a signal that is to stay ignored is forgotten, and not noted.
        let mask = block_signals()?;
        let mut signals = Self {
            pipe,
            mask,
            dispositions: Vec::new(),
        };
        for signal in caught() {
            signals.set_disposition(signal, handle as *const () as libc::sighandler_t)?;
        }
        // A log line to a closed pipe or a file that must not grow must not end pglock, nor one to a terminal stop
        // it.
        for signal in [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTOU] {
            signals.set_disposition(signal, libc::SIG_IGN)?;
        }
        let mut own = mask;
        // SAFETY: the calls change and read a set that is filled.
        unsafe {
            libc::sigdelset(&mut own, libc::SIGCHLD);
            libc::sigdelset(&mut own, libc::SIGALRM);
        }
        set_mask(&own)?;
        Ok(signals)
    }

    /// Sets what to do about a signal, and remembers what was done before where the command would not find it
    /// so: executed, it finds what was caught at its default and what was ignored ignored.
    fn set_disposition(&mut self, signal: c_int, handler: libc::sighandler_t) -> io::Result<()> {
        // SAFETY: `sigaction` reads one structure and fills the other; all zeros are a value of it. The
        // handler is `handle`, which does only what a handler may, or one of the constants.
        unsafe {
            let mut before = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = handler;
            action.sa_flags = libc::SA_RESTART;
            libc::sigfillset(&mut action.sa_mask);
            check(libc::sigaction(signal, &action, &mut before))?;
            let was_ignored = before.sa_sigaction == libc::SIG_IGN;
            // Nothing is taken from a caller who wants it ignored but SIGCHLD, without which no command can be
            // waited for, and SIGALRM, without which no call that blocks would end.
            let is_needed = signal == libc::SIGCHLD || signal == libc::SIGALRM;
            if was_ignored && signal == libc::SIGALRM {
                ALARM_IS_IGNORED.store(true, Ordering::Relaxed);
            }
            if was_ignored && !is_needed {
                check(libc::sigaction(signal, &before, ptr::null_mut()))?;
            } else if was_ignored || handler == libc::SIG_IGN {
                self.dispositions.push((signal, before));
            }
        }
        Ok(())
    }

    /// Puts back what pglock was started with, in a child that is about to execute a program.
    fn restore(&self) -> io::Result<()> {
        for (signal, action) in &self.dispositions {
            // SAFETY: the call reads a structure that the system has filled.
            check(unsafe { libc::sigaction(*signal, action, ptr::null_mut()) })?;
        }
        set_mask(&self.mask)
    }

    /// The descriptor that can be read when signals have arrived.
    pub fn descriptor(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }

    /// The signals that have arrived since the last call, oldest first.
    pub fn take(&self) -> Vec<Signal> {
        let mut buffer = [0; 256];
        // What could not be read stays in the pipe, for the next call.
        let count = read(self.descriptor(), &mut buffer).unwrap_or(0);
        buffer[..count]
            .iter()
            .map(|&number| Signal(number.into()))
            .collect()
    }

    /// Runs a call that may block, in Kerberos say. A signal that would end pglock does so
    /// at once, and so does the deadline, with this line on standard error and this exit status. Only
    /// for when nothing is held that would have to be released.
    pub fn while_blocking<T>(
        &self,
        deadline: Option<Duration>,
        line: &str,
        status: u8,
        call: impl FnOnce() -> T,
    ) -> T {
        BLOCKING_LINE.store(line.as_ptr().cast_mut(), Ordering::Relaxed);
        BLOCKING_LINE_LENGTH.store(line.len(), Ordering::Relaxed);
        BLOCKING_STATUS.store(status.into(), Ordering::Relaxed);
        let until = deadline.map_or(u64::MAX, |deadline| deadline.as_nanos() as u64);
        BLOCKING_UNTIL.store(until, Ordering::Relaxed);
        BLOCKING.store(true, Ordering::Release);
        let start = now();
        // A millisecond late, so that the clock is past the deadline when the signal comes.
        let before = deadline.and_then(|deadline| {
            let time = deadline.saturating_sub(start) + Duration::from_millis(1);
            let before = set_alarm(Some(time));
            // The caller may have set an alarm too, for the command: one that comes first stays first.
            if before.is_some_and(|before| before < time) {
                set_alarm(before);
            }
            before
        });
        // One that came before the flag was set waits in the pipe, and nobody would look there.
        if let Some(signal) = self.take().iter().find(|signal| !signal.is_harmless()) {
            end_by(*signal);
        }
        let result = call();
        if deadline.is_some() {
            let spent = now().saturating_sub(start);
            set_alarm(before.map(|before| before.saturating_sub(spent)));
        }
        BLOCKING.store(false, Ordering::SeqCst);
        // The line may be gone when this returns, and the flag must be by then.
        compiler_fence(Ordering::SeqCst);
        result
    }
}

/// Blocks the signals, and returns the mask that there was.
fn block_signals() -> io::Result<libc::sigset_t> {
    let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the calls fill the sets before they are read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        // While it is ignored it is forgotten; blocked, it would wait for the command.
        libc::sigdelset(all.as_mut_ptr(), libc::SIGPIPE);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            all.as_ptr(),
            before.as_mut_ptr(),
        ))?;
        Ok(before.assume_init())
    }
}

/// Blocks these signals and no others.
fn set_mask(mask: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the call reads a set that is filled.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, ptr::null_mut()) }).map(drop)
}

/// Has SIGALRM sent after this time; `None` takes it back. Returns the time that was left of one set
/// before. The call only fails for a time that is none.
fn set_alarm(after: Option<Duration>) -> Option<Duration> {
    // All zeros would take it back.
    let after = after.map_or(Duration::ZERO, |after| after.max(Duration::from_micros(1)));
    let timer = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: libc::timeval {
            tv_sec: after.as_secs() as _,
            tv_usec: after.subsec_micros() as _,
        },
    };
    let mut before = MaybeUninit::<libc::itimerval>::zeroed();
    // SAFETY: the call reads one structure and fills the other, for which all zeros are a value too.
    let before = unsafe {
        libc::setitimer(libc::ITIMER_REAL, &timer, before.as_mut_ptr());
        before.assume_init().it_value
    };
    let before = Duration::new(before.tv_sec as u64, before.tv_usec as u32 * 1000);
    (!before.is_zero()).then_some(before)
}

/// Sends a signal to pglock's own process group, pglock included.
pub fn signal_own_group(signal: Signal) {
    // SAFETY: the call takes numbers only.
    unsafe {
        libc::kill(0, signal.0);
    }
}

/// Stops pglock's own process group, as SIGTSTP would have if pglock did not catch it. Comes back when it
/// is continued (`true`), or at once where no shell is there to continue it.
pub fn stop_own_group() -> bool {
    CONTINUED.store(false, Ordering::Relaxed);
    with_default(Signal::TSTP, || signal_own_group(Signal::TSTP));
    CONTINUED.load(Ordering::Relaxed)
}

/// Ends pglock for a signal, with the status of a shell for it. What was typed at the terminal ends it as a
/// signal, for a shell ends its loop only if it sees that. Does only what a signal's handler may; `setrlimit`, which
/// POSIX does not name among that, is a bare system call.
pub fn end_by(signal: Signal) -> ! {
    let typed = signal == Signal::INT || signal == Signal::QUIT;
    if typed && Terminal::open().is_some_and(|terminal| terminal.foreground() == own_group()) {
        // A core of pglock's would tell nobody anything.
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the calls read structures that are filled, and take numbers.
        with_default(signal, || unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            libc::kill(libc::getpid(), signal.0);
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), signal.0);
            libc::sigprocmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
        });
    }
    exit(signal.exit_status());
}

/// Makes a call while a signal does what it does by default.
fn with_default(signal: Signal, call: impl FnOnce()) {
    // SAFETY: all zeros are a value of the structure.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    let mut before = action;
    action.sa_sigaction = libc::SIG_DFL;
    // SAFETY: the call reads one structure of this frame and fills the other; the handler is a constant.
    unsafe {
        libc::sigaction(signal.0, &action, &mut before);
    }
    call();
    // SAFETY: as above.
    unsafe {
        libc::sigaction(signal.0, &before, ptr::null_mut());
    }
}

// Processes

/// The number of a process, or of the process group that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pid(libc::pid_t);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The group of which pglock itself is a member.
pub fn own_group() -> Pid {
    // SAFETY: the call takes nothing and cannot fail.
    Pid(unsafe { libc::getpgrp() })
}

/// Whether a process group has a member that has not ended. One that has, and that nobody has waited for
/// yet, is still a member to the kernel; where `/proc` can tell the two apart, it does not count here. What cannot be
/// told counts as alive.
pub fn group_is_alive(leader: Pid) -> bool {
    // SAFETY: signal 0 is only a question.
    match check(unsafe { libc::kill(-leader.0, 0) }) {
        Ok(_) => live_members(leader).unwrap_or(true),
        // All that are left have become other users', whom `/proc` may hide from us.
        Err(error) => error.raw_os_error() != Some(libc::ESRCH),
    }
}

/// Looks for a live member of a group in `/proc`, which only Linux has in this form; see proc(5). `None` where it does
/// not show all processes.
fn live_members(leader: Pid) -> Option<bool> {
    // In a PID namespace it may be the host's, with other numbers.
    let own = std::fs::read_link("/proc/self").ok()?;
    if own.as_os_str() != std::process::id().to_string().as_str() {
        return None;
    }
    let mut shows_all = false;
    for entry in std::fs::read_dir("/proc").ok()? {
        let name = entry.ok()?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if is_live_member(leader, Pid(pid)) {
            return Some(true);
        }
        // The first is always there, and mostly root's: where `hidepid` hides the processes of others, it is missing.
        shows_all |= pid == 1;
    }
    shows_all.then_some(false)
}

/// Whether a process of `/proc` is a member of a group and has not ended.
fn is_live_member(leader: Pid, pid: Pid) -> bool {
    // Asked first, for the kernel tells it of any process, also where `/proc` does not let us look at it.
    // SAFETY: the call takes a number only.
    match check(unsafe { libc::getpgid(pid.0) }) {
        Ok(group) if group != leader.0 => return false,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return false,
        _ => {}
    }
    match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => tells_of_live_member(&stat, leader),
        Err(error) => !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

/// Whether the line of `/proc/PID/stat` is that of a member of a group that has not ended, as one counts that is
/// not understood.
fn tells_of_live_member(stat: &[u8], leader: Pid) -> bool {
    // The name, in parentheses, may hold anything, half a letter too, for it is cut off after 15 bytes. What follows is
    // state, parent and group.
    let after_name = stat.iter().rposition(|byte| *byte == b')');
    let rest = after_name.and_then(|end| str::from_utf8(&stat[end + 1..]).ok());
    let mut fields = rest.unwrap_or_default().split_ascii_whitespace();
    let state = fields.next();
    let mut number = |skipped| fields.nth(skipped)?.parse::<i32>().ok();
    // One whose first thread has ended looks as if it had ended too, and may run on in others.
    let (Some(group), Some(threads)) = (number(1), number(14)) else {
        return true;
    };
    let has_ended = matches!(state, Some("Z" | "X")) && threads <= 1;
    group == leader.0 && !has_ended
}

/// Sends a signal to every process of a group.
///
/// # Errors
/// There is no such group any more, or none of its processes may be signalled.
pub fn signal_group(leader: Pid, signal: Signal) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::kill(-leader.0, signal.0) }).map(drop)
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It ended by itself, with this status.
    Exited(u8),
    /// A signal ended it.
    Killed(Signal),
    /// A signal stopped it.
    Stopped(Signal),
    /// It was continued.
    Continued,
}

/// A child whose state has changed, `None` where none has.
pub fn reap() -> Option<(Pid, Change)> {
    let mut status = 0;
    // SAFETY: the call fills the number.
    let pid = unsafe {
        libc::waitpid(
            -1,
            &mut status,
            libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED,
        )
    };
    if pid <= 0 {
        return None;
    }
    let change = if libc::WIFCONTINUED(status) {
        Change::Continued
    } else if libc::WIFSTOPPED(status) {
        Change::Stopped(Signal(libc::WSTOPSIG(status)))
    } else if libc::WIFSIGNALED(status) {
        Change::Killed(Signal(libc::WTERMSIG(status)))
    } else {
        Change::Exited(libc::WEXITSTATUS(status) as u8)
    };
    Some((Pid(pid), change))
}

/// Whether a child is still running, as one is that the system says nothing of. One that has ended is waited for.
pub fn is_running(child: Pid) -> bool {
    // SAFETY: the call takes numbers and a null pointer, which asks for no status.
    match check(unsafe { libc::waitpid(child.0, ptr::null_mut(), libc::WNOHANG) }) {
        Ok(pid) => pid == 0,
        Err(error) => error.raw_os_error() != Some(libc::ECHILD),
    }
}

/// Kills a child; [`end`] has to follow.
///
/// # Errors
/// It may not be signalled.
pub fn kill(child: Pid) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::kill(child.0, libc::SIGKILL) }).map(drop)
}

/// Kills a child that was not waited for yet, and waits for its end.
///
/// # Errors
/// It may not be signalled. Then it is not waited for either.
pub fn end(child: Pid) -> io::Result<()> {
    kill(child)?;
    // SAFETY: as in `is_running`.
    while unsafe { libc::waitpid(child.0, ptr::null_mut(), 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    Ok(())
}

/// A program to execute.
pub struct Program {
    /// Its name or path, and its arguments; not empty.
    pub words: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
}

/// A child that executes a program, or has tried to.
pub struct Child {
    /// Its process id, and that of its process group.
    pub pid: Pid,
    /// Why it has executed no program, negative where that is about the child itself; 0 otherwise. In memory that it
    /// shares with pglock, for a write to a pipe may fail too.
    failure: &'static AtomicI32,
}

impl Child {
    /// Why the program was not executed, once the child has ended; `None` if it was. An error that the system has
    /// no number for is about the child itself.
    pub fn exec_error(&self) -> Option<io::Error> {
        let error = io::Error::from_raw_os_error;
        match self.failure.load(Ordering::SeqCst) {
            0 => None,
            errno if errno > 0 => Some(error(errno)),
            errno => Some(io::Error::other(format!(
                "its process could not be made ready: {}",
                error(-errno)
            ))),
        }
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
unsafe fn share<T>() -> io::Result<&'static T> {
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

/// Which of the two a process is after a fork.
enum Fork {
    /// The one that was there before, and the number of the new one.
    Parent(Pid),
    /// The new one, with all signals blocked, and the mask that there was.
    Child(libc::sigset_t),
}

/// Makes a child, which has to end by itself, or to execute a program.
///
/// # Errors
/// The system has no process left. Then there is no child.
fn fork() -> io::Result<Fork> {
    // No signal may reach the child before it knows that it is not pglock: the handler would note it in the
    // pipe, which is the parent's too.
    let before = block_signals()?;
    // SAFETY: there is one thread, so the child finds nothing half done; it does not come back from whoever calls this,
    // so that nothing of the parent's is dropped twice.
    let forked = check(unsafe { libc::fork() });
    if let Ok(0) = forked {
        IN_CHILD.store(true, Ordering::Relaxed);
        return Ok(Fork::Child(before));
    }
    // Again, for a child that is there may run already.
    let unblocked = set_mask(&before).or_else(|_| set_mask(&before));
    let child = Pid(forked?);
    if let Err(error) = unblocked {
        // Deaf to all that happens to it, pglock could not look after it, nor after what it may have started.
        let _ = signal_group(child, Signal::KILL);
        let _ = end(child);
        return Err(error);
    }
    Ok(Fork::Parent(child))
}

/// pglock's own process id.
pub fn own_pid() -> Pid {
    // SAFETY: the call takes nothing and cannot fail.
    Pid(unsafe { libc::getpid() })
}

/// Whether the parent of this process is still the one that had this number for itself.
pub fn has_parent(parent: Pid) -> bool {
    // SAFETY: the call takes nothing and cannot fail.
    let now = unsafe { libc::getppid() };
    // One in another PID namespace has no number here.
    now == parent.0 || now == 0
}

/// Has a child die when pglock does, where the system can do that, unless it becomes another user. It ends here if
/// pglock has ended already.
fn die_with(parent: Pid) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    if !has_parent(parent) {
        exit(127);
    }
    Ok(())
}

/// Starts a program in a process group of its own, with the signal mask and the dispositions that
/// pglock was started with. On Linux it is killed when pglock ends, unless it has become another user. Before that the new process calls `prepare` with its number, all signals
/// blocked, and does not execute the program if that fails.
///
/// # Errors
/// The system has no process or memory left.
pub fn spawn(
    program: &Program,
    signals: &Signals,
    prepare: impl FnOnce(Pid) -> io::Result<()>,
) -> io::Result<Child> {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        let pointers = strings.iter().map(|string| string.as_ptr());
        pointers.chain([ptr::null()]).collect()
    };
    let words = pointers(&program.words);
    let environment = pointers(&program.environment);
    // SAFETY: zeros are a value of it, and it is atomic.
    let failure: &AtomicI32 = unsafe { share()? };
    let parent = own_pid();

    match fork()? {
        Fork::Child(_) => {
            let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
            let own_errno = |error| -errno(error);
            let result = lead_group()
                .and_then(|()| die_with(parent))
                .map_err(own_errno)
                .and_then(|()| prepare(own_pid()).map_err(errno))
                .and_then(|()| signals.restore().map_err(own_errno));
            let number = match result {
                // SAFETY: all pointers are into vectors that live in this frame, and the arrays end with a null
                // pointer.
                Ok(()) => errno(unsafe { execute(&words, &environment) }),
                Err(number) => number,
            };
            failure.store(number, Ordering::SeqCst);
            exit(127);
        }
        Fork::Parent(pid) => {
            // Both sides do it, so that neither has to wait for the other; it fails here once the child has
            // executed its program or ended, and has then been done, or has failed there.
            // SAFETY: the call takes numbers only.
            unsafe {
                libc::setpgid(pid.0, pid.0);
            }
            Ok(Child { pid, failure })
        }
    }
}

/// Makes a process group of which this process is the leader.
fn lead_group() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::setpgid(0, 0) }).map(drop)
}

/// Executes a program in place of this process, and returns why it could not.
///
/// # Safety
/// Both are arrays of null-terminated strings that end with a null pointer, and there is one thread.
unsafe fn execute(words: &[*const c_char], environment: &[*const c_char]) -> io::Error {
    // SAFETY: by this function's own condition they are what `execvp` demands, and nobody reads the environment
    // meanwhile.
    unsafe {
        environ = environment.as_ptr();
        libc::execvp(words[0], words.as_ptr());
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENOEXEC) {
            // POSIX has `execvp` give a script without a first line for that to the shell; musl
            // leaves it to us.
            let shell = [c"/bin/sh", c"-c", c"exec \"$0\" \"$@\""].map(CStr::as_ptr);
            let words: Vec<_> = shell.iter().chain(words).copied().collect();
            libc::execv(words[0], words.as_ptr());
        }
        error
    }
}

/// A child that makes a call which may block, where a signal's handler could not end it. It is killed when this is
/// dropped, and on Linux when pglock ends.
pub struct Inquiry {
    child: Pid,
    answer: OwnedFd,
}

/// Has a child make a call. It finds no descriptor of pglock's or its caller's.
///
/// # Errors
/// The system has no process or descriptor left.
pub fn inquire(call: impl FnOnce() -> String) -> io::Result<Inquiry> {
    let (answer, write_end) = pipe()?;
    let parent = own_pid();
    match fork()? {
        Fork::Child(mask) => {
            // What goes wrong here is seen by the answer, which is none.
            let kept = [answer.as_raw_fd(), write_end.as_raw_fd()];
            if die_with(parent).is_ok() && keep_for_answer(kept).is_ok() && set_mask(&mask).is_ok()
            {
                let text = call();
                let _ = write_all(ANSWER, text.as_bytes());
            }
            exit(0);
        }
        Fork::Parent(child) => Ok(Inquiry { child, answer }),
    }
}

/// The descriptor that an inquiry's child writes its answer to.
const ANSWER: RawFd = 3;

/// Leaves this process the write end of a pipe as [`ANSWER`], and no other descriptor: whoever reads from the standard
/// ones of pglock's caller would wait for it. The read end takes their numbers, to which nothing can be written.
fn keep_for_answer([read_end, write_end]: [RawFd; 2]) -> io::Result<()> {
    for number in 0..ANSWER {
        duplicate(read_end, number)?;
    }
    duplicate(write_end, ANSWER)?;
    close_from(ANSWER + 1);
    Ok(())
}

/// Has a number stand for what this descriptor stands for.
fn duplicate(descriptor: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: the call takes numbers only; what it closes, nobody in this process uses any more.
    check(unsafe { libc::dup2(descriptor, number) }).map(drop)
}

impl Inquiry {
    /// What to give to [`poll`].
    pub fn wait(&self) -> Wait {
        Wait::read(self.answer.as_raw_fd())
    }

    /// What came of the call, up to [`PIPE_BUF`] bytes; nothing if the child was killed.
    pub fn answer(self) -> String {
        let mut bytes = [0; PIPE_BUF];
        let count = read(self.answer.as_raw_fd(), &mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }
}

impl Drop for Inquiry {
    fn drop(&mut self) {
        if is_running(self.child) {
            // One that it could not kill ends by itself.
            let _ = end(self.child);
        }
    }
}

/// Has a child make a call, for at most this long.
pub fn run_in_child(limit: Duration, call: impl FnOnce()) {
    let Ok(inquiry) = inquire(|| {
        call();
        String::new()
    }) else {
        return;
    };
    let deadline = now() + limit;
    loop {
        let left = deadline.saturating_sub(now());
        let mut waits = [inquiry.wait()];
        if left.is_zero() || poll(&mut waits, Some(left)).is_err() || waits[0].ready {
            break;
        }
    }
}

/// Starts a thread for a call that may block, with all signals blocked, so that they go to the first. As long as it
/// runs nothing may be forked: a child would find what that thread had in hand half done.
///
/// # Errors
/// The system has no thread left.
pub fn spawn_thread<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let before = block_signals()?;
    let thread = thread::Builder::new().spawn(call);
    set_mask(&before).or_else(|_| set_mask(&before))?;
    thread
}

// The guardian

/// What pglock and its guardian both see, in memory that they share.
#[derive(Clone, Copy)]
pub struct Ward(&'static WardCells);

struct WardCells {
    group: AtomicI32,
    deadline: AtomicU64,
    fired: AtomicBool,
}

impl Ward {
    /// A ward with no group and no deadline.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: zeros are a value of the cells, which are atomic.
        let cells = unsafe { share()? };
        let ward = Self(cells);
        ward.set_deadline(None);
        Ok(ward)
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

    /// When the group has to be dead, on the clock of [`now`].
    pub fn deadline(&self) -> Option<Duration> {
        let deadline = self.0.deadline.load(Ordering::SeqCst);
        (deadline != u64::MAX).then(|| Duration::from_nanos(deadline))
    }

    /// Moves that deadline.
    pub fn set_deadline(&self, deadline: Option<Duration>) {
        let deadline = deadline.map_or(u64::MAX, |deadline| {
            u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX)
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
}

/// How long a process that is forked apart may take to get there. The machine may be busy.
const SETTLING: Duration = Duration::from_secs(10);

/// What a process that is forked apart says when it has got there.
pub struct Report(OwnedFd);

/// Forks a process out of reach of everything that is meant for pglock or its command: in a session of its
/// own, all signals blocked, under a name of its own, in the root folder, and with no descriptor but `kept`, none of
/// them a standard one, which become its 0, 1 and so on. It runs `job` and ends.
///
/// # Errors
/// The system has no process or descriptor left.
pub fn fork_apart<const N: usize>(
    kept: [RawFd; N],
    job: impl FnOnce(),
) -> io::Result<(Pid, Report)> {
    let (report, write_end) = pipe()?;
    match fork()? {
        Fork::Parent(child) => Ok((child, Report(report))),
        Fork::Child(_) => {
            let errno = match settle_apart(kept) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            if write_all(write_end.as_raw_fd(), &errno.to_ne_bytes()).is_ok() && errno == 0 {
                close_from(N as RawFd);
                job();
            }
            exit(0);
        }
    }
}

/// What is left to do in a process that is forked apart.
fn settle_apart<const N: usize>(kept: [RawFd; N]) -> io::Result<()> {
    // SAFETY: the calls take numbers and strings that live for ever.
    unsafe {
        check(libc::setsid())?;
        // Where it may not go there, it only keeps a file system from being unmounted.
        libc::chdir(c"/".as_ptr());
        // One that `pkill pglock` does not find; where it does, this is a guardian like any that is killed.
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_NAME, c"lock-guardian".as_ptr());
    }
    for (number, descriptor) in kept.into_iter().enumerate() {
        duplicate(descriptor, number as RawFd)?;
    }
    Ok(())
}

impl Report {
    /// Waits until the process has got there, which it mostly has by now.
    ///
    /// # Errors
    /// The system does not let it get there, or it has been killed.
    pub fn wait(self) -> io::Result<()> {
        let deadline = now() + SETTLING;
        let mut errno = [0; size_of::<i32>()];
        let count = loop {
            match read(self.0.as_raw_fd(), &mut errno) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
            let left = deadline.saturating_sub(now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            poll(&mut [Wait::read(self.0.as_raw_fd())], Some(left))?;
        };
        if count != errno.len() {
            return Err(io::Error::other("the guardian was killed"));
        }
        match i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Closes all descriptors from this one on.
fn close_from(first: RawFd) {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes numbers only; what it closes, nobody in this process uses any more.
    if unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) } == 0 {
        return;
    }
    // SAFETY: as above.
    unsafe {
        let most = libc::sysconf(libc::_SC_OPEN_MAX).clamp(256, 1 << 20);
        for descriptor in first..most as RawFd {
            libc::close(descriptor);
        }
    }
}

/// The next byte of a pipe, `None` at its end.
///
/// # Errors
/// There is none now, or it cannot be read.
pub fn read_byte(descriptor: RawFd) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let count = read(descriptor, &mut byte)?;
    Ok((count == 1).then_some(byte[0]))
}

/// Waits until there is something to read, the end of a pipe counting (`true`), or the time has come.
///
/// # Errors
/// The kernel is out of memory.
pub fn wait_until(descriptor: RawFd, deadline: Option<Duration>) -> io::Result<bool> {
    let timer = Timer::new();
    timer.set(deadline);
    let mut waits = [Wait::read(descriptor), timer.wait()];
    let left = deadline.map(|deadline| deadline.saturating_sub(now()));
    poll(&mut waits, left)?;
    Ok(waits[0].ready)
}

/// Waits for this long, whatever arrives; less long only where the system cannot wait.
pub fn pause(time: Duration) {
    let until = now() + time;
    loop {
        let left = until.saturating_sub(now());
        if left.is_zero() || poll(&mut [], Some(left)).is_err() {
            return;
        }
    }
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
    pub fn set(&self, _moment: Option<Duration>) {
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            // All zeros would disarm it.
            let moment = _moment.map(|moment| moment.max(Duration::from_nanos(1)));
            let moment = moment.unwrap_or_default();
            let zero = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let time = libc::itimerspec {
                it_interval: zero,
                it_value: libc::timespec {
                    tv_sec: moment.as_secs() as _,
                    tv_nsec: moment.subsec_nanos().into(),
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
    pub fn wait(&self) -> Wait {
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            return Wait::read(descriptor.as_raw_fd());
        }
        Wait::none()
    }
}

// The terminal

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_tells_a_live_member_of_a_group_whatever_its_name() {
        let line = |name: &[u8], state: &str, group: i32, threads: i32| {
            let rest =
                format!(") {state} 1 {group} 9 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 8 0\n");
            [b"17 (", name, rest.as_bytes()].concat()
        };
        let leader = Pid(7);
        let names: [&[u8]; 5] = [b"sleep", b"a) Z 1 8", b"\xd0\xb1\xd0", b"", b"(\n\xff"];
        for name in names {
            for (state, group, threads, lives) in [
                ("S", 7, 1, true),
                ("T", 7, 1, true),
                ("S", 8, 1, false),
                ("Z", 7, 1, false),
                ("Z", 7, 0, false),
                ("X", 7, 0, false),
                ("Z", 7, 2, true),
                ("Z", 8, 2, false),
            ] {
                let line = line(name, state, group, threads);
                assert_eq!(
                    tells_of_live_member(&line, leader),
                    lives,
                    "{}",
                    String::from_utf8_lossy(&line)
                );
            }
        }
    }

    #[test]
    fn a_line_of_proc_that_is_not_understood_counts_as_alive() {
        for line in [
            "",
            "17",
            "17 (a",
            "17 (a) Z 1 7",
            "17 (a) Z 1 x",
            "17 (a) \u{e9}",
        ] {
            assert!(tells_of_live_member(line.as_bytes(), Pid(7)), "{line:?}");
        }
    }
}
