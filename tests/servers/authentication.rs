//! Ways to prove who one is, other than a password alone: libpq knows them all, and pglock is not in the way of any.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::unistd::{Uid, User};

use crate::support::tls::Authority;
use crate::support::*;

/// Who holds lock 1, whether over TLS, and with which certificate.
fn holder(server: &Server) -> String {
    server.psql(&format!(
        "select usename, ssl, coalesce(client_dn, 'no certificate') from pg_stat_activity
         join pg_stat_ssl using (pid) where pid = {}",
        server.holders(1)[0]
    ))
}

#[track_caller]
fn assert_let_in(server: &Server, pglock: Pglock, as_whom: &str) {
    let run = pglock.hold();
    assert_eq!(holder(server), as_whom, "{}", run.stderr());
    run.finish().assert_status(0);
}

#[track_caller]
fn assert_kept_out(pglock: &Pglock, words: &[&str]) {
    let marker = Marker::new();
    for flags in [&[][..], &["--wait", "30"]] {
        let output = pglock.clone().flags(flags).command(marker.command()).run();
        output.assert_failed(words);
        assert!(!marker.exists(), "{}", output.report());
    }
}

#[test]
fn scram_with_channel_binding() {
    let server = Server::builder()
        .tls("localhost")
        .hba("host all keeper 127.0.0.1/32 scram-sha-256")
        .hba("host all trusted 127.0.0.1/32 trust")
        .start();
    server.psql("create role keeper login password 'secret word'; create role trusted login");
    let to = |mode: &str| {
        Pglock::at(server.port())
            .env("PGLOCK_USER", "keeper")
            .env("PGLOCK_PASS", "secret word")
            .flags(["--sslmode", mode])
    };
    let scratch = Scratch::new();
    let file = scratch.file("pgpass", 0o600, "127.0.0.1:*:*:keeper:secret word\n");
    for pglock in [
        to("require").env("PGCHANNELBINDING", "require"),
        to("require").flags(["--database", "channel_binding=require"]),
        to("require").flags(["--database", "postgresql:///?channel_binding=require"]),
        to("verify-ca")
            .env("PGCHANNELBINDING", "require")
            .env("PGSSLROOTCERT", server.authority()),
        to("require")
            .env("PGCHANNELBINDING", "require")
            .env_remove("PGLOCK_PASS")
            .env("PGPASSFILE", file),
    ] {
        assert_let_in(&server, pglock, "keeper|t|no certificate");
    }
    // It is only there with TLS, and only with SCRAM: who insists on it does not go without.
    let insists = |pglock: Pglock| pglock.env("PGCHANNELBINDING", "require");
    assert_kept_out(&insists(to("disable")), &["channel binding required"]);
    assert_kept_out(
        &insists(to("require")).env("PGLOCK_USER", "trusted"),
        &["channel binding required"],
    );
    assert_kept_out(
        &insists(to("require")).env("PGLOCK_PASS", "secret-wrong"),
        &["password authentication failed"],
    );
}

