//! Asking the host's own resolvers about names that are not the platform's.
//!
//! Never hands on an answer that points a machine at an internal address (N8), never believes an
//! answer that does not repeat a random id, a random port and the question's random case.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::message::DATAGRAM_BYTES_MAX;

/// How long one resolver is waited for.
const TRY_TIMEOUT: Duration = Duration::from_millis(2_000);
/// How often a resolver is asked before the question is given up.
const TRIES_MAX: usize = 3;
/// Resolvers that are taken of a configuration.
pub(crate) const UPSTREAMS_MAX: usize = 4;
/// Datagrams of a wrong shape that are looked at before a try is given up.
const STRAY_DATAGRAMS_MAX: usize = 16;
/// Records of a section that are handed on.
const RECORDS_MAX: usize = 256;

/// What went wrong with one resolver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A socket's operation.
    #[error("ask resolver {upstream}")]
    Ask {
        /// Which.
        upstream: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing came in time.
    #[error("wait for resolver {0}")]
    Silent(SocketAddr),
    /// What came was no answer.
    #[error("read answer of resolver {0}")]
    Unreadable(SocketAddr),
    /// There is none to ask.
    #[error("find a resolver in the configuration")]
    Missing,
}

/// Returns the resolvers of a `resolv.conf`, without `own` addresses that would ask themselves.
#[must_use]
pub fn upstreams(resolv_conf: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
        })
        .filter(|address| !own.contains(address))
        .take(UPSTREAMS_MAX)
        .map(|address: IpAddr| SocketAddr::new(address, 53))
        .collect()
}

