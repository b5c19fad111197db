//! What has happened in an arena.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fault::Kind;

/// One invocation of pglock.
#[derive(Clone, Debug)]
pub struct Run {
    pub number: u32,
    pub slot: usize,
    pub line: String,
    pub started: Duration,
    pub ended: Duration,
    /// The exit status; `None` if a signal has killed pglock.
    pub status: Option<i32>,
    pub stderr: String,
    /// Processes of the command that were there a second after the end of pglock.
    pub left: usize,
}

/// One fault.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// The run that held the lock.
    pub holder: Option<u32>,
    pub begun: Duration,
    pub detail: String,
}

/// A command that found another one running.
#[derive(Clone, Debug)]
pub struct Overlap {
    pub run: u32,
    pub begun: Duration,
    /// `None`: it was killed before the other one was gone.
    pub over: Option<Duration>,
}

/// The witness's log, as far as it has been read.
#[derive(Default)]
pub struct Log {
    path: PathBuf,
    read: u64,
    rest: String,
    /// Who has got the witness, and when, in this order.
    pub claims: Vec<(u32, Duration)>,
    /// Who has come to the end of the work.
    pub ends: HashMap<u32, Duration>,
    pub overlaps: Vec<Overlap>,
}

impl Log {
    pub fn new(path: &Path) -> Log {
        Log {
            path: path.to_owned(),
            ..Log::default()
        }
    }

    /// Reads what is new.
    pub fn update(&mut self) {
        let Ok(mut file) = File::open(&self.path) else {
            return;
        };
        let mut text = String::new();
        file.seek(SeekFrom::Start(self.read)).expect("seek");
        self.read += file.read_to_string(&mut text).expect("read the log") as u64;
        self.rest += &text;
        while let Some((line, rest)) = self.rest.split_once('\n') {
            let line = line.to_owned();
            self.rest = rest.to_owned();
            self.take(&line);
        }
    }

    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, run, time] = words[..] else {
            panic!("not a line of the witness: {line:?}");
        };
        let run = run.parse().expect("a run");
        let time = Duration::from_nanos(time.parse().expect("a time"));
        match what {
            "claim" => self.claims.push((run, time)),
            "end" => drop(self.ends.insert(run, time)),
            "overlap" => self.overlaps.push(Overlap {
                run,
                begun: time,
                over: None,
            }),
            _ => {
                let overlap = self.overlaps.iter_mut().rfind(|overlap| overlap.run == run);
                overlap.expect("an overlap").over = Some(time);
            }
        }
    }
}

/// All that is known of an arena.
#[derive(Default)]
pub struct Book {
    pub runs: Vec<Run>,
    pub faults: Vec<Fault>,
    pub log: Log,
}

impl Book {
    /// The last fault that had begun at this moment.
    pub fn last_fault(&self, moment: Duration) -> Option<&Fault> {
        self.faults.iter().rfind(|fault| fault.begun <= moment)
    }

    pub fn run(&self, number: u32) -> Option<&Run> {
        self.runs.iter().find(|run| run.number == number)
    }

    pub fn has_claimed(&self, run: u32) -> bool {
        self.log.claims.iter().any(|(other, _)| *other == run)
    }
}
