//! What a port says of HTTP: redirects, fields of answers, compression, HTTP/2 to the machine.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use perch_types::MachineState;
use perch_types::directory::MachineRecord;

use crate::world::{Origin, World, machine, status};

fn with_port(port: u16, more: &serde_json::Value) -> MachineRecord {
    let mut public = serde_json::json!({"port": 80, "handlers": ["http"]});
    public.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut record = machine(1, "web", MachineState::Started, port);
    record.services =
        serde_json::from_value(serde_json::json!([{"internal_port": port, "ports": [public]}]))
            .unwrap();
    record
}

fn with_options(port: u16, options: &serde_json::Value) -> World {
    World::new(vec![with_port(port, &serde_json::json!({ "http_options": options }))])
}

fn ask(world: &World, fields: &str) -> Vec<u8> {
    let mut stream = world.connect();
    let head = "GET /a?b=c HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n";
    stream.write_all(format!("{head}{fields}\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// Splits an answer into its head, and its body without the chunks.
fn parts(answer: &[u8]) -> (String, Vec<u8>) {
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..at + 2].to_vec()).unwrap();
    let mut rest = &answer[at + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return (head, rest.to_vec());
    }
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (head, body);
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
}

#[test]
fn plain_http_is_sent_to_https_where_the_app_says_so_and_there_is_any() {
    let origin = Origin::fine();
    let forced = with_port(origin.port, &serde_json::json!({"force_https": true}));
    let world = World::new(vec![forced.clone()]);
    let answer = String::from_utf8(ask(&world, "")).unwrap();
    assert_eq!(status(&answer), "301", "{answer}");
    let there = format!("https://web.perch.localhost:{}/a?b=c", world.https.port());
    assert!(answer.contains(&format!("location: {there}\r\n")), "{answer}");
    assert_eq!(origin.count(), 0);
    let plain = World::without_https(vec![forced]);
    assert_eq!(status(&plain.get("web", "/")), "200", "there is no HTTPS to go to");
    let asleep = with_port(origin.port, &serde_json::json!({"force_https": true}));
    let world =
        World::new(vec![MachineRecord { state: MachineState::Stopped, ready: false, ..asleep }]);
    assert_eq!(status(&world.get("web", "/")), "301");
    assert_eq!(world.host.starts.load(std::sync::atomic::Ordering::SeqCst), 0, "nobody is woken");
}

#[test]
fn a_port_changes_the_fields_of_answers() {
    let origin = Origin::new(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Old: 1\r\nServer: app\r\nX-Secret: 1\r\n\
         Fly-Cache-Status: HIT\r\nFly-Replay-Cache: invalidate\r\n\r\nok"
            .to_owned()
    });
    let options = serde_json::json!({"response": {"headers": {
        "x-secret": false, "X-Old": "new", "link": ["</a>", "</b>"]}}});
    let world = with_options(origin.port, &options);
    let answer = world.get("web", "/").to_ascii_lowercase();
    for want in [
        "x-old: new\r\n",
        "link: </a>\r\n",
        "link: </b>\r\n",
        "server: perch/",
        "via: 1.1 perch\r\n",
        "-ams\r\n",
    ] {
        assert!(answer.contains(want), "{want}: {answer}");
    }
    for gone in ["x-secret", "server: app", "fly-cache-status", "fly-replay-cache"] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }
    let pristine = serde_json::json!({"response": {"pristine": true}});
    let answer = with_options(origin.port, &pristine).get("web", "/").to_ascii_lowercase();
    assert!(answer.contains("server: app\r\n") && answer.ends_with("ok"), "{answer}");
    for gone in ["via:", "fly-request-id", "perch", "fly-cache-status"] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }
}

#[test]
fn an_answer_is_compressed_for_who_takes_it() {
    let text = "to be or not to be, that is the question. ".repeat(500);
    let body = text.clone();
    let origin = Origin::new(move |_| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    });
    let world = with_options(origin.port, &serde_json::json!({"compress": true}));
    for (accept, coding) in
        [("gzip", Some("gzip")), ("gzip, br", Some("br")), ("identity", None), ("", None)]
    {
        let (head, body) = parts(&ask(&world, &format!("Accept-Encoding: {accept}\r\n")));
        assert!(head.contains("vary: accept-encoding\r\n"), "{head}");
        match coding {
            None => assert!(!head.contains("content-encoding") && body == text.as_bytes()),
            Some(coding) => {
                assert!(head.contains(&format!("content-encoding: {coding}\r\n")), "{head}");
                assert!(body.len() < text.len() / 5, "{}", body.len());
                let mut plain = String::new();
                if coding == "gzip" {
                    let mut reader = flate2::read::GzDecoder::new(body.as_slice());
                    reader.read_to_string(&mut plain).unwrap();
                } else {
                    let mut reader = brotli::Decompressor::new(body.as_slice(), 4096);
                    reader.read_to_string(&mut plain).unwrap();
                }
                assert_eq!(plain, text);
            }
        }
    }
    let off = with_options(origin.port, &serde_json::json!({"compress": false}));
    let (head, _) = parts(&ask(&off, "Accept-Encoding: gzip\r\n"));
    assert!(!head.contains("content-encoding") && !head.contains("vary"), "{head}");
}

