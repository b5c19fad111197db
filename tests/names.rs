//! Named locks: any text, and the key that SQL makes of it.

use crate::support::*;

/// Text that means something to a shell, to SQL, to plpgsql or to a log.
const NAMES: [&str; 8] = [
    "nightly-backup",
    "it's \"quoted\"",
    "$$ begin $$ ; $1 $x$",
    "back\\slash \\' E'\\n'",
    "line\nand\ttab",
    "Ärger mit Größe: 価値 🙂",
    "  ",
    "'; select pg_advisory_unlock_all(); --",
];

/// A literal of SQL, whatever `standard_conforming_strings` says.
fn literal(name: &str) -> String {
    let name = name.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{name}'")
}

fn named(server: &Server, name: &str) -> Pglock {
    Pglock::on(server).flags(["--conflict-exit-code", "9", "--lockname", name])
}

#[test]
fn a_name_is_the_lock_that_sql_makes_of_it_both_ways() {
    let server = Server::new();
    let long = "x".repeat(100_000);
    for name in NAMES.into_iter().chain([long.as_str()]) {
        let mut session = server.session();
        let key = format!("hashtextextended({}, 0)", literal(name));
        let holder = named(&server, name).hold();
        let tried = session.exec(&format!("select pg_try_advisory_lock({key})"));
        assert_eq!(tried, "f", "{name:?}");
        named(&server, name).sh("exit 1").run().assert_status(9);
        holder.finish().assert_status(0);
        session.exec(&format!("select pg_advisory_lock({key})"));
        named(&server, name).sh("exit 1").run().assert_status(9);
        let waiter = named(&server, name)
            .flags(["--wait", "30"])
            .sh("exit 4")
            .spawn();
        let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
        eventually("it waits", PATIENCE, || {
            (server.psql(waits) == "1").then_some(())
        });
        session.exec(&format!("select pg_advisory_unlock({key})"));
        waiter.wait().assert_status(4);
    }
}

#[test]
fn a_name_is_the_same_lock_in_any_encoding_that_has_its_letters() {
    let server = Server::new();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = encoding.to_lowercase();
        server.psql(&format!(
            "create database {database} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0"
        ));
        let pglock = named(&server, "Größe").flags(["--database", &database]);
        let holder = pglock.clone().hold();
        pglock.sh("exit 1").run().assert_status(9);
        holder.finish().assert_status(0);
    }
    // A letter that the database does not have is the server's to refuse.
    named(&server, "価値")
        .flags(["--database", "latin1"])
        .sh("exit 1")
        .run()
        .assert_failed(&["LATIN1"]);
}

#[test]
fn the_log_says_the_name_on_one_line() {
    let server = Server::new();
    let output = named(&server, "a\nb").sh("exit 0").run();
    output.assert_status(0);
    assert!(
        output.stderr().contains("Lock a b obtained successfully!"),
        "{}",
        output.report()
    );
}

#[test]
fn a_name_excludes_a_number_and_must_be_text() {
    use std::os::unix::ffi::OsStrExt;
    let server = Server::new();
    let both = Pglock::on(&server).flags(["--lockname", "a", "--lockid", "7"]);
    both.sh("exit 0")
        .run()
        .assert_refused(&["--lockname", "--lockid"]);
    let bytes = std::ffi::OsStr::from_bytes(b"a\xff");
    let flag = Pglock::on(&server).flag("--lockname").flag(bytes);
    flag.sh("exit 0").run().assert_refused(&["--lockname"]);
    let empty = Pglock::on(&server).flags(["--lockname", ""]);
    empty.sh("exit 0").run().assert_refused(&["--lockname"]);
}
