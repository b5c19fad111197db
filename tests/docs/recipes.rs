//! The examples and recipes of the README, run as they stand there: only hosts, ports and folders are others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};

use crate::support::*;

const README: &str = include_str!("../../README.md");

/// The blocks of code in this language below a heading, in their order.
fn blocks(heading: &str, language: &str) -> Vec<&'static str> {
    let section = README.split(&format!("\n## {heading}\n")).nth(1);
    let section = section.expect("the heading");
    let section = section.split("\n## ").next().expect("a section");
    let fence = format!("```{language}\n");
    let blocks = section.split(fence.as_str()).skip(1);
    blocks
        .map(|rest| rest.split("```").next().expect("the end of a block"))
        .collect()
}

/// A host of the recipes: its folder of programs has pglock and a script.
struct Host {
    scratch: Scratch,
    port: String,
}

impl Host {
    fn new(server: &Server) -> Host {
        let scratch = Scratch::new();
        let program = scratch.path().join("pglock");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pglock"), program).expect("link pglock");
        Host {
            scratch,
            port: server.port().to_string(),
        }
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.scratch.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("write a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    /// A program in an environment of these variables alone, and those that lead to the server.
    fn pglock(&self, server: &Server, words: &[&str], variables: &[(&str, &str)]) -> Pglock {
        let mut pglock = Pglock::new()
            .without_pglock()
            .command(words)
            .dir(self.scratch.path());
        for (name, value) in variables {
            pglock = pglock.env(name, value);
        }
        let path = format!("{}:/usr/bin:/bin", self.scratch.path().display());
        pglock
            .env("PATH", path)
            .env("PGLOCK_HOST", server.socket_dir())
            .env("PGLOCK_PORT", &self.port)
            .env("PGLOCK_USER", "postgres")
    }

    /// What a recipe names by its path, in this host's folder.
    fn here(&self, text: &str) -> String {
        let folder = self.scratch.path().display();
        text.replace("/usr/local/bin", &folder.to_string())
    }
}

/// The crc32 of zlib, in SQL.
const CRC32: &str = "create function crc32(data bytea) returns bigint language plpgsql as $$
    declare crc bigint := 4294967295;
    begin
        for place in 0..length(data) - 1 loop
            crc := crc # get_byte(data, place);
            for bit in 1..8 loop
                crc := (crc >> 1) # (case crc & 1 when 1 then 3988292384 else 0 end);
            end loop;
        end loop;
        return crc # 4294967295;
    end $$";

/// The `hashCode` of Java's strings, in SQL; not negative here.
const HASH_CODE: &str = "create function hash_code(text) returns bigint language plpgsql as $$
    declare code bigint := 0;
    begin
        for place in 1..length($1) loop
            code := (code * 31 + ascii(substr($1, place, 1))) & 4294967295;
        end loop;
        return code;
    end $$";

#[test]
fn the_locks_of_others_are_the_keys_that_sql_says() {
    let server = Server::new();
    server.psql("create database app");
    let mut session = server.session_in("app");
    session.exec(CRC32);
    session.exec(HASH_CODE);
    assert_eq!(session.exec("select crc32('123456789')"), "3421780262");
    let manual = include_str!("../../doc/manual.md");
    let section = manual.split("\n### The locks of others\n").nth(1);
    let blocks = section.and_then(|section| section.split("\n### ").next());
    let mut blocks = blocks.expect("the section").split("```sh\n").skip(1);
    let mut block = || blocks.next().and_then(|rest| rest.split("```").next());
    let (function, examples) = (block().expect("crc32"), block().expect("examples"));
    let examples: Vec<&str> = examples.lines().collect();
    let host = Host::new(&server);
    host.script("job", "echo ran");
    let mut count = 0;
    for example in examples.chunks(2) {
        let &[program, line] = example else {
            panic!("{example:?} is not a comment and its line");
        };
        let key = match program {
            "# Rails' migrator" => "2053462845 * crc32('app')",
            "# sqlx" => "x'3d32ad9e'::int * crc32('app')",
            "# golang-migrate, given postgres://.../app" => {
                "(1486364155 * crc32('public\\000schema_migrations\\000/app')) & 4294967295"
            }
            "# with_advisory_lock('nightly')" => "(crc32('nightly') & 2147483647)::int, 0",
            "# Flyway" => {
                "x'466c79776179'::bigint + hash_code('\"public\".\"flyway_schema_history\"')"
            }
            "# goose" => "5887940537704921958",
            _ => panic!("{program}"),
        };
        let script = format!("{function}{line}");
        let job = host.pglock(&server, &["sh", "-ec", &script], &[]);
        let locked = session.exec(&format!("select pg_try_advisory_lock({key})"));
        assert_eq!(locked, "t", "{program}");
        job.run().assert_status(0).assert_stdout("");
        session.exec("select pg_advisory_unlock_all()");
        job.run().assert_status(0).assert_stdout("ran\n");
        count += 1;
    }
    assert_eq!(count, 6);
}

/// What the file holds that the scripts of a test write to.
fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_line_of_cron_makes_one_backup_for_all_hosts() {
    let server = Server::new();
    let host = Host::new(&server);
    let [table] = blocks("Three examples", "crontab")[..] else {
        panic!("not one table");
    };
    let mut variables = Vec::new();
    let mut jobs = Vec::new();
    for line in table.lines() {
        match line.split_once('=') {
            Some((name, value)) if !name.contains(' ') => variables.push((name, value)),
            _ => jobs.push(line.splitn(6, ' ').last().expect("a command").trim()),
        }
    }
    let [job] = jobs[..] else {
        panic!("not one job: {jobs:?}");
    };
    let made = host.scratch.path().join("made");
    host.script(
        "backup.sh",
        &format!("echo made >> {}; exec cat", made.display()),
    );
    let cron = host.pglock(&server, &["/bin/sh", "-c", job], &variables);
    let mut first = cron.clone().open_input().spawn();
    eventually("the backup is being made", PATIENCE, || {
        (lines(&made).len() == 1).then_some(())
    });
    cron.run()
        .assert_status(0)
        .assert_stdout("")
        .assert_log(&[]);
    // Nor is it made again right after it.
    first.close_input();
    eventually("the backup is made", PATIENCE, || {
        let names = first.processes().into_iter().map(processes::name);
        (!names.into_iter().any(|name| name == "cat")).then_some(())
    });
    cron.run().assert_status(0).assert_log(&[]);
    assert_eq!(lines(&made), ["made"]);
    // A shell may have become pglock, or have it as its child.
    let shell = first.pid();
    let pglock = match processes::name(shell).as_str() {
        "pglock" => shell,
        _ => processes::children(shell)[0],
    };
    kill(pglock, Signal::SIGTERM).expect("kill pglock");
    first.wait().assert_status(0).assert_log(&[]);
}

#[test]
fn a_cluster_is_given_by_all_its_hosts() {
    let server = Server::new();
    let host = Host::new(&server);
    host.script("backup.sh", "echo made");
    let blocks = blocks("Servers and poolers", "bash");
    let lines: Vec<_> = blocks.iter().flat_map(|block| block.lines()).collect();
    assert_eq!(lines.len(), 2);
    let dir = server.socket_dir();
    let there = format!("/nowhere,{},/nowhere", dir.display());
    for line in lines {
        let line = line.replace("db1,db2,db3", &there);
        let line = line.replace("--user ops", "--user postgres");
        let words = ["/bin/sh", "-c", &line];
        let output = host.pglock(&server, &words, &[]).run();
        output.assert_status(0).assert_stdout("made\n");
    }
}

/// All steps that migrate, from the shell's to those of the pipelines.
fn migrations() -> Vec<&'static str> {
    let [migration, _] = blocks("Three examples", "sh")[..] else {
        panic!("not a migration and a daemon");
    };
    let pipelines = blocks("Recipes", "yaml").into_iter().flat_map(str::lines);
    let steps = pipelines.filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("- pglock ")
            .or_else(|| line.strip_prefix("run: pglock "))
    });
    let shell = migration.trim().strip_prefix("pglock ");
    [shell.expect("a step")].into_iter().chain(steps).collect()
}

