//! Which machine gets a request. Pure.
//!
//! Never over a hard limit, never to a machine that is not ready, and to none that failed of late
//! while another can.

mod best;

use std::sync::Arc;
use std::time::Duration;

use perch_types::service::{
    ConcurrencyKind, HttpOptions, IDLE_TIMEOUT_S_MAX, Port, Protocol, SOFT_LIMIT_DEFAULT, Service,
};
use perch_types::{MachineState, Region};

use tokio::time::Instant;

use crate::direction::Direction;
use crate::live::Target;
use crate::regions;
use best::Best;
pub(crate) use best::mixed;

/// How long a machine that runs may take to get ready before a sleeping one is woken beside it.
const READY_PATIENCE: Duration = Duration::from_secs(5);

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Send it to this one.
    Ready(usize),
    /// Send it to the first, and start the second beside it: all that run have enough to do.
    ReadyAndWake(usize, usize),
    /// Start this one and hold the request.
    Wake(usize),
    /// One is on its way: hold the request. If it has not come by then, look again.
    Soon(Option<Instant>),
    /// All that are ready are at their hard limit.
    Full,
    /// Machines are there, and none may be started by a request.
    NotStartable,
    /// There is no machine that serves what came.
    Nothing,
    /// The app has not the one machine that was asked for.
    Unknown,
    /// The app has no machine where it was asked for.
    Elsewhere,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// Where it came in.
    pub(crate) door: Door,
    /// Machines that refused it a moment ago.
    pub(crate) left_alone: &'a [usize],
    /// Where it wants to go.
    pub(crate) direction: &'a Direction,
    /// The machine in which its connection counts already.
    pub(crate) stay: Option<usize>,
    /// Chooses among equals.
    pub(crate) random: u64,
    /// Its session, where a session stays with a machine.
    pub(crate) sticky: Option<u64>,
    pub(crate) now: Instant,
    /// Where it came in: what is nearer is better, where it wants nothing else.
    pub(crate) here: Option<&'a Region>,
}

/// A machine that may come into question.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    index: usize,
    target: &'a Target,
    service: &'a Service,
    /// How far down the list of wishes it is, and how far away.
    rank: (usize, u8),
}

/// Returns the service of a machine that answers HTTP on a public port. Only what an app lists is
/// open: one that has asked for HTTPS alone is not served in the clear.
pub(crate) fn service(services: &[Service], public_port: u16) -> Option<&Service> {
    services.iter().find(|service| service.http_port(public_port).is_some())
}

/// Returns how much a machine may have in flight.
pub(crate) fn hard_limit(service: &Service) -> Option<u32> {
    service.concurrency.as_ref().and_then(|limits| limits.hard_limit)
}

/// Returns what a service says of HTTP on a public port.
pub(crate) fn options(service: &Service, public_port: u16) -> Option<&HttpOptions> {
    service.http_port(public_port)?.http_options.as_ref()
}

/// Returns how long nothing may move (contract 4.1); 0 is what clients send for nothing.
pub(crate) fn idle_timeout(options: &HttpOptions) -> Option<Duration> {
    let seconds = options.idle_timeout.filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(u64::from(seconds.min(IDLE_TIMEOUT_S_MAX))))
}

/// Returns what a service counts as load.
pub(crate) fn counts_requests(service: &Service) -> bool {
    let kind = service.concurrency.as_ref().and_then(|limits| limits.kind).unwrap_or_default();
    kind == ConcurrencyKind::Requests
}

/// Returns a machine's load as its service counts it. Tunnels and connections that are no
/// client's of HTTP count as requests.
fn load(target: &Target, service: &Service) -> u32 {
    let in_flight = target.load.in_flight();
    if counts_requests(service) { in_flight } else { in_flight.max(target.load.room.connections()) }
}

