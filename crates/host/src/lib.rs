//! The agent of one server: a durable state machine per machine, network, images, logs.
//!
//! Never decides what should run: it carries out commands, and keeps going what was begun.
//!
//! - [`Host`] is the agent; [`rpc::router`] serves it.
//! - `machine/` has a machine's pure cores (`state`, `plan`, `restart`), its steps and its task.
//! - [`effects`] are the traits through which steps reach the world.
//! - [`network`] is machines' networking.

#![forbid(unsafe_code)]

mod autostop;
mod cache;
pub mod config;
mod drains;
pub mod effects;
mod error;
pub mod fake;
pub mod heartbeat;
pub mod holds;
mod host;
mod images;
pub mod inside;
mod layers;
mod loads;
mod logs;
pub mod machine;
mod mounts;
pub mod network;
mod networks;
pub mod policies;
mod pressure;
mod publish;
pub mod rpc;
mod schema;
pub mod secrets;
mod shared;
mod standby;
mod statics;
mod tend;
pub mod volumes;
mod words;

pub use autostop::IDLE_DEFAULT as AUTOSTOP_IDLE;
pub use cache::{CachePolicy, IMAGE_CACHE_BYTES, IMAGE_KEPT_MS};
pub use config::{Config, Limits, MachineApi, PlatformRegistry};
pub use error::Error;
pub use heartbeat::{Beat, Heartbeats};
pub use host::{Deps, Host, RESOLVE_TIMEOUT, WAIT_MS_MAX, has_boots, take_restored_state};
pub use images::StoredImages;
pub use layers::{Cloning, Layers};
pub use mounts::Mounts;
pub use networks::KernelNetworks;
pub use perch_runtime::handover;
pub use shared::WATCH_QUEUE_MAX;
pub use volumes::pool::{Pool, PoolConfig};
