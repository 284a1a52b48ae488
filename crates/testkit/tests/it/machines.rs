//! The life of a machine through the API.

use std::time::Duration;

use perch_testkit::{Cloud, wait_for};
use serde_json::{Value, json};

#[test]
fn a_machine_runs_what_it_was_told_and_says_so() {
    let Some(cloud) = Cloud::start("a_machine_runs_what_it_was_told_and_says_so").unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--print", "hello out", "--listen", "0.0.0.0:8080"]).unwrap();
    let config = json!({
        "image": image,
        "env": {"COLOUR": "green", "FROM_IMAGE": "no"},
        "guest": {"cpus": 1, "memory_mb": 256},
        "made_up_key": {"kept": true},
    });
    let id = cloud.machine("web", &config, "started").unwrap();
    let machine = cloud.machine_of("web", &id).unwrap();
    assert_eq!(machine["state"], "started");
    assert_eq!(machine["host_status"], "ok");
    assert_eq!(machine["config"]["made_up_key"]["kept"], true);
    assert_eq!(machine["image_ref"]["repository"], "web");
    assert!(machine["private_ip"].as_str().unwrap().starts_with("fdaa:"));
    let log = cloud.log("web", &id).unwrap();
    assert!(log.iter().any(|line| line == "hello out"), "{log:?}");

    let path = format!("/v1/apps/web/machines/{id}");
    let env = exec(&cloud, &path, &json!({"command": ["/perch-testserver", "--print", "inside"]}));
    assert_eq!((env["exit_code"].as_i64(), env["stdout"].as_str()), (Some(0), Some("inside\n")));
    let failed = exec(&cloud, &path, &json!({"cmd": "/perch-testserver --exit 7"}));
    assert_eq!(failed["exit_code"], 7);

    cloud.must("POST", &format!("{path}/stop"), &json!({})).unwrap();
    cloud.reaches("web", &id, "stopped").unwrap();
    let started = cloud.must("POST", &format!("{path}/start"), &Value::Null).unwrap();
    assert_eq!(started["previous_state"], "stopped");
    cloud.reaches("web", &id, "started").unwrap();

    let events = cloud.must("GET", &format!("{path}/events"), &Value::Null).unwrap();
    let kinds: Vec<&str> =
        events.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"start"), "newest first: {kinds:?}");
    assert_eq!(kinds.last(), Some(&"launch"), "{kinds:?}");
    let exit = events.as_array().unwrap().iter().find(|event| event["type"] == "exit").unwrap();
    assert_eq!(exit["request"]["exit_event"]["requested_stop"], true, "{exit}");

    let refused = cloud.call("DELETE", &path, &Value::Null).unwrap();
    assert_eq!(refused.status, 412, "a running machine is not removed without force");
    cloud.must("DELETE", &format!("{path}?force=true"), &Value::Null).unwrap();
    cloud.reaches("web", &id, "destroyed").unwrap();
    assert_eq!(cloud.machine_of("web", &id).unwrap()["state"], "destroyed");
    let list = cloud.must("GET", "/v1/apps/web/machines", &Value::Null).unwrap();
    assert_eq!(list, json!([]));
    cloud.finish().unwrap();
}

/// Sends requests at once; returns their statuses and answers in the same order.
fn at_once(cloud: &Cloud, requests: &[(&str, String, Value)]) -> Vec<(u16, Value)> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = requests
            .iter()
            .map(|(method, path, body)| {
                scope.spawn(move || {
                    let answer = cloud.call(method, path, body).unwrap();
                    (answer.status, answer.json())
                })
            })
            .collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

#[test]
fn of_fifty_changes_at_once_none_that_was_answered_is_lost() {
    let test = "of_fifty_changes_at_once_none_that_was_answered_is_lost";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let config = |number: u32| json!({"image": image, "env": {"NUMBER": number.to_string()}});
    let id = cloud.machine("web", &config(99), "started").unwrap();
    let path = format!("/v1/apps/web/machines/{id}");
    let update = |number| ("POST", path.clone(), json!({"config": config(number)}));
    let merge = |number: u32| {
        let body = json!({"metadata": {(format!("k{number}")): number.to_string()}});
        ("PATCH", format!("{path}/metadata"), body)
    };
    let is_update = |number: u32| number.is_multiple_of(2);
    let all: Vec<_> = (0..50)
        .map(|number| if is_update(number) { update(number) } else { merge(number) })
        .collect();
    let mut versions = Vec::new();
    for (status, answer) in at_once(&cloud, &all) {
        match status {
            200 => versions.push(answer["instance_id"].clone()),
            // A label has no answer; somebody was faster, or too much waits already.
            204 | 409 | 429 => {}
            _ => panic!("{status} {answer}"),
        }
    }
    assert!(!versions.is_empty());
    // What waits for the machine is carried out in turn, and this one is the last.
    let (method, at, body) = update(100);
    let last = wait_for("the last update to be taken", Duration::from_secs(60), || {
        let answer = cloud.call(method, &at, &body).ok()?;
        (answer.status == 200).then(|| answer.json()["instance_id"].clone())
    });
    let last = last.unwrap();
    let wait =
        format!("{path}/wait?state=started&timeout=60&instance_id={}", last.as_str().unwrap());
    cloud.must("GET", &wait, &Value::Null).unwrap();
    let machine = cloud.machine_of("web", &id).unwrap();
    assert_eq!(
        (&machine["instance_id"], &machine["config"]["env"]["NUMBER"]),
        (&last, &json!("100"))
    );
    let kept = cloud.must("GET", &format!("{path}/versions"), &Value::Null).unwrap();
    let kept: Vec<&Value> = kept.as_array().unwrap().iter().map(|one| &one["version"]).collect();
    assert_eq!(kept[0], &last);
    // The last twenty are kept.
    let has = |version| kept.contains(&version) || kept.len() == 20;
    assert!(versions.iter().all(has), "{versions:?} {kept:?}");

    let all: Vec<_> = (0..50).map(merge).collect();
    for (status, answer) in at_once(&cloud, &all) {
        assert_eq!(status, 204, "{answer}");
    }
    let labels = cloud.machine_of("web", &id).unwrap()["config"]["metadata"].clone();
    for number in 0..50 {
        assert_eq!(labels[format!("k{number}")], json!(number.to_string()), "{labels}");
    }
    cloud.finish().unwrap();
}

