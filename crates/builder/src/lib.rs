//! The builder: a Dockerfile and its context become an image in the platform's registry.
//!
//! Never touches a machine, and never runs, unpacks or parses anything of a user outside of a cage:
//! a container whose root is an ordinary id on the host (`spec`), without a way to the host's
//! loopback, its services or its machines (`network`), and without the registry's credentials
//! (`gateway`).
//!
//! ```text
//! http ─▶ queue ─▶ build ─┬─▶ cage: unpack   (no network, no store)
//!                         ├─▶ cage: build    (internet, registry read-only)
//!                         └─▶ cage: push     (registry, one repository)
//! ```

#![forbid(unsafe_code)]

mod bootstrap;
mod build;
mod builder;
mod cage;
pub mod config;
mod context;
mod disk;
mod dockerfile;
pub mod error;
mod gateway;
mod network;
mod output;
mod program;
mod queue;
mod routes;
mod spec;
mod tools;

pub use builder::Builder;
pub use config::{Config, Limits};
pub use context::ContextError;
pub use disk::StoreUsage;
pub use error::Error;
pub use routes::{APP_HEADER, TOKEN_HEADER, router};
pub use tools::MissingTool;
