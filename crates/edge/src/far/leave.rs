//! Chooses the machine of another host that is to have a request or a connection at a raw port, and
//! passes requests on to the edge there; connections are [`super::carry`]'s.
//!
//! Never sends one again that a machine may have seen: elsewhere it is tried only when nothing was
//! sent, or when the edge there says that no machine has seen it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use perch_types::service::Protocol;
use perch_types::{HostId, MachineId, MachineState};
use tokio::time::Instant;

use crate::account::Account;
use crate::cause::Cause;
use crate::forward::{self, Answer, Hop, Outbound, Refused, Sender, Sent};
use crate::listen::Worker;
use crate::live::{AppKey, InFlight, Target};
use crate::metrics::AppMetrics;
use crate::outlier::Failure;
use crate::peer::Asks;
use crate::pick::{self, Ask, Door, Pick};
use crate::pool::Key;
use crate::replaying::{Original, Reached};
use crate::wake::{Tried, Wanted};
use crate::{headers, regions};

use super::hop::{Order, Verdict};
use super::{Far, links};

/// How many hosts or machines elsewhere one request, or connection, is offered to.
const TRIES_MAX: usize = 16;

/// Hosts and machines elsewhere that did not take a request, or a connection.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    refused: Vec<(HostId, Option<MachineId>)>,
    last: Option<Cause>,
}

impl Asked {
    /// Notes that nobody took what was asked for.
    pub(super) fn note(&mut self, order: &Order, target: &Target, cause: Cause) {
        self.refused.push((target.record.host.clone(), order.machine.clone()));
        self.last = Some(cause);
    }

    /// Returns whether a machine may still be asked.
    fn leaves(&self, target: &Target) -> bool {
        !self.refused.iter().any(|(host, machine)| match machine {
            Some(machine) => *machine == target.record.id,
            None => *host == target.record.host,
        })
    }

    /// Returns why nobody answers, where this host has nobody: the reason is elsewhere.
    pub(crate) fn cause(&self, here: Cause) -> Cause {
        let has_nobody = matches!(here, Cause::NoMachine | Cause::NotStartable);
        self.last.filter(|_| has_nobody).unwrap_or(here)
    }
}

/// A machine of another host that is to have a request, or a connection, which is counted as under
/// way to there.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) target: Arc<Target>,
    pub(super) in_flight: InFlight,
    pub(super) order: Order,
}

type Machines = Vec<Arc<Target>>;

impl Worker {
    /// Returns the machines of an app on other hosts.
    pub(crate) fn far_machines(&self, app: &AppKey) -> Option<Arc<[Arc<Target>]>> {
        let far = self.shared.far.as_ref()?;
        self.reach.known.machines_of(&self.shared.view.load(), &far.host, app)
    }

    /// Returns what is counted here of an app that has machines on other hosts alone.
    pub(crate) fn far_metrics(&self, app: &AppKey) -> Option<Arc<AppMetrics>> {
        if self.shared.far.is_none() || self.shared.live.machines_of(app).is_some() {
            return None;
        }
        self.far_machines(app).map(|_| Arc::clone(self.reach.known.uncounted()))
    }

    /// Returns the machine of another host that a request, or a connection, is to go to; nothing
    /// when it is one of this host that should have it.
    pub(crate) fn choose_far<C: Asks>(
        &self,
        wanted: &Wanted<'_, C>,
        asked: &Asked,
        deadline: Option<Instant>,
    ) -> Option<Choice> {
        let far = self.shared.far.as_ref()?;
        let now = Instant::now();
        let local = self.shared.live.machines_of(wanted.app);
        let local = local.as_deref().unwrap_or_default();
        let is_at_ease = |target: &Arc<Target>| {
            wanted.asks.stays_with(target)
                || (pick::is_at_ease(target, wanted.door, now)
                    && wanted.tried.rests(&target.record, now).is_none())
        };
        let is_free = wanted.direction.is_free() && wanted.sticky.is_none();
        if (is_free && local.iter().any(is_at_ease)) || asked.refused.len() >= TRIES_MAX {
            return None;
        }
        let others = self.far_machines(wanted.app)?;
        let others: Machines = others.iter().filter(|one| asked.leaves(one)).cloned().collect();
        let look = Look { worker: self, wanted, now };
        let target = look.choose(local, &others)?;
        let order = Order {
            from: far.host.clone(),
            app: wanted.app.clone(),
            public_port: port_of(wanted.door)?,
            wait: Duration::ZERO,
            machine: names_machine(wanted, &target).then(|| target.record.id.clone()),
            ends: None,
        };
        let stays_out = |one: &&Arc<Target>| match &order.machine {
            Some(machine) => one.record.id != *machine,
            None => one.record.host != target.record.host,
        };
        let rest: Machines = local.iter().chain(&others).filter(stays_out).cloned().collect();
        let is_last = !matches!(look.pick(&rest), Pick::Ready(_) | Pick::ReadyAndWake(..));
        let longest = self.shared.limits.hold + self.shared.limits.queue;
        let wait = match deadline {
            Some(deadline) => deadline.saturating_duration_since(now).min(longest),
            None => longest,
        };
        let wait = if is_last { wait } else { Duration::ZERO };
        let in_flight = target.load.begin(None)?;
        Some(Choice { target, in_flight, order: Order { wait, ..order } })
    }

