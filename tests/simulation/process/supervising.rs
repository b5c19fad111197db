//! pglock while the command runs, as `supervise.rs` and `supervise/link.rs` have it.

use super::*;

/// Whether the lock is held again, be it that it is not known yet what has become of it meanwhile.
fn is_retaken(event: &supervise::Event) -> bool {
    use supervise::{Answer, Event, Retake};
    matches!(
        event,
        Event::Answered(Answer::Retake(Retake::Held(_)) | Answer::Past(_))
    )
}

/// Whether that nobody has had the lock meanwhile is said by this.
fn says_that_nobody_had_it(effect: &supervise::Effect) -> bool {
    matches!(
        effect,
        supervise::Effect::Say(supervise::Line::Restarted(_) | supervise::Line::Promoted(_))
    )
}

impl World {
    /// Whether it has stopped itself.
    fn is_suspended(&mut self, client: usize) -> bool {
        self.supervising(client).is_some_and(|run| run.suspended)
    }

    pub fn supervise_turn(&mut self, client: usize) {
        if self.clients[client].shared.has_fired
            && !mem::replace(&mut self.clients[client].is_fire_noted, true)
        {
            self.feed(client, supervise::Event::GuardianFired);
        }
        self.reap(client);
        let now = self.now_of(client);
        if self
            .supervising(client)
            .is_some_and(|run| !run.suspended && run.state.is_over(now))
        {
            return self.finish(client);
        }
        if !self.is_suspended(client) {
            self.step_wire(client);
        }
        while !self.is_suspended(client) && !self.clients[client].signals.is_empty() {
            let signal = self.clients[client].signals.remove(0);
            self.feed(client, supervise::Event::Signal(signal));
        }
        if !self.is_suspended(client) {
            self.reap(client);
        }
        let Some(run) = self.supervising(client) else {
            return;
        };
        if run.suspended {
            return;
        }
        if run.state.looks_at_group() && !self.group_is_alive(client) {
            self.feed(client, supervise::Event::GroupGone);
        }
        self.feed(client, supervise::Event::Tick);
        let now = self.now_of(client);
        let Some(run) = self.supervising(client) else {
            return;
        };
        if run.suspended {
            return;
        }
        if run.state.is_over(now) {
            return self.finish(client);
        }
        let deadline = run.state.next_deadline(now);
        let connecting = match run.wire {
            Wire::Connecting(_, until) => Some(until),
            Wire::Up(..) | Wire::None => None,
        };
        if let Some(deadline) = deadline {
            self.wake_at(client, deadline);
        }
        if let Some(until) = connecting {
            self.turn_at(client, until + 50);
        }
        if !self.clients[client].inbox.is_empty() {
            self.wake(client);
        }
    }

    pub(super) fn supervising(&mut self, client: usize) -> Option<&mut Supervising> {
        match &mut self.clients[client].life {
            Life::Supervising(run) => Some(run),
            Life::Unborn | Life::Acquiring(_) | Life::Releasing(_) | Life::Exited => None,
        }
    }

    pub fn reap(&mut self, client: usize) {
        let it = &mut self.clients[client];
        let change = match &mut it.group {
            Some(group) if !group.main && group.ended.is_some() => {
                // Of a child that has ended nothing else is told.
                it.change = None;
                group.ended.take()
            }
            Some(_) | None => it.change.take(),
        };
        if let Some(change) = change {
            let in_foreground = self.random.chance(10);
            let has_begun = self.clients[client]
                .group
                .as_ref()
                .is_some_and(|group| group.has_begun);
            // Its user may have ended it.
            let may_hold =
                has_begun && (change != Change::Killed(Signal::KILL) || self.random.chance(50));
            let is_stopped = self.supervising(client).is_some_and(|run| {
                ["suspending", "suspended", "resuming"].contains(&run.state.stage_name())
            });
            if matches!(change, Change::Exited(_) | Change::Killed(_)) && (!may_hold || is_stopped)
            {
                self.clients[client].keeps_until = 0;
            }
            self.feed(
                client,
                match change {
                    Change::Stopped(signal) => {
                        supervise::Event::CommandStopped(signal, in_foreground)
                    }
                    Change::Continued => supervise::Event::CommandContinued,
                    Change::Exited(_) | Change::Killed(_) => {
                        supervise::Event::CommandEnded(change, may_hold)
                    }
                },
            );
        }
        if mem::take(&mut self.clients[client].guardian_died) {
            self.replace_guardian(client);
        }
    }

