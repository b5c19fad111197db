//! Throwaway PostgreSQL servers.
//!
//! The programs come from `PG_BIN`, else from `pg_config --bindir`, else from the newest `/usr/lib/postgresql/*/bin`. initdb
//! runs once for each version and machine; each [`Server`] is a copy of what it made. Under root the server runs as nobody,
//! since PostgreSQL refuses root.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

use super::session::{self, Session};
use super::tls::Authority;
use super::wait::{PATIENCE, within};
use super::{Scratch, eventually};

/// The condition that a row of the lock table is not about a key that tells how many slots are counted, or that waiters have
/// beside the lock: a place in its queue, say.
pub const NOT_ASIDE: &str = "not (objsubid = 2 and objid::bigint >= 1073741824)";

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Waits until all sessions have ended of themselves.
    Smart,
    /// Ends the sessions, then stops in good order.
    Fast,
    /// Stops as after a crash.
    Immediate,
}

/// A server of the test's own, with the superuser `postgres`, whom it trusts. Stopped and removed when dropped.
pub struct Server {
    home: Scratch,
    /// Where it listens, if not on its Unix socket only.
    address: Option<Ipv4Addr>,
    port: u16,
    postmaster: Mutex<Option<Child>>,
}

/// What a server shall be like.
pub struct Builder {
    conf: Vec<String>,
    hba: Vec<String>,
    address: Option<Ipv4Addr>,
    durable: bool,
    host: Option<String>,
    origin: Option<PathBuf>,
}

impl Builder {
    /// Adds a line to postgresql.conf.
    pub fn conf(mut self, line: &str) -> Builder {
        self.conf.push(line.to_owned());
        self
    }

    /// Adds a line to pg_hba.conf, above those that trust everybody.
    pub fn hba(mut self, line: &str) -> Builder {
        self.hba.push(line.to_owned());
        self
    }

    /// Also listens on a free port of 127.0.0.1.
    pub fn tcp(self) -> Builder {
        self.tcp_at(Ipv4Addr::LOCALHOST)
    }

    /// Also listens on a port of this address that is free there and on 127.0.0.1.
    pub fn tcp_at(mut self, address: Ipv4Addr) -> Builder {
        self.address = Some(address);
        self
    }

    /// Writes through to the disk: for what must survive a crash.
    pub fn durable(mut self) -> Builder {
        self.durable = true;
        self
    }

    /// Offers TLS on TCP, with a certificate for `host` from the authority at [`Server::authority`].
    pub fn tls(mut self, host: &str) -> Builder {
        self.host = Some(host.to_owned());
        self.tcp()
    }

    /// Starts from a copy of this data directory instead of a new one.
    pub fn copy_of(mut self, data: &Path) -> Builder {
        self.origin = Some(data.to_owned());
        self
    }

    /// Makes the server and starts it.
    #[track_caller]
    pub fn start(self) -> Server {
        let programs = Programs::get();
        let home = Scratch::new();
        let data = home.path().join("data");
        if let Some(origin) = &self.origin {
            copy(origin, &data);
        } else {
            copy(&template(programs), &data);
        }

        let mut conf =
            fs::read_to_string(data.join("postgresql.conf")).expect("read postgresql.conf");
        for line in [
            "shared_buffers = 4MB",
            "max_wal_size = 64MB",
            "min_wal_size = 16MB",
            "autovacuum = off",
            // In files that go away with the directory, also after a crash.
            "dynamic_shared_memory_type = mmap",
            "log_line_prefix = '%m [%p] %q%u@%d '",
        ] {
            conf += &format!("\n{line}");
        }
        conf += &format!("\nfsync = {}", if self.durable { "on" } else { "off" });
        if let Some(host) = &self.host {
            let (certificate, key) =
                Authority::new(&home.path().join("ca"), "pglock-test").issue(host);
            for (file, name) in [(certificate, "server.crt"), (key, "server.key")] {
                let place = data.join(name);
                fs::copy(file, &place).expect("copy a certificate");
                fs::set_permissions(&place, fs::Permissions::from_mode(0o600)).expect("chmod");
                chown(&place, Some(programs.owner.uid.as_raw()), None).expect("chown");
            }
            conf += "\nssl = on";
        }
        for line in &self.conf {
            conf += &format!("\n{line}");
        }
        fs::write(data.join("postgresql.conf"), conf + "\n").expect("write postgresql.conf");

        let mut hba = self.hba;
        hba.extend(
            [
                "local all all trust",
                "host all all 127.0.0.1/32 trust",
                "host all all ::1/128 trust",
            ]
            .map(str::to_owned),
        );
        fs::write(data.join("pg_hba.conf"), hba.join("\n") + "\n").expect("write pg_hba.conf");

        let sockets = home.path().join("s");
        fs::create_dir(&sockets).expect("create a directory for the socket");
        chown(&sockets, Some(programs.owner.uid.as_raw()), None).expect("chown");

        let mut server = Server {
            home,
            address: self.address,
            port: 5432,
            postmaster: Mutex::new(None),
        };
        // Whoever else wants the port that we have just seen free may get it first.
        for _ in 0..20 {
            if self.address.is_some() {
                server.port = free_port();
            }
            match server.try_start() {
                Ok(()) => {
                    programs.let_grow_old();
                    return server;
                }
                Err(log) if self.address.is_some() && log.contains("could not bind") => (),
                Err(log) => panic!("the server did not start:\n{log}"),
            }
        }
        panic!("no free port after 20 attempts");
    }
}

