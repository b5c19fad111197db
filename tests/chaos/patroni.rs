//! A real cluster: three Patroni nodes with etcd, and HAProxy in front. Called by `make patroni`, whose script
//! (`tests/tools/patroni.sh`) gets the programs and names them in the environment.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

use super::failovers::{Cluster, Kind, Terms, run, verdict};
use super::random::Random;
use super::support::{Scratch, eventually};

/// How long Patroni may take over whatever it does.
const PATIENCE: Duration = Duration::from_secs(120);

/// One cluster with all that belongs to it.
struct Patroni {
    home: Scratch,
    owner: Option<User>,
    nodes: [Node; 3],
    haproxy: u16,
    /// Its processes but for those of the nodes.
    others: Vec<Child>,
    random: Random,
}

struct Node {
    name: String,
    database: u16,
    api: u16,
    process: Option<Child>,
}

/// The folder of a program that the script names.
fn program(variable: &str, name: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(folder) => Path::new(&folder).join(name),
        None => name.into(),
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

impl Patroni {
    fn new(sync: bool, seed: u64) -> Patroni {
        let home = Scratch::new();
        let owner = Uid::effective().is_root().then(|| {
            User::from_name("nobody")
                .expect("the user table")
                .expect("nobody")
        });
        if let Some(owner) = &owner {
            chown(home.path(), Some(owner.uid.as_raw()), None).expect("chown");
        }
        let nodes = [0, 1, 2].map(|number| Node {
            name: format!("p{number}"),
            database: free_port(),
            api: free_port(),
            process: None,
        });
        let mut cluster = Patroni {
            home,
            owner,
            nodes,
            haproxy: free_port(),
            others: Vec::new(),
            random: Random::new(seed),
        };
        let etcd = cluster.start_etcd();
        for number in 0..3 {
            cluster.write_configuration(number, etcd, sync);
        }
        cluster.start_node(0);
        eventually("the first node is the leader", PATIENCE, || {
            cluster.leader().map(drop)
        });
        cluster.start_node(1);
        cluster.start_node(2);
        cluster.start_haproxy();
        cluster.wait_until_whole(sync);
        cluster
    }

    fn command(&self, program: &Path, log: &str) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.path().join(log))
            .expect("open a log");
        let mut command = Command::new(program);
        command
            .current_dir(self.home.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .process_group(0);
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        command
    }

    fn start_etcd(&mut self) -> u16 {
        let (client, peer) = (free_port(), free_port());
        let url = |port| format!("http://127.0.0.1:{port}");
        let child = self
            .command(Path::new("etcd"), "etcd.log")
            .args(["--name", "e0", "--data-dir", "etcd"])
            .args([
                "--listen-client-urls",
                &url(client),
                "--advertise-client-urls",
                &url(client),
            ])
            .args([
                "--listen-peer-urls",
                &url(peer),
                "--initial-advertise-peer-urls",
                &url(peer),
            ])
            .args(["--initial-cluster", &format!("e0={}", url(peer))])
            .spawn()
            .expect("start etcd");
        self.others.push(child);
        eventually("etcd listens", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", client)).ok().map(drop)
        });
        client
    }

    fn write_configuration(&self, number: usize, etcd: u16, sync: bool) {
        let node = &self.nodes[number];
        let (name, database, api) = (&node.name, node.database, node.api);
        let home = self.home.path().display();
        let bin = std::env::var("PG_BIN").expect("PG_BIN");
        let text = format!(
            "scope: t\n\
             name: {name}\n\
             restapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'}}\n\
             etcd3: {{hosts: '127.0.0.1:{etcd}'}}\n\
             bootstrap:\n\
             \x20 dcs:\n\
             \x20   ttl: 20\n\
             \x20   loop_wait: 1\n\
             \x20   retry_timeout: 3\n\
             \x20   maximum_lag_on_failover: 1048576\n\
             \x20   primary_start_timeout: 0\n\
             \x20   synchronous_mode: {sync}\n\
             \x20   postgresql:\n\
             \x20     use_pg_rewind: true\n\
             \x20     parameters: {{wal_level: replica, hot_standby: 'on', wal_log_hints: 'on', max_wal_senders: 8, \
             fsync: 'off', wal_retrieve_retry_interval: 200ms}}\n\
             \x20 initdb: [{{encoding: UTF8}}, {{auth: trust}}]\n\
             postgresql:\n\
             \x20 listen: '127.0.0.1:{database}'\n\
             \x20 connect_address: '127.0.0.1:{database}'\n\
             \x20 data_dir: {home}/{name}\n\
             \x20 bin_dir: {bin}\n\
             \x20 pgpass: {home}/pgpass-{name}\n\
             \x20 parameters: {{unix_socket_directories: '{home}'}}\n\
             \x20 pg_hba: ['host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust', \
             'local all all trust']\n\
             \x20 authentication:\n\
             \x20   superuser: {{username: postgres}}\n\
             \x20   replication: {{username: postgres}}\n\
             \x20   rewind: {{username: postgres}}\n"
        );
        self.home.file(&format!("{name}.yml"), 0o644, text);
    }

    fn start_node(&mut self, number: usize) {
        let configuration = format!("{}.yml", self.nodes[number].name);
        let log = format!("{}.log", self.nodes[number].name);
        let child = self
            .command(&program("PATRONI_BIN", "patroni"), &log)
            .arg(configuration)
            .spawn()
            .expect("start Patroni");
        self.nodes[number].process = Some(child);
    }

    fn start_haproxy(&mut self) {
        let mut text = format!(
            "defaults\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n\
             listen primary\n  bind 127.0.0.1:{}\n  mode tcp\n  option httpchk GET /primary\n  \
             http-check expect status 200\n  default-server inter 500ms fastinter 200ms fall 2 rise 1 on-marked-down \
             shutdown-sessions\n",
            self.haproxy
        );
        for node in &self.nodes {
            text += &format!(
                "  server {} 127.0.0.1:{} check port {}\n",
                node.name, node.database, node.api
            );
        }
        self.home.file("haproxy.cfg", 0o644, text);
        let child = self
            .command(Path::new("haproxy"), "haproxy.log")
            .args(["-db", "-f", "haproxy.cfg"])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .spawn()
            .expect("start HAProxy");
        self.others.push(child);
    }

    /// Whether a node's REST API says yes.
    fn says(&self, number: usize, path: &str) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.nodes[number].api)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok()?;
            let head = String::from_utf8_lossy(&answer);
            Some(head.lines().next()?.contains(" 200"))
        };
        ask().unwrap_or(false)
    }

    fn leader(&self) -> Option<usize> {
        (0..3).find(|number| self.says(*number, "/primary"))
    }

    /// Waits until there are a leader and two replicas that stream, one of them synchronous if one is to be.
    fn wait_until_whole(&self, sync: bool) {
        eventually("the cluster is whole", PATIENCE, || {
            let all = |path: &str| (0..3).filter(|number| self.says(*number, path)).count();
            let is_whole = all("/primary") == 1 && all("/replica?replication_state=streaming") == 2;
            (is_whole && (!sync || all("/synchronous") == 1)).then_some(())
        });
    }

    fn pid(&self, number: usize) -> Pid {
        let child = self.nodes[number].process.as_ref().expect("a node");
        Pid::from_raw(child.id() as i32)
    }

    fn postmaster(&self, number: usize) -> Option<Pid> {
        let file = self
            .home
            .path()
            .join(&self.nodes[number].name)
            .join("postmaster.pid");
        let text = fs::read_to_string(file).ok()?;
        text.lines().next()?.trim().parse().ok().map(Pid::from_raw)
    }

    fn wait_for_other_leader(&self, old: usize) -> usize {
        eventually("another is the leader", PATIENCE, || {
            (0..3).find(|number| *number != old && self.says(*number, "/primary"))
        })
    }
}

