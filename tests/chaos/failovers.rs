//! Failovers of a cluster, under pglocks that compete for one lock with commands that do not heed SIGTERM.

use std::fmt;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::arena::{SKIPPED, pglock};
use super::book::Log;
use super::random::Random;
use super::support::cluster::{primary, promote, standby};
use super::support::wait::within;
use super::support::{PATIENCE, Pglock, Proxy, Scratch, Server, Stop, eventually};
use super::witness::{SCRIPT, now};

/// How many compete.
const CONTENDERS: usize = 6;

/// How a primary goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is stopped in good order, and a standby takes its place.
    Switchover,
    /// Its postmaster is killed.
    Crash,
    /// It lives on, and takes connections, while a standby is promoted; later it is stopped.
    SplitBrain,
}

/// What the failovers are of.
pub trait Cluster {
    /// Where a contender looks for it: settings of pglock's. There is more than one way for contenders of different numbers.
    fn way(&self, contender: usize) -> Vec<String>;

    /// Has the primary go, until another is there. Says what happened.
    fn strike(&mut self, kind: Kind) -> String;

    /// Makes the cluster whole again.
    fn mend(&mut self);
}

/// What pglock is given besides.
#[derive(Clone, Copy)]
pub struct Terms {
    pub ttl: u64,
    pub grace: u64,
    pub sync: bool,
}

/// What has come of some failovers.
#[derive(Default)]
pub struct Outcome {
    pub failovers: u32,
    pub lived: u32,
    pub stopped: u32,
    pub overlaps: Vec<Duration>,
    /// From the end of a command to the next one's begin.
    pub longest_gap: Duration,
    pub commands: usize,
    /// What those said that should have lived.
    pub reports: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} failovers under {} commands; of those that ran then {} lived, {} were stopped; overlaps: {}; longest gap \
             to the next: {:.2} s",
            self.failovers,
            self.commands,
            self.lived,
            self.stopped,
            self.overlaps.len(),
            self.longest_gap.as_secs_f64()
        )?;
        for overlap in &self.overlaps {
            write!(f, "\n  overlap of {:.3} s", overlap.as_secs_f64())?;
        }
        Ok(())
    }
}

/// Who competes.
struct Field {
    dir: Scratch,
    terms: Terms,
    next_run: AtomicU32,
    stop: AtomicBool,
    /// The words of each run that was there at a failover.
    said: Mutex<Vec<(u32, String)>>,
}

/// Has these failovers come to a cluster, one after the other.
pub fn run(cluster: &mut dyn Cluster, terms: Terms, kinds: &[Kind], seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let dir = Scratch::new();
    let script = dir.file("command", 0o755, SCRIPT).display().to_string();
    let mut log = Log::new(&dir.path().join("log"));
    let field = Field {
        dir,
        terms,
        next_run: AtomicU32::new(1),
        stop: AtomicBool::new(false),
        said: Mutex::default(),
    };
    let mut outcome = Outcome::default();
    // The run that held the lock, from when on it was in danger, and how the failover came.
    let mut struck: Vec<(u32, Duration, String)> = Vec::new();
    let mut whole_at = now();
    thread::scope(|scope| {
        for contender in 0..CONTENDERS {
            let (field, script) = (&field, &script);
            let (way, mut random) = (cluster.way(contender), Random::new(random.next()));
            scope.spawn(move || {
                while !field.stop.load(Ordering::SeqCst) {
                    field.one_run(&way, script, &mut random);
                    thread::sleep(random.time(20, 300));
                }
            });
        }
        for (number, kind) in kinds.iter().enumerate() {
            // Somebody holds it, and has for long enough to know where its server stands; one who came by it as the last
            // server went may be about to be stopped.
            let holder = within(Duration::from_secs(terms.ttl * 4), || {
                log.update();
                let (run, since) = *log.claims.last()?;
                let is_settled = now() > since + Duration::from_millis(1500);
                let is_sound =
                    since > whole_at || now() > whole_at + Duration::from_secs(terms.ttl);
                (is_settled && is_sound && !log.ends.contains_key(&run)).then_some(run)
            });
            let begun = now();
            let how = cluster.strike(*kind);
            eprintln!(
                "{}: {kind:?}, {how}, {:.1} s",
                number + 1,
                (now() - begun).as_secs_f64()
            );
            outcome.failovers += 1;
            whole_at = now();
            if let Some(run) = holder {
                struck.push((run, begun, format!("{kind:?}, {how}")));
            }
            // The lock is somebody's again.
            within(Duration::from_secs(terms.ttl * 4), || {
                log.update();
                log.claims.iter().any(|(_, at)| *at > begun).then_some(())
            });
            cluster.mend();
            thread::sleep(random.time(0, 2000));
        }
        field.stop.store(true, Ordering::SeqCst);
    });
    log.update();
    let said = field.said.into_inner().expect("no panic");
    for (run, begun, how) in struck {
        let ended = log.ends.get(&run).copied();
        match ended {
            Some(_) => outcome.lived += 1,
            None => {
                outcome.stopped += 1;
                let words = said.iter().find(|(number, _)| *number == run);
                let words = words.map_or("", |(_, words)| words.as_str());
                outcome.reports.push(format!("{how}:\n{words}"));
            }
        }
        let from = ended.unwrap_or(begun);
        let next = log.claims.iter().find(|(_, at)| *at > from);
        if let Some((_, at)) = next {
            outcome.longest_gap = outcome.longest_gap.max(*at - from);
        }
    }
    outcome.commands = log.claims.len();
    if outcome.commands == 0 {
        let first = said.into_iter().take(3);
        outcome.reports.extend(first.map(|(_, words)| words));
    }
    outcome.overlaps = log
        .overlaps
        .iter()
        .map(|overlap| overlap.over.unwrap_or(now()) - overlap.begun)
        .collect();
    outcome
}

