//! Volumes over HTTP: shapes, refusals, mounts of machines, the deletion of an app.

use perch_types::Code;
use perch_types::volume::{CreateVolumeRequest, UpdateVolumeRequest, Volume, VolumeState};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, request, web};

fn named(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        size_gb: Some(1),
        ..CreateVolumeRequest::default()
    }
}

async fn volume(cloud: &Cloud, name: &str) -> Volume {
    cloud.admin.create_volume(&web(), &named(name)).await.unwrap()
}

#[tokio::test]
async fn every_call_of_a_volumes_life() {
    let cloud = Cloud::start().await;
    let (api, app) = (&cloud.admin, cloud.app().await);
    let made = volume(&cloud, "data").await;
    assert_eq!((made.state, made.size_gb), (VolumeState::Created, 1));
    assert_eq!((made.encrypted, made.fstype.as_str()), (false, "xfs"));
    assert_eq!((made.snapshot_retention, made.auto_backup_enabled), (5, true));
    assert_eq!(made.bytes_used, 10 * 4096);
    let id = &made.id;
    assert_eq!(api.volumes(&app).await.unwrap(), std::slice::from_ref(&made));
    assert_eq!(api.app(&app).await.unwrap().volume_count, 1);
    let extended = api.extend_volume(&app, id, 5).await.unwrap();
    assert_eq!((extended.volume.size_gb, extended.needs_restart), (5, false));
    let update =
        UpdateVolumeRequest { snapshot_retention: Some(9), auto_backup_enabled: Some(false) };
    let updated = api.update_volume(&app, id, &update).await.unwrap();
    assert_eq!((updated.snapshot_retention, updated.auto_backup_enabled), (9, false));
    api.create_snapshot(&app, id).await.unwrap();
    let snapshots = api.snapshots(&app, id).await.unwrap();
    assert_eq!((snapshots.len(), snapshots[0].volume_size), (1, 5 << 30));

    let of_snapshot = CreateVolumeRequest {
        snapshot_id: Some(snapshots[0].id.to_string()),
        size_gb: None,
        ..named("restored")
    };
    assert_eq!(api.create_volume(&app, &of_snapshot).await.unwrap().size_gb, 5);
    let fork = CreateVolumeRequest {
        source_volume_id: Some(id.to_string()),
        size_gb: None,
        ..named("forked")
    };
    assert_eq!(api.create_volume(&app, &fork).await.unwrap().size_gb, 5);
    let page = api.org_volumes(&"personal".parse().unwrap(), "").await.unwrap();
    assert_eq!(page.volumes.len(), 3);
    assert!(page.next_cursor.is_empty());
    assert_eq!(page.volumes[0].app_name, app);

    let destroyed = api.delete_volume(&app, id).await.unwrap();
    assert_eq!(destroyed.state, VolumeState::PendingDestroy);
    assert_eq!(api.app(&app).await.unwrap().volume_count, 2);
    assert_eq!(api.volume(&app, id).await.unwrap().state, VolumeState::PendingDestroy);
}

#[tokio::test]
async fn a_volume_says_how_its_snapshots_are_made_and_why_the_last_one_was_not() {
    let cloud = Cloud::start().await;
    let app = cloud.app().await;
    let made = volume(&cloud, "data").await;
    assert_eq!((made.snapshot_method.as_str(), made.snapshot_error), ("reflink", None));
    let copied = cloud.host.volumes.change(&made.id, |record| {
        record.copies = true;
        record.snapshot_error = Some("the pool is full".to_owned());
    });
    copied.await;
    let found = cloud.admin.volume(&app, &made.id).await.unwrap();
    assert_eq!(found.snapshot_method, "copy");
    assert_eq!(found.snapshot_error.as_deref(), Some("the pool is full"));
}

