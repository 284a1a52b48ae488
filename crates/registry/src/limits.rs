//! Limits of the registry.
//!
//! Never a hidden number elsewhere.

use std::time::Duration;

/// The largest manifest.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most descriptors of one manifest or index.
pub const DESCRIPTORS_MAX: usize = 1000;
/// The most tags or referrers of one page.
pub const PAGE_ITEMS_MAX: usize = 1000;
/// The most tags of one repository.
pub const TAGS_MAX: usize = 10_000;
/// The most manifests that a list of referrers looks at.
pub const REFERRERS_SCAN_MAX: usize = 10_000;
/// The longest `Authorization` header.
pub const AUTHORIZATION_BYTES_MAX: usize = 16 * 1024;

/// Limits that an operator may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one blob.
    pub blob_bytes_max: u64,
    /// Uploads that are open at the same time, over all repositories.
    pub uploads_max: usize,
    /// Uploads that are open at the same time in one repository, so that no app takes them all.
    pub repository_uploads_max: usize,
    /// How long an upload may rest before it is thrown away.
    pub upload_idle: Duration,
    /// How long a blob without a manifest is kept: a push in progress (security list R9).
    pub unreferenced_grace: Duration,
    /// How long the sender of an upload may be silent within one request.
    pub body_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blob_bytes_max: 16 * 1024 * 1024 * 1024,
            uploads_max: 256,
            repository_uploads_max: 32,
            upload_idle: Duration::from_hours(1),
            unreferenced_grace: Duration::from_hours(24),
            body_idle: Duration::from_mins(2),
        }
    }
}
