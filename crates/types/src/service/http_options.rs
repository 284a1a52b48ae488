//! What the edge does with HTTP on one port (contract 4.1 and 4.3).
//!
//! Never applied here: the edge does, and only what was admitted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine_config::{Other, null_is_default};

/// The longest `idle_timeout`, in seconds.
pub const IDLE_TIMEOUT_S_MAX: u32 = 3_600;
/// The longest `headers_read_timeout`, in seconds: no client may take longer, whatever is asked.
pub const HEADERS_READ_TIMEOUT_S_MAX: u32 = 60;
/// The shortest time for which a replay is remembered, in seconds.
pub const REPLAY_TTL_S_MIN: u32 = 10;

/// How HTTP is handled on a port.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HttpOptions {
    /// Compress answers that the app has not, with brotli or gzip, when the client takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress: Option<bool>,
    /// Speak HTTP/2 without TLS to the program (prior knowledge), as gRPC needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub h2_backend: Option<bool>,
    /// For how many seconds nothing may move in the middle of an answer or over a tunnel; 60 when
    /// unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<u32>,
    /// How many seconds a client may take for the head of a request, from its first byte; 60 when
    /// unset, and at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_read_timeout: Option<u32>,
    /// What is changed in answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<ResponseOptions>,
    /// Which replays are remembered for a session.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub replay_cache: Vec<ReplayCacheRule>,
    /// Where the name of a session is found whose requests stay with one machine while that is
    /// ready and under its hard limit. Perch's own key: Fly.io has none like it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// Where the name of a session is found whose requests stay with one machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sticky {
    /// A cookie or a header field.
    #[serde(default, rename = "type")]
    pub kind: SessionKind,
    /// The name of it.
    #[serde(default)]
    pub name: String,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// What is changed in the answers of a port.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ResponseOptions {
    /// Header fields by name: `false` removes, a text sets, a list sets one field for each text.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub headers: BTreeMap<String, Value>,
    /// Leave out the fields that the edge adds: `Server`, `Via`, `Fly-Request-Id` and
    /// `Fly-Cache-Status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pristine: Option<bool>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// A rule by which a `fly-replay` is remembered for all requests of a session.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReplayCacheRule {
    /// Paths that begin so; of several rules the one with the longest is taken.
    #[serde(default)]
    pub path_prefix: String,
    /// For how many seconds it is remembered; at least 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// Where a session's name is found.
    #[serde(default, rename = "type")]
    pub kind: SessionKind,
    /// The name of that cookie or header field.
    #[serde(default)]
    pub name: String,
    /// Whether a client may ask for the app itself (`fly-replay-cache-control: skip`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_bypass: Option<bool>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// Where the name of a session is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionKind {
    /// In a cookie.
    #[default]
    Cookie,
    /// In a header field.
    Header,
}

/// What is done to one header field of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderChange<'a> {
    /// It is taken out.
    Remove,
    /// It has these values, whatever the app says.
    Set(Vec<&'a str>),
}

impl HeaderChange<'_> {
    /// Reads one value of [`ResponseOptions::headers`]; nothing when it is of no known form.
    #[must_use]
    pub fn of(value: &Value) -> Option<HeaderChange<'_>> {
        match value {
            Value::Bool(false) => Some(HeaderChange::Remove),
            Value::String(text) => Some(HeaderChange::Set(vec![text.as_str()])),
            Value::Array(items) => {
                let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                texts.map(HeaderChange::Set)
            }
            Value::Null | Value::Bool(true) | Value::Number(_) | Value::Object(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_removed_or_set_and_nothing_else() {
        for (value, want) in [
            (json!(false), Some(HeaderChange::Remove)),
            (json!("a"), Some(HeaderChange::Set(vec!["a"]))),
            (json!(["a", "b"]), Some(HeaderChange::Set(vec!["a", "b"]))),
            (json!([]), Some(HeaderChange::Set(Vec::new()))),
            (json!(true), None),
            (json!(1), None),
            (json!(["a", 1]), None),
            (json!({}), None),
            (json!(null), None),
        ] {
            assert_eq!(HeaderChange::of(&value), want, "{value}");
        }
    }

    #[test]
    fn what_was_read_is_written_as_it_was() {
        let text = json!({
            "compress": true,
            "h2_backend": false,
            "idle_timeout": 5,
            "response": {"headers": {"server": false, "x-a": ["1", "2"]}, "pristine": true},
            "replay_cache": [{"path_prefix": "/a/", "ttl_seconds": 60, "type": "header",
                "name": "x-session", "allow_bypass": true}],
            "sticky": {"type": "cookie", "name": "sid"},
            "from_the_future": 1,
        });
        let read: HttpOptions = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), text);
        let empty = json!({"response": null, "replay_cache": null, "compress": null});
        let read: HttpOptions = serde_json::from_value(empty).unwrap();
        assert_eq!(read, HttpOptions::default());
    }
}
