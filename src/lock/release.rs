//! How a lock is given up in good order.

use super::held_sql::Lock;
use crate::server::session::Session;
use crate::server::wait;
use crate::sys::Signals;

/// Gives a lock up and waits for the server's word that it is free; while the server is at it, does what is to be
/// done `meanwhile`. `false` where the server did not say so: then the lock goes when the server notices that the
/// session has.
pub fn release(
    session: &mut Session,
    lock: Lock,
    signals: &Signals,
    meanwhile: impl FnOnce(),
) -> bool {
    let query = lock.release_query();
    let asked = wait::ask_at_exit(session, query.sql(), signals);
    meanwhile();
    let outcomes = asked.and_then(|until| wait::answer_at_exit(session, signals, until));
    outcomes.is_some_and(|outcomes| query.read(&outcomes) == Ok(true))
}
