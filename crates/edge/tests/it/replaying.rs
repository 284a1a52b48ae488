//! Requests that an app sends on to another machine.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use perch_types::directory::MachineRecord;
use perch_types::replays::ReplaySources;
use perch_types::{MachineId, MachineState, OrgSlug};

use crate::world::{OK, World, machine, read_head, replay, status, until};

/// What was asked: the head's first line and the body.
type Asked = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A program that reads bodies too, and keeps what it was asked.
pub(crate) struct Reader {
    pub(crate) port: u16,
    asked: Asked,
}

impl Reader {
    pub(crate) fn new(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::made(answer, true)
    }

    /// Answers before the body has come.
    fn early(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::made(answer, false)
    }

    fn made(answer: impl Fn(&str) -> String + Send + Sync + 'static, reads_bodies: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let reader = Self { port, asked: Arc::default() };
        let (asked, answer) = (Arc::clone(&reader.asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                std::thread::spawn(move || read(stream, &asked, answer.as_ref(), reads_bodies));
            }
        });
        reader
    }

    fn fine() -> Self {
        Self::new(|_| ok())
    }

    pub(crate) fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> (String, Vec<u8>) {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }
}

fn ok() -> String {
    OK.to_owned()
}

fn read(
    mut stream: TcpStream,
    asked: &Mutex<Vec<(String, Vec<u8>)>>,
    answer: &dyn Fn(&str) -> String,
    reads_bodies: bool,
) {
    while let Some(head) = read_head(&mut stream) {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        if reads_bodies && stream.read_exact(&mut body).is_err() {
            return;
        }
        let text = answer(&head);
        asked.lock().unwrap().push((head, body));
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

fn at(id: u64, app: &str, reader: &Reader) -> MachineRecord {
    machine(id, app, MachineState::Started, reader.port)
}

fn post(world: &World, path: &str, body: &[u8]) -> String {
    let mut stream = world.connect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\
         X-Tenant: 1\r\nFly-Replay-Src: instance=forged\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The edge may answer, and close, before all of it is sent.
    let _sent = stream.write_all(body);
    let mut answer = Vec::new();
    let _end = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_request_goes_on_whole_to_the_machine_that_is_named() {
    let second = Reader::fine();
    // The second has no other way to be asked: it belongs to another app.
    let sends = Reader::new(|_| replay("fly-replay: app=other;state=s1"));
    let world = World::new(vec![at(1, "web", &sends), at(2, "other", &second)]);
    let answer = post(&world, "/a?b=c", b"hello");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    assert!(!answer.contains("fly-replay"), "{answer}");
    let (head, body) = second.last();
    assert!(head.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{head}");
    assert_eq!(body, b"hello");
    let source =
        format!("fly-replay-src: instance={};region=ams;t=0;state=s1\r\n", MachineId::from_bits(1));
    assert!(head.contains(&source), "{head}");
    assert_eq!((sends.count(), second.count()), (1, 1));
}

#[test]
fn a_body_goes_on_although_the_first_machine_did_not_read_it() {
    let first = Reader::early(|_| replay("fly-replay: app=other"));
    let second = Reader::fine();
    let world = World::new(vec![at(1, "web", &first), at(2, "other", &second)]);
    let whole = vec![b'y'; 1024 * 1024];
    assert_eq!(status(&post(&world, "/", &whole)), "200");
    assert_eq!(second.last().1, whole);
}

#[test]
fn a_body_that_is_too_large_is_not_sent_again() {
    let first = Reader::new(|_| replay("fly-replay: app=other"));
    let second = Reader::fine();
    let world = World::new(vec![at(1, "web", &first), at(2, "other", &second)]);
    let answer = post(&world, "/", &vec![b'x'; 1024 * 1024 + 1]);
    assert!(status(&answer) == "502" && answer.contains("PA01"), "{answer}");
    assert_eq!(second.count(), 0);
}

#[test]
fn a_body_of_json_says_more() {
    let json = serde_json::json!({"app": "other", "region": "any", "transform": {
        "path": "/new", "delete_headers": ["x-gone"],
        "set_headers": [{"name": "x-tenant", "value": "7"}]}})
    .to_string();
    let first = Reader::new(move |_| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.fly.replay+json\r\n\
             Content-Length: {}\r\n\r\n{json}",
            json.len()
        )
    });
    let second = Reader::fine();
    let world = World::new(vec![at(1, "web", &first), at(2, "other", &second)]);
    assert_eq!(status(&post(&world, "/old", b"abc")), "200");
    let (head, body) = second.last();
    assert!(head.starts_with("POST /new HTTP/1.1\r\n") && body == b"abc", "{head}");
    assert!(head.contains("x-tenant: 7\r\n") && !head.contains("forged"), "{head}");
}

#[test]
fn elsewhere_is_not_where_it_was_asked_for() {
    let text = |_: &str| replay("fly-replay: elsewhere=true");
    let first =
        Reader::new(move |head| if head.contains("fly-replay-src") { ok() } else { text(head) });
    let second =
        Reader::new(move |head| if head.contains("fly-replay-src") { ok() } else { text(head) });
    let world = World::new(vec![at(1, "web", &first), at(2, "web", &second)]);
    for round in 1..=6 {
        assert_eq!(status(&world.get("web", "/")), "200");
        assert_eq!((first.count(), second.count()), (round, round));
    }
}

#[test]
fn a_replay_that_goes_in_circles_ends() {
    let first = Reader::new(|_| replay("fly-replay: app=other"));
    let second = Reader::new(|_| replay("fly-replay: app=web"));
    let world = World::new(vec![at(1, "web", &first), at(2, "other", &second)]);
    let answer = world.get("web", "/");
    assert!(status(&answer) == "508" && answer.contains("PA02"), "{answer}");
    assert_eq!(first.count() + second.count(), 6);
}

#[test]
fn what_is_unclear_or_leads_out_is_refused() {
    let target = Reader::fine();
    for (fields, code) in [
        ("fly-replay: app=apart", "PA04"),
        ("fly-replay: app=nobody", "PA04"),
        ("fly-replay: nonsense", "PA03"),
        ("fly-replay: app=other\r\nfly-replay: app=web", "PA03"),
        ("fly-replay: region=us", "PR01"),
        ("fly-replay: instance=00000000000009", "PR01"),
    ] {
        let first = Reader::new(move |_| replay(fields));
        let world = World::new(vec![
            at(1, "web", &first),
            at(2, "other", &target),
            at(3, "apart", &target),
        ]);
        let answer = world.get("web", "/");
        assert!(answer.contains(code) && status(&answer).starts_with('5'), "{fields}: {answer}");
        assert_eq!(target.count(), 0, "{fields}");
    }
}

#[test]
fn a_replay_crosses_a_border_where_the_organization_behind_it_lets_it() {
    let (own, friends) = (OrgSlug::personal(), "friends".parse::<OrgSlug>().unwrap());
    let networks =
        ReplaySources { allow_all_cross_network_replays: true, ..ReplaySources::default() };
    let slugs = ReplaySources {
        allowed_replay_source_org_slugs: vec![own.clone()],
        ..ReplaySources::default()
    };
    for (fields, org, sources) in
        [("fly-replay: app=apart", &own, networks), ("fly-replay: app=abroad", &friends, slugs)]
    {
        let (first, target) = (Reader::new(move |_| replay(fields)), Reader::fine());
        let abroad = MachineRecord { org: friends.clone(), ..at(4, "abroad", &target) };
        let world = World::new(vec![at(1, "web", &first), at(3, "apart", &target), abroad]);
        world.put_app_of(&friends, "abroad");
        let is_denied = || world.get("web", "/").contains("PA04");
        assert!(is_denied(), "{fields}");
        assert_eq!(target.count(), 0, "{fields}");
        world.put_replay_sources(org, &sources);
        until("the edge knows that it may", || status(&world.get("web", "/")) == "200");
        assert_eq!(target.count(), 1, "{fields}");
        world.put_replay_sources(org, &ReplaySources::default());
        until("the edge knows that it may not", is_denied);
    }
}

#[test]
fn a_replay_that_nobody_takes_comes_back_with_the_reason() {
    for (fields, reason) in [
        ("fly-replay: region=us;fallback=force_self", "no_candidate"),
        ("fly-replay: app=other;timeout=200ms;fallback=prefer_self", "timeout"),
    ] {
        let first =
            Reader::new(
                move |head| {
                    if head.contains("fly-replay-failed") { ok() } else { replay(fields) }
                },
            );
        let deaf = machine(2, "other", MachineState::Starting, 1);
        let world = World::new(vec![at(1, "web", &first), deaf]);
        let answer = post(&world, "/", b"abc");
        assert_eq!(status(&answer), "200", "{fields}: {answer}");
        let (head, body) = first.last();
        let want = format!("replay_source={};reason={reason};elapsed_ms=", MachineId::from_bits(1));
        assert!(head.contains(&want) && !head.contains("fly-replay-src"), "{head}");
        assert_eq!((first.count(), body.as_slice()), (2, &b"abc"[..]));
    }
    // And may not be sent on once more.
    let again = Reader::new(|_| replay("fly-replay: region=us;fallback=force_self"));
    let world = World::new(vec![at(1, "web", &again)]);
    assert!(world.get("web", "/").contains("PA02"));
    let late = Reader::new(|_| replay("fly-replay: app=other;timeout=200ms"));
    let deaf = machine(2, "other", MachineState::Starting, 1);
    let world = World::new(vec![at(1, "web", &late), deaf]);
    let answer = world.get("web", "/");
    assert!(status(&answer) == "504" && answer.contains("PA06"), "{answer}");
}

#[test]
fn a_replay_wakes_its_target() {
    let first = Reader::new(|_| replay("fly-replay: instance=00000000000002"));
    let second = Reader::fine();
    let mut asleep = machine(2, "web", MachineState::Stopped, second.port);
    asleep.ready = false;
    let world = World::new(vec![at(1, "web", &first), asleep]);
    assert_eq!(status(&world.get("web", "/")), "200");
    assert_eq!((first.count(), second.count()), (1, 1));
}

#[test]
fn a_machine_that_was_sent_the_replay_and_broke_is_not_asked_twice() {
    let first = Reader::new(|_| replay("fly-replay: app=other;fallback=force_self"));
    let broken = Reader::new(|_| "nonsense\r\n\r\n".to_owned());
    let world = World::new(vec![at(1, "web", &first), at(2, "other", &broken)]);
    let answer = world.get("web", "/");
    assert!(status(&answer) == "502" && answer.contains("PU03"), "{answer}");
    assert_eq!((first.count(), broken.count()), (1, 1));
}

#[test]
fn a_switch_of_protocols_can_be_sent_on() {
    let first = Reader::new(|_| replay("fly-replay: app=other"));
    let second = Reader::new(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi"
            .to_owned()
    });
    let world = World::new(vec![at(1, "web", &first), at(2, "other", &second)]);
    let mut stream = world.connect();
    let ask = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: Upgrade\r\n\
               Upgrade: websocket\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    assert!(read_head(&mut stream).unwrap().starts_with("HTTP/1.1 101"));
    let mut hi = [0; 2];
    stream.read_exact(&mut hi).unwrap();
    assert_eq!(&hi, b"hi");
    let both = Reader::new(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         fly-replay: app=other\r\n\r\n"
            .to_owned()
    });
    let world = World::new(vec![at(1, "web", &both), at(2, "other", &second)]);
    let mut stream = world.connect();
    stream.write_all(ask.as_bytes()).unwrap();
    let head = read_head(&mut stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
}

#[test]
fn a_replay_is_remembered_until_somebody_says_otherwise() {
    let first = Reader::new(|_| {
        replay(
            "fly-replay: app=other\r\nfly-replay-cache: /api/*\r\n\
             fly-replay-cache-ttl-secs: 60\r\nfly-replay-cache-allow-bypass: yes",
        )
    });
    let second = Reader::new(|head| {
        if head.contains("/api/forget") {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nfly-replay-cache: invalidate\r\n\r\nok"
                .to_owned()
        } else {
            ok()
        }
    });
    let world = World::new(vec![at(1, "web", &first), at(2, "other", &second)]);
    let went = |path: &str, status: &str, want: (usize, usize)| {
        let answer = world.get("web", path);
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("fly-replay"), "{answer}");
        let (head, _) = second.last();
        assert!(head.contains(&format!("fly-replay-cache-status: {status}\r\n")), "{head}");
        assert_eq!((first.count(), second.count()), want, "{path}");
    };
    went("/api/a", "miss", (1, 1));
    went("/api/b", "hit", (1, 2));
    assert!(!second.last().0.contains("fly-replay-src"));
    let skip = "GET /api/a HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\
                fly-replay-cache-control: skip\r\n\r\n";
    assert_eq!(status(&world.raw(skip.as_bytes())), "200");
    assert!(first.last().0.contains("fly-replay-cache-status: bypass\r\n"));
    assert_eq!((first.count(), second.count()), (2, 3));
    went("/api/forget", "hit", (2, 4));
    went("/api/c", "miss", (3, 5));
    // Where it leads is gone: the app is asked again.
    went("/api/d", "hit", (3, 6));
    world.host.set(&MachineId::from_bits(2), MachineState::Failed, false);
    until("the change is known", || status(&world.get("web", "/api/e")).starts_with('5'));
    assert_eq!(first.count(), 4);
}

