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
pub(super) struct Chunks {
    place: Place,
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

impl Chunks {
    pub(super) fn is_over(&self) -> bool {
        self.place == Place::Over
    }

    /// Returns how many bytes belong to the body; `None` if they are in doubt.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if self.place == Place::Over {
                break;
            }
            if self.place == Place::Data {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                at += count;
                self.left -= count as u64;
                if self.left == 0 {
                    self.place = Place::DataCr;
                }
                continue;
            }
            self.place = self.step(*rest.first()?)?;
            at += 1;
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
            (Place::Size, _) => {
                let digit = char::from(byte).to_digit(16)?;
                self.digits = self.digits.checked_add(1).filter(|n| *n <= SIZE_DIGITS_MAX)?;
                self.left = self.left * 16 + u64::from(digit);
                Some(Place::Size)
            }
            (Place::Extension, b'\r') => Some(Place::SizeLf),
            (Place::Extension, _) if is_text => {
                self.extension_bytes += 1;
                (self.extension_bytes <= EXTENSION_BYTES_MAX).then_some(Place::Extension)
            }
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

    fn trailer(&mut self, place: Place) -> Option<Place> {
        self.trailer_bytes += 1;
        (self.trailer_bytes <= TRAILER_BYTES_MAX).then_some(place)
    }
}
