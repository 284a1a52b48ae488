//! E5: clients that are slow on purpose, and many, beside honest ones: these are all answered, what
//! is slow is cut off, and the memory that it takes does not grow with time.
//!
//! Never judges how long an answer took: `bench/run` does.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use perch_edge::Limits;
use perch_types::MachineState;

use crate::world::{DEADLINE, World, machine, read_head, status};

const HOST: &str = "Host: web.perch.localhost\r\n";
const SLOW_HEADS: usize = 120;
const SLOW_BODIES: usize = 40;
const SLOW_READERS: usize = 12;
const PIPES: usize = 12;
/// More than the buffers of a connection hold.
const BIG_BYTES: usize = 24 << 20;
const PIECE: &[u8] = &[b'x'; 1 << 16];
const ROUNDS: usize = 5;
const HONEST_CLIENTS: usize = 3;
/// Fewer than this were no traffic beside which anything could be judged.
const HONEST_MIN: usize = 100;
/// What rounds that are all alike may add: the allocator's own, and no more.
const GROWTH_KIB_MAX: u64 = 32 << 10;
/// How long a client may be slow here, so that a round ends; elsewhere it is a minute.
const SHORT: Duration = Duration::from_millis(1_500);

#[test]
fn e5_honest_requests_are_answered_beside_slow_clients_and_memory_stays_flat() {
    beside_honest_clients(be_slow);
}

#[test]
fn e5_honest_requests_are_answered_beside_floods_and_memory_stays_flat() {
    beside_honest_clients(flood);
}

/// Plays round after round of the same, while honest clients are answered.
fn beside_honest_clients(round: fn(&World)) {
    let limits = Limits { head: SHORT, stall: SHORT, ..Limits::default() };
    let world = World::with(vec![machine(1, "web", MachineState::Started, origin())], limits);
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut used = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..HONEST_CLIENTS {
            scope.spawn(|| be_honest(&world, &is_over, &answered));
        }
        // Also when a round fails.
        let _end = OnEnd(&is_over);
        // However fast rounds are here, honest clients get their turns.
        let begun = Instant::now();
        let has_had_turns = || answered.load(Ordering::SeqCst) > HONEST_MIN;
        while used.len() < ROUNDS || (!has_had_turns() && begun.elapsed() < DEADLINE) {
            round(&world);
            used.push(resident_kib());
        }
    });
    // The first rounds fill what is kept for the next ones.
    let growth = used[used.len() - 1].saturating_sub(used[1]);
    assert!(growth < GROWTH_KIB_MAX, "{used:?}");
    let answered = answered.load(Ordering::SeqCst);
    assert!(answered > HONEST_MIN, "{answered}");
}

struct OnEnd<'a>(&'a AtomicBool);

impl Drop for OnEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A program that has short and long answers, and none for a body that it waits for.
fn origin() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    while let Some(head) = read_head(&mut stream) {
        if head.starts_with("POST") {
            // The rest of the body, until whoever sends it gives up; then nothing.
            stream.set_read_timeout(Some(SHORT)).unwrap();
            drain(stream);
            return;
        }
        let length = if head.contains("/big") { BIG_BYTES } else { 2 };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        if stream.write_all(head.as_bytes()).is_err() {
            return;
        }
        let mut left = length;
        while left > 0 {
            let count = left.min(PIECE.len());
            if stream.write_all(&PIECE[..count]).is_err() {
                return;
            }
            left -= count;
        }
    }
}

/// Requests, over new connections and kept ones in turn; each gets its own whole answer.
fn be_honest(world: &World, is_over: &AtomicBool, answered: &AtomicUsize) {
    while !is_over.load(Ordering::SeqCst) {
        assert_eq!(status(&world.get("web", "/")), "200");
        let mut kept = world.connect();
        for _ in 0..5 {
            kept.write_all(format!("GET / HTTP/1.1\r\n{HOST}\r\n").as_bytes()).unwrap();
            let head = read_head(&mut kept).unwrap();
            assert_eq!(status(&head), "200", "{head}");
            let mut body = [0; 2];
            kept.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"xx");
            answered.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// One round of slow clients, until the edge has ended each.
fn be_slow(world: &World) {
    let mut heads = open(world, SLOW_HEADS, &format!("GET / HTTP/1.1\r\n{HOST}X-Slow: "));
    let body = format!("POST / HTTP/1.1\r\n{HOST}Content-Length: 100000\r\n\r\na");
    let mut bodies = open(world, SLOW_BODIES, &body);
    let readers = open(world, SLOW_READERS, &format!("GET /big HTTP/1.1\r\n{HOST}\r\n"));
    // A byte now and then, which must not put the end off.
    for _ in 0..20 {
        for stream in heads.iter_mut().chain(&mut bodies) {
            // What the edge has ended cannot be written to.
            stream.write_all(b"a").ok();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for mut stream in heads {
        assert!(!is_answered(&mut stream), "a head that never ended was answered with 200");
    }
    for mut stream in bodies {
        assert!(!is_answered(&mut stream), "a body that never ended was answered with 200");
    }
    // What a kernel still takes for a client that reads nothing is taken once for its word.
    std::thread::sleep(2 * SHORT);
    for stream in readers {
        let read = drain(stream);
        assert!(read < BIG_BYTES, "a client that read nothing was sent all of it");
    }
}

/// One round of clients that send as much as they can.
fn flood(world: &World) {
    // Requests without end, and no look at the answers.
    let many = format!("GET /big HTTP/1.1\r\n{HOST}\r\n").repeat(200);
    let pipes = open(world, PIPES, &many);
    // A head that grows and grows, and a chunk's extension and a trailer that do.
    let long = "x".repeat(60_000);
    let start = format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
    for text in [
        format!("GET / HTTP/1.1\r\n{HOST}X: {long}{long}"),
        format!("GET / HTTP/1.1\r\n{HOST}{}", "X: y\r\n".repeat(20_000)),
        format!("{start}1;{long}"),
        format!("{start}0\r\nX: {long}"),
        "\r\n".repeat(50_000),
        "x".repeat(200_000),
    ] {
        for _ in 0..10 {
            let mut stream = world.connect();
            // Refused while it is still being written.
            stream.write_all(text.as_bytes()).ok();
            assert!(!is_answered(&mut stream), "{:?}", text.get(..80));
        }
    }
    // Connections that come and go with nothing said, or half a word.
    for index in 0..300 {
        let mut stream = world.connect();
        if index & 1 == 0 {
            stream.write_all(b"GE").unwrap();
        }
    }
    // Read, each would be sent all that it asked for.
    drop(pipes);
}

/// Connections on which the same has been said.
fn open(world: &World, count: usize, text: &str) -> Vec<TcpStream> {
    let one = |_| {
        let mut stream = world.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    (0..count).map(one).collect()
}

/// Reads to the end; returns whether a request was answered well.
fn is_answered(stream: &mut TcpStream) -> bool {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) => {
                let is_late = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                assert!(!is_late, "the edge had not ended a connection after {DEADLINE:?}");
                break;
            }
        }
    }
    answer.starts_with(b"HTTP/1.1 200")
}

/// Reads to the end, whatever it is; returns how much that was.
fn drain(mut stream: TcpStream) -> usize {
    let (mut all, mut piece) = (0, vec![0; 1 << 16]);
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        all += count;
    }
    all
}

/// What this process has in memory: the edge, and the clients and origins of this test.
fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
