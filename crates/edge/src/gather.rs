//! Writes of a connection that leave together: what its task writes in one turn is one write, and
//! under TLS one record.
//!
//! Never holds anything back once the task waits, and never more than one buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::{self, Buffers};

/// A connection whose writes are gathered. A flush is left to its [`Outlet`].
#[derive(Debug)]
pub(crate) struct Gathered<S>(Rc<RefCell<Gathering<S>>>);

/// Where what was gathered leaves.
#[derive(Debug)]
pub(crate) struct Outlet<S>(Rc<RefCell<Gathering<S>>>);

#[derive(Debug)]
struct Gathering<S> {
    stream: S,
    out: BytesMut,
    buffers: Buffers,
    /// Why nothing leaves any more.
    failed: Option<io::ErrorKind>,
}

/// Makes both ends of what is gathered for a connection.
pub(crate) fn gathered<S>(stream: S, buffers: &Buffers) -> (Gathered<S>, Outlet<S>) {
    let (out, buffers) = (BytesMut::new(), buffers.clone());
    let shared = Rc::new(RefCell::new(Gathering { stream, out, buffers, failed: None }));
    (Gathered(Rc::clone(&shared)), Outlet(shared))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outlet<S> {
    /// Lets the connection's task have a turn, and what it has written leave behind that.
    pub(crate) fn poll_turn<C: Future>(
        &self,
        mut connection: Pin<&mut C>,
        context: &mut Context<'_>,
    ) -> Poll<C::Output> {
        let polled = connection.as_mut().poll(context);
        if polled.is_ready() {
            return polled;
        }
        let left = self.0.borrow_mut().poll_leave(context);
        let Poll::Ready(Err(error)) = left else { return Poll::Pending };
        // The task hears of it wherever it reads or writes next, which is now.
        self.0.borrow_mut().failed = Some(error.kind());
        connection.poll(context)
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Sends all that was gathered.
    fn poll_leave(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, &self.out))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
        }
        self.buffers.give(std::mem::take(&mut self.out));
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        if let Some(kind) = gathering.failed {
            return Poll::Ready(Err(kind.into()));
        }
        Pin::new(&mut gathering.stream).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut gathering = self.0.borrow_mut();
        gathering.check()?;
        if gathering.out.len() >= buffers::BYTES {
            ready!(gathering.poll_leave(context))?;
        }
        if gathering.out.capacity() == 0 {
            gathering.out = gathering.buffers.take();
        }
        let count = bytes.len().min(buffers::BYTES - gathering.out.len());
        gathering.out.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow().check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        gathering.check()?;
        ready!(gathering.poll_leave(context))?;
        Pin::new(&mut gathering.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_a_turn_writes_leaves_behind_it() {
        let (near, far) = duplex(1 << 20);
        let far = RefCell::new(far);
        let read = || {
            let mut piece = [0; 16];
            let count = far.borrow_mut().read(&mut piece).now_or_never()?.unwrap();
            Some(piece[..count].to_vec())
        };
        let (mut gathered, outlet) = gathered(near, &Buffers::default());
        let connection = async {
            gathered.write_all(b"head").await.unwrap();
            gathered.flush().await.unwrap();
            gathered.write_all(b"body").await.unwrap();
            assert_eq!(read(), None, "it waits for the turn's end");
            pending::<()>().await;
        };
        let mut connection = pin!(connection);
        let turn = poll_fn(|context| outlet.poll_turn(connection.as_mut(), context));
        assert!(turn.now_or_never().is_none());
        assert_eq!(read().as_deref(), Some(b"headbody".as_slice()));
        assert!(outlet.0.borrow().out.capacity() == 0, "memory of a connection that waits");
        assert_eq!(outlet.0.borrow().failed, None);
    }

    #[tokio::test]
    async fn all_of_it_arrives_in_order_however_much_it_is() {
        let (near, mut far) = duplex(1000);
        let (mut gathered, outlet) = gathered(near, &Buffers::default());
        let text: Vec<u8> = (0..100_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let writing = async {
            gathered.write_all(&text).await.unwrap();
            gathered.shutdown().await.unwrap();
        };
        let mut writing = pin!(writing);
        let turns = poll_fn(|context| outlet.poll_turn(writing.as_mut(), context));
        let mut read = Vec::new();
        let (_, all) = tokio::join!(turns, far.read_to_end(&mut read));
        all.unwrap();
        assert!(read == text);
    }

    #[tokio::test]
    async fn a_connection_that_broke_is_told_to_its_task_at_once() {
        let (near, far) = duplex(16);
        let (mut gathered, outlet) = gathered(near, &Buffers::default());
        drop(far);
        let connection = async {
            gathered.write_all(b"x").await.unwrap();
            let mut piece = [0; 1];
            let mut found = None;
            while found != Some(io::ErrorKind::BrokenPipe) {
                tokio::task::yield_now().await;
                found = gathered.read_exact(&mut piece).await.err().map(|error| error.kind());
            }
        };
        let mut connection = pin!(connection);
        poll_fn(|context| outlet.poll_turn(connection.as_mut(), context)).await;
    }
}
