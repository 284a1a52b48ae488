//! A build: what is asked of the builder and the lines it answers with.
//!
//! Never runs one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::image::Digest;

/// The largest build context, packed, in bytes.
pub const CONTEXT_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// What to build, as query parameters; the body is the context as a tar, gzipped or plain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BuildRequest {
    /// The Dockerfile's path inside the context; default `Dockerfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// The stage to build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Build arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// The tag to push, such as `deployment-01J…`.
    pub tag: String,
    /// Build every step anew.
    #[serde(default)]
    pub no_cache: bool,
}

/// The header that carries a [`BuildRequest`] as JSON.
pub const BUILD_HEADER: &str = "perch-build";

/// The header that makes base images anew though they exist, with the value `1`: they then have
/// the newest Debian packages.
pub const FORCE_HEADER: &str = "perch-build-force";
/// The header by which the API tells the builder whose store of layers a build uses: the app's id,
/// not its name, which may be another's by tomorrow.
pub const STORE_HEADER: &str = "perch-build-store";

/// One line of a build's answer. The last one is `image`, `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum BuildEvent {
    /// A line that the build printed.
    Log {
        /// The line, without its end.
        line: String,
    },
    /// What is done now, in a few words: `step 3/7: RUN pip install`.
    Progress {
        /// The words.
        text: String,
    },
    /// An image was pushed.
    Image {
        /// Its reference in the platform's registry, with the tag.
        reference: String,
        /// The manifest's digest.
        digest: Digest,
        /// The size of its layers as pushed.
        size_bytes: u64,
    },
    /// All that was asked for is done (base images).
    Done,
    /// It did not succeed.
    Failed {
        /// Why.
        error: ApiError,
    },
}
