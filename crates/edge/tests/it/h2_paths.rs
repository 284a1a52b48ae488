//! Common requests over HTTP/2 take a path of their own too: what is the same there as on the general
//! one, and that nothing is left of one whose client leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use perch_edge::Limits;
use perch_types::MachineState;

use crate::data_path::told;
use crate::h2::{Sender, WEB, connect, get};
use crate::world::{DEADLINE, OK, Origin, World, limited, machine, replay, until};

/// A field that ends at the edge, and makes no request a common one.
const NOT_COMMON: (&str, &str) = ("trailer", "x-none");

/// How long a machine may be silent where it is to be given up.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a client is told: the status, the fields in an order of their own, and the body with what
/// stands behind it, if it ends well.
type Told = (StatusCode, Vec<String>, Option<(Bytes, Option<String>)>);

async fn ask(sender: &mut Sender, request: Request<Full<Bytes>>) -> Told {
    try_ask(sender, request).await.unwrap()
}

/// Asks where the stream may be reset; the head of its answer is then lost too, if it has not left.
async fn try_ask(sender: &mut Sender, request: Request<Full<Bytes>>) -> Result<Told, hyper::Error> {
    let answer = tokio::time::timeout(DEADLINE, sender.send_request(request)).await.unwrap();
    let (head, body) = answer?.into_parts();
    let all = head.headers.iter().map(|(name, value)| format!("{name}: {value:?}"));
    let differs = |line: &str| line.starts_with("fly-request-id: ") || line.starts_with("date: ");
    let mut fields: Vec<String> = all.filter(|line| !differs(line)).collect();
    fields.sort_unstable();
    let all = tokio::time::timeout(DEADLINE, body.collect()).await.unwrap().ok();
    let body = all.map(|all| {
        let behind = all.trailers().map(|trailers| format!("{trailers:?}"));
        (all.to_bytes(), behind)
    });
    Ok((head.status, fields, body))
}

fn asked(method: &str, uri: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = get(uri, fields);
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    request
}

/// What an app answers to which method, and whether all of that comes.
const ANSWERS: [(&str, &str, bool); 22] = [
    ("GET", OK, true),
    (
        "DELETE",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: app\r\nVia: 1.1 app\r\nSet-Cookie: a\r\n\
         Set-Cookie: b\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-One: \t1 \r\n\r\nok",
        true,
    ),
    ("GET", "HTTP/1.1 404 Nowhere At All\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", true),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true),
    (
        "POST",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\n\
         X-Sum: 1\r\nFly-Request-Id: forged\r\nSet-Cookie: a=b\r\n\r\n",
        true,
    ),
    ("GET", "HTTP/1.1 200 OK\r\n\r\nup to the end!", true),
    ("GET", "HTTP/1.0 200 OK\r\n\r\nup to the end!", true),
    ("GET", "HTTP/1.1 204 No Content\r\nX-One: 1\r\n\r\n", true),
    ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", true),
    ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", true),
    (
        "GET",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 201 Created\r\n\
         Content-Length: 2\r\nLocation: /b\r\n\r\nok",
        true,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nFly-Request-Id: mine\r\nFly-Cache-Status: HIT\r\n\
         Perch-Hop: static\r\n\r\nok",
        true,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\nok",
        true,
    ),
    ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true),
    ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
    ("HEAD", "HTTP/1.1 200 OK\r\n\r\n", true),
    ("HEAD", "", true),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello!", false),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n!", false),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok!", true),
    ("GET", "nonsense\r\n\r\n!", true),
    ("GET", "", true),
];

#[test]
fn e2_both_paths_of_a_stream_say_the_same_to_machines_and_clients() {
    let origin = Origin::new(|head| {
        let path = head.split([' ', '?']).nth(1).unwrap();
        ANSWERS[path.trim_start_matches('/').parse::<usize>().unwrap()].1.to_owned()
    });
    let world = World::web(&origin);
    let fields = [
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "2.2.2.2"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", "8443"),
        ("via", "1.0 other"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("accept", "*/*"),
        ("te", "trailers"),
    ];
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        for (number, (method, _, is_whole)) in ANSWERS.into_iter().enumerate() {
            let uri = format!("{WEB}{number}?a=b");
            let common = try_ask(&mut sender, asked(method, &uri, &fields)).await;
            let heard = origin.last.lock().unwrap().clone();
            let more = [&fields[..], &[NOT_COMMON]].concat();
            let general = try_ask(&mut sender, asked(method, &uri, &more)).await;
            let heard_too = origin.last.lock().unwrap().clone();
            assert_eq!(told(&heard), told(&heard_too), "{number}");
            // Each path says it in an order of its own.
            let is_first =
                |head: &str| head.find("\r\nfly-client-ip: ") < head.find("\r\nx-forwarded-for: ");
            assert!(is_first(&heard) && !is_first(&heard_too), "{heard}{heard_too}");
            let (Ok(common), Ok(general)) = (common, general) else {
                assert!(!is_whole, "{number}");
                continue;
            };
            assert_eq!((common.0, &common.1), (general.0, &general.1), "{number}");
            // A page of the edge names its request.
            if common.0 != StatusCode::BAD_GATEWAY {
                assert_eq!(common.2, general.2, "{number}");
            }
            for body in [common.2, general.2] {
                assert_eq!(body.is_some(), is_whole, "{number}");
                assert!(method != "HEAD" || body.is_some_and(|(bytes, _)| bytes.is_empty()));
            }
        }
    });
}

