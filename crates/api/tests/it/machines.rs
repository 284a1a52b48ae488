//! Machines: shapes, what is written before a host is asked, what is taken back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use perch_client::{ListFilter, WaitFor};
use perch_store::{Expected, get_doc, put_doc};
use perch_types::api::{CheckState, HostStatus};
use perch_types::directory::{ConfigDoc, HostDoc, PlacementDoc};
use perch_types::host::Command;
use perch_types::machine_config::Signal;
use perch_types::{Code, MachineId, MachineState, OrgSlug};
use serde_json::json;

use crate::cloud::{ADMIN, Cloud, request, shown, web};
use crate::fake_host::Creation;

const MACHINES: &str = "/v1/apps/web/machines";

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "most of it is the answer")]
async fn a_machine_is_answered_in_the_contracts_shape() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = r#"{"name":"one","region":"fra","skip_launch":false,"lease_ttl":0,"skip_secrets":true,
        "config":{"image":"web:1","init":{},"env":{"A":"b"},"later":[1],
        "services":[{"internal_port":8080,"protocol":"tcp","ports":[{"port":80,"handlers":["http"]}]}]}}"#;
    let (status, _, body) = cloud.raw(("POST", MACHINES), Some(ADMIN), body).await;
    assert_eq!(status, 200);
    insta::assert_snapshot!(shown(&body, &["id", "instance_id", "version"]), @r#"
    {
      "checks": [
        {
          "name": "servicecheck-00-http-8080",
          "output": "200 OK",
          "status": "passing",
          "updated_at": "2023-11-14T22:13:20.000Z"
        }
      ],
      "config": {
        "env": {
          "A": "b"
        },
        "guest": {
          "cpu_kind": "shared",
          "cpus": 1,
          "memory_mb": 256
        },
        "image": "web:1",
        "init": {},
        "later": [
          1
        ],
        "restart": {
          "policy": "on-failure"
        },
        "services": [
          {
            "internal_port": 8080,
            "ports": [
              {
                "handlers": [
                  "http"
                ],
                "port": 80
              }
            ],
            "protocol": "tcp"
          }
        ]
      },
      "cordoned": false,
      "created_at": "2023-11-14T22:13:20.000Z",
      "events": [
        {
          "id": "00000000020000000000000000",
          "source": "user",
          "status": "start",
          "timestamp": 1700000000000,
          "type": "start"
        },
        {
          "id": "00000000010000000000000000",
          "source": "user",
          "status": "launch",
          "timestamp": 1700000000000,
          "type": "launch"
        }
      ],
      "host_status": "ok",
      "id": "[id]",
      "image_ref": {
        "labels": {},
        "registry": "docker.io",
        "repository": "library/web",
        "tag": "1"
      },
      "instance_id": "[instance_id]",
      "name": "one",
      "private_ip": "fdaa:0:1::2",
      "region": "fra",
      "state": "started",
      "updated_at": "2023-11-14T22:13:20.000Z",
      "version": "[version]"
    }
    "#);
}

#[tokio::test]
async fn what_should_exist_is_written_before_the_host_is_asked() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let org = OrgSlug::personal();
    let key = (org.clone(), machine.id.clone());
    let placement = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    let placement = placement.document;
    assert_eq!((placement.epoch, &placement.instance), (1, &machine.instance_id));
    assert_eq!(placement.config_digest.len(), 64);
    assert!(cloud.keys("promises/").await.is_empty(), "the promise to take it back is withdrawn");

    let update = request(json!({"image": "web:2"}));
    let updated = cloud.admin.update_machine(&web(), &machine.id, &update).await.unwrap();
    assert_ne!(updated.instance_id, machine.instance_id);
    let placement = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    assert_eq!((placement.document.epoch, &placement.document.instance), (2, &updated.version));
    for (instance, image) in [(machine.instance_id, "web:1"), (updated.instance_id, "web:2")] {
        let key = (org.clone(), web(), machine.id.clone(), instance);
        let config = get_doc::<ConfigDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
        assert_eq!(config.document.config.image, image);
    }
}