#[test]
fn the_migration_runs_on_one_host_and_the_others_find_it_done() {
    let server = Server::new();
    let migrations = migrations();
    assert_eq!(migrations.len(), 3);
    for step in migrations {
        let host = Host::new(&server);
        let log = host.scratch.path().join("log");
        let log_path = log.display();
        host.script(
            "migrate",
            &format!(
                "echo \"begin $1\" >> {log_path}; [ -e done ] || {{ touch done; echo migrated >> {log_path}; }}; \
                 echo end >> {log_path}"
            ),
        );
        let step = format!("pglock {step}");
        let hosts: Vec<Running> = (0..5)
            .map(|_| host.pglock(&server, &["sh", "-ec", &step], &[]).spawn())
            .collect();
        for running in hosts {
            running.wait().assert_status(0);
        }
        let mut expected = vec!["begin up", "migrated", "end"];
        expected.extend(["begin up", "end"].repeat(4));
        assert_eq!(lines(&log), expected, "one after the other");
    }
}

#[test]
fn the_daemon_runs_on_one_host_and_on_the_next_when_its_pglock_is_killed() {
    let server = Server::new();
    let [_, daemon] = blocks("Three examples", "sh")[..] else {
        panic!("not a migration and a daemon");
    };
    let host = Host::new(&server);
    let run = || {
        host.pglock(&server, &["sh", "-ec", &format!("exec {daemon}")], &[])
            .open_input()
    };
    // Of two at once the second ends with 9. One that was killed may not have been reaped yet.
    host.script(
        "mailer",
        "runs() { kill -0 $1 2>/dev/null && ! grep -qs '^State:.Z' /proc/$1/status; }
        [ ! -e pid ] || ! runs $(cat pid) || exit 9
        echo $$ > pid; echo mails; exec cat",
    );
    let first = run().spawn();
    first.wait_for_output("mails");
    let second = run().spawn();
    second.wait_for_line("Obtaining lock without timeout..");
    first.signal(Signal::SIGKILL);
    second.wait_for_output("mails");
    second.finish().assert_status(0);
}

