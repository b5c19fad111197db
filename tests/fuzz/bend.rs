//! What can be wrong with an answer of the server's.

use std::time::Duration;

use super::random::Random;
use super::wire::Message;

/// What the client gets in the place of an answer, piece by piece.
#[derive(Clone, Debug)]
pub enum Act {
    Send(Vec<u8>),
    /// Byte by byte, with this pause between two.
    Drip(Vec<u8>, Duration),
    Pause(Duration),
    /// So many bytes, made by a counter.
    Flood(Flood, usize),
    /// Ends the connection.
    Close,
    /// Resets it.
    Reset,
    /// Says nothing any more, and hears nothing.
    Silence,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    Notifications,
    Notices,
    Parameters,
    SameParameter,
    Ready,
    Complete,
    Empty,
    Errors,
    Rows,
    Descriptions,
    Unknown,
    Keys,
    Zeros,
}

const FLOODS: [Flood; 13] = [
    Flood::Notifications,
    Flood::Notices,
    Flood::Parameters,
    Flood::SameParameter,
    Flood::Ready,
    Flood::Complete,
    Flood::Empty,
    Flood::Errors,
    Flood::Rows,
    Flood::Descriptions,
    Flood::Unknown,
    Flood::Keys,
    Flood::Zeros,
];

impl Flood {
    /// The part of it of this number, some 50 kB.
    pub fn piece(self, number: usize) -> Vec<u8> {
        let message = |part: usize| match self {
            Flood::Notifications => Message::new(b'A', *b"\0\0\0\x01news\0text\0"),
            Flood::Notices => {
                Message::report(b'N', &[('S', "NOTICE"), ('C', "00000"), ('M', "look")])
            }
            Flood::Parameters => Message::new(b'S', format!("p{number}_{part}\0x\0")),
            Flood::SameParameter => Message::new(b'S', *b"application_name\0x\0"),
            Flood::Ready => Message::new(b'Z', *b"I"),
            Flood::Complete => Message::new(b'C', *b"SELECT 1\0"),
            Flood::Empty => Message::new(b'I', []),
            Flood::Errors => {
                Message::report(b'E', &[('S', "ERROR"), ('C', "XX000"), ('M', "again")])
            }
            Flood::Rows => Message::row(&[Some(b"t".to_vec())]),
            Flood::Descriptions => Message::new(b'T', *b"\0\0"),
            Flood::Unknown => Message::new(b'?', []),
            Flood::Keys => Message::new(b'K', *b"12345678"),
            Flood::Zeros => Message::new(0, [0; 64]),
        };
        let mut piece = Vec::new();
        while piece.len() < 50_000 {
            piece.extend(message(piece.len()).bytes());
        }
        piece
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Close,
    Reset,
    Silence,
    /// It does not: what follows is as the server says it.
    GoOn,
}

const ENDS: [End; 4] = [End::Close, End::Reset, End::Silence, End::GoOn];

impl End {
    fn act(self) -> Option<Act> {
        match self {
            End::Close => Some(Act::Close),
            End::Reset => Some(Act::Reset),
            End::Silence => Some(Act::Silence),
            End::GoOn => None,
        }
    }
}

/// Where in an answer something more is said.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Before,
    Within,
    /// Before the server says that it is ready.
    BeforeReady,
    After,
    /// Instead of it.
    Instead,
}

const PLACES: [Place; 5] = [
    Place::Before,
    Place::Within,
    Place::BeforeReady,
    Place::After,
    Place::Instead,
];

