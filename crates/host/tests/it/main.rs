//! Integration tests of the host.

mod machines;
mod network;
mod schema;
