//! Tells the program its version as git has it, makes the chapters of its man page of the manual, and has it do without a shared
//! library that it has no use for.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

#[path = "src/cli/roff.rs"]
mod roff;

const MANUAL: &str = "doc/manual.md";

fn main() {
    let sources = ["build.rs", "src/cli/roff.rs", MANUAL];
    for changed in sources.into_iter().chain([".git/HEAD", ".git/refs"]) {
        println!("cargo::rerun-if-changed={changed}");
    }
    println!("cargo::rustc-env=PGLOCK_BUILD_VERSION={}", version());
    // Nothing unwinds, so the tables that the C library brings for it need no index.
    if cfg!(feature = "static") && env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
    }
    let manual = fs::read_to_string(MANUAL).expect("the manual");
    let folder = env::var_os("OUT_DIR").expect("a folder");
    fs::write(Path::new(&folder).join("manual.man"), roff::roff(&manual)).expect("write");
    link_unwinder();
}

/// Links the unwinder, which Rust's library has for the trace of a panic, into the program, where the compiler has it as an
/// archive. As the shared library that it is by default each start would load it, and look into it for every symbol of
/// libpq's libraries, although nothing unwinds. A static program has it anyway.
fn link_unwinder() {
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    let is_static = target("FEATURE")
        .split(',')
        .any(|name| name == "crt-static");
    if target("OS") != "linux" || target("ENV") != "gnu" || is_static {
        return;
    }
    let compiler = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let has_archive = Command::new(compiler)
        .arg("-print-file-name=libgcc_eh.a")
        .output()
        // Of one that it does not have it says the name only.
        .is_ok_and(|output| output.stdout.contains(&b'/'));
    if has_archive {
        println!("cargo::rustc-link-lib=static=gcc_eh");
    }
}

/// `0.1.0`, or `0.1.0 (v0.1.0-3-gabc1234)` between releases; as git has it, where there is a git to ask.
fn version() -> String {
    let package = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    // Unpacked inside of another repository, it would be that one's version.
    let described = fs::exists(".git")
        .unwrap_or(false)
        .then(|| {
            Command::new("git")
                .args(["describe", "--tags", "--always", "--dirty"])
                .output()
        })
        .and_then(Result::ok)
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty() && *text != format!("v{package}"));
    match described {
        Some(described) => format!("{package} ({described})"),
        None => package,
    }
}
