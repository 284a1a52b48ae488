//! CPU and memory (contract 1.13).
//!
//! Never knows what a host has.

use perch_types::MachineConfig;
use perch_types::machine_config::CpuKind;

use super::refuse;
use crate::reply::Failure;

/// What a CPU class allows.
struct Bounds {
    cpus: &'static [u32],
    memory_mb_of_cpu_min: u32,
    memory_mb_of_cpu_max: u32,
    memory_mb_step: u32,
}

const SHARED: Bounds = Bounds {
    cpus: &[1, 2, 4, 6, 8],
    memory_mb_of_cpu_min: 256,
    memory_mb_of_cpu_max: 2048,
    memory_mb_step: 256,
};

const PERFORMANCE: Bounds = Bounds {
    cpus: &[1, 2, 4, 6, 8, 10, 12, 14, 16],
    memory_mb_of_cpu_min: 2048,
    memory_mb_of_cpu_max: 8192,
    memory_mb_step: 1024,
};

/// Checks the guest of a configuration; `path` is where it stands in the request.
pub(crate) fn check(path: &str, config: &MachineConfig) -> Result<(), Failure> {
    let Some(guest) = &config.guest else {
        return Ok(());
    };
    let (bounds, kind) = match config.cpu_kind() {
        CpuKind::Shared => (&SHARED, "shared"),
        CpuKind::Performance => (&PERFORMANCE, "performance"),
    };
    let cpus = config.cpus();
    if !bounds.cpus.contains(&cpus) {
        let allowed: Vec<String> = bounds.cpus.iter().map(u32::to_string).collect();
        let allowed = allowed.join(", ");
        return refuse(format!(
            "{path}.cpus: {cpus} is not one of {allowed}, as {kind} CPUs allow"
        ));
    }
    if guest.memory_mb.is_none() && config.cpu_kind() == CpuKind::Shared && cpus == 1 {
        return Ok(());
    }
    let memory_mb = config.memory_mb();
    let (min, max) = (cpus * bounds.memory_mb_of_cpu_min, cpus * bounds.memory_mb_of_cpu_max);
    let step = bounds.memory_mb_step;
    if !(min..=max).contains(&memory_mb) || !memory_mb.is_multiple_of(step) {
        return refuse(format!(
            "{path}.memory_mb: {memory_mb} is not {min} to {max} in steps of {step}, \
             as {cpus} {kind} CPUs allow"
        ));
    }
    Ok(())
}
