//! Header fields that end at the edge, and those that it adds.
//!
//! Never lets a platform field from outside through: it is overwritten or removed.

use std::net::IpAddr;

use http::header::{
    CONNECTION, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method};

/// Fields of one connection, never forwarded (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] =
    [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");
const CLIENT_IP: HeaderName = HeaderName::from_static("fly-client-ip");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("fly-forwarded-port");
const REGION: HeaderName = HeaderName::from_static("fly-region");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_SSL: HeaderName = HeaderName::from_static("x-forwarded-ssl");
const VIA: HeaderName = HeaderName::from_static("via");

/// Fields that only the platform may set (contract 4.2).
const PLATFORM: [HeaderName; 4] = [
    HeaderName::from_static("fly-replay-src"),
    HeaderName::from_static("fly-replay-failed"),
    HeaderName::from_static("fly-preferred-instance-unavailable"),
    HeaderName::from_static("fly-replay-cache-status"),
];

/// Who asked, as the edge saw it. Values are made once where they hold for longer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) client: &'a HeaderValue,
    pub(crate) port: &'a HeaderValue,
    pub(crate) region: &'a HeaderValue,
    pub(crate) request_id: &'a HeaderValue,
    /// Whether they asked under TLS.
    pub(crate) is_secure: bool,
}

