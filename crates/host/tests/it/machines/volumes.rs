//! Volumes in real machines.

use perch_host::Host;
use perch_host::effects::VolumeDisks as _;
use perch_types::host::{Command, CreateMachine, CreateVolume, VolumeCommand, VolumeSource};
use perch_types::{Code, OrgSlug, SnapshotId, VolumeId};
use serde_json::json;

use super::server::{Server, exec, machine, tell, wait};

const STOP: Command = Command::Stop { signal: None, timeout: None };
const IDLE: &str = "trap 'exit 0' INT; while :; do sleep 0.01; done";

pub(super) fn volume(bits: u128, source: VolumeSource) -> CreateVolume {
    CreateVolume {
        id: VolumeId::from_bits(bits),
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        app_id: "app_1".to_owned(),
        name: "data".to_owned(),
        size_gb: 1,
        source,
        snapshot_retention: 5,
        auto_backup: false,
    }
}

pub(super) fn mounting(number: u64, id: &VolumeId, more: &serde_json::Value) -> CreateMachine {
    let mut machine = machine(number, IDLE);
    let mut mount = json!({"volume": id, "path": "/data"});
    mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    machine.config.mounts = vec![serde_json::from_value(mount).unwrap()];
    machine
}

async fn run(host: &Host, machine: CreateMachine) -> perch_types::MachineId {
    let id = machine.id.clone();
    host.create(machine).await.unwrap();
    wait(host, &id, "started").await;
    id
}

