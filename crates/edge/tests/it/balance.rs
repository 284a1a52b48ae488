//! Which machine gets a request, and requests that wait for a place.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use perch_edge::Limits;
use perch_types::directory::MachineRecord;
use perch_types::{MachineId, MachineState};

use crate::world::{OK, Origin, World, machine, read_head, status, until};

fn limited(id: u64, origin: &Origin, limits: serde_json::Value) -> MachineRecord {
    crate::world::limited(machine(id, "web", MachineState::Started, origin.port), limits)
}

fn with(world: &World, fields: &str) -> String {
    let head = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n";
    world.raw(format!("{head}{fields}\r\n\r\n").as_bytes())
}

#[test]
fn a_request_waits_for_a_place_and_no_longer_than_its_time() {
    let gate = Arc::new(AtomicBool::new(false));
    let origin = Origin::gated(&gate);
    let one = limited(1, &origin, serde_json::json!({"type": "requests", "hard_limit": 1}));
    let limits = Limits { queue: Duration::from_millis(600), queue_max: 1, ..Limits::default() };
    let world = World::with(vec![one], limits);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.get("web", "/slow"));
        until("the slow one is there", || origin.count() == 1);
        let late = world.get("web", "/");
        assert!(status(&late) == "503" && late.contains("PR03"), "{late}");
        assert!(late.contains("retry-after: 1"), "{late}");
        let waiting = scope.spawn(|| world.get("web", "/"));
        gate.store(true, Ordering::SeqCst);
        assert_eq!(status(&slow.join().unwrap()), "200");
        assert_eq!(status(&waiting.join().unwrap()), "200");
    });
    assert_eq!(origin.count(), 2, "the late one was never sent");
}

#[test]
fn many_that_wait_get_one_place_one_after_the_other() {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (high, count) = (Arc::clone(&most), Arc::clone(&now));
    let origin = Origin::new(move |_| {
        let here = count.fetch_add(1, Ordering::SeqCst) + 1;
        high.fetch_max(here, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(3));
        count.fetch_sub(1, Ordering::SeqCst);
        OK.to_owned()
    });
    let one = limited(1, &origin, serde_json::json!({"type": "requests", "hard_limit": 2}));
    let world = World::new(vec![one]);
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| assert_eq!(status(&world.get("web", "/")), "200"));
        }
    });
    assert_eq!(origin.count(), 60);
    assert!(most.load(Ordering::SeqCst) <= 2, "never above the wall");
}

#[test]
fn an_open_connection_counts_where_connections_do() {
    let origin = Origin::fine();
    for (kind, want) in [("connections", "503"), ("requests", "200")] {
        let limits = serde_json::json!({"type": kind, "hard_limit": 1});
        let limits_of_edge = Limits { queue_max: 0, ..Limits::default() };
        let world = World::with(vec![limited(1, &origin, limits)], limits_of_edge);
        let mut first = world.connect();
        let mut ok = [0; 2];
        for _ in 0..2 {
            first.write_all(b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
            assert_eq!(status(&read_head(&mut first).unwrap()), "200", "it has its place");
            first.read_exact(&mut ok).unwrap();
        }
        assert_eq!(status(&world.get("web", "/")), want, "{kind}");
        drop(first);
        until("its place is free", || status(&world.get("web", "/")) == "200");
    }
}

#[test]
fn a_clients_connection_has_the_machines_for_itself_only_where_connections_count() {
    for (kind, want) in [("connections", 2), ("requests", 1)] {
        let origin = Origin::fine();
        let world = World::new(vec![limited(1, &origin, serde_json::json!({ "type": kind }))]);
        let (mut one, mut two) = (world.connect(), world.connect());
        let mut ok = [0; 2];
        for _ in 0..3 {
            for stream in [&mut one, &mut two] {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n").unwrap();
                assert_eq!(status(&read_head(stream).unwrap()), "200");
                stream.read_exact(&mut ok).unwrap();
            }
        }
        assert_eq!(origin.connections.load(Ordering::SeqCst), want, "{kind}");
    }
}

#[test]
fn a_request_goes_where_its_fields_say() {
    let (one, two) = (Origin::fine(), Origin::fine());
    let mut far = machine(2, "web", MachineState::Started, two.port);
    far.region = "fra".parse().unwrap();
    let world = World::new(vec![machine(1, "web", MachineState::Started, one.port), far]);
    let (first, second) = (MachineId::from_bits(1), MachineId::from_bits(2));
    for (fields, want) in [
        (format!("fly-force-instance-id: {second}"), Some((0, 4))),
        (format!("fly-force-instance-id: {first}"), Some((4, 0))),
        (format!("fly-prefer-instance-id: {second}"), Some((0, 4))),
        ("fly-prefer-region: fra".to_owned(), Some((0, 4))),
        ("fly-force-region: us,fra".to_owned(), Some((0, 4))),
        ("fly-force-region: us".to_owned(), None),
        ("fly-force-instance-id: 00000000000009".to_owned(), None),
    ] {
        let before = (one.count(), two.count());
        let mut answer = String::new();
        for _ in 0..4 {
            answer = with(&world, &fields);
        }
        let now = (one.count() - before.0, two.count() - before.1);
        match want {
            Some(want) => assert_eq!(now, want, "{fields}"),
            None => {
                assert!(status(&answer) == "404" && now == (0, 0), "{fields}: {answer}");
            }
        }
    }
    with(&world, "fly-prefer-instance-id: 00000000000009");
    let seen = [&one, &two].map(|origin| origin.last.lock().unwrap().clone()).concat();
    assert!(seen.contains("fly-preferred-instance-unavailable: 00000000000009\r\n"), "{seen}");
    with(
        &world,
        &format!("fly-prefer-instance-id: {first}\r\nfly-preferred-instance-unavailable: x"),
    );
    let seen = one.last.lock().unwrap().clone();
    assert!(!seen.contains("fly-preferred-instance-unavailable"), "{seen}");
}

#[test]
fn a_machine_that_is_asked_for_is_woken() {
    let (one, two) = (Origin::fine(), Origin::fine());
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, one.port),
        machine(2, "web", MachineState::Stopped, two.port),
    ]);
    let answer = with(&world, "fly-force-instance-id: 00000000000002");
    assert_eq!(status(&answer), "200", "{answer}");
    assert_eq!((one.count(), two.count()), (0, 1));
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 1);
}

