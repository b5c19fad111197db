//! Counted locks: up to so many holders at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use crate::support::pgbouncer::Pgbouncer;
use crate::support::*;

fn slots(server: &Server, count: u32) -> Pglock {
    Pglock::on(server).flags(["--slots", &count.to_string(), "--conflict-exit-code", "9"])
}

/// A server for more clients than usual.
fn large_server() -> Server {
    Server::builder().conf("max_connections = 130").start()
}

/// The advisory locks that are held, or waited for, but for the keys that tell how many slots are counted:
/// `classid|objid|objsubid`.
fn keys(server: &Server, which: &str) -> BTreeSet<String> {
    let rows = server.psql(&format!(
        "select classid, objid, objsubid from pg_locks where locktype = 'advisory' and {which} and {NOT_ASIDE}"
    ));
    rows.lines().map(str::to_owned).collect()
}

fn set(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

/// How many stand at the door: one has it, the others wait for it.
fn queue(server: &Server, door: &str) -> usize {
    server
        .psql(&format!(
            "select count(*) from pg_locks where locktype = 'advisory' and {door}"
        ))
        .parse()
        .expect("a count")
}

const DOOR: &str = "classid = 1 and objid = 0 and objsubid = 2";

#[track_caller]
fn wait_for_queue(server: &Server, count: usize) {
    eventually(&format!("{count} stand at the door"), PATIENCE, || {
        (queue(server, DOOR) == count).then_some(())
    });
}

/// Somebody who counts the commands that run at the same time, and does not ask PostgreSQL. Each of them
/// writes a line when it begins and one before it ends.
struct Count {
    scratch: Scratch,
}

impl Count {
    fn new() -> Count {
        let scratch = Scratch::new();
        scratch.file("log", 0o644, "");
        Count { scratch }
    }

    fn path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// A command that is counted for that long, in seconds.
    fn script(&self, seconds: &str) -> String {
        let path = self.path();
        let path = path.display();
        format!("echo + >>'{path}'; sleep {seconds}; echo - >>'{path}'")
    }

    /// How many ran, and how many of them at the same time.
    fn result(&self) -> (usize, usize) {
        let (mut runs, mut now, mut most) = (0, 0, 0);
        for line in fs::read_to_string(self.path()).expect("read").lines() {
            if line == "+" {
                runs += 1;
                now += 1;
            } else {
                now -= 1;
            }
            most = most.max(now);
        }
        assert_eq!(now, 0, "somebody has not ended");
        (runs, most)
    }
}

#[test]
fn a_hundred_run_three_at_a_time_and_all_of_them() {
    let server = large_server();
    let count = Count::new();
    let named = Count::new();
    let run = |count: &Count, seconds: &str, flags: &[&str]| {
        let pglock = slots(&server, 3).flags(flags);
        pglock.sh(&count.script(seconds)).spawn()
    };
    let mut runs: Vec<Running> = (0..100)
        .map(|_| run(&count, "0.03", &["--wait", "50"]))
        .collect();
    for run in runs.drain(..) {
        run.wait().assert_status(0);
    }
    assert_eq!(count.result(), (100, 3));
    let name = ["--block", "--lockname", "it's a \\name"];
    // Longer than it takes to hand a slot over, so that all three are taken.
    runs.extend((0..20).map(|_| run(&named, "0.3", &name)));
    for run in runs {
        run.wait().assert_status(0);
    }
    assert_eq!(named.result(), (20, 3));
    assert_eq!(keys(&server, "true"), set(&[]));
}

#[test]
fn without_waiting_the_surplus_skips() {
    let server = Server::new();
    let mut runs: Vec<Running> = (0..20)
        .map(|_| {
            slots(&server, 3)
                .open_input()
                .command(["sh", "-c", "echo runs; exec cat"])
                .spawn()
        })
        .collect();
    eventually("the surplus has skipped", PATIENCE, || {
        let left = runs
            .iter_mut()
            .filter_map(|run| run.is_running().then_some(()));
        (left.count() == 3).then_some(())
    });
    // Three have it, and keep it.
    slots(&server, 3).command(["true"]).run().assert_status(9);
    for mut run in runs {
        if run.is_running() {
            run.wait_for_output("runs");
            run.finish().assert_status(0);
        } else {
            let output = run.wait();
            output.assert_status(9).assert_stdout("");
            assert_eq!(
                output.log()[2],
                "Could not obtain lock 1, skipping command",
                "{}",
                output.report()
            );
        }
    }
    let skip = Pglock::on(&server).flags(["--slots", "1"]);
    let holder = skip.clone().hold();
    skip.command(["false"]).run().assert_status(0);
    holder.finish().assert_status(0);
}

#[test]
fn the_keys_are_those_of_the_manual() {
    let server = Server::new();
    let mut session = server.session();
    for (id, signed) in [
        (0_u32, 0),
        (1, 1),
        (7, 7),
        (2_147_483_648, i32::MIN),
        (4_294_967_295, -1),
    ] {
        let flags = ["--lockid", &id.to_string()];
        let holders = [(); 3].map(|()| slots(&server, 3).flags(flags).hold());
        let one = format!("0|{id}|1");
        let [two, three, door] = [2, 3, 0].map(|slot| format!("{id}|{slot}|2"));
        assert_eq!(keys(&server, "granted"), set(&[&one, &two, &three]));
        for key in [
            format!("{id}"),
            format!("{signed}, 2"),
            format!("{signed}, 3"),
        ] {
            assert_eq!(
                session.exec(&format!("select pg_try_advisory_xact_lock({key})")),
                "f",
                "{key}"
            );
        }
        // One waiter has the door, the other waits there.
        let waiters = [(); 2].map(|()| {
            let waiter = slots(&server, 3).flags(flags).flags(["--wait", "60"]);
            waiter.command(["true"]).spawn()
        });
        let condition = format!("classid = {id} and objid = 0 and objsubid = 2");
        eventually("both are at the door", PATIENCE, || {
            (queue(&server, &condition) == 2).then_some(())
        });
        assert_eq!(keys(&server, "granted"), set(&[&one, &two, &three, &door]));
        for holder in holders {
            holder.finish().assert_status(0);
        }
        for waiter in waiters {
            waiter.wait().assert_status(0);
        }
        assert_eq!(keys(&server, "true"), set(&[]));
    }
}

#[test]
fn the_keys_of_a_name_s_slots_are_those_of_the_manual() {
    let server = Server::new();
    let mut session = server.session();
    let name = "it's a \\name";
    let hash = |seed: i32| format!("hashtextextended('it''s a \\name', {seed})");
    let given = || slots(&server, 3).flags(["--lockname", name]);
    let holders = [(); 3].map(|()| given().hold());
    for seed in 0..3 {
        let question = format!("select pg_try_advisory_xact_lock({})", hash(seed));
        assert_eq!(session.exec(&question), "f", "seed {seed}");
    }
    assert_eq!(keys(&server, "true").len(), 3);
    let waiter = given().flag("--block").command(["true"]).spawn();
    let question = format!(
        "select pg_try_advisory_xact_lock(({} >> 32)::int, 0)",
        hash(0)
    );
    eventually("the waiter is at the door", PATIENCE, || {
        (session.exec(&question) == "f").then_some(())
    });
    given().command(["true"]).run().assert_status(9);
    for holder in holders {
        holder.finish().assert_status(0);
    }
    waiter.wait().assert_status(0);
}

#[test]
fn sql_can_take_a_slot() {
    let server = Server::new();
    let mut session = server.session();
    session.exec("select pg_advisory_lock(1, 2)");
    let holder = slots(&server, 2).hold();
    assert_eq!(server.holders(1).len(), 1);
    slots(&server, 2).command(["true"]).run().assert_status(9);
    assert_eq!(session.exec("select pg_advisory_unlock(1, 2)"), "t");
    slots(&server, 2).command(["true"]).run().assert_status(0);
    holder.finish().assert_status(0);
}

#[test]
fn a_freed_slot_is_taken_at_once() {
    let server = Server::new();
    let mut session = server.session();
    let _first = slots(&server, 3).hold();
    session.exec("select pg_advisory_lock(1, 2), pg_advisory_lock(1, 3)");
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a time")
    };
    // Either slot, whichever is freed, and only then.
    let mut delays: Vec<Duration> = ["1, 3", "1, 2", "1, 2", "1, 3", "1, 2"]
        .iter()
        .map(|slot| {
            let waiter = slots(&server, 3)
                .flags(["--wait", "60"])
                .command(["date", "+%s.%N"])
                .spawn();
            wait_for_queue(&server, 1);
            assert_eq!(waiter.stdout(), "");
            let freed = now();
            let unlocked = session.exec(&format!("select pg_advisory_unlock({slot})"));
            assert_eq!(unlocked, "t");
            let output = waiter.wait();
            session.exec(&format!("select pg_advisory_lock({slot})"));
            let text = output.assert_status(0).stdout();
            let (seconds, nanos) = text.trim().split_once('.').expect("a time");
            let taken = Duration::new(
                seconds.parse().expect("seconds"),
                nanos.parse().expect("nanoseconds"),
            );
            assert!(taken >= freed, "taken before it was free");
            taken - freed
        })
        .collect();
    // Four times in five, for the machine may be busy.
    delays.sort();
    assert!(delays[3] < Duration::from_millis(250), "{delays:?}");
}

