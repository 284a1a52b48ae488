//! Makes the API's machine of what a host, or the view, says.
//!
//! Never asks anybody.

use perch_types::api::{
    CheckState, CheckStatus, HostStatus, Machine, OrgMachine, OrgMachineConfig,
};
use perch_types::directory::MachineRecord;
use perch_types::host::HostMachine;
use perch_types::image::{ImageRef, Reference};
use perch_types::machine_config::GuestConfig;
use perch_types::{MachineConfig, MachineState};
use serde_json::json;

/// The check that tells whether a machine that has services may get requests, and why not.
const READY_CHECK: &str = "perch-ready";

/// Returns a machine as its host has it.
pub(crate) fn of_host(machine: HostMachine) -> Machine {
    let ready = ready_check(&machine);
    let mut events = machine.events;
    // A failure is told where clients look for reasons.
    if let (Some(failure), Some(newest)) = (&machine.failure, events.first_mut())
        && newest.request.is_none()
    {
        newest.request = Some(json!({ "error": failure }));
    }
    let mut checks = machine.checks;
    checks.extend(ready);
    Machine {
        id: machine.id,
        name: machine.name,
        state: machine.state,
        region: machine.region,
        image_ref: machine.image_ref,
        instance_id: machine.instance.clone(),
        version: machine.instance,
        private_ip: machine.private_ip.to_string(),
        created_at: machine.created_at,
        updated_at: machine.updated_at,
        config: machine.config,
        events,
        checks,
        nonce: None,
        host_status: HostStatus::Ok,
        cordoned: machine.cordoned,
        containers: machine.containers,
        secrets_version: machine.secrets_version,
        answers: None,
    }
}

/// Returns a machine as it was known last, for a host that does not answer.
pub(crate) fn of_record(record: &MachineRecord, mut config: MachineConfig) -> Machine {
    // Labels change without a new version; the record has them.
    config.metadata.extend(record.metadata.clone());
    Machine {
        id: record.id.clone(),
        name: record.name.clone(),
        state: record.state,
        region: record.region.clone(),
        image_ref: image_ref(&record.image),
        instance_id: record.instance.clone(),
        version: record.instance.clone(),
        private_ip: record.private_ip.to_string(),
        created_at: record.created_at,
        updated_at: record.updated_at,
        config,
        events: Vec::new(),
        checks: Vec::new(),
        nonce: None,
        host_status: HostStatus::Unreachable,
        cordoned: record.cordoned,
        containers: record.containers.clone(),
        secrets_version: None,
        answers: None,
    }
}

/// Returns a machine in a list of a whole organization.
pub(crate) fn of_org(record: &MachineRecord, summary: bool) -> OrgMachine {
    let guest = || GuestConfig {
        cpu_kind: Some(record.cpu_kind),
        cpus: Some(record.cpus),
        memory_mb: Some(record.memory_mb),
        ..GuestConfig::default()
    };
    OrgMachine {
        app_name: record.app.clone(),
        id: record.id.clone(),
        name: record.name.clone(),
        region: record.region.clone(),
        state: record.state,
        instance_id: record.instance.clone(),
        version: record.instance.clone(),
        private_ip: record.private_ip.to_string(),
        created_at: record.created_at,
        updated_at: record.updated_at,
        config: (!summary).then(|| OrgMachineConfig {
            guest: guest(),
            image: record.image.clone(),
            metadata: record.metadata.clone(),
        }),
    }
}

/// Returns a machine in a list of a whole organization that only its host knows any more.
pub(crate) fn of_org_destroyed(machine: &HostMachine, summary: bool) -> OrgMachine {
    OrgMachine {
        app_name: machine.app.clone(),
        id: machine.id.clone(),
        name: machine.name.clone(),
        region: machine.region.clone(),
        state: machine.state,
        instance_id: machine.instance.clone(),
        version: machine.instance.clone(),
        private_ip: machine.private_ip.to_string(),
        created_at: machine.created_at,
        updated_at: machine.updated_at,
        config: (!summary).then(|| OrgMachineConfig {
            guest: machine.config.guest.clone().unwrap_or_default(),
            image: machine.config.image.clone(),
            metadata: machine.config.metadata.clone(),
        }),
    }
}

fn image_ref(image: &str) -> ImageRef {
    let mut of = ImageRef::default();
    if let Ok(reference) = image.parse::<Reference>() {
        reference.registry().clone_into(&mut of.registry);
        reference.repository().clone_into(&mut of.repository);
        reference.tag().unwrap_or_default().clone_into(&mut of.tag);
        of.digest = reference.digest().cloned();
    }
    of
}

/// Returns the readiness of a machine that runs services, unless a check of its own says it all.
fn ready_check(machine: &HostMachine) -> Option<CheckStatus> {
    if machine.state != MachineState::Started || machine.config.services.is_empty() {
        return None;
    }
    let because = machine.not_ready_because.clone();
    let said = because.as_ref().is_some_and(|because| {
        machine.checks.iter().any(|check| check.output.contains(because.as_str()))
    });
    if said || (machine.ready && !machine.checks.is_empty()) {
        return None;
    }
    let status = match (machine.ready, &because) {
        (true, _) => CheckState::Passing,
        (false, Some(_)) => CheckState::Critical,
        (false, None) => CheckState::Warning,
    };
    Some(CheckStatus {
        name: READY_CHECK.to_owned(),
        status,
        output: because.unwrap_or_default(),
        updated_at: machine.updated_at,
    })
}
