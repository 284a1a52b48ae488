//! Processes that cannot be mistaken for later ones of the same id.
//!
//! Never signals a bare process id.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Error;
use crate::protocol::ProcessInfo;

impl ProcessInfo {
    /// Describes a running process.
    ///
    /// # Errors
    /// There is none of that id.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: start_ticks(pid)? })
    }

    /// Opens it, unless it has ended and been collected.
    ///
    /// # Errors
    /// It is gone, or another process has its id.
    pub fn open(self) -> io::Result<OwnedFd> {
        let gone = || io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error());
        let pid = Pid::from_raw(self.pid).ok_or_else(gone)?;
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        // The descriptor is of whoever had the id when it was opened; the start time, read after,
        // tells whether that was the one.
        if start_ticks(self.pid)? == self.start_ticks { Ok(fd) } else { Err(gone()) }
    }

    /// Opens it; `None` when it has ended and been collected.
    ///
    /// # Errors
    /// When that cannot be told, for want of descriptors for example.
    pub fn find(self) -> io::Result<Option<OwnedFd>> {
        let opened = self.open();
        match opened.as_ref().err().and_then(rustix::io::Errno::from_io_error) {
            // The id may meanwhile be a thread's.
            Some(rustix::io::Errno::SRCH | rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {
                Ok(None)
            }
            Some(_) | None => opened.map(Some),
        }
    }

    /// Returns whether it still runs (a process that ended and is not yet collected does not).
    #[must_use]
    pub fn runs(self) -> bool {
        self.open().is_ok_and(|fd| is_running(&fd))
    }
}

/// Returns whether the process of a pidfd has not ended.
#[must_use]
pub fn is_running(pidfd: &OwnedFd) -> bool {
    let mut polled = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
}

/// Kills the process of a pidfd; one that has ended is no error.
///
/// # Errors
/// The kernel's.
pub fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens a process's network namespace.
///
/// # Errors
/// It has ended.
pub fn network_namespace(process: ProcessInfo, pidfd: &OwnedFd) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{}/ns/net", process.pid);
    let file = File::open(&path).map_err(Error::file("open", &path))?;
    // While the process behind the pidfd still runs nobody else can have its id.
    if is_running(pidfd) {
        Ok(file.into())
    } else {
        Err(Error::file("open", path)(rustix::io::Errno::SRCH))
    }
}

/// Makes a descriptor one whose readability can be awaited.
pub(crate) fn awaitable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "the binding leaves it to its caller that the number stays")]
    // SAFETY: an `OwnedFd` keeps its number until it is dropped, which its `AsyncFd` does last.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(registered?)
}

/// Takes a lock file, if nobody has it.
///
/// # Errors
/// The kernel's.
pub fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns the boot id of this server.
///
/// # Errors
/// procfs is not there.
pub fn host_boot() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a stat line of another shape"))
}

fn parse_start_ticks(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything; field 22 is the 20th after it.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_confuse_the_start_time() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(parse_start_ticks(stat), Some(4242));
        assert_eq!(parse_start_ticks("7 (a"), None);
    }

    #[test]
    fn a_process_with_another_start_time_is_not_opened() {
        let me = ProcessInfo::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.runs());
        assert!(me.find().unwrap().is_some());
        let other = ProcessInfo { start_ticks: me.start_ticks + 1, ..me };
        assert!(!other.runs());
        assert!(other.find().unwrap().is_none());
    }
}
