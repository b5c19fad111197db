//! What a run is to be like.

use std::time::{SystemTime, UNIX_EPOCH};

pub const HELP: &str = "\
make fuzz ARGS='[option value ...]'
  --seed N    of all cases (default: the time)
  --count N   how many cases (default 5000)
  --first N   the number of the first one (default 0)
  --only N    this case only, and what came of it
  --jobs N    how many at once (default 12)
PGLOCK_BIN names another pglock than the one that was just built.";

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub first: u64,
    pub count: u64,
    pub jobs: usize,
    /// Whether to show what came of each case.
    pub show: bool,
}

impl Options {
    fn new() -> Options {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a time after 1970");
        Options {
            seed: now.as_secs(),
            first: 0,
            count: 5000,
            jobs: 12,
            show: false,
        }
    }

    /// The run that is part of the suite.
    pub fn short() -> Options {
        Options {
            count: 200,
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
            let number: u64 = value
                .parse()
                .map_err(|_| format!("{name} {value}: not a number\n{HELP}"))?;
            match name.as_str() {
                "--seed" => options.seed = number,
                "--count" => options.count = number,
                "--first" => options.first = number,
                "--jobs" => options.jobs = (number as usize).max(1),
                "--only" => {
                    (options.first, options.count, options.show) = (number, 1, true);
                }
                _ => return Err(format!("{name} {value}: no such option\n{HELP}")),
            }
        }
        Ok(options)
    }
}
