//! Many at once.
//!
//! Never depends on who wins.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Checked, Subject, fault, next, same, text};
use crate::{Error, Expected, Store};

const WRITERS: u32 = 50;
const WRITES_EACH: u32 = 4;

/// Adds one to a number by compare-and-set until it succeeds.
async fn add_one(store: &dyn Store, key: &str) -> Result<(), String> {
    loop {
        let entry = store.get(key).await.map_err(fault)?;
        let number: u32 = text(entry.as_ref()).unwrap_or_default().parse().unwrap_or(0);
        let expected = entry.map_or(Expected::Absent, |entry| Expected::Revision(entry.revision));
        match store.put(key, (number + 1).to_string().into(), expected).await {
            Ok(_) => return Ok(()),
            Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(fault(error)),
        }
    }
}

async fn all(mut tasks: JoinSet<Result<(), String>>) -> Checked {
    while let Some(task) = tasks.join_next().await {
        task.map_err(|error| error.to_string())??;
    }
    Ok(())
}

pub(super) async fn many_writers_on_one_key_lose_no_update<S: Subject>(subject: &mut S) -> Checked {
    let store = subject.store();
    let mut tasks = JoinSet::new();
    for _ in 0..WRITERS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for _ in 0..WRITES_EACH {
                add_one(store.as_ref(), "many/one").await?;
            }
            Ok(())
        });
    }
    all(tasks).await?;
    let entry = store.get("many/one").await.map_err(fault)?;
    same("the sum", &text(entry.as_ref()), &Some((WRITERS * WRITES_EACH).to_string()))
}

pub(super) async fn a_watcher_sees_every_write_of_many_writers_in_order<S: Subject>(
    subject: &mut S,
) -> Checked {
    let store = subject.store();
    let from = store.list("race/").await.map_err(fault)?.revision.next();
    let mut watch = store.watch("race/", from).await.map_err(fault)?;
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for number in 0..WRITES_EACH {
                let key = format!("race/{writer}");
                let put = store.put(&key, number.to_string().into(), Expected::Any);
                put.await.map_err(fault)?;
            }
            Ok(())
        });
    }
    let mut expected = from;
    let mut seen = vec![0; WRITERS as usize];
    for _ in 0..WRITERS * WRITES_EACH {
        let event = next(&mut watch).await?;
        same("the revision of the next event", &event.revision, &expected)?;
        expected = expected.next();
        let writer: usize = event.key.trim_start_matches("race/").parse().unwrap_or(usize::MAX);
        let slot = seen.get_mut(writer).ok_or_else(|| format!("unknown key {}", event.key))?;
        let value = event.value.unwrap_or_default();
        same("the next value of a writer", &value.to_vec(), &slot.to_string().into_bytes())?;
        *slot += 1;
    }
    all(tasks).await
}
