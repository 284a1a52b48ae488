//! Root trees of images, each mounted once for all machines that use it.
//!
//! Never writes to one, and never mounts in a namespace of its own: monitors take their copy from
//! the host's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use perch_types::Code;
use perch_types::error::chain;
use perch_types::image::Digest;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::effects::Fault;

/// Mounted images of a host.
#[derive(Debug)]
pub struct Mounts {
    folder: PathBuf,
    mounted: Mutex<BTreeSet<String>>,
}

/// What can go wrong with an image's tree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a path.
    #[error("{operation} {}", path.display())]
    Path {
        /// A verb.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount program did not succeed.
    #[error("mount {} by a loop device: {complaint}", path.display())]
    Loop {
        /// Which file.
        path: PathBuf,
        /// What it wrote.
        complaint: String,
    },
}

impl Error {
    fn path<E: Into<io::Error>>(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Path { operation, path, source: source.into() }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::permanent(Code::Internal, chain(&error))
    }
}

impl Mounts {
    /// Finds what an earlier agent mounted below a folder, which is made.
    ///
    /// # Errors
    /// When the folder or the list of mounts cannot be used.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(Error::path("create", folder))?;
        let folder = fs::canonicalize(folder).map_err(Error::path("find", folder))?;
        let list = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(list).map_err(Error::path("read", list))?;
        let mounted = mounted_below(&text, &folder).into_iter().collect();
        Ok(Self { folder, mounted: Mutex::new(mounted) })
    }

    /// Returns the tree of an image, mounting its file if it is not mounted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mount(&self, digest: &Digest, erofs: &Path) -> Result<PathBuf, Error> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.folder.join(digest.hex());
        if mounted.contains(digest.hex()) {
            return Ok(path);
        }
        fs::create_dir_all(&path).map_err(Error::path("create", &path))?;
        mount_erofs(erofs, &path)?;
        mounted.insert(digest.hex().to_owned());
        Ok(path)
    }

    /// Returns the images whose trees are mounted.
    #[must_use]
    pub fn mounted(&self) -> Vec<Digest> {
        let mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.iter().filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect()
    }

    /// Unmounts the tree of an image, whether it is mounted or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unmount(&self, digest: &Digest) -> Result<(), Error> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        unmount(&self.folder.join(digest.hex()))?;
        mounted.remove(digest.hex());
        Ok(())
    }
}

/// Linux 6.12 and newer mount the file itself; before, a loop device stands between.
fn mount_erofs(file: &Path, path: &Path) -> Result<(), Error> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    // Containers that share the tree read in their list of mounts what it was mounted from: a
    // number, and no path of the host.
    let opened = File::open(file).map_err(Error::path("open", file))?;
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    match rustix::mount::mount(source.as_str(), path, "erofs", flags, None) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::NOTBLK) => {}
        Err(error) => return Err(Error::path("mount", file)(error)),
    }
    let output = Command::new("mount")
        .args(["-t", "erofs", "-o", "loop,ro,nodev,nosuid"])
        .args([file, path])
        .output()
        .map_err(Error::path("run mount for", file))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Loop { path: file.to_owned(), complaint })
}

fn unmount(path: &Path) -> Result<(), Error> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(Error::path("unmount", path)(error)),
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::path("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Returns the names below `folder` that the text of a mountinfo has as erofs mount points.
fn mounted_below(mountinfo: &str, folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = left.split(' ').nth(4) else {
            continue;
        };
        if right.split(' ').next() != Some("erofs") {
            continue;
        }
        let Ok(name) = Path::new(point).strip_prefix(folder) else {
            continue;
        };
        if let Some(name) = name.to_str().filter(|name| !name.contains('/')) {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_an_earlier_agent_are_found() {
        let text = "\
            36 35 98:0 / /srv/images/aa ro,nosuid - erofs /srv/aa.erofs ro\n\
            37 35 98:0 / /srv/images/bb ro - ext4 /dev/x rw\n\
            38 35 98:0 / /srv/images/cc/dd ro - erofs /srv/x ro\n\
            39 35 98:0 / /other/ee ro - erofs /srv/x ro\n\
            broken\n";
        assert_eq!(mounted_below(text, Path::new("/srv/images")), ["aa"]);
    }
}
