//! This server's machines as its host says, a snapshot at a time.
//!
//! Never asked of the directory: readiness comes from the host's own watch. Readers take no lock;
//! one task writes. Another tells the host what is under way to machines that may rest. What
//! changes of one app is published, and told to who waits, without a look at the others.

mod load;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use perch_client::HostClient;
use perch_store::turning;
use perch_types::directory::MachineRecord;
use perch_types::host::{Drained, Loads, MachineLoad, Rest, WatchEvent};
use perch_types::labels;
use perch_types::pulse::Pulse;
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

/// In so many parts what is known is published: a change copies the part of its app.
const SHARDS: usize = 256;

/// A machine and what it does right now.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) record: MachineRecord,
    pub(crate) load: Arc<Load>,
    /// Since when it has been as ready or not, and in the same state, as it is now.
    pub(crate) since: Instant,
}

impl Target {
    /// Makes it of a record and what was known of the machine, without which `load` makes its load.
    /// Unless it is as it was, its faults are forgotten.
    pub(crate) fn of(
        record: MachineRecord,
        known: Option<&Self>,
        load: impl FnOnce() -> Arc<Load>,
    ) -> Self {
        let load = known.map_or_else(load, |known| Arc::clone(&known.load));
        let as_before = known.filter(|known| {
            let known = &known.record;
            (known.state, known.ready, &known.instance)
                == (record.state, record.ready, &record.instance)
        });
        if as_before.is_none() {
            load.health.reset();
        }
        load.set_weight(labels::weight(&record.metadata));
        let since = as_before.map_or_else(Instant::now, |known| known.since);
        Self { record, load, since }
    }
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
}

type Machines = Arc<[Arc<Target>]>;

/// The machines of an app, and what is counted of it.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) machines: Machines,
    pub(crate) metrics: Arc<AppMetrics>,
    news: Arc<News>,
}

/// A change copies it: its keys are shared.
type Table = HashMap<Arc<AppKey>, Serving>;

/// Tells who waits that something has changed.
#[derive(Debug)]
struct News(watch::Sender<u64>);

impl Default for News {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl News {
    fn tell(&self) {
        self.0.send_modify(|version| *version += 1);
    }
}

/// The snapshot and the news that it changed.
#[derive(Debug)]
pub(crate) struct Live {
    shards: [ArcSwap<Table>; SHARDS],
    /// Of all apps, and of those that are not known.
    news: News,
}

impl Default for Live {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| ArcSwap::default()), news: News::default() }
    }
}

impl Live {
    /// Returns the machines of an app on this server, by id.
    pub(crate) fn machines_of(&self, app: &AppKey) -> Option<Machines> {
        self.with(app, |serving| Arc::clone(&serving.machines))
    }

    /// Returns what is counted of an app that has a machine here.
    pub(crate) fn metrics_of(&self, app: &AppKey) -> Option<Arc<AppMetrics>> {
        self.with(app, |serving| Arc::clone(&serving.metrics))
    }

    fn with<T>(&self, app: &AppKey, read: impl FnOnce(&Serving) -> T) -> Option<T> {
        self.shards.get(shard(app))?.load().get(app).map(read)
    }

    /// Returns all apps with machines here, by name.
    pub(crate) fn apps(&self) -> Vec<(Arc<AppKey>, Serving)> {
        let mut apps = Vec::new();
        for shard in &self.shards {
            let table = shard.load();
            apps.extend(table.iter().map(|(app, serving)| (Arc::clone(app), serving.clone())));
        }
        apps.sort_unstable_by(|(one, _), (other, _)| {
            (&one.name, &one.org).cmp(&(&other.name, &other.org))
        });
        apps
    }

    /// Returns what the host has not heard of what is under way, as far as it may matter to it:
    /// to machines of apps of which one may rest. With each comes where it was read.
    fn loads(&self, all: bool) -> Vec<(MachineLoad, Arc<Load>)> {
        let may_rest = |target: &Arc<Target>| {
            let rests = |how| matches!(how, Some(Autostop::Stop | Autostop::Suspend));
            target.record.services.iter().any(|service| rests(service.autostop))
        };
        let mut loads = Vec::new();
        for shard in &self.shards {
            let table = shard.load();
            let apps = table.values().filter(|serving| serving.machines.iter().any(may_rest));
            let machines = apps.flat_map(|serving| serving.machines.iter());
            loads.extend(machines.filter_map(|target| {
                let (in_flight, peak) = target.load.news(all)?;
                let told = MachineLoad { id: target.record.id.clone(), in_flight, peak };
                Some((told, Arc::clone(&target.load)))
            }));
        }
        loads
    }

