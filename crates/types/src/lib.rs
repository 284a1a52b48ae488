//! The words of Perch: ids, configurations, states, API bodies, error codes and the view.
//!
//! Never does I/O, never reads a clock, never draws a random number. Every other crate may use
//! this one; it uses none. Shapes follow Fly.io's public wire formats.

pub mod address;
pub mod api;
pub mod app_config;
pub mod build;
pub mod certificate_docs;
pub mod certificates;
pub mod clock;
pub mod consumed;
pub mod directory;
pub mod edge_code;
pub mod endpoint;
pub mod env;
pub mod error;
pub mod exec;
pub mod guest;
pub mod host;
pub mod id;
pub mod image;
pub mod ips;
pub mod keys;
pub mod labels;
pub mod machine_config;
pub mod network_policy;
pub mod octets;
pub mod ports;
pub mod pulse;
pub mod replays;
pub mod schedule;
pub mod secret;
pub mod secret_keys;
pub mod secrets;
pub mod service;
pub mod state;
pub mod time;
pub mod view;
pub mod volume;

pub use error::{ApiError, Code};
pub use id::{AppName, HostId, InstanceId, MachineId, OrgSlug, Region, SnapshotId, VolumeId};
pub use machine_config::MachineConfig;
pub use octets::Octets;
pub use secret::Secret;
pub use state::MachineState;
pub use time::{GoDuration, Timestamp};
