//! The view: a snapshot of the public state that routing, names and lists read.
//!
//! Never asks anybody: it is built from documents of the directory, one change at a time, and a
//! document that cannot be read takes down nothing but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::certificates::WILDCARD;
use crate::directory::{
    AppDoc, Document as _, EdgeDoc, HostnameClaim, MachineRecord, VolumeRecord,
};
use crate::id::{AppName, HostId, MachineId, OrgSlug, VolumeId};
use crate::ports::{Holder, PortClaim, RawPort};
use crate::replays::ReplaySources;

/// Apps, machines, host names, raw ports and edges as the directory has them. A clone shares what neither changes: a
/// view is made anew for each change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    apps: Arc<BTreeMap<AppName, AppDoc>>,
    machines: Arc<BTreeMap<MachineId, Arc<MachineRecord>>>,
    machines_of: Arc<BTreeMap<AppName, BTreeSet<MachineId>>>,
    volumes: Arc<BTreeMap<VolumeId, VolumeRecord>>,
    hostnames: Arc<BTreeMap<String, HostnameClaim>>,
    ports: Arc<BTreeMap<RawPort, PortClaim>>,
    addresses: Arc<BTreeMap<IpAddr, MachineId>>,
    edges: Arc<BTreeMap<HostId, SocketAddr>>,
    replays: Arc<BTreeMap<OrgSlug, ReplaySources>>,
}

