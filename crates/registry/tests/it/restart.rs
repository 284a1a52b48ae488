//! The registry killed in the middle of a push, and started again on the same folder.
//!
//! Never a clean stop: the process gets SIGKILL.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use perch_types::image::Digest;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cloud::{Cloud, lacks, run};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// How often the registry is killed while images are pushed.
const MOMENTS: u64 = 12;

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// Returns bytes that do not pack: the same for the same seed.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// The registry's process; killed with the test.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(root: &Path, address: &str) -> Self {
        let tests = std::env::current_exe().expect("test binary");
        let profile = tests.parent().and_then(Path::parent).expect("profile folder");
        let mut command = Command::new(profile.join("examples/serve"));
        command.arg(root).arg(address).stdout(Stdio::piped());
        let mut process = command.spawn().expect("registry");
        let mut line = String::new();
        let output = process.stdout.take().expect("output");
        BufReader::new(output).read_line(&mut line).expect("address");
        Self { process, address: line.trim().to_owned() }
    }

    fn kill(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
    }

    fn url(&self, path: &str) -> String {
        if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("http://{}{path}", self.address)
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone in every test that passes.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

struct Setting {
    folder: TempDir,
    http: reqwest::Client,
}

impl Setting {
    fn new() -> Self {
        let http = reqwest::Client::builder().no_proxy().build().expect("client");
        Self { folder: tempfile::tempdir().expect("folder"), http }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("registry")
    }

    fn start(&self) -> Server {
        Server::start(&self.root(), "127.0.0.1:0")
    }

    async fn send(
        &self,
        method: &str,
        url: String,
        body: Vec<u8>,
    ) -> reqwest::Result<reqwest::Response> {
        let method = method.parse().expect("method");
        self.http.request(method, url).header("content-type", MANIFEST).body(body).send().await
    }

    async fn status(&self, server: &Server, method: &str, path: &str, body: &[u8]) -> u16 {
        let sent = self.send(method, server.url(path), body.to_vec()).await;
        sent.expect("answer").status().as_u16()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root().join(folder)).expect("folder");
        entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    }

    fn uploaded_bytes(&self) -> u64 {
        let entries = fs::read_dir(self.root().join("uploads")).expect("uploads");
        let files = entries.filter_map(Result::ok).filter_map(|entry| entry.metadata().ok());
        files.map(|data| data.len()).sum()
    }

    /// Nothing in the folder is half of anything.
    fn is_whole(&self) {
        assert_eq!(self.names("uploads"), Vec::<String>::new());
        for name in self.names("blobs") {
            let bytes = fs::read(self.root().join("blobs").join(&name)).expect("blob");
            assert_eq!(digest_of(&bytes).hex(), name);
        }
    }
}

fn upload(bytes: &[u8]) -> String {
    format!("/v2/app/blobs/uploads/?digest={}", digest_of(bytes))
}

#[tokio::test]
async fn an_upload_cut_off_by_a_kill_is_gone_and_can_be_sent_again() {
    let setting = Setting::new();
    let bytes = noise(1, 4_000_000);
    let mut server = setting.start();
    // Half in a chunk that ended, a part in one that did not.
    let begun = setting.send("POST", server.url("/v2/app/blobs/uploads/"), Vec::new()).await;
    let location = begun.expect("begun").headers()["location"].to_str().expect("text").to_owned();
    let first = &bytes[..2_000_000];
    assert_eq!(setting.status(&server, "PATCH", &location, first).await, 202);
    let mut stream = tokio::net::TcpStream::connect(&server.address).await.expect("connect");
    let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("head");
    stream.write_all(&bytes[2_000_000..3_500_000]).await.expect("part");
    let deadline = Instant::now() + Duration::from_secs(20);
    while setting.uploaded_bytes() <= 2_000_000 {
        assert!(Instant::now() < deadline, "the second part begins");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.kill();
    let mut end = Vec::new();
    // Closed without an answer: what came is not taken for an answer.
    drop(stream.read_to_end(&mut end).await);
    assert_eq!(end, b"");

    let server = setting.start();
    setting.is_whole();
    let blob = format!("/v2/app/blobs/{}", digest_of(&bytes));
    assert_eq!(setting.status(&server, "HEAD", &blob, b"").await, 404);
    // An upload does not survive by design; its sender is told in the specification's words.
    for (method, path) in [("GET", &location), ("PATCH", &location), ("DELETE", &location)] {
        let answer = setting.send(method, server.url(path), Vec::new()).await.expect("answer");
        assert_eq!(answer.status(), 404);
        let text = answer.text().await.expect("text");
        assert!(text.contains("BLOB_UPLOAD_UNKNOWN"), "{text}");
    }
    assert_eq!(setting.status(&server, "POST", &upload(&bytes), &bytes).await, 201);
    let got = setting.send("GET", server.url(&blob), Vec::new()).await.expect("get");
    assert!(got.bytes().await.expect("body") == bytes);
}

/// Pushes an image; nothing when the registry went away.
async fn push(setting: &Setting, server: &Server, number: u64) -> Option<String> {
    let layer = noise(number, 700_000);
    let config = format!("{{\"n\":{number}}}").into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": digest_of(&config), "size": config.len() },
        "layers": [{ "mediaType": LAYER, "digest": digest_of(&layer), "size": layer.len() }],
    });
    let tag = format!("v{number}");
    for (method, path, body) in [
        ("POST", upload(&layer), layer),
        ("POST", upload(&config), config),
        ("PUT", format!("/v2/app/manifests/{tag}"), manifest.to_string().into_bytes()),
    ] {
        let answer = setting.send(method, server.url(&path), body).await.ok()?;
        assert_eq!(answer.status(), 201, "{path}");
    }
    Some(tag)
}

