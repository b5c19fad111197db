//! pglock gives the lock up and ends, as `supervise/end.rs` and `lock/release.rs` have it.

use std::ffi::CString;

use super::*;

impl World {
    /// Begins to give the lock up; once what was asked before is answered, where there is such.
    pub(super) fn begin_release(
        &mut self,
        client: usize,
        lock: Lock,
        is_asked: bool,
        then: Option<Box<Acquiring>>,
    ) {
        self.clients[client].life = Life::Releasing(Releasing {
            lock,
            step: ReleaseStep::Drain,
            until: self.now + EXIT_PATIENCE,
            then,
        });
        if is_asked {
            self.turn_at(client, self.now + EXIT_PATIENCE);
        } else {
            self.ask_release(client);
        }
    }

    pub fn ask_release(&mut self, client: usize) {
        let now = self.now;
        let Some(connection) = self.clients[client].connection else {
            return self.released(client);
        };
        let Life::Releasing(releasing) = &mut self.clients[client].life else {
            return;
        };
        let query = releasing.lock.release_query();
        let sql = query.sql().to_owned();
        releasing.step = ReleaseStep::Asked;
        releasing.until = now + EXIT_PATIENCE;
        let is_last = releasing.then.is_none();
        let program = self.wordings.read(sql.to_bytes());
        self.send_to_server(connection, ToServer::Query(program));
        if is_last {
            self.drop_guardian(client);
        }
        self.turn_at(client, self.now + EXIT_PATIENCE);
    }

    /// Has the server look at the sign, or wait for it to be seen.
    fn ask_of_sign(&mut self, client: usize, step: ReleaseStep, sql: CString) {
        let now = self.now;
        let Some(connection) = self.clients[client].connection else {
            return self.released(client);
        };
        let Life::Releasing(releasing) = &mut self.clients[client].life else {
            return;
        };
        releasing.step = step;
        releasing.until = now + EXIT_PATIENCE;
        let program = self.wordings.read(sql.to_bytes());
        self.send_to_server(connection, ToServer::Query(program));
        self.turn_at(client, now + EXIT_PATIENCE);
    }

    pub fn release_turn(&mut self, client: usize) {
        let now = self.now;
        let connection = self.clients[client].connection;
        while let Some((other, message)) = self.clients[client].inbox.pop_front() {
            if Some(other) != connection {
                continue;
            }
            let Life::Releasing(releasing) = &mut self.clients[client].life else {
                return;
            };
            match (&releasing.step, message) {
                (ReleaseStep::Drain, ToClient::Answer(_)) => return self.ask_release(client),
                (ReleaseStep::Asked, ToClient::Answer(outcomes)) => {
                    let given_up = releasing.lock.release_query().read(&outcomes);
                    return match given_up {
                        Ok(GivenUp::Unseen) => {
                            let query = releasing.lock.look_query();
                            self.ask_of_sign(client, ReleaseStep::Looking, query.sql().to_owned());
                        }
                        Ok(GivenUp::Seen | GivenUp::NotHeld) | Err(_) => self.released(client),
                    };
                }
                (ReleaseStep::Looking, ToClient::Answer(outcomes)) => {
                    return match releasing.lock.look_query().read(&outcomes) {
                        Ok(true) => {
                            let query = releasing.lock.linger_query();
                            self.ask_of_sign(
                                client,
                                ReleaseStep::Lingering,
                                query.sql().to_owned(),
                            );
                        }
                        Ok(false) | Err(_) => self.released(client),
                    };
                }
                (ReleaseStep::Lingering, ToClient::Answer(_)) => return self.released(client),
                (_, ToClient::Closed(_)) => return self.released(client),
                (_, _) => {}
            }
        }
        if let Life::Releasing(releasing) = &self.clients[client].life {
            if releasing.until <= now {
                self.released(client);
            } else {
                let until = releasing.until;
                self.turn_at(client, until);
            }
        }
    }

    pub fn released(&mut self, client: usize) {
        let life = mem::replace(&mut self.clients[client].life, Life::Exited);
        let Life::Releasing(releasing) = life else {
            return;
        };
        match releasing.then {
            Some(mut acquiring) => {
                acquiring.order = Pending::Release;
                self.clients[client].life = Life::Acquiring(acquiring);
                self.acquire_on(client, acquire::Event::Finished);
            }
            None => self.exit(client),
        }
    }

    /// pglock ends by itself.
    pub fn exit(&mut self, client: usize) {
        self.tell(|| format!("pglock {client}: ends"));
        if let Life::Acquiring(_) = self.clients[client].life {
            self.drop_beside(client);
        }
        self.clients[client].life = Life::Exited;
        self.drop_connection(client);
        self.drop_guardian(client);
        self.look();
    }

    pub fn drop_connection(&mut self, client: usize) {
        if let Some(connection) = self.clients[client].connection.take() {
            self.release(connection);
        }
    }
}
