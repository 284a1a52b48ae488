//! What is told of requests, when, and whom: events, numbers, lines in apps' logs. And who watches
//! that it goes on.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};

use perch_edge::Limits;
use perch_types::consumed::MachineConsumed;
use perch_types::directory::{Generation, VolumeRecord};
use perch_types::host::EdgeNote;
use perch_types::volume::{VolumeState, VolumeUsage};
use perch_types::{HostId, MachineId, MachineState, OrgSlug, Timestamp, VolumeId};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::replaying::Reader;
use crate::tls::gated;
use crate::world::{OK, OnStart, Origin, World, machine, read_head, status, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n";

/// Returns what is counted of the app's answers with a status.
fn answers(world: &World, status: u16) -> u64 {
    let text = world.readings().text();
    let mut lines = text.lines().filter(|line| {
        line.starts_with("fly_edge_http_responses_count{app=\"web\"")
            && line.contains(&format!("status=\"{status}\""))
    });
    lines.next().map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Events of the access log of all worlds of this process.
static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Kept;

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "access"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        EVENTS.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

pub(crate) fn keep_events() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Kept).unwrap());
}

/// Returns the event of the request that an answer's head names, if there is one.
pub(crate) fn event(head: &str) -> Option<String> {
    let head = head.to_ascii_lowercase();
    let (_, rest) = head.split_once("fly-request-id: ").unwrap();
    let id = rest.split("\r\n").next().unwrap().to_owned();
    let events = EVENTS.lock().unwrap();
    events.iter().find(|event| event.to_ascii_lowercase().contains(&id)).cloned()
}

#[test]
fn an_event_says_what_became_of_a_request_and_which_machine_had_it() {
    keep_events();
    let origin = Origin::fine();
    let world = World::web(&origin);
    let answer = world.get("web", "/secret?of=the-client");
    until("the event is written", || event(&answer).is_some());
    let event = event(&answer).unwrap();
    for part in [
        "method=GET",
        "protocol=\"http/1.1\"",
        "tls=false",
        "app=\"web\"",
        &format!("machine=\"{}\"", MachineId::from_bits(1)),
        "status=200",
        "bytes_in=0",
        "bytes_out=2",
        "end=\"whole\"",
    ] {
        assert!(event.contains(part), "{part}: {event}");
    }
    assert!(!event.contains("secret"), "{event}");
}

#[test]
fn what_a_client_sends_of_a_body_is_told_and_counted() {
    keep_events();
    let reader = Reader::new(|_| OK.to_owned());
    let world = World::new(vec![machine(1, "web", MachineState::Started, reader.port)]);
    let answer = world.raw(
        b"POST / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\
          Content-Length: 3\r\n\r\nabc",
    );
    assert_eq!(status(&answer), "200", "{answer}");
    until("the event is written", || event(&answer).is_some());
    let event = event(&answer).unwrap();
    assert!(event.contains("bytes_in=3 ") && event.contains("bytes_out=2 "), "{event}");
    let text = world.readings().text();
    let of_web = |line: &&str| line.starts_with("fly_edge_data_in{app=\"web\"");
    let line = text.lines().find(of_web).unwrap();
    assert!(line.ends_with("} 3"), "{line}");
}

#[test]
fn a_tunnel_is_told_of_at_its_end_with_all_that_passed() {
    keep_events();
    let origin = Origin::new(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_owned()
    });
    let world = World::web(&origin);
    let mut stream = world.connect();
    let ask = format!("{GET}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    stream.write_all(ask.as_bytes()).unwrap();
    let head = read_head(&mut stream).unwrap();
    assert_eq!(status(&head), "101", "{head}");
    stream.write_all(b"hello").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!((&echo, answers(&world, 101), event(&head)), (b"HELLO", 0, None));
    drop(stream);
    until("the tunnel is counted", || answers(&world, 101) == 1);
    until("the event is written", || event(&head).is_some());
    let event = event(&head).unwrap();
    for part in ["status=101", "bytes_in=5", "bytes_out=5", "end=\"whole\""] {
        assert!(event.contains(part), "{part}: {event}");
    }
}

