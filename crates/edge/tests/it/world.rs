//! A whole edge with a host that is played, a real directory, and origins on loopback.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use perch_client::HostClient;
use perch_edge::{Binder, Certificates, Config, Edge, Https, Limits, RawConfig, RawLimits};
use perch_store::{Expected, SqliteStore, Store, ViewFollower, delete_doc, put_doc};
use perch_types::clock::Clock;
use perch_types::directory::{AppDoc, Generation, HostnameClaim, MachineRecord};
use perch_types::host::{Accepted, Drained, HostMachine, Loads, Rest, WatchEvent};
use perch_types::ports::{PortClaim, RawPort};
use perch_types::service::Protocol;
use perch_types::{
    ApiError, AppName, Code, HostId, InstanceId, MachineId, MachineState, OrgSlug, Timestamp,
};
use rustls::RootCertStore;
use tokio::sync::mpsc;

use crate::tls::Certs;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const EVENTS_MAX: usize = 8192;

#[derive(Debug)]
struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn boot_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

/// What a start of a machine leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnStart {
    Ready,
    /// Its program ends before the answer to the start is out.
    Exits,
    NeverReady,
    Refused,
}

#[derive(Debug)]
pub(crate) struct Host {
    machines: Mutex<BTreeMap<MachineId, MachineRecord>>,
    watchers: Mutex<Vec<mpsc::Sender<String>>>,
    pub(crate) on_start: Mutex<OnStart>,
    pub(crate) starts: AtomicUsize,
    /// Machines that the edge said to be drained.
    pub(crate) drained: Mutex<Vec<(MachineId, Generation)>>,
    /// What the edge said to be under way.
    pub(crate) loads: Mutex<Vec<Loads>>,
    /// What the edge answered to questions.
    pub(crate) rests: Mutex<Vec<Rest>>,
}

impl Host {
    pub(crate) fn put(&self, mut machine: MachineRecord) {
        let mut machines = self.machines.lock().unwrap();
        let counter = machines.get(&machine.id).map_or(0, |known| known.generation.counter);
        machine.generation = Generation { incarnation: 1, counter: counter + 1 };
        machines.insert(machine.id.clone(), machine.clone());
        self.tell(&WatchEvent::Changed { machine: Box::new(machine) });
    }

    pub(crate) fn set(&self, id: &MachineId, state: MachineState, ready: bool) {
        let mut machine = self.machines.lock().unwrap().get(id).unwrap().clone();
        (machine.state, machine.ready) = (state, ready);
        self.put(machine);
    }

    /// Asks whether a machine is unused, and waits for the answer.
    pub(crate) fn is_unused(&self, id: &MachineId) -> bool {
        let question = self.rests.lock().unwrap().len() as u64 + 1;
        self.tell(&WatchEvent::Rest { id: id.clone(), question });
        let answer =
            || self.rests.lock().unwrap().iter().find(|it| it.question == question).copied();
        until("the edge answers", || answer().is_some());
        answer().unwrap().is_idle
    }

    fn tell(&self, event: &WatchEvent) {
        let line = format!("{}\n", serde_json::to_string(event).unwrap());
        self.watchers.lock().unwrap().retain(|watcher| watcher.try_send(line.clone()).is_ok());
    }

    /// Ends all watches, as a restart does.
    pub(crate) fn hang_up(&self) {
        self.watchers.lock().unwrap().clear();
    }
}

async fn watch(State(host): State<Arc<Host>>) -> Response {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    {
        let machines = host.machines.lock().unwrap();
        let snapshot = WatchEvent::Snapshot { machines: machines.values().cloned().collect() };
        let line = format!("{}\n", serde_json::to_string(&snapshot).unwrap());
        sender.try_send(line).unwrap();
        host.watchers.lock().unwrap().push(sender);
    }
    let lines = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        Some((Ok::<_, std::io::Error>(line), receiver))
    });
    axum::body::Body::from_stream(lines).into_response()
}

async fn command(State(host): State<Arc<Host>>, Path(id): Path<MachineId>) -> Response {
    host.starts.fetch_add(1, Ordering::SeqCst);
    let on_start = *host.on_start.lock().unwrap();
    let before = host.machines.lock().unwrap()[&id].clone();
    if on_start == OnStart::Refused {
        let error = ApiError::new(Code::InsufficientCapacity, "no room");
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(error)).into_response();
    }
    host.set(&id, MachineState::Starting, false);
    let accepted = host_machine(&host.machines.lock().unwrap()[&id]);
    if on_start == OnStart::Exits {
        host.set(&id, MachineState::Started, false);
        host.set(&id, MachineState::Stopped, false);
        // Long enough that the edge has heard all of it before it hears of the acceptance.
        tokio::time::sleep(Duration::from_millis(100)).await;
    } else {
        let host = Arc::clone(&host);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            host.set(&id, MachineState::Started, false);
            if on_start == OnStart::Ready {
                tokio::time::sleep(Duration::from_millis(20)).await;
                host.set(&id, MachineState::Started, true);
            }
        });
    }
    Json(Accepted { previous_state: before.state, machine: accepted }).into_response()
}