#[test]
fn the_wait_for_a_slot_ends() {
    let server = Server::new();
    let _holders = [(); 2].map(|()| slots(&server, 2).hold());
    // Together: the first of them and one who never gets to be that.
    let waiters = [(); 2].map(|()| {
        let waiter = slots(&server, 2).flags(["--wait", "2"]);
        waiter.command(["true"]).spawn()
    });
    for waiter in waiters {
        let output = waiter.wait();
        output.assert_status(9);
        let (least, most) = (Duration::from_secs(2), Duration::from_millis(3500));
        assert!(
            (least..most).contains(&output.elapsed),
            "{:?}\n{}",
            output.elapsed,
            output.report()
        );
    }
    wait_for_queue(&server, 0);
}

#[test]
fn a_signal_ends_the_wait_and_frees_the_door() {
    let server = Server::new();
    let _holders = [(); 2].map(|()| slots(&server, 2).hold());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let marker = Marker::new();
        let waiting = || {
            let waiter = slots(&server, 2).flag("--block");
            waiter.command(marker.command()).spawn()
        };
        let first = waiting();
        wait_for_queue(&server, 1);
        let second = waiting();
        wait_for_queue(&server, 2);
        first.signal(signal);
        let output = first.wait();
        if signal != Signal::SIGKILL {
            output.assert_status(128 + signal as i32);
        }
        // The second is the first now.
        eventually("the second has the door", PATIENCE, || {
            let granted = format!("{DOOR} and granted");
            (queue(&server, DOOR) == 1 && queue(&server, &granted) == 1).then_some(())
        });
        second.signal(Signal::SIGTERM);
        second.wait().assert_status(143);
        wait_for_queue(&server, 0);
        assert!(!marker.exists());
    }
}

