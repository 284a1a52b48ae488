//! Images made of nothing but the test server, or of a shell.
//!
//! Never pulls anything: one static file is one layer.

use std::fs;
use std::path::Path;
use std::process::Command;

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
    let config = json!({
        "Entrypoint": [PROGRAM],
        "Cmd": cmd,
        "Env": ["PATH=/", "FROM_IMAGE=yes"],
        "WorkingDir": "/work",
    });
    layout_of(folder, &layer(program)?, &config)
}

/// Writes an OCI layout whose image has a shell and the usual small programs, and runs a script;
/// returns whether there is a static busybox to make it of.
///
/// # Errors
/// When a file cannot be read or written.
pub fn shell_layout(folder: &Path, script: &str) -> Result<bool> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let Some(busybox) = found.into_iter().find(|path| path.is_file()) else {
        return Ok(false);
    };
    let config = json!({"Cmd": ["/bin/sh", "-c", script], "Env": ["PATH=/bin"]});
    layout_of(folder, &shell_layer(busybox)?, &config)?;
    Ok(true)
}

fn layout_of(folder: &Path, layer: &[u8], config: &Value) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("make the layout")?;
    let diff_id = format!("sha256:{}", digest(layer));
    let (layer_digest, layer_size) = put(&blobs, layer)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
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

fn shell_layer(busybox: &Path) -> Result<Vec<u8>> {
    let list = Command::new(busybox).arg("--list").output().context("ask busybox what it has")?;
    let mut archive = tar::Builder::new(Vec::new());
    let mut folder = |name: &str, mode| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        archive.append_data(&mut header, name, &[][..]).context("write the layer")
    };
    folder("bin/", 0o755)?;
    folder("tmp/", 0o1777)?;
    let bytes = fs::read(busybox).context("read busybox")?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, "bin/busybox", bytes.as_slice()).context("write the layer")?;
    for name in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive
            .append_link(&mut header, format!("bin/{name}"), "busybox")
            .context("write the layer")?;
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
