//! Reads along with what a client sends and refuses what two parsers could read differently
//! (RFC 9112, sections 2.2, 5 and 6); [`h2`] and [`Frames`] do so for HTTP/2.
//!
//! Never lets a byte of a head pass before all of it was judged, and never mends one: a head in
//! doubt is replaced by one that names no host, so that the service answers it, and it is the
//! last thing that the connection carries. Doubt in the middle of a body breaks the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use perch_sockets::Timer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::cause::Cause;

pub(crate) mod chunks;
mod frames;
pub(crate) mod h2;
mod head;

pub(crate) use self::frames::Frames;
pub(crate) use self::head::{fields, words};

use self::chunks::Chunks;
use self::head::Body;

/// The largest head of a request.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most header fields of a request.
pub(crate) const HEAD_FIELDS_MAX: usize = 128;
/// How many empty lines may come before a request (RFC 9112, section 2.2, wants one at least).
const BLANK_LINES_MAX: u8 = 2;
/// How much is read at once while a head is not whole.
const READ_BYTES: usize = 4 * 1024;
/// What stands in for a head in doubt.
const REFUSED_HEAD: &[u8] = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";

/// What the two ends of a connection, its reader and its service, tell each other.
#[derive(Debug, Default)]
pub(crate) struct Link {
    switch: AtomicU8,
    /// How many heads have passed, and how many requests were answered: they may be sent one behind
    /// the other, and only the last of them can wish to switch.
    heads: AtomicU32,
    answered: AtomicU32,
    refusal: AtomicU8,
    /// How long the last head took that came in several pieces, in milliseconds.
    head_ms: AtomicU32,
    /// For how long a head may come in pieces.
    head_max: Option<Duration>,
}

const SETTLED: u8 = 0;
const WAITING: u8 = 1;
const SWITCHED: u8 = 2;

const IN_DOUBT: u8 = 0;
const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;

impl Link {
    /// Makes the one of a connection whose client may take so long for a head.
    pub(crate) fn impatient(head_max: Option<Duration>) -> Self {
        Self { head_max, ..Self::default() }
    }

    /// Makes the one of a request that is refused, where each has its own.
    pub(crate) fn refusing(cause: Cause) -> Self {
        let link = Self::default();
        link.refuse(cause);
        link
    }

    fn refuse(&self, cause: Cause) {
        let refusal = match cause {
            Cause::HeadTooLarge => TOO_LARGE,
            Cause::HeadSlow => TOO_SLOW,
            _ => IN_DOUBT,
        };
        self.refusal.store(refusal, Ordering::Relaxed);
    }

    /// Tells the reader that the next request was answered, and whether that switched the protocol.
    pub(crate) fn settle(&self, switched: bool) {
        let answered = self.answered.load(Ordering::Relaxed).wrapping_add(1);
        self.answered.store(answered, Ordering::Relaxed);
        // What the reader waits for is the answer to the last head that it let pass.
        if answered == self.heads.load(Ordering::Relaxed) {
            self.switch.store(if switched { SWITCHED } else { SETTLED }, Ordering::Relaxed);
        }
    }

    /// Returns how long the head of the request took that is begun now, from its first byte.
    pub(crate) fn head_took(&self) -> Duration {
        Duration::from_millis(u64::from(self.head_ms.load(Ordering::Relaxed)))
    }

    fn note_head(&self, took: Duration) {
        let ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        self.head_ms.store(ms, Ordering::Relaxed);
    }

    /// Returns why a request that names no host is refused.
    pub(crate) fn refusal(&self) -> Cause {
        match self.refusal.load(Ordering::Relaxed) {
            TOO_LARGE => Cause::HeadTooLarge,
            TOO_SLOW => Cause::HeadSlow,
            _ => Cause::BadRequest,
        }
    }
}

/// Returns how long the head is that begins here, if all of it is there, is in no doubt, and is all of
/// its request: nothing that follows belongs to it.
pub(crate) fn lone_head(bytes: &[u8]) -> Option<usize> {
    let end = head::end(bytes, 0)?;
    let facts = head::check(bytes.get(..end)?).ok()?;
    (facts.body == Body::Length(0) && !facts.switch).then_some(end)
}

/// A connection of which only judged bytes can be read.
#[derive(Debug)]
pub(crate) struct Strict<S> {
    inner: S,
    link: Arc<Link>,
    framing: Framing,
    /// What was read and may not pass yet.
    held: Vec<u8>,
    /// How much of that may.
    judged: usize,
    /// Since when something is held.
    since: Option<Instant>,
    /// Ends when that is too long.
    late: Timer,
    end: Option<End>,
}

/// Why nothing more is read.
#[derive(Debug, Clone, Copy)]
enum End {
    Refused,
    Broken,
}

impl<S> Strict<S> {
    pub(crate) fn new(inner: S, link: Arc<Link>) -> Self {
        let framing = Framing::default();
        let late = Timer::default();
        Self { inner, link, framing, held: Vec::new(), judged: 0, since: None, late, end: None }
    }

