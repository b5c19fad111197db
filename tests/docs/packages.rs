//! The packages of Debian's and Red Hat's kinds, and the image: installed, run and removed in a root folder of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::shipping::{files, succeed};
use crate::support::*;

/// The folder with the packages; `None` where there are none to try.
fn folder() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("PGLOCK_PACKAGES") else {
        eprintln!("skipped: PGLOCK_PACKAGES names no packages; see make test-packages");
        return None;
    };
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can change the root folder");
        return None;
    }
    Some(folder.into())
}

/// The one package in the folder whose file begins with the name and a version, and ends so.
fn package(name: &str, end: &str) -> Option<String> {
    let folder = folder()?;
    let begin = format!("{name}{}", env!("CARGO_PKG_VERSION"));
    let mut found = files(&folder);
    found.retain(|file| file.starts_with(&begin) && file.ends_with(end));
    let [file] = &found[..] else {
        panic!("not one {begin}*{end} in {}: {found:?}", folder.display());
    };
    Some(folder.join(file).display().to_string())
}

/// What both kinds of package install, but for the folders that are the systems' own.
const COMMON: [&str; 4] = [
    "usr/bin/pglock",
    "usr/share/bash-completion/completions/pglock",
    "usr/share/fish/vendor_completions.d/pglock.fish",
    "usr/share/man/man1/pglock.1.gz",
];

/// The libraries that a program needs, put where it looks for them.
fn bring_libraries(program: &Path, root: &Path) {
    let needed = succeed("ldd", &[&program.display().to_string()]).expect("ldd");
    for word in needed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let place = root.join(&word[1..]);
        fs::create_dir_all(place.parent().expect("a folder")).expect("mkdir");
        fs::copy(word, place).expect("copy a library");
    }
}

/// Has the program in the root folder take a lock and run itself as the command.
fn takes_a_lock(root: &Path) {
    let server = Server::builder().tcp().start();
    let words = ["chroot", &root.display().to_string(), "/usr/bin/pglock"].map(str::to_owned);
    let port = server.port().to_string();
    let flags = ["--host", "127.0.0.1", "--port", &port, "--user", "postgres"];
    let command = ["/usr/bin/pglock", "--version"];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = Pglock::new()
        .without_pglock()
        .command([&words[..], &flags, &command].concat())
        .run();
    output.assert_status(0);
    let version = format!("pglock {}", env!("CARGO_PKG_VERSION"));
    assert!(output.stdout().starts_with(&version), "{}", output.report());
}

/// What is in the root folder but for the packager's own records.
fn installed(root: &Path) -> Vec<String> {
    let mut found = files(root);
    found.retain(|path| !path.starts_with("var/"));
    found
}

fn debian(name: &str, own: &[&str], depends: &[&str]) {
    let Some(file) = package(&format!("{name}_"), ".deb") else {
        return;
    };
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.join("var/lib/dpkg").join(folder)).expect("mkdir");
    }
    fs::write(root.join("var/lib/dpkg/status"), "").expect("write");
    let root_is = format!("--root={}", root.display());
    // What it depends on is brought by hand.
    let dpkg = |words: &[&str]| {
        let common = [&root_is, "--force-depends", "--log=/dev/null"];
        succeed("dpkg", &[&common[..], words].concat())
    };
    if dpkg(&["--install", &file]).is_none() {
        return;
    }
    let mut expected = [&COMMON[..], own].concat();
    expected.push("usr/share/zsh/vendor-completions/_pglock");
    expected.sort();
    assert_eq!(installed(&root), expected);
    let needs = succeed("dpkg-deb", &["--field", &file, "Depends"]).expect("dpkg-deb");
    let needs: Vec<&str> = needs
        .split(", ")
        .filter_map(|word| word.split_whitespace().next())
        .collect();
    assert_eq!(needs, depends);
    if !depends.is_empty() {
        bring_libraries(&root.join("usr/bin/pglock"), &root);
    }
    takes_a_lock(&root);
    dpkg(&["--remove", name]);
    assert!(!root.join("usr/bin/pglock").exists());
    let mut left = installed(&root);
    left.retain(|path| path.contains("pglock"));
    assert_eq!(left, [""; 0]);

    let said = Command::new("lintian")
        .args(["--allow-root", "--fail-on", "none", &file])
        .output()
        .expect("lintian, from Debian's package of that name");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success(), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("E:")), "{text}");
}

