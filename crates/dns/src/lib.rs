//! The resolver of machines: `.internal` names from the view, everything else from upstream. And
//! the [`Zone`] of challenges, which is served to everybody and has nothing to do with it.
//!
//! Never asks anybody to answer a name of its own, and never tells a machine of another
//! organization's or network's names. Who asks is known by source address, which the firewall
//! pins to the machine.

#![forbid(unsafe_code)]

mod answer;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod limits;
mod lookups;
mod message;
mod server;
mod upstream;
mod zone;

pub use answer::{Answer, Asking, Kind, answer};
pub use lookups::{LookupError, Lookups};
pub use server::{Resolver, ViewSource};
pub use upstream::upstreams;
pub use zone::{Responder, TextSource, Way, Zone, ZoneError};
