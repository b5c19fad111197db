//! What is said to the server, kept from one schedule to the next: the product's wording of a question, and what the server
//! reads in it. To make both anew each time would be most of the work.

use std::rc::Rc;

use super::process::Spoken;
use super::sql::{Program, Reader};
use crate::acquire::asked::Asked;
use crate::acquire::state::Question;
use crate::lock::LockRequest;

/// A question, and of the request what its wording depends on.
type Subject = (Question, bool, u32, bool, Option<std::time::Duration>);

#[derive(Default)]
pub struct Wordings {
    reader: Reader,
    asked: Vec<(Subject, Rc<Asked>, Program)>,
}

impl Wordings {
    /// What the server reads.
    pub fn read(&mut self, sql: &[u8]) -> Program {
        self.reader.read(sql)
    }

    /// A question of one who wants a lock.
    pub fn ask(
        &mut self,
        question: Question,
        request: &LockRequest,
        spoken: &Spoken,
    ) -> (Rc<Asked>, Program) {
        let LockRequest {
            shared,
            slots,
            fence,
            settings,
            ..
        } = request;
        let subject = (question, *shared, *slots, *fence, settings.ttl);
        let known = self.asked.iter().find(|(other, ..)| *other == subject);
        if let Some((_, asked, program)) = known
            && !depends_on_server(question)
        {
            return (Rc::clone(asked), Rc::clone(program));
        }
        let asked = Asked::new(question, request, true, spoken).expect("all can be said");
        let asked = Rc::new(asked);
        let program = self.reader.read(asked.sql().to_bytes());
        if !depends_on_server(question) && self.asked.len() < 1000 {
            self.asked
                .push((subject, Rc::clone(&asked), Rc::clone(&program)));
        }
        (asked, program)
    }
}

/// Whether the wording is another behind a pooler.
fn depends_on_server(question: Question) -> bool {
    matches!(
        question,
        Question::Try {
            scope: crate::server::session_settings::LockScope::Session,
            ..
        }
    )
}
