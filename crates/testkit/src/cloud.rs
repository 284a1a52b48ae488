//! A real server in a network namespace of its own.
//!
//! Never shares anything with another cloud: folders, ports, cgroups and interfaces carry its
//! name, and [`Cloud::finish`] looks that nothing of it is left.

mod survive;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::survive::{Caller, Moment};
use crate::http::{self, Answer};
use crate::{image, skipped, wait_for};

/// How long a server may take to be ready, on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// How long it may take to end.
const END: Duration = Duration::from_secs(30);
/// The user of the process that faces the network.
const FRONT_USER: &str = "64007";
/// The user of the process that holds the master key.
const KEYS_USER: &str = "64009";

/// How a cloud differs from the ordinary.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// More arguments of `perchd serve`.
    pub arguments: Vec<String>,
    /// Stay in the network namespace of the caller; only for measurements and real builds.
    pub shared_network: bool,
    /// Keep the server's folder on a disk of that many MiB.
    pub disk_mb: Option<u32>,
}

/// A server and what is needed to talk to it.
#[derive(Debug)]
pub struct Cloud {
    folder: TempDir,
    instance: String,
    programs: PathBuf,
    guest: PathBuf,
    options: Options,
    server: Option<Child>,
    /// Where the API is.
    pub api: SocketAddr,
    /// Where the edge is.
    pub edge: SocketAddr,
    /// The administrator's token.
    pub token: String,
    /// What `perch auth login` takes from outside; empty without `--api-tls`.
    pub outside: String,
}

