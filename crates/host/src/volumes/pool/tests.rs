use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use super::*;

/// Says that a test cannot run here.
fn can_run(test: &str) -> bool {
    let has = |program| Command::new("which").arg(program).output().unwrap().status.success();
    let missing = match (rustix::process::geteuid().is_root(), has("mkfs.xfs")) {
        (true, true) => return true,
        (true, false) => "mkfs.xfs",
        (false, _) => "root",
    };
    perch_testkit::skipped(test, missing);
    false
}

/// A pool of its own for one test, taken away with it.
struct Rig {
    folder: tempfile::TempDir,
    pool: Pool,
}

impl Rig {
    fn new(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pool = open(folder.path(), size_bytes);
        Self { folder, pool }
    }

    fn image(&self, id: &VolumeId) -> PathBuf {
        self.pool.image(id)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.pool.teardown_now().unwrap();
        let loops = fs::read_dir("/sys/block").unwrap().flatten();
        let ours = self.folder.path().to_str().unwrap().to_owned();
        for device in loops {
            let backing = fs::read_to_string(device.path().join("loop/backing_file"));
            assert!(!backing.unwrap_or_default().contains(&ours), "{device:?}");
        }
    }
}

fn open(folder: &Path, size_bytes: u64) -> Pool {
    let guard = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/perch-monitor");
    let config = PoolConfig { size_bytes, guard, ..PoolConfig::default() };
    Pool::open(&folder.join("volumes"), config).unwrap()
}

fn id(bits: u128) -> VolumeId {
    VolumeId::from_bits(bits)
}

fn snapshot(bits: u128) -> Disk {
    Disk::Snapshot(perch_types::SnapshotId::from_bits(bits))
}

/// A volume that is mounted where a test can write to it.
struct Mounted(PathBuf);

impl Mounted {
    fn new(rig: &Rig, volume: &VolumeId) -> Self {
        Self::on(rig.folder.path().join(volume.as_str()), &rig.image(volume))
    }

