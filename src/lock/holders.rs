//! Who holds a lock and who waits for it, as the server's lock table has it. Most of `pg_stat_activity` is hidden from
//! ordinary roles; a session's name is not, and pglock puts into it what is to be seen (`server/session_name.rs`).

use super::count;
use super::keys::{self, CompanionKey, Key, OWN_DATABASE};
use super::query::{Query, Statements};
use super::request_sql::LockRequest;
use crate::pq::Error;
use crate::server::dialect::Dialect;
use crate::server::session_name::{IS_OWN, OWN};

/// One session that holds or waits, in the server's words; `None` for what it does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// `holder` or `waiter`.
    pub state: Option<String>,
    /// `shared` or `exclusive`.
    pub mode: Option<String>,
    /// The key.
    pub lock: Option<String>,
    /// The name of the session.
    pub session_name: Option<String>,
    /// The address of the client; none if it came by a Unix socket.
    pub address: Option<String>,
    /// The role.
    pub user: Option<String>,
    /// The database.
    pub database: Option<String>,
    /// The process id of the backend.
    pub backend: Option<String>,
    /// How many slots it counts, where it says so.
    pub slots: Option<u32>,
}

impl Row {
    fn read(fields: &[Option<String>]) -> Option<Self> {
        let [state, mode, lock, name, address, user, database, backend] = fields else {
            return None;
        };
        Some(Self {
            state: state.clone(),
            mode: mode.clone(),
            lock: lock.clone(),
            session_name: name.clone(),
            address: address.clone(),
            user: user.clone(),
            database: database.clone(),
            backend: backend.clone(),
            slots: None,
        })
    }

    /// How many slots its session counts, if it is no lock but tells that; of any lock where there is no request.
    fn count(&self, request: Option<&LockRequest>) -> Option<u32> {
        let key = Key::parse(self.lock.as_deref()?)?;
        if self.mode.as_deref() != Some("shared") {
            return None;
        }
        match request {
            Some(request) => request.counted(key),
            None => {
                let name = self.session_name.as_deref()?;
                count::counted_by(key).filter(|_| name.starts_with(OWN))
            }
        }
    }

    /// Whether it holds the lock.
    pub fn is_holder(&self) -> bool {
        self.state.as_deref() == Some("holder")
    }
}

/// What a server says to the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holders {
    /// It is a standby: its own locks are not those that its primary has.
    OfStandby,
    /// Who holds and who waits, in order.
    Rows(Vec<Row>),
}

