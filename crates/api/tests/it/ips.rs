//! Addresses of apps: the server's, written down for the app that asks.

use perch_store::{Expected, put_doc};
use perch_types::api::CreateApp;
use perch_types::ips::{AssignIp, IpDoc, IpType};
use perch_types::{OrgSlug, Timestamp};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, shown, web};

const IPS: &str = "/v1/apps/web/ip_assignments";

async fn ask(cloud: &Cloud, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, _, body) = cloud.raw((method, path), Some(ADMIN), body.to_string()).await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn addresses_are_assigned_listed_and_released_in_the_contracts_shape() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = r#"{"type":"shared_v4","region":"fra","org_slug":"","network":""}"#;
    let (status, _, body) = cloud.raw(("POST", IPS), Some(ADMIN), body).await;
    assert_eq!(status, 200);
    insta::assert_snapshot!(shown(&body, &["created_at"]), @r#"
    {
      "created_at": "[created_at]",
      "ip": "192.0.2.1",
      "region": "fra",
      "service_name": "",
      "shared": true
    }
    "#);
    let first: Value = serde_json::from_slice(&body).unwrap();
    // The same wish again has the same answer.
    let (status, again) = ask(&cloud, "POST", IPS, &json!({"type": "shared_v4"})).await;
    assert_eq!((status, &again), (200, &first));
    let (status, v6) = ask(&cloud, "POST", IPS, &json!({"type": "v6"})).await;
    assert_eq!((status, &v6["ip"], &v6["shared"]), (200, &json!("2001:db8::1"), &json!(false)));
    let (_, list) = ask(&cloud, "GET", IPS, &Value::Null).await;
    assert_eq!(list, json!({"ips": [first, v6]}));

    // Another app shares it, so nobody gets it alone; the first may, once it does not.
    let other = CreateApp { name: Some("other".to_owned()), ..CreateApp::default() };
    let other = cloud.admin.create_app(&other).await.unwrap().name;
    assert_eq!(cloud.admin.ips(&other).await.unwrap().ips, []);
    let shared = AssignIp::default();
    cloud.admin.assign_ip(&other, &shared).await.unwrap();
    let (status, error) = ask(&cloud, "POST", IPS, &json!({"type": "v4"})).await;
    assert_eq!(status, 422);
    assert!(error["hint"].as_str().unwrap().contains("shared_v4"), "{error}");
    cloud.admin.release_ip(&other, "192.0.2.1".parse().unwrap()).await.unwrap();
    let (status, alone) = ask(&cloud, "POST", IPS, &json!({"type": "v4"})).await;
    assert_eq!((status, &alone["shared"]), (200, &json!(false)));
    cloud.admin.assign_ip(&other, &shared).await.unwrap_err();
    assert_eq!(cloud.admin.ips(&web()).await.unwrap().ips.len(), 2);

    let path = format!("{IPS}/2001:db8:0::1");
    assert_eq!(ask(&cloud, "DELETE", &path, &Value::Null).await.0, 204);
    assert_eq!(ask(&cloud, "DELETE", &path, &Value::Null).await.0, 404);
    // They end with their app.
    cloud.admin.delete_app(&web()).await.unwrap();
    cloud.until_empty(&["ips/"]).await;
    cloud.admin.assign_ip(&other, &AssignIp { kind: IpType::V4, ..shared }).await.unwrap();
}

/// The operator names other addresses while apps have some of the old ones.
#[tokio::test]
async fn an_address_that_the_server_had_stays_its_apps_until_that_releases_it() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let other = CreateApp { name: Some("other".to_owned()), ..CreateApp::default() };
    let other = cloud.admin.create_app(&other).await.unwrap().name;
    let old = "198.51.100.7".parse().unwrap();
    let document = IpDoc {
        app: web(),
        org: OrgSlug::personal(),
        ip: old,
        shared: false,
        created_at: Timestamp::from_unix_ms(1_600_000_000_000),
    };
    let key = (document.org.clone(), document.app.clone(), old);
    put_doc(cloud.store.as_ref(), &key, &document, Expected::Absent).await.unwrap();
    let own = async || {
        let ips = cloud.admin.ips(&web()).await.unwrap().ips;
        ips.iter().map(|it| it.ip.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(own().await, ["198.51.100.7"]);
    // Whoever asks now gets one that there is, the app itself too.
    let alone = AssignIp { kind: IpType::V4, ..AssignIp::default() };
    let ip = cloud.admin.assign_ip(&web(), &alone).await.unwrap().ip;
    assert_eq!(ip.to_string(), "192.0.2.1");
    cloud.admin.assign_ip(&other, &alone).await.unwrap_err();
    assert_eq!(own().await, ["198.51.100.7", "192.0.2.1"]);
    cloud.admin.release_ip(&web(), old).await.unwrap();
    assert_eq!(own().await, ["192.0.2.1"]);
    cloud.admin.release_ip(&web(), ip).await.unwrap();
    assert_eq!(cloud.admin.assign_ip(&other, &alone).await.unwrap().ip, ip);
}

#[tokio::test]
async fn an_address_that_the_server_has_not_is_refused_by_its_field() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    for (body, want) in [
        (json!({}), "400 invalid_request .: missing field `type`"),
        (json!({"type": "v5"}), "400 invalid_request type: unknown variant `v5`, expected one of"),
        (json!({"type": "private_v6"}), "422 unsupported_key type: this server has no private"),
        (json!({"type": "v6", "region": "syd"}), "422 invalid_value region: `syd` has no"),
        (json!({"type": "v6", "network": "x"}), "422 unsupported_key network: is for private"),
        (json!({"type": "v6", "org_slug": "x"}), "422 unsupported_key org_slug: is for private"),
        (json!({"type": "v6", "service_name": "x"}), "422 unsupported_key service_name: is for"),
    ] {
        let (status, error) = cloud.error(("POST", IPS), Some(ADMIN), body.to_string()).await;
        let told = format!("{status} {} {}", error.code, error.error);
        assert!(told.starts_with(want), "{body}: {told}");
    }
    for missing in ["192.0.2.1", "nonsense", "192.0.2.1%2F32"] {
        let path = format!("{IPS}/{missing}");
        let (status, error) = cloud.error(("DELETE", &path), Some(ADMIN), "").await;
        assert_eq!(status, 404, "{error}");
    }
    assert!(cloud.keys("ips/").await.is_empty());
}
