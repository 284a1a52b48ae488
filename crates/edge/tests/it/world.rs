//! A whole edge with a host that is played, a real directory, and origins on loopback.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use perch_client::HostClient;
use perch_edge::{Binder, Certificates, Config, Edge, Https, Limits, RawConfig, RawLimits};
use perch_store::{
    Expected, SqliteStore, Store, ViewFollower, ViewHandle, delete_doc, put_doc, put_op,
};
use perch_types::clock::Clock;
use perch_types::directory::{AppDoc, Generation, HostnameClaim, MachineRecord, VolumeRecord};
use perch_types::ports::{Holder, PortClaim, RawPort};
use perch_types::replays::ReplaySources;
use perch_types::{AppName, HostId, InstanceId, MachineId, MachineState, OrgSlug, Timestamp};
use rustls::RootCertStore;

use crate::tls::Certs;

mod doors;
mod host;
mod origin;
mod pair;

pub(crate) use self::doors::Doors;
pub(crate) use self::host::{Host, OnStart};
pub(crate) use self::origin::{OK, Origin, read_head, replay};
pub(crate) use self::pair::{Authority, Pair};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const ROUTES_AT_ONCE: usize = perch_store::TXN_OPS_MAX;

/// Real time, and how far a test has put it ahead.
#[derive(Debug)]
struct TestClock(Instant, Arc<AtomicU64>);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn boot_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap() + self.1.load(Ordering::SeqCst)
    }
}

