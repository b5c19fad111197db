//! What must not be shown. A password is known where it is given as one; but it is also pasted to where it does not belong, in the form
//! of another library, or as a value of the wrong variable, and from there gets into messages of libpq and of servers.
//! So what may hold one is refused, or is shown as dots.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stands in the place of what is not shown.
pub const HIDDEN: &str = "...";

/// What connection strings are made of, in any library's form.
const MARKS: [char; 4] = ['@', ':', ';', '='];
/// What passwords are called in them.
const PASSWORDS: [&str; 3] = ["password", "passwd", "pwd"];
/// What messages have around a value, in whatever language.
const QUOTES: [char; 15] = [
    '"', '\'', '`', '«', '»', '‹', '›', '„', '“', '”', '‚', '‘', '’', '「', '」',
];
/// The settings whose values are names, to be shown unless they look like more than that.
const NAMES: [&str; 11] = [
    "appname",
    "application_name",
    "client_encoding",
    "clientencoding",
    "database",
    "dbname",
    "fallback_application_name",
    "host",
    "hostaddr",
    "service",
    "user",
];
/// A server cuts off what is longer of a name, in bytes, be it in the middle of a character.
const LONGEST_NAME: usize = 63;
/// The shortest text that is looked for also where it is not in quotes.
const SHORTEST: usize = 4;

/// Whether a text may hold a password. An address, or a list of them, does not for its colons.
pub fn is_suspect(text: &str) -> bool {
    text.split(',').any(|part| {
        let lower = part.to_ascii_lowercase();
        let has_word = PASSWORDS.iter().any(|word| lower.contains(word));
        has_word || part.contains(MARKS) && !is_address(part)
    })
}

/// Whether it is an address, with the zone that one of IPv6 may have.
pub fn is_address(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, ""));
    address.parse::<IpAddr>().is_ok() && !zone.contains(MARKS)
}

/// Whether it is more than a name, and probably a connection string or a part of one.
pub fn is_string(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let has = |one: char, then: char| {
        let found = text.split_once(one);
        found.is_some_and(|(_, rest)| rest.contains(then))
    };
    let sets_password = |word: &&str| {
        let found = lower.split_once(*word);
        found.is_some_and(|(_, rest)| rest.trim_start().starts_with(['=', ':']))
    };
    text.contains("://")
        || [';', ',', '&'].iter().any(|between| has(*between, '='))
        || [(':', '@'), ('/', '@'), ('@', '/')]
            .iter()
            .any(|(one, then)| has(*one, *then))
        || PASSWORDS.iter().chain(&["pass"]).any(sets_password)
}

/// The text, unless it may hold a password.
pub fn shown(text: &str) -> &str {
    if is_suspect(text) { HIDDEN } else { text }
}

/// As much of a word as comes before what may be a password.
pub fn before_marks(word: &str) -> &str {
    word.split(MARKS).next().unwrap_or_default()
}

/// A text to be hidden in what others say.
struct Secret {
    text: String,
    /// Wherever it stands; else only as the whole of what stands in quotes, for it may well be an ordinary word.
    anywhere: bool,
}

/// The longest first, so that none is taken for a part of itself.
#[derive(Default)]
struct Secrets(Vec<Secret>);

/// Those of this process.
static SECRETS: Mutex<Secrets> = Mutex::new(Secrets(Vec::new()));

fn secrets() -> MutexGuard<'static, Secrets> {
    SECRETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes note of a variable, if it is libpq's or pglock's.
pub fn note_variable(name: &OsStr, value: &OsStr) {
    // Most are not.
    if name.as_encoded_bytes().starts_with(b"PG") {
        secrets().note_variable(&name.to_string_lossy(), &value.to_string_lossy());
    }
}

/// Takes note of a setting of libpq's. Such a value is a name, a path, or a word that no message need repeat.
pub fn note_setting(keyword: &str, value: &str) {
    secrets().note_setting(keyword, value);
}

/// This is shown all the same: the name of a user that is also the password, say.
pub fn allow(text: &str) {
    secrets().allow(text);
}

/// What others say, without what is to be hidden.
pub fn mask(text: &str) -> String {
    secrets().mask(text)
}

impl Secrets {
    fn note_variable(&mut self, name: &str, value: &str) {
        match name.strip_prefix("PGLOCK_") {
            Some("PASS") => self.note(value),
            Some("DATABASE" | "HOST" | "USER" | "PORT" | "SSLMODE") if is_suspect(value) => {
                self.note(value);
            }
            Some(_) => {}
            None => {
                if let Some(name) = name.strip_prefix("PG") {
                    self.note_setting(&name.to_ascii_lowercase(), value);
                }
            }
        }
    }

    fn note_setting(&mut self, keyword: &str, value: &str) {
        let is_password = ["password", "sslpassword"].contains(&keyword);
        let is_word = !NAMES.contains(&keyword) && !value.contains('/');
        if is_password || is_word || is_suspect(value) {
            self.note(value);
        }
    }

    /// From now on this is hidden in what others say, and so is each part of it that may hold a password, and what a server
    /// leaves of it.
    fn note(&mut self, text: &str) {
        let parts = text.split_whitespace().filter(|part| is_suspect(part));
        for part in [text].into_iter().chain(parts) {
            self.add(part);
            let bytes = &part.as_bytes()[..LONGEST_NAME.min(part.len())];
            self.add(&String::from_utf8_lossy(bytes));
        }
    }

    fn add(&mut self, text: &str) {
        if text.is_empty() || self.0.iter().any(|secret| secret.text == text) {
            return;
        }
        let anywhere =
            is_suspect(text) && text.len() >= SHORTEST && text.contains(char::is_alphanumeric);
        let place = self
            .0
            .partition_point(|other| other.text.len() > text.len());
        let text = text.to_owned();
        self.0.insert(place, Secret { text, anywhere });
    }

