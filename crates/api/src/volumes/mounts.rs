//! Which volumes a machine's mounts mean: by id, or an unattached one of the name.
//!
//! Never gives a volume to a machine: its host does, and refuses one that another machine has.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use perch_types::directory::{AppDoc, VolumeRecord};
use perch_types::machine_config::MountConfig;
use perch_types::view::View;
use perch_types::{ApiError, Code, HostId, MachineConfig, MachineId, VolumeId};

use super::read::of_app;
use crate::config::Shared;
use crate::reply::Failure;

/// Volumes that were found by their name for machines that are being made, so that two that are
/// made at once do not find the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Picks(Arc<Mutex<BTreeSet<VolumeId>>>);

/// Volumes that nobody else finds until this is dropped.
#[derive(Debug)]
pub(crate) struct Picked {
    picks: Picks,
    ids: Vec<VolumeId>,
}

impl Drop for Picked {
    fn drop(&mut self) {
        let mut picks = self.picks.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &self.ids {
            picks.remove(id);
        }
    }
}

/// The mounts of a machine, each with its volume.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The host that has the volumes; nothing without any.
    pub(crate) host: Option<HostId>,
    /// What was found by name.
    pub(crate) picked: Picked,
}

/// Finds the volumes of a configuration and writes their ids into it. `machine` is the one whose
/// configuration it is, when there is one already; `host` the only one that will do.
pub(crate) fn resolve(
    shared: &Shared,
    app: &AppDoc,
    config: &mut MachineConfig,
    machine: Option<&MachineId>,
    mut host: Option<HostId>,
) -> Result<Resolved, Failure> {
    let view = shared.view.load();
    let mut picked = Picked { picks: shared.picks.clone(), ids: Vec::new() };
    let mut taken = shared.picks.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut own_ids = BTreeSet::new();
    for (index, mount) in config.mounts.iter_mut().enumerate() {
        let path = format!("config.mounts[{index}]");
        let (host_now, own) = (host.as_ref(), &own_ids);
        let asked = Asked { view: &view, app, machine, host: host_now, taken: &taken, own };
        let record = if mount.volume.is_empty() {
            asked.by_name(&path, mount)?.clone()
        } else {
            asked.by_id(&path, mount)?.clone()
        };
        mount.volume = record.id.to_string();
        mount.name = record.name;
        host = Some(record.host);
        let id = record.id;
        own_ids.insert(id.clone());
        if taken.insert(id.clone()) {
            picked.ids.push(id);
        }
    }
    drop(taken);
    let host = host.filter(|_| !config.mounts.is_empty());
    Ok(Resolved { host, picked })
}

/// Returns once the view holds that a machine has its volumes.
pub(crate) async fn follow(shared: &Shared, config: &MachineConfig, machine: &MachineId) {
    let ids: Vec<VolumeId> =
        config.mounts.iter().filter_map(|mount| mount.volume.parse().ok()).collect();
    let has = |view: &View, id: &VolumeId| {
        view.volume(id).is_none_or(|volume| volume.attached.as_ref() == Some(machine))
    };
    let held =
        shared.view.wait_for(|view| ids.iter().all(|id| has(view, id)), shared.limits.view_timeout);
    if held.await.is_none() {
        tracing::warn!(%machine, "view does not hold the machine's volumes yet");
    }
}

struct Asked<'a> {
    view: &'a View,
    app: &'a AppDoc,
    machine: Option<&'a MachineId>,
    host: Option<&'a HostId>,
    taken: &'a BTreeSet<VolumeId>,
    /// Those that mounts before this one of the same machine mean.
    own: &'a BTreeSet<VolumeId>,
}

impl<'a> Asked<'a> {
    fn by_id(&self, path: &str, mount: &MountConfig) -> Result<&'a VolumeRecord, Failure> {
        let unknown = || {
            let usable = of_app(self.view, self.app).filter(|record| record.state.is_usable());
            let known: Vec<String> = usable.map(|record| record.id.to_string()).collect();
            let named = ("volume", mount.volume.as_str());
            Failure::unknown_reference(&format!("{path}.volume"), named, &known)
        };
        let id: VolumeId = mount.volume.parse().map_err(|_| unknown())?;
        let record = of_app(self.view, self.app).find(|record| record.id == id);
        let record = record.ok_or_else(unknown)?;
        if !mount.name.is_empty() && mount.name != record.name {
            let text = format!("{path}.name: volume {id} is called `{}`", record.name);
            return Err(Failure::new(Code::InvalidValue, text));
        }
        if let Some(other) = record.attached.as_ref().filter(|other| Some(*other) != self.machine) {
            return Err(ApiError::volume_attached(id.as_str(), other.as_str()).into());
        }
        if !record.state.is_usable() {
            let refusal = ApiError::volume_state(id.as_str(), record.state);
            let error = format!("{path}.volume: {}", refusal.error);
            return Err(ApiError { error, ..refusal }.into());
        }
        match self.host {
            Some(host) if *host != record.host => {
                let text =
                    format!("{path}.volume: volume {id} is on another host, {}", record.host);
                Err(Failure::new(Code::InvalidValue, text))
            }
            _ => Ok(record),
        }
    }

    /// Returns the machine's own volume of the name, else the oldest that nobody has.
    fn by_name(&self, path: &str, mount: &MountConfig) -> Result<&'a VolumeRecord, Failure> {
        let fits = |record: &&'a VolumeRecord| {
            record.state.is_usable()
                && self.host.is_none_or(|host| *host == record.host)
                && !self.own.contains(&record.id)
                && match &record.attached {
                    // Also while another change of the same machine is under way.
                    Some(other) => Some(other) == self.machine,
                    None => !self.taken.contains(&record.id),
                }
        };
        let all: Vec<&VolumeRecord> = of_app(self.view, self.app).filter(fits).collect();
        let mut fitting: Vec<&VolumeRecord> =
            all.iter().copied().filter(|record| record.name == mount.name).collect();
        fitting.sort_by_key(|record| (record.attached.is_none(), record.created_at, &record.id));
        fitting.first().copied().ok_or_else(|| {
            let known: BTreeSet<&str> = all.iter().map(|record| record.name.as_str()).collect();
            let known: Vec<String> = known.into_iter().map(str::to_owned).collect();
            let named = ("unattached volume called", mount.name.as_str());
            Failure::unknown_reference(&format!("{path}.name"), named, &known)
                .with_hint("create one: `perch volumes create`")
        })
    }
}
