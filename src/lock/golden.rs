//! What is said to the server, whole: `statements.txt` has the queries for every kind of lock, scope and server, as they
//! are sent. A change of the SQL shows there, and nowhere else.

use std::fmt;
use std::time::Duration;

use super::held_sql::Lock;
use super::holders;
use super::keys::{Key, Name};
use super::query::Query;
use super::request_sql::Claim;
use super::restart::{Caution, lost_query};
use crate::pq::Error;
use crate::server::dialect::Dialect;
use crate::server::session;
use crate::server::session_settings::{Hold, Settings};

/// The queries, as they were when this was last looked at.
const STATEMENTS: &str = include_str!("statements.txt");

/// The versions of the server that are told apart.
const VERSIONS: [i32; 4] = [13, 14, 15, 17];

const SCOPES: [Hold; 2] = [Hold::Session, Hold::Transaction];

/// A server that there is not.
pub struct Made {
    /// Its major version.
    pub version: i32,
}

impl Dialect for Made {
    fn server_version(&self) -> i32 {
        self.version * 10_000
    }

    fn backend_pid(&self) -> i32 {
        4242
    }

    fn quote(&self, text: &str) -> Result<String, Error> {
        Ok(format!("'{}'", text.replace('\'', "''")))
    }
}

/// The queries, each with its title.
#[derive(Default)]
struct Shown(Vec<String>);

impl Shown {
    /// Shows a query, a line for each of its statements.
    fn add<A>(&mut self, title: impl fmt::Display, query: &Query<A>) {
        let sql = query.sql();
        assert_eq!(query.statements(), session::statements(sql), "{title}");
        let mut text = format!("-- {title}\n");
        let mut quoted = false;
        for (place, part) in sql.to_str().unwrap().split("; ").enumerate() {
            if place > 0 {
                text.push_str(if quoted { "; " } else { ";\n" });
            }
            text.push_str(part);
            quoted ^= part.matches('\'').count() % 2 == 1;
        }
        self.0.push(text + "\n");
    }
}

fn claim(name: Name, shared: bool, slots: u32) -> Claim {
    Claim {
        name,
        shared,
        slots,
        settings: Settings::new(None),
        fence: false,
    }
}

fn leased(claim: &Claim) -> Claim {
    Claim {
        settings: Settings::new(Some(Duration::from_secs(15))),
        ..claim.clone()
    }
}

fn fenced(claim: &Claim) -> Claim {
    Claim {
        fence: true,
        ..claim.clone()
    }
}

fn claims() -> Vec<(&'static str, Claim)> {
    let id = |id| Name::Id(id);
    let name = || Name::Text("it's".to_owned());
    vec![
        ("id 1", claim(id(1), false, 1)),
        ("id 4294967295", claim(id(u32::MAX), false, 1)),
        ("name", claim(name(), false, 1)),
        ("id 1, shared", claim(id(1), true, 1)),
        ("name, shared", claim(name(), true, 1)),
        ("id 1, 3 slots", claim(id(1), false, 3)),
        ("id 4294967295, 3 slots", claim(id(u32::MAX), false, 3)),
        ("name, 3 slots", claim(name(), false, 3)),
    ]
}

fn locks() -> Vec<(&'static str, Lock)> {
    let lock = |key, shared| claim(Name::Id(1), shared, 3).lock(key, Hold::Session);
    vec![
        ("key 1", lock(Key::One(1), false)),
        ("key -7", lock(Key::One(-7), false)),
        ("key 1,2", lock(Key::Two(1, 2), false)),
        ("key -1,2", lock(Key::Two(-1, 2), false)),
        ("key 1, shared", lock(Key::One(1), true)),
    ]
}

fn word(hold: Hold) -> &'static str {
    match hold {
        Hold::Session => "session",
        Hold::Transaction => "transaction",
    }
}

