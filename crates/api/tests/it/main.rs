//! The API with a real directory, a real view and real sockets; the host is a stand-in that
//! serves `types::host`'s table from memory.

#![expect(clippy::unwrap_used, reason = "the whole binary is a test")]

mod apps;
mod builds;
mod certificates;
mod cloud;
mod document;
mod endpoints;
mod every_field;
mod fake_host;
mod fake_volumes;
mod full;
mod generated;
mod input;
mod inside;
mod ips;
mod leases;
mod machines;
mod metadata;
mod network_policies;
mod oidc;
mod orgs;
mod ports;
mod replay_sources;
mod resources;
mod secret_keys;
mod secrets;
mod serving;
mod sessions;
mod shapes;
mod tokens;
mod volumes;