#[test]
fn what_the_app_has_sent_is_not_held_back_by_compression() {
    let gate = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let wait = Arc::clone(&gate);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            crate::world::read_head(&mut stream);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\
                        Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            crate::world::until("the first piece was read", || {
                wait.load(std::sync::atomic::Ordering::SeqCst)
            });
            stream.write_all(b"4\r\nlast\r\n0\r\n\r\n").unwrap();
        }
    });
    let world = with_options(port, &serde_json::json!({"compress": true}));
    let mut stream = world.connect();
    stream
        .write_all(
            b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nAccept-Encoding: gzip\r\n\
              Connection: close\r\n\r\n",
        )
        .unwrap();
    let mut answer = crate::world::read_head(&mut stream).unwrap().into_bytes();
    // A whole chunk comes while the app has not gone on.
    let mut byte = [0];
    while answer.windows(4).filter(|four| *four == b"\r\n\r\n").count() == 1
        && !answer.ends_with(&[0, 0, 0xff, 0xff, b'\r', b'\n'])
    {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    gate.store(true, std::sync::atomic::Ordering::SeqCst);
    stream.read_to_end(&mut answer).unwrap();
    let (_, body) = parts(&answer);
    let mut plain = String::new();
    flate2::read::GzDecoder::new(body.as_slice()).read_to_string(&mut plain).unwrap();
    assert_eq!(plain, "firstlast");
}

#[test]
fn a_head_that_takes_longer_than_the_port_allows_is_refused() {
    let origin = Origin::fine();
    let world = with_options(origin.port, &serde_json::json!({"headers_read_timeout": 1}));
    let mut stream = world.connect();
    let began = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    stream.write_all(b"Host: web.perch.localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(status(&answer) == "408" && answer.contains("PE02"), "{answer}");
    assert!(began.elapsed() > Duration::from_secs(1));
    assert_eq!(origin.count(), 0);
    assert_eq!(status(&world.get("web", "/")), "200", "a quick one passes");
}

/// What an app over HTTP/2 was asked: the version, the target, fields, the body.
type Asked = Arc<Mutex<Vec<(http::request::Parts, Vec<u8>)>>>;

fn over_h2(runtime: &tokio::runtime::Runtime, connections: &Arc<Mutex<usize>>) -> (u16, Asked) {
    let asked = Asked::default();
    let (told, count) = (Arc::clone(&asked), Arc::clone(connections));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            *count.lock().unwrap() += 1;
            let told = Arc::clone(&told);
            let service =
                hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let told = Arc::clone(&told);
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes().to_vec();
                        told.lock().unwrap().push((parts, body));
                        Ok::<_, Infallible>(http::Response::new(Full::new(
                            bytes::Bytes::from_static(b"over two"),
                        )))
                    }
                });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    (port, asked)
}

#[test]
fn a_machine_that_speaks_http2_is_spoken_to_so() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connections = Arc::default();
    let (port, asked) = over_h2(&runtime, &connections);
    let mut record = with_port(port, &serde_json::json!({"http_options": {"h2_backend": true}}));
    record.services[0].concurrency = serde_json::from_str(r#"{"type":"requests"}"#).unwrap();
    let world = World::new(vec![record]);
    let answer = world.raw(
        b"POST /a?b=c HTTP/1.1\r\nHost: web.perch.localhost\r\nTE: trailers\r\n\
          Connection: close, TE\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert!(status(&answer) == "200" && answer.ends_with("over two"), "{answer}");
    assert!(answer.contains("via: 2 perch\r\n"), "{answer}");
    {
        let asked = asked.lock().unwrap();
        let (parts, body) = asked.last().unwrap();
        assert_eq!(parts.version, http::Version::HTTP_2);
        assert_eq!(parts.uri, "http://web.perch.localhost/a?b=c");
        assert_eq!(
            (parts.headers["te"].as_bytes(), body.as_slice()),
            (&b"trailers"[..], &b"abc"[..])
        );
        assert_eq!(parts.headers["fly-client-ip"], "127.0.0.1");
        for gone in ["transfer-encoding", "connection"] {
            assert!(!parts.headers.contains_key(gone), "{gone}");
        }
    }
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(status(&world.get("web", "/")), "200"));
        }
    });
    assert_eq!(asked.lock().unwrap().len(), 21);
    assert!(*connections.lock().unwrap() < 21, "one connection carries many");
}
