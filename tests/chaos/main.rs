//! The fault test: many pglocks compete for a lock while a seeded schedule breaks whatever can break, and an
//! independent witness counts how often two commands ran at once.
//!
//! `make chaos` runs it at length, with the options of [`options`]; `make test` runs a short one. The witness is a
//! file lock, flock(2), that the command and all its children inherit: the kernel frees it when the last of them is gone, so a
//! killed command cannot leave it behind. A command that finds it taken by one that is not stopped notes an overlap, waits,
//! and so measures how long it was.

#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod arena;
mod book;
mod failovers;
mod fault;
mod late;
mod options;
mod patroni;
mod random;
mod report;
mod restarts;
mod witness;

use std::process::ExitCode;

use options::Options;

/// The name of the short run among the tests.
const NAME: &str = "nothing_overlaps_in_a_short_run";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let first = words.first().map_or("", String::as_str);
    match first {
        "claim" | "end" => return witness::main(&words),
        "run" if words.get(1).is_some_and(|word| word == "restarts") => {
            return restarts::main(&words[2..]);
        }
        "run" if words.get(1).is_some_and(|word| word == "failovers") => {
            return failovers::main(&words[2..]);
        }
        "run" if words.get(1).is_some_and(|word| word == "patroni") => {
            return patroni::main(&words[2..]);
        }
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

fn run(options: &Options) -> ExitCode {
    let report = arena::run(options);
    print!("{report}");
    if report.is_bad(options) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
