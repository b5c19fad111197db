//! New processes: the command, the guardian, and children that make a call which may block; and the one thread.

use super::*;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::text;

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
                text::reason(&error(-errno))
            ))),
        }
    }
}

/// Which of the two a process is after a fork.
pub(super) enum Fork {
    /// The one that was there before, and the number of the new one.
    Parent(Pid),
    /// The new one, with all signals blocked, and the mask that there was.
    Child(libc::sigset_t),
}

/// Makes a child, which has to end by itself, or to execute a program.
///
/// # Errors
/// The system has no process left, or there is another thread. Then there is no child.
///
/// # Safety
/// The child must not come back from whoever calls this, or what is the parent's would be dropped twice.
unsafe fn fork() -> io::Result<Fork> {
    if THREADS.load(Ordering::Relaxed) != 0 {
        return Err(io::Error::other("there is another thread"));
    }
    // No signal may reach the child before it knows that it is not pglock: the handler would note it in the
    // pipe, which is the parent's too.
    let before = block_signals()?;
    // SAFETY: there is one thread, so the child finds nothing half done; what becomes of the child is the caller's promise.
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

/// Has a child die when pglock does, where the system can do that, unless it becomes another user. It ends here if
/// pglock has ended already.
pub(super) fn die_with(parent: Pid) -> io::Result<()> {
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

    // SAFETY: the child executes the program or exits.
    match unsafe { fork()? } {
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
pub(super) fn lead_group() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::setpgid(0, 0) }).map(drop)
}

/// Executes a program in place of this process, and returns why it could not.
///
/// # Safety
/// Both are arrays of null-terminated strings that end with a null pointer, and there is one thread.
pub(super) unsafe fn execute(words: &[*const c_char], environment: &[*const c_char]) -> io::Error {
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
pub struct ForkedCall {
    child: Pid,
    answer: OwnedFd,
}

/// Has a child make a call. It finds no descriptor of pglock's or its caller's.
///
/// # Errors
/// The system has no process or descriptor left.
pub fn inquire(call: impl FnOnce() -> String) -> io::Result<ForkedCall> {
    let (answer, write_end) = pipe()?;
    let parent = own_pid();
    // SAFETY: the child exits when it has made the call.
    match unsafe { fork()? } {
        Fork::Child(mask) => {
            // What goes wrong here is seen by the answer, which is none.
            let kept = [answer.as_fd(), write_end.as_fd()];
            if die_with(parent).is_ok()
                && let Ok(answer) = keep_for_answer(kept)
                && set_mask(&mask).is_ok()
            {
                let text = call();
                let _ = write_all(answer, text.as_bytes());
            }
            exit(0);
        }
        Fork::Parent(child) => Ok(ForkedCall { child, answer }),
    }
}

/// The descriptor that an inquiry's child writes its answer to.
pub(super) const ANSWER: RawFd = 3;

/// Leaves this process the write end of a pipe as [`ANSWER`], and no other descriptor: whoever reads from the standard
/// ones of pglock's caller would wait for it. The read end takes their numbers, to which nothing can be written.
pub(super) fn keep_for_answer(
    [read_end, write_end]: [BorrowedFd; 2],
) -> io::Result<BorrowedFd<'static>> {
    for number in 0..ANSWER {
        duplicate(read_end, number)?;
    }
    duplicate(write_end, ANSWER)?;
    close_from(ANSWER + 1);
    // SAFETY: it was opened above, and nobody owns it, so that it is open until the process ends.
    Ok(unsafe { BorrowedFd::borrow_raw(ANSWER) })
}

impl ForkedCall {
    /// What to give to [`poll()`].
    pub fn wait(&self) -> Wait<'_> {
        Wait::read(self.answer.as_fd())
    }

    /// What came of the call, up to [`PIPE_BUF`] bytes; nothing if the child was killed.
    pub fn answer(self) -> String {
        let mut bytes = [0; PIPE_BUF];
        let count = read(&self.answer, &mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }
}

