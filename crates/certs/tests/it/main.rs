//! Orders carried out by a real worker over a real directory: against an issuer in memory, ended at
//! every write, and against pebble, a real ACME server.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the whole binary is a test")]

mod clocks;
mod crashes;
mod fake;
mod full;
mod pebble;
mod platform;
mod played;
mod world;
mod zone;
