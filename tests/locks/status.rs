//! Who holds a lock and who waits for it, and how the flags of locks go together.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::Signal;

use crate::support::pglock::split_stamp;
use crate::support::*;

/// The columns of the table, in their order.
const COLUMNS: [&str; 10] = [
    "STATE", "MODE", "LOCK", "SINCE", "HOST", "PID", "USER", "DATABASE", "BACKEND", "COMMAND",
];

/// A row of the table.
#[derive(Clone, Debug)]
struct Row(Vec<String>);

impl Row {
    fn get(&self, column: &str) -> &str {
        let place = COLUMNS.iter().position(|name| *name == column);
        &self.0[place.expect("a column")]
    }

    fn all(&self, columns: &[&str]) -> Vec<&str> {
        columns.iter().map(|column| self.get(column)).collect()
    }
}

/// What `--status` with these flags says.
#[track_caller]
fn status<const N: usize>(server: &Server, flags: [&str; N]) -> (bool, Vec<Row>) {
    read(&Pglock::on(server).flag("--status").flags(flags).run())
}

/// What it says, once it has so many rows: between two turns in the queue a waiter is not in it for an instant.
#[track_caller]
fn listed(pglock: &Pglock, count: usize) -> Vec<Row> {
    let mut last = Vec::new();
    let found = wait::within(PATIENCE, || {
        let (free, rows) = read(&pglock.run());
        assert!(!free, "{rows:#?}");
        last = rows;
        (last.len() == count).then_some(())
    });
    assert!(found.is_some(), "not {count} rows: {last:#?}");
    last
}

/// Whether the lock is free, and the rows.
#[track_caller]
fn read(output: &Output) -> (bool, Vec<Row>) {
    let text = output.assert_status(0).stdout();
    assert_eq!(output.stderr(), "", "{}", output.report());
    let free = text.lines().next() == Some("free");
    let mut lines = text.lines().skip(usize::from(free));
    let Some(head) = lines.next() else {
        assert!(free, "neither free nor a table\n{}", output.report());
        return (true, Vec::new());
    };
    assert!(
        head.split_whitespace().eq(COLUMNS),
        "{head}\n{}",
        output.report()
    );
    // Where the columns begin.
    let begins: Vec<usize> = COLUMNS
        .iter()
        .map(|name| {
            let padded = format!("{head} ");
            padded.find(&format!("{name} ")).expect("a column")
        })
        .collect();
    let rows = lines
        .map(|line| {
            let characters: Vec<char> = line.chars().collect();
            let fields = begins.iter().enumerate().map(|(column, begin)| {
                let end = begins.get(column + 1).copied().unwrap_or(usize::MAX);
                let end = end.min(characters.len());
                let gap = characters.get(begin.saturating_sub(2)..*begin);
                assert!(
                    *begin == 0 || gap == Some(&[' ', ' ']),
                    "the columns do not fit\n{}",
                    output.report()
                );
                let field: String = characters[*begin..end].iter().collect();
                field.trim_end().to_owned()
            });
            Row(fields.collect())
        })
        .collect();
    (free, rows)
}

/// The name of this host, as far as a table has room for it.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the host's name");
    name.trim().chars().take(20).collect()
}

