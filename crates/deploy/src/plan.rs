//! What will be done to an app's machines.
//!
//! Never calls anything: the machines as they are come in, a list of operations comes out.

use std::fmt;

use perch_types::api::{CreateMachineRequest, Machine};
use perch_types::app_config::{AppConfig, ExpandError, Strategy};
use perch_types::machine_config::MountConfig;
use perch_types::volume::CreateVolumeRequest;
use perch_types::{MachineConfig, MachineId, MachineState};

/// The key of a machine's metadata that marks it as made by a deploy.
const PLATFORM_KEY: &str = "fly_platform_version";
/// The key of a machine's metadata that names its process group.
const GROUP_KEY: &str = "fly_process_group";
/// The key of a machine's metadata that counts deploys.
const RELEASE_KEY: &str = "fly_release_version";
/// The most machines that are updated at once, whatever the file says.
const AT_ONCE_MAX: usize = 8;
/// How much of an image's reference is shown.
const IMAGE_SHOWN_CHARACTERS: usize = 80;

/// How to plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Where new machines go; the file's primary region when unset.
    pub region: Option<String>,
    /// How many machines a new group gets; 0 is one.
    pub machines_per_group: usize,
}

/// One operation on one machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A new machine.
    Create {
        /// Its process group.
        group: String,
        /// What to create.
        request: Box<CreateMachineRequest>,
        /// Volumes that it needs, to be made where there is no unattached one of the name.
        volumes: Vec<CreateVolumeRequest>,
    },
    /// A new version of a machine.
    Update {
        /// Which.
        machine: MachineId,
        /// Its process group.
        group: String,
        /// What it becomes.
        request: Box<CreateMachineRequest>,
        /// What puts it back.
        before: Box<CreateMachineRequest>,
        /// Volumes that it needs and does not have.
        volumes: Vec<CreateVolumeRequest>,
    },
    /// A machine of a group that the file no longer has.
    Destroy {
        /// Which.
        machine: MachineId,
        /// Its process group.
        group: String,
    },
}

impl Op {
    /// Returns whether the machine runs afterwards, so that it can be watched.
    #[must_use]
    pub fn starts(&self) -> bool {
        match self {
            Self::Create { request, .. } | Self::Update { request, .. } => !request.skip_launch,
            Self::Destroy { .. } => false,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { group, request, .. } => {
                write!(f, "create a machine for `{group}`")?;
                match &request.region {
                    Some(region) => write!(f, " in {region}"),
                    None => Ok(()),
                }
            }
            Self::Update { machine, group, request, .. } if request.skip_launch => {
                write!(f, "update machine {machine} of `{group}`, which stays stopped")
            }
            Self::Update { machine, group, .. } => {
                write!(f, "update machine {machine} of `{group}`")
            }
            Self::Destroy { machine, group } => {
                write!(f, "destroy machine {machine}: `{group}` is no longer in the file")
            }
        }
    }
}

