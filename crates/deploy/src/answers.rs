//! Whether a new version answers worse than the one before it, by what the edge counts of both.
//!
//! Never holds a deploy up for long: where nobody asks, nothing is judged.

use perch_types::MachineId;
use perch_types::api::Answers;
use tokio::time::{Instant, sleep};

use crate::apply::{Deployer, Place};
use crate::error::Error;
use crate::observe::{Event, Observer, Shared};

/// So few requests say nothing of a version.
const COUNT_MIN: u64 = 20;
/// So few errors are chance.
const ERRORS_MIN: u64 = 5;
/// So many more of a hundred requests may fail than before: some more are chance too.
const WORSE_MAX: u64 = 10;

/// Returns of a hundred requests those that failed.
fn share(answers: &Answers) -> u64 {
    answers.errors.saturating_mul(100).checked_div(answers.count).unwrap_or_default()
}

/// Returns whether enough is known of a version to compare another with it.
#[must_use]
pub fn is_known(answers: &Answers) -> bool {
    answers.count >= COUNT_MIN
}

/// Returns whether a version answers worse than the one before, beyond what is chance.
#[must_use]
pub fn is_worse(before: &Answers, after: &Answers) -> bool {
    after.errors >= ERRORS_MIN && share(after) > share(before).saturating_add(WORSE_MAX)
}

impl Deployer {
    /// Waits until the new version of a machine has answered some requests, nobody asks it any
    /// more, or the time is over.
    ///
    /// # Errors
    /// When it answers worse than the version before.
    pub(crate) async fn compare<O: Observer + ?Sized>(
        &self,
        id: &MachineId,
        before: &Answers,
        place: Place,
        observer: &Shared<'_, O>,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        let (mut seen, mut quiet_since, mut is_told) = (0, begun, false);
        loop {
            // What cannot be read is not held against it: it is ready.
            let Ok(machine) = self.api.machine(&self.app, id).await else {
                return Ok(());
            };
            let after = machine.answers.filter(|it| it.instance_id == machine.instance_id);
            let count = after.as_ref().map_or(0, |after| after.count);
            if let Some(after) = after.filter(|after| is_worse(before, after)) {
                let (before, log) = (share(before), self.last_lines(id).await);
                let Answers { count, errors, .. } = after;
                return Err(Error::Worse { machine: id.clone(), errors, count, before, log });
            }
            if count > seen {
                (seen, quiet_since) = (count, Instant::now());
            }
            let is_quiet = quiet_since.elapsed() >= self.limits.quiet;
            if count >= COUNT_MIN || is_quiet || begun.elapsed() >= self.limits.answers {
                return Ok(());
            }
            if !is_told {
                is_told = true;
                let Place { index, total } = place;
                let because =
                    "its answers are compared with those of the version before".to_owned();
                observer.event(Event::Waiting { index, total, machine: id.clone(), because });
            }
            sleep(self.limits.poll).await;
        }
    }
}
