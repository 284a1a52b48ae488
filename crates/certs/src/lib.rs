//! Certificates of host names: read and checked, kept sealed, ordered and renewed with ACME, and
//! the view that edges serve them from.
//!
//! Never on the path of a request but through [`CertificateView`], which asks nobody. Never writes
//! a private key but sealed.
//!
//! - [`inspect`] reads a certificate and says whether it is good for a host name. Pure.
//! - [`order`] is the state machine of an order. Pure.
//! - [`Worker`] carries orders out: each step is written to the directory before it is done.
//! - [`PlatformNames`] says which names under the platform's own domain are to have one.
//! - [`Acme`] speaks to an issuer; [`Issuer`] is what the worker needs of one.

#![forbid(unsafe_code)]

mod account;
mod acme;
pub mod dns;
mod domains;
mod edge_key;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod inspect;
mod issuer;
mod net;
pub mod order;
mod platform;
mod view;
mod worker;

pub use acme::{Acme, AcmeConfig};
pub use edge_key::EdgeKey;
pub use error::Error;
pub use issuer::{Issuer, Offer, Progress, Renewal};
pub use platform::{PlatformNames, PlatformNamesConfig, is_public};
pub use view::CertificateView;
pub use worker::{Worker, WorkerConfig};
