//! A builder of one's own for each test, with a registry beside it.
//!
//! Never shares a name, an address or a folder with another test that runs at the same time.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use http_body_util::BodyExt as _;
use perch_builder::{APP_HEADER, Builder, Config, Limits, TOKEN_HEADER, router};
use perch_registry::{Access, Authorize, Basic, Decision, Registry};
use perch_types::build::{BUILD_HEADER, BuildEvent, BuildRequest, FORCE_HEADER, STORE_HEADER};
use perch_types::clock::Clock;
use perch_types::{ApiError, Timestamp};
use tower::ServiceExt as _;

/// The password that the registry knows.
pub(crate) const TOKEN: &str = "secret-token";
const BUSYBOX: &str = "/bin/busybox";

/// A builder with all that belongs to it.
pub(crate) struct Bench {
    pub(crate) builder: Arc<Builder>,
    pub(crate) registry: String,
    config: Config,
    folder: tempfile::TempDir,
    run_dir: PathBuf,
}

/// Returns whether a test cannot run here, and says why.
pub(crate) fn missing(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let tools = ["/usr/bin/buildah", "/usr/sbin/runc", "/usr/sbin/nft", "/usr/bin/skopeo", BUSYBOX];
    let lacking = tools.iter().find(|path| !Path::new(path).exists());
    match (root, lacking) {
        (true, None) => false,
        (false, _) => skip(test, "root"),
        (true, Some(path)) => skip(test, path),
    }
}

/// The same, for tests that fetch packages.
pub(crate) fn missing_long(test: &str) -> bool {
    if std::env::var_os("PERCH_TEST_LONG").is_none() {
        return skip(test, "PERCH_TEST_LONG=1");
    }
    missing(test)
}

fn skip(test: &str, what: &str) -> bool {
    perch_testkit::skipped(test, what);
    true
}

impl Bench {
    pub(crate) async fn open(limits: Limits) -> Self {
        // Folders of pid-numbered names and addresses: nextest runs each test in its own process.
        let number = std::process::id() % 4096;
        let folder = tempfile::tempdir().unwrap();
        let run_dir = PathBuf::from(format!("/run/perch-build-test-{number}"));
        let registry = start_registry(folder.path()).await;
        let mut config = Config::new(folder.path().join("data"), registry.clone());
        config.run_dir.clone_from(&run_dir);
        config.instance = format!("pb{number:x}_");
        let [high, low] = u16::try_from(number % 2048).unwrap().to_be_bytes();
        config.addresses = Ipv4Addr::new(100, 112 + high, low, 0);
        config.limits = limits;
        let builder = Builder::open(config.clone()).await.unwrap();
        Self { builder, registry, config, folder, run_dir }
    }

    /// Lays everything down and checks that nothing is left on the host.
    pub(crate) async fn close(self) {
        self.builder.close().await.unwrap();
        assert!(!self.run_dir.exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.folder.path().to_str().unwrap()), "a mount is left");
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let cgroup = controller.path().join(&self.config.instance);
            assert!(!cgroup.exists(), "{} is left", cgroup.display());
        }
        let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
        let tables = String::from_utf8(tables.stdout).unwrap();
        assert!(!tables.contains(&self.config.instance), "a table is left");
    }

    pub(crate) async fn build(&self, request: &BuildRequest, context: Vec<u8>) -> Answer {
        self.try_build(request, context).await.unwrap()
    }

    /// Opens a second builder over the same folders, as a restarted daemon does.
    pub(crate) async fn reopen(&mut self) {
        self.builder = Builder::open(self.config.clone()).await.unwrap();
    }

    pub(crate) async fn try_build(
        &self,
        request: &BuildRequest,
        context: Vec<u8>,
    ) -> Result<Answer, ApiError> {
        self.build_app("web", request, context).await
    }

    pub(crate) async fn build_app(
        &self,
        app: &str,
        request: &BuildRequest,
        context: Vec<u8>,
    ) -> Result<Answer, ApiError> {
        let request = http::Request::post("/builder/v1/build")
            .header(BUILD_HEADER, serde_json::to_string(request).unwrap())
            .header(APP_HEADER, app)
            .header(STORE_HEADER, app)
            .header(TOKEN_HEADER, TOKEN)
            .body(axum::body::Body::from(context))
            .unwrap();
        self.ask(request).await
    }

    pub(crate) async fn bootstrap(&self, force: bool) -> Answer {
        let request = http::Request::post("/builder/v1/bootstrap")
            .header(TOKEN_HEADER, TOKEN)
            .header(FORCE_HEADER, if force { "1" } else { "0" })
            .body(axum::body::Body::empty())
            .unwrap();
        self.ask(request).await.unwrap()
    }

    async fn ask(&self, request: http::Request<axum::body::Body>) -> Result<Answer, ApiError> {
        let response = router(Arc::clone(&self.builder)).oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        if !status.is_success() {
            let error: ApiError = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(error.code.status(), status.as_u16());
            return Err(error);
        }
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let events: Vec<BuildEvent> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Ok(Answer { events })
    }

    /// Copies an image out of the registry into a folder, and returns its configuration, its
    /// manifest and the names in its layers.
    pub(crate) fn fetch(&self, repository: &str, tag: &str) -> (serde_json::Value, Vec<String>) {
        let target = self.folder.path().join("fetched");
        let _absent = std::fs::remove_dir_all(&target);
        let source = format!("docker://{}/{repository}:{tag}", self.registry);
        let target_name = format!("dir:{}", target.display());
        let status = Command::new("skopeo")
            .args([
                "copy",
                "-q",
                "--src-tls-verify=false",
                "--src-creds",
                &format!("perch:{TOKEN}"),
                &source,
                &target_name,
            ])
            .status()
            .unwrap();
        assert!(status.success(), "skopeo copy {source}");
        let json = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(target.join(name)).unwrap()).unwrap()
        };
        let blob = |value: &serde_json::Value| value.as_str().unwrap().replace("sha256:", "");
        let manifest = json("manifest.json");
        let config = json(&blob(&manifest["config"]["digest"]));
        let mut names = Vec::new();
        for layer in manifest["layers"].as_array().unwrap() {
            let file = std::fs::File::open(target.join(blob(&layer["digest"]))).unwrap();
            let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
            for entry in archive.entries().unwrap() {
                names.push(entry.unwrap().path().unwrap().display().to_string());
            }
        }
        (config, names)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A test that failed has not closed its builder: what it set up must not stay.
        let disk = self.folder.path().join("data/disk");
        let quiet = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            let _ended = command.args(arguments).stderr(Stdio::null()).status();
        };
        quiet("umount", &[disk.to_str().unwrap_or_default()]);
        quiet("nft", &["delete", "table", "inet", &self.config.instance]);
        let _absent = std::fs::remove_dir_all(&self.run_dir);
        for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _absent = std::fs::remove_dir(controller.path().join(&self.config.instance));
        }
    }
}

