//! The last moment before a command starts, decided. pglock may have been frozen since it got the lock, and the server,
//! which says nothing unasked but that it ends the session, may be going down.

use std::io;

use crate::lease::Lease;
use crate::moment::Moment;
use crate::sys;

/// What keeps a command from being started. The new process, where it is noticed, tells it by an errno of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The lease is over.
    LeaseOver,
    /// Something has come on the session, on which nothing was asked yet.
    SessionEnded,
}

impl Obstacle {
    /// Looks whether there is one. `has_news` tells whether the server has said something unasked, or has
    /// closed the session.
    pub fn find(lease: Option<Lease>, has_news: bool, now: Moment) -> Option<Self> {
        if lease.is_some_and(|lease| lease.kill_at() <= now) {
            Some(Self::LeaseOver)
        } else if has_news {
            Some(Self::SessionEnded)
        } else {
            None
        }
    }

    /// The same as an error.
    pub fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::LeaseOver => sys::ETIME,
            Self::SessionEnded => sys::ECONNRESET,
        })
    }

    /// The obstacle that this error was made of, if it was; execve(2) has neither of the two.
    pub fn of_error(error: &io::Error) -> Option<Self> {
        match error.raw_os_error() {
            Some(sys::ETIME) => Some(Self::LeaseOver),
            Some(sys::ECONNRESET) => Some(Self::SessionEnded),
            Some(_) | None => None,
        }
    }

    /// What to say of it.
    pub fn message(self) -> &'static str {
        match self {
            Self::LeaseOver => "the lease was over before the command could start",
            Self::SessionEnded => "the server ended the session before the command could start",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lease::Terms;

    #[test]
    fn no_command_starts_when_the_lease_is_over_or_the_server_has_spoken() {
        let at = |seconds| Moment::after_first(Duration::from_secs(seconds));
        let terms = Terms::new(Duration::from_secs(15), Duration::from_secs(5)).unwrap();
        let lease = Some(Lease::new(terms, at(100)));
        for (lease, has_news, now, expected) in [
            (lease, false, 113, None),
            (lease, false, 114, Some(Obstacle::LeaseOver)),
            (lease, true, 113, Some(Obstacle::SessionEnded)),
            (lease, true, 114, Some(Obstacle::LeaseOver)),
            (None, false, 1000, None),
            (None, true, 1000, Some(Obstacle::SessionEnded)),
        ] {
            let found = Obstacle::find(lease, has_news, at(now));
            assert_eq!(found, expected);
            let error = found.map(Obstacle::error);
            assert_eq!(error.as_ref().and_then(Obstacle::of_error), expected);
        }
        assert_eq!(Obstacle::of_error(&io::ErrorKind::NotFound.into()), None);
    }
}
