//! CPU, memory, swap and the writable layer's life (contract 1.13).
//!
//! Never knows what a host has.

use perch_types::MachineConfig;
use perch_types::machine_config::{CpuKind, GuestConfig, RootfsPersist};
use serde_json::Value;

use super::refuse;
use crate::reply::Failure;

/// The most swap in MiB.
const SWAP_MB_MAX: u32 = 65_536;
/// The longest id of a host.
const HOST_ID_BYTES_MAX: usize = 64;

/// What a CPU class allows for each of its CPUs.
struct Bounds {
    memory_mb_of_cpu_max: u32,
    memory_mb_step: u32,
}

const SHARED: Bounds = Bounds { memory_mb_of_cpu_max: 2048, memory_mb_step: 256 };
const PERFORMANCE: Bounds = Bounds { memory_mb_of_cpu_max: 8192, memory_mb_step: 1024 };

/// Fills in what the name of a usual size stands for. What `guest` says itself counts more; the
/// name is not kept, because a later change of `guest` would contradict it.
pub(super) fn size(config: &mut MachineConfig) -> Result<(), Failure> {
    let name = match config.other.get("size") {
        None => return Ok(()),
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(nothing) if super::unsupported::is_nothing(nothing) => return Ok(()),
        Some(_) => return refuse("config.size: is not a text"),
    };
    let Some(preset) = GuestConfig::preset(&name) else {
        let shown: String = name.chars().take(80).collect();
        let numbers = |kind: CpuKind| list(kind.cpus());
        return refuse(format!(
            "config.size: `{shown}` is not shared-cpu-Nx with N of {}, or performance-Nx with N of {}",
            numbers(CpuKind::Shared),
            numbers(CpuKind::Performance)
        ));
    };
    let guest = config.guest.get_or_insert_default();
    if guest.cpu_kind.is_none() && guest.cpus.is_none() && guest.memory_mb.is_none() {
        guest.cpu_kind = preset.cpu_kind;
        guest.cpus = preset.cpus;
        guest.memory_mb = preset.memory_mb;
    }
    config.other.remove("size");
    Ok(())
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// Checks the guest of a configuration; `path` is where it stands in the request.
pub(crate) fn check(path: &str, config: &MachineConfig) -> Result<(), Failure> {
    if config.swap_mb() > SWAP_MB_MAX {
        let swap = config.swap_mb();
        return refuse(format!("config.init.swap_size_mb: {swap} is not 0 to {SWAP_MB_MAX}"));
    }
    let Some(guest) = &config.guest else {
        return Ok(());
    };
    others(guest)?;
    let (bounds, kind) = match config.cpu_kind() {
        CpuKind::Shared => (&SHARED, "shared"),
        CpuKind::Performance => (&PERFORMANCE, "performance"),
    };
    let (cpus, allowed) = (config.cpus(), config.cpu_kind().cpus());
    if !allowed.contains(&cpus) {
        let allowed = list(allowed);
        return refuse(format!(
            "{path}.cpus: {cpus} is not one of {allowed}, as {kind} CPUs allow"
        ));
    }
    let min = cpus * config.cpu_kind().memory_mb_per_cpu();
    let max = cpus * bounds.memory_mb_of_cpu_max;
    let step = bounds.memory_mb_step;
    let memory_mb = config.memory_mb();
    if !(min..=max).contains(&memory_mb) || !memory_mb.is_multiple_of(step) {
        return refuse(format!(
            "{path}.memory_mb: {memory_mb} is not {min} to {max} in steps of {step}, \
             as {cpus} {kind} CPUs allow"
        ));
    }
    // Zero is how clients write "not more than it has".
    let most = guest.max_memory_mb.filter(|most| *most > 0);
    if let Some(most) = most.filter(|most| !(memory_mb..=max).contains(most)) {
        return refuse(format!(
            "config.guest.max_memory_mb: {most} is not {memory_mb} to {max}, the memory that it \
             begins with to what {cpus} {kind} CPUs allow"
        ));
    }
    Ok(())
}

/// Checks the keys that are kept as they came.
fn others(guest: &GuestConfig) -> Result<(), Failure> {
    if let Some(value) = guest.other.get("persist_rootfs")
        && RootfsPersist::of_older(value).is_none()
    {
        let allowed = "never, restart, always, none and their numbers 1, 2, 3, 0";
        return refuse(format!("config.guest.persist_rootfs: allowed are {allowed}"));
    }
    match guest.other.get("host_dedication_id") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(id)) if id.len() <= HOST_ID_BYTES_MAX => Ok(()),
        Some(_) => refuse("config.guest.host_dedication_id: is not the id of a host"),
    }
}

/// Returns the id of the host that a machine is to be on, if it says so.
pub(crate) fn dedication(config: &MachineConfig) -> Option<&str> {
    let id = config.guest.as_ref()?.other.get("host_dedication_id")?.as_str()?;
    (!id.is_empty()).then_some(id)
}