/// The time on the wall, in some zone.
fn clock(zone: &str) -> String {
    let output = Command::new("date")
        .arg("+%Y/%m/%d %H:%M:%S")
        .env("TZ", zone)
        .output()
        .expect("start date");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_lock_that_nobody_holds_is_free() {
    let server = Server::new();
    for flags in [
        &[][..],
        &["--lockid", "7"],
        &["--lockname", "a"],
        &["--slots", "3"],
        &["--lockname", "a", "--slots", "3"],
        &["--shared"],
    ] {
        let output = Pglock::on(&server).flag("--status").flags(flags).run();
        output.assert_status(0).assert_stdout("free\n");
        assert_eq!(output.stderr(), "", "{}", output.report());
    }
    // As a variable, and with a variable that names a lock.
    let output = Pglock::on(&server)
        .env("PGLOCK_STATUS", "yes")
        .env("PGLOCK_LOCKID", "7")
        .run();
    output.assert_status(0).assert_stdout("free\n");
    let off = Pglock::on(&server).env("PGLOCK_STATUS", "no");
    off.command(["echo", "runs"]).run().assert_stdout("runs\n");
}

#[test]
fn holder_and_waiter_are_told_apart_and_described() {
    let server = Server::new();
    server.psql("create role worker login; create role idler login");
    server.psql("create database jobs");
    let zone = "EAST-11:30";
    let before = clock(zone);
    let on = |user: &str| {
        Pglock::on(&server)
            .env("PGLOCK_USER", user)
            .env("PGLOCK_DATABASE", "jobs")
            .flags(["--lockid", "7"])
    };
    let holder = on("worker").hold();
    let waiter = on("idler")
        .flag("--block")
        .command(["some-command", "--some", "flags"])
        .spawn();
    let waiting = eventually("the waiter waits", PATIENCE, || {
        server.waiters(7).first().copied()
    });
    let backends = [server.holders(7)[0], waiting];
    let after = clock(zone);
    // The last of them may see no more than its own sessions, by the rules of the server.
    for user in ["postgres", "worker", "idler", "viewer"] {
        if user == "viewer" {
            server.psql("create role viewer login nosuperuser noinherit");
        }
        for flags in [&["--lockid", "7"][..], &[]] {
            let list = Pglock::on(&server)
                .env("PGLOCK_USER", user)
                .env("PGLOCK_DATABASE", "jobs")
                .env("TZ", zone)
                .flag("--status")
                .flags(flags);
            let rows = listed(&list, 2);
            let columns = [
                "STATE", "MODE", "LOCK", "HOST", "PID", "USER", "DATABASE", "BACKEND",
            ];
            let expected = [("holder", &holder, "worker"), ("waiter", &waiter, "idler")];
            for (place, (state, running, role)) in expected.into_iter().enumerate() {
                let row = &rows[place];
                assert_eq!(
                    row.all(&columns),
                    [
                        state,
                        "exclusive",
                        "7",
                        &host(),
                        &running.pid().to_string(),
                        role,
                        "jobs",
                        &backends[place].to_string()
                    ],
                    "{user}"
                );
                let since = row.get("SINCE");
                assert!(
                    (before.as_str()..=after.as_str()).contains(&since),
                    "{before} .. {after}: {since}"
                );
            }
            assert_eq!(rows[0].get("COMMAND"), "sh");
            assert_eq!(rows[1].get("COMMAND"), "some-command");
        }
    }
    // Another database has other locks.
    assert_eq!(
        Pglock::on(&server).flag("--status").run().stdout(),
        "free\n"
    );
    holder.finish().assert_status(0);
    waiter.wait().assert_status(127);
}

#[test]
fn one_who_had_to_wait_holds_since_it_got_the_lock() {
    let server = Server::new();
    let mut session = server.session();
    let zone = "UTC";
    let since = |state: &str| {
        let output = Pglock::on(&server)
            .env("TZ", zone)
            .flags(["--status", "--lockid", "1"])
            .run();
        let (_, rows) = read(&output);
        let row = rows
            .iter()
            .find(|row| row.get("STATE") == state && row.get("COMMAND") == "cat");
        row.map(|row| row.get("SINCE").to_owned())
    };
    for slots in ["1", "2"] {
        // Who counts slots does so beside others who do.
        let first = Pglock::on(&server).flags(["--slots", slots]).hold();
        session.exec("select pg_advisory_lock(1, 2)");
        let before = clock(zone);
        let mut waiter = Pglock::on(&server)
            .flags(["--slots", slots, "--block"])
            .open_input()
            .command(["cat"])
            .spawn();
        let asked = format!("--slots={slots}");
        let began = eventually("it waits", PATIENCE, || {
            let output = Pglock::on(&server)
                .env("TZ", zone)
                .flags(["--status", "--lockid=1", &asked])
                .run();
            let (_, rows) = read(&output);
            let row = rows.iter().find(|row| row.get("STATE") == "waiter")?;
            Some(row.get("SINCE").to_owned())
        });
        assert!(before <= began && began <= clock(zone), "{began}");
        // Time goes by in whole seconds here.
        eventually("a second later", PATIENCE, || {
            (clock(zone) > began).then_some(())
        });
        let freed = clock(zone);
        first.finish().assert_status(0);
        eventually("it holds, and says since when", PATIENCE, || {
            since("holder").filter(|since| *since >= freed)
        });
        waiter.close_input();
        waiter.wait().assert_status(0);
        session.exec("select pg_advisory_unlock(1, 2)");
    }
}

#[test]
fn those_who_are_not_pglock_are_listed_too() {
    let server = Server::new();
    server.psql("create role viewer login");
    let mut holder = server.session();
    holder.hold(7);
    let mut waiter = server.session();
    waiter.send("select pg_advisory_lock_shared(7)");
    eventually("it waits", PATIENCE, || server.waiters(7).first().copied());
    let backends = [server.holders(7)[0], server.waiters(7)[0]];
    for user in ["postgres", "viewer"] {
        let output = Pglock::on(&server)
            .env("PGLOCK_USER", user)
            .flags(["--status", "--lockid", "7"])
            .run();
        let (free, rows) = read(&output);
        assert!(!free);
        let expected = [("holder", "exclusive"), ("waiter", "shared")];
        assert_eq!(rows.len(), 2, "{}", output.report());
        for (place, (state, mode)) in expected.into_iter().enumerate() {
            assert_eq!(
                rows[place].all(&[
                    "STATE", "MODE", "LOCK", "USER", "DATABASE", "BACKEND", "COMMAND"
                ]),
                [
                    state,
                    mode,
                    "7",
                    "postgres",
                    "postgres",
                    &backends[place].to_string(),
                    "psql"
                ],
                "{}",
                output.report()
            );
        }
    }
}

#[test]
fn sharers_are_all_listed() {
    let server = Server::new();
    let sharers = [(); 3].map(|()| Pglock::on(&server).flag("--shared").hold());
    let writer = Pglock::on(&server)
        .flag("--block")
        .command(["true"])
        .spawn();
    eventually("the writer waits", PATIENCE, || {
        server.waiters(1).first().copied()
    });
    let list = Pglock::on(&server).flags(["--status", "--lockid", "1"]);
    let rows = listed(&list, 4);
    let states: Vec<_> = rows.iter().map(|row| row.all(&["STATE", "MODE"])).collect();
    let (holder, waiter) = (["holder", "shared"], ["waiter", "exclusive"]);
    assert_eq!(states, [holder, holder, holder, waiter]);
    let mut pids: Vec<&str> = rows.iter().map(|row| row.get("PID")).collect();
    let mut expected: Vec<String> = sharers
        .iter()
        .chain([&writer])
        .map(|running| running.pid().to_string())
        .collect();
    pids.sort();
    expected.sort();
    assert_eq!(pids, expected);
}

#[test]
fn all_locks_of_the_database_are_listed_where_none_is_named() {
    let server = Server::new();
    server.psql("create database other");
    let mut elsewhere = server.session_in("other");
    elsewhere.hold(99);
    let mut session = server.session();
    for key in ["1", "-1", "4294967296", "9223372036854775807", "-5, 6"] {
        session.exec(&format!("select pg_advisory_lock({key})"));
    }
    let _named = Pglock::on(&server).flags(["--lockname", "a"]).hold();
    let _plain = Pglock::on(&server).flags(["--lockid", "4294967295"]).hold();
    let (free, rows) = status(&server, []);
    assert!(!free);
    let mut locks: Vec<&str> = rows.iter().map(|row| row.get("LOCK")).collect();
    locks.sort();
    let mut expected = [
        "1",
        "-1",
        "4294967296",
        "9223372036854775807",
        "-5,6",
        "a",
        "4294967295",
    ];
    expected.sort();
    assert_eq!(locks, expected);
    assert!(rows.iter().all(|row| row.get("STATE") == "holder"));
    // A named one is listed alone.
    for (flags, lock) in [
        (["--lockid", "1"], "1"),
        (["--lockid", "4294967295"], "4294967295"),
        (["--lockname", "a"], "a"),
    ] {
        let (_, rows) = status(&server, flags);
        let locks: Vec<&str> = rows.iter().map(|row| row.get("LOCK")).collect();
        assert_eq!(locks, [lock]);
    }
    // What is given by a variable is a name as well.
    let output = Pglock::on(&server)
        .env("PGLOCK_LOCKNAME", "a")
        .flag("--status")
        .run();
    let (_, rows) = read(&output);
    assert_eq!(rows.len(), 1, "{}", output.report());
}

#[test]
fn the_slots_of_a_lock_are_listed_with_those_who_wait_for_one() {
    for name in [&["--lockid", "7"][..], &["--lockname", "a"]] {
        let server = Server::new();
        let given = || Pglock::on(&server).flags(["--slots", "2"]).flags(name);
        let list = |flags: &[&str]| {
            let output = Pglock::on(&server).flag("--status").flags(flags).run();
            read(&output)
        };
        let with_slots = [name, &["--slots", "2"]].concat();
        let first = given().hold();
        let second = given().hold();
        // The first is gone: of a lock in use it must not be said that it is free.
        first.finish().assert_status(0);
        let (free, rows) = list(&with_slots);
        assert!(!free);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].get("PID"), second.pid().to_string());
        let third = given().hold();
        let mut waiters: Vec<Running> = Vec::new();
        for count in 1..=2 {
            waiters.push(given().flag("--block").command(["true"]).spawn());
            let waiting = format!(
                "select count(*) = {} from pg_locks where locktype = 'advisory' and {NOT_ASIDE}",
                2 + count
            );
            eventually("it waits", PATIENCE, || {
                (server.psql(&waiting) == "t").then_some(())
            });
        }
        // Also in the list of all locks: the first of those who wait holds the door, but no slot.
        for flags in [&with_slots[..], &[]] {
            let list = Pglock::on(&server).flag("--status").flags(flags);
            let rows = listed(&list, 4);
            let mut states: Vec<(String, &str)> = rows
                .iter()
                .map(|row| (row.get("PID").to_owned(), row.get("STATE")))
                .collect();
            let mut expected: Vec<(String, &str)> = Vec::new();
            for holder in [&second, &third] {
                expected.push((holder.pid().to_string(), "holder"));
            }
            for waiter in &waiters {
                expected.push((waiter.pid().to_string(), "waiter"));
            }
            states.sort();
            expected.sort();
            assert_eq!(states, expected, "--status {flags:?}");
        }
    }
}

