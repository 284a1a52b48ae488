//! A connection below TLS that sends what a handshake writes when the client is waited for.
//!
//! Never keeps what a client waits for. What is left behind a handshake of TLS 1.3 is the session's
//! ticket: it leaves in one write with whatever is sent first, and is nothing to a client that asks
//! for nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is held: more than a handshake writes, unless its certificates are many.
const HELD_BYTES_MAX: usize = 16 * 1024;

/// A connection over which hands are shaken, or were.
#[derive(Debug)]
pub(crate) struct Held<S> {
    inner: S,
    held: BytesMut,
    /// Whether all that is written is held until the client is waited for, whoever flushes.
    is_shaking: bool,
}

impl<S> Held<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, held: BytesMut::new(), is_shaking: true }
    }

    /// Passes on what is written from now on, with what is held in front of it.
    pub(super) const fn pass(&mut self) {
        self.is_shaking = false;
    }

    pub(crate) const fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(crate) const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Holds what there is room for, and returns how much that was.
    fn hold(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let before = self.held.len();
        for slice in slices {
            let room = HELD_BYTES_MAX.saturating_sub(self.held.len());
            let part = slice.get(..slice.len().min(room)).unwrap_or_default();
            self.held.extend_from_slice(part);
        }
        self.held.len() - before
    }
}

impl<S: AsyncWrite + Unpin> Held<S> {
    /// Sends all that is held.
    fn poll_leave(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(context, &self.held))?;
            self.sent(count)?;
        }
        Pin::new(&mut self.inner).poll_flush(context)
    }

    /// Sends what is held and, in one piece with it, what is behind it; returns how much of that.
    fn poll_behind(
        &mut self,
        slices: &[IoSlice<'_>],
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        while !self.held.is_empty() {
            let written = {
                let held = std::iter::once(IoSlice::new(&self.held));
                let all: Vec<IoSlice<'_>> = held.chain(slices.iter().copied()).collect();
                Pin::new(&mut self.inner).poll_write_vectored(context, &all)
            };
            let behind = self.sent(ready!(written)?)?;
            if behind > 0 {
                return Poll::Ready(Ok(behind));
            }
        }
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    /// Forgets what was sent of what is held, and returns how much was sent of what is behind it.
    fn sent(&mut self, count: usize) -> io::Result<usize> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_held = count.min(self.held.len());
        self.held.advance(of_held);
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
        Ok(count - of_held)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_read(context, buf);
        if polled.is_pending()
            && this.is_shaking
            && let Poll::Ready(Err(error)) = this.poll_leave(context)
        {
            return Poll::Ready(Err(error));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.is_shaking {
            return this.poll_behind(slices, context);
        }
        if this.held.len() >= HELD_BYTES_MAX {
            ready!(this.poll_leave(context))?;
        }
        Poll::Ready(Ok(this.hold(slices)))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_shaking { Poll::Ready(Ok(())) } else { this.poll_leave(context) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_leave(context))?;
        Pin::new(&mut this.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    fn come(client: &mut DuplexStream) -> String {
        let mut bytes = [0; 64];
        let count = client.read(&mut bytes).now_or_never().map_or(0, Result::unwrap);
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn what_a_handshake_writes_leaves_when_the_client_is_waited_for() {
        let (mut client, server) = duplex(64);
        let mut held = Held::new(server);
        held.write_all(b"hello ").await.unwrap();
        held.write_all(b"certificate").await.unwrap();
        held.flush().await.unwrap();
        assert_eq!(come(&mut client), "");
        let mut answer = [0; 4];
        assert!(held.read(&mut answer).now_or_never().is_none());
        assert_eq!(come(&mut client), "hello certificate");
        client.write_all(b"fine").await.unwrap();
        held.write_all(b"more").await.unwrap();
        held.read_exact(&mut answer).await.unwrap();
        // Not even when the client is not waited for, because it has come.
        assert_eq!(come(&mut client), "");
    }

    #[tokio::test]
    async fn what_is_left_leaves_in_front_of_what_comes_next_however_little_is_taken() {
        for room in [1, 4, 6, 7, 64] {
            let (mut client, server) = duplex(room);
            let mut held = Held::new(server);
            held.write_all(b"ticket").await.unwrap();
            held.pass();
            assert_eq!(come(&mut client), "");
            let sending = async {
                held.write_all(b"answer").await.unwrap();
                held.shutdown().await.unwrap();
                held
            };
            let mut all = String::new();
            let (held, ()) = tokio::join!(sending, async {
                client.read_to_string(&mut all).await.unwrap();
            });
            assert_eq!(all, "ticketanswer", "{room}");
            assert_eq!(held.held.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn what_is_left_leaves_with_a_flush_and_with_the_end() {
        for ends in [false, true] {
            let (mut client, server) = duplex(64);
            let mut held = Held::new(server);
            held.write_all(b"finished").await.unwrap();
            held.pass();
            if ends {
                held.shutdown().await.unwrap();
            } else {
                held.flush().await.unwrap();
            }
            assert_eq!(come(&mut client), "finished");
        }
    }

    #[tokio::test]
    async fn more_than_is_held_leaves_before() {
        let (mut client, server) = duplex(4 * HELD_BYTES_MAX);
        let mut held = Held::new(server);
        held.write_all(&vec![7; HELD_BYTES_MAX + 1]).await.unwrap();
        assert_eq!(held.held.len(), 1);
        client.read_exact(&mut vec![0; HELD_BYTES_MAX]).await.unwrap();
    }
}
