//! The shell around a run: one `poll` a turn over the signals, the connection and one timer. It turns what happens into
//! events, has [`state`] decide, and makes the calls that come of it. Nothing in it waits while the command runs.

pub mod asked;
mod end;
mod link;
pub mod reason;
mod reconnect;
pub mod start;
pub mod state;
mod summary;

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::time::Duration;

use self::end::give_up;
use self::link::Wire;
use self::start::Obstacle;
use self::state::{Effect, Event, Policy, State};
use self::summary::Times;
use crate::cli::config::Config;
use crate::command::{Command, End, Words};
use crate::exit::Exit;
use crate::guardian::Guardian;
use crate::held::Held;
use crate::lease::Lease;
use crate::lock::Lock;
use crate::log::Log;
use crate::moment::Moment;
use crate::server::places::Places;
use crate::server::session_name;
use crate::server::session_settings::LockScope;
use crate::server::wait;
use crate::sys::{self, Change, SharedState, Signal, Signals, Terminal, Timer};
use crate::text;

/// How long to wait before the next turn of the loop when `poll` fails.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the command to its end, then gives the lock up; pglock was called at `start`.
// Inlined, what it has on the stack would be there while pglock waits for the lock.
#[inline(never)]
pub fn run(
    config: &Config,
    held: Held,
    start: Moment,
    environment: Vec<CString>,
    signals: &Signals,
    log: Log,
) -> Exit {
    let obtained = sys::now();
    let words = Words(&config.command);
    // What has come since the lock was taken has met no command yet.
    let early = signals
        .take()
        .into_iter()
        .find(|signal| !signal.is_harmless());
    if let Some(signal) = early {
        log.error(format_args!("{signal} came before the command ran"));
        return give_up(held, signals, Exit::Signal(signal));
    }
    log.info(format_args!("Executing command: {words}"));
    let lease = config.terms.map(|terms| Lease::new(terms, held.sent));
    let terminal = Terminal::open();
    // Otherwise the command gets the terminal when it first wants it.
    let in_foreground = terminal.as_ref().filter(|terminal| {
        terminal.is_input_and_output() && terminal.foreground() == sys::own_group()
    });
    let socket = held.session.connection().socket();
    let started = Command::start(
        &config.command,
        environment,
        held.token,
        signals,
        |own_group| {
            held.shared.set_group(Some(own_group));
            if let Some(terminal) = in_foreground {
                terminal.give_to(own_group);
            }
            // In this order: what has come may be the answer to what pglock asks meanwhile, who looks after the session then.
            let has_news = socket.is_some_and(sys::is_readable_now) && !held.shared.has_asked();
            match Obstacle::find(lease, has_news, sys::now()) {
                Some(obstacle) => Err(obstacle.error()),
                None => Ok(()),
            }
        },
    );
    let command = match started {
        Ok(command) => command,
        Err(error) => {
            log.error(format_args!(
                "could not start {words}: {}",
                text::reason(&error)
            ));
            return give_up(held, signals, Exit::Failed);
        }
    };
    // The name tells until when the lock is held, too.
    let is_new = held.waited || !config.hold.is_zero();
    let new_name = is_new.then(|| session_name::label(config.title(), config.hold));
    let policy = Policy {
        terms: config.terms,
        grace: config.grace,
        kill_on_loss: config.kill_on_loss,
        pooled: held.lock.scope() == LockScope::Transaction,
        rename: new_name.is_some(),
        has_terminal: terminal.is_some(),
        others: held.places.others(),
        hold_until: (!config.hold.is_zero()).then(|| obtained + config.hold),
    };
    let mut supervisor = Supervisor {
        config,
        signals,
        log,
        places: held.places,
        place: 0,
        lock: held.lock,
        backend_pid: held.session.connection().backend_pid(),
        shared: held.shared,
        is_fire_noted: false,
        guardian: Some(held.guardian),
        is_unguarded_said: false,
        wire: Wire::Up(held.session, None),
        name: new_name,
        out_of_reach: false,
        terminal: terminal.as_ref(),
        had_terminal: false,
        times: Times {
            start,
            obtained,
            ended: None,
        },
        state: State::new(policy, held.sent, sys::now()),
        command,
        timer: Timer::new(),
    };
    // It may have been killed while pglock waited for the lock.
    if !supervisor
        .guardian
        .as_ref()
        .is_some_and(Guardian::is_running)
    {
        supervisor.replace_guardian();
    }
    supervisor.run()
}

struct Supervisor<'a> {
    config: &'a Config,
    signals: &'a Signals,
    log: Log,
    /// Where to look for the server.
    places: Places,
    /// Where the last attempt to reach it has gone.
    place: u32,
    lock: Lock,
    /// The backend of the session that holds the lock, or held it last.
    backend_pid: i32,
    shared: SharedState,
    /// Whether it was noted that the guardian has killed the command.
    is_fire_noted: bool,
    guardian: Option<Guardian>,
    /// Whether it was said that there can be none.
    is_unguarded_said: bool,
    wire: Wire,
    /// What the session is to be called, if it was called something else while it waited.
    name: Option<String>,
    /// Whether the command could not be killed.
    out_of_reach: bool,
    /// The controlling terminal, where there is a shell to stop for.
    terminal: Option<&'a Terminal>,
    /// Whether the command had it when it ended.
    had_terminal: bool,
    times: Times,
    state: State,
    command: Command,
    timer: Timer,
}

