//! How an attempt at a lock went: the statement that tells, and the one that proves it. The last but one of a query
//! tells how it went, and the last brings what the lock table has of this session: the proof, looked at here. For a turn in the queue
//! it is another: to look at a table with many who wait would keep the lock from the next. Before it waits each session is seen in
//! the table, which so is known to have what the server grants, and what it gives up with the wait it had.

use super::count::{Count, Row};
use super::keys::{Key, OWN_DATABASE, PLACES};
use super::query::{Answer, Place, Statements};
use super::request_sql::LockRequest;
use super::restart::{self, RestartCheck};
use crate::pq::Error;
use crate::server::dialect::Dialect;
use crate::server::session_settings::{LockScope, SessionSettings};

/// The server's word on an attempt to take the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The lock is held: by what was tried this key stands in the server's lock table under the own backend, and what was waited
    /// for was so by one whose locks stand there. With the fencing token, if one was asked for.
    Held(Key, Option<u64>),
    /// Others hold it.
    Busy,
    /// Others hold it, or all its slots, and this session has the writer-intent key or is the first of those in the queue.
    QueueHead,
    /// Others hold it, and this session has this place in the queue.
    Place(u32),
    /// The server lost its sessions less than a ttl ago: an earlier holder may be about to take its lock
    /// again.
    RecentlyRestarted,
    /// A pooler is between pglock and the server: the lock can only be bound to a transaction.
    Pooled,
    /// The server is a standby, whose locks do not exclude those of its primary.
    Standby,
    /// Others who hold the lock or wait for it count so many slots, and not as many as are asked for. It may be held all the same.
    Differs(u32),
    /// Others hold it, and it is to be asked in which database others are who count slots.
    Doubtful,
}

/// What is wrong with an answer that is none of these.
const UNEXPECTED: &str = "the server gave an unexpected answer to the lock call";

/// Asks for what the server's lock table has of the session that asks. One that can ask waits for nothing, so
/// all of it is granted.
const PROOF: &str = "select locktype, classid, objid, objsubid, mode from pg_catalog.pg_lock_status() \
     where not pg_catalog.int4ne(pid, pg_catalog.pg_backend_pid())";

/// The same, and what tells that others count the slots of this lock otherwise: as far as the rows of the own session tell which is
/// the own database, or, `exact`ly, where the server is to look which is, to which that is expensive. Of those who count alike, who
/// may be many, there is none.
pub fn counted_proof(
    dialect: &dyn Dialect,
    request: &LockRequest,
    exact: bool,
) -> Result<String, Error> {
    let own = "not pg_catalog.int4ne(pid, pg_catalog.pg_backend_pid())";
    let (class, object) = (request.count_class(), request.count_object());
    let differs = format!(
        "not pg_catalog.int4ne(classid::int, {class}) and pg_catalog.int4ne(objid::int, {object})"
    );
    let (columns, others) = match request.slots {
        1 => (String::new(), differs),
        _ => {
            let first = request.is_first_slot(dialect)?;
            let alike = format!(
                "exists (select from pg_catalog.pg_lock_status() other where not pg_catalog.int4ne(other.pid, locks.pid) \
                 and not pg_catalog.int4ne(other.classid::int, {class}) \
                 and not pg_catalog.int4ne(other.objid::int, {object}))"
            );
            (
                format!(", {first}, case when {first} then {alike} end"),
                format!("{differs} or {first}"),
            )
        }
    };
    let wanted = match exact {
        true => format!("{own} or ({others}) and {OWN_DATABASE}"),
        false => format!("{own} or {others}"),
    };
    Ok(format!(
        "select locktype, classid, objid, objsubid, mode, {own}, database{columns} \
         from pg_catalog.pg_lock_status() locks where {wanted}"
    ))
}

/// Opens the transaction that a lock behind a pooler is bound to. A stronger isolation, which a role may
/// have as its default, would keep a snapshot, and so hold back vacuum and `CREATE INDEX CONCURRENTLY`.
pub fn begin(statements: &mut Statements, scope: LockScope) {
    if scope == LockScope::Transaction {
        statements.add("begin isolation level read committed");
    }
}