    pub fn step_wire(&mut self, client: usize) {
        let now = self.now;
        let Some(run) = self.supervising(client) else {
            return;
        };
        let (connection, until) = match run.wire {
            Wire::Up(connection, _) => (connection, None),
            Wire::Connecting(connection, until) => (connection, Some(until)),
            Wire::None => return self.clients[client].inbox.clear(),
        };
        let message = loop {
            match self.clients[client].inbox.pop_front() {
                Some((other, message)) if other == connection => break Some(message),
                Some(_) => {}
                None => break None,
            }
        };
        let event = match message {
            None if until.is_some_and(|until| until <= now) => {
                self.drop_wire(client);
                let words = "no answer in time".to_owned();
                supervise::Event::NotConnected(supervise::Barrier::Silence, words)
            }
            None => return,
            Some(ToClient::Ready(pid)) => {
                self.clients[client].spoken = pid;
                self.supervising(client).expect("a run").wire = Wire::Up(connection, None);
                // The guardian first.
                if self.clients[client].no_processes > 0 {
                    self.drop_wire(client);
                    let words = "no room".to_owned();
                    supervise::Event::NotConnected(supervise::Barrier::Unguarded, words)
                } else {
                    self.drop_guardian(client);
                    self.spawn_guardian(client);
                    supervise::Event::Connected
                }
            }
            Some(ToClient::Refused(error)) => {
                self.drop_wire(client);
                let barrier = reason::barrier(&error, self.schedule.is_local);
                supervise::Event::NotConnected(barrier, error.message)
            }
            Some(ToClient::Answer(outcomes)) => {
                let Some(Supervising {
                    wire: Wire::Up(_, asked),
                    ..
                }) = self.supervising(client)
                else {
                    return;
                };
                let Some(asked) = asked.take() else {
                    return;
                };
                if !self.has_guardian(client) && self.clients[client].no_processes == 0 {
                    self.spawn_guardian(client);
                }
                let run = self.supervising(client).expect("a run");
                let event = asked.read(&outcomes, &mut run.lock);
                let spoken = self.clients[client].spoken;
                match &event {
                    supervise::Event::SessionLost(..) => {
                        self.lose_session(client);
                        self.drop_wire(client);
                    }
                    supervise::Event::Answered(supervise::Answer::Retake(
                        supervise::Retake::Held(_),
                    )) => {
                        let run = self.supervising(client).expect("a run");
                        (run.backend, run.is_lifted) = (spoken, false);
                        // Unless this session was ended too while the answer was under way.
                        self.clients[client].ended_alone &= !self.holds_lock(client);
                    }
                    supervise::Event::Answered(supervise::Answer::Check(true)) => {
                        self.supervising(client).expect("a run").is_lifted = false;
                    }
                    _ => {}
                }
                event
            }
            Some(ToClient::Closed(words)) => {
                let was_connecting = until.is_some();
                self.drop_wire(client);
                let error = closed(words);
                if was_connecting {
                    let barrier = reason::barrier(&error, self.schedule.is_local);
                    supervise::Event::NotConnected(barrier, error.message)
                } else {
                    supervise::Event::SessionLost(reason::loss(&error, false), error.message)
                }
            }
        };
        if let supervise::Event::SessionLost(..) = event {
            self.feed(client, event);
            let it = &mut self.clients[client];
            it.heard_of_loss(now);
            self.look();
        } else {
            self.feed(client, event);
        }
    }

    pub fn drop_wire(&mut self, client: usize) {
        if let Some(run) = self.supervising(client) {
            run.wire = Wire::None;
        }
        self.drop_connection(client);
    }

