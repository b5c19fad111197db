//! The help text, made from the tables of flags and of exit statuses.

use crate::cli::flags::{FLAGS, Flag, GROUPS, Value};
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
            text.push_str(&format!(
                "{short}{synopsis:width$}   {}{default}\n",
                flag.help
            ));
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
    text.push_str(&broken(&format!("Exit status: {statuses}.")));
    text
}

/// A flag's name and type word, as in `--wait uint32`.
pub fn synopsis(flag: &Flag) -> String {
    format!("--{} {}", flag.name, flag.type_word())
        .trim_end()
        .to_owned()
}

/// A text in lines that are no longer than [`WIDTH`].
fn broken(text: &str) -> String {
    let mut broken = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        if column > 0 && column + 1 + word.len() > WIDTH {
            broken.push('\n');
            column = 0;
        } else if column > 0 {
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
        assert_eq!(broken(&fits), format!("{fits}\n"));
        assert_eq!(broken(&format!("{fits} y")), format!("{fits}\ny\n"));
        let long = "y".repeat(WIDTH + 1);
        assert_eq!(broken(&long), format!("{long}\n"));
    }
}
