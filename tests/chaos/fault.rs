//! What can break, and breaking it.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::arena::{Arena, LOCK};
use super::random::Random;
use super::support::wait::within;
use super::support::{PATIENCE, Proxy, Stop, What, When, eventually};

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
    /// The holder's session is ended, and its way back is closed until its lease is over.
    WayBackRefused,
    /// The holder's session is ended, and again while the command has its grace.
    TerminateAgain,
    /// The server is restarted under a holder who comes through the pooler.
    RestartPooled,
    /// The holder's connection is reset, and for a while no new one is to be had.
    ResetRefused,
}

/// How long it takes to queue for a lock.
const QUEUEING: Duration = Duration::from_millis(300);

impl Kind {
    /// Those of the schedule.
    pub const ALL: [Kind; 20] = [
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
        Kind::WayBackRefused,
        Kind::TerminateAgain,
        Kind::RestartPooled,
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
            Kind::WayBackRefused => "way-back-refused",
            Kind::TerminateAgain => "terminate-again",
            Kind::RestartPooled => "restart-pooled",
            Kind::ResetRefused => "reset-refused",
        }
    }

    pub fn named(name: &str) -> Option<Kind> {
        let all = Kind::ALL.into_iter().chain([Kind::ResetRefused]);
        all.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether two may run at once for as long as a reconnect takes.
    pub fn excuses_a_moment(self) -> bool {
        matches!(
            self,
            Kind::Reset | Kind::Terminate | Kind::WayBackRefused | Kind::TerminateAgain
        )
    }

    /// Whether the holder has to be one who comes through the pooler.
    pub fn is_for_pooled(self) -> bool {
        self == Kind::RestartPooled
    }

    /// Whether the holder is sure to lose the lock, sooner or later.
    pub fn is_fatal(self) -> bool {
        matches!(
            self,
            Kind::Vanish
                | Kind::Reset
                | Kind::Terminate
                | Kind::KillHolder
                | Kind::WayBackRefused
                | Kind::TerminateAgain
                | Kind::ResetRefused
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
            Kind::WayBackRefused => {
                let resets = random.chance(50);
                if resets {
                    proxy.trap(When::Connected, What::Reset);
                } else {
                    proxy.refuse();
                }
                terminate_holder(arena);
                let time = random.time(ttl, ttl + 2500);
                thread::sleep(time);
                if resets {
                    proxy.disarm();
                } else {
                    proxy.accept();
                }
                let how = if resets { "reset" } else { "refused" };
                format!("{how} for {time:?}")
            }
            Kind::TerminateAgain => {
                // Of the others nobody is to be before the holder when it takes its lock again, and somebody there
                // afterwards: whoever is silent leaves the queue when its turn is over, and comes back when it hears so.
                for proxy in all_but(&arena.proxies, slot) {
                    proxy.silence();
                }
                within(PATIENCE, || server.waiters(LOCK).is_empty().then_some(()));
                let first = server.holders(LOCK);
                terminate_holder(arena);
                let again = within(QUEUEING, || {
                    let holders = server.holders(LOCK);
                    holders.into_iter().find(|holder| !first.contains(holder))
                });
                for proxy in all_but(&arena.proxies, slot) {
                    proxy.heal();
                }
                let waiter = within(QUEUEING, || server.waiters(LOCK).first().copied());
                if again.is_some() {
                    terminate_holder(arena);
                }
                format!("{first:?}, again {again:?}, with {waiter:?} at the door")
            }
            Kind::RestartPooled => {
                // They would have the pooler find out that there is no server, and make everybody wait for it.
                let others: Vec<_> = all_but(&arena.proxies[..arena.pooled], slot).collect();
                for proxy in &others {
                    proxy.silence();
                }
                let how = if random.chance(50) {
                    Stop::Fast
                } else {
                    Stop::Immediate
                };
                let down = random.time(0, 600);
                server.stop(how);
                thread::sleep(down);
                server.start();
                for proxy in &others {
                    proxy.heal();
                }
                // What comes of it is to be known before the next fault.
                let kept = within(Duration::from_millis(ttl), || {
                    let is_running = holder.is_some_and(|(slot, run)| arena.is_running(slot, run));
                    let is_held = !server.holders(LOCK).is_empty();
                    (is_held || !is_running).then_some(is_running)
                });
                format!("{how:?}, down for {down:?}, kept: {kept:?}")
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

/// All of these but that in this slot.
fn all_but(proxies: &[Arc<Proxy>], slot: usize) -> impl Iterator<Item = &Arc<Proxy>> {
    let proxies = proxies.iter().enumerate();
    proxies.filter_map(move |(other, proxy)| (other != slot).then_some(proxy))
}

fn terminate_holder(arena: &Arena) {
    arena.server.psql(&format!(
        "select pg_terminate_backend(pid) from pg_locks
         where locktype = 'advisory' and (classid, objid, objsubid) = (0, {LOCK}, 1) and granted"
    ));
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