fn show_requests(shown: &mut Shown) {
    let made = Made { version: 15 };
    let one = &claims()[0].1;
    let slots = &claims()[5].1;
    let attempt = |claim: &Claim, made: &Made, hold, caution, waits, waited| {
        claim.try_query(made, hold, caution, waits, waited).unwrap()
    };
    for hold in SCOPES {
        let scope = word(hold);
        for (title, claim) in claims() {
            let sql = attempt(&claim, &made, hold, Caution::HoldOff, true, false);
            shown.add(format_args!("try: {title}; {scope}"), &sql);
        }
        let sql = attempt(slots, &made, hold, Caution::None, false, false);
        let title = format_args!("try: id 1, 3 slots, without waiting; {scope}");
        shown.add(title, &sql);
        let sql = attempt(one, &made, hold, Caution::HoldOff, true, true);
        shown.add(format_args!("try: id 1, after others; {scope}"), &sql);
        for (title, claim) in [("id 1", one), ("id 1, 3 slots", slots)] {
            let sql = attempt(&fenced(claim), &made, hold, Caution::None, true, false);
            shown.add(format_args!("try: {title}, with a token; {scope}"), &sql);
        }
        for version in VERSIONS {
            for (title, caution) in [
                ("may hold off", Caution::HoldOff),
                ("need not hold off", Caution::None),
            ] {
                let made = Made { version };
                let sql = attempt(&leased(one), &made, hold, caution, true, false);
                let title =
                    format_args!("try: id 1, with a lease, {title}; {scope}, version {version}");
                shown.add(title, &sql);
            }
        }
    }
    for (title, claim) in claims() {
        for (turn, first) in [("the first turn", false), ("another turn", true)] {
            let sql = claim.wait_query(&made, 900, first).unwrap();
            shown.add(format_args!("wait: {title}, {turn}"), &sql);
        }
    }
    for version in VERSIONS {
        let sql = leased(one).wait_query(&Made { version }, 0, false).unwrap();
        let title = format_args!("wait: id 1, with a lease, 0 ms; version {version}");
        shown.add(title, &sql);
    }
    shown.add("token", &Claim::token_query());
}

fn show_restarts(shown: &mut Shown) {
    for (title, claim) in claims() {
        let sql = leased(&claim).age_query(&Made { version: 15 }, Hold::Session);
        shown.add(
            format_args!("newcomer's age: {title}; session"),
            &sql.unwrap(),
        );
    }
    for hold in SCOPES {
        for version in VERSIONS {
            let sql = leased(&claims()[0].1).age_query(&Made { version }, hold);
            let scope = word(hold);
            let title = format_args!("newcomer's age: id 1; {scope}, version {version}");
            shown.add(title, &sql.unwrap());
        }
    }
    for version in VERSIONS {
        let sql = lost_query(&Made { version });
        shown.add(format_args!("holder's age; version {version}"), &sql);
    }
}

fn show_locks(shown: &mut Shown) {
    let made = Made { version: 15 };
    for hold in SCOPES {
        let scope = word(hold);
        for (title, lock) in locks() {
            let lock = Lock { hold, ..lock };
            let about = |what: &str| format!("{what}: {title}; {scope}");
            shown.add(about("retake"), &lock.retake_query(&made));
            shown.add(about("check"), &lock.check_query(&made));
            shown.add(about("lift"), &lock.lift_query(&made));
            shown.add(about("release"), &lock.release_query());
        }
        let (title, lock) = locks()[0];
        let lock = Lock { hold, ..lock };
        let sql = lock.rename_query(&made, "it's").unwrap();
        shown.add(format_args!("rename; {scope}"), &sql);
        for version in VERSIONS {
            let made = Made { version };
            let settings = Settings::new(Some(Duration::from_secs(15)));
            let lock = Lock { settings, ..lock };
            let about =
                |what: &str| format!("{what}: {title}, with a lease; {scope}, version {version}");
            shown.add(about("retake"), &lock.retake_query(&made));
            shown.add(about("check"), &lock.check_query(&made));
            shown.add(about("lift"), &lock.lift_query(&made));
            shown.add(about("evict"), &lock.evict_query(&made, 4343));
        }
    }
    for (title, lock) in locks() {
        shown.add(format_args!("holder: {title}"), &lock.holder_query(4343));
    }
}

fn show_status(shown: &mut Shown) {
    let made = Made { version: 15 };
    shown.add("status: all locks", &holders::query(&made, None).unwrap());
    for (title, claim) in claims() {
        let sql = holders::query(&made, Some(&claim)).unwrap();
        shown.add(format_args!("status: {title}"), &sql);
    }
}

#[test]
fn every_statement_is_as_it_was_looked_at() {
    let mut shown = Shown::default();
    show_requests(&mut shown);
    show_restarts(&mut shown);
    show_locks(&mut shown);
    show_status(&mut shown);
    let shown = shown.0.join("\n");
    if shown != STATEMENTS {
        let pairs = shown.split("\n\n").zip(STATEMENTS.split("\n\n"));
        let other = pairs.into_iter().find(|(is, was)| is != was);
        panic!("{shown}\nstatements.txt differs; the first that does: {other:#?}");
    }
}
