//! How often each pair of stage and event was met, of those that the two tables of the product have; and which cannot be, and
//! why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::OnceLock;

use crate::acquire::state as acquire;
use crate::moment::Moment;
use crate::supervise::state as supervise;

/// The pairs that cannot be met here, each with the reason.
const UNMET: &str = include_str!("unmet.txt");

type Pair = (String, String);

/// How many of those that were met least are named.
const RAREST: usize = 5;

/// What was met of both machines.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    supervise: BTreeMap<(&'static str, &'static str), u64>,
    acquire: BTreeMap<(&'static str, &'static str), u64>,
    /// A pair that was met although it is said to be impossible, and that nobody has been told of yet.
    pub surprise: Option<String>,
}

impl Coverage {
    pub fn supervise(&mut self, state: &supervise::State, event: &supervise::Event, now: Moment) {
        if let Some(name) = state.event_name(event, now) {
            let pair = (state.stage_name(), name);
            let count = self.supervise.entry(pair).or_default();
            *count += 1;
            if *count == 1 {
                self.doubt(pair);
            }
        }
    }

    pub fn acquire(&mut self, state: &acquire::State, event: &acquire::Event) {
        let pair = (state.phase_name(), event.name());
        let count = self.acquire.entry(pair).or_default();
        *count += 1;
        if *count == 1 {
            self.doubt(pair);
        }
    }

    /// Looks whether a pair that is met for the first time is said to be impossible.
    fn doubt(&mut self, (stage, event): (&'static str, &'static str)) {
        if argued().contains(&(stage.to_owned(), event.to_owned())) {
            self.surprise = Some(format!("said to be impossible: {stage}: {event}"));
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (pair, count) in &other.supervise {
            *self.supervise.entry(*pair).or_default() += count;
        }
        for (pair, count) in &other.acquire {
            *self.acquire.entry(*pair).or_default() += count;
        }
    }

    fn met(&self) -> BTreeSet<Pair> {
        let pairs = self.supervise.keys().chain(self.acquire.keys());
        pairs
            .map(|(stage, event)| ((*stage).to_owned(), (*event).to_owned()))
            .collect()
    }

    /// The pairs that the tables have, and that were not met although they can be.
    pub fn unmet(&self) -> Vec<Pair> {
        let (met, argued) = (self.met(), argued());
        let missing = |pair: &Pair| !met.contains(pair) && !argued.contains(pair);
        pairs().into_iter().filter(missing).collect()
    }
}

/// The pairs of both tables. In that of the attempt those that are unexpected are not named.
fn pairs() -> BTreeSet<Pair> {
    let mut all = BTreeSet::new();
    for table in [
        include_str!("../../src/supervise/matrix.txt"),
        include_str!("../../src/acquire/matrix.txt"),
    ] {
        let mut event = "";
        for line in table.lines().skip(2) {
            match line.strip_prefix("    ") {
                None => event = line,
                Some(row) if row.starts_with("unexpected in") => {}
                Some(row) => {
                    // Two blanks at least come after the stage.
                    let stage = row.split("  ").next().unwrap_or_default().trim();
                    all.insert((stage.to_owned(), event.to_owned()));
                }
            }
        }
    }
    all
}

/// The pairs that cannot be met.
fn argued() -> &'static BTreeSet<Pair> {
    static ARGUED: OnceLock<BTreeSet<Pair>> = OnceLock::new();
    ARGUED.get_or_init(read_argued)
}

fn read_argued() -> BTreeSet<Pair> {
    let mut pairs = BTreeSet::new();
    for line in UNMET.lines() {
        if let Some((stages, event)) = line.trim().split_once(": ")
            && line.starts_with("    ")
        {
            for stage in stages.split("; ") {
                pairs.insert((stage.to_owned(), event.to_owned()));
            }
        }
    }
    pairs
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (all, argued, unmet) = (pairs(), argued(), self.unmet());
        writeln!(
            f,
            "{} pairs of stage and event: {} met, {} impossible, {} not met",
            all.len(),
            all.len() - unmet.len() - all.intersection(argued).count(),
            all.intersection(argued).count(),
            unmet.len()
        )?;
        let mut counts: Vec<_> = self.supervise.iter().chain(&self.acquire).collect();
        counts.sort_by_key(|(_, count)| **count);
        for ((stage, event), count) in counts.iter().take(RAREST) {
            writeln!(f, "  met {count} times: {stage}: {event}")?;
        }
        for (stage, event) in &unmet {
            writeln!(f, "  not met: {stage}: {event}")?;
        }
        Ok(())
    }
}
