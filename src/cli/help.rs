//! The help text, made from the tables of flags and of exit statuses.

use crate::cli::flags::{FLAGS, Flag, GROUPS, Group, Value};
use crate::exit::STATUSES;

/// How long a line of the text may be that is broken here.
const WIDTH: usize = 79;

/// The text of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "pglock runs a command while holding a lock in a PostgreSQL database.
Any concurrent invocations that fail to obtain a lock will not run
the given command and will exit with return code 0.

The flags below can be configured as environment variables with the PGLOCK_ prefix.
PGLOCK_PASS needs to be configured to authenticate to the database.
",
    );
    for (group, title) in GROUPS {
        let flags = || FLAGS.iter().filter(|flag| flag.group == *group);
        let width = flags().map(|flag| synopsis(flag).len()).max().unwrap_or(0);
        text.push('\n');
        if !title.is_empty() {
            text.push_str(&format!("{title}:\n"));
        }
        for flag in flags() {
            let short = flag
                .short
                .map_or("      ".to_owned(), |c| format!("  -{c}, "));
            let default = match &flag.default {
                None => String::new(),
                Some(text @ (Value::Text(_) | Value::Choice(_))) => {
                    format!(" (default {:?})", text.to_string())
                }
                Some(other) => format!(" (default {other})"),
            };
            let synopsis = synopsis(flag);
            let head = format!("{short}{synopsis:width$}   ");
            let sentence = format!("{}{default}", flag.help);
            match group {
                // The Go tool's lines, which are as long as they are.
                Group::Basic => text.push_str(&format!("{head}{sentence}\n")),
                Group::Lock | Group::Lease | Group::Connection | Group::Output => {
                    text.push_str(&broken(&head, &sentence));
                }
            }
        }
    }
    text.push_str(
        "
Usage:
  pglock [flags] [--] command [arg ...]
  pglock --status [flags]

A number of seconds may have a unit: 90s, 5m, 2h.
",
    );
    let statuses: String = STATUSES.iter().map(|row| row.in_help).collect();
    text.push_str(&broken("", &format!("Exit status: {statuses}.")));
    text
}

/// A flag's name and type word, as in `--wait uint32`.
pub fn synopsis(flag: &Flag) -> String {
    format!("--{} {}", flag.name, flag.type_word())
        .trim_end()
        .to_owned()
}

/// A text behind this head, in lines that are no longer than [`WIDTH`]; those after the first begin where the text does.
fn broken(head: &str, text: &str) -> String {
    let mut broken = head.to_owned();
    let mut column = head.len();
    for word in text.split(' ') {
        if column > head.len() && column + 1 + word.len() > WIDTH {
            broken.push('\n');
            broken.push_str(&" ".repeat(head.len()));
            column = head.len();
        } else if column > head.len() {
            broken.push(' ');
            column += 1;
        }
        broken.push_str(word);
        column += word.len();
    }
    broken.push('\n');
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_broken_between_its_words() {
        let word = "x".repeat(WIDTH / 2);
        let fits = format!("{word} {word}");
        assert_eq!(fits.len(), WIDTH);
        assert_eq!(broken("", &fits), format!("{fits}\n"));
        assert_eq!(broken("", &format!("{fits} y")), format!("{fits}\ny\n"));
        let long = "y".repeat(WIDTH + 1);
        assert_eq!(broken("", &long), format!("{long}\n"));
        assert_eq!(broken("  --x  ", "a b"), "  --x  a b\n");
        let rest = &fits[7..];
        let expected = format!("  --x  {rest}\n       y\n");
        assert_eq!(broken("  --x  ", &format!("{rest} y")), expected);
    }
}
