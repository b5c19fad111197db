//! `--status`: who holds a lock and who waits for it, as the server's lock table has it. Most of
//! `pg_stat_activity` is hidden from ordinary roles; a session's name is not, and pglock puts into it what
//! is to be seen here (`server/session_name.rs`).

use std::array;
use std::ffi::CString;

use crate::lock::{self, Claim, OWN_DATABASE};
use crate::pq::{Error, Outcome};
use crate::secrets;
use crate::server::dialect::Dialect;
use crate::server::session_name;
use crate::sys;
use crate::text;

/// The most that is shown in a column, in bytes; a server's names have 63.
const LONGEST: usize = 255;

/// The columns of the table.
const HEAD: [&str; 10] = [
    "STATE", "MODE", "LOCK", "SINCE", "HOST", "PID", "USER", "DATABASE", "BACKEND", "COMMAND",
];

/// The question whether the server is a standby, and who holds a lock and who waits for it; without a claim, all advisory
/// locks of the database.
///
/// # Errors
/// The name of the lock cannot be said to the server.
pub fn sql(dialect: &dyn Dialect, claim: Option<&Claim>) -> Result<CString, Error> {
    let condition = match claim {
        Some(claim) => claim.condition(dialect)?,
        None => "true".to_owned(),
    };
    let at_door = format!(
        "objsubid = '2' and objid = '0' and {}",
        match claim {
            Some(_) => "true",
            None => IS_LABEL,
        }
    );
    Ok(lock::query(&format!(
        "select pg_catalog.pg_is_in_recovery(); \
         select case when granted and not ({at_door}) \
         then 'holder' else 'waiter' end state, \
         case mode when 'ShareLock' then 'shared' else 'exclusive' end, \
         case objsubid when 1 then (classid::bigint << 32 | objid::bigint)::text \
         else pg_catalog.concat(classid::bigint::bit(32)::int, ',', objid::bigint::bit(32)::int) end lock, \
         application_name, client_addr, usename, datname, locks.pid \
         from pg_catalog.pg_locks locks \
         left join pg_catalog.pg_stat_activity activity on activity.pid = locks.pid \
         where locktype = 'advisory' and {condition} \
         and not (objsubid = '2' and objid = '4294967295' and {IS_LABEL}) and {OWN_DATABASE} \
         order by lock, state, locks.pid"
    )))
}

/// Whether the session is one of pglock's: then it waits at the door of some slots, `(N, 0)`, or for an
/// exclusive lock whose gate, `(N, -1)`, it has; see `lock.rs`.
const IS_LABEL: &str = "coalesce(application_name like 'pglock %', false)";

/// Whether it is a standby that has answered: its own locks are not those that its primary has.
pub fn is_standby(outcomes: &[Outcome]) -> bool {
    matches!(outcomes, [_path, answer, ..] if answer.field(0) == Some("t"))
}

/// One line of the table.
struct Row([String; HEAD.len()]);

impl Row {
    fn read(fields: &[Option<String>]) -> Option<Self> {
        let [state, mode, lock, name, address, user, database, backend] = fields else {
            return None;
        };
        // A name may hold what would break the table, or what a terminal would obey.
        let text = |field: &Option<String>| match field {
            Some(text) => text::field(&secrets::mask(text), LONGEST),
            None => "-".to_owned(),
        };
        let name = text(name);
        let [since, host, pid, command] = match session_name::parse(&name) {
            Some(label) => [
                sys::local_time(label.since),
                label.host.to_owned(),
                label.pid.to_owned(),
                label.program.to_owned(),
            ],
            None => ["-".to_owned(), text(address), "-".to_owned(), name],
        };
        Some(Self([
            text(state),
            text(mode),
            text(lock),
            since,
            host,
            pid,
            text(user),
            text(database),
            text(backend),
            command,
        ]))
    }

    fn is_holder(&self) -> bool {
        self.0[0] == "holder"
    }
}

/// The rows of an answer of a server that is not a standby; `None` for any other, which says of no lock that it is free.
fn rows(outcomes: &[Outcome]) -> Option<Vec<Row>> {
    match outcomes {
        [.., standby, Outcome::Done { rows }] if standby.field(0) == Some("f") => {
            rows.iter().map(|row| Row::read(row)).collect()
        }
        _ => None,
    }
}

/// Who holds the lock, in words.
pub fn holders(outcomes: &[Outcome]) -> Vec<String> {
    rows(outcomes)
        .unwrap_or_default()
        .iter()
        .filter(|row| row.is_holder())
        .map(|Row([_, _, _, since, host, pid, user, _, backend, command])| {
            format!(
                "user {user}, process {pid} on {host}, backend {backend}, since {since}: {command}"
            )
        })
        .collect()
}

/// The table; `free` where nobody holds. `None` where the answer does not tell.
pub fn table(outcomes: &[Outcome]) -> Option<String> {
    let rows = rows(outcomes)?;
    let mut text = String::new();
    if !rows.iter().any(Row::is_holder) {
        text.push_str("free\n");
    }
    if rows.is_empty() {
        return Some(text);
    }
    let head = Row(HEAD.map(str::to_owned));
    let lines: Vec<&Row> = [&head].into_iter().chain(&rows).collect();
    let width = |column: usize| lines.iter().map(|row| row.0[column].len()).max();
    let widths: [_; HEAD.len()] = array::from_fn(|column| width(column).unwrap_or(0));
    for Row(fields) in &lines {
        let padded: Vec<String> = fields
            .iter()
            .zip(widths)
            .map(|(field, width)| format!("{field:width$}"))
            .collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    Some(text)
}
