//! Descriptors with which a service manager starts a program.
//!
//! Never given out twice.

use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first of them, by the manager's protocol.
const FIRST: i32 = 3;
/// The most that are taken.
const COUNT_MAX: i32 = 253;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the sockets that the manager has left, `count` of them, so that no program that is started
/// from here gets them too. Must only be called when the manager's variables name this process.
///
/// # Errors
/// When they were taken before, or one of them is no socket.
pub fn sockets(count: i32) -> io::Result<Vec<OwnedFd>> {
    let numbers = numbers(count)?;
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "taken before"));
    }
    let mut taken = Vec::new();
    for number in numbers {
        #[expect(unsafe_code, reason = "a number is all that the manager gives")]
        // SAFETY: it is open and a socket; it was so when the program began, because the manager says
        // how many there are, and `TAKEN` says that nobody else has it from here.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        taken.push(socket);
    }
    Ok(taken)
}

/// Returns the numbers, if each is that of a socket.
fn numbers(count: i32) -> io::Result<Range<i32>> {
    if !(0..=COUNT_MAX).contains(&count) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many"));
    }
    let numbers = FIRST..FIRST + count;
    for number in numbers.clone() {
        let target = std::fs::read_link(PathBuf::from(format!("/proc/self/fd/{number}")))?;
        if !target.to_string_lossy().starts_with("socket:[") {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no socket"));
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_count() {
        assert_eq!(numbers(0).unwrap(), 3..3);
        numbers(-1).unwrap_err();
        numbers(COUNT_MAX + 1).unwrap_err();
        // Not as many sockets are open here, one behind the other.
        numbers(COUNT_MAX).unwrap_err();
    }
}
