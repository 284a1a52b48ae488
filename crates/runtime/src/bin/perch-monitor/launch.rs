//! From a description of a boot to an init that waits for its program.
//!
//! Never leaves a cgroup behind when a step goes wrong; mounts and processes go with the monitor.

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use perch_runtime::cgroup::{Hierarchies, Paths, remove_all};
use perch_runtime::protocol::{Boot, InstanceInfo, PROTOCOL, ProcessInfo, UNDERSTANDS_FROM};
use perch_runtime::{BootSpec, Error, MachineDir, process};
use perch_types::guest::{self, FromGuest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::container::{self, Parts};
use crate::descriptors::pipe_out;
use crate::guest::{Listener, Speaker};
use crate::members::{self, Heard, Making};
use crate::mounts::Root;
use crate::shared::{self, Shared, Wake};
use crate::{clock, oci, seccomp};

/// How long init may take to report.
const HELLO_TIMEOUT_S: i64 = 15;
/// How long a message to init may take to be taken up.
const SEND_TIMEOUT_S: u64 = 10;
/// The length of what a monitor says of itself in the lock file.
const LOCK_BYTES: usize = 96;
/// How long the monitor of the boot before may take to end, in milliseconds.
const ALONE_TIMEOUT_MS: u64 = 5_000;
/// How long what is left of a failed launch may take to vanish, in milliseconds.
const UNDO_TIMEOUT_MS: u64 = 5_000;

/// A sandbox whose init waits.
pub(crate) struct Running {
    pub(crate) shared: Arc<Shared>,
    pub(crate) root: Root,
    pub(crate) init: Listener,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) others: Vec<Heard>,
    pub(crate) socket: UnixListener,
    /// Held to the end: the machine has no other boot meanwhile.
    pub(crate) alone: fs::File,
}

/// Makes the sandbox for the agent at the other end of `agent`.
pub(crate) fn launch(boot: Boot, agent: &UnixStream) -> Result<Running, Error> {
    let alone = be_alone(&boot.spec.dir, agent)?;
    let hierarchies = Hierarchies::detect()?;
    let paths = Paths::new(&boot.cgroup, boot.spec.dir.machine.as_str());
    let result = make(boot, hierarchies, &paths, alone);
    if result.is_err() {
        let deadline = clock::boot_ms().saturating_add(UNDO_TIMEOUT_MS);
        while !remove_all(&paths)? && clock::boot_ms() < deadline {
            clock::pause(Duration::from_millis(2));
        }
    }
    result
}