#[tokio::test]
async fn a_creation_that_the_host_refuses_leaves_nothing() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    *cloud.host.creation.lock().unwrap() = Creation::Refused;
    let (status, error) =
        cloud.error(("POST", MACHINES), Some(ADMIN), r#"{"config":{"image":"nope"}}"#).await;
    assert_eq!((status, error.code), (422, Code::ImageUnknown));
    for prefix in ["placements/", "configs/", "promises/"] {
        assert!(cloud.keys(prefix).await.is_empty(), "{prefix}");
    }
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_is_taken_back() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    *cloud.host.creation.lock().unwrap() = Creation::Breaks;
    let error = cloud.admin.create_machine(&web(), &request(json!({"image": "a"}))).await;
    assert_eq!(error.unwrap_err().code(), Some(Code::Unavailable));
    let destroyed = async {
        loop {
            let states: Vec<_> =
                cloud.host.machines.lock().unwrap().values().map(|it| it.state).collect();
            if states == [MachineState::Destroyed] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), destroyed).await.expect("it is destroyed");
    // Once the host has forgotten it, so has the directory.
    cloud.host.machines.lock().unwrap().clear();
    cloud.until_empty_woken(&["placements/", "configs/", "promises/"]).await;
}

#[tokio::test]
async fn an_update_that_the_host_refuses_changes_nothing() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    cloud.host.refuses_updates.store(true, Ordering::Relaxed);
    let update = request(json!({"image": "web:2"}));
    let error = cloud.admin.update_machine(&web(), &machine.id, &update).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::WrongState));
    let key = (OrgSlug::personal(), machine.id.clone());
    let placement = get_doc::<PlacementDoc>(cloud.store.as_ref(), &key).await.unwrap().unwrap();
    assert_eq!(placement.document.instance, machine.instance_id);
    assert_eq!(cloud.keys("configs/").await.len(), 1);
}

#[tokio::test]
async fn a_running_machine_is_destroyed_by_force_only_and_stays_readable() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let path = format!("{MACHINES}/{}", machine.id);
    let (status, error) = cloud.error(("DELETE", &path), Some(ADMIN), "").await;
    assert_eq!((status, error.code), (412, Code::PreconditionFailed));
    assert!(cloud.keys("promises/").await.is_empty());
    let (status, _, body) =
        cloud.raw(("DELETE", &format!("{path}?kill=true")), Some(ADMIN), "").await;
    assert_eq!((status, body.as_slice()), (200, br#"{"ok":true}"#.as_slice()));
    let gone = cloud.admin.machine(&web(), &machine.id).await.unwrap();
    assert_eq!(gone.state, MachineState::Destroyed);
    let all = ListFilter { include_deleted: true, ..ListFilter::default() };
    assert_eq!(cloud.admin.machines(&web(), &all).await.unwrap().len(), 1);
    assert!(cloud.admin.machines(&web(), &ListFilter::default()).await.unwrap().is_empty());
    cloud.host.machines.lock().unwrap().clear();
    cloud.until_empty_woken(&["placements/", "configs/", "promises/"]).await;
    assert!(cloud.admin.machine(&web(), &machine.id).await.unwrap_err().is_not_found());
}

/// A host that lost its state must not lose what should exist.
#[tokio::test]
async fn a_machine_that_its_host_does_not_know_is_not_forgotten() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    cloud.machine(json!({"image": "web:1"})).await;
    cloud.host.machines.lock().unwrap().clear();
    // A pass of the reconciler lies between these two.
    let other = cloud.machine(json!({"image": "web:1"})).await;
    cloud.admin.delete_machine(&web(), &other.id, true).await.unwrap();
    cloud.host.machines.lock().unwrap().clear();
    cloud.until_empty_woken(&["promises/"]).await;
    assert_eq!(cloud.keys("placements/").await.len(), 1);
    assert_eq!(cloud.keys("configs/").await.len(), 1);
}