/// The question whether the server is a standby, and who holds a lock and who waits for it; without a request, all advisory
/// locks of the database.
///
/// # Errors
/// The name of the lock cannot be said to the server.
pub fn query(
    dialect: &dyn Dialect,
    request: Option<&LockRequest>,
) -> Result<Query<Holders>, Error> {
    // Of other programs' locks it is not known whether such a key is one that is waited with; and a pair may be asked for that
    // looks like one.
    let own = |which: CompanionKey| Ok(format!("({} and {IS_OWN})", which.condition()));
    let key = keys::key_of_row();
    let never = || "false".to_owned();
    let of_request = |which| match request {
        Some(request) => request.is_companion(dialect, which),
        None => own(which),
    };
    let waits_alone = of_request(CompanionKey::Waiter)?;
    let waits = format!(
        "({waits_alone} or {})",
        of_request(CompanionKey::WaiterToShare)?
    );
    let (condition, key_waited_for, is_aside) = match request {
        Some(request) => (
            format!("({} or {waits})", request.condition(dialect)?),
            format!("({})::text", request.key_sql(dialect, "1")?),
            never(),
        ),
        None => (
            "true".to_owned(),
            key.clone(),
            format!(
                "({} or {} and {IS_OWN})",
                own(CompanionKey::WriterIntent)?,
                keys::is_aside()
            ),
        ),
    };
    let condition = match request {
        Some(request) => {
            let class = request.count_class() as u32;
            format!(
                "({condition} or (objsubid = '2' and classid = '{class}' and objid::bigint >= '{}'))",
                count::FIRST
            )
        }
        None => condition,
    };
    let in_queue = match request {
        Some(request) if request.slots == 1 => never(),
        Some(_) | None => of_request(CompanionKey::Queue)?,
    };
    let request = request.cloned();
    let mut statements = Statements::new();
    let standby = statements.add("select pg_catalog.pg_is_in_recovery()");
    // One who stands in the queue is seen there already.
    let rows = statements.add(format!(
        "select case when granted and not ({in_queue}) and not {waits} \
         then 'holder' else 'waiter' end state, \
         case when mode = 'ShareLock' and not ({waits_alone}) then 'shared' else 'exclusive' end, \
         case when {waits} then {key_waited_for} else {key} end lock, \
         application_name, client_addr, usename, datname, locks.pid \
         from pg_catalog.pg_locks locks \
         left join pg_catalog.pg_stat_activity activity on activity.pid = locks.pid \
         where locktype = 'advisory' and {condition} and not {is_aside} \
         and not ({waits} and locks.pid in (select pid from pg_catalog.pg_locks \
         where locktype = 'advisory' and (not granted or {}))) and {OWN_DATABASE} \
         order by lock, state, locks.pid",
        CompanionKey::Queue.condition(),
    ));
    Ok(
        statements.query(move |answer| match answer.field(standby, 0) {
            Some("t") => Ok(Holders::OfStandby),
            Some("f") => {
                let rows = answer.rows(rows).iter().map(|row| Row::read(row));
                let rows: Option<Vec<Row>> = rows.collect();
                let rows = rows.ok_or(UNEXPECTED)?;
                Ok(Holders::Rows(with_counts(rows, request.as_ref())))
            }
            // Which says of no lock that it is free.
            _ => Err(UNEXPECTED),
        }),
    )
}

/// The rows of the locks, each with what its session counts.
fn with_counts(rows: Vec<Row>, request: Option<&LockRequest>) -> Vec<Row> {
    let (counts, mut rows): (Vec<Row>, Vec<Row>) = rows
        .into_iter()
        .partition(|row| row.count(request).is_some());
    for row in &mut rows {
        let own = counts.iter().find(|count| count.backend == row.backend);
        row.slots = own.and_then(|own| own.count(request));
    }
    if let Some(request) = request {
        // Those of another lock whose hash begins alike.
        let is_of_lock = |row: &Row| {
            let key = row.lock.as_deref().and_then(Key::parse);
            key.is_none_or(|key| count::counted_by(key).is_none() || request.comes_to(key))
        };
        rows.retain(is_of_lock);
    }
    rows
}

const UNEXPECTED: &str = "the server gave an unexpected answer to the question who holds the lock";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Unanswered, golden::Made};
    use crate::pq::Outcome;

    #[test]
    fn only_the_table_of_a_primary_says_who_holds() {
        let query = query(&Made { version: 15 }, None).unwrap();
        let read = |standby: Option<&str>, rows: Vec<Vec<Option<String>>>| {
            let rows_of = |rows| Outcome::Done { rows };
            let standby = vec![standby.map(str::to_owned)];
            query.read(&[rows_of(vec![]), rows_of(vec![standby]), rows_of(rows)])
        };
        let row = |state: &str| {
            let mut row = vec![None; 8];
            row[0] = Some(state.to_owned());
            row
        };
        let Ok(Holders::Rows(rows)) = read(Some("f"), vec![row("holder"), row("waiter")]) else {
            panic!("no rows");
        };
        assert_eq!(rows.len(), 2);
        assert!(rows[0].is_holder() && !rows[1].is_holder());
        assert_eq!(read(Some("f"), vec![]), Ok(Holders::Rows(vec![])));
        assert_eq!(read(Some("t"), vec![row("holder")]), Ok(Holders::OfStandby));
        let senseless = || Err(Unanswered::Senseless(UNEXPECTED));
        assert_eq!(read(Some("f"), vec![vec![None; 7]]), senseless());
        assert_eq!(read(Some("maybe"), vec![]), senseless());
        assert_eq!(read(None, vec![]), senseless());
    }
}