#[test]
fn a_hundred_waiters_ask_little_of_the_server() {
    let server = Server::builder()
        .conf("max_connections = 130")
        .conf("log_statement = all")
        .start();
    let _holders = [(); 3].map(|()| slots(&server, 3).hold());
    let mut waiters: Vec<Running> = (0..100)
        .map(|_| slots(&server, 3).flag("--block").command(["true"]).spawn())
        .collect();
    // One look every now and then, so that it does not count.
    let pause = || thread::sleep(Duration::from_millis(200));
    let deadline = SystemTime::now() + PATIENCE;
    // All but four, for whom there is no place.
    while queue(&server, DOOR) < 96 {
        assert!(SystemTime::now() < deadline, "not all of them wait");
        pause();
    }
    const SECONDS: u64 = 3;
    let asked = || server.log().matches("LOG:  statement: ").count();
    let before = asked();
    thread::sleep(Duration::from_secs(SECONDS));
    let rate = (asked() - before) as u64 / SECONDS;
    assert!(waiters.iter_mut().all(Running::is_running));
    assert!((20..=150).contains(&rate), "{rate} statements a second");
}

#[test]
fn nobody_starves() {
    let server = Server::new();
    let scratch = Scratch::new();
    let log = scratch.file("log", 0o644, "");
    // Four who always want one of two slots; each comes back as soon as it has run.
    let stream = format!(
        "i=0; while [ $i -lt 25 ]; do i=$((i + 1)); \
         \"$0\" --quiet --slots 2 --wait 60 --conflict-exit-code 9 sh -c \"sleep 0.02; echo other >>'{log}'\" || exit; done",
        log = log.display()
    );
    let streams: Vec<Running> = (0..4)
        .map(|_| {
            Pglock::on(&server)
                .without_pglock()
                .command(["sh", "-c", &stream, env!("CARGO_BIN_EXE_pglock")])
                .spawn()
        })
        .collect();
    let read = || fs::read_to_string(&log).expect("read");
    eventually("they run", PATIENCE, || (!read().is_empty()).then_some(()));
    // One who wants it once.
    slots(&server, 2)
        .flag("--block")
        .command(["sh", "-c", &format!("echo once >>'{}'", log.display())])
        .run()
        .assert_status(0);
    for stream in streams {
        stream.wait().assert_status(0);
    }
    let text = read();
    let place = text
        .lines()
        .position(|line| line == "once")
        .expect("it ran");
    assert_eq!(text.lines().count(), 101);
    assert!(place < 50, "{place} others ran first");
}

