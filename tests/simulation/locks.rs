//! The server's lock table, as its `lock.c` and `proc.c` have it for advisory locks: a lock is granted if neither those who
//! hold it nor those who wait for it before stand against it, and those who wait get it in their order.

use crate::lock::Key;

/// What a lock is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Session,
    Transaction,
}

struct Held {
    pid: i32,
    key: Key,
    shared: bool,
    level: Level,
}

struct Waiter {
    pid: i32,
    key: Key,
    shared: bool,
    level: Level,
}

/// The locks of a server.
#[derive(Default)]
pub struct Locks {
    held: Vec<Held>,
    /// In order.
    waiters: Vec<Waiter>,
}

impl Locks {
    pub fn clear(&mut self) {
        self.held.clear();
        self.waiters.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiters.is_empty()
    }

    /// Whether this backend holds it in this mode.
    pub fn holds(&self, pid: i32, key: Key, shared: bool) -> bool {
        self.held
            .iter()
            .any(|held| held.pid == pid && held.key == key && held.shared == shared)
    }

    /// What a backend holds: each key, whether shared.
    pub fn of(&self, pid: i32) -> impl Iterator<Item = (Key, bool)> {
        let of_pid = move |held: &&Held| held.pid == pid;
        self.held
            .iter()
            .filter(of_pid)
            .map(|held| (held.key, held.shared))
    }

    /// What all backends hold or wait for: who, each key, whether shared.
    pub fn all(&self) -> impl Iterator<Item = (i32, Key, bool)> {
        let held = self
            .held
            .iter()
            .map(|held| (held.pid, held.key, held.shared));
        let waiters = self
            .waiters
            .iter()
            .map(|waiter| (waiter.pid, waiter.key, waiter.shared));
        held.chain(waiters)
    }

    /// Who holds this key; only who holds it alone, if that is wanted.
    pub fn holders(&self, key: Key, only_exclusive: bool) -> impl Iterator<Item = i32> {
        self.held
            .iter()
            .filter(move |held| held.key == key && !(only_exclusive && held.shared))
            .map(|held| held.pid)
    }

    /// Whether somebody waits for it who wants it alone.
    pub fn is_waited_for_alone(&self, key: Key) -> bool {
        let waits = |waiter: &Waiter| waiter.key == key && !waiter.shared;
        self.waiters.iter().any(waits)
    }

    /// Takes a lock, if that can be done at once.
    pub fn try_lock(&mut self, pid: i32, key: Key, shared: bool, level: Level) -> bool {
        let conflicts = |other: bool| !(shared && other);
        let holds = self.holds(pid, key, shared);
        let is_waited_for = || {
            self.waiters
                .iter()
                .any(|waiter| waiter.key == key && conflicts(waiter.shared))
        };
        if !holds && (is_waited_for() || !self.is_free(pid, key, shared)) {
            return false;
        }
        self.held.push(Held {
            pid,
            key,
            shared,
            level,
        });
        true
    }

    /// Joins the queue.
    pub fn wait(&mut self, pid: i32, key: Key, shared: bool, level: Level) {
        self.waiters.push(Waiter {
            pid,
            key,
            shared,
            level,
        });
    }

    /// Leaves the queue. Whoever gets a lock by that is told of.
    pub fn leave_queue(&mut self, pid: i32) -> Vec<i32> {
        self.waiters.retain(|waiter| waiter.pid != pid);
        self.grant()
    }

    /// Gives one lock up. Whoever gets a lock by that is told of; `None` where it was not held.
    pub fn unlock(&mut self, pid: i32, key: Key, shared: bool) -> Option<Vec<i32>> {
        let place = self.held.iter().position(|held| {
            held.pid == pid
                && held.key == key
                && held.shared == shared
                && held.level == Level::Session
        })?;
        self.held.remove(place);
        Some(self.grant())
    }

    /// Gives up what is bound to the transaction.
    pub fn end_transaction(&mut self, pid: i32) -> Vec<i32> {
        self.held
            .retain(|held| held.pid != pid || held.level == Level::Session);
        self.grant()
    }

    /// Gives everything up.
    pub fn leave(&mut self, pid: i32) -> Vec<i32> {
        self.held.retain(|held| held.pid != pid);
        self.leave_queue(pid)
    }

    /// Whether nobody else holds it in a way that stands against this.
    fn is_free(&self, pid: i32, key: Key, shared: bool) -> bool {
        !self
            .held
            .iter()
            .any(|held| held.key == key && held.pid != pid && !(shared && held.shared))
    }

    /// Gives those who wait what has come free.
    fn grant(&mut self) -> Vec<i32> {
        let mut granted = Vec::new();
        let mut place = 0;
        while place < self.waiters.len() {
            let Waiter {
                pid,
                key,
                shared,
                level,
            } = self.waiters[place];
            let is_behind = self.waiters[..place]
                .iter()
                .any(|other| other.key == key && !(shared && other.shared));
            if is_behind || !self.is_free(pid, key, shared) {
                place += 1;
                continue;
            }
            self.waiters.remove(place);
            self.held.push(Held {
                pid,
                key,
                shared,
                level,
            });
            granted.push(pid);
        }
        granted
    }
}