impl Field {
    fn one_run(&self, way: &[String], script: &str, random: &mut Random) {
        let number = self.next_run.fetch_add(1, Ordering::SeqCst);
        let helper = std::env::current_exe().expect("the program's own path");
        let mut words = vec![pglock()];
        words.extend(way.iter().cloned());
        let (ttl, grace) = (self.terms.ttl.to_string(), self.terms.grace.to_string());
        let code = SKIPPED.to_string();
        let mut flags = vec!["--user", "postgres", "--ttl", &ttl, "--grace", &grace];
        flags.extend(["--conflict-exit-code", &code, "--verbose"]);
        if self.terms.sync {
            flags.push("--sync");
        }
        match random.below(4) {
            0 => {}
            1 => flags.push("--block"),
            _ => flags.extend(["--wait", "20"]),
        }
        words.extend(flags.into_iter().map(str::to_owned));
        let tenths = 20 + random.below(self.terms.ttl as usize * 15);
        words.extend([
            "--".to_owned(),
            "sh".to_owned(),
            script.to_owned(),
            helper.display().to_string(),
            self.dir.path().display().to_string(),
            number.to_string(),
            "deaf".to_owned(),
            tenths.to_string(),
        ]);
        let mut running = Pglock::new().without_pglock().command(&words).spawn();
        while running.is_running() {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        if running.is_running() {
            // All is over: whoever waits need not.
            let is_holder = running.stderr().contains("obtained");
            if !is_holder {
                return;
            }
        }
        let output = running.wait_within(Duration::from_secs(self.terms.ttl * 4 + 60));
        self.said
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push((number, output.report()));
    }
}

/// A primary and its standby behind two addresses that stay, whatever servers come and go.
struct Pair {
    primary: Server,
    standby: Server,
    /// The first leads to the primary.
    ways: [Proxy; 2],
    sync: bool,
}

impl Pair {
    fn new(sync: bool) -> Pair {
        let primary = primary().start();
        let standby = standby(&primary, super::support::cluster::primary());
        let ways = [Proxy::new(&primary), Proxy::new(&standby)];
        let pair = Pair {
            primary,
            standby,
            ways,
            sync,
        };
        pair.synchronize();
        pair
    }

    fn synchronize(&self) {
        if !self.sync {
            return;
        }
        let primary = &self.primary;
        primary.psql("alter system set synchronous_standby_names = 'standby'");
        primary.psql("select pg_reload_conf()");
        eventually("replication is synchronous", PATIENCE, || {
            let state = primary.psql("select sync_state from pg_stat_replication");
            (state == "sync").then_some(())
        });
    }
}

impl Cluster for Pair {
    fn way(&self, contender: usize) -> Vec<String> {
        let mut ports = [0, 1].map(|way| self.ways[way].port().to_string());
        ports.rotate_left(contender % 2);
        let ports = ports.join(",");
        ["--host", "127.0.0.1,127.0.0.1", "--port", &ports]
            .map(str::to_owned)
            .into()
    }

    fn strike(&mut self, kind: Kind) -> String {
        match kind {
            Kind::Switchover => self.primary.stop(Stop::Fast),
            Kind::Crash => self.primary.crash(),
            Kind::SplitBrain => {}
        }
        promote(&self.standby);
        String::new()
    }

    fn mend(&mut self) {
        let next = standby(&self.standby, super::support::cluster::primary());
        self.ways[0].lead_to(&next);
        // The old primary goes here.
        self.primary = std::mem::replace(&mut self.standby, next);
        self.ways.reverse();
        self.synchronize();
    }
}

/// The program when it is called with `failovers [N]`.
pub fn main(words: &[String]) -> ExitCode {
    let count = words.first().map_or(Ok(10), |word| word.parse::<usize>());
    let Ok(count) = count else {
        eprintln!("failovers: not a number: {words:?}");
        return ExitCode::from(2);
    };
    let terms = |sync| Terms {
        ttl: 9,
        grace: 1,
        sync,
    };
    let kinds: Vec<Kind> = [Kind::Switchover, Kind::Crash]
        .into_iter()
        .cycle()
        .take(count)
        .collect();
    let plain = run(&mut Pair::new(false), terms(false), &kinds, count as u64);
    println!("switchovers and crashes: {plain}");
    let kinds = vec![Kind::SplitBrain; count.div_ceil(3)];
    let split = run(&mut Pair::new(true), terms(true), &kinds, count as u64);
    println!("split brains, --sync: {split}");
    verdict(&[(&plain, true), (&split, false)])
}

/// Whether all is well: nothing has overlapped, and where commands were to live they have.
pub fn verdict(outcomes: &[(&Outcome, bool)]) -> ExitCode {
    let mut good = true;
    for (outcome, lives) in outcomes {
        good &= outcome.overlaps.is_empty() && outcome.commands > 0;
        if outcome.commands == 0 || *lives && outcome.stopped > 0 {
            good = false;
            println!("{}", outcome.reports.join("\n"));
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