/// The first branches of a verdict: where the lock must not be taken.
pub fn guards(
    dialect: &dyn Dialect,
    scope: LockScope,
    check: RestartCheck,
    settings: SessionSettings,
) -> String {
    let pid = dialect.backend_pid();
    let pooled = match scope {
        LockScope::Session => {
            format!("when pg_catalog.int4ne(pg_catalog.pg_backend_pid(), {pid}) then 'pooled' ")
        }
        LockScope::Transaction => String::new(),
    };
    let young = match restart::is_recent(dialect, scope, check, settings) {
        Some(recent) => format!("when {recent} then 'young' "),
        None => String::new(),
    };
    format!("case {pooled}when pg_catalog.pg_is_in_recovery() then 'standby' {young}")
}

/// Where the word on an attempt is, and its proof.
#[derive(Clone, Copy)]
pub struct VerdictPlace {
    word: Place,
    proof: Place,
}

impl VerdictPlace {
    /// Adds the statement that tries and tells, and the one for the proof.
    pub fn ask(statements: &mut Statements, attempt: String) -> Self {
        Self::ask_counted(statements, attempt, PROOF.to_owned())
    }

    /// The same with a [`counted_proof`].
    pub fn ask_counted(statements: &mut Statements, attempt: String, proof: String) -> Self {
        Self {
            word: statements.add(attempt),
            proof: statements.add(proof),
        }
    }

    /// As [`read`](Self::read), with a [`counted_proof`]. Where this key was taken to tell others how many slots are counted, the
    /// lock table has to have it, whether or not the lock is held.
    pub fn read_counted(
        self,
        answer: &Answer,
        request: &LockRequest,
        counts: Option<Key>,
        exact: bool,
    ) -> Result<Verdict, &'static str> {
        let verdict = self.read(answer, request.shared, |key| request.comes_to(key))?;
        let rows = answer.rows(self.proof);
        match verdict {
            Verdict::Held(..) | Verdict::Busy | Verdict::QueueHead => {
                if counts.is_some_and(|counts| !is_proven(rows, counts, true)) {
                    return Err(
                        "the server's lock table does not show what the server granted: its advisory locks do not \
                         exclude anybody",
                    );
                }
                Ok(match count(rows, request, exact) {
                    Count::Alike => verdict,
                    Count::Differs(slots) => Verdict::Differs(slots),
                    Count::Doubtful => Verdict::Doubtful,
                })
            }
            Verdict::RecentlyRestarted
            | Verdict::Pooled
            | Verdict::Standby
            | Verdict::Place(_)
            | Verdict::Differs(_)
            | Verdict::Doubtful => Ok(verdict),
        }
    }

    /// What the answer means to one who wants the lock, `shared` or not; `wanted` tells whether a key is the lock's.
    pub fn read(
        self,
        answer: &Answer,
        shared: bool,
        wanted: impl Fn(Key) -> bool,
    ) -> Result<Verdict, &'static str> {
        let verdict = read_word(answer.field(self.word, 0), wanted)?;
        borne_out(
            verdict,
            |key| is_proven(answer.rows(self.proof), key, shared),
            "the server says that it granted the lock, but its lock table does not show it: its \
             advisory locks do not exclude anybody",
        )
    }
}

/// Where the word on a turn is, and what bears it out: what became of the place that was left with the wait.
#[derive(Clone, Copy)]
pub struct TurnPlace {
    word: Place,
    left: Place,
}

impl TurnPlace {
    /// Adds the statements that show them.
    pub fn ask(statements: &mut Statements) -> Self {
        Self {
            word: statements.add("show pglock.word"),
            left: statements.add("show pglock.place"),
        }
    }

    /// What the answer means; `wanted` tells whether a key is the lock's.
    pub fn read(
        self,
        answer: &Answer,
        wanted: impl Fn(Key) -> bool,
    ) -> Result<Verdict, &'static str> {
        let verdict = read_word(answer.field(self.word, 0), wanted)?;
        // The server says so of each of two locks that it had for this session.
        borne_out(
            verdict,
            |_| answer.field(self.left, 0) == Some("tt"),
            "the server says that it granted the lock, but did not let go of the place in its queue",
        )
    }
}

/// The verdict, unless it is that a lock is held, and that is not so.
fn borne_out(
    verdict: Verdict,
    is_so: impl Fn(Key) -> bool,
    otherwise: &'static str,
) -> Result<Verdict, &'static str> {
    match verdict {
        Verdict::Held(key, _) if !is_so(key) => Err(otherwise),
        Verdict::Held(..)
        | Verdict::Busy
        | Verdict::QueueHead
        | Verdict::Place(_)
        | Verdict::RecentlyRestarted
        | Verdict::Pooled
        | Verdict::Standby
        | Verdict::Differs(_)
        | Verdict::Doubtful => Ok(verdict),
    }
}

