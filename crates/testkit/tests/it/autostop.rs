//! Machines that nothing uses rest, and whoever comes then sees nothing of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use perch_testkit::{Cloud, Options, http, wait_for};
use serde_json::{Value, json};

/// How long everything together may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often each machine has to have been put to rest while requests came.
const RESTS: usize = 3;
/// Pauses between two requests: machines rest after a second without any, so that some come before
/// that, some in the middle of it, and some after.
const PAUSES_MS: [u64; 7] = [20, 1_900, 950, 2_300, 1_500, 2_700, 2_100];

fn config(image: &str, autostop: &str, least: u32) -> Value {
    json!({
        "image": image,
        "guest": {"cpus": 1, "memory_mb": 256},
        "services": [{"internal_port": 8080, "protocol": "tcp", "autostart": true,
            "autostop": autostop, "min_machines_running": least,
            "ports": [{"port": 80, "handlers": ["http"]}]}],
    })
}

/// Returns how often a machine was put to rest because nothing used it.
fn rests(cloud: &Cloud, app: &str, id: &str) -> usize {
    let machine = cloud.machine_of(app, id).unwrap();
    let events = machine["events"].as_array().unwrap();
    events.iter().filter(|event| event["request"]["reason"] == "autostop").count()
}

/// Asks an app again and again until its machine was put to rest so often; returns what was none
/// of its answers.
fn ask_until_rested(cloud: &Cloud, app: &str, id: &str) -> Vec<String> {
    let (began, mut wrong) = (Instant::now(), Vec::new());
    for (count, pause_ms) in PAUSES_MS.iter().cycle().enumerate() {
        let answer = cloud.get(app, "/");
        if !answer.as_ref().is_ok_and(|answer| answer.status == 200) {
            let answer = answer.map(|answer| (answer.status, answer.text()));
            wrong.push(format!("{app} {count}: {answer:?}"));
        }
        if rests(cloud, app, id) >= RESTS {
            break;
        }
        if began.elapsed() > DEADLINE {
            wrong.push(format!("{app} did not rest {RESTS} times"));
            break;
        }
        std::thread::sleep(Duration::from_millis(*pause_ms));
    }
    wrong
}

#[test]
fn no_request_is_lost_while_unused_machines_are_stopped_and_suspended() {
    let test = "no_request_is_lost_while_unused_machines_are_stopped_and_suspended";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("perchd.toml");
    std::fs::write(&file, "[autostop]\nidle_s = 1\n").unwrap();
    // The cloud has a network of its own: no other has its ports.
    let metrics = SocketAddr::from(([127, 0, 0, 1], 9_100));
    let arguments =
        [("--config", file.to_string_lossy().into_owned()), ("--metrics", metrics.to_string())];
    let arguments = arguments.map(|(flag, value)| [flag.to_owned(), value]).concat();
    let Some(cloud) = Cloud::start_with(test, Options { arguments, ..Options::default() }).unwrap()
    else {
        return;
    };
    let image = |app: &str| cloud.app(app, &["--listen", "0.0.0.0:8080"]).unwrap();
    let made = |app: &str, config: &Value| cloud.machine(app, config, "started").unwrap();
    let of_pair = config(&image("pair"), "stop", 1);
    let pair = [made("pair", &of_pair), made("pair", &of_pair)];
    let stopped = made("web", &config(&image("web"), "stop", 0));
    let suspended = made("nap", &config(&image("nap"), "suspend", 0));
    // What is under way is not unused, however little it says.
    let answer = cloud.get("web", "/sleep?ms=4000").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "slept\n"), "{}", answer.head);
    let wrong = std::thread::scope(|scope| {
        let clients: Vec<_> = [("web", &stopped), ("web", &stopped), ("nap", &suspended)]
            .into_iter()
            .map(|(app, id)| {
                let cloud = &cloud;
                scope.spawn(move || ask_until_rested(cloud, app, id))
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", cloud.server_log());
    for (app, id, state) in [("web", &stopped, "stopped"), ("nap", &suspended, "suspended")] {
        cloud.reaches(app, id, state).unwrap();
    }

    // One of two has to go on.
    let states = || pair.clone().map(|id| cloud.machine_of("pair", &id).unwrap()["state"].clone());
    wait_for("one of two to rest", DEADLINE, || states().contains(&json!("stopped")).then_some(()))
        .unwrap();
    assert!(states().contains(&json!("started")), "{:?}", states());
    assert_eq!(pair.iter().map(|id| rests(&cloud, "pair", id)).sum::<usize>(), 1);

    // How long they took to wake is told.
    let (shown, text) = cloud.cli(&["status", "-a", "web"]).unwrap();
    assert!(shown && text.contains("wake") && text.contains("99 of 100 in"), "{text}");
    let wake = cloud.must("GET", "/v1/apps/nap", &Value::Null).unwrap()["wake"].clone();
    assert!(wake["count"].as_u64().unwrap() >= 1, "{wake}");
    let read = http::request(metrics, "GET", "/metrics", &[("Host", "metrics")], b"").unwrap();
    assert_eq!(read.status, 200);
    let text = read.text();
    for part in ["perch_app_wake_seconds_count{app=\"nap\"", "fly_app_concurrency{app=\"web\""] {
        assert!(text.contains(part), "{part}: {text}");
    }
    cloud.finish().unwrap();
}
