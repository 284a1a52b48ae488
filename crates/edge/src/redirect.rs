//! From plain HTTP to HTTPS (contract 4.1, `force_https`), or because an app is at HTTPS alone.
//!
//! Never to another host than the one that was asked for. Pure.

use http::header::{CONNECTION, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Response, StatusCode};
use perch_types::service::{Handler, Service};

use crate::body::ReplyBody;

/// Returns whether a service wants requests at a public port over TLS alone.
pub(crate) fn is_forced(service: &Service, public_port: u16) -> bool {
    service.ports.iter().any(|port| {
        port.port == Some(public_port)
            && port.force_https == Some(true)
            && port.handlers.contains(&Handler::Http)
    })
}

/// Sends the client to the same place over TLS; nothing when that has no address.
pub(crate) fn to_https(host: &str, request: &Parts) -> Option<Response<ReplyBody>> {
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    // `*` of an OPTIONS request is no path.
    let path = if path.starts_with('/') { path } else { "/" };
    let location = HeaderValue::try_from(format!("https://{host}{path}")).ok()?;
    let mut response = Response::new(ReplyBody::page(String::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, location);
    // Nothing more is to come this way.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ports: &str) -> Service {
        serde_json::from_str(&format!(r#"{{"internal_port":1,"ports":{ports}}}"#)).unwrap()
    }

    #[test]
    fn only_a_port_that_says_so_and_speaks_http_redirects() {
        for (ports, want) in [
            (r#"[{"port":80,"handlers":["http"],"force_https":true}]"#, true),
            (r#"[{"port":80,"handlers":["http"],"force_https":false}]"#, false),
            (r#"[{"port":80,"handlers":["http"]}]"#, false),
            (r#"[{"port":80,"handlers":["tls"],"force_https":true}]"#, false),
            (r#"[{"port":8080,"handlers":["http"],"force_https":true}]"#, false),
            ("[]", false),
        ] {
            assert_eq!(is_forced(&service(ports), 80), want, "{ports}");
        }
    }

    #[test]
    fn path_and_query_stay_and_the_host_is_the_one_that_was_judged() {
        for (target, want) in [
            ("/a/b?c=d&e", "https://web.example/a/b?c=d&e"),
            ("/", "https://web.example/"),
            ("//evil.example/x", "https://web.example//evil.example/x"),
            ("http://web.example/a", "https://web.example/a"),
            ("*", "https://web.example/"),
        ] {
            let request = http::Request::builder().uri(target).body(()).unwrap();
            let response = to_https("web.example", &request.into_parts().0).unwrap();
            assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
            assert_eq!(response.headers()[LOCATION], want, "{target}");
        }
    }
}
