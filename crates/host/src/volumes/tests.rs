//! Volumes on a server that is none: who has the turn, and what becomes of runs that nobody drives.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use perch_durable::{Db, Journal};
use perch_types::clock::Clock;
use perch_types::directory::VolumeRecord;
use perch_types::host::{CreateVolume, VolumeSource};
use perch_types::volume::{GIB, VolumeState};
use perch_types::{Code, OrgSlug};
use tokio::task::JoinHandle;

use super::run::Intent;
use super::*;
use crate::effects::Disk;
use crate::fake::FakeServer;
use crate::machine::run::tests::shared_at;

/// A wall clock that stands still until somebody turns it, beside one that moves on each time it is
/// looked at.
#[derive(Debug, Default)]
struct Calendar {
    turned_ms: AtomicI64,
    looks: AtomicU64,
}

impl Calendar {
    fn turn(&self, days: i64) {
        self.turned_ms.fetch_add(days * record::DAY_MS, Ordering::Relaxed);
    }
}

impl Clock for Calendar {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_000_000 + self.turned_ms.load(Ordering::Relaxed))
    }

    fn boot_ms(&self) -> u64 {
        self.looks.fetch_add(1, Ordering::Relaxed)
    }
}

struct Rig {
    shared: Arc<Shared>,
    server: FakeServer,
    clock: Arc<Calendar>,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let (folder, server) = (tempfile::tempdir().unwrap(), FakeServer::new());
        let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
        let clock = Arc::new(Calendar::default());
        let shared = shared_at(&server, &db, Arc::<Calendar>::clone(&clock));
        Self { shared, server, clock, _folder: folder }
    }

    /// Ends the agent in the middle of what it does; the next one goes on.
    async fn restart(&mut self) {
        self.shared.stopping.cancel();
        self.wait().await;
        let clock = Arc::<Calendar>::clone(&self.clock);
        self.shared = shared_at(&self.server, &self.shared.db, clock);
        let left = self.shared.journal.unfinished().unwrap().runs.into_iter();
        let mut runs = left.map(|run| (run.state().owner.clone(), run)).collect();
        self.shared.recover_volumes(&mut runs).await.unwrap();
        assert!(runs.is_empty());
    }

    async fn create(&self, bits: u128, source: VolumeSource) -> VolumeRecord {
        self.shared.create_volume(asked(bits, source)).await.unwrap()
    }

    /// Waits until work has begun with a disk, and has the one who asked for it go away.
    async fn leave(&self, work: JoinHandle<Result<VolumeRecord, ApiError>>, touched: &Disk) {
        let before = self.server.touches(touched);
        self.until(|| self.server.touches(touched) > before).await;
        work.abort();
        assert!(work.await.unwrap_err().is_cancelled());
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        let held = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), held).await.unwrap();
    }

    fn has_turn(&self, id: &VolumeId) -> bool {
        self.shared.volumes.entry(id).unwrap().try_turn().is_some()
    }

    /// Lets the server go on, and waits until nothing is done to any volume.
    async fn finish(&self) {
        self.server.hold_disks(false);
        self.wait().await;
        self.shared.tasks.reopen();
    }

    async fn wait(&self) {
        self.shared.tasks.close();
        tokio::time::timeout(Duration::from_secs(60), self.shared.tasks.wait()).await.unwrap();
    }

    /// Begins a run that nobody drives, as one is that met a fault.
    async fn leave_run(&self, id: &VolumeId, intent: &Intent) {
        let begun = self.shared.journal.begin_alone(intent.new_run(id), 0).await;
        drop(begun.unwrap());
    }

    /// Returns whether a volume has a run that has not ended.
    fn has_run(&self, id: &VolumeId) -> bool {
        let found: Result<_, perch_durable::Error> =
            self.shared.db.read(|snapshot| Journal::unfinished_of(snapshot, id.as_str()));
        found.unwrap().is_some()
    }

    fn known(&self, id: &VolumeId) -> Known {
        self.shared.volumes.entry(id).unwrap().known()
    }
}

