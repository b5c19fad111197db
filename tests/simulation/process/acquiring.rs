//! pglock on its way to the lock, as `acquire.rs` and `acquire/exchange.rs` have it.

use super::*;

impl World {
    pub(super) fn acquiring(&mut self, client: usize) -> &mut Acquiring {
        match &mut self.clients[client].life {
            Life::Acquiring(acquiring) => acquiring,
            Life::Unborn | Life::Supervising(_) | Life::Releasing(_) | Life::Exited => {
                panic!("it is not on the way to the lock")
            }
        }
    }

    pub fn acquire_turn(&mut self, client: usize) {
        match self.acquire_event(client) {
            Some(event) => self.acquire_on(client, event),
            None => self.wait_for_order(client),
        }
    }

    /// Has a turn when what was ordered is over.
    pub fn wait_for_order(&mut self, client: usize) {
        let until = match self.acquiring(client).order {
            Pending::Connect(until)
            | Pending::ConnectBeside(until)
            | Pending::Answer(Some(until))
            | Pending::Pause(until)
            | Pending::Watch(until)
            | Pending::Cancel(until)
            | Pending::Withdraw(until)
            | Pending::Rollback(until) => until,
            Pending::Answer(None) | Pending::Release => return,
        };
        let late = self.timer_delay(client);
        self.turn_at(client, until + late);
    }

    /// What has happened for one who is on the way to the lock.
    pub fn acquire_event(&mut self, client: usize) -> Option<acquire::Event> {
        use acquire::Event;
        let now = self.now;
        let order = self.acquiring(client).order;
        // A terminal's stop, which stops pglock until it is continued, changes nothing else here.
        let signals = mem::take(&mut self.clients[client].signals);
        let is_hurried = match order {
            Pending::Cancel(_) | Pending::Withdraw(_) | Pending::Rollback(_) | Pending::Release => {
                false
            }
            Pending::Connect(_)
            | Pending::ConnectBeside(_)
            | Pending::Answer(_)
            | Pending::Pause(_)
            | Pending::Watch(_) => true,
        };
        if let Some(signal) = signals
            .into_iter()
            .find(|signal| !signal.is_harmless() && *signal != Signal::TSTP)
            && is_hurried
        {
            return Some(Event::Signal(signal));
        }
        let beside = self.acquiring(client).beside;
        let expected = match order {
            Pending::ConnectBeside(_) => beside,
            Pending::Answer(_) => beside.or(self.clients[client].connection),
            _ => self.clients[client].connection,
        };
        while let Some(message) = self.next_message(client, expected) {
            match (order, message) {
                (Pending::Connect(_), ToClient::Ready(pid)) => {
                    self.clients[client].spoken = pid;
                    return Some(Event::Connected(acquire::Welcome::default()));
                }
                (Pending::ConnectBeside(_), ToClient::Ready(_)) => {
                    return Some(Event::Connected(acquire::Welcome::default()));
                }
                (Pending::Connect(_) | Pending::ConnectBeside(_), ToClient::Refused(error)) => {
                    return Some(Event::NotConnected(acquire_asked::host_error(&error)));
                }
                (Pending::Answer(_), ToClient::Answer(outcomes)) => {
                    return Some(self.read_answer(client, &outcomes));
                }
                (Pending::Watch(_), ToClient::Answer(_)) => return Some(Event::Unasked),
                (Pending::Withdraw(_), ToClient::Answer(outcomes)) => {
                    let event = self.read_answer(client, &outcomes);
                    let granted = matches!(
                        event,
                        Event::Answered(acquire::Answer::Verdict(acquire::Verdict::Held(_)))
                    );
                    return Some(Event::Withdrawn {
                        answered: true,
                        granted,
                    });
                }
                (Pending::Rollback(_), ToClient::Answer(_)) => return Some(Event::Finished),
                (Pending::Connect(_) | Pending::ConnectBeside(_), ToClient::Closed(words)) => {
                    return Some(Event::NotConnected(acquire_asked::host_error(&closed(
                        words,
                    ))));
                }
                (Pending::Answer(_) | Pending::Watch(_), ToClient::Closed(words)) => {
                    if beside.is_some() {
                        self.drop_beside(client);
                    }
                    return Some(acquire_asked::lost(&closed(words)));
                }
                (Pending::Withdraw(_), ToClient::Closed(_)) => {
                    return Some(Event::Withdrawn {
                        answered: false,
                        granted: false,
                    });
                }
                (Pending::Rollback(_), ToClient::Closed(_)) => return Some(Event::Finished),
                // Found when it is next asked something.
                (Pending::Pause(_), ToClient::Closed(words)) => {
                    let message = (expected.expect("a connection"), ToClient::Closed(words));
                    self.clients[client].inbox.push_front(message);
                    break;
                }
                (_, _) => {}
            }
        }
        let after = |until: Time, event: Event| (until <= now).then_some(event);
        match order {
            Pending::Connect(until) | Pending::ConnectBeside(until) => after(until, Event::Late),
            Pending::Answer(until) => until.and_then(|until| after(until, Event::Late)),
            Pending::Pause(until) | Pending::Watch(until) => after(until, Event::Passed),
            Pending::Cancel(until) | Pending::Rollback(until) => after(until, Event::Finished),
            Pending::Withdraw(until) => after(
                until,
                Event::Withdrawn {
                    answered: false,
                    granted: false,
                },
            ),
            Pending::Release => Some(Event::Finished),
        }
    }

