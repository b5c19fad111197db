//! The man page, made from the tables of flags and of exit statuses, and from the manual, which is there to be read on its own too.

use crate::cli::flags::{FLAGS, GROUPS};
use crate::exit::STATUSES;

/// What there is to say beyond the tables: `doc/manual.md`, as the build has translated it.
const MANUAL: &str = include_str!(concat!(env!("OUT_DIR"), "/manual.man"));

/// The man page, in the macros of man(7).
pub fn man() -> String {
    let escape = |text: &str| text.replace('\\', "\\e").replace('-', "\\-");
    let package = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".\\\" Made from the tables of flags and of exit statuses, and from the manual.\n.TH PGLOCK 1 \"\" \"pglock {package}\" \"User Commands\"\n.nh\n.ad l\n"
    );
    page.push_str(
        ".SH NAME
pglock \\- run a command while holding a PostgreSQL advisory lock
.SH SYNOPSIS
.B pglock
.RI [ flags ]
.RB [ \\-\\- ]
.I command
.RI [ arg \" ...]\"
.br
.B pglock \\-\\-status
.RI [ flags ]
.SH DESCRIPTION
.B pglock
connects to a PostgreSQL server, takes an advisory lock, runs
.I command
while it holds the lock, and gives the lock up.
Of many invocations that want the same lock at once, one runs its command.
The others skip theirs and exit with status 0, unless they are told to wait.
.PP
The lock is a lease: the server gives it up when it has had no sign of
.B pglock
for the time of
.BR \\-\\-ttl ,
and
.B pglock
stops the command before that when it has had no sign of the server.
.PP
Flags end at the first word that is not a flag.
A number of seconds may have a unit: 90s, 5m, 2h.
.SH OPTIONS
",
    );
    for (group, title) in GROUPS {
        if !title.is_empty() {
            page.push_str(&format!(".SS {title}\n"));
        }
        for flag in FLAGS.iter().filter(|flag| flag.group == *group) {
            let short = flag
                .short
                .map_or(String::new(), |letter| format!("\\fB\\-{letter}\\fR, "));
            let value = match flag.type_word() {
                "" => String::new(),
                word => format!(" \\fI{word}\\fR"),
            };
            page.push_str(&format!(
                ".TP\n{short}\\fB\\-\\-{}\\fR{value}\n{}\n",
                escape(flag.name),
                escape(flag.help)
            ));
            let words = flag.words();
            if !words.is_empty() {
                page.push_str(&format!("One of {}.\n", escape(&words.join(", "))));
            }
            if let Some(default) = &flag.default {
                let default = escape(&default.to_string());
                page.push_str(&format!("The default is {default}.\n"));
            }
            if flag.has_variable() {
                page.push_str(&format!("Variable:\n.BR {} .\n", flag.variable()));
            }
        }
    }
    page.push_str(".SH EXIT STATUS\n");
    for row in STATUSES {
        page.push_str(&format!(
            ".TP\n\\fB{}\\fR\n{}.\n",
            escape(row.status),
            escape(&capital(row.when)).replace("pglock", "\\fBpglock\\fR")
        ));
    }
    page.push_str(MANUAL);
    page.push_str(
        ".SH SEE ALSO
.BR psql (1),
.BR flock (1),
.BR timeout (1)
",
    );
    page
}

/// A text with a capital at its beginning, unless that is the name of the program.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if !text.starts_with("pglock") => {
            first.to_ascii_uppercase().to_string() + letters.as_str()
        }
        _ => text.to_owned(),
    }
}
