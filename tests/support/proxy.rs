//! A network between pglock and a server that can break, in every way that a test asks for, at any time.
//!
//! One thread moves the bytes, in one poll loop. A silent proxy keeps what it has read, as a cable that
//! is unplugged for a while: nothing arrives, nothing is refused, and when it heals everything arrives late.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{Shutdown, setsockopt, shutdown};

use super::eventually;
use super::net::ClosedPort;
use super::server::Server;
use super::wait::PATIENCE;

/// The moment at which a trap goes off, for each connection anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The client has connected.
    Connected,
    /// The client's n-th request has arrived; the server does not get it. The first is the start-up packet.
    Request(u32),
    /// The server has begun to answer the n-th request; the client does not get it.
    Answer(u32),
    /// The client has got n bytes from the server.
    Bytes(u64),
    /// The client has got the answer to the n-th request, but for so many bytes at its end. For answers that the
    /// server sends in one piece, as it does with those that are short.
    Truncated(u32, usize),
}

/// What a trap does to its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Ends it in good order.
    Close,
    /// Resets it.
    Reset,
    /// Resets it for the client only: the server learns nothing, and hears nothing any more.
    ResetClient,
    /// Carries nothing any more, for good, in either direction.
    Silence,
    /// Says this to the client in the server's stead, and ends it.
    Say(Vec<u8>),
}

/// What a connection has carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How often the client has spoken after having listened: the number of round trips.
    pub round_trips: u32,
    /// Bytes that the server has got.
    pub to_server: u64,
    /// Bytes that the client has got.
    pub to_client: u64,
    /// Whether it exists still.
    pub open: bool,
}

/// A proxy on a free port of 127.0.0.1.
pub struct Proxy {
    port: Arc<ClosedPort>,
    plan: Arc<Mutex<Plan>>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// What the thread shall do and has done.
struct Plan {
    target: Target,
    delay: Duration,
    silent: bool,
    refuse: bool,
    trap: Option<(When, What)>,
    orders: Vec<What>,
    traffic: Vec<Traffic>,
    listening: bool,
    stop: bool,
}

#[derive(Clone)]
enum Target {
    Socket(PathBuf),
    Port(u16),
}

impl Proxy {
    /// In front of the Unix socket of `server`.
    pub fn new(server: &Server) -> Proxy {
        Proxy::to_socket(server.socket())
    }

    /// In front of another Unix socket: a pooler's.
    pub fn to_socket(socket: PathBuf) -> Proxy {
        Proxy::to(Target::Socket(socket))
    }

    /// In front of a port of 127.0.0.1: for TLS, or for a `server` that asks for passwords over TCP only.
    pub fn to_port(port: u16) -> Proxy {
        Proxy::to(Target::Port(port))
    }

    fn to(target: Target) -> Proxy {
        let port = Arc::new(ClosedPort::new());
        let plan = Arc::new(Mutex::new(Plan {
            target,
            delay: Duration::ZERO,
            silent: false,
            refuse: false,
            trap: None,
            orders: Vec::new(),
            traffic: Vec::new(),
            listening: false,
            stop: false,
        }));
        let (wake, woken) = UnixStream::pair().expect("a pair of sockets");
        woken.set_nonblocking(true).expect("O_NONBLOCK");
        let (thread_port, thread_plan) = (Arc::clone(&port), Arc::clone(&plan));
        let thread = thread::spawn(move || {
            Pump {
                port: thread_port,
                plan: thread_plan,
                woken,
                links: Vec::new(),
            }
            .run()
        });
        let proxy = Proxy {
            port,
            plan,
            wake,
            thread: Some(thread),
        };
        proxy.wait_until_listening(true);
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port.port()
    }

    /// Lets every byte arrive this much later, in both directions. (The proxy's own system answers the connect, so
    /// that is not delayed.)
    pub fn delay(&self, delay: Duration) {
        self.change(|plan| plan.delay = delay);
    }

    /// Carries nothing, in either direction, and lets nobody notice.
    pub fn silence(&self) {
        self.change(|plan| plan.silent = true);
    }

