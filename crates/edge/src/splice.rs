//! Bytes that go from one connection to another through a pipe: the kernel moves them, and none of
//! them comes into this process.
//!
//! Never keeps more pipes than its limits say, and never uses one again in which something was left.
//! A pipe is filled only when it is empty, and emptied only while it holds something: so it is
//! always the connection that is not ready, and never the pipe.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use perch_sockets::Patient;
use rustix::io::retry_on_intr;
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What is worth a pipe; less is copied with fewer system calls.
pub(crate) const WORTH_BYTES: u64 = 256 * 1024;
/// How much a pipe holds, and is filled with at once.
const PIPE_BYTES: usize = 256 * 1024;
/// A smaller one is worth nothing: the kernel makes such ones when a user has many.
const PIPE_BYTES_MIN: usize = 64 * 1024;
/// How many pipes are in use at once, a loop. What is in them is the kernel's memory, up to 32 MiB.
const USED_MAX: usize = 128;
/// How many lie idle, a loop.
const IDLE_MAX: usize = 64;

/// Nothing is held back for what may come: a machine may take its time in the middle of a body.
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// Pipes of one loop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pipes(Rc<Kept>);

#[derive(Debug, Default)]
struct Kept {
    idle: RefCell<Vec<Rc<Pipe>>>,
    /// The fewest that lay idle since the last sweep: nobody needed these.
    unneeded: Cell<usize>,
    used: Cell<usize>,
}

impl Pipes {
    /// Lends an empty pipe, if there may be one more.
    pub(crate) fn take(&self) -> Option<Lent> {
        let kept = &self.0;
        if kept.used.get() >= USED_MAX {
            return None;
        }
        let idle = kept.pop();
        let pipe = match idle.map_or_else(|| Pipe::open().map(Rc::new), Ok) {
            Ok(pipe) => pipe,
            Err(error) => {
                tracing::debug!(%error, "pipe not opened");
                return None;
            }
        };
        kept.used.set(kept.used.get() + 1);
        Some(Lent { pipe, inside: 0, kept: Rc::clone(kept) })
    }

    /// Closes those that nobody has needed since this was last called.
    pub(crate) fn sweep(&self) {
        let Kept { idle, unneeded, .. } = &*self.0;
        let mut idle = idle.borrow_mut();
        let needed = idle.len().saturating_sub(unneeded.get());
        idle.truncate(needed);
        unneeded.set(needed);
    }
}

impl Kept {
    fn pop(&self) -> Option<Rc<Pipe>> {
        let mut idle = self.idle.borrow_mut();
        let pipe = idle.pop();
        self.unneeded.set(self.unneeded.get().min(idle.len()));
        pipe
    }
}

#[derive(Debug)]
struct Pipe {
    into: OwnedFd,
    out: OwnedFd,
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user that has many gets no larger ones: what there is has to do.
        let room = fcntl_setpipe_size(&into, PIPE_BYTES).or_else(|_| fcntl_getpipe_size(&into))?;
        if room < PIPE_BYTES_MIN {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(Self { into, out })
    }
}

/// A pipe in use. It is used again when it was emptied, and closed when it was not.
#[derive(Debug)]
pub(crate) struct Lent {
    pipe: Rc<Pipe>,
    /// How much is in it.
    inside: usize,
    kept: Rc<Kept>,
}

impl Lent {
    pub(crate) const fn is_empty(&self) -> bool {
        self.inside == 0
    }

    /// Fills it with some of what comes over a connection, and never with more than `left`; 0 is
    /// the connection's end, or that it already holds something.
    pub(crate) fn poll_fill(
        &mut self,
        source: &TcpStream,
        left: u64,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let most = most(left, self.inside);
        if most == 0 {
            return Poll::Ready(Ok(0));
        }
        let fill = || retry_on_intr(|| splice(source, None, &self.pipe.into, None, most, FLAGS));
        let count = loop {
            ready!(source.poll_read_ready(context))?;
            match source.try_io(Interest::READABLE, || Ok(fill()?)) {
                // It was not ready any more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                filled => break filled?,
            }
        };
        self.inside = count;
        Poll::Ready(Ok(count))
    }

