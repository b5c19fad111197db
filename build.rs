//! Tells the program its version as git has it, and writes the man page and the shells' completions from
//! the table of flags: into cargo's output folder, or into the folder that `PGLOCK_ASSET_DIR` names.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, io};

#[path = "src/flags.rs"]
#[allow(dead_code)]
mod flags;

use flags::{FLAGS, Flag, GROUPS, Value};

fn main() -> io::Result<()> {
    for changed in ["build.rs", "src/flags.rs", ".git/HEAD", ".git/refs"] {
        println!("cargo::rerun-if-changed={changed}");
    }
    println!("cargo::rerun-if-env-changed=PGLOCK_ASSET_DIR");
    println!("cargo::rustc-env=PGLOCK_BUILD_VERSION={}", version());

    let folder = env::var_os("PGLOCK_ASSET_DIR").or_else(|| env::var_os("OUT_DIR"));
    let folder = PathBuf::from(folder.unwrap_or_default());
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("pglock.1"), man())?;
    fs::write(folder.join("pglock.bash"), bash())?;
    fs::write(folder.join("_pglock"), zsh())?;
    fs::write(folder.join("pglock.fish"), fish())
}

/// `0.1.0`, or `0.1.0 (v0.1.0-3-gabc1234)` between releases; as git has it, where there is a git to ask.
fn version() -> String {
    let package = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    // Unpacked inside of another repository, it would be that one's version.
    let described = fs::exists(".git")
        .unwrap_or(false)
        .then(|| {
            Command::new("git")
                .args(["describe", "--tags", "--always", "--dirty"])
                .output()
        })
        .and_then(Result::ok)
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty() && *text != format!("v{package}"));
    match described {
        Some(described) => format!("{package} ({described})"),
        None => package,
    }
}

/// Flags that can be given in the environment too.
fn has_variable(flag: &Flag) -> bool {
    !matches!(flag.name, "help" | "version")
}

/// The man page, in the macros of man(7).
fn man() -> String {
    let escape = |text: &str| text.replace('\\', "\\e").replace('-', "\\-");
    let package = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let mut page = format!(
        ".\\\" Made from the table of flags; see build.rs.\n.TH PGLOCK 1 \"\" \"pglock {package}\" \"User Commands\"\n"
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
            if let Value::Choice(words) = flag.value {
                let words = escape(&words.join(", "));
                page.push_str(&format!("One of {words}.\n"));
            }
            if let Some(default) = flag.default {
                page.push_str(&format!("The default is {}.\n", escape(default)));
            }
            if has_variable(flag) {
                page.push_str(&format!("Variable:\n.BR {} .\n", flag.variable()));
            }
        }
    }
    page.push_str(
        ".SH ENVIRONMENT
Each flag can be given as the variable named with it; a flag is stronger than a variable, and an empty variable
counts as unset.
A switch is on with true, 1 or yes and off with false, 0 or no.
An unknown variable that looks like a known one misspelt is refused.
.TP
.B PGLOCK_PASS
The password.
There is no flag for it, so that it does not show in a list of processes.
.TP
.BR PGHOST ,\\  PGPORT ,\\  PGUSER ,\\  PGDATABASE ,\\  PGPASSWORD \" and so on\"
libpq's own variables, service file and password file count where no flag, variable or connection string
speaks.
.PP
The command gets the environment of
.BR pglock ,
and in addition:
.TP
.B PGLOCK_LOCK_HELD
true.
.TP
.B PGLOCK_TOKEN
Under
.BR \\-\\-fence ,
the fencing token: a positive integer, larger for every later holder.
.SH EXIT STATUS
.TP
.I the command's own
It ran to its end.
.TP
.I 128+N
Signal N ended the command, or ended
.B pglock
before the command ran.
.TP
.BR 0 ,\\  or\\  \\-\\-conflict\\-exit\\-code
The lock was not obtained; the command did not run.
.TP
.B 124
The lock was lost and the command was stopped.
.TP
.B 125
.B pglock
itself failed; the command did not run.
.TP
.B 126
The command could not be executed.
.TP
.B 127
The command was not found.
.SH EXAMPLES
.nf
pglock \\-\\-host db \\-\\-user backup \\-\\-lockname nightly\\-backup backup.sh
pglock \\-\\-host db \\-\\-user deploy \\-\\-wait 600 \\-\\-lockid 7 ./migrate up
pglock \\-\\-host db \\-\\-user ops \\-\\-status
.fi
.SH SEE ALSO
.BR psql (1),
.BR flock (1),
.BR timeout (1)
",
    );
    page
}

/// All spellings of a flag.
fn spellings(flag: &Flag) -> Vec<String> {
    let long = format!("--{}", flag.name);
    let short = flag.short.map(|letter| format!("-{letter}"));
    [long].into_iter().chain(short).collect()
}

