//! What a client sends with its request, on its way to a machine.
//!
//! Never sent twice but to replay the whole request; for that what has passed is kept, up to a
//! limit, until the answer has begun. Until then a client may not be too slow either.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::account::Received;
use crate::body::bytes_of;
use crate::cause::Cause;
use crate::headers;

mod progress;

pub(crate) use self::progress::{BodyLimits, Progress};

use self::progress::Sending;

/// The largest body that can be replayed (contract 4.3).
pub(crate) const REPLAYED_BYTES_MAX: usize = 1024 * 1024;
/// How much of all bodies one loop keeps at once.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How much of bodies is kept in a loop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Budget(Rc<Cell<usize>>);

/// What the client sends; notes when it moves.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// Nothing when there is no body.
    source: Option<Rc<RefCell<Source<Incoming>>>>,
    reader: Reader,
}

/// How far one sending of a body has come.
#[derive(Debug, Clone, Copy, Default)]
struct Reader {
    turn: u32,
    next: usize,
    told_trailers: bool,
}

/// A body and what of it may be needed again.
#[derive(Debug)]
struct Source<B> {
    incoming: B,
    progress: Progress,
    sending: Sending,
    /// Everything that has passed, while `is_kept`.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    is_kept: bool,
    /// How many of these the sending has taken that may read.
    taken: usize,
    trailers: Option<HeaderMap>,
    is_over: bool,
    /// The sending that may read; one before it may not any more.
    turn: u32,
    budget: Budget,
    received: Received,
}

/// Why a body cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError<E: std::error::Error + 'static = hyper::Error> {
    /// The client's connection.
    #[error("read the client's body")]
    Client(#[source] E),
    /// Another machine gets it.
    #[error("send a body that another machine gets now")]
    Superseded,
    /// It is too large, or comes too slowly.
    #[error("take a body that is over its limits")]
    OverLimit,
}

/// What is read of a body.
type Next<E> = Result<Frame<Bytes>, UploadError<E>>;

impl RequestBody {
    /// Makes one of which it is noted what has come.
    pub(crate) fn new(
        incoming: Incoming,
        progress: Progress,
        limits: BodyLimits,
        budget: &Budget,
        received: Received,
    ) -> Self {
        if incoming.is_end_stream() {
            return Self::none();
        }
        let sending = Sending::new(limits);
        let source = Source::new(incoming, progress, sending, budget.clone(), received);
        Self { source: Some(Rc::new(RefCell::new(source))), reader: Reader::default() }
    }

    /// Makes that of a request without one.
    pub(crate) fn none() -> Self {
        Self { source: None, reader: Reader::default() }
    }

    /// Returns what can send the body again.
    pub(crate) fn keeper(&self) -> Keeper {
        Keeper(self.source.clone())
    }
}

/// What can send a body again.
#[derive(Debug)]
pub(crate) struct Keeper(Option<Rc<RefCell<Source<Incoming>>>>);

impl Keeper {
    /// Returns whether all of the body has been read: what is late then is not the client.
    pub(crate) fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(|source| {
            let source = source.borrow();
            source.is_over || source.incoming.is_end_stream()
        })
    }

    /// Returns the body from its beginning; who reads it now cannot go on. Nothing when too much
    /// has passed.
    pub(crate) fn again(&self) -> Option<RequestBody> {
        let Some(source) = &self.0 else {
            return Some(RequestBody::none());
        };
        let turn = source.borrow_mut().again()?;
        let reader = Reader { turn, ..Reader::default() };
        Some(RequestBody { source: Some(Rc::clone(source)), reader })
    }

    /// Keeps nothing of it any more and lets the client take its time: the answer has begun.
    pub(crate) fn answered(&self) {
        if let Some(source) = &self.0 {
            source.borrow_mut().answered();
        }
    }
}

