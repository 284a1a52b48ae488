//! Carries out a plan: machine after machine, or as many at once as the plan says.
//!
//! Never leaves a machine worse than it was: the first one that does not come up is put back to
//! its version before (or removed, when it is new), and nothing after it is touched. So is one that
//! answers worse than its version before.

use std::time::Duration;

use futures_util::future::join_all;
use perch_client::{Api, Error as CallError, ListFilter};
use perch_types::api::{HostStatus, LogRecord, Machine};
use perch_types::app_config::Strategy;
use perch_types::error::chain;
use perch_types::host::LogsQuery;
use perch_types::volume::{CreateVolumeRequest, Volume};
use perch_types::{AppName, MachineId};
use tokio::time::{Instant, sleep, timeout};

use crate::answers::is_known;
use crate::error::{Error, LOG_LINES_MAX};
use crate::judge::{Mark, Verdict, judge};
use crate::observe::{Event, Observer, Shared};
use crate::plan::{Op, Plan};

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// One machine, from the call until it is ready.
    pub ready: Duration,
    /// Between two looks at a machine.
    pub poll: Duration,
    /// A machine without checks is taken for good after it ran that long.
    pub settle: Duration,
    /// A program that listens, but in the wrong place, is given that long to mend it.
    pub wrong_listener: Duration,
    /// A look at the log.
    pub log: Duration,
    /// Calls that undo an operation, while the server does not answer.
    pub undo: Duration,
    /// Until the answers of a new version say whether it is worse than the one before.
    pub answers: Duration,
    /// A new version that answered nothing for so long is taken as it is.
    pub quiet: Duration,
}

/// How long a program that listens in the wrong place is given to mend it: some open another port
/// before the one that counts.
const WRONG_LISTENER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a server may be away that is to put a machine back: a restart of it takes seconds.
const UNDO_PATIENCE: Duration = Duration::from_secs(60);

impl Default for Limits {
    fn default() -> Self {
        Self {
            ready: Duration::from_secs(300),
            poll: Duration::from_millis(200),
            settle: Duration::from_secs(2),
            wrong_listener: WRONG_LISTENER_PATIENCE,
            log: Duration::from_secs(2),
            undo: UNDO_PATIENCE,
            answers: Duration::from_secs(10),
            quiet: Duration::from_secs(2),
        }
    }
}

/// What a deploy left behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Machines that have the new version, in the order in which they got it.
    pub machines: Vec<MachineId>,
    /// Machines that were destroyed.
    pub destroyed: Vec<MachineId>,
}

/// How often a look at a machine may fail in a row before the deploy gives up.
const WATCH_FAILURES_MAX: u32 = 25;

/// Carries out plans for one app.
#[derive(Debug, Clone)]
pub struct Deployer {
    pub(crate) api: Api,
    pub(crate) app: AppName,
    pub(crate) limits: Limits,
}

/// Where an operation stands in its plan.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) index: usize,
    pub(crate) total: usize,
}

impl Deployer {
    /// Makes a deployer of one app.
    #[must_use]
    pub fn new(api: Api, app: AppName, limits: Limits) -> Self {
        Self { api, app, limits }
    }

    /// Returns the app's machines, for [`crate::plan`].
    ///
    /// # Errors
    /// When the call does not succeed.
    pub async fn machines(&self) -> Result<Vec<Machine>, Error> {
        self.api
            .machines(&self.app, &ListFilter::default())
            .await
            .map_err(|source| Error::List { source })
    }

