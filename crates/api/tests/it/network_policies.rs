//! Network policies: admitted field by field, kept, gone with their app.

use perch_types::api::CreateApp;
use perch_types::network_policy::POLICIES_MAX;
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, shown, web};

const POLICIES: &str = "/v1/apps/web/network_policies";

fn policy() -> Value {
    json!({
        "name": "web only",
        "selector": {"all": true},
        "rules": [{
            "action": "allow", "direction": "ingress",
            "ports": [{"protocol": "tcp", "port": 8080}, {"protocol": "udp", "port": 53}],
        }],
    })
}

async fn ask(cloud: &Cloud, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, _, body) = cloud.raw((method, path), Some(ADMIN), body.to_string()).await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn policies_are_made_changed_listed_and_taken_away() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let (status, _, body) = cloud.raw(("POST", POLICIES), Some(ADMIN), policy().to_string()).await;
    assert_eq!(status, 200);
    insta::assert_snapshot!(shown(&body, &["id", "created_at", "updated_at"]), @r#"
    {
      "created_at": "[created_at]",
      "id": "[id]",
      "name": "web only",
      "rules": [
        {
          "action": "allow",
          "direction": "ingress",
          "ports": [
            {
              "port": 8080,
              "protocol": "tcp"
            },
            {
              "port": 53,
              "protocol": "udp"
            }
          ]
        }
      ],
      "selector": {
        "all": true
      },
      "updated_at": "[updated_at]"
    }
    "#);
    let made: Value = serde_json::from_slice(&body).unwrap();
    let id = made["id"].as_str().unwrap();
    // With its id it is changed.
    let mut change = policy();
    change["id"] = json!(id);
    change["selector"] = json!({"metadata": {"role": "db"}});
    let (status, changed) = ask(&cloud, "POST", POLICIES, &change).await;
    assert_eq!(
        (status, &changed["id"], &changed["created_at"]),
        (200, &json!(id), &made["created_at"])
    );
    let machine = cloud.machine(json!({"image": "web:1"})).await.id;
    let mut second = policy();
    second["selector"] = json!({"machines": [{"id": machine}]});
    let (status, second) = ask(&cloud, "POST", POLICIES, &second).await;
    assert_eq!(status, 200, "{second}");
    for path in [POLICIES.to_owned(), format!("{POLICIES}/")] {
        assert_eq!(ask(&cloud, "GET", &path, &Value::Null).await, (200, json!([changed, second])));
    }
    let path = format!("{POLICIES}/{id}");
    assert_eq!(ask(&cloud, "DELETE", &path, &Value::Null).await.0, 204);
    assert_eq!(ask(&cloud, "DELETE", &path, &Value::Null).await.0, 404);
    let (_, left) = ask(&cloud, "GET", POLICIES, &Value::Null).await;
    assert_eq!(left, json!([second]));
    // They end with their app.
    cloud.admin.delete_app(&web()).await.unwrap();
    cloud.until_empty(&["network_policies/", "names/apps/web"]).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_told_by_its_field() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let other = CreateApp { name: Some("other".to_owned()), ..CreateApp::default() };
    cloud.admin.create_app(&other).await.unwrap();
    let own = cloud.machine(json!({"image": "web:1"})).await.id;
    let with = |pointer: &str, value: Value| {
        let mut policy = policy();
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        policy.pointer_mut(parent).unwrap()[last] = value;
        policy
    };
    let in_rule = |field: &str, value: Value| with(&format!("/rules/0/{field}"), value);
    let port = |port: Value| in_rule("ports", json!([port]));
    let many = |count: usize| Value::Array(vec![json!({"protocol": "tcp", "port": 1}); count]);
    for (body, want) in [
        (json!({}), "400 invalid_request .: missing field `name`"),
        (with("/name", json!("")), "422 invalid_value name: is not 1 to 63"),
        (with("/name", json!("a\nb")), "422 invalid_value name: is not 1 to 63"),
        (
            with("/id", json!("np_1")),
            "422 invalid_value id: the app has no network policy `np_1`; it has",
        ),
        (with("/selector", json!({})), "422 invalid_value selector: is not exactly one"),
        (with("/selector/machines", json!([])), "422 invalid_value selector: is not exactly one"),
        (
            with("/selector", json!({"machines": []})),
            "422 invalid_value selector.machines: 0 are not 1 to 64",
        ),
        (
            with("/selector", json!({"metadata": {}})),
            "422 invalid_value selector.metadata: 0 are not 1 to 64",
        ),
        (
            with("/selector", json!({"machines": [{"id": own}, {"id": "00000000000099"}]})),
            "422 invalid_value selector.machines[1].id: the app has no machine `00000000000099`; \
             allowed are ",
        ),
        (with("/rules", json!([])), "422 invalid_value rules: 0 are not 1 to 16"),
        (in_rule("action", json!("deny")), "400 invalid_request rules[0].action: unknown variant"),
        (in_rule("direction", json!("both")), "400 invalid_request rules[0].direction: unknown"),
        (in_rule("ports", json!([])), "422 invalid_value rules[0].ports: 0 are not 1 to 32"),
        (in_rule("ports", many(33)), "422 invalid_value rules[0].ports: 33 are not 1 to 32"),
        (
            port(json!({"protocol": "tcp", "port": 0})),
            "422 invalid_value rules[0].ports[0].port: 0 is not 1 to 65535",
        ),
        (
            port(json!({"protocol": "tcp", "port": 65536})),
            "400 invalid_request rules[0].ports[0].port: invalid value",
        ),
        (
            port(json!({"protocol": "icmp", "port": 1})),
            "400 invalid_request rules[0].ports[0].protocol: unknown variant `icmp`",
        ),
    ] {
        let (status, error) = cloud.error(("POST", POLICIES), Some(ADMIN), body.to_string()).await;
        let told = format!("{status} {} {}", error.code, error.error);
        assert!(told.starts_with(want), "{body}: {told}");
    }
    // Another app's machine is none of this app's.
    let mut foreign = policy();
    foreign["selector"] = json!({"machines": [{"id": own}]});
    let path = "/v1/apps/other/network_policies";
    assert_eq!(ask(&cloud, "POST", path, &foreign).await.0, 422);
    assert!(cloud.keys("network_policies/").await.is_empty());
    for _ in 0..POLICIES_MAX {
        assert_eq!(ask(&cloud, "POST", POLICIES, &policy()).await.0, 200);
    }
    let (status, error) = ask(&cloud, "POST", POLICIES, &policy()).await;
    assert!(status == 422 && error["error"].as_str().unwrap().contains("at most 32"), "{error}");
}