#[test]
fn a_waiter_for_a_slot_is_no_holder_whatever_its_session_is_called() {
    let server = Server::new();
    let given = || {
        Pglock::on(&server)
            .env("PGAPPNAME", "my job")
            .flags(["--slots", "2"])
    };
    let _holders = [(); 2].map(|()| given().hold());
    let _waiter = given().flag("--block").command(["true"]).spawn();
    eventually("it waits", PATIENCE, || {
        let count =
            format!("select count(*) from pg_locks where locktype = 'advisory' and {NOT_ASIDE}");
        (server.psql(&count) == "3").then_some(())
    });
    let (_, rows) = status(&server, ["--lockid", "1", "--slots", "2"]);
    let states: Vec<&str> = rows.iter().map(|row| row.get("STATE")).collect();
    assert_eq!(
        states.iter().filter(|state| **state == "holder").count(),
        2,
        "{rows:?}"
    );
    assert!(rows.iter().all(|row| row.get("COMMAND") == "my job"));
}

#[test]
fn a_command_of_any_kind_keeps_the_table_a_table() {
    let server = Server::new();
    let long = "x".repeat(300);
    for words in [
        &["sh", "-c", "echo runs\ncat #\u{1b}[31m\ttab", "日本語"][..],
        &["sh", "-c", "echo runs; cat", "  two  spaces  "],
        &["sh", "-c", "echo runs; cat", &long],
        &["sh", "-c", "echo runs; cat", "pglock 1@host 5 x"],
    ] {
        let holder = Pglock::on(&server).open_input().command(words).spawn();
        holder.wait_for_output("runs");
        let output = Pglock::on(&server)
            .flags(["--status", "--lockid", "1"])
            .run();
        let (_, rows) = read(&output);
        assert_eq!(rows.len(), 1, "{}", output.report());
        assert_eq!(rows[0].get("PID"), holder.pid().to_string());
        assert_eq!(rows[0].get("COMMAND"), "sh", "{}", output.report());
        assert!(
            output
                .stdout()
                .chars()
                .all(|c| c == '\n' || !c.is_control()),
            "{}",
            output.report()
        );
        holder.finish().assert_status(0);
    }
}

