//! Black-box tests: the real program, a real PostgreSQL, real signals. Each folder is a chapter of what the README promises.

mod support;

mod harness;

/// What is asked of pglock.
mod cli {
    mod flags;
    mod help;
    mod settings;
}

/// Which lock it is, who gets it and who waits.
#[expect(
    clippy::module_inception,
    reason = "the chapter begins with the lock itself"
)]
mod locks {
    mod keys;
    mod locks;
    mod names;
    mod scenarios;
    mod shared;
    mod slots;
    mod status;
    mod waiting;
}

/// When the lock is lost, and what becomes of the command then.
#[expect(
    clippy::module_inception,
    reason = "the chapter begins with the lease itself"
)]
mod lease {
    mod guardian;
    mod hold;
    mod lease;
    mod supervision;
    mod wakeups;
}

/// The command and pglock as processes among others.
mod process {
    mod command;
    mod container;
    mod descriptors;
    mod limits;
    mod signals;
    mod statuses;
    mod syscalls;
    mod terminal;
}

/// Which server, which pooler, and what they may do.
mod servers {
    mod authentication;
    mod failover;
    mod failures;
    mod floods;
    mod foreign;
    mod lookalikes;
    mod passwords;
    mod poolers;
    mod standbys;
    mod storms;
    mod tls;
}

/// What is told and shipped: it is so.
mod docs {
    mod packages;
    mod recipes;
    mod shipping;
}
