//! Carries out recorded promises, and nothing else: machines that were to go, apps that were
//! deleted, leases that have ended. It takes no input and simply runs again until nothing is left.
//!
//! Never decides: a promise was written by a handler, or the machine has ended by itself. A
//! machine that its host does not know without a promise is left alone: the host may have been
//! restored from an older state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use perch_store::{Expected, Op, delete_doc, get_doc, list_docs, put_doc_freeing, put_op};
use perch_types::directory::{Document, PlacementDoc, Tombstone};
use perch_types::error::chain;
use perch_types::host::{Command, HostMachine};
use perch_types::{AppName, HostId, MachineId, MachineState, OrgSlug, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::config::Shared;
use crate::error::{Error, store as fault};
use crate::machines::lease;
use crate::{documents, ports, tokens, volumes};

/// How long a creation may take before what it wrote is taken back.
pub(crate) const CREATION_TIME: Duration = Duration::from_secs(10 * 60);
/// The pause after a pass that left something to do, growing up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A machine that is to be destroyed once the time has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DestroyPromise {
    pub(crate) app: AppName,
    pub(crate) due: Timestamp,
}

impl DestroyPromise {
    fn after(shared: &Shared, app: &AppName, after: Duration) -> Self {
        Self { app: app.clone(), due: shared.clock.now().plus(after) }
    }
}

impl Document for DestroyPromise {
    type Key = (OrgSlug, MachineId);

    const PREFIX: &'static str = "promises/destroy/";
    const PARTS: usize = 2;

    fn key((org, machine): &Self::Key) -> String {
        format!("{}{org}/{machine}", Self::PREFIX)
    }
}

/// How handlers reach the reconciler.
#[derive(Debug)]
pub(crate) struct Reconciler {
    awake: Arc<Notify>,
    passes: Arc<watch::Sender<u64>>,
}

impl Default for Reconciler {
    fn default() -> Self {
        Self { awake: Arc::default(), passes: Arc::new(watch::Sender::new(0)) }
    }
}

impl Reconciler {
    /// Has the next pass begin now.
    pub(crate) fn wake(&self) {
        self.awake.notify_one();
    }
}

/// Returns once nothing is left of a deleted app.
pub(crate) async fn app_gone(shared: &Shared, org: &OrgSlug, app_id: &str) {
    let mut passes = shared.reconciler.passes.subscribe();
    let key = (org.clone(), app_id.to_owned());
    loop {
        passes.borrow_and_update();
        if let Ok(None) = get_doc::<Tombstone>(shared.store.as_ref(), &key).await {
            return;
        }
        if passes.changed().await.is_err() {
            return;
        }
    }
}

/// Promises to destroy a machine after a while.
pub(crate) async fn promise(
    shared: &Shared,
    (org, id): (&OrgSlug, &MachineId),
    app: &AppName,
    after: Duration,
) -> Result<(), Error> {
    let key = (org.clone(), id.clone());
    let promise = DestroyPromise::after(shared, app, after);
    let store = shared.store.as_ref();
    let written = put_doc_freeing(store, &key, &promise, Expected::Any).await;
    written.map_err(fault("write a promise")).map(drop)
}

/// Returns the operation that promises to destroy a machine after a while.
pub(crate) fn promise_op(
    shared: &Shared,
    (org, id): (&OrgSlug, &MachineId),
    app: &AppName,
    after: Duration,
) -> Result<Op, Error> {
    let key = (org.clone(), id.clone());
    put_op(&key, &DestroyPromise::after(shared, app, after)).map_err(fault("write a promise"))
}

/// Takes a promise back.
pub(crate) async fn withdraw(
    shared: &Shared,
    (org, id): (&OrgSlug, &MachineId),
) -> Result<(), Error> {
    let key = (org.clone(), id.clone());
    let store = shared.store.as_ref();
    let withdrawn = delete_doc::<DestroyPromise>(store, &key, Expected::Any).await;
    withdrawn.map_err(fault("withdraw a promise")).map(drop)
}

/// Starts the reconciler; it ends with the API.
pub(crate) fn spawn(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    let awake = Arc::clone(&shared.reconciler.awake);
    tokio::spawn(run(weak, awake));
}

