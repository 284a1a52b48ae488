//! The end of a boot, in an order that leaves nothing behind.
//!
//! Never reports the end before the root tree, the cgroup and the socket are gone: whoever hears
//! of it may boot the machine again at once.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use perch_runtime::{Error, ExitStatus};
use perch_types::guest::Ended;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::os::fd::AsFd as _;

use super::{Life, status_of};
use crate::mounts::Root;
use crate::shared::{Phase, Shared};
use crate::{clock, words};

/// How long the cgroup may take to become empty, in milliseconds.
const CGROUP_TIMEOUT_MS: u64 = 5_000;
/// How long agents may take to hear the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// The most turns of reading what the outputs still hold: a pipe holds 64 KiB.
const LAST_PIECES_MAX: usize = 64;

pub(super) fn end(
    mut life: Life,
    root: &Root,
    log: JoinHandle<()>,
    alone: fs::File,
) -> Result<(), Error> {
    if life.init.is_some() {
        life.hear();
    }
    life.adopt_outputs();
    let init = collect(&life.shared)?;
    // The first container's init may have ended alone.
    for member in &life.shared.members {
        member.kill()?;
        member.collect()?;
    }
    let stats = life.shared.hierarchies.stats(&life.shared.paths.machine);
    let pressure = life.shared.hierarchies.pressure(&life.shared.paths.machine);
    for output in &mut life.outputs {
        for _ in 0..LAST_PIECES_MAX {
            if !output.take(&life.shared) {
                break;
            }
        }
        output.finish(&life.shared);
    }
    let status = status_of(&life, init, pressure);
    let pids_max = life.shared.spec.limits.pids_max;
    for line in words::ended(&status, stats.memory_max_bytes, pids_max) {
        life.shared.queue.system(&line);
    }
    life.shared.queue.close();
    // A log thread that died has lost lines, nothing else.
    log.join().ok();
    // All of these are tried, and the first fault is reported: whatever happens, the status counts.
    let cleaned = [root.unmount(), remove_cgroup(&life.shared), remove_papers(&life.shared)];
    write_status(&life.shared, &status)?;
    // From here on the next boot may come.
    drop(alone);
    life.shared.change(|state| state.phase = Phase::Ended(Box::new(status)));
    life.shared.wait_at_most(FAREWELL, |state| state.clients == 0);
    cleaned.into_iter().collect()
}

/// Collects init, which is our child.
fn collect(shared: &Shared) -> Result<Option<Ended>, Error> {
    let found = loop {
        match waitid(WaitId::PidFd(shared.init.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map_err(Error::system("collect init"))?,
        }
    };
    Ok(found.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended { code, signal: None },
        (None, signal) => Ended { code: 128 + signal.unwrap_or(9), signal: signal.or(Some(9)) },
    }))
}

fn remove_cgroup(shared: &Shared) -> Result<(), Error> {
    let deadline = clock::boot_ms().saturating_add(CGROUP_TIMEOUT_MS);
    while !perch_runtime::cgroup::remove_all(&shared.paths)? {
        if clock::boot_ms() > deadline {
            return Err(Error::Timeout {
                operation: "remove the cgroup",
                limit_ms: CGROUP_TIMEOUT_MS,
            });
        }
        clock::pause(Duration::from_millis(1));
    }
    Ok(())
}

fn remove_papers(shared: &Shared) -> Result<(), Error> {
    for path in [shared.spec.dir.socket(), shared.spec.dir.boot_file()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Writes the status so that it is whole or not there, whatever happens next.
fn write_status(shared: &Shared, status: &ExitStatus) -> Result<(), Error> {
    let path = shared.spec.dir.exit_file();
    let new = path.with_extension("new");
    let text = serde_json::to_vec(status).map_err(|error| Error::Shape(error.to_string()))?;
    let written = write_synced(&new, &text)
        .and_then(|()| fs::rename(&new, &path).map_err(Error::file("rename to", &path)));
    if written.is_err() {
        // The disk is full, perhaps: nothing may stay of what nobody can use.
        fs::remove_file(&new).ok();
    }
    written?;
    let dir = &shared.spec.dir.state;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::file("sync", dir))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = fs::File::create(path).map_err(Error::file("create", path))?;
    file.write_all(bytes).map_err(Error::file("write", path))?;
    file.sync_all().map_err(Error::file("sync", path))
}
