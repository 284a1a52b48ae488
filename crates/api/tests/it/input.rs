//! Bad input: each refusal has the status, the code and a text that names the field.

use serde_json::json;

use crate::cloud::{ADMIN, Cloud};

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn bad_input_is_refused_by_name() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let of = |what: &str| format!("/v1/apps/web/machines/{}{what}", machine.id);
    let org = |what: &str| format!("/v1/orgs/personal{what}");
    let apps = "/v1/apps".to_owned();
    let machines = "/v1/apps/web/machines".to_owned();
    let long_role = json!({"name": "a", "app_role_id": "a".repeat(64)}).to_string();
    let long_description = json!({"description": "x".repeat(1025)}).to_string();
    let table: [(&str, String, &str, &str); 70] = [
        ("POST", apps.clone(), "{", "400 invalid_request the body is not JSON"),
        ("POST", apps.clone(), "", "400 invalid_request name: is missing"),
        ("POST", apps.clone(), r#"{"name":3}"#, "400 invalid_request name: invalid type"),
        ("POST", apps.clone(), r#"{"name":"Web"}"#, "422 invalid_value name: `Web` is not"),
        ("POST", apps.clone(), r#"{"name":"web"}"#, "422 name_taken Name has already been taken"),
        ("POST", apps.clone(), r#"{"name":"a","org_slug":"strangers"}"#, "403 forbidden org_slug"),
        (
            "POST",
            apps.clone(),
            r#"{"name":"a","network":"1a"}"#,
            "422 invalid_value network: is not",
        ),
        (
            "POST",
            apps.clone(),
            r#"{"name":"a","app_role_id":"a b"}"#,
            "422 invalid_value app_role_id: is not 1 to 63 letters, digits, dashes and underscores",
        ),
        ("POST", apps.clone(), &long_role, "422 invalid_value app_role_id: is not 1 to 63"),
        (
            "POST",
            apps,
            r#"{"name":"a","enable_subdomains":true}"#,
            "422 unsupported_key enable_subdomains: is not supported",
        ),
        ("GET", "/v1/apps/none".into(), "", "404 app_not_found Could not find App \"none\""),
        ("GET", "/v1/apps/NONE".into(), "", "404 app_not_found Could not find App"),
        ("GET", "/v1/apps/web/machines/xyz".into(), "", "404 machine_not_found machine not found"),
        ("GET", "/v1/apps/web/machines/00000000000009".into(), "", "404 machine_not_found machine"),
        ("POST", machines.clone(), "{}", "400 invalid_request .: missing field `config`"),
        ("POST", machines.clone(), r#"{"config":{"image":""}}"#, "422 invalid_value config.image"),
        (
            "POST",
            machines.clone(),
            r#"{"config":{"image":"a","mounts":[{"path":"/d"}]}}"#,
            "422 invalid_value config.mounts[0].volume",
        ),
        (
            "POST",
            machines.clone(),
            r#"{"config":{"image":"a"},"region":"syd"}"#,
            "422 invalid_value region: `syd` has no host; allowed are fra",
        ),
        (
            "POST",
            machines.clone(),
            r#"{"config":{"image":"a"},"lease_ttl":86401}"#,
            "422 invalid_value lease_ttl: 86401 is not 1 to 86400 seconds",
        ),
        (
            "POST",
            machines.clone(),
            r#"{"config":{"image":"a"},"min_secrets_version":1}"#,
            "412 precondition_failed min_secrets_version",
        ),
        (
            "POST",
            machines.clone(),
            r#"{"config":{"image":"a"},"name":"a b"}"#,
            "422 invalid_value name: `a b`",
        ),
        (
            "POST",
            machines.clone(),
            r#"{"config":{"image":"registry.internal/theirs:1"}}"#,
            "422 image_unknown config.image",
        ),
        (
            "POST",
            machines.clone(),
            r#"{"config":{"image":"a"},"lsvd":true}"#,
            "422 unsupported_key lsvd: is not supported",
        ),
        (
            "POST",
            of(""),
            r#"{"config":{"image":"a"},"lsvd":true}"#,
            "422 unsupported_key lsvd: is not supported",
        ),
        ("GET", format!("{machines}?state=flying"), "", "400 invalid_request state: `flying`"),
        ("GET", format!("{machines}?summary=maybe"), "", "400 invalid_request summary: `maybe`"),
        (
            "POST",
            of(""),
            r#"{"config":{"image":"a"},"current_version":"old"}"#,
            "412 precondition_failed current_version",
        ),
        ("POST", of(""), r#"{"config":{"image":"a"},"name":"other"}"#, "422 invalid_value name: a"),
        (
            "POST",
            of(""),
            r#"{"config":{"image":"a"},"lease_ttl":"9"}"#,
            "400 invalid_request lease_ttl: inv",
        ),
        (
            "POST",
            of(""),
            r#"{"config":{"image":"a"},"current_version":7}"#,
            "400 invalid_request current_v",
        ),
        ("GET", of("/lease"), "", "404 lease_not_found lease not found"),
        ("DELETE", of("/lease"), "", "404 lease_not_found lease not found"),
        (
            "POST",
            of("/lease"),
            r#"{"ttl":0}"#,
            "422 invalid_value ttl: 0 is not 1 to 86400 seconds",
        ),
        ("POST", of("/lease"), r#"{"ttl":"9"}"#, "400 invalid_request ttl: invalid type"),
        ("POST", of("/lease"), r#"{"ttl":-9}"#, "400 invalid_request ttl: invalid value"),
        ("POST", of("/lease"), r#"{"description":[]}"#, "400 invalid_request description: inv"),
        (
            "POST",
            of("/lease"),
            r#"{"ttl":86401}"#,
            "422 invalid_value ttl: 86401 is not 1 to 86400 seconds",
        ),
        (
            "POST",
            of("/lease"),
            &long_description,
            "422 invalid_value description: 1025 bytes are more than 1024",
        ),
        ("POST", of("/lease?ttl=soon"), "", "400 invalid_request ttl: `soon`"),
        ("PUT", of("/metadata"), "{}", "400 invalid_request .: missing field `metadata`"),
        (
            "PUT",
            of("/metadata"),
            r#"{"metadata":["a"]}"#,
            "400 invalid_request metadata: invalid type",
        ),
        (
            "PUT",
            of("/metadata"),
            r#"{"metadata":{"a":1}}"#,
            "400 invalid_request metadata.a: invalid",
        ),
        (
            "PUT",
            of("/metadata"),
            r#"{"metadata":{"":"1"}}"#,
            "422 invalid_value metadata: `` is not 1",
        ),
        (
            "PATCH",
            of("/metadata"),
            r#"{"metadata":{"a":{}}}"#,
            "400 invalid_request metadata.a: inva",
        ),
        (
            "PATCH",
            of("/metadata"),
            r#"{"metadata":{},"updated_at":"now"}"#,
            "400 invalid_request upd",
        ),
        (
            "PATCH",
            of("/metadata"),
            r#"{"metadata":{"a":"1"},"machine_version":"old"}"#,
            "412 precondition_failed machine_version: the machine has version",
        ),
        (
            "PUT",
            of("/metadata"),
            r#"{"metadata":{},"machine_version":"01ARYZ6S410000000000000000"}"#,
            "412 precondition_failed machine_version",
        ),
        ("GET", of("/metadata/none"), "", "404 not_found machine"),
        ("POST", of("/metadata/a"), "{}", "400 invalid_request .: missing field `value`"),
        ("POST", of("/metadata/a"), r#"{"value":7}"#, "400 invalid_request value: invalid type"),
        (
            "POST",
            of("/metadata/a%0Ab"),
            r#"{"value":"7"}"#,
            "422 invalid_value key: `ab` is not 1 to",
        ),
        ("GET", of("/events?limit=some"), "", "400 invalid_request limit: `some`"),
        ("GET", of("/wait?timeout=soon"), "", "400 invalid_request timeout: `soon`"),
        ("GET", of("/wait?timeout=-1"), "", "400 invalid_request timeout: is not"),
        (
            "GET",
            of("/wait?state=started,up"),
            "",
            "400 invalid_request state: `up` is no machine state; allowed are created",
        ),
        ("GET", org("/machines?limit=0"), "", "400 invalid_request limit: 0 is not 1 to 1000"),
        (
            "GET",
            org("/machines?limit=1001"),
            "",
            "400 invalid_request limit: 1001 is not 1 to 1000",
        ),
        ("GET", org("/machines?cursor=x"), "", "400 invalid_request cursor: `x`: is not one"),
        (
            "GET",
            org("/machines?updated_after=1"),
            "",
            "400 invalid_request updated_after: `1`: is not a time",
        ),
        ("GET", org("/machines?state=up"), "", "400 invalid_request state: `up`"),
        ("GET", "/v1/orgs/strangers/machines".into(), "", "404 not_found org_slug: `strangers`"),
        ("DELETE", "/v1/apps/web?force=maybe".into(), "", "400 invalid_request force: `maybe`"),
        ("GET", of("/wait?state=flying"), "", "400 invalid_request state: `flying`"),
        ("GET", of("/wait?instance_id=1"), "", "400 invalid_request instance_id: `1`"),
        ("POST", of("/stop"), r#"{"timeout":"1h"}"#, "422 invalid_value timeout: 1h0m0s"),
        ("POST", of("/signal"), r#"{"signal":99}"#, "422 invalid_value signal: is not"),
        (
            "POST",
            of("/signal"),
            r#"{"signal":"KILL"}"#,
            "422 invalid_value signal: `KILL` is not a signal; allowed are SIGABRT, SIGALRM, SIGFPE, \
             SIGHUP, SIGILL, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGSEGV, SIGTERM, SIGTRAP, SIGUSR1, \
             SIGUSR2",
        ),
        (
            "POST",
            of("/signal"),
            r#"{"signal":true}"#,
            "422 invalid_value signal: is not a signal; allowed are SIGABRT, SIGALRM",
        ),
        ("POST", of("/exec"), r#"{"cmd":"echo 'a"}"#, "400 invalid_request cmd: has a quote"),
        ("GET", of("/events?limit=51"), "", "400 invalid_request limit: 51 is not 1 to 50"),
    ];
    for (method, path, body, expected) in table {
        let (status, error) = cloud.error((method, &path), Some(ADMIN), body).await;
        let text = format!("{status} {} {}", error.code, error.error);
        assert!(text.starts_with(expected), "{method} {path} {body}: {text}");
    }
    assert_eq!(cloud.keys("placements/").await.len(), 1, "a refusal leaves nothing behind");
    // One reached the host, which alone knows the version that the machine has.
    assert_eq!(cloud.host.commands.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_the_limit() {
    let cloud = Cloud::start().await;
    let body = format!(r#"{{"name":"{}"}}"#, "a".repeat(1024 * 1024));
    let (status, error) = cloud.error(("POST", "/v1/apps"), Some(ADMIN), body).await;
    assert_eq!(status, 413);
    assert_eq!(error.error, "the body is larger than 1048576 bytes");
}

/// E8: what is wrong inside stays in the log.
#[tokio::test]
async fn e8_a_host_that_is_away_is_told_without_its_socket() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    cloud.host_task.abort();
    let socket = cloud.folder.path().join("host.sock");
    std::fs::remove_file(&socket).unwrap();
    let body = r#"{"config":{"image":"a"}}"#;
    let call = ("POST", "/v1/apps/web/machines");
    let (status, _, body) = cloud.raw(call, Some(ADMIN), body).await;
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 503, "{text}");
    assert!(!text.contains("host.sock"), "{text}");
    assert!(text.contains("try again"), "{text}");
    // The host was never reached: what was written is taken back once it is there again.
    let _task = cloud.host.serve(&socket);
    cloud.until_empty(&["placements/", "configs/", "promises/"]).await;
}
