//! The control with a client that is two seconds late. pglock has no switch for that, so a library is put before the
//! C library that lets pglock's clock, and its timers, run slower: what pglock believes to be its last moment, ttl - 1 s after the
//! last heartbeat, is then ttl + 1 s after it.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static double start, rate = 1;

static double seconds(struct timespec t) { return t.tv_sec + t.tv_nsec / 1e9; }

static struct timespec timespec(double s) {
    struct timespec t = { (time_t)s, (long)((s - (time_t)s) * 1e9) };
    return t;
}

static double real(void) {
    struct timespec t;
    syscall(SYS_clock_gettime, CLOCK_BOOTTIME, &t);
    return seconds(t);
}

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("LATE_RATE");
    if (text) rate = atof(text);
    start = real();
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    if (clock != CLOCK_BOOTTIME) return syscall(SYS_clock_gettime, clock, t);
    *t = timespec(start + (real() - start) * rate);
    return 0;
}

int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old) {
    struct itimerspec moved = *new;
    double moment = seconds(new->it_value);
    if ((flags & TFD_TIMER_ABSTIME) && moment > start)
        moved.it_value = timespec(start + (moment - start) / rate);
    return syscall(SYS_timerfd_settime, fd, flags, &moved, old);
}
"#;

/// Makes the library.
pub fn library(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("late.c"), dir.join("late.so"));
    std::fs::write(&source, SOURCE).expect("write late.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status()
        .expect("start cc");
    assert!(status.success(), "cc: {status}");
    library
}

/// How fast the clock has to run.
pub fn rate(ttl: u64) -> String {
    let ttl = ttl as f64;
    format!("{}", (ttl - 1.0) / (ttl + 1.0))
}
