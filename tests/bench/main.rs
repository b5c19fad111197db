//! How fast pglock is, beside the least that is possible and beside other ways to do its job: `make bench`.
//!
//! The least is [`floor.c`](floor.c), which speaks the protocol with no library. All contestants run by turns
//! in one run, so that what else the machine does hits all of them; what counts is the median, and the median of the ratios
//! to the floor's time in the same round. A contestant that is not installed is named. hyperfine, which times one contestant
//! after the other and only whole runs, is asked for a second opinion.

mod pooled;
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;
mod waiting;

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use support::*;

/// How long a byte takes through the proxy that counts round trips.
const DELAY: Duration = Duration::from_millis(20);
/// How long a contestant leaves the machine to itself before it starts: the server is not done with the one before when that
/// one has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// How often memory is measured at most, for a round takes seconds.
const MEMORY_ROUNDS: usize = 15;

fn main() {
    let mut rounds = 200;
    let mut parts = Vec::new();
    let mut counts = Vec::new();
    let mut words = std::env::args().skip(1).peekable();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {} // what cargo gives to every benchmark
            "--help" => {
                println!(
                    "make bench ARGS='[ROUNDS] [start|hyperfine|trips|memory|wake|waiting [COUNT,...]|pooled [COUNT,...] ...]'"
                );
                println!(
                    "PGLOCK_BEFORE names another program of pglock's that takes its turns too."
                );
                return;
            }
            "waiting" | "pooled" => {
                parts.push(word);
                if let Some(list) = words.peek().and_then(|word| numbers(word)) {
                    counts = list;
                    words.next();
                }
            }
            word => match word.parse() {
                Ok(number) => rounds = number,
                Err(_) => parts.push(word.to_owned()),
            },
        }
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|word| word == part);

    // Grows old together with the other one.
    let crowded = wanted("waiting").then(|| waiting::server(&counts));
    let bench = Bench::new();
    bench.introduce();
    if wanted("start") {
        bench.starts(rounds);
    }
    if wanted("hyperfine") {
        bench.second_opinion(rounds);
    }
    if wanted("trips") {
        bench.trips();
    }
    if wanted("memory") {
        bench.memory(rounds.min(MEMORY_ROUNDS));
    }
    if wanted("wake") {
        bench.wake_ups();
    }
    if let Some(server) = crowded {
        waiting::measure(&bench, &server, &counts);
    }
    if wanted("pooled") {
        pooled::measure(&bench, &counts);
    }
}

/// What all measurements share.
struct Bench {
    scratch: Scratch,
    server: Server,
    etcd: Option<Etcd>,
    /// The builds of pglock: how it is called in the tables, and where it is.
    pglocks: Vec<(&'static str, PathBuf)>,
}

/// Where a contestant finds its server, and as whom.
#[derive(Clone, Copy)]
struct At<'a> {
    port: u16,
    user: &'a str,
    sslmode: &'a str,
}

impl Bench {
    fn new() -> Bench {
        let scratch = Scratch::new();
        for name in ["floor", "stamp"] {
            let source =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bench/{name}.c"));
            let made = Command::new(std::env::var_os("CC").unwrap_or("cc".into()))
                .args(["-std=c11", "-D_GNU_SOURCE", "-O2", "-static", "-o"])
                .args([&scratch.path().join(name), &source])
                .status();
            assert!(made.expect("start the C compiler").success(), "{name}.c");
        }
        let mut pglocks = Vec::new();
        match std::env::var_os("PGLOCK_STATIC") {
            Some(file) => pglocks.push(("pglock, static", file.into())),
            None => println!("Not compared: static pglock (PGLOCK_STATIC names none)."),
        }
        let system = PathBuf::from(env!("CARGO_BIN_EXE_pglock"));
        pglocks.push(("pglock, system's libpq", system));
        // To see what a change costs.
        if let Some(file) = std::env::var_os("PGLOCK_BEFORE") {
            pglocks.push(("pglock, before", file.into()));
        }
        let server = Server::builder()
            .tls("localhost")
            .hba("host all scram 127.0.0.1/32 scram-sha-256")
            // As it is by default; the tests make do with less.
            .conf("shared_buffers = 128MB")
            .start();
        // A younger server might have had other holders before, and pglock would ask it about that.
        sleep(Duration::from_secs(16));
        server.psql(
            "set password_encryption = 'scram-sha-256'; create role scram login password 'secret'",
        );
        Bench {
            etcd: Etcd::start(&scratch),
            scratch,
            server,
            pglocks,
        }
    }

