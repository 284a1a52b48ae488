use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use perch_durable::Db;
use perch_durable::testing::{World, everything};
use perch_types::Timestamp;

use super::*;
use crate::effects::VolumeDisks as _;
use crate::fake::FakeServer;
use crate::machine::run::tests::shared_of;
use crate::volumes::record::tests::row;

/// One volume on a server, and what is to be done with it.
struct Volume {
    server: Mutex<FakeServer>,
    intent: Intent,
}

/// What there is: disks, those that nobody can write to, snapshots that are whole.
#[derive(Debug, PartialEq)]
struct Found {
    disks: BTreeMap<Disk, u64>,
    frozen: BTreeSet<Disk>,
    snapshots: Vec<(SnapshotId, bool)>,
}

fn own() -> VolumeId {
    VolumeId::from_bits(1)
}

fn other() -> VolumeId {
    VolumeId::from_bits(2)
}

fn snapshot() -> SnapshotId {
    SnapshotId::from_bits(3)
}

impl Volume {
    fn server(&self) -> FakeServer {
        self.server.lock().unwrap().clone()
    }

    fn makes_it(&self) -> bool {
        matches!(self.intent, Intent::Create | Intent::Restore { .. } | Intent::Fork { .. })
    }
}

impl World for Volume {
    type Executor = Work;
    type Snapshot = Found;

    async fn fresh(&mut self) {
        let server = FakeServer::new();
        server.make(&other(), 2 * GIB).await.unwrap();
        if !self.makes_it() {
            server.make(&own(), GIB).await.unwrap();
        }
        if !matches!(self.intent, Intent::Snapshot { .. }) {
            let from = Disk::Volume(other());
            server.copy(&from, &Disk::Snapshot(snapshot())).await.unwrap();
        }
        *self.server.lock().unwrap() = server;
    }

    fn plan(&self) -> NewRun {
        self.intent.new_run(&own())
    }

    fn executor(&mut self, db: &Db) -> Work {
        let known = SnapshotRow {
            id: snapshot(),
            volume: own(),
            size_gb: 1,
            usage: VolumeUsage::default(),
            created_at: Timestamp::from_unix_ms(1),
            retention_days: 1,
            is_whole: false,
            is_lost: false,
        };
        let snapshots = if self.makes_it() { Vec::new() } else { vec![known] };
        Work {
            shared: shared_of(&self.server(), db),
            intent: self.intent.clone(),
            row: row(1),
            snapshots,
            fault: None,
            left: None,
        }
    }

    async fn snapshot(&mut self, db: &Db) -> Found {
        let (disks, frozen) = self.server().disks();
        let found = db.read(|snapshot| SNAPSHOTS.list(snapshot)).unwrap();
        let snapshots = found.records.into_iter().map(|(id, row)| (id, row.is_whole)).collect();
        Found { disks, frozen, snapshots }
    }
}

#[tokio::test]
async fn every_run_survives_a_crash_after_every_write_and_a_failure_at_every_step() {
    for intent in [
        Intent::Create,
        Intent::Restore { snapshot: snapshot() },
        Intent::Fork { source: other() },
        Intent::Extend { size_gb: 4 },
        Intent::Snapshot { snapshot: snapshot(), is_daily: true },
        Intent::Expire { snapshot: snapshot() },
        Intent::Purge,
    ] {
        let mut volume = Volume { server: Mutex::default(), intent: intent.clone() };
        if let Err(broken) = everything(&mut volume).await {
            panic!("{intent:?}: {broken}");
        }
        assert!(volume.server().disks().1.is_empty(), "{intent:?}: a volume stays frozen");
    }
}
