//! Integration tests of the host.

mod network;
