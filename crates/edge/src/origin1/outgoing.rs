//! A request on its way to a machine, of which the body comes from the client meanwhile.
//!
//! Never holds more of a body than the piece that is being written, and a buffer.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Method};
use http_body::Body;
use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use crate::buffers::{self, Buffers};
use crate::upload::UploadError;

use super::Fault;
use super::answer::length_of;
use super::wire::Wire;

/// How large a piece of a body is that is copied behind what is before it.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// So many bytes more.
    Length(u64),
    Chunked,
}

/// What is to be written of a request.
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    buffers: Buffers,
    /// Nothing when all of it was read.
    body: Option<B>,
    framing: Framing,
    /// What is written next, and a large piece of the body behind it.
    next: BytesMut,
    data: Bytes,
    has_begun: bool,
    /// Whether the machine takes nothing more.
    is_cut: bool,
    /// When the machine took something last.
    moved: Rc<Cell<Instant>>,
}

impl<B> Outgoing<B> {
    /// Returns whether no machine has seen anything of it.
    pub(super) const fn is_unsent(&self) -> bool {
        !self.has_begun
    }

    /// Returns where it is noted when the machine took something last.
    pub(super) fn moved(&self) -> Rc<Cell<Instant>> {
        Rc::clone(&self.moved)
    }

    /// Returns whether nothing more is to be written: all of it was, or the machine takes no more.
    pub(super) fn is_over(&self) -> bool {
        self.is_cut || (self.body.is_none() && self.next.is_empty() && self.data.is_empty())
    }
}

impl<B> Outgoing<B>
where
    B: Body<Data = Bytes, Error = UploadError> + Unpin,
{
    pub(super) fn new(parts: &Parts, body: B, buffers: &Buffers) -> Self {
        let mut next = buffers.take();
        let known = (!body.is_end_stream()).then(|| body.size_hint().exact());
        let framing = head(parts, known, &mut next);
        let has_body = framing != Framing::Length(0);
        Self {
            buffers: buffers.clone(),
            body: has_body.then_some(body),
            framing,
            next,
            data: Bytes::new(),
            has_begun: false,
            is_cut: false,
            moved: Rc::new(Cell::new(Instant::now())),
        }
    }

    /// Writes what there is; ready when nothing is left, with whether all of it was written. The
    /// machine may take no more of a body: what it answers counts all the same.
    pub(super) fn poll_send(
        &mut self,
        wire: &RefCell<Wire>,
        context: &mut Context<'_>,
    ) -> Poll<Result<bool, Fault>> {
        loop {
            if self.is_cut {
                return Poll::Ready(Ok(false));
            }
            self.fill(context)?;
            let written = if self.next.is_empty() && self.data.is_empty() {
                let flushed = Pin::new(&mut *wire.borrow_mut()).poll_flush(context);
                match flushed {
                    Poll::Ready(Ok(())) if self.body.is_none() => return Poll::Ready(Ok(true)),
                    Poll::Ready(Ok(())) | Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => Err(error),
                }
            } else {
                ready!(self.poll_write(wire, context))
            };
            match written {
                Ok(count) => self.wrote(count),
                Err(error) if self.is_unsent() => return Poll::Ready(Err(Fault::Broken(error))),
                Err(error) => {
                    tracing::debug!(%error, "machine takes no more of a request");
                    self.is_cut = true;
                }
            }
        }
    }

    fn poll_write(
        &self,
        wire: &RefCell<Wire>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut wire = wire.borrow_mut();
        let wire = Pin::new(&mut *wire);
        let count = if self.data.is_empty() {
            ready!(wire.poll_write(context, &self.next))?
        } else {
            let both = [IoSlice::new(&self.next), IoSlice::new(&self.data)];
            ready!(wire.poll_write_vectored(context, &both))?
        };
        Poll::Ready(if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(count) })
    }

    fn wrote(&mut self, count: usize) {
        self.has_begun = true;
        self.moved.set(Instant::now());
        let before = count.min(self.next.len());
        self.next.advance(before);
        if self.data.is_empty() {
            return;
        }
        self.data.advance((count - before).min(self.data.len()));
        if self.data.is_empty() && self.framing == Framing::Chunked {
            self.next.extend_from_slice(b"\r\n");
        }
    }

    /// Takes of the body what the client has sent, as long as there is room.
    fn fill(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        while self.data.is_empty() && self.next.len() < buffers::BYTES {
            let Some(body) = &mut self.body else {
                return Ok(());
            };
            let frame = match Pin::new(body).poll_frame(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(frame)) => frame.map_err(Fault::Upload)?,
                Poll::Ready(None) => {
                    self.end()?;
                    return Ok(());
                }
            };
            // Fields behind a body were not promised, and many a program takes them for a request.
            if let Ok(data) = frame.into_data() {
                self.add(data);
            }
        }
        Ok(())
    }

    fn add(&mut self, mut data: Bytes) {
        if let Framing::Length(left) = &mut self.framing {
            data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left = left.saturating_sub(u64::try_from(data.len()).unwrap_or(u64::MAX));
            if *left == 0 {
                self.body = None;
            }
        }
        if data.is_empty() {
            return;
        }
        let is_chunk = self.framing == Framing::Chunked;
        if is_chunk {
            put(&mut self.next, format_args!("{:X}\r\n", data.len()));
        }
        if data.len() > COPIED_BYTES_MAX {
            self.data = data;
            return;
        }
        self.next.extend_from_slice(&data);
        if is_chunk {
            self.next.extend_from_slice(b"\r\n");
        }
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.body = None;
        match self.framing {
            Framing::Chunked => self.next.extend_from_slice(b"0\r\n\r\n"),
            Framing::Length(0) => {}
            Framing::Length(_) => return Err(Fault::Short),
        }
        Ok(())
    }
}