    /// Carries out a plan.
    ///
    /// # Errors
    /// At the first operation that does not succeed, once those that were begun with it have come
    /// to their end. Its machine is put back or removed first, and [`Error::NotUndone`] says when
    /// that did not succeed either; machines that were done before keep the new version.
    pub async fn apply<O: Observer + ?Sized>(
        &self,
        plan: &Plan,
        observer: &mut O,
    ) -> Result<Outcome, Error> {
        let observer = Shared::new(observer);
        let mut outcome = Outcome::default();
        let (mut begun, mut done) = (0, 0);
        for size in &plan.batches {
            let batch = plan.ops.iter().enumerate().skip(begun).take(*size);
            let ops = batch.map(|(index, op)| self.one(plan, op, index + 1, &observer));
            let results = join_all(ops).await;
            let mut failed = None;
            for (op, result) in plan.ops.iter().skip(begun).zip(results) {
                begun += 1;
                match (result, op) {
                    (Ok(machine), Op::Create { .. } | Op::Update { .. }) => {
                        outcome.machines.push(machine);
                    }
                    (Ok(machine), Op::Destroy { .. }) => outcome.destroyed.push(machine),
                    (Err(error), _) if failed.is_none() => {
                        failed = Some(error);
                        continue;
                    }
                    (Err(error), _) => {
                        let (index, total) = (begun, plan.ops.len());
                        let because = chain(&error);
                        observer.event(Event::Failed { index, total, because });
                        continue;
                    }
                }
                done += 1;
            }
            if let Some(error) = failed {
                let untouched = plan.ops.len().saturating_sub(begun);
                observer.event(Event::Halted { done, untouched });
                return Err(error);
            }
        }
        Ok(outcome)
    }

