//! Tells the program its version as git has it, where there is a git to ask: `0.1.0`, or
//! `0.1.0 (v0.1.0-3-gabc1234)` between releases.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/refs");
    let package = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let described = Command::new("git")
        .args(["describe", "--tags", "--always", "--dirty"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty() && *text != format!("v{package}"));
    let version = match described {
        Some(described) => format!("{package} ({described})"),
        None => package,
    };
    println!("cargo::rustc-env=PGLOCK_BUILD_VERSION={version}");
}
