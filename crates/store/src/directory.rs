//! The contract of a directory.
//!
//! Never promises what etcd cannot give: one revision counter for everything, compares before
//! operations, watches from a revision, leases in seconds.

use std::{fmt, pin::Pin};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use perch_types::directory::{Document as _, HostDoc, MachineRecord, Tombstone, VolumeRecord};
use serde::{Deserialize, Serialize};

use crate::{
    Error, key,
    rpc::wire::{base64_bytes, base64_option},
};

/// How large a value may be.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// How many operations a transaction may have.
pub const TXN_OPS_MAX: usize = 64;
/// How many compares a transaction may have.
pub const TXN_COMPARES_MAX: usize = 64;
/// How many entries a list may return.
pub const LIST_ENTRIES_MAX: usize = 100_000;
/// The longest lease.
pub const LEASE_TTL_MAX_S: u32 = 24 * 60 * 60;

/// A point in the directory's history. Every change of anything makes it one larger; the first
/// change has 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Returns the revision after this one: where a watch begins that follows a list.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The number of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A key's value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    #[serde(with = "base64_bytes")]
    pub value: Bytes,
    /// The revision of its last write.
    pub revision: Revision,
}

/// All entries under a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The entries, ordered by key.
    pub entries: Vec<Entry>,
    /// The revision of the whole directory; a watch from [`Revision::next`] of it misses nothing.
    pub revision: Revision,
}

/// What a write expects of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// There is no such key.
    Absent,
    /// It was last written at this revision.
    Revision(Revision),
    /// Anything.
    Any,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// There is no such key.
    Absent {
        /// The key.
        key: String,
    },
    /// There is such a key.
    Exists {
        /// The key.
        key: String,
    },
    /// The key was last written at this revision.
    Revision {
        /// The key.
        key: String,
        /// The revision.
        revision: Revision,
    },
}

impl Compare {
    /// Returns the key it looks at.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Absent { key } | Self::Exists { key } | Self::Revision { key, .. } => key,
        }
    }

    /// Returns the condition that a write's expectation stands for.
    #[must_use]
    pub fn expected(key: &str, expected: Expected) -> Option<Self> {
        let key = key.to_owned();
        match expected {
            Expected::Absent => Some(Self::Absent { key }),
            Expected::Revision(revision) => Some(Self::Revision { key, revision }),
            Expected::Any => None,
        }
    }

    /// Returns whether it holds for a key at `found`.
    #[must_use]
    pub fn holds(&self, found: Option<Revision>) -> bool {
        match self {
            Self::Absent { .. } => found.is_none(),
            Self::Exists { .. } => found.is_some(),
            Self::Revision { revision, .. } => found == Some(*revision),
        }
    }
}

/// A change in a transaction. A key may be changed once in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Write a value.
    Put {
        /// The key.
        key: String,
        /// The value, at most [`VALUE_BYTES_MAX`].
        #[serde(with = "base64_bytes")]
        value: Bytes,
        /// The lease that the key ends with; `None` also unties a key from an older one.
        lease: Option<LeaseId>,
    },
    /// Delete a key; nothing if there is none.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// Writes a value without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// Deletes a key.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Returns the key it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What a transaction is for, which decides whether a full disk refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Anything; a full disk refuses it.
    #[default]
    Ordinary,
    /// It frees space, ends what has begun or tells what is. On a full disk it goes on from a
    /// reserve. So that this stays for others, it makes no key but those under
    /// [`FREEING_MAKES`]; it changes and deletes any.
    Freeing,
}

impl Purpose {
    /// Returns the purpose of a transaction that names none: deletions free space.
    #[must_use]
    pub fn of(ops: &[Op]) -> Self {
        if ops.iter().all(|op| matches!(op, Op::Delete { .. })) {
            Self::Freeing
        } else {
            Self::Ordinary
        }
    }
}

/// The prefixes of keys that a freeing transaction may make: promises and tombstones, by which
/// something goes, and what hosts tell of themselves.
pub const FREEING_MAKES: [&str; 5] =
    ["promises/", Tombstone::PREFIX, HostDoc::PREFIX, MachineRecord::PREFIX, VolumeRecord::PREFIX];

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Txn {
    /// Every compare held; all operations happened at this revision (or there was nothing to
    /// change, and it is the current one).
    Done {
        /// The revision.
        revision: Revision,
    },
    /// A compare did not hold; nothing happened.
    Refused {
        /// The compares that did not hold: their keys and the revisions found.
        found: Vec<(String, Option<Revision>)>,
    },
}