    /// Passes a request on and returns the answer as soon as its head is there.
    pub(crate) async fn pass_on(
        &self,
        choice: Choice,
        asked: &mut Asked,
        outbound: Box<Outbound>,
        account: &Rc<Account>,
    ) -> Result<Reached, Refused> {
        let Choice { target, in_flight, order } = choice;
        let original = Original::of(&outbound);
        let passed = match &self.shared.far {
            Some(far) => self.pass(far, (&target, in_flight, account), &order, outbound).await,
            None => Err(Refused { cause: Cause::HostAway, unsent: Some(outbound) }),
        };
        let refused = match passed {
            Ok((sent, Some(Verdict::From(id)))) => {
                let target = self.reached(&order, &id, target);
                account.goes_to(&target.record.id, None);
                return Ok(Reached { sent, target });
            }
            Ok((sent, Some(Verdict::Static))) => return Ok(Reached { sent, target }),
            Ok((sent, Some(Verdict::Unsent(cause)))) => {
                Refused { cause, unsent: original.again(sent.switch).ok() }
            }
            Ok((_, Some(Verdict::Failed(cause)))) => {
                // The edge there counts it.
                account.passed_on(self.reach.known.uncounted());
                Refused { cause, unsent: None }
            }
            Ok((_, None)) => Refused { cause: Cause::BadAnswer, unsent: None },
            Err(refused) => refused,
        };
        if refused.cause == Cause::HostAway {
            self.note_away(&order.app, &target.record.host);
        }
        asked.note(&order, &target, refused.cause);
        let unsent = refused.unsent.map(|mut outbound| {
            outbound.request.headers_mut().remove(headers::HOP);
            outbound
        });
        Err(Refused { unsent, ..refused })
    }

    /// Notes that a machine was reached, and returns it: perhaps another of its host than the one
    /// that was looked for.
    pub(super) fn reached(
        &self,
        order: &Order,
        id: &MachineId,
        target: Arc<Target>,
    ) -> Arc<Target> {
        let machines = self.far_machines(&order.app);
        let mut machines = machines.iter().flat_map(|all| all.iter());
        let target = machines.find(|one| one.record.id == *id).cloned().unwrap_or(target);
        target.load.health.succeeded(Instant::now());
        target
    }

    /// Notes that a host was not reached: others are asked before it for a while.
    pub(super) fn note_away(&self, app: &AppKey, host: &HostId) {
        let (machines, now) = (self.far_machines(app), Instant::now());
        let of_host = machines.iter().flat_map(|all| all.iter());
        of_host
            .filter(|target| target.record.host == *host)
            .for_each(|target| target.load.health.failed(now, Failure::Deaf));
    }

    async fn pass(
        &self,
        far: &Far,
        (target, in_flight, account): (&Arc<Target>, InFlight, &Rc<Account>),
        order: &Order,
        mut outbound: Box<Outbound>,
    ) -> Result<(Sent, Option<Verdict>), Refused> {
        let key = forward::key(target, order.public_port, 0);
        let (Some(key), Some(value)) = (key, order.value()) else {
            return Err(Refused { cause: Cause::NoMachine, unsent: Some(outbound) });
        };
        outbound.request.headers_mut().insert(headers::HOP, value);
        let public_port = order.public_port;
        let (pool, limits) = (&self.pool, &far.limits);
        let hop = Hop { pool, limits, target, public_port, client: 0, in_flight, account };
        let answer = self.exchange(far, &hop, &key, outbound).await.map_err(|refused| {
            // Between edges a connection that breaks says nothing of the app.
            let is_broken = refused.cause == Cause::Upstream;
            let cause = if is_broken { Cause::HostAway } else { refused.cause };
            Refused { cause, ..refused }
        })?;
        let sent = hop.finish(answer, key)?;
        let said = sent.response.headers().get(headers::HOP);
        let verdict = said.and_then(Verdict::of);
        Ok((sent, verdict))
    }

