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
        .conf(&format!(
            "primary_conninfo = 'host={} port={} user=postgres'",
            primary.socket_dir().display(),
            primary.port()
        ))
        .conf("wal_retrieve_retry_interval = 100ms")
        .start();
    eventually("the standby streams", PATIENCE, || {
        let state = standby.psql("select status from pg_stat_wal_receiver");
        (state == "streaming").then_some(())
    });
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
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

/// Makes a primary of a standby.
#[track_caller]
pub fn promote(standby: &Server) {
    assert_eq!(standby.psql("select pg_promote(true, 30)"), "t");
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "f");
}
