//! A host in memory: every call of `types::host`, no machine behind it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::fake_volumes::{self, FakeVolumes};
use axum::body::Body;
use axum::extract::{Path as Param, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use hyper_util::rt::TokioIo;
use perch_store::{Expected, Store, delete_doc, put_doc_freeing};
use perch_types::api::{
    CheckState, CheckStatus, ContainerSummary, ExecRequest, ExecResponse, LogRecord, LogStream,
    MachineEvent, MachineMemory, ProcessStat, ReclaimMemory, ReclaimedMemory, SetMemory,
};
use perch_types::directory::{Generation, MachineRecord};
use perch_types::exec::{ExecExit, ExecSpec, Frame, decode, encode};
use perch_types::host::{
    Accepted, Command, CreateMachine, EXEC_HEADER, HostInfo, HostMachine, LogsQuery, MachinesQuery,
    WaitQuery, WatchEvent,
};
use perch_types::image::ImageRef;
use perch_types::{ApiError, Code, HostId, MachineId, MachineState, Region, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

/// How the next creations go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Creation {
    #[default]
    Works,
    Refused,
    /// It takes a while, in which the host does not tell of the machine.
    Slow,
    /// The machine is made, and the connection breaks before the answer.
    Breaks,
}

#[derive(Debug)]
pub(crate) struct FakeHost {
    pub(crate) id: HostId,
    pub(crate) machines: Mutex<BTreeMap<MachineId, HostMachine>>,
    pub(crate) commands: Mutex<Vec<Command>>,
    pub(crate) creation: Mutex<Creation>,
    pub(crate) refuses_updates: AtomicBool,
    /// Has updates take until it is told to let go.
    pub(crate) holds_updates: watch::Sender<bool>,
    pub(crate) not_ready_because: Mutex<Option<String>>,
    /// The directory hears of nothing any more.
    pub(crate) is_silent: AtomicBool,
    pub(crate) volumes: FakeVolumes,
    store: Arc<dyn Store>,
    counter: AtomicU64,
    changed: watch::Sender<u64>,
}

type Shared = State<Arc<FakeHost>>;
type Reply<T> = Result<Json<T>, Refused>;

pub(crate) struct Refused(pub(crate) ApiError);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap();
        (status, Json(self.0)).into_response()
    }
}

fn refused<T>(code: Code, text: &str) -> Result<T, Refused> {
    Err(Refused(ApiError::new(code, text)))
}

impl FakeHost {
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            id: HostId::from_bits(7),
            machines: Mutex::default(),
            commands: Mutex::default(),
            creation: Mutex::default(),
            refuses_updates: AtomicBool::default(),
            holds_updates: watch::Sender::new(false),
            not_ready_because: Mutex::default(),
            is_silent: AtomicBool::default(),
            volumes: FakeVolumes::new(Arc::clone(&store)),
            store,
            counter: AtomicU64::new(1),
            changed: watch::Sender::new(0),
        })
    }

    pub(crate) fn region() -> Region {
        "fra".parse().unwrap()
    }

    /// Serves on a socket until the task is aborted.
    pub(crate) fn serve(self: &Arc<Self>, socket: &Path) -> tokio::task::JoinHandle<()> {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let router = Router::new()
            .route("/machines", post(create).get(list))
            .route("/machines/{id}", get(one))
            .route("/machines/{id}/command", post(command))
            .route("/machines/{id}/wait", get(wait))
            .route("/machines/{id}/exec", post(exec))
            .route("/machines/{id}/attach", get(attach))
            .route("/machines/{id}/ps", get(processes))
            .route("/machines/{id}/memory", get(memory).put(set_memory))
            .route("/machines/{id}/memory/reclaim", post(reclaim_memory))
            .route("/machines/{id}/logs", get(logs))
            .merge(fake_volumes::routes())
            .route("/watch", get(watch_all))
            .route("/info", get(info))
            .with_state(Arc::clone(self));
        let router = Router::new().nest(perch_types::host::PREFIX, router);
        tokio::spawn(async move {
            perch_api::serve::serve(
                perch_api::serve::Listener::Unix(listener),
                router,
                perch_api::serve::ServeLimits::default(),
                std::future::pending(),
            )
            .await;
        })
    }

    fn next(&self) -> Generation {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        Generation { incarnation: 1, counter }
    }

    /// Changes a machine, tells the directory, wakes whoever waits.
    pub(crate) async fn change(
        &self,
        id: &MachineId,
        change: impl FnOnce(&mut HostMachine),
    ) -> HostMachine {
        let machine = {
            let mut machines = self.machines.lock().unwrap();
            let machine = machines.get_mut(id).unwrap();
            change(machine);
            machine.generation = self.next();
            let counter = i64::try_from(machine.generation.counter).unwrap();
            machine.updated_at = Timestamp::from_unix_ms(1_700_000_000_000 + counter);
            let (kind, number) = (machine.state.to_string(), machine.generation.counter);
            machine.events.insert(0, event(&kind, number));
            machine.clone()
        };
        self.publish(&machine).await;
        self.changed.send_modify(|count| *count += 1);
        machine
    }

    async fn publish(&self, machine: &HostMachine) {
        if self.is_silent.load(Ordering::Relaxed) {
            return;
        }
        let key = (machine.org.clone(), machine.app.clone(), machine.id.clone());
        let store = self.store.as_ref();
        if machine.state == MachineState::Destroyed {
            delete_doc::<MachineRecord>(store, &key, Expected::Any).await.unwrap();
        } else {
            let record = machine.record(self.id.clone());
            put_doc_freeing(store, &key, &record, Expected::Any).await.unwrap();
        }
    }
}

