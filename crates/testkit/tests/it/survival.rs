//! What is killed comes back, and what runs keeps running.

use std::time::Duration;

use perch_testkit::{Cloud, wait_for};
use serde_json::{Value, json};

pub(crate) const SERVICE: &str = r#"[{"internal_port": 8080, "protocol": "tcp",
    "ports": [{"port": 80, "handlers": ["http"]}]}]"#;

fn web(cloud: &Cloud) -> String {
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let services: Value = serde_json::from_str(SERVICE).unwrap();
    cloud.machine("web", &json!({"image": image, "services": services}), "started").unwrap()
}

/// Process ids of everything that runs inside machines of this cloud.
fn inside(cloud: &Cloud) -> Vec<String> {
    let output =
        std::process::Command::new("pgrep").args(["-f", "^/perch-testserver"]).output().unwrap();
    let folder = cloud.instance().to_owned();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|cgroup| cgroup.contains(&folder))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn c4_killing_the_whole_server_leaves_machines_running_and_they_are_adopted() {
    let test = "c4_killing_the_whole_server_leaves_machines_running_and_they_are_adopted";
    let Some(mut cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let id = web(&cloud);
    assert_eq!(cloud.get("web", "/").unwrap().status, 200);
    let before = inside(&cloud);
    assert!(!before.is_empty());
    cloud.kill().unwrap();
    assert_eq!(inside(&cloud), before, "the machine does not stop with the server");
    cloud.boot().unwrap();
    assert_eq!(inside(&cloud), before, "adopted, not started again");
    assert_eq!(cloud.machine_of("web", &id).unwrap()["state"], "started");
    assert_eq!(cloud.get("web", "/").unwrap().status, 200);
    let path = format!("/v1/apps/web/machines/{id}");
    let output = cloud
        .must(
            "POST",
            &format!("{path}/exec"),
            &json!({"command": ["/perch-testserver", "--print", "x"]}),
        )
        .unwrap();
    assert_eq!(output["stdout"], "x\n");
    cloud.must("POST", &format!("{path}/stop"), &json!({})).unwrap();
    cloud.reaches("web", &id, "stopped").unwrap();
    cloud.finish().unwrap();
}

#[test]
fn each_process_of_the_server_comes_back_alone() {
    let Some(cloud) = Cloud::start("each_process_of_the_server_comes_back_alone").unwrap() else {
        return;
    };
    let id = web(&cloud);
    let before = inside(&cloud);
    for role in ["host", "front", "builder"] {
        cloud.kill_role(role).unwrap();
        let answer = wait_for("the app to answer", Duration::from_secs(20), || {
            cloud.get("web", "/").ok().filter(|answer| answer.status == 200)
        });
        answer.unwrap_or_else(|error| panic!("after {role}: {error}\n{}", cloud.server_log()));
        wait_for("the API to answer", Duration::from_secs(20), || {
            cloud.machine_of("web", &id).ok().filter(|machine| machine["state"] == "started")
        })
        .unwrap();
    }
    // One that stands still and does not end is ended, and comes back too.
    let front = || cloud.role_pids().into_iter().find(|(role, _)| role == "front");
    let (_, wedged) = front().unwrap();
    let pid = rustix::process::Pid::from_raw(wedged).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // It may be silent for 30 s.
    let another = wait_for("another front process", Duration::from_secs(60), || {
        front().filter(|(_, pid)| *pid != wedged)
    });
    another.unwrap_or_else(|error| panic!("{error}\n{}", cloud.server_log()));
    wait_for("the app to answer", Duration::from_secs(20), || {
        cloud.get("web", "/").ok().filter(|answer| answer.status == 200)
    })
    .unwrap();
    assert_eq!(inside(&cloud), before);
    cloud.finish().unwrap();
}

#[test]
fn the_edge_serves_while_the_host_agent_is_away() {
    let Some(cloud) = Cloud::start("the_edge_serves_while_the_host_agent_is_away").unwrap() else {
        return;
    };
    web(&cloud);
    assert_eq!(cloud.get("web", "/").unwrap().status, 200);
    let host = cloud.role_pids().into_iter().find(|(role, _)| role == "host").unwrap().1;
    let host = rustix::process::Pid::from_raw(host).unwrap();
    rustix::process::kill_process(host, rustix::process::Signal::STOP).unwrap();
    let answer = cloud.get("web", "/");
    rustix::process::kill_process(host, rustix::process::Signal::CONT).unwrap();
    assert_eq!(answer.unwrap().status, 200);
    cloud.finish().unwrap();
}

#[test]
fn a_machine_whose_monitor_was_killed_is_started_again() {
    let Some(cloud) = Cloud::start("a_machine_whose_monitor_was_killed_is_started_again").unwrap()
    else {
        return;
    };
    let id = web(&cloud);
    let before = inside(&cloud);
    let monitors =
        std::process::Command::new("pgrep").args(["-f", "perch-monitor"]).output().unwrap();
    for pid in String::from_utf8_lossy(&monitors.stdout).lines() {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let ours = line.contains(&*cloud.data().to_string_lossy())
            || files
                .filter_map(|file| std::fs::read_link(file.path()).ok())
                .any(|target| target.starts_with(cloud.data()));
        if ours {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    let path = format!("/v1/apps/web/machines/{id}");
    wait_for("the machine to be started again", Duration::from_secs(20), || {
        let after = inside(&cloud);
        (!after.is_empty() && after != before).then_some(())
    })
    .unwrap();
    cloud.reaches("web", &id, "started").unwrap();
    let events = cloud.must("GET", &format!("{path}/events"), &Value::Null).unwrap();
    assert!(events.as_array().unwrap().iter().any(|event| event["type"] == "exit"), "{events}");
    cloud.finish().unwrap();
}

/// Makes a machine that writes down each of its starts on a volume.
fn writing(cloud: &Cloud, policy: &str) -> (String, String) {
    let asked = json!({"name": "data", "size_gb": 1});
    let volume = cloud.must("POST", "/v1/apps/web/volumes", &asked).unwrap();
    let volume = volume["id"].as_str().unwrap().to_owned();
    let script = "echo started >> /data/starts; sync; exec sleep 100000";
    let config = json!({
        "image": "registry.internal/web:latest",
        "init": {"exec": ["/bin/sh", "-c", script]},
        "restart": {"policy": policy},
        "mounts": [{"volume": volume, "path": "/data"}],
    });
    (cloud.machine("web", &config, "started").unwrap(), volume)
}

fn run(cloud: &Cloud, id: &str, script: &str) -> String {
    let path = format!("/v1/apps/web/machines/{id}/exec");
    let body = json!({"command": ["/bin/sh", "-c", script]});
    cloud.must("POST", &path, &body).unwrap()["stdout"].as_str().unwrap().to_owned()
}

#[test]
fn after_a_restart_of_the_server_machines_come_back_by_their_policy_with_their_data() {
    let test = "after_a_restart_of_the_server_machines_come_back_by_their_policy_with_their_data";
    let Some(mut cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let Some(rests) = cloud.shell(test, "web", "exec sleep 100000").unwrap() else {
        cloud.finish().unwrap();
        return;
    };
    cloud.must("POST", &format!("/v1/apps/web/machines/{rests}/stop"), &json!({})).unwrap();
    cloud.reaches("web", &rests, "stopped").unwrap();
    let (always, data) = writing(&cloud, "always");
    let (never, _) = writing(&cloud, "no");
    let (frozen, _) = writing(&cloud, "always");
    for id in [&always, &never, &frozen] {
        wait_for("a line on the volume", Duration::from_secs(30), || {
            (run(&cloud, id, "cat /data/starts; sync") == "started\n").then_some(())
        })
        .unwrap();
    }
    cloud.must("POST", &format!("/v1/apps/web/machines/{frozen}/suspend"), &json!({})).unwrap();
    cloud.reaches("web", &frozen, "suspended").unwrap();
    let snapshots = format!("/v1/apps/web/volumes/{data}/snapshots");
    cloud.must("POST", &snapshots, &json!({})).unwrap();
    let before = cloud.agrees("web").unwrap();

    cloud.reboot().unwrap();
    // A start that meets what the kernel has not let go of yet is tried again after half a minute.
    wait_for("the machine to come back", Duration::from_secs(150), || {
        let machine = cloud.machine_of("web", &always).ok()?;
        (machine["state"] == "started").then_some(())
    })
    .unwrap();
    for id in [&rests, &never, &frozen] {
        cloud.reaches("web", id, "stopped").unwrap();
    }
    let after = cloud.agrees("web").unwrap();
    assert_eq!(before.len(), after.len());
    for one in &before {
        let same = after.iter().find(|other| other["id"] == one["id"]).unwrap();
        for key in ["name", "private_ip", "instance_id", "config"] {
            assert_eq!(one[key], same[key], "{key}");
        }
    }
    let snapshots = cloud.must("GET", &snapshots, &Value::Null).unwrap();
    assert_eq!(snapshots.as_array().unwrap().len(), 1, "{snapshots}");
    for id in [&never, &frozen] {
        cloud.must("POST", &format!("/v1/apps/web/machines/{id}/start"), &json!({})).unwrap();
        cloud.reaches("web", id, "started").unwrap();
    }
    for id in [&always, &never, &frozen] {
        wait_for("the second line", Duration::from_secs(30), || {
            (run(&cloud, id, "cat /data/starts") == "started\nstarted\n").then_some(())
        })
        .unwrap();
    }
    cloud.agrees("web").unwrap();
    cloud.finish().unwrap();
}
