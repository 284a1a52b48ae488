//! Secret keys: set or made, used by the role `keys`, never shown.

use perch_store::{Expected, get_doc, put_doc};
use perch_types::api::CreateApp;
use perch_types::secret_keys::{COUNT_MAX, SecretKeyType, SetSecretKey, VALUE_BYTES_MAX};
use perch_types::secrets::{SecretsHead, UpdateSecrets};
use perch_types::{Code, OrgSlug, Secret};
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, shown, web};

const KEYS: &str = "/v1/apps/web/secretkeys";
/// 32 bytes.
const VALUE: &str = "aHVudGVyMi1jb3JyZWN0LWhvcnNlLWJhdHRlcnktb2s=";

async fn ask(cloud: &Cloud, call: (&str, &str), body: &Value) -> (u16, Value) {
    let (method, path) = call;
    let path = format!("{KEYS}{path}");
    let (status, _, body) = cloud.raw((method, &path), Some(ADMIN), body.to_string()).await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn a_key_is_set_used_and_taken_away_in_the_contracts_shape() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let values = UpdateSecrets { values: [("A".to_owned(), Some(Secret::new("x")))].into() };
    assert_eq!(cloud.admin.update_secrets(&web(), &values).await.unwrap().version, 1);
    let path = format!("{KEYS}/box");
    let body = json!({"type": "nacl_sign", "value": VALUE}).to_string();
    let (status, _, body) = cloud.raw(("POST", &path), Some(ADMIN), body).await;
    assert_eq!(status, 201);
    insta::assert_snapshot!(shown(&body, &["created_at", "updated_at", "public_key"]), @r#"
    {
      "Version": 2,
      "created_at": "[created_at]",
      "name": "box",
      "public_key": "[public_key]",
      "type": "nacl_sign",
      "updated_at": "[updated_at]",
      "version": 2
    }
    "#);
    // Texts come as base64 and as lists of numbers; answers are base64.
    let (status, signed) = ask(&cloud, ("POST", "/box/sign"), &json!({"plaintext": [1, 2]})).await;
    assert_eq!((status, signed["signature"].as_str().unwrap().len()), (200, 88));
    let right = json!({"plaintext": "AQI=", "signature": signed["signature"]});
    assert_eq!(ask(&cloud, ("POST", "/box/verify"), &right).await.0, 204);
    let wrong = json!({"plaintext": "AQM=", "signature": signed["signature"]});
    let (status, error) = ask(&cloud, ("POST", "/box/verify"), &wrong).await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_request")));

    // Another key of the same name: nothing of the first is right any more.
    let of = json!({"type": "xaes256gcm"});
    let (status, made) = ask(&cloud, ("POST", "/box/generate"), &of).await;
    assert_eq!((status, &made["version"], &made["public_key"]), (201, &json!(3), &Value::Null));
    let text = json!({"plaintext": "AQI=", "associated_data": "YQ=="});
    let (_, sealed) = ask(&cloud, ("POST", "/box/encrypt"), &text).await;
    let right = json!({"ciphertext": sealed["ciphertext"], "associated_data": "YQ=="});
    let (status, opened) = ask(&cloud, ("POST", "/box/decrypt"), &right).await;
    assert_eq!((status, &opened["plaintext"]), (200, &json!("AQI=")));
    let (status, error) =
        ask(&cloud, ("POST", "/box/decrypt"), &json!({"ciphertext": sealed["ciphertext"]})).await;
    assert_eq!(status, 400);
    assert!(error["error"].as_str().unwrap().starts_with("ciphertext: "), "{error}");

    ask(&cloud, ("POST", "/other/generate"), &json!({"type": "hs256"})).await;
    let names = async |query: &str| {
        let (_, list) = ask(&cloud, ("GET", query), &Value::Null).await;
        let keys = list["secret_keys"].as_array().unwrap().clone();
        keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["box", "other"]);
    assert_eq!(names("?types=hs256,es256").await, ["other"]);
    assert_eq!(names("?types=es256&types=xaes256gcm&min_version=4").await, ["box"]);
    let (status, gone) = ask(&cloud, ("DELETE", "/box"), &Value::Null).await;
    assert_eq!((status, gone), (200, json!({"version": 5, "Version": 5})));
    assert_eq!(ask(&cloud, ("GET", "/box"), &Value::Null).await.0, 404);
    // The app secrets beside it count with the same version and are as they were.
    let secrets = cloud.admin.secrets(&web()).await.unwrap();
    assert_eq!((secrets.version, secrets.secrets.len()), (5, 1));
}

#[tokio::test]
async fn bad_input_is_told_with_the_field() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let (status, _) = ask(&cloud, ("POST", "/mac/generate"), &json!({"type": "hs256"})).await;
    assert_eq!(status, 201);
    let long = vec![7; VALUE_BYTES_MAX + 1];
    // More than the role `keys` reads.
    let longest = "A".repeat(512 * 1024);
    for (call, body, want) in [
        (("POST", "/a"), json!({}), "400 invalid_request .: missing field `type`"),
        (("POST", "/a"), json!({"type": "rsa"}), "400 invalid_request type: is not of"),
        (("POST", "/a"), json!({"type": "hs256"}), "400 invalid_request value: is not there"),
        (("POST", "/a"), json!({"type": "hs256", "value": "?"}), "400 invalid_request value"),
        (("POST", "/a"), json!({"type": "hs256", "value": [256]}), "400 invalid_request value"),
        (("POST", "/a"), json!({"type": "hs256", "value": "YQ=="}), "422 invalid_value value: 1"),
        (("POST", "/a"), json!({"type": "hs256", "value": long}), "422 invalid_value value: 1025"),
        (("POST", "/1a"), json!({"type": "hs256", "value": VALUE}), "422 invalid_value secret_n"),
        (("POST", "/1a/generate"), json!({"type": "hs256"}), "422 invalid_value secret_name: `1a`"),
        (("POST", "/a/generate"), json!({"type": "hs256", "value": VALUE}), "422 invalid_value va"),
        (("POST", "/mac/encrypt"), json!({"plaintext": "YQ=="}), "422 invalid_value type: a key"),
        (("POST", "/mac/encrypt"), json!({"plaintext": "?"}), "400 invalid_request plaintext: is"),
        (("POST", "/mac/decrypt"), json!({"ciphertext": 7}), "400 invalid_request ciphertext: is"),
        (("POST", "/mac/verify"), json!({"signature": {}}), "400 invalid_request signature: is"),
        (
            ("POST", "/mac/sign"),
            json!({"plaintext": longest}),
            "422 invalid_value plaintext: 393216",
        ),
        (("POST", "/mac/verify"), json!({"signature": longest}), "422 invalid_value signature: 39"),
        (("POST", "/mac/encrypt"), json!({"associated_data": longest}), "422 invalid_value assoc"),
        (("POST", "/mac/decrypt"), json!({"ciphertext": longest}), "422 invalid_value ciphertext"),
        (("POST", "/a"), json!({"type": 7}), "400 invalid_request type: is not of"),
        (("POST", "/mac/sign?min_version=2"), json!({}), "412 precondition_failed min_version"),
        (("POST", "/none/sign"), json!({}), "404 not_found secret_name: there is no"),
        (("GET", "/none"), Value::Null, "404 not_found secret_name: there is no"),
        (("DELETE", "/none"), Value::Null, "404 not_found secret_name: there is no"),
        (("GET", "?types=hs256,rsa"), Value::Null, "422 invalid_value types: `rsa` is not one of"),
        (("GET", "?min_version=2"), Value::Null, "412 precondition_failed min_version"),
    ] {
        let (status, error) = ask(&cloud, call, &body).await;
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        let told = format!("{status} {} {}", text("code"), text("error"));
        assert!(told.starts_with(want), "{call:?}: {told}");
    }
    assert_eq!(cloud.admin.secret_keys(&web()).await.unwrap().secret_keys.len(), 1);
}

