//! The program under test, as its users start it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction, sigprocmask,
};
use nix::unistd::Pid;

use super::janitor;
use super::server::Server;
use super::wait::{PATIENCE, within};

/// Nothing is here: no password file, no service file, no home.
const NOWHERE: &str = "/nonexistent";

/// An invocation of pglock, to be. Its environment holds nothing but what a test puts there, `PATH`, and a few variables that
/// keep the machine's own settings out.
#[derive(Clone)]
pub struct Pglock {
    program: Option<PathBuf>,
    flags: Vec<OsString>,
    command: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    input: Input,
    setup: Setup,
    dir: Option<PathBuf>,
    limit: Duration,
}

#[derive(Clone)]
enum Input {
    Nothing,
    Bytes(Arc<Vec<u8>>),
    Open,
}

/// What a process inherits beside arguments and environment.
#[derive(Clone, Default)]
struct Setup {
    dispositions: Vec<(Signal, bool)>,
    blocked: Vec<Signal>,
    descriptors: Vec<(Arc<OwnedFd>, RawFd)>,
}

impl Pglock {
    /// Without any server.
    pub fn new() -> Pglock {
        let mut environment = BTreeMap::new();
        for (name, value) in [
            ("HOME", NOWHERE),
            ("PGPASSFILE", NOWHERE),
            ("PGSERVICEFILE", NOWHERE),
            ("PGSYSCONFDIR", NOWHERE),
            ("LC_ALL", "C"),
        ] {
            environment.insert(name.into(), value.into());
        }
        // A folder that we may not search (root's, after su) would turn "not found" into "not permitted".
        let path = std::env::var_os("PATH").expect("PATH");
        let path = std::env::split_paths(&path).filter(|dir| dir.read_dir().is_ok());
        environment.insert("PATH".into(), std::env::join_paths(path).expect("a PATH"));
        // The last one is for measuring coverage.
        for name in ["LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                environment.insert(name.into(), value);
            }
        }
        Pglock {
            program: Some(env!("CARGO_BIN_EXE_pglock").into()),
            flags: Vec::new(),
            command: Vec::new(),
            environment,
            input: Input::Nothing,
            setup: Setup::default(),
            dir: None,
            limit: Duration::from_secs(60),
        }
    }

    /// With variables that lead to the Unix socket of `server`, as `postgres`.
    pub fn on(server: &Server) -> Pglock {
        Pglock::new()
            .env("PGLOCK_HOST", server.socket_dir())
            .env("PGLOCK_PORT", server.port().to_string())
            .env("PGLOCK_USER", "postgres")
    }

    /// With variables that lead to a port of 127.0.0.1, as `postgres`.
    pub fn at(port: u16) -> Pglock {
        Pglock::new()
            .env("PGLOCK_HOST", "127.0.0.1")
            .env("PGLOCK_PORT", port.to_string())
            .env("PGLOCK_USER", "postgres")
    }

    /// Another program than the one that was just built, for the fuzz test.
    #[allow(dead_code)]
    pub fn program(mut self, program: &Path) -> Pglock {
        self.program = Some(program.to_owned());
        self
    }

    pub fn flag(mut self, flag: impl AsRef<OsStr>) -> Pglock {
        self.flags.push(flag.as_ref().to_owned());
        self
    }

    pub fn flags<S: AsRef<OsStr>>(mut self, flags: impl IntoIterator<Item = S>) -> Pglock {
        self.flags
            .extend(flags.into_iter().map(|flag| flag.as_ref().to_owned()));
        self
    }

    /// The command, with its arguments.
    pub fn command<S: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = S>) -> Pglock {
        self.command = command
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        self
    }

    /// A script for `sh -c` as the command.
    pub fn sh(self, script: &str) -> Pglock {
        self.command(["sh", "-c", script])
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Pglock {
        self.environment
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Pglock {
        self.environment.remove(name.as_ref());
        self
    }

    pub fn dir(mut self, dir: &Path) -> Pglock {
        self.dir = Some(dir.to_owned());
        self
    }

    /// These bytes on standard input, which then ends. Without this it ends at once.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Pglock {
        self.input = Input::Bytes(Arc::new(bytes.into()));
        self
    }

    /// A standard input that stays open until [`Running::close_input`].
    pub fn open_input(mut self) -> Pglock {
        self.input = Input::Open;
        self
    }

    /// Kill it after this time; a test that lets it come to that has failed.
    pub fn limit(mut self, limit: Duration) -> Pglock {
        self.limit = limit;
        self
    }

    pub fn ignoring(mut self, signal: Signal) -> Pglock {
        self.setup.dispositions.push((signal, true));
        self
    }

    pub fn not_ignoring(mut self, signal: Signal) -> Pglock {
        self.setup.dispositions.push((signal, false));
        self
    }

    pub fn blocking(mut self, signal: Signal) -> Pglock {
        self.setup.blocked.push(signal);
        self
    }

    /// Hands down `file` as descriptor `number`.
    pub fn descriptor(mut self, file: File, number: RawFd) -> Pglock {
        self.setup.descriptors.push((Arc::new(file.into()), number));
        self
    }

    /// The command alone, without pglock, but in all else the same: to compare with.
    pub fn without_pglock(mut self) -> Pglock {
        self.program = None;
        self
    }

    /// With words before its own: a program that runs it.
    pub fn preceded_by<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Pglock {
        let program = self.program.take().map(PathBuf::into_os_string);
        let own = program
            .into_iter()
            .chain(std::mem::take(&mut self.flags))
            .chain(std::mem::take(&mut self.command));
        self.command = words
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .chain(own)
            .collect();
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self) -> Output {
        self.spawn().wait_within(self.limit)
    }

    /// Starts it with a command that runs until [`Running::finish`], and waits until that command runs.
    #[track_caller]
    pub fn hold(self) -> Running {
        let running = self
            .open_input()
            .command(["sh", "-c", "echo the command runs; exec cat"])
            .spawn();
        running.wait_for_output("the command runs");
        running
    }

    /// Starts it.
    #[track_caller]
    pub fn spawn(&self) -> Running {
        let mut words: Vec<&OsStr> = Vec::new();
        if let Some(program) = &self.program {
            words.push(program.as_os_str());
            words.extend(self.flags.iter().map(OsString::as_os_str));
        }
        words.extend(self.command.iter().map(OsString::as_os_str));
        let tag = janitor::tag();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .envs(&self.environment)
            .env(janitor::TAG, &tag)
            .stdin(if matches!(self.input, Input::Nothing) {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let setup = self.setup.clone();
        // SAFETY: the closure runs between fork and exec and calls only sigaction, sigprocmask and dup2, which are
        // async-signal-safe; it allocates nothing.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || setup.apply());
        }
        let line = describe(&self.environment, &words);
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
        let mut input = child.stdin.take();
        if let Input::Bytes(bytes) = &self.input {
            let bytes = Arc::clone(bytes);
            let mut pipe = input.take().expect("a pipe");
            // It may not want them all.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let stdout = Stream::collect(child.stdout.take().expect("a pipe"));
        let stderr = Stream::collect(child.stderr.take().expect("a pipe"));
        Running {
            line,
            tag,
            child,
            status: None,
            peak: 0,
            input,
            stdout,
            stderr,
            started,
        }
    }
}

impl Setup {
    fn apply(&self) -> io::Result<()> {
        for (signal, ignored) in &self.dispositions {
            let handler = if *ignored {
                SigHandler::SigIgn
            } else {
                SigHandler::SigDfl
            };
            // SAFETY: neither of the two is a function of ours.
            #[allow(unsafe_code)]
            unsafe {
                sigaction(
                    *signal,
                    &SigAction::new(handler, SaFlags::empty(), SigSet::empty()),
                )?;
            }
        }
        let mut mask = SigSet::empty();
        for signal in &self.blocked {
            mask.add(*signal);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        for (from, to) in &self.descriptors {
            if from.as_raw_fd() == *to {
                // dup2 would leave the close-on-exec flag where it is.
                nix::fcntl::fcntl(
                    from.as_fd(),
                    nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
                )?;
            } else {
                // SAFETY: the number is the test's to choose; nothing in this child owns a descriptor of that number
                // that it still needs.
                #[allow(unsafe_code)]
                let copy = unsafe { nix::unistd::dup2_raw(from.as_fd(), *to) }?;
                std::mem::forget(copy);
            }
        }
        Ok(())
    }
}

/// The invocation as one could type it.
fn describe(environment: &BTreeMap<OsString, OsString>, words: &[&OsStr]) -> String {
    let variables = environment
        .iter()
        .filter(|(name, value)| name.to_string_lossy().starts_with("PG") && *value != NOWHERE);
    let mut line: Vec<String> = variables
        .map(|(name, value)| format!("{}={value:?}", name.to_string_lossy()))
        .collect();
    line.extend(words.iter().map(|word| format!("{word:?}")));
    line.join(" ")
}

/// A stream that a thread reads to its end.
struct Stream {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Stream {
    fn collect(mut pipe: impl Read + Send + 'static) -> Arc<Stream> {
        let stream = Arc::new(Stream {
            state: Mutex::new((Vec::new(), false)),
            changed: Condvar::new(),
        });
        let book = Arc::clone(&stream);
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut state = book.state.lock().expect("a stream");
                state.0.extend_from_slice(&buffer[..count]);
                state.1 = count == 0;
                book.changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        stream
    }

    /// Waits until `found` likes what has been read; false if the stream ends or `limit` passes first.
    fn wait_until(&self, limit: Duration, found: impl Fn(&[u8], bool) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock().expect("a stream");
        loop {
            if found(&state.0, state.1) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).expect("a stream").0;
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.state.lock().expect("a stream").0.clone()
    }
}

/// A pglock that runs. Dropping it kills it and whatever it has started.
pub struct Running {
    line: String,
    tag: String,
    child: Child,
    status: Option<ExitStatus>,
    peak: u64,
    input: Option<ChildStdin>,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
    started: Instant,
}

impl Running {
    /// The process id of pglock.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// pglock, its command, and what that has started.
    pub fn processes(&self) -> Vec<Pid> {
        janitor::tagged(&self.tag)
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended already", self.line);
        kill(self.pid(), signal).expect("signal pglock");
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    /// How it has ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.poll()
    }

    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.reap();
        }
        self.status
    }

    /// As `try_wait`, which does not tell how much memory it took.
    fn reap(&mut self) {
        let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
        // SAFETY: the call fills the number and the structure, for which all zeros are a value too.
        #[allow(unsafe_code)]
        let (pid, usage) = unsafe {
            let pid = libc::wait4(
                self.pid().as_raw(),
                &mut status,
                libc::WNOHANG,
                usage.as_mut_ptr(),
            );
            (pid, usage.assume_init())
        };
        if Errno::result(pid).expect("wait for pglock") != 0 {
            self.status = Some(ExitStatus::from_raw(status));
            self.peak = usage.ru_maxrss as u64;
        }
    }

    /// Waits for a line with `text` on standard error.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) {
        self.wait_for(&self.stderr, "standard error", text);
    }

    /// Waits for `text` on standard output.
    #[track_caller]
    pub fn wait_for_output(&self, text: &str) {
        self.wait_for(&self.stdout, "standard output", text);
    }

    #[track_caller]
    fn wait_for(&self, stream: &Stream, name: &str, text: &str) {
        let seen = stream.wait_until(PATIENCE, |bytes, _| contains(bytes, text));
        assert!(seen, "{name} never had {text:?}\n{}", self.report());
    }

    /// What standard error has had so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    /// What standard output has had so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.bytes()).into_owned()
    }

    /// Writes to standard input.
    #[track_caller]
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.input
            .as_mut()
            .expect("an open input")
            .write_all(bytes.as_ref())
            .expect("write to the command");
    }

    /// Ends standard input: a `cat` then exits.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Ends the command of [`Pglock::hold`], and waits for the end of pglock.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        self.close_input();
        self.wait()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(self) -> Output {
        self.wait_within(Duration::from_secs(60))
    }

    /// Waits for its end, but not longer than `limit`.
    #[track_caller]
    pub fn wait_within(mut self, limit: Duration) -> Output {
        if within(limit, || self.poll()).is_none() {
            panic!("still running after {limit:?}\n{}", self.report());
        }
        let elapsed = self.started.elapsed();
        self.read_to_end();
        Output {
            line: self.line.clone(),
            status: self.status.expect("a status"),
            peak: self.peak,
            stdout: self.stdout.bytes(),
            stderr: self.stderr.bytes(),
            elapsed,
        }
    }

    /// Waits until both streams are read to their ends, which may be after that of pglock.
    pub fn read_to_end(&self) {
        // What it has left behind may keep the streams open.
        for stream in [&self.stdout, &self.stderr] {
            stream.wait_until(Duration::from_secs(2), |_, ended| ended);
        }
    }

    fn report(&self) -> String {
        report(
            &self.line,
            "running",
            &self.stdout.bytes(),
            &self.stderr.bytes(),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.poll().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        janitor::kill_tagged(&self.tag);
    }
}

