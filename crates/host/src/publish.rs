//! Tells the directory what this host runs, and lays down what it should not run any more.
//!
//! Never takes input: it compares its own machines with the directory and runs again. Woken by
//! changes, slower while the directory is down; machines run on meanwhile. What it tells is what
//! is, so the directory takes it on a full disk too.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use perch_store::{
    Compare, Error, Expected, LeaseId, Op, Purpose, Revision, Store, TXN_OPS_MAX, compare,
    delete_doc, delete_op, get_doc, list_docs, put_doc_freeing, put_op,
};
use perch_types::directory::{
    Document as _, Generation, HostDoc, MachineRecord, PlacementDoc, VolumeRecord,
};
use perch_types::error::chain;
use perch_types::host::{Command, HostMachine};
use perch_types::{AppName, HostId, MachineId, OrgSlug, VolumeId};

use crate::heartbeat::BEAT_MS;
use crate::machine::actor::Handle;
use crate::machine::state::State;
use crate::schema::{HOST, ONLY, Queued};
use crate::shared::Shared;

/// How long the sign that the host is alive outlasts it.
const ALIVE_TTL_S: u32 = 15;
/// How often that sign is renewed.
const ALIVE_EVERY_MS: u64 = 5_000;
/// How often everything is compared although nothing changed.
const FULL_EVERY_MS: u64 = 30_000;
/// How long changes gather once some were told: each telling is a commit of the directory.
const GATHER: Duration = Duration::from_millis(5);
/// The first pause after a fault; doubled each time.
const PAUSE_MS: u64 = 100;
/// The longest pause after a fault.
const PAUSE_MS_MAX: u64 = 10_000;
/// How long a machine may lack a placement before it is laid down: the api writes it before it
/// calls the host, so this is only for a directory that was restored.
const PLACEMENT_GRACE_MS: i64 = 60_000;

