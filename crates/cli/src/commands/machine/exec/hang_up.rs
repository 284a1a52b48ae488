//! The way out of a session that no longer answers: Enter, `~`, `.`, as terminals' remote shells
//! have it.
//!
//! Never changes what else is typed: `~~` at the start of a line is one `~`, and a `~` anywhere
//! else is itself.

/// Looks at what is typed.
#[derive(Debug)]
pub(super) struct HangUp {
    place: Place,
}

/// Where in a line the next key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    AfterTilde,
    Within,
}

impl HangUp {
    pub(super) fn new() -> Self {
        Self { place: Place::Start }
    }

    /// Returns what of these bytes is to be passed on; `None` when they say to hang up.
    pub(super) fn pass(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(typed.len().saturating_add(1));
        for byte in typed.iter().copied() {
            self.place = match (self.place, byte) {
                (Place::AfterTilde, b'.') => return None,
                (Place::Start, b'~') => {
                    // Kept back until the next key says what it is.
                    self.place = Place::AfterTilde;
                    continue;
                }
                (Place::AfterTilde, b'~') => Place::Within,
                (place, _) => {
                    if place == Place::AfterTilde {
                        passed.push(b'~');
                    }
                    if matches!(byte, b'\r' | b'\n') { Place::Start } else { Place::Within }
                }
            };
            passed.push(byte);
        }
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn passed(typed: &[&str]) -> Option<String> {
        let mut hang_up = HangUp::new();
        let mut all = Vec::new();
        for part in typed {
            all.extend(hang_up.pass(part.as_bytes())?);
        }
        Some(String::from_utf8(all).unwrap())
    }

    #[test]
    fn only_a_tilde_and_a_dot_at_the_start_of_a_line_hang_up() {
        for (typed, want) in [
            (&["~."][..], None),
            (&["ls\r", "~", "."], None),
            (&["ls\n~."], None),
            (&["a~."], Some("a~.")),
            (&["~~."], Some("~.")),
            (&["cd ~\r"], Some("cd ~\r")),
            (&["~/bin/run\r"], Some("~/bin/run\r")),
            (&["~", "\r", "x"], Some("~\rx")),
            (&["~\r~."], None),
        ] {
            assert_eq!(passed(typed).as_deref(), want, "{typed:?}");
        }
    }

    proptest! {
        #[test]
        fn text_without_a_tilde_passes_as_it_is(typed in "[^~]{0,60}") {
            prop_assert_eq!(passed(&[&typed]), Some(typed));
        }

        #[test]
        fn the_cut_makes_no_difference(typed in "[~.a\r]{0,12}") {
            let single: Vec<String> = typed.chars().map(String::from).collect();
            let single: Vec<&str> = single.iter().map(String::as_str).collect();
            prop_assert_eq!(passed(&single), passed(&[&typed]));
        }
    }
}