fn id(bits: u128) -> VolumeId {
    VolumeId::from_bits(bits)
}

fn snapshot(bits: u128) -> SnapshotId {
    SnapshotId::from_bits(bits)
}

fn asked(bits: u128, source: VolumeSource) -> CreateVolume {
    CreateVolume {
        id: id(bits),
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        app_id: "app_1".to_owned(),
        name: "data".to_owned(),
        size_gb: 1,
        source,
        // What is made is over at once, but nothing looks before it is told to.
        snapshot_retention: 0,
        auto_backup: false,
    }
}

#[tokio::test]
async fn a_volume_that_is_being_made_is_made_once_whoever_looks_at_it_and_whoever_goes_away() {
    for source in
        [VolumeSource::Empty, VolumeSource::Volume(id(1)), VolumeSource::Snapshot(snapshot(1))]
    {
        let rig = Rig::new();
        rig.create(1, VolumeSource::Empty).await;
        rig.shared.snapshot_volume(&id(1), snapshot(1), false).await.unwrap();
        rig.server.hold_disks(true);
        let (shared, create) = (Arc::clone(&rig.shared), asked(2, source.clone()));
        let making = tokio::spawn(async move { shared.create_volume(create).await });
        let disk = Disk::Volume(id(2));
        rig.leave(making, &disk).await;
        assert!(!rig.has_turn(&id(2)), "{source:?}");
        // What it is made of stays as it is.
        assert_eq!(rig.has_turn(&id(1)), source == VolumeSource::Empty, "{source:?}");
        // Were it driven a second time, its disk would be replaced under a machine.
        assert!(rig.shared.retry_volume(&id(2)), "{source:?}");
        if source != VolumeSource::Empty {
            rig.shared.tend_volumes().await;
            let known = rig.known(&id(1));
            assert_eq!(known.snapshots.len(), 1, "{source:?}: it was removed meanwhile");
        }
        rig.finish().await;
        assert_eq!(rig.known(&id(2)).row.record.state, VolumeState::Created, "{source:?}");
        // A copy is grown after it is made.
        let touches = if source == VolumeSource::Empty { 1 } else { 2 };
        assert_eq!(rig.server.touches(&disk), touches, "{source:?}");
    }
}

#[tokio::test]
async fn a_volume_that_grows_has_the_turn_until_it_has_grown_though_its_launch_was_cut_short() {
    let rig = Rig::new();
    rig.create(1, VolumeSource::Empty).await;
    rig.server.hold_disks(true);
    let shared = Arc::clone(&rig.shared);
    let growing = tokio::spawn(async move { shared.extend_volume(&id(1), 3).await });
    rig.leave(growing, &Disk::Volume(id(1))).await;
    assert!(!rig.has_turn(&id(1)));
    rig.shared.tend_volumes().await;
    rig.finish().await;
    assert_eq!(rig.server.touches(&Disk::Volume(id(1))), 2, "made, and grown once");
    assert_eq!(rig.known(&id(1)).row.record.size_gb, 3);
}

#[tokio::test]
async fn a_snapshot_is_of_one_moment_though_its_volume_is_forked_while_it_is_copied() {
    let rig = Rig::new();
    rig.create(1, VolumeSource::Empty).await;
    rig.server.hold_disks(true);
    let shared = Arc::clone(&rig.shared);
    let copying =
        tokio::spawn(async move { shared.snapshot_volume(&id(1), snapshot(1), false).await });
    rig.leave(copying, &Disk::Snapshot(snapshot(1))).await;
    assert!(!rig.has_turn(&id(1)), "another would let writing go on");
    let (shared, fork) = (Arc::clone(&rig.shared), asked(2, VolumeSource::Volume(id(1))));
    let forking = tokio::spawn(async move { shared.create_volume(fork).await });
    rig.server.hold_disks(false);
    assert_eq!(forking.await.unwrap().unwrap().state, VolumeState::Created);
    rig.finish().await;
    let snapshots = rig.known(&id(1)).snapshots;
    assert!(snapshots.len() == 1 && snapshots[0].is_whole, "{snapshots:?}");
}

