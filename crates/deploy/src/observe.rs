//! What a deploy tells while it works.
//!
//! Never waits for whoever listens.

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

/// Events kept in their order.
impl Observer for Vec<Event> {
    fn event(&mut self, event: Event) {
        self.push(event);
    }
}
