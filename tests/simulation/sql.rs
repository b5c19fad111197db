//! What a statement of pglock's means to the server of the simulation: as much of it as matters, read from the very text that
//! is sent. What the reader does not know it refuses by a panic, so that no statement goes by unseen.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use crate::lock::Key;

/// A query as the server sees it.
pub type Program = Rc<Vec<Statement>>;

/// One statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// It matters to nobody here.
    Nothing,
    /// For this one there is no memory.
    Failing,
    Begin,
    Commit,
    Rollback,
    /// Makes settings, if the backend has this number.
    Set(Option<i32>, Settings),
    /// Tries to take a lock, or tells what has become of an attempt.
    Attempt(Attempt),
    /// Looks for a place in the queue.
    Look(Look),
    /// Looks whether one of these could be had, in share or not, and notes when to look again.
    Glance(Glance),
    /// How long a statement of this transaction waits for a lock.
    LockTimeout(Duration),
    /// Notes what a turn begins with: whether the one before has come as far as to wait for the lock.
    Begun(bool),
    /// Waits for a turn.
    Turn(Turn),
    /// Tells what has become of it.
    Word,
    /// Tells whether the place in the queue was left.
    PlaceLeft,
    /// Gives a lock up with a sign.
    Release(Release),
    /// Looks whether the sign is seen, and withdraws it if it is not needed any more.
    LookAtSign(LookAtSign),
    /// Waits for so long until this sign is seen, and withdraws it.
    Linger(Key, Duration),
    /// Shows what the session holds.
    Proof,
    /// The same, and what others have that has the first number of this key and is another, or is the other key; of the latter
    /// whether its holder has this one.
    CountedProof {
        alike: Key,
        lock: Option<Key>,
    },
    /// How much is left of this many seconds after the server lost its sessions, and whether the lock is held; `shared` where
    /// only an exclusive holder counts.
    Left {
        whole: f64,
        held: Option<(Key, bool)>,
        /// Whether it counts when the server was promoted, too.
        promotion: bool,
    },
    /// How long ago the server lost its sessions, as far as it is sure of it or at the latest, when it was promoted, and where
    /// it stands.
    Past {
        at_the_latest: bool,
    },
    /// Where it stands.
    History,
    /// Ends a backend, and waits for that.
    Terminate(i32),
    /// The age of a backend that holds the lock.
    HolderAge(i32, Key),
    Unlock(Key, bool),
    Token,
    /// Whether the server is a standby.
    Recovery,
    /// Who holds the lock. Nobody, for all that anybody does with it here.
    Holders,
}

/// Settings of a session, or of a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// How long the session may be silent.
    pub silence: Option<Duration>,
    /// Whether that is within a transaction.
    pub local: bool,
}

/// An attempt at a lock.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The number that the backend has to have.
    pub pid: Option<i32>,
    /// Not on a server that lost its sessions so short a time ago, be it as the quick or as the exact question has it.
    pub young: Option<(Duration, bool)>,
    /// Nor on one that was promoted then.
    pub promotion: bool,
    pub settings: Option<Settings>,
    pub take: Take,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Take {
    /// One key.
    Key {
        key: Key,
        shared: bool,
        local: bool,
        /// How long it is held before that counts.
        settle: Option<Settle>,
        /// The key in whose share somebody waits who goes first.
        after: Option<Key>,
        /// What is taken in share with it, or whether or not it is to be had.
        count: Option<Key>,
        counts_first: bool,
        token: bool,
    },
    /// The first free one of these, if nobody holds the queue.
    Slot {
        slots: Vec<Key>,
        queue: Option<Key>,
        /// What is taken in share before.
        count: Key,
        local: bool,
        settle: Option<Settle>,
        token: bool,
    },
    /// None: it is said to be held.
    Kept(Key),
}

/// How long a lock is held before that counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settle {
    pub time: Duration,
    /// Whether only where there is a sign that somebody has given it up.
    pub by_sign: bool,
    /// Whether it is given back by itself where the sign is there still.
    pub gives_back: bool,
}

/// How a lock is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Release {
    pub key: Key,
    pub shared: bool,
    /// The sign for that, a key that is taken before if it can be; by who shares the lock if nobody else has it.
    pub sign: Key,
    /// Another, for those who share.
    pub other: Option<Key>,
}

