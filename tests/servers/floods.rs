//! Servers that say too much, too little, or the same for ever.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::*;

type Answer = fn(&str) -> Vec<u8>;
type Flood = fn(&str) -> Option<Vec<u8>>;

/// A port of 127.0.0.1 where every client is let in, and gets what `answer` says to each query; after that again and
/// again what `flood` says to it.
fn answering(answer: Answer, flood: Flood) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            thread::spawn(move || serve(client, answer, flood));
        }
    });
    port
}

fn serve(mut client: TcpStream, answer: Answer, flood: Flood) -> Option<()> {
    let mut buffer = [0; 65536];
    let _ = client.read(&mut buffer).ok()?;
    let welcome = [
        message(b'R', &[0; 4]),
        message(b'S', b"server_version\x0015.1\0"),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'S', b"standard_conforming_strings\0on\0"),
        message(b'K', &[0; 8]),
        ready(),
    ];
    client.write_all(&welcome.concat()).ok()?;
    loop {
        let mut head = [0; 5];
        client.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes(*head.last_chunk()?) as usize - 4;
        let query = buffer.get_mut(..length)?;
        client.read_exact(query).ok()?;
        let query = String::from_utf8_lossy(query).into_owned();
        // The statement that all queries begin with.
        let query = match query.split_once("pg_temp; ") {
            Some((_, rest)) => {
                client.write_all(&complete()).ok()?;
                rest
            }
            None => &query,
        };
        client.write_all(&answer(query)).ok()?;
        if let Some(piece) = flood(query) {
            loop {
                client.write_all(&piece).ok()?;
            }
        }
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[kind][..], &length, body].concat()
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

fn complete() -> Vec<u8> {
    message(b'C', b"SELECT 1\0")
}

/// What a statement returns that has one row.
fn row(fields: &[&str]) -> Vec<u8> {
    let count = (fields.len() as u16).to_be_bytes();
    let column = [&b"x\0"[..], &[0; 18]].concat();
    let columns = [&count[..], &column.repeat(fields.len())].concat();
    let mut values = count.to_vec();
    for field in fields {
        values.extend((field.len() as u32).to_be_bytes());
        values.extend(field.bytes());
    }
    [message(b'T', &columns), message(b'D', &values), complete()].concat()
}

/// That lock 1 is held, with the proof.
fn granted() -> Vec<u8> {
    [
        row(&["held 1"]),
        row(&["advisory", "0", "1", "1", "ExclusiveLock"]),
    ]
    .concat()
}

fn never(_query: &str) -> Option<Vec<u8>> {
    None
}

#[test]
fn a_flood_is_left_at_once() {
    let nothing = |_: &str| Vec::new();
    let parameters = |_: &str| {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let report = || {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            message(b'S', format!("p{number}\0\0").as_bytes())
        };
        Some((0..1000).flat_map(|_| report()).collect())
    };
    let cases: [(&str, Answer, Flood); 9] = [
        ("nonsense", nothing, |_| {
            Some(message(b'?', b"").repeat(9999))
        }),
        ("notifications", nothing, |_| {
            Some(message(b'A', b"\0\0\0\x01news\0text\0").repeat(999))
        }),
        ("notices", nothing, |_| {
            Some(message(b'N', b"SNOTICE\0C00000\0Mx\0\0").repeat(999))
        }),
        ("parameters", nothing, parameters),
        ("answers", nothing, |_| Some(row(&["held 1"]).repeat(999))),
        (
            "rows",
            |_| message(b'T', b"\0\0"),
            |_| Some(message(b'D', b"\0\0").repeat(9999)),
        ),
        (
            "a row of 1 GB",
            |_| b"D\x40\0\0\0".to_vec(),
            |_| Some(vec![0; 65536]),
        ),
        ("errors", nothing, |_| {
            Some(message(b'E', b"SERROR\0CXX000\0Mx\0\0").repeat(999))
        }),
        ("signs that it is ready", nothing, |_| {
            Some(ready().repeat(9999))
        }),
    ];
    for (what, answer, flood) in cases {
        let marker = Marker::new();
        let run = Pglock::at(answering(answer, flood))
            .flags(["--connect-timeout", "40"])
            .command(marker.command())
            .spawn();
        let output = run.wait_within(Duration::from_secs(20));
        output.assert_failed(&["the connection was lost before the server answered"]);
        assert!(!marker.exists(), "{what}");
        assert!(output.peak < 32 << 10, "{what}: {} kB", output.peak);
    }
}

#[test]
fn an_answer_that_is_none_is_no_lock() {
    let cases: [(Answer, &str); 4] = [
        (
            |_| [granted(), granted(), ready()].concat(),
            "more than it was asked",
        ),
        (
            |_| [row(&["held 1"]), ready()].concat(),
            "less than it was asked",
        ),
        (|_| ready(), "less than it was asked"),
        // It has answered the next question already.
        (
            |_| [granted(), ready(), complete(), ready()].concat(),
            "while idle",
        ),
    ];
    for (answer, says) in cases {
        let marker = Marker::new();
        let run = Pglock::at(answering(answer, never))
            .command(marker.command())
            .spawn();
        run.wait_within(Duration::from_secs(20))
            .assert_failed(&[says]);
        assert!(!marker.exists(), "{says}");
    }
}

