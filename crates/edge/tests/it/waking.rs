//! Machines that do not run when a request comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use perch_edge::Limits;
use perch_types::MachineState;

use crate::world::{OnStart, Origin, World, machine, status, until};

fn short() -> Limits {
    Limits { hold: Duration::from_millis(600), ..Limits::default() }
}

#[test]
fn sleeping_machines_of_every_kind_are_woken() {
    for state in [MachineState::Created, MachineState::Stopped, MachineState::Suspended] {
        let origin = Origin::fine();
        let world = World::new(vec![machine(1, "web", state, origin.port)]);
        assert_eq!(status(&world.get("web", "/")), "200", "{state:?}");
        assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn fifty_requests_start_a_machine_once() {
    let origin = Origin::fine();
    let world = World::new(vec![machine(1, "web", MachineState::Stopped, origin.port)]);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert_eq!(status(&world.get("web", "/")), "200"));
        }
    });
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
    assert_eq!(origin.count(), 50);
}

#[test]
fn a_start_whose_answer_is_lost_is_asked_for_again_and_nobody_is_refused() {
    let origin = Origin::fine();
    let world = World::new(vec![machine(1, "web", MachineState::Stopped, origin.port)]);
    *world.host.on_start.lock().unwrap() = OnStart::LostOnce;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(status(&world.get("web", "/")), "200"));
        }
    });
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 2);
}

#[test]
fn a_refused_start_is_a_503() {
    let world = World::new(vec![machine(1, "web", MachineState::Stopped, 1)]);
    *world.host.on_start.lock().unwrap() = OnStart::Refused;
    let answer = world.get("web", "/");
    assert!(status(&answer) == "503" && answer.contains("PM07"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("retry-after: 5"), "{answer}");
}

#[test]
fn a_refused_start_is_tried_on_the_next_machine_and_503_only_when_none_is_left() {
    let origin = Origin::fine();
    let asleep = |id| machine(id, "web", MachineState::Stopped, origin.port);
    let world = World::new((1..=4).map(asleep).collect());
    let refuse = |id| {
        let id = perch_types::MachineId::from_bits(id);
        world.host.on_start_of.lock().unwrap().insert(id, OnStart::Refused);
    };
    (1..=3).for_each(refuse);
    // More of them than a program that ends at once is started.
    let answer = world.get("web", "/");
    assert_eq!(status(&answer), "200", "{answer}");
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 4);
    world.host.set(&perch_types::MachineId::from_bits(4), MachineState::Failed, false);
    until("the edge has heard of it", || world.get("web", "/").contains("PM07"));
}

#[test]
fn machines_over_their_soft_limit_have_another_started_and_nobody_waits_for_it() {
    let (gate, origin) = (Arc::new(AtomicBool::new(false)), Origin::fine());
    let wait = Arc::clone(&gate);
    let busy = Origin::new(move |head| {
        if head.contains("/slow") {
            until("the gate opens", || wait.load(Ordering::SeqCst));
        }
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
    });
    let mut first = machine(1, "web", MachineState::Started, busy.port);
    first.services[0].concurrency =
        serde_json::from_str(r#"{"type": "requests", "soft_limit": 1}"#).unwrap();
    let world = World::new(vec![first, machine(2, "web", MachineState::Stopped, origin.port)]);
    *world.host.on_start.lock().unwrap() = OnStart::NeverReady;
    assert_eq!(status(&world.get("web", "/")), "200");
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0, "it is under its limit");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.get("web", "/slow"));
        until("the slow one is there", || busy.count() == 2);
        // Answered by the one that runs: the other never gets ready.
        assert_eq!(status(&world.get("web", "/")), "200");
        until("another is started", || world.host.starts.load(Ordering::SeqCst) == 1);
        until("it has its share", || {
            world.host.set(&perch_types::MachineId::from_bits(2), MachineState::Started, true);
            world.get("web", "/");
            origin.count() > 0
        });
        gate.store(true, Ordering::SeqCst);
        assert_eq!(status(&slow.join().unwrap()), "200");
    });
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
}

#[test]
fn an_app_that_does_not_get_up_leaves_places_to_others() {
    let origin = Origin::fine();
    let limits = Limits { held_app_max: 1, ..Limits::default() };
    let world = World::with(
        vec![
            machine(1, "web", MachineState::Stopped, 1),
            machine(2, "other", MachineState::Stopped, origin.port),
        ],
        limits,
    );
    let deaf = perch_types::MachineId::from_bits(1);
    world.host.on_start_of.lock().unwrap().insert(deaf.clone(), OnStart::NeverReady);
    let readings = world.readings();
    let held = |app: &str| {
        let name = format!("perch_app_held_requests{{app=\"{app}\"");
        let text = readings.text();
        let line = text.lines().find(|line| line.starts_with(&name)).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| world.get("web", "/"));
        until("one waits", || held("web") == "1");
        let second = world.get("web", "/");
        assert!(status(&second) == "503" && second.contains("PR04"), "{second}");
        assert_eq!(status(&world.get("other", "/")), "200");
        until("it does not start any more", || {
            world.host.set(&deaf, MachineState::Failed, false);
            first.is_finished()
        });
        assert_eq!(status(&first.join().unwrap()), "503");
    });
    assert_eq!((held("web").as_str(), held("other").as_str()), ("0", "0"));
}

