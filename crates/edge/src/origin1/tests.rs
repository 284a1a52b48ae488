//! Both sides of a connection: what a machine is sent, and what is read of what it says.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use http::Request;
use http::request::Parts;
use http_body::{Body, Frame, SizeHint};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::*;
use crate::splice::Pipes;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const ASKED: Asked = Asked { is_head: false };
/// How long a test waits for what comes at once.
const DEADLINE: Duration = Duration::from_secs(20);

fn lone(head: &[u8]) -> Lone<'_> {
    Lone { head, asked: ASKED, deadline: Instant::now() + DEADLINE }
}

/// A body that comes bit by bit.
struct Fed(mpsc::Receiver<Bytes>);

impl Body for Fed {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        self.0.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

/// A body that is there.
struct Given(Option<Bytes>);

impl Body for Given {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |data| data.len() as u64))
    }
}

/// Returns a connection, both sides, and who counts its end.
async fn connected() -> (Box<Origin>, TcpStream, Arc<Load>) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (ours, theirs) = tokio::join!(connecting, listener.accept());
    let load = Arc::<Load>::default();
    let origin = Origin::over(ours.unwrap(), Arc::clone(&load), &Buffers::default());
    (origin, theirs.unwrap().0, load)
}

/// Reads what the machine is sent until it ends so.
async fn read_until(machine: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while !all.ends_with(end) {
        let count = tokio::time::timeout(DEADLINE, machine.read_buf(&mut all)).await;
        assert_ne!(count.unwrap().unwrap(), 0, "{}", String::from_utf8_lossy(&all));
    }
    all
}

/// Waits until something has come, be it the end.
async fn has_news(origin: &Origin) {
    let news = poll_fn(|context| match &*origin.link.wire.borrow() {
        Wire::Plain(stream) => stream.poll_read_ready(context),
        Wire::Tls(_) => Poll::Pending,
    });
    tokio::time::timeout(DEADLINE, news).await.unwrap().unwrap();
}

/// Reads the rest of a body as the front does.
async fn body(origin: &mut Origin) -> Result<Vec<u8>, Fault> {
    let mut all = Vec::new();
    while poll_fn(|context| origin.poll_more(context)).await? {
        all.extend_from_slice(origin.data());
        origin.consume(origin.data().len());
    }
    Ok(all)
}

/// Reads the rest of a body as the general path does.
async fn frames(flow: &mut Flow) -> Result<(Vec<u8>, Option<HeaderMap>), Fault> {
    let (mut all, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|context| flow.poll_frame(context)).await {
        match frame?.into_data() {
            Ok(data) => all.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((all, trailers))
}

fn post(fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method("POST").uri("/");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// Waits for the head of the answer.
async fn head_of(origin: &mut Origin) -> Result<Head, Fault> {
    poll_fn(|context| origin.poll_answer(context)).await
}

#[tokio::test]
async fn answers_are_read_whole_and_their_connection_is_used_again_where_it_may() {
    for (answer, want, is_again) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", true),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", "hello", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello", "he", false),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", true),
        ("HTTP/1.1 204 No Content\r\n\r\nx", "", false),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2 \r\nlo\r\n0\r\n\r\n",
            "hello",
            true,
        ),
    ] {
        let (mut origin, mut machine, load) = connected().await;
        assert!(origin.is_quiet());
        assert_eq!(origin.ask(&lone(GET)).await, Wrote::Whole);
        assert_eq!(read_until(&mut machine, b"\r\n\r\n").await, GET);
        machine.write_all(answer.as_bytes()).await.unwrap();
        let head = head_of(&mut origin).await.unwrap();
        assert!(matches!(head.status, 200 | 204) && !origin.head_bytes().is_empty(), "{answer:?}");
        assert_eq!(body(&mut origin).await.unwrap(), want.as_bytes(), "{answer:?}");
        assert!(origin.is_over() && origin.left() == Some(0), "{answer:?}");
        assert_eq!(origin.rests(), is_again, "{answer:?}");
        assert_eq!(origin.buffer.capacity(), 0, "memory of a connection that lies idle");
        drop(origin);
        assert_eq!(Arc::strong_count(&load), 1);
    }
}

