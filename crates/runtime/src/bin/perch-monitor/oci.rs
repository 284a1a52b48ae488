//! The papers of a sandbox in the form that `libcontainer` reads.
//!
//! Never a secret in them: they lie in the run folder as a file.

use perch_runtime::{BootSpec, cgroup::Hierarchies};
use serde_json::{Value, json};

use crate::members::Joined;

/// What root in a machine may do with what belongs to the machine. Less than engines usually
/// give: no device nodes and no entries in the host's audit log.
const CAPABILITIES: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What tells about the host, or reaches it.
const MASKED: [&str; 14] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    // Loop devices name the files of all machines and volumes of the server.
    "/sys/block",
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Returns the papers of a container whose root tree is at `root`: of the first, which makes all
/// namespaces, or of one that joins some of them.
pub(crate) fn config(
    spec: &BootSpec,
    root: &std::path::Path,
    (cgroup, hierarchies): (&std::path::Path, &Hierarchies),
    joined: Option<&Joined>,
) -> Value {
    let files_max = files_max(spec.limits.files_max);
    let ids = json!([{ "containerID": 0, "hostID": spec.ids.first, "size": spec.ids.count }]);
    let namespaces: Vec<Value> = ["user", "pid", "ipc", "uts", "mount", "cgroup", "network"]
        .iter()
        .map(|kind| match joined.and_then(|joined| joined.path(kind)) {
            Some(path) => json!({ "type": kind, "path": path }),
            None => json!({ "type": kind }),
        })
        .collect();
    let mut papers = json!({
        "ociVersion": "1.0.2",
        "root": { "path": root },
        "hostname": spec.hostname,
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["perch-init"],
            "env": [],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
                "inheritable": [],
                "ambient": []
            },
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "soft": files_max, "hard": files_max },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }
            ]
        },
        "mounts": mounts(spec, hierarchies),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": std::path::Path::new("/").join(cgroup),
            // No rules for devices, which on cgroup v1 cost ten milliseconds a start: a device
            // node can be neither made (no CAP_MKNOD, and the user namespace forbids it) nor
            // opened (every mount but /dev is nodev), and /dev holds the harmless ones only.
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "rootfsPropagation": "private"
        }
    });
    if joined.is_none()
        && let Some(linux) = papers.get_mut("linux").and_then(Value::as_object_mut)
    {
        linux.insert("uidMappings".to_owned(), ids.clone());
        linux.insert("gidMappings".to_owned(), ids);
    }
    papers
}

fn mounts(spec: &BootSpec, hierarchies: &Hierarchies) -> Vec<Value> {
    let shared_memory = format!("size={}", spec.limits.memory_bytes / 2);
    let strict = ["nosuid", "noexec", "nodev"];
    let read_only = ["nosuid", "noexec", "nodev", "ro"];
    let mount = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let mut all = vec![
        mount("/proc", "proc", &strict),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shared_memory]),
        mount("/dev/mqueue", "mqueue", &strict),
        mount("/sys", "sysfs", &read_only),
    ];
    // Language runtimes read their limits there. On v1 it would be eight mounts for each machine.
    if matches!(hierarchies, Hierarchies::Unified(_)) {
        all.push(mount("/sys/fs/cgroup", "cgroup", &read_only));
    }
    all
}

/// Returns how many files a process of the machine may open: no more than the monitor itself may
/// allow, because inside a user namespace nobody can raise it.
fn files_max(wanted: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let both = Rlimit { current: Some(wanted), maximum: Some(wanted) };
    let now = getrlimit(Resource::Nofile);
    match now.maximum {
        Some(maximum) if maximum < wanted => {
            if setrlimit(Resource::Nofile, both).is_ok() {
                wanted
            } else {
                maximum
            }
        }
        _ => wanted,
    }
}
