//! The one table of flags. The parser, the help text and whatever else describes the command line
//! are made from it, so that none of them can say what another does not.

use std::borrow::Cow;
use std::fmt;

use crate::lock::Key;

/// What a flag takes as its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// Nothing on the command line; true or false in the environment.
    Switch,
    /// Text, not empty.
    Text,
    /// One of these words.
    Choice(&'static [Choice]),
    /// A whole number from 0 to this one, 2^n - 1.
    Number(u32),
    /// A whole number of seconds, or of minutes or hours with their letter behind it; its value is a number of seconds.
    Seconds,
    /// A port number, or a list of them to match a list of hosts.
    Ports,
    /// The key of an advisory lock: one number or two.
    Key,
}

/// A value as its flag takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as in `ValueType`
pub enum Value {
    Switch(bool),
    Text(Cow<'static, str>),
    Choice(Choice),
    Number(u32),
    /// In a list an empty place stands for the default.
    Ports(Cow<'static, [Option<u16>]>),
    Key(Key),
}

/// In the spelling of the command line, which is libpq's too.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Switch(on) => on.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Choice((word, _)) => word.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Ports(ports) => {
                let texts = ports
                    .iter()
                    .map(|port| port.map_or(String::new(), |port| port.to_string()));
                texts.collect::<Vec<_>>().join(",").fmt(f)
            }
            Self::Key(key) => key.fmt(f),
        }
    }
}

/// A word that a flag takes, and what it means.
pub type Choice = (&'static str, Meaning);

/// What a word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// What it means to libpq.
    SslMode,
    /// What to do when the lock is lost.
    OnLoss(OnLoss),
    /// What to print.
    Asset(Asset),
}

/// What becomes of the command when the lock is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum OnLoss {
    Kill,
    Continue,
}

/// What is made from the table of flags for others to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Asset {
    ManPage,
    BashCompletions,
    ZshCompletions,
    FishCompletions,
}

/// Names a flag; the discriminant is its index in [`FLAGS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each is described by its entry in the table
pub enum Id {
    Database,
    Host,
    Lockid,
    Port,
    Sslmode,
    User,
    Wait,
    Block,
    Lockname,
    Lockkey,
    Shared,
    Slots,
    ConflictExitCode,
    Hold,
    Ttl,
    Grace,
    OnLoss,
    Fence,
    Sync,
    ConnectTimeout,
    Status,
    Json,
    Label,
    Quiet,
    Verbose,
    Generate,
    Help,
    Version,
}

/// The heading under which the help lists a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Group {
    Basic,
    Lock,
    Lease,
    Connection,
    Output,
}

/// The headings in their order, with their titles; the first has none.
pub const GROUPS: &[(Group, &str)] = &[
    (Group::Basic, ""),
    (Group::Lock, "Lock"),
    (Group::Lease, "Lease"),
    (Group::Connection, "Connection"),
    (Group::Output, "Output"),
];

/// One flag of the command line.
pub struct Flag {
    /// Its name in the program.
    pub id: Id,
    /// The heading that the help lists it under.
    pub group: Group,
    /// Its long name, without the dashes.
    pub name: &'static str,
    /// Its one-letter name, if it has one.
    pub short: Option<char>,
    /// What it takes.
    pub value: ValueType,
    /// The value that counts where none is given.
    pub default: Option<Value>,
    /// One sentence.
    pub help: &'static str,
}

/// libpq's words for `sslmode`.
const SSL_MODES: &[Choice] = &[
    ("disable", Meaning::SslMode),
    ("allow", Meaning::SslMode),
    ("prefer", Meaning::SslMode),
    ("require", Meaning::SslMode),
    ("verify-ca", Meaning::SslMode),
    ("verify-full", Meaning::SslMode),
];

/// What to do when the lock is lost.
const ON_LOSS: &[Choice] = &[
    ("kill", Meaning::OnLoss(OnLoss::Kill)),
    ("continue", Meaning::OnLoss(OnLoss::Continue)),
];

/// What is made from this table.
const ASSETS: &[Choice] = &[
    ("man", Meaning::Asset(Asset::ManPage)),
    ("bash", Meaning::Asset(Asset::BashCompletions)),
    ("zsh", Meaning::Asset(Asset::ZshCompletions)),
    ("fish", Meaning::Asset(Asset::FishCompletions)),
];