    fn introduce(&self) {
        let first = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text
                .lines()
                .find(|line| line.starts_with(key))
                .unwrap_or("");
            line.rsplit(':').next().unwrap_or("").trim().to_owned()
        };
        println!(
            "{}; {} x {}; Linux {}; PostgreSQL {}; load {}",
            output("date", &["-u", "+%F %H:%M UTC"]),
            output("nproc", &[]),
            first("/proc/cpuinfo", "model name"),
            output("uname", &["-r"]),
            self.server.psql("show server_version"),
            first("/proc/loadavg", ""),
        );
        println!("Command: make bench");
    }

    fn program(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    fn stamp(&self) -> String {
        self.program("stamp")
    }

    fn at(&self) -> At<'_> {
        At {
            port: self.server.port(),
            user: "postgres",
            sslmode: "disable",
        }
    }

    /// The floor, with `try` or `wait`.
    fn floor(&self, how: &str, at: At, command: &[&str]) -> Vec<String> {
        let port = at.port.to_string();
        let program = self.program("floor");
        words(&[&[&program, how, "127.0.0.1", &port, at.user, "1"], command])
    }

    /// What pglock asks the server for the lock with, from the server's log; but that it would not go on through a pooler,
    /// which it tells by the number of its backend, is turned round.
    fn lock_call(&self) -> String {
        let mut logged = self.pglock(&self.pglocks[0].1, self.at(), &[], &["true"]);
        logged.splice(0..0, words(&[&["env", "PGOPTIONS=-c log_statement=all"]]));
        run_to_end(&logged);
        let log = self.server.log();
        let mut calls = log.lines().filter_map(|line| {
            let (_, query) = line.split_once("statement: ")?;
            query.contains("; select case when ").then_some(query)
        });
        let call = calls
            .next_back()
            .expect("the lock call in the server's log");
        call.replacen("int4ne", "int4eq", 1)
    }

    fn pglock(&self, program: &Path, at: At, flags: &[&str], command: &[&str]) -> Vec<String> {
        let port = at.port.to_string();
        let program = program.display().to_string();
        let to = ["--host", "127.0.0.1", "--port", &port, "--user", at.user];
        let mode = ["--sslmode", at.sslmode];
        words(&[&[&program], &to, &mode, flags, command])
    }

    fn psql(&self, at: At, function: &str, command: &[&str]) -> Vec<String> {
        let to = format!(
            "host=127.0.0.1 port={} user={} dbname=postgres sslmode={}",
            at.port, at.user, at.sslmode
        );
        let take = format!("select pg_{function}(1)");
        let run = format!("\\! {}", command.join(" "));
        // Left to the end of the session, the lock would be free only a moment later.
        let give = "select pg_advisory_unlock(1)";
        words(&[&["psql", "-XAtq", &to, "-c", &take, "-c", &run, "-c", give]])
    }

    // From start to end

    /// Who is compared, and how it is called to run a command that writes when it starts. The floor comes first.
    fn contestants(&self) -> Vec<(&str, Vec<String>)> {
        let stamp = self.stamp();
        let command = [stamp.as_str()];
        let at = self.at();
        let call = self.lock_call();
        let mut contestants = vec![
            ("floor", self.floor("try", at, &command)),
            ("floor, pglock's lock call", self.floor(&call, at, &command)),
        ];
        for (name, program) in &self.pglocks {
            contestants.push((name, self.pglock(program, at, &[], &command)));
        }
        contestants.push(("psql -c", self.psql(at, "try_advisory_lock", &command)));
        if let Some(etcd) = &self.etcd {
            let url = etcd.url();
            let etcdctl = ["etcdctl", "--endpoints", &url, "lock", "bench"];
            contestants.push(("etcdctl lock", words(&[&etcdctl, &command])));
        }
        let file = self.program("lock");
        if installed("flock") {
            contestants.push(("flock (no server)", words(&[&["flock", &file], &command])));
        }
        contestants.push(("the command alone", words(&[&command])));
        contestants
    }

    /// The whole runs once more, timed by hyperfine.
    fn second_opinion(&self, rounds: usize) {
        if !installed("hyperfine") {
            println!("\nNo second opinion: hyperfine is not installed.");
            return;
        }
        let table = self.program("hyperfine.md");
        let rounds = rounds.to_string();
        let pause = format!("sleep {}", PAUSE.as_secs_f64());
        let mut hyperfine = Command::new("hyperfine");
        hyperfine
            .args([
                "--shell=none",
                "--warmup=3",
                "--style=none",
                "--runs",
                &rounds,
            ])
            .args(["--prepare", &pause, "--export-markdown", &table]);
        for (name, line) in self.contestants() {
            let quoted = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
            let line: Vec<String> = line.iter().map(quoted).collect();
            hyperfine.args(["--command-name", name]).arg(line.join(" "));
        }
        set_environment(&mut hyperfine);
        let output = hyperfine
            .stdout(Stdio::null())
            .output()
            .expect("start hyperfine");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let table = fs::read_to_string(&table).expect("read hyperfine's table");
        println!(
            "\nThe whole run by hyperfine, {rounds} runs each, one contestant after the other:\n\n{table}"
        );
    }

    /// The time from the start of a program to the start of its command, and to its own end.
    fn starts(&self, rounds: usize) {
        let contestants = self.contestants();
        let mut times = vec![Vec::new(); contestants.len()];
        for round in 0..rounds + 3 {
            // What ran just before leaves its traces: it is another one each time.
            let mut order: Vec<usize> = (0..contestants.len()).collect();
            order.sort_by_cached_key(|_| RandomState::new().build_hasher().finish());
            for number in order {
                sleep(PAUSE);
                let time = run(&contestants[number].1);
                // The first rounds fill the caches.
                if round >= 3 {
                    times[number].push(time);
                }
            }
        }
        println!("\nFrom start to end, {rounds} rounds, medians in ms (ratio to the floor):\n");
        println!("| | until the command starts | whole run |");
        println!("| --- | --- | --- |");
        for ((name, _), mine) in contestants.iter().zip(&times) {
            let part = |pick: fn(&Times) -> f64| {
                let ratios = mine.iter().zip(&times[0]).map(|(a, b)| pick(a) / pick(b));
                let value = median(mine.iter().map(pick).collect());
                format!("{value:.2} ({:.2})", median(ratios.collect()))
            };
            println!("| {name} | {} | {} |", part(|t| t.start), part(|t| t.whole));
        }
    }

    // Round trips

    /// How often a client has to wait for the server before its command starts.
    fn trips(&self) {
        let proxy = Proxy::to_port(self.server.port());
        proxy.delay(DELAY);
        let stamp = self.stamp();
        let command = [stamp.as_str(), "hold"];
        let ways = [
            ("direct", "postgres", "disable"),
            ("SCRAM", "scram", "disable"),
            ("TLS", "postgres", "require"),
            ("TLS and SCRAM", "scram", "require"),
        ];
        println!(
            "\nRound trips before the command starts, after the one of TCP; ms at {} ms each:\n",
            2 * DELAY.as_millis()
        );
        println!("| | the protocol's least | {} |", {
            let names: Vec<&str> = self.pglocks.iter().map(|(name, _)| *name).collect();
            format!("floor | {} | psql -c", names.join(" | "))
        });
        println!(
            "| --- | --- | --- |{} --- |",
            " --- |".repeat(self.pglocks.len())
        );
        // Start-up; with SCRAM two more, with TLS the request for it and the handshake of TLS 1.3; the lock.
        for ((name, user, sslmode), least) in ways.into_iter().zip([2, 4, 4, 6]) {
            let at = At {
                port: proxy.port(),
                user,
                sslmode,
            };
            let mut cells = Vec::new();
            let direct = user == "postgres" && sslmode == "disable";
            cells.push(match direct {
                true => trip(&proxy, &self.floor("try", at, &command)),
                false => "-".to_owned(),
            });
            for (_, program) in &self.pglocks {
                cells.push(trip(&proxy, &self.pglock(program, at, &[], &command)));
            }
            cells.push(trip(&proxy, &self.psql(at, "try_advisory_lock", &command)));
            println!("| {name} | {least} | {} |", cells.join(" | "));
        }
    }

    // Memory

    /// The most memory that pglock and its guardian have had in use at once. Where a program lies in memory is another place each
    /// time, and with it how much of it the kernel brings in at once: the median counts.
    fn memory(&self, rounds: usize) {
        println!(
            "\nPeak memory, {rounds} rounds, medians in kB (pglock + guardian, of which their own, not shared with files or each other):\n"
        );
        println!("| | while it holds | while it waits |");
        println!("| --- | --- | --- |");
        let stamp = self.stamp();
        let mut peaks = vec![[const { Vec::new() }; 2]; self.pglocks.len()];
        for (_, program) in &self.pglocks {
            have_read_anew(program);
        }
        for _ in 0..rounds {
            for ((_, program), peaks) in self.pglocks.iter().zip(&mut peaks) {
                let command = [stamp.as_str(), "hold"];
                // Some heartbeats, and some turns in the queue.
                let flags = ["--block", "--ttl", "3", "--grace", "0"];
                let line = self.pglock(program, self.at(), &flags, &command);
                let mut holder = Run::start(&line);
                holder.wait_until_ready();
                let waiter = Run::start(&line);
                sleep(Duration::from_secs(3));
                peaks[0].push(peak(&holder));
                peaks[1].push(peak(&waiter));
            }
        }
        for ((name, _), peaks) in self.pglocks.iter().zip(&peaks) {
            let cells = peaks.each_ref().map(|peaks| {
                let middle = |part: fn(&Peak) -> f64| median(peaks.iter().map(part).collect());
                format!(
                    "{} ({}) + {} ({})",
                    middle(|peak| peak.pglock.0),
                    middle(|peak| peak.pglock.1),
                    middle(|peak| peak.guardian.0),
                    middle(|peak| peak.guardian.1),
                )
            });
            println!("| {name} | {} |", cells.join(" | "));
        }
    }

    // Wake-up

    /// The time from the end of one command to the start of the next, with so many waiters.
    fn wake_ups(&self) {
        println!(
            "\nFrom the end of a command to the start of the next waiter's, ms; and handoffs per second:\n"
        );
        println!("| | 1 waiter | 10 waiters | 90 waiters | handoffs/s (90) |");
        println!("| --- | --- | --- | --- | --- |");
        let at = self.at();
        let hold = |line: &dyn Fn(&[&str]) -> Vec<String>| {
            let stamp = self.stamp();
            (line(&[&stamp, "hold"]), line(&[&stamp]))
        };
        let mut contestants = vec![("floor", hold(&|command| self.floor("wait", at, command)))];
        for (name, program) in &self.pglocks {
            let pglock = |command: &[&str]| self.pglock(program, at, &["--block"], command);
            contestants.push((name, hold(&pglock)));
        }
        let psql = |command: &[&str]| self.psql(at, "advisory_lock", command);
        contestants.push(("psql -c", hold(&psql)));

        let sizes = [(1, 21), (10, 5), (90, 3)];
        let mut gaps = vec![vec![Vec::new(); sizes.len()]; contestants.len()];
        let mut rates = vec![Vec::new(); contestants.len()];
        for (size, (waiters, rounds)) in sizes.into_iter().enumerate() {
            for _ in 0..rounds {
                for (number, (_, (holder, waiter))) in contestants.iter().enumerate() {
                    let times = self.hand_over(holder, waiter, waiters);
                    gaps[number][size].extend(times.windows(2).map(|pair| pair[1] - pair[0]));
                    if waiters == 90 {
                        rates[number].push(waiters as f64 * 1000.0 / (times[waiters] - times[0]));
                    }
                }
            }
        }
        for (number, (name, _)) in contestants.iter().enumerate() {
            let cells: Vec<String> = gaps[number]
                .iter()
                .map(|gaps| format!("{:.2}", median(gaps.clone())))
                .collect();
            let rate = median(rates[number].clone());
            println!("| {name} | {} | {rate:.0} |", cells.join(" | "));
        }
    }

    /// The times in ms at which the first command ended and the others started, in their order.
    fn hand_over(&self, holder: &[String], waiter: &[String], waiters: usize) -> Vec<f64> {
        let mut holder = Run::start(holder);
        holder.wait_until_ready();
        let waiting: Vec<Run> = (0..waiters).map(|_| Run::start(waiter)).collect();
        eventually("all wait", Duration::from_secs(60), || {
            // Between two turns a pglock does not wait for a moment.
            (self.server.waiters(1).len() * 10 >= waiters * 9).then_some(())
        });
        sleep(Duration::from_millis(300));
        drop(holder.input.take());
        let mut times: Vec<f64> = vec![holder.finish().0];
        times.extend(waiting.into_iter().map(|run| run.finish().0));
        times.sort_by(f64::total_cmp);
        times
    }
}

