//! Volumes over HTTP: shapes, refusals, mounts of machines, the deletion of an app.

use std::time::Duration;

use perch_types::Code;
use perch_types::host::Command;
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

pub(crate) async fn volume(cloud: &Cloud, name: &str) -> Volume {
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
            "422 invalid_value snapshot_id: the app has no snapshot `vs_0123456789abcdef`",
        ),
        (
            "POST",
            all,
            r#"{"name":"a","source_volume_id":"vol_0123456789abcdef"}"#,
            "422 invalid_value source_volume_id: the app has no volume `vol_0123456789abcdef`; \
             allowed are vol_",
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
    assert_eq!(error.code(), Some(Code::InvalidValue));
    let text = "config.mounts[0].name: the app has no unattached volume called `data`; it has none";
    assert!(error.to_string().contains(text), "{error}");
    volume(&cloud, "logs").await;
    for (mount, text) in [
        (
            json!({"name": "data", "path": "/data"}),
            "config.mounts[0].name: the app has no unattached volume called `data`; allowed are logs",
        ),
        (
            json!({"volume": "vol_0123456789abcdef", "path": "/data"}),
            "config.mounts[0].volume: the app has no volume `vol_0123456789abcdef`; allowed are ",
        ),
    ] {
        let config = json!({"image": "web:1", "mounts": [mount]});
        let error = api.create_machine(&app, &request(config)).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::InvalidValue));
        assert!(error.to_string().contains(text), "{error}");
    }
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

/// Returns the volumes that each update mounts which the host was told of.
fn mounted(cloud: &Cloud) -> Vec<Vec<String>> {
    let commands = cloud.host.commands.lock().unwrap();
    let configs = commands.iter().filter_map(|command| match command {
        Command::Update { config, .. } => Some(config),
        _ => None,
    });
    let volumes = configs.map(|config| config.mounts.iter().map(|mount| mount.volume.clone()));
    volumes.map(Iterator::collect).collect()
}

/// Waits until the host was told of so many updates.
async fn told(cloud: &Cloud, count: usize) {
    let told = async {
        while mounted(cloud).len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
}

#[tokio::test]
async fn an_update_under_way_does_not_move_the_next_one_to_another_volume_of_the_name() {
    let cloud = Cloud::start().await;
    let (api, app) = (&cloud.admin, cloud.app().await);
    let own = [volume(&cloud, "data").await.id, volume(&cloud, "data").await.id];
    let own = own.map(|id| id.to_string());
    let of = |image: &str| {
        let mounts = json!([{"name": "data", "path": "/a"}, {"name": "data", "path": "/b"}]);
        request(json!({"image": image, "mounts": mounts}))
    };
    let machine = api.create_machine(&app, &of("web:1")).await.unwrap();
    let mounts = machine.config.mounts.iter().map(|mount| mount.volume.clone());
    assert_eq!(mounts.collect::<Vec<_>>(), own, "each mount of a name is a volume of its own");
    // Nobody has these, and nobody gets them.
    let spare = [volume(&cloud, "data").await.id, volume(&cloud, "data").await.id];
    cloud.host.holds_updates.send_replace(true);
    let (second, third) = (of("web:2"), of("web:3"));
    let first = api.update_machine(&app, &machine.id, &second);
    let other = async {
        told(&cloud, 1).await;
        let other = api.update_machine(&app, &machine.id, &third);
        let letting_go = async {
            told(&cloud, 2).await;
            cloud.host.holds_updates.send_replace(false);
        };
        tokio::join!(other, letting_go).0
    };
    let (first, other) = tokio::join!(first, other);
    assert_eq!(mounted(&cloud), [own.clone(), own], "spare are {spare:?}");
    assert_eq!(first.unwrap().config.mounts, other.unwrap().config.mounts);
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
