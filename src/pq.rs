//! A thin safe wrapper over libpq, and the only place that calls it. One method for a call, no policy.
//! Nothing here waits: [`Connection::wants`] tells which descriptor to poll, and for what.
//!
//! The manual meant throughout is PostgreSQL's chapter "libpq - C Library".
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pq_sys::{PGVerbosity, PGcancel, PGconn, PGresult, PQconninfoOption};

use crate::secrets;

/// libpq's enumerations, as libpq-fe.h numbers them. They are taken as numbers: one that is newer than the bindings, and so
/// no value of theirs, would be undefined behaviour.
mod raw {
    use std::ffi::c_int;

    use pq_sys::{ConnStatusType, ExecStatusType, PGconn, PGresult, PostgresPollingStatusType};

    unsafe extern "C" {
        pub fn PQstatus(connection: *const PGconn) -> c_int;
        pub fn PQconnectPoll(connection: *mut PGconn) -> c_int;
        pub fn PQresultStatus(result: *const PGresult) -> c_int;
    }

    pub const BAD: c_int = ConnStatusType::CONNECTION_BAD as c_int;
    pub const STARTED: c_int = ConnStatusType::CONNECTION_STARTED as c_int;
    pub const NEEDED: c_int = ConnStatusType::CONNECTION_NEEDED as c_int;

    pub const POLLING_READING: c_int = PostgresPollingStatusType::PGRES_POLLING_READING as c_int;
    pub const POLLING_WRITING: c_int = PostgresPollingStatusType::PGRES_POLLING_WRITING as c_int;
    pub const POLLING_OK: c_int = PostgresPollingStatusType::PGRES_POLLING_OK as c_int;

    pub const EMPTY_QUERY: c_int = ExecStatusType::PGRES_EMPTY_QUERY as c_int;
    pub const COMMAND_OK: c_int = ExecStatusType::PGRES_COMMAND_OK as c_int;
    pub const TUPLES_OK: c_int = ExecStatusType::PGRES_TUPLES_OK as c_int;
    pub const COPY_OUT: c_int = ExecStatusType::PGRES_COPY_OUT as c_int;
    pub const COPY_IN: c_int = ExecStatusType::PGRES_COPY_IN as c_int;
    pub const COPY_BOTH: c_int = ExecStatusType::PGRES_COPY_BOTH as c_int;
}

/// What libpq or the server says went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Error {
    /// The server's five letters, where the server spoke.
    pub sqlstate: Option<String>,
    /// The message, without libpq's newline at the end.
    pub message: String,
    /// Whether the other side was there to talk to when it went wrong.
    pub reached: bool,
    /// Whether the server says it as a warning, and not as what has ended a statement or the session.
    pub is_warning: bool,
}

/// Without what must not be shown.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&secrets::mask(&self.message))
    }
}

impl Error {
    /// An error of our own.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }
}

/// Keywords of libpq's and their values.
pub type Conninfo = Vec<(CString, CString)>;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
}

/// How far connecting has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Waiting for the other side.
    Pending,
    /// The connection is ready for queries.
    Ready,
}

/// The outcome of one statement of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran, and returned these rows; null is `None`.
    Done {
        /// The rows, in the server's order.
        rows: Vec<Vec<Option<String>>>,
    },
    /// The server refused it.
    Failed(Error),
}

impl Outcome {
    /// A field of the first row; `None` where there is no such, or it is null.
    pub fn field(&self, column: usize) -> Option<&str> {
        match self {
            Self::Done { rows } => rows.first()?.get(column)?.as_deref(),
            Self::Failed(_) => None,
        }
    }
}

/// A connection to a server, or an attempt at one. Dropping it closes it.
pub struct Connection {
    raw: NonNull<PGconn>,
    interest: Interest,
    /// What the server said unasked, filled by [`on_notice`]; counted, so that it stays where libpq knows it to be.
    notices: Arc<Mutex<Notices>>,
}

/// What a server has said unasked.
#[derive(Default)]
struct Notices {
    /// Why it ends the session, or what libpq itself complains of.
    last_words: Option<Error>,
    /// The last notice of any other kind.
    remark: Option<Error>,
}

// SAFETY: libpq lets one thread after the other use a connection, as long as no two do at the same time (chapter
// "Behavior in Threaded Programs"), and a value of this type has one owner. What else it has is fit for that by itself.
unsafe impl Send for Connection {}

