//! The edge as clients and machines see it.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "threads that play clients poll a condition with a deadline"
)]

mod accounts;
mod balance;
mod draining;
mod far;
mod floods;
mod framing;
mod h2;
mod mutations;
mod options;
mod origins;
mod passing;
mod patience;
mod raw;
mod raw_tls;
mod raw_udp;
mod replacing;
mod replaying;
mod replays;
mod resting;
mod statics;
mod tls;
mod waking;
mod world;
