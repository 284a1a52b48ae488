//! This server's machines as its host says, a snapshot at a time.
//!
//! Never asked of the directory: readiness comes from the host's own watch. Readers take no lock;
//! one task writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use perch_client::HostClient;
use perch_types::directory::MachineRecord;
use perch_types::host::WatchEvent;
use perch_types::{AppName, HostId, MachineId, OrgSlug};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::outlier::Health;
use crate::room::Room;

/// The first and the longest pause before a watch that broke is taken up again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A machine and what it does right now.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) record: MachineRecord,
    pub(crate) load: Arc<Load>,
    /// Since when it has been as ready or not, and in the same state, as it is now.
    pub(crate) since: Instant,
}

/// The bits of [`Load`]: requests under way, tunnels among them, and whether the gate is closed.
const ONE_REQUEST: u64 = 1;
const ONE_TUNNEL: u64 = 1 << 32;
const CLOSED: u64 = 1 << 63;
const REQUESTS: u64 = ONE_TUNNEL - 1;
const TUNNELS: u64 = CLOSED - ONE_TUNNEL;

/// What is in flight to one machine, and whether more may come; outlives a change of its record.
///
/// All of it is one number: a request that begins after the gate was closed is refused, and one
/// that began before is seen by whoever closed it.
#[derive(Debug, Default)]
pub(crate) struct Load {
    state: AtomicU64,
    changed: Notify,
    pub(crate) room: Room,
    pub(crate) health: Health,
}

impl Load {
    pub(crate) fn in_flight(&self) -> u32 {
        u32::try_from(self.state.load(Ordering::Acquire) & REQUESTS).unwrap_or(u32::MAX)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED == 0
    }

    /// Counts one request until the guard is dropped; `None` when that would be more than `hard`
    /// or the gate is closed.
    pub(crate) fn begin(self: &Arc<Self>, hard: Option<u32>) -> Option<InFlight> {
        let hard = u64::from(hard.unwrap_or(u32::MAX));
        let under = |state: u64| {
            (state & CLOSED == 0 && state & REQUESTS < hard).then_some(state + ONE_REQUEST)
        };
        let begun = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, under);
        begun.ok().map(|_| InFlight { load: Arc::clone(self), counts: ONE_REQUEST })
    }

    pub(crate) fn set_open(&self, open: bool) {
        if open {
            self.state.fetch_and(!CLOSED, Ordering::AcqRel);
        } else {
            self.state.fetch_or(CLOSED, Ordering::AcqRel);
        }
        self.changed.notify_waiters();
    }

    /// Waits until the gate is closed and every request but tunnels has ended: a tunnel has no end
    /// of its own, so its app is told by the signal.
    pub(crate) async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listening begins before the look, so that no change falls in between.
            changed.as_mut().enable();
            if is_drained(self.state.load(Ordering::Acquire)) {
                return;
            }
            changed.await;
        }
    }
}

const fn is_drained(state: u64) -> bool {
    state & CLOSED != 0 && state & REQUESTS == (state & TUNNELS) >> 32
}

/// One request under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    load: Arc<Load>,
    /// What it adds to the load.
    counts: u64,
}

impl InFlight {
    /// Notes that the request has become a tunnel.
    pub(crate) fn into_tunnel(mut self) -> Self {
        self.load.state.fetch_add(ONE_TUNNEL, Ordering::AcqRel);
        self.counts += ONE_TUNNEL;
        self.load.changed.notify_waiters();
        self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.load.state.fetch_sub(self.counts, Ordering::AcqRel);
        if before & CLOSED != 0 {
            self.load.changed.notify_waiters();
        }
        self.load.room.tell();
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

    fn has(&self, machine: &MachineRecord) -> bool {
        (&self.org, &self.name) == (&machine.org, &machine.app)
    }
}

type Machines = Arc<[Arc<Target>]>;

/// The snapshot and the news that it changed.
#[derive(Debug)]
pub(crate) struct Live {
    table: ArcSwap<HashMap<AppKey, Machines>>,
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
        self.table.load().get(app).cloned()
    }

    /// Returns whether the host has said anything yet: until then nothing is known of an app.
    pub(crate) fn is_known(&self) -> bool {
        *self.version.borrow() > 0
    }

    /// Returns a receiver that hears of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn publish(&self, table: HashMap<AppKey, Machines>) {
        self.table.store(Arc::new(table));
        self.version.send_modify(|version| *version += 1);
    }
}