impl Server {
    /// A server that listens on its Unix socket only.
    #[track_caller]
    pub fn new() -> Server {
        Server::builder().start()
    }

    pub fn builder() -> Builder {
        Builder {
            conf: Vec::new(),
            hba: Vec::new(),
            address: None,
            durable: false,
            host: None,
            origin: None,
        }
    }

    /// The directory of the Unix socket, which serves as a host name.
    pub fn socket_dir(&self) -> PathBuf {
        self.home.path().join("s")
    }

    /// The Unix socket itself.
    pub fn socket(&self) -> PathBuf {
        self.socket_dir().join(format!(".s.PGSQL.{}", self.port))
    }

    /// The port, of the Unix socket too.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The certificate that a client must trust to believe this server.
    pub fn authority(&self) -> PathBuf {
        self.home.path().join("ca/ca.crt")
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        let log = fs::read(self.home.path().join("log")).expect("read the server's log");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Runs SQL as `postgres` in the database `postgres`; answers with the rows, `|` between columns.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.psql_in("postgres", sql)
    }

    #[track_caller]
    pub fn psql_in(&self, database: &str, sql: &str) -> String {
        let output = self
            .psql_command(database)
            .args(["-c", sql])
            .stdin(Stdio::null())
            .output()
            .expect("start psql");
        assert!(
            output.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .expect("UTF-8 from psql")
            .trim_end()
            .to_owned()
    }

    /// A psql that stays connected.
    #[track_caller]
    pub fn session(&self) -> Session {
        Session::open(self.psql_command("postgres"))
    }

    #[track_caller]
    pub fn session_in(&self, database: &str) -> Session {
        Session::open(self.psql_command(database))
    }

    fn psql_command(&self, database: &str) -> Command {
        session::psql(&psql(), &self.socket_dir(), self.port, database)
    }

    /// The backends that hold the advisory lock `pg_advisory_lock(key::bigint)`, in any database.
    pub fn holders(&self, key: i64) -> Vec<i32> {
        self.lockers(key, "granted")
    }

    /// The backends that wait for that lock.
    pub fn waiters(&self, key: i64) -> Vec<i32> {
        self.lockers(key, "not granted")
    }

    fn lockers(&self, key: i64, which: &str) -> Vec<i32> {
        let (high, low) = (key >> 32 & 0xffff_ffff, key & 0xffff_ffff);
        let rows = self.psql(&format!(
            "select pid from pg_locks where locktype = 'advisory' and objsubid = 1
             and classid::bigint = {high} and objid::bigint = {low} and {which} order by pid"
        ));
        rows.lines()
            .map(|pid| pid.parse().expect("a pid"))
            .collect()
    }

    /// The backends of clients, other than psql's.
    pub fn clients(&self) -> Vec<i32> {
        let rows = self.psql(
            "select pid from pg_stat_activity where backend_type = 'client backend' and application_name <> 'psql' order by pid",
        );
        rows.lines()
            .map(|pid| pid.parse().expect("a pid"))
            .collect()
    }

    /// Starts the server again.
    #[track_caller]
    pub fn start(&self) {
        let started = within(PATIENCE, || match self.try_start() {
            Ok(()) => Some(Ok(())),
            Err(log) if self.address.is_some() && log.contains("could not bind") => None,
            Err(log) => Some(Err(log)),
        });
        match started {
            Some(Ok(())) => (),
            Some(Err(log)) => panic!("the server did not start again:\n{log}"),
            None => panic!("port {} is taken", self.port),
        }
    }

    /// Stops the server and waits until it is gone.
    #[track_caller]
    pub fn stop(&self, how: Stop) {
        let signal = match how {
            Stop::Smart => Signal::SIGTERM,
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        self.end(signal);
    }

    #[track_caller]
    pub fn restart(&self, how: Stop) {
        self.stop(how);
        self.start();
    }

    /// Kills the postmaster, as the kernel does when memory runs out, and waits until its backends have noticed.
    #[track_caller]
    pub fn crash(&self) {
        let backends = self.children();
        self.end(Signal::SIGKILL);
        eventually("the backends are gone", PATIENCE, || {
            backends
                .iter()
                .all(|pid| kill(*pid, None).is_err())
                .then_some(())
        });
    }

    /// Kills one backend. The server then ends all sessions and recovers, under the same postmaster.
    #[track_caller]
    pub fn crash_backend(&self, pid: i32) {
        assert!(
            self.children().contains(&Pid::from_raw(pid)),
            "{pid} is no backend of this server"
        );
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill a backend");
    }

    /// Stops all processes of the server in their tracks, as a frozen host would.
    #[track_caller]
    pub fn freeze(&self) {
        let postmaster = self.pid();
        kill(postmaster, Signal::SIGSTOP).expect("stop the postmaster");
        // It forks no more, so this is all of them.
        for pid in self.children() {
            let _ = kill(pid, Signal::SIGSTOP);
        }
        eventually("all processes of the server have stopped", PATIENCE, || {
            self.children()
                .iter()
                .chain([&postmaster])
                .all(|pid| matches!(state(*pid), None | Some('T' | 'Z')))
                .then_some(())
        });
    }

    /// Lets them go on.
    #[track_caller]
    pub fn thaw(&self) {
        for pid in self.children() {
            let _ = kill(pid, Signal::SIGCONT);
        }
        kill(self.pid(), Signal::SIGCONT).expect("continue the postmaster");
    }

    /// The process id of the postmaster.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        let guard = self.postmaster();
        Pid::from_raw(guard.as_ref().expect("a running server").id() as i32)
    }

    /// The process ids of what the postmaster has started: backends and helpers.
    pub fn children(&self) -> Vec<Pid> {
        let pid = self.pid();
        let children =
            fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children
            .split_whitespace()
            .map(|pid| Pid::from_raw(pid.parse().expect("a pid")))
            .collect()
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Child>> {
        self.postmaster
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts the server and waits until it takes connections; answers with the log if it does not.
    fn try_start(&self) -> Result<(), String> {
        let mut postmaster = self.postmaster();
        assert!(postmaster.is_none(), "the server runs already");
        let programs = Programs::get();
        let log = self.home.path().join("log");
        let before = fs::metadata(&log).map_or(0, |log| log.len()) as usize;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("open the server's log");
        let mut command = programs.owned("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.socket_dir())
            .arg("-h")
            .args([
                &self
                    .address
                    .map_or_else(String::new, |address| address.to_string()),
                "-p",
                &self.port.to_string(),
            ])
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("dup"))
            .stderr(file)
            .process_group(0);
        let mut child = command.spawn().expect("start postgres");
        let pid_file = self.data().join("postmaster.pid");
        let failed = within(PATIENCE, || {
            if child.try_wait().expect("wait for postgres").is_some() {
                return Some(true);
            }
            // Eight lines: the first is the pid (an old file may lie around after a crash), the last the state.
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            (lines.len() >= 8 && lines[0] == child.id().to_string() && lines[7] == "ready")
                .then_some(false)
        });
        // From here on a drop of the server also ends one that is stuck.
        *postmaster = Some(child);
        match failed {
            Some(false) => Ok(()),
            Some(true) => {
                *postmaster = None;
                Err(self.log().split_off(before))
            }
            None => Err(format!(
                "not ready in time\n{}",
                self.log().split_off(before)
            )),
        }
    }

    #[track_caller]
    fn end(&self, signal: Signal) {
        let mut postmaster = self.postmaster();
        let child = postmaster.as_mut().expect("a running server");
        kill(Pid::from_raw(child.id() as i32), signal).expect("signal the postmaster");
        let ended = wait_for_child(child, PATIENCE);
        assert!(ended.is_some(), "the server did not stop on {signal}");
        *postmaster = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.postmaster().is_some() {
            self.thaw();
        }
        let mut postmaster = self.postmaster();
        if let Some(child) = postmaster.as_mut() {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGQUIT);
            if wait_for_child(child, Duration::from_secs(10)).is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        // A server that was killed leaves a small segment of System V memory behind; its id is the last word of line 7.
        if let Ok(text) = fs::read_to_string(self.data().join("postmaster.pid"))
            && let Some(segment) = text
                .lines()
                .nth(6)
                .and_then(|line| line.split_whitespace().last())
        {
            let _ = Command::new("ipcrm")
                .args(["-m", segment])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn wait_for_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    within(limit, || child.try_wait().expect("wait for postgres"))
}

/// The letter for a process's state.
pub fn state(pid: Pid) -> Option<char> {
    // A name may be cut off within a letter.
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Where psql is. It may be in a package of its own, and then in `PATH` only.
pub fn psql() -> PathBuf {
    let own = Programs::get().bin.join("psql");
    if own.exists() { own } else { "psql".into() }
}

/// How long a server must have run for a newcomer with the default lease not to hold off.
const OLD: Duration = Duration::from_millis(15_100);

/// The installation that we use, and the user whom the servers belong to.
struct Programs {
    bin: PathBuf,
    version: String,
    owner: User,
}

impl Programs {
    /// Before version 15 a server does not tell that it has just been made, and newcomers hold off until it is old.
    fn let_grow_old(&self) {
        let number = self.version.rsplit(") ").next().unwrap_or_default();
        let major = number
            .split('.')
            .next()
            .and_then(|major| major.parse().ok());
        if major.is_some_and(|major: u32| major < 15) {
            thread::sleep(OLD);
        }
    }

    fn get() -> &'static Programs {
        static PROGRAMS: OnceLock<Programs> = OnceLock::new();
        PROGRAMS.get_or_init(|| {
            let bin = Programs::find();
            let version = output(Command::new(bin.join("postgres")).arg("--version"));
            let owner = if Uid::effective().is_root() {
                User::from_name("nobody")
                    .expect("the user table")
                    .expect("a user called nobody")
            } else {
                User::from_uid(Uid::effective())
                    .expect("the user table")
                    .unwrap_or_else(|| {
                        panic!(
                            "user {} has no entry in the user table, and initdb needs one",
                            Uid::effective()
                        )
                    })
            };
            Programs {
                bin,
                version,
                owner,
            }
        })
    }

    fn find() -> PathBuf {
        if let Some(dir) = std::env::var_os("PG_BIN").filter(|dir| !dir.is_empty()) {
            let dir = PathBuf::from(dir);
            assert!(
                dir.join("initdb").exists(),
                "PG_BIN: {} holds no initdb",
                dir.display()
            );
            return dir;
        }
        if let Ok(found) = Command::new("pg_config")
            .arg("--bindir")
            .stderr(Stdio::null())
            .output()
        {
            // Debian's pg_config may come with libpq alone and name a folder that is not there.
            let dir = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
            if dir.join("initdb").exists() {
                return dir;
            }
        }
        let versions = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten();
        versions
            .filter(|version| version.path().join("bin/initdb").exists())
            .max_by_key(|version| version.file_name().to_string_lossy().parse().unwrap_or(0))
            .unwrap_or_else(|| {
                panic!("no PostgreSQL server found: install one, or name its bin folder in PG_BIN")
            })
            .path()
            .join("bin")
    }

    /// A command that runs as the servers' owner.
    fn owned(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").env_remove("LANGUAGE");
        if Uid::effective().is_root() {
            command
                .uid(self.owner.uid.as_raw())
                .gid(self.owner.gid.as_raw());
        }
        command
    }
}

/// The cluster that servers are copied from; made on first use.
fn template(programs: &Programs) -> PathBuf {
    let me = Uid::effective();
    let shelf = PathBuf::from(format!("/tmp/pglock-test-templates-{me}"));
    let _ = fs::DirBuilder::new().mode(0o755).create(&shelf);
    let found = fs::symlink_metadata(&shelf).expect("the folder of templates");
    assert!(
        found.is_dir() && found.uid() == me.as_raw(),
        "{} is somebody else's",
        shelf.display()
    );

    // Builds of one version may differ, so the place counts too.
    let name: String = format!("{} {}", programs.version, programs.bin.display())
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '_'
            }
        })
        .collect();
    let finished = shelf.join(&name);
    if finished.exists() {
        return finished;
    }
    let lock = File::create(shelf.join(format!("{name}.lock"))).expect("create a lock file");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .expect("lock the template");
    if finished.exists() {
        return finished;
    }
    // Half made by one who was killed.
    let making = shelf.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&making);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&making)
        .expect("create the template");
    chown(
        &making,
        Some(programs.owner.uid.as_raw()),
        Some(programs.owner.gid.as_raw()),
    )
    .expect("chown");
    output(
        programs
            .owned("initdb")
            .args([
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C",
                "--wal-segsize=1",
                "-D",
            ])
            .arg(&making)
            .current_dir("/"),
    );
    fs::rename(&making, &finished).expect("put the template in its place");
    finished
}

fn copy(from: &Path, to: &Path) {
    // Not every cp knows --reflink.
    let cow = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .args([from, to])
        .stderr(Stdio::null())
        .status();
    if !cow.expect("start cp").success() {
        let _ = fs::remove_dir_all(to);
        output(Command::new("cp").arg("-a").args([from, to]));
    }
}

/// Runs a command that must succeed.
fn output(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A port that nobody listens on, from below the range that the kernel gives to outgoing connections: so it
/// will most likely still be free after a restart.
fn free_port() -> u16 {
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time after 1970");
    let mut candidate = clock.subsec_nanos() ^ std::process::id().wrapping_mul(40_503);
    loop {
        candidate = candidate
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        let port = 12_000 + (candidate >> 8) as u16 % 18_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
