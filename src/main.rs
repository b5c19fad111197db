//! `pglock` runs a command while it holds a PostgreSQL advisory lock.
#![cfg_attr(not(test), no_main)]

mod acquire;
mod command;
mod config;
mod connect;
mod exit;
mod flags;
mod guardian;
mod lease;
mod lock;
mod log;
mod pq;
mod session;
mod supervise;
mod sys;

use std::ffi::OsString;

use acquire::Stop;
use config::{Config, Request, Verbosity};
use exit::Exit;
use log::Log;
use sys::Signals;

c_main!(run);

/// From the arguments to the exit status.
fn run(arguments: Vec<OsString>) -> u8 {
    let start = sys::now();
    sys::occupy_standard_descriptors();
    let variables: Vec<_> = std::env::vars_os().collect();
    let exit = match config::read(arguments, &variables) {
        Ok(Request::Help) => print(&flags::help()),
        Ok(Request::Version) => print(&version()),
        Ok(Request::Run(config)) => hold_and_run(&config, start),
        Err(error) => {
            Log::new(Verbosity::Quiet).error(error);
            Exit::Failed
        }
    };
    exit.status()
}

/// Takes the lock and runs the command under it.
fn hold_and_run(config: &Config, start: std::time::Duration) -> Exit {
    let log = Log::new(config.verbosity);
    let environment = sys::environment();
    let signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(error) => {
            log.error(format_args!("could not catch signals: {error}"));
            return Exit::Failed;
        }
    };
    match acquire::acquire(config, start, &signals, log) {
        Ok(held) => {
            log.info(format_args!(
                "Lock ID {} obtained successfully!",
                config.lock_id
            ));
            supervise::run(config, held, &environment, &signals, log)
        }
        Err(Stop::NotObtained) => {
            log.info(format_args!(
                "Could not obtain lock {}, skipping command",
                config.lock_id
            ));
            Exit::Status(config.conflict_exit_code)
        }
        Err(Stop::Signal(signal)) => {
            log.error(format_args!("{signal} came before the command ran"));
            Exit::Signal(signal)
        }
        Err(Stop::Failed(message)) => {
            log.error(message);
            Exit::Failed
        }
    }
}

fn print(text: &str) -> Exit {
    sys::write_all(sys::STDOUT, text.as_bytes());
    Exit::Status(0)
}

fn version() -> String {
    format!(
        "pglock {} (libpq {})\n",
        env!("PGLOCK_BUILD_VERSION"),
        pq::version()
    )
}