#[tokio::test]
async fn a_connection_is_asked_again_and_its_fields_are_those_of_the_last_answer() {
    let (mut origin, mut machine, _) = connected().await;
    for length in [3_usize, 0, 100_000] {
        assert_eq!(origin.ask(&lone(GET)).await, Wrote::Whole);
        read_until(&mut machine, b"\r\n\r\n").await;
        let text =
            format!("HTTP/1.1 200 Fine\r\nX-Length: {length}\r\ncontent-length: {length}\r\n\r\n");
        let sending = async {
            machine.write_all(text.as_bytes()).await.unwrap();
            machine.write_all(&vec![b'x'; length]).await.unwrap();
        };
        let reading = async {
            let head = head_of(&mut origin).await.unwrap();
            assert_eq!(head.framing, Framing::Length(length as u64));
            let said = length.to_string();
            let fields: Vec<_> = origin.fields().collect();
            let want = [(&b"X-Length"[..], said.as_bytes()), (b"content-length", said.as_bytes())];
            assert_eq!(fields, want);
            let response = origin.response(&head, |_| true).unwrap();
            assert_eq!(response.headers()["x-length"], said.as_str());
            let reason = response.extensions().get::<ReasonPhrase>().unwrap();
            assert_eq!(reason.as_bytes(), b"Fine");
            let some = origin.response(&head, |name| name != b"X-Length").unwrap();
            assert_eq!(some.headers().len(), 1);
            assert_eq!(some.headers()["content-length"], said.as_str());
            assert_eq!(body(&mut origin).await.unwrap().len(), length);
        };
        tokio::join!(sending, reading);
        assert!(origin.rests() && origin.is_quiet());
    }
}

#[tokio::test]
async fn a_small_body_leaves_its_buffer_to_others() {
    let (mut origin, mut machine, _) = connected().await;
    origin.ask(&lone(GET)).await;
    read_until(&mut machine, b"\r\n\r\n").await;
    machine.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
    head_of(&mut origin).await.unwrap();
    let memory = origin.buffer.as_ptr();
    assert!(poll_fn(|context| origin.poll_more(context)).await.unwrap());
    let data = origin.take_data();
    assert!(origin.rests());
    // What was taken is still held, as by a client that takes its time.
    assert_eq!(origin.buffers.take().as_ptr(), memory);
    assert_eq!(data, "hello");
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_ends_well_and_others_do_not() {
    for (answer, want) in [
        ("HTTP/1.1 200 OK\r\n\r\nhello", Ok("hello")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", Err(Cause::Upstream)),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            Err(Cause::Upstream),
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!", Err(Cause::BadAnswer)),
        ("HTTP/1.1 200 OK\r\nContent-Le", Err(Cause::Upstream)),
        ("HTTP/1.1 100 Continue\r\n\r\n", Err(Cause::Upstream)),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            Err(Cause::BadAnswer),
        ),
        ("", Err(Cause::Upstream)),
    ] {
        let (mut origin, mut machine, _) = connected().await;
        origin.ask(&lone(GET)).await;
        read_until(&mut machine, b"\r\n\r\n").await;
        machine.write_all(answer.as_bytes()).await.unwrap();
        machine.shutdown().await.unwrap();
        let read = match head_of(&mut origin).await {
            Ok(_) => body(&mut origin).await,
            Err(fault) => Err(fault),
        };
        let read = read.map_err(|fault| fault.cause());
        assert_eq!(read, want.map(|text: &str| text.as_bytes().to_vec()), "{answer:?}");
        assert!(!origin.rests(), "{answer:?}");
    }
}

#[tokio::test]
async fn e5_what_comes_before_an_answer_has_a_bound() {
    let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "x".repeat(1000));
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for (count, want) in [(3, Ok(200)), (100, Err(Cause::BadAnswer))] {
        let (mut origin, mut machine, _) = connected().await;
        origin.ask(&lone(GET)).await;
        let text = format!("{}{ok}", hint.repeat(count));
        machine.write_all(text.as_bytes()).await.unwrap();
        let heard = head_of(&mut origin).await;
        let heard = heard.map(|head| head.status).map_err(|fault| fault.cause());
        assert_eq!(heard, want, "{count}");
    }
}

