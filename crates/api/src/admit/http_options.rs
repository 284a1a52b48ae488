//! `http_options` of a port (contract 4.1 and 4.3).
//!
//! Never lets an answer's framing be changed: fields of a connection belong to the edge.

use http::header::{HeaderName, HeaderValue};
use perch_types::service::{
    HEADERS_READ_TIMEOUT_S_MAX, HeaderChange, HttpOptions, IDLE_TIMEOUT_S_MAX, REPLAY_TTL_S_MIN,
    ReplayCacheRule,
};

use super::refuse;
use crate::reply::Failure;

/// Fields that a port changes in answers.
const FIELDS_MAX: usize = 32;
/// Values of one field.
const VALUES_MAX: usize = 16;
/// The longest value.
const VALUE_BYTES_MAX: usize = 1024;
/// Rules of sessions.
const RULES_MAX: usize = 8;
/// The longest prefix of a path, and the longest name of a session's cookie.
const RULE_BYTES_MAX: usize = 256;
/// The longest time for which a replay is remembered, in seconds: a day.
const REPLAY_TTL_S_MAX: u32 = 86_400;

/// Fields that frame an answer or end at the edge.
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

pub(super) fn check(path: &str, options: &HttpOptions) -> Result<(), Failure> {
    seconds(&format!("{path}.idle_timeout"), options.idle_timeout, IDLE_TIMEOUT_S_MAX)?;
    seconds(
        &format!("{path}.headers_read_timeout"),
        options.headers_read_timeout,
        HEADERS_READ_TIMEOUT_S_MAX,
    )?;
    if let Some(response) = &options.response {
        let count = response.headers.len();
        if count > FIELDS_MAX {
            return refuse(format!("{path}.response.headers: {count} are more than {FIELDS_MAX}"));
        }
        for (name, value) in &response.headers {
            field(&format!("{path}.response.headers.{name}"), name, value)?;
        }
    }
    let rules = options.replay_cache.len();
    if rules > RULES_MAX {
        return refuse(format!("{path}.replay_cache: {rules} are more than {RULES_MAX}"));
    }
    for (index, one) in options.replay_cache.iter().enumerate() {
        rule(&format!("{path}.replay_cache[{index}]"), one)?;
    }
    match &options.sticky {
        Some(sticky) => session_name(&format!("{path}.sticky.name"), &sticky.name),
        None => Ok(()),
    }
}

/// Refuses what is too long; 0 is what clients send for nothing.
fn seconds(path: &str, value: Option<u32>, max: u32) -> Result<(), Failure> {
    match value {
        Some(value) if value > max => refuse(format!("{path}: {value} is more than {max} seconds")),
        _ => Ok(()),
    }
}

fn field(path: &str, name: &str, value: &serde_json::Value) -> Result<(), Failure> {
    let Ok(known) = HeaderName::from_bytes(name.as_bytes()) else {
        return refuse(format!("{path}: is no name of a header field"));
    };
    if FRAMING.contains(&known.as_str()) {
        return refuse(format!("{path}: belongs to the connection and cannot be changed"));
    }
    let Some(change) = HeaderChange::of(value) else {
        return refuse(format!("{path}: allowed are false, a text, a list of texts"));
    };
    let HeaderChange::Set(values) = change else {
        return Ok(());
    };
    if values.len() > VALUES_MAX {
        return refuse(format!("{path}: {} are more than {VALUES_MAX}", values.len()));
    }
    let is_fine =
        |value: &&str| value.len() <= VALUE_BYTES_MAX && HeaderValue::from_str(value).is_ok();
    if !values.iter().all(is_fine) {
        return refuse(format!(
            "{path}: a value is at most {VALUE_BYTES_MAX} bytes without control characters"
        ));
    }
    Ok(())
}

fn session_name(path: &str, name: &str) -> Result<(), Failure> {
    // A cookie's name has the characters of a field's name too (RFC 6265, section 4.1.1).
    if name.len() > RULE_BYTES_MAX || HeaderName::from_bytes(name.as_bytes()).is_err() {
        return refuse(format!("{path}: is no name of a cookie or header field"));
    }
    Ok(())
}

fn rule(path: &str, rule: &ReplayCacheRule) -> Result<(), Failure> {
    if !rule.path_prefix.starts_with('/') || rule.path_prefix.len() > RULE_BYTES_MAX {
        return refuse(format!(
            "{path}.path_prefix: begins with / and is at most {RULE_BYTES_MAX} bytes"
        ));
    }
    session_name(&format!("{path}.name"), &rule.name)?;
    match rule.ttl_seconds {
        Some(ttl) if !(REPLAY_TTL_S_MIN..=REPLAY_TTL_S_MAX).contains(&ttl) => refuse(format!(
            "{path}.ttl_seconds: {ttl} is not {REPLAY_TTL_S_MIN} to {REPLAY_TTL_S_MAX}"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(options: serde_json::Value) -> Option<String> {
        let options: HttpOptions = serde_json::from_value(options).unwrap();
        check("o", &options).err().map(|failure| failure.error().error.clone())
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_its_path() {
        for (options, want) in [
            (json!({"idle_timeout": 3601}), "o.idle_timeout: 3601 is more than 3600 seconds"),
            (
                json!({"headers_read_timeout": 61}),
                "o.headers_read_timeout: 61 is more than 60 seconds",
            ),
            (
                json!({"response": {"headers": {"a b": "x"}}}),
                "o.response.headers.a b: is no name of a header field",
            ),
            (
                json!({"response": {"headers": {"Content-Length": "1"}}}),
                "o.response.headers.Content-Length: belongs to the connection and cannot be changed",
            ),
            (
                json!({"response": {"headers": {"x": true}}}),
                "o.response.headers.x: allowed are false, a text, a list of texts",
            ),
            (
                json!({"response": {"headers": {"x": ["a", "b\n"]}}}),
                "o.response.headers.x: a value is at most 1024 bytes without control characters",
            ),
            (
                json!({"replay_cache": [{"path_prefix": "a", "type": "cookie", "name": "s"}]}),
                "o.replay_cache[0].path_prefix: begins with / and is at most 256 bytes",
            ),
            (
                json!({"replay_cache": [{"path_prefix": "/", "type": "cookie", "name": ""}]}),
                "o.replay_cache[0].name: is no name of a cookie or header field",
            ),
            (
                json!({"replay_cache": [
                    {"path_prefix": "/", "type": "header", "name": "x", "ttl_seconds": 9}
                ]}),
                "o.replay_cache[0].ttl_seconds: 9 is not 10 to 86400",
            ),
            (
                json!({"sticky": {"type": "header", "name": "a b"}}),
                "o.sticky.name: is no name of a cookie or header field",
            ),
            (json!({"sticky": {}}), "o.sticky.name: is no name of a cookie or header field"),
        ] {
            let refused = refusal(options.clone()).unwrap_or_default();
            assert!(refused.contains(want), "{options}: {refused}");
        }
        assert_eq!(
            refusal(json!({
                "compress": true, "h2_backend": true, "idle_timeout": 600,
                "headers_read_timeout": 5,
                "response": {"pristine": true, "headers": {
                    "server": false, "x-a": "1", "link": ["</a>", "</b>"]}},
                "replay_cache": [{"path_prefix": "/a", "type": "cookie", "name": "s",
                    "ttl_seconds": 60, "allow_bypass": true}],
                "sticky": {"type": "cookie", "name": "sid"},
                "later": 1,
            })),
            None
        );
    }
}
