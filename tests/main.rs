//! Black-box tests: the real program, a real PostgreSQL, real signals.

mod support;

mod command;
mod container;
mod descriptors;
mod failures;
mod flags;
mod guardian;
mod harness;
mod help;
mod limits;
mod locks;
mod passwords;
mod scenarios;
mod settings;
mod signals;
mod statuses;
mod terminal;
mod tls;
mod waiting;
mod wakeups;
