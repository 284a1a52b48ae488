//! The OCI distribution specification 1.1 as a table: each row is one request and what must come back.
//!
//! Never in another order: a row relies on what those above it did. Each is first sent without a
//! token, with a wrong one and by a stranger, and must then have done nothing.

use perch_registry::Limits;
use perch_types::image::Digest;
use reqwest::Response;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::cloud::Cloud;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const BLOB_BYTES_MAX: usize = 64 * 1024;
/// Stands in a path for the `Location` of the last answer that had one.
const LOCATION: &str = "{location}";

fn digest_of(bytes: &[u8]) -> String {
    Digest::from_sha256(&Sha256::digest(bytes).into()).to_string()
}

/// One request and its answer.
struct Row {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    /// The error's code; empty where the answer has no error body.
    code: &'static str,
    /// Headers of the answer.
    says: Vec<(&'static str, String)>,
    /// The answer's body, where it matters.
    gives: Option<Vec<u8>>,
    /// The path names no repository: a stranger gets the same answer.
    nobodys: bool,
}

fn row(method: &'static str, path: impl Into<String>, status: u16, code: &'static str) -> Row {
    Row {
        method,
        path: path.into(),
        headers: Vec::new(),
        body: Vec::new(),
        status,
        code,
        says: Vec::new(),
        gives: None,
        nobodys: false,
    }
}

impl Row {
    fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn says(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.says.push((name, value.into()));
        self
    }

    fn gives(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.gives = Some(bytes.into());
        self
    }

    fn nobodys(mut self) -> Self {
        self.nobodys = true;
        self
    }
}

fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).map(|v| v.to_str().expect("text").to_owned()).unwrap_or_default()
}

fn code(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
}

/// Sends every row in turn.
async fn check(cloud: &Cloud, rows: Vec<Row>) {
    let mut location = String::new();
    for row in rows {
        let path = row.path.replace(LOCATION, &location);
        let name = format!("{} {path}", row.method);
        refused(cloud, &row, &path).await;
        let mut request = cloud.request(row.method, &path).body(row.body.clone());
        for (header, value) in &row.headers {
            request = request.header(*header, value);
        }
        let response = request.send().await.expect(&name);
        assert_eq!(response.status().as_u16(), row.status, "{name}");
        assert_eq!(header(&response, "docker-distribution-api-version"), "registry/2.0", "{name}");
        for (wanted, value) in &row.says {
            assert_eq!(header(&response, wanted), *value, "{name}: {wanted}");
        }
        if !header(&response, "location").is_empty() {
            location = header(&response, "location");
        }
        let body = response.bytes().await.expect("body");
        let found = if row.status >= 400 { code(&body) } else { String::new() };
        assert_eq!(found, row.code, "{name}");
        if let Some(wanted) = row.gives {
            assert_eq!(String::from_utf8_lossy(&body), String::from_utf8_lossy(&wanted), "{name}");
        }
    }
}

/// Sends a row's request as it must not be answered.
async fn refused(cloud: &Cloud, row: &Row, path: &str) {
    let head = row.method == "HEAD";
    let method: reqwest::Method = row.method.parse().expect("method");
    let url = format!("http://{}{path}", cloud.address);
    for (shown, status, wanted) in [
        (None, 401, "UNAUTHORIZED"),
        (Some(("alice", "wrong")), 401, "UNAUTHORIZED"),
        (Some(("bob", "secret")), 403, "DENIED"),
    ] {
        if status == 403 && row.nobodys {
            continue;
        }
        let mut request = cloud.http.request(method.clone(), &url);
        if let Some((user, password)) = shown {
            request = request.basic_auth(user, Some(password));
        }
        let response = request.send().await.expect("send");
        let name = format!("{} {path} as {shown:?}", row.method);
        assert_eq!(response.status().as_u16(), status, "{name}");
        let challenge = header(&response, "www-authenticate");
        assert_eq!(challenge.starts_with("Basic realm="), status == 401, "{name}");
        assert_eq!(code(&response.bytes().await.expect("body")), if head { "" } else { wanted });
    }
}