#[test]
fn the_head_alone_of_a_page_has_its_length_and_no_body() {
    let world = World::web(&Origin::new(|_| String::new()));
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let (status, fields, body) = ask(&mut sender, asked("HEAD", WEB, &[])).await;
        assert_eq!((status, body), (StatusCode::BAD_GATEWAY, Some((Bytes::new(), None))));
        let length = fields.iter().find(|line| line.starts_with("content-length: "));
        assert!(length.is_some_and(|line| line != "content-length: \"0\""), "{fields:?}");
    });
}

#[test]
fn e5_nothing_is_left_of_a_stream_whose_client_leaves() {
    let gate = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&gate);
    let origin = Origin::new(move |head| {
        if head.contains("/part") {
            return "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello".to_owned();
        }
        if head.contains("/slow") {
            until("the gate opens", || is_open.load(Ordering::SeqCst));
        }
        OK.to_owned()
    });
    let one = serde_json::json!({"type": "requests", "hard_limit": 1});
    let web = limited(machine(1, "web", MachineState::Started, origin.port), one);
    let world = World::new(vec![web]);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let mut other = sender.clone();
        let slow = get(&format!("{WEB}slow"), &[]);
        let waiting = tokio::spawn(async move { other.send_request(slow).await.map(drop) });
        until("the request is at the app", || origin.count() == 1);
        waiting.abort();
        // There is room for one alone, and nobody else's answer comes over its connection.
        assert_eq!(ask(&mut sender, get(WEB, &[])).await.0, StatusCode::OK);
        assert_eq!(origin.connections.load(Ordering::SeqCst), 2);
        let part = sender.send_request(get(&format!("{WEB}part"), &[]));
        let part = tokio::time::timeout(DEADLINE, part).await.unwrap().unwrap();
        assert_eq!(origin.connections.load(Ordering::SeqCst), 2, "the second was used again");
        drop(part);
        assert_eq!(ask(&mut sender, get(WEB, &[])).await.0, StatusCode::OK);
        assert_eq!(origin.connections.load(Ordering::SeqCst), 3);
        gate.store(true, Ordering::SeqCst);
    });
}

#[test]
fn e5_a_machine_that_falls_silent_is_given_up_on_both_paths() {
    let gate = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&gate);
    let origin = Origin::new(move |head| {
        if head.contains("/part") {
            return "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello".to_owned();
        }
        until("the gate opens", || is_open.load(Ordering::SeqCst));
        OK.to_owned()
    });
    let limits = Limits { answer: PATIENCE, idle: PATIENCE, ..Limits::default() };
    let world = World::with(vec![machine(1, "web", MachineState::Started, origin.port)], limits);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        for fields in [&[][..], &[NOT_COMMON]] {
            let (status, ..) = ask(&mut sender, get(&format!("{WEB}slow"), fields)).await;
            assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{fields:?}");
            let (status, _, body) = ask(&mut sender, get(&format!("{WEB}part"), fields)).await;
            assert_eq!((status, body), (StatusCode::OK, None), "{fields:?}");
        }
        gate.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_replay_goes_on_with_all_that_the_stream_said() {
    let web = Origin::new(|_| replay("fly-replay: app=other;state=a"));
    let other = Origin::fine();
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, web.port),
        machine(3, "other", MachineState::Started, other.port),
    ]);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let fields = [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")];
        let (status, fields, body) = ask(&mut sender, get(&format!("{WEB}a?b"), &fields)).await;
        assert_eq!((status, body), (StatusCode::OK, Some((Bytes::from("ok"), None))));
        assert!(!fields.iter().any(|line| line.starts_with("fly-replay")), "{fields:?}");
    });
    assert_eq!((web.count(), other.count()), (1, 1));
    let seen = other.last.lock().unwrap().clone();
    assert!(seen.starts_with("GET /a?b HTTP/1.1\r\n"), "{seen}");
    for line in
        ["fly-replay-src: instance=", "host: web.perch.localhost\r\n", "cookie: a=1; b=2\r\n"]
    {
        assert!(seen.contains(&format!("\r\n{line}")), "{line} in {seen}");
    }
    assert!(seen.contains("\r\nvia: 2 perch\r\n") && !seen.contains("\r\nte:"), "{seen}");
}
