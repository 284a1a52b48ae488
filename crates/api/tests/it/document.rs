//! The OpenAPI document against the routes there are.

use std::collections::BTreeSet;

use perch_types::Code;
use perch_types::endpoint::{self, Action};
use serde_json::Value;

use crate::cloud::Cloud;

/// The document that is served.
pub(crate) const DOCUMENT: &str = include_str!("../../../../docs/openapi.json");

/// Operations that change something and read no body.
const BODILESS: [&str; 9] = [
    "certificate_check",
    "images_bootstrap",
    "machine_cordon",
    "machine_restart",
    "machine_start",
    "machine_suspend",
    "machine_uncordon",
    "snapshots_create",
    "system_prune",
];
/// What is refused before a body would be read.
const REFUSED: [&str; 1] = ["token_kms"];

/// How to make the document anew.
const WRITE: &str = "run `cargo xtask openapi --write`";

pub(crate) fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

#[test]
fn the_document_has_every_endpoint_and_no_other() {
    let document = document();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(!operation["description"].as_str().unwrap().is_empty(), "{method} {path}");
            let action = operation["x-perch-action"].as_str().unwrap().to_owned();
            described.insert((method.to_uppercase(), path.clone(), action));
        }
    }
    let of_table = |it: &endpoint::Endpoint| {
        let action = format!("{:?}", it.action).to_lowercase();
        (it.method.to_owned(), it.path.to_owned(), action)
    };
    let served: BTreeSet<_> = endpoint::ALL.iter().map(of_table).collect();
    assert_eq!(described, served, "{WRITE}");
}

/// What has no body in the document is in no test that is made of it.
#[test]
fn every_operation_that_takes_a_body_says_which() {
    let document = document();
    let mut without = BTreeSet::new();
    let paths = document["paths"].as_object().unwrap().values();
    let operations = paths.flat_map(|methods| methods.as_object().unwrap());
    for (_, operation) in
        operations.filter(|(method, _)| ["post", "put", "patch"].contains(&method.as_str()))
    {
        let id = operation["operationId"].as_str().unwrap();
        let Some(body) = operation.get("requestBody") else {
            without.insert(id.to_owned());
            continue;
        };
        let mut content = body["content"].as_object().unwrap().values();
        assert!(content.all(|it| it["schema"].is_object()), "{id}");
        assert!(operation["responses"].get("413").is_some(), "{id}");
    }
    let allowed: BTreeSet<String> =
        BODILESS.iter().chain(&REFUSED).map(|id| (*id).to_owned()).collect();
    assert_eq!(without, allowed, "{WRITE}");
}

#[test]
fn the_document_knows_every_error_and_its_references_lead_somewhere() {
    let document = document();
    let codes = document["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
    let known: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(codes.iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>(), known, "{WRITE}");
    let mut open = vec![&document];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(path)) = fields.get("$ref") {
                    let pointer = path.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{path}");
                }
                open.extend(fields.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_document_and_its_page_are_served_to_everybody_and_nothing_else_is() {
    let public = endpoint::ALL.iter().filter(|it| it.action == Action::Public);
    assert_eq!(public.map(|it| it.path).collect::<Vec<_>>(), ["/v1/openapi.json", "/v1/docs"]);
    let cloud = Cloud::start().await;
    let (status, headers, body) = cloud.raw(("GET", "/v1/openapi.json"), None, "").await;
    assert_eq!((status, &headers["content-type"]), (200, &"application/json".parse().unwrap()));
    assert_eq!(String::from_utf8(body).unwrap(), DOCUMENT);
    let (status, headers, body) = cloud.raw(("GET", "/v1/docs"), None, "").await;
    assert_eq!(status, 200);
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    assert!(String::from_utf8(body).unwrap().contains("POST /v1/apps/{app}/machines"));
}
