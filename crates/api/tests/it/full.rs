//! The directory's disk is full: whatever goes still goes, and what is new is refused.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use perch_store::get_doc;
use perch_types::Code;
use perch_types::api::CreateApp;
use perch_types::directory::VolumePlacementDoc;
use perch_types::volume::CreateVolumeRequest;
use serde_json::json;

use crate::cloud::{Cloud, web};

/// A small disk on a folder, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(test: &str, folder: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=12m", "perch-api-test"]).arg(folder);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            perch_testkit::skipped(test, "the right to mount a tmpfs");
        }
        mounted.then(|| Self(folder.to_owned()))
    }

    /// Takes all the room there is; returns the file that has it.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 16, 1 << 10, 1] {
            let zeros = vec![0; size];
            while file.write(&zeros).is_ok_and(|written| written > 0) {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn app(name: &str) -> CreateApp {
    CreateApp { name: Some(name.to_owned()), ..CreateApp::default() }
}

#[tokio::test]
async fn on_a_full_disk_machine_volume_and_app_go_and_nothing_new_comes() {
    let folder = tempfile::tempdir().unwrap();
    let test = "on_a_full_disk_machine_volume_and_app_go_and_nothing_new_comes";
    let Some(mounted) = SmallDisk::mount(test, folder.path()) else { return };
    let cloud = Cloud::start_in(folder).await;
    // Dropped before the cloud's folder is removed.
    let disk = mounted;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let left = cloud.machine(json!({"image": "web:1"})).await;
    let named = CreateVolumeRequest { name: "data".to_owned(), ..CreateVolumeRequest::default() };
    let volume = cloud.admin.create_volume(&web(), &named).await.unwrap();

    let filler = disk.fill();
    let refused = cloud.admin.create_app(&app("new")).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::NoSpace), "{refused}");
    cloud.admin.delete_machine(&web(), &machine.id, true).await.unwrap();
    let promise = format!("promises/destroy/personal/{}", machine.id);
    assert!(cloud.keys("promises/").await.contains(&promise));
    cloud.admin.delete_volume(&web(), &volume.id).await.unwrap();
    let key = ("personal".parse().unwrap(), volume.id);
    let placement = get_doc::<VolumePlacementDoc>(cloud.store.as_ref(), &key).await.unwrap();
    assert!(placement.unwrap().document.going);
    cloud.admin.delete_app(&web()).await.unwrap();
    assert!(cloud.admin.app(&web()).await.unwrap_err().is_not_found());
    let gone = ["placements/", "configs/", "tombstones/", "names/", "promises/", "machines/"];
    cloud.until_empty(&gone).await;
    let state = cloud.host.machines.lock().unwrap()[&left.id].state;
    assert_eq!(state.as_str(), "destroyed");
    let refused = cloud.admin.create_app(&app("new")).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::NoSpace), "{refused}");

    std::fs::remove_file(filler).unwrap();
    cloud.admin.create_app(&app("new")).await.unwrap();
}
