//! What the rows and the columns of the matrix are called, for those who count what they meet.

use super::*;

impl State {
    /// The stage that it is in.
    pub fn stage_name(&self) -> &'static str {
        match self.stage {
            Stage::Running => "running",
            Stage::Frozen => "frozen",
            Stage::Terminating(_) => "terminating",
            Stage::Killed(_) => "killed",
            Stage::Suspending(_) => "suspending",
            Stage::Suspended => "suspended",
            Stage::Resuming(_) => "resuming",
            Stage::Holding(_) => "holding",
        }
    }

    /// An event as it would come now; `None` for one of a kind that has no row of its own: signals are many.
    pub fn event_name(&self, event: &Event, now: Moment) -> Option<&'static str> {
        Some(match event {
            Event::Tick => "nothing but time",
            Event::SessionLost(Loss::Cut, _) => "session closed without a word",
            Event::SessionLost(Loss::One, _) => "session ended",
            Event::SessionLost(Loss::All, _) => "all sessions ended",
            Event::NotConnected(barrier, _) => match barrier {
                Barrier::NotServing => "not connected: not serving",
                Barrier::Starting => "not connected: starting",
                Barrier::Down => "not connected: down",
                Barrier::Unreachable => "not connected: unreachable",
                Barrier::Denied => "not connected: denied",
                Barrier::Refused => "not connected: refused",
                Barrier::Unguarded => "not connected: unguarded",
                Barrier::Silence => "not connected: silence",
            },
            Event::Connected => match self.link {
                Link::Connecting => "connected",
                Link::Idle | Link::Asked(..) | Link::Down(_) | Link::Gone => {
                    "connected, given up before"
                }
            },
            Event::Answered(answer) => self.answer_name(answer, now)?,
            Event::CommandStopped(..) => "command stopped",
            Event::CommandContinued => "command continued",
            Event::CommandEnded(_, true) if self.hold_until.is_some() => {
                "command ended, its lock to be kept"
            }
            Event::CommandEnded(..) => "command ended",
            Event::GroupGone => "its group is gone",
            Event::GuardianFired => "the guardian has fired",
            Event::Signal(Signal::TERM) => "SIGTERM",
            Event::Signal(Signal::TSTP) => "SIGTSTP",
            Event::Signal(Signal::CONT) => "SIGCONT",
            Event::Signal(_) => return None,
            Event::Woken(_) => match self.link {
                Link::Idle | Link::Asked(..) => "pglock continued",
                Link::Connecting | Link::Down(_) | Link::Gone => "pglock continued, no session",
            },
        })
    }

    fn answer_name(&self, answer: &Answer, now: Moment) -> Option<&'static str> {
        let Link::Asked(question, sent) = self.link else {
            return None;
        };
        Some(match answer {
            Answer::Alive => match question {
                Question::Beat | Question::Rename => "answer to a beat",
                Question::Lift => "lease lifted",
                Question::Retake
                | Question::History
                | Question::Past
                | Question::Holder
                | Question::Evict
                | Question::Check => return None,
            },
            Answer::Retake(_) if question == Question::Evict => "evicted and retaken",
            Answer::Retake(Retake::Held(past)) => match self.end_of_session(*past, sent, now) {
                Some(SessionEnd::Restart) => "retaken after a restart",
                Some(SessionEnd::Promotion) => "retaken after a promotion",
                Some(SessionEnd::Elsewhere) => match past.history {
                    Some(found) if self.history.is_some_and(|held| found.is_after(held)) => {
                        "retaken on a server that was promoted before"
                    }
                    Some(_) | None => "retaken on a server of another cluster",
                },
                Some(SessionEnd::Alone | SessionEnd::AloneBeforeRestart) => {
                    "retaken without a restart"
                }
                None => match self.kinship(*past) {
                    Kinship::Successor => "retaken after a promotion, long under way",
                    Kinship::Same | Kinship::None => "retaken, long under way",
                },
            },
            Answer::Retake(Retake::Busy(past)) => match self.kinship(*past) {
                Kinship::Same => "not retaken: held",
                Kinship::Successor | Kinship::None => "not retaken: held on a promoted server",
            },
            Answer::Retake(Retake::Standby) => "not retaken: standby",
            Answer::Retake(Retake::NotReady) => "not retaken: not ready",
            Answer::Past(past) => match self.end_of_session(*past, sent, now) {
                Some(SessionEnd::Restart) => "restarted after all",
                Some(SessionEnd::Promotion) => "promoted after all",
                Some(SessionEnd::Elsewhere) => "promoted perhaps",
                Some(SessionEnd::Alone | SessionEnd::AloneBeforeRestart) => "not restarted",
                None => match self.kinship(*past) {
                    Kinship::Same => "not restarted",
                    Kinship::Successor | Kinship::None => "promoted perhaps",
                },
            },
            Answer::History(_) => "where the server stands",
            Answer::Unconfirmed(_) => match question {
                Question::Beat | Question::Rename | Question::History | Question::Lift => {
                    "answer to a beat, not confirmed"
                }
                Question::Check => "still held, not confirmed",
                Question::Retake | Question::Past | Question::Holder | Question::Evict => {
                    "retaken, not confirmed"
                }
            },
            Answer::Holder(Some(age)) if *age > now.since(self.heard) => "held by own old backend",
            Answer::Holder(Some(_)) => "held by a newer backend",
            Answer::Holder(None) => "held by somebody else",
            Answer::Check(true) => "still held",
            Answer::Check(false) => "no longer held",
        })
    }
}
