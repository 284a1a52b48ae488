//! Connects to a machine and hands the request over.
//!
//! Never sends a request twice: another machine is tried only when nothing of it was sent.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use perch_types::MachineId;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::Limits;
use crate::body::{MachineBody, ReplyBody, RequestBody};
use crate::cause::Cause;
use crate::headers;
use crate::live::{InFlight, Target};
use crate::patience::{Motion, Moving};
use crate::pick;
use crate::pool::{Key, Pool, Sender};

/// The largest head of an answer.
const ANSWER_HEAD_BYTES_MAX: usize = 64 * 1024;

/// A request on its way to a machine.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) request: Request<RequestBody>,
    /// When its body last moved.
    pub(crate) progress: Rc<Cell<Instant>>,
    /// The protocol to switch to, and the client's side of the switch.
    pub(crate) switch: Option<(HeaderValue, OnUpgrade)>,
}

/// Why a machine did not answer, and the request if another may have it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) cause: Cause,
    pub(crate) unsent: Option<Box<Outbound>>,
}

impl Refused {
    fn sent(cause: Cause) -> Self {
        Self { cause, unsent: None }
    }
}

/// One machine that is to have a request, in which it is counted.
#[derive(Debug)]
pub(crate) struct Hop<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) limits: &'a Limits,
    pub(crate) target: &'a Arc<Target>,
    pub(crate) public_port: u16,
    pub(crate) in_flight: InFlight,
}

impl Hop<'_> {
    /// Sends the request and returns the answer as soon as its head is there.
    pub(crate) async fn send(
        self,
        outbound: Box<Outbound>,
    ) -> Result<Response<ReplyBody>, Refused> {
        let record = &self.target.record;
        let service = pick::service(&record.services, self.public_port);
        let Some(port) = service.map(|service| service.internal_port) else {
            return Err(Refused { cause: Cause::NoMachine, unsent: Some(outbound) });
        };
        let key = Key { machine: record.id.clone(), instance: record.instance.clone(), port };
        let mut unsent = outbound;
        // A connection from the pool may have been closed by the app a moment ago: then nothing
        // was sent, and the request goes over a new one.
        while let Some(sender) = self.pool.take(&key) {
            match self.exchange(sender, unsent).await {
                Ok(answer) => return self.finish(answer, key),
                Err(Refused { unsent: Some(outbound), .. }) => unsent = outbound,
                Err(refused) => return Err(refused),
            }
        }
        let addresses = [IpAddr::V4(record.private_ipv4), IpAddr::V6(record.private_ip)];
        let Some(sender) = self.connect(&record.id, addresses, port).await else {
            return Err(Refused { cause: Cause::NotListening, unsent: Some(unsent) });
        };
        let answer = self.exchange(sender, unsent).await?;
        self.finish(answer, key)
    }

    /// Returns how long nothing may move: what the port says, else the edge's own.
    fn idle(&self) -> Duration {
        pick::service(&self.target.record.services, self.public_port)
            .and_then(|service| pick::idle_timeout(service, self.public_port))
            .unwrap_or(self.limits.idle)
    }

    async fn connect(
        &self,
        machine: &MachineId,
        addresses: [IpAddr; 2],
        port: u16,
    ) -> Option<Sender> {
        for address in addresses {
            let began = Instant::now();
            let connecting = TcpStream::connect(SocketAddr::new(address, port));
            let stream = match tokio::time::timeout(self.limits.connect, connecting).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(%machine, %address, port, %error, "machine not connected");
                    continue;
                }
                Err(_) => {
                    tracing::debug!(%machine, %address, port, "machine did not accept in time");
                    continue;
                }
            };
            stream.set_nodelay(true).ok()?;
            let load = Arc::clone(&self.target.load);
            load.instance.connected(began.elapsed());
            let handshake = http1::Builder::new()
                .writev(false)
                .max_buf_size(ANSWER_HEAD_BYTES_MAX)
                .handshake(TokioIo::new(stream))
                .await;
            let Ok((sender, connection)) = handshake else {
                load.instance.disconnected();
                continue;
            };
            tokio::task::spawn_local(async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "connection to a machine ended");
                }
                load.instance.disconnected();
            });
            return Some(sender);
        }
        None
    }

    async fn exchange(
        &self,
        mut sender: Sender,
        mut outbound: Box<Outbound>,
    ) -> Result<Answer, Refused> {
        if sender.ready().await.is_err() {
            return Err(Refused { cause: Cause::Upstream, unsent: Some(outbound) });
        }
        let Outbound { request, progress, switch } = *outbound;
        let began = Instant::now();
        progress.set(began);
        let mut sending = std::pin::pin!(sender.try_send_request(request));
        let sent = loop {
            // Counted from the last byte of the body that moved: an upload may take its time.
            let deadline = progress.get() + self.limits.answer;
            match tokio::time::timeout_at(deadline, &mut sending).await {
                Ok(sent) => break sent,
                Err(_) if progress.get() + self.limits.answer > Instant::now() => {}
                Err(_) => return Err(Refused::sent(Cause::Slow)),
            }
        };
        match sent {
            Ok(response) => {
                let instance = &self.target.load.instance;
                instance.answered(response.status().as_u16(), began.elapsed());
                Ok(Answer { response, sender, switch })
            }
            Err(mut error) => {
                let Some(request) = error.take_message() else {
                    return Err(Refused::sent(cause_of(&error.into_error())));
                };
                outbound = Box::new(Outbound { request, progress, switch });
                Err(Refused { cause: Cause::Upstream, unsent: Some(outbound) })
            }
        }
    }

    fn finish(self, answer: Answer, key: Key) -> Result<Response<ReplyBody>, Refused> {
        let idle = self.idle();
        let Answer { mut response, sender, switch } = answer;
        if !has_clear_length(response.headers()) {
            return Err(Refused::sent(Cause::BadAnswer));
        }
        let protocol = response.headers_mut().remove(http::header::UPGRADE);
        headers::strip(response.headers_mut());
        response.headers_mut().remove(TRANSFER_ENCODING);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Only to what was asked for (RFC 9110, section 7.8).
            let (Some((asked, client)), Some(protocol)) = (switch, protocol) else {
                return Err(Refused::sent(Cause::BadAnswer));
            };
            if !headers::offers(&asked, &protocol) {
                return Err(Refused::sent(Cause::BadAnswer));
            }
            let machine = hyper::upgrade::on(&mut response);
            headers::restore_upgrade(response.headers_mut(), protocol);
            let in_flight = self.in_flight.into_tunnel();
            tokio::task::spawn_local(tunnel(client, machine, idle, in_flight));
            return Ok(response.map(|_| ReplyBody::Page(None)));
        }
        let back = Some((self.pool.clone(), key, sender));
        Ok(response.map(|incoming| {
            ReplyBody::Machine(Box::new(MachineBody::new(incoming, back, idle, self.in_flight)))
        }))
    }
}

