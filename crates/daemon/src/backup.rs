//! The state of a server in one archive, taken while it runs.
//!
//! Never stops anything and never changes the state. All databases are frozen one right after the
//! other, so they show one moment; the other files of the state are written once and never
//! changed, and one that goes meanwhile was needed by nothing in the databases.

mod format;
mod restore;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use perch_durable::Frozen;
use perch_types::clock::Clock;
use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use self::format::{FORMAT, HEADER, Header, MANIFEST, Manifest, SEAL, STATE};
pub(crate) use self::restore::{ensure_restored, restore};
use self::state::Found;
use crate::certificate::hex;
use crate::config::Config;
use crate::identity;

/// Where databases are copied to, in the data folder, before they go into the archive.
const COPIES: &str = "backing-up";

/// What a backup is.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// How many files it has.
    pub(crate) files: usize,
    /// Their size.
    pub(crate) bytes: u64,
}

impl fmt::Display for Taken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, files, bytes } = self;
        writeln!(formatter, "{}: {files} files, {} KiB", path.display(), bytes.div_ceil(1 << 10))?;
        writeln!(formatter, "  whoever reads it can run the server: it has all tokens and keys")?;
        for (name, why) in state::left_out() {
            writeln!(formatter, "  not in it: {name} ({why})")?;
        }
        Ok(())
    }
}

/// Writes the state of the server in `config` into a new archive: `target`, or a file in it that
/// is named after the host and the time.
pub(crate) fn backup(config: &Config, target: &Path, clock: &dyn Clock) -> Result<Taken> {
    let data = &config.data_dir;
    ensure!(identity::has_host_id(data), "there is no server in `{}`", data.display());
    let header = Header {
        format: FORMAT,
        perch: env!("CARGO_PKG_VERSION").to_owned(),
        host: identity::host_id(data)?,
        created_at: clock.now(),
    };
    let path = if target.is_dir() { target.join(file_name(&header)) } else { target.to_owned() };
    ensure!(!path.exists(), "`{}` is there already", path.display());
    let mut unfinished = path.clone().into_os_string();
    unfinished.push(".unfinished");
    let unfinished = Unfinished(unfinished.into());
    let what = || format!("write `{}`", unfinished.0.display());
    // Nobody else may read it: it has every key and token of the server.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished.0)
        .with_context(what)?;
    let manifest = write(data, &header, &file).with_context(what)?;
    file.sync_all().with_context(what)?;
    fs::rename(&unfinished.0, &path)
        .with_context(|| format!("move the archive to `{}`", path.display()))?;
    let bytes = manifest.files.iter().map(|file| file.size_bytes).sum();
    Ok(Taken { path, files: manifest.files.len(), bytes })
}

/// An archive that goes again unless it is finished, and so moved away.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

fn file_name(header: &Header) -> String {
    let time: String = header
        .created_at
        .to_string()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(15)
        .collect();
    format!("perch-{}-{time}.tar", header.host)
}

fn write(data: &Path, header: &Header, file: &File) -> Result<Manifest> {
    let found = state::list(data)?;
    let frozen = freeze(data, &found)?;
    let copies = Copies::make(data.join(COPIES))?;
    let mut archive = Archive(tar::Builder::new(BufWriter::new(file)));
    let header = serde_json::to_vec(header).context("write the header")?;
    archive.add_bytes(HEADER, &header)?;
    let mut manifest = Manifest::default();
    for (number, (one, frozen)) in found.into_iter().zip(frozen).enumerate() {
        let source = match frozen {
            Some(frozen) => {
                let copy = copies.folder.join(number.to_string());
                frozen.copy_to(&copy).with_context(|| format!("copy `{}`", one.path))?;
                copy
            }
            None => data.join(&one.path),
        };
        manifest.files.extend(archive.add_file(&source, one)?);
    }
    let manifest_bytes = serde_json::to_vec(&manifest).context("write the manifest")?;
    archive.add_bytes(MANIFEST, &manifest_bytes)?;
    archive.add_bytes(SEAL, format::seal(&header, &manifest_bytes).as_bytes())?;
    archive.0.into_inner().context("end the archive")?.flush().context("end the archive")?;
    Ok(manifest)
}

/// The folder of copies; it goes when the backup ends, and with the next one after a crash.
struct Copies {
    folder: PathBuf,
    _lock: File,
}

impl Copies {
    fn make(folder: PathBuf) -> Result<Self> {
        let what = || format!("use folder `{}`", folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(what)?;
        let lock = File::open(&folder).with_context(what)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .context("take a backup: another one is being taken")?;
        for left in fs::read_dir(&folder).with_context(what)? {
            fs::remove_file(left.with_context(what)?.path()).with_context(what)?;
        }
        Ok(Self { folder, _lock: lock })
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Freezes the databases among the files, all before the first is copied.
fn freeze(data: &Path, found: &[Found]) -> Result<Vec<Option<Frozen>>> {
    let freeze = |one: &Found| -> Result<Option<Frozen>> {
        if !one.is_database {
            return Ok(None);
        }
        let frozen = Frozen::open(data.join(&one.path));
        frozen.map(Some).with_context(|| format!("read `{}`", one.path))
    };
    found.iter().map(freeze).collect()
}

struct Archive<W: Write>(tar::Builder<W>);

impl<W: Write> Archive<W> {
    fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = entry_header(bytes.len() as u64);
        self.0
            .append_data(&mut header, name, bytes)
            .with_context(|| format!("add `{name}` to the archive"))
    }

    /// Adds a file; nothing if it has gone.
    fn add_file(&mut self, source: &Path, found: Found) -> Result<Option<format::File>> {
        let file = match File::open(source) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("open `{}`", source.display()))?,
        };
        let what = || format!("add `{}` to the archive", found.path);
        let size_bytes = file.metadata().with_context(what)?.len();
        let mut hashing = Hashing { inner: file.take(size_bytes), hash: Sha256::new(), bytes: 0 };
        let name = Path::new(STATE).join(&found.path);
        self.0.append_data(&mut entry_header(size_bytes), name, &mut hashing).with_context(what)?;
        ensure!(hashing.bytes == size_bytes, "`{}` changed while it was read", found.path);
        let sha256 = hex(&hashing.hash.finalize());
        let Found { path, mode, .. } = found;
        Ok(Some(format::File { path, size_bytes, sha256, mode }))
    }
}

fn entry_header(size_bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(size_bytes);
    header
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        self.bytes = self.bytes.saturating_add(count as u64);
        Ok(count)
    }
}