#[tokio::test]
async fn what_is_refused_names_its_field_and_leaves_nothing() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let made = volume(&cloud, "data").await;
    let (all, one) = ("/v1/apps/web/volumes", format!("/v1/apps/web/volumes/{}", made.id));
    let extend = format!("{one}/extend");
    let page = "/v1/orgs/personal/volumes";
    for (method, path, body, expected) in [
        ("POST", all, "{}", "422 invalid_value name: "),
        ("POST", all, r#"{"name":1}"#, "400 invalid_request name: "),
        ("POST", all, r#"{"name":"a","size_gb":"x"}"#, "400 invalid_request size_gb: "),
        ("POST", all, r#"{"name":"a","size_gb":-1}"#, "400 invalid_request size_gb: "),
        ("POST", all, r#"{"name":"a","size_gb":99999}"#, "422 invalid_value size_gb: "),
        ("POST", all, r#"{"name":"a","region":"syd"}"#, "422 invalid_value region: "),
        ("POST", all, r#"{"name":"a","encrypted":"x"}"#, "400 invalid_request encrypted: "),
        ("POST", all, r#"{"name":"a","fstype":"ntfs"}"#, "422 invalid_value fstype: "),
        ("POST", all, r#"{"name":"a","compute":1}"#, "400 invalid_request compute: "),
        ("POST", all, r#"{"name":"a","require_unique_zone":1}"#, "400 invalid_request require_"),
        (
            "POST",
            all,
            r#"{"name":"a","snapshot_id":"vs_0123456789abcdef"}"#,
            "404 snapshot_not_found snapshot_id: ",
        ),
        (
            "POST",
            all,
            r#"{"name":"a","source_volume_id":"vol_0123456789abcdef"}"#,
            "404 volume_not_found volume not found",
        ),
        ("POST", all, r#"{"name":"no_room"}"#, "507 no_space the pool"),
        ("GET", &format!("{all}/vol_0"), "", "404 volume_not_found volume not found"),
        ("GET", &format!("{all}?summary=x"), "", "400 invalid_request summary: "),
        ("PUT", &one, r#"{"snapshot_retention":0}"#, "422 invalid_value snapshot_retention: "),
        ("PUT", &one, r#"{"auto_backup_enabled":1}"#, "400 invalid_request auto_backup_enabled: "),
        ("PUT", &extend, "{}", "400 invalid_request size_gb: is missing"),
        ("PUT", &extend, r#"{"size_gb":0}"#, "422 invalid_value size_gb: 0 is not 1 to"),
        ("GET", "/v1/orgs/other/volumes", "", "404 not_found org_slug: `other`"),
        ("GET", &format!("{page}?limit=0"), "", "400 invalid_request limit: 0 is not 1 to 1000"),
        ("GET", &format!("{page}?cursor=x"), "", "400 invalid_request cursor: "),
        ("GET", &format!("{page}?state=x"), "", "400 invalid_request state: "),
        ("GET", &format!("{page}?updated_after=x"), "", "400 invalid_request updated_after: "),
    ] {
        let (status, error) = cloud.error((method, path), Some(ADMIN), body).await;
        let found = format!("{status} {} {}", error.code, error.error);
        assert!(found.starts_with(expected), "{method} {path} {body}: {found}");
    }
    assert_eq!(cloud.admin.volumes(&web()).await.unwrap().len(), 1);
    assert_eq!(cloud.keys("volume_placements/").await.len(), 1);
    let summary = ("GET", "/v1/apps/web/volumes?summary=true");
    let (_, _, body) = cloud.raw(summary, Some(ADMIN), "").await;
    let list: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&list[0]["blocks"], &list[0]["attached_machine_id"]), (&json!(0), &Value::Null));
}

#[tokio::test]
async fn a_machine_gets_the_volume_that_it_names_and_no_other_machine_does() {
    let cloud = Cloud::start().await;
    let (api, app) = (&cloud.admin, cloud.app().await);
    let (first, second) = (volume(&cloud, "data").await, volume(&cloud, "data").await);
    let by_name = json!({"image": "web:1", "mounts": [{"name": "data", "path": "/data"}]});
    let one = cloud.machine(by_name.clone()).await;
    assert_eq!(one.config.mounts[0].volume, first.id.as_str());
    let attached = api.volume(&app, &first.id).await.unwrap().attached_machine_id;
    assert_eq!(attached.as_ref(), Some(&one.id));
    let other = cloud.machine(by_name.clone()).await;
    assert_eq!(other.config.mounts[0].volume, second.id.as_str());
    let error = api.create_machine(&app, &request(by_name)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::VolumeNotFound));
    let by_id = json!({"image": "web:1", "mounts": [{"volume": first.id, "path": "/data"}]});
    let error = api.create_machine(&app, &request(by_id.clone())).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::VolumeAttached));
    assert!(error.to_string().contains(one.id.as_str()), "{error}");
    let error = api.delete_volume(&app, &first.id).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::VolumeAttached));
    // Its own is its own: by id and by name.
    api.update_machine(&app, &one.id, &request(by_id)).await.unwrap();
    let update = json!({"image": "web:2", "mounts": [{"name": "data", "path": "/data"}]});
    let updated = api.update_machine(&app, &one.id, &request(update)).await.unwrap();
    assert_eq!(updated.config.mounts[0].volume, first.id.as_str());
    let wrong = json!({"image": "web:1", "mounts": [
        {"volume": first.id, "name": "other", "path": "/data"}]});
    let error = api.update_machine(&app, &one.id, &request(wrong)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidValue));
}

#[tokio::test]
async fn the_volumes_of_a_deleted_app_are_destroyed_and_another_app_of_the_name_has_none() {
    let cloud = Cloud::start().await;
    let (api, app) = (&cloud.admin, cloud.app().await);
    let data = volume(&cloud, "data").await;
    let mounts = json!({"image": "web:1", "mounts": [{"volume": data.id, "path": "/data"}]});
    cloud.machine(mounts).await;
    api.delete_app(&app).await.unwrap();
    let state = cloud.host.volumes.volumes.lock().unwrap()[&data.id].state;
    assert_eq!(state, VolumeState::PendingDestroy);
    cloud.app().await;
    assert!(api.volumes(&app).await.unwrap().is_empty());
    assert_eq!(api.app(&app).await.unwrap().volume_count, 0);
    let error = api.volume(&app, &data.id).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::VolumeNotFound));
}
