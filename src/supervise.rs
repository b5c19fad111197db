//! The shell around a run: one `poll` a turn over the signals, the connection and one timer. It turns what happens into
//! events, has [`state`] decide, and makes the calls that come of it. Nothing in it waits while the command runs.

mod asked;
mod reconnect;
mod state;

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use self::asked::Asked;
use self::reconnect::{Failure, Reconnect, barrier, loss};
use self::state::{Answer, Barrier, Effect, Event, Loss, Policy, Question, Retake, State};
use crate::cli::config::Config;
use crate::command::{Command, End, Words};
use crate::exit::Exit;
use crate::guardian::Guardian;
use crate::held::Held;
use crate::lease::Lease;
use crate::lock::{self, Lock};
use crate::log::Log;
use crate::pq::{self, Conninfo, Outcome};
use crate::server::session::{self, Session};
use crate::server::session_name;
use crate::server::session_settings::LockScope;
use crate::server::wait;
use crate::sys::{self, Change, SharedState, Signal, Signals, Terminal, Timer};

/// How long to wait before the next turn of the loop when `poll` fails.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the command to its end, then gives the lock up.
pub fn run(
    config: &Config,
    held: Held,
    environment: Vec<CString>,
    signals: &Signals,
    log: Log,
) -> Exit {
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
    let socket = held.session.wants().map(|(descriptor, _)| descriptor);
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
            // pglock may have been frozen since it got the lock, and the server, which says nothing unasked but
            // that it ends the session, may be going down. Nothing has been asked yet.
            let errno = if lease.is_some_and(|lease| lease.kill_at() <= sys::now()) {
                sys::ETIME
            } else if socket.is_some_and(sys::is_readable_now) {
                sys::ECONNRESET
            } else {
                return Ok(());
            };
            Err(io::Error::from_raw_os_error(errno))
        },
    );
    let command = match started {
        Ok(command) => command,
        Err(error) => {
            log.error(format_args!("could not start {words}: {error}"));
            return give_up(held, signals, Exit::Failed);
        }
    };
    let new_name = held.waited.then(|| session_name::label(&config.command));
    let policy = Policy {
        terms: config.terms,
        grace: config.grace,
        kill_on_loss: config.kill_on_loss,
        pooled: held.lock.scope() == LockScope::Transaction,
        rename: new_name.is_some(),
        has_terminal: terminal.is_some(),
    };
    let mut supervisor = Supervisor {
        config,
        signals,
        log,
        settings: &held.settings,
        lock: held.lock,
        backend_pid: held.session.connection().backend_pid(),
        shared: held.shared,
        guardian: Some(held.guardian),
        is_unguarded_said: false,
        wire: Wire::Up(held.session, None),
        name: new_name,
        out_of_reach: false,
        terminal: terminal.as_ref(),
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

/// Gives the lock up without having run the command.
fn give_up(mut held: Held, signals: &Signals, exit: Exit) -> Exit {
    lock::release(&mut held.session, held.lock, signals, || {
        held.guardian.dismiss();
    });
    exit
}

/// What there is of a connection.
enum Wire {
    /// A session, with what is asked on it.
    Up(Session, Option<Asked>),
    /// An attempt to connect again.
    Connecting(Reconnect),
    /// Nothing.
    None,
}

struct Supervisor<'a> {
    config: &'a Config,
    signals: &'a Signals,
    log: Log,
    /// How to reach the server again.
    settings: &'a Conninfo,
    lock: Lock,
    /// The backend of the session that holds the lock, or held it last.
    backend_pid: i32,
    shared: SharedState,
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
    state: State,
    command: Command,
    timer: Timer,
}

