//! What a search has come to.

use std::fmt;
use std::time::Duration;

use super::coverage::Coverage;
use super::judge::Reason;
use super::options::Options;
use super::schedule::Schedule;
use super::time::{MILLISECOND, SECOND, Time};

/// A schedule that has failed.
pub struct Failure {
    pub wrong: String,
    pub schedule: Schedule,
    pub story: Vec<String>,
}

pub struct Report {
    pub seed: u64,
    pub schedules: u64,
    pub events: u64,
    pub commands: u64,
    pub coverage: Coverage,
    pub longest_gap: Time,
    pub excused: [(u64, Time); Reason::ALL.len()],
    pub failures: Vec<Failure>,
    pub time: Duration,
    whole: bool,
}

impl Report {
    pub fn new(options: &Options) -> Self {
        Self {
            seed: options.seed,
            schedules: 0,
            events: 0,
            commands: 0,
            coverage: Coverage::default(),
            longest_gap: 0,
            excused: [(0, 0); Reason::ALL.len()],
            failures: Vec::new(),
            time: Duration::ZERO,
            whole: options.whole,
        }
    }

    pub fn add(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.events += other.events;
        self.commands += other.commands;
        self.coverage.add(&other.coverage);
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        for (sum, found) in self.excused.iter_mut().zip(other.excused) {
            sum.0 += found.0;
            sum.1 = sum.1.max(found.1);
        }
        self.failures.extend(other.failures);
    }

    pub fn is_good(&self) -> bool {
        self.failures.is_empty() && (!self.whole || self.coverage.unmet().is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} schedules, {} events, {} commands in {:.1} s; {} failed; at most {:.2} s from a holder to the next",
            self.seed,
            self.schedules,
            self.events,
            self.commands,
            self.time.as_secs_f64(),
            self.failures.len(),
            self.longest_gap as f64 / SECOND as f64
        )?;
        for (reason, (count, longest)) in Reason::ALL.iter().zip(self.excused) {
            if count > 0 {
                writeln!(
                    f,
                    "two at once, as the README excepts ({}): {count} times, at most {:.1} ms",
                    reason.name(),
                    longest as f64 / MILLISECOND as f64
                )?;
            }
        }
        write!(f, "{}", self.coverage)?;
        for failure in &self.failures {
            writeln!(f, "\nWRONG: {}\n{}", failure.wrong, failure.schedule)?;
            for line in &failure.story {
                writeln!(f, "{line}")?;
            }
        }
        Ok(())
    }
}
