//! Bad input: a clear message with the way out, and nothing half-made.

use std::time::{Duration, Instant};

use perch_testkit::{Cloud, Options, wait_for};
use serde_json::{Value, json};

#[test]
fn an_unknown_image_is_refused_at_once_and_nothing_is_made() {
    let test = "an_unknown_image_is_refused_at_once_and_nothing_is_made";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    cloud.must("POST", "/v1/apps", &json!({"name": "web", "org_slug": "personal"})).unwrap();
    let body = json!({"config": {"image": "registry.internal/web:nowhere"}});
    let answer = cloud.call("POST", "/v1/apps/web/machines", &body).unwrap();
    assert_eq!(answer.status, 422, "{}", answer.text());
    let error = answer.json();
    assert_eq!(error["code"], "image_unknown", "{error}");
    assert!(error["error"].as_str().unwrap().contains("web:nowhere"), "{error}");
    let list = cloud.must("GET", "/v1/apps/web/machines", &Value::Null).unwrap();
    assert_eq!(list, json!([]));
    cloud.finish().unwrap();
}

#[test]
fn a_name_in_use_is_refused_in_the_contracts_words() {
    let Some(cloud) = Cloud::start("a_name_in_use_is_refused_in_the_contracts_words").unwrap()
    else {
        return;
    };
    let body = json!({"name": "web", "org_slug": "personal"});
    cloud.must("POST", "/v1/apps", &body).unwrap();
    let answer = cloud.call("POST", "/v1/apps", &body).unwrap();
    assert_eq!(answer.status, 422);
    assert!(answer.text().contains("Name has already been taken"), "{}", answer.text());
    assert_eq!(answer.json()["status"], "name_taken");
    cloud.finish().unwrap();
}

#[test]
fn an_app_that_exits_at_once_says_its_code_within_two_seconds() {
    let test = "an_app_that_exits_at_once_says_its_code_within_two_seconds";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--stderr", "no database", "--exit", "3"]).unwrap();
    let body = json!({"config": {"image": image, "restart": {"policy": "no"}}});
    let machine = cloud.must("POST", "/v1/apps/web/machines", &body).unwrap();
    let id = machine["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/apps/web/machines/{id}/events");
    let exit = wait_for("the exit event", Duration::from_secs(10), || {
        let events = cloud.must("GET", &path, &Value::Null).ok()?;
        events.as_array()?.iter().find(|event| event["type"] == "exit").cloned()
    })
    .unwrap();
    let seen = Instant::now();
    assert_eq!(exit["request"]["exit_event"]["exit_code"], 3, "{exit}");
    let log = cloud.log("web", &id).unwrap();
    assert!(log.iter().any(|line| line == "no database"), "{log:?}");
    assert!(seen.elapsed() < Duration::from_secs(2));
    cloud.finish().unwrap();
}

#[test]
fn an_app_on_the_wrong_address_is_told_what_it_listens_on() {
    let test = "an_app_on_the_wrong_address_is_told_what_it_listens_on";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "127.0.0.1:8000"]).unwrap();
    let config = json!({"image": image, "services": [{"internal_port": 8080, "protocol": "tcp",
        "ports": [{"port": 80, "handlers": ["http"]}]}]});
    let id = cloud.machine("web", &config, "started").unwrap();
    let said = wait_for("the reason", Duration::from_secs(20), || {
        let machine = cloud.machine_of("web", &id).ok()?;
        let text = machine.to_string();
        (text.contains("127.0.0.1:8000") && text.contains("8080")).then_some(text)
    });
    said.unwrap();
    cloud.finish().unwrap();
}

#[test]
fn bodies_that_make_no_sense_name_their_field() {
    let Some(cloud) = Cloud::start("bodies_that_make_no_sense_name_their_field").unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    for (config, field) in [
        (json!({"image": ""}), "config.image"),
        (json!({"image": image, "guest": {"memory_mb": 100}}), "memory_mb"),
        (json!({"image": image, "guest": {"cpus": 3}}), "cpus"),
        (json!({"image": image, "env": {"A": 1}}), "env"),
        (json!({"image": image, "mounts": [{"volume": "v", "path": "/d"}]}), "mounts"),
        (json!({"image": image, "services": [{"internal_port": 99999}]}), "internal_port"),
    ] {
        let answer =
            cloud.call("POST", "/v1/apps/web/machines", &json!({"config": config})).unwrap();
        assert!((400..=422).contains(&answer.status), "{config}: {}", answer.text());
        assert!(answer.text().contains(field), "{config}: {}", answer.text());
    }
    let list = cloud.must("GET", "/v1/apps/web/machines", &Value::Null).unwrap();
    assert_eq!(list, json!([]));
    cloud.finish().unwrap();
}

