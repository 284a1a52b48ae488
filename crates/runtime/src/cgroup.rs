//! The cgroups of a machine and of its monitor, on cgroup v2 and on v1 (hybrid) servers.
//!
//! Never touches a cgroup outside the slice it was given.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::protocol::Stats;
use crate::spec::Limits;
use crate::{Error, process};

/// The period over which a CPU ceiling is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// The controllers whose limits are set.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "freezer"];

/// The cgroups of a boot, relative to the root of every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The machine's own: what is in it is limited, frozen and killed as one.
    pub machine: PathBuf,
    /// The monitors': apart, so that a machine out of memory does not take its monitor along. One
    /// for all of them, because a process cannot remove the cgroup it is in.
    pub monitors: PathBuf,
}

impl Paths {
    /// Names the cgroups of a machine below a slice.
    #[must_use]
    pub fn new(slice: &str, machine: &str) -> Self {
        let slice = Path::new(slice.trim_matches('/'));
        Self { machine: slice.join("machines").join(machine), monitors: slice.join("monitors") }
    }
}

/// How often a machine ran into its limits since its boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Processes that could not be made because there were too many.
    pub forks_refused: u64,
    /// Whether its root file system is full now.
    pub root_full: bool,
    /// Lines that its log could not keep; 0 as well when nothing was written since the last look.
    pub log_dropped: u64,
}

/// The cgroup hierarchies of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchies {
    /// One for all (v2).
    Unified(PathBuf),
    /// One a controller (v1), as pairs of mount point and controllers.
    Legacy(Vec<(PathBuf, Vec<String>)>),
}

