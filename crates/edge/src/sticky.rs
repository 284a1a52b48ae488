//! Which session a request belongs to, where its port lets sessions stay with a machine
//! (`http_options.sticky`).
//!
//! Never remembers anything: the same words lead to the same machine on every edge. Pure.

use http::HeaderMap;
use perch_types::service::{HttpOptions, SessionKind};

use crate::replay_cache::cookie;

/// Returns a number of the session that a request names; nothing when it names none.
pub(crate) fn session(options: Option<&HttpOptions>, headers: &HeaderMap) -> Option<u64> {
    let sticky = options?.sticky.as_ref()?;
    let name = match sticky.kind {
        SessionKind::Cookie => cookie(headers, &sticky.name)?,
        SessionKind::Header => headers.get(&sticky.name)?.to_str().ok()?,
    };
    (!name.is_empty()).then(|| hash(name))
}

/// FNV-1a: nothing but an even spread is asked of it, and the same in every version.
fn hash(text: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(options: &str, name: &'static str, value: &'static str) -> Option<u64> {
        let options: HttpOptions = serde_json::from_str(options).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        session(Some(&options), &headers)
    }

    #[test]
    fn a_session_is_what_its_cookie_or_field_says_and_nothing_else() {
        const COOKIE: &str = r#"{"sticky":{"type":"cookie","name":"sid"}}"#;
        const HEADER: &str = r#"{"sticky":{"type":"header","name":"X-User"}}"#;
        let want = Some(hash("abc"));
        for (options, name, value, want) in [
            (COOKIE, "cookie", "a=1; sid=abc; b=2", want),
            (COOKIE, "cookie", "sid=", None),
            (COOKIE, "cookie", "xsid=abc", None),
            (COOKIE, "x-user", "abc", None),
            (HEADER, "x-user", "abc", want),
            (HEADER, "x-user", "", None),
            (HEADER, "cookie", "sid=abc", None),
            ("{}", "cookie", "sid=abc", None),
        ] {
            assert_eq!(of(options, name, value), want, "{options} {name}: {value}");
        }
        assert_ne!(hash("abc"), hash("abd"));
        // FNV's own vector: it may not change, or all sessions move at an upgrade.
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(session(None, &HeaderMap::new()), None);
    }
}
