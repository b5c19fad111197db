//! Servers that are no PostgreSQL, or not a whole one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::support::*;

/// Those that never give up for want of time.
const ALL: [&[&str]; 3] = [&[], &["--wait", "30"], &["--block"]];

/// A message of the server's: its kind and what is in it.
type Message = (u8, Vec<u8>);

/// A port of 127.0.0.1 that leads one client to the server, whose messages this may change.
fn changing(
    server: &Server,
    mut change: impl FnMut(Message) -> Vec<Message> + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let socket = server.socket();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut server = UnixStream::connect(socket).expect("the server");
        let (mut from_client, mut to_server) = (
            client.try_clone().expect("dup"),
            server.try_clone().expect("dup"),
        );
        thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        while let Some(message) = message(&mut server) {
            for (kind, body) in change(message) {
                let length = (body.len() as u32 + 4).to_be_bytes();
                let whole = [&[kind][..], &length, &body].concat();
                let _ = client.write_all(&whole);
            }
        }
        let _ = client.shutdown(Shutdown::Write);
    });
    port
}

/// The server's next message.
fn message(server: &mut UnixStream) -> Option<Message> {
    let mut head = [0; 5];
    server.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut body = vec![0; length as usize - 4];
    server.read_exact(&mut body).ok()?;
    Some((head[0], body))
}

/// The same, with this value of a parameter in the place of the server's own, if it has one.
fn reporting(server: &Server, name: &str, value: &str) -> u16 {
    let begins = format!("{name}\0").into_bytes();
    let mut report = Some((b'S', format!("{name}\0{value}\0").into_bytes()));
    changing(server, move |message| match message {
        (b'S', body) if body.starts_with(&begins) => vec![],
        // All parameters come before it is ready for a query.
        message if message.0 == b'Z' => report.take().into_iter().chain([message]).collect(),
        message => vec![message],
    })
}

/// A port of 127.0.0.1 where a client is let in and gets this answer to its query, once or `again` and again.
fn answering(answer: Vec<u8>, again: bool) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut buffer = [0; 4096];
        let _ = client.read(&mut buffer);
        let _ = client.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
        let _ = client.read(&mut buffer);
        // To the statement that all queries begin with.
        let _ = client.write_all(&encoded(b'C', b"SET\0"));
        while client.write_all(&answer).is_ok() && again {}
        let _ = client.read(&mut buffer);
    });
    port
}

/// A message of the protocol.
fn encoded(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u32 + 4;
    [&[kind], &length.to_be_bytes()[..], content].concat()
}

/// The answer to one statement: a row of these fields, or none.
fn row(fields: &[&str]) -> Vec<u8> {
    let count = (fields.len() as u16).to_be_bytes();
    let text = b"c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
    let mut answer = encoded(b'T', &[&count[..], &text.repeat(fields.len())].concat());
    if !fields.is_empty() {
        let fields = fields.iter().map(|field| {
            let length = field.len() as u32;
            [&length.to_be_bytes()[..], field.as_bytes()].concat()
        });
        let fields: Vec<_> = fields.collect();
        answer.extend(encoded(b'D', &[&count[..], &fields.concat()].concat()));
    }
    answer.extend(encoded(b'C', b"SELECT\0"));
    answer
}

#[test]
fn an_answer_that_does_not_tell_who_holds_the_lock_is_not_taken_for_a_free_one() {
    const READY: &[u8] = b"Z\0\0\0\x05I";
    const TOO_LITTLE: &str = "less than it was asked";
    for (answer, says) in [
        (vec![], TOO_LITTLE),
        (row(&["f"]), TOO_LITTLE),
        ([row(&[""]), row(&[])].concat(), "unexpected answer"),
        ([row(&[]), row(&[])].concat(), "unexpected answer"),
        ([row(&["maybe"]), row(&[])].concat(), "unexpected answer"),
        (
            [row(&["f"]), row(&["holder", "exclusive", "1"])].concat(),
            "unexpected answer",
        ),
    ] {
        let port = answering([&answer, READY].concat(), false);
        let output = Pglock::at(port).flags(["--status", "--lockid", "1"]).run();
        output.assert_refused(&[says]);
    }
    let port = answering([&row(&["f"]), &row(&[]), READY].concat(), false);
    let output = Pglock::at(port).flags(["--status", "--lockid", "1"]).run();
    output.assert_status(0).assert_stdout("free\n");
}

#[test]
fn who_would_wait_goes_by_no_table_that_does_not_show_what_the_server_grants() {
    let answer = [&row(&["busy"])[..], &row(&[]), b"Z\0\0\0\x05I"].concat();
    let output = Pglock::at(answering(answer, false))
        .flags(["--lockid", "1", "--wait", "5"])
        .command(["true"])
        .run();
    output.assert_failed(&["lock table does not show", "do not exclude anybody"]);
}

