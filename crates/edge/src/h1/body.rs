//! Passes an answer's body on to the client, from wherever it comes.
//!
//! Never keeps more of one than was read at once, and never goes on for a client that has left.
//! What is small leaves in one write with the head; what is large is sent from where it came, or
//! does not come here at all: where both connections are in the clear, the kernel moves it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use perch_sockets::Timer;

use super::answer::Ends;
use super::client::{Client, Wire};
use crate::account::{Accounted, End};
use crate::forward::Hop;
use crate::origin1::Origin;
use crate::pool::Key;
use crate::splice::{self, Lent};

/// How much is gathered for one write.
const GATHERED_BYTES_MAX: usize = 16 * 1024;
/// How much is moved before others have their turn.
const TURN_BYTES_MAX: usize = 1024 * 1024;

/// A body that has no end as it should.
#[derive(Debug, Clone, Copy)]
pub(super) struct Broken;

/// A body that comes in pieces.
pub(super) trait Pieces {
    /// Waits until there is a piece, or all of it was taken: then it is false.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Broken>>;

    /// Returns the piece.
    fn piece(&self) -> &[u8];

    /// Takes it.
    fn take(&mut self) -> Bytes;

    /// Takes it, as it was copied.
    fn consume(&mut self);

    /// Returns whether all of it was taken, if that is known without a wait.
    fn is_over(&self) -> bool;

    /// Returns whether what is left of it may be moved by the kernel, and is worth that.
    fn is_large(&self) -> bool {
        false
    }

    /// Returns a pipe for it, if there is one.
    fn pipe(&self) -> Option<Lent> {
        None
    }

    /// Fills an empty pipe; returns how much that was. What is not moved is to be waited for as a
    /// piece: then it is 0.
    fn poll_fill(&mut self, _: &mut Lent, _: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        Poll::Ready(Ok(0))
    }

    /// Ends well, before the last of it is sent.
    fn done(self);
}

/// The body of a common answer, and what is held for it.
pub(super) struct Machine<'a> {
    pub(super) origin: Box<Origin>,
    pub(super) key: Key,
    pub(super) hop: Hop<'a>,
    pub(super) idle: Duration,
    pub(super) silence: Timer,
}

impl Machine<'_> {
    /// Waits on for a machine that says nothing, unless that was too long.
    fn poll_silent<T>(&mut self, context: &mut Context<'_>) -> Poll<Result<T, Broken>> {
        if !self.silence.is_over(self.idle, context) {
            return Poll::Pending;
        }
        tracing::debug!(limit_s = self.idle.as_secs(), "answer in which nothing moved ended");
        self.breaks_off()
    }

    fn breaks_off<T>(&self) -> Poll<Result<T, Broken>> {
        self.hop.account.ends(End::Broken);
        Poll::Ready(Err(Broken))
    }
}

impl Pieces for Machine<'_> {
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        match self.origin.poll_more(context) {
            Poll::Ready(Ok(more)) => {
                self.silence.reset();
                Poll::Ready(Ok(more))
            }
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "answer broke off");
                self.breaks_off()
            }
            Poll::Pending => self.poll_silent(context),
        }
    }

    fn piece(&self) -> &[u8] {
        self.origin.data()
    }

    fn take(&mut self) -> Bytes {
        let piece = self.origin.take_data();
        self.hop.account.pays_out(piece.len() as u64);
        piece
    }

    fn consume(&mut self) {
        let count = self.origin.data().len();
        self.origin.consume(count);
        self.hop.account.pays_out(count as u64);
    }

    fn is_over(&self) -> bool {
        self.origin.is_over()
    }

    fn is_large(&self) -> bool {
        self.origin.to_come().is_some_and(|bytes| bytes >= splice::WORTH_BYTES)
    }

    fn pipe(&self) -> Option<Lent> {
        self.hop.pool.pipes().take()
    }

    fn poll_fill(
        &mut self,
        pipe: &mut Lent,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, Broken>> {
        match self.origin.poll_fill(pipe, context) {
            Poll::Ready(count) => {
                self.silence.reset();
                self.hop.account.splices(count as u64);
                Poll::Ready(Ok(count))
            }
            Poll::Pending => self.poll_silent(context),
        }
    }

    fn done(self) {
        self.hop.account.ends(End::Whole);
        self.hop.pool.put(&self.key, self.origin);
    }
}

/// The body of any other answer.
pub(super) struct Frames {
    body: Accounted,
    piece: Bytes,
}

impl Frames {
    pub(super) const fn new(body: Accounted) -> Self {
        Self { body, piece: Bytes::new() }
    }
}

impl Pieces for Frames {
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        while self.piece.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                // What stands behind a body has no place in HTTP/1.1 that this client asked for.
                Some(Ok(frame)) => self.piece = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    tracing::debug!(%error, "answer broke off");
                    return Poll::Ready(Err(Broken));
                }
                None => return Poll::Ready(Ok(false)),
            }
        }
        Poll::Ready(Ok(true))
    }

    fn piece(&self) -> &[u8] {
        &self.piece
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.piece)
    }

    fn consume(&mut self) {
        self.piece = Bytes::new();
    }

    fn is_over(&self) -> bool {
        self.piece.is_empty() && self.body.is_end_stream()
    }

    fn done(self) {
        drop(self);
    }
}

