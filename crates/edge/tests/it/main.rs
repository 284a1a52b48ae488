//! The edge as clients and machines see it.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "threads that play clients poll a condition with a deadline"
)]

mod draining;
mod floods;
mod framing;
mod mutations;
mod origins;
mod passing;
mod patience;
mod replacing;
mod replays;
mod statics;
mod waking;
mod world;
