//! Names of environment variables, each in one place.
//!
//! Never reads the environment.

/// The API's base URL for the CLI.
pub const API_URL: &str = "PERCH_API_URL";
/// The token for the CLI.
pub const API_TOKEN: &str = "PERCH_API_TOKEN";
/// The token under the name that existing scripts use.
pub const FLY_API_TOKEN: &str = "FLY_API_TOKEN";
/// The folder of the CLI's own configuration.
pub const CONFIG_DIR: &str = "PERCH_CONFIG_DIR";
/// The folder with `perch-init` and `perch-monitor`, for servers that run from a build folder.
pub const GUEST_DIR: &str = "PERCH_GUEST_DIR";
/// The log filter of a server (`info`, `perch_edge=debug`).
pub const LOG: &str = "PERCH_LOG";

/// Variables inside a machine (contract 5.4); each is set as `FLY_…` and as `PERCH_…`.
pub mod machine {
    /// Prefixes under which every platform variable is set.
    pub const PREFIXES: [&str; 2] = ["FLY_", "PERCH_"];
    /// The app's name.
    pub const APP_NAME: &str = "APP_NAME";
    /// The machine's id.
    pub const MACHINE_ID: &str = "MACHINE_ID";
    /// The machine's id, under its older name.
    pub const ALLOC_ID: &str = "ALLOC_ID";
    /// The region.
    pub const REGION: &str = "REGION";
    /// The image's reference.
    pub const IMAGE_REF: &str = "IMAGE_REF";
    /// The machine's version.
    pub const MACHINE_VERSION: &str = "MACHINE_VERSION";
    /// The private IPv6 address.
    pub const PRIVATE_IP: &str = "PRIVATE_IP";
    /// The address that the machine's requests to the internet come from.
    pub const PUBLIC_IP: &str = "PUBLIC_IP";
    /// The process group.
    pub const PROCESS_GROUP: &str = "PROCESS_GROUP";
    /// The memory in MiB.
    pub const VM_MEMORY_MB: &str = "VM_MEMORY_MB";
    /// What clients set under the first prefix and programs may look for under the others.
    pub const SET_BY_CLIENTS: [&str; 3] = ["STANDBY_FOR", "TEST_COMMAND", "TEST_MACHINE_IP"];
    /// The app's primary region; has no prefix.
    pub const PRIMARY_REGION: &str = "PRIMARY_REGION";
}