#[test]
fn what_a_server_says_without_end_is_cut() {
    let long = "é\u{202e}\n".repeat(100_000);
    let lines = "é\u{202e}\n".repeat(5_000);
    let error = encoded(
        b'E',
        format!("SERROR\0VERROR\0C42000\0M{lines}\0\0").as_bytes(),
    );
    let port = answering([&error[..], b"Z\0\0\0\x05I"].concat(), false);
    let output = Pglock::at(port).command(["true"]).run();
    output.assert_failed(&["é? é?", "..."]);
    let last = output.stderr();
    let last = last.lines().last().expect("a line");
    assert!(last.len() < 2000, "{}", last.len());
    // Nor is the table without end.
    let fields = [
        "holder",
        "exclusive",
        "1",
        &long,
        &long,
        &long,
        &long,
        &long,
    ];
    let answer = [&row(&["f"])[..], &row(&fields), b"Z\0\0\0\x05I"].concat();
    let output = Pglock::at(answering(answer, false)).flag("--status").run();
    let table = output.assert_status(0).stdout();
    assert_eq!(table.lines().count(), 2, "{}", output.report());
    assert!(table.len() < 5_000 && !table.contains('\u{202e}'));
}

#[test]
fn a_server_that_copies_or_never_ends_is_left() {
    let notice = b"N\0\0\0\x17SNOTICE\0C00000\0Mx\0\0";
    let rows = b"T\0\0\0\x06\0\0C\0\0\0\x0dSELECT 0\0";
    let cases = [
        (b"G\0\0\0\x07\0\0\0".to_vec(), false, "began to copy"),
        (b"H\0\0\0\x07\0\0\0".to_vec(), false, "began to copy"),
        (notice.repeat(100), true, "the connection was lost"),
        (rows.repeat(100), true, "the connection was lost"),
    ];
    for (answer, again, says) in cases {
        let marker = Marker::new();
        let run = Pglock::at(answering(answer, again))
            .flags(["--connect-timeout", "1"])
            .command(marker.command())
            .spawn();
        run.wait_within(Duration::from_secs(10))
            .assert_failed(&[says]);
        assert!(!marker.exists());
    }
}

#[test]
fn cockroachdb_is_refused_by_name() {
    let server = Server::new();
    let marker = Marker::new();
    for flags in ALL {
        let port = reporting(&server, "crdb_version", "CockroachDB CCL v23.1.11");
        let output = Pglock::at(port)
            .flags(flags)
            .command(marker.command())
            .run();
        output.assert_failed(&["CockroachDB", "v23.1.11"]);
        assert!(!marker.exists(), "{flags:?}");
    }
    // It is the name that does it.
    let port = reporting(&server, "another_version", "1");
    Pglock::at(port)
        .command(marker.command())
        .run()
        .assert_status(0);
    assert!(marker.exists());
}

#[test]
fn another_lock_than_the_one_that_was_asked_for_is_not_taken_for_it() {
    // Each field of a row stands after its length.
    let field = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let in_one_bigint = |object: &str| [field(object), field("1")].concat();
    let server = Server::new();
    let marker = Marker::new();
    for (word, proof) in [("held 2", "2"), ("held 1", "1")] {
        let changes = [
            (field("held 1"), field(word)),
            (in_one_bigint("1"), in_one_bigint(proof)),
        ];
        let lying = move |(kind, mut body): Message| {
            for (from, to) in &changes {
                let at = body.windows(from.len()).position(|part| part == from);
                if let Some(at) = at.filter(|_| kind == b'D') {
                    body.splice(at..at + from.len(), to.clone());
                }
            }
            vec![(kind, body)]
        };
        let output = Pglock::at(changing(&server, lying))
            .command(marker.command())
            .run();
        if proof == "1" {
            output.assert_status(0);
            assert!(marker.exists());
        } else {
            output.assert_failed(&["another lock than the one that it was asked for"]);
            assert!(!marker.exists());
        }
    }
}

#[test]
fn a_name_that_would_be_another_to_the_server_is_refused() {
    let server = Server::new();
    let marker = Marker::new();
    for encoding in ["EUC_JP", "SJIS", "LATIN1", "SQL_ASCII"] {
        let named = |name: &str, flags: &[&str]| {
            let port = reporting(&server, "client_encoding", encoding);
            Pglock::at(port).flags(["--lockname", name]).flags(flags)
        };
        for flags in ALL
            .into_iter()
            .chain([&["--slots", "2"][..], &["--shared"]])
        {
            let output = named("grün", flags).command(marker.command()).run();
            output.assert_failed(&["the name of the lock cannot be said", encoding]);
            assert!(!marker.exists(), "{encoding}, {flags:?}");
        }
        let status = named("grün", &["--status"]).run();
        status.assert_failed(&["the name of the lock cannot be said", encoding]);
        // One that is the same in all encodings is as good as ever.
        let output = named("it's green", &[]).command(marker.command()).run();
        output.assert_status(0);
        assert!(marker.exists());
        marker.reset();
    }
}

