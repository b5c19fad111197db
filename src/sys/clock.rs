//! Time: the clock that deadlines are kept by, and the one on the wall.

use super::{exit, poll};
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use crate::moment::Moment;

/// Time since the machine started, time that it was suspended included where the system can tell.
pub fn now() -> Moment {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the call fills the structure, for which all zeros are a value too.
    let time = unsafe {
        if libc::clock_gettime(CLOCK, time.as_mut_ptr()) == -1 {
            // No lease can be kept without a clock. The guardian sees to the rest, or pglock to another guardian.
            exit(125);
        }
        time.assume_init()
    };
    Moment::after_first(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// A number from 0 to 1 that differs from process to process and from time to time; no secret.
pub fn random() -> f64 {
    let seed = u64::from(now().since_first().subsec_nanos()) << 32 | u64::from(std::process::id());
    // The finishing steps of splitmix64, by Sebastiano Vigna.
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 32) as f64 / f64::from(u32::MAX)
}

/// Seconds since 1970.
pub fn wall_clock() -> i64 {
    // SAFETY: a null pointer tells the call to only return the time.
    let time = unsafe { libc::time(ptr::null_mut()) };
    // 32 bits on some platforms.
    time as _
}

/// A time in seconds since 1970 as local time, `2018/09/05 11:17:39`.
pub fn local_time(time: i64) -> String {
    let time: libc::time_t = time as _;
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: the call reads `time` and fills the structure, for which all zeros are a value too (its
    // pointer may be null).
    let parts = unsafe {
        libc::localtime_r(&time, parts.as_mut_ptr());
        parts.assume_init()
    };
    format!(
        "{:04}/{:02}/{:02} {:02}:{:02}:{:02}",
        parts.tm_year + 1900,
        parts.tm_mon + 1,
        parts.tm_mday,
        parts.tm_hour,
        parts.tm_min,
        parts.tm_sec
    )
}

/// Waits for this long, whatever arrives; less long only where the system cannot wait.
pub fn pause(time: Duration) {
    let until = now() + time;
    loop {
        let left = until.since(now());
        if left.is_zero() || poll(&mut [], Some(left)).is_err() {
            return;
        }
    }
}
