//! Three harnesses that any run can be put through with one line: every step twice, a failure at
//! every step, a crash after every write.
//!
//! Never trusts a run's own word: a world is judged by its snapshot, and a run that changes
//! nothing the snapshot sees is refused, as no harness could ever fail it.
//!
//! ```ignore
//! testing::everything(&mut world).await.unwrap();
//! ```

mod meddler;
mod scratch;
#[cfg(test)]
mod tests;

use std::{
    fmt::Debug,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use self::{
    meddler::{Crash, Fail, Meddler, Meddling, When},
    scratch::Scratch,
};
use crate::{Db, Ended, Error, Executor, Journal, NewRun, drive};

/// How many crashes one harness goes through before it is taken for endless.
const CRASHES_MAX: usize = 10_000;

/// What a run works on: files, processes, a table. It outlives every executor.
pub trait World {
    /// Carries out the run's steps.
    type Executor: Executor;
    /// What tells one state of the world from another.
    type Snapshot: PartialEq + Debug;

    /// Takes the world back to before the run, whatever state it is in.
    fn fresh(&mut self) -> impl Future<Output = ()>;

    /// Returns the run under test; the same every time.
    fn plan(&self) -> NewRun;

    /// Returns an executor that knows nothing but the world and the file: a new process.
    fn executor(&mut self, db: &Db) -> Self::Executor;

    /// Looks at everything the run may touch.
    fn snapshot(&mut self, db: &Db) -> impl Future<Output = Self::Snapshot>;
}

/// A run that did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The journal itself did not work.
    #[error("{harness}: use the journal")]
    Journal {
        /// Which harness.
        harness: String,
        /// Why.
        source: Error,
    },
    /// The run ended in another way than it had to.
    #[error("{harness}: the run ended {ended}, expected {expected}")]
    Ended {
        /// Which harness, and where.
        harness: String,
        /// How it ended.
        ended: String,
        /// How it had to end.
        expected: &'static str,
    },
    /// The world is not as it has to be.
    #[error("{harness}: the world is {found}, expected {expected}")]
    World {
        /// Which harness, and where.
        harness: String,
        /// What was found.
        found: String,
        /// What had to be.
        expected: String,
    },
    /// The run leaves the world as it was, so that nothing can be told by it.
    #[error("the snapshot is the same before and after the run")]
    Blind,
    /// There is no end to the crashes.
    #[error("{harness}: still not over after {CRASHES_MAX} crashes")]
    Endless {
        /// Which harness.
        harness: String,
    },
}

/// Puts a run through all harnesses; returns how many runs that took.
///
/// # Errors
/// The first thing that is wrong with it.
pub async fn everything<W: World>(world: &mut W) -> Result<usize, Broken> {
    let mut runs = every_step_twice(world).await?;
    runs += a_failure_at_every_step(world).await?;
    runs += a_crash_everywhere(world).await?;
    Ok(runs)
}

/// Runs every step twice in a row: the world must be as after the plain run, which must not fail.
///
/// # Errors
/// What is wrong with the run.
pub async fn every_step_twice<W: World>(world: &mut W) -> Result<usize, Broken> {
    let known = Known::of(world).await?;
    let twice = Meddling { is_twice: true, ..Meddling::default() };
    known.check(world, "every step twice", &[twice]).await?;
    Ok(2)
}

/// Lets each step fail once, before and after its effect, with every undo run twice, and again
/// with every undo failing once. Before the point of no return the world must be as before the
/// run; from there on the run must reach its goal.
///
/// # Errors
/// What is wrong with the run.
pub async fn a_failure_at_every_step<W: World>(world: &mut W) -> Result<usize, Broken> {
    let known = Known::of(world).await?;
    let mut runs = 1;
    for step in &known.plan.steps {
        for when in [When::Before, When::After] {
            for is_undo_failing in [false, true] {
                let meddling = Meddling {
                    is_twice: true,
                    is_undo_failing,
                    fail: Some(Fail { step: step.name.clone(), when }),
                    crash_at: None,
                };
                let harness = format!("failure {when:?} {}", step.name).to_lowercase();
                known.check(world, &harness, &[meddling]).await?;
                runs += 1;
            }
        }
    }
    Ok(runs)
}

/// Crashes before and after every effect, and so after every write of the journal: the process's
/// state is dropped, the file opened again, the run taken up. Then the same with the last step
/// that can be undone failing, so that every undo meets a crash as well; then every pair of two
/// crashes, the second while the first is being recovered from.
///
/// # Errors
/// What is wrong with the run.
pub async fn a_crash_everywhere<W: World>(world: &mut W) -> Result<usize, Broken> {
    let known = Known::of(world).await?;
    let mut runs = 1 + known.crash_everywhere(world, "crash", None).await?;
    if let Some(step) = known.last_undoable() {
        let fail = Fail { step, when: When::After };
        runs += known.crash_everywhere(world, "crash while undoing", Some(fail)).await?;
    }
    Ok(runs)
}

/// The plan, and the world without and with it.
struct Known<S> {
    plan: NewRun,
    clean: S,
    goal: S,
}

