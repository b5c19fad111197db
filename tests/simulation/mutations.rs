//! That the simulation finds what it is for: each of these mutations puts one thing wrong in a copy of the source, in which the
//! simulation is then built and run. The product has no switch for them, and so none that could be on.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::ARGUMENTS;
use super::options::Options;

/// How long one may take to be found, in minutes.
const MINUTES: u64 = 1;

/// Something that is put wrong.
struct Mutation {
    name: &'static str,
    file: &'static str,
    /// What stands there once, and what is put in its place.
    was: &'static str,
    is: &'static str,
    /// What the search needs besides.
    options: &'static str,
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "a session that was ended alone passes for all of them",
        file: "src/supervise/reason.rs",
        was: "} else if error.sqlstate.is_some() {\n        Loss::One",
        is: "} else if error.sqlstate.is_some() {\n        Loss::All",
        options: "",
    },
    Mutation {
        name: "a command in its grace may lose its session once more",
        file: "src/supervise/state.rs",
        was: "Loss::Cut | Loss::One => self.kill(Why::GoneAgain, now),",
        is: "Loss::Cut | Loss::One => {}",
        options: "",
    },
    Mutation {
        name: "every deadline is a second late",
        file: "src/lease.rs",
        was: "self.renewed + self.terms.ttl - MARGIN\n",
        is: "self.renewed + self.terms.ttl\n",
        options: "",
    },
    Mutation {
        name: "newcomers do not hold off",
        file: "src/acquire/state.rs",
        was: "        self.young_since = None;\n        self.attempt(RestartCheck::HoldOff, at)",
        is: "        self.young_since = None;\n        self.attempt(RestartCheck::None, at)",
        options: "",
    },
    Mutation {
        name: "a holder takes a newcomer's bound for its proof of a restart",
        file: "src/lock/restart.rs",
        was: "age(&lost_at_the_earliest(dialect))",
        is: "age(&lost_at_the_latest(dialect))",
        options: "",
    },
    Mutation {
        name: "the guardian does not kill when pglock is frozen",
        file: "src/guardian/rule.rs",
        was: "(true, false) => Order::Fire,",
        is: "(true, false) => Order::Watch(None),",
        options: "",
    },
    Mutation {
        name: "the guardian does not kill when pglock is gone",
        file: "src/guardian/rule.rs",
        was: "if view.has_group {\n                    Order::Kill\n                } else {\n                    Order::End\n                }\n            }\n            // The same here.",
        is: "Order::End\n            }\n            // The same here.",
        options: "",
    },
    Mutation {
        name: "the lock is given up before the group is gone",
        file: "src/supervise/state.rs",
        was: "Stage::Terminating(_) => self.is_dead(),\n            Stage::Killed(then) =>",
        is: "Stage::Terminating(_) => self.ended.is_some(),\n            Stage::Killed(then) => self.ended.is_some() ||",
        options: "",
    },
    Mutation {
        name: "a beat counts from its answer",
        file: "src/supervise/state.rs",
        was: "                    self.losses = 0;\n                    self.renew(sent);",
        is: "                    self.losses = 0;\n                    self.renew(now);",
        options: "",
    },
    Mutation {
        name: "a lock that a server grants which is going down counts at once",
        file: "src/lock/request_sql.rs",
        was: "const SETTLE: &str = \"0.06\";",
        is: "const SETTLE: &str = \"0.0\";",
        options: "",
    },
    Mutation {
        name: "a command that was frozen runs again where the server cannot be reached",
        file: "src/supervise/state.rs",
        was: "Barrier::Unreachable => goes_down,",
        is: "Barrier::Unreachable => true,",
        options: "",
    },
    Mutation {
        name: "a lock is not kept after its command",
        file: "src/supervise/state.rs",
        was: "may_hold && now < *until && !self.lock_is_lost",
        is: "may_hold && *until < now && !self.lock_is_lost",
        options: "",
    },
    Mutation {
        name: "newcomers do not hold off after a promotion",
        file: "src/lock/restart.rs",
        was: "let tells_promotion = settings.tells_promotion(dialect);",
        is: "let tells_promotion = false;",
        options: "",
    },
];

/// Puts one thing after the other wrong, and tells which was found.
pub fn all_are_found(options: &Options) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = tempfile::tempdir().expect("a folder");
    // What the crate is built from besides stays from one run to the next.
    let target = root.join("target/mutations");
    for part in [
        "src",
        "tests",
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
        "doc",
        "CHANGELOG.md",
        "README.md",
    ] {
        copy_all(&root.join(part), &copy.path().join(part));
    }
    let wanted = MUTATIONS.iter().enumerate();
    let wanted =
        wanted.filter(|(place, _)| options.only.is_none_or(|only| *place as u64 + 1 == only));
    let (mut count, mut missed) = (0, 0);
    for (_, mutation) in wanted {
        count += 1;
        let path = copy.path().join(mutation.file);
        let was = fs::read_to_string(&path).expect("a source file");
        assert_eq!(
            was.matches(mutation.was).count(),
            1,
            "{}: what is to be changed stands in {} once",
            mutation.name,
            mutation.file
        );
        let is = was.replace(mutation.was, mutation.is);
        fs::write(&path, is).expect("a source file");
        let found = find(copy.path(), &target, mutation, options.seed);
        fs::write(&path, was).expect("a source file");
        match found {
            Some(found) => println!("found  {}: {found}", mutation.name),
            None => {
                missed += 1;
                println!("MISSED {}", mutation.name);
            }
        }
    }
    println!("{} of {count} mutations found", count - missed);
    missed == 0
}

/// Builds the simulation of a copy and runs it. Returns how it was found, if it was.
fn find(copy: &Path, target: &Path, mutation: &Mutation, seed: u64) -> Option<String> {
    let test = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(copy);
        command.env("CARGO_TARGET_DIR", target);
        command.args([
            "test",
            "--quiet",
            "--locked",
            "--profile",
            "simulation",
            "--bin",
            "pglock",
        ]);
        command.args(arguments);
        command
    };
    let built = test(&["--no-run"]).status().expect("cargo");
    assert!(built.success(), "{} does not build", mutation.name);
    let words = format!(
        "--seed {seed} --schedules 100000000 --minutes {MINUTES} {}",
        mutation.options
    );
    let output = test(&["--", "--nocapture", "simulation::"])
        .env(ARGUMENTS, words)
        .output()
        .expect("cargo");
    let text = String::from_utf8_lossy(&output.stdout);
    let wrong = text.lines().find(|line| line.starts_with("WRONG"))?;
    let seed = text
        .lines()
        .find(|line| line.starts_with("seed ") && line.contains("ttl"))?;
    let seed = seed.split(':').next()?;
    // How long the search took, without that for the shortest.
    let time = text
        .lines()
        .find_map(|line| line.split(" commands in ").nth(1))?;
    let time = time.split(';').next()?;
    Some(format!("{seed}, after {time}; {wrong}"))
}

fn copy_all(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            copy_all(&from.join(&name), &to.join(&name));
        }
    } else {
        fs::copy(from, to).expect("a copy");
    }
}
