//! Room in a machine: connections that count in it, and requests that wait for a place.
//!
//! Never lets a place become free unheard: whoever waits was in the queue before it looked.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::task::Poll;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::live::{Load, Target};

/// How much of a machine is taken by connections, and who waits for a place in it.
#[derive(Debug, Default)]
pub(crate) struct Room {
    connections: AtomicU32,
    waiting: AtomicU32,
    freed: Arc<Notify>,
}

impl Room {
    /// Returns how many clients' connections stay with the machine.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Acquire)
    }

    /// Tells the one who waits longest that a place may be free.
    pub(crate) fn tell(&self) {
        // Against the fence in `Queued::arm`: either this sees who waits, or they see the place.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.freed.notify_one();
        }
    }
}

/// One client's connection that counts in a machine until this is dropped.
#[derive(Debug)]
pub(crate) struct Connected(Arc<Load>);

impl Connected {
    /// Counts a connection; `None` when that would be more than `hard`.
    pub(crate) fn begin(load: &Arc<Load>, hard: Option<u32>) -> Option<Self> {
        let hard = hard.unwrap_or(u32::MAX);
        let more = |count: u32| (count < hard).then_some(count + 1);
        let begun = load.room.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        begun.ok().map(|_| Self(Arc::clone(load)))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.room.connections.fetch_sub(1, Ordering::AcqRel);
        self.0.room.tell();
    }
}

/// A place in the queue for any machine of an app.
#[derive(Debug)]
pub(crate) struct Queued {
    loads: Vec<Arc<Load>>,
    tickets: Vec<Pin<Box<OwnedNotified>>>,
}

impl Queued {
    /// Queues up at all machines; `None` when so many wait already. A look at the machines has to
    /// follow before [`Queued::turn`] is waited for.
    pub(crate) fn join(machines: &[Arc<Target>], queue_max: u32) -> Option<Self> {
        let queued = Self::arm(machines);
        let is_too_long =
            queued.loads.iter().any(|load| load.room.waiting.load(Ordering::Relaxed) > queue_max);
        (!is_too_long).then_some(queued)
    }

    /// Queues up anew at the machines that there are now. What it was told before and did not use
    /// goes to the next.
    pub(crate) fn join_again(&mut self, machines: &[Arc<Target>]) {
        *self = Self::arm(machines);
    }

    fn arm(machines: &[Arc<Target>]) -> Self {
        let loads: Vec<Arc<Load>> =
            machines.iter().map(|target| Arc::clone(&target.load)).collect();
        for load in &loads {
            load.room.waiting.fetch_add(1, Ordering::Relaxed);
        }
        let tickets = loads
            .iter()
            .map(|load| {
                let mut ticket = Box::pin(Arc::clone(&load.room.freed).notified_owned());
                ticket.as_mut().enable();
                ticket
            })
            .collect();
        fence(Ordering::SeqCst);
        Self { loads, tickets }
    }

    /// Waits until a place may be free.
    pub(crate) async fn turn(&mut self) {
        poll_fn(|context| {
            let is_free =
                self.tickets.iter_mut().any(|ticket| ticket.as_mut().poll(context).is_ready());
            if is_free { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        for load in &self.loads {
            load.room.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use perch_types::MachineState;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::live::tests::record;

    const SOON: Duration = Duration::from_secs(5);

    fn target() -> Arc<Target> {
        let record = record(1, "web", MachineState::Started);
        Arc::new(Target { record, load: Arc::default(), since: Instant::now() })
    }

    #[test]
    fn connections_are_counted_up_to_the_wall() {
        let target = target();
        let first = Connected::begin(&target.load, Some(2)).unwrap();
        let second = Connected::begin(&target.load, Some(2)).unwrap();
        assert!(Connected::begin(&target.load, Some(2)).is_none());
        assert_eq!(target.load.room.connections(), 2);
        drop(first);
        assert!(Connected::begin(&target.load, Some(2)).is_some());
        drop(second);
        assert_eq!(target.load.room.connections(), 0);
    }

    #[tokio::test]
    async fn a_place_that_becomes_free_is_told_to_one_who_waits() {
        let (full, other) = (target(), target());
        let place = full.load.begin(Some(1)).unwrap();
        let machines = [Arc::clone(&full), other];
        let mut first = Queued::join(&machines, 2).unwrap();
        let mut second = Queued::join(&machines, 2).unwrap();
        assert!(Queued::join(&machines, 2).is_none(), "no third may wait");
        drop(place);
        timeout(SOON, first.turn()).await.unwrap();
        assert!(
            timeout(Duration::from_millis(20), second.turn()).await.is_err(),
            "one place wakes one"
        );
        let place = Connected::begin(&full.load, None).unwrap();
        drop(place);
        timeout(SOON, second.turn()).await.unwrap();
    }

    #[tokio::test]
    async fn who_leaves_the_queue_leaves_its_turn_to_the_next() {
        let full = target();
        let place = full.load.begin(Some(1)).unwrap();
        let machines = [Arc::clone(&full)];
        let first = Queued::join(&machines, 9).unwrap();
        let mut second = Queued::join(&machines, 9).unwrap();
        drop(place);
        drop(first);
        timeout(SOON, second.turn()).await.unwrap();
    }
}
