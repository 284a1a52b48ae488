//! A platform that is made up: it answers the API as its test tells it to.
//!
//! Never runs anything. The tests of the CLI use this file too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use perch_types::api::{
    Answers, App, AppLogAttributes, AppLogEntry, AppLogs, AppLogsMeta, Apps, CheckState,
    CheckStatus, CreateApp, CreateMachineRequest, CreatedToken, Done, ExecResponse, ExitEvent,
    ExitRequest, HostStatus, ImageInfo, Images, Lease, LeaseReleased, LeaseReply, LogRecord,
    LogStream, Machine, MachineEvent, MachineVersion, Organization, Platform, StartResponse,
    TokenInfo, TokensCurrent, UpdateMetadata, WaitResponse,
};
use perch_types::build::{BUILD_HEADER, BuildEvent};
use perch_types::exec::{ExecExit, Frame, UPGRADE, decode, encode};
use perch_types::id::{InstanceId, ulid};
use perch_types::image::ImageRef;
use perch_types::ips::IpAssignment;
use perch_types::labels::LabelChange;
use perch_types::secret_keys::SetSecretKey;
use perch_types::{
    ApiError, Code, MachineConfig, MachineId, MachineState, OrgSlug, Region, Secret, Timestamp,
};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fake_app;

/// The token that the fake accepts.
pub(crate) const TOKEN: &str = "secret-token";
/// A moment before any test.
pub(crate) const THEN: i64 = 1_700_000_000_000;

/// How a machine turns out once it was started.
#[derive(Debug, Clone, Default)]
pub(crate) enum Fate {
    /// It is started and nothing says more.
    #[default]
    Started,
    /// It is started and a check passes.
    Ready,
    /// Its program ends with a code.
    Exits(i32),
    /// The kernel kills it for memory.
    OutOfMemory,
    /// It is started and a check says this.
    NotReady(String),
    /// It fails for this reason.
    Failed(String),
    /// It is destroyed meanwhile.
    Gone,
}

/// What the platform knows and will do.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) apps: BTreeMap<String, App>,
    pub(crate) machines: Vec<Machine>,
    /// How machines turn out, by their image; else [`Fate::Started`].
    pub(crate) fates: BTreeMap<String, Fate>,
    /// How machines have answered, by their image: requests, and those that failed.
    pub(crate) answers: BTreeMap<String, (u64, u64)>,
    /// Calls that are refused: `POST /v1/apps`, by the beginning of method and path.
    pub(crate) refuse: Vec<(String, ApiError)>,
    /// What a build answers.
    pub(crate) build: Vec<BuildEvent>,
    /// Lines that every program printed.
    pub(crate) log: Vec<String>,
    /// What the edge answers; 0 is nothing at all.
    pub(crate) edge_status: u16,
    /// The port of HTTPS and the server's own authority.
    pub(crate) https: Option<(u16, String)>,
    /// The lease that every machine has.
    pub(crate) lease: Option<Lease>,
    /// Every call, in order.
    pub(crate) calls: Vec<String>,
    /// The bodies of builds.
    pub(crate) contexts: Vec<Bytes>,
    /// The headers of builds.
    pub(crate) build_requests: Vec<String>,
    /// The bodies of machine creations and updates.
    pub(crate) requests: Vec<CreateMachineRequest>,
    /// The app's secrets.
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) secrets_version: u64,
    /// The app's secret keys: what was sent of each.
    pub(crate) secret_keys: BTreeMap<String, SetSecretKey>,
    /// The app's addresses.
    pub(crate) ips: Vec<IpAssignment>,
    counter: u64,
    port: u16,
}

/// A running fake.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    pub(crate) url: String,
    world: Arc<Mutex<World>>,
}

impl Fake {
    /// Starts a platform without apps; it lives as long as the test's process.
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let world = World { edge_status: 200, port, ..World::default() };
        let fake =
            Self { url: format!("http://127.0.0.1:{port}"), world: Arc::new(Mutex::new(world)) };
        let state = fake.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let router = Router::new().fallback(any(serve)).with_state(state);
                axum::serve(listener, router).await.unwrap();
            });
        });
        fake
    }

    /// Returns what the platform knows.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Makes an app.
    pub(crate) fn with_app(self, name: &str) -> Self {
        self.world().add_app(name);
        self
    }

    /// Returns the changes that were asked for, without the reads.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.world().calls.iter().filter(|call| !call.starts_with("GET ")).cloned().collect()
    }
}

