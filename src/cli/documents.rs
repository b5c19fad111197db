//! The documents are held against the tables of flags and of exit statuses: a row that is in only one of them is a fault, and so
//! is a type or a default that is not the same.

use std::collections::BTreeMap;

use crate::cli::flags::{FLAGS, Flag, Id, ValueType};
use crate::cli::help::{help, synopsis};
use crate::cli::man::man;
use crate::exit::STATUSES;

const README: &str = include_str!("../../README.md");
const MANUAL: &str = include_str!("../../doc/manual.md");

/// The cells of the table under a heading of the README, but for its head.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, below) = README
        .split_once(&format!("\n## {heading}\n"))
        .expect("the heading");
    let rows = below.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells = row.trim_matches('|').split(" |");
        cells.map(str::trim).collect()
    })
    .collect()
}

/// The words of a text that stand between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The default of a flag as the README writes it, where what none says is written too.
fn default(flag: &Flag) -> String {
    match (&flag.default, flag.value, flag.id) {
        (Some(default), _, _) => default.to_string(),
        (None, _, Id::Wait) => "0".to_owned(),
        // These ask for something else than a run.
        (None, _, Id::Status | Id::Help | Id::Version) => String::new(),
        (None, ValueType::Switch, _) => "off".to_owned(),
        (None, _, _) => String::new(),
    }
}

#[test]
fn the_readme_has_each_flag_with_its_type_and_default_and_no_other() {
    let mut written = BTreeMap::new();
    for row in table("Flags") {
        assert!(!row[2].is_empty(), "{row:?} does not say what it means");
        for flag in quoted(row[0]) {
            let before = written.insert(flag.to_owned(), row[1].to_owned());
            assert_eq!(before, None, "{flag} is there twice");
        }
    }
    let mut known = BTreeMap::new();
    for flag in FLAGS {
        known.insert(synopsis(flag), default(flag));
        if let Some(letter) = flag.short {
            known.insert(format!("-{letter}"), default(flag));
        }
    }
    assert_eq!(written, known);
}

#[test]
fn the_readme_has_each_exit_status_and_no_other() {
    let written: Vec<_> = table("Exit status")
        .into_iter()
        .map(|row| (row[0].replace('`', ""), row[1].to_owned()))
        .collect();
    let known: Vec<_> = STATUSES
        .iter()
        .map(|row| (row.status.to_owned(), row.when.to_owned()))
        .collect();
    assert_eq!(written, known);
}

#[test]
fn the_help_and_the_man_page_have_each_flag_and_exit_status() {
    let help = help().split_whitespace().collect::<Vec<_>>().join(" ");
    let man = man().replace("\\-", "-");
    for flag in FLAGS {
        let in_help = format!("{} {}", synopsis(flag), flag.help);
        assert!(help.contains(&in_help), "--{}", flag.name);
        let in_man = format!("\\fB--{}\\fR", flag.name);
        let entry = man.split(".TP\n").find(|entry| {
            let head = entry.lines().next().unwrap_or_default();
            head.contains(&in_man) && head.contains(flag.type_word())
        });
        let entry = entry.unwrap_or_else(|| panic!("--{} is not in the man page", flag.name));
        assert!(entry.contains(flag.help), "{entry}");
        for word in flag.words() {
            assert!(entry.contains(word), "{word}: {entry}");
        }
        if let Some(default) = &flag.default {
            assert!(
                entry.contains(&format!("The default is {default}.")),
                "{entry}"
            );
        }
        assert_eq!(entry.contains(&flag.variable()), flag.has_variable());
    }
    for row in STATUSES {
        assert!(help.contains(row.in_help), "{}", row.in_help);
        let head = format!(".TP\n\\fB{}\\fR\n", row.status);
        assert!(man.contains(&head), "{}", row.status);
    }
}

#[test]
fn the_man_page_has_the_chapters_of_the_manual_and_no_sign_of_its_form() {
    let page = man();
    for title in [
        "ENVIRONMENT",
        "THE COMMAND",
        "SIGNALS",
        "LEASE",
        "LOCKS",
        "SERVERS",
        "SECURITY",
        "OUTPUT",
        "LIMITS",
        "FILES",
        "EXAMPLES",
    ] {
        assert!(page.contains(&format!("\n.SH {title}\n")), "{title}");
    }
    for line in page.lines() {
        // A word of code that is broken over two lines is not seen as one.
        let is_left = ["`", "**", "]("].iter().any(|sign| line.contains(sign));
        let is_left = is_left || line.starts_with('|');
        assert!(!is_left, "{line}");
        assert!(line.is_ascii(), "{line}");
    }
    assert_eq!(
        page.matches("\n.nf\n").count(),
        page.matches("\n.fi\n").count()
    );
}

#[test]
fn the_manual_speaks_of_flags_that_there_are() {
    let words = MANUAL.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
    let flags = words.filter_map(|word| word.strip_prefix("--"));
    for name in flags.filter(|name| !name.is_empty() && !name.starts_with('-')) {
        assert!(FLAGS.iter().any(|flag| flag.name == name), "--{name}");
    }
}

/// The lines of the blocks of code of a document, but for what is shown as printed.
fn code(document: &str) -> impl Iterator<Item = &str> {
    let blocks = document.split("```").skip(1).step_by(2);
    let blocks = blocks.filter(|block| !block.starts_with('\n'));
    blocks.flat_map(|block| block.lines().skip(1))
}

#[test]
fn every_example_names_its_lock() {
    let mut count = 0;
    for line in code(README).chain(code(MANUAL)) {
        let words = line.split([' ', '"', ',', '[', '/']);
        if !words.clone().any(|word| word == "pglock") || line.contains("COPY") {
            continue;
        }
        count += 1;
        let mut words = words;
        let names = words.any(|word| ["--lockname", "--lockid", "--lockkey"].contains(&word));
        assert!(names, "{line}");
    }
    assert!(count > 10, "{count} examples");
}

#[test]
fn what_comes_before_the_reference_is_short() {
    let (above, _) = README.split_once("\n# Reference\n").expect("a reference");
    let words = above.split_whitespace();
    let words = words.filter(|word| word.contains(char::is_alphanumeric));
    let count = words.count();
    assert!(count <= 2500, "{count} words");
}

#[test]
fn the_version_heads_the_changelog_with_its_day() {
    let changes = include_str!("../../CHANGELOG.md");
    let heads: Vec<_> = changes
        .lines()
        .filter(|line| line.starts_with("## "))
        .collect();
    let head = heads.first().expect("a version");
    let day = head.strip_prefix(concat!("## ", env!("CARGO_PKG_VERSION"), " - "));
    let day = day.unwrap_or_else(|| panic!("{head}"));
    let numbers: Vec<&str> = day.split('-').collect();
    assert_eq!(
        numbers.iter().map(|n| n.len()).collect::<Vec<_>>(),
        [4, 2, 2]
    );
    assert!(
        numbers.concat().bytes().all(|byte| byte.is_ascii_digit()),
        "{day}"
    );
}