/// A port of 127.0.0.1 that leads to the server, and what its clients have said there so far.
fn overheard(server: &Server) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let said = Arc::new(Mutex::new(Vec::new()));
    let (socket, book) = (server.socket(), Arc::clone(&said));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = UnixStream::connect(&socket) else {
                return;
            };
            let (mut from, mut to) = (
                client.try_clone().expect("dup"),
                server.try_clone().expect("dup"),
            );
            let book = Arc::clone(&book);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    // Noted before it is passed on: whoever has an answer finds it here.
                    book.lock()
                        .expect("a book")
                        .extend_from_slice(&buffer[..count]);
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Write);
            });
            let (mut client, mut server) = (client, server);
            thread::spawn(move || {
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(Shutdown::Write);
            });
        }
    });
    (port, said)
}

#[test]
fn neither_the_server_nor_its_log_nor_the_wire_learns_the_arguments_of_the_command() {
    let server = Server::builder()
        .conf("log_connections = on")
        .conf("log_statement = all")
        .conf("log_line_prefix = '%m [%p] %a '")
        .start();
    let (port, said) = overheard(&server);
    let pglock = || {
        Pglock::at(port)
            .env("PGLOCK_SSLMODE", "disable")
            .flag("--fence")
    };
    let names = || server.psql("select string_agg(application_name, ';') from pg_stat_activity");
    for name in [["--lockid", "7"], ["--lockname", "a"]] {
        let secretive = || {
            let script = "echo the command runs; exec cat";
            let words = ["/bin/sh", "-c", script, "hunter2", "--password=hunter2"];
            pglock().flags(name).open_input().command(words)
        };
        let holder = secretive().spawn();
        holder.wait_for_output("the command runs");
        let mut waiter = secretive().flag("--block").spawn();
        eventually("both have their names", PATIENCE, || {
            (names().matches(" sh").count() == 2).then_some(())
        });
        assert!(!names().contains("hunter2"), "{}", names());
        // It has its name from when it connects, and has not waited yet.
        let queued = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
        eventually("it waits", PATIENCE, || {
            (server.psql(queued) == "1").then_some(())
        });
        let renamed = || server.log().matches("set session application_name").count();
        let before = renamed();
        holder.finish().assert_status(0);
        // One who has waited gives itself a new name.
        eventually("it has its new name", PATIENCE, || {
            (renamed() > before && names().contains(" sh")).then_some(())
        });
        assert!(!names().contains("hunter2"), "{}", names());
        waiter.close_input();
        waiter.wait().assert_status(0);
    }
    // What is no program's name, but was meant as a whole line, or as something else.
    for word in [
        "sh -c hunter2",
        "PGPASSWORD=hunter2",
        "postgresql://me:hunter2@h/db",
    ] {
        pglock().command([word]).run().assert_status(127);
    }
    let said = said.lock().expect("a book");
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("pglock ") && !said.contains("hunter2"));
    let log = server.log();
    assert!(
        log.contains("application_name=pglock ") && !log.contains("hunter2"),
        "{log}"
    );
}

