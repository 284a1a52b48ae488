//! Has a connection at a raw port carried to a machine of another host, by the edge there.
//!
//! Never sends a byte of the client's before a machine has taken the connection: until then it may
//! go elsewhere, and after that nowhere.

use std::sync::Arc;

use http::{Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::{self, Upgraded};
use hyper_util::rt::TokioIo;
use perch_types::{HostId, MachineId};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::cause::Cause;
use crate::headers;
use crate::listen::Worker;
use crate::live::{InFlight, Target};
use crate::passage::{self, Ended, Terms};
use crate::pool::Stream;
use crate::raw::Ends;
use crate::upload::RequestBody;

use super::hop::{Order, Verdict};
use super::leave::{Asked, Choice};
use super::{Far, peer_name};

/// The way to a machine of another host that took a connection.
#[derive(Debug)]
pub(crate) struct Carried {
    target: Arc<Target>,
    stream: TokioIo<Upgraded>,
    /// Its place on the connection between the edges.
    place: Stream,
    in_flight: InFlight,
}

impl Carried {
    /// Returns which machine it is, and whose.
    pub(crate) fn machine(&self) -> (&MachineId, &HostId) {
        (&self.target.record.id, &self.target.record.host)
    }

    /// Passes all that comes, both ways; the edge there counts it.
    pub(crate) async fn pass<C>(self, client: C, terms: Terms) -> Ended
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { target: _, stream, place, in_flight } = self;
        let ended = passage::pass(client, stream, terms).await;
        drop((place, in_flight));
        ended
    }
}

impl Worker {
    /// Has the edge of another host find a machine there; nothing when none there takes the
    /// connection, and others are to be asked.
    pub(crate) async fn carry(
        &self,
        choice: Choice,
        ends: Ends,
        asked: &mut Asked,
    ) -> Result<Option<Carried>, Cause> {
        let Choice { target, in_flight, order } = choice;
        let order = Order { ends: Some(ends), ..order };
        let answer = match &self.shared.far {
            Some(far) => self.ask_to_carry(far, &target.record.host, &order).await,
            None => None,
        };
        let cause = match answer {
            Some((response, place)) => match verdict(&response) {
                Some(Verdict::From(id)) => {
                    let stream = upgrade::on(response).await.map_err(|error| {
                        tracing::debug!(%error, "connection not carried");
                        Cause::BadAnswer
                    })?;
                    let (target, stream) =
                        (self.reached(&order, &id, target), TokioIo::new(stream));
                    return Ok(Some(Carried { target, stream, place, in_flight }));
                }
                Some(Verdict::Unsent(cause)) => cause,
                Some(Verdict::Failed(cause)) => return Err(cause),
                Some(Verdict::Static) | None => return Err(Cause::BadAnswer),
            },
            None => {
                self.note_away(&order.app, &target.record.host);
                Cause::HostAway
            }
        };
        asked.note(&order, &target, cause);
        Ok(None)
    }

    /// Asks the edge of a host and waits for what it says; nothing when it cannot be reached.
    async fn ask_to_carry(
        &self,
        far: &Far,
        host: &HostId,
        order: &Order,
    ) -> Option<(Response<Incoming>, Stream)> {
        let address = self.shared.view.load().edge(host);
        let (address, links) = (address?, &self.reach.carriers);
        loop {
            let (mut stream, is_new) = links.place(far, host, address).await?;
            let request = request(host, order)?;
            let asking = async {
                stream.sender.ready().await.ok()?;
                stream.sender.try_send_request(request).await.ok()
            };
            let asked = tokio::time::timeout(far.limits.answer, asking).await;
            match asked {
                Ok(Some(response)) => return Some((response, stream)),
                // The edge there ended the connection a moment ago: nothing of the client's was
                // sent over it.
                Ok(None) if !is_new => links.retire(host, &stream.streams),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

fn verdict(response: &Response<Incoming>) -> Option<Verdict> {
    response.headers().get(headers::HOP).and_then(Verdict::of)
}

/// Makes what asks for it: the bytes of the connection follow once the answer is there (RFC 9113,
/// section 8.5).
fn request(host: &HostId, order: &Order) -> Option<Request<RequestBody>> {
    let there = format!("{}:{}", peer_name(host), order.public_port);
    let mut request = Request::new(RequestBody::none());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::builder().authority(there.as_str()).build().ok()?;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert(headers::HOP, order.value()?);
    Some(request)
}
