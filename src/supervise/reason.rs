//! What the reason says for which there is no session, be it that one was closed or that none came about.

use super::state::{Barrier, Loss};
use crate::pq::Error;

/// What the reason why a session is closed says of others. A server that ends all of them at once, in a crash or an
/// immediate shutdown, says so by a warning; the error that a session ends with is that of an administrator's
/// `pg_terminate_backend`, too. Where sessions wait for replication, `confirmed`, one that is ended meanwhile says that by a
/// warning as well (PostgreSQL's syncrep.c).
pub fn loss(error: &Error, confirmed: bool) -> Loss {
    // admin_shutdown, crash_shutdown.
    let speaks_of_all = match error.sqlstate.as_deref() {
        Some("57P01") => !confirmed,
        Some("57P02") => true,
        _ => false,
    };
    if error.is_warning && speaks_of_all {
        Loss::All
    } else if error.sqlstate.is_some() {
        Loss::One
    } else {
        Loss::Cut
    }
}

/// What stood in the way of an attempt that failed for this reason; `to_socket` where it went to a Unix socket, on whose
/// way nothing else can refuse.
pub fn barrier(error: &Error, to_socket: bool) -> Barrier {
    let says = |words: &str| error.message.contains(words);
    // cannot_connect_now. The words of a server that does not speak English do not tell which: a smart shutdown, in which
    // the sessions that there are live on, or a start.
    if error.sqlstate.as_deref() == Some("57P03") {
        if says("starting up") || says("in recovery mode") || says("not yet accepting connections")
        {
            Barrier::Starting
        } else {
            Barrier::NotServing
        }
    } else if error.sqlstate.is_some() {
        Barrier::Denied
    } else if error.reached {
        Barrier::Refused
    } else if to_socket && (says("Connection refused") || says("No such file or directory")) {
        Barrier::Down
    } else {
        Barrier::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sqlstate: &str, is_warning: bool, message: &str) -> Error {
        Error {
            sqlstate: (!sqlstate.is_empty()).then(|| sqlstate.to_owned()),
            message: message.to_owned(),
            reached: !sqlstate.is_empty(),
            is_warning,
        }
    }

    #[test]
    fn only_a_warning_speaks_of_all_sessions() {
        for (sqlstate, is_warning, meant) in [
            ("57P01", true, Loss::All),
            ("57P02", true, Loss::All),
            ("57P01", false, Loss::One),
            ("57P02", false, Loss::One),
            ("57P05", false, Loss::One),
            ("01000", true, Loss::One),
            ("", false, Loss::Cut),
        ] {
            let error = error(sqlstate, is_warning, "");
            assert_eq!(loss(&error, false), meant, "{sqlstate}");
            let meant = match sqlstate {
                "57P01" => Loss::One,
                _ => meant,
            };
            assert_eq!(loss(&error, true), meant, "{sqlstate}");
        }
    }

    #[test]
    fn a_server_that_goes_down_is_told_from_one_that_comes_up() {
        for (sqlstate, message, to_socket, meant) in [
            (
                "57P03",
                "the database system is shutting down",
                true,
                Barrier::NotServing,
            ),
            (
                "57P03",
                "das Datenbanksystem startet",
                true,
                Barrier::NotServing,
            ),
            (
                "57P03",
                "the database system is starting up",
                false,
                Barrier::Starting,
            ),
            (
                "57P03",
                "the database system is in recovery mode",
                false,
                Barrier::Starting,
            ),
            (
                "28P01",
                "password authentication failed",
                false,
                Barrier::Denied,
            ),
            ("", "Connection refused", true, Barrier::Down),
            ("", "No such file or directory", true, Barrier::Down),
            (
                "",
                "Resource temporarily unavailable",
                true,
                Barrier::Unreachable,
            ),
            ("", "Connection refused", false, Barrier::Unreachable),
            ("", "No route to host", false, Barrier::Unreachable),
        ] {
            let error = error(sqlstate, false, message);
            assert_eq!(barrier(&error, to_socket), meant, "{sqlstate} {message}");
        }
    }
}
