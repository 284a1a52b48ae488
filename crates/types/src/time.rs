//! Times and durations as the contract writes them.
//!
//! Never reads a clock.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A moment in UTC, written as RFC 3339 with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The first moment of 1970.
    pub const UNIX_EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// Makes a moment of milliseconds since 1970, clamped to what can be written.
    #[must_use]
    pub fn from_unix_ms(unix_ms: i64) -> Self {
        Self(jiff::Timestamp::from_millisecond(unix_ms).unwrap_or(jiff::Timestamp::MAX))
    }

    /// Returns milliseconds since 1970.
    #[must_use]
    pub fn unix_ms(self) -> i64 {
        self.0.as_millisecond()
    }

    /// Returns whole seconds since 1970.
    #[must_use]
    pub fn unix_s(self) -> i64 {
        self.0.as_second()
    }

    /// Returns its day in UTC.
    pub(crate) fn date(self) -> jiff::civil::Date {
        jiff::tz::Offset::UTC.to_datetime(self.0).date()
    }

    /// Returns it as HTTP writes dates (RFC 9110, section 5.6.7), such as
    /// `Tue, 14 Nov 2023 22:13:20 GMT`; empty where its year cannot be written so.
    #[must_use]
    pub fn http_date(self) -> String {
        let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
        printer.timestamp_to_rfc9110_string(&self.0).unwrap_or_default()
    }

    /// Returns the moment `duration` later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_unix_ms(self.unix_ms().saturating_add(ms))
    }
}

impl std::str::FromStr for Timestamp {
    type Err = NotATimestamp;

    fn from_str(text: &str) -> Result<Self, NotATimestamp> {
        text.parse().map(Self).map_err(|_| NotATimestamp)
    }
}

/// A text that is no moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a time such as 2026-01-31T12:00:00Z (RFC 3339)")]
pub struct NotATimestamp;

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        jiff::Timestamp::deserialize(deserializer).map(Self)
    }
}

/// A duration in Go's notation (`"1m30s"`); an integer is read as nanoseconds (contract,
/// conventions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GoDuration(Duration);

impl GoDuration {
    /// Wraps a duration.
    #[must_use]
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// Makes a duration of whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns it as a standard duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

/// A text that is no duration in Go's notation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration such as `15s`, `1m30s` or `250ms`")]
pub struct InvalidDuration(String);

impl std::str::FromStr for GoDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let bad = || InvalidDuration(text.chars().take(40).collect());
        if text == "0" {
            return Ok(Self::default());
        }
        let mut rest = text;
        let mut nanos: f64 = 0.0;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let (number, tail) = rest.split_at(digits);
            let unit_end =
                tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, next) = tail.split_at(unit_end);
            let scale = match unit {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(bad()),
            };
            nanos += number.parse::<f64>().map_err(|_| bad())? * scale;
            rest = next;
        }
        // 292 years, the longest duration that Go can hold.
        if !(0.0..=9.2e18).contains(&nanos) {
            return Err(bad());
        }
        Ok(Self(Duration::from_secs_f64(nanos / 1e9)))
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < 1_000_000_000 {
            return match () {
                () if nanos.is_multiple_of(1_000_000) => write!(f, "{}ms", nanos / 1_000_000),
                () if nanos.is_multiple_of(1_000) => write!(f, "{}µs", nanos / 1_000),
                () => write!(f, "{nanos}ns"),
            };
        }
        let (hours, minutes) = (self.0.as_secs() / 3600, self.0.as_secs() / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        let seconds = self.0.as_secs() % 60;
        match self.0.subsec_nanos() {
            0 => write!(f, "{seconds}s"),
            fraction => {
                let digits = format!("{fraction:09}");
                write!(f, "{seconds}.{}s", digits.trim_end_matches('0'))
            }
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNanoseconds;

        impl Visitor<'_> for TextOrNanoseconds {
            type Value = GoDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"15s\", or nanoseconds")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
                Ok(GoDuration(Duration::from_nanos(nanos)))
            }

            fn visit_i64<E: de::Error>(self, nanos: i64) -> Result<GoDuration, E> {
                u64::try_from(nanos)
                    .map(|nanos| GoDuration(Duration::from_nanos(nanos)))
                    .map_err(|_| E::custom("a duration is not negative"))
            }
        }

        deserializer.deserialize_any(TextOrNanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write_gos_notation() {
        for (text, ns, written) in [
            ("15s", 15_000_000_000_u128, "15s"),
            ("1m30s", 90_000_000_000, "1m30s"),
            ("1h", 3_600_000_000_000, "1h0m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("250ms", 250_000_000, "250ms"),
            ("0", 0, "0s"),
        ] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.get().as_nanos(), ns, "{text}");
            assert_eq!(parsed.to_string(), written);
        }
        for bad in ["", "5", "s", "5 s", "-5s", "5x", "1..5s"] {
            assert!(bad.parse::<GoDuration>().is_err(), "{bad}");
        }
        let nanos: GoDuration = serde_json::from_str("1000000000").unwrap();
        assert_eq!(nanos, GoDuration::from_secs(1));
        serde_json::from_str::<GoDuration>("-1").unwrap_err();
    }

    #[test]
    fn a_timestamp_keeps_its_milliseconds() {
        let moment = Timestamp::from_unix_ms(1_700_000_000_123);
        let json = serde_json::to_string(&moment).unwrap();
        assert_eq!(json, "\"2023-11-14T22:13:20.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), moment);
        assert_eq!(moment.http_date(), "Tue, 14 Nov 2023 22:13:20 GMT");
    }
}
