//! What belongs to no machine is removed; at the end, everything.
//!
//! Never touches what another instance on the same server made: names carry the instance.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use perch_runtime::MachineDir;
use perch_types::MachineId;
use perch_types::host::Command;

use super::Host;
use crate::error::Error;
use crate::machine::state::State;
use crate::schema::Queued;

/// How deep the cgroups of this host are at most.
const CGROUP_DEPTH_MAX: usize = 8;
/// How long processes that were told to end may stay in their cgroup, and how often to look.
const CGROUP_TIMEOUT: Duration = Duration::from_secs(5);
const CGROUP_PAUSE: Duration = Duration::from_millis(20);
/// How long all machines may take to go.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(60);

impl Host {
    /// Removes interfaces, processes and folders of machines that are not known.
    pub(super) async fn remove_leaks(&self, known: &BTreeSet<MachineId>) {
        let effects = &self.shared.effects;
        let mut found: BTreeSet<MachineId> = BTreeSet::new();
        for root in [&self.shared.config.data_dir, &self.shared.config.run_dir] {
            found.extend(machines_in(&root.join("machines")));
        }
        let unknown: Vec<MachineId> = found.difference(known).cloned().collect();
        for machine in unknown {
            tracing::warn!(%machine, "machine is unknown, its remains are removed");
            self.remove_remains(&self.shared.machine_dir(&machine)).await;
        }
        match effects.networks.attached().await {
            Ok(attached) => {
                for machine in attached.into_iter().filter(|machine| !known.contains(machine)) {
                    tracing::warn!(%machine, "interface belongs to no machine and is removed");
                    if let Err(error) = effects.networks.detach(&machine).await {
                        tracing::warn!(%machine, %error, "interface stays");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "interfaces cannot be listed"),
        }
    }

    async fn remove_remains(&self, dir: &MachineDir) {
        let effects = &self.shared.effects;
        if let Err(error) = effects.runtime.clean(dir).await {
            tracing::warn!(machine = %dir.machine, %error, "remains stay");
            return;
        }
        for path in [&dir.state, &dir.run] {
            if let Err(error) = effects.rootfs.remove(path).await {
                tracing::warn!(machine = %dir.machine, %error, "folder stays");
            }
        }
    }

    /// Destroys all machines and removes what the agent made outside of its folders: mounts,
    /// interfaces, rules, cgroups. Afterwards only [`Host::shutdown`] makes sense.
    ///
    /// # Errors
    /// When something stays.
    pub async fn remove_everything(&self) -> Result<(), Error> {
        let all = self.shared.all();
        for handle in &all {
            let command = Command::Destroy { force: true };
            if let Err(error) = handle.command(Queued::of(command)).await {
                tracing::warn!(machine = %handle.id, %error, "machine is not destroyed");
            }
        }
        let gone = async {
            for handle in &all {
                let mut follow = handle.follow();
                // An error means that its task has ended, which is as good.
                drop(
                    follow
                        .wait_for(|published| published.machine.state == State::Destroyed)
                        .await
                        .map(drop),
                );
            }
        };
        if tokio::time::timeout(REMOVE_TIMEOUT, gone).await.is_err() {
            return Err(Error::Remains("machines do not end".to_owned()));
        }
        for handle in &all {
            self.remove_remains(&self.shared.machine_dir(&handle.id)).await;
        }
        let effects = &self.shared.effects;
        let remains = |fault: crate::effects::Fault| Error::Remains(fault.to_string());
        effects.images.unmount_unused(&|_| false).await.map_err(remains)?;
        effects.volumes.teardown().await.map_err(remains)?;
        effects.networks.teardown().await.map_err(remains)?;
        remove_cgroups(&self.shared.config.cgroup).await;
        self.shutdown().await;
        Ok(())
    }
}

fn machines_in(folder: &Path) -> Vec<MachineId> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect()
}

/// Removes the folders that monitors and machines were in, in every hierarchy. A monitor that was
/// told to end may still be in one for a moment, and then the kernel refuses.
async fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).map(|entries| entries.flatten().collect::<Vec<_>>());
    let mut slices = vec![root.join(name)];
    slices.extend(hierarchies.unwrap_or_default().iter().map(|entry| entry.path().join(name)));
    let removed = async {
        while slices.iter().map(|slice| remove_cgroup(slice, 0)).filter(Result::is_err).count() > 0
        {
            tokio::time::sleep(CGROUP_PAUSE).await;
        }
    };
    if tokio::time::timeout(CGROUP_TIMEOUT, removed).await.is_ok() {
        return;
    }
    for slice in &slices {
        if let Err(error) = remove_cgroup(slice, 0) {
            tracing::warn!(folder = %slice.display(), %error, "cgroup stays");
        }
    }
}

fn remove_cgroup(folder: &Path, depth: usize) -> std::io::Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    if depth < CGROUP_DEPTH_MAX {
        let folders =
            entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for entry in folders {
            remove_cgroup(&entry.path(), depth + 1)?;
        }
    }
    std::fs::remove_dir(folder)
}