/// Keeps `live` as the host's watch says, for ever. While the host is away, what was known stays.
pub(crate) async fn follow(live: Arc<Live>, host: HostClient, host_id: HostId) {
    let mut book = Book::new(host_id, Some(host.clone()));
    let mut pause = BACKOFF_MIN;
    loop {
        let watched = host.watch_to_drain().await;
        if let Err(error) = &watched
            && pause == BACKOFF_MIN
        {
            tracing::warn!(%error, "host not watched: serving what was known");
        }
        if let Ok(mut lines) = watched {
            while let Some(line) = lines.next().await {
                match line {
                    Ok(event) => {
                        pause = BACKOFF_MIN;
                        take(&live, &mut book, event);
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

/// All machines of this host; only [`follow`] writes it.
struct Book {
    host_id: HostId,
    machines: HashMap<MachineId, Arc<Target>>,
    /// Who is told of machines that no request is under way to any more.
    host: Option<HostClient>,
    /// Waits for that, one a machine that ends.
    draining: HashMap<MachineId, Draining>,
}

/// A wait that ends with its owner.
struct Draining(JoinHandle<()>);

impl Drop for Draining {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn take(live: &Live, book: &mut Book, event: WatchEvent) {
    match event {
        WatchEvent::Heartbeat => {}
        WatchEvent::Snapshot { machines } => {
            let known = std::mem::take(&mut book.machines);
            book.draining.clear();
            for record in machines {
                let known = known.get(&record.id).map(AsRef::as_ref);
                book.put(record, known);
            }
            let mut by_app: HashMap<AppKey, Vec<Arc<Target>>> = HashMap::new();
            for target in book.machines.values() {
                by_app.entry(AppKey::of(&target.record)).or_default().push(Arc::clone(target));
            }
            let table = by_app
                .into_iter()
                .map(|(app, mut targets)| {
                    targets.sort_by(|a, b| a.record.id.cmp(&b.record.id));
                    (app, Machines::from(targets))
                })
                .collect();
            live.publish(table);
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
            if let Some(target) = book.machines.remove(&id) {
                book.publish_app(live, &AppKey::of(&target.record));
            }
        }
    }
}

impl Book {
    fn new(host_id: HostId, host: Option<HostClient>) -> Self {
        Self { host_id, machines: HashMap::new(), host, draining: HashMap::new() }
    }

    /// Puts a machine down as its host says. The gate is closed or opened before anybody can read
    /// the new record.
    fn put(&mut self, record: MachineRecord, known: Option<&Target>) {
        if record.host != self.host_id {
            return;
        }
        let load = known.map(|known| Arc::clone(&known.load)).unwrap_or_default();
        let as_before = known.filter(|known| {
            let known = &known.record;
            (known.state, known.ready, &known.instance)
                == (record.state, record.ready, &record.instance)
        });
        let since = as_before.map_or_else(Instant::now, |known| known.since);
        if as_before.is_none() {
            load.health.reset();
        }
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
        self.draining.insert(record.id.clone(), Draining(waiting));
    }

    fn publish_app(&self, live: &Live, app: &AppKey) {
        let mut targets: Vec<_> =
            self.machines.values().filter(|target| app.has(&target.record)).cloned().collect();
        targets.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        let mut table = HashMap::clone(&live.table.load());
        if targets.is_empty() {
            table.remove(app);
        } else {
            table.insert(app.clone(), Machines::from(targets));
        }
        live.publish(table);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use perch_types::directory::Generation;
    use perch_types::{InstanceId, MachineState, Timestamp};

    use super::*;

    pub(crate) fn record(id: u64, app: &str, state: MachineState) -> MachineRecord {
        MachineRecord {
            id: MachineId::from_bits(id),
            org: OrgSlug::personal(),
            app: app.parse().unwrap(),
            name: "m".to_owned(),
            host: HostId::from_bits(1),
            region: "ams".parse().unwrap(),
            instance: InstanceId::from_parts(1, 1),
            generation: Generation { incarnation: 1, counter: 1 },
            state,
            ready: state == MachineState::Started,
            cordoned: false,
            private_ip: "fdaa:0:1::2".parse().unwrap(),
            private_ipv4: "10.209.0.2".parse().unwrap(),
            services: serde_json::from_str(
                r#"[{"internal_port":8080,"ports":[{"port":80,"handlers":["http"]}]}]"#,
            )
            .unwrap(),
            metadata: std::collections::BTreeMap::new(),
            skip_dns: false,
            statics: Vec::new(),
            containers: Vec::new(),
            image: "web:1".to_owned(),
            cpus: 1,
            cpu_kind: Default::default(),
            memory_mb: 256,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn web() -> AppKey {
        AppKey { org: OrgSlug::personal(), name: "web".parse().unwrap() }
    }

    fn book() -> Book {
        Book::new(HostId::from_bits(1), None)
    }

    #[test]
    fn a_change_keeps_what_is_in_flight() {
        let (live, mut book, app) = (Live::default(), book(), web());
        let first = record(1, "web", MachineState::Started);
        take(&live, &mut book, WatchEvent::Snapshot { machines: vec![first.clone()] });
        let guard = live.machines_of(&app).unwrap()[0].load.begin(None).unwrap();
        let mut second = first;
        second.generation.counter = 2;
        second.ready = false;
        take(&live, &mut book, WatchEvent::Changed { machine: Box::new(second) });
        let machines = live.machines_of(&app).unwrap();
        assert!(!machines[0].record.ready);
        assert_eq!(machines[0].load.in_flight(), 1);
        drop(guard);
        assert_eq!(machines[0].load.in_flight(), 0);
    }

    #[test]
    fn an_older_record_changes_nothing_and_another_hosts_is_not_taken() {
        let (live, mut book, app) = (Live::default(), book(), web());
        let mut new = record(1, "web", MachineState::Started);
        new.generation.counter = 5;
        take(&live, &mut book, WatchEvent::Changed { machine: Box::new(new) });
        let old = record(1, "web", MachineState::Stopped);
        take(&live, &mut book, WatchEvent::Changed { machine: Box::new(old) });
        let mut foreign = record(2, "web", MachineState::Started);
        foreign.host = HostId::from_bits(2);
        take(&live, &mut book, WatchEvent::Changed { machine: Box::new(foreign) });
        let machines = live.machines_of(&app).unwrap();
        assert_eq!(machines.len(), 1);
        assert_eq!(machines[0].record.state, MachineState::Started);
        take(&live, &mut book, WatchEvent::Removed { id: MachineId::from_bits(1) });
        assert!(live.machines_of(&app).is_none());
    }

    #[test]
    fn an_app_has_no_machine_of_another_organizations_app_of_its_name() {
        let (live, mut book, ours) = (Live::default(), book(), web());
        let theirs = AppKey { org: "theirs".parse().unwrap(), ..web() };
        let known = |live: &Live| {
            let ids = |app: &AppKey| -> Vec<MachineId> {
                let machines = live.machines_of(app).unwrap_or_default();
                machines.iter().map(|target| target.record.id.clone()).collect()
            };
            (ids(&ours), ids(&theirs))
        };
        let mut left = record(1, "web", MachineState::Started);
        left.org = theirs.org.clone();
        let own = record(2, "web", MachineState::Started);
        let (one, two) = (MachineId::from_bits(1), MachineId::from_bits(2));
        let machines = vec![left.clone(), own.clone()];
        take(&live, &mut book, WatchEvent::Snapshot { machines });
        assert_eq!(known(&live), (vec![two.clone()], vec![one.clone()]));
        for machine in [left, own] {
            take(&live, &mut book, WatchEvent::Changed { machine: Box::new(machine) });
            assert_eq!(known(&live), (vec![two.clone()], vec![one.clone()]));
        }
        take(&live, &mut book, WatchEvent::Removed { id: one });
        assert_eq!(known(&live), (vec![two], Vec::new()));
    }

    #[tokio::test]
    async fn a_closed_gate_lets_nothing_in_and_is_drained_once_only_tunnels_are_left() {
        let load = Arc::new(Load::default());
        let (request, tunnel) = (load.begin(None).unwrap(), load.begin(None).unwrap());
        load.set_open(false);
        assert!(load.begin(None).is_none() && !load.is_open());
        assert_eq!(load.in_flight(), 2);
        let waiting = Arc::clone(&load);
        let drained = tokio::spawn(async move { waiting.drained().await });
        let tunnel = tunnel.into_tunnel();
        tokio::task::yield_now().await;
        assert!(!drained.is_finished());
        drop(request);
        tokio::time::timeout(Duration::from_secs(5), drained).await.unwrap().unwrap();
        assert_eq!(load.in_flight(), 1);
        load.set_open(true);
        let more = load.begin(Some(2)).unwrap();
        assert!(load.begin(Some(2)).is_none(), "the tunnel counts as one");
        drop((tunnel, more));
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn how_long_a_machine_is_as_it_is_survives_news_that_change_nothing() {
        let (live, mut book, app) = (Live::default(), book(), web());
        let mut record = record(1, "web", MachineState::Started);
        record.ready = false;
        let mut since = |record: &MachineRecord| {
            let machine = Box::new(record.clone());
            take(&live, &mut book, WatchEvent::Changed { machine });
            live.machines_of(&app).unwrap()[0].since
        };
        let first = since(&record);
        record.generation.counter += 1;
        assert_eq!(since(&record), first);
        record.ready = true;
        record.generation.counter += 1;
        assert!(since(&record) > first);
    }

    #[test]
    fn nothing_is_known_until_the_host_has_said_something() {
        let (live, mut book) = (Live::default(), Book::new(HostId::from_bits(1), None));
        assert!(!live.is_known());
        take(&live, &mut book, WatchEvent::Heartbeat);
        assert!(!live.is_known());
        take(&live, &mut book, WatchEvent::Snapshot { machines: Vec::new() });
        assert!(live.is_known());
    }
}