/// What a builder answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) events: Vec<BuildEvent>,
}

impl Answer {
    /// Returns every line that the build printed.
    pub(crate) fn log(&self) -> String {
        self.events
            .iter()
            .filter_map(|event| match event {
                BuildEvent::Log { line } => Some(format!("{line}\n")),
                _ => None,
            })
            .collect()
    }

    /// Returns the reference, digest and size of the image.
    pub(crate) fn image(&self) -> (String, String, u64) {
        match self.events.last() {
            Some(BuildEvent::Image { reference, digest, size_bytes }) => {
                (reference.clone(), digest.as_str().to_owned(), *size_bytes)
            }
            _ => panic!("no image: {self:#?}"),
        }
    }

    pub(crate) fn error(&self) -> &ApiError {
        match self.events.last() {
            Some(BuildEvent::Failed { error }) => error,
            _ => panic!("no failure: {self:#?}"),
        }
    }
}

pub(crate) fn request(tag: &str) -> BuildRequest {
    BuildRequest { tag: tag.to_owned(), ..BuildRequest::default() }
}

/// Packs a Dockerfile with a static shell and more files.
pub(crate) fn context(dockerfile: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let shell = std::fs::read(BUSYBOX).unwrap();
    let mut add = |name: &str, bytes: &[u8], mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len()).unwrap());
        header.set_mode(mode);
        header.set_uid(4_000_000);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    add("Dockerfile", dockerfile.as_bytes(), 0o644);
    add("busybox", &shell, 0o755);
    for (name, bytes) in files {
        add(name, bytes, 0o644);
    }
    archive.into_inner().unwrap()
}

/// The beginning of a Dockerfile that has a shell and nothing else.
pub(crate) const SHELL: &str = "FROM scratch\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nENV PATH=/bin\nRUN /bin/busybox --install -s /bin\n";

pub(crate) fn limits() -> Limits {
    Limits { disk_bytes: 4 << 30, memory_bytes: 1 << 30, time_s_max: 60, ..Limits::default() }
}

/// Knows one password, which pushes to `web` and to the base images and pulls everything.
#[derive(Debug)]
struct OneToken;

#[async_trait::async_trait]
impl Authorize for OneToken {
    async fn authorize(
        &self,
        credentials: Option<&Basic>,
        repository: &str,
        access: Access,
    ) -> Decision {
        if credentials.is_none_or(|basic| basic.password.expose() != TOKEN) {
            return Decision::Unauthenticated;
        }
        let own = repository == "web" || repository.starts_with("base/");
        if own || access == Access::Pull { Decision::Allow } else { Decision::Forbidden }
    }
}

/// A clock that stands: no test here waits for the registry to forget something.
#[derive(Debug)]
struct StandingClock;

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    fn boot_ms(&self) -> u64 {
        0
    }
}

async fn start_registry(folder: &Path) -> String {
    let registry = Registry::open(perch_registry::Config {
        root: folder.join("registry"),
        limits: perch_registry::Limits::default(),
        authorize: Arc::new(OneToken),
        clock: Arc::new(StandingClock),
    })
    .await
    .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, registry.router()).await });
    address
}
