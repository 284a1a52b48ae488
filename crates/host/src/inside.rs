//! Connections out of machines on their way to the API, each with the word of whose it is.
//!
//! Never reads a byte of one: what comes from inside a machine is understood in the API's process,
//! which has fewer rights. Never believes anybody but the machine's own monitor.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use perch_runtime::handover::{self, Origin};
use perch_types::host::MachineIdentity;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::Host;

/// Connections that are passed on at once; more wait in the kernel's queue.
const PASSING_MAX: usize = 64;
/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Passes connections on for ever.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve(host: Host, monitors: StdUnixListener, api: PathBuf) -> std::io::Result<()> {
    monitors.set_nonblocking(true)?;
    let monitors = UnixListener::from_std(monitors)?;
    let places = Arc::new(Semaphore::new(PASSING_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let monitor = match monitors.accept().await {
            Ok((monitor, _)) => monitor,
            // Most often no descriptors are left; that passes.
            Err(error) => {
                tracing::warn!(%error, "connection of a monitor not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (host, api) = (host.clone(), api.clone());
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = pass_on(&host, monitor, &api).await {
                tracing::debug!(%error, "connection out of a machine not passed on");
            }
        });
    }
}

async fn pass_on(
    host: &Host,
    mut monitor: UnixStream,
    api: &std::path::Path,
) -> std::io::Result<()> {
    let peer = monitor.peer_cred()?;
    let (origin, connection) = handover::receive::<Origin>(&monitor).await?;
    let refused =
        |why: &str| Err(std::io::Error::other(format!("machine {}: {why}", origin.machine)));
    if peer.uid() != 0 {
        return refused("its monitor is not root");
    }
    let Some((identity, monitor_pid)) = host.identity(&origin).await else {
        return refused("it has no such boot");
    };
    if peer.pid() != Some(monitor_pid) {
        return refused("another process speaks for its monitor");
    }
    handover::pass(api, &identity, connection.as_fd()).await?;
    handover::confirm(&mut monitor).await
}

impl Host {
    /// Returns who a boot is, and its monitor's process id; nothing when that boot does not run.
    async fn identity(&self, origin: &Origin) -> Option<(MachineIdentity, i32)> {
        let instance = self.running(&origin.machine).await.ok()?;
        let machine = self.get(&origin.machine).ok()?;
        let info = instance.info();
        let identity =
            MachineIdentity { org: machine.org, app: machine.app, machine: origin.machine.clone() };
        (info.boot == origin.boot).then_some((identity, info.monitor.pid))
    }
}