/// A list of operations, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The operations.
    pub ops: Vec<Op>,
    /// How many operations in a row are carried out at once; together they are all.
    pub batches: Vec<usize>,
    /// The image that all machines get.
    pub image: String,
    /// Whether to look at each machine before the next.
    pub strategy: Strategy,
    /// The deploy's number: one more than any machine's.
    pub release: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image: String = self.image.chars().take(IMAGE_SHOWN_CHARACTERS).collect();
        writeln!(f, "release {} with the image {image}", self.release)?;
        let total = self.ops.len();
        let mut ops = self.ops.iter().enumerate();
        for size in &self.batches {
            for (index, op) in ops.by_ref().take(*size) {
                write!(f, "[{}/{total}] {op}", index + 1)?;
                if *size > 1 {
                    write!(f, " ({size} at once)")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// Returns what makes the machines what the file says.
///
/// Machines that run come first, then those that do not, then those to destroy: as long as
/// nothing new serves, everything old does. Of the machines of a group that run the first is
/// updated alone, then as many at once as the file allows to be unavailable (contract 7.4).
/// Machines that no deploy made are left alone.
///
/// # Errors
/// When the file contradicts itself.
pub fn plan(
    machines: &[Machine],
    config: &AppConfig,
    image: &str,
    options: &Options,
) -> Result<Plan, ExpandError> {
    let mut managed: Vec<&Machine> =
        machines.iter().filter(|machine| is_managed(machine)).collect();
    managed.sort_by(|a, b| a.created_at.cmp(&b.created_at).then_with(|| a.id.cmp(&b.id)));
    let release = 1 + managed.iter().map(|machine| release_of(machine)).max().unwrap_or_default();
    let groups = config.groups();
    let mut running = Vec::new();
    let mut waiting = Vec::new();
    let mut batches = Vec::new();
    for group in &groups {
        let mut wanted = config.to_machine_config(group, image)?;
        wanted.metadata.insert(RELEASE_KEY.to_owned(), release.to_string());
        let members: Vec<&&Machine> = managed.iter().filter(|it| group_of(it) == *group).collect();
        if members.is_empty() {
            let count = options.machines_per_group.max(1);
            let op = create(group, &wanted, config, options);
            running.extend(std::iter::repeat_n(op, count));
        }
        let created = running.len();
        let updates = members.into_iter().map(|machine| {
            let volumes = config.volumes_of(group, Some(machine.region.as_str()));
            update(machine, group, &wanted, volumes)
        });
        let (starting, resting): (Vec<Op>, Vec<Op>) = updates.partition(Op::starts);
        batches.extend(std::iter::repeat_n(1, created.saturating_sub(batches.iter().sum())));
        batches.extend(batches_of(starting.len(), config));
        running.extend(starting);
        waiting.extend(resting);
    }
    let gone = managed.iter().filter(|machine| !groups.contains(&group_of(machine)));
    let destroy = gone.map(|machine| Op::Destroy {
        machine: machine.id.clone(),
        group: group_of(machine).to_owned(),
    });
    let ops: Vec<Op> = running.into_iter().chain(waiting).chain(destroy).collect();
    batches.extend(std::iter::repeat_n(1, ops.len().saturating_sub(batches.iter().sum())));
    Ok(Plan { ops, batches, image: image.to_owned(), strategy: config.strategy(), release })
}

/// Returns what has the machines begin anew as they are, one after the other, so that they see at
/// least a version of the app's secrets. Those that do not run see it at their next start, and
/// those that no deploy made are left alone.
#[must_use]
pub fn restart(machines: &[Machine], min_secrets_version: u64) -> Plan {
    let mut managed: Vec<&Machine> = machines.iter().filter(|it| is_managed(it)).collect();
    managed.sort_by(|a, b| a.created_at.cmp(&b.created_at).then_with(|| a.id.cmp(&b.id)));
    let release = 1 + managed.iter().map(|machine| release_of(machine)).max().unwrap_or_default();
    let image = managed.first().map(|machine| machine.config.image.clone()).unwrap_or_default();
    let ops = managed.into_iter().filter_map(|machine| {
        let mut wanted = machine.config.clone();
        wanted.metadata.insert(RELEASE_KEY.to_owned(), release.to_string());
        let mut op = update(machine, group_of(machine), &wanted, Vec::new());
        if let Op::Update { request, .. } = &mut op {
            request.min_secrets_version = Some(min_secrets_version);
        }
        op.starts().then_some(op)
    });
    let ops: Vec<Op> = ops.collect();
    let batches = vec![1; ops.len()];
    Plan { ops, batches, image, strategy: Strategy::Rolling, release }
}

/// Cuts a group's running machines into those that are updated at once.
fn batches_of(machines: usize, config: &AppConfig) -> Vec<usize> {
    let Some(mut left) = machines.checked_sub(1) else {
        return Vec::new();
    };
    let total = u32::try_from(machines).unwrap_or(u32::MAX);
    let size = usize::try_from(config.max_unavailable(total)).unwrap_or(usize::MAX);
    let size = size.clamp(1, AT_ONCE_MAX);
    // The first shows whether the new version works at all.
    let mut batches = vec![1];
    while left > 0 {
        let batch = left.min(size);
        batches.push(batch);
        left -= batch;
    }
    batches
}

fn is_managed(machine: &Machine) -> bool {
    let made_by_deploy = machine.config.metadata.get(PLATFORM_KEY).is_some_and(|it| it == "v2");
    let gone = matches!(machine.state, MachineState::Destroying | MachineState::Destroyed);
    made_by_deploy && !gone
}

fn group_of(machine: &Machine) -> &str {
    machine
        .config
        .metadata
        .get(GROUP_KEY)
        .map_or(perch_types::app_config::DEFAULT_GROUP, String::as_str)
}

fn release_of(machine: &Machine) -> u64 {
    machine.config.metadata.get(RELEASE_KEY).and_then(|it| it.parse().ok()).unwrap_or_default()
}

fn create(group: &str, wanted: &MachineConfig, config: &AppConfig, options: &Options) -> Op {
    let region = options.region.clone().or_else(|| config.primary_region.clone());
    let request =
        CreateMachineRequest { config: wanted.clone(), region, ..CreateMachineRequest::default() };
    let volumes = config.volumes_of(group, request.region.as_deref());
    Op::Create { group: group.to_owned(), request: Box::new(request), volumes }
}

/// `volumes` are those that the file asks for; the ones that the machine has already fall away.
fn update(
    machine: &Machine,
    group: &str,
    wanted: &MachineConfig,
    mut volumes: Vec<CreateVolumeRequest>,
) -> Op {
    let runs = matches!(
        machine.state,
        MachineState::Started
            | MachineState::Starting
            | MachineState::Restarting
            | MachineState::Replacing
            | MachineState::Failed
    );
    let request = CreateMachineRequest {
        config: merged(&machine.config, wanted),
        skip_launch: !runs,
        current_version: Some(machine.instance_id.to_string()),
        ..CreateMachineRequest::default()
    };
    let before = CreateMachineRequest {
        config: machine.config.clone(),
        skip_launch: !runs,
        ..CreateMachineRequest::default()
    };
    volumes.retain(|volume| {
        let lacks = |mount: &MountConfig| mount.name == volume.name && mount.volume.is_empty();
        request.config.mounts.iter().any(lacks)
    });
    Op::Update {
        volumes,
        machine: machine.id.clone(),
        group: group.to_owned(),
        request: Box::new(request),
        before: Box::new(before),
    }
}

/// Returns the machine's configuration with what the file says about it (contract 2.6): labels are
/// added, size is kept unless the file has one, all else that the file can say is replaced.
fn merged(old: &MachineConfig, wanted: &MachineConfig) -> MachineConfig {
    let mut config = old.clone();
    config.image.clone_from(&wanted.image);
    config.env.clone_from(&wanted.env);
    config.init.clone_from(&wanted.init);
    config.services.clone_from(&wanted.services);
    config.checks.clone_from(&wanted.checks);
    config.restart.clone_from(&wanted.restart);
    config.stop_config.clone_from(&wanted.stop_config);
    config.mounts.clone_from(&wanted.mounts);
    for mount in &mut config.mounts {
        // It keeps the volume that it has.
        let same = old.mounts.iter().find(|had| had.name == mount.name);
        if let Some(had) = same {
            mount.volume.clone_from(&had.volume);
        }
    }
    config.metadata.extend(wanted.metadata.clone());
    if wanted.guest.is_some() {
        config.guest.clone_from(&wanted.guest);
    }
    config
}
