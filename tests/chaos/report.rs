//! The figures of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::arena::SKIPPED;
use super::book::Book;
use super::fault::Kind;
use super::options::{Control, Options};

/// How long two may run at once where a session was ended under a server that runs on: until pglock has had its turn, on
/// a machine that has much else to do.
const MOMENT: Duration = Duration::from_millis(250);

/// What has come of one kind of fault.
#[derive(Default)]
struct Row {
    faults: usize,
    stopped: usize,
    overlaps: Vec<Duration>,
    /// From a fault that has cost the holder the lock to the next holder.
    stall: Option<Duration>,
}

pub struct Report {
    seed: u64,
    time: Duration,
    runs: usize,
    ran: usize,
    statuses: BTreeMap<String, usize>,
    rows: BTreeMap<Kind, Row>,
    /// Overlaps before any fault.
    early: usize,
    left: usize,
    /// What should not be, in full.
    details: Vec<String>,
}

impl Report {
    pub fn new(options: &Options, time: Duration, books: &[Book]) -> Report {
        let mut report = Report {
            seed: options.seed,
            time,
            runs: 0,
            ran: 0,
            statuses: BTreeMap::new(),
            rows: BTreeMap::new(),
            early: 0,
            left: 0,
            details: Vec::new(),
        };
        for book in books {
            report.add(book);
        }
        report
    }

    fn row(&mut self, kind: Kind) -> &mut Row {
        self.rows.entry(kind).or_default()
    }

    fn add(&mut self, book: &Book) {
        self.runs += book.runs.len();
        self.ran += book.log.claims.len();
        for run in &book.runs {
            let status = run
                .status
                .map_or("killed".to_owned(), |status| status.to_string());
            *self.statuses.entry(status).or_default() += 1;
            self.left += run.left;
            let claimed = book.has_claimed(run.number);
            let ended = book.log.ends.contains_key(&run.number);
            if claimed
                && !ended
                && let Some(fault) = book.last_fault(run.ended)
            {
                self.row(fault.kind).stopped += 1;
            }
            let odd = match run.status {
                Some(0) => !ended,
                Some(SKIPPED) => claimed,
                // A lock may be lost in the moment in which the command ends.
                Some(124) | None => false,
                Some(125) => claimed,
                _ => true,
            };
            if odd {
                let what = format!("an odd end: claimed: {claimed}, ended: {ended}");
                self.detail(book, run.ended, &what, &[run.number]);
            }
            if run.left > 0 {
                let what = format!("{} processes left over", run.left);
                self.detail(book, run.ended, &what, &[run.number]);
            }
        }
        for (index, fault) in book.faults.iter().enumerate() {
            self.row(fault.kind).faults += 1;
            let Some(holder) = fault.holder.and_then(|holder| book.run(holder)) else {
                continue;
            };
            let next_fault = book.faults.get(index + 1).map(|next| next.begun);
            // A holder that has vanished leaves its lock behind even if its command has come to its end.
            let lost = !book.log.ends.contains_key(&holder.number) || fault.kind == Kind::Vanish;
            let lost_by_it = lost
                && holder.ended > fault.begun
                && next_fault.is_none_or(|next| holder.ended < next);
            let next = book.log.claims.iter().find(|(_, at)| *at > fault.begun);
            if let Some((_, at)) = next
                && lost_by_it
            {
                let row = self.row(fault.kind);
                row.stall = row.stall.max(Some(*at - fault.begun));
            }
        }
        for overlap in &book.log.overlaps {
            let killed = book.run(overlap.run).map(|run| run.ended);
            let over = overlap.over.or(killed).unwrap_or(overlap.begun);
            let length = over.saturating_sub(overlap.begun);
            let before = book.log.claims.iter().rfind(|(_, at)| *at < overlap.begun);
            let mut runs = vec![overlap.run];
            runs.extend(before.map(|(run, _)| *run));
            match book.last_fault(overlap.begun).map(|fault| fault.kind) {
                Some(kind) => {
                    self.row(kind).overlaps.push(length);
                    let what = format!("an overlap of {length:?} after {kind}");
                    if !kind.excuses_a_moment() || length > MOMENT {
                        self.detail(book, overlap.begun, &what, &runs);
                    }
                }
                None => {
                    self.early += 1;
                    self.detail(book, overlap.begun, "an overlap without a fault", &runs);
                }
            }
        }
    }

