//! One loop of the edge: accepts, limits, and takes each request through the phases.
//!
//! Never shares a connection or a pool with another loop: one thread, one listener, one runtime.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{IpAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use perch_types::{AppName, MachineId};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::body::ReplyBody;
use crate::cause::Cause;
use crate::forward::{Hop, Refused};
use crate::headers::{self, Seen};
use crate::pool::Pool;
use crate::reply::{self, Access};
use crate::wake::{self, Wanted};
use crate::{BEAT_EVERY, Shared, route};

/// How long a client may take to send a request's head, or stay silent between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most header fields of a request.
const HEAD_FIELDS_MAX: usize = 128;
/// The most connections of one loop.
const CONNECTIONS_MAX: usize = 16 * 1024;
/// How many machines one request is offered to.
const TRIES_MAX: usize = 3;
/// The public port that this listener stands for, whatever port it is bound to.
const PUBLIC_HTTP_PORT: u16 = 80;
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
    let outcome = local.block_on(
        runtime,
        accept(Arc::clone(shared), index, listener, stopping),
    );
    if let Err(error) = outcome {
        tracing::error!(%error, "edge loop ended");
    }
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
    let worker = Rc::new(Worker {
        shared,
        pool: Pool::default(),
        port,
        state: Cell::new(random_seed().unwrap_or(seed) | 1),
        connections: Cell::new(0),
    });
    let mut beats = tokio::time::interval(BEAT_EVERY);
    loop {
        tokio::select! {
            _ = beats.tick() => worker.shared.beat(index),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => worker.admit(stream, peer.ip()),
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = stopping.changed() => break,
        }
    }
    while worker.connections.get() > 0 {
        beats.tick().await;
        worker.shared.beat(index);
    }
    Ok(())
}

fn random_seed() -> Option<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// What one loop has for itself.
struct Worker {
    shared: Arc<Shared>,
    pool: Pool,
    port: u16,
    state: Cell<u64>,
    connections: Cell<usize>,
}

impl Worker {
    fn admit(self: &Rc<Self>, stream: TcpStream, client: IpAddr) {
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
            let served = Rc::clone(&worker);
            let service = service_fn(move |request| {
                let worker = Rc::clone(&served);
                async move { Ok::<_, Infallible>(worker.serve(request, client).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .max_headers(HEAD_FIELDS_MAX)
                .writev(false)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            worker.connections.set(worker.connections.get() - 1);
        });
    }

    /// Takes one request through the phases and always answers.
    async fn serve(&self, request: Request<Incoming>, client: IpAddr) -> Response<ReplyBody> {
        let began = Instant::now();
        let request_id = self.request_id();
        let method = request.method().clone();
        let mut passage = Passage {
            app: None,
            client,
            request_id: &request_id,
        };
        let (mut response, cause) = match self.phases(request, &mut passage).await {
            Ok(response) => (response, None),
            Err(cause) => (reply::page(cause, &request_id), Some(cause)),
        };
        headers::tell_client(response.headers_mut(), &request_id);
        Access {
            request_id: &request_id,
            method: &method,
            app: passage.app.as_ref(),
            status: response.status().as_u16(),
            cause,
            took: began.elapsed(),
        }
        .write();
        response
    }

    async fn phases(
        &self,
        request: Request<Incoming>,
        passage: &mut Passage<'_>,
    ) -> Result<Response<ReplyBody>, Cause> {
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::CONNECT {
            return Err(Cause::BadRequest);
        }
        let host = route::host_of(&parts)?;
        let view = self.shared.view.load();
        let app = route::app_of(&host, &self.shared.domain, &view).ok_or(Cause::UnknownHost)?;
        drop(view);
        let app = passage.app.insert(app);
        let switch = headers::upgrade(&parts.method, &parts.headers);
        headers::strip(&mut parts.headers);
        let seen = Seen {
            client: passage.client,
            port: self.port,
            region: self.shared.region.as_str(),
            request_id: passage.request_id,
        };
        headers::tell_app(&mut parts.headers, &seen);
        if let Some(target) = parts.uri.path_and_query() {
            parts.uri = target.as_str().parse().map_err(|_| Cause::BadRequest)?;
        }
        let mut request = Request::from_parts(parts, body);
        let client_side = switch.map(|protocol| {
            headers::restore_upgrade(request.headers_mut(), protocol.clone());
            (protocol, hyper::upgrade::on(&mut request))
        });
        self.offer(app, request, client_side).await
    }

    /// Offers the request to one machine after the other while nothing of it was sent.
    async fn offer(
        &self,
        app: &AppName,
        mut request: Request<Incoming>,
        mut switch: Option<(HeaderValue, OnUpgrade)>,
    ) -> Result<Response<ReplyBody>, Cause> {
        let mut tried: Vec<MachineId> = Vec::new();
        let mut last = Cause::NoMachine;
        loop {
            let wanted = Wanted {
                app,
                port: PUBLIC_HTTP_PORT,
                tried: &tried,
                random: self.random(),
            };
            let target = match wake::ready_machine(&self.shared, &wanted).await {
                Ok(target) => target,
                // Nobody is left to ask: what the last one said is the better answer.
                Err(Cause::Upstream) => return Err(last),
                Err(cause) => return Err(cause),
            };
            let hop = Hop {
                pool: &self.pool,
                target: &target,
                public_port: PUBLIC_HTTP_PORT,
                switch: switch.take(),
            };
            let is_switch = hop.switch.is_some();
            match hop.send(request).await {
                Ok(response) => return Ok(response),
                Err(Refused {
                    unsent: Some(unsent),
                    cause,
                }) => {
                    tried.push(target.record.id.clone());
                    last = cause;
                    // The client's side of a switch went with the first try.
                    if is_switch || tried.len() == TRIES_MAX {
                        return Err(cause);
                    }
                    request = unsent;
                }
                Err(Refused {
                    cause,
                    unsent: None,
                }) => return Err(cause),
            }
        }
    }

    /// Returns the next number of a sequence that is only for spreading load and naming requests.
    fn random(&self) -> u64 {
        let mut state = self.state.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.state.set(state);
        state
    }

    fn request_id(&self) -> String {
        let now = self.shared.clock.now().unix_ms().unsigned_abs();
        let random = (u128::from(self.random()) << 64) | u128::from(self.random());
        format!(
            "{}-{}",
            perch_types::id::ulid(now, random),
            self.shared.region
        )
    }
}

/// What is known of a request on its way.
struct Passage<'a> {
    app: Option<AppName>,
    client: IpAddr,
    request_id: &'a str,
}
