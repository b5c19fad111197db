//! Runs a case, and finds what is wrong with how pglock took it.

use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::case::{Case, Other};
use super::middle::{Book, Middle};
use super::support::wait::within;
use super::support::{Output, Pglock, Running, Scratch};
use super::wire::Client;
use super::witness;

/// The password of the role that needs one.
pub const PASSWORD: &str = "se;cr'et";

/// How long an invocation may take where nobody ends it: connecting, the lock call and what comes with it, a ttl to hold
/// off and one to notice that the server is silent, the command, and the release.
const LIMIT: Duration = Duration::from_secs(20);
/// How long after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(2);
/// What a busy machine may add to that.
const SLACK: Duration = Duration::from_secs(2);
/// In kB, and where there may be a table of the server's to show.
const MEMORY: u64 = 32 << 10;
const MEMORY_OF_TABLE: u64 = 400 << 10;
/// In bytes.
const LINE: usize = 2 << 10;
const OUTPUT: usize = 64 << 10;

/// What came of a case.
pub struct Verdict {
    /// What is wrong.
    pub faults: Vec<String>,
    /// Whether pglock got a bent answer.
    pub was_bent: bool,
    /// Whether the command ran.
    pub ran: bool,
    pub status: String,
    pub report: String,
    pub peak: u64,
    pub time: Duration,
    /// From SIGTERM to the end.
    pub last: Duration,
}

pub fn judge(case: &Case, socket: &Path, program: &Path) -> Verdict {
    let dir = Scratch::new();
    let note = dir.path().join("note");
    let mut other = Holder::new(case, socket);
    let middle = Middle::new(socket.to_owned(), case.clone());
    let mut running = pglock(case, &middle, &other, socket, program, &note).spawn();
    let run = attend(case, &middle, &mut other, &mut running, &note);
    let left = within(SLACK, || running.processes().is_empty().then_some(())).is_none();
    let mut faults = run.faults;
    if left {
        faults.push(format!("left over: {:?}", running.processes()));
    }
    let book = middle.book();
    let mut verdict = Verdict {
        faults,
        was_bent: book.bent > 0,
        ran: false,
        status: String::new(),
        report: String::new(),
        peak: 0,
        time: run.time,
        last: run
            .termed
            .map_or(Duration::ZERO, |termed| run.time - termed),
    };
    if !running.is_running() {
        let output = running.wait();
        verdict.status = output.status.to_string();
        verdict.report = output.report();
        verdict.peak = output.peak;
        look_at_output(case, &output, run.termed.is_some(), &mut verdict.faults);
    }
    look_at_book(&book, run.time, &mut verdict.faults);
    match witness::read(&note) {
        Ok(sights) => {
            verdict.ran = !sights.is_empty();
            look_at_sights(&sights, &book, &mut verdict.faults);
        }
        Err(line) => verdict.faults.push(format!("the witness: {line}")),
    }
    verdict
}

fn pglock(
    case: &Case,
    middle: &Middle,
    other: &Holder,
    socket: &Path,
    program: &Path,
    note: &Path,
) -> Pglock {
    let mut pglock = Pglock::at(middle.port).program(program).flags(&case.flags);
    if case.password {
        pglock = pglock
            .env("PGLOCK_USER", "careful")
            .env("PGLOCK_PASS", PASSWORD);
    }
    if case.is_status() {
        return pglock;
    }
    let own = std::env::current_exe().expect("the own path");
    let condition = format!("{} and pid <> {}", case.condition(), other.backend);
    pglock.command([
        own,
        "witness".into(),
        socket.to_owned(),
        condition.into(),
        note.to_owned(),
        PathBuf::from(case.time.as_millis().to_string()),
    ])
}

/// Another holder of the lock, if the case has one.
struct Holder {
    client: Option<Client>,
    backend: String,
    until: Option<Duration>,
    unlock: String,
}

impl Holder {
    fn new(case: &Case, socket: &Path) -> Holder {
        let until = match case.other {
            Other::HoldsUntil(until) => Some(until),
            _ => None,
        };
        let mut holder = Holder {
            client: None,
            backend: "0".to_owned(),
            until,
            unlock: case.call("pg_advisory_unlock"),
        };
        if case.other != Other::Nobody {
            let mut client = Client::connect(socket).expect("connect");
            let backend = client.query("select pg_backend_pid()").expect("a number");
            holder.backend = backend.concat();
            client
                .query(&case.call("pg_advisory_lock"))
                .expect("the lock");
            holder.client = Some(client);
        }
        holder
    }