/// Picks among the machines of an app.
pub(crate) fn pick(machines: &[Arc<Target>], ask: &Ask<'_>) -> Pick {
    let serving = || {
        machines.iter().enumerate().filter_map(|(index, target)| {
            let service = ask.door.service(&target.record.services)?;
            let distance = ask
                .here
                .filter(|_| ask.sticky.is_none())
                .map_or(0, |here| regions::distance(here, &target.record.region));
            let rank = (ask.direction.rank(&target.record)?, distance);
            (!ask.left_alone.contains(&index) && !target.record.cordoned).then_some(Candidate {
                index,
                target,
                service,
                rank,
            })
        })
    };
    let ready = || serving().filter(|one| is_ready(one.target));
    // Its connection has its place there already. Several sessions may share one.
    if let Some(index) = ask.stay
        && ask.direction.is_free()
        && ask.sticky.is_none()
        && ready().any(|one| one.index == index)
    {
        return Pick::Ready(index);
    }
    let sleeping = || {
        let asleep = |one: &Candidate<'_>| {
            one.service.starts_on_request() && is_asleep(one.target.record.state)
        };
        let wanted = |one: &Candidate<'_>| {
            let is_refused = one.target.load.health.refuses_start(ask.now);
            (is_refused, !ask.direction.prefers(&one.target.record), one.rank)
        };
        serving().filter(asleep).min_by_key(wanted)
    };
    let coming = |likely| {
        let mut all = serving().filter_map(move |one| arrival(one.target, ask.now));
        all.find(|arrival| arrival.is_likely == likely)
    };
    if let Some(Best { one, is_broken, is_over }) = best::best(ready(), ask) {
        let helper = (is_broken || is_over).then(sleeping).flatten();
        let helper = helper.filter(|it| !it.target.load.health.refuses_start(ask.now));
        return match helper {
            // Better one that has to be started than one that has just failed time and again.
            Some(helper) if is_broken => Pick::Wake(helper.index),
            Some(helper) if helper.rank <= one.rank && coming(true).is_none() => {
                Pick::ReadyAndWake(one.index, helper.index)
            }
            Some(_) | None => Pick::Ready(one.index),
        };
    }
    if let Some(arrival) = coming(true) {
        return Pick::Soon(arrival.until);
    }
    let sleeping = sleeping();
    if sleeping.is_none() && coming(false).is_some() {
        return Pick::Soon(None);
    }
    match sleeping {
        Some(one) => Pick::Wake(one.index),
        None if ready().next().is_some() => Pick::Full,
        None if serving().next().is_some() => Pick::NotStartable,
        None if ask.direction.only.is_some() => Pick::Unknown,
        None if ask.direction.is_region_forced => Pick::Elsewhere,
        None => Pick::Nothing,
    }
}

/// Returns whether a machine can have a request without a look at any other: it is ready, under its
/// soft limit, and has not failed of late.
pub(crate) fn is_at_ease(target: &Target, door: Door, now: Instant) -> bool {
    let Some(service) = door.service(&target.record.services) else {
        return false;
    };
    let limits = service.concurrency.as_ref();
    let soft = limits.and_then(|limits| limits.soft_limit).unwrap_or(SOFT_LIMIT_DEFAULT);
    let wall = hard_limit(service).map_or(soft, |hard| soft.min(hard));
    is_ready(target)
        && !target.record.cordoned
        && !target.load.health.is_ejected(now)
        && load(target, service) < wall
}

/// At which public port something came, and whether the edge speaks HTTP there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// A request.
    Http(u16),
    /// Bytes that pass as they are.
    Raw(Protocol, u16),
}

impl From<u16> for Door {
    fn from(port: u16) -> Self {
        Self::Http(port)
    }
}

impl Door {
    /// Returns the service of a machine that is behind it.
    pub(crate) fn service(self, services: &[Service]) -> Option<&Service> {
        match self {
            Self::Http(port) => service(services, port),
            Self::Raw(protocol, port) => raw(services, protocol, port).map(|(service, _)| service),
        }
    }

    /// Returns whether clients' connections are what a service counts of what comes here. At a raw
    /// port each is under way for as long as it lives, and counts as that.
    pub(crate) fn counts_connections(self, service: &Service) -> bool {
        matches!(self, Self::Http(_)) && !counts_requests(service)
    }
}

/// Returns the service of a machine that names a raw port, and what it says of that.
pub(crate) fn raw(
    services: &[Service],
    protocol: Protocol,
    port: u16,
) -> Option<(&Service, &Port)> {
    let mut of_protocol = services.iter().filter(|service| service.protocol == protocol);
    of_protocol.find_map(|service| Some((service, service.raw_port(port)?)))
}

fn is_ready(target: &Target) -> bool {
    target.record.ready && target.load.is_open()
}

/// A machine that will be ready without anybody's doing.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    /// Whether it will be soon enough that no other has to be started.
    is_likely: bool,
    /// Until when that is so.
    until: Option<Instant>,
}

