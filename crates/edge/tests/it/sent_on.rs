//! More of requests that an app sends on: a machine that is preferred, bodies in chunks, clients of
//! HTTP/2, and what a body of JSON has remembered.

use std::io::Write as _;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use perch_types::{MachineId, MachineState};

use crate::h2::{WEB, connect, get, send};
use crate::world::{OK, Origin, World, machine, read_head, replay, status, until};

/// An answer whose body asks for a replay.
fn by_json(json: &serde_json::Value) -> String {
    let text = json.to_string();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.fly.replay+json\r\n\
         Content-Length: {}\r\n\r\n{text}",
        text.len()
    )
}

#[test]
fn a_machine_that_is_preferred_gets_it_and_another_is_told_when_it_cannot() {
    let first = Origin::new(|head| {
        if head.contains("fly-replay-src") {
            return OK.to_owned();
        }
        replay("fly-replay: prefer_instance=00000000000003")
    });
    let (second, third) = (Origin::fine(), Origin::fine());
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, first.port),
        machine(3, "web", MachineState::Started, third.port),
    ]);
    // Until it was asked first.
    for _ in 0..20 {
        assert_eq!(status(&world.get("web", "/")), "200");
    }
    assert!(first.count() > 0, "it was asked");
    assert_eq!(third.count(), 20, "each came to the one that is preferred, itself or sent on");
    let seen = third.last.lock().unwrap().clone();
    assert!(!seen.contains("fly-preferred-instance-unavailable"), "{seen}");
    // It is away: whoever gets it instead is told.
    world.host.put(machine(2, "web", MachineState::Started, second.port));
    world.host.set(&MachineId::from_bits(3), MachineState::Failed, false);
    let unavailable = "fly-preferred-instance-unavailable: 00000000000003\r\n";
    until("one is told", || {
        assert_eq!(status(&world.get("web", "/")), "200");
        [&first, &second].iter().any(|origin| origin.last.lock().unwrap().contains(unavailable))
    });
}

/// An app that reads bodies in chunks, and what it got: its port and the bodies.
fn of_chunks(answer: String) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let bodies = Arc::<Mutex<Vec<String>>>::default();
    let got = Arc::clone(&bodies);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Some(head) = read_head(&mut stream) else { continue };
            assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
            // No piece holds an empty line, so what ends with one is the whole of them.
            let chunks = read_head(&mut stream).unwrap();
            let pieces = chunks.split("\r\n").collect::<Vec<_>>();
            let body = pieces.chunks(2).take_while(|pair| pair[0] != "0").map(|pair| pair[1]);
            got.lock().unwrap().push(body.collect());
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (port, bodies)
}

#[test]
fn a_body_in_chunks_is_sent_on_whole() {
    let (first, first_got) = of_chunks(replay("fly-replay: app=other"));
    let (second, second_got) = of_chunks(OK.to_owned());
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, first),
        machine(2, "other", MachineState::Started, second),
    ]);
    let answer = world.raw(
        b"POST /a HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\
          Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
    );
    assert!(status(&answer) == "200" && answer.ends_with("ok"), "{answer}");
    assert_eq!(*first_got.lock().unwrap(), ["abcde"]);
    assert_eq!(*second_got.lock().unwrap(), ["abcde"]);
}

/// An answer that says what was asked.
fn echo(head: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len())
}

#[test]
fn a_request_of_http2_is_sent_on_too() {
    let first = Origin::new(|_| replay("fly-replay: app=other;state=s"));
    let second = Origin::new(echo);
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, first.port),
        machine(2, "other", MachineState::Started, second.port),
    ]);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let (status, head, body) = send(&mut sender, get(&format!("{WEB}a?b"), &[])).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(!head.contains("fly-replay"), "{head}");
        assert!(body.starts_with("GET /a?b HTTP/1.1\r\n"), "{body}");
        assert!(body.contains("host: web.perch.localhost\r\n"), "{body}");
        assert!(body.contains("fly-replay-src: ") && body.contains("state="), "{body}");
        let request = Request::post(format!("{WEB}c")).body(Full::new(Bytes::from("hello")));
        let (status, _, body) = send(&mut sender, request.unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(body.contains("content-length: 5\r\n"), "{body}");
    });
    assert_eq!((first.count(), second.count()), (2, 2));
}

#[test]
fn a_body_of_json_is_remembered_and_forgotten_and_gone_around() {
    let first = Origin::new(|head| {
        let cache = serde_json::json!({
            "prefix": "/api/", "ttl": 60, "allow_bypass": head.contains("/api/open"),
        });
        by_json(&serde_json::json!({"app": "other", "cache": cache}))
    });
    let second = Origin::new(|head| {
        if head.contains("/api/forget") {
            return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nfly-replay-cache: invalidate\r\n\r\nok"
                .to_owned();
        }
        OK.to_owned()
    });
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, first.port),
        machine(2, "other", MachineState::Started, second.port),
    ]);
    let ask = |path: &str, more: &str| {
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: web.perch.localhost\r\n{more}Connection: close\r\n\r\n"
        );
        assert_eq!(status(&world.raw(text.as_bytes())), "200", "{path}");
        first.count()
    };
    let skip = "fly-replay-cache-control: skip\r\n";
    assert_eq!(ask("/api/a", ""), 1);
    assert_eq!(ask("/api/b", ""), 1, "it is remembered");
    assert_eq!(ask("/api/b", skip), 1, "no client goes around it where it may not");
    assert_eq!(ask("/api/forget", ""), 1);
    assert_eq!(ask("/api/open", ""), 2, "it was forgotten");
    assert_eq!(ask("/api/c", ""), 2);
    assert_eq!(ask("/api/c", skip), 3, "and one does where it may");
}
