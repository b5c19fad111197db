//! What an unknown flag was meant to be. Who comes from psql, flock or consul types theirs; and a flag that is merely unknown
//! leaves a job undone until somebody has read the help.

use crate::cli::flags::FLAGS;
use crate::cli::spelling::{nearest, plain};
use crate::cli::variables::called_here;

/// Of flags that others have, without their dashes, what they are here: a flag, or a sentence.
const ELSEWHERE: &[(&str, &str)] = &[
    // psql
    ("h", "--host"),
    ("U", "--user"),
    ("p", "--port"),
    ("d", "--database"),
    ("W", PASSWORD),
    // flock
    ("w", "--wait"),
    ("timeout", "--wait"),
    ("n", NO_WAIT),
    ("nb", NO_WAIT),
    ("nonblock", NO_WAIT),
    ("nonblocking", NO_WAIT),
    ("E", "--conflict-exit-code"),
    ("s", "--shared"),
    ("x", EXCLUSIVE),
    ("e", EXCLUSIVE),
    ("exclusive", EXCLUSIVE),
    ("c", SHELL),
    // consul
    ("shell", SHELL),
    ("name", "--lockname"),
    ("try", "--wait"),
    // many
    ("q", "--quiet"),
    ("v", "--verbose"),
];

const PASSWORD: &str = "the password goes to PGLOCK_PASS or into a password file";
const NO_WAIT: &str = "pglock does not wait unless it is told to; consul's -n is --slots";
const EXCLUSIVE: &str = "a lock is exclusive unless it is --shared";
const SHELL: &str = "a line of shell goes as pglock sh -c '...'";

/// What was meant by a flag, by its letter or its name without the dashes: the end of a line that says that there is none
/// such.
pub fn meant(given: &str) -> Option<String> {
    let elsewhere = ELSEWHERE.iter().find(|(other, _)| *other == given);
    let meant = match elsewhere {
        Some((_, meant)) => (*meant).to_owned(),
        // A letter is too short to be misspelt.
        None if given.chars().count() < 2 => return None,
        None => likely(&plain(given))?,
    };
    Some(match meant.starts_with("--") && !meant.contains(' ') {
        true => format!("did you mean {meant}?"),
        false => meant,
    })
}

/// A flag whose name is like this one, in the form of [`plain`].
fn likely(given: &str) -> Option<String> {
    match called_here(given) {
        Some("PASS") => return Some(PASSWORD.to_owned()),
        Some(meant) => return Some(format!("--{}", meant.to_lowercase().replace('_', "-"))),
        None => {}
    }
    let known = FLAGS.iter();
    nearest(
        given,
        known.map(|flag| (plain(flag.name), format!("--{}", flag.name))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_call_a_flag_is_called_as_it_is_here() {
        for (other, here) in [
            ("h", "--host"),
            ("U", "--user"),
            ("p", "--port"),
            ("d", "--database"),
            ("W", "PGLOCK_PASS"),
            ("dbname", "--database"),
            ("username", "--user"),
            ("password", "PGLOCK_PASS"),
            ("w", "--wait"),
            ("n", "--slots"),
            ("E", "--conflict-exit-code"),
            ("c", "sh -c"),
            ("s", "--shared"),
            ("timeout", "--wait"),
            ("shell", "sh -c"),
            ("name", "--lockname"),
            ("wiat", "--wait"),
            ("LOCKID", "--lockid"),
            ("lock-id", "--lockid"),
            ("lock", "--lockname"),
            ("key", "--lockkey"),
            ("lock_key", "--lockkey"),
            ("conflict-exitcode", "--conflict-exit-code"),
            ("hlep", "--help"),
            ("quiet", "--quiet"),
            ("db", "--database"),
        ] {
            let said = meant(other);
            assert!(
                said.as_ref().is_some_and(|said| said.contains(here)),
                "{other}: {said:?}"
            );
        }
        for unknown in ["", "z", "bogus", "frobnicate", "ü"] {
            assert_eq!(meant(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn each_flag_that_is_named_is_there() {
        for (_, meant) in ELSEWHERE {
            for word in meant
                .split([' ', ','])
                .filter(|word| word.starts_with("--"))
            {
                let name = &word[2..];
                assert!(FLAGS.iter().any(|flag| flag.name == name), "{word}");
            }
        }
    }
}