#[test]
fn who_waits_does_not_go_before_those_at_the_door() {
    let server = Server::new();
    let mut session = server.session();
    for (door, flags) in [
        ("1, 0", &[][..]),
        (
            "(hashtextextended('a', 0) >> 32)::int, 0",
            &["--lockname", "a"],
        ),
    ] {
        // All slots are free, but somebody is about to take one.
        session.exec(&format!("select pg_advisory_lock({door})"));
        let given = || slots(&server, 2).flags(flags);
        given()
            .flags(["--wait", "1"])
            .command(["true"])
            .run()
            .assert_status(9);
        let waiter = given().flag("--block").command(["true"]).spawn();
        eventually("it is at the door", PATIENCE, || {
            (keys(&server, "not granted").len() == 1).then_some(())
        });
        session.exec(&format!("select pg_advisory_unlock({door})"));
        waiter.wait().assert_status(0);
    }
}

#[test]
fn waiters_take_all_slots_that_are_freed() {
    let server = Server::new();
    for flags in [&[][..], &["--lockname", "a"]] {
        let given = || slots(&server, 3).flags(flags);
        let holders = [(); 3].map(|()| given().hold());
        let mut waiters: Vec<Running> = (0..5)
            .map(|_| {
                let waiter = given().flag("--block").open_input();
                waiter.command(["sh", "-c", "echo runs; exec cat"]).spawn()
            })
            .collect();
        eventually("the first has the door", PATIENCE, || {
            (keys(&server, "granted").len() == 4).then_some(())
        });
        for holder in holders {
            holder.finish().assert_status(0);
        }
        // Together, not one after the other; and the next is at the door again.
        let mut running = |count| {
            eventually(&format!("{count} run"), PATIENCE, || {
                let (running, others): (Vec<Running>, Vec<Running>) = waiters
                    .drain(..)
                    .partition(|waiter| waiter.stdout() == "runs\n");
                if running.len() == count {
                    waiters = others;
                    return Some(running);
                }
                waiters.extend(running.into_iter().chain(others));
                None
            })
        };
        let three = running(3);
        eventually("another has the door", PATIENCE, || {
            (keys(&server, "granted").len() == 4).then_some(())
        });
        for waiter in three {
            waiter.finish().assert_status(0);
        }
        for waiter in running(2) {
            waiter.finish().assert_status(0);
        }
    }
}

#[test]
fn a_killed_holder_s_slot_is_free_when_its_command_is_gone() {
    let server = Server::new();
    let lost = slots(&server, 2).hold();
    let other = slots(&server, 2).hold();
    let command = processes::command_of(lost.pid());
    let waiter = slots(&server, 2)
        .flags(["--wait", "60"])
        .command(["echo", "runs"])
        .spawn();
    wait_for_queue(&server, 1);
    lost.signal(Signal::SIGKILL);
    waiter.wait_for_output("runs");
    assert!(!processes::is_alive(command));
    waiter.wait().assert_status(0);
    other.finish().assert_status(0);
}

