//! The edge as clients and machines see it.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "threads that play clients poll a condition with a deadline"
)]

mod accounts;
mod balance;
mod checked;
mod claimed_http;
mod corpora;
mod data_path;
mod destroyed;
mod draining;
mod far;
mod far_protocols;
mod floods;
mod framing;
mod grpc;
mod h2;
mod h2_floods;
mod h2_paths;
mod large_bodies;
mod mutations;
mod options;
mod origins;
mod passing;
mod patience;
mod properties;
mod raw;
mod raw_far;
mod raw_tls;
mod raw_udp;
mod replacing;
mod replaying;
mod replays;
mod resting;
mod secured;
mod sent_on;
mod sockets;
mod statics;
mod tls;
mod uploads;
mod waking;
mod world;