#[test]
fn a_name_that_only_looks_like_that_of_a_pglock_is_text() {
    let server = Server::new();
    for (place, name) in [
        "pglock 1@h 67768036191676799 x",
        "pglock 1@h 9223372036854775807 x",
        "pglock 1@h -5 x",
        "pglock -1@h 1800000000 x",
        "pglock 0@h 1800000000 x",
        "pglock one@h 1800000000 x",
        "pglock 1@ 1800000000 x",
    ]
    .into_iter()
    .enumerate()
    {
        let mut session = server.session();
        session.exec(&format!("set application_name = '{name}'"));
        session.hold(place as i64 + 1);
        let (_, rows) = status(&server, ["--lockid", &(place + 1).to_string()]);
        assert_eq!(
            rows[0].all(&["SINCE", "PID", "COMMAND"]),
            ["-", "-", name],
            "{rows:?}"
        );
    }
    let mut session = server.session();
    session.exec("set application_name = 'pglock 1@h 1800000000 x'");
    session.hold(99);
    let (_, rows) = status(&server, ["--lockid", "99"]);
    assert_eq!(rows[0].all(&["HOST", "PID", "COMMAND"]), ["h", "1", "x"]);
}

#[test]
fn roles_and_databases_of_any_name_keep_the_table_a_table() {
    let server = Server::new();
    server.psql("create role \"jürgen\" login");
    server.psql("create role \"a\nb\" login");
    server.psql("create role \"c\u{202e}\u{200b}d\" login");
    server.psql("create database \"größe\"");
    let on = |user: &str| {
        Pglock::on(&server)
            .env("PGLOCK_DATABASE", "größe")
            .env("PGLOCK_USER", user)
    };
    let _one = on("jürgen").flags(["--lockid", "1"]).hold();
    let _other = on("a\nb").flags(["--lockid", "2"]).hold();
    let _odd = on("c\u{202e}\u{200b}d").flags(["--lockid", "3"]).hold();
    let output = on("postgres").flag("--status").run();
    let (_, rows) = read(&output);
    assert_eq!(rows.len(), 3, "{}", output.report());
    assert_eq!(rows[2].all(&["LOCK", "USER"]), ["3", "c??d"]);
    assert_eq!(rows[0].all(&["USER", "DATABASE"]), ["jürgen", "größe"]);
    let columns = ["LOCK", "DATABASE"];
    assert_eq!(rows[1].all(&columns), ["2", "größe"], "{}", output.report());
}

#[test]
fn status_takes_no_command() {
    let witness = Witness::new();
    for (pglock, flag) in [
        (Pglock::at(witness.port()).flag("--status"), "--status"),
        (
            Pglock::at(witness.port()).env("PGLOCK_STATUS", "true"),
            "PGLOCK_STATUS",
        ),
    ] {
        let output = pglock.command(["backup.sh", "--all"]).run();
        output.assert_refused(&[flag, "backup.sh"]);
    }
    assert!(!witness.was_disturbed());
}

#[test]
fn status_fails_where_it_cannot_be_asked() {
    let server = Server::new();
    let closed = ClosedPort::new();
    let port = closed.port().to_string();
    for (pglock, word) in [
        (Pglock::at(closed.port()), port.as_str()),
        (
            Pglock::on(&server).env("PGLOCK_USER", "nobody-here"),
            "nobody-here",
        ),
        (
            Pglock::on(&server).env("PGLOCK_DATABASE", "not-there"),
            "not-there",
        ),
        (Pglock::on(&server).flags(["--slots", "0"]), "--slots 0"),
    ] {
        pglock.flag("--status").run().assert_refused(&[word]);
    }
    // A server that does not answer.
    let hole = BlackHole::new();
    let output = Pglock::at(hole.port())
        .flags(["--status", "--connect-timeout", "1"])
        .run();
    output.assert_refused(&["1 s"]);
}

#[test]
fn status_takes_no_lock_and_waits_for_none() {
    let server = Server::builder().conf("log_statement = all").start();
    let _holder = Pglock::on(&server).hold();
    for flags in [
        &[][..],
        &["--wait", "60"],
        &["--block"],
        &["--fence"],
        &["--quiet"],
    ] {
        let output = Pglock::on(&server)
            .flags(["--status", "--lockid", "1"])
            .flags(flags)
            .run();
        let (free, rows) = read(&output);
        assert!(!free && rows.len() == 1, "{}", output.report());
    }
    let log = server.log();
    let (_, asked) = log.split_once("pg_locks").expect("a question");
    assert!(!asked.contains("advisory_lock"), "{asked}");
}

#[test]
fn a_table_that_cannot_be_written_is_an_error() {
    let server = Server::new();
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let output = Pglock::on(&server)
        .flag("--status")
        .descriptor(full, 1)
        .run();
    output.assert_refused(&["standard output"]);
}

