//! Faults where nobody looks: a monitor that is killed while containers wait for each other, disks
//! that others fill below what a machine was promised, and what a container learns of its host.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::Instant;

use perch_runtime::InstanceInfo;
use perch_runtime::cgroup::Hierarchies;
use perch_runtime::protocol::ProcessInfo;
use perch_types::host::{Command, HostMachine, VolumeSource};
use perch_types::{MachineId, MachineState};
use serde_json::json;

use super::containers::{exec_in, several, shared_files, states, until};
use super::full::{fill, run};
use super::server::{PATIENCE, Server, exec, tell, wait};
use super::volumes::{mounting, volume};

const STOP: Command = Command::Stop { signal: None, timeout: None };

/// Returns a script that says whether a write reached the disk.
fn write_to(folder: &str) -> String {
    format!(
        "dd if=/dev/zero of={folder}/big bs=1M count=40 conv=fsync 2>/dev/null \
         && echo wrote || echo failed; rm -f {folder}/big"
    )
}

fn boot(server: &Server, id: &MachineId) -> InstanceInfo {
    let path = server.folder.join("run/machines").join(id.as_str()).join("boot.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Returns all processes of a machine's boot, and its monitor.
fn processes(boot: &InstanceInfo) -> Vec<ProcessInfo> {
    let inside = Hierarchies::detect().unwrap().processes(boot.cgroup.as_ref()).unwrap();
    let inside = inside.into_iter().filter_map(|pid| ProcessInfo::of(pid).ok());
    inside.chain([boot.monitor]).collect()
}

/// Returns the files of a server that are attached as disks.
fn attached(server: &Server) -> Vec<String> {
    let files = fs::read_dir("/sys/block").unwrap().flatten();
    let files = files.map(|disk| fs::read_to_string(disk.path().join("loop/backing_file")));
    let folder = format!("{}/", server.folder.display());
    files.flatten().filter(|file| file.starts_with(&folder)).collect()
}

/// Waits until something holds that the kernel does a moment later.
async fn soon<T: std::fmt::Debug + PartialEq>(found: impl Fn() -> T, wanted: T) {
    let deadline = Instant::now() + PATIENCE;
    while found() != wanted {
        assert!(Instant::now() < deadline, "{:?} instead of {wanted:?}", found());
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

fn starts(machine: &HostMachine) -> usize {
    machine.events.iter().filter(|event| event.kind == "start").count()
}

#[test]
fn a_monitor_killed_between_two_containers_starts_is_one_lost_boot_and_leaves_nothing() {
    let test = "a_monitor_killed_between_two_containers_starts_is_one_lost_boot_and_leaves_nothing";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let scratch = json!([{"name": "scratch", "path": "/scratch"}]);
        let db = "echo db; ls /scratch; touch /scratch/mine; exec sleep 1000";
        let containers = json!([
            {"name": "db", "image": "busybox:1", "mounts": scratch, "exec": ["sh", "-c", db],
             "healthchecks": [{"name": "up", "interval": 1,
                "exec": {"command": ["test", "-e", "/scratch/healthy"]}}]},
            {"name": "web", "image": "busybox:22", "mounts": scratch,
             "exec": ["sh", "-c", "echo web; exec sleep 1000"],
             "depends_on": [{"name": "db", "condition": "healthy"}]},
        ]);
        let volumes = json!([{"name": "scratch", "temp_dir": {"size_mb": 8}}]);
        let mut request = several(1, &containers, &volumes);
        request.config.restart = serde_json::from_value(json!({"policy": "always"})).unwrap();
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let between = ["db started", "web created"];
        until(&host, &id, |machine| states(machine) == between).await;
        server.wait_for_output(&id, "db\n").await;
        let lost = boot(&server, &id);
        let before = processes(&lost);
        assert!(before.len() > 3, "two inits, a program and the monitor: {before:?}");
        perch_runtime::process::kill(&lost.monitor.open().unwrap()).unwrap();

        let again = |machine: &HostMachine| starts(machine) == 2 && states(machine) == between;
        let found = until(&host, &id, again).await;
        let exit = found.events.iter().find(|event| event.kind == "exit").unwrap();
        let exit = exit.request.clone().unwrap()["exit_event"].clone();
        assert_eq!((&exit["requested_stop"], &exit["restarting"]), (&json!(false), &json!(true)));
        assert!(exit["error"].as_str().unwrap().contains("monitor"), "{exit}");
        let left = || before.iter().filter(|one| one.runs()).count();
        soon(left, 0).await;
        // Its folder begins empty, and what waited goes on.
        server.wait_for_output(&id, "db\ndb\n").await;
        assert_eq!(shared_files(&server, &id).len(), 1);
        exec_in(&host, &id, "db", "touch /scratch/healthy").await;
        server.wait_for_output(&id, "web\n").await;
        assert_eq!(server.output(&id), "db\ndb\nweb\n");
        host.remove_everything().await.unwrap();
        soon(|| attached(&server), Vec::new()).await;
    });
}

#[test]
fn a_disk_that_others_fill_fails_writes_to_a_temporary_folder_and_nothing_else() {
    let test = "a_disk_that_others_fill_fails_writes_to_a_temporary_folder_and_nothing_else";
    Server::run(test, |server| async move {
        let data = server.config().data_dir;
        fs::create_dir_all(&data).unwrap();
        let at = data.display().to_string();
        run("mount", &["-t", "tmpfs", "-o", "size=96m", "tmpfs", &at]);
        let host = server.start().await;
        let containers = json!([
            {"name": "writer", "image": "busybox:1", "exec": ["sleep", "1000"],
             "mounts": [{"name": "scratch", "path": "/scratch"}]},
            {"name": "other", "image": "busybox:1", "exec": ["sleep", "1000"]},
        ]);
        // Larger than the disk: nothing of it is there before it is written.
        let volumes = json!([{"name": "scratch", "temp_dir": {"size_mb": 128}}]);
        let request = several(1, &containers, &volumes);
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let both = |machine: &HostMachine| states(machine) == ["writer started", "other started"];
        until(&host, &id, both).await;
        let write = write_to("/scratch");
        exec_in(&host, &id, "writer", "echo before > /scratch/before; sync").await;

        let filler = data.join("filler");
        fill(&filler);
        assert_eq!(exec_in(&host, &id, "writer", &write).await, "failed\n");
        assert_eq!(exec_in(&host, &id, "writer", "cat /scratch/before").await, "before\n");
        assert_eq!(exec_in(&host, &id, "other", "echo here").await, "here\n");
        assert_eq!(host.get(&id).unwrap().state, MachineState::Started);
        tell(&host, &id, STOP).await;
        wait(&host, &id, "stopped").await;
        fs::remove_file(&filler).unwrap();
        tell(&host, &id, Command::Start).await;
        until(&host, &id, both).await;
        assert_eq!(exec_in(&host, &id, "writer", &write).await, "wrote\n");
        host.remove_everything().await.unwrap();
        drop(host);
        run("umount", &["-l", &at]);
    });
}

/// A disk of 2,200 MiB for the pool of volumes, of which others take what is left.
fn pool_disk(server: &Server) -> String {
    let (image, point) = (server.folder.join("disk.img"), server.folder.join("disk"));
    File::create(&image).unwrap().set_len(2_200 << 20).unwrap();
    fs::create_dir(&point).unwrap();
    let (image, at) = (image.display().to_string(), point.display().to_string());
    run("mkfs.ext4", &["-q", "-F", "-m", "0", &image]);
    run("mount", &["-o", "loop", &image, &at]);
    fs::create_dir(point.join("pool")).unwrap();
    // The pool takes its folder away at the end, which a mount point does not let it.
    symlink(point.join("pool"), server.folder.join("pool")).unwrap();
    at
}

#[test]
fn a_volume_on_a_disk_that_others_fill_is_whole_again_when_its_machine_is_started_with_room() {
    let test =
        "a_volume_on_a_disk_that_others_fill_is_whole_again_when_its_machine_is_started_with_room";
    Server::run(test, |server| async move {
        let at = pool_disk(&server);
        let host = server.start().await;
        let data = host.create_volume(volume(1, VolumeSource::Empty)).await.unwrap().id;
        let request = mounting(1, &data, &json!({}));
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        exec(&host, &id, "echo before > /data/before && sync").await.unwrap();

        let filler = format!("{at}/filler");
        let file = File::create(&filler).unwrap();
        let found = rustix::fs::fstatvfs(&file).unwrap();
        let mut bytes = found.f_bavail * found.f_frsize;
        let none = rustix::fs::FallocateFlags::empty();
        // The last of it goes to the file system's own records.
        while rustix::fs::fallocate(&file, none, 0, bytes).is_err() {
            bytes -= 1 << 20;
        }
        drop(file);
        let write = write_to("/data");
        assert_eq!(exec(&host, &id, &write).await.unwrap().lines().next(), Some("failed"));
        let own = exec(&host, &id, "echo here > /here && cat /here").await.unwrap();
        assert_eq!(own, "here\n", "what is on another disk goes on");
        assert_eq!(host.get(&id).unwrap().state, MachineState::Started);

        tell(&host, &id, STOP).await;
        wait(&host, &id, "stopped").await;
        fs::remove_file(&filler).unwrap();
        tell(&host, &id, Command::Start).await;
        wait(&host, &id, "started").await;
        assert_eq!(exec(&host, &id, "cat /data/before").await.unwrap(), "before\n");
        assert_eq!(exec(&host, &id, &write).await.unwrap(), "wrote\n");
        host.remove_everything().await.unwrap();
        drop(host);
        run("umount", &["-l", &at]);
    });
}

#[test]
fn f2_an_image_as_a_volume_shows_no_path_of_the_host() {
    Server::run("f2_an_image_as_a_volume_shows_no_path_of_the_host", |server| async move {
        let host = server.start().await;
        let containers = json!([{"name": "web", "image": "busybox:1", "exec": ["sleep", "1000"],
            "mounts": [{"name": "site", "path": "/site"}]}]);
        let volumes = json!([{"name": "site", "image": "busybox:22"}]);
        let request = several(1, &containers, &volumes);
        let id = request.id.clone();
        host.create(request).await.unwrap();
        until(&host, &id, |machine| states(machine) == ["web started"]).await;
        let mounts = exec_in(&host, &id, "web", "cat /proc/self/mountinfo").await;
        assert!(mounts.contains(" /site ro,nosuid,nodev"), "{mounts}");
        assert!(!mounts.contains(server.folder.to_str().unwrap()), "{mounts}");
        assert!(!mounts.contains(".erofs"), "{mounts}");
        host.remove_everything().await.unwrap();
    });
}
