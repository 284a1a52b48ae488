//! Files of an app's image.

use std::io::Read as _;
use std::sync::atomic::Ordering;

use http::StatusCode;
use http_body_util::BodyExt as _;
use perch_types::MachineState;

use crate::h2::{connect, get};
use crate::world::{DEADLINE, Origin, World, machine, status};

fn world(state: MachineState, origin: &Origin) -> World {
    let mut machine = machine(1, "web", state, origin.port);
    machine.statics =
        serde_json::from_str(r#"[{"guest_path": "/app", "url_prefix": "/static/"}]"#).unwrap();
    World::new(vec![machine])
}

#[test]
fn a_file_is_served_while_its_machine_sleeps() {
    let origin = Origin::fine();
    let world = world(MachineState::Stopped, &origin);
    let answer = world.get("web", "/static/a.css").to_ascii_lowercase();
    assert_eq!(status(&answer), "200", "{answer}");
    for wanted in [
        "content-type: text/css; charset=utf-8",
        "etag: \"tag\"",
        "content-length: 21",
        "body { color: green }",
    ] {
        assert!(answer.contains(wanted), "{wanted} in {answer}");
    }
    let ask = |method: &str, more: &str| {
        let text = format!(
            "{method} /static/a.css HTTP/1.1\r\nHost: web.perch.localhost\r\n{more}\
             Connection: close\r\n\r\n"
        );
        world.raw(text.as_bytes()).to_ascii_lowercase()
    };
    let known = ask("GET", "If-None-Match: W/\"tag\"\r\n");
    assert!(status(&known) == "304" && !known.contains("green"), "{known}");
    let head = ask("HEAD", "");
    assert!(head.contains("content-length: 21") && !head.contains("green"), "{head}");
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0);
    assert_eq!(origin.count(), 0);
}

#[test]
fn a_file_that_cannot_be_read_is_not_asked_of_the_app() {
    let origin = Origin::fine();
    let world = world(MachineState::Started, &origin);
    let answer = world.get("web", "/static/broken.css").to_ascii_lowercase();
    assert!(status(&answer) == "503" && answer.contains("pr05"), "{answer}");
    assert!(answer.contains("retry-after: 1"), "{answer}");
    assert_eq!(origin.count(), 0);
}

#[test]
fn what_is_no_file_is_the_apps_to_answer() {
    let origin = Origin::fine();
    let world = world(MachineState::Started, &origin);
    for path in ["/static/none", "/", "/statics/a.css", "/static/%2e%2e/a.css"] {
        assert_eq!(status(&world.get("web", path)), "200", "{path}");
    }
    let post = world.raw(
        b"POST /static/a.css HTTP/1.1\r\nHost: web.perch.localhost\r\nContent-Length: 0\r\n\
          Connection: close\r\n\r\n",
    );
    assert_eq!(status(&post), "200", "{post}");
    assert_eq!(origin.count(), 5);
}

#[test]
fn a_file_is_said_to_be_one_and_is_served_before_a_machine_is_woken_in_any_rest() {
    // Also while all of them are suspended: the host reads the image, nobody has to be woken.
    for state in [MachineState::Started, MachineState::Stopped, MachineState::Suspended] {
        let origin = Origin::fine();
        let world = world(state, &origin);
        let answer = world.get("web", "/static/a.css").to_ascii_lowercase();
        assert!(status(&answer) == "200" && answer.contains("green"), "{state:?}: {answer}");
        assert!(answer.contains("\r\nfly-cache-status: hit\r\n"), "{state:?}: {answer}");
        assert_eq!(world.host.starts.load(Ordering::SeqCst) + origin.count(), 0, "{state:?}");
    }
    // What the app says is no cache's, whatever it claims.
    let origin = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nFly-Cache-Status: HIT\r\n\r\nok".to_owned()
    });
    let world = world(MachineState::Started, &origin);
    let answer = world.get("web", "/other").to_ascii_lowercase();
    assert!(answer.ends_with("ok") && !answer.contains("fly-cache-status"), "{answer}");
    // Of a machine that is gone there is no image.
    let world = self::world(MachineState::Destroyed, &origin);
    assert_ne!(status(&world.get("web", "/static/a.css")), "200");
}

#[test]
fn a_file_goes_over_http2_and_is_compressed_where_the_port_says() {
    let origin = Origin::fine();
    let mut machine = machine(1, "web", MachineState::Started, origin.port);
    machine.statics =
        serde_json::from_str(r#"[{"guest_path": "/app", "url_prefix": "/static/"}]"#).unwrap();
    let options = serde_json::json!({"compress": true});
    machine.services = serde_json::from_value(serde_json::json!([{
        "internal_port": origin.port,
        "ports": [
            {"port": 80, "handlers": ["http"]},
            {"port": 443, "handlers": ["tls", "http"], "http_options": options},
        ],
    }]))
    .unwrap();
    let world = World::new(vec![machine]);
    let text = "body { color: green }".repeat(1_000);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let uri = "https://web.perch.localhost/static/big/a.css";
        for (accept, coding) in [("identity", None), ("gzip", Some("gzip"))] {
            let asked = sender.send_request(get(uri, &[("accept-encoding", accept)]));
            let answer = tokio::time::timeout(DEADLINE, asked).await.unwrap().unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.headers()["fly-cache-status"], "HIT");
            assert_eq!(answer.headers()["content-type"], "text/css; charset=utf-8");
            let said = answer.headers().get("content-encoding").map(|it| it.to_str().unwrap());
            assert_eq!(said, coding);
            let body = tokio::time::timeout(DEADLINE, answer.into_body().collect()).await;
            let body = body.unwrap().unwrap().to_bytes();
            let mut plain = String::new();
            match coding {
                None => plain.push_str(std::str::from_utf8(&body).unwrap()),
                Some(_) => {
                    assert!(body.len() < text.len() / 5, "{}", body.len());
                    let mut reader = flate2::read::GzDecoder::new(body.as_ref());
                    reader.read_to_string(&mut plain).unwrap();
                }
            }
            assert_eq!(plain, text);
        }
    });
    assert_eq!(origin.count(), 0);
}
