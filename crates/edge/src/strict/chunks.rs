//! Where the chunks of a body end (RFC 9112, section 7.1). Pure.
//!
//! Never reads a size leniently: no sign, no space, no other line end than CR LF.

/// The most digits of a chunk's size: 2^60 bytes.
const SIZE_DIGITS_MAX: u8 = 15;
/// The most bytes of a chunk's extension.
const EXTENSION_BYTES_MAX: u16 = 256;
/// The most bytes of all trailer fields.
const TRAILER_BYTES_MAX: u16 = 8 * 1024;

/// A place in a chunked body.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    place: Place,
    /// Whether spaces may stand behind a size: programs that write the size over a room that they
    /// left for it do so, and no client.
    takes_padding: bool,
    /// The size that is being read, then what is left of the chunk.
    left: u64,
    digits: u8,
    extension_bytes: u16,
    trailer_bytes: u16,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    Padding,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    LineStart,
    Name,
    Value,
    LineLf,
    EndLf,
    Over,
}

/// What comes next of a chunked body, and how many bytes of it there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// What is in the chunks.
    Data(usize),
    /// What is around them.
    Frame(usize),
    /// Fields behind the last one, and the empty line at their end.
    Trailers(usize),
}

impl Piece {
    const fn len(self) -> usize {
        match self {
            Self::Data(count) | Self::Frame(count) | Self::Trailers(count) => count,
        }
    }
}

impl Chunks {
    /// Returns the beginning of what a machine sends.
    pub(crate) fn of_answer() -> Self {
        Self { takes_padding: true, ..Self::default() }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.place == Place::Over
    }

    /// Returns what the bytes begin with, of which there are some and which are not behind the
    /// body's end; `None` if they are in doubt.
    pub(crate) fn piece(&mut self, bytes: &[u8]) -> Option<Piece> {
        if self.place == Place::Data {
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.left -= count as u64;
            if self.left == 0 {
                self.place = Place::DataCr;
            }
            return Some(Piece::Data(count));
        }
        let (is_trailers, mut at) = (self.is_in_trailers(), 0);
        while let Some(byte) = bytes.get(at)
            && !matches!(self.place, Place::Data | Place::Over)
            && self.is_in_trailers() == is_trailers
        {
            self.place = self.step(*byte)?;
            at += 1;
        }
        Some(if is_trailers { Piece::Trailers(at) } else { Piece::Frame(at) })
    }

    const fn is_in_trailers(&self) -> bool {
        matches!(
            self.place,
            Place::LineStart | Place::Name | Place::Value | Place::LineLf | Place::EndLf
        )
    }

    /// Returns how many bytes belong to the body; `None` if they are in doubt.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if self.is_over() {
                break;
            }
            at += self.piece(rest)?.len();
        }
        Some(at)
    }

    fn step(&mut self, byte: u8) -> Option<Place> {
        let is_text = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        match (self.place, byte) {
            (Place::Size, b'\r') if self.digits > 0 => Some(Place::SizeLf),
            (Place::Size, b';') if self.digits > 0 => {
                self.extension_bytes = 0;
                Some(Place::Extension)
            }
            (Place::Size, b' ' | b'\t') if self.digits > 0 && self.takes_padding => {
                self.extension_bytes = 0;
                Some(Place::Padding)
            }
            (Place::Size, _) => {
                let digit = char::from(byte).to_digit(16)?;
                self.digits = self.digits.checked_add(1).filter(|n| *n <= SIZE_DIGITS_MAX)?;
                self.left = self.left * 16 + u64::from(digit);
                Some(Place::Size)
            }
            (Place::Extension | Place::Padding, b'\r') => Some(Place::SizeLf),
            (Place::Padding, b';') => Some(Place::Extension),
            (Place::Padding, b' ' | b'\t') => self.extension(Place::Padding),
            (Place::Extension, _) if is_text => self.extension(Place::Extension),
            (Place::SizeLf, b'\n') => {
                self.digits = 0;
                Some(if self.left == 0 { Place::LineStart } else { Place::Data })
            }
            (Place::DataCr, b'\r') => Some(Place::DataLf),
            (Place::DataLf, b'\n') => Some(Place::Size),
            (Place::LineStart, b'\r') => Some(Place::EndLf),
            (Place::EndLf, b'\n') => Some(Place::Over),
            (Place::LineLf, b'\n') => Some(Place::LineStart),
            (Place::Name, b':') => self.trailer(Place::Value),
            (Place::LineStart | Place::Name, _) if super::head::is_token(&[byte]) => {
                self.trailer(Place::Name)
            }
            (Place::Value, b'\r') => Some(Place::LineLf),
            (Place::Value, _) if is_text => self.trailer(Place::Value),
            _ => None,
        }
    }

    fn extension(&mut self, place: Place) -> Option<Place> {
        self.extension_bytes += 1;
        (self.extension_bytes <= EXTENSION_BYTES_MAX).then_some(place)
    }

    fn trailer(&mut self, place: Place) -> Option<Place> {
        self.trailer_bytes += 1;
        (self.trailer_bytes <= TRAILER_BYTES_MAX).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the data and the trailers of a whole body that comes in pieces of one size.
    fn read(mut chunks: Chunks, text: &str, size: usize) -> Option<(String, String)> {
        let (mut data, mut trailers) = (Vec::new(), Vec::new());
        for mut piece in text.as_bytes().chunks(size) {
            while !piece.is_empty() && !chunks.is_over() {
                let next = chunks.piece(piece)?;
                let (taken, rest) = piece.split_at(next.len());
                match next {
                    Piece::Data(_) => data.extend_from_slice(taken),
                    Piece::Trailers(_) => trailers.extend_from_slice(taken),
                    Piece::Frame(_) => {}
                }
                piece = rest;
            }
        }
        let whole = |bytes| String::from_utf8(bytes).unwrap();
        chunks.is_over().then(|| (whole(data), whole(trailers)))
    }

    #[test]
    fn what_is_in_chunks_is_told_from_what_is_around_them() {
        let all = |text: &str| {
            let [whole, single, pairs] =
                [text.len(), 1, 2].map(|size| read(Chunks::of_answer(), text, size));
            assert!(whole == single && single == pairs, "{text:?}");
            whole
        };
        let pair = |data: &str, trailers: &str| Some((data.to_owned(), trailers.to_owned()));
        for (text, want) in [
            ("0\r\n\r\n", pair("", "\r\n")),
            ("3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\n", pair("abc0123456789", "\r\n")),
            ("1\r\na\r\n0\r\nX: y\r\nZ:\r\n\r\n", pair("a", "X: y\r\nZ:\r\n\r\n")),
            ("3 \t\r\nabc\r\n0  ;x\r\n\r\n", pair("abc", "\r\n")),
            ("1\r\nab\r\n0\r\n\r\n", None),
            (" 1\r\na\r\n0\r\n\r\n", None),
            ("1 1\r\na\r\n0\r\n\r\n", None),
            ("1\na\r\n0\r\n\r\n", None),
            ("+1\r\na\r\n0\r\n\r\n", None),
            ("1\r\na\r\n0\r\n", None),
        ] {
            assert_eq!(all(text), want, "{text:?}");
        }
        assert_eq!(read(Chunks::default(), "3 \r\nabc\r\n0\r\n\r\n", 1), None, "from a client");
    }
}
