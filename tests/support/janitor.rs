//! Cleaning up when the test process itself is killed.
//!
//! A shell, started once for each test process and outside of its process group, reads from a pipe what there is to clean up.
//! When the pipe ends, the test process is gone; whatever it did not take off the list is then killed
//! or removed: first every process that carries our [`tag`] in its environment (pglock, its command, whatever that left
//! behind), then the servers, then the directories.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The environment variable by which everything that a test started can be found again.
pub const TAG: &str = "HARNESS_TAG";

const SCRIPT: &str = r#"
trap '' HUP INT TERM
all=
while read -r op what; do
    case $op in
    +) all="$all $what" ;;
    -) rest=
       for w in $all; do [ "$w" = "$what" ] || rest="$rest $w"; done
       all=$rest ;;
    esac
done
for environ in $(grep -l "$1" /proc/[0-9]*/environ 2>/dev/null); do
    pid=${environ#/proc/}
    kill -KILL "${pid%/environ}" 2>/dev/null
done
for dir in $all; do
    pid=$(head -n 1 "$dir/data/postmaster.pid" 2>/dev/null)
    if [ -n "$pid" ]; then
        children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
        # The server may be frozen: an immediate shutdown needs all of it awake.
        kill -CONT $pid $children 2>/dev/null
        kill -QUIT $pid 2>/dev/null
        tries=0
        while kill -0 $pid 2>/dev/null && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
        kill -KILL $pid $children 2>/dev/null
    fi
    rm -rf "$dir"
done
"#;

/// A tag for the processes of one invocation.
pub fn tag() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // The trailing dot keeps number 1 from matching number 10.
    format!("{}{}.", prefix(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What all tags of this process begin with: the pid, and the start time so that a reused pid does not match.
fn prefix() -> &'static str {
    static PREFIX: OnceLock<String> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let stat = fs::read_to_string("/proc/self/stat").expect("/proc");
        let after_name = stat.rsplit_once(')').expect("a stat line").1;
        let start = after_name.split_whitespace().nth(19).expect("a start time");
        format!("{}-{start}.", std::process::id())
    })
}

/// From now on the janitor removes `dir`, and stops the server that lives in it, if this process dies.
pub fn watch(dir: &Path) {
    tell('+', dir);
}

/// `dir` has been taken care of.
pub fn forget(dir: &Path) {
    tell('-', dir);
}

fn tell(op: char, dir: &Path) {
    static JANITOR: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let janitor = JANITOR.get_or_init(|| {
        // It is there to outlive us.
        #[expect(clippy::zombie_processes)]
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "janitor"])
            .arg(format!("{TAG}={}", prefix()))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("start /bin/sh");
        Mutex::new(shell.stdin.take().expect("a pipe"))
    });
    let line = format!("{op} {}\n", dir.display());
    // One write, so that lines of different threads do not mix. A poisoned lock does no harm: there is no state.
    let mut pipe = janitor
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    pipe.write_all(line.as_bytes()).expect("tell the janitor");
}

/// The processes whose environment has `tag`. Zombies have none.
pub fn tagged(tag: &str) -> Vec<Pid> {
    let wanted = format!("{TAG}={tag}");
    let own = std::process::id() as i32;
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                environ
                    .split(|byte| *byte == 0)
                    .any(|entry| entry == wanted.as_bytes())
            })
        })
        .map(Pid::from_raw)
        .collect()
}

/// Kills whatever carries `tag`, until nothing does: a process may fork while we look.
pub fn kill_tagged(tag: &str) {
    for _ in 0..100 {
        let left = tagged(tag);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}
