//! Pipes and sockets between the monitor and a machine.
//!
//! Never lets the machine's end decide whether the monitor's end blocks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Gid, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// Makes a pipe out of the machine: what the monitor reads without blocking, and what the machine
/// writes. The machine's root owns it, so that programs can open it by name (`/dev/stdout`).
pub(crate) fn pipe_out(owner: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fchown(&write, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    set_nonblocking(&read)?;
    Ok((read, write))
}

/// Makes a pipe into the machine: what the machine reads, and what the monitor writes without
/// blocking.
pub(crate) fn pipe_in(owner: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fchown(&read, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    set_nonblocking(&write)?;
    Ok((read, write))
}

/// Makes reads and writes of a descriptor return instead of wait.
pub(crate) fn set_nonblocking(one: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&one)?;
    Ok(fcntl_setfl(&one, flags | OFlags::NONBLOCK)?)
}

/// What a read without waiting came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Later,
    /// Nothing ever.
    End,
}

/// Reads without waiting.
pub(crate) fn read(from: impl AsFd, buffer: &mut [u8]) -> Read {
    outcome(|| rustix::io::read(&from, &mut *buffer))
}

/// Returns what a read came to. Any error is the end: a terminal whose last program went away
/// gives one. It may give it too early: the kernel looks for bytes first and then whether somebody
/// is left, and a program can write and end in between. Then a second read has its bytes.
fn outcome(mut read: impl FnMut() -> rustix::io::Result<usize>) -> Read {
    let mut found = read();
    if found == Err(Errno::IO) {
        found = read();
    }
    match found {
        Ok(0) => Read::End,
        Ok(count) => Read::Bytes(count),
        Err(Errno::AGAIN | Errno::INTR) => Read::Later,
        Err(_) => Read::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_ended_when_it_says_so_twice() {
        let cases = [
            (vec![Ok(5)], Read::Bytes(5)),
            (vec![Ok(0)], Read::End),
            (vec![Err(Errno::AGAIN)], Read::Later),
            (vec![Err(Errno::INTR)], Read::Later),
            (vec![Err(Errno::BADF)], Read::End),
            (vec![Err(Errno::IO), Ok(5)], Read::Bytes(5)),
            (vec![Err(Errno::IO), Err(Errno::AGAIN)], Read::Later),
            (vec![Err(Errno::IO), Err(Errno::IO)], Read::End),
        ];
        for (answers, expected) in cases {
            let mut left = answers.iter().copied();
            assert_eq!(outcome(|| left.next().unwrap()), expected, "{answers:?}");
            assert_eq!(left.next(), None, "{answers:?}");
        }
    }
}
