//! Splits a command line into words as a shell does.
//!
//! Never expands anything: no variables, no patterns, no operators.

/// A command line that does not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unfinished(&'static str);

/// Splits at blanks outside of quotes; a backslash takes the next character as it is.
///
/// # Errors
/// When a quote is not closed or nothing follows a backslash.
pub(crate) fn split(line: &str) -> Result<Vec<String>, Unfinished> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some('\'') => break,
                        Some(inner) => word.push(inner),
                        None => return Err(Unfinished("a single quote is not closed")),
                    }
                }
            }
            '"' => double_quoted(&mut characters, word.get_or_insert_default())?,
            '\\' => match characters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err(Unfinished("nothing follows the last backslash")),
            },
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn double_quoted(
    characters: &mut std::str::Chars<'_>,
    word: &mut String,
) -> Result<(), Unfinished> {
    loop {
        match characters.next() {
            Some('"') => return Ok(()),
            Some('\\') => match characters.next() {
                Some(next @ ('"' | '\\' | '$' | '`')) => word.push(next),
                Some(next) => word.extend(['\\', next]),
                None => return Err(Unfinished("a double quote is not closed")),
            },
            Some(inner) => word.push(inner),
            None => return Err(Unfinished("a double quote is not closed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (line, want) in [
            ("", vec![]),
            ("  ", vec![]),
            ("ls -l", vec!["ls", "-l"]),
            ("sh -c 'echo \"a b\"'", vec!["sh", "-c", "echo \"a b\""]),
            ("a\"b c\"d", vec!["ab cd"]),
            (r#""a\"b\n" c\ d"#, vec!["a\"b\\n", "c d"]),
            ("'' \"\"", vec!["", ""]),
        ] {
            assert_eq!(split(line).unwrap(), want, "{line}");
        }
        for bad in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
