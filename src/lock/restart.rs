//! When did the server last lose all its sessions? With them it lost its locks, and their holders may take them again for as
//! long as their leases last. So a newcomer holds off until they are over, and who was cut off asks whether it was a
//! restart. Each of the two has to be sure of another side of it: the newcomer of every time that the server did, the holder
//! that it did.
//!
//! A standby that was promoted never had the locks of the primary before it: to a newcomer that is the same.

use std::time::Duration;

use super::query::{Answer, Place, Query, Statements};
use super::request_sql::LockRequest;
use crate::pq::Error;
use crate::server::dialect::Dialect;
use crate::server::session_settings::{LockScope, SessionSettings};

/// When the postmaster started. A restart moves it.
const START: &str = "pg_catalog.pg_postmaster_start_time()";

/// When the statistics of the background writer were reset. A crash of a backend, which ends all sessions and restarts the
/// rest under the same postmaster, resets all statistics. An administrator may reset these too, see [`resets`]; but where
/// they were not, there was no crash.
const RESET: &str = "pg_catalog.pg_stat_get_bgwriter_stat_reset_time()";

/// Where a server's last recovery has ended, in its log: one that has been a standby since it was started, or was not stopped
/// in good order before. Null on others.
const RECOVERED: &str = "pg_catalog.pg_last_wal_replay_lsn()";

/// How much earlier than it was a time may seem that is cut to the second.
const CUT: Duration = Duration::from_secs(1);

/// What is wrong with an answer that tells no age.
const UNEXPECTED: &str = "the server gave an unexpected answer to the question for its age";

/// How an attempt treats a server that lost its sessions less than a ttl ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartCheck {
    /// It does not try.
    HoldOff,
    /// It tries: nobody can have held the lock then but the one who tries.
    None,
}

/// For how long newcomers hold off after the server has lost all its sessions: until the lease of every holder that there may
/// have been is over.
pub fn hold_off(ttl: Duration) -> Duration {
    ttl
}

/// The same as a server may reckon that tells its promotion to the second: for so long it may say that it was just now.
pub fn longest_hold_off(ttl: Duration) -> Duration {
    hold_off(ttl) + CUT
}

/// What a newcomer is told who asks whether to hold off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldOff {
    /// For how long; not at all on the first start of a new cluster.
    pub time: Duration,
    /// Whether a holder has its lock again, so that who does not wait for the lock need not wait here; with slots it may
    /// not be the last.
    pub is_held: bool,
    /// Whether it is for a promotion, and not for a restart.
    pub is_promotion: bool,
}

impl LockRequest {
    /// Asks how much of its first ttl is left to the server, and whether somebody holds the lock.
    /// A session that is to hold off gets its settings first, or a timeout of the role's own would end it meanwhile.
    ///
    /// # Errors
    /// The name of the lock cannot be said to the server.
    pub fn age_query(
        &self,
        dialect: &dyn Dialect,
        scope: LockScope,
    ) -> Result<Query<HoldOff>, Error> {
        let ttl = self.settings.ttl.unwrap_or_default();
        let mut statements = Statements::new();
        if scope == LockScope::Session {
            statements.add(self.settings.sql(dialect, scope, 0));
        }
        let tells_promotion = self.settings.tells_promotion(dialect);
        let promoted = match tells_promotion {
            true => promoted_at_the_latest(),
            false => "null::timestamptz".to_owned(),
        };
        let age = statements.add(format!(
            "select '{}' - extract(epoch from pg_catalog.clock_timestamp() - greatest(lost, promoted)), {}, {}, \
             coalesce(promoted > lost, false) from (select {} as lost, {promoted} as promoted) past",
            hold_off(ttl).as_secs(),
            is_first_start(dialect, tells_promotion).unwrap_or_else(|| "false".to_owned()),
            self.is_held_sql(dialect)?,
            lost_at_the_latest(dialect),
        ));
        Ok(statements.query(move |answer| {
            let left = answer.seconds(age, 0);
            let (Some(left), Some(is_first)) = (left, answer.field(age, 1)) else {
                return Err(UNEXPECTED);
            };
            Ok(HoldOff {
                // The server's clock may have been set back since it started.
                time: match is_first {
                    "t" => Duration::ZERO,
                    _ => left.min(longest_hold_off(ttl)),
                },
                is_held: answer.field(age, 2) == Some("t"),
                is_promotion: answer.field(age, 3) == Some("t"),
            })
        }))
    }
}