#[tokio::test]
async fn a_caller_that_goes_away_before_the_first_write_leaves_nothing_half_known() {
    let rig = Rig::new();
    let create = rig.shared.create_volume(asked(1, VolumeSource::Empty));
    tokio::time::timeout(Duration::ZERO, create).await.unwrap_err();
    rig.finish().await;
    assert_eq!(rig.known(&id(1)).row.record.state, VolumeState::Created);
    let id = id(1);
    let growing = rig.shared.extend_volume(&id, 3);
    tokio::time::timeout(Duration::ZERO, growing).await.unwrap_err();
    rig.finish().await;
    assert_eq!(rig.known(&id).row.record.size_gb, 3);
}

#[tokio::test]
async fn a_run_that_goes_on_after_a_restart_has_the_turn_of_its_source_too() {
    for source in [VolumeSource::Volume(id(1)), VolumeSource::Snapshot(snapshot(1))] {
        let mut rig = Rig::new();
        rig.create(1, VolumeSource::Empty).await;
        rig.shared.snapshot_volume(&id(1), snapshot(1), false).await.unwrap();
        rig.server.hold_disks(true);
        let (shared, create) = (Arc::clone(&rig.shared), asked(2, source.clone()));
        let making = tokio::spawn(async move { shared.create_volume(create).await });
        let disk = Disk::Volume(id(2));
        rig.leave(making, &disk).await;
        let before = rig.server.touches(&disk);
        rig.restart().await;
        rig.until(|| rig.server.touches(&disk) > before).await;
        assert!(!rig.has_turn(&id(1)) && !rig.has_turn(&id(2)), "{source:?}");
        rig.finish().await;
        assert!(rig.has_turn(&id(1)) && rig.has_turn(&id(2)), "{source:?}");
        assert_eq!(rig.known(&id(2)).row.record.state, VolumeState::Created, "{source:?}");
    }
}

#[tokio::test]
async fn two_who_ask_for_one_volume_at_once_both_get_it() {
    let rig = Rig::new();
    let make = || rig.shared.create_volume(asked(1, VolumeSource::Empty));
    let (one, other) = tokio::join!(make(), make());
    assert_eq!((one.unwrap().id, other.unwrap().id), (id(1), id(1)));
    rig.finish().await;
    assert_eq!(rig.server.touches(&Disk::Volume(id(1))), 1);
}

#[tokio::test]
async fn two_that_fit_alone_do_not_both_get_the_last_of_the_pool() {
    // The pool is too small, or what is free in it.
    for (pool_gb, free_gb) in [(2, 2), (9, 2)] {
        let rig = Rig::new();
        rig.server.set_pool(pool_gb * GIB, free_gb * GIB);
        rig.create(1, VolumeSource::Empty).await;
        let make = |bits| rig.shared.create_volume(asked(bits, VolumeSource::Empty));
        let first = id(1);
        let grow = rig.shared.extend_volume(&first, 2);
        let (one, other, grown) = tokio::join!(make(2), make(3), grow);
        let all = [one, other, grown];
        let refused = all.iter().filter_map(|one| one.as_ref().err());
        let codes: Vec<Code> = refused.map(|error| error.code).collect();
        assert_eq!(codes, [Code::InsufficientCapacity; 2], "{all:?}");
    }
}

#[tokio::test]
async fn what_is_being_made_counts_before_its_disk_is_there_and_once_when_it_is() {
    let rig = Rig::new();
    rig.server.set_pool(9 * GIB, 2 * GIB);
    rig.server.hold_disks(true);
    let shared = Arc::clone(&rig.shared);
    let making =
        tokio::spawn(async move { shared.create_volume(asked(1, VolumeSource::Empty)).await });
    rig.leave(making, &Disk::Volume(id(1))).await;
    let large = || CreateVolume { size_gb: 2, ..asked(2, VolumeSource::Empty) };
    let refused = rig.shared.create_volume(large()).await.unwrap_err();
    assert_eq!(refused.code, Code::InsufficientCapacity, "{refused}");
    rig.finish().await;
    rig.create(3, VolumeSource::Empty).await;
    assert_eq!(rig.shared.volumes.admitted_bytes(), 0);
}

