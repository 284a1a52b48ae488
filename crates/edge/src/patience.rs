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
use tokio::time::{Instant, Sleep};

/// A wait that begins when it is first asked for and is forgotten when it is over.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Returns whether `limit` is over since the wait began; the task is woken when it is.
    pub(crate) fn is_over(&mut self, limit: Duration, context: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        sleep.as_mut().poll(context).is_ready()
    }

    /// Ends the wait.
    pub(crate) fn reset(&mut self) {
        self.0 = None;
    }
}

/// A connection whose reader must take something within a limit.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    inner: S,
    limit: Duration,
    timer: Timer,
}

impl<S> Patient<S> {
    pub(crate) fn new(inner: S, limit: Duration) -> Self {
        Self { inner, limit, timer: Timer::default() }
    }

    /// Returns the connection.
    pub(crate) const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Has it wait longer, or less long, from here on.
    pub(crate) const fn wait(&mut self, limit: Duration) {
        self.limit = limit;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(context, bytes);
        if polled.is_ready() {
            this.timer.reset();
        } else if this.timer.is_over(this.limit, context) {
            let error = io::Error::new(io::ErrorKind::TimedOut, "the other side reads nothing");
            return Poll::Ready(Err(error));
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
