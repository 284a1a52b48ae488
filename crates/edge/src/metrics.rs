//! What is counted of requests, and how it is read: the text that Prometheus takes (contract 4.5),
//! and how long apps take to wake.
//!
//! Never takes a lock while a request passes. There are as many series as there are apps with
//! machines here, and machines, times the statuses that are told apart: nothing that a client
//! chooses makes one.

mod histogram;
mod text;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use perch_types::api::{Answers, WakeTimes};
use perch_types::consumed::MachineConsumed;
use perch_types::{AppName, InstanceId, MachineId, OrgSlug};

use crate::Shared;
use crate::live::AppKey;
use crate::owners::Turns;
use histogram::Histogram;

/// Statuses that are told apart, in their order; others count by their first digit.
const STATUSES: [u16; 30] = [
    101, 200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 409, 410,
    413, 421, 422, 429, 431, 499, 500, 501, 502, 503, 504,
];
/// What the others are called.
const OTHERS: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const KINDS: usize = STATUSES.len() + OTHERS.len();

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number of what there is at once.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    /// Counts one more; returns how many there were before it.
    pub(crate) fn enter(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts one less.
    pub(crate) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Answers by their status.
#[derive(Debug)]
struct Responses([Counter; KINDS]);

impl Default for Responses {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Responses {
    fn add(&self, status: u16) {
        let other = |_| STATUSES.len() + usize::from((status / 100).clamp(1, 5)) - 1;
        let kind = STATUSES.binary_search(&status).unwrap_or_else(other);
        if let Some(counter) = self.0.get(kind) {
            counter.add(1);
        }
    }

    /// Returns what there was, with the status in words.
    fn each(&self) -> impl Iterator<Item = (String, u64)> {
        let names = STATUSES.iter().map(u16::to_string);
        let names = names.chain(OTHERS.iter().map(|other| (*other).to_owned()));
        names.zip(self.0.iter().map(Counter::get)).filter(|(_, count)| *count > 0)
    }
}

/// What is counted of an app, whichever machine answers.
#[derive(Debug, Default)]
pub(crate) struct AppMetrics {
    responses: Responses,
    times: Histogram,
    wakes: Histogram,
    /// Bytes of bodies and tunnels from clients, and to them.
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    /// Requests that wait for a machine.
    pub(crate) held: Gauge,
    /// Connections of clients to it.
    pub(crate) connections: Gauge,
    /// What its owner is told.
    pub(crate) told: Turns,
}

impl AppMetrics {
    /// Counts a request that was answered, by the app or by the edge in its place.
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        self.responses.add(status);
        self.times.add(took);
    }

    /// Counts a request that nobody waited for any more.
    pub(crate) fn left(&self, status: u16) {
        self.responses.add(status);
    }

    /// Counts a request that waited until a machine was started for it.
    pub(crate) fn woken(&self, took: Duration) {
        self.wakes.add(took);
    }

    fn wake_times(&self) -> Option<WakeTimes> {
        let ms = |share| self.wakes.quantile(share).map(|took| took.as_millis());
        let ms = |share| ms(share).and_then(|ms| u64::try_from(ms).ok());
        Some(WakeTimes { count: self.wakes.count(), p50_ms: ms(50)?, p99_ms: ms(99)? })
    }
}

/// What is counted of a machine.
#[derive(Debug, Default)]
pub(crate) struct InstanceMetrics {
    responses: Responses,
    times: Histogram,
    connects: Histogram,
    disconnects: Counter,
    /// What is counted of the version that it runs.
    version: ArcSwapOption<VersionMetrics>,
}

/// What is counted of one version of a machine.
#[derive(Debug)]
struct VersionMetrics {
    instance: InstanceId,
    answers: Counter,
    errors: Counter,
}

impl InstanceMetrics {
    /// Counts an answer of the machine.
    pub(crate) fn answered(&self, instance: &InstanceId, status: u16, took: Duration) {
        self.responses.add(status);
        self.times.add(took);
        self.count(instance, status >= 500);
    }

    /// Counts a request that the machine has and did not answer.
    pub(crate) fn broke(&self, instance: &InstanceId) {
        self.count(instance, true);
    }

    /// Begins anew with what is counted of a version, unless it is the one that is counted.
    pub(crate) fn runs(&self, instance: &InstanceId) {
        if self.version.load().as_ref().is_some_and(|version| version.instance == *instance) {
            return;
        }
        let (instance, answers, errors) =
            (instance.clone(), Counter::default(), Counter::default());
        self.version.store(Some(Arc::new(VersionMetrics { instance, answers, errors })));
    }

    /// Counts what a version did; what an older one ends with is no concern of the newer.
    fn count(&self, instance: &InstanceId, is_error: bool) {
        let version = self.version.load();
        let Some(version) = version.as_ref().filter(|version| version.instance == *instance) else {
            return;
        };
        version.answers.add(1);
        version.errors.add(u64::from(is_error));
    }

    /// Returns what was counted of the version that it runs.
    pub(crate) fn answers(&self) -> Option<Answers> {
        let version = self.version.load();
        let version = version.as_ref()?;
        Some(Answers {
            instance_id: version.instance.clone(),
            count: version.answers.get(),
            errors: version.errors.get(),
        })
    }

    /// Counts a connection to the machine.
    pub(crate) fn connected(&self, took: Duration) {
        self.connects.add(took);
    }

    /// Counts the end of one.
    pub(crate) fn disconnected(&self) {
        self.disconnects.add(1);
    }
}

/// What is counted before it is known whose a request is, and for all of them together.
#[derive(Debug, Default)]
pub(crate) struct EdgeMetrics {
    /// Requests that are no app's, or of one that has no machine here.
    pub(crate) nobodys: Arc<AppMetrics>,
    pub(crate) connects: Counter,
    pub(crate) disconnects: Counter,
    /// Bytes of bodies that were moved without a copy.
    pub(crate) spliced: Counter,
    handshakes: Histogram,
    handshake_errors: Counter,
}

impl EdgeMetrics {
    /// Counts a TLS handshake.
    pub(crate) fn handshake(&self, took: Duration, succeeded: bool) {
        if succeeded {
            self.handshakes.add(took);
        } else {
            self.handshake_errors.add(1);
        }
    }
}

/// Reads what an edge counts. Clones read the same.
#[derive(Clone)]
pub struct Readings(pub(crate) Arc<Shared>);

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readings").finish_non_exhaustive()
    }
}