/// Counts the round trips of a client until its command runs, and takes the time.
fn trip(proxy: &Proxy, line: &[String]) -> String {
    let before = now();
    let mut run = Run::start(line);
    run.wait_until_ready();
    let time = now() - before;
    let trips = proxy.traffic().last().map_or(0, |link| link.round_trips);
    drop(run.input.take());
    run.finish();
    format!("{trips} ({time:.0} ms)")
}

/// Of pglock and its guardian the peak, and how much of its memory is its own, in kB.
#[derive(Clone)]
struct Peak {
    pglock: (f64, f64),
    guardian: (f64, f64),
}

/// The peak of a pglock, and that of its guardian, if it has one by now.
fn peak(run: &Run) -> Peak {
    let pid = run.child.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let guardian = children.split_whitespace().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.contains("guard"))
    });
    let of = |pid: &str| {
        let field = |file: &str, key: &str| -> f64 {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0.0)
        };
        (
            field("status", "VmHWM:"),
            field("smaps_rollup", "Private_Dirty:"),
        )
    };
    Peak {
        pglock: of(&pid.to_string()),
        guardian: guardian.map_or((f64::NAN, f64::NAN), of),
    }
}

/// Has a program be read from the disk when it is next started, as it is after a start of the machine. One that was just
/// built or copied lies in the page cache in larger pieces, and the kernel maps a piece as a whole.
fn have_read_anew(_program: &Path) {
    #[cfg(target_os = "linux")]
    {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

        let file = fs::File::open(_program).expect("open the program");
        // What is not on the disk yet could not be dropped.
        file.sync_all().expect("write the program to the disk");
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .expect("drop the program from the page cache");
    }
}

