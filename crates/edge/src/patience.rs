//! Time limits on connections over which nothing moves.
//!
//! Never ends one over which bytes move, however slowly.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
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

/// A socket whose reader must take something within a limit. Stands right on the socket, below TLS.
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

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Patient<S> {
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
            // The kernel wakes a writer only when a good part of its buffer is free again. A slow
            // reader may have taken less than that, and there is room for what it took.
            let sent = match send(&this.inner, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, "the other side reads nothing"))
                }
                sent => sent.map_err(io::Error::from),
            };
            if sent.is_ok() {
                this.timer.reset();
            }
            return Poll::Ready(sent);
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    /// One of the pieces that a socket's buffer takes whole or not at all, and holds several of.
    const PIECE: [u8; 16 * 1024] = [7; 16 * 1024];
    const SHORT: Duration = Duration::from_millis(20);
    /// More than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    /// Makes a connection that holds as much as it can, to a reader that has taken nothing yet.
    async fn full() -> (Patient<UnixStream>, UnixStream) {
        let (socket, reader) = UnixStream::pair().unwrap();
        socket.writable().await.unwrap();
        let mut stream = Patient::new(socket, SHORT);
        while let Some(written) = stream.write(&PIECE).now_or_never() {
            assert_eq!(written.unwrap(), PIECE.len());
        }
        (stream, reader)
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (mut stream, _deaf) = full().await;
        let written = tokio::time::timeout(LONG, stream.write(&PIECE)).await.expect("it ends");
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_reader_that_takes_little_is_not() {
        let (mut stream, mut slow) = full().await;
        for _ in 0..3 {
            // Less than what the kernel would wake the writer for.
            slow.read_exact(&mut [0; PIECE.len()]).await.unwrap();
            assert_eq!(stream.write(&PIECE).await.unwrap(), PIECE.len());
            // The limit begins anew.
            assert!(stream.write(&PIECE).now_or_never().is_none());
        }
    }
}
