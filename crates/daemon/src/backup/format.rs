//! What an archive of a server's state looks like.
//!
//! Never reads or writes a file. A tar archive: first [`HEADER`], then every file under [`STATE`],
//! then [`MANIFEST`] and [`SEAL`]. The manifest is last, so that an archive that was cut off has
//! none; the header is first, so that a newer form is refused before anything is read.

use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail, ensure};
use perch_types::{HostId, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::certificate::hex;

/// The form that this release writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 1;
/// What the archive is, as its first entry.
pub(super) const HEADER: &str = "perch-backup.json";
/// The folder of the server's files in the archive.
pub(super) const STATE: &str = "state";
/// What is in the archive.
pub(super) const MANIFEST: &str = "manifest.json";
/// SHA-256 of header and manifest, hexadecimal.
pub(super) const SEAL: &str = "manifest.sha256";
/// The largest header.
pub(super) const HEADER_BYTES_MAX: u64 = 64 << 10;
/// The largest manifest.
pub(super) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// What an archive is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Its form.
    pub(super) format: u32,
    /// The release that wrote it.
    pub(crate) perch: String,
    /// Whose state it is.
    pub(crate) host: HostId,
    /// When it was taken.
    pub(crate) created_at: Timestamp,
}

/// All that is readable of an archive of any form.
#[derive(Debug, Deserialize)]
struct AnyHeader {
    format: u32,
    #[serde(default)]
    perch: String,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    /// Below the data folder.
    pub(super) path: String,
    pub(super) size_bytes: u64,
    pub(super) sha256: String,
    pub(super) mode: u32,
}

/// What is in an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) files: Vec<File>,
}

/// Reads a header, refusing one of a newer form by its release's name.
pub(super) fn header(bytes: &[u8]) -> Result<Header> {
    let not_one = "read its first entry: this is no backup of perchd";
    let any: AnyHeader = serde_json::from_slice(bytes).context(not_one)?;
    ensure!(
        any.format <= FORMAT,
        "it is of form {}, written by perchd {}; this release reads up to {FORMAT}: use the newer \
         release",
        any.format,
        any.perch
    );
    serde_json::from_slice(bytes).context(not_one)
}

/// Returns what holds header and manifest together.
pub(super) fn seal(header: &[u8], manifest: &[u8]) -> String {
    hex(&Sha256::new().chain_update(header).chain_update(manifest).finalize())
}

/// Returns a path below the data folder if it stays there.
pub(super) fn inside(path: &Path) -> Result<&str> {
    let text = path.to_str().with_context(|| format!("read the path {path:?}: it is not UTF-8"))?;
    let is_plain = |part| matches!(part, Component::Normal(_));
    if text.is_empty() || !path.components().all(is_plain) {
        bail!("the path {text:?} leads outside the data folder");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_form_is_refused_by_the_name_of_its_release() {
        let newer = br#"{"format": 2, "perch": "9.9.9", "unknown": true}"#;
        let error = header(newer).unwrap_err().to_string();
        assert!(error.contains("9.9.9") && error.contains("newer"), "{error}");
        header(b"{}").unwrap_err();
        header(b"\0\0").unwrap_err();
    }

    #[test]
    fn paths_stay_inside() {
        for (path, fine) in [
            ("front/directory.db", true),
            ("host-id", true),
            ("/etc/passwd", false),
            ("../x", false),
            ("a/../../x", false),
            ("", false),
            ("./a", false),
        ] {
            assert_eq!(inside(Path::new(path)).is_ok(), fine, "{path}");
        }
    }
}
