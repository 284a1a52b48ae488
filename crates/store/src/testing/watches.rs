//! Watches.
//!
//! Never waits for nothing to happen: a later event proves that an earlier one did not come.

use super::{Checked, Subject, fault, next, refused, same, shown};
use crate::{Error, Expected, Op, Revision, Store};

async fn put(store: &dyn Store, key: &str, value: &'static str) -> Result<Revision, String> {
    store.put(key, value.into(), Expected::Any).await.map_err(fault)
}

pub(super) async fn a_watch_begins_at_its_revision<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let store = store.as_ref();
    let first = put(store, "from/a", "1").await?;
    let second = put(store, "from/a", "2").await?;
    let third = store.delete("from/a", Expected::Any).await.map_err(fault)?;
    let mut past = store.watch("from/", first).await.map_err(fault)?;
    let mut middle = store.watch("from/", second).await.map_err(fault)?;
    let mut future = store.watch("from/", third.next().next()).await.map_err(fault)?;
    let fourth = put(store, "from/b", "4").await?;
    let fifth = put(store, "from/b", "5").await?;
    let all = [
        format!("from/a=1@{first}"),
        format!("from/a=2@{second}"),
        format!("from/a=-@{third}"),
        format!("from/b=4@{fourth}"),
        format!("from/b=5@{fifth}"),
    ];
    for expected in &all {
        same("an event from the first on", &shown(&next(&mut past).await?), expected)?;
    }
    for expected in all.iter().skip(1) {
        same("an event from the second on", &shown(&next(&mut middle).await?), expected)?;
    }
    for expected in all.iter().skip(4) {
        same("an event from a later revision on", &shown(&next(&mut future).await?), expected)?;
    }
    Ok(())
}

pub(super) async fn a_watch_sees_its_prefix_only<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let store = store.as_ref();
    let from = put(store, "only2/a", "0").await?;
    let mut watch = store.watch("only/", from).await.map_err(fault)?;
    for key in ["only", "only2/a", "onl/a", "only0", "onlyz/a"] {
        put(store, key, "no").await?;
    }
    let revision = put(store, "only/a", "yes").await?;
    let event = next(&mut watch).await?;
    same("the only event", &shown(&event), &format!("only/a=yes@{revision}"))
}

pub(super) async fn a_watch_sees_a_transaction_at_one_revision<S: Subject>(
    subject: &mut S,
) -> Checked {
    let store = subject.store();
    let store = store.as_ref();
    let from = put(store, "whole/b", "0").await?.next();
    let mut watch = store.watch("whole/", from).await.map_err(fault)?;
    let ops = vec![Op::put("whole/c", "1"), Op::delete("whole/b"), Op::put("whole/a", "2")];
    store.txn(vec![], ops).await.map_err(fault)?;
    let end = put(store, "whole/z", "3").await?;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(shown(&next(&mut watch).await?));
    }
    seen.sort();
    let expected = ["whole/a=2", "whole/b=-", "whole/c=1"].map(|event| format!("{event}@{from}"));
    same("the events of the transaction", &seen, &expected.to_vec())?;
    same("what follows", &shown(&next(&mut watch).await?), &format!("whole/z=3@{end}"))
}

pub(super) async fn a_watch_goes_on_after_a_restart<S: Subject>(subject: &mut S) -> Checked {
    let seen = {
        let store = subject.store();
        let store = store.as_ref();
        let first = put(store, "again/a", "1").await?;
        put(store, "again/a", "2").await?;
        let mut watch = store.watch("again/", first).await.map_err(fault)?;
        next(&mut watch).await?.revision
    };
    subject.restart().await;
    let store = subject.store();
    let store = store.as_ref();
    let mut watch = store.watch("again/", seen.next()).await.map_err(fault)?;
    let third = put(store, "again/a", "3").await?;
    let missed = shown(&next(&mut watch).await?);
    same("what was missed", &missed, &format!("again/a=2@{}", seen.next()))?;
    same("what is new", &shown(&next(&mut watch).await?), &format!("again/a=3@{third}"))
}

pub(super) async fn history_that_is_gone_is_said_to_be_gone<S: Subject>(
    subject: &mut S,
) -> Checked {
    let old = put(subject.store().as_ref(), "gone/a", "1").await?;
    subject.compact().await;
    let store = subject.store();
    let store = store.as_ref();
    let compacted = |error: &Error| matches!(error, Error::Compacted { .. });
    match store.watch("gone/", old).await {
        // A backend may say so at once or with the first event.
        Err(error) => refused::<()>("a watch from the past", Err(error), compacted)?,
        Ok(mut watch) => {
            let first = futures_util::StreamExt::next(&mut watch).await;
            let first = first.unwrap_or_else(|| Err(Error::InvalidTxn { reason: "end".into() }));
            refused("an event from the past", first, compacted)?;
        }
    }
    let listing = store.list("gone/").await.map_err(fault)?;
    same("entries that outlive their history", &listing.entries.len(), &1)?;
    let mut watch = store.watch("gone/", listing.revision.next()).await.map_err(fault)?;
    let new = put(store, "gone/a", "2").await?;
    same("the event after it", &shown(&next(&mut watch).await?), &format!("gone/a=2@{new}"))
}