/// Has a contestant find nothing in its environment that speaks of a server but the password.
fn set_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    command.env(janitor::TAG, tag()).env("PGPASSWORD", "secret");
}

/// A contestant that runs.
struct Run {
    line: Vec<String>,
    child: Child,
    started: f64,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Run {
    fn start(line: &[String]) -> Run {
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        set_environment(&mut command);
        let started = now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{line:?}: {e}"));
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Run {
            line: line.to_owned(),
            child,
            started,
            input,
            output: BufReader::new(output.expect("a pipe")),
        }
    }

    /// Waits until the command runs.
    fn wait_until_ready(&mut self) {
        let mut line = String::new();
        while line.trim_end() != "ready" {
            line.clear();
            let count = self.output.read_line(&mut line).expect("read");
            assert_ne!(count, 0, "{:?} did not run its command", self.line);
        }
    }

    /// Waits for the end. Returns the time that the command has written, and that of the end, in ms.
    fn finish(mut self) -> (f64, f64) {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("read");
        let status = self.child.wait().expect("wait");
        let ended = now();
        assert!(status.success(), "{:?}: {status}\n{text}", self.line);
        let stamp = stamps(&text).next();
        let stamp =
            stamp.unwrap_or_else(|| panic!("{:?} did not run its command: {text}", self.line));
        (stamp, ended)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long one run took, in ms.
#[derive(Clone)]
struct Times {
    start: f64,
    whole: f64,
}

/// Runs something that is not timed.
fn run_to_end(line: &[String]) {
    let mut command = Command::new(&line[0]);
    set_environment(command.args(&line[1..]).stderr(Stdio::null()));
    let status = command.status().expect("start it");
    assert!(status.success(), "{line:?}: {status}");
}

fn run(line: &[String]) -> Times {
    let run = Run::start(line);
    let started = run.started;
    let (stamp, ended) = run.finish();
    Times {
        start: stamp - started,
        whole: ended - started,
    }
}

/// An etcd of our own, killed when dropped.
struct Etcd {
    child: Child,
    port: u16,
}

impl Etcd {
    fn start(scratch: &Scratch) -> Option<Etcd> {
        if !installed("etcd") || !installed("etcdctl") {
            println!("Not compared: etcdctl lock (etcd and etcdctl are not installed).");
            return None;
        }
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free().expect("a port").port();
        let peers = format!("http://127.0.0.1:{}", free().expect("a port").port());
        let clients = format!("http://127.0.0.1:{port}");
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(scratch.path().join("etcd"))
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("default={peers}")])
            .env(janitor::TAG, tag())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start etcd");
        let etcd = Etcd { child, port };
        eventually("etcd takes connections", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        eventually("etcd has a leader", PATIENCE, || {
            let health = ["--endpoints", &etcd.url(), "endpoint", "health"].map(str::to_owned);
            let output = Command::new("etcdctl").args(health).output().ok()?;
            output.status.success().then_some(())
        });
        Some(etcd)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// By which the [`janitor`] finds what was started, should this process be killed.
fn tag() -> String {
    janitor::tag()
}

/// Numbers with commas between them.
fn numbers(list: &str) -> Option<Vec<usize>> {
    list.split(',').map(|number| number.parse().ok()).collect()
}

fn words(parts: &[&[&str]]) -> Vec<String> {
    parts
        .iter()
        .flat_map(|part| part.iter())
        .map(|&word| word.to_owned())
        .collect()
}

/// The times that `stamp.c` has written, in ms.
fn stamps(text: &str) -> impl Iterator<Item = f64> {
    let numbers = text.lines().filter_map(|line| line.parse::<u64>().ok());
    numbers
        .filter(|time| *time > 1 << 32)
        .map(|time| time as f64 / 1e6)
}

/// The time of `stamp.c`, in ms.
fn now() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    time.tv_sec() as f64 * 1e3 + time.tv_nsec() as f64 / 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}
