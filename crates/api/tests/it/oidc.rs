//! Identity tokens: a machine's alone, and true to whoever has the documents.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use perch_api::Inside;
use perch_store::{Expected, delete_doc};
use perch_types::OrgSlug;
use perch_types::host::MachineIdentity;
use perch_types::secret_keys::SecretKeyDoc;
use serde_json::{Value, json};

use crate::cloud::{ADMIN, Cloud, web};
use crate::inside::ask;

/// Has a machine ask for a token; returns status and body.
async fn mint(inside: &Inside, who: &MachineIdentity, body: &Value) -> (String, String) {
    let body = body.to_string();
    let request = format!(
        "POST /v1/tokens/oidc HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = ask(inside, who, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
}

fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&BASE64_URL.decode(part).unwrap()).unwrap()
}

async fn document(cloud: &Cloud, path: &str) -> Value {
    serde_json::from_slice(&cloud.api.identity_document(path).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn t14_a_machine_proves_who_it_is_to_others() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let who = MachineIdentity { org: OrgSlug::personal(), app: web(), machine: machine.id.clone() };
    let inside = Inside::new(&cloud.api);
    let jwks = "/personal/.well-known/jwks";
    // Before the first token there is no key, and asking for it makes none.
    assert_eq!(document(&cloud, jwks).await, json!({"keys": []}));
    assert!(cloud.keys("secrets/").await.is_empty());

    let (status, token) = mint(&inside, &who, &json!({})).await;
    assert_eq!(status, "200", "{token}");
    let claims = part(&token, 1);
    let issuer = "https://oidc.perch.test/personal";
    for (name, want) in [
        ("iss", json!(issuer)),
        ("sub", json!(format!("personal:web:{}", machine.name))),
        ("aud", json!("https://fly.io/personal")),
        ("app_name", json!("web")),
        ("org_id", json!("personal")),
        ("org_name", json!("personal")),
        ("machine_id", json!(machine.id)),
        ("machine_name", json!(machine.name)),
        ("machine_version", json!(machine.instance_id)),
        ("image", json!("web:1")),
        ("region", json!("fra")),
    ] {
        assert_eq!(claims[name], want, "{name}");
    }
    for name in ["app_id", "jti", "image_digest"] {
        assert!(claims[name].is_string(), "{name}: {claims}");
    }
    let seconds = |name: &str| claims[name].as_i64().unwrap();
    assert_eq!((seconds("exp") - seconds("iat"), seconds("nbf")), (600, seconds("iat")));
    assert!(claims.get("https://aws.amazon.com/tags").is_none());

    // Whoever has the documents can check it.
    let configuration = document(&cloud, "/personal/.well-known/openid-configuration").await;
    assert_eq!(
        (&configuration["issuer"], cloud.api.identity_host().as_str()),
        (&json!(issuer), "oidc.perch.test")
    );
    assert_eq!(configuration["jwks_uri"], json!(format!("{issuer}/.well-known/jwks")));
    let keys = document(&cloud, jwks).await;
    let header = part(&token, 0);
    let key = &keys["keys"][0];
    assert_eq!((&header["alg"], &header["kid"]), (&json!("ES256"), &key["kid"]));
    let number = |name: &str| BASE64_URL.decode(key[name].as_str().unwrap()).unwrap();
    let point = [vec![4], number("x"), number("y")].concat();
    let (text, signature) = token.rsplit_once('.').unwrap();
    let signature = BASE64_URL.decode(signature).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    public.verify(text.as_bytes(), &signature).unwrap();
    public.verify(b"another", &signature).unwrap_err();

    // The same key goes on, and what was asked for is in the token.
    let wanted = json!({"aud": "sts.amazonaws.com", "aws_principal_tags": true});
    let (_, token) = mint(&inside, &who, &wanted).await;
    assert_eq!(part(&token, 0), header);
    let claims = part(&token, 1);
    assert_eq!(claims["aud"], json!("sts.amazonaws.com"));
    assert_eq!(claims["https://aws.amazon.com/tags"]["principal_tags"]["app_name"], json!(["web"]));
    assert_eq!(document(&cloud, jwks).await, keys);
    // Another organization has another key, or none.
    assert_eq!(document(&cloud, "/strangers/.well-known/jwks").await, json!({"keys": []}));
    for none in ["", "/", "/personal", "/personal/x", "/UPPER/.well-known/jwks"] {
        assert!(cloud.api.identity_document(none).await.is_none(), "{none}");
    }

    // Whoever asks does not have the directory read each time.
    let key = (OrgSlug::personal(), "api".parse().unwrap(), "oidc".to_owned());
    delete_doc::<SecretKeyDoc>(cloud.store.as_ref(), &key, Expected::Any).await.unwrap();
    assert_eq!(document(&cloud, jwks).await, keys);
    cloud.turn(300_001);
    assert_eq!(document(&cloud, jwks).await, json!({"keys": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_machine_gets_an_identity_token_and_only_for_a_fine_audience() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let call = ("POST", "/v1/tokens/oidc");
    let (status, error) = cloud.error(call, Some(ADMIN), "{}").await;
    assert_eq!(status, 403);
    assert!(error.hint.unwrap().contains("/.fly/api"));
    let who = MachineIdentity { org: OrgSlug::personal(), app: web(), machine: machine.id };
    let inside = Inside::new(&cloud.api);
    for (body, want) in [
        (json!({"aud": 7}), ("400", "aud: invalid type")),
        (json!({"aud": "a\nb"}), ("422", "aud: is not 1 to 1024 bytes")),
        (json!({"aud": "a".repeat(1025)}), ("422", "aud: is not 1 to 1024 bytes")),
        (json!({"aws_principal_tags": "yes"}), ("400", "aws_principal_tags: invalid type")),
    ] {
        let (status, text) = mint(&inside, &who, &body).await;
        assert!(status == want.0 && text.contains(want.1), "{status} {text}");
    }
}

#[tokio::test]
async fn tokens_are_looked_up_for_services_that_trust_the_platform() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await.id;
    let deploy = cloud.admin.create_deploy_token(&web(), &Default::default()).await.unwrap();
    let deploy = deploy.token.expose();
    let ask = async |path: &str, body: Value| {
        let (status, _, body) = cloud.raw(("POST", path), Some(ADMIN), body.to_string()).await;
        (status, String::from_utf8(body).unwrap())
    };
    let header = format!("FlyV1 unknown,{deploy}");
    let (status, text) = ask("/v1/tokens/authenticate", json!({"header": header})).await;
    assert_eq!(status, 200, "{text}");
    assert!(!text.contains(deploy), "{text}");
    let tokens: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(tokens.as_array().unwrap().len(), 1);
    assert_eq!(tokens[0]["caveats"]["caveats"][1]["body"]["apps"], json!({"web": 15}));

    let header = format!("Bearer {deploy}");
    for (access, want) in [
        (json!({"action": 3, "app_name": "web"}), (200, "\"appid\"")),
        (json!({"action": 1, "app_name": "web", "machine_id": machine}), (200, "\"machine\"")),
        (
            json!({"action": 1, "app_name": "web", "machine_id": machine, "command": ["sh"]}),
            (200, "\"command\""),
        ),
        (json!({"action": 1, "org_slug": "personal"}), (403, "none of the tokens allows")),
        (json!({"action": 16, "app_name": "web"}), (403, "none of the tokens allows")),
        (json!({"action": 1, "app_name": "web", "org_slug": "strangers"}), (404, "Could not find")),
        (json!({"action": 1, "app_name": "nothing"}), (404, "Could not find App")),
        (
            json!({"action": 1, "app_name": "web", "machine_id": "00000000000099"}),
            (404, "machine not found"),
        ),
        (json!({"action": 32, "app_name": "web"}), (422, "access.action: 32 is no sum")),
        (json!({"action": 1, "machine_id": machine}), (422, "access.machine_id: needs app_name")),
        (json!({"action": 1, "command": ["sh"]}), (422, "access.command: needs machine_id")),
        (json!({"action": 1, "mutation": "x"}), (422, "access.mutation: no token")),
        (json!({"action": 1, "org_feature": "wg"}), (422, "access.org_feature: no token")),
        (json!({"action": "r"}), (400, "access.action: invalid type")),
    ] {
        let body = json!({"header": header, "access": access});
        let (status, text) = ask("/v1/tokens/authorize", body).await;
        assert!(status == want.0 && text.contains(want.1), "{access}: {status} {text}");
    }
    for path in ["/v1/tokens/authenticate", "/v1/tokens/authorize"] {
        for header in ["", "Bearer unknown", "Basic x", "\n"] {
            let body = json!({"header": header, "access": {"action": 1}});
            let (status, text) = ask(path, body).await;
            assert!(status == 400 && text.contains("header: has no token"), "{status} {text}");
        }
    }
    let (status, text) = ask("/v1/tokens/kms", json!({})).await;
    assert!(status == 422 && text.contains("secretkeys"), "{status} {text}");
}