impl Connection {
    /// Begins to connect (`PQconnectStartParams`). Of settings given twice the later counts, and libpq
    /// adds what its own sources say. Resolves host names that have no address, which may block.
    ///
    /// # Errors
    /// A setting that libpq does not take.
    pub fn start(settings: &Conninfo) -> Result<Self, Error> {
        let connection = Self::open(settings)?;
        if connection.is_bad() {
            return Err(connection.start_up_error(false));
        }
        // SAFETY: `raw` is a live connection. The receiver gets the address of a place on the heap that lives
        // as long as this value, and so as long as the connection.
        unsafe {
            let raw = connection.raw.as_ptr();
            let notices = Arc::as_ptr(&connection.notices).cast_mut().cast();
            pq_sys::PQsetNoticeReceiver(raw, Some(on_notice), notices);
            // Only so does the SQLSTATE of a refused start-up appear, in the text of the message.
            pq_sys::PQsetErrorVerbosity(raw, PGVerbosity::PQERRORS_VERBOSE);
        }
        Ok(connection)
    }

    /// The same, also where a setting is wrong.
    fn open(settings: &Conninfo) -> Result<Self, Error> {
        let terminated = |pick: fn(&(CString, CString)) -> *const c_char| -> Vec<*const c_char> {
            settings.iter().map(pick).chain([ptr::null()]).collect()
        };
        let keywords = terminated(|(keyword, _)| keyword.as_ptr());
        let values = terminated(|(_, value)| value.as_ptr());
        // SAFETY: both arrays end with a null pointer, as the call demands, and they and the strings
        // that they point at outlive it; libpq copies what it keeps.
        let raw = unsafe { pq_sys::PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 0) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::new("out of memory"));
        };
        Ok(Self {
            raw,
            // Before the first PQconnectPoll the manual wants it polled as if that had asked to write.
            interest: Interest::Write,
            notices: Arc::default(),
        })
    }

    /// Carries connecting on (`PQconnectPoll`) when what it [wants](Self::wants) is there. May block where a
    /// library of libpq's does, for Kerberos say.
    ///
    /// # Errors
    /// No host could be connected to, or the server refused.
    pub fn connect(&mut self) -> Result<Progress, Error> {
        let reached = self.is_reached();
        // SAFETY: `raw` is a live connection that is being connected.
        match unsafe { raw::PQconnectPoll(self.raw.as_ptr()) } {
            raw::POLLING_OK => {
                self.interest = Interest::Read;
                // SAFETY: as above.
                unsafe {
                    pq_sys::PQsetErrorVerbosity(self.raw.as_ptr(), PGVerbosity::PQERRORS_DEFAULT);
                    pq_sys::PQsetnonblocking(self.raw.as_ptr(), 1);
                }
                Ok(Progress::Ready)
            }
            raw::POLLING_READING => {
                self.interest = Interest::Read;
                Ok(Progress::Pending)
            }
            raw::POLLING_WRITING => {
                self.interest = Interest::Write;
                Ok(Progress::Pending)
            }
            _ => Err(self.start_up_error(reached)),
        }
    }

    /// Its socket (`PQsocket`), if it has one; while it connects libpq may go on to another.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: `raw` is a live connection.
        let socket = unsafe { pq_sys::PQsocket(self.raw.as_ptr()) };
        // SAFETY: libpq has it open. It closes it only in calls that connect, send, take in what has come, or finish, and
        // all of these are methods that take the connection for themselves, which they cannot while this borrows it.
        (socket >= 0).then(|| unsafe { BorrowedFd::borrow_raw(socket) })
    }

    /// Which descriptor to poll, and for what.
    pub fn wants(&self) -> Option<(BorrowedFd<'_>, Interest)> {
        self.socket().map(|socket| (socket, self.interest))
    }

    /// Sends a query of one or more statements (`PQsendQuery`), as far as it can be sent now.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn send(&mut self, sql: &CStr) -> Result<(), Error> {
        // SAFETY: `raw` is a live connection; libpq copies the text.
        let sent = unsafe { pq_sys::PQsendQuery(self.raw.as_ptr(), sql.as_ptr()) };
        if sent == 0 {
            return Err(self.error());
        }
        self.flush()
    }

    /// Sends what is left to send and takes in what there is to read; to be called when what it
    /// [wants](Self::wants) is there.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn advance(&mut self) -> Result<(), Error> {
        // SAFETY: `raw` is a live connection.
        if unsafe { pq_sys::PQconsumeInput(self.raw.as_ptr()) } == 0 {
            return Err(self.error());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Error> {
        // SAFETY: `raw` is a live connection.
        match unsafe { pq_sys::PQflush(self.raw.as_ptr()) } {
            0 => self.interest = Interest::Read,
            1 => self.interest = Interest::Both,
            _ => return Err(self.error()),
        }
        Ok(())
    }

    /// Whether [`next_outcome`](Self::next_outcome) would have to wait for the server (`PQisBusy`). Makes sense of what
    /// was taken in, and closes the connection where there is none in it.
    pub fn is_busy(&mut self) -> bool {
        // SAFETY: `raw` is a live connection.
        unsafe { pq_sys::PQisBusy(self.raw.as_ptr()) == 1 }
    }

    /// The next statement's outcome (`PQgetResult`), `None` after the last. Only when not
    /// [busy](Self::is_busy): else it would block.
    ///
    /// # Errors
    /// The server begins to copy, which no query of ours asks for; libpq would say so again and again.
    pub fn next_outcome(&mut self) -> Result<Option<Outcome>, Error> {
        // SAFETY: `raw` is a live connection.
        let Some(raw) = NonNull::new(unsafe { pq_sys::PQgetResult(self.raw.as_ptr()) }) else {
            return Ok(None);
        };
        let result = QueryResult(raw);
        Ok(Some(match result.status() {
            raw::TUPLES_OK | raw::COMMAND_OK | raw::EMPTY_QUERY => Outcome::Done {
                rows: result.rows(),
            },
            raw::COPY_IN | raw::COPY_OUT | raw::COPY_BOTH => {
                return Err(Error::new("the server began to copy in place of an answer"));
            }
            _ => Outcome::Failed(result.error()),
        }))
    }

    /// Drops what others have notified the server's clients of (`PQnotifies`): behind a pooler it may reach us, and libpq
    /// would keep it.
    pub fn forget_notifications(&mut self) {
        loop {
            // SAFETY: `raw` is a live connection. What comes back is null or ours to free, in one piece, and nobody uses
            // it after that.
            unsafe {
                let notification = pq_sys::PQnotifies(self.raw.as_ptr());
                if notification.is_null() {
                    return;
                }
                pq_sys::PQfreemem(notification.cast());
            }
        }
    }

    /// Whether libpq knows the connection to be closed.
    pub fn is_bad(&self) -> bool {
        // SAFETY: `raw` is a live connection.
        let status = unsafe { raw::PQstatus(self.raw.as_ptr()) };
        status == raw::BAD
    }

    /// The process id of the backend, as it was told at start-up; behind a pooler it is made up.
    pub fn backend_pid(&self) -> i32 {
        // SAFETY: `raw` is a live connection.
        unsafe { pq_sys::PQbackendPID(self.raw.as_ptr()) }
    }

    /// The server's version, as in 150018 for 15.18; 0 while not connected.
    pub fn server_version(&self) -> i32 {
        // SAFETY: `raw` is a live connection.
        unsafe { pq_sys::PQserverVersion(self.raw.as_ptr()) }
    }

    /// The numeric address that it is connected to (`PQhostaddr`); `None` for a Unix socket.
    pub fn address(&self) -> Option<String> {
        // SAFETY: `raw` is a live connection; the string is the connection's, and is copied here.
        let address = unsafe { text(pq_sys::PQhostaddr(self.raw.as_ptr())) };
        address.filter(|address| !address.is_empty())
    }

    /// Which server it is: its address, or the directory of its socket, and its port.
    pub fn place(&self) -> String {
        // SAFETY: `raw` is a live connection; the strings are the connection's, and are copied here.
        let [host, port] = unsafe {
            [
                text(pq_sys::PQhost(self.raw.as_ptr())),
                text(pq_sys::PQport(self.raw.as_ptr())),
            ]
        };
        let host = self.address().or(host).unwrap_or_default();
        format!("{host}:{}", port.unwrap_or_default())
    }

    /// A setting that the server reports by itself (`PQparameterStatus`).
    pub fn reported(&self, name: &CStr) -> Option<String> {
        // SAFETY: `raw` is a live connection; what comes back is null or a string that lives until the
        // next call, and is copied here.
        unsafe { text(pq_sys::PQparameterStatus(self.raw.as_ptr(), name.as_ptr())) }
    }

    /// A text as a literal of SQL (`PQescapeLiteral`).
    ///
    /// # Errors
    /// To the server it would be another text, for the session is not in UTF-8 as it was asked to be; or libpq could not
    /// quote it.
    pub fn quote(&self, text: &str) -> Result<String, Error> {
        let encoding = self.reported(c"client_encoding").unwrap_or_default();
        if !text.is_ascii() && encoding != "UTF8" {
            return Err(Error::new(format!(
                "the encoding of the session is {encoding:?}, and not \"UTF8\""
            )));
        }
        // SAFETY: `raw` is a live connection, and the text is as long as the call is told.
        let literal =
            unsafe { pq_sys::PQescapeLiteral(self.raw.as_ptr(), text.as_ptr().cast(), text.len()) };
        // SAFETY: the literal is null or a string that libpq allocated; it is copied, and then freed.
        let quoted = unsafe {
            let quoted = self::text(literal);
            pq_sys::PQfreemem(literal.cast());
            quoted
        };
        quoted.ok_or_else(|| self.error())
    }

    /// What is needed to cancel the running query from elsewhere (`PQgetCancel`).
    pub fn canceller(&self) -> Option<Canceller> {
        // SAFETY: `raw` is a live connection.
        NonNull::new(unsafe { pq_sys::PQgetCancel(self.raw.as_ptr()) }).map(Canceller)
    }

    /// Why the server ends the session, if it has said so.
    pub fn take_notice(&self) -> Option<Error> {
        self.notices().last_words.take()
    }

    /// What else the server has said unasked since this was asked last; only the end of that, if it was more.
    pub fn take_remark(&self) -> Option<Error> {
        self.notices().remark.take()
    }

    fn notices(&self) -> MutexGuard<'_, Notices> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What libpq has to say about a message of the server's that nothing was asked for, and that it passed over.
    pub fn take_complaint(&self) -> Option<Error> {
        let last_words = &mut self.notices().last_words;
        last_words.take_if(|notice| notice.sqlstate.is_none())
    }

    /// The last error, with libpq's newline trimmed.
    fn error(&self) -> Error {
        // SAFETY: `raw` is a live connection; the message is copied.
        let message = unsafe { text(pq_sys::PQerrorMessage(self.raw.as_ptr())) };
        Error::new(message.unwrap_or_default().trim())
    }

    /// The error of a refused start-up. At the verbosity that start-up needs a line reads
    /// `FATAL:  53300: sorry, too many clients already`, and lines of detail follow: take the state out,
    /// and the lines of detail that speak of the server's source off.
    fn start_up_error(&self, reached: bool) -> Error {
        let raw = self.error().message;
        let mut states = Vec::new();
        let mut lines = Vec::new();
        for line in raw.lines() {
            if line.starts_with("LOCATION:") {
                continue;
            }
            match split_state(line) {
                Some((before, state, after)) => {
                    states.push(state);
                    lines.push(format!("{before}{after}"));
                }
                None => lines.push(line.trim().to_owned()),
            }
        }
        Error {
            sqlstate: telling(&states).map(str::to_owned),
            message: lines.join("; "),
            reached,
            is_warning: false,
        }
    }

    /// Whether the connection under that to be made is there.
    fn is_reached(&self) -> bool {
        // SAFETY: `raw` is a live connection.
        let status = unsafe { raw::PQstatus(self.raw.as_ptr()) };
        !matches!(status, raw::NEEDED | raw::STARTED)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: `raw` is live, and nobody uses it after this.
        unsafe { pq_sys::PQfinish(self.raw.as_ptr()) }
    }
}

