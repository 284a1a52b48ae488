//! How many connections there are of an address, silent or in a handshake, and of an app.
//!
//! Never a lock: addresses and handshakes are counted a loop, and as the kernel spreads connections
//! over the loops each one's limit is a share of the server's. An app's connections, plain or under
//! TLS, are one number of all loops together.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use perch_types::address::client_of;

use crate::metrics::AppMetrics;

/// Connections of one loop by what they take.
#[derive(Debug, Default, Clone)]
pub(crate) struct Crowd(Rc<RefCell<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    addresses: HashMap<IpAddr, usize>,
    /// Those who have not said what they want after a while.
    silent: HashMap<IpAddr, usize>,
    handshakes: usize,
    /// The same, by address.
    shaking: HashMap<IpAddr, usize>,
    /// Those of other edges, or of who would be one.
    far: HashMap<IpAddr, usize>,
    /// Those of HTTP/2.
    h2: HashMap<IpAddr, usize>,
}

/// One that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    crowd: Crowd,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Address(IpAddr),
    Silent(IpAddr),
    Handshake(IpAddr),
    Far(IpAddr),
    H2(IpAddr),
}

impl Crowd {
    /// Counts a connection from an address; nothing when that would be one more than `max`.
    pub(crate) fn seat_address(&self, client: IpAddr, max: usize) -> Option<Seat> {
        let client = client_of(client);
        let is_counted = count(&mut self.0.borrow_mut().addresses, client, max);
        is_counted.then(|| self.seat(Place::Address(client)))
    }

    /// Counts a connection from an address over which nothing is said; nothing when that would be one
    /// more than `max`.
    pub(crate) fn seat_silent(&self, client: IpAddr, max: usize) -> Option<Seat> {
        let client = client_of(client);
        let is_counted = count(&mut self.0.borrow_mut().silent, client, max);
        is_counted.then(|| self.seat(Place::Silent(client)))
    }

    /// Counts a connection of HTTP/2 from an address; nothing when that would be one more than `max`.
    pub(crate) fn seat_h2(&self, client: IpAddr, max: usize) -> Option<Seat> {
        let client = client_of(client);
        let is_counted = count(&mut self.0.borrow_mut().h2, client, max);
        is_counted.then(|| self.seat(Place::H2(client)))
    }

    /// Counts a handshake at the door for other edges; nothing when that would be one more than `max`
    /// in all, or than `address_max` from there.
    pub(crate) fn seat_far(&self, client: IpAddr, max: usize, address_max: usize) -> Option<Seat> {
        let client = client_of(client);
        let mut counts = self.0.borrow_mut();
        // There are never more addresses than handshakes.
        let has_room = counts.far.values().sum::<usize>() < max;
        let is_counted = has_room && count(&mut counts.far, client, address_max);
        drop(counts);
        is_counted.then(|| self.seat(Place::Far(client)))
    }

    /// Counts a handshake; nothing when that would be one more than `max`, or than half of that from
    /// its address.
    pub(crate) fn seat_handshake(&self, client: IpAddr, max: usize) -> Option<Seat> {
        let client = client_of(client);
        let mut counts = self.0.borrow_mut();
        let has_room = counts.handshakes < max;
        if !has_room || !count(&mut counts.shaking, client, max.div_ceil(2)) {
            return None;
        }
        counts.handshakes += 1;
        drop(counts);
        Some(self.seat(Place::Handshake(client)))
    }

    fn seat(&self, place: Place) -> Seat {
        Seat { crowd: self.clone(), place }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.crowd.0.borrow_mut();
        match &self.place {
            Place::Address(client) => uncount(&mut counts.addresses, client),
            Place::Silent(client) => uncount(&mut counts.silent, client),
            Place::H2(client) => uncount(&mut counts.h2, client),
            Place::Far(client) => uncount(&mut counts.far, client),
            Place::Handshake(client) => {
                counts.handshakes = counts.handshakes.saturating_sub(1);
                uncount(&mut counts.shaking, client);
            }
        }
    }
}

/// A connection that is counted among an app's until this is dropped.
#[derive(Debug)]
pub(crate) struct AppSeat(Arc<AppMetrics>);

