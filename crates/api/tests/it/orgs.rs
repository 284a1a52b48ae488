//! Machines of a whole organization, and lists of apps.

use perch_client::{ListFilter, Page};
use perch_types::api::{CreateApp, OrgMachines};
use perch_types::{MachineId, OrgSlug};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, request, web};

async fn list(cloud: &Cloud, query: &str) -> OrgMachines {
    let path = format!("/v1/orgs/personal/machines?{query}");
    let (status, _, body) = cloud.raw(("GET", &path), Some(ADMIN), "").await;
    assert_eq!(status, 200, "{query}");
    serde_json::from_slice(&body).unwrap()
}

fn ids(list: &OrgMachines) -> Vec<MachineId> {
    list.machines.iter().map(|machine| machine.id.clone()).collect()
}

#[tokio::test]
async fn machines_of_an_organization_come_page_by_page_in_the_order_of_their_change() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let other = CreateApp { name: Some("other".to_owned()), ..CreateApp::default() };
    let other = cloud.admin.create_app(&other).await.unwrap().name;
    let mut made = Vec::new();
    for number in 0..5 {
        let app = if number == 3 { &other } else { &web() };
        let config = json!({"image": "a", "metadata": {"n": number.to_string()}});
        made.push(cloud.admin.create_machine(app, &request(config)).await.unwrap().id);
    }
    // In this order they change.
    for index in [4, 0, 3, 1, 2] {
        let app = if index == 3 { &other } else { &web() };
        cloud.admin.cordon(app, &made[index]).await.unwrap();
    }
    let expected: Vec<_> = [4, 0, 3, 1, 2].map(|index: usize| made[index].clone()).to_vec();
    let all = list(&cloud, "").await;
    assert_eq!(ids(&all), expected);
    assert_eq!((all.next_cursor.as_str(), all.error_regions.len()), ("", 0));
    assert_eq!(all.last_machine_id, Some(made[2].clone()));
    assert_eq!(all.last_updated_at, Some(all.machines[4].updated_at));

    let (mut pages, mut page) = (Vec::new(), Page { limit: Some(2), ..Page::default() });
    loop {
        let org = OrgSlug::personal();
        let got = cloud.admin.org_machines(&org, &ListFilter::default(), &page).await.unwrap();
        pages.extend(ids(&got));
        if got.next_cursor.is_empty() {
            break;
        }
        assert_eq!(got.machines.len(), 2);
        page.cursor = Some(got.next_cursor);
    }
    assert_eq!(pages, expected);

    let after = all.machines[2].updated_at;
    assert_eq!(ids(&list(&cloud, &format!("updated_after={after}")).await), expected[3..]);
    assert_eq!(ids(&list(&cloud, "metadata.n=3").await), std::slice::from_ref(&made[3]));
    assert_eq!(list(&cloud, "state=stopped").await.machines, []);
    assert_eq!(list(&cloud, "region=iad,fra").await.machines.len(), 5);
    assert_eq!(list(&cloud, "region=iad").await.machines, []);
}

#[tokio::test]
async fn a_machine_of_an_organization_has_the_contracts_shape() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let guest = json!({"cpu_kind": "performance", "cpus": 1, "memory_mb": 2048});
    let machine = json!({"image": "web:1", "metadata": {"a": "b"}, "guest": guest});
    let machine = cloud.machine(machine).await;
    let mut listed = serde_json::to_value(list(&cloud, "").await).unwrap();
    for (path, is) in [
        ("/machines/0/id", machine.id.as_str()),
        ("/machines/0/name", &machine.name),
        ("/machines/0/version", machine.version.as_str()),
        ("/machines/0/instance_id", machine.version.as_str()),
        ("/last_machine_id", machine.id.as_str()),
    ] {
        assert_eq!(listed.pointer(path).unwrap(), is);
        *listed.pointer_mut(path).unwrap() = Value::from("[same]");
    }
    insta::assert_snapshot!(serde_json::to_string_pretty(&listed).unwrap(), @r#"
    {
      "error_regions": [],
      "last_machine_id": "[same]",
      "last_updated_at": "2023-11-14T22:13:20.000Z",
      "machines": [
        {
          "app_name": "web",
          "config": {
            "guest": {
              "cpu_kind": "performance",
              "cpus": 1,
              "memory_mb": 2048
            },
            "image": "web:1",
            "metadata": {
              "a": "b"
            }
          },
          "created_at": "2023-11-14T22:13:20.000Z",
          "id": "[same]",
          "instance_id": "[same]",
          "name": "[same]",
          "private_ip": "fdaa:0:1::2",
          "region": "fra",
          "state": "started",
          "updated_at": "2023-11-14T22:13:20.000Z",
          "version": "[same]"
        }
      ],
      "next_cursor": ""
    }
    "#);
    let summary = list(&cloud, "summary=true").await;
    assert_eq!(summary.machines[0].config, None);
}

#[tokio::test]
async fn destroyed_machines_are_told_to_who_asks_for_them_and_a_host_that_is_away_is_named() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let kept = cloud.machine(json!({"image": "a"})).await.id;
    let gone = cloud.machine(json!({"image": "a"})).await.id;
    cloud.admin.delete_machine(&web(), &gone, true).await.unwrap();
    assert_eq!(ids(&list(&cloud, "").await), std::slice::from_ref(&kept));
    let all = list(&cloud, "include_deleted=true").await;
    assert_eq!(ids(&all), [kept.clone(), gone.clone()]);
    assert_eq!(ids(&list(&cloud, "state=destroyed").await), [gone]);
    cloud.host_task.abort();
    std::fs::remove_file(cloud.folder.path().join("host.sock")).unwrap();
    let away = list(&cloud, "include_deleted=true").await;
    assert_eq!((ids(&away), away.error_regions.len()), (vec![kept], 1));
}

#[tokio::test]
async fn apps_are_listed_by_their_role_and_say_how_they_stand() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = r#"{"app_name":"builder","org_slug":"personal","app_role_id":"remote-docker-builder",
        "enable_subdomains":false}"#;
    let (status, _, body) = cloud.raw(("POST", "/v1/apps?wait=true"), Some(ADMIN), body).await;
    assert_eq!(status, 201);
    let made: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(made["app_role"], "remote-docker-builder");
    let names = async |query: &str| -> Vec<String> {
        let path = format!("/v1/apps?{query}");
        let (_, _, body) = cloud.raw(("GET", &path), Some(ADMIN), "").await;
        let apps: perch_types::api::Apps = serde_json::from_slice(&body).unwrap();
        apps.apps.into_iter().map(|app| app.name.to_string()).collect()
    };
    assert_eq!(names("org_slug=personal").await, ["builder", "web"]);
    assert_eq!(names("org_slug=personal&app_role=remote-docker-builder").await, ["builder"]);
    assert!(names("app_role=postgres_cluster").await.is_empty());
    assert!(names("org_slug=none").await.is_empty());

    let status = async || cloud.admin.app(&web()).await.unwrap().status;
    assert_eq!(status().await, "pending");
    let machine = cloud.machine(json!({"image": "a"})).await;
    assert_eq!(status().await, "deployed");
    cloud.admin.stop(&web(), &machine.id, &Default::default()).await.unwrap();
    assert_eq!(status().await, "suspended");
    let (status, _, body) =
        cloud.raw(("DELETE", "/v1/apps/builder?force=true"), Some(ADMIN), "").await;
    assert_eq!((status, body.as_slice()), (202, b"".as_slice()));
}
