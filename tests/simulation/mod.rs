//! The simulation: holders, waiters, guardians, commands, a server, a pooler and the network between them, in one process and
//! on a clock of its own, so that what takes a cluster minutes takes milliseconds, in every order of events.
//!
//! What decides is the product itself: the state machines of `acquire` and `supervise`, the lease, the guardian's rule, what keeps
//! a command from starting, and the wording of each question with what its answer means. What there is here in place of the
//! kernel, of libpq and of PostgreSQL is [`process`], [`world`] and [`server`]; the last reads the very text of the statements.
//! [`judge`] looks after each event at what must never be. [`search`] goes through schedules, and [`mutations`] shows
//! that it can find what it looks for.
//!
//! No crate for model checking stands behind it. stateright explores the states of actors that have no clock, and here nearly all
//! is about time; proptest would shrink the choices of a generator, where a schedule is a list of faults that is shrunk by
//! leaving some out.

mod coverage;
mod focus;
mod judge;
mod locks;
mod mutations;
mod options;
mod process;
#[allow(dead_code)]
#[path = "../chaos/random.rs"]
mod random;
mod report;
mod schedule;
mod search;
mod server;
mod sql;
mod time;
mod wordings;
mod world;

use options::Options;

/// What is to be done, as `make simulate` hands it over.
const ARGUMENTS: &str = "PGLOCK_SIMULATION";

#[test]
fn no_schedule_lets_two_run_at_once() {
    let words = std::env::var(ARGUMENTS);
    // Without options among the other tests, and not made to be quick.
    let words = words.unwrap_or_else(|_| "--schedules 1000".to_owned());
    let options = match Options::read(words.split_whitespace()) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(2);
        }
    };
    if options.mutations {
        assert!(mutations::all_are_found(&options), "see above");
    } else {
        let report = search::run(&options);
        println!("{report}");
        assert!(report.is_good(), "see above");
    }
}