impl World {
    fn add_app(&mut self, name: &str) -> App {
        let app = App {
            id: format!("app-{name}"),
            internal_numeric_id: 1,
            name: name.parse().unwrap(),
            machine_count: 0,
            volume_count: 0,
            network: "default".to_owned(),
            status: "pending".to_owned(),
            organization: Organization {
                name: "Personal".to_owned(),
                slug: OrgSlug::personal(),
                internal_numeric_id: 1,
            },
            created_at: Timestamp::from_unix_ms(THEN),
            cname_target: format!("{name}.localhost"),
            hostname: format!("{name}.localhost"),
            app_role: None,
            wake: None,
        };
        self.apps.insert(name.to_owned(), app.clone());
        app
    }

    /// Adds a machine in a state, as a deploy made it.
    pub(crate) fn add_machine(&mut self, state: MachineState, config: MachineConfig) -> MachineId {
        self.counter += 1;
        let instance = InstanceId::from_parts(1, u128::from(self.counter));
        let machine = Machine {
            id: MachineId::from_bits(self.counter),
            name: format!("machine-{}", self.counter),
            state,
            region: "local".parse::<Region>().unwrap(),
            image_ref: ImageRef {
                registry: "registry.internal".to_owned(),
                repository: "web".to_owned(),
                tag: "v1".to_owned(),
                ..ImageRef::default()
            },
            instance_id: instance.clone(),
            version: instance,
            private_ip: "fdaa::2".to_owned(),
            created_at: Timestamp::from_unix_ms(THEN + i64::try_from(self.counter).unwrap()),
            updated_at: Timestamp::from_unix_ms(THEN),
            config,
            events: Vec::new(),
            checks: Vec::new(),
            nonce: None,
            host_status: HostStatus::Ok,
            cordoned: false,
            containers: Vec::new(),
            secrets_version: None,
            answers: None,
        };
        self.machines.push(machine);
        MachineId::from_bits(self.counter)
    }

    fn event(
        &mut self,
        kind: &str,
        status: &str,
        request: Option<serde_json::Value>,
    ) -> MachineEvent {
        self.counter += 1;
        MachineEvent {
            id: ulid(1, u128::from(self.counter)),
            kind: kind.to_owned(),
            status: status.to_owned(),
            source: "flyd".to_owned(),
            timestamp: THEN,
            request,
        }
    }

    /// Starts a machine: its fate comes at once.
    fn launch(&mut self, id: &MachineId) {
        let image = self.machine(id).map(|it| it.config.image.clone()).unwrap();
        let fate = self.fates.get(&image).cloned().unwrap_or_default();
        let mut events = vec![self.event("start", "started", None)];
        let (mut state, mut checks) = (MachineState::Started, Vec::new());
        let check = |status, output: &str| CheckStatus {
            name: "servicecheck-00-tcp-8080".to_owned(),
            status,
            output: output.to_owned(),
            updated_at: Timestamp::from_unix_ms(THEN),
        };
        match fate {
            Fate::Started => {}
            Fate::Ready => checks.push(check(CheckState::Passing, "")),
            Fate::NotReady(why) => checks.push(check(CheckState::Critical, &why)),
            Fate::Exits(code) => events.insert(0, self.exit(code, false)),
            Fate::OutOfMemory => events.insert(0, self.exit(137, true)),
            Fate::Failed(why) => {
                state = MachineState::Failed;
                let request = serde_json::json!({"error": {"error": why}});
                events.insert(0, self.event("launch", "failed", Some(request)));
            }
            Fate::Gone => state = MachineState::Destroyed,
        }
        let machine = self.machines.iter_mut().find(|it| it.id == *id).unwrap();
        machine.state = state;
        machine.checks = checks;
        machine.events.splice(0..0, events);
    }

