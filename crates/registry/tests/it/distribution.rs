//! The distribution specification, point by point, by raw HTTP.
//!
//! Never through a client library that would hide a header.

use perch_oci::client::{Client, ClientConfig};
use perch_types::image::Digest;
use reqwest::Response;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::cloud::Cloud;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn digest_of(bytes: &[u8]) -> String {
    Digest::from_sha256(&Sha256::digest(bytes).into()).to_string()
}

fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).map(|v| v.to_str().expect("text").to_owned()).unwrap_or_default()
}

async fn code(response: Response) -> String {
    let body: Value = serde_json::from_slice(&response.bytes().await.expect("body")).expect("json");
    body["errors"][0]["code"].as_str().expect("code").to_owned()
}

async fn push(cloud: &Cloud, repository: &str, bytes: &[u8]) -> String {
    let digest = digest_of(bytes);
    let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    let response = cloud.request("POST", &path).body(bytes.to_vec()).send().await.expect("post");
    assert_eq!(response.status(), 201);
    digest
}

fn manifest(config: &str, config_size: usize, extra: Value) -> Vec<u8> {
    let mut body = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": { "mediaType": CONFIG, "digest": config, "size": config_size },
    });
    if let (Some(body), Value::Object(extra)) = (body.as_object_mut(), extra) {
        body.extend(extra);
    }
    serde_json::to_vec(&body).expect("json")
}

async fn put(cloud: &Cloud, path: &str, body: &[u8]) -> Response {
    let request = cloud.request("PUT", path).header("content-type", MANIFEST);
    request.body(body.to_vec()).send().await.expect("put")
}

#[tokio::test]
async fn access_is_checked_before_anything_else() {
    let cloud = Cloud::start().await;
    let base = format!("http://{}", cloud.address);
    let bare = cloud.http.get(format!("{base}/v2/")).send().await.expect("get");
    assert_eq!(bare.status(), 401);
    assert!(header(&bare, "www-authenticate").starts_with("Basic realm="));
    assert_eq!(code(bare).await, "UNAUTHORIZED");
    assert_eq!(cloud.request("GET", "/v2/").send().await.expect("get").status(), 200);
    let blob = push(&cloud, "app", b"private").await;
    for (method, path) in [
        ("GET", format!("/v2/app/blobs/{blob}")),
        ("HEAD", format!("/v2/app/blobs/{blob}")),
        ("POST", "/v2/app/blobs/uploads/".to_owned()),
        ("GET", "/v2/app/tags/list".to_owned()),
        ("GET", format!("/v2/app/referrers/{blob}")),
        ("DELETE", format!("/v2/app/blobs/{blob}")),
        ("PUT", "/v2/base/x/manifests/latest".to_owned()),
    ] {
        let response = cloud.request_as("bob", method, &path).send().await.expect("send");
        assert_eq!(response.status(), 403, "{method} {path}");
    }
    // What one repository has is neither seen nor taken through another.
    let own = cloud.request_as("bob", "GET", &format!("/v2/other/blobs/{blob}"));
    assert_eq!(own.send().await.expect("get").status(), 404);
    let mount = format!("/v2/other/blobs/uploads/?mount={blob}&from=app");
    let response = cloud.request_as("bob", "POST", &mount).send().await.expect("post");
    assert_eq!(response.status(), 202);
    let own = cloud.request_as("bob", "HEAD", &format!("/v2/other/blobs/{blob}"));
    assert_eq!(own.send().await.expect("head").status(), 404);
}

