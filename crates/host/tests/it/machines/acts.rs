//! Everything that is done to a machine or a volume, for tests in which it is cut short.
//!
//! Never kills and fills nothing itself: the tests do, at each of an act's commits.

use std::time::{Duration, Instant};

use perch_host::Host;
use perch_types::host::{
    Command, CreateMachine, CreateVolume, HostMachine, VolumeCommand, VolumeSource,
};
use perch_types::machine_config::{RestartConfig, RestartPolicy, Signal, StopConfig};
use perch_types::{ApiError, InstanceId, MachineState, SnapshotId, VolumeId};

use super::server::{PATIENCE, Server, exec, machine, tell, wait};
use super::volumes::volume;

const SCRIPT: &str = "echo up; while [ ! -e /tmp/go ]; do sleep 0.02; done; rm /tmp/go; exit 0";
/// Beyond the time that a destroyed volume is kept.
const LATER_MS: i64 = 25 * 60 * 60 * 1000;
/// Beyond the days that a snapshot of a test's volume is kept.
const EXPIRED_MS: i64 = 6 * LATER_MS;
/// Numbers of machines that only look at a volume begin here.
const LOOKING: u64 = 500_000;

/// Names everything that is done once, as the type and as the list that tests go through.
macro_rules! acts {
    ($($act:ident),+ $(,)?) => {
        /// What is done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Act {
            $($act),+
        }

        pub(super) const ACTS: [Act; [$(stringify!($act)),+].len()] = [$(Act::$act),+];
    };
}

acts! {
    Launch,
    Prepare,
    LaunchNothing,
    Start,
    Stop,
    Restart,
    Update,
    UpdateStopped,
    UpdateOnly,
    UpdateSuspended,
    UpdateSuspendedOnly,
    UpdateToNothing,
    Cordon,
    Exit,
    ExitAndRestart,
    Destroy,
    DestroyStopped,
    Suspend,
    Resume,
    StopSuspended,
    LaunchMounted,
    DestroyMounted,
    UpdateUnmounted,
    VolumeCreate,
    VolumeExtend,
    VolumeSnapshot,
    VolumeRestore,
    VolumeFork,
    VolumeDestroy,
    VolumePurge,
    SnapshotExpire,
}

/// What a machine is to have come to before an act begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Stopped,
    Started,
    Suspended,
}

/// What acts are put through a kill together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Begins,
    Ends,
    Changes,
    OfVolume,
}

impl Act {
    pub(super) fn named(name: &str) -> Self {
        ACTS.into_iter().find(|act| format!("{act:?}") == name).unwrap()
    }

    /// Returns what there is of the machine before it; nothing as well where none is needed.
    fn before(self) -> Before {
        match self {
            Self::Launch
            | Self::Prepare
            | Self::LaunchNothing
            | Self::LaunchMounted
            | Self::VolumeCreate
            | Self::VolumeRestore
            | Self::VolumeDestroy
            | Self::VolumePurge
            | Self::SnapshotExpire => Before::Nothing,
            Self::Start | Self::UpdateStopped | Self::UpdateOnly | Self::DestroyStopped => {
                Before::Stopped
            }
            Self::Stop
            | Self::Restart
            | Self::Update
            | Self::UpdateToNothing
            | Self::Cordon
            | Self::Exit
            | Self::ExitAndRestart
            | Self::Destroy
            | Self::Suspend
            | Self::DestroyMounted
            | Self::UpdateUnmounted
            | Self::VolumeExtend
            | Self::VolumeSnapshot
            | Self::VolumeFork => Before::Started,
            Self::Resume
            | Self::StopSuspended
            | Self::UpdateSuspended
            | Self::UpdateSuspendedOnly => Before::Suspended,
        }
    }

    /// Returns whether its machine mounts a volume.
    pub(super) fn mounts(self) -> bool {
        matches!(
            self,
            Self::LaunchMounted
                | Self::DestroyMounted
                | Self::UpdateUnmounted
                | Self::VolumeExtend
                | Self::VolumeSnapshot
                | Self::VolumeFork
        )
    }

