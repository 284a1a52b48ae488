//! HTTP/1.1 to a machine: one request and its answer at a time over one connection.
//!
//! Never has a task or a channel for an answer: whoever asks reads it, from the memory into which
//! it came. A connection that lies idle holds none.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::buffers::{self, Buffers};
use crate::cause::Cause;
use crate::live::Load;
use crate::rewound::Rewound;
use crate::strict::chunks::{Chunks, Piece};
use crate::upload::UploadError;

pub(crate) mod answer;
mod exchange;
mod front;
mod outgoing;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use self::answer::{Asked, Doubt, Framing, Head};
pub(crate) use self::exchange::{Exchange, Flow};
pub(crate) use self::front::{Lone, Wrote};
pub(crate) use self::wire::Switched;

use self::answer::{FIELDS_MAX, Field};
use self::wire::{Counted, Wire};

/// How much of a large body is read at once.
const PIECE_BYTES: usize = 64 * 1024;
/// How large a piece of a body is that is copied when it is taken.
const COPIED_BYTES_MAX: usize = 4 * 1024;
/// The least room for what comes next.
const ROOM_BYTES: usize = 4 * 1024;
/// How many fields the edge adds to an answer, and the library that sends it.
const EDGES_FIELDS: usize = 6;
/// How much may come of answers before the one that counts.
const INTERIM_BYTES_MAX: usize = 64 * 1024;

/// A connection over which one request at a time is answered.
#[derive(Debug)]
pub(crate) struct Origin {
    link: Rc<Link>,
    buffers: Buffers,
    /// What has come: the head, while it is kept, what was taken of the body, and the rest.
    buffer: BytesMut,
    asked: Asked,
    /// The head whose bytes are kept.
    head: Option<Head>,
    fields: Vec<Field>,
    /// Where the bytes begin that were not taken, and how many of the body there are of them.
    at: usize,
    ready: usize,
    rest: Rest,
    trailers: Vec<u8>,
    /// How much has come of answers before the one that counts.
    interim_bytes: usize,
    /// Whether the request was sent whole, and whether the answer lets the connection be used again.
    is_sent: bool,
    keeps: bool,
    /// Whether the last read filled all the room there was.
    is_large: bool,
}

/// What is shared by whoever reads and whoever still sends.
#[derive(Debug)]
struct Link {
    wire: RefCell<Wire>,
    counted: Counted,
}

/// What is to come of an answer behind what is ready.
#[derive(Debug)]
enum Rest {
    /// The head too.
    Head,
    Length(u64),
    Chunked(Chunks),
    ToClose,
    Over,
    /// Nobody can tell.
    Doubt,
}