pub(crate) fn machine(id: u64, app: &str, state: MachineState, port: u16) -> MachineRecord {
    MachineRecord {
        id: MachineId::from_bits(id),
        org: OrgSlug::personal(),
        app: app.parse().unwrap(),
        name: "m".to_owned(),
        host: HostId::from_bits(1),
        region: "ams".parse().unwrap(),
        instance: InstanceId::from_parts(1, 1),
        generation: Generation::default(),
        state,
        ready: state == MachineState::Started,
        cordoned: false,
        private_ip: "::1".parse().unwrap(),
        private_ipv4: "127.0.0.1".parse().unwrap(),
        services: serde_json::from_value(serde_json::json!([
            {"internal_port": port, "ports": [
                {"port": 80, "handlers": ["http"]}, {"port": 443, "handlers": ["tls", "http"]},
            ]}
        ]))
        .unwrap(),
        metadata: BTreeMap::new(),
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

/// Has a machine take so much at once.
pub(crate) fn limited(mut machine: MachineRecord, limits: serde_json::Value) -> MachineRecord {
    machine.services[0].concurrency = serde_json::from_value(limits).unwrap();
    machine
}

/// All of it; it ends when this is dropped.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    /// Where HTTPS is served.
    pub(crate) https: SocketAddr,
    /// Whom its certificates are from.
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) host: Arc<Host>,
    pub(crate) doors: Arc<Doors>,
    store: Arc<dyn Store>,
    view: ViewHandle,
    listener: TcpListener,
    https_listener: TcpListener,
    certs: Arc<Certs>,
    limits: Limits,
    offer: Offer,
    edge: Mutex<Option<Edge>>,
    /// How far the edge's clock is ahead.
    pub(crate) ahead_ms: Arc<AtomicU64>,
    pub(crate) runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

/// What an edge serves beside plain HTTP.
struct Offer {
    has_https: bool,
    raw_limits: RawLimits,
    /// For raw ports.
    certificates: Option<Arc<dyn Certificates>>,
}

impl Default for Offer {
    fn default() -> Self {
        Self { has_https: true, raw_limits: RawLimits::default(), certificates: None }
    }
}

impl World {
    /// Threads of its runtime.
    pub(crate) const WORKERS: usize = 2;

    pub(crate) fn new(machines: Vec<MachineRecord>) -> Self {
        Self::with(machines, Limits::default())
    }

    /// One with a machine of the app `web`, which serves.
    pub(crate) fn web(origin: &Origin) -> Self {
        Self::new(vec![machine(1, "web", MachineState::Started, origin.port)])
    }

    pub(crate) fn with(machines: Vec<MachineRecord>, limits: Limits) -> Self {
        Self::made(machines, limits, Offer::default())
    }

    /// One where apps are served over plain HTTP alone.
    pub(crate) fn without_https(machines: Vec<MachineRecord>) -> Self {
        let certificates: Arc<dyn Certificates> = Arc::new(Certs::new());
        let certificates = Some(certificates);
        let offer = Offer { has_https: false, certificates, ..Offer::default() };
        Self::made(machines, Limits::default(), offer)
    }

    pub(crate) fn with_raw(
        machines: Vec<MachineRecord>,
        limits: Limits,
        raw_limits: RawLimits,
        certificates: Option<Arc<dyn Certificates>>,
    ) -> Self {
        let offer = Offer { raw_limits, certificates, ..Offer::default() };
        Self::made(machines, limits, offer)
    }

    fn made(machines: Vec<MachineRecord>, limits: Limits, offer: Offer) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(Self::WORKERS)
            .enable_all()
            .build();
        let (runtime, dir) = (runtime.unwrap(), tempfile::tempdir().unwrap());
        let host = Arc::new(Host::new());
        // The sign that the edge has heard of everything.
        host.put(machine(0xff, "probe", MachineState::Failed, 1));
        for machine in machines {
            host.put(machine);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let https_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let certs = Arc::new(Certs::new());
        let guard = runtime.enter();
        let unix = tokio::net::UnixListener::bind(dir.path().join("host.sock")).unwrap();
        let router = Arc::clone(&host).router();
        tokio::spawn(async move { axum::serve(unix, router).await });
        let clock: Arc<dyn Clock> = Arc::new(TestClock(Instant::now(), Arc::default()));
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(dir.path().join("d.db"), clock).unwrap());
        for (number, app) in ["probe", "web", "empty", "other", "apart"].into_iter().enumerate() {
            runtime.block_on(put_app(store.as_ref(), app, number as u64));
        }
        let view = ViewFollower::start(Arc::clone(&store), dir.path().join("view.json"));
        drop(guard);
        let world = Self {
            address: listener.local_addr().unwrap(),
            https: https_listener.local_addr().unwrap(),
            roots: Arc::new(certs.roots()),
            host,
            doors: Arc::default(),
            store,
            view,
            listener,
            https_listener,
            certs,
            limits,
            offer,
            edge: Mutex::new(None),
            ahead_ms: Arc::default(),
            runtime,
            dir,
        };
        world.replace();
        until("the edge has heard of its machines", || world.get("probe", "/").contains("PM08"));
        world
    }

    fn start_edge(&self) -> Edge {
        let _on = self.runtime.enter();
        let https = || Https {
            listeners: vec![self.https_listener.try_clone().unwrap()],
            certificates: Arc::clone(&self.certs) as Arc<dyn Certificates>,
        };
        Edge::start(Config {
            listeners: vec![self.listener.try_clone().unwrap()],
            https: self.offer.has_https.then(https),
            domain: "perch.localhost".to_owned(),
            issuer: Some(perch_edge::Issuer {
                host: "oidc.perch.localhost".to_owned(),
                documents: Arc::new(OneDocument),
            }),
            region: "ams".parse().unwrap(),
            host_id: HostId::from_bits(1),
            host: HostClient::new(self.dir.path().join("host.sock")),
            view: self.view.clone(),
            clock: Arc::new(TestClock(Instant::now(), Arc::clone(&self.ahead_ms))),
            limits: self.limits.clone(),
            raw: Some(RawConfig {
                binder: Arc::clone(&self.doors) as Arc<dyn Binder>,
                certificates: self.offer.certificates.clone(),
                limits: self.offer.raw_limits.clone(),
            }),
            far: None,
        })
        .unwrap()
    }

    /// Starts another edge at the same socket, and stops the one before as its process does when
    /// it is replaced: all that it has under way ends well.
    pub(crate) fn replace(&self) {
        let mut edge = self.edge.lock().unwrap();
        if let Some(mut old) = edge.replace(self.start_edge()) {
            old.stop();
            self.runtime.block_on(old.ended());
        }
    }

    /// Has host names lead to an app, wherever they led before.
    pub(crate) fn put_routes(&self, app: &str, hosts: impl Iterator<Item = String>) {
        let claim = HostnameClaim { org: OrgSlug::personal(), app: app.parse().unwrap() };
        let ops: Vec<_> =
            hosts.map(|host| put_op::<HostnameClaim>(&(host,), &claim).unwrap()).collect();
        for some in ops.chunks(ROUTES_AT_ONCE) {
            let done = self.runtime.block_on(self.store.txn(Vec::new(), some.to_vec()));
            done.unwrap().or_conflict().unwrap();
        }
    }

    /// Gives a host name to an app, whoever had it.
    pub(crate) fn claim(&self, host: &str, app: &str) {
        let claim = HostnameClaim { org: OrgSlug::personal(), app: app.parse().unwrap() };
        let key = (host.to_owned(),);
        let put = put_doc(self.store.as_ref(), &key, &claim, Expected::Any);
        self.runtime.block_on(put).unwrap();
        until("the edge knows the name", || {
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            !self.raw(head.as_bytes()).contains("PE01")
        });
    }

    /// Returns what reads the edge's numbers.
    pub(crate) fn readings(&self) -> perch_edge::Readings {
        self.edge.lock().unwrap().as_ref().unwrap().readings()
    }

    /// Returns how many bytes the kernel has moved.
    pub(crate) fn spliced(&self) -> usize {
        let text = self.readings().text();
        let mut lines = text.lines().filter(|line| line.starts_with("perch_edge_spliced_bytes{"));
        lines.next().unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Makes an app of another organization.
    pub(crate) fn put_app_of(&self, org: &OrgSlug, app: &str) {
        self.runtime.block_on(put_app_of(self.store.as_ref(), org, app, 99));
    }

    /// Has an organization say from where requests may be sent on to its apps.
    pub(crate) fn put_replay_sources(&self, org: &OrgSlug, sources: &ReplaySources) {
        let key = (org.clone(),);
        let put = put_doc(self.store.as_ref(), &key, sources, Expected::Any);
        self.runtime.block_on(put).unwrap();
    }

    /// Has the directory say of a volume.
    pub(crate) fn put_volume(&self, volume: &VolumeRecord) {
        let key = (volume.org.clone(), volume.app.clone(), volume.id.clone());
        let put = put_doc(self.store.as_ref(), &key, volume, Expected::Any);
        self.runtime.block_on(put).unwrap();
    }

    /// Returns the edge's tasks that do not turn.
    pub(crate) fn wedged(&self) -> Vec<&'static str> {
        self.edge.lock().unwrap().as_ref().unwrap().wedged()
    }

    /// Gives an app a raw port and returns where that is.
    pub(crate) fn claim_port(&self, app: &str, port: RawPort) -> SocketAddr {
        self.share_port(&[app], port)
    }

    /// Gives apps a port at which clients name the one that they want, and returns where that is.
    pub(crate) fn share_port(&self, apps: &[&str], port: RawPort) -> SocketAddr {
        let claim = claim_of(apps);
        let put = put_doc(self.store.as_ref(), &port, &claim, Expected::Any);
        self.runtime.block_on(put).unwrap();
        let mut address = None;
        until("the port is open", || {
            address = self.doors.at(port);
            address.is_some()
        });
        address.unwrap()
    }

    /// Takes a raw port from its app.
    pub(crate) fn release_port(&self, port: RawPort) {
        let delete = delete_doc::<PortClaim>(self.store.as_ref(), &port, Expected::Any);
        self.runtime.block_on(delete).unwrap();
    }

    /// Has another certificate for the same names from now on; returns whom that one is from.
    pub(crate) fn renew(&self) -> RootCertStore {
        self.certs.renew();
        self.certs.roots()
    }

    /// Stops the edge as the end of its process does.
    pub(crate) fn stop(&self) {
        if let Some(edge) = self.edge.lock().unwrap().as_ref() {
            edge.stop();
        }
    }

    /// Sends bytes and returns all that comes back until the end.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A connection that is reset after the answer is as good as one that ends.
        let _end = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    pub(crate) fn get(&self, app: &str, path: &str) -> String {
        self.raw(
            format!(
                "GET {path} HTTP/1.1\r\nHost: {app}.perch.localhost\r\nConnection: close\r\n\r\n"
            )
            .as_bytes(),
        )
    }
}

