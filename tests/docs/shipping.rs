//! What is installed and packed: everything is there, it works, and it goes away again; and the static program needs
//! nothing around it.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::*;

/// All that `make install` installs, by the variable that says where.
const INSTALLED: [(&str, &str); 5] = [
    ("bindir", "pglock"),
    ("mandir", "man1/pglock.1"),
    ("bashcompletiondir", "pglock"),
    ("fishcompletiondir", "pglock.fish"),
    ("zshcompletiondir", "_pglock"),
];

/// What the program prints for `--generate`, in a file of this folder.
fn asset(scratch: &Scratch, what: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pglock"))
        .args(["--generate", what])
        .output()
        .expect("a program");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let file = scratch.file(what, 0o644, output.stdout);
    file.display().to_string()
}

/// Runs a program in the repository; returns what it says on both streams, and whether it was content. `None` where there is
/// no such program.
fn run(program: &str, words: &[&str]) -> Option<(bool, String)> {
    let output = Command::new(program)
        .args(words)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("MAKEFLAGS")
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no {program}");
        return None;
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Some((output.status.success(), text))
}

/// As [`run`], for what must go well.
#[track_caller]
pub(super) fn succeed(program: &str, words: &[&str]) -> Option<String> {
    let (content, text) = run(program, words)?;
    assert!(content, "{program} {words:?}: {text}");
    Some(text)
}

/// A folder such as cargo builds into, after the build.
fn built(scratch: &Scratch) -> PathBuf {
    let target = scratch.path().join("target");
    for folder in ["release", "static"] {
        fs::create_dir_all(target.join(folder)).expect("mkdir");
        fs::copy(
            env!("CARGO_BIN_EXE_pglock"),
            target.join(folder).join("pglock"),
        )
        .expect("copy");
    }
    target
}

