//! A server, pglocks that compete for a lock on it, and who breaks things.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::book::{Book, Fault, Log, Run};
use super::fault::{Kind, STRIKER};
use super::late;
use super::options::{Control, Options};
use super::random::Random;
use super::report::Report;
use super::support::pgbouncer::Pgbouncer;
use super::support::wait::within;
use super::support::{Pglock, Proxy, Scratch, Server};
use super::witness::{FLAVOURS, SCRIPT, now};

/// The status of a pglock that did not get the lock.
pub const SKIPPED: i32 = 77;

/// The key that they compete for, the default.
pub const LOCK: i64 = 1;

/// How long a pooler that has met no server waits before it looks again: its `server_login_retry`.
const POOLER_WAITS: Duration = Duration::from_secs(15);

/// How long a killed command may take to be gone.
const REST: Duration = Duration::from_secs(1);

pub struct Arena {
    pub options: Options,
    _pooler: Pgbouncer,
    pub server: Server,
    /// One for each competitor.
    pub proxies: Vec<Arc<Proxy>>,
    /// So many of them, the first, lead to the pooler, the others to the server.
    pub pooled: usize,
    dir: Scratch,
    script: PathBuf,
    library: Option<PathBuf>,
    current: Vec<Mutex<Option<Current>>>,
    next_run: AtomicU32,
    /// Whether only those may come who come through the pooler.
    for_pooled: AtomicBool,
    stop: AtomicBool,
    book: Mutex<Book>,
}

/// A pglock that runs.
#[derive(Clone, Copy)]
struct Current {
    run: u32,
    pid: Pid,
}

/// Runs it all.
pub fn run(options: &Options) -> Report {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if thread::current().name() != Some(STRIKER) {
            before(info);
        }
    }));
    println!("{options}");
    let start = now();
    let faults = AtomicUsize::new(0);
    let books: Vec<Book> = thread::scope(|scope| {
        let arenas: Vec<_> = (0..options.arenas)
            .map(|number| {
                let faults = &faults;
                scope.spawn(move || {
                    let seed = options.seed.wrapping_mul(1000) + number as u64;
                    Arena::new(options, number).run(seed, start, faults)
                })
            })
            .collect();
        arenas
            .into_iter()
            .map(|arena| arena.join().expect("an arena"))
            .collect()
    });
    Report::new(options, now() - start, &books)
}

impl Arena {
    fn new(options: &Options, number: usize) -> Arena {
        let server = Server::new();
        // 20 is the default too.
        let pooler = Pgbouncer::new(&server, "transaction", 20, &[]);
        // The pooled ones do not queue at the server, so the more others there are the more rarely they get the lock.
        let pooled = 1 + number % (options.slots - 1).max(1);
        let proxies = (0..options.slots)
            .map(|slot| {
                Arc::new(if slot < pooled {
                    Proxy::to_socket(pooler.socket())
                } else {
                    Proxy::new(&server)
                })
            })
            .collect();
        let dir = Scratch::new();
        let library = (options.control == Control::Late).then(|| late::library(dir.path()));
        let log = Log::new(&dir.path().join("log"));
        Arena {
            options: options.clone(),
            _pooler: pooler,
            server,
            proxies,
            pooled,
            script: dir.file("command", 0o755, SCRIPT),
            library,
            current: (0..options.slots).map(|_| Mutex::new(None)).collect(),
            next_run: AtomicU32::new(1),
            for_pooled: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            book: Mutex::new(Book {
                log,
                ..Book::default()
            }),
            dir,
        }
    }