fn event(kind: &str, number: u64) -> MachineEvent {
    MachineEvent {
        id: perch_types::id::ulid(number, 0),
        kind: kind.to_owned(),
        status: kind.to_owned(),
        source: "user".to_owned(),
        timestamp: 1_700_000_000_000,
        request: None,
    }
}

async fn create(State(host): Shared, Json(asked): Json<CreateMachine>) -> Reply<HostMachine> {
    let creation = *host.creation.lock().unwrap();
    if creation == Creation::Refused {
        return refused(Code::ImageUnknown, "pull image `nope`: manifest unknown");
    }
    if creation == Creation::Slow {
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    host.volumes.attach(&asked.id, &asked.config).await?;
    let now = Timestamp::from_unix_ms(1_700_000_000_000);
    let state = if asked.skip_launch { MachineState::Stopped } else { MachineState::Started };
    let because = host.not_ready_because.lock().unwrap().clone();
    let each = asked.config.containers.iter();
    let started = |name: &String| ContainerSummary { name: name.clone(), state: "started".into() };
    let containers = each.map(|one| started(&one.name)).collect();
    let machine = HostMachine {
        id: asked.id.clone(),
        org: asked.org,
        app: asked.app,
        name: asked.name,
        region: FakeHost::region(),
        instance: asked.instance,
        epoch: asked.epoch,
        generation: host.next(),
        state,
        ready: state == MachineState::Started && because.is_none(),
        not_ready_because: because,
        cordoned: asked.cordoned,
        image_ref: ImageRef {
            registry: "docker.io".to_owned(),
            repository: "library/web".to_owned(),
            tag: "1".to_owned(),
            ..ImageRef::default()
        },
        config: asked.config,
        secrets_version: None,
        private_ip: "fdaa:0:1::2".parse().unwrap(),
        private_ipv4: "10.90.0.2".parse().unwrap(),
        created_at: now,
        updated_at: now,
        events: vec![event("start", 2), event("launch", 1)],
        containers,
        checks: vec![CheckStatus {
            name: "servicecheck-00-http-8080".to_owned(),
            status: CheckState::Passing,
            output: "200 OK".to_owned(),
            updated_at: now,
        }],
        failure: None,
        given_up: None,
    };
    host.machines.lock().unwrap().insert(asked.id, machine.clone());
    host.publish(&machine).await;
    assert_ne!(creation, Creation::Breaks, "the connection breaks here");
    Ok(Json(machine))
}

async fn list(
    State(host): Shared,
    Query(MachinesQuery { app }): Query<MachinesQuery>,
) -> Json<Vec<HostMachine>> {
    let machines = host.machines.lock().unwrap();
    let asked =
        machines.values().filter(|machine| app.as_ref().is_none_or(|app| machine.app == *app));
    Json(asked.cloned().collect())
}

async fn one(State(host): Shared, Param(id): Param<MachineId>) -> Reply<HostMachine> {
    match host.machines.lock().unwrap().get(&id) {
        Some(machine) => Ok(Json(machine.clone())),
        None => refused(Code::MachineNotFound, "no such machine"),
    }
}

async fn command(
    State(host): Shared,
    Param(id): Param<MachineId>,
    Json(command): Json<Command>,
) -> Reply<Accepted> {
    let Json(before) = one(State(Arc::clone(&host)), Param(id.clone())).await?;
    host.commands.lock().unwrap().push(command.clone());
    if matches!(command, Command::Update { .. }) {
        let mut held = host.holds_updates.subscribe();
        held.wait_for(|held| !*held).await.unwrap();
    }
    let runs = before.state == MachineState::Started;
    let state = match &command {
        Command::Update { .. } if host.refuses_updates.load(Ordering::Relaxed) => {
            return refused(Code::WrongState, "machine is being destroyed");
        }
        Command::Destroy { force: false } if runs => {
            let text = "machine is started: stop it first, or force its destruction";
            return refused(Code::PreconditionFailed, text);
        }
        Command::Stop { .. } => MachineState::Stopped,
        Command::Suspend => MachineState::Suspended,
        Command::Start | Command::Restart { .. } => MachineState::Started,
        Command::Destroy { .. } => MachineState::Destroyed,
        Command::SetLabels { instance: Some(instance), .. } if *instance != before.instance => {
            return refused(Code::PreconditionFailed, "machine_version: the machine has another");
        }
        Command::Update { .. }
        | Command::Signal { .. }
        | Command::SetCordoned { .. }
        | Command::SetLabels { .. } => before.state,
    };
    let machine = host
        .change(&id, |machine| {
            machine.state = state;
            match command {
                Command::SetCordoned { cordoned } => machine.cordoned = cordoned,
                Command::SetLabels { change, .. } => change.apply(&mut machine.config.metadata),
                Command::Update { instance, epoch, config, cordoned, .. } => {
                    machine.cordoned |= cordoned;
                    machine.instance = instance;
                    machine.epoch = epoch;
                    machine.config = *config;
                }
                _ => {}
            }
        })
        .await;
    if machine.state == MachineState::Destroyed {
        host.volumes.detach(&id).await;
    }
    Ok(Json(Accepted { previous_state: before.state, machine }))
}

async fn wait(
    State(host): Shared,
    Param(id): Param<MachineId>,
    Query(query): Query<WaitQuery>,
) -> Reply<HostMachine> {
    let mut changed = host.changed.subscribe();
    let reached = async {
        loop {
            changed.borrow_and_update();
            let Json(machine) = one(State(Arc::clone(&host)), Param(id.clone())).await?;
            let version = query.instance.as_ref().is_none_or(|it| *it == machine.instance);
            let mut states = query.states.split(',');
            let newest = machine.events.first().map(|event| &event.id);
            let is_new = query.from_event.is_none() || query.from_event.as_ref() != newest;
            if version && is_new && states.any(|state| state == machine.state.as_str()) {
                return Ok(Json(machine));
            }
            if machine.state == MachineState::Destroyed {
                return refused(Code::MachineNotFound, "no such machine");
            }
            changed.changed().await.unwrap();
        }
    };
    match tokio::time::timeout(Duration::from_millis(query.timeout_ms), reached).await {
        Ok(reached) => reached,
        Err(_) => refused(Code::DeadlineExceeded, "not reached"),
    }
}

async fn exec(Param(_): Param<MachineId>, Json(exec): Json<ExecRequest>) -> Json<ExecResponse> {
    Json(ExecResponse {
        exit_code: 3,
        exit_signal: None,
        stdout: exec.container.map(|name| format!("{name}: ")).unwrap_or_default()
            + &exec.command.join("|"),
        stderr: exec.stdin.unwrap_or_default(),
    })
}

async fn processes(Param(_): Param<MachineId>) -> Json<Vec<ProcessStat>> {
    let one = |pid, rss| ProcessStat { pid, rss, ..ProcessStat::default() };
    Json(vec![one(1, 1_000), one(7, 2_000)])
}

async fn memory(Param(_): Param<MachineId>) -> Json<MachineMemory> {
    Json(MachineMemory { available_mb: 200, limit_mb: 256 })
}

async fn set_memory(
    Param(_): Param<MachineId>,
    Json(asked): Json<SetMemory>,
) -> Json<MachineMemory> {
    Json(MachineMemory { available_mb: 1, limit_mb: asked.limit_mb })
}

async fn reclaim_memory(
    Param(_): Param<MachineId>,
    Json(asked): Json<ReclaimMemory>,
) -> Json<ReclaimedMemory> {
    Json(ReclaimedMemory { actual_mb: asked.amount_mb - 1 })
}

/// Says the command, gives back what comes in, ends with code 7.
async fn attach(Param(_): Param<MachineId>, mut request: Request) -> Response {
    let header = request.headers().get(EXEC_HEADER).unwrap().as_bytes().to_vec();
    let spec: ExecSpec = serde_json::from_slice(&header).unwrap();
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>().unwrap();
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let said = encode(&Frame::Stdout(spec.command.join(" ").into_bytes()));
        io.write_all(&said).await.unwrap();
        let mut bytes = Vec::new();
        loop {
            while let Some((frame, used)) = decode(&bytes).unwrap() {
                bytes.drain(..used);
                let back = match frame {
                    Frame::Stdin(data) => Frame::Stdout(data),
                    _ => Frame::Exit(ExecExit { exit_code: 7, exit_signal: None }),
                };
                io.write_all(&encode(&back)).await.unwrap();
                if matches!(back, Frame::Exit(_)) {
                    io.shutdown().await.unwrap();
                    return;
                }
            }
            if io.read_buf(&mut bytes).await.unwrap() == 0 {
                return;
            }
        }
    });
    let headers = [("connection", "upgrade"), ("upgrade", perch_types::exec::UPGRADE)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Ten records; with `follow` the answer stays open after them.
async fn logs(Param(id): Param<MachineId>, Query(query): Query<LogsQuery>) -> Response {
    let from = query.from_seq.unwrap_or(0);
    let first = query.last.map_or(from, |last| 10_u64.saturating_sub(last));
    let mut text = String::new();
    for seq in first..10 {
        let record = LogRecord {
            seq,
            timestamp: Timestamp::from_unix_ms(1_700_000_000_000 + seq.cast_signed()),
            stream: if seq == 3 { LogStream::Stderr } else { LogStream::Stdout },
            message: format!("line {seq}\u{1b}[31m"),
            container: None,
            process: (seq == 4).then_some(1),
            machine: id.clone(),
            region: FakeHost::region(),
            dropped: 0,
        };
        text.push_str(&serde_json::to_string(&record).unwrap());
        text.push('\n');
    }
    let records = futures_util::stream::iter([Ok::<_, std::io::Error>(text)]);
    if query.follow {
        let open = futures_util::StreamExt::chain(records, futures_util::stream::pending());
        return Body::from_stream(open).into_response();
    }
    Body::from_stream(records).into_response()
}

async fn watch_all(State(host): Shared) -> String {
    let machines = host.machines.lock().unwrap();
    let machines = machines.values().map(|machine| machine.record(host.id.clone())).collect();
    let lines = [WatchEvent::Snapshot { machines }, WatchEvent::Heartbeat];
    lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect()
}

async fn info(State(host): Shared) -> Json<HostInfo> {
    Json(HostInfo {
        id: host.id.clone(),
        region: FakeHost::region(),
        cpus: 2,
        memory_mb: 4096,
        findings: vec!["cgroup v2".to_owned()],
    })
}