    /// Has an event decided, and does what comes of it.
    pub fn feed(&mut self, client: usize, event: supervise::Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now_of(client);
            let Life::Supervising(run) = &mut self.clients[client].life else {
                return;
            };
            self.coverage.supervise(&run.state, &event, now);
            let is_news = event != supervise::Event::Tick;
            let shown = (self.story.is_some() && is_news).then(|| format!("{event:?}"));
            let is_retaken = is_retaken(&event);
            let effects = run.state.on(event.clone(), now);
            let is_decided = run.state.asked() != Some(supervise::Question::Past);
            let (heard, is_lost) = (run.state.heard(), run.state.lock_is_lost());
            let it = &mut self.clients[client];
            it.heard = heard;
            if is_lost || matches!(event, supervise::Event::SessionLost(..)) {
                it.keeps_until = 0;
                self.look();
            }
            if let Some(shown) = shown {
                self.tell(|| format!("pglock {client}: {shown} -> {effects:?}"));
            }
            if effects.iter().any(says_that_nobody_had_it)
                && let Some(other) = self.clients[client].trusts()
            {
                self.judge.trusts(client, other);
            }
            if is_retaken && is_decided {
                self.clients[client].overtaken = None;
            }
            for effect in effects {
                match self.supervising(client) {
                    Some(run) if run.suspended => run.later.push(effect),
                    Some(_) | None => events.extend(self.perform(client, effect)),
                }
            }
        }
    }

    pub fn perform(
        &mut self,
        client: usize,
        effect: supervise::Effect,
    ) -> Option<supervise::Event> {
        use supervise::Effect;
        match effect {
            Effect::Signal(signal) => self.signal_group(client, signal),
            Effect::SignalAwake(signal) => {
                self.signal_group(client, signal);
                self.signal_group(client, Signal::CONT);
            }
            Effect::Continue => self.signal_group(client, Signal::CONT),
            Effect::Kill => {
                self.spring(client, |trap| trap == Cue::Kills);
                self.signal_group(client, Signal::KILL);
            }
            Effect::Ask(question) => {
                self.spring(client, |trap| trap == Cue::Asks(question));
                let spoken = self.spoken(client);
                let run = self.supervising(client)?;
                run.is_lifted |= question == supervise::Question::Lift;
                let Wire::Up(connection, asked) = &mut run.wire else {
                    let words = "there is none".to_owned();
                    return Some(supervise::Event::SessionLost(supervise::Loss::Cut, words));
                };
                let connection = *connection;
                let name = run.name.as_deref();
                let wording =
                    supervise_asked::Asked::new(question, run.lock, &spoken, run.backend, name);
                let sql = wording.sql().to_owned();
                *asked = Some(wording);
                let program = self.wordings.read(sql.to_bytes());
                self.clients[client].shared.has_asked = true;
                self.send_to_server(connection, ToServer::Query(program));
            }
            Effect::Connect(_, patience) => {
                self.spring(client, |trap| trap == Cue::Connects);
                let pooled = self.clients[client].pooled;
                let connection = self.connect(client, pooled);
                self.clients[client].connection = Some(connection);
                let until = self.now + micros(patience);
                self.supervising(client)?.wire = Wire::Connecting(connection, until);
            }
            Effect::Disconnect => {
                if let Wire::Up(..) = self.supervising(client)?.wire {
                    self.drop_wire(client);
                }
            }
            Effect::Guard(deadline) => self.clients[client].shared.deadline = deadline,
            Effect::WakeGuardian => {
                if let Some(guardian) = self.clients[client].guardian {
                    self.clients[client].guardians[guardian].told = true;
                    self.wake_guardian(client, guardian);
                }
            }
            Effect::Suspend => {
                self.clients[client].keeps_until = 0;
                self.look();
                if !self.clients[client].has_shell {
                    return Some(supervise::Event::Woken(false));
                }
                self.supervising(client)?.suspended = true;
                let time = self.random.next() % (self.schedule.ttl * 2 * SECOND);
                self.after(time, Event::Resume(client));
            }
            Effect::Hold => self.clients[client].shared.has_group = false,
            Effect::Say(_) => {}
        }
        None
    }

    /// The shell continues a pglock that has stopped itself.
    pub fn resume(&mut self, client: usize) {
        if self.clients[client].host_frozen > 0 || self.clients[client].is_frozen > 0 {
            return self.after(10 * MILLISECOND, Event::Resume(client));
        }
        if self.clients[client].has_exited() {
            return;
        }
        let Some(run) = self.supervising(client) else {
            return;
        };
        if !mem::take(&mut run.suspended) {
            return;
        }
        let mut events = vec![supervise::Event::Woken(true)];
        for effect in mem::take(&mut run.later) {
            events.extend(self.perform(client, effect));
        }
        for event in events {
            self.feed(client, event);
        }
        self.clients[client].signals.push(Signal::CONT);
        self.wake(client);
    }

    /// The command has ended: the lock is given up.
    pub fn finish(&mut self, client: usize) {
        let Some(run) = self.supervising(client) else {
            return;
        };
        let effects = run.state.finish();
        for effect in effects {
            let _ = self.perform(client, effect);
        }
        self.clients[client].shared.has_group = false;
        let life = mem::replace(&mut self.clients[client].life, Life::Exited);
        let Life::Supervising(run) = life else {
            return;
        };
        match run.wire {
            Wire::Up(_, asked) => {
                self.begin_release(client, run.lock, asked.is_some(), None);
            }
            Wire::Connecting(..) | Wire::None => self.exit(client),
        }
    }
}
