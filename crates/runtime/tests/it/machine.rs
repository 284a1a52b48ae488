//! A machine to test with.
//!
//! Never shares anything with the machine of another test.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perch_runtime::log::{self, Stream};
use perch_runtime::{
    BootSpec, Config, ExecOutput, ExecRequest, ExitStatus, GuestExec, GuestStart, IdRange,
    Instance, Limits, LogLimits, MachineDir, Runtime as _, SandboxRuntime,
};
use perch_testkit::skipped;
use perch_types::{InstanceId, MachineId, Secret};

/// The longest that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
static COUNT: AtomicU64 = AtomicU64::new(1);

pub(crate) fn init_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/perch-init")
}

pub(crate) struct Machine {
    pub(crate) runtime: SandboxRuntime,
    pub(crate) spec: BootSpec,
    pub(crate) folder: tempfile::TempDir,
}

impl Machine {
    /// Makes one, or says what is missing.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|one| Path::new(one).exists());
        if !rustix::process::geteuid().is_root() {
            skipped(test, "root");
            return None;
        }
        let Some(busybox) = busybox else {
            skipped(test, "busybox (Debian package busybox-static)");
            return None;
        };
        if !init_path().exists() {
            skipped(test, "target/guest/perch-init (cargo xtask guest)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        make_tree(&tree, Path::new(busybox));
        let image = folder.path().join("image.erofs");
        run("mkfs.erofs", &["--quiet", path(&image), path(&tree)]);
        let lower = folder.path().join("lower");
        fs::create_dir(&lower).unwrap();
        run("mount", &["-t", "erofs", "-o", "ro", path(&image), path(&lower)]);
        let upper = folder.path().join("upper.ext4");
        fs::File::create(&upper).unwrap().set_len(64 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-O", "^has_journal", path(&upper)]);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let bits = (u64::from(std::process::id()) << 16) | number;
        let machine = MachineId::from_bits(bits);
        let spec = BootSpec {
            instance: InstanceId::from_parts(1, 1),
            boot: 1,
            dir: MachineDir::below(&folder.path().join("s"), &folder.path().join("r"), &machine),
            lower,
            upper,
            scratch: true,
            ids: IdRange { first: 1_000_000, count: 65_536 },
            limits: Limits {
                memory_bytes: 64 << 20,
                files_max: 1024,
                pids_max: 64,
                ..Limits::default()
            },
            hostname: "perchtest".to_owned(),
            mounts: Vec::new(),
            containers: Vec::new(),
            shared: Vec::new(),
            agent: None,
            volumes: Vec::new(),
            log: LogLimits::default(),
            stop_signal: 15,
            stop_grace_ms: 1000,
        };
        let runtime = SandboxRuntime::new(Config {
            monitor: std::env::var_os("PERCH_TEST_MONITOR")
                .unwrap_or_else(|| env!("CARGO_BIN_EXE_perch-monitor").into())
                .into(),
            init: init_path(),
            cgroup: "perch-test".to_owned(),
        });
        Some(Self { runtime, spec, folder })
    }

    pub(crate) async fn runtime_create(&self) -> Box<dyn Instance> {
        self.runtime.create(&self.spec).await.unwrap()
    }

    /// Boots it and starts a shell script as its program.
    pub(crate) async fn boot(&self, script: &str) -> Box<dyn Instance> {
        self.boot_with(shell(script)).await
    }

    pub(crate) async fn boot_with(&self, start: GuestStart) -> Box<dyn Instance> {
        let instance = self.runtime.create(&self.spec).await.unwrap();
        instance.start(start).await.unwrap();
        instance
    }

    /// Boots it, waits for its end and returns its status and standard output.
    pub(crate) async fn run(&self, script: &str) -> (ExitStatus, String) {
        self.run_with(shell(script)).await
    }

    pub(crate) async fn run_with(&self, start: GuestStart) -> (ExitStatus, String) {
        let instance = self.boot_with(start).await;
        let status = wait(&*instance).await;
        (status, self.output(Stream::Stdout))
    }

    pub(crate) fn output(&self, stream: Stream) -> String {
        let records = log::read(&self.spec.dir.log_dir(), 0, log::RECORDS_MAX).unwrap();
        let mut text = String::new();
        for record in records.iter().filter(|one| one.stream == stream) {
            text.push_str(&String::from_utf8_lossy(&record.line));
            text.push('\n');
        }
        text
    }

    /// Waits until the machine has written a line.
    pub(crate) async fn wait_for_output(&self, wanted: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.output(Stream::Stdout).contains(wanted) {
            assert!(
                Instant::now() < deadline,
                "no `{wanted}` in {:?}",
                self.output(Stream::Stdout)
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What a machine must leave behind: nothing.
    pub(crate) fn assert_clean(&self) {
        let id = self.spec.dir.machine.as_str();
        let found = Command::new("find").args(["/sys/fs/cgroup", "-name", id]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
        assert!(!self.spec.dir.socket().exists());
        assert!(!self.spec.dir.boot_file().exists());
        assert!(!self.image_in_use());
    }

    pub(crate) fn image_in_use(&self) -> bool {
        fs::read_dir("/sys/block").unwrap().any(|entry| {
            let file = entry.unwrap().path().join("loop/backing_file");
            fs::read_to_string(file).is_ok_and(|text| Path::new(text.trim()) == self.spec.upper)
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A test that failed half-way leaves its machine running.
        if let Ok(text) = fs::read(self.spec.dir.boot_file())
            && let Ok(info) = serde_json::from_slice::<perch_runtime::InstanceInfo>(&text)
        {
            for one in [info.init, info.monitor] {
                if let Ok(pidfd) = one.open() {
                    perch_runtime::process::kill(&pidfd).unwrap();
                }
            }
            let deadline = Instant::now() + LIMIT;
            let paths =
                perch_runtime::cgroup::Paths::new("perch-test", self.spec.dir.machine.as_str());
            while Instant::now() < deadline
                && !perch_runtime::cgroup::remove_all(&paths).unwrap_or(true)
            {
                std::thread::yield_now();
            }
        }
        Command::new("umount").arg(&self.spec.lower).status().unwrap();
    }
}

pub(crate) async fn wait(instance: &dyn Instance) -> ExitStatus {
    tokio::time::timeout(LIMIT, instance.wait()).await.expect("the machine ends").unwrap()
}

pub(crate) fn shell(script: &str) -> GuestStart {
    GuestStart { argv: ["sh", "-c", script].map(str::to_owned).to_vec(), ..GuestStart::default() }
}

pub(crate) fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, Secret> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), Secret::new(*value))).collect()
}

pub(crate) async fn exec(instance: &dyn Instance, script: &str) -> ExecOutput {
    let request = ExecRequest {
        exec: GuestExec {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..GuestExec::default()
        },
        ..ExecRequest::default()
    };
    instance.exec(request).await.unwrap()
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn make_tree(tree: &Path, busybox: &Path) {
    for dir in ["bin", "etc", "tmp", "proc", "dev", "sys", "home/web"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    let list = Command::new(busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
    }
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/home/web:/bin/sh\n",
    )
    .unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\nweb:x:33:\nextra:x:44:web\n").unwrap();
    fs::write(tree.join("bin/data"), "not a program").unwrap();
}
