//! gRPC from end to end: HTTP/2 under TLS from a client that speaks nothing else, HTTP/2 to the app,
//! messages both ways while the call goes on, and its status behind them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use perch_types::directory::MachineRecord;
use perch_types::service::Autostop;
use perch_types::{MachineId, MachineState};
use rustls::version::TLS13;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use crate::tls::{client, dial};
use crate::world::{DEADLINE, World, machine, until};

const CALL: &str = "https://web.perch.localhost/echo.Echo/Talk";
/// A message as gRPC frames it: not compressed, five bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";
const STATUS: &str = "grpc-status";

/// What the app was asked.
pub(crate) type Calls = Arc<Mutex<Vec<Parts>>>;

/// An app that gives each piece back as soon as it comes, and says at the end how that went.
pub(crate) fn echo(runtime: &tokio::runtime::Runtime) -> (u16, Calls) {
    let calls = Calls::default();
    let told = Arc::clone(&calls);
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let told = Arc::clone(&told);
            let service = service_fn(move |request| {
                std::future::ready(Ok::<_, Infallible>(answer(request, &told)))
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    (port, calls)
}

fn answer(
    request: Request<Incoming>,
    calls: &Calls,
) -> Response<impl Body<Data = Bytes, Error = Infallible> + use<>> {
    let (parts, body) = request.into_parts();
    calls.lock().unwrap().push(parts);
    let pieces = stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        let next = body.frame().await;
        match next {
            Some(Ok(frame)) => Some((Ok::<_, Infallible>(frame), Some(body))),
            ended => {
                let mut trailers = HeaderMap::new();
                let status = if ended.is_none() { "0" } else { "1" };
                trailers.insert(STATUS, HeaderValue::from_static(status));
                trailers.insert("grpc-message", HeaderValue::from_static("well"));
                Some((Ok(Frame::trailers(trailers)), None))
            }
        }
    });
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(StreamBody::new(pieces)).unwrap()
}

pub(crate) fn record(port: u16) -> MachineRecord {
    let mut record = machine(1, "web", MachineState::Started, port);
    record.services = serde_json::from_value(serde_json::json!([{
        "internal_port": port,
        "ports": [{
            "port": 443, "handlers": ["tls", "http"],
            "tls_options": {"alpn": ["h2"]}, "http_options": {"h2_backend": true},
        }],
    }]))
    .unwrap();
    // What rests is what the host is told of.
    record.services[0].autostop = Some(Autostop::Stop);
    record
}

/// The messages of a call, as they are put in.
fn messages() -> (mpsc::Sender<Bytes>, impl Body<Data = Bytes, Error = Infallible>) {
    let (sender, receiver) = mpsc::channel::<Bytes>(8);
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), receiver))
    });
    (sender, StreamBody::new(pieces))
}

/// Waits for the next message of an answer.
async fn next(body: &mut Incoming) -> Frame<Bytes> {
    tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap()
}

/// Makes a call over a connection, and says something when the answer to what was said before is
/// there. `during` is looked at while the call is under way.
pub(crate) async fn call(stream: TlsStream<TcpStream>, during: impl FnOnce()) {
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (put, body) = messages();
    let request = Request::post(CALL)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "10S")
        .header("authorization", "Bearer mine")
        .body(Box::pin(body))
        .unwrap();
    put.try_send(Bytes::from_static(MESSAGE)).unwrap();
    let answer =
        tokio::time::timeout(DEADLINE, sender.send_request(request)).await.unwrap().unwrap();
    let (head, mut body) = answer.into_parts();
    assert_eq!((head.status, head.version), (StatusCode::OK, Version::HTTP_2));
    assert_eq!(head.headers["content-type"], "application/grpc");
    // Each comes back before the next is said.
    assert_eq!(next(&mut body).await.into_data().unwrap(), MESSAGE);
    for number in 0..5_u8 {
        let message = [b"\0\0\0\0\x01".as_slice(), &[number]].concat();
        put.try_send(Bytes::from(message.clone())).unwrap();
        assert_eq!(next(&mut body).await.into_data().unwrap(), message);
    }
    during();
    drop(put);
    let trailers = next(&mut body).await.into_trailers().unwrap();
    assert_eq!(trailers[STATUS], "0");
    assert_eq!(trailers["grpc-message"], "well");
    assert!(body.frame().await.is_none());
}

/// Fails when the app was not asked once, as the client called it.
pub(crate) fn was_called_once(calls: &Calls) {
    let calls = calls.lock().unwrap();
    assert_eq!(calls.len(), 1);
    let asked = &calls[0];
    assert_eq!((asked.version, asked.uri.path()), (Version::HTTP_2, "/echo.Echo/Talk"));
    for (field, value) in [
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-timeout", "10S"),
        ("authorization", "Bearer mine"),
        ("x-forwarded-proto", "https"),
    ] {
        assert_eq!(asked.headers[field], value, "{field}");
    }
}

#[test]
fn a_call_goes_both_ways_at_once_and_its_status_comes_behind_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (port, calls) = echo(&runtime);
    let world = World::new(vec![record(port)]);
    let is_unused = || world.host.is_unused(&MachineId::from_bits(1));
    world.runtime.block_on(async {
        let config = Arc::new(client(&world, &[&TLS13], &["h2"]));
        let stream = dial(&world, &config, "web.perch.localhost").await.unwrap();
        // It is under way until its status is there.
        call(stream, || assert!(!is_unused())).await;
    });
    until("the call is over", is_unused);
    was_called_once(&calls);
}

#[test]
fn an_app_that_is_called_so_alone_is_offered_so_alone() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (port, calls) = echo(&runtime);
    let world = World::new(vec![record(port)]);
    let config = Arc::new(client(&world, &[&TLS13], &["http/1.1"]));
    let refused = world.runtime.block_on(dial(&world, &config, "web.perch.localhost"));
    assert!(refused.unwrap_err().to_string().contains("NoApplicationProtocol"));
    assert!(calls.lock().unwrap().is_empty());
}
