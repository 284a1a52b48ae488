//! Images made for a test, and stores to pull them into.
//!
//! Never made by the code under test.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use perch_oci::{ClientConfig, Credentials, Endpoint, ImageStore, Limits, Privilege, StoreConfig};
use perch_types::Secret;
use perch_types::image::{Digest, Reference};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::registry::{Reply, Seen};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("pack");
    encoder.finish().expect("pack")
}

/// Returns a tar with one plain file.
pub(crate) fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1);
    builder.append_data(&mut header, name, content).expect("tar");
    builder.into_inner().expect("tar")
}

/// Returns bytes that do not pack: the same for the same seed.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(count);
    bytes
}

/// An image: its blobs by the paths they are asked for, under the repository `app`.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Digest,
    pub(crate) layers: Vec<Digest>,
    blobs: HashMap<String, Vec<u8>>,
}

impl Image {
    /// An image of unpacked layers, packed with gzip.
    pub(crate) fn new(tars: &[Vec<u8>]) -> Self {
        let packed: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| digest_of(tar)).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": { "Cmd": ["/x"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes();
        let layers: Vec<_> = packed
            .iter()
            .map(|layer| json!({ "mediaType": LAYER, "digest": digest_of(layer), "size": layer.len() }))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": { "mediaType": CONFIG, "digest": digest_of(&config), "size": config.len() },
        });
        let digests: Vec<Digest> = packed.iter().map(|layer| digest_of(layer)).collect();
        let blobs = packed.into_iter().chain([config.clone()]);
        Self {
            manifest: manifest.to_string().into_bytes(),
            config: digest_of(&config),
            layers: digests,
            blobs: blobs.map(|bytes| (digest_of(&bytes).to_string(), bytes)).collect(),
        }
    }

    /// A small one.
    pub(crate) fn small() -> Self {
        Self::new(&[tar("hello", b"hello"), tar("noise", &noise(1, 50_000))])
    }

    pub(crate) fn digest(&self) -> Digest {
        digest_of(&self.manifest)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Vec<u8> {
        self.blobs.get(digest.as_str()).expect("blob").clone()
    }

    /// Answers as an honest registry does, whatever the repository; parts of blobs too.
    pub(crate) fn answer(&self, seen: &Seen) -> Reply {
        let (before, name) = seen.path.rsplit_once('/').unwrap_or_default();
        if before.ends_with("/manifests") {
            return Reply::new(200, self.manifest.clone()).with("content-type", MANIFEST);
        }
        let Some(bytes) = self.blobs.get(name) else {
            return Reply::new(404, "{}");
        };
        match seen.start() {
            Some(start) if start < bytes.len() => {
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::new(206, bytes.get(start..).expect("part")).with("content-range", range)
            }
            Some(_) => Reply::new(416, ""),
            None => Reply::new(200, bytes.clone()),
        }
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().expect("reference")
}

/// The program that is killed, and the unpacking child.
pub(crate) fn puller() -> PathBuf {
    let tests = std::env::current_exe().expect("test binary");
    let profile = tests.parent().and_then(Path::parent).expect("profile folder");
    profile.join("examples/puller")
}

pub(crate) fn child() -> Privilege {
    Privilege::Child {
        program: puller(),
        args: vec!["unpack".to_owned()],
        host_id_base: perch_oci::unpack::HOST_ID_BASE,
    }
}

pub(crate) fn credentials() -> Credentials {
    Credentials { user: "alice".to_owned(), password: Secret::new("secret") }
}

/// A store in a folder, with endpoints by registry name.
pub(crate) struct Shelf {
    pub(crate) root: PathBuf,
    pub(crate) endpoints: Vec<(String, Endpoint)>,
    pub(crate) limits: Limits,
    pub(crate) privilege: Privilege,
}

impl Shelf {
    /// One that knows `registry.internal` at a URL.
    pub(crate) fn new(root: &Path, base_url: String) -> Self {
        let endpoint = Endpoint { base_url, credentials: None };
        Self {
            root: root.join("store"),
            endpoints: vec![("registry.internal".to_owned(), endpoint)],
            limits: Limits { pull_timeout: Duration::from_secs(60), ..Limits::default() },
            privilege: Privilege::InProcess,
        }
    }

    pub(crate) async fn open(self) -> ImageStore {
        let client = ClientConfig {
            endpoints: self.endpoints.into_iter().collect(),
            allow_private_addresses: false,
        };
        let Self { root, limits, privilege, .. } = self;
        ImageStore::open(StoreConfig { root, client, limits, privilege }).await.expect("store")
    }
}

/// Returns the names under a store's `tmp/`, but for the folder of shared layers when it is empty.
pub(crate) fn left_in(root: &Path) -> Vec<String> {
    let names = |path: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).expect("folder");
        entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    };
    let temporary = root.join("store/tmp");
    let mut left: Vec<String> =
        names(&temporary).into_iter().filter(|name| name != "layers").collect();
    left.extend(names(&temporary.join("layers")).into_iter().map(|n| format!("layers/{n}")));
    left
}

/// Tells, once, what this machine lacks.
pub(crate) fn lacks(test: &str) -> bool {
    let mkfs = ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
        .iter()
        .any(|folder| Path::new(folder).join("mkfs.erofs").exists());
    let root = rustix::process::geteuid().is_root();
    if mkfs && root {
        return false;
    }
    perch_testkit::skipped(test, if root { "mkfs.erofs" } else { "root" });
    true
}