#[test]
fn a_full_disk_refuses_what_is_new_and_lets_everything_go() {
    let test = "a_full_disk_refuses_what_is_new_and_lets_everything_go";
    let options = Options { disk_mb: Some(4096), ..Options::default() };
    let Some(cloud) = Cloud::start_with(test, options).unwrap() else { return };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let config = json!({"image": image});
    let id = cloud.machine("web", &config, "started").unwrap();
    cloud.machine("web", &config, "started").unwrap();
    let volumes = "/v1/apps/web/volumes";
    let volume = cloud.must("POST", volumes, &json!({"name": "data", "size_gb": 1})).unwrap();
    let volume = format!("{volumes}/{}", volume["id"].as_str().unwrap());
    // Under the reserve of 1 GiB, and with room for the server's own records.
    cloud.leave_free(512 << 20).unwrap();
    let body = json!({"config": config});
    let answer = cloud.call("POST", "/v1/apps/web/machines", &body).unwrap();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (507, Some("no_space")));
    let list = cloud.must("GET", "/v1/apps/web/machines", &Value::Null).unwrap();
    assert_eq!(list.as_array().map(Vec::len), Some(2), "nothing half-made: {list}");

    // Not a byte, again and again: until the directory has met it.
    let mut number = 0;
    let refused = wait_for("the directory to be full", Duration::from_secs(30), || {
        cloud.leave_free(0).ok()?;
        number += 1;
        let body = json!({"name": format!("new-{number}"), "org_slug": "personal"});
        let answer = cloud.call("POST", "/v1/apps", &body).ok()?;
        (answer.status != 201).then_some(answer)
    });
    let refused = refused.unwrap();
    assert_eq!((refused.status, refused.json()["code"].as_str()), (507, Some("no_space")));
    // A part of what the reserves were, too little for anything new.
    cloud.leave_free(2 << 20).unwrap();
    let path = format!("/v1/apps/web/machines/{id}");
    cloud.must("POST", &format!("{path}/stop"), &json!({})).unwrap();
    cloud.reaches("web", &id, "stopped").unwrap();
    cloud.must("DELETE", &path, &Value::Null).unwrap();
    cloud.reaches("web", &id, "destroyed").unwrap();
    cloud.must("DELETE", &volume, &Value::Null).unwrap();
    cloud.must("DELETE", "/v1/apps/web", &Value::Null).unwrap();
    assert_eq!(cloud.call("GET", "/v1/apps/web", &Value::Null).unwrap().status, 404);

    // Above the reserve and what the volume, which can be had back for a day, may still write.
    cloud.leave_free(3 << 30).unwrap();
    // The name is free once nothing of the old app is left.
    let body = json!({"name": "web", "org_slug": "personal"});
    wait_for("the name to be free", Duration::from_secs(60), || {
        cloud.must("POST", "/v1/apps", &body).ok()
    })
    .unwrap();
    let image = cloud.push("web", "latest", &["--listen", "0.0.0.0:8080"]).unwrap();
    cloud.machine("web", &json!({"image": image}), "started").unwrap();
    cloud.finish().unwrap();
}

#[test]
fn a_server_that_cannot_start_says_why_and_what_to_do() {
    let Some(cloud) = Cloud::start("a_server_that_cannot_start_says_why_and_what_to_do").unwrap()
    else {
        return;
    };
    // A folder that another user can reach, unlike the one that the tests were built in.
    let folder = tempfile::Builder::new().prefix("pt").tempdir().unwrap();
    let program = folder.path().join("perchd");
    std::fs::copy(cloud.perchd_program(), &program).unwrap();
    set_searchable(folder.path());
    let said = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let not_root = said(
        std::process::Command::new("setpriv")
            .args(["--reuid", "64007", "--regid", "64007", "--clear-groups"])
            .arg(&program)
            .arg("serve"),
    );
    assert!(not_root.contains("runs as root") && not_root.contains("sudo"), "{not_root}");
    let data = folder.path().join("d");
    let port_in_use = said(
        std::process::Command::new(&program)
            .args(["serve", "--user", "64007", "--keys-user", "64009", "--instance", "other"])
            .arg("--data-dir")
            .arg(&data)
            .arg("--run-dir")
            .arg(folder.path().join("r"))
            .arg("--guest-dir")
            .arg(cloud.guest())
            .args(["--api", &cloud.api.to_string(), "--http", "127.0.0.1:0"]),
    );
    assert!(port_in_use.contains("is in use") && port_in_use.contains("--api"), "{port_in_use}");
    let folder_in_use = said(
        std::process::Command::new(&program)
            .args(["serve", "--user", "64007", "--keys-user", "64009"])
            .args(["--api", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(cloud.data())
            .arg("--run-dir")
            .arg(folder.path().join("r"))
            .arg("--guest-dir")
            .arg(cloud.guest()),
    );
    assert!(folder_in_use.contains("another perchd uses"), "{folder_in_use}");
    cloud.finish().unwrap();
}

fn set_searchable(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}
