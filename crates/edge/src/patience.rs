//! Time limits on connections over which nothing moves.
//!
//! Never ends one over which bytes move, however slowly.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// When bytes last moved over one of several streams.
#[derive(Debug, Clone)]
pub(crate) struct Motion(Rc<Cell<Instant>>);

impl Motion {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    /// Waits until nothing has moved for so long.
    pub(crate) async fn is_still(&self, limit: Duration) {
        loop {
            let until = self.0.get() + limit;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A stream that notes when bytes move over it, and how many were read.
#[derive(Debug)]
pub(crate) struct Moving<S> {
    inner: S,
    motion: Motion,
    taken: u64,
}

impl<S> Moving<S> {
    pub(crate) fn new(inner: S, motion: &Motion) -> Self {
        Self { inner, motion: motion.clone(), taken: 0 }
    }

    /// Returns how many bytes were read.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buf);
        let count = buf.filled().len().saturating_sub(before);
        if count > 0 {
            self.motion.0.set(Instant::now());
            self.taken = self.taken.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        if matches!(polled, Poll::Ready(Ok(1..))) {
            self.motion.0.set(Instant::now());
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
