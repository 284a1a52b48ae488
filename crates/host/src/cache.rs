//! Which images that no machine names are deleted from the disk.
//!
//! Never deletes itself: a decision of sizes, uses and time.

use perch_types::image::Digest;

/// Bytes that images which no machine names may take, when nothing else was said.
pub const IMAGE_CACHE_BYTES: u64 = 10 * 1024 * 1024 * 1024;
/// How long an image stays after its last use even if the cache is over its cap, when nothing
/// else was said.
pub const IMAGE_KEPT_MS: u64 = 60 * 60 * 1000;

/// How much of what is not used stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePolicy {
    /// Bytes that may stay.
    pub bytes_max: u64,
    /// How long after its last use an image stays in any case, in milliseconds.
    pub kept_ms: u64,
}

impl CachePolicy {
    /// Nothing that is not used stays.
    pub const EMPTY: Self = Self { bytes_max: 0, kept_ms: 0 };
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self { bytes_max: IMAGE_CACHE_BYTES, kept_ms: IMAGE_KEPT_MS }
    }
}

/// An image on the disk that no machine names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unused {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    /// When a machine last named it, in milliseconds since 1970.
    pub(crate) used_unix_ms: i64,
}

/// Returns the images to delete, the one that was not used for the longest first: as many as
/// bring the cache under its cap, and none that is young. A last use in the future counts as now,
/// because the clock was set back.
#[must_use]
pub(crate) fn to_delete(
    mut unused: Vec<Unused>,
    policy: CachePolicy,
    now_unix_ms: i64,
) -> Vec<Unused> {
    let mut total: u64 = unused.iter().map(|image| image.size_bytes).sum();
    unused.sort_by(|a, b| (a.used_unix_ms, &a.digest).cmp(&(b.used_unix_ms, &b.digest)));
    unused
        .into_iter()
        .take_while(|image| {
            let age_ms = now_unix_ms.saturating_sub(image.used_unix_ms);
            let is_young = u64::try_from(age_ms).unwrap_or(0) < policy.kept_ms;
            if is_young || total <= policy.bytes_max {
                return false;
            }
            total = total.saturating_sub(image.size_bytes);
            true
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_use_goes_first_until_the_cap_is_kept_and_the_young_stay() {
        let now = 1_000_000;
        for (name, images, bytes_max, kept_ms, want) in [
            ("nothing there", vec![], 0, 0, vec![]),
            ("under the cap", vec![(1, 40, 0), (2, 60, 0)], 100, 0, vec![]),
            ("over the cap by one", vec![(1, 60, 500), (2, 60, 400)], 100, 0, vec![2]),
            (
                "down to the cap and no further",
                vec![(1, 50, 1), (2, 50, 2), (3, 50, 3)],
                50,
                0,
                vec![1, 2],
            ),
            ("no cap at all", vec![(1, 50, 1), (2, 50, 2)], 0, 0, vec![1, 2]),
            ("young", vec![(1, 50, 999_500), (2, 50, 900_000)], 0, 1_000, vec![2]),
            ("all young, over the cap", vec![(1, 500, 999_500)], 10, 1_000, vec![]),
            ("used in the future", vec![(1, 50, 2_000_000)], 0, 1, vec![]),
            ("of the same time, by digest", vec![(2, 50, 5), (1, 50, 5)], 50, 0, vec![1]),
        ] {
            let unused = images
                .into_iter()
                .map(|(byte, size_bytes, used_unix_ms)| Unused {
                    digest: Digest::from_sha256(&[byte; 32]),
                    size_bytes,
                    used_unix_ms,
                })
                .collect();
            let found: Vec<Digest> = to_delete(unused, CachePolicy { bytes_max, kept_ms }, now)
                .into_iter()
                .map(|image| image.digest)
                .collect();
            let want: Vec<Digest> =
                want.into_iter().map(|byte| Digest::from_sha256(&[byte; 32])).collect();
            assert_eq!(found, want, "{name}");
        }
    }
}
