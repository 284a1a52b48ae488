//! How much is answered by datagram to one network, whoever asks in its name.
//!
//! Never grows: who sends datagrams may say any address, so networks share a table of one size,
//! and two that fall on the same place of it share what there is of answers.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Answers a second to one network in the long run.
const RATE_PER_SECOND: u32 = 20;
/// Answers to one network at once after a pause.
const BURST: u32 = 100;
/// Of questions over that, one in so many is told to come by connection, so that nobody is kept
/// out by who asks in his name. The others have no answer.
const TOLD_EVERY: u32 = 4;
/// Places of the table.
const PLACES: usize = 4_096;

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is answered.
    Answered,
    /// It is told to come by connection.
    Told,
    /// It is not answered.
    Dropped,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    tokens: f64,
    seen: Instant,
    refused: u32,
}

/// The table.
#[derive(Debug)]
pub(super) struct Rates {
    hasher: RandomState,
    places: Mutex<Vec<Place>>,
}

impl Rates {
    pub(super) fn new(now: Instant) -> Self {
        let place = Place { tokens: f64::from(BURST), seen: now, refused: 0 };
        Self { hasher: RandomState::new(), places: Mutex::new(vec![place; PLACES]) }
    }

    /// Counts a question from an address.
    pub(super) fn ask(&self, source: IpAddr, now: Instant) -> Verdict {
        let hash = self.hasher.hash_one(network(source));
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let count = u64::try_from(places.len()).unwrap_or(u64::MAX).max(1);
        let index = usize::try_from(hash % count).unwrap_or_default();
        let Some(place) = places.get_mut(index) else { return Verdict::Dropped };
        let gone = now.saturating_duration_since(place.seen).as_secs_f64();
        place.tokens = gone.mul_add(f64::from(RATE_PER_SECOND), place.tokens).min(f64::from(BURST));
        place.seen = now;
        if place.tokens >= 1.0 {
            place.tokens -= 1.0;
            return Verdict::Answered;
        }
        place.refused = place.refused.wrapping_add(1);
        if place.refused.is_multiple_of(TOLD_EVERY) { Verdict::Told } else { Verdict::Dropped }
    }
}

/// Returns the network of an address: what one resolver, or one attacker, has of them.
pub(super) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [a, b, c, 0].into()
        }
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 56)).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn counted(rates: &Rates, source: &str, times: u32, now: Instant) -> [usize; 3] {
        let source = source.parse().unwrap();
        let all: Vec<_> = (0..times).map(|_| rates.ask(source, now)).collect();
        let of = |verdict| all.iter().filter(|it| **it == verdict).count();
        [of(Verdict::Answered), of(Verdict::Told), of(Verdict::Dropped)]
    }

    #[test]
    fn a_network_over_its_rate_is_told_now_and_then_to_come_by_connection() {
        let now = Instant::now();
        let rates = Rates::new(now);
        assert_eq!(counted(&rates, "192.0.2.1", BURST + 40, now), [100, 10, 30]);
        // The same network, another address.
        assert_eq!(counted(&rates, "192.0.2.200", 4, now), [0, 1, 3]);
        let later = now + Duration::from_secs(1);
        assert_eq!(counted(&rates, "192.0.2.1", BURST, later), [20, 20, 60]);
        // However many ask, and however long ago, nothing grows.
        for last in 0..=255_u8 {
            rates.ask([last, last, last, last].into(), later);
        }
        assert_eq!(rates.places.lock().unwrap().len(), PLACES);
    }

    #[test]
    fn addresses_of_one_network_count_together() {
        for (address, want) in [
            ("192.0.2.77", "192.0.2.0"),
            ("::ffff:192.0.2.77", "192.0.2.0"),
            ("2001:db8:1:2ff:3::4", "2001:db8:1:200::"),
        ] {
            let found = network(address.parse().unwrap());
            assert_eq!(found, want.parse::<IpAddr>().unwrap(), "{address}");
        }
    }
}
