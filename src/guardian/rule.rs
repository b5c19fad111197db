//! What a guardian does, decided: what it sees in, the one thing to do next out. Nothing here asks for the time, does I/O
//! or waits.
#![deny(
    clippy::wildcard_enum_match_arm,
    clippy::match_wildcard_for_single_variants
)]

use std::time::Duration;

use crate::moment::Moment;

/// How long to wait for a killed group to be gone, where no lease says how long the server keeps the
/// lock: it may hang in the kernel, or nobody may wait for its processes.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long to kill a group again and again whose deadline has passed.
const LONG_ENOUGH: Duration = Duration::from_secs(1);
/// How often to look for a group that is not there yet although its deadline has passed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What pglock and its guardian both see, when the guardian looked at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Whether there is a group to be killed with pglock.
    pub has_group: bool,
    /// When it has to be dead.
    pub deadline: Option<Moment>,
    /// Whether the guardian has killed it for that.
    pub has_fired: bool,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It begins, or is told to look again, or time has passed, or what was ordered is done.
    Look,
    /// pglock does not need it any more.
    Dismissed,
    /// pglock is gone.
    Orphaned,
    /// A group that was killed is gone.
    GroupGone,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Wait for pglock, until this moment at the latest.
    Watch(Option<Moment>),
    /// Kill the group, and note that it was for its deadline.
    Fire,
    /// Kill the group, and look whether it is gone.
    Kill,
    /// End.
    End,
}

/// What a guardian is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// pglock is there.
    Watching,
    /// The same; the group is killed for its deadline again and again, until this moment at the latest.
    Firing(Moment),
    /// It is gone; the group is killed again and again, until this moment at the latest.
    Killing(Moment),
    /// It was killed once more after that.
    KilledAtLast,
}

impl State {
    /// Takes an event in, and tells what to do next.
    pub fn on(&mut self, event: Event, view: View, now: Moment) -> Order {
        match (*self, event) {
            (Self::Watching, Event::Look) => {
                let order = watch(view, now);
                if order == Order::Fire {
                    *self = Self::Firing(now + LONG_ENOUGH);
                }
                order
            }
            // A member may be starting another, and the host may have been frozen since the last time.
            (Self::Firing(until), Event::Look) => {
                if until < now || !view.has_group {
                    *self = Self::Watching;
                }
                if view.has_group {
                    Order::Kill
                } else {
                    Order::Watch(None)
                }
            }
            // With nothing left to kill there is no deadline.
            (Self::Watching | Self::Firing(_), Event::GroupGone) => {
                *self = Self::Watching;
                Order::Watch(None)
            }
            (
                Self::Watching | Self::Firing(_) | Self::Killing(_) | Self::KilledAtLast,
                Event::Dismissed,
            )
            | (Self::Killing(_) | Self::KilledAtLast, Event::GroupGone)
            | (Self::KilledAtLast, Event::Look | Event::Orphaned) => Order::End,
            (Self::Watching | Self::Firing(_), Event::Orphaned) => {
                let until = view.deadline.unwrap_or(now + LONGEST_WAIT);
                *self = Self::Killing(until.max(now + LONG_ENOUGH));
                if view.has_group {
                    Order::Kill
                } else {
                    Order::End
                }
            }
            // The same here.
            (Self::Killing(until), Event::Look | Event::Orphaned) => {
                if view.has_group {
                    if until < now {
                        *self = Self::KilledAtLast;
                    }
                    Order::Kill
                } else {
                    Order::End
                }
            }
        }
    }
}