#[test]
fn a_lost_slot_ends_its_command_and_no_other() {
    let server = Server::new();
    let kept = slots(&server, 2).hold();
    let backend = |key: &str| {
        server.psql(&format!(
            "select pid from pg_locks where locktype = 'advisory' and granted and {key}"
        ))
    };
    for waits in [false, true] {
        let lost = slots(&server, 2).hold();
        let waiter = waits.then(|| {
            let waiter = slots(&server, 2).flag("--block").command(["true"]).spawn();
            wait_for_queue(&server, 1);
            waiter
        });
        let second = backend("classid = 1 and objid = 2 and objsubid = 2");
        server.psql(&format!("select pg_terminate_backend({second})"));
        lost.wait().assert_status(124);
        if let Some(waiter) = waiter {
            waiter.wait().assert_status(0);
        }
        // Found again.
        slots(&server, 2).command(["true"]).run().assert_status(0);
    }
    kept.finish().assert_status(0);
}

#[test]
fn slots_outlast_a_restart_of_the_server() {
    let server = Server::new();
    let terms = ["--ttl", "8", "--grace", "0"];
    let given = || slots(&server, 2).flags(terms);
    let named = || given().flags(["--lockname", "it's a \\name"]);
    let mut holders = [
        given().hold(),
        named().hold(),
        given().hold(),
        named().hold(),
    ];
    let before = keys(&server, "granted");
    assert_eq!(before.len(), 4);
    let mut waiters = [given(), named()].map(|waiter| {
        let waiter = waiter.flags(["--wait", "60"]);
        waiter.command(["true"]).spawn()
    });
    eventually("both wait", PATIENCE, || {
        (keys(&server, "granted").len() == 6).then_some(())
    });
    server.stop(Stop::Immediate);
    server.start();
    // Each has the very slot again that it had.
    eventually("all are back", PATIENCE, || {
        keys(&server, "granted").is_superset(&before).then_some(())
    });
    let newcomers = [given(), named()].map(|newcomer| newcomer.command(["true"]).spawn());
    for newcomer in newcomers {
        newcomer.wait().assert_status(9);
    }
    assert!(keys(&server, "granted").is_superset(&before));
    assert!(holders.iter_mut().all(Running::is_running));
    assert!(waiters.iter_mut().all(Running::is_running));
    for holder in holders {
        holder.finish().assert_status(0);
    }
    for waiter in waiters {
        waiter.wait().assert_status(0);
    }
}

#[test]
fn an_index_is_built_concurrently_by_a_holder_while_others_wait_for_a_slot() {
    let server = Server::new();
    server.psql("create table t as select generate_series(1, 1000) as x");
    let psql = server::psql().display().to_string();
    let build = format!(
        "read go; exec '{psql}' -X -h '{}' -p {} -U postgres -c 'create index concurrently i on t (x)' postgres",
        server.socket_dir().display(),
        server.port()
    );
    let mut builder = slots(&server, 2).open_input().sh(&build).spawn();
    builder.wait_for_line("Executing command");
    let other = slots(&server, 2).hold();
    let waiters = [(); 4].map(|()| {
        let waiter = slots(&server, 2).flag("--block");
        waiter.command(["true"]).spawn()
    });
    wait_for_queue(&server, 4);
    builder.write("go\n");
    let output = builder.wait();
    output.assert_status(0).assert_stdout("CREATE INDEX\n");
    other.finish().assert_status(0);
    for waiter in waiters {
        waiter.wait().assert_status(0);
    }
}

