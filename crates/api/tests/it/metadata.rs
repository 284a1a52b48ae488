//! Labels and versions: what a change leaves alone, and what two changes at once do.

use std::collections::BTreeMap;

use perch_store::get_doc;
use perch_types::api::UpdateMetadata;
use perch_types::directory::{ConfigDoc, MachineRecord, PlacementDoc};
use perch_types::{Code, MachineId, OrgSlug};
use serde_json::json;

use crate::cloud::{ADMIN, Cloud, request, web};

fn update(of: &[(&str, Option<&str>)]) -> UpdateMetadata {
    let of = of.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
    UpdateMetadata { metadata: of.collect(), ..UpdateMetadata::default() }
}

async fn labels(cloud: &Cloud, id: &MachineId) -> String {
    let labels = cloud.admin.metadata(&web(), id).await.unwrap();
    let machine = cloud.admin.machine(&web(), id).await.unwrap();
    assert_eq!(machine.config.metadata, labels);
    labels.iter().map(|(key, value)| format!("{key}={value} ")).collect()
}

#[tokio::test]
async fn labels_change_without_a_new_version() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let config = json!({"image": "web:1", "metadata": {"a": "1", "b": "2"}});
    let machine = cloud.machine(config).await;
    let (api, id) = (&cloud.admin, &machine.id);
    let path = format!("/v1/apps/web/machines/{id}/metadata");
    let (status, _, body) =
        cloud.raw(("PATCH", &path), Some(ADMIN), r#"{"metadata":{"b":"3","c":"4"}}"#).await;
    assert_eq!((status, body.as_slice()), (204, b"".as_slice()));
    assert_eq!(labels(&cloud, id).await, "a=1 b=3 c=4 ");
    // Nothing and an empty text take one away.
    api.merge_metadata(&web(), id, &update(&[("a", None), ("b", Some(""))])).await.unwrap();
    assert_eq!(labels(&cloud, id).await, "c=4 ");
    api.set_metadata(&web(), id, ("d", "5")).await.unwrap();
    api.delete_metadata(&web(), id, "c").await.unwrap();
    api.delete_metadata(&web(), id, "never").await.unwrap();
    // One that can be no label's key is as little there.
    for key in ["never", "a%0Ab", &"k".repeat(129)] {
        let (status, error) = cloud.error(("GET", &format!("{path}/{key}")), Some(ADMIN), "").await;
        assert_eq!((status, error.code), (404, Code::NotFound), "{key}: {error}");
    }
    assert_eq!(labels(&cloud, id).await, "d=5 ");
    api.replace_metadata(&web(), id, &update(&[("e", Some("6")), ("f", None)])).await.unwrap();
    assert_eq!(labels(&cloud, id).await, "e=6 ");

    let after = api.machine(&web(), id).await.unwrap();
    assert_eq!(after.instance_id, machine.instance_id);
    let key = (OrgSlug::personal(), id.clone());
    let placed = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    assert_eq!(placed.document.epoch, 1);
    // Routing and names see it.
    let key = (OrgSlug::personal(), web(), id.clone());
    let record = get_doc::<MachineRecord>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    assert_eq!(record.document.metadata["e"], "6");
}

#[tokio::test]
async fn labels_need_the_version_that_was_named() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let (api, id) = (&cloud.admin, &machine.id);
    let mut change = update(&[("a", Some("1"))]);
    change.machine_version = Some(machine.instance_id.to_string());
    api.merge_metadata(&web(), id, &change).await.unwrap();
    api.update_machine(&web(), id, &request(json!({"image": "web:2"}))).await.unwrap();
    for put in [true, false] {
        let refused = if put {
            api.replace_metadata(&web(), id, &change).await
        } else {
            api.merge_metadata(&web(), id, &change).await
        };
        assert_eq!(refused.unwrap_err().code(), Some(Code::PreconditionFailed));
    }
}

#[tokio::test]
async fn labels_are_free_while_somebody_holds_the_lease() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let mut leased = request(json!({"image": "web:1"}));
    leased.lease_ttl = Some(60);
    let machine = cloud.admin.create_machine(&web(), &leased).await.unwrap();
    cloud.admin.set_metadata(&web(), &machine.id, ("safe_to_destroy", "true")).await.unwrap();
    assert_eq!(labels(&cloud, &machine.id).await, "safe_to_destroy=true ");
}

/// A machine has a past, and that has an end.
#[tokio::test]
async fn versions_are_told_newest_first_and_the_oldest_go() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:0", "env": {"A": "b"}})).await;
    let mut versions = vec![machine.instance_id.clone()];
    for number in 1..=22 {
        let update = request(json!({"image": format!("web:{number}")}));
        let updated = cloud.admin.update_machine(&web(), &machine.id, &update).await.unwrap();
        versions.insert(0, updated.instance_id);
        if number == 2 {
            let told = cloud.admin.versions(&web(), &machine.id).await.unwrap();
            let told: Vec<_> = told.into_iter().map(|it| (it.version, it.user_config)).collect();
            assert_eq!(
                told.iter().map(|(version, _)| version.clone()).collect::<Vec<_>>(),
                versions
            );
            assert_eq!(told[2].1.env, BTreeMap::from([("A".to_owned(), "b".to_owned())]));
            assert_eq!(told[0].1.image, "web:2");
        }
    }
    let told = cloud.admin.versions(&web(), &machine.id).await.unwrap();
    let told: Vec<_> = told.into_iter().map(|it| it.version).collect();
    assert_eq!(told, versions[..20]);
    assert_eq!(cloud.keys("configs/").await.len(), 20);
    let key = (OrgSlug::personal(), web(), machine.id.clone(), versions[0].clone());
    get_doc::<ConfigDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
}

/// The host could not bring a version and says so: the one before is current again.
#[tokio::test]
async fn an_update_that_was_given_up_leaves_the_version_before_as_the_current_one() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let (api, id) = (&cloud.admin, &machine.id);
    let broken = api.update_machine(&web(), id, &request(json!({"image": "web:2"}))).await.unwrap();
    let mut next = request(json!({"image": "web:3"}));
    next.current_version = Some(machine.instance_id.to_string());
    let refused = api.update_machine(&web(), id, &next).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::PreconditionFailed));
    let before = machine.instance_id.clone();
    cloud
        .host
        .change(id, |machine| {
            machine.instance = before;
            machine.given_up = Some(broken.instance_id);
        })
        .await;
    let updated = api.update_machine(&web(), id, &next).await.unwrap();
    assert_eq!(updated.config.image, "web:3");
}