async fn cloud() -> Cloud {
    let limits = Limits { blob_bytes_max: BLOB_BYTES_MAX as u64, ..Limits::default() };
    Cloud::with_limits(limits).await
}

fn upload(digest: &str) -> String {
    format!("/v2/app/blobs/uploads/?digest={digest}")
}

fn begin() -> Row {
    row("POST", "/v2/app/blobs/uploads/", 202, "").says("range", "0-0")
}

fn chunk(range: &str, body: &str, status: u16, code: &'static str) -> Row {
    row("PATCH", LOCATION, status, code).with("content-range", range).body(body)
}

fn finish(digest: &str, status: u16, code: &'static str) -> Row {
    row("PUT", format!("{LOCATION}?digest={digest}"), status, code)
}

#[tokio::test]
async fn what_is_not_there() {
    let none = digest_of(b"none");
    let short = "/v2/app/blobs/sha256:00";
    let other = format!("/v2/app/blobs/sha512:{}", "0".repeat(128));
    let id = format!("/v2/app/blobs/uploads/{}", "0".repeat(32));
    let referrers = json!({ "manifests": [], "mediaType": INDEX, "schemaVersion": 2 });
    let rows = vec![
        row("GET", "/v2/", 200, "").nobodys().gives("{}"),
        row("GET", "/v2/app/tags/list", 404, "NAME_UNKNOWN"),
        row("GET", "/v2/app/manifests/v1", 404, "MANIFEST_UNKNOWN"),
        row("HEAD", "/v2/app/manifests/v1", 404, ""),
        row("GET", format!("/v2/app/manifests/{none}"), 404, "MANIFEST_UNKNOWN"),
        row("DELETE", "/v2/app/manifests/v1", 404, "MANIFEST_UNKNOWN"),
        row("DELETE", format!("/v2/app/manifests/{none}"), 404, "MANIFEST_UNKNOWN"),
        row("GET", format!("/v2/app/blobs/{none}"), 404, "BLOB_UNKNOWN"),
        row("HEAD", format!("/v2/app/blobs/{none}"), 404, ""),
        row("DELETE", format!("/v2/app/blobs/{none}"), 404, "BLOB_UNKNOWN"),
        row("GET", short, 400, "DIGEST_INVALID").nobodys(),
        row("GET", other, 400, "DIGEST_INVALID").nobodys(),
        row("GET", "/v2/APP/tags/list", 400, "NAME_INVALID").nobodys(),
        row("GET", "/v2/app/manifests/.v1", 400, "MANIFEST_INVALID").nobodys(),
        row("GET", id.clone(), 404, "BLOB_UPLOAD_UNKNOWN"),
        row("PATCH", id.clone(), 404, "BLOB_UPLOAD_UNKNOWN"),
        row("PUT", format!("{id}?digest={none}"), 404, "BLOB_UPLOAD_UNKNOWN"),
        row("DELETE", id, 404, "BLOB_UPLOAD_UNKNOWN"),
        row("GET", "/v2/app/blobs/uploads/not-an-id", 404, "BLOB_UPLOAD_UNKNOWN").nobodys(),
        row("GET", "/v2/app/blobs/uploads/", 405, "UNSUPPORTED"),
        row("POST", "/v2/app/manifests/v1", 405, "UNSUPPORTED"),
        // The specification has no such list, and what there is is nobody's to list.
        row("GET", "/v2/_catalog", 404, "UNSUPPORTED").nobodys(),
        // With referrers, what nothing refers to has an empty list, not a 404.
        row("GET", format!("/v2/app/referrers/{none}"), 200, "")
            .says("content-type", INDEX)
            .gives(referrers.to_string()),
        row("GET", "/v2/app/referrers/latest", 400, "DIGEST_INVALID").nobodys(),
    ];
    check(&cloud().await, rows).await;
}