#[test]
fn the_package_for_debian_is_installed_run_and_removed() {
    let own = [
        "usr/share/doc/pglock/CHANGELOG.md.gz",
        "usr/share/doc/pglock/changelog.gz",
        "usr/share/doc/pglock/copyright",
    ];
    debian("pglock", &own, &["libc6", "libpq5"]);
}

#[test]
fn the_static_package_for_debian_needs_nothing() {
    let own = [
        "usr/share/doc/pglock-static/CHANGELOG.md.gz",
        "usr/share/doc/pglock-static/changelog.gz",
        "usr/share/doc/pglock-static/copyright",
        "usr/share/lintian/overrides/pglock-static",
    ];
    debian("pglock-static", &own, &[]);
}

fn red_hat(name: &str, needs_libraries: bool) {
    let Some(file) = package(&format!("{name}-"), ".rpm") else {
        return;
    };
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir_all(&root).expect("mkdir");
    let root_is = format!("--root={}", root.display());
    // The database of another system knows none of this one's libraries.
    let rpm = |words: &[&str]| succeed("rpm", &[&[&root_is[..]], words].concat());
    if rpm(&["--initdb"]).is_none() {
        return;
    }
    rpm(&["--install", "--nodeps", &file]);
    let own = [
        "usr/share/licenses/pglock/LICENSE",
        "usr/share/licenses/pglock/NOTICES",
        "usr/share/zsh/site-functions/_pglock",
    ];
    let mut expected = [&COMMON[..], &own].concat();
    expected.sort();
    let mut found = installed(&root);
    found.retain(|path| path.contains("pglock"));
    assert_eq!(found, expected);
    let needs = rpm(&["--query", "--requires", name]).expect("rpm");
    let needs_libpq = needs.lines().any(|line| line.starts_with("libpq.so.5"));
    assert_eq!(needs_libpq, needs_libraries, "{needs}");
    if needs_libraries {
        bring_libraries(&root.join("usr/bin/pglock"), &root);
    }
    takes_a_lock(&root);
    rpm(&["--erase", name]);
    let mut left = installed(&root);
    left.retain(|path| path.contains("pglock"));
    assert_eq!(left, [""; 0]);
}

#[test]
fn the_package_for_red_hat_is_installed_run_and_removed() {
    red_hat("pglock", true);
}

#[test]
fn the_static_package_for_red_hat_needs_nothing() {
    red_hat("pglock-static", false);
}

#[test]
fn the_image_holds_a_program_that_runs_alone() {
    let Some(program) = std::env::var_os("PGLOCK_STATIC") else {
        eprintln!("skipped: PGLOCK_STATIC names no static program; see make test-packages");
        return;
    };
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can change the root folder");
        return;
    }
    // As the builder of an image would, of a file that copies, names an entry, and does nothing else.
    let target = Path::new(&program).parent().expect("static").to_owned();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    let mut entry = None;
    let text = fs::read_to_string(here.join("Dockerfile")).expect("Dockerfile");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] => {}
            ["FROM", "scratch"] => fs::create_dir_all(&root).expect("mkdir"),
            ["COPY", ref from @ .., to] => {
                for from in from {
                    let source = match from.strip_prefix("target/static/") {
                        Some(file) => target.join(file),
                        None => here.join(from),
                    };
                    let mut place = root.join(&to[1..]);
                    if to.ends_with('/') {
                        place = place.join(source.file_name().expect("a name"));
                    }
                    fs::create_dir_all(place.parent().expect("a folder")).expect("mkdir");
                    fs::copy(source, place).expect("copy");
                }
            }
            ["ENTRYPOINT", list] => entry = Some(list.to_owned()),
            _ => panic!("{line}"),
        }
    }
    assert_eq!(entry.as_deref(), Some("[\"/usr/bin/pglock\"]"));
    assert!(
        files(&root).contains(&"usr/share/doc/pglock/NOTICES".to_owned()),
        "{:?}",
        files(&root)
    );
    takes_a_lock(&root);
}