/// A look of one who has given a lock up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LookAtSign {
    pub sign: Key,
    /// Only if the sign was set.
    pub if_signed: bool,
    /// Whether somebody waits is told by this lock.
    pub lock: Option<Key>,
    /// Or by who holds this queue.
    pub queue: Option<Key>,
    /// For how long those who share the lock may still see another sign.
    pub shared: Option<Duration>,
}

/// A look for a place in the server's queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// The number that the backend has to have.
    pub pid: i32,
    /// What is held in share from then on.
    pub seen: Option<Key>,
    /// The places that are tried, with their numbers.
    pub places: Vec<(Key, u32)>,
}

/// A look at a lock behind a pooler.
#[derive(Clone, Debug, PartialEq)]
pub struct Glance {
    /// Those of which one is wanted, and whether in share.
    pub keys: Vec<Key>,
    pub shared: bool,
    /// The key in whose share somebody waits who goes first.
    pub after: Option<Key>,
    /// How far apart those look who wait, and how far ahead at most; in milliseconds.
    pub apart: i64,
    pub ahead: i64,
}

/// A turn in the server's queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// The number that the backend has to have.
    pub pid: i32,
    /// What is taken on the way in, whether in share, and whether it is given up at once.
    pub enter: Option<(Key, bool, bool)>,
    /// Whether it is noted then that it has come as far as to wait for the lock.
    pub is_then_first: bool,
    /// What is waited for: one, or the first free of several.
    pub keys: Vec<Key>,
    pub shared: bool,
    /// What is given up once it counts, and whether in share; or as soon as it is taken.
    pub leave: Option<(Key, bool)>,
    pub left_first: Option<(Key, bool)>,
    /// What is given up with the wait: the place in the queue, and what tells of the wait, held in share.
    pub place: Key,
    pub seen: Key,
    /// How long the lock is held before that counts, where there is no sign that it was given up.
    pub settle: Duration,
    /// How long the turn is where it is looked for several.
    pub time: Duration,
    pub token: bool,
}

/// The queries that have been read.
#[derive(Default)]
pub struct Reader(HashMap<Vec<u8>, Program>);

impl Reader {
    pub fn read(&mut self, sql: &[u8]) -> Program {
        if let Some(program) = self.0.get(sql) {
            return program.clone();
        }
        let text = std::str::from_utf8(sql).expect("UTF-8");
        let program = Rc::new(split(text).into_iter().map(statement).collect());
        // Names of sessions make many.
        if self.0.len() > 10_000 {
            self.0.clear();
        }
        self.0.insert(sql.to_vec(), Rc::clone(&program));
        program
    }
}

