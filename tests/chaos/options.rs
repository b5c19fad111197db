//! What a run is to be like.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const HELP: &str = "\
make chaos ARGS='[option value ...]'
  --seed N       of the schedule (default: the time)
  --minutes N    the shortest time to run (default 30)
  --faults N     the least number of faults (default 1000)
  --arenas N     servers with a competition each, side by side (default 4)
  --slots N      competitors in each (default 4), of whom one or more come through a PgBouncer with its defaults
  --ttl N        of all pglocks (default 5)
  --grace N      of all pglocks (default 1)
  --only KINDS   faults of these kinds only, separated by commas
  --also KINDS   faults of these kinds too, which are not made by default
  --control lease-off   all pglocks run with --ttl 0
  --control late        all pglocks are two seconds late with their deadlines
make chaos ARGS='restarts [N]'
  N restarts (default 30), fast, immediate and by crash, under one command, with others at the door
make chaos ARGS='failovers [N]'
  N failovers (default 10) of a primary and its standby, by switchover and crash, then a third as many split brains with
  synchronous replication and --sync, under contenders whose commands do not heed SIGTERM
PGLOCK_BIN names another pglock than the one that was just built.";

/// Whether the pglocks are sound, or made so that there must be overlaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Sound,
    LeaseOff,
    Late,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub time: Duration,
    pub faults: usize,
    pub arenas: usize,
    pub slots: usize,
    pub ttl: u64,
    pub grace: u64,
    pub only: Vec<String>,
    pub also: Vec<String>,
    pub control: Control,
    /// The short run in the suite, which is quiet while it goes on.
    pub short: bool,
}

impl Options {
    fn new() -> Options {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a time after 1970");
        Options {
            seed: now.as_secs(),
            time: Duration::from_secs(30 * 60),
            faults: 1000,
            arenas: 4,
            slots: 4,
            ttl: 5,
            grace: 1,
            only: Vec::new(),
            also: Vec::new(),
            control: Control::Sound,
            short: false,
        }
    }

    /// The run that is part of the suite.
    pub fn short() -> Options {
        Options {
            time: Duration::from_secs(20),
            faults: 8,
            arenas: 2,
            short: true,
            ..Options::new()
        }
    }

    pub fn read(words: &[String]) -> Result<Options, String> {
        let mut options = Options::new();
        let mut words = words.iter();
        while let Some(name) = words.next() {
            if name == "--help" {
                return Err(HELP.to_owned());
            }
            let value = words
                .next()
                .ok_or_else(|| format!("{name} lacks its value\n{HELP}"))?;
            let number = || {
                value
                    .parse::<f64>()
                    .map_err(|_| format!("{name} {value}: not a number\n{HELP}"))
            };
            match name.as_str() {
                "--seed" => options.seed = number()? as u64,
                "--minutes" => options.time = Duration::from_secs_f64(number()? * 60.0),
                "--faults" => options.faults = number()? as usize,
                "--arenas" => options.arenas = number()? as usize,
                "--slots" => options.slots = number()? as usize,
                "--ttl" => options.ttl = number()? as u64,
                "--grace" => options.grace = number()? as u64,
                "--only" => options.only = value.split(',').map(str::to_owned).collect(),
                "--also" => options.also = value.split(',').map(str::to_owned).collect(),
                "--control" if value == "lease-off" => options.control = Control::LeaseOff,
                "--control" if value == "late" => options.control = Control::Late,
                _ => return Err(format!("{name} {value}: no such option\n{HELP}")),
            }
        }
        Ok(options)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let control = match self.control {
            Control::Sound => "",
            Control::LeaseOff => ", control: the lease is off",
            Control::Late => ", control: the deadlines are two seconds late",
        };
        write!(
            f,
            "seed {}, ttl {} s, grace {} s, {} servers with {} competitors each{control}",
            self.seed, self.ttl, self.grace, self.arenas, self.slots
        )
    }
}