#[test]
fn a_program_that_ends_at_once_is_started_twice_and_no_more() {
    let world = World::new(vec![machine(1, "web", MachineState::Stopped, 1)]);
    *world.host.on_start.lock().unwrap() = OnStart::Exits;
    let began = Instant::now();
    let answer = world.get("web", "/");
    assert!(status(&answer) == "502" && answer.contains("PM01"), "{answer}");
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 2);
    // All news came before the start was accepted: none may be waited for.
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_machine_that_never_listens_holds_a_request_until_the_deadline() {
    let world = World::with(vec![machine(1, "web", MachineState::Stopped, 1)], short());
    *world.host.on_start.lock().unwrap() = OnStart::NeverReady;
    let began = Instant::now();
    let answer = world.get("web", "/");
    assert!(status(&answer) == "502" && answer.contains("PC01"), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
}

#[test]
fn a_machine_that_no_request_may_start_is_left_alone() {
    let mut manual = machine(1, "web", MachineState::Stopped, 1);
    manual.services[0].autostart = Some(false);
    let world = World::new(vec![manual]);
    let answer = world.get("web", "/");
    assert!(status(&answer) == "503" && answer.contains("PM08"), "{answer}");
    assert!(world.get("empty", "/").contains("PR01"));
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0);
}

#[test]
fn more_requests_than_may_be_held_are_turned_away() {
    let limits = Limits { held_max: 0, ..Limits::default() };
    let world = World::with(vec![machine(1, "web", MachineState::Stopped, 1)], limits);
    let answer = world.get("web", "/");
    assert!(status(&answer) == "503" && answer.contains("PR04"), "{answer}");
}

/// A port at which nobody listens until [`Later::listen`].
struct Later {
    runtime: tokio::runtime::Runtime,
    socket: tokio::net::TcpSocket,
    port: u16,
}

impl Later {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let guard = runtime.enter();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(guard);
        Self { runtime, socket, port }
    }

    fn listen(self) -> Origin {
        let guard = self.runtime.enter();
        let listener = self.socket.listen(64).unwrap().into_std().unwrap();
        listener.set_nonblocking(false).unwrap();
        drop(guard);
        Origin::on(listener, |_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned())
    }
}

fn post(world: &World) -> String {
    world.raw(
        b"POST / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\
          Content-Length: 3\r\n\r\nabc",
    )
}

#[test]
fn a_machine_that_has_just_stopped_is_woken_although_it_still_counted_as_ready() {
    let later = Later::new();
    let world = World::new(vec![machine(1, "web", MachineState::Started, later.port)]);
    std::thread::scope(|scope| {
        let requests: Vec<_> = (0..4)
            .map(|number| {
                let world = &world;
                scope.spawn(
                    move || if number % 2 == 0 { world.get("web", "/") } else { post(world) },
                )
            })
            .collect();
        // Each was refused by then; the news comes after.
        std::thread::sleep(Duration::from_millis(100));
        let origin = later.listen();
        world.host.set(&perch_types::MachineId::from_bits(1), MachineState::Stopped, false);
        for request in requests {
            let answer = request.join().unwrap();
            assert_eq!(status(&answer), "200", "{answer}");
        }
        assert_eq!(origin.count(), 4, "each came once");
    });
    assert!(world.host.starts.load(Ordering::SeqCst) <= 1);
}

#[test]
fn a_program_that_listens_again_at_once_gets_the_request_without_any_news() {
    let later = Later::new();
    let world = World::new(vec![machine(1, "web", MachineState::Started, later.port)]);
    std::thread::scope(|scope| {
        let request = scope.spawn(|| post(&world));
        std::thread::sleep(Duration::from_millis(100));
        let origin = later.listen();
        assert_eq!(status(&request.join().unwrap()), "200");
        assert_eq!(origin.count(), 1);
    });
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0);
}

#[test]
fn a_machine_that_runs_and_never_listens_holds_no_sleeping_sibling_back() {
    let origin = Origin::fine();
    let mut deaf = machine(1, "web", MachineState::Started, 1);
    deaf.ready = false;
    let world = World::new(vec![deaf, machine(2, "web", MachineState::Stopped, origin.port)]);
    let began = Instant::now();
    let answer = world.get("web", "/");
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
}