    fn exit(&mut self, exit_code: i32, oom_killed: bool) -> MachineEvent {
        let exit = ExitRequest {
            exit_event: ExitEvent {
                exit_code,
                guest_exit_code: exit_code,
                guest_signal: if oom_killed { 9 } else { 0 },
                oom_killed,
                requested_stop: false,
                restarting: true,
                signal: 0,
                exited_at: Timestamp::from_unix_ms(THEN),
                error: None,
                process: None,
                container: None,
            },
            restart_count: 1,
        };
        self.event("exit", "stopped", serde_json::to_value(exit).ok())
    }

    pub(crate) fn machine(&self, id: &MachineId) -> Option<&Machine> {
        self.machines.iter().find(|it| it.id == *id)
    }
}

pub(crate) fn json(status: u16, value: &impl Serialize) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, serde_json::to_string(value).unwrap()).into_response()
}

fn lines<T: Serialize>(values: impl IntoIterator<Item = T>) -> Response {
    let lines: Vec<String> =
        values.into_iter().map(|it| serde_json::to_string(&it).unwrap() + "\n").collect();
    lines.concat().into_response()
}

fn refusal(error: &ApiError) -> Response {
    json(error.code.status(), error)
}

async fn serve(State(fake): State<Fake>, request: Request) -> Response {
    if request.uri().path().ends_with("/attach") {
        return attach(request);
    }
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path().to_owned();
    let mut world = fake.world();
    if !path.starts_with("/v1") && !path.starts_with("/api") {
        return edge(&world, &parts.headers);
    }
    world.calls.push(format!("{} {path}", parts.method));
    let allowed =
        parts.headers.get("authorization").is_some_and(|it| it == &format!("Bearer {TOKEN}"));
    if !allowed {
        return refusal(&ApiError::new(Code::Unauthenticated, "no token, or an unknown one"));
    }
    let call = format!("{} {path}", parts.method);
    if let Some((_, error)) = world.refuse.iter().find(|(prefix, _)| call.starts_with(prefix)) {
        return refusal(error);
    }
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments.as_slice() {
        ["v1", "apps", app, "machines", rest @ ..] => {
            if !world.apps.contains_key(*app) {
                return refusal(&ApiError::app_not_found(app));
            }
            machines(&mut world, &parts.method, rest, &body)
        }
        ["v1", "apps", _, "secretkeys", rest @ ..] => {
            fake_app::secret_keys(&mut world, &parts.method, rest, &body)
        }
        ["v1", "apps", _, "secrets"] => fake_app::secrets(&mut world, &parts.method, &body),
        ["v1", "apps", _, "ip_assignments", rest @ ..] => {
            fake_app::ips(&mut world, &parts.method, rest, &body)
        }
        ["v1", "apps", _, "builds"] => {
            world.contexts.push(body);
            let header = parts.headers.get(BUILD_HEADER).unwrap().to_str().unwrap().to_owned();
            world.build_requests.push(header);
            lines(world.build.clone())
        }
        rest => platform(&mut world, &parts.method, rest, &body),
    }
}

fn edge(world: &World, headers: &HeaderMap) -> Response {
    let host = headers.get("host").and_then(|it| it.to_str().ok()).unwrap_or_default();
    let known = world.apps.values().any(|app| host.starts_with(&app.hostname));
    let status = if known { world.edge_status } else { 404 };
    StatusCode::from_u16(status).unwrap().into_response()
}

