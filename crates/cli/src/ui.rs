//! The only printer: data on standard output, everything else on standard error.
//!
//! Never prints a control character that it did not make itself, never says something by colour
//! alone, and never draws on what is no terminal.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::escape::{escape, escape_json};
use crate::raw_mode;
use crate::stop_signals::StopSignals;

/// How many of a build's last lines are shown on a terminal while it runs.
const LIVE_LINES: usize = 6;
/// How many of a build's last lines are kept for an error.
const KEPT_LINES: usize = 40;
/// The longest answer to a question, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

const BOLD: Style = Style::new().bold();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default();
const DIM: Style = Style::new().dimmed();

/// The terminal, or what stands in for it.
#[derive(Debug)]
pub(crate) struct Ui {
    json: bool,
    yes: bool,
    live: bool,
    bar: RefCell<Option<ProgressBar>>,
    reader_is_gone: Cell<bool>,
}

impl Ui {
    /// Makes the printer; `json` silences everything on standard output but data.
    pub(crate) fn new(json: bool) -> Self {
        let live = io::stderr().is_terminal() && !json;
        Self { json, yes: false, live, bar: RefCell::new(None), reader_is_gone: Cell::new(false) }
    }

    /// Answers every question with yes.
    pub(crate) fn without_questions(self) -> Self {
        Self { yes: true, ..self }
    }

    /// Returns whether data is to be printed as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns whether somebody sits in front of standard input and output.
    pub(crate) fn is_interactive() -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal()
    }

    /// Prints a line of data.
    pub(crate) fn data(&self, line: impl Display) {
        let line = line.to_string();
        self.hidden(|| {
            for line in line.split('\n') {
                self.printed(&writeln!(anstream::stdout().lock(), "{}", escape(line)));
            }
        });
    }

    /// Prints a value as JSON.
    pub(crate) fn json(&self, value: &impl Serialize) {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        self.hidden(|| self.printed(&writeln!(io::stdout().lock(), "{}", escape_json(&text))));
    }

    /// Returns whether nobody reads standard output any more, as after `| head`.
    pub(crate) fn reader_is_gone(&self) -> bool {
        self.reader_is_gone.get()
    }

    fn printed(&self, result: &io::Result<()>) {
        if result.is_err() {
            self.reader_is_gone.set(true);
        }
    }

    /// Prints a line about the work.
    pub(crate) fn say(&self, line: impl Display) {
        self.line(None, &line.to_string());
    }

    /// Prints a headline about the work.
    pub(crate) fn headline(&self, line: impl Display) {
        self.line(Some((BOLD, "")), &line.to_string());
    }

    /// Prints that something succeeded.
    pub(crate) fn good(&self, line: impl Display) {
        self.line(Some((GREEN, "ok: ")), &line.to_string());
    }

    /// Prints a warning.
    pub(crate) fn warn(&self, line: impl Display) {
        self.line(Some((YELLOW, "warning: ")), &line.to_string());
    }

    /// Prints the first line of an error.
    pub(crate) fn error(&self, line: impl Display) {
        self.line(Some((RED, "error: ")), &line.to_string());
    }

    /// Prints what to do about an error.
    pub(crate) fn hint(&self, line: impl Display) {
        self.line(Some((BOLD, "hint: ")), &line.to_string());
    }

    /// Prints lines of somebody's program, set off from our own.
    pub(crate) fn quote(&self, line: impl Display) {
        self.line(Some((DIM, "  | ")), &line.to_string());
    }

    fn line(&self, mark: Option<(Style, &str)>, text: &str) {
        self.hidden(|| {
            let mut err = anstream::stderr().lock();
            for part in text.split('\n') {
                let part = escape(part);
                ignore(match mark {
                    None => writeln!(err, "{part}"),
                    Some((style, "")) => writeln!(err, "{style}{part}{style:#}"),
                    Some((style, mark)) => writeln!(err, "{style}{mark}{style:#}{part}"),
                });
            }
        });
    }

    /// Takes a moving line away while something is printed.
    fn hidden(&self, print: impl FnOnce()) {
        match self.bar.borrow().as_ref() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Shows a moving line until the returned value is dropped.
    pub(crate) fn working(&self, text: &str) -> Working<'_> {
        if self.live {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} ({elapsed}){msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(escape(text).into_owned());
            bar.enable_steady_tick(TICK);
            *self.bar.borrow_mut() = Some(bar);
        }
        Working { ui: self, lines: VecDeque::new() }
    }

    /// Asks a question whose answer is yes or no; `--yes` answers it.
    ///
    /// Returns `None` when there is nobody to ask.
    pub(crate) fn confirm(&self, question: &str) -> Option<bool> {
        if self.yes {
            return Some(true);
        }
        if !io::stdin().is_terminal() {
            return None;
        }
        let answer = self.ask(&format!("{question} [Y/n] ")).ok()?;
        Some(matches!(answer.to_ascii_lowercase().as_str(), "" | "y" | "yes"))
    }

    /// Asks for a line.
    pub(crate) fn ask(&self, question: &str) -> io::Result<String> {
        self.prompt(question);
        read_answer()
    }

    fn prompt(&self, question: &str) {
        self.hidden(|| {
            let mut err = anstream::stderr().lock();
            ignore(write!(err, "{BOLD}{}{BOLD:#}", escape(question)));
            ignore(err.flush());
        });
    }

    /// Asks for a secret; it is not shown while it is typed. A signal that ends the program, such
    /// as that of Ctrl-C, is an error here, so that the terminal shows again what is typed.
    pub(crate) async fn ask_secret(&self, question: &str) -> io::Result<String> {
        if !io::stdin().is_terminal() {
            return read_answer();
        }
        let mut stopped = StopSignals::take()?;
        let echo = raw_mode::without_echo()?;
        self.prompt(question);
        let answer = tokio::select! {
            answer = tokio::task::spawn_blocking(read_answer) => {
                answer.unwrap_or_else(|error| Err(io::Error::other(error)))
            }
            _ = stopped.next() => Err(io::ErrorKind::Interrupted.into()),
        };
        drop(echo);
        self.say("");
        answer
    }
}

