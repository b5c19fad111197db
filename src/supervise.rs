//! The loop that ties the lock and the command together.

use std::ffi::CString;

use crate::acquire::{self, Held};
use crate::command::{Command, End, Words};
use crate::config::Config;
use crate::exit::Exit;
use crate::log::Log;
use crate::sys::{self, Signal, Signals};

/// Runs the command to its end, then gives the lock up.
pub fn run(
    config: &Config,
    mut held: Held,
    environment: &[CString],
    signals: &Signals,
    log: Log,
) -> Exit {
    let exit = command(config, environment, signals, log);
    if !acquire::release(&mut held, signals) {
        log.error(
            "could not release the lock: the server did not answer, and frees it when it notices that \
             the connection is closed",
        );
    }
    exit
}

fn command(config: &Config, environment: &[CString], signals: &Signals, log: Log) -> Exit {
    let words = Words(&config.command);
    // What came since the lock was taken has met no command yet.
    if let Some(signal) = signals
        .take()
        .into_iter()
        .find(|signal| !signal.is_harmless())
    {
        log.error(format_args!("{signal} came before the command ran"));
        return Exit::Signal(signal);
    }
    log.info(format_args!("Executing command: {words}"));
    let command = match Command::start(&config.command, environment, signals) {
        Ok(command) => command,
        Err(error) => {
            log.error(format_args!("could not start {words}: {error}"));
            return Exit::Failed;
        }
    };
    loop {
        let mut waits = [sys::Wait::read(signals.descriptor())];
        if let Err(error) = sys::poll(&mut waits, None) {
            log.error(format_args!("poll: {error}"));
        }
        for signal in signals.take() {
            if signal != Signal::CHLD {
                command.signal(signal);
            }
        }
        match command.reap() {
            Some(End::Ran(change)) => {
                log.info("Execution finished, exiting and cleaning up lock.");
                return Exit::of_change(change);
            }
            Some(End::NotExecuted(error)) => {
                log.error(format_args!(
                    "could not execute {:?}: {error}",
                    config.command[0].to_string_lossy()
                ));
                return Exit::of_exec_error(&error);
            }
            None => {}
        }
    }
}