/// One way to bend an answer.
#[derive(Clone, Debug)]
pub enum Bend {
    /// So many bits are wrong.
    Bits(usize),
    /// It ends at a random byte.
    Cut(End),
    Drop,
    Double,
    /// All of it comes twice.
    Twice,
    Swap,
    Reverse,
    /// One message is of this type.
    Type(u8),
    /// One message claims this length.
    Length(i32),
    /// One message claims so many fields.
    Fields(u16),
    /// One message ends so many bytes early or late, in its contents too.
    Resize(i32),
    /// Null bytes stand in a message.
    Nulls,
    /// A field of a row says this, mostly the first.
    Word(String),
    /// All rows are null, or have no fields.
    NoWord(bool),
    /// An error of this severity and state, with the field V, or not.
    Error {
        severity: &'static str,
        state: &'static str,
        unlocalized: bool,
        place: Place,
        end: End,
    },
    Flood {
        flood: Flood,
        megabytes: usize,
        place: Place,
        end: End,
    },
    /// A message that claims so many bytes, and of which these come.
    Huge {
        kind: u8,
        claims: i32,
        megabytes: usize,
        place: Place,
    },
    Drip(Duration),
    Delay(Duration),
    End(End),
    /// A demand to authenticate in this way.
    Demand(i32, Vec<u8>),
    /// A word of SCRAM's.
    Scram(&'static str),
    /// Another version of the protocol.
    Negotiate(i32, i32),
    /// Bytes without any sense.
    Noise(usize, End),
    /// It begins to copy.
    Copy(u8),
    /// The one before comes again.
    Stale,
    /// Nothing but that the server is ready, in this state.
    Ready(u8),
    /// Another process and key.
    Key(Vec<u8>),
    /// A parameter is reported.
    Report(&'static str, &'static str),
}

const STATES: [&str; 24] = [
    "00000", "08006", "08P01", "0A000", "22023", "25P02", "25P03", "28000", "28P01", "3D000",
    "40001", "42501", "42704", "42883", "53200", "53300", "55P02", "55P03", "57014", "57P01",
    "57P02", "57P03", "57P05", "XX000",
];

pub const WORDS: [&str; 33] = [
    "held 1",
    "held 2",
    "held 0,2",
    "held",
    "held ",
    "held x",
    "held 99999999999999999999",
    "busy",
    "first",
    "young",
    "pooled",
    "standby",
    "",
    "t",
    "f",
    "0",
    "-1",
    "1",
    "3",
    "2.5",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "1e-308",
    "18446744073709551616",
    "-9223372036854775809",
    "\u{fffd}",
    "\u{202e}gnp",
    "\x1b[31mred",
    "a\nb\r\nc",
    "advisory",
    "null",
];

const SEVERITIES: [&str; 8] = [
    "ERROR",
    "FATAL",
    "PANIC",
    "WARNING",
    "NOTICE",
    "LOG",
    "SCHWERWIEGEND",
    "",
];

const SCRAMS: [&str; 12] = [
    "r=,s=,i=",
    "r=@,s=AAAA,i=2147483647",
    "r=@,s=AAAA,i=10000000",
    "r=@,s=AAAA,i=0",
    "r=@,s=AAAA,i=-1",
    "r=@,s=AAAA,i=x",
    "r=@,s=!,i=4096",
    "r=@,s=,i=4096",
    "r=other,s=AAAA,i=4096",
    "r=@",
    "e=other-error",
    "v=AAAA",
];

/// How the client's side of the conversation says things, which decides what bends there are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is asked who it is.
    Demand,
    /// It is let in.
    Welcome,
    /// A query is answered.
    Answer,
}

impl Bend {
    /// For a lock of this number, or one that has a name.
    pub fn random(kind: Kind, lock: Option<u32>, random: &mut Random) -> Bend {
        if kind == Kind::Demand && random.chance(50) {
            return match random.below(3) {
                0 => Bend::Demand(demand(random), noise(random, 40)),
                _ => Bend::Scram(random.of(&SCRAMS)),
            };
        }
        if kind == Kind::Welcome && random.chance(30) {
            return match random.below(5) {
                0 => Bend::Demand(demand(random), noise(random, 40)),
                1 => Bend::Negotiate(random.of(&[0, 196_608, -1]), random.of(&[0, 1, 1000, -1])),
                2 => Bend::Key(match random.below(3) {
                    0 => noise(random, 40),
                    _ => noise(random, 8),
                }),
                3 => {
                    let (name, value) = random.of(&[
                        ("server_version", "0"),
                        ("server_version", "99999999999"),
                        ("server_version", ""),
                        ("server_version", "13.1"),
                        ("client_encoding", "SJIS"),
                        ("client_encoding", "nonsense"),
                        ("standard_conforming_strings", "off"),
                        ("in_hot_standby", "on"),
                        ("crdb_version", "CockroachDB"),
                        ("application_name", "\u{202e}\n\x1b"),
                    ]);
                    Bend::Report(name, value)
                }
                _ => Bend::Ready(random.of(b"ITE?\0")),
            };
        }
        if kind == Kind::Answer && random.chance(25) {
            return match random.below(6) {
                0 => Bend::NoWord(random.chance(50)),
                1 | 2 => Bend::Word(format!("held {}", lock.unwrap_or(1))),
                _ => Bend::Word(random.of(&WORDS).to_owned()),
            };
        }
        Bend::any(random)
    }

