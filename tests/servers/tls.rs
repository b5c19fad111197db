//! TLS, with real certificates.

use std::path::Path;

use crate::support::tls::Authority;
use crate::support::*;

fn encrypted(server: &Server) -> String {
    server.psql(&format!(
        "select ssl from pg_stat_ssl where pid = {}",
        server.holders(1)[0]
    ))
}

fn to(server: &Server, host: &str, mode: &str, authority: &Path) -> Pglock {
    Pglock::new()
        .flags([
            "--host",
            host,
            "--port",
            &server.port().to_string(),
            "--user",
            "postgres",
            "--sslmode",
            mode,
        ])
        .env("PGSSLROOTCERT", authority)
}

#[test]
fn require_encrypts_and_the_default_does_not() {
    let server = Server::builder().tls("localhost").start();
    let plain = Pglock::at(server.port()).hold();
    assert_eq!(encrypted(&server), "f");
    plain.finish().assert_status(0);
    for pglock in [
        Pglock::at(server.port()).flags(["--sslmode", "require"]),
        Pglock::at(server.port()).env("PGLOCK_SSLMODE", "require"),
        Pglock::at(server.port()).env("PGSSLMODE", "require"),
        Pglock::at(server.port()).flags(["--database", "sslmode=require"]),
    ] {
        let holder = pglock.hold();
        assert_eq!(encrypted(&server), "t");
        holder.finish().assert_status(0);
    }
}

#[test]
fn require_refuses_a_server_without_tls() {
    let server = Server::builder().tcp().start();
    let marker = Marker::new();
    let output = Pglock::at(server.port())
        .flags(["--sslmode", "require"])
        .command(marker.command())
        .run();
    output.assert_failed(&["SSL", &server.port().to_string()]);
    assert!(!marker.exists());
}

#[test]
fn verify_full_takes_the_right_host_and_authority() {
    let server = Server::builder().tls("localhost").start();
    let holder = to(&server, "localhost", "verify-full", &server.authority()).hold();
    assert_eq!(encrypted(&server), "t");
    holder.finish().assert_status(0);
}

#[test]
fn verify_full_refuses_the_wrong_host_name() {
    let server = Server::builder().tls("db.example.com").start();
    let marker = Marker::new();
    let output = to(&server, "localhost", "verify-full", &server.authority())
        .command(marker.command())
        .run();
    output.assert_failed(&["db.example.com", "localhost"]);
    assert!(!marker.exists());
    // The authority is right, so the weaker check succeeds.
    to(&server, "localhost", "verify-ca", &server.authority())
        .command(marker.command())
        .run()
        .assert_status(0);
    assert!(marker.exists());
}

#[test]
fn verify_refuses_the_wrong_authority() {
    let server = Server::builder().tls("localhost").start();
    let scratch = Scratch::new();
    let marker = Marker::new();
    let other = Authority::new(&scratch.path().join("other"), "somebody-else");
    for mode in ["verify-full", "verify-ca"] {
        let output = to(&server, "localhost", mode, &other.certificate())
            .command(marker.command())
            .run();
        output.assert_failed(&["certificate"]);
        assert!(!marker.exists());
    }
}

#[test]
fn verify_refuses_to_go_without_an_authority() {
    let server = Server::builder().tls("localhost").start();
    let marker = Marker::new();
    let output = to(
        &server,
        "localhost",
        "verify-full",
        "/nonexistent/root.crt".as_ref(),
    )
    .command(marker.command())
    .run();
    output.assert_failed(&["/nonexistent/root.crt"]);
    assert!(!marker.exists());
}

#[test]
fn a_connection_that_breaks_during_the_handshake_runs_nothing() {
    let server = Server::builder().tls("localhost").start();
    let proxy = Proxy::to_port(server.port());
    let marker = Marker::new();
    for (when, what) in [
        (When::Request(1), What::Close),
        (When::Answer(1), What::Say(b"E".to_vec())),
        (When::Answer(1), What::Say(b"zzz".to_vec())),
        (When::Request(2), What::Reset),
        (
            When::Answer(2),
            What::Say(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ),
        (When::Answer(2), What::Silence),
    ] {
        proxy.trap(when, what.clone());
        let output = Pglock::at(proxy.port())
            .flags(["--sslmode", "require", "--connect-timeout", "1"])
            .command(marker.command())
            .run();
        output.assert_failed(&[&proxy.port().to_string()]);
        assert!(!marker.exists(), "{when:?} {what:?}");
    }
}