#[test]
fn client_certificates() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch.path().join("clients"), "clients");
    let issue = |authority: &Authority, name: &str| -> (PathBuf, PathBuf) {
        let (certificate, key) = authority.issue(name);
        let copy = |from: PathBuf, kind: &str, mode| {
            let bytes = fs::read(from).expect("a file");
            scratch.file(&format!("{name}.{kind}"), mode, bytes)
        };
        (copy(certificate, "crt", 0o644), copy(key, "key", 0o600))
    };
    let server = Server::builder()
        .tls("localhost")
        .hba("hostssl all keeper 127.0.0.1/32 cert")
        .conf(&format!(
            "ssl_ca_file = '{}'",
            authority.certificate().display()
        ))
        .start();
    server.psql("create role keeper login");
    let (certificate, key) = issue(&authority, "keeper");
    let to = |(certificate, key): (&PathBuf, &PathBuf)| {
        Pglock::at(server.port())
            .env("PGLOCK_USER", "keeper")
            .env("PGLOCK_SSLMODE", "require")
            .env("PGSSLCERT", certificate)
            .env("PGSSLKEY", key)
    };
    let whom = "keeper|t|/CN=keeper";
    assert_let_in(&server, to((&certificate, &key)), whom);
    let string = format!(
        "sslcert={} sslkey={} sslrootcert={} sslmode=verify-full host=localhost user=keeper",
        certificate.display(),
        key.display(),
        server.authority().display()
    );
    let pglock = Pglock::new().flags(["--database", &string, "--port", &server.port().to_string()]);
    assert_let_in(&server, pglock, whom);
    // Where libpq looks by itself.
    let home = scratch.path().join("home");
    fs::create_dir_all(home.join(".postgresql")).expect("a home");
    fs::copy(&certificate, home.join(".postgresql/postgresql.crt")).expect("copy");
    fs::copy(&key, home.join(".postgresql/postgresql.key")).expect("copy");
    let nobody = PathBuf::new();
    let pglock = to((&nobody, &nobody)).env("HOME", &home);
    assert_let_in(
        &server,
        pglock.env_remove("PGSSLCERT").env_remove("PGSSLKEY"),
        whom,
    );

    // Without one, with somebody else's, with one that nobody trusts.
    let none = to((&nobody, &nobody))
        .env_remove("PGSSLCERT")
        .env_remove("PGSSLKEY");
    assert_kept_out(&none, &["certificate"]);
    let (other, other_key) = issue(&authority, "other");
    assert_kept_out(
        &to((&other, &other_key)),
        &["certificate authentication failed for user \"keeper\""],
    );
    let stranger = Authority::new(&scratch.path().join("strangers"), "strangers");
    let (forged, forged_key) = stranger.issue("keeper");
    assert_kept_out(&to((&forged, &forged_key)), &[&server.port().to_string()]);
    // libpq refuses a key that others can read.
    let open_key = scratch.file("open.key", 0o644, fs::read(&key).expect("a key"));
    assert_kept_out(&to((&certificate, &open_key)), &["open.key"]);
}

#[test]
fn peer_over_the_unix_socket() {
    let me = User::from_uid(Uid::effective())
        .expect("the user table")
        .expect("an entry in it")
        .name;
    let server = Server::builder()
        .hba(&format!("local all \"{me}\" peer"))
        .hba("local all impostor peer")
        .hba("local all mapped peer map=names")
        .start();
    fs::write(
        server.data().join("pg_ident.conf"),
        format!("names {me} mapped\n"),
    )
    .expect("write pg_ident.conf");
    server.psql("select pg_reload_conf()");
    server.psql(&format!(
        "create role \"{me}\" login; create role impostor login; create role mapped login"
    ));
    eventually("the server knows the map", PATIENCE, || {
        server.log().contains("reloading").then_some(())
    });
    // A user that nobody names is the operating system's.
    let pglock = Pglock::on(&server).env_remove("PGLOCK_USER");
    assert_let_in(&server, pglock, &format!("{me}|f|no certificate"));
    let pglock = Pglock::on(&server).flags(["--user", "mapped"]);
    assert_let_in(&server, pglock, "mapped|f|no certificate");
    assert_kept_out(
        &Pglock::on(&server).flags(["--user", "impostor"]),
        &["Peer authentication failed for user \"impostor\""],
    );
}

