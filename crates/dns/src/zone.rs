//! The zone of challenges: names with the records that DNS-01 looks for, told to whoever asks.
//!
//! Never asks anybody, and never hands the zone out: it answers one question about a name of its
//! own, and refuses all others. Pure, but for [`Responder`].

use std::fmt;
use std::sync::Arc;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{NS, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::message;

mod rates;
mod responder;

pub use self::responder::Responder;

/// The longest question that is read: a name, and what resolvers say beside it.
const QUESTION_BYTES_MAX: usize = 512;
/// Records of each kind beside a question: those of its extensions. Room is made for as many as a
/// message claims to have.
const RECORDS_MAX: u16 = 2;
/// How many times as long as its question an answer by datagram is at most, so that it is of little
/// use to whoever asks in another's name.
pub(crate) const GROWTH_MAX: usize = 4;
/// Texts of one name that are told.
const TEXTS_MAX: usize = 8;
/// The longest text of a record.
const TEXT_BYTES_MAX: usize = 255;
/// How long what a name has, or has not, may be kept: the next order has another text.
const TTL_SECONDS: u32 = 5;
/// How long the names of the servers may be kept.
const SERVERS_TTL_SECONDS: u32 = 3_600;
/// What a second server of the zone would go by: there is none that copies it.
const SERIAL: u32 = 1;
const REFRESH_S: i32 = 3_600;
const RETRY_S: i32 = 600;
const EXPIRE_S: i32 = 86_400;

/// A name of the zone, or of one of its servers, is none.
#[derive(Debug, thiserror::Error)]
#[error("read the name `{0}`")]
pub struct ZoneError(String);

/// How a question came, and so how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In a datagram.
    Datagram,
    /// In a datagram from where too many come: the answer says no more than to ask by connection.
    Crowded,
    /// Over a connection, by who can be reached there.
    Connection,
}

/// Where the texts of the zone's names come from.
#[derive(Clone)]
pub struct TextSource(Arc<Texts>);

type Texts = dyn Fn(&str) -> Option<Vec<String>> + Send + Sync;

impl TextSource {
    /// Takes a function that returns, without waiting, the texts of the name right below the zone
    /// with a label in lower case; none at all where there is no such name.
    pub fn new(texts: impl Fn(&str) -> Option<Vec<String>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(texts))
    }
}

impl fmt::Debug for TextSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TextSource")
    }
}

/// A zone.
#[derive(Debug, Clone)]
pub struct Zone {
    name: Name,
    labels: Vec<Vec<u8>>,
    servers: Vec<Name>,
    authority: SOA,
}

impl Zone {
    /// Makes a zone that these servers answer for, the first of them foremost.
    ///
    /// # Errors
    /// When a name is none.
    pub fn new(name: &str, servers: &[String]) -> Result<Self, ZoneError> {
        let name = read(name)?;
        let servers = servers.iter().map(|it| read(it)).collect::<Result<Vec<_>, _>>()?;
        let first = servers.first().unwrap_or(&name).clone();
        let mailbox = name.prepend_label("hostmaster");
        let mailbox = mailbox.map_err(|_| ZoneError(name.to_ascii()))?;
        let authority = SOA::new(first, mailbox, SERIAL, REFRESH_S, RETRY_S, EXPIRE_S, TTL_SECONDS);
        Ok(Self { labels: labels(&name), name, servers, authority })
    }

    /// Returns the answer to a question as it came; nothing to what is none.
    #[must_use]
    pub fn answer(&self, question: &[u8], way: Way, texts: &TextSource) -> Option<Vec<u8>> {
        if question.len() > QUESTION_BYTES_MAX || !is_one_question(question) {
            return None;
        }
        let asked = Message::from_vec(question).ok()?;
        let mut response = match message::question(&asked)? {
            _ if asked.edns.as_ref().is_some_and(|edns| edns.version() > 0) => {
                message::respond(&asked, ResponseCode::BADVERS)
            }
            Err(code) => message::respond(&asked, code),
            Ok(query) => self.respond(&asked, query, texts),
        };
        response.metadata.recursion_available = false;
        match way {
            Way::Datagram => {
                message::fitted(&asked, &response, question.len().saturating_mul(GROWTH_MAX))
            }
            Way::Crowded => message::fitted(&asked, &response, 0),
            Way::Connection => response.to_vec().ok(),
        }
    }

    fn respond(&self, asked: &Message, query: &Query, texts: &TextSource) -> Message {
        let (asked_labels, kind) = (labels(query.name()), query.query_type());
        let Some(below) = asked_labels.strip_suffix(self.labels.as_slice()) else {
            return message::respond(asked, ResponseCode::Refused);
        };
        let mut response = message::respond(asked, ResponseCode::NoError);
        response.metadata.authoritative = true;
        let record = |ttl, data| Record::from_rdata(query.name().clone(), ttl, data);
        match below {
            [] if kind == RecordType::SOA => {
                response.answers = vec![record(TTL_SECONDS, RData::SOA(self.authority.clone()))];
            }
            [] if kind == RecordType::NS => {
                let server = |name: &Name| record(SERVERS_TTL_SECONDS, RData::NS(NS(name.clone())));
                response.answers = self.servers.iter().map(server).collect();
            }
            [] => {}
            [label] => match std::str::from_utf8(label).ok().and_then(|label| (texts.0)(label)) {
                Some(found) if kind == RecordType::TXT => {
                    let found = found.into_iter().filter(|text| text.len() <= TEXT_BYTES_MAX);
                    let text = |text: String| record(TTL_SECONDS, RData::TXT(TXT::new(vec![text])));
                    response.answers = found.take(TEXTS_MAX).map(text).collect();
                }
                Some(_) => {}
                None => response.metadata.response_code = ResponseCode::NXDomain,
            },
            [_, _, ..] => response.metadata.response_code = ResponseCode::NXDomain,
        }
        if response.answers.is_empty() {
            // How long it may be kept that there is nothing (RFC 2308).
            let authority = RData::SOA(self.authority.clone());
            response.authorities =
                vec![Record::from_rdata(self.name.clone(), TTL_SECONDS, authority)];
        }
        response
    }
}

/// Returns whether a message claims to have one question, and little beside it.
fn is_one_question(message: &[u8]) -> bool {
    let Some((header, _)) = message.split_first_chunk::<12>() else { return false };
    let [_, _, _, _, q, r, a, b, c, d, e, f] = *header;
    let others = [[a, b], [c, d], [e, f]].map(u16::from_be_bytes);
    u16::from_be_bytes([q, r]) == 1 && others.into_iter().all(|count| count <= RECORDS_MAX)
}

fn read(text: &str) -> Result<Name, ZoneError> {
    let mut name = Name::from_ascii(text).map_err(|_| ZoneError(text.to_owned()))?;
    name.set_fqdn(true);
    Ok(name)
}

/// Returns the labels of a name in lower case: names are compared without case (RFC 4343).
fn labels(name: &Name) -> Vec<Vec<u8>> {
    name.iter().map(<[u8]>::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests;
