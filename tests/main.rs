//! Black-box tests: the real program, a real PostgreSQL, real signals.

mod support;

mod authentication;
mod command;
mod container;
mod descriptors;
mod failures;
mod flags;
mod floods;
mod foreign;
mod guardian;
mod harness;
mod help;
mod lease;
mod limits;
mod locks;
mod lookalikes;
mod names;
mod passwords;
mod poolers;
mod recipes;
mod scenarios;
mod settings;
mod shared;
mod shipping;
mod signals;
mod slots;
mod standbys;
mod status;
mod statuses;
mod storms;
mod syscalls;
mod terminal;
mod tls;
mod waiting;
mod wakeups;
