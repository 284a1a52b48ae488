//! Limits on what a registry or an image may make a host do (security list R7).
//!
//! Never a hidden number elsewhere: whoever reads bytes of an image takes its limit from here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The largest manifest or index, as the distribution specification advises.
pub const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The largest image configuration.
pub const CONFIG_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The largest body of an error or of a token answer that is read.
pub const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// The most redirects of one request.
pub const REDIRECTS_MAX: usize = 5;
/// The most entries of an index that are looked at.
pub const INDEX_ENTRIES_MAX: usize = 1000;
/// How many layers of one image are fetched at the same time.
pub const CONCURRENT_LAYERS_MAX: usize = 3;
/// How many images are pulled at the same time from registries that the operator named, and as
/// many again from all others: a slow registry of a user's choosing does not hold up the rest.
pub const CONCURRENT_PULLS_MAX: usize = 4;
/// How many times one blob is asked for before the pull gives up.
pub const BLOB_TRIES_MAX: u32 = 5;
/// How long a pull waits before it asks for a blob again; doubles with every try.
pub const BLOB_RETRY_WAIT: Duration = Duration::from_millis(200);
/// How long a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a registry may be silent in the middle of an answer.
pub const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a small answer (manifest, token) may take altogether.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest name of a file, as Linux has it.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest path, as Linux has it.
pub const PATH_BYTES_MAX: usize = 4095;
/// The largest owner id that an image may use.
pub const OWNER_ID_MAX: u64 = 65_535;
/// The largest value of an extended attribute, as Linux has it.
pub const XATTR_BYTES_MAX: usize = 64 * 1024;
/// The most attributes of one file.
pub const XATTRS_PER_ENTRY_MAX: usize = 64;
/// The most bytes of extended headers before one entry.
pub const EXTENDED_HEADER_BYTES_MAX: u64 = 1024 * 1024;

/// Limits that an operator may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Layers of one image.
    pub layers_max: usize,
    /// Bytes of all layers as stored in the registry.
    pub compressed_bytes_max: u64,
    /// Bytes of all layers unpacked.
    pub uncompressed_bytes_max: u64,
    /// Unpacked bytes for each packed byte of a layer, over [`Self::ratio_free_bytes`].
    pub ratio_max: u64,
    /// Unpacked bytes of a layer up to which the ratio is not looked at.
    pub ratio_free_bytes: u64,
    /// Entries of all layers.
    pub entries_max: u64,
    /// Folders above a file.
    pub depth_max: usize,
    /// How long unpacking and writing the file system may take.
    pub unpack_timeout: Duration,
    /// How long fetching an image may take.
    pub pull_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers_max: 128,
            compressed_bytes_max: 16 * 1024 * 1024 * 1024,
            uncompressed_bytes_max: 48 * 1024 * 1024 * 1024,
            ratio_max: 250,
            ratio_free_bytes: 256 * 1024 * 1024,
            entries_max: 2_000_000,
            depth_max: 128,
            unpack_timeout: Duration::from_mins(15),
            pull_timeout: Duration::from_mins(30),
        }
    }
}