impl Supervisor<'_> {
    fn run(mut self) -> Exit {
        loop {
            self.look_at_guardian();
            self.reap();
            self.look_at_group();
            self.feed(Event::Tick);
            if self.state.is_over(sys::now()) {
                return self.finish();
            }
            let is_wire_ready = self.wait();
            self.look_at_guardian();
            self.reap();
            if is_wire_ready || self.wire.is_late(sys::now()) {
                self.step_wire();
            }
            for signal in self.signals.take() {
                // What became of a child is asked for each turn.
                if signal != Signal::CHLD {
                    self.feed(Event::Signal(signal));
                }
            }
        }
    }

    /// Waits for a signal, the connection or the next deadline. Tells whether it was the connection.
    fn wait(&self) -> bool {
        let now = sys::now();
        let deadline = self.state.next_deadline(now).into_iter();
        let deadline = deadline.chain(self.wire.deadline()).min();
        self.timer.set(deadline);
        let wire = match &self.wire {
            Wire::Up(session, _) => wait::wait_for(session),
            Wire::LookingUp(look_up, _) => Some(look_up.wait()),
            Wire::Connecting(reconnect) => Some(reconnect.wait()),
            Wire::None => None,
        };
        let mut waits = [
            sys::Wait::read(self.signals.descriptor()),
            self.timer.wait(),
            wire.unwrap_or(sys::Wait::none()),
        ];
        let left = deadline.map(|deadline| deadline.since(now));
        if let Err(error) = sys::poll(&mut waits, left) {
            self.log
                .error(format_args!("poll: {}", text::reason(&error)));
            sys::pause(PAUSE);
        }
        waits[2].ready
    }

    /// Has an event decided, and does what comes of it, with what that brings in turn.
    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.state.on(event, sys::now()) {
                events.extend(self.perform(effect));
            }
        }
    }

    /// Does what was decided. Returns what has happened by that.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Signal(signal) => self.command.send(signal),
            Effect::SignalAwake(signal) => {
                self.command.send(signal);
                self.command.send(Signal::CONT);
            }
            Effect::Continue => self.continue_command(),
            Effect::Kill => self.kill_command(),
            Effect::Ask(question) => return self.ask(question),
            Effect::Connect(place, patience) => return self.connect(place, patience),
            Effect::Disconnect => {
                // An attempt that is given up ends by itself.
                if let Wire::Up(..) = self.wire {
                    self.wire = Wire::None;
                }
            }
            Effect::Guard(deadline) => self.shared.set_deadline(deadline),
            Effect::WakeGuardian => {
                if let Some(guardian) = &self.guardian {
                    guardian.wake();
                }
            }
            Effect::Suspend => return Some(self.suspend()),
            Effect::Hold => {
                self.shared.set_group(None);
                self.take_terminal_back();
            }
            Effect::Say(line) if line.is_error() => self.log.error(line),
            Effect::Say(line) => self.log.info(line),
        }
        None
    }

    // The command

    /// Takes note of the children whose state has changed. As process 1 pglock has others than its own.
    fn reap(&mut self) {
        while let Some((pid, change)) = sys::reap() {
            if pid == self.command.pid() {
                let event = match change {
                    Change::Stopped(signal) => {
                        let in_foreground = self
                            .terminal
                            .is_some_and(|terminal| terminal.foreground() == sys::own_group());
                        Event::CommandStopped(signal, in_foreground)
                    }
                    Change::Continued => Event::CommandContinued,
                    Change::Exited(_) | Change::Killed(_) => self.ended(change),
                };
                self.feed(event);
            } else if self
                .guardian
                .as_ref()
                .is_some_and(|guardian| guardian.pid() == pid)
                && matches!(change, Change::Exited(_) | Change::Killed(_))
            {
                self.replace_guardian();
            }
        }
    }

    /// The command has ended so.
    fn ended(&mut self, change: Change) -> Event {
        self.times.ended = Some(sys::now());
        let foreground = self.terminal.map(Terminal::foreground);
        self.had_terminal = foreground == Some(self.command.pid());
        let may_hold = matches!(self.command.end(change), End::Ran(_)) && !self.was_typed(change);
        Event::CommandEnded(change, may_hold)
    }

    /// Before the command's end is noticed, which it may have brought about.
    fn look_at_guardian(&mut self) {
        if self.shared.has_fired() && !self.is_fire_noted {
            self.is_fire_noted = true;
            self.feed(Event::GuardianFired);
        }
    }

    fn look_at_group(&mut self) {
        if self.state.looks_at_group() && !self.command.has_members() {
            self.feed(Event::GroupGone);
        }
    }

    /// Continues the command, in the foreground if that is where the shell has put pglock.
    fn continue_command(&self) {
        if let Some(terminal) = self.terminal
            && terminal.foreground() == sys::own_group()
        {
            terminal.give_to(self.command.pid());
        }
        self.command.send(Signal::CONT);
    }

    fn kill_command(&mut self) {
        if let Err(error) = self.command.kill()
            && error.kind() == io::ErrorKind::PermissionDenied
            && !self.out_of_reach
        {
            self.out_of_reach = true;
            self.log.error(format_args!(
                "could not kill the command, which has become another user's: {}",
                text::reason(&error)
            ));
        }
    }

    /// Stops pglock, until the shell continues it.
    fn suspend(&self) -> Event {
        if let Some(terminal) = self.terminal
            && terminal.foreground() == self.command.pid()
        {
            terminal.give_to(sys::own_group());
        }
        Event::Woken(sys::stop_own_group())
    }
}
