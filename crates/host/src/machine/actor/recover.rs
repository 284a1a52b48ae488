//! How a machine's task begins: with a new run, or with what an earlier agent left.
//!
//! Never restarts what still runs.

use std::sync::Arc;

use perch_durable::{OpenRun, RunId};
use perch_runtime::{Adopted, Instance};
use perch_types::error::chain;
use perch_types::host::Command;

use super::Actor;
use crate::effects::Fault;
use crate::machine::plan::Intent;
use crate::machine::record::{Desired, Exiting};
use crate::machine::restart::{Decision, after_reboot};
use crate::machine::run::{Input, lost_exit};
use crate::machine::state::{Fact, State};
use crate::schema::{self, RECORDS};

/// How long a run that cannot go on waits before it tries again, in milliseconds.
const PARKED_PAUSE_MS: u64 = 30_000;
/// After which a boot whose monitor could not be asked is looked for again, in milliseconds.
const ADOPT_AGAIN_MS: u64 = 1_000;

/// After which a destroyed machine that could not be forgotten is tried again, in milliseconds.
const FORGET_AGAIN_MS: u64 = 30_000;

/// Where a task begins.
#[derive(Debug)]
pub enum Origin {
    /// With the run that makes the machine.
    New(Box<OpenRun>, Input),
    /// After a restart of the agent, perhaps with a run that had not ended.
    Recovered(Option<Box<OpenRun>>),
}

impl Actor {
    pub(super) async fn recover(&mut self, origin: Origin) {
        match origin {
            Origin::New(open, input) => self.start_run(*open, input),
            Origin::Recovered(Some(open)) => self.resume(*open),
            Origin::Recovered(None) => self.adopt().await,
        }
    }

    fn resume(&mut self, mut open: OpenRun) {
        let state = open.state();
        let id = state.id;
        let input = match serde_json::from_value(state.input.clone()) {
            Ok(input) => input,
            Err(error) => {
                tracing::error!(machine = %self.record.id, %error, "run cannot be read");
                self.park(id);
                return;
            }
        };
        if state.parked.is_some() {
            let at_ms = i64::try_from(self.shared.effects.clock.boot_ms()).unwrap_or(i64::MAX);
            // A run that was parked is parked for what may have changed since.
            if let Err(error) = open.unpark(at_ms) {
                tracing::warn!(machine = %self.record.id, %error, "run stays parked");
            }
        }
        self.start_run(open, input);
    }

    /// Has a run that cannot go on wait before it tries again.
    pub(super) fn park(&mut self, id: RunId) {
        self.parked = Some(id);
        self.unpark_boot_ms = self.boot_ms_after(PARKED_PAUSE_MS);
    }

    /// Has a parked run try again at once when the machine is to end, which waits for it; a boot
    /// that is to be removed by force is killed meanwhile.
    pub(super) async fn hasten(&mut self, command: &Command) {
        let is_forced = matches!(command, Command::Destroy { force: true });
        if self.parked.is_none() || !(is_forced || matches!(command, Command::Stop { .. })) {
            return;
        }
        self.unpark_boot_ms = 0;
        if let Some(instance) = self.instance.as_ref().filter(|_| is_forced) {
            // The run's own steps say whether it worked.
            drop(instance.kill().await);
        }
    }

    /// Lets a parked run try again.
    pub(super) async fn unpark(&mut self, id: RunId) {
        if self.shared.db.is_stopped() {
            self.park(id);
            return;
        }
        match self.shared.journal.open(id) {
            Ok(open) => self.resume(open),
            Err(error) => {
                tracing::error!(machine = %self.record.id, %error, "parked run cannot be opened");
                self.park(id);
            }
        }
        tokio::task::yield_now().await;
    }

    /// Opens a run that was dropped and has it undone.
    pub(super) async fn abandon(&mut self, id: RunId, why: &str) {
        let at_ms = i64::try_from(self.shared.effects.clock.boot_ms()).unwrap_or(i64::MAX);
        // What the dropped run had on its way to the disk comes first: it may be its end.
        let flushed: Result<(), perch_durable::Error> =
            self.shared.db.write_reserved(|_| Ok(())).await;
        if let Err(error) = flushed {
            tracing::warn!(machine = %self.record.id, %error, "journal is not written");
        }
        match self.shared.journal.open(id) {
            Err(perch_durable::Error::NoSuchRun { .. }) => self.take_ended().await,
            Ok(mut open) => {
                if let Err(error) = open.abandon(why, at_ms) {
                    tracing::warn!(machine = %self.record.id, %error, "run goes on");
                }
                self.resume(open);
            }
            Err(error) => {
                tracing::error!(machine = %self.record.id, %error, "run cannot be opened");
                self.park(id);
            }
        }
        tokio::task::yield_now().await;
    }