/// The state of the attempt that tells more, where libpq has made one with TLS and one without: the server may not
/// let the one in at all (class 28), and have no room for the other at that moment.
fn telling<'a>(states: &[&'a str]) -> Option<&'a str> {
    let other = states.iter().rfind(|state| !state.starts_with("28"));
    other.or(states.last()).copied()
}

/// Splits `... FATAL:  53300: text` into what stands before the state, the state, and the text.
fn split_state(line: &str) -> Option<(&str, &str, &str)> {
    let at = line.find(":  ")? + 3;
    let (state, after) = line[at..].split_once(": ")?;
    let is_state = state.len() == 5
        && state
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    is_state.then_some((&line[..at], state, after))
}

/// A right to cancel, usable from another process: it talks to the server by itself.
pub struct Canceller(NonNull<PGcancel>);

impl Canceller {
    /// Asks the server to cancel what the connection runs (`PQcancel`). Blocks until the server has
    /// taken the request, or cannot be reached.
    pub fn cancel(&self) {
        let mut message = [0 as c_char; 256];
        // SAFETY: the handle is live, and the buffer is as long as the call is told.
        unsafe {
            pq_sys::PQcancel(
                self.0.as_ptr(),
                message.as_mut_ptr(),
                message.len() as c_int,
            );
        }
    }
}

