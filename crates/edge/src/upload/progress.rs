//! How a request's body gets on, and how slowly its client may send it.
//!
//! Never blames a client for the time in which the machine takes nothing: only waits for the client
//! are counted.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use perch_sockets::Timer;
use perch_types::service::HttpOptions;
use tokio::time::Instant;

use crate::cause::Cause;
use crate::{Limits, pick};

/// How a body gets on, for whoever waits for the answer to it.
#[derive(Debug, Clone)]
pub(crate) struct Progress(Rc<State>);

#[derive(Debug)]
struct State {
    moved: Cell<Instant>,
    /// Whether the client is waited for.
    is_waiting: Cell<bool>,
    fault: Cell<Option<Cause>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let moved = Cell::new(Instant::now());
        Self(Rc::new(State { moved, is_waiting: Cell::new(false), fault: Cell::new(None) }))
    }

    /// Returns when it last moved.
    pub(crate) fn last(&self) -> Instant {
        self.0.moved.get()
    }

    /// Notes that it moves.
    pub(crate) fn moves(&self) {
        self.0.moved.set(Instant::now());
        self.0.is_waiting.set(false);
    }

    /// Notes that the client has to send more.
    pub(super) fn waits(&self) {
        self.0.is_waiting.set(true);
    }

    /// Notes what the client did wrong.
    pub(super) fn fails(&self, cause: Cause) {
        self.0.fault.set(Some(cause));
    }

    /// Returns what the client did wrong.
    pub(crate) fn fault(&self) -> Option<Cause> {
        self.0.fault.get()
    }

    /// Returns why nothing has moved for too long: an app that waits for its client's next byte is
    /// not what is slow.
    pub(crate) fn why_still(&self) -> Cause {
        if self.0.is_waiting.get() { Cause::BodySlow } else { Cause::Slow }
    }
}

/// What a client may do with a body until its answer has begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// The most bytes, also behind the beginning of the answer.
    pub(crate) bytes_max: u64,
    /// For how long it may send nothing.
    stall: Option<Duration>,
    /// How many bytes a second it has to send in the mean, once it was waited for so long.
    rate: Option<(u32, Duration)>,
}

impl BodyLimits {
    /// Returns those of a port: its `idle_timeout` replaces how long a client may send nothing. A
    /// program that speaks HTTP/2 may have a conversation with its client, in which either side is
    /// silent for long: there only the wait for the answer ends.
    pub(crate) fn of(limits: &Limits, options: Option<&HttpOptions>) -> Self {
        let bytes_max = limits.body_bytes_max;
        if options.is_some_and(|options| options.h2_backend == Some(true)) {
            return Self { bytes_max, stall: None, rate: None };
        }
        let stall = options.and_then(pick::idle_timeout).unwrap_or(limits.body_stall);
        let rate = (limits.body_rate_min, limits.body_grace);
        Self { bytes_max, stall: Some(stall), rate: Some(rate) }
    }

    /// Returns whether a client that was waited for so long has sent too little. Pure.
    fn is_slow(&self, bytes: u64, waited: Duration) -> bool {
        self.rate.is_some_and(|(rate, grace)| {
            waited > grace && u128::from(bytes) * 1_000 < u128::from(rate) * waited.as_millis()
        })
    }
}

/// What is known of how a client sends a body.
#[derive(Debug)]
pub(super) struct Sending {
    limits: BodyLimits,
    bytes: u64,
    waited: Duration,
    since: Option<Instant>,
    silence: Timer,
    is_answered: bool,
}

impl Sending {
    pub(super) fn new(limits: BodyLimits) -> Self {
        let (bytes, waited, silence) = (0, Duration::ZERO, Timer::default());
        Self { limits, bytes, waited, since: None, silence, is_answered: false }
    }

    /// Lets the client take its time: its answer has begun.
    pub(super) fn answered(&mut self) {
        self.is_answered = true;
    }