#[tokio::test]
async fn blobs_in_chunks_parts_and_mounts() {
    let cloud = Cloud::start().await;
    let begun = cloud.request("POST", "/v2/app/blobs/uploads/").send().await.expect("post");
    assert_eq!(begun.status(), 202);
    let location = header(&begun, "location");
    let chunk = |range: &'static str, body: &'static str| {
        cloud.request("PATCH", &location).header("content-range", range).body(body).send()
    };
    let first = chunk("0-4", "hello").await.expect("patch");
    assert_eq!((first.status().as_u16(), header(&first, "range")), (202, "0-4".to_owned()));
    assert_eq!(chunk("9-12", "late").await.expect("patch").status(), 416);
    let status = cloud.request("GET", &location).send().await.expect("get");
    assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-4".to_owned()));
    assert_eq!(chunk("5-10", " world").await.expect("patch").status(), 202);
    let digest = digest_of(b"hello world");
    let finish = format!("{location}?digest={digest}");
    let done = cloud.request("PUT", &finish).send().await.expect("put");
    assert_eq!(done.status(), 201);
    assert_eq!(header(&done, "docker-content-digest"), digest);
    let path = header(&done, "location");
    let head = cloud.request("HEAD", &path).send().await.expect("head");
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "11".to_owned()));
    let part = cloud.request("GET", &path).header("range", "bytes=6-8").send().await.expect("get");
    assert_eq!(part.status(), 206);
    assert_eq!(header(&part, "content-range"), "bytes 6-8/11");
    assert_eq!(part.text().await.expect("text"), "wor");
    let past = cloud.request("GET", &path).header("range", "bytes=11-").send().await.expect("get");
    assert_eq!(past.status(), 416);
    let mount = format!("/v2/app/sub/blobs/uploads/?mount={digest}&from=app");
    assert_eq!(cloud.request("POST", &mount).send().await.expect("post").status(), 201);
    let gone = cloud.request("DELETE", &path).send().await.expect("delete");
    assert_eq!(gone.status(), 202);
    assert_eq!(cloud.request("GET", &path).send().await.expect("get").status(), 404);
    let sub = format!("/v2/app/sub/blobs/{digest}");
    let left = cloud.request("GET", &sub).send().await.expect("get").text().await.expect("text");
    assert_eq!(left, "hello world");
}

#[tokio::test]
async fn wrong_uploads_leave_nothing() {
    let cloud = Cloud::start().await;
    let wrong = digest_of(b"something else");
    let path = format!("/v2/app/blobs/uploads/?digest={wrong}");
    let response = cloud.request("POST", &path).body("bytes").send().await.expect("post");
    assert_eq!(response.status(), 400);
    assert_eq!(code(response).await, "DIGEST_INVALID");
    for digest in [wrong.clone(), digest_of(b"bytes")] {
        let get = cloud.request("GET", &format!("/v2/app/blobs/{digest}")).send().await;
        assert_eq!(get.expect("get").status(), 404);
    }
    let usage = cloud.registry.usage().await.expect("usage");
    assert_eq!((usage.blobs, usage.uploads), (0, 0));
    let begun = cloud.request("POST", "/v2/app/blobs/uploads/").send().await.expect("post");
    let location = header(&begun, "location");
    assert_eq!(cloud.request("PUT", &location).send().await.expect("put").status(), 400);
    let cancel = cloud.request("DELETE", &location).send().await.expect("delete");
    assert_eq!(cancel.status(), 204);
    let again = cloud.request("PATCH", &location).body("x").send().await.expect("patch");
    assert_eq!((again.status().as_u16(), code(again).await), (404, "BLOB_UPLOAD_UNKNOWN".into()));
}

