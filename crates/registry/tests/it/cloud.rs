//! A registry on loopback with two users and a clock that tests turn.
//!
//! Never shared between tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use perch_oci::{ClientConfig, Credentials, Endpoint, ImageStore, Privilege, StoreConfig};
use perch_registry::{Access, Authorize, Basic, Config, Decision, Limits, Registry};
use perch_types::clock::Clock;
use perch_types::image::PLATFORM_REGISTRY;
use perch_types::{Secret, Timestamp};
use tempfile::TempDir;

/// 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;

#[derive(Debug)]
pub(crate) struct TestClock(AtomicI64);

impl TestClock {
    pub(crate) fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).expect("short");
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(START_MS + self.0.load(Ordering::SeqCst))
    }

    fn boot_ms(&self) -> u64 {
        u64::try_from(self.0.load(Ordering::SeqCst)).expect("positive")
    }
}

/// `alice` has `app` and all below it, `bob` has `other`; both may read `base/…`.
#[derive(Debug)]
struct Users;

#[async_trait]
impl Authorize for Users {
    async fn authorize(
        &self,
        credentials: Option<&Basic>,
        repository: &str,
        access: Access,
    ) -> Decision {
        let own = match credentials {
            Some(basic) if basic.password.expose() != "secret" => return Decision::Unauthenticated,
            Some(basic) if basic.user == "alice" => "app",
            Some(basic) if basic.user == "bob" => "other",
            _ => return Decision::Unauthenticated,
        };
        let first = repository.split('/').next().unwrap_or_default();
        if first.is_empty() || first == own || (first == "base" && access == Access::Pull) {
            Decision::Allow
        } else {
            Decision::Forbidden
        }
    }
}

pub(crate) struct Cloud {
    pub(crate) folder: TempDir,
    pub(crate) registry: Registry,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) address: String,
    pub(crate) http: reqwest::Client,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().join("registry");
        Self::open(folder, root, limits).await
    }

    /// One on a folder that is there already.
    pub(crate) async fn on(root: &Path) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        Self::open(folder, root.to_owned(), Limits::default()).await
    }

    async fn open(folder: TempDir, root: PathBuf, limits: Limits) -> Self {
        let clock = Arc::new(TestClock(AtomicI64::new(0)));
        let registry = Registry::open(Config {
            root,
            limits,
            authorize: Arc::new(Users),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
        })
        .await
        .expect("registry");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address").to_string();
        let router = registry.router();
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("server");
        });
        let http = reqwest::Client::builder().no_proxy().build().expect("client");
        Self { folder, registry, clock, address, http, server }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A request as `alice`.
    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.request_as("alice", method, path)
    }

    pub(crate) fn request_as(
        &self,
        user: &str,
        method: &str,
        path: &str,
    ) -> reqwest::RequestBuilder {
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("http://{}{path}", self.address)
        };
        let method = method.parse().expect("method");
        self.http.request(method, url).basic_auth(user, Some("secret"))
    }

    pub(crate) async fn store(&self, name: &str, privilege: Privilege) -> ImageStore {
        let endpoint = Endpoint {
            base_url: format!("http://{}", self.address),
            credentials: Some(Credentials {
                user: "alice".to_owned(),
                password: Secret::new("secret"),
            }),
        };
        ImageStore::open(StoreConfig {
            root: self.path(name),
            client: ClientConfig {
                endpoints: [(PLATFORM_REGISTRY.to_owned(), endpoint)].into(),
                allow_private_addresses: false,
            },
            limits: perch_oci::Limits::default(),
            privilege,
        })
        .await
        .expect("store")
    }
}

/// The unpacking child, built beside the tests as an example.
pub(crate) fn child() -> Privilege {
    let tests = std::env::current_exe().expect("test binary");
    let profile = tests.parent().and_then(Path::parent).expect("profile folder");
    Privilege::Child {
        program: profile.join("examples/unpack_child"),
        args: Vec::new(),
        host_id_base: perch_oci::unpack::HOST_ID_BASE,
    }
}

/// Runs a program to its end, off the runtime's threads.
pub(crate) async fn run(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(args);
    tokio::task::spawn_blocking(move || command.output().expect("program")).await.expect("thread")
}

/// Runs a program that must succeed; returns its output's text.
pub(crate) async fn must(program: &str, args: &[&str]) -> String {
    let output = run(program, args).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Tells, once, what this machine lacks.
pub(crate) fn lacks(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|name| {
        !["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|folder| Path::new(folder).join(name).exists())
    });
    let root = rustix::process::geteuid().is_root();
    match (root, missing) {
        (true, None) => return false,
        (false, _) => perch_testkit::skipped(test, "root"),
        (true, Some(program)) => perch_testkit::skipped(test, program),
    }
    true
}
