//! What goes over the wire between [`crate::RemoteStore`] and [`super::router`].
//!
//! Never assumes that a value is text: values travel in base64.

use perch_types::error::chain;
use serde::{Deserialize, Serialize};

use crate::{Compare, Error, Event, LeaseId, Op, Purpose, Revision};

pub(crate) const GET: &str = "/v1/store/get";
pub(crate) const LIST: &str = "/v1/store/list";
pub(crate) const TXN: &str = "/v1/store/txn";
pub(crate) const WATCH: &str = "/v1/store/watch";
pub(crate) const GRANT: &str = "/v1/store/lease/grant";
pub(crate) const KEEP_ALIVE: &str = "/v1/store/lease/keep_alive";
pub(crate) const REVOKE: &str = "/v1/store/lease/revoke";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyRequest {
    pub(crate) key: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PrefixRequest {
    pub(crate) prefix: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TxnRequest {
    #[serde(default)]
    pub(crate) purpose: Purpose,
    pub(crate) compares: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WatchRequest {
    pub(crate) prefix: String,
    pub(crate) from: Revision,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GrantRequest {
    pub(crate) ttl_s: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaseRequest {
    pub(crate) lease: LeaseId,
}

/// A line of a watch.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// A change.
    Event(Event),
    /// Nothing happened, and the other side lives.
    Beat,
    /// The watch ends.
    Fault(Fault),
}

/// An error of the store.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub(crate) enum Fault {
    Conflict { key: String, found: Option<Revision> },
    Compacted { from: Revision, oldest: Revision },
    InvalidKey { key: String, reason: String },
    TooLarge { key: String, bytes: usize, limit: usize },
    InvalidTxn { reason: String },
    TooMany { prefix: String, limit: usize },
    NoSuchLease { lease: LeaseId },
    Full,
    Other { reason: String },
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Conflict { key, found } => Self::Conflict { key, found },
            Error::Compacted { from, oldest } => Self::Compacted { from, oldest },
            Error::InvalidKey { key, reason } => Self::InvalidKey { key, reason },
            Error::TooLarge { key, bytes, limit } => Self::TooLarge { key, bytes, limit },
            Error::InvalidTxn { reason } => Self::InvalidTxn { reason },
            Error::TooMany { prefix, limit } => Self::TooMany { prefix, limit },
            Error::NoSuchLease { lease } => Self::NoSuchLease { lease },
            Error::File { source: perch_durable::Error::Full } => Self::Full,
            Error::Unavailable { reason, .. } => Self::Other { reason },
            other @ (Error::Unreadable { .. } | Error::Encode { .. } | Error::File { .. }) => {
                Self::Other { reason: chain(&other) }
            }
        }
    }
}

impl Fault {
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Conflict { key, found } => Error::Conflict { key, found },
            Self::Compacted { from, oldest } => Error::Compacted { from, oldest },
            Self::InvalidKey { key, reason } => Error::InvalidKey { key, reason },
            Self::TooLarge { key, bytes, limit } => Error::TooLarge { key, bytes, limit },
            Self::InvalidTxn { reason } => Error::InvalidTxn { reason },
            Self::TooMany { prefix, limit } => Error::TooMany { prefix, limit },
            Self::NoSuchLease { lease } => Error::NoSuchLease { lease },
            Self::Full => Error::File { source: perch_durable::Error::Full },
            Self::Other { reason } => Error::Unavailable { operation, reason },
        }
    }
}

/// Bytes as base64 text.
pub(crate) mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(
        value: &Bytes,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(D::Error::custom)
    }
}

/// Bytes as base64 text, or null.
pub(crate) mod base64_option {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "super::base64_bytes")] Bytes);

    #[expect(clippy::ref_option, reason = "it is what serde passes")]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Bytes>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.clone().map(Text).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(|text| text.0))
    }
}
