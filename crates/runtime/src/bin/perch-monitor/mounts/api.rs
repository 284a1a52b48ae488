//! The folders `/.fly` and `/.perch` of a machine, with the socket of its API in them.
//!
//! Never in the writable layer: both are one small file system that belongs to the host's root, so
//! that nobody inside can take the socket away or put another in its place.

use std::fs::Permissions;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use perch_runtime::Error;
use perch_types::guest::{API_FOLDERS, API_SOCKET};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::{at, copy_of, make_folder};

/// A file system with the socket, attached nowhere yet.
pub(super) struct Api {
    tree: OwnedFd,
    pub(super) listener: UnixListener,
}

impl Api {
    /// Makes it, as the host's root.
    pub(super) fn make() -> Result<Self, Error> {
        let options = |operation| at(operation, API_FOLDERS[0]);
        let context =
            fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(options("open a tmpfs for"))?;
        for (key, value) in [("mode", "755"), ("size", "4k"), ("nr_inodes", "4")] {
            fsconfig_set_string(context.as_fd(), key, value)
                .map_err(options("configure a tmpfs for"))?;
        }
        fsconfig_create(context.as_fd()).map_err(options("make a tmpfs for"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        let tree = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(options("mount a tmpfs for"))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{API_SOCKET}", tree.as_raw_fd()));
        let listener = UnixListener::bind(&path).map_err(Error::file("listen on", API_SOCKET))?;
        // Everybody in the machine is the machine.
        std::fs::set_permissions(&path, Permissions::from_mode(0o666))
            .map_err(Error::file("open for everybody in the machine", API_SOCKET))?;
        Ok(Self { tree, listener })
    }

    /// Attaches it below `root`, as root of the machine, who owns the folders it is mounted on.
    /// `again` when it is below another root already.
    pub(super) fn attach(&self, root: &Path, again: bool) -> Result<(), Error> {
        for (index, folder) in API_FOLDERS.iter().enumerate() {
            let target = make_folder(root, Path::new(folder))
                .map_err(Error::file("create the mount point", folder))?;
            let copy = if index == 0 && !again { None } else { Some(copy_of(&self.tree, folder)?) };
            let tree = copy.as_ref().unwrap_or(&self.tree);
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(tree, "", &target, "", flags).map_err(at("mount on", folder))?;
        }
        Ok(())
    }
}
