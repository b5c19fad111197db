//! What goes wrong at a host, and who is found to wait there.

use super::*;

impl World {
    pub fn freeze_host(&mut self, client: usize) {
        let now = self.now;
        let it = &mut self.clients[client];
        it.host_frozen += 1;
        it.keeps_until = 0;
        if let Some(group) = &mut it.group
            && let Some(since) = group.since.take()
        {
            group.work = group.work.saturating_sub(now - since).max(1);
            group.serial += 1;
        }
        self.look();
    }

    pub fn thaw_host(&mut self, client: usize) {
        let now = self.now;
        let it = &mut self.clients[client];
        it.host_frozen -= 1;
        if it.host_frozen > 0 {
            return;
        }
        it.excuse(Reason::Thawed, now, now + SLACK);
        // Who has a SIGKILL pending starts nobody any more.
        if let Some(group) = it.group.as_mut().filter(|group| group.is_dying) {
            group.late_others = 0;
        }
        if let Some(group) = it.group.as_mut()
            && group.has_begun
            && !group.is_stopped
            && group.main
        {
            group.since = Some(now);
            let (work, serial) = (group.work, group.serial);
            self.after(work, Event::CommandWorked(client, serial));
        }
        self.wake(client);
        for guardian in 0..self.clients[client].guardians.len() {
            self.wake_guardian(client, guardian);
        }
        self.look();
    }

    /// The host is gone, with all its processes. Nobody says so.
    pub fn power_off(&mut self, client: usize) {
        let it = &mut self.clients[client];
        if it.has_exited() {
            return;
        }
        // While pglock is stopped by its user there is no lease, and nothing tells the server that it is gone.
        let is_lifted = match &it.life {
            Life::Supervising(run) => run.is_lifted,
            Life::Unborn | Life::Acquiring(_) | Life::Releasing(_) | Life::Exited => false,
        };
        it.is_dead = true;
        it.keeps_until = 0;
        it.life = Life::Exited;
        it.connection = None;
        it.guardian = None;
        for guardian in &mut it.guardians {
            guardian.is_alive = false;
        }
        if let Some(group) = &mut it.group {
            group.main = false;
            group.others = 0;
            group.serial += 1;
        }
        for connection in &mut self.connections {
            if connection.client == client {
                connection.power_off();
            }
        }
        self.takes_long |= is_lifted;
        self.look();
    }

    /// Something stands in the way of a host's processes, or does no longer.
    pub fn hamper(&mut self, client: usize, kind: Kind, begins: bool) {
        let change = |count: &mut u32| {
            if begins {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
            }
        };
        let now = self.now;
        let it = &mut self.clients[client];
        match kind {
            Kind::NoProcesses => change(&mut it.no_processes),
            Kind::Busy => change(&mut it.busy),
            Kind::LateTimers => change(&mut it.late_timers),
            Kind::FreezePglock => {
                it.keeps_until = 0;
                change(&mut it.is_frozen);
            }
            Kind::FreezeGuardian => {
                if let Some(guardian) = it.guardian {
                    it.guardians[guardian].is_frozen = begins;
                    if !begins {
                        self.wake_guardian(client, guardian);
                    }
                }
            }
            _ => {}
        }
        let it = &mut self.clients[client];
        if begins && kind == Kind::FreezePglock {
            it.is_held_up(now);
        }
        // pglock is frozen, and so is its guardian, or that is dead and no other one there yet.
        let is_unguarded = match it.guardian.map(|guardian| &it.guardians[guardian]) {
            Some(guardian) => guardian.is_frozen || !guardian.is_alive,
            None => it.has_command(),
        };
        if begins && (it.is_frozen > 0 || it.is_dead) && is_unguarded {
            it.excuse(Reason::Unguarded, now, Time::MAX);
        }
        self.wake(client);
    }

    /// Whoever waits in vain is told to end, and what is stopped to go on.
    pub fn lose_patience(&mut self) {
        for client in 0..self.clients.len() {
            match self.clients[client].life {
                Life::Acquiring(_) => self.clients[client].signals.push(Signal::TERM),
                Life::Supervising(_) => {
                    self.clients[client].signals.push(Signal::CONT);
                    self.resume(client);
                }
                Life::Unborn | Life::Releasing(_) | Life::Exited => {}
            }
            self.wake(client);
        }
    }

    /// When what a pglock is at is over though it hears nothing more.
    pub fn stage_ends_at(&self, client: usize) -> Option<Time> {
        let it = &self.clients[client];
        match &it.life {
            Life::Supervising(run) => Some(it.clock.time(run.state.stage_ends_at()?)),
            Life::Unborn | Life::Acquiring(_) | Life::Releasing(_) | Life::Exited => None,
        }
    }

