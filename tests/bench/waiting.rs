//! What waiting costs the server, by the number of those who wait, beside waiters that hang in `pg_advisory_lock`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::support::{Server, eventually};
use super::{At, Bench, Run, median, set_environment, stamps};

/// How many wait, if nothing else is asked for.
const COUNTS: [usize; 5] = [50, 100, 200, 400, 1000];
/// How many wait for locks that are not just a number, if nothing else is asked for.
const OTHERS: [usize; 1] = [400];
/// How many the server lets in.
const CONNECTIONS: usize = 1200;
/// Of the server's connections, those that are none of the waiters.
const SPARE: usize = 100;
/// How far apart they start: the server has to fork a process for each.
const APART: Duration = Duration::from_millis(8);
/// How long they settle: some turns in the queue, and some rests between two looks for a place there.
const SETTLE: Duration = Duration::from_millis(2500);
/// How long the server's time is taken.
const SPAN: Duration = Duration::from_secs(5);

/// A server with room for that many.
pub fn server(counts: &[usize]) -> Server {
    let most = counts.iter().max().map_or(0, |most| most + SPARE);
    Server::builder()
        .tcp()
        .conf("shared_buffers = 128MB")
        .conf(&format!("max_connections = {}", most.max(CONNECTIONS)))
        .start()
}

/// A way to wait.
struct Contestant {
    name: String,
    counts: Vec<usize>,
    /// Who has what they wait for.
    holders: Vec<Vec<String>>,
    waiter: Vec<String>,
}

