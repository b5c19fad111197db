//! `--status`: the table of who holds a lock and who waits for it, for people.

use std::array;

use crate::lock::holders::Row;
use crate::secrets;
use crate::server::session_name;
use crate::sys;
use crate::text;

/// The most that is shown in a column, in bytes; a server's names have 63.
const LONGEST: usize = 255;

/// The columns of the table.
const HEAD: [&str; 11] = [
    "STATE",
    "MODE",
    "LOCK",
    "SINCE",
    "HELD UNTIL",
    "HOST",
    "PID",
    "USER",
    "DATABASE",
    "BACKEND",
    "COMMAND",
];

/// Where that of the table is which is left out if it says nothing of anybody.
const UNTIL: usize = 4;

/// What stands in a column that says nothing.
const NOTHING: &str = "-";

/// One line of the table.
struct Line([String; HEAD.len()]);

impl Line {
    fn new(row: &Row) -> Self {
        // A name may hold what would break the table, or what a terminal would obey.
        let text = |field: &Option<String>| match field {
            Some(text) => text::field(&secrets::mask(text), LONGEST),
            None => NOTHING.to_owned(),
        };
        let name = text(&row.session_name);
        let [since, until, host, pid, command] = match session_name::parse(&name) {
            Some(label) => [
                sys::local_time(label.since),
                label.until.map_or(NOTHING.to_owned(), sys::local_time),
                label.host.to_owned(),
                label.pid.to_owned(),
                label.program.to_owned(),
            ],
            None => {
                let nothing = || NOTHING.to_owned();
                [nothing(), nothing(), text(&row.address), nothing(), name]
            }
        };
        Self([
            text(&row.state),
            text(&row.mode),
            text(&row.lock),
            since,
            until,
            host,
            pid,
            text(&row.user),
            text(&row.database),
            text(&row.backend),
            command,
        ])
    }
}

/// Who holds the lock, in words.
pub fn holders(rows: &[Row]) -> Vec<String> {
    rows.iter()
        .filter(|row| row.is_holder())
        .map(|row| {
            let Line([_, _, _, since, until, host, pid, user, _, backend, command]) =
                Line::new(row);
            let until = match until.as_str() {
                NOTHING => String::new(),
                until => format!(", held until {until} at least"),
            };
            format!(
                "user {user}, process {pid} on {host}, backend {backend}, since {since}{until}: {command}"
            )
        })
        .collect()
}

/// The table; `free` where nobody holds.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    if !rows.iter().any(Row::is_holder) {
        text.push_str("free\n");
    }
    if rows.is_empty() {
        return text;
    }
    let head = Line(HEAD.map(str::to_owned));
    let lines: Vec<Line> = [head]
        .into_iter()
        .chain(rows.iter().map(Line::new))
        .collect();
    let width = |column: usize| lines.iter().map(|line| line.0[column].len()).max();
    let widths: [_; HEAD.len()] = array::from_fn(|column| width(column).unwrap_or(0));
    let has_until = lines[1..].iter().any(|line| line.0[UNTIL] != NOTHING);
    for Line(fields) in &lines {
        let padded: Vec<String> = fields
            .iter()
            .zip(widths)
            .enumerate()
            .filter(|(column, _)| *column != UNTIL || has_until)
            .map(|(_, (field, width))| format!("{field:width$}"))
            .collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}
