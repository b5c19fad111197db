//! `--hold`: a lock that is kept for a while although its command has ended, under the lease as before, and what ends that.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::lease::{
    LATE, LONG, TTL, assert_between, assert_never_says, assert_says, at, on, terminate_holder,
};
use crate::support::pgbouncer::Pgbouncer;
use crate::support::processes::{command_of, guardian_of, is_alive, wait_for_end, wait_for_state};
use crate::support::pty::{CTRL_C, CTRL_Z, Pty};
use crate::support::*;

/// What is said when the command has ended and the lock is kept.
const KEEPING: &str = "The command has ended; keeping the lock for ";

/// Longer than any test.
const LONG_HOLD: [&str; 2] = ["--hold", "10m"];

/// Starts a command that ends with 7 at once, and waits until the lock is kept after it.
#[track_caller]
fn keep(pglock: Pglock) -> Running {
    let run = pglock.sh("exit 7").spawn();
    run.wait_for_line(KEEPING);
    run
}

#[track_caller]
fn wait_for_free_lock(server: &Server) {
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
}

#[test]
fn of_two_hosts_whose_clocks_differ_one_runs_a_short_job() {
    let server = Server::new();
    let runs = |flags: &[&str]| {
        let host = Pglock::on(&server).flags(flags).sh("echo ran; sleep 0.1");
        let begin = Instant::now();
        let early = host.spawn();
        early.wait_for_output("ran");
        thread::sleep(Duration::from_secs(2).saturating_sub(begin.elapsed()));
        let late = host.run();
        late.assert_status(0);
        let early = early.wait();
        early.assert_status(0);
        early.stdout() + &late.stdout()
    };
    assert_eq!(runs(&["--hold", "6"]), "ran\n");
    assert_eq!(runs(&[]), "ran\nran\n");
}

#[test]
fn a_lock_is_kept_for_its_time_and_not_longer() {
    let server = Server::new();
    let slots = ["--slots", "2"];
    for (flags, others) in [
        (&[][..], &[][..]),
        (&["--shared"], &[]),
        (&slots, &slots),
        (&["--ttl", "0"], &[]),
        (&["--ttl", "3", "--grace", "0"], &[]),
        (&["--lockname", "nightly"], &["--lockname", "nightly"]),
    ] {
        let other = (flags == slots).then(|| Pglock::on(&server).flags(slots).hold());
        let begin = Instant::now();
        let holder = keep(Pglock::on(&server).flags(flags).flags(["--hold", "4"]));
        let newcomer = Pglock::on(&server)
            .flags(others)
            .flags(["--conflict-exit-code", "75"])
            .command(["true"]);
        newcomer.run().assert_status(75);
        thread::sleep(Duration::from_millis(3200).saturating_sub(begin.elapsed()));
        newcomer.run().assert_status(75);
        holder.wait().assert_status(7);
        let time = Duration::from_secs(4);
        assert_between("kept", begin.elapsed(), time, time + LATE);
        newcomer.run().assert_status(0);
        drop(other);
    }
}

#[test]
fn sharers_come_in_meanwhile() {
    let server = Server::new();
    let sharer = Pglock::on(&server).flag("--shared");
    let holder = keep(sharer.clone().flags(LONG_HOLD));
    let output = sharer
        .flags(["--conflict-exit-code", "75"])
        .command(["true"])
        .run();
    output.assert_status(0);
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_status(7);
}

#[test]
fn a_command_that_was_longer_is_not_followed_by_anything() {
    let server = Server::new();
    let output = Pglock::on(&server)
        .flags(["--hold", "1s"])
        .sh("sleep 1.2; exit 7")
        .run();
    output.assert_status(7);
    assert_never_says(&output, &[KEEPING]);
    let last = output.log().pop();
    assert_eq!(
        last.as_deref(),
        Some("Execution finished, exiting and cleaning up lock.")
    );
}

