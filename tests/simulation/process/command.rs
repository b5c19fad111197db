//! The command and its group, as the kernel has them.

use super::*;

impl World {
    pub fn group_is_alive(&self, client: usize) -> bool {
        let group = &self.clients[client].group;
        group
            .as_ref()
            .is_some_and(|group| group.main || group.others > 0)
    }

    pub fn signal_group(&mut self, client: usize, signal: Signal) {
        let now = self.now;
        let ends_in = self.clients[client].behaviour.ends_in;
        let it = &mut self.clients[client];
        let Some(group) = it
            .group
            .as_mut()
            .filter(|group| group.main || group.others > 0)
        else {
            return;
        };
        if signal == Signal::KILL {
            group.is_to_end = true;
            if !mem::replace(&mut group.is_dying, true) {
                let hangs = it.behaviour.hangs;
                if hangs > 0 {
                    group.serial += 1;
                }
                let time = 1 + self.random.next() % DYING + hangs;
                self.after(time, Event::CommandKilled(client));
                self.look();
            }
            return;
        }
        if [Signal::STOP, Signal::TSTP].contains(&signal) {
            if !group.is_stopped {
                group.is_stopped = true;
                if let Some(since) = group.since.take() {
                    group.work = group.work.saturating_sub(now - since).max(1);
                }
                group.serial += 1;
                if group.main {
                    it.change = Some(Change::Stopped(signal));
                    self.wake(client);
                }
            }
        } else if signal == Signal::CONT {
            if group.is_stopped {
                group.is_stopped = false;
                group.serial += 1;
                let (serial, work) = (group.serial, group.work);
                let is_told = mem::take(&mut group.is_told);
                let is_main = group.main;
                if group.has_begun {
                    group.since = Some(now);
                    self.after(work, Event::CommandWorked(client, serial));
                }
                if is_main {
                    self.clients[client].change = Some(Change::Continued);
                    self.wake(client);
                }
                if is_told {
                    self.tell_to_end(client, ends_in);
                }
            }
        } else if [Signal::TERM, Signal::INT, Signal::HUP].contains(&signal) {
            if let Life::Supervising(run) = &self.clients[client].life
                && run.state.lock_is_lost()
                && self.clients[client].kill_on_loss
            {
                self.group(client).is_to_end = true;
            }
            if self.group(client).is_stopped {
                self.group(client).is_told = true;
            } else {
                self.tell_to_end(client, ends_in);
            }
        }
        self.look();
    }

    pub(super) fn group(&mut self, client: usize) -> &mut Group {
        self.clients[client].group.as_mut().expect("a group")
    }

    pub fn tell_to_end(&mut self, client: usize, ends_in: Option<Time>) {
        if let Some(time) = ends_in {
            let serial = self.group(client).serial;
            self.after(time, Event::CommandWorked(client, serial));
        }
    }

    /// The command ends by itself.
    pub fn command_worked(&mut self, client: usize, serial: u64) {
        if self.clients[client].host_frozen > 0 {
            return self.after(10 * MILLISECOND, Event::CommandWorked(client, serial));
        }
        let leaves = self.clients[client].behaviour.leaves;
        let group = self.group(client);
        if group.serial != serial || !group.main {
            return;
        }
        group.main = false;
        group.serial += 1;
        group.ended = Some(Change::Exited(0));
        if !leaves {
            group.others = 0;
        }
        // Somebody may have continued it, and not the pglock that is stopped with it.
        self.note_lifted(client);
        self.tell(|| format!("the command of {client} ends"));
        self.disturb();
        self.wake(client);
        self.look();
    }

    /// The command's group is dead, but for what it was just starting.
    pub fn command_killed(&mut self, client: usize) {
        if self.clients[client].host_frozen > 0 {
            return self.after(10 * MILLISECOND, Event::CommandKilled(client));
        }
        let group = self.group(client);
        group.is_dying = false;
        if !group.main && group.others == 0 {
            return;
        }
        group.others = mem::take(&mut group.late_others);
        if mem::replace(&mut group.main, false) {
            group.ended = Some(Change::Killed(Signal::KILL));
        }
        group.serial += 1;
        // A pglock that its user has stopped keeps the lock until it is continued, if the server was told to.
        self.note_lifted(client);
        self.tell(|| format!("the command of {client} is dead"));
        self.disturb();
        self.wake(client);
        self.look();
    }
}
