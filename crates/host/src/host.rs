//! The agent of one server: it starts, answers, and leaves its machines running when it ends.
//!
//! Never decides what should run: it carries out commands and keeps what was begun going.

mod ask;
mod honour;
mod note;
mod open;
mod remove;
mod resources;
mod tidy;
mod usage;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use perch_durable::Journal;
use perch_store::Store;
use perch_types::api::MachineEvent;
use perch_types::clock::Clock;
use perch_types::host::{
    Accepted, Command, CreateMachine, Drained, HostInfo, HostMachine, Loads, Rest, WatchEvent,
};
use perch_types::image::{Digest, ImageRef};
use perch_types::{ApiError, AppName, Code, HostId, MachineConfig, MachineId};
use tokio::sync::{Mutex, broadcast};
use tokio::task::JoinSet;

pub use ask::WAIT_MS_MAX;
pub use open::{Deps, has_boots, take_restored_state};

use crate::autostop;
use crate::drains::Sender;
use crate::effects::Resolved;
use crate::heartbeat::Beat;
use crate::holds::Hold;
use crate::loads::{Member, Said};
use crate::machine::actor::{Actor, Handle, Origin};
use crate::machine::plan::Intent;
use crate::machine::record::{Desired, Record, Source, Version, upper_name};
use crate::machine::restart::History;
use crate::machine::run::Input;
use crate::machine::state::State;
use crate::schema::{self, Queued, RECORDS};
use crate::shared::Shared;
use crate::volumes;

/// How long the registry may take to say what a reference means.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a shutdown waits for the loops to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Machines that are made at once; more wait, and so do those that fall into one place.
const CREATING_MAX: usize = 64;

/// Places, of which one is held while a machine's record is made: that of its id, so that one id is
/// made once, and others are written in the same commit.
#[derive(Debug, Clone)]
struct Creating(Arc<[Mutex<()>; CREATING_MAX]>);

impl Default for Creating {
    fn default() -> Self {
        Self(Arc::new(std::array::from_fn(|_| Mutex::new(()))))
    }
}

impl Creating {
    fn place(&self, id: &MachineId) -> &Mutex<()> {
        let [first, ..] = &*self.0;
        let place = usize::try_from(id.bits()).unwrap_or(usize::MAX) % CREATING_MAX;
        self.0.get(place).unwrap_or(first)
    }
}

/// The agent of one server. Clones are the same agent.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) shared: Arc<Shared>,
    creating: Creating,
    loops: Arc<Mutex<JoinSet<()>>>,
}

impl Host {
    /// Returns the host's id.
    #[must_use]
    pub fn id(&self) -> &HostId {
        &self.shared.id
    }

    /// Returns the last sign of life of each loop.
    #[must_use]
    pub fn heartbeats(&self) -> Vec<Beat> {
        self.shared.heartbeats.all()
    }

