//! The table of security properties in docs/security.md against the tests there are.
//!
//! Never judges what a test does: its name says which property it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::tidy::collect;

/// The table, from the root of the repository.
const TABLE: &str = "docs/security.md";
/// What a row says that has no test.
const NONE: &str = "not yet";

/// Tests by the property they are named after, such as `K7`, as `` `crate` name ``.
type Tests = BTreeMap<String, BTreeSet<String>>;

/// Checks the table, or writes it anew with `write`.
pub(crate) fn run(root: &Path, write: bool) -> Result<String> {
    let path = root.join(TABLE);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?;
    let tests = tests(root)?;
    let fresh = render(&text, &tests)?;
    if fresh != text && write {
        std::fs::write(&path, &fresh).with_context(|| format!("write `{}`", path.display()))?;
    } else if fresh != text {
        bail!("{TABLE} does not name the tests there are; run `cargo xtask security --write`");
    }
    Ok(format!("{} properties with tests", tests.len()))
}

fn tests(root: &Path) -> Result<Tests> {
    let mut files = Vec::new();
    collect(&root.join("crates"), &mut files)?;
    let mut tests = Tests::new();
    for path in files {
        let below = path.strip_prefix(root.join("crates")).unwrap_or(&path).display().to_string();
        let owner = below.split('/').next().unwrap_or_default();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?;
        for name in test_names(&text) {
            for property in properties(name) {
                tests.entry(property).or_default().insert(format!("`{owner}` {name}"));
            }
        }
    }
    Ok(tests)
}

/// Returns the names of the functions that carry an attribute ending in `test]`.
fn test_names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            marked |= line == "#[test]" || line.starts_with("#[tokio::test");
        } else if let Some(rest) =
            line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn "))
        {
            if marked {
                names.extend(rest.split('(').next());
            }
            marked = false;
        }
    }
    names
}

/// Returns the properties that a name begins with: `f1_f2_the_root…` is for `F1` and `F2`.
fn properties(name: &str) -> Vec<String> {
    name.split('_').take_while(|word| is_property(word)).map(str::to_uppercase).collect()
}

fn is_property(word: &str) -> bool {
    let mut characters = word.chars();
    characters.next().is_some_and(|first| first.is_ascii_lowercase())
        && word.len() > 1
        && characters.all(|one| one.is_ascii_digit())
}

/// Fills the rows of the table: what they say that is no test's name stays.
fn render(text: &str, tests: &Tests) -> Result<String> {
    let mut known = BTreeSet::new();
    let mut fresh = String::new();
    for line in text.lines() {
        match row(line) {
            Some((property, title, shown)) => {
                let none = BTreeSet::new();
                let mut entries: Vec<&str> =
                    tests.get(property).unwrap_or(&none).iter().map(String::as_str).collect();
                entries.extend(shown.split("<br>").filter(|entry| !is_test(entry)));
                if entries.is_empty() {
                    entries.push(NONE);
                }
                fresh.extend(["| ", title, " | ", &entries.join("<br>"), " |"]);
                known.insert(property.to_owned());
            }
            None => fresh.push_str(line),
        }
        fresh.push('\n');
    }
    if let Some(unknown) = tests.keys().find(|property| !known.contains(*property)) {
        bail!("{TABLE} has no row for {unknown}, which tests are named after");
    }
    Ok(fresh)
}

/// Takes a row apart: property, first cell, second cell.
fn row(line: &str) -> Option<(&str, &str, &str)> {
    let (title, shown) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
    let property = title.split(' ').next()?;
    is_property(&property.to_lowercase()).then_some((property, title, shown))
}

/// Returns whether an entry is one that this program wrote: a test's name, or that there is none.
fn is_test(entry: &str) -> bool {
    let name = entry.split("` ").nth(1).unwrap_or_default();
    entry == NONE || (!name.contains(' ') && !properties(name).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# T\n\n| property | shown by |\n|---|---|\n| K1 a | not yet |\n| K2 b | `x` k2_gone<br>`y` module::tests |\n";

    fn some(pairs: &[(&str, &str)]) -> Tests {
        let mut tests = Tests::new();
        for (property, entry) in pairs {
            tests.entry((*property).to_owned()).or_default().insert((*entry).to_owned());
        }
        tests
    }

    #[test]
    fn rows_name_the_tests_there_are_and_keep_their_words() {
        let fresh = render(TEXT, &some(&[("K1", "`x` k1_new")])).unwrap();
        assert!(fresh.contains("| K1 a | `x` k1_new |"), "{fresh}");
        assert!(fresh.contains("| K2 b | `y` module::tests |"), "{fresh}");
        assert_eq!(render(&fresh, &some(&[("K1", "`x` k1_new")])).unwrap(), fresh);
        let gone = render(&fresh, &Tests::new()).unwrap();
        assert!(gone.contains("| K1 a | not yet |"), "{gone}");
        render(TEXT, &some(&[("Z9", "`x` z9_a")])).unwrap_err();
    }

    #[test]
    fn names_are_those_of_tests_and_say_their_properties() {
        let text = "#[test]\nfn k7_a() {}\nfn k8_helper() {}\n#[tokio::test]\nasync fn b() {}\n";
        assert_eq!(test_names(text), ["k7_a", "b"]);
        assert_eq!(properties("f1_f2_the_root"), ["F1", "F2"]);
        assert_eq!(properties("each_process"), Vec::<String>::new());
    }
}
