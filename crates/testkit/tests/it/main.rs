//! Whole clouds: a real `perchd`, real machines, requests through the real edge.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]
#![expect(clippy::disallowed_methods, reason = "clients of a test send at a bounded rate")]

mod auth;
mod autostop;
mod backup;
mod bad_input;
mod building;
mod certs;
mod conformance;
mod deploys;
mod disk;
mod draining;
mod edge;
mod fixtures;
mod follow;
mod hostile;
mod inside;
mod launch;
mod machines;
mod resolver;
mod resume;
mod rounds;
mod secrets;
mod security;
mod sessions;
mod survival;