    /// Empties it to a client, as fast as that takes it. One that has gone is an error: Rust programs
    /// ignore the signal that the kernel sends beside it.
    pub(crate) fn poll_drain(
        &mut self,
        sink: &mut Patient<TcpStream>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.inside > 0 {
            let attempt = |socket: &TcpStream| -> io::Result<usize> {
                let (pipe, count) = (&self.pipe.out, self.inside);
                Ok(retry_on_intr(|| splice(pipe, None, socket, None, count, FLAGS))?)
            };
            let polled = poll_attempt(sink.get_ref(), attempt, context);
            let count = ready!(sink.poll_sent(polled, attempt, context))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.inside = self.inside.saturating_sub(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Kept { idle, used, .. } = &*self.kept;
        used.set(used.get().saturating_sub(1));
        let mut idle = idle.borrow_mut();
        if self.is_empty() && idle.len() < IDLE_MAX {
            idle.push(Rc::clone(&self.pipe));
        }
    }
}

/// Returns how much a connection of which so much is to come is asked for, into a pipe that holds
/// so much.
fn most(left: u64, inside: usize) -> usize {
    if inside > 0 {
        return 0;
    }
    usize::try_from(left).map_or(PIPE_BYTES, |left| left.min(PIPE_BYTES))
}

/// Makes an attempt to send once the connection may have room.
fn poll_attempt(
    sink: &TcpStream,
    attempt: impl Fn(&TcpStream) -> io::Result<usize>,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(sink.poll_write_ready(context))?;
        match sink.try_io(Interest::WRITABLE, || attempt(sink)) {
            // It had none any more.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return Poll::Ready(sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::SocketAddr;
    use std::time::Duration;

    use perch_sockets::Patience;
    use rustix::net::sockopt::set_socket_send_buffer_size;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// How long a test waits for what comes at once.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// Returns both sides of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (one, other) = tokio::join!(connecting, listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    async fn fill(lent: &mut Lent, source: &TcpStream, left: u64) -> usize {
        let filling = poll_fn(|context| lent.poll_fill(source, left, context));
        tokio::time::timeout(DEADLINE, filling).await.unwrap().unwrap()
    }

    async fn drain(lent: &mut Lent, sink: &mut Patient<TcpStream>) -> io::Result<()> {
        let draining = poll_fn(|context| lent.poll_drain(sink, context));
        tokio::time::timeout(DEADLINE, draining).await.unwrap()
    }

    fn idle(pipes: &Pipes) -> usize {
        pipes.0.idle.borrow().len()
    }

    #[test]
    fn a_connection_is_asked_for_what_is_left_and_only_while_the_pipe_is_empty() {
        let full = PIPE_BYTES as u64;
        for (left, inside, want) in [
            (0, 0, 0),
            (1, 0, 1),
            (full - 1, 0, PIPE_BYTES - 1),
            (full, 0, PIPE_BYTES),
            (full + 1, 0, PIPE_BYTES),
            (u64::MAX, 0, PIPE_BYTES),
            (1, 1, 0),
            (u64::MAX, PIPE_BYTES, 0),
        ] {
            assert_eq!(most(left, inside), want, "{left} {inside}");
        }
    }

    async fn pass(
        lent: &mut Lent,
        source: &TcpStream,
        sink: &mut Patient<TcpStream>,
        mut left: u64,
    ) {
        while left > 0 {
            let count = fill(lent, source, left).await;
            assert!((1..=PIPE_BYTES).contains(&count) && !lent.is_empty(), "{count}");
            left -= count as u64;
            drain(lent, sink).await.unwrap();
            assert!(lent.is_empty());
        }
    }

    #[tokio::test]
    async fn bodies_pass_whole_through_one_pipe_and_nothing_of_what_is_behind_them() {
        const BYTES: usize = 1024 * 1024 + 7;
        let ((mut source, mut machine), (sink, mut client)) = (pair().await, pair().await);
        // So that the client takes it in many pieces.
        set_socket_send_buffer_size(&sink, 16 * 1024).unwrap();
        let mut sink = Patient::new(sink, Patience::reading_on(DEADLINE));
        let sent: Vec<u8> =
            (0..2 * BYTES + 3).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        let pipes = Pipes::default();
        let sending = async { machine.write_all(&sent).await.unwrap() };
        let moving = async {
            for _ in 0..2 {
                let mut lent = pipes.take().unwrap();
                assert_eq!(idle(&pipes), 0);
                pass(&mut lent, &source, &mut sink, BYTES as u64).await;
                drop(lent);
                assert_eq!(idle(&pipes), 1, "it is used again");
            }
        };
        let reading = async {
            let mut read = vec![0; 2 * BYTES];
            client.read_exact(&mut read).await.unwrap();
            read
        };
        let all = async { tokio::join!(sending, moving, reading) };
        let ((), (), read) = tokio::time::timeout(DEADLINE, all).await.unwrap();
        let (bodies, behind) = sent.split_at(2 * BYTES);
        assert!(read == bodies, "other bytes came");
        let mut rest = [0; 3];
        source.read_exact(&mut rest).await.unwrap();
        assert_eq!(rest, behind);
    }

    #[tokio::test]
    async fn a_connection_that_is_silent_is_waited_for_and_its_end_is_seen() {
        let ((source, mut machine), (sink, mut client)) = (pair().await, pair().await);
        let mut sink = Patient::new(sink, Patience::reading_on(DEADLINE));
        let mut lent = Pipes::default().take().unwrap();
        for byte in [b"a", b"b"] {
            let saying = async { machine.write_all(byte).await.unwrap() };
            // It is asked before anything was said.
            let (count, ()) = tokio::join!(fill(&mut lent, &source, 10), saying);
            assert_eq!(count, 1);
            drain(&mut lent, &mut sink).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), byte[0]);
        }
        drop(machine);
        assert_eq!(fill(&mut lent, &source, 10).await, 0);
    }

