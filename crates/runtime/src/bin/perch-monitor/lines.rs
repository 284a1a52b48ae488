//! Bytes of a stream become lines, as many as the limits allow.
//!
//! Never looks at what a line says.

use perch_runtime::log::{LINE_BYTES_MAX, Record, Stream};

/// Cuts a stream into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    container: Option<String>,
    process: Option<u8>,
    begun: Vec<u8>,
}

impl Lines {
    pub(crate) const fn new(stream: Stream, container: Option<String>) -> Self {
        Self { stream, container, process: None, begun: Vec::new() }
    }

    /// Of one of several main processes.
    pub(crate) const fn of_process(stream: Stream, process: u8) -> Self {
        Self { stream, container: None, process: Some(process), begun: Vec::new() }
    }

    fn record(&mut self, unix_ms: u64, continues: bool) -> Record {
        Record {
            seq: 0,
            unix_ms,
            stream: self.stream,
            continues,
            dropped_before: 0,
            container: self.container.clone(),
            process: self.process,
            line: std::mem::take(&mut self.begun),
        }
    }

    /// Adds bytes and hands on the lines that are complete, or as long as a record may be.
    pub(crate) fn push(&mut self, bytes: &[u8], unix_ms: u64, mut take: impl FnMut(Record)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = LINE_BYTES_MAX.saturating_sub(self.begun.len());
            let window = rest.get(..room.min(rest.len())).unwrap_or(rest);
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.begun.extend(window.iter().take(end));
                    take(self.record(unix_ms, false));
                    rest = rest.get(end.saturating_add(1)..).unwrap_or_default();
                }
                None if window.len() == room && rest.get(room) == Some(&b'\n') => {
                    self.begun.extend(window);
                    take(self.record(unix_ms, false));
                    rest = rest.get(room.saturating_add(1)..).unwrap_or_default();
                }
                None => {
                    self.begun.extend(window);
                    rest = rest.get(window.len()..).unwrap_or_default();
                    if self.begun.len() >= LINE_BYTES_MAX {
                        take(self.record(unix_ms, true));
                    }
                }
            }
        }
    }

    /// Hands on a last line that has no end.
    pub(crate) fn finish(&mut self, unix_ms: u64, mut take: impl FnMut(Record)) {
        if !self.begun.is_empty() {
            take(self.record(unix_ms, false));
        }
    }
}

/// Lets so many bytes a second through.
#[derive(Debug)]
pub(crate) struct Rate {
    bytes_per_second_max: u64,
    second: u64,
    bytes: u64,
}

impl Rate {
    pub(crate) const fn new(bytes_per_second_max: u64) -> Self {
        Self { bytes_per_second_max, second: 0, bytes: 0 }
    }

    /// Returns whether a line of `bytes` may pass at `boot_ms`.
    pub(crate) fn admit(&mut self, bytes: usize, boot_ms: u64) -> bool {
        let second = boot_ms / 1000;
        if second != self.second {
            self.second = second;
            self.bytes = 0;
        }
        let after = self.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        if after > self.bytes_per_second_max {
            return false;
        }
        self.bytes = after;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Lines::new(Stream::Stdout, None);
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(piece, 1, |record| {
                found.push((record.line, record.continues));
            });
        }
        lines.finish(1, |record| found.push((record.line, record.continues)));
        found
    }

    #[test]
    fn a_line_is_a_record_however_its_bytes_arrive() {
        let expected =
            vec![(b"one".to_vec(), false), (b"".to_vec(), false), (b"t\x1b[2Jo".to_vec(), false)];
        assert_eq!(cut(&[b"one\n\nt\x1b[2Jo\n"]), expected);
        assert_eq!(cut(&[b"on", b"e\n", b"\nt\x1b", b"[2Jo"]), expected);
    }

    #[test]
    fn a_long_line_is_split_at_the_limit() {
        let exact = [b"x".repeat(LINE_BYTES_MAX), b"\n".to_vec()].concat();
        assert_eq!(cut(&[&exact]), [(b"x".repeat(LINE_BYTES_MAX), false)]);
        let longer = [b"x".repeat(LINE_BYTES_MAX + 1), b"\ny\n".to_vec()].concat();
        assert_eq!(
            cut(&[&longer]),
            [(b"x".repeat(LINE_BYTES_MAX), true), (b"x".to_vec(), false), (b"y".to_vec(), false)]
        );
    }

    #[test]
    fn a_rate_counts_each_second_anew() {
        let mut rate = Rate::new(10);
        assert!(rate.admit(6, 1000));
        assert!(!rate.admit(6, 1999));
        assert!(rate.admit(4, 1999));
        assert!(rate.admit(10, 2000));
    }

    proptest::proptest! {
        #[test]
        fn no_byte_is_lost_or_added(pieces: Vec<Vec<u8>>) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let mut joined: Vec<u8> = Vec::new();
            for (line, continues) in cut(&pieces) {
                joined.extend(line);
                if !continues {
                    joined.push(b'\n');
                }
            }
            let mut expected = pieces.concat();
            if expected.last().is_some_and(|byte| *byte != b'\n') {
                expected.push(b'\n');
            }
            proptest::prop_assert_eq!(joined, expected);
        }
    }
}