fn platform(world: &mut World, method: &Method, path: &[&str], body: &Bytes) -> Response {
    match (method.as_str(), path) {
        ("GET", ["v1", "apps"]) => {
            let apps: Vec<App> = world.apps.values().cloned().collect();
            json(200, &Apps { total_apps: u64::try_from(apps.len()).unwrap(), apps })
        }
        ("POST", ["v1", "apps"]) => {
            let name = serde_json::from_slice::<CreateApp>(body).unwrap().name.unwrap();
            if world.apps.contains_key(&name) {
                return refusal(&ApiError::new(Code::NameTaken, "Name has already been taken"));
            }
            json(201, &world.add_app(&name))
        }
        ("GET", ["v1", "apps", app]) => match world.apps.get(*app) {
            Some(app) => json(200, app),
            None => refusal(&ApiError::app_not_found(app)),
        },
        ("DELETE", ["v1", "apps", app]) => {
            world.apps.remove(*app);
            StatusCode::ACCEPTED.into_response()
        }
        ("GET", ["v1", "platform"]) => json(
            200,
            &Platform {
                version: "0.1.0".to_owned(),
                domain: "localhost".to_owned(),
                http_port: world.port,
                https_port: world.https.as_ref().map(|(port, _)| *port),
                https_ca: world.https.as_ref().map(|(_, pem)| pem.clone()),
                registry: "127.0.0.1:1".to_owned(),
                region: "local".parse().unwrap(),
            },
        ),
        ("GET", ["v1", "images"]) => json(
            200,
            &Images {
                images: vec![ImageInfo {
                    repository: "library/python".to_owned(),
                    tags: vec!["3.11-slim-bookworm".to_owned()],
                    size_bytes: 52_000_000,
                }],
            },
        ),
        ("POST", ["v1", "images", "bootstrap"]) => lines(world.build.clone()),
        ("GET", ["v1", "tokens", "current"]) => {
            json(200, &TokensCurrent { tokens: vec![token_info("tok_1", "admin")] })
        }
        ("POST", ["v1", "apps", _, "deploy_token"]) => json(
            200,
            &CreatedToken {
                token: Secret::new("perch_deploy_text"),
                token_id: "0123456789ab".to_owned(),
                expires_at: Some(Timestamp::from_unix_ms(THEN)),
            },
        ),
        ("GET", ["v1", "apps", _, "tokens"]) => {
            json(200, &TokensCurrent { tokens: vec![token_info("0123456789ab", "ci")] })
        }
        ("DELETE", ["v1", "apps", _, "tokens", _]) => StatusCode::NO_CONTENT.into_response(),
        ("GET", ["api", "v1", "apps", _, "logs"]) => app_logs(world),
        _ => refusal(&ApiError::new(Code::NotFound, "no such path")),
    }
}

fn token_info(id: &str, name: &str) -> TokenInfo {
    TokenInfo {
        token_id: id.to_owned(),
        organization: "personal".to_owned(),
        org_slug: OrgSlug::personal(),
        apps: Vec::new(),
        user: String::new(),
        restricted_to_machine: String::new(),
        source_machine_id: String::new(),
        name: name.to_owned(),
        expires_at: None,
    }
}

fn app_logs(world: &World) -> Response {
    let entry = |(index, line): (usize, &String)| AppLogEntry {
        id: index.to_string(),
        attributes: AppLogAttributes {
            timestamp: Timestamp::from_unix_ms(THEN),
            message: line.clone(),
            level: "info".to_owned(),
            instance: "00000000000001".to_owned(),
            region: "local".to_owned(),
            meta: BTreeMap::new(),
        },
    };
    let data = world.log.iter().enumerate().map(entry).collect();
    json(200, &AppLogs { data, meta: AppLogsMeta { next_token: "1".to_owned() } })
}

fn machines(world: &mut World, method: &Method, path: &[&str], body: &Bytes) -> Response {
    if let ("GET", []) = (method.as_str(), path) {
        return json(200, &world.machines);
    }
    if let ("POST", []) = (method.as_str(), path) {
        let request: CreateMachineRequest = serde_json::from_slice(body).unwrap();
        let id = world.add_machine(MachineState::Stopped, request.config.clone());
        if !request.skip_launch {
            world.launch(&id);
        }
        world.requests.push(request);
        return json(200, world.machine(&id).unwrap());
    }
    let [id, rest @ ..] = path else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(id) = id.parse().ok().filter(|id| world.machine(id).is_some()) else {
        return refusal(&ApiError::machine_not_found(id));
    };
    one_machine(world, (method.as_str(), rest), &id, body)
}

fn log_record(machine: &MachineId, seq: usize, line: &str) -> LogRecord {
    LogRecord {
        seq: u64::try_from(seq).unwrap(),
        timestamp: Timestamp::from_unix_ms(THEN),
        stream: LogStream::Stdout,
        message: line.to_owned(),
        container: None,
        process: None,
        machine: machine.clone(),
        region: "local".parse().unwrap(),
        dropped: 0,
    }
}

