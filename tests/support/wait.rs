//! Waiting for events: polling with a bound, and a message that says what did not happen.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for something that should take milliseconds. Generous, because a machine may be busy;
/// a test that passes never waits that long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Calls `probe` until it answers, and panics with `what` when it has not done so within `limit`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    match within(limit, &mut probe) {
        Some(answer) => answer,
        None => panic!("not within {limit:?}: {what}"),
    }
}

/// Calls `probe` until it answers or `limit` has passed. The pauses grow from half a millisecond to twenty.
pub fn within<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        // Look at the clock first: the last probe must come after the deadline, however long this thread was
        // kept from running.
        let late = Instant::now() >= deadline;
        if let Some(answer) = probe() {
            return Some(answer);
        }
        if late {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(20));
    }
}
