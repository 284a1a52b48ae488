//! A server's state out of an archive, onto a server that has none.
//!
//! Never over a state that is there, and never half: all of it is read and compared with the
//! manifest in a folder aside before the first file gets its place.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use perch_store::SqliteStore;
use perch_types::clock::Clock;
use rustix::fs::{Gid, Uid};
use sha2::{Digest as _, Sha256};

use super::Hashing;
use super::format::{
    self, HEADER, HEADER_BYTES_MAX, Header, MANIFEST, MANIFEST_BYTES_MAX, Manifest, SEAL, STATE,
};
use super::state::FILES_MAX;
use crate::certificate::hex;
use crate::config::Config;
use crate::identity;
use crate::roles::front::DIRECTORY_FILE;

/// Where the state lies until all of it is known to be good; while the folder is there, the server
/// does not start.
pub(super) const STAGE: &str = "restoring";

/// Refuses a folder in which a restoration did not end.
pub(crate) fn ensure_restored(data: &Path) -> Result<()> {
    ensure!(
        !data.join(STAGE).exists(),
        "a restoration into `{}` did not end: empty the folder and run `perchd restore` again",
        data.display()
    );
    Ok(())
}

/// Puts the state out of an archive into the data folder; returns what the archive is.
pub(crate) fn restore(config: &Config, archive: &Path, clock: Arc<dyn Clock>) -> Result<Header> {
    let data = &config.data_dir;
    let uids = (
        identity::user_id(&config.user, "--user")?,
        identity::user_id(&config.keys_user, "--keys-user")?,
    );
    let file = File::open(archive).with_context(|| format!("open `{}`", archive.display()))?;
    ensure_empty(data)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(data)
        .with_context(|| format!("make folder `{}`", data.display()))?;
    let _lock = identity::lock(data)?;
    let stage = data.join(STAGE);
    remove(&stage)?;
    let restored = fill(&stage, &file, uids, clock)
        .with_context(|| format!("restore `{}`", archive.display()));
    match restored {
        Ok(header) => {
            take_place(&stage, data)?;
            Ok(header)
        }
        Err(error) => {
            remove(&stage)?;
            Err(error)
        }
    }
}

/// Only a restoration that did not end may be there: it had taken nobody's place.
fn ensure_empty(data: &Path) -> Result<()> {
    let entries = match fs::read_dir(data) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("list `{}`", data.display()))?,
    };
    for entry in entries {
        let name = entry.with_context(|| format!("list `{}`", data.display()))?.file_name();
        if name != STAGE && name != identity::LOCK_FILE {
            bail!(
                "`{}` is not empty: it has `{}`. A backup is restored onto an empty server only; \
                 `perchd remove` takes a server away, `--data-dir` names another folder",
                data.display(),
                name.to_string_lossy()
            );
        }
    }
    Ok(())
}

fn fill(stage: &Path, file: &File, uids: (u32, u32), clock: Arc<dyn Clock>) -> Result<Header> {
    DirBuilder::new().mode(0o711).create(stage).context("make a folder")?;
    let (header, manifest) = unpack(stage, file)?;
    ensure!(identity::has_host_id(stage), "it has no id of a host");
    let host = identity::host_id(stage)?;
    ensure!(host == header.host, "its header names host {}, its files {host}", header.host);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let now = clock.now();
        perch_host::take_restored_state(&stage.join(identity::HOST_DIR), now)
            .await
            .context("use the host's state")?;
        let directory = stage.join(identity::FRONT_DIR).join(DIRECTORY_FILE);
        if directory.is_file() {
            // It is only looked at: a newer schema is refused here rather than at the start.
            drop(SqliteStore::open(directory, clock).context("use the directory")?);
        }
        anyhow::Ok(())
    })?;
    drop(runtime);
    own(stage, &manifest, uids)?;
    Ok(header)
}

