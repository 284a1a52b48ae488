//! DNS messages: what a question asks, what an answer looks like.
//!
//! Never trusts a message further than that it could be read.

use std::net::Ipv6Addr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{AAAA, PTR, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::answer::{Answer, Kind};

/// How long answers about machines may be kept (contract 5.2).
const TTL_SECONDS: u32 = 5;
/// The largest datagram that is sent or asked for: what passes every path unfragmented.
pub(crate) const DATAGRAM_BYTES_MAX: u16 = 1_232;
/// The largest datagram for those who say nothing (RFC 1035).
const DATAGRAM_BYTES_PLAIN: u16 = 512;
/// The longest string of a TXT record.
const TEXT_BYTES_MAX: usize = 255;
/// Bytes of text in one answer: what fits a message over TCP.
const ANSWER_TEXT_BYTES_MAX: usize = 60_000;
/// Addresses in one answer.
const ADDRESSES_MAX: usize = 512;

/// Returns the one question of a message, or how to refuse it; `None` is not worth an answer.
pub(crate) fn question(message: &Message) -> Option<Result<&Query, ResponseCode>> {
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    Some(match message.queries.as_slice() {
        _ if message.metadata.op_code != OpCode::Query => Err(ResponseCode::NotImp),
        [query] if query.query_class() == DNSClass::IN => match query.query_type() {
            RecordType::AXFR | RecordType::IXFR | RecordType::ANY => Err(ResponseCode::Refused),
            _ => Ok(query),
        },
        [_] => Err(ResponseCode::Refused),
        _ => Err(ResponseCode::FormErr),
    })
}

/// Returns the labels of a name in lower case; `None` when one of them is not text.
pub(crate) fn labels(name: &Name) -> Option<Vec<String>> {
    name.iter().map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase)).collect()
}

/// Returns what a record type is to [`crate::answer()`].
pub(crate) fn kind(record_type: RecordType) -> Kind {
    match record_type {
        RecordType::AAAA => Kind::Address,
        RecordType::TXT => Kind::Text,
        RecordType::PTR => Kind::Pointer,
        _ => Kind::Other,
    }
}

/// Returns an empty response to a message.
pub(crate) fn respond(to: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(to.metadata.id, to.metadata.op_code);
    response.metadata.recursion_desired = to.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.queries.clone_from(&to.queries);
    if to.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES_MAX);
        response.set_edns(edns);
    }
    response
}

/// Returns the response that carries an answer; [`Answer::Forward`] is not one.
pub(crate) fn respond_with(to: &Message, query: &Query, answer: Answer) -> Message {
    let mut response = respond(to, ResponseCode::NoError);
    response.metadata.authoritative = true;
    let record = |data| Record::from_rdata(query.name().clone(), TTL_SECONDS, data);
    match answer {
        Answer::Addresses(addresses) => {
            let addresses = turned(addresses, to.metadata.id);
            response.answers = addresses
                .into_iter()
                .take(ADDRESSES_MAX)
                .map(|address| record(RData::AAAA(AAAA(address))))
                .collect();
        }
        Answer::Text(text) => response.answers = vec![record(RData::TXT(strings(&text)))],
        Answer::Pointer(name) => {
            if let Ok(name) = Name::from_ascii(name) {
                response.answers = vec![record(RData::PTR(PTR(name)))];
            }
        }
        Answer::NoName => response.metadata.response_code = ResponseCode::NXDomain,
        Answer::NoData => {}
        Answer::Forward => response.metadata.response_code = ResponseCode::ServFail,
    }
    response
}

/// Turns the order by the question's random id, so that clients that take the first spread.
fn turned(mut addresses: Vec<Ipv6Addr>, id: u16) -> Vec<Ipv6Addr> {
    if !addresses.is_empty() {
        let by = usize::from(id) % addresses.len();
        addresses.rotate_left(by);
    }
    addresses
}

fn strings(text: &str) -> TXT {
    let bytes = text.as_bytes();
    let bytes = bytes.get(..ANSWER_TEXT_BYTES_MAX).unwrap_or(bytes);
    if bytes.is_empty() {
        return TXT::from_bytes(vec![b""]);
    }
    TXT::from_bytes(bytes.chunks(TEXT_BYTES_MAX).collect())
}

/// Returns the bytes of a response for a datagram, marked as truncated when they do not fit what
/// the asking program takes.
pub(crate) fn datagram(to: &Message, response: &Message) -> Option<Vec<u8>> {
    fitted(to, response, usize::from(DATAGRAM_BYTES_MAX))
}

/// Returns the same for a datagram that is not longer than `most` either; what is marked as
/// truncated is about as long as the question.
pub(crate) fn fitted(to: &Message, response: &Message, most: usize) -> Option<Vec<u8>> {
    let taken = match &to.edns {
        Some(edns) => edns.max_payload().clamp(DATAGRAM_BYTES_PLAIN, DATAGRAM_BYTES_MAX),
        None => DATAGRAM_BYTES_PLAIN,
    };
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= usize::from(taken).min(most) {
        return Some(bytes);
    }
    let mut short = respond(to, response.metadata.response_code);
    short.metadata.authoritative = response.metadata.authoritative;
    short.metadata.recursion_available = response.metadata.recursion_available;
    short.metadata.truncation = true;
    // Of one that asks more than once, all its questions may not fit either.
    short.queries.truncate(1);
    short.to_vec().ok()
}
