//! Ports at which the edge does not speak HTTP: one app's each.

use perch_types::api::CreateApp;
use perch_types::{AppName, Code};
use serde_json::{Value, json};

use crate::cloud::{Cloud, request, web};

const CLAIMS: &str = "names/ports/";
/// Longer than a claim stays that nobody uses.
const LATER_MS: i64 = 11 * 60 * 1000;

fn config(ports: &Value) -> Value {
    json!({"image": "web:1", "services": [{"internal_port": 5432, "ports": ports}]})
}

async fn other(cloud: &Cloud) -> AppName {
    let other = CreateApp { name: Some("other".to_owned()), ..CreateApp::default() };
    cloud.admin.create_app(&other).await.unwrap().name
}

#[tokio::test]
async fn a_port_is_one_apps_until_that_is_deleted() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let (other, wanted) = (other(&cloud).await, config(&json!([{"port": 5432}])));
    cloud.machine(wanted.clone()).await;
    cloud.machine(wanted.clone()).await;
    assert_eq!(cloud.keys(CLAIMS).await, ["names/ports/tcp/5432"]);
    let error = cloud.admin.create_machine(&other, &request(wanted.clone())).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::PortTaken));
    let text = error.to_string();
    assert!(text.contains("config.services[0].ports[0].port: another app"), "{text}");
    assert!(text.contains("tcp port 5432") && !text.contains("web"), "{text}");
    // Nor by a change; and what was refused has left nothing.
    let machine = request(config(&json!([{"port": 6000}])));
    let machine = cloud.admin.create_machine(&other, &machine).await.unwrap();
    let update = request(config(&json!([{"port": 6001}, {"port": 5432}])));
    let error = cloud.admin.update_machine(&other, &machine.id, &update).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::PortTaken));
    assert_eq!(cloud.keys(CLAIMS).await, ["names/ports/tcp/5432", "names/ports/tcp/6000"]);
    // The same number by another protocol is another port.
    let udp = json!({"image": "web:1", "services": [{"internal_port": 5432, "protocol": "udp",
        "ports": [{"port": 5432}]}]});
    cloud.admin.create_machine(&other, &request(udp)).await.unwrap();
    cloud.admin.delete_app(&web()).await.unwrap();
    cloud.until_empty(&["tombstones/"]).await;
    cloud.admin.create_machine(&other, &request(wanted)).await.unwrap();
}

#[tokio::test]
async fn a_port_that_no_machine_names_any_more_is_free_after_a_while() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let range = json!([{"start_port": 5432, "end_port": 5433}]);
    let machine = cloud.machine(config(&range)).await;
    let update = request(config(&json!([{"port": 5433}])));
    cloud.admin.update_machine(&web(), &machine.id, &update).await.unwrap();
    cloud.wake_reconciler().await;
    cloud.until_empty(&["tombstones/"]).await;
    assert_eq!(cloud.keys(CLAIMS).await.len(), 2, "not at once");
    cloud.turn(LATER_MS);
    cloud.wake_reconciler().await;
    cloud.until_empty(&["names/ports/tcp/5432"]).await;
    cloud.until_empty(&["tombstones/"]).await;
    assert_eq!(cloud.keys(CLAIMS).await, ["names/ports/tcp/5433"]);
    let other = other(&cloud).await;
    let wanted = request(config(&json!([{"port": 5432}])));
    cloud.admin.create_machine(&other, &wanted).await.unwrap();
}

#[tokio::test]
async fn what_no_app_can_have_is_refused() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    for (port, want) in [(443, "the platform's own"), (80, "the platform's own"), (22, "1024 to")] {
        let wanted = request(config(&json!([{"port": port}])));
        let error = cloud.admin.create_machine(&web(), &wanted).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::InvalidValue));
        assert!(error.to_string().contains(want), "{port}: {error}");
    }
    for first in [2000, 2024, 2048] {
        let range = json!([{"start_port": first, "end_port": first + 19}]);
        cloud.machine(config(&range)).await;
    }
    let wanted = request(config(&json!([{"start_port": 3000, "end_port": 3004}])));
    let error = cloud.admin.create_machine(&web(), &wanted).await.unwrap_err();
    assert!(error.to_string().contains("the app would have 65 ports"), "{error}");
    assert_eq!(cloud.keys(CLAIMS).await.len(), 60);
    assert_eq!(cloud.keys("promises/").await, [""; 0]);
}