    fn run(self, seed: u64, start: Duration, faults: &AtomicUsize) -> Book {
        let mut random = Random::new(seed);
        thread::scope(|scope| {
            for slot in 0..self.options.slots {
                let (arena, random) = (&self, Random::new(random.next()));
                scope.spawn(move || arena.compete(slot, random));
            }
            self.break_things(random, start, faults);
            self.stop.store(true, Ordering::SeqCst);
        });
        self.book().log.update();
        let book = self.book.into_inner();
        book.unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn current(&self, slot: usize) -> MutexGuard<'_, Option<Current>> {
        self.current[slot]
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The process id of the pglock in this slot.
    pub fn pid(&self, slot: usize) -> Option<Pid> {
        self.current(slot).map(|current| current.pid)
    }

    /// Sends a signal to the pglock in this slot, if it still is the one that is meant; says which one it was.
    pub fn signal(&self, slot: usize, meant: Option<u32>, signal: Signal) -> Option<u32> {
        // It cannot be reaped while this is locked, so its number is not another's.
        let current = self.current(slot);
        let current = current.as_ref()?;
        if meant.is_some_and(|meant| meant != current.run) {
            return None;
        }
        kill(current.pid, signal).ok()?;
        Some(current.run)
    }

    /// The slot and the run of who has the witness.
    fn holder(&self) -> Option<(usize, u32)> {
        let run = {
            let mut book = self.book();
            book.log.update();
            let (run, _) = *book.log.claims.last()?;
            if book.log.ends.contains_key(&run) {
                return None;
            }
            run
        };
        let slot = (0..self.options.slots).find(|slot| {
            self.current(*slot)
                .is_some_and(|current| current.run == run)
        })?;
        Some((slot, run))
    }

    /// The same, where it is to be one who comes through the pooler: the others stand back until it is.
    fn pooled_holder(&self) -> Option<(usize, u32)> {
        self.for_pooled.store(true, Ordering::SeqCst);
        let limit = POOLER_WAITS + Duration::from_secs(self.options.ttl * 3);
        let holder = within(limit, || {
            self.holder().filter(|(slot, _)| self.is_pooled(*slot))
        });
        self.for_pooled.store(false, Ordering::SeqCst);
        holder
    }

    fn is_pooled(&self, slot: usize) -> bool {
        slot < self.pooled
    }

    pub fn is_running(&self, slot: usize, run: u32) -> bool {
        self.current(slot).is_some_and(|current| current.run == run)
    }

    /// One competitor: pglock after pglock.
    fn compete(&self, slot: usize, mut random: Random) {
        while !self.stop.load(Ordering::SeqCst) {
            if self.for_pooled.load(Ordering::SeqCst) && !self.is_pooled(slot) {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            let number = self.next_run.fetch_add(1, Ordering::SeqCst);
            let run = self.one_run(slot, number, &mut random);
            let Some(run) = run else { return };
            // One that has failed, or come too early, comes again a little later.
            let pause = match run.status {
                Some(0) => random.time(0, 100),
                _ => random.time(50, 400),
            };
            self.book().runs.push(run);
            thread::sleep(pause);
        }
    }

    fn one_run(&self, slot: usize, number: u32, random: &mut Random) -> Option<Run> {
        let options = &self.options;
        let mut words: Vec<String> = [
            pglock(),
            "--ttl".to_owned(),
            options.ttl_of_pglock().to_string(),
            "--grace".to_owned(),
            options.grace.to_string(),
            "--connect-timeout".to_owned(),
            "3".to_owned(),
            "--conflict-exit-code".to_owned(),
            SKIPPED.to_string(),
            "--verbose".to_owned(),
        ]
        .into();
        if random.chance(20) {
            words.push("--fence".to_owned());
        }
        match random.below(10) {
            0..5 => words.extend(["--wait".to_owned(), "10".to_owned()]),
            5..8 => words.push("--block".to_owned()),
            _ => {}
        }
        let tenths = match random.below(10) {
            0..3 => 1 + random.below(8),
            3..6 => 10 + random.below(30),
            _ => 40 + random.below(60),
        };
        let flavour = random.of(&FLAVOURS);
        let helper = std::env::current_exe().expect("the program's own path");
        words.extend([
            "--".to_owned(),
            "sh".to_owned(),
            self.script.display().to_string(),
            helper.display().to_string(),
            self.dir.path().display().to_string(),
            number.to_string(),
            flavour.to_owned(),
            tenths.to_string(),
        ]);
        let mut pglock = Pglock::at(self.proxies[slot].port())
            .without_pglock()
            .command(&words);
        if let Some(library) = &self.library {
            pglock = pglock
                .env("LD_PRELOAD", library)
                .env("LATE_RATE", late::rate(options.ttl));
        }
        let started = now();
        let mut running = pglock.spawn();
        *self.current(slot) = Some(Current {
            run: number,
            pid: running.pid(),
        });
        loop {
            let mut current = self.current(slot);
            if !running.is_running() {
                *current = None;
                break;
            }
            drop(current);
            if self.stop.load(Ordering::SeqCst) {
                *self.current(slot) = None;
                return None;
            }
            thread::sleep(Duration::from_millis(4));
        }
        let ended = now();
        within(REST, || running.processes().is_empty().then_some(()));
        let left = running.processes().len();
        let output = running.wait();
        let way = if self.is_pooled(slot) { ", pooled" } else { "" };
        Some(Run {
            number,
            slot,
            line: format!("{flavour} {tenths}{way}"),
            started,
            ended,
            status: output.status.code(),
            stderr: output.stderr(),
            left,
        })
    }

    /// The schedule.
    fn break_things(&self, mut random: Random, start: Duration, faults: &AtomicUsize) {
        let options = &self.options;
        let kinds: Vec<Kind> = options.kinds();
        let pace = options.time * options.arenas as u32 / options.faults as u32;
        let mut next = start;
        loop {
            let enough = faults.load(Ordering::SeqCst) >= options.faults;
            if enough && now() >= start + options.time || now() >= start + options.time * 2 {
                return;
            }
            if enough {
                thread::sleep(Duration::from_millis(100));
                continue;
            }
            let holder = within(Duration::from_secs(options.ttl * 3), || self.holder());
            next += pace;
            let ahead = next.saturating_sub(now() + pace / 2);
            thread::sleep(random.time(0, 1000) + ahead);
            // It may have come to its end.
            let holder = self.holder().or(holder);
            let kind = random.of(&kinds);
            let holder = if kind.is_for_pooled() {
                self.pooled_holder().or(holder)
            } else {
                holder
            };
            let index = {
                let mut book = self.book();
                book.faults.push(Fault {
                    kind,
                    holder: holder.map(|(_, run)| run),
                    begun: now(),
                    detail: String::new(),
                });
                book.faults.len() - 1
            };
            let detail = kind.strike(self, holder, &mut random);
            self.book().faults[index].detail = detail;
            faults.fetch_add(1, Ordering::SeqCst);
            if let Some((slot, run)) = holder {
                self.settle(kind, slot, run);
            }
            if !options.short && index % 50 == 49 {
                let book = self.book();
                eprintln!(
                    "{} faults here, {} runs, {} overlaps",
                    book.faults.len(),
                    book.runs.len(),
                    book.log.overlaps.len()
                );
            }
        }
    }

    /// Waits until what a fault has done to the holder is done, so that the next fault is not taken for its cause.
    fn settle(&self, kind: Kind, slot: usize, run: u32) {
        let ttl = Duration::from_secs(self.options.ttl);
        let limit = if kind.is_fatal() {
            ttl * 2
        } else {
            Duration::from_millis(300)
        };
        if within(limit, || (!self.is_running(slot, run)).then_some(())).is_some() {
            within(ttl * 2, || self.holder().filter(|(_, other)| *other != run));
        }
    }
}

impl Options {
    /// What `--ttl` the pglocks get.
    pub fn ttl_of_pglock(&self) -> u64 {
        if self.control == Control::LeaseOff {
            0
        } else {
            self.ttl
        }
    }

    fn kinds(&self) -> Vec<Kind> {
        let named = |name: &String| {
            Kind::named(name).unwrap_or_else(|| panic!("{name:?} is no kind of fault"))
        };
        let mut kinds: Vec<Kind> = if self.only.is_empty() {
            Kind::ALL.into()
        } else {
            self.only.iter().map(named).collect()
        };
        kinds.extend(self.also.iter().map(named));
        kinds
    }
}

/// The pglock under test.
pub fn pglock() -> String {
    match std::env::var("PGLOCK_BIN") {
        Ok(path) if !path.is_empty() => path,
        _ => env!("CARGO_BIN_EXE_pglock").to_owned(),
    }
}
