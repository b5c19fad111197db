//! From the text of a value to the value, and what is never taken for one.

use std::ffi::OsStr;

use crate::cli::durations;
use crate::cli::flags::{Flag, Id, Value, ValueType};
use crate::lock::Key;
use crate::secrets;

/// What the URIs begin with that libpq understands.
pub const URI_SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];

/// Makes a value of what was given for a flag; the error ends the sentence that the text of the value begins.
///
/// # Errors
/// What the flag does not take.
pub fn parse(flag: &Flag, value: &OsStr) -> Result<Value, String> {
    let text = value.to_str().ok_or("is not UTF-8")?;
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    match flag.value {
        ValueType::Text => {
            match flag.id {
                Id::Host => check_host(text)?,
                Id::User => check_user(text)?,
                Id::Database if !is_connection_string(text) => check_database(text)?,
                _ => {}
            }
            Ok(Value::Text(text.to_owned().into()))
        }
        ValueType::Switch => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(Value::Switch(true)),
            "false" | "0" | "no" => Ok(Value::Switch(false)),
            _ => Err("is neither true, 1, yes nor false, 0, no".to_owned()),
        },
        ValueType::Choice(choices) => choices
            .iter()
            .find(|(word, _)| *word == text)
            .map(|choice| Value::Choice(*choice))
            .ok_or_else(|| format!("is not one of {}", flag.words().join(", "))),
        ValueType::Number(max) => whole_number(text)
            .filter(|number| *number <= max)
            .map(Value::Number)
            .ok_or_else(|| format!("is not a whole number from 0 to {max}")),
        ValueType::Seconds => durations::seconds(text).map(Value::Number),
        ValueType::Ports => ports(text)
            .map(|ports| Value::Ports(ports.into()))
            .ok_or_else(|| "is not a port from 1 to 65535, nor a list of them".to_owned()),
        ValueType::Key => Key::parse(text)
            .filter(|_| !text.contains('+'))
            .map(Value::Key)
            .ok_or_else(|| {
                format!(
                    "is neither a whole number from {} to {}, nor two from {} to {} with a comma between",
                    i64::MIN,
                    i64::MAX,
                    i32::MIN,
                    i32::MAX
                )
            }),
    }
}

/// A port, or a list of them; in a list an empty place stands for the default.
fn ports(text: &str) -> Option<Vec<Option<u16>>> {
    let is_list = text.contains(',');
    text.split(',')
        .map(|port| match whole_number(port) {
            None if port.is_empty() && is_list => Some(None),
            number => number
                .and_then(|number| u16::try_from(number).ok())
                .filter(|port| *port > 0)
                .map(Some),
        })
        .collect()
}

/// libpq's own rule for what `dbname` takes.
pub fn is_connection_string(text: &str) -> bool {
    URI_SCHEMES.iter().any(|scheme| text.starts_with(scheme)) || text.contains('=')
}

/// Checks the name of a database. One that looks like another library's connection string would be shown, and go to the
/// server and its log, with the password in it.
pub fn check_database(text: &str) -> Result<(), String> {
    if text.contains("://") {
        return Err("is a URI, and not one of postgresql://".to_owned());
    }
    check_name(text).map_err(|()| {
        "is neither a name, nor key=value, nor postgresql://...; an odd name goes as dbname=..."
            .to_owned()
    })
}

/// Checks the name of a user, likewise.
pub fn check_user(text: &str) -> Result<(), String> {
    check_name(text).map_err(|()| {
        "is more than a user's name; an odd name goes to --database, as user=...".to_owned()
    })
}

fn check_name(text: &str) -> Result<(), ()> {
    if text.contains([':', ';', '=']) || secrets::is_string(text) {
        return Err(());
    }
    Ok(())
}

/// Checks a host, or a list of them; in a list an empty place stands for the default.
pub fn check_host(text: &str) -> Result<(), String> {
    let is_one = |host: &str| match host.strip_prefix(['/', '@']) {
        // The directory of a socket, or a socket without one.
        Some(path) => {
            let is_string = path.contains(':') && path.contains('@');
            !is_string && !path.contains([';', '='])
        }
        None => !host.contains(['@', ':', ';', '=', '/']) || secrets::is_address(host),
    };
    if text.contains("://") {
        Err("is a URI, which goes to --database".to_owned())
    } else if text.split(',').all(is_one) {
        Ok(())
    } else {
        Err("is no name, address or directory; a port goes to --port".to_owned())
    }
}

/// Digits only: `str::parse` alone would take a sign as well.
pub fn whole_number(text: &str) -> Option<u32> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}
