//! What a server asks of a socket: that it sends at once, and that its other side takes what it is
//! sent and is there.
//!
//! Never looks at a byte, and never speaks a protocol.

#![forbid(unsafe_code)]

mod alive;
mod patience;
mod prompt;
mod timer;

pub use alive::keep_alive;
pub use patience::{Patience, Patient};
pub use prompt::send_at_once;
pub use timer::Timer;
