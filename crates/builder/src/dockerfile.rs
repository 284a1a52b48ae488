//! As much of a Dockerfile as is needed to say which line failed and to offer build variables.
//!
//! Never runs or judges an instruction: that is the build tool's work, inside the cage.

/// One instruction of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// The line it begins at, from 1.
    pub(crate) line: usize,
    /// The line after its last.
    end: usize,
    /// The stage it belongs to, from 1; 0 before the first `FROM`.
    pub(crate) stage: usize,
    /// Its first word in capitals.
    pub(crate) keyword: String,
    /// Its text on one line, spaces run together.
    pub(crate) text: String,
}

/// A Dockerfile, taken apart into instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dockerfile {
    source: String,
    instructions: Vec<Instruction>,
}

impl Dockerfile {
    /// Takes a text apart. Every text is a Dockerfile to this; the build tool is the judge.
    pub(crate) fn parse(source: &str) -> Self {
        let lines: Vec<&str> = source.lines().collect();
        let escape = escape_of(&lines);
        let mut instructions = Vec::new();
        let mut stage = 0;
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            if is_blank(line) {
                at += 1;
                continue;
            }
            let begin = at;
            let (text, after) = joined(&lines, begin, escape);
            at = after_heredocs(&lines, after, &text);
            let keyword = text.split(' ').next().unwrap_or_default().to_ascii_uppercase();
            if keyword == "FROM" {
                stage += 1;
            }
            instructions.push(Instruction { line: begin + 1, end: at, stage, keyword, text });
        }
        Self { source: source.to_owned(), instructions }
    }

    /// Returns the text with one more instruction after every `FROM`, and all else as it was.
    pub(crate) fn with_after_from(&self, instruction: &str) -> String {
        let ends: Vec<usize> = self
            .instructions
            .iter()
            .filter(|one| one.keyword == "FROM")
            .map(|one| one.end)
            .collect();
        let mut text = String::with_capacity(self.source.len() + ends.len() * instruction.len());
        for (number, line) in self.source.lines().enumerate() {
            text.push_str(line);
            text.push('\n');
            if ends.contains(&(number + 1)) {
                text.push_str(instruction);
                text.push('\n');
            }
        }
        text
    }

    /// Returns the instruction that is step `step` of stage `stage`, both from 1, as the build
    /// tool counts them: `FROM` is step 1 of its stage.
    pub(crate) fn step(&self, stage: usize, step: usize) -> Option<&Instruction> {
        let mut of_stage = self.instructions.iter().filter(|one| one.stage == stage && stage > 0);
        of_stage.nth(step.checked_sub(1)?)
    }

    /// Returns how many instructions it has.
    pub(crate) fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// Returns the character that continues a line; a directive in the first comments may change it.
fn escape_of(lines: &[&str]) -> char {
    for line in lines {
        let Some(directive) = line.trim().strip_prefix('#') else {
            break;
        };
        let Some((key, value)) = directive.split_once('=') else {
            break;
        };
        if key.trim().eq_ignore_ascii_case("escape") && value.trim() == "`" {
            return '`';
        }
    }
    '\\'
}

/// Returns the instruction that begins at line `begin` on one line, and the line after it.
fn joined(lines: &[&str], begin: usize, escape: char) -> (String, usize) {
    let mut words: Vec<&str> = Vec::new();
    let mut at = begin;
    while let Some(line) = lines.get(at) {
        at += 1;
        if at > begin + 1 && is_blank(line) {
            continue;
        }
        let line = line.trim_end();
        let (part, more) = line.strip_suffix(escape).map_or((line, false), |part| (part, true));
        words.extend(part.split_whitespace());
        if !more {
            break;
        }
    }
    (words.join(" "), at)
}

/// Returns the line after the here-documents that an instruction opens.
fn after_heredocs(lines: &[&str], mut at: usize, text: &str) -> usize {
    if !["RUN", "COPY", "ADD"].iter().any(|word| starts_with_word(text, word)) {
        return at;
    }
    for opening in text.split_whitespace() {
        let Some(name) = opening.strip_prefix("<<") else {
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name).trim_matches(['"', '\'']);
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        while let Some(line) = lines.get(at) {
            at += 1;
            if line.trim() == name {
                break;
            }
        }
    }
    at
}

fn starts_with_word(text: &str, word: &str) -> bool {
    text.split(' ').next().is_some_and(|first| first.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_STAGES: &str = "# a comment\nARG X=deb\n\nFROM base:${X} AS one\nRUN a && \\\n  # why\n  b\nCOPY . \\\n\n /x\nfrom two\nRUN <<END\nfrom nowhere import x\nEND\nCMD [\"x\"]";

    #[test]
    fn a_step_is_found_at_the_line_it_begins_at() {
        let file = Dockerfile::parse(TWO_STAGES);
        let line = |stage, step| file.step(stage, step).map(|one| (one.line, one.text.as_str()));
        assert_eq!(line(1, 1), Some((4, "FROM base:${X} AS one")));
        assert_eq!(line(1, 2), Some((5, "RUN a && b")));
        assert_eq!(line(1, 3), Some((8, "COPY . /x")));
        assert_eq!(line(2, 1), Some((11, "from two")));
        assert_eq!(line(2, 2), Some((12, "RUN <<END")));
        assert_eq!(line(2, 3), Some((15, "CMD [\"x\"]")));
        assert_eq!(line(2, 4), None);
        assert_eq!(line(0, 1), None);
        assert_eq!(line(1, 0), None);
    }

    #[test]
    fn an_instruction_after_every_from_leaves_the_rest_as_it_was() {
        let file = Dockerfile::parse(TWO_STAGES);
        let text = file.with_after_from("ARG A=1");
        let without: Vec<&str> = text.lines().filter(|line| *line != "ARG A=1").collect();
        assert_eq!(without, TWO_STAGES.lines().collect::<Vec<_>>());
        assert_eq!(text.matches("ARG A=1\n").count(), 2);
        let again = Dockerfile::parse(&text);
        assert_eq!(again.step(1, 2).map(|one| one.text.as_str()), Some("ARG A=1"));
        assert_eq!(again.step(2, 2).map(|one| one.text.as_str()), Some("ARG A=1"));
    }

    #[test]
    fn a_from_over_several_lines_is_not_cut_in_two() {
        let file = Dockerfile::parse("FROM \\\n x\nRUN y");
        assert_eq!(file.with_after_from("ARG A=1"), "FROM \\\n x\nARG A=1\nRUN y\n");
        let file = Dockerfile::parse("# escape=`\nFROM `\n x\nRUN y");
        assert_eq!(file.with_after_from("ARG A=1"), "# escape=`\nFROM `\n x\nARG A=1\nRUN y\n");
    }

    proptest::proptest! {
        #[test]
        fn any_text_keeps_its_lines(text in "(FROM x|RUN a|#|\\\\|<<E| |\n|E){0,40}") {
            let file = Dockerfile::parse(&text);
            let with = file.with_after_from("ARG Z=9");
            let without: Vec<&str> = with.lines().filter(|line| *line != "ARG Z=9").collect();
            proptest::prop_assert_eq!(without, text.lines().collect::<Vec<_>>());
        }
    }
}
