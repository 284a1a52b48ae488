//! A whole host for one test: real machines, in a network namespace of its own.
//!
//! Never shares a folder, a cgroup or an address with another test.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use perch_host::effects::{CachedImage, Effects, Fault, Images, MountedImage, Resolved};
use perch_host::holds::{Hold, IsNamed};
use perch_host::network::NetworkConfig;
use perch_host::{
    CachePolicy, Config, Host, KernelNetworks, Layers, Limits, MachineApi, Mounts, Pool, PoolConfig,
};
use perch_runtime::log::{self, Stream};
use perch_runtime::{LogLimits, SandboxRuntime, sandbox};
use perch_store::{SqliteStore, Store};
use perch_testkit::skipped;
use perch_types::clock::Clock;
use perch_types::host::{Command, CreateMachine, HostMachine, WaitQuery};
use perch_types::image::{Digest, ImageConfig, ImageRef, Reference};
use perch_types::{ApiError, Code, InstanceId, MachineConfig, MachineId, OrgSlug, Timestamp};

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How large the pool of volumes is: what the volumes of one test are promised, and little more.
const POOL_BYTES: u64 = 13 << 30;
static COUNT: AtomicU64 = AtomicU64::new(1);

/// The server's clocks.
#[derive(Debug)]
pub(crate) struct RealClock;

impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp::from_unix_ms(now.tv_sec * 1_000 + now.tv_nsec / 1_000_000)
    }

    fn boot_ms(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        u64::try_from(now.tv_sec * 1_000 + now.tv_nsec / 1_000_000).unwrap()
    }
}

/// The server's clocks, of which a test turns the one that people set.
#[derive(Debug, Default)]
pub(crate) struct TurnedClock(AtomicI64);

impl TurnedClock {
    /// Turns it forward, or back.
    pub(crate) fn turn(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// Returns how far it is turned.
    pub(crate) fn turned_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Clock for TurnedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(RealClock.now().unix_ms() + self.turned_ms())
    }

    fn boot_ms(&self) -> u64 {
        RealClock.boot_ms()
    }
}

/// One image under a few names.
#[derive(Debug)]
struct OneImage {
    erofs: PathBuf,
    mounts: Mounts,
}

#[async_trait]
impl Images for OneImage {
    async fn resolve(&self, reference: &str) -> Result<Resolved, Fault> {
        let reference: Reference = reference.parse().unwrap();
        if !reference.repository().ends_with("busybox") {
            return Err(Fault::permanent(Code::ImageUnknown, format!("find image `{reference}`")));
        }
        let number = reference.tag().map_or(0, |tag| u8::try_from(tag.len()).unwrap());
        let digest = Some(Digest::from_sha256(&[number; 32]));
        let image = ImageRef { digest, ..ImageRef::from(&reference) };
        Ok(Resolved { image, hold: Hold::default() })
    }

    async fn mount(&self, image: &ImageRef) -> Result<MountedImage, Fault> {
        let root = self.mounts.mount(image.digest.as_ref().unwrap(), &self.erofs)?;
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let config = ImageConfig { cmd: words(&["sh"]), ..ImageConfig::default() };
        Ok(MountedImage { root, config })
    }

    async fn config_json(&self, image: &ImageRef) -> Result<String, Fault> {
        Ok(format!("{{\"repository\":\"{}\"}}", image.repository))
    }