#[test]
fn a_session_stays_with_one_machine_until_that_is_gone() {
    let origins = [Origin::fine(), Origin::fine(), Origin::fine()];
    let machines = origins.iter().zip(1..).map(|(origin, id)| {
        let mut record = machine(id, "web", MachineState::Started, origin.port);
        record.services = serde_json::from_value(serde_json::json!([{
            "internal_port": origin.port,
            "ports": [{"port": 80, "handlers": ["http"],
                "http_options": {"sticky": {"type": "cookie", "name": "sid"}}}],
            "concurrency": {"type": "requests"},
        }]))
        .unwrap();
        record
    });
    let world = World::new(machines.collect());
    let counts = || origins.each_ref().map(Origin::count);
    let mut used = [false; 3];
    for session in 0..12 {
        let before = counts();
        for _ in 0..4 {
            let answer = with(&world, &format!("Cookie: a=b; sid=s{session}"));
            assert_eq!(status(&answer), "200", "{answer}");
        }
        let now = counts();
        let got: Vec<usize> = (0..3).filter(|at| now[*at] > before[*at]).collect();
        assert_eq!(got.len(), 1, "session {session}: {before:?} {now:?}");
        used[got[0]] = true;
    }
    assert!(used.iter().filter(|used| **used).count() > 1, "they are spread");
    world.host.set(&MachineId::from_bits(1), MachineState::Failed, false);
    until("nothing goes to the one that is gone", || {
        let before = origins[0].count();
        (0..12).for_each(|session| drop(with(&world, &format!("Cookie: sid=s{session}"))));
        origins[0].count() == before
    });
    assert_eq!(status(&with(&world, "Cookie: sid=s0")), "200");
}

#[test]
fn a_client_that_does_not_end_its_body_takes_no_machine_out() {
    let (one, two) = (Origin::new(silent), Origin::fine());
    let head = "POST / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n";
    // Five of those that the machine does not answer although they were said whole wake another.
    for (length, starts) in [(10, 0), (1, 1)] {
        let world = World::with(
            vec![
                machine(1, "web", MachineState::Started, one.port),
                machine(2, "web", MachineState::Stopped, two.port),
            ],
            Limits { answer: Duration::from_secs(1), ..Limits::default() },
        );
        for _ in 0..5 {
            let request = format!("{head}Content-Length: {length}\r\n\r\na");
            let answer = world.raw(request.as_bytes());
            assert!(status(&answer).starts_with(['4', '5']), "{answer}");
        }
        assert_eq!(status(&world.get("web", "/fine")), "200");
        assert_eq!(world.host.starts.load(Ordering::SeqCst), starts, "{length}");
    }
}

/// Answers late but what is fine.
fn silent(head: &str) -> String {
    if !head.contains("/fine") {
        std::thread::sleep(Duration::from_secs(4));
    }
    OK.to_owned()
}

#[test]
fn clients_that_ask_for_errors_take_no_machine_from_others() {
    let broken = Origin::new(|head| {
        let status = if head.contains("/bad") { "500 No" } else { "200 OK" };
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
    });
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, broken.port),
        machine(2, "web", MachineState::Stopped, 1),
    ]);
    assert_eq!(status(&world.get("web", "/")), "200");
    for _ in 0..20 {
        assert_eq!(status(&world.get("web", "/bad")), "500");
    }
    assert_eq!(status(&world.get("web", "/")), "200");
    assert_eq!(world.host.starts.load(Ordering::SeqCst), 0, "none was woken for it");
}

#[test]
fn a_machine_that_only_fails_is_left_out_while_another_answers() {
    let broken = Origin::new(|_| {
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_owned()
    });
    let fine = Origin::fine();
    let world = World::new(vec![
        machine(1, "web", MachineState::Started, broken.port),
        machine(2, "web", MachineState::Started, fine.port),
    ]);
    until("it has failed often enough", || {
        world.get("web", "/");
        broken.count() >= 5
    });
    for _ in 0..8 {
        assert_eq!(status(&world.get("web", "/")), "200");
    }
    assert_eq!(broken.count(), 5);
    // The last one is never left out.
    world.host.set(&MachineId::from_bits(2), MachineState::Failed, false);
    until("the broken one is asked again", || status(&world.get("web", "/")) == "500");
}
