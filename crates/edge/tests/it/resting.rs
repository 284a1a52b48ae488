//! Machines that nothing uses: what the edge says of them, and what it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perch_edge::Limits;
use perch_types::directory::MachineRecord;
use perch_types::host::MachineLoad;
use perch_types::service::Autostop;
use perch_types::{MachineId, MachineState, OrgSlug};

use crate::world::{OK, Origin, World, machine, status, until};

fn may_rest(state: MachineState, port: u16) -> MachineRecord {
    let mut record = machine(1, "web", state, port);
    record.services[0].autostop = Some(Autostop::Stop);
    record
}

fn id() -> MachineId {
    MachineId::from_bits(1)
}

/// An origin that answers once it is told to.
fn slow() -> (Origin, Arc<AtomicBool>) {
    let is_open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&is_open);
    let origin = Origin::new(move |_| {
        until("the answer may go", || gate.load(Ordering::SeqCst));
        OK.to_owned()
    });
    (origin, is_open)
}

#[test]
fn the_host_hears_what_is_under_way_and_that_it_has_ended() {
    let (origin, is_open) = slow();
    let world = World::new(vec![may_rest(MachineState::Started, origin.port)]);
    let heard = |in_flight, peak| {
        let want = MachineLoad { id: id(), in_flight, peak };
        world.host.loads.lock().unwrap().iter().any(|loads| loads.machines.contains(&want))
    };
    until("it has said everything", || !world.host.loads.lock().unwrap().is_empty());
    let (is_all, edge) = {
        let loads = world.host.loads.lock().unwrap();
        (loads[0].all, loads[0].edge)
    };
    assert!(is_all, "the first time it is all");
    std::thread::scope(|scope| {
        let request = scope.spawn(|| world.get("web", "/"));
        until("it says that one is under way", || heard(1, 1));
        assert!(!heard(0, 1));
        is_open.store(true, Ordering::SeqCst);
        assert_eq!(status(&request.join().unwrap()), "200");
    });
    until("it says that it has ended", || heard(0, 1));
    // A host that comes back hears everything again.
    world.host.loads.lock().unwrap().clear();
    world.host.hang_up();
    until("it has said everything again", || {
        world.host.loads.lock().unwrap().iter().any(|loads| loads.all && loads.edge == edge)
    });
}

#[test]
fn what_the_host_did_not_hear_it_hears_again_and_nothing_else() {
    let (origin, is_open) = slow();
    let world = World::new(vec![may_rest(MachineState::Started, origin.port)]);
    until("it has said everything", || !world.host.loads.lock().unwrap().is_empty());
    world.host.loads_lost.store(1, Ordering::SeqCst);
    let heard = || -> Vec<(bool, Vec<MachineLoad>)> {
        let loads = world.host.loads.lock().unwrap();
        loads.iter().map(|loads| (loads.all, loads.machines.clone())).collect()
    };
    std::thread::scope(|scope| {
        let request = scope.spawn(|| world.get("web", "/"));
        until("it says again that one is under way", || heard().len() > 1);
        let told = vec![MachineLoad { id: id(), in_flight: 1, peak: 1 }];
        assert_eq!(heard()[1], (false, told));
        assert_eq!(world.host.loads_lost.load(Ordering::SeqCst), 0);
        is_open.store(true, Ordering::SeqCst);
        assert_eq!(status(&request.join().unwrap()), "200");
    });
}