    /// Returns whether the host has said anything yet: until then nothing is known of an app.
    pub(crate) fn is_known(&self) -> bool {
        *self.news.0.borrow() > 0
    }

    /// Returns a receiver that hears of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.news.0.subscribe()
    }

    /// Returns a receiver that hears of every change of an app. It ends when nothing is left of
    /// the app here.
    pub(crate) fn changes_of(&self, app: &AppKey) -> watch::Receiver<u64> {
        self.with(app, |serving| serving.news.0.subscribe()).unwrap_or_else(|| self.changes())
    }

    /// Publishes what is known of one app; nothing when there is nothing left.
    fn put(&self, app: &Arc<AppKey>, serving: Option<Serving>) {
        let Some(shard) = self.shards.get(shard(app)) else { return };
        let mut table = Table::clone(&shard.load());
        match serving {
            Some(serving) => table.insert(Arc::clone(app), serving),
            None => table.remove(app),
        };
        shard.store(Arc::new(table));
    }

    /// Has everybody who waits for an app look again.
    fn stir(&self, app: &AppKey) {
        self.with(app, |serving| serving.news.tell());
    }
}

/// Returns the part of an app: FNV-1a of its name. Names that meet in one only make it longer.
fn shard(app: &AppKey) -> usize {
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = app.name.as_str().bytes().fold(0x811c_9dc5, mix);
    usize::try_from(hash).map_or(0, |hash| hash % SHARDS)
}