    async fn exchange(
        &self,
        far: &Far,
        hop: &Hop<'_>,
        key: &Key,
        outbound: Box<Outbound>,
    ) -> Result<Answer, Refused> {
        let host = &hop.target.record.host;
        let away = |outbound| Refused { cause: Cause::HostAway, unsent: Some(outbound) };
        let address = self.shared.view.load().edge(host);
        let Some(address) = address else {
            return Err(away(outbound));
        };
        if outbound.switch.is_some() {
            // HTTP/1.1 alone knows it; the connection becomes the tunnel.
            return match links::dial_once(far, host, address, self.pool.buffers()).await {
                Some(origin) => hop.exchange(key, Sender::Single(origin), outbound).await,
                None => Err(away(outbound)),
            };
        }
        let mut unsent = outbound;
        loop {
            let place = self.reach.links.place(far, host, address).await;
            let Some((stream, is_new)) = place else {
                return Err(away(unsent));
            };
            let streams = Rc::clone(&stream.streams);
            match hop.exchange(key, Sender::Stream(stream), unsent).await {
                // The edge there ended the connection a moment ago.
                Err(Refused { unsent: Some(outbound), .. }) if !is_new => {
                    self.reach.links.retire(host, &streams);
                    unsent = outbound;
                }
                done => return done,
            }
        }
    }
}

/// One look at the machines of all hosts.
struct Look<'a, C> {
    worker: &'a Worker,
    wanted: &'a Wanted<'a, C>,
    now: Instant,
}

impl<C: Asks> Look<'_, C> {
    fn pick(&self, machines: &[Arc<Target>]) -> Pick {
        let left_alone = rests(machines, self.wanted.tried, self.now);
        let ask = Ask {
            door: self.wanted.door,
            left_alone: &left_alone,
            direction: self.wanted.direction,
            stay: machines.iter().position(|target| self.wanted.asks.stays_with(target)),
            random: self.wanted.random,
            sticky: self.wanted.sticky,
            now: self.now,
            here: Some(&self.worker.shared.region),
        };
        pick::pick(machines, &ask)
    }

    /// Returns the machine of another host that should have the request, if it is one of those.
    fn choose(&self, local: &[Arc<Target>], others: &[Arc<Target>]) -> Option<Arc<Target>> {
        let all: Machines = local.iter().chain(others).cloned().collect();
        let is_waited_for_here = || matches!(self.pick(local), Pick::Soon(_) | Pick::Full);
        let index = match self.pick(&all) {
            Pick::Ready(index) | Pick::Wake(index) => index,
            Pick::ReadyAndWake(index, helper) => {
                let helper = all.get(helper).filter(|helper| !helper.load.is_far);
                if let (Some(helper), Some(true)) = (helper, all.get(index).map(is_far)) {
                    // Nobody waits for it; the edge there starts those of its own host.
                    let shared = &self.worker.shared;
                    drop(shared.wakes.start(helper, shared.limits.hold));
                }
                index
            }
            // What comes, or becomes free, is waited for where it is.
            Pick::Soon(_) | Pick::Full if is_waited_for_here() => return None,
            Pick::Soon(_) | Pick::Full => {
                let ranked = others.iter().filter_map(|one| Some((self.rank(one)?, one)));
                return ranked.min_by_key(|(rank, _)| *rank).map(|(_, one)| Arc::clone(one));
            }
            Pick::NotStartable | Pick::Nothing | Pick::Unknown | Pick::Elsewhere => return None,
        };
        all.get(index).filter(|target| is_far(target)).cloned()
    }

    /// Returns how far away a machine is that may come to have the request.
    fn rank(&self, target: &Target) -> Option<(usize, u8)> {
        let record = &target.record;
        let is_gone = matches!(
            record.state,
            MachineState::Failed | MachineState::Destroying | MachineState::Destroyed
        );
        let serves = self.wanted.door.service(&record.services).is_some();
        let wish = self.wanted.direction.rank(record)?;
        let distance = regions::distance(&self.worker.shared.region, &record.region);
        (serves && !record.cordoned && !is_gone).then_some((wish, distance))
    }
}

fn is_far(target: &Arc<Target>) -> bool {
    target.load.is_far
}

/// Returns the places of machines that refused the request a moment ago.
fn rests(machines: &[Arc<Target>], tried: &Tried, now: Instant) -> Vec<usize> {
    let places = machines.iter().enumerate();
    places
        .filter(|(_, target)| tried.rests(&target.record, now).is_some())
        .map(|(index, _)| index)
        .collect()
}