    fn on(point: PathBuf, image: &Path) -> Self {
        let (_device, tree) = perch_runtime::volume::mount(image).unwrap();
        fs::create_dir_all(&point).unwrap();
        let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", rustix::fs::CWD, &point, flags).unwrap();
        Self(point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::empty()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_made_once_mounted_again_and_made_larger() {
    if !can_run("a_pool_is_made_once_mounted_again_and_made_larger") {
        return;
    }
    let rig = Rig::new(2 * GIB);
    assert!(!rig.pool.image_file().exists(), "it is made when it is needed");
    let first = rig.pool.room().await.unwrap();
    rig.pool.make(&id(1), GIB).await.unwrap();
    // An agent that was killed while it made another leaves this.
    fs::write(rig.pool.image_file().with_extension("new"), "half").unwrap();
    let again = open(rig.folder.path(), 3 * GIB);
    let second = again.room().await.unwrap();
    assert!(second.total_bytes > first.total_bytes, "{first:?} {second:?}");
    assert!(again.image(&id(1)).exists());
    assert!(again.findings()[0].contains("share their blocks"), "{:?}", again.findings());
    assert!(second.shares_blocks);
    // A server that was restarted has it mounted no more.
    rustix::mount::unmount(rig.folder.path().join("volumes/pool"), UnmountFlags::empty()).unwrap();
    let rebooted = open(rig.folder.path(), 3 * GIB);
    assert!(rebooted.image(&id(1)).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_grows_while_it_is_mounted_and_while_it_is_not() {
    if !can_run("a_volume_grows_while_it_is_mounted_and_while_it_is_not") {
        return;
    }
    let rig = Rig::new(16 * GIB);
    let made = rig.pool.make(&id(1), GIB).await.unwrap();
    assert!(made.bytes_total() > GIB * 9 / 10, "{made:?}");
    assert_eq!(rig.pool.usage(&id(1)).await.unwrap(), None);
    let grown = rig.pool.grow(&id(1), 2 * GIB).await.unwrap();
    assert!(grown.bytes_total() > GIB * 19 / 10, "{grown:?}");
    let mounted = Mounted::new(&rig, &id(1));
    fs::write(mounted.0.join("file"), vec![7; 1 << 20]).unwrap();
    let grown = rig.pool.grow(&id(1), 4 * GIB).await.unwrap();
    assert!(grown.bytes_total() > GIB * 39 / 10, "{grown:?}");
    assert_eq!(rig.pool.usage(&id(1)).await.unwrap().unwrap().blocks, grown.blocks);
    // Never smaller.
    let same = rig.pool.grow(&id(1), GIB).await.unwrap();
    assert_eq!(same.blocks, grown.blocks);
    assert_eq!(fs::read(mounted.0.join("file")).unwrap(), vec![7; 1 << 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_volumes_may_still_write_is_known_also_of_those_that_share_blocks() {
    let test = "what_volumes_may_still_write_is_known_also_of_those_that_share_blocks";
    if !can_run(test) {
        return;
    }
    let rig = Rig::new(4 * GIB);
    let promised = async || rig.pool.room().await.unwrap().promised_bytes >> 20;
    let own = async || rig.pool.own_bytes(&id(1)).await.unwrap() >> 20;
    rig.pool.make(&id(1), GIB).await.unwrap();
    let (fresh, log) = (promised().await, own().await);
    // The volume's log is there from the beginning.
    assert!((900..1024).contains(&fresh) && log >= 64 && fresh + log >= 1023, "{fresh} {log}");
    let mounted = Mounted::new(&rig, &id(1));
    let write = || {
        let file = File::create(mounted.0.join("file")).unwrap();
        file.write_all_at(&vec![7; 40 << 20], 0).unwrap();
        file.sync_all().unwrap();
    };
    write();
    let (before, owned) = (promised().await, own().await);
    assert!(before <= fresh - 39 && owned >= log + 39, "{before} {fresh} {owned} {log}");
    // After a copy all that was written is shared, and may be written anew.
    rig.pool.copy(&Disk::Volume(id(1)), &snapshot(1)).await.unwrap();
    let (after, shared) = (promised().await, own().await);
    assert!(shared <= owned - 39 && after >= before + 39, "{shared} {owned} {after} {before}");
    write();
    assert!(own().await >= shared + 39, "{} {shared}", own().await);
}

/// Appends numbers to a file, each synced before the next, until told to stop.
fn write_numbers(path: &Path, until: &std::sync::atomic::AtomicBool) -> u64 {
    let file = File::create(path).unwrap();
    let mut number = 0_u64;
    while !until.load(std::sync::atomic::Ordering::Acquire) {
        file.write_all_at(&number.to_le_bytes(), number * 8).unwrap();
        file.sync_data().unwrap();
        number += 1;
    }
    number
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_write_load_is_of_one_moment_and_writing_goes_on() {
    if !can_run("a_snapshot_under_write_load_is_of_one_moment_and_writing_goes_on") {
        return;
    }
    let rig = Rig::new(16 * GIB);
    rig.pool.make(&id(1), GIB).await.unwrap();
    let mounted = Mounted::new(&rig, &id(1));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (path, until) = (mounted.0.join("numbers"), std::sync::Arc::clone(&stop));
    let writer = std::thread::spawn(move || write_numbers(&path, &until));
    let numbers = |path: &Path| fs::metadata(path).map_or(0, |found| found.len() / 8);
    let source = mounted.0.join("numbers");
    while numbers(&source) < 50 {
        tokio::task::yield_now().await;
    }
    let before = numbers(&source);
    rig.pool.copy(&Disk::Volume(id(1)), &snapshot(1)).await.unwrap();
    let after = numbers(&source);
    // It goes on.
    while numbers(&source) < after + 50 {
        tokio::task::yield_now().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Release);
    writer.join().unwrap();
    rig.pool.copy(&snapshot(1), &Disk::Volume(id(2))).await.unwrap();
    rig.pool.grow(&id(2), 2 * GIB).await.unwrap();
    // Both at once: the copy has the identity of its source.
    let restored = Mounted::new(&rig, &id(2));
    let bytes = fs::read(restored.0.join("numbers")).unwrap();
    let count = u64::try_from(bytes.len() / 8).unwrap();
    // All that was synced before is in it, and nothing that came after.
    assert!((before..=after + 1).contains(&count), "{before} {count} {after}");
    for (number, word) in (0_u64..).zip(bytes.chunks_exact(8)) {
        assert_eq!(word, number.to_le_bytes(), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_a_dead_agent_froze_is_thawed_by_the_guard_and_by_the_next_agent() {
    let test = "a_volume_that_a_dead_agent_froze_is_thawed_by_the_guard_and_by_the_next_agent";
    if !can_run(test) {
        return;
    }
    let rig = Rig::new(16 * GIB);
    rig.pool.make(&id(1), GIB).await.unwrap();
    let mounted = Mounted::new(&rig, &id(1));
    let write = |name: &str| {
        let path = mounted.0.join(name);
        std::thread::spawn(move || fs::write(path, "x").unwrap())
    };
    let freeze = || Held::mounted(&rig.image(&id(1))).unwrap().unwrap().freeze().unwrap();
    freeze();
    let waiting = write("agent");
    rig.pool.thaw(&id(1)).await.unwrap();
    waiting.join().unwrap();
    rig.pool.thaw(&id(1)).await.unwrap();
    if !rig.pool.config.guard.exists() {
        return perch_testkit::skipped(test, "target/guest (cargo xtask guest)");
    }
    let guard = Guard::start(&rig.pool.config.guard, &rig.image(&id(1)));
    freeze();
    let waiting = write("guard");
    // Its standard input ends, as it does when the agent is killed.
    drop(guard);
    waiting.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_do_not_mount_one_volume() {
    if !can_run("two_do_not_mount_one_volume") {
        return;
    }
    let rig = Rig::new(4 * GIB);
    rig.pool.make(&id(1), GIB).await.unwrap();
    let mounted = Mounted::new(&rig, &id(1));
    let error = Loop::attach(&rig.image(&id(1)), 0).unwrap_err();
    assert!(error.to_string().starts_with("lock"), "{error}");
    drop(mounted);
    Loop::attach(&rig.image(&id(1)), FREE_TIMEOUT_MS).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_refuses_and_lets_go() {
    if !can_run("a_full_pool_refuses_and_lets_go") {
        return;
    }
    let rig = Rig::new(GIB);
    rig.pool.make(&id(1), GIB).await.unwrap();
    let filler = rig.folder.path().join("volumes/pool/filler");
    let room = rig.pool.room().await.unwrap();
    let file = File::create(&filler).unwrap();
    let mut bytes = room.free_bytes;
    // The last of it goes to the file system's own records.
    while rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).is_err() {
        bytes -= 1 << 20;
    }
    let leave = rig.pool.room().await.unwrap().free_bytes;
    assert!(leave < 32 << 20, "{leave}");
    let fault = rig.pool.make(&id(2), GIB).await.unwrap_err();
    assert_eq!(fault.error.code, Code::NoSpace, "{fault}");
    let volumes = rig.image(&id(1)).parent().unwrap().to_owned();
    let left = fs::read_dir(&volumes).unwrap().count();
    assert_eq!(left, 1, "something is left of what was refused");
    // A copy shares its blocks: it still fits, or the fault says why not.
    if let Err(fault) = rig.pool.copy(&Disk::Volume(id(1)), &snapshot(1)).await {
        assert_eq!(fault.error.code, Code::NoSpace, "{fault}");
    }
    let mounted = Mounted::new(&rig, &id(1));
    fs::write(mounted.0.join("small"), "still works").unwrap();
    fs::remove_file(&filler).unwrap();
    File::open(mounted.0.join("small")).unwrap().sync_all().unwrap();
    drop(mounted);
    let again = Mounted::new(&rig, &id(1));
    assert_eq!(fs::read_to_string(again.0.join("small")).unwrap(), "still works");
    drop(again);
    rig.pool.remove(&snapshot(1)).await.unwrap();
    rig.pool.remove(&Disk::Volume(id(1))).await.unwrap();
    rig.pool.remove(&Disk::Volume(id(1))).await.unwrap();
    assert!(!rig.image(&id(1)).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_the_operators_without_reflink_says_so_and_copies_all_of_a_volume() {
    let test = "a_folder_of_the_operators_without_reflink_says_so_and_copies_all_of_a_volume";
    if !can_run(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // A tmpfs has no reflink. This one holds three volumes of which little is written, not four.
    let dir = folder.path().join("dir");
    fs::create_dir(&dir).unwrap();
    rustix::mount::mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), c"size=240m").unwrap();
    let config = PoolConfig { dir: Some(dir.clone()), ..PoolConfig::default() };
    let pool = Pool::open(&folder.path().join("volumes"), config).unwrap();
    pool.make(&id(1), GIB).await.unwrap();
    let source = Mounted::on(folder.path().join("source"), &pool.image(&id(1)));
    let (before, after) = (vec![7; 1 << 20], vec![8; 1 << 20]);
    fs::write(source.0.join("file"), &before).unwrap();
    pool.copy(&Disk::Volume(id(1)), &snapshot(1)).await.unwrap();
    fs::write(source.0.join("file"), &after).unwrap();
    pool.copy(&snapshot(1), &Disk::Volume(id(2))).await.unwrap();
    let restored = Mounted::on(folder.path().join("restored"), &pool.image(&id(2)));
    assert_eq!(fs::read(restored.0.join("file")).unwrap(), before);
    assert_eq!(fs::read(source.0.join("file")).unwrap(), after);
    assert!(!pool.room().await.unwrap().shares_blocks);
    assert!(pool.findings()[0].contains("no reflink"), "{:?}", pool.findings());
    // One copy more does not fit, and whoever writes to the volume goes on.
    let fault = pool.copy(&Disk::Volume(id(1)), &snapshot(2)).await.unwrap_err();
    assert_eq!(fault.error.code, Code::NoSpace, "{fault}");
    pool.remove(&snapshot(2)).await.unwrap();
    let file = File::create(source.0.join("more")).unwrap();
    file.sync_all().unwrap();
    drop((file, source, restored));
    pool.teardown().await.unwrap();
    assert!(dir.exists() && fs::read_dir(&dir).unwrap().next().is_none());
    unmount(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_full_pool_can_be_removed_after_a_restart() {
    if !can_run("what_is_in_a_full_pool_can_be_removed_after_a_restart") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("dir");
    fs::create_dir(&dir).unwrap();
    rustix::mount::mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    let config = PoolConfig { dir: Some(dir.clone()), ..PoolConfig::default() };
    let before = Pool::open(&folder.path().join("volumes"), config.clone()).unwrap();
    for disk in [before.image(&id(1)), Pool::path(&dir, &snapshot(1))] {
        let mut file = File::create(disk).unwrap();
        while file.metadata().unwrap().len() < 512 << 10 && file.write_all(&[7; 4096]).is_ok() {}
    }
    let mut filler = File::create(dir.join("filler")).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}
    drop(filler);
    let pool = Pool::open(&folder.path().join("volumes"), config).unwrap();
    assert!(pool.findings()[0].contains("is full"), "{:?}", pool.findings());
    assert_eq!(pool.room().await.unwrap().free_bytes, 0);
    pool.remove(&snapshot(1)).await.unwrap();
    pool.remove(&Disk::Volume(id(1))).await.unwrap();
    assert!(!pool.image(&id(1)).exists() && !dir.join("probe.from").exists());
    // It is found out now.
    assert!(pool.room().await.unwrap().free_bytes > 900 << 10);
    assert!(pool.findings()[0].contains("no reflink"), "{:?}", pool.findings());
    rustix::mount::unmount(&dir, UnmountFlags::empty()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_for_an_image_and_a_removal_make_no_pool() {
    let folder = tempfile::tempdir().unwrap();
    let pool = open(folder.path(), 2 * GIB);
    let disk = Disk::Volume(id(1));
    assert!(!pool.is_there(&disk).await.unwrap());
    pool.remove(&disk).await.unwrap();
    assert!(!pool.image_file().exists());
    // One that is an operator's own folder is there from the beginning.
    let dir = Some(folder.path().join("own"));
    let pool = Pool::open(&folder.path().join("none"), PoolConfig { dir, ..PoolConfig::default() });
    let pool = pool.unwrap();
    assert!(!pool.is_there(&disk).await.unwrap());
    fs::write(pool.image(&id(1)), "an image").unwrap();
    assert!(pool.is_there(&disk).await.unwrap());
}
