//! What a host keeps of a machine, and how runs and facts change it.
//!
//! Never writes itself: whoever changes a record commits it with the journal, in one transaction.

use perch_runtime::{ExitReason, ExitStatus};
use perch_types::api::{CheckStatus, ExitEvent, ExitRequest, MachineEvent};
use perch_types::host::{EVENTS_MAX, SecretsWanted};
use perch_types::image::ImageRef;
use perch_types::machine_config::RootfsPersist;
use perch_types::{ApiError, AppName, InstanceId, MachineConfig, MachineId, OrgSlug, Timestamp};
use serde::{Deserialize, Serialize};

use super::restart::History;
use super::state::State;

mod publish;

pub use publish::{Place, host_machine};

/// One version of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Its id.
    pub instance: InstanceId,
    /// The placement's epoch that asked for it.
    pub epoch: u64,
    /// What to run.
    pub config: MachineConfig,
    /// SHA-256 of the configuration.
    pub config_digest: String,
    /// The image, resolved.
    pub image: ImageRef,
    /// The further images of one with containers, resolved: in the order of
    /// [`MachineConfig::image_references`] after the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<ImageRef>,
    /// The file name of its writable layer in the machine's folder.
    pub upper: String,
    /// What it needs of the app's secrets.
    #[serde(default)]
    pub secrets: SecretsWanted,
}

/// A boot that runs, or is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Its number.
    pub number: u64,
    /// The signal that a stop sent, 0 for none.
    #[serde(default)]
    pub stop_signal: i32,
    /// Whether its processes are frozen: the machine is suspended.
    #[serde(default)]
    pub frozen: bool,
    /// The limits that it has run into, each told once.
    #[serde(default)]
    pub reached: Vec<Reached>,
}

/// A limit that a machine has run into while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// A process was killed for want of memory.
    Memory,
    /// No further process could be made.
    Processes,
    /// Its root file system was full.
    Disk,
    /// A volume that it mounts was full.
    Volume,
    /// Its log could not keep every line.
    Log,
}

impl Boot {
    /// Returns a boot that has just begun.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self { number, stop_signal: 0, frozen: false, reached: Vec::new() }
    }
}

/// What should be, as far as the host knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It should run.
    Running,
    /// It should not run.
    Stopped,
    /// It should not be.
    Gone,
}

/// A machine as its host keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The machine.
    pub id: MachineId,
    /// Who owns it.
    pub org: OrgSlug,
    /// Its app.
    pub app: AppName,
    /// Its name.
    pub name: String,
    /// The number of its private network.
    pub network_id: u32,
    /// Its slot: private IPv4 address and range of user ids, for its life.
    pub slot: u32,
    /// Its state.
    pub state: State,
    /// What should be.
    pub desired: Desired,
    /// Whether it is out of routing.
    pub cordoned: bool,
    /// What it is.
    pub version: Version,
    /// What an update makes of it.
    #[serde(default)]
    pub next: Option<Version>,
    /// The last number that was given to a boot.
    pub boots: u64,
    /// The boot that runs.
    #[serde(default)]
    pub boot: Option<Boot>,
    /// Its restarts.
    #[serde(default)]
    pub history: History,
    /// When it is to be started again, in milliseconds since the server booted.
    #[serde(default)]
    pub restart_boot_ms: Option<u64>,
    /// The run of its schedule that was dealt with last, in milliseconds since 1970.
    #[serde(default)]
    pub schedule_ms: Option<i64>,
    /// The failures of other machines that were dealt with, by the ids of their events.
    #[serde(default)]
    pub stood_in: Vec<String>,
    /// The version of the app's secrets that its last boot saw.
    #[serde(default)]
    pub secrets_version: Option<u64>,
    /// Why its last run could not be carried out.
    #[serde(default)]
    pub failure: Option<ApiError>,
    /// The version that the last update could not bring.
    #[serde(default)]
    pub given_up: Option<InstanceId>,
    /// What happened, newest first.
    pub events: Vec<MachineEvent>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When this record last changed.
    pub updated_at: Timestamp,
}

/// What a machine's ports and checks say; in memory only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Whether it may get requests.
    pub ready: bool,
    /// Why not.
    pub because: Option<String>,
    /// Its checks.
    pub checks: Vec<CheckStatus>,
    /// Its containers.
    pub containers: Vec<perch_types::api::ContainerSummary>,
}

/// How a boot's end came about and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exiting {
    /// Whether a stop had been asked for.
    pub asked: bool,
    /// Whether it is being started again.
    pub restarting: bool,
}

/// Who caused an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Somebody asked for it.
    User,
    /// The platform did it.
    Platform,
}

/// When something happens, and the random part of its event's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instant {
    /// When.
    pub now: Timestamp,
    /// 80 random bits.
    pub random: u128,
}

impl Record {
    /// Notes an event. At most [`EVENTS_MAX`] are kept.
    pub fn note(&mut self, kind: &str, source: Source, at: Instant) -> &mut MachineEvent {
        let unix_ms = at.now.unix_ms();
        // Ids of one record grow even if the clock stands still or was set back.
        let random = at.random.wrapping_add(u128::from(self.boots));
        let event = MachineEvent {
            id: perch_types::id::ulid(u64::try_from(unix_ms).unwrap_or_default(), random),
            kind: kind.to_owned(),
            status: self.state.as_str().to_owned(),
            source: match source {
                Source::User => "user",
                Source::Platform => "flyd",
            }
            .to_owned(),
            timestamp: unix_ms,
            request: None,
        };
        self.updated_at = at.now;
        self.events.insert(0, event);
        self.events.truncate(EVENTS_MAX);
        &mut self.events[0]
    }