    async fn unmount_unused(&self, is_named: IsNamed<'_>) -> Result<(), Fault> {
        for digest in self.mounts.mounted().iter().filter(|digest| !is_named(digest)) {
            self.mounts.unmount(digest)?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<CachedImage>, Fault> {
        Ok(Vec::new())
    }

    async fn remove(&self, _digest: &Digest, _is_named: IsNamed<'_>) -> Result<bool, Fault> {
        Ok(false)
    }
}

/// A server.
pub(crate) struct Server {
    tag: String,
    pub(crate) folder: PathBuf,
    pub(crate) clock: Arc<TurnedClock>,
    guest: PathBuf,
    directory: PathBuf,
    store: OnceLock<Arc<dyn Store>>,
}

impl Server {
    /// Makes a server and runs the test on it; says what is missing where that cannot be.
    pub(crate) fn run<F: Future<Output = ()>>(
        test: &str,
        body: impl FnOnce(Arc<Self>) -> F + Send,
    ) {
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
        if !rustix::process::geteuid().is_root() {
            return skipped(test, "root");
        }
        for name in ["perch-init", "perch-monitor", "perch-testserver"] {
            if !guest.join(name).exists() {
                return skipped(test, "target/guest (cargo xtask guest)");
            }
        }
        for program in ["busybox", "mkfs.erofs", "mkfs.ext4", "mkfs.xfs", "ip", "nft"] {
            if !Program::new("which").arg(program).output().unwrap().status.success() {
                return skipped(test, program);
            }
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("ph{}x{number}", std::process::id());
        let folder = PathBuf::from(format!("/tmp/{tag}"));
        fs::create_dir_all(&folder).unwrap();
        run("ip", &["netns", "add", &tag]);
        run("ip", &["-n", &tag, "link", "set", "lo", "up"]);
        make_image(&folder, &guest.join("perch-testserver"));
        let (directory, store) = (folder.clone(), OnceLock::new());
        let clock = Arc::default();
        let server = Arc::new(Self { tag, folder, clock, guest, directory, store });
        server.inside(body);
        server.assert_clean();
    }

    /// Runs another agent on a server that another process made.
    pub(crate) fn adopt<F: Future<Output = ()>>(
        folder: &Path,
        body: impl FnOnce(Arc<Self>) -> F + Send,
    ) {
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
        let tag = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let directory = folder.join("agent");
        fs::create_dir_all(&directory).unwrap();
        let store = OnceLock::new();
        let (folder, clock) = (folder.to_owned(), Arc::default());
        let server = Arc::new(Self { tag, folder, clock, guest, directory, store });
        // The server is the other process's, which takes it away.
        let _kept = std::mem::ManuallyDrop::new(Arc::clone(&server));
        server.inside(body);
    }

    /// Returns the directory, opening it the first time.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.get_or_init(|| open_store(&self.directory)))
    }

    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    fn inside<F: Future<Output = ()>>(self: &Arc<Self>, body: impl FnOnce(Arc<Self>) -> F + Send) {
        // A thread of its own, so that nothing else finds itself in the namespace.
        let inside = self.tag.clone();
        let runtime = std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    enter(&inside);
                    tokio::runtime::Builder::new_multi_thread()
                        .worker_threads(2)
                        .enable_all()
                        .build()
                        .unwrap()
                })
                .join()
                .unwrap()
        });
        let entered = Arc::clone(self);
        std::thread::scope(|scope| {
            let runtime = &runtime;
            let outcome = scope
                .spawn(move || {
                    enter(&entered.tag);
                    runtime.block_on(body(Arc::clone(&entered)));
                })
                .join();
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        });
        drop(runtime);
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            id: perch_types::HostId::from_bits(7),
            data_dir: self.folder.join("data"),
            run_dir: self.folder.join("run"),
            region: "ams".parse().unwrap(),
            cgroup: format!("perch-{}", self.tag),
            network: NetworkConfig::default(),
            uid_base: perch_host::config::UID_BASE_DEFAULT,
            monitor: self.guest.join("perch-monitor"),
            init: self.guest.join("perch-init"),
            registry: None,
            machine_api: Some(MachineApi {
                monitors: self.folder.join("monitors.sock"),
                api: self.folder.join("api.sock"),
            }),
            unpack: perch_oci::Privilege::InProcess,
            others: Vec::new(),
            pool: Default::default(),
            limits: Limits {
                disk_reserve_bytes: 0,
                machines_max: 100,
                volumes_max: 100,
                memory_overcommit: 1.0,
                log: LogLimits::default(),
                drain: Duration::from_secs(10),
                cache: CachePolicy::default(),
                autostop_idle: perch_host::AUTOSTOP_IDLE,
            },
        }
    }

    pub(crate) async fn effects(&self) -> Effects {
        let config = self.config();
        let runtime = SandboxRuntime::new(sandbox::Config {
            monitor: config.monitor,
            init: config.init,
            cgroup: config.cgroup,
        });
        let mounts = Mounts::open(&self.folder.join("run/images")).unwrap();
        Effects {
            images: Arc::new(OneImage { erofs: self.folder.join("busybox.erofs"), mounts }),
            rootfs: Arc::new(Layers::open(&self.folder.join("data/templates")).unwrap()),
            networks: Arc::new(KernelNetworks::open(config.network).await.unwrap()),
            volumes: Arc::new(self.pool()),
            secrets: Arc::new(perch_host::secrets::NoSecrets),
            policies: Arc::new(perch_host::policies::NoPolicies),
            runtime: Arc::new(runtime),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
        }
    }

    /// Opens the pool of volumes, which is on another disk than the agent's file in the tests that
    /// fill that one.
    pub(crate) fn pool(&self) -> Pool {
        let config = PoolConfig {
            size_bytes: POOL_BYTES,
            guard: self.guest.join("perch-monitor"),
            ..PoolConfig::default()
        };
        Pool::open(&self.folder.join("pool"), config).unwrap()
    }

    /// Whether the disk has as much as the pool: else it is the disk that says what is free, and a
    /// test of the pool's own room learns nothing.
    pub(crate) fn has_room_for_pool(&self, test: &str) -> bool {
        let disk = rustix::fs::statvfs(&self.folder).unwrap();
        let has_room = disk.f_bavail.saturating_mul(disk.f_frsize) > POOL_BYTES;
        if !has_room {
            skipped(test, "13 GiB of free disk");
        }
        has_room
    }

    /// Starts the agent.
    pub(crate) async fn start(&self) -> Host {
        let effects = self.effects().await;
        let store = Some(self.store());
        Host::start_with(self.config(), effects, store, Vec::new()).await.unwrap()
    }

    /// Returns the log of a machine.
    pub(crate) fn output(&self, id: &MachineId) -> String {
        let dir = self.folder.join("data/machines").join(id.as_str()).join("log");
        let records = log::read(&dir, 0, log::RECORDS_MAX).unwrap();
        let lines = records.iter().filter(|record| record.stream != Stream::System);
        lines.map(|record| format!("{}\n", String::from_utf8_lossy(&record.line))).collect()
    }

    /// Waits until a machine has written something.
    pub(crate) async fn wait_for_output(&self, id: &MachineId, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.output(id).contains(wanted) {
            assert!(Instant::now() < deadline, "no `{wanted}` in {:?}", self.output(id));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn assert_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.folder.to_str().unwrap()), "{mounts}");
        let cgroups = Program::new("find")
            .args(["/sys/fs/cgroup", "-path", &format!("*perch-{}/*", self.tag), "-type", "d"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&cgroups.stdout), "");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whatever a failed test left.
        let script = format!(
            "for boot in {0}/run/machines/*/boot.json; do [ -e $boot ] || continue; \
               kill -9 $(grep -o '\"pid\":[0-9]*' $boot | cut -d: -f2); done; \
             for mount in $(grep -o '{0}[^ ]*' /proc/self/mounts | sort -r); do umount -l $mount; done; \
             ip netns del {1}; rm -rf {0}; \
             find /sys/fs/cgroup -depth -type d -path '*perch-{1}*' -exec rmdir {{}} \\;",
            self.folder.display(),
            self.tag
        );
        Program::new("sh").args(["-c", &script]).output().unwrap();
    }
}