/// What the word means that answers a turn in the queue, or an attempt at the lock; `wanted` tells whether a key is the lock's.
fn read_word(word: Option<&str>, wanted: impl Fn(Key) -> bool) -> Result<Verdict, &'static str> {
    match word.unwrap_or_default() {
        "busy" => Ok(Verdict::Busy),
        "first" => Ok(Verdict::QueueHead),
        "young" => Ok(Verdict::RecentlyRestarted),
        "pooled" => Ok(Verdict::Pooled),
        "standby" => Ok(Verdict::Standby),
        word => {
            let (key, token) = granted(word).ok_or(UNEXPECTED)?;
            match wanted(key) {
                true => Ok(Verdict::Held(key, token)),
                false => Err("the server granted another lock than the one that it was asked for"),
            }
        }
    }
}

/// What the word means that answers a look for a place in the queue.
pub fn read_look(word: Option<&str>) -> Result<Verdict, &'static str> {
    match word.unwrap_or_default() {
        "busy" => Ok(Verdict::Busy),
        "pooled" => Ok(Verdict::Pooled),
        "standby" => Ok(Verdict::Standby),
        word => {
            let place = word
                .strip_prefix("place ")
                .and_then(|place| place.parse().ok());
            let place = place.filter(|place| *place < PLACES);
            place.map(Verdict::Place).ok_or(UNEXPECTED)
        }
    }
}

/// The key and the token of a word that says that a lock is held.
fn granted(word: &str) -> Option<(Key, Option<u64>)> {
    let mut parts = word.split(' ');
    if parts.next() != Some("held") {
        return None;
    }
    let key = Key::parse(parts.next()?)?;
    let token = parts.next().map(str::parse).transpose().ok()?;
    Some((key, token))
}

/// Whether the rows that answer [`PROOF`] have this key, shared or not; where they have those of others too, as the own.
fn is_proven(rows: &[Vec<Option<String>>], key: Key, shared: bool) -> bool {
    let mode = if shared { "ShareLock" } else { "ExclusiveLock" };
    let mut expected = key.row().to_vec();
    expected.push(Some(mode.to_owned()));
    rows.iter().any(|row| {
        let is_own = row.get(5).is_none_or(|own| own.as_deref() == Some("t"));
        is_own && row.starts_with(&expected)
    })
}

/// How others count, by the rows that answer a [`counted_proof`].
fn count(rows: &[Vec<Option<String>>], request: &LockRequest, is_exact: bool) -> Count {
    let mut lock = None;
    let read = rows.iter().filter_map(|row| {
        let key = Key::of_row(row)?;
        let [_, _, _, _, mode, own, database, rest @ ..] = &row[..] else {
            return None;
        };
        let is_true = |field: Option<&Option<String>>| {
            field.is_some_and(|field| field.as_deref() == Some("t"))
        };
        if let Key::One(_) = key
            && is_true(rest.first())
        {
            lock = Some(key);
        }
        Some(Row {
            key,
            shared: mode.as_deref() == Some("ShareLock"),
            database: database.as_deref()?,
            own: own.as_deref() == Some("t"),
            counts_alike: is_true(rest.get(1)),
        })
    });
    let rows: Vec<Row> = read.collect();
    request.compare(&rows, lock, is_exact)
}

#[cfg(test)]
mod tests {
    use super::super::keys::{CompanionKey, Name};
    use super::super::query::{Query, Unanswered};
    use super::super::request_sql::LockRequest;
    use super::*;
    use crate::pq::Outcome;

    fn request(name: Name, slots: u32) -> LockRequest {
        LockRequest {
            name,
            shared: false,
            slots,
            settings: SessionSettings::new(None),
            fence: false,
            sync: false,
        }
    }

    fn row(fields: Vec<Option<String>>) -> Outcome {
        Outcome::Done { rows: vec![fields] }
    }

    /// The row that proves this key.
    fn proof(key: Key, mode: &str) -> Outcome {
        row([&key.row()[..], &[Some(mode.to_owned())]].concat())
    }

    /// The answer of a server that says this word, to a query of one statement beside the verdict's and the path.
    fn answer(word: &str, proof: Outcome) -> [Outcome; 3] {
        let word = row(vec![Some(word.to_owned())]);
        [Outcome::Done { rows: vec![] }, word, proof]
    }

