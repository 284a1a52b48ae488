//! This server's machines as its host says, a snapshot at a time.
//!
//! Never asked of the directory: readiness comes from the host's own watch. Readers take no lock;
//! one task writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use perch_client::HostClient;
use perch_types::directory::MachineRecord;
use perch_types::host::WatchEvent;
use perch_types::{AppName, HostId, MachineId};
use tokio::sync::watch;

/// The first and the longest pause before a watch that broke is taken up again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A machine and what it does right now.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) record: MachineRecord,
    pub(crate) load: Arc<Load>,
}

/// What is in flight to one machine; outlives a change of its record.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: AtomicU32,
}

impl Load {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts one request until the guard is dropped; `None` when that would be more than `hard`.
    pub(crate) fn begin(self: &Arc<Self>, hard: Option<u32>) -> Option<InFlight> {
        let hard = hard.unwrap_or(u32::MAX);
        let under = |load: u32| (load < hard).then_some(load + 1);
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, under)
            .ok()
            .map(|_| InFlight(Arc::clone(self)))
    }
}

/// One request under way.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Load>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

type Machines = Arc<[Arc<Target>]>;

/// The snapshot and the news that it changed.
#[derive(Debug)]
pub(crate) struct Live {
    table: ArcSwap<HashMap<AppName, Machines>>,
    version: watch::Sender<u64>,
}

impl Default for Live {
    fn default() -> Self {
        Self { table: ArcSwap::default(), version: watch::Sender::new(0) }
    }
}

impl Live {
    /// Returns the machines of an app on this server, by id.
    pub(crate) fn machines_of(&self, app: &AppName) -> Option<Machines> {
        self.table.load().get(app).cloned()
    }

    /// Returns a receiver that hears of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn publish(&self, table: HashMap<AppName, Machines>) {
        self.table.store(Arc::new(table));
        self.version.send_modify(|version| *version += 1);
    }
}

/// Keeps `live` as the host's watch says, for ever. While the host is away, what was known stays.
pub(crate) async fn follow(live: Arc<Live>, host: HostClient, host_id: HostId) {
    let mut book = Book { host_id, machines: HashMap::new() };
    let mut pause = BACKOFF_MIN;
    loop {
        let watched = host.watch().await;
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
}

fn take(live: &Live, book: &mut Book, event: WatchEvent) {
    match event {
        WatchEvent::Heartbeat => {}
        WatchEvent::Snapshot { machines } => {
            let known = std::mem::take(&mut book.machines);
            for record in machines {
                let load = known.get(&record.id).map(|target| Arc::clone(&target.load));
                book.put(record, load.unwrap_or_default());
            }
            let mut by_app: HashMap<AppName, Vec<Arc<Target>>> = HashMap::new();
            for target in book.machines.values() {
                by_app.entry(target.record.app.clone()).or_default().push(Arc::clone(target));
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
            let app = machine.app.clone();
            let known = book.machines.get(&machine.id);
            if known.is_some_and(|known| known.record.generation > machine.generation) {
                return;
            }
            let load = known.map(|target| Arc::clone(&target.load)).unwrap_or_default();
            book.put(*machine, load);
            book.publish_app(live, &app);
        }
        WatchEvent::Removed { id } => {
            if let Some(target) = book.machines.remove(&id) {
                book.publish_app(live, &target.record.app);
            }
        }
    }
}

impl Book {
    fn put(&mut self, record: MachineRecord, load: Arc<Load>) {
        if record.host == self.host_id {
            self.machines.insert(record.id.clone(), Arc::new(Target { record, load }));
        }
    }

    fn publish_app(&self, live: &Live, app: &AppName) {
        let mut targets: Vec<_> =
            self.machines.values().filter(|target| &target.record.app == app).cloned().collect();
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
    use perch_types::{InstanceId, MachineState, OrgSlug, Timestamp};

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
            image: "web:1".to_owned(),
            cpus: 1,
            memory_mb: 256,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn book() -> Book {
        Book { host_id: HostId::from_bits(1), machines: HashMap::new() }
    }

    #[test]
    fn a_change_keeps_what_is_in_flight() {
        let (live, mut book, app) = (Live::default(), book(), "web".parse().unwrap());
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
        let (live, mut book, app) = (Live::default(), book(), "web".parse().unwrap());
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
}
