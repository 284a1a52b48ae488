//! A host's calls (`types::host`), over its Unix socket.
//!
//! Never decides anything: the api and the edge do.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, Response};
use hyper::body::Incoming;
use perch_types::api::{
    DiskUsage, ExecRequest, ExecResponse, LogRecord, MachineMemory, ProcessStat, Pruned,
    ReclaimMemory, ReclaimedMemory, SetMemory,
};
use perch_types::consumed::MachineConsumed;
use perch_types::directory::VolumeRecord;
use perch_types::exec::ExecSpec;
use perch_types::host::{
    Accepted, Command, CreateMachine, CreateVolume, Drained, EdgeNote, HostInfo, HostMachine,
    HostSnapshot, Loads, LogsQuery, PREFIX, PoolRoom, Rest, VolumeCommand, WATCH_HEARTBEAT_MS,
    WaitQuery, WatchEvent,
};
use perch_types::{AppName, MachineId, SnapshotId, VolumeId};

use crate::connection::{Connection, RequestParts};
use crate::error::HostError;
use crate::lines::{LINE_BYTES_MAX, Lines, SNAPSHOT_LINE_BYTES_MAX};
use crate::session::Session;

/// How long a watch may be silent: three heartbeats.
pub const WATCH_IDLE_TIMEOUT: Duration = Duration::from_millis(3 * WATCH_HEARTBEAT_MS);
/// How long a host may take to accept a machine or a command.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(120);
/// What is added to the time that a call was given, for the way there and back.
const MARGIN: Duration = Duration::from_secs(10);
/// Seconds that an exec may take when nothing else was said (`types::api::ExecRequest`).
const EXEC_TIMEOUT_DEFAULT_S: u64 = 60;

/// A host that can be asked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HostClient {
    connection: Connection,
}