    /// The next message on this connection. What has come on the other one stays.
    pub fn next_message(&mut self, client: usize, connection: Option<usize>) -> Option<ToClient> {
        let it = &mut self.clients[client];
        let mut place = it.inbox.iter();
        let place = place.position(|(other, _)| Some(*other) == connection)?;
        it.inbox.remove(place).map(|(_, message)| message)
    }

    pub fn read_answer(&mut self, client: usize, outcomes: &[Outcome]) -> acquire::Event {
        let acquiring = self.acquiring(client);
        let Some(asked) = acquiring.asked.take() else {
            return acquire::Event::Unasked;
        };
        let reading = asked.read(outcomes, &mut acquiring.request);
        acquiring.lock = reading.lock.or(acquiring.lock);
        self.drop_beside(client);
        reading.event
    }

    pub fn drop_beside(&mut self, client: usize) {
        if let Some(beside) = self.acquiring(client).beside.take() {
            self.release(beside);
        }
    }

    /// Has an event decided, and does what is ordered, until there is something to wait for.
    pub fn acquire_on(&mut self, client: usize, event: acquire::Event) {
        let mut event = Some(event);
        while let Some(happened) = event.take() {
            let now = self.now_of(client);
            let mut random = Random::new(self.random.next());
            let Life::Acquiring(acquiring) = &mut self.clients[client].life else {
                return;
            };
            self.coverage.acquire(&acquiring.state, &happened);
            let step = acquiring.state.on(happened, now, &mut || {
                random.below(1_000_000) as f64 / 1_000_000.0
            });
            for line in &step.lines {
                self.tell(|| format!("pglock {client}: {line}"));
            }
            event = self.order(client, step.order);
        }
    }

