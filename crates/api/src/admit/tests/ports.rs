//! Public ports, with HTTP and without.

use perch_types::Code;
use serde_json::{Value, json};

use super::super::admit;
use super::{config, refusal};

fn ports(protocol: &str, ports: &Value) -> Value {
    let service = json!({"internal_port": 53, "protocol": protocol, "ports": ports});
    json!({ "services": [service] })
}

#[test]
fn ports_with_http_and_without_are_admitted() {
    for fine in [
        ports("tcp", &json!([{"port": 5000}, {"start_port": 6000, "end_port": 6003}])),
        ports(
            "tcp",
            &json!([{"port": 5000, "handlers": ["tls", "proxy_proto"],
                "proxy_proto_options": {"version": "v2"},
                "tls_options": {"alpn": ["mqtt"], "versions": ["TLSv1.3"]}}]),
        ),
        ports(
            "tcp",
            &json!([{"port": 5432, "handlers": ["pg_tls"]}, {"port": 80, "handlers": ["http"]}]),
        ),
        ports("udp", &json!([{"port": 53}])),
        // HTTP at any port, and what passes as it is at the one that all share by name.
        ports(
            "tcp",
            &json!([{"port": 8080, "handlers": ["http"], "force_https": true},
                {"port": 8443, "handlers": ["tls", "edge_http"], "http_options": {"compress": true}},
                {"start_port": 9000, "end_port": 9002, "handlers": ["http"]}]),
        ),
        ports(
            "tcp",
            &json!([{"port": 443, "handlers": ["tls", "proxy_proto"],
                "tls_options": {"alpn": ["mqtt"], "default_self_signed": true}}]),
        ),
    ] {
        admit(config(fine)).unwrap();
    }
}

#[test]
fn raw_ports_are_checked_one_by_one() {
    for (more, want) in [
        (ports("tcp", &json!([{}])), "port: is not 1 to 65535"),
        (ports("tcp", &json!([{"port": 0}])), "port: is not 1 to 65535"),
        (ports("tcp", &json!([{"start_port": 5}])), "start_port: is not 1 to end_port"),
        (
            ports("tcp", &json!([{"start_port": 5, "end_port": 4}])),
            "start_port: is not 1 to end_port",
        ),
        (ports("tcp", &json!([{"end_port": 4}])), "start_port: is not 1 to end_port"),
        (
            ports("tcp", &json!([{"port": 1, "start_port": 2, "end_port": 3}])),
            "start_port: is not allowed beside port",
        ),
        (
            ports("tcp", &json!([{"start_port": 5000, "end_port": 5024}])),
            "port: more than 24 ports beside 80 and 443",
        ),
        (ports("udp", &json!([{"port": 54}])), "port: for udp it is the internal_port, 53"),
        (
            ports("udp", &json!([{"start_port": 53, "end_port": 53}])),
            "port: for udp it is the internal_port, 53",
        ),
        (
            ports("udp", &json!([{"port": 53, "handlers": ["proxy_proto"]}])),
            "handlers: none is allowed for udp",
        ),
        (
            ports("udp", &json!([{"port": 53, "handlers": ["http"]}])),
            "handlers: none is allowed for udp",
        ),
        (
            ports("tcp", &json!([{"port": 5000, "handlers": ["tls", "pg_tls"]}])),
            "handlers: tls and pg_tls exclude each other",
        ),
        (
            ports("tcp", &json!([{"port": 5000, "proxy_proto_options": {"version": "v2"}}])),
            "proxy_proto_options: is for the handler proxy_proto",
        ),
        (
            ports(
                "tcp",
                &json!([{"port": 5000, "handlers": ["proxy_proto"],
                "proxy_proto_options": {"version": "v3"}}]),
            ),
            "proxy_proto_options.version: allowed are v1, v2",
        ),
    ] {
        let (code, text) = refusal(&more);
        let want = format!("config.services[0].ports[0].{want}");
        assert_eq!((code, text), (Code::InvalidValue, want), "{more}");
    }
    let http = json!([{"port": 8080, "handlers": ["http"]}, {"port": 8080}]);
    let (_, text) = refusal(&ports("tcp", &http));
    assert_eq!(text, "config.services[0].ports[1].port: tcp 8080 is named twice");
    let (_, text) =
        refusal(&ports("tcp", &json!([{"port": 5000}, {"start_port": 5000, "end_port": 5001}])));
    assert_eq!(text, "config.services[0].ports[1].port: tcp 5000 is named twice");
}
