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
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

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
        let Self { target: _, mut stream, place, in_flight } = self;
        let ended = passage::pass(client, &mut stream, terms).await;
        // What the machine has not taken yet keeps its stream open: so long the place is taken, or
        // the edge there would have no room for those that come to it.
        stream.shutdown().await.ok();
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
        let (address, links) = (address?, self.reach.carriers.of(&order.app));
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::rc::Rc;
    use std::time::Duration;

    use hyper::server::conn::http2;
    use hyper::service::service_fn;
    use perch_types::MachineState;
    use tokio::io::{AsyncReadExt as _, duplex};
    use tokio::sync::mpsc;
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::Instant;

    use super::*;
    use crate::live::tests::record;
    use crate::live::{AppKey, Load};
    use crate::origin2::{self, Bounds, OnLoop};
    use crate::passage::How;

    const BOUNDS: Bounds = Bounds {
        head_bytes: 64 * 1024,
        stream_bytes: 64 * 1024,
        connection_bytes: 64 * 1024,
        send_bytes: 64 * 1024,
    };
    /// How much the edge there lets come that its machine has not taken.
    const WINDOW_BYTES: u16 = 16 * 1024;
    const SHORT: Duration = Duration::from_millis(50);
    const TERMS: Terms = Terms { buffer_bytes: 1024, idle: SHORT, half_idle: SHORT };

    fn order() -> Order {
        Order {
            from: HostId::from_bits(1),
            app: AppKey { org: "personal".parse().unwrap(), name: "web".parse().unwrap() },
            public_port: 5_000,
            wait: Duration::ZERO,
            machine: None,
            ends: None,
        }
    }

    /// A connection that is carried to an edge, what is counted of it, and what that edge has of it.
    async fn carried() -> (Carried, Rc<()>, TokioIo<Upgraded>) {
        let (ours, theirs) = duplex(64 * 1024);
        let (takes, mut taken) = mpsc::channel(1);
        let service = service_fn(move |request: Request<Incoming>| {
            takes.try_send(upgrade::on(request)).unwrap();
            async { Ok::<_, Infallible>(Response::new(RequestBody::none())) }
        });
        let mut server = http2::Builder::new(OnLoop);
        server.initial_stream_window_size(u32::from(WINDOW_BYTES));
        spawn_local(server.serve_connection(TokioIo::new(theirs), service));
        let (sender, connection) =
            origin2::builder(BOUNDS).handshake(TokioIo::new(ours)).await.unwrap();
        spawn_local(connection);
        let streams = Rc::new(());
        let mut place = Stream { sender, streams: Rc::clone(&streams) };
        let asked = request(&HostId::from_bits(2), &order()).unwrap();
        let response = place.sender.try_send_request(asked).await.ok().unwrap();
        let stream = TokioIo::new(upgrade::on(response).await.unwrap());
        let there = TokioIo::new(taken.recv().await.unwrap().await.unwrap());
        let load = Arc::new(Load::of_far(&Arc::default()));
        let in_flight = load.begin(None).unwrap();
        let record = record(2, "web", MachineState::Started);
        let target = Arc::new(Target { record, load, since: Instant::now() });
        (Carried { target, stream, place, in_flight }, streams, there)
    }

    #[test]
    fn e5_a_place_is_taken_until_nothing_of_its_connection_is_under_way() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (carried, streams, mut there) = carried().await;
            let (mut client, ours) = duplex(1024 * 1024);
            // More than is let come where nothing is taken.
            client.write_all(&vec![7; 64 * 1024]).await.unwrap();
            let passing = spawn_local(carried.pass(ours, TERMS));
            // The client is let go.
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            assert_eq!(Rc::strong_count(&streams), 2, "its stream is still there");
            let mut all = Vec::new();
            there.read_to_end(&mut all).await.unwrap();
            let ended = passing.await.unwrap();
            assert!(matches!(ended.how, How::Idle), "{ended:?}");
            assert!(all.len() >= usize::from(WINDOW_BYTES), "{}", all.len());
            assert_eq!(Rc::strong_count(&streams), 1);
        });
    }
}
