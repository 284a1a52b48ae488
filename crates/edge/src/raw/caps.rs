//! How many connections and flows there may be at once: in all, at a port, to an app, from an
//! address.
//!
//! Never asked while bytes pass: only when one begins and ends.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perch_types::service::Protocol;
use tokio::time::Instant;

use super::{Entry, RawLimits};
use crate::live::AppKey;

/// How often it is told that there are too many.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Counts what is there.
#[derive(Debug)]
pub(super) struct Caps {
    all_max: usize,
    of_port_max: usize,
    of_app_max: usize,
    of_address_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of_port: HashMap<(Protocol, u16), usize>,
    of_app: HashMap<AppKey, usize>,
    of_address: HashMap<Origin, usize>,
    told: Option<Instant>,
}

/// An address as far as one client has it to itself: of IPv6 everybody has a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin(u128);

impl Origin {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u32::from(address).into()),
            IpAddr::V6(address) => Self(u128::from(address) >> 64 << 64),
        }
    }
}

/// A place among those that there may be; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    caps: Arc<Caps>,
    port: (Protocol, u16),
    app: AppKey,
    origin: Origin,
}

impl Caps {
    pub(super) fn new(limits: &RawLimits) -> Self {
        Self {
            all_max: limits.all,
            of_port_max: limits.of_port,
            of_app_max: limits.of_app,
            of_address_max: limits.of_address,
            counts: Mutex::default(),
        }
    }

    /// Takes a place for what came in; `None` when there is none left.
    pub(super) fn enter(self: &Arc<Self>, entry: &Entry, client: IpAddr) -> Option<Place> {
        let (port, origin) = ((entry.protocol, entry.port), Origin::of(client));
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |count: Option<&usize>| count.copied().unwrap_or_default();
        let full = [
            ("all", counts.all, self.all_max),
            ("port", at(counts.of_port.get(&port)), self.of_port_max),
            ("app", at(counts.of_app.get(&entry.app)), self.of_app_max),
            ("address", at(counts.of_address.get(&origin)), self.of_address_max),
        ];
        if let Some((of, _, limit)) = full.into_iter().find(|(_, count, max)| count >= max) {
            let now = Instant::now();
            if counts.told.is_none_or(|told| now.duration_since(told) > TOLD_EVERY) {
                counts.told = Some(now);
                let (app, port) = (&entry.app.name, entry.port);
                tracing::warn!(of, limit, %app, port, "connections at raw ports at their limit");
            }
            return None;
        }
        counts.all += 1;
        *counts.of_port.entry(port).or_default() += 1;
        *counts.of_app.entry(entry.app.clone()).or_default() += 1;
        *counts.of_address.entry(origin).or_default() += 1;
        drop(counts);
        Some(Place { caps: Arc::clone(self), port, app: entry.app.clone(), origin })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.caps.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        less(&mut counts.of_port, &self.port);
        less(&mut counts.of_app, &self.app);
        less(&mut counts.of_address, &self.origin);
    }
}

/// Counts one less; what is not there any more is not kept.
fn less<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use perch_types::OrgSlug;

    use super::*;

    fn entry(app: &str, port: u16) -> Entry {
        let app = AppKey { org: OrgSlug::personal(), name: app.parse().unwrap() };
        Entry { protocol: Protocol::Tcp, port, app }
    }

    #[test]
    fn each_limit_holds_alone_and_a_place_is_free_when_it_is_left() {
        let none = RawLimits::default();
        let (web, other) = (entry("web", 1), entry("other", 2));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (limits, first, second, fits) in [
            (
                RawLimits { all: 1, ..none.clone() },
                (&web, "192.0.2.1"),
                (&other, "192.0.2.2"),
                false,
            ),
            (
                RawLimits { of_port: 1, ..none.clone() },
                (&web, "192.0.2.1"),
                (&web, "192.0.2.2"),
                false,
            ),
            (
                RawLimits { of_port: 1, ..none.clone() },
                (&web, "192.0.2.1"),
                (&other, "192.0.2.1"),
                true,
            ),
            (
                RawLimits { of_app: 1, ..none.clone() },
                (&web, "192.0.2.1"),
                (&web, "192.0.2.2"),
                false,
            ),
            (
                RawLimits { of_address: 1, ..none.clone() },
                (&web, "192.0.2.1"),
                (&other, "::ffff:192.0.2.1"),
                false,
            ),
            (
                RawLimits { of_address: 1, ..none.clone() },
                (&web, "192.0.2.1"),
                (&web, "192.0.2.2"),
                true,
            ),
            (
                RawLimits { of_address: 1, ..none.clone() },
                (&web, "2001:db8::1"),
                (&web, "2001:db8::2"),
                false,
            ),
            (
                RawLimits { of_address: 1, ..none },
                (&web, "2001:db8::1"),
                (&web, "2001:db8:0:1::1"),
                true,
            ),
        ] {
            let caps = Arc::new(Caps::new(&limits));
            let place = caps.enter(first.0, ip(first.1)).unwrap();
            assert_eq!(caps.enter(second.0, ip(second.1)).is_some(), fits, "{limits:?}");
            drop(place);
            drop(caps.enter(second.0, ip(second.1)).unwrap());
            let counts = caps.counts.lock().unwrap();
            assert!(counts.of_port.is_empty() && counts.of_app.is_empty());
            assert!(counts.of_address.is_empty() && counts.all == 0);
        }
    }
}