impl HostClient {
    /// Makes a client of the host that listens on a Unix socket.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { connection: Connection::unix(socket) }
    }

    /// Makes a machine; the same again for the same id and digest.
    ///
    /// # Errors
    /// When the host refuses or does not answer.
    pub async fn create(&self, machine: &CreateMachine) -> Result<HostMachine, HostError> {
        let mut parts = request(Method::POST, "/machines").with_json(machine)?;
        parts.headers_timeout = ACCEPT_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Returns all machines of the host.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn machines(&self) -> Result<Vec<HostMachine>, HostError> {
        self.connection.json(request(Method::GET, "/machines")).await
    }

    /// Returns the machines of an app that the host has.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn machines_of(&self, app: &AppName) -> Result<Vec<HostMachine>, HostError> {
        let parts = request(Method::GET, "/machines").with_query("app", app.as_str());
        self.connection.json(parts).await
    }

    /// Returns a machine; a destroyed one for a while.
    ///
    /// # Errors
    /// When there is no such machine or the host does not answer.
    pub async fn machine(&self, id: &MachineId) -> Result<HostMachine, HostError> {
        self.connection.json(request(Method::GET, &of(id, ""))).await
    }

    /// Asks something of a machine; the answer comes once it is journaled.
    ///
    /// # Errors
    /// When the machine's state does not allow it or the host does not answer.
    pub async fn command(&self, id: &MachineId, command: &Command) -> Result<Accepted, HostError> {
        let mut parts = request(Method::POST, &of(id, "/command")).with_json(command)?;
        parts.headers_timeout = ACCEPT_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Waits for a state of a machine.
    ///
    /// # Errors
    /// `Code::DeadlineExceeded` when the time is over; else as ever.
    pub async fn wait(&self, id: &MachineId, query: &WaitQuery) -> Result<HostMachine, HostError> {
        let mut parts = request(Method::GET, &of(id, "/wait"))
            .with_query("states", &query.states)
            .with_query("timeout_ms", &query.timeout_ms.to_string());
        if let Some(instance) = &query.instance {
            parts = parts.with_query("instance", instance.as_str());
        }
        if let Some(event) = &query.from_event {
            parts = parts.with_query("from_event", event);
        }
        parts.headers_timeout = Duration::from_millis(query.timeout_ms).saturating_add(MARGIN);
        self.connection.json(parts).await
    }

    /// Runs a program inside a machine and returns its output.
    ///
    /// # Errors
    /// When the program cannot be run or the host does not answer.
    pub async fn exec(
        &self,
        id: &MachineId,
        exec: &ExecRequest,
    ) -> Result<ExecResponse, HostError> {
        let mut parts = request(Method::POST, &of(id, "/exec")).with_json(exec)?;
        parts.headers_timeout = exec_timeout(exec);
        self.connection.json(parts).await
    }

    /// Runs a program inside a machine over a session.
    ///
    /// # Errors
    /// When the session cannot be opened.
    pub async fn attach(&self, id: &MachineId, spec: &ExecSpec) -> Result<Session, HostError> {
        self.connection.session(request(Method::GET, &of(id, "/attach")), spec).await
    }

    /// Lists the processes of a machine.
    ///
    /// # Errors
    /// When it does not run or the host does not answer.
    pub async fn processes(&self, id: &MachineId) -> Result<Vec<ProcessStat>, HostError> {
        self.connection.json(request(Method::GET, &of(id, "/ps"))).await
    }

    /// Returns a machine's memory.
    ///
    /// # Errors
    /// When it does not run or the host does not answer.
    pub async fn memory(&self, id: &MachineId) -> Result<MachineMemory, HostError> {
        self.connection.json(request(Method::GET, &of(id, "/memory"))).await
    }

    /// Changes how much memory a running machine may use.
    ///
    /// # Errors
    /// When it may not have so much, uses more, does not run, or the host does not answer.
    pub async fn set_memory(
        &self,
        id: &MachineId,
        memory: SetMemory,
    ) -> Result<MachineMemory, HostError> {
        let parts = request(Method::PUT, &of(id, "/memory")).with_json(&memory)?;
        self.connection.json(parts).await
    }

    /// Takes back memory that a machine could do without.
    ///
    /// # Errors
    /// When it does not run or the host does not answer.
    pub async fn reclaim_memory(
        &self,
        id: &MachineId,
        reclaim: ReclaimMemory,
    ) -> Result<ReclaimedMemory, HostError> {
        let parts = request(Method::POST, &of(id, "/memory/reclaim")).with_json(&reclaim)?;
        self.connection.json(parts).await
    }

    /// Returns records of a machine's log.
    ///
    /// # Errors
    /// When there is no such machine or the host does not answer.
    pub async fn logs(
        &self,
        id: &MachineId,
        query: &LogsQuery,
    ) -> Result<Lines<LogRecord>, HostError> {
        let parts = with_logs_query(request(Method::GET, &of(id, "/logs")), query);
        self.connection.lines(parts, LINE_BYTES_MAX, None).await
    }

    /// Returns a file of a machine's image, by the path of a request.
    ///
    /// # Errors
    /// `Code::NotFound` when there is none; else as ever.
    pub async fn static_file(
        &self,
        id: &MachineId,
        path: &str,
    ) -> Result<Response<Incoming>, HostError> {
        let parts = request(Method::GET, &of(id, "/static")).with_query("path", path);
        self.connection.send(parts).await
    }

    /// Returns everything that changes on the host, a snapshot first. A silence of
    /// [`WATCH_IDLE_TIMEOUT`] is an error.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn watch(&self) -> Result<Lines<WatchEvent>, HostError> {
        let parts = request(Method::GET, "/watch");
        self.connection.lines(parts, SNAPSHOT_LINE_BYTES_MAX, Some(WATCH_IDLE_TIMEOUT)).await
    }

    /// As [`HostClient::watch`], and promises to say by [`HostClient::drained`] when no request is
    /// under way any more to a machine that is being stopped: the host waits for that. `edge` is the
    /// number under which the watcher says what is under way ([`HostClient::loads`]).
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn watch_to_drain(&self, edge: u64) -> Result<Lines<WatchEvent>, HostError> {
        let parts = request(Method::GET, "/watch")
            .with_query("drains", "true")
            .with_query("edge", &edge.to_string());
        self.connection.lines(parts, SNAPSHOT_LINE_BYTES_MAX, Some(WATCH_IDLE_TIMEOUT)).await
    }

    /// Says that no request is under way to a machine which was seen not to be ready.
    ///
    /// # Errors
    /// When there is no such machine or the host does not answer.
    pub async fn drained(&self, id: &MachineId, drained: &Drained) -> Result<(), HostError> {
        let parts = request(Method::POST, &of(id, "/drained")).with_json(drained)?;
        self.connection.json::<Drained>(parts).await.map(drop)
    }

    /// Says what is under way to machines.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn loads(&self, loads: &Loads) -> Result<(), HostError> {
        self.connection.done(request(Method::POST, "/loads").with_json(loads)?).await
    }

    /// Answers whether nothing is under way to a machine ([`WatchEvent::Rest`]).
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn rest(&self, id: &MachineId, rest: Rest) -> Result<(), HostError> {
        self.connection.done(request(Method::POST, &of(id, "/rest")).with_json(&rest)?).await
    }

    /// Has a line written into a machine's log, which may be lost.
    ///
    /// # Errors
    /// When there is no such machine or code, or the host does not answer.
    pub async fn note(&self, id: &MachineId, note: &EdgeNote) -> Result<(), HostError> {
        self.connection.done(request(Method::POST, &of(id, "/note")).with_json(note)?).await
    }

    /// Returns what each machine that runs has used since its boot.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn consumed(&self) -> Result<Vec<MachineConsumed>, HostError> {
        self.connection.json(request(Method::GET, "/consumed")).await
    }

    /// Returns what takes the host's disk.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn usage(&self) -> Result<DiskUsage, HostError> {
        let mut parts = request(Method::GET, "/usage");
        parts.headers_timeout = ACCEPT_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Deletes images that no machine names.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn prune(&self) -> Result<Pruned, HostError> {
        let mut parts = request(Method::POST, "/prune");
        parts.headers_timeout = ACCEPT_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Makes a volume; the same again for the same id.
    ///
    /// # Errors
    /// When the host refuses or does not answer.
    pub async fn create_volume(&self, volume: &CreateVolume) -> Result<VolumeRecord, HostError> {
        let mut parts = request(Method::POST, "/volumes").with_json(volume)?;
        parts.headers_timeout = ACCEPT_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Returns all volumes of the host.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn volumes(&self) -> Result<Vec<VolumeRecord>, HostError> {
        self.connection.json(request(Method::GET, "/volumes")).await
    }

    /// Returns a volume with how full it is now.
    ///
    /// # Errors
    /// When there is no such volume or the host does not answer.
    pub async fn volume(&self, id: &VolumeId) -> Result<VolumeRecord, HostError> {
        self.connection.json(request(Method::GET, &format!("/volumes/{id}"))).await
    }

    /// Asks something of a volume; the answer comes once it is done.
    ///
    /// # Errors
    /// When it is refused or does not succeed, or the host does not answer.
    pub async fn volume_command(
        &self,
        id: &VolumeId,
        command: &VolumeCommand,
    ) -> Result<VolumeRecord, HostError> {
        let path = format!("/volumes/{id}/command");
        let mut parts = request(Method::POST, &path).with_json(command)?;
        parts.headers_timeout = ACCEPT_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Returns the snapshots of a volume, newest first.
    ///
    /// # Errors
    /// When there is no such volume or the host does not answer.
    pub async fn snapshots(&self, id: &VolumeId) -> Result<Vec<HostSnapshot>, HostError> {
        self.connection.json(request(Method::GET, &format!("/volumes/{id}/snapshots"))).await
    }

    /// Returns a snapshot.
    ///
    /// # Errors
    /// When there is no such snapshot or the host does not answer.
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<HostSnapshot, HostError> {
        self.connection.json(request(Method::GET, &format!("/snapshots/{id}"))).await
    }

    /// Returns what the pool of volumes has left.
    ///
    /// # Errors
    /// When the pool cannot be read or the host does not answer.
    pub async fn pool_room(&self) -> Result<PoolRoom, HostError> {
        self.connection.json(request(Method::GET, "/pool")).await
    }

    /// Returns what the host is.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn info(&self) -> Result<HostInfo, HostError> {
        self.connection.json(request(Method::GET, "/info")).await
    }
}

/// Returns how long the answer of an exec may take.
pub(crate) fn exec_timeout(exec: &ExecRequest) -> Duration {
    let asked = Duration::from_secs(exec.timeout.unwrap_or(EXEC_TIMEOUT_DEFAULT_S));
    asked.saturating_add(MARGIN)
}

/// Adds a log's query.
pub(crate) fn with_logs_query(mut parts: RequestParts, query: &LogsQuery) -> RequestParts {
    if let Some(seq) = query.from_seq {
        parts = parts.with_query("from_seq", &seq.to_string());
    }
    if let Some(last) = query.last {
        parts = parts.with_query("last", &last.to_string());
    }
    if query.follow {
        parts = parts.with_query("follow", "true");
    }
    parts
}

fn request(method: Method, path: &str) -> RequestParts {
    RequestParts::new(method, format!("{PREFIX}{path}"))
}

fn of(id: &MachineId, what: &str) -> String {
    format!("/machines/{id}{what}")
}