impl Hierarchies {
    /// Finds out which there are. A process that found them does not look again: they are there
    /// before anything that makes machines, and the list of mounts is long.
    ///
    /// # Errors
    /// There is no procfs, or no cgroup file system at all.
    pub fn detect() -> Result<Self, Error> {
        static FOUND: OnceLock<Hierarchies> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found.clone());
        }
        let path = "/proc/self/mounts";
        let mounts = fs::read_to_string(path).map_err(Error::file("read", path))?;
        let found = Self::parse(&mounts)
            .ok_or_else(|| Error::file("find", "/sys/fs/cgroup")(io::ErrorKind::NotFound))?;
        Ok(FOUND.get_or_init(|| found).clone())
    }

    fn parse(mounts: &str) -> Option<Self> {
        let mut legacy: Vec<(PathBuf, Vec<String>)> = Vec::new();
        let mut unified = None;
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(at), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if !at.starts_with("/sys/fs/cgroup") {
                continue;
            }
            match kind {
                "cgroup2" => unified = Some(PathBuf::from(at)),
                "cgroup" => {
                    legacy.push((at.into(), options.split(',').map(str::to_owned).collect()));
                }
                _ => {}
            }
        }
        match unified {
            Some(at) if legacy.is_empty() => Some(Self::Unified(at)),
            _ if legacy.is_empty() => None,
            _ => Some(Self::Legacy(legacy)),
        }
    }

    fn roots(&self) -> Vec<&Path> {
        match self {
            Self::Unified(root) => vec![root],
            Self::Legacy(all) => all.iter().map(|(root, _)| root.as_path()).collect(),
        }
    }

    pub(crate) fn of(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::Unified(root) => Some(root),
            Self::Legacy(all) => all
                .iter()
                .find(|(_, controllers)| controllers.iter().any(|one| one == controller))
                .map(|(root, _)| root.as_path()),
        }
    }

    /// Makes a cgroup in every hierarchy that is used here.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(&self, group: &Path) -> Result<(), Error> {
        if let Self::Unified(root) = self {
            let mut at = root.clone();
            for part in group {
                enable(&at);
                at.push(part);
                create_dir(&at)?;
            }
            return Ok(());
        }
        for root in CONTROLLERS.iter().filter_map(|controller| self.of(controller)) {
            let at = root.join(group);
            fs::create_dir_all(&at).map_err(Error::file("create", at))?;
        }
        Ok(())
    }

    /// Moves a process into a cgroup.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&self, group: &Path, pid: Pid) -> Result<(), Error> {
        let pid = pid.as_raw_nonzero().to_string();
        let mut roots: Vec<&Path> =
            CONTROLLERS.iter().filter_map(|controller| self.of(controller)).collect();
        roots.dedup();
        for root in roots {
            write(&root.join(group).join("cgroup.procs"), &pid)?;
        }
        Ok(())
    }

    /// Sets what the processes of a cgroup may use.
    ///
    /// # Errors
    /// The kernel's.
    pub fn limit(&self, group: &Path, limits: &Limits) -> Result<(), Error> {
        let quota_us = limits.cpu_milli.map(|milli| u64::from(milli) * CPU_PERIOD_US / 1000);
        match self {
            Self::Unified(root) => {
                let at = root.join(group);
                write(&at.join("memory.max"), &limits.memory_bytes.to_string())?;
                optional(&at.join("memory.swap.max"), &limits.swap_bytes.to_string())?;
                write(&at.join("pids.max"), &limits.pids_max.to_string())?;
                write(&at.join("cpu.weight"), &limits.cpu_weight.clamp(1, 10_000).to_string())?;
                let quota = quota_us.map_or_else(|| "max".to_owned(), |us| us.to_string());
                write(&at.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))
            }
            Self::Legacy(_) => {
                let memory = limits.memory_bytes.to_string();
                self.set(group, "memory", "memory.limit_in_bytes", &memory)?;
                if let Some(root) = self.of("memory") {
                    let both = limits.memory_bytes.saturating_add(limits.swap_bytes);
                    let file = root.join(group).join("memory.memsw.limit_in_bytes");
                    optional(&file, &both.to_string())?;
                }
                self.set(group, "pids", "pids.max", &limits.pids_max.to_string())?;
                let shares = u64::from(limits.cpu_weight.clamp(1, 10_000)) * 1024 / 100;
                self.set(group, "cpu", "cpu.shares", &shares.max(2).to_string())?;
                if let Some(us) = quota_us {
                    self.set(group, "cpu", "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                    self.set(group, "cpu", "cpu.cfs_quota_us", &us.to_string())?;
                }
                Ok(())
            }
        }
    }

    fn set(&self, group: &Path, controller: &str, file: &str, value: &str) -> Result<(), Error> {
        let root = self.of(controller).ok_or_else(|| {
            Error::file("find the controller", controller)(io::ErrorKind::NotFound)
        })?;
        write(&root.join(group).join(file), value)
    }

    /// Stops or goes on with the processes of a cgroup. They stand still a moment later: see
    /// [`Hierarchies::is_frozen`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn freeze(&self, group: &Path, frozen: bool) -> Result<(), Error> {
        match self {
            Self::Unified(root) => {
                let value = if frozen { "1" } else { "0" };
                write(&root.join(group).join("cgroup.freeze"), value)
            }
            Self::Legacy(_) => {
                let value = if frozen { "FROZEN" } else { "THAWED" };
                self.set(group, "freezer", "freezer.state", value)
            }
        }
    }

    /// Returns whether all processes of a cgroup stand still.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_frozen(&self, group: &Path) -> Result<bool, Error> {
        let read = |file: PathBuf| fs::read_to_string(&file).map_err(Error::file("read", file));
        match self {
            Self::Unified(root) => {
                let text = read(root.join(group).join("cgroup.events"))?;
                Ok(named_number(&text, "frozen") == Some(1))
            }
            Self::Legacy(_) => {
                let root = self.of("freezer").ok_or_else(|| {
                    Error::file("find the controller", "freezer")(io::ErrorKind::NotFound)
                })?;
                Ok(read(root.join(group).join("freezer.state"))?.trim() == "FROZEN")
            }
        }
    }

    /// Returns what the processes of a cgroup use.
    #[must_use]
    pub fn stats(&self, group: &Path) -> Stats {
        let read = |controller: &str, file: &str| {
            self.of(controller).and_then(|root| number(&root.join(group).join(file)))
        };
        let field = |controller: &str, file: &str, name: &str| {
            let text = fs::read_to_string(self.of(controller)?.join(group).join(file)).ok()?;
            named_number(&text, name)
        };
        match self {
            Self::Unified(_) => Stats {
                memory_bytes: read("memory", "memory.current").unwrap_or_default(),
                memory_max_bytes: read("memory", "memory.max").unwrap_or_default(),
                cpu_us: field("cpu", "cpu.stat", "usage_usec").unwrap_or_default(),
                pids: read("pids", "pids.current").unwrap_or_default(),
                oom_kills: field("memory", "memory.events", "oom_kill").unwrap_or_default(),
                log_dropped: 0,
            },
            Self::Legacy(_) => Stats {
                memory_bytes: read("memory", "memory.usage_in_bytes").unwrap_or_default(),
                memory_max_bytes: read("memory", "memory.limit_in_bytes").unwrap_or_default(),
                cpu_us: read("cpuacct", "cpuacct.usage").unwrap_or_default() / 1000,
                pids: read("pids", "pids.current").unwrap_or_default(),
                oom_kills: field("memory", "memory.oom_control", "oom_kill").unwrap_or_default(),
                log_dropped: 0,
            },
        }
    }

    /// Returns the ids of the processes of a cgroup.
    ///
    /// # Errors
    /// When there is no such cgroup.
    pub fn processes(&self, group: &Path) -> Result<Vec<i32>, Error> {
        let root = self
            .of("pids")
            .ok_or_else(|| Error::file("find the controller", "pids")(io::ErrorKind::NotFound))?;
        let at = root.join(group);
        if at.is_dir() {
            Ok(members(&at))
        } else {
            Err(Error::file("read", at)(io::ErrorKind::NotFound))
        }
    }

    /// Returns which limits the processes of a cgroup have run into since it was made.
    #[must_use]
    pub fn pressure(&self, group: &Path) -> Pressure {
        let field = |controller: &str, file: &str, name: &str| {
            let file = self.of(controller)?.join(group).join(file);
            named_number(&fs::read_to_string(file).ok()?, name)
        };
        let memory = match self {
            Self::Unified(_) => "memory.events",
            Self::Legacy(_) => "memory.oom_control",
        };
        Pressure {
            oom_kills: field("memory", memory, "oom_kill").unwrap_or_default(),
            forks_refused: field("pids", "pids.events", "max").unwrap_or_default(),
            ..Pressure::default()
        }
    }

    /// Kills what is in a cgroup, frozen or not.
    ///
    /// # Errors
    /// The kernel's; a cgroup that is not there has nothing in it.
    pub fn kill(&self, group: &Path) -> Result<(), Error> {
        if let Self::Unified(root) = self
            && optional(&root.join(group).join("cgroup.kill"), "1")?
        {
            return Ok(());
        }
        for root in self.roots() {
            let at = root.join(group);
            for pid in members(&at) {
                let Some(id) = Pid::from_raw(pid) else {
                    continue;
                };
                let Ok(pidfd) = pidfd_open(id, PidfdFlags::empty()) else {
                    continue;
                };
                // Still listed after it was opened: it is the one that was listed before.
                if members(&at).contains(&pid) {
                    process::kill(&pidfd).map_err(Error::system("kill a process"))?;
                }
            }
            let state = at.join("freezer.state");
            if state.exists() {
                optional(&state, "THAWED")?;
            }
        }
        Ok(())
    }

    /// Removes a cgroup; returns whether it is gone. One with processes in it is not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self, group: &Path) -> Result<bool, Error> {
        let mut gone = true;
        for root in self.roots() {
            let at = root.join(group);
            match fs::remove_dir(&at) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(16) => gone = false,
                Err(error) => return Err(Error::file("remove", at)(error)),
            }
        }
        Ok(gone)
    }
}