impl Drop for Canceller {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and nobody uses it after this.
        unsafe { pq_sys::PQfreeCancel(self.0.as_ptr()) }
    }
}

/// Takes a connection string or URI apart (`PQconninfoParse`): keyword and value, as given.
///
/// # Errors
/// libpq's message. It may quote any part of the string, the password too.
pub fn parse(string: &CStr) -> Result<Vec<(String, String)>, Error> {
    let mut message: *mut c_char = ptr::null_mut();
    // SAFETY: `string` is null-terminated; the list and the message are ours to free.
    let options = unsafe { Options::new(pq_sys::PQconninfoParse(string.as_ptr(), &mut message)) };
    // SAFETY: libpq sets the message to null or to a string of its own making.
    let said = unsafe { text(message) };
    if !message.is_null() {
        // SAFETY: libpq allocated it, and it was copied above.
        unsafe { pq_sys::PQfreemem(message.cast::<c_void>()) };
    }
    match options {
        Some(options) => Ok(options.given()),
        None => Err(Error::new(said.unwrap_or_default().trim())),
    }
}

/// Has libpq read its own sources, for `PQconndefaults` passes over what is wrong with the service that they name.
/// Connects to nothing.
///
/// # Errors
/// There is no such service, or no such file, or libpq does not understand it.
pub fn check_sources() -> Result<(), Error> {
    // libpq looks at a port only when all else is read, and this one cannot be connected to.
    let connection = Connection::open(&vec![(c"port".into(), c"0".into())])?;
    // SAFETY: `raw` is a live connection. It has a user if the settings could be put together.
    let user = unsafe { pq_sys::PQuser(connection.raw.as_ptr()) };
    if user.is_null() {
        return Err(connection.error());
    }
    Ok(())
}

