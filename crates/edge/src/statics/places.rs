//! How many files of images are sent at once, of one app and of all: each holds a connection to the
//! host until its client has taken it.
//!
//! Never keeps a place for an app that sends nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Limits;
use crate::live::AppKey;

/// How many apps are remembered before those are forgotten that send nothing.
const APPS_MAX: usize = 1_024;

/// Places for files.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    apps: Mutex<HashMap<AppKey, Arc<Semaphore>>>,
    of_app_max: usize,
    /// How many wait for a place of their app, and how long.
    waiting_max: usize,
    wait: Duration,
}

/// A place among those that files may have; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _of_app: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.files_max)),
            apps: Mutex::default(),
            of_app_max: limits.files_app_max,
            waiting_max: usize::try_from(limits.queue_max).unwrap_or(usize::MAX),
            wait: limits.queue,
        }
    }

    /// Takes a place, and waits for one if there is none; nothing when that takes too long, or too
    /// many wait.
    pub(super) async fn take(&self, app: &AppKey) -> Option<Place> {
        let of_app = self.of(app);
        // Who has a place or waits for one holds this, and so does the table.
        let others = Arc::strong_count(&of_app).saturating_sub(2);
        if others >= self.of_app_max.saturating_add(self.waiting_max) {
            return None;
        }
        let all = Arc::clone(&self.all);
        let taking = async {
            let of_app = of_app.acquire_owned().await.ok()?;
            let of_all = all.acquire_owned().await.ok()?;
            Some(Place { _of_app: of_app, _of_all: of_all })
        };
        tokio::time::timeout(self.wait, taking).await.ok().flatten()
    }

    fn of(&self, app: &AppKey) -> Arc<Semaphore> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = apps.get(app) {
            return Arc::clone(known);
        }
        if apps.len() >= APPS_MAX {
            apps.retain(|_, places| Arc::strong_count(places) > 1);
        }
        let places = Arc::new(Semaphore::new(self.of_app_max));
        apps.insert(app.clone(), Arc::clone(&places));
        places
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn app(name: &str) -> AppKey {
        AppKey { org: "personal".parse().unwrap(), name: name.parse().unwrap() }
    }

    #[tokio::test]
    async fn an_app_has_its_share_and_all_have_no_more_than_there_is() {
        let wait = Duration::from_millis(1);
        let limits = Limits { files_max: 3, files_app_max: 2, queue: wait, ..Limits::default() };
        let places = Places::new(&limits);
        let (web, other) = (app("web"), app("other"));
        let first = places.take(&web).await.unwrap();
        let second = places.take(&web).await.unwrap();
        assert!(places.take(&web).await.is_none(), "it has its share");
        let third = places.take(&other).await.unwrap();
        assert!(places.take(&other).await.is_none(), "there are no more");
        drop(first);
        let fourth = places.take(&other).await.unwrap();
        drop((second, third, fourth));
        for number in 0..2 * APPS_MAX {
            places.take(&app(&format!("app-{number}"))).await.unwrap();
        }
        assert!(places.apps.lock().unwrap().len() <= APPS_MAX, "who has none is forgotten");
    }

    #[tokio::test]
    async fn only_so_many_wait_and_one_of_them_has_the_place_that_is_free() {
        let limits = Limits { files_app_max: 1, queue_max: 1, ..Limits::default() };
        let places = Places::new(&limits);
        let web = app("web");
        let first = places.take(&web).await.unwrap();
        let mut second = Box::pin(places.take(&web));
        assert!((&mut second).now_or_never().is_none(), "it waits");
        assert!(places.take(&web).now_or_never().unwrap().is_none(), "no other may");
        drop(first);
        assert!(second.await.is_some());
    }
}