/// The files in a folder and those in it, by their paths below it, sorted.
pub(super) fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("read a folder").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path();
                let below = path.strip_prefix(folder).expect("a path below");
                found.push(below.display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn everything_is_installed_and_uninstalled() {
    let scratch = Scratch::new();
    let stage = scratch.path().join("stage with a space");
    let target = format!("CARGO_TARGET_DIR={}", built(&scratch).display());
    let into = format!("DESTDIR={}", stage.display());
    let common = ["-s", &target, &into];
    let by_prefix = ["PREFIX=/opt/pglock".to_owned()];
    let by_name: Vec<String> = INSTALLED
        .iter()
        .map(|(variable, _)| format!("{variable}=/etc/{variable}"))
        .collect();
    let below_prefix = [
        "bin/pglock",
        "share/bash-completion/completions/pglock",
        "share/fish/vendor_completions.d/pglock.fish",
        "share/man/man1/pglock.1",
        "share/zsh/site-functions/_pglock",
    ];
    let below_prefix = below_prefix.map(|path| format!("opt/pglock/{path}"));
    let mut below_name = INSTALLED.map(|(variable, path)| format!("etc/{variable}/{path}"));
    below_name.sort();
    for goal in ["install", "install-static"] {
        for (where_to, expected) in [(&by_prefix[..], &below_prefix), (&by_name[..], &below_name)] {
            let where_to: Vec<&str> = where_to.iter().map(String::as_str).collect();
            let words = [&common[..], &where_to].concat();
            let Some(_) = succeed("make", &[&words[..], &[goal]].concat()) else {
                return;
            };
            assert_eq!(files(&stage), expected);
            let program = expected.iter().find(|path| path.contains("/bin"));
            let program = stage.join(program.expect("a program"));
            let version = succeed(&program.display().to_string(), &["--version"]);
            let version = version.expect("a version");
            assert!(version.starts_with("pglock "), "{version}");
            succeed("make", &[&words[..], &["uninstall"]].concat());
            assert_eq!(files(&stage), [""; 0]);
        }
    }
}

#[test]
fn the_static_program_is_installed_where_it_is_asked_for() {
    let scratch = Scratch::new();
    let folder = built(&scratch);
    fs::write(folder.join("release/pglock"), "exit 1").expect("write");
    let target = format!("CARGO_TARGET_DIR={}", folder.display());
    let into = format!("DESTDIR={}", scratch.path().display());
    if succeed("make", &["-s", &target, &into, "install-static"]).is_some() {
        let program = scratch.path().join("usr/local/bin/pglock");
        succeed(&program.display().to_string(), &["--version"]);
    }
}

#[test]
fn the_shells_look_where_their_completions_are_installed() {
    let scratch = Scratch::new();
    let target = format!("CARGO_TARGET_DIR={}", built(&scratch).display());
    let stage = scratch.path().join("stage");
    let into = format!("DESTDIR={}", stage.display());
    let fish = "env -u XDG_DATA_DIRS fish -c 'string join \\n -- $fish_complete_path'";
    let shells = [
        ("zsh", "_pglock", "zsh -fc 'print -l -- $fpath'"),
        ("fish", "pglock.fish", fish),
    ];
    for prefix in ["/usr", "/usr/local"] {
        let prefix_is = format!("prefix={prefix}");
        let words = ["-s", &target, &into, &prefix_is, "install"];
        let Some(_) = succeed("make", &words) else {
            return;
        };
        for (shell, file, list) in shells {
            if succeed(shell, &["--version"]).is_none() {
                continue;
            }
            let folders = succeed("sh", &["-c", list]).expect("a shell");
            let found = folders
                .lines()
                .filter(|folder| stage.join(&folder[1..]).join(file).exists());
            assert_eq!(found.count(), 1, "{shell} looks into {folders}");
        }
        // It has no list that could be asked: it looks below all of XDG_DATA_DIRS, by default these two.
        let share = stage.join(&prefix[1..]).join("share");
        assert!(share.join("bash-completion/completions/pglock").exists());
        fs::remove_dir_all(&stage).expect("remove");
    }
}

#[test]
fn the_archive_holds_everything_and_fits_its_sum() {
    let scratch = Scratch::new();
    let target = built(&scratch);
    let words = [
        "tests/tools/dist.sh",
        &target.display().to_string(),
        "machine",
    ];
    let Some(_) = succeed("sh", &words) else {
        return;
    };
    let dist = target.join("dist").display().to_string();
    let name = format!("pglock-{}-machine", env!("CARGO_PKG_VERSION"));
    let check =
        format!("cd '{dist}' && sha256sum -c {name}.tar.gz.sha256 && tar xzf {name}.tar.gz");
    succeed("sh", &["-c", &check]);
    let unpacked = files(&target.join("dist").join(&name));
    let expected = [
        "CHANGELOG.md",
        "LICENSE",
        "NOTICES",
        "README.md",
        "completions/_pglock",
        "completions/pglock.bash",
        "completions/pglock.fish",
        "pglock",
        "pglock.1",
    ];
    assert_eq!(unpacked, expected);
    let notices = target.join("dist").join(name).join("NOTICES");
    let notices = fs::read_to_string(notices).expect("notices");
    for words in [
        "PostgreSQL Global Development Group",
        "The OpenSSL Project Authors",
        "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION",
        "GNU C Library is free software",
        "GNU LESSER GENERAL PUBLIC LICENSE",
        "The Rust Project Developers",
    ] {
        assert!(notices.contains(words), "{words}");
    }
    let tree = ["--locked", "--edges", "normal", "--features", "static"];
    let tree = [&["tree"], &tree[..], &["--prefix", "none"]].concat();
    let tree = succeed("cargo", &tree).expect("the crates");
    for line in tree.lines() {
        let (name, version) = line.split_once(" v").expect("a crate");
        let version = version.split(' ').next().expect("a version");
        // pglock is what the file is of, and libpq has a heading of its own.
        let heading = match name {
            "pglock" => continue,
            "pq-src" => format!("libpq {}", version.rsplit('-').next().expect("libpq's")),
            _ => format!("{name} {version}"),
        };
        has_notice(&notices, &heading);
    }
}

/// That a text stands under a heading that begins so.
#[track_caller]
fn has_notice(notices: &str, heading: &str) {
    let (_, below) = notices
        .split_once(&format!("\n{heading} ("))
        .unwrap_or_else(|| panic!("there is no notice of {heading}"));
    let text = below.split("\n==").nth(1).unwrap_or_default();
    assert!(text.contains("opyright"), "{heading}: {text}");
}

#[test]
fn no_crate_that_was_linked_lacks_its_notice() {
    let Some(program) = std::env::var_os("PGLOCK_STATIC") else {
        eprintln!("skipped: PGLOCK_STATIC names no static program; see make test-static");
        return;
    };
    let Some(notices) = succeed("sh", &["tests/tools/notices.sh", "static"]) else {
        return;
    };
    // What was made for the program, and not for building it, has a folder of its own.
    let build = Path::new(&program).with_file_name("build");
    let crates: Vec<String> = files(&build)
        .into_iter()
        .filter(|path| path.contains("/release/deps/lib") && path.ends_with(".rlib"))
        .filter_map(|path| {
            let name = path.rsplit("/lib").next()?;
            Some(name.split('-').next()?.replace('_', "-"))
        })
        .collect();
    assert!(crates.iter().any(|name| name == "lexopt"), "{crates:?}");
    for name in crates {
        let name = if name == "pq-src" { "libpq" } else { &name };
        let found = notices
            .lines()
            .any(|line| line.starts_with(&format!("{name} ")));
        assert!(found, "there is no notice of {name}");
    }
}

#[test]
fn the_man_page_has_no_fault() {
    let scratch = Scratch::new();
    let page = asset(&scratch, "man");
    let words = ["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", &page];
    let quiet = format!("MANWIDTH=80 man {} 2>&1 >/dev/null", words.join(" "));
    // Debian's small images have something else in the place of man.
    let is_there = succeed("sh", &["-c", "man --version 2>/dev/null || :"]);
    if !is_there.is_some_and(|text| text.starts_with("man ")) {
        eprintln!("skipped: there is no man");
        return;
    }
    let said = succeed("sh", &["-c", &quiet]);
    assert_eq!(said.as_deref(), Some(""));
    // Printed twice is how it makes letters bold, where it is not asked to leave that.
    let plain = format!("man -l -Tascii '{page}' | sed 's/.\\x08//g'");
    let text = succeed("sh", &["-c", &plain]).expect("a page");
    for word in ["--lockname", "PGLOCK_PASS", "EXIT STATUS", "124"] {
        assert!(text.contains(word), "{word} is not in it:\n{text}");
    }
}

#[test]
fn the_completions_can_be_read_by_their_shells() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = asset(&scratch, shell);
        if let Some(said) = succeed(shell, &["-n", &script]) {
            assert_eq!(said, "", "{shell}");
        }
    }
}

