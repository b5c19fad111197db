//! The wire: how a server is reached, what is said on a connection and waited for, and what its troubles mean.

pub mod conninfo;
pub mod dialect;
pub mod places;
pub mod resolve;
pub mod retry;
pub mod session;
pub mod session_name;
pub mod session_settings;
pub mod wait;
