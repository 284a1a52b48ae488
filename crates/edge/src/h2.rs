//! HTTP/2 over one connection: its limits, and the streams on it.
//!
//! Never lets a client hold more than it was given: streams, bytes, resets and silence each have an
//! end. What is asked on a stream goes to the same service as over HTTP/1.1, and what is common of it
//! the same short way.

mod exchange;
mod request;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use perch_sockets::Timer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::account::Accounted;
use crate::body::BodyError;
use crate::connection::{asked_to_stop, head_max};
use crate::gather::gathered;
use crate::listen::Worker;
use crate::peer::Peer;
use crate::strict::{self, Frames, HEAD_BYTES_MAX, Link};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::request::fuzz;

/// Requests at once over a connection.
const STREAMS_MAX: u32 = 128;
/// Streams that the client has reset and that nobody has looked at yet.
const PENDING_RESETS_MAX: usize = 32;
/// Streams that the client has made the server reset.
const LOCAL_RESETS_MAX: usize = 64;
/// How much of a request's body, and of all together, may come before it is taken.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// How much of an answer is held for a client that does not take it.
const SEND_BUFFER_BYTES: usize = 32 * 1024;
/// The largest frame that may come.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// What compression of fields remembers.
const FIELD_TABLE_BYTES: u32 = 4 * 1024;
/// How often a client has to show that it is there, and how quickly.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_MAX: Duration = Duration::from_secs(20);

