//! Work inside a machine's network namespace.
//!
//! Never moves a thread that lives on: a thread is made for the work and ends with it, so that
//! no other work of the process can find itself in the wrong namespace.

use std::os::fd::BorrowedFd;
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
