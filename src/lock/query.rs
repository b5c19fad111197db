//! A question to the server, which knows what its answer means. One query of several statements is one round trip; which
//! statement has which outcome is known where they are written, and nowhere else.

use std::ffi::{CStr, CString};
use std::time::Duration;

use crate::pq::{Error, Outcome};
use crate::sys;

/// The first statement of every query.
///
/// A role or a database may have a `search_path` that puts a schema of others before `pg_catalog`, and operators, types and
/// functions there that fit as well or better. So the first statement has nothing but `pg_catalog` searched: the
/// server looks up what a statement names only when those before it have run. `pg_temp` would come before it if it were not
/// named. The statement itself looks nothing up, needs no snapshot, and what it sets is over with the transaction: with
/// that of the query, or behind a pooler with the one that is open, so that the pool's next client never meets it.
const PATH: &str = "set local search_path to pg_catalog, pg_temp";

/// To be selected: an empty text, and a commit that replication has confirmed, and so flushed, before it is answered. A commit
/// that wrote nothing would be neither: so a message is written. What a role or a database has for `synchronous_commit` counts
/// only where it is stronger.
pub const CONFIRMED: &str = "pg_catalog.left(pg_catalog.pg_logical_emit_message(true, 'pglock', '')::text, 0), \
     case when pg_catalog.current_setting('synchronous_commit') <> 'remote_apply' then pg_catalog.left(\
     pg_catalog.set_config('synchronous_commit', 'on', true), 0) end";

/// A question whose answer is an `A`.
pub struct Query<A> {
    sql: CString,
    statements: usize,
    read: Box<Read<A>>,
}

/// Reads an answer; or says why it is none.
type Read<A> = dyn Fn(&Answer) -> Result<A, Unanswered>;

/// Why there is no answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// The server refused a statement, for the reason it gives.
    Refused(Error),
    /// What the server says is no answer, or cannot be true.
    Senseless(&'static str),
}

impl From<Unanswered> for Error {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Refused(error) => error,
            Unanswered::Senseless(why) => Self::new(why),
        }
    }
}

impl<A> Query<A> {
    /// What to send.
    pub fn sql(&self) -> &CStr {
        &self.sql
    }

    /// How many statements it has.
    #[cfg(test)]
    pub fn statements(&self) -> usize {
        self.statements
    }

    /// What the outcomes of its statements mean.
    ///
    /// # Errors
    /// The server gave no answer.
    pub fn read(&self, outcomes: &[Outcome]) -> Result<A, Unanswered> {
        (self.read)(&Answer {
            outcomes,
            statements: self.statements,
        })
    }
}

impl Query<()> {
    /// Asks for nothing but a sign of life. It looks nothing up, so it needs no path.
    pub fn sign_of_life() -> Self {
        Self {
            sql: c";".into(),
            statements: 1,
            read: Box::new(|answer| answer.complete()),
        }
    }

    /// Asks for a sign of life that replication has confirmed.
    pub fn confirmed_sign_of_life() -> Self {
        let mut statements = Statements::new();
        statements.read_committed();
        statements.confirm();
        statements.query(|_| Ok(()))
    }
}

/// The statements of a query that is being written.
pub struct Statements(Vec<String>);

/// Where the outcome of a statement is.
#[derive(Clone, Copy)]
pub struct Place(usize);

impl Statements {
    /// Begins a query. All that pglock sends begin here, but for `;` and `rollback`, which look nothing up.
    pub fn new() -> Self {
        Self(vec![PATH.to_owned()])
    }

    /// Adds a statement.
    pub fn add(&mut self, statement: impl Into<String>) -> Place {
        let place = Place(self.0.len());
        self.0.push(statement.into());
        place
    }

    /// Begins a transaction of its own at the level at which a statement need not wait for its snapshot, whatever a role
    /// has for its default.
    pub fn read_committed(&mut self) {
        self.add("set transaction isolation level read committed");
    }

    /// Adds one that has all of it confirmed by replication.
    pub fn confirm(&mut self) {
        self.add(format!("select pg_catalog.concat({CONFIRMED})"));
    }

    /// The query, and how its answer is read if none of its statements is refused.
    pub fn query<A>(self, read: impl Fn(&Answer) -> Result<A, &'static str> + 'static) -> Query<A> {
        self.finish(move |answer| {
            answer.complete()?;
            read(answer).map_err(Unanswered::Senseless)
        })
    }

    /// The query, and how its answer is read even if it ends with a refusal: what came before that is done.
    pub fn query_in_part<A>(self, read: impl Fn(&Answer) -> A + 'static) -> Query<A> {
        self.finish(move |answer| Ok(read(answer)))
    }

    fn finish<A>(self, read: impl Fn(&Answer) -> Result<A, Unanswered> + 'static) -> Query<A> {
        Query {
            sql: sys::c_string(self.0.join("; ")),
            statements: self.0.len(),
            read: Box::new(read),
        }
    }
}

