//! Durations of the command line: `90`, `90s`, `5m`, `2h`. Those who read and write configuration of other programs are used
//! to more than that: what was meant is said, and not taken, for a value that two programs read differently is a trap.

use crate::cli::values::whole_number;

/// The units, as they are taken, with their seconds and with what they are called elsewhere.
const UNITS: [(&str, u32, &[&str]); 3] = [
    ("s", 1, &["sec", "secs", "second", "seconds"]),
    ("m", 60, &["min", "mins", "minute", "minutes"]),
    ("h", 3600, &["hr", "hrs", "hour", "hours"]),
];

/// Units that are not taken, in milliseconds.
const OTHERS: [(&str, u64); 4] = [
    ("ms", 1),
    ("d", 86_400_000),
    ("day", 86_400_000),
    ("days", 86_400_000),
];

/// How many seconds a text says.
///
/// # Errors
/// What is wrong with it, and what may have been meant; the end of the sentence that the text begins.
pub fn seconds(text: &str) -> Result<u32, String> {
    if let Some(seconds) = plain(text) {
        return match u32::try_from(seconds) {
            Ok(seconds) => Ok(seconds),
            Err(_) => Err(format!("is more than {} seconds", u32::MAX)),
        };
    }
    const WANTED: &str =
        "is not a whole number of seconds, minutes or hours, such as 90, 90s, 5m or 2h";
    Err(match meant(text) {
        Some(meant) => format!("{WANTED}; did you mean {meant}?"),
        None => WANTED.to_owned(),
    })
}

/// The seconds of a text that is taken, if they are not more than a number has room for.
fn plain(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = &text[digits.len()..];
    let factor = match unit {
        "" => 1,
        unit => UNITS.iter().find(|(name, ..)| *name == unit)?.1,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().unwrap_or(u64::MAX);
    Some(number.saturating_mul(factor.into()))
}

/// What was meant by a text that is not taken, in the form that is: rounded up, for the next whole second is the least that
/// keeps it.
fn meant(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let ends = |word: &str| word.ends_with(|c: char| c.is_ascii_digit());
    let begins = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    if words.windows(2).any(|two| ends(two[0]) && begins(two[1])) {
        return None;
    }
    let mut rest = words.concat().to_lowercase();
    let mut total = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, behind) = rest.split_at(number.unwrap_or(rest.len()));
        let unit = behind.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, behind) = behind.split_at(unit.unwrap_or(behind.len()));
        total += thousandths(number)?
            .checked_mul(factor(unit)?)?
            .div_ceil(1000);
        rest = behind.to_owned();
    }
    let seconds = u32::try_from(total.div_ceil(1000)).ok()?;
    let (unit, factor, _) = UNITS
        .iter()
        .rev()
        .find(|(_, factor, _)| seconds > 0 && seconds % factor == 0)?;
    Some(format!("{}{unit}", seconds / factor))
}

/// A number with a fraction, in thousandths.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let whole = if whole.is_empty() { "0" } else { whole };
    let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
    Some(u64::from(whole_number(whole)?) * 1000 + u64::from(whole_number(&fraction)?))
}

/// The milliseconds of a unit, by whatever name.
fn factor(unit: &str) -> Option<u64> {
    let known = UNITS
        .iter()
        .find(|(name, _, others)| unit == *name || others.contains(&unit) || unit.is_empty());
    let other = OTHERS.iter().find(|(name, _)| *name == unit);
    match known {
        Some((_, seconds, _)) => Some(u64::from(*seconds) * 1000),
        None => other.map(|(_, milliseconds)| *milliseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_minutes_and_hours_are_taken() {
        for (text, expected) in [
            ("0", 0),
            ("007", 7),
            ("10", 10),
            ("10s", 10),
            ("0s", 0),
            ("5m", 300),
            ("2h", 7200),
            ("1193046h", 4_294_965_600),
            ("4294967295", u32::MAX),
            ("4294967295s", u32::MAX),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_too_much_is_said_to_be() {
        for text in [
            "4294967296",
            "4294967296s",
            "71582789m",
            "1193047h",
            "99999999999999999999999",
            "99999999999999999999999h",
        ] {
            let error = seconds(text).unwrap_err();
            assert_eq!(error, "is more than 4294967295 seconds", "{text}");
        }
    }

    #[test]
    fn of_what_is_not_taken_it_is_said_what_may_be_meant() {
        for (text, meant) in [
            ("1.5", Some("2s")),
            ("10 s", Some("10s")),
            (" 10", Some("10s")),
            ("10S", Some("10s")),
            ("1.5m", Some("90s")),
            ("0.5h", Some("30m")),
            (".5h", Some("30m")),
            ("1h30m", Some("90m")),
            ("1h 30m 5s", Some("5405s")),
            ("10sec", Some("10s")),
            ("10 seconds", Some("10s")),
            ("5min", Some("5m")),
            ("3 hours", Some("3h")),
            ("500ms", Some("1s")),
            ("1500 ms", Some("2s")),
            ("1d", Some("24h")),
            ("2 days", Some("48h")),
            ("", None),
            ("abc", None),
            ("s", None),
            ("-1", None),
            ("-5s", None),
            ("+1", None),
            ("1e3", None),
            ("0x10", None),
            ("1.", Some("1s")),
            ("1.2.3", None),
            ("1..2", None),
            ("0.0", None),
            ("1_000", None),
            ("7 7", None),
            ("5w", None),
            ("999999999999h 1s", None),
            ("1193047.0h", None),
            ("\u{661}", None),
            ("1\u{661}s", None),
        ] {
            let error = seconds(text).unwrap_err();
            let said = error.split_once("did you mean ").map(|(_, said)| said);
            let expected = meant.map(|meant| format!("{meant}?"));
            assert_eq!(said, expected.as_deref(), "{text:?}: {error}");
            // What is offered is taken.
            if let Some(meant) = meant {
                assert!(seconds(meant).is_ok(), "{meant}");
            }
        }
    }
}
