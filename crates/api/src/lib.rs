//! The public API: identity, apps and machines over HTTP.
//!
//! Never touches a machine, disk or socket of a user: it writes down what should exist and asks
//! hosts. A route without a declared action does not exist (see [`router`](crate::Api::router)).

#![forbid(unsafe_code)]

mod admit;
mod apps;
mod auth;
mod body;
mod builds;
mod certificates;
mod config;
mod documents;
mod error;
mod inside;
mod ips;
mod logs;
mod machines;
mod names;
mod network_policies;
mod oidc;
mod orgs;
mod place;
mod placements;
mod platform;
mod ports;
mod push_tokens;
mod rate;
mod reconcile;
mod reference;
mod replay_sources;
mod reply;
mod routes;
mod secrets;
pub mod serve;
mod sessions;
mod tokens;
mod view;
mod volumes;

pub use auth::{Identity, Principal};
pub use config::{Api, Certificates, Config, Host, ImageCatalog, Limits, Wakes};
pub use error::Error;
pub use inside::Inside;
pub use ports::PortRules;
pub use push_tokens::{PushScope, PushTokens};
pub use rate::{Rate, Rates};
