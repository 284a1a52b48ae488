//! Passes an answer's body on to the client, from wherever it comes.
//!
//! Never keeps more of one than was read at once, and never goes on for a client that has left.
//! What is small leaves in one write with the head; what is large is sent from where it came.

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

/// How much is gathered for one write.
const GATHERED_BYTES_MAX: usize = 16 * 1024;

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

    /// Ends well, before the last of it is sent.
    fn done(self);
}

/// The body of a common answer, and what is held for it.
pub(super) struct Machine<'a> {
    pub(super) origin: Origin,
    pub(super) key: Key,
    pub(super) hop: Hop<'a>,
    pub(super) idle: Duration,
    pub(super) silence: Timer,
}

impl Pieces for Machine<'_> {
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        match self.origin.poll_more(context) {
            Poll::Ready(Ok(more)) => {
                self.silence.reset();
                return Poll::Ready(Ok(more));
            }
            Poll::Ready(Err(error)) => tracing::debug!(%error, "answer broke off"),
            Poll::Pending if self.silence.is_over(self.idle, context) => {
                tracing::debug!(
                    limit_s = self.idle.as_secs(),
                    "answer in which nothing moved ended"
                );
            }
            Poll::Pending => return Poll::Pending,
        }
        self.hop.account.ends(End::Broken);
        Poll::Ready(Err(Broken))
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
    let last = loop {
        if ends == Ends::Nothing || body.is_over() {
            break Bytes::new();
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