/// The settings of libpq's own sources for one that states none (`PQconndefaults`).
pub fn defaults() -> Vec<(String, String)> {
    // SAFETY: the list is ours, and `Options` frees it.
    let options = unsafe { Options::new(pq_sys::PQconndefaults()) };
    options.map_or_else(Vec::new, |options| options.given())
}

/// libpq's own version, as in 150018 for 15.18.
pub fn library_version() -> i32 {
    // SAFETY: the call takes nothing and returns a number.
    unsafe { pq_sys::PQlibVersion() }
}

/// The same for people, as in `15.18`.
pub fn version() -> String {
    let version = library_version();
    format!("{}.{}", version / 10_000, version % 10_000)
}

/// A list of settings that libpq made.
struct Options(NonNull<PQconninfoOption>);

impl Options {
    /// Takes charge of a list.
    ///
    /// # Safety
    /// `raw` is null or a list that libpq made and that nobody else frees.
    unsafe fn new(raw: *mut PQconninfoOption) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// The entries that have a value.
    fn given(&self) -> Vec<(String, String)> {
        let mut given = Vec::new();
        let mut option = self.0.as_ptr();
        loop {
            // SAFETY: the list ends with an entry without a keyword, and `option` has not passed it.
            let PQconninfoOption { keyword, val, .. } = unsafe { *option };
            // SAFETY: both are null or strings of the list's.
            let (keyword, value) = unsafe { (text(keyword), text(val)) };
            let Some(keyword) = keyword else {
                return given;
            };
            if let Some(value) = value {
                given.push((keyword, value));
            }
            // SAFETY: this entry had a keyword, so another follows it.
            option = unsafe { option.add(1) };
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: the list is live, and nobody uses it after this.
        unsafe { pq_sys::PQconninfoFree(self.0.as_ptr()) }
    }
}

/// The result of one statement.
struct QueryResult(NonNull<PGresult>);

impl QueryResult {
    fn status(&self) -> c_int {
        // SAFETY: the result is live.
        unsafe { raw::PQresultStatus(self.0.as_ptr()) }
    }

    fn rows(&self) -> Vec<Vec<Option<String>>> {
        let raw = self.0.as_ptr();
        // SAFETY: the result is live.
        let (rows, columns) = unsafe { (pq_sys::PQntuples(raw), pq_sys::PQnfields(raw)) };
        let field = |row, column| {
            // SAFETY: the result is live, and the row and the column exist. The value is a string that
            // lives as long as the result, and is copied here.
            unsafe {
                if pq_sys::PQgetisnull(raw, row, column) == 1 {
                    None
                } else {
                    text(pq_sys::PQgetvalue(raw, row, column))
                }
            }
        };
        (0..rows)
            .map(|row| (0..columns).map(|column| field(row, column)).collect())
            .collect()
    }

