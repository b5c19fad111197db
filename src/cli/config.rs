//! From the table of flags, the arguments and the environment to a [`Config`], or to one clear
//! error. Nothing is connected to before all of it is known to be good.
//!
//! Every value is checked where it is given, also one that a stronger source replaces: a bad value
//! that goes unnoticed today is in force tomorrow.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::cli::flags::{Asset, FLAGS, Flag, Id, Meaning, OnLoss, PASSWORD, Value, ValueType};
use crate::cli::hints;
use crate::cli::values;
use crate::cli::variables::{self, PREFIX, Role};
use crate::lease::{LONGEST_TTL, Terms};
use crate::lock::{Key, Name};
use crate::log::Verbosity;
use crate::secrets;
use crate::server::session_name::Title;

/// An attempt looks at each slot in turn, and holds a snapshot meanwhile.
const MOST_SLOTS: u32 = 10_000;

/// What the command line asks for.
pub enum Request {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// `--generate`.
    Generate(Asset),
    /// `--status`: of this lock, or of all.
    Status(Box<Config>),
    /// Run a command.
    Run(Box<Config>),
}

/// Everything that pglock needs to know for a run.
pub struct Config {
    /// Where and as whom to connect.
    pub server: Server,
    /// The lock.
    pub lock: Name,
    /// Whether a lock was named at all.
    pub names_lock: bool,
    /// Whether others may share it.
    pub shared: bool,
    /// How many may hold it at once; at least 1.
    pub slots: u32,
    /// How long to wait for the lock.
    pub wait: Wait,
    /// The exit status when the lock was not obtained.
    pub conflict_exit_code: u8,
    /// The lease, if there is one.
    pub terms: Option<Terms>,
    /// How long a command gets between SIGTERM and SIGKILL when the lock is lost.
    pub grace: Duration,
    /// Whether a command that has lost its lock is stopped.
    pub kill_on_loss: bool,
    /// How long the lock is held at least, from when it was obtained.
    pub hold: Duration,
    /// Whether the command gets a fencing token.
    pub fence: bool,
    /// Whether a sign of the server counts only when replication has confirmed it.
    pub sync: bool,
    /// Whether the status is shown as JSON.
    pub json: bool,
    /// What is shown in place of the program's name.
    pub label: Option<String>,
    /// How much to say.
    pub verbosity: Verbosity,
    /// The variables that look like pglock's own and are not.
    pub passed_over: Vec<String>,
    /// The command and its arguments; empty for `--status` only.
    pub command: Vec<OsString>,
}

/// The connection settings that flags and variables give; what they leave open, libpq's own sources
/// may fill.
pub struct Server {
    /// A database's name, a `key=value` string or a URI.
    pub database: Option<String>,
    /// The flag or variable that gave it.
    pub database_source: String,
    /// A host, a list of hosts, or the directory of a Unix socket.
    pub host: Option<String>,
    /// A port or a list of ports.
    pub port: Option<String>,
    /// The user.
    pub user: Option<String>,
    /// libpq's `sslmode`.
    pub sslmode: Option<String>,
    /// How long connecting may take, in seconds.
    pub connect_timeout: Option<String>,
    /// The password, any bytes.
    pub password: Option<OsString>,
}

/// How long to wait for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all, but for a server that has just lost its sessions: try once.
    No,
    /// So many seconds from the start, connecting included.
    Seconds(u32),
    /// Without limit.
    Forever,
}

/// What is wrong with a flag or a variable: one line that names it and its value.
#[derive(Debug)]
pub struct UsageError(String);

impl Config {
    /// The name of the lock that is asked for, if it has one.
    pub fn lock_name(&self) -> Option<&str> {
        match &self.lock {
            Name::Text(name) => Some(name),
            Name::Key(_) => None,
        }
    }

