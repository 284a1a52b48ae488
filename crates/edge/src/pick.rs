//! Which machine gets a request. Pure.
//!
//! Never over a hard limit, never to a machine that is not ready.

use std::sync::Arc;
use std::time::Duration;

use perch_types::MachineState;
use perch_types::service::{Port, Protocol, SOFT_LIMIT_DEFAULT, Service};

use tokio::time::Instant;

use crate::live::Target;

/// How long a machine that runs may take to get ready before a sleeping one is woken beside it.
const READY_PATIENCE: Duration = Duration::from_secs(5);

/// The longest idle time that a port can ask for, in seconds.
const IDLE_TIMEOUT_S_MAX: u64 = 3_600;

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Send it to this one.
    Ready(usize),
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
}

/// Returns the service of a machine that answers HTTP on a public port: the one that names the
/// port, else the first that speaks HTTP at all.
pub(crate) fn service(services: &[Service], public_port: u16) -> Option<&Service> {
    let names_port = |service: &&Service| {
        service.speaks_http() && service.ports.iter().any(|port| port.port == Some(public_port))
    };
    services
        .iter()
        .find(names_port)
        .or_else(|| services.iter().find(|service| service.speaks_http()))
}

/// Returns how much a machine may have in flight.
pub(crate) fn hard_limit(service: &Service) -> Option<u32> {
    service.concurrency.as_ref().and_then(|limits| limits.hard_limit)
}

/// Returns how long nothing may move, by the port's `http_options` (contract 4.1).
pub(crate) fn idle_timeout(service: &Service, public_port: u16) -> Option<Duration> {
    let port = service.ports.iter().find(|port| port.port == Some(public_port))?;
    let seconds = port.other.get("http_options")?.get("idle_timeout")?.as_u64()?;
    Some(Duration::from_secs(seconds.clamp(1, IDLE_TIMEOUT_S_MAX)))
}

/// Picks among the machines of an app; `tried` are those that refused this request a moment ago,
/// and `random` breaks ties.
pub(crate) fn pick(
    machines: &[Arc<Target>],
    door: impl Into<Door>,
    tried: &[usize],
    random: u64,
    now: Instant,
) -> Pick {
    let door = door.into();
    let serving = || {
        machines.iter().enumerate().filter_map(|(index, target)| {
            let service = door.service(&target.record.services)?;
            (!tried.contains(&index) && !target.record.cordoned).then_some((index, target, service))
        })
    };
    let ready = || serving().filter(|(_, target, _)| is_ready(target));
    let room = ready().filter(|(_, target, service)| {
        hard_limit(service).is_none_or(|hard| target.load.in_flight() < hard)
    });
    // Under the soft limit comes first, then the least loaded; equal ones by lot.
    let best = room.min_by_key(|(index, target, service)| {
        let soft = service.concurrency.as_ref().and_then(|limits| limits.soft_limit);
        let load = target.load.in_flight();
        let lot = random.rotate_left(u32::try_from(index % 64).unwrap_or_default()) & 0xffff;
        (load >= soft.unwrap_or(SOFT_LIMIT_DEFAULT), load, lot)
    });
    if let Some((index, _, _)) = best {
        return Pick::Ready(index);
    }
    let coming = |likely| {
        let mut all = serving().filter_map(move |(_, target, _)| arrival(target, now));
        all.find(|arrival| arrival.is_likely == likely)
    };
    if let Some(arrival) = coming(true) {
        return Pick::Soon(arrival.until);
    }
    let sleeping = serving()
        .find(|(_, target, service)| service.starts_on_request() && is_asleep(target.record.state));
    if sleeping.is_none() && coming(false).is_some() {
        return Pick::Soon(None);
    }
    match sleeping {
        Some((index, _, _)) => Pick::Wake(index),
        None if ready().next().is_some() => Pick::Full,
        None if serving().next().is_some() => Pick::NotStartable,
        None => Pick::Nothing,
    }
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

    fn target(id: u64, state: MachineState, in_flight: u32, limits: &str) -> Arc<Target> {
        let mut record = record(id, "web", state);
        record.services[0].concurrency = serde_json::from_str(limits).unwrap();
        let load = Arc::new(Load::default());
        for _ in 0..in_flight {
            #[expect(clippy::mem_forget, reason = "stays in flight for the test")]
            std::mem::forget(load.begin(None));
        }
        Arc::new(Target { record, load, since: Instant::now() })
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
            ("a ready one beats a sleeping one", vec![(Stopped, 0), (Started, 2)], Pick::Ready(1)),
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
            assert_eq!(pick(&machines, 80, &[], 7, Instant::now()), want, "{name}");
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
            (Door::Http(5000), Some(8080)),
        ] {
            let behind = door.service(&services).map(|service| service.internal_port);
            assert_eq!(behind, want, "{door:?}");
            let picked = if want.is_some() { Pick::Ready(0) } else { Pick::Nothing };
            assert_eq!(pick(&machines, door, &[], 1, Instant::now()), picked, "{door:?}");
        }
    }

    #[test]
    fn a_machine_that_failed_the_request_is_not_tried_again() {
        let machines = vec![
            target(1, MachineState::Started, 0, "{}"),
            target(2, MachineState::Started, 5, "{}"),
        ];
        assert_eq!(pick(&machines, 80, &[0], 1, Instant::now()), Pick::Ready(1));
        assert_eq!(pick(&machines, 80, &[0, 1], 1, Instant::now()), Pick::Nothing);
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
        assert_eq!(pick(&machines, 80, &[], 1, Instant::now()), Pick::NotStartable);
    }

    #[test]
    fn a_machine_that_runs_and_does_not_get_ready_holds_no_sleeping_one_back() {
        let now = Instant::now();
        let mut started = record(1, "web", MachineState::Started);
        started.ready = false;
        let started = Arc::new(Target { record: started, load: Arc::default(), since: now });
        let asleep = target(2, MachineState::Stopped, 0, "{}");
        let (both, until) = ([Arc::clone(&started), asleep], now + READY_PATIENCE);
        assert_eq!(pick(&both, 80, &[], 1, now), Pick::Soon(Some(until)));
        assert_eq!(pick(&both, 80, &[], 1, until), Pick::Wake(1));
        assert_eq!(pick(&[started], 80, &[], 1, until), Pick::Soon(None), "it is all there is");
    }

    #[test]
    fn a_machine_whose_gate_was_closed_a_moment_ago_is_not_ready_whatever_the_record_says() {
        let closed = target(1, MachineState::Started, 0, "{}");
        closed.load.set_open(false);
        let open = target(2, MachineState::Started, 9, "{}");
        let now = Instant::now();
        assert_eq!(pick(&[Arc::clone(&closed), open], 80, &[], 1, now), Pick::Ready(1));
        assert!(matches!(pick(&[closed], 80, &[], 1, now), Pick::Soon(_)));
    }
}
