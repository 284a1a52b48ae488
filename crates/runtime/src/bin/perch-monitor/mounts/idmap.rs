//! Mapped ids: files store 0 to 65535, the host sees the machine's own range.
//!
//! Never changes an id on a disk.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use perch_runtime::{Error, IdRange};
use rustix::mount::MountAttrFlags;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

/// A user namespace that exists for its mapping only.
#[derive(Debug)]
pub(crate) struct IdMap {
    namespace: OwnedFd,
    first: u32,
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

impl IdMap {
    /// Makes the mapping of a machine's ids.
    pub(crate) fn new(ids: IdRange) -> Result<Self, Error> {
        let child = fork_into_user_namespace()
            .map_err(Error::system("make a user namespace for the machine's ids"))?;
        let namespace = map(child, ids);
        // It waits for a signal and does nothing else; without it the namespace stays.
        kill_process(child, Signal::KILL).map_err(Error::system("end a helper process"))?;
        waitpid(Some(child), WaitOptions::empty())
            .map_err(Error::system("collect a helper process"))?;
        let namespace = namespace.map_err(Error::system("map the machine's ids"))?;
        Ok(Self { namespace: namespace.into(), first: ids.first })
    }

    /// Maps the ids of a mount that is attached nowhere yet.
    pub(crate) fn apply(&self, tree: &OwnedFd) -> io::Result<()> {
        self.apply_with(tree, MountAttrFlags::empty())
    }

    /// Maps the ids and sets further attributes.
    pub(crate) fn apply_with(&self, tree: &OwnedFd, more: MountAttrFlags) -> io::Result<()> {
        let attributes = MountAttributes {
            set: MOUNT_ATTR_IDMAP | u64::from(more.bits()),
            clear: 0,
            propagation: 0,
            user_namespace: u64::try_from(self.namespace.as_raw_fd()).unwrap_or_default(),
        };
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: both descriptors are open, the path is a string, and the structure has the
        // size that is passed; the kernel only reads it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size_of::<MountAttributes>(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Does something with root of the machine as the owner of what it makes.
    ///
    /// An overlay works with the identity of who mounted it, and over mapped layers the host's
    /// root has no id to make files with. All capabilities stay, which the kernel would otherwise
    /// take away together with user id 0.
    pub(crate) fn as_root_of_machine<T>(
        &self,
        act: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let all = capabilities(None).map_err(Error::system("read the capabilities"))?;
        let result = become_owner(self.first, all)
            .map_err(Error::system("become the machine's root"))
            .and_then(|()| act());
        become_owner(0, all).map_err(Error::system("become root again"))?;
        result
    }
}

fn become_owner(id: u32, all: CapabilitySets) -> io::Result<()> {
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: takes a number and reports nothing. This process has one thread.
    let _before = unsafe { libc::setfsgid(id) };
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: as above.
    let _before = unsafe { libc::setfsuid(id) };
    Ok(set_capabilities(None, all)?)
}

/// Makes a child in a user namespace of its own that waits to be killed.
fn fork_into_user_namespace() -> io::Result<Pid> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: without a stack of its own the child is a copy of this single-threaded process, as
    // after a fork.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if result == 0 {
        loop {
            #[expect(unsafe_code, reason = "no safe binding")]
            // SAFETY: waits for a signal; touches no memory.
            let _interrupted = unsafe { libc::pause() };
        }
    }
    let failed = io::Error::last_os_error();
    i32::try_from(result).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(failed)
}

fn map(child: Pid, ids: IdRange) -> io::Result<File> {
    let process = format!("/proc/{}", child.as_raw_nonzero());
    let line = format!("0 {} {}", ids.first, ids.count);
    fs::write(format!("{process}/uid_map"), &line)?;
    fs::write(format!("{process}/gid_map"), &line)?;
    File::open(format!("{process}/ns/user"))
}
