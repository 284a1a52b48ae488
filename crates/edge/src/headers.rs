//! Header fields that end at the edge, and those that it adds.
//!
//! Never lets a platform field from outside through: it is overwritten or removed.

use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SERVER, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE, VIA,
};
use http::{HeaderMap, Method, Version};
use perch_types::service::{HeaderChange, ResponseOptions};

/// Fields of one connection, never forwarded (RFC 9110, section 7.6.1).
static HOP_BY_HOP: [HeaderName; 6] =
    [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");
pub(crate) const REPLAY_SRC: HeaderName = HeaderName::from_static("fly-replay-src");
pub(crate) const REPLAY_FAILED: HeaderName = HeaderName::from_static("fly-replay-failed");
pub(crate) const REPLAY_CACHE_STATUS: HeaderName =
    HeaderName::from_static("fly-replay-cache-status");
pub(crate) const PREFERRED_UNAVAILABLE: HeaderName =
    HeaderName::from_static("fly-preferred-instance-unavailable");
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("fly-cache-status");
const CLIENT_IP: HeaderName = HeaderName::from_static("fly-client-ip");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("fly-forwarded-port");
const REGION: HeaderName = HeaderName::from_static("fly-region");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_SSL: HeaderName = HeaderName::from_static("x-forwarded-ssl");

/// What one edge tells another of a request, and of its answer; no client's and no app's.
pub(crate) const HOP: HeaderName = HeaderName::from_static("perch-hop");

/// Fields of a request that only the platform may set, and not to each (contract 4.2).
static PLATFORM: [HeaderName; 5] =
    [REPLAY_SRC, REPLAY_FAILED, PREFERRED_UNAVAILABLE, REPLAY_CACHE_STATUS, HOP];
/// Fields of every request that say what the edge saw.
static SEEN: [HeaderName; 8] = [
    REQUEST_ID,
    CLIENT_IP,
    FORWARDED_PORT,
    REGION,
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_PORT,
    X_FORWARDED_SSL,
];
/// Fields of an answer that are for the edge, or that only it may set.
static FROM_APP: [HeaderName; 5] = [
    HeaderName::from_static("fly-replay"),
    HeaderName::from_static("fly-replay-cache"),
    HeaderName::from_static("fly-replay-cache-ttl-secs"),
    HeaderName::from_static("fly-replay-cache-allow-bypass"),
    CACHE_STATUS,
];

/// What becomes of a field of a request or an answer that is passed on, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on.
    Kept,
    /// It is of one connection, and says which others are.
    Connection,
    /// It is of one connection.
    Hop,
    /// It goes on, with the client at its end.
    ForwardedFor,
    /// It goes on; the edge says it only where nobody has.
    ForwardedPort,
    /// The edge says it, or nobody.
    Edges,
}

/// Returns what becomes of a field by its name, in whatever case that is written.
pub(crate) fn fate(name: &[u8]) -> Fate {
    let is = |known: &HeaderName| name.eq_ignore_ascii_case(known.as_str().as_bytes());
    if is(&CONNECTION) {
        Fate::Connection
    } else if HOP_BY_HOP.iter().any(is) || is(&KEEP_ALIVE) || is(&PROXY_CONNECTION) {
        Fate::Hop
    } else if is(&X_FORWARDED_FOR) {
        Fate::ForwardedFor
    } else if is(&X_FORWARDED_PORT) {
        Fate::ForwardedPort
    } else if PLATFORM.iter().chain(&SEEN).any(is) {
        Fate::Edges
    } else {
        Fate::Kept
    }
}

/// Returns whether a field's name is one of the platform's, in whatever case it is written: of
/// requests, of answers, or between edges.
pub(crate) fn is_platforms(name: &[u8]) -> bool {
    let begins = |prefix: &[u8]| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    begins(b"fly-") || name.eq_ignore_ascii_case(HOP.as_str().as_bytes())
}

/// Who asked, as the edge saw it. Values are made once where they hold for longer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) client: &'a HeaderValue,
    pub(crate) port: &'a HeaderValue,
    pub(crate) region: &'a HeaderValue,
    pub(crate) request_id: &'a HeaderValue,
    /// Whether the request came over TLS.
    pub(crate) over_tls: bool,
    /// The version of HTTP that the client spoke.
    pub(crate) version: Version,
}

static HTTP: HeaderValue = HeaderValue::from_static("http");
static HTTPS: HeaderValue = HeaderValue::from_static("https");
static ON: HeaderValue = HeaderValue::from_static("on");
static OFF: HeaderValue = HeaderValue::from_static("off");