#[tokio::test]
async fn lists_are_filtered() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let blue = cloud.machine(json!({"image": "a", "metadata": {"colour": "blue"}})).await;
    let green = cloud.machine(json!({"image": "a", "metadata": {"colour": "green"}})).await;
    cloud.admin.stop(&web(), &green.id, &Default::default()).await.unwrap();
    let list = async |query: &str| -> Vec<MachineId> {
        let (status, _, body) =
            cloud.raw(("GET", &format!("{MACHINES}?{query}")), Some(ADMIN), "").await;
        assert_eq!(status, 200, "{query}");
        let machines: Vec<perch_types::api::Machine> = serde_json::from_slice(&body).unwrap();
        machines.into_iter().map(|machine| machine.id).collect()
    };
    assert_eq!(list("").await.len(), 2);
    assert_eq!(list("state=started").await, [blue.id]);
    assert_eq!(list("state=started,stopped&region=fra").await.len(), 2);
    assert_eq!(list("region=iad").await, []);
    assert_eq!(list("metadata.colour=green").await, [green.id]);
    assert_eq!(list("metadata.colour=green&metadata.size=1").await, []);
    assert_eq!(list("unknown=1").await.len(), 2);
    let call = format!("{MACHINES}?summary=true&state=started");
    let (_, _, body) = cloud.raw(("GET", &call), Some(ADMIN), "").await;
    let summary: Vec<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_slice(&body).unwrap();
    for key in ["config", "checks", "events"] {
        assert!(!summary[0].contains_key(key), "{key}");
    }
    assert_eq!(
        (&summary[0]["host_status"], &summary[0]["state"]),
        (&json!("ok"), &json!("started"))
    );
}

#[tokio::test]
async fn a_wait_ends_with_the_state_or_in_the_contracts_words() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let wait = |query: &str| format!("{MACHINES}/{}/wait?{query}", machine.id);
    let (status, error) =
        cloud.error(("GET", &wait("state=stopped&timeout=0.2")), Some(ADMIN), "").await;
    assert_eq!((status, error.code), (408, Code::DeadlineExceeded));
    assert!(error.error.starts_with("deadline_exceeded"), "{}", error.error);
    assert!(error.error.contains("machine failed to reach desired state"));

    let (api, id) = (cloud.admin.clone(), machine.id.clone());
    let waiting = tokio::spawn(async move {
        let states = vec!["stopped".to_owned(), "failed".to_owned()];
        let wait = WaitFor { states, timeout: Duration::from_secs(20), ..WaitFor::default() };
        api.wait(&web(), &id, &wait).await
    });
    cloud.admin.stop(&web(), &machine.id, &Default::default()).await.unwrap();
    let reached = waiting.await.unwrap().unwrap();
    assert_eq!(reached.state, MachineState::Stopped);
    assert!(!reached.event_id.is_empty());
    // A state that was named twice, an event to begin with, and a version that is not this one.
    let (status, _, _) =
        cloud.raw(("GET", &wait("state=started&state=stopped")), Some(ADMIN), "").await;
    assert_eq!(status, 200);
    let from = wait(&format!("state=stopped&timeout=1&from_event_id={}", reached.event_id));
    assert_eq!(cloud.raw(("GET", &from), Some(ADMIN), "").await.0, 408);
    let other = wait("state=stopped&instance_id=01ARYZ6S410000000000000000");
    let (status, error) = cloud.error(("GET", &other), Some(ADMIN), "").await;
    assert_eq!(status, 400);
    assert!(error.error.starts_with("instance_id: 01ARYZ6S41"), "{}", error.error);
    // What is gone for good is only waited for by who waits for that.
    cloud.admin.delete_machine(&web(), &machine.id, true).await.unwrap();
    assert_eq!(cloud.raw(("GET", &wait("state=destroyed")), Some(ADMIN), "").await.0, 200);
    let (status, error) = cloud.error(("GET", &wait("state=started")), Some(ADMIN), "").await;
    assert_eq!((status, error.code), (404, Code::MachineNotFound));
}

