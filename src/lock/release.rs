//! How a lock is given up in good order.

use super::held_sql::{GivenUp, Lock};
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
    match outcomes.map(|outcomes| query.read(&outcomes)) {
        Some(Ok(GivenUp::Unseen)) => {
            // It is free, whatever comes of this.
            let look = lock.look_query();
            let outcomes = wait::query_at_exit(session, look.sql(), signals);
            if outcomes.is_some_and(|outcomes| look.read(&outcomes) == Ok(true)) {
                wait::query_at_exit(session, lock.linger_query().sql(), signals);
            }
            true
        }
        Some(Ok(GivenUp::Seen)) => true,
        Some(Ok(GivenUp::NotHeld) | Err(_)) | None => false,
    }
}
