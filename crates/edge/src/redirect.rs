//! From plain HTTP to HTTPS (contract 4.1, `force_https`), or because an app is at HTTPS alone.
//!
//! Never to another host than the one that was asked for, and to another port only where HTTPS is
//! not at its usual one. Pure.

use http::header::{CONNECTION, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Response, StatusCode};
use perch_types::ports::PUBLIC_HTTPS_PORT;
use perch_types::service::{Handler, Service};

use crate::body::ReplyBody;

/// Returns whether a service wants requests at a public port over TLS alone.
pub(crate) fn is_forced(service: &Service, public_port: u16) -> bool {
    service.http_port(public_port).is_some_and(|port| port.force_https == Some(true))
}

/// Returns at which port a service is spoken to over TLS: where all apps are, unless it only has
/// another.
pub(crate) fn secure_port(service: &Service, of_all: u16) -> u16 {
    if service.http_port(PUBLIC_HTTPS_PORT).is_some() {
        return of_all;
    }
    let mut ports = service.ports.iter().filter(|port| !port.is_raw());
    let other = ports.find(|port| port.handlers.contains(&Handler::Tls));
    other.map_or(of_all, |port| *port.range().start())
}

/// Sends the client to the same place over TLS; nothing when that has no address.
pub(crate) fn to_https(host: &str, port: u16, request: &Parts) -> Option<Response<ReplyBody>> {
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    // `*` of an OPTIONS request is no path.
    let path = if path.starts_with('/') { path } else { "/" };
    let location = match port {
        PUBLIC_HTTPS_PORT => format!("https://{host}{path}"),
        port => format!("https://{host}:{port}{path}"),
    };
    let location = HeaderValue::try_from(location).ok()?;
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
            (r#"[{"port":80,"handlers":["edge_http"],"force_https":true}]"#, true),
            (r#"[{"start_port":79,"end_port":81,"handlers":["http"],"force_https":true}]"#, true),
            ("[]", false),
        ] {
            assert_eq!(is_forced(&service(ports), 80), want, "{ports}");
        }
    }

    #[test]
    fn the_port_is_the_one_at_which_the_app_speaks_https() {
        for (ports, want) in [
            (r#"[{"port":80,"handlers":["http"]}]"#, 8443),
            (
                r#"[{"port":9443,"handlers":["tls","http"]},{"port":443,"handlers":["tls","http"]}]"#,
                8443,
            ),
            (r#"[{"port":443,"handlers":["tls"]},{"port":9443,"handlers":["tls","http"]}]"#, 9443),
            (r#"[{"port":9000,"handlers":["tls"]}]"#, 8443),
        ] {
            assert_eq!(secure_port(&service(ports), 8443), want, "{ports}");
        }
        let request = http::Request::builder().uri("/a").body(()).unwrap().into_parts().0;
        let response = to_https("web.example", 8443, &request).unwrap();
        assert_eq!(response.headers()[LOCATION], "https://web.example:8443/a");
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
            let response = to_https("web.example", 443, &request.into_parts().0).unwrap();
            assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
            assert_eq!(response.headers()[LOCATION], want, "{target}");
        }
    }
}
