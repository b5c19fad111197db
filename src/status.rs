//! `--status`: who holds a lock and who waits for it, as a table for people and as JSON for programs.

use std::array;
use std::fmt::Write as _;

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

/// What is known of a session that holds or waits.
struct Known {
    state: Option<String>,
    mode: Option<String>,
    /// The key of the lock.
    key: Option<String>,
    /// Its name, if that is known.
    name: Option<String>,
    /// Since when it holds or waits, in seconds since 1970.
    since: Option<i64>,
    /// Until when it holds at least, likewise.
    until: Option<i64>,
    host: Option<String>,
    pid: Option<String>,
    user: Option<String>,
    database: Option<String>,
    backend: Option<String>,
    program: Option<String>,
    slots: Option<u32>,
}

impl Known {
    /// What a row tells, each text as `clean` leaves it; `name` is that of the lock that was asked for.
    fn new(row: &Row, name: Option<&str>, clean: impl Fn(&str) -> String) -> Self {
        let text =
            |field: &Option<String>| field.as_deref().map(|text| clean(&secrets::mask(text)));
        let session = text(&row.session_name);
        let mut known = Self {
            state: text(&row.state),
            mode: text(&row.mode),
            key: text(&row.lock),
            name: name.map(&clean),
            since: None,
            until: None,
            host: text(&row.address),
            pid: None,
            user: text(&row.user),
            database: text(&row.database),
            backend: text(&row.backend),
            program: session.clone(),
            slots: row.slots,
        };
        if let Some(label) = session.as_deref().and_then(session_name::parse) {
            known.name = known.name.or(label.lock.map(str::to_owned));
            known.since = Some(label.since);
            known.until = label.until;
            known.host = Some(label.host.to_owned());
            known.pid = Some(label.pid.to_owned());
            known.program = Some(label.program.to_owned());
            known.slots = known.slots.or(Some(1));
        }
        known
    }
}

/// One line of the table.
struct Line([String; HEAD.len()]);

impl Line {
    fn new(row: &Row, name: Option<&str>) -> Self {
        // A name may hold what would break the table, or what a terminal would obey.
        let known = Known::new(row, name, |text| text::field(text, LONGEST));
        let fields = [
            known.state,
            known.mode,
            known.name.or(known.key),
            known.since.map(sys::local_time),
            known.until.map(sys::local_time),
            known.host,
            known.pid,
            known.user,
            known.database,
            known.backend,
            known.program,
        ];
        Self(fields.map(|field| field.unwrap_or_else(|| NOTHING.to_owned())))
    }
}

/// Whether somebody holds the lock.
pub fn is_held(rows: &[Row]) -> bool {
    rows.iter().any(Row::is_holder)
}

/// Who holds the lock, in words; of a program that is no pglock less is known.
pub fn holders(rows: &[Row]) -> Vec<String> {
    rows.iter()
        .filter(|row| row.is_holder())
        .map(|row| {
            let Line([_, _, _, since, until, host, pid, user, _, backend, command]) =
                Line::new(row, None);
            let known = |field: &str, words: String| match field {
                NOTHING => String::new(),
                _ => words,
            };
            let place = match pid.as_str() {
                NOTHING => known(&host, format!(", from {host}")),
                _ => format!(", process {pid} on {host}"),
            };
            let since = known(&since, format!(", since {since}"));
            let until = known(&until, format!(", held until {until} at least"));
            format!("user {user}{place}, backend {backend}{since}{until}: {command}")
        })
        .collect()
}

/// The table; `free` where nobody holds. `name` is that of the lock that was asked for.
pub fn table(rows: &[Row], name: Option<&str>) -> String {
    let mut text = String::new();
    if !is_held(rows) {
        text.push_str("free\n");
    }
    if rows.is_empty() {
        return text;
    }
    let head = Line(HEAD.map(str::to_owned));
    let lines: Vec<Line> = [head]
        .into_iter()
        .chain(rows.iter().map(|row| Line::new(row, name)))
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

/// The same as one JSON document: an array with an object, on a line of its own, for each that holds or waits.
pub fn json(rows: &[Row], name: Option<&str>) -> String {
    let objects: Vec<String> = rows.iter().map(|row| object(row, name)).collect();
    match objects.is_empty() {
        true => "[]\n".to_owned(),
        false => format!("[\n{}\n]\n", objects.join(",\n")),
    }
}

fn object(row: &Row, name: Option<&str>) -> String {
    let known = Known::new(row, name, str::to_owned);
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u32>().ok());
    let texts = |text: Option<String>| text.map_or_else(null, |text| quoted(&text));
    let numbers = |number: Option<u32>| number.map_or_else(null, |number| number.to_string());
    let members = [
        ("state", texts(known.state)),
        ("mode", texts(known.mode)),
        // Not as a number: a bigint is more than most readers of JSON have.
        ("lock", texts(known.key)),
        ("name", texts(known.name)),
        ("since", texts(known.since.map(rfc_3339))),
        ("held_until", texts(known.until.map(rfc_3339))),
        ("host", texts(known.host)),
        ("pid", numbers(number(known.pid))),
        ("user", texts(known.user)),
        ("database", texts(known.database)),
        ("backend", numbers(number(known.backend))),
        ("program", texts(known.program)),
        ("slots", numbers(known.slots)),
    ];
    let members = members.map(|(name, value)| format!("\"{name}\": {value}"));
    format!("  {{{}}}", members.join(", "))
}