/// Kills what is left in a machine's cgroup and removes it; returns whether it is gone.
///
/// # Errors
/// The kernel's.
pub fn remove_all(paths: &Paths) -> Result<bool, Error> {
    let hierarchies = Hierarchies::detect()?;
    if hierarchies.remove(&paths.machine)? {
        return Ok(true);
    }
    hierarchies.kill(&paths.machine)?;
    hierarchies.remove(&paths.machine)
}

fn members(at: &Path) -> Vec<i32> {
    fs::read_to_string(at.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default()
}

fn create_dir(at: &Path) -> Result<(), Error> {
    match fs::create_dir(at) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::file("create", at)(error))
        }
        _ => Ok(()),
    }
}

/// Passes the controllers on to the children, those that are not yet: to write them waits for what
/// is being taken away below. What cannot be passed shows when a limit is set, with the name of its
/// file.
fn enable(at: &Path) {
    let file = at.join("cgroup.subtree_control");
    let passed = fs::read_to_string(&file).unwrap_or_default();
    for controller in ["cpu", "memory", "pids"] {
        if !passed.split_whitespace().any(|one| one == controller) {
            drop(fs::write(&file, format!("+{controller}")));
        }
    }
}

pub(crate) fn write(file: &Path, value: &str) -> Result<(), Error> {
    fs::write(file, value).map_err(Error::file("write", file))
}

/// Writes a file that need not be there; returns whether it was.
pub(crate) fn optional(file: &Path, value: &str) -> Result<bool, Error> {
    match fs::OpenOptions::new().write(true).open(file) {
        Ok(_) => write(file, value).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::file("open", file)(error)),
    }
}

pub(crate) fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

pub(crate) fn named_number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        if key == name { value.trim().parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_v1_controllers_is_legacy_and_one_without_unified() {
        let pure = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(Hierarchies::parse(pure), Some(Hierarchies::Unified("/sys/fs/cgroup".into())));
        let hybrid = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = Hierarchies::parse(hybrid).unwrap();
        assert_eq!(found.of("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.of("memory"), None);
        assert_eq!(Hierarchies::parse("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn named_numbers_are_found() {
        let text = "low 0\noom 3\noom_kill 2\n";
        assert_eq!(named_number(text, "oom_kill"), Some(2));
        assert_eq!(named_number(text, "kill"), None);
    }
}