/// All flags, in the order in which the help lists them.
pub const FLAGS: &[Flag] = &[
    Flag {
        id: Id::Database,
        group: Group::Basic,
        name: "database",
        short: None,
        value: ValueType::Text,
        default: Some(Value::Text(Cow::Borrowed("postgres"))),
        help: "Database name to connect to on PostgreSQL.",
    },
    Flag {
        id: Id::Host,
        group: Group::Basic,
        name: "host",
        short: None,
        value: ValueType::Text,
        default: Some(Value::Text(Cow::Borrowed("localhost"))),
        help: "Hostname of the PostgreSQL instance.",
    },
    Flag {
        id: Id::Lockid,
        group: Group::Basic,
        name: "lockid",
        short: None,
        value: ValueType::Number(u32::MAX),
        default: Some(Value::Number(1)),
        help: "The numeric lock ID to claim in PostgreSQL.",
    },
    Flag {
        id: Id::Port,
        group: Group::Basic,
        name: "port",
        short: None,
        value: ValueType::Ports,
        default: Some(Value::Ports(Cow::Borrowed(&[Some(5432)]))),
        help: "Port the PostgreSQL instance is listening on.",
    },
    Flag {
        id: Id::Sslmode,
        group: Group::Basic,
        name: "sslmode",
        short: None,
        value: ValueType::Choice(SSL_MODES),
        default: Some(Value::Choice(SSL_MODES[0])),
        help: "The SSL mode of the PostgreSQL client.",
    },
    Flag {
        id: Id::User,
        group: Group::Basic,
        name: "user",
        short: None,
        value: ValueType::Text,
        default: None,
        help: "Username to authenticate to the PostgreSQL.",
    },
    Flag {
        id: Id::Wait,
        group: Group::Basic,
        name: "wait",
        short: None,
        value: ValueType::Seconds,
        default: None,
        help: "Amount of seconds to wait for a lock to be obtained.",
    },
    Flag {
        id: Id::Block,
        group: Group::Lock,
        name: "block",
        short: None,
        value: ValueType::Switch,
        default: None,
        help: "Wait for the lock without limit; excludes --wait.",
    },
    Flag {
        id: Id::Lockname,
        group: Group::Lock,
        name: "lockname",
        short: None,
        value: ValueType::Text,
        default: None,
        help: "The name of the lock to claim, in place of a number; excludes --lockid.",
    },
    Flag {
        id: Id::Lockkey,
        group: Group::Lock,
        name: "lockkey",
        short: None,
        value: ValueType::Key,
        default: None,
        help: "The key of the lock to claim, any bigint or a pair of integers a,b; excludes --lockid and --lockname.",
    },
    Flag {
        id: Id::Shared,
        group: Group::Lock,
        name: "shared",
        short: None,
        value: ValueType::Switch,
        default: None,
        help: "Share the lock with others that do; excludes those that do not.",
    },
    Flag {
        id: Id::Slots,
        group: Group::Lock,
        name: "slots",
        short: None,
        value: ValueType::Number(u32::MAX),
        default: Some(Value::Number(1)),
        help: "How many may hold the lock at once, the same for all who use it; excludes --shared.",
    },
    Flag {
        id: Id::ConflictExitCode,
        group: Group::Lock,
        name: "conflict-exit-code",
        short: None,
        value: ValueType::Number(u8::MAX as u32),
        default: Some(Value::Number(0)),
        help: "Exit status when the lock was not obtained.",
    },
    Flag {
        id: Id::Hold,
        group: Group::Lock,
        name: "hold",
        short: None,
        value: ValueType::Seconds,
        default: Some(Value::Number(0)),
        help: "Amount of seconds to keep the lock for at least, also after a command that was shorter.",
    },
    Flag {
        id: Id::Ttl,
        group: Group::Lease,
        name: "ttl",
        short: None,
        value: ValueType::Seconds,
        default: Some(Value::Number(15)),
        help: "Amount of seconds without a sign of pglock after which the server gives the lock up; 0 turns the lease off.",
    },
    Flag {
        id: Id::Grace,
        group: Group::Lease,
        name: "grace",
        short: None,
        value: ValueType::Seconds,
        default: Some(Value::Number(5)),
        help: "Amount of seconds from SIGTERM to SIGKILL when the lock is lost.",
    },
    Flag {
        id: Id::OnLoss,
        group: Group::Lease,
        name: "on-loss",
        short: None,
        value: ValueType::Choice(ON_LOSS),
        default: Some(Value::Choice(ON_LOSS[0])),
        help: "What to do when the lock is lost: kill stops the command, continue lets it run on.",
    },
    Flag {
        id: Id::Fence,
        group: Group::Lease,
        name: "fence",
        short: None,
        value: ValueType::Switch,
        default: None,
        help: "Hand the command a fencing token in PGLOCK_TOKEN.",
    },
    Flag {
        id: Id::Sync,
        group: Group::Lease,
        name: "sync",
        short: None,
        value: ValueType::Switch,
        default: None,
        help: "Count a sign of the server only when its synchronous standby has it too.",
    },
    Flag {
        id: Id::ConnectTimeout,
        group: Group::Connection,
        name: "connect-timeout",
        short: None,
        value: ValueType::Seconds,
        default: Some(Value::Number(10)),
        help: "Amount of seconds for connecting, all hosts together, and for each answer; 0 sets no limit.",
    },
    Flag {
        id: Id::Status,
        group: Group::Output,
        name: "status",
        short: None,
        value: ValueType::Switch,
        default: None,
        help: "List who holds and who waits for the lock, or for any lock if none is named, and exit.",
    },
    Flag {
        id: Id::Json,
        group: Group::Output,
        name: "json",
        short: None,
        value: ValueType::Switch,
        default: None,
        help: "List it as one JSON document; with --status.",
    },
    Flag {
        id: Id::Label,
        group: Group::Output,
        name: "label",
        short: None,
        value: ValueType::Text,
        default: None,
        help: "What --status and the server show in place of the program's name.",
    },
    Flag {
        id: Id::Quiet,
        group: Group::Output,
        name: "quiet",
        short: None,
        value: ValueType::Switch,
        default: None,
        help: "Print errors only.",
    },
    Flag {
        id: Id::Verbose,
        group: Group::Output,
        name: "verbose",
        short: None,
        value: ValueType::Switch,
        default: None,
        help: "Also say which server, backend, kind of lock and lease, who holds a lock that was not obtained, and how long all took.",
    },
    Flag {
        id: Id::Generate,
        group: Group::Output,
        name: "generate",
        short: None,
        value: ValueType::Choice(ASSETS),
        default: None,
        help: "Print the man page or a shell's completions and exit.",
    },
    Flag {
        id: Id::Help,
        group: Group::Output,
        name: "help",
        short: Some('h'),
        value: ValueType::Switch,
        default: None,
        help: "Show this text and exit.",
    },
    Flag {
        id: Id::Version,
        group: Group::Output,
        name: "version",
        short: Some('V'),
        value: ValueType::Switch,
        default: None,
        help: "Show the versions of pglock and libpq and exit.",
    },
];

