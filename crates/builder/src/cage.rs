//! Runs one phase of a build in a cage and hands on what it prints.
//!
//! Never runs anything of a user outside of the cage, and never leaves one behind: however a
//! phase ends, its pid namespace is killed whole and its cgroup removed before this returns.
//!
//! ```text
//! runc run --keep ──▶ sh waits at the gate ──▶ cable and window are put in ──▶ gate opens
//!      └─ ends, is killed (time, client gone) ──▶ out-of-memory count read ──▶ runc delete
//! ```

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::{Config, LINE_BYTES_MAX};
use crate::disk::{make_folder, remove, text};
use crate::error::Error;
use crate::gateway::{self, Registry, Window};
use crate::network;
use crate::program;
use crate::spec::{self, Bind, Spec};

/// How long a cage may take to come up to its gate.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the wait for the end of a killed cage may take.
const END_TIME_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// Bytes of what the container program says about itself.
const COMPLAINT_BYTES_MAX: u64 = 4000;
/// What the build tool insists on reading, though its command line says the same.
const STORAGE: &str = "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers\"\ngraphroot = \"/store/graph\"\n";
/// The first words of every script: nothing happens before the walls are whole.
const GATE: &str = "read -r gate || exit 125\nexec 2>&1\nset -eu\n";

/// One phase of a build.
#[derive(Debug)]
pub(crate) struct Phase<'a> {
    /// A word for its files.
    pub(crate) name: &'a str,
    /// Which of the builder's slots it runs in.
    pub(crate) slot: usize,
    /// What runs, as a shell script.
    pub(crate) script: &'a str,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) binds: Vec<Bind>,
    /// Whether it reaches the internet.
    pub(crate) internet: bool,
    /// Whether it reaches the registry, and how far.
    pub(crate) window: Option<(Registry, Window)>,
    pub(crate) time_max: Duration,
}

/// How a phase ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code; `None` if it was killed.
    pub(crate) code: Option<i32>,
    /// A process in it was killed for want of memory.
    pub(crate) out_of_memory: bool,
    /// It took longer than it may.
    pub(crate) timed_out: bool,
}

/// Makes the root folder that all cages share, and lays down cages that an earlier builder left.
pub(crate) async fn prepare(config: &Config) -> Result<(), Error> {
    let root = config.run_dir.join("root");
    make_folder(&config.run_dir)?;
    make_folder(&root)?;
    for name in spec::ROOT_FOLDERS.iter().chain(&spec::BIND_FOLDERS) {
        make_folder(&root.join(name))?;
    }
    for (name, target) in spec::ROOT_LINKS {
        let link = root.join(name);
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(target, &link).map_err(Error::file("create", link))?;
        }
    }
    let state = config.data_dir.join("runc");
    make_folder(&state)?;
    let left = program::run("runc", &["--root", text(&state)?, "list", "--quiet"], "").await?;
    for id in left.split_whitespace() {
        program::run("runc", &["--root", text(&state)?, "delete", "--force", id], "").await?;
    }
    remove(&config.data_dir.join("cages"))
}

/// Removes what all cages share. None may run.
pub(crate) fn dismantle(config: &Config) -> Result<(), Error> {
    remove(&config.run_dir)?;
    for folder in cgroup_folders(config, "") {
        // Only there where the kernel has the controller; empty once no cage runs.
        let _absent = fs::remove_dir(folder);
    }
    Ok(())
}

/// Runs a phase. Its lines go to `lines`; when nobody takes them any more, it is killed.
///
/// # Errors
/// The cage could not be built, or nobody took its lines.
pub(crate) async fn run(
    config: &Config,
    phase: Phase<'_>,
    lines: mpsc::Sender<String>,
) -> Result<Exit, Error> {
    let id = format!("{}-{}-{}", config.instance, phase.slot, phase.name);
    let bundle = config.data_dir.join("cages").join(&id);
    let state = config.data_dir.join("runc");
    write_bundle(config, &phase, &id, &bundle)?;
    let outcome = drive(config, &phase, &bundle, &id, lines).await;
    let out_of_memory = out_of_memory(config, &id);
    let deleted =
        program::run("runc", &["--root", text(&state)?, "delete", "--force", &id], "").await;
    remove(&bundle)?;
    let (status, timed_out) = outcome?;
    deleted?;
    Ok(Exit { code: status.and_then(|status| status.code()), out_of_memory, timed_out })
}

