//! Commands that were accepted and wait for the run that is under way.
//!
//! Never carries one out. What waits counts already: as the version that will be, and as the
//! labels that are shown.

use std::collections::VecDeque;
use std::sync::Arc;

use perch_types::directory::record_overflow;
use perch_types::host::{Command, HostMachine};
use perch_types::labels::{self, Labels};
use perch_types::{ApiError, Code, InstanceId};

use super::{Actor, images};
use crate::schema::{self, Queued};

impl Actor {
    /// Refuses what does not fit what the machine is about to be: a host never runs an epoch older
    /// than one it knows, and a version that was named must be the one.
    pub(super) fn check(&self, command: &Command) -> Result<(), ApiError> {
        let (newest, coming) = self.coming();
        match command {
            Command::Update { epoch, .. } if *epoch < newest => {
                let text = format!("epoch {epoch} is older than {newest}");
                Err(ApiError::new(Code::Conflict, text))
            }
            Command::SetLabels { change, instance } => {
                if instance.as_ref().is_some_and(|instance| instance != coming) {
                    let text = format!("machine_version: the machine has version {coming}");
                    return Err(ApiError::new(Code::PreconditionFailed, text)
                        .with_hint("read the machine again, then try again"));
                }
                let mut config = self.record.version.config.clone();
                config.metadata = self.labels();
                change.apply(&mut config.metadata);
                let refused = |text| ApiError::new(Code::InvalidValue, format!("metadata: {text}"));
                labels::check(&config.metadata).map_err(refused)?;
                match record_overflow(&config) {
                    0 => Ok(()),
                    over => Err(refused(format!(
                        "is {over} bytes over what a record of a machine can hold beside its \
                         services and image"
                    ))),
                }
            }
            _ => Ok(()),
        }
    }

    /// Returns the newest epoch and the version that the machine has or is about to have.
    fn coming(&self) -> (u64, &InstanceId) {
        let version = self.record.incoming();
        let waiting = self.queued.iter().filter_map(|queued| match &queued.command {
            Command::Update { epoch, instance, .. } => Some((*epoch, instance)),
            _ => None,
        });
        let newest = std::iter::once((version.epoch, &version.instance)).chain(waiting);
        newest.max_by_key(|(epoch, _)| *epoch).unwrap_or((version.epoch, &version.instance))
    }

    /// Writes a command behind those that wait.
    pub(super) async fn enqueue(&mut self, queued: Queued) -> Result<(), ApiError> {
        let mut rows: Vec<Queued> = self.queued.iter().cloned().collect();
        let is_labels = matches!(queued.command, Command::SetLabels { .. });
        if let Command::SetLabels { change: next, .. } = &queued.command
            && let Some(Queued { command: Command::SetLabels { change, .. }, .. }) = rows.last_mut()
        {
            // Two changes of labels take one place.
            *change = change.clone().then(next.clone());
        } else {
            rows.push(queued);
        }
        let id = self.record.id.clone();
        let written = rows.clone();
        self.shared
            .db
            .write_reserved(move |tx| schema::put_queue(tx, &id, &written))
            .await
            .map_err(|error| self.shared.db_error(&error))?;
        self.queued = rows.into();
        if is_labels {
            self.publish();
        } else {
            let images = images(&self.record, self.queued.make_contiguous());
            self.published.send_modify(|published| Arc::make_mut(published).images = images);
        }
        Ok(())
    }

    /// Shows the labels as they will be: the change is journaled, and whoever made it reads it.
    pub(super) fn show_labels(&self, machine: &mut HostMachine) {
        machine.config.metadata = self.labels();
    }

    /// Returns the labels with the changes that wait.
    fn labels(&self) -> Labels {
        let mut labels = self.record.version.config.metadata.clone();
        for queued in &self.queued {
            if let Command::SetLabels { change, .. } = &queued.command {
                change.apply(&mut labels);
            }
        }
        labels
    }
}

/// Puts an end of the machine before the commands that it makes pointless, which are dropped, and
/// before those that it does not; returns whether anything changed. An update that came before a
/// stop leaves the machine stopped, as it would have.
pub(super) fn put_end_first(queued: &mut VecDeque<Queued>) -> bool {
    let find = |is: fn(&Command) -> bool| queued.iter().position(|one| is(&one.command));
    if let Some(at) = find(|command| matches!(command, Command::Destroy { .. })) {
        return queued.drain(..at).count() > 0;
    }
    let stop = find(|command| matches!(command, Command::Stop { .. })).filter(|at| *at > 0);
    let Some(stop) = stop.and_then(|at| Some((queued.drain(..at).collect(), queued.pop_front()?)))
    else {
        return false;
    };
    let (before, stop): (Vec<Queued>, Queued) = stop;
    for mut one in before.into_iter().rev() {
        match &mut one.command {
            Command::Start | Command::Restart { .. } | Command::Suspend => continue,
            Command::Update { skip_launch, .. } => *skip_launch = true,
            Command::Stop { .. }
            | Command::Destroy { .. }
            | Command::Signal { .. }
            | Command::SetCordoned { .. }
            | Command::SetLabels { .. } => {}
        }
        queued.push_front(one);
    }
    queued.push_front(stop);
    true
}

#[cfg(test)]
mod tests;
