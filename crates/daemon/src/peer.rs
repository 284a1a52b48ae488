//! Serves a Unix socket to chosen users of this server.
//!
//! Never trusts the path's permissions alone: each connection's peer is asked of the kernel.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How many connections one interface serves at once.
const CONNECTIONS_MAX: usize = 1024;
/// How often it is told that there are too many.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` on `listener` to peers whose user id is in `allowed`, for ever.
pub(crate) async fn serve(
    listener: StdUnixListener,
    router: Router,
    allowed: Vec<u32>,
) -> Result<()> {
    listener.set_nonblocking(true).context("prepare an internal socket")?;
    let listener = UnixListener::from_std(listener).context("prepare an internal socket")?;
    let mut connections = JoinSet::new();
    let mut told = None;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Most often no descriptors are left; that passes, and the role must not end of it.
            Err(error) => {
                tracing::warn!(%error, "internal connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        match stream.peer_cred() {
            Ok(peer) if allowed.contains(&peer.uid()) => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "internal connection refused");
                continue;
            }
            Err(_) => continue,
        }
        if connections.len() >= CONNECTIONS_MAX {
            let now = Instant::now();
            if told.is_none_or(|told| now.duration_since(told) >= TOLD_EVERY) {
                told = Some(now);
                tracing::warn!(limit = CONNECTIONS_MAX, "internal connections at their limit");
            }
            continue;
        }
        connections.spawn(connection(stream, router.clone()));
    }
}

async fn connection(stream: UnixStream, router: Router) {
    let result = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades()
        .await;
    if let Err(error) = result {
        tracing::debug!(%error, "internal connection ended");
    }
}
