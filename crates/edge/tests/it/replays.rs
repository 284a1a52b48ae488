//! E1, E6: thousands of requests with odd framing, and those that others wrote for parsers of theirs,
//! before four servers that read framing in ways of their own: what reaches one was sent by the edge,
//! once and whole.
//!
//! The edge names each request that it sends. A request without such a name was split off another;
//! a name that comes twice was sent twice.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use perch_edge::Limits;
use perch_types::MachineState;

use crate::origins::{Kind, Server, Told};
use crate::world::{World, machine, status, until};
use crate::{corpora, mutations};

const CASES_MIN: usize = 2_000;
/// Of those that others wrote.
const OTHERS_MIN: usize = 400;
const CLIENTS: usize = 32;
/// How long a client waits for more before it ends its side; no answer depends on it.
const QUIET: Duration = Duration::from_millis(100);
/// How long the end of a connection may take then.
const END: Duration = Duration::from_secs(5);
/// After so many cases comes a request that is as it should be.
const HONEST_EVERY: usize = 8;
/// More than connections to the machine are kept.
const HONEST_AFTER: usize = 80;

#[test]
fn e1_odd_framing_reaches_node_once_and_whole_or_not_at_all() {
    replay("e1_odd_framing_reaches_node_once_and_whole_or_not_at_all", Kind::Node);
}

#[test]
fn e1_odd_framing_reaches_python_once_and_whole_or_not_at_all() {
    replay("e1_odd_framing_reaches_python_once_and_whole_or_not_at_all", Kind::Python);
}

#[test]
fn e1_odd_framing_reaches_nginx_once_and_whole_or_not_at_all() {
    replay("e1_odd_framing_reaches_nginx_once_and_whole_or_not_at_all", Kind::Nginx);
}

#[test]
fn e1_odd_framing_reaches_hyper_once_and_whole_or_not_at_all() {
    replay("e1_odd_framing_reaches_hyper_once_and_whole_or_not_at_all", Kind::Hyper);
}

#[test]
fn e1_what_others_wrote_reaches_node_once_and_whole_or_not_at_all() {
    replay_others("e1_what_others_wrote_reaches_node_once_and_whole_or_not_at_all", Kind::Node);
}

#[test]
fn e1_what_others_wrote_reaches_python_once_and_whole_or_not_at_all() {
    replay_others("e1_what_others_wrote_reaches_python_once_and_whole_or_not_at_all", Kind::Python);
}

#[test]
fn e1_what_others_wrote_reaches_nginx_once_and_whole_or_not_at_all() {
    replay_others("e1_what_others_wrote_reaches_nginx_once_and_whole_or_not_at_all", Kind::Nginx);
}

#[test]
fn e1_what_others_wrote_reaches_hyper_once_and_whole_or_not_at_all() {
    replay_others("e1_what_others_wrote_reaches_hyper_once_and_whole_or_not_at_all", Kind::Hyper);
}

/// The oracle itself: a split and a repeated request are seen.
#[test]
fn a_request_that_was_split_off_or_repeated_is_noticed() {
    let told = |id: &str| Told { target: "/".to_owned(), id: id.to_owned() };
    let (one, two) =
        (told("01JZ0000000000000000000001-ams"), told("01JZ0000000000000000000002-ams"));
    assert_eq!(fault(&[one.clone(), two.clone()]), None);
    for bad in [told("-"), told("forged"), told("01JZ0000000000000000000002-ams,x")] {
        assert!(fault(&[one.clone(), bad]).unwrap().starts_with("not sent by the edge"));
    }
    assert!(fault(&[one.clone(), two, one]).unwrap().starts_with("sent twice"));
}

fn replay(test: &str, kind: Kind) {
    let cases = mutations::all();
    assert!(cases.len() >= CASES_MIN, "{}", cases.len());
    replay_all(test, kind, &cases, (100, 1_000));
}

