//! Ports that are an app's own: all but 80 for HTTP and 443 for TLS.

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
async fn http_beside_80_and_443_claims_its_port_and_tls_shares_it() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let other = other(&cloud).await;
    let public = |port: u16, handlers: &[&str]| {
        request(config(&json!([{"port": 80, "handlers": ["http"]},
            {"port": 443, "handlers": ["tls"]}, {"port": port, "handlers": handlers}])))
    };
    cloud.admin.create_machine(&web(), &public(25, &["http"])).await.unwrap();
    cloud.admin.create_machine(&web(), &public(8443, &["tls", "http"])).await.unwrap();
    let all = ["names/ports/tcp/25", "names/ports/tcp/8443"];
    assert_eq!(cloud.keys(CLAIMS).await, all);
    for (port, handlers) in [(25, &["tls", "http"][..]), (8443, &["http"]), (8443, &[])] {
        let error = cloud.admin.create_machine(&other, &public(port, handlers)).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::PortTaken), "{port} {handlers:?}");
    }
    cloud.admin.create_machine(&other, &public(8443, &["tls"])).await.unwrap();
    assert_eq!(cloud.keys(CLAIMS).await, all);
    // It stays the other's when one of them is gone.
    cloud.admin.delete_app(&web()).await.unwrap();
    cloud.until_empty(&["tombstones/", "names/ports/tcp/25"]).await;
    assert_eq!(cloud.keys(CLAIMS).await, ["names/ports/tcp/8443"]);
    let third = CreateApp { name: Some("third".to_owned()), ..CreateApp::default() };
    let third = cloud.admin.create_app(&third).await.unwrap().name;
    let error = cloud.admin.create_machine(&third, &public(8443, &[])).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::PortTaken));
}

#[tokio::test]
async fn what_no_app_can_have_is_refused() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    for (port, want) in [(443, "for https"), (80, "for http"), (22, "for ssh")] {
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
