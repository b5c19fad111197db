//! Where to connect: the settings of every source by their strength, and one set of them for each host.
//!
//! From strong to weak: flag and variable, the connection string given as `--database`, libpq's own
//! sources (`PGHOST` and the like, the service file, the password file), the defaults of the table. libpq
//! fills in its own sources by itself, so the defaults are put below them as variables of pglock's own
//! environment, which the command does not get.

use std::ffi::{CStr, OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::cli::config::Server;
use crate::cli::flags::{Flag, Id};
use crate::cli::values;
use crate::exit::Exit;
use crate::log;
use crate::moment::Moment;
use crate::pq::{self, Conninfo};
use crate::secrets;
use crate::server::session_name::{self, Title};
use crate::server::wait::left;
use crate::sys::{self, Signals};

/// libpq's keyword for how long connecting may take.
const TIMEOUT: &str = "connect_timeout";

/// What libpq's variables demand for the sake of safety: the first version that knows the variable, and the values that an older
/// one keeps to by itself. It passes over the others, and connects as if nothing had been demanded. An unknown keyword in a
/// connection string or a service file it does refuse.
const DEMANDS: [(&str, i32, &[&str]); 7] = [
    ("PGGSSENCMODE", 12, &["disable", "prefer"]),
    ("PGCHANNELBINDING", 13, &["disable", "prefer"]),
    ("PGSSLMINPROTOCOLVERSION", 13, &["TLSv1"]),
    ("PGSSLCRLDIR", 14, &[]),
    ("PGREQUIREAUTH", 16, &[]),
    ("PGSSLCERTMODE", 16, &["allow"]),
    ("PGMINPROTOCOLVERSION", 18, &["3.0"]),
];

/// The first version that knows the roots of trust that the system has; to an older one it is the name of a file, and a
/// file that is not there is passed over unless sslmode says verify-ca or verify-full.
const SYSTEM_ROOTS: i32 = 16;

/// A keyword of libpq's and its value.
type Setting = (String, Vec<u8>);

/// The hosts to try, in their order, and how to connect to each.
pub struct Target {
    hosts: Vec<Vec<Setting>>,
    name: String,
    timeout: Option<Duration>,
}

impl Target {
    /// Brings the settings of all sources together. Where libpq is asked for its own, a signal ends pglock, and so does
    /// the end of the time for connecting, which has begun at `start`, or of the wait.
    ///
    /// # Errors
    /// A connection string or a service that libpq does not understand, lists of hosts and ports that do not match, a
    /// `connect_timeout` that is no number, or a demand that this libpq does not know.
    pub fn new(
        server: &Server,
        title: Title,
        signals: &Signals,
        start: Moment,
        wait_end: Option<Moment>,
    ) -> Result<Self, pq::Error> {
        let mut given = Vec::new();
        match &server.database {
            Some(string) if values::is_connection_string(string) => {
                given = parse(string, &server.database_source)?;
            }
            Some(name) => given.push(("dbname".to_owned(), name.clone().into())),
            None => {}
        }
        if server.host.is_some() {
            // An address given by a weaker source would take the place of the host.
            given.retain(|(keyword, _)| keyword != "hostaddr");
            sys::remove_variable(c"PGHOSTADDR");
        }
        let texts = [
            ("host", &server.host),
            ("port", &server.port),
            ("user", &server.user),
            ("sslmode", &server.sslmode),
            (TIMEOUT, &server.connect_timeout),
        ];
        for (keyword, value) in texts {
            if let Some(value) = value {
                set(&mut given, keyword, value.as_bytes());
            }
        }
        if let Some(password) = &server.password {
            set(&mut given, "password", password.as_bytes());
        }
        for (keyword, value) in &given {
            secrets::note_setting(keyword, &String::from_utf8_lossy(value));
        }
        // What is asked for with a flag of its own is stronger than what libpq knows.
        let name = match title.label {
            Some(_) => "application_name",
            None => "fallback_application_name",
        };
        if title.label.is_some() || get(&given, name).is_none() {
            let label = session_name::label(title, Duration::ZERO);
            set(&mut given, name, label.as_bytes());
        }
        // The encoding of all that pglock itself says to a server.
        set(&mut given, "client_encoding", b"UTF8");
        put_defaults_below(&given);

        if let Some(service) = get(&given, "service") {
            // So that libpq's own sources, asked by themselves, look into this service too.
            sys::remove_variable(c"PGSERVICE");
            set_variable(c"PGSERVICE", &service);
        }
        let connect_end = patience(&given).map(|patience| start + patience);
        let deadline = connect_end.into_iter().chain(wait_end).min();
        let mut sources = sources(&given, signals, deadline);
        let wants_system_roots = wants_system_roots(&given, &sources);
        if let Some(demand) = unmet(pq::library_version(), std::env::var_os, wants_system_roots) {
            return Err(refused(demand));
        }
        for (keyword, value) in &sources {
            secrets::note_setting(keyword, value);
        }
        if server.host.is_some() {
            // An address that the service names would take the place of the host, too, and libpq would look there
            // for it again: so what else the service says is taken over, and not its name.
            sources.retain(|(keyword, _)| keyword != "hostaddr");
        }
        check_weaker(&given, &sources)?;
        if server.host.is_some() && has_service(&given) {
            ask(&given, signals, deadline, pq::check_sources)?;
            for (keyword, value) in &sources {
                if get(&given, keyword).is_none() {
                    set(&mut given, keyword, value.as_bytes());
                }
            }
            given.retain(|(keyword, _)| !keyword.starts_with("service"));
            sys::remove_variable(c"PGSERVICE");
        }
        let word = |keyword: &str| {
            let found = sources.iter().find(|(name, _)| name == keyword);
            let weaker = || found.map(|(_, value)| value.clone());
            get(&given, keyword).or_else(weaker).unwrap_or_default()
        };
        let (host, hostaddr, port) = (word("host"), word("hostaddr"), word("port"));
        let shown_hosts = if host.is_empty() { &hostaddr } else { &host };
        let name = format!(
            "{}@{}:{}/{}",
            shown(&word("user")),
            shown(shown_hosts),
            shown_port(&port),
            shown(&word("dbname"))
        );
        let hosts = split(&host, &hostaddr, &port)?
            .into_iter()
            .map(|one| {
                let mut settings = given.clone();
                for (keyword, value) in one {
                    set(&mut settings, keyword, value.as_bytes());
                }
                settings
            })
            .collect();
        Ok(Self {
            hosts,
            name,
            timeout: timeout(&word(TIMEOUT))?,
        })
    }

    /// How long connecting may take, all hosts together, and an answer of the server; anew for each attempt of one
    /// who waits. `None` is without limit.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// One set of settings for each host.
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = Conninfo> {
        self.hosts.iter().map(|settings| {
            settings
                .iter()
                .map(|(keyword, value)| {
                    (
                        sys::c_string(keyword.as_str()),
                        sys::c_string(value.as_slice()),
                    )
                })
                .collect()
        })
    }
}

/// `user@host:port/database`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A name or a list of them, each as it may be shown.
fn shown(names: &str) -> String {
    let names = names.split(',').map(|name| {
        let shown = secrets::shown(name);
        if shown == name {
            secrets::allow(name);
        }
        shown
    });
    names.collect::<Vec<_>>().join(",")
}

/// The same of ports, which are numbers or nothing that may be shown.
fn shown_port(port: &str) -> String {
    match values::parse(Flag::of(Id::Port), OsStr::new(port.trim())) {
        Ok(port) => shown(&port.to_string()),
        Err(_) => secrets::HIDDEN.to_owned(),
    }
}

/// Checks what only libpq's own sources say. A connection string that has slipped into a name would be shown, and go to the
/// server and its log. The value is not shown.
fn check_weaker(given: &[Setting], sources: &[(String, String)]) -> Result<(), pq::Error> {
    type Check = fn(&str) -> Result<(), String>;
    let checks: [(&str, Check); 4] = [
        ("host", values::check_host),
        ("hostaddr", values::check_host),
        ("user", values::check_user),
        ("dbname", values::check_database),
    ];
    for (keyword, check) in checks {
        let weaker = sources.iter().find(|(name, _)| name == keyword);
        if get(given, keyword).is_none()
            && let Some((_, value)) = weaker
            && let Err(what) = check(value)
        {
            return Err(refused(format!(
                "{keyword}, as a variable of libpq's or a service file has it, {what}"
            )));
        }
    }
    Ok(())
}

/// Takes a connection string apart. What is wrong with it is said without a word of it: any part of one
/// that is malformed may be a password.
fn parse(string: &str, source: &str) -> Result<Vec<Setting>, pq::Error> {
    let wrong = |what: &str| {
        refused(format!(
            "{source}: its connection string is not understood: {what}"
        ))
    };
    let given = pq::parse(&sys::c_string(string))
        .map_err(|error| wrong(&without_quotes(&error.message)))?;
    // What libpq would find wrong only later, and without the name of the flag.
    for (keyword, id) in [("sslmode", Id::Sslmode), ("port", Id::Port)] {
        if let Some((_, value)) = given.iter().find(|(name, _)| name == keyword)
            && let Err(what) = values::parse(Flag::of(id), OsStr::new(value))
        {
            return Err(wrong(&format!("its {keyword} {what}")));
        }
    }
    for (keyword, value) in &given {
        check_given(keyword, value).map_err(|what| wrong(&what))?;
    }
    Ok(given
        .into_iter()
        .map(|(keyword, value)| (keyword, value.into_bytes()))
        .collect())
}

/// Checks that no more has become of a value than what was meant for it: another library would separate it from the next by a
/// semicolon, and in a URI a part of a password that should have been encoded ends up elsewhere.
fn check_given(keyword: &str, value: &str) -> Result<(), String> {
    let is_list = value
        .split_once(';')
        .is_some_and(|(_, rest)| rest.contains('='));
    let is_split = |host: &str| host.contains('@') && !host.starts_with(['/', '@']);
    match keyword {
        "password" | "sslpassword" => Ok(()),
        _ if is_list => Err("its settings are separated by ; and not by spaces".to_owned()),
        "host" if value.split(',').any(is_split) => {
            Err("its host has an @; one in a password is written %40".to_owned())
        }
        "host" | "hostaddr" => match values::check_host(value) {
            Ok(_) => Ok(()),
            Err(what) => Err(format!("its {keyword} {what}")),
        },
        "user" | "dbname" | "service" | "application_name" if secrets::is_string(value) => Err(
            format!("its {keyword} looks like another connection string"),
        ),
        _ => Ok(()),
    }
}

/// Hides what stands between the first and the last double quote, more quotes included.
fn without_quotes(message: &str) -> String {
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) => format!("{}\"...{}", &message[..first], &message[last..]),
        _ => message.to_owned(),
    }
}