    fn field(&self, code: u8) -> Option<String> {
        // SAFETY: the result is live; the field is null or a string of the result's, copied here.
        unsafe {
            text(pq_sys::PQresultErrorField(
                self.0.as_ptr(),
                c_int::from(code),
            ))
        }
    }

    /// How grave it is: in English from servers, and from poolers, which do not translate, as they say it.
    fn severity(&self) -> Option<String> {
        self.field(pq_sys::PG_DIAG_SEVERITY_NONLOCALIZED)
            .or_else(|| self.field(pq_sys::PG_DIAG_SEVERITY))
    }

    fn error(&self) -> Error {
        let message = self
            .field(pq_sys::PG_DIAG_MESSAGE_PRIMARY)
            .unwrap_or_else(|| {
                // SAFETY: as above. libpq's own errors have no fields.
                unsafe { text(pq_sys::PQresultErrorMessage(self.0.as_ptr())) }.unwrap_or_default()
            });
        Error {
            sqlstate: self.field(pq_sys::PG_DIAG_SQLSTATE),
            message: message.trim().to_owned(),
            reached: true,
            is_warning: self.severity().as_deref() == Some("WARNING"),
        }
    }
}

impl Drop for QueryResult {
    fn drop(&mut self) {
        // SAFETY: the result is live, and nobody uses it after this.
        unsafe { pq_sys::PQclear(self.0.as_ptr()) }
    }
}

/// Copies a C string; what is not UTF-8 in it is replaced.
///
/// # Safety
/// `raw` is null or points at a null-terminated string.
unsafe fn text(raw: *const c_char) -> Option<String> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: not null, so null-terminated by this function's own condition.
    let string = unsafe { CStr::from_ptr(raw) };
    Some(string.to_string_lossy().into_owned())
}

/// Keeps the reason why the server ends a session, which it says unasked: an error that is fatal, or, where it ends all
/// sessions at once, a warning of a state of its own (admin_shutdown, crash_shutdown). Also what libpq itself finds
/// wrong. Without a receiver of ours libpq
/// would print all that the server says on standard error, which is the command's.
unsafe extern "C" fn on_notice(context: *mut c_void, notice: *const PGresult) {
    // SAFETY: the context is the place that `Connection::start` named, which outlives the connection.
    let place = unsafe { &*context.cast::<Mutex<Notices>>() };
    if let Some(raw) = NonNull::new(notice.cast_mut()) {
        // libpq clears the result itself.
        let result = std::mem::ManuallyDrop::new(QueryResult(raw));
        let error = result.error();
        let ends_session = match result.severity().as_deref() {
            Some("FATAL" | "PANIC") => true,
            Some("WARNING") => matches!(error.sqlstate.as_deref(), Some("57P01" | "57P02")),
            _ => false,
        };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if ends_session {
            place.last_words = Some(error);
        } else if error.sqlstate.is_some() {
            place.remark = Some(error);
        } else if place.last_words.is_none() {
            // libpq's own. Why the session ends is worth more.
            place.last_words = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_refused_start_up_is_taken_out_of_its_line() {
        let line =
            "connection to server at \"localhost\" (::1), port 5432 failed: FATAL:  53300: sorry";
        let (before, state, after) = split_state(line).unwrap();
        assert!(before.ends_with("failed: FATAL:  "));
        assert_eq!((state, after), ("53300", "sorry"));
        assert_eq!(split_state("FATAL:  password failed: no"), None);
        assert_eq!(split_state("no state"), None);
    }

    #[test]
    fn of_two_attempts_the_one_that_was_let_in_tells_more() {
        assert_eq!(telling(&[]), None);
        assert_eq!(telling(&["28000"]), Some("28000"));
        assert_eq!(telling(&["53300", "28000"]), Some("53300"));
        assert_eq!(telling(&["28000", "57P03"]), Some("57P03"));
        assert_eq!(telling(&["28P01", "28000"]), Some("28000"));
    }

    #[test]
    fn connection_strings_are_taken_apart() {
        let given = parse(c"postgresql://me:p%40ss@there:7/db").unwrap();
        let get = |keyword: &str| {
            let found = given.iter().find(|(k, _)| k == keyword);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(get("password"), Some("p@ss"));
        assert_eq!(get("port"), Some("7"));
        assert_eq!(get("sslmode"), None);
        assert!(parse(c"host=a nonsense").is_err());
    }
}
