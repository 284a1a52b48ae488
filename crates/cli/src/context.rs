//! The build context: a source folder as one packed file.
//!
//! Never follows a symbolic link and never reads outside of the folder (security property F8);
//! links travel as links.

mod ignore;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::TryStreamExt as _;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use perch_client::{BoxError, RequestBody};
use perch_types::build::CONTEXT_BYTES_MAX;
use rustix::fs::{Mode, OFlags};
use tar::{Builder, EntryType, Header};
use tokio_util::io::ReaderStream;

pub(crate) use ignore::Ignore;

/// The size, before packing, from which a context is worth a warning.
pub(crate) const LARGE_BYTES: u64 = 100 * 1024 * 1024;
/// The most files of a context.
const ENTRIES_MAX: u64 = 1_000_000;
/// Where the list of what stays out is looked for.
const IGNORE_FILE: &str = ".dockerignore";
/// The largest list, in bytes.
const IGNORE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a context cannot be packed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    /// A file or folder cannot be read.
    #[error("read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file became shorter while it was read.
    #[error("file `{}` changed while it was read", path.display())]
    Changed { path: PathBuf },
    /// The packed file cannot be written.
    #[error("write the packed context to a temporary file")]
    Write { source: io::Error },
    /// It is larger than what a server takes.
    #[error("the packed context is larger than {} MiB", CONTEXT_BYTES_MAX / 1024 / 1024)]
    TooLarge,
    /// It has more files than what a server takes.
    #[error("the context has more than {ENTRIES_MAX} files")]
    TooMany,
}

/// A packed context.
#[derive(Debug)]
pub(crate) struct Context {
    file: File,
    /// How many files, folders and links.
    pub(crate) entries: u64,
    /// Bytes of the files.
    pub(crate) bytes: u64,
    /// Bytes as sent.
    pub(crate) packed_bytes: u64,
    /// Paths that are neither file, folder nor link, and stay out.
    pub(crate) skipped: Vec<String>,
}

/// What will be packed, before it is.
#[derive(Debug)]
pub(crate) struct Listing {
    root: PathBuf,
    entries: Vec<(String, fs::Metadata)>,
    /// Bytes of the files.
    pub(crate) bytes: u64,
    skipped: Vec<String>,
}