    /// Carries out one operation and tells of it.
    async fn one<O: Observer + ?Sized>(
        &self,
        plan: &Plan,
        op: &Op,
        index: usize,
        observer: &Shared<'_, O>,
    ) -> Result<MachineId, Error> {
        let total = plan.ops.len();
        let begun = Instant::now();
        observer.event(Event::Started { index, total, text: op.to_string() });
        let (machine, result) = self.carry_out(plan, op, Place { index, total }, observer).await?;
        observer.event(Event::Done {
            index,
            total,
            machine: machine.clone(),
            result,
            took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        Ok(machine)
    }

    async fn carry_out<O: Observer + ?Sized>(
        &self,
        plan: &Plan,
        op: &Op,
        place: Place,
        observer: &Shared<'_, O>,
    ) -> Result<(MachineId, &'static str), Error> {
        let call = |source| Error::Call { op: op.to_string(), source };
        let (machine, mark, answers) = match op {
            Op::Create { request, volumes, .. } => {
                self.ensure(volumes).await.map_err(call)?;
                let created = self.api.create_machine(&self.app, request).await.map_err(call)?;
                (created, Mark::default(), None)
            }
            Op::Update { machine, request, volumes, .. } => {
                self.ensure(volumes).await.map_err(call)?;
                let before = self.api.machine(&self.app, machine).await.map_err(call)?;
                match self.api.update_machine(&self.app, machine, request).await {
                    Ok(updated) => {
                        let mark = Mark::of_update(&before, &updated);
                        (updated, mark, before.answers.filter(is_known))
                    }
                    // It may have been carried out all the same.
                    Err(source @ CallError::Interrupted { .. }) => {
                        return Err(self.undo(op, machine, call(source), (place, observer)).await);
                    }
                    Err(source) => return Err(call(source)),
                }
            }
            Op::Destroy { machine, .. } => {
                return match self.api.delete_machine(&self.app, machine, true).await {
                    Ok(()) => Ok((machine.clone(), "destroyed")),
                    Err(error) if error.is_not_found() => Ok((machine.clone(), "destroyed")),
                    Err(error) => Err(call(error)),
                };
            }
        };
        if !op.starts() {
            return Ok((machine.id, "stopped"));
        }
        if plan.strategy == Strategy::Immediate {
            return Ok((machine.id, "sent"));
        }
        let mut result = self.watch(&machine.id, &mark, place, observer).await;
        if result.is_ok()
            && let Some(before) = answers
        {
            let compared = self.compare(&machine.id, &before, place, observer).await;
            result = compared.and(result);
        }
        match result {
            Ok(result) => Ok((machine.id, result)),
            Err(error) => Err(self.undo(op, &machine.id, error, (place, observer)).await),
        }
    }

    /// Makes the volumes that are not there. What is made stays when the operation fails: the next
    /// deploy finds it.
    async fn ensure(&self, volumes: &[CreateVolumeRequest]) -> Result<(), CallError> {
        for wanted in volumes {
            let there = self.api.volumes(&self.app).await?;
            let fits = |volume: &Volume| {
                let region = wanted.region.as_deref();
                volume.name == wanted.name
                    && volume.state.is_usable()
                    && volume.attached_machine_id.is_none()
                    && volume.host_status == HostStatus::Ok
                    && region.is_none_or(|region| region == volume.region.as_str())
            };
            if !there.iter().any(fits) {
                self.api.create_volume(&self.app, wanted).await?;
            }
        }
        Ok(())
    }

    /// Waits until a machine is ready, its program has ended, or the time is over.
    pub(crate) async fn watch<O: Observer + ?Sized>(
        &self,
        id: &MachineId,
        mark: &Mark,
        place: Place,
        observer: &Shared<'_, O>,
    ) -> Result<&'static str, Error> {
        let begun = Instant::now();
        let (mut running_since, mut wrong_since) = (None, None);
        let mut told = String::new();
        let mut failures = 0;
        loop {
            let verdict = match self.api.machine(&self.app, id).await {
                Ok(machine) => {
                    failures = 0;
                    judge(&machine, mark)
                }
                Err(error) => {
                    failures += 1;
                    look_again(id, error, failures)?
                }
            };
            let mut because = "nothing says whether it listens".to_owned();
            match verdict {
                Verdict::Ready => return Ok("ready"),
                Verdict::Runs => {
                    let since = *running_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.limits.settle {
                        return Ok("started");
                    }
                }
                Verdict::Waiting { because: reason, wrong_listener } => {
                    running_since = None;
                    because = reason;
                    if wrong_listener {
                        wrong_since.get_or_insert_with(Instant::now);
                    } else {
                        wrong_since = None;
                    }
                }
                bad => return Err(self.refused(id, bad).await),
            }
            let hopeless = wrong_since.is_some_and(|it| it.elapsed() >= self.limits.wrong_listener);
            if hopeless || begun.elapsed() >= self.limits.ready {
                let waited_s = begun.elapsed().as_secs();
                let log = self.last_lines(id).await;
                return Err(Error::NotReady { machine: id.clone(), because, waited_s, log });
            }
            if because != told && running_since.is_none() {
                told.clone_from(&because);
                let Place { index, total } = place;
                observer.event(Event::Waiting { index, total, machine: id.clone(), because });
            }
            sleep(self.limits.poll).await;
        }
    }

    async fn refused(&self, id: &MachineId, verdict: Verdict) -> Error {
        let machine = id.clone();
        match verdict {
            Verdict::Exited(exit) => {
                let log = self.last_lines(id).await;
                Error::Exited { machine, exit, log }
            }
            Verdict::Failed(because) => {
                let log = self.last_lines(id).await;
                Error::Failed { machine, because, log }
            }
            Verdict::Gone | Verdict::Ready | Verdict::Runs | Verdict::Waiting { .. } => {
                Error::Gone { machine }
            }
        }
    }

    /// Returns the newest lines of a machine's log; none when they cannot be had in time.
    pub(crate) async fn last_lines(&self, id: &MachineId) -> Vec<String> {
        let last = u64::try_from(LOG_LINES_MAX).ok();
        let query = LogsQuery { last, ..LogsQuery::default() };
        let mut found: Vec<String> = Vec::new();
        let read = async {
            let Ok(mut lines) = self.api.logs(&self.app, id, &query).await else {
                return;
            };
            while let Some(Ok(record)) = lines.next().await {
                let LogRecord { message, .. } = record;
                found.push(message);
                if found.len() >= LOG_LINES_MAX {
                    return;
                }
            }
        };
        drop(timeout(self.limits.log, read).await);
        found
    }
}

/// Returns a verdict to go on with after a failed look, or the error to give up with.
fn look_again(id: &MachineId, error: CallError, failures: u32) -> Result<Verdict, Error> {
    if error.is_not_found() {
        return Ok(Verdict::Gone);
    }
    if error.is_transient() && failures <= WATCH_FAILURES_MAX {
        let because = "the server does not answer at the moment".to_owned();
        return Ok(Verdict::Waiting { because, wrong_listener: false });
    }
    Err(Error::Watch { machine: id.clone(), source: error })
}
