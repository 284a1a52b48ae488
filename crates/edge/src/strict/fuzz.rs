//! What must hold of the judgement of any bytes: for the fuzz targets, and for tests with fewer.
//!
//! Never judges as the rules themselves do: it looks at what has passed with rules of its own.

use super::chunks::Chunks;
use super::{Framing, Next};

/// Sizes of the pieces in which bytes come.
const PIECES: [usize; 4] = [1, 2, 7, 64];

/// What became of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    passed: usize,
    is_doubt: bool,
    is_waiting: bool,
}

/// However bytes come, the same passes, and what is in doubt whole is in doubt in pieces.
pub(crate) fn framing(bytes: &[u8]) {
    let whole = drive(bytes, bytes.len().max(1));
    for size in PIECES {
        let pieces = drive(bytes, size);
        assert_eq!(whole.is_doubt, pieces.is_doubt, "in pieces of {size}");
        if whole.is_doubt {
            // A head may have passed before its body was seen.
            assert!(pieces.passed >= whole.passed, "in pieces of {size}");
        } else {
            assert_eq!(whole, pieces, "in pieces of {size}");
        }
    }
    let mut rest = bytes.get(..whole.passed).unwrap_or_default();
    while let Some(next) = rest.strip_prefix(b"\r\n") {
        rest = next;
    }
    if let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
        look_at(rest.get(..end).unwrap_or_default());
    }
}

fn drive(bytes: &[u8], size: usize) -> Outcome {
    let (mut framing, mut held, mut passed) = (Framing::default(), Vec::new(), 0);
    for piece in bytes.chunks(size) {
        held.extend_from_slice(piece);
        let (count, next) = framing.judge(&held);
        assert!(count <= held.len(), "{count} of {} bytes passed", held.len());
        passed += count;
        held.drain(..count);
        let is_doubt = matches!(next, Next::Refuse(_) | Next::Break);
        if next != Next::More {
            return Outcome { passed, is_doubt, is_waiting: !is_doubt };
        }
    }
    Outcome { passed, is_doubt: false, is_waiting: false }
}

/// Looks at a head that has passed, without its empty line.
fn look_at(head: &[u8]) {
    let text = String::from_utf8_lossy(head).into_owned();
    let mut before = 0;
    for byte in head.iter().chain(b"\r") {
        assert!(*byte != 0, "a zero byte passed: {text:?}");
        assert_eq!(before == b'\r', *byte == b'\n', "an odd line end passed: {text:?}");
        before = *byte;
    }
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    assert_eq!(first.matches(' ').count(), 2, "an odd request line passed: {text:?}");
    let (mut framings, mut hosts) = (0, 0);
    for line in lines {
        let name = line.split(':').next().unwrap_or_default();
        assert!(name.len() < line.len(), "a field without a colon passed: {text:?}");
        assert!(
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()),
            "an odd name passed: {text:?}"
        );
        let name = name.to_ascii_lowercase();
        framings += usize::from(name == "content-length" || name == "transfer-encoding");
        hosts += usize::from(name == "host");
    }
    assert!(framings <= 1, "two lengths passed: {text:?}");
    assert!(hosts <= 1, "two hosts passed: {text:?}");
}

/// Frames are counted the same however the bytes of a connection come.
pub(crate) fn frames(bytes: &[u8]) {
    super::frames::fuzz(bytes);
}

/// Chunks end at the same place however they come, and behind an empty line.
pub(crate) fn chunks(bytes: &[u8]) {
    let mut whole = Chunks::default();
    let taken = whole.take(bytes);
    let mut single = Chunks::default();
    let mut sum = Some(0);
    for byte in bytes {
        if single.is_over() || sum.is_none() {
            break;
        }
        let one = single.take(std::slice::from_ref(byte));
        sum = sum.zip(one).map(|(sum, one)| sum + one);
    }
    assert_eq!(taken, sum, "chunks in one piece and in many");
    if let Some(taken) = taken.filter(|_| whole.is_over()) {
        let body = bytes.get(..taken).unwrap_or_default();
        assert!(body.ends_with(b"\r\n\r\n"), "chunks ended at {taken}");
    }
}
