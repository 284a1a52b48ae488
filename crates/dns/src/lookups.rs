//! What the platform itself asks of DNS about host names that are to lead to it.
//!
//! Never for machines: what is answered may lead inside.

use std::net::SocketAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType as Kind};
use perch_types::certificates::RecordType;

use crate::upstream::{self, Error};

/// Records of one answer that are read.
pub(crate) const RECORDS_MAX: usize = 64;

/// DNS did not answer.
#[derive(Debug, thiserror::Error)]
#[error("look up `{name}`")]
pub struct LookupError {
    name: String,
    #[source]
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("read the name")]
    Name,
    #[error(transparent)]
    Ask(#[from] Error),
    #[error("the resolver answers {0}")]
    Refused(ResponseCode),
}

/// Asks resolvers.
#[derive(Debug, Clone)]
pub struct Lookups {
    upstreams: Vec<SocketAddr>,
}

impl Lookups {
    /// Makes lookups that ask these resolvers, as [`crate::upstreams`] finds them.
    #[must_use]
    pub const fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams }
    }

    /// Returns the records of a kind that are answered for a name, CNAME records followed; none
    /// when there is no such name.
    ///
    /// # Errors
    /// When no resolver answers.
    pub async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<String>, LookupError> {
        let fault = |reason| LookupError { name: name.to_owned(), reason };
        let mut asked = Name::from_ascii(name).map_err(|_| fault(Reason::Name))?;
        asked.set_fqdn(true);
        let query = Query::query(asked, kind_of(kind));
        let answer = upstream::ask_as_it_is(&self.upstreams, &query).await;
        let answer = answer.map_err(|error| fault(Reason::Ask(error)))?;
        records_of(&answer, kind).map_err(|code| fault(Reason::Refused(code)))
    }
}

/// Returns the records of a kind that an answer has; the answer's code when it is a refusal.
pub(crate) fn records_of(answer: &Message, kind: RecordType) -> Result<Vec<String>, ResponseCode> {
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        other => return Err(other),
    }
    // Who serves a zone is said beside the answer where the name itself is none.
    let beside = answer.authorities.iter().filter(|_| kind == RecordType::Soa);
    let records = answer.answers.iter().chain(beside).take(RECORDS_MAX);
    Ok(records.filter_map(|record| text_of(&record.data, kind)).collect())
}

const fn kind_of(kind: RecordType) -> Kind {
    match kind {
        RecordType::A => Kind::A,
        RecordType::Aaaa => Kind::AAAA,
        RecordType::Cname => Kind::CNAME,
        RecordType::Txt => Kind::TXT,
        RecordType::Soa => Kind::SOA,
    }
}

fn text_of(data: &RData, kind: RecordType) -> Option<String> {
    match (data, kind) {
        (RData::A(address), RecordType::A) => Some(address.0.to_string()),
        (RData::AAAA(address), RecordType::Aaaa) => Some(address.0.to_string()),
        (RData::CNAME(name), RecordType::Cname) => Some(name.0.to_ascii()),
        (RData::TXT(text), RecordType::Txt) => {
            let bytes: Vec<u8> =
                text.txt_data.iter().flat_map(|part| part.iter().copied()).collect();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        (RData::SOA(zone), RecordType::Soa) => Some(zone.mname.to_ascii()),
        _ => None,
    }
}
