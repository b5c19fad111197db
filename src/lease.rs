//! The lease: when to beat, to stop and to kill. Pure arithmetic on moments of one clock; nothing here
//! asks for the time or does I/O.
//!
//! Let h be the moment when pglock sent the last message that the server answered. The server keeps a
//! silent session for the ttl, and it had the message at h or later: until h + ttl the lock is the
//! holder's. The command is therefore told to end at h + ttl - grace - 1 s, and killed at h + ttl - 1 s. The
//! one second is for what lies between a clock and a kill.
//!
//! A session that the server has lost, because it was restarted, frees its lock early. There newcomers
//! keep the promise: whoever finds that the server lost all sessions less than a ttl ago does not try
//! before the ttl is over (`lock/restart.rs`). So a holder that was cut off by a restart may take its lock again
//! as long as its own lease lasts, and nobody has had it meanwhile.

use std::time::Duration;

use crate::moment::Moment;

/// The second between a deadline of the client and what it has to precede.
const MARGIN: Duration = Duration::from_secs(1);

/// The longest lease that a server can keep: its timeouts are 31-bit numbers of milliseconds.
pub const LONGEST_TTL: Duration = Duration::from_secs(i32::MAX as u64 / 1000);

/// How long a lease lasts without a sign of the server, and how much of that the command gets to end by
/// itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    ttl: Duration,
    grace: Duration,
}

impl Terms {
    /// Terms that can be kept. After a beat is due a second must remain before the command is told to end,
    /// or a single late answer would end it.
    ///
    /// # Errors
    /// The largest grace that this ttl has room for, in seconds; `None` where it has room for none.
    pub fn new(ttl: Duration, grace: Duration) -> Result<Self, Option<u64>> {
        let terms = Self { ttl, grace };
        let room = ttl.checked_sub(terms.beat_every() + MARGIN + MARGIN);
        match room {
            Some(room) if grace <= room => Ok(terms),
            room => Err(room.map(|room| room.as_secs())),
        }
    }

    /// How long the server keeps a silent session.
    pub fn ttl(self) -> Duration {
        self.ttl
    }

    fn beat_every(self) -> Duration {
        self.ttl / 3
    }
}

/// A lease in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    terms: Terms,
    renewed: Moment,
}

impl Lease {
    /// The lease as it is when the last message that the server has answered was sent at this moment.
    pub fn new(terms: Terms, sent: Moment) -> Self {
        Self {
            terms,
            renewed: sent,
        }
    }

    /// When the next heartbeat is due.
    pub fn beat_at(&self) -> Moment {
        self.renewed + self.terms.beat_every()
    }

    /// When the command has to be told to end.
    pub fn terminate_at(&self) -> Moment {
        self.kill_at() - self.terms.grace
    }

    /// When the command has to be killed.
    pub fn kill_at(&self) -> Moment {
        self.renewed + self.terms.ttl - MARGIN
    }

    /// Whether the server lost all its sessions after the last sign of it, and not before: then newcomers
    /// hold off, and nobody can have had the lock. `age` is how long ago it lost them, by its own clock, in
    /// the answer that came at `now` to a message sent at `sent`. `None` where the answer was too long under
    /// way to tell.
    pub fn was_restarted(&self, age: Duration, sent: Moment, now: Moment) -> Option<bool> {
        let at_least = sent.since(self.renewed);
        let at_most = now.since(self.renewed);
        if age < at_least {
            Some(true)
        } else if age < at_most {
            None
        } else {
            Some(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn at(moment: f64) -> Moment {
        Moment::after_first(seconds(moment))
    }

    fn lease(ttl: f64, grace: f64, sent: f64) -> Lease {
        let terms = Terms::new(seconds(ttl), seconds(grace)).unwrap();
        Lease::new(terms, at(sent))
    }

    #[test]
    fn the_deadlines_follow_the_last_answered_message() {
        let lease = lease(15.0, 5.0, 100.0);
        assert_eq!(lease.beat_at(), at(105.0));
        assert_eq!(lease.terminate_at(), at(109.0));
        assert_eq!(lease.kill_at(), at(114.0));
    }

    #[test]
    fn a_lost_answer_leaves_the_deadlines_where_they_were() {
        let lease = lease(15.0, 5.0, 100.0);
        assert!(lease.beat_at() < lease.terminate_at());
        assert!(lease.terminate_at() < lease.kill_at());
    }

    #[test]
    fn after_a_suspend_every_deadline_has_passed() {
        let lease = lease(15.0, 5.0, 100.0);
        let woken = at(100.0 + 3600.0);
        assert!(lease.kill_at() < woken && lease.terminate_at() < woken);
    }

    #[test]
    fn a_restart_counts_only_if_it_came_after_the_last_sign() {
        let lease = lease(15.0, 5.0, 100.0);
        // Asked at 103, answered at 104. Lost 2 s before: at 101 or 102, after the last sign.
        let was = |age| lease.was_restarted(seconds(age), at(103.0), at(104.0));
        assert_eq!(was(2.0), Some(true));
        // Lost at 99.5 or up to 100.5: before the last sign, or after.
        assert_eq!(was(3.5), None);
        // The session outlived that, and something else has ended it.
        assert_eq!(was(4.0), Some(false));
        assert_eq!(was(1000.0), Some(false));
    }

    #[test]
    fn a_retaken_lock_is_retaken_before_any_newcomer_may_try() {
        // The worst case: lost right after the last sign, retaken at the last moment.
        for (ttl, grace) in [(15.0, 5.0), (3.0, 0.0), (60.0, 38.0)] {
            let lease = lease(ttl, grace, 100.0);
            let newcomers_at = at(100.0 + ttl);
            assert!(lease.terminate_at() < newcomers_at);
            assert!(lease.kill_at() + MARGIN <= newcomers_at);
        }
    }

    #[test]
    fn terms_that_leave_no_room_for_a_late_answer_are_refused() {
        let terms = |ttl: u64, grace: u64| {
            Terms::new(Duration::from_secs(ttl), Duration::from_secs(grace)).map(drop)
        };
        assert_eq!(terms(15, 5), Ok(()));
        assert_eq!(terms(15, 8), Ok(()));
        assert_eq!(terms(15, 9), Err(Some(8)));
        assert_eq!(terms(15, 15), Err(Some(8)));
        assert_eq!(terms(3, 0), Ok(()));
        assert_eq!(terms(3, 1), Err(Some(0)));
        assert_eq!(terms(2, 0), Err(None));
        assert_eq!(terms(1, 0), Err(None));
        let most = u64::from(u32::MAX);
        assert_eq!(terms(most, 0), Ok(()));
        assert!(terms(most, most).is_err());
        for ttl in 3..300 {
            for grace in 0..ttl {
                let Ok(terms) = Terms::new(Duration::from_secs(ttl), Duration::from_secs(grace))
                else {
                    continue;
                };
                let lease = Lease::new(terms, at(100.0));
                assert!(lease.beat_at() + MARGIN <= lease.terminate_at());
                assert!(lease.terminate_at() <= lease.kill_at());
            }
        }
    }
}
