//! Leases.
//!
//! Never sleeps: the subject lets time pass, a watch tells of the end.

use std::time::Duration;

use super::{Checked, Subject, fault, next, refused, same, shown, text};
use crate::{Error, Expected, LeaseId, Op, Revision, Store};

const TTL_S: u32 = 60;
const HALF: Duration = Duration::from_secs(TTL_S as u64 / 2 + 1);

fn is_ended(error: &Error) -> bool {
    matches!(error, Error::NoSuchLease { .. })
}

async fn put(store: &dyn Store, key: &str, lease: Option<LeaseId>) -> Result<Revision, String> {
    let op = Op::Put { key: key.to_owned(), value: "alive".into(), lease };
    let outcome = store.txn(vec![], vec![op]).await.map_err(fault)?;
    outcome.or_conflict().map_err(fault)
}

pub(super) async fn a_lease_that_is_not_kept_alive_takes_its_keys_along<S: Subject>(
    subject: &mut S,
) -> Checked {
    let store = subject.store();
    let lease = store.grant(TTL_S).await.map_err(fault)?;
    put(store.as_ref(), "lease/a", Some(lease)).await?;
    let plain = put(store.as_ref(), "lease/plain", None).await?;
    let mut watch = store.watch("lease/", plain.next()).await.map_err(fault)?;
    subject.advance(HALF).await;
    same("a key before the end", &store.get("lease/a").await.map_err(fault)?.is_some(), &true)?;
    subject.advance(HALF).await;
    let event = next(&mut watch).await?;
    same("the end", &shown(&event), &format!("lease/a=-@{}", event.revision))?;
    same("its key", &store.get("lease/a").await.map_err(fault)?, &None)?;
    let other = store.get("lease/plain").await.map_err(fault)?;
    same("a key without a lease", &text(other.as_ref()), &Some("alive".to_owned()))?;
    refused("keeping it alive", store.keep_alive(lease).await, is_ended)?;
    let op = Op::Put { key: "lease/b".to_owned(), value: "x".into(), lease: Some(lease) };
    refused("a write under it", store.txn(vec![], vec![op]).await, is_ended)
}

pub(super) async fn a_lease_that_is_kept_alive_stays<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let lease = store.grant(TTL_S).await.map_err(fault)?;
    let other = store.grant(TTL_S).await.map_err(fault)?;
    put(store.as_ref(), "stay/other", Some(other)).await?;
    let put = put(store.as_ref(), "stay/a", Some(lease)).await?;
    let mut watch = store.watch("stay/", put.next()).await.map_err(fault)?;
    for _ in 0..3 {
        subject.advance(HALF).await;
        store.keep_alive(lease).await.map_err(fault)?;
    }
    // The other's end shows that ends were looked for.
    same("the end of the other", &next(&mut watch).await?.key, &"stay/other".to_owned())?;
    same("its key", &store.get("stay/a").await.map_err(fault)?.is_some(), &true)?;
    store.revoke(lease).await.map_err(fault)
}

pub(super) async fn a_revoked_lease_ends_at_once<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let lease = store.grant(TTL_S).await.map_err(fault)?;
    put(store.as_ref(), "revoke/a", Some(lease)).await?;
    let last = put(store.as_ref(), "revoke/b", Some(lease)).await?;
    store.revoke(lease).await.map_err(fault)?;
    let listing = store.list("revoke/").await.map_err(fault)?;
    same("its keys", &listing.entries.len(), &0)?;
    same("the revision of its end", &listing.revision, &last.next())?;
    refused("revoking it again", store.revoke(lease).await, is_ended)
}

pub(super) async fn a_plain_write_unties_a_key<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let lease = store.grant(TTL_S).await.map_err(fault)?;
    put(store.as_ref(), "untie/a", Some(lease)).await?;
    store.put("untie/a", "own".into(), Expected::Any).await.map_err(fault)?;
    store.revoke(lease).await.map_err(fault)?;
    let entry = store.get("untie/a").await.map_err(fault)?;
    same("the untied key", &text(entry.as_ref()), &Some("own".to_owned()))
}

pub(super) async fn a_restart_ends_no_lease<S: Subject>(subject: &mut S) -> Checked {
    let lease = {
        let store = subject.store();
        let lease = store.grant(TTL_S).await.map_err(fault)?;
        put(store.as_ref(), "over/a", Some(lease)).await?;
        lease
    };
    subject.restart().await;
    let store = subject.store();
    store.keep_alive(lease).await.map_err(fault)?;
    same("its key", &store.get("over/a").await.map_err(fault)?.is_some(), &true)?;
    let from = store.list("over/").await.map_err(fault)?.revision.next();
    let mut watch = store.watch("over/", from).await.map_err(fault)?;
    subject.advance(HALF * 2).await;
    same("the end", &next(&mut watch).await?.key, &"over/a".to_owned())
}