#[tokio::test]
async fn a_volume_knows_whether_its_snapshots_share_blocks_with_it() {
    let rig = Rig::new();
    assert!(!rig.create(1, VolumeSource::Empty).await.copies);
    rig.server.copy_blocks();
    assert!(rig.create(2, VolumeSource::Empty).await.copies);
    assert!(!rig.known(&id(1)).row.record.copies, "it was said when it was made");
}

#[tokio::test]
async fn a_snapshot_goes_when_it_was_kept_for_its_days_and_a_younger_one_stays() {
    let mut rig = Rig::new();
    let keeps = CreateVolume { snapshot_retention: 5, ..asked(1, VolumeSource::Empty) };
    rig.shared.create_volume(keeps).await.unwrap();
    let left = async |rig: &Rig| {
        rig.shared.tend_volumes().await;
        let snapshots = rig.known(&id(1)).snapshots.into_iter().map(|one| one.id);
        let kept: Vec<SnapshotId> = snapshots.collect();
        let (disks, _) = rig.server.disks();
        for bits in [1, 2] {
            let has_disk = disks.contains_key(&Disk::Snapshot(snapshot(bits)));
            assert_eq!(has_disk, kept.contains(&snapshot(bits)), "{bits}");
        }
        kept
    };
    rig.shared.snapshot_volume(&id(1), snapshot(1), false).await.unwrap();
    rig.clock.turn(2);
    rig.shared.snapshot_volume(&id(1), snapshot(2), false).await.unwrap();
    rig.clock.turn(2);
    assert_eq!(left(&rig).await, [snapshot(1), snapshot(2)]);
    rig.clock.turn(1);
    assert_eq!(left(&rig).await, [snapshot(2)]);
    rig.restart().await;
    assert_eq!(left(&rig).await, [snapshot(2)]);
    rig.clock.turn(2);
    assert_eq!(left(&rig).await, []);
    assert_eq!(rig.known(&id(1)).row.record.state, VolumeState::Created);
}

#[tokio::test]
async fn a_daily_snapshot_that_does_not_fit_says_so_until_one_does() {
    let rig = Rig::new();
    let keeps =
        CreateVolume { auto_backup: true, snapshot_retention: 5, ..asked(1, VolumeSource::Empty) };
    rig.shared.create_volume(keeps).await.unwrap();
    let two_days_ago = |row: &mut VolumeRow| row.backed_up_unix_ms -= 2 * record::DAY_MS;
    rig.shared.write_volume(&id(1), two_days_ago).await.unwrap();
    rig.server.set_pool(2 * GIB, GIB / 2);
    rig.shared.tend_volumes().await;
    let known = rig.known(&id(1));
    assert_eq!(known.snapshots, []);
    let error = known.row.record.snapshot_error.unwrap();
    assert!(error.contains("has 512 MiB free"), "{error}");
    // It is not written again, also when the numbers in it are others.
    rig.server.set_pool(2 * GIB, GIB / 4);
    rig.shared.tend_volumes().await;
    assert_eq!(rig.known(&id(1)).row.record.generation, known.row.record.generation);
    rig.server.set_pool(2 * GIB, GIB);
    rig.shared.tend_volumes().await;
    let known = rig.known(&id(1));
    assert_eq!((known.snapshots.len(), known.row.record.snapshot_error), (1, None));
}