fn bash() -> String {
    let with_value = |choice: bool| -> Vec<&Flag> {
        FLAGS
            .iter()
            .filter(|flag| match flag.value {
                Value::Switch => false,
                Value::Choice(_) => choice,
                _ => !choice,
            })
            .collect()
    };
    let patterns = with_value(false)
        .iter()
        .map(|flag| format!("--{}", flag.name))
        .collect::<Vec<_>>()
        .join("|");
    let choices: String = with_value(true)
        .iter()
        .map(|flag| {
            let Value::Choice(words) = flag.value else {
                return String::new();
            };
            format!(
                "            --{}) COMPREPLY=($(compgen -W '{}' -- \"$current\")); return ;;\n",
                flag.name,
                words.join(" ")
            )
        })
        .collect();
    let values = with_value(true)
        .iter()
        .map(|flag| format!("--{}", flag.name))
        .collect::<Vec<_>>()
        .join("|");
    let all: Vec<String> = FLAGS.iter().flat_map(spellings).collect();
    format!(
        "# Completion of pglock for bash; made from the table of flags.
_pglock() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} index=1
    COMPREPLY=()
    # The command begins at the first word that is neither a flag nor the value of one.
    while ((index < COMP_CWORD)); do
        case ${{COMP_WORDS[index]}} in
            --) ((index++)); break ;;
            {patterns}|{values})
                # bash makes a word of its own of a =.
                [[ ${{COMP_WORDS[index + 1]}} != = ]] || ((index++))
                ((index += 2)) ;;
            -*) ((index++)) ;;
            *) break ;;
        esac
    done
    if ((index > COMP_CWORD)); then
        index=$((COMP_CWORD - 1))
        [[ $current != = ]] || current=
        [[ ${{COMP_WORDS[index]}} != = ]] || ((index--))
        case ${{COMP_WORDS[index]}} in
{choices}        esac
        return
    fi
    if ((index == COMP_CWORD)) && [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W '{}' -- \"$current\"))
    elif ((index == COMP_CWORD)); then
        COMPREPLY=($(compgen -c -- \"$current\"))
    elif declare -F _command_offset >/dev/null; then
        _command_offset \"$index\"
    else
        COMPREPLY=($(compgen -f -- \"$current\"))
    fi
}}
complete -o bashdefault -o default -F _pglock pglock
",
        all.join(" ")
    )
}

fn zsh() -> String {
    let mut text = String::from(
        "#compdef pglock
# Completion of pglock for zsh; made from the table of flags.
_arguments -S -s \\
",
    );
    for flag in FLAGS {
        let help = flag
            .help
            .replace('\'', "'\\''")
            .replace('[', "\\[")
            .replace(']', "\\]")
            .replace(':', "\\:");
        let value = match flag.value {
            Value::Switch => String::new(),
            Value::Choice(words) => format!(":{}:({})", flag.type_word(), words.join(" ")),
            _ => format!(":{}: ", flag.type_word()),
        };
        // The value may be a word of its own, or follow after a =.
        let sign = if value.is_empty() { "" } else { "=" };
        for spelling in spellings(flag) {
            text.push_str(&format!("    '{spelling}{sign}[{help}]{value}' \\\n"));
        }
    }
    text.push_str(
        "    '(-):command: _command_names -e' \\
    '*::arguments: _normal'
",
    );
    text
}

fn fish() -> String {
    let options: Vec<String> = FLAGS
        .iter()
        .map(|flag| {
            let short = flag
                .short
                .map_or(String::new(), |letter| format!("{letter}/"));
            let value = match flag.value {
                Value::Switch => "",
                _ => "=",
            };
            format!("{short}{}{value}", flag.name)
        })
        .collect();
    let mut text = format!(
        "# Completion of pglock for fish; made from the table of flags.
# The command and its arguments, if there is one yet.
function __fish_pglock_command
    set -l words (commandline -opc) (commandline -ct)
    set -e words[1]
    argparse -s {} -- $words 2>/dev/null
    test -n \"$argv\"
    and not string match -q -- '-*' $argv[1]
    and string join0 -- $argv
end

",
        options.join(" ")
    );
    for flag in FLAGS {
        let short = flag
            .short
            .map_or(String::new(), |letter| format!(" -s {letter}"));
        let value = match flag.value {
            Value::Switch => String::new(),
            Value::Choice(words) => format!(" -x -a '{}'", words.join(" ")),
            _ => " -x".to_owned(),
        };
        let help = flag.help.replace('\\', "\\\\").replace('\'', "\\'");
        text.push_str(&format!(
            "complete -c pglock -n 'not __fish_pglock_command >/dev/null' -l {}{short}{value} -d '{help}'\n",
            flag.name
        ));
    }
    text.push_str(
        "complete -c pglock -x -a '(__fish_complete_subcommand --commandline (__fish_pglock_command | string split0))'\n",
    );
    text
}