#[tokio::test]
async fn blobs_come_in_every_way_that_is_specified() {
    let (whole, wrong) = (digest_of(b"hello world"), digest_of(b"another"));
    let blob = format!("/v2/app/blobs/{whole}");
    let large = vec![7; BLOB_BYTES_MAX + 1];
    let rows = vec![
        // Whole, in one request.
        row("POST", upload("sha256:00"), 400, "DIGEST_INVALID").body("hello world"),
        row("POST", upload(&wrong), 400, "DIGEST_INVALID").body("hello world"),
        row("HEAD", blob.clone(), 404, ""),
        row("POST", upload(&digest_of(&large)), 413, "SIZE_INVALID").body(large.clone()),
        row("POST", upload(&whole), 201, "")
            .body("hello world")
            .says("location", blob.clone())
            .says("docker-content-digest", whole.clone()),
        row("DELETE", blob.clone(), 202, ""),
        // POST, then all with PUT.
        begin(),
        finish(&whole, 201, "").body("hello world").says("location", blob.clone()),
        row("DELETE", blob.clone(), 202, ""),
        // POST, PATCH as a stream, PUT.
        begin(),
        row("PATCH", LOCATION, 202, "").body("hello").says("range", "0-4"),
        row("PATCH", LOCATION, 202, "").body(" world").says("range", "0-10"),
        finish(&whole, 201, ""),
        finish(&whole, 405, "UNSUPPORTED"),
        row("DELETE", blob.clone(), 202, ""),
        // In chunks, one of them out of order, one twice, one of another length than it says.
        begin(),
        chunk("0-4", "hello", 202, "").says("range", "0-4"),
        chunk("9-12", "late", 416, "BLOB_UPLOAD_INVALID"),
        chunk("0-4", "hello", 416, "BLOB_UPLOAD_INVALID"),
        chunk("5-9", "no", 400, "SIZE_INVALID"),
        chunk("x", "no", 416, "BLOB_UPLOAD_INVALID"),
        row("GET", LOCATION, 204, "").says("range", "0-4"),
        chunk("5-8", " wor", 202, "").says("range", "0-8"),
        finish(&whole, 201, "").with("content-range", "9-10").body("ld"),
        // Parts of it.
        row("HEAD", blob.clone(), 200, "").says("content-length", "11"),
        row("GET", blob.clone(), 200, "").gives("hello world").says("accept-ranges", "bytes"),
        row("GET", blob.clone(), 206, "")
            .with("range", "bytes=6-8")
            .gives("wor")
            .says("content-range", "bytes 6-8/11"),
        row("GET", blob.clone(), 206, "").with("range", "bytes=-5").gives("world"),
        row("GET", blob.clone(), 206, "").with("range", "bytes=6-").gives("world"),
        row("GET", blob.clone(), 416, "")
            .with("range", "bytes=11-")
            .says("content-range", "bytes */11"),
        row("DELETE", blob.clone(), 202, ""),
        row("DELETE", blob, 404, "BLOB_UNKNOWN"),
        // The wrong digest ends an upload, and so does its sender.
        begin(),
        row("PATCH", LOCATION, 202, "").body("hello"),
        finish(&wrong, 400, "DIGEST_INVALID"),
        row("GET", LOCATION, 404, "BLOB_UPLOAD_UNKNOWN"),
        begin(),
        row("PUT", LOCATION, 400, "DIGEST_INVALID"),
        row("PATCH", LOCATION, 413, "SIZE_INVALID").body(large),
        row("DELETE", LOCATION, 204, ""),
        row("PATCH", LOCATION, 404, "BLOB_UPLOAD_UNKNOWN").body("x"),
    ];
    let cloud = cloud().await;
    check(&cloud, rows).await;
    assert_eq!(cloud.registry.usage().await.expect("usage").uploads, 0);
}

#[tokio::test]
async fn blobs_are_mounted_from_where_one_may_read() {
    let whole = digest_of(b"hello world");
    let there = format!("/v2/app/sub/blobs/{whole}");
    let mount =
        |digest: &str, from: &str| format!("/v2/app/sub/blobs/uploads/?mount={digest}&from={from}");
    let rows = vec![
        row("POST", upload(&whole), 201, "").body("hello world"),
        row("POST", mount(&digest_of(b"none"), "app"), 202, ""),
        row("POST", mount(&whole, "app/none"), 202, ""),
        row("POST", mount(&whole, "other"), 202, ""),
        row("POST", mount(&whole, "../app"), 202, ""),
        row("POST", format!("/v2/app/sub/blobs/uploads/?mount={whole}"), 202, ""),
        row("HEAD", there.clone(), 404, ""),
        row("POST", mount(&whole, "app"), 201, "").says("location", there.clone()),
        row("GET", there, 200, "").gives("hello world"),
    ];
    check(&cloud().await, rows).await;
}

