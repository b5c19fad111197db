//! The world: one queue of what happens when, and the network and the pooler between the processes of [`process`](super::process)
//! and the server of [`server`](super::server).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::mem;

use super::coverage::Coverage;
use super::judge::Judge;
use super::process::Client;
use super::random::Random;
use super::schedule::{Cue, Fault, Kind, Schedule, Trap};
use super::server::{Out, Owner, Phase, Server};
use super::sql::{Program, Statement};
use super::time::{MILLISECOND, SECOND, Time};
use super::wordings::Wordings;
use crate::pq::{Error, Outcome};

/// What is to happen.
#[derive(Debug)]
pub enum Event {
    /// An invocation begins.
    Begin(usize),
    Fault(usize),
    /// A fault is over.
    FaultOver(usize),
    ToServer(usize, ToServer),
    ToClient(usize, ToClient),
    /// A backend is looked at.
    Backend(i32),
    /// A backend that was told to end does.
    BackendEnds(i32),
    /// The server ends one more session, or goes on to the next phase of its stop or start.
    ServerStep(u64),
    /// A pglock gets its turn.
    Pglock(usize),
    Guardian(usize, usize),
    /// A command is checked in its last moment, and begins.
    Exec(usize),
    Started(usize),
    /// A command ends by itself, or by a signal.
    CommandWorked(usize, u64),
    CommandKilled(usize),
    /// The shell continues a pglock that has stopped itself.
    Resume(usize),
    /// The pool tries to log in.
    Login,
    /// A lock was kept for as long as it is to be at least.
    Kept,
    /// Whether all goes on is looked at.
    Check,
}

/// A message to the server.
#[derive(Debug)]
pub enum ToServer {
    Start,
    Query(Program),
    Cancel,
    Close,
}

/// A message to a client.
#[derive(Debug)]
pub enum ToClient {
    Ready(i32),
    Refused(Error),
    Answer(Vec<Outcome>),
    /// The connection is closed, with these last words.
    Closed(Option<Error>),
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Server(usize),
    Pool,
}

/// A connection of a client's.
pub struct Connection {
    pub client: usize,
    peer: Peer,
    /// How many processes have it open.
    pub holders: u32,
    /// Whether the client's system has been told that it is reset.
    is_reset: bool,
    is_closed: bool,
    /// Whether the client's host is gone, and answers nothing.
    is_dead: bool,
    /// Whether the other side is through with it.
    is_over: bool,
    /// When the last message is there, in each direction: none passes another.
    last: [Time; 2],
    /// What waits for the end of a cut.
    held: [VecDeque<Message>; 2],
}

#[derive(Debug)]
enum Message {
    ToServer(ToServer),
    ToClient(ToClient),
}

/// The way from one host to the server.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    /// How many faults cut each direction.
    cut: [u32; 2],
    refuses: u32,
    slow: u32,
    /// The server does not let this client in, or what there is on the way does not.
    denies: u32,
    garbles: u32,
}

impl Way {
    pub fn is_clear(&self) -> bool {
        *self == Self::default()
    }
}

/// A pooler in transaction mode, as PgBouncer is one.
#[derive(Default)]
struct Pool {
    places: Vec<Place>,
    /// Clients that wait for a place, with what they ask.
    queue: VecDeque<(usize, Program)>,
    /// Not before this is a login tried again.
    retry_at: Time,
    login_asked: bool,
}

struct Place {
    /// Whether there is a server's session.
    is_there: bool,
    client: Option<usize>,
    asking: bool,
}