    /// What a session's name says of the run.
    pub fn title(&self) -> Title<'_> {
        Title {
            command: &self.command,
            label: self.label.as_deref(),
            lock: self.lock_name(),
        }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the command line and the environment.
///
/// # Errors
/// The first flag or variable that is not understood, or a combination that cannot work.
// Inlined, all values given would stay on the stack to the end.
#[inline(never)]
pub fn read(
    arguments: Vec<OsString>,
    environment: &[(OsString, OsString)],
) -> Result<Request, UsageError> {
    let mut given = AllGiven::default();
    let mut command = Vec::new();
    // What is asked for in place of a run, and the flag that does.
    let mut instead: Option<(Request, String)> = None;
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(stray)? {
        let (flag, spelling) = match argument {
            lexopt::Arg::Long(name) => (
                FLAGS.iter().find(|flag| flag.name == name),
                format!("--{name}"),
            ),
            lexopt::Arg::Short(letter) => {
                let spelling = format!("-{letter}");
                let flag = FLAGS.iter().find(|flag| flag.short == Some(letter));
                match parser.optional_value() {
                    None => (flag, spelling),
                    // Several letters behind one dash.
                    Some(rest) => {
                        return Err(unknown(&format!("{spelling}{}", rest.to_string_lossy())));
                    }
                }
            }
            lexopt::Arg::Value(word) => {
                if let Some((_, spelling)) = &instead {
                    return Err(no_run(spelling, &word));
                }
                command.push(word);
                command.extend(parser.raw_args().map_err(stray)?);
                break;
            }
        };
        let Some(flag) = flag else {
            return Err(unknown(&spelling));
        };
        let value = value_after(flag, &spelling, &mut parser)?;
        let other = match (flag.id, value) {
            (Id::Help, _) => Request::Help,
            (Id::Version, _) => Request::Version,
            (_, Value::Choice((_, Meaning::Asset(asset)))) => Request::Generate(asset),
            (_, value) => {
                given.take(flag, value, Source::Flag, &spelling);
                continue;
            }
        };
        // Of two the first counts.
        instead.get_or_insert((other, spelling));
    }
    if let Some((request, _)) = instead {
        return Ok(request);
    }
    let passed_over = given.take_variables(environment)?;
    given.exclude(Id::Block, Id::Wait)?;
    given.exclude(Id::Quiet, Id::Verbose)?;
    given.exclude(Id::Lockname, Id::Lockid)?;
    given.exclude(Id::Lockkey, Id::Lockid)?;
    given.exclude(Id::Lockkey, Id::Lockname)?;
    given.check_slots()?;
    given.check_sync()?;
    given.check_json()?;
    given.check_command(&command)?;
    let password = environment
        .iter()
        .find(|(name, value)| name == PASSWORD && !value.is_empty())
        .map(|(_, value)| value.clone());
    let config = Box::new(given.config(command, password, passed_over)?);
    Ok(if given.is_given(Id::Status) {
        Request::Status(config)
    } else {
        Request::Run(config)
    })
}

/// That there is no such flag, and what may have been meant.
fn unknown(spelling: &str) -> UsageError {
    let name = secrets::before_marks(spelling);
    let (name, hint) = match hints::meant(name.trim_start_matches('-')) {
        None if !name.starts_with("--") => {
            // A letter may have its value right behind it, which may be a password.
            let letter: String = name.chars().take(2).collect();
            let hint = hints::meant(letter.trim_start_matches('-'));
            (letter, hint)
        }
        hint => (name.to_owned(), hint),
    };
    let hint = hint.map_or("; see pglock --help".to_owned(), |hint| format!(": {hint}"));
    UsageError(format!("unknown flag {}{hint}", name.escape_debug()))
}

/// That a flag that asks for no run has a word behind it, as `-h db` has which psql takes for a host. Whoever has it in a job
/// would see it succeed, and nothing done.
fn no_run(spelling: &str, word: &OsStr) -> UsageError {
    let letter = spelling.strip_prefix('-').filter(|name| name.len() == 1);
    let hint = letter.and_then(hints::meant);
    let hint = hint.map_or(String::new(), |hint| format!("; {hint}"));
    let word = word.to_string_lossy();
    UsageError(format!(
        "{spelling} runs no command, but was given {:?}{hint}",
        secrets::shown(&word)
    ))
}

/// The value that follows a flag on the command line.
fn value_after(
    flag: &Flag,
    spelling: &str,
    parser: &mut lexopt::Parser,
) -> Result<Value, UsageError> {
    if flag.value != ValueType::Switch {
        let text = parser
            .value()
            .map_err(|_| UsageError(format!("{spelling}: its value is missing")))?;
        return parsed(flag, &text, spelling);
    }
    match parser.optional_value() {
        None => Ok(Value::Switch(true)),
        Some(text) => Err(UsageError(format!(
            "{spelling}: takes no value, but was given {:?}",
            secrets::shown(&text.to_string_lossy())
        ))),
    }
}

/// Where a value was given. A flag is stronger than a variable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Flag,
    Variable,
}