fn manifest(config: &str, extra: Value) -> Vec<u8> {
    let mut body = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": { "mediaType": "a/b", "digest": config, "size": 2 },
    });
    if let (Some(body), Value::Object(extra)) = (body.as_object_mut(), extra) {
        body.extend(extra);
    }
    body.to_string().into_bytes()
}

#[tokio::test]
async fn manifests_tags_and_referrers() {
    let (config, none) = (digest_of(b"{}"), digest_of(b"none"));
    let image = manifest(&config, json!({}));
    let digest = digest_of(&image);
    let by_digest = format!("/v2/app/manifests/{digest}");
    let put = |name: &str, body: &[u8], status, code| {
        row("PUT", format!("/v2/app/manifests/{name}"), status, code)
            .with("content-type", MANIFEST)
            .body(body)
    };
    let index = |part: &str| {
        let part = json!({ "mediaType": MANIFEST, "digest": part, "size": image.len() });
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [part] }).to_string()
    };
    let put_index = |part: &str, status, code| {
        let row = row("PUT", "/v2/app/manifests/index", status, code);
        row.with("content-type", INDEX).body(index(part))
    };
    let subject = json!({ "mediaType": MANIFEST, "digest": digest, "size": image.len() });
    let referrer = manifest(&config, json!({ "subject": subject, "artifactType": "a/sig" }));
    let tags = |query: &str, list: Value| {
        let body = json!({ "name": "app", "tags": list }).to_string();
        row("GET", format!("/v2/app/tags/list{query}"), 200, "").gives(body)
    };
    let next = "</v2/app/tags/list?n=1&last=index>; rel=\"next\"";
    let rows = vec![
        put("v1", &image, 400, "MANIFEST_BLOB_UNKNOWN"),
        row("POST", upload(&config), 201, "").body("{}"),
        put("v1", b"{", 400, "MANIFEST_INVALID"),
        put("v1", &vec![b' '; (4 << 20) + 1], 413, "SIZE_INVALID"),
        row("PUT", "/v2/app/manifests/v1", 400, "MANIFEST_INVALID").body(image.clone()),
        put(&none, &image, 400, "DIGEST_INVALID"),
        put("v1", &image, 201, "")
            .says("location", by_digest.clone())
            .says("docker-content-digest", digest.clone()),
        put(&digest, &image, 201, ""),
        put("v2", &image, 201, ""),
        row("GET", "/v2/app/manifests/v1", 200, "")
            .gives(image.clone())
            .says("content-type", MANIFEST)
            .says("docker-content-digest", digest.clone()),
        row("HEAD", by_digest.clone(), 200, "").says("content-length", image.len().to_string()),
        put_index(&none, 400, "MANIFEST_BLOB_UNKNOWN"),
        put_index(&digest, 201, ""),
        put(&digest_of(&referrer), &referrer, 201, "").says("oci-subject", digest.clone()),
        row("GET", format!("/v2/app/referrers/{digest}?artifactType=a/sig"), 200, "")
            .says("content-type", INDEX)
            .says("oci-filters-applied", "artifactType"),
        tags("", json!(["index", "v1", "v2"])),
        tags("?n=1", json!(["index"])).says("link", next),
        tags("?n=1&last=v1", json!(["v2"])).says("link", ""),
        tags("?n=9&last=v2", json!([])),
        tags("?n=0", json!([])).says("link", ""),
        row("GET", "/v2/app/tags/list?n=x", 400, "UNSUPPORTED"),
        // A tag goes alone, a digest with its tags.
        row("DELETE", "/v2/app/manifests/v2", 202, ""),
        row("DELETE", "/v2/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        row("GET", by_digest.clone(), 200, ""),
        row("DELETE", by_digest.clone(), 202, ""),
        row("GET", by_digest, 404, "MANIFEST_UNKNOWN"),
        tags("", json!(["index"])),
    ];
    check(&cloud().await, rows).await;
}
