//! What is said to the server, whole: `statements.txt` has the queries for every kind of lock, scope and server, as they
//! are sent. A change of the SQL shows there, and nowhere else.

use std::fmt;
use std::time::Duration;

use super::held_sql::Lock;
use super::holders;
use super::keys::{Key, Name};
use super::query::Query;
use super::request_sql::LockRequest;
use super::restart::RestartCheck;
use crate::pq::Error;
use crate::server::dialect::Dialect;
use crate::server::session;
use crate::server::session_settings::{LockScope, SessionSettings};

/// The queries, as they were when this was last looked at.
const STATEMENTS: &str = include_str!("statements.txt");

/// The versions of the server that are told apart.
const VERSIONS: [i32; 4] = [13, 14, 15, 17];

const SCOPES: [LockScope; 2] = [LockScope::Session, LockScope::Transaction];

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

fn request(name: Name, shared: bool, slots: u32) -> LockRequest {
    LockRequest {
        name,
        shared,
        slots,
        settings: SessionSettings::new(None),
        fence: false,
        sync: false,
    }
}

fn leased(request: &LockRequest) -> LockRequest {
    LockRequest {
        settings: SessionSettings::new(Some(Duration::from_secs(15))),
        ..request.clone()
    }
}

fn fenced(request: &LockRequest) -> LockRequest {
    LockRequest {
        fence: true,
        ..request.clone()
    }
}

/// With what is taken confirmed by replication.
fn confirmed(request: &LockRequest) -> LockRequest {
    LockRequest {
        sync: true,
        ..request.clone()
    }
}

fn requests() -> Vec<(&'static str, LockRequest)> {
    let id = Name::id;
    let key = |key| Name::Key(key);
    let name = || Name::Text("it's".to_owned());
    vec![
        ("id 1", request(id(1), false, 1)),
        ("id 4294967295", request(id(u32::MAX), false, 1)),
        ("name", request(name(), false, 1)),
        ("id 1, shared", request(id(1), true, 1)),
        ("name, shared", request(name(), true, 1)),
        ("id 1, 3 slots", request(id(1), false, 3)),
        ("id 4294967295, 3 slots", request(id(u32::MAX), false, 3)),
        ("name, 3 slots", request(name(), false, 3)),
        ("key -1", request(key(Key::One(-1)), false, 1)),
        ("key 1,-2", request(key(Key::Two(1, -2)), false, 1)),
        ("key 1,-2, shared", request(key(Key::Two(1, -2)), true, 1)),
        (
            "key -9223372036854775808, 3 slots",
            request(key(Key::One(i64::MIN)), false, 3),
        ),
    ]
}

fn locks() -> Vec<(&'static str, Lock)> {
    let lock = |key, shared| request(Name::id(1), shared, 1).lock(key, LockScope::Session);
    let slot = |key| request(Name::id(1), false, 3).lock(key, LockScope::Session);
    vec![
        ("key 1", lock(Key::One(1), false)),
        ("key -7", lock(Key::One(-7), false)),
        ("key 1,2 of 3 slots", slot(Key::Two(1, 2))),
        ("key -1,2", lock(Key::Two(-1, 2), false)),
        ("key 1, shared", lock(Key::One(1), true)),
        ("key -9223372036854775808", lock(Key::One(i64::MIN), false)),
    ]
}

fn word(scope: LockScope) -> &'static str {
    match scope {
        LockScope::Session => "session",
        LockScope::Transaction => "transaction",
    }
}