/// What to lock for: what the table adds to the program's name, the counts, the flags of holders and of waiters, and how many hold.
type Way<'a> = (&'a str, &'a [usize], &'a [&'a str], &'a [&'a str], usize);

/// What so many waiters cost.
struct Cost {
    /// Of all the server's processes, in percent of a core.
    cpu: f64,
    /// Of a waiter's backend, in kB; what processes share is divided among them.
    memory: f64,
    /// A second, from when the lock came free until the last waiter had it.
    handoffs: f64,
}

/// Prints the table. Those who wait for the lock by its number come in all the counts.
pub fn measure(bench: &Bench, server: &Server, counts: &[usize]) {
    let (all, others) = match counts.is_empty() {
        true => (COUNTS.to_vec(), OTHERS.to_vec()),
        false => (counts.to_vec(), counts.to_vec()),
    };
    let contestants = contestants(bench, server, &all, &others);
    println!(
        "\nWhat waiters cost: CPU of all the server's processes in % of a core over {} s; memory of a waiter's backend (Pss), beside that of the first row's; handoffs a second:\n",
        SPAN.as_secs()
    );
    let heads: Vec<String> = all.iter().map(|count| format!("{count} waiters")).collect();
    println!("| | {} |", heads.join(" | "));
    println!("| --- |{}", " --- |".repeat(all.len()));
    let mut plain = vec![f64::NAN; all.len()];
    for (row, contestant) in contestants.iter().enumerate() {
        let mut cells = Vec::new();
        for (count, plain) in all.iter().zip(&mut plain) {
            if !contestant.counts.contains(count) {
                cells.push(String::new());
                continue;
            }
            let cost = cost(bench, server, contestant, *count);
            if row == 0 {
                *plain = cost.memory;
            }
            cells.push(format!(
                "{:.1} %; {:.0} kB ({:.2}); {:.0}",
                cost.cpu,
                cost.memory,
                cost.memory / *plain,
                cost.handoffs,
            ));
        }
        println!("| {} | {} |", contestant.name, cells.join(" | "));
    }
}

fn contestants(bench: &Bench, server: &Server, all: &[usize], others: &[usize]) -> Vec<Contestant> {
    let at = At {
        port: server.port(),
        user: "postgres",
        sslmode: "disable",
    };
    let stamp = bench.stamp();
    let (hold, go) = ([stamp.as_str(), "hold"], [stamp.as_str()]);
    let mut contestants = vec![Contestant {
        name: "`pg_advisory_lock`".to_owned(),
        counts: all.to_vec(),
        holders: vec![bench.floor("wait", at, &hold)],
        waiter: bench.floor("wait", at, &go),
    }];
    let ways: [Way; 4] = [
        ("", all, &[], &[], 1),
        (
            ", named",
            others,
            &["--lockname", "x"],
            &["--lockname", "x"],
            1,
        ),
        (
            ", shared, behind an exclusive holder",
            others,
            &[],
            &["--shared"],
            1,
        ),
        (
            ", `--slots 2`",
            others,
            &["--slots", "2"],
            &["--slots", "2"],
            2,
        ),
    ];
    // The server has the same to do for both builds.
    for (name, program) in bench
        .pglocks
        .iter()
        .filter(|(name, _)| !name.contains("static"))
    {
        let line = |flags: &[&str], command: &[&str]| {
            bench.pglock(program, at, &[&["--block"], flags].concat(), command)
        };
        for (way, counts, holder, waiter, holders) in ways {
            contestants.push(Contestant {
                name: format!("{name}{way}"),
                counts: counts.to_vec(),
                holders: vec![line(holder, &hold); holders],
                waiter: line(waiter, &go),
            });
        }
    }
    contestants
}

fn cost(bench: &Bench, server: &Server, contestant: &Contestant, count: usize) -> Cost {
    let mut holders: Vec<Run> = contestant
        .holders
        .iter()
        .map(|line| Run::start(line))
        .collect();
    for holder in &mut holders {
        holder.wait_until_ready();
    }
    let before: BTreeSet<i32> = server.clients().into_iter().collect();
    let crowd = Crowd::start(bench, &contestant.waiter, count);
    let backends = eventually("all are connected", Duration::from_secs(60), || {
        sleep(Duration::from_millis(200));
        let clients = server.clients().into_iter();
        let new: Vec<i32> = clients.filter(|pid| !before.contains(pid)).collect();
        (new.len() == count).then_some(new)
    });
    sleep(SETTLE);

    let (start, used) = (Instant::now(), time_used(server));
    sleep(SPAN);
    let cpu = (time_used(server) - used) / start.elapsed().as_secs_f64() * 100.0;
    let memory = median(
        backends
            .into_iter()
            .filter_map(proportional_memory)
            .collect(),
    );

    for holder in &mut holders {
        drop(holder.input.take());
    }
    let ends = holders.into_iter().map(|holder| holder.finish().0);
    let free = ends.min_by(f64::total_cmp).expect("a holder");
    let last = crowd.finish().into_iter().max_by(f64::total_cmp);
    let last = last.expect("a waiter");
    eventually("their backends are gone", Duration::from_secs(60), || {
        server.clients().is_empty().then_some(())
    });
    Cost {
        cpu,
        memory,
        handoffs: count as f64 * 1000.0 / (last - free),
    }
}

/// What the server's processes have had of the cores until now, in seconds.
fn time_used(server: &Server) -> f64 {
    let used = |pid: Pid| -> f64 {
        // In nanoseconds. The times in `stat` are the same, cut off to 10 ms, of which a waiter takes less.
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
        text.split_whitespace()
            .next()
            .and_then(|time| time.parse().ok())
            .unwrap_or(0.0)
    };
    let processes = server.children().into_iter().chain([server.pid()]);
    processes.map(used).sum::<f64>() / 1e9
}

/// The memory of a process in kB, to which what it shares with others counts in part.
fn proportional_memory(pid: i32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Waiters, who write into one file when their commands start.
pub struct Crowd {
    line: Vec<String>,
    children: Vec<Child>,
    written: PathBuf,
}

impl Crowd {
    /// Starts so many, one soon after the other.
    pub fn start(bench: &Bench, line: &[String], count: usize) -> Crowd {
        let written = bench.scratch.path().join("written");
        let _ = fs::remove_file(&written);
        let mut file = File::options();
        let file = file.append(true).create(true).open(&written);
        let file = file.expect("open the file of times");
        let mut crowd = Crowd {
            line: line.to_owned(),
            children: Vec::new(),
            written,
        };
        for _ in 0..count {
            let mut command = Command::new(&line[0]);
            command
                .args(&line[1..])
                .stdin(Stdio::null())
                .stdout(file.try_clone().expect("dup"))
                .stderr(Stdio::null());
            set_environment(&mut command);
            let child = command.spawn();
            crowd
                .children
                .push(child.unwrap_or_else(|e| panic!("{line:?}: {e}")));
            sleep(APART);
        }
        crowd
    }

    /// Waits for the end of all. Returns the times at which their commands started, in ms.
    pub fn finish(mut self) -> Vec<f64> {
        for child in &mut self.children {
            let status = child.wait().expect("wait");
            assert!(status.success(), "{:?}: {status}", self.line);
        }
        let text = fs::read_to_string(&self.written).expect("read the times");
        let times: Vec<f64> = stamps(&text).collect();
        assert_eq!(times.len(), self.children.len(), "{:?}", self.line);
        times
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}
