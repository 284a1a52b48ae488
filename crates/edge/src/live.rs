//! This server's machines as its host says, a snapshot at a time.
//!
//! Never asked of the directory: readiness comes from the host's own watch. Readers take no lock;
//! one task writes. Another tells the host what is under way to machines that may rest.

mod load;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use perch_client::HostClient;
use perch_types::directory::MachineRecord;
use perch_types::host::{Loads, MachineLoad, Rest, WatchEvent};
use perch_types::service::Autostop;
use perch_types::{AppName, HostId, MachineId, OrgSlug};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::metrics::AppMetrics;

pub(crate) use load::{InFlight, Load};

/// The first and the longest pause before a watch that broke is taken up again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How often the host is told what is under way, if anything has changed.
const LOADS_EVERY: Duration = Duration::from_secs(1);
/// How long the gate of a machine that is to rest stays closed while nothing is heard of it.
const REST_MAX: Duration = Duration::from_secs(5);

/// A machine and what it does right now.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) record: MachineRecord,
    pub(crate) load: Arc<Load>,
    /// Since when it has been as ready or not, and in the same state, as it is now.
    pub(crate) since: Instant,
}

/// An app and who owns it.
///
/// A name is one organization's at a time, and another's only once nothing is left of the app that
/// had it. But that is the directory's word, and what is known here may be behind it: by the name
/// alone, the next app of a name could be answered by a machine of the one before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AppKey {
    pub(crate) org: OrgSlug,
    pub(crate) name: AppName,
}

impl AppKey {
    fn of(machine: &MachineRecord) -> Self {
        Self { org: machine.org.clone(), name: machine.app.clone() }
    }

    fn has(&self, machine: &MachineRecord) -> bool {
        (&self.org, &self.name) == (&machine.org, &machine.app)
    }
}

type Machines = Arc<[Arc<Target>]>;

/// The machines of an app, and what is counted of it.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) machines: Machines,
    pub(crate) metrics: Arc<AppMetrics>,
}

/// A change copies it: its keys are shared.
type Table = HashMap<Arc<AppKey>, Serving>;

/// The snapshot and the news that it changed.
#[derive(Debug)]
pub(crate) struct Live {
    table: ArcSwap<Table>,
    version: watch::Sender<u64>,
}

impl Default for Live {
    fn default() -> Self {
        Self { table: ArcSwap::default(), version: watch::Sender::new(0) }
    }
}

impl Live {
    /// Returns the machines of an app on this server, by id.
    pub(crate) fn machines_of(&self, app: &AppKey) -> Option<Machines> {
        self.table.load().get(app).map(|serving| Arc::clone(&serving.machines))
    }

    /// Returns what is counted of an app that has a machine here.
    pub(crate) fn metrics_of(&self, app: &AppKey) -> Option<Arc<AppMetrics>> {
        self.table.load().get(app).map(|serving| Arc::clone(&serving.metrics))
    }

    /// Returns all apps with machines here, by name.
    pub(crate) fn apps(&self) -> Vec<(Arc<AppKey>, Serving)> {
        let table = self.table.load();
        let mut apps: Vec<_> =
            table.iter().map(|(app, serving)| (Arc::clone(app), serving.clone())).collect();
        apps.sort_unstable_by(|(one, _), (other, _)| {
            (&one.name, &one.org).cmp(&(&other.name, &other.org))
        });
        apps
    }

    /// Returns what the host has not heard of what is under way, as far as it may matter to it:
    /// to machines of apps of which one may rest.
    fn loads(&self, all: bool) -> Vec<MachineLoad> {
        let table = self.table.load();
        let may_rest = |target: &Arc<Target>| {
            let rests = |how| matches!(how, Some(Autostop::Stop | Autostop::Suspend));
            target.record.services.iter().any(|service| rests(service.autostop))
        };
        let apps = table.values().filter(|serving| serving.machines.iter().any(may_rest));
        let machines = apps.flat_map(|serving| serving.machines.iter());
        machines
            .filter_map(|target| {
                let (in_flight, peak) = target.load.news(all)?;
                Some(MachineLoad { id: target.record.id.clone(), in_flight, peak })
            })
            .collect()
    }

    /// Returns whether the host has said anything yet: until then nothing is known of an app.
    pub(crate) fn is_known(&self) -> bool {
        *self.version.borrow() > 0
    }