#[tokio::test]
async fn a_connection_that_the_app_has_closed_or_spoken_over_is_not_quiet() {
    let (origin, machine, _) = connected().await;
    drop(machine);
    has_news(&origin).await;
    assert!(!origin.is_quiet());
    let (origin, mut machine, _) = connected().await;
    machine.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison").await.unwrap();
    has_news(&origin).await;
    assert!(!origin.is_quiet());
}

#[tokio::test]
async fn what_is_moved_is_the_body_alone_and_what_is_behind_it_is_seen() {
    const BYTES: usize = 300 * 1024;
    for behind in ["", "poison"] {
        let (mut origin, mut machine, _) = connected().await;
        origin.ask(&lone(GET)).await;
        read_until(&mut machine, b"\r\n\r\n").await;
        let body = "x".repeat(BYTES);
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n{body}{behind}");
        let sending = async { machine.write_all(text.as_bytes()).await.unwrap() };
        let moving = async {
            head_of(&mut origin).await.unwrap();
            let mut all = origin.data().len();
            origin.consume(all);
            let pipes = Pipes::default();
            while let Some(left) = origin.to_come() {
                // Nobody empties them.
                let mut pipe = pipes.take().unwrap();
                let count = poll_fn(|context| origin.poll_fill(&mut pipe, context)).await;
                assert!(count > 0 && count as u64 <= left, "{count} of {left}");
                all += count;
            }
            assert_eq!(all, BYTES);
        };
        tokio::time::timeout(DEADLINE, async { tokio::join!(sending, moving) }).await.unwrap();
        assert_eq!(origin.buffer.capacity(), 0, "memory while a body is moved");
        assert!(origin.is_over() && origin.rests(), "{behind}");
        if behind.is_empty() {
            assert!(origin.is_quiet());
        }
        while !behind.is_empty() && origin.is_quiet() {
            has_news(&origin).await;
        }
    }
}

#[tokio::test]
async fn fields_behind_an_answer_come_behind_its_body() {
    let (mut origin, mut machine, _) = connected().await;
    origin.ask(&lone(GET)).await;
    let answer =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
    machine.write_all(answer.as_bytes()).await.unwrap();
    head_of(&mut origin).await.unwrap();
    let mut flow = Flow::new(origin);
    assert!(!flow.is_over());
    let (all, trailers) = frames(&mut flow).await.unwrap();
    assert_eq!((all.as_slice(), &trailers.unwrap()["x-sum"]), (&b"ok"[..], &HeaderValue::from(1)));
    assert!(flow.is_over() && flow.into_origin(DEADLINE).rests());
}

#[tokio::test]
async fn a_body_is_sent_in_one_piece_with_its_head_where_it_is_small() {
    let large = Bytes::from(vec![b'x'; 300_000]);
    for data in [Bytes::from_static(b"hello"), large] {
        let (origin, mut machine, _) = connected().await;
        let length = data.len().to_string();
        let parts = post(&[("content-length", length.as_str())]);
        let mut exchange = Exchange::new(origin, &parts, Given(Some(data.clone())));
        let want = format!("POST / HTTP/1.1\r\ncontent-length: {length}\r\n\r\n");
        let answering = async {
            let mut all = Vec::new();
            while all.len() < want.len() + data.len() {
                assert_ne!(machine.read_buf(&mut all).await.unwrap(), 0, "{length} bytes");
            }
            machine.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            all
        };
        let (head, all) = tokio::join!(exchange.answer(), answering);
        assert_eq!(head.unwrap().status, 200);
        assert!(all == [want.as_bytes(), &data].concat(), "{length} bytes");
        assert!(exchange.into_flow().into_origin(DEADLINE).rests());
    }
}