/// Why there is no answer, or no more of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The connection broke.
    #[error("reach the machine")]
    Broken(#[source] io::Error),
    /// The connection ended before the answer did.
    #[error("read on behind the end of a machine's connection")]
    Ended,
    /// The answer is unclear.
    #[error("understand the machine's answer")]
    Doubt(#[from] Doubt),
    /// What the client sends broke off.
    #[error("send the client's body")]
    Upload(#[source] UploadError),
    /// The client's body has less bytes than its head says.
    #[error("send a body of the length that was said")]
    Short,
}

impl Fault {
    /// Returns whose fault it is.
    pub(crate) const fn cause(&self) -> Cause {
        match self {
            Self::Broken(_) | Self::Ended => Cause::Upstream,
            Self::Doubt(_) => Cause::BadAnswer,
            Self::Upload(_) | Self::Short => Cause::BadRequest,
        }
    }

    /// Returns whether it lies in what the client sends.
    pub(crate) const fn is_clients(&self) -> bool {
        matches!(self, Self::Upload(_) | Self::Short)
    }
}

impl Origin {
    /// Begins to speak over a new connection to a machine, which counts its end.
    pub(crate) fn over(stream: TcpStream, load: Arc<Load>, buffers: &Buffers) -> Box<Self> {
        Self::new(Wire::Plain(stream), Some(load), buffers)
    }

    /// Begins to speak over a connection to another edge.
    pub(crate) fn over_tls(stream: TlsStream<TcpStream>, buffers: &Buffers) -> Box<Self> {
        Self::new(Wire::Tls(Box::new(stream)), None, buffers)
    }

    /// It is in one place for as long as it lasts: it goes from hand to hand with each request.
    fn new(wire: Wire, load: Option<Arc<Load>>, buffers: &Buffers) -> Box<Self> {
        let link = Link { wire: RefCell::new(wire), counted: Counted(load) };
        Box::new(Self {
            link: Rc::new(link),
            buffers: buffers.clone(),
            buffer: BytesMut::new(),
            asked: Asked::default(),
            head: None,
            fields: Vec::new(),
            at: 0,
            ready: 0,
            rest: Rest::Over,
            trailers: Vec::new(),
            interim_bytes: 0,
            is_sent: true,
            keeps: true,
            is_large: false,
        })
    }

    /// Returns whether the connection is there and nothing has come over it that was not asked for.
    pub(crate) fn is_quiet(&self) -> bool {
        self.link.wire.borrow().is_quiet()
    }

    /// Lies idle from now on; returns whether it may. Its answer has to be over, with nothing
    /// behind it.
    pub(crate) fn rests(&mut self) -> bool {
        let is_at_end = self.is_over() && self.at >= self.buffer.len();
        self.head = None;
        self.buffers.give(std::mem::take(&mut self.buffer));
        self.at = 0;
        if self.has_trailers() {
            self.trailers = Vec::new();
        }
        is_at_end && self.is_sent && self.keeps
    }

    /// Forgets the last answer: another one is asked for.
    fn begins(&mut self, asked: Asked) {
        self.asked = asked;
        self.rest = Rest::Head;
        self.trailers.clear();
        self.interim_bytes = 0;
        self.is_sent = false;
        self.keeps = false;
        self.is_large = false;
    }

    /// Reads until the head of the answer is whole.
    pub(crate) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Result<Head, Fault>> {
        loop {
            while !self.buffer.is_empty() {
                let Some(head) = answer::parse(&self.buffer, self.asked, &mut self.fields)? else {
                    break;
                };
                if !head.is_interim() {
                    self.hears(head);
                    return Poll::Ready(Ok(head));
                }
                self.buffer.advance(head.length);
                self.interim_bytes += head.length;
                if self.interim_bytes > INTERIM_BYTES_MAX {
                    return Poll::Ready(Err(Doubt::TooLarge.into()));
                }
            }
            if ready!(self.poll_read(context, ROOM_BYTES))? == 0 {
                return Poll::Ready(Err(Fault::Ended));
            }
        }
    }

    fn hears(&mut self, head: Head) {
        self.head = Some(head);
        self.at = head.length;
        self.keeps = head.keeps;
        self.rest = match head.framing {
            Framing::None | Framing::Length(0) => Rest::Over,
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunked(Chunks::of_answer()),
            Framing::ToClose => Rest::ToClose,
        };
        self.look();
    }

    /// Returns the bytes of the answer's head, until more was read of its body.
    pub(crate) fn head_bytes(&self) -> &[u8] {
        let length = self.head.map_or(0, |head| head.length);
        self.buffer.get(..length).unwrap_or_default()
    }

    /// Reads until there is something of the body, or it is over: then it is false.
    pub(crate) fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Fault>> {
        loop {
            if self.ready > 0 {
                return Poll::Ready(Ok(true));
            }
            let room = match &self.rest {
                Rest::Over => return Poll::Ready(Ok(false)),
                Rest::Head | Rest::Doubt => return Poll::Ready(Err(Doubt::Chunks.into())),
                Rest::Length(left) => usize::try_from(*left).unwrap_or(PIECE_BYTES),
                Rest::Chunked(_) | Rest::ToClose if self.is_large => PIECE_BYTES,
                Rest::Chunked(_) | Rest::ToClose => ROOM_BYTES,
            };
            // All that had come was taken, and the head is not kept for longer.
            self.release();
            let room = room.clamp(ROOM_BYTES, PIECE_BYTES);
            if ready!(self.poll_read(context, room))? == 0 {
                if !matches!(self.rest, Rest::ToClose) {
                    return Poll::Ready(Err(Fault::Ended));
                }
                self.rest = Rest::Over;
            }
            self.look();
        }
    }

    /// Takes what there is of the body, in one piece.
    pub(crate) fn take_data(&mut self) -> Bytes {
        if self.ready <= COPIED_BYTES_MAX {
            // Else the whole buffer would be the piece's, and the next answer need a new one.
            let data = Bytes::copy_from_slice(self.data());
            self.consume(self.ready);
            return data;
        }
        self.head = None;
        self.buffer.advance(self.at);
        let data = self.buffer.split_to(self.ready).freeze();
        self.at = 0;
        self.ready = 0;
        self.look();
        data
    }

    /// Returns whether all of the body was taken.
    pub(crate) const fn is_over(&self) -> bool {
        self.ready == 0 && matches!(self.rest, Rest::Over)
    }

    /// Returns how many bytes of the body were not taken, if its head says so.
    pub(crate) fn left(&self) -> Option<u64> {
        let ready = u64::try_from(self.ready).unwrap_or(u64::MAX);
        match self.rest {
            Rest::Length(left) => left.checked_add(ready),
            Rest::Over => Some(ready),
            Rest::Head | Rest::Chunked(_) | Rest::ToClose | Rest::Doubt => None,
        }
    }

    /// Returns whether fields stand behind the body that nobody has taken.
    pub(crate) fn has_trailers(&self) -> bool {
        // There is always an empty line.
        self.trailers.len() > b"\r\n".len()
    }

    /// Takes them.
    pub(crate) fn take_trailers(&mut self) -> Result<Option<HeaderMap>, Doubt> {
        if !self.has_trailers() {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut self.trailers);
        let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let Ok(httparse::Status::Complete((_, fields))) =
            httparse::parse_headers(&bytes, &mut room)
        else {
            return Err(Doubt::Trailers);
        };
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let value = HeaderValue::from_bytes(field.value);
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(Doubt::Trailers);
            };
            trailers.append(name, value);
        }
        Ok(Some(trailers))
    }

    /// Returns the answer without its body, with those of its fields whose names are to be kept.
    pub(crate) fn response(
        &self,
        head: &Head,
        keeps: fn(&[u8]) -> bool,
    ) -> Result<Response<()>, Doubt> {
        let mut response = Response::new(());
        let unclear = || Doubt::Head(httparse::Error::Status);
        *response.status_mut() = StatusCode::from_u16(head.status).map_err(|_| unclear())?;
        *response.version_mut() = if head.minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
        // One copy, of which the values are parts: the buffer is used again.
        let bytes = Bytes::copy_from_slice(self.head_bytes());
        let reason = head.reason.within(&bytes);
        if response.status().canonical_reason().map(str::as_bytes) != Some(reason)
            && let Ok(reason) = ReasonPhrase::try_from(reason)
        {
            response.extensions_mut().insert(reason);
        }
        response.headers_mut().reserve(self.fields.len() + EDGES_FIELDS);
        for field in &self.fields {
            let name = field.name.within(&bytes);
            if !keeps(name) {
                continue;
            }
            let name = HeaderName::from_bytes(name)
                .map_err(|_| Doubt::Head(httparse::Error::HeaderName))?;
            let value = match field.value.within(&bytes) {
                [] => Bytes::new(),
                value => bytes.slice_ref(value),
            };
            let value = HeaderValue::from_maybe_shared(value)
                .map_err(|_| Doubt::Head(httparse::Error::HeaderValue))?;
            response.headers_mut().append(name, value);
        }
        Ok(response)
    }

    /// Gives the connection itself away, with what has come behind the head; nothing if somebody
    /// still sends over it.
    pub(crate) fn into_switched(self) -> Option<Switched> {
        let link = Rc::clone(&self.link);
        let front = BytesMut::from(self.buffer.get(self.at..).unwrap_or_default());
        drop(self);
        let Link { wire, counted } = Rc::into_inner(link)?;
        Some(Switched { stream: Rewound::new(front, wire.into_inner()), counted })
    }

    /// Forgets what was taken.
    fn release(&mut self) {
        self.head = None;
        self.buffer.clear();
        self.at = 0;
    }

    /// Finds what comes next of the body among what has come.
    fn look(&mut self) {
        while self.ready == 0 {
            let come = self.buffer.get(self.at..).unwrap_or_default();
            if come.is_empty() {
                return;
            }
            match &mut self.rest {
                Rest::Head | Rest::Over | Rest::Doubt => return,
                Rest::ToClose => self.ready = come.len(),
                Rest::Length(left) => {
                    self.ready = usize::try_from(*left).unwrap_or(usize::MAX).min(come.len());
                    *left = left.saturating_sub(u64::try_from(self.ready).unwrap_or(u64::MAX));
                    if *left == 0 {
                        self.rest = Rest::Over;
                    }
                }
                Rest::Chunked(chunks) => {
                    let (piece, is_over) = (chunks.piece(come), chunks.is_over());
                    self.found(piece, is_over);
                }
            }
        }
    }

    /// Notes what comes next of a chunked body.
    fn found(&mut self, piece: Option<Piece>, is_over: bool) {
        match piece {
            Some(Piece::Data(count)) => self.ready = count,
            Some(Piece::Frame(count)) => self.at += count,
            Some(Piece::Trailers(count)) => {
                let end = self.at + count;
                self.trailers.extend_from_slice(self.buffer.get(self.at..end).unwrap_or_default());
                self.at = end;
            }
            None => self.rest = Rest::Doubt,
        }
        if is_over {
            self.rest = Rest::Over;
        }
    }

    /// Reads what has come, behind what there is.
    fn poll_read(&mut self, context: &mut Context<'_>, room: usize) -> Poll<Result<usize, Fault>> {
        if self.buffer.capacity() == 0 {
            self.buffer = self.buffers.take();
        }
        self.buffer.reserve(room);
        let free = self.buffer.capacity() - self.buffer.len();
        let mut wire = self.link.wire.borrow_mut();
        // It keeps nothing between two polls, so that it may be dropped behind each.
        let reading = std::pin::pin!(wire.read_buf(&mut self.buffer));
        let count = ready!(reading.poll(context)).map_err(Fault::Broken)?;
        self.is_large = count >= free || count >= buffers::BYTES;
        Poll::Ready(Ok(count))
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.buffer));
    }
}
