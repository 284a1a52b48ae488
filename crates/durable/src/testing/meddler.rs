//! An executor that repeats, fails and crashes where it is told to.
//!
//! Never does anything of its own to the world.

use std::{
    future::{Future, pending},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;

use crate::{Executor, Extra, Moment, Retry, RunState, StepContext, StepError};

/// On which side of a step's effect it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

#[derive(Debug, Clone)]
pub(super) struct Fail {
    pub(super) step: String,
    pub(super) when: When,
}

/// Where a life ends: at the n-th point, counted from 1.
#[derive(Debug, Clone)]
pub(super) struct Crash {
    at: usize,
    happened: Arc<AtomicBool>,
}

impl Crash {
    pub(super) fn new(at: usize) -> Self {
        Self { at, happened: Arc::default() }
    }
}

/// What is done to a run in one life of its process.
#[derive(Debug, Clone, Default)]
pub(super) struct Meddling {
    pub(super) is_twice: bool,
    pub(super) is_undo_failing: bool,
    pub(super) fail: Option<Fail>,
    pub(super) crash_at: Option<Crash>,
}

impl Meddling {
    pub(super) fn has_crashed(&self) -> bool {
        self.crash_at.as_ref().is_some_and(|crash| crash.happened.load(Ordering::Acquire))
    }
}

pub(super) struct Meddler<X> {
    inner: X,
    meddling: Meddling,
    has_failed: bool,
    points: usize,
    now_ms: i64,
}

impl<X> Meddler<X> {
    pub(super) fn new(inner: X, meddling: Meddling) -> Self {
        Self { inner, meddling, has_failed: false, points: 0, now_ms: 0 }
    }

    /// Ends the life here if it is to end here.
    async fn point(&mut self) {
        self.points += 1;
        let crash = self.meddling.crash_at.as_ref();
        if let Some(crash) = crash.filter(|crash| crash.at == self.points) {
            crash.happened.store(true, Ordering::Release);
            pending::<()>().await;
        }
    }

    fn fail(&mut self, step: &str, when: When) -> Result<(), StepError> {
        let fail = self.meddling.fail.as_ref();
        if self.has_failed || !fail.is_some_and(|fail| fail.step == step && fail.when == when) {
            return Ok(());
        }
        self.has_failed = true;
        Err(StepError::permanent("injected failure"))
    }
}

impl<X: Executor> Executor for Meddler<X> {
    fn knows(&self, step: &str) -> bool {
        self.inner.knows(step)
    }

    async fn run(&mut self, context: StepContext<'_>) -> Result<Value, StepError> {
        self.point().await;
        self.fail(context.step, When::Before)?;
        let mut output = self.inner.run(context).await?;
        if self.meddling.is_twice {
            output = self.inner.run(context).await?;
        }
        self.point().await;
        self.fail(context.step, When::After)?;
        Ok(output)
    }

    async fn undo(&mut self, context: StepContext<'_>) -> Result<(), StepError> {
        self.point().await;
        self.inner.undo(context).await?;
        if self.meddling.is_twice {
            self.inner.undo(context).await?;
        }
        self.point().await;
        if self.meddling.is_undo_failing && context.attempt == 1 {
            return Err(StepError::permanent("injected failure of an undo"));
        }
        Ok(())
    }

    fn now_ms(&self) -> i64 {
        self.now_ms
    }

    fn pause(&mut self, pause_ms: u64) -> impl Future<Output = ()> + Send {
        self.now_ms = self.now_ms.saturating_add_unsigned(pause_ms);
        std::future::ready(())
    }

    fn retry(&self) -> Retry {
        self.inner.retry()
    }

    fn beside(&mut self, moment: Moment<'_>, run: &RunState) -> Option<Extra> {
        self.inner.beside(moment, run)
    }
}
