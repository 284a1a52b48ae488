//! Connects to a machine and hands the request over.
//!
//! Never sends a request twice: another machine is tried only when nothing of it was sent.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use perch_types::service::HttpOptions;
use tokio::time::Instant;

use crate::Limits;
use crate::account::{Account, End};
use crate::body::{Back, MachineBody, ReplyBody};
use crate::cause::Cause;
use crate::live::{InFlight, Target};
use crate::passage::{self, Ended, How, Terms};
use crate::pool::{Key, Pool, Single, Stream};
use crate::upload::{Progress, RequestBody};
use crate::{dial, headers, origin2, pick};

/// The largest head of an answer.
pub(crate) const ANSWER_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a tunnel that are under way in one direction.
const TUNNEL_BUFFER_BYTES: usize = 8 * 1024;

/// The protocol to switch to, and the client's side of the switch.
pub(crate) type Switch = (HeaderValue, OnUpgrade);

/// A request on its way to a machine.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) request: Request<RequestBody>,
    /// How its body gets on.
    pub(crate) progress: Progress,
    pub(crate) switch: Option<Switch>,
    /// Whether the client takes fields behind the answer's body.
    pub(crate) takes_trailers: bool,
}

/// What a machine answered, and the switch that it did not take.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) response: Response<ReplyBody>,
    pub(crate) switch: Option<Switch>,
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

/// A connection that a request can go over.
#[derive(Debug)]
pub(crate) enum Sender {
    Single(Single),
    Stream(Stream),
}

/// One machine that is to have a request, in which it is counted.
#[derive(Debug)]
pub(crate) struct Hop<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) limits: &'a Limits,
    pub(crate) target: &'a Arc<Target>,
    pub(crate) public_port: u16,
    /// The client's connection, where the machine's side of it is for it alone.
    pub(crate) client: u64,
    pub(crate) in_flight: InFlight,
    pub(crate) account: &'a Rc<Account>,
}

/// Returns under what a machine's connections are kept.
pub(crate) fn key(target: &Target, public_port: u16, client: u64) -> Option<Key> {
    let service = pick::service(&target.record.services, public_port)?;
    Some(Key {
        machine: target.record.id.clone(),
        instance: target.record.instance.clone(),
        port: service.internal_port,
        client,
    })
}

