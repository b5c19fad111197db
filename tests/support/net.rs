//! Addresses at which something is wrong, or nothing must happen.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect,
    getsockname, listen, setsockopt, socket,
};

use super::Scratch;

fn tcp_socket(flags: SockFlag) -> OwnedFd {
    socket(
        AddressFamily::Inet,
        SockType::Stream,
        flags | SockFlag::SOCK_CLOEXEC,
        SockProtocol::Tcp,
    )
    .expect("a socket")
}

/// A port of 127.0.0.1 that is ours and refuses connections.
pub struct ClosedPort {
    // Bound, but does not listen. Another socket may listen on the port as long as both set SO_REUSEADDR.
    socket: OwnedFd,
}

impl ClosedPort {
    pub fn new() -> ClosedPort {
        let socket = tcp_socket(SockFlag::empty());
        setsockopt(&socket, ReuseAddr, &true).expect("SO_REUSEADDR");
        bind(
            socket.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)),
        )
        .expect("bind");
        ClosedPort { socket }
    }

    pub fn port(&self) -> u16 {
        getsockname::<SockaddrIn>(self.socket.as_raw_fd())
            .expect("getsockname")
            .port()
    }

    /// Listens on the port for as long as the listener lives.
    pub fn open(&self) -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, self.port())).expect("listen on our own port")
    }
}

/// A port that neither answers nor refuses: packets to it vanish.
pub struct BlackHole {
    port: u16,
    _listener: OwnedFd,
    // They fill the listener's queue; the kernel drops what does not fit.
    _queue: Vec<OwnedFd>,
}

impl BlackHole {
    /// At a port of 127.0.0.1 that is free.
    pub fn new() -> BlackHole {
        BlackHole::at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))
    }

    pub fn at(address: SocketAddrV4) -> BlackHole {
        let listener = tcp_socket(SockFlag::empty());
        bind(listener.as_raw_fd(), &SockaddrIn::from(address)).expect("bind");
        listen(&listener, Backlog::new(0).expect("a backlog")).expect("listen");
        let address: SockaddrIn = getsockname(listener.as_raw_fd()).expect("getsockname");
        let mut queue = Vec::new();
        // The queue is full when a connection is still not made after a while; over loopback it takes microseconds.
        loop {
            let client = tcp_socket(SockFlag::SOCK_NONBLOCK);
            match connect(client.as_raw_fd(), &address) {
                Ok(()) | Err(Errno::EINPROGRESS) => (),
                Err(e) => panic!("connect: {e}"),
            }
            let mut ready = [nix::poll::PollFd::new(
                std::os::fd::AsFd::as_fd(&client),
                nix::poll::PollFlags::POLLOUT,
            )];
            let connected = nix::poll::poll(&mut ready, 200u16).expect("poll") > 0;
            queue.push(client);
            if !connected {
                return BlackHole {
                    port: address.port(),
                    _listener: listener,
                    _queue: queue,
                };
            }
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

/// A port that accepts connections, and says whether there were any.
pub struct Witness {
    listener: TcpListener,
}

impl Witness {
    pub fn new() -> Witness {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        Witness { listener }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().expect("an address").port()
    }

    /// Whether anybody has connected since the last time.
    pub fn was_disturbed(&self) -> bool {
        match self.listener.accept() {
            Ok(_) => true,
            Err(e) if e.kind() == ErrorKind::WouldBlock => false,
            Err(e) => panic!("accept: {e}"),
        }
    }
}

/// What a client told a [`FakeServer`].
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The start-up packet: user, database and so on.
    pub parameters: BTreeMap<String, String>,
    /// Whether it asked for TLS first.
    pub tls: bool,
    /// The password, in clear.
    pub password: Option<Vec<u8>>,
}

/// A server that listens to who calls, and then hangs up with an error: for tests of what pglock sends where.
pub struct FakeServer {
    address: SocketAddrV4,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The text of the fake server's error.
pub const HUNG_UP: &str = "this server only listens";

impl FakeServer {
    /// A fake server that asks for no password, on 127.0.0.1.
    pub fn new() -> FakeServer {
        FakeServer::on(Ipv4Addr::LOCALHOST, false)
    }

    /// One that asks for the password in clear.
    pub fn asking_for_password() -> FakeServer {
        FakeServer::on(Ipv4Addr::LOCALHOST, true)
    }

    pub fn on(ip: Ipv4Addr, ask: bool) -> FakeServer {
        let listener = TcpListener::bind((ip, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (book, stopped) = (Arc::clone(&calls), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(mut client) = client else { continue };
                if let Some(call) = converse(&mut client, ask) {
                    // First the book, then the error: whoever has seen the error finds the call.
                    book.lock().expect("the calls").push(call);
                    hang_up(&mut client);
                }
            }
        });
        FakeServer {
            address: SocketAddrV4::new(ip, port),
            calls,
            stop,
            thread: Some(thread),
        }
    }

    pub fn host(&self) -> String {
        self.address.ip().to_string()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The calls since the last time. All calls of a client that has exited are among them if the fake server's
    /// error was seen.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().expect("the calls"))
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Passes on what comes to a Unix socket of its own, as a program beside a container does, or ssh.
pub struct Forwarder {
    home: Scratch,
    ends: Arc<Mutex<Vec<UnixStream>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// In front of this socket.
    pub fn new(target: &Path) -> Forwarder {
        let home = Scratch::new();
        let name = target.file_name().expect("a file");
        let socket = home.path().join(name);
        let listener = UnixListener::bind(&socket).expect("listen");
        std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o777)).expect("chmod");
        let target = target.to_owned();
        let ends: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (book, stopped) = (Arc::clone(&ends), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&target)) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let [mut from, mut to] = [from, to].map(|end| end.try_clone().expect("dup"));
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                book.lock().expect("the ends").extend([client, server]);
            }
        });
        Forwarder {
            home,
            ends,
            stop,
            thread: Some(thread),
        }
    }

    /// The directory of its socket, which serves as a host name.
    pub fn socket_dir(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    /// Ends it, and its connections with it.
    pub fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread.
        for entry in std::fs::read_dir(self.home.path())
            .expect("the folder")
            .flatten()
        {
            let _ = UnixStream::connect(entry.path());
        }
        let _ = thread.join();
        for end in self.ends.lock().expect("the ends").drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.end();
    }
}

