//! What is asked of pglock, and how it is described: the command line, its help, its man page and its completions.

mod completions;
pub mod config;
#[cfg(test)]
mod documents;
mod durations;
pub mod flags;
pub mod help;
mod hints;
mod man;
#[cfg(test)]
mod roff;
mod spelling;
pub mod values;
mod variables;

use flags::Asset;

/// What `--generate` prints.
pub fn generate(asset: Asset) -> String {
    match asset {
        Asset::ManPage => man::man(),
        Asset::BashCompletions => completions::bash(),
        Asset::ZshCompletions => completions::zsh(),
        Asset::FishCompletions => completions::fish(),
    }
}