    /// Begins to measure a head of which not all has come.
    fn begin_head(&mut self, is_begun: bool) {
        self.since = is_begun.then(Instant::now);
        self.late.reset();
    }

    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        self.link.head_max.is_some_and(|limit| self.late.is_over(limit, context))
    }

    fn judge_held(&mut self) {
        let (pass, next) = self.framing.judge(&self.held);
        self.judged = pass;
        if pass > 0 {
            self.link.note_head(self.since.map(|since| since.elapsed()).unwrap_or_default());
            self.begin_head(pass < self.held.len());
        }
        self.follow(next);
    }

    /// Does what comes after the bytes that pass.
    fn follow(&mut self, next: Next) {
        self.link.heads.store(self.framing.heads, Ordering::Relaxed);
        match next {
            Next::More => {}
            Next::Wait => self.link.switch.store(WAITING, Ordering::Relaxed),
            Next::Refuse(cause) => {
                self.link.refuse(cause);
                self.held.truncate(self.judged);
                self.held.extend_from_slice(REFUSED_HEAD);
                self.judged = self.held.len();
                self.end = Some(End::Refused);
            }
            Next::Break => {
                self.held.truncate(self.judged);
                self.end = Some(End::Broken);
            }
        }
    }

    fn deliver(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.judged.min(buf.remaining());
        buf.put_slice(self.held.get(..count).unwrap_or_default());
        self.held.drain(..count);
        self.judged -= count;
    }
}

impl<S: AsyncRead + Unpin> Strict<S> {
    /// Reads into what is held; returns whether anything came.
    fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut bytes = [0; READ_BYTES];
        let mut read = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.inner).poll_read(context, &mut read))?;
        self.held.extend_from_slice(read.filled());
        Poll::Ready(Ok(!read.filled().is_empty()))
    }

    /// Reads more of a head, or refuses one that takes too long; returns whether either is done.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let polled = self.poll_hold(context);
        if polled.is_pending() && self.is_late(context) {
            self.follow(Next::Refuse(Cause::HeadSlow));
            return Poll::Ready(Ok(true));
        }
        polled
    }

    /// Reads straight into the reader's memory: the common case, which copies nothing.
    fn poll_straight(
        &mut self,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buf))?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if fresh.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let (pass, next) = self.framing.judge(fresh);
        if pass > 0 {
            self.link.note_head(Duration::ZERO);
        }
        self.held.extend_from_slice(fresh.get(pass..).unwrap_or_default());
        self.begin_head(!self.held.is_empty());
        self.judged = 0;
        buf.set_filled(before + pass);
        self.follow(next);
        Poll::Ready(Ok(pass > 0))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.judged > 0 {
                this.deliver(buf);
                return Poll::Ready(Ok(()));
            }
            match this.end {
                // An end here would look like a client that left; the answer closes the connection.
                Some(End::Refused) => return Poll::Pending,
                Some(End::Broken) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, "body framing in doubt");
                    return Poll::Ready(Err(error));
                }
                None => {}
            }
            match this.link.switch.load(Ordering::Relaxed) {
                SWITCHED if this.held.is_empty() => {
                    return Pin::new(&mut this.inner).poll_read(context, buf);
                }
                SWITCHED => this.judged = this.held.len(),
                // What follows a wish to switch is judged when it is known what it is.
                WAITING if this.held.len() >= HEAD_BYTES_MAX => return Poll::Pending,
                WAITING => {
                    if !ready!(this.poll_hold(context))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                _ if this.held.is_empty() => {
                    if ready!(this.poll_straight(context, buf))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                _ => {
                    this.judge_held();
                    let is_stuck = this.judged == 0 && this.end.is_none();
                    if is_stuck && !ready!(this.poll_head(context))? {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

/// Where in the messages of a connection its bytes are. Pure.
#[derive(Debug, Default)]
struct Framing {
    state: State,
    /// How much of an unfinished head holds no end of it.
    searched: usize,
    blank_lines: u8,
    /// How many heads were found good.
    heads: u32,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Length(u64),
    Chunked(Chunks),
}

/// What comes after the bytes that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing, or a head that is not whole.
    More,
    /// What depends on whether the protocol is switched.
    Wait,
    /// A message in doubt, of which nothing passed.
    Refuse(Cause),
    /// A body in doubt, of which something passed.
    Break,
}

impl Framing {
    /// Returns how many bytes may pass, and what comes after them. Bytes that may not pass yet
    /// must be given again, with more behind them.
    fn judge(&mut self, bytes: &[u8]) -> (usize, Next) {
        let (mut at, mut head_at) = (0, None);
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match &mut self.state {
                State::Head if rest.starts_with(b"\r\n") && self.blank_lines < BLANK_LINES_MAX => {
                    self.blank_lines += 1;
                    self.searched = 0;
                    at += 2;
                }
                State::Head => {
                    let (end, next) = self.take_head(rest);
                    head_at = Some(at);
                    at += end;
                    if next != Next::More || end == 0 {
                        return (at, next);
                    }
                }
                State::Length(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    at += count;
                    *left -= count as u64;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::Chunked(chunks) => match (chunks.take(rest), head_at) {
                    (Some(count), _) => {
                        at += count;
                        if chunks.is_over() {
                            self.state = State::Head;
                        }
                    }
                    (None, Some(head_at)) => {
                        return (head_at, Next::Refuse(Cause::BadRequest));
                    }
                    (None, None) => return (at, Next::Break),
                },
            }
        }
        (at, Next::More)
    }

    /// Returns how long the head is that begins here, or zero, and what comes after it.
    fn take_head(&mut self, rest: &[u8]) -> (usize, Next) {
        let Some(end) = head::end(rest, self.searched) else {
            if rest.len() > HEAD_BYTES_MAX {
                return (0, Next::Refuse(Cause::HeadTooLarge));
            }
            self.searched = rest.len().saturating_sub(2);
            return (0, Next::More);
        };
        (self.searched, self.blank_lines) = (0, 0);
        let facts = match head::check(rest.get(..end).unwrap_or_default()) {
            Ok(facts) => facts,
            Err(cause) => return (0, Next::Refuse(cause)),
        };
        self.heads = self.heads.wrapping_add(1);
        self.state = match facts.body {
            Body::Length(0) => State::Head,
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Chunked(Chunks::default()),
        };
        (end, if facts.switch { Next::Wait } else { Next::More })
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
