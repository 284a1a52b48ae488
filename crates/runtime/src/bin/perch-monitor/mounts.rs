//! The root tree of a machine, mounted in a namespace of the monitor's own.
//!
//! Never mounts where the host sees it: when the last process of the boot is gone, the kernel
//! takes the mounts and the loop device along.

mod api;
mod idmap;
mod place;
mod several;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use perch_runtime::loopback::{self, Loop};
use perch_runtime::{BootSpec, Error, Mount, volume};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount, mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use api::Api;
pub(crate) use idmap::IdMap;
use several::Several;

/// What is mounted for a boot.
#[derive(Debug)]
pub(crate) struct Root {
    /// Where the root tree is, in this process's mount namespace.
    pub(crate) path: PathBuf,
    /// Those of further containers.
    pub(crate) several: Several,
    /// The machine's API socket.
    pub(crate) api: Option<UnixListener>,
    stage: PathBuf,
    loop_device: Loop,
    volumes: Vec<Loop>,
}

fn at(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(rustix::io::Errno) -> Error {
    Error::file(operation, path)
}

impl Root {
    /// Mounts the root tree of a boot.
    pub(crate) fn mount(spec: &BootSpec) -> Result<Self, Error> {
        let idmap = IdMap::new(spec.ids)?;
        leave_host_mounts()?;
        let lower = clone_tree(&spec.lower)?;
        idmap.apply(&lower).map_err(Error::file("map the ids of", &spec.lower))?;
        let (loop_device, upper) = mount_upper(&spec.upper, spec.scratch)?;
        several::make_folders(&upper, spec)?;
        idmap.apply(&upper).map_err(Error::file("map the ids of", &spec.upper))?;
        let mut volumes = Vec::new();
        let mut trees = Vec::new();
        for one in &spec.volumes {
            let (device, tree) = volume::mount(&one.image)?;
            idmap.apply(&tree).map_err(Error::file("map the ids of", &one.image))?;
            volumes.push(device);
            trees.push((tree, one.target.as_str()));
        }
        let stage = place::choose(&[&spec.dir.state, &spec.dir.run])?;
        mount(
            "tmpfs",
            &stage,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0711,size=1m",
        )
        .map_err(at("mount a tmpfs on", &stage))?;
        for name in ["l", "d", "root"] {
            rustix::fs::mkdir(stage.join(name), Mode::from_raw_mode(0o755))
                .map_err(at("create", stage.join(name)))?;
        }
        attach(&lower, &stage.join("l"))?;
        attach(&upper, &stage.join("d"))?;
        let several = Several::stage(&idmap, spec, &stage)?;
        // Relative names, because they can be read inside the machine (F2).
        std::env::set_current_dir(&stage).map_err(Error::file("enter", &stage))?;
        let path = stage.join("root");
        let api = spec.agent.as_ref().map(|_| Api::make()).transpose()?;
        let mounted = idmap.as_root_of_machine(|| {
            mount_overlay(&path)?;
            Several::finish(spec, &path, &stage)?;
            for (index, root) in std::iter::once(&path).chain(&several.roots).enumerate() {
                for one in &spec.mounts {
                    mount_folder(&idmap, root, one)?;
                }
                for (tree, target) in &trees {
                    attach_once_more(tree, index > 0, root, target)?;
                }
                if let Some(api) = &api {
                    api.attach(root, index > 0)?;
                }
            }
            Ok(())
        });
        std::env::set_current_dir("/").map_err(Error::file("enter", "/"))?;
        mounted?;
        let api = api.map(|api| api.listener);
        Ok(Self { path, several, api, stage, loop_device, volumes })
    }

    /// Unmounts it, and waits until the image file is free for the next boot.
    pub(crate) fn unmount(&self) -> Result<(), Error> {
        unmount_all(&self.path)?;
        self.several.unmount()?;
        for name in ["d", "l"] {
            let path = self.stage.join(name);
            unmount(&path, UnmountFlags::empty()).map_err(at("unmount", path))?;
        }
        let waits = self.volumes.iter().chain([&self.loop_device]).map(Loop::wait_until_free);
        waits.collect()
    }
}

fn unmount_all(path: &Path) -> Result<(), Error> {
    // Volumes lie below: they go with it.
    unmount(path, UnmountFlags::DETACH).map_err(at("unmount", path))
}

/// Takes a copy of the host's mounts that changes of the host reach, and none of ours leave.
fn leave_host_mounts() -> Result<(), Error> {
    #[expect(unsafe_code, reason = "the binding is unsafe for flags that share descriptors")]
    // SAFETY: only the mount namespace changes, and this process has one thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(Error::system("leave the mount namespace"))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).map_err(at("make a slave of", "/"))
}

fn clone_tree(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).map_err(at("take a copy of the mount", path))
}