#[test]
fn a_password_file_is_taken_by_its_line_for_this_server() {
    let server = Server::builder()
        .tcp()
        .hba("host all keeper 127.0.0.1/32 scram-sha-256")
        .start();
    server.psql("create role keeper login password 'right one'");
    server.psql("create database other");
    let scratch = Scratch::new();
    let port = server.port();
    let file = |mode, lines: &str| scratch.file("pgpass", mode, lines);
    let pglock = || Pglock::at(port).env("PGLOCK_USER", "keeper");
    let whom = "keeper|f|no certificate";
    let lines = format!(
        "# a comment\nelsewhere:{port}:*:keeper:wrong\n127.0.0.1:{port}:other:keeper:wrong\n127.0.0.1:{port}:*:keeper:right one\n*:*:*:*:wrong\n"
    );
    let path = file(0o600, &lines);
    assert_let_in(&server, pglock().env("PGPASSFILE", &path), whom);
    let string = format!("passfile={}", path.display());
    assert_let_in(
        &server,
        pglock()
            .env_remove("PGPASSFILE")
            .flags(["--database", &string]),
        whom,
    );
    // Where psql looks.
    let home = scratch.path().join("home");
    fs::create_dir(&home).expect("a home");
    fs::rename(&path, home.join(".pgpass")).expect("move");
    let at_home = pglock().env_remove("PGPASSFILE").env("HOME", &home);
    assert_let_in(&server, at_home.clone(), whom);
    assert_kept_out(
        &at_home.flags(["--database", "other"]),
        &["password authentication failed"],
    );
    // One that others can read is not used.
    let path = file(0o644, &lines);
    let marker = Marker::new();
    let output = pglock()
        .env("PGPASSFILE", path)
        .command(marker.command())
        .run();
    output.assert_status(125).assert_nowhere("right one");
    assert!(output.stderr().contains("password"), "{}", output.report());
    assert!(!marker.exists());
}

#[test]
fn a_host_is_stronger_than_the_address_of_a_service() {
    let server = Server::builder().tcp().start();
    server.psql("create role keeper login");
    let scratch = Scratch::new();
    let [here, elsewhere] = ["127.0.0.1", "127.0.0.77"];
    let pglock = |host: &str, hostaddr: &str| {
        let service = format!(
            "[jobs]\nhost={hostaddr}\nhostaddr={hostaddr}\nport={}\nuser=keeper\n",
            server.port()
        );
        Pglock::new()
            .env("PGSERVICEFILE", scratch.file("services", 0o600, service))
            .flags(["--host", host])
    };
    for wrap in [
        |pglock: Pglock| pglock.env("PGSERVICE", "jobs"),
        |pglock: Pglock| pglock.flags(["--database", "service=jobs"]),
    ] {
        let marker = Marker::new();
        let output = wrap(pglock(elsewhere, here))
            .command(marker.command())
            .run();
        output.assert_failed(&["127.0.0.77"]);
        assert!(!marker.exists());
        let output = wrap(pglock(here, elsewhere)).command(["true"]).run();
        output.assert_status(0);
        assert!(
            output.stderr().contains("keeper@127.0.0.1:"),
            "{}",
            output.report()
        );
    }
}

#[test]
fn a_service_file_says_it_all() {
    let server = Server::builder()
        .tls("localhost")
        .hba("hostssl all keeper 127.0.0.1/32 scram-sha-256")
        .hba("host all keeper 127.0.0.1/32 reject")
        .start();
    server.psql("create role keeper login password 'right one'");
    let scratch = Scratch::new();
    let file = scratch.file(
        "services",
        0o600,
        format!(
            "[elsewhere]\nhost=nowhere.invalid\n\n[jobs]\nhost=localhost\nport={}\nuser=keeper\npassword=right one\ndbname=postgres\n\
             sslmode=verify-full\nsslrootcert={}\nchannel_binding=require\n",
            server.port(),
            server.authority().display()
        ),
    );
    let whom = "keeper|t|no certificate";
    for pglock in [
        Pglock::new().flags(["--database", "service=jobs"]),
        Pglock::new().env("PGSERVICE", "jobs"),
        Pglock::new().env("PGLOCK_DATABASE", "postgresql://?service=jobs"),
    ] {
        assert_let_in(&server, pglock.env("PGSERVICEFILE", &file), whom);
    }
    // What is wrong with it is not passed over, also where a stronger source says where to connect.
    let wrong = scratch.file("wrong", 0o600, "[jobs]\nnosuch=x\n");
    for (file, flags, word) in [
        (&file, &["--database", "service=nope"][..], "nope"),
        (
            &file,
            &["--database", "service=nope", "--host", "localhost"],
            "nope",
        ),
        (&wrong, &["--database", "service=jobs"], "wrong"),
        (
            &wrong,
            &["--database", "service=jobs", "--host", "localhost"],
            "wrong",
        ),
    ] {
        let output = Pglock::new()
            .env("PGSERVICEFILE", file)
            .flags(["--port", &server.port().to_string(), "--user", "postgres"])
            .flags(flags)
            .command(["true"])
            .run();
        output.assert_failed(&[word]);
    }
}

