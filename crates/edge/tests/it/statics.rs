//! Files of an app's image.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use perch_edge::Limits;
use perch_types::MachineState;
use perch_types::directory::MachineRecord;

use crate::h2::{connect, get};
use crate::world::{DEADLINE, Origin, World, machine, read_head, status, until};

fn with_files(id: u64, app: &str, state: MachineState, origin: &Origin) -> MachineRecord {
    let mut machine = machine(id, app, state, origin.port);
    machine.statics =
        serde_json::from_str(r#"[{"guest_path": "/app", "url_prefix": "/static/"}]"#).unwrap();
    machine
}

fn world(state: MachineState, origin: &Origin) -> World {
    World::new(vec![with_files(1, "web", state, origin)])
}

/// Asks for a file that does not end, and sees it begin.
fn begin(world: &World) -> TcpStream {
    let mut stream = world.connect();
    let head = b"GET /static/endless/a.css HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n";
    stream.write_all(head).unwrap();
    assert_eq!(status(&read_head(&mut stream).unwrap()), "200");
    stream
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
fn an_app_has_only_so_many_files_under_way_and_leaves_places_to_others() {
    let origin = Origin::fine();
    let queue = Duration::from_millis(20);
    let limits = Limits { files_max: 2, files_app_max: 1, queue, ..Limits::default() };
    let machines = vec![
        with_files(1, "web", MachineState::Started, &origin),
        with_files(2, "other", MachineState::Started, &origin),
    ];
    let world = World::with(machines, limits);
    let endless = begin(&world);
    let answer = world.get("web", "/static/a.css").to_ascii_lowercase();
    assert!(status(&answer) == "503" && answer.contains("pr05"), "{answer}");
    assert_eq!(status(&world.get("other", "/static/a.css")), "200");
    assert_eq!(origin.count(), 0, "the app is not asked instead");
    drop(endless);
    until("its place is free again", || status(&world.get("web", "/static/a.css")) == "200");
}

#[test]
fn a_file_that_the_host_does_not_go_on_with_breaks_off() {
    let origin = Origin::fine();
    let limits = Limits { idle: Duration::from_millis(20), ..Limits::default() };
    let machines = vec![with_files(1, "web", MachineState::Started, &origin)];
    let world = World::with(machines, limits);
    let mut endless = begin(&world);
    let mut rest = Vec::new();
    let read = endless.read_to_end(&mut rest);
    let is_late = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    assert!(!read.is_err_and(|error| is_late(&error)), "it goes on");
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
