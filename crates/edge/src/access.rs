//! One event a request, for whoever reads logs.
//!
//! Never more than so many a second: what is left out is counted, and the next event says how many
//! it were. Never the path or anything else that a client chose, but the method.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use perch_types::{AppName, MachineId};

use crate::account::End;
use crate::cause::Cause;

/// Events a second when nothing else was said.
pub(crate) const PER_S_DEFAULT: u32 = 100;

/// What is said of a request when it is over.
#[derive(Debug)]
pub(crate) struct Access<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) method: &'a Method,
    /// Which HTTP.
    pub(crate) protocol: &'static str,
    pub(crate) over_tls: bool,
    pub(crate) app: Option<&'a AppName>,
    /// The machine that it went to last.
    pub(crate) machine: Option<&'a MachineId>,
    pub(crate) status: u16,
    pub(crate) cause: Option<Cause>,
    /// Bytes of the bodies, or of the tunnel that it became.
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// How long it waited for a machine that was started for it.
    pub(crate) wake: Option<Duration>,
    /// How long its answer took to begin.
    pub(crate) head: Option<Duration>,
    /// How long all of it took.
    pub(crate) took: Duration,
    pub(crate) end: End,
}

impl Access<'_> {
    /// Writes the one event of a request, if there is room for it at this time.
    pub(crate) fn write(&self, sampler: &Sampler, now_ms: u64) {
        let Some(left_out) = sampler.take(now_ms) else { return };
        tracing::info!(
            target: "access",
            request = self.request_id,
            method = %self.method,
            protocol = self.protocol,
            tls = self.over_tls,
            app = self.app.map(AppName::as_str),
            machine = self.machine.map(MachineId::as_str),
            status = self.status,
            code = self.cause.map(Cause::code),
            fault = self.cause.map(|cause| tracing::field::debug(cause.fault())),
            bytes_in = self.bytes_in,
            bytes_out = self.bytes_out,
            wake_ms = self.wake.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            head_us = self.head.map(micros),
            took_us = micros(self.took),
            end = self.end.name(),
            left_out = (left_out > 0).then_some(left_out),
            "request ended"
        );
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// Chooses which events are written.
#[derive(Debug)]
pub(crate) struct Sampler {
    per_s: u32,
    second: AtomicU64,
    written: AtomicU32,
    left_out: AtomicU64,
}

impl Sampler {
    pub(crate) fn new(per_s: u32) -> Self {
        Self {
            per_s,
            second: AtomicU64::new(0),
            written: AtomicU32::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Returns how many were left out before this event, which is to be written; nothing when it
    /// is left out too.
    pub(crate) fn take(&self, now_ms: u64) -> Option<u64> {
        let (second, before) = (now_ms / 1_000, self.second.load(Ordering::Relaxed));
        let turn = |before| {
            self.second.compare_exchange(before, second, Ordering::Relaxed, Ordering::Relaxed)
        };
        // Only one of those who see the new second begins it.
        if second > before && turn(before).is_ok() {
            self.written.store(0, Ordering::Relaxed);
        }
        let has_room = self.written.load(Ordering::Relaxed) < self.per_s
            && self.written.fetch_add(1, Ordering::Relaxed) < self.per_s;
        if has_room {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.leave_out(1);
        None
    }

    /// Counts events that were not written although there was room.
    pub(crate) fn leave_out(&self, count: u64) {
        self.left_out.fetch_add(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    #[test]
    fn so_many_a_second_are_written_and_the_next_one_says_how_many_were_not() {
        let sampler = Sampler::new(2);
        let taken: Vec<Option<u64>> =
            [5_000, 5_000, 5_400, 5_999, 6_000, 6_001, 6_002, 9_000, 8_000, 9_500]
                .map(|now_ms| sampler.take(now_ms))
                .into();
        let want = [
            Some(0),
            Some(0),
            None,
            None,
            Some(2),
            Some(0),
            None,
            Some(1),
            // A loop that is a moment behind takes a place of the second that has begun.
            Some(0),
            None,
        ];
        assert_eq!(taken, want);
        let none = Sampler::new(0);
        assert_eq!((none.take(1_000), none.take(2_000)), (None, None));
    }

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<String>>);

    impl Visit for &Kept {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            write!(self.0.lock().unwrap(), "{field}={value:?} ").unwrap();
        }
    }

    impl Subscriber for Kept {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            if event.metadata().target() == "access" {
                event.record(&mut &*self);
                self.0.lock().unwrap().push('\n');
            }
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn an_event_says_what_became_of_a_request_and_nothing_that_is_not_known() {
        let (kept, sampler) = (Kept::default(), Sampler::new(2));
        let app: AppName = "web".parse().unwrap();
        let machine = MachineId::from_bits(1);
        let fine = Access {
            request_id: "01A-ams",
            method: &Method::GET,
            protocol: "h2",
            over_tls: true,
            app: Some(&app),
            machine: Some(&machine),
            status: 200,
            cause: None,
            bytes_in: 5,
            bytes_out: 7,
            wake: Some(Duration::from_millis(45)),
            head: Some(Duration::from_millis(2)),
            took: Duration::from_millis(3),
            end: End::Whole,
        };
        let bad = Access {
            app: None,
            machine: None,
            status: 404,
            cause: Some(Cause::UnknownHost),
            wake: None,
            head: None,
            end: End::Left,
            ..fine
        };
        tracing::subscriber::with_default(kept.clone(), || {
            for (access, now_ms) in [(&fine, 1_000), (&bad, 1_000), (&bad, 1_000), (&fine, 2_000)] {
                access.write(&sampler, now_ms);
            }
        });
        let text = kept.0.lock().unwrap().clone();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let of_machine = format!("machine=\"{machine}\"");
        for part in [
            "request=\"01A-ams\"",
            "method=GET",
            "protocol=\"h2\"",
            "tls=true",
            "app=\"web\"",
            &of_machine,
            "status=200",
            "bytes_in=5",
            "bytes_out=7",
            "wake_ms=45",
            "head_us=2000",
            "took_us=3000",
            "end=\"whole\"",
        ] {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
        for field in ["app=", "machine=", "wake_ms=", "head_us="] {
            assert!(!lines[1].contains(field), "{field}: {}", lines[1]);
        }
        assert!(!lines[0].contains("code=") && !lines[0].contains("left_out="), "{}", lines[0]);
        assert!(lines[1].contains("code=\"PE01\"") && lines[1].contains("fault=Client"), "{text}");
        assert!(lines[2].contains("left_out=1"), "{text}");
    }
}
