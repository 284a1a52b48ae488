//! What a command ends with when it does not succeed, and the only place that prints it.
//!
//! Never prints a source twice: every error in a chain shows itself alone.

use std::process::ExitCode;

use perch_types::{ApiError, Code};

use crate::ui::Ui;

/// The exit code of a refusal or a failure.
const FAILED: u8 = 1;
/// The exit code of a wrong command line.
const USAGE: u8 = 2;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// Something was tried: verb and object, and why not.
    Operation {
        /// `deploy `web``
        what: String,
        /// The chain.
        source: anyhow::Error,
    },
    /// A fact that stands in the way.
    Refused {
        /// The fact.
        fact: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The command line asks for something that there is not.
    Usage {
        /// What is wrong with it.
        fact: String,
        /// How it would be right.
        hint: Option<String>,
    },
    /// Something failed half-way, and there is a way to go on.
    Halfway {
        /// What failed.
        error: Box<Self>,
        /// What to run once it is mended.
        next: String,
    },
    /// The program that was run ended with this code; there is nothing to print.
    Program(i32),
}

/// The result of a command.
pub(crate) type Result<T = ()> = std::result::Result<T, CommandError>;

impl CommandError {
    /// Makes the error of an operation: verb and object, and why it did not succeed.
    pub(crate) fn operation(what: impl Into<String>, source: impl Into<anyhow::Error>) -> Self {
        Self::Operation { what: what.into(), source: source.into() }
    }

    /// Makes a refusal with a way out.
    pub(crate) fn refused(fact: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { fact: fact.into(), hint: Some(hint.into()) }
    }

    /// Adds how to go on once the fault is mended.
    pub(crate) fn halfway(self, next: impl Into<String>) -> Self {
        match self {
            Self::Program(_) => self,
            error => Self::Halfway { error: Box::new(error), next: next.into() },
        }
    }

    /// Makes the error of a wrong command line, with the right one.
    pub(crate) fn usage(fact: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { fact: fact.into(), hint: Some(hint.into()) }
    }
}

/// Turns an error into one of a command by naming the operation.
pub(crate) trait During<T> {
    /// Names the operation, verb and object: `list the apps`.
    fn during(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<anyhow::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| CommandError::operation(what, source))
    }
}

/// What is to be said about an error.
#[derive(Debug, Default, serde::Serialize)]
struct Report {
    error: String,
    causes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    log: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
}

/// Prints an error and returns the exit code that goes with it.
pub(crate) fn report(ui: &Ui, error: &CommandError) -> ExitCode {
    let exit = match error {
        CommandError::Program(code) => {
            return ExitCode::from(u8::try_from(*code).unwrap_or(FAILED));
        }
        CommandError::Usage { .. } => USAGE,
        CommandError::Operation { .. }
        | CommandError::Refused { .. }
        | CommandError::Halfway { .. } => FAILED,
    };
    let report = Report::of(error);
    if ui.is_json() {
        ui.say(serde_json::to_string(&report).unwrap_or_default());
        return ExitCode::from(exit);
    }
    ui.error(&report.error);
    for cause in &report.causes {
        ui.say(format!("  caused by: {}", cause.trim_end().replace('\n', "\n             ")));
    }
    if !report.log.is_empty() {
        ui.say("the program's last lines:");
        for line in &report.log {
            ui.quote(line);
        }
    }
    let explain = report.code.map(|code| format!("explain: perch explain {code}"));
    match (&report.hint, explain) {
        (Some(hint), Some(explain)) => ui.hint(format!("{hint}     ({explain})")),
        (Some(hint), None) => ui.hint(hint),
        (None, Some(explain)) => ui.say(explain),
        (None, None) => {}
    }
    if let Some(next) = &report.next {
        ui.say(format!("next: {next}"));
    }
    if let Some(request) = &report.request
        && report.code == Some(Code::Internal)
    {
        ui.say(format!("request {request} stands in the server's log"));
    }
    ExitCode::from(exit)
}

impl Report {
    fn of(error: &CommandError) -> Self {
        match error {
            CommandError::Operation { what, source } => {
                let mut report = Self { error: format!("could not {what}"), ..Self::default() };
                for cause in source.chain() {
                    report.causes.push(cause.to_string());
                    report.learn(cause);
                }
                report
            }
            CommandError::Refused { fact, hint } | CommandError::Usage { fact, hint } => {
                Self { error: fact.clone(), hint: hint.clone(), ..Self::default() }
            }
            CommandError::Halfway { error, next } => {
                Self { next: Some(next.clone()), ..Self::of(error) }
            }
            CommandError::Program(code) => {
                Self { error: format!("exit code {code}"), ..Self::default() }
            }
        }
    }

    /// Takes hint, code and log of one error of a chain; the outermost that has one wins.
    fn learn(&mut self, cause: &(dyn std::error::Error + 'static)) {
        if let Some(error) = cause.downcast_ref::<perch_deploy::Error>() {
            self.hint = self.hint.take().or_else(|| error.hint());
            self.code = self.code.or_else(|| error.code());
            self.log.extend(error.log().iter().cloned());
        }
        if let Some(error) = cause.downcast_ref::<perch_client::Error>() {
            self.hint = self.hint.take().or_else(|| error.hint());
            self.code = self.code.or_else(|| error.code());
            if let perch_client::Error::Api { error, .. } = error {
                self.request = self.request.take().or_else(|| error.request.clone());
            }
        }
        if let Some(error) = cause.downcast_ref::<ApiError>() {
            self.hint = self.hint.take().or_else(|| error.hint.clone());
            self.code = self.code.or(Some(error.code));
        }
        if let Some(error) = cause.downcast_ref::<perch_scan::Unrecognised>() {
            self.hint = self.hint.take().or_else(|| Some(error.hint().to_owned()));
        }
    }
}
