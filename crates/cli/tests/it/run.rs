//! Runs the CLI and keeps what it said.
//!
//! Never with the environment of whoever runs the tests.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::fake::{Fake, TOKEN};

/// What a run said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A CLI with a folder of its own.
#[derive(Debug)]
pub(crate) struct Perch {
    pub(crate) folder: tempfile::TempDir,
    home: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Perch {
    /// Makes a CLI that knows no platform.
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            home: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
        }
    }

    /// Makes a CLI that knows a platform and its token.
    pub(crate) fn of(fake: &Fake) -> Self {
        Self::new().with("PERCH_API_URL", &fake.url).with("PERCH_API_TOKEN", TOKEN)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes a file into its folder.
    pub(crate) fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// Returns a file of its folder.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.path().join(path)).ok()
    }

    /// Returns the folder of the CLI's own configuration.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn run(&self, line: &str) -> Ran {
        self.run_with(line, "")
    }

    pub(crate) fn run_with(&self, line: &str, input: &str) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_perch"))
            .args(line.split_whitespace())
            .current_dir(self.folder.path())
            .env_clear()
            .env("PERCH_CONFIG_DIR", self.home.path())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input may be gone already.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Returns standard output of a run that succeeded.
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Returns everything for a snapshot, without what changes from run to run.
    pub(crate) fn shown(&self, fake: Option<&Fake>) -> String {
        let mut text = format!("exit code {}\n", self.code);
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.is_empty() {
                write!(text, "--- {name}\n{stream}").unwrap();
            }
        }
        if let Some(fake) = fake {
            text = text.replace(&fake.url, "[URL]");
            let port = fake.url.rsplit(':').next().unwrap();
            text = text.replace(&format!(":{port}"), ":[PORT]");
        }
        steady(&text)
    }
}

/// Replaces packed sizes, which change with the files' times, and durations such as `(12 ms)`.
fn steady(text: &str) -> String {
    let size = |line: &str| match line.split_once(" packed to ") {
        Some((before, _)) => format!("{before} packed to [SIZE]\n"),
        None => format!("{line}\n"),
    };
    let text: String = text.lines().map(size).collect();
    let mut steady = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('(') {
        steady.push_str(before);
        match after.split_once(')') {
            Some((inner, tail)) if is_duration(inner) => {
                steady.push_str("([TIME])");
                rest = tail;
            }
            _ => {
                steady.push('(');
                rest = after;
            }
        }
    }
    steady.push_str(rest);
    steady
}

fn is_duration(text: &str) -> bool {
    let number = text.strip_suffix(" ms").or_else(|| text.strip_suffix(" s"));
    number.is_some_and(|it| it.chars().all(|c| c.is_ascii_digit() || c == '.'))
}
