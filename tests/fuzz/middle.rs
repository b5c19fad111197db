//! The man in the middle: between pglock and a real server, he lets all messages through but those that the case wants bent,
//! and notes what the server itself has said.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;

use super::bend::{Act, say};
use super::case::{Case, Loss, Stage};
use super::random::Random;
use super::wire::{self, Message};
use super::witness::now;

/// How often he looks whether he is to end.
const LOOK: Duration = Duration::from_millis(20);

/// What he has seen.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// How many connections there were.
    pub links: u32,
    /// How many questions.
    pub questions: u32,
    /// How many answers have been bent.
    pub bent: u32,
    /// When the server granted the lock, and when the connection ended on which it did.
    pub grants: Vec<(Duration, Option<Duration>)>,
    /// How many answers there were at each stage.
    answers: BTreeMap<Stage, u32>,
}

pub struct Middle {
    pub port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    server: PathBuf,
    case: Case,
    book: Mutex<Book>,
    /// How often all connections were to be lost.
    losses: AtomicU32,
    stop: AtomicBool,
    /// The server's ends of connections that it has not noticed to be lost.
    kept: Mutex<Vec<UnixStream>>,
}

impl Middle {
    pub fn new(server: PathBuf, case: Case) -> Middle {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            server,
            case,
            book: Mutex::default(),
            losses: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            kept: Mutex::default(),
        });
        let listening = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let mut links = Vec::new();
            while let Ok((client, _)) = listener.accept() {
                if listening.is_over() {
                    break;
                }
                let shared = Arc::clone(&listening);
                links.push(thread::spawn(move || shared.serve(client)));
                links.retain(|link: &JoinHandle<()>| !link.is_finished());
            }
            for link in links {
                let _ = link.join();
            }
        });
        Middle {
            port,
            shared,
            thread: Some(thread),
        }
    }

    pub fn book(&self) -> Book {
        self.shared.book().clone()
    }

    /// All connections are lost, as the case wants it.
    pub fn lose(&self) {
        self.shared.losses.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection from the client to the server.
struct Link<'a> {
    shared: &'a Shared,
    client: TcpStream,
    server: UnixStream,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    /// What the server has said since the client has spoken.
    answer: Vec<Message>,
    /// What it said before.
    before: Vec<Message>,
    stage: Stage,
    /// How often connections had been lost when this one was made.
    losses: u32,
    silent: bool,
    /// Its grant's place in the book.
    grant: Option<usize>,
    random: Random,
}

/// The connection is at its end.
struct Over;

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn serve(&self, client: TcpStream) {
        let number = {
            let mut book = self.book();
            book.links += 1;
            u64::from(book.links)
        };
        let _ = client.set_nodelay(true);
        let _ = client.set_write_timeout(Some(LOOK));
        let Ok(server) = UnixStream::connect(&self.server) else {
            return;
        };
        let mut link = Link {
            shared: self,
            client,
            server,
            from_client: Vec::new(),
            from_server: Vec::new(),
            answer: Vec::new(),
            before: Vec::new(),
            stage: Stage::Welcome,
            losses: self.losses.load(Ordering::SeqCst),
            silent: false,
            grant: None,
            random: Random::new(self.case.seed ^ number),
        };
        let _ = link.begin().and_then(|()| link.carry());
        // From now on its lock may be gone, so that this is noted before it is closed.
        if let Some(grant) = link.grant {
            self.book().grants[grant].1 = Some(now());
        }
    }
}