/// A cluster with the mode that it is in.
struct InMode {
    cluster: Patroni,
    sync: bool,
    frozen: Option<usize>,
}

impl Cluster for InMode {
    fn way(&self, contender: usize) -> Vec<String> {
        let nodes = &self.cluster.nodes;
        let (host, port) = if contender.is_multiple_of(2) {
            let ports: Vec<_> = nodes.iter().map(|node| node.database.to_string()).collect();
            ("127.0.0.1,127.0.0.1,127.0.0.1".to_owned(), ports.join(","))
        } else {
            ("127.0.0.1".to_owned(), self.cluster.haproxy.to_string())
        };
        ["--host".to_owned(), host, "--port".to_owned(), port].into()
    }

    fn strike(&mut self, kind: Kind) -> String {
        let cluster = &mut self.cluster;
        let old = eventually("there is a leader", PATIENCE, || cluster.leader());
        match kind {
            Kind::Switchover => {
                let other = (old + 1 + cluster.random.below(2)) % 3;
                let (leader, candidate) = (&cluster.nodes[old].name, &cluster.nodes[other].name);
                let status = cluster
                    .command(&program("PATRONI_BIN", "patronictl"), "patronictl.log")
                    .args([
                        "-c",
                        &format!("{leader}.yml"),
                        "switchover",
                        "--leader",
                        leader,
                    ])
                    .args(["--candidate", candidate, "--force"])
                    .status();
                assert!(status.expect("start patronictl").success(), "no switchover");
            }
            Kind::Crash => {
                let postmaster = cluster.postmaster(old).expect("a postmaster");
                kill(postmaster, Signal::SIGKILL).expect("kill the postmaster");
            }
            Kind::SplitBrain => {
                kill(cluster.pid(old), Signal::SIGSTOP).expect("stop Patroni");
                self.frozen = Some(old);
            }
        }
        let new = self.cluster.wait_for_other_leader(old);
        format!("p{old} to p{new}")
    }