/// What there is to do while pglock is there.
fn watch(view: View, now: Moment) -> Order {
    match view.deadline {
        Some(deadline) if deadline <= now => match (view.has_group, view.has_fired) {
            (true, false) => Order::Fire,
            // By a guardian before this one.
            (true, true) if now <= deadline + LONG_ENOUGH => Order::Kill,
            (true | false, true) => Order::Watch(None),
            // A command that would be started now sees for itself that it is late.
            (false, false) => Order::Watch(Some(now + LOOK_AGAIN)),
        },
        deadline => Order::Watch(deadline.filter(|_| !view.has_fired)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_first(Duration::from_secs(seconds))
    }

    const NOW: u64 = 100;

    #[test]
    fn each_pair_of_state_and_event_has_its_order() {
        let view = |has_group, deadline: Option<u64>, has_fired| View {
            has_group,
            deadline: deadline.map(at),
            has_fired,
        };
        let early = view(true, Some(105), false);
        let late = view(true, Some(100), false);
        let fired = view(true, Some(100), true);
        let long_fired = view(true, Some(98), true);
        let groupless = view(false, Some(100), false);
        let unleased = view(true, None, false);
        let killing = |until| State::Killing(at(until));
        let firing = |until| State::Firing(at(until));
        for (state, event, view, order, after) in [
            (
                State::Watching,
                Event::Look,
                early,
                Order::Watch(Some(at(105))),
                State::Watching,
            ),
            (State::Watching, Event::Look, late, Order::Fire, firing(101)),
            (firing(101), Event::Look, fired, Order::Kill, firing(101)),
            // Once more where the host was frozen until then.
            (
                firing(99),
                Event::Look,
                long_fired,
                Order::Kill,
                State::Watching,
            ),
            (
                firing(101),
                Event::Look,
                groupless,
                Order::Watch(None),
                State::Watching,
            ),
            (
                firing(101),
                Event::GroupGone,
                fired,
                Order::Watch(None),
                State::Watching,
            ),
            (
                firing(101),
                Event::Dismissed,
                fired,
                Order::End,
                firing(101),
            ),
            (
                firing(101),
                Event::Orphaned,
                fired,
                Order::Kill,
                killing(101),
            ),
            (
                State::Watching,
                Event::Look,
                fired,
                Order::Kill,
                State::Watching,
            ),
            (
                State::Watching,
                Event::Look,
                groupless,
                Order::Watch(Some(at(101))),
                State::Watching,
            ),
            (
                State::Watching,
                Event::Look,
                unleased,
                Order::Watch(None),
                State::Watching,
            ),
            (
                State::Watching,
                Event::GroupGone,
                late,
                Order::Watch(None),
                State::Watching,
            ),
            (
                State::Watching,
                Event::Look,
                long_fired,
                Order::Watch(None),
                State::Watching,
            ),
            (
                State::Watching,
                Event::Dismissed,
                late,
                Order::End,
                State::Watching,
            ),
            (
                State::Watching,
                Event::Orphaned,
                early,
                Order::Kill,
                killing(105),
            ),
            // It is killed also where its deadline has passed, for a while.
            (
                State::Watching,
                Event::Orphaned,
                late,
                Order::Kill,
                killing(101),
            ),
            (
                State::Watching,
                Event::Orphaned,
                unleased,
                Order::Kill,
                killing(110),
            ),
            (
                State::Watching,
                Event::Orphaned,
                groupless,
                Order::End,
                killing(101),
            ),
            (killing(100), Event::Look, early, Order::Kill, killing(100)),
            (
                killing(99),
                Event::Look,
                early,
                Order::Kill,
                State::KilledAtLast,
            ),
            (
                State::KilledAtLast,
                Event::Look,
                early,
                Order::End,
                State::KilledAtLast,
            ),
            (
                State::KilledAtLast,
                Event::Orphaned,
                early,
                Order::End,
                State::KilledAtLast,
            ),
            (
                State::KilledAtLast,
                Event::GroupGone,
                early,
                Order::End,
                State::KilledAtLast,
            ),
            (
                State::KilledAtLast,
                Event::Dismissed,
                early,
                Order::End,
                State::KilledAtLast,
            ),
            (
                killing(105),
                Event::Look,
                groupless,
                Order::End,
                killing(105),
            ),
            (
                killing(105),
                Event::Orphaned,
                early,
                Order::Kill,
                killing(105),
            ),
            (
                killing(105),
                Event::GroupGone,
                early,
                Order::End,
                killing(105),
            ),
            (
                killing(105),
                Event::Dismissed,
                early,
                Order::End,
                killing(105),
            ),
        ] {
            let mut new = state;
            let found = new.on(event, view, at(NOW));
            assert_eq!(
                (found, new),
                (order, after),
                "{state:?}, {event:?}, {view:?}"
            );
        }
    }
}