impl<B> Source<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    fn new(
        incoming: B,
        progress: Progress,
        sending: Sending,
        budget: Budget,
        received: Received,
    ) -> Self {
        let is_kept = incoming.size_hint().lower() <= REPLAYED_BYTES_MAX as u64;
        Self {
            incoming,
            progress,
            sending,
            kept: Vec::new(),
            kept_bytes: 0,
            is_kept,
            taken: 0,
            trailers: None,
            is_over: false,
            turn: 0,
            budget,
            received,
        }
    }

    fn again(&mut self) -> Option<u32> {
        self.is_kept.then(|| {
            self.turn += 1;
            self.taken = 0;
            self.sending.rests();
            self.turn
        })
    }

    fn keep(&mut self, bytes: &Bytes) {
        let all = self.budget.0.get() + bytes.len();
        if self.kept_bytes + bytes.len() > REPLAYED_BYTES_MAX || all > KEPT_BYTES_MAX {
            self.forget();
        }
        if self.is_kept {
            self.budget.0.set(all);
            self.kept_bytes += bytes.len();
            self.kept.push(bytes.clone());
        }
    }

    fn poll(
        &mut self,
        reader: &mut Reader,
        context: &mut Context<'_>,
    ) -> Poll<Option<Next<B::Error>>> {
        if reader.turn != self.turn {
            return Poll::Ready(Some(Err(UploadError::Superseded)));
        }
        if let Some(bytes) = self.kept.get(reader.next).cloned() {
            reader.next += 1;
            self.taken = reader.next;
            self.progress.moves();
            if !self.is_kept && self.taken >= self.kept.len() {
                self.forget();
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.is_over {
            let trailers = self.trailers.clone().filter(|_| !reader.told_trailers);
            reader.told_trailers = true;
            return Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(fields))));
        }
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) else {
            self.progress.waits();
            return match self.sending.waits(context) {
                Some(cause) => Poll::Ready(Some(Err(self.break_off(cause)))),
                None => Poll::Pending,
            };
        };
        self.progress.moves();
        let frame = match frame {
            None => {
                self.is_over = true;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                // There is no beginning to a body that has no end.
                self.forget();
                self.progress.fails(Cause::BadRequest);
                return Poll::Ready(Some(Err(UploadError::Client(error))));
            }
            Some(Ok(frame)) => frame,
        };
        self.received.add(bytes_of(&frame));
        if let Some(cause) = self.sending.came(bytes_of(&frame)) {
            return Poll::Ready(Some(Err(self.break_off(cause))));
        }
        match frame.into_data() {
            Ok(bytes) => {
                self.keep(&bytes);
                reader.next = self.kept.len();
                self.taken = reader.next;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                headers::strip_trailers(&mut trailers);
                self.trailers = Some(trailers.clone());
                self.is_over = true;
                reader.told_trailers = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self, reader: Reader) -> bool {
        let is_read = self.is_over || self.incoming.is_end_stream();
        let has_trailers = self.trailers.is_some() && !reader.told_trailers;
        reader.next >= self.kept.len() && is_read && !has_trailers
    }

    fn size_hint(&self, reader: Reader) -> SizeHint {
        let kept: usize = self.kept.iter().skip(reader.next).map(Bytes::len).sum();
        let rest = if self.is_over { SizeHint::with_exact(0) } else { self.incoming.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept as u64);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + kept as u64);
        }
        hint
    }
}

impl<B> Source<B> {
    fn break_off<E: std::error::Error + 'static>(&mut self, cause: Cause) -> UploadError<E> {
        self.forget();
        self.progress.fails(cause);
        UploadError::OverLimit
    }

    /// Keeps nothing more, and what it has only until it is sent: a machine that gets the body again
    /// may answer before it has all of that.
    fn answered(&mut self) {
        self.sending.answered();
        self.is_kept = false;
        if self.taken >= self.kept.len() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.is_kept = false;
        self.budget.0.set(self.budget.0.get().saturating_sub(self.kept_bytes));
        self.kept_bytes = 0;
        self.kept = Vec::new();
    }
}

