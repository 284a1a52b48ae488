//! Keys, values, revisions, transactions.
//!
//! Never assumes an empty store: each check has a prefix of its own.

use bytes::Bytes;

use super::{Checked, Subject, fault, refused, same, text};
use crate::{
    Compare, Error, Expected, FREEING_MAKES, KEY_BYTES_MAX, Op, Purpose, Revision, TXN_OPS_MAX,
    Txn, VALUE_BYTES_MAX,
};

pub(super) async fn a_key_is_written_read_and_deleted<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    same("a key that is not there", &store.get("rw/a").await.map_err(fault)?, &None)?;
    let first = store.put("rw/a", "one".into(), Expected::Any).await.map_err(fault)?;
    let second = store.put("rw/a", "two".into(), Expected::Any).await.map_err(fault)?;
    let entry = store.get("rw/a").await.map_err(fault)?;
    same("the value", &text(entry.as_ref()), &Some("two".to_owned()))?;
    same("its revision", &entry.map(|entry| entry.revision), &Some(second))?;
    same("the order of revisions", &(second > first), &true)?;
    store.delete("rw/a", Expected::Any).await.map_err(fault)?;
    same("the deleted key", &store.get("rw/a").await.map_err(fault)?, &None)
}

pub(super) async fn a_write_that_expects_another_state_is_refused<S: Subject>(
    subject: &mut S,
) -> Checked {
    let store = subject.store();
    let put = |expected| store.put("cas/a", "x".into(), expected);
    let conflict = |error: &Error| matches!(error, Error::Conflict { .. });
    refused("a write over nothing", put(Expected::Revision(Revision(1))).await, conflict)?;
    let first = put(Expected::Absent).await.map_err(fault)?;
    match put(Expected::Absent).await {
        Err(Error::Conflict { key, found }) => {
            same("the conflict", &(key.as_str(), found), &("cas/a", Some(first)))?;
        }
        other => return Err(format!("a second creation gave {other:?}")),
    }
    let second = put(Expected::Revision(first)).await.map_err(fault)?;
    refused("a write over an old revision", put(Expected::Revision(first)).await, conflict)?;
    let delete = |expected| store.delete("cas/a", expected);
    refused("a deletion of an old revision", delete(Expected::Revision(first)).await, conflict)?;
    delete(Expected::Revision(second)).await.map_err(fault)?;
    put(Expected::Absent).await.map_err(fault)?;
    Ok(())
}

pub(super) async fn revisions_count_changes_of_anything<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let a = store.put("rev/a", "1".into(), Expected::Any).await.map_err(fault)?;
    let b = store.put("rev/b", "1".into(), Expected::Any).await.map_err(fault)?;
    same("the next revision", &b, &a.next())?;
    let none = store.delete("rev/none", Expected::Any).await.map_err(fault)?;
    same("the revision after deleting nothing", &none, &b)?;
    let listing = store.list("rev/").await.map_err(fault)?;
    same("the revision of a list", &listing.revision, &b)?;
    let revisions: Vec<_> = listing.entries.iter().map(|entry| entry.revision).collect();
    same("the revisions of its entries", &revisions, &vec![a, b])
}

pub(super) async fn a_list_is_ordered_and_exact<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    for key in ["ls/b", "ls/a/2", "ls/a/1", "ls/a0", "ls/a~", "lt", "ls2/a", "ls/a/~"] {
        store.put(key, key.into(), Expected::Any).await.map_err(fault)?;
    }
    for (prefix, expected) in [
        ("ls/", vec!["ls/a/1", "ls/a/2", "ls/a/~", "ls/a0", "ls/a~", "ls/b"]),
        ("ls/a/", vec!["ls/a/1", "ls/a/2", "ls/a/~"]),
        ("ls/a", vec!["ls/a/1", "ls/a/2", "ls/a/~", "ls/a0", "ls/a~"]),
        ("ls/b", vec!["ls/b"]),
        ("ls/c", vec![]),
    ] {
        let listing = store.list(prefix).await.map_err(fault)?;
        let keys: Vec<_> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
        same(prefix, &keys, &expected)?;
        let are_whole = listing.entries.iter().all(|entry| entry.value == entry.key);
        same("every value being its own", &are_whole, &true)?;
    }
    let all = store.list("").await.map_err(fault)?;
    same("a list of everything having them", &(all.entries.len() >= 8), &true)
}

