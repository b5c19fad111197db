//! A moment of the clock that deadlines are kept by. Two of them have a time between them; that there is no sum of two,
//! and no deadline that is a time, the compiler sees to.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment, as the time since a fixed one before; see [`crate::sys::now`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The first that there is: one that has passed.
    pub const FIRST: Self = Self(Duration::ZERO);

    /// The moment so long after the first.
    pub fn after_first(time: Duration) -> Self {
        Self(time)
    }

    /// The time since the first.
    pub fn since_first(self) -> Duration {
        self.0
    }

    /// The time since an earlier moment; zero since a later one.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// Saturates at the last moment that there is.
    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    /// Saturates at the first.
    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }
}

/// A time in seconds to the nearest tenth, for people: `0.3`, `10.0`. Counted in whole numbers, for the code and the tables that
/// print a floating-point number are larger than all else that prints.
pub fn seconds(time: Duration) -> String {
    let time = time.saturating_add(Duration::from_millis(50));
    format!("{}.{}", time.as_secs(), time.subsec_millis() / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_to_the_nearest_tenth() {
        for (milliseconds, shown) in [
            (0, "0.0"),
            (49, "0.0"),
            (50, "0.1"),
            (949, "0.9"),
            (950, "1.0"),
            (9_000, "9.0"),
            (10_349, "10.3"),
        ] {
            assert_eq!(seconds(Duration::from_millis(milliseconds)), shown);
        }
        let longest = seconds(Duration::MAX);
        assert_eq!(longest, format!("{}.9", u64::MAX));
    }
}