    /// Returns how long the newest steps took in milliseconds, by the step's name.
    #[must_use]
    pub fn step_times(&self) -> Vec<(&'static str, Vec<f64>)> {
        let all = self.shared.step_times.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(step, times)| (*step, times.iter().copied().collect())).collect()
    }

    /// Returns whether the state file takes no more writes: the process should end and start
    /// again.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.db.is_stopped()
    }

    /// Ends the agent's tasks; machines keep running. What a machine's task was doing is dropped,
    /// as good as a crash, before the caller can take away what it does it with.
    pub async fn shutdown(&self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("tasks of machines do not end");
        }
        let mut loops = self.loops.lock().await;
        let ended = async { while loops.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, ended).await.is_err() {
            loops.abort_all();
        }
    }

    /// Makes a machine. The same request again gets the same answer.
    ///
    /// # Errors
    /// When the image is not known, there is no room, or the id is another machine's; nothing is
    /// left then.
    pub async fn create(&self, request: CreateMachine) -> Result<HostMachine, ApiError> {
        if let Some(found) = self.existing(&request)? {
            return Ok(found);
        }
        honour::check(&request.config, honour::Swap::of_server())?;
        self.check_room()?;
        // The image stays from now on: first it is held, then the machine names it.
        let (image, others, _holds) = self.resolve_all(&request.config).await?;
        let _creating = self.creating.place(&request.id).lock().await;
        if let Some(found) = self.existing(&request)? {
            return Ok(found);
        }
        let handle = self.make(request, (image, others)).await?;
        Ok(handle.published().machine.clone())
    }

    fn existing(&self, request: &CreateMachine) -> Result<Option<HostMachine>, ApiError> {
        let Ok(handle) = self.shared.machine(&request.id) else {
            return Ok(None);
        };
        let published = handle.published();
        if published.config_digest == request.config_digest {
            return Ok(Some(published.machine.clone()));
        }
        Err(ApiError::new(
            Code::Conflict,
            format!("machine {} exists with another configuration", request.id),
        ))
    }

    fn check_room(&self) -> Result<(), ApiError> {
        let limits = self.shared.config.limits;
        let count = self
            .shared
            .all()
            .iter()
            .filter(|handle| handle.published().machine.state != State::Destroyed)
            .count();
        if count >= limits.machines_max {
            return Err(ApiError::new(
                Code::InsufficientCapacity,
                format!("host has {count} machines, the limit is {}", limits.machines_max),
            ));
        }
        let free = free_bytes(&self.shared.config.data_dir)?;
        if free < self.shared.disk_floor_bytes() {
            let for_volumes = match self.shared.volumes.kept_bytes() >> 20 {
                0 => String::new(),
                kept => format!(", {kept} MiB more for what volumes may still write"),
            };
            return Err(ApiError::new(
                Code::NoSpace,
                format!(
                    "{} MiB are free in {}, {} MiB are kept in reserve{for_volumes}",
                    free >> 20,
                    self.shared.config.data_dir.display(),
                    limits.disk_reserve_bytes >> 20
                ),
            )
            .with_hint("destroy machines or free space on the server"));
        }
        Ok(())
    }

    /// Refuses at once what the step would refuse later.
    fn check_volumes(&self, id: &MachineId, config: &MachineConfig) -> Result<(), ApiError> {
        let wanted: Vec<_> = volumes::mounts_of(config).map(|(id, _)| id).collect();
        let checked =
            self.shared.db.read(|snapshot| volumes::check_attachable(snapshot, &wanted, id));
        checked.map_err(|error: perch_durable::Error| self.shared.db_error(&error))?
    }

    async fn resolve(&self, reference: &str) -> Result<Resolved, ApiError> {
        let resolving = self.shared.effects.images.resolve(reference);
        match tokio::time::timeout(RESOLVE_TIMEOUT, resolving).await {
            Ok(Ok(resolved)) => Ok(resolved),
            Ok(Err(fault)) => Err(fault.error),
            Err(_) => Err(ApiError::new(
                Code::ImageUnavailable,
                format!("resolve image `{reference}`: its registry does not answer"),
            )),
        }
    }

    /// Resolves all images that a configuration needs: the first, the others, and holds of all.
    async fn resolve_all(
        &self,
        config: &MachineConfig,
    ) -> Result<(ImageRef, Vec<ImageRef>, Vec<Hold>), ApiError> {
        let (mut images, mut holds) = (VecDeque::new(), Vec::new());
        for reference in config.image_references() {
            let Resolved { image, hold } = self.resolve(reference).await?;
            images.push_back(image);
            holds.push(hold);
        }
        let first = images.pop_front();
        let first =
            first.ok_or_else(|| ApiError::new(Code::InvalidValue, "config.image: is missing"))?;
        Ok((first, images.into(), holds))
    }

    async fn make(
        &self,
        request: CreateMachine,
        image: (ImageRef, Vec<ImageRef>),
    ) -> Result<Handle, ApiError> {
        let intent = if request.skip_launch { Intent::Prepare } else { Intent::Launch };
        let mut record = self.first_record(request, image);
        let mut input = Input { fresh_root: true, ..Input::new(intent) };
        if intent == Intent::Launch {
            input.boot = record.new_boot();
        }
        let slots = self.shared.effects.networks.slots();
        let boot_ms = self.shared.effects.clock.boot_ms();
        let began = std::time::Instant::now();
        let stamps = self.shared.stamps();
        let begun: Result<Result<_, ApiError>, perch_durable::Error> = self
            .shared
            .db
            .write(move |tx| {
                let wanted: Vec<_> =
                    volumes::mounts_of(&record.version.config).map(|(id, _)| id).collect();
                // Nothing is written before all of it is known to be there.
                if let Err(refusal) = volumes::check_attachable(tx, &wanted, &record.id)? {
                    return Ok(Err(refusal));
                }
                let slot = match schema::take_slot(tx, slots, boot_ms)? {
                    Ok(slot) => slot,
                    Err(exhausted) => {
                        let text = exhausted.to_string();
                        return Ok(Err(ApiError::new(Code::InsufficientCapacity, text)));
                    }
                };
                record.slot = slot;
                RECORDS.put(tx, &record.id, &record)?;
                let taken = volumes::attach(tx, &wanted, &record.id, &stamps)?;
                let at_ms = i64::try_from(boot_ms).unwrap_or(i64::MAX);
                let open = Journal::begin(tx, input.new_run(&record), at_ms)?;
                Ok(Ok((record, open, taken)))
            })
            .await;
        self.shared.note_step("commit: begin", began.elapsed().as_secs_f64() * 1e3);
        let (record, open, taken) = begun.map_err(|error| self.shared.db_error(&error))??;
        self.shared.took(taken);
        let origin = Origin::New(Box::new(open), input);
        self.spawn(record, Vec::new(), origin)
    }

    fn first_record(
        &self,
        request: CreateMachine,
        (image, others): (ImageRef, Vec<ImageRef>),
    ) -> Record {
        let at = self.shared.instant();
        let upper = upper_name(&request.instance);
        let mut record = Record {
            id: request.id,
            org: request.org,
            app: request.app,
            name: request.name,
            network_id: request.network_id,
            slot: 0,
            state: State::Created,
            desired: if request.skip_launch { Desired::Stopped } else { Desired::Running },
            cordoned: request.cordoned,
            version: Version {
                instance: request.instance,
                epoch: request.epoch,
                config: request.config,
                config_digest: request.config_digest,
                image,
                others,
                upper,
                secrets: request.secrets,
            },
            next: None,
            boots: 0,
            boot: None,
            history: History::default(),
            restart_boot_ms: None,
            schedule_ms: None,
            stood_in: Vec::new(),
            failure: None,
            given_up: None,
            secrets_version: None,
            events: Vec::<MachineEvent>::new(),
            created_at: at.now,
            updated_at: at.now,
        };
        let config = &record.version.config;
        let slot = config.schedule.map(|schedule| schedule.slot(&record.id, at.now).current_ms);
        record.schedule_ms = slot;
        record.stood_in = self.shared.failures_of(&config.standbys);
        record.note("launch", Source::User, at);
        record
    }

    fn spawn(
        &self,
        record: Record,
        queued: Vec<Queued>,
        origin: Origin,
    ) -> Result<Handle, ApiError> {
        let handle = Actor::spawn(&self.shared, record, queued, origin)?;
        let mut machines = self.shared.machines.write().unwrap_or_else(PoisonError::into_inner);
        machines.insert(handle.id.clone(), handle.clone());
        Ok(handle)
    }

    /// Gives a machine a command; returns once it is journaled.
    ///
    /// # Errors
    /// When it is refused or could not be journaled.
    pub async fn command(&self, id: &MachineId, command: Command) -> Result<Accepted, ApiError> {
        let handle = self.shared.machine(id)?;
        let resolved = match &command {
            Command::Update { config, .. } => {
                honour::check(config, honour::Swap::of_server())?;
                self.check_room()?;
                self.check_volumes(id, config)?;
                let resolved = self.resolve_all(config).await?;
                honour::check_layer(&handle.published().machine, config, &resolved.0)?;
                Some(resolved)
            }
            // What runs or is frozen has mounted them.
            Command::Start
                if matches!(
                    handle.published().machine.state,
                    State::Started | State::Suspended
                ) =>
            {
                None
            }
            Command::Start | Command::Restart { .. } => {
                self.shared.check_disks(&handle.published().machine.config)?;
                None
            }
            Command::Stop { .. }
            | Command::Suspend
            | Command::Destroy { .. }
            | Command::Signal { .. }
            | Command::SetCordoned { .. }
            | Command::SetLabels { .. } => None,
        };
        let (image, others, _holds) = match resolved {
            Some((image, others, holds)) => (Some(image), others, holds),
            None => (None, Vec::new(), Vec::new()),
        };
        handle.command(Queued { image, others, ..Queued::of(command) }).await
    }

    /// Returns a machine; a destroyed one for a while.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, id: &MachineId) -> Result<HostMachine, ApiError> {
        Ok(self.shared.machine(id)?.published().machine.clone())
    }

    /// Returns all machines by id, destroyed ones for a while.
    #[must_use]
    pub fn all(&self) -> Vec<HostMachine> {
        self.shared.all().iter().map(|handle| handle.published().machine.clone()).collect()
    }

    /// Returns the machines of an app, destroyed ones too, by id.
    #[must_use]
    pub fn of_app(&self, app: &AppName) -> Vec<HostMachine> {
        let published = self.shared.all().into_iter().map(|handle| handle.published());
        let of_app = published.filter(|published| published.machine.app == *app);
        of_app.map(|published| published.machine.clone()).collect()
    }

    /// Returns all machines that are not destroyed, by id.
    #[must_use]
    pub fn list(&self) -> Vec<HostMachine> {
        let machines = self.all().into_iter();
        machines.filter(|machine| machine.state != State::Destroyed).collect()
    }

    /// Returns everything there is, and a receiver of what changes after it.
    #[must_use]
    pub fn watch(&self) -> (WatchEvent, broadcast::Receiver<Arc<WatchEvent>>) {
        // First the receiver: a change may then come twice, but none is missed.
        let receiver = self.shared.changes.subscribe();
        let all = self.shared.all();
        let machines =
            all.iter().filter(|handle| handle.published().machine.state != State::Destroyed);
        let records = machines.map(|handle| self.shared.record_of(&handle.published().machine));
        let machines = records.collect();
        (WatchEvent::Snapshot { machines }, receiver)
    }

    /// Notes one that sends requests to machines; until the guard is dropped, a machine that is
    /// stopped waits for its word that no request is under way, under the number that it gave.
    pub fn join_senders(&self, edge: Option<u64>) -> Sender {
        self.shared.drains.join(edge)
    }

    /// Notes that no request is under way to a machine that was seen not to be ready.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn drained(&self, id: &MachineId, drained: Drained) -> Result<(), ApiError> {
        self.shared.machine(id)?;
        self.shared.drains.note(id, drained);
        Ok(())
    }

    /// Notes one that sends requests to machines; until the guard is dropped, no machine is stopped
    /// for want of requests before it has said what is under way, under the number that it gave.
    pub fn join_edge(&self, edge: Option<u64>) -> Member {
        self.shared.loads.join(edge)
    }

    /// Notes what is under way to machines.
    pub fn loads(&self, loads: Loads) {
        let said = loads.machines.into_iter().filter_map(|load| {
            let machine = self.shared.machine(&load.id).ok()?;
            let soft = autostop::soft_limit(&machine.published().machine.config.services);
            let was_full = load.peak.max(load.in_flight) >= soft;
            Some(Said { id: load.id, in_flight: load.in_flight, was_full })
        });
        let now_ms = self.shared.effects.clock.boot_ms();
        self.shared.loads.note(loads.edge, loads.all, said.collect(), now_ms);
    }

    /// Notes an edge's answer whether a machine is unused.
    pub fn rest(&self, rest: Rest) {
        self.shared.loads.answer(rest.edge, rest.question, rest.is_idle);
    }

    /// Returns what the server is.
    #[must_use]
    pub fn info(&self) -> HostInfo {
        let (cpus, memory_mb) = capacity();
        HostInfo {
            id: self.shared.id.clone(),
            region: self.shared.config.region.clone(),
            cpus,
            memory_mb,
            findings: self
                .shared
                .findings
                .iter()
                .cloned()
                .chain(self.shared.effects.volumes.findings())
                .chain(self.shared.lost_volumes())
                .collect(),
        }
    }
}

