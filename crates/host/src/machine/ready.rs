//! Whether a machine may get requests: it listens where its services say, and its checks pass.
//!
//! Never connects to a port to find out whether somebody listens: the kernel is asked. Checks do
//! connect, because that is what they are.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use perch_runtime::Instance;
use perch_types::machine_config::ContainerConfig;
use perch_types::service::Protocol;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::checks::{self, Check, Verdict};
use super::health::{self, Standing};
use super::record::{Readiness, Record};
use super::state::Fact;
use crate::network::Listener;
use crate::shared::Shared;

/// Pauses between two looks at a machine that is not ready, the last one for ever.
const PAUSES_MS: [u64; 9] = [1, 1, 2, 5, 10, 20, 50, 100, 250];
/// The pause between two looks at one that is.
const READY_PAUSE: Duration = Duration::from_secs(2);
/// Verdicts of checks that may wait.
const VERDICTS_MAX: usize = 16;
/// Listeners that a message names.
const LISTENERS_NAMED_MAX: usize = 8;

/// Looks at one boot of a machine.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    boot: u64,
    ports: BTreeSet<u16>,
    checks: Vec<Check>,
    ran: Duration,
    containers: Vec<ContainerConfig>,
    instance: Arc<dyn Instance>,
    namespace: Option<OwnedFd>,
}

impl Probe {
    /// Makes the probe of a boot.
    #[must_use]
    pub fn new(shared: &Arc<Shared>, record: &Record, instance: &Arc<dyn Instance>) -> Self {
        let config = &record.version.config;
        let ports = config
            .services
            .iter()
            .filter(|service| service.protocol == Protocol::Tcp)
            .map(|service| service.internal_port)
            .collect();
        let address = shared.place(record).map(|place| place.private_ipv4.into());
        let checks = address.map_or_else(|_| Vec::new(), |address| checks::of(config, address));
        Self {
            shared: Arc::clone(shared),
            boot: instance.info().boot,
            ports,
            checks,
            ran: ran(record, shared.effects.clock.now()),
            containers: config.containers.clone(),
            instance: Arc::clone(instance),
            namespace: instance.network_namespace().ok(),
        }
    }

    /// Returns what is known before anything was asked. Checks are listed at once.
    #[must_use]
    pub fn first(&self) -> Readiness {
        let standing = health::first(&self.containers, self.shared.effects.clock.now());
        self.readiness(judge(&self.ports, &[]), &self.unknown(), &standing)
    }

    fn unknown(&self) -> Vec<Verdict> {
        let now = self.shared.effects.clock.now();
        self.checks.iter().map(|_| Verdict::unknown(now)).collect()
    }

    fn readiness(
        &self,
        because: Option<String>,
        verdicts: &[Verdict],
        standing: &Standing,
    ) -> Readiness {
        let because = because.or_else(|| checks::first_failing(&self.checks, verdicts));
        let because = because.or_else(|| standing.because.clone());
        let mut all = checks::statuses(&self.checks, verdicts);
        all.extend(standing.checks.iter().cloned());
        Readiness {
            ready: because.is_none(),
            because,
            checks: all,
            containers: standing.containers.clone(),
        }
    }

    /// Tells of every change of readiness, for as long as the task lives.
    pub async fn follow(self, facts: mpsc::Sender<Fact>) {
        let Some(namespace) = self.namespace.as_ref().and_then(|fd| fd.try_clone().ok()) else {
            return;
        };
        if self.ports.is_empty() && self.checks.is_empty() && self.containers.is_empty() {
            return;
        }
        let mut listeners = match self.shared.effects.networks.listeners(namespace) {
            Ok(listeners) => listeners,
            Err(error) => {
                tracing::warn!(%error, boot = self.boot, "listeners cannot be asked for");
                return;
            }
        };
        let mut verdicts = self.unknown();
        let (sender, mut news) = mpsc::channel(VERDICTS_MAX);
        let mut tasks = JoinSet::new();
        for (index, check) in self.checks.iter().enumerate() {
            let clock = Arc::clone(&self.shared.effects.clock);
            tasks.spawn(checks::follow(check.clone(), (clock, self.ran), index, sender.clone()));
        }
        let mut standing = health::first(&self.containers, self.shared.effects.clock.now());
        let (sender, mut standings) = mpsc::channel(VERDICTS_MAX);
        if !self.containers.is_empty() {
            tasks.spawn(health::follow(
                Arc::clone(&self.shared),
                Arc::clone(&self.instance),
                self.containers.clone(),
                sender,
            ));
        }
        let mut told = self.first();
        let mut because = judge(&self.ports, &[]);
        let mut looks = 0_usize;
        loop {
            if !self.ports.is_empty() {
                because = match listeners.listeners() {
                    Ok(found) => judge(&self.ports, &found),
                    Err(error) => Some(error.to_string()),
                };
            }
            let now = self.readiness(because.clone(), &verdicts, &standing);
            if now != told {
                told = now.clone();
                let fact = Fact::Readiness { boot: self.boot, readiness: now };
                if facts.send(fact).await.is_err() {
                    return;
                }
            }
            let pause = pause(because.is_none(), looks);
            looks = looks.saturating_add(1);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(now) = standings.recv() => standing = now,
                Some((index, verdict)) = news.recv() => {
                    if let Some(slot) = verdicts.get_mut(index) {
                        *slot = verdict;
                    }
                }
            }
        }
    }
}

