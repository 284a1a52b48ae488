//! The role `keys`: it holds the master key, makes, digests with and hands on the keys of apps, and
//! uses their secret keys.
//!
//! Never sees an app secret in the clear, has no network, and gives the key of an app to nobody but
//! a host on which a machine of that app is placed, sealed to that host. A secret key it gives to
//! nobody.

#![forbid(unsafe_code)]

mod algorithms;
mod allowance;
mod app_key;
pub mod cage;
mod envelope;
mod error;
mod keys;
mod master;
mod rotate;
mod rpc;
mod secret_key;

pub use error::Error;
pub use keys::{Config, DIGESTS_AT_ONCE_MAX, DIGESTS_PER_S, Keys};
pub use master::MASTER_FILE;
pub use rpc::{for_api, for_host};

#[cfg(test)]
mod tests;
