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
