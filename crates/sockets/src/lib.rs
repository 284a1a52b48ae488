//! What a server asks of the other side of a socket: that it takes what it is sent, and that
//! it is there.
//!
//! Never looks at a byte, and never speaks a protocol.

#![forbid(unsafe_code)]

mod alive;
mod patience;
mod timer;

pub use alive::keep_alive;
pub use patience::{Patience, Patient};
pub use timer::Timer;
