//! A connection whose peer has to take what it is sent.
//!
//! Never ends one over which nothing waits to be sent, nor one whose peer takes something of it,
//! however slowly, nor a terminal session, which somebody may halt for as long as they like.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::timer::Timer;

/// How long a connection waits for its peer to take something.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: Duration,
    reads_on: bool,
    is_upgraded: Arc<AtomicBool>,
}

impl Patience {
    /// Reads on from a peer that takes nothing, which may first say all that it has to.
    #[must_use]
    pub fn reading_on(limit: Duration) -> Self {
        Self { limit, reads_on: true, is_upgraded: Arc::default() }
    }

    /// Reads nothing of a peer while it takes nothing: its further requests would be answered into
    /// memory.
    #[must_use]
    pub fn reading_nothing(limit: Duration) -> Self {
        Self { limit, reads_on: false, is_upgraded: Arc::default() }
    }

    /// Waits for ever from now on: the connection has become a session of somebody who was let in.
    pub fn upgrade(&self) {
        self.is_upgraded.store(true, Ordering::Release);
    }
}

/// A socket whose peer must take something within a limit. Stands right on the socket, below TLS:
/// only there is seen what the peer takes.
#[derive(Debug)]
pub struct Patient<S> {
    socket: S,
    patience: Patience,
    /// Runs while the peer takes nothing of what waits.
    stall: Timer,
    /// Whether the kernel may have room for which it woke nobody.
    has_room: bool,
    /// Who would read meanwhile.
    reader: Option<Waker>,
}

impl<S> Patient<S> {
    /// Wraps a socket.
    pub fn new(socket: S, patience: Patience) -> Self {
        Self { socket, patience, stall: Timer::default(), has_room: false, reader: None }
    }

    /// Returns the socket.
    pub const fn get_ref(&self) -> &S {
        &self.socket
    }

    /// Has it wait longer, or less long, from here on.
    pub const fn wait(&mut self, limit: Duration) {
        self.patience.limit = limit;
    }

    /// Passes on what became of an attempt to send something, unless the peer has taken nothing for
    /// too long. Whoever makes one at the socket itself asks here, as each write does. `again` sends
    /// what there is room for, whatever the kernel has told of it.
    pub fn poll_sent(
        &mut self,
        polled: Poll<io::Result<usize>>,
        again: impl Fn(&S) -> io::Result<usize>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if polled.is_ready() {
            self.moved();
            return polled;
        }
        if self.patience.is_upgraded.load(Ordering::Acquire) {
            self.moved();
            return Poll::Pending;
        }
        if self.has_room {
            let sent = unless_full(again(&self.socket));
            if sent.is_ready() {
                return sent;
            }
            self.has_room = false;
        }
        if !self.stall.is_over(self.patience.limit, context) {
            return Poll::Pending;
        }
        // The kernel wakes a writer only when a good part of its buffer is free again. A slow
        // reader may have taken less than that, and there is room for what it took: all of it is
        // used at once, or a reader that takes nothing would be waited for once for each write.
        let sent = unless_full(again(&self.socket));
        self.has_room = sent.is_ready();
        self.moved();
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the other side takes nothing");
        if sent.is_ready() { sent } else { Poll::Ready(Err(late())) }
    }