fn one_machine(world: &mut World, call: (&str, &[&str]), id: &MachineId, body: &Bytes) -> Response {
    match call {
        ("GET", []) => {
            let mut machine = world.machine(id).unwrap().clone();
            let instance_id = machine.instance_id.clone();
            let answers = world.answers.get(&machine.config.image);
            machine.answers =
                answers.map(|&(count, errors)| Answers { instance_id, count, errors });
            json(200, &machine)
        }
        ("POST", []) => {
            let request: CreateMachineRequest = serde_json::from_slice(body).unwrap();
            world.counter += 1;
            let instance = InstanceId::from_parts(2, u128::from(world.counter));
            let machine = world.machines.iter_mut().find(|it| it.id == *id).unwrap();
            let current = machine.instance_id.to_string();
            if request.current_version.as_ref().is_some_and(|it| *it != current) {
                return refusal(&ApiError::new(Code::PreconditionFailed, "another version"));
            }
            machine.instance_id = instance;
            machine.config = request.config.clone();
            if !request.skip_launch {
                world.launch(id);
            }
            world.requests.push(request);
            json(200, world.machine(id).unwrap())
        }
        ("DELETE", []) => {
            world.machines.retain(|it| it.id != *id);
            json(200, &Done { ok: true })
        }
        ("POST", ["start"]) => {
            world.launch(id);
            let previous_state = MachineState::Stopped;
            json(200, &StartResponse { previous_state, migrated: false, new_host: String::new() })
        }
        ("POST", ["stop" | "restart" | "cordon" | "uncordon"]) => json(200, &Done { ok: true }),
        (method, ["lease"]) => match (method, world.lease.take()) {
            ("DELETE", Some(_)) => json(200, &LeaseReleased::default()),
            ("GET", Some(lease)) => {
                world.lease = Some(lease.clone());
                json(200, &LeaseReply::from(lease))
            }
            _ => refusal(&ApiError::new(Code::LeaseNotFound, "lease not found")),
        },
        (method, ["metadata"]) => {
            let machine = world.machines.iter_mut().find(|it| it.id == *id).unwrap();
            let labels = &mut machine.config.metadata;
            if method == "GET" {
                return json(200, labels);
            }
            let UpdateMetadata { metadata, .. } = serde_json::from_slice(body).unwrap();
            LabelChange::Merge { labels: metadata }.apply(labels);
            StatusCode::NO_CONTENT.into_response()
        }
        ("GET", ["versions"]) => {
            let machine = world.machine(id).unwrap().clone();
            let (version, user_config) = (machine.version, machine.config);
            json(200, &[MachineVersion { version, user_config }])
        }
        ("POST", ["exec"]) => json(
            200,
            &ExecResponse {
                exit_code: 7,
                exit_signal: None,
                stdout: "out\u{1b}[2J\n".to_owned(),
                stderr: "err\n".to_owned(),
            },
        ),
        ("GET", ["wait"]) => {
            let machine = world.machine(id).unwrap();
            let (state, version) = (machine.state, machine.instance_id.clone());
            json(200, &WaitResponse { ok: true, state, version, event_id: String::new() })
        }
        ("GET", ["logs"]) => {
            let all = world.log.iter().enumerate();
            lines(all.map(|(seq, line)| log_record(id, seq, line)))
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Gives back what the session was sent, then ends with exit code 5.
fn attach(request: Request) -> Response {
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.unwrap();
        let mut io = hyper_util::rt::TokioIo::new(upgraded);
        let mut buffer = Vec::new();
        loop {
            while let Some((frame, used)) = decode(&buffer).unwrap() {
                buffer.drain(..used);
                let answer = match frame {
                    Frame::Stdin(bytes) => Frame::Stdout(bytes),
                    Frame::StdinEnd => Frame::Exit(ExecExit { exit_code: 5, exit_signal: None }),
                    _ => continue,
                };
                io.write_all(&encode(&answer)).await.unwrap();
                if matches!(answer, Frame::Exit(_)) {
                    io.flush().await.unwrap();
                    return;
                }
            }
            if io.read_buf(&mut buffer).await.unwrap() == 0 {
                return;
            }
        }
    });
    let headers = [("connection", "upgrade"), ("upgrade", UPGRADE)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
