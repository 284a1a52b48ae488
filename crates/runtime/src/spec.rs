//! What a boot of a machine is made of, and how it ended.
//!
//! Never holds a secret: the environment travels in `GuestStart`.

use std::path::{Path, PathBuf};

use perch_types::{InstanceId, MachineId};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::containers::{CONTAINERS_MAX, ContainerSpec, SHARED_MAX, SharedSpec};

/// Where a machine keeps its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDir {
    /// Whose.
    pub machine: MachineId,
    /// What outlives a restart of the server: log and exit status, e.g.
    /// `/var/lib/perch/host/machines/<id>`.
    pub state: PathBuf,
    /// What need not (a tmpfs): the socket and the sandbox's papers, e.g.
    /// `/run/perch/machines/<id>`. At most [`RUN_PATH_BYTES_MAX`] bytes long.
    pub run: PathBuf,
}

/// A Unix socket's path has at most 107 bytes.
pub const RUN_PATH_BYTES_MAX: usize = 80;

impl MachineDir {
    /// Names the folders of a machine below the host's state and run folders.
    #[must_use]
    pub fn below(state: &Path, run: &Path, machine: &MachineId) -> Self {
        Self {
            machine: machine.clone(),
            state: state.join("machines").join(machine.as_str()),
            run: run.join("machines").join(machine.as_str()),
        }
    }

    /// Returns the monitor's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("monitor.sock")
    }

    /// Returns the note of the running boot: who its monitor is.
    #[must_use]
    pub fn boot_file(&self) -> PathBuf {
        self.run.join("boot.json")
    }

    /// Returns the file that a boot's monitor holds locked for as long as it lives, from before its
    /// first effect: by it the machine's next boot knows that no other one is under way.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.state.join("monitor.lock")
    }

    /// Returns the file of the last boot's exit status.
    #[must_use]
    pub fn exit_file(&self) -> PathBuf {
        self.state.join("exit.json")
    }

    /// Returns the folder of the log's segments.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.state.join("log")
    }
}

/// A range of user and group ids of the host that belongs to one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// What 0 in the machine is outside.
    pub first: u32,
    /// How many: 65536.
    pub count: u32,
}

/// What a machine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Swap in bytes, beside the memory.
    #[serde(default)]
    pub swap_bytes: u64,
    /// CPU time in thousandths of a CPU; `None` is no ceiling.
    #[serde(default)]
    pub cpu_milli: Option<u32>,
    /// Its weight against others, 1 to 10000, of which 100 is common.
    pub cpu_weight: u32,
    /// Processes and threads.
    pub pids_max: u32,
    /// Open files of one process; lowered to what this server allows.
    pub files_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 * 1024 * 1024,
            swap_bytes: 0,
            cpu_milli: Some(1000),
            cpu_weight: 100,
            pids_max: 4096,
            files_max: 65_536,
        }
    }
}

/// What a machine's log may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// On the disk, in bytes; the oldest half goes when it is reached.
    pub bytes_max: u64,
    /// In a second, in bytes; more is dropped and counted.
    pub bytes_per_second_max: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { bytes_max: 16 * 1024 * 1024, bytes_per_second_max: 4 * 1024 * 1024 }
    }
}

/// A folder of the host, with ids from 0 on, that appears in the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The root of a mounted file system.
    pub source: PathBuf,
    /// Where in the machine, absolute.
    pub target: String,
    /// Whether it may not be written.
    #[serde(default)]
    pub read_only: bool,
}

/// How many [`Mount`]s, and how many [`Volume`]s, a machine may have.
pub const MOUNTS_MAX: usize = 16;

/// A volume: the image file of an XFS file system, with ids from 0 on, that the boot mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The image; nobody else has it as long as the boot lasts.
    pub image: PathBuf,
    /// Where in the machine, absolute.
    pub target: String,
}

