//! Signals as something to read.
//!
//! Never runs code in a signal handler.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// All signals of this process, blocked and read from a descriptor instead.
pub(crate) struct Signals {
    descriptor: OwnedFd,
}

fn set(full: bool) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    if full {
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: the pointer is to a set of the right type that lives here.
        let _ok = unsafe { libc::sigfillset(set.as_mut_ptr()) };
    } else {
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: as above.
        let _ok = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    }
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: zeroed and then filled or emptied: every bit has a value.
    unsafe {
        set.assume_init()
    }
}

fn set_mask(set: &libc::sigset_t) -> io::Result<()> {
    #[expect(unsafe_code, reason = "no safe binding")]
    // SAFETY: reads a valid set and writes nothing back. Async-signal-safe.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets all signals through again; for a child between fork and exec, so it allocates nothing.
pub(crate) fn unblock_all() -> io::Result<()> {
    set_mask(&set(false))
}

impl Signals {
    /// Blocks all signals and makes them readable.
    pub(crate) fn new() -> io::Result<Self> {
        let all = set(true);
        set_mask(&all)?;
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: reads a valid set; -1 asks for a new descriptor.
        let raw = unsafe { libc::signalfd(-1, &raw const all, flags) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        #[expect(unsafe_code, reason = "a raw descriptor becomes an owned one")]
        // SAFETY: the kernel has just made it, and nobody else knows it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { descriptor })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Returns the number of the next signal that arrived, if one did.
    pub(crate) fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.descriptor, &mut info) {
            Ok(_) => {
                let number = info.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes));
                Ok(number.and_then(|number| i32::try_from(number).ok()))
            }
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