    /// Ends the silence: what was said meanwhile arrives now.
    pub fn heal(&self) {
        self.change(|plan| plan.silent = false);
    }

    /// Refuses connections; those that exist stay.
    pub fn refuse(&self) {
        self.change(|plan| plan.refuse = true);
        self.wait_until_listening(false);
    }

    /// Takes connections again.
    pub fn accept(&self) {
        self.change(|plan| plan.refuse = false);
        self.wait_until_listening(true);
    }

    /// Leads the connections to come to the Unix socket of another server.
    pub fn lead_to(&self, server: &Server) {
        self.change(|plan| plan.target = Target::Socket(server.socket()));
    }

    /// Sets a trap for the connections to come, and for those that exist.
    pub fn trap(&self, when: When, what: What) {
        self.change(|plan| plan.trap = Some((when, what)));
    }

    /// Takes it away.
    pub fn disarm(&self) {
        self.change(|plan| plan.trap = None);
    }

    /// Does this to all connections that exist, now.
    pub fn strike(&self, what: What) {
        let ends = !matches!(what, What::Silence | What::ResetClient);
        self.change(|plan| plan.orders.push(what));
        eventually("the proxy has obeyed", PATIENCE, || {
            let plan = self.plan();
            (plan.orders.is_empty() && !(ends && plan.traffic.iter().any(|link| link.open)))
                .then_some(())
        });
    }

    /// All connections so far, oldest first.
    pub fn traffic(&self) -> Vec<Traffic> {
        self.plan().traffic.clone()
    }

    /// How many connections exist.
    pub fn open_links(&self) -> usize {
        self.plan().traffic.iter().filter(|link| link.open).count()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan());
        let _ = (&self.wake).write_all(b"!");
    }