/// What bash offers for the last of these words.
fn bash_offers(words: &str) -> Option<String> {
    let scratch = Scratch::new();
    // As bash splits them.
    let words = words.replace('=', " = ");
    let script = format!(
        "source '{}'; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _pglock; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        asset(&scratch, "bash")
    );
    succeed("bash", &["--norc", "-c", &script])
}

/// What fish offers.
fn fish_offers(words: &str) -> Option<String> {
    let scratch = Scratch::new();
    let script = format!(
        "source '{}'; complete -C '{words}'",
        asset(&scratch, "fish")
    );
    succeed("fish", &["--no-config", "-c", &script])
}

#[test]
fn bash_and_fish_offer_flags_and_then_commands() {
    for offers in [bash_offers, fish_offers] {
        for (words, offer) in [
            ("pglock --slo", "--slots"),
            ("pglock --wait 5 --lockn", "--lockname"),
            ("pglock --on-loss c", "continue"),
            ("pglock --on-loss=c", "continue"),
            ("pglock --wait 5 en", "env"),
            ("pglock --wait=5 en", "env"),
            ("pglock -- en", "env"),
            ("pglock --block en", "env"),
        ] {
            let Some(text) = offers(words) else {
                continue;
            };
            let is_there = text.lines().any(|line| {
                let word = line.split_whitespace().next().unwrap_or_default();
                // fish offers the flag with its value.
                word == offer || word.ends_with(&format!("={offer}"))
            });
            assert!(is_there, "{words}: {text}");
        }
        // What follows the command is the command's.
        let text = offers("pglock env --slo").unwrap_or_default();
        assert!(!text.contains("--slots"), "{text}");
    }
}

