//! Reads along with the frames of an HTTP/2 connection and breaks one whose client makes the
//! server work for nothing: resets, settings, priorities, empty data, frames of no known type, and
//! heads that take too long.
//!
//! Never looks into a frame: only at the nine bytes in front of each (RFC 9113, section 4.1), and
//! at the one that says how much of its data is padding. What is wrong with a frame is for the
//! HTTP/2 library to say.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use perch_sockets::Timer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const END_STREAM_OR_ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;

/// Frames that an honest client sends now and then, such as for a page that is left with all its
/// requests under way: so many at once, and so many a second.
const RARE: Allowance = Allowance { burst: 1_000, a_second: 100 };
/// Frames that go with the bytes of answers: acknowledgements of what was read, measurements.
const COMMON: Allowance = Allowance { burst: 50_000, a_second: 20_000 };

/// A connection on which frames are counted.
#[derive(Debug)]
pub(crate) struct Frames<S> {
    inner: S,
    meter: Meter,
    /// How long a client may take for the head of a request, from when it began.
    head_max: Duration,
    late: Timer,
    /// Which head that timer is for.
    timed: u64,
}

impl<S> Frames<S> {
    pub(crate) fn new(inner: S, head_max: Duration) -> Self {
        Self {
            inner,
            meter: Meter::new(Instant::now()),
            head_max,
            late: Timer::default(),
            timed: 0,
        }
    }

    /// Returns whether the head that is being read takes too long.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let is_in_head = self.meter.is_in_head();
        if !is_in_head || self.timed != self.meter.heads {
            self.late.reset();
            self.timed = self.meter.heads;
        }
        is_in_head && self.late.is_over(self.head_max, context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.inner).poll_read(context, buf) {
            Poll::Ready(read) => read?,
            Poll::Pending if this.is_late(context) => {
                let error = io::Error::new(io::ErrorKind::TimedOut, "a head came too slowly");
                return Poll::Ready(Err(error));
            }
            Poll::Pending => return Poll::Pending,
        }
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if this.meter.take(fresh, Instant::now()) {
            Poll::Ready(Ok(()))
        } else {
            let error = io::Error::new(io::ErrorKind::InvalidData, "too many frames for nothing");
            Poll::Ready(Err(error))
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
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

/// How many frames may come.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    burst: u32,
    a_second: u32,
}

/// What is left of an allowance.
#[derive(Debug)]
struct Budget {
    allowance: Allowance,
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(allowance: Allowance, now: Instant) -> Self {
        Self { allowance, left: allowance.burst, since: now }
    }

    fn spend(&mut self, now: Instant) -> bool {
        if self.left == 0 {
            let passed = now.saturating_duration_since(self.since).as_millis();
            let earned = passed.saturating_mul(u128::from(self.allowance.a_second)) / 1_000;
            self.left = u32::try_from(earned).unwrap_or(u32::MAX).min(self.allowance.burst);
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// Where in the frames of a connection its bytes are. Pure.
#[derive(Debug)]
struct Meter {
    /// How much comes before the next frame's head.
    skip: usize,
    /// The head, and how much padding data has.
    head: [u8; HEAD_BYTES + 1],
    /// How much of that is there.
    have: usize,
    /// Whether the last frame belonged to a request's head, and whether more of that head has to
    /// come in another.
    was_head: bool,
    is_head_open: bool,
    /// How many heads of requests have begun.
    heads: u64,
    rare: Budget,
    common: Budget,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES + 1],
            have: 0,
            was_head: false,
            is_head_open: false,
            heads: 0,
            rare: Budget::new(RARE, now),
            common: Budget::new(COMMON, now),
        }
    }

    /// Takes bytes of the connection; returns whether it may go on.
    fn take(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = self.skip.min(bytes.len());
                self.skip -= count;
                bytes = bytes.get(count..).unwrap_or_default();
                continue;
            }
            let count = (self.wanted() - self.have).min(bytes.len());
            let (part, rest) = bytes.split_at(count);
            if let Some(room) = self.head.get_mut(self.have..self.have + count) {
                room.copy_from_slice(part);
            }
            self.have += count;
            bytes = rest;
            if self.have == self.wanted() {
                self.have = 0;
                if !self.frame(now) {
                    return false;
                }
            }
        }
        true
    }

    /// Returns whether a request's head has begun and is not whole.
    fn is_in_head(&self) -> bool {
        self.is_head_open || (self.was_head && self.skip > 0)
    }

    fn length(&self) -> u32 {
        let [high, middle, low, ..] = self.head;
        u32::from_be_bytes([0, high, middle, low])
    }

    /// Returns how many bytes of a frame are looked at.
    fn wanted(&self) -> usize {
        let [_, _, _, kind, flags, ..] = self.head;
        let is_padded = self.have >= HEAD_BYTES && kind == DATA && flags & PADDED != 0;
        if is_padded && self.length() > 0 { HEAD_BYTES + 1 } else { HEAD_BYTES }
    }

    /// Judges the frame of which all is there that is looked at.
    fn frame(&mut self, now: Instant) -> bool {
        let [_, _, _, kind, flags, .., padding] = self.head;
        let mut length = self.length();
        if kind == DATA && flags & PADDED != 0 && length > 0 {
            length -= 1;
            self.skip = usize::try_from(length).unwrap_or(usize::MAX);
            // What is all padding carries nothing.
            length = length.saturating_sub(u32::from(padding));
        } else {
            self.skip = usize::try_from(length).unwrap_or(usize::MAX);
        }
        let is_marked = flags & END_STREAM_OR_ACK != 0;
        self.was_head = matches!(kind, HEADERS | CONTINUATION);
        if self.was_head {
            self.is_head_open = flags & END_HEADERS == 0;
            self.heads = self.heads.wrapping_add(u64::from(kind == HEADERS));
        }
        match kind {
            // DATA that carries something or ends a request; HEADERS, GOAWAY and CONTINUATION are
            // limited by what they begin, end or belong to.
            DATA if length > 0 || is_marked => true,
            HEADERS | CONTINUATION | 0x7 => true,
            // Acknowledgements of our own SETTINGS and PING.
            0x4 | 0x6 if is_marked => true,
            // Measurements, credit, and new priorities of requests (RFC 9218).
            0x6 | 0x8 | 0x10 => self.common.spend(now),
            _ => self.rare.spend(now),
        }
    }
}