pub struct World {
    pub now: Time,
    pub schedule: Schedule,
    /// The faults of the schedule, and those whose trap was sprung.
    faults: Vec<Fault>,
    traps: Vec<Trap>,
    pub random: Random,
    queue: BinaryHeap<Reverse<(Time, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    serial: u64,
    pub server: Server,
    server_serial: u64,
    /// How often it is to be started again once it is down, how long that takes, and whether its stop was clean.
    restart_in: Time,
    stops_cleanly: bool,
    /// Whether the postmaster has lost its turn while it ended the sessions.
    has_lost_turn: bool,
    server_frozen: u32,
    held_for_server: VecDeque<(usize, ToServer)>,
    epoch: usize,
    pub connections: Vec<Connection>,
    pub ways: Vec<Way>,
    pool: Pool,
    pub clients: Vec<Client>,
    pub judge: Judge,
    pub wordings: Wordings,
    pub coverage: Coverage,
    /// When something last changed that whoever waits cannot help.
    pub disturbed: Time,
    /// Whether a host is gone whose lock has no lease or whose connection of the pool has no timeout, or the clock was set back:
    /// nothing is promised then of how long it takes until the next holder.
    pub takes_long: bool,
    /// Until when users wait for what does not come.
    patience_until: Time,
    pub story: Option<Vec<String>>,
    pub count: u64,
}

impl Connection {
    /// The client's host is gone.
    pub fn power_off(&mut self) {
        self.holders = 0;
        self.is_closed = true;
        self.is_dead = true;
        self.held = [VecDeque::new(), VecDeque::new()];
    }
}

impl World {
    pub fn new(schedule: Schedule, wordings: Wordings, coverage: Coverage, story: bool) -> Self {
        let mut random = Random::new(schedule.seed ^ 0x5eed);
        let rate = random.below(401) as i64 - 200;
        let clients: Vec<Client> = (0..schedule.clients.len())
            .map(|place| Client::new(&schedule, place, &mut random))
            .collect();
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            serial: 0,
            server: Server::new(rate, schedule.places),
            server_serial: 0,
            restart_in: SECOND,
            stops_cleanly: true,
            has_lost_turn: false,
            server_frozen: 0,
            held_for_server: VecDeque::new(),
            epoch: 0,
            connections: Vec::new(),
            ways: vec![Way::default(); clients.len()],
            pool: Pool::default(),
            faults: schedule.faults.clone(),
            traps: schedule.traps.clone(),
            judge: Judge::new(&schedule),
            clients,
            wordings,
            coverage,
            disturbed: 0,
            patience_until: schedule.faults.last().map_or(0, |fault| fault.at) + 60 * SECOND,
            takes_long: false,
            story: story.then(Vec::new),
            count: 0,
            random,
            schedule,
        };
        for place in 0..world.clients.len() {
            let begin = world.schedule.clients[place].begin;
            world.at(begin, Event::Begin(place));
        }
        for place in 0..world.schedule.faults.len() {
            let at = world.schedule.faults[place].at;
            world.at(at, Event::Fault(place));
        }
        world.at(SECOND / 4, Event::Check);
        world
    }

    /// Runs to the end. Returns what is wrong, if anything is.
    pub fn run(&mut self) -> Option<String> {
        while let Some(Reverse((time, _, place))) = self.queue.pop() {
            let event = self.events[place].take().expect("an event");
            self.free.push(place);
            self.now = time;
            self.count += 1;
            if self.count > 200_000 {
                return Some("too much happens".to_owned());
            }
            self.happen(event);
            let wrong = self.judge.wrong.take();
            if let Some(wrong) = wrong.or_else(|| self.coverage.surprise.take()) {
                return Some(wrong);
            }
        }
        self.at_the_end()
    }

    /// What is left when nothing is to happen any more.
    fn at_the_end(&self) -> Option<String> {
        for (place, client) in self.clients.iter().enumerate() {
            if let Some(left) = client.left() {
                return Some(format!("at the end there is of pglock {place}: {left}"));
            }
        }
        if !self.server.locks.is_empty() && !self.takes_long {
            return Some("at the end somebody has a lock".to_owned());
        }
        // A session whose client is gone without a word may be left if it had not come as far as to a lease.
        let is_left = |owner| match owner {
            Owner::Connection(connection) => {
                let it = &self.connections[connection];
                !it.is_dead && !it.is_reset
            }
            Owner::Pool(_) => false,
        };
        if self.server.owners().any(is_left) && !self.takes_long {
            return Some("at the end the server has sessions".to_owned());
        }
        None
    }