/// Takes the machine's lock, behind a monitor that is ending, and says in it who has it. An agent
/// that gave this boot up meanwhile may have begun another: then nothing at all is done.
fn be_alone(dir: &MachineDir, agent: &UnixStream) -> Result<fs::File, Error> {
    let path = dir.lock_file();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::file("open", &path))?;
    let deadline = clock::boot_ms().saturating_add(ALONE_TIMEOUT_MS);
    while !process::try_lock(&file).map_err(Error::file("lock", &path))? {
        if clock::boot_ms() > deadline {
            let operation = "wait for the monitor of another boot";
            return Err(Error::Timeout { operation, limit_ms: ALONE_TIMEOUT_MS });
        }
        clock::pause(Duration::from_millis(1));
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let own = ProcessInfo::of(own).map_err(Error::system("read the monitor's start time"))?;
    let text = serde_json::to_string(&own).map_err(|error| Error::Shape(error.to_string()))?;
    // Always as long, and over what was there: that needs no space on a full disk.
    let text = format!("{text:<LOCK_BYTES$}");
    file.write_all_at(text.as_bytes(), 0).map_err(Error::file("write", &path))?;
    let mut polled = [PollFd::new(agent, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = poll(&mut polled, Some(&now)).map_err(Error::system("look for the agent"))?;
    if gone > 0 {
        return Err(Error::Spec("the agent gave the boot up".to_owned()));
    }
    Ok(file)
}

fn make(
    boot: Boot,
    hierarchies: Hierarchies,
    paths: &Paths,
    alone: fs::File,
) -> Result<Running, Error> {
    let Boot { spec, init, .. } = boot;
    spec.check()?;
    if !hierarchies.remove(&paths.machine)? {
        let reason = "processes of another boot are still in the machine's cgroup";
        return Err(Error::Spec(reason.to_owned()));
    }
    let binary = fs::File::open(&init).map_err(Error::file("open", &init))?;
    let filter = seccomp::compile()?;
    let root = Root::mount(&spec)?;
    // Behind the mounts: the process that moves the monitor into its cgroup may have to wait for
    // every processor, and until then nobody makes a cgroup.
    hierarchies.create(&paths.machine)?;
    hierarchies.limit(&paths.machine, &spec.limits)?;
    let (ours, theirs) = socket_to_init()?;
    let (stdout, to_stdout) = pipe_out(spec.ids.first).map_err(Error::system("make a pipe"))?;
    let (stderr, to_stderr) = pipe_out(spec.ids.first).map_err(Error::system("make a pipe"))?;
    let config = oci::config(&spec, &root.path, (&paths.machine, &hierarchies), None);
    let init = binary.try_clone().map_err(Error::system("copy a descriptor"))?.into();
    let outputs = [to_stdout, to_stderr];
    let parts = Parts { init, socket: theirs, outputs, filter: filter.clone() };
    let pid = container::create(spec.dir.machine.as_str(), &spec.dir.run, &config, parts)?;
    let (info, pidfd) = identify(&spec, pid, paths)?;
    let (speaker, mut listener) = speak(ours)?;
    await_hello(&mut listener)?;
    let making = Making {
        spec: &spec,
        root: &root,
        paths,
        hierarchies: &hierarchies,
        binary: &binary,
        filter: &filter,
    };
    let (members, others) = members::make(&making, pid)?.into_iter().unzip();
    let socket = listen(&spec, &info)?;
    let parts = shared::Parts {
        spec,
        info,
        init: pidfd,
        hierarchies,
        paths: paths.clone(),
        speaker,
        members,
        wake: Wake::new().map_err(Error::system("make an event"))?,
    };
    let shared = Arc::new(Shared::new(parts));
    Ok(Running { shared, root, init: listener, stdout, stderr, others, socket, alone })
}

fn identify(spec: &BootSpec, pid: i32, paths: &Paths) -> Result<(InstanceInfo, OwnedFd), Error> {
    // Init is our child: until it is collected nobody else gets its id.
    let init = Pid::from_raw(pid).ok_or_else(|| Error::Spec("init has no id".to_owned()))?;
    let pidfd = pidfd_open(init, PidfdFlags::empty()).map_err(Error::system("open init"))?;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let info = InstanceInfo {
        protocol: PROTOCOL,
        understands_from: UNDERSTANDS_FROM,
        machine: spec.dir.machine.clone(),
        instance: spec.instance.clone(),
        boot: spec.boot,
        host_boot: process::host_boot().map_err(Error::system("read the boot id"))?,
        monitor: ProcessInfo::of(own).map_err(Error::system("read the monitor's start time"))?,
        init: ProcessInfo::of(pid).map_err(Error::system("read init's start time"))?,
        cgroup: paths.machine.display().to_string(),
    };
    Ok((info, pidfd))
}

/// Makes the two ends of a socket between the monitor and an init.
pub(crate) fn socket_to_init() -> Result<(OwnedFd, OwnedFd), Error> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(Error::system("make a socket to init"))
}

pub(crate) fn speak(ours: OwnedFd) -> Result<(Speaker, Listener), Error> {
    let limit = Some(Duration::from_secs(SEND_TIMEOUT_S));
    rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Send, limit)
        .map_err(Error::system("limit the socket to init"))?;
    let other = ours.try_clone().map_err(Error::system("copy the socket to init"))?;
    Ok((Speaker::new(ours), Listener::new(other)))
}

pub(crate) fn await_hello(listener: &mut Listener) -> Result<(), Error> {
    let mut polled = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    let limit = Timespec { tv_sec: HELLO_TIMEOUT_S, tv_nsec: 0 };
    match poll(&mut polled, Some(&limit)) {
        Ok(0) => {
            return Err(Error::Timeout {
                operation: "wait for init",
                limit_ms: u64::try_from(HELLO_TIMEOUT_S).unwrap_or_default() * 1000,
            });
        }
        Ok(_) => {}
        Err(error) => return Err(Error::system("wait for init")(error)),
    }
    loop {
        match listener.next().map_err(Error::system("read from init"))? {
            Some(FromGuest::Hello { protocol }) if protocol == guest::PROTOCOL => return Ok(()),
            Some(other) => return Err(Error::Shape(format!("unexpected first word: {other:?}"))),
            None if listener.fill().map_err(Error::system("read from init"))? => {}
            None => return Err(Error::Spec("init ended before it said a word".to_owned())),
        }
    }
}

/// Opens the monitor's socket and leaves the note by which a later agent finds it.
fn listen(spec: &BootSpec, info: &InstanceInfo) -> Result<UnixListener, Error> {
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let path = spec.dir.socket();
    let socket = UnixListener::bind(&path).map_err(Error::file("listen on", path))?;
    let path = spec.dir.boot_file();
    let new = path.with_extension("new");
    let text = serde_json::to_vec(info).map_err(|error| Error::Shape(error.to_string()))?;
    let mut file = fs::File::create(&new).map_err(Error::file("create", &new))?;
    file.write_all(&text).map_err(Error::file("write", &new))?;
    fs::rename(&new, &path).map_err(Error::file("rename to", path))?;
    rustix::process::umask(before);
    Ok(socket)
}
