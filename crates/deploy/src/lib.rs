//! Plans and carries out a change of an app, through the public API only.
//!
//! Never prints, never reads the terminal, and knows nothing of the server: whatever the CLI does
//! with this library, another program can do too.
//!
//! [`load`] reads `fly.toml`; [`plan`] is pure and says what will be done; [`Deployer::apply`]
//! does it, machine after machine or some at once, and puts back what it changed when one does not come up.

#![forbid(unsafe_code)]

mod answers;
mod apply;
mod config;
mod error;
mod fly_toml;
mod judge;
mod observe;
mod plan;
mod undo;

pub use answers::{is_known, is_worse};
pub use apply::{Deployer, Limits, Outcome};
pub use config::{CONFIG_BYTES_MAX, ConfigError, load, parse, read_local_files};
pub use error::{Error, LOG_LINES_MAX};
pub use fly_toml::{EditError, NewApp, new_fly_toml, with_app_name};
pub use judge::{Mark, Verdict, judge};
pub use observe::{Event, Observer};
pub use plan::{Op, Options, Plan, plan, restart};