#[test]
fn a_verbose_skip_says_who_holds_the_lock() {
    let server = Server::new();
    for (name, wait) in [
        (&["--lockid", "7"][..], &[][..]),
        (&["--lockname", "a"], &["--wait", "1"]),
        (&["--lockid", "7", "--slots", "2"], &["--wait", "1"]),
        (&["--lockname", "a", "--slots", "2"], &[]),
    ] {
        let count = 1 + usize::from(name.contains(&"--slots"));
        let holders: Vec<Running> = (0..count)
            .map(|_| Pglock::on(&server).flags(name).hold())
            .collect();
        let skip = |flag: &str| {
            let output = Pglock::on(&server)
                .flag(flag)
                .flags(name)
                .flags(wait)
                .flags(["--conflict-exit-code", "9"])
                .command(["true"])
                .run();
            output.assert_status(9).assert_stdout("");
            output
        };
        let output = skip("--verbose");
        let log = output.log();
        let held: Vec<&String> = log.iter().filter(|line| line.contains("Held by")).collect();
        assert_eq!(held.len(), count, "{}", output.report());
        let backends = server.psql("select pid from pg_locks where locktype = 'advisory'");
        for backend in backends.lines() {
            let line = held
                .iter()
                .find(|line| line.contains(&format!("backend {backend}")));
            let line = line.unwrap_or_else(|| panic!("{backend}\n{}", output.report()));
            for word in [host().as_str(), "postgres", ": sh."] {
                assert!(line.contains(word), "{word}\n{}", output.report());
            }
        }
        for holder in &holders {
            let process = format!("process {}", holder.pid());
            assert!(
                held.iter().any(|line| line.contains(&process)),
                "{process}\n{}",
                output.report()
            );
        }
        assert!(
            log.last().expect("a line").starts_with("Could not obtain"),
            "{}",
            output.report()
        );
        // Who does not ask is not told.
        let output = skip("--conflict-exit-code=9");
        output.assert_nowhere("Held by");
        for holder in holders {
            holder.finish().assert_status(0);
        }
    }
    // One who is not pglock.
    let mut session = server.session();
    session.hold(1);
    let pid = session.pid();
    let output = Pglock::on(&server)
        .flag("--verbose")
        .command(["true"])
        .run();
    let log = output.assert_status(0).log();
    assert!(
        log.iter()
            .any(|line| line.contains("Held by") && line.contains(&format!("backend {pid}"))),
        "{}",
        output.report()
    );
}

#[test]
fn the_stamp_of_a_status_is_that_of_a_log() {
    let server = Server::new();
    let _holder = Pglock::on(&server).hold();
    let (_, rows) = status(&server, ["--lockid", "1"]);
    let line = format!("{} rest", rows[0].get("SINCE"));
    assert!(split_stamp(&line).is_some(), "{line}");
}

// How the flags go together

/// The flags that are put together, with values.
const FLAGS: [&[&str]; 15] = [
    &["--lockid", "7"],
    &["--lockname", "a"],
    &["--lockkey", "-7"],
    &["--label", "a job"],
    &["--shared"],
    &["--slots", "2"],
    &["--status"],
    &["--wait", "2"],
    &["--block"],
    &["--fence"],
    &["--ttl", "0"],
    &["--conflict-exit-code", "9"],
    &["--on-loss", "continue"],
    &["--quiet"],
    &["--verbose"],
];

/// The pairs that cannot be.
const REFUSED: [[&str; 2]; 6] = [
    ["--lockid", "--lockname"],
    ["--lockid", "--lockkey"],
    ["--lockname", "--lockkey"],
    ["--shared", "--slots"],
    ["--wait", "--block"],
    ["--quiet", "--verbose"],
];

/// Every pair.
fn pairs() -> Vec<Vec<&'static str>> {
    let mut pairs = Vec::new();
    for (place, one) in FLAGS.iter().enumerate() {
        for other in &FLAGS[place + 1..] {
            pairs.push([*one, *other].concat());
        }
    }
    pairs
}

/// Calls `each` with every pair that can be, several at a time, each with a server's database of its own.
fn with_pairs(server: &Server, each: impl Fn(&Server, &str, &[&str]) + Sync) {
    let pairs: Vec<_> = pairs()
        .into_iter()
        .filter(|pair| {
            !REFUSED
                .iter()
                .any(|both| both.iter().all(|flag| pair.contains(flag)))
        })
        .collect();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (each, pairs) = (&each, &pairs);
                scope.spawn(move || {
                    let database = format!("d{worker}");
                    server.psql(&format!("create database {database}"));
                    for pair in pairs.iter().skip(worker).step_by(4) {
                        each(server, &database, pair);
                    }
                })
            })
            .collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Those flags of a pair that say which lock it is.
fn identity<'a>(pair: &[&'a str]) -> Vec<&'a str> {
    let mut flags = Vec::new();
    for pair in pair.windows(2) {
        if ["--lockid", "--lockname", "--lockkey", "--slots"].contains(&pair[0]) {
            flags.extend(pair);
        }
    }
    flags
}

#[test]
fn pairs_of_flags_that_cannot_be_are_refused_in_one_line() {
    let witness = Witness::new();
    let marker = Marker::new();
    for [one, other] in REFUSED {
        let words = |flag: &str| *FLAGS.iter().find(|words| words[0] == flag).expect("a flag");
        let refused = [
            [words(one), words(other)].concat(),
            [words(other), words(one)].concat(),
        ];
        for flags in refused {
            let output = Pglock::at(witness.port())
                .flags(&flags)
                .command(marker.command())
                .run();
            output.assert_refused(&[one, other]);
            // --status does not make sense of it either.
            let output = Pglock::at(witness.port())
                .flag("--status")
                .flags(&flags)
                .run();
            output.assert_refused(&[one, other]);
        }
    }
    assert!(!witness.was_disturbed());
    assert!(!marker.exists());
}

