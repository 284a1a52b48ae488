//! The role `keys`: it holds the master key and makes, digests with and hands on the keys of apps.
//!
//! Never sees a secret in the clear, has no network, and gives the key of an app to nobody but a
//! host on which a machine of that app is placed, sealed to that host.

#![forbid(unsafe_code)]

mod allowance;
mod app_key;
pub mod cage;
mod error;
mod keys;
mod master;
mod rotate;
mod rpc;

pub use error::Error;
pub use keys::{Config, DIGESTS_AT_ONCE_MAX, DIGESTS_PER_S, Keys};
pub use master::MASTER_FILE;
pub use rpc::{for_api, for_host};

#[cfg(test)]
mod tests;
