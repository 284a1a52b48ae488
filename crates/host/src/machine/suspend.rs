//! Which machines can be suspended (contract 1.4).
//!
//! Never looks at the state: that is `state`'s table.

use perch_types::MachineConfig;
use perch_types::host::Command;

/// The most memory that a machine may have to be suspended, in MiB.
pub const MEMORY_MB_MAX: u32 = 2048;

/// Returns why a command to suspend is refused because of the machine's configuration.
#[must_use]
pub fn refusal(command: &Command, config: &MachineConfig) -> Option<String> {
    if !matches!(command, Command::Suspend) {
        return None;
    }
    let memory_mb = config.memory_mb();
    if memory_mb > MEMORY_MB_MAX {
        return Some(format!(
            "config.guest.memory_mb: a machine with {memory_mb} MB cannot be suspended, \
             {MEMORY_MB_MAX} MB is the most"
        ));
    }
    if config.swap_mb() > 0 {
        return Some(
            "config.init.swap_size_mb: a machine with swap cannot be suspended".to_owned(),
        );
    }
    if config.schedule.is_some() {
        return Some("config.schedule: a machine with a schedule cannot be suspended".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_swap_and_a_schedule_forbid_it() {
        for (config, named) in [
            (r#"{"guest":{"memory_mb":2048}}"#, None),
            (r#"{"init":{"swap_size_mb":0}}"#, None),
            (r#"{"guest":{"cpus":2,"memory_mb":2304}}"#, Some("config.guest.memory_mb")),
            (r#"{"init":{"swap_size_mb":64}}"#, Some("config.init.swap_size_mb")),
            (r#"{"schedule":"hourly"}"#, Some("config.schedule")),
        ] {
            let config: MachineConfig = serde_json::from_str(config).unwrap();
            let refused = refusal(&Command::Suspend, &config);
            let path = refused.as_ref().map(|text| text.split(':').next().unwrap());
            assert_eq!(path, named);
            assert_eq!(refusal(&Command::Start, &config), None);
        }
    }
}