/// What came of an invocation.
pub struct Output {
    line: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The most memory that it had, or that this process had when it was started from it, in kB.
    pub peak: u64,
    /// From start to end.
    pub elapsed: Duration,
}

impl Output {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Everything, for the text of a failure.
    pub fn report(&self) -> String {
        report(
            &self.line,
            &self.status.to_string(),
            &self.stdout,
            &self.stderr,
        )
    }

    /// The log lines without their time stamps, which are checked.
    #[track_caller]
    pub fn log(&self) -> Vec<String> {
        let text = self.stderr();
        text.lines()
            .map(|line| match split_stamp(line) {
                Some((_, text)) => text.to_owned(),
                None => panic!("no time stamp: {line:?}\n{}", self.report()),
            })
            .collect()
    }

    /// It exited (was not killed) with this status.
    #[track_caller]
    pub fn assert_status(&self, status: i32) -> &Output {
        assert!(
            self.status.code() == Some(status) && self.status.signal().is_none(),
            "expected exit status {status}\n{}",
            self.report()
        );
        self
    }

    /// The log says this and nothing else.
    #[track_caller]
    pub fn assert_log(&self, lines: &[&str]) -> &Output {
        assert!(
            self.log() == lines,
            "expected log: {lines:#?}\n{}",
            self.report()
        );
        self
    }

