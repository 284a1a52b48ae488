//! What clients speak and send to an edge, when the machine is another host's: HTTP/2 under TLS,
//! gRPC, and bodies that an app sends on.

use std::sync::Arc;

use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use perch_types::{MachineId, MachineState};
use rustls::version::TLS13;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::far::counting;
use crate::grpc;
use crate::replaying::Reader;
use crate::tls::{dial_at, trusting};
use crate::world::{DEADLINE, Pair, machine, replay, status, until};

const WEB: &str = "web.perch.localhost";
/// More than one window between the edges, and less than what is kept for a replay.
const BODY_BYTES: usize = 600_000;

/// Connects to the edge that has no machine, as a client of HTTP/2 does.
async fn secured(pair: &Pair) -> TlsStream<TcpStream> {
    let config = Arc::new(trusting(Arc::clone(&pair.roots), &[&TLS13], &["h2"]));
    let stream = dial_at(pair.near.https.unwrap(), &config, WEB).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    stream
}

#[test]
fn requests_of_http_2_under_tls_go_to_the_other_host_with_their_bodies() {
    let (port, counts) = counting();
    let pair = Pair::with_https(Vec::new(), vec![machine(2, "web", MachineState::Started, port)]);
    pair.runtime.block_on(async {
        let stream = secured(&pair).await;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for bytes in [BODY_BYTES, 3] {
            let request = Request::post(format!("https://{WEB}/"));
            let request = request.body(Full::new(Bytes::from(vec![b'x'; bytes]))).unwrap();
            let answer = tokio::time::timeout(DEADLINE, sender.send_request(request)).await;
            let answer = answer.unwrap().unwrap();
            assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
            let body = tokio::time::timeout(DEADLINE, answer.into_body().collect()).await;
            assert_eq!(body.unwrap().unwrap().to_bytes(), bytes.to_string());
        }
    });
    assert_eq!(*counts.lock().unwrap(), [BODY_BYTES, 3]);
}

#[test]
fn a_call_of_grpc_goes_both_ways_at_once_through_both_edges() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (port, calls) = grpc::echo(&runtime);
    let pair = Pair::with_https(Vec::new(), vec![grpc::record(port)]);
    let is_unused = || pair.far.host.is_unused(&MachineId::from_bits(1));
    pair.runtime.block_on(async {
        let stream = secured(&pair).await;
        grpc::call(stream, || assert!(!is_unused(), "the edge there has it under way")).await;
    });
    until("the call is over", is_unused);
    grpc::was_called_once(&calls);
}

/// Sends a body to the app and returns the answer.
fn post(pair: &Pair) -> String {
    let head = format!(
        "POST /a HTTP/1.1\r\nHost: {WEB}\r\nConnection: close\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    );
    pair.near.raw(&[head.into_bytes(), vec![b'x'; BODY_BYTES]].concat())
}

#[test]
fn a_body_that_is_sent_on_comes_whole_to_the_other_host() {
    let sends = Reader::new(|_| replay("fly-replay: instance=00000000000002"));
    let (port, counts) = counting();
    let pair = Pair::new(
        vec![machine(1, "web", MachineState::Started, sends.port)],
        vec![machine(2, "web", MachineState::Started, port)],
    );
    let answer = post(&pair);
    assert!(status(&answer) == "200" && answer.ends_with("\n600000"), "{answer}");
    assert_eq!((sends.count(), sends.last().1.len()), (1, BODY_BYTES));
    assert_eq!(*counts.lock().unwrap(), [BODY_BYTES]);
}

#[test]
fn a_body_that_the_other_host_sends_back_comes_whole_to_this_one() {
    let sends = Reader::new(|_| replay("fly-replay: app=other"));
    let (port, counts) = counting();
    let pair = Pair::new(
        vec![machine(1, "other", MachineState::Started, port)],
        vec![machine(2, "web", MachineState::Started, sends.port)],
    );
    let answer = post(&pair);
    assert!(status(&answer) == "200" && answer.ends_with("\n600000"), "{answer}");
    assert_eq!((sends.count(), sends.last().1.len()), (1, BODY_BYTES));
    assert_eq!(*counts.lock().unwrap(), [BODY_BYTES]);
}
