//! Machines that run into a limit and go on: their events say so.
//!
//! Never acts on it: the kernel has.

use perch_runtime::Pressure;
use perch_runtime::room::FULL_BYTES;
use perch_types::MachineConfig;

use crate::machine::record::Reached;
use crate::machine::state::{Fact, State};
use crate::shared::Shared;
use crate::volumes::mounts_of;

impl Shared {
    /// Looks at every machine that runs.
    pub(crate) async fn look_at_limits(&self) {
        for handle in self.all() {
            let published = handle.published();
            let Some(instance) = &published.instance else { continue };
            if published.machine.state != State::Started {
                continue;
            }
            // One that has just ended has its own event.
            let Ok(pressure) = instance.pressure().await else { continue };
            let boot = instance.info().boot;
            let volume_full = self.has_full_volume(&published.machine.config).await;
            for what in reached(pressure, volume_full) {
                handle.tell(Fact::Reached { boot, what });
            }
        }
    }

    /// Returns whether a volume that a machine mounts is full.
    async fn has_full_volume(&self, config: &MachineConfig) -> bool {
        for (id, _) in mounts_of(config) {
            // One that cannot be measured now is looked at again.
            if let Ok(Some(usage)) = self.effects.volumes.usage(&id).await
                && usage.blocks_avail.saturating_mul(usage.block_size) < FULL_BYTES
            {
                return true;
            }
        }
        false
    }
}

fn reached(pressure: Pressure, volume_full: bool) -> impl Iterator<Item = Reached> {
    let all = [
        (pressure.oom_kills > 0, Reached::Memory),
        (pressure.forks_refused > 0, Reached::Processes),
        (pressure.root_full, Reached::Disk),
        (volume_full, Reached::Volume),
        (pressure.log_dropped > 0, Reached::Log),
    ];
    all.into_iter().filter_map(|(is_reached, what)| is_reached.then_some(what))
}
