//! Tokens for an app: what they reach, what they do not, how they end; and how often is too often.

use perch_api::{Limits, Rate, Rates};
use perch_types::Code;
use perch_types::api::{CreateApp, CreateDeployToken, CreatedToken};
use perch_types::endpoint::{self, Action};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, hash, web};

const DEPLOY_TOKEN: &str = "/v1/apps/web/deploy_token";

async fn made(cloud: &Cloud, body: &str) -> CreatedToken {
    let (status, _, body) = cloud.raw(("POST", DEPLOY_TOKEN), Some(ADMIN), body).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

async fn other_app(cloud: &Cloud) {
    let name = Some("other".to_owned());
    cloud.admin.create_app(&CreateApp { name, ..CreateApp::default() }).await.unwrap();
}

/// T2: a token for an app reaches that app and nothing else.
#[tokio::test]
async fn t2_a_token_for_an_app_reaches_that_app_and_nothing_else() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    other_app(&cloud).await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let token = made(&cloud, r#"{"expiry":"1h"}"#).await;
    let text = token.token.expose();
    assert!(text.starts_with("perch_deploy_") && text.len() == "perch_deploy_".len() + 64);
    for endpoint in endpoint::ALL.iter().filter(|it| it.action != Action::Public) {
        let path = endpoint.path_of(&["other", machine.id.as_str()]);
        let body = r#"{"name":"third","org_slug":"personal"}"#;
        let (status, _, body) = cloud.raw((endpoint.method, &path), Some(text), body).await;
        let text = String::from_utf8(body).unwrap();
        let is_refused = matches!(status, 403 | 404);
        let shows_nothing = status == 200 && !text.contains("other");
        assert!(is_refused || shows_nothing, "{endpoint:?} {status} {text}");
        assert!(endpoint.method == "GET" || is_refused, "{endpoint:?} {status} {text}");
    }
    let own = cloud.raw(("GET", "/v1/apps/web/machines"), Some(text), "").await;
    assert_eq!(own.0, 200);
    let create = |image: &str| format!(r#"{{"config":{{"image":"{image}"}}}}"#);
    let machines = ("POST", "/v1/apps/web/machines");
    assert_eq!(cloud.raw(machines, Some(text), create("web:2")).await.0, 200);
    let foreign = cloud.error(machines, Some(text), create("registry.internal/other:1")).await;
    assert_eq!((foreign.0, foreign.1.code), (422, Code::ImageUnknown));
    let (_, _, apps) = cloud.raw(("GET", "/v1/apps"), Some(text), "").await;
    let apps: Value = serde_json::from_slice(&apps).unwrap();
    assert_eq!((&apps["total_apps"], &apps["apps"][0]["name"]), (&json!(1), &json!("web")));
    // It cannot make another that outlives it, nor end one.
    for (method, path) in [("POST", DEPLOY_TOKEN), ("GET", "/v1/apps/web/tokens")] {
        assert_eq!(cloud.raw((method, path), Some(text), "{}").await.0, 403, "{path}");
    }
}

#[tokio::test]
async fn the_callers_tokens_are_answered_in_the_contracts_shape() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let token = made(&cloud, r#"{"expiry":"1h","name":"ci"}"#).await;
    let both = format!("{},{ADMIN}", token.token.expose());
    let (_, _, body) = cloud.raw(("GET", "/v1/tokens/current"), Some(&both), "").await;
    let current: Value = serde_json::from_slice(&body).unwrap();
    let first = &current["tokens"][0];
    assert_eq!(first["token_id"], token.token_id.as_str());
    assert_eq!((&first["apps"], &first["name"]), (&json!(["web"]), &json!("ci")));
    for key in ["organization", "org_slug"] {
        assert_eq!(first[key], "personal");
    }
    for key in ["user", "restricted_to_machine", "source_machine_id"] {
        assert_eq!(first[key], "", "{key}");
    }
    assert_eq!(current["tokens"][1]["apps"], json!([]));
    // The other way of naming several.
    let mut parts = perch_client::RequestParts::new(http::Method::GET, "/v1/apps/web".to_owned());
    let header = format!("FlyV1 nonsense, {}", token.token.expose());
    parts.headers.insert("authorization", header.parse().unwrap());
    let answer = perch_client::Connection::unix(&cloud.socket).forward(parts).await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// T3, T4: only a hash is kept, and a token that ended holds no longer.
#[tokio::test]
async fn t3_t4_a_token_ends_when_it_is_revoked_expires_or_its_app_goes() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let revoked = made(&cloud, "{}").await;
    let short = made(&cloud, r#"{"expiry":"1m","name":"short"}"#).await;
    let last = made(&cloud, r#"{"name":"last"}"#).await;
    let keys = cloud.keys("tokens/personal/").await;
    assert!(keys.iter().any(|key| key.ends_with(&hash(revoked.token.expose()))), "{keys:?}");
    let kept = cloud.store.list("tokens/").await.unwrap().entries;
    for entry in &kept {
        assert!(!String::from_utf8_lossy(&entry.value).contains("perch_deploy_"));
    }
    let sees = async |token: &CreatedToken| {
        cloud.raw(("GET", "/v1/apps/web"), Some(token.token.expose()), "").await.0
    };
    let listed = cloud.admin.app_tokens(&web()).await.unwrap().tokens;
    let names: Vec<_> = listed.iter().map(|token| token.name.as_str()).collect();
    assert_eq!(names, ["deploy", "last", "short"]);
    assert_eq!(sees(&revoked).await, 200);
    cloud.admin.revoke_app_token(&web(), &revoked.token_id).await.unwrap();
    assert_eq!(sees(&revoked).await, 401);
    let again = cloud.admin.revoke_app_token(&web(), &revoked.token_id).await.unwrap_err();
    assert_eq!(again.code(), Some(Code::NotFound));
    assert_eq!(sees(&short).await, 200);
    cloud.turn(61_000);
    assert_eq!(sees(&short).await, 401);
    assert_eq!(sees(&last).await, 200);
    cloud.admin.delete_app(&web()).await.unwrap();
    assert_eq!(sees(&last).await, 401);
    cloud.app().await;
    assert_eq!(sees(&last).await, 401, "another app of the name is not its app");
    let left = cloud.keys("tokens/personal/").await;
    assert_eq!(left, [format!("tokens/personal/{}", hash(ADMIN))]);
}

#[tokio::test]
async fn an_app_has_a_bounded_number_of_tokens() {
    let limits = Limits { tokens_of_app_max: 2, ..Limits::default() };
    let cloud = Cloud::start_limited(limits).await;
    cloud.app().await;
    let first = made(&cloud, "{}").await;
    made(&cloud, "{}").await;
    let (status, error) = cloud.error(("POST", DEPLOY_TOKEN), Some(ADMIN), "{}").await;
    assert_eq!((status, error.code), (409, Code::Conflict));
    cloud.admin.revoke_app_token(&web(), &first.token_id).await.unwrap();
    made(&cloud, "{}").await;
    let day = CreateDeployToken { expiry: Some("24h".parse().unwrap()), name: None };
    let full = cloud.admin.create_deploy_token(&web(), &day).await.unwrap_err();
    assert_eq!(full.code(), Some(Code::Conflict));
}

#[tokio::test]
async fn what_comes_too_often_is_told_when_to_come_again() {
    let slow = Rate { per_minute: 1, burst: 3 };
    let rates = Rates { change: slow, create: slow, ..Rates::default() };
    let cloud = Cloud::start_limited(Limits { rates, ..Limits::default() }).await;
    cloud.app().await;
    let first = cloud.machine(json!({"image": "web:1"})).await;
    let second = cloud.machine(json!({"image": "web:1"})).await;
    let cordon = |id: &perch_types::MachineId| format!("/v1/apps/web/machines/{id}/cordon");
    for _ in 0..3 {
        assert_eq!(cloud.raw(("POST", &cordon(&first.id)), Some(ADMIN), "").await.0, 200);
    }
    let (status, headers, _) = cloud.raw(("POST", &cordon(&first.id)), Some(ADMIN), "").await;
    let seconds: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(status == 429 && (1..=60).contains(&seconds), "{status} {seconds}");
    // Another machine, another action, and the same one a little later.
    assert_eq!(cloud.raw(("POST", &cordon(&second.id)), Some(ADMIN), "").await.0, 200);
    let uncordon = cordon(&first.id).replace("cordon", "uncordon");
    assert_eq!(cloud.raw(("POST", &uncordon), Some(ADMIN), "").await.0, 200);
    cloud.machine(json!({"image": "web:1"})).await;
    let body = r#"{"config":{"image":"web:1"}}"#;
    let (status, error) = cloud.error(("POST", "/v1/apps/web/machines"), Some(ADMIN), body).await;
    assert_eq!((status, error.code), (429, Code::RateLimited));
    cloud.turn(60_000);
    assert_eq!(cloud.raw(("POST", &cordon(&first.id)), Some(ADMIN), "").await.0, 200);
    cloud.machine(json!({"image": "web:1"})).await;
}

#[tokio::test]
async fn placements_say_where_machines_would_go_and_reserve_nothing() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    cloud.host_document(4096).await;
    let ask = async |body: &str| {
        let call = ("POST", "/v1/platform/placements");
        let (status, _, body) = cloud.raw(call, Some(ADMIN), body).await;
        (status, String::from_utf8(body).unwrap())
    };
    let of =
        |count| format!(r#"{{"regions":[{{"region":"fra","count":{count},"concurrency":1}}]}}"#);
    // Two of the default, 2 GiB.
    assert_eq!(ask(r#"{"org_slug":"personal"}"#).await, (200, of(2)));
    let small =
        r#"{"org_slug":"personal","compute":{"memory_mb":256},"region":"syd,eu","count":3}"#;
    assert_eq!(ask(small).await, (200, of(3)));
    for (body, status, words) in [
        ("{}", 400, "missing field `org_slug`"),
        (r#"{"org_slug":"strangers"}"#, 403, "org_slug: the token does not reach"),
        (r#"{"org_slug":"personal","region":"syd"}"#, 422, "region: `syd` has no host"),
        (r#"{"org_slug":"personal","count":10001}"#, 422, "count: 10001 is not"),
        (r#"{"org_slug":"personal","weights":{"colour":1}}"#, 422, "weights.colour: allowed"),
        (r#"{"org_slug":"personal","volume_name":"a b"}"#, 422, "volume_name: `a b` is not"),
        (
            r#"{"org_slug":"personal","volume_size_bytes":99999999999999999}"#,
            422,
            "volume_size_bytes: 99999999999999999 is not",
        ),
        (r#"{"org_slug":"personal","compute":{"cpus":3}}"#, 422, "compute.cpus: 3 is not one of"),
    ] {
        let (got, text) = ask(body).await;
        assert!(got == status && text.contains(words), "{body}: {got} {text}");
    }
    assert_eq!(cloud.keys("placements/").await, [""; 0]);

    // Sixteen of 256 MiB have memory; how many have a volume is what counts.
    let with = async |volume: &str| {
        let small = r#"{"org_slug":"personal","compute":{"memory_mb":256},"#;
        ask(&format!("{small}{volume}}}")).await.1
    };
    let none = r#"{"regions":[]}"#;
    assert_eq!(with(r#""volume_name":"data""#).await, none);
    for size_gb in [1, 2] {
        let body = format!(r#"{{"name":"data","size_gb":{size_gb}}}"#);
        let made = cloud.raw(("POST", "/v1/apps/web/volumes"), Some(ADMIN), body).await;
        assert_eq!(made.0, 200);
    }
    let gib = 1_u64 << 30;
    assert_eq!(with(r#""volume_name":"data""#).await, of(2));
    assert_eq!(with(r#""volume_name":"other""#).await, none);
    // One is there that is large enough, and for three there is room.
    let large = format!(r#""volume_name":"data","volume_size_bytes":{}"#, 2 * gib);
    assert_eq!(with(&large).await, of(4));
    assert_eq!(with(&format!(r#""volume_size_bytes":{}"#, 2 * gib)).await, of(3));
    assert_eq!(with(&format!(r#""volume_size_bytes":{}"#, 2 * gib + 1)).await, of(2));
}