#[test]
fn all_other_pairs_of_flags_work_on_a_free_lock() {
    let server = Server::new();
    with_pairs(&server, |server, database, pair| {
        let pglock = Pglock::on(server)
            .env("PGLOCK_DATABASE", database)
            .flags(pair);
        if pair.contains(&"--status") {
            let output = pglock.run();
            output.assert_status(0).assert_stdout("free\n");
            return;
        }
        let output = pglock
            .sh("echo $PGLOCK_LOCK_HELD ${PGLOCK_TOKEN:+token}; exit 3")
            .run();
        output
            .assert_status(3)
            .assert_stdout(if pair.contains(&"--fence") {
                "true token\n"
            } else {
                "true\n"
            });
        if pair.contains(&"--quiet") {
            assert_eq!(output.stderr(), "", "{}", output.report());
        }
    });
    assert_eq!(
        server.psql("select count(*) from pg_locks where locktype = 'advisory'"),
        "0"
    );
}

#[test]
fn all_other_pairs_of_flags_work_on_a_taken_lock() {
    let server = Server::new();
    with_pairs(&server, |server, database, pair| {
        let on = || Pglock::on(server).env("PGLOCK_DATABASE", database);
        let slots = if pair.contains(&"--slots") { 2 } else { 1 };
        let holders: Vec<Running> = (0..slots)
            .map(|_| on().flags(identity(pair)).hold())
            .collect();
        if pair.contains(&"--status") {
            let (free, rows) = read(&on().flags(pair).run());
            assert!(!free && rows.len() == slots, "{pair:?}: {rows:?}");
            for holder in holders {
                holder.finish().assert_status(0);
            }
            return;
        }
        let waits = pair.contains(&"--wait") || pair.contains(&"--block");
        let run = on().flags(pair).sh("echo $PGLOCK_LOCK_HELD").spawn();
        if waits {
            let waiting = format!(
                "select count(*) from pg_locks l join pg_database d on d.oid = l.database
                 where datname = '{database}' and locktype = 'advisory'
                 and not (objsubid = 2 and objid = 4294967295) and {NOT_ASIDE}"
            );
            let everybody = (slots + 1).to_string();
            eventually("it waits", PATIENCE, || {
                (server.psql(&waiting) == everybody).then_some(())
            });
            for holder in holders {
                holder.finish().assert_status(0);
            }
            let output = run.wait();
            output.assert_status(0).assert_stdout("true\n");
        } else {
            let skipped = if pair.contains(&"--conflict-exit-code") {
                9
            } else {
                0
            };
            let output = run.wait();
            output.assert_status(skipped).assert_stdout("");
            if pair.contains(&"--quiet") {
                assert_eq!(output.stderr(), "", "{}", output.report());
            }
            if pair.contains(&"--verbose") {
                let held = output.stderr().matches("Held by").count();
                assert_eq!(held, slots, "{}", output.report());
            }
            for holder in holders {
                holder.finish().assert_status(0);
            }
        }
    });
}

#[test]
fn a_holder_behind_a_pooler_is_told_from_the_outside_and_through_the_pooler() {
    let server = Server::new();
    server.psql("create role ordinary login");
    for mode in ["transaction", "session"] {
        let pooler = pgbouncer::Pgbouncer::new(&server, mode, 5, &[]);
        let holder = pooler.pglock().hold();
        let direct = Pglock::on(&server)
            .env("PGLOCK_USER", "ordinary")
            .flags(["--status", "--lockid", "1"]);
        let pooled = pooler.pglock().flags(["--status", "--lockid", "1"]);
        for asked in [direct, pooled] {
            let (free, rows) = read(&asked.run());
            assert!(!free && rows.len() == 1, "{mode}: {rows:?}");
            let pid = holder.pid().to_string();
            assert_eq!(
                rows[0].all(&["STATE", "MODE", "LOCK", "HOST", "PID", "USER", "DATABASE"]),
                [
                    "holder",
                    "exclusive",
                    "1",
                    &host(),
                    &pid,
                    "postgres",
                    "postgres"
                ],
                "{mode}"
            );
            assert_eq!(rows[0].get("COMMAND"), "sh", "{rows:?}");
        }
        holder.finish().assert_status(0);
    }
}

