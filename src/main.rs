//! `pglock` runs a command while it holds a PostgreSQL advisory lock.
#![cfg_attr(not(test), no_main)]

mod acquire;
mod cli;
mod command;
mod exit;
mod guardian;
mod lease;
mod lock;
mod log;
mod pq;
mod secrets;
mod server;
mod status;
mod supervise;
mod sys;
mod text;

use std::ffi::OsString;
use std::time::Duration;

use acquire::Stop;
use cli::config::{self, Config, Request};
use exit::Exit;
use lock::Name;
use log::{Log, Verbosity};
use sys::Signals;

c_main!(run);

/// From the arguments to the exit status.
fn run(arguments: Vec<OsString>) -> u8 {
    let start = sys::now();
    if let Err(error) = sys::occupy_standard_descriptors() {
        let log = Log::new(Verbosity::Quiet);
        log.error(format_args!(
            "could not open a standard descriptor: {error}"
        ));
        return Exit::Failed.status();
    }
    sys::load_no_modules();
    let variables: Vec<_> = std::env::vars_os().collect();
    for (name, value) in &variables {
        secrets::note_variable(&name.to_string_lossy(), &value.to_string_lossy());
    }
    let exit = match config::read(arguments, &variables) {
        Ok(Request::Help) => print(&cli::help::help()),
        Ok(Request::Version) => print(&version()),
        Ok(Request::Generate(asset)) => print(&cli::generate(asset)),
        Ok(Request::Status(config)) => show_status(&config, start),
        Ok(Request::Run(config)) => hold_and_run(&config, start),
        Err(error) => {
            Log::new(Verbosity::Quiet).error(error);
            Exit::Failed
        }
    };
    match exit {
        Exit::Signal(signal) => sys::end_by(signal),
        exit => exit.status(),
    }
}

/// Takes the lock and runs the command under it.
fn hold_and_run(config: &Config, start: Duration) -> Exit {
    let log = Log::new(config.verbosity);
    name_passed_over(config, log);
    let environment = sys::environment();
    let taken = catch_signals().and_then(|signals| {
        let held = acquire::acquire(config, start, &signals, log)?;
        Ok((held, signals))
    });
    let name = &config.lock;
    match taken {
        Ok((held, signals)) => {
            let kind = match name {
                Name::Id(_) => "Lock ID",
                Name::Text(_) => "Lock",
            };
            log.info(format_args!("{kind} {name} obtained successfully!"));
            supervise::run(config, held, environment, &signals, log)
        }
        Err(Stop::NotObtained) => {
            log.info(format_args!(
                "Could not obtain lock {name}, skipping command"
            ));
            Exit::Status(config.conflict_exit_code)
        }
        Err(stop) => stopped(stop, log),
    }
}

/// Lists who holds and who waits.
fn show_status(config: &Config, start: Duration) -> Exit {
    let log = Log::new(config.verbosity);
    name_passed_over(config, log);
    let shown = catch_signals().and_then(|signals| {
        let outcomes = acquire::status(config, start, &signals, log)?;
        let table = status::table(&outcomes).ok_or_else(|| {
            Stop::Failed(
                "the server gave an unexpected answer to the question who holds the lock"
                    .to_owned(),
            )
        })?;
        // Whoever reads it may have stopped reading.
        Ok(signals.while_blocking(None, "", Exit::Failed.status(), || print(&table)))
    });
    shown.unwrap_or_else(|stop| stopped(stop, log))
}

/// Says which variables pglock has passed over although they begin as its own do; without their values.
fn name_passed_over(config: &Config, log: Log) {
    if !config.passed_over.is_empty() {
        let names = config.passed_over.join(", ");
        log.detail(format_args!(
            "Passed over, for they are not pglock's: {names}."
        ));
    }
}

fn catch_signals() -> Result<Signals, Stop> {
    Signals::catch().map_err(|error| Stop::Failed(format!("could not catch signals: {error}")))
}

/// For what ended pglock before there was a command.
fn stopped(stop: Stop, log: Log) -> Exit {
    match stop {
        // Only one who wants a command skipped gets here with a lock that others hold, and it has its own status for that.
        Stop::NotObtained => {
            log.error("no lock was asked for, and none was obtained");
            Exit::Failed
        }
        Stop::Signal(signal) => {
            log.error(format_args!("{signal} came before the command ran"));
            Exit::Signal(signal)
        }
        Stop::Failed(message) => {
            log.error(message);
            Exit::Failed
        }
    }
}

fn print(text: &str) -> Exit {
    match sys::write_all(sys::STDOUT, text.as_bytes()) {
        Ok(()) => Exit::Status(0),
        Err(error) => {
            let log = Log::new(Verbosity::Quiet);
            log.error(format_args!("could not write to standard output: {error}"));
            Exit::Failed
        }
    }
}

fn version() -> String {
    format!(
        "pglock {} (libpq {})\n",
        env!("PGLOCK_BUILD_VERSION"),
        pq::version()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_pglock_is_no_success() {
        let log = Log::new(Verbosity::Quiet);
        for stop in [Stop::NotObtained, Stop::Failed("why".to_owned())] {
            assert_eq!(stopped(stop, log), Exit::Failed);
        }
    }
}