/// Keeps `live` as the host's watch says, for ever. While the host is away, what was known stays.
pub(crate) async fn follow(
    live: Arc<Live>,
    host: HostClient,
    host_id: HostId,
    [following, telling]: [Pulse; 2],
) {
    let mut book = Book::new(host_id, Some(host.clone()));
    let edge = book.edge;
    let is_to_tell_all = Arc::new(AtomicBool::new(false));
    let loads = tell_loads(Arc::clone(&live), host.clone(), edge, Arc::clone(&is_to_tell_all));
    let _telling = Task(tokio::spawn(async move { turning(&telling, loads).await }));
    let mut pause = BACKOFF_MIN;
    loop {
        let watched = turning(&following, host.watch_to_drain(edge)).await;
        if let Err(error) = &watched
            && pause == BACKOFF_MIN
        {
            tracing::warn!(%error, "host not watched: serving what was known");
        }
        if let Ok(mut lines) = watched {
            while let Some(line) = turning(&following, lines.next()).await {
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
        turning(&following, tokio::time::sleep(pause)).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// Tells the host what is under way, as far as it has changed; all of it whenever its watch begins.
/// What it may not have heard is told again, and nothing else: what is told counts as used.
async fn tell_loads(live: Arc<Live>, host: HostClient, edge: u64, is_to_tell_all: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(LOADS_EVERY).await;
        let all = is_to_tell_all.swap(false, Ordering::AcqRel);
        let (machines, loads): (Vec<_>, Vec<_>) = live.loads(all).into_iter().unzip();
        if !all && machines.is_empty() {
            continue;
        }
        let telling = Loads { edge, all, machines };
        if let Err(error) = host.loads(&telling).await {
            tracing::debug!(%error, "host not told what is under way");
            let told = telling.machines.iter().zip(&loads);
            told.for_each(|(machine, load)| load.untold(machine.peak));
            is_to_tell_all.fetch_or(all, Ordering::AcqRel);
        }
    }
}

/// All machines of this host; only [`follow`] writes it.
struct Book {
    host_id: HostId,
    /// This edge's number at the host.
    edge: u64,
    machines: HashMap<MachineId, Arc<Target>>,
    /// Apps that have machines.
    apps: HashMap<Arc<AppKey>, Known>,
    /// Who is told of machines that no request is under way to any more.
    host: Option<HostClient>,
    /// Waits for that, one a machine that ends.
    draining: HashMap<MachineId, Task>,
    /// Waits for news of machines that are to rest.
    resting: HashMap<MachineId, Task>,
}

/// What is kept of an app while it has machines.
#[derive(Default)]
struct Known {
    machines: BTreeSet<MachineId>,
    metrics: Arc<AppMetrics>,
    news: Arc<News>,
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
            book.apps.values_mut().for_each(|app| app.machines.clear());
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
            book.publish_app(live, app);
        }
        WatchEvent::Removed { id } => {
            book.draining.remove(&id);
            book.resting.remove(&id);
            if let Some(target) = book.machines.remove(&id) {
                let app = AppKey::of(&target.record);
                if let Some(known) = book.apps.get_mut(&app) {
                    known.machines.remove(&id);
                }
                book.publish_app(live, app);
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
            apps: HashMap::new(),
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
        let app = self.apps.entry(Arc::new(AppKey::of(&record))).or_default();
        app.machines.insert(record.id.clone());
        let metrics = &app.metrics;
        let target = Target::of(record, known, || Arc::new(Load::of(metrics)));
        let (record, load) = (&target.record, &target.load);
        self.resting.remove(&record.id);
        load.instance.runs(&record.instance);
        load.set_open(record.ready);
        self.drain(record, load);
        self.machines.insert(record.id.clone(), Arc::new(target));
    }

    /// Tells the host once no request is under way to a machine that ends: it waits for that
    /// before it sends the signal.
    fn drain(&mut self, record: &MachineRecord, load: &Arc<Load>) {
        self.draining.remove(&record.id);
        let is_ending = !record.ready && record.state.is_ending();
        let (true, Some(host)) = (is_ending, self.host.clone()) else {
            return;
        };
        let (id, load) = (record.id.clone(), Arc::clone(load));
        let drained = Drained { generation: record.generation, edge: Some(self.edge) };
        let waiting = tokio::spawn(async move {
            load.drained().await;
            if let Err(error) = host.drained(&id, &drained).await {
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
        let app = target.map(|target| AppKey::of(&target.record));
        if let Some(app) = app.as_ref().filter(|_| !is_idle) {
            // The gate may have been closed for a moment.
            live.stir(app);
        }
        let rest = Rest { edge: self.edge, question, is_idle };
        let (live, machine) = (Arc::clone(live), id.clone());
        let waiting = tokio::spawn(async move {
            // The gate is closed meanwhile.
            match tokio::time::timeout(REST_MAX, host.rest(&machine, rest)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%machine, %error, "host not told whether a machine is unused");
                }
                Err(_) => tracing::debug!(%machine, "host takes no word of a machine that rests"),
            }
            if let (Some(target), Some(app)) = (closed, app) {
                tokio::time::sleep(REST_MAX).await;
                target.load.set_open(true);
                live.stir(&app);
            }
        });
        self.resting.insert(id, Task(waiting));
    }

    /// Publishes everything anew; apps without a machine are gone with it.
    fn publish_all(&mut self, live: &Live) {
        let mut gone = Vec::new();
        self.apps.retain(|_, known| {
            let is_left = !known.machines.is_empty();
            if !is_left {
                gone.push(Arc::clone(&known.news));
            }
            is_left
        });
        let mut tables: HashMap<usize, Table> = HashMap::new();
        for (app, known) in &self.apps {
            let table = tables.entry(shard(app)).or_default();
            table.insert(Arc::clone(app), self.serving(known));
        }
        for (index, shard) in live.shards.iter().enumerate() {
            shard.store(Arc::new(tables.remove(&index).unwrap_or_default()));
        }
        live.news.tell();
        self.apps.values().for_each(|known| known.news.tell());
        gone.iter().for_each(|news| news.tell());
    }

    /// Publishes what is known of one app.
    fn publish_app(&mut self, live: &Live, app: AppKey) {
        let app = Arc::new(app);
        let Some(known) = self.apps.get(&app) else { return };
        let news = Arc::clone(&known.news);
        if known.machines.is_empty() {
            self.apps.remove(&app);
            live.put(&app, None);
        } else {
            live.put(&app, Some(self.serving(known)));
        }
        live.news.tell();
        news.tell();
    }

    fn serving(&self, known: &Known) -> Serving {
        let targets = known.machines.iter().filter_map(|id| self.machines.get(id));
        Serving {
            machines: targets.cloned().collect(),
            metrics: Arc::clone(&known.metrics),
            news: Arc::clone(&known.news),
        }
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
