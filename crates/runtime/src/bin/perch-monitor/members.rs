//! The containers of a machine: each an init of its own, in namespaces of its own but for those
//! that containers of one machine share (users, network, names, System V).
//!
//! Never decides what starts when: `Order` does.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use perch_runtime::cgroup::{Hierarchies, Paths};
use perch_runtime::{BootSpec, Error, process};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use seccompiler::BpfProgram;
use std::os::fd::AsFd as _;

use crate::container::{self, Parts};
use crate::descriptors::pipe_out;
use crate::guest::{Listener, Speaker};
use crate::launch::{await_hello, socket_to_init, speak};
use crate::mounts::Root;
use crate::oci;

/// Namespaces that the first container made and the others join.
const SHARED: [(&str, &str); 4] =
    [("user", "user"), ("ipc", "ipc"), ("uts", "uts"), ("network", "net")];

/// A container beside the first, as all threads see it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) speaker: Speaker,
    /// The id of its init on the server.
    pub(crate) pid: i32,
    init: OwnedFd,
}

/// What the main thread hears of it.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) init: Listener,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What every container is made with.
pub(crate) struct Making<'a> {
    pub(crate) spec: &'a BootSpec,
    pub(crate) root: &'a Root,
    pub(crate) paths: &'a Paths,
    pub(crate) hierarchies: &'a Hierarchies,
    pub(crate) binary: &'a File,
    pub(crate) filter: &'a BpfProgram,
}

/// The namespaces to join, open for as long as containers are made.
pub(crate) struct Joined {
    files: Vec<(&'static str, File)>,
}

impl Joined {
    fn of(pid: i32) -> Result<Self, Error> {
        let open = |(kind, file): (&'static str, &str)| {
            let path = format!("/proc/{pid}/ns/{file}");
            // The processes that join inherit it under its number, and lose it when they execute.
            File::open(&path).map(|file| (kind, file)).map_err(Error::file("open", path))
        };
        Ok(Self { files: SHARED.into_iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Returns the path by which a process that inherited them finds one.
    pub(crate) fn path(&self, kind: &str) -> Option<String> {
        let (_, file) = self.files.iter().find(|(one, _)| *one == kind)?;
        Some(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
}

/// Makes the second container and those after it, which join the namespaces of `first`.
pub(crate) fn make(making: &Making<'_>, first: i32) -> Result<Vec<(Member, Heard)>, Error> {
    if making.root.several.roots.is_empty() {
        return Ok(Vec::new());
    }
    let joined = Joined::of(first)?;
    let roots = making.root.several.roots.iter().enumerate();
    roots.map(|(index, root)| one(making, &joined, index.saturating_add(1), root)).collect()
}

fn one(
    making: &Making<'_>,
    joined: &Joined,
    index: usize,
    root: &Path,
) -> Result<(Member, Heard), Error> {
    let Making { spec, paths, hierarchies, .. } = making;
    let (ours, theirs) = socket_to_init()?;
    let (stdout, to_stdout) = pipe_out(spec.ids.first).map_err(Error::system("make a pipe"))?;
    let (stderr, to_stderr) = pipe_out(spec.ids.first).map_err(Error::system("make a pipe"))?;
    let config = oci::config(spec, root, (&paths.machine, hierarchies), Some(joined));
    let binary = making.binary.try_clone().map_err(Error::system("copy a descriptor"))?;
    let parts = Parts {
        init: binary.into(),
        socket: theirs,
        outputs: [to_stdout, to_stderr],
        filter: making.filter.clone(),
    };
    let name = format!("{}-{index}", spec.dir.machine);
    let pid = container::create(&name, &spec.dir.run, &config, parts)?;
    // It is our child: until it is collected nobody else gets its id.
    let child = Pid::from_raw(pid).ok_or_else(|| Error::Spec("init has no id".to_owned()))?;
    let init = pidfd_open(child, PidfdFlags::empty()).map_err(Error::system("open init"))?;
    let (speaker, mut listener) = speak(ours)?;
    await_hello(&mut listener)?;
    Ok((Member { speaker, pid, init }, Heard { init: listener, stdout, stderr }))
}

impl Member {
    /// Kills it with everything in it.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        process::kill(&self.init).map_err(Error::system("kill a container"))
    }

    /// Collects it once it has ended.
    pub(crate) fn collect(&self) -> Result<(), Error> {
        loop {
            match waitid(WaitId::PidFd(self.init.as_fd()), WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR) => {}
                // Somebody collected it already: it has ended.
                Ok(_) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(error) => return Err(Error::system("collect a container")(error)),
            }
        }
    }
}
