//! What a deploy tells while it works.
//!
//! Never waits for whoever listens.

use std::sync::{Mutex, PoisonError};

use perch_types::MachineId;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An operation begins.
    Started {
        /// Which, from 1.
        index: usize,
        /// Of how many.
        total: usize,
        /// What it is.
        text: String,
    },
    /// It goes on; sent when the reason changes.
    Waiting {
        /// Which, from 1.
        index: usize,
        /// Of how many.
        total: usize,
        /// The machine.
        machine: MachineId,
        /// What is waited for.
        because: String,
    },
    /// An operation succeeded.
    Done {
        /// Which, from 1.
        index: usize,
        /// Of how many.
        total: usize,
        /// The machine.
        machine: MachineId,
        /// How it stands now: `ready`, `started`, `stopped`, `destroyed`.
        result: &'static str,
        /// How long it took.
        took_ms: u64,
    },
    /// The operation failed and is being undone.
    Undoing {
        /// The machine.
        machine: MachineId,
        /// What is done: `put back the version before`, `remove the new machine`.
        text: &'static str,
    },
    /// It is undone; when it could not be, the error says so.
    Undone {
        /// The machine.
        machine: MachineId,
        /// How it is now: `runs the version before again`, `is removed`.
        text: &'static str,
    },
    /// An operation failed beside another one, whose error is the deploy's.
    Failed {
        /// Which, from 1.
        index: usize,
        /// Of how many.
        total: usize,
        /// Why.
        because: String,
    },
    /// The deploy ends here, with an error.
    Halted {
        /// Operations that succeeded before: their machines keep the new version.
        done: usize,
        /// Operations that were not begun: their machines are as they were.
        untouched: usize,
    },
}

/// Whoever wants to know.
pub trait Observer {
    /// Takes an event.
    fn event(&mut self, event: Event);
}

/// One observer for operations that are carried out at once.
pub(crate) struct Shared<'a, O: ?Sized>(Mutex<&'a mut O>);

impl<'a, O: Observer + ?Sized> Shared<'a, O> {
    pub(crate) fn new(observer: &'a mut O) -> Self {
        Self(Mutex::new(observer))
    }

    pub(crate) fn event(&self, event: Event) {
        // An observer that panicked has ended the deploy with it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).event(event);
    }
}

/// Events kept in their order.
impl Observer for Vec<Event> {
    fn event(&mut self, event: Event) {
        self.push(event);
    }
}