    /// Something is done to a process, or by a user.
    pub fn strike(&mut self, client: usize, kind: Kind, time: Time) {
        let now = self.now;
        let it = &mut self.clients[client];
        if it.has_exited() {
            return;
        }
        match kind {
            Kind::KillPglock | Kind::KillBoth => {
                let guardian = it.guardian;
                let is_guarded = guardian.is_some_and(|guardian| {
                    it.guardians[guardian].is_alive && !it.guardians[guardian].is_frozen
                });
                if !is_guarded || kind == Kind::KillBoth {
                    it.excuse(Reason::Unguarded, now, Time::MAX);
                }
                if kind == Kind::KillBoth
                    && let Some(guardian) = guardian
                {
                    self.end_guardian(client, guardian);
                }
                self.die(client);
            }
            Kind::KillGuardian => {
                if let Some(guardian) = it.guardian
                    && it.guardians[guardian].is_alive
                {
                    it.guardian_died = true;
                    if it.is_frozen > 0 || it.no_processes > 0 {
                        it.excuse(Reason::Unguarded, now, Time::MAX);
                    }
                    self.end_guardian(client, guardian);
                    self.wake(client);
                }
            }
            Kind::KillCommand => {
                if let Some(group) = it.group.as_mut().filter(|group| group.main) {
                    group.main = false;
                    group.serial += 1;
                    group.ended = Some(Change::Killed(Signal::KILL));
                    self.wake(client);
                }
            }
            Kind::StopCommand => {
                self.signal_group(client, Signal::STOP);
                let _ = time;
            }
            Kind::SuspendCommand => self.signal_group(client, Signal::TSTP),
            Kind::ContinueCommand => {
                let it = &mut self.clients[client];
                let is_suspended = match &it.life {
                    Life::Supervising(run) => run.suspended,
                    Life::Unborn | Life::Acquiring(_) | Life::Releasing(_) | Life::Exited => false,
                };
                let until = match () {
                    // Nobody is there to stop it.
                    () if is_suspended => Time::MAX,
                    () if it.is_frozen > 0 => it.lease_over().max(now + SLACK),
                    // It is stopped again at once.
                    () => now + SLACK,
                };
                it.excuse(Reason::Continued, now, until);
                self.signal_group(client, Signal::CONT);
            }
            Kind::Interrupt => {
                it.keeps_until = 0;
                it.signals.push(Signal::INT);
            }
            Kind::Terminated => {
                it.keeps_until = 0;
                it.signals.push(Signal::TERM);
            }
            Kind::TypedStop => it.signals.push(Signal::TSTP),
            Kind::TellToContinue => {
                if let Life::Supervising(run) = &self.clients[client].life
                    && run.suspended
                {
                    return self.resume(client);
                }
                self.clients[client].signals.push(Signal::CONT);
            }
            _ => {}
        }
        self.wake(client);
        self.look();
    }

    /// pglock is killed.
    pub fn die(&mut self, client: usize) {
        self.note_lifted(client);
        if let Life::Acquiring(_) = self.clients[client].life {
            self.drop_beside(client);
        }
        let it = &mut self.clients[client];
        it.is_dead = true;
        it.keeps_until = 0;
        it.life = Life::Exited;
        it.connection.take();
        let connections: Vec<usize> = self.held_by(client);
        for connection in connections {
            self.release(connection);
        }
        for guardian in 0..self.clients[client].guardians.len() {
            self.wake_guardian(client, guardian);
        }
        // Who is left has nobody to wait for.
        self.look();
    }

    /// The connections that a pglock has open itself.
    pub fn held_by(&self, client: usize) -> Vec<usize> {
        let guardians = &self.clients[client].guardians;
        let by_guardians = |connection: usize| {
            let holds =
                |guardian: &&Guardian| guardian.is_alive && guardian.connection == Some(connection);
            guardians.iter().filter(holds).count() as u32
        };
        (0..self.connections.len())
            .filter(|connection| {
                let it = &self.connections[*connection];
                it.client == client && it.holders > by_guardians(*connection)
            })
            .collect()
    }

    /// Looks whether somebody waits who need not.
    pub fn check(&mut self) {
        let now = self.now;
        let mut can = false;
        let mut direct = false;
        for (place, client) in self.clients.iter().enumerate() {
            let can_take = client.can_take(self.ways[place].is_clear());
            can |= can_take;
            direct |= can_take && client.is_direct();
        }
        let is_kept = |client: &Client| client.has_command() || client.is_holding();
        let has_command =
            self.clients.iter().any(is_kept) || self.clients.iter().any(Client::waits_for_token);
        let keys = self.clients[0].keys();
        let is_up = self.is_server_well();
        let free = is_up
            && direct
            && keys
                .iter()
                .all(|key| self.server.locks.holders(*key, false).next().is_none())
            && !self.server.is_young(self.schedule.ttl, now);
        let slow = (self.schedule.pool.1 + 5 * SECOND) * Time::from(!direct);
        // Who was just dialing a server that was frozen hears nothing of the other one that has taken over meanwhile.
        let faults = self.faults();
        let is_there = |kind| faults.iter().any(|fault| fault.kind == kind);
        let is_replaced = is_there(Kind::FreezeServer) && is_there(Kind::Promote);
        let deaf = PATIENCE * Time::from(is_replaced);
        let lease = (self.schedule.ttl + 1) * SECOND + 2 * SECOND + slow + deaf;
        // Of a waiter that cannot be heard the server keeps the place in the queue for a ttl.
        let is_unheard = |kind| {
            [
                Kind::PowerOff,
                Kind::ResetClient,
                Kind::Cut,
                Kind::CutTo,
                Kind::CutFrom,
                Kind::FreezeHost,
                Kind::FreezePglock,
            ]
            .contains(&kind)
        };
        let turn = match faults.iter().any(|fault| is_unheard(fault.kind)) {
            true => lease,
            false => 3 * SECOND + deaf,
        };
        self.judge.look_at_waiters(
            can && is_up && !has_command && !self.takes_long,
            free,
            self.disturbed,
            (lease, turn),
            now,
        );
    }
}