impl Seen<'_> {
    /// Returns what the app is told whatever the client says, each once.
    pub(crate) const fn said(&self) -> [(HeaderName, &HeaderValue); 6] {
        let (proto, ssl) = if self.over_tls { (&HTTPS, &ON) } else { (&HTTP, &OFF) };
        [
            (CLIENT_IP, self.client),
            (FORWARDED_PORT, self.port),
            (REGION, self.region),
            (REQUEST_ID, self.request_id),
            (X_FORWARDED_PROTO, proto),
            (X_FORWARDED_SSL, ssl),
        ]
    }
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
    let has_body = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
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
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING)
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
    remove_lookalikes(headers);
    let forwarded_for = forwarded_for(headers, seen.client);
    headers.insert(X_FORWARDED_FOR, forwarded_for);
    for (name, value) in seen.said() {
        headers.insert(name, value.clone());
    }
    // The client's own value is kept (contract 4.2).
    if !headers.contains_key(&X_FORWARDED_PORT) {
        headers.insert(X_FORWARDED_PORT, seen.port.clone());
    }
    headers.append(VIA, via(seen.version));
}

/// Removes fields that programs which write `-` as `_` could take for the edge's own: CGI and its
/// kin read `Fly_Client_Ip` under the same name as `Fly-Client-Ip`.
fn remove_lookalikes(headers: &mut HeaderMap) {
    let is_lookalike = |name: &&HeaderName| {
        name.as_str().contains('_') && {
            let dashed = name.as_str().replace('_', "-");
            PLATFORM.iter().chain(&SEEN).any(|ours| ours.as_str() == dashed)
        }
    };
    let found: Vec<HeaderName> = headers.keys().filter(is_lookalike).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Returns whether a field of a request is the edge's to set: it frames the request, names its host
/// or says what the edge saw.
pub(crate) fn is_edges(name: &HeaderName) -> bool {
    let dashed = name.as_str().replace('_', "-");
    let is_ours = PLATFORM.iter().chain(&SEEN).any(|ours| ours.as_str() == dashed);
    is_ours
        || HOP_BY_HOP.contains(name)
        || [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION].contains(name)
}

/// Removes from the end of a request's body what may not stand there (RFC 9110, section 6.5.1), and
/// what only the platform may say.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    strip(trailers);
    for name in PLATFORM.iter().chain(&SEEN) {
        trailers.remove(name);
    }
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING, HOST, AUTHORIZATION, COOKIE] {
        trailers.remove(name);
    }
    remove_lookalikes(trailers);
}

/// Removes the same from the end of an answer's body, with all that is the platform's to say.
pub(crate) fn strip_answer_trailers(trailers: &mut HeaderMap) {
    strip(trailers);
    let is_platforms = |name: &&HeaderName| name.as_str().starts_with("fly-");
    let found: Vec<HeaderName> = trailers.keys().filter(is_platforms).cloned().collect();
    for name in found {
        trailers.remove(name);
    }
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING, HOST, SERVER, VIA, SET_COOKIE] {
        trailers.remove(name);
    }
}

/// Returns whether the client takes fields behind a body (RFC 9110, section 10.1.4).
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|word| word.trim() == "trailers")
}

/// Returns how the edge names itself to whoever comes next (RFC 9110, section 7.6.3).
pub(crate) fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_2 => "2 perch",
        Version::HTTP_10 => "1.0 perch",
        _ => "1.1 perch",
    })
}

