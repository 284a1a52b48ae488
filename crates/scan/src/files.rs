//! What a detector sees of a source folder.
//!
//! Never more than the first [`FILE_BYTES_MAX`] bytes of a file.

use std::collections::BTreeMap;

use crate::text;

/// The most that is read of one file, in bytes.
pub const FILE_BYTES_MAX: usize = 256 * 1024;

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A file that can be read.
    File,
    /// A folder.
    Folder,
    /// A symbolic link that leads out of the source folder or nowhere, a socket, a device.
    Other,
}

/// One path of a source folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Relative to the source folder, with `/` between the parts.
    pub path: String,
    /// What stands there.
    pub kind: Kind,
}

/// The files of a source folder.
pub trait Files {
    /// Returns the paths, sorted. The list may be cut; what matters stands near the top.
    fn entries(&self) -> &[Entry];

    /// Returns the first [`FILE_BYTES_MAX`] bytes of a file.
    fn read(&self, path: &str) -> Option<Vec<u8>>;
}

impl dyn Files + '_ {
    /// Returns whether there is a file at a path.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.entries().iter().any(|entry| entry.kind == Kind::File && entry.path == path)
    }

    /// Returns a file as text with `\n` line ends, whatever it was encoded in.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        if !self.has(path) {
            return None;
        }
        self.read(path).map(|bytes| text::decode(&bytes))
    }

    /// Returns the files whose path ends with `ending`.
    pub fn ending_with(&self, ending: &str) -> impl Iterator<Item = &str> {
        self.entries()
            .iter()
            .filter(move |entry| entry.kind == Kind::File && entry.path.ends_with(ending))
            .map(|entry| entry.path.as_str())
    }
}

/// Files held in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryFiles {
    entries: Vec<Entry>,
    contents: BTreeMap<String, Vec<u8>>,
}

impl MemoryFiles {
    /// Makes a source folder of paths and contents.
    #[must_use]
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let contents: BTreeMap<String, Vec<u8>> = files
            .into_iter()
            .map(|(path, bytes)| {
                (path.to_owned(), bytes.iter().copied().take(FILE_BYTES_MAX).collect())
            })
            .collect();
        let entries =
            contents.keys().map(|path| Entry { path: path.clone(), kind: Kind::File }).collect();
        Self { entries, contents }
    }
}

impl Files for MemoryFiles {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.contents.get(path).cloned()
    }
}
