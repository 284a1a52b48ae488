//! Machines that run into a limit and go on: their events say so.
//!
//! Never acts on it: the kernel has.

use perch_runtime::Pressure;

use crate::machine::record::Reached;
use crate::machine::state::{Fact, State};
use crate::shared::Shared;

impl Shared {
    /// Looks at every machine that runs.
    pub(crate) async fn look_at_limits(&self) {
        for handle in self.all() {
            let published = handle.published();
            let Some(instance) = &published.instance else { continue };
            if published.machine.state != State::Started {
                continue;
            }
            // One that has just ended has its own event.
            let Ok(pressure) = instance.pressure().await else { continue };
            let boot = instance.info().boot;
            for what in reached(pressure) {
                handle.tell(Fact::Reached { boot, what });
            }
        }
    }
}

fn reached(pressure: Pressure) -> impl Iterator<Item = Reached> {
    let all = [
        (pressure.oom_kills > 0, Reached::Memory),
        (pressure.forks_refused > 0, Reached::Processes),
    ];
    all.into_iter().filter_map(|(is_reached, what)| is_reached.then_some(what))
}