/// However bytes come, the same is counted and the same frame breaks the connection: for the fuzz
/// target.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    let now = Instant::now();
    let drive = |size: usize| {
        let mut meter = Meter::new(now);
        let may_go_on = bytes.chunks(size).all(|piece| meter.take(piece, now));
        (may_go_on, format!("{meter:?}"))
    };
    let whole = drive(bytes.len().max(1));
    for size in [1, 2, 7, 64] {
        assert_eq!(whole, drive(size), "in pieces of {size}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn begun() -> (Meter, Instant) {
        let now = Instant::now();
        let mut meter = Meter::new(now);
        assert!(meter.take(&[0; PREFACE_BYTES], now));
        (meter, now)
    }

    /// How many frames of a kind pass at once, up to a bound.
    fn passing(frame: &[u8]) -> u32 {
        let (mut meter, now) = begun();
        (0..100_000).take_while(|_| meter.take(frame, now)).count().try_into().unwrap()
    }

    #[test]
    fn e5_frames_for_nothing_end_a_connection_and_useful_ones_do_not() {
        let reset = frame(0x3, 0, &[0, 0, 0, 8]);
        for (what, bytes, want) in [
            ("RST_STREAM", reset, RARE.burst),
            ("SETTINGS", frame(0x4, 0, &[]), RARE.burst),
            ("PRIORITY", frame(0x2, 0, &[0; 5]), RARE.burst),
            ("empty DATA", frame(0x0, 0, &[]), RARE.burst),
            ("unknown", frame(0xfa, 0, &[1]), RARE.burst),
            ("PING", frame(0x6, 0, &[0; 8]), COMMON.burst),
            ("WINDOW_UPDATE", frame(0x8, 0, &[0; 4]), COMMON.burst),
            ("HEADERS", frame(0x1, 0x5, &[0x82]), 100_000),
            ("DATA", frame(0x0, 0, b"a"), 100_000),
            ("DATA at the end", frame(0x0, 0x1, &[]), 100_000),
            ("padded DATA", frame(0x0, 0x8, b"\x02a\0\0"), 100_000),
            ("DATA of padding alone", frame(0x0, 0x8, b"\x03\0\0\0"), RARE.burst),
            ("DATA of no padding and nothing else", frame(0x0, 0x8, b"\0"), RARE.burst),
            ("DATA of padding at the end", frame(0x0, 0x9, b"\x03\0\0\0"), 100_000),
            ("SETTINGS ACK", frame(0x4, 0x1, &[]), 100_000),
            ("PING ACK", frame(0x6, 0x1, &[0; 8]), 100_000),
        ] {
            assert_eq!(passing(&bytes), want, "{what}");
        }
    }

    #[test]
    fn an_allowance_comes_back_with_time() {
        let (mut meter, now) = begun();
        let reset = frame(0x3, 0, &[0; 4]);
        for second in 0..100 {
            let now = now + Duration::from_secs(second);
            for _ in 0..RARE.a_second {
                assert!(meter.take(&reset, now), "second {second}");
            }
        }
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let now = Instant::now();
        let mut stream = vec![b'P'; PREFACE_BYTES];
        // What looks like a frame inside another is none.
        stream.extend(frame(0x0, 0, &frame(0x3, 0, &[0; 4]).repeat(20)));
        stream.extend(frame(0x0, 0x8, &[&[3][..], &frame(0x3, 0, &[0; 4])].concat()));
        stream.extend(frame(0x3, 0, &[0; 4]));
        for cut in 1..stream.len() {
            let mut meter = Meter::new(now);
            assert!(stream.chunks(cut).all(|part| meter.take(part, now)));
            assert_eq!(meter.rare.left, RARE.burst - 1, "cut at {cut}");
            assert_eq!((meter.skip, meter.have), (0, 0), "cut at {cut}");
        }
    }
    #[test]
    fn e5_a_head_is_under_way_from_its_first_frame_to_the_last_byte_of_its_last() {
        let (mut meter, now) = begun();
        let (first, last) = (frame(0x1, 0, b"ab"), frame(0x9, END_HEADERS, b"cd"));
        for (bytes, want) in [
            (&first[..HEAD_BYTES], true),
            (&first[HEAD_BYTES..], true),
            (&last[..last.len() - 1], true),
            (&last[last.len() - 1..], false),
            (&frame(0x0, 0, b"a")[..HEAD_BYTES], false),
        ] {
            assert!(meter.take(bytes, now));
            assert_eq!(meter.is_in_head(), want, "{bytes:?}");
        }
        assert_eq!(meter.heads, 1);
    }

    #[test]
    fn e5_a_head_that_does_not_end_ends_the_connection() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let error = runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(1024);
            let mut frames = Frames::new(server, Duration::from_millis(20));
            let part = [vec![b'P'; PREFACE_BYTES], frame(0x1, 0, b"ab")].concat();
            client.write_all(&part).await.unwrap();
            frames.read_to_end(&mut Vec::new()).await.unwrap_err()
        });
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