    /// Does what is ordered. Returns what has come of it, if it need not be waited for.
    pub fn order(&mut self, client: usize, order: acquire::Order) -> Option<acquire::Event> {
        use acquire::{Event, Order};
        self.spring(client, |trap| trap == Cue::Orders(Ordered::of(&order)));
        let at = |world: &Self, moment: Moment| world.clients[client].clock.time(moment);
        let far = self.now + 1000 * SECOND;
        let pending = match order {
            Order::Connect(dial) => {
                self.drop_connection(client);
                self.drop_guardian(client);
                let connection = self.connect(client, self.clients[client].pooled);
                self.clients[client].connection = Some(connection);
                Pending::Connect(dial.until.map_or(far, |until| at(self, until)))
            }
            Order::ConnectBeside(dial) => {
                let connection = self.connect(client, self.clients[client].pooled);
                self.acquiring(client).beside = Some(connection);
                Pending::ConnectBeside(dial.until.map_or(far, |until| at(self, until)))
            }
            Order::Ask {
                question,
                asked,
                answer_by,
            } => {
                let spoken = self.spoken(client);
                let World {
                    wordings, clients, ..
                } = self;
                let Life::Acquiring(acquiring) = &clients[client].life else {
                    return None;
                };
                let (wording, program) = wordings.ask(question, &acquiring.request, &spoken);
                let acquiring = self.acquiring(client);
                let beside = acquiring.beside;
                acquiring.asked = Some(wording);
                if question.is_guarded() {
                    let it = &mut self.clients[client];
                    let terms = it.terms().filter(|_| it.kill_on_loss);
                    let lease = terms.map(|terms| Lease::new(terms, asked));
                    it.shared.deadline = lease.map(|lease| lease.kill_at());
                }
                let Some(connection) = beside.or(self.clients[client].connection) else {
                    return Some(acquire_asked::lost(&closed(None)));
                };
                self.send_to_server(connection, ToServer::Query(program));
                if question.is_guarded() && !self.has_guardian(client) {
                    if self.clients[client].no_processes > 0 {
                        return Some(Event::Unguarded("no room".to_owned()));
                    }
                    self.spawn_guardian(client);
                }
                Pending::Answer(answer_by.map(|by| at(self, by)))
            }
            Order::Pause {
                until,
                keeps_session,
            } => {
                if !keeps_session {
                    self.drop_connection(client);
                }
                Pending::Pause(at(self, until))
            }
            Order::Watch(until) => Pending::Watch(at(self, until)),
            Order::Cancel | Order::Withdraw => {
                let beside = self.acquiring(client).beside;
                if let Some(connection) = beside.or(self.clients[client].connection) {
                    self.send_to_server(connection, ToServer::Cancel);
                }
                let until = self.now + EXIT_PATIENCE;
                if order == Order::Cancel {
                    self.drop_beside(client);
                    Pending::Cancel(self.now + 1 + self.random.next() % (5 * MILLISECOND))
                } else {
                    Pending::Withdraw(until)
                }
            }
            Order::Rollback => {
                let program = self.wordings.read(b"rollback");
                if let Some(connection) = self.clients[client].connection {
                    self.send_to_server(connection, ToServer::Query(program));
                }
                Pending::Rollback(self.now + EXIT_PATIENCE)
            }
            Order::Release => {
                self.drop_beside(client);
                let life = mem::replace(&mut self.clients[client].life, Life::Exited);
                let Life::Acquiring(acquiring) = life else {
                    return None;
                };
                match (self.clients[client].connection, acquiring.lock) {
                    (Some(_), Some(lock)) => {
                        self.begin_release(client, lock, false, Some(acquiring))
                    }
                    _ => {
                        self.clients[client].life = Life::Acquiring(acquiring);
                        return Some(Event::Finished);
                    }
                }
                return None;
            }
            Order::End(ending) => {
                self.acquired(client, ending);
                return None;
            }
        };
        self.acquiring(client).order = pending;
        self.wait_for_order(client);
        // Something may have come before.
        if !self.clients[client].inbox.is_empty() || !self.clients[client].signals.is_empty() {
            self.wake(client);
        }
        None
    }