#[test]
fn a_sign_of_life_that_was_given_before_it_was_asked_for_is_none() {
    let answer = |query: &str| match query.trim_end_matches('\0') {
        ";" => [message(b'I', b""), ready()].concat().repeat(3),
        _ => [granted(), ready()].concat(),
    };
    let mut run = Pglock::at(answering(answer, never))
        .flags(["--ttl", "3", "--grace", "0"])
        .hold();
    run.wait_for_line("message type 0x49 arrived from server while idle");
    // What it answers to the retaking is none either.
    run.wait_for_line("killing the command");
    run.close_input();
    run.wait().assert_status(124);
}

#[test]
fn a_server_that_is_always_young_is_left() {
    let young = |query: &str| {
        let answer = match query {
            _ if query.contains("try_advisory") => [row(&["young"]), row(&[])].concat(),
            _ => [row(&[""]), row(&["0.3", "f", "f"])].concat(),
        };
        [answer, ready()].concat()
    };
    let fresh = |query: &str| {
        let answer = match query {
            _ if query.contains("try_advisory") => [row(&["young"]), row(&[])].concat(),
            _ => [row(&[""]), row(&["0", "t", "f"])].concat(),
        };
        [answer, ready()].concat()
    };
    // Behind a pooler it may be young a second time.
    let pooled = |query: &str| {
        let answer = match query {
            _ if query.starts_with("begin") => {
                [complete(), row(&[""]), row(&["young"]), row(&[])].concat()
            }
            _ if query.contains("try_advisory") => [row(&["pooled"]), row(&[])].concat(),
            _ if query.starts_with("rollback") => complete(),
            _ => row(&["2.9", "f", "f"]),
        };
        [answer, ready()].concat()
    };
    let cases: [(Answer, &[&str]); 4] = [
        (young, &[]),
        (young, &["--ttl", "0"]),
        (fresh, &["--wait", "3"]),
        (pooled, &[]),
    ];
    for (answer, flags) in cases {
        let marker = Marker::new();
        let run = Pglock::at(answering(answer, never))
            .flags(["--ttl", "3", "--grace", "0"])
            .flags(flags)
            .command(marker.command())
            .spawn();
        run.wait_within(Duration::from_secs(30))
            .assert_failed(&["again and again that it was restarted just now"]);
        assert!(!marker.exists(), "{flags:?}");
    }
}

#[test]
fn a_server_that_does_not_wait_is_not_asked_without_a_pause() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let busy = |sql: &str| {
        ASKED.fetch_add(1, Ordering::Relaxed);
        if sql.contains("'place '") {
            return [row(&["place 0"]), ready()].concat();
        }
        if sql.contains("show ") {
            // Three settings and the block come before.
            let before = complete().repeat(4);
            return [before, row(&["busy"]), row(&[""]), ready()].concat();
        }
        // That the server's locks are such is shown by the key that tells how many slots are counted.
        let (_, call) = sql
            .split_once("pg_try_advisory_lock_shared(")
            .expect("a key");
        let (key, _) = call.split_once(')').expect("a key");
        let (class, object) = key.split_once(',').expect("two numbers");
        let class = class.parse::<i32>().expect("a number") as u32;
        let (class, object) = (class.to_string(), object.trim());
        let proof = row(&["advisory", &class, object, "2", "ShareLock", "t", "5"]);
        [row(&["busy"]), proof, ready()].concat()
    };
    let output = Pglock::at(answering(busy, never))
        .flags(["--wait", "3", "--conflict-exit-code", "75"])
        .command(["true"])
        .run();
    output.assert_status(75);
    let asked = ASKED.load(Ordering::Relaxed);
    assert!((3..20).contains(&asked), "{asked}\n{}", output.report());
}

#[test]
fn a_table_may_be_long() {
    const MANY: usize = 12_000;
    let server = Server::builder()
        .conf("max_locks_per_transaction = 200")
        .start();
    let mut session = server.session();
    session.exec(&format!(
        "select count(pg_advisory_lock(number)) from generate_series(1, {MANY}) number"
    ));
    let status = Pglock::on(&server).flag("--status");
    let output = status.limit(Duration::from_secs(10)).run();
    output.assert_status(0);
    assert_eq!(output.stdout().lines().count(), MANY + 1);
    // And all who share a lock are named.
    let output = Pglock::on(&server)
        .flags(["--lockid", "1", "--verbose", "--conflict-exit-code", "75"])
        .command(["true"])
        .run();
    output.assert_status(75);
}