/// The server's side of a start-up. None if the client hangs up before it has said who it is.
fn converse(client: &mut TcpStream, ask: bool) -> Option<Call> {
    const SSL: u32 = 80_877_103;
    const GSS: u32 = 80_877_104;
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .ok()?;
    let mut call = Call::default();
    let packet = loop {
        let packet = read_packet(client)?;
        match u32::from_be_bytes(packet[..4].try_into().ok()?) {
            SSL => call.tls = true,
            GSS => (),
            _ => break packet,
        }
        client.write_all(b"N").ok()?;
        // One that insists on TLS hangs up now; that is worth knowing.
        let mut next = [0];
        if client.peek(&mut next).ok()? == 0 {
            return Some(call);
        }
    };
    let mut words = packet[4..]
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned());
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        if !name.is_empty() {
            call.parameters.insert(name, value);
        }
    }
    if ask {
        client.write_all(b"R\0\0\0\x08\0\0\0\x03").ok()?;
        let mut kind = [0];
        if client.read_exact(&mut kind).is_ok() && kind == *b"p" {
            let mut password = read_packet(client)?;
            password.pop();
            call.password = Some(password);
        }
    }
    Some(call)
}

fn hang_up(client: &mut TcpStream) {
    // The client may be gone, having no password.
    let _ = client.write_all(&error("FATAL", "28000", HUNG_UP));
}

/// A server's error, as it goes over the wire. One without a state has no field for it.
pub fn error(severity: &str, state: &str, text: &str) -> Vec<u8> {
    let state = match state {
        "" => String::new(),
        state => format!("C{state}\0"),
    };
    let fields = format!("S{severity}\0V{severity}\0{state}M{text}\0\0");
    let mut message = vec![b'E'];
    message.extend((fields.len() as u32 + 4).to_be_bytes());
    message.extend(fields.as_bytes());
    message
}

/// The end of an answer, after which the session goes on: the server is idle.
pub const READY: &[u8] = b"Z\0\0\0\x05I";

/// A packet without its length.
fn read_packet(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    client.read_exact(&mut length).ok()?;
    let length = (u32::from_be_bytes(length) as usize)
        .checked_sub(4)
        .filter(|length| *length < 100_000)?;
    let mut packet = vec![0; length];
    client.read_exact(&mut packet).ok()?;
    Some(packet)
}