    /// Returns a receiver that hears of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn publish(&self, table: Table) {
        self.table.store(Arc::new(table));
        self.stir();
    }

    /// Has everybody who waits look again.
    fn stir(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

/// Keeps `live` as the host's watch says, for ever. While the host is away, what was known stays.
pub(crate) async fn follow(live: Arc<Live>, host: HostClient, host_id: HostId) {
    let mut book = Book::new(host_id, Some(host.clone()));
    let edge = book.edge;
    let is_to_tell_all = Arc::new(AtomicBool::new(false));
    let telling = tell_loads(Arc::clone(&live), host.clone(), edge, Arc::clone(&is_to_tell_all));
    let _telling = Task(tokio::spawn(telling));
    let mut pause = BACKOFF_MIN;
    loop {
        let watched = host.watch_to_drain(edge).await;
        if let Err(error) = &watched
            && pause == BACKOFF_MIN
        {
            tracing::warn!(%error, "host not watched: serving what was known");
        }
        if let Ok(mut lines) = watched {
            while let Some(line) = lines.next().await {
                match line {
                    Ok(WatchEvent::Rest { id, question }) => book.rest(&live, id, question),
                    Ok(event) => {
                        pause = BACKOFF_MIN;
                        let is_new = matches!(event, WatchEvent::Snapshot { .. });
                        take(&live, &mut book, event);
                        is_to_tell_all.fetch_or(is_new, Ordering::AcqRel);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "host watch broke");
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// Tells the host what is under way, as far as it has changed; all of it whenever its watch begins.
async fn tell_loads(live: Arc<Live>, host: HostClient, edge: u64, is_to_tell_all: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(LOADS_EVERY).await;
        let all = is_to_tell_all.swap(false, Ordering::AcqRel);
        let machines = live.loads(all);
        if !all && machines.is_empty() {
            continue;
        }
        if let Err(error) = host.loads(&Loads { edge, all, machines }).await {
            tracing::debug!(%error, "host not told what is under way");
            is_to_tell_all.store(true, Ordering::Release);
        }
    }
}

/// All machines of this host; only [`follow`] writes it.
struct Book {
    host_id: HostId,
    /// This edge's number at the host.
    edge: u64,
    machines: HashMap<MachineId, Arc<Target>>,
    /// What is counted of apps that have machines.
    metrics: HashMap<Arc<AppKey>, Arc<AppMetrics>>,
    /// Who is told of machines that no request is under way to any more.
    host: Option<HostClient>,
    /// Waits for that, one a machine that ends.
    draining: HashMap<MachineId, Task>,
    /// Waits for news of machines that are to rest.
    resting: HashMap<MachineId, Task>,
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn take(live: &Live, book: &mut Book, event: WatchEvent) {
    match event {
        // A question is answered by the one who follows.
        WatchEvent::Heartbeat | WatchEvent::Rest { .. } => {}
        WatchEvent::Snapshot { machines } => {
            let known = std::mem::take(&mut book.machines);
            book.draining.clear();
            book.resting.clear();
            for record in machines {
                let known = known.get(&record.id).map(AsRef::as_ref);
                book.put(record, known);
            }
            book.publish_all(live);
        }
        WatchEvent::Changed { machine } => {
            let app = AppKey::of(&machine);
            let known = book.machines.get(&machine.id).cloned();
            if known.as_ref().is_some_and(|known| known.record.generation > machine.generation) {
                return;
            }
            book.put(*machine, known.as_deref());
            book.publish_app(live, &app);
        }
        WatchEvent::Removed { id } => {
            book.draining.remove(&id);
            book.resting.remove(&id);
            if let Some(target) = book.machines.remove(&id) {
                book.publish_app(live, &AppKey::of(&target.record));
            }
        }
    }
}

impl Book {
    fn new(host_id: HostId, host: Option<HostClient>) -> Self {
        Self {
            host_id,
            edge: number(),
            machines: HashMap::new(),
            metrics: HashMap::new(),
            host,
            draining: HashMap::new(),
            resting: HashMap::new(),
        }
    }

    /// Puts a machine down as its host says. The gate is closed or opened before anybody can read
    /// the new record.
    fn put(&mut self, record: MachineRecord, known: Option<&Target>) {
        if record.host != self.host_id {
            return;
        }
        let load = match known {
            Some(known) => Arc::clone(&known.load),
            None => Arc::new(Load::of(self.metrics_for(AppKey::of(&record)))),
        };
        let as_before = known.filter(|known| {
            let known = &known.record;
            (known.state, known.ready, &known.instance)
                == (record.state, record.ready, &record.instance)
        });
        let since = as_before.map_or_else(Instant::now, |known| known.since);
        if as_before.is_none() {
            load.health.reset();
        }
        self.resting.remove(&record.id);
        load.set_open(record.ready);
        self.drain(&record, &load);
        self.machines.insert(record.id.clone(), Arc::new(Target { record, load, since }));
    }

    /// Tells the host once no request is under way to a machine that ends: it waits for that
    /// before it sends the signal.
    fn drain(&mut self, record: &MachineRecord, load: &Arc<Load>) {
        self.draining.remove(&record.id);
        let is_ending = !record.ready && record.state.is_ending();
        let (true, Some(host)) = (is_ending, self.host.clone()) else {
            return;
        };
        let (id, load, generation) = (record.id.clone(), Arc::clone(load), record.generation);
        let waiting = tokio::spawn(async move {
            load.drained().await;
            if let Err(error) = host.drained(&id, generation).await {
                tracing::debug!(machine = %id, %error, "host not told that a machine is drained");
            }
        });
        self.draining.insert(record.id.clone(), Task(waiting));
    }

    /// Answers whether nothing is under way to a machine, which then gets nothing more until its
    /// record comes anew; if none does, it goes on after a while.
    fn rest(&mut self, live: &Arc<Live>, id: MachineId, question: u64) {
        let Some(host) = self.host.clone() else { return };
        let target = self.machines.get(&id);
        // Nothing is sent to one that is not known.
        let is_idle = target.is_none_or(|target| target.load.close_if_idle());
        let closed = target.filter(|target| is_idle && target.record.ready).cloned();
        if !is_idle {
            // The gate may have been closed for a moment.
            live.stir();
        }
        let rest = Rest { edge: self.edge, question, is_idle };
        let (live, machine) = (Arc::clone(live), id.clone());
        let waiting = tokio::spawn(async move {
            if let Err(error) = host.rest(&machine, rest).await {
                tracing::debug!(%machine, %error, "host not told whether a machine is unused");
            }
            if let Some(target) = closed {
                tokio::time::sleep(REST_MAX).await;
                target.load.set_open(true);
                live.stir();
            }
        });
        self.resting.insert(id, Task(waiting));
    }

    /// Returns what is counted of an app.
    fn metrics_for(&mut self, app: AppKey) -> &Arc<AppMetrics> {
        self.metrics.entry(Arc::new(app)).or_default()
    }

    fn publish_all(&mut self, live: &Live) {
        let mut by_app: HashMap<AppKey, Vec<Arc<Target>>> = HashMap::new();
        for target in self.machines.values() {
            by_app.entry(AppKey::of(&target.record)).or_default().push(Arc::clone(target));
        }
        self.metrics.retain(|app, _| by_app.contains_key(&**app));
        let table = by_app.into_iter().map(|(app, targets)| self.serving(app, targets)).collect();
        live.publish(table);
    }

    fn publish_app(&mut self, live: &Live, app: &AppKey) {
        let targets: Vec<_> =
            self.machines.values().filter(|target| app.has(&target.record)).cloned().collect();
        let mut table = Table::clone(&live.table.load());
        if targets.is_empty() {
            table.remove(app);
            self.metrics.remove(app);
        } else {
            let (app, serving) = self.serving(app.clone(), targets);
            table.insert(app, serving);
        }
        live.publish(table);
    }

    fn serving(&mut self, app: AppKey, mut targets: Vec<Arc<Target>>) -> (Arc<AppKey>, Serving) {
        targets.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        let metrics = Arc::clone(self.metrics_for(app.clone()));
        (Arc::new(app), Serving { machines: Machines::from(targets), metrics })
    }
}

/// Makes up the number by which the host tells this edge from others.
fn number() -> u64 {
    let mut bytes = [0; 8];
    // The kernel's generator has no way to fail once the server is up.
    let _unlikely = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
pub(crate) mod tests;
