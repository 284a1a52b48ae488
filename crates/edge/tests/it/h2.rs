//! HTTP/2 under TLS: the same service, as strict as HTTP/1.1, and with an end to everything.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use perch_edge::Limits;
use perch_types::{MachineId, MachineState};
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::tls::{client, dial, gated};
use crate::world::{DEADLINE, Origin, World, machine, until};

pub(crate) const WEB: &str = "https://web.perch.localhost/";

pub(crate) type Sender = SendRequest<Full<Bytes>>;
/// How a connection ended.
pub(crate) type End = JoinHandle<hyper::Result<()>>;

/// Connects as a browser does.
pub(crate) async fn connect(world: &World, name: &str) -> (Sender, End) {
    let config = Arc::new(client(world, &[&TLS13], &["h2", "http/1.1"]));
    let stream = dial(world, &config, name).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

pub(crate) async fn send(
    sender: &mut Sender,
    request: Request<Full<Bytes>>,
) -> (StatusCode, String, String) {
    let answer = tokio::time::timeout(DEADLINE, sender.send_request(request)).await.unwrap();
    let (head, body) = answer.unwrap().into_parts();
    assert_eq!(head.version, Version::HTTP_2);
    let body = tokio::time::timeout(DEADLINE, body.collect()).await.unwrap().unwrap();
    let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    (head.status, format!("{:?}", head.headers), text)
}

pub(crate) fn get(uri: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

#[test]
fn a_request_becomes_one_of_http_1_with_one_host_and_one_cookie() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\nok".to_owned()
    });
    let world = World::web(&origin);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let fields = [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")];
        let (status, head, body) = send(&mut sender, get(&format!("{WEB}a?b"), &fields)).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "ok"));
        assert!(!head.contains("x-hop") && head.contains("fly-request-id"), "{head}");
    });
    let seen = origin.last.lock().unwrap().to_ascii_lowercase();
    assert!(seen.starts_with("get /a?b http/1.1\r\n"), "{seen}");
    for (field, count) in [
        ("\r\nhost: web.perch.localhost\r\n", 1),
        ("\r\nhost:", 1),
        ("\r\ncookie: a=1; b=2\r\n", 1),
        ("\r\nx-forwarded-proto: https\r\n", 1),
        ("\r\nte:", 0),
        ("\r\nconnection:", 0),
        ("\r\ntransfer-encoding:", 0),
    ] {
        assert_eq!(seen.matches(field).count(), count, "{field:?} in {seen}");
    }
}

#[test]
fn e1_doubt_is_refused_and_other_requests_of_the_connection_go_on() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let many: Vec<_> = (0..200).map(|_| ("x", "y")).collect();
        for (uri, fields, want) in [
            (WEB, &[("host", "empty.perch.localhost")][..], 400),
            (WEB, &[("host", "web.perch.localhost"), ("host", "web.perch.localhost")], 400),
            (WEB, &[("host", "")], 400),
            (WEB, &[("content-length", "0"), ("content-length", "0")], 400),
            ("http://web.perch.localhost/", &[], 400),
            ("https://user@web.perch.localhost/", &[], 400),
            ("https://empty.perch.localhost/", &[], 421),
            ("https://nothing.perch.localhost/", &[], 421),
            (WEB, many.as_slice(), 431),
        ] {
            let (status, head, body) = send(&mut sender, get(uri, fields)).await;
            assert_eq!(status.as_u16(), want, "{uri} {fields:?} {body}");
            assert!(!head.contains("\"connection\""), "{head}");
        }
        assert_eq!(origin.count(), 0);
        let (status, _, body) = send(&mut sender, get(WEB, &[])).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "ok"));
    });
}

#[test]
fn e5_the_head_of_a_stream_may_be_as_large_as_one_of_http_1_and_no_larger() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        // The first is more than the library takes when nothing is said.
        for (bytes, want) in [(40_000, 200), (70_000, 431)] {
            let long = "x".repeat(bytes);
            let (status, ..) = send(&mut sender, get(WEB, &[("x-long", long.as_str())])).await;
            assert_eq!((status.as_u16(), origin.count()), (want, 1), "{bytes}");
        }
        let (status, ..) = send(&mut sender, get(WEB, &[])).await;
        assert_eq!(status, StatusCode::OK);
    });
}

