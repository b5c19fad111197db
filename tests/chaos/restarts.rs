//! Restarts under one command that runs all the time, with waiters and newcomers at the door.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use super::arena::{SKIPPED, pglock};
use super::book::Log;
use super::random::Random;
use super::support::{Output, PATIENCE, Pglock, Running, Scratch, Server, Stop, eventually};
use super::witness::now;

/// The command: `sh -c script sh helper dir run`. That of the holder runs until its input ends.
const SCRIPT: &str = r#"
exec 9>>"$2/witness"
"$1" claim "$2/log" "$3"
(cat) | cat
"$1" end "$2/log" "$3"
"#;

/// As `pg_ctl` calls them, and by `kill -9` of a backend.
const KINDS: [&str; 3] = ["fast", "immediate", "crash"];

/// The words of who waits for a restarted server to be safe.
const HOLDS_OFF: &str = "holding off";

struct Door {
    server: Server,
    dir: Scratch,
    started: u32,
}

impl Door {
    fn pglock(&mut self, flags: &[&str]) -> Pglock {
        self.started += 1;
        let helper = std::env::current_exe().expect("the program's own path");
        let (code, number) = (SKIPPED.to_string(), self.started.to_string());
        let mut words = vec![pglock(), "--ttl".into(), "8".into(), "--grace".into()];
        words.extend(["1", "--conflict-exit-code", &code].map(str::to_owned));
        words.extend(flags.iter().map(|flag| (*flag).to_owned()));
        words.extend(["sh", "-c", SCRIPT, "sh"].map(str::to_owned));
        words.push(helper.display().to_string());
        words.push(self.dir.path().display().to_string());
        words.push(number);
        Pglock::on(&self.server).without_pglock().command(words)
    }

    fn restart(&self, kind: &str, down: Duration) {
        let how = match kind {
            "fast" => Stop::Fast,
            "immediate" => Stop::Immediate,
            _ => {
                let ready = || {
                    let log = self.server.log();
                    log.matches("ready to accept connections").count()
                };
                let before = ready();
                let mut session = self.server.session();
                let pid = session.pid();
                self.server.crash_backend(pid);
                eventually("the server has recovered", PATIENCE, || {
                    (ready() > before).then_some(())
                });
                return;
            }
        };
        self.server.stop(how);
        thread::sleep(down);
        self.server.start();
    }
}

/// Its time was over, perhaps while there was no server.
fn is_turned_away(run: &Output) -> bool {
    run.status.code() == Some(SKIPPED) || run.status.code() == Some(125)
}

/// The program when it is called with `restarts [N]`.
pub fn main(words: &[String]) -> ExitCode {
    let count = words.first().map_or(Ok(30), |word| word.parse::<usize>());
    let Ok(count) = count else {
        eprintln!("restarts: not a number: {words:?}");
        return ExitCode::from(2);
    };
    let mut random = Random::new(count as u64);
    let dir = Scratch::new();
    let mut log = Log::new(&dir.path().join("log"));
    let mut door = Door {
        server: Server::new(),
        dir,
        started: 0,
    };
    let begun = now();
    let mut holder = door.pglock(&[]).open_input().spawn();
    eventually("the command runs", PATIENCE, || {
        log.update();
        log.claims.first().copied()
    });
    let waiters: Vec<Running> = (0..4).map(|_| door.pglock(&["--block"]).spawn()).collect();
    let mut newcomers = Vec::new();
    let mut longest = Duration::ZERO;
    for round in 0..count {
        let kind = KINDS[round % KINDS.len()];
        newcomers.push(door.pglock(&["--wait", "3"]).spawn());
        let struck = now();
        door.restart(kind, random.time(0, 500));
        for flags in [&["--wait", "1"][..], &["--wait", "3"]] {
            newcomers.push(door.pglock(flags).spawn());
        }
        eventually("the lock is retaken, or lost", PATIENCE, || {
            let retaken = holder.stderr().matches("was taken again").count() > round;
            (retaken || !holder.is_running()).then_some(())
        });
        longest = longest.max(now() - struck);
        if !holder.is_running() {
            break;
        }
        // At times long enough for the others to queue for the lock.
        let pause = if round % 5 == 4 { 8500 } else { 0 };
        thread::sleep(random.time(pause, pause + 1000));
    }
    let stopped = !holder.is_running();
    let newcomers: Vec<_> = newcomers.into_iter().map(Running::wait).collect();
    log.update();
    let early = log.claims.len() - 1;
    let output = holder.finish();
    let waiters: Vec<_> = waiters.into_iter().map(Running::wait).collect();
    log.update();
    let good = output.status.code() == Some(0)
        && newcomers.iter().all(is_turned_away)
        && waiters.iter().all(|run| run.status.code() == Some(0))
        && log.overlaps.is_empty()
        && early == 0;
    if !good {
        for run in [&output].into_iter().chain(&newcomers).chain(&waiters) {
            println!("{}", run.report());
        }
    }
    let all = newcomers.iter().chain(&waiters);
    let held_off = all.filter(|run| run.stderr().contains(HOLDS_OFF)).count();
    println!(
        "{count} restarts in {:.0} s under one command, {} waiters and {} newcomers at the door, of whom {held_off} held \
         off\ncommands stopped: {}, started by others meanwhile: {early}, overlaps: {}\nfrom a restart's begin to the \
         lock retaken: {:.2} s at most",
        (now() - begun).as_secs_f64(),
        waiters.len(),
        newcomers.len(),
        u32::from(stopped),
        log.overlaps.len(),
        longest.as_secs_f64()
    );
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