/// Everything that has a tag is there to its last byte.
async fn all_tagged_is_whole(setting: &Setting, server: &Server, promised: &BTreeSet<String>) {
    let listed = setting.send("GET", server.url("/v2/app/tags/list"), Vec::new()).await;
    let text = listed.expect("list").text().await.expect("text");
    let list: serde_json::Value = serde_json::from_str(&text).expect("json");
    let tags: BTreeSet<String> = list["tags"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tag| tag.as_str().expect("tag").to_owned())
        .collect();
    assert!(promised.is_subset(&tags), "what was acknowledged stays: {promised:?} {tags:?}");
    for tag in tags {
        let path = format!("/v2/app/manifests/{tag}");
        let got = setting.send("GET", server.url(&path), Vec::new()).await.expect("get");
        assert_eq!(got.status(), 200, "{tag}");
        let bytes = got.bytes().await.expect("body");
        let manifest: serde_json::Value = serde_json::from_slice(&bytes).expect("manifest");
        for part in [&manifest["config"], &manifest["layers"][0]] {
            let digest = part["digest"].as_str().expect("digest");
            let path = format!("/v2/app/blobs/{digest}");
            let got = setting.send("GET", server.url(&path), Vec::new()).await.expect("get");
            let bytes = got.bytes().await.expect("body");
            assert_eq!(digest_of(&bytes).as_str(), digest, "{tag}");
        }
    }
}

#[tokio::test]
async fn killed_at_any_moment_of_a_push() {
    let setting = Setting::new();
    let mut promised = BTreeSet::new();
    let mut number = 0;
    let mut server = setting.start();
    let began = Instant::now();
    promised.extend(push(&setting, &server, number).await);
    let took = began.elapsed();
    for moment in 0..MOMENTS {
        let after = took.mul_f64((moment as f64 + 0.5) / MOMENTS as f64);
        number += 1;
        let pushing = push(&setting, &server, number);
        if let Ok(Some(tag)) = tokio::time::timeout(after, pushing).await {
            promised.insert(tag);
        }
        server.kill();
        server = setting.start();
        setting.is_whole();
        all_tagged_is_whole(&setting, &server, &promised).await;
    }
    // The next push of what was cut off ends as if nothing had been.
    let again = push(&setting, &server, number).await;
    assert_eq!(again, Some(format!("v{number}")));
    server.kill();
    let before = setting.names("blobs").len();
    let cloud = Cloud::on(&setting.root()).await;
    cloud.clock.advance(Duration::from_hours(24 * 365 * 20));
    let report = cloud.registry.gc(&BTreeSet::new()).await.expect("gc");
    let images = cloud.registry.images().await.expect("images");
    let tags = images.first().expect("image").tags.len();
    assert_eq!(setting.names("blobs").len(), 3 * tags, "tagged images, and nothing else");
    assert_eq!(report.blobs, u64::try_from(before - 3 * tags).expect("fits"));
    assert!(promised.len() <= tags);
}

/// An image on disk, in the layout that skopeo reads, with a layer that takes a while.
fn layout(folder: &Path) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("folder");
    let keep = |bytes: &[u8]| -> Digest {
        let digest = digest_of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).expect("blob");
        digest
    };
    let mut builder = tar::Builder::new(Vec::new());
    let content = noise(99, 48 << 20);
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "noise", content.as_slice()).expect("tar");
    let layer = builder.into_inner().expect("tar");
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&layer)] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": keep(config.as_bytes()), "size": config.len() },
        "layers": [{ "mediaType": LAYER, "digest": keep(&layer), "size": layer.len() }],
    })
    .to_string();
    let entry = json!({
        "mediaType": MANIFEST, "digest": keep(manifest.as_bytes()), "size": manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": "latest" },
    });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    fs::write(folder.join("index.json"), index).expect("index");
    fs::write(folder.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").expect("layout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_recovers_from_a_restart_in_the_middle_of_its_push() {
    if lacks("skopeo_recovers_from_a_restart_in_the_middle_of_its_push", &["skopeo"]) {
        return;
    }
    let setting = Setting::new();
    let source = setting.folder.path().join("layout");
    layout(&source);
    let mut server = setting.start();
    let address = server.address.clone();
    let from = format!("oci:{}:latest", source.display());
    let to = format!("docker://{address}/app:v1");
    let copy = || {
        let (from, to) = (from.clone(), to.clone());
        async move { run("skopeo", &["copy", "--dest-tls-verify=false", &from, &to]).await }
    };
    let copying = tokio::spawn(copy());
    let deadline = Instant::now() + Duration::from_secs(60);
    while setting.uploaded_bytes() < 4 << 20 {
        assert!(Instant::now() < deadline && !copying.is_finished(), "the layer comes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.kill();
    let server = Server::start(&setting.root(), &address);
    setting.is_whole();
    // It says what went wrong and ends; nothing half-made is served.
    let ended = copying.await.expect("task");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("writing blob"), "{said}");
    let path = "/v2/app/manifests/v1";
    assert_eq!(setting.status(&server, "GET", path, b"").await, 404);
    // The same command again goes through.
    let again = copy().await;
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(setting.status(&server, "GET", path, b"").await, 200);
    setting.is_whole();
    assert_eq!(setting.names("blobs").len(), 3);
}