    /// Notes that the client is waited for; returns what is wrong with that. The task is woken when
    /// something is.
    pub(super) fn waits(&mut self, context: &mut Context<'_>) -> Option<Cause> {
        self.since.get_or_insert_with(Instant::now);
        let stall = self.limits.stall.filter(|_| !self.is_answered)?;
        self.silence.is_over(stall, context).then_some(Cause::BodySlow)
    }

    /// Notes that nobody waits for the client: another machine is looked for.
    pub(super) fn rests(&mut self) {
        self.since = None;
        self.silence.reset();
    }

    /// Notes that so many bytes have come; returns what is wrong with them.
    pub(super) fn came(&mut self, bytes: u64) -> Option<Cause> {
        self.silence.reset();
        self.bytes = self.bytes.saturating_add(bytes);
        if let Some(since) = self.since.take() {
            self.waited = self.waited.saturating_add(since.elapsed());
        }
        if self.bytes > self.limits.bytes_max {
            return Some(Cause::BodyTooLarge);
        }
        let is_slow = !self.is_answered && self.limits.is_slow(self.bytes, self.waited);
        is_slow.then_some(Cause::BodySlow)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn limits(options: Option<&HttpOptions>) -> BodyLimits {
        let limits = Limits {
            body_bytes_max: 100,
            body_stall: Duration::from_secs(30),
            body_grace: Duration::from_secs(60),
            body_rate_min: 64,
            ..Limits::default()
        };
        BodyLimits::of(&limits, options)
    }

    fn options(text: &str) -> HttpOptions {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn e5_a_client_has_to_send_so_much_a_second_once_it_was_waited_for_long() {
        for (bytes, waited_s, want) in [
            (0, 60, false),
            (1, 61, true),
            (64 * 61, 61, false),
            (64 * 61 - 1, 61, true),
            (64 * 3600, 3600, false),
            (29, 29 * 30, true),
            (u64::MAX, u64::MAX / 2_000, false),
        ] {
            let is_slow = limits(None).is_slow(bytes, Duration::from_secs(waited_s));
            assert_eq!(is_slow, want, "{bytes} bytes in {waited_s} seconds");
        }
    }

    #[test]
    fn a_port_says_how_long_its_clients_may_be_silent() {
        for (text, stall, has_rate) in [
            ("{}", Some(30), true),
            (r#"{"idle_timeout": 0}"#, Some(30), true),
            (r#"{"idle_timeout": 600}"#, Some(600), true),
            (r#"{"h2_backend": true}"#, None, false),
        ] {
            let limits = limits(Some(&options(text)));
            assert_eq!(limits.stall, stall.map(Duration::from_secs), "{text}");
            assert_eq!(limits.rate.is_some(), has_rate, "{text}");
        }
    }

    #[test]
    fn e5_a_body_has_an_end_also_when_its_answer_has_begun() {
        let mut sending = Sending::new(limits(None));
        assert_eq!(sending.came(100), None);
        sending.answered();
        assert_eq!(sending.came(1), Some(Cause::BodyTooLarge));
    }

    #[test]
    fn a_client_is_not_waited_for_while_another_machine_is_looked_for() {
        let mut sending = Sending::new(limits(Some(&options(r#"{"h2_backend": true}"#))));
        assert_eq!(sending.waits(&mut Context::from_waker(Waker::noop())), None);
        assert!(sending.since.is_some());
        sending.rests();
        assert_eq!((sending.came(1), sending.waited), (None, Duration::ZERO));
    }

    #[test]
    fn what_is_still_is_so_because_of_whom_it_waits_for() {
        let progress = Progress::new();
        assert_eq!(progress.why_still(), Cause::Slow);
        progress.waits();
        assert_eq!(progress.why_still(), Cause::BodySlow);
        progress.moves();
        assert_eq!(progress.why_still(), Cause::Slow);
    }
}
