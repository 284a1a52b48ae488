//! Makes text of others safe for a terminal (security property L1).
//!
//! Never lets a control character through: an app's log line could else move the cursor, change
//! the window's title or answer a question for the developer.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns text whose control characters are shown as escapes; a tab stays.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            let code = u32::from(character);
            let written = match code {
                0..=0xff => write!(safe, "\\x{code:02x}"),
                _ => write!(safe, "\\u{{{code:x}}}"),
            };
            // Writing into a string cannot fail.
            if written.is_err() {
                safe.push('?');
            }
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// Returns JSON whose control characters are all written as escapes.
pub(crate) fn escape_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        if character != '\n' && is_unsafe(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                if write!(safe, "\\u{unit:04x}").is_err() {
                    safe.push('?');
                }
            }
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Returns whether a terminal may act on a character: C0, DEL, C1, and what reorders text.
fn is_unsafe(character: char) -> bool {
    match character {
        '\t' => false,
        '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}' | '\u{2029}' => true,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn l1_control_characters_are_shown_and_never_sent() {
        for (text, shown) in [
            ("plain\täöü ✓", "plain\täöü ✓"),
            ("\u{1b}[2Jgone", "\\x1b[2Jgone"),
            ("\u{1b}]0;title\u{7}", "\\x1b]0;title\\x07"),
            ("a\rb\nc", "a\\x0db\\x0ac"),
            ("\u{9b}31m", "\\x9b31m"),
            ("\u{202e}txt.exe", "\\u{202e}txt.exe"),
        ] {
            assert_eq!(escape(text), shown);
        }
        assert_eq!(
            escape_json("{\"a\":\"\u{9b}\u{7f}\u{202e}\"}\n"),
            "{\"a\":\"\\u009b\\u007f\\u202e\"}\n"
        );
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left(text: String) {
            let safe = escape(&text);
            prop_assert!(!safe.chars().any(is_unsafe));
            prop_assert_eq!(escape(&safe), safe.clone());
        }

        #[test]
        fn escaped_json_says_the_same(text: String) {
            let json = serde_json::to_string(&text).unwrap();
            let back: String = serde_json::from_str(&escape_json(&json)).unwrap();
            prop_assert_eq!(back, text);
        }
    }
}