#[tokio::test]
async fn commands_reach_the_host_as_they_were_meant() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    for (path, body) in [
        ("signal", r#"{"signal":9}"#),
        ("signal", r#"{"signal":"SIGHUP"}"#),
        ("stop", r#"{"signal":"SIGTERM","timeout":"20s","id":"x"}"#),
        ("stop", ""),
        ("restart?force_stop=true&timeout=7s&signal=SIGINT", ""),
        ("restart?timeout=7", ""),
    ] {
        let path = format!("{MACHINES}/{}/{path}", machine.id);
        let (status, _, answer) = cloud.raw(("POST", &path), Some(ADMIN), body).await;
        assert_eq!(answer, br#"{"ok":true}"#, "{path} {status}");
    }
    let seconds = |seconds| Some(perch_types::GoDuration::from_secs(seconds));
    assert_eq!(
        *cloud.host.commands.lock().unwrap(),
        [
            Command::Signal { signal: 9 },
            Command::Signal { signal: 1 },
            Command::Stop { signal: Some(Signal::SigTerm), timeout: seconds(20) },
            Command::Stop { signal: None, timeout: None },
            Command::Restart { force: true, signal: Some(Signal::SigInt), timeout: seconds(7) },
            Command::Restart { force: false, signal: None, timeout: seconds(7) },
        ]
    );
}

#[tokio::test]
async fn a_host_that_is_away_leaves_what_was_known_last() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine =
        cloud.machine(json!({"image": "registry.internal/web:9", "env": {"A": "b"}})).await;
    cloud.host_task.abort();
    std::fs::remove_file(cloud.folder.path().join("host.sock")).unwrap();
    let listed = cloud.admin.machines(&web(), &ListFilter::default()).await.unwrap();
    let one = cloud.admin.machine(&web(), &machine.id).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&one));
    assert_eq!(one.host_status, HostStatus::Unreachable);
    assert_eq!(one.config.env["A"], "b");
    assert_eq!((one.image_ref.repository.as_str(), one.image_ref.tag.as_str()), ("web", "9"));
    let error = cloud.admin.start(&web(), &machine.id).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable));
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn how_the_containers_stood_is_known_without_their_host() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let containers =
        json!([{"name": "web", "image": "web:1"}, {"name": "proxy", "image": "proxy:1"}]);
    let machine = cloud.machine(json!({"containers": containers})).await;
    let names: Vec<_> = machine.containers.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["web", "proxy"]);
    cloud.host_task.abort();
    std::fs::remove_file(cloud.folder.path().join("host.sock")).unwrap();
    let known = cloud.admin.machine(&web(), &machine.id).await.unwrap();
    assert_eq!(known.host_status, HostStatus::Unreachable);
    assert_eq!(known.containers, machine.containers);
}

#[tokio::test]
async fn why_a_machine_is_not_ready_is_a_check() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let because = "listens on 127.0.0.1:8000, expected 0.0.0.0:8080";
    *cloud.host.not_ready_because.lock().unwrap() = Some(because.to_owned());
    let services = json!([{"internal_port": 8080}]);
    let machine = cloud.machine(json!({"image": "web:1", "services": services})).await;
    let check = machine.checks.iter().find(|check| check.output == because).unwrap();
    assert_eq!((check.name.as_str(), check.status), ("perch-ready", CheckState::Critical));
}

#[tokio::test]
async fn a_host_without_room_is_not_chosen() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let document =
        HostDoc { region: "fra".parse().unwrap(), incarnation: 1, cpus: 2, memory_mb: 600 };
    let key = (cloud.host.id.clone(),);
    put_doc(cloud.store.as_ref(), &key, &document, Expected::Any).await.unwrap();
    cloud.machine(json!({"image": "a"})).await;
    let second = cloud.machine(json!({"image": "a"})).await;
    let error = cloud.admin.create_machine(&web(), &request(json!({"image": "a"}))).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Some(Code::InsufficientCapacity));
    assert!(error.to_string().starts_with("could not reserve resource for machine"), "{error}");
    cloud.admin.stop(&web(), &second.id, &Default::default()).await.unwrap();
    cloud.machine(json!({"image": "a"})).await;
}

#[tokio::test]
async fn what_a_host_has_answered_is_known_before_the_directory_hears_of_it() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    cloud.host.is_silent.store(true, Ordering::Relaxed);
    cloud.admin.stop(&web(), &machine.id, &Default::default()).await.unwrap();
    // Without the host, what is listed comes out of the view.
    cloud.host_task.abort();
    std::fs::remove_file(cloud.folder.path().join("host.sock")).unwrap();
    let listed = cloud.admin.machines(&web(), &ListFilter::default()).await.unwrap();
    assert_eq!(listed[0].host_status, HostStatus::Unreachable);
    assert_eq!(listed[0].state, MachineState::Stopped);
}

/// What an image was made with is for those who may run it.
#[tokio::test]
async fn the_configuration_of_a_foreign_image_does_not_become_a_file() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = json!({"config": {"image": "web:1", "files": [
        {"guest_path": "/own", "image_config": "registry.internal/web:1"},
        {"guest_path": "/x", "image_config": "registry.internal/strange:1"},
    ]}})
    .to_string();
    let (status, error) = cloud.error(("POST", MACHINES), Some(ADMIN), body.as_str()).await;
    assert_eq!((status, error.code), (422, Code::ImageUnknown));
    assert!(error.error.starts_with("config.files[1].image_config: "), "{}", error.error);
}