#[test]
fn without_the_right_to_call_the_functions_the_server_says_so() {
    let server = Server::new();
    server.psql("create role victim login");
    let marker = Marker::new();
    let pglock = || Pglock::on(&server).env("PGLOCK_USER", "victim");
    // Without the second it would be granted, and not to be proved.
    for function in ["pg_try_advisory_lock(bigint)", "pg_lock_status()"] {
        server.psql(&format!(
            "revoke execute on function {function} from public"
        ));
        let (name, _) = function.split_once('(').expect("a function");
        for flags in ALL {
            let output = pglock().flags(flags).command(marker.command()).run();
            output.assert_failed(&[&format!("permission denied for function {name}")]);
            assert!(!marker.exists(), "{flags:?}");
        }
        server.psql(&format!("grant execute on function {function} to public"));
    }
    eventually("the lock is free", PATIENCE, || {
        server.holders(1).is_empty().then_some(())
    });
    pglock().command(marker.command()).run().assert_status(0);
    assert!(marker.exists());
}

#[test]
fn without_the_functions_the_server_says_so() {
    let server = Server::builder()
        .conf("allow_system_table_mods = on")
        .start();
    let marker = Marker::new();
    for (function, arguments, flags) in [
        ("pg_try_advisory_lock", "bigint", &[][..]),
        ("pg_try_advisory_lock_shared", "bigint", &["--shared"]),
        ("hashtextextended", "text, bigint", &["--lockname", "x"]),
        ("pg_is_in_recovery", "", &[]),
        ("pg_lock_status", "", &[]),
    ] {
        let rename = |from: &str, to: &str| {
            server.psql(&format!(
                "alter function pg_catalog.{from}({arguments}) rename to {to}"
            ))
        };
        rename(function, "hidden");
        let outputs = ALL.map(|more| {
            let pglock = Pglock::on(&server).flags(flags).flags(more);
            pglock.command(marker.command()).run()
        });
        rename("hidden", function);
        for output in outputs {
            output.assert_failed(&[function, "does not exist"]);
        }
        assert!(!marker.exists(), "{function}");
    }
    Pglock::on(&server)
        .command(marker.command())
        .run()
        .assert_status(0);
}

/// A server that lets nobody set this parameter.
fn refusing(server: &Server, name: &str, state: &str, message: &str) {
    server.psql(&format!(
        "create or replace function pg_catalog.set_config(text, text, boolean) returns text language plpgsql as $$
         begin
           if $1 = '{name}' then raise '%', format('{message}', $1) using errcode = '{state}'; end if;
           return pg_catalog.set_config_really($1, $2, $3);
         end $$"
    ));
}

#[test]
fn a_setting_that_the_server_refuses_is_done_without() {
    let server = Server::builder()
        .conf("allow_system_table_mods = on")
        .start();
    server.psql(
        "alter function pg_catalog.set_config(text, text, boolean) rename to set_config_really",
    );
    let pooler = pgbouncer::Pgbouncer::new(&server, "transaction", 3, &[]);
    for (name, state, message) in [
        (
            "statement_timeout",
            "42501",
            "keine Berechtigung, um Parameter »%s« zu setzen",
        ),
        (
            "idle_session_timeout",
            "55P02",
            "parameter \"%s\" cannot be changed now",
        ),
        (
            "idle_session_timeout",
            "42704",
            "unrecognized configuration parameter \"%s\"",
        ),
        (
            "idle_in_transaction_session_timeout",
            "42501",
            "permission denied to set parameter \"%s\"",
        ),
    ] {
        refusing(&server, name, state, message);
        let idle = name == "idle_session_timeout";
        let pooled = name == "idle_in_transaction_session_timeout";
        let pglock = if pooled {
            pooler.pglock()
        } else {
            Pglock::on(&server)
        };
        for flags in [&["--wait", "30"][..], &["--shared"]] {
            let holder = pglock.clone().flag("--verbose").flags(flags).hold();
            assert_eq!(server.holders(1).len(), 1, "{name}, {flags:?}");
            let text = holder.stderr();
            assert!(
                text.contains("refuses a setting") && text.contains(name),
                "{text}"
            );
            assert!(
                text.contains("in place of a lease") == (idle || pooled),
                "{text}"
            );
            let skipped = pglock
                .clone()
                .flags(["--conflict-exit-code", "9"])
                .command(["true"])
                .run();
            skipped.assert_status(9);
            let output = holder.finish();
            output.assert_status(0);
            assert_eq!(server.holders(1).len(), 0, "{}", output.report());
        }
    }
    // Without a limit to waiting for a lock there are no turns to wait in.
    refusing(&server, "lock_timeout", "42501", "not \"%s\"");
    let output = Pglock::on(&server).command(["true"]).run();
    output.assert_failed(&["lock_timeout"]);
}