/// A value, and where it was given.
struct Given {
    value: Value,
    source: Source,
    spelling: String,
}

/// The values given, one place for each flag. A switch that is off is not given.
#[derive(Default)]
struct AllGiven([Option<Given>; FLAGS.len()]);

impl AllGiven {
    /// Takes a value, unless a stronger source has spoken. Of two flags the last wins.
    fn take(&mut self, flag: &Flag, value: Value, source: Source, spelling: &str) {
        let place = &mut self.0[flag.id as usize];
        if source == Source::Variable && place.is_some() {
            return;
        }
        *place = (value != Value::Switch(false)).then(|| Given {
            value,
            source,
            spelling: spelling.to_owned(),
        });
    }

    /// Takes what the variables say. Returns the names of those that are not pglock's although they begin as its own do.
    fn take_variables(
        &mut self,
        environment: &[(OsString, OsString)],
    ) -> Result<Vec<String>, UsageError> {
        let mut passed_over = Vec::new();
        for (name, value) in environment {
            if !name.as_bytes().starts_with(PREFIX.as_bytes()) || value.is_empty() {
                continue;
            }
            let name = name.to_string_lossy();
            match variables::role(&name, &value.to_string_lossy()) {
                Role::Flag(id) => {
                    let flag = Flag::of(id);
                    let value = parsed(flag, value, &name)?;
                    self.take(flag, value, Source::Variable, &name);
                }
                Role::Own => {}
                Role::Other => passed_over.push(name.into_owned()),
                // Without its value: PGLOCK_PASSWORD, say, holds what was meant for PGLOCK_PASS.
                Role::Mistaken(meant) => {
                    return Err(UsageError(format!(
                        "unknown variable {}: did you mean {meant}?",
                        name.escape_debug()
                    )));
                }
            }
        }
        Ok(passed_over)
    }

    /// Sees to it that of two flags that exclude each other only one stays: the flag where the other
    /// comes from a variable.
    fn exclude(&mut self, one: Id, other: Id) -> Result<(), UsageError> {
        let (Some(a), Some(b)) = (&self.0[one as usize], &self.0[other as usize]) else {
            return Ok(());
        };
        if a.source == b.source {
            return Err(UsageError(format!(
                "{} and {} exclude each other; give one of them",
                a.spelling, b.spelling
            )));
        }
        let weaker = if a.source == Source::Variable {
            one
        } else {
            other
        };
        self.0[weaker as usize] = None;
        Ok(())
    }

    /// What was given for a flag, in the spelling that libpq takes too.
    fn text(&self, id: Id) -> Option<String> {
        self.0[id as usize]
            .as_ref()
            .map(|given| given.value.to_string())
    }

    /// Whether a switch is on, or any other flag given.
    fn is_given(&self, id: Id) -> bool {
        self.0[id as usize].is_some()
    }

    /// The value that is in force: the one given, or the default of the table.
    fn value(&self, id: Id) -> Option<&Value> {
        let given = self.0[id as usize].as_ref().map(|given| &given.value);
        given.or(Flag::of(id).default.as_ref())
    }

    /// A number that is in force. What is none, which cannot be, does not become a number that might turn the lease off or take
    /// another lock.
    fn number<T: TryFrom<u32>>(&self, id: Id) -> Result<T, UsageError> {
        let number = match self.value(id) {
            Some(Value::Number(number)) => T::try_from(*number).ok(),
            _ => None,
        };
        number
            .ok_or_else(|| UsageError(format!("{} is not a number in its range", self.origin(id))))
    }

    /// The key that the lock is named by.
    fn key(&self) -> Option<Key> {
        match self.value(Id::Lockkey) {
            Some(Value::Key(key)) => Some(*key),
            _ => None,
        }
    }