/// What the server said to a query.
pub struct Answer<'a> {
    outcomes: &'a [Outcome],
    statements: usize,
}

impl Answer<'_> {
    /// Looks whether each statement was answered, and none refused.
    fn complete(&self) -> Result<(), Unanswered> {
        let is_refusal = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        match self.outcomes {
            [.., Outcome::Failed(error)] => Err(Unanswered::Refused(error.clone())),
            outcomes if outcomes.iter().any(is_refusal) => {
                Err(Unanswered::Senseless("the server goes on after an error"))
            }
            outcomes if outcomes.len() != self.statements => Err(Unanswered::Senseless(
                "the server did not answer all that it was asked",
            )),
            _ => Ok(()),
        }
    }

    /// Whether the statement at this place ran.
    pub fn is_done(&self, place: Place) -> bool {
        matches!(self.outcomes.get(place.0), Some(Outcome::Done { .. }))
    }

    /// The rows that it returned; none if it was not reached.
    pub fn rows(&self, place: Place) -> &[Vec<Option<String>>] {
        match self.outcomes.get(place.0) {
            Some(Outcome::Done { rows }) => rows,
            Some(Outcome::Failed(_)) | None => &[],
        }
    }

    /// A field of its first row; `None` where there is no such, or it is null.
    pub fn field(&self, place: Place, column: usize) -> Option<&str> {
        self.outcomes.get(place.0)?.field(column)
    }

    /// The same, as a number of seconds; one that is negative counts as zero.
    pub fn seconds(&self, place: Place, column: usize) -> Option<Duration> {
        let seconds: f64 = self.field(place, column)?.parse().ok()?;
        let seconds = Some(seconds).filter(|seconds| seconds.is_finite())?;
        Duration::try_from_secs_f64(seconds.max(0.0)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(text: &str) -> Outcome {
        Outcome::Done {
            rows: vec![vec![Some(text.to_owned())]],
        }
    }

    fn refusal() -> Error {
        Error {
            sqlstate: Some("42501".to_owned()),
            ..Error::new("no")
        }
    }

    #[test]
    fn an_answer_is_read_where_its_statement_stands() {
        let mut statements = Statements::new();
        let first = statements.add("select 1");
        let second = statements.add("select 2");
        let query = statements.query(move |answer| {
            let field = |place| answer.field(place, 0).unwrap_or_default().to_owned();
            match field(first).is_empty() {
                true => Err("empty"),
                false => Ok((field(first), field(second))),
            }
        });
        let sql = query.sql().to_str().unwrap();
        assert_eq!(sql, format!("{PATH}; select 1; select 2"));
        let failed = || Outcome::Failed(refusal());
        let read = |outcomes: Vec<Outcome>| query.read(&outcomes);
        assert_eq!(
            read(vec![done(""), done("a"), done("b")]),
            Ok(("a".to_owned(), "b".to_owned()))
        );
        assert_eq!(
            read(vec![done(""), done(""), done("b")]),
            Err(Unanswered::Senseless("empty"))
        );
        for outcomes in [
            vec![failed()],
            vec![done(""), done("a"), failed()],
            vec![done(""), failed()],
        ] {
            assert_eq!(read(outcomes), Err(Unanswered::Refused(refusal())));
        }
        for outcomes in [
            vec![],
            vec![done(""), done("a")],
            vec![done(""), done("a"), done("b"), done("c")],
            vec![failed(), done("a"), done("b")],
            vec![done(""), failed(), done("b")],
        ] {
            let answer = read(outcomes);
            assert!(
                matches!(answer, Err(Unanswered::Senseless(_))),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn what_came_before_a_refusal_can_be_read() {
        let mut statements = Statements::new();
        let first = statements.add("select 1");
        let second = statements.add("select 2");
        let query =
            statements.query_in_part(move |answer| [first, second].map(|at| answer.is_done(at)));
        let outcomes = [done(""), done("a"), Outcome::Failed(refusal())];
        assert_eq!(query.read(&outcomes), Ok([true, false]));
        assert_eq!(query.read(&outcomes[..1]), Ok([false, false]));
    }

    #[test]
    fn seconds_are_a_time_or_nothing() {
        for (text, time) in [
            ("1.5", Some(Duration::from_millis(1500))),
            ("-3", Some(Duration::ZERO)),
            ("", None),
            ("NaN", None),
            ("inf", None),
            ("1e300", None),
            ("soon", None),
        ] {
            let mut statements = Statements::new();
            let place = statements.add("select 1");
            let query = statements.query(move |answer| Ok(answer.seconds(place, 0)));
            assert_eq!(query.read(&[done(""), done(text)]), Ok(time), "{text:?}");
        }
    }
}
