//! `--help` and `--version`.

use crate::support::*;

/// The Go tool's text, to the byte.
const ORIGINAL: &str = r#"pglock runs a command while holding a lock in a PostgreSQL database.
Any concurrent invocations that fail to obtain a lock will not run
the given command and will exit with return code 0.

The flags below can be configured as environment variables with the PGLOCK_ prefix.
PGLOCK_PASS needs to be configured to authenticate to the database.

      --database string   Database name to connect to on PostgreSQL. (default "postgres")
      --host string       Hostname of the PostgreSQL instance. (default "localhost")
      --lockid uint32     The numeric lock ID to claim in PostgreSQL. (default 1)
      --port uint16       Port the PostgreSQL instance is listening on. (default 5432)
      --sslmode string    The SSL mode of the PostgreSQL client. (default "disable")
      --user string       Username to authenticate to the PostgreSQL.
      --wait uint32       Amount of seconds to wait for a lock to be obtained.
"#;

#[test]
fn the_help_begins_with_the_text_of_the_go_tool() {
    let output = Pglock::new().flag("--help").run();
    let text = output.assert_status(0).stdout();
    assert!(text.starts_with(ORIGINAL), "{}", output.report());
    assert_eq!(output.stderr(), "", "{}", output.report());
}

#[test]
fn the_help_goes_on_with_the_other_flags_in_the_same_style() {
    let text = Pglock::new().flag("--help").run().stdout();
    let rest = text.strip_prefix(ORIGINAL).expect("the Go tool's text");
    assert!(
        rest.starts_with('\n'),
        "a blank line after the Go tool's flags: {rest}"
    );
    for flag in [
        "--block ",
        "--conflict-exit-code uint8 ",
        "--connect-timeout uint32 ",
        "--quiet ",
        "--verbose ",
        "-h, --help ",
        "-V, --version ",
    ] {
        assert!(
            rest.lines().any(|line| line.trim_start().starts_with(flag)),
            "no {flag}in the help:\n{text}"
        );
    }
    assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{text:?}");
    for line in text.lines() {
        assert_eq!(line, line.trim_end(), "blanks at the end of a line");
    }
    // Below the Go tool's lines it fits a terminal of 80 columns.
    for line in rest.lines() {
        assert!(line.chars().count() < 80, "{line}");
    }
}

#[test]
fn the_short_flag_says_the_same() {
    let (long, short) = (
        Pglock::new().flag("--help").run(),
        Pglock::new().flag("-h").run(),
    );
    assert_eq!(long.stdout(), short.assert_status(0).stdout());
}

#[test]
fn the_version_is_the_package_s() {
    for flag in ["--version", "-V"] {
        let output = Pglock::new().flag(flag).run();
        output.assert_status(0);
        let text = output.stdout();
        let words: Vec<&str> = text.split_whitespace().take(2).collect();
        assert_eq!(
            words,
            ["pglock", env!("CARGO_PKG_VERSION")],
            "{}",
            output.report()
        );
        assert!(text.ends_with('\n'), "{}", output.report());
        assert_eq!(output.stderr(), "", "{}", output.report());
    }
}

#[test]
fn help_and_version_need_no_sane_environment_and_no_server() {
    let witness = Witness::new();
    for flag in ["--help", "--version"] {
        let broken = Pglock::at(witness.port())
            .env("PGLOCK_LOCKID", "abc")
            .env("PGLOCK_NONSENSE", "1");
        broken.flag(flag).run().assert_status(0);
        // Also when other flags come first.
        Pglock::at(witness.port())
            .flags(["--wait", "5", flag])
            .run()
            .assert_status(0);
    }
    assert!(!witness.was_disturbed());
}
