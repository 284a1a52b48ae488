//! The public API's calls: one method for every entry of `types::endpoint`.
//!
//! Never keeps anything between two calls but connections.

mod certificates;
mod ips;
mod lease;
mod machine;
mod replays;
mod resources;
mod secret_keys;
mod secrets;
mod tokens;
mod volumes;

use std::fmt;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method};
use perch_types::api::{
    App, AppLogs, Apps, CreateApp, CreateMachineRequest, ExecRequest, ExecResponse, Images,
    LogRecord, Machine, MachineEvent, Platform, Pruned, Regions, SignalRequest, StartResponse,
    StopRequest, SystemUsage, WaitResponse,
};
use perch_types::build::{BUILD_HEADER, BuildEvent, BuildRequest, FORCE_HEADER};
use perch_types::endpoint::{self, Endpoint};
use perch_types::exec::ExecSpec;
use perch_types::host::LogsQuery;
use perch_types::machine_config::Signal;
use perch_types::{AppName, GoDuration, InstanceId, MachineId, Secret};

pub use resources::ProcessOrder;

use crate::address::Address;
use crate::connection::{
    BUILD_HEADERS_TIMEOUT, Connection, RequestBody, RequestParts, json_header,
};
use crate::error::Error;
use crate::host::{exec_timeout, with_logs_query};
use crate::lines::{LINE_BYTES_MAX, Lines};
use crate::session::Session;

pub use machine::Page;

/// What is added to the time that a wait was given, for the way there and back.
const WAIT_MARGIN: Duration = Duration::from_secs(10);
/// How long a change of a machine may take: the host accepts it and the api's view must have it.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(150);

/// The public API of one platform, with a token. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    connection: Connection,
    url: String,
    authorization: HeaderValue,
    nonce: Option<HeaderValue>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Which machines to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListFilter {
    /// Destroyed ones too.
    pub include_deleted: bool,
    /// Only of this region.
    pub region: Option<String>,
    /// Only in one of these states.
    pub states: Vec<String>,
    /// Only with these labels.
    pub metadata: Vec<(String, String)>,
}

impl ListFilter {
    /// Adds it to a request.
    fn query(&self, mut parts: RequestParts) -> RequestParts {
        if self.include_deleted {
            parts = parts.with_query("include_deleted", "true");
        }
        if let Some(region) = &self.region {
            parts = parts.with_query("region", region);
        }
        if !self.states.is_empty() {
            parts = parts.with_query("state", &self.states.join(","));
        }
        for (key, value) in &self.metadata {
            parts = parts.with_query(&format!("metadata.{key}"), value);
        }
        parts
    }
}

/// What to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WaitFor {
    /// Any of these; `settled` is understood too. None is `started`.
    pub states: Vec<String>,
    /// Only of this version.
    pub instance: Option<InstanceId>,
    /// Only what happens after this event.
    pub from_event: Option<String>,
    /// How long at most; the server answers within 60 s in any case.
    pub timeout: Duration,
}

impl Api {
    /// Makes a client of the platform at an address; nothing is opened before the first call.
    ///
    /// # Errors
    /// When the token holds what no header can, or the address no TLS name.
    pub fn new(address: &Address, token: &Secret) -> Result<Self, Error> {
        let url = address.url();
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
            .map_err(|source| Error::Request { url: url.clone(), source: Box::new(source) })?;
        authorization.set_sensitive(true);
        Ok(Self { connection: Connection::new(address)?, url, authorization, nonce: None })
    }