async fn drive(
    config: &Config,
    phase: &Phase<'_>,
    bundle: &Path,
    id: &str,
    lines: mpsc::Sender<String>,
) -> Result<(Option<ExitStatus>, bool), Error> {
    let pid_file = bundle.join("pid");
    let complaint = bundle.join("complaint");
    let stderr = fs::File::create(&complaint).map_err(Error::file("create", &complaint))?;
    let state = config.data_dir.join("runc");
    let mut child = Command::new("runc")
        .args(["--root", text(&state)?, "run", "--keep", "--bundle", text(bundle)?, "--pid-file"])
        .args([text(&pid_file)?, id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Error::Spawn { program: "runc", source })?;
    let pid = started(&mut child, &pid_file, &complaint).await?;
    if phase.internet {
        network::attach(config, phase.slot, pid).await?;
    }
    let _window = match &phase.window {
        Some((registry, window)) => {
            Some(AbortOnDrop(gateway::open(pid, registry.clone(), window.clone()).await?))
        }
        None => None,
    };
    if let Some(mut gate) = child.stdin.take() {
        gate.write_all(b"\n").await.map_err(|error| Error::Cage(error.to_string()))?;
    }
    let Some(stdout) = child.stdout.take() else {
        return Err(Error::Cage("its output is not there".to_owned()));
    };
    tokio::select! {
        () = pump(stdout, &lines) => {
            // Its output ends when the last process in it has: the wait is short.
            let status = tokio::time::timeout(END_TIME_MAX, child.wait()).await;
            Ok((status.ok().and_then(Result::ok), false))
        }
        () = lines.closed() => Err(Error::Abandoned),
        () = tokio::time::sleep(phase.time_max) => Ok((None, true)),
    }
}

/// Ends the registry's window with the phase.
#[derive(Debug)]
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until the cage stands at its gate and returns its first process, as the host counts.
async fn started(child: &mut Child, pid_file: &Path, complaint: &Path) -> Result<u32, Error> {
    let deadline = Instant::now() + START_TIME_MAX;
    loop {
        let pid = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid {
            return Ok(pid);
        }
        let ended = child.try_wait().ok().flatten().is_some();
        if ended || Instant::now() > deadline {
            let said = fs::read(complaint).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let cut = usize::try_from(COMPLAINT_BYTES_MAX).unwrap_or(usize::MAX);
            return Err(Error::Cage(said.trim().chars().take(cut).collect()));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn pump(mut stdout: ChildStdout, lines: &mpsc::Sender<String>) {
    let mut splitter = Splitter::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = stdout.read(&mut buffer).await.unwrap_or(0);
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        for line in splitter.feed(bytes) {
            if lines.send(line).await.is_err() {
                return;
            }
        }
    }
    if let Some(line) = splitter.rest() {
        // Nobody takes it: the phase has ended anyway.
        let _late = lines.send(line).await;
    }
}

/// Cuts a stream of bytes into lines of at most [`LINE_BYTES_MAX`].
#[derive(Debug, Default)]
struct Splitter {
    line: Vec<u8>,
}

impl Splitter {
    fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                lines.extend(self.take());
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            }
        }
        lines
    }

    fn rest(&mut self) -> Option<String> {
        if self.line.is_empty() { None } else { self.take() }
    }

    /// Returns the line; of one that a progress bar wrote over and over, what it wrote last.
    fn take(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\r');
        Some(text.rsplit('\r').next().unwrap_or_default().to_owned())
    }
}