/// Returns a client's address as the app is told it: IPv4 never in IPv6's dress.
pub(crate) fn client_value(client: IpAddr) -> HeaderValue {
    let text = client.to_canonical().to_string();
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// Returns the protocol that a request wants to switch to, such as `websocket`.
///
/// Only a GET without a body can: a body before the switch would be in doubt (RFC 9110, section
/// 7.8). Other versions of HTTP are no such protocol: requests inside would pass unseen.
pub(crate) fn upgrade(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut asked = headers.get_all(UPGRADE).iter();
    let (Some(protocol), None) = (asked.next(), asked.next()) else {
        return None;
    };
    let wants = connection_tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let has_body = headers.contains_key(http::header::CONTENT_LENGTH)
        || headers.contains_key(TRANSFER_ENCODING);
    let text = protocol.to_str().ok()?;
    let is_http = text.split(',').any(|name| {
        let name = name.trim();
        let family = name.split('/').next().unwrap_or_default();
        ["h2c", "h2", "http", "tls"].iter().any(|other| family.eq_ignore_ascii_case(other))
    });
    (wants && *method == Method::GET && !has_body && !is_http).then(|| protocol.clone())
}

/// Returns whether the protocol of an answer is among those that were asked for.
pub(crate) fn offers(asked: &HeaderValue, protocol: &HeaderValue) -> bool {
    let (Ok(asked), Ok(protocol)) = (asked.to_str(), protocol.to_str()) else {
        return false;
    };
    asked.split(',').any(|name| name.trim().eq_ignore_ascii_case(protocol.trim()))
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Removes the fields of one connection, and those that `Connection` lists.
pub(crate) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = connection_tokens(headers)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            // Framing and the host belong to the message; no client may take them off.
            .filter(|name| {
                *name != http::header::HOST
                    && *name != http::header::CONTENT_LENGTH
                    && *name != TRANSFER_ENCODING
            })
            .collect();
        for name in listed {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP.iter().chain([&KEEP_ALIVE, &PROXY_CONNECTION]) {
        headers.remove(name);
    }
}

/// Sets what the app is told of the request (contract 4.2).
pub(crate) fn tell_app(headers: &mut HeaderMap, seen: &Seen<'_>) {
    for name in &PLATFORM {
        headers.remove(name);
    }
    let forwarded_for = forwarded_for(headers, seen.client);
    headers.insert(CLIENT_IP, seen.client.clone());
    headers.insert(X_FORWARDED_FOR, forwarded_for);
    headers.insert(FORWARDED_PORT, seen.port.clone());
    headers.insert(REGION, seen.region.clone());
    headers.insert(REQUEST_ID, seen.request_id.clone());
    let (proto, ssl) = if seen.is_secure { ("https", "on") } else { ("http", "off") };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    headers.insert(X_FORWARDED_SSL, HeaderValue::from_static(ssl));
    // The client's own value is kept (contract 4.2).
    if !headers.contains_key(&X_FORWARDED_PORT) {
        headers.insert(X_FORWARDED_PORT, seen.port.clone());
    }
    headers.append(VIA, HeaderValue::from_static("1.1 perch"));
}

/// Returns all that was known of the way here, in its order, and the client at its end.
fn forwarded_for(headers: &HeaderMap, client: &HeaderValue) -> HeaderValue {
    if !headers.contains_key(&X_FORWARDED_FOR) {
        return client.clone();
    }
    let mut all = Vec::new();
    for known in headers.get_all(&X_FORWARDED_FOR) {
        all.extend_from_slice(known.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(client.as_bytes());
    HeaderValue::try_from(all).unwrap_or_else(|_| client.clone())
}

/// Sets what the client is told of the answer.
pub(crate) fn tell_client(headers: &mut HeaderMap, request_id: HeaderValue) {
    headers.insert(REQUEST_ID, request_id);
    headers.append(VIA, HeaderValue::from_static("1.1 perch"));
    headers.insert(
        http::header::SERVER,
        HeaderValue::from_static(concat!("Perch/", env!("CARGO_PKG_VERSION"))),
    );
}

/// Puts back what a switch of protocols needs on the way on.
pub(crate) fn restore_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn e2_fields_of_a_connection_end_here_and_listed_ones_too() {
        let mut headers = map(&[
            ("connection", "close, X-Secret, Host, content-length"),
            ("x-secret", "1"),
            ("host", "a"),
            ("content-length", "0"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("proxy-connection", "x"),
            ("accept", "*/*"),
        ]);
        strip(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "content-length", "host"]);
    }

    #[test]
    fn e2_platform_fields_from_outside_are_overwritten() {
        let mut headers = map(&[
            ("fly-client-ip", "6.6.6.6"),
            ("fly-region", "evil"),
            ("fly-replay-src", "instance=x"),
            ("fly-request-id", "mine"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "8443"),
        ]);
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("5.6.7.8"));
        let seen = Seen {
            client: &client_value("::ffff:10.0.0.1".parse().unwrap()),
            port: &HeaderValue::from(80_u16),
            region: &HeaderValue::from_static("ams"),
            request_id: &HeaderValue::from_static("01A-ams"),
            is_secure: false,
        };
        tell_app(&mut headers, &seen);
        let get = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(get("fly-client-ip"), Some("10.0.0.1"));
        assert_eq!(get("fly-region"), Some("ams"));
        assert_eq!(get("fly-replay-src"), None);
        assert_eq!(get("fly-request-id"), Some("01A-ams"));
        assert_eq!(get("x-forwarded-for"), Some("1.2.3.4, 5.6.7.8, 10.0.0.1"));
        assert_eq!(get("x-forwarded-proto"), Some("http"));
        assert_eq!(get("x-forwarded-ssl"), Some("off"));
        assert_eq!(get("x-forwarded-port"), Some("8443"));
        tell_app(&mut headers, &Seen { is_secure: true, ..seen });
        let get = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(get("x-forwarded-proto"), Some("https"));
        assert_eq!(get("x-forwarded-ssl"), Some("on"));
    }

    #[test]
    fn only_a_get_without_a_body_can_switch_protocols() {
        let fields = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert!(upgrade(&Method::GET, &map(&fields)).is_some());
        assert!(upgrade(&Method::POST, &map(&fields)).is_none());
        let with_body = [fields[0], fields[1], ("content-length", "3")];
        assert!(upgrade(&Method::GET, &map(&with_body)).is_none());
        assert!(upgrade(&Method::GET, &map(&fields[1..])).is_none());
        for other in ["h2c", "websocket, HTTP/2.0", "TLS/1.3"] {
            assert!(upgrade(&Method::GET, &map(&[fields[0], ("upgrade", other)])).is_none());
        }
        let asked = HeaderValue::from_static("websocket, raw");
        assert!(offers(&asked, &HeaderValue::from_static("RAW")));
        assert!(!offers(&asked, &HeaderValue::from_static("h2c")));
    }
}