impl Supervisor<'_> {
    fn run(mut self) -> Exit {
        loop {
            self.reap();
            self.look_at_group();
            self.feed(Event::Tick);
            if self.state.is_over(sys::now()) {
                return self.finish();
            }
            let is_wire_ready = self.wait();
            self.reap();
            if is_wire_ready {
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
        let deadline = self.state.next_deadline(now);
        self.timer.set(deadline);
        let wire = match &self.wire {
            Wire::Up(session, _) => wait::wait_for(session),
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
            self.log.error(format_args!("poll: {error}"));
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
            Effect::Connect(patience) => return self.connect(patience),
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
                self.feed(match change {
                    Change::Stopped(signal) => {
                        let in_foreground = self
                            .terminal
                            .is_some_and(|terminal| terminal.foreground() == sys::own_group());
                        Event::CommandStopped(signal, in_foreground)
                    }
                    Change::Continued => Event::CommandContinued,
                    Change::Exited(_) | Change::Killed(_) => Event::CommandEnded(change),
                });
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
                "could not kill the command, which has become another user's: {error}"
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

    // The guardian

    /// Starts a guardian in place of one that was killed.
    fn replace_guardian(&mut self) {
        self.log.error("the guardian was killed; starting another");
        self.guardian = None;
        if let Err(error) = self.spawn_guardian() {
            self.say_unguarded(&error);
        }
    }

    /// Starts a guardian over the connection there is, in place of the one there was. While there is an attempt to connect,
    /// and so a thread, nothing is forked: its end is followed by a guardian anyway.
    fn spawn_guardian(&mut self) -> io::Result<()> {
        let socket = match &self.wire {
            Wire::Up(session, _) => session.wants().map(|(descriptor, _)| descriptor),
            Wire::Connecting(_) => return Ok(()),
            Wire::None => None,
        };
        let started = Guardian::spawn_settled(&self.shared, socket).or_else(|error| {
            // There may be room for one process only.
            if error.kind() != io::ErrorKind::WouldBlock {
                self.say_unguarded(&error);
            }
            self.guardian = None;
            Guardian::spawn_settled(&self.shared, socket)
        });
        self.guardian = Some(started?);
        self.is_unguarded_said = false;
        Ok(())
    }

    /// Says it once, for it is tried again and again.
    fn say_unguarded(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_unguarded_said, true) {
            self.log
                .error(format_args!("could not start a guardian: {error}"));
        }
    }

    // The connection

    /// Begins to connect again.
    fn connect(&mut self, patience: Duration) -> Option<Event> {
        let until = sys::now() + patience;
        let started = Reconnect::start(self.settings, until).or_else(|_| {
            // There may be room for one process or thread only; the guardian is bound to the old connection.
            self.guardian = None;
            Reconnect::start(self.settings, until)
        });
        match started {
            Ok(reconnect) => {
                self.wire = Wire::Connecting(reconnect);
                None
            }
            Err(error) => Some(Event::NotConnected(
                Barrier::Refused,
                format!("could not start a thread: {error}"),
            )),
        }
    }

    /// Sends a question on the session.
    fn ask(&mut self, question: Question) -> Option<Event> {
        let Wire::Up(session, asked) = &mut self.wire else {
            return Some(Event::SessionLost(Loss::Cut, "there is none".to_owned()));
        };
        let (lock, backend) = (self.lock, self.backend_pid);
        let name = self.name.as_deref();
        let query = Asked::new(question, lock, session.connection(), backend, name);
        let sent = session.ask(query.sql());
        *asked = Some(query);
        sent.err().map(|error| self.lost(&error))
    }

    /// Takes in what has arrived on the connection.
    fn step_wire(&mut self) {
        let event = match std::mem::replace(&mut self.wire, Wire::None) {
            Wire::Up(mut session, mut asked) => {
                let step = session.step();
                let answered = match &step {
                    Ok(Some(session::Event::Answered(_))) => asked.take(),
                    Ok(Some(session::Event::Connected) | None) | Err(_) => None,
                };
                self.wire = Wire::Up(session, asked);
                match step {
                    Ok(Some(session::Event::Answered(outcomes))) => {
                        answered.and_then(|asked| self.answered(&asked, &outcomes))
                    }
                    Ok(Some(session::Event::Connected) | None) => None,
                    Err(error) => Some(self.lost(&error)),
                }
            }
            Wire::Connecting(reconnect) => Some(self.connected(reconnect.finish())),
            Wire::None => None,
        };
        if let Some(event) = event {
            self.feed(event);
        }
    }

    /// An attempt to connect again has ended.
    fn connected(&mut self, result: Result<Session, Failure>) -> Event {
        match result {
            Ok(session) => {
                self.wire = Wire::Up(session, None);
                // The guardian first: from the moment that the lock is taken it must be bound to it.
                match self.spawn_guardian() {
                    Ok(()) => Event::Connected,
                    Err(error) => {
                        self.wire = Wire::None;
                        self.say_unguarded(&error);
                        Event::NotConnected(Barrier::Refused, error.to_string())
                    }
                }
            }
            Err(Failure::Late) => {
                Event::NotConnected(Barrier::Silence, "no answer in time".to_owned())
            }
            Err(Failure::Refused(error)) => Event::NotConnected(
                barrier(&error, reconnect::is_to_socket(self.settings)),
                error.message,
            ),
        }
    }

    /// The session is closed.
    fn lost(&mut self, error: &pq::Error) -> Event {
        self.wire = Wire::None;
        Event::SessionLost(loss(error), error.message.clone())
    }

    /// Reads an answer to what was asked.
    fn answered(&mut self, asked: &Asked, outcomes: &[Outcome]) -> Option<Event> {
        if self.guardian.is_none()
            && let Err(error) = self.spawn_guardian()
        {
            self.say_unguarded(&error);
        }
        Some(match asked.read(outcomes) {
            Ok(answer) => {
                if let (Answer::Retake(Retake::Held(_)), Wire::Up(session, _)) =
                    (&answer, &self.wire)
                {
                    self.backend_pid = session.connection().backend_pid();
                }
                Event::Answered(answer)
            }
            Err(error) => self.lost(&error),
        })
    }

    // The end

    /// Gives the lock up, and tells how pglock ends.
    fn finish(mut self) -> Exit {
        let was_frozen = self.state.is_frozen();
        if was_frozen && self.state.may_continue() {
            // It may have been killed meanwhile, and have left others in its group.
            self.command.send(Signal::CONT);
        }
        self.shared.set_group(None);
        self.shared.set_deadline(None);
        let ended = self.state.ended();
        let had_terminal = ended.is_some_and(|change| self.take_terminal_back(change));
        let mut is_lost = self.state.lock_is_lost();
        if self.shared.has_fired() && !is_lost {
            is_lost = true;
            let silence = sys::now().since(self.state.heard()).as_secs_f64();
            self.log.error(format_args!(
                "pglock itself was stopped for too long, {silence:.1} s without a sign of the server: the guardian \
                 has killed the command"
            ));
        }
        let exit = match ended.map(|change| self.command.end(change)) {
            Some(End::NotExecuted(error)) => self.not_executed(&error),
            Some(End::Ran(_)) | None if is_lost && self.config.kill_on_loss => {
                if !self.out_of_reach && ended.is_some() {
                    self.log.info("The command was stopped.");
                }
                Exit::Lost
            }
            Some(End::Ran(change)) => {
                match change {
                    Change::Killed(signal) if was_frozen => self.log.error(format_args!(
                        "{signal} has ended the command while it was stopped, before it was known what had become \
                         of the lock"
                    )),
                    _ => self
                        .log
                        .info("Execution finished, exiting and cleaning up lock."),
                }
                Exit::of_change(change)
            }
            None => Exit::Lost,
        };
        let guardian = &self.guardian;
        let dismiss = || {
            if let Some(guardian) = guardian {
                guardian.dismiss();
            }
        };
        if let Wire::Up(session, _) = &mut self.wire
            && !lock::release(session, self.lock, self.signals, dismiss)
            && !is_lost
        {
            self.log.error(
                "could not release the lock: the server did not answer, and frees it when it notices that \
                 the session is gone",
            );
        }
        if let Some(Change::Killed(signal @ (Signal::INT | Signal::QUIT))) = ended
            && had_terminal
        {
            // Typed at the terminal, it was meant for the calling script as well.
            sys::signal_own_group(signal);
        }
        exit
    }

    fn not_executed(&self, error: &io::Error) -> Exit {
        let early = match error.raw_os_error() {
            Some(sys::ETIME) => Some("the lease was over"),
            Some(sys::ECONNRESET) => Some("the server ended the session"),
            _ => None,
        };
        if let Some(early) = early {
            self.log
                .error(format_args!("{early} before the command could start"));
            return Exit::Failed;
        }
        let program = &self.config.command[0];
        let is_path = program.as_bytes().contains(&b'/');
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        let hint = if is_missing && is_path && Path::new(program).exists() {
            "; it is there, so what is missing is the interpreter that its first line names"
        } else {
            ""
        };
        self.log.error(format_args!(
            "could not execute {:?}: {error}{hint}",
            program.to_string_lossy()
        ));
        Exit::of_exec_error(error)
    }

    /// Gives the foreground back to pglock's own group, and tells whether the command had it. A command that
    /// a signal has ended may have left the terminal in any mode.
    fn take_terminal_back(&self, change: Change) -> bool {
        let Some(terminal) = self
            .terminal
            .filter(|terminal| terminal.foreground() == self.command.pid())
        else {
            return false;
        };
        terminal.give_to(sys::own_group());
        if matches!(change, Change::Killed(_)) {
            terminal.restore_modes();
        }
        true
    }
}
