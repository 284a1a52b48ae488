//! One loop of the edge: accepts and limits connections.
//!
//! Never shares a connection or a pool with another loop: one thread, one listener, one runtime.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{IpAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::body::ReplyBody;
use crate::headers;
use crate::patience::Patient;
use crate::pool::Pool;
use crate::strict::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX, Link, Strict};
use crate::{BEAT_EVERY, Shared};

/// The most connections of one loop.
const CONNECTIONS_MAX: usize = 16 * 1024;
/// The pause after an accept that failed, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs the loop until the edge is stopped and its connections have ended.
pub(crate) fn run(
    runtime: &Runtime,
    shared: &Arc<Shared>,
    index: usize,
    listener: StdTcpListener,
    stopping: watch::Receiver<bool>,
) {
    let local = LocalSet::new();
    let outcome = local.block_on(runtime, accept(Arc::clone(shared), index, listener, stopping));
    if let Err(error) = outcome {
        tracing::error!(%error, "edge loop ended");
    }
    // Tunnels are tasks of their own, and go on.
    runtime.block_on(local);
}

async fn accept(
    shared: Arc<Shared>,
    index: usize,
    listener: StdTcpListener,
    mut stopping: watch::Receiver<bool>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let port = listener.local_addr()?.port();
    let seed = shared.clock.boot_ms().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64;
    let region = HeaderValue::from_str(shared.region.as_str())
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
    let worker = Rc::new(Worker {
        shared,
        pool: Pool::default(),
        port: HeaderValue::from(port),
        region,
        state: Cell::new(random_seed().unwrap_or(seed) | 1),
        connections: Cell::new(0),
    });
    let mut beats = tokio::time::interval(BEAT_EVERY);
    loop {
        tokio::select! {
            _ = beats.tick() => worker.shared.beat(index),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => worker.admit(stream, peer.ip(), stopping.clone()),
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = stopping.changed() => break,
        }
    }
    // Whoever accepts from here on is another process: this one holds the port no longer.
    drop(listener);
    while worker.connections.get() > 0 {
        beats.tick().await;
        worker.shared.beat(index);
    }
    Ok(())
}

/// Tells a client whose edge has been stopped that this answer is the last of its connection.
fn say_if_last(response: &mut Response<ReplyBody>, stopping: &watch::Receiver<bool>) {
    if *stopping.borrow() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

fn random_seed() -> Option<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// What one loop has for itself.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) port: HeaderValue,
    pub(crate) region: HeaderValue,
    pub(crate) state: Cell<u64>,
    connections: Cell<usize>,
}

impl Worker {
    fn admit(
        self: &Rc<Self>,
        stream: TcpStream,
        client: IpAddr,
        mut stopping: watch::Receiver<bool>,
    ) {
        if self.connections.get() >= CONNECTIONS_MAX {
            tracing::warn!(limit = CONNECTIONS_MAX, "connections at their limit");
            return;
        }
        if stream.set_nodelay(true).is_err() {
            return;
        }
        self.connections.set(self.connections.get() + 1);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let link = Arc::new(Link::default());
            let stream = Patient::new(stream, worker.shared.limits.stall);
            let (served, told) = (Rc::clone(&worker), Arc::clone(&link));
            let last = stopping.clone();
            let client = headers::client_value(client);
            let service = service_fn(move |request| {
                let (worker, link) = (Rc::clone(&served), Arc::clone(&told));
                let client = client.clone();
                let stopping = last.clone();
                async move {
                    let mut response = worker.serve(request, &client, &link).await;
                    say_if_last(&mut response, &stopping);
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(worker.shared.limits.head)
                // What is too large was refused before; this only has to hold it.
                .max_buf_size(2 * HEAD_BYTES_MAX)
                .max_headers(HEAD_FIELDS_MAX)
                .writev(false)
                .serve_connection(TokioIo::new(Strict::new(stream, link)), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            // The guard that a watch gives must not live while the connection goes on: the next stop
            // would wait for it, and all behind that. An end of the sender means the same.
            let stopped = async move {
                stopping.wait_for(|stopping| *stopping).await.map(drop).unwrap_or_default();
            };
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopped => {
                    // A request may be on its way over one that lies idle: it is answered, and the
                    // client is told that it was the last.
                    let linger = worker.shared.limits.linger;
                    if let Ok(ended) = tokio::time::timeout(linger, connection.as_mut()).await {
                        ended
                    } else {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            worker.connections.set(worker.connections.get() - 1);
        });
    }
}
