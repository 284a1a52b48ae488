//! A small cloud for one test: directory, view, host and API, each on its own socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use perch_api::serve::{Listener, ServeLimits, serve};
use perch_api::{Config, Host, ImageCatalog, Limits, Wakes};
use perch_client::{Address, BoxError, Connection, HostClient, RequestParts, body_of};
use perch_store::{Expected, SqliteStore, Store, ViewFollower, get_doc, put_doc};
use perch_types::api::{
    Answers, CreateApp, CreateMachineRequest, ImageInfo, Machine, Platform, RegionInfo, WakeTimes,
};
use perch_types::certificates::RecordType;
use perch_types::clock::Clock;
use perch_types::directory::{AppNameClaim, HostDoc, TokenDoc};
use perch_types::{ApiError, AppName, InstanceId, MachineId, OrgSlug, Secret, Timestamp};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::fake_host::FakeHost;

pub(crate) const ADMIN: &str = "perch_admin";
pub(crate) const STRANGER: &str = "perch_stranger";

#[derive(Debug)]
pub(crate) struct TestClock {
    began: Instant,
    pub(crate) offset_ms: AtomicI64,
    /// How far the clock that people set is off.
    pub(crate) wall_ms: AtomicI64,
}

impl TestClock {
    pub(crate) fn now_s(&self) -> i64 {
        self.now().unix_s()
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let ms = i64::try_from(self.boot_ms()).unwrap();
        Timestamp::from_unix_ms(1_700_000_000_000 + ms + self.wall_ms.load(Ordering::Relaxed))
    }

    fn boot_ms(&self) -> u64 {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap();
        (elapsed + self.offset_ms.load(Ordering::Relaxed)).cast_unsigned()
    }
}

/// The registry's images; remembers which apps' were removed, and whether their name was still
/// taken then.
#[derive(Debug)]
pub(crate) struct Catalog {
    store: Arc<dyn Store>,
    pub(crate) forgotten: Mutex<Vec<(AppName, bool)>>,
    pub(crate) refuse_once: AtomicBool,
}

#[async_trait]
impl ImageCatalog for Catalog {
    async fn images(&self) -> Result<Vec<ImageInfo>, BoxError> {
        let image = |repository: &str| ImageInfo {
            repository: repository.to_owned(),
            tags: vec!["1".to_owned()],
            size_bytes: 9,
        };
        Ok(vec![image("base/library/debian"), image("web"), image("strange")])
    }

    async fn forget(&self, app: &AppName) -> Result<(), BoxError> {
        let claim = get_doc::<AppNameClaim>(self.store.as_ref(), &(app.clone(),)).await?;
        let mut forgotten = self.forgotten.lock().unwrap();
        forgotten.push((app.clone(), claim.is_some()));
        if self.refuse_once.swap(false, Ordering::Relaxed) {
            return Err("the registry is at fault".into());
        }
        Ok(())
    }
}

/// Zones that a test makes.
#[derive(Debug, Default)]
pub(crate) struct FakeDns {
    records: Mutex<BTreeMap<(String, RecordType), Vec<String>>>,
    /// Told when it is asked about a name that it never answers for.
    pub(crate) hangs: tokio::sync::Notify,
}

impl FakeDns {
    pub(crate) fn set(&self, name: &str, kind: RecordType, values: &[&str]) {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        self.records.lock().unwrap().insert((name.to_owned(), kind), values);
    }
}

#[async_trait]
impl perch_certs::dns::Dns for FakeDns {
    async fn records(
        &self,
        name: &str,
        kind: RecordType,
    ) -> Result<Vec<String>, perch_certs::dns::Fault> {
        if name.ends_with("silent.example") {
            let (name, reason) = (name.to_owned(), "silence".to_owned());
            return Err(perch_certs::dns::Fault { name, reason });
        }
        if name.ends_with("hanging.example") {
            self.hangs.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(self.records.lock().unwrap().get(&(name.to_owned(), kind)).cloned().unwrap_or_default())
    }
}

/// Of one app requests waited for machines.
#[derive(Debug)]
struct OneWoken;

impl Wakes for OneWoken {
    fn times(&self, org: &OrgSlug, app: &AppName) -> Option<WakeTimes> {
        let is_it = org.as_str() == "personal" && app.as_str() == "woken";
        is_it.then_some(WakeTimes { count: 3, p50_ms: 41, p99_ms: 90 })
    }

    fn answers(&self, org: &OrgSlug, app: &AppName, _: &MachineId) -> Option<Answers> {
        let is_it = org.as_str() == "personal" && app.as_str() == "woken";
        let instance_id = InstanceId::from_parts(1, 1);
        is_it.then_some(Answers { instance_id, count: 7, errors: 2 })
    }
}

pub(crate) struct Cloud {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) host: Arc<FakeHost>,
    pub(crate) host_task: tokio::task::JoinHandle<()>,
    pub(crate) keys_task: tokio::task::JoinHandle<()>,
    pub(crate) images: Arc<Catalog>,
    pub(crate) dns: Arc<FakeDns>,
    pub(crate) api: perch_api::Api,
    pub(crate) admin: perch_client::Api,
    pub(crate) socket: PathBuf,
}