impl Shared {
    /// Forgets a machine whose record is gone.
    pub fn forget(&self, id: &MachineId) {
        let mut machines = self.machines.write().unwrap_or_else(PoisonError::into_inner);
        machines.remove(id);
        self.drains.forget(id);
        self.loads.forget(id);
    }

    /// Returns the digests of images that a machine names: those it runs, and those of updates
    /// that are under way or wait.
    #[must_use]
    pub fn images_named(&self) -> BTreeSet<Digest> {
        self.all().iter().flat_map(Handle::images).collect()
    }

    /// Returns whether a machine names an image.
    #[must_use]
    pub fn names_image(&self, digest: &Digest) -> bool {
        self.all().iter().any(|handle| handle.images().contains(digest))
    }
}

/// Returns the free bytes of a folder's disk.
pub(crate) fn free_bytes(path: &std::path::Path) -> Result<u64, ApiError> {
    let found = rustix::fs::statvfs(path).map_err(|error| {
        ApiError::new(Code::Internal, format!("ask for free space of {}: {error}", path.display()))
    })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Returns the server's CPUs and its memory in MiB.
pub(crate) fn capacity() -> (u32, u64) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = rustix::system::sysinfo();
    let memory_bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
    (u32::try_from(cpus).unwrap_or(u32::MAX), memory_bytes >> 20)
}

#[cfg(test)]
mod tests;
