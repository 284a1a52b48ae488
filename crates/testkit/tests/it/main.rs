//! Whole clouds: a real `perchd`, real machines, requests through the real edge.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod auth;
mod bad_input;
mod building;
mod disk;
mod draining;
mod edge;
mod follow;
mod launch;
mod machines;
mod resume;
mod security;
mod sessions;
mod survival;