#[test]
fn a_signal_ends_it_at_once_with_the_status_of_the_command() {
    let server = Server::new();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
    ] {
        let run = keep(Pglock::on(&server).flags(LONG_HOLD));
        // These end no program.
        run.signal(Signal::SIGCONT);
        run.signal(Signal::SIGWINCH);
        run.signal(signal);
        let output = run.wait();
        output.assert_status(7);
        let said = format!("{signal} came; the lock is kept no longer.");
        assert_says(&output, &[&said, "Execution finished, exiting"]);
        assert_never_says(&output, &["SIGCONT", "signal"]);
        assert_eq!(server.holders(1), []);
    }
}

#[test]
fn whoever_ends_the_command_does_not_wait_for_the_lock() {
    let server = Server::new();
    for (script, status) in [
        ("echo ready; exec cat", 143),
        (
            "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done",
            5,
        ),
    ] {
        let pglock = Pglock::on(&server).flags(LONG_HOLD).open_input();
        let run = pglock.sh(script).spawn();
        run.wait_for_output("ready");
        run.signal(Signal::SIGTERM);
        let output = run.wait();
        output.assert_status(status);
        assert_never_says(&output, &[KEEPING]);
        assert_eq!(server.holders(1), []);
    }
    // Who ended it otherwise is not known.
    let run = Pglock::on(&server).flags(LONG_HOLD).hold();
    kill(command_of(run.pid()), Signal::SIGKILL).expect("kill the command");
    run.wait_for_line(KEEPING);
    run.signal(Signal::SIGTERM);
    run.wait().assert_status(137);
}

#[test]
fn a_command_that_did_not_run_leaves_the_lock_to_others() {
    let server = Server::new();
    for (command, status) in [("/nonexistent/job", 127), ("/etc/passwd", 126)] {
        let pglock = Pglock::on(&server).flags(LONG_HOLD);
        let output = pglock.command([command]).run();
        output.assert_status(status);
        assert_never_says(&output, &[KEEPING]);
        assert_eq!(server.holders(1), []);
    }
}

/// SINCE and HELD UNTIL of the one holder that `--status` shows, in seconds since 1970, once it shows both.
#[track_caller]
fn times(server: &Server, list: &Pglock) -> (i64, i64) {
    let times = eventually("the status tells until when", PATIENCE, || {
        let text = list.run().stdout();
        let (head, row) = text.split_once('\n')?;
        let of = |column: &str| Some(row[head.find(column)?..][..19].to_owned());
        Some([of("SINCE")?, of("HELD UNTIL")?])
    });
    let [since, until] = times.map(|time| {
        // Local time is UTC here, and so is the server's.
        let sql = format!(
            "select extract(epoch from to_timestamp('{time}', 'YYYY/MM/DD HH24:MI:SS'))::bigint"
        );
        server.psql(&sql).parse().expect("a number")
    });
    (since, until)
}

#[test]
fn the_status_and_a_verbose_skip_tell_until_when() {
    let server = Server::new();
    // One that has waited goes by another name until then.
    let first = Pglock::on(&server).hold();
    let second = Pglock::on(&server).flags(["--hold", "1h", "--block"]);
    let second = second.sh("exit 7").spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    let list = Pglock::on(&server).flags(["--status", "--lockid", "1"]);
    assert!(!list.run().stdout().contains("HELD UNTIL"));
    first.finish().assert_status(0);
    second.wait_for_line(KEEPING);
    let (since, until) = times(&server, &list);
    assert_eq!(until - since, 3600);
    let skip = Pglock::on(&server)
        .flag("--verbose")
        .command(["true"])
        .run();
    skip.assert_status(0);
    assert_says(&skip, &[", held until ", " at least: sh"]);
    second.signal(Signal::SIGTERM);
    second.wait().assert_status(7);
}

