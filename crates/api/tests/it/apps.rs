//! Apps: names, networks, deletion.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use futures_util::future::{join, join_all};
use perch_client::ListFilter;
use perch_store::{Expected, get_doc, put_doc};
use perch_types::api::{CreateApp, LeaseRequest};
use perch_types::directory::MachineRecord;
use perch_types::{Code, MachineId, MachineState, OrgSlug};
use serde_json::json;

use crate::cloud::{ADMIN, Cloud, request, shown, web};
use crate::every_field::send;
use crate::fake_host::Creation;

fn named(name: &str) -> CreateApp {
    CreateApp { name: Some(name.to_owned()), ..CreateApp::default() }
}

#[tokio::test]
async fn an_app_is_answered_in_the_contracts_shape() {
    let cloud = Cloud::start().await;
    let body = r#"{"app_name":"web","org_slug":"personal","enable_subdomains":false}"#;
    let (status, _, body) = cloud.raw(("POST", "/v1/apps?wait=true"), Some(ADMIN), body).await;
    assert_eq!(status, 201);
    let app = shown(&body, &["id", "created_at"]);
    insta::assert_snapshot!(app, @r#"
    {
      "cname_target": "web.perch.test",
      "created_at": "[created_at]",
      "hostname": "web.perch.test",
      "id": "[id]",
      "internal_numeric_id": 1,
      "machine_count": 0,
      "name": "web",
      "network": "default",
      "organization": {
        "internal_numeric_id": 1,
        "name": "personal",
        "slug": "personal"
      },
      "status": "pending",
      "volume_count": 0
    }
    "#);
    cloud.machine(json!({"image": "web:1"})).await;
    let app = cloud.admin.app(&web()).await.unwrap();
    assert_eq!((app.machine_count, app.status.as_str()), (1, "deployed"));
    assert_eq!(cloud.admin.apps(Some("personal")).await.unwrap().total_apps, 1);
    assert_eq!(cloud.admin.apps(Some("strangers")).await.unwrap().total_apps, 0);
    let (_, _, body) =
        cloud.raw(("GET", "/v1/apps?app_role=remote-docker-builder"), Some(ADMIN), "").await;
    assert_eq!(body, br#"{"total_apps":0,"apps":[]}"#);
}

#[tokio::test]
async fn an_app_says_how_long_it_takes_to_wake_once_it_was_woken() {
    let cloud = Cloud::start().await;
    for name in ["woken", "web"] {
        cloud.admin.create_app(&named(name)).await.unwrap();
    }
    let (_, _, body) = cloud.raw(("GET", "/v1/apps/woken"), Some(ADMIN), "").await;
    let app: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(app["wake"], json!({"count": 3, "p50_ms": 41, "p99_ms": 90}));
    let (_, _, body) = cloud.raw(("GET", "/v1/apps/web"), Some(ADMIN), "").await;
    let app: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(app.get("wake"), None);
    // One machine that is asked for says how it answers, if the edge says that.
    let config = json!({"image": "web:1"});
    for (app, want) in [("woken", Some((7, 2))), ("web", None)] {
        let app = app.parse().unwrap();
        let made = cloud.admin.create_machine(&app, &request(config.clone())).await.unwrap();
        assert_eq!(made.answers, None);
        let machine = cloud.admin.machine(&app, &made.id).await.unwrap();
        let answers = machine.answers.map(|answers| (answers.count, answers.errors));
        assert_eq!(answers, want, "{app}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_the_platform_has_below_its_domain_is_no_apps() {
    let cloud = Cloud::start().await;
    for name in ["www", "challenges"] {
        let refused = cloud.admin.create_app(&named(name)).await.unwrap_err();
        assert_eq!(refused.code(), Some(Code::InvalidValue), "{name}");
    }
    // What it has elsewhere is no matter.
    cloud.admin.create_app(&named("api2")).await.unwrap();
    assert_eq!(cloud.keys("apps/").await, ["apps/personal/api2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_that_want_a_name_at_once_one_gets_it() {
    let cloud = Cloud::start().await;
    let creations = (0..50).map(|_| {
        let api = cloud.admin.clone();
        tokio::spawn(async move { api.create_app(&named("web")).await })
    });
    let mut made = 0;
    for creation in creations.collect::<Vec<_>>() {
        match creation.await.unwrap() {
            Ok(_) => made += 1,
            Err(perch_client::Error::Api { error, status }) => {
                assert_eq!((status, error.code), (422, Code::NameTaken));
                assert_eq!(error.error, "Name has already been taken");
                assert_eq!(error.status, "name_taken");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(made, 1);
    assert_eq!(cloud.keys("apps/").await, ["apps/personal/web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_made_at_once_have_numbers_of_their_own_and_share_a_network_by_name() {
    let cloud = Cloud::start().await;
    let creations = (0..20).map(|number| {
        let api = cloud.admin.clone();
        let network = (number % 2 == 0).then(|| format!("net{}", number % 4));
        let app = CreateApp { network, ..named(&format!("app{number}")) };
        tokio::spawn(async move { api.create_app(&app).await.unwrap() })
    });
    let mut numbers = BTreeSet::new();
    for creation in creations.collect::<Vec<_>>() {
        numbers.insert(creation.await.unwrap().internal_numeric_id);
    }
    assert_eq!(numbers.len(), 20);
    assert_eq!(
        cloud.keys("networks/").await,
        ["networks/personal/default", "networks/personal/net0", "networks/personal/net2"]
    );
}

#[tokio::test]
async fn a_deleted_app_takes_its_machines_along_and_frees_its_name() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    for _ in 0..3 {
        cloud.machine(json!({"image": "web:1"})).await;
    }
    cloud.images.refuse_once.store(true, Ordering::Relaxed);
    let (status, _, body) = cloud.raw(("DELETE", "/v1/apps/web"), Some(ADMIN), "").await;
    assert_eq!((status, body.len()), (202, 0));
    assert!(cloud.admin.app(&web()).await.unwrap_err().is_not_found());
    let left = ["placements/", "configs/", "tombstones/", "names/", "promises/", "machines/"];
    cloud.until_empty(&left).await;
    let states: Vec<_> =
        cloud.host.machines.lock().unwrap().values().map(|it| it.state.as_str()).collect();
    assert_eq!(states, ["destroyed"; 3]);
    // Asked again until it went well, and the name was nobody else's before.
    assert_eq!(*cloud.images.forgotten.lock().unwrap(), [(web(), true), (web(), true)]);
    cloud.app().await;
    let all = ListFilter { include_deleted: true, ..ListFilter::default() };
    let all = cloud.admin.machines(&web(), &all).await.unwrap();
    assert!(all.is_empty(), "the new app has none of the old one's machines");
}

/// A creation that the deletion overtakes is refused, with nothing left of it.
#[tokio::test]
async fn creations_beside_the_deletion_of_their_app_leave_nothing() {
    let cloud = Cloud::start().await;
    *cloud.host.creation.lock().unwrap() = Creation::Slow;
    for _ in 0..8 {
        cloud.app().await;
        let body = r#"{"config":{"image":"web:1"}}"#;
        let call = ("POST", "/v1/apps/web/machines");
        let creations = (0..16).map(|_| cloud.raw(call, Some(ADMIN), body));
        let deletion = cloud.raw(("DELETE", "/v1/apps/web"), Some(ADMIN), "");
        let (made, deleted) = join(join_all(creations), deletion).await;
        assert_eq!(deleted.0, 202);
        for (status, ..) in made {
            assert!(matches!(status, 200 | 404 | 409), "{status}");
        }
        cloud.until_empty(&["placements/", "configs/", "tombstones/"]).await;
        let left = std::mem::take(&mut *cloud.host.machines.lock().unwrap());
        let lost = left.values().find(|machine| machine.state != MachineState::Destroyed);
        assert!(lost.is_none(), "{lost:?} is nobody's and runs");
        cloud.until_empty_woken(&["promises/"]).await;
    }
}

#[tokio::test]
async fn a_name_stays_taken_while_the_machines_of_the_deleted_app_cannot_be_reached() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    cloud.machine(json!({"image": "web:1"})).await;
    cloud.host_task.abort();
    let socket = cloud.folder.path().join("host.sock");
    std::fs::remove_file(&socket).unwrap();
    cloud.admin.delete_app(&web()).await.unwrap();
    let taken = cloud.admin.create_app(&named("web")).await.unwrap_err();
    assert_eq!(taken.code(), Some(Code::NameTaken));
    let _task = cloud.host.serve(&socket);
    cloud.until_empty(&["placements/", "tombstones/", "names/"]).await;
    cloud.admin.create_app(&named("web")).await.unwrap();
}

#[tokio::test]
async fn what_is_left_of_another_organizations_app_of_the_name_is_not_counted() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let own = cloud.machine(json!({"image": "web:1"})).await;
    let store = cloud.store.as_ref();
    let key = (OrgSlug::personal(), web(), own.id);
    let found = get_doc::<MachineRecord>(store, &key).await.unwrap().unwrap();
    let (org, id): (OrgSlug, _) = ("others".parse().unwrap(), MachineId::from_bits(99));
    let left = MachineRecord { org: org.clone(), id: id.clone(), ..found.document };
    put_doc(store, &(org, web(), id), &left, Expected::Any).await.unwrap();
    // The view hears of this one after that.
    cloud.machine(json!({"image": "web:1"})).await;
    assert_eq!(cloud.admin.app(&web()).await.unwrap().machine_count, 2);
}

/// Sends the head of a request and holds its body until the second future is done.
async fn slowly<F: Future>(cloud: &Cloud, path: &str, body: &'static str, meanwhile: F) -> u16 {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let chunks = futures_util::stream::once(async move {
        receiver.await.ok();
        Ok::<_, std::convert::Infallible>(body)
    });
    let call = ("POST", path);
    let router = cloud.api.router();
    let request = send(&router, call, Some(ADMIN), axum::body::Body::from_stream(chunks));
    let meanwhile = async {
        // The head is judged while the body is waited for.
        tokio::task::yield_now().await;
        cloud.admin.apps(None).await.unwrap();
        meanwhile.await;
        sender.send(()).ok();
    };
    join(request, meanwhile).await.0.0
}

/// The tokens of an app end with it: whoever began a request before does not reach the next app.
#[tokio::test]
async fn a_slow_body_does_not_reach_the_next_app_of_the_name() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = r#"{"config":{"image":"web:1"}}"#;
    let status = slowly(&cloud, "/v1/apps/web/machines", body, async {
        cloud.admin.delete_app(&web()).await.unwrap();
        cloud.until_empty(&["tombstones/", "names/"]).await;
        cloud.app().await;
    })
    .await;
    assert_eq!(status, 409);
    assert!(cloud.keys("placements/").await.is_empty());
}

/// Nor does it get past a lease that somebody acquired meanwhile.
#[tokio::test]
async fn a_slow_body_does_not_get_past_a_lease() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let id = cloud.machine(json!({"image": "web:1"})).await.id;
    let status = slowly(&cloud, &format!("/v1/apps/web/machines/{id}/stop"), "{}", async {
        let asked = LeaseRequest::default();
        cloud.admin.acquire_lease(&web(), &id, &asked, None).await.unwrap();
    })
    .await;
    assert_eq!(status, 409);
    assert_eq!(cloud.admin.machine(&web(), &id).await.unwrap().state, MachineState::Started);
}
