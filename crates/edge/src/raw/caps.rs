//! How many connections and flows there may be at once, each for themselves: in all, at a port, to an
//! app, from an address.
//!
//! Never asked while bytes pass: only when one begins and ends.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perch_types::address::client_of;
use perch_types::ports::RawPort;
use perch_types::service::Protocol;
use tokio::time::Instant;

use super::RawLimits;
use crate::live::AppKey;

/// How often it is told that there are too many.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Counts what is there.
#[derive(Debug)]
pub(super) struct Caps {
    connections_max: usize,
    flows_max: usize,
    of_port_max: usize,
    of_app_max: usize,
    of_address_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: HashMap<Protocol, usize>,
    of_port: HashMap<RawPort, usize>,
    of_app: HashMap<(Protocol, AppKey), usize>,
    of_address: HashMap<(Protocol, IpAddr), usize>,
    told: Option<Instant>,
}

/// A place among those that there may be; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    caps: Arc<Caps>,
    port: RawPort,
    /// Nothing where several apps have the port: then the loops count.
    app: Option<(Protocol, AppKey)>,
    origin: (Protocol, IpAddr),
}

impl Caps {
    pub(super) fn new(limits: &RawLimits) -> Self {
        Self {
            connections_max: limits.connections,
            flows_max: limits.flows,
            of_port_max: limits.of_port,
            of_app_max: limits.of_app,
            of_address_max: limits.of_address,
            counts: Mutex::default(),
        }
    }

    /// Takes a place for what came in; `None` when there is none left.
    pub(super) fn enter(
        self: &Arc<Self>,
        port: RawPort,
        app: Option<&AppKey>,
        client: IpAddr,
    ) -> Option<Place> {
        let (protocol, _) = port;
        let all_max = match protocol {
            Protocol::Tcp => self.connections_max,
            Protocol::Udp => self.flows_max,
        };
        let origin = (protocol, client_of(client));
        let app = app.map(|app| (protocol, app.clone()));
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |count: Option<&usize>| count.copied().unwrap_or_default();
        let full = [
            ("all", at(counts.all.get(&protocol)), all_max),
            ("port", at(counts.of_port.get(&port)), self.of_port_max),
            ("app", at(app.as_ref().and_then(|app| counts.of_app.get(app))), self.of_app_max),
            ("address", at(counts.of_address.get(&origin)), self.of_address_max),
        ];
        if let Some((of, _, limit)) = full.into_iter().find(|(_, count, max)| count >= max) {
            let now = Instant::now();
            if counts.told.is_none_or(|told| now.duration_since(told) > TOLD_EVERY) {
                counts.told = Some(now);
                let app = app.as_ref().map(|(_, app)| tracing::field::display(&app.name));
                let (_, port) = port;
                tracing::warn!(of, limit, app, port, "connections at claimed ports at their limit");
            }
            return None;
        }
        *counts.all.entry(protocol).or_default() += 1;
        *counts.of_port.entry(port).or_default() += 1;
        if let Some(app) = &app {
            *counts.of_app.entry(app.clone()).or_default() += 1;
        }
        *counts.of_address.entry(origin).or_default() += 1;
        drop(counts);
        Some(Place { caps: Arc::clone(self), port, app, origin })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.caps.counts.lock().unwrap_or_else(PoisonError::into_inner);
        less(&mut counts.all, &self.port.0);
        less(&mut counts.of_port, &self.port);
        if let Some(app) = &self.app {
            less(&mut counts.of_app, app);
        }
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

    fn entry(app: &str, port: u16) -> (RawPort, AppKey) {
        let app = AppKey { org: OrgSlug::personal(), name: app.parse().unwrap() };
        ((Protocol::Tcp, port), app)
    }

    #[test]
    fn each_limit_holds_alone_and_a_place_is_free_when_it_is_left() {
        let none = RawLimits::default();
        let (web, other) = (entry("web", 1), entry("other", 2));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (limits, first, second, fits) in [
            (
                RawLimits { connections: 1, ..none.clone() },
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
            let enter = |((port, app), from): (&(RawPort, AppKey), &str)| {
                caps.enter(*port, Some(app), ip(from))
            };
            let place = enter(first).unwrap();
            assert_eq!(enter(second).is_some(), fits, "{limits:?}");
            drop(place);
            drop(enter(second).unwrap());
            let counts = caps.counts.lock().unwrap();
            assert!(counts.of_port.is_empty() && counts.of_app.is_empty());
            assert!(counts.of_address.is_empty() && counts.all.is_empty());
        }
    }

    #[test]
    fn flows_take_no_place_of_a_connection() {
        let limits = RawLimits {
            connections: 1,
            flows: 1,
            of_app: 1,
            of_address: 1,
            ..RawLimits::default()
        };
        let caps = Arc::new(Caps::new(&limits));
        let ((_, port), app) = entry("web", 1);
        let client = "192.0.2.1".parse::<IpAddr>().unwrap();
        let enter = |protocol: Protocol| caps.enter((protocol, port), Some(&app), client);
        let flow = enter(Protocol::Udp).unwrap();
        assert!(enter(Protocol::Udp).is_none());
        let connection = enter(Protocol::Tcp).unwrap();
        assert!(enter(Protocol::Tcp).is_none());
        drop((flow, connection));
        drop(enter(Protocol::Udp).unwrap());
    }
}
