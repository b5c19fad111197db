//! The fuzz test: a server's answers are bent in every way, one case after the other, and pglock must take it. The
//! command never runs without a lock, and there is neither silence nor flood: pglock ends in time, hears signals, and keeps within
//! bounds in memory and in what it says.
//!
//! `make fuzz` runs it at length, with the options of [`options`]; `make test` runs a short one. A case is a pglock and a real
//! server with a man in the middle. What is bent and how depends on the seed and the number of the case alone, so that one that
//! has failed can be repeated; what comes of it also depends on how fast the three are.

#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod bend;
mod case;
mod judge;
mod middle;
mod options;
#[allow(dead_code)]
#[path = "../chaos/random.rs"]
mod random;
mod wire;
mod witness;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use case::Case;
use judge::{PASSWORD, Verdict, judge};
use options::Options;
use support::Server;

/// The name of the short run among the tests.
const NAME: &str = "no_answer_does_harm_in_a_short_run";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let first = words.first().map_or("", String::as_str);
    match first {
        "witness" => return witness::main(&words),
        "run" => {
            return match Options::read(&words[1..]) {
                Ok(options) => run(&options),
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::from(2)
                }
            };
        }
        _ => {}
    }
    // What the test runners ask of a test program; see the custom harnesses in cargo-nextest's manual.
    if words.iter().any(|word| word == "--list") {
        if !words.iter().any(|word| word == "--ignored") {
            println!("{NAME}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = filters.is_empty() || filters.iter().any(|filter| NAME.contains(filter.as_str()));
    if wanted {
        run(&Options::short())
    } else {
        ExitCode::SUCCESS
    }
}

/// What has come of all cases so far.
#[derive(Default)]
struct Sum {
    bent: u64,
    ran: u64,
    failed: Vec<u64>,
    peak: u64,
    last: Duration,
}

fn run(options: &Options) -> ExitCode {
    let (seed, count) = (options.seed, options.count);
    println!("seed {seed}, {count} cases from {}", options.first);
    let start = Instant::now();
    let server = server();
    let socket = server.socket();
    let program = program();
    let next = AtomicU64::new(options.first);
    let sum = Mutex::new(Sum::default());
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= options.first + count {
                        return;
                    }
                    let case = Case::new(seed, number);
                    let verdict = judge(&case, &socket, &program);
                    let mut sum = sum.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    sum.add(options, &case, &verdict);
                }
            });
        }
    });
    let sum = sum
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    println!(
        "seed {seed}: {count} cases in {:.0?}, {} bent an answer, the command ran in {}; the most memory was {} kB, \
         the longest end after SIGTERM {:.1?}; {} failed",
        start.elapsed(),
        sum.bent,
        sum.ran,
        sum.peak,
        sum.last,
        sum.failed.len(),
    );
    if sum.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Sum {
    fn add(&mut self, options: &Options, case: &Case, verdict: &Verdict) {
        self.bent += u64::from(verdict.was_bent);
        self.ran += u64::from(verdict.ran);
        if !case.may_be_long() {
            self.peak = self.peak.max(verdict.peak);
        }
        self.last = self.last.max(verdict.last);
        let failed = !verdict.faults.is_empty();
        if failed {
            self.failed.push(case.number);
        }
        if failed || options.show {
            println!(
                "case {}: {case}\n{} after {:.1?}, {} kB\n{}",
                case.number, verdict.status, verdict.time, verdict.peak, verdict.report
            );
        }
        for fault in &verdict.faults {
            println!(
                "case {} FAILED: {fault}\n(again: make fuzz ARGS='--seed {} --only {}')",
                case.number, options.seed, case.number
            );
        }
    }
}

/// Trusts `postgres`, and wants a password of `careful`.
fn server() -> Server {
    let server = Server::builder()
        .hba("local all careful scram-sha-256")
        .conf("max_connections = 200")
        .start();
    let password = PASSWORD.replace('\'', "''");
    server.psql(&format!("create role careful login password '{password}'"));
    server
}

fn program() -> PathBuf {
    match std::env::var_os("PGLOCK_BIN") {
        Some(path) if !path.is_empty() => path.into(),
        _ => env!("CARGO_BIN_EXE_pglock").into(),
    }
}