/// Runs until the agent ends.
pub(crate) async fn publish(shared: Arc<Shared>, store: Arc<dyn Store>) {
    let mut publisher = Publisher {
        shared,
        store,
        told: BTreeMap::new(),
        told_volumes: BTreeMap::new(),
        alive: None,
        full_ms: 0,
        is_registered: false,
    };
    let mut pause_ms = 0;
    loop {
        let shared = Arc::clone(&publisher.shared);
        let clock = shared.effects.clock.as_ref();
        let told = {
            let round = std::pin::pin!(publisher.round(clock.boot_ms()));
            shared.heartbeats.turning("publish", clock, round).await
        };
        let has_told = match told {
            Ok(has_told) => {
                pause_ms = 0;
                has_told
            }
            Err(error) => {
                if pause_ms == 0 {
                    tracing::warn!(error = %chain(&error), "directory does not take records");
                }
                publisher.full_ms = 0;
                pause_ms = (pause_ms * 2).clamp(PAUSE_MS, PAUSE_MS_MAX);
                false
            }
        };
        let gather = if has_told { GATHER } else { Duration::ZERO };
        let rest = Duration::from_millis(if pause_ms == 0 { BEAT_MS } else { pause_ms });
        let news = async {
            tokio::time::sleep(gather).await;
            shared.dirty.notified().await;
        };
        tokio::select! {
            () = shared.stopping.cancelled() => return publisher.leave().await,
            () = news, if pause_ms == 0 => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
}

struct Publisher {
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    /// What the directory was told last of each machine.
    told: BTreeMap<MachineId, Told>,
    /// The same of each volume, with its whole key.
    told_volumes: BTreeMap<VolumeId, (VolumeKey, Told)>,
    alive: Option<(LeaseId, u64)>,
    /// When everything was compared last.
    full_ms: u64,
    is_registered: bool,
}

type VolumeKey = (OrgSlug, AppName, VolumeId);

#[derive(Debug, Clone, Copy)]
struct Told {
    generation: Generation,
    revision: Revision,
}

/// What the directory is to hear of one machine.
struct News {
    id: MachineId,
    compare: Option<Compare>,
    op: Op,
    /// What it says; nothing when the machine is gone.
    generation: Option<Generation>,
}

impl Publisher {
    /// Does what is to be done now; returns whether anything was told of machines.
    async fn round(&mut self, now_ms: u64) -> Result<bool, Error> {
        if !self.is_registered {
            self.register().await?;
            self.is_registered = true;
        }
        self.stay_alive(now_ms).await?;
        if self.full_ms == 0 || now_ms.saturating_sub(self.full_ms) >= FULL_EVERY_MS {
            self.compare().await?;
            self.lay_down().await?;
            self.full_ms = now_ms.max(1);
        }
        let has_told = self.tell_machines().await?;
        self.tell_volumes().await?;
        Ok(has_told)
    }

    /// Tells what changed of volumes, and which are no more.
    async fn tell_volumes(&mut self) -> Result<(), Error> {
        let incarnation = self.shared.incarnation.load(Ordering::Acquire);
        let mut gone = self.told_volumes.clone();
        for known in self.shared.volumes.all() {
            let mut record = known.row.record;
            record.generation.incarnation = incarnation;
            gone.remove(&record.id);
            let told = self.told_volumes.get(&record.id).map(|(_, told)| *told);
            if told.is_some_and(|told| told.generation >= record.generation) {
                continue;
            }
            let key = (record.org.clone(), record.app.clone(), record.id.clone());
            let expected = told.map_or(Expected::Absent, |told| Expected::Revision(told.revision));
            let revision = put_doc_freeing(self.store.as_ref(), &key, &record, expected).await?;
            let told = Told { generation: record.generation, revision };
            self.told_volumes.insert(record.id, (key, told));
        }
        for (id, (key, told)) in gone {
            let expected = Expected::Revision(told.revision);
            delete_doc::<VolumeRecord>(self.store.as_ref(), &key, expected).await?;
            self.told_volumes.remove(&id);
        }
        Ok(())
    }

    /// Makes the host known, and what it has to give. Its incarnation is the directory's to give: a
    /// new one for a state file that has none or that is not the one the directory knows.
    async fn register(&self) -> Result<(), Error> {
        let key = (self.shared.id.clone(),);
        let found = get_doc::<HostDoc>(self.store.as_ref(), &key).await?;
        let (cpus, memory_mb) = crate::host::capacity();
        let memory_mb = promised_mb(memory_mb, self.shared.config.limits.memory_overcommit);
        let own = self.shared.incarnation.load(Ordering::Acquire);
        let known = found.as_ref().map(|found| found.document.incarnation);
        let incarnation = match known {
            Some(known) if known == own => own,
            Some(known) => known.max(own).saturating_add(1),
            None => own.max(1),
        };
        let document =
            HostDoc { region: self.shared.config.region.clone(), incarnation, cpus, memory_mb };
        if found.as_ref().is_some_and(|found| found.document == document) {
            return Ok(());
        }
        let expected = found.map_or(Expected::Absent, |found| Expected::Revision(found.revision));
        put_doc_freeing(self.store.as_ref(), &key, &document, expected).await?;
        let written: Result<(), perch_durable::Error> = self
            .shared
            .db
            .write_reserved(move |tx| {
                let only = ONLY.to_owned();
                let Some(mut row) = HOST.get(tx, &only)? else {
                    return Ok(());
                };
                row.incarnation = incarnation;
                HOST.put(tx, &only, &row)
            })
            .await;
        if let Err(error) = written {
            let error = self.shared.db_error(&error);
            tracing::error!(%error, "incarnation could not be kept");
        }
        self.shared.incarnation.store(incarnation, Ordering::Release);
        Ok(())
    }

    /// Keeps `hosts/<id>/alive` there as long as the agent lives.
    async fn stay_alive(&mut self, now_ms: u64) -> Result<(), Error> {
        match self.alive {
            Some((_, renewed_ms)) if now_ms.saturating_sub(renewed_ms) < ALIVE_EVERY_MS => Ok(()),
            Some((lease, _)) => match self.store.keep_alive(lease).await {
                Ok(()) => {
                    self.alive = Some((lease, now_ms));
                    Ok(())
                }
                // It ended while the directory or this host was away.
                Err(error) => {
                    self.alive = None;
                    Err(error)
                }
            },
            None => {
                let lease = self.store.grant(ALIVE_TTL_S).await?;
                let key = alive_key(&self.shared.id);
                let op = Op::Put { key, value: "{}".into(), lease: Some(lease) };
                self.store.txn_for(Purpose::Freeing, Vec::new(), vec![op]).await?.or_conflict()?;
                self.alive = Some((lease, now_ms));
                Ok(())
            }
        }
    }

    async fn leave(&mut self) {
        if let Some((lease, _)) = self.alive.take() {
            // It ends by itself otherwise.
            drop(self.store.revoke(lease).await);
        }
    }

    /// Reads what the directory has of this host, and removes what is no more.
    async fn compare(&mut self) -> Result<(), Error> {
        let found = list_docs::<MachineRecord>(self.store.as_ref()).await?;
        self.told.clear();
        for (_, found) in found.documents {
            let record = found.document;
            if record.host != self.shared.id {
                continue;
            }
            let is_gone = self.shared.machine(&record.id).map_or(true, |handle| is_gone(&handle));
            if is_gone {
                let key = (record.org, record.app, record.id);
                let expected = Expected::Revision(found.revision);
                delete_doc::<MachineRecord>(self.store.as_ref(), &key, expected).await?;
            } else {
                let told = Told { generation: record.generation, revision: found.revision };
                self.told.insert(record.id, told);
            }
        }
        let found = list_docs::<VolumeRecord>(self.store.as_ref()).await?;
        self.told_volumes.clear();
        for (_, found) in found.documents {
            let record = found.document;
            if record.host == self.shared.id {
                let told = Told { generation: record.generation, revision: found.revision };
                let key = (record.org, record.app, record.id.clone());
                self.told_volumes.insert(record.id, (key, told));
            }
        }
        Ok(())
    }

    /// Tells what changed of machines, many in one transaction; returns whether anything did.
    async fn tell_machines(&mut self) -> Result<bool, Error> {
        let news = self.news()?;
        for batch in news.chunks(TXN_OPS_MAX) {
            let compares = batch.iter().filter_map(|one| one.compare.clone()).collect();
            let ops = batch.iter().map(|one| one.op.clone()).collect();
            let done = self.store.txn_for(Purpose::Freeing, compares, ops).await?;
            let revision = done.or_conflict()?;
            for one in batch {
                match one.generation {
                    Some(generation) => {
                        self.told.insert(one.id.clone(), Told { generation, revision });
                    }
                    None => {
                        self.told.remove(&one.id);
                    }
                }
            }
        }
        Ok(!news.is_empty())
    }

    fn news(&self) -> Result<Vec<News>, Error> {
        let machines = self.shared.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.values().filter_map(|handle| self.news_of(handle).transpose()).collect()
    }

    /// Returns what the directory has not heard of a machine.
    fn news_of(&self, handle: &Handle) -> Result<Option<News>, Error> {
        let published = handle.published();
        let machine = &published.machine;
        let generation = self.shared.known_as(machine.generation);
        let is_gone = machine.state == State::Destroyed;
        let told = self.told.get(&machine.id);
        let is_news = told.map_or(!is_gone, |told| told.generation < generation);
        if !is_news {
            return Ok(None);
        }
        let key = (machine.org.clone(), machine.app.clone(), machine.id.clone());
        let expected = told.map_or(Expected::Absent, |told| Expected::Revision(told.revision));
        let op = if is_gone {
            delete_op::<MachineRecord>(&key)
        } else {
            put_op(&key, &self.shared.record_of(machine))?
        };
        Ok(Some(News {
            id: machine.id.clone(),
            compare: compare::<MachineRecord>(&key, expected),
            op,
            generation: (!is_gone).then_some(generation),
        }))
    }

    /// Destroys machines whose app is deleted or whose placement is another host's.
    async fn lay_down(&self) -> Result<(), Error> {
        let handles: Vec<Handle> =
            self.shared.all().into_iter().filter(|handle| !is_gone(handle)).collect();
        if handles.is_empty() {
            return Ok(());
        }
        let placements = list_docs::<PlacementDoc>(self.store.as_ref()).await?;
        if !placements.unreadable.is_empty() {
            // What cannot be read may be a machine's reason to be.
            tracing::error!("documents of the directory cannot be read, nothing is laid down");
            return Ok(());
        }
        let placements: BTreeMap<String, PlacementDoc> =
            placements.documents.into_iter().map(|(key, found)| (key, found.document)).collect();
        let now_ms = self.shared.effects.clock.now().unix_ms();
        for handle in handles {
            let machine = handle.published().machine.clone();
            let key = PlacementDoc::key(&(machine.org.clone(), machine.id.clone()));
            let placement = placements.get(&key);
            let age_ms = now_ms.saturating_sub(machine.created_at.unix_ms());
            let why = match placement {
                Some(placement) if placement.host != self.shared.id => "another host has it",
                None if age_ms >= PLACEMENT_GRACE_MS => "it has no placement",
                Some(_) | None => continue,
            };
            tracing::warn!(machine = %machine.id, why, "machine is laid down");
            let command = Command::Destroy { force: true };
            if let Err(error) = handle.command(Queued::of(command)).await {
                tracing::warn!(machine = %machine.id, %error, "machine is not laid down");
            }
        }
        Ok(())
    }
}

fn is_gone(handle: &Handle) -> bool {
    handle.published().machine.state == State::Destroyed
}

/// Returns the memory that machines may be promised, of what the server has.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "MiB of a server are far below 2^52, and a cast of a float saturates"
)]
fn promised_mb(memory_mb: u64, overcommit: f64) -> u64 {
    (memory_mb as f64 * overcommit) as u64
}

