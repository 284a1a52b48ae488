//! The terminal's modes: raw for a session, without echo for a secret.
//!
//! Never leaves a terminal changed: the mode goes back when the value is dropped.

use std::io;

use perch_types::exec::TerminalSize;
use rustix::termios::{
    LocalModes, OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr,
};

/// A terminal that goes back to its mode when this is dropped.
#[derive(Debug)]
pub(crate) struct ChangedMode {
    before: Termios,
}

impl Drop for ChangedMode {
    fn drop(&mut self) {
        // There is nobody left to tell when even this fails.
        tcsetattr(io::stdin(), OptionalActions::Drain, &self.before).unwrap_or_default();
    }
}

/// Passes every key on as it is. What was typed before stays to be read.
pub(crate) fn raw() -> io::Result<ChangedMode> {
    let before = tcgetattr(io::stdin())?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
    Ok(ChangedMode { before })
}

/// Does not show what is typed; what was typed before it was asked for is no secret and is lost.
pub(crate) fn without_echo() -> io::Result<ChangedMode> {
    let before = tcgetattr(io::stdin())?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
    Ok(ChangedMode { before })
}

/// Returns the size of the terminal, when there is one; any of the three streams may be it.
pub(crate) fn terminal_size() -> Option<TerminalSize> {
    let known = |size: &Winsize| size.ws_col > 0 && size.ws_row > 0;
    let size = tcgetwinsize(io::stdout()).ok().filter(known);
    let size = size.or_else(|| tcgetwinsize(io::stderr()).ok().filter(known));
    let size = size.or_else(|| tcgetwinsize(io::stdin()).ok().filter(known))?;
    Some(TerminalSize { rows: size.ws_row, cols: size.ws_col })
}