/// The major version of the libpq that pglock has.
fn libpq() -> u32 {
    let output = Pglock::new().flag("--version").run();
    let text = output.assert_status(0).stdout();
    let version = text.split("(libpq ").nth(1).expect("a version of libpq");
    let major = version.split('.').next().expect("a number");
    major.parse().expect("a number")
}

#[test]
fn a_password_is_not_handed_out_in_clear_where_that_is_forbidden() {
    let fake = FakeServer::asking_for_password();
    let scratch = Scratch::new();
    let service = "[ours]\nrequire_auth=scram-sha-256\n";
    let file = scratch.file("services", 0o600, service);
    let marker = Marker::new();
    let at = || Pglock::at(fake.port()).env("PGLOCK_PASS", "hunter2");
    let service = || at().env("PGSERVICEFILE", &file);
    let string = "postgresql:///postgres?require_auth=scram-sha-256";
    for pglock in [
        at().env("PGREQUIREAUTH", "scram-sha-256"),
        at().flags(["--database", "require_auth=scram-sha-256"]),
        at().flags(["--database", string]),
        service().env("PGSERVICE", "ours"),
        service().flags(["--database", "service=ours"]),
    ] {
        let output = pglock.clone().command(marker.command()).run();
        output.assert_failed(&[]);
        pglock.flag("--status").run().assert_failed(&[]);
    }
    assert!(!marker.exists());
    assert!(fake.calls().iter().all(|call| call.password.is_none()));
    // Where nothing forbids it the server gets what it asks for.
    let output = at().command(["true"]).run();
    output.assert_failed(&[net::HUNG_UP]);
    let sent = |call: &net::Call| call.password.as_deref() == Some(b"hunter2");
    assert!(fake.calls().iter().any(sent));
}

#[test]
fn what_is_demanded_by_a_variable_that_libpq_does_not_know_is_refused() {
    let version = libpq();
    let witness = Witness::new();
    let server = Server::builder().tcp().start();
    for (name, value, since) in [
        ("PGREQUIREAUTH", "scram-sha-256", 16),
        ("PGREQUIREAUTH", "!password", 16),
        ("PGSSLCERTMODE", "require", 16),
        ("PGSSLROOTCERT", "system", 16),
        ("PGMINPROTOCOLVERSION", "3.2", 18),
    ] {
        if version < since {
            let output = Pglock::at(witness.port())
                .env(name, value)
                .command(["true"])
                .run();
            let since = format!("libpq {since}");
            output.assert_refused(&[&name.replace("PGSSLROOTCERT", "sslrootcert"), &since]);
        }
    }
    if version < 16 {
        let odd = std::ffi::OsStr::from_bytes(b"scram-sha-256\xff");
        let pglock = Pglock::at(witness.port()).env("PGREQUIREAUTH", odd);
        let output = pglock.command(["true"]).run();
        output.assert_refused(&["PGREQUIREAUTH"]);
    }
    assert!(!witness.was_disturbed());
    for (name, value) in [
        ("PGREQUIREAUTH", ""),
        ("PGSSLCERTMODE", "allow"),
        ("PGMINPROTOCOLVERSION", "3.0"),
        ("PGLOADBALANCEHOSTS", "disable"),
    ] {
        let output = Pglock::at(server.port())
            .env(name, value)
            .command(["true"])
            .run();
        output.assert_status(0);
    }
}