async fn run(weak: Weak<Shared>, awake: Arc<Notify>) {
    let mut pause = PAUSE_MIN;
    loop {
        let Some(shared) = weak.upgrade() else { return };
        let is_done = pass(&shared).await.unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "promises not carried out");
            false
        });
        shared.reconciler.passes.send_modify(|passes| *passes += 1);
        drop(shared);
        pause = if is_done { PAUSE_MAX } else { (pause * 2).min(PAUSE_MAX) };
        tokio::select! {
            () = awake.notified() => pause = PAUSE_MIN,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What the hosts say they have; hosts that do not answer are not in it.
type Found = BTreeMap<HostId, BTreeMap<MachineId, HostMachine>>;

/// Does what can be done now; returns whether nothing is left that needs another look soon.
async fn pass(shared: &Shared) -> Result<bool, Error> {
    let store = shared.store.as_ref();
    lease::collect(shared).await?;
    tokens::forget_ended(shared).await?;
    let tombstones = documents::tombstones(store).await?;
    let promises = list_docs::<DestroyPromise>(store).await.map_err(fault("list promises"))?;
    let placements = documents::all_placements(store).await?;
    ports::collect(shared, &placements).await?;
    let (volumes_done, with_volumes) = volumes::reconcile::pass(shared, &tombstones).await?;
    if tombstones.is_empty() && promises.documents.is_empty() && placements.is_empty() {
        return Ok(volumes_done);
    }
    let found = ask_hosts(shared).await;
    let now = shared.clock.now();
    let mut due: BTreeMap<String, bool> = BTreeMap::new();
    for (key, promise) in promises.documents {
        due.insert(key, promise.document.due <= now);
    }
    let mut is_done = volumes_done;
    // Hosts may be making these: they do not tell of a machine before its image is found.
    let mut coming = BTreeSet::new();
    for (org, id, placement) in &placements {
        let is_buried =
            tombstones.iter().any(|(owner, _, stone)| owner == org && stone.app == placement.app);
        let key = DestroyPromise::key(&(org.clone(), id.clone()));
        let promised = due.remove(&key);
        let Some(machines) = found.get(&placement.host) else {
            is_done &= !is_buried && promised != Some(true);
            continue;
        };
        let machine = machines.get(id);
        if is_buried && promised == Some(false) && machine.is_none() {
            coming.insert(id);
            continue;
        }
        let wanted = Wanted { is_buried, promised };
        is_done &= one(shared, (org, placement, id), machine, wanted).await?;
    }
    // Promises of machines that were never placed, or are forgotten already.
    for (key, is_due) in due {
        if is_due {
            let deleted = store.delete(&key, Expected::Any).await;
            deleted.map_err(fault("withdraw a promise"))?;
        }
    }
    for (org, app_id, stone) in tombstones {
        let left = placements.iter().any(|(owner, id, placement)| {
            *owner == org && placement.app == stone.app && {
                let machines = found.get(&placement.host);
                let is_gone = machines.is_some_and(|machines| is_gone(machines.get(id)));
                !is_gone || coming.contains(id)
            }
        });
        if left || with_volumes.contains(&app_id) {
            is_done = false;
        } else {
            // Again: a build that began just before the burial may have made its token after it,
            // and another process than this one may have buried the app.
            shared.push_tokens.revoke_app(&app_id);
            tokens::end_of_app(shared, &org, &app_id).await?;
            // First: what follows frees the name.
            let forgotten = shared.images.forget(&stone.app).await;
            forgotten.map_err(|source| Error::Images { app: stone.app.clone(), source })?;
            documents::forget_app(store, &org, &app_id, &stone.app).await?;
        }
    }
    Ok(is_done)
}

#[derive(Clone, Copy)]
struct Wanted {
    /// The machine's app was deleted.
    is_buried: bool,
    /// A promise to destroy it: whether its time has come.
    promised: Option<bool>,
}

/// Does what is to be done about one machine; returns whether that is all.
async fn one(
    shared: &Shared,
    (org, placement, id): (&OrgSlug, &PlacementDoc, &MachineId),
    machine: Option<&HostMachine>,
    wanted: Wanted,
) -> Result<bool, Error> {
    let app = &placement.app;
    let is_due = wanted.is_buried || wanted.promised == Some(true);
    if is_gone(machine) && (wanted.is_buried || (is_due && machine.is_none())) {
        documents::forget_machine(shared.store.as_ref(), org, app, id).await?;
        if wanted.promised.is_some() {
            withdraw(shared, (org, id)).await?;
        }
        return Ok(true);
    }
    let Some(machine) = machine else {
        return Ok(true);
    };
    match machine.state {
        // It ended by itself (`auto_destroy`): to be forgotten once its host has forgotten it.
        MachineState::Destroyed if wanted.promised.is_none() => {
            promise(shared, (org, id), app, Duration::ZERO).await?;
            Ok(true)
        }
        MachineState::Destroyed => Ok(true),
        MachineState::Destroying => Ok(!is_due),
        _ if is_due => {
            destroy(shared, &placement.host, id).await;
            Ok(false)
        }
        _ => Ok(true),
    }
}

async fn destroy(shared: &Shared, host: &HostId, id: &MachineId) {
    let Some(host) = shared.hosts.get(host) else {
        return;
    };
    let destroyed = host.client.command(id, &Command::Destroy { force: true }).await;
    if let Err(error) = destroyed {
        tracing::warn!(error = chain(&error), machine = %id, "machine not destroyed yet");
    }
}

async fn ask_hosts(shared: &Shared) -> Found {
    let mut found = Found::new();
    for host in shared.hosts.values() {
        match host.client.machines().await {
            Ok(machines) => {
                let machines = machines.into_iter().map(|machine| (machine.id.clone(), machine));
                found.insert(host.id.clone(), machines.collect());
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), host = %host.id, "host not asked");
            }
        }
    }
    found
}

fn is_gone(machine: Option<&HostMachine>) -> bool {
    machine.is_none_or(|machine| machine.state == MachineState::Destroyed)
}

#[cfg(test)]
mod tests;