    pub fn at(&mut self, time: Time, event: Event) {
        self.serial += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.events[place] = Some(event);
                place
            }
            None => {
                self.events.push(Some(event));
                self.events.len() - 1
            }
        };
        self.queue
            .push(Reverse((time.max(self.now), self.serial, place)));
    }

    pub fn after(&mut self, time: Time, event: Event) {
        self.at(self.now + time, event);
    }

    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!(
                "{:10.6} {}",
                self.now as f64 / SECOND as f64,
                line()
            ));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Begin(client) => self.begin(client),
            Event::Fault(place) => {
                let fault = self.faults[place];
                self.tell(|| format!("FAULT {:?} of {}", fault.kind, fault.client));
                self.disturb();
                self.fault(place, fault);
            }
            Event::FaultOver(place) => {
                let fault = self.faults[place];
                self.tell(|| format!("over is {:?} of {}", fault.kind, fault.client));
                self.disturb();
                self.fault_over(fault);
            }
            Event::ToServer(connection, message) => self.arrive_at_server(connection, message),
            Event::ToClient(connection, message) => self.arrive_at_client(connection, message),
            Event::Backend(pid) => {
                if self.server_frozen > 0 {
                    // It is late.
                    self.after(10 * MILLISECOND, Event::Backend(pid));
                } else {
                    self.server.wake(pid, self.now);
                    self.serve();
                }
            }
            Event::BackendEnds(pid) => {
                if self.server.is_there(pid) {
                    self.server.terminate(pid, self.now);
                    self.serve();
                }
            }
            Event::ServerStep(serial) => {
                if serial == self.server_serial {
                    self.server_step();
                }
            }
            Event::Pglock(client) => self.pglock_turn(client),
            Event::Guardian(client, guardian) => self.guardian_turn(client, guardian),
            Event::Exec(client) => self.exec(client),
            Event::Started(client) => self.started(client),
            Event::CommandWorked(client, serial) => self.command_worked(client, serial),
            Event::CommandKilled(client) => self.command_killed(client),
            Event::Resume(client) => self.resume(client),
            Event::Login => self.login(),
            Event::Kept => self.look(),
            Event::Check => {
                self.check();
                if self.now > self.patience_until {
                    self.lose_patience();
                }
                let is_over = self.clients.iter().all(|client| client.has_exited());
                if !is_over {
                    self.after(SECOND / 4, Event::Check);
                }
            }
        }
    }

    /// Something has changed that whoever waits cannot help.
    pub fn disturb(&mut self) {
        self.disturbed = self.now;
    }

    // The network

    fn latency(&mut self, client: usize) -> Time {
        let most = if self.ways[client].slow > 0 {
            800 * MILLISECOND
        } else if self.schedule.is_local {
            100
        } else {
            2 * MILLISECOND
        };
        40 + self.random.next() % most
    }

    /// Begins to connect.
    pub fn connect(&mut self, client: usize, pooled: bool) -> usize {
        let connection = self.connections.len();
        self.connections.push(Connection {
            client,
            peer: if pooled {
                Peer::Pool
            } else {
                Peer::Server(self.epoch)
            },
            holders: 1,
            is_reset: false,
            is_closed: false,
            is_dead: false,
            is_over: false,
            last: [0; 2],
            held: [VecDeque::new(), VecDeque::new()],
        });
        if self.ways[client].refuses > 0 {
            let refusal = self.unreachable("Connection refused");
            self.send(connection, 1, Message::ToClient(ToClient::Refused(refusal)));
        } else if self.ways[client].denies + self.ways[client].garbles > 0 {
            let denied = self.ways[client].denies > 0;
            let refusal = Error {
                sqlstate: denied.then(|| "28P01".to_owned()),
                message: "FATAL:  password authentication failed".to_owned(),
                reached: true,
                is_warning: false,
            };
            self.send(connection, 1, Message::ToClient(ToClient::Refused(refusal)));
        } else {
            self.send_to_server(connection, ToServer::Start);
        }
        connection
    }

    pub fn send_to_server(&mut self, connection: usize, message: ToServer) {
        self.send(connection, 0, Message::ToServer(message));
    }

    /// One process less has it open.
    pub fn release(&mut self, connection: usize) {
        let it = &mut self.connections[connection];
        it.holders -= 1;
        if it.holders == 0 && !it.is_closed {
            it.is_closed = true;
            if !it.is_reset {
                self.send_to_server(connection, ToServer::Close);
            }
        }
    }

    fn send(&mut self, connection: usize, direction: usize, message: Message) {
        let client = self.connections[connection].client;
        if self.ways[client].cut[direction] > 0 {
            return self.connections[connection].held[direction].push_back(message);
        }
        let latency = self.latency(client);
        let last = &mut self.connections[connection].last[direction];
        *last = (*last + 1).max(self.now + latency);
        let at = *last;
        match message {
            Message::ToServer(message) => self.at(at, Event::ToServer(connection, message)),
            Message::ToClient(message) => self.at(at, Event::ToClient(connection, message)),
        }
    }

    fn unreachable(&self, message: &str) -> Error {
        Error {
            message: format!("connection to server failed: {message}"),
            ..Error::default()
        }
    }

    fn arrive_at_server(&mut self, connection: usize, message: ToServer) {
        // A cut swallows what is under way, and it is sent again when it is over.
        let client = self.connections[connection].client;
        if self.ways[client].cut[0] > 0 {
            return self.connections[connection].held[0].push_back(Message::ToServer(message));
        }
        if self.connections[connection].is_reset {
            // It has been told that nobody is there.
            return self.lose_client(connection);
        }
        match self.connections[connection].peer {
            Peer::Server(_) if self.server_frozen > 0 => {
                self.held_for_server.push_back((connection, message));
            }
            Peer::Server(_) => self.serve_message(connection, message),
            Peer::Pool => self.pool_message(connection, message),
        }
    }

    fn serve_message(&mut self, connection: usize, message: ToServer) {
        let owner = Owner::Connection(connection);
        let is_over = self.connections[connection].is_over
            || self.connections[connection].peer != Peer::Server(self.epoch);
        match message {
            ToServer::Start => {
                let words = match self.server.connect(owner, self.now) {
                    Ok(pid) => ToClient::Ready(pid),
                    Err(Some(error)) => ToClient::Refused(error),
                    Err(None) => ToClient::Refused(self.unreachable("Connection refused")),
                };
                self.send(connection, 1, Message::ToClient(words));
            }
            // The system answers that nobody is there.
            ToServer::Query(_) if is_over => {
                self.send(connection, 1, Message::ToClient(ToClient::Closed(None)));
            }
            ToServer::Query(program) => {
                let program = self.failing(connection, program);
                self.server.query(owner, program, self.now);
                self.serve();
            }
            ToServer::Cancel => {
                self.server.cancel(owner, self.now);
                self.serve();
            }
            ToServer::Close => {
                self.server.close(owner, self.now);
                self.serve();
            }
        }
    }

    /// What a client asks, with a failure in it if it is to fail: not at the end of a transaction.
    fn failing(&mut self, connection: usize, program: Program) -> Program {
        let client = self.connections[connection].client;
        let ends = matches!(
            program.first(),
            Some(Statement::Rollback | Statement::Commit)
        );
        if ends || !mem::take(&mut self.clients[client].fails) {
            return program;
        }
        // With its transaction goes what is bound to it.
        if self.connections[connection].peer == Peer::Pool {
            self.excuse_session(client);
            // An aborted transaction has no timeouts, which were its own: whose client is gone without a word has the pool's
            // connection until the pooler notices.
            self.takes_long |= self.clients[client].has_exited();
        }
        let mut statements = Program::unwrap_or_clone(program);
        let place = self.random.below(statements.len());
        statements.insert(place, Statement::Failing);
        Program::new(statements)
    }

    fn arrive_at_client(&mut self, connection: usize, message: ToClient) {
        let client = self.connections[connection].client;
        if self.ways[client].cut[1] > 0 {
            return self.connections[connection].held[1].push_back(Message::ToClient(message));
        }
        let it = &self.connections[connection];
        if it.is_dead {
            return;
        }
        if it.is_reset || it.is_closed {
            return self.lose_client(connection);
        }
        self.receive(client, connection, message);
    }

    /// The server learns that its client is not there.
    fn lose_client(&mut self, connection: usize) {
        let client = self.connections[connection].client;
        if self.clients[client].connection == Some(connection) {
            self.excuse_session(client);
        }
        match self.connections[connection].peer {
            Peer::Server(_) => {
                self.server.close(Owner::Connection(connection), self.now);
                self.serve();
            }
            Peer::Pool => self.pool_message(connection, ToServer::Close),
        }
    }

    /// What the server wants done.
    pub fn serve(&mut self) {
        loop {
            let outs = self.server.outs();
            if outs.is_empty() {
                return;
            }
            for out in outs {
                match out {
                    Out::Answer(Owner::Connection(connection), outcomes) => {
                        self.note_grant(connection, Owner::Connection(connection));
                        let message = Message::ToClient(ToClient::Answer(outcomes));
                        self.send(connection, 1, message);
                    }
                    Out::Close(Owner::Connection(connection), words) => {
                        let sqlstate = words.as_ref().and_then(|words| words.sqlstate.as_deref());
                        if let Some("57P05" | "25P03") = sqlstate {
                            let client = self.connections[connection].client;
                            self.spring(client, |cue| cue == Cue::TimesOut);
                        }
                        self.connections[connection].is_over = true;
                        let message = Message::ToClient(ToClient::Closed(words));
                        self.send(connection, 1, message);
                    }
                    Out::Answer(Owner::Pool(place), outcomes) => self.pool_answer(place, outcomes),
                    Out::Close(Owner::Pool(place), words) => self.pool_loss(place, words),
                    Out::Wake(pid, time) => self.at(time, Event::Backend(pid)),
                }
            }
        }
    }

    // The pooler

    fn pool_message(&mut self, connection: usize, message: ToServer) {
        let place = self.pool_place(connection);
        match message {
            // It lets in whether or not the server is there.
            ToServer::Start => {
                self.send(connection, 1, Message::ToClient(ToClient::Ready(-1)));
            }
            ToServer::Query(_) if self.connections[connection].is_over => {
                self.send(connection, 1, Message::ToClient(ToClient::Closed(None)));
            }
            ToServer::Query(program) => match place {
                Some(place) => self.pool_ask(place, program),
                None => {
                    self.pool.queue.push_back((connection, program));
                    self.pool_serve();
                }
            },
            ToServer::Cancel => {
                if let Some(place) = place {
                    self.server.cancel(Owner::Pool(place), self.now);
                    self.serve();
                } else {
                    self.pool.queue.retain(|(other, _)| *other != connection);
                    let words = pooler_error("canceled by client");
                    self.pool_close(connection, Some(words));
                }
            }
            ToServer::Close => {
                self.pool.queue.retain(|(other, _)| *other != connection);
                if !mem::replace(&mut self.connections[connection].is_over, true)
                    && let Some(place) = place
                {
                    // A transaction that is open ends with the server's session.
                    self.pool.places[place].is_there = false;
                    self.pool.places[place].client = None;
                    self.server.close(Owner::Pool(place), self.now);
                    self.serve();
                    self.pool_serve();
                }
            }
        }
    }

    fn pool_place(&self, connection: usize) -> Option<usize> {
        let mut places = self.pool.places.iter();
        places.position(|place| place.client == Some(connection))
    }

    fn pool_ask(&mut self, place: usize, program: Program) {
        self.pool.places[place].asking = true;
        let connection = self.pool.places[place].client.expect("a client");
        let program = self.failing(connection, program);
        self.server.query(Owner::Pool(place), program, self.now);
        self.serve();
    }

    fn pool_answer(&mut self, place: usize, outcomes: Vec<Outcome>) {
        self.pool.places[place].asking = false;
        let Some(connection) = self.pool.places[place].client else {
            return;
        };
        self.note_grant(connection, Owner::Pool(place));
        if !self.server.is_in_transaction(Owner::Pool(place)) {
            self.pool.places[place].client = None;
        }
        self.send(connection, 1, Message::ToClient(ToClient::Answer(outcomes)));
        self.pool_serve();
    }

    /// A session of the pool's has ended.
    fn pool_loss(&mut self, place: usize, words: Option<Error>) {
        self.pool.places[place].is_there = false;
        self.pool.places[place].asking = false;
        if let Some(connection) = self.pool.places[place].client.take() {
            // It passes on what the server has said, without the severity.
            let words = match words {
                Some(words) => Error {
                    is_warning: false,
                    ..words
                },
                None => pooler_error("server conn crashed?"),
            };
            self.pool_close(connection, Some(words));
        }
        self.pool_serve();
    }

    fn pool_close(&mut self, connection: usize, words: Option<Error>) {
        if !mem::replace(&mut self.connections[connection].is_over, true) {
            self.send(connection, 1, Message::ToClient(ToClient::Closed(words)));
        }
    }

    /// Gives those who wait what is free.
    fn pool_serve(&mut self) {
        while !self.pool.queue.is_empty() {
            let mut places = self.pool.places.iter();
            let free = places.position(|place| place.is_there && place.client.is_none());
            let Some(place) = free else {
                break;
            };
            let (connection, program) = self.pool.queue.pop_front().expect("somebody");
            self.pool.places[place].client = Some(connection);
            self.pool_ask(place, program);
        }
        let there = self
            .pool
            .places
            .iter()
            .filter(|place| place.is_there)
            .count();
        if !self.pool.queue.is_empty()
            && there < self.schedule.pool.0
            && !mem::replace(&mut self.pool.login_asked, true)
        {
            let at = self.pool.retry_at.max(self.now + 300);
            self.at(at, Event::Login);
        }
    }

    fn login(&mut self) {
        self.pool.login_asked = false;
        if self.pool.queue.is_empty() {
            return;
        }
        let free = self.pool.places.iter().position(|place| !place.is_there);
        let place = free.unwrap_or(self.pool.places.len());
        let result = if self.server_frozen > 0 {
            Err(None)
        } else {
            self.server.connect(Owner::Pool(place), self.now)
        };
        match result {
            Ok(_) => {
                let new = Place {
                    is_there: true,
                    client: None,
                    asking: false,
                };
                match free {
                    Some(place) => self.pool.places[place] = new,
                    None => self.pool.places.push(new),
                }
            }
            Err(_) => self.pool.retry_at = self.now + self.schedule.pool.1,
        }
        self.pool_serve();
    }

    /// The pooler is stopped and started: all its connections are closed.
    fn restart_pool(&mut self) {
        for place in 0..self.pool.places.len() {
            if self.pool.places[place].is_there {
                self.pool.places[place].is_there = false;
                self.server.close(Owner::Pool(place), self.now);
            }
            self.pool.places[place].client = None;
        }
        self.pool.queue.clear();
        self.pool.retry_at = 0;
        for connection in 0..self.connections.len() {
            if self.connections[connection].peer == Peer::Pool {
                let client = self.connections[connection].client;
                if self.clients[client].connection == Some(connection) {
                    self.excuse_session(client);
                }
                self.pool_close(connection, None);
            }
        }
        self.serve();
    }

    // The server

    /// Stops the server, to start it again.
    fn stop_server(&mut self, phase: Phase, is_clean: bool, restart_in: Time) {
        self.server_serial += 1;
        self.restart_in = restart_in.min(60 * SECOND);
        self.stops_cleanly = is_clean;
        self.has_lost_turn = false;
        self.server.phase = phase;
        self.judge.server_goes_down(&mut self.clients, self.now);
        self.next_server_step(300);
    }

    fn next_server_step(&mut self, most: Time) {
        let time = 1 + self.random.next() % most;
        let serial = self.server_serial;
        self.after(time, Event::ServerStep(serial));
    }

    fn server_step(&mut self) {
        match self.server.phase {
            Phase::Up => {}
            Phase::Smart => {
                if self.server.has_sessions() {
                    // In the end it becomes a fast one.
                    self.stop_server(Phase::Ending, true, self.restart_in);
                } else {
                    self.server.phase = Phase::Down;
                    let time = self.restart_in;
                    let serial = self.server_serial;
                    self.after(time, Event::ServerStep(serial));
                }
            }
            Phase::Ending => {
                let pids = self.server.pids();
                if pids.is_empty() {
                    self.server.phase = Phase::Down;
                    let time = self.restart_in;
                    let serial = self.server_serial;
                    self.after(time, Event::ServerStep(serial));
                } else if let Some(pid) = self.server.next_to_be_told() {
                    self.server.tell_to_end(pid);
                    let dies_in = 30 + self.random.next() % (2 * MILLISECOND);
                    self.after(dies_in, Event::BackendEnds(pid));
                    // It may itself lose its turn once meanwhile: how long that may take a granted lock waits before it counts.
                    let loses_turn = !self.has_lost_turn && self.random.chance(25);
                    self.has_lost_turn |= loses_turn;
                    let most = if loses_turn { 50 * MILLISECOND } else { 5 };
                    self.next_server_step(most);
                } else {
                    self.next_server_step(2 * MILLISECOND);
                }
            }
            Phase::Down => {
                self.server.phase = Phase::Starting(false);
                self.server_frozen = 0;
                for (connection, message) in mem::take(&mut self.held_for_server) {
                    self.serve_message(connection, message);
                }
                // There may be much to recover.
                let most = self
                    .random
                    .of(&[200 * MILLISECOND, 200 * MILLISECOND, 2 * SECOND]);
                self.next_server_step(most);
            }
            Phase::Starting(after_backend) => {
                self.tell(|| "the server serves".to_owned());
                self.disturb();
                self.server
                    .start(after_backend, self.stops_cleanly, self.now);
            }
        }
    }

    /// All sessions are lost at once.
    fn lose_sessions(&mut self, words: Option<&str>) {
        self.server.lose_all(words, self.now);
        self.serve();
    }

    /// Whether it serves and is not frozen.
    pub fn is_server_well(&self) -> bool {
        self.server.phase == Phase::Up && self.server_frozen == 0 && !self.server.is_standby
    }

    // What goes wrong

    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Springs the traps that wait for this.
    pub fn spring(&mut self, client: usize, is_cue: impl Fn(Cue) -> bool) {
        let mut place = 0;
        while place < self.traps.len() {
            let trap = &mut self.traps[place];
            if !is_cue(trap.cue) {
                place += 1;
            } else if trap.passes > 0 {
                trap.passes -= 1;
                place += 1;
            } else {
                let Trap {
                    after, mut fault, ..
                } = self.traps.remove(place);
                fault.client = client;
                self.faults.push(fault);
                self.after(after, Event::Fault(self.faults.len() - 1));
            }
        }
    }

    fn fault(&mut self, place: usize, fault: Fault) {
        let Fault {
            kind, client, time, ..
        } = fault;
        let is_up = matches!(self.server.phase, Phase::Up | Phase::Smart);
        let lasts = |world: &mut Self| world.after(time, Event::FaultOver(place));
        match kind {
            Kind::CrashBackend if is_up => {
                self.stop_server(Phase::Starting(true), false, 0);
                self.lose_sessions(Some("57P02"));
            }
            Kind::StopFast if is_up => self.stop_server(Phase::Ending, true, time),
            Kind::StopImmediate if is_up => {
                self.stop_server(Phase::Down, false, time);
                self.lose_sessions(Some("57P01"));
            }
            Kind::StopSmart if is_up => {
                self.stop_server(Phase::Smart, true, time);
                self.server_serial += 1;
                let serial = self.server_serial;
                self.after(time.min(6 * SECOND), Event::ServerStep(serial));
            }
            Kind::KillPostmaster if is_up => {
                self.stop_server(Phase::Down, false, time);
                self.lose_sessions(None);
            }
            Kind::CrashBackend
            | Kind::StopFast
            | Kind::StopImmediate
            | Kind::StopSmart
            | Kind::KillPostmaster => {}
            Kind::Terminate => {
                let owner = self.clients[client]
                    .connection
                    .and_then(|connection| self.owner(connection));
                if let Some(pid) = owner.and_then(|owner| self.server.backend_of(owner))
                    && self.server_frozen == 0
                {
                    self.excuse_session(client);
                    self.server.terminate(pid, self.now);
                    self.serve();
                }
            }
            Kind::ResetOne => self.server.reset_statistics(false, self.now),
            Kind::ResetAll => self.server.reset_statistics(true, self.now),
            Kind::FreezeServer => {
                self.server_frozen += 1;
                lasts(self);
            }
            // Newcomers hold off for longer.
            Kind::StepClockBack => {
                self.server.clock_offset -= time as i64;
                self.takes_long = true;
            }
            Kind::StepClock => {
                self.server.clock_offset += time as i64;
                self.judge.clock_is_stepped();
            }
            Kind::Promote => self.promote(),
            Kind::Cut => self.cut(client, [1, 1], place, time),
            Kind::CutTo => self.cut(client, [1, 0], place, time),
            Kind::CutFrom => self.cut(client, [0, 1], place, time),
            Kind::HoldBack => {
                let until = self.stage_ends_at(client).unwrap_or_default();
                let until = until.max(self.now) + time % SECOND;
                self.cut(client, [0, 1], place, until - self.now);
            }
            Kind::ResetClient => self.reset(client, true, false),
            Kind::ResetServer => self.reset(client, false, true),
            Kind::Reset => self.reset(client, true, true),
            Kind::Refuse => {
                self.ways[client].refuses += 1;
                if self.schedule.is_local {
                    self.excuse_socket(client, time);
                }
                lasts(self);
            }
            Kind::Slow => {
                self.ways[client].slow += 1;
                lasts(self);
            }
            Kind::FreezeHost => {
                self.freeze_host(client);
                lasts(self);
            }
            Kind::PowerOff => self.power_off(client),
            Kind::NoProcesses
            | Kind::Busy
            | Kind::LateTimers
            | Kind::FreezePglock
            | Kind::FreezeGuardian => {
                self.hamper(client, kind, true);
                lasts(self);
            }
            Kind::KillPglock
            | Kind::KillGuardian
            | Kind::KillBoth
            | Kind::KillCommand
            | Kind::StopCommand
            | Kind::SuspendCommand
            | Kind::ContinueCommand
            | Kind::Interrupt
            | Kind::Terminated
            | Kind::TypedStop
            | Kind::TellToContinue => self.strike(client, kind, time),
            Kind::Arrive => {
                let mut clients = self.clients.iter();
                if let Some(client) = clients.position(Client::is_unborn) {
                    self.begin(client);
                }
            }
            Kind::RestartPool => self.restart_pool(),
            Kind::Deny => {
                self.ways[client].denies += 1;
                lasts(self);
            }
            Kind::Garble => {
                self.ways[client].garbles += 1;
                lasts(self);
            }
            Kind::CancelQuery => {
                let connection = self.clients[client].connection;
                if let Some(owner) = connection.and_then(|connection| self.owner(connection)) {
                    self.server.cancel(owner, self.now);
                    self.serve();
                }
            }
            Kind::Fail => self.clients[client].fails = true,
            Kind::Standby => {
                self.server.is_standby = true;
                lasts(self);
            }
        }
    }

    fn fault_over(&mut self, fault: Fault) {
        let client = fault.client;
        match fault.kind {
            Kind::FreezeServer => {
                self.server_frozen = self.server_frozen.saturating_sub(1);
                if self.server_frozen == 0 {
                    for (connection, message) in mem::take(&mut self.held_for_server) {
                        self.serve_message(connection, message);
                    }
                }
            }
            Kind::Cut => self.heal(client, [1, 1]),
            Kind::CutTo => self.heal(client, [1, 0]),
            Kind::CutFrom | Kind::HoldBack => self.heal(client, [0, 1]),
            Kind::Refuse => self.ways[client].refuses -= 1,
            Kind::Slow => self.ways[client].slow -= 1,
            Kind::Deny => self.ways[client].denies -= 1,
            Kind::Garble => self.ways[client].garbles -= 1,
            Kind::Standby => self.server.is_standby = false,
            Kind::FreezeHost => self.thaw_host(client),
            kind => self.hamper(client, kind, false),
        }
    }

    /// The session of the server's that a connection leads to.
    pub fn owner(&self, connection: usize) -> Option<Owner> {
        match self.connections[connection].peer {
            Peer::Server(_) => Some(Owner::Connection(connection)),
            Peer::Pool => self.pool_place(connection).map(Owner::Pool),
        }
    }

    fn cut(&mut self, client: usize, directions: [u32; 2], place: usize, time: Time) {
        for (cut, one) in self.ways[client].cut.iter_mut().zip(directions) {
            *cut += one;
        }
        self.after(time, Event::FaultOver(place));
    }

    fn heal(&mut self, client: usize, directions: [u32; 2]) {
        for (cut, one) in self.ways[client].cut.iter_mut().zip(directions) {
            *cut -= one;
        }
        for connection in 0..self.connections.len() {
            if self.connections[connection].client != client {
                continue;
            }
            for direction in 0..2 {
                if self.ways[client].cut[direction] == 0 {
                    for message in mem::take(&mut self.connections[connection].held[direction]) {
                        self.send(connection, direction, message);
                    }
                }
            }
        }
    }

    /// Something on the way resets the connection that a client has, for one side or for both.
    fn reset(&mut self, client: usize, for_client: bool, for_server: bool) {
        let Some(connection) = self.clients[client].connection else {
            return;
        };
        if self.connections[connection].is_closed {
            return;
        }
        if for_client && !for_server {
            self.note_lifted(client);
            self.lose_session(client);
        }
        if for_server {
            self.excuse_session(client);
            self.connections[connection].is_over = true;
            match self.connections[connection].peer {
                Peer::Server(_) => {
                    self.server.close(Owner::Connection(connection), self.now);
                    self.serve();
                }
                Peer::Pool => {
                    self.connections[connection].is_over = false;
                    self.pool_message(connection, ToServer::Close);
                }
            }
        }
        if for_client {
            self.connections[connection].is_reset = true;
            self.receive(client, connection, ToClient::Closed(None));
        }
    }

    /// A standby takes over, behind the same address.
    fn promote(&mut self) {
        // The old one goes down, and answers nobody any more.
        self.judge.server_goes_down(&mut self.clients, self.now);
        self.lose_sessions(None);
        self.server_serial += 1;
        let rate = self.random.below(401) as i64 - 200;
        self.server = Server::promote(rate, &self.server, self.now);
        self.server_frozen = 0;
        self.disturb();
        self.epoch += 1;
    }
}

/// What a pooler says of itself.
fn pooler_error(message: &str) -> Error {
    Error {
        sqlstate: Some("08P01".to_owned()),
        message: format!("FATAL:  {message}"),
        reached: true,
        is_warning: false,
    }
}
