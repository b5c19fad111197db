//! Where a server may be that has been lost: where it was, at an address that needs no look-up, and the other hosts that the
//! settings name, in turn. A name is looked up anew from time to time, for what it stands for may have moved.

use std::time::Duration;

use super::resolve;
use super::session::Session;
use crate::moment::Moment;
use crate::pq::Conninfo;

/// For how long the addresses of a name are taken for what they were.
const FRESH: Duration = Duration::from_secs(2);

/// The places, in their order: 0 is home, the others follow.
pub struct Places {
    home: Conninfo,
    hosts: Vec<Conninfo>,
    /// Which of the hosts home is.
    host: usize,
    /// What was looked up, by the hosts.
    found: Vec<Option<(Moment, Vec<Conninfo>)>>,
}

impl Places {
    /// Those of a session with one of these hosts, of which there is at least one.
    pub fn new(hosts: Vec<Conninfo>, host: usize, session: &Session) -> Self {
        Self::at(hosts, host, session.connection().address().as_deref())
    }

    fn at(hosts: Vec<Conninfo>, host: usize, address: Option<&str>) -> Self {
        let mut places = Self {
            home: Conninfo::new(),
            found: hosts.iter().map(|_| None).collect(),
            hosts,
            host,
        };
        places.settle(host, address);
        places
    }

    /// How many there are beside home: the other hosts, and home once more where a name may have moved.
    pub fn others(&self) -> u32 {
        let has_names = self.hosts.iter().any(resolve::is_name);
        let count = self.hosts.len() - usize::from(!has_names);
        count as u32
    }

    /// The settings of home.
    pub fn home(&self) -> &Conninfo {
        &self.home
    }

    /// The settings of a place, and those of its addresses as far as they are known or need not be.
    pub fn way(&self, place: u32, now: Moment) -> (&Conninfo, Option<Vec<Conninfo>>) {
        if place == 0 {
            return (&self.home, Some(vec![self.home.clone()]));
        }
        let host = self.host_of(place);
        let settings = &self.hosts[host];
        let known = if resolve::is_name(settings) {
            let found = self.found[host].as_ref();
            let is_fresh = |(then, _): &&(Moment, _)| now <= *then + FRESH;
            found.filter(is_fresh).map(|(_, ways)| ways.clone())
        } else {
            Some(vec![settings.clone()])
        };
        (settings, known)
    }

    /// Takes note of what was looked up for a place.
    pub fn found(&mut self, place: u32, ways: &[Conninfo], now: Moment) {
        let host = self.host_of(place);
        self.found[host] = Some((now, ways.to_vec()));
    }

    /// The lock is held by a session at this place: it is home now.
    pub fn move_to(&mut self, place: u32, session: &Session) {
        if place != 0 {
            let address = session.connection().address();
            self.settle(self.host_of(place), address.as_deref());
        }
    }

    fn settle(&mut self, host: usize, address: Option<&str>) {
        self.host = host;
        let settings = &self.hosts[host];
        self.home = match address {
            Some(address) => resolve::at(settings, address),
            None => settings.clone(),
        };
    }

    fn host_of(&self, place: u32) -> usize {
        (self.host + place as usize) % self.hosts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Conninfo {
        vec![(c"host".into(), crate::sys::c_string(name))]
    }

    fn shown(settings: &Conninfo) -> String {
        let values = settings.iter().map(|(_, value)| value.to_string_lossy());
        values.collect::<Vec<_>>().join(" at ")
    }

    fn at(seconds: u64) -> Moment {
        Moment::after_first(Duration::from_secs(seconds))
    }

    /// The places with what is known of each, and those to be looked up.
    fn all(places: &Places) -> Vec<String> {
        let way = |place| match places.way(place, at(100)) {
            (_, Some(ways)) => ways.iter().map(shown).collect::<Vec<_>>().join("|"),
            (settings, None) => format!("{}?", shown(settings)),
        };
        (0..=places.others()).map(way).collect()
    }

    #[test]
    fn home_comes_first_and_the_other_hosts_after_it() {
        let hosts = || vec![host("10.0.0.1"), host("/run/b"), host("10.0.0.3")];
        let mut places = Places::at(hosts(), 1, None);
        assert_eq!(all(&places), ["/run/b", "10.0.0.3", "10.0.0.1"]);
        places.settle(places.host_of(1), Some("10.0.0.3"));
        let home = "10.0.0.3 at 10.0.0.3";
        assert_eq!(all(&places), [home, "10.0.0.1", "/run/b"]);
        let places = Places::at(vec![host("/run/b")], 0, None);
        assert_eq!(all(&places), ["/run/b"]);
    }

    #[test]
    fn a_name_is_looked_up_anew_that_of_home_too() {
        let mut places = Places::at(vec![host("db")], 0, Some("10.0.0.1"));
        assert_eq!(all(&places), ["db at 10.0.0.1", "db?"]);
        places.found(1, &[host("10.0.0.7"), host("10.0.0.8")], at(99));
        assert_eq!(all(&places), ["db at 10.0.0.1", "10.0.0.7|10.0.0.8"]);
        assert_eq!(places.way(1, at(102)).1, None);
        let mut places = Places::at(vec![host("a"), host("b")], 1, Some("10.0.0.1"));
        assert_eq!(all(&places), ["b at 10.0.0.1", "a?", "b?"]);
        places.found(1, &[host("10.0.0.9")], at(100));
        assert_eq!(all(&places), ["b at 10.0.0.1", "10.0.0.9", "b?"]);
    }
}
