//! The disk of builds: one file of a fixed size with a file system in it, mounted once.
//!
//! Never lets a build fill the host: the file's size is the hard edge (invariant 8). Each app has
//! a store of layers of its own on it, which no other app's build sees (security R11) and no later
//! app of the same name either: it is named after the app's id. The store that was used longest
//! ago goes first when room is needed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{BUILD_IDS_FIRST, Config};
use crate::error::Error;
use crate::program;

/// Hundredths of the disk that may be in use after a build; above it stores are removed.
const FULL_PERCENT: u64 = 80;
/// Folders deep that a measurement follows.
const DEPTH_MAX: usize = 256;

/// What one store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUsage {
    /// The app's id; `base images` for those.
    pub name: String,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// The disk of builds.
#[derive(Debug)]
pub(crate) struct Disk {
    image: PathBuf,
    root: PathBuf,
    locks: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Disk {
    /// Mounts the disk, making it first if there is none.
    pub(crate) async fn open(config: &Config) -> Result<Self, Error> {
        let image = config.data_dir.join("disk.img");
        let root = config.data_dir.join("disk");
        make_folder(&root)?;
        let disk = Self { image, root, locks: Mutex::default() };
        if !disk.is_mounted()? {
            disk.format(config.limits.disk_bytes).await?;
            let (image, root) = (text(&disk.image)?, text(&disk.root)?);
            let options = "loop,nosuid,nodev,noatime,discard";
            program::run("mount", &["-t", "ext4", "-o", options, image, root], "").await?;
        }
        for folder in ["stores", "contexts", "base"] {
            make_folder(&disk.root.join(folder))?;
        }
        // What a builder that was killed left half unpacked.
        let contexts = disk.root.join("contexts");
        for entry in fs::read_dir(&contexts).map_err(Error::file("list", &contexts))?.flatten() {
            remove(&entry.path())?;
        }
        Ok(disk)
    }

    /// Unmounts it; what is on it stays.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        program::run("umount", &[text(&self.root)?], "").await.map(drop)
    }

    fn is_mounted(&self) -> Result<bool, Error> {
        let above = self.root.parent().unwrap_or(&self.root);
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        let own = device(&self.root).map_err(Error::file("look at", &self.root))?;
        Ok(own != device(above).map_err(Error::file("look at", above))?)
    }

    async fn format(&self, bytes: u64) -> Result<(), Error> {
        if self.image.exists() {
            return Ok(());
        }
        // Under another name until it is whole, so that a crash leaves no disk that half works.
        let partial = self.image.with_extension("partial");
        let file = fs::File::create(&partial).map_err(Error::file("create", &partial))?;
        file.set_len(bytes).map_err(Error::file("extend", &partial))?;
        drop(file);
        let arguments = ["-q", "-F", "-m", "0", "-O", "^has_journal", text(&partial)?];
        program::run("mkfs.ext4", &arguments, "").await?;
        fs::rename(&partial, &self.image).map_err(Error::file("rename", &partial))
    }

    /// Returns the folder of a store, made if need be; that of the base images has no name.
    /// Whoever uses it holds its [`lock`](Self::lock).
    pub(crate) fn store(&self, name: &str) -> Result<PathBuf, Error> {
        let folder = self.store_folder(name);
        make_store(&folder)?;
        Ok(folder)
    }

    fn store_folder(&self, name: &str) -> PathBuf {
        if name.is_empty() {
            self.root.join("base/store")
        } else {
            self.root.join("stores").join(name)
        }
    }

