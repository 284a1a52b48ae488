//! The client's side of a connection: what has come of it, and what it is sent.
//!
//! Never holds memory for a client that is silent.

use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use perch_sockets::Patient;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::buffers::Buffers;

/// A connection that says whether something has come.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Waits until a read may find something, an end or an error, without room for it.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()>;

    /// Returns the socket, if it carries what is sent as it is.
    fn plain(&mut self) -> Option<&mut Patient<TcpStream>>;
}

impl Wire for Patient<TcpStream> {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        self.get_ref().poll_read_ready(context).map(drop)
    }

    fn plain(&mut self) -> Option<&mut Patient<TcpStream>> {
        Some(self)
    }
}

impl<S: Wire> Wire for TlsStream<S> {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        let (socket, session) = self.get_ref();
        // It reads nothing while there is something that was read.
        if session.wants_read() { socket.poll_readable(context) } else { Poll::Ready(()) }
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
}
