//! A watch: reads the history from where it stands, waits for the next commit, goes on.
//!
//! Never keeps history of its own beyond a batch: a watcher that falls too far behind ends with
//! an error.

use std::collections::VecDeque;

use futures_util::{Stream, stream};
use perch_durable::Db;
use tokio::sync::watch;

use super::rows::{self, Place};
use crate::{Error, Event, Revision};

/// How many changes are read at a time.
const BATCH_MAX: usize = 64;

pub(super) struct Follow {
    db: Db,
    prefix: String,
    place: Place,
    ready: VecDeque<Event>,
    latest: watch::Receiver<u64>,
    is_over: bool,
}

impl Follow {
    pub(super) fn new(db: Db, prefix: &str, from: Revision, latest: watch::Receiver<u64>) -> Self {
        let place = Place { revision: from, ordinal: 0 };
        let prefix = prefix.to_owned();
        Self { db, prefix, place, ready: VecDeque::new(), latest, is_over: false }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Event, Error>> + Send {
        stream::unfold(self, |mut follow| async move {
            if follow.is_over {
                return None;
            }
            let result = follow.next().await;
            follow.is_over = result.is_err();
            Some((result, follow))
        })
    }

    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            // Seen before the read, so that a commit during it wakes us again.
            self.latest.borrow_and_update();
            self.read()?;
            if self.ready.is_empty() && self.latest.changed().await.is_err() {
                let reason = "it was closed".to_owned();
                return Err(Error::Unavailable { operation: "watch", reason });
            }
        }
    }

    fn read(&mut self) -> Result<(), Error> {
        let (position, changes) = self.db.read(|snapshot| -> Result<_, Error> {
            let position = rows::position(snapshot)?;
            position.check(self.place.revision)?;
            let changes = rows::changes(snapshot, &self.prefix, self.place, BATCH_MAX)?;
            Ok((position, changes))
        })?;
        let is_all = changes.len() < BATCH_MAX;
        for (event, behind) in changes {
            self.place = behind;
            self.ready.push_back(event);
        }
        // Changes elsewhere count as seen, so that a quiet prefix does not fall behind.
        let next = position.revision.next();
        if is_all && next > self.place.revision {
            self.place = Place { revision: next, ordinal: 0 };
        }
        Ok(())
    }
}