/// What is to be done next.
enum Step {
    Take,
    /// Nothing more has come: what was gathered is sent.
    Send,
    Over,
    Broken,
}

/// Sends what was written of a head, and a body behind it, after which nothing may follow; returns
/// whether all of it was sent.
pub(super) async fn pass<S: Wire, P: Pieces>(
    client: &mut Client<S>,
    out: &mut BytesMut,
    (mut ends, is_last): (Ends, bool),
    mut body: P,
) -> bool {
    let (mut pipe, mut is_read) = (None, false);
    let last = loop {
        if ends == Ends::Nothing || body.is_over() {
            break Bytes::new();
        }
        if !is_read && body.is_large() {
            // What is not moved then is read.
            is_read = true;
            match through(client, out, &mut ends, &mut body).await {
                Ok(last) => pipe = last,
                Err(Broken) => return false,
            }
            continue;
        }
        match poll_fn(|context| step(client, out, &mut body, context)).await {
            Step::Over => break Bytes::new(),
            Step::Send => {
                if client.send(out, Bytes::new(), b"").await.is_err() {
                    return false;
                }
            }
            Step::Broken => {
                // The client sees how far it came.
                client.send(out, Bytes::new(), b"").await.ok();
                return false;
            }
            Step::Take => {
                let count = body.piece().len();
                if !ends.begin_piece(count, out) {
                    return false;
                }
                if out.len() + count <= GATHERED_BYTES_MAX {
                    out.extend_from_slice(body.piece());
                    out.extend_from_slice(ends.tail());
                    body.consume();
                    continue;
                }
                let piece = body.take();
                if body.is_over() {
                    break piece;
                }
                if client.send(out, piece, ends.tail()).await.is_err() {
                    return false;
                }
            }
        }
    };
    // Others have the machine while this client takes its time.
    body.done();
    if let Some(pipe) = &mut pipe
        && poll_fn(|context| poll_drain(client, pipe, context)).await.is_err()
    {
        return false;
    }
    if !last.is_empty() && client.send(out, last, ends.tail()).await.is_err() {
        return false;
    }
    let is_whole = ends.end(out);
    // One that is cut short does not end as if it were whole.
    let sent = if is_last && is_whole {
        client.send_last(out).await
    } else {
        client.send(out, Bytes::new(), b"").await
    };
    sent.is_ok() && is_whole
}

fn step<S: Wire, P: Pieces>(
    client: &mut Client<S>,
    out: &BytesMut,
    body: &mut P,
    context: &mut Context<'_>,
) -> Poll<Step> {
    match body.poll_more(context) {
        Poll::Ready(Ok(true)) => Poll::Ready(Step::Take),
        Poll::Ready(Ok(false)) => Poll::Ready(Step::Over),
        Poll::Ready(Err(Broken)) => Poll::Ready(Step::Broken),
        Poll::Pending if !out.is_empty() => Poll::Ready(Step::Send),
        Poll::Pending => client.poll_left(context).map(|()| Step::Broken),
    }
}

/// Has the kernel move what is left of a body, if it may; returns the pipe if the last of it is
/// still in there.
async fn through<S: Wire, P: Pieces>(
    client: &mut Client<S>,
    out: &mut BytesMut,
    ends: &mut Ends,
    body: &mut P,
) -> Result<Option<Lent>, Broken> {
    if client.stream.plain().is_none() {
        return Ok(None);
    }
    let Some(mut pipe) = body.pipe() else { return Ok(None) };
    client.send(out, Bytes::new(), b"").await.map_err(|_| Broken)?;
    poll_fn(|context| poll_through(client, &mut pipe, ends, body, context)).await?;
    Ok((!pipe.is_empty()).then_some(pipe))
}

/// Fills a pipe and empties it, until nothing more is moved from the machine's connection.
fn poll_through<S: Wire, P: Pieces>(
    client: &mut Client<S>,
    pipe: &mut Lent,
    ends: &mut Ends,
    body: &mut P,
    context: &mut Context<'_>,
) -> Poll<Result<(), Broken>> {
    let mut moved = 0;
    while moved < TURN_BYTES_MAX {
        if body.is_over() {
            return Poll::Ready(Ok(()));
        }
        ready!(poll_drain(client, pipe, context))?;
        match body.poll_fill(pipe, context) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
            Poll::Ready(Ok(count)) => {
                // Nothing is written of a piece where the length was said.
                if !ends.begin_piece(count, &mut BytesMut::new()) {
                    return Poll::Ready(Err(Broken));
                }
                moved += count;
            }
            Poll::Ready(Err(Broken)) => return Poll::Ready(Err(Broken)),
            Poll::Pending => return client.poll_left(context).map(|()| Err(Broken)),
        }
    }
    context.waker().wake_by_ref();
    Poll::Pending
}

fn poll_drain<S: Wire>(
    client: &mut Client<S>,
    pipe: &mut Lent,
    context: &mut Context<'_>,
) -> Poll<Result<(), Broken>> {
    // There is a pipe only for one that is plain.
    let Some(socket) = client.stream.plain() else { return Poll::Ready(Err(Broken)) };
    pipe.poll_drain(socket, context).map_err(|_| Broken)
}