/// Returns whether any other machine of the host would not do as well.
fn names_machine<C>(wanted: &Wanted<'_, C>, target: &Target) -> bool {
    let direction = wanted.direction;
    wanted.sticky.is_some()
        || direction.only.is_some()
        || direction.without.is_some()
        || direction.prefers(&target.record)
}

/// Returns the public port of requests and connections; datagrams go to this host's machines.
const fn port_of(door: Door) -> Option<u16> {
    match door {
        Door::Http(port) | Door::Raw(Protocol::Tcp, port) => Some(port),
        Door::Raw(Protocol::Udp, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use perch_types::Region;

    use super::*;
    use crate::direction::Direction;
    use crate::live::Load;
    use crate::live::tests::record;

    const LIMITS: &str = r#"{"soft_limit":2,"hard_limit":3}"#;

    fn target(id: u64, region: &str, in_flight: u32, is_far: bool) -> Arc<Target> {
        let mut record = record(id, "web", MachineState::Started);
        record.region = region.parse().unwrap();
        record.host = HostId::from_bits(if is_far { 2 } else { 1 });
        record.services[0].concurrency = serde_json::from_str(LIMITS).unwrap();
        let load = if is_far { Load::of_far(&Arc::default()) } else { Load::default() };
        let load = Arc::new(load);
        for _ in 0..in_flight {
            #[expect(clippy::mem_forget, reason = "stays in flight for the test")]
            std::mem::forget(load.begin(None));
        }
        Arc::new(Target { record, load, since: Instant::now() })
    }

    #[test]
    fn the_nearest_region_is_first_and_of_equals_this_host() {
        let here: Region = "ams".parse().unwrap();
        let direction = Direction::default();
        for (name, machines, want) in [
            ("here", [target(1, "ord", 0, true), target(2, "ams", 1, false)], 1),
            ("near", [target(1, "ord", 0, true), target(2, "fra", 1, true)], 1),
            ("own host", [target(1, "ams", 0, true), target(2, "ams", 1, false)], 1),
            ("under soft", [target(1, "ams", 1, true), target(2, "ams", 2, false)], 0),
            ("full here", [target(1, "ams", 3, false), target(2, "ord", 0, true)], 1),
        ] {
            for random in 0..8 {
                let ask = Ask {
                    door: Door::Http(80),
                    left_alone: &[],
                    direction: &direction,
                    stay: None,
                    random,
                    sticky: None,
                    now: Instant::now(),
                    here: Some(&here),
                };
                assert_eq!(pick::pick(&machines, &ask), Pick::Ready(want), "{name}");
            }
        }
    }

    #[test]
    fn a_machine_is_at_ease_while_it_is_ready_and_under_its_soft_limit() {
        let ease = |in_flight| {
            let one = target(1, "ams", in_flight, false);
            pick::is_at_ease(&one, Door::Http(80), Instant::now())
        };
        assert_eq!([0, 1, 2, 3].map(ease), [true, true, false, false]);
        let closed = target(1, "ams", 0, false);
        closed.load.set_open(false);
        assert!(!pick::is_at_ease(&closed, Door::Http(80), Instant::now()));
        let raw = Door::Raw(Protocol::Tcp, 5432);
        assert!(!pick::is_at_ease(&target(1, "ams", 0, false), raw, Instant::now()));
    }

    #[test]
    fn requests_and_connections_go_to_other_hosts_and_datagrams_do_not() {
        for (door, want) in [
            (Door::Http(80), Some(80)),
            (Door::Raw(Protocol::Tcp, 5432), Some(5432)),
            (Door::Raw(Protocol::Udp, 53), None),
        ] {
            assert_eq!(port_of(door), want, "{door:?}");
        }
    }

    #[test]
    fn a_host_or_a_machine_is_asked_once() {
        let mut asked = Asked::default();
        let (one, two) = (target(1, "fra", 0, true), target(2, "fra", 0, true));
        let order = |machine: Option<MachineId>| Order {
            from: HostId::from_bits(1),
            app: AppKey { org: "personal".parse().unwrap(), name: "web".parse().unwrap() },
            public_port: 80,
            wait: Duration::ZERO,
            machine,
            ends: None,
        };
        asked.note(&order(Some(one.record.id.clone())), &one, Cause::Full);
        assert_eq!((asked.leaves(&one), asked.leaves(&two)), (false, true));
        asked.note(&order(None), &one, Cause::HostAway);
        assert!(!asked.leaves(&two), "the whole host has said no");
        assert_eq!(asked.cause(Cause::NoMachine), Cause::HostAway);
        assert_eq!(asked.cause(Cause::WakeFailed), Cause::WakeFailed, "this host's own word");
        assert_eq!(Asked::default().cause(Cause::NoMachine), Cause::NoMachine);
    }
}