#[tokio::test]
async fn an_app_answers_while_it_reads() {
    let echo = async {
        let (origin, mut machine, _) = connected().await;
        let (client, fed) = mpsc::channel(1);
        let mut exchange = Exchange::new(origin, &post(&[]), Fed(fed));
        let beginning = async {
            read_until(&mut machine, b"chunked\r\n\r\n").await;
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            machine.write_all(head).await.unwrap();
        };
        let (head, ()) = tokio::join!(exchange.answer(), beginning);
        assert_eq!(head.unwrap().framing, Framing::Chunked);
        let mut flow = exchange.into_flow();
        for text in ["ping", "pong"] {
            client.send(Bytes::from_static(text.as_bytes())).await.unwrap();
            let chunk = format!("4\r\n{text}\r\n");
            assert_eq!(read_until(&mut machine, chunk.as_bytes()).await, chunk.as_bytes());
            machine.write_all(chunk.as_bytes()).await.unwrap();
            let frame = poll_fn(|context| flow.poll_frame(context)).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), text);
        }
        drop(client);
        read_until(&mut machine, b"0\r\n\r\n").await;
        machine.write_all(b"0\r\n\r\n").await.unwrap();
        assert_eq!(frames(&mut flow).await.unwrap(), (Vec::new(), None));
        flow
    };
    let flow = tokio::time::timeout(DEADLINE, LocalSet::new().run_until(echo)).await.unwrap();
    assert!(flow.is_over());
}

#[tokio::test]
async fn an_early_answer_is_read_and_the_rest_of_the_body_goes_on() {
    let early = async {
        let (origin, mut machine, load) = connected().await;
        let (client, fed) = mpsc::channel(1);
        let mut exchange = Exchange::new(origin, &post(&[]), Fed(fed));
        let beginning = async {
            read_until(&mut machine, b"chunked\r\n\r\n").await;
            machine.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        };
        let (head, ()) = tokio::join!(exchange.answer(), beginning);
        head.unwrap();
        let mut flow = exchange.into_flow();
        assert_eq!(frames(&mut flow).await.unwrap().0, b"ok");
        let mut origin = flow.into_origin(DEADLINE);
        assert!(!origin.rests(), "its request is still being sent");
        drop(origin);
        client.send(Bytes::from_static(b"rest")).await.unwrap();
        drop(client);
        read_until(&mut machine, b"4\r\nrest\r\n0\r\n\r\n").await;
        let end = tokio::time::timeout(DEADLINE, machine.read_buf(&mut Vec::new())).await;
        assert_eq!(end.unwrap().unwrap(), 0, "the connection ends with it");
        assert_eq!(Arc::strong_count(&load), 1);
    };
    LocalSet::new().run_until(early).await;
}

#[tokio::test]
async fn a_body_that_nobody_waits_for_any_more_ends_with_the_answer_that_is_given_up() {
    let left = async {
        let (origin, mut machine, _) = connected().await;
        let (client, fed) = mpsc::channel(1);
        let mut exchange = Exchange::new(origin, &post(&[]), Fed(fed));
        let beginning = async {
            read_until(&mut machine, b"chunked\r\n\r\n").await;
            machine.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").await.unwrap();
        };
        let (head, ()) = tokio::join!(exchange.answer(), beginning);
        head.unwrap();
        drop(exchange.into_flow());
        tokio::time::timeout(DEADLINE, client.closed()).await.unwrap();
        let end = tokio::time::timeout(DEADLINE, machine.read_buf(&mut Vec::new())).await;
        assert!(matches!(end.unwrap(), Ok(0) | Err(_)), "the connection is closed");
    };
    LocalSet::new().run_until(left).await;
}