/// Returns how long the boot that runs has been running: an agent that is started anew finds
/// machines whose time of grace is over.
fn ran(record: &Record, now: perch_types::Timestamp) -> Duration {
    let started = record.events.iter().find(|event| event.kind == "start");
    let since_ms = started.map_or(0, |event| now.unix_ms().saturating_sub(event.timestamp));
    Duration::from_millis(u64::try_from(since_ms).unwrap_or_default())
}

fn pause(listens: bool, looks: usize) -> Duration {
    if listens {
        return READY_PAUSE;
    }
    let last = PAUSES_MS.len().saturating_sub(1);
    Duration::from_millis(PAUSES_MS.get(looks.min(last)).copied().unwrap_or(250))
}

/// Decides whether all ports are listened on where requests come in: nothing, or what is wrong in
/// the words of the API.
fn judge(ports: &BTreeSet<u16>, listeners: &[Listener]) -> Option<String> {
    let reachable =
        |port: &u16| listeners.iter().any(|one| one.port == *port && one.is_reachable());
    let missing = ports.iter().find(|port| !reachable(port))?;
    let mut found: Vec<String> = listeners
        .iter()
        .filter(|one| !ports.contains(&one.port) || !one.is_reachable())
        .map(|one| std::net::SocketAddr::from((one.address, one.port)).to_string())
        .collect();
    found.truncate(LISTENERS_NAMED_MAX);
    Some(if found.is_empty() {
        format!("nothing listens on 0.0.0.0:{missing}")
    } else {
        format!("listens on {}, expected 0.0.0.0:{missing}", found.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_judged_by_where_requests_come_in() {
        let at = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            Listener { address: address.ip(), port: address.port() }
        };
        for (ports, listeners, want) in [
            (vec![], vec![], None),
            (vec![8080], vec!["0.0.0.0:8080"], None),
            (vec![8080], vec!["[::]:8080"], None),
            (vec![8080], vec!["10.209.0.16:8080"], None),
            (vec![8080], vec![], Some("nothing listens on 0.0.0.0:8080")),
            (
                vec![8080],
                vec!["127.0.0.1:8000"],
                Some("listens on 127.0.0.1:8000, expected 0.0.0.0:8080"),
            ),
            (
                vec![8080],
                vec!["127.0.0.1:8080", "[::1]:8080"],
                Some("listens on 127.0.0.1:8080, [::1]:8080, expected 0.0.0.0:8080"),
            ),
            (vec![80, 443], vec!["0.0.0.0:80"], Some("nothing listens on 0.0.0.0:443")),
            (vec![80], vec!["0.0.0.0:80", "127.0.0.1:9000"], None),
        ] {
            let ports = ports.into_iter().collect();
            let listeners: Vec<Listener> = listeners.into_iter().map(at).collect();
            assert_eq!(judge(&ports, &listeners).as_deref(), want);
        }
    }

    #[test]
    fn looks_come_quickly_at_first_and_seldom_later() {
        assert_eq!(pause(false, 0), Duration::from_millis(1));
        assert_eq!(pause(false, 1_000), Duration::from_millis(250));
        assert_eq!(pause(true, 0), READY_PAUSE);
    }
}