    /// The answer of a server that has granted this key, and shows it in its lock table.
    fn granted(key: Key) -> [Outcome; 3] {
        answer(&format!("held {key}"), proof(key, "ExclusiveLock"))
    }

    /// The query of an attempt, read as that of one who makes it.
    fn attempt(shared: bool, wanted: impl Fn(Key) -> bool + 'static) -> Query<Verdict> {
        let mut statements = Statements::new();
        let place = VerdictPlace::ask(&mut statements, String::new());
        statements.query(move |answer| place.read(answer, shared, &wanted))
    }

    fn of_request(request: &LockRequest) -> Query<Verdict> {
        let request = request.clone();
        attempt(request.shared, move |key| request.comes_to(key))
    }

    #[test]
    fn no_other_key_will_do_than_that_of_the_lock() {
        let id = |id, slots| request(Name::id(id), slots);
        let key = |key, slots| request(Name::Key(key), slots);
        let name = |slots| request(Name::Text("x".into()), slots);
        let [queue, intent] =
            [CompanionKey::Queue, CompanionKey::WriterIntent].map(CompanionKey::second);
        for (request, key, is_right) in [
            (id(1, 1), Key::One(1), true),
            (id(1, 1), Key::One(2), false),
            (id(1, 1), Key::One(1 << 32 | 1), false),
            (id(1, 1), Key::Two(0, 1), false),
            (id(1, 1), Key::Two(1, 1), false),
            (id(1, 1), Key::Two(1, 2), false),
            (id(u32::MAX, 2), Key::One(u32::MAX.into()), true),
            (id(u32::MAX, 2), Key::One(-1), false),
            (id(u32::MAX, 2), Key::Two(-1, 2), true),
            (id(3, 5), Key::Two(3, 5), true),
            (id(3, 5), Key::Two(3, 6), false),
            (id(3, 5), Key::Two(3, 1), false),
            (id(3, 5), Key::Two(3, queue), false),
            (id(3, 5), Key::Two(3, intent), false),
            (id(3, 5), Key::Two(2, 5), false),
            (key(Key::One(-7), 1), Key::One(-7), true),
            (key(Key::One(-7), 1), Key::One(8), false),
            (key(Key::One(-7), 3), Key::One(8), true),
            (key(Key::One(-7), 3), Key::Two(-7, 2), false),
            (key(Key::Two(1, 2), 1), Key::Two(1, 2), true),
            (key(Key::Two(1, 2), 1), Key::Two(1, 3), false),
            (key(Key::Two(1, 2), 1), Key::One(1 << 32 | 2), false),
            (name(1), Key::One(-7), true),
            (name(5), Key::One(7), true),
            (name(1), Key::Two(0, 1), false),
            (name(5), Key::Two(1, 2), false),
        ] {
            let verdict = of_request(&request).read(&granted(key));
            let held = Ok(Verdict::Held(key, None));
            assert_eq!(
                verdict == held,
                is_right,
                "{request:?}, {key:?}: {verdict:?}"
            );
            assert!(
                is_right || matches!(verdict, Err(Unanswered::Senseless(_))),
                "{verdict:?}"
            );
        }
    }

    #[test]
    fn the_word_of_the_server_is_not_enough() {
        let query = of_request(&request(Name::id(1), 1));
        let key = Key::One(1);
        let held = |word: &str| query.read(&answer(word, proof(key, "ExclusiveLock")));
        assert_eq!(held("held 1"), Ok(Verdict::Held(key, None)));
        assert_eq!(held("held 1 77"), Ok(Verdict::Held(key, Some(77))));
        for word in [
            "", "held", "held x", "held 1 x", "held 1 ", "holds 1", "Held 1",
        ] {
            assert_eq!(held(word), Err(Unanswered::Senseless(UNEXPECTED)), "{word}");
        }
        for proof in [
            proof(key, "ShareLock"),
            proof(Key::Two(0, 1), "ExclusiveLock"),
            row(vec![]),
            Outcome::Done { rows: vec![] },
        ] {
            let verdict = query.read(&answer("held 1", proof));
            assert!(
                matches!(verdict, Err(Unanswered::Senseless(_))),
                "{verdict:?}"
            );
        }
        for (word, verdict) in [
            ("busy", Verdict::Busy),
            ("first", Verdict::QueueHead),
            ("young", Verdict::RecentlyRestarted),
            ("pooled", Verdict::Pooled),
            ("standby", Verdict::Standby),
        ] {
            assert_eq!(held(word), Ok(verdict));
        }
    }
}
