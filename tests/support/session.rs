//! A psql that stays connected, driven over pipes.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::wait::PATIENCE;

/// A psql with plain output and none of the caller's environment.
pub fn psql(program: &Path, host: &Path, port: u16, database: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
        .args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=0",
            "-U",
            "postgres",
            "-h",
        ])
        .arg(host)
        .args(["-p", &port.to_string(), "-d", database])
        .env("LC_ALL", "C")
        .env("PGAPPNAME", "psql")
        .env("PGCONNECT_TIMEOUT", "30");
    command
}

/// One session on a server.
pub struct Session {
    psql: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    sent: u32,
}

impl Session {
    #[track_caller]
    pub fn open(mut command: Command) -> Session {
        // Answers and errors over one pipe, so that they stay in order.
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        let errors = write.try_clone().expect("dup");
        let mut psql = command
            .stdin(Stdio::piped())
            .stdout(write)
            .stderr(errors)
            .spawn()
            .expect("start psql");
        // The command holds the writing end; the reader would never see the end of psql.
        drop(command);
        let input = psql.stdin.take();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(std::fs::File::from(read))
                .lines()
                .map_while(Result::ok)
            {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut session = Session {
            psql,
            input,
            lines,
            sent: 0,
        };
        session.exec("select 1");
        session
    }

    /// Runs SQL; answers with the rows, `|` between columns. Panics if the server refuses.
    #[track_caller]
    pub fn exec(&mut self, sql: &str) -> String {
        self.send(sql);
        self.answer()
    }

    /// Sends SQL without waiting for its answer.
    #[track_caller]
    pub fn send(&mut self, sql: &str) {
        self.sent += 1;
        let input = self.input.as_mut().expect("an open session");
        // In one write: psql may end at the SQL, before it reads the rest.
        let lines = format!("{sql}\n;\n\\echo end of {}\n", self.sent);
        input.write_all(lines.as_bytes()).expect("write to psql");
    }

    /// The answer to the SQL sent last.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        match self.try_answer(PATIENCE) {
            Some(Ok(answer)) => answer,
            Some(Err(text)) => panic!("the server refuses: {text}"),
            None => panic!("no answer within {PATIENCE:?}"),
        }
    }

    /// The answer, or the error, if it comes within `limit`.
    pub fn try_answer(&mut self, limit: Duration) -> Option<Result<String, String>> {
        let deadline = Instant::now() + limit;
        let end = format!("end of {}", self.sent);
        let mut text = String::new();
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line == end => break,
                Ok(line) => writeln!(text, "{line}").expect("write to a string"),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => {
                    return Some(Err(format!("psql is gone: {text}")));
                }
            }
        }
        let text = text.trim_end().to_owned();
        let words = ["ERROR:", "FATAL:", "server closed the connection"];
        let refused = words.iter().any(|word| text.contains(word));
        Some(if refused { Err(text) } else { Ok(text) })
    }

    /// Takes `pg_advisory_lock(key)`, waiting for it if need be.
    #[track_caller]
    pub fn hold(&mut self, key: i64) {
        self.exec(&format!("select pg_advisory_lock({key})"));
    }

    /// Gives it back.
    #[track_caller]
    pub fn release(&mut self, key: i64) {
        assert_eq!(
            self.exec(&format!("select pg_advisory_unlock({key})")),
            "t",
            "lock {key} was not held"
        );
    }

    /// Whether the lock could be taken; if so, it is held now.
    #[track_caller]
    pub fn try_hold(&mut self, key: i64) -> bool {
        self.exec(&format!("select pg_try_advisory_lock({key})")) == "t"
    }

    /// The process id of the backend.
    #[track_caller]
    pub fn pid(&mut self) -> i32 {
        self.exec("select pg_backend_pid()").parse().expect("a pid")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.input = None;
        // It may be waiting for a lock.
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}
