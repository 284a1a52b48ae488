//! Checks what rustfmt and clippy do not.
//!
//! Never changes a file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The longest source file in lines.
const FILE_LINES_MAX: usize = 600;
/// The longest test file in lines: a table of cases may be long.
const TEST_FILE_LINES_MAX: usize = 900;
/// Names that say nothing of what a module holds.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "misc", "manager2"];
/// Words with which only the outermost printer begins.
const ERROR_STARTS: &[&str] = &["failed to", "could not", "error", "unable to", "cannot "];

pub(crate) fn run(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask"] {
        collect(&root.join(folder), &mut files)?;
    }
    let mut faults = Vec::new();
    for path in &files {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
        faults.extend(faults_of(&name, &text));
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n  "));
    }
    Ok(format!("{} files", files.len()))
}

pub(crate) fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("list `{}`", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list `{}`", folder.display()))?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.contains("/benches/")
}

fn faults_of(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let test = is_test(name);
    if !test && !text.starts_with("//! ") {
        faults.push(format!("{name}: the first line says what it is (`//! …`)"));
    }
    let lines = text.lines().count();
    let lines_max = if test { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX };
    if lines > lines_max {
        faults.push(format!("{name}: {lines} lines, at most {lines_max}"));
    }
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        faults.push(format!("{name}: `{stem}` says nothing of what it holds"));
    }
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        if let Some(message) = line.trim_start().strip_prefix("#[error(\"") {
            let lower = message.to_lowercase();
            if ERROR_STARTS.iter().any(|start| lower.starts_with(start)) {
                faults.push(format!("{name}:{number}: an error begins with its verb and object"));
            }
            if message.split("\")").next().is_some_and(|message| message.ends_with('.')) {
                faults.push(format!("{name}:{number}: an error ends without a period"));
            }
        }
        let unfinished =
            ["todo", "unimplemented"].iter().any(|word| line.contains(&format!("{word}!(")));
        if unfinished && !line.contains("\"") {
            faults.push(format!("{name}:{number}: unfinished"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tidy_file_has_no_faults() {
        let text = "//! What it is.\n\n#[error(\"open file `{path}`\")]\n";
        assert_eq!(faults_of("crates/a/src/lib.rs", text), Vec::<String>::new());
        assert_eq!(faults_of("crates/a/tests/it/main.rs", "mod a;\n"), Vec::<String>::new());
    }

    #[test]
    fn each_rule_finds_its_fault() {
        let long = format!("//! What it is.\n{}", "\n".repeat(FILE_LINES_MAX));
        for (name, text, words) in [
            ("crates/a/src/lib.rs", "use std::fs;\n", "first line"),
            ("crates/a/src/lib.rs", long.as_str(), "at most"),
            ("crates/a/src/utils.rs", "//! Utils.\n", "says nothing"),
            ("crates/a/src/lib.rs", "//! A.\n#[error(\"failed to open\")]\n", "verb and object"),
            ("crates/a/src/lib.rs", "//! A.\n#[error(\"open file.\")]\n", "period"),
            ("crates/a/src/lib.rs", "//! A.\nfn a() { todo!() }\n", "unfinished"),
        ] {
            let faults = faults_of(name, text).join("\n");
            assert!(faults.contains(words), "{words}: {faults}");
        }
    }
}