/// Returns whether an address belongs to the public internet; everything that a machine must not
/// be led to does not.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a == 10
        || a == 127
        || a >= 224
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    match segments {
        // NAT64 and 6to4 embed an IPv4 address, Teredo hides one.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            is_public_v4(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low)))
        }
        [0x2001, 0, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Asks the resolvers in turn until one answers.
pub(crate) async fn ask(upstreams: &[SocketAddr], query: &Query) -> Result<Message, Error> {
    ask_as_it_is(upstreams, query).await.map(|message| cleaned(message, query))
}

/// Asks the resolvers in turn until one answers; what it says may lead inside.
pub(crate) async fn ask_as_it_is(
    upstreams: &[SocketAddr],
    query: &Query,
) -> Result<Message, Error> {
    let mut last = Error::Missing;
    for upstream in upstreams.iter().cycle().take(TRIES_MAX.min(upstreams.len() * 2)) {
        match timeout(TRY_TIMEOUT, ask_one(*upstream, query)).await {
            Ok(Ok(message)) => return Ok(message),
            Ok(Err(error)) => last = error,
            Err(_) => last = Error::Silent(*upstream),
        }
    }
    Err(last)
}

async fn ask_one(upstream: SocketAddr, query: &Query) -> Result<Message, Error> {
    let failed = |source| Error::Ask { upstream, source };
    let question = question(query);
    let bytes = question.to_vec().map_err(|_| Error::Unreadable(upstream))?;
    let any: SocketAddr = if upstream.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    // A socket a question: the kernel picks a random port, and connecting makes it deaf to
    // everybody else.
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    socket.connect(upstream).await.map_err(failed)?;
    socket.send(&bytes).await.map_err(failed)?;
    let mut buffer = vec![0; 4_096];
    // Half of the time is left for TCP.
    let deadline = Instant::now() + TRY_TIMEOUT / 2;
    for _ in 0..STRAY_DATAGRAMS_MAX {
        let Ok(received) = timeout_at(deadline, socket.recv(&mut buffer)).await else {
            return Err(Error::Silent(upstream));
        };
        let length = received.map_err(failed)?;
        let Some(answer) = buffer.get(..length).and_then(|bytes| Message::from_vec(bytes).ok())
        else {
            continue;
        };
        match believe(&question, &answer) {
            Belief::No => {}
            Belief::Yes if !answer.metadata.truncation => return Ok(answer),
            Belief::Yes | Belief::OtherCase => break,
        }
    }
    ask_by_tcp(upstream, &question, &bytes).await
}

async fn ask_by_tcp(
    upstream: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> Result<Message, Error> {
    let failed = |source| Error::Ask { upstream, source };
    let mut stream = TcpStream::connect(upstream).await.map_err(failed)?;
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let framed = [&length.to_be_bytes(), bytes].concat();
    stream.write_all(&framed).await.map_err(failed)?;
    let length = stream.read_u16().await.map_err(failed)?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.map_err(failed)?;
    let answer = Message::from_vec(&answer).map_err(|_| Error::Unreadable(upstream))?;
    match believe(question, &answer) {
        Belief::Yes | Belief::OtherCase => Ok(answer),
        Belief::No => Err(Error::Unreadable(upstream)),
    }
}

/// Makes a question with a random id and a random case of its name.
fn question(query: &Query) -> Message {
    let mut random = [0_u8; 34];
    // Without randomness the id and the case are guessable and the port still is not.
    let _filled = getrandom::fill(&mut random);
    let [high, low, bits @ ..] = random;
    let mut message =
        Message::new(u16::from_be_bytes([high, low]), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut position = 0;
    let labels: Vec<Vec<u8>> = query
        .name()
        .iter()
        .map(|label| label.iter().map(|byte| flipped(*byte, &bits, &mut position)).collect())
        .collect();
    let mut name = Name::from_labels(labels).unwrap_or_else(|_| query.name().clone());
    name.set_fqdn(true);
    let mut asked = query.clone();
    asked.set_name(name);
    message.add_query(asked);
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM_BYTES_MAX);
    message.set_edns(edns);
    message
}

fn flipped(byte: u8, bits: &[u8], position: &mut usize) -> u8 {
    let bit = bits.get(*position / 8).map_or(0, |bits| (bits >> (*position % 8)) & 1);
    *position += 1;
    if byte.is_ascii_alphabetic() && bit == 1 { byte ^ 0x20 } else { byte }
}

#[derive(Debug, PartialEq, Eq)]
enum Belief {
    Yes,
    /// All but the name's case: a resolver that does not keep it, or a good guess.
    OtherCase,
    No,
}

fn believe(question: &Message, answer: &Message) -> Belief {
    let (metadata, asked) = (&answer.metadata, question.queries.first());
    let (Some(asked), [repeated]) = (asked, answer.queries.as_slice()) else {
        return Belief::No;
    };
    if metadata.id != question.metadata.id
        || metadata.message_type != MessageType::Response
        || asked.query_type() != repeated.query_type()
        || asked.query_class() != repeated.query_class()
        || !asked.name().eq_ignore_root(repeated.name())
    {
        return Belief::No;
    }
    if asked.name().eq_ignore_root_case(repeated.name()) { Belief::Yes } else { Belief::OtherCase }
}

/// Takes what leads inside out of an answer, and gives names back the case they were asked in.
fn cleaned(mut message: Message, query: &Query) -> Message {
    let clean = |records: Vec<Record>| -> Vec<Record> {
        records
            .into_iter()
            .filter(|record| leads_outside(&record.data))
            .take(RECORDS_MAX)
            .map(|mut record| {
                if record.name.eq_ignore_root(query.name()) {
                    record.name = query.name().clone();
                }
                record
            })
            .collect()
    };
    message.answers = clean(message.answers);
    message.authorities = clean(message.authorities);
    // Nobody asked for these; they are where poison would be.
    message.additionals = Vec::new();
    message
}

fn leads_outside(data: &RData) -> bool {
    match data {
        RData::A(address) => is_public(address.0.into()),
        RData::AAAA(address) => is_public(address.0.into()),
        RData::HTTPS(https) => hints_lead_outside(&https.0.svc_params),
        RData::SVCB(svcb) => hints_lead_outside(&svcb.svc_params),
        _ => true,
    }
}

fn hints_lead_outside<K>(parameters: &[(K, SvcParamValue)]) -> bool {
    parameters.iter().all(|(_, value)| match value {
        SvcParamValue::Ipv4Hint(hint) => hint.0.iter().all(|address| is_public(address.0.into())),
        SvcParamValue::Ipv6Hint(hint) => hint.0.iter().all(|address| is_public(address.0.into())),
        _ => true,
    })
}

/// Returns the response to `to` that hands on what upstream said.
pub(crate) fn hand_on(to: &Message, said: Message) -> Message {
    let mut response = crate::message::respond(to, said.metadata.response_code);
    match said.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {
            response.answers = said.answers;
            response.authorities = said.authorities;
        }
        _ => {}
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_never_ones_own() {
        let text = "# c\nsearch a.b\nnameserver 192.0.2.1\nnameserver fdaa::3\nnameserver ::1 x\n\
                    nameserver x\nnameserver\noptions edns0\n";
        let own = ["fdaa::3".parse().unwrap()];
        let expected: Vec<SocketAddr> =
            vec!["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(upstreams(text, &own), expected);
    }

    #[test]
    fn n8_internal_addresses_are_known() {
        for inside in [
            "10.1.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fdaa::3",
            "fc00::1",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "2001::1",
            "::ffff:0:127.0.0.1",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::101:101"]
        {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn n8_questions_differ_in_id_and_case_and_mean_the_same() {
        let name = Name::from_ascii("a-long-enough-name.example.com.").unwrap();
        let query = Query::query(name.clone(), hickory_proto::rr::RecordType::A);
        let made: Vec<Message> = (0..8).map(|_| question(&query)).collect();
        assert!(made.iter().all(|m| m.queries[0].name() == &name));
        let ids: std::collections::BTreeSet<_> = made.iter().map(|m| m.metadata.id).collect();
        let cases: std::collections::BTreeSet<_> =
            made.iter().map(|m| m.queries[0].name().to_ascii()).collect();
        assert!(ids.len() > 4 && cases.len() > 4, "{ids:?} {cases:?}");
        let mut answer = made[0].clone();
        assert_eq!(believe(&made[0], &answer), Belief::No, "a question is no answer");
        answer.metadata.message_type = MessageType::Response;
        assert_eq!(believe(&made[0], &answer), Belief::Yes);
        answer.metadata.id ^= 1;
        assert_eq!(believe(&made[0], &answer), Belief::No);
    }
}