    /// Takes the record as a run left it that ended in the moment in which it was dropped.
    async fn take_ended(&mut self) {
        let id = self.record.id.clone();
        match self.shared.db.read(|snapshot| RECORDS.get(snapshot, &id)) {
            Ok(Some(record)) => {
                self.record = record;
                self.adopt().await;
                self.publish();
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(machine = %self.record.id, %error, "record cannot be read");
            }
        }
    }

    /// Finds the boot that should run.
    pub(super) async fn adopt(&mut self) {
        let Some(boot) = self.record.boot.clone() else {
            if self.should_run() && self.record.restart_boot_ms.is_none() {
                self.begin_automatic_start().await;
            }
            return;
        };
        self.adopt_boot_ms = None;
        let dir = self.shared.machine_dir(&self.record.id);
        let adopted = self.shared.effects.runtime.adopt(&dir).await;
        match adopted {
            Ok(Adopted::Running(instance)) if instance.info().boot == boot.number => {
                let instance: Arc<dyn Instance> = Arc::from(instance);
                self.take_instance(Some(Arc::clone(&instance)));
                self.publish();
                self.agree_on_frozen(instance.as_ref()).await;
            }
            // The server itself was restarted: that is no fault of the program.
            Ok(_) if self.shared.rebooted && self.should_run() => {
                if let Err(error) = self.begin_after_reboot().await {
                    tracing::error!(machine = %self.record.id, %error, "start was put off");
                }
            }
            Ok(Adopted::Ended(exit)) if exit.boot == boot.number => {
                self.fact(Fact::Exited(Box::new(exit))).await;
            }
            Ok(Adopted::Running(_) | Adopted::Ended(_) | Adopted::Gone) => {
                self.fact(Fact::Lost { boot: boot.number }).await;
            }
            // It may run: nothing is done to it, and it is looked for again.
            Err(error) => {
                tracing::error!(machine = %self.record.id,
                    error = %chain(&error), "monitor cannot be asked for now");
                self.adopt_boot_ms = Some(self.boot_ms_after(ADOPT_AGAIN_MS));
            }
        }
    }

    /// Puts right what somebody froze or thawed beside this agent, or a run that was given up: the
    /// record counts.
    async fn agree_on_frozen(&mut self, instance: &dyn Instance) {
        let result = match instance.is_frozen().await {
            Ok(frozen) if frozen == self.record.is_frozen() => Ok(()),
            Ok(true) => instance.thaw().await.map_err(|error| Fault::from(error).error),
            Ok(false) => self.begin_suspend(None).await,
            Err(error) => Err(Fault::from(error).error),
        };
        if let Err(error) = result {
            tracing::error!(machine = %self.record.id, %error, "machine is not frozen as it should be");
            self.adopt_boot_ms = Some(self.boot_ms_after(ADOPT_AGAIN_MS));
        }
    }

    fn should_run(&self) -> bool {
        self.record.desired == Desired::Running
            && matches!(self.record.state, State::Started | State::Starting | State::Restarting)
    }

    async fn begin_after_reboot(&mut self) -> Result<(), perch_types::ApiError> {
        let at = self.shared.instant();
        let mut record = self.record.clone();
        let exit = lost_exit(&record);
        let decision = after_reboot(&record.version.config);
        let restarting = matches!(decision, Decision::Restart { .. });
        record.state = match decision {
            Decision::Restart { .. } => State::Starting,
            Decision::Rest => State::Stopped,
            Decision::Destroy => State::Destroying,
        };
        record.desired = match decision {
            Decision::Restart { .. } => Desired::Running,
            Decision::Rest => Desired::Stopped,
            Decision::Destroy => Desired::Gone,
        };
        record.note_exit(&exit, Exiting { asked: false, restarting }, at);
        record.restart_boot_ms = restarting.then(|| self.shared.effects.clock.boot_ms());
        let intent = match decision {
            Decision::Restart { .. } | Decision::Rest => Intent::Settle,
            Decision::Destroy => Intent::Destroy,
        };
        if intent == Intent::Destroy {
            record.boot = None;
        }
        self.commit(record, Some(Input { asked: false, restarting, ..Input::new(intent) })).await
    }

    /// Removes the last trace of a destroyed machine; returns whether it is gone.
    pub(super) async fn forget(&mut self) -> bool {
        let dir = self.shared.machine_dir(&self.record.id);
        if let Err(fault) = self.shared.effects.rootfs.remove(&dir.state).await {
            tracing::warn!(machine = %self.record.id, error = %fault, "folder stays for now");
        }
        let id = self.record.id.clone();
        let removed = self
            .shared
            .db
            .write_reserved(move |tx| {
                schema::put_queue(tx, &id, &Vec::new())?;
                perch_durable::Journal::forget(tx, id.as_str())?;
                RECORDS.delete(tx, &id)
            })
            .await;
        if let Err(error) = removed {
            let error = self.shared.db_error(&error);
            tracing::warn!(machine = %self.record.id, %error, "record stays for now");
            self.forget_boot_ms = Some(self.boot_ms_after(FORGET_AGAIN_MS));
            return false;
        }
        self.shared.forget(&self.record.id);
        true
    }
}