#[test]
fn zsh_completes_flags_and_then_commands() {
    if succeed("zsh", &["--version"]).is_none() {
        return;
    }
    let scratch = Scratch::new();
    fs::rename(asset(&scratch, "zsh"), scratch.path().join("_pglock")).expect("rename");
    let folder = scratch.path().display();
    for (words, completed) in [
        ("pglock --blo", "pglock --block "),
        ("pglock --wait 5 --lockn", "--lockname="),
        ("pglock --on-loss c", "--on-loss continue "),
        ("pglock --on-loss=c", "--on-loss=continue "),
        ("pglock --wait 5 nohu", "nohup "),
        ("pglock -- nohu", "nohup "),
    ] {
        // Typed at a terminal of its own; it is there when all that is expected has come out of it.
        let script = format!(
            "zmodload zsh/zpty; zpty shell env TERM=dumb zsh -f -i
            zpty -w shell 'fpath=(\"{folder}\" $fpath); autoload -U compinit; compinit -D -u; PS1=; print rea''dy'
            zpty -r shell text '*ready*'; zpty -n -w shell $'{words}\\t'; zpty -r shell text '*{completed}*'"
        );
        succeed("timeout", &["20", "zsh", "-f", "-c", &script]);
    }
}

// The static program

/// The only name that there is.
const HOST: &str = "db.pglock.test";

/// A DNS server that knows one name. It stops when dropped.
struct Names {
    address: String,
    stop: Arc<AtomicBool>,
}

impl Names {
    fn start() -> Names {
        // All of 127/8 is this machine; resolv.conf knows port 53 only.
        let socket = (1..255)
            .find_map(|last| UdpSocket::bind((format!("127.77.53.{last}"), 53)).ok())
            .expect("an address of loopback whose port 53 is free");
        let patience = Some(Duration::from_millis(100));
        socket.set_read_timeout(patience).expect("a timeout");
        let address = socket.local_addr().expect("an address").ip().to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut buffer = [0; 512];
                if let Ok((count, asker)) = socket.recv_from(&mut buffer)
                    && let Some(answer) = answer(&buffer[..count])
                {
                    let _ = socket.send_to(&answer, asker);
                }
            }
        });
        Names { address, stop }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The answer to a question, in the format of RFC 1035: 127.0.0.1 for the address of [`HOST`], nothing for what else there is
/// to know of it, and that there is no other name.
fn answer(message: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let length = message.get(HEADER..)?.iter().position(|byte| *byte == 0)? + 1;
    let question = message.get(HEADER..HEADER + length + 4)?;
    let labels = HOST.split('.');
    let mut known: Vec<u8> = labels
        .flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat())
        .collect();
    known.push(0);
    let is_known = question[..length].eq_ignore_ascii_case(&known);
    let wants_address = question[length..] == [0, 1, 0, 1];
    let has_answer = is_known && wants_address;
    let code = if is_known { 0 } else { 3 };
    let mut answer = message[..2].to_vec();
    answer.extend([0x85, 0x80 | code, 0, 1, 0, has_answer.into(), 0, 0, 0, 0]);
    answer.extend(question);
    if has_answer {
        answer.extend([
            0xc0,
            HEADER as u8,
            0,
            1,
            0,
            1,
            0,
            0,
            0,
            60,
            0,
            4,
            127,
            0,
            0,
            1,
        ]);
    }
    Some(answer)
}

/// The static program alone in a root folder, with a resolv.conf, hosts and a certificate: TLS with the name verified, SCRAM,
/// and itself as the command.
fn in_an_empty_root(hosts: &str, names: &str) {
    let Some(program) = std::env::var_os("PGLOCK_STATIC") else {
        eprintln!("skipped: PGLOCK_STATIC names no static program; see make test-static");
        return;
    };
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can change the root folder");
        return;
    }
    let server = Server::builder()
        .tls(HOST)
        .hba("hostssl all scram all scram-sha-256")
        .hba("host all scram all reject")
        .start();
    server.psql(
        "set password_encryption = 'scram-sha-256'; create role scram login password 'se cret'",
    );
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir_all(root.join("etc")).expect("mkdir");
    fs::copy(program, root.join("pglock")).expect("copy the program");
    fs::copy(server.authority(), root.join("ca.crt")).expect("copy the certificate");
    fs::write(root.join("etc/hosts"), hosts).expect("write hosts");
    fs::write(
        root.join("etc/resolv.conf"),
        format!("nameserver {names}\n"),
    )
    .expect("write");
    let run = |password: &str, host: &str| {
        let (root, port) = (root.display().to_string(), server.port().to_string());
        let program = ["chroot", &root, "/pglock", "--sslmode", "verify-full"];
        let to = ["--host", host, "--port", &port, "--user", "scram"];
        Pglock::new()
            .without_pglock()
            .env("PGSSLROOTCERT", "/ca.crt")
            .env("PGLOCK_PASS", password)
            .command([&program[..], &to, &["/pglock", "--version"]].concat())
            .run()
    };
    let output = run("se cret", HOST);
    output.assert_status(0);
    assert!(
        output.stdout().starts_with("pglock "),
        "{}",
        output.report()
    );
    run("wrong", HOST).assert_failed(&["password authentication failed"]);
    // The address is right, and the certificate is for the name.
    run("se cret", "127.0.0.1").assert_failed(&["certificate", HOST]);
    run("se cret", "other.pglock.test").assert_failed(&["other.pglock.test"]);
}

