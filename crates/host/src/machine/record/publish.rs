//! A machine's record as others see it.
//!
//! Never more than they need: what goes to the directory has no environment, files or events.

use std::net::{Ipv4Addr, Ipv6Addr};

use perch_types::api::ContainerSummary;
use perch_types::directory::Generation;
use perch_types::host::HostMachine;
use perch_types::{HostId, Region};

use super::{Readiness, Record};
use crate::machine::state::State;

/// Where a machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its host.
    pub host: HostId,
    /// Where that stands.
    pub region: Region,
    /// Its private IPv6 address.
    pub private_ip: Ipv6Addr,
    /// Its private IPv4 address.
    pub private_ipv4: Ipv4Addr,
}

/// Returns all that the host says of a machine.
#[must_use]
pub fn host_machine(
    record: &Record,
    readiness: &Readiness,
    generation: Generation,
    place: &Place,
) -> HostMachine {
    let runs = record.state == State::Started;
    // The old version serves while the new one is prepared, until the gate is closed.
    let replaced = record.state == State::Replacing && record.boot.is_some();
    let serves = runs || (replaced && !record.is_frozen());
    HostMachine {
        id: record.id.clone(),
        org: record.org.clone(),
        app: record.app.clone(),
        name: record.name.clone(),
        region: place.region.clone(),
        instance: record.version.instance.clone(),
        epoch: record.version.epoch,
        generation,
        state: record.state,
        ready: serves && readiness.ready,
        not_ready_because: readiness.because.clone().filter(|_| runs && !readiness.ready),
        cordoned: record.cordoned,
        config: record.version.config.clone(),
        image_ref: record.version.image.clone(),
        private_ip: place.private_ip,
        private_ipv4: place.private_ipv4,
        created_at: record.created_at,
        updated_at: record.updated_at,
        events: record.events.clone(),
        checks: readiness.checks.clone(),
        containers: containers(record, readiness),
        secrets_version: record.secrets_version,
        failure: record.failure.clone(),
        given_up: record.given_up.clone(),
    }
}

/// Returns how the containers stand; without a boot that was asked they do not run.
fn containers(record: &Record, readiness: &Readiness) -> Vec<ContainerSummary> {
    if !readiness.containers.is_empty() {
        return readiness.containers.clone();
    }
    let state = if record.boot.is_some() || record.boots == 0 { "created" } else { "stopped" };
    let each = record.version.config.containers.iter();
    each.map(|one| ContainerSummary { name: one.name.clone(), state: state.to_owned() }).collect()
}