#[test]
fn the_status_is_one_document_of_json_whatever_the_texts_are() {
    let server = Server::new();
    let names = ["o\"ps\\", "c\u{1b}[31m\td", "größe 🐘"];
    for name in names {
        let quoted = name.replace('"', "\"\"");
        server.psql(&format!("create role \"{quoted}\" login"));
        server.psql(&format!("create database \"{quoted}\""));
    }
    let json = |database: &str, flags: &[&str]| {
        let output = Pglock::on(&server)
            .env(
                "PGLOCK_DATABASE",
                format!("dbname='{}'", database.replace('\\', "\\\\")),
            )
            .flags(["--status", "--json"])
            .flags(flags)
            .run();
        let text = output.assert_status(0).stdout();
        let literal = text.replace('\'', "''");
        move |server: &Server, path: &str| {
            server.psql(&format!("select '{literal}'::jsonb #>> '{{{path}}}'"))
        }
    };
    for name in names {
        let database = format!("dbname='{0}' user='{0}'", name.replace('\\', "\\\\"));
        let holder = Pglock::on(&server)
            .env_remove("PGLOCK_USER")
            .env("PGLOCK_DATABASE", database)
            .flags(["--lockname", name, "--label", "it's \"the\" label"])
            .hold();
        let read = json(name, &["--lockname", name]);
        for (member, value) in [
            ("state", "holder"),
            ("mode", "exclusive"),
            ("name", name),
            ("user", name),
            ("database", name),
            ("pid", &holder.pid().to_string()),
            ("program", "it's \"the\" label"),
            ("slots", "1"),
            ("held_until", ""),
        ] {
            assert_eq!(read(&server, &format!("0,{member}")), value, "{member}");
        }
        let since = read(&server, "0,since");
        let age = format!("select now() - '{since}' between interval '-1 s' and interval '1 min'");
        assert_eq!(server.psql(&age), "t", "{since}");
        holder.finish().assert_status(0);
    }
    let holders = [(); 2].map(|()| {
        Pglock::on(&server)
            .flags(["--lockid=7", "--slots=3"])
            .hold()
    });
    for flags in [&["--lockid", "7", "--slots", "3"][..], &[]] {
        let read = json("postgres", flags);
        assert_eq!(read(&server, "0,slots"), "3");
        assert_eq!(read(&server, "1,lock"), "7,2");
        assert_eq!(read(&server, "2"), "");
    }
    for holder in holders {
        holder.finish().assert_status(0);
    }
    let free = Pglock::on(&server).flags(["--status", "--json"]).run();
    free.assert_status(0).assert_stdout("[]\n");
}

#[test]
fn a_lock_shows_by_its_name() {
    let server = Server::new();
    let held = || Pglock::on(&server).flags(["--lockname", "nightly"]);
    let holder = held().flags(["--label", "ticket 42"]).hold();
    let own = Pglock::on(&server).flags(["--lockname", "it's é"]).hold();
    for flags in [&["--lockname", "nightly"][..], &[]] {
        let output = Pglock::on(&server).flag("--status").flags(flags).run();
        let (_, rows) = read(&output);
        let shown: Vec<&str> = rows.iter().map(|row| row.get("LOCK")).collect();
        assert!(shown.contains(&"nightly"), "{shown:?}");
        let row = rows.iter().find(|row| row.get("LOCK") == "nightly");
        assert_eq!(row.map(|row| row.get("COMMAND")), Some("ticket 42"));
        assert_eq!(shown.len(), 2 - flags.len() / 2);
    }
    let names = server.psql(
        "select application_name from pg_stat_activity where application_name like 'pglock%'",
    );
    assert!(names.contains(" ticket 42 =nightly"), "{names}");
    own.finish().assert_status(0);
    // A question whether it is held.
    let question = held().flags(["--status", "--conflict-exit-code", "9"]);
    question.run().assert_status(9);
    question.clone().flag("--json").run().assert_status(9);
    let all = Pglock::on(&server).flags(["--status", "--conflict-exit-code", "9"]);
    all.run().assert_status(0);
    holder.finish().assert_status(0);
    question.run().assert_status(0);
}

#[test]
fn a_label_is_stronger_than_another_name_of_the_session() {
    let server = Server::new();
    for (variable, value) in [
        ("PGAPPNAME", "my job"),
        ("PGLOCK_DATABASE", "application_name='my job'"),
    ] {
        let named = Pglock::on(&server).env(variable, value);
        for (pglock, shown) in [
            (named.clone(), "my job"),
            (named.flags(["--label", "the label"]), "the label"),
        ] {
            let holder = pglock.hold();
            let (_, rows) = status(&server, ["--lockid", "1"]);
            assert_eq!(rows.len(), 1, "{rows:?}");
            assert_eq!(rows[0].get("COMMAND"), shown, "{variable}");
            let has_pid = rows[0].get("PID") == holder.pid().to_string();
            assert_eq!(has_pid, shown == "the label", "{variable}");
            holder.finish().assert_status(0);
        }
    }
}

#[test]
fn the_document_says_until_when_a_lock_is_held() {
    let server = Server::new();
    let holder = Pglock::on(&server)
        .flags(["--lockid=7", "--hold=100"])
        .hold();
    let document = eventually("it says until when", PATIENCE, || {
        let json = Pglock::on(&server).flags(["--status", "--json"]).run();
        let text = json.assert_status(0).stdout();
        (!text.contains("\"held_until\": null")).then_some(text)
    });
    let times = format!(
        "select (row->>'held_until')::timestamptz - (row->>'since')::timestamptz
         from jsonb_array_elements('{document}') row"
    );
    assert_eq!(server.psql(&times), "00:01:40");
    holder.signal(Signal::SIGTERM);
    holder.wait();
}