impl<B> Drop for Outgoing<B> {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.next));
    }
}

/// Writes the head of a request that has a body, of which the length may be known. Its fields say
/// how that is written, or what is written of it says so.
fn head(parts: &Parts, body: Option<Option<u64>>, out: &mut BytesMut) -> Framing {
    let path = match parts.uri.path() {
        "" => "/",
        path => path,
    };
    put(out, format_args!("{} {path}", parts.method));
    if let Some(query) = parts.uri.query() {
        put(out, format_args!("?{query}"));
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let said = length(&parts.headers);
    let is_chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    let has_none = matches!(parts.method, Method::GET | Method::HEAD | Method::CONNECT);
    let (framing, told) = match body {
        None => (Framing::Length(0), said.is_some()),
        Some(_) if is_chunked => (Framing::Chunked, false),
        Some(known) => match (said, known) {
            (Some(said), _) => (Framing::Length(said), true),
            (None, Some(known)) => (Framing::Length(known), false),
            (None, None) if has_none => (Framing::Length(0), true),
            (None, None) => (Framing::Chunked, false),
        },
    };
    for (name, value) in &parts.headers {
        let frames = *name == TRANSFER_ENCODING || (*name == CONTENT_LENGTH && !told);
        if !frames {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    match framing {
        Framing::Chunked => field(out, TRANSFER_ENCODING.as_str().as_bytes(), b"chunked"),
        Framing::Length(length) if !told && body.is_some() => {
            put(out, format_args!("{CONTENT_LENGTH}: {length}\r\n"));
        }
        Framing::Length(_) => {}
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Returns the one length that fields say.
fn length(headers: &HeaderMap) -> Option<u64> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = length_of(lengths.next()?.as_bytes());
    length.filter(|_| lengths.next().is_none())
}

fn field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put(out: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    // A buffer grows; there is nothing that could fail.
    out.write_fmt(text).ok();
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn written(
        line: &str,
        fields: &[(&str, &str)],
        body: Option<Option<u64>>,
    ) -> (String, Framing) {
        let (method, target) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut out = BytesMut::new();
        let framing = head(&parts, body, &mut out);
        (String::from_utf8(out.to_vec()).unwrap(), framing)
    }

    #[test]
    fn a_head_says_how_its_body_is_written() {
        let host = ("host", "a");
        let (five, chunked) = (("content-length", "5"), ("transfer-encoding", "chunked"));
        for (line, fields, body, want, framing) in [
            ("GET /a?b", &[host][..], None, "host: a\r\n", Framing::Length(0)),
            (
                "POST /",
                &[host, ("content-length", "0")],
                None,
                "host: a\r\ncontent-length: 0\r\n",
                Framing::Length(0),
            ),
            ("POST /", &[chunked, host], None, "host: a\r\n", Framing::Length(0)),
            ("POST /", &[five], Some(Some(5)), "content-length: 5\r\n", Framing::Length(5)),
            ("POST /", &[five], Some(None), "content-length: 5\r\n", Framing::Length(5)),
            (
                "POST /",
                &[host],
                Some(Some(5)),
                "host: a\r\ncontent-length: 5\r\n",
                Framing::Length(5),
            ),
            (
                "POST /",
                &[host],
                Some(None),
                "host: a\r\ntransfer-encoding: chunked\r\n",
                Framing::Chunked,
            ),
            ("GET /", &[host], Some(None), "host: a\r\n", Framing::Length(0)),
            ("GET /", &[chunked], Some(None), "transfer-encoding: chunked\r\n", Framing::Chunked),
            (
                "POST /",
                &[five, chunked],
                Some(None),
                "transfer-encoding: chunked\r\n",
                Framing::Chunked,
            ),
        ] {
            let (text, how) = written(line, fields, body);
            assert_eq!(text, format!("{line} HTTP/1.1\r\n{want}\r\n"), "{fields:?} {body:?}");
            assert_eq!(how, framing, "{line} {fields:?} {body:?}");
        }
    }

    #[test]
    fn a_target_is_a_path_and_fields_keep_their_order_and_their_number() {
        let fields = [("x-b", "1"), ("x-a", ""), ("x-b", "2")];
        let (text, _) = written("GET http://a.example?b", &fields, None);
        assert!(text.starts_with("GET /?b HTTP/1.1\r\n"), "{text}");
        assert_eq!(text.matches("x-b: ").count(), 2, "{text}");
        assert!(text.contains("x-a: \r\n") && text.ends_with("\r\n\r\n"), "{text}");
    }
}