/// The condition that the server lost its sessions, or was promoted, less than a ttl ago; `None` for one to whom that makes no
/// difference. To be asked of one that is known not to be a standby.
pub fn is_recent(
    dialect: &dyn Dialect,
    scope: LockScope,
    check: RestartCheck,
    settings: SessionSettings,
) -> Option<String> {
    let ttl = settings.ttl.filter(|_| check == RestartCheck::HoldOff)?;
    let is_late = |moment: &str, time: Duration| {
        format!(
            "pg_catalog.timestamptz_gt({moment}, pg_catalog.timestamptz_mi_interval('now', '{} s'))",
            time.as_secs()
        )
    };
    let whole = hold_off(ttl);
    let tells_promotion = settings.tells_promotion(dialect);
    Some(match scope {
        // What tells a crash from a reset, and a promotion from a checkpoint, is dear to a new backend: where it may be
        // either, `age_query` asks.
        LockScope::Session => {
            let mut recent = format!("{} or {}", is_late(START, whole), is_late(RESET, whole));
            if tells_promotion {
                let modified = "(pg_catalog.pg_control_system()).pg_control_last_modified";
                recent += &format!(
                    " or {RECOVERED} is not null and {}",
                    is_late(modified, longest_hold_off(ttl))
                );
            }
            recent
        }
        // The next question may come to another server than this one, or to this one after a crash: what is known now is known
        // for this attempt alone.
        LockScope::Transaction => {
            let lost = lost_at_the_latest(dialect);
            let late = is_late(
                &match tells_promotion {
                    true => format!("greatest({lost}, {})", promoted_at_the_latest()),
                    false => lost,
                },
                whole,
            );
            match is_first_start(dialect, tells_promotion) {
                Some(first) => format!("{late} and not ({first})"),
                None => late,
            }
        }
    })
}

/// The condition that this is the first start of a new cluster: then nobody can have held a lock before it. At a first start
/// the statistics are those of initdb, before the start, and know of no checkpoint; a clean stop counts one, and after any
/// other the statistics begin anew, after the start. `None` where that is not told: before version 15. A standby does not count
/// its checkpoints from version 17 on: it is no new cluster, and whether a server was one has to be known.
fn is_first_start(dialect: &dyn Dialect, tells_promotion: bool) -> Option<String> {
    if !tells_promotion {
        return None;
    }
    let counters = match dialect.server_version() {
        ..150_000 => return None,
        150_000..170_000 => [
            "bgwriter_stat_reset_time",
            "bgwriter_timed_checkpoints",
            "bgwriter_requested_checkpoints",
        ],
        170_000.. => [
            "checkpointer_stat_reset_time",
            "checkpointer_num_timed",
            "checkpointer_num_requested",
        ],
    };
    let [reset, timed, requested] = counters.map(|name| format!("pg_catalog.pg_stat_get_{name}()"));
    Some(format!(
        "{reset} < {START} and {timed} + {requested} = 0 and {RECOVERED} is null"
    ))
}

/// When the server was promoted, for one who has to know of every time that it was; null where it never was since it was
/// started.
///
/// Its control file was written last at the promotion or after it. If that was for a checkpoint which began after the promotion
/// it was not later than the beginning of that one. On the first timeline there was no promotion: there a recovery was that
/// after a crash, which resets the statistics, too. As far as measured an ordinary role sees nothing that is nearer: neither the
/// statistics nor the times of starts and loads move at a promotion, and the counts of checkpoints outlive one.
fn promoted_at_the_latest() -> String {
    // One that has become a standby would not tell its timeline.
    format!(
        "(select case when redo_lsn >= {RECOVERED} then checkpoint_time else pg_control_last_modified end + '{} s' \
         from pg_catalog.pg_control_checkpoint(), pg_catalog.pg_control_system() where {RECOVERED} is not null and \
         case when not pg_catalog.pg_is_in_recovery() then \
         pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) <> '00000001' end)",
        CUT.as_secs()
    )
}

