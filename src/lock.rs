//! The lock itself: the SQL that takes, proves and gives it up, and what the answers mean.
//!
//! What is said to the server is a [`Query`], which knows what its answer means: who asks never looks at an outcome. One
//! query of several statements is one round trip. What others have planted in the database is never called: see
//! [`query`]. Functions are named in full all the same.
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`keys`] | the keys of a lock, and the SQL that names them |
//! | [`count`] | that all who use a lock count its slots alike |
//! | [`request_sql`] | what is said by one who wants a lock |
//! | [`glance_sql`] | what is said by one who waits for it behind a pooler |
//! | [`held_sql`] | what is said by one who holds it |
//! | [`verdict`] | how an attempt went, and its proof |
//! | [`restart`] | when the server last lost all its sessions, or was promoted |
//! | [`holders`] | who holds a lock and who waits |
//! | [`release`](mod@release) | how a lock is given up |

mod count;
mod glance_sql;
#[cfg(test)]
mod golden;
mod held_sql;
pub mod holders;
mod keys;
mod query;
mod release;
mod request_sql;
mod restart;
mod verdict;

pub use glance_sql::Glance;
#[cfg(test)]
pub use held_sql::GivenUp;
pub use held_sql::{Lock, Retaken};
pub use keys::{Key, Name, PLACES_PER_TRY};
pub use query::{Query, Unanswered};
pub use release::release;
pub use request_sql::{LockRequest, TURN};
pub use restart::{History, HoldOff, Past, RestartCheck, hold_off, longest_hold_off};
pub use verdict::Verdict;
