//! Machines of other hosts, as the directory says.
//!
//! Never asked while a machine of this host can have the request: what is known here is older than
//! what a host says of its own, and the edge there decides.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use perch_types::HostId;
use perch_types::directory::MachineRecord;
use perch_types::view::View;

use crate::live::{AppKey, Load, Target};
use crate::metrics::AppMetrics;

/// How many apps are remembered; beyond that all are looked up anew.
const APPS_MAX: usize = 4_096;

type Machines = Arc<[Arc<Target>]>;

/// What one loop has looked up, with what it sends there.
#[derive(Debug, Default)]
pub(super) struct Known {
    apps: RefCell<HashMap<AppKey, Machines>>,
    /// Requests that go there are counted by the edge there: this is shown to nobody.
    uncounted: Arc<AppMetrics>,
}

impl Known {
    /// Returns the machines of an app on hosts whose edge can be reached; nothing when there are
    /// none.
    pub(super) fn machines_of(&self, view: &View, here: &HostId, app: &AppKey) -> Option<Machines> {
        let is_reached =
            |record: &&MachineRecord| record.host != *here && view.edge(&record.host).is_some();
        let records: Vec<&MachineRecord> =
            view.machines_of(&app.org, &app.name).filter(is_reached).collect();
        let mut apps = self.apps.borrow_mut();
        if records.is_empty() {
            apps.remove(app);
            return None;
        }
        let known = apps.get(app);
        if let Some(known) = known.filter(|known| is_same(known, &records)) {
            return Some(Arc::clone(known));
        }
        let machines: Machines =
            records.into_iter().map(|record| self.target(record, known)).collect();
        if apps.len() >= APPS_MAX {
            apps.clear();
        }
        apps.insert(app.clone(), Arc::clone(&machines));
        Some(machines)
    }

    pub(super) fn uncounted(&self) -> &Arc<AppMetrics> {
        &self.uncounted
    }

    fn target(&self, record: &MachineRecord, known: Option<&Machines>) -> Arc<Target> {
        let known = known.and_then(|known| known.iter().find(|one| one.record.id == record.id));
        let known = known.map(AsRef::as_ref);
        let load = || Arc::new(Load::of_far(&self.uncounted));
        Arc::new(Target::of(record.clone(), known, load))
    }
}

fn is_same(known: &Machines, records: &[&MachineRecord]) -> bool {
    let mut pairs = known.iter().zip(records);
    known.len() == records.len()
        && pairs.all(|(known, record)| {
            (&known.record.id, known.record.generation, &known.record.host)
                == (&record.id, record.generation, &record.host)
        })
}

#[cfg(test)]
mod tests {
    use perch_types::MachineState;
    use perch_types::directory::{Document as _, EdgeDoc};

    use super::*;
    use crate::live::tests::record;

    fn of(host: u64, id: u64, counter: u64) -> MachineRecord {
        let mut record = record(id, "web", MachineState::Started);
        record.host = HostId::from_bits(host);
        record.generation.counter = counter;
        record.private_ip = format!("fdaa:0:1::{id}").parse().unwrap();
        record.private_ipv4 = std::net::Ipv4Addr::new(10, 209, 0, u8::try_from(id).unwrap());
        record
    }

    fn put_edge(view: &mut View, host: u64) {
        let doc = EdgeDoc { address: "192.0.2.2:1".parse().unwrap() };
        let key = EdgeDoc::key(&(HostId::from_bits(host),));
        view.apply(&key, Some(&serde_json::to_vec(&doc).unwrap())).unwrap();
    }

    #[test]
    fn machines_are_those_of_other_hosts_that_can_be_reached() {
        let (known, mut view) = (Known::default(), View::default());
        let app = AppKey { org: "personal".parse().unwrap(), name: "web".parse().unwrap() };
        let here = HostId::from_bits(1);
        let ids = |view: &View| -> Vec<u64> {
            let found = known.machines_of(view, &here, &app);
            found.iter().flat_map(|all| all.iter()).map(|one| one.record.id.bits()).collect()
        };
        for (host, id) in [(1, 1), (2, 2), (3, 3)] {
            view.put_machine(of(host, id, 1));
        }
        assert_eq!(ids(&view), [0; 0], "nobody can be reached");
        put_edge(&mut view, 1);
        put_edge(&mut view, 2);
        assert_eq!(ids(&view), [2]);
        put_edge(&mut view, 3);
        assert_eq!(ids(&view), [2, 3]);
        view.remove_machine(&perch_types::MachineId::from_bits(2));
        assert_eq!(ids(&view), [3]);
    }

    #[test]
    fn what_is_under_way_outlives_a_change_and_nothing_is_made_anew_without_one() {
        let (known, mut view) = (Known::default(), View::default());
        let app = AppKey { org: "personal".parse().unwrap(), name: "web".parse().unwrap() };
        let here = HostId::from_bits(1);
        put_edge(&mut view, 2);
        view.put_machine(of(2, 2, 1));
        let first = known.machines_of(&view, &here, &app).unwrap();
        let _under_way = first[0].load.begin(None).unwrap();
        assert!(Arc::ptr_eq(&first, &known.machines_of(&view, &here, &app).unwrap()));
        view.put_machine(of(2, 2, 2));
        let second = known.machines_of(&view, &here, &app).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert_eq!((second[0].load.in_flight(), second[0].load.is_far), (1, true));
        assert_eq!(second[0].since, first[0].since);
    }
}
