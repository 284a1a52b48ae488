//! Machines' networking with real packets: a server, its surroundings and machines as network
//! namespaces.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests stop at the first thing that is not as it should be"
)]

mod egress;
mod forged;
mod frame;
mod isolation;
mod lab;
mod lifecycle;
mod policy;