    /// Returns the lock that one build in a store at a time holds: the build tool's own locks do
    /// not cover its cleaning up.
    pub(crate) fn lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_name, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(name.to_owned()).or_default())
    }

    /// Makes the folder that one build's context goes to.
    pub(crate) fn context(&self, name: &str) -> Result<PathBuf, Error> {
        let folder = self.root.join("contexts").join(name);
        make_folder(&folder)?;
        let tree = folder.join("tree");
        make_folder(&tree)?;
        hand_over(&tree)?;
        Ok(folder)
    }

    /// Returns the folder in which base images are made.
    pub(crate) fn work(&self) -> Result<PathBuf, Error> {
        let folder = self.root.join("base/work");
        make_folder(&folder)?;
        hand_over(&folder)?;
        Ok(folder)
    }

    /// Measures every store.
    pub(crate) fn usage(&self) -> Result<Vec<StoreUsage>, Error> {
        let mut found = Vec::new();
        for (_used, name) in self.by_last_use()? {
            let bytes = bytes_in(&self.root.join("stores").join(&name), DEPTH_MAX);
            found.push(StoreUsage { name, bytes });
        }
        let bytes = bytes_in(&self.root.join("base"), DEPTH_MAX);
        found.push(StoreUsage { name: "base images".to_owned(), bytes });
        Ok(found)
    }

    /// Removes stores, the one used longest ago first, until at most `percent` hundredths of the
    /// disk are in use; then stores above `store_bytes_max`. Stores in use are left. Returns the
    /// names of those removed.
    pub(crate) fn prune(&self, percent: u64, store_bytes_max: u64) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for (_used, name) in self.by_last_use()? {
            let folder = self.root.join("stores").join(&name);
            let full = self.percent_used()? > percent;
            if !full && bytes_in(&folder, DEPTH_MAX) <= store_bytes_max {
                continue;
            }
            if let Ok(_guard) = self.lock(&name).try_lock() {
                remove(&folder)?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Removes what is above the limits after a build.
    pub(crate) fn trim(&self, store_bytes_max: u64) -> Result<Vec<String>, Error> {
        self.prune(FULL_PERCENT, store_bytes_max)
    }

    fn percent_used(&self) -> Result<u64, Error> {
        let found = rustix::fs::statvfs(&self.root)
            .map_err(|errno| Error::file("measure", &self.root)(errno.into()))?;
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        Ok(used * 100 / found.f_blocks.max(1))
    }

    fn by_last_use(&self) -> Result<Vec<(i64, String)>, Error> {
        let stores = self.root.join("stores");
        let mut found = Vec::new();
        for entry in fs::read_dir(&stores).map_err(Error::file("list", &stores))?.flatten() {
            // The build tool writes in `home` at every push; the folder itself was made long ago.
            let used = entry.path().join("used");
            let used = fs::metadata(used).map_or(0, |found| found.mtime());
            found.push((used, entry.file_name().to_string_lossy().into_owned()));
        }
        found.sort();
        Ok(found)
    }
}

/// Makes a store. The folder itself stays the host's own, so that nothing a build does can put a
/// link where the host will look next; what builds write is in the folders in it.
fn make_store(folder: &Path) -> Result<(), Error> {
    make_folder(folder)?;
    let own = rustix::process::geteuid().as_raw();
    lchown(folder, Some(own), None).map_err(Error::file("take", folder))?;
    for name in ["graph", "home", "tmp"] {
        let inner = folder.join(name);
        match fs::symlink_metadata(&inner) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(Error::file("use", inner)(io::ErrorKind::NotADirectory.into())),
            Err(_) => {
                make_folder(&inner)?;
                hand_over(&inner)?;
            }
        }
    }
    // Made anew, so that its time is that of the last use.
    let used = folder.join("used");
    remove_file(&used)?;
    fs::File::create_new(&used).map(drop).map_err(Error::file("create", used))
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Gives a folder to the root user of cages.
pub(crate) fn hand_over(path: &Path) -> Result<(), Error> {
    lchown(path, Some(BUILD_IDS_FIRST), Some(BUILD_IDS_FIRST))
        .map_err(Error::file("give away", path))
}

/// Makes a folder that others may look into: the root user of cages is one of them, and the
/// builder's own folder above it is closed to all.
pub(crate) fn make_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(Error::file("set the mode of", path))
}

/// Removes a tree that a build may have written; links in it are removed, never followed.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn bytes_in(path: &Path, depth: usize) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in entries.flatten() {
        let Ok(found) = entry.metadata() else {
            continue;
        };
        bytes += found.blocks() * 512;
        if found.is_dir() && depth > 0 {
            bytes += bytes_in(&entry.path(), depth - 1);
        }
    }
    bytes
}

pub(crate) fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or(Error::Configuration { key: "data_dir", rule: "UTF-8" })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn owner(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid(), found.mode() & 0o7777)
    }

    #[test]
    fn r11_a_store_stays_the_hosts_and_no_link_in_it_is_followed() {
        let own = rustix::process::geteuid();
        if !own.is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (store, outside) = (folder.path().join("store"), folder.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).unwrap();
        for _ in 0..2 {
            make_store(&store).unwrap();
            assert_eq!(owner(&store), (own.as_raw(), 0o755));
            for inner in ["graph", "home", "tmp"] {
                assert_eq!(owner(&store.join(inner)), (BUILD_IDS_FIRST, 0o755));
            }
        }
        fs::remove_dir(store.join("tmp")).unwrap();
        symlink(&outside, store.join("tmp")).unwrap();
        make_store(&store).unwrap_err();
        assert_eq!(owner(&outside), (own.as_raw(), 0o700));
        fs::remove_file(store.join("tmp")).unwrap();
        let file = outside.join("file");
        fs::write(&file, "kept").unwrap();
        fs::remove_file(store.join("used")).unwrap();
        symlink(&file, store.join("used")).unwrap();
        make_store(&store).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    }
}