impl Cloud {
    /// Starts a server, or says that `test` is skipped and why.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(test: &str) -> Result<Option<Self>> {
        Self::start_with(test, Options::default())
    }

    /// Starts a server that differs from the ordinary.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_with(test: &str, options: Options) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            skipped(test, "root");
            return Ok(None);
        }
        let (programs, guest) = programs()?;
        if !options.shared_network {
            own_network()?;
        }
        let folder = tempfile::Builder::new().prefix("pt").tempdir().context("make a folder")?;
        let instance = format!(
            "t{}",
            folder
                .path()
                .to_string_lossy()
                .chars()
                .rev()
                .take(6)
                .collect::<String>()
                .to_lowercase()
        );
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut cloud = Self {
            folder,
            instance,
            programs,
            guest,
            options,
            server: None,
            api: nowhere,
            edge: nowhere,
            token: String::new(),
            outside: String::new(),
        };
        if let Some(mb) = cloud.options.disk_mb {
            cloud.mount_disk(mb)?;
        }
        cloud.boot()?;
        Ok(Some(cloud))
    }

    /// Starts the server again after [`Cloud::kill`] or [`Cloud::stop`], at the same ports.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the server runs");
        let mut server = self
            .perchd("serve")
            .args(["--api", &self.api.to_string(), "--http", &self.edge.to_string()])
            .args(&self.options.arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::from(self.log_file()?))
            .spawn()
            .context("start perchd")?;
        let stdout = server.stdout.take().context("read perchd's output")?;
        self.server = Some(server);
        let (sender, receiver) = sync_channel(64);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let has_outside = self.options.arguments.iter().any(|argument| argument == "--api-tls");
        loop {
            let Ok(line) = receiver.recv_timeout(READY) else {
                bail!("perchd is not ready; its log:\n{}", self.server_log());
            };
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                // With HTTPS, plain HTTP has a line of its own.
                (Some("apps" | "over"), Some(_)) => {
                    let port = line.rsplit(':').next().and_then(|port| port.parse().ok());
                    self.edge.set_port(port.context("read the edge's port")?);
                }
                (Some("data"), Some(_)) if !has_outside => break,
                (Some("from"), Some("outside")) => {
                    self.outside = words.next_back().unwrap_or_default().to_owned();
                    break;
                }
                _ => {}
            }
        }
        let admin: Value = serde_json::from_slice(
            &fs::read(self.data().join("admin.json")).context("read admin.json")?,
        )?;
        self.token = admin["token"].as_str().unwrap_or_default().to_owned();
        let url = admin["url"].as_str().unwrap_or_default();
        self.api = url.trim_start_matches("http://").parse().context("read the API's address")?;
        Ok(())
    }

    /// Ends the server politely; machines run on.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(rustix::process::Signal::TERM)?;
        self.reap()
    }

    /// Kills the supervisor with SIGKILL, and waits until its processes are gone too; machines
    /// run on.
    ///
    /// # Errors
    /// When a process does not end.
    pub fn kill(&mut self) -> Result<()> {
        let children = self.role_pids();
        self.signal(rustix::process::Signal::KILL)?;
        self.reap()?;
        wait_for("the server's processes to end", END, || {
            children
                .iter()
                .all(|(_, pid)| !Path::new(&format!("/proc/{pid}")).is_dir())
                .then_some(())
        })
    }

    /// Kills one process of the server with SIGKILL and waits until another one took its place.
    ///
    /// # Errors
    /// When there is no such process, or none comes back.
    pub fn kill_role(&self, role: &str) -> Result<()> {
        let pid_of = || self.role_pids().into_iter().find(|(name, _)| name == role);
        let (_, pid) = pid_of().with_context(|| format!("find the {role} process"))?;
        let raw = rustix::process::Pid::from_raw(pid).context("read a process id")?;
        rustix::process::kill_process(raw, rustix::process::Signal::KILL).context("kill")?;
        wait_for("the process to come back", READY, || {
            pid_of().filter(|(_, new)| *new != pid).map(|_| ())
        })
    }

    /// Returns the ids of the server's processes by role.
    #[must_use]
    pub fn role_pids(&self) -> Vec<(String, i32)> {
        let Some(server) = self.server.as_ref().map(Child::id) else {
            return Vec::new();
        };
        let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
        children
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
                let role = words.iter().position(|word| *word == b"role").map(|at| at + 1)?;
                let role = String::from_utf8_lossy(words.get(role)?).into_owned();
                Some((role, pid.parse().ok()?))
            })
            .collect()
    }

    /// Returns the server's folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.disk().join("d")
    }

    fn disk(&self) -> PathBuf {
        match self.options.disk_mb {
            Some(_) => self.folder.path().join("disk"),
            None => self.folder.path().to_owned(),
        }
    }

    fn mount_disk(&self, mb: u32) -> Result<()> {
        fs::create_dir(self.disk()).context("make a folder")?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mb}m,mode=755"), "tmpfs"])
            .arg(self.disk())
            .status()
            .context("run mount")?;
        ensure!(status.success(), "mount a small disk");
        Ok(())
    }

    /// Makes the server's own disk just so large that `bytes` of it are free.
    ///
    /// # Errors
    /// When it has none, or cannot be made so.
    pub fn leave_free(&self, bytes: u64) -> Result<()> {
        ensure!(self.options.disk_mb.is_some(), "the server has no disk of its own");
        // It is refused when more was written since the disk was measured.
        wait_for("the disk to be that full", END, || {
            let found = rustix::fs::statvfs(self.disk()).ok()?;
            let used = found.f_blocks.saturating_sub(found.f_bfree);
            let size = used.saturating_mul(found.f_frsize).saturating_add(bytes);
            let resized = Command::new("mount")
                .args(["-o", &format!("remount,size={size}")])
                .arg(self.disk())
                .output()
                .ok()?;
            resized.status.success().then_some(())
        })
    }

    /// Returns the folder of the programs that run inside machines.
    #[must_use]
    pub fn guest(&self) -> &Path {
        &self.guest
    }

    /// Returns the name that interfaces and cgroups of this server carry.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Returns the whole log of the server.
    #[must_use]
    pub fn server_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Returns the server's program.
    #[must_use]
    pub fn perchd_program(&self) -> PathBuf {
        self.programs.join("perchd")
    }

    /// Returns a command of the CLI that talks to this server.
    #[must_use]
    pub fn perch(&self) -> Command {
        let mut command = Command::new(self.programs.join("perch"));
        command
            .env("PERCH_API_URL", format!("http://{}", self.api))
            .env("PERCH_API_TOKEN", &self.token)
            .env("PERCH_CONFIG_DIR", self.folder.path().join("cli"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs the CLI and returns what it printed, standard error after standard output.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<(bool, String)> {
        let Output { status, stdout, stderr } =
            self.perch().args(arguments).output().context("run perch")?;
        let text = [stdout, stderr].concat();
        Ok((status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// Calls the API as the administrator.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Result<Answer> {
        let authorization = format!("Bearer {}", self.token);
        let fields = [
            ("Host", "api"),
            ("Authorization", authorization.as_str()),
            ("Content-Type", "application/json"),
        ];
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        http::request(self.api, method, path, &fields, &body)
    }

    /// Calls the API and expects success.
    ///
    /// # Errors
    /// When no answer comes, or one above 299.
    pub fn must(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let answer = self.call(method, path, body)?;
        ensure!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.text());
        Ok(answer.json())
    }

    /// Asks an app through the edge.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn get(&self, app: &str, target: &str) -> Result<Answer> {
        let host = format!("{app}.perch.localhost");
        http::request(self.edge, "GET", target, &[("Host", &host)], b"")
    }

    /// Makes an app with an image of the test server that is started with `cmd`; returns the
    /// image's reference.
    ///
    /// # Errors
    /// When the app cannot be made or the image not pushed.
    pub fn app(&self, app: &str, cmd: &[&str]) -> Result<String> {
        self.must("POST", "/v1/apps", &json!({"name": app, "org_slug": "personal"}))?;
        self.push(app, "latest", cmd)
    }

    /// Pushes an image of the test server to an app's repository.
    ///
    /// # Errors
    /// When it cannot be made or pushed.
    pub fn push(&self, app: &str, tag: &str, cmd: &[&str]) -> Result<String> {
        let folder = tempfile::tempdir().context("make a folder")?;
        image::layout(folder.path(), &self.guest.join("perch-testserver"), cmd)?;
        self.push_layout(app, tag, folder.path())
    }

    /// Makes an app and a machine of it that has a shell and runs `script`; returns the machine's
    /// id, or says that `test` is skipped.
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn shell(&self, test: &str, app: &str, script: &str) -> Result<Option<String>> {
        let folder = tempfile::tempdir().context("make a folder")?;
        if !image::shell_layout(folder.path(), script)? {
            skipped(test, "busybox (Debian package busybox-static)");
            return Ok(None);
        }
        self.must("POST", "/v1/apps", &json!({"name": app, "org_slug": "personal"}))?;
        let image = self.push_layout(app, "latest", folder.path())?;
        self.machine(app, &json!({"image": image}), "started").map(Some)
    }

    fn push_layout(&self, app: &str, tag: &str, layout: &Path) -> Result<String> {
        let output = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false", "--dest-creds"])
            .arg(format!("x:{}", self.token))
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{}/{app}:{tag}", self.api))
            .output()
            .context("run skopeo")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(format!("registry.internal/{app}:{tag}"))
    }

    /// Creates a machine and waits until it is in `state`.
    ///
    /// # Errors
    /// When it is refused or does not get there.
    pub fn machine(&self, app: &str, config: &Value, state: &str) -> Result<String> {
        let path = format!("/v1/apps/{app}/machines");
        let machine = self.must("POST", &path, &json!({"config": config}))?;
        let id = machine["id"].as_str().context("read the machine's id")?.to_owned();
        self.reaches(app, &id, state)?;
        Ok(id)
    }

    /// Waits until a machine is in a state.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn reaches(&self, app: &str, id: &str, state: &str) -> Result<()> {
        let path = format!("/v1/apps/{app}/machines/{id}/wait?state={state}&timeout=30");
        self.must("GET", &path, &Value::Null).map(|_| ())
    }

    /// Returns a machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn machine_of(&self, app: &str, id: &str) -> Result<Value> {
        self.must("GET", &format!("/v1/apps/{app}/machines/{id}"), &Value::Null)
    }

    /// Returns the lines of a machine's log, oldest first.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn log(&self, app: &str, id: &str) -> Result<Vec<String>> {
        let path = format!("/v1/apps/{app}/machines/{id}/logs");
        let answer = self.call("GET", &path, &Value::Null)?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(answer
            .text()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|record| record["message"].as_str().map(str::to_owned))
            .collect())
    }

    /// Ends the server, takes everything away and looks that nothing of it is left.
    ///
    /// # Errors
    /// When something is left: a mount, an interface, a cgroup, a process.
    pub fn finish(mut self) -> Result<()> {
        self.take_away()?;
        let left = self.left_behind()?;
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    }

    fn take_away(&mut self) -> Result<()> {
        if self.server.is_some() {
            self.stop()?;
        }
        let output = self.perchd("remove").arg("--yes").output().context("run perchd remove")?;
        ensure!(
            output.status.success(),
            "perchd remove: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        if self.options.disk_mb.is_some() {
            let status = Command::new("umount").arg(self.disk()).status().context("run umount")?;
            ensure!(status.success(), "unmount the small disk");
        }
        Ok(())
    }

    fn left_behind(&self) -> Result<Vec<String>> {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let mut left: Vec<String> = fs::read_to_string("/proc/mounts")
            .context("read the mounts")?
            .lines()
            .filter(|line| line.contains(&folder))
            .map(str::to_owned)
            .collect();
        for pid in fs::read_dir("/proc").context("list processes")?.flatten() {
            let line = fs::read(pid.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&folder) {
                left.push(format!("process {}: {line}", pid.file_name().to_string_lossy()));
            }
        }
        let cgroups = Command::new("find")
            .args(["/sys/fs/cgroup", "-type", "d", "-name"])
            .arg(format!("*{}*", self.instance))
            .output()
            .context("list cgroups")?;
        left.extend(String::from_utf8_lossy(&cgroups.stdout).lines().map(str::to_owned));
        let loops = Command::new("losetup").arg("-a").output().context("list loop devices")?;
        left.extend(
            String::from_utf8_lossy(&loops.stdout)
                .lines()
                .filter(|line| line.contains(&folder))
                .map(str::to_owned),
        );
        Ok(left)
    }

    fn perchd(&self, command: &str) -> Command {
        let mut perchd = Command::new(self.programs.join("perchd"));
        perchd
            .arg(command)
            .arg("--data-dir")
            .arg(self.data())
            .arg("--run-dir")
            .arg(self.folder.path().join("r"))
            .args(["--instance", &self.instance, "--user", FRONT_USER])
            .args(["--keys-user", KEYS_USER])
            .arg("--guest-dir")
            .arg(&self.guest)
            .stdin(Stdio::null());
        perchd
    }

    fn log_file(&self) -> Result<fs::File> {
        fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .context("open the server's log")
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let server = self.server.as_ref().context("the server does not run")?;
        let pid = i32::try_from(server.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("read a process id")?, signal)
            .context("signal perchd")
    }

    fn reap(&mut self) -> Result<()> {
        let mut server = self.server.take().context("the server does not run")?;
        wait_for("perchd to end", END, || server.try_wait().ok().flatten()).map(|_| ())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // A test that failed: nothing may stay behind, and its own error is what counts.
        if self.data().join("perchd.lock").exists() && self.server.is_some() {
            self.take_away().ok();
        }
    }
}

fn programs() -> Result<(PathBuf, PathBuf)> {
    let test = std::env::current_exe().context("find this program")?;
    let programs = test
        .ancestors()
        .find(|folder| folder.join("perchd").is_file())
        .with_context(|| format!("find perchd above `{}`: build it first", test.display()))?
        .to_owned();
    let guest = programs.join("../guest");
    ensure!(
        guest.join("perch-testserver").is_file(),
        "`{}` has no guest programs: run `cargo xtask guest`",
        guest.display()
    );
    Ok((programs, guest.canonicalize().context("find the guest programs")?))
}

/// Moves this thread, and every process it starts, into a new network namespace with a loopback.
fn own_network() -> Result<()> {
    #[expect(deprecated, reason = "the flag is only that of the network, which is safe to leave")]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET)
        .context("make a network namespace")?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    ensure!(status.success(), "bring the loopback up");
    Ok(())
}
