//! The copy of the view's documents on the disk.
//!
//! Never written in place: a new file is made durable, then takes the old one's name.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const FORMAT: u32 = 1;

#[derive(Deserialize)]
struct Loaded {
    format: u32,
    documents: BTreeMap<String, Box<RawValue>>,
}

#[derive(Serialize)]
struct Saved<'a> {
    format: u32,
    documents: BTreeMap<&'a str, &'a RawValue>,
}

/// Returns the documents; none if there is no copy.
pub(super) fn load(path: &Path) -> io::Result<BTreeMap<String, Bytes>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let loaded: Loaded = serde_json::from_slice(&text)?;
    if loaded.format != FORMAT {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is of another format"));
    }
    let bytes = |value: &RawValue| Bytes::copy_from_slice(value.get().as_bytes());
    Ok(loaded.documents.iter().map(|(key, value)| (key.clone(), bytes(value))).collect())
}

pub(super) fn save(path: &Path, documents: &BTreeMap<String, Bytes>) -> io::Result<()> {
    let mut saved = Saved { format: FORMAT, documents: BTreeMap::new() };
    for (key, value) in documents {
        saved.documents.insert(key, serde_json::from_slice(value)?);
    }
    let fresh = path.with_added_extension("new");
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    let mut writer = BufWriter::new(file);
    serde_json::to_writer(&mut writer, &saved)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
