//! `pglock` runs a command while it holds a PostgreSQL advisory lock.
//!
//! # The rooms
//!
//! Each wing answers one question:
//!
//! - `cli/`: what was asked? The table of flags, the parser, the configuration; help, man page and completions.
//! - `server/`: the wire. Where a server is, how a session with it is carried on, and what its troubles mean.
//! - `lock/`: the rules, in SQL. What takes, proves, keeps, lists and gives up a lock. A question owns its answer: the
//!   room that has the SQL reads what comes of it.
//! - `acquire/`: before the command. From a configuration to a held lock, which `held.rs` hands over to
//! - `supervise/`: during the command. What becomes of the command and of its lock until both are gone.
//! - `sys/`: the kernel, one safe function for a call. `pq.rs` is the same for libpq.
//!
//! Beside them: `lease.rs` knows when to beat, to stop and to kill; `guardian.rs` is the process that kills the command if
//! pglock cannot; `command.rs` starts it; `exit.rs` has the statuses; `log.rs`, `text.rs` and `secrets.rs` see to what may be
//! shown, and how; `status.rs` prints the table of `--status`.
//!
//! # One run
//!
//! 1. `sys/startup.rs` takes the arguments as bytes, `cli/config.rs` makes a `Config` of them or ends with one clear error.
//!    Signals are caught from here on.
//! 2. `server/conninfo.rs` brings all settings together, one set for each host. A child looks the names up, and
//!    `acquire/dial.rs` connects.
//! 3. `acquire/exchange.rs` asks for the lock, mostly in one round trip: it sets the lease, looks whether the server lost its
//!    sessions a moment ago, takes the lock, and shows it in the server's own lock table. Only that is proof.
//!    Meanwhile the guardian is made. `acquire/state.rs` decides what follows: wait, hold off, try again, go to the next host, skip.
//! 4. `supervise.rs` starts the command in a process group of its own, and from then on turns what `poll` tells into
//!    events, has `supervise/state.rs` decide, and carries the effects out: ask for a sign of life, connect again, stop, kill.
//! 5. When the command has ended, and `--hold` is over, `lock/release.rs` gives the lock up, and its status becomes pglock's own.
//!
//! # The rules
//!
//! - When in doubt there is no command: an answer that is not understood is no lock.
//! - Decisions are pure. Both `state.rs` take a state and an event, give effects, and ask for no time and do no I/O;
//!   every pair is decided by name, and `matrix.txt` beside each shows them all.
//! - Nothing waits in `supervise`: what would is an event later. Every delay is a deadline of the one `poll`.
//! - One thread, but for the one in which `supervise/reconnect.rs` connects again, where libpq may block.
//! - `unsafe` stands in `pq.rs` and `sys/` only, and a comment argues for each.
//! - Nobody calls upwards: `acquire` and `supervise` do not know each other, and no room below knows either.
//!
//! `PQconnectdb` and `PQexec` return when the server pleases. A pglock that sat in them would hear no signal, miss the end
//! of `--wait`, and let a command outlive its lease. So `PQconnectStart` and `PQsendQuery` stand in their place: they
//! return at once and leave the waiting to `poll`, which waits for everything together. Where libpq blocks all the same, for
//! Kerberos or a service file, it does so behind a door that signals and deadlines get through.
//!
//! # To change something
//!
//! - Add a flag: its row in `cli/flags.rs`, its field in `cli/config.rs`, its row in the README, which a test asks for.
//!   Help, man page, completions and the variable come by themselves. What it does belongs to `acquire/` before the command, to
//!   `supervise/` with it.
//! - An exit status: `exit.rs`, likewise.
//! - What the man page says beyond these tables: `doc/manual.md`, which is read on its own too; `cli/roff.rs` makes the page of it.
//! - The hold-off after a restart or a promotion: the rule, its length and its SQL are in `lock/restart.rs`.
//! - Where a server is looked for that was lost: `server/places.rs`; when a lock on another server counts: `Kinship` in
//!   `supervise/state.rs`.
//! - Another kind of pooler: its words in `server/retry.rs`, with a sample beside each; that a transaction holds the lock there, `server/session_settings.rs`;
//!   how a waiter goes about it, `acquire/state.rs`. Its tests go to `tests/servers/poolers.rs`.
//! - A column of the status: `lock/holders.rs` has the rows, `status.rs` prints them, as a table and as JSON.
//! - A deadline: `lease.rs` for those of the lease, and the two `state.rs` for what they wait for besides.
//! - A new log line: an effect of the `state.rs` that knows of it, and its words there; `log.rs` has the form of all.
//! - A call of the kernel's: the room of its subject in `sys/`.
//! - Statements: `lock/statements.txt` shows each whole, and a test holds it against the code.
//! - A pair of stage and event: the two `state.rs`, their `matrix.txt`, and what `tests/simulation/` makes of it: it runs the
//!   pure rooms in a made-up world, whose server reads the very SQL and has to be taught new statements.
//! - Tests: `tests/main.rs` has the chapters. What a table decides has its unit test beside it.
#![cfg_attr(not(test), no_main)]