/// Serves HTTP/2 until the client leaves, falls silent or the edge stops.
pub(crate) async fn serve<S>(
    worker: Rc<Worker>,
    stream: S,
    peer: Peer,
    mut stopping: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = worker.shared.limits.clone();
    let head_max = head_max(&worker, &peer).unwrap_or(limits.head).min(limits.head);
    let (peer, streams) = (Rc::new(peer), Rc::new(Streams::new()));
    let begun = Rc::clone(&streams);
    // Else each answer would be a write and a record of its own, or two.
    let (stream, outlet) = gathered(stream, worker.pool.buffers());
    let service = service_fn(move |request: Request<Incoming>| {
        let pace = begun.begin();
        let asked = Box::new(request.into_parts());
        // The library moves it from hand to hand by value before it is first polled.
        Box::pin(answer(Rc::clone(&worker), Rc::clone(&peer), asked, pace))
    });
    let tasks = Tasks { streams: Rc::clone(&streams), stall: limits.stall };
    let connection = http2::Builder::new(tasks)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .header_table_size(FIELD_TABLE_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .serve_connection(TokioIo::new(Frames::new(stream, head_max)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = poll_fn(|context| outlet.poll_turn(connection.as_mut(), context)) => Some(ended),
        () = asked_to_stop(&mut stopping) => None,
        () = streams.are_idle(limits.head) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        // The client is told not to begin anything; what is under way goes on.
        None => {
            streams.quiet_since.set(Instant::now());
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = poll_fn(|context| outlet.poll_turn(connection.as_mut(), context)) => ended,
                () = streams.are_idle(limits.stall) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Answers the request of a stream.
async fn answer(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    mut asked: Box<(Parts, Incoming)>,
    pace: Rc<Pace>,
) -> Result<Response<PacedBody>, Infallible> {
    let (parts, body) = &mut *asked;
    let is_head = parts.method == Method::HEAD;
    let link = match strict::h2::judge(parts) {
        Ok(()) => {
            if body.is_end_stream()
                && let Some(response) = exchange::answer(&worker, &peer, parts).await
            {
                return Ok(paced(response, is_head, pace));
            }
            Link::default()
        }
        Err(cause) => {
            // As with HTTP/1.1, a request without a host stands in for one in doubt.
            parts.headers.remove(HOST);
            Link::refusing(cause)
        }
    };
    let (parts, body) = *asked;
    // Apart, so that whoever does not go all of this way takes little.
    let serving = Box::pin(worker.serve(Request::from_parts(parts, body), &peer, &link));
    Ok(paced(serving.await, is_head, pace))
}

/// Makes an answer one of a stream.
fn paced(mut response: Response<Accounted>, is_head: bool, pace: Rc<Pace>) -> Response<PacedBody> {
    // A page of the edge ends a connection of HTTP/1.1 with it.
    response.headers_mut().remove(CONNECTION);
    let length = response.body().size_hint().exact().filter(|length| is_head && *length > 0);
    if let Some(length) = length {
        // The library says that of a body which it sends, and sends each that there is.
        response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    pace.gives();
    response.map(|inner| PacedBody { inner, is_head, pace })
}

/// What goes on over one connection.
#[derive(Debug)]
struct Streams {
    active: Cell<usize>,
    quiet_since: Cell<Instant>,
    /// The stream that has begun and has no task yet: the library asks the service and makes the
    /// task of what it returns, one after the other.
    begun: RefCell<Option<Rc<Pace>>>,
}

impl Streams {
    fn new() -> Self {
        Self {
            active: Cell::new(0),
            quiet_since: Cell::new(Instant::now()),
            begun: RefCell::new(None),
        }
    }

    fn begin(&self) -> Rc<Pace> {
        let pace = Rc::new(Pace::default());
        *self.begun.borrow_mut() = Some(Rc::clone(&pace));
        pace
    }

    /// Waits until nothing was asked for so long.
    async fn are_idle(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let is_quiet = self.active.get() == 0;
            let until = if is_quiet { self.quiet_since.get() + limit } else { now + limit };
            if is_quiet && now >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// One stream that is counted until this is dropped.
struct Active(Rc<Streams>);

impl Active {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.active.set(streams.active.get() + 1);
        Self(Rc::clone(streams))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.quiet_since.set(Instant::now());
    }
}

/// Whether the client is to take something of an answer, and how often it has.
#[derive(Debug, Default)]
struct Pace {
    given: Cell<u64>,
    is_waiting: Cell<bool>,
}

impl Pace {
    fn gives(&self) {
        self.given.set(self.given.get().wrapping_add(1));
        self.is_waiting.set(true);
    }

    fn takes(&self) {
        self.is_waiting.set(false);
    }
}

/// An answer's body that notes when the client takes of it: it is asked for more only when there is
/// room for that.
#[derive(Debug)]
struct PacedBody {
    inner: Accounted,
    /// Whether its head alone was asked for.
    is_head: bool,
    pace: Rc<Pace>,
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        this.pace.takes();
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            this.pace.gives();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.is_head || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Runs the streams of a connection on its own loop.
#[derive(Debug, Clone)]
struct Tasks {
    streams: Rc<Streams>,
    stall: Duration,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        let active = Active::new(&self.streams);
        let pace = self.streams.begun.take().unwrap_or_default();
        let stalled = Stalled { pace, seen: 0, timer: Timer::default() };
        let future = Box::pin(future);
        let task = StreamTask { future, stalled, stall: self.stall, _active: active };
        tokio::task::spawn_local(task);
    }
}

/// The task of a stream. When it is dropped before its end, the stream is reset.
struct StreamTask<F> {
    future: Pin<Box<F>>,
    stalled: Stalled,
    stall: Duration,
    _active: Active,
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        match this.future.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => this.stalled.poll(this.stall, context),
        }
    }
}

/// A client's patience with one stream, as its task sees it.
struct Stalled {
    pace: Rc<Pace>,
    seen: u64,
    timer: Timer,
}

impl Stalled {
    /// Ends when the client has taken nothing for so long of what it was given.
    fn poll(&mut self, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let given = self.pace.given.get();
        if !self.pace.is_waiting.get() || given != self.seen {
            self.seen = given;
            self.timer.reset();
        }
        if self.pace.is_waiting.get() && self.timer.is_over(limit, context) {
            tracing::debug!("stream reset: the other side takes nothing");
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough for what must not happen to happen, short enough to wait for.
    const WAIT: Duration = Duration::from_millis(50);
    const LIMIT: Duration = Duration::from_millis(1);
    const DEADLINE: Duration = Duration::from_secs(20);

    async fn ends(within: Duration, ending: impl Future<Output = ()>) -> bool {
        tokio::time::timeout(within, ending).await.is_ok()
    }

    fn stalled(pace: &Rc<Pace>) -> Stalled {
        Stalled { pace: Rc::clone(pace), seen: 0, timer: Timer::default() }
    }

    async fn stalls(stalled: &mut Stalled, within: Duration) -> bool {
        ends(within, poll_fn(|context| stalled.poll(LIMIT, context))).await
    }

    /// What the allocator gives back to the next stream at once, less what the library has beside it.
    const STREAM_BYTES_MAX: usize = 896;

    /// Returns how much that takes which a function returns.
    fn size<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_answers_a_stream_takes_little() {
        let size = size(answer);
        assert!(size <= STREAM_BYTES_MAX, "{size}");
    }

    #[tokio::test]
    async fn e5_a_stream_ends_when_the_client_takes_nothing_and_only_then() {
        let pace = Rc::new(Pace::default());
        let mut stalled = stalled(&pace);
        // It is the app that takes its time.
        assert!(!stalls(&mut stalled, WAIT).await);
        pace.gives();
        pace.takes();
        assert!(!stalls(&mut stalled, WAIT).await);
        pace.gives();
        assert!(stalls(&mut stalled, DEADLINE).await);
    }

    #[tokio::test]
    async fn e5_patience_begins_anew_with_all_that_is_taken() {
        let pace = Rc::new(Pace::default());
        let mut stalled = stalled(&pace);
        pace.gives();
        let hour = Duration::from_secs(3_600);
        let waits = |context: &mut Context<'_>| Poll::Ready(stalled.poll(hour, context));
        assert!(poll_fn(waits).await.is_pending());
        pace.takes();
        pace.gives();
        // The hour's wait is forgotten: a new one is as long as it is asked to be now.
        assert!(stalls(&mut stalled, DEADLINE).await);
    }

    #[tokio::test]
    async fn e5_a_connection_is_idle_when_nothing_was_asked_for_so_long() {
        let streams = Rc::new(Streams::new());
        let active = Active::new(&streams);
        assert!(!ends(WAIT, streams.are_idle(LIMIT)).await);
        drop(active);
        assert!(ends(DEADLINE, streams.are_idle(LIMIT)).await);
    }
}