    #[track_caller]
    pub fn assert_stdout(&self, text: &str) -> &Output {
        assert!(
            self.stdout == text.as_bytes(),
            "expected on standard output: {text:?}\n{}",
            self.report()
        );
        self
    }

    /// Neither stream has `text`, whatever it is.
    #[track_caller]
    pub fn assert_nowhere(&self, text: &str) -> &Output {
        for stream in [&self.stdout, &self.stderr] {
            assert!(
                !contains(stream, text),
                "{text:?} is in the output\n{}",
                self.report()
            );
        }
        self
    }

    /// pglock has failed before it did anything: status 125, and all that it says is one line with these words in it.
    #[track_caller]
    pub fn assert_refused(&self, words: &[&str]) -> &Output {
        self.assert_status(125).assert_stdout("");
        assert!(
            self.stderr().lines().count() == 1,
            "expected one line\n{}",
            self.report()
        );
        self.assert_error(words)
    }

    /// pglock has failed: status 125, and its last line, the only one that is an error, has these words in it.
    #[track_caller]
    pub fn assert_failed(&self, words: &[&str]) -> &Output {
        self.assert_status(125).assert_stdout("");
        let errors = self
            .log()
            .iter()
            .filter(|line| line.starts_with("pglock: "))
            .count();
        assert!(errors == 1, "expected one error\n{}", self.report());
        self.assert_error(words)
    }

