//! Suspend, processes, memory, schedules and standbys through the API: what is refused, and what
//! reaches the host.

use perch_types::host::Command;
use serde_json::json;

use crate::cloud::{ADMIN, Cloud, request};

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let of = |what: &str| format!("/v1/apps/web/machines/{}{what}", machine.id);
    let with = |config: serde_json::Value| json!({"config": config}).to_string();
    let new = || "/v1/apps/web/machines".to_owned();
    let table = [
        ("POST", of("/suspend/x"), String::new(), "404 not_found"),
        ("GET", of("/suspend"), String::new(), "405 method_not_allowed"),
        (
            "GET",
            of("/ps?sort_by=name"),
            String::new(),
            "400 invalid_request sort_by: `name` is not",
        ),
        ("GET", of("/ps?order=up"), String::new(), "400 invalid_request order: `up` is not one of"),
        ("PUT", of("/memory"), String::new(), "400 invalid_request .: missing field `limit_mb`"),
        ("PUT", of("/memory"), r#"{"limit_mb":"1"}"#.into(), "400 invalid_request limit_mb: "),
        ("PUT", of("/memory"), r#"{"limit_mb":-1}"#.into(), "400 invalid_request limit_mb: "),
        ("PUT", of("/memory"), r#"{"limit_mb":1.5}"#.into(), "400 invalid_request limit_mb: "),
        ("POST", of("/memory/reclaim"), "[]".into(), "400 invalid_request"),
        (
            "POST",
            of("/memory/reclaim"),
            r#"{"amount_mb":null}"#.into(),
            "400 invalid_request amount_mb: ",
        ),
        (
            "POST",
            new(),
            with(json!({"image": "a", "schedule": "yearly"})),
            "400 invalid_request config.schedule: unknown variant `yearly`, expected one of `hourly`",
        ),
        (
            "POST",
            new(),
            with(json!({"image": "a", "restart": {"policy": "spot-price"}})),
            "400 invalid_request config.restart.policy: unknown variant `spot-price`, expected one",
        ),
        (
            "POST",
            new(),
            with(json!({"image": "a", "standbys": "x"})),
            "400 invalid_request config.standbys: invalid type",
        ),
        (
            "POST",
            new(),
            with(json!({"image": "a", "standbys": ["x"]})),
            "422 invalid_value config.standbys[0]: `x` is not a machine's id",
        ),
        (
            "POST",
            of(""),
            with(json!({"image": "a", "standbys": ["00000000000009"]})),
            "422 invalid_value config.standbys[0]: the app has no machine `00000000000009`",
        ),
    ];
    for (method, path, body, expected) in table {
        let (status, error) = cloud.error((method, &path), Some(ADMIN), body.clone()).await;
        let text = format!("{status} {} {}", error.code, error.error);
        assert!(text.starts_with(expected), "{method} {path} {body}: {text}");
    }
    assert!(cloud.host.commands.lock().unwrap().is_empty());
    assert_eq!(cloud.keys("placements/").await.len(), 1, "a refusal leaves nothing behind");
}

#[tokio::test]
async fn a_standby_waits_stopped_whatever_was_asked() {
    let cloud = Cloud::start().await;
    let app = cloud.app().await;
    let named = cloud.machine(json!({"image": "web:1"})).await;
    let config = json!({"image": "web:1", "standbys": [named.id.as_str()]});
    let standby = cloud.machine(config.clone()).await;
    assert_eq!(standby.state.as_str(), "stopped");
    assert_eq!(standby.config.standbys, [named.id.as_str()]);
    cloud.admin.update_machine(&app, &standby.id, &request(config)).await.unwrap();
    let commands = cloud.host.commands.lock().unwrap();
    assert!(matches!(commands[..], [Command::Update { skip_launch: true, .. }]), "{commands:?}");
}