    /// Returns what it does: here one that is new says which test it belongs to.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Launch
            | Self::Prepare
            | Self::LaunchNothing
            | Self::Start
            | Self::Resume
            | Self::LaunchMounted => Kind::Begins,
            Self::Stop
            | Self::Exit
            | Self::Destroy
            | Self::DestroyStopped
            | Self::Cordon
            | Self::Suspend
            | Self::StopSuspended
            | Self::DestroyMounted => Kind::Ends,
            Self::Restart
            | Self::ExitAndRestart
            | Self::Update
            | Self::UpdateStopped
            | Self::UpdateOnly
            | Self::UpdateSuspended
            | Self::UpdateSuspendedOnly
            | Self::UpdateToNothing
            | Self::UpdateUnmounted => Kind::Changes,
            Self::VolumeCreate
            | Self::VolumeExtend
            | Self::VolumeSnapshot
            | Self::VolumeRestore
            | Self::VolumeFork
            | Self::VolumeDestroy
            | Self::VolumePurge
            | Self::SnapshotExpire => Kind::OfVolume,
        }
    }

    /// Returns whether it is done to a volume, which a machine may have meanwhile.
    pub(super) fn is_of_volume(self) -> bool {
        self.kind() == Kind::OfVolume
    }

    pub(super) fn request(self, number: u64) -> CreateMachine {
        let mut request = machine(number, SCRIPT);
        // A shell takes no notice of SIGINT, and nobody wants to wait for it.
        let signal = Some(Signal::SigKill);
        request.config.stop_config = Some(StopConfig { signal, ..StopConfig::default() });
        request.skip_launch = self == Self::Prepare;
        if self == Self::LaunchNothing {
            request.config.init.exec = vec!["/no/such/program".to_owned()];
        }
        if self == Self::ExitAndRestart {
            request.config.restart =
                Some(RestartConfig { policy: Some(RestartPolicy::Always), ..Default::default() });
        }
        if self.mounts() {
            // A launch makes the volume larger on its way.
            let size_gb = (self == Self::LaunchMounted).then_some(2);
            let mount =
                serde_json::json!({"volume": data(number), "path": "/data", "size_gb": size_gb});
            request.config.mounts = vec![serde_json::from_value(mount).unwrap()];
        }
        request
    }

    /// Brings machine and volume to where the act begins.
    pub(super) async fn prepare(self, server: &Server, host: &Host, number: u64) {
        let request = self.request(number);
        let id = request.id.clone();
        let is_made = self.is_of_volume() && self != Self::VolumeCreate;
        if is_made || self.mounts() {
            host.create_volume(asked(number, VolumeSource::Empty)).await.unwrap();
        }
        let before = self.before();
        if before != Before::Nothing {
            let skip_launch = before == Before::Stopped;
            host.create(CreateMachine { skip_launch, ..request }).await.unwrap();
            wait(host, &id, if skip_launch { "stopped" } else { "started" }).await;
        }
        if before == Before::Suspended {
            tell(host, &id, Command::Suspend).await;
            wait(host, &id, "suspended").await;
        }
        if before == Before::Started && self.mounts() {
            exec(host, &id, "echo before > /data/before && sync").await.unwrap();
        }
        if matches!(self, Self::VolumeRestore | Self::VolumePurge | Self::SnapshotExpire) {
            let snapshot = VolumeCommand::Snapshot { id: snapshot(number) };
            host.volume_command(&data(number), snapshot).await.unwrap();
        }
        if self == Self::VolumePurge {
            host.volume_command(&data(number), VolumeCommand::Destroy).await.unwrap();
            server.clock.turn(LATER_MS);
        }
        if self == Self::SnapshotExpire {
            server.clock.turn(EXPIRED_MS);
        }
    }

    /// Asks for the act; that may be refused.
    pub(super) async fn begin(self, host: &Host, number: u64) -> Result<(), ApiError> {
        let request = self.request(number);
        let id = request.id.clone();
        let command = match self {
            Self::Launch | Self::Prepare | Self::LaunchNothing | Self::LaunchMounted => {
                return host.create(request).await.map(drop);
            }
            Self::Exit | Self::ExitAndRestart => {
                return exec(host, &id, "touch /tmp/go").await.map(drop);
            }
            Self::Start | Self::Resume => Command::Start,
            Self::Stop | Self::StopSuspended => Command::Stop { signal: None, timeout: None },
            Self::Restart => Command::Restart { force: true, signal: None, timeout: None },
            Self::Update
            | Self::UpdateStopped
            | Self::UpdateOnly
            | Self::UpdateSuspended
            | Self::UpdateSuspendedOnly
            | Self::UpdateToNothing
            | Self::UpdateUnmounted => self.update(number),
            Self::Cordon => Command::SetCordoned { cordoned: true },
            Self::Destroy | Self::DestroyStopped | Self::DestroyMounted => {
                Command::Destroy { force: true }
            }
            Self::Suspend => Command::Suspend,
            Self::VolumeCreate
            | Self::VolumeExtend
            | Self::VolumeSnapshot
            | Self::VolumeRestore
            | Self::VolumeFork
            | Self::VolumeDestroy
            | Self::VolumePurge
            | Self::SnapshotExpire => return self.begin_with_volume(host, number).await,
        };
        host.command(&id, command).await.map(drop)
    }

    async fn begin_with_volume(self, host: &Host, number: u64) -> Result<(), ApiError> {
        let source = match self {
            Self::VolumeRestore => VolumeSource::Snapshot(snapshot(number)),
            Self::VolumeFork => VolumeSource::Volume(data(number)),
            _ => VolumeSource::Empty,
        };
        let command = match self {
            Self::VolumeCreate => {
                return host.create_volume(asked(number, source)).await.map(drop);
            }
            Self::VolumeRestore | Self::VolumeFork => {
                let copy = CreateVolume { id: copy(number), ..asked(number, source) };
                return host.create_volume(copy).await.map(drop);
            }
            Self::VolumeExtend => VolumeCommand::Extend { size_gb: 2 },
            Self::VolumeSnapshot => VolumeCommand::Snapshot { id: snapshot(number) },
            Self::VolumeDestroy => VolumeCommand::Destroy,
            _ => {
                host.tend_volumes().await;
                return Ok(());
            }
        };
        host.volume_command(&data(number), command).await.map(drop)
    }

    fn update(self, number: u64) -> Command {
        let mut config = self.request(number).config;
        config.env.insert("VERSION".to_owned(), "2".to_owned());
        if self == Self::UpdateToNothing {
            config.init.exec = vec!["/no/such/program".to_owned()];
        }
        config.mounts.clear();
        Command::Update {
            instance: second(number),
            epoch: 2,
            config: Box::new(config),
            config_digest: format!("{number}-2"),
            skip_launch: matches!(self, Self::UpdateOnly | Self::UpdateSuspendedOnly),
            cordoned: false,
            secrets: perch_types::host::SecretsWanted::default(),
        }
    }

    /// Returns whether machine and volume are where the act leads.
    pub(super) fn is_reached(self, number: u64, host: &Host) -> bool {
        if self.is_of_volume() {
            return self.is_reached_by_volume(number, host);
        }
        host.get(&self.request(number).id).is_ok_and(|found| {
            let is_reached = self.is_reached_by(number, &found);
            let size = |gb: u32| host.volumes().iter().any(|one| one.size_gb == gb);
            is_reached && (self != Self::LaunchMounted || size(2))
        })
    }

    fn is_reached_by(self, number: u64, found: &HostMachine) -> bool {
        let first = self.request(number).instance;
        let events = |kind: &str| found.events.iter().filter(|event| event.kind == kind).count();
        match self {
            Self::Launch | Self::Start | Self::LaunchMounted => {
                found.state == MachineState::Started
            }
            Self::Prepare | Self::Stop | Self::Exit | Self::LaunchNothing | Self::StopSuspended => {
                found.state == MachineState::Stopped
            }
            Self::Restart => {
                found.state == MachineState::Started && events("start") == 2 && events("exit") == 1
            }
            Self::ExitAndRestart | Self::Resume => {
                found.state == MachineState::Started && events("start") == 2
            }
            Self::Update | Self::UpdateStopped | Self::UpdateSuspended | Self::UpdateUnmounted => {
                found.state == MachineState::Started && found.instance == second(number)
            }
            Self::UpdateOnly | Self::UpdateSuspendedOnly => {
                found.state == MachineState::Stopped && found.instance == second(number)
            }
            Self::UpdateToNothing => {
                found.state == MachineState::Started
                    && found.instance == first
                    && found.failure.is_some()
            }
            Self::Cordon => found.state == MachineState::Started && found.cordoned,
            Self::Suspend => found.state == MachineState::Suspended,
            Self::Destroy | Self::DestroyStopped | Self::DestroyMounted => {
                found.state == MachineState::Destroyed
            }
            Self::VolumeCreate
            | Self::VolumeExtend
            | Self::VolumeSnapshot
            | Self::VolumeRestore
            | Self::VolumeFork
            | Self::VolumeDestroy
            | Self::VolumePurge
            | Self::SnapshotExpire => false,
        }
    }

    fn is_reached_by_volume(self, number: u64, host: &Host) -> bool {
        let (data, copy) = (data(number), copy(number));
        let volumes = host.volumes();
        let is = |id: &VolumeId, state: &str| {
            volumes.iter().any(|one| one.id == *id && one.state.as_str() == state)
        };
        match self {
            Self::VolumeCreate => is(&data, "created"),
            Self::VolumeExtend => {
                is(&data, "created") && volumes.iter().any(|one| one.size_gb == 2)
            }
            Self::VolumeSnapshot => host
                .snapshot(&snapshot(number))
                .is_ok_and(|found| found.snapshot.status == "created"),
            Self::VolumeRestore | Self::VolumeFork => is(&copy, "created"),
            Self::VolumeDestroy => is(&data, "pending_destroy"),
            Self::SnapshotExpire => {
                is(&data, "created") && host.snapshot(&snapshot(number)).is_err()
            }
            _ => !volumes.iter().any(|one| one.id == data),
        }
    }

    /// Makes sure that what there is now can be used.
    pub(super) async fn verify(self, host: &Host, number: u64) {
        let id = self.request(number).id;
        if self == Self::Suspend {
            tell(host, &id, Command::Start).await;
            wait(host, &id, "started").await;
            assert_eq!(exec(host, &id, "echo here").await.unwrap(), "here\n");
        }
        let runs = host.get(&id).is_ok_and(|found| found.state == MachineState::Started);
        if runs && self.mounts() && self != Self::UpdateUnmounted {
            // It would wait for ever for a file system that somebody left frozen.
            let script = "cat /data/before 2>/dev/null; echo more > /data/more && sync && echo ok";
            let said = exec(host, &id, script).await.unwrap();
            let before = if self == Self::LaunchMounted { "" } else { "before\n" };
            assert_eq!(said, format!("{before}ok\n"), "{self:?}");
        }
        if matches!(self, Self::VolumeExtend | Self::LaunchMounted) {
            let size = "df -m /data | tail -n 1 | awk '{print $2}'";
            let megabytes: u64 = exec(host, &id, size).await.unwrap().trim().parse().unwrap();
            assert!(megabytes > 1900, "{self:?}: {megabytes}");
        }
        if self == Self::VolumeFork {
            let mut looking = machine(LOOKING + number, SCRIPT);
            let mount = serde_json::json!({"volume": copy(number), "path": "/data"});
            looking.config.mounts = vec![serde_json::from_value(mount).unwrap()];
            let id = looking.id.clone();
            host.create(looking).await.unwrap();
            wait(host, &id, "started").await;
            assert_eq!(exec(host, &id, "cat /data/before").await.unwrap(), "before\n");
            tell(host, &id, Command::Destroy { force: true }).await;
            wait(host, &id, "destroyed").await;
        }
    }

    /// Takes the machine and its volumes away.
    pub(super) async fn clean(self, server: &Server, host: &Host, number: u64) {
        let id = self.request(number).id;
        if host.get(&id).is_ok_and(|found| found.state != MachineState::Destroyed) {
            tell(host, &id, Command::Destroy { force: true }).await;
            wait(host, &id, "destroyed").await;
        }
        let volumes = host.volumes();
        if volumes.is_empty() {
            return;
        }
        for volume in volumes {
            host.volume_command(&volume.id, VolumeCommand::Destroy).await.unwrap();
        }
        server.clock.turn(LATER_MS);
        // What could not go on ends first; then it is removed.
        let deadline = Instant::now() + PATIENCE;
        while !host.volumes().is_empty() {
            assert!(Instant::now() < deadline, "{self:?}: {:#?}", host.volumes());
            host.tend_volumes().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        server.clock.turn(-LATER_MS);
    }
}

fn second(number: u64) -> InstanceId {
    InstanceId::from_parts(1_700_000_000_001, u128::from(number))
}

fn asked(number: u64, source: VolumeSource) -> CreateVolume {
    CreateVolume { id: data(number), ..volume(1, source) }
}

fn data(number: u64) -> VolumeId {
    VolumeId::from_bits(u128::from(number) * 2)
}

fn copy(number: u64) -> VolumeId {
    VolumeId::from_bits(u128::from(number) * 2 + 1)
}

fn snapshot(number: u64) -> SnapshotId {
    SnapshotId::from_bits(u128::from(number))
}