impl Drop for ForkedCall {
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
        let left = deadline.since(now());
        let mut waits = [inquiry.wait()];
        if left.is_zero() || poll(&mut waits, Some(left)).is_err() || waits[0].ready {
            break;
        }
    }
}

/// How many threads there are beside the first.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// A thread that makes a call which may block. As long as it has not been joined nothing is forked: a child would find what the
/// thread had in hand half done.
pub struct Thread<T>(JoinHandle<T>);

impl<T: Send + 'static> Thread<T> {
    /// Starts it, with all signals blocked, so that they go to the first.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(call: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let before = block_signals()?;
        let thread = thread::Builder::new().spawn(call);
        set_mask(&before).or_else(|_| set_mask(&before))?;
        THREADS.fetch_add(1, Ordering::Relaxed);
        thread
            .map(Self)
            .inspect_err(|_| _ = THREADS.fetch_sub(1, Ordering::Relaxed))
    }

    /// Waits for its end, and returns what came of the call; `None` where it broke off.
    pub fn join(self) -> Option<T> {
        let result = self.0.join().ok();
        THREADS.fetch_sub(1, Ordering::Relaxed);
        result
    }
}

/// What a process that is forked apart says when it has got there.
pub struct Report(OwnedFd);

/// Forks a process out of reach of everything that is meant for pglock or its command: in a session of its
/// own, all signals blocked, under a name of its own, in the root folder, and with no descriptor but `kept`, none of
/// them a standard one, which become its 0, 1 and so on. It runs `job` with these and ends.
///
/// # Errors
/// The system has no process or descriptor left.
pub fn fork_detached<const N: usize>(
    kept: [BorrowedFd; N],
    job: impl FnOnce([BorrowedFd; N]),
) -> io::Result<(Pid, Report)> {
    let (report, write_end) = pipe()?;
    // SAFETY: the child exits when its job is done.
    match unsafe { fork()? } {
        Fork::Parent(child) => Ok((child, Report(report))),
        Fork::Child(_) => {
            let errno = match settle_apart(kept) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            if write_all(&write_end, &errno.to_ne_bytes()).is_ok() && errno == 0 {
                close_from(N as RawFd);
                take_name();
                // SAFETY: `settle_apart` has opened these, and nobody owns them, so that they are open until the
                // process ends.
                job(std::array::from_fn(|number| unsafe {
                    BorrowedFd::borrow_raw(number as RawFd)
                }));
            }
            exit(0);
        }
    }
}

/// What is left to do in a process that is forked apart.
pub(super) fn settle_apart<const N: usize>(kept: [BorrowedFd; N]) -> io::Result<()> {
    // SAFETY: the calls take numbers and strings that live for ever.
    unsafe {
        check(libc::setsid())?;
        // Where it may not go there, it only keeps a file system from being unmounted.
        libc::chdir(c"/".as_ptr());
    }
    for (number, descriptor) in kept.into_iter().enumerate() {
        duplicate(descriptor, number as RawFd)?;
    }
    Ok(())
}

/// Takes a name that `pkill pglock` does not find. Whoever is found all the same is replaced as others are.
fn take_name() {
    #[cfg(target_os = "linux")]
    // SAFETY: the string lives for ever.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"lock-guardian".as_ptr());
    }
}

impl Report {
    /// Waits until the process has got there, for at most this long.
    ///
    /// # Errors
    /// The system does not let it get there, or it has been killed; or it has not got there yet (`TimedOut`).
    pub fn wait(&self, limit: Duration) -> io::Result<()> {
        let deadline = now() + limit;
        let mut errno = [0; size_of::<i32>()];
        let count = loop {
            match read(&self.0, &mut errno) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
            let left = deadline.since(now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            poll(&mut [Wait::read(self.0.as_fd())], Some(left))?;
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