    /// One that fits whatever the server says.
    fn any(random: &mut Random) -> Bend {
        match random.below(24) {
            0 | 1 => Bend::Bits(1 + random.below(8)),
            2 => Bend::Cut(random.of(&ENDS)),
            3 => Bend::Drop,
            4 => Bend::Double,
            5 => Bend::Twice,
            6 => Bend::Swap,
            7 => match random.below(3) {
                0 => Bend::Reverse,
                1 => Bend::Stale,
                _ => Bend::Nulls,
            },
            8 => Bend::Type(match random.below(3) {
                0 => random.below(256) as u8,
                _ => random.of(b"RSKZTDCENAIGHWdctns123vV"),
            }),
            9 | 10 => Bend::Length(random.of(&[
                0,
                3,
                4,
                5,
                -1,
                i32::MIN,
                i32::MAX,
                i32::MAX - 4,
                30_001,
                1 << 20,
                1 << 30,
            ])),
            11 => Bend::Fields(random.of(&[0, 1, 2, 7, 1600, 0x7fff, 0x8000, 0xffff])),
            12 => Bend::Resize(random.of(&[-4, -2, -1, 1, 2, 4, 100])),
            13 | 14 => Bend::Error {
                severity: random.of(&SEVERITIES),
                state: random.of(&STATES),
                unlocalized: random.chance(60),
                place: random.of(&PLACES),
                end: random.of(&ENDS),
            },
            15..=18 => Bend::Flood {
                flood: random.of(&FLOODS),
                megabytes: 1 + random.below(8),
                place: random.of(&PLACES),
                end: random.of(&ENDS),
            },
            19 => Bend::Huge {
                kind: random.of(b"DTENAdVSCZR"),
                claims: random.of(&[30_000, 1 << 20, 1 << 24, 1 << 30, i32::MAX]),
                megabytes: random.below(40),
                place: random.of(&PLACES),
            },
            20 => Bend::Drip(random.time(1, 40)),
            21 => match random.below(3) {
                0 => Bend::Copy(random.of(b"GHW")),
                1 => Bend::Ready(random.of(b"ITE?\0")),
                _ => Bend::Delay(random.time(10, 2500)),
            },
            22 => Bend::End(ENDS[random.below(3)]),
            _ => Bend::Noise(1 + random.below(2000), random.of(&ENDS)),
        }
    }

    /// What the client gets in the place of these messages; `before` is the answer that it got last.
    pub fn apply(&self, messages: &[Message], before: &[Message], random: &mut Random) -> Vec<Act> {
        let mut bent = messages.to_vec();
        let which = random.below(bent.len().max(1));
        let sound = || bytes(messages);
        match self {
            Bend::Bits(count) => {
                let mut all = sound();
                for _ in 0..*count {
                    let place = random.below(all.len().max(1));
                    if let Some(byte) = all.get_mut(place) {
                        *byte ^= 1 << random.below(8);
                    }
                }
                return vec![Act::Send(all)];
            }
            Bend::Cut(end) => {
                let mut all = sound();
                all.truncate(random.below(all.len().max(1)));
                return [Some(Act::Send(all)), end.act()]
                    .into_iter()
                    .flatten()
                    .collect();
            }
            Bend::Drop => {
                bent.remove(which);
            }
            Bend::Double => bent.insert(which, messages[which].clone()),
            Bend::Twice => bent.extend_from_slice(messages),
            Bend::Swap => {
                let other = random.below(bent.len());
                bent.swap(which, other);
            }
            Bend::Reverse => bent.reverse(),
            Bend::Type(kind) => bent[which].kind = *kind,
            Bend::Length(length) => {
                let mut all = bytes(&messages[..which]);
                all.extend(messages[which].claiming(*length));
                all.extend(bytes(&messages[which + 1..]));
                return vec![Act::Send(all)];
            }
            Bend::Fields(count) => {
                let counted = |message: &&mut Message| matches!(message.kind, b'T' | b'D');
                if let Some(message) = bent.iter_mut().find(counted) {
                    message.body.splice(..2, count.to_be_bytes());
                }
            }
            Bend::Resize(by) => {
                let body = &mut bent[which].body;
                body.resize(body.len().saturating_add_signed(*by as isize), b'x');
            }
            Bend::Nulls => {
                let body = &mut bent[which].body;
                for _ in 0..3 {
                    body.insert(random.below(body.len() + 1), 0);
                }
            }
            Bend::Word(word) if random.chance(60) => say(&mut bent, 0, 0, word),
            Bend::Word(word) => say(&mut bent, random.below(4), random.below(6), word),
            Bend::NoWord(null) => {
                for row in bent.iter_mut().filter(|message| message.kind == b'D') {
                    let count = if *null { row.fields().len() } else { 0 };
                    *row = Message::row(&vec![None; count]);
                }
            }
            Bend::Error {
                severity,
                state,
                unlocalized,
                place,
                end,
            } => {
                let mut fields = vec![('S', *severity), ('C', *state), ('M', "bent \u{7}")];
                if *unlocalized {
                    fields.insert(1, ('V', *severity));
                }
                let kind = if random.chance(20) { b'N' } else { b'E' };
                let error = Act::Send(Message::report(kind, &fields).bytes());
                return put(messages, vec![error], *place, *end, random);
            }
            Bend::Flood {
                flood,
                megabytes,
                place,
                end,
            } => {
                let mut acts = vec![Act::Flood(*flood, megabytes << 20)];
                if *flood == Flood::Rows {
                    // Without a description they are no rows.
                    let column = [b"\0\x01word\0".as_slice(), &[0; 18]].concat();
                    acts.insert(0, Act::Send(Message::new(b'T', column).bytes()));
                }
                return put(messages, acts, *place, *end, random);
            }
            Bend::Huge {
                kind,
                claims,
                megabytes,
                place,
            } => {
                let head = Message::new(*kind, []).claiming(*claims);
                let acts = vec![
                    Act::Send(head),
                    Act::Pause(random.time(0, 20)),
                    Act::Flood(Flood::Zeros, megabytes << 20),
                ];
                return put(messages, acts, *place, End::GoOn, random);
            }
            Bend::Drip(pause) => return vec![Act::Drip(sound(), *pause)],
            Bend::Delay(time) => return vec![Act::Pause(*time), Act::Send(sound())],
            Bend::End(end) => return end.act().into_iter().collect(),
            Bend::Demand(code, more) => {
                let body = [code.to_be_bytes().as_slice(), more].concat();
                bent.insert(0, Message::new(b'R', body));
            }
            Bend::Scram(word) => {
                let mut body = 11_i32.to_be_bytes().to_vec();
                body.extend(scram(word, messages).bytes());
                bent = vec![Message::new(b'R', body)];
            }
            Bend::Negotiate(version, options) => {
                let body = [version.to_be_bytes(), options.to_be_bytes()].concat();
                bent.insert(which, Message::new(b'v', body));
            }
            Bend::Noise(length, end) => {
                let noise = Act::Send(noise(random, *length));
                return [Some(noise), end.act()].into_iter().flatten().collect();
            }
            Bend::Copy(kind) => bent.insert(which, Message::new(*kind, *b"\0\0\0")),
            Bend::Stale => bent = before.to_vec(),
            Bend::Ready(state) => bent = vec![Message::new(b'Z', [*state])],
            Bend::Key(key) => {
                for message in bent.iter_mut().filter(|message| message.kind == b'K') {
                    message.body.clone_from(key);
                }
            }
            Bend::Report(name, value) => {
                let last = bent.len().saturating_sub(1);
                bent.insert(last, Message::new(b'S', format!("{name}\0{value}\0")));
            }
        }
        vec![Act::Send(bytes(&bent))]
    }
}