impl Listing {
    /// Lists a source folder without what its ignore file names; `keep` are sent in any case.
    pub(crate) fn of(
        root: &Path,
        ignore_file: Option<&str>,
        keep: &[&str],
    ) -> Result<Self, ContextError> {
        let name = ignore_file.unwrap_or(IGNORE_FILE);
        let ignore = match File::open(root.join(name)) {
            Ok(file) => {
                let mut text = String::new();
                file.take(IGNORE_BYTES_MAX)
                    .read_to_string(&mut text)
                    .map_err(|source| ContextError::Read { path: root.join(name), source })?;
                Ignore::parse(&text)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && ignore_file.is_none() => {
                Ignore::default()
            }
            Err(source) => {
                return Err(ContextError::Read { path: root.join(name), source });
            }
        };
        let mut listing =
            Self { root: root.to_owned(), entries: Vec::new(), bytes: 0, skipped: Vec::new() };
        listing.add_folder("", &ignore, keep)?;
        Ok(listing)
    }

    fn add_folder(
        &mut self,
        folder: &str,
        ignore: &Ignore,
        keep: &[&str],
    ) -> Result<(), ContextError> {
        let path = self.root.join(folder);
        let error = |source| ContextError::Read { path: path.clone(), source };
        let mut names = Vec::new();
        for found in fs::read_dir(&path).map_err(error)? {
            let name = found.map_err(error)?.file_name();
            match name.into_string() {
                Ok(name) => names.push(name),
                Err(name) => self.skipped.push(name.to_string_lossy().into_owned()),
            }
        }
        names.sort_unstable();
        for name in names {
            let relative = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let path = self.root.join(&relative);
            let metadata = fs::symlink_metadata(&path)
                .map_err(|source| ContextError::Read { path: path.clone(), source })?;
            let kept = keep.contains(&relative.as_str());
            let ignored = ignore.matches(&relative) && !kept;
            if metadata.is_dir() {
                let has_kept = keep.iter().any(|it| it.starts_with(&format!("{relative}/")));
                if ignored && !ignore.has_exceptions() && !has_kept {
                    continue;
                }
                if !ignored {
                    self.push(relative.clone(), metadata)?;
                }
                self.add_folder(&relative, ignore, keep)?;
            } else if ignored {
                // Stays out.
            } else if metadata.is_file() || metadata.is_symlink() {
                self.push(relative, metadata)?;
            } else {
                self.skipped.push(relative);
            }
        }
        Ok(())
    }

    fn push(&mut self, path: String, metadata: fs::Metadata) -> Result<(), ContextError> {
        if u64::try_from(self.entries.len()).unwrap_or(u64::MAX) >= ENTRIES_MAX {
            return Err(ContextError::TooMany);
        }
        if metadata.is_file() {
            self.bytes = self.bytes.saturating_add(metadata.len());
        }
        self.entries.push((path, metadata));
        Ok(())
    }

    /// Packs what was listed into a temporary file that nobody else sees.
    pub(crate) fn pack(self) -> Result<Context, ContextError> {
        let write = |source| ContextError::Write { source };
        let file = tempfile::tempfile().map_err(write)?;
        let mut tar = Builder::new(GzEncoder::new(file, Compression::fast()));
        tar.follow_symlinks(false);
        for (path, metadata) in &self.entries {
            append(&mut tar, &self.root, path, metadata)?;
        }
        let mut file = tar.into_inner().and_then(GzEncoder::finish).map_err(write)?;
        file.flush().map_err(write)?;
        let packed_bytes = file.metadata().map_err(write)?.len();
        if packed_bytes > CONTEXT_BYTES_MAX {
            return Err(ContextError::TooLarge);
        }
        file.seek(SeekFrom::Start(0)).map_err(write)?;
        Ok(Context {
            file,
            entries: u64::try_from(self.entries.len()).unwrap_or(u64::MAX),
            bytes: self.bytes,
            packed_bytes,
            skipped: self.skipped,
        })
    }
}

impl Context {
    /// Returns the packed bytes as a request's body.
    pub(crate) fn into_body(self) -> RequestBody {
        let stream = ReaderStream::new(tokio::fs::File::from_std(self.file));
        let frames = stream.map_ok(Frame::data).map_err(|error| -> BoxError { Box::new(error) });
        StreamBody::new(frames).boxed_unsync()
    }
}

fn append(
    tar: &mut Builder<GzEncoder<File>>,
    root: &Path,
    relative: &str,
    metadata: &fs::Metadata,
) -> Result<(), ContextError> {
    let path = root.join(relative);
    let read = |source| ContextError::Read { path: path.clone(), source };
    let write = |source| ContextError::Write { source };
    let mut header = Header::new_gnu();
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(metadata.permissions().mode() & 0o777);
    header.set_size(0);
    if metadata.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        let target = fs::read_link(&path).map_err(read)?;
        return tar.append_link(&mut header, relative, target).map_err(write);
    }
    if metadata.is_dir() {
        header.set_entry_type(EntryType::Directory);
        return tar.append_data(&mut header, relative, io::empty()).map_err(write);
    }
    // Between the listing and now the file may have become a link: such a one is refused.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| read(errno.into()))?;
    let file = File::from(file);
    let size = file.metadata().map_err(read)?.len();
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    let mut reader = Counted { inner: file.take(size), read: 0 };
    tar.append_data(&mut header, relative, &mut reader).map_err(write)?;
    if reader.read != size {
        return Err(ContextError::Changed { path });
    }
    Ok(())
}

/// Counts what was read, to notice a file that became shorter.
struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read = self.read.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        Ok(read)
    }
}

/// Returns bytes in words: `12 kB`, `3.4 MB`.
pub(crate) fn size_in_words(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1000 => format!("{bytes} bytes"),
        1000..1_000_000 => format!("{} kB", bytes / 1000),
        1_000_000..1_000_000_000 => format!("{} MB", tenths(1_000_000)),
        _ => format!("{} GB", tenths(1_000_000_000)),
    }
}
