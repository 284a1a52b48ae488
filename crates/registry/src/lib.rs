//! The platform's registry: the OCI distribution API over a folder.
//!
//! Never knows what an app is: repositories are names, and whoever may use one is decided by the
//! [`Authorize`] that the daemon passes in.

#![forbid(unsafe_code)]

pub mod access;
mod blobs;
mod catalog;
pub mod error;
mod gc;
pub mod limits;
mod lists;
mod manifests;
pub mod registry;
mod reply;
mod route;
mod storage;
mod uploads;

pub use access::{Access, Authorize, Basic, Decision};
pub use error::Error;
pub use limits::Limits;
pub use registry::{Config, GcReport, Registry, Usage};
