//! Serves a router on a listener: a bounded number of connections, each with a limit on how long
//! a request's head may take and how large it may be.
//!
//! Never knows a route. Streams are given as they are accepted, so TLS and Unix sockets are the
//! same here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Where requests come in.
pub enum Listener {
    /// Plain TCP: loopback only.
    Tcp(TcpListener),
    /// TLS over TCP.
    Tls(TcpListener, TlsAcceptor),
    /// A Unix socket; who may open it is the file's mode's business.
    Unix(UnixListener),
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Tls(..) => "Tls",
            Self::Unix(_) => "Unix",
        })
    }
}

/// Limits of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeLimits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// How long the head of a request may take, and how long a connection may be idle.
    pub header_read_timeout: Duration,
    /// Header lines of a request.
    pub headers_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long requests under way may take after the end was asked for.
    pub drain_timeout: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            header_read_timeout: Duration::from_secs(30),
            headers_max: 64,
            head_bytes_max: 64 * 1024,
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Who is at the other end, for limits of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub Option<SocketAddr>);

/// How long to wait after an accept that failed, such as for too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` completes; then requests under way may finish.
pub async fn serve(
    listener: Listener,
    router: axum::Router,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()> + Send,
) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let (ending, ended) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (router, ended) = (router.clone(), ended.clone());
        connections.spawn(async move {
            let _permit = permit;
            match stream {
                Accepted::Tcp(stream) => connection(stream, router, peer, (limits, ended)).await,
                Accepted::Unix(stream) => connection(stream, router, peer, (limits, ended)).await,
                Accepted::Tls(stream, acceptor) => {
                    let handshake = acceptor.accept(stream);
                    match tokio::time::timeout(limits.handshake_timeout, handshake).await {
                        Ok(Ok(stream)) => connection(stream, router, peer, (limits, ended)).await,
                        Ok(Err(error)) => tracing::debug!(%error, "tls handshake refused"),
                        Err(_) => tracing::debug!("tls handshake timed out"),
                    }
                }
            }
        });
    }
    drop(listener);
    ending.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain_timeout, drained).await.is_err() {
        connections.shutdown().await;
    }
}

enum Accepted {
    Tcp(tokio::net::TcpStream),
    Tls(tokio::net::TcpStream, TlsAcceptor),
    Unix(tokio::net::UnixStream),
}

type Connected = (Accepted, Peer, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &Listener, permits: &Arc<Semaphore>) -> Option<Connected> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    let accepted: io::Result<(Accepted, Peer)> = match listener {
        Listener::Tcp(listener) => {
            listener.accept().await.map(|(stream, peer)| (Accepted::Tcp(stream), Peer(Some(peer))))
        }
        Listener::Tls(listener, acceptor) => listener
            .accept()
            .await
            .map(|(stream, peer)| (Accepted::Tls(stream, acceptor.clone()), Peer(Some(peer)))),
        Listener::Unix(listener) => {
            listener.accept().await.map(|(stream, _)| (Accepted::Unix(stream), Peer(None)))
        }
    };
    match accepted {
        Ok((stream, peer)) => {
            if let Accepted::Tcp(tcp) | Accepted::Tls(tcp, _) = &stream {
                // Best effort: answers are small and should not wait for each other.
                tcp.set_nodelay(true).ok();
            }
            Some((stream, peer, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "connection not accepted");
            None
        }
    }
}

pub(crate) async fn connection<S>(
    stream: S,
    router: axum::Router,
    peer: Peer,
    (limits, mut ended): (ServeLimits, watch::Receiver<bool>),
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = router.layer(axum::Extension(peer));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.head_bytes_max)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        // The guard that a watch gives must not live across an await.
        () = async { ended.wait_for(|ended| *ended).await.map(drop).unwrap_or_default() } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended early");
    }
}