#[test]
fn e1_connect_is_refused() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let request = Request::connect("web.perch.localhost:443").body(Full::<Bytes>::default());
        let (status, ..) = send(&mut sender, request.unwrap()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(origin.count(), 0);
    });
}

#[test]
fn requests_over_one_connection_wait_for_nobody_else() {
    let (slow, gate) = gated();
    let fast = Origin::fine();
    let mut first = machine(1, "web", MachineState::Started, slow.port);
    // One request and no more: the others go elsewhere.
    first.services = serde_json::from_value(serde_json::json!([{
        "internal_port": slow.port, "concurrency": {"type": "requests", "hard_limit": 1},
        "ports": [{"port": 443, "handlers": ["http", "tls"]}],
    }]))
    .unwrap();
    let world = World::new(vec![first]);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let mut other = sender.clone();
        let held = tokio::spawn(async move { send(&mut sender, get(WEB, &[])).await });
        until("the first is at the app", || slow.count() == 1);
        world.host.put(machine(2, "web", MachineState::Started, fast.port));
        let others = async {
            // Until it is known of the second machine, there is no room.
            while send(&mut other, get(WEB, &[])).await.0 != StatusCode::OK {}
            for _ in 0..10 {
                let (status, _, body) = send(&mut other, get(WEB, &[])).await;
                assert_eq!((status, body.as_str()), (StatusCode::OK, "ok"));
            }
        };
        tokio::time::timeout(DEADLINE, others).await.unwrap();
        gate.store(true, Ordering::SeqCst);
        assert_eq!(held.await.unwrap().0, StatusCode::OK);
    });
}

#[test]
fn e10_requests_under_way_end_well_when_the_edge_stops_and_no_new_one_begins() {
    let (origin, gate) = gated();
    let world = World::web(&origin);
    world.runtime.block_on(async {
        let (mut sender, end) = connect(&world, "web.perch.localhost").await;
        let mut other = sender.clone();
        let held = tokio::spawn(async move { send(&mut sender, get(WEB, &[])).await });
        until("the request is at the app", || origin.count() == 1);
        world.stop();
        // The client is told; what it still sends is refused by itself or by the edge.
        let told = async {
            while other.ready().await.is_ok() {
                let sent = other.send_request(get(WEB, &[]));
                if tokio::time::timeout(Duration::from_millis(100), sent)
                    .await
                    .is_ok_and(|it| it.is_err())
                {
                    break;
                }
            }
        };
        tokio::time::timeout(DEADLINE, told).await.unwrap();
        gate.store(true, Ordering::SeqCst);
        let (status, _, body) = held.await.unwrap();
        assert_eq!((status, body.as_str()), (StatusCode::OK, "ok"));
        tokio::time::timeout(DEADLINE, end).await.unwrap().unwrap().ok();
    });
}

#[test]
fn e5_a_connection_on_which_nothing_is_asked_ends() {
    let limits = Limits {
        head: Duration::from_millis(200),
        stall: Duration::from_millis(200),
        ..Limits::default()
    };
    let world = World::with(vec![], limits);
    world.runtime.block_on(async {
        let (sender, end) = connect(&world, "web.perch.localhost").await;
        tokio::time::timeout(DEADLINE, end).await.unwrap().unwrap().ok();
        drop(sender);
        // Nor one that says nothing at all.
        let config = Arc::new(client(&world, &[&TLS13], &["h2"]));
        let mut silent = dial(&world, &config, "web.perch.localhost").await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(DEADLINE, silent.read_to_end(&mut rest)).await;
        read.unwrap().ok();
    });
}

/// The preface and the first settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request for the page of the app, whole in one frame.
fn headers(stream: u32) -> Vec<u8> {
    let fields = [b"\x82\x87\x84\x41\x13".as_slice(), b"web.perch.localhost"].concat();
    frame(0x1, 0x5, stream, &fields)
}

