//! A lock that is held, on its way from the attempt that has come by it to the run of the command.

use crate::guardian::Guardian;
use crate::lock::Lock;
use crate::moment::Moment;
use crate::server::places::Places;
use crate::server::session::Session;
use crate::sys::SharedState;

/// A lock that is held, and what holds it.
pub struct Held {
    /// The session. The lock is gone when it is.
    pub session: Session,
    /// The lock.
    pub lock: Lock,
    /// When the message was sent whose answer said that it is held.
    pub sent: Moment,
    /// The holder's fencing token, if there was to be one.
    pub token: Option<u64>,
    /// What is to be killed with pglock, and by when: its deadline is that of the lease, if it has one.
    pub shared: SharedState,
    /// Who does it.
    pub guardian: Guardian,
    /// Where to look for the server when the session is lost.
    pub places: Places,
    /// Whether the session is known by a name that tells since when it has waited.
    pub waited: bool,
}