#[test]
fn a_machine_sees_its_environment() {
    let Some(cloud) = Cloud::start("a_machine_sees_its_environment").unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let config = json!({
        "image": image,
        "env": {"COLOUR": "green", "FROM_IMAGE": "no"},
        "services": [{"internal_port": 8080, "protocol": "tcp",
            "ports": [{"port": 80, "handlers": ["http"]}]}],
    });
    let id = cloud.machine("web", &config, "started").unwrap();
    let answer = cloud.get("web", "/env").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let env = answer.text();
    for line in [
        "COLOUR=green".to_owned(),
        "FROM_IMAGE=no".to_owned(),
        "FLY_APP_NAME=web".to_owned(),
        format!("FLY_MACHINE_ID={id}"),
        format!("PERCH_MACHINE_ID={id}"),
        "FLY_REGION=loc".to_owned(),
        "FLY_VM_MEMORY_MB=256".to_owned(),
    ] {
        assert!(env.lines().any(|have| have == line), "{line} in\n{env}");
    }
    cloud.finish().unwrap();
}

#[test]
fn an_update_brings_a_new_version_and_keeps_the_address() {
    let Some(cloud) = Cloud::start("an_update_brings_a_new_version_and_keeps_the_address").unwrap()
    else {
        return;
    };
    let image = cloud.app("web", &["--print", "one", "--listen", "0.0.0.0:8080"]).unwrap();
    let id = cloud.machine("web", &json!({"image": image}), "started").unwrap();
    let before = cloud.machine_of("web", &id).unwrap();
    let second = cloud.push("web", "two", &["--print", "two", "--listen", "0.0.0.0:8080"]).unwrap();
    let path = format!("/v1/apps/web/machines/{id}");
    cloud.must("POST", &path, &json!({"config": {"image": second}})).unwrap();
    cloud.reaches("web", &id, "started").unwrap();
    let after = cloud.machine_of("web", &id).unwrap();
    assert_ne!(before["instance_id"], after["instance_id"]);
    assert_eq!(before["private_ip"], after["private_ip"]);
    assert_eq!(after["image_ref"]["tag"], "two");
    let log = cloud.log("web", &id).unwrap();
    assert!(log.iter().any(|line| line == "two"), "{log:?}");
    cloud.finish().unwrap();
}

#[test]
fn a_program_that_eats_its_memory_is_reported_as_such() {
    let Some(cloud) = Cloud::start("a_program_that_eats_its_memory_is_reported_as_such").unwrap()
    else {
        return;
    };
    let image = cloud.app("eater", &["--eat-mb", "600"]).unwrap();
    let config = json!({
        "image": image, "guest": {"cpus": 1, "memory_mb": 256}, "restart": {"policy": "no"},
    });
    let id = cloud.machine("eater", &config, "stopped").unwrap();
    let events =
        cloud.must("GET", &format!("/v1/apps/eater/machines/{id}/events"), &Value::Null).unwrap();
    let exit = events.as_array().unwrap().iter().find(|event| event["type"] == "exit").unwrap();
    assert_eq!(exit["request"]["exit_event"]["oom_killed"], true, "{exit}");
    assert_eq!(exit["request"]["exit_event"]["exit_code"], 137, "{exit}");
    cloud.finish().unwrap();
}

fn exec(cloud: &Cloud, path: &str, body: &Value) -> Value {
    cloud.must("POST", &format!("{path}/exec"), body).unwrap()
}

#[test]
fn the_log_shows_what_the_platform_did_beside_what_the_program_wrote() {
    let test = "the_log_shows_what_the_platform_did_beside_what_the_program_wrote";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--print", "bye", "--exit", "3"]).unwrap();
    let config = json!({"image": image, "restart": {"policy": "no"}});
    let id = cloud.machine("web", &config, "stopped").unwrap();
    let (done, text) = cloud.cli(&["logs", "-a", "web", "--machine", &id, "--no-tail"]).unwrap();
    assert!(done, "{text}");
    let lines: Vec<&str> =
        text.lines().filter_map(|line| line.split_once(' ').map(|(_, rest)| rest)).collect();
    assert_eq!(
        lines,
        [
            "[system] Starting machine",
            "[stdout] bye",
            "[system] Main child exited normally with code: 3",
            "[system] Starting clean up.",
        ],
        "{text}"
    );
    let (done, text) = cloud.cli(&["logs", "-a", "web", "--no-tail"]).unwrap();
    assert!(done && text.contains("Main child exited normally with code: 3"), "{text}");
    cloud.finish().unwrap();
}