#[test]
fn the_static_program_finds_a_name_in_a_file() {
    // Nobody answers there.
    in_an_empty_root(&format!("127.0.0.1 {HOST}\n"), "127.77.53.0");
}

#[test]
fn the_static_program_finds_a_name_by_dns() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can serve names");
        return;
    }
    let names = Names::start();
    in_an_empty_root("127.0.0.1 localhost\n", &names.address);
}

#[test]
fn the_static_program_needs_no_shared_library() {
    let Some(program) = std::env::var_os("PGLOCK_STATIC") else {
        eprintln!("skipped: PGLOCK_STATIC names no static program; see make test-static");
        return;
    };
    let program = program.to_string_lossy().into_owned();
    if let Some((_, said)) = run("ldd", &[&program]) {
        assert!(
            said.contains("statically linked") || said.contains("not a dynamic executable"),
            "{said}"
        );
    }
    let size = fs::metadata(&program).expect("its size").len();
    assert!(size < 5_000_000, "{size} bytes");
}

#[test]
fn the_static_program_s_libraries_check_their_buffers_and_stack() {
    let Some(program) = std::env::var_os("PGLOCK_STATIC") else {
        eprintln!("skipped: PGLOCK_STATIC names no static program; see make test-static");
        return;
    };
    // The program itself has no names any more; what it was linked from does.
    let build = Path::new(&program).with_file_name("build");
    let made = files(&build);
    // musl has no functions that check.
    let checked: &[&str] = if cfg!(target_env = "musl") {
        &[]
    } else {
        &["__memcpy_chk"]
    };
    for name in ["libpq.a", "libssl.a", "libcrypto.a"] {
        let mut found = made.iter().filter(|path| path.ends_with(name)).peekable();
        assert!(found.peek().is_some(), "no {name} in {}", build.display());
        for path in found {
            let library = fs::read(build.join(path)).expect("read a library");
            for called in [&["__stack_chk_fail"], checked].concat() {
                let symbol = format!("\0{called}\0").into_bytes();
                let calls = library.windows(symbol.len()).any(|name| name == symbol);
                assert!(calls, "{path} calls no {called}");
            }
        }
    }
}

#[test]
fn the_static_program_loads_no_modules_of_the_host() {
    let Some(program) = std::env::var_os("PGLOCK_STATIC") else {
        eprintln!("skipped: PGLOCK_STATIC names no static program; see make test-static");
        return;
    };
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can put another nsswitch.conf in place");
        return;
    }
    let server = Server::builder().tcp().start();
    let scratch = Scratch::new();
    // Debian's own order for users, and modules for hosts before what is built in.
    let modules = "passwd: files systemd\nhosts: mymachines resolve files myhostname dns\n";
    let file = scratch.file("nsswitch.conf", 0o644, modules);
    let run = |user: &[&str]| {
        let mount = "mount --bind \"$0\" /etc/nsswitch.conf && exec setpriv --reuid 4242 \"$@\"";
        let file = file.display().to_string();
        let program = program.to_string_lossy();
        let unshare = ["unshare", "-m", "sh", "-c", mount, &file, &program];
        Pglock::at(server.port())
            .without_pglock()
            .env_remove("PGLOCK_USER")
            .command([&unshare[..], user, &["--host", "localhost", "true"]].concat())
            .run()
    };
    run(&["--user", "postgres"]).assert_status(0);
    // Nobody knows this one, so every module would be asked.
    run(&[]).assert_failed(&["4242"]);
}