    fn mend(&mut self) {
        if let Some(frozen) = self.frozen.take() {
            // Two primaries, for some time.
            thread::sleep(Duration::from_secs(5));
            kill(self.cluster.pid(frozen), Signal::SIGCONT).expect("continue Patroni");
        }
        self.cluster.wait_until_whole(self.sync);
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        let postmasters: Vec<_> = (0..3)
            .filter_map(|number| self.postmaster(number))
            .collect();
        let nodes = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.process.as_mut());
        for child in nodes.chain(&mut self.others) {
            let _ = child.kill();
            let _ = child.wait();
        }
        for postmaster in postmasters {
            let _ = kill(postmaster, Signal::SIGQUIT);
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// The program when it is called with `patroni [SWITCHOVERS CRASHES SPLIT-BRAINS]`.
pub fn main(words: &[String]) -> ExitCode {
    let numbers: Result<Vec<usize>, _> = words.iter().map(|word| word.parse()).collect();
    let (switchovers, crashes, splits) = match numbers.as_deref() {
        Ok([]) => (10, 5, 3),
        Ok([switchovers, crashes, splits]) => (*switchovers, *crashes, *splits),
        _ => {
            eprintln!("patroni: not three numbers: {words:?}");
            return ExitCode::from(2);
        }
    };
    let mut random = Random::new(switchovers as u64);
    let mut kinds = vec![Kind::Switchover; switchovers];
    kinds.extend(vec![Kind::Crash; crashes]);
    for place in (1..kinds.len()).rev() {
        kinds.swap(place, random.below(place + 1));
    }
    let mut outcomes = Vec::new();
    for (title, sync, kinds) in [
        ("switchovers and crashes", false, kinds),
        (
            "split brains, synchronous, --sync",
            true,
            vec![Kind::SplitBrain; splits],
        ),
    ] {
        if kinds.is_empty() {
            continue;
        }
        let mut cluster = InMode {
            cluster: Patroni::new(sync, random.next()),
            sync,
            frozen: None,
        };
        let terms = Terms {
            ttl: 15,
            grace: 5,
            sync,
        };
        let outcome = run(&mut cluster, terms, &kinds, random.next());
        println!("{title}: {outcome}");
        outcomes.push((outcome, !sync));
    }
    let outcomes: Vec<_> = outcomes
        .iter()
        .map(|(outcome, lives)| (outcome, *lives))
        .collect();
    verdict(&outcomes)
}
