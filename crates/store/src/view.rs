//! A view that follows the directory: what requests, names and lists are served from.
//!
//! Never forgets what it knew because the directory is gone: it serves on, and finds a copy on
//! the disk after a restart.

mod cache;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::select_all};
use perch_types::{
    directory::MachineRecord,
    pulse::Pulse,
    view::{PREFIXES, View},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use crate::turning::turning;
use crate::{Entry, Error, Event, Store};

/// The first pause after the directory was lost.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How many changes are taken into one new view.
const CHANGES_AT_ONCE_MAX: usize = 256;
/// How old the copy on the disk may get while changes come.
const CACHE_DEBOUNCE: Duration = Duration::from_secs(1);

/// Begins to follow a directory.
#[derive(Debug)]
pub struct ViewFollower;

/// The view, as many hands as wanted. It follows the directory for as long as one is held.
#[derive(Debug, Clone)]
pub struct ViewHandle {
    shared: Arc<Shared>,
    _tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Tasks([JoinHandle<()>; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

#[derive(Debug)]
struct Shared {
    view: ArcSwap<View>,
    /// The documents that the view is made of: the newest of each that parses. Whoever holds the
    /// lock is the one who replaces the view.
    documents: Mutex<BTreeMap<String, Bytes>>,
    changes: watch::Sender<u64>,
    is_live: AtomicBool,
    is_dirty: Notify,
    /// Shows that the directory is followed.
    pulse: Pulse,
}

impl ViewFollower {
    /// Loads the copy on the disk, if there is one, and follows the directory from then on. Must
    /// be called inside a tokio runtime. A copy that does not parse is left out.
    #[must_use]
    pub fn start(store: Arc<dyn Store>, cache_path: impl Into<PathBuf>) -> ViewHandle {
        let cache_path = cache_path.into();
        let documents = cache::load(&cache_path).unwrap_or_else(|error| {
            tracing::warn!(path = %cache_path.display(), %error, "cannot read copy of the view");
            BTreeMap::new()
        });
        let (view, documents) = build(documents.into_iter(), &BTreeMap::new());
        let shared = Arc::new(Shared {
            view: ArcSwap::from_pointee(view),
            documents: Mutex::new(documents),
            changes: watch::Sender::new(0),
            is_live: AtomicBool::new(false),
            is_dirty: Notify::new(),
            pulse: Pulse::default(),
        });
        let following = tokio::spawn(follow(store, Arc::clone(&shared)));
        let caching = tokio::spawn(keep_cache(Arc::clone(&shared), cache_path));
        ViewHandle { shared, _tasks: Arc::new(Tasks([following, caching])) }
    }
}

impl ViewHandle {
    /// Returns the view as it is now. Load it once per piece of work, so that all of that sees
    /// the same.
    #[must_use]
    pub fn load(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Returns a receiver that wakes on every new view; its number means nothing else.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Returns whether the directory answers, so that the view is up to date but for the moment
    /// that a change takes. If not it is what was known last.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.shared.is_live.load(Ordering::Acquire)
    }

    /// Returns the signs of life of the task that follows the directory.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.shared.pulse.clone()
    }

    /// Waits for a view of which `holds` is true and returns it; `None` after `deadline`.
    pub async fn wait_for(
        &self,
        holds: impl Fn(&View) -> bool,
        deadline: Duration,
    ) -> Option<Arc<View>> {
        let mut changed = self.changed();
        let waiting = async {
            loop {
                changed.borrow_and_update();
                let view = self.load();
                if holds(&view) {
                    return Some(view);
                }
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(deadline, waiting).await.ok().flatten()
    }

    /// Takes a machine's record that came straight from its host, ahead of the directory, unless
    /// the view has a newer one; returns whether it holds one as new now. A machine that it does not
    /// know is not taken: that it is there, and that it is gone for good, the directory says alone.
    #[must_use]
    pub fn take_known_machine(&self, machine: MachineRecord) -> bool {
        let documents = self.shared.documents();
        let now = self.load();
        let Some(known) = now.machine(&machine.id) else {
            return false;
        };
        if known.generation < machine.generation {
            let mut view = View::clone(&now);
            view.put_machine(machine);
            self.shared.publish(view, documents);
        }
        true
    }
}

impl Shared {
    fn documents(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, view: View, held: MutexGuard<'_, BTreeMap<String, Bytes>>) {
        self.view.store(Arc::new(view));
        drop(held);
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        self.is_dirty.notify_one();
    }

    fn replace(&self, entries: Vec<Entry>) {
        let mut documents = self.documents();
        let listed = entries.into_iter().map(|entry| (entry.key, entry.value));
        let (mut view, found) = build(listed, &documents);
        *documents = found;
        // What came straight from a host may be ahead of the directory.
        for machine in self.view.load().machines() {
            if view.machine(&machine.id).is_some() {
                view.put_machine(machine.clone());
            }
        }
        self.publish(view, documents);
    }

    fn apply(&self, events: Vec<Event>) {
        let mut documents = self.documents();
        let mut view = View::clone(&self.view.load());
        for Event { key, value, revision } in events {
            match (view.apply(&key, value.as_deref()), value) {
                (Ok(()), Some(value)) => {
                    documents.insert(key, value);
                }
                (Ok(()), None) => {
                    documents.remove(&key);
                }
                (Err(error), _) => {
                    tracing::error!(key, %revision, error = %error.source, "unreadable document");
                }
            }
        }
        self.publish(view, documents);
    }
}

/// Builds a view. A document that does not parse is replaced by the last of its key that did.
fn build(
    listed: impl Iterator<Item = (String, Bytes)>,
    before: &BTreeMap<String, Bytes>,
) -> (View, BTreeMap<String, Bytes>) {
    let mut view = View::default();
    let mut documents = BTreeMap::new();
    for (key, value) in listed {
        let value = match view.apply(&key, Some(&value)) {
            Ok(()) => Some(value),
            Err(error) => {
                tracing::error!(key, error = %error.source, "unreadable document");
                let known = before.get(&key).cloned();
                known.filter(|known| view.apply(&key, Some(known)).is_ok())
            }
        };
        if let Some(value) = value {
            documents.insert(key, value);
        }
    }
    (view, documents)
}

async fn follow(store: Arc<dyn Store>, shared: Arc<Shared>) {
    let mut pause = PAUSE_MIN;
    loop {
        let error = turning(&shared.pulse, follow_once(store.as_ref(), &shared)).await;
        if shared.is_live.swap(false, Ordering::AcqRel) {
            pause = PAUSE_MIN;
        }
        tracing::warn!(%error, "lost the directory: serving what was known");
        turning(&shared.pulse, tokio::time::sleep(pause)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Lists, then follows until something breaks; returns what did.
async fn follow_once(store: &dyn Store, shared: &Shared) -> Error {
    match follow_changes(store, shared).await {
        Err(error) => error,
        Ok(()) => Error::Unavailable { operation: "watch", reason: "it ended".to_owned() },
    }
}

async fn follow_changes(store: &dyn Store, shared: &Shared) -> Result<(), Error> {
    let mut entries = Vec::new();
    let mut watches = Vec::new();
    for prefix in PREFIXES {
        let listing = store.list(prefix).await?;
        watches.push(store.watch(prefix, listing.revision.next()).await?);
        entries.extend(listing.entries);
    }
    shared.replace(entries);
    shared.is_live.store(true, Ordering::Release);
    // Together, so that many changes at once cost one new view.
    let mut changes = select_all(watches).ready_chunks(CHANGES_AT_ONCE_MAX);
    while let Some(chunk) = changes.next().await {
        let mut events = Vec::with_capacity(chunk.len());
        let mut fault = None;
        for change in chunk {
            match change {
                Ok(event) => events.push(event),
                Err(error) => fault = Some(error),
            }
        }
        shared.apply(events);
        if let Some(error) = fault {
            return Err(error);
        }
    }
    Ok(())
}

async fn keep_cache(shared: Arc<Shared>, path: PathBuf) {
    loop {
        shared.is_dirty.notified().await;
        tokio::time::sleep(CACHE_DEBOUNCE).await;
        let documents = shared.documents().clone();
        let path = path.clone();
        let saved = tokio::task::spawn_blocking(move || cache::save(&path, &documents)).await;
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot write copy of the view"),
            Err(error) => tracing::error!(%error, "writing the copy of the view broke off"),
        }
    }
}
