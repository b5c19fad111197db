//! A primary and its streaming standbys.

use std::fs;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::server::Builder;
use super::wait::{PATIENCE, eventually};
use super::{Scratch, Server};

/// What a server needs in order to have standbys.
pub fn primary() -> Builder {
    Server::builder().hba("local replication all trust")
}

/// Makes a standby of `primary` from a base backup, and waits until it streams.
#[track_caller]
pub fn standby(primary: &Server, builder: Builder) -> Server {
    let scratch = Scratch::new();
    let backup = scratch.path().join("backup");
    // By hand, as in the documentation: pg_basebackup is not everywhere, and does not fit every version.
    let mut session = primary.session();
    let version: u32 = session
        .exec("show server_version_num")
        .parse()
        .expect("a version");
    let (begin, end) = if version < 150_000 {
        (
            "pg_start_backup('x', true, false)",
            "pg_stop_backup(false, false)",
        )
    } else {
        ("pg_backup_start('x', true)", "pg_backup_stop(false)")
    };
    session.exec(&format!("select {begin}"));
    let copied = Command::new("cp")
        .arg("-a")
        .args([&primary.data(), &backup])
        .stderr(Stdio::null())
        .status();
    // It fails where a file goes away meanwhile, as it may.
    copied.expect("start cp");
    let label = session.exec(&format!("select labelfile from {end}"));
    fs::remove_file(backup.join("postmaster.pid")).expect("the primary's lock file");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&backup).expect("the backup"));
    for (name, content) in [
        ("backup_label", label + "\n"),
        ("standby.signal", String::new()),
    ] {
        let path = backup.join(name);
        fs::write(&path, content).expect("write into the backup");
        chown(&path, Some(owner), None).expect("chown");
    }
    let standby = builder
        .copy_of(&backup)
        .conf(connection_to(primary).trim_end())
        .conf("wal_retrieve_retry_interval = 100ms")
        .start();
    wait_until_it_streams(&standby);
    standby
}

/// Waits until a server was started so long ago that its start is no reason to hold off.
#[track_caller]
pub fn grow_old(server: &Server, ttl: Duration) {
    let is_old = format!(
        "select clock_timestamp() - greatest(pg_postmaster_start_time(), \
         pg_stat_get_bgwriter_stat_reset_time()) > '{} ms'",
        ttl.as_millis()
    );
    eventually("the server is old", PATIENCE, || {
        (server.psql(&is_old) == "t").then_some(())
    });
}

/// Makes a standby of a server that has been stopped and is to follow another, and starts it. It has nothing that the other
/// does not have.
#[track_caller]
pub fn follow(server: &Server, primary: &Server) {
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(server.data()).expect("data"));
    let signal = server.data().join("standby.signal");
    fs::write(&signal, "").expect("write standby.signal");
    chown(&signal, Some(owner), None).expect("chown");
    let conf = server.data().join("postgresql.conf");
    let text = fs::read_to_string(&conf).expect("read postgresql.conf");
    fs::write(&conf, text + &connection_to(primary)).expect("write postgresql.conf");
    server.start();
    wait_until_it_streams(server);
}

fn connection_to(primary: &Server) -> String {
    format!(
        "primary_conninfo = 'host={} port={} user=postgres application_name=standby'\n",
        primary.socket_dir().display(),
        primary.port()
    )
}

#[track_caller]
fn wait_until_it_streams(standby: &Server) {
    eventually("the standby streams", PATIENCE, || {
        let state = standby.psql("select status from pg_stat_wal_receiver");
        (state == "streaming").then_some(())
    });
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
}

/// Comma-separated lists of the hosts and ports of these servers.
pub fn lists(servers: &[&Server]) -> (String, String) {
    let hosts: Vec<String> = servers
        .iter()
        .map(|server| server.socket_dir().display().to_string())
        .collect();
    let ports: Vec<String> = servers
        .iter()
        .map(|server| server.port().to_string())
        .collect();
    (hosts.join(","), ports.join(","))
}

/// Makes a primary of a standby.
#[track_caller]
pub fn promote(standby: &Server) {
    assert_eq!(standby.psql("select pg_promote(true, 30)"), "t");
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "f");
}