#[test]
fn each_slot_has_a_fencing_token_of_its_own() {
    let server = Server::new();
    let token = || {
        let output = slots(&server, 2)
            .flag("--fence")
            .sh("echo $PGLOCK_TOKEN")
            .run();
        let text = output.assert_status(0).stdout();
        text.trim().parse::<u64>().expect("a token")
    };
    let first = token();
    let _holder = slots(&server, 2).flag("--fence").hold();
    let second = token();
    assert!(0 < first && first < second, "{first}, {second}");
    // Also to one who had to wait.
    let holder = slots(&server, 2).hold();
    let waiter = slots(&server, 2)
        .flags(["--fence", "--wait", "60"])
        .sh("echo $PGLOCK_TOKEN")
        .spawn();
    wait_for_queue(&server, 1);
    holder.finish().assert_status(0);
    let output = waiter.wait();
    let third: u64 = output
        .assert_status(0)
        .stdout()
        .trim()
        .parse()
        .expect("a token");
    assert!(second < third, "{second}, {third}");
}

#[test]
fn one_slot_is_the_ordinary_lock() {
    let server = Server::new();
    let holder = slots(&server, 1).hold();
    assert_eq!(keys(&server, "true"), set(&["0|1|1"]));
    holder.finish().assert_status(0);
    // It can be shared.
    let sharers = [(); 2].map(|()| slots(&server, 1).flag("--shared").hold());
    for sharer in sharers {
        sharer.finish().assert_status(0);
    }
}

#[test]
fn many_slots_work() {
    let server = Server::new();
    let mut session = server.session();
    session.exec("select count(pg_advisory_lock(1, slot)) from generate_series(2, 999) slot");
    let _first = slots(&server, 1000).hold();
    let holder = slots(&server, 1000).hold();
    assert!(keys(&server, "granted").contains("1|1000|2"));
    slots(&server, 1000)
        .command(["true"])
        .run()
        .assert_status(9);
    holder.finish().assert_status(0);
}

#[test]
fn slots_that_cannot_be_are_refused() {
    let witness = Witness::new();
    let given = || Pglock::at(witness.port()).command(["true"]);
    for (pglock, words) in [
        (given().flags(["--slots", "0"]), &["--slots 0"][..]),
        (given().env("PGLOCK_SLOTS", "0"), &["PGLOCK_SLOTS=0"]),
        (given().flags(["--slots", "-1"]), &["--slots", "-1"]),
        (
            given().flags(["--slots", "4294967296"]),
            &["--slots", "4294967296"],
        ),
        (given().flags(["--slots", "many"]), &["--slots", "many"]),
        (
            given().flags(["--slots", "2", "--shared"]),
            &["--slots 2", "--shared"],
        ),
        (
            given()
                .env("PGLOCK_SLOTS", "2")
                .env("PGLOCK_SHARED", "true"),
            &["PGLOCK_SLOTS=2", "PGLOCK_SHARED"],
        ),
        (
            given().flag("--shared").env("PGLOCK_SLOTS", "2"),
            &["PGLOCK_SLOTS=2", "--shared"],
        ),
    ] {
        pglock.run().assert_refused(words);
    }
    assert!(!witness.was_disturbed());
}

/// That it is refused, and says both numbers, and whether its own is one that nobody gave.
#[track_caller]
fn assert_counts_differ(pglock: Pglock, own: u32, others: u32) {
    let default = if own == 1 { " (the default)" } else { "" };
    let output = pglock.command(["echo", "runs"]).run();
    output.assert_failed(&[
        &format!("--slots {own}{default} is asked for"),
        &format!("have --slots {others}:"),
    ]);
    output.assert_stdout("");
}

#[test]
fn another_number_of_slots_is_refused_in_all_orders() {
    let server = Server::new();
    let bouncer = Pgbouncer::new(&server, "transaction", 10, &[]);
    server.psql("create database other");
    let names = [
        ["--lockid", "1"],
        ["--lockname", "it's a \\name"],
        ["--lockkey", "-7"],
    ];
    for name in names {
        let direct = |count: u32| slots(&server, count).flags(name);
        let pooled = |count: u32| {
            let count = count.to_string();
            let pglock = bouncer.pglock().flags(["--slots", &count]);
            pglock.flags(["--conflict-exit-code", "9"]).flags(name)
        };
        let ways: [&dyn Fn(u32) -> Pglock; 2] = [&direct, &pooled];
        for first in ways {
            for second in ways {
                for (counts, other) in [(3, 5), (5, 3), (3, 1), (1, 3)] {
                    let holder = first(counts).hold();
                    assert_counts_differ(second(other), other, counts);
                    assert_counts_differ(second(other).flag("--block"), other, counts);
                    // In another database it is another lock.
                    let elsewhere = direct(other).env("PGLOCK_DATABASE", "other");
                    elsewhere.command(["true"]).run().assert_status(0);
                    let status = if counts == 1 { 9 } else { 0 };
                    second(counts).command(["true"]).run().assert_status(status);
                    holder.finish().assert_status(0);
                    second(other).command(["true"]).run().assert_status(0);
                }
            }
        }
    }
}

