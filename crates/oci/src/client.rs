//! A pull client for any registry that speaks the OCI distribution specification.
use std::collections::BTreeMap;
use perch_types::Secret;
/// A name and a password for a registry.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password or token.
    pub password: Secret,
}
/// Where a registry really is.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Scheme, host and port: `http://127.0.0.1:5000`.
    pub base_url: String,
    /// What to show it when a caller has nothing of its own.
    pub credentials: Option<Credentials>,
}
/// How to reach registries.
#[derive(Debug, Clone, Default)]
pub struct ClientConfig {
    /// Real endpoints by the registry's name in references, first of all
    /// [`perch_types::image::PLATFORM_REGISTRY`].
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Whether registries outside [`Self::endpoints`] may be at private or loopback addresses.
    pub allow_private_addresses: bool,
}
/// A pull client.
#[derive(Debug, Clone)]
pub struct Client {}