impl Txn {
    /// Returns the revision of a transaction that happened, else a conflict on the first key.
    ///
    /// # Errors
    /// [`Error::Conflict`].
    pub fn or_conflict(self) -> Result<Revision, Error> {
        match self {
            Self::Done { revision } => Ok(revision),
            Self::Refused { found } => {
                let (key, found) = found.into_iter().next().unwrap_or_default();
                Err(Error::Conflict { key, found })
            }
        }
    }
}

/// A change that a watch saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The key.
    pub key: String,
    /// The new value; `None` when it was deleted.
    #[serde(with = "base64_option")]
    pub value: Option<Bytes>,
    /// The revision of the change. Changes of one transaction share it.
    pub revision: Revision,
}

/// Changes in the order in which they happened, without a gap and without a repetition. It ends
/// with an error: then list again and watch from there.
pub type Watch = Pin<Box<dyn Stream<Item = Result<Event, Error>> + Send>>;

/// A directory.
///
/// Nothing in here retries. A write that ends with [`Error::Unavailable`] may have happened.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Returns a key's value.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// Returns everything whose key begins with `prefix` (all, if that is empty).
    async fn list(&self, prefix: &str) -> Result<Listing, Error>;

    /// Does all operations if all compares hold, at one revision, else nothing.
    async fn txn_for(
        &self,
        purpose: Purpose,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Txn, Error>;

    /// Follows the changes under `prefix` that have revision `from` or a later one.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error>;

    /// Makes a lease that ends `ttl_s` seconds after its last [`Store::keep_alive`]. When it ends
    /// its keys are deleted.
    async fn grant(&self, ttl_s: u32) -> Result<LeaseId, Error>;

    /// Prolongs a lease by its whole time.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error>;

    /// Ends a lease now; its keys are deleted.
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error>;

    /// Does a transaction that frees if it only deletes; see [`Purpose::of`].
    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Txn, Error> {
        self.txn_for(Purpose::of(&ops), compares, ops).await
    }

    /// Writes one value; [`Error::Conflict`] if the key is not as expected.
    async fn put(&self, key: &str, value: Bytes, expected: Expected) -> Result<Revision, Error> {
        let compares = Compare::expected(key, expected).into_iter().collect();
        self.txn(compares, vec![Op::put(key, value)]).await?.or_conflict()
    }

    /// Deletes one key; [`Error::Conflict`] if it is not as expected. Nothing happens if there is
    /// no such key and any state is expected.
    async fn delete(&self, key: &str, expected: Expected) -> Result<Revision, Error> {
        let compares = Compare::expected(key, expected).into_iter().collect();
        self.txn(compares, vec![Op::delete(key)]).await?.or_conflict()
    }
}

/// Checks the rules of a transaction that hold for every backend.
pub(crate) fn check_txn(compares: &[Compare], ops: &[Op]) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::InvalidTxn { reason });
    if compares.len() > TXN_COMPARES_MAX || ops.len() > TXN_OPS_MAX {
        return refuse(format!(
            "more than {TXN_COMPARES_MAX} compares or {TXN_OPS_MAX} operations"
        ));
    }
    for compare in compares {
        key::check(compare.key())?;
    }
    let mut changed = std::collections::BTreeSet::new();
    for op in ops {
        key::check(op.key())?;
        if let Op::Put { key, value, .. } = op {
            key::check_value(key, value)?;
        }
        if !changed.insert(op.key()) {
            return refuse(format!("it changes {} twice", op.key()));
        }
    }
    Ok(())
}

/// Checks the length of a lease.
pub(crate) fn check_ttl(ttl_s: u32) -> Result<(), Error> {
    if (1..=LEASE_TTL_MAX_S).contains(&ttl_s) {
        return Ok(());
    }
    Err(Error::InvalidTxn { reason: format!("a lease lasts 1 to {LEASE_TTL_MAX_S} seconds") })
}