fn get(settings: &[Setting], keyword: &str) -> Option<String> {
    let found = settings.iter().find(|(name, _)| name == keyword);
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
}

fn set(settings: &mut Vec<Setting>, keyword: &str, value: &[u8]) {
    settings.retain(|(name, _)| name != keyword);
    settings.push((keyword.to_owned(), value.to_vec()));
}

/// Whether settings are to be looked up in a service file.
fn has_service(given: &[Setting]) -> bool {
    get(given, "service").is_some() || has_variable("PGSERVICE")
}

/// Whether a variable has a value, of whatever bytes.
fn has_variable(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// The value of a variable that has one. What is not UTF-8 is left to libpq, which reads it by itself.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// How long connecting may take as far as that is known before libpq is asked.
fn patience(given: &[Setting]) -> Option<Duration> {
    let text = get(given, TIMEOUT).or_else(|| variable("PGCONNECT_TIMEOUT"));
    // One that is no number is refused in the end, unless a service has another.
    let known = text.and_then(|text| timeout(&text).ok());
    let default = || {
        let value = Flag::of(Id::ConnectTimeout).default.as_ref()?;
        timeout(&value.to_string()).ok()
    };
    known.or_else(default).flatten()
}

/// Asks libpq, which reads a service file for the answer and looks the user up. Either may block: the one on a file system
/// that has gone away, the other at a directory service.
fn ask<T>(
    given: &[Setting],
    signals: &Signals,
    deadline: Option<Moment>,
    call: impl FnOnce() -> T,
) -> T {
    let whom = if has_service(given) {
        "the service file or the look-up of the user"
    } else {
        "the look-up of the user"
    };
    let time = left(deadline).unwrap_or_default();
    let last_line = log::error_line(
        sys::wall_clock() + time.as_secs() as i64,
        format_args!(
            "could not connect: no answer from {whom} within {} s",
            (time + Duration::from_millis(500)).as_secs()
        ),
    );
    signals.while_blocking(deadline, &last_line, Exit::Failed.status(), call)
}

/// What libpq's own sources say of where to connect. To ask libpq takes a fifth of the work that pglock does before it
/// connects: where there is neither a service file to read nor a user to look up, they are variables.
fn sources(
    given: &[Setting],
    signals: &Signals,
    deadline: Option<Moment>,
) -> Vec<(String, String)> {
    let has_user = get(given, "user").is_some() || has_variable("PGUSER");
    if has_service(given) || !has_user {
        return ask(given, signals, deadline, pq::defaults);
    }
    [
        ("host", "PGHOST"),
        ("hostaddr", "PGHOSTADDR"),
        ("port", "PGPORT"),
        ("user", "PGUSER"),
        ("dbname", "PGDATABASE"),
        (TIMEOUT, "PGCONNECT_TIMEOUT"),
    ]
    .into_iter()
    .filter_map(|(keyword, name)| Some((keyword.to_owned(), variable(name)?)))
    .collect()
}

/// Puts the defaults of the table below libpq's own sources, where nothing else speaks for them: an
/// address stands for a host, and libpq has rules of its own for some ways to ask for TLS.
fn put_defaults_below(given: &[Setting]) {
    let has = |keyword: &str, variable: &str| {
        get(given, keyword).is_some() || std::env::var_os(variable).is_some()
    };
    let default = |id: Id, variable: &CStr| {
        if let Some(value) = &Flag::of(id).default {
            set_variable(variable, &value.to_string());
        }
    };
    // Asked for its own sources libpq looks the user up, unless they name one; an empty name is none.
    if !has_variable("PGUSER") {
        sys::remove_variable(c"PGUSER");
    }
    if let Some(user) = get(given, "user") {
        set_variable(c"PGUSER", &user);
    }
    default(Id::Database, c"PGDATABASE");
    default(Id::Port, c"PGPORT");
    default(Id::ConnectTimeout, c"PGCONNECT_TIMEOUT");
    if !has("hostaddr", "PGHOSTADDR") {
        default(Id::Host, c"PGHOST");
    }
    if !wants_system_roots(given, &[]) && !has("requiressl", "PGREQUIRESSL") {
        default(Id::Sslmode, c"PGSSLMODE");
    }
}

/// Whether the server's certificate is to be checked against the roots that the system trusts.
fn wants_system_roots(given: &[Setting], weaker: &[(String, String)]) -> bool {
    let found = weaker.iter().find(|(keyword, _)| keyword == "sslrootcert");
    get(given, "sslrootcert")
        .or_else(|| found.map(|(_, file)| file.clone()))
        .or_else(|| std::env::var("PGSSLROOTCERT").ok())
        .is_some_and(|file| file == "system")
}

/// What is demanded that this version of libpq would pass over, in words.
fn unmet(
    version: i32,
    variable: impl Fn(&'static str) -> Option<OsString>,
    wants_system_roots: bool,
) -> Option<String> {
    let of_variables = DEMANDS.iter().find(|(name, since, met)| {
        let is_unmet =
            |value: OsString| !value.is_empty() && !met.iter().any(|met| value.as_os_str() == *met);
        version < since * 10_000 && variable(name).is_some_and(is_unmet)
    });
    let (demand, since) = match of_variables {
        Some((name, since, _)) => (*name, *since),
        None if wants_system_roots && version < SYSTEM_ROOTS * 10_000 => {
            ("sslrootcert=system", SYSTEM_ROOTS)
        }
        None => return None,
    };
    Some(format!(
        "{demand} takes libpq {since} or later, and would be without effect with {}",
        version / 10_000
    ))
}

fn set_variable(name: &CStr, value: &str) {
    sys::set_default_variable(name, &sys::c_string(value));
}

/// libpq's rule for what `connect_timeout` takes; it keeps to it only where it blocks. The value is not shown, for it may
/// be a part of a connection string that has slipped.
fn timeout(text: &str) -> Result<Option<Duration>, pq::Error> {
    match text.trim().parse::<i64>() {
        Ok(seconds) if seconds <= i64::from(u32::MAX) => {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
        }
        _ => Err(refused(format!(
            "{TIMEOUT} is not a whole number of seconds"
        ))),
    }
}

/// Lists of hosts, addresses and ports as one set for each place in the lists. libpq would go through
/// them by itself, but would spend all the time there is on a first host that does not answer.
fn split(
    host: &str,
    hostaddr: &str,
    port: &str,
) -> Result<Vec<Vec<(&'static str, String)>>, pq::Error> {
    let list = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
    let (hosts, addresses, ports) = (list(host), list(hostaddr), list(port));
    let count = hosts.len().max(addresses.len());
    let fits = |list: &Vec<String>, text: &str| text.is_empty() || list.len() == count;
    if !fits(&hosts, host) || !fits(&addresses, hostaddr) {
        return Err(mismatch(
            hosts.len(),
            "host names",
            addresses.len(),
            "addresses",
        ));
    }
    if ports.len() != 1 && ports.len() != count {
        return Err(mismatch(ports.len(), "port numbers", count, "hosts"));
    }
    Ok((0..count)
        .map(|place| {
            let mut one = Vec::new();
            for (keyword, list) in [("host", &hosts), ("hostaddr", &addresses), ("port", &ports)] {
                let value = if list.len() == 1 {
                    &list[0]
                } else {
                    &list[place]
                };
                if !value.is_empty() {
                    one.push((keyword, value.clone()));
                }
            }
            one
        })
        .collect())
}

fn mismatch(one: usize, these: &str, other: usize, those: &str) -> pq::Error {
    refused(format!(
        "lists of different lengths: {these} {one}, {those} {other}"
    ))
}

fn refused(message: String) -> pq::Error {
    pq::Error {
        message,
        ..pq::Error::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_quotes_is_hidden() {
        assert_eq!(
            without_quotes("missing \"=\" after \"secret\" in connection info string"),
            "missing \"...\" in connection info string"
        );
        assert_eq!(without_quotes("no \"a\"secret\"b\""), "no \"...\"");
    }

    #[test]
    fn a_demand_that_an_older_libpq_would_pass_over_is_not_met() {
        let unmet = |version, name: &str, value: &str| {
            let variable = |other: &str| (other == name).then(|| value.into());
            unmet(version, variable, false)
        };
        for (name, since, met) in DEMANDS {
            let older = since * 10_000 - 1;
            let said = unmet(older, name, "x").unwrap();
            assert!(said.contains(name), "{said}");
            assert!(said.contains(&format!("libpq {since}")), "{said}");
            assert_eq!(unmet(since * 10_000, name, "x"), None);
            assert_eq!(unmet(older, name, ""), None);
            for value in met {
                assert_eq!(unmet(older, name, value), None, "{name}={value}");
            }
        }
        assert_eq!(unmet(150_018, "PGLOADBALANCEHOSTS", "random"), None);
        let roots = |version| super::unmet(version, |_| None, true);
        assert!(roots(150_018).is_some_and(|said| said.contains("sslrootcert=system")));
        assert_eq!(roots(160_000), None);
    }

    #[test]
    fn lists_are_split_by_place() {
        let ports = |host, port| -> Vec<String> {
            let places = split(host, "", port).unwrap();
            places
                .iter()
                .map(|one| format!("{}:{}", one[0].1, one[1].1))
                .collect()
        };
        assert_eq!(ports("a", "1"), ["a:1"]);
        assert_eq!(ports("a,b", "1"), ["a:1", "b:1"]);
        assert_eq!(ports("a,b", "1,2"), ["a:1", "b:2"]);
        assert!(split("a,b,c", "", "1,2").is_err());
        assert!(split("a,b", "::1,::1,::1", "1").is_err());
    }
}
