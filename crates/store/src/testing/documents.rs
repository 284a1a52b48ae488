//! Typed documents.
//!
//! Never checks what a document means.

use perch_types::directory::{AppNameClaim, Document as _, HostDoc};

use super::{Checked, Subject, fault, refused, same};
use crate::{Error, Expected, delete_doc, get_doc, list_docs, list_docs_under, put_doc};

fn host(memory_mb: u64) -> Result<HostDoc, String> {
    let document = serde_json::json!({
        "region": "ams", "incarnation": 1, "cpus": 2, "memory_mb": memory_mb,
    });
    serde_json::from_value(document).map_err(|error| error.to_string())
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} does not parse"))
}

pub(super) async fn typed_documents_are_compared_and_set<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let store = store.as_ref();
    let key = (parse("web")?,);
    let claim = AppNameClaim { org: parse("personal")? };
    let revision = put_doc(store, &key, &claim, Expected::Absent).await.map_err(fault)?;
    let conflict = |error: &Error| matches!(error, Error::Conflict { .. });
    let again = put_doc(store, &key, &claim, Expected::Absent).await;
    refused("claiming a name twice", again, conflict)?;
    let found = get_doc::<AppNameClaim>(store, &key).await.map_err(fault)?;
    let found = found.map(|found| (found.document, found.revision));
    same("the claim", &found, &Some((claim, revision)))?;
    let expected = Expected::Revision(revision);
    delete_doc::<AppNameClaim>(store, &key, expected).await.map_err(fault)?;
    let found = get_doc::<AppNameClaim>(store, &key).await.map_err(fault)?;
    same("the deleted claim being there", &found.is_some(), &false)
}

pub(super) async fn a_document_that_does_not_parse_hides_no_other<S: Subject>(
    subject: &mut S,
) -> Checked {
    let store = subject.store();
    let store = store.as_ref();
    for (name, memory_mb) in [("000000000001", 1), ("000000000003", 3)] {
        let key = (parse(name)?,);
        put_doc(store, &key, &host(memory_mb)?, Expected::Any).await.map_err(fault)?;
    }
    for (key, poison) in
        [("hosts/000000000002", &b"{\"cpus\":\"two\"}"[..]), ("hosts/000000000004", b"\xff\0")]
    {
        store.put(key, poison.into(), Expected::Any).await.map_err(fault)?;
    }
    let found = list_docs::<HostDoc>(store).await.map_err(fault)?;
    let memory: Vec<_> = found.documents.iter().map(|(_, host)| host.document.memory_mb).collect();
    same("the good documents", &memory, &vec![1, 3])?;
    let keys: Vec<_> = found.unreadable.iter().map(|bad| bad.key.as_str()).collect();
    same("the bad documents", &keys, &vec!["hosts/000000000002", "hosts/000000000004"])?;
    let bad = get_doc::<HostDoc>(store, &(parse("000000000002")?,)).await;
    refused("reading a bad document", bad, |error| matches!(error, Error::Unreadable { .. }))
}

pub(super) async fn keys_of_another_depth_are_not_documents<S: Subject>(
    subject: &mut S,
) -> Checked {
    let store = subject.store();
    let store = store.as_ref();
    let key = (parse("000000000005")?,);
    put_doc(store, &key, &host(5)?, Expected::Any).await.map_err(fault)?;
    let alive = format!("{}/alive", HostDoc::key(&key));
    store.put(&alive, "now".into(), Expected::Any).await.map_err(fault)?;
    let found = list_docs_under::<HostDoc>(store, "000000000005").await.map_err(fault)?;
    let keys: Vec<_> = found.documents.iter().map(|(key, _)| key.as_str()).collect();
    same("the documents", &keys, &vec!["hosts/000000000005"])?;
    same("the bad documents", &found.unreadable.len(), &0)
}
