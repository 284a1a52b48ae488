//! Typed documents over a store.
//!
//! Never lets a document that does not parse hide the others.

use bytes::Bytes;
use perch_types::directory::Document;

use crate::{Compare, Error, Expected, Op, Purpose, Revision, Store};

/// A document and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<D> {
    /// The document.
    pub document: D,
    /// The revision of its last write, for [`Expected::Revision`].
    pub revision: Revision,
}

/// What a list found.
#[derive(Debug)]
pub struct Documents<D> {
    /// The documents with their keys, ordered by key.
    pub documents: Vec<(String, Versioned<D>)>,
    /// The documents that do not parse: for the log and for an operator.
    pub unreadable: Vec<Unreadable>,
    /// The revision of the whole directory.
    pub revision: Revision,
}

/// A document that does not parse.
#[derive(Debug)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// Why.
    pub error: serde_json::Error,
}

/// Returns a document.
///
/// # Errors
/// When it does not parse or the store does not answer.
pub async fn get_doc<D: Document>(
    store: &dyn Store,
    key: &D::Key,
) -> Result<Option<Versioned<D>>, Error> {
    let key = D::key(key);
    let Some(entry) = store.get(&key).await? else {
        return Ok(None);
    };
    match serde_json::from_slice(&entry.value) {
        Ok(document) => Ok(Some(Versioned { document, revision: entry.revision })),
        Err(source) => Err(Error::Unreadable { key, source }),
    }
}

/// Writes a document; [`Error::Conflict`] if it is not as expected.
///
/// # Errors
/// As [`Store::put`].
pub async fn put_doc<D: Document>(
    store: &dyn Store,
    key: &D::Key,
    document: &D,
    expected: Expected,
) -> Result<Revision, Error> {
    let key = D::key(key);
    let value = encode(&key, document)?;
    store.put(&key, value, expected).await
}

/// Writes a document by a freeing transaction; [`Error::Conflict`] if it is not as expected.
///
/// # Errors
/// As [`Store::txn_for`].
pub async fn put_doc_freeing<D: Document>(
    store: &dyn Store,
    key: &D::Key,
    document: &D,
    expected: Expected,
) -> Result<Revision, Error> {
    let compares = compare::<D>(key, expected).into_iter().collect();
    let ops = vec![put_op(key, document)?];
    store.txn_for(Purpose::Freeing, compares, ops).await?.or_conflict()
}

/// Deletes a document; [`Error::Conflict`] if it is not as expected.
///
/// # Errors
/// As [`Store::delete`].
pub async fn delete_doc<D: Document>(
    store: &dyn Store,
    key: &D::Key,
    expected: Expected,
) -> Result<Revision, Error> {
    let key = D::key(key);
    store.delete(&key, expected).await
}

/// Returns every document of a kind.
///
/// # Errors
/// When the store does not answer; documents that do not parse are reported beside the others.
pub async fn list_docs<D: Document>(store: &dyn Store) -> Result<Documents<D>, Error> {
    list_docs_under(store, "").await
}

/// Returns the documents of a kind whose key, behind the kind's own prefix, begins with `rest`
/// (such as `personal/web/`). Keys with more or fewer parts than the kind's are not its documents.
///
/// # Errors
/// As [`list_docs`].
pub async fn list_docs_under<D: Document>(
    store: &dyn Store,
    rest: &str,
) -> Result<Documents<D>, Error> {
    let prefix = format!("{}{rest}", D::PREFIX);
    let listing = store.list(&prefix).await?;
    let mut found =
        Documents { documents: Vec::new(), unreadable: Vec::new(), revision: listing.revision };
    for entry in listing.entries {
        if !is_of_kind::<D>(&entry.key) {
            continue;
        }
        match serde_json::from_slice(&entry.value) {
            Ok(document) => {
                let versioned = Versioned { document, revision: entry.revision };
                found.documents.push((entry.key, versioned));
            }
            Err(error) => found.unreadable.push(Unreadable { key: entry.key, error }),
        }
    }
    Ok(found)
}

fn is_of_kind<D: Document>(key: &str) -> bool {
    key.strip_prefix(D::PREFIX).is_some_and(|rest| rest.split('/').count() == D::PARTS)
}

/// Returns the operation that writes a document, for a transaction.
///
/// # Errors
/// When the document does not turn into JSON.
pub fn put_op<D: Document>(key: &D::Key, document: &D) -> Result<Op, Error> {
    let key = D::key(key);
    let value = encode(&key, document)?;
    Ok(Op::put(key, value))
}

/// Returns the operation that deletes a document, for a transaction.
#[must_use]
pub fn delete_op<D: Document>(key: &D::Key) -> Op {
    Op::delete(D::key(key))
}

/// Returns the condition that a document is as expected, for a transaction; `None` for any state.
#[must_use]
pub fn compare<D: Document>(key: &D::Key, expected: Expected) -> Option<Compare> {
    Compare::expected(&D::key(key), expected)
}

fn encode<D: Document>(key: &str, document: &D) -> Result<Bytes, Error> {
    serde_json::to_vec(document)
        .map(Bytes::from)
        .map_err(|source| Error::Encode { key: key.to_owned(), source })
}
