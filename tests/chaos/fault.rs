//! What can break, and breaking it.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::arena::Arena;
use super::random::Random;
use super::support::{PATIENCE, Proxy, Stop, What, eventually};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Every byte is late, for everybody.
    Delay,
    /// Nothing arrives at the holder or from it, for a while; then all of it does.
    Cut,
    /// The same for everybody.
    CutAll,
    /// The holder's connections carry nothing any more, for good.
    Vanish,
    /// The holder's connection is reset or closed at both ends.
    Reset,
    /// An administrator ends the holder's session.
    Terminate,
    /// `pg_ctl restart -m fast`
    Fast,
    /// `pg_ctl restart -m immediate`
    Immediate,
    /// A backend is killed, so that the server restarts all others.
    Crash,
    /// The postmaster is killed.
    Postmaster,
    /// All processes of the server are frozen for a while.
    FreezeServer,
    /// The holder's pglock is frozen for a while.
    FreezeHolder,
    /// That of another is.
    FreezeWaiter,
    /// The holder's pglock is killed.
    KillHolder,
    /// That of another is.
    KillWaiter,
    /// The holder's guardian is killed.
    KillGuardian,
    /// The server is restarted while the holder is cut off.
    CutRestart,
    /// The holder's connection is reset, and for a while no new one is to be had.
    ResetRefused,
}

