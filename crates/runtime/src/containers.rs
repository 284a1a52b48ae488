//! Several containers in one machine: what they are made of, and how each stands.
//!
//! Never starts one: the monitor does what [`Order`] says.

mod order;

use std::path::PathBuf;

use perch_types::guest::GuestStart;
use perch_types::machine_config::{ContainerCondition, RestartPolicy};
use serde::{Deserialize, Serialize};

pub use order::{Action, Event, Finish, Order};

/// How many containers a machine may have.
pub const CONTAINERS_MAX: usize = 16;
/// How many volumes its containers may share.
pub const SHARED_MAX: usize = 16;
/// The longest name of a container, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// A container's files. The first one of a machine has the machine's own root tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name.
    pub name: String,
    /// Its image's root tree, mounted read-only by the host, with ids from 0 on. What it writes
    /// goes into a folder of its own in the machine's writable layer.
    pub lower: PathBuf,
    /// What it sees of [`SharedSpec`]s.
    #[serde(default)]
    pub shared: Vec<SharedMount>,
}

/// Where a container sees a volume that all may share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedMount {
    /// The number of the volume.
    pub volume: usize,
    /// Where, absolute.
    pub target: String,
}

/// A volume that the containers of a machine share and that ends with the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharedSpec {
    /// Memory, counted as the machine's.
    Memory {
        /// Its size.
        size_bytes: u64,
    },
    /// The image file of an ext4 file system.
    Disk {
        /// Which.
        image: PathBuf,
    },
    /// The root tree of an image, mounted read-only by the host.
    Image {
        /// Which.
        lower: PathBuf,
    },
}

/// What one container is started with, and what follows its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStart {
    /// Its program.
    pub start: GuestStart,
    /// What it waits for.
    #[serde(default)]
    pub depends_on: Vec<Dependency>,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// How often within five minutes, for [`RestartPolicy::OnFailure`].
    pub retries_max: u32,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// How long it may take then, in milliseconds.
    pub stop_grace_ms: u64,
}

/// A container that must have come so far before another starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The number of the container.
    pub container: usize,
    /// How far.
    pub condition: ContainerCondition,
}

/// How far a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// It waits for others.
    #[default]
    Created,
    /// Its program is about to be executed.
    Starting,
    /// Its program runs.
    Started,
    /// Its program was asked to end.
    Stopping,
    /// It is started again after a pause.
    Restarting,
    /// Its program has ended for good, or is never started.
    Stopped,
    /// Its program could not be executed, or its last end was a failure.
    Failed,
}

impl ContainerState {
    /// Returns the word that the API has for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// How the containers of a machine stand.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Containers {
    /// Grows with every change.
    pub counter: u64,
    /// Each, in the order of the configuration.
    pub each: Vec<ContainerStatus>,
    /// The ids of their inits on the server.
    #[serde(default)]
    pub inits: Vec<i32>,
}

/// How one container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// How far it has come.
    pub state: ContainerState,
    /// How often its program was executed.
    pub starts: u32,
}
