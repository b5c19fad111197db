//! What the text of a query depends on beside its subject: the server that it is for.

use crate::pq::{Connection, Error};

/// A server as far as the SQL for it differs from that for others.
pub trait Dialect {
    /// The server's version, as in 150018 for 15.18.
    fn server_version(&self) -> i32;

    /// The process id of the backend, as it was told at start-up; behind a pooler it is made up.
    fn backend_pid(&self) -> i32;

    /// A text as a literal of SQL.
    ///
    /// # Errors
    /// To the server it would be another text.
    fn quote(&self, text: &str) -> Result<String, Error>;
}

impl Dialect for Connection {
    fn server_version(&self) -> i32 {
        self.server_version()
    }

    fn backend_pid(&self) -> i32 {
        self.backend_pid()
    }

    fn quote(&self, text: &str) -> Result<String, Error> {
        self.quote(text)
    }
}
