//! The child: leaves its rights behind, unpacks, becomes `mkfs.erofs`.
//!
//! Never reads a byte of a layer before it is in its own namespaces, and never starts a thread.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{
    Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit, umask,
};
use rustix::thread::{
    UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::parent::Answer;
use super::{Fault, Job, MESSAGE_BYTES_MAX, MKFS, MKFS_TIME, READY, layer, mkfs_arguments};

/// The most descriptors the child may hold.
const DESCRIPTORS_MAX: u64 = 1024;
/// The most memory for data the child may use, in bytes.
const DATA_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// Runs as the unpacking child; only [`super::Privilege::Child`] starts it. Must be called while
/// the process has one thread. Speaks on standard input and output.
#[must_use]
pub fn child_main() -> ExitCode {
    let fault = run();
    // When nobody reads any more there is nobody to tell.
    let _told = say(&Answer::Refused(fault));
    ExitCode::FAILURE
}

/// Returns only on a fault: otherwise the process has become `mkfs.erofs`.
fn run() -> Fault {
    match prepare().and_then(|job| layer::unpack(Path::new("."), &job)) {
        Err(fault) => fault,
        Ok(report) => {
            if let Err(error) = say(&Answer::Unpacked(report)) {
                return Fault::io("report", &error);
            }
            let error = Command::new(MKFS)
                .args(mkfs_arguments())
                .env(MKFS_TIME, report.newest_mtime_s.to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .exec();
            Fault::System(format!("run {MKFS}: {error}"))
        }
    }
}

fn prepare() -> Result<Job, Fault> {
    let parent = getppid();
    leave()?;
    let mut output = io::stdout();
    writeln!(output, "{READY}")
        .and_then(|()| output.flush())
        .map_err(|e| Fault::io("speak", &e))?;
    let mut line = String::new();
    io::stdin()
        .lock()
        .take(MESSAGE_BYTES_MAX)
        .read_line(&mut line)
        .map_err(|e| Fault::io("read the job", &e))?;
    let job: Job =
        serde_json::from_str(&line).map_err(|e| Fault::System(format!("read the job: {e}")))?;
    // The parent sent the job after it mapped the ids.
    become_root_of_namespace()?;
    // From here on it dies with its parent, which may be gone already.
    if getppid() != parent {
        return Err(Fault::System("the parent is gone".to_owned()));
    }
    limit(&job)?;
    umask(rustix::fs::Mode::empty());
    Ok(job)
}

#[expect(deprecated, reason = "only sharing descriptors between threads is unsafe; not asked for")]
fn leave() -> Result<(), Fault> {
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS;
    rustix::thread::unshare(flags).map_err(|e| Fault::system("leave the namespaces", e))
}

fn become_root_of_namespace() -> Result<(), Fault> {
    let (gid, uid) = (rustix::process::Gid::ROOT, rustix::process::Uid::ROOT);
    set_thread_groups(&[]).map_err(|e| Fault::system("drop groups", e))?;
    set_thread_res_gid(gid, gid, gid).map_err(|e| Fault::system("change the group", e))?;
    set_thread_res_uid(uid, uid, uid).map_err(|e| Fault::system("change the user", e))?;
    set_no_new_privs(true).map_err(|e| Fault::system("give up new privileges", e))?;
    // After the change of user, which clears it.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Fault::system("bind to the parent", e))
}

fn limit(job: &Job) -> Result<(), Fault> {
    let seconds = job.limits.unpack_timeout.as_secs().max(1);
    let table = [
        (Resource::Core, 0),
        (Resource::Nofile, DESCRIPTORS_MAX),
        (Resource::Cpu, seconds),
        (Resource::Fsize, job.limits.uncompressed_bytes_max),
        (Resource::Data, DATA_BYTES_MAX),
    ];
    for (resource, most) in table {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .map_err(|e| Fault::system("set a limit", e))?;
    }
    Ok(())
}

fn say(answer: &Answer) -> io::Result<()> {
    let mut output = io::stdout();
    let text = serde_json::to_string(answer).map_err(io::Error::other)?;
    writeln!(output, "{text}")?;
    output.flush()
}