/// Documents of the platform: one, at one path.
#[derive(Debug)]
struct OneDocument;

#[async_trait::async_trait]
impl perch_edge::Documents for OneDocument {
    async fn get(&self, path: &str) -> Option<Vec<u8>> {
        (path == "/personal/.well-known/jwks").then(|| b"{\"keys\":[]}".to_vec())
    }
}

/// Returns what gives apps a raw port.
fn claim_of(apps: &[&str]) -> PortClaim {
    let mut holders = apps.iter().map(|app| Holder {
        org: OrgSlug::personal(),
        app: app.parse().unwrap(),
        app_id: (*app).to_owned(),
        claimed_at: Timestamp::UNIX_EPOCH,
    });
    let holder = holders.next().unwrap();
    PortClaim { holder, by_name: apps.len() > 1, others: holders.collect() }
}

async fn put_app(store: &dyn Store, app: &str, number: u64) {
    put_app_of(store, &OrgSlug::personal(), app, number).await;
}

async fn put_app_of(store: &dyn Store, org: &OrgSlug, app: &str, number: u64) {
    let (org, name): (OrgSlug, AppName) = (org.clone(), app.parse().unwrap());
    let doc = AppDoc {
        id: app.to_owned(),
        number,
        name: name.clone(),
        org: org.clone(),
        network: if app == "apart" { "apart" } else { "default" }.to_owned(),
        network_id: 1,
        role: None,
        created_at: Timestamp::UNIX_EPOCH,
    };
    put_doc(store, &(org, name), &doc, Expected::Absent).await.unwrap();
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}
