//! The edge as clients and machines see it.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "threads that play clients poll a condition with a deadline"
)]

mod draining;
mod framing;
mod passing;
mod patience;
mod raw;
mod raw_tls;
mod raw_udp;
mod statics;
mod waking;
mod world;
