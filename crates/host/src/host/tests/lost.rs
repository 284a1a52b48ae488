//! Machines whose volumes have no image, as after a restoration of their host from a backup.

use perch_types::VolumeId;
use perch_types::host::{CreateVolume, HostSnapshot, VolumeCommand, VolumeSource};
use perch_types::volume::{GIB, VolumeState};

use super::*;
use crate::effects::{Disk, Fault};

fn volume() -> VolumeId {
    VolumeId::from_bits(1)
}

fn snapshot() -> perch_types::SnapshotId {
    perch_types::SnapshotId::from_bits(1)
}

/// A server with a machine that runs on a volume, and no agent.
async fn mounted(restart: &str) -> (MachineId, (FakeServer, Arc<Turned>, tempfile::TempDir)) {
    let rig = Rig::new().await;
    rig.host.create_volume(volume_asked()).await.unwrap();
    rig.host.volume_command(&volume(), VolumeCommand::Snapshot { id: snapshot() }).await.unwrap();
    let mounts = json!([{"volume": volume().as_str(), "path": "/data"}]);
    let config = json!({"mounts": mounts, "restart": {"policy": restart}});
    let id = rig.create(1, config).await;
    (id, rig.end().await)
}

fn state_of(rig: &Rig) -> VolumeState {
    rig.host.volumes()[0].state
}

#[tokio::test]
async fn a_machine_whose_volume_has_no_image_fails_once_and_starts_when_it_is_back() {
    let (id, (server, clock, folder)) = mounted("always").await;
    server.runtime.lose(&id);
    server.put_disk(Disk::Volume(volume()), None);
    let rig = Rig::on(server, clock, folder).await;
    assert_eq!(state_of(&rig), VolumeState::Recovering);
    let findings = rig.host.info().findings;
    assert!(findings.iter().any(|one| one.contains(volume().as_str())), "{findings:?}");

    // Its policy would start it for ever.
    let failed = rig.wait(&id, "failed").await;
    let failure = failed.failure.unwrap();
    assert_eq!(failure.code, Code::WrongState);
    assert!(failure.error.contains("does not have its image"), "{failure}");
    assert!(failure.hint.unwrap().contains(&format!("volumes/{}.img", volume())));
    let boots = rig.boots(&id);
    rig.look(&id).await;
    let again = rig.look(&id).await;
    assert_eq!((again.state, of_kind(&again, "failed").len()), (State::Failed, 1), "{again:#?}");
    for command in [Command::Start, Command::Restart { force: true, signal: None, timeout: None }] {
        let refused = rig.host.command(&id, command).await.unwrap_err();
        assert_eq!(refused.code, Code::WrongState, "{refused}");
        assert!(refused.hint.is_some(), "{refused}");
    }
    let one_more = request(2, &json!({"mounts": [{"volume": volume().as_str(), "path": "/data"}]}));
    let refused = rig.host.create(one_more).await.unwrap_err();
    assert_eq!(refused.code, Code::VolumeAttached, "{refused}");
    assert_eq!(rig.boots(&id), boots);

    let (server, clock, folder) = rig.end().await;
    server.put_disk(Disk::Volume(volume()), Some(GIB));
    let rig = Rig::on(server, clock, folder).await;
    assert_eq!(state_of(&rig), VolumeState::Created);
    assert_eq!(rig.host.shared.lost_volumes(), None);
    rig.tell(&id, Command::Start).await;
    rig.wait(&id, "started").await;
    rig.host.shutdown().await;
}

#[tokio::test]
async fn a_volume_without_an_image_is_given_up_by_its_machine_and_destroyed() {
    let (id, (server, clock, folder)) = mounted("no").await;
    server.put_disk(Disk::Volume(volume()), None);
    let rig = Rig::on(server, clock, folder).await;
    // What runs has mounted it before, and is left alone.
    assert_eq!(rig.host.get(&id).unwrap().state, State::Started);
    rig.tell(&id, Command::Start).await;
    let refused = rig.host.volume_command(&volume(), VolumeCommand::Destroy).await.unwrap_err();
    assert_eq!(refused.code, Code::VolumeAttached);
    rig.tell(&id, Command::Destroy { force: true }).await;
    rig.wait(&id, "destroyed").await;
    assert_eq!(state_of(&rig), VolumeState::Recovering);
    rig.host.volume_command(&volume(), VolumeCommand::Destroy).await.unwrap();
    rig.host.tend_volumes().await;
    assert_eq!(state_of(&rig), VolumeState::PendingDestroy);
    rig.clock.turn(25 * HOUR_MS);
    rig.host.tend_volumes().await;
    assert_eq!(rig.host.volumes(), []);
    rig.host.shutdown().await;
}

#[tokio::test]
async fn what_has_no_image_is_not_copied_or_grown_and_comes_back_with_its_image() {
    let (_, (server, clock, folder)) = mounted("no").await;
    let disks = [Disk::Volume(volume()), Disk::Snapshot(snapshot())];
    for disk in &disks {
        server.put_disk(disk.clone(), None);
    }
    let rig = Rig::on(server, clock, folder).await;
    let told = |found: HostSnapshot| found.snapshot.status;
    assert_eq!(rig.host.snapshot(&snapshot()).map(told).unwrap(), "missing");
    let copy = |source| CreateVolume { id: VolumeId::from_bits(2), source, ..volume_asked() };
    for source in [VolumeSource::Volume(volume()), VolumeSource::Snapshot(snapshot())] {
        let refused = rig.host.create_volume(copy(source)).await.unwrap_err();
        assert_eq!(refused.code, Code::WrongState, "{refused}");
        assert!(refused.hint.is_some(), "{refused}");
    }
    let other = perch_types::SnapshotId::from_bits(2);
    for command in [VolumeCommand::Extend { size_gb: 2 }, VolumeCommand::Snapshot { id: other }] {
        let refused = rig.host.volume_command(&volume(), command).await.unwrap_err();
        assert_eq!(refused.code, Code::WrongState, "{refused}");
    }
    // It is noticed by itself, and not while nobody can look.
    for disk in disks {
        rig.server.put_disk(disk, Some(GIB));
    }
    let fault = Fault::transient(Code::Internal, "mount the pool");
    rig.server.hide_disks(Some(fault));
    rig.host.tend_volumes().await;
    assert_eq!(state_of(&rig), VolumeState::Recovering);
    rig.server.hide_disks(None);
    rig.host.tend_volumes().await;
    assert_eq!(state_of(&rig), VolumeState::Created);
    assert_eq!(rig.host.snapshot(&snapshot()).map(told).unwrap(), "created");
    rig.host.create_volume(copy(VolumeSource::Snapshot(snapshot()))).await.unwrap();
    rig.host.shutdown().await;
}
