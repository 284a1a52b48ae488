//! One machine: what it may be asked, how that is carried out, and the task that does it.
//!
//! Never decides what should run.

pub mod actor;
pub mod ahead;
pub mod checks;
pub mod containers;
pub mod files;
pub mod guest;
pub mod health;
pub mod names;
pub mod plan;
pub mod processes;
pub mod ready;
pub mod record;
pub mod restart;
pub mod run;
pub mod state;
mod steps;
pub mod suspend;

pub use steps::boot::IDS_PER_MACHINE;
