//! Tells the program its version as git has it.

use std::process::Command;
use std::{env, fs};

fn main() {
    for changed in ["build.rs", ".git/HEAD", ".git/refs"] {
        println!("cargo::rerun-if-changed={changed}");
    }
    println!("cargo::rustc-env=PGLOCK_BUILD_VERSION={}", version());
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