/// Puts a word into this field of this row of an answer, if it has so many.
pub fn say(messages: &mut [Message], row: usize, column: usize, word: &str) {
    let mut rows = messages.iter_mut().filter(|message| message.kind == b'D');
    if let Some(row) = rows.nth(row) {
        let mut fields = row.fields();
        if let Some(field) = fields.get_mut(column) {
            *field = Some(word.as_bytes().to_vec());
        }
        *row = Message::row(&fields);
    }
}

/// The word of SCRAM's with the nonce that the server has said in the place of the `@`.
fn scram(word: &str, messages: &[Message]) -> String {
    let said = messages.iter().find(|message| message.kind == b'R');
    let text = said.map_or(String::new(), |message| {
        String::from_utf8_lossy(message.body.get(4..).unwrap_or_default()).into_owned()
    });
    let nonce = text
        .strip_prefix("r=")
        .and_then(|rest| rest.split(',').next());
    word.replace('@', nonce.unwrap_or("x"))
}

fn bytes(messages: &[Message]) -> Vec<u8> {
    messages.iter().flat_map(Message::bytes).collect()
}

/// Puts something into an answer.
fn put(
    messages: &[Message],
    acts: Vec<Act>,
    place: Place,
    end: End,
    random: &mut Random,
) -> Vec<Act> {
    let at = match place {
        Place::Before | Place::Instead => 0,
        Place::Within => random.below(messages.len().max(1)),
        Place::BeforeReady => messages.len().saturating_sub(1),
        Place::After => messages.len(),
    };
    let (head, tail) = messages.split_at(at);
    let tail = match place {
        Place::Instead => &[],
        _ => tail,
    };
    let mut all = vec![Act::Send(bytes(head))];
    all.extend(acts);
    // What was broken off is not gone on with.
    match end.act() {
        Some(end) => all.push(end),
        None => all.push(Act::Send(bytes(tail))),
    }
    all
}

fn demand(random: &mut Random) -> i32 {
    random.of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, -1, i32::MAX])
}

fn noise(random: &mut Random, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.below(256) as u8).collect()
}
