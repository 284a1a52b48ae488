//! Takes an operation back that did not succeed.
//!
//! Never silent: that a machine is back is told, and that it is not is the error.

use perch_client::Error as CallError;
use perch_types::api::CreateMachineRequest;
use perch_types::error::chain;
use perch_types::{MachineId, MachineState};
use tokio::time::{Instant, sleep};

use crate::apply::{Deployer, Place};
use crate::error::Error;
use crate::judge::Mark;
use crate::observe::{Event, Observer, Shared};
use crate::plan::Op;

impl Deployer {
    /// Puts an updated machine back, removes a new one; returns the error to report: what led
    /// here, and that this did not succeed either.
    pub(crate) async fn undo<O: Observer + ?Sized>(
        &self,
        op: &Op,
        id: &MachineId,
        failed: Error,
        (place, observer): (Place, &Shared<'_, O>),
    ) -> Error {
        let machine = id.clone();
        let (text, result) = match op {
            Op::Destroy { .. } => return failed,
            // Whoever destroyed it did not want it back.
            Op::Update { .. } if matches!(failed, Error::Gone { .. }) => return failed,
            Op::Create { .. } => {
                let text = "remove the new machine";
                observer.event(Event::Undoing { machine: machine.clone(), text });
                ("is removed", self.remove(id).await)
            }
            Op::Update { before, .. } => {
                let text = "put back the version before";
                observer.event(Event::Undoing { machine: machine.clone(), text });
                let result = self.put_back(id, before, (place, observer)).await;
                ("runs the version before again", result)
            }
        };
        let Err(because) = result else {
            observer.event(Event::Undone { machine, text });
            return failed;
        };
        let next = match op {
            Op::Update { before, .. } => format!(
                "`perch machine status {id}` shows how it stands; `perch deploy --image {}` rolls \
                 the version before out again",
                before.config.image
            ),
            Op::Create { .. } | Op::Destroy { .. } => {
                format!("`perch machine destroy {id} --force` removes it")
            }
        };
        let because = chain(&because);
        Error::NotUndone { machine, failed: Box::new(failed), because, next }
    }

    async fn remove(&self, id: &MachineId) -> Result<(), Error> {
        let op = "remove the new machine";
        let call = || self.api.delete_machine(&self.app, id, true);
        match self.patiently(call).await {
            Ok(()) => self.leaves(id).await,
            Err(error) if error.is_not_found() => {}
            Err(source) => return Err(Error::Call { op: op.to_owned(), source }),
        }
        Ok(())
    }

    /// Waits until a machine whose end was promised is no longer among the app's, so that whoever
    /// looks next does not find it.
    async fn leaves(&self, id: &MachineId) {
        let begun = Instant::now();
        while begun.elapsed() < self.limits.undo {
            match self.api.machine(&self.app, id).await {
                Ok(machine) => match machine.state {
                    MachineState::Destroying | MachineState::Destroyed => return,
                    _ => {}
                },
                Err(error) if error.is_transient() => {}
                Err(_) => return,
            }
            sleep(self.limits.poll).await;
        }
    }

    /// Gives a machine its version before and sees that it comes up.
    async fn put_back<O: Observer + ?Sized>(
        &self,
        id: &MachineId,
        before: &CreateMachineRequest,
        (place, observer): (Place, &Shared<'_, O>),
    ) -> Result<(), Error> {
        let error = |source| Error::Call { op: format!("update machine {id}"), source };
        let call = || self.api.update_machine(&self.app, id, before);
        // What the failed version did is not the old one's fault.
        let failed = self.patiently(|| self.api.machine(&self.app, id)).await.map_err(error)?;
        let updated = self.patiently(call).await.map_err(error)?;
        if before.skip_launch {
            return Ok(());
        }
        self.watch(id, &Mark::of_update(&failed, &updated), place, observer).await.map(drop)
    }

    /// Calls until there is an answer or the patience is over: a server that is away for a moment
    /// must not be why a machine stays on a version that does not work.
    async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let begun = Instant::now();
        loop {
            match call().await {
                Err(error) if error.is_transient() && begun.elapsed() < self.limits.undo => {
                    sleep(self.limits.poll).await;
                }
                result => return result,
            }
        }
    }
}
