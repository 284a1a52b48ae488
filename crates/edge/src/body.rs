//! What the client is sent: a page of the edge's own, what a machine sends, a file.
//!
//! Never buffers what passes. When an answer has been read to its end, its connection goes
//! back to the pool; when it is dropped before, that connection is closed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use perch_sockets::Timer;

use crate::compress::Compressed;
use crate::headers;
use crate::live::InFlight;
use crate::origin1::{Fault, Flow};
use crate::pool::{Key, Pool, Stream};
use crate::statics::Place;

/// What the client is sent.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// A page of ours.
    Page(Option<Bytes>),
    /// What the machine sends.
    Machine(Box<MachineBody>),
    /// A file that the host reads.
    File(Box<FileBody>),
    /// Any of these, compressed.
    Compressed(Box<Compressed>),
}

/// What a machine's answer is read from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A connection for one request at a time, and the pool that it goes back to.
    Single(Box<Flow>, Option<(Pool, Key)>),
    /// A connection that carries others too, and one more when this one is over.
    Stream(Incoming, Option<Stream>),
    /// All of it was read.
    Over,
    /// It broke off.
    Broken,
}

/// What the machine sends, and what is held for it meanwhile.
#[derive(Debug)]
pub(crate) struct MachineBody {
    source: Source,
    idle: Duration,
    silence: Timer,
    _in_flight: InFlight,
}

/// A file that the host reads, and its place among those that are sent.
#[derive(Debug)]
pub(crate) struct FileBody {
    incoming: Incoming,
    idle: Duration,
    silence: Timer,
    _place: Place,
}

/// Why an answer breaks off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The machine's connection.
    #[error("read the machine's answer")]
    Machine(#[source] Fault),
    /// The machine's connection that carries others too.
    #[error("read the machine's answer among others")]
    Stream(#[source] hyper::Error),
    /// The host's connection.
    #[error("read a file of the image")]
    File(#[source] hyper::Error),
    /// The machine sends nothing.
    #[error("wait for the rest of the machine's answer")]
    Silent,
    /// The host sends nothing.
    #[error("wait for the rest of a file of the image")]
    FileSilent,
    /// What it sends cannot be compressed.
    #[error("compress the answer")]
    Compress(#[source] std::io::Error),
}

impl MachineBody {
    pub(crate) fn new(source: Source, idle: Duration, in_flight: InFlight) -> Self {
        let mut body = Self { source, idle, silence: Timer::default(), _in_flight: in_flight };
        if body.is_end_stream() {
            body.give_back();
        }
        body
    }

    fn give_back(&mut self) {
        if let Source::Stream(_, stream) = &mut self.source {
            // How long the answer is may be asked for longer.
            drop(stream.take());
        } else if let Source::Single(flow, back) = std::mem::replace(&mut self.source, Source::Over)
        {
            let origin = flow.into_origin(self.idle);
            if let Some((pool, key)) = back {
                pool.put(&key, origin);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Single(flow, _) => flow.is_over(),
            Source::Stream(incoming, _) => incoming.is_end_stream(),
            Source::Over => true,
            Source::Broken => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Single(flow, _) => flow.left().map(SizeHint::with_exact).unwrap_or_default(),
            Source::Stream(incoming, _) => incoming.size_hint(),
            Source::Over => SizeHint::with_exact(0),
            Source::Broken => SizeHint::default(),
        }
    }
}

/// Returns how many bytes of a body a frame has.
pub(crate) fn bytes_of(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX))
}

impl ReplyBody {
    pub(crate) fn page(text: impl Into<Bytes>) -> Self {
        Self::Page(Some(text.into()))
    }
}

impl MachineBody {
    fn poll_machine(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = match &mut self.source {
            Source::Single(flow, _) => flow.poll_frame(context).map_err(BodyError::Machine),
            Source::Stream(incoming, _) => {
                Pin::new(incoming).poll_frame(context).map_err(BodyError::Stream)
            }
            Source::Over | Source::Broken => return Poll::Ready(None),
        };
        if polled.is_ready() {
            self.silence.reset();
        }
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::strip_answer_trailers(trailers);
        }
        match &polled {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Ok(_))) if self.is_end_stream() => self.give_back(),
            Poll::Ready(Some(Err(_))) => self.source = Source::Broken,
            Poll::Pending if self.silence.is_over(self.idle, context) => {
                // The connection is closed: what comes over it later is nobody's.
                self.source = Source::Broken;
                return Poll::Ready(Some(Err(BodyError::Silent)));
            }
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }
}

impl FileBody {
    pub(crate) fn new(incoming: Incoming, idle: Duration, place: Place) -> Self {
        Self { incoming, idle, silence: Timer::default(), _place: place }
    }

    fn poll_file(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(context);
        if polled.is_ready() {
            self.silence.reset();
        } else if self.silence.is_over(self.idle, context) {
            return Poll::Ready(Some(Err(BodyError::FileSilent)));
        }
        polled.map_err(BodyError::File)
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Page(page) => Poll::Ready(page.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Machine(body) => body.poll_machine(context),
            Self::File(body) => body.poll_file(context),
            Self::Compressed(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(page) => page.is_none(),
            Self::Machine(body) => body.is_end_stream(),
            Self::File(body) => body.incoming.is_end_stream(),
            Self::Compressed(body) => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(page) => {
                SizeHint::with_exact(page.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Machine(body) => body.size_hint(),
            Self::File(body) => body.incoming.size_hint(),
            Self::Compressed(_) => SizeHint::default(),
        }
    }
}
