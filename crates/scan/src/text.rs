//! Bytes of a file as text.
//!
//! Never fails: what is no text becomes replacement characters, which match nothing.

/// Returns text with `\n` line ends from UTF-8 or UTF-16, told apart by the byte order mark.
pub(crate) fn decode(bytes: &[u8]) -> String {
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        plain => String::from_utf8_lossy(plain).into_owned(),
    };
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|pair| unit(*pair));
    char::decode_utf16(units).map(|it| it.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Returns whether `word` stands in `line` with no letter, digit, `-`, `_` or `.` beside it,
/// case ignored: as a package's name does.
pub(crate) fn names(line: &str, word: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    line.split(|c: char| !part(c)).any(|found| found == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_and_line_ends_become_one() {
        for bytes in [
            b"a\r\nb".as_slice(),
            b"\xef\xbb\xbfa\nb",
            b"\xff\xfea\0\r\0\n\0b\0",
            b"\xfe\xff\0a\0\n\0b",
            b"a\rb",
        ] {
            assert_eq!(decode(bytes), "a\nb", "{bytes:?}");
        }
        assert_eq!(decode(b"\xff\xfea"), "");
        assert_eq!(decode(b"\xffa"), "\u{fffd}a");
    }

    #[test]
    fn a_name_is_a_whole_word() {
        assert!(names("Flask>=2.0", "flask"));
        assert!(names("flask[async]==3", "flask"));
        assert!(names("  \"Flask ~= 2\",", "flask"));
        assert!(!names("flask-login==1", "flask"));
        assert!(!names("my.flask", "flask"));
    }
}
