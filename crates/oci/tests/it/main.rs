//! Pulls from a registry that lies, breaks off, asks for tokens or stands still.
//!
//! Never reaches beyond loopback.

mod auth;
mod content;
mod crash;
mod lies;
mod registry;
mod shop;
mod together;
