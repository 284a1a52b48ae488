//! A wait inside of something that is polled.
//!
//! Never runs unless it was asked for.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::Sleep;

/// A wait that begins when it is first asked for and is forgotten when it is over.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Returns whether `limit` is over since the wait began; the task is woken when it is.
    pub fn is_over(&mut self, limit: Duration, context: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        sleep.as_mut().poll(context).is_ready()
    }

    /// Returns whether the wait has begun.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.0.is_some()
    }

    /// Ends the wait.
    pub fn reset(&mut self) {
        self.0 = None;
    }
}