    pub fn acquired(&mut self, client: usize, ending: acquire::Ending) {
        self.tell(|| format!("pglock {client}: {ending:?}"));
        let acquire::Ending::Taken(taken) = ending else {
            return self.exit(client);
        };
        self.drop_beside(client);
        if !self.has_guardian(client) {
            if self.clients[client].no_processes > 0 {
                return self.exit(client);
            }
            self.spawn_guardian(client);
        }
        let it = &mut self.clients[client];
        let life = mem::replace(&mut it.life, Life::Exited);
        let Life::Acquiring(acquiring) = life else {
            return;
        };
        let lock = acquiring.lock.expect("a lock");
        let early = mem::take(&mut it.signals)
            .into_iter()
            .any(|signal| !signal.is_harmless());
        if early {
            return self.begin_release(client, lock, false, None);
        }
        it.heard = taken.sent;
        let policy = supervise::Policy {
            terms: it.terms(),
            grace: Duration::from_secs(it.grace),
            kill_on_loss: it.kill_on_loss,
            pooled: lock.scope() == LockScope::Transaction,
            rename: taken.waited || it.hold > 0,
            has_terminal: it.has_terminal,
            others: 0,
            hold_until: (it.hold > 0)
                .then(|| it.clock.moment(self.now) + Duration::from_micros(it.hold)),
        };
        // By another clock.
        it.keeps_until = (self.now + it.hold).saturating_sub(10 * MILLISECOND);
        let kept = (it.hold > 0).then_some(it.keeps_until);
        let connection = it.connection.expect("a connection");
        it.shared.has_group = true;
        it.group = Some(Group {
            has_begun: false,
            main: true,
            others: 0,
            late_others: 0,
            is_stopped: false,
            ended: None,
            work: it.behaviour.work,
            since: None,
            serial: 0,
            is_told: false,
            is_to_end: false,
            is_dying: false,
        });
        it.life = Life::Supervising(Box::new(Supervising {
            state: supervise::State::new(policy, taken.sent, it.clock.moment(self.now)),
            lock,
            backend: it.spoken,
            wire: Wire::Up(connection, None),
            name: policy.rename.then(|| format!("pglock {client}")),
            suspended: false,
            later: Vec::new(),
            is_lifted: false,
        }));
        if let Some(kept) = kept {
            self.at(kept, Event::Kept);
        }
        self.wake_soon(Event::Exec(client), client);
        self.wake(client);
    }

    /// The last moment before a command runs.
    pub fn exec(&mut self, client: usize) {
        let now = self.now_of(client);
        let it = &mut self.clients[client];
        if it.host_frozen > 0 {
            return self.after(MILLISECOND, Event::Exec(client));
        }
        let lease = it.terms().map(|terms| Lease::new(terms, it.heard));
        let has_news = it
            .inbox
            .iter()
            .any(|(connection, _)| Some(*connection) == it.connection)
            && !it.shared.has_asked;
        let obstacle = Obstacle::find(lease, has_news, now);
        let Some(group) = it
            .group
            .as_mut()
            .filter(|group| group.main && !group.is_dying)
        else {
            return;
        };
        if let Some(obstacle) = obstacle {
            group.main = false;
            group.ended = Some(Change::Exited(0));
            self.tell(|| format!("pglock {client}: {}", obstacle.message()));
            return self.wake(client);
        }
        self.wake_soon(Event::Started(client), client);
    }

    pub fn started(&mut self, client: usize) {
        let now = self.now;
        let it = &mut self.clients[client];
        if it.host_frozen > 0 {
            return self.after(MILLISECOND, Event::Started(client));
        }
        let behaviour = it.behaviour;
        let Some(group) = it
            .group
            .as_mut()
            .filter(|group| group.main && !group.is_dying)
        else {
            return;
        };
        group.has_begun = true;
        group.others = behaviour.others;
        group.late_others = match behaviour.hangs {
            0 => behaviour.late_others,
            _ => 0,
        };
        if !group.is_stopped {
            group.since = Some(now);
            let (work, serial) = (group.work, group.serial);
            self.after(work, Event::CommandWorked(client, serial));
        }
        // One that runs though its session is gone takes nothing from anybody.
        if self.holds_lock(client) && self.schedule.slots == 1 {
            let shares = self.clients[client].shares();
            for (place, other) in self.clients.iter_mut().enumerate() {
                if place != client && !(shares && other.shares()) {
                    other.is_overtaken(client, now);
                }
            }
        }
        let granted = self.clients[client].was_granted;
        self.judge.command_begins(granted, client);
        self.tell(|| format!("pglock {client}: the command runs"));
        self.look();
    }
}