#[tokio::test]
async fn an_update_takes_a_machine_out_of_service_when_it_says_so() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let id = cloud.machine(json!({"image": "web:1"})).await.id;
    let path = format!("{MACHINES}/{id}");
    for (skip, cordoned) in [(false, false), (true, true), (false, true)] {
        let body = json!({"config": {"image": "web:1"}, "skip_service_registration": skip});
        let (status, ..) = cloud.raw(("POST", &path), Some(ADMIN), body.to_string()).await;
        assert_eq!(status, 200);
        assert_eq!(cloud.host.machines.lock().unwrap()[&id].cordoned, cordoned);
    }
}

/// A version that its host was never told of is not the machine's.
#[tokio::test]
async fn an_update_that_was_not_sent_leaves_the_version_before() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let before = cloud.machine(json!({"image": "web:1"})).await;
    let path = format!("{MACHINES}/{}", before.id);
    let socket = cloud.folder.path().join("host.sock");
    let body = json!({"config": {"image": "web:1"}, "current_version": before.instance_id});
    let body = body.to_string();
    cloud.host_task.abort();
    std::fs::remove_file(&socket).unwrap();
    let (status, ..) = cloud.raw(("POST", &path), Some(ADMIN), body.as_str()).await;
    assert_eq!(status, 503);
    let _task = cloud.host.serve(&socket);
    let (status, _, answer) = cloud.raw(("POST", &path), Some(ADMIN), body.as_str()).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
}

/// Nor is one whose writer ended before the host was told, once that is certain.
#[tokio::test]
async fn a_version_that_nobody_will_bring_is_not_waited_for() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let before = cloud.machine(json!({"image": "web:1"})).await;
    let path = format!("{MACHINES}/{}", before.id);
    let body = json!({"config": {"image": "web:1"}, "current_version": before.instance_id});
    let (status, ..) = cloud.raw(("POST", &path), Some(ADMIN), body.to_string()).await;
    assert_eq!(status, 200);
    {
        // As if the host had not heard of it.
        let mut machines = cloud.host.machines.lock().unwrap();
        let machine = machines.get_mut(&before.id).unwrap();
        machine.instance = before.instance_id.clone();
        machine.epoch = 1;
    }
    let (status, ..) = cloud.raw(("POST", &path), Some(ADMIN), body.to_string()).await;
    assert_eq!(status, 412);
    cloud.turn(200_000);
    let (status, ..) = cloud.raw(("POST", &path), Some(ADMIN), body.to_string()).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_program_runs_in_the_machine_itself_where_there_is_no_container() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let alone = cloud.machine(json!({"image": "web:1"})).await.id;
    let one = |name: &str| json!({"name": name, "image": "web:1"});
    let shared = cloud.machine(json!({"containers": [one("web"), one("db")]})).await.id;
    for (id, body, want) in [
        (&alone, json!({"cmd": "ls", "machine": true}), "200"),
        (&alone, json!({"cmd": "ls", "machine": true, "container": ""}), "200"),
        (
            &alone,
            json!({"cmd": "ls", "machine": true, "container": "db"}),
            "422 invalid_value machine: excludes `container`",
        ),
        (
            &shared,
            json!({"cmd": "ls", "machine": true}),
            "422 unsupported_key machine: is not supported of a machine that has containers",
        ),
        (&shared, json!({"cmd": "ls", "machine": false, "container": "db"}), "200"),
        (&shared, json!({"cmd": "ls", "machine": null}), "200"),
        (&alone, json!({"cmd": "ls", "machine": "yes"}), "400 invalid_request machine: invalid"),
    ] {
        let path = format!("{MACHINES}/{id}/exec");
        let (status, _, answer) = cloud.raw(("POST", &path), Some(ADMIN), body.to_string()).await;
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let told = format!("{status} {} {}", text("code"), text("error"));
        assert!(told.starts_with(want), "{body}: {told}");
        if want.contains("unsupported_key") {
            assert!(text("hint").ends_with("`container`: web, db"), "{answer}");
        }
    }
}