#[tokio::test]
async fn fields_behind_an_answer_that_nobody_took_are_not_kept() {
    let (mut origin, mut machine, _) = connected().await;
    origin.ask(&lone(GET)).await;
    let fields = format!("X: {}\r\n", "y".repeat(4000));
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{fields}\r\n");
    machine.write_all(answer.as_bytes()).await.unwrap();
    head_of(&mut origin).await.unwrap();
    assert_eq!(body(&mut origin).await.unwrap(), b"");
    assert!(origin.rests() && origin.trailers.capacity() < 4000);
}

#[tokio::test]
async fn a_switch_gives_the_connection_away_with_what_came_behind_the_answer() {
    let (origin, mut machine, load) = connected().await;
    let mut exchange = Exchange::new(origin, &post(&[("upgrade", "x")]), Given(None));
    let answering = async {
        read_until(&mut machine, b"\r\n\r\n").await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n\0front";
        machine.write_all(answer).await.unwrap();
    };
    let (head, ()) = tokio::join!(exchange.answer(), answering);
    assert_eq!(head.unwrap().status, 101);
    let mut switched = exchange.into_flow().into_switched().unwrap();
    let mut all = Vec::new();
    while all.len() < 6 {
        switched.stream.read_buf(&mut all).await.unwrap();
    }
    assert_eq!(all, b"\0front");
    switched.stream.write_all(b"back").await.unwrap();
    assert_eq!(read_until(&mut machine, b"back").await, b"back");
    assert_eq!(Arc::strong_count(&load), 2, "its end is counted when the tunnel's is");
    drop(switched);
    assert_eq!(Arc::strong_count(&load), 1);
}

#[tokio::test]
async fn a_request_of_which_nothing_could_be_sent_is_told_from_one_that_broke() {
    let (mut origin, machine, _) = connected().await;
    // Closed with something unread: the other side is reset.
    assert_eq!(origin.ask(&lone(GET)).await, Wrote::Whole);
    machine.readable().await.unwrap();
    drop(machine);
    head_of(&mut origin).await.unwrap_err();
    assert_eq!(origin.ask(&lone(GET)).await, Wrote::Nothing);
    let mut exchange = Exchange::new(origin, &post(&[]), Given(None));
    assert!(matches!(exchange.answer().await, Err(Fault::Broken(_))));
    assert!(exchange.is_unsent());
}

#[tokio::test]
async fn a_machine_that_does_not_take_a_request_is_not_waited_for_without_an_end() {
    // More than both ends of a connection hold.
    let head = vec![b'x'; 32 * 1024 * 1024];
    let (mut origin, _deaf, _) = connected().await;
    let soon = Lone { deadline: Instant::now() + Duration::from_millis(20), ..lone(&head) };
    let asking = origin.ask(&soon);
    let wrote = tokio::time::timeout(DEADLINE, asking).await;
    assert_eq!(wrote.expect("it ends"), Wrote::Part);
    assert!(!origin.rests());
    // Nobody else is asked what a machine may have begun to read.
    assert_eq!(origin.ask(&Lone { deadline: Instant::now(), ..lone(&head) }).await, Wrote::Part);
}

#[tokio::test]
async fn the_rest_of_a_body_that_nobody_takes_ends_behind_its_answer() {
    let deaf = async {
        let (origin, mut machine, load) = connected().await;
        let (client, fed) = mpsc::channel(1);
        // More than both ends of a connection hold.
        client.send(Bytes::from(vec![b'x'; 32 * 1024 * 1024])).await.unwrap();
        let mut exchange = Exchange::new(origin, &post(&[]), Fed(fed));
        machine.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        exchange.answer().await.unwrap();
        drop(exchange.into_flow().into_origin(Duration::from_millis(20)));
        tokio::time::timeout(DEADLINE, client.closed()).await.expect("it is given up");
        assert_eq!(Arc::strong_count(&load), 1);
        drop(machine);
    };
    LocalSet::new().run_until(deaf).await;
}
