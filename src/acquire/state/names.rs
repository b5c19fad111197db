//! What the rows and the columns of the matrix are called, for those who count what they meet.

use super::*;

impl State {
    /// The phase that it is in.
    pub fn phase_name(&self) -> &'static str {
        let pooled = self.scope == LockScope::Transaction;
        match self.phase {
            Phase::Ready => "ready",
            Phase::Connecting(_) => "connecting",
            Phase::ConnectingBeside(_) => "connecting beside",
            Phase::Asking(question) => match question {
                Question::Try { .. } if pooled => "trying, pooled",
                Question::Try { .. } => "trying",
                Question::Look { .. } => "looking",
                Question::Glance => "glancing",
                Question::Wait { .. } => "waiting",
                Question::Rollback => "leaving a transaction",
                Question::Age { .. } => "asking age",
                Question::Holders => "naming holders",
                Question::Token => "fetching token",
                Question::Renew => "renewing",
                Question::Standbys => "naming standbys",
                Question::Listing => "listing",
            },
            Phase::Pausing(Pause::Turn(_)) => "before a turn",
            Phase::Pausing(Pause::Rest) => "resting",
            Phase::Pausing(Pause::Glance) => "before a glance",
            Phase::Pausing(Pause::Round) => "before a round",
            Phase::HoldingOff { .. } => "holding off",
            Phase::Settling => "settling",
            Phase::Cancelling(_) => "cancelling",
            Phase::Withdrawing(_) if pooled => "withdrawing, pooled",
            Phase::Withdrawing(_) => "withdrawing",
            Phase::RollingBack(_) => "rolling back",
            Phase::Releasing(_) => "releasing",
            Phase::Done => "done",
        }
    }
}

impl Event {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Connected(Welcome {
                cockroach: Some(_), ..
            }) => "connected to CockroachDB",
            Self::Connected(_) => "connected",
            Self::NotConnected(error) => match error.again {
                Again::Never => "not connected, for good",
                Again::IfWaiting | Again::Soon => "not connected",
            },
            Self::Answered(answer) => match answer {
                Answer::Verdict(verdict) => match verdict {
                    Verdict::Held(_) => "held",
                    Verdict::Busy => "busy",
                    Verdict::QueueHead => "busy, first in the queue",
                    Verdict::Place(_) => "place",
                    Verdict::RecentlyRestarted => "young",
                    Verdict::Pooled => "pooled",
                    Verdict::Standby => "standby",
                    Verdict::Differs(_) => "another count",
                    Verdict::Doubtful => "perhaps another count",
                    Verdict::Lie(_) => "lie",
                },
                Answer::Glance(Some(Glance::Free)) => "seen free",
                Answer::Glance(Some(Glance::Busy(_))) => "seen busy",
                Answer::Glance(None) => "nothing seen",
                Answer::Age(Some(age)) if age.left.is_zero() => "not young",
                Answer::Age(Some(Age { is_held: true, .. })) => "young, and held again",
                Answer::Age(Some(Age {
                    is_promotion: true, ..
                })) => "promoted 10 s ago",
                Answer::Age(Some(_)) => "young for 5 s",
                Answer::Age(None) => "no age",
                Answer::Holders(_) => "holders",
                Answer::Token(Some(_)) => "token",
                Answer::Token(None) => "no token",
                Answer::Listing {
                    is_standby: Some(false),
                } => "list",
                Answer::Listing {
                    is_standby: Some(true),
                } => "list of a standby",
                Answer::Listing { is_standby: None } => "no list",
                Answer::Standbys(Some(names)) if names.is_empty() => "no standbys",
                Answer::Standbys(_) => "standbys",
                Answer::Any => "any answer",
            },
            Self::Refused(refusal) => match refusal.can_do_without {
                Some(Dispensable::Setting) => "refused for a setting",
                Some(Dispensable::Promotion) => "refused to tell of a promotion",
                None => "refused",
            },
            Self::Unasked => "answer to nothing",
            Self::Unsaid(_) => "not to be said",
            Self::Unguarded(_) => "no guardian",
            Self::Late => "late",
            Self::Lost(loss) if loss.is_statement_mode => "lost in statement mode",
            Self::Lost(_) => "lost",
            Self::Passed => "time has passed",
            Self::Signal(_) => "SIGTERM",
            Self::Withdrawn { granted: true, .. } => "withdrawn and granted",
            Self::Withdrawn { answered: true, .. } => "withdrawn and answered",
            Self::Withdrawn { .. } => "withdrawn without an answer",
            Self::Finished => "finished",
        }
    }
}
