//! The host, as the edge sees it: played.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt as _;
use perch_types::directory::{Generation, MachineRecord};
use perch_types::host::{Accepted, Drained, EdgeNote, HostMachine, Loads, Rest, WatchEvent};
use perch_types::{ApiError, Code, MachineId, MachineState};
use tokio::sync::mpsc;

use super::until;

const EVENTS_MAX: usize = 8192;

/// What a start of a machine leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnStart {
    Ready,
    /// Its program ends before the answer to the start is out.
    Exits,
    NeverReady,
    Refused,
    /// The host has no answer to the start.
    Silent,
    /// The answer to the first is lost, as when the host ends; those after it lead to `Ready`.
    LostOnce,
}

#[derive(Debug)]
pub(crate) struct Host {
    machines: Mutex<BTreeMap<MachineId, MachineRecord>>,
    watchers: Mutex<Vec<mpsc::Sender<String>>>,
    pub(crate) on_start: Mutex<OnStart>,
    /// Where it differs for one machine.
    pub(crate) on_start_of: Mutex<BTreeMap<MachineId, OnStart>>,
    pub(crate) starts: AtomicUsize,
    /// Machines that the edge said to be drained.
    pub(crate) drained: Mutex<Vec<(MachineId, Drained)>>,
    /// What the edge said to be under way.
    pub(crate) loads: Mutex<Vec<Loads>>,
    /// How many times it does not take that.
    pub(crate) loads_lost: AtomicUsize,
    /// What the edge answered to questions.
    pub(crate) rests: Mutex<Vec<Rest>>,
    /// Lines for machines' logs.
    pub(crate) notes: Mutex<Vec<(MachineId, EdgeNote)>>,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            machines: Mutex::default(),
            watchers: Mutex::default(),
            on_start: Mutex::new(OnStart::Ready),
            on_start_of: Mutex::default(),
            starts: AtomicUsize::new(0),
            drained: Mutex::default(),
            loads: Mutex::default(),
            loads_lost: AtomicUsize::new(0),
            rests: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    pub(super) fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/host/v1/watch", get(watch))
            .route("/host/v1/machines/{id}/command", post(command))
            .route("/host/v1/machines/{id}/drained", post(drained))
            .route("/host/v1/machines/{id}/static", get(file))
            .route("/host/v1/machines/{id}/rest", post(rest))
            .route("/host/v1/machines/{id}/note", post(note))
            .route("/host/v1/loads", post(loads))
            .with_state(self)
    }

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

    /// Takes a machine away, as the end of its destruction does.
    pub(crate) fn remove(&self, id: &MachineId) {
        self.forget(id);
        self.tell(&WatchEvent::Removed { id: id.clone() });
    }

    /// Knows nothing of a machine any more, and says so only to whoever watches anew.
    pub(crate) fn forget(&self, id: &MachineId) {
        self.machines.lock().unwrap().remove(id);
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
    let starts = host.starts.fetch_add(1, Ordering::SeqCst);
    let own = host.on_start_of.lock().unwrap().get(&id).copied();
    let on_start = own.unwrap_or_else(|| *host.on_start.lock().unwrap());
    if on_start == OnStart::Silent {
        return std::future::pending().await;
    }
    let before = host.machines.lock().unwrap()[&id].clone();
    if on_start == OnStart::Refused {
        let error = ApiError::new(Code::InsufficientCapacity, "no room");
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(error)).into_response();
    }
    if on_start == OnStart::LostOnce && starts == 0 {
        let broken = Err::<String, _>(std::io::Error::other("lost"));
        let lines = futures_util::stream::iter([broken]);
        return axum::body::Body::from_stream(lines).into_response();
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
            if matches!(on_start, OnStart::Ready | OnStart::LostOnce) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                host.set(&id, MachineState::Started, true);
            }
        });
    }
    Json(Accepted { previous_state: before.state, machine: accepted }).into_response()
}

async fn loads(State(host): State<Arc<Host>>, Json(loads): Json<Loads>) -> Response {
    let less = |left: usize| left.checked_sub(1);
    if host.loads_lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    host.loads.lock().unwrap().push(loads);
    Json(()).into_response()
}

async fn note(
    State(host): State<Arc<Host>>,
    Path(id): Path<MachineId>,
    Json(note): Json<EdgeNote>,
) -> Json<()> {
    host.notes.lock().unwrap().push((id, note));
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
    host.drained.lock().unwrap().push((id, drained));
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

/// Has one file, whose path ends with `/a.css`; one cannot be read, and one goes on for ever.
async fn file(Query(query): Query<perch_types::host::StaticQuery>) -> Response {
    if query.path.ends_with("/broken.css") {
        let error = ApiError::new(Code::Internal, "open a file of the image");
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response();
    }
    if !query.path.ends_with("/a.css") {
        let error = ApiError::new(Code::NotFound, "no such file");
        return (StatusCode::NOT_FOUND, Json(error)).into_response();
    }
    let headers = [("etag", "\"tag\""), (perch_types::host::STATIC_NAME_HEADER, "a.css")];
    if query.path.contains("/endless/") {
        let begun = futures_util::stream::iter([Ok::<_, std::io::Error>("body")]);
        let body = axum::body::Body::from_stream(begun.chain(futures_util::stream::pending()));
        return (headers, body).into_response();
    }
    // Below `big` it is long enough to gain by compression.
    let count = if query.path.contains("/big/") { 1_000 } else { 1 };
    (headers, "body { color: green }".repeat(count)).into_response()
}
