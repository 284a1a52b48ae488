//! A whole edge with a host that is played, a real directory, and origins on loopback.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use perch_client::HostClient;
use perch_edge::{Config, Edge, Limits};
use perch_store::{Expected, SqliteStore, Store, ViewFollower, ViewHandle, put_doc, put_op};
use perch_types::clock::Clock;
use perch_types::directory::{AppDoc, Generation, HostnameClaim, MachineRecord};
use perch_types::host::{Accepted, Drained, HostMachine, WatchEvent};
use perch_types::{
    ApiError, AppName, Code, HostId, InstanceId, MachineId, MachineState, OrgSlug, Timestamp,
};
use tokio::sync::mpsc;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const EVENTS_MAX: usize = 8192;
const ROUTES_AT_ONCE: usize = perch_store::TXN_OPS_MAX;

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
    pub(crate) host: Arc<Host>,
    store: Arc<dyn Store>,
    view: ViewHandle,
    listener: TcpListener,
    limits: Limits,
    edge: Mutex<Option<Edge>>,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(machines: Vec<MachineRecord>) -> Self {
        Self::with(machines, Limits::default())
    }

    pub(crate) fn with(machines: Vec<MachineRecord>, limits: Limits) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (runtime, dir) = (runtime.unwrap(), tempfile::tempdir().unwrap());
        let host = Arc::new(Host {
            machines: Mutex::default(),
            watchers: Mutex::default(),
            on_start: Mutex::new(OnStart::Ready),
            starts: AtomicUsize::new(0),
            drained: Mutex::default(),
        });
        // The sign that the edge has heard of everything.
        host.put(machine(0xff, "probe", MachineState::Failed, 1));
        for machine in machines {
            host.put(machine);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = dir.path().join("host.sock");
        let guard = runtime.enter();
        let unix = tokio::net::UnixListener::bind(&socket).unwrap();
        let router = Router::new()
            .route("/host/v1/watch", get(watch))
            .route("/host/v1/machines/{id}/command", post(command))
            .route("/host/v1/machines/{id}/drained", post(drained))
            .route("/host/v1/machines/{id}/static", get(file))
            .with_state(Arc::clone(&host));
        tokio::spawn(async move { axum::serve(unix, router).await });
        let clock: Arc<dyn Clock> = Arc::new(TestClock(Instant::now()));
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(dir.path().join("d.db"), clock).unwrap());
        for (number, app) in ["probe", "web", "empty"].into_iter().enumerate() {
            runtime.block_on(put_app(store.as_ref(), app, number as u64));
        }
        let view = ViewFollower::start(Arc::clone(&store), dir.path().join("view.json"));
        drop(guard);
        let edge = Mutex::new(None);
        let world = Self { address, host, store, view, listener, limits, edge, runtime, dir };
        world.replace();
        until("the edge has heard of its machines", || world.get("probe", "/").contains("PM08"));
        world
    }

    fn start_edge(&self) -> Edge {
        let _on = self.runtime.enter();
        Edge::start(Config {
            listeners: vec![self.listener.try_clone().unwrap()],
            domain: "perch.localhost".to_owned(),
            issuer: Some(perch_edge::Issuer {
                host: "oidc.perch.localhost".to_owned(),
                documents: Arc::new(OneDocument),
            }),
            region: "ams".parse().unwrap(),
            host_id: HostId::from_bits(1),
            host: HostClient::new(self.dir.path().join("host.sock")),
            view: self.view.clone(),
            clock: Arc::new(TestClock(Instant::now())),
            limits: self.limits.clone(),
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

    /// Has host names lead to the app `web`.
    pub(crate) fn put_routes(&self, hosts: impl Iterator<Item = String>) {
        let web = HostnameClaim { org: OrgSlug::personal(), app: "web".parse().unwrap() };
        let ops: Vec<_> =
            hosts.map(|host| put_op::<HostnameClaim>(&(host,), &web).unwrap()).collect();
        for some in ops.chunks(ROUTES_AT_ONCE) {
            let done = self.runtime.block_on(self.store.txn(Vec::new(), some.to_vec()));
            done.unwrap().or_conflict().unwrap();
        }
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
        network: "default".to_owned(),
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
