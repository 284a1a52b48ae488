//! The client's side of a connection: what has come of it, and what it is sent.
//!
//! Never holds memory for a client that is silent.

use std::io::{self, IoSlice, Write as _};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use perch_sockets::Patient;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::buffers::Buffers;
use crate::tls::Secured;

/// A connection that says whether something has come, and that nothing follows.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Waits until a read may find something, an end or an error, without room for it.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()>;

    /// Returns the socket, if it carries what is sent as it is.
    fn plain(&mut self) -> Option<&mut Patient<TcpStream>>;

    /// Takes the last that is sent, as far as there is room for it, and behind it that nothing
    /// follows, where there is a word for that. A flush sends both at once.
    fn take_last(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

impl Wire for Patient<TcpStream> {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        self.get_ref().poll_read_ready(context).map(drop)
    }

    fn plain(&mut self) -> Option<&mut Patient<TcpStream>> {
        Some(self)
    }

    fn take_last(&mut self, _: &[u8]) -> io::Result<usize> {
        Ok(0)
    }
}

impl<S: Wire> Wire for Secured<S> {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        let (held, session) = self.get_ref();
        // It reads nothing while there is something that was read.
        if session.wants_read() { held.get_ref().poll_readable(context) } else { Poll::Ready(()) }
    }

    fn take_last(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (_, session) = self.get_mut();
        let count = session.writer().write(bytes)?;
        if count == bytes.len() {
            session.send_close_notify();
        }
        Ok(count)
    }

    fn plain(&mut self) -> Option<&mut Patient<TcpStream>> {
        None
    }
}

/// A client, and what has come of it that was not looked at.
#[derive(Debug)]
pub(crate) struct Client<S> {
    pub(super) stream: S,
    pub(super) input: BytesMut,
}

impl<S: Wire> Client<S> {
    /// Reads the beginning of what comes; returns whether anything came before the end.
    pub(super) fn poll_begin(
        &mut self,
        buffers: &Buffers,
        context: &mut Context<'_>,
    ) -> Poll<bool> {
        ready!(self.stream.poll_readable(context));
        if self.input.capacity() == 0 {
            self.input = buffers.take();
        }
        // It keeps nothing between two polls.
        let polled = pin!(self.stream.read_buf(&mut self.input)).poll(context);
        if polled.is_pending() {
            buffers.give(std::mem::take(&mut self.input));
        }
        polled.map(|read| matches!(read, Ok(1..)))
    }

    /// Ends when the client has left while it is answered. What it asks meanwhile is kept, as far
    /// as there is room.
    pub(super) fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.input.len() < self.input.capacity() {
            let polled = pin!(self.stream.read_buf(&mut self.input)).poll(context);
            if !matches!(ready!(polled), Ok(1..)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Forgets a request that was answered.
    pub(super) fn forget(&mut self, end: usize, buffers: &Buffers) {
        if end < self.input.len() {
            self.input.advance(end);
        } else {
            buffers.give(std::mem::take(&mut self.input));
        }
    }

    /// Sends what was written, a piece behind it, and what ends that.
    pub(super) async fn send(
        &mut self,
        out: &mut BytesMut,
        mut piece: Bytes,
        mut tail: &[u8],
    ) -> io::Result<()> {
        while !out.is_empty() || !piece.is_empty() || !tail.is_empty() {
            let count = if piece.is_empty() && tail.is_empty() {
                self.stream.write(out).await?
            } else {
                let slices = [IoSlice::new(out), IoSlice::new(&piece), IoSlice::new(tail)];
                self.stream.write_vectored(&slices).await?
            };
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_out = count.min(out.len());
            let of_piece = (count - of_out).min(piece.len());
            out.advance(of_out);
            piece.advance(of_piece);
            tail = tail.get(count - of_out - of_piece..).unwrap_or_default();
        }
        self.stream.flush().await
    }

    /// Sends the last of all, and with it that nothing follows.
    pub(super) async fn send_last(&mut self, out: &mut BytesMut) -> io::Result<()> {
        let count = self.stream.take_last(out)?;
        out.advance(count);
        self.send(out, Bytes::new(), b"").await
    }

    /// Says that nothing follows, unless that was said. The connection is to be closed right behind
    /// this, and is not shut down before. The rule: a shutdown is for who goes on to read (RFC 9112,
    /// section 9.6), as hyper does behind a request whose body it has not read; nothing here has a
    /// body. A close at once sends the same with and without one: what was written, then the end,
    /// and a reset only where something has come that nobody has read.
    pub(super) async fn end(&mut self) {
        if self.stream.take_last(b"").is_ok() {
            self.stream.flush().await.ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use rustls::version::TLS13;
    use tokio::io::{DuplexStream, ReadBuf, duplex};

    use super::*;
    use crate::tls::tests::pair;

    /// One end of a connection, and how often it was written to.
    struct Counted {
        inner: DuplexStream,
        writes: usize,
    }

    impl AsyncRead for Counted {
        fn poll_read(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().inner).poll_read(context, buf)
        }
    }

    impl AsyncWrite for Counted {
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
            this.writes += 1;
            Pin::new(&mut this.inner).poll_write_vectored(context, slices)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().inner).poll_flush(context)
        }

        fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
        }
    }

    impl Wire for Counted {
        fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }

        fn plain(&mut self) -> Option<&mut Patient<TcpStream>> {
            None
        }

        fn take_last(&mut self, _: &[u8]) -> io::Result<usize> {
            Ok(0)
        }
    }

    #[tokio::test]
    async fn a_ticket_the_last_answer_and_the_end_are_one_write() {
        let (near, far) = duplex(1 << 20);
        let (mut near, stream) = pair(near, Counted { inner: far, writes: 0 }, &TLS13).await;
        let mut client = Client { stream, input: BytesMut::new() };
        let writes = |client: &Client<Secured<Counted>>| client.stream.get_ref().0.get_ref().writes;
        let before = writes(&client);
        client.send_last(&mut BytesMut::from("answer")).await.unwrap();
        client.end().await;
        assert_eq!(writes(&client), before + 1);
        let mut all = String::new();
        // Without the word that nothing follows, the end would be an error.
        near.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "answer");
    }

    #[tokio::test]
    async fn a_last_answer_larger_than_there_is_room_for_arrives_whole() {
        let (near, far) = duplex(1 << 20);
        let (mut near, stream) = pair(near, Counted { inner: far, writes: 0 }, &TLS13).await;
        let mut client = Client { stream, input: BytesMut::new() };
        let large = vec![7; 200 * 1024];
        client.send_last(&mut BytesMut::from(large.as_slice())).await.unwrap();
        client.end().await;
        let mut all = Vec::new();
        near.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, large);
    }
}