mod acquire;
mod cli;
mod command;
mod exit;
mod guardian;
mod held;
mod lease;
mod lock;
mod log;
mod moment;
mod pq;
mod secrets;
mod server;
mod status;
mod supervise;
mod sys;
mod text;

/// A world around the pure rooms, made up for a test.
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

use std::ffi::OsString;

use acquire::AcquireError;
use cli::config::{self, Config, Request};
use exit::Exit;
use lock::Name;
use log::{Log, Verbosity};
use moment::Moment;
use sys::Signals;

c_main!(run);

/// From the arguments to the exit status.
fn run(arguments: Vec<OsString>) -> u8 {
    let start = sys::now();
    if let Err(error) = sys::occupy_standard_descriptors() {
        let log = Log::new(Verbosity::Quiet);
        log.error(format_args!(
            "could not open a standard descriptor: {}",
            text::reason(&error)
        ));
        return Exit::Failed.status();
    }
    sys::load_no_modules();
    let variables: Vec<_> = std::env::vars_os().collect();
    for (name, value) in &variables {
        secrets::note_variable(name, value);
    }
    let request = config::read(arguments, &variables);
    // Not to be kept for as long as the command runs.
    drop(variables);
    let exit = match request {
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
        Exit::Signal(signal) => sys::die_by_signal(signal),
        exit => exit.status(),
    }
}

/// Takes the lock and runs the command under it.
fn hold_and_run(config: &Config, start: Moment) -> Exit {
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
                Name::Key(_) => "Lock ID",
                Name::Text(_) => "Lock",
            };
            log.info(format_args!("{kind} {name} obtained successfully!"));
            supervise::run(config, held, start, environment, &signals, log)
        }
        Err(AcquireError::NotObtained) => {
            log.info(format_args!(
                "Could not obtain lock {name}, skipping command"
            ));
            Exit::Status(config.conflict_exit_code)
        }
        Err(stop) => stopped(stop, log),
    }
}

/// Lists who holds and who waits.
fn show_status(config: &Config, start: Moment) -> Exit {
    let log = Log::new(config.verbosity);
    name_passed_over(config, log);
    let shown = catch_signals().and_then(|signals| {
        let rows = acquire::status(config, start, &signals, log)?;
        let name = config.lock_name();
        let text = match config.json {
            true => status::json(&rows, name),
            false => status::table(&rows, name),
        };
        // Whoever reads it may have stopped reading.
        let printed = signals.while_blocking(None, "", Exit::Failed.status(), || print(&text));
        let is_taken = config.names_lock && status::is_held(&rows);
        Ok(match printed {
            Exit::Status(0) if is_taken => Exit::Status(config.conflict_exit_code),
            other => other,
        })
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

fn catch_signals() -> Result<Signals, AcquireError> {
    Signals::catch().map_err(|error| {
        AcquireError::Failed(format!("could not catch signals: {}", text::reason(&error)))
    })
}

/// For what ended pglock before there was a command.
fn stopped(stop: AcquireError, log: Log) -> Exit {
    match stop {
        // Only one who wants a command skipped gets here with a lock that others hold, and it has its own status for that.
        AcquireError::NotObtained => {
            log.error("no lock was asked for, and none was obtained");
            Exit::Failed
        }
        AcquireError::Signal(signal) => {
            log.error(format_args!("{signal} came before the command ran"));
            Exit::Signal(signal)
        }
        AcquireError::Failed(message) => {
            log.error(message);
            Exit::Failed
        }
    }
}

fn print(text: &str) -> Exit {
    match sys::write_all(sys::stdout(), text.as_bytes()) {
        Ok(()) => Exit::Status(0),
        Err(error) => {
            let log = Log::new(Verbosity::Quiet);
            log.error(format_args!(
                "could not write to standard output: {}",
                text::reason(&error)
            ));
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
        for stop in [
            AcquireError::NotObtained,
            AcquireError::Failed("why".to_owned()),
        ] {
            assert_eq!(stopped(stop, log), Exit::Failed);
        }
    }
}
