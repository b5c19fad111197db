//! PgBouncer in front of a test server: the pooler that most people have.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use super::session::{self, Session};
use super::wait::{PATIENCE, within};
use super::{Pglock, Scratch, Server, janitor, server};

/// In the directory of its Unix socket, its only address.
const PORT: u16 = 6432;

/// In its own directory, as all that it has.
const CONFIGURATION: &str = "pgbouncer.ini";

/// A pooler with a server behind it, for as long as it lives.
pub struct Pgbouncer {
    home: Scratch,
    process: Child,
    /// The user and the group that it runs as, if that is to choose.
    owner: (u32, u32),
}

impl Pgbouncer {
    /// Starts one in this mode (`session`, `transaction` or `statement`), with so many connections for each database and
    /// user, and with these lines added to its section of the configuration.
    #[track_caller]
    pub fn new(server: &Server, mode: &str, size: u32, settings: &[&str]) -> Pgbouncer {
        let home = Scratch::new();
        let sockets = home.path().join("s");
        fs::create_dir(&sockets).expect("create a directory for the socket");
        // It refuses to be root; the server's owner is somebody else, if need be.
        let owner = fs::metadata(server.data()).expect("the server's data");
        chown(&sockets, Some(owner.uid()), None).expect("chown");
        home.file("users", 0o644, "\"postgres\" \"\"\n\"app\" \"\"\n");
        home.file(
            CONFIGURATION,
            0o644,
            format!(
                "[databases]\n\
                 * = host={} port={}\n\
                 [pgbouncer]\n\
                 listen_port = {PORT}\n\
                 unix_socket_dir = {}\n\
                 auth_type = trust\n\
                 auth_file = {}\n\
                 admin_users = postgres\n\
                 pool_mode = {mode}\n\
                 default_pool_size = {size}\n\
                 max_client_conn = 300\n\
                 {}\n",
                server.socket_dir().display(),
                server.port(),
                sockets.display(),
                home.path().join("users").display(),
                settings.join("\n"),
            ),
        );
        let owner = (owner.uid(), owner.gid());
        let process = launch(&home, owner);
        let mut pooler = Pgbouncer {
            home,
            process,
            owner,
        };
        pooler.wait_until_it_listens();
        pooler
    }

    /// Starts it once more, after [`stop`](Pgbouncer::stop).
    #[track_caller]
    pub fn start(&mut self) {
        self.process = launch(&self.home, self.owner);
        self.wait_until_it_listens();
    }

    #[track_caller]
    fn wait_until_it_listens(&mut self) {
        let socket = self.socket();
        let ready = within(PATIENCE, || {
            if self.process.try_wait().expect("wait for it").is_some() {
                return Some(false);
            }
            UnixStream::connect(&socket).is_ok().then_some(true)
        });
        assert_eq!(ready, Some(true), "it did not start:\n{}", self.log());
    }

    /// The directory of its Unix socket, which serves as a host name.
    pub fn socket_dir(&self) -> PathBuf {
        self.home.path().join("s")
    }

    /// The Unix socket itself.
    pub fn socket(&self) -> PathBuf {
        self.socket_dir().join(format!(".s.PGSQL.{PORT}"))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// A pglock that connects through it, as `postgres`.
    pub fn pglock(&self) -> Pglock {
        Pglock::new()
            .env("PGLOCK_HOST", self.socket_dir())
            .env("PGLOCK_PORT", PORT.to_string())
            .env("PGLOCK_USER", "postgres")
    }

    /// A psql that stays connected through it.
    #[track_caller]
    pub fn session(&self) -> Session {
        Session::open(self.psql_command("postgres"))
    }

    /// Runs SQL through it, on a connection of the client's own.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.run("postgres", sql)
    }

    /// Asks the pooler itself: `show pools`, say.
    #[track_caller]
    pub fn admin(&self, sql: &str) -> String {
        self.run("pgbouncer", sql)
    }

    /// How many clients are connected to it, other than to itself.
    #[track_caller]
    pub fn clients(&self) -> usize {
        let clients = self.admin("show clients");
        let clients = clients.lines().filter(|line| !line.contains("|pgbouncer|"));
        clients.count()
    }

    /// Ends it at once, without a word to its clients.
    pub fn stop(&mut self) {
        let pid = Pid::from_raw(self.process.id() as i32);
        let _ = kill(pid, Signal::SIGKILL);
        let _ = self.process.wait();
    }

    fn psql_command(&self, database: &str) -> Command {
        session::psql(&server::psql(), &self.socket_dir(), PORT, database)
    }

    #[track_caller]
    fn run(&self, database: &str, sql: &str) -> String {
        let mut command = self.psql_command(database);
        let output = command
            .args(["-c", sql])
            .stdin(Stdio::null())
            .output()
            .expect("start psql");
        assert!(
            output.status.success(),
            "{sql}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }
}

impl Drop for Pgbouncer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts one that has its files in this directory.
fn launch(home: &Scratch, (uid, gid): (u32, u32)) -> Child {
    let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap_or(false))
        .unwrap_or("pgbouncer");
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(home.path().join("log"))
        .expect("open a log");
    let mut command = Command::new(program);
    command
        .arg(home.path().join(CONFIGURATION))
        .current_dir("/")
        .env(janitor::TAG, janitor::tag())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("dup"))
        .stderr(log)
        .process_group(0);
    if Uid::effective().is_root() {
        command.uid(uid).gid(gid);
    }
    command.spawn().unwrap_or_else(|e| {
        panic!("{program}: {e}: the tests of poolers need PgBouncer; `make setup` installs it")
    })
}