#[test]
fn another_number_is_refused_where_the_first_slot_is_free_and_by_those_who_wait() {
    let server = Server::new();
    let first = slots(&server, 2).hold();
    let second = slots(&server, 2).hold();
    first.finish().assert_status(0);
    assert_counts_differ(slots(&server, 1), 1, 2);
    assert_counts_differ(slots(&server, 1).flag("--shared"), 1, 2);
    assert_counts_differ(slots(&server, 4), 4, 2);
    let first = slots(&server, 2).hold();
    let waiter = slots(&server, 2).flag("--block").command(["true"]).spawn();
    wait_for_queue(&server, 1);
    server.psql(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted
         and (classid, objid, objsubid) in ((0, 1, 1), (1, 2, 2))",
    );
    drop((first, second));
    waiter.wait().assert_status(0);
    // Sharers count one.
    let sharer = slots(&server, 1).flag("--shared").hold();
    assert_counts_differ(slots(&server, 2), 2, 1);
    sharer.finish().assert_status(0);
    // SQL counts one by the lock itself, and nothing by any other of its keys.
    let mut session = server.session();
    session.hold(1);
    assert_counts_differ(slots(&server, 2), 2, 1);
    slots(&server, 1).command(["true"]).run().assert_status(9);
    session.release(1);
    session.exec("select pg_advisory_lock(1, 2), pg_advisory_lock_shared(1, -1)");
    slots(&server, 2).command(["true"]).run().assert_status(0);
    slots(&server, 3).command(["true"]).run().assert_status(0);
}

#[test]
fn another_number_is_refused_after_a_crash_of_its_holder_and_of_the_server() {
    let server = Server::new();
    let first = slots(&server, 2).hold();
    let second = slots(&server, 2).hold();
    first.signal(Signal::SIGKILL);
    eventually("the first is gone", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
    assert_counts_differ(slots(&server, 3), 3, 2);
    server.crash();
    server.start();
    eventually("the second has its slot again", PATIENCE, || {
        let count = "select count(*) from pg_locks where (classid, objid, objsubid) = (1, 2, 2)";
        (server.psql(count) == "1").then_some(())
    });
    // Without a lease there is nothing to hold off for.
    assert_counts_differ(slots(&server, 3).flags(["--ttl", "0"]), 3, 2);
    assert_counts_differ(slots(&server, 1).flags(["--ttl", "0"]), 1, 2);
    second.finish().assert_status(0);
    slots(&server, 3)
        .flags(["--ttl", "0"])
        .command(["true"])
        .run()
        .assert_status(0);
    drop(first);
}

#[test]
fn of_many_who_count_otherwise_and_come_at_once_those_of_one_number_run() {
    let server = Server::new();
    for _ in 0..5 {
        let count = Count::new();
        let runs: Vec<Running> = [2, 2, 3, 2, 2, 3, 2]
            .into_iter()
            .map(|number| {
                let pglock = slots(&server, number).flag("--block");
                pglock.sh(&count.script("0.6")).spawn()
            })
            .collect();
        let outputs: Vec<Output> = runs.into_iter().map(Running::wait).collect();
        let ran = outputs.iter().filter(|output| output.status.success());
        let ran = ran.count();
        let (runs, most) = count.result();
        assert!(
            runs == ran && most <= 3 && [5, 2].contains(&ran),
            "{ran} ran, {most} at once"
        );
    }
}