fn null() -> String {
    "null".to_owned()
}

/// A string of JSON, by RFC 8259.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            // Those that would be control characters of a terminal, too.
            character if character.is_control() => {
                // Writing to a string does not fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            character => quoted.push(character),
        }
    }
    quoted + "\""
}

/// A time in seconds since 1970 by RFC 3339, in UTC. By Howard Hinnant's `civil_from_days`: years begin in March, so that the
/// day of a leap year is the last, and 400 of them, an era, have the same number of days.
fn rfc_3339(time: i64) -> String {
    const DAY: i64 = 86_400;
    const ERA: i64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let days = time.div_euclid(DAY) + 719_468;
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let second = time.rem_euclid(DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_that_of_the_calendar() {
        for (time, shown) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_214_400, "9999-12-31T00:00:00Z"),
        ] {
            assert_eq!(rfc_3339(time), shown);
        }
    }

    #[test]
    fn any_text_is_a_string_of_json() {
        for (text, shown) in [
            ("plain é 🐘", "\"plain é 🐘\""),
            ("\"\\/", "\"\\\"\\\\/\""),
            (
                "\n\t\u{0}\u{1b}[31m",
                "\"\\u000a\\u0009\\u0000\\u001b[31m\"",
            ),
            ("\u{7f}\u{85}", "\"\\u007f\\u0085\""),
        ] {
            assert_eq!(quoted(text), shown);
        }
    }

    #[test]
    fn a_row_is_an_object() {
        let some = |text: &str| Some(text.to_owned());
        let own = Row {
            state: some("holder"),
            mode: some("exclusive"),
            lock: some("-7"),
            session_name: some("pglock 12@web-07 1800000000+5 job =nightly"),
            user: some("o\"ps"),
            database: some("app"),
            backend: some("99"),
            ..Row::default()
        };
        assert_eq!(
            json(&[own.clone(), Row::default()], None),
            "[\n  {\"state\": \"holder\", \"mode\": \"exclusive\", \"lock\": \"-7\", \"name\": \"nightly\", \
             \"since\": \"2027-01-15T08:00:00Z\", \"held_until\": \"2027-01-15T08:00:05Z\", \"host\": \"web-07\", \"pid\": 12, \
             \"user\": \"o\\\"ps\", \"database\": \"app\", \"backend\": 99, \"program\": \"job\", \"slots\": 1},\n  \
             {\"state\": null, \"mode\": null, \"lock\": null, \"name\": null, \"since\": null, \"held_until\": null, \
             \"host\": null, \"pid\": null, \"user\": null, \"database\": null, \"backend\": null, \
             \"program\": null, \"slots\": null}\n]\n"
        );
        assert!(table(&[own], Some("asked")).contains("  asked  "));
        assert_eq!(json(&[], None), "[]\n");
    }

    #[test]
    fn of_a_holder_is_said_what_is_known() {
        let some = |text: &str| Some(text.to_owned());
        let row = Row {
            state: some("holder"),
            user: some("ops"),
            backend: some("99"),
            session_name: some("psql"),
            ..Row::default()
        };
        let remote = Row {
            address: some("192.0.2.7"),
            ..row.clone()
        };
        let own = Row {
            session_name: some("pglock 12@web-07 1800000000 job"),
            ..remote.clone()
        };
        let said = holders(&[row, remote, own]);
        assert_eq!(
            said[..2],
            [
                "user ops, backend 99: psql",
                "user ops, from 192.0.2.7, backend 99: psql"
            ]
        );
        let own = &said[2];
        let is_whole = own.starts_with("user ops, process 12 on web-07, backend 99, since 20");
        assert!(is_whole && own.ends_with(": job"), "{own}");
    }
}
