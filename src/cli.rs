//! What is asked of pglock, and how it is described: the command line, its man page and its completions.

mod completions;
pub mod config;
pub mod flags;
pub mod help;
mod man;
mod variables;

/// What `--generate` prints for this word; `None` for one that the table of flags does not have.
pub fn generate(what: &str) -> Option<String> {
    match what {
        "man" => Some(man::man()),
        "bash" => Some(completions::bash()),
        "zsh" => Some(completions::zsh()),
        "fish" => Some(completions::fish()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{Flag, Id, Value};

    #[test]
    fn all_that_can_be_generated_is() {
        let Value::Choice(words) = Flag::of(Id::Generate).value else {
            panic!("not a choice");
        };
        for word in words {
            assert!(
                generate(word).is_some_and(|text| text.contains("lockname")),
                "{word}"
            );
        }
    }
}
