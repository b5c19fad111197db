//! The harness: real servers, the real binary, real signals, and a network that can break.
//!
//! Everything here cleans up after itself: on return, on panic, and (through the [`janitor`]) also when the
//! test process is killed. Nothing uses a fixed port, and nothing waits for luck: see [`wait`].

pub mod cluster;
pub mod janitor;
pub mod net;
pub mod pgbouncer;
pub mod pglock;
pub mod processes;
pub mod proxy;
pub mod pty;
pub mod scratch;
pub mod server;
pub mod session;
pub mod tls;
pub mod wait;

pub use net::{BlackHole, ClosedPort, FakeServer, Witness};
pub use pglock::{Output, Pglock, Running};
pub use proxy::{Proxy, What, When};
pub use scratch::{Marker, Scratch};
pub use server::{NOT_ASIDE, Server, Stop};
pub use session::Session;
pub use wait::{PATIENCE, eventually};
