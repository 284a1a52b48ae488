//! Attempts at servers that answer well, badly, too much and never.

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Answers one request with `head`, then `piece` again and again for as long as it is read.
async fn server(head: &'static str, piece: &'static [u8]) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _read = stream.read(&mut request).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        if piece.is_empty() {
            return;
        }
        while stream.write_all(piece).await.is_ok() {}
    });
    address
}

fn get(address: SocketAddr) -> Attempt {
    let request = Request { method: "GET".to_owned(), path: "/".to_owned(), ..Request::default() };
    Attempt::Http { address, request }
}

#[tokio::test]
async fn a_request_passes_on_success_only() {
    for (answer, want) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", (true, "200 hi")),
        ("HTTP/1.1 204 No Content\r\n\r\n", (true, "204")),
        ("HTTP/1.0 200 OK\r\n\r\nold", (true, "200 old")),
        ("HTTP/1.1 302 Found\r\nLocation: /up\r\nContent-Length: 0\r\n\r\n", (false, "302")),
        ("HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nboom", (false, "500 boom")),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n\x1b[2Ja\r\nb\u{202e}",
            (true, "200  [2Ja  b"),
        ),
    ] {
        let address = server(answer, b"").await;
        let (passed, output) = get(address).carry_out(LIMIT, &Dial::Direct).await;
        assert_eq!((passed, output.as_str()), want);
    }
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut_and_its_status_counts() {
    let address = server("HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 512]).await;
    let (passed, output) = get(address).carry_out(LIMIT, &Dial::Direct).await;
    assert!(passed);
    assert_eq!(output.len(), OUTPUT_BYTES_MAX);
    let address = server("HTTP/1.1 200 OK\r\n", b"A: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n").await;
    let (passed, output) = get(address).carry_out(LIMIT, &Dial::Direct).await;
    assert!(!passed, "a head without an end: {output}");
}

#[tokio::test]
async fn no_answer_ends_with_the_timeout() {
    let (listener, address) = listener().await;
    let (passed, output) = get(address).carry_out(Duration::from_millis(30), &Dial::Direct).await;
    assert_eq!((passed, output.as_str()), (false, "no answer within 30ms"));
    drop(listener);
    let (passed, output) = Attempt::Tcp { address }.carry_out(LIMIT, &Dial::Direct).await;
    assert!(!passed);
    assert!(output.starts_with(&format!("connect to port {}", address.port())), "{output}");
}

#[tokio::test]
async fn the_request_has_the_headers_that_were_asked_for() {
    let (listener, address) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let count = stream.read(&mut request).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&request[..count]).into_owned()
    });
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let request = Request {
        method: "POST".to_owned(),
        path: "/up?a=1".to_owned(),
        headers: vec![pair("Host", "web.example"), pair("X-A", "1"), pair("X-A", "2")],
        ..Request::default()
    };
    assert!(Attempt::Http { address, request }.carry_out(LIMIT, &Dial::Direct).await.0);
    let sent = server.await.unwrap().to_ascii_lowercase();
    assert!(sent.starts_with("post /up?a=1 http/1.1\r\n"), "{sent}");
    for line in ["host: web.example", "x-a: 1", "x-a: 2", "user-agent: perch-check"] {
        assert_eq!(sent.lines().filter(|one| *one == line).count(), 1, "{line} in {sent}");
    }
    assert_eq!(sent.matches("host:").count(), 1, "{sent}");
}

#[tokio::test]
async fn a_certificate_is_checked_unless_that_is_skipped() {
    let key = rcgen::generate_simple_self_signed(vec!["web.example".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await;
            let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsafe").await;
            let _closed = stream.shutdown().await;
        }
    });
    let https = |skip_verify| {
        let Attempt::Http { address, request } = get(address) else {
            panic!("a request is needed");
        };
        let server_name = Some("web.example".to_owned());
        Attempt::Http {
            address,
            request: Request { tls: true, skip_verify, server_name, ..request },
        }
    };
    assert_eq!(https(true).carry_out(LIMIT, &Dial::Direct).await, (true, "200 safe".to_owned()));
    let (passed, output) = https(false).carry_out(LIMIT, &Dial::Direct).await;
    assert!(!passed, "a certificate that nobody signed: {output}");
    assert!(output.starts_with("speak TLS: "), "{output}");
    assert!(!get(address).carry_out(LIMIT, &Dial::Direct).await.0, "plain HTTP to a TLS port");
}

#[test]
fn what_is_shown_is_one_printable_line() {
    assert_eq!(clean("  a\r\n\tb\u{7}\u{202e}c  "), "a   b  c");
    assert!(clean(&"ä".repeat(OUTPUT_BYTES_MAX)).len() <= OUTPUT_BYTES_MAX);
}
