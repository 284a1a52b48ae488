//! The signals that end a program, for as long as its terminal is in another mode.
//!
//! Never ignores one: whoever takes these puts the terminal back and ends.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell adds to a signal's number to make an exit code of it.
const SIGNAL_CODE_BASE: i32 = 128;

/// The signals, from the moment on that this is made.
#[derive(Debug)]
pub(crate) struct StopSignals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Takes the signals; from now on none of them ends the program by itself.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for a signal; returns the exit code of a program that it ends.
    pub(crate) async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            () = came(&mut self.hangup) => SignalKind::hangup(),
            () = came(&mut self.interrupt) => SignalKind::interrupt(),
            () = came(&mut self.quit) => SignalKind::quit(),
            () = came(&mut self.terminate) => SignalKind::terminate(),
        };
        kind.as_raw_value().saturating_add(SIGNAL_CODE_BASE)
    }
}

/// Waits for one signal.
pub(crate) async fn came(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}