impl AppSeat {
    /// Counts a connection; nothing when that would be one more than `max`.
    pub(crate) fn take(app: &Arc<AppMetrics>, max: usize) -> Option<Self> {
        let before = app.connections.enter();
        // Given back by its end where there was no room.
        let seat = Self(Arc::clone(app));
        usize::try_from(before).is_ok_and(|before| before < max).then_some(seat)
    }
}

impl Drop for AppSeat {
    fn drop(&mut self) {
        self.0.connections.leave();
    }
}

fn count<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: K, max: usize) -> bool {
    match counts.get_mut(&key) {
        Some(count) if *count >= max => false,
        Some(count) => {
            *count += 1;
            true
        }
        None if max == 0 => false,
        None => {
            counts.insert(key, 1);
            true
        }
    }
}

fn uncount<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        _ => {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e5_an_address_has_so_many_and_its_neighbours_in_ipv6_share_them() {
        let crowd = Crowd::default();
        let from = |text: &str| crowd.seat_address(text.parse().unwrap(), 2);
        let first = from("2001:db8::1").unwrap();
        let _second = from("2001:db8::2:2").unwrap();
        assert!(from("2001:db8::3").is_none());
        let _other = from("2001:db8:0:1::1").unwrap();
        let _four = from("192.0.2.1").unwrap();
        let _mapped = from("::ffff:192.0.2.1").unwrap();
        assert!(from("192.0.2.1").is_none());
        drop(first);
        let _again = from("2001:db8::3").unwrap();
    }

    #[test]
    fn e5_handshakes_and_addresses_are_counted_apart_and_nothing_stays() {
        let crowd = Crowd::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let shaking = crowd.seat_handshake(ip("192.0.2.1"), 1).unwrap();
        assert!(crowd.seat_handshake(ip("192.0.2.2"), 1).is_none());
        assert!(crowd.seat_handshake(ip("192.0.2.1"), 2).is_none(), "one address has half of all");
        let other = crowd.seat_handshake(ip("192.0.2.2"), 2).unwrap();
        drop((shaking, other));
        let address = crowd.seat_address("192.0.2.1".parse().unwrap(), 1);
        drop(address);
        let counts = crowd.0.borrow();
        assert!(counts.addresses.is_empty() && counts.shaking.is_empty());
        assert_eq!(counts.handshakes, 0);
    }

    #[test]
    fn silent_connections_and_handshakes_of_other_edges_have_seats_of_their_own() {
        let crowd = Crowd::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let silent = crowd.seat_silent(ip("2001:db8::1"), 1).unwrap();
        assert!(crowd.seat_silent(ip("2001:db8::2"), 1).is_none());
        let far = |text: &str| crowd.seat_far(ip(text), 2, 1);
        let first = far("192.0.2.1").unwrap();
        assert!(far("192.0.2.1").is_none(), "one address has its share");
        let second = far("192.0.2.2").unwrap();
        assert!(far("192.0.2.3").is_none(), "there are no more");
        let shaking = crowd.seat_handshake(ip("192.0.2.1"), 1).unwrap();
        drop(first);
        let third = far("192.0.2.3").unwrap();
        let h2 = crowd.seat_h2(ip("192.0.2.1"), 1).unwrap();
        assert!(crowd.seat_h2(ip("192.0.2.1"), 1).is_none());
        drop((silent, second, third, shaking, h2));
        let counts = crowd.0.borrow();
        assert!(counts.silent.is_empty() && counts.far.is_empty() && counts.h2.is_empty());
    }

    #[test]
    fn e5_an_apps_connections_are_one_number_whichever_loop_they_are_at() {
        let (web, other) = (Arc::new(AppMetrics::default()), Arc::new(AppMetrics::default()));
        let seats: Vec<_> = std::thread::scope(|scope| {
            let loops: Vec<_> = (0..4).map(|_| scope.spawn(|| AppSeat::take(&web, 2))).collect();
            loops.into_iter().filter_map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(seats.len(), 2);
        assert!(AppSeat::take(&other, 0).is_none());
        drop(seats);
        assert_eq!((web.connections.get(), other.connections.get()), (0, 0));
        let _again = AppSeat::take(&web, 1).unwrap();
        assert!(AppSeat::take(&web, 1).is_none());
    }
}
