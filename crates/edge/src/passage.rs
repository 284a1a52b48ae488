//! Bytes that pass both ways between a client and a machine, until both sides have ended.
//!
//! Never keeps more than a buffer each way, and never looks at a byte. One side may end its half
//! before the other; a connection over which nothing moves is ended.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// How much a passage may keep, and how long nothing may move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Bytes that are under way in one direction.
    pub(crate) buffer_bytes: usize,
    pub(crate) idle: Duration,
    /// The same once one side has ended.
    pub(crate) half_idle: Duration,
}

/// How a passage ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Bytes from the client.
    pub(crate) sent: u64,
    /// Bytes from the machine.
    pub(crate) received: u64,
    pub(crate) how: How,
}

/// Why a passage ended.
#[derive(Debug)]
pub(crate) enum How {
    /// Both sides have.
    Closed,
    /// One side broke off.
    Broken(io::Error),
    /// Nothing moved.
    Idle,
}

/// Copies until both sides have ended, one breaks off, or nothing moves for too long.
pub(crate) async fn pass<C, M>(client: C, machine: M, terms: Terms) -> Ended
where
    C: AsyncRead + AsyncWrite + Unpin,
    M: AsyncRead + AsyncWrite + Unpin,
{
    let motion = Arc::new(Motion::new());
    let mut client = Watched::new(client, &motion);
    let mut machine = Watched::new(machine, &motion);
    let copying = tokio::io::copy_bidirectional_with_sizes(
        &mut client,
        &mut machine,
        terms.buffer_bytes,
        terms.buffer_bytes,
    );
    let how = tokio::select! {
        copied = copying => match copied {
            Ok(_) => How::Closed,
            Err(error) => How::Broken(error),
        },
        () = motion.is_still(terms) => How::Idle,
    };
    Ended { sent: client.read, received: machine.read, how }
}

/// When bytes last moved, and whether one side has ended.
#[derive(Debug)]
struct Motion {
    began: Instant,
    last_ms: AtomicU64,
    is_half: AtomicBool,
}

impl Motion {
    fn new() -> Self {
        Self { began: Instant::now(), last_ms: AtomicU64::new(0), is_half: AtomicBool::new(false) }
    }

    fn moved(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for so long.
    async fn is_still(&self, Terms { idle, half_idle, .. }: Terms) {
        loop {
            let is_half = self.is_half.load(Ordering::Relaxed);
            let limit = if is_half { half_idle.min(idle) } else { idle };
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let (until, now) = (self.began + last + limit, Instant::now());
            if now >= until {
                return;
            }
            // An end of one side makes the limit shorter: looked for at least that often.
            tokio::time::sleep_until(until.min(now + half_idle)).await;
        }
    }
}

/// A stream that notes what moves over it.
#[derive(Debug)]
struct Watched<S> {
    inner: S,
    motion: Arc<Motion>,
    read: u64,
}

impl<S> Watched<S> {
    fn new(inner: S, motion: &Arc<Motion>) -> Self {
        Self { inner, motion: Arc::clone(motion), read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buf);
        if let Poll::Ready(Ok(())) = polled {
            let count = buf.filled().len().saturating_sub(before);
            if count == 0 {
                self.motion.is_half.store(true, Ordering::Relaxed);
            } else {
                self.read = self.read.saturating_add(u64::try_from(count).unwrap_or_default());
            }
            self.motion.moved();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        if matches!(polled, Poll::Ready(Ok(1..))) {
            self.motion.moved();
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn between(
        idle: Duration,
        half_idle: Duration,
    ) -> (DuplexStream, DuplexStream, JoinHandle<Ended>) {
        let (client, ours) = duplex(64 * 1024);
        let (theirs, machine) = duplex(64 * 1024);
        let terms = Terms { buffer_bytes: 1024, idle, half_idle };
        (client, machine, tokio::spawn(pass(ours, theirs, terms)))
    }

    #[tokio::test]
    async fn one_half_may_end_before_the_other() {
        let (mut client, mut machine, passing) = between(LONG, LONG);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        machine.read_to_string(&mut question).await.unwrap();
        machine.write_all(b"answer!").await.unwrap();
        machine.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer!"));
        let ended = passing.await.unwrap();
        assert!(matches!(ended.how, How::Closed), "{ended:?}");
        assert_eq!((ended.sent, ended.received), (8, 7));
    }

    #[tokio::test]
    async fn what_does_not_move_is_ended_on_both_sides() {
        let (mut client, mut machine, passing) = between(Duration::from_millis(50), LONG);
        client.write_all(b"x").await.unwrap();
        assert_eq!(machine.read_u8().await.unwrap(), b'x');
        let ended = tokio::time::timeout(LONG / 2, passing).await.unwrap().unwrap();
        assert!(matches!(ended.how, How::Idle) && ended.sent == 1, "{ended:?}");
        assert_eq!(machine.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn half_a_connection_has_less_time() {
        let (mut client, mut machine, passing) = between(LONG, Duration::from_millis(50));
        client.shutdown().await.unwrap();
        assert_eq!(machine.read(&mut [0; 1]).await.unwrap(), 0);
        let ended = tokio::time::timeout(LONG / 2, passing).await.unwrap().unwrap();
        assert!(matches!(ended.how, How::Idle), "{ended:?}");
    }
}