fn attach(tree: &OwnedFd, to: &Path) -> Result<(), Error> {
    move_mount(tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(at("mount on", to))
}

/// Mounts the image file that holds what the machine writes, attached nowhere yet. Of one that is
/// scratch nothing is put on the disk for its own sake: by default the mount alone, and again its
/// end, wait for all of the file to be there.
fn mount_upper(image: &Path, scratch: bool) -> Result<(Loop, OwnedFd), Error> {
    let (device, held) = Loop::attach(image, loopback::FREE_TIMEOUT_MS)?;
    let options = |operation| at(operation, image);
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).map_err(options("open ext4 for"))?;
    fsconfig_set_string(context.as_fd(), "source", device.path())
        .map_err(options("configure ext4 for"))?;
    // What the machine deletes becomes free on the host again. The tables of inodes are holes of the
    // template's file and read as zeros: nobody has to write them.
    let flags = ["discard", "noinit_itable"].into_iter().chain(scratch.then_some("nobarrier"));
    for flag in flags {
        fsconfig_set_flag(context.as_fd(), flag).map_err(options("configure ext4 for"))?;
    }
    fsconfig_create(context.as_fd()).map_err(options("mount the ext4 file system of"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    let tree = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(options("mount the ext4 file system of"))?;
    // From here on the mount keeps the loop device, which clears itself after it.
    drop(held);
    for name in ["u", "w"] {
        match mkdirat(&tree, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(options("create a folder in")(error)),
        }
    }
    Ok((device, tree))
}

fn mount_overlay(path: &Path) -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    mount("overlay", path, "overlay", flags, c"lowerdir=l,upperdir=d/u,workdir=d/w")
        .map_err(at("mount the overlay on", path))
}

fn mount_folder(idmap: &IdMap, root: &Path, folder: &Mount) -> Result<(), Error> {
    let tree = clone_tree(&folder.source)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, folder.read_only);
    idmap.apply_with(&tree, attributes).map_err(Error::file("map the ids of", &folder.source))?;
    attach_inside(&tree, root, &folder.target)
}

/// Attaches a mount inside the root tree, whose links the image chose: every step is resolved as
/// the machine itself would.
fn attach_inside(tree: &OwnedFd, root: &Path, target: &str) -> Result<(), Error> {
    let folder = make_folder(root, Path::new(target))
        .map_err(Error::file("create the mount point", target))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", &folder, "", flags).map_err(at("mount on", target))
}

/// Attaches a mount inside a root tree, or a copy of it where it is attached already.
fn attach_once_more(tree: &OwnedFd, again: bool, root: &Path, target: &str) -> Result<(), Error> {
    if !again {
        return attach_inside(tree, root, target);
    }
    attach_inside(&copy_of(tree, target)?, root, target)
}

/// Takes a copy of a mount that is attached.
fn copy_of(tree: &OwnedFd, name: &str) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(tree, "", flags).map_err(at("take a copy of", name))
}

/// Opens a folder below `root`, making it and its parents as needed; `root` is the root for every
/// link on the way.
fn make_folder(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let mut done = PathBuf::from("/");
    let mut folder = openat2(&root, "/", flags, Mode::empty(), resolve)?;
    for part in path.components() {
        let std::path::Component::Normal(name) = part else {
            continue;
        };
        let next = done.join(name);
        folder = match openat2(&root, &next, flags, Mode::empty(), resolve) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                mkdirat(&folder, name, Mode::from_raw_mode(0o755))?;
                openat2(&root, &next, flags, Mode::empty(), resolve)?
            }
            Err(error) => return Err(error.into()),
        };
        done = next;
    }
    Ok(folder)
}
