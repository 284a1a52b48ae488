//! The view: a snapshot of the public state that routing, names and lists read.
//!
//! Never asks anybody: it is built from documents of the directory, one change at a time, and a
//! document that cannot be read takes down nothing but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::directory::{AppDoc, Document as _, HostnameClaim, MachineRecord, VolumeRecord};
use crate::id::{AppName, MachineId, OrgSlug, VolumeId};

/// Apps, machines and host names as the directory has them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    apps: BTreeMap<AppName, AppDoc>,
    machines: BTreeMap<MachineId, MachineRecord>,
    machines_of: BTreeMap<AppName, BTreeSet<MachineId>>,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    hostnames: BTreeMap<String, HostnameClaim>,
    addresses: BTreeMap<IpAddr, MachineId>,
}

/// Prefixes of the directory that a view is made of.
pub const PREFIXES: [&str; 4] =
    [AppDoc::PREFIX, HostnameClaim::PREFIX, MachineRecord::PREFIX, VolumeRecord::PREFIX];

/// A document that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read document `{key}`")]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// Why.
    #[source]
    pub source: serde_json::Error,
}

impl View {
    /// Takes one change of the directory; `None` is a deletion. Keys of other kinds are left.
    ///
    /// # Errors
    /// When the document cannot be read; the view then keeps what it knew of the key.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), Unreadable> {
        let unreadable = |source| Unreadable { key: key.to_owned(), source };
        if let Some(rest) = key.strip_prefix(AppDoc::PREFIX) {
            match value {
                Some(bytes) => {
                    let app: AppDoc = serde_json::from_slice(bytes).map_err(unreadable)?;
                    self.apps.insert(app.name.clone(), app);
                }
                None => self.forget_app(rest),
            }
        } else if key.starts_with(MachineRecord::PREFIX) {
            match value {
                Some(bytes) => {
                    self.put_machine(serde_json::from_slice(bytes).map_err(unreadable)?);
                }
                None => self.forget_machine(key),
            }
        } else if key.starts_with(VolumeRecord::PREFIX) {
            match value {
                Some(bytes) => self.put_volume(serde_json::from_slice(bytes).map_err(unreadable)?),
                None => self.forget_volume(key),
            }
        } else if let Some(hostname) = key.strip_prefix(HostnameClaim::PREFIX) {
            match value {
                Some(bytes) => {
                    let claim = serde_json::from_slice(bytes).map_err(unreadable)?;
                    self.hostnames.insert(hostname.to_owned(), claim);
                }
                None => {
                    self.hostnames.remove(hostname);
                }
            }
        }
        Ok(())
    }

    /// Takes a machine's record unless a newer generation of it is known.
    pub fn put_machine(&mut self, machine: MachineRecord) {
        if let Some(known) = self.machines.get(&machine.id) {
            if known.generation > machine.generation {
                return;
            }
            let known = known.clone();
            self.unlink(&known);
        }
        self.addresses.insert(machine.private_ip.into(), machine.id.clone());
        self.addresses.insert(machine.private_ipv4.into(), machine.id.clone());
        self.machines_of.entry(machine.app.clone()).or_default().insert(machine.id.clone());
        self.machines.insert(machine.id.clone(), machine);
    }

    /// Forgets a machine.
    pub fn remove_machine(&mut self, id: &MachineId) {
        if let Some(machine) = self.machines.remove(id) {
            self.unlink(&machine);
        }
    }

    fn put_volume(&mut self, volume: VolumeRecord) {
        let is_old =
            self.volumes.get(&volume.id).is_some_and(|known| known.generation > volume.generation);
        if !is_old {
            self.volumes.insert(volume.id.clone(), volume);
        }
    }

    fn forget_volume(&mut self, key: &str) {
        if let Some(Ok(id)) = key.rsplit('/').next().map(str::parse::<VolumeId>) {
            self.volumes.remove(&id);
        }
    }

    /// Returns a volume.
    #[must_use]
    pub fn volume(&self, id: &VolumeId) -> Option<&VolumeRecord> {
        self.volumes.get(id)
    }

    /// Returns all volumes, by id.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values()
    }

    /// Returns an app.
    #[must_use]
    pub fn app(&self, name: &AppName) -> Option<&AppDoc> {
        self.apps.get(name)
    }

    /// Returns all apps, by name.
    pub fn apps(&self) -> impl Iterator<Item = &AppDoc> {
        self.apps.values()
    }

    /// Returns a machine.
    #[must_use]
    pub fn machine(&self, id: &MachineId) -> Option<&MachineRecord> {
        self.machines.get(id)
    }

    /// Returns all machines, by id.
    pub fn machines(&self) -> impl Iterator<Item = &MachineRecord> {
        self.machines.values()
    }

    /// Returns the machines of an organization's app, by id. One that another organization had
    /// under the name may not be forgotten yet.
    pub fn machines_of(
        &self,
        org: &OrgSlug,
        app: &AppName,
    ) -> impl Iterator<Item = &MachineRecord> {
        let ids = self.machines_of.get(app).into_iter().flatten();
        ids.filter_map(|id| self.machines.get(id)).filter(move |machine| machine.org == *org)
    }

    /// Returns the machine that owns a private address.
    #[must_use]
    pub fn machine_at(&self, address: IpAddr) -> Option<&MachineRecord> {
        self.addresses.get(&address).and_then(|id| self.machines.get(id))
    }

    /// Returns who claimed a public host name, which must be in lower case.
    #[must_use]
    pub fn hostname(&self, hostname: &str) -> Option<&HostnameClaim> {
        self.hostnames.get(hostname)
    }

    fn forget_app(&mut self, rest: &str) {
        let Some((org, name)) = rest.split_once('/') else {
            return;
        };
        let (Ok(org), Ok(name)) = (org.parse::<OrgSlug>(), name.parse::<AppName>()) else {
            return;
        };
        if self.apps.get(&name).is_some_and(|app| app.org == org) {
            self.apps.remove(&name);
        }
    }

    fn forget_machine(&mut self, key: &str) {
        if let Some(Ok(id)) = key.rsplit('/').next().map(str::parse) {
            self.remove_machine(&id);
        }
    }

    fn unlink(&mut self, machine: &MachineRecord) {
        for address in [IpAddr::from(machine.private_ip), IpAddr::from(machine.private_ipv4)] {
            // The address may be another machine's by now.
            if self.addresses.get(&address) == Some(&machine.id) {
                self.addresses.remove(&address);
            }
        }
        if let Some(ids) = self.machines_of.get_mut(&machine.app) {
            ids.remove(&machine.id);
            if ids.is_empty() {
                self.machines_of.remove(&machine.app);
            }
        }
    }
}
