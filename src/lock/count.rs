//! That all who use a lock count its slots alike. Whoever has `--slots N` with N > 1, or waits in a session of its own, holds a key
//! in share that tells N, as long as it waits and as long as it holds; whoever else holds the lock counts as N = 1, be it
//! a session of SQL's. A newcomer sees in the rows of the lock table that prove its lock whether others count otherwise: of two
//! who come at once at least one sees the other, and while one waits nobody gets by who counts otherwise.
//!
//! The key is `(X, Y)`: X and the middle of Y are a hash of what the lock is called, made here and not by the server, to which each
//! function more is expensive; Y is 2^30 and up, and its lowest 14 bits are N. Nobody else's keys are likely to be there.

use super::keys::{Key, Name};
use super::request_sql::LockRequest;

/// The bits of N, and those of the hash above them.
const COUNT_BITS: u32 = 14;
const HASH_BITS: u32 = 16;
/// The least second number of such a key.
pub const FIRST: u32 = 1 << (COUNT_BITS + HASH_BITS);

/// How many slots are counted by whoever holds this key in share, be it of whatever lock.
pub fn counted_by(key: Key) -> Option<u32> {
    match key {
        Key::Two(_, second) if second as u32 & !(FIRST - 1) == FIRST => Some(count_of(second)),
        Key::One(_) | Key::Two(..) => None,
    }
}

fn count_of(second: i32) -> u32 {
    second as u32 & ((1 << COUNT_BITS) - 1)
}

/// Whether others count otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Nobody does.
    Alike,
    /// Somebody has so many slots.
    Differs(u32),
    /// Somebody may: it is not known whether in this database.
    Doubtful,
}

/// One row of the lock table.
pub struct Row<'a> {
    /// Its key, in share or not.
    pub key: Key,
    /// Whether it is held in share, or is to be.
    pub shared: bool,
    /// The number of its database.
    pub database: &'a str,
    /// Whether it is of the own backend.
    pub own: bool,
    /// Whether its backend counts as many slots as are wanted; known of rows of the lock itself.
    pub counts_alike: bool,
}

impl LockRequest {
    /// The key that tells how many slots are counted.
    pub fn count_key(&self) -> Key {
        Key::Two(self.count_class(), self.count_object())
    }

    /// The second number of that key.
    pub fn count_object(&self) -> i32 {
        (self.count_hash().1 | self.slots) as i32
    }

    /// The first number of all such keys of this lock.
    pub fn count_class(&self) -> i32 {
        self.count_hash().0
    }

    /// How many slots are counted by whoever holds this key in share, if it is such a key of this lock.
    pub fn counted(&self, key: Key) -> Option<u32> {
        let (class, object) = self.count_hash();
        match key {
            Key::Two(first, second) if first == class => {
                let count = count_of(second);
                (second as u32 == object | count).then_some(count)
            }
            Key::One(_) | Key::Two(..) => None,
        }
    }

    /// The first number of these keys, and the second without N: FNV-1a by Fowler, Noll and Vo, of 64 bits, stirred as
    /// MurmurHash3's end does.
    fn count_hash(&self) -> (i32, u32) {
        let text = match &self.name {
            Name::Key(key) => format!("#{key}"),
            Name::Text(text) => format!("={text}"),
        };
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let hash = hash ^ hash >> 33;
        let middle = hash as u32 & ((1 << HASH_BITS) - 1);
        ((hash >> 32) as i32, FIRST | middle << COUNT_BITS)
    }

    /// What these rows tell. They are those of the own backend, those with [`count_class`](Self::count_class) that tell another
    /// count and, where there are slots, those of the lock itself; `is_here` tells that those of others are of the own database. A
    /// newcomer who is turned away is in them for a moment, too: so what differs is to be looked at again.
    pub fn compare(&self, rows: &[Row], lock: Option<Key>, is_here: bool) -> Count {
        let database = rows.iter().find(|row| row.own).map(|row| row.database);
        let here = |row: &&Row| is_here || database.is_none_or(|database| database == row.database);
        let differing = rows
            .iter()
            .filter(|row| row.shared)
            .filter(here)
            .filter_map(|row| self.counted(row.key))
            .find(|count| *count != self.slots);
        let uncounted = rows
            .iter()
            .filter(here)
            .any(|row| Some(row.key) == lock && !row.own && !row.counts_alike);
        match (differing, uncounted) {
            (None, false) => Count::Alike,
            _ if database.is_none() && !is_here => Count::Doubtful,
            (Some(count), _) => Count::Differs(count),
            (None, true) => Count::Differs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::session_settings::SessionSettings;

    fn request(name: &str, slots: u32) -> LockRequest {
        LockRequest {
            name: Name::Text(name.to_owned()),
            shared: false,
            slots,
            settings: SessionSettings::new(None),
            fence: false,
            sync: false,
        }
    }

    fn row<'a>(key: Key, shared: bool, pid: &str, database: &'a str) -> Row<'a> {
        Row {
            key,
            shared,
            database,
            own: pid == "me",
            counts_alike: pid == "alike",
        }
    }

    #[test]
    fn a_key_tells_its_count_to_those_who_use_the_lock_alone() {
        for slots in [1, 2, 3, 10_000] {
            let key = request("a", slots).count_key();
            assert_eq!(request("a", 1).counted(key), Some(slots));
            assert_eq!(request("b", 1).counted(key), None);
            let Key::Two(class, second) = key else {
                panic!("{key}")
            };
            assert!(second >= 1 << 30);
            assert_eq!(request("a", 1).counted(Key::Two(class, slots as i32)), None);
        }
        // What this version says the next has to understand.
        assert_eq!(
            request("a", 3).count_key(),
            Key::Two(-2050196071, 2062319619)
        );
    }

    #[test]
    fn who_counts_otherwise_is_seen() {
        let lock = Key::One(7);
        let [two, three, five] = [2, 3, 5].map(|slots| request("a", slots).count_key());
        let mine = || row(three, true, "me", "1");
        let of = |slots: u32, rows: &[Row]| request("a", slots).compare(rows, Some(lock), false);
        assert_eq!(of(3, &[mine()]), Count::Alike);
        let other = |database| [mine(), row(five, true, "x", database)];
        assert_eq!(of(3, &other("1")), Count::Differs(5));
        assert_eq!(of(3, &other("2")), Count::Alike, "another database");
        // Who holds the lock and counts alike, and who counts nothing.
        let holder = |pid| row(lock, false, pid, "1");
        assert_eq!(of(3, &[mine(), holder("alike")]), Count::Alike);
        assert_eq!(of(3, &[mine(), holder("x")]), Count::Differs(1));
        assert_eq!(
            of(3, &[mine(), row(lock, true, "x", "1")]),
            Count::Differs(1)
        );
        assert_eq!(of(3, &[mine(), row(lock, false, "x", "2")]), Count::Alike);
        assert_eq!(of(3, &[mine(), row(lock, false, "me", "1")]), Count::Alike);
        // Whoever holds such a key for itself is no user of the lock.
        assert_eq!(of(3, &[mine(), row(five, false, "x", "1")]), Count::Alike);
        // Without slots nothing but the lock tells the database.
        let held = row(lock, false, "me", "1");
        assert_eq!(of(1, &[held]), Count::Alike);
        let held = row(lock, false, "me", "1");
        assert_eq!(of(1, &[held, row(two, true, "x", "1")]), Count::Differs(2));
        assert_eq!(of(1, &[row(two, true, "x", "1")]), Count::Doubtful);
        let exact = request("a", 1).compare(&[row(two, true, "x", "1")], None, true);
        assert_eq!(exact, Count::Differs(2));
    }
}