impl Kind {
    /// Those of the schedule.
    pub const ALL: [Kind; 17] = [
        Kind::Delay,
        Kind::Cut,
        Kind::CutAll,
        Kind::Vanish,
        Kind::Reset,
        Kind::Terminate,
        Kind::Fast,
        Kind::Immediate,
        Kind::Crash,
        Kind::Postmaster,
        Kind::FreezeServer,
        Kind::FreezeHolder,
        Kind::FreezeWaiter,
        Kind::KillHolder,
        Kind::KillWaiter,
        Kind::KillGuardian,
        Kind::CutRestart,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Delay => "delay",
            Kind::Cut => "cut",
            Kind::CutAll => "cut-all",
            Kind::Vanish => "vanish",
            Kind::Reset => "reset",
            Kind::Terminate => "terminate",
            Kind::Fast => "restart-fast",
            Kind::Immediate => "restart-immediate",
            Kind::Crash => "crash",
            Kind::Postmaster => "kill-postmaster",
            Kind::FreezeServer => "freeze-server",
            Kind::FreezeHolder => "freeze-holder",
            Kind::FreezeWaiter => "freeze-waiter",
            Kind::KillHolder => "kill-holder",
            Kind::KillWaiter => "kill-waiter",
            Kind::KillGuardian => "kill-guardian",
            Kind::CutRestart => "cut-restart",
            Kind::ResetRefused => "reset-refused",
        }
    }

    pub fn named(name: &str) -> Option<Kind> {
        let all = Kind::ALL.into_iter().chain([Kind::ResetRefused]);
        all.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether two may run at once for as long as a reconnect takes.
    pub fn excuses_a_moment(self) -> bool {
        matches!(self, Kind::Reset | Kind::Terminate)
    }

    /// Whether the holder is sure to lose the lock, sooner or later.
    pub fn is_fatal(self) -> bool {
        matches!(
            self,
            Kind::Vanish | Kind::Reset | Kind::Terminate | Kind::KillHolder | Kind::ResetRefused
        )
    }

    /// Breaks it, and mends it again if it is to be mended. Says how.
    pub fn strike(
        self,
        arena: &Arena,
        holder: Option<(usize, u32)>,
        random: &mut Random,
    ) -> String {
        let ttl = arena.options.ttl * 1000;
        let slot = holder.map_or_else(|| random.below(arena.proxies.len()), |(slot, _)| slot);
        let other = (slot + 1 + random.below(arena.proxies.len() - 1)) % arena.proxies.len();
        let proxy = &arena.proxies[slot];
        let server = &arena.server;
        // Most are short enough to be survived, many are not.
        let long = if random.chance(60) {
            random.time(100, ttl / 2)
        } else {
            random.time(ttl / 2, ttl + 2500)
        };
        let down = if random.chance(75) {
            random.time(0, 600)
        } else {
            random.time(600, ttl + 1000)
        };
        match self {
            Kind::Delay => {
                let delay = random.time(1, 300);
                let time = random.time(500, 2500);
                for proxy in &arena.proxies {
                    proxy.delay(delay);
                }
                thread::sleep(time);
                for proxy in &arena.proxies {
                    proxy.delay(Duration::ZERO);
                }
                format!("{delay:?} for {time:?}")
            }
            Kind::Cut => {
                proxy.silence();
                thread::sleep(long);
                proxy.heal();
                format!("for {long:?}")
            }
            Kind::CutAll => {
                for proxy in &arena.proxies {
                    proxy.silence();
                }
                thread::sleep(long);
                for proxy in &arena.proxies {
                    proxy.heal();
                }
                format!("for {long:?}")
            }
            Kind::Vanish => {
                proxy.strike(What::Silence);
                if arena.options.ttl_of_pglock() == 0 {
                    // What TCP keepalive would do in the end.
                    thread::sleep(Duration::from_millis(ttl));
                    terminate_holder(arena);
                }
                String::new()
            }
            Kind::Reset => {
                let what = if random.chance(50) {
                    What::Reset
                } else {
                    What::Close
                };
                if random.chance(25) {
                    for proxy in &arena.proxies {
                        strike(proxy, what.clone());
                    }
                    format!("{what:?}, everybody")
                } else {
                    strike(proxy, what.clone());
                    format!("{what:?}")
                }
            }
            Kind::ResetRefused => {
                proxy.refuse();
                strike(proxy, What::Reset);
                thread::sleep(long);
                proxy.accept();
                format!("for {long:?}")
            }
            Kind::Terminate => {
                terminate_holder(arena);
                String::new()
            }
            Kind::Fast | Kind::Immediate => {
                let how = if self == Kind::Fast {
                    Stop::Fast
                } else {
                    Stop::Immediate
                };
                server.stop(how);
                thread::sleep(down);
                server.start();
                format!("down for {down:?}")
            }
            Kind::Postmaster => {
                server.crash();
                thread::sleep(down);
                server.start();
                format!("down for {down:?}")
            }
            Kind::Crash => {
                let before = server.log().len();
                let mut session = server.session();
                let pid = session.pid();
                server.crash_backend(pid);
                eventually("the server has recovered", PATIENCE, || {
                    server.log()[before..]
                        .contains("ready to accept connections")
                        .then_some(())
                });
                String::new()
            }
            Kind::FreezeServer => {
                server.freeze();
                thread::sleep(long);
                server.thaw();
                format!("for {long:?}")
            }
            Kind::FreezeHolder | Kind::FreezeWaiter => {
                let slot = if self == Kind::FreezeHolder {
                    slot
                } else {
                    other
                };
                if let Some(run) = arena.signal(slot, None, Signal::SIGSTOP) {
                    thread::sleep(long);
                    arena.signal(slot, Some(run), Signal::SIGCONT);
                }
                format!("for {long:?}")
            }
            Kind::KillHolder | Kind::KillWaiter => {
                let slot = if self == Kind::KillHolder {
                    slot
                } else {
                    other
                };
                arena.signal(slot, None, Signal::SIGKILL);
                String::new()
            }
            Kind::KillGuardian => {
                let guardian = arena.pid(slot).and_then(guardian);
                if let Some(guardian) = guardian {
                    let _ = kill(guardian, Signal::SIGKILL);
                }
                format!("{guardian:?}")
            }
            Kind::CutRestart => {
                proxy.silence();
                let first = random.time(0, 1500);
                thread::sleep(first);
                let how = if random.chance(50) {
                    Stop::Fast
                } else {
                    Stop::Immediate
                };
                server.restart(how);
                thread::sleep(long);
                proxy.heal();
                format!("{how:?} after {first:?}, healed after {long:?} more")
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Strikes a proxy without waiting until no connection is open: a pglock connects again at once.
fn strike(proxy: &Arc<Proxy>, what: What) {
    let proxy = Arc::clone(proxy);
    thread::Builder::new()
        .name(STRIKER.to_owned())
        .spawn(move || proxy.strike(what))
        .expect("a thread");
}

/// The name of threads whose panics do not matter.
pub const STRIKER: &str = "striker";

fn terminate_holder(arena: &Arena) {
    arena.server.psql(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted",
    );
}

/// The guardian of a pglock.
fn guardian(pglock: Pid) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pglock}/task/{pglock}/children")).ok()?;
    children
        .split_whitespace()
        .find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "lock-guardian")
        })
        .and_then(|pid| pid.parse().ok())
        .map(Pid::from_raw)
}