    /// Notes the end of the boot that ran, in the shape of contract 1.3.
    pub fn note_exit(&mut self, exit: &ExitStatus, how: Exiting, at: Instant) {
        if exit.forks_refused {
            // The exit itself does not say so. Whoever looks at machines that run may have come too
            // late; the log says it already.
            self.note_reached(Reached::Processes, at);
        }
        let signal = self.boot.as_ref().map_or(0, |boot| boot.stop_signal);
        let request = ExitRequest {
            exit_event: exit_event(exit, how, signal, at.now),
            restart_count: self.history.count,
        };
        let event = self.note("exit", Source::Platform, at);
        event.request = serde_json::to_value(request).ok();
    }

    /// Returns the version that the next boot runs: an update's, or the current one.
    #[must_use]
    pub fn incoming(&self) -> &Version {
        self.next.as_ref().unwrap_or(&self.version)
    }

    /// Notes that the boot ran into a limit; returns what is to be said of it, the first time.
    pub fn note_reached(&mut self, what: Reached, at: Instant) -> Option<String> {
        let config = &self.version.config;
        let (limit, text) = match what {
            Reached::Memory => (
                "memory",
                format!(
                    "out of memory: the machine reached its {} MiB and a process in it was killed",
                    config.memory_mb()
                ),
            ),
            Reached::Processes => (
                "processes",
                format!(
                    "too many processes: the machine reached its {} and could make no other",
                    super::guest::limits(config).pids_max
                ),
            ),
            Reached::Disk => {
                ("disk", "out of disk: the machine's root file system is full".to_owned())
            }
            Reached::Volume => {
                ("volume", "out of disk: a volume that the machine mounts is full".to_owned())
            }
            Reached::Log => (
                "log",
                "log lines were dropped: the machine wrote more than its log keeps".to_owned(),
            ),
        };
        let boot = self.boot.as_mut().filter(|boot| !boot.reached.contains(&what))?;
        boot.reached.push(what);
        let request = serde_json::json!({"limit": limit, "error": text});
        self.note("limit", Source::Platform, at).request = Some(request);
        Some(text)
    }

    /// Notes that its last run failed, and why.
    pub fn note_failure(&mut self, error: &ApiError, at: Instant) {
        let request = serde_json::json!({"error": error.error, "code": error.code});
        self.note("failed", Source::Platform, at).request = Some(request);
    }

    /// Returns whether the boot that it has is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.boot.as_ref().is_some_and(|boot| boot.frozen)
    }

    /// Returns a new boot's number.
    pub fn new_boot(&mut self) -> u64 {
        self.boots = self.boots.saturating_add(1);
        self.boots
    }

    /// Returns whether the next boot begins with an empty writable layer. `after_exit`: the
    /// program ended by itself or is restarted, rather than stopped and started.
    #[must_use]
    pub fn begins_fresh(&self, after_exit: bool) -> bool {
        match self.version.config.rootfs_persist() {
            RootfsPersist::Never => true,
            RootfsPersist::Restart => !after_exit,
            RootfsPersist::Always => false,
        }
    }

    /// Returns the name of a version's writable layer: the old one's if the layer is to be kept
    /// always and every image is the same. Containers have their folders in it by their number.
    #[must_use]
    pub fn upper_for(
        &self,
        config: &MachineConfig,
        (image, others): (&ImageRef, &[ImageRef]),
        instance: &InstanceId,
    ) -> String {
        let before = &self.version;
        let digests =
            |all: &[ImageRef]| all.iter().map(|one| one.digest.clone()).collect::<Vec<_>>();
        let names = |config: &MachineConfig| {
            config.containers.iter().map(|one| one.name.clone()).collect::<Vec<_>>()
        };
        let keeps = config.rootfs_persist() == RootfsPersist::Always
            && image.digest == before.image.digest
            && digests(others) == digests(&before.others)
            && names(config) == names(&before.config);
        if keeps { self.version.upper.clone() } else { upper_name(instance) }
    }
}

/// Returns the file name of the writable layer of a version.
#[must_use]
pub fn upper_name(instance: &InstanceId) -> String {
    format!("{}{}.img", crate::layers::LAYER_PREFIX, instance.as_str().to_ascii_lowercase())
}

fn exit_event(exit: &ExitStatus, how: Exiting, signal: i32, now: Timestamp) -> ExitEvent {
    ExitEvent {
        exit_code: exit.code,
        guest_exit_code: if exit.signal.is_some() { -1 } else { exit.code },
        guest_signal: exit.signal.unwrap_or_default(),
        oom_killed: exit.oom_killed,
        requested_stop: how.asked,
        restarting: how.restarting,
        signal,
        exited_at: match i64::try_from(exit.ended_unix_ms) {
            Ok(ended) if ended > 0 => Timestamp::from_unix_ms(ended),
            _ => now,
        },
        error: error_of(exit),
        process: exit.process,
        container: exit.container.clone(),
    }
}

fn error_of(exit: &ExitStatus) -> Option<String> {
    let fallback = match exit.reason {
        ExitReason::Exited | ExitReason::Killed => return None,
        ExitReason::NotExecutable => "the program could not be executed",
        ExitReason::InitFault => "the machine's init ended",
        ExitReason::MonitorLost => "the machine's monitor was lost; its exit code is not known",
        ExitReason::NotStarted => "the machine was never started",
    };
    Some(if exit.message.is_empty() { fallback.to_owned() } else { exit.message.clone() })
}

#[cfg(test)]
pub(crate) mod tests;