/// Unpacks the archive and compares it with its manifest.
fn unpack(stage: &Path, file: &File) -> Result<(Header, Manifest)> {
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut entries = archive.entries().context("read the archive")?;
    let mut next = || -> Result<Option<Entry<'_, _>>> {
        let Some(entry) = entries.next() else { return Ok(None) };
        let entry = entry.context("read an entry: the archive is damaged or cut off")?;
        ensure!(entry.header().entry_type().is_file(), "it has an entry that is not a file");
        let path = entry.path().context("read an entry's path")?.into_owned();
        let path = format::inside(&path)?.to_owned();
        Ok(Some(Entry { path, content: entry }))
    };
    let Some(first) = next()?.filter(|entry| entry.path == HEADER) else {
        bail!("it does not begin with `{HEADER}`: this is no backup of perchd");
    };
    let header_bytes = first.bytes(HEADER_BYTES_MAX)?;
    let header = format::header(&header_bytes)?;
    let mut seen = BTreeMap::new();
    let manifest_bytes = loop {
        let Some(entry) = next()? else {
            bail!("it ends before its manifest: it is cut off");
        };
        if entry.path == MANIFEST {
            break entry.bytes(MANIFEST_BYTES_MAX)?;
        }
        ensure!(seen.len() < FILES_MAX, "it has more than {FILES_MAX} files");
        let path = Path::new(&entry.path).strip_prefix(STATE).map(format::inside);
        let Ok(Ok(path)) = path.map(|path| path.map(str::to_owned)) else {
            bail!("`{}` does not belong into a backup", entry.path);
        };
        let written = entry.unpack(&stage.join(&path))?;
        ensure!(seen.insert(path.clone(), written).is_none(), "it has `{path}` twice");
    };
    let Some(seal) = next()?.filter(|entry| entry.path == SEAL) else {
        bail!("it ends before its last checksum: it is cut off");
    };
    let seal = seal.bytes(HEADER_BYTES_MAX)?;
    ensure!(
        format::seal(&header_bytes, &manifest_bytes).as_bytes() == seal,
        "its manifest was changed: the checksum is another"
    );
    ensure!(next()?.is_none(), "there is something behind its end");
    let manifest: Manifest =
        serde_json::from_slice(&manifest_bytes).context("read its manifest")?;
    compare(&manifest, seen)?;
    Ok((header, manifest))
}

/// What was unpacked of a file: its size and its SHA-256.
type Written = (u64, String);

fn compare(manifest: &Manifest, mut seen: BTreeMap<String, Written>) -> Result<()> {
    for file in &manifest.files {
        let Some((size_bytes, sha256)) = seen.remove(&file.path) else {
            bail!("`{}` is missing", file.path);
        };
        ensure!(
            (size_bytes, &sha256) == (file.size_bytes, &file.sha256),
            "`{}` was changed: its checksum is another",
            file.path
        );
    }
    match seen.keys().next() {
        Some(path) => bail!("`{path}` is not in its manifest"),
        None => Ok(()),
    }
}

struct Entry<'a, R: Read> {
    path: String,
    content: tar::Entry<'a, R>,
}

impl<R: Read> Entry<'_, R> {
    fn bytes(self, bytes_max: u64) -> Result<Vec<u8>> {
        let Self { path, content } = self;
        ensure!(content.size() <= bytes_max, "`{path}` is larger than {bytes_max} bytes");
        let wanted = content.size();
        let mut bytes = Vec::new();
        content
            .take(bytes_max)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read `{path}`"))?;
        ensure!(bytes.len() as u64 == wanted, "`{path}` is cut off");
        Ok(bytes)
    }

    fn unpack(self, target: &Path) -> Result<Written> {
        let Self { path, content } = self;
        let what = || format!("unpack `{path}`");
        if let Some(parent) = target.parent() {
            DirBuilder::new().recursive(true).mode(0o711).create(parent).with_context(what)?;
        }
        let wanted = content.size();
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(target)
            .with_context(what)?;
        let mut hashing = Hashing { inner: content, hash: Sha256::new(), bytes: 0 };
        std::io::copy(&mut hashing, &mut file).with_context(what)?;
        ensure!(hashing.bytes == wanted, "`{path}` is cut off");
        file.sync_all().with_context(what)?;
        Ok((hashing.bytes, hex(&hashing.hash.finalize())))
    }
}

/// Gives files their mode, and those of a process without rights their owner.
fn own(stage: &Path, manifest: &Manifest, uids: (u32, u32)) -> Result<()> {
    for file in &manifest.files {
        let path = stage.join(&file.path);
        let what = || format!("give `{}` its owner", path.display());
        let mode = fs::Permissions::from_mode(file.mode & 0o777);
        fs::set_permissions(&path, mode).with_context(what)?;
        let owner = identity::owner_of(Path::new(&file.path), uids);
        if owner != 0 {
            let parents = path.ancestors().take_while(|above| *above != stage);
            for one in parents {
                let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
                rustix::fs::chown(one, Some(uid), Some(gid)).with_context(what)?;
            }
        }
    }
    // What looking at the databases left beside them is made anew by their owners.
    for file in manifest.files.iter().filter(|file| file.path.ends_with(".db")) {
        for ending in ["-wal", "-shm", ".lock", ".reserve"] {
            let mut path = stage.join(&file.path).into_os_string();
            path.push(ending);
            remove(Path::new(&path))?;
        }
    }
    Ok(())
}

/// Moves everything to its place. The folder goes last: until then the server does not start.
fn take_place(stage: &Path, data: &Path) -> Result<()> {
    let what = || format!("move the state into `{}`", data.display());
    for entry in fs::read_dir(stage).with_context(what)? {
        let entry = entry.with_context(what)?;
        fs::rename(entry.path(), data.join(entry.file_name())).with_context(what)?;
    }
    let sync = || File::open(data)?.sync_all();
    sync().with_context(what)?;
    fs::remove_dir(stage).with_context(what)?;
    sync().with_context(what)
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}
