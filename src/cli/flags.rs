//! The one table of flags. The parser, the help text and whatever else describes the command line
//! are made from it, so that none of them can say what another does not.

/// What a flag takes as its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing on the command line; true or false in the environment.
    Switch,
    /// Text, not empty.
    Text,
    /// Text, one of these words.
    Choice(&'static [&'static str]),
    /// A whole number from 0 to this one, 2^n - 1.
    Number(u32),
    /// A port number, or a list of them to match a list of hosts.
    Ports,
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
    Shared,
    Slots,
    ConflictExitCode,
    Ttl,
    Grace,
    OnLoss,
    Fence,
    ConnectTimeout,
    Status,
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
    pub value: Value,
    /// The value that counts where none is given, in the spelling of the command line.
    pub default: Option<&'static str>,
    /// One sentence.
    pub help: &'static str,
}

/// libpq's words for `sslmode`.
const SSL_MODES: &[&str] = &[
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// What to do when the lock is lost.
const ON_LOSS: &[&str] = &["kill", "continue"];

/// What is made from this table.
const ASSETS: &[&str] = &["man", "bash", "zsh", "fish"];

/// All flags, in the order in which the help lists them.
pub const FLAGS: &[Flag] = &[
    Flag {
        id: Id::Database,
        group: Group::Basic,
        name: "database",
        short: None,
        value: Value::Text,
        default: Some("postgres"),
        help: "Database name to connect to on PostgreSQL.",
    },
    Flag {
        id: Id::Host,
        group: Group::Basic,
        name: "host",
        short: None,
        value: Value::Text,
        default: Some("localhost"),
        help: "Hostname of the PostgreSQL instance.",
    },
    Flag {
        id: Id::Lockid,
        group: Group::Basic,
        name: "lockid",
        short: None,
        value: Value::Number(u32::MAX),
        default: Some("1"),
        help: "The numeric lock ID to claim in PostgreSQL.",
    },
    Flag {
        id: Id::Port,
        group: Group::Basic,
        name: "port",
        short: None,
        value: Value::Ports,
        default: Some("5432"),
        help: "Port the PostgreSQL instance is listening on.",
    },
    Flag {
        id: Id::Sslmode,
        group: Group::Basic,
        name: "sslmode",
        short: None,
        value: Value::Choice(SSL_MODES),
        default: Some("disable"),
        help: "The SSL mode of the PostgreSQL client.",
    },
    Flag {
        id: Id::User,
        group: Group::Basic,
        name: "user",
        short: None,
        value: Value::Text,
        default: None,
        help: "Username to authenticate to the PostgreSQL.",
    },
    Flag {
        id: Id::Wait,
        group: Group::Basic,
        name: "wait",
        short: None,
        value: Value::Number(u32::MAX),
        default: None,
        help: "Amount of seconds to wait for a lock to be obtained.",
    },
    Flag {
        id: Id::Block,
        group: Group::Lock,
        name: "block",
        short: None,
        value: Value::Switch,
        default: None,
        help: "Wait for the lock without limit; excludes --wait.",
    },
    Flag {
        id: Id::Lockname,
        group: Group::Lock,
        name: "lockname",
        short: None,
        value: Value::Text,
        default: None,
        help: "The name of the lock to claim, in place of a number; excludes --lockid.",
    },
    Flag {
        id: Id::Shared,
        group: Group::Lock,
        name: "shared",
        short: None,
        value: Value::Switch,
        default: None,
        help: "Share the lock with others that do; excludes those that do not.",
    },
    Flag {
        id: Id::Slots,
        group: Group::Lock,
        name: "slots",
        short: None,
        value: Value::Number(u32::MAX),
        default: Some("1"),
        help: "How many may hold the lock at once, the same for all who use it; excludes --shared.",
    },
    Flag {
        id: Id::ConflictExitCode,
        group: Group::Lock,
        name: "conflict-exit-code",
        short: None,
        value: Value::Number(u8::MAX as u32),
        default: Some("0"),
        help: "Exit status when the lock was not obtained.",
    },
    Flag {
        id: Id::Ttl,
        group: Group::Lease,
        name: "ttl",
        short: None,
        value: Value::Number(u32::MAX),
        default: Some("15"),
        help: "Amount of seconds without a sign of pglock after which the server gives the lock up; 0 turns the lease off.",
    },
    Flag {
        id: Id::Grace,
        group: Group::Lease,
        name: "grace",
        short: None,
        value: Value::Number(u32::MAX),
        default: Some("5"),
        help: "Amount of seconds from SIGTERM to SIGKILL when the lock is lost.",
    },
    Flag {
        id: Id::OnLoss,
        group: Group::Lease,
        name: "on-loss",
        short: None,
        value: Value::Choice(ON_LOSS),
        default: Some("kill"),
        help: "What to do when the lock is lost: kill stops the command, continue lets it run on.",
    },
    Flag {
        id: Id::Fence,
        group: Group::Lease,
        name: "fence",
        short: None,
        value: Value::Switch,
        default: None,
        help: "Hand the command a fencing token in PGLOCK_TOKEN.",
    },
    Flag {
        id: Id::ConnectTimeout,
        group: Group::Connection,
        name: "connect-timeout",
        short: None,
        value: Value::Number(u32::MAX),
        default: Some("10"),
        help: "Amount of seconds for connecting, all hosts together, and for each answer; 0 sets no limit.",
    },
    Flag {
        id: Id::Status,
        group: Group::Output,
        name: "status",
        short: None,
        value: Value::Switch,
        default: None,
        help: "List who holds and who waits for the lock, or for any lock if none is named, and exit.",
    },
    Flag {
        id: Id::Quiet,
        group: Group::Output,
        name: "quiet",
        short: None,
        value: Value::Switch,
        default: None,
        help: "Print errors only.",
    },
    Flag {
        id: Id::Verbose,
        group: Group::Output,
        name: "verbose",
        short: None,
        value: Value::Switch,
        default: None,
        help: "Also say which server, backend, kind of lock and lease, and who holds a lock that was not obtained.",
    },
    Flag {
        id: Id::Generate,
        group: Group::Output,
        name: "generate",
        short: None,
        value: Value::Choice(ASSETS),
        default: None,
        help: "Print the man page or a shell's completions and exit.",
    },
    Flag {
        id: Id::Help,
        group: Group::Output,
        name: "help",
        short: Some('h'),
        value: Value::Switch,
        default: None,
        help: "Show this text and exit.",
    },
    Flag {
        id: Id::Version,
        group: Group::Output,
        name: "version",
        short: Some('V'),
        value: Value::Switch,
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
        format!("PGLOCK_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// The word that the help puts where its value goes; empty for a switch.
    pub fn type_word(&self) -> &'static str {
        match self.value {
            Value::Switch => "",
            Value::Text | Value::Choice(_) => "string",
            Value::Number(max) if max == u32::from(u8::MAX) => "uint8",
            Value::Number(_) => "uint32",
            Value::Ports => "uint16",
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
