//! The tasks that carry orders out, and which order each is about.
//!
//! Never decides how many there are: who begins them does.

use std::collections::BTreeMap;

use tokio::task::{Id, JoinError, JoinSet};

use super::Ended;
use crate::error::Error;

/// How a task ended, which may have broken off.
pub(super) type Outcome = Result<Result<Ended, Error>, JoinError>;

/// Tasks that run; they end when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    running: JoinSet<Result<Ended, Error>>,
    keys: BTreeMap<Id, String>,
}

impl Tasks {
    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    pub(super) fn begin<F>(&mut self, key: String, task: F)
    where
        F: Future<Output = Result<Ended, Error>> + Send + 'static,
    {
        let id = self.running.spawn(task).id();
        self.keys.insert(id, key);
    }

    /// Waits until one ends, and returns the order that it was about; nothing when there is none.
    pub(super) async fn next(&mut self) -> Option<(String, Outcome)> {
        let (id, outcome) = match self.running.join_next_with_id().await? {
            Ok((id, outcome)) => (id, Ok(outcome)),
            Err(error) => (error.id(), Err(error)),
        };
        Some((self.keys.remove(&id)?, outcome))
    }
}

#[cfg(test)]
mod tests {
    use perch_types::Timestamp;

    use super::*;
    use crate::worker::known::Known;
    use crate::worker::{BROKEN_PAUSE_MS, ended_as};

    #[tokio::test]
    async fn an_order_whose_task_breaks_off_rests_and_no_other_is_begun_twice() {
        let now = Timestamp::UNIX_EPOCH;
        let (mut known, mut tasks) = (Known::default(), Tasks::default());
        for key in ["broken", "runs"] {
            known.put(key.to_owned(), now, false);
            known.begins(key);
        }
        tasks.begin("broken".to_owned(), std::future::pending());
        tasks.running.abort_all();
        tasks.begin("runs".to_owned(), std::future::pending());
        let ended = tasks.next().await.unwrap();
        assert_eq!((ended.0.as_str(), ended.1.is_err()), ("broken", true));
        ended_as(ended, &mut known, 100).unwrap();
        assert_eq!(known.next(now, 100).0, None);
        assert_eq!(known.next(now, 100 + BROKEN_PAUSE_MS).0.as_deref(), Some("broken"));
        known.begins("broken");
        assert_eq!(known.next(now, u64::MAX).0, None);
        assert_eq!((tasks.count(), tasks.keys.len()), (1, 1));
    }
}
