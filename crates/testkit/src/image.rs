//! Images made of nothing but the test server.
//!
//! Never pulls anything: one static file is one layer.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Where the program lies in the image.
pub const PROGRAM: &str = "/perch-testserver";

/// Writes an OCI layout into `folder` whose image runs `program` with `cmd`; returns nothing, the
/// layout's one image has the tag `latest`.
///
/// # Errors
/// When a file cannot be read or written.
pub fn layout(folder: &Path, program: &Path, cmd: &[&str]) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("make the layout")?;
    let layer = layer(program)?;
    let diff_id = format!("sha256:{}", digest(&layer));
    let (layer_digest, layer_size) = put(&blobs, &layer)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": [PROGRAM],
            "Cmd": cmd,
            "Env": ["PATH=/", "FROM_IMAGE=yes"],
            "WorkingDir": "/work",
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }))?;
    let (config_digest, config_size) = put(&blobs, &config)?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config_digest, config_size),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer_digest, layer_size)],
    }))?;
    let (manifest_digest, manifest_size) = put(&blobs, &manifest)?;
    let mut entry =
        descriptor("application/vnd.oci.image.manifest.v1+json", &manifest_digest, manifest_size);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    fs::write(
        folder.join("index.json"),
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?,
    )
    .context("write the index")?;
    fs::write(folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
        .context("write the layout's version")
}

fn layer(program: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(program).with_context(|| format!("read `{}`", program.display()))?;
    let mut archive = tar::Builder::new(Vec::new());
    for folder in ["work/", "tmp/", "etc/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        archive.append_data(&mut header, folder, &[][..]).context("write the layer")?;
    }
    let users = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/work:/bin/sh\n";
    for (name, content, mode) in
        [("perch-testserver", bytes.as_slice(), 0o755), ("etc/passwd", users.as_slice(), 0o644)]
    {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).context("write the layer")?;
    }
    archive.into_inner().context("write the layer")
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn put(blobs: &Path, bytes: &[u8]) -> Result<(String, usize)> {
    let digest = digest(bytes);
    fs::write(blobs.join(&digest), bytes).context("write a blob")?;
    Ok((digest, bytes.len()))
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}