/// One boot of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSpec {
    /// Which version of the machine.
    pub instance: InstanceId,
    /// Which boot, counted by the host; larger than every earlier one.
    pub boot: u64,
    /// Where its files are.
    pub dir: MachineDir,
    /// The image's root tree, mounted read-only by the host, with ids from 0 on.
    pub lower: PathBuf,
    /// The image file of an ext4 file system for what the machine writes.
    pub upper: PathBuf,
    /// Whether that is of no use to anybody once this boot has ended: then nothing of it has to
    /// outlive the server.
    #[serde(default)]
    pub scratch: bool,
    /// The machine's ids.
    pub ids: IdRange,
    /// What it may use.
    pub limits: Limits,
    /// Its host name.
    pub hostname: String,
    /// Folders of the host.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// The containers of a machine that has several; the first has `lower` as its root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerSpec>,
    /// What its containers share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedSpec>,
    /// The agent's socket for connections that come out of the machine by its API socket; without
    /// it the machine has none.
    #[serde(default)]
    pub agent: Option<PathBuf>,
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// What the log may take.
    #[serde(default)]
    pub log: LogLimits,
    /// The signal that asks the program to end when the monitor itself is asked to.
    pub stop_signal: i32,
    /// How long it may take then, in milliseconds.
    pub stop_grace_ms: u64,
}

impl BootSpec {
    /// Checks what would otherwise be found out half-way.
    ///
    /// # Errors
    /// [`Error::Spec`] names the value.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |reason: &str| Err(Error::Spec(reason.to_owned()));
        if self.ids.first < 65_536 || self.ids.first.checked_add(self.ids.count).is_none() {
            return refuse("the id range overlaps the host's own ids");
        }
        if self.ids.count < 65_536 {
            return refuse("the id range has fewer than 65536 ids");
        }
        if self.dir.run.as_os_str().len() > RUN_PATH_BYTES_MAX {
            return refuse("the run folder's path is too long for a socket");
        }
        if self.mounts.len() > MOUNTS_MAX || self.volumes.len() > MOUNTS_MAX {
            return refuse("too many mounts");
        }
        if self.containers.len() > CONTAINERS_MAX || self.shared.len() > SHARED_MAX {
            return refuse("too many containers or volumes that they share");
        }
        let mounts = self.containers.iter().flat_map(|container| &container.shared);
        if mounts.into_iter().any(|mount| mount.volume >= self.shared.len()) {
            return refuse("a container names a volume that is not there");
        }
        if self.containers.iter().any(|one| one.shared.len() > SHARED_MAX) {
            return refuse("a container has too many volumes");
        }
        if self.limits.memory_bytes < 4 * 1024 * 1024 {
            return refuse("less than 4 MiB of memory");
        }
        if self.hostname.is_empty() || self.hostname.len() > 64 {
            return refuse("the host name has not 1 to 64 bytes");
        }
        Ok(())
    }
}

/// How a boot ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Which version of the machine.
    pub instance: InstanceId,
    /// Which boot.
    pub boot: u64,
    /// The main program's exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the machine for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// Whether the kernel refused a process for want of room for one.
    #[serde(default)]
    pub forks_refused: bool,
    /// Whether [`crate::Instance::signal`], `stop` or `kill` came before.
    #[serde(default)]
    pub requested_stop: bool,
    /// What the end was.
    #[serde(default)]
    pub reason: ExitReason,
    /// In words, when it was not the program's own end.
    #[serde(default)]
    pub message: String,
    /// Which of several main processes ended first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// The container whose end it was, of a machine that has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// When the program was executed, in milliseconds since 1970; 0 if it never was.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// When it ended, in milliseconds since 1970.
    #[serde(default)]
    pub ended_unix_ms: u64,
}

/// What the end of a boot was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The main program ended by itself or by a signal.
    #[default]
    Exited,
    /// The main program could not be executed: there is none, or it may not be.
    NotExecutable,
    /// The machine was killed as a whole.
    Killed,
    /// Init broke its protocol or died.
    InitFault,
    /// The monitor was killed, and the machine with it; the code is not known.
    MonitorLost,
    /// Never started: the monitor ended before [`crate::Instance::start`].
    NotStarted,
}

impl ExitStatus {
    /// Reads the status that the last boot of a machine left, if it left one.
    ///
    /// # Errors
    /// The file cannot be read or is not of its shape.
    pub fn read(dir: &MachineDir) -> Result<Option<Self>, Error> {
        let path = dir.exit_file();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| Error::Shape(format!("exit status: {error}"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }
}