    /// Ends the wait for the peer.
    fn moved(&mut self) {
        self.stall.reset();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Sends what there is room for.
fn send_at_once(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Returns what was sent, if there was room for anything.
fn unless_full(sent: io::Result<usize>) -> Poll<io::Result<usize>> {
    match sent {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        sent => Poll::Ready(sent),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.stall.runs() && !this.patience.reads_on {
            this.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut this.socket).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.socket).poll_write(context, bytes);
        this.poll_sent(polled, |socket| send_at_once(socket, bytes), context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.socket).poll_write_vectored(context, slices);
        let first = slices.iter().find(|slice| !slice.is_empty());
        let bytes = first.map(|slice| &**slice).unwrap_or_default();
        this.poll_sent(polled, |socket| send_at_once(socket, bytes), context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    /// One of the pieces that a socket's buffer takes whole or not at all, and holds several of.
    const PIECE: [u8; 16 * 1024] = [7; 16 * 1024];
    const SHORT: Duration = Duration::from_millis(20);
    /// More than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    /// Makes a connection that holds as much as it can, to a peer that has taken nothing yet.
    async fn full(patience: Patience) -> (Patient<UnixStream>, UnixStream) {
        let (socket, peer) = UnixStream::pair().unwrap();
        socket.writable().await.unwrap();
        let mut stream = Patient::new(socket, patience);
        while let Some(written) = stream.write(&PIECE).now_or_never() {
            assert_eq!(written.unwrap(), PIECE.len());
        }
        (stream, peer)
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (mut stream, _deaf) = full(Patience::reading_nothing(SHORT)).await;
        let written = tokio::time::timeout(LONG, stream.write(&PIECE)).await.expect("it ends");
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (mut stream, _deaf) = full(Patience::reading_nothing(SHORT)).await;
        let slices = [IoSlice::new(&[]), IoSlice::new(&PIECE)];
        let written = tokio::time::timeout(LONG, stream.write_vectored(&slices)).await;
        assert_eq!(written.expect("it ends").unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_peer_that_takes_little_is_not() {
        let (mut stream, mut slow) = full(Patience::reading_nothing(SHORT)).await;
        Box::pin(a_slow_peer_is_served(&mut stream, &mut slow)).await;
        let (mut stream, mut slow) = full(Patience::reading_on(SHORT)).await;
        Box::pin(a_slow_peer_is_served(&mut stream, &mut slow)).await;
    }

    async fn a_slow_peer_is_served(stream: &mut Patient<UnixStream>, slow: &mut UnixStream) {
        for _ in 0..3 {
            // Less than what the kernel would wake the writer for.
            slow.read_exact(&mut [0; PIECE.len()]).await.unwrap();
            assert_eq!(stream.write(&PIECE).await.unwrap(), PIECE.len());
            // The limit begins anew.
            assert!(stream.write(&PIECE).now_or_never().is_none());
        }
    }

    #[tokio::test]
    async fn who_sends_at_the_socket_itself_has_the_same_patience() {
        let (mut stream, _deaf) = full(Patience::reading_on(SHORT)).await;
        // There is room of which the kernel says nothing.
        assert_eq!(attempted(&mut stream, Ok(5)).await.unwrap(), 5);
        let late = attempted(&mut stream, Err(io::ErrorKind::WouldBlock)).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        // What was sent is no business of anybody's.
        let sent = poll_fn(|context| {
            stream.poll_sent(Poll::Ready(Ok(7)), |_| Err(io::ErrorKind::WouldBlock.into()), context)
        });
        assert_eq!(sent.await.unwrap(), 7);
    }

    /// Waits for an attempt that the kernel says is in vain, and has this come of the next.
    async fn attempted(
        stream: &mut Patient<UnixStream>,
        next: Result<usize, io::ErrorKind>,
    ) -> io::Result<usize> {
        let again = |_: &UnixStream| next.map_err(io::Error::from);
        let sent = poll_fn(|context| stream.poll_sent(Poll::Pending, again, context));
        tokio::time::timeout(LONG, sent).await.expect("it ends")
    }

    #[tokio::test]
    async fn a_limit_may_be_changed() {
        let (mut stream, _deaf) = full(Patience::reading_on(LONG * 60)).await;
        stream.stall.reset();
        stream.wait(SHORT);
        let written = tokio::time::timeout(LONG, stream.write(&PIECE)).await.expect("it ends");
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_may_be_read_on() {
        let (mut stream, mut peer) = full(Patience::reading_on(LONG)).await;
        peer.write_all(b"more").await.unwrap();
        let mut more = [0; 4];
        let read = tokio::time::timeout(LONG, stream.read_exact(&mut more)).await;
        read.expect("it is read").unwrap();
        assert_eq!(&more, b"more");
    }

    #[tokio::test]
    async fn a_session_may_be_halted() {
        let (mut stream, mut halted) = full(Patience::reading_nothing(SHORT)).await;
        stream.patience.upgrade();
        let waited = tokio::time::timeout(SHORT * 5, stream.write(&PIECE)).await;
        assert!(waited.is_err(), "it waits: {waited:?}");
        // What is typed meanwhile arrives, such as the key that goes on.
        halted.write_all(b"q").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'q');
        let taken =
            tokio::spawn(async move { tokio::io::copy(&mut halted, &mut tokio::io::sink()).await });
        assert_eq!(stream.write(&PIECE).await.unwrap(), PIECE.len());
        taken.abort();
    }

    #[tokio::test]
    async fn nothing_is_read_of_a_peer_while_it_takes_nothing() {
        let (mut stream, mut peer) = full(Patience::reading_nothing(LONG)).await;
        peer.write_all(b"more").await.unwrap();
        stream.socket.readable().await.unwrap();
        let mut more = [0; 4];
        assert!(stream.read_exact(&mut more).now_or_never().is_none());
        let (mut reading, mut writing) = tokio::io::split(stream);
        let read = tokio::spawn(async move {
            reading.read_exact(&mut more).await.unwrap();
            more
        });
        let written = tokio::spawn(async move { writing.write_all(&PIECE).await });
        let (mut taking, _asking) = peer.into_split();
        let taken = async move { tokio::io::copy(&mut taking, &mut tokio::io::sink()).await };
        let taken = tokio::spawn(taken);
        let read = tokio::time::timeout(LONG, read).await.expect("it goes on");
        assert_eq!(&read.unwrap(), b"more");
        written.await.unwrap().unwrap();
        taken.abort();
    }
}