#[test]
fn a_client_that_leaves_before_the_answer_is_counted() {
    let (origin, gate) = gated();
    let world = World::web(&origin);
    let mut stream = world.connect();
    stream.write_all(format!("{GET}\r\n").as_bytes()).unwrap();
    until("the request is at the app", || origin.count() == 1);
    drop(stream);
    until("it is counted", || answers(&world, 499) == 1);
    gate.store(true, Ordering::SeqCst);
    assert_eq!(status(&world.get("web", "/")), "200");
    until("others are counted as ever", || answers(&world, 200) == 1);
    assert_eq!(answers(&world, 499), 1);
}

#[test]
fn e5_an_app_has_so_many_plain_connections() {
    let origin = Origin::fine();
    let limits = Limits { app_connections_max: 1, ..Limits::default() };
    let machines = vec![
        machine(1, "web", MachineState::Started, origin.port),
        machine(2, "other", MachineState::Started, origin.port),
    ];
    let world = World::with(machines, limits);
    let mut first = world.connect();
    let mut ask = |host: &str| {
        let text = format!("GET / HTTP/1.1\r\nHost: {host}.perch.localhost\r\n\r\n");
        first.write_all(text.as_bytes()).unwrap();
        let head = read_head(&mut first).unwrap();
        first.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(status(&head), "200", "{head}");
    };
    ask("web");
    let second = world.get("web", "/").to_ascii_lowercase();
    assert!(status(&second) == "503" && second.contains("pr07"), "{second}");
    assert!(second.contains("connection: close"), "{second}");
    // A request more over a connection that is counted takes no place.
    ask("web");
    assert_eq!(status(&world.get("other", "/")), "200");
    until("that connection has ended", || {
        world.readings().text().lines().any(|line| {
            line.starts_with("perch_app_connections{app=\"other\"") && line.ends_with(" 0")
        })
    });
    // Over which another app is asked for is that one's.
    ask("other");
    assert_eq!(status(&world.get("web", "/")), "200");
    drop(first);
    until("there is room again", || status(&world.get("other", "/")) == "200");
}

fn volume(bits: u128, host: u64) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId::from_bits(bits),
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        app_id: "web".to_owned(),
        name: "data".to_owned(),
        host: HostId::from_bits(host),
        region: "ams".parse().unwrap(),
        generation: Generation::default(),
        state: VolumeState::Created,
        size_gb: 2,
        attached: Some(MachineId::from_bits(1)),
        usage: VolumeUsage { blocks: 200, block_size: 4096, blocks_free: 100, blocks_avail: 50 },
        snapshot_retention: 5,
        auto_backup: true,
        copies: false,
        snapshot_error: None,
        destroy_at: None,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn volumes_of_this_server_and_their_machines_have_their_numbers() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let (here, elsewhere) = (volume(1, 1), volume(2, 2));
    world.put_volume(&elsewhere);
    world.put_volume(&here);
    let number = |name: &str, of: &str| {
        let text = world.readings().text();
        let mut found = text.lines().filter(|line| line.starts_with(name) && line.contains(of));
        found.next().map(|line| line.rsplit(' ').next().unwrap().to_owned())
    };
    let (id, other) = (here.id.as_str(), elsewhere.id.as_str());
    until("the volume is known", || number("fly_volume_size_bytes", id).is_some());
    assert_eq!(number("fly_volume_size_bytes", id).unwrap(), (2_u64 << 30).to_string());
    assert_eq!(number("fly_volume_used_pct", id).unwrap(), "75");
    assert_eq!(number("fly_volume_size_bytes", other), None);
    let machine = MachineId::from_bits(1);
    let memory = number("fly_instance_memory_mem_total", machine.as_str()).unwrap();
    assert_eq!(memory, (256 << 20).to_string());
}

