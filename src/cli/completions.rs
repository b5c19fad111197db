//! The shells' completions, made from the table of flags.

use crate::cli::flags::{FLAGS, Flag, ValueType};

/// All spellings of a flag.
fn spellings(flag: &Flag) -> Vec<String> {
    let long = format!("--{}", flag.name);
    let short = flag.short.map(|letter| format!("-{letter}"));
    [long].into_iter().chain(short).collect()
}

/// For bash.
pub fn bash() -> String {
    let with_value = |choice: bool| -> Vec<&Flag> {
        FLAGS
            .iter()
            .filter(|flag| match flag.value {
                ValueType::Switch => false,
                ValueType::Choice(_) => choice,
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
            format!(
                "            --{}) COMPREPLY=($(compgen -W '{}' -- \"$current\")); return ;;\n",
                flag.name,
                flag.words().join(" ")
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

/// For zsh.
pub fn zsh() -> String {
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
            ValueType::Switch => String::new(),
            ValueType::Choice(_) => format!(":{}:({})", flag.type_word(), flag.words().join(" ")),
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

/// For fish.
pub fn fish() -> String {
    let options: Vec<String> = FLAGS
        .iter()
        .map(|flag| {
            let short = flag
                .short
                .map_or(String::new(), |letter| format!("{letter}/"));
            let value = match flag.value {
                ValueType::Switch => "",
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
            ValueType::Switch => String::new(),
            ValueType::Choice(_) => format!(" -x -a '{}'", flag.words().join(" ")),
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
