//! The directory's disk is full: whatever goes still goes, and what is new is refused.

use perch_store::get_doc;
use perch_testkit::SmallDisk;
use perch_types::Code;
use perch_types::api::CreateApp;
use perch_types::directory::VolumePlacementDoc;
use perch_types::volume::CreateVolumeRequest;
use serde_json::json;

use crate::cloud::{Cloud, web};

fn app(name: &str) -> CreateApp {
    CreateApp { name: Some(name.to_owned()), ..CreateApp::default() }
}

#[tokio::test]
async fn on_a_full_disk_machine_volume_and_app_go_and_nothing_new_comes() {
    let folder = tempfile::tempdir().unwrap();
    let test = "on_a_full_disk_machine_volume_and_app_go_and_nothing_new_comes";
    let Some(mounted) = SmallDisk::mount_on(test, folder.path()) else { return };
    let cloud = Cloud::start_in(folder).await;
    // Dropped before the cloud's folder is removed.
    let disk = mounted;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let left = cloud.machine(json!({"image": "web:1"})).await;
    let named = CreateVolumeRequest { name: "data".to_owned(), ..CreateVolumeRequest::default() };
    let volume = cloud.admin.create_volume(&web(), &named).await.unwrap();

    let filler = disk.fill().unwrap();
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