async fn loads(State(host): State<Arc<Host>>, Json(loads): Json<Loads>) -> Json<()> {
    host.loads.lock().unwrap().push(loads);
    Json(())
}

async fn rest(State(host): State<Arc<Host>>, Json(rest): Json<Rest>) -> Json<()> {
    host.rests.lock().unwrap().push(rest);
    Json(())
}

async fn drained(
    State(host): State<Arc<Host>>,
    Path(id): Path<MachineId>,
    Json(drained): Json<Drained>,
) -> Json<Drained> {
    host.drained.lock().unwrap().push((id, drained.generation));
    Json(drained)
}

fn host_machine(record: &MachineRecord) -> HostMachine {
    HostMachine {
        id: record.id.clone(),
        org: record.org.clone(),
        app: record.app.clone(),
        name: record.name.clone(),
        region: record.region.clone(),
        instance: record.instance.clone(),
        epoch: 1,
        generation: record.generation,
        state: record.state,
        ready: record.ready,
        not_ready_because: None,
        cordoned: false,
        config: perch_types::machine_config::MachineConfig::default(),
        image_ref: perch_types::image::ImageRef::default(),
        private_ip: record.private_ip,
        private_ipv4: record.private_ipv4,
        created_at: record.created_at,
        updated_at: record.updated_at,
        events: Vec::new(),
        checks: Vec::new(),
        containers: Vec::new(),
        secrets_version: None,
        failure: None,
        given_up: None,
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
            {"internal_port": port, "ports": [{"port": 80, "handlers": ["http"]}]}
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

/// All of it; it ends when this is dropped.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    /// Where HTTPS is served.
    pub(crate) https: SocketAddr,
    /// Whom its certificates are from.
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) host: Arc<Host>,
    pub(crate) runtime: tokio::runtime::Runtime,
    store: Arc<dyn Store>,
    edge: Edge,
    pub(crate) doors: Arc<Doors>,
    _dir: tempfile::TempDir,
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
    pub(crate) fn new(machines: Vec<MachineRecord>) -> Self {
        Self::with(machines, Limits::default())
    }

    pub(crate) fn with(machines: Vec<MachineRecord>, limits: Limits) -> Self {
        Self::made(machines, limits, Offer::default())
    }

    /// One where apps are served over plain HTTP alone.
    pub(crate) fn without_https(machines: Vec<MachineRecord>) -> Self {
        let offer = Offer { has_https: false, ..Offer::default() };
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
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (runtime, dir) = (runtime.unwrap(), tempfile::tempdir().unwrap());
        let host = Arc::new(Host {
            machines: Mutex::default(),
            watchers: Mutex::default(),
            on_start: Mutex::new(OnStart::Ready),
            starts: AtomicUsize::new(0),
            drained: Mutex::default(),
            loads: Mutex::default(),
            rests: Mutex::default(),
        });
        // The sign that the edge has heard of everything.
        host.put(machine(0xff, "probe", MachineState::Failed, 1));
        for machine in machines {
            host.put(machine);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let https = TcpListener::bind("127.0.0.1:0").unwrap();
        let (https_address, certs) = (https.local_addr().unwrap(), Certs::new());
        let roots = Arc::new(certs.roots());
        let socket = dir.path().join("host.sock");
        let guard = runtime.enter();
        let unix = tokio::net::UnixListener::bind(&socket).unwrap();
        let router = Router::new()
            .route("/host/v1/watch", get(watch))
            .route("/host/v1/machines/{id}/command", post(command))
            .route("/host/v1/machines/{id}/drained", post(drained))
            .route("/host/v1/machines/{id}/static", get(file))
            .route("/host/v1/machines/{id}/rest", post(rest))
            .route("/host/v1/loads", post(loads))
            .with_state(Arc::clone(&host));
        tokio::spawn(async move { axum::serve(unix, router).await });
        let clock: Arc<dyn Clock> = Arc::new(TestClock(Instant::now()));
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(dir.path().join("d.db"), Arc::clone(&clock)).unwrap());
        for (number, app) in ["probe", "web", "empty", "other", "apart"].into_iter().enumerate() {
            runtime.block_on(put_app(store.as_ref(), app, number as u64));
        }
        let view = ViewFollower::start(Arc::clone(&store), dir.path().join("view.json"));
        let doors = Arc::new(Doors::default());
        let config = Config {
            listeners: vec![listener],
            https: offer
                .has_https
                .then(|| Https { listeners: vec![https], certificates: Arc::new(certs) }),
            domain: "perch.localhost".to_owned(),
            issuer: Some(perch_edge::Issuer {
                host: "oidc.perch.localhost".to_owned(),
                documents: Arc::new(OneDocument),
            }),
            region: "ams".parse().unwrap(),
            host_id: HostId::from_bits(1),
            host: HostClient::new(&socket),
            view,
            clock,
            limits,
            raw: Some(RawConfig {
                binder: Arc::clone(&doors) as Arc<dyn Binder>,
                certificates: offer.certificates,
                limits: offer.raw_limits,
            }),
        };
        let edge = Edge::start(config).unwrap();
        drop(guard);
        let https = https_address;
        let world = Self { address, https, roots, host, runtime, store, edge, doors, _dir: dir };
        until("the edge has heard of its machines", || world.get("probe", "/").contains("PM08"));
        world
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
        self.edge.readings()
    }

    /// Gives an app a raw port and returns where that is.
    pub(crate) fn claim_port(&self, app: &str, port: RawPort) -> SocketAddr {
        let claim = PortClaim {
            org: OrgSlug::personal(),
            app: app.parse().unwrap(),
            app_id: app.to_owned(),
            claimed_at: Timestamp::UNIX_EPOCH,
        };
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

    /// Stops the edge as the end of its process does.
    pub(crate) fn stop(&self) {
        self.edge.stop();
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

/// Binds raw ports on loopback, at whatever number is free.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    at: Mutex<BTreeMap<RawPort, SocketAddr>>,
    /// How often a port is somebody else's before it is free.
    pub(crate) taken: AtomicUsize,
    /// How many were opened.
    pub(crate) opened: AtomicUsize,
}

impl Doors {
    fn at(&self, port: RawPort) -> Option<SocketAddr> {
        self.at.lock().unwrap().get(&port).copied()
    }

    fn is_free(&self) -> std::io::Result<()> {
        let less = |taken: usize| taken.checked_sub(1);
        match self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => Err(std::io::ErrorKind::AddrInUse.into()),
            Err(_) => Ok(()),
        }
    }
}

impl Binder for Doors {
    fn tcp(&self, port: u16) -> std::io::Result<TcpListener> {
        self.is_free()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        self.at.lock().unwrap().insert((Protocol::Tcp, port), listener.local_addr()?);
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(listener)
    }

    fn udp(&self, port: u16) -> std::io::Result<UdpSocket> {
        self.is_free()?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        self.at.lock().unwrap().insert((Protocol::Udp, port), socket.local_addr()?);
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(socket)
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

/// Has one file, whose path ends with `/a.css`.
async fn file(Query(query): Query<perch_types::host::StaticQuery>) -> Response {
    if !query.path.ends_with("/a.css") {
        let error = ApiError::new(Code::NotFound, "no such file");
        return (StatusCode::NOT_FOUND, Json(error)).into_response();
    }
    let headers = [("etag", "\"tag\""), (perch_types::host::STATIC_NAME_HEADER, "a.css")];
    (headers, "body { color: green }").into_response()
}

async fn put_app(store: &dyn Store, app: &str, number: u64) {
    let (org, name): (OrgSlug, AppName) = (OrgSlug::personal(), app.parse().unwrap());
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

/// A program on loopback that counts what reaches it.
pub(crate) struct Origin {
    pub(crate) port: u16,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) last: Arc<Mutex<String>>,
}

impl Origin {
    /// Answers each request with what `answer` makes of its head; an empty answer, or one that
    /// ends with `!`, ends the connection.
    pub(crate) fn new(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    pub(crate) fn on(
        listener: TcpListener,
        answer: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        let origin = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            requests: Arc::default(),
            last: Arc::default(),
        };
        let (connections, requests) =
            (Arc::clone(&origin.connections), Arc::clone(&origin.requests));
        let (last, answer) = (Arc::clone(&origin.last), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, last, answer) =
                    (Arc::clone(&requests), Arc::clone(&last), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &requests, &last, answer.as_ref()));
            }
        });
        origin
    }

    pub(crate) fn fine() -> Self {
        Self::new(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned())
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(
    mut stream: TcpStream,
    requests: &AtomicUsize,
    last: &Mutex<String>,
    answer: &dyn Fn(&str) -> String,
) {
    while let Some(head) = read_head(&mut stream) {
        requests.fetch_add(1, Ordering::SeqCst);
        last.lock().unwrap().clone_from(&head);
        let text = answer(&head);
        let sent = stream.write_all(text.trim_end_matches('!').as_bytes());
        if sent.is_err() || text.is_empty() || text.ends_with('!') {
            return;
        }
        if text.starts_with("HTTP/1.1 101") {
            let mut bytes = [0; 256];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                let echo = bytes[..count].to_ascii_uppercase();
                if stream.write_all(&echo).is_err() {
                    return;
                }
            }
            return;
        }
    }
}

/// Reads up to an empty line; bodies are not of interest here.
pub(crate) fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}