/// Returns what the edge calls itself in answers.
pub(crate) fn server() -> HeaderValue {
    HeaderValue::from_static(concat!("Perch/", env!("CARGO_PKG_VERSION")))
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

/// Removes what an app says to the edge, or in its name.
pub(crate) fn strip_answer(headers: &mut HeaderMap) {
    for name in &FROM_APP {
        headers.remove(name);
    }
}

/// Sets what the client is told of the answer, which came with `version`.
pub(crate) fn tell_client(headers: &mut HeaderMap, request_id: HeaderValue, version: Version) {
    headers.insert(REQUEST_ID, request_id);
    headers.append(VIA, via(version));
    headers.insert(SERVER, server());
}

/// Carries out what a port says of its answers' fields. What frames an answer is left.
pub(crate) fn change(headers: &mut HeaderMap, options: &ResponseOptions) {
    for (name, value) in &options.headers {
        let (Ok(name), Some(change)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderChange::of(value))
        else {
            continue;
        };
        let frames = [CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name);
        if frames || HOP_BY_HOP.contains(&name) {
            continue;
        }
        headers.remove(&name);
        if let HeaderChange::Set(values) = change {
            for value in values {
                if let Ok(value) = HeaderValue::from_str(value) {
                    headers.append(&name, value);
                }
            }
        }
    }
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
    fn a_name_says_what_becomes_of_its_field_however_it_is_written() {
        for (name, want) in [
            ("Accept", Fate::Kept),
            ("host", Fate::Kept),
            ("Via", Fate::Kept),
            ("CONNECTION", Fate::Connection),
            ("Keep-Alive", Fate::Hop),
            ("proxy-connection", Fate::Hop),
            ("TE", Fate::Hop),
            ("X-Forwarded-For", Fate::ForwardedFor),
            ("X-Forwarded-Port", Fate::ForwardedPort),
            ("x-forwarded-Proto", Fate::Edges),
            ("Fly-Client-IP", Fate::Edges),
            ("Perch-Hop", Fate::Edges),
            ("x-forwarded", Fate::Kept),
        ] {
            assert_eq!(fate(name.as_bytes()), want, "{name}");
        }
        for (name, want) in [
            ("Fly-Any", true),
            ("FLY-", true),
            ("perch-HOP", true),
            ("fly", false),
            ("x-fly-", false),
        ] {
            assert_eq!(is_platforms(name.as_bytes()), want, "{name}");
        }
        // What strips a map and what looks at a name agree.
        for name in HOP_BY_HOP.iter().chain([&KEEP_ALIVE, &PROXY_CONNECTION]) {
            assert!(
                matches!(fate(name.as_str().as_bytes()), Fate::Connection | Fate::Hop),
                "{name}"
            );
        }
        for name in PLATFORM.iter().chain(&FROM_APP) {
            assert!(is_platforms(name.as_str().as_bytes()), "{name}");
        }
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
            ("x-forwarded-ssl", "on"),
            ("fly_client_ip", "6.6.6.6"),
            ("x_forwarded_proto", "https"),
            ("fly-replay_failed", "reason=x"),
            ("my_field", "stays"),
            ("via", "1.1 other"),
            ("traceparent", "00-1-2-01"),
        ]);
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("5.6.7.8"));
        let seen = Seen {
            client: &client_value("::ffff:10.0.0.1".parse().unwrap()),
            port: &HeaderValue::from(80_u16),
            region: &HeaderValue::from_static("ams"),
            request_id: &HeaderValue::from_static("01A-ams"),
            over_tls: false,
            version: Version::HTTP_11,
        };
        let mut secure = headers.clone();
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
        assert_eq!(get("fly-forwarded-port"), Some("80"));
        assert_eq!(get("my_field"), Some("stays"));
        assert_eq!(get("traceparent"), Some("00-1-2-01"));
        for gone in ["fly_client_ip", "x_forwarded_proto", "fly-replay_failed"] {
            assert_eq!(get(gone), None, "{gone}");
        }
        let all: Vec<_> = headers.get_all(VIA).iter().collect();
        assert_eq!(all, ["1.1 other", "1.1 perch"]);
        tell_app(&mut secure, &Seen { over_tls: true, version: Version::HTTP_2, ..seen });
        let get = |name: &str| secure.get(name).map(|value| value.to_str().unwrap());
        assert_eq!((get("x-forwarded-proto"), get("x-forwarded-ssl")), (Some("https"), Some("on")));
        assert_eq!(secure.get_all(VIA).iter().next_back().unwrap(), "2 perch");
    }

    #[test]
    fn e2_what_an_app_says_to_the_edge_ends_there() {
        let mut headers = map(&[
            ("fly-replay", "region=ams"),
            ("fly-replay-cache", "/a/*"),
            ("fly-replay-cache-ttl-secs", "60"),
            ("fly-replay-cache-allow-bypass", "yes"),
            ("fly-cache-status", "HIT"),
            ("x-app", "1"),
        ]);
        strip_answer(&mut headers);
        let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-app"]);
    }

    #[test]
    fn e2_the_end_of_a_body_says_nothing_in_the_platforms_name() {
        let mut trailers = map(&[
            ("fly-client-ip", "6.6.6.6"),
            ("fly-replay-src", "instance=x"),
            ("content-length", "3"),
            ("host", "other"),
            ("cookie", "a=b"),
            ("x-checksum", "1"),
        ]);
        strip_trailers(&mut trailers);
        let names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-checksum"]);
    }

    #[test]
    fn e2_the_end_of_an_answer_says_nothing_in_the_platforms_name_either() {
        let mut trailers = map(&[
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("fly-request-id", "mine"),
            ("fly-replay", "app=other"),
            ("set-cookie", "a=b"),
            ("grpc-status", "0"),
        ]);
        strip_answer_trailers(&mut trailers);
        let names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["grpc-status"]);
    }

    #[test]
    fn a_port_removes_sets_and_repeats_fields_but_never_those_of_the_framing() {
        let options: ResponseOptions = serde_json::from_value(serde_json::json!({"headers": {
            "Server": false, "x-one": "new", "link": ["</a>", "</b>"], "content-length": "9",
            "transfer-encoding": false, "connection": "close", "bad name": "x", "x-odd": 3,
        }}))
        .unwrap();
        let mut headers = map(&[
            ("server", "app"),
            ("x-one", "old"),
            ("content-length", "2"),
            ("transfer-encoding", "chunked"),
            ("x-odd", "kept"),
        ]);
        change(&mut headers, &options);
        let get = |name: &str| -> Vec<&str> {
            headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
        };
        assert_eq!(get("server"), Vec::<&str>::new());
        assert_eq!(get("x-one"), ["new"]);
        assert_eq!(get("link"), ["</a>", "</b>"]);
        assert_eq!(get("content-length"), ["2"]);
        assert_eq!(get("transfer-encoding"), ["chunked"]);
        assert_eq!(get("connection"), Vec::<&str>::new());
        assert_eq!(get("x-odd"), ["kept"]);
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