impl<S: PartialEq + Debug> Known<S> {
    async fn of<W: World<Snapshot = S>>(world: &mut W) -> Result<Self, Broken> {
        let plan = world.plan();
        let scratch = Scratch::new().map_err(|source| journal("plain run", source))?;
        world.fresh().await;
        let clean = {
            let db = scratch.open().map_err(|source| journal("plain run", source))?;
            world.snapshot(&db).await
        };
        let (ended, goal) = go(world, &[Meddling::default()], "plain run").await?;
        if ended != Some(Ended::Done) {
            return Err(wrong_end("plain run", ended, "done"));
        }
        if clean == goal {
            return Err(Broken::Blind);
        }
        Ok(Self { plan, clean, goal })
    }

    fn last_undoable(&self) -> Option<String> {
        let end = self.plan.point_of_no_return.unwrap_or(self.plan.steps.len());
        let index = end.checked_sub(1)?;
        self.plan.steps.get(index).map(|step| step.name.clone())
    }

    fn is_undone_by(&self, fail: &Fail) -> bool {
        let end = self.plan.point_of_no_return.unwrap_or(self.plan.steps.len());
        self.plan.steps.iter().take(end).any(|step| step.name == fail.step)
    }

    /// Runs the plan through `lives`, each but the last ended by a crash; returns whether all of
    /// them were needed.
    async fn check<W: World<Snapshot = S>>(
        &self,
        world: &mut W,
        harness: &str,
        lives: &[Meddling],
    ) -> Result<bool, Broken> {
        let (ended, found) = go(world, lives, harness).await?;
        let fail = lives.first().and_then(|life| life.fail.as_ref());
        let is_undone = fail.is_some_and(|fail| self.is_undone_by(fail));
        let expected = if is_undone { &self.clean } else { &self.goal };
        match (&ended, is_undone) {
            // The end was on the disk when the crash came.
            (Some(Ended::Done), false) | (Some(Ended::Undone(_)), true) | (None, _) => {}
            (_, true) => return Err(wrong_end(harness, ended, "undone")),
            (_, false) => return Err(wrong_end(harness, ended, "done")),
        }
        if found != *expected {
            return Err(Broken::World {
                harness: harness.to_owned(),
                found: format!("{found:?}"),
                expected: format!("{expected:?}"),
            });
        }
        Ok(ended.is_some())
    }

    async fn crash_everywhere<W: World<Snapshot = S>>(
        &self,
        world: &mut W,
        harness: &str,
        fail: Option<Fail>,
    ) -> Result<usize, Broken> {
        let life = |crash_at| Meddling { fail: fail.clone(), crash_at, ..Meddling::default() };
        let mut runs = 0;
        for first in 1..=CRASHES_MAX {
            let lives = [life(Some(Crash::new(first))), life(None)];
            self.check(world, &format!("{harness} at {first}"), &lives).await?;
            runs += 1;
            if !lives[0].has_crashed() {
                return Ok(runs);
            }
            for second in 1..=CRASHES_MAX {
                let crashes = (life(Some(Crash::new(first))), life(Some(Crash::new(second))));
                let lives = [crashes.0, crashes.1, life(None)];
                let harness = format!("{harness} at {first}, again at {second}");
                self.check(world, &harness, &lives).await?;
                runs += 1;
                if !lives[1].has_crashed() {
                    break;
                }
            }
        }
        Err(Broken::Endless { harness: harness.to_owned() })
    }
}

/// Runs the plan in a fresh world and a fresh file, one life after the other; returns how it ended
/// (`None`: nothing was left unfinished) and the world after it.
async fn go<W: World>(
    world: &mut W,
    lives: &[Meddling],
    harness: &str,
) -> Result<(Option<Ended>, W::Snapshot), Broken> {
    let scratch = Scratch::new().map_err(|source| journal(harness, source))?;
    world.fresh().await;
    let mut begun = false;
    let mut ended = None;
    for life in lives {
        let db = scratch.open().map_err(|source| journal(harness, source))?;
        let book = Journal::new(db.clone());
        let run = if begun {
            let mut recovered = book.unfinished().map_err(|source| journal(harness, source))?;
            match recovered.unreadable.pop() {
                Some(run) => return Err(journal(harness, run.error)),
                None => recovered.runs.pop(),
            }
        } else {
            let run = book.begin_alone(world.plan(), 0).await;
            Some(run.map_err(|source| journal(harness, source))?)
        };
        begun = true;
        let Some(run) = run else { break };
        let mut executor = Meddler::new(world.executor(&db), life.clone());
        let driven = until_crash(drive(&book, run, &mut executor), life).await;
        if let Some(driven) = driven {
            let (end, _) = driven.map_err(|source| journal(harness, source))?;
            ended = Some(end);
            break;
        }
    }
    let db = scratch.open().map_err(|source| journal(harness, source))?;
    let snapshot = world.snapshot(&db).await;
    Ok((ended, snapshot))
}

/// Drops the future where the crash comes.
async fn until_crash<F: Future>(future: F, life: &Meddling) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if life.has_crashed() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

fn journal(harness: &str, source: Error) -> Broken {
    Broken::Journal { harness: harness.to_owned(), source }
}

fn wrong_end(harness: &str, ended: Option<Ended>, expected: &'static str) -> Broken {
    let ended = ended.map_or_else(|| "before the crash".to_owned(), |ended| ended.to_string());
    Broken::Ended { harness: harness.to_owned(), ended, expected }
}

/// Runs a future to its end on this thread, for tests without an async runtime.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