fn show_requests(shown: &mut Shown) {
    let made = Made { version: 15 };
    let one = &requests()[0].1;
    let slots = &requests()[5].1;
    let attempt = |request: &LockRequest, made: &Made, scope, check, waits, waited| {
        request
            .try_query(made, scope, check, waits, waited, false)
            .unwrap()
    };
    for scope in SCOPES {
        let bound = word(scope);
        for (title, request) in requests() {
            let query = attempt(&request, &made, scope, RestartCheck::HoldOff, true, false);
            shown.add(format_args!("try: {title}; {bound}"), &query);
        }
        let query = attempt(slots, &made, scope, RestartCheck::None, false, false);
        let title = format_args!("try: id 1, 3 slots, without waiting; {bound}");
        shown.add(title, &query);
        for (title, request) in [("id 1", one), ("id 1, 3 slots", slots)] {
            let query = request.try_query(&made, scope, RestartCheck::None, true, false, true);
            let title = format_args!("try: {title}, exact; {bound}");
            shown.add(title, &query.unwrap());
        }
        let query = attempt(one, &made, scope, RestartCheck::HoldOff, true, true);
        shown.add(format_args!("try: id 1, after others; {bound}"), &query);
        for (title, request) in [("id 1", one), ("id 1, 3 slots", slots)] {
            let query = attempt(
                &fenced(request),
                &made,
                scope,
                RestartCheck::None,
                true,
                false,
            );
            shown.add(format_args!("try: {title}, with a token; {bound}"), &query);
        }
        for version in VERSIONS {
            for (title, check) in [
                ("may hold off", RestartCheck::HoldOff),
                ("need not hold off", RestartCheck::None),
            ] {
                let made = Made { version };
                let query = attempt(&leased(one), &made, scope, check, true, false);
                let title =
                    format_args!("try: id 1, with a lease, {title}; {bound}, version {version}");
                shown.add(title, &query);
            }
        }
    }
    for (title, request) in requests() {
        for (look, from) in [("the first look", None), ("another look", Some(7))] {
            let query = request.look_query(&made, from).unwrap();
            shown.add(format_args!("look: {title}, {look}"), &query);
        }
        let query = request.glance_query(&made).unwrap();
        shown.add(format_args!("glance: {title}"), &query);
        for (turn, first) in [("the first turn", false), ("another turn", true)] {
            let query = request.wait_query(&made, 900, first, 7).unwrap();
            shown.add(format_args!("wait: {title}, {turn}"), &query);
        }
    }
    for version in VERSIONS {
        let query = leased(one)
            .wait_query(&Made { version }, 0, false, 7)
            .unwrap();
        let title = format_args!("wait: id 1, with a lease, 0 ms; version {version}");
        shown.add(title, &query);
    }
    shown.add("token", &LockRequest::token_query());
    let scope = LockScope::Session;
    for (title, request) in [
        ("id 1", confirmed(one)),
        ("id 1, 3 slots", confirmed(slots)),
        ("id 1, with a token", fenced(&confirmed(one))),
    ] {
        let query = attempt(&request, &made, scope, RestartCheck::None, true, false);
        shown.add(format_args!("try: {title}, confirmed"), &query);
        let query = request.wait_query(&made, 900, false, 7).unwrap();
        shown.add(format_args!("wait: {title}, confirmed"), &query);
    }
    shown.add("renew", &one.renew_query());
    shown.add("renew, confirmed", &confirmed(one).renew_query());
    shown.add("standbys", &LockRequest::standbys_query());
}

fn show_restarts(shown: &mut Shown) {
    for (title, request) in requests() {
        let query = leased(&request).age_query(&Made { version: 15 }, LockScope::Session);
        shown.add(
            format_args!("newcomer's age: {title}; session"),
            &query.unwrap(),
        );
    }
    for scope in SCOPES {
        for version in VERSIONS {
            let query = leased(&requests()[0].1).age_query(&Made { version }, scope);
            let bound = word(scope);
            let title = format_args!("newcomer's age: id 1; {bound}, version {version}");
            shown.add(title, &query.unwrap());
        }
    }
    for version in VERSIONS {
        let query = locks()[0].1.past_query(&Made { version });
        shown.add(format_args!("holder's past; version {version}"), &query);
    }
    shown.add("history", &locks()[0].1.history_query());
}

fn show_locks(shown: &mut Shown) {
    let made = Made { version: 15 };
    for scope in SCOPES {
        let bound = word(scope);
        for (title, lock) in locks() {
            let lock = Lock { scope, ..lock };
            let about = |what: &str| format!("{what}: {title}; {bound}");
            shown.add(about("retake"), &lock.retake_query(&made));
            shown.add(about("check"), &lock.check_query(&made));
            shown.add(about("lift"), &lock.lift_query(&made));
            shown.add(about("release"), &lock.release_query());
            if scope == LockScope::Session {
                shown.add(about("look at the sign"), &lock.look_query());
                shown.add(about("linger"), &lock.linger_query());
            }
        }
        let (title, lock) = locks()[0];
        let lock = Lock { scope, ..lock };
        let query = lock.rename_query(&made, "it's").unwrap();
        shown.add(format_args!("rename; {bound}"), &query);
        for version in VERSIONS {
            let made = Made { version };
            let settings = SessionSettings::new(Some(Duration::from_secs(15)));
            let lock = Lock { settings, ..lock };
            let about =
                |what: &str| format!("{what}: {title}, with a lease; {bound}, version {version}");
            shown.add(about("retake"), &lock.retake_query(&made));
            shown.add(about("check"), &lock.check_query(&made));
            shown.add(about("lift"), &lock.lift_query(&made));
            shown.add(about("evict"), &lock.evict_query(&made, 4343));
        }
    }
    for (title, lock) in locks() {
        shown.add(format_args!("holder: {title}"), &lock.holder_query(4343));
    }
    let (title, lock) = locks()[0];
    let lock = Lock { sync: true, ..lock };
    let about = |what: &str| format!("{what}: {title}, confirmed");
    shown.add(about("retake"), &lock.retake_query(&made));
    shown.add(about("check"), &lock.check_query(&made));
    shown.add(about("sign"), &lock.sign_query());
    shown.add(about("history"), &lock.history_query());
    let rename = lock.rename_query(&made, "it's").unwrap();
    shown.add(about("rename"), &rename);
}

fn show_status(shown: &mut Shown) {
    let made = Made { version: 15 };
    shown.add("status: all locks", &holders::query(&made, None).unwrap());
    for (title, request) in requests() {
        let query = holders::query(&made, Some(&request)).unwrap();
        shown.add(format_args!("status: {title}"), &query);
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