/// Returns whether a machine that is not ready is on its way.
fn arrival(target: &Target, now: Instant) -> Option<Arrival> {
    if is_ready(target) {
        return None;
    }
    match target.record.state {
        MachineState::Starting | MachineState::Restarting | MachineState::Replacing => {
            Some(Arrival { is_likely: true, until: None })
        }
        MachineState::Started => {
            let until = target.since + READY_PATIENCE;
            Some(Arrival { is_likely: now < until, until: Some(until) })
        }
        // It has to end before it can be started.
        MachineState::Stopping | MachineState::Suspending => {
            Some(Arrival { is_likely: false, until: None })
        }
        MachineState::Created
        | MachineState::Stopped
        | MachineState::Suspended
        | MachineState::Failed
        | MachineState::Destroying
        | MachineState::Destroyed => None,
    }
}

pub(crate) const fn is_asleep(state: MachineState) -> bool {
    matches!(state, MachineState::Created | MachineState::Stopped | MachineState::Suspended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Load;
    use crate::live::tests::record;
    use crate::outlier::Failure;

    pub(super) fn target(
        id: u64,
        state: MachineState,
        in_flight: u32,
        limits: &str,
    ) -> Arc<Target> {
        let mut record = record(id, "web", state);
        record.services[0].concurrency = serde_json::from_str(limits).unwrap();
        let load = Arc::new(Load::default());
        for _ in 0..in_flight {
            #[expect(clippy::mem_forget, reason = "stays in flight for the test")]
            std::mem::forget(load.begin(None));
        }
        Arc::new(Target { record, load, since: Instant::now() })
    }

    pub(super) fn ask<'a>(
        direction: &'a Direction,
        left_alone: &'a [usize],
        now: Instant,
    ) -> Ask<'a> {
        let door = Door::Http(80);
        Ask { door, left_alone, direction, stay: None, random: 7, sticky: None, now, here: None }
    }

    fn picked(machines: &[Arc<Target>], left_alone: &[usize], now: Instant) -> Pick {
        pick(machines, &ask(&Direction::default(), left_alone, now))
    }

    #[test]
    fn the_table_of_picks() {
        use MachineState::{Created, Failed, Started, Starting, Stopped, Stopping, Suspended};
        let limits = r#"{"soft_limit":2,"hard_limit":3}"#;
        for (name, machines, want) in [
            ("least loaded", vec![(Started, 1), (Started, 0)], Pick::Ready(1)),
            ("over soft only if all are", vec![(Started, 2), (Started, 1)], Pick::Ready(1)),
            ("over soft, under hard", vec![(Started, 2), (Started, 3)], Pick::Ready(0)),
            ("never over hard", vec![(Started, 3), (Started, 3)], Pick::Full),
            ("a ready one beats a sleeping one", vec![(Stopped, 0), (Started, 1)], Pick::Ready(1)),
            ("over soft", vec![(Stopped, 0), (Started, 2)], Pick::ReadyAndWake(1, 0)),
            ("a sleeping one helps full ones", vec![(Started, 3), (Stopped, 0)], Pick::Wake(1)),
            ("stopped is woken", vec![(Stopped, 0)], Pick::Wake(0)),
            ("created is woken", vec![(Created, 0)], Pick::Wake(0)),
            ("suspended is woken", vec![(Suspended, 0)], Pick::Wake(0)),
            ("one start for all", vec![(Starting, 0), (Stopped, 0)], Pick::Soon(None)),
            ("one that ends is waited for", vec![(Stopping, 0)], Pick::Soon(None)),
            ("unless one sleeps", vec![(Stopping, 0), (Stopped, 0)], Pick::Wake(1)),
            ("failed is not woken", vec![(Failed, 0)], Pick::NotStartable),
            ("none", vec![], Pick::Nothing),
        ] {
            let machines: Vec<_> = machines
                .into_iter()
                .enumerate()
                .map(|(id, (state, load))| target(id as u64, state, load, limits))
                .collect();
            assert_eq!(picked(&machines, &[], Instant::now()), want, "{name}");
        }
    }

    #[test]
    fn a_raw_port_is_behind_its_own_door_only() {
        let mut raw = record(1, "web", MachineState::Started);
        raw.services = serde_json::from_str(
            r#"[{"internal_port":8080,"ports":[{"port":80,"handlers":["http"]}]},
                {"internal_port":5432,"ports":[{"start_port":5000,"end_port":5001}]},
                {"internal_port":5000,"protocol":"udp","ports":[{"port":5000}]}]"#,
        )
        .unwrap();
        let services = raw.services.clone();
        let machines =
            [Arc::new(Target { record: raw, load: Arc::default(), since: Instant::now() })];
        for (door, want) in [
            (Door::Raw(Protocol::Tcp, 5001), Some(5432)),
            (Door::Raw(Protocol::Udp, 5000), Some(5000)),
            (Door::Raw(Protocol::Udp, 5001), None),
            (Door::Raw(Protocol::Tcp, 80), None),
            (Door::Raw(Protocol::Tcp, 8080), None),
            (Door::Http(80), Some(8080)),
            (Door::Http(443), None),
            (Door::Http(5000), None),
        ] {
            let behind = door.service(&services).map(|service| service.internal_port);
            assert_eq!(behind, want, "{door:?}");
            let picked = if want.is_some() { Pick::Ready(0) } else { Pick::Nothing };
            let direction = Direction::default();
            let ask = Ask { door, ..ask(&direction, &[], Instant::now()) };
            assert_eq!(pick(&machines, &ask), picked, "{door:?}");
        }
    }

    #[test]
    fn a_machine_that_failed_the_request_is_not_tried_again() {
        let machines = vec![
            target(1, MachineState::Started, 0, "{}"),
            target(2, MachineState::Started, 5, "{}"),
        ];
        assert_eq!(picked(&machines, &[0], Instant::now()), Pick::Ready(1));
        assert_eq!(picked(&machines, &[0, 1], Instant::now()), Pick::Nothing);
    }

    #[test]
    fn a_cordoned_machine_and_one_without_autostart_get_nothing() {
        let mut cordoned = record(1, "web", MachineState::Started);
        cordoned.cordoned = true;
        let mut manual = record(2, "web", MachineState::Stopped);
        manual.services[0].autostart = Some(false);
        let machines: Vec<_> = [cordoned, manual]
            .into_iter()
            .map(|record| Arc::new(Target { record, load: Arc::default(), since: Instant::now() }))
            .collect();
        assert_eq!(picked(&machines, &[], Instant::now()), Pick::NotStartable);
    }

    #[test]
    fn a_machine_that_runs_and_does_not_get_ready_holds_no_sleeping_one_back() {
        let now = Instant::now();
        let mut started = record(1, "web", MachineState::Started);
        started.ready = false;
        let started = Arc::new(Target { record: started, load: Arc::default(), since: now });
        let asleep = target(2, MachineState::Stopped, 0, "{}");
        let (both, until) = ([Arc::clone(&started), asleep], now + READY_PATIENCE);
        assert_eq!(picked(&both, &[], now), Pick::Soon(Some(until)));
        assert_eq!(picked(&both, &[], until), Pick::Wake(1));
        assert_eq!(picked(&[started], &[], until), Pick::Soon(None), "it is all there is");
    }

    #[test]
    fn a_machine_whose_gate_was_closed_a_moment_ago_is_not_ready_whatever_the_record_says() {
        let closed = target(1, MachineState::Started, 0, "{}");
        closed.load.set_open(false);
        let open = target(2, MachineState::Started, 9, "{}");
        let now = Instant::now();
        assert_eq!(picked(&[Arc::clone(&closed), open], &[], now), Pick::Ready(1));
        assert!(matches!(picked(&[closed], &[], now), Pick::Soon(_)));
    }

    const LIMITS: &str = r#"{"type":"requests","soft_limit":4,"hard_limit":8}"#;

    pub(super) fn started(loads: &[u32]) -> Vec<Arc<Target>> {
        let one =
            |(id, load): (usize, &u32)| target(id as u64 + 1, MachineState::Started, *load, LIMITS);
        loads.iter().enumerate().map(one).collect()
    }

    #[test]
    fn two_are_drawn_and_the_less_loaded_of_them_gets_it() {
        let machines = started(&[0, 1, 2, 3]);
        let (direction, now) = (Direction::default(), Instant::now());
        let mut counts = [0_u32; 4];
        for lot in 0..4000 {
            let random = mixed(11, lot);
            match pick(&machines, &Ask { random, ..ask(&direction, &[], now) }) {
                Pick::Ready(index) => counts[index] += 1,
                other => panic!("{other:?}"),
            }
        }
        // Of all pairs the least loaded is in a half, the next in a third, the most loaded wins none.
        for (count, want) in counts.iter().zip([2000_u32, 1333, 667, 0]) {
            assert!(count.abs_diff(want) < 250, "{counts:?}");
        }
    }

    #[test]
    fn equal_ones_get_equal_shares() {
        let machines = started(&[1, 1, 1]);
        let (direction, now) = (Direction::default(), Instant::now());
        let mut counts = [0_u32; 3];
        for lot in 0..3000 {
            let random = mixed(5, lot);
            if let Pick::Ready(index) =
                pick(&machines, &Ask { random, ..ask(&direction, &[], now) })
            {
                counts[index] += 1;
            }
        }
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 200), "{counts:?}");
    }

    #[test]
    fn connections_count_where_the_service_says_so_and_when_it_says_nothing() {
        for (limits, want) in [
            (r#"{"type":"connections","hard_limit":2}"#, Pick::Full),
            (r#"{"hard_limit":2}"#, Pick::Full),
            (r#"{"type":"requests","hard_limit":2}"#, Pick::Ready(0)),
        ] {
            let one = target(1, MachineState::Started, 1, limits);
            let _connections = [
                crate::room::Connected::begin(&one.load, None),
                crate::room::Connected::begin(&one.load, None),
            ];
            let now = Instant::now();
            assert_eq!(picked(&[Arc::clone(&one)], &[], now), want, "{limits}");
            let direction = Direction::default();
            let stays = Ask { stay: Some(0), ..ask(&direction, &[], now) };
            assert_eq!(pick(&[one], &stays), Pick::Ready(0), "it has its place");
        }
    }

    #[test]
    fn one_that_fails_again_and_again_is_the_last_that_is_asked() {
        let now = Instant::now();
        let machines = started(&[0, 3]);
        let eject =
            |target: &Target| (0..5).for_each(|_| target.load.health.failed(now, Failure::Deaf));
        eject(&machines[0]);
        assert_eq!(picked(&machines, &[], now), Pick::Ready(1));
        eject(&machines[1]);
        assert_eq!(picked(&machines, &[], now), Pick::Ready(0), "never all");
        let mut more = machines;
        more.push(target(3, MachineState::Stopped, 0, LIMITS));
        assert_eq!(picked(&more, &[], now), Pick::Wake(2), "one that sleeps is better");
        let later = now + Duration::from_secs(600);
        assert_eq!(picked(&more, &[], later), Pick::Ready(0));
    }

    fn wish(name: &'static str, value: &'static str) -> Direction {
        let mut headers = http::HeaderMap::new();
        headers.insert(name, http::HeaderValue::from_static(value));
        Direction::of(&headers)
    }

    #[test]
    fn the_table_of_wishes() {
        const ONE: &str = "00000000000001";
        const TWO: &str = "00000000000002";
        let mut machines = started(&[0, 3]);
        let mut far = record(3, "web", MachineState::Started);
        far.region = "fra".parse().unwrap();
        let asleep = target(4, MachineState::Stopped, 0, LIMITS);
        let far = Target { record: far, load: Arc::default(), since: Instant::now() };
        machines.extend([Arc::new(far), asleep]);
        for (name, value, want) in [
            ("fly-prefer-instance-id", TWO, Pick::Ready(1)),
            ("fly-force-instance-id", ONE, Pick::Ready(0)),
            ("fly-force-instance-id", TWO, Pick::Ready(1)),
            ("fly-force-instance-id", "00000000000004", Pick::Wake(3)),
            ("fly-force-instance-id", "00000000000009", Pick::Unknown),
            ("fly-force-instance-id", "x", Pick::Unknown),
            ("fly-prefer-region", "fra", Pick::Ready(2)),
            ("fly-force-region", "fra", Pick::Ready(2)),
            ("fly-force-region", "us,fra", Pick::Ready(2)),
            ("fly-force-region", "us", Pick::Elsewhere),
        ] {
            let direction = wish(name, value);
            let now = Instant::now();
            assert_eq!(pick(&machines, &ask(&direction, &[], now)), want, "{name}: {value}");
        }
        let (now, left) = (Instant::now(), [2]);
        let direction = wish("fly-prefer-region", "fra");
        let elsewhere = pick(&machines[..3], &ask(&direction, &left, now));
        assert_eq!(elsewhere, Pick::Ready(0), "another region, when the wanted one refuses");
        let full = started(&[8, 1]);
        let direction = wish("fly-prefer-instance-id", ONE);
        assert_eq!(pick(&full, &ask(&direction, &[], now)), Pick::Ready(1), "it is full");
        let direction = wish("fly-force-instance-id", ONE);
        assert_eq!(pick(&full, &ask(&direction, &[], now)), Pick::Full);
    }
}
