//! A part of a store.

use std::sync::Arc;

use perch_store::{Compare, Error, Expected, Op, Purpose, Revision, ScopedStore, Store};

use crate::support::Sqlite;

#[tokio::test]
async fn t5_a_part_of_a_store_shows_and_changes_nothing_else() {
    let subject = Sqlite::new().await;
    let whole: Arc<dyn Store> = perch_store::testing::Subject::store(&subject);
    for key in ["open/a/head", "open/a/value", "closed/a"] {
        whole.put(key, "1".into(), Expected::Any).await.unwrap();
    }
    let part = ScopedStore::new(Arc::clone(&whole), &["open/"], |key| key.ends_with("/head"));
    assert!(part.get("open/a/value").await.unwrap().is_some());
    assert_eq!(part.list("open/").await.unwrap().entries.len(), 2);
    part.put("open/a/head", "2".into(), Expected::Any).await.unwrap();
    for key in ["closed/a", "open", ""] {
        assert!(part.list(key).await.is_err(), "{key}");
        assert!(part.watch(key, Revision(1)).await.is_err(), "{key}");
    }
    assert!(matches!(part.get("closed/a").await, Err(Error::InvalidKey { .. })));
    for (compares, op) in [
        (vec![], Op::put("open/a/value", "2")),
        (vec![], Op::delete("open/a/value")),
        (vec![], Op::put("closed/head", "2")),
        (vec![Compare::Exists { key: "closed/a".to_owned() }], Op::put("open/a/head", "3")),
    ] {
        assert!(part.txn(compares, vec![op.clone()]).await.is_err(), "{op:?}");
    }
    part.grant(10).await.unwrap_err();
    // What is a part's is never written from the reserve: then it could not make a key.
    let op = Op::put("open/b/head", "1");
    part.txn_for(Purpose::Freeing, vec![], vec![op]).await.unwrap().or_conflict().unwrap();
    let entry = whole.get("open/a/head").await.unwrap().unwrap();
    assert_eq!(entry.value.as_ref(), b"2");
}
