//! Which machines are stopped or suspended because nothing uses them (contract 4.5). Pure.
//!
//! Never one to which anything is under way, and never more than are to spare: machines that
//! nothing uses for a while are, but also those of several whose work the others can do. One that
//! does not get ready does nobody's work, and is not waited for for ever.

mod decide;
mod keep;

use std::fmt::Write as _;
use std::time::Duration;

use perch_types::env::machine::PRIMARY_REGION;
use perch_types::host::{Command, HostMachine};
use perch_types::machine_config::MachineConfig;
use perch_types::service::{Autostop, Protocol, SOFT_LIMIT_DEFAULT, Service};
use perch_types::{GoDuration, Region};

use crate::loads::Usage;
use crate::machine::state::State;
use crate::machine::suspend;
use decide::Member;

pub(crate) use keep::run;

/// How long nothing uses a machine before it is stopped, when nothing else was said.
pub const IDLE_DEFAULT: Duration = Duration::from_secs(300);

/// How long a machine may at least take to get ready, whatever the idle time: a short one must not
/// end a program that is still starting, for then no request would ever have it up.
const PATIENCE_MIN: Duration = Duration::from_secs(300);

/// What becomes of a machine that nothing uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Its program is ended.
    Stop,
    /// Its processes are frozen; where that does not succeed it is stopped.
    Suspend,
}

/// Returns what becomes of a machine when nothing uses it; nothing if it is left alone. One with
/// several services needs all of them to say so, and is suspended only if all say that.
pub(crate) fn way(machine: &HostMachine) -> Option<Way> {
    let config = &machine.config;
    let is_special = config.starts_by_other_means() || machine.cordoned;
    // Of a service without a public port nobody knows whether it is used.
    let is_seen = config.services.iter().any(|service| !service.ports.is_empty());
    if is_special || !is_seen {
        return None;
    }
    let mut way = match suspend::refusal(&Command::Suspend, config) {
        None => Way::Suspend,
        Some(_) => Way::Stop,
    };
    for service in &config.services {
        match service.autostop {
            Some(Autostop::Suspend) => {}
            Some(Autostop::Stop) => way = Way::Stop,
            Some(Autostop::Off) | None => return None,
        }
    }
    Some(way)
}

/// Returns the load from which on a machine counts as full: the lowest soft limit of its services,
/// because what is under way is counted for all of them together.
pub(crate) fn soft_limit(services: &[Service]) -> u32 {
    let of = |service: &Service| service.concurrency.as_ref().and_then(|limits| limits.soft_limit);
    let limits = services.iter().map(|service| of(service).unwrap_or(SOFT_LIMIT_DEFAULT));
    limits.min().unwrap_or(SOFT_LIMIT_DEFAULT).max(1)
}

/// Returns how many machines like this keep running: said of the primary region only.
fn least(config: &MachineConfig, region: &Region) -> u32 {
    let is_elsewhere =
        config.env.get(PRIMARY_REGION).is_some_and(|primary| primary != region.as_str());
    if is_elsewhere {
        return 0;
    }
    let services = config.services.iter();
    services.filter_map(|service| service.min_machines_running).max().unwrap_or_default()
}

/// Returns what machines have in common that can do each other's work: they are reached at the same
/// public ports.
fn kind(services: &[Service]) -> String {
    let mut ports: Vec<_> = services
        .iter()
        .flat_map(|service| service.ports.iter().map(move |port| (service.protocol, port)))
        .map(|(protocol, port)| {
            (protocol == Protocol::Udp, port.port, port.start_port, port.end_port)
        })
        .collect();
    ports.sort_unstable();
    let mut kind = String::new();
    for port in ports {
        // A text takes whatever is written to it.
        let _written = write!(kind, "{port:?}");
    }
    kind
}

/// Returns how long a machine may take to get ready before it counts as unused: the longest time
/// for which one of its checks may fail after a start, if that is more than any has.
fn patience(config: &MachineConfig) -> Duration {
    let services = config.services.iter().flat_map(|service| &service.checks);
    let checks = services.chain(config.checks.values());
    let checks = checks.filter_map(|check| check.grace_period.map(GoDuration::get));
    let containers = config.containers.iter().flat_map(|container| &container.healthchecks);
    let containers = containers.filter_map(|check| check.grace_period.map(Duration::from_secs));
    checks.chain(containers).fold(PATIENCE_MIN, Duration::max)
}

/// Returns what counts of a machine, and with which others it does; nothing if it does no work
/// that another could do. One that is not ready is stopped, never suspended: it would come back as
/// it was.
pub(crate) fn member(
    machine: &HostMachine,
    usage: Usage,
    since_boot_ms: u64,
    now_ms: u64,
) -> Option<(String, Member)> {
    let runs = machine.state == State::Started && !machine.cordoned;
    let is_reached = machine.config.services.iter().any(|service| !service.ports.is_empty());
    if !runs || !is_reached {
        return None;
    }
    let patience = if machine.ready { Duration::ZERO } else { patience(&machine.config) };
    let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    let up_ms = now_ms.saturating_sub(since_boot_ms).saturating_sub(patience_ms);
    let since = |moment: u64| now_ms.saturating_sub(moment).min(up_ms);
    let member = Member {
        id: machine.id.clone(),
        is_ready: machine.ready,
        way: way(machine).map(|way| if machine.ready { way } else { Way::Stop }),
        least: least(&machine.config, &machine.region),
        in_flight: usage.in_flight,
        idle_ms: if usage.in_flight > 0 { 0 } else { since(usage.active_ms) },
        calm_ms: match usage.full_ms {
            _ if usage.in_flight >= soft_limit(&machine.config.services) => 0,
            Some(full_ms) => since(full_ms),
            None => up_ms,
        },
        up_ms,
    };
    Some((kind(&machine.config.services), member))
}

#[cfg(test)]
mod tests;
