//! The OCI configuration of a cage: what a build is locked into.
//!
//! Never touches the system: a value in, a JSON document out.
//!
//! The cage is a container of `runc` whose root is an empty read-only folder with the host's
//! `/usr` bound read-only into it. It has its own user, mount, pid, ipc, uts, cgroup and network
//! namespaces. Its root user is an ordinary id on the host ([`BUILD_IDS_FIRST`]), so even a build
//! that gets out of the build tool's own chroot owns nothing but the folders bound here.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::{BUILD_IDS, BUILD_IDS_FIRST, Limits};

/// What the build tool needs inside its own user namespace: to mount, to change the root and to
/// give files their owners. All of it counts only inside; `NET_ADMIN`, `NET_RAW`, `SYS_PTRACE`
/// and the rest are not even there. What runs in `RUN` gets fewer still, from the build tool.
const CAPABILITIES: [&str; 13] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
];

/// System calls that nothing in a build needs and that have been the way into kernels.
const REFUSED_CALLS: [&str; 21] = [
    "add_key",
    "bpf",
    "delete_module",
    "finit_module",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "open_by_handle_at",
    "perf_event_open",
    "process_vm_writev",
    "quotactl",
    "reboot",
    "request_key",
    "swapoff",
    "swapon",
    "userfaultfd",
];

/// A folder or file of the host that the cage sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: &'static str,
    pub(crate) writable: bool,
}

impl Bind {
    pub(crate) fn read_only(source: impl Into<PathBuf>, target: &'static str) -> Self {
        Self { source: source.into(), target, writable: false }
    }

    pub(crate) fn writable(source: impl Into<PathBuf>, target: &'static str) -> Self {
        Self { source: source.into(), target, writable: true }
    }
}

/// What varies between cages.
#[derive(Debug)]
pub(crate) struct Spec<'a> {
    pub(crate) root: &'a Path,
    pub(crate) cgroup: &'a str,
    pub(crate) limits: &'a Limits,
    pub(crate) script: &'a str,
    pub(crate) arguments: &'a [String],
    pub(crate) environment: &'a [(String, String)],
    pub(crate) binds: &'a [Bind],
}

/// Folders that a cage's root must have for [`document`] to be mounted on.
pub(crate) const ROOT_FOLDERS: [&str; 8] =
    ["dev", "etc", "proc", "run", "sys", "tmp", "usr", "var"];
/// Folders of the root that binds may be put on.
pub(crate) const BIND_FOLDERS: [&str; 4] = ["context", "store", "stage", "input"];
/// Links of the root, to their targets.
pub(crate) const ROOT_LINKS: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")];

/// Returns `config.json`.
pub(crate) fn document(spec: &Spec<'_>) -> Value {
    let mut arguments =
        vec!["/bin/sh".to_owned(), "-c".to_owned(), spec.script.to_owned(), "sh".to_owned()];
    arguments.extend_from_slice(spec.arguments);
    let mut environment: Vec<String> =
        spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    environment
        .push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    environment.push("LC_ALL=C.UTF-8".to_owned());
    let ids = json!([{ "containerID": 0, "hostID": BUILD_IDS_FIRST, "size": BUILD_IDS }]);
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "user", "cgroup"];
    json!({
        "ociVersion": "1.0.2",
        "hostname": "build",
        "root": { "path": spec.root, "readonly": true },
        "process": {
            "terminal": false,
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": environment,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "mounts": mounts(spec.binds),
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "namespaces": namespaces.map(|kind| json!({ "type": kind })),
            "cgroupsPath": spec.cgroup,
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                "memory": { "limit": spec.limits.memory_bytes },
                "cpu": { "quota": u64::from(spec.limits.cpu_millicores) * 100, "period": 100_000 },
                "pids": { "limit": spec.limits.pids_max },
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": REFUSED_CALLS, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
            },
            "maskedPaths": [
                "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
                "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

fn mounts(binds: &[Bind]) -> Vec<Value> {
    let memory = |target: &str, mode: &str| {
        json!({ "destination": target, "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "nodev", mode] })
    };
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc",
                "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=16m"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=64m"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"] }),
        memory("/tmp", "mode=1777"),
        memory("/run", "mode=755"),
        memory("/var", "mode=755"),
        json!({ "destination": "/usr", "type": "bind", "source": "/usr",
                "options": ["rbind", "nosuid", "nodev", "ro"] }),
    ];
    for bind in binds {
        let access = if bind.writable { "rw" } else { "ro" };
        mounts.push(json!({ "destination": bind.target, "type": "bind", "source": bind.source,
                            "options": ["rbind", "nosuid", "nodev", access] }));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_bound_for_writing_can_be_written() {
        let binds = [Bind::read_only("/a", "/context"), Bind::writable("/b", "/store")];
        let limits = Limits::default();
        let spec = Spec {
            root: Path::new("/r"),
            cgroup: "/g",
            limits: &limits,
            script: "true",
            arguments: &[],
            environment: &[],
            binds: &binds,
        };
        let document = document(&spec);
        let mounts = document["mounts"].as_array().unwrap();
        for mount in mounts.iter().filter(|mount| mount["type"] == "bind") {
            let writable = !mount["options"].as_array().unwrap().contains(&json!("ro"));
            assert_eq!(writable, mount["destination"] == "/store", "{mount}");
        }
        assert_eq!(document["linux"]["uidMappings"][0]["hostID"], json!(BUILD_IDS_FIRST));
        assert_eq!(document["root"]["readonly"], json!(true));
    }
}