    fn detail(&mut self, book: &Book, at: Duration, what: &str, runs: &[u32]) {
        let mut text = format!("{what}, at {at:.3?}\n");
        let before = book.faults.iter().filter(|fault| fault.begun <= at);
        for fault in before.rev().take(3) {
            text += &format!(
                "  {:.3?} before: {} {}, holder {:?}\n",
                at - fault.begun,
                fault.kind,
                fault.detail,
                fault.holder
            );
        }
        for run in runs.iter().filter_map(|run| book.run(*run)) {
            text += &format!(
                "  run {} in slot {} ({}), from {:.3?} to {:.3?}, status {:?}\n",
                run.number, run.slot, run.line, run.started, run.ended, run.status
            );
            for line in run.stderr.lines() {
                text += &format!("    {line}\n");
            }
        }
        self.details.push(text);
    }

    /// Whether pglock, or for a control run the witness, has failed.
    pub fn is_bad(&self, options: &Options) -> bool {
        let overlaps = self
            .rows
            .iter()
            .flat_map(|(kind, row)| row.overlaps.iter().map(move |length| (*kind, *length)));
        let ttl = Duration::from_secs(options.ttl);
        let stall = self.rows.get(&Kind::Vanish).and_then(|row| row.stall);
        let stalled = stall.is_some_and(|stall| stall > ttl + Duration::from_secs(1));
        let inexcusable = overlaps
            .filter(|(kind, length)| !kind.excuses_a_moment() || *length > MOMENT)
            .count();
        match options.control {
            Control::Sound => inexcusable + self.early + self.left > 0 || stalled,
            Control::LeaseOff | Control::Late => inexcusable == 0,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // A broken pglock fails in the same way again and again.
        for detail in self.details.iter().take(20) {
            writeln!(f, "{detail}")?;
        }
        if self.details.len() > 20 {
            writeln!(f, "... and {} more", self.details.len() - 20)?;
        }
        let faults: usize = self.rows.values().map(|row| row.faults).sum();
        let stopped: usize = self.rows.values().map(|row| row.stopped).sum();
        let overlaps: Vec<Duration> = self
            .rows
            .values()
            .flat_map(|row| row.overlaps.iter().copied())
            .collect();
        let stall = self.rows.values().filter_map(|row| row.stall).max();
        writeln!(
            f,
            "seed {}: {} runs of pglock, {} commands, {faults} faults in {:.0} s",
            self.seed,
            self.runs,
            self.ran,
            self.time.as_secs_f64()
        )?;
        writeln!(
            f,
            "{:<18} {:>7} {:>8} {:>9} {:>10} {:>15}",
            "kind", "faults", "stopped", "overlaps", "longest", "to next holder"
        )?;
        let total = Row {
            faults,
            stopped,
            overlaps,
            stall,
        };
        let rows = self.rows.iter().map(|(kind, row)| (kind.name(), row));
        for (name, row) in rows.chain([("all", &total)]) {
            let longest = row.overlaps.iter().max();
            writeln!(
                f,
                "{:<18} {:>7} {:>8} {:>9} {:>10} {:>15}",
                name,
                row.faults,
                row.stopped,
                row.overlaps.len(),
                longest.map_or("-".to_owned(), |time| format!(
                    "{:.1} ms",
                    time.as_secs_f64() * 1000.0
                )),
                row.stall.map_or("-".to_owned(), |time| format!(
                    "{:.2} s",
                    time.as_secs_f64()
                )),
            )?;
        }
        let statuses: Vec<String> = self
            .statuses
            .iter()
            .map(|(status, count)| format!("{status}: {count}"))
            .collect();
        writeln!(f, "exit statuses: {}", statuses.join(", "))?;
        if self.early > 0 {
            writeln!(f, "overlaps before any fault: {}", self.early)?;
        }
        writeln!(f, "left over: {}", self.left)
    }
}