    /// Whether the command may run on without its lock.
    fn continues_on_loss(&self) -> bool {
        let continues = Meaning::OnLoss(OnLoss::Continue);
        matches!(self.value(Id::OnLoss), Some(Value::Choice((_, meaning))) if *meaning == continues)
    }

    /// How a value that is in force was given: `--ttl 15`, `PGLOCK_TTL=15`, `--ttl 15 (the default)`.
    fn origin(&self, id: Id) -> String {
        let flag = Flag::of(id);
        match (&self.0[id as usize], &flag.default) {
            (Some(given), _) if given.source == Source::Variable => {
                format!("{}={}", given.spelling, given.value)
            }
            (Some(given), _) if flag.value == ValueType::Switch => given.spelling.clone(),
            (Some(given), _) => format!("{} {}", given.spelling, given.value),
            (None, Some(default)) => format!("--{} {default} (the default)", flag.name),
            (None, None) => format!("--{}", flag.name),
        }
    }

    /// A command is given, unless the status is to be shown.
    fn check_command(&self, command: &[OsString]) -> Result<(), UsageError> {
        match command.first() {
            Some(word) if self.is_given(Id::Status) => Err(UsageError(format!(
                "{} takes no command, but was given {:?}",
                self.origin(Id::Status),
                secrets::shown(&word.to_string_lossy())
            ))),
            None if !self.is_given(Id::Status) => Err(UsageError(
                "no command given: pglock [flags] [--] command [arg ...]; see pglock --help"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Slots are at least one, and several are each exclusive.
    fn check_slots(&self) -> Result<(), UsageError> {
        let slots: u32 = self.number(Id::Slots)?;
        if slots == 0 || slots > MOST_SLOTS {
            return Err(UsageError(format!(
                "{} is not from 1 to {MOST_SLOTS}",
                self.origin(Id::Slots)
            )));
        }
        if slots > 1 && self.is_given(Id::Shared) {
            return Err(UsageError(format!(
                "{} and {} exclude each other: a slot has one holder",
                self.origin(Id::Slots),
                self.origin(Id::Shared)
            )));
        }
        if slots > 1 && matches!(self.key(), Some(Key::Two(..))) {
            return Err(UsageError(format!(
                "{} and {} exclude each other: the slots of a lock are pairs themselves",
                self.origin(Id::Slots),
                self.origin(Id::Lockkey)
            )));
        }
        Ok(())
    }

    /// What is confirmed are the signs that keep the lease.
    fn check_sync(&self) -> Result<(), UsageError> {
        if self.is_given(Id::Sync) && self.number::<u64>(Id::Ttl)? == 0 {
            return Err(UsageError(format!(
                "{} and {} exclude each other: without a lease no sign of the server counts",
                self.origin(Id::Sync),
                self.origin(Id::Ttl)
            )));
        }
        Ok(())
    }

    /// Nothing but the status is shown as JSON. A variable may be there for whoever asks for it.
    fn check_json(&self) -> Result<(), UsageError> {
        let is_flag = |given: &Given| given.source == Source::Flag;
        if self.0[Id::Json as usize].as_ref().is_some_and(is_flag) && !self.is_given(Id::Status) {
            return Err(UsageError(format!(
                "{} is a form of --status; give both",
                self.origin(Id::Json)
            )));
        }
        Ok(())
    }

    /// The lease, if there is one and it can be kept.
    fn terms(&self) -> Result<Option<Terms>, UsageError> {
        let ttl = Duration::from_secs(self.number(Id::Ttl)?);
        let grace = Duration::from_secs(self.number(Id::Grace)?);
        if ttl.is_zero() {
            return Ok(None);
        }
        if ttl > LONGEST_TTL {
            return Err(UsageError(format!(
                "{} is longer than a server can keep: at most {}",
                self.origin(Id::Ttl),
                LONGEST_TTL.as_secs()
            )));
        }
        Terms::new(ttl, grace).map(Some).map_err(|most| {
            let (ttl, grace) = (self.origin(Id::Ttl), self.origin(Id::Grace));
            UsageError(match most {
                Some(most) => format!(
                    "{grace} leaves no room for a late answer of the server in {ttl}: at most --grace {most}"
                ),
                None => format!("{ttl} is too short for a lease: at least 3, or 0 for none"),
            })
        })
    }

    fn config(
        &self,
        command: Vec<OsString>,
        password: Option<OsString>,
        passed_over: Vec<String>,
    ) -> Result<Config, UsageError> {
        Ok(Config {
            server: Server {
                database: self.text(Id::Database),
                database_source: self.0[Id::Database as usize]
                    .as_ref()
                    .map_or_else(String::new, |given| given.spelling.clone()),
                host: self.text(Id::Host),
                port: self.text(Id::Port),
                user: self.text(Id::User),
                sslmode: self.text(Id::Sslmode),
                connect_timeout: self.text(Id::ConnectTimeout),
                password,
            },
            lock: match (self.text(Id::Lockname), self.key()) {
                (Some(name), _) => Name::Text(name),
                (None, Some(key)) => Name::Key(key),
                (None, None) => Name::id(self.number(Id::Lockid)?),
            },
            names_lock: [Id::Lockname, Id::Lockkey, Id::Lockid]
                .into_iter()
                .any(|id| self.is_given(id)),
            shared: self.is_given(Id::Shared),
            slots: self.number(Id::Slots)?,
            wait: if self.is_given(Id::Block) {
                Wait::Forever
            } else if self.is_given(Id::Wait) {
                match self.number(Id::Wait)? {
                    0 => Wait::No,
                    seconds => Wait::Seconds(seconds),
                }
            } else {
                Wait::No
            },
            conflict_exit_code: self.number(Id::ConflictExitCode)?,
            terms: self.terms()?,
            grace: Duration::from_secs(self.number(Id::Grace)?),
            kill_on_loss: !self.continues_on_loss(),
            hold: Duration::from_secs(self.number(Id::Hold)?),
            fence: self.is_given(Id::Fence),
            sync: self.is_given(Id::Sync),
            json: self.is_given(Id::Json),
            label: self.text(Id::Label),
            verbosity: if self.is_given(Id::Quiet) {
                Verbosity::Quiet
            } else if self.is_given(Id::Verbose) {
                Verbosity::Verbose
            } else {
                Verbosity::Normal
            },
            passed_over,
            command,
        })
    }
}

/// As [`values::parse`], with an error that is a whole line.
fn parsed(flag: &Flag, value: &OsStr, spelling: &str) -> Result<Value, UsageError> {
    values::parse(flag, value).map_err(|wrong| {
        let value = value.to_string_lossy();
        let value = match flag.id {
            Id::Database => secrets::HIDDEN,
            _ => secrets::shown(&value),
        };
        let value = secrets::mask(&format!("{value:?}"));
        UsageError(format!("{spelling}: {value} {wrong}"))
    })
}

/// What lexopt finds wrong by itself: a switch's letter with a value, say.
fn stray(error: lexopt::Error) -> UsageError {
    let error = error.to_string();
    UsageError(format!("{}; see pglock --help", error.escape_debug()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::cli::flags::OTHER_VARIABLES;

    fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let environment: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let arguments = arguments.iter().map(OsString::from).collect();
        match read(arguments, &environment) {
            Ok(Request::Run(config)) => Ok(*config),
            Ok(_) => panic!("help or version"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_table() {
        let config = config(&["true"], &[]).unwrap();
        assert_eq!(config.lock, Name::id(1));
        assert_eq!(config.wait, Wait::No);
        assert_eq!(config.conflict_exit_code, 0);
        assert_eq!(config.verbosity, Verbosity::Normal);
        assert!(config.server.host.is_none());
    }

    #[test]
    fn flags_are_stronger_than_variables_and_the_last_flag_wins() {
        let variables = [("PGLOCK_LOCKID", "7"), ("PGLOCK_HOST", "elsewhere")];
        let config = config(&["--lockid", "8", "--lockid=9", "true"], &variables).unwrap();
        assert_eq!(config.lock, Name::id(9));
        assert_eq!(config.server.host.as_deref(), Some("elsewhere"));
    }

    #[test]
    fn a_flag_puts_an_excluded_variable_out_of_force() {
        let config = config(&["--block", "true"], &[("PGLOCK_WAIT", "5")]).unwrap();
        assert_eq!(config.wait, Wait::Forever);
    }

    #[test]
    fn two_flags_that_exclude_each_other_are_refused() {
        assert!(config(&["--block", "--wait", "5", "true"], &[]).is_err());
        assert!(config(&["true"], &[("PGLOCK_BLOCK", "1"), ("PGLOCK_WAIT", "5")]).is_err());
        assert!(config(&["true"], &[("PGLOCK_BLOCK", "no"), ("PGLOCK_WAIT", "5")]).is_ok());
    }

    #[test]
    fn what_is_to_be_confirmed_takes_a_lease() {
        assert!(config(&["--sync", "true"], &[]).unwrap().sync);
        assert!(!config(&["true"], &[("PGLOCK_SYNC", "no")]).unwrap().sync);
        let error = config(&["--sync", "--ttl", "0", "true"], &[])
            .err()
            .unwrap();
        assert!(error.starts_with("--sync and --ttl 0 exclude"), "{error}");
    }

    #[test]
    fn json_is_a_form_of_the_status() {
        let error = config(&["--json", "true"], &[]).err().unwrap();
        assert!(error.starts_with("--json is a form of --status"), "{error}");
        assert!(config(&["true"], &[("PGLOCK_JSON", "1")]).is_ok());
        let labelled = config(&["--label", "a b", "true"], &[]).unwrap();
        assert_eq!(labelled.label.as_deref(), Some("a b"));
        assert!(config(&["--label", "", "true"], &[]).is_err());
    }

    #[test]
    fn the_command_keeps_its_own_flags() {
        let given = ["--wait", "5", "grep", "--wait", "--", "x"];
        assert_eq!(
            config(&given, &[]).unwrap().command,
            ["grep", "--wait", "--", "x"]
        );
        let given = ["--", "--wait", "--", "x"];
        assert_eq!(config(&given, &[]).unwrap().command, ["--wait", "--", "x"]);
    }

    #[test]
    fn numbers_are_digits_within_their_range() {
        for good in ["0", "4294967295", "007"] {
            assert!(
                config(&["--lockid", good, "true"], &[]).is_ok(),
                "{good:?} was refused"
            );
        }
        for bad in [
            "",
            "abc",
            "-1",
            "+1",
            "1.5",
            " 1",
            "0x10",
            "1_000",
            "4294967296",
        ] {
            let flag = config(&["--lockid", bad, "true"], &[]).err().unwrap();
            assert!(flag.starts_with(&format!("--lockid: {bad:?} ")), "{flag}");
            if !bad.is_empty() {
                let variable = config(&["true"], &[("PGLOCK_LOCKID", bad)]).err().unwrap();
                assert!(
                    variable.starts_with(&format!("PGLOCK_LOCKID: {bad:?} ")),
                    "{variable}"
                );
            }
        }
    }

    #[test]
    fn a_key_is_any_bigint_or_a_pair() {
        let lock = |given: &str| {
            let config = config(&["--lockkey", given, "true"], &[]);
            config.map(|config| (config.lock, config.names_lock))
        };
        for (given, key) in [
            ("0", Key::One(0)),
            ("-5", Key::One(-5)),
            ("-9223372036854775808", Key::One(i64::MIN)),
            ("9223372036854775807", Key::One(i64::MAX)),
            ("1,2", Key::Two(1, 2)),
            ("-2147483648,2147483647", Key::Two(i32::MIN, i32::MAX)),
        ] {
            assert_eq!(lock(given), Ok((Name::Key(key), true)), "{given:?}");
        }
        for bad in [
            "",
            "x",
            "+1",
            "1,+2",
            "1 ,2",
            "1, 2",
            ",",
            "1,",
            ",1",
            "1,2,3",
            "1.5",
            "0x10",
            "9223372036854775808",
            "-9223372036854775809",
            "2147483648,0",
        ] {
            let error = lock(bad).err().unwrap();
            assert!(
                error.starts_with(&format!("--lockkey: {bad:?} ")),
                "{error}"
            );
        }
        for other in [["--lockid", "1"], ["--lockname", "a"], ["--slots", "2"]] {
            let given = [&other[..], &["--lockkey", "1,2", "true"]].concat();
            let error = config(&given, &[]).err().unwrap();
            assert!(error.contains("exclude each other"), "{error}");
            assert!(error.contains(other[0]), "{error}");
        }
        let variables = [("PGLOCK_LOCKKEY", "7")];
        let named = config(&["--lockname", "a", "true"], &variables).unwrap();
        assert_eq!(named.lock, Name::Text("a".to_owned()));
        assert_eq!(config(&["true"], &variables).unwrap().lock, Name::id(7));
        assert!(config(&["--slots", "2", "true"], &variables).is_ok());
    }

    #[test]
    fn a_lease_that_cannot_be_kept_is_refused_by_the_names_of_its_flags() {
        let error = config(&["--ttl", "6", "true"], &[]).err().unwrap();
        assert!(error.contains("--ttl 6"), "{error}");
        assert!(error.contains("--grace 5 (the default)"), "{error}");
        let variables = [("PGLOCK_GRACE", "9")];
        let error = config(&["true"], &variables).err().unwrap();
        assert!(error.contains("PGLOCK_GRACE=9"), "{error}");
        assert!(config(&["--ttl", "0", "true"], &variables).is_ok());
        assert!(config(&["--ttl", "2147484", "true"], &[]).is_err());
        assert!(config(&["--ttl", "2147483", "true"], &[]).is_ok());
    }

    #[test]
    fn what_holds_more_than_was_asked_for_is_refused_and_not_shown() {
        for (flag, good, bad) in [
            (
                "--host",
                &[
                    "db",
                    "db.example.com",
                    "127.0.0.1",
                    "::1",
                    "fe80::1%br-lan.7",
                    "a,,::1,/tmp",
                    "/var/run/postgresql",
                    "/run/user@1000",
                    "@abstract",
                ][..],
                &[
                    "db:5432",
                    "[::1]",
                    "me@db",
                    "a,me:hunter2@db",
                    "db;x=1",
                    "db/app",
                    "//me:hunter2@db",
                    "/tmp;x=1",
                    "mysql://db",
                ][..],
            ),
            (
                "--user",
                &["me", "me@example.com", "Jürgen K.", "my password"],
                &["me:hunter2", "me@db/app", "me/hunter2@db", "user=me", "a;b"],
            ),
            (
                "--database",
                &["app", "app@prod", "my password", "größe 1", "password=x"],
                &["me:hunter2@db/app", "a:b", "a;b", "me@db/app", "mysql://db"],
            ),
        ] {
            for value in good {
                assert!(
                    config(&[flag, value, "true"], &[]).is_ok(),
                    "{flag} {value}"
                );
            }
            for value in bad {
                let error = config(&[flag, value, "true"], &[]).err().unwrap();
                let begins = format!("{flag}: \"...\" is ");
                let is_plain = flag == "--host" && *value == "db/app";
                assert!(error.starts_with(&begins) || is_plain, "{value}: {error}");
            }
        }
        for arguments in [
            &["--pwd:hunter2"][..],
            &["--quiet=password=hunter2", "true"],
            &["--wait=me:hunter2", "true"],
            &["--status", "me:hunter2@h"],
        ] {
            let error = config(arguments, &[]).err().unwrap();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_an_error_and_not_another_number() {
        let text = || Value::Text("7".into());
        for (id, value) in [
            (Id::Lockid, text()),
            (Id::Wait, Value::Switch(true)),
            (Id::Slots, text()),
            (Id::ConflictExitCode, Value::Number(256)),
            (Id::Ttl, text()),
            (Id::Grace, text()),
        ] {
            let mut given = AllGiven::default();
            let spelling = format!("--{}", Flag::of(id).name);
            given.take(Flag::of(id), value, Source::Flag, &spelling);
            let config = given.config(Vec::new(), None, Vec::new());
            let error = config.err().map(|error| error.to_string());
            assert!(error.is_some_and(|e| e.contains(&spelling)), "{spelling}");
        }
        let mut given = AllGiven::default();
        given.take(Flag::of(Id::OnLoss), text(), Source::Flag, "--on-loss");
        assert!(!given.continues_on_loss());
    }

    #[test]
    fn a_word_means_what_it_says() {
        for (word, kills) in [("kill", true), ("continue", false)] {
            let config = config(&["--on-loss", word, "true"], &[]).unwrap();
            assert_eq!(config.kill_on_loss, kills, "{word}");
        }
        assert!(config(&["true"], &[]).unwrap().kill_on_loss);
        for (word, asset) in [
            ("man", Asset::ManPage),
            ("bash", Asset::BashCompletions),
            ("zsh", Asset::ZshCompletions),
            ("fish", Asset::FishCompletions),
        ] {
            let request = read(vec!["--generate".into(), word.into()], &[]);
            assert!(
                matches!(request, Ok(Request::Generate(given)) if given == asset),
                "{word}"
            );
        }
    }

    #[test]
    fn ports_are_a_number_or_a_list_with_places_left_empty() {
        for (text, port) in [
            ("5432", "5432"),
            ("05432", "5432"),
            ("1,,65535", "1,,65535"),
            (",", ","),
        ] {
            let config = config(&["--port", text, "true"], &[]).unwrap();
            assert_eq!(config.server.port.as_deref(), Some(port));
        }
        for text in ["0", "65536", "1,0", "1,x", "4294967296", "-1", " "] {
            assert!(config(&["--port", text, "true"], &[]).is_err(), "{text}");
        }
    }

    #[test]
    fn a_misspelt_variable_is_refused_but_not_what_pglock_itself_sets_nor_what_is_not_its_own() {
        let error = config(&["true"], &[("PGLOCK_WIAT", "7")]).err().unwrap();
        assert_eq!(
            error,
            "unknown variable PGLOCK_WIAT: did you mean PGLOCK_WAIT?"
        );
        let others = [
            ("PGLOCK_LOCK_HELD", "true"),
            ("PGLOCK_PASS", "x"),
            ("PGLOCK_VERSION", "1.2"),
            ("PGLOCK_PORT", "tcp://10.0.0.1:5432"),
            ("PGLOCK_URL", "x"),
            ("PGLOCK_WIAT", ""),
        ];
        let config = config(&["true"], &others).unwrap();
        assert_eq!(
            config.passed_over,
            ["PGLOCK_VERSION", "PGLOCK_PORT", "PGLOCK_URL"]
        );
        assert_eq!(config.server.port, None);
    }

    /// A small generator of numbers, xorshift64 by George Marsaglia, so that a run can be repeated.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % limit as u64) as usize
        }

        /// A word of the command line, or something near one, or bytes.
        fn word(&mut self) -> OsString {
            const VALUES: [&str; 12] = [
                "",
                "0",
                "1",
                "-1",
                "4294967295",
                "4294967296",
                "true",
                "no",
                "=",
                "--",
                "x,y",
                "é",
            ];
            let flag = &FLAGS[self.below(FLAGS.len())];
            let value = VALUES[self.below(VALUES.len())];
            match self.below(6) {
                0 => format!("--{}", flag.name).into(),
                1 => format!("--{}={value}", flag.name).into(),
                2 => format!("-{}", flag.short.unwrap_or('x')).into(),
                3 => value.into(),
                4 => format!("--{}{value}", &flag.name[..self.below(flag.name.len())]).into(),
                _ => OsString::from_vec(
                    (0..self.below(9))
                        .map(|_| self.below(255) as u8 + 1)
                        .collect(),
                ),
            }
        }

        fn variable(&mut self) -> OsString {
            match self.below(3) {
                0 => FLAGS[self.below(FLAGS.len())].variable().into(),
                1 => OTHER_VARIABLES[self.below(OTHER_VARIABLES.len())].into(),
                _ => {
                    let mut name = OsString::from("PGLOCK_");
                    name.push(self.word());
                    name
                }
            }
        }
    }

    #[test]
    fn a_million_command_lines_are_each_understood_or_refused_in_one_line() {
        let mut random = Random(0x5eed);
        for _ in 0..1_000_000 {
            let arguments = (0..random.below(5)).map(|_| random.word()).collect();
            let environment: Vec<_> = (0..random.below(3))
                .map(|_| (random.variable(), random.word()))
                .collect();
            match read(arguments, &environment) {
                Ok(Request::Run(config)) => assert!(!config.command.is_empty()),
                Ok(_) => {}
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
        }
    }
}
