//! The name that a session of pglock's goes by at the server, its `application_name`: everybody may see it in
//! `pg_stat_activity`, other than most that stands there. `pglock PID@HOST SINCE COMMAND`, where SINCE is in
//! seconds since 1970: since when it has waited for the lock or held it.

use std::ffi::OsString;

use crate::pq::Connection;
use crate::sys;

/// The server cuts longer names off.
const LONGEST: usize = 63;
/// How much of the host's name is shown, to leave room for the command.
const LONGEST_HOST: usize = 20;

/// What a label says.
#[derive(Debug, PartialEq, Eq)]
pub struct Label<'a> {
    /// The process id of the pglock.
    pub pid: &'a str,
    /// The host that it runs on.
    pub host: &'a str,
    /// Since when it waits or holds, in seconds since 1970 by its host's clock.
    pub since: i64,
    /// The beginning of its command.
    pub command: &'a str,
}

/// The label of this pglock, from now on.
pub fn label(command: &[OsString]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let mut host = printable(&sys::host_name());
    host.truncate(LONGEST_HOST);
    let mut label = format!(
        "pglock {}@{host} {} {}",
        std::process::id(),
        sys::wall_clock(),
        printable(&words.join(" "))
    );
    label.truncate(LONGEST);
    label
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

/// Reads a label; `None` for a session that is not pglock's, or that has a name of the user's choice.
pub fn parse(label: &str) -> Option<Label<'_>> {
    let (process, rest) = label.strip_prefix("pglock ")?.split_once(' ')?;
    let (pid, host) = process.split_once('@')?;
    let (since, command) = rest.split_once(' ')?;
    Some(Label {
        pid,
        host,
        since: since.parse().ok()?,
        command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_can_be_read_again() {
        let label = label(&["backup.sh".into(), "--all".into()]);
        let read = parse(&label).unwrap();
        assert_eq!(read.pid, std::process::id().to_string());
        assert_eq!(read.command, "backup.sh --all");
    }

    #[test]
    fn a_label_fits_and_is_printable() {
        let label = label(&["ü".repeat(100).into()]);
        assert_eq!(label.len(), LONGEST);
        assert!(label.ends_with('?'));
        assert!(parse(&label).is_some());
    }

    #[test]
    fn other_names_are_not_labels() {
        for name in ["", "psql", "pglock", "pglock 1@h", "pglock 1@h now x"] {
            assert_eq!(parse(name), None, "{name:?}");
        }
    }
}