/// Prefixes of the directory that a view is made of.
pub const PREFIXES: [&str; 7] = [
    AppDoc::PREFIX,
    EdgeDoc::PREFIX,
    HostnameClaim::PREFIX,
    MachineRecord::PREFIX,
    VolumeRecord::PREFIX,
    PortClaim::PREFIX,
    ReplaySources::PREFIX,
];

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
                    Arc::make_mut(&mut self.apps).insert(app.name.clone(), app);
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
                    Arc::make_mut(&mut self.hostnames).insert(hostname.to_owned(), claim);
                }
                None => {
                    Arc::make_mut(&mut self.hostnames).remove(hostname);
                }
            }
        } else if let Some(host) = key.strip_prefix(EdgeDoc::PREFIX) {
            let edge = value.map(serde_json::from_slice).transpose().map_err(unreadable)?;
            self.put_edge(host, edge);
        } else if let Some(port) = PortClaim::port_of(key) {
            let claim = value.map(serde_json::from_slice).transpose().map_err(unreadable)?;
            self.put_port(port, claim);
        } else if let Some(org) = key.strip_prefix(ReplaySources::PREFIX) {
            let said = value.map(serde_json::from_slice).transpose().map_err(unreadable)?;
            self.put_replays(org, said);
        }
        Ok(())
    }

    /// Takes a machine's record unless a newer generation of it is known.
    pub fn put_machine(&mut self, machine: MachineRecord) {
        let known = self.machines.get(&machine.id).cloned();
        if known.as_ref().is_some_and(|known| known.generation > machine.generation) {
            return;
        }
        if !self.is_linked(&machine) {
            if let Some(known) = known {
                self.unlink(&known);
            }
            self.link(&machine);
        }
        Arc::make_mut(&mut self.machines).insert(machine.id.clone(), Arc::new(machine));
    }

    /// Forgets a machine.
    pub fn remove_machine(&mut self, id: &MachineId) {
        if let Some(machine) = self.machines.get(id).cloned() {
            self.unlink(&machine);
            Arc::make_mut(&mut self.machines).remove(id);
        }
    }

    fn put_port(&mut self, port: RawPort, claim: Option<PortClaim>) {
        let ports = Arc::make_mut(&mut self.ports);
        match claim {
            Some(claim) => ports.insert(port, claim),
            None => ports.remove(&port),
        };
    }

    fn put_edge(&mut self, host: &str, edge: Option<EdgeDoc>) {
        let Ok(host) = host.parse::<HostId>() else {
            return;
        };
        let edges = Arc::make_mut(&mut self.edges);
        match edge {
            Some(edge) => edges.insert(host, edge.address),
            None => edges.remove(&host),
        };
    }

    fn put_replays(&mut self, org: &str, said: Option<ReplaySources>) {
        let Ok(org) = org.parse::<OrgSlug>() else {
            return;
        };
        let replays = Arc::make_mut(&mut self.replays);
        match said {
            Some(said) => replays.insert(org, said),
            None => replays.remove(&org),
        };
    }

    fn put_volume(&mut self, volume: VolumeRecord) {
        let is_old =
            self.volumes.get(&volume.id).is_some_and(|known| known.generation > volume.generation);
        if !is_old {
            Arc::make_mut(&mut self.volumes).insert(volume.id.clone(), volume);
        }
    }

    fn forget_volume(&mut self, key: &str) {
        if let Some(Ok(id)) = key.rsplit('/').next().map(str::parse::<VolumeId>) {
            Arc::make_mut(&mut self.volumes).remove(&id);
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
        self.machines.get(id).map(AsRef::as_ref)
    }

    /// Returns all machines, by id.
    pub fn machines(&self) -> impl Iterator<Item = &MachineRecord> {
        self.machines.values().map(AsRef::as_ref)
    }

    /// Returns the machines of an organization's app, by id. One that another organization had
    /// under the name may not be forgotten yet.
    pub fn machines_of(
        &self,
        org: &OrgSlug,
        app: &AppName,
    ) -> impl Iterator<Item = &MachineRecord> {
        let ids = self.machines_of.get(app).into_iter().flatten();
        ids.filter_map(|id| self.machine(id)).filter(move |machine| machine.org == *org)
    }

    /// Returns the machine that owns a private address.
    #[must_use]
    pub fn machine_at(&self, address: IpAddr) -> Option<&MachineRecord> {
        self.addresses.get(&address).and_then(|id| self.machine(id))
    }

    /// Returns where the edge of a host takes requests from other edges, if it does.
    #[must_use]
    pub fn edge(&self, host: &HostId) -> Option<SocketAddr> {
        self.edges.get(host).copied()
    }

    /// Returns whether an app may send requests on to another one: to those of its organization and
    /// network, and where that one's organization says so.
    #[must_use]
    pub fn may_replay(&self, from: &AppDoc, to: &AppDoc) -> bool {
        match self.replays.get(&to.org) {
            Some(said) => said.allow(from, to),
            None => ReplaySources::default().allow(from, to),
        }
    }

    /// Returns who claimed a public host name, which must be in lower case: itself, or else all
    /// names right below the one above it.
    #[must_use]
    pub fn hostname(&self, hostname: &str) -> Option<&HostnameClaim> {
        self.hostnames.get(hostname).or_else(|| {
            let (_, above) = hostname.split_once('.')?;
            self.hostnames.get(&format!("{WILDCARD}{above}"))
        })
    }

    /// Returns the claimed ports, each with those of its holders which there are; there is one.
    pub fn raw_ports(&self) -> impl Iterator<Item = (RawPort, Vec<&Holder>)> {
        let is_there = move |holder: &&Holder| {
            self.app(&holder.app).is_some_and(|app| holder.is(&app.org, &app.id))
        };
        self.ports.iter().filter_map(move |(port, claim)| {
            let holders: Vec<&Holder> = claim.holders().filter(is_there).collect();
            (!holders.is_empty()).then_some((*port, holders))
        })
    }

    fn forget_app(&mut self, rest: &str) {
        let Some((org, name)) = rest.split_once('/') else {
            return;
        };
        let (Ok(org), Ok(name)) = (org.parse::<OrgSlug>(), name.parse::<AppName>()) else {
            return;
        };
        if self.apps.get(&name).is_some_and(|app| app.org == org) {
            Arc::make_mut(&mut self.apps).remove(&name);
        }
    }

    fn forget_machine(&mut self, key: &str) {
        if let Some(Ok(id)) = key.rsplit('/').next().map(str::parse) {
            self.remove_machine(&id);
        }
    }

    /// Returns whether a machine is found by its app and its addresses.
    fn is_linked(&self, machine: &MachineRecord) -> bool {
        let id = &machine.id;
        let is_at = |address: IpAddr| self.addresses.get(&address) == Some(id);
        let known = self.machines.get(id);
        known.is_some_and(|known| {
            known.app == machine.app
                && known.private_ip == machine.private_ip
                && known.private_ipv4 == machine.private_ipv4
        }) && is_at(machine.private_ip.into())
            && is_at(machine.private_ipv4.into())
    }

    fn link(&mut self, machine: &MachineRecord) {
        let addresses = Arc::make_mut(&mut self.addresses);
        addresses.insert(machine.private_ip.into(), machine.id.clone());
        addresses.insert(machine.private_ipv4.into(), machine.id.clone());
        let machines_of = Arc::make_mut(&mut self.machines_of);
        machines_of.entry(machine.app.clone()).or_default().insert(machine.id.clone());
    }

    fn unlink(&mut self, machine: &MachineRecord) {
        let addresses = Arc::make_mut(&mut self.addresses);
        for address in [IpAddr::from(machine.private_ip), IpAddr::from(machine.private_ipv4)] {
            // The address may be another machine's by now.
            if addresses.get(&address) == Some(&machine.id) {
                addresses.remove(&address);
            }
        }
        let machines_of = Arc::make_mut(&mut self.machines_of);
        if let Some(ids) = machines_of.get_mut(&machine.app) {
            ids.remove(&machine.id);
            if ids.is_empty() {
                machines_of.remove(&machine.app);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(id: u64, counter: u64, private_ipv4: &str) -> MachineRecord {
        serde_json::from_value(serde_json::json!({
            "id": MachineId::from_bits(id), "org": "personal", "app": "web", "name": "one",
            "host": HostId::from_bits(1), "region": "fra",
            "instance": crate::InstanceId::from_parts(1, 1),
            "generation": {"incarnation": 1, "counter": counter},
            "state": "started", "ready": true, "private_ip": format!("fdaa:0:1::{id}"),
            "private_ipv4": private_ipv4, "image": "web:1", "cpus": 1, "memory_mb": 256,
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_claim_of_all_names_below_another_leads_where_no_name_itself_does() {
        let claim =
            |app: &str| HostnameClaim { org: OrgSlug::personal(), app: app.parse().unwrap() };
        let mut view = View::default();
        for (hostname, app) in [("*.shop.example", "all"), ("one.shop.example", "one")] {
            let key = HostnameClaim::key(&(hostname.to_owned(),));
            view.apply(&key, Some(&serde_json::to_vec(&claim(app)).unwrap())).unwrap();
        }
        for (hostname, want) in [
            ("one.shop.example", Some("one")),
            ("two.shop.example", Some("all")),
            ("a.two.shop.example", None),
            ("shop.example", None),
            ("example", None),
        ] {
            let found = view.hostname(hostname).map(|claim| claim.app.as_str());
            assert_eq!(found, want, "{hostname}");
        }
    }

    #[test]
    fn an_edge_is_where_it_says_until_it_takes_that_back() {
        let host = HostId::from_bits(7);
        let key = EdgeDoc::key(&(host.clone(),));
        let mut view = View::default();
        view.apply(&key, Some(br#"{"address":"192.0.2.7:4282"}"#)).unwrap();
        assert_eq!(view.edge(&host), Some("192.0.2.7:4282".parse().unwrap()));
        assert_eq!(view.edge(&HostId::from_bits(8)), None);
        view.apply(&key, Some(b"{")).unwrap_err();
        view.apply("edges/x", Some(br#"{"address":"192.0.2.8:1"}"#)).unwrap();
        assert!(view.edge(&host).is_some());
        view.apply(&key, None).unwrap();
        assert_eq!(view.edge(&host), None);
    }

    #[test]
    fn an_app_sends_requests_on_where_the_organization_that_gets_them_says_so() {
        let app = |org: &str, network: &str| -> AppDoc {
            serde_json::from_value(serde_json::json!({
                "id": "a1", "number": 1, "name": "web", "org": org, "network": network,
                "network_id": 1, "created_at": "2026-01-01T00:00:00Z",
            }))
            .unwrap()
        };
        let (own, apart, other) =
            (app("personal", "default"), app("personal", "apart"), app("other", "default"));
        let may = |view: &View| [&own, &apart, &other].map(|from| view.may_replay(from, &own));
        let (ours, theirs) = ("replay_sources/personal", "replay_sources/other");
        let all = br#"{"allow_all_cross_network_replays":true,
            "allowed_replay_source_org_slugs":["other"]}"#;
        let mut view = View::default();
        assert_eq!(may(&view), [true, false, false]);
        view.apply(theirs, Some(br#"{"allowed_replay_source_org_slugs":["personal"]}"#)).unwrap();
        assert_eq!(may(&view), [true, false, false], "that is about requests to the others");
        view.apply(ours, Some(all)).unwrap();
        assert_eq!(may(&view), [true, true, true]);
        view.apply(ours, Some(b"{")).unwrap_err();
        assert_eq!(may(&view), [true, true, true]);
        view.apply(ours, None).unwrap();
        assert_eq!(may(&view), [true, false, false]);
    }

    #[test]
    fn a_view_made_anew_shares_what_did_not_change() {
        let mut before = View::default();
        before.put_machine(machine(1, 1, "10.209.0.1"));
        before.put_machine(machine(2, 1, "10.209.0.2"));
        let mut after = before.clone();
        after.put_machine(machine(1, 2, "10.209.0.1"));
        assert!(Arc::ptr_eq(&before.addresses, &after.addresses));
        assert!(Arc::ptr_eq(&before.machines_of, &after.machines_of));
        let counter =
            |view: &View, id| view.machine(&MachineId::from_bits(id)).unwrap().generation.counter;
        assert_eq!((counter(&before, 1), counter(&after, 1)), (1, 2));
        let of = |view: &View, id: u64| {
            std::ptr::from_ref(view.machine(&MachineId::from_bits(id)).unwrap())
        };
        assert_eq!(of(&before, 2), of(&after, 2));
    }

    #[test]
    fn a_claimed_port_is_an_apps_for_as_long_as_there_is_that_app() {
        let app = |id: &str| {
            serde_json::to_vec(&serde_json::json!({
                "id": id, "number": 1, "name": "web", "org": "personal", "network": "default",
                "network_id": 1, "created_at": "2026-01-01T00:00:00Z",
            }))
            .unwrap()
        };
        let claim = serde_json::to_vec(&serde_json::json!({
            "org": "personal", "app": "web", "app_id": "a1", "claimed_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap();
        let (key, doc) = ("names/ports/tcp/5432", "apps/personal/web");
        let ports = |view: &View| view.raw_ports().map(|(port, _)| port.1).collect::<Vec<_>>();
        let mut view = View::default();
        view.apply(key, Some(&claim)).unwrap();
        assert_eq!(ports(&view), [0; 0], "there is no such app");
        view.apply(doc, Some(&app("a1"))).unwrap();
        assert_eq!(ports(&view), [5432]);
        view.apply(doc, Some(&app("a2"))).unwrap();
        assert_eq!(ports(&view), [0; 0], "another app has the name");
        view.apply(doc, Some(&app("a1"))).unwrap();
        view.apply(key, None).unwrap();
        assert_eq!(ports(&view), [0; 0]);
        view.apply("names/ports/tcp/x", Some(b"{")).unwrap();
        view.apply(key, Some(b"{")).unwrap_err();
    }

    #[test]
    fn an_address_is_the_machines_that_had_it_last() {
        let at = |view: &View, address: &str| {
            view.machine_at(address.parse().unwrap()).map(|machine| machine.id.clone())
        };
        let (one, two) = (MachineId::from_bits(1), MachineId::from_bits(2));
        let mut view = View::default();
        view.put_machine(machine(1, 1, "10.209.0.1"));
        view.put_machine(machine(2, 1, "10.209.0.1"));
        assert_eq!(at(&view, "10.209.0.1"), Some(two));
        view.put_machine(machine(1, 2, "10.209.0.1"));
        assert_eq!(at(&view, "10.209.0.1"), Some(one.clone()));
        view.put_machine(machine(1, 3, "10.209.0.3"));
        assert_eq!((at(&view, "10.209.0.1"), at(&view, "10.209.0.3")), (None, Some(one.clone())));
        view.remove_machine(&one);
        assert_eq!(at(&view, "10.209.0.3"), None);
        assert_eq!(view.machines_of(&OrgSlug::personal(), &"web".parse().unwrap()).count(), 1);
    }
}
