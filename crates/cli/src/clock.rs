//! The clock and the randomness of the CLI.
//!
//! Never used for a decision: only names of builds and ages come of it.

use perch_types::Timestamp;
use perch_types::id::ulid;

/// Returns the wall clock.
#[expect(clippy::disallowed_methods, reason = "the one place where the CLI reads the clock")]
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ms = since.map(|it| it.as_millis()).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(ms).unwrap_or_default())
}

/// Returns a new ULID: sorts by time, and no two are alike.
///
/// # Errors
/// When the system has no randomness.
pub(crate) fn new_ulid() -> Result<String, getrandom::Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    let ms = u64::try_from(now().unix_ms()).unwrap_or_default();
    Ok(ulid(ms, u128::from_be_bytes(random)))
}

/// Returns how long ago a moment was, in one unit: `12s`, `5m`, `3h`, `2d`.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.unix_s().saturating_sub(then.unix_s()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let now = Timestamp::from_unix_ms(1_000_000_000_000);
        let ago = |s: i64| age(Timestamp::from_unix_ms(1_000_000_000_000 - s * 1000), now);
        assert_eq!(
            [ago(-5), ago(119), ago(120), ago(7200), ago(172_800)],
            ["0s", "119s", "2m", "2h", "2d"]
        );
    }

    #[test]
    fn ulids_differ() {
        assert_ne!(new_ulid().unwrap(), new_ulid().unwrap());
    }
}