#[tokio::test]
async fn manifests_need_their_parts_and_one_type() {
    let cloud = Cloud::start().await;
    let config = push(&cloud, "app", b"{}").await;
    let good = manifest(&config, 2, json!({}));
    let missing = manifest(&digest_of(b"none"), 4, json!({}));
    let layer = json!([{ "mediaType": LAYER, "digest": config, "size": 2, "urls": ["http://x/"] }]);
    let table = [
        (missing, "MANIFEST_BLOB_UNKNOWN"),
        (manifest(&config, 3, json!({})), "MANIFEST_INVALID"),
        (manifest(&config, 2, json!({ "manifests": [] })), "MANIFEST_INVALID"),
        (manifest(&config, 2, json!({ "mediaType": "text/plain" })), "MANIFEST_INVALID"),
        (manifest(&config, 2, json!({ "schemaVersion": 1 })), "MANIFEST_INVALID"),
        (manifest(&config, 2, json!({ "layers": layer })), "MANIFEST_INVALID"),
        (b"{".to_vec(), "MANIFEST_INVALID"),
    ];
    for (body, expected) in table {
        let response = put(&cloud, "/v2/app/manifests/v1", &body).await;
        assert_eq!((response.status().as_u16(), code(response).await), (400, expected.to_owned()));
    }
    let other = format!("/v2/app/manifests/{}", digest_of(b"x"));
    assert_eq!(code(put(&cloud, &other, &good).await).await, "DIGEST_INVALID");
    let done = put(&cloud, "/v2/app/manifests/v1", &good).await;
    let digest = digest_of(&good);
    assert_eq!(
        (done.status().as_u16(), header(&done, "docker-content-digest")),
        (201, digest.clone())
    );
    for name in ["v1", &digest] {
        let path = format!("/v2/app/manifests/{name}");
        let got = cloud.request("GET", &path).header("accept", MANIFEST).send().await.expect("get");
        assert_eq!(header(&got, "content-type"), MANIFEST);
        assert_eq!(got.bytes().await.expect("body"), good);
        let refused = cloud.request("GET", &path).header("accept", "text/html").send().await;
        assert_eq!(refused.expect("get").status(), 404);
    }
    let gone = cloud.request("DELETE", &format!("/v2/app/manifests/{digest}")).send().await;
    assert_eq!(gone.expect("delete").status(), 202);
    let tag = cloud.request("GET", "/v2/app/manifests/v1").send().await.expect("get");
    assert_eq!((tag.status().as_u16(), code(tag).await), (404, "MANIFEST_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn lists_have_pages_and_referrers_filters() {
    let cloud = Cloud::start().await;
    let none = cloud.request("GET", "/v2/app/tags/list").send().await.expect("get");
    assert_eq!((none.status().as_u16(), code(none).await), (404, "NAME_UNKNOWN".to_owned()));
    let config = push(&cloud, "app", b"{}").await;
    let subject = manifest(&config, 2, json!({}));
    for tag in ["b", "a", "c"] {
        let path = format!("/v2/app/manifests/{tag}");
        assert_eq!(put(&cloud, &path, &subject).await.status(), 201);
    }
    let page = cloud.request("GET", "/v2/app/tags/list?n=2").send().await.expect("get");
    let link = header(&page, "link");
    assert_eq!(link, "</v2/app/tags/list?n=2&last=b>; rel=\"next\"");
    let body: Value = serde_json::from_str(&page.text().await.expect("text")).expect("json");
    assert_eq!(body["tags"], json!(["a", "b"]));
    let next = cloud.request("GET", "/v2/app/tags/list?n=2&last=b").send().await.expect("get");
    assert_eq!(header(&next, "link"), "");
    let descriptor =
        json!({ "mediaType": MANIFEST, "digest": digest_of(&subject), "size": subject.len() });
    let extra =
        json!({ "subject": descriptor, "artifactType": "a/b", "annotations": { "k": "v" } });
    let referrer = manifest(&config, 2, extra);
    let path = format!("/v2/app/manifests/{}", digest_of(&referrer));
    let done = put(&cloud, &path, &referrer).await;
    assert_eq!(header(&done, "oci-subject"), digest_of(&subject));
    let path = format!("/v2/app/referrers/{}", digest_of(&subject));
    for (query, count) in [("", 1), ("?artifactType=a/b", 1), ("?artifactType=c/d", 0)] {
        let got = cloud.request("GET", &format!("{path}{query}")).send().await.expect("get");
        assert_eq!(header(&got, "content-type"), "application/vnd.oci.image.index.v1+json");
        let body: Value = serde_json::from_str(&got.text().await.expect("text")).expect("json");
        let entries = body["manifests"].as_array().expect("list");
        assert_eq!(entries.len(), count, "{query}");
        assert!(entries.iter().all(|entry| entry["annotations"]["k"] == "v"));
    }
}

#[tokio::test]
async fn a_reference_to_a_private_address_is_refused() {
    let cloud = Cloud::start().await;
    let client = Client::new(ClientConfig::default()).expect("client");
    let reference = format!("{}/app:v1", cloud.address).parse().expect("reference");
    let error = client.resolve(&reference, None).await.expect_err("refused");
    assert!(error.to_string().contains("private address"), "{error}");
}