    #[tokio::test]
    async fn a_pipe_in_which_something_was_left_is_not_used_again() {
        let (source, mut machine) = pair().await;
        let pipes = Pipes::default();
        let mut lent = pipes.take().unwrap();
        machine.write_all(b"secret").await.unwrap();
        assert!(fill(&mut lent, &source, 6).await > 0);
        assert_eq!(fill(&mut lent, &source, 6).await, 0, "it holds something");
        drop(lent);
        assert_eq!((idle(&pipes), pipes.0.used.get()), (0, 0));
        drop(pipes.take());
        assert_eq!((idle(&pipes), pipes.0.used.get()), (1, 0));
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let ((source, mut machine), (sink, _deaf)) = (pair().await, pair().await);
        let patience = Patience::reading_on(Duration::from_millis(50));
        let mut sink = Patient::new(sink, patience);
        tokio::spawn(async move { while machine.write_all(&[7; 64 * 1024]).await.is_ok() {} });
        let pipes = Pipes::default();
        let mut lent = pipes.take().unwrap();
        let error = loop {
            assert!(fill(&mut lent, &source, u64::MAX).await > 0);
            if let Err(error) = drain(&mut lent, &mut sink).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(lent);
        assert_eq!(idle(&pipes), 0);
    }

    #[test]
    fn there_are_so_many_pipes_and_those_that_nobody_needs_are_closed() {
        let pipes = Pipes::default();
        let mut lent: Vec<Lent> = (0..USED_MAX).map(|_| pipes.take().unwrap()).collect();
        assert!(pipes.take().is_none());
        drop(lent.pop());
        assert!(pipes.take().is_some());
        drop(lent);
        assert_eq!(idle(&pipes), IDLE_MAX);
        pipes.sweep();
        assert_eq!(idle(&pipes), IDLE_MAX, "all were in use");
        drop(pipes.take());
        pipes.sweep();
        assert_eq!(idle(&pipes), 1);
        pipes.sweep();
        assert_eq!(idle(&pipes), 0);
    }
}
