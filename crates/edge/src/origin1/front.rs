//! What the common request needs beside: a head that is there already, without a body, and what has
//! come of the answer, without a copy.
//!
//! Never takes more of a connection into a pipe than the answer's length leaves.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use super::{Asked, Origin, Rest, Wire};
use crate::splice::Lent;

/// How much of a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrote {
    Whole,
    /// The connection broke, or takes nothing; an answer may have come before that.
    Part,
    /// No machine has seen anything of it.
    Nothing,
}

/// A request that is a head alone.
#[derive(Debug)]
pub(crate) struct Lone<'a> {
    pub(crate) head: &'a [u8],
    pub(crate) asked: Asked,
    /// Until when it is to be sent.
    pub(crate) deadline: Instant,
}

impl Origin {
    /// Sends a request that is a head alone. A machine that does not take it in time is one that
    /// does not answer: nobody else may have the request.
    pub(crate) async fn ask(&mut self, lone: &Lone<'_>) -> Wrote {
        let head = lone.head;
        self.begins(lone.asked);
        // Mostly there is room for all of it: nobody waits then, and whoever asks is small.
        let begun = poll_fn(|context| {
            let mut wire = self.link.wire.borrow_mut();
            Poll::Ready(Pin::new(&mut *wire).poll_write(context, head))
        });
        let sent = match begun.await {
            Poll::Ready(Ok(count @ 1..)) => count,
            Poll::Ready(Ok(0) | Err(_)) => return Wrote::Nothing,
            Poll::Pending => 0,
        };
        if sent < head.len() {
            return Box::pin(self.ask_on(lone, sent)).await;
        }
        self.is_sent = true;
        Wrote::Whole
    }

    /// Sends the rest of a head.
    async fn ask_on(&mut self, Lone { head, deadline, .. }: &Lone<'_>, sent: usize) -> Wrote {
        let mut rest = head.get(sent..).unwrap_or_default();
        while !rest.is_empty() {
            let writing = poll_fn(|context| {
                let mut wire = self.link.wire.borrow_mut();
                Pin::new(&mut *wire).poll_write(context, rest)
            });
            match tokio::time::timeout_at(*deadline, writing).await {
                Ok(Ok(count @ 1..)) => rest = rest.get(count..).unwrap_or_default(),
                Ok(Ok(0) | Err(_)) if rest.len() == head.len() => return Wrote::Nothing,
                Ok(Ok(0) | Err(_)) | Err(_) => return Wrote::Part,
            }
        }
        self.is_sent = true;
        Wrote::Whole
    }

    /// Returns the names and the values of its fields while these are kept.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let bytes = self.head_bytes();
        let fields = self.fields.iter().filter(move |_| !bytes.is_empty());
        fields.map(move |field| (field.name.within(bytes), field.value.within(bytes)))
    }

    /// Returns what there is of the body, in one piece.
    pub(crate) fn data(&self) -> &[u8] {
        self.buffer.get(self.at..self.at + self.ready).unwrap_or_default()
    }

    /// Takes so much of [`Origin::data`].
    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.ready);
        self.at += count;
        self.ready -= count;
        self.look();
    }

    /// Returns how many bytes of the body are to come, where all that has come was taken and the
    /// connection carries them as they are.
    pub(crate) fn to_come(&self) -> Option<u64> {
        let Rest::Length(left) = self.rest else { return None };
        let is_plain = matches!(&*self.link.wire.borrow(), Wire::Plain(_));
        (is_plain && self.ready == 0).then_some(left)
    }

    /// Fills an empty pipe with what comes next of the body; returns how much that was. What is not
    /// moved is to be read, such as an end: then it is 0.
    pub(crate) fn poll_fill(&mut self, pipe: &mut Lent, context: &mut Context<'_>) -> Poll<usize> {
        let Some(left) = self.to_come() else { return Poll::Ready(0) };
        // Nothing is kept meanwhile.
        self.release();
        self.buffers.give(std::mem::take(&mut self.buffer));
        let filled = match &*self.link.wire.borrow() {
            Wire::Plain(stream) => ready!(pipe.poll_fill(stream, left, context)),
            Wire::Tls(_) => Ok(0),
        };
        let count = filled.unwrap_or_else(|error| {
            tracing::debug!(%error, "body is not moved");
            0
        });
        let left = left.saturating_sub(count as u64);
        self.rest = if left == 0 { Rest::Over } else { Rest::Length(left) };
        Poll::Ready(count)
    }
}