/// What a machine said, and the connection over which it did.
#[derive(Debug)]
struct Answer {
    response: Response<Incoming>,
    sender: Sender,
    switch: Option<(HeaderValue, OnUpgrade)>,
}

/// Returns whether it is beyond doubt where an answer ends: one length, or chunks alone.
fn has_clear_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (lengths.next(), codings.next()) {
        (_, None) => lengths.next().is_none(),
        (Some(_), Some(_)) => false,
        (None, Some(coding)) => {
            coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none()
        }
    }
}

/// Returns whose fault it is that an exchange broke off.
fn cause_of(error: &hyper::Error) -> Cause {
    if error.is_parse() {
        Cause::BadAnswer
    } else if error.is_user() {
        // The body that was being sent broke: the client is gone, or was in doubt.
        Cause::BadRequest
    } else {
        Cause::Upstream
    }
}

/// Copies bytes both ways until one side ends or nothing moves for `idle`.
async fn tunnel(client: OnUpgrade, machine: OnUpgrade, idle: Duration, in_flight: InFlight) {
    let (Ok(client), Ok(machine)) = (client.await, machine.await) else {
        return;
    };
    let motion = Motion::new();
    let mut client = Moving::new(TokioIo::new(client), &motion);
    let mut machine = Moving::new(TokioIo::new(machine), &motion);
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut machine) => {
            if let Err(error) = copied {
                tracing::debug!(%error, "tunnel ended");
            }
        }
        () = motion.is_still(idle) => {
            tracing::debug!(limit_s = idle.as_secs(), "tunnel over which nothing moved ended");
        }
    }
    in_flight.metrics().bytes_in.add(client.taken());
    in_flight.metrics().bytes_out.add(machine.taken());
    drop(in_flight);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4_an_answer_has_one_clear_length() {
        for (fields, want) in [
            (&[][..], true),
            (&[("content-length", "3")], true),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("content-length", "3"), ("content-length", "3")], false),
            (&[("content-length", "3"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(has_clear_length(&headers), want, "{fields:?}");
        }
    }
}
