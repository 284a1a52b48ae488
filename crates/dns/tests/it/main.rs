//! The resolver over real sockets, with an upstream of the test's own.

#![expect(
    clippy::unwrap_used,
    reason = "tests stop at the first thing that is not as it should be"
)]

mod zone;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use perch_dns::{Resolver, ViewSource};
use perch_types::view::View;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// A view in which the tests themselves, by their address, are a machine.
fn view(machines: u64) -> View {
    let mut view = View::default();
    for id in 1..=machines {
        let record = json!({"id": format!("{id:014x}"), "org": "personal", "app": "web",
            "name": "n", "host": "000000000001", "region": "ams",
            "instance": "01ARYZ6S410000000000000000",
            "generation": {"incarnation": 1, "counter": 1}, "state": "started", "ready": true,
            "private_ip": format!("fdaa:0:1:0:0:0:{id:x}:2"),
            "private_ipv4": format!("127.0.{}.1", id - 1), "image": "i", "cpus": 1,
            "memory_mb": 256, "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z"});
        let key = format!("machines/personal/web/{id:014x}");
        view.apply(&key, Some(record.to_string().as_bytes())).unwrap();
    }
    view
}

struct Served {
    udp: SocketAddr,
    tcp: SocketAddr,
    task: AbortHandle,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(view: View, upstreams: Vec<SocketAddr>) -> Served {
    let view = Arc::new(view);
    let resolver = Resolver::new(ViewSource::new(move || view.clone()), upstreams);
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let task = tokio::spawn(resolver.serve(vec![udp], vec![tcp])).abort_handle();
    Served { udp: udp_at, tcp: tcp_at, task }
}

fn question(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(4_711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message
}

async fn ask(served: &Served, question: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question.to_vec().unwrap(), served.udp).await.unwrap();
    let mut buffer = [0; 4_096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.queries, question.queries);
    answer
}

async fn ask_by_tcp(served: &Served, question: &Message) -> Message {
    let mut stream = TcpStream::connect(served.tcp).await.unwrap();
    let bytes = question.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().filter_map(|r| r.data.ip_addr()).map(|ip| ip.to_string()).collect()
}

/// What the upstream of a test does with a question.
type Say = fn(&Message, usize) -> Vec<Message>;

fn say(question: &Message, addresses: &[&str]) -> Message {
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.queries.clone_from(&question.queries);
    let name = question.queries[0].name().clone();
    for address in addresses {
        let data = match address.parse().unwrap() {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(hickory_proto::rr::rdata::AAAA(v6)),
        };
        message.add_answer(Record::from_rdata(name.clone(), 60, data));
    }
    message
}

/// An upstream that answers every datagram with what `behaviour` says, and TCP in full.
async fn upstream(behaviour: Say) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(at).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        for number in 0.. {
            let (length, source) = udp.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            for answer in behaviour(&question, number) {
                udp.send_to(&answer.to_vec().unwrap(), source).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut bytes = vec![0; usize::from(length)];
            stream.read_exact(&mut bytes).await.unwrap();
            let question = Message::from_vec(&bytes).unwrap();
            let bytes = say(&question, &["203.0.113.99"]).to_vec().unwrap();
            stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    at
}

#[tokio::test]
async fn a_machine_finds_its_neighbours() {
    let served = serve(view(2), vec![]).await;
    let answer = ask(&served, &question("Web.internal.", RecordType::AAAA)).await;
    let mut found = addresses(&answer);
    found.sort();
    assert_eq!(found, ["fdaa:0:1::1:2", "fdaa:0:1::2:2"]);
    assert!(answer.answers.iter().all(|record| record.ttl == 5));
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    let none = ask(&served, &question("web.internal.", RecordType::A)).await;
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
    let missing = ask(&served, &question("no.internal.", RecordType::AAAA)).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    let served = serve(view(120), vec![]).await;
    let asked = question("web.internal.", RecordType::AAAA);
    let cut = ask(&served, &asked).await;
    assert!(cut.metadata.truncation);
    assert_eq!(ask_by_tcp(&served, &asked).await.answers.len(), 120);
    let text = ask_by_tcp(&served, &question("vms.web.internal.", RecordType::TXT)).await;
    let RData::TXT(TXT { txt_data, .. }) = &text.answers[0].data else { panic!("{text:?}") };
    assert!(txt_data.len() > 1 && txt_data.iter().all(|part| part.len() <= 255));
    assert_eq!(txt_data.concat().split(|byte| *byte == b',').count(), 120);
}

#[tokio::test]
async fn n8_no_zone_transfer_and_no_foreign_operation() {
    let served = serve(view(1), vec![]).await;
    for refused in [RecordType::AXFR, RecordType::IXFR, RecordType::ANY] {
        let answer = ask(&served, &question("internal.", refused)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    }
    let mut update = question("web.internal.", RecordType::AAAA);
    update.metadata.op_code = OpCode::Update;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // Neither rubbish nor an answer is answered; the question behind them is.
    socket.send_to(b"rubbish", served.udp).await.unwrap();
    let mut response = question("web.internal.", RecordType::AAAA);
    response.metadata.message_type = MessageType::Response;
    socket.send_to(&response.to_vec().unwrap(), served.udp).await.unwrap();
    let mut buffer = [0; 512];
    let mut asked = question("web.internal.", RecordType::AAAA);
    asked.metadata.id = 5;
    socket.send_to(&asked.to_vec().unwrap(), served.udp).await.unwrap();
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, 5);
}

#[tokio::test]
async fn n8_upstream_answers_that_lead_inside_lose_their_records() {
    let at = upstream(|question, _| {
        vec![say(question, &["203.0.113.7", "169.254.169.254", "10.209.0.16", "fdaa:0:1::1:2"])]
    })
    .await;
    let served = serve(view(1), vec![at]).await;
    let answer = ask(&served, &question("Example.COM.", RecordType::A)).await;
    assert_eq!(addresses(&answer), ["203.0.113.7"]);
    assert_eq!(answer.answers[0].name.to_ascii(), "Example.COM.");
}

#[tokio::test]
async fn n8_a_guessed_answer_is_not_believed() {
    let at = upstream(|question, _| {
        let mut wrong_id = say(question, &["203.0.113.66"]);
        wrong_id.metadata.id ^= 1;
        let mut wrong_name = say(question, &["203.0.113.66"]);
        let other = Name::from_ascii("other.example.").unwrap();
        wrong_name.queries[0].set_name(other);
        vec![wrong_id, wrong_name, say(question, &["203.0.113.7"])]
    })
    .await;
    let served = serve(view(1), vec![at]).await;
    let answer = ask(&served, &question("example.com.", RecordType::A)).await;
    assert_eq!(addresses(&answer), ["203.0.113.7"]);
}

#[tokio::test]
async fn n8_an_answer_in_another_case_or_cut_is_asked_again_by_tcp() {
    fn lowered(question: &Message, _: usize) -> Vec<Message> {
        let mut answer = say(question, &["203.0.113.66"]);
        let name = answer.queries[0].name().to_lowercase();
        answer.queries[0].set_name(name);
        vec![answer]
    }
    fn cut(question: &Message, _: usize) -> Vec<Message> {
        let mut answer = say(question, &[]);
        answer.metadata.truncation = true;
        vec![answer]
    }
    for behaviour in [lowered as Say, cut] {
        let served = serve(view(1), vec![upstream(behaviour).await]).await;
        let name = "a-name-with-enough-letters-to-be-flipped.example.com.";
        let answer = ask(&served, &question(name, RecordType::A)).await;
        assert_eq!(addresses(&answer), ["203.0.113.99"]);
    }
}

#[tokio::test]
async fn a_silent_upstream_is_passed_over() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let working = upstream(|question, _| vec![say(question, &["203.0.113.7"])]).await;
    let served = serve(view(1), vec![silent.local_addr().unwrap(), working]).await;
    let answer = ask(&served, &question("example.com.", RecordType::A)).await;
    assert_eq!(addresses(&answer), ["203.0.113.7"]);
    let nobody = serve(view(1), vec![]).await;
    let answer = ask(&nobody, &question("example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_machine_the_view_does_not_know_yet_is_told_to_ask_again() {
    let at = upstream(|question, _| vec![say(question, &["203.0.113.7"])]).await;
    let served = serve(View::default(), vec![at]).await;
    let answer = ask(&served, &question("web.internal.", RecordType::AAAA)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let answer = ask_by_tcp(&served, &question("example.com.", RecordType::A)).await;
    assert_eq!(addresses(&answer), ["203.0.113.7"]);
}

#[tokio::test]
async fn a_machine_that_asks_too_much_is_left_without_answers() {
    let served = serve(view(1), vec![]).await;
    // Far more than the burst, asked faster than tokens come back.
    assert!(flood(&served, [127, 0, 0, 1].into(), 2_000).await < 2_000 * AT_ONCE);
    assert_eq!(flood(&served, [127, 0, 0, 2].into(), 1).await, AT_ONCE);
}

const AT_ONCE: usize = 32;

/// Asks many times at once, so that a slow machine asks too fast all the same, and returns how
/// many answers came before the first that did not.
async fn flood(served: &Served, client: IpAddr, rounds: usize) -> usize {
    let asked = question("web.internal.", RecordType::AAAA).to_vec().unwrap();
    let socket = UdpSocket::bind((client, 0)).await.unwrap();
    let (mut got, mut buffer) = (0, [0; 512]);
    for _ in 0..rounds {
        for _ in 0..AT_ONCE {
            socket.send_to(&asked, served.udp).await.unwrap();
        }
        for _ in 0..AT_ONCE {
            match timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await {
                Ok(received) => got += usize::from(received.unwrap() > 0),
                Err(_) => return got,
            }
        }
    }
    got
}