#[test]
fn the_last_line_under_verbose_has_the_status_and_the_times() {
    let server = Server::new();
    let mut session = server.session();
    session.hold(1);
    let pglock = Pglock::on(&server).flags(["--verbose", "--block", "--hold", "2"]);
    let run = pglock.sh("sleep 1; kill -9 $$").spawn();
    eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
    thread::sleep(Duration::from_millis(500));
    session.release(1);
    let output = run.wait();
    output.assert_status(137);
    let last = output.log().pop().expect("a line");
    let how = "The command ended by SIGKILL, status 137, after ";
    assert!(last.starts_with(how), "{last}");
    let numbers = last[how.len()..].split(" s").filter_map(|text| {
        let number = text.rsplit(' ').next()?;
        number.parse::<f64>().ok()
    });
    let numbers: Vec<f64> = numbers.collect();
    let [ran, waited, kept] = numbers[..] else {
        panic!("{last}");
    };
    assert!((1.0..3.0).contains(&ran), "{last}");
    assert!((0.5..5.0).contains(&waited), "{last}");
    assert!((1.9..4.0).contains(&(ran + kept)), "{last}");
    let output = Pglock::on(&server).command(["true"]).run();
    output.assert_status(0);
    assert_never_says(&output, &["The command ended"]);
}

#[test]
fn a_lock_that_is_lost_meanwhile_ends_it_with_the_status_of_the_command() {
    let server = Server::new();
    let proxy = Proxy::new(&server);
    // An administrator ends the session; or does so, and somebody else has the lock at once; without a lease.
    for (flags, is_taken) in [(&[][..], false), (&[], true), (&["--ttl", "0"], false)] {
        let run = keep(on(&server).flags(flags).flags(LONG_HOLD));
        let mut other = server.session();
        if is_taken {
            other.send("select pg_advisory_lock(1)");
            eventually("it waits", PATIENCE, || server.waiters(1).first().copied());
        }
        terminate_holder(&server, 1);
        let output = run.wait();
        output.assert_status(7);
        assert_says(
            &output,
            &[
                "pglock: the lock is lost: the session that held it",
                "; the command had ended before, and it is not kept any longer",
            ],
        );
        drop(other);
        wait_for_free_lock(&server);
    }
    // The network is cut: a second before the server frees the lock.
    let run = keep(at(&proxy).flags(LONG_HOLD));
    let begin = Instant::now();
    proxy.silence();
    let output = run.wait();
    output.assert_status(7);
    assert_says(
        &output,
        &["pglock: the lock is lost: no answer from the server for 4."],
    );
    // It may have been heard by a beat just before, and gives the release a second.
    let most = TTL + LATE;
    assert_between("kept", begin.elapsed(), TTL / 3, most);
    wait_for_free_lock(&server);
}

#[test]
fn on_loss_continue_takes_it_again_and_keeps_it() {
    let server = Server::new();
    let run = keep(
        on(&server)
            .flags(["--on-loss", "continue"])
            .flags(LONG_HOLD),
    );
    terminate_holder(&server, 1);
    run.wait_for_line("it was taken again, and is kept (--on-loss continue)");
    // Longer than a lease that nobody renews.
    thread::sleep(TTL + Duration::from_secs(1));
    assert_eq!(
        server.holders(1).len(),
        1,
        "what was taken again was not kept"
    );
    run.signal(Signal::SIGTERM);
    run.wait().assert_status(7);
}

#[test]
fn it_outlasts_restarts_of_the_server() {
    let server = Server::new();
    let run = keep(Pglock::on(&server).flags(LONG).flags(LONG_HOLD));
    for how in [Stop::Fast, Stop::Immediate] {
        server.restart(how);
        eventually("the lock is taken again", PATIENCE, || {
            server.holders(1).first().copied()
        });
    }
    run.wait_for_line("The server was restarted; the lock was taken again");
    // Its name tells of it there, too.
    let list = Pglock::on(&server).flags(["--status", "--lockid", "1"]);
    let (since, until) = times(&server, &list);
    assert_eq!(until - since, 600);
    run.signal(Signal::SIGTERM);
    let output = run.wait();
    output.assert_status(7);
    assert_never_says(&output, &["the lock is lost", "could not release"]);
    assert_eq!(server.holders(1), []);
}