    /// Gives the lock up when it is time.
    fn carry_on(&mut self, time: Duration) {
        if self.until.is_some_and(|until| until <= time)
            && let Some(client) = &mut self.client
        {
            let _ = client.query(&self.unlock);
            self.until = None;
        }
    }
}

struct Run {
    faults: Vec<String>,
    /// When SIGTERM was sent.
    termed: Option<Duration>,
    time: Duration,
}

/// Lets it run to its end, and does to it meanwhile what the case wants.
fn attend(
    case: &Case,
    middle: &Middle,
    other: &mut Holder,
    running: &mut Running,
    note: &Path,
) -> Run {
    let start = Instant::now();
    let mut run = Run {
        faults: Vec::new(),
        termed: None,
        time: Duration::ZERO,
    };
    let (mut term, mut loss) = (case.term, case.loss);
    let mut ran_at = None;
    let mut end_by = LIMIT + SLACK;
    while running.is_running() {
        run.time = start.elapsed();
        other.carry_on(run.time);
        if ran_at.is_none() && note.exists() {
            ran_at = Some(run.time);
        }
        if let (Some(ran_at), Some(lost)) = (ran_at, loss)
            && ran_at + lost.after <= run.time
        {
            middle.lose();
            loss = None;
        }
        if term.is_some_and(|term| term <= run.time) {
            // It may have ended in this moment.
            let sent = kill(running.pid(), Signal::SIGTERM);
            run.termed = sent.is_ok().then_some(run.time);
            term = None;
            end_by = end_by.min(run.time + TERM_LIMIT + SLACK);
        }
        if end_by < run.time {
            run.faults.push(match run.termed {
                Some(_) => format!("deaf to SIGTERM; {}", state(running)),
                None => format!("has no end; {}", state(running)),
            });
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    run.time = start.elapsed();
    run
}

/// What a pglock is at that does not end.
fn state(running: &Running) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid()));
    let mut text = String::new();
    for line in status.unwrap_or_default().lines() {
        if ["State", "VmHWM", "VmRSS"]
            .iter()
            .any(|name| line.starts_with(name))
        {
            let _ = write!(
                text,
                "{} ",
                line.split_whitespace().collect::<Vec<_>>().join(" ")
            );
        }
    }
    let log = running.stderr();
    format!(
        "{text}; {}",
        log.get(..log.len().min(2000)).unwrap_or_default()
    )
}

fn look_at_output(case: &Case, output: &Output, termed: bool, faults: &mut Vec<String>) {
    let code = output.status.code();
    let by_term = output.status.signal() == Some(Signal::SIGTERM as i32) || code == Some(143);
    if !(matches!(code, Some(0 | 75 | 124 | 125)) || termed && by_term) {
        faults.push(format!("ended with {}", output.status));
    }
    let limit = if case.may_be_long() {
        MEMORY_OF_TABLE
    } else {
        MEMORY
    };
    if output.peak > limit {
        faults.push(format!("took {} kB of memory", output.peak));
    }
    let log = String::from_utf8_lossy(&output.stderr);
    if let Some(line) = log.lines().find(|line| line.len() > LINE) {
        faults.push(format!("a line of {} bytes", line.len()));
    }
    if output.stderr.len() > OUTPUT {
        faults.push(format!("a log of {} bytes", output.stderr.len()));
    }
    if log.contains("panicked") {
        faults.push("panicked".to_owned());
    }
    if matches!(code, Some(124 | 125)) && !log.contains(" pglock: ") {
        faults.push("failed in silence".to_owned());
    }
}

fn look_at_book(book: &Book, time: Duration, faults: &mut Vec<String>) {
    let seconds = time.as_secs() as u32;
    if book.links > 20 + 15 * seconds {
        faults.push(format!("connected {} times in {time:.1?}", book.links));
    }
    if book.questions > 50 + 30 * seconds {
        faults.push(format!("asked {} questions in {time:.1?}", book.questions));
    }
}

/// The command runs only under a lock that the server itself has granted, and that it has when the command starts, unless
/// the connection on which it was granted has just ended.
fn look_at_sights(sights: &[witness::Sight], book: &Book, faults: &mut Vec<String>) {
    for sight in sights {
        let mut grants = book.grants.iter().filter(|(since, _)| *since <= sight.at);
        if grants.clone().next().is_none() {
            faults.push("the command ran without a lock".to_owned());
        } else if sight.locked == Some(false)
            && grants.any(|(_, until)| until.is_none_or(|until| until > sight.at + SLACK))
        {
            faults.push("the command ran and the lock was free".to_owned());
        }
    }
    if sights.len() > 1 {
        faults.push("the command ran more than once".to_owned());
    }
}