    fn wait_until_listening(&self, listening: bool) {
        eventually("the proxy opens or closes its port", PATIENCE, || {
            (self.plan().listening == listening).then_some(())
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|plan| plan.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's own state.
struct Pump {
    port: Arc<ClosedPort>,
    plan: Arc<Mutex<Plan>>,
    woken: UnixStream,
    links: Vec<Link>,
}

/// One connection, from client to server.
struct Link {
    client: Side,
    server: Side,
    /// Its place in the books.
    number: usize,
    /// Who has spoken last.
    client_spoke: bool,
    requests: u32,
    sprung: bool,
    stranded: bool,
    end: Option<What>,
}

/// One of the two sockets of a link.
struct Side {
    fd: OwnedFd,
    /// What is to be written to it, and when. An empty piece is the end of the stream.
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// It has sent its last byte.
    ended: bool,
    /// It has got its last byte.
    shut: bool,
    /// Its buffer is full.
    full: bool,
    written: u64,
}

impl Side {
    fn new(fd: OwnedFd) -> Side {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("O_NONBLOCK");
        Side {
            fd,
            queue: VecDeque::new(),
            ended: false,
            shut: false,
            full: false,
            written: 0,
        }
    }

    /// From now on the socket's end is a reset.
    fn make_close_a_reset(&self) {
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let _ = setsockopt(&self.fd, Linger, &linger);
    }

    /// Resets the connection. What is left is a socket to nobody.
    fn reset(&mut self) {
        self.make_close_a_reset();
        let (nobody, _) = UnixStream::pair().expect("a pair of sockets");
        self.fd = nobody.into();
        self.ended = true;
    }

    /// Writes what is due, but no more than `limit` bytes in all; false if the socket is broken.
    fn flush(&mut self, now: Instant, limit: u64) -> bool {
        self.full = false;
        while let Some((due, piece)) = self.queue.front_mut() {
            if *due > now {
                break;
            }
            if piece.is_empty() {
                self.shut = true;
                self.queue.pop_front();
                let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
                continue;
            }
            let allowed = piece.len().min(limit.saturating_sub(self.written) as usize);
            if allowed == 0 {
                break;
            }
            match nix::unistd::write(&self.fd, &piece[..allowed]) {
                Ok(count) => {
                    self.written += count as u64;
                    piece.drain(..count);
                    if piece.is_empty() {
                        self.queue.pop_front();
                    }
                }
                Err(Errno::EAGAIN) => {
                    self.full = true;
                    break;
                }
                Err(Errno::EINTR) => (),
                Err(_) => return false,
            }
        }
        true
    }
}

impl Pump {
    fn run(mut self) {
        let mut listener = None;
        loop {
            let plan = Arc::clone(&self.plan);
            {
                let mut plan = plan.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if plan.stop {
                    return;
                }
                if plan.refuse {
                    listener = None;
                } else if listener.is_none() {
                    listener = Some(self.port.open());
                }
                plan.listening = listener.is_some();
                let orders: Vec<What> = plan.orders.drain(..).collect();
                for link in &mut self.links {
                    for order in &orders {
                        link.obey(order.clone());
                    }
                }
                self.links.retain_mut(|link| {
                    let lives = link.carry(&plan);
                    let book = &mut plan.traffic[link.number];
                    book.to_server = link.server.written;
                    book.to_client = link.client.written;
                    book.round_trips = link.requests;
                    book.open = lives;
                    lives
                });
            }
            let (accept, readable) = self.wait(listener.as_ref());
            let mut plan = plan.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for (link, (client, server)) in self.links.iter_mut().zip(readable) {
                if client {
                    link.hear_client(&plan);
                }
                if server {
                    link.hear_server(&plan);
                }
            }
            if accept && let Some(listener) = &listener {
                self.links.extend(Pump::accept(listener, &mut plan));
            }
        }
    }

    /// Sleeps until there is something to do; says whether somebody connects, and who of each link can be read.
    fn wait(&self, listener: Option<&TcpListener>) -> (bool, Vec<(bool, bool)>) {
        let (silent, now) = (
            self.plan
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .silent,
            Instant::now(),
        );
        let mut next: Option<Instant> = None;
        let mut watched: Vec<(BorrowedFd, PollFlags)> =
            vec![(self.woken.as_fd(), PollFlags::POLLIN)];
        if let Some(listener) = listener {
            watched.push((listener.as_fd(), PollFlags::POLLIN));
        }
        let first = watched.len();
        for link in &self.links {
            for side in [&link.client, &link.server] {
                let mut flags = PollFlags::empty();
                if !side.ended {
                    flags |= PollFlags::POLLIN;
                }
                if !silent && !link.stranded {
                    if side.full {
                        flags |= PollFlags::POLLOUT;
                    } else if let Some((due, _)) = side.queue.front() {
                        next = Some(next.map_or(*due, |next| next.min(*due)));
                    }
                }
                // A socket that we want nothing of would still report that it is broken, again and again.
                let fd = if flags.is_empty() {
                    self.woken.as_fd()
                } else {
                    side.fd.as_fd()
                };
                watched.push((fd, flags));
            }
        }
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            let left = next.saturating_duration_since(now);
            // Rounded up, or the last millisecond would be a busy loop.
            PollTimeout::try_from(left.as_millis() + u128::from(!left.is_zero()))
                .unwrap_or(PollTimeout::MAX)
        });
        let mut polled: Vec<PollFd> = watched
            .iter()
            .map(|(fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        if poll(&mut polled, timeout).is_err() {
            return (false, Vec::new());
        }
        let ready: Vec<bool> = polled
            .iter()
            .zip(&watched)
            .map(|(polled, (_, wanted))| {
                let seen = polled.revents().unwrap_or(PollFlags::empty());
                wanted.contains(PollFlags::POLLIN) && seen.intersects(!PollFlags::POLLOUT)
            })
            .collect();
        if ready[0] {
            let _ = (&self.woken).read(&mut [0; 64]);
        }
        let readable = ready[first..]
            .chunks(2)
            .map(|pair| (pair[0], pair[1]))
            .collect();
        (listener.is_some() && ready[1], readable)
    }

    fn accept(listener: &TcpListener, plan: &mut Plan) -> Option<Link> {
        let (client, _) = listener.accept().ok()?;
        let _ = client.set_nodelay(true);
        let server: Option<OwnedFd> = match &plan.target {
            Target::Socket(path) => UnixStream::connect(path).ok().map(OwnedFd::from),
            Target::Port(port) => TcpStream::connect(("127.0.0.1", *port)).ok().map(|server| {
                let _ = server.set_nodelay(true);
                OwnedFd::from(server)
            }),
        };
        let number = plan.traffic.len();
        plan.traffic.push(Traffic::default());
        // No server: the client sees its connection close.
        let mut link = Link {
            client: Side::new(client.into()),
            server: Side::new(server?),
            number,
            client_spoke: false,
            requests: 0,
            sprung: false,
            stranded: false,
            end: None,
        };
        plan.traffic[number].open = true;
        link.spring(plan, |when| when == When::Connected);
        Some(link)
    }
}

impl Link {
    /// Sets off the trap if its time has come.
    fn spring(&mut self, plan: &Plan, now: impl Fn(When) -> bool) -> bool {
        if let Some((when, what)) = &plan.trap
            && !self.sprung
            && now(*when)
        {
            self.sprung = true;
            self.obey(what.clone());
            return true;
        }
        false
    }

    fn obey(&mut self, what: What) {
        match what {
            What::Silence => self.stranded = true,
            What::ResetClient => {
                self.stranded = true;
                self.client.reset();
            }
            what => {
                if let What::Say(bytes) = &what {
                    self.client.queue.push_back((Instant::now(), bytes.clone()));
                }
                self.end = Some(what);
            }
        }
    }

    fn hear_client(&mut self, plan: &Plan) {
        let Some(piece) = hear(&mut self.client) else {
            return;
        };
        if !piece.is_empty() && !self.client_spoke {
            self.client_spoke = true;
            self.requests += 1;
        }
        let request = self.requests;
        let speaks = !piece.is_empty();
        if self.spring(plan, |when| {
            speaks && matches!(when, When::Request(n) if n == request)
        }) || self.end.is_some()
        {
            return;
        }
        self.server
            .queue
            .push_back((Instant::now() + plan.delay, piece));
    }

    fn hear_server(&mut self, plan: &Plan) {
        let Some(mut piece) = hear(&mut self.server) else {
            return;
        };
        let request = self.requests;
        let speaks = !piece.is_empty();
        if speaks {
            self.client_spoke = false;
        }
        if speaks
            && let Some((When::Truncated(n, missing), _)) = plan.trap
            && n == request
        {
            piece.truncate(piece.len().saturating_sub(missing));
            if !piece.is_empty() {
                self.client.queue.push_back((Instant::now(), piece));
            }
            self.spring(plan, |_| true);
            return;
        }
        if self.spring(plan, |when| {
            speaks && matches!(when, When::Answer(n) if n == request)
        }) || self.end.is_some()
        {
            return;
        }
        self.client
            .queue
            .push_back((Instant::now() + plan.delay, piece));
    }

    /// Writes what can be written; false when the link has come to its end.
    fn carry(&mut self, plan: &Plan) -> bool {
        if let Some(end) = &self.end {
            // What it said before, and what we say instead, still goes out. A client that does not read does not matter.
            let soon = Instant::now() + Duration::from_secs(3600);
            if *end != What::Reset {
                self.client.flush(soon, u64::MAX);
            } else {
                for side in [&self.client, &self.server] {
                    side.make_close_a_reset();
                }
            }
            return false;
        }
        if plan.silent || self.stranded {
            return true;
        }
        let now = Instant::now();
        let limit = match plan.trap {
            Some((When::Bytes(limit), _)) => limit,
            _ => u64::MAX,
        };
        let sound = self.server.flush(now, u64::MAX) && self.client.flush(now, limit);
        if self.client.written >= limit {
            // The next bytes are not to come through.
            self.client.queue.clear();
            self.spring(plan, |when| matches!(when, When::Bytes(_)));
            return self.carry(plan);
        }
        sound && !(self.client.shut && self.server.shut)
    }
}

/// Reads a piece: nothing to read is None, the end of the stream is an empty one.
fn hear(side: &mut Side) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    match nix::unistd::read(&side.fd, &mut buffer) {
        Ok(count) => {
            buffer.truncate(count);
            side.ended = count == 0;
            Some(buffer)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => None,
        Err(_) => {
            side.ended = true;
            Some(Vec::new())
        }
    }
}
