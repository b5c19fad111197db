//! Looks the addresses of a host up in a child: the C library's look-up blocks, for ten seconds where a name
//! server is silent, and neither a signal nor a deadline would get through.

use std::borrow::Cow;
use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::slice;

use crate::moment::Moment;
use crate::pq::{Conninfo, Error};
use crate::server::wait::{Interrupt, wait_or_signal};
use crate::sys::{self, ForkedCall, Signals, Wait};
use crate::text;

/// What the child's answer begins with if there is no address.
const FAILURE: &str = "!";

/// A look-up that is under way.
pub struct LookUp {
    call: ForkedCall,
    host: String,
}

impl LookUp {
    /// Begins to look up the host of these settings; `None` where nothing has to be looked up.
    ///
    /// # Errors
    /// The system has no process left.
    pub fn start(settings: &Conninfo) -> Result<Option<Self>, Error> {
        let Some(host) = name(settings) else {
            return Ok(None);
        };
        let call = sys::inquire(|| look_up(host)).map_err(|error| {
            not_found(
                host,
                &format!(
                    "could not start a process for the look-up: {}",
                    text::reason(&error)
                ),
            )
        })?;
        Ok(Some(Self {
            call,
            host: host.to_owned(),
        }))
    }

    /// What to poll for its end.
    pub fn wait(&self) -> Wait<'_> {
        self.call.wait()
    }

    /// The settings once for each address, in the order in which to try them; to be called when it has ended.
    ///
    /// # Errors
    /// There are none.
    pub fn finish(self, settings: &Conninfo) -> Result<Vec<Conninfo>, Error> {
        let answer = self.call.answer();
        if answer.is_empty() {
            return Err(not_found(&self.host, "the look-up was killed"));
        }
        if let Some(error) = answer.strip_prefix(FAILURE) {
            return Err(not_found(&self.host, error));
        }
        Ok(answer
            .split(',')
            .map(|address| at(settings, address))
            .collect())
    }
}

fn not_found(host: &str, what: &str) -> Error {
    Error {
        message: format!("could not translate host name \"{host}\" to address: {what}"),
        ..Error::default()
    }
}

/// The settings once for each address of their host, in the order in which to try them; as they are where nothing
/// has to be looked up.
///
/// # Errors
/// What came before they were known, or that there are none.
pub fn resolve<'a>(
    settings: &'a Conninfo,
    signals: &Signals,
    deadline: Option<Moment>,
) -> Result<Cow<'a, [Conninfo]>, Interrupt> {
    let Some(look_up) = LookUp::start(settings).map_err(Interrupt::Failed)? else {
        return Ok(Cow::Borrowed(slice::from_ref(settings)));
    };
    wait_or_signal(look_up.wait(), signals, deadline)?;
    let ways = look_up.finish(settings).map_err(Interrupt::Failed)?;
    Ok(Cow::Owned(ways))
}

/// Whether the host of these settings has to be looked up.
pub fn is_name(settings: &Conninfo) -> bool {
    name(settings).is_some()
}

/// The settings with an address for their host, which is not looked up any more then.
pub fn at(settings: &Conninfo, address: &str) -> Conninfo {
    let mut settings = settings.clone();
    settings.push((c"hostaddr".into(), sys::c_string(address)));
    settings
}

/// The host, if it is one that has to be looked up.
fn name(settings: &Conninfo) -> Option<&str> {
    let value = |wanted: &CStr| {
        let found = settings
            .iter()
            .find(|(keyword, _)| keyword.as_c_str() == wanted);
        found.and_then(|(_, value)| value.to_str().ok())
    };
    let host = value(c"host").filter(|_| value(c"hostaddr").is_none())?;
    let is_socket = host.is_empty() || host.starts_with(['/', '@']);
    (!is_socket && host.parse::<IpAddr>().is_err()).then_some(host)
}

/// The addresses of a host, with commas between them, as many as fit into one answer.
fn look_up(host: &str) -> String {
    let shown = |address: SocketAddr| match address {
        SocketAddr::V6(six) if six.scope_id() != 0 => format!("{}%{}", six.ip(), six.scope_id()),
        address => address.ip().to_string(),
    };
    match (host, 0).to_socket_addrs() {
        Ok(addresses) => {
            let mut room = sys::PIPE_BUF;
            let mut addresses: Vec<_> = addresses.map(shown).collect();
            addresses.retain(|address| {
                let rest = room.checked_sub(address.len() + 1);
                room = rest.unwrap_or(0);
                rest.is_some()
            });
            addresses.join(",")
        }
        Err(error) => {
            let text = error.to_string();
            let reason = text.rsplit(": ").next().unwrap_or_default();
            format!("{FAILURE}{reason}")
        }
    }
}