    /// Returns the address, without the fingerprint.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the apps, of one organization or of all that the token reaches.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn apps(&self, org: Option<&str>) -> Result<Apps, Error> {
        let mut parts = self.request(endpoint::APPS_LIST, &[]);
        if let Some(org) = org {
            parts = parts.with_query("org_slug", org);
        }
        self.connection.json(parts).await
    }

    /// Makes an app.
    ///
    /// # Errors
    /// `Code::NameTaken` when the name is somebody's; else as every call.
    pub async fn create_app(&self, app: &CreateApp) -> Result<App, Error> {
        let parts = self.request(endpoint::APPS_CREATE, &[]).with_json(app)?;
        self.connection.json(parts).await
    }

    /// Returns an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn app(&self, app: &AppName) -> Result<App, Error> {
        self.connection.json(self.request(endpoint::APP_GET, &[app.as_str()])).await
    }

    /// Deletes an app and its machines.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn delete_app(&self, app: &AppName) -> Result<(), Error> {
        let mut parts = self.request(endpoint::APP_DELETE, &[app.as_str()]);
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.done(parts).await
    }

    /// Returns machines of an app.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn machines(&self, app: &AppName, of: &ListFilter) -> Result<Vec<Machine>, Error> {
        let parts = of.query(self.request(endpoint::MACHINES_LIST, &[app.as_str()]));
        self.connection.json(parts).await
    }

    /// Makes a machine and starts it, unless the request says otherwise.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn create_machine(
        &self,
        app: &AppName,
        machine: &CreateMachineRequest,
    ) -> Result<Machine, Error> {
        let mut parts =
            self.request(endpoint::MACHINES_CREATE, &[app.as_str()]).with_json(machine)?;
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Returns a machine; a destroyed one for a while.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn machine(&self, app: &AppName, id: &MachineId) -> Result<Machine, Error> {
        self.connection.json(self.of(endpoint::MACHINE_GET, app, id)).await
    }

    /// Gives a machine another version: the whole configuration.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn update_machine(
        &self,
        app: &AppName,
        id: &MachineId,
        machine: &CreateMachineRequest,
    ) -> Result<Machine, Error> {
        let mut parts = self.of(endpoint::MACHINE_UPDATE, app, id).with_json(machine)?;
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Destroys a machine; one that runs only by force.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn delete_machine(
        &self,
        app: &AppName,
        id: &MachineId,
        force: bool,
    ) -> Result<(), Error> {
        let mut parts = self.of(endpoint::MACHINE_DELETE, app, id);
        if force {
            parts = parts.with_query("force", "true");
        }
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.done(parts).await
    }

    /// Starts a machine.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn start(&self, app: &AppName, id: &MachineId) -> Result<StartResponse, Error> {
        let mut parts = self.of(endpoint::MACHINE_START, app, id);
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.json(parts).await
    }

    /// Tells a machine to stop.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn stop(
        &self,
        app: &AppName,
        id: &MachineId,
        stop: &StopRequest,
    ) -> Result<(), Error> {
        let mut parts = self.of(endpoint::MACHINE_STOP, app, id).with_json(stop)?;
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.done(parts).await
    }

    /// Tells a machine to suspend: a start lets it go on.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn suspend(&self, app: &AppName, id: &MachineId) -> Result<(), Error> {
        let mut parts = self.of(endpoint::MACHINE_SUSPEND, app, id);
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.done(parts).await
    }

    /// Tells a machine to restart; `force` skips the polite part.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn restart(
        &self,
        app: &AppName,
        id: &MachineId,
        force: bool,
        timeout: Option<GoDuration>,
    ) -> Result<(), Error> {
        let mut parts = self.of(endpoint::MACHINE_RESTART, app, id);
        if force {
            parts = parts.with_query("force_stop", "true");
        }
        if let Some(timeout) = timeout {
            parts = parts.with_query("timeout", &timeout.to_string());
        }
        parts.headers_timeout = CHANGE_TIMEOUT;
        self.connection.done(parts).await
    }

    /// Sends a signal to a machine's program.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn signal(&self, app: &AppName, id: &MachineId, signal: Signal) -> Result<(), Error> {
        let request = SignalRequest { signal: signal.number().into() };
        self.connection.done(self.of(endpoint::MACHINE_SIGNAL, app, id).with_json(&request)?).await
    }

    /// Waits for a state of a machine.
    ///
    /// # Errors
    /// `Code::DeadlineExceeded` when the time is over; else as every call.
    pub async fn wait(
        &self,
        app: &AppName,
        id: &MachineId,
        wait: &WaitFor,
    ) -> Result<WaitResponse, Error> {
        let mut parts = self.of(endpoint::MACHINE_WAIT, app, id);
        if !wait.states.is_empty() {
            parts = parts.with_query("state", &wait.states.join(","));
        }
        if let Some(instance) = &wait.instance {
            parts = parts.with_query("instance_id", instance.as_str());
        }
        if let Some(event) = &wait.from_event {
            parts = parts.with_query("from_event_id", event);
        }
        parts = parts.with_query("timeout", &wait.timeout.as_secs().max(1).to_string());
        parts.headers_timeout = wait.timeout.saturating_add(WAIT_MARGIN);
        self.connection.json(parts).await
    }

    /// Runs a program inside a machine and returns its output.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn exec(
        &self,
        app: &AppName,
        id: &MachineId,
        exec: &ExecRequest,
    ) -> Result<ExecResponse, Error> {
        let mut parts = self.of(endpoint::MACHINE_EXEC, app, id).with_json(exec)?;
        parts.headers_timeout = exec_timeout(exec).saturating_add(WAIT_MARGIN);
        self.connection.json(parts).await
    }

    /// Runs a program inside a machine over a session.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn attach(
        &self,
        app: &AppName,
        id: &MachineId,
        spec: &ExecSpec,
    ) -> Result<Session, Error> {
        self.connection.session(self.of(endpoint::MACHINE_ATTACH, app, id), spec).await
    }

    /// Returns events of a machine, newest first.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn events(
        &self,
        app: &AppName,
        id: &MachineId,
        limit: Option<usize>,
    ) -> Result<Vec<MachineEvent>, Error> {
        let mut parts = self.of(endpoint::MACHINE_EVENTS, app, id);
        if let Some(limit) = limit {
            parts = parts.with_query("limit", &limit.to_string());
        }
        self.connection.json(parts).await
    }

    /// Takes a machine out of routing.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn cordon(&self, app: &AppName, id: &MachineId) -> Result<(), Error> {
        self.connection.done(self.of(endpoint::MACHINE_CORDON, app, id)).await
    }

    /// Puts a machine back into routing.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn uncordon(&self, app: &AppName, id: &MachineId) -> Result<(), Error> {
        self.connection.done(self.of(endpoint::MACHINE_UNCORDON, app, id)).await
    }

    /// Returns records of a machine's log, oldest first; with `follow` without an end.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn logs(
        &self,
        app: &AppName,
        id: &MachineId,
        query: &LogsQuery,
    ) -> Result<Lines<LogRecord>, Error> {
        let parts = with_logs_query(self.of(endpoint::MACHINE_LOGS, app, id), query);
        self.connection.lines(parts, LINE_BYTES_MAX, None).await
    }

    /// Returns the newest records of an app's machines, or those after a token.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn app_logs(
        &self,
        app: &AppName,
        next_token: Option<&str>,
    ) -> Result<AppLogs, Error> {
        let mut parts = self.request(endpoint::APP_LOGS, &[app.as_str()]);
        if let Some(token) = next_token {
            parts = parts.with_query("next_token", token);
        }
        self.connection.json(parts).await
    }

    /// Builds an image; the body is the context as a tar. Dropping the lines ends the build.
    ///
    /// # Errors
    /// As every call: see [`Error`]. A build that fails is [`BuildEvent::Failed`].
    pub async fn build(
        &self,
        app: &AppName,
        build: &BuildRequest,
        context: RequestBody,
    ) -> Result<Lines<BuildEvent>, Error> {
        let mut parts = self.request(endpoint::APP_BUILD, &[app.as_str()]);
        parts.headers.insert(HeaderName::from_static(BUILD_HEADER), json_header(build, &self.url)?);
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        parts.body = context;
        parts.headers_timeout = BUILD_HEADERS_TIMEOUT;
        self.connection.lines(parts, LINE_BYTES_MAX, None).await
    }

    /// Returns the regions.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn regions(&self) -> Result<Regions, Error> {
        self.connection.json(self.request(endpoint::REGIONS, &[])).await
    }

    /// Returns what the platform is.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn platform(&self) -> Result<Platform, Error> {
        self.connection.json(self.request(endpoint::PLATFORM, &[])).await
    }

    /// Returns what takes the servers' disks.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn system_usage(&self) -> Result<SystemUsage, Error> {
        self.connection.json(self.request(endpoint::SYSTEM_USAGE, &[])).await
    }

    /// Deletes images that no machine names from the servers' disks.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn system_prune(&self) -> Result<Pruned, Error> {
        self.connection.json(self.request(endpoint::SYSTEM_PRUNE, &[])).await
    }

    /// Returns the images in the platform's registry.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn images(&self) -> Result<Images, Error> {
        self.connection.json(self.request(endpoint::IMAGES_LIST, &[])).await
    }

    /// Makes the base images; with `force` those too that exist.
    ///
    /// # Errors
    /// As every call: see [`Error`].
    pub async fn bootstrap_images(&self, force: bool) -> Result<Lines<BuildEvent>, Error> {
        let mut parts = self.request(endpoint::IMAGES_BOOTSTRAP, &[]);
        if force {
            parts.headers.insert(FORCE_HEADER, HeaderValue::from_static("1"));
        }
        parts.headers_timeout = BUILD_HEADERS_TIMEOUT;
        self.connection.lines(parts, LINE_BYTES_MAX, None).await
    }

    fn of(&self, endpoint: Endpoint, app: &AppName, id: &MachineId) -> RequestParts {
        self.request(endpoint, &[app.as_str(), id.as_str()])
    }

    fn request(&self, endpoint: Endpoint, values: &[&str]) -> RequestParts {
        let method = Method::from_bytes(endpoint.method.as_bytes()).unwrap_or_default();
        let mut parts = RequestParts::new(method, endpoint.path_of(values));
        parts.headers.insert(AUTHORIZATION, self.authorization.clone());
        if let Some(nonce) = self.nonce.as_ref().filter(|_| endpoint.needs_lease()) {
            parts.headers.insert(HeaderName::from_static(endpoint::LEASE_HEADER), nonce.clone());
        }
        parts
    }
}
