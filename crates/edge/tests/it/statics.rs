//! Files of an app's image.

use std::sync::atomic::Ordering;

use perch_types::MachineState;

use crate::world::{Origin, World, machine, status};

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