impl<B> Drop for Source<B> {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = self.get_mut();
        match &this.source {
            Some(source) => source.borrow_mut().poll(&mut this.reader, context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.as_ref();
        source.is_none_or(|source| source.borrow().is_end_stream(self.reader))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Some(source) => source.borrow().size_hint(self.reader),
            None => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;

    /// Yields what it was given.
    #[derive(Debug)]
    struct Given(VecDeque<Frame<Bytes>>);

    impl Body for Given {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn source(pieces: &[&'static [u8]], budget: &Budget) -> Source<Given> {
        let frames = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece)));
        limited(frames.collect(), crate::Limits::default().body_bytes_max, budget)
    }

    fn limited(frames: VecDeque<Frame<Bytes>>, bytes_max: u64, budget: &Budget) -> Source<Given> {
        let limits = crate::Limits { body_bytes_max: bytes_max, ..crate::Limits::default() };
        let sending = Sending::new(BodyLimits::of(&limits, None));
        let received = Received::default();
        Source::new(Given(frames), Progress::new(), sending, budget.clone(), received)
    }

    fn read(source: &mut Source<Given>, reader: &mut Reader, pieces: usize) -> Vec<u8> {
        let mut context = Context::from_waker(Waker::noop());
        let mut all = Vec::new();
        for _ in 0..pieces {
            match source.poll(reader, &mut context) {
                Poll::Ready(Some(Ok(frame))) => {
                    all.extend_from_slice(&frame.into_data().unwrap_or_default());
                }
                Poll::Ready(None) => break,
                other => panic!("{other:?}"),
            }
        }
        all
    }

    #[test]
    fn a_body_is_sent_again_from_its_beginning_also_when_half_of_it_had_come() {
        let budget = Budget::default();
        let mut source = source(&[b"ab", b"cd", b"ef"], &budget);
        let mut first = Reader::default();
        assert_eq!(read(&mut source, &mut first, 2), b"abcd");
        assert_eq!(budget.0.get(), 4);
        let turn = source.again().unwrap();
        let mut second = Reader { turn, ..Reader::default() };
        assert_eq!(read(&mut source, &mut second, 9), b"abcdef");
        let mut context = Context::from_waker(Waker::noop());
        assert!(
            matches!(
                source.poll(&mut first, &mut context),
                Poll::Ready(Some(Err(UploadError::Superseded)))
            ),
            "the first machine gets nothing more"
        );
        let turn = source.again().unwrap();
        let mut third = Reader { turn, ..Reader::default() };
        assert_eq!(source.size_hint(third).exact(), Some(6));
        assert!(!source.is_end_stream(third));
        assert_eq!(read(&mut source, &mut third, 9), b"abcdef");
        assert!(source.is_end_stream(third));
        drop(source);
        assert_eq!(budget.0.get(), 0);
    }

    #[test]
    fn a_body_that_is_sent_again_is_sent_whole_when_the_answer_begins_before_its_end() {
        for taken in 0..=3 {
            let budget = Budget::default();
            let mut source = source(&[b"ab", b"cd", b"ef", b"gh"], &budget);
            assert_eq!(read(&mut source, &mut Reader::default(), 3), b"abcdef");
            let turn = source.again().unwrap();
            let mut second = Reader { turn, ..Reader::default() };
            let mut all = read(&mut source, &mut second, taken);
            source.answered();
            assert_eq!(source.again(), None, "{taken}");
            let left = 8 - all.len() as u64;
            assert!(source.size_hint(second).lower() <= left, "{taken}");
            all.extend(read(&mut source, &mut second, 9));
            assert_eq!(all, b"abcdefgh", "{taken}");
            assert!(source.is_end_stream(second), "{taken}");
            assert_eq!(budget.0.get(), 0, "{taken}");
        }
    }

    #[test]
    fn what_is_larger_than_can_be_replayed_passes_and_is_not_kept() {
        static HALF: [u8; REPLAYED_BYTES_MAX / 2 + 1] = [b'x'; REPLAYED_BYTES_MAX / 2 + 1];
        let budget = Budget::default();
        let mut source = source(&[&HALF, &HALF], &budget);
        let mut reader = Reader::default();
        assert_eq!(read(&mut source, &mut reader, 9).len(), 2 * HALF.len());
        assert_eq!(source.again(), None);
        assert_eq!(budget.0.get(), 0);
    }

    #[test]
    fn e5_a_body_over_its_limit_breaks_off_and_nothing_of_it_is_kept() {
        let budget = Budget::default();
        let frames = [&b"abc"[..], b"d"].map(|piece| Frame::data(Bytes::from_static(piece)));
        let mut source = limited(VecDeque::from(frames), 3, &budget);
        let mut reader = Reader::default();
        assert_eq!(read(&mut source, &mut reader, 1), b"abc");
        let mut context = Context::from_waker(Waker::noop());
        let polled = source.poll(&mut reader, &mut context);
        assert!(matches!(polled, Poll::Ready(Some(Err(UploadError::OverLimit)))), "{polled:?}");
        assert_eq!(source.progress.fault(), Some(Cause::BodyTooLarge));
        assert_eq!((source.again(), budget.0.get()), (None, 0));
    }

    #[test]
    fn what_all_bodies_keep_is_bounded() {
        let budget = Budget::default();
        budget.0.set(KEPT_BYTES_MAX - 1);
        let mut source = source(&[b"ab"], &budget);
        assert_eq!(read(&mut source, &mut Reader::default(), 9), b"ab");
        assert_eq!(source.again(), None);
        assert_eq!(budget.0.get(), KEPT_BYTES_MAX - 1);
    }

    #[test]
    fn the_fields_behind_a_body_are_sent_again_too_without_the_platforms() {
        let mut fields = HeaderMap::new();
        fields.insert("x-sum", http::HeaderValue::from_static("1"));
        fields.insert("fly-client-ip", http::HeaderValue::from_static("6.6.6.6"));
        let mut source = source(&[b"a"], &Budget::default());
        source.incoming.0.push_back(Frame::trailers(fields));
        let mut context = Context::from_waker(Waker::noop());
        let mut reader = Reader::default();
        for _ in 0..2 {
            assert_eq!(read(&mut source, &mut reader, 1), b"a");
            let Poll::Ready(Some(Ok(frame))) = source.poll(&mut reader, &mut context) else {
                panic!("no trailers");
            };
            let names: Vec<_> =
                frame.trailers_ref().unwrap().keys().map(|name| name.as_str()).collect();
            assert_eq!(names, ["x-sum"]);
            assert!(matches!(source.poll(&mut reader, &mut context), Poll::Ready(None)));
            reader = Reader { turn: source.again().unwrap(), ..Reader::default() };
        }
    }
}
