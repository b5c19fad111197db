//! The server's messages, as PostgreSQL's chapter "Frontend/Backend Protocol" has them, and a client that speaks it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A message: its type, and what follows its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub body: Vec<u8>,
}

impl Message {
    pub fn new(kind: u8, body: impl Into<Vec<u8>>) -> Message {
        Message {
            kind,
            body: body.into(),
        }
    }

    /// An error or a notice of these fields.
    pub fn report(kind: u8, fields: &[(char, &str)]) -> Message {
        let mut body = Vec::new();
        for (code, text) in fields {
            body.push(*code as u8);
            body.extend(text.bytes());
            body.push(0);
        }
        body.push(0);
        Message::new(kind, body)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.claiming(self.body.len() as i32 + 4)
    }

    /// With this in the place of its length.
    pub fn claiming(&self, length: i32) -> Vec<u8> {
        let mut bytes = vec![self.kind];
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.body);
        bytes
    }

    /// Whether the server waits for the client after this one.
    pub fn ends_turn(&self) -> bool {
        self.kind == b'Z' || self.asks()
    }

    /// Whether it asks the client to authenticate itself.
    pub fn asks(&self) -> bool {
        let code = self.body.first_chunk().copied().map(i32::from_be_bytes);
        // That all is well, and the last word of SCRAM.
        self.kind == b'R' && !matches!(code, Some(0 | 12))
    }

    /// The fields of a row.
    pub fn fields(&self) -> Vec<Option<Vec<u8>>> {
        let mut fields = Vec::new();
        let mut rest = self.body.get(2..).unwrap_or_default();
        while let Some((length, after)) = rest.split_first_chunk() {
            let length = usize::try_from(i32::from_be_bytes(*length)).ok();
            let (field, after) = after.split_at(length.unwrap_or(0).min(after.len()));
            fields.push(length.map(|_| field.to_vec()));
            rest = after;
        }
        fields
    }

    /// A row of these fields.
    pub fn row(fields: &[Option<Vec<u8>>]) -> Message {
        let mut body = (fields.len() as u16).to_be_bytes().to_vec();
        for field in fields {
            match field {
                None => body.extend((-1_i32).to_be_bytes()),
                Some(text) => {
                    body.extend((text.len() as i32).to_be_bytes());
                    body.extend(text);
                }
            }
        }
        Message::new(b'D', body)
    }
}

/// Takes the first message off what has arrived, if all of it has.
pub fn take(arrived: &mut Vec<u8>) -> Option<Message> {
    let length = u32::from_be_bytes(*arrived.get(1..)?.first_chunk()?) as usize;
    let body = arrived.get(5..length.max(4) + 1)?.to_vec();
    let message = Message::new(arrived[0], body);
    arrived.drain(..length.max(4) + 1);
    Some(message)
}

/// A session on the server, with nothing in between.
pub struct Client {
    stream: UnixStream,
    arrived: Vec<u8>,
}

impl Client {
    /// As `postgres`, whom the server trusts.
    pub fn connect(socket: &Path) -> io::Result<Client> {
        let mut client = Client {
            stream: UnixStream::connect(socket)?,
            arrived: Vec::new(),
        };
        let words = b"user\0postgres\0database\0postgres\0application_name\0fuzz\0\0";
        let mut packet = (words.len() as u32 + 8).to_be_bytes().to_vec();
        packet.extend(196_608_u32.to_be_bytes());
        packet.extend(words);
        client.stream.write_all(&packet)?;
        client.answer()?;
        Ok(client)
    }

    /// The rows of an answer, their fields one after the other.
    pub fn query(&mut self, sql: &str) -> io::Result<Vec<String>> {
        let body = [sql.as_bytes(), b"\0"].concat();
        self.stream.write_all(&Message::new(b'Q', body).bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Vec<String>> {
        let mut values = Vec::new();
        loop {
            while let Some(message) = take(&mut self.arrived) {
                match message.kind {
                    b'Z' => return Ok(values),
                    b'D' => {
                        let fields = message.fields().into_iter().flatten();
                        values.extend(fields.map(|f| String::from_utf8_lossy(&f).into_owned()));
                    }
                    b'E' => {
                        let text = String::from_utf8_lossy(&message.body);
                        return Err(io::Error::other(text.replace('\0', " ")));
                    }
                    _ => {}
                }
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.arrived.extend(&piece[..count]),
            }
        }
    }
}
