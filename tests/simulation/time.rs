//! The time of the simulation, in microseconds since its beginning.

use std::time::Duration;

use crate::moment::Moment;

pub type Time = u64;

pub const MILLISECOND: Time = 1000;
pub const SECOND: Time = 1_000_000;

pub fn micros(time: Duration) -> Time {
    time.as_micros() as Time
}

/// A host's clock, as deadlines are kept by it.
#[derive(Clone, Copy)]
pub struct Clock {
    /// What it showed at the beginning.
    base: Time,
    /// By how many parts in a million it is fast.
    rate: i64,
}

impl Clock {
    pub fn new(base: Time, rate: i64) -> Self {
        Self { base, rate }
    }

    pub fn moment(self, now: Time) -> Moment {
        let run = now as i64 + now as i64 * self.rate / 1_000_000;
        Moment::after_first(Duration::from_micros(self.base + run as u64))
    }

    /// The time at which it shows this moment; not before it has.
    pub fn time(self, moment: Moment) -> Time {
        let shown = moment
            .since_first()
            .as_micros()
            .min(u128::from(u64::MAX / 4)) as u64;
        let run = shown.saturating_sub(self.base) as i64;
        (run - run * self.rate / 1_000_000).max(0) as u64 + 2
    }
}
