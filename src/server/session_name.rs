//! The name that a session of pglock's goes by at the server, its `application_name`: everybody may see it in
//! `pg_stat_activity`, other than most that stands there, and it may stand in the server's log. `pglock PID@HOST SINCE
//! PROGRAM`, where SINCE is in seconds since 1970: since when it has waited for the lock or held it; `SINCE+HOLD` where it
//! holds the lock for so many seconds at least. Of the command it has the program's name alone, for the arguments may be
//! secrets, or the text of `--label` in its place. `=NAME` behind it is the name of the lock, where it has one and there is
//! room for all of it.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::pq::Connection;
use crate::secrets;
use crate::sys;

/// The server cuts longer names off.
const LONGEST: usize = 63;
/// How much of the host's name is shown, to leave room for the program.
const LONGEST_HOST: usize = 20;

/// What the names of pglock's sessions begin with.
pub const OWN: &str = "pglock ";

/// The condition that a row of `pg_stat_activity` is about a session of pglock's.
pub const IS_OWN: &str = "coalesce(application_name like 'pglock %', false)";

/// What stands before the name of the lock.
const LOCK: &str = " =";

/// The times that a label may have, from the year 2000 to 9999. Any role can give itself a name that looks like a label, with a
/// time that no calendar has.
const TIMES: RangeInclusive<i64> = 946_684_800..=253_402_214_400;

/// What a label is to say of a run.
#[derive(Clone, Copy)]
pub struct Title<'a> {
    /// The command.
    pub command: &'a [OsString],
    /// What stands for it.
    pub label: Option<&'a str>,
    /// The name of the lock, if it has one.
    pub lock: Option<&'a str>,
}

/// What a label says.
#[derive(Debug, PartialEq, Eq)]
pub struct Label<'a> {
    /// The process id of the pglock.
    pub pid: &'a str,
    /// The host that it runs on.
    pub host: &'a str,
    /// Since when it waits or holds, in seconds since 1970 by its host's clock.
    pub since: i64,
    /// Until when it holds the lock at least, likewise.
    pub until: Option<i64>,
    /// The name of its program.
    pub program: &'a str,
    /// The name of its lock, if that is known.
    pub lock: Option<&'a str>,
}

/// The label of this pglock, from now on; of one that holds the lock for so long at least.
pub fn label(title: Title, hold: Duration) -> String {
    let mut host = printable(&sys::host_name()).replace(' ', "?");
    host.truncate(LONGEST_HOST);
    if host.is_empty() {
        host.push('?');
    }
    let hold = match hold.as_secs() {
        0 => String::new(),
        seconds => format!("+{seconds}"),
    };
    let shown = match title.label {
        // What stands before the name of the lock cannot be read as one.
        Some(label) => label.replace(LOCK, " ?"),
        None => program(title.command),
    };
    let mut label = format!(
        "pglock {}@{host} {}{hold} {}",
        std::process::id(),
        sys::wall_clock(),
        printable(&shown)
    );
    label.truncate(LONGEST);
    let lock = title.lock.map(|name| format!("{LOCK}{name}"));
    let fits = |lock: &String| label.len() + lock.len() <= LONGEST && printable(lock) == *lock;
    if let Some(lock) = lock.filter(fits) {
        label.push_str(&lock);
    }
    label
}

/// The last part of the program's path. Its first word may hold more by mistake: a whole line in quotes, `NAME=value`, a
/// connection string; all of that is left off.
fn program(command: &[OsString]) -> String {
    let word = command.first().map(|word| word.to_string_lossy());
    let word = word.unwrap_or_default();
    let path = word.split(char::is_whitespace).next().unwrap_or_default();
    let name = secrets::before_marks(path).rsplit('/').next();
    name.unwrap_or_default().to_owned()
}

/// The server lets only these characters through.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
        .collect()
}

/// Whether a session goes by a label, and not by a name of the user's choice.
pub fn is_label(connection: &Connection) -> bool {
    let name = connection.reported(c"application_name");
    name.is_some_and(|name| parse(&name).is_some())
}

/// Reads a label, in the very form that [`label`] gives it; `None` for a session that is not pglock's, or that has a name of the
/// user's choice.
pub fn parse(label: &str) -> Option<Label<'_>> {
    let (process, rest) = label.strip_prefix("pglock ")?.split_once(' ')?;
    let (pid, host) = process.split_once('@')?;
    let (times, rest) = rest.split_once(' ')?;
    let (program, lock) = match rest.split_once(LOCK) {
        Some((program, lock)) => (program, Some(lock)),
        None => (rest, None),
    };
    let (since, hold) = match times.split_once('+') {
        Some((since, hold)) => (since, Some(number(hold)?)),
        None => (times, None),
    };
    let since = number(since).filter(|since| TIMES.contains(since))?;
    let until = match hold {
        Some(hold) => Some(
            since
                .checked_add(hold)
                .filter(|until| TIMES.contains(until))?,
        ),
        None => None,
    };
    let is_pid = number(pid).is_some_and(|pid| i32::try_from(pid).is_ok());
    let is_host = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic());
    (is_pid && is_host).then_some(Label {
        pid,
        host,
        since,
        until,
        program,
        lock,
    })
}