fn replay_others(test: &str, kind: Kind) {
    let cases = corpora::all();
    if cases.is_empty() {
        perch_testkit::skipped(test, corpora::MISSING);
        return;
    }
    assert!(cases.len() >= OTHERS_MIN, "{}", cases.len());
    replay_all(test, kind, &cases, (20, 100));
}

/// Plays all cases; at least so many must pass, and so many be refused.
fn replay_all(test: &str, kind: Kind, cases: &[Vec<u8>], least: (usize, usize)) {
    let Some(server) = Server::start(kind) else {
        perch_testkit::skipped(test, kind.missing());
        return;
    };
    let limits = Limits { head: END, answer: END, stall: END, idle: END, ..Limits::default() };
    let world = World::with(vec![machine(1, "web", MachineState::Started, server.port)], limits);
    let (next, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| play(&world, cases, &next, &refused));
        }
    });
    for index in 0..HONEST_AFTER {
        honest(&world, &format!("/after-{index}"));
    }
    let last = format!("/after-{}", HONEST_AFTER - 1);
    until("all was told", || server.told().iter().any(|told| told.target == last));
    let told = server.told();
    let found = fault(&told);
    let number =
        found.as_deref().and_then(|fault| fault.rsplit_once('-')).map(|(_, digits)| digits);
    let case = number.and_then(|digits| cases.get(digits.parse::<usize>().ok()?));
    let text = case.map(|case| String::from_utf8_lossy(case));
    assert_eq!(found, None, "{kind:?}: {text:?}");
    // Neither a wall nor a hole: both were seen.
    let is_ours = |target: &str| target.contains("/honest-") || target.contains("/after-");
    let passed = told.iter().filter(|told| !is_ours(&told.target)).count();
    let refused = refused.load(Ordering::SeqCst);
    assert!(passed >= least.0 && refused >= least.1, "{passed} passed, {refused} were refused");
}

/// Sends one case after the other, with honest requests in between.
fn play(world: &World, cases: &[Vec<u8>], next: &AtomicUsize, refused: &AtomicUsize) {
    loop {
        let index = next.fetch_add(1, Ordering::SeqCst);
        let Some(case) = cases.get(index) else {
            return;
        };
        if status(&send(world, case)) == "400" {
            refused.fetch_add(1, Ordering::SeqCst);
        }
        if index.is_multiple_of(HONEST_EVERY) {
            honest(world, &format!("/honest-{index}"));
        }
    }
}

/// Returns what is wrong with what a server has seen; the target is at its end.
fn fault(told: &[Told]) -> Option<String> {
    let mut seen = HashMap::new();
    for Told { target, id } in told {
        if !is_edges(id) {
            return Some(format!("not sent by the edge, named {id}: {target}"));
        }
        if let Some(before) = seen.insert(id, target) {
            return Some(format!("sent twice, as {before} and: {target}"));
        }
    }
    None
}

/// Returns whether this is one name as the edge of this world gives them.
fn is_edges(id: &str) -> bool {
    id.strip_suffix("-ams")
        .is_some_and(|ulid| ulid.len() == 26 && ulid.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Sends bytes; returns what came back until the end, or until nothing came.
fn send(world: &World, case: &[u8]) -> String {
    let mut stream = world.connect();
    stream.set_read_timeout(Some(QUIET)).unwrap();
    // The refusal may be there, and the connection gone, before all is written.
    stream.write_all(case).ok();
    let (mut answer, mut piece, mut is_over) = (Vec::new(), [0; 4096], false);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error)
                if !is_over
                    && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                is_over = true;
                stream.shutdown(Shutdown::Write).ok();
                stream.set_read_timeout(Some(END)).unwrap();
            }
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request that nothing is odd about gets its own answer, whatever others have sent.
fn honest(world: &World, path: &str) {
    let answer = world.get("web", path);
    assert_eq!(status(&answer), "200", "{path}: {answer}");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    assert_eq!(body, path, "{answer}");
}