fn alive_key(host: &HostId) -> String {
    format!("{}/alive", HostDoc::key(&(host.clone(),)))
}

impl Shared {
    /// Returns what the directory should have of a machine.
    #[must_use]
    pub fn record_of(&self, machine: &HostMachine) -> MachineRecord {
        let mut record = machine.record(self.id.clone());
        record.generation = self.known_as(record.generation);
        record
    }

    /// Returns a generation as the directory knows it: what was said before it gave an incarnation
    /// counts as said by that.
    fn known_as(&self, generation: Generation) -> Generation {
        Generation { incarnation: self.incarnation.load(Ordering::Acquire), ..generation }
    }
}

#[cfg(test)]
mod tests {
    use perch_durable::Db;
    use perch_store::SqliteStore;

    use super::*;
    use crate::fake::FakeServer;
    use crate::machine::actor::{Actor, Origin};
    use crate::machine::record::Desired;
    use crate::machine::record::tests::record;
    use crate::machine::run::tests::shared_of;

    /// Makes the task of a machine that does not run, known to the host.
    fn stopped(shared: &Arc<Shared>, bits: u64) -> Handle {
        let mut record = record();
        record.id = MachineId::from_bits(bits);
        (record.state, record.desired) = (State::Stopped, Desired::Stopped);
        let handle = Actor::spawn(shared, record, Vec::new(), Origin::Recovered(None)).unwrap();
        shared.machines.write().unwrap().insert(handle.id.clone(), handle.clone());
        handle
    }