fn read_answer() -> io::Result<String> {
    let mut answer = String::new();
    io::Read::take(io::stdin().lock(), ANSWER_BYTES_MAX).read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

/// A moving line with the last lines of a program below it.
#[derive(Debug)]
pub(crate) struct Working<'a> {
    ui: &'a Ui,
    lines: VecDeque<String>,
}

impl Working<'_> {
    /// Changes what is being done.
    pub(crate) fn step(&self, text: &str) {
        match self.ui.bar.borrow().as_ref() {
            Some(bar) => bar.set_prefix(escape(text).into_owned()),
            None => self.ui.line(None, text),
        }
    }

    /// Takes a line that a program printed.
    pub(crate) fn output(&mut self, line: &str) {
        if self.lines.len() >= KEPT_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(escape(line).into_owned());
        match self.ui.bar.borrow().as_ref() {
            Some(bar) => {
                let width = usize::from(raw_mode::terminal_size().map_or(80, |size| size.cols));
                let skip = self.lines.len().saturating_sub(LIVE_LINES);
                let cut = |line: &String| -> String {
                    line.chars().take(width.saturating_sub(5)).collect()
                };
                let shown: Vec<String> = self.lines.iter().skip(skip).map(cut).collect();
                bar.set_message(format!("\n  | {}", shown.join("\n  | ")));
            }
            None => self.ui.quote(line),
        }
    }

    /// Prints the lines that were only shown in passing, after something failed.
    pub(crate) fn keep_output(&mut self) {
        let was_live = self.ui.bar.borrow_mut().take().map(|bar| bar.finish_and_clear()).is_some();
        if was_live {
            for line in self.lines.drain(..) {
                self.ui.quote(line);
            }
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if let Some(bar) = self.ui.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

/// Passes over an error of printing: the reader has gone, as `| head` does.
fn ignore(result: io::Result<()>) {
    drop(result);
}
