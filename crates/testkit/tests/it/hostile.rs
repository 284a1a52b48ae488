//! Machines that take all they can get, side by side: only they suffer, and it is told why.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perch_testkit::{Cloud, wait_for};
use serde_json::{Value, json};

/// How long it may take until each has felt its limit, on a busy machine.
const LONG: Duration = Duration::from_secs(120);
/// The pause between two requests: they are to be answered, not to be many.
const BREATH: Duration = Duration::from_millis(50);
/// Requests that a neighbour answers meanwhile, at least.
const REQUESTS_MIN: usize = 20;

fn greedy(cloud: &Cloud, script: &str, policy: &str, memory_mb: u32) -> String {
    let config = json!({
        "image": "registry.internal/greedy:latest",
        "init": {"exec": ["/bin/sh", "-c", script]},
        "restart": {"policy": policy},
        "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": memory_mb},
        "rootfs": {"size_gb": 1},
    });
    let body = json!({"config": config});
    let machine = cloud.must("POST", "/v1/apps/greedy/machines", &body).unwrap();
    machine["id"].as_str().unwrap().to_owned()
}

fn exits(cloud: &Cloud, id: &str) -> Vec<Value> {
    let path = format!("/v1/apps/greedy/machines/{id}/events");
    let events = cloud.must("GET", &path, &Value::Null).unwrap();
    let events = events.as_array().unwrap().iter().filter(|event| event["type"] == "exit");
    events.map(|event| event["request"]["exit_event"].clone()).collect()
}

/// Whether the events name a limit that the machine ran into.
fn reached(cloud: &Cloud, id: &str, limit: &str) -> Option<()> {
    let path = format!("/v1/apps/greedy/machines/{id}/events");
    let events = cloud.must("GET", &path, &Value::Null).ok()?;
    let mut limits = events.as_array()?.iter().filter(|event| event["type"] == "limit");
    limits.any(|event| event["request"]["limit"] == limit).then_some(())
}

fn says(cloud: &Cloud, id: &str, wanted: &str) -> Option<()> {
    let log = cloud.log("greedy", id).ok()?;
    log.iter().any(|line| line.contains(wanted)).then_some(())
}

/// The log itself tells how many lines it could not keep.
fn drops(cloud: &Cloud, id: &str) -> Option<()> {
    let path = format!("/v1/apps/greedy/machines/{id}/logs");
    let text = cloud.call("GET", &path, &Value::Null).ok()?.text();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter_map(|record| record["dropped"].as_u64()).any(|count| count > 0).then_some(())
}

#[test]
fn x1_machines_that_take_all_they_can_get_harm_nobody_else() {
    let test = "x1_machines_that_take_all_they_can_get_harm_nobody_else";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let Some(first) = cloud.shell(test, "greedy", "exec sleep 100000").unwrap() else {
        cloud.finish().unwrap();
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let services: Value = serde_json::from_str(super::survival::SERVICE).unwrap();
    let neighbour =
        cloud.machine("web", &json!({"image": image, "services": services}), "started").unwrap();
    assert_eq!(cloud.get("web", "/").unwrap().status, 200);

    let memory = greedy(&cloud, "exec tail /dev/zero", "always", 256);
    // Long lines: few of them are above its rate, even for a monitor that hardly gets a processor,
    // and the ones that tell of the lost stay among the last that are read.
    let log =
        greedy(&cloud, "line=$(head -c 4000 /dev/zero | tr '\\0' x); exec yes $line", "no", 256);
    // With memory for more processes than it may have.
    let processes = greedy(&cloud, "while sleep 1000 & do :; done", "no", 2048);
    let files = greedy(
        &cloud,
        "ulimit -n 2048; i=3; while eval \"exec $i<>/dev/null\"; do i=$((i+1)); done; exit 9",
        "no",
        256,
    );
    // Most of it without a write: the server's disk is not what is tested.
    let script = "fallocate -l 900M /most; dd if=/dev/zero of=/rest bs=64k; exec sleep 100000";
    let disk = greedy(&cloud, script, "no", 256);
    let over = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut answers = Vec::new();
            while !over.load(Ordering::Acquire) || answers.len() < REQUESTS_MIN {
                answers.push(cloud.get("web", "/").map(|answer| answer.status));
                std::thread::sleep(BREATH);
            }
            answers
        });
        // Again and again: its policy starts it anew.
        let outcome = wait_for("memory to run out twice", LONG, || {
            let exits = exits(&cloud, &memory);
            (exits.iter().filter(|exit| exit["oom_killed"] == true).count() >= 2).then_some(())
        })
        .and_then(|()| wait_for("lines to be dropped", LONG, || drops(&cloud, &log)))
        .and_then(|()| {
            wait_for("processes to run out", LONG, || {
                says(&cloud, &processes, "can't fork")
                    .or_else(|| exits(&cloud, &processes).first().map(drop))
            })
        })
        .and_then(|()| {
            let limits = [(&processes, "processes"), (&log, "log"), (&disk, "disk")];
            wait_for("the events to say so", LONG, || {
                limits.iter().try_for_each(|(id, limit)| reached(&cloud, id, limit))
            })
        })
        .and_then(|()| {
            wait_for("files to run out", LONG, || exits(&cloud, &files).first().map(drop))
        });
        over.store(true, Ordering::Release);
        let answers = asking.join().unwrap();
        outcome.unwrap();
        answers
    });
    assert!(answers.iter().all(|answer| matches!(answer, Ok(200))), "{answers:?}");
    let of_neighbour = cloud.machine_of("web", &neighbour).unwrap();
    assert_eq!(of_neighbour["state"], "started");
    assert!(
        !of_neighbour["events"].as_array().unwrap().iter().any(|event| event["type"] == "exit"),
        "{of_neighbour}"
    );
    for id in [first, memory, log, processes, files, disk] {
        let path = format!("/v1/apps/greedy/machines/{id}?force=true");
        cloud.must("DELETE", &path, &Value::Null).unwrap();
        cloud.reaches("greedy", &id, "destroyed").unwrap();
    }
    cloud.agrees("web").unwrap();
    cloud.finish().unwrap();
}
