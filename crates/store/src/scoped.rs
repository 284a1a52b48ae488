//! A part of a store for somebody who needs no more.
//!
//! Never lets a key outside of the part be read or written.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{Compare, Entry, Error, LeaseId, Listing, Op, Purpose, Revision, Store, Txn, Watch};

/// Decides whether a key may be written.
pub type MayWrite = fn(&str) -> bool;

/// A store of which only some prefixes can be read, and some keys written.
#[derive(Clone)]
pub struct ScopedStore {
    store: Arc<dyn Store>,
    reads: &'static [&'static str],
    may_write: MayWrite,
}

impl fmt::Debug for ScopedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedStore").field("reads", &self.reads).finish_non_exhaustive()
    }
}

impl ScopedStore {
    /// Takes the part of a store that lies under `reads`; of that, `may_write` can be written.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, reads: &'static [&'static str], may_write: MayWrite) -> Self {
        Self { store, reads, may_write }
    }

    fn reads(&self, key: &str) -> Result<(), Error> {
        if self.reads.iter().any(|prefix| key.starts_with(prefix)) {
            return Ok(());
        }
        Err(Error::InvalidKey {
            key: key.chars().take(80).collect(),
            reason: "it is outside of what this caller may read".to_owned(),
        })
    }
}

fn refused<T>() -> Result<T, Error> {
    Err(Error::InvalidTxn { reason: "this caller may not do it".to_owned() })
}

#[async_trait]
impl Store for ScopedStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.reads(key)?;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.reads(prefix)?;
        self.store.list(prefix).await
    }

    async fn txn_for(
        &self,
        _purpose: Purpose,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Txn, Error> {
        for compare in &compares {
            self.reads(compare.key())?;
        }
        if ops.iter().any(|op| self.reads(op.key()).is_err() || !(self.may_write)(op.key())) {
            return refused();
        }
        // The reserve of a full disk is not a part's.
        self.store.txn_for(Purpose::Ordinary, compares, ops).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        self.reads(prefix)?;
        self.store.watch(prefix, from).await
    }

    async fn grant(&self, _ttl_s: u32) -> Result<LeaseId, Error> {
        refused()
    }

    async fn keep_alive(&self, _lease: LeaseId) -> Result<(), Error> {
        refused()
    }

    async fn revoke(&self, _lease: LeaseId) -> Result<(), Error> {
        refused()
    }
}