/// The variable with the password, for which there is no flag.
pub const PASSWORD: &str = "PGLOCK_PASS";

/// Variables with the prefix that are not those of a flag: the password, and what pglock gives to
/// its command, which may well be another pglock.
pub const OTHER_VARIABLES: &[&str] = &[PASSWORD, "PGLOCK_LOCK_HELD", "PGLOCK_TOKEN"];

impl Flag {
    /// Its entry in the table.
    pub fn of(id: Id) -> &'static Flag {
        &FLAGS[id as usize]
    }

    /// Whether it can be given in the environment too.
    pub fn has_variable(&self) -> bool {
        !matches!(self.id, Id::Generate | Id::Help | Id::Version)
    }

    /// The environment variable that stands in for it.
    pub fn variable(&self) -> String {
        format!(
            "PGLOCK_{}",
            self.name.to_ascii_uppercase().replace('-', "_")
        )
    }

    /// The words of which it takes one; none if it takes anything else.
    pub fn words(&self) -> Vec<&'static str> {
        match self.value {
            ValueType::Choice(choices) => choices.iter().map(|(word, _)| *word).collect(),
            _ => Vec::new(),
        }
    }

    /// The word that the help puts where its value goes; empty for a switch.
    pub fn type_word(&self) -> &'static str {
        match self.value {
            ValueType::Switch => "",
            ValueType::Text | ValueType::Choice(_) => "string",
            ValueType::Number(max) if max == u32::from(u8::MAX) => "uint8",
            ValueType::Number(_) | ValueType::Seconds => "uint32",
            ValueType::Ports => "uint16",
            ValueType::Key => "key",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_ids() {
        for (index, flag) in FLAGS.iter().enumerate() {
            assert_eq!(flag.id as usize, index, "--{}", flag.name);
        }
    }

    #[test]
    fn defaults_are_of_their_flag_s_type() {
        for flag in FLAGS {
            let fits = match (&flag.default, flag.value) {
                (None, _)
                | (Some(Value::Text(_)), ValueType::Text)
                | (Some(Value::Ports(_)), ValueType::Ports) => true,
                (Some(Value::Choice(choice)), ValueType::Choice(choices)) => {
                    choices.contains(choice)
                }
                (Some(Value::Number(number)), ValueType::Number(max)) => *number <= max,
                (Some(Value::Number(_)), ValueType::Seconds) => true,
                _ => false,
            };
            assert!(fits, "--{}", flag.name);
        }
    }

    #[test]
    fn names_are_legal_and_unique() {
        for (index, flag) in FLAGS.iter().enumerate() {
            assert!(
                flag.name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'-'),
                "--{}",
                flag.name
            );
            for other in &FLAGS[..index] {
                assert_ne!(flag.name, other.name);
                assert!(flag.short.is_none() || flag.short != other.short);
            }
        }
    }

    #[test]
    fn sentences_end_with_a_full_stop() {
        for flag in FLAGS {
            assert!(flag.help.ends_with('.'), "--{}", flag.name);
        }
    }
}