    fn allow(&mut self, text: &str) {
        self.0
            .retain(|secret| secret.anywhere || secret.text != text);
    }

    fn mask(&self, text: &str) -> String {
        let text = text.to_owned();
        self.0.iter().fold(text, |text, secret| secret.mask(&text))
    }
}

impl Secret {
    fn mask(&self, text: &str) -> String {
        let mut masked = String::new();
        let mut rest = text;
        while let Some(place) = rest.find(&self.text) {
            let (before, found) = rest.split_at(place);
            masked.push_str(before);
            let after = &found[self.text.len()..];
            if self.stands_alone(&masked, after) {
                masked.push_str(HIDDEN);
                rest = after;
            } else {
                let next = found.chars().next().map_or(1, char::len_utf8);
                masked.push_str(&found[..next]);
                rest = &found[next..];
            }
        }
        masked + rest
    }

    /// Whether it is not a part of something else that stands there.
    fn stands_alone(&self, before: &str, after: &str) -> bool {
        if self.anywhere {
            let begins = self.text.starts_with(char::is_alphanumeric);
            let ends = self.text.ends_with(char::is_alphanumeric);
            let is_glued = begins && before.ends_with(char::is_alphanumeric)
                || ends && after.starts_with(char::is_alphanumeric);
            !is_glued
        } else {
            before.trim_end().ends_with(QUOTES) && after.trim_start().starts_with(QUOTES)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_hold_a_password_is_told_from_names_and_addresses() {
        for suspect in [
            "me:hunter2",
            "me@host",
            "me:hunter2@host/db",
            "db;password=hunter2",
            "key=value",
            "Password hunter2",
            "PWD hunter2",
            "::1,me:hunter2@h",
            "fe80::1%me:hunter2",
            "tcp:hunter2",
        ] {
            assert!(is_suspect(suspect), "{suspect}");
            assert_eq!(shown(suspect), HIDDEN);
        }
        for name in [
            "",
            "postgres",
            "my-app_1.prod",
            "db.example.com",
            "größe",
            "a b",
            "/var/run/postgresql",
            "127.0.0.1",
            "::1",
            "127.0.0.1,::1,db",
            "fe80::1%br-lan.7",
            "5432,5433",
        ] {
            assert!(!is_suspect(name), "{name}");
            assert_eq!(shown(name), name);
        }
    }

    #[test]
    fn a_string_of_whatever_library_is_told_from_a_name() {
        for string in [
            "jdbc:postgresql://h/db",
            "me:hunter2@h",
            "hunter2@h/db",
            "me/hunter2@h",
            "h;Password=hunter2",
            "me,pass=hunter2",
            "db&user=me",
            "Password = hunter2",
            "pwd:hunter2",
            "u:p@ss",
        ] {
            assert!(is_string(string), "{string}");
        }
        for name in [
            "me@example.com",
            "a:b",
            "a=b",
            "h;",
            "password",
            "/tmp/a",
            "passengers",
        ] {
            assert!(!is_string(name), "{name}");
        }
    }

    #[test]
    fn a_secret_is_hidden_where_it_stands_alone() {
        let mut secrets = Secrets::default();
        secrets.note_variable("PGLOCK_PASS", "hunter2");
        secrets.note_variable("PGSSLMODE", "require");
        secrets.note_setting("user", "me:swordfish");
        secrets.note_setting("dbname", &format!("{}@x", "é".repeat(40)));
        for (said, masked) in [
            ("invalid value: \"hunter2\"", "invalid value: \"...\""),
            ("valeur « hunter2 » fausse", "valeur « ... » fausse"),
            ("„hunter2“ ist falsch", "„...“ ist falsch"),
            ("no hunter2 here", "no hunter2 here"),
            ("\"hunter22\" \"hunter2\"", "\"hunter22\" \"...\""),
            ("sslmode \"require\" is", "sslmode \"...\" is"),
            ("they require it", "they require it"),
            (
                "role \"me:swordfish\" does not exist",
                "role \"...\" does not exist",
            ),
            ("no me:swordfish", "no ..."),
            ("some:swordfish", "some:swordfish"),
            (
                "database \"ééééééééééééééééééééééééééééééé\u{fffd}\" does not exist",
                "database \"...\" does not exist",
            ),
            ("", ""),
        ] {
            assert_eq!(secrets.mask(said), masked);
        }
    }

    #[test]
    fn a_name_that_is_shown_anyway_is_not_hidden_for_being_the_password_too() {
        let mut secrets = Secrets::default();
        secrets.note_variable("PGPASSWORD", "postgres");
        assert_eq!(secrets.mask("user \"postgres\""), "user \"...\"");
        secrets.allow("postgres");
        assert_eq!(secrets.mask("user \"postgres\""), "user \"postgres\"");
    }

    #[test]
    fn names_paths_and_addresses_are_not_secrets() {
        let mut secrets = Secrets::default();
        for (name, value) in [
            ("PGHOST", "db"),
            ("PGHOSTADDR", "::1"),
            ("PGUSER", "me"),
            ("PGDATABASE", "app"),
            ("PGSSLROOTCERT", "/etc/ca.pem"),
            ("PGLOCK_LOCKNAME", "backup:app"),
            ("PGLOCK_WAIT", "x"),
            ("PATH", "/bin:/usr/bin"),
        ] {
            secrets.note_variable(name, value);
            let said = format!("\"{value}\"");
            assert_eq!(secrets.mask(&said), said);
        }
    }
}