/// When the server's statistics were reset, by their kinds: those that a crash resets at one and the same moment; and, from
/// version 15 on, some that stand in shared memory and nowhere else, and are as old as that, which a crash makes anew before it
/// resets the others.
fn resets(dialect: &dyn Dialect) -> (Vec<String>, Option<String>) {
    let version = dialect.server_version();
    let of_kind = |kind| format!("(select stats_reset from pg_catalog.pg_stat_get_{kind}())");
    let mut at_once = vec![RESET.to_owned(), of_kind("archiver")];
    if version >= 140_000 {
        at_once.push(of_kind("wal"));
    }
    let memory = (version >= 150_000).then(|| of_kind("recovery_prefetch"));
    (at_once, memory)
}

/// When the server last lost all its sessions, for one who has to know of every time that it did. An administrator who
/// resets one kind of statistics changes nothing; one who resets all makes it seem later than it was.
fn lost_at_the_latest(dialect: &dyn Dialect) -> String {
    let (mut resets, memory) = resets(dialect);
    resets.extend(memory);
    format!("greatest({START}, least({}))", resets.join(", "))
}

/// The same for one who has to be sure that it did: where an administrator may have reset statistics since, it seems
/// earlier than it was.
fn lost_at_the_earliest(dialect: &dyn Dialect) -> String {
    let (at_once, memory) = resets(dialect);
    let mut is_crash: Vec<String> = at_once.windows(2).map(|two| two.join(" = ")).collect();
    is_crash.extend(memory.iter().map(|memory| format!("{memory} < {RESET}")));
    format!(
        "greatest({START}, case when {} then {} end)",
        is_crash.join(" and "),
        memory.as_deref().unwrap_or(RESET)
    )
}

/// Where a server stands in the history of its cluster. Each promotion begins a timeline with a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// The number that initdb has drawn for the cluster, and that its standbys share.
    pub cluster: i64,
    /// The timeline that the server writes.
    pub timeline: u32,
}

impl History {
    /// Whether a server that stands here has been promoted since another stood there.
    pub fn is_after(self, earlier: Self) -> bool {
        self.cluster == earlier.cluster && self.timeline > earlier.timeline
    }

    /// What to select for it: null on a standby, which writes none.
    fn columns() -> &'static str {
        "(select system_identifier from pg_catalog.pg_control_system()), \
         case when not pg_catalog.pg_is_in_recovery() \
         then pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) end"
    }

    /// Reads it from the row at this place, where it begins with this column.
    fn read(answer: &Answer, place: Place, column: usize) -> Option<Self> {
        Some(Self {
            cluster: answer.field(place, column)?.parse().ok()?,
            timeline: u32::from_str_radix(answer.field(place, column + 1)?, 16).ok()?,
        })
    }
}

/// Asks where the server stands, `confirmed` by replication or not. Not in a transaction that a lock is bound to: a refusal
/// would end it.
pub fn history_query(confirmed: bool) -> Query<Option<History>> {
    let mut statements = Statements::new();
    statements.read_committed();
    let place = statements.add(format!("select {}", History::columns()));
    if confirmed {
        statements.confirm();
    }
    statements.query(move |answer| Ok(History::read(answer, place, 0)))
}

/// What a server says of its past to one who held the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// How long ago it lost all its sessions, for sure.
    pub lost: Duration,
    /// How long ago it was promoted, if it was since it was started, or a little longer ago: this time is proof of nothing by
    /// itself, for a checkpoint shortens it.
    pub promoted: Option<Duration>,
    /// Where it stands, if it tells.
    pub history: Option<History>,
}

impl Past {
    /// That of one that says nothing of use.
    pub const UNKNOWN: Self = Self {
        lost: Duration::MAX,
        promoted: None,
        history: None,
    };
}

/// Asks, for a holder, about the server's past.
pub fn past_query(dialect: &dyn Dialect, settings: SessionSettings) -> Query<Past> {
    let mut statements = Statements::new();
    let past = PastPlace::ask(&mut statements, dialect, settings);
    statements.query(move |answer| past.read(answer))
}

/// Where the answer to it is in a query that asks more.
#[derive(Clone, Copy)]
pub struct PastPlace(Place);

impl PastPlace {
    /// Adds the statement that asks.
    pub fn ask(
        statements: &mut Statements,
        dialect: &dyn Dialect,
        settings: SessionSettings,
    ) -> Self {
        let age =
            |moment: &str| format!("extract(epoch from pg_catalog.clock_timestamp() - {moment})");
        let mut columns = age(&lost_at_the_earliest(dialect));
        if settings.tells_promotion(dialect) {
            let promoted = age(&promoted_at_the_latest());
            columns += &format!(", {promoted}, {}", History::columns());
        }
        Self(statements.add(format!("select {columns}")))
    }

