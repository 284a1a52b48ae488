//! App secrets: set, listed, taken away; sealed before they are written.

use std::collections::BTreeMap;

use perch_types::Code;
use perch_types::api::CreateApp;
use perch_types::host::Command;
use perch_types::secrets::{
    CHANGES_MAX, COUNT_MAX, SetSecret, UpdateSecrets, VALUE_BYTES_MAX, prefix,
};
use perch_types::{OrgSlug, Secret};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, request, shown, web};

const SECRETS: &str = "/v1/apps/web/secrets";

fn values(pairs: &[(&str, Option<&str>)]) -> UpdateSecrets {
    let values = pairs.iter().map(|(name, value)| ((*name).to_owned(), value.map(Secret::new)));
    UpdateSecrets { values: values.collect() }
}

#[tokio::test]
async fn secrets_are_set_listed_and_taken_away_in_the_contracts_shape() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = r#"{"values":{"B":"two","A":"one","GONE":null}}"#;
    let (status, _, body) = cloud.raw(("POST", SECRETS), Some(ADMIN), body).await;
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&answer["version"], &answer["Version"]), (&json!(1), &json!(1)));
    let names: Vec<&Value> =
        answer["secrets"].as_array().unwrap().iter().map(|secret| &secret["name"]).collect();
    assert_eq!(names, ["A", "B"]);

    let one = (SECRETS.to_owned() + "/A").leak();
    let (status, _, body) = cloud.raw(("POST", one), Some(ADMIN), r#"{"value":"other"}"#).await;
    assert_eq!(status, 201);
    let set = shown(&body, &["digest", "created_at", "updated_at"]);
    insta::assert_snapshot!(set, @r#"
    {
      "Version": 2,
      "created_at": "[created_at]",
      "digest": "[digest]",
      "name": "A",
      "updated_at": "[updated_at]",
      "version": 2
    }
    "#);
    let set: Value = serde_json::from_slice(&body).unwrap();
    assert_ne!(set["digest"], answer["secrets"][0]["digest"]);
    assert_eq!(set["created_at"], answer["secrets"][0]["created_at"]);
    let digest = set["digest"].as_str().unwrap();
    assert!(digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");

    // The same value again has the same digest: clients see that nothing changed.
    let again = SetSecret { value: Secret::new("other") };
    let again = cloud.admin.set_secret(&web(), "A", &again).await.unwrap();
    assert_eq!(again.secret.digest, digest);
    assert_eq!(cloud.admin.secret(&web(), "A").await.unwrap().digest, digest);
    assert_eq!(cloud.admin.delete_secret(&web(), "A").await.unwrap().version, 4);
    let left = cloud.admin.secrets(&web()).await.unwrap();
    assert_eq!((left.secrets.len(), left.secrets[0].name.as_str(), left.version), (1, "B", 4));
    // What changes nothing makes no version.
    let nothing = cloud.admin.update_secrets(&web(), &values(&[("A", None)])).await.unwrap();
    assert_eq!((nothing.version, nothing.secrets.len()), (4, 0));
}

#[tokio::test]
async fn bad_input_is_told_with_the_field() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    let many: BTreeMap<String, String> =
        (0..=CHANGES_MAX).map(|n| (format!("N{n}"), String::new())).collect();
    let many = json!({ "values": many }).to_string();
    let long_value = json!({ "values": {"A": long} }).to_string();
    let one_long = json!({ "value": long }).to_string();
    let of_a = format!("{SECRETS}/A");
    let bad_name = format!("{SECRETS}/1A");
    for (call, body, want) in [
        (("POST", SECRETS), "{", "400 invalid_request the body is not JSON"),
        (("POST", SECRETS), "{}", "400 invalid_request .: missing field `values`"),
        (("POST", SECRETS), r#"{"values":{}}"#, "400 invalid_request values"),
        (("POST", SECRETS), r#"{"values":[]}"#, "400 invalid_request values"),
        (("POST", SECRETS), r#"{"values":{"A":8051}}"#, "400 invalid_request values.A"),
        (("POST", SECRETS), r#"{"values":"8051"}"#, "400 invalid_request values"),
        (("POST", SECRETS), r#"{"values":{"A":["8051"]}}"#, "400 invalid_request values.A"),
        (("POST", &of_a), r#"{"value":8051}"#, "400 invalid_request value"),
        (("POST", SECRETS), r#"{"values":{"A B":"x"}}"#, "422 invalid_value values: `A B`"),
        (("POST", SECRETS), r#"{"values":{"A/B":"x"}}"#, "422 invalid_value values: `A/B`"),
        (("POST", SECRETS), r#"{"values":{"":"x"}}"#, "422 invalid_value values: ``"),
        (("POST", SECRETS), r#"{"values":{"A":"x\u0000"}}"#, "422 invalid_value values.A"),
        (("POST", SECRETS), &long_value, "422 invalid_value values.A"),
        (("POST", SECRETS), &many, "422 invalid_value values"),
        (("POST", &of_a), "{}", "400 invalid_request .: missing field `value`"),
        (("POST", &of_a), r#"{"value":null}"#, "400 invalid_request value"),
        (("POST", &of_a), &one_long, "422 invalid_value value"),
        (("POST", &bad_name), r#"{"value":"x"}"#, "422 invalid_value secret_name"),
        (("GET", &of_a), "", "404 not_found secret_name"),
        (("DELETE", &of_a), "", "404 not_found secret_name"),
    ] {
        let (status, error) = cloud.error(call, Some(ADMIN), body).await;
        let told = format!("{status} {} {}", error.code, error.error);
        assert!(told.starts_with(want), "{call:?} {body:.60}: {told}");
        // It may be a value, and an error ends in many a log.
        assert!(!told.contains("8051"), "{told}");
    }
    for (query, want) in [
        ("show_secrets=true", "422 unsupported_key show_secrets"),
        ("show_secrets=maybe", "400 invalid_request show_secrets"),
        ("min_version=x", "400 invalid_request min_version"),
        ("min_version=1", "412 precondition_failed min_version"),
        ("version=1", "412 precondition_failed version"),
    ] {
        let path = format!("{SECRETS}?{query}");
        let (status, error) = cloud.error(("GET", &path), Some(ADMIN), "").await;
        let told = format!("{status} {} {}", error.code, error.error);
        assert!(told.starts_with(want), "{query}: {told}");
    }
    assert!(cloud.keys("secrets/").await.is_empty(), "nothing was written");
}

#[tokio::test]
async fn an_app_has_a_most_of_secrets() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let mut set = 0;
    while set < COUNT_MAX {
        let names: Vec<String> =
            (set..COUNT_MAX.min(set + CHANGES_MAX)).map(|n| format!("N{n}")).collect();
        let pairs: Vec<(&str, Option<&str>)> =
            names.iter().map(|name| (name.as_str(), Some("x"))).collect();
        cloud.admin.update_secrets(&web(), &values(&pairs)).await.unwrap();
        set += names.len();
    }
    let more = cloud.admin.update_secrets(&web(), &values(&[("MORE", Some("x"))])).await;
    assert_eq!(more.unwrap_err().code(), Some(Code::InvalidValue));
    // One for one there is room.
    let change = values(&[("N0", None), ("MORE", Some("x"))]);
    cloud.admin.update_secrets(&web(), &change).await.unwrap();
    let large = "x".repeat(VALUE_BYTES_MAX);
    let pairs: Vec<(&str, Option<&str>)> = ["N1", "N2", "N3", "N4", "N5", "N6", "N7", "N8"]
        .map(|name| (name, Some(large.as_str())))
        .into();
    let mut codes = Vec::new();
    for pair in pairs {
        let result = cloud.admin.update_secrets(&web(), &values(&[pair])).await;
        codes.push(result.err().and_then(|error| error.code()));
    }
    assert_eq!(codes.pop(), Some(Some(Code::InvalidValue)), "256 KiB and a little are too much");
    assert!(codes.iter().all(Option::is_none), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_writers_at_once_none_is_lost() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let writers = (0..50).map(|n| {
        let api = cloud.admin.clone();
        tokio::spawn(async move {
            let set = SetSecret { value: Secret::new(format!("value {n}")) };
            api.set_secret(&web(), &format!("N{n}"), &set).await.unwrap().version
        })
    });
    let mut versions = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        versions.push(writer.await.unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=50).collect::<Vec<u64>>());
    let secrets = cloud.admin.secrets(&web()).await.unwrap();
    assert_eq!((secrets.secrets.len(), secrets.version), (50, 50));
}

#[tokio::test]
async fn t4_nothing_of_a_value_is_in_the_store_or_an_answer() {
    const VALUE: &str = "hunter2-correct-horse";
    let cloud = Cloud::start().await;
    cloud.app().await;
    let body = json!({"values": {"A": VALUE}}).to_string();
    let (_, _, set) = cloud.raw(("POST", SECRETS), Some(ADMIN), body).await;
    let (_, _, list) = cloud.raw(("GET", SECRETS), Some(ADMIN), "").await;
    let (_, _, refused) = cloud
        .raw(("POST", SECRETS), Some(ADMIN), json!({"values": {"B C": VALUE}}).to_string())
        .await;
    let mut bytes = [set, list, refused].concat();
    for entry in cloud.store.list("").await.unwrap().entries {
        bytes.extend_from_slice(&entry.value);
    }
    for file in ["directory.db", "directory.db-wal"] {
        bytes.extend(std::fs::read(cloud.folder.path().join(file)).unwrap_or_default());
    }
    let hash = crate::cloud::hash(VALUE);
    let base64 = "aHVudGVyMi1jb3JyZWN0LWhvcnNl";
    for needle in [VALUE, hash.as_str(), hash.get(..16).unwrap(), base64] {
        let found = bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        assert!(!found, "{needle}");
    }
}

#[tokio::test]
async fn secrets_end_with_their_app_and_a_later_app_has_another_key() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    cloud.admin.update_secrets(&web(), &values(&[("A", Some("x"))])).await.unwrap();
    let head = format!("{}head", prefix(&OrgSlug::personal(), &web()));
    let before: Value =
        serde_json::from_slice(&cloud.store.get(&head).await.unwrap().unwrap().value).unwrap();
    cloud.admin.delete_app(&web()).await.unwrap();
    cloud.until_empty(&["secrets/"]).await;
    cloud.until_empty(&["names/apps/web"]).await;
    cloud
        .admin
        .create_app(&CreateApp { name: Some("web".to_owned()), ..CreateApp::default() })
        .await
        .unwrap();
    assert_eq!(cloud.admin.secrets(&web()).await.unwrap().version, 0);
    cloud.admin.update_secrets(&web(), &values(&[("A", Some("x"))])).await.unwrap();
    let after: Value =
        serde_json::from_slice(&cloud.store.get(&head).await.unwrap().unwrap().value).unwrap();
    assert_ne!(before["key"]["public"], after["key"]["public"]);
}

#[tokio::test]
async fn without_the_role_keys_nothing_is_changed_and_lists_go_on() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    cloud.admin.update_secrets(&web(), &values(&[("A", Some("x"))])).await.unwrap();
    cloud.keys_task.abort();
    std::fs::remove_file(cloud.folder.path().join("keys.sock")).unwrap();
    let error = cloud.admin.update_secrets(&web(), &values(&[("A", Some("y"))])).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable));
    assert!(error.to_string().contains("keys"), "{error}");
    let secrets = cloud.admin.secrets(&web()).await.unwrap();
    assert_eq!((secrets.version, secrets.secrets.len()), (1, 1));
    // To take one away needs no key.
    cloud.admin.update_secrets(&web(), &values(&[("A", None)])).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_needs_a_version_gets_it_or_a_412() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let needs = |version, skip| perch_types::api::CreateMachineRequest {
        min_secrets_version: Some(version),
        skip_secrets: skip,
        ..request(json!({"image": "web:1"}))
    };
    let early = cloud.admin.create_machine(&web(), &needs(1, false)).await.unwrap_err();
    assert_eq!(early.code(), Some(Code::PreconditionFailed));
    cloud.admin.update_secrets(&web(), &values(&[("A", Some("x"))])).await.unwrap();
    let machine = cloud.admin.create_machine(&web(), &needs(1, false)).await.unwrap();
    let update = cloud.admin.update_machine(&web(), &machine.id, &needs(2, false)).await;
    assert_eq!(update.unwrap_err().code(), Some(Code::PreconditionFailed));
    cloud.admin.update_machine(&web(), &machine.id, &needs(1, true)).await.unwrap();
    let commands = cloud.host.commands.lock().unwrap().clone();
    let wanted = commands.iter().find_map(|command| match command {
        Command::Update { secrets, .. } => Some(*secrets),
        _ => None,
    });
    let wanted = wanted.unwrap();
    assert!(wanted.skip && wanted.min_version == 1, "{wanted:?}");
}

#[tokio::test]
async fn a_machine_names_secrets_that_there_are() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let of_file = json!({"files": [{"guest_path": "/key", "secret_name": "KEY"}]});
    let of_process = json!({"processes": [{"secrets": [{"env_var": "A", "name": "KEY"}]}]});
    let of_container = json!({"containers": [
        {"name": "db", "image": "db:1", "secrets": [{"env_var": "KEY"}],
         "files": [{"guest_path": "/key", "secret_name": "KEY"}]}]});
    let all = [
        (&of_file, "config.files[0].secret_name"),
        (&of_process, "config.processes[0].secrets[0].name"),
        (&of_container, "config.containers[0].files[0].secret_name"),
    ];
    let machine = cloud.machine(json!({"image": "web:1"})).await.id;
    let paths = ["/v1/apps/web/machines".to_owned(), format!("/v1/apps/web/machines/{machine}")];
    let ask = async |path: &str, config: &Value, skip: bool| {
        let mut config = config.clone();
        config["image"] = json!("web:1");
        let body = json!({"config": config, "skip_secrets": skip}).to_string();
        let (status, _, answer) = cloud.raw(("POST", path), Some(ADMIN), body).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        format!("{status} {} {}", text("code"), text("error"))
    };
    for set in [None, Some("OTHER")] {
        if let Some(name) = set {
            cloud.admin.update_secrets(&web(), &values(&[(name, Some("x"))])).await.unwrap();
        }
        let allowed = match set {
            Some(name) => format!("allowed are {name}"),
            None => "it has none".to_owned(),
        };
        for (config, field) in all {
            for path in &paths {
                let told = ask(path, config, false).await;
                let want = format!("422 invalid_value {field}: the app has no secret `KEY`; ");
                assert_eq!(told, want + &allowed, "{config}");
            }
        }
    }
    assert_eq!(cloud.keys("placements/").await.len(), 1, "a refusal leaves nothing behind");
    cloud.admin.update_secrets(&web(), &values(&[("KEY", Some("eA=="))])).await.unwrap();
    for (config, field) in all {
        for path in &paths {
            let told = ask(path, config, false).await;
            assert!(told.starts_with("200"), "{config}: {told}");
            // Without any it would find none at its boot.
            let told = ask(path, config, true).await;
            let want = format!("422 invalid_value {field}: names `KEY`, and with skip_secrets");
            assert!(told.starts_with(&want), "{config}: {told}");
        }
    }
    assert!(ask(&paths[1], &json!({}), true).await.starts_with("200"));
}
