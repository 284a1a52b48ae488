//! Root trees of the containers beside the first, and the volumes that they share.
//!
//! Never mounts a second file system for what containers write: each has folders of its own in the
//! machine's writable layer, which is the edge for all of them together.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use perch_runtime::containers::{ContainerSpec, SharedSpec};
use perch_runtime::{BootSpec, Error, IdRange};
use rustix::fs::{Mode, OFlags, fchmod, mkdirat, openat};
use rustix::mount::{MountAttrFlags, MountFlags, UnmountFlags, mount, unmount};

use super::{IdMap, at, attach, attach_inside, clone_tree, mount_upper, unmount_all};
use perch_runtime::loopback::Loop;

/// Where a shared volume's own files are, in an image file that is one.
const FILES: &str = "u";

/// What is mounted beside the first root tree.
#[derive(Debug, Default)]
pub(crate) struct Several {
    /// The root trees of the second container and those after it.
    pub(crate) roots: Vec<PathBuf>,
    others: Vec<PathBuf>,
    loops: Vec<Loop>,
}

/// Returns the names of a container's folders: image tree, changes, work, root.
fn names(index: usize) -> [String; 4] {
    let number = if index == 0 { String::new() } else { index.to_string() };
    let root = if index == 0 { "root".to_owned() } else { format!("r{index}") };
    [format!("l{number}"), format!("u{number}"), format!("w{number}"), root]
}

/// Makes the folders of containers in the writable layer, attached nowhere yet.
pub(super) fn make_folders(upper: &OwnedFd, spec: &BootSpec) -> Result<(), Error> {
    for index in 1..spec.containers.len() {
        let [_, changes, work, _] = names(index);
        for name in [changes, work] {
            match mkdirat(upper, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(at("create a folder in", &spec.upper)(error)),
            }
        }
    }
    Ok(())
}

impl Several {
    /// Mounts image trees and shared volumes on the stage; the caller does as root of the monitor.
    pub(super) fn stage(idmap: &IdMap, spec: &BootSpec, stage: &Path) -> Result<Self, Error> {
        let mut several = Self::default();
        for (index, container) in spec.containers.iter().enumerate().skip(1) {
            let [image, _, _, root] = names(index);
            let root = make(stage, &root)?;
            several.others.push(mount_image(idmap, &container.lower, stage, &image)?);
            several.roots.push(root);
        }
        for (index, shared) in spec.shared.iter().enumerate() {
            several.mount_shared(idmap, shared, spec.ids, &make(stage, &format!("v{index}"))?)?;
        }
        Ok(several)
    }

    fn mount_shared(
        &mut self,
        idmap: &IdMap,
        shared: &SharedSpec,
        ids: IdRange,
        path: &Path,
    ) -> Result<(), Error> {
        match shared {
            SharedSpec::Memory { size_bytes } => {
                let first = ids.first;
                let options = format!("mode=1777,size={size_bytes},uid={first},gid={first}");
                let options = CString::new(options).unwrap_or_default();
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                mount("tmpfs", path, "tmpfs", flags, options.as_c_str())
                    .map_err(at("mount a tmpfs on", path))?;
            }
            SharedSpec::Disk { image } => {
                // It begins empty with each boot.
                let (device, tree) = mount_upper(image, true)?;
                let files =
                    openat(&tree, FILES, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                        .map_err(at("open a folder in", image))?;
                fchmod(&files, Mode::from_raw_mode(0o1777)).map_err(at("open up", image))?;
                drop(files);
                idmap.apply(&tree).map_err(Error::file("map the ids of", image))?;
                attach(&tree, path)?;
                self.loops.push(device);
            }
            SharedSpec::Image { lower } => {
                let tree = clone_tree(lower)?;
                // Its files are seen as they are, without an overlay in between.
                let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
                    | MountAttrFlags::MOUNT_ATTR_NOSUID
                    | MountAttrFlags::MOUNT_ATTR_NODEV;
                idmap
                    .apply_with(&tree, attributes)
                    .map_err(Error::file("map the ids of", lower))?;
                attach(&tree, path)?;
            }
        }
        self.others.push(path.to_owned());
        Ok(())
    }

    /// Mounts the overlays of the further containers and the shared volumes in all of them; the
    /// caller does as root of the machine, in the folder of the stage.
    pub(super) fn finish(spec: &BootSpec, first: &Path, stage: &Path) -> Result<(), Error> {
        for (index, container) in spec.containers.iter().enumerate() {
            let [image, changes, work, root] = names(index);
            let root = if index == 0 { first.to_owned() } else { stage.join(root) };
            if index > 0 {
                let options = format!("lowerdir={image},upperdir=d/{changes},workdir=d/{work}");
                let options = CString::new(options).unwrap_or_default();
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
                mount("overlay", &root, "overlay", flags, options.as_c_str())
                    .map_err(at("mount the overlay on", &root))?;
            }
            mount_volumes(spec, container, &root, stage)?;
        }
        Ok(())
    }

    /// Unmounts everything but the writable layer.
    pub(super) fn unmount(&self) -> Result<(), Error> {
        for root in &self.roots {
            unmount_all(root)?;
        }
        for path in &self.others {
            unmount(path, UnmountFlags::empty()).map_err(at("unmount", path))?;
        }
        self.loops.iter().try_for_each(Loop::wait_until_free)
    }
}

fn make(stage: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = stage.join(name);
    rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)).map_err(at("create", &path))?;
    Ok(path)
}

fn mount_image(idmap: &IdMap, lower: &Path, stage: &Path, name: &str) -> Result<PathBuf, Error> {
    let tree = clone_tree(lower)?;
    idmap.apply(&tree).map_err(Error::file("map the ids of", lower))?;
    let path = make(stage, name)?;
    attach(&tree, &path)?;
    Ok(path)
}

/// Mounts shared volumes inside a root tree, whose links the image chose.
fn mount_volumes(
    spec: &BootSpec,
    container: &ContainerSpec,
    root: &Path,
    stage: &Path,
) -> Result<(), Error> {
    for mount in &container.shared {
        let mut source = stage.join(format!("v{}", mount.volume));
        if matches!(spec.shared.get(mount.volume), Some(SharedSpec::Disk { .. })) {
            source.push(FILES);
        }
        let tree = clone_tree(&source)?;
        attach_inside(&tree, root, &mount.target)?;
    }
    Ok(())
}