#[test]
fn it_ends_in_time_though_the_server_is_away() {
    let server = Server::new();
    let run = keep(Pglock::on(&server).flags(["--hold", "3"]));
    server.stop(Stop::Fast);
    let output = run.wait();
    output.assert_status(7);
    assert_says(
        &output,
        &[
            "the connection to the server was lost",
            "Execution finished",
        ],
    );
    assert_never_says(&output, &["the lock is lost"]);
    server.start();
}

#[test]
fn killed_meanwhile_it_leaves_neither_a_lock_nor_a_process_and_the_background_alone() {
    let server = Server::new();
    let run = Pglock::on(&server)
        .flags(LONG_HOLD)
        .sh("sleep 600 >/dev/null 2>&1 & echo $!; exit 7")
        .spawn();
    run.wait_for_line(KEEPING);
    // A stream of its own, which may be read after the line.
    run.wait_for_output("\n");
    let background = nix::unistd::Pid::from_raw(run.stdout().trim().parse().expect("a pid"));
    let guardian = guardian_of(run.pid());
    // A guardian that is killed is replaced, and kills nobody.
    kill(guardian, Signal::SIGKILL).expect("kill the guardian");
    run.wait_for_line("the guardian was killed; starting another");
    let guardian = eventually("there is another", PATIENCE, || {
        let other = guardian_of(run.pid());
        (other != guardian).then_some(other)
    });
    run.signal(Signal::SIGKILL);
    wait_for_end("the guardian", guardian);
    wait_for_free_lock(&server);
    assert!(is_alive(background), "what was left in the background");
}

#[test]
fn behind_a_pooler_it_is_kept_too() {
    let server = Server::new();
    for mode in ["transaction", "session"] {
        let pooler = Pgbouncer::new(&server, mode, 5, &[]);
        let run = keep(
            pooler
                .pglock()
                .flags(["--ttl", "5", "--grace", "1"])
                .flags(LONG_HOLD),
        );
        // Longer than a lease that nobody renews.
        thread::sleep(TTL + Duration::from_secs(1));
        let newcomer = pooler.pglock().flags(["--conflict-exit-code", "75"]);
        newcomer.command(["true"]).run().assert_status(75);
        let (since, until) = times(
            &server,
            &pooler.pglock().flags(["--status", "--lockid", "1"]),
        );
        assert_eq!(until - since, 600);
        run.signal(Signal::SIGTERM);
        run.wait().assert_status(7);
        wait_for_free_lock(&server);
    }
}

#[test]
fn at_a_terminal_the_keys_are_for_pglock() {
    let server = Server::new();
    let mut pty = Pty::new(&server);
    pty.line("pglock --hold 600 sh -c 'exit 7'");
    pty.expect(KEEPING);
    let pglock = pty.pglock();
    eventually("pglock is in the foreground", PATIENCE, || {
        (pty.foreground() == pglock).then_some(())
    });
    pty.press(CTRL_Z);
    wait_for_state("pglock", pglock, "T");
    pty.prompt();
    pty.line("fg");
    wait_for_state("pglock", pglock, "S");
    assert_eq!(server.holders(1).len(), 1);
    pty.press(CTRL_C);
    pty.prompt();
    assert_eq!(pty.run("echo $?").trim(), "7");
    // The command that is ended there is not followed by a hold.
    pty.line("pglock --hold 600 sh -c 'echo rea\"\"dy; exec sleep 1000'");
    pty.expect("ready");
    let command = command_of(pty.pglock());
    eventually("the command is in the foreground", PATIENCE, || {
        (pty.foreground() == command).then_some(())
    });
    pty.press(CTRL_C);
    pty.prompt();
    assert_eq!(pty.run("echo $?").trim(), "130");
    wait_for_free_lock(&server);
}