    #[tokio::test]
    async fn what_changed_together_is_told_together() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("host.db"), &[]).unwrap();
        let shared = shared_of(&FakeServer::new(), &db);
        let clock = Arc::clone(&shared.effects.clock);
        let store = SqliteStore::open(folder.path().join("directory.db"), clock).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let count = u64::try_from(TXN_OPS_MAX).unwrap() + 3;
        let handles: Vec<Handle> = (1..=count).map(|bits| stopped(&shared, bits)).collect();
        let mut publisher = Publisher {
            shared: Arc::clone(&shared),
            store: Arc::clone(&store),
            told: BTreeMap::new(),
            told_volumes: BTreeMap::new(),
            alive: None,
            full_ms: 0,
            is_registered: true,
        };
        let revisions = async || {
            let found = list_docs::<MachineRecord>(store.as_ref()).await.unwrap();
            let found = found.documents.into_iter();
            found.map(|(_, found)| found.revision.0).collect::<Vec<_>>()
        };
        while publisher.tell_machines().await.unwrap() {
            tokio::task::yield_now().await;
        }
        let first = revisions().await;
        assert_eq!(first.len(), handles.len());

        for handle in &handles {
            let command = Command::SetCordoned { cordoned: true };
            handle.command(Queued::of(command)).await.unwrap();
        }
        assert!(publisher.tell_machines().await.unwrap());
        let mut second = revisions().await;
        second.dedup();
        assert_eq!(second.len(), 2, "a transaction holds {TXN_OPS_MAX}: {second:?}");
        assert!(!publisher.tell_machines().await.unwrap());

        let gone = &handles[0];
        let command = Command::Destroy { force: true };
        gone.command(Queued::of(command)).await.unwrap();
        let mut follow = gone.follow();
        let destroyed = follow.wait_for(|published| published.machine.state == State::Destroyed);
        drop(tokio::time::timeout(Duration::from_secs(20), destroyed).await.unwrap());
        assert!(publisher.tell_machines().await.unwrap());
        assert_eq!(revisions().await.len(), handles.len() - 1);
        assert!(!publisher.tell_machines().await.unwrap());
    }

    #[test]
    fn an_overcommitted_server_promises_more_than_it_has() {
        assert_eq!(promised_mb(24_000, 1.0), 24_000);
        assert_eq!(promised_mb(24_000, 12.5), 300_000);
        assert_eq!(promised_mb(24_000, 0.5), 12_000);
    }
}