#[test]
fn the_unit_of_systemd_runs_its_report() {
    let server = Server::new();
    let host = Host::new(&server);
    let units = blocks("Recipes", "ini");
    let [service, timer, daemon] = units[..] else {
        panic!("not three units");
    };
    let settings_of = |unit: &'static str| -> BTreeMap<&str, &str> {
        let lines = unit.lines().filter_map(|line| line.split_once('='));
        lines.collect()
    };
    let settings = settings_of(service);
    // Or the command would get systemd's signal from pglock too.
    assert_eq!(settings["KillMode"], "mixed");
    assert_eq!(settings_of(daemon)["KillMode"], "mixed");
    let words = host.here(settings["ExecStart"]);
    let words: Vec<&str> = words.split(' ').collect();
    let variables: Vec<(&str, &str)> = settings["Environment"]
        .split(' ')
        .map(|entry| entry.split_once('=').expect("NAME=value"))
        .collect();
    host.script("report.sh", "echo the report");
    host.pglock(&server, &words, &variables)
        .run()
        .assert_status(0)
        .assert_stdout("the report\n");

    // What systemd itself says of both, where it is installed.
    let units = host.scratch.path();
    fs::write(units.join("report.service"), host.here(service)).expect("write the service");
    fs::write(units.join("report.timer"), timer).expect("write the timer");
    host.script("mailer", "");
    fs::write(units.join("mailer.service"), host.here(daemon)).expect("write the daemon");
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .args(["report.service", "report.timer", "mailer.service"].map(|unit| units.join(unit)))
        .output();
    match verified {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && !said.contains("report.") && !said.contains("mailer."),
                "{said}"
            );
        }
        Err(_) => eprintln!("not verified: there is no systemd-analyze"),
    }
}

/// The words of a list such as `["a", "b"]`.
fn list(text: &str) -> Vec<&str> {
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    inner
        .split(", ")
        .map(|word| word.trim_matches('"'))
        .collect()
}

#[test]
fn the_words_of_the_containers_are_flags_and_a_command() {
    let server = Server::new();
    let host = Host::new(&server);
    host.script("job", "echo \"$PGLOCK_LOCK_HELD\"");
    host.script("migrate", "echo \"$PGLOCK_LOCK_HELD\"");
    let dockerfile = blocks("Recipes", "dockerfile").concat();
    let entry = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("ENTRYPOINT "));
    let yaml = blocks("Recipes", "yaml").concat();
    let commands = yaml
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("command: "));
    let lists: Vec<&str> = entry.into_iter().chain(commands).collect();
    assert_eq!(lists.len(), 3);
    let folder = host.scratch.path().display().to_string();
    for text in lists {
        // In the container both lie in the root folder.
        let words: Vec<String> = list(text)
            .into_iter()
            .map(|word| {
                word.replacen(
                    '/',
                    &format!("{folder}/"),
                    usize::from(word.starts_with('/')),
                )
            })
            .filter(|word| word != "--user" && word != "ops")
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        host.pglock(&server, &words, &[])
            .run()
            .assert_status(0)
            .assert_stdout("true\n");
    }
}
