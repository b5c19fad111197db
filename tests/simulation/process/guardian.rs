//! The guardian, as `guardian.rs` has it.

use super::*;

impl World {
    pub fn has_guardian(&self, client: usize) -> bool {
        let it = &self.clients[client];
        it.guardian
            .is_some_and(|guardian| it.guardians[guardian].is_alive)
    }

    pub fn spawn_guardian(&mut self, client: usize) {
        self.drop_guardian(client);
        let it = &mut self.clients[client];
        let connection = it.connection;
        it.guardian = Some(it.guardians.len());
        it.guardians.push(Guardian {
            is_alive: true,
            is_frozen: false,
            connection,
            state: rule::State::Watching,
            told: false,
        });
        if let Some(connection) = connection {
            self.connections[connection].holders += 1;
        }
        let guardian = self.clients[client].guardians.len() - 1;
        self.wake_guardian(client, guardian);
    }

    /// Ends the guardian that there is.
    pub fn drop_guardian(&mut self, client: usize) {
        if let Some(guardian) = self.clients[client].guardian.take() {
            self.end_guardian(client, guardian);
        }
    }

    pub fn end_guardian(&mut self, client: usize, guardian: usize) {
        let it = &mut self.clients[client].guardians[guardian];
        if mem::replace(&mut it.is_alive, false)
            && let Some(connection) = it.connection
        {
            self.release(connection);
        }
    }

    pub fn replace_guardian(&mut self, client: usize) {
        if self.has_guardian(client) {
            return;
        }
        let is_connecting = matches!(
            self.supervising(client).map(|run| &run.wire),
            Some(Wire::Connecting(..))
        );
        self.clients[client].guardian = None;
        if !is_connecting && self.clients[client].no_processes == 0 {
            self.spawn_guardian(client);
        }
    }

    pub fn guardian_turn(&mut self, client: usize, guardian: usize) {
        let it = &mut self.clients[client];
        if it.host_frozen > 0
            || !it.guardians[guardian].is_alive
            || it.guardians[guardian].is_frozen
        {
            return;
        }
        let mut event = match it.guardians[guardian].state {
            rule::State::Watching | rule::State::Firing(_)
                if it.is_dead || matches!(it.life, Life::Exited) =>
            {
                rule::Event::Orphaned
            }
            rule::State::Watching
            | rule::State::Firing(_)
            | rule::State::Killing(_)
            | rule::State::KilledAtLast => rule::Event::Look,
        };
        it.guardians[guardian].told = false;
        loop {
            let now = self.now_of(client);
            let it = &mut self.clients[client];
            let view = rule::View {
                has_group: it.shared.has_group,
                deadline: it.shared.deadline,
                has_fired: it.shared.has_fired,
            };
            let order = it.guardians[guardian].state.on(event, view, now);
            match order {
                rule::Order::Watch(until) => {
                    if let Some(until) = until {
                        let at = self.clients[client].clock.time(until);
                        let late = self.timer_delay(client);
                        self.at(at + late, Event::Guardian(client, guardian));
                    }
                    return;
                }
                rule::Order::Fire => {
                    self.clients[client].shared.has_fired = true;
                    self.tell(|| format!("guardian of {client}: kills the command in time"));
                    self.signal_group(client, Signal::KILL);
                    event = rule::Event::Look;
                }
                rule::Order::Kill => {
                    self.tell(|| format!("guardian of {client}: kills the command"));
                    self.signal_group(client, Signal::KILL);
                    if self.group_is_alive(client) {
                        return self.after(MILLISECOND, Event::Guardian(client, guardian));
                    }
                    event = rule::Event::GroupGone;
                }
                rule::Order::End => return self.end_guardian(client, guardian),
            }
        }
    }
}