pub(super) async fn limits_are_kept<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let invalid = |error: &Error| matches!(error, Error::InvalidKey { .. });
    let long = format!("limit/{}", "k".repeat(KEY_BYTES_MAX - 6));
    store.put(&long, "x".into(), Expected::Any).await.map_err(fault)?;
    let longer = format!("{long}k");
    for key in ["", "/a", "a//b", "a/", "a b", "a\n", "\u{e9}", &longer] {
        let put = store.put(key, "x".into(), Expected::Any).await;
        refused(&format!("writing key {key:?}"), put, invalid)?;
        refused(&format!("reading key {key:?}"), store.get(key).await, invalid)?;
    }
    refused("listing a bad prefix", store.list("a b").await, invalid)?;
    let put = |bytes| store.put("limit/v", Bytes::from(vec![7; bytes]), Expected::Any);
    put(VALUE_BYTES_MAX).await.map_err(fault)?;
    let large = |error: &Error| matches!(error, Error::TooLarge { .. });
    refused("a value over the limit", put(VALUE_BYTES_MAX + 1).await, large)?;
    let bad = |error: &Error| matches!(error, Error::InvalidTxn { .. });
    let ops = |count| (0..count).map(|n| Op::put(format!("limit/{n}"), "x")).collect();
    store.txn(vec![], ops(TXN_OPS_MAX)).await.map_err(fault)?;
    refused("too many operations", store.txn(vec![], ops(TXN_OPS_MAX + 1)).await, bad)?;
    let twice = vec![Op::put("limit/t", "x"), Op::delete("limit/t")];
    refused("changing a key twice", store.txn(vec![], twice).await, bad)?;
    refused("a lease without time", store.grant(0).await, bad)
}

pub(super) async fn values_are_any_bytes<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let all = Bytes::from_iter(0..=u8::MAX);
    for value in [all, Bytes::new()] {
        store.put("bytes/a", value.clone(), Expected::Any).await.map_err(fault)?;
        let entry = store.get("bytes/a").await.map_err(fault)?;
        same("the value", &entry.map(|entry| entry.value), &Some(value))?;
    }
    Ok(())
}

pub(super) async fn a_transaction_happens_whole_or_not_at_all<S: Subject>(
    subject: &mut S,
) -> Checked {
    let store = subject.store();
    let a = store.put("txn/a", "1".into(), Expected::Any).await.map_err(fault)?;
    let exists = |key: &str| Compare::Exists { key: key.to_owned() };
    let absent = |key: &str| Compare::Absent { key: key.to_owned() };
    let at_a = Compare::Revision { key: "txn/a".to_owned(), revision: a };
    let ops = || vec![Op::put("txn/b", "2"), Op::delete("txn/a"), Op::put("txn/c", "3")];
    let compares = vec![at_a.clone(), absent("txn/a"), exists("txn/b"), absent("txn/c")];
    let found = vec![("txn/a".to_owned(), Some(a)), ("txn/b".to_owned(), None)];
    let outcome = store.txn(compares, ops()).await.map_err(fault)?;
    same("the refusal", &outcome, &Txn::Refused { found })?;
    let listing = store.list("txn/").await.map_err(fault)?;
    same("entries after a refusal", &listing.entries.len(), &1)?;

    let compares = vec![at_a, exists("txn/a"), absent("txn/b")];
    let outcome = store.txn(compares, ops()).await.map_err(fault)?;
    same("the outcome", &outcome, &Txn::Done { revision: listing.revision.next() })?;
    let listing = store.list("txn/").await.map_err(fault)?;
    let found: Vec<_> = listing.entries.iter().map(|e| (e.key.as_str(), e.revision)).collect();
    let revision = listing.revision;
    same("what it wrote", &found, &vec![("txn/b", revision), ("txn/c", revision)])
}

pub(super) async fn a_freeing_transaction_makes_nothing_but_what_ends_or_tells<S: Subject>(
    subject: &mut S,
) -> Checked {
    let store = subject.store();
    store.put("free/old", "1".into(), Expected::Any).await.map_err(fault)?;
    let freeing = |ops| store.txn_for(Purpose::Freeing, vec![], ops);
    let bad = |error: &Error| matches!(error, Error::InvalidTxn { .. });
    let new = vec![Op::put("free/old", "2"), Op::put("free/new", "2")];
    refused("a new key", freeing(new).await, bad)?;
    let entry = store.get("free/old").await.map_err(fault)?;
    same("the value after a refusal", &text(entry.as_ref()), &Some("1".to_owned()))?;

    let made = || FREEING_MAKES.into_iter().map(|prefix| format!("{prefix}free/a"));
    let mut ops: Vec<Op> = made().map(|key| Op::put(key, "1")).collect();
    ops.push(Op::put("free/old", "3"));
    freeing(ops).await.map_err(fault)?;
    let entry = store.get("free/old").await.map_err(fault)?;
    same("the value", &text(entry.as_ref()), &Some("3".to_owned()))?;
    for key in made() {
        same(&key, &store.get(&key).await.map_err(fault)?.is_some(), &true)?;
    }
    let mut ops: Vec<Op> = made().map(Op::delete).collect();
    ops.push(Op::delete("free/old"));
    same("what only deletes", &Purpose::of(&ops), &Purpose::Freeing)?;
    freeing(ops).await.map_err(fault).map(drop)
}

pub(super) async fn everything_is_there_after_a_restart<S: Subject>(subject: &mut S) -> Checked {
    let before = {
        let store = subject.store();
        store.put("kept/a", "1".into(), Expected::Any).await.map_err(fault)?;
        store.list("").await.map_err(fault)?
    };
    subject.restart().await;
    let after = subject.store().list("").await.map_err(fault)?;
    same("everything", &(after == before), &true)
}