fn open_store(folder: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(folder.join("directory.db"), Arc::new(RealClock)).unwrap())
}

fn enter(namespace: &str) {
    let file = fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(kind)).unwrap();
}

fn run(program: &str, arguments: &[&str]) {
    let output = Program::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn make_image(folder: &Path, testserver: &Path) {
    let tree = folder.join("tree");
    for dir in ["bin", "etc", "tmp", "proc", "dev", "sys", "root"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let busybox = Program::new("which").arg("busybox").output().unwrap();
    let busybox = String::from_utf8(busybox.stdout).unwrap();
    fs::copy(busybox.trim(), tree.join("bin/busybox")).unwrap();
    fs::copy(testserver, tree.join("bin/perch-testserver")).unwrap();
    let list = Program::new(busybox.trim()).arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|one| *one != "busybox") {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    let erofs = folder.join("busybox.erofs");
    run("mkfs.erofs", &["--quiet", erofs.to_str().unwrap(), tree.to_str().unwrap()]);
    fs::remove_dir_all(tree).unwrap();
}

/// A machine of a shell script.
pub(crate) fn machine(number: u64, script: &str) -> CreateMachine {
    let config: MachineConfig = serde_json::from_value(serde_json::json!({
        "image": "busybox:1",
        "init": {"exec": ["sh", "-c", script]},
        "guest": {"memory_mb": 256},
        "restart": {"policy": "no"},
        "rootfs": {"size_gb": 1},
    }))
    .unwrap();
    CreateMachine {
        id: MachineId::from_bits(0x9000 + number),
        instance: InstanceId::from_parts(1_700_000_000_000, u128::from(number)),
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        network_id: 1,
        name: format!("web-{number}"),
        epoch: 1,
        config,
        config_digest: format!("{number}"),
        skip_launch: false,
        cordoned: false,
        secrets: perch_types::host::SecretsWanted::default(),
    }
}

/// Waits for states.
pub(crate) async fn wait(host: &Host, id: &MachineId, states: &str) -> HostMachine {
    let query = WaitQuery { states: states.to_owned(), timeout_ms: 20_000, ..WaitQuery::default() };
    match host.wait(id, &query).await {
        Ok(machine) => machine,
        Err(error) => panic!("{error}: {:#?}", host.get(id)),
    }
}

/// Gives a command that must be accepted.
pub(crate) async fn tell(host: &Host, id: &MachineId, command: Command) -> HostMachine {
    host.command(id, command).await.unwrap().machine
}

/// Runs a shell script in a machine.
pub(crate) async fn exec(host: &Host, id: &MachineId, script: &str) -> Result<String, ApiError> {
    let request = perch_types::api::ExecRequest {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let answer = host.exec(id, request).await?;
    Ok(format!("{}{}", answer.stdout, answer.stderr))
}
