//! Work inside a machine's network namespace.
//!
//! Never moves a thread that lives on: a thread is made for the work and ends with it, so that
//! no other work of the process can find itself in the wrong namespace.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Error;

/// Runs `work` on a thread of its own in a network namespace and waits for it.
pub(super) fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
                    .map_err(|source| Error::EnterNamespace { source: source.into() })?;
                work()
            })
            .map_err(|source| Error::EnterNamespace { source })?;
        thread.join().unwrap_or(Err(Error::WorkerGone))
    })
}

/// Makes a TCP socket inside a network namespace. It stays there, whoever uses it.
///
/// # Errors
/// When the kernel refuses.
pub fn tcp_socket_inside(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    inside(namespace, tcp_socket)
}

/// Makes a TCP socket, connected to nothing, that does not block.
///
/// # Errors
/// When the kernel refuses.
pub fn tcp_socket() -> Result<OwnedFd, Error> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
        .map_err(|source| Error::OpenSocket { source: source.into() })
}
