//! Says in an app's own log why the edge answered in its place: a code, and how many before it were
//! left out.
//!
//! Never a word of the client's, never more than so many lines a second for an app, and never a
//! wait: what there is no room for is only counted.

use std::time::Duration;

use perch_client::HostClient;
use perch_types::host::EdgeNote;
use perch_types::{MachineId, MachineState};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::Shared;
use crate::access::Sampler;
use crate::cause::Cause;
use crate::live::AppKey;

/// Lines a second for an app.
const APP_LINES_PER_S: u32 = 1;
/// Lines that wait for the host, of all apps.
const LINES_MAX: usize = 256;
/// How long the host may take for one.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Which causes an app's owner is told.
#[derive(Debug)]
pub(crate) struct Turns(Sampler);

impl Default for Turns {
    fn default() -> Self {
        Self(Sampler::new(APP_LINES_PER_S))
    }
}

/// A line for a machine's log.
#[derive(Debug)]
struct Line {
    machine: MachineId,
    note: EdgeNote,
}

/// The way to the logs.
#[derive(Debug)]
pub(crate) struct Owners(mpsc::Sender<Line>);

impl Owners {
    /// Writes lines for as long as this is there, on a runtime.
    pub(crate) fn new(host: HostClient, runtime: &Handle) -> Self {
        let (sender, lines) = mpsc::channel(LINES_MAX);
        runtime.spawn(write(host, lines));
        Self(sender)
    }
}

async fn write(host: HostClient, mut lines: mpsc::Receiver<Line>) {
    while let Some(Line { machine, note }) = lines.recv().await {
        match tokio::time::timeout(LINE_TIMEOUT, host.note(&machine, &note)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%machine, %error, "line for a log is lost"),
            Err(_) => tracing::debug!(%machine, "line for a log took too long"),
        }
    }
}

impl Shared {
    /// Says why the edge answers in an app's place, in the log of the machine that it went to; if
    /// to none, of one that runs, or of any. What went to another host is told there, if it came.
    pub(crate) fn tell_owner(&self, app: &AppKey, machine: Option<&MachineId>, cause: Cause) {
        let Some(metrics) = self.live.metrics_of(app) else { return };
        let Some(machine) = self.speaker(app, machine, cause) else { return };
        let Some(left_out) = metrics.told.0.take(self.clock.boot_ms()) else { return };
        let note = EdgeNote { code: cause.code().to_owned(), left_out };
        if self.owners.0.try_send(Line { machine, note }).is_err() {
            metrics.told.0.leave_out(left_out.saturating_add(1));
        }
    }

    /// Returns the machine of an app in whose log it is said: one of this host.
    fn speaker(
        &self,
        app: &AppKey,
        machine: Option<&MachineId>,
        cause: Cause,
    ) -> Option<MachineId> {
        let machines = self.live.machines_of(app)?;
        if let Some(machine) = machine.filter(|_| cause != Cause::HostAway) {
            let is_here = machines.iter().any(|target| target.record.id == *machine);
            return is_here.then(|| machine.clone());
        }
        let running = machines.iter().find(|target| target.record.state == MachineState::Started);
        running.or_else(|| machines.first()).map(|target| target.record.id.clone())
    }
}
