//! The way back from the writer thread: a value that can be awaited or waited for.
//!
//! Never loses a result: a writer that goes away without an answer is an answer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::Error;

struct State<T> {
    value: Option<T>,
    closed: bool,
    waker: Option<Waker>,
}

struct Slot<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, value: Option<T>) {
        let mut state = self.lock();
        if let Some(value) = value {
            state.value = Some(value);
        }
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The sending side.
pub(super) struct Reply<T, E> {
    slot: Arc<Slot<Result<T, E>>>,
}

impl<T, E> Reply<T, E> {
    pub(super) fn send(self, result: Result<T, E>) {
        self.slot.close(Some(result));
    }
}

impl<T, E> Drop for Reply<T, E> {
    fn drop(&mut self) {
        self.slot.close(None);
    }
}

/// The result of a write, known once it is on the disk. A future; [`Pending::wait`] blocks.
#[must_use = "only the result tells whether the write happened"]
pub struct Pending<T, E> {
    slot: Arc<Slot<Result<T, E>>>,
}

pub(super) fn pair<T, E>() -> (Reply<T, E>, Pending<T, E>) {
    let state = State { value: None, closed: false, waker: None };
    let slot = Arc::new(Slot { state: Mutex::new(state), changed: Condvar::new() });
    (Reply { slot: Arc::clone(&slot) }, Pending { slot })
}

impl<T, E: From<Error>> Pending<T, E> {
    /// Blocks until the write is on the disk.
    ///
    /// # Errors
    /// What the work returned, or why it did not reach the disk.
    pub fn wait(self) -> Result<T, E> {
        let mut state = self.slot.lock();
        while !state.closed {
            state = self.slot.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.value.take().unwrap_or_else(|| Err(Error::Stopped.into()))
    }
}

impl<T, E: From<Error>> Future for Pending<T, E> {
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.slot.lock();
        if state.closed {
            return Poll::Ready(state.value.take().unwrap_or_else(|| Err(Error::Stopped.into())));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T, E> fmt::Debug for Pending<T, E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pending").finish_non_exhaustive()
    }
}
