//! The patterns of a `.dockerignore`.
//!
//! Never reads a file. Order counts: the last pattern that matches decides, `!` takes back.

/// What stays out of a context.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    parts: Vec<String>,
    exception: bool,
}

impl Ignore {
    /// Reads the lines of a file; comments and empty lines are passed over.
    pub(crate) fn parse(text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let patterns = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        Self { patterns: patterns.filter_map(Pattern::parse).collect() }
    }

    /// Returns whether a path stays out; it has `/` between its parts and none in front.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        // A folder takes all that is in it along, so every parent is asked too.
        let hit = |pattern: &&Pattern| {
            (1..=parts.len()).any(|end| parts.get(..end).is_some_and(|it| pattern.matches(it)))
        };
        self.patterns.iter().rev().find(hit).is_some_and(|pattern| !pattern.exception)
    }

    /// Returns whether something inside of an ignored folder may be wanted after all.
    pub(crate) fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }
}

impl Pattern {
    fn parse(line: &str) -> Option<Self> {
        let (exception, line) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        let mut parts: Vec<String> = Vec::new();
        for part in line.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part.to_owned()),
            }
        }
        (!parts.is_empty()).then_some(Self { parts, exception })
    }

    fn matches(&self, path: &[&str]) -> bool {
        parts_match(&self.parts, path)
    }
}

/// Matches pattern parts against path parts; `**` stands for any number of parts.
fn parts_match(pattern: &[String], path: &[&str]) -> bool {
    // reach[i]: the patterns so far match the first i parts of the path.
    let mut reach = vec![false; path.len() + 1];
    if let Some(first) = reach.first_mut() {
        *first = true;
    }
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if part == "**" {
            let mut any = false;
            for (to, from) in next.iter_mut().zip(&reach) {
                any |= *from;
                *to = any;
            }
        } else {
            let name: Vec<char> = part.chars().collect();
            for ((to, from), component) in next.iter_mut().skip(1).zip(&reach).zip(path) {
                *to = *from && name_matches(&name, &component.chars().collect::<Vec<_>>());
            }
        }
        reach = next;
    }
    reach.last().copied().unwrap_or_default()
}

/// Matches one part: `*`, `?`, `[a-z]`, `[^a]` and `\` before a plain character.
///
/// Remembers only the last `*`, so that no pattern takes more than length times length steps.
fn name_matches(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut of) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match (pattern.get(at), name.get(of)) {
            (None, None) => return true,
            (Some('*'), _) => {
                retry = Some((at + 1, of));
                Some((at + 1, of))
            }
            (Some(_), Some(character)) => {
                one_matches(pattern.get(at..).unwrap_or_default(), *character)
                    .map(|used| (at + used, of + 1))
            }
            (None, Some(_)) | (Some(_), None) => None,
        };
        (at, of) = match (step, retry) {
            (Some(next), _) => next,
            (None, Some((after, from))) if from < name.len() => {
                retry = Some((after, from + 1));
                (after, from + 1)
            }
            (None, _) => return false,
        };
    }
}

/// Matches one character; returns how much of the pattern that took.
fn one_matches(pattern: &[char], character: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', plain, ..] => (*plain == character).then_some(2),
        ['[', rest @ ..] => class_matches(rest, character).map(|used| used + 1),
        [plain, ..] => (*plain == character).then_some(1),
        [] => None,
    }
}

fn class_matches(class: &[char], character: char) -> Option<usize> {
    let negated = matches!(class.first(), Some('^' | '!'));
    let mut at = usize::from(negated);
    let mut hit = false;
    let mut first = true;
    loop {
        match class.get(at..)? {
            [']', ..] if !first => break,
            [low, '-', high, ..] if *high != ']' => {
                hit |= (*low..=*high).contains(&character);
                at += 3;
            }
            [one, ..] => {
                hit |= *one == character;
                at += 1;
            }
            [] => return None,
        }
        first = false;
    }
    (hit != negated).then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        for (patterns, path, ignored) in [
            ("node_modules", "node_modules/a/b.js", true),
            ("node_modules", "src/node_modules/a", false),
            ("**/node_modules", "src/node_modules/a", true),
            ("/dist/", "dist/x", true),
            ("*.log", "a.log", true),
            ("*.log", "sub/a.log", false),
            ("*/*.log", "sub/a.log", true),
            ("**/*.log", "a.log", true),
            ("a/**", "a/b/c", true),
            ("a/**", "b", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("?.txt", "a.txt", true),
            ("?.txt", "ab.txt", false),
            ("[a-c].txt", "b.txt", true),
            ("[^a-c].txt", "b.txt", false),
            ("[", "[", false),
            ("\\*.txt", "*.txt", true),
            ("\\*.txt", "a.txt", false),
            ("# a comment\n\n  \na", "a", true),
            ("# a", "# a", false),
            ("*\n!keep", "keep", false),
            ("*\n!keep", "keep/x", false),
            ("*\n!keep\nkeep/secret", "keep/secret", true),
            ("!a\na", "a", true),
            ("./a", "a", true),
            ("b/../a", "a", true),
            (".", "a", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
        ] {
            assert_eq!(Ignore::parse(patterns).matches(path), ignored, "{patterns:?} {path}");
        }
    }

    #[test]
    fn windows_line_ends_are_no_part_of_a_pattern() {
        assert!(Ignore::parse("a\r\nb\r\n").matches("a"));
        assert!(Ignore::parse("\u{feff}a\r\n").matches("a"));
    }

    #[test]
    fn a_nasty_pattern_takes_no_time() {
        let ignore = Ignore::parse(&"*a".repeat(200));
        assert!(!ignore.matches(&"b".repeat(50_000)));
        let deep = Ignore::parse(&"**/".repeat(100));
        assert!(deep.matches(&"x/".repeat(500)));
    }

    proptest! {
        #[test]
        fn any_pattern_matches_or_not(patterns: String, path in "[a-z/*]{0,40}") {
            // Whatever came before, the last pattern decides.
            let all = Ignore::parse(&format!("{patterns}\n**"));
            prop_assert!(all.matches(&path));
            let none = Ignore::parse(&format!("{patterns}\n!**"));
            prop_assert!(!none.matches(&path));
        }

        #[test]
        fn a_plain_path_matches_itself(path in "[a-z]{1,8}(/[a-z]{1,8}){0,4}") {
            prop_assert!(Ignore::parse(&path).matches(&path));
        }
    }
}
