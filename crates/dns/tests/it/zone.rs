//! The zone of challenges over real sockets.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use perch_dns::{Responder, TextSource, Zone};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::{PATIENCE, Served, ask, ask_by_tcp, question};

async fn serve() -> Served {
    let zone = Zone::new("acme.example", &["ns.example".to_owned()]).unwrap();
    let texts = TextSource::new(|label| (label == "label").then(|| vec!["digest".to_owned()]));
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let served = Responder::new(zone, texts).serve(vec![udp], vec![tcp]);
    Served { udp: udp_at, tcp: tcp_at, task: tokio::spawn(served).abort_handle() }
}

fn texts(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn the_zone_answers_datagrams_and_connections() {
    let served = serve().await;
    let asked = question("Label.acme.example.", RecordType::TXT);
    for answer in [ask(&served, &asked).await, ask_by_tcp(&served, &asked).await] {
        assert_eq!(texts(&answer), ["digest"]);
        assert!(answer.metadata.authoritative && !answer.metadata.recursion_available);
    }
    let other = ask(&served, &question("example.", RecordType::TXT)).await;
    assert_eq!(other.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn n8_who_asks_too_much_by_datagram_is_told_to_connect_and_can() {
    let served = serve().await;
    let asked = question("label.acme.example.", RecordType::TXT);
    let bytes = asked.to_vec().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let told = async {
        let mut buffer = [0; 512];
        for sent in 0_u32.. {
            // More than are awaited, as some have no answer at all.
            for _ in 0..4 {
                socket.send_to(&bytes, served.udp).await.unwrap();
            }
            let length = socket.recv(&mut buffer).await.unwrap();
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            if answer.metadata.truncation {
                return (length, answer);
            }
            assert!(sent < 10_000, "nobody is told");
        }
        unreachable!()
    };
    let (length, told) = timeout(PATIENCE, told).await.unwrap();
    assert!(length <= bytes.len() && told.answers.is_empty(), "{told:?}");
    assert_eq!(texts(&ask_by_tcp(&served, &asked).await), ["digest"]);
}

#[tokio::test]
async fn n8_a_connection_that_brings_no_question_is_closed() {
    let served = serve().await;
    for sent in [&[2, 1][..], &[0, 3, 1, 2, 3]] {
        let mut stream = TcpStream::connect(served.tcp).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(read.is_err() || rest.is_empty(), "{rest:?}");
    }
}