fn write_bundle(config: &Config, phase: &Phase<'_>, id: &str, bundle: &Path) -> Result<(), Error> {
    remove(bundle)?;
    make_folder(bundle)?;
    let etc = bundle.join("etc");
    write_etc(config, &etc)?;
    let mut binds = vec![Bind::read_only(&etc, "/etc")];
    binds.extend(phase.binds.iter().cloned());
    let script = format!("{GATE}{}", phase.script);
    let document = spec::document(&Spec {
        root: &config.run_dir.join("root"),
        cgroup: &cgroup(config, id),
        limits: &config.limits,
        script: &script,
        arguments: &phase.arguments,
        environment: &phase.environment,
        binds: &binds,
    });
    let path = bundle.join("config.json");
    fs::write(&path, document.to_string()).map_err(Error::file("write", path))
}

/// Writes the cage's `/etc`: nothing of the host but its resolvers and its certificates.
fn write_etc(config: &Config, etc: &Path) -> Result<(), Error> {
    let put = |path: &str, content: &str| {
        let path = etc.join(path);
        fs::write(&path, content).map_err(Error::file("write", path))
    };
    for folder in
        ["containers", "ssl/certs", "apt/apt.conf.d", "apt/preferences.d", "apt/trusted.gpg.d"]
    {
        let path = etc.join(folder);
        fs::create_dir_all(&path).map_err(Error::file("create", path))?;
    }
    let resolvers: String = network::resolvers()
        .iter()
        .map(|address: &Ipv4Addr| format!("nameserver {address}\n"))
        .collect();
    put("resolv.conf", &resolvers)?;
    put("hostname", "build\n")?;
    put("hosts", "127.0.0.1 localhost build\n::1 localhost\n")?;
    put(
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    )?;
    put("group", "root:x:0:\nnogroup:x:65534:\n")?;
    put("containers/policy.json", "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}\n")?;
    put("containers/storage.conf", STORAGE)?;
    put("containers/registries.conf", &registries())?;
    let bundle = etc.join("ssl/certs/ca-certificates.crt");
    fs::copy(&config.ca_bundle, &bundle).map_err(Error::file("copy", &config.ca_bundle))?;
    Ok(())
}

/// Names that need no registry of the internet are looked for at the platform's first.
fn registries() -> String {
    let port = gateway::PORT;
    format!(
        "unqualified-search-registries = [\"docker.io\"]
short-name-mode = \"disabled\"
[[registry]]
prefix = \"docker.io\"
location = \"docker.io\"
[[registry.mirror]]
location = \"127.0.0.1:{port}/base\"
insecure = true
[[registry]]
prefix = \"registry.internal\"
location = \"127.0.0.1:{port}\"
insecure = true
"
    )
}

fn cgroup(config: &Config, id: &str) -> String {
    format!("/{}/{id}", config.instance)
}

/// Returns where a cage's cgroup may be: under every controller (v1) and at the root (v2).
fn cgroup_folders(config: &Config, id: &str) -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let name = cgroup(config, id);
    let name = name.trim_matches('/');
    let mut folders = vec![base.join(name)];
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        folders.push(entry.path().join(name));
    }
    folders
}

fn out_of_memory(config: &Config, id: &str) -> bool {
    cgroup_folders(config, id)
        .iter()
        .flat_map(|folder| [folder.join("memory.events"), folder.join("memory.oom_control")])
        .filter_map(|path| fs::read_to_string(path).ok())
        .any(|text| killed_for_memory(&text))
}

fn killed_for_memory(counts: &str) -> bool {
    counts
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_lines_however_they_are_cut() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.feed(b"one\ntw"), ["one"]);
        assert_eq!(splitter.feed(b"o\r\n10%\r20%\r100%\n\nrest"), ["two", "100%", ""]);
        assert_eq!(splitter.rest().as_deref(), Some("rest"));
        assert_eq!(splitter.rest(), None);
        let long = vec![b'x'; LINE_BYTES_MAX * 3];
        splitter.feed(&long);
        assert_eq!(splitter.rest().map(|line| line.len()), Some(LINE_BYTES_MAX));
    }

    #[test]
    fn a_kill_for_memory_is_read_from_both_kinds_of_cgroup() {
        assert!(killed_for_memory("low 0\noom 1\noom_kill 2\noom_group_kill 0\n"));
        assert!(killed_for_memory("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"));
        assert!(!killed_for_memory("oom_kill_disable 1\noom_kill 0\n"));
    }
}
