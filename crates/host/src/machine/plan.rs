//! Which steps carry out what a machine is to do.
//!
//! Never runs one: a pure table, printed as docs/states.md.

#![deny(clippy::wildcard_enum_match_arm)]

use perch_durable as durable;
use serde::{Deserialize, Serialize};

use super::record::Record;

/// What a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// A new machine is prepared and started.
    Launch,
    /// A new machine is prepared and left stopped.
    Prepare,
    /// A machine that does not run is started.
    Start,
    /// A machine that runs is stopped.
    Stop,
    /// The processes of a machine that runs are frozen.
    Suspend,
    /// The processes of a suspended machine go on.
    Resume,
    /// A machine ended by itself; what its boot left is removed.
    Settle,
    /// A new version takes the place of the old.
    Update {
        /// Leave it stopped if it does not run.
        skip_launch: bool,
    },
    /// A machine is removed.
    Destroy,
}

impl Intent {
    /// Returns the run's kind in the journal.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Launch => "launch",
            Self::Prepare => "prepare",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Settle => "settle",
            Self::Update { .. } => "update",
            Self::Destroy => "destroy",
        }
    }
}

impl Intent {
    /// Returns the name under which the run's time is kept.
    #[must_use]
    pub const fn run_name(self) -> &'static str {
        match self {
            Self::Launch => "run: launch",
            Self::Prepare => "run: prepare",
            Self::Start => "run: start",
            Self::Stop => "run: stop",
            Self::Suspend => "run: suspend",
            Self::Resume => "run: resume",
            Self::Settle => "run: settle",
            Self::Update { .. } => "run: update",
            Self::Destroy => "run: destroy",
        }
    }
}

/// A step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The image is on the host and mounted.
    Image,
    /// The writable layer is there.
    Rootfs,
    /// The machine has its volumes.
    Volume,
    /// No request is under way to the boot that runs.
    Drain,
    /// The boot that runs is ended.
    Stop,
    /// The processes of the boot that runs stand still.
    Freeze,
    /// They go on.
    Thaw,
    /// The cage of a boot is made, without its program.
    Boot,
    /// The cage is connected.
    Network,
    /// The program is executed.
    Execute,
    /// The boot's interface is removed.
    Detach,
    /// What the boot left is removed.
    Clean,
    /// Writable layers that are no version's any more are removed.
    Discard,
    /// The machine's files are removed.
    Erase,
}

impl Step {
    /// All steps.
    pub const ALL: [Self; 14] = [
        Self::Image,
        Self::Rootfs,
        Self::Volume,
        Self::Drain,
        Self::Stop,
        Self::Freeze,
        Self::Thaw,
        Self::Boot,
        Self::Network,
        Self::Execute,
        Self::Detach,
        Self::Clean,
        Self::Discard,
        Self::Erase,
    ];

    /// Returns its name in the journal.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Rootfs => "rootfs",
            Self::Volume => "volume",
            Self::Drain => "drain",
            Self::Stop => "stop",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Boot => "boot",
            Self::Network => "network",
            Self::Execute => "execute",
            Self::Detach => "detach",
            Self::Clean => "clean",
            Self::Discard => "discard",
            Self::Erase => "erase",
        }
    }

    /// Finds a step by its name in the journal.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.name() == name)
    }
}

/// Returns the steps that carry out `intent` for a machine as its record is.
#[must_use]
pub fn plan(record: &Record, intent: Intent) -> Vec<Step> {
    let launch =
        [Step::Image, Step::Rootfs, Step::Volume, Step::Boot, Step::Network, Step::Execute];
    match intent {
        Intent::Launch | Intent::Start => launch.to_vec(),
        Intent::Prepare => vec![Step::Image, Step::Volume],
        Intent::Stop => vec![Step::Drain, Step::Stop, Step::Detach, Step::Clean],
        Intent::Suspend => vec![Step::Drain, Step::Freeze],
        Intent::Resume => vec![Step::Thaw],
        Intent::Settle => vec![Step::Detach, Step::Clean],
        Intent::Destroy => vec![Step::Stop, Step::Detach, Step::Clean, Step::Erase],
        // Nobody asked for a suspended machine to run: the new version is left stopped.
        Intent::Update { skip_launch: true } if record.is_frozen() => {
            vec![Step::Image, Step::Volume, Step::Stop, Step::Detach, Step::Clean, Step::Discard]
        }
        Intent::Update { .. } if record.boot.is_some() => vec![
            Step::Image,
            Step::Rootfs,
            Step::Volume,
            Step::Drain,
            Step::Stop,
            Step::Boot,
            Step::Network,
            Step::Execute,
            Step::Discard,
        ],
        Intent::Update { skip_launch: true } => vec![Step::Image, Step::Volume, Step::Discard],
        Intent::Update { skip_launch: false } => {
            let mut steps = launch.to_vec();
            steps.push(Step::Discard);
            steps
        }
    }
}

/// Returns the index of the first step that is never undone.
#[must_use]
pub fn point_of_no_return(intent: Intent, steps: &[Step]) -> Option<usize> {
    match intent {
        Intent::Stop | Intent::Settle | Intent::Destroy => Some(0),
        // Without a new boot there is nothing that could fail later than the end of the old one.
        Intent::Update { .. } if !steps.contains(&Step::Execute) => {
            steps.iter().position(|step| matches!(step, Step::Stop | Step::Discard))
        }
        Intent::Update { .. } => steps.iter().position(|step| *step == Step::Discard),
        Intent::Launch | Intent::Prepare | Intent::Start | Intent::Suspend | Intent::Resume => None,
    }
}

/// Returns a step as the journal keeps it. Only an update's stop has a commit of its own: until
/// then the old version serves and must not count as stopped; everything else is cheap to do
/// again.
#[must_use]
pub fn journaled(intent: Intent, step: Step) -> durable::Step {
    match (intent, step) {
        (Intent::Update { .. }, Step::Stop) => durable::Step::own(step.name()),
        (
            Intent::Launch
            | Intent::Prepare
            | Intent::Start
            | Intent::Stop
            | Intent::Suspend
            | Intent::Resume
            | Intent::Settle
            | Intent::Update { .. }
            | Intent::Destroy,
            Step::Image
            | Step::Rootfs
            | Step::Volume
            | Step::Drain
            | Step::Stop
            | Step::Freeze
            | Step::Thaw
            | Step::Boot
            | Step::Network
            | Step::Execute
            | Step::Detach
            | Step::Clean
            | Step::Discard
            | Step::Erase,
        ) => durable::Step::shared(step.name()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
