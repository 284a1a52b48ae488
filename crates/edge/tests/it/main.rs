//! The edge as clients and machines see it.
#![expect(clippy::unwrap_used, clippy::string_slice, reason = "tests")]

mod framing;
mod passing;
mod waking;
mod world;