#[test]
fn a_machine_is_unused_only_when_nothing_is_under_way_and_gets_nothing_after_that() {
    let (origin, is_open) = slow();
    let world = World::new(vec![may_rest(MachineState::Started, origin.port)]);
    std::thread::scope(|scope| {
        let request = scope.spawn(|| world.get("web", "/"));
        until("the request is under way", || origin.count() == 1);
        assert!(!world.host.is_unused(&id()));
        is_open.store(true, Ordering::SeqCst);
        assert_eq!(status(&request.join().unwrap()), "200");
    });
    // Nothing was closed.
    assert_eq!(status(&world.get("web", "/")), "200");
    until("nothing is under way", || world.host.is_unused(&id()));
    let before = origin.count();
    std::thread::scope(|scope| {
        let request = scope.spawn(|| world.get("web", "/"));
        // The host changes its mind.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(origin.count(), before);
        world.host.set(&id(), MachineState::Started, true);
        assert_eq!(status(&request.join().unwrap()), "200");
    });
    until("nothing is under way again", || world.host.is_unused(&id()));
    let before = origin.count();
    std::thread::scope(|scope| {
        let requests: Vec<_> = (0..4).map(|_| scope.spawn(|| world.get("web", "/"))).collect();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(origin.count(), before, "nothing comes after the gate was closed");
        for state in [MachineState::Stopping, MachineState::Stopped] {
            world.host.set(&id(), state, false);
        }
        for request in requests {
            assert_eq!(status(&request.join().unwrap()), "200");
        }
    });
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1, "they woke it again");
}

#[test]
fn a_machine_of_which_the_host_says_nothing_more_goes_on() {
    let origin = Origin::fine();
    let world = World::new(vec![may_rest(MachineState::Started, origin.port)]);
    assert!(world.host.is_unused(&id()));
    // Held for a while, and then answered by the same machine.
    assert_eq!(status(&world.get("web", "/")), "200");
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0);
}

#[test]
fn what_was_counted_is_read_as_prometheus_does() {
    let origin = Origin::fine();
    let limits = Limits { access_per_s: 0, ..Limits::default() };
    let world = World::with(vec![may_rest(MachineState::Stopped, origin.port)], limits);
    let (readings, org) = (world.readings(), OrgSlug::personal());
    let web = "web".parse().unwrap();
    assert_eq!(readings.wake_times(&org, &web), None);
    for _ in 0..3 {
        assert_eq!(status(&world.get("web", "/")), "200");
    }
    assert_eq!(status(&world.get("empty", "/")), "503");
    let woken = readings.wake_times(&org, &web).unwrap();
    // It takes the played host 70 ms.
    assert!(woken.count == 1 && woken.p50_ms >= 50, "{woken:?}");
    let host = perch_types::HostId::from_bits(1);
    let at = format!("region=\"ams\",host=\"{host}\"");
    let app = format!("{{app=\"web\",org=\"personal\",{at},proxy_id=\"{host}\"");
    let instance =
        format!("{{app=\"web\",org=\"personal\",{at},instance=\"{}\",proxy_id=\"{host}\"", id());
    let nobody = format!("{{app=\"\",org=\"\",{at},proxy_id=\"{host}\"");
    for line in [
        format!("fly_edge_http_responses_count{app},status=\"200\"}} 3"),
        format!("fly_edge_http_response_time_seconds_count{app}}} 3"),
        format!("fly_edge_http_response_time_seconds_bucket{app},le=\"+Inf\"}} 3"),
        format!("fly_edge_data_out{app}}} 6"),
        format!("fly_edge_data_in{app}}} 0"),
        format!("perch_app_wake_seconds_count{app}}} 1"),
        format!("fly_app_concurrency{instance}}} 0"),
        format!("fly_instance_up{instance}}} 1"),
        format!("fly_app_http_responses_count{instance},status=\"200\"}} 3"),
        format!("fly_app_http_response_time_seconds_count{instance}}} 3"),
        format!("perch_edge_held_requests{nobody}}} 0"),
    ] {
        until(&line, || readings.text().lines().any(|it| it == line));
    }
    let of_nobody = format!("fly_edge_http_responses_count{nobody},status=\"503\"}} ");
    until(&of_nobody, || readings.text().lines().any(|it| it.starts_with(&of_nobody)));
    let text = readings.text();
    // The text is one: every name is declared once, before its series.
    let mut declared = std::collections::BTreeSet::new();
    for line in text.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(rest) => assert!(declared.insert(rest.split(' ').next().unwrap()), "{line}"),
            None if line.starts_with('#') => {}
            None => {
                let name = line.split('{').next().unwrap();
                let base =
                    ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(*it));
                assert!(declared.contains(name) || declared.contains(base.unwrap()), "{line}");
            }
        }
    }
}
