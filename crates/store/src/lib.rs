//! The directory: documents under keys, compare-and-set, watch, leases.
//!
//! Never on the path of a request: who serves requests reads a [`view`], and keeps serving from it
//! when the directory is gone.
//!
//! - [`Store`] is the contract; its semantics are those etcd can give as well.
//! - [`SqliteStore`] keeps the directory in one SQLite file of one process.
//! - [`RemoteStore`] is a client of another process's, over a Unix socket; [`rpc`] serves it.
//! - [`get_doc`], [`put_doc`], [`list_docs`] and their kin know the types of documents.
//! - [`testing`] is the test-suite that every backend passes.
#![forbid(unsafe_code)]

mod directory;
mod documents;
mod error;
mod key;
mod remote;
pub mod rpc;
mod scoped;
mod sqlite;
pub mod testing;
mod turning;
pub mod view;

pub use directory::{
    Compare, Entry, Event, Expected, FREEING_MAKES, LEASE_TTL_MAX_S, LIST_ENTRIES_MAX, LeaseId,
    Listing, Op, Purpose, Revision, Store, TXN_COMPARES_MAX, TXN_OPS_MAX, Txn, VALUE_BYTES_MAX,
    Watch,
};
pub use documents::{
    Documents, Unreadable, Versioned, compare, delete_doc, delete_op, get_doc, list_docs,
    list_docs_under, put_doc, put_doc_freeing, put_op,
};
pub use error::Error;
pub use key::KEY_BYTES_MAX;
pub use remote::RemoteStore;
pub use scoped::{MayWrite, ScopedStore};
pub use sqlite::{CHANGES_MAX, SqliteStore};
pub use turning::turning;
pub use view::{ViewFollower, ViewHandle};
