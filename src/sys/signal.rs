//! Signals: which are caught, how they are noted, and what they do while a call blocks.
//!
//! They are caught by a handler, for there is a call that nothing else gets through: libpq may block while it connects. The handler's
//! statics are written by one thread, those of a blocking call before the flag that says that they are there.

use super::{Terminal, check, exit, now, own_group, pipe, read};
use std::ffi::c_int;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering, compiler_fence,
};
use std::time::Duration;

/// The number of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub(super) c_int);

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
pub(super) fn caught() -> impl Iterator<Item = c_int> {
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
pub(super) fn every_signal() -> impl Iterator<Item = c_int> {
    // The two or three between the standard and the real-time signals are the C library's own.
    (1..32).chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn every_signal() -> impl Iterator<Item = c_int> {
    1..32
}

/// Where the handler writes the numbers of the signals that arrive.
pub(super) static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

/// Whether SIGCONT has come since [`stop_own_group`] was called.
pub(super) static CONTINUED: AtomicBool = AtomicBool::new(false);

/// Whether this process is a child of pglock's, to which a signal does what it does by default.
pub(super) static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Whether pglock's caller wants SIGALRM ignored, which pglock needs for itself.
pub(super) static ALARM_IS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Whether a call is running that a signal has to end together with pglock.
pub(super) static BLOCKING: AtomicBool = AtomicBool::new(false);

/// When that call has to be over, in nanoseconds of [`now`]'s clock.
pub(super) static BLOCKING_UNTIL: AtomicU64 = AtomicU64::new(u64::MAX);

/// What to write when it is not over then, and how many bytes of it.
pub(super) static BLOCKING_LINE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

pub(super) static BLOCKING_LINE_LENGTH: AtomicUsize = AtomicUsize::new(0);

/// The exit status when it is not over then.
pub(super) static BLOCKING_STATUS: AtomicI32 = AtomicI32::new(0);

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
        let late = now().since_first().as_nanos() as u64 >= BLOCKING_UNTIL.load(Ordering::Relaxed);
        if signal == libc::SIGALRM && late {
            // SAFETY: while `BLOCKING` is set these two describe a string that is alive, see
            // `Signals::while_blocking`; `write` and `_exit` are safe in a handler.
            unsafe {
                libc::write(
                    libc::STDERR_FILENO,
                    BLOCKING_LINE.load(Ordering::Relaxed).cast(),
                    BLOCKING_LINE_LENGTH.load(Ordering::Relaxed),
                );
                libc::_exit(BLOCKING_STATUS.load(Ordering::Relaxed));
            }
        }
        if !Signal(signal).is_harmless() && !is_forgotten {
            die_by_signal(Signal(signal));
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
#[cfg(any(target_os = "freebsd", target_os = "macos"))]
use libc::__error as errno;

use crate::moment::Moment;

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
        // The handler needs it for as long as the process lives.
        SIGNAL_PIPE.store(write_end.into_raw_fd(), Ordering::Relaxed);

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
            match check(libc::sigaction(signal, &action, &mut before)) {
                // There is no such signal here: valgrind keeps the last one to itself.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                result => result?,
            };
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
    pub(super) fn restore(&self) -> io::Result<()> {
        for (signal, action) in &self.dispositions {
            // SAFETY: the call reads a structure that the system has filled.
            check(unsafe { libc::sigaction(*signal, action, ptr::null_mut()) })?;
        }
        set_mask(&self.mask)
    }

    /// The descriptor that can be read when signals have arrived.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
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
        deadline: Option<Moment>,
        line: &str,
        status: u8,
        call: impl FnOnce() -> T,
    ) -> T {
        BLOCKING_LINE.store(line.as_ptr().cast_mut(), Ordering::Relaxed);
        BLOCKING_LINE_LENGTH.store(line.len(), Ordering::Relaxed);
        BLOCKING_STATUS.store(status.into(), Ordering::Relaxed);
        let until = deadline.map_or(u64::MAX, |deadline| {
            deadline.since_first().as_nanos() as u64
        });
        BLOCKING_UNTIL.store(until, Ordering::Relaxed);
        BLOCKING.store(true, Ordering::Release);
        let start = now();
        // A millisecond late, so that the clock is past the deadline when the signal comes.
        let before = deadline.and_then(|deadline| {
            let time = deadline.since(start) + Duration::from_millis(1);
            let before = set_alarm(Some(time));
            // The caller may have set an alarm too, for the command: one that comes first stays first.
            if before.is_some_and(|before| before < time) {
                set_alarm(before);
            }
            before
        });
        // One that came before the flag was set waits in the pipe, and nobody would look there.
        if let Some(signal) = self.take().iter().find(|signal| !signal.is_harmless()) {
            die_by_signal(*signal);
        }
        let result = call();
        if deadline.is_some() {
            let spent = now().since(start);
            set_alarm(before.map(|before| before.saturating_sub(spent)));
        }
        BLOCKING.store(false, Ordering::SeqCst);
        // The line may be gone when this returns, and the flag must be by then.
        compiler_fence(Ordering::SeqCst);
        result
    }
}

/// Blocks the signals, and returns the mask that there was.
pub(super) fn block_signals() -> io::Result<libc::sigset_t> {
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
pub(super) fn set_mask(mask: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the call reads a set that is filled.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, ptr::null_mut()) }).map(drop)
}

/// Has SIGALRM sent after this time; `None` takes it back. Returns the time that was left of one set
/// before. The call only fails for a time that is none.
pub(super) fn set_alarm(after: Option<Duration>) -> Option<Duration> {
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
pub fn die_by_signal(signal: Signal) -> ! {
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
pub(super) fn with_default(signal: Signal, call: impl FnOnce()) {
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