#[tokio::test]
async fn a_volume_whose_run_has_met_a_fault_says_so_until_it_has_ended() {
    let rig = Rig::new();
    rig.create(1, VolumeSource::Empty).await;
    let (id, fork) = (id(1), VolumeSource::Volume(id(1)));
    rig.leave_run(&id, &Intent::Extend { size_gb: 3 }).await;
    let extended = rig.shared.extend_volume(&id, 2).await;
    let copied = rig.shared.snapshot_volume(&id, snapshot(1), false).await;
    for error in [extended.unwrap_err(), copied.unwrap_err()] {
        assert_eq!(error.code, Code::Conflict, "{error}");
        assert!(error.error.contains(id.as_str()) && error.hint.is_some(), "{error:?}");
    }
    assert_eq!(rig.known(&id).snapshots, [], "nothing is left of what was refused");
    assert_eq!(rig.shared.volumes.admitted_bytes(), 0);
    // Only what is begun with the volume itself waits for it.
    rig.create(2, fork).await;
    assert!(rig.shared.retry_volume(&id));
    rig.finish().await;
    assert!(!rig.has_run(&id));
    assert_eq!(rig.known(&id).row.record.size_gb, 3);
    rig.shared.snapshot_volume(&id, snapshot(1), false).await.unwrap();
}

#[tokio::test]
async fn a_volume_that_is_destroyed_while_its_run_cannot_go_on_stays_destroyed() {
    let rig = Rig::new();
    rig.create(1, VolumeSource::Empty).await;
    let (id, disk) = (id(1), Disk::Volume(id(1)));
    rig.leave_run(&id, &Intent::Extend { size_gb: 3 }).await;
    let destroyed = rig.shared.destroy_volume(&id).await.unwrap();
    assert_eq!(destroyed.state, VolumeState::PendingDestroy);
    let touches = rig.server.touches(&disk);
    assert!(rig.shared.retry_volume(&id));
    rig.finish().await;
    assert!(!rig.has_run(&id), "its removal would wait for it");
    let record = rig.known(&id).row.record;
    assert_eq!((record.state, record.size_gb), (VolumeState::PendingDestroy, 1));
    assert_eq!(record.destroy_at, destroyed.destroy_at);
    assert_eq!(rig.server.touches(&disk), touches, "it was made larger for nobody");
}

#[tokio::test]
async fn a_volume_that_was_to_grow_and_has_no_image_stays_as_it_was_until_that_is_back() {
    let mut rig = Rig::new();
    let disk = Disk::Volume(id(1));
    rig.create(1, VolumeSource::Empty).await;
    rig.server.hold_disks(true);
    let shared = Arc::clone(&rig.shared);
    let growing = tokio::spawn(async move { shared.extend_volume(&id(1), 3).await });
    rig.leave(growing, &disk).await;
    rig.server.put_disk(disk.clone(), None);
    rig.restart().await;
    rig.finish().await;
    let said = |rig: &Rig| {
        let record = rig.known(&id(1)).row.record;
        (record.state, record.size_gb)
    };
    assert_eq!(said(&rig), (VolumeState::Recovering, 1));
    assert_eq!(rig.shared.journal.unfinished().unwrap().runs.len(), 0);
    rig.server.put_disk(disk, Some(GIB));
    rig.shared.tend_volumes().await;
    assert_eq!(said(&rig), (VolumeState::Created, 1));
    rig.shared.extend_volume(&id(1), 3).await.unwrap();
    assert_eq!(said(&rig), (VolumeState::Created, 3));
}

#[tokio::test]
async fn a_volume_that_was_to_grow_and_was_destroyed_since_does_not_come_back() {
    let mut rig = Rig::new();
    let disk = Disk::Volume(id(1));
    rig.create(1, VolumeSource::Empty).await;
    rig.server.hold_disks(true);
    let shared = Arc::clone(&rig.shared);
    let growing = tokio::spawn(async move { shared.extend_volume(&id(1), 3).await });
    rig.leave(growing, &disk).await;
    let destroy = |row: &mut VolumeRow| row.record.state = VolumeState::PendingDestroy;
    rig.shared.write_volume(&id(1), destroy).await.unwrap();
    rig.restart().await;
    rig.finish().await;
    let record = rig.known(&id(1)).row.record;
    assert_eq!((record.state, record.size_gb), (VolumeState::PendingDestroy, 1));
    assert_eq!(rig.server.disks().0.get(&disk), Some(&GIB));
}