/// Sends bytes behind the preface and returns whether the edge ended the connection.
pub(crate) async fn is_ended_by(world: &World, bytes: Vec<u8>) -> bool {
    let config = Arc::new(client(world, &[&TLS13], &["h2"]));
    let stream = dial(world, &config, "web.perch.localhost").await.unwrap();
    let (mut reads, mut writes) = tokio::io::split(stream);
    let sending = tokio::spawn(async move {
        let all = [PREFACE, &bytes].concat();
        // Not to its end, when the connection ends before.
        let sent = writes.write_all(&all).await.is_ok() && writes.flush().await.is_ok();
        (sent, writes)
    });
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, reads.read_to_end(&mut answer)).await.is_ok();
    sending.abort();
    ended
}

#[test]
fn e5_floods_of_frames_end_the_connection_and_not_the_edge() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    world.runtime.block_on(async {
        for (what, frame) in [
            ("SETTINGS", frame(0x4, 0, 0, &[])),
            ("PRIORITY", frame(0x2, 0, 1, &[0; 5])),
            ("unknown", frame(0xfa, 0, 0, &[])),
        ] {
            assert!(is_ended_by(&world, frame.repeat(5_000)).await, "{what}");
        }
        // Requests that are taken back at once.
        let streams = (0..5_000).map(|index| 2 * index + 1);
        let resets =
            streams.flat_map(|id| [headers(id), frame(0x3, 0, id, &[0, 0, 0, 8])].concat());
        assert!(is_ended_by(&world, resets.collect()).await, "RST_STREAM");
        assert!(origin.count() <= 1_000, "{} requests came through", origin.count());
        // A block of fields that never ends.
        let endless: Vec<u8> =
            [frame(0x1, 0, 1, &[0x82]), frame(0x9, 0, 1, &[]).repeat(5_000)].concat();
        assert!(is_ended_by(&world, endless).await, "CONTINUATION");
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        assert_eq!(send(&mut sender, get(WEB, &[])).await.0, StatusCode::OK);
    });
}

#[test]
fn e5_a_client_that_takes_nothing_of_its_answer_loses_the_stream_alone() {
    let size = 8 << 20;
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n{}", "x".repeat(size));
    let origin = Origin::new(move |_| large.clone());
    let limits = Limits { stall: Duration::from_millis(300), ..Limits::default() };
    let world = World::with(vec![machine(1, "web", MachineState::Started, origin.port)], limits);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let held = sender.send_request(get(WEB, &[])).await.unwrap();
        let mut body = held.into_body();
        // The host hears when the request is over, although nobody has read its answer.
        world.host.set(&MachineId::from_bits(1), MachineState::Stopping, false);
        until("the stream is reset", || !world.host.drained.lock().unwrap().is_empty());
        let read = async {
            // What was on its way is there.
            while let Some(frame) = body.frame().await {
                if frame.is_err() {
                    return true;
                }
            }
            false
        };
        assert!(tokio::time::timeout(DEADLINE, read).await.unwrap(), "the answer went on");
        // The connection is as good as before.
        world.host.set(&MachineId::from_bits(1), MachineState::Started, true);
        let again = async {
            loop {
                let answer = sender.send_request(get(WEB, &[])).await.unwrap();
                if answer.status() == StatusCode::OK {
                    return;
                }
            }
        };
        tokio::time::timeout(DEADLINE, again).await.unwrap();
    });
}

#[test]
fn e2_fields_behind_an_answer_pass_without_the_platforms_and_the_connections() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\n\
         X-Sum: 1\r\nFly-Request-Id: forged\r\nSet-Cookie: a=b\r\n\r\n"
            .to_owned()
    });
    let world = World::web(&origin);
    world.runtime.block_on(async {
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        let asked = sender.send_request(get(WEB, &[("te", "trailers")]));
        let answer = tokio::time::timeout(DEADLINE, asked).await.unwrap().unwrap();
        let all = tokio::time::timeout(DEADLINE, answer.into_body().collect()).await;
        let all = all.unwrap().unwrap();
        let trailers = all.trailers().unwrap();
        let names: Vec<_> = trailers.keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-sum"]);
    });
}
