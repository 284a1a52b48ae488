//! A machine's record as others see it.
//!
//! Never more than they need: what goes to the directory has no environment, files or events.

use std::net::{Ipv4Addr, Ipv6Addr};

use perch_types::api::ContainerSummary;
use perch_types::directory::{Generation, MACHINE_RECORD_BYTES_MAX, MachineRecord};
use perch_types::host::HostMachine;
use perch_types::{HostId, Region};

use super::{Readiness, Record};
use crate::machine::state::State;

/// Labels that the platform itself reads; they go last when a record is too large.
const LABELS_KEPT: [&str; 4] =
    ["fly_process_group", "fly_platform_version", "fly_release_id", "fly_release_version"];

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

/// Returns what the directory gets of a machine, at most [`MACHINE_RECORD_BYTES_MAX`] of JSON:
/// containers and labels are left out before anything that routing needs.
#[must_use]
pub fn machine_record(machine: &HostMachine, place: &Place) -> MachineRecord {
    let config = &machine.config;
    let mut record = MachineRecord {
        id: machine.id.clone(),
        org: machine.org.clone(),
        app: machine.app.clone(),
        name: machine.name.clone(),
        host: place.host.clone(),
        region: machine.region.clone(),
        instance: machine.instance.clone(),
        generation: machine.generation,
        state: machine.state,
        ready: machine.ready,
        cordoned: machine.cordoned,
        private_ip: machine.private_ip,
        private_ipv4: machine.private_ipv4,
        services: config.services.clone(),
        metadata: config.metadata.clone(),
        skip_dns: config.dns.as_ref().is_some_and(|dns| dns.skip_registration),
        statics: config.statics.clone(),
        containers: machine.containers.clone(),
        image: config.image_references().first().copied().unwrap_or_default().to_owned(),
        cpus: config.cpus(),
        cpu_kind: config.cpu_kind(),
        memory_mb: config.memory_mb(),
        created_at: machine.created_at,
        updated_at: machine.updated_at,
    };
    if !fits(&record) {
        record.containers.clear();
    }
    if !fits(&record) {
        record.metadata.retain(|label, _| LABELS_KEPT.contains(&label.as_str()));
    }
    if !fits(&record) {
        record.metadata.clear();
    }
    if !fits(&record) {
        // Routing reads no check and no key that it does not know.
        for service in &mut record.services {
            service.checks.clear();
            service.other.clear();
            for port in &mut service.ports {
                port.other.clear();
            }
        }
    }
    while !fits(&record) && record.services.pop().is_some() {}
    record
}

fn fits(record: &MachineRecord) -> bool {
    serde_json::to_vec(record).is_ok_and(|json| json.len() <= MACHINE_RECORD_BYTES_MAX)
}