    #[track_caller]
    fn assert_error(&self, words: &[&str]) -> &Output {
        let log = self.log();
        let last = log.last().expect("a line");
        assert!(
            self.stderr.ends_with(b"\n"),
            "the line does not end\n{}",
            self.report()
        );
        assert!(
            last.starts_with("pglock: "),
            "the error does not begin with the program's name\n{}",
            self.report()
        );
        for word in words {
            assert!(
                last.contains(word),
                "the error does not name {word:?}\n{}",
                self.report()
            );
        }
        self
    }
}

/// A log line in two parts, if it begins with a time as `2018/09/05 11:17:39 `.
pub fn split_stamp(line: &str) -> Option<(&str, &str)> {
    const SHAPE: &[u8] = b"0000/00/00 00:00:00 ";
    let (stamp, text) = line.split_at_checked(SHAPE.len())?;
    let fits = stamp.bytes().zip(SHAPE).all(|(byte, shape)| {
        if *shape == b'0' {
            byte.is_ascii_digit()
        } else {
            byte == *shape
        }
    });
    fits.then_some((stamp.trim_end(), text))
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

fn report(line: &str, status: &str, stdout: &[u8], stderr: &[u8]) -> String {
    let show = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
        if bytes.len() > 4000 {
            format!("{text}... ({} bytes)", bytes.len())
        } else {
            text
        }
    };
    format!(
        "------ command\n{line}\n------ status\n{status}\n------ standard output\n{}\n------ standard error\n{}\n------",
        show(stdout),
        show(stderr)
    )
}