#[test]
fn machines_have_the_numbers_that_their_host_says_of_them() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let used = |id: u64| MachineConsumed {
        id: MachineId::from_bits(id),
        cpu_user_us: 1_230_000,
        cpu_system_us: 40_000,
        throttled_us: 9_999,
        memory_bytes: 56 << 20,
        received_bytes: 100,
        received_packets: 2,
        sent_bytes: 50,
        sent_packets: 1,
    };
    // One of them is not the edge's to tell of.
    let text = world.readings().text_with(&[used(1), used(99)]);
    let id = MachineId::from_bits(1);
    let said = |name: &str, label: &str| {
        let start = format!("{name}{{");
        let mut lines =
            text.lines().filter(|line| line.starts_with(&start) && line.contains(label));
        let line = lines.next().unwrap_or_else(|| panic!("{name} {label}: {text}"));
        assert!(line.contains(&format!("instance=\"{id}\"")) && lines.next().is_none(), "{line}");
        line.rsplit(' ').next().unwrap().to_owned()
    };
    for (name, label, want) in [
        ("fly_instance_cpu", "mode=\"user\"", 123),
        ("fly_instance_cpu", "mode=\"system\"", 4),
        ("fly_instance_cpu_throttle", "", 0),
        ("fly_instance_memory_mem_free", "", 200 << 20),
        ("fly_instance_net_recv_bytes", "device=\"eth0\"", 100),
        ("fly_instance_net_recv_packets", "", 2),
        ("fly_instance_net_sent_bytes", "", 50),
        ("fly_instance_net_sent_packets", "", 1),
    ] {
        assert_eq!(said(name, label), want.to_string(), "{name}");
    }
    assert_eq!(text.matches("# TYPE fly_instance_cpu counter").count(), 1, "{text}");
}

#[test]
fn an_apps_log_says_why_the_edge_answered() {
    let world = World::new(vec![machine(1, "web", MachineState::Stopped, 1)]);
    *world.host.on_start.lock().unwrap() = OnStart::Refused;
    let told = || -> u64 {
        let notes = world.host.notes.lock().unwrap();
        let of_web = notes.iter().filter(|(id, _)| *id == MachineId::from_bits(1));
        let count = |note: &EdgeNote| {
            assert_eq!(note.code, "PM07");
            1 + note.left_out
        };
        of_web.map(|(_, note)| count(note)).sum()
    };
    for _ in 0..3 {
        assert_eq!(status(&world.get("web", "/")), "503");
    }
    until("the first is told", || told() > 0);
    // In another second there is room for one more, which says how many were left out.
    world.ahead_ms.fetch_add(5_000, Ordering::SeqCst);
    assert_eq!(status(&world.get("web", "/")), "503");
    until("all are told", || told() == 4);
    // Whose a request is not is told nobody.
    assert_eq!(status(&world.get("nothing", "/")), "404");
    assert_eq!(told(), 4);
}

#[test]
fn what_does_not_turn_any_more_is_found() {
    let origin = Origin::fine();
    let world = World::web(&origin);
    let nobody: [&str; 0] = [];
    assert_eq!(world.wedged(), nobody);
    let (blocked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for _ in 0..World::WORKERS {
        let (blocked, gate) = (Arc::clone(&blocked), Arc::clone(&gate));
        world.runtime.spawn(async move {
            blocked.fetch_add(1, Ordering::SeqCst);
            until("it may go on", || gate.load(Ordering::SeqCst));
        });
    }
    until("the runtime is stuck", || blocked.load(Ordering::SeqCst) == World::WORKERS);
    // What was shown until now is seen; from then on too much time has passed.
    assert_eq!(world.wedged(), nobody);
    world.ahead_ms.fetch_add(30_000, Ordering::SeqCst);
    // The loops turn by themselves.
    until("only what is stuck is found", || world.wedged() == ["machines", "loads", "raw ports"]);
    gate.store(true, Ordering::SeqCst);
    until("all of it turns again", || world.wedged().is_empty());
}