#[test]
fn f3_f9_a_volume_outlives_its_machine_and_belongs_to_one_at_a_time() {
    let test = "f3_f9_a_volume_outlives_its_machine_and_belongs_to_one_at_a_time";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let made = host.create_volume(volume(1, VolumeSource::Empty)).await.unwrap();
        assert_eq!(made.state.as_str(), "created");
        assert!(made.usage.bytes_total() > 900 << 20, "{:?}", made.usage);
        let data = made.id;

        let first = run(&host, mounting(1, &data, &json!({}))).await;
        exec(&host, &first, "echo mine > /data/file && sync").await.unwrap();
        let owner = exec(&host, &first, "stat -c %u /data/file; grep ' /data ' /proc/mounts");
        let owner = owner.await.unwrap();
        assert!(owner.starts_with("0\n") && owner.contains("nosuid,nodev"), "{owner}");
        assert!(!owner.contains(server.folder.to_str().unwrap()), "a host path shows: {owner}");
        let refused = host.create(mounting(2, &data, &json!({}))).await.unwrap_err();
        assert_eq!(refused.code, Code::VolumeAttached);
        assert!(refused.error.contains(first.as_str()), "{refused}");
        let refused = host.volume_command(&data, VolumeCommand::Destroy).await.unwrap_err();
        assert_eq!(refused.code, Code::VolumeAttached);

        // Another agent finds it mounted, a stopped machine keeps it.
        host.shutdown().await;
        drop(host);
        let host = server.start().await;
        wait(&host, &first, "started").await;
        assert_eq!(exec(&host, &first, "cat /data/file").await.unwrap(), "mine\n");
        tell(&host, &first, STOP).await;
        wait(&host, &first, "stopped").await;
        assert_eq!(host.volume(&data).await.unwrap().attached, Some(first.clone()));
        tell(&host, &first, Command::Start).await;
        wait(&host, &first, "started").await;
        assert_eq!(exec(&host, &first, "cat /data/file").await.unwrap(), "mine\n");

        tell(&host, &first, Command::Destroy { force: true }).await;
        wait(&host, &first, "destroyed").await;
        assert_eq!(host.volume(&data).await.unwrap().attached, None);
        let second = run(&host, mounting(2, &data, &json!({}))).await;
        assert_eq!(exec(&host, &second, "cat /data/file").await.unwrap(), "mine\n");
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_mounted_volume_grows_is_snapshotted_restored_and_forked() {
    let test = "a_mounted_volume_grows_is_snapshotted_restored_and_forked";
    Server::run(test, |server| async move {
        if !server.has_room_for_pool(test) {
            return;
        }
        let host = server.start().await;
        let data = host.create_volume(volume(1, VolumeSource::Empty)).await.unwrap().id;
        let first = run(&host, mounting(1, &data, &json!({"size_gb": 2}))).await;
        let size = "df -m /data | tail -n 1 | awk '{print $2}'";
        let megabytes = |text: String| text.trim().parse::<u64>().unwrap();
        assert!(megabytes(exec(&host, &first, size).await.unwrap()) > 1900);
        host.volume_command(&data, VolumeCommand::Extend { size_gb: 3 }).await.unwrap();
        assert!(megabytes(exec(&host, &first, size).await.unwrap()) > 2900);
        let smaller = host.volume_command(&data, VolumeCommand::Extend { size_gb: 2 }).await;
        assert_eq!(smaller.unwrap_err().code, Code::InvalidValue);

        exec(&host, &first, "echo before > /data/file").await.unwrap();
        let id = SnapshotId::from_bits(1);
        host.volume_command(&data, VolumeCommand::Snapshot { id: id.clone() }).await.unwrap();
        exec(&host, &first, "echo after > /data/file").await.unwrap();
        let snapshots = host.snapshots(&data).unwrap();
        assert_eq!(snapshots[0].snapshot.status, "created");
        assert_eq!(snapshots[0].snapshot.volume_size, 3 << 30);
        let small = host.create_volume(volume(2, VolumeSource::Snapshot(id.clone()))).await;
        assert_eq!(small.unwrap_err().code, Code::InvalidValue);

        for (number, source, text) in [
            (2, VolumeSource::Snapshot(id), "before\n"),
            (3, VolumeSource::Volume(data.clone()), "after\n"),
        ] {
            let asked = CreateVolume { size_gb: 4, ..volume(u128::from(number), source) };
            let copy = host.create_volume(asked).await.unwrap();
            assert_eq!(copy.state.as_str(), "created");
            let id = run(&host, mounting(number, &copy.id, &json!({}))).await;
            assert_eq!(exec(&host, &id, "cat /data/file").await.unwrap(), text);
            assert!(megabytes(exec(&host, &id, size).await.unwrap()) > 3900);
        }
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_full_volume_hurts_nobody_else_and_grows_when_its_machine_says_so() {
    let test = "a_full_volume_hurts_nobody_else_and_grows_when_its_machine_says_so";
    Server::run(test, |server| async move {
        if !server.has_room_for_pool(test) {
            return;
        }
        let host = server.start().await;
        let full = host.create_volume(volume(1, VolumeSource::Empty)).await.unwrap().id;
        let grows = host.create_volume(volume(2, VolumeSource::Empty)).await.unwrap().id;
        let first = run(&host, mounting(1, &full, &json!({}))).await;
        let auto = json!({"extend_threshold_percent": 60, "add_size_gb": 1, "size_gb_limit": 2});
        let second = run(&host, mounting(2, &grows, &auto)).await;
        // Whatever else is in the pool, a volume can be written until it is full itself; what would
        // take that away is refused.
        let room = server.pool().room().await.unwrap();
        let filler = std::fs::File::create(server.folder.join("pool/pool/filler")).unwrap();
        let spare = 32 << 20;
        let bytes = room.free_bytes - room.promised_bytes - spare;
        let none = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&filler, none, 0, bytes).unwrap();
        let refused = [
            host.create_volume(volume(3, VolumeSource::Empty)).await,
            host.create_volume(volume(3, VolumeSource::Volume(full.clone()))).await,
            host.volume_command(&full, VolumeCommand::Extend { size_gb: 2 }).await,
            host.volume_command(&full, VolumeCommand::Snapshot { id: SnapshotId::from_bits(9) })
                .await,
        ];
        for refused in refused.map(|refused| refused.unwrap_err()) {
            assert_eq!(refused.code, Code::InsufficientCapacity, "{refused}");
            assert!(refused.error.contains("may still write"), "{refused}");
        }
        assert_eq!(host.volumes().len(), 2, "nothing is left of what was refused");
        exec(&host, &first, "dd if=/dev/zero of=/data/fill bs=1M count=100 && sync").await.unwrap();
        exec(&host, &first, "rm /data/fill && sync").await.unwrap();
        drop(filler);
        std::fs::remove_file(server.folder.join("pool/pool/filler")).unwrap();
        // XFS gives back what a removed file had a moment later.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while server.pool().room().await.unwrap().free_bytes < bytes / 2 {
            assert!(std::time::Instant::now() < patience, "the filler's blocks are not free");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }

        let fill = "dd if=/dev/zero of=/data/fill bs=1M count=1200 2>&1; sync; echo done";
        let said = exec(&host, &first, fill).await.unwrap();
        assert!(said.contains("No space left"), "{said}");
        exec(&host, &second, "dd if=/dev/zero of=/data/fill bs=1M count=700 && sync")
            .await
            .unwrap();
        host.tend_volumes().await;
        assert_eq!(host.volume(&grows).await.unwrap().size_gb, 2);
        assert_eq!(host.volume(&full).await.unwrap().size_gb, 1);
        host.tend_volumes().await;
        assert_eq!(host.volume(&grows).await.unwrap().size_gb, 2, "the limit holds");
        exec(&host, &first, "rm /data/fill && echo again > /data/file && sync").await.unwrap();

        for id in [&first, &second] {
            tell(&host, id, Command::Destroy { force: true }).await;
            wait(&host, id, "destroyed").await;
        }
        for id in [&full, &grows] {
            host.volume_command(id, VolumeCommand::Destroy).await.unwrap();
        }
        server.clock.turn(25 * 60 * 60 * 1000);
        host.tend_volumes().await;
        assert_eq!(host.volumes(), []);
        host.remove_everything().await.unwrap();
    });
}
