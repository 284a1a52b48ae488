//! The date of answers that say none, made once a second.
//!
//! Never shared between loops.

use std::cell::RefCell;

use bytes::BytesMut;
use perch_types::Timestamp;

use crate::shortcut::fields;

/// A second and its text.
#[derive(Debug, Default)]
pub(crate) struct Date(RefCell<(i64, String)>);

impl Date {
    /// Writes the field.
    pub(super) fn put(&self, now: Timestamp, out: &mut BytesMut) {
        let mut kept = self.0.borrow_mut();
        let (second, text) = &mut *kept;
        if text.is_empty() || *second != now.unix_s() {
            (*second, *text) = (now.unix_s(), now.http_date());
        }
        if !text.is_empty() {
            fields::put(out, b"date", text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_that_of_its_second() {
        let (date, mut out) = (Date::default(), BytesMut::new());
        for ms in [1_700_000_000_123, 1_700_000_000_999, 1_700_000_001_000] {
            date.put(Timestamp::from_unix_ms(ms), &mut out);
        }
        let text = String::from_utf8(out.to_vec()).unwrap();
        let seconds: Vec<&str> = text.lines().collect();
        let (one, two) =
            ("date: Tue, 14 Nov 2023 22:13:20 GMT", "date: Tue, 14 Nov 2023 22:13:21 GMT");
        assert_eq!(seconds, [one, one, two]);
    }
}
