//! The search: schedules by their seeds, or in all orders, on all processors; and of one that has failed, the shortest that
//! fails too, as a story.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::coverage::Coverage;
use super::judge::Reason;
use super::options::Options;
use super::report::{Failure, Report};
use super::schedule::{Kind, Schedule, Stage};
use super::wordings::Wordings;
use super::world::World;

/// How many schedules a thread takes at once.
const BATCH: u64 = 200;

/// Goes through the schedules that are wanted.
pub fn run(options: &Options) -> Report {
    let begin = Instant::now();
    if let Some(seed) = options.only {
        return tell(options, seed);
    }
    let orders = (options.orders > 0).then(|| orders(options.orders));
    let count = orders
        .as_ref()
        .map_or(options.schedules, |orders| orders.len() as u64);
    let next = AtomicU64::new(0);
    let found = AtomicBool::new(false);
    let whole = Mutex::new(Report::new(options));
    let until = options
        .minutes
        .map(|minutes| begin + Duration::from_secs(60 * minutes));
    let threads = options
        .threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(2, usize::from));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut report = Report::new(options);
                let mut wordings = Wordings::default();
                while !found.load(Ordering::Relaxed)
                    && until.is_none_or(|until| Instant::now() < until)
                {
                    let from = next.fetch_add(BATCH, Ordering::Relaxed);
                    if from >= count {
                        break;
                    }
                    for place in from..(from + BATCH).min(count) {
                        let schedule = match &orders {
                            Some(orders) => {
                                let (stage, kinds) = &orders[place as usize];
                                Schedule::ordered(options.seed + place, *stage, kinds)
                            }
                            None => Schedule::random(options.seed + place, &extra(options)),
                        };
                        if let Some(wrong) = try_one(&schedule, options, &mut wordings, &mut report)
                        {
                            found.store(true, Ordering::Relaxed);
                            report.failures.push(Failure {
                                wrong,
                                schedule,
                                story: Vec::new(),
                            });
                            break;
                        }
                    }
                }
                whole.lock().expect("a report").add(report);
            });
        }
    });
    let mut report = whole.into_inner().expect("a report");
    report.time = begin.elapsed();
    report.failures.truncate(1);
    for failure in &mut report.failures {
        *failure = shortest(failure.schedule.clone(), options);
    }
    report
}

/// The kinds that happen only if they are asked for.
fn extra(options: &Options) -> Vec<Kind> {
    let mut extra = Vec::new();
    if options.exceptions {
        extra.extend([Kind::StepClock, Kind::KillBoth]);
    }
    extra
}

/// Runs one schedule. Returns what is wrong with it.
fn try_one(
    schedule: &Schedule,
    options: &Options,
    wordings: &mut Wordings,
    report: &mut Report,
) -> Option<String> {
    let mut world = World::new(
        schedule.clone(),
        std::mem::take(wordings),
        std::mem::take(&mut report.coverage),
        false,
    );
    world.judge.refused = options.refused.clone();
    let wrong = world.run();
    report.schedules += 1;
    report.events += world.count;
    report.commands += world.judge.commands;
    report.longest_gap = report.longest_gap.max(world.judge.longest_gap);
    for (sum, found) in report.excused.iter_mut().zip(world.judge.excused) {
        sum.0 += found.0;
        sum.1 = sum.1.max(found.1);
    }
    *wordings = world.wordings;
    report.coverage = world.coverage;
    wrong
}

/// One schedule as a story, whatever comes of it.
fn tell(options: &Options, seed: u64) -> Report {
    let schedule = Schedule::random(seed, &extra(options));
    let (wrong, story) = story(&schedule, &options.refused);
    print!("{schedule}");
    for line in &story {
        println!("{line}");
    }
    let mut report = Report::new(options);
    report.schedules = 1;
    if let Some(wrong) = wrong {
        report.failures.push(Failure {
            wrong,
            schedule,
            story,
        });
    }
    report
}

fn story(schedule: &Schedule, refused: &[Reason]) -> (Option<String>, Vec<String>) {
    let mut world = World::new(
        schedule.clone(),
        Wordings::default(),
        Coverage::default(),
        true,
    );
    world.judge.refused = refused.to_vec();
    let wrong = world.run();
    (wrong, world.story.unwrap_or_default())
}

/// Leaves out what need not be for the run to fail.
fn shortest(mut schedule: Schedule, options: &Options) -> Failure {
    'again: loop {
        for shorter in schedule.shorter() {
            if story(&shorter, &options.refused).0.is_some() {
                schedule = shorter;
                continue 'again;
            }
        }
        let (wrong, story) = story(&schedule, &options.refused);
        return Failure {
            wrong: wrong.unwrap_or_default(),
            schedule,
            story,
        };
    }
}

/// All orders of up to so many faults, in each stage.
fn orders(most: usize) -> Vec<(Stage, Vec<Kind>)> {
    let mut all = Vec::new();
    for stage in Stage::ALL {
        let mut longest: Vec<Vec<Kind>> = vec![Vec::new()];
        for _ in 0..most {
            let mut longer = Vec::new();
            for kinds in &longest {
                for kind in Kind::ORDERED {
                    if !kinds.contains(&kind) {
                        let mut more = kinds.clone();
                        more.push(kind);
                        longer.push(more);
                    }
                }
            }
            all.extend(longer.iter().map(|kinds| (stage, kinds.clone())));
            longest = longer;
        }
    }
    all
}
