//! Connects to a machine and hands the request over.
//!
//! Never sends a request twice: another machine is tried only when nothing of it was sent.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use perch_types::MachineId;
use tokio::net::TcpStream;

use crate::body::{MachineBody, ReplyBody};
use crate::cause::Cause;
use crate::headers;
use crate::live::{InFlight, Target};
use crate::pick;
use crate::pool::{Key, Pool, Sender};

/// How long a machine of this server may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an app may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest head of an answer.
const ANSWER_HEAD_BYTES_MAX: usize = 64 * 1024;

/// Why a machine did not answer, and the request if another may have it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) cause: Cause,
    pub(crate) unsent: Option<Request<Incoming>>,
}

/// A request on its way to one machine.
#[derive(Debug)]
pub(crate) struct Hop<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) target: &'a Arc<Target>,
    pub(crate) public_port: u16,
    /// The protocol to switch to, and the client's side of the switch.
    pub(crate) switch: Option<(HeaderValue, OnUpgrade)>,
}

impl Hop<'_> {
    /// Sends the request and returns the answer as soon as its head is there.
    pub(crate) async fn send(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, Refused> {
        let record = &self.target.record;
        let service = pick::service(&record.services, self.public_port);
        let Some(port) = service.map(|service| service.internal_port) else {
            return Err(Refused {
                cause: Cause::NoMachine,
                unsent: Some(request),
            });
        };
        let in_flight = self.target.load.begin();
        let key = Key {
            machine: record.id.clone(),
            instance: record.instance.clone(),
            port,
        };
        let mut unsent = request;
        // A connection from the pool may have been closed by the app a moment ago: then nothing
        // was sent, and the request goes over a new one.
        while let Some(sender) = self.pool.take(&key) {
            match exchange(sender, unsent).await {
                Ok((response, sender)) => return Ok(self.finish(response, key, sender, in_flight)),
                Err(Refused {
                    unsent: Some(request),
                    ..
                }) => unsent = request,
                Err(refused) => return Err(refused),
            }
        }
        let addresses = [
            IpAddr::V4(record.private_ipv4),
            IpAddr::V6(record.private_ip),
        ];
        let Some(sender) = connect(&record.id, addresses, port).await else {
            return Err(Refused {
                cause: Cause::NotListening,
                unsent: Some(unsent),
            });
        };
        let (response, sender) = exchange(sender, unsent).await?;
        Ok(self.finish(response, key, sender, in_flight))
    }

    fn finish(
        self,
        mut response: Response<Incoming>,
        key: Key,
        sender: Sender,
        in_flight: InFlight,
    ) -> Response<ReplyBody> {
        let switches = headers::switches(response.status(), self.switch.is_some());
        let protocol = response.headers().get(http::header::UPGRADE).cloned();
        headers::strip(response.headers_mut());
        if let (true, Some((asked, client))) = (switches, self.switch) {
            let machine = hyper::upgrade::on(&mut response);
            headers::restore_upgrade(response.headers_mut(), protocol.unwrap_or(asked));
            tokio::task::spawn_local(tunnel(client, machine, in_flight));
            return response.map(|_| ReplyBody::Page(None));
        }
        let back = (!switches).then(|| (self.pool.clone(), key, sender));
        response.map(|incoming| {
            ReplyBody::Machine(Box::new(MachineBody::new(incoming, back, in_flight)))
        })
    }
}

async fn connect(machine: &MachineId, addresses: [IpAddr; 2], port: u16) -> Option<Sender> {
    for address in addresses {
        let connecting = TcpStream::connect(SocketAddr::new(address, port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%machine, %address, port, %error, "machine not connected");
                continue;
            }
            Err(_) => continue,
        };
        stream.set_nodelay(true).ok()?;
        let handshake = http1::Builder::new()
            .writev(false)
            .max_buf_size(ANSWER_HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await;
        let Ok((sender, connection)) = handshake else {
            continue;
        };
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a machine ended");
            }
        });
        return Some(sender);
    }
    None
}

async fn exchange(
    mut sender: Sender,
    request: Request<Incoming>,
) -> Result<(Response<Incoming>, Sender), Refused> {
    if sender.ready().await.is_err() {
        return Err(Refused {
            cause: Cause::Upstream,
            unsent: Some(request),
        });
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, sender.try_send_request(request)).await {
        Ok(Ok(response)) => Ok((response, sender)),
        Ok(Err(mut error)) => Err(Refused {
            cause: Cause::Upstream,
            unsent: error.take_message(),
        }),
        Err(_) => Err(Refused {
            cause: Cause::Slow,
            unsent: None,
        }),
    }
}

/// Copies bytes both ways until one side ends.
async fn tunnel(client: OnUpgrade, machine: OnUpgrade, in_flight: InFlight) {
    let (Ok(client), Ok(machine)) = (client.await, machine.await) else {
        return;
    };
    let (mut client, mut machine) = (TokioIo::new(client), TokioIo::new(machine));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut machine).await {
        tracing::debug!(%error, "tunnel ended");
    }
    drop(in_flight);
}