#[test]
fn a_session_stays_where_its_first_request_went() {
    let first = Reader::new(|_| replay("fly-replay: app=other"));
    let second = Reader::fine();
    let mut web = at(1, "web", &first);
    web.services = serde_json::from_value(serde_json::json!([{
        "internal_port": first.port,
        "ports": [{"port": 80, "handlers": ["http"], "http_options": {"replay_cache": [
            {"path_prefix": "/", "ttl_seconds": 60, "type": "cookie", "name": "session"}
        ]}}],
    }]))
    .unwrap();
    let world = World::new(vec![web, at(2, "other", &second)]);
    for (cookie, want) in [("a", 1), ("a", 1), ("b", 2), ("a", 2), ("", 3), ("", 4)] {
        let text = format!(
            "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\
             Cookie: x=1; session={cookie}\r\n\r\n"
        );
        assert_eq!(status(&world.raw(text.as_bytes())), "200");
        assert_eq!(first.count(), want, "{cookie:?}");
    }
}

#[test]
fn a_state_forges_no_field_of_what_the_next_machine_is_told() {
    let second = Reader::fine();
    let sends = Reader::new(|_| replay("fly-replay: app=other;state=\"a;instance=x\""));
    let world = World::new(vec![at(1, "web", &sends), at(2, "other", &second)]);
    assert_eq!(status(&post(&world, "/", b"")), "200");
    let (head, _) = second.last();
    let told = head.lines().find_map(|line| line.strip_prefix("fly-replay-src: ")).unwrap();
    assert!(told.ends_with(";state=\"a;instance=x\""), "{told}");
}