impl Readings {
    /// Returns everything in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        self.text_with(&[])
    }

    /// Returns the same, with what the host says that its machines have used.
    #[must_use]
    pub fn text_with(&self, consumed: &[MachineConsumed]) -> String {
        text::write(&self.0, consumed)
    }

    /// Returns how long requests of an app waited for a machine to start; nothing while none did.
    #[must_use]
    pub fn wake_times(&self, org: &OrgSlug, app: &AppName) -> Option<WakeTimes> {
        let key = AppKey { org: org.clone(), name: app.clone() };
        self.0.live.metrics_of(&key)?.wake_times()
    }

    /// Returns how the version that a machine of this server runs has answered.
    #[must_use]
    pub fn answers(&self, org: &OrgSlug, app: &AppName, machine: &MachineId) -> Option<Answers> {
        let key = AppKey { org: org.clone(), name: app.clone() };
        let machines = self.0.live.machines_of(&key)?;
        let target = machines.iter().find(|target| target.record.id == *machine)?;
        target.load.instance.answers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_counts_as_itself_or_by_its_first_digit() {
        assert!(STATUSES.is_sorted());
        let responses = Responses::default();
        for status in [200, 404, 299, 418, 599, 999, 7, 200] {
            responses.add(status);
        }
        let found: Vec<(String, u64)> = responses.each().collect();
        let found: Vec<(&str, u64)> =
            found.iter().map(|(status, count)| (status.as_str(), *count)).collect();
        assert_eq!(found, [("200", 2), ("404", 1), ("1xx", 1), ("2xx", 1), ("4xx", 1), ("5xx", 2)]);
    }

    #[test]
    fn answers_count_for_the_version_that_gave_them() {
        let (metrics, took) = (InstanceMetrics::default(), Duration::from_millis(1));
        let (old, new) = (InstanceId::from_parts(1, 1), InstanceId::from_parts(2, 2));
        metrics.answered(&old, 500, took);
        assert_eq!(metrics.answers(), None, "nothing runs");
        metrics.runs(&old);
        metrics.answered(&old, 200, took);
        metrics.answered(&old, 503, took);
        metrics.runs(&old);
        metrics.broke(&old);
        let want = Answers { instance_id: old.clone(), count: 3, errors: 2 };
        assert_eq!(metrics.answers(), Some(want));
        metrics.runs(&new);
        metrics.answered(&old, 500, took);
        metrics.answered(&new, 404, took);
        let want = Answers { instance_id: new, count: 1, errors: 0 };
        assert_eq!(metrics.answers(), Some(want));
        assert_eq!(metrics.responses.each().map(|(_, count)| count).sum::<u64>(), 5);
    }

    #[test]
    fn an_app_that_never_slept_has_no_wake_times() {
        let metrics = AppMetrics::default();
        assert_eq!(metrics.wake_times(), None);
        for _ in 0..99 {
            metrics.woken(Duration::from_millis(45));
        }
        metrics.woken(Duration::from_secs(2));
        let times = metrics.wake_times().unwrap();
        assert_eq!(times.count, 100);
        assert!((25..=50).contains(&times.p50_ms), "{times:?}");
        assert!((25..=50).contains(&times.p99_ms), "{times:?}");
    }
}
