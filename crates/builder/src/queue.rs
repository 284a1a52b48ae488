//! Who may build now: a few slots, a short line before them.
//!
//! Never lets the line grow without end: who comes too late is told so at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// The slots and the line before them.
#[derive(Debug)]
pub(crate) struct Queue {
    semaphore: Arc<Semaphore>,
    free: Mutex<Vec<usize>>,
    slots: usize,
    waiting: AtomicUsize,
    waiting_max: usize,
}

/// A slot that is held; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    queue: Arc<Queue>,
    number: usize,
    _permit: OwnedSemaphorePermit,
}

/// A place in the line.
#[derive(Debug)]
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    /// Builds that run or wait before this one; 0 if it may go at once.
    pub(crate) before: usize,
}

impl Queue {
    pub(crate) fn new(slots: usize, waiting_max: usize) -> Self {
        Self {
            semaphore: Arc::new(Semaphore::new(slots)),
            free: Mutex::new((0..slots).rev().collect()),
            slots,
            waiting: AtomicUsize::new(0),
            waiting_max,
        }
    }

    /// Takes a place in the line.
    ///
    /// # Errors
    /// The line is full.
    pub(crate) fn ticket(self: &Arc<Self>) -> Result<Ticket, Error> {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst);
        let ticket = |before| Ticket { queue: Arc::clone(self), before };
        let running = self.slots - self.semaphore.available_permits().min(self.slots);
        let before = if running + waiting < self.slots { 0 } else { running + waiting };
        let ticket = ticket(before);
        // The ticket gives its place back when it is dropped here.
        if before > 0 && waiting >= self.waiting_max {
            Err(Error::Busy { waiting })
        } else {
            Ok(ticket)
        }
    }
}

impl Ticket {
    /// Waits for a slot.
    pub(crate) async fn slot(self) -> Result<Slot, Error> {
        let queue = Arc::clone(&self.queue);
        let permit = Arc::clone(&queue.semaphore).acquire_owned().await;
        let permit = permit.map_err(|_closed| Error::Abandoned)?;
        let number = queue.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let number = number.ok_or(Error::Abandoned)?;
        Ok(Slot { queue, number, _permit: permit })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Slot {
    pub(crate) fn number(&self) -> usize {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.queue.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slots_are_given_in_turn_and_the_line_has_an_end() {
        let queue = Arc::new(Queue::new(1, 1));
        let first = queue.ticket().unwrap();
        assert_eq!(first.before, 0);
        let first = first.slot().await.unwrap();
        let second = queue.ticket().unwrap();
        assert_eq!(second.before, 1);
        assert!(matches!(queue.ticket(), Err(Error::Busy { waiting: 1 })));
        drop(first);
        let second = second.slot().await.unwrap();
        assert_eq!(second.number(), 0);
        assert_eq!(queue.ticket().unwrap().before, 1);
    }
}