/// The statements of a query. One that is empty counts.
fn split(text: &str) -> Vec<&str> {
    let text = text.strip_suffix(';').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            b'\'' => quoted = !quoted,
            b';' if !quoted => {
                parts.push(text[start..place].trim());
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

fn statement(text: &str) -> Statement {
    let unknown = || panic!("the simulation does not know this statement: {text}");
    match text {
        "" => Statement::Nothing,
        "rollback" => Statement::Rollback,
        "commit" => Statement::Commit,
        "select pg_catalog.pg_is_in_recovery()" => Statement::Recovery,
        _ if text.starts_with("set local search_path to ") => Statement::Nothing,
        _ if text.starts_with("begin isolation level read committed") => Statement::Begin,
        _ if text.starts_with("select locktype, classid, objid, objsubid, mode from") => {
            Statement::Proof
        }
        _ if text.starts_with("select locktype, classid, objid, objsubid, mode, not") => {
            let (columns, condition) = text.rsplit_once(" where ").expect("a condition");
            let number = |text, before| between(text, before, ")").parse().expect("a number");
            let (class, object) = ("int4ne(classid::int, ", "int4ne(objid::int, ");
            let (_, first) = condition.split_once(class).expect("a class");
            let first = first.split_once(class).map(|(_, first)| first);
            assert_eq!(first.is_some(), columns.contains("exists ("), "{text}");
            Statement::CountedProof {
                alike: Key::Two(number(condition, class), number(condition, object)),
                lock: first.map(|first| {
                    let class: i32 = between(first, "", ")").parse().expect("a number");
                    let object: i32 = number(first, object);
                    Key::One(i64::from(class) << 32 | i64::from(object as u32))
                }),
            }
        }
        "select pg_catalog.set_config('statement_timeout', '0', true)" => Statement::Nothing,
        _ if text.starts_with("set session application_name to ")
            || text.starts_with("set local application_name to ") =>
        {
            Statement::Nothing
        }
        _ if text.starts_with("select pg_catalog.pg_try_advisory_lock(")
            || text.starts_with(
                "select pg_catalog.set_config('pglock.sign', case when not pg_catalog.pg_try",
            ) =>
        {
            Statement::Release(release(text))
        }
        _ if text.contains(" look where case") => {
            let sign = call_key(text, "pg_try_advisory_lock_shared");
            let (_, time) = between(text, "generate_series(1, ", ")")
                .split_once(" + ")
                .expect("a time");
            let time = Duration::from_millis(time.parse().expect("a number"));
            Statement::Linger(sign, time)
        }
        _ if text.starts_with("select case ")
            && text.contains("pg_advisory_unlock(")
            && !text.contains("'standby'") =>
        {
            Statement::LookAtSign(look_at_sign(text))
        }
        _ if text.starts_with("set local lock_timeout to ") => {
            let milliseconds = between(text, " to ", " ").parse().expect("a number");
            Statement::LockTimeout(Duration::from_millis(milliseconds))
        }
        "set local pglock.word to 'busy'" => Statement::Begun(false),
        "set local pglock.word to 'first'" => Statement::Begun(true),
        _ if text.starts_with("do ") => Statement::Turn(turn(&text.replace("''", "'"))),
        "set local pglock.place to ''" => Statement::Nothing,
        "show pglock.word" => Statement::Word,
        "show pglock.place" => Statement::PlaceLeft,
        _ if text.starts_with("select case when pg_catalog.pg_backend_pid() = ") => {
            let pid = between(text, "pg_backend_pid() = ", " ");
            Statement::Set(Some(pid.parse().expect("a number")), settings(text))
        }
        _ if text.starts_with("select pg_catalog.set_config(") => {
            Statement::Set(None, settings(text))
        }
        _ if text.starts_with("select pg_catalog.pg_terminate_backend(") => {
            let pid = between(text, "terminate_backend(", ",");
            Statement::Terminate(pid.parse().expect("a number"))
        }
        _ if text
            .starts_with("select extract(epoch from pg_catalog.clock_timestamp() - backend") =>
        {
            let pid = between(text, "pg_stat_get_activity(", ")");
            Statement::HolderAge(pid.parse().expect("a number"), row_key(text))
        }
        _ if text.starts_with("select extract(epoch from") && text.contains("case when") => {
            assert!(text.contains("system_identifier"), "{text}");
            let at_the_latest = text.contains("least(");
            Statement::Past { at_the_latest }
        }
        _ if text.starts_with("select (select system_identifier from") => Statement::History,
        "set transaction isolation level read committed" => Statement::Nothing,
        _ if text.starts_with("select '") && text.contains(" - extract(epoch from") => {
            assert!(text.contains("least("), "{text}");
            let whole = between(text, "select '", "'").parse().expect("a number");
            let held = text.contains("pg_lock_status()").then(|| {
                let only_exclusive = text.contains("mode = 'ExclusiveLock'");
                (row_key(text), only_exclusive)
            });
            let promotion = text.contains("pg_control_last_modified");
            Statement::Left {
                whole,
                held,
                promotion,
            }
        }
        _ if text.starts_with("select pg_catalog.pg_advisory_unlock") => Statement::Unlock(
            call_key(text, "pg_advisory_unlock"),
            text.contains("_shared("),
        ),
        _ if text.starts_with("select pg_catalog.concat(pg_catalog.txid_current()") => {
            Statement::Token
        }
        _ if text.starts_with("select case when pg_catalog.pg_is_in_recovery() or ") => {
            Statement::Glance(glance(text))
        }
        _ if text.starts_with("select case when") && text.contains("'place") => {
            Statement::Look(look(text))
        }
        _ if text.starts_with("select case when") && text.contains("'standby'") => {
            Statement::Attempt(attempt(text))
        }
        _ if text.starts_with("select case when granted and") => Statement::Holders,
        _ => unknown(),
    }
}

fn attempt(text: &str) -> Attempt {
    let young = text.contains("'young'").then(|| {
        let seconds = between(text, "interval('now', '", " s')");
        let time = Duration::from_secs(seconds.parse().expect("a number"));
        (time, text.contains("least("))
    });
    // The sign is looked at in the transaction, whatever the lock is bound to.
    let (settle, text) = match settled(text) {
        Some((settle, text)) => (Some(settle), text),
        None => (None, text.to_owned()),
    };
    let text = text.as_str();
    let token = text.contains("txid_current()");
    let local = text.contains("_xact_lock");
    let take = if text.contains("generate_series(1, ") {
        let count: i32 = between(text, "generate_series(1, ", ")")
            .parse()
            .expect("a number");
        // The queue's own key is always of the transaction.
        let function = "when 1 then pg_catalog.pg_try_advisory_xact_lock";
        let local = text.contains(function);
        let first = match local {
            true => call_key(text, function),
            false => call_key(text, "when 1 then pg_catalog.pg_try_advisory_lock"),
        };
        let queue = text
            .contains("where pg_catalog.pg_try_advisory_xact_lock(")
            .then(|| call_key(text, "where pg_catalog.pg_try_advisory_xact_lock"));
        Take::Slot {
            slots: slots(first, count),
            queue,
            count: key(between(text, "_lock_shared(", ")")),
            local,
            settle,
            token,
        }
    } else if text.contains("when true then 'held ") {
        Take::Kept(key(between(text, "then 'held ", "'")))
    } else {
        let function = if local {
            "pg_try_advisory_xact_lock"
        } else {
            "pg_try_advisory_lock"
        };
        // What tells how many slots are counted is taken before by who waits, and after by who has held the lock.
        let counts_first = text
            .rsplit_once(" is null then '' ")
            .and_then(|(before, rest)| {
                let (_, last) = before.rsplit_once("when ")?;
                let call = last.strip_prefix("pg_catalog.pg_try_advisory_lock_shared(")?;
                Some((rest, Some(key(call.strip_suffix(')')?))))
            });
        let counts_then = || {
            let (before, _) = text.split_once(") is not null then 'held ")?;
            let (before, count) = before.rsplit_once(" and pg_catalog.pg_try_advisory")?;
            let (_, count) = count.split_once("_shared(")?;
            Some((before, Some(key(count))))
        };
        let (counts_first, (before, count)) = match counts_first {
            Some(counts) => (true, counts),
            None => (false, counts_then().unwrap_or((text, None))),
        };
        let shared = before.contains(&format!("{function}_shared("));
        let after = text
            .contains("not exists (select from pg_catalog.pg_lock_status()")
            .then(|| intent(between(text, "classid::bigint = (", ")")));
        Take::Key {
            key: call_key(before, function),
            shared,
            local,
            settle,
            after,
            count,
            counts_first,
            token,
        }
    };
    Attempt {
        pid: text.contains("'pooled'").then(|| {
            between(text, "pg_backend_pid(), ", ")")
                .parse()
                .expect("a number")
        }),
        young,
        promotion: text.contains("pg_control_last_modified"),
        settings: text
            .contains("set_config('lock_timeout'")
            .then(|| settings(text)),
        take,
    }
}

/// How long a lock that was just taken is held before it counts, and the rest of the text.
fn settled(text: &str) -> Option<(Settle, String)> {
    let sign = "pg_catalog.pg_try_advisory_xact_lock_shared(";
    let (before, after) = text.split_once("when pg_catalog.pg_sleep(")?;
    let start = before.rfind("case ").expect("a choice");
    let at_once = &before[start..];
    let by_sign = at_once != "case ";
    assert!(
        !by_sign || at_once.contains(&format!("when {sign}")),
        "{text}"
    );
    let (time, again) = after
        .split_once(")::text is null then false ")
        .expect("a time");
    assert!(again.contains(sign), "{text}");
    let ends = [
        ("else false end", false),
        (" is null end", true),
        (") end", false),
    ];
    let ends = ends.map(|(end, gives_back)| Some((again.find(end)? + end.len(), gives_back)));
    let end = ends.into_iter().flatten().min().expect("an end");
    let settle = Settle {
        time: Duration::from_secs_f64(time.parse().expect("a number")),
        by_sign,
        gives_back: end.1,
    };
    Some((settle, [&text[..start], "true", &again[end.0..]].concat()))
}

fn release(text: &str) -> Release {
    let (signs, unlock) = text
        .rsplit_once(", pg_catalog.pg_advisory_unlock")
        .expect("it unlocks");
    let other = signs
        .strip_prefix("select ")
        .and_then(|signs| signs.split_once(", "))
        .filter(|_| !signs.contains("pg_lock_status()"))
        .map(|(_, other)| call_key(other, "pg_try_advisory_lock"));
    let key = key(between(unlock, "(", ")"));
    if signs.contains("pg_lock_status()") {
        assert_eq!(row_key(signs), key, "{text}");
    }
    Release {
        key,
        shared: unlock.starts_with("_shared("),
        sign: call_key(signs, "pg_try_advisory_lock"),
        other,
    }
}

fn look_at_sign(text: &str) -> LookAtSign {
    let is_free = "when pg_catalog.pg_try_advisory_lock(";
    LookAtSign {
        sign: call_key(text, "pg_try_advisory_lock_shared"),
        if_signed: text.contains("current_setting('pglock.sign') = ''"),
        lock: text
            .contains(is_free)
            .then(|| call_key(text, "pg_try_advisory_lock(")),
        queue: text.contains("pg_lock_status()").then(|| row_key(text)),
        shared: text
            .contains("pg_sleep(")
            .then(|| seconds(text, "pg_sleep(")),
    }
}

fn look(text: &str) -> Look {
    let seen = "pg_try_advisory_lock_shared";
    let tries = text.split("when pg_catalog.pg_try_advisory_lock(").skip(1);
    let places = tries.map(|part| {
        let place = between(part, "then 'place ", "'").parse();
        (key(between(part, "", ")")), place.expect("a number"))
    });
    let all = text.contains("generate_series(0, ").then(|| {
        let last: i32 = between(text, "generate_series(0, ", ")")
            .parse()
            .expect("a number");
        let (first, from) = between(text, "where pg_catalog.pg_try_advisory_lock(", ")")
            .split_once(", ")
            .expect("two numbers");
        let from = from.strip_suffix(" - place").expect("a place");
        let [first, from] = [first, from].map(|number| number.parse().expect("a number"));
        (0..=last).map(move |place| (Key::Two(first, from - place), place as u32))
    });
    Look {
        pid: between(text, "pg_backend_pid(), ", ")")
            .parse()
            .expect("a number"),
        seen: text.contains(seen).then(|| call_key(text, seen)),
        places: places.chain(all.into_iter().flatten()).collect(),
    }
}

fn glance(text: &str) -> Glance {
    let (condition, turn) = text.split_once(" then 'free' else ").expect("a turn");
    assert_eq!(turn.matches("'pglock.turn_248'").count(), 2, "{text}");
    let number = |before, after| between(turn, before, after).parse().expect("a number");
    let function = "pg_catalog.pg_try_advisory_xact_lock";
    let keys = match condition.contains("generate_series(1, ") {
        true => {
            let count = between(condition, "generate_series(1, ", ")");
            let first = call_key(condition, &format!("when 1 then {function}"));
            slots(first, count.parse().expect("a number"))
        }
        false => vec![call_key(condition, function)],
    };
    Glance {
        keys,
        shared: condition.contains(&format!("{function}_shared(")),
        after: condition
            .contains("not exists (select from pg_catalog.pg_lock_status()")
            .then(|| intent(between(condition, "classid::bigint = (", ")"))),
        apart: number("(select present, ", " "),
        ahead: number("least(", ","),
    }
}

fn turn(text: &str) -> Turn {
    // What enters, and what waits and takes.
    let (begin, rest) = text.split_once("return; end if; ").expect("it begins");
    let wait = [
        "begin perform pg_catalog.pg_advisory_xact_lock",
        "begin <<search>>",
    ]
    .into_iter()
    .find_map(|wait| rest.rfind(wait))
    .expect("it waits");
    let (enter, wait) = rest.split_at(wait);
    let (wait, late) = wait["begin ".len()..]
        .split_once("exception when lock_not_available then ")
        .expect("it waits");
    let entered = enter.contains("pg_advisory_lock").then(|| {
        let function = "perform pg_catalog.pg_advisory_lock";
        let after = &enter[enter.find(function).expect("a call")..];
        let shared = after[..after.find('(').expect("a call")].ends_with("_shared");
        let leaves = enter.contains("pg_advisory_unlock");
        (call_key(enter, function), shared, leaves)
    });
    let (search, take) = wait
        .split_once("case when pg_catalog.pg_try_advisory_xact_lock_shared(")
        .expect("it makes sure");
    let several = search.contains("<<search>>");
    let is_left_first = |text: &str| text.contains("'pglock.word', 'busy'");
    assert_eq!(is_left_first(late), several, "{text}");
    let (keys, shared) = if several {
        let count: i32 = between(search, "for place in 1..", " ")
            .parse()
            .expect("a number");
        let first = call_key(search, "when 1 then pg_catalog.pg_try_advisory_xact_lock");
        (slots(first, count), false)
    } else {
        let function = "perform pg_catalog.pg_advisory_xact_lock";
        let shared = search.starts_with(&format!("{function}_shared("));
        (vec![call_key(search, function)], shared)
    };
    // The sign is the key that belongs to the one that was taken; those who share it wait for that of the others to go.
    let sign = between(take, "", ")");
    let (waits, kept) = take.split_once(" end, ").expect("it keeps it");
    let function = if shared {
        "pg_advisory_xact_lock_shared("
    } else {
        "pg_advisory_xact_lock("
    };
    let withdrawn = between(waits, function, ")");
    if several {
        assert_eq!([sign, withdrawn], ["1, -1000 - slot"; 2], "{text}");
    } else {
        assert_eq!(key(sign), keys[0].release(!shared), "{text}");
        assert_eq!(key(withdrawn), keys[0].release(true), "{text}");
        let function = if shared {
            "pg_try_advisory_lock_shared"
        } else {
            "pg_try_advisory_lock("
        };
        assert_eq!(call_key(kept, function), keys[0], "{text}");
    }
    let (_, left) = kept.split_once("'pglock.word'").expect("it has it");
    let mut unlocks = left.split("pg_catalog.pg_advisory_unlock").skip(1);
    let mut unlock = || {
        let call = unlocks.next()?;
        Some((key(between(call, "(", ")")), call.starts_with("_shared(")))
    };
    let [place, seen] = [unlock(), unlock()].map(|unlock| unlock.expect("a place"));
    assert_eq!([place.1, seen.1], [false, true], "{text}");
    let left_first = several.then(|| {
        (
            call_key(search, "perform pg_catalog.pg_advisory_unlock"),
            false,
        )
    });
    Turn {
        pid: between(begin, "pg_backend_pid(), ", ")")
            .parse()
            .expect("a number"),
        enter: entered,
        is_then_first: enter.contains("'pglock.word', 'first'"),
        keys,
        shared,
        leave: unlock(),
        left_first,
        place: place.0,
        seen: seen.0,
        settle: seconds(take, "then pg_catalog.pg_sleep("),
        time: if several {
            let milliseconds = between(search, "interval '", " ms'")
                .parse()
                .expect("a number");
            Duration::from_millis(milliseconds)
        } else {
            Duration::ZERO
        },
        token: left.contains("txid_current()"),
    }
}

fn settings(text: &str) -> Settings {
    let value = |name: &str| {
        let start = format!("set_config('{name}', '");
        text.contains(&start).then(|| {
            let milliseconds: u64 = between(text, &start, "'").parse().expect("a number");
            Duration::from_millis(milliseconds)
        })
    };
    let local = text.contains("idle_in_transaction_session_timeout");
    let silence = value(if local {
        "idle_in_transaction_session_timeout"
    } else {
        "idle_session_timeout"
    });
    Settings {
        silence: silence.filter(|silence| !silence.is_zero()),
        local,
    }
}

fn slots(first: Key, count: i32) -> Vec<Key> {
    let Key::One(id) = first else {
        panic!("the first slot is the lock itself")
    };
    let others = (2..=count).map(|slot| Key::Two(id as i32, slot));
    [first].into_iter().chain(others).collect()
}

/// The key beside a lock in whose share those wait who want it alone.
fn intent(class: &str) -> Key {
    Key::Two(class.parse().expect("a number"), -1)
}

/// What stands between two texts.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let start = text
        .find(before)
        .unwrap_or_else(|| panic!("no {before} in {text}"))
        + before.len();
    let rest = &text[start..];
    &rest[..rest.find(after).unwrap_or(rest.len())]
}

fn seconds(text: &str, before: &str) -> Duration {
    let seconds = between(text, before, ")").parse().expect("a number");
    Duration::from_secs_f64(seconds)
}

/// The key that this function is called with.
fn call_key(text: &str, function: &str) -> Key {
    let start = text
        .find(function)
        .unwrap_or_else(|| panic!("no {function} in {text}"));
    key(between(&text[start..], "(", ")"))
}

fn key(text: &str) -> Key {
    Key::parse(&text.replace(' ', "")).unwrap_or_else(|| panic!("{text} is no key"))
}

/// The key of the row of the lock table that is looked for.
fn row_key(text: &str) -> Key {
    let number = |column: &str| -> u32 {
        between(text, &format!("{column} = '"), "'")
            .parse()
            .expect("a number")
    };
    let (class, object) = (number("classid"), number("objid"));
    match number("objsubid") {
        1 => Key::One((u64::from(class) << 32 | u64::from(object)) as i64),
        _ => Key::Two(class as i32, object as i32),
    }
}