impl Hop<'_> {
    /// Sends the request and returns the answer as soon as its head is there.
    pub(crate) async fn send(self, outbound: Box<Outbound>) -> Result<Sent, Refused> {
        let Some(key) = key(self.target, self.public_port, self.client) else {
            return Err(Refused { cause: Cause::NoMachine, unsent: Some(outbound) });
        };
        // A switch of protocols is HTTP/1.1's alone.
        let is_shared = outbound.switch.is_none()
            && self.options().is_some_and(|it| it.h2_backend == Some(true));
        let mut unsent = outbound;
        // A connection from the pool may have been closed by the app a moment ago: then nothing
        // was sent, and the request goes over a new one.
        while let Some(sender) = self.take(&key, is_shared) {
            match self.exchange(&key, sender, unsent).await {
                Ok(answer) => return self.finish(answer, key),
                Err(Refused { unsent: Some(outbound), .. }) => unsent = outbound,
                Err(refused) => return Err(refused),
            }
        }
        let Some(sender) = self.connect(&key, is_shared).await else {
            return Err(Refused { cause: Cause::NotListening, unsent: Some(unsent) });
        };
        let answer = self.exchange(&key, sender, unsent).await?;
        self.finish(answer, key)
    }

    fn options(&self) -> Option<&HttpOptions> {
        let service = pick::service(&self.target.record.services, self.public_port)?;
        pick::options(service, self.public_port)
    }

    /// Returns how long nothing may move: what the port says, else the edge's own.
    fn idle(&self) -> Duration {
        self.options().and_then(pick::idle_timeout).unwrap_or(self.limits.idle)
    }

    /// Returns the same of the time before an answer begins.
    fn patience(&self) -> Duration {
        self.options().and_then(pick::idle_timeout).unwrap_or(self.limits.answer)
    }

    fn take(&self, key: &Key, is_shared: bool) -> Option<Sender> {
        if is_shared {
            self.pool.take_stream(key).map(Sender::Stream)
        } else {
            self.pool.take(key).map(Sender::Single)
        }
    }

    async fn connect(&self, key: &Key, is_shared: bool) -> Option<Sender> {
        for address in dial::addresses(&self.target.record) {
            let (at, limit) = (SocketAddr::new(address, key.port), self.limits.connect);
            let reached = dial::reach(self.target, at, limit, |stream| stream.set_nodelay(true));
            let Some(stream) = reached.await else {
                continue;
            };
            let load = Arc::clone(&self.target.load);
            if is_shared {
                let Some(sender) = origin2::handshake(stream, load).await else {
                    continue;
                };
                return Some(Sender::Stream(self.pool.share(key, sender)));
            }
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
            return Some(Sender::Single(sender));
        }
        None
    }

    pub(crate) async fn exchange(
        &self,
        key: &Key,
        mut sender: Sender,
        outbound: Box<Outbound>,
    ) -> Result<Answer, Refused> {
        let is_ready = match &mut sender {
            Sender::Single(single) => single.ready().await,
            Sender::Stream(stream) => stream.sender.ready().await,
        };
        if is_ready.is_err() {
            if let Sender::Stream(stream) = &sender {
                self.pool.give_up(key, stream);
            }
            return Err(Refused { cause: Cause::Upstream, unsent: Some(outbound) });
        }
        let Outbound { mut request, progress, switch, takes_trailers } = *outbound;
        let began = Instant::now();
        progress.moves();
        let patience = self.patience();
        let mut sending = std::pin::pin!(match &mut sender {
            Sender::Single(single) => Either::Left(single.try_send_request(request)),
            Sender::Stream(stream) => {
                origin2::dress(&mut request, takes_trailers);
                Either::Right(stream.sender.try_send_request(request))
            }
        });
        let sent = loop {
            // Counted from the last byte of the body that moved: an upload may take its time.
            let deadline = progress.last() + patience;
            match tokio::time::timeout_at(deadline, &mut sending).await {
                Ok(sent) => break sent,
                Err(_) if progress.last() + patience > Instant::now() => {}
                Err(_) => return Err(Refused::sent(progress.why_still())),
            }
        };
        match sent {
            Ok(response) => {
                let Target { record, load, .. } = self.target.as_ref();
                let status = response.status().as_u16();
                load.instance.answered(&record.instance, status, began.elapsed());
                Ok(Answer { response, sender, switch })
            }
            Err(mut error) => {
                let Some(mut request) = error.take_message() else {
                    let cause = progress.fault().unwrap_or_else(|| cause_of(&error.into_error()));
                    return Err(Refused::sent(cause));
                };
                if let Sender::Stream(stream) = &sender {
                    origin2::undress(&mut request);
                    self.pool.give_up(key, stream);
                }
                let unsent = Outbound { request, progress, switch, takes_trailers };
                Err(Refused { cause: Cause::Upstream, unsent: Some(Box::new(unsent)) })
            }
        }
    }

    pub(crate) fn finish(self, answer: Answer, key: Key) -> Result<Sent, Refused> {
        let idle = self.idle();
        let Answer { mut response, sender, switch } = answer;
        if !has_clear_length(response.headers()) {
            return Err(Refused::sent(Cause::BadAnswer));
        }
        let protocol = response.headers_mut().remove(http::header::UPGRADE);
        headers::strip(response.headers_mut());
        response.headers_mut().remove(TRANSFER_ENCODING);
        let is_far = self.target.load.is_far;
        if !is_far {
            response.headers_mut().remove(headers::HOP);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Only to what was asked for (RFC 9110, section 7.8), and by a machine that keeps the
            // request to itself.
            let (Some((asked, client)), Some(protocol)) = (switch, protocol) else {
                return Err(Refused::sent(Cause::BadAnswer));
            };
            if response.headers().contains_key(&crate::replay::FIELD) {
                return Err(Refused::sent(Cause::ReplaySwitched));
            }
            if !headers::offers(&asked, &protocol) {
                return Err(Refused::sent(Cause::BadAnswer));
            }
            let machine = hyper::upgrade::on(&mut response);
            headers::restore_upgrade(response.headers_mut(), protocol);
            let in_flight = self.in_flight.into_tunnel();
            let account = Rc::clone(self.account);
            tokio::task::spawn_local(tunnel(client, machine, idle, in_flight, account));
            return Ok(Sent { response: response.map(|_| ReplyBody::Page(None)), switch: None });
        }
        let back = match sender {
            // That to another edge was for a switch alone.
            Sender::Single(_) if is_far => None,
            Sender::Single(single) => Some(Back::Single(self.pool.clone(), key, single)),
            Sender::Stream(stream) => Some(Back::Stream(stream)),
        };
        let response = response.map(|incoming| {
            let body = MachineBody::new(incoming, back, idle, self.in_flight);
            ReplyBody::Machine(Box::new(body))
        });
        Ok(Sent { response, switch })
    }
}

/// What a machine said, and the connection over which it did.
#[derive(Debug)]
pub(crate) struct Answer {
    response: Response<Incoming>,
    sender: Sender,
    switch: Option<Switch>,
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
async fn tunnel(
    client: OnUpgrade,
    machine: OnUpgrade,
    idle: Duration,
    in_flight: InFlight,
    account: Rc<Account>,
) {
    let (Ok(client), Ok(machine)) = (client.await, machine.await) else {
        return;
    };
    let terms = Terms { buffer_bytes: TUNNEL_BUFFER_BYTES, idle, half_idle: idle };
    let (client, machine) = (TokioIo::new(client), TokioIo::new(machine));
    let Ended { sent, received, how } = passage::pass(client, machine, terms).await;
    let end = match how {
        How::Closed => End::Whole,
        How::Broken(error) => {
            tracing::debug!(%error, "tunnel ended");
            End::Broken
        }
        How::Idle => {
            tracing::debug!(limit_s = idle.as_secs(), "tunnel over which nothing moved ended");
            End::Idle
        }
    };
    account.tunnelled(sent, received, end);
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
