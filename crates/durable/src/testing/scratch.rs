//! A folder for one run's file, which goes with it.
//!
//! Never shared between two runs.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{Db, Error, Options};

/// How many names are tried before giving up.
const NAMES_MAX: u64 = 1000;

/// A harness's crash ends a process, not the machine, so a file in memory tells the same sooner.
fn root() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

pub(super) struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    pub(super) fn new() -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        let mut folder = PathBuf::new();
        for _ in 0..NAMES_MAX {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("perch-durable-{}-{number}", std::process::id());
            folder = root().join(name);
            match fs::create_dir(&folder) {
                Ok(()) => return Ok(Self { folder }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(source) => {
                    return Err(Error::Open { path: folder, source });
                }
            }
        }
        Err(Error::Open { path: folder, source: last })
    }

    pub(super) fn open(&self) -> Result<Db, Error> {
        let options = Options { reserve_bytes: 0, ..Options::default() };
        Db::open_with(self.folder.join("journal.db"), &options)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(path = %self.folder.display(), %error, "cannot remove scratch folder");
        }
    }
}