#[tokio::test]
async fn t4_nothing_of_a_key_is_in_the_store_or_an_answer() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let mut bytes = Vec::new();
    for body in [json!({"type": "hs256", "value": VALUE}), json!({"type": "rsa", "value": VALUE})] {
        let path = format!("{KEYS}/mac");
        bytes.extend(cloud.raw(("POST", &path), Some(ADMIN), body.to_string()).await.2);
        bytes.extend(cloud.raw(("GET", &path), Some(ADMIN), "").await.2);
    }
    for entry in cloud.store.list("").await.unwrap().entries {
        bytes.extend_from_slice(&entry.value);
    }
    for needle in ["hunter2", "aHVudGVyMi1", VALUE] {
        let found = bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        assert!(!found, "{needle}");
    }
}

#[tokio::test]
async fn keys_have_a_most_and_end_with_their_app() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let of = SetSecretKey { kind: SecretKeyType::Hs256, value: None };
    for n in 0..COUNT_MAX {
        cloud.admin.set_secret_key(&web(), &format!("k{n}"), &of).await.unwrap();
    }
    let more = cloud.admin.set_secret_key(&web(), "more", &of).await.unwrap_err();
    assert_eq!(more.code(), Some(Code::InvalidValue));
    // One for one there is room.
    cloud.admin.set_secret_key(&web(), "k0", &of).await.unwrap();
    cloud.admin.delete_app(&web()).await.unwrap();
    cloud.until_empty(&["secrets/", "names/apps/web"]).await;
    let again = CreateApp { name: Some("web".to_owned()), ..CreateApp::default() };
    cloud.admin.create_app(&again).await.unwrap();
    assert!(cloud.admin.secret_keys(&web()).await.unwrap().secret_keys.is_empty());
}

/// A request may have read the app just before it was deleted, and its name given to another.
#[tokio::test]
async fn keys_of_another_app_that_has_the_name_now_are_not_there() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let set = SetSecretKey { kind: SecretKeyType::Hs256, value: None };
    cloud.admin.set_secret_key(&web(), "key", &set).await.unwrap();
    let at = (OrgSlug::personal(), web());
    let head = get_doc::<SecretsHead>(cloud.store.as_ref(), &at).await.unwrap().unwrap().document;
    let other = SecretsHead { app_id: "app_other".to_owned(), ..head };
    put_doc(cloud.store.as_ref(), &at, &other, Expected::Any).await.unwrap();
    let text = json!({"plaintext": "AQI="});
    let (status, error) = ask(&cloud, ("POST", "/key/sign"), &text).await;
    assert_eq!((status, &error["code"]), (404, &json!("not_found")), "{error}");
    assert_eq!(cloud.admin.secret_keys(&web()).await.unwrap().secret_keys, []);
    // Nor does it get one more.
    let (status, _) = ask(&cloud, ("POST", "/more/generate"), &json!({"type": "hs256"})).await;
    assert!(status >= 400, "{status}");
    assert_eq!(cloud.keys("secrets/personal/web/keys/").await.len(), 1);
}
