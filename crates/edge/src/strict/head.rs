//! The head of a request, judged byte by byte. Pure.
//!
//! Never keeps anything of it but how long its body is.

use super::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use crate::cause::Cause;

/// A length of more digits is no length that anybody means.
const LENGTH_DIGITS_MAX: usize = 18;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked,
}

/// What the bytes behind a head depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) body: Body,
    /// Whether it wants another protocol and may have it, so that what follows is in doubt until its
    /// answer. One that is not a GET without a body may not (`headers::upgrade`): its body must not
    /// wait for an answer that may wait for the body.
    pub(super) switch: bool,
}

/// Returns where a head ends: behind its first empty line, however that is written.
pub(super) fn end(bytes: &[u8], searched: usize) -> Option<usize> {
    let mut from = searched;
    while let Some(found) = bytes.get(from..)?.iter().position(|byte| *byte == b'\n') {
        let next = from + found + 1;
        match bytes.get(next..)? {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            _ => from = next,
        }
    }
    None
}

/// Judges a whole head.
pub(super) fn check(head: &[u8]) -> Result<Facts, Cause> {
    if head.len() > HEAD_BYTES_MAX {
        return Err(Cause::HeadTooLarge);
    }
    let mut lines = Lines(head);
    let (is_get, version_minor) = request_line(lines.next().ok_or(Cause::BadRequest)??)?;
    let mut fields = Fields::default();
    for (count, line) in lines.enumerate() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if count == HEAD_FIELDS_MAX {
            return Err(Cause::HeadTooLarge);
        }
        fields.take(line)?;
    }
    let body = match (fields.length, fields.is_chunked) {
        (Some(_), true) => return Err(Cause::BadRequest),
        (None, true) if version_minor == 0 => return Err(Cause::BadRequest),
        (None, true) => Body::Chunked,
        (length, false) => Body::Length(length.unwrap_or(0)),
    };
    if fields.hosts != 1 {
        return Err(Cause::BadRequest);
    }
    let has_body = fields.length.is_some() || fields.is_chunked;
    Ok(Facts { body, switch: fields.wants_switch && is_get && !has_body })
}

/// Lines that end in CR LF, without it; any other line end is a fault.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Cause>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|byte| is_control(*byte)).unwrap_or(self.0.len());
        let (line, rest) = self.0.split_at(end);
        match rest.strip_prefix(b"\r\n") {
            Some(rest) => {
                self.0 = rest;
                Some(Ok(line))
            }
            None => Some(Err(Cause::BadRequest)),
        }
    }
}

const fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// Returns whether the method of `METHOD TARGET HTTP/1.x`, with one space each, is GET, and the minor
/// version.
fn request_line(line: &[u8]) -> Result<(bool, u8), Cause> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Cause::BadRequest);
    };
    let is_target = match target {
        [b'/', ..] => true,
        b"*" => method == b"OPTIONS",
        // An authority alone is for CONNECT, which there is not.
        _ => target.starts_with(b"http://") || target.starts_with(b"https://"),
    };
    if !is_token(method) || !is_target || !is_clean_target(target) {
        return Err(Cause::BadRequest);
    }
    match version {
        b"HTTP/1.1" => Ok((method == b"GET", 1)),
        b"HTTP/1.0" => Ok((method == b"GET", 0)),
        _ => Err(Cause::BadRequest),
    }
}

/// Returns whether there is nothing in a target that some take for its end, or for a `/`.
pub(super) fn is_clean_target(target: &[u8]) -> bool {
    !target.iter().any(|byte| matches!(byte, b'#' | b'\t' | b'\\'))
}

#[derive(Default)]
struct Fields {
    hosts: u8,
    length: Option<u64>,
    is_chunked: bool,
    wants_switch: bool,
}

impl Fields {
    fn take(&mut self, line: &[u8]) -> Result<(), Cause> {
        let (name, value) = split(line).ok_or(Cause::BadRequest)?;
        // A space before the colon, a folded line and an empty name are no tokens.
        if !is_token(name) {
            return Err(Cause::BadRequest);
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.hosts = self.hosts.saturating_add(1),
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.wants_switch = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err(Cause::BadRequest);
                }
                self.length = Some(length(value).ok_or(Cause::BadRequest)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Cause::BadRequest);
                }
                self.is_chunked = true;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Returns the name and the value of a field, without the white space around that.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    Some((name, value.strip_prefix(b":").unwrap_or_default().trim_ascii()))
}

/// Returns the three words of the first line of a head that was found good.
pub(crate) fn words(head: &[u8]) -> Option<[&[u8]; 3]> {
    let mut words = Lines(head).next()?.ok()?.split(|byte| *byte == b' ');
    Some([words.next()?, words.next()?, words.next()?])
}

/// Returns the fields of a head that was found good.
pub(crate) fn fields(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    // The empty line at the end has no colon.
    Lines(head).skip(1).map_while(|line| split(line.ok()?))
}

/// Reads a length: digits alone.
pub(super) fn length(value: &[u8]) -> Option<u64> {
    let digits =
        (1..=LENGTH_DIGITS_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// Returns whether these are characters of a token (RFC 9110, section 5.6.2), one at least.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    const TOKEN: [bool; 256] = {
        let (mut table, mut byte) = ([false; 256], 0_u8);
        loop {
            table[byte as usize] = byte.is_ascii_alphanumeric()
                || matches!(
                    byte,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            if byte == u8::MAX {
                break table;
            }
            byte += 1;
        }
    };
    !bytes.is_empty() && bytes.iter().all(|byte| TOKEN[usize::from(*byte)])
}
