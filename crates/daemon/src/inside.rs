//! Connections out of machines, as the host process brings them, given to the API.
//!
//! Never takes one from anybody but root, and never looks into it.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use anyhow::{Context as _, Result};
use perch_api::Inside;
use perch_host::handover;
use perch_types::host::MachineIdentity;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Connections of all machines at once.
const CONNECTIONS_MAX: usize = 1024;
/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves machines for ever.
pub(crate) async fn serve(listener: StdUnixListener, inside: Inside) -> Result<()> {
    listener.set_nonblocking(true).context("prepare the machines' socket")?;
    let listener = UnixListener::from_std(listener).context("prepare the machines' socket")?;
    let mut connections = JoinSet::new();
    loop {
        let host = match listener.accept().await {
            Ok((host, _)) => host,
            Err(error) => {
                tracing::warn!(%error, "connection out of a machine not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if !host.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
            tracing::warn!("connection out of a machine was not brought by root");
            continue;
        }
        if connections.len() >= CONNECTIONS_MAX {
            tracing::warn!(limit = CONNECTIONS_MAX, "connections out of machines at their limit");
            continue;
        }
        let inside = inside.clone();
        connections.spawn(async move {
            match take(host).await {
                Ok((who, connection)) => inside.serve(connection, who).await,
                Err(error) => tracing::debug!(%error, "connection out of a machine did not come"),
            }
        });
    }
}

async fn take(mut host: UnixStream) -> std::io::Result<(MachineIdentity, UnixStream)> {
    let taken = handover::receive(&host).await?;
    handover::confirm(&mut host).await?;
    Ok(taken)
}
