//! The agent of one server.
//!
//! Never decides what should run.

#![forbid(unsafe_code)]

pub mod network;
