//! What is needed of who issues certificates: the seam between the worker and ACME.
//!
//! Never decides when something is done: `order` does.

use std::fmt;

use async_trait::async_trait;
use perch_types::Timestamp;
use perch_types::certificate_docs::{ChallengeAnswer, ChallengeMethod, RenewalId};

use crate::order::Fault;

/// How far an order is at its issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Challenges are not answered, or not looked at yet.
    Pending,
    /// The request for the certificate can be sent.
    Ready,
    /// The certificate is being issued.
    Processing,
    /// It is issued.
    Valid,
    /// It will never be; a stable word for the reason, and the reason.
    Invalid(String, String),
}

/// An order and the ways to show whose its host name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// How far it is.
    pub progress: Progress,
    /// One answer for every way that the issuer offers.
    pub answers: Vec<ChallengeAnswer>,
}

/// When a certificate is to be renewed, as its issuer says (RFC 9773).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The earliest moment.
    pub start: Timestamp,
    /// The latest moment.
    pub end: Timestamp,
    /// When to ask again, if the issuer says that.
    pub again: Option<Timestamp>,
}

/// Who issues certificates.
#[async_trait]
pub trait Issuer: Send + Sync + fmt::Debug {
    /// Returns the name under which the directory keeps the account there, and the address.
    fn account(&self) -> (String, String);

    /// Makes sure that there is an account.
    async fn prepare(&self) -> Result<(), Fault>;

    /// Places an order for one host name; returns where it is.
    async fn place(&self, hostname: &str, replaces: Option<&RenewalId>) -> Result<String, Fault>;

    /// Returns an order with its challenges.
    async fn offer(&self, url: &str) -> Result<Offer, Fault>;

    /// Tells that the answer to a challenge is there.
    async fn tell(&self, url: &str, method: ChallengeMethod) -> Result<(), Fault>;

    /// Returns how far an order is.
    async fn progress(&self, url: &str) -> Result<Progress, Fault>;

    /// Sends the request for the certificate.
    async fn finalize(&self, url: &str, request_der: &[u8]) -> Result<(), Fault>;

    /// Returns the chain of an order that is valid, as PEM.
    async fn certificate(&self, url: &str) -> Result<String, Fault>;

    /// Returns when to renew a certificate; nothing where the issuer does not say.
    async fn renewal(&self, id: &RenewalId) -> Result<Option<Renewal>, Fault>;
}
