//! The witness: the command that pglock is to run. It looks into the real server's lock table when it starts.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::libc;

use super::wire::Client;

/// The time since the machine was started, which is one for all processes.
pub fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the structure.
    #[allow(unsafe_code)]
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
    }
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What it has seen, as far as it came.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// When it was started.
    pub at: Duration,
    /// Whether the lock was held then.
    pub locked: Option<bool>,
}

/// The program when pglock executes it: `witness socket condition note milliseconds`.
pub fn main(words: &[String]) -> ExitCode {
    let [_, socket, condition, note, time] = words else {
        return ExitCode::from(2);
    };
    let at = now().as_nanos();
    let mut note = File::options()
        .append(true)
        .create(true)
        .open(note)
        .expect("open the note");
    writeln!(note, "{at} started").expect("write");
    let sql = format!(
        "select count(*) from pg_locks where locktype = 'advisory' and granted and {condition}"
    );
    let seen = Client::connect(Path::new(socket)).and_then(|mut client| client.query(&sql));
    let count = match seen {
        Ok(values) => values.concat(),
        Err(error) => format!("error: {error}"),
    };
    writeln!(note, "{at} {count}").expect("write");
    thread::sleep(Duration::from_millis(time.parse().unwrap_or(0)));
    ExitCode::SUCCESS
}

/// Reads the note: what it has seen, or what went wrong with it.
pub fn read(note: &Path) -> Result<Vec<Sight>, String> {
    let text = std::fs::read_to_string(note).unwrap_or_default();
    let mut sights: Vec<Sight> = Vec::new();
    for line in text.lines() {
        let (at, seen) = line.split_once(' ').ok_or(line)?;
        let at = Duration::from_nanos(at.parse().map_err(|_| line)?);
        match (seen, sights.last_mut()) {
            ("started", _) => sights.push(Sight { at, locked: None }),
            (count, Some(sight)) if sight.at == at => {
                let count: u32 = count.parse().map_err(|_| line)?;
                sight.locked = Some(count > 0);
            }
            _ => return Err(line.to_owned()),
        }
    }
    Ok(sights)
}
