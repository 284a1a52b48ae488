//! A build that is broken off: whoever waits is told, nothing of it runs on, the next one works.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use perch_testkit::{Cloud, Options, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// What the endless step of the test's Dockerfile runs; its port tells it from other tests'.
fn endless() -> String {
    format!("127.0.0.1:{}", 20_000 + std::process::id() % 40_000)
}

/// An app whose Dockerfile has a step that does not end, in a folder of its own.
fn source(cloud: &Cloud) -> tempfile::TempDir {
    cloud.must("POST", "/v1/apps", &json!({"name": "shop", "org_slug": "personal"})).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(cloud.guest().join("perch-testserver"), folder.path().join("server")).unwrap();
    let text = "app = \"shop\"\n[http_service]\ninternal_port = 8080\n";
    fs::write(folder.path().join("fly.toml"), text).unwrap();
    let step = format!("RUN [\"/server\", \"--listen\", \"{}\"]\n", endless());
    fs::write(folder.path().join("Dockerfile"), dockerfile(&step)).unwrap();
    folder
}

fn dockerfile(step: &str) -> String {
    format!(
        "FROM scratch\nCOPY server /server\nEXPOSE 8080\n{step}\
         ENTRYPOINT [\"/server\", \"--listen\", \"0.0.0.0:8080\"]\n"
    )
}

/// Returns whether the endless step runs.
fn runs() -> bool {
    let pattern = format!("^/server --listen {}", endless());
    Command::new("pgrep").args(["-f", &pattern]).stdout(Stdio::null()).status().unwrap().success()
}

fn reaches(wanted: bool) {
    let what = if wanted { "the step to run" } else { "the step to end" };
    wait_for(what, Duration::from_secs(60), || (runs() == wanted).then_some(())).unwrap();
}

fn deploy(cloud: &Cloud, folder: &tempfile::TempDir) -> Child {
    cloud
        .perch()
        .current_dir(folder.path())
        .arg("deploy")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What every broken build must leave: nothing, and a builder that builds.
fn builds_again(cloud: Cloud, folder: &tempfile::TempDir) {
    fs::write(folder.path().join("Dockerfile"), dockerfile("")).unwrap();
    let output = deploy(&cloud, folder).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{}", cloud.server_log());
    assert_eq!(cloud.get("shop", "/").unwrap().status, 200);
    let machines = cloud.must("GET", "/v1/apps/shop/machines", &json!(null)).unwrap();
    assert_eq!(machines.as_array().unwrap().len(), 1, "{machines}");
    cloud.finish().unwrap();
}

/// Kills a process of the server in the middle of a build.
fn broken_off_by(role: &str, test: &str) {
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let folder = source(&cloud);
    let build = deploy(&cloud, &folder);
    reaches(true);
    cloud.kill_role(role).unwrap();
    let output = build.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the build broke off"), "{text}");
    assert!(text.contains("perch deploy"), "a way out: {text}");
    reaches(false);
    builds_again(cloud, &folder);
}

#[test]
fn c4_killing_the_builder_ends_the_build_and_says_so() {
    broken_off_by("builder", "c4_killing_the_builder_ends_the_build_and_says_so");
}

#[test]
fn c4_killing_the_front_ends_the_build_and_says_so() {
    broken_off_by("front", "c4_killing_the_front_ends_the_build_and_says_so");
}

#[test]
fn a_build_nobody_waits_for_any_more_ends() {
    let Some(cloud) = Cloud::start("a_build_nobody_waits_for_any_more_ends").unwrap() else {
        return;
    };
    let folder = source(&cloud);
    let mut build = deploy(&cloud, &folder);
    reaches(true);
    let pid = Pid::from_raw(i32::try_from(build.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    build.wait().unwrap();
    reaches(false);
    builds_again(cloud, &folder);
}

#[test]
fn a_full_disk_refuses_a_build_and_says_what_to_do() {
    let test = "a_full_disk_refuses_a_build_and_says_what_to_do";
    let options = Options { disk_mb: Some(1536), ..Options::default() };
    let Some(cloud) = Cloud::start_with(test, options).unwrap() else { return };
    let folder = source(&cloud);
    fs::write(folder.path().join("Dockerfile"), dockerfile("")).unwrap();
    // Under the reserve of 1 GiB, and with room for the server's own records.
    let filler = cloud.data().join("filler");
    fs::write(&filler, vec![0; 700 << 20]).unwrap();
    let output = deploy(&cloud, &folder).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no_space") && text.contains("hint: "), "{text}");
    fs::remove_file(&filler).unwrap();
    builds_again(cloud, &folder);
}

#[test]
fn r11_a_new_app_of_an_old_name_builds_on_none_of_its_layers() {
    let test = "r11_a_new_app_of_an_old_name_builds_on_none_of_its_layers";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let folder = source(&cloud);
    fs::write(folder.path().join("Dockerfile"), dockerfile("")).unwrap();
    assert!(deploy(&cloud, &folder).wait().unwrap().success());
    let deploy_again = |expected: bool| {
        let text =
            "FROM localhost/build\nENTRYPOINT [\"/server\", \"--listen\", \"0.0.0.0:8080\"]\n";
        fs::write(folder.path().join("Dockerfile"), text).unwrap();
        let output = deploy(&cloud, &folder).wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), expected, "{text}");
    };
    // The app itself may build on what it built last: the store is found at all.
    deploy_again(true);
    cloud.must("DELETE", "/v1/apps/shop?force=true", &json!(null)).unwrap();
    let body = json!({"name": "shop", "org_slug": "personal"});
    wait_for("the name to be free", Duration::from_secs(30), || {
        cloud.must("POST", "/v1/apps", &body).ok()
    })
    .unwrap();
    deploy_again(false);
    cloud.finish().unwrap();
}
