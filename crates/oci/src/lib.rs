//! OCI images: pulled from a registry, checked, and turned into one erofs file per image.
//!
//! Never runs a program of an image and never trusts a byte of one: every blob is hashed and
//! counted while it streams, and layers are unpacked by a child in a user namespace of its own.

#![forbid(unsafe_code)]

pub mod client;
pub mod error;
pub mod limits;
pub mod manifest;
pub mod store;
pub mod unpack;

pub use client::{Client, ClientConfig, Credentials, Endpoint};
pub use error::Error;
pub use limits::Limits;
pub use store::{ImageStore, StoreConfig, StoredImage, Usage};
pub use unpack::Privilege;
