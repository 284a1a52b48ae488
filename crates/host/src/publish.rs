//! Tells the directory what this host runs, and lays down what it should not run any more.
//!
//! Never takes input: it compares its own machines with the directory and runs again. Woken by
//! changes, slower while the directory is down; machines run on meanwhile. What it tells is what
//! is, so the directory takes it on a full disk too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use perch_store::{
    Error, Expected, LeaseId, Op, Purpose, Revision, Store, delete_doc, get_doc, list_docs,
    put_doc_freeing,
};
use perch_types::directory::{
    Document as _, Generation, HostDoc, MachineRecord, PlacementDoc, VolumeRecord,
};
use perch_types::host::Command;
use perch_types::{AppName, HostId, MachineId, OrgSlug, VolumeId};

use crate::effects::chain;
use crate::heartbeat::BEAT_MS;
use crate::machine::actor::Handle;
use crate::machine::record::machine_record;
use crate::machine::state::State;
use crate::schema::{HOST, ONLY, Queued};
use crate::shared::Shared;

/// How long the sign that the host is alive outlasts it.
const ALIVE_TTL_S: u32 = 15;
/// How often that sign is renewed.
const ALIVE_EVERY_MS: u64 = 5_000;
/// How often everything is compared although nothing changed.
const FULL_EVERY_MS: u64 = 30_000;
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
        let now_ms = shared.effects.clock.boot_ms();
        shared.heartbeats.beat("publish", now_ms);
        match publisher.round(now_ms).await {
            Ok(()) => pause_ms = 0,
            Err(error) => {
                if pause_ms == 0 {
                    tracing::warn!(error = %chain(&error), "directory does not take records");
                }
                publisher.full_ms = 0;
                pause_ms = (pause_ms * 2).clamp(PAUSE_MS, PAUSE_MS_MAX);
            }
        }
        let rest = Duration::from_millis(if pause_ms == 0 { BEAT_MS } else { pause_ms });
        tokio::select! {
            () = shared.stopping.cancelled() => return publisher.leave().await,
            () = shared.dirty.notified(), if pause_ms == 0 => {}
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

impl Publisher {
    async fn round(&mut self, now_ms: u64) -> Result<(), Error> {
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
        for handle in self.shared.all() {
            self.tell(&handle).await?;
        }
        self.tell_volumes().await
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

    /// Tells what changed of one machine.
    async fn tell(&mut self, handle: &Handle) -> Result<(), Error> {
        let record = self.shared.record_of(handle);
        let told = self.told.get(&handle.id).copied();
        if told.is_some_and(|told| told.generation >= record.generation) {
            return Ok(());
        }
        let key = (record.org.clone(), record.app.clone(), record.id.clone());
        let expected = told.map_or(Expected::Absent, |told| Expected::Revision(told.revision));
        if is_gone(handle) {
            if told.is_some() {
                delete_doc::<MachineRecord>(self.store.as_ref(), &key, expected).await?;
                self.told.remove(&handle.id);
            }
            return Ok(());
        }
        let revision = put_doc_freeing(self.store.as_ref(), &key, &record, expected).await?;
        self.told.insert(record.id, Told { generation: record.generation, revision });
        Ok(())
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
            if let Err(error) =
                handle.command(Queued { command, image: None, others: Vec::new() }).await
            {
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
    pub fn record_of(&self, handle: &Handle) -> MachineRecord {
        let published = handle.published();
        let machine = &published.machine;
        let place = crate::machine::record::Place {
            host: self.id.clone(),
            region: machine.region.clone(),
            private_ip: machine.private_ip,
            private_ipv4: machine.private_ipv4,
        };
        let mut record = machine_record(machine, &place);
        // What was said before the directory gave an incarnation counts as said by it.
        record.generation.incarnation = self.incarnation.load(Ordering::Acquire);
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overcommitted_server_promises_more_than_it_has() {
        assert_eq!(promised_mb(24_000, 1.0), 24_000);
        assert_eq!(promised_mb(24_000, 12.5), 300_000);
        assert_eq!(promised_mb(24_000, 0.5), 12_000);
    }
}