/// A number above 0, without a sign and without zeros before it.
fn number(text: &str) -> Option<i64> {
    let is_plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_can_be_read_again() {
        let command = ["/opt/backup.sh".into(), "--all".into()];
        let title = Title {
            command: &command,
            label: None,
            lock: None,
        };
        for (hold, expected) in [
            (0, None),
            (1, Some(1)),
            (u32::MAX, Some(i64::from(u32::MAX))),
        ] {
            let text = label(title, Duration::from_secs(hold.into()));
            let read = parse(&text).unwrap();
            assert_eq!(read.pid, std::process::id().to_string());
            assert_eq!((read.program, read.lock), ("backup.sh", None));
            assert_eq!(read.until.map(|until| until - read.since), expected);
        }
        for (given, name, shown, lock) in [
            ("job", "a", "job", Some("a")),
            ("the job", "a =b", "the job", Some("a =b")),
            ("a =b", "c", "a ?b", Some("c")),
            ("job", "é", "job", None),
            ("job", "a\nb", "job", None),
            ("job", &"x".repeat(60), "job", None),
            ("é\n", "a", "??", Some("a")),
        ] {
            let title = Title {
                label: Some(given),
                lock: Some(name),
                ..title
            };
            let text = label(title, Duration::ZERO);
            let read = parse(&text).unwrap();
            assert_eq!((read.program, read.lock), (shown, lock), "{text}");
        }
    }

    #[test]
    fn a_label_fits_and_is_printable() {
        let title = Title {
            command: &["ü".repeat(100).into()],
            label: None,
            lock: Some("a"),
        };
        let label = label(title, Duration::ZERO);
        assert_eq!(label.len(), LONGEST);
        assert!(label.ends_with('?'));
        assert!(parse(&label).is_some());
    }

    #[test]
    fn of_the_command_a_label_has_the_name_of_the_program_alone() {
        for (word, name) in [
            ("backup.sh", "backup.sh"),
            ("/usr/local/bin/backup.sh", "backup.sh"),
            ("./migrate", "migrate"),
            ("../a/b_c-d+1.2", "b_c-d+1.2"),
            ("sauvegarde-été", "sauvegarde-été"),
            ("/", ""),
            ("", ""),
            ("mysqldump -phunter2 db", "mysqldump"),
            ("/usr/bin/mysqldump -p/hunter2", "mysqldump"),
            ("sh\t-c\nhunter2", "sh"),
            ("PGPASSWORD=hunter2", "PGPASSWORD"),
            ("PGPASSWORD=/hunter2", "PGPASSWORD"),
            ("postgresql://me:hun/ter2@h/db", "postgresql"),
            ("me:hunter2@h/db", "me"),
            ("me@hunter2", "me"),
            ("host;password=hunter2", "host"),
        ] {
            let command = [word.into(), "--password".into(), "hunter2".into()];
            assert_eq!(program(&command), name, "{word:?}");
        }
        assert_eq!(program(&[]), "");
    }

    #[test]
    fn other_names_are_not_labels() {
        for name in [
            "",
            "psql",
            "pglock",
            "pglock 1@h",
            "pglock 1@h now x",
            "pglock 1@h 1800000000",
            "pglock  1@h 1800000000 x",
            "pglock 0@h 1800000000 x",
            "pglock -1@h 1800000000 x",
            "pglock +1@h 1800000000 x",
            "pglock 01@h 1800000000 x",
            "pglock 2147483648@h 1800000000 x",
            "pglock one@h 1800000000 x",
            "pglock @h 1800000000 x",
            "pglock 1@ 1800000000 x",
            "pglock 1@hö 1800000000 x",
            "pglock 1@h\t 1800000000 x",
            "pglock 1@h 67768036191676799 x",
            "pglock 1@h 9223372036854775807 x",
            "pglock 1@h 9223372036854775808 x",
            "pglock 1@h 253402300800 x",
            "pglock 1@h 946684799 x",
            "pglock 1@h 0 x",
            "pglock 1@h -1800000000 x",
            "pglock 1@h +1800000000 x",
            "pglock 1@h 01800000000 x",
            "pglock 1@h  x",
            "pglock 1@h 1800000000+ x",
            "pglock 1@h 1800000000+0 x",
            "pglock 1@h 1800000000+-1 x",
            "pglock 1@h 1800000000+1+1 x",
            "pglock 1@h +1 x",
            "pglock 1@h 1800000000+251602214401 x",
            "pglock 1@h 1800000000+9223372036854775807 x",
        ] {
            assert_eq!(parse(name), None, "{name:?}");
        }
        for name in [
            "pglock 1@h 946684800 x",
            "pglock 2147483647@web-07.example.com 1800000000 ",
            "pglock 1@h 1800000000 a b  c",
            "pglock 1@h 1800000000+251602214400 x",
        ] {
            assert!(parse(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn every_time_of_a_label_is_one_of_the_calendar() {
        for time in [TIMES.start(), TIMES.end()] {
            let shown = sys::local_time(*time);
            assert_eq!(shown.len(), "2018/09/05 11:17:39".len(), "{shown}");
        }
    }
}