pub(crate) fn hash(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn web() -> AppName {
    "web".parse().unwrap()
}

/// What a test's cloud has beside what each has.
#[derive(Default)]
struct Settings {
    builder: bool,
    limits: Limits,
    zone: Option<String>,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        Self::start_with(false).await
    }

    pub(crate) async fn start_with(builder: bool) -> Self {
        Self::start_as(tempfile::tempdir().unwrap(), Settings { builder, ..Settings::default() })
            .await
    }

    pub(crate) async fn start_limited(limits: Limits) -> Self {
        Self::start_as(tempfile::tempdir().unwrap(), Settings { limits, ..Settings::default() })
            .await
    }

    pub(crate) async fn start_in(folder: tempfile::TempDir) -> Self {
        Self::start_as(folder, Settings::default()).await
    }

    /// One with a zone of challenges.
    pub(crate) async fn start_zoned(zone: &str) -> Self {
        let zone = Some(zone.to_owned());
        Self::start_as(tempfile::tempdir().unwrap(), Settings { zone, ..Settings::default() }).await
    }

    async fn start_as(folder: tempfile::TempDir, settings: Settings) -> Self {
        let Settings { builder, limits, zone } = settings;
        let offset_ms = AtomicI64::new(1_000_000);
        let clock =
            Arc::new(TestClock { began: Instant::now(), offset_ms, wall_ms: AtomicI64::new(0) });
        let file = folder.path().join("directory.db");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&file, clock.clone()).unwrap());
        let view = ViewFollower::start(Arc::clone(&store), folder.path().join("view"));
        let host = FakeHost::new(Arc::clone(&store));
        let host_socket = folder.path().join("host.sock");
        let host_task = host.serve(&host_socket);
        let keys_socket = folder.path().join("keys.sock");
        let keys_task = serve_keys(folder.path(), &keys_socket, &store, &clock);
        let region = FakeHost::region();
        let images = Arc::new(Catalog {
            store: Arc::clone(&store),
            forgotten: Mutex::default(),
            refuse_once: AtomicBool::new(false),
        });
        let client = HostClient::new(host_socket);
        let edge_key = perch_certs::EdgeKey::open(folder.path()).unwrap();
        let dns = Arc::new(FakeDns::default());
        let api = perch_api::Api::start(Config {
            store: Arc::clone(&store),
            hosts: vec![Host { id: host.id.clone(), region: region.clone(), client }],
            view,
            platform: Platform {
                version: "0.1.0".to_owned(),
                domain: "perch.test".to_owned(),
                http_port: 80,
                https_port: None,
                https_ca: None,
                certificate: None,
                registry: "127.0.0.1:4280".to_owned(),
                region: region.clone(),
            },
            own_names: ["API.perch.example", "challenges.perch.test"].map(str::to_owned).into(),
            public_ips: ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into(),
            port_rules: perch_api::PortRules::default(),
            regions: vec![frankfurt(region)],
            builder_socket: builder.then(|| folder.path().join("builder.sock")),
            keys_socket: Some(keys_socket),
            images: Arc::clone(&images) as Arc<dyn ImageCatalog>,
            certificates: perch_api::Certificates {
                key: edge_key.public().clone(),
                dns: Arc::clone(&dns) as Arc<dyn perch_certs::dns::Dns>,
                orders: true,
                zone,
            },
            wakes: Some(Arc::new(OneWoken)),
            clock: clock.clone(),
            limits: Limits { delete_timeout: Duration::from_secs(10), ..limits },
        });
        api.ensure_admin_token(&hash(ADMIN)).await.unwrap();
        let socket = folder.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (limits, never) = (ServeLimits::default(), std::future::pending());
        tokio::spawn(serve(Listener::Unix(listener), api.router(), limits, never));
        let admin = perch_client::Api::new(&Address::Unix(socket.clone()), &Secret::new(ADMIN));
        let admin = admin.unwrap();
        let cloud = Self {
            folder,
            store,
            clock,
            host,
            host_task,
            keys_task,
            images,
            dns,
            api,
            admin,
            socket,
        };
        cloud.token(STRANGER, "strangers", None).await;
        cloud
    }

    pub(crate) async fn token(&self, token: &str, org: &str, expires_at: Option<Timestamp>) {
        let org: OrgSlug = org.parse().unwrap();
        let document = TokenDoc {
            name: token.to_owned(),
            org: org.clone(),
            operator: false,
            created_at: self.clock.now(),
            expires_at,
            app_id: None,
        };
        let key = (org, hash(token));
        put_doc(self.store.as_ref(), &key, &document, Expected::Any).await.unwrap();
        // The API reads tokens again after a second at the latest.
        self.clock.offset_ms.fetch_add(2_000, Ordering::Relaxed);
    }

    /// Has the host say what it has.
    pub(crate) async fn host_document(&self, memory_mb: u64) {
        let region = FakeHost::region();
        let document = HostDoc { region, incarnation: 1, cpus: 2, memory_mb };
        let key = (self.host.id.clone(),);
        put_doc(self.store.as_ref(), &key, &document, Expected::Any).await.unwrap();
    }

    /// Turns the clock.
    pub(crate) fn turn(&self, ms: i64) {
        self.clock.offset_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Sets the clock that people set, forward or back; the other one goes on.
    pub(crate) fn set_wall(&self, ms: i64) {
        self.clock.wall_ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub(crate) fn clock_plus(&self, ms: u64) -> Timestamp {
        self.clock.now().plus(Duration::from_millis(ms))
    }

    pub(crate) async fn app(&self) -> AppName {
        let request = CreateApp { name: Some("web".to_owned()), ..CreateApp::default() };
        self.admin.create_app(&request).await.unwrap().name
    }

    pub(crate) async fn machine(&self, config: Value) -> Machine {
        let request = request(config);
        self.admin.create_machine(&web(), &request).await.unwrap()
    }

    /// Sends what a typed client would not.
    pub(crate) async fn raw(
        &self,
        call: (&str, &str),
        token: Option<&str>,
        body: impl Into<Vec<u8>>,
    ) -> (u16, http::HeaderMap, Vec<u8>) {
        self.raw_with(call, token, &[], body).await
    }

    pub(crate) async fn raw_with(
        &self,
        (method, path): (&str, &str),
        token: Option<&str>,
        headers: &[(&'static str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> (u16, http::HeaderMap, Vec<u8>) {
        let method = http::Method::from_bytes(method.as_bytes()).unwrap();
        let mut parts = RequestParts::new(method, path.to_owned());
        parts.body = body_of(body.into());
        if let Some(token) = token {
            parts.headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        for (name, value) in headers {
            parts.headers.insert(*name, value.parse().unwrap());
        }
        let answer = Connection::unix(&self.socket).forward(parts).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        (head.status.as_u16(), head.headers, body)
    }

    pub(crate) async fn error(
        &self,
        call: (&str, &str),
        token: Option<&str>,
        body: impl Into<Vec<u8>>,
    ) -> (u16, ApiError) {
        let (status, _, body) = self.raw(call, token, body).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        (status, serde_json::from_slice(&body).expect(&text))
    }

    /// Returns the keys under a prefix.
    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        let listing = self.store.list(prefix).await.unwrap();
        listing.entries.into_iter().map(|entry| entry.key).collect()
    }

    /// Has the reconciler make a pass now, and waits until nothing is left under the prefixes.
    pub(crate) async fn until_empty_woken(&self, prefixes: &[&str]) {
        self.wake_reconciler().await;
        self.until_empty(prefixes).await;
    }

    /// Deletes an app, which wakes the reconciler; the app's tombstone is there until a pass that
    /// began after this call has ended.
    pub(crate) async fn wake_reconciler(&self) {
        let name = Some("wakes-the-reconciler".to_owned());
        let app = self.admin.create_app(&CreateApp { name, ..CreateApp::default() }).await.unwrap();
        self.admin.delete_app(&app.name).await.unwrap();
    }

    /// Waits until nothing is left under the prefixes.
    pub(crate) async fn until_empty(&self, prefixes: &[&str]) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let mut left = Vec::new();
            for prefix in prefixes {
                left.extend(self.keys(prefix).await);
            }
            if left.is_empty() {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{left:?} are left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Serves the real role `keys`; its folder is the cloud's.
fn serve_keys(
    folder: &std::path::Path,
    socket: &std::path::Path,
    store: &Arc<dyn Store>,
    clock: &Arc<TestClock>,
) -> tokio::task::JoinHandle<()> {
    let keys = perch_keys::Keys::open(perch_keys::Config {
        folder: folder.to_owned(),
        store: Arc::clone(store),
        clock: Arc::clone(clock) as Arc<dyn Clock>,
    })
    .unwrap();
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let never = std::future::pending();
    let serving =
        serve(Listener::Unix(listener), perch_keys::for_api(keys), ServeLimits::default(), never);
    tokio::spawn(async move {
        serving.await;
    })
}

pub(crate) fn request(config: Value) -> CreateMachineRequest {
    let config = serde_json::from_value(config).unwrap();
    CreateMachineRequest { config, ..CreateMachineRequest::default() }
}

/// Returns JSON for a snapshot, with what differs from run to run left out.
pub(crate) fn shown(body: &[u8], differing: &[&str]) -> String {
    let mut value: Value = serde_json::from_slice(body).unwrap();
    for key in differing {
        assert!(value.get(key).is_some(), "{key} in {value}");
        value[key] = Value::from(format!("[{key}]"));
    }
    serde_json::to_string_pretty(&value).unwrap()
}

fn frankfurt(code: perch_types::Region) -> RegionInfo {
    RegionInfo {
        code,
        name: "Frankfurt".to_owned(),
        latitude: 50.0,
        longitude: 8.0,
        gateway_available: false,
        requires_paid_plan: false,
        deprecated: false,
        geo_region: "europe".to_owned(),
    }
}
