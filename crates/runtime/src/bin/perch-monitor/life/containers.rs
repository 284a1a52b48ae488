//! What the main thread does for the containers of a machine: what happened goes into `Order`,
//! and what comes out of it is done.
//!
//! Never decides anything itself.

use perch_runtime::Error;
use perch_runtime::containers::{Action, Event, Finish, Order};
use perch_types::guest::{FromGuest, ToGuest};

use super::Life;
use crate::shared::{Phase, Shared};
use crate::{clock, words};

/// The containers of a machine that has several.
#[derive(Debug, Default)]
pub(super) struct Several {
    order: Option<Order>,
    starts: Vec<perch_runtime::ContainerStart>,
    /// Why a container could not be executed, for the last of them.
    reason: String,
    /// Whose end was the machine's.
    pub(super) finished: Option<usize>,
}

impl Several {
    /// Returns when time has to be looked at.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.order.as_ref().and_then(Order::due_ms)
    }
}

/// Returns the name of a container.
pub(super) fn name(shared: &Shared, index: usize) -> &str {
    shared.spec.containers.get(index).map_or("", |one| one.name.as_str())
}

/// Returns what a message of a container's init says of its program, as an event, and writes it
/// into the log; nothing when it is about something else.
pub(super) fn understand(life: &mut Life, message: &FromGuest, index: usize) -> Option<Event> {
    let shared = &life.shared;
    if shared.spec.containers.is_empty() {
        return None;
    }
    let name = name(shared, index);
    match message {
        FromGuest::Started => {
            shared.change(|state| {
                if state.phase == Phase::Starting {
                    state.phase = Phase::Running;
                    state.started_unix_ms = clock::unix_ms();
                }
            });
            Some(Event::Started(index))
        }
        FromGuest::StartFailed { code, reason } => {
            shared.queue.system(&words::container_not_started(name, reason));
            life.several.reason = format!("container {name}: {reason}");
            Some(Event::NotExecutable(index, *code))
        }
        FromGuest::Ended(ended) => {
            shared.queue.system(&words::container_ended(name, *ended));
            Some(Event::Ended(index, *ended))
        }
        _ => None,
    }
}

impl Life {
    /// Does what follows from what happened since the last turn.
    pub(super) fn orchestrate(&mut self) -> Result<(), Error> {
        let (starts, mut events) = {
            let mut state = self.shared.state();
            (state.starts.take(), std::mem::take(&mut state.events))
        };
        if let Some(starts) = starts {
            self.several.order = Some(Order::new(&starts));
            self.several.starts = starts;
            events.push_front(Event::Begin);
        }
        let now_ms = clock::boot_ms();
        if self.several.due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            events.push_back(Event::Tick);
        }
        for event in events {
            let order = self.several.order.as_mut();
            for action in order.map(|order| order.step(event, now_ms)).unwrap_or_default() {
                self.act(action)?;
            }
        }
        let Some(order) = &self.several.order else {
            return Ok(());
        };
        let each = order.statuses();
        if self.shared.state().containers.each != each {
            self.shared.change(|state| {
                state.containers.counter = state.containers.counter.saturating_add(1);
                state.containers.each = each;
            });
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::Start(index) => {
                let Some(start) = self.several.starts.get(index).map(|one| one.start.clone())
                else {
                    return Ok(());
                };
                self.shared.queue.system(&words::container_starting(name(&self.shared, index)));
                self.tell(index, &ToGuest::Start(Box::new(start)))
            }
            Action::Signal(index, signal) => {
                let text = words::container_signal(name(&self.shared, index), signal);
                self.shared.queue.system(&text);
                self.tell(index, &ToGuest::Signal { signal })
            }
            Action::Finish(finish) => self.finish(finish),
        }
    }

    /// Speaks to a container's init. One that does not listen has broken its protocol or ended.
    fn tell(&mut self, index: usize, message: &ToGuest) -> Result<(), Error> {
        if let Err(error) = self.shared.speaker(index).send(message, &[])
            && self.ended.is_none()
        {
            self.fault = Some(format!("container {}: {error}", name(&self.shared, index)));
            return self.shared.kill();
        }
        Ok(())
    }

    fn finish(&mut self, finish: Finish) -> Result<(), Error> {
        let Finish { container, ended, not_executable } = finish;
        self.ended = Some(ended);
        self.several.finished = Some(container);
        let reason = std::mem::take(&mut self.several.reason);
        self.shared.change(|state| {
            if not_executable && state.phase == Phase::Starting {
                state.phase = Phase::NotExecutable { code: ended.code, reason };
            }
        });
        // Their inits wait for more; there is nothing more to come.
        self.shared.kill()
    }
}