impl Link<'_> {
    /// Until the start-up packet has gone to the server.
    fn begin(&mut self) -> Result<(), Over> {
        const CANCEL: u32 = 80_877_102;
        const TLS: u32 = 80_877_103;
        const GSS: u32 = 80_877_104;
        loop {
            let packet = loop {
                if let Some(packet) = take_packet(&mut self.from_client) {
                    break packet;
                }
                self.wait()?;
            };
            match packet
                .get(4..8)
                .and_then(|code| code.first_chunk())
                .map(|code| u32::from_be_bytes(*code))
            {
                Some(TLS) => self.answer_tls()?,
                Some(GSS) => self.send(b"N")?,
                Some(CANCEL) => {
                    self.tell_server(&packet)?;
                    return Err(Over);
                }
                _ => return self.tell_server(&packet),
            }
        }
    }

    fn answer_tls(&mut self) -> Result<(), Over> {
        let Some((_, answer)) = &self.shared.case.tls else {
            return self.send(b"N");
        };
        self.shared.book().bent += 1;
        self.send(answer)?;
        if self.random.chance(30) {
            return Err(Over);
        }
        if answer.first() != Some(&b'S') {
            return Ok(());
        }
        // A client that believes it begins its own side of TLS.
        self.from_client.clear();
        let acts = self.shared.case.bend.apply(
            &[Message::new(22, *b"\x03\x03\0\0")],
            &[],
            &mut self.random,
        );
        self.perform(acts)?;
        loop {
            self.wait()?;
            self.from_client.clear();
        }
    }

    /// Carries messages to and fro.
    fn carry(&mut self) -> Result<(), Over> {
        loop {
            while let Some(message) = wire::take(&mut self.from_client) {
                if message.kind == b'Q' {
                    self.stage = Stage::of(&String::from_utf8_lossy(
                        &message.body[..message.body.len() - 1],
                    ));
                    self.shared.book().questions += 1;
                }
                self.tell_server(&message.bytes())?;
            }
            while !self.silent
                && let Some(message) = wire::take(&mut self.from_server)
            {
                let ends = message.ends_turn();
                self.answer.push(message);
                if ends {
                    self.answered()?;
                }
            }
            self.wait()?;
        }
    }

    /// The server has said what it has to say.
    fn answered(&mut self) -> Result<(), Over> {
        let mut answer = std::mem::take(&mut self.answer);
        let stage = match answer.last() {
            Some(last) if last.asks() => Stage::Auth,
            _ => self.stage,
        };
        let case = &self.shared.case;
        let is_bent = {
            let mut book = self.shared.book();
            let count = book.answers.entry(stage).or_default();
            *count += 1;
            let count = *count;
            if matches!(stage, Stage::Lock | Stage::Wait | Stage::Retake) && grants(&answer) {
                self.grant = Some(book.grants.len());
                book.grants.push((now(), None));
            }
            if stage == Stage::Lock
                && count == 1
                && let Some(word) = case.word
            {
                say(&mut answer, 0, 0, word);
            }
            let is_bent =
                stage == case.stage && (count == case.nth || case.all && count > case.nth);
            book.bent += u32::from(is_bent);
            is_bent
        };
        let acts = if is_bent {
            case.bend.apply(&answer, &self.before, &mut self.random)
        } else {
            vec![Act::Send(answer.iter().flat_map(Message::bytes).collect())]
        };
        self.before = answer;
        self.perform(acts)
    }

    fn perform(&mut self, acts: Vec<Act>) -> Result<(), Over> {
        for act in acts {
            match act {
                Act::Send(bytes) => self.send(&bytes)?,
                Act::Drip(bytes, pause) => {
                    for byte in bytes {
                        self.send(&[byte])?;
                        self.pause(pause)?;
                    }
                }
                Act::Pause(time) => self.pause(time)?,
                Act::Flood(flood, bytes) => {
                    let mut sent = 0;
                    for number in 0.. {
                        let piece = flood.piece(number);
                        if sent >= bytes {
                            break;
                        }
                        self.send(&piece)?;
                        sent += piece.len();
                    }
                }
                Act::Close => return Err(Over),
                Act::Reset => return self.reset(),
                Act::Silence => self.silent = true,
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Over> {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let _ = setsockopt(&self.client, Linger, &linger);
        Err(Over)
    }

    fn pause(&self, time: Duration) -> Result<(), Over> {
        let until = now() + time;
        while now() < until {
            self.look()?;
            thread::sleep(LOOK.min(until.saturating_sub(now())));
        }
        Ok(())
    }

    fn look(&self) -> Result<(), Over> {
        if self.shared.is_over() {
            Err(Over)
        } else {
            Ok(())
        }
    }

    fn send(&self, mut bytes: &[u8]) -> Result<(), Over> {
        while !bytes.is_empty() {
            self.look()?;
            match (&self.client).write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }

    fn tell_server(&self, bytes: &[u8]) -> Result<(), Over> {
        (&self.server).write_all(bytes).map_err(|_| Over)
    }

    /// Waits until somebody has said something, or a while.
    fn wait(&mut self) -> Result<(), Over> {
        self.look()?;
        if self.losses != self.shared.losses.load(Ordering::SeqCst)
            && let Some(loss) = self.shared.case.loss
        {
            return self.lose(loss);
        }
        // The server's side of a silent link would be ready again and again.
        let descriptors: [BorrowedFd; 2] = [
            self.client.as_fd(),
            if self.silent {
                self.client.as_fd()
            } else {
                self.server.as_fd()
            },
        ];
        let mut polled = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        if poll(&mut polled, LOOK.as_millis() as u16).is_err() {
            return Ok(());
        }
        let [client, server] = polled.map(|polled| polled.any().unwrap_or(false));
        let mut piece = [0; 65536];
        if client {
            match self.client.read(&mut piece) {
                Ok(0) | Err(_) => return Err(Over),
                Ok(count) => self.from_client.extend(&piece[..count]),
            }
        }
        if server && !self.silent {
            match self.server.read(&mut piece) {
                Ok(0) | Err(_) => {
                    // Its last words.
                    let last: Vec<u8> = self.answer.iter().flat_map(Message::bytes).collect();
                    let _ = self.send(&[last.as_slice(), &self.from_server].concat());
                    return Err(Over);
                }
                Ok(count) => self.from_server.extend(&piece[..count]),
            }
        }
        Ok(())
    }

    fn lose(&mut self, loss: Loss) -> Result<(), Over> {
        if loss.half
            && let Ok(server) = self.server.try_clone()
        {
            let mut kept = self
                .shared
                .kept
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            kept.push(server);
            self.grant = None;
        }
        if loss.reset {
            return self.reset();
        }
        Err(Over)
    }
}

/// Whether the server says that the lock is held now.
fn grants(answer: &[Message]) -> bool {
    let mut rows = answer.iter().filter(|message| message.kind == b'D');
    rows.any(|row| {
        let fields = row.fields();
        matches!(fields.first(), Some(Some(word)) if word.starts_with(b"held "))
    })
}

/// A packet as they are before the start-up, with its length.
fn take_packet(arrived: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = u32::from_be_bytes(*arrived.first_chunk()?) as usize;
    let packet = arrived.get(..length.max(4))?.to_vec();
    arrived.drain(..packet.len());
    Some(packet)
}
