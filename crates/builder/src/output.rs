//! Reads what the build tool prints: where it is, and what went wrong.
//!
//! Never trusts it further than that: the lines may come from the user's own programs.

use std::collections::VecDeque;

use perch_types::build::BuildEvent;
use perch_types::error::ERROR_TEXT_BYTES_MAX;
use perch_types::{ApiError, Code};

use crate::cage::Exit;
use crate::config::{FAILURE_LINES, LOG_LINES_MAX, Limits};
use crate::dockerfile::Dockerfile;

/// The start of the instruction that the builder puts after every `FROM`.
pub(crate) const VARIABLES: &str = "ARG SSL_CERT_FILE=/dev/perch-ca.crt";

/// The output of one build so far.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    dockerfile: &'a Dockerfile,
    name: &'a str,
    stage: usize,
    step: usize,
    inserted: bool,
    lines: u64,
    last: VecDeque<String>,
    error: Option<String>,
}

impl<'a> Output<'a> {
    /// Begins with a Dockerfile, named as the user names it.
    pub(crate) fn new(dockerfile: &'a Dockerfile, name: &'a str) -> Self {
        Self {
            dockerfile,
            name,
            stage: 0,
            step: 0,
            inserted: false,
            lines: 0,
            last: VecDeque::new(),
            error: None,
        }
    }

    /// Takes a line and returns what the client hears of it.
    pub(crate) fn line(&mut self, line: &str) -> Option<BuildEvent> {
        if let Some(step) = Step::parse(line) {
            return self.step(&step);
        }
        if self.inserted && line.starts_with("--> ") || line.starts_with("subprocess exited with ")
        {
            return None;
        }
        if let Some(reference) = line.strip_prefix("Trying to pull ") {
            let reference = reference.trim_end_matches("...");
            return Some(BuildEvent::Progress { text: format!("fetch {reference}") });
        }
        if let Some(error) = line.strip_prefix("Error: ") {
            self.error = Some(error.to_owned());
        } else if !line.trim().is_empty() {
            self.last.push_back(line.to_owned());
            if self.last.len() > FAILURE_LINES {
                self.last.pop_front();
            }
        }
        self.lines += 1;
        match self.lines.cmp(&LOG_LINES_MAX) {
            std::cmp::Ordering::Less => Some(BuildEvent::Log { line: line.to_owned() }),
            std::cmp::Ordering::Equal => Some(BuildEvent::Log {
                line: format!("(more than {LOG_LINES_MAX} lines: the rest is left out)"),
            }),
            std::cmp::Ordering::Greater => None,
        }
    }

    fn step(&mut self, step: &Step<'_>) -> Option<BuildEvent> {
        self.inserted = step.text.starts_with(VARIABLES);
        if self.inserted {
            return None;
        }
        // One instruction of each stage is ours: the user counts without it.
        let less = usize::from(step.number > 1);
        (self.stage, self.step) = (step.stage, step.number - less);
        self.last.clear();
        let of = step.of.saturating_sub(1).max(self.step);
        let place = if step.stages > 1 {
            format!("stage {}/{}, step {}/{of}", step.stage, step.stages, self.step)
        } else {
            format!("step {}/{of}", self.step)
        };
        Some(BuildEvent::Progress { text: format!("{place}: {}", step.text) })
    }

    /// Returns why the build failed.
    pub(crate) fn failure(&self, exit: &Exit, limits: &Limits) -> ApiError {
        let reason = self.error.as_deref().unwrap_or_default();
        let place = self.place();
        let mut text = if exit.timed_out {
            format!("{place} was stopped: the build took longer than {} s", limits.time_s_max)
        } else if exit.out_of_memory {
            let mib = limits.memory_bytes / (1024 * 1024);
            format!("{place} ran out of memory: the build may use {mib} MiB")
        } else if let Some(code) = exit_code(reason) {
            format!("{place} exited with code {code}")
        } else if reason.is_empty() {
            let code =
                exit.code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
            format!("{place} failed: the build tool ended with {code}")
        } else {
            format!("{place} failed: {reason}")
        };
        if !self.last.is_empty() {
            text.push_str("\nlast lines:");
            for line in &self.last {
                text.push_str("\n  ");
                text.push_str(line);
            }
        }
        let full = |text: &str| text.to_ascii_lowercase().contains("no space left on device");
        let full = full(reason) || self.last.iter().any(|line| full(line));
        let (code, hint) = judge(reason, full);
        let text: String = cut(&text, ERROR_TEXT_BYTES_MAX).to_owned();
        let error = ApiError::new(code, text);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Returns the step that ran last, such as `` `RUN x` (Dockerfile line 4)``.
    fn place(&self) -> String {
        match self.dockerfile.step(self.stage, self.step) {
            Some(one) => format!("`{}` ({} line {})", cut(&one.text, 500), self.name, one.line),
            None => format!("`{}`", self.name),
        }
    }
}

/// Returns the code and the way out for what the build tool said.
fn judge(reason: &str, full: bool) -> (Code, Option<&'static str>) {
    if full {
        let hint = "make room with `perch system prune`, or raise the builder's `disk_bytes`";
        return (Code::NoSpace, Some(hint));
    }
    if !reason.contains("initializing source docker://") && !reason.contains("reading manifest ") {
        return (Code::BuildFailed, None);
    }
    let unknown =
        ["manifest unknown", "name unknown", "not found"].iter().any(|word| reason.contains(word));
    let only_ours = !reason.contains("Mirrors also failed") || !reason.contains("dial tcp");
    let hint = "base images of the platform are made by `perch images bootstrap`";
    if unknown && only_ours {
        (Code::ImageUnknown, Some(hint))
    } else {
        (Code::ImageUnavailable, Some(hint))
    }
}

/// Returns the exit code in a sentence such as `building at STEP "RUN x": exit status 3`.
fn exit_code(reason: &str) -> Option<i32> {
    reason.rsplit_once("exit status ").and_then(|(_before, code)| code.trim().parse().ok())
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let end = text.floor_char_boundary(bytes_max);
    text.get(..end).unwrap_or(text)
}

/// A line such as `[1/2] STEP 3/4: RUN x`.
#[derive(Debug, PartialEq, Eq)]
struct Step<'a> {
    stage: usize,
    stages: usize,
    number: usize,
    of: usize,
    text: &'a str,
}

impl<'a> Step<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (stage, rest) = match line.strip_prefix('[') {
            Some(rest) => {
                let (stage, rest) = rest.split_once("] ")?;
                (pair(stage)?, rest)
            }
            None => ((1, 1), line),
        };
        let (number, text) = rest.strip_prefix("STEP ")?.split_once(": ")?;
        let (number, of) = pair(number)?;
        (number > 0).then_some(Self { stage: stage.0, stages: stage.1, number, of, text })
    }
}

fn pair(text: &str) -> Option<(usize, usize)> {
    let (one, of) = text.split_once('/')?;
    Some((one.parse().ok()?, of.parse().ok()?))
}

#[cfg(test)]
#[path = "output/tests.rs"]
mod tests;