    /// What it says.
    pub fn read(self, answer: &Answer) -> Result<Past, &'static str> {
        Ok(Past {
            lost: answer.seconds(self.0, 0).ok_or(UNEXPECTED)?,
            promoted: answer.seconds(self.0, 1),
            history: History::read(answer, self.0, 2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Unanswered, golden::Made, keys::Name};
    use crate::pq::Outcome;

    #[test]
    fn a_later_timeline_of_the_same_cluster_comes_after() {
        let history = |cluster, timeline| History { cluster, timeline };
        let held = history(7, 4);
        for (found, expected) in [
            (history(7, 5), true),
            (history(7, 9), true),
            (history(7, 4), false),
            (history(7, 3), false),
            (history(8, 5), false),
        ] {
            assert_eq!(found.is_after(held), expected, "{found:?}");
        }
    }

    #[test]
    fn a_past_is_told_in_part_or_not_at_all() {
        let query = past_query(&Made { version: 15 }, SessionSettings::new(None));
        let history = Some(History {
            cluster: -7,
            timeline: 26,
        });
        let seconds = Duration::from_secs;
        for (fields, expected) in [
            (
                [Some("9"), Some("2"), Some("-7"), Some("0000001A")],
                Ok((seconds(9), Some(seconds(2)), history)),
            ),
            // One that has never been a standby; one that is one.
            (
                [Some("9"), None, Some("-7"), Some("0000001A")],
                Ok((seconds(9), None, history)),
            ),
            (
                [Some("9"), None, Some("-7"), None],
                Ok((seconds(9), None, None)),
            ),
            (
                [Some("9"), Some("2"), Some("x"), Some("0000001A")],
                Ok((seconds(9), Some(seconds(2)), None)),
            ),
            (
                [None, Some("2"), Some("-7"), Some("0000001A")],
                Err(Unanswered::Senseless(UNEXPECTED)),
            ),
        ] {
            let row = fields.map(|field| field.map(str::to_owned)).to_vec();
            let rows = |rows| Outcome::Done { rows };
            let past = query.read(&[rows(vec![]), rows(vec![row])]);
            let expected = expected.map(|(lost, promoted, history)| Past {
                lost,
                promoted,
                history,
            });
            assert_eq!(past, expected, "{fields:?}");
        }
    }

    #[test]
    fn a_newcomer_holds_off_for_a_ttl_at_most_and_not_on_a_first_start() {
        let request = LockRequest {
            name: Name::id(1),
            shared: false,
            slots: 1,
            settings: SessionSettings::new(Some(Duration::from_secs(15))),
            fence: false,
            sync: false,
        };
        let unexpected = || Err(Unanswered::Senseless(UNEXPECTED));
        let told = |time, is_held, is_promotion| {
            let time = Duration::from_millis(time);
            Ok(HoldOff {
                time,
                is_held,
                is_promotion,
            })
        };
        let (yes, no) = (Some("t"), Some("f"));
        for (fields, expected) in [
            ([Some("4.5"), no, no, no], told(4500, false, false)),
            ([Some("4.5"), no, yes, no], told(4500, true, false)),
            ([Some("4.5"), no, no, yes], told(4500, false, true)),
            ([Some("-3"), no, no, no], told(0, false, false)),
            ([Some("4000"), no, no, no], told(16_000, false, false)),
            ([Some("4.5"), yes, no, no], told(0, false, false)),
            ([Some("soon"), yes, no, no], unexpected()),
            ([None, no, no, no], unexpected()),
            ([Some("4.5"), None, no, no], unexpected()),
        ] {
            let row = fields.map(|field| field.map(str::to_owned)).to_vec();
            let rows = |rows| Outcome::Done { rows };
            let answer = [rows(vec![]), rows(vec![]), rows(vec![row])];
            let made = Made { version: 15 };
            let query = request.age_query(&made, LockScope::Session).unwrap();
            assert_eq!(query.read(&answer), expected, "{fields:?}");
            let query = request.age_query(&made, LockScope::Transaction).unwrap();
            assert_eq!(query.read(&answer[1..]), expected, "{fields:?}");
        }
    }
}
