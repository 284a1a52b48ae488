//! Splits a command line into words as a POSIX shell does.
//!
//! Never expands a variable, a glob or a substitution: only quotes and backslashes count.

/// A quote that was opened and never closed, or a backslash at the very end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("quote is not closed")]
pub struct UnclosedQuote;

#[derive(PartialEq)]
enum Quote {
    None,
    Single,
    Double,
}

/// Returns the words of a command line.
///
/// # Errors
/// When a quote is not closed.
pub fn split_words(line: &str) -> Result<Vec<String>, UnclosedQuote> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = Quote::None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (&quote, character) {
            (Quote::None, space) if space.is_whitespace() => words.extend(word.take()),
            (Quote::None, '\'') => {
                quote = Quote::Single;
                word.get_or_insert_default();
            }
            (Quote::None, '"') => {
                quote = Quote::Double;
                word.get_or_insert_default();
            }
            (Quote::Single, '\'') | (Quote::Double, '"') => quote = Quote::None,
            (Quote::None, '\\') => {
                word.get_or_insert_default().push(characters.next().ok_or(UnclosedQuote)?);
            }
            (Quote::Double, '\\') => {
                let next = characters.next().ok_or(UnclosedQuote)?;
                let word = word.get_or_insert_default();
                if !matches!(next, '"' | '\\' | '$' | '`') {
                    word.push('\\');
                }
                word.push(next);
            }
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    if quote != Quote::None {
        return Err(UnclosedQuote);
    }
    words.extend(word);
    Ok(words)
}
