//! Somebody who lets writing go on when the agent dies while a volume is frozen.
//!
//! Never needed otherwise: the agent thaws what it froze. The guard is a process of its own that
//! waits for the end of its standard input, which comes with the agent's end too.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process that thaws a volume when this is dropped, or the agent is gone.
#[derive(Debug)]
pub(super) struct Guard(Option<Child>);

impl Guard {
    /// Starts it. Without one a snapshot is made as well: the next agent thaws.
    pub(super) fn start(program: &Path, image: &Path) -> Self {
        let started = Command::new(program)
            .arg(perch_runtime::volume::GUARD_ARGUMENT)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if let Err(error) = &started {
            tracing::warn!(%error, "snapshot is made without a guard");
        }
        Self(started.ok())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(child) = &mut self.0 else { return };
        // Its standard input ends; it thaws what is thawed already, and ends.
        drop(child.stdin.take());
        if let Err(error) = child.wait() {
            tracing::warn!(%error, "guard of a snapshot was not collected");
        }
    }
}
