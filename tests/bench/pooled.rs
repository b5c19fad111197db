//! What waiting costs behind PgBouncer in transaction mode, by the number of those who wait, and how late they come.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::support::pgbouncer::Pgbouncer;
use super::support::{Server, eventually};
use super::waiting::Crowd;
use super::{Bench, Run, median, words};

/// How many wait, if nothing else is asked for.
const COUNTS: [usize; 5] = [2, 20, 50, 100, 200];
/// How many connections the pool has.
const POOL: u32 = 5;
/// How long they settle: all have been told when to look again.
const SETTLE: Duration = Duration::from_secs(12);
/// How long their statements are counted.
const SPAN: Duration = Duration::from_secs(10);

/// Prints the table.
pub fn measure(bench: &Bench, counts: &[usize]) {
    let counts = match counts {
        [] => &COUNTS,
        counts => counts,
    };
    let server = Server::builder().conf("log_statement = all").start();
    println!(
        "\nWaiters on a pool of {POOL}: statements a second, of all of them, over {} s; then from the end of a holder to the start of the next \
         one's command in ms, the first one's, the median, the longest, the last one's:\n",
        SPAN.as_secs()
    );
    let heads: Vec<String> = counts
        .iter()
        .map(|count| format!("{count} waiters"))
        .collect();
    println!("| | {} |", heads.join(" | "));
    println!("| --- |{}", " --- |".repeat(counts.len()));
    // The server has the same to do for both builds.
    for (name, program) in bench
        .pglocks
        .iter()
        .filter(|(name, _)| !name.contains("static"))
    {
        let program = program.display().to_string();
        let cells: Vec<String> = counts
            .iter()
            .map(|count| cell(bench, &server, &program, *count))
            .collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}

fn cell(bench: &Bench, server: &Server, program: &str, count: usize) -> String {
    let pooler = Pgbouncer::new(server, "transaction", POOL, &[]);
    let host = pooler.socket_dir().display().to_string();
    let to = ["--host", &host, "--port", "6432", "--user", "postgres"];
    let stamp = bench.stamp();
    let line = |command: &[&str]| words(&[&[program], &to, &["--block"], command]);
    let mut holder = Run::start(&line(&[&stamp, "hold"]));
    holder.wait_until_ready();
    let crowd = Crowd::start(bench, &line(&[&stamp]), count);
    eventually("all are connected", Duration::from_secs(60), || {
        (pooler.clients() == count + 1).then_some(())
    });
    sleep(SETTLE);

    let (start, before) = (Instant::now(), statements(server));
    sleep(SPAN);
    let statements = (statements(server) - before) as f64 / start.elapsed().as_secs_f64();

    drop(holder.input.take());
    let (_, ended) = holder.finish();
    let mut times = crowd.finish();
    times.push(ended);
    times.sort_by(f64::total_cmp);
    let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let longest = gaps.iter().copied().fold(0.0, f64::max);
    format!(
        "{statements:.0}; {:.0}, {:.0}, {longest:.0}, {:.0}",
        gaps[0],
        median(gaps.clone()),
        gaps[gaps.len() - 1],
    )
}

/// How many statements the server has logged. A message of several is one line.
fn statements(server: &Server) -> usize {
    let log = server.log();
    let messages = log.lines().filter(|line| line.contains("statement: "));
    messages.map(|line| 1 + line.matches("; ").count()).sum()
}
