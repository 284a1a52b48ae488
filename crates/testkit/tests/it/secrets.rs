//! App secrets on a whole server: from the command line into a machine, and nowhere else.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use perch_testkit::{Cloud, wait_for};
use serde_json::{Value, json};

const SECRETS: &str = "/v1/apps/web/secrets";

/// What a machine's program sees of a variable.
fn seen(cloud: &Cloud, id: &str, name: &str) -> String {
    let path = format!("/v1/apps/web/machines/{id}/exec");
    let script = format!("env | grep '^{name}=' || echo none");
    let command = ["sh", "-c", &script];
    let output = cloud.must("POST", &path, &json!({ "command": command })).unwrap();
    output["stdout"].as_str().unwrap().lines().last().unwrap_or_default().to_owned()
}

fn set(cloud: &Cloud, name: &str, value: &str) -> u64 {
    let body = json!({"values": {name: value}});
    cloud.must("POST", SECRETS, &body).unwrap()["version"].as_u64().unwrap()
}

fn restart(cloud: &Cloud, id: &str) {
    cloud.must("POST", &format!("/v1/apps/web/machines/{id}/stop"), &json!({})).unwrap();
    cloud.reaches("web", id, "stopped").unwrap();
    cloud.must("POST", &format!("/v1/apps/web/machines/{id}/start"), &Value::Null).unwrap();
    cloud.reaches("web", id, "started").unwrap();
}

fn run_folder(cloud: &Cloud) -> PathBuf {
    fs::canonicalize(cloud.data().join("../r")).unwrap()
}

/// Begins a rotation of the master key, as an operator does.
fn rotate(cloud: &Cloud) -> Child {
    let mut rotate = Command::new(cloud.perchd_program());
    rotate.args(["keys", "rotate", "--run-dir"]).arg(run_folder(cloud));
    rotate.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn contains(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// Returns the files below the server's folder, and the processes, that show a text.
fn shown(cloud: &Cloud, needle: &str) -> Vec<String> {
    // In a file of its own, so that the text is in no argument; holes of disks are skipped.
    let pattern = tempfile::NamedTempFile::new().unwrap();
    fs::write(pattern.path(), needle).unwrap();
    let output = Command::new("grep")
        .args(["-rlF", "-f"])
        .arg(pattern.path())
        .arg(cloud.data())
        .output()
        .unwrap();
    let mut found: Vec<String> =
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        if contains(&fs::read(process.path().join("cmdline")).unwrap_or_default(), needle) {
            found.push(process.path().display().to_string());
        }
    }
    if contains(cloud.server_log().as_bytes(), needle) {
        found.push("log".to_owned());
    }
    found
}

#[test]
fn t4_a_secret_reaches_its_machine_and_is_seen_nowhere_else() {
    // Put together here, so that no process has it in its arguments because of this test.
    let value = ["correct", "horse", "battery"].join("-");
    let test = "t4_a_secret_reaches_its_machine_and_is_seen_nowhere_else";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "web", "exec sleep 1000").unwrap() else {
        cloud.finish().unwrap();
        return;
    };
    assert_eq!(seen(&cloud, &id, "TOKEN"), "none");
    assert_eq!(set(&cloud, "TOKEN", &value), 1);
    assert_eq!(seen(&cloud, &id, "TOKEN"), "none", "a machine that runs is not touched");
    restart(&cloud, &id);
    assert_eq!(seen(&cloud, &id, "TOKEN"), format!("TOKEN={value}"));
    let machine = cloud.machine_of("web", &id).unwrap();
    assert_eq!(machine["secrets_version"], 1);
    let answers = [
        machine.to_string(),
        cloud.must("GET", SECRETS, &Value::Null).unwrap().to_string(),
        cloud.must("GET", "/v1/apps/web/machines", &Value::Null).unwrap().to_string(),
        cloud.log("web", &id).unwrap().join("\n"),
    ];
    assert!(!answers.concat().contains(&value));
    assert_eq!(shown(&cloud, &value), Vec::<String>::new());

    // An update sees newer ones, as files too; one that is to run without them does.
    set(&cloud, "TOKEN", "newer");
    set(&cloud, "KEY", "aW4gYSBmaWxl");
    let path = format!("/v1/apps/web/machines/{id}");
    let mut config = machine["config"].clone();
    config["files"] = json!([{"guest_path": "/tmp/key", "secret_name": "KEY"}]);
    let update = json!({"config": config, "min_secrets_version": 3});
    cloud.must("POST", &path, &update).unwrap();
    cloud.reaches("web", &id, "started").unwrap();
    assert_eq!(seen(&cloud, &id, "TOKEN"), "TOKEN=newer");
    let cat = json!({"command": ["cat", "/tmp/key"]});
    assert_eq!(cloud.must("POST", &format!("{path}/exec"), &cat).unwrap()["stdout"], "in a file");
    let update = json!({"config": machine["config"], "skip_secrets": true});
    cloud.must("POST", &path, &update).unwrap();
    cloud.reaches("web", &id, "started").unwrap();
    assert_eq!(seen(&cloud, &id, "TOKEN"), "none");
    cloud.finish().unwrap();
}

#[test]
fn t4_the_front_process_cannot_get_at_a_key_and_machines_boot_without_the_keys() {
    let test = "t4_the_front_process_cannot_get_at_a_key_and_machines_boot_without_the_keys";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "web", "exec sleep 1000").unwrap() else {
        cloud.finish().unwrap();
        return;
    };
    set(&cloud, "TOKEN", "one");
    restart(&cloud, &id);

    let keys = cloud.data().join("keys");
    let host = cloud.data().join("host/secrets");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&keys), mode(&keys.join("master.json"))), (0o700, 0o600));
    assert_eq!((mode(&host), mode(&host.join("host.key"))), (0o700, 0o600));
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    assert_eq!((owner(&keys.join("master.json")), owner(&host.join("host.key"))), (64_009, 0));
    let run = run_folder(&cloud);
    for (socket, uid) in
        [("keys.sock", 64_007), ("keys-host.sock", 0), ("directory-keys.sock", 64_009)]
    {
        assert_eq!((owner(&run.join(socket)), mode(&run.join(socket))), (uid, 0o600), "{socket}");
    }
    let (_, pid) = cloud.role_pids().into_iter().find(|(role, _)| role == "keys").unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["Uid:\t64009\t64009\t64009\t64009", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    assert_eq!(caps.trim().trim_start_matches('0'), "");

    // A rotation while a machine runs; then the role is stopped dead and the machine boots.
    let rotated = rotate(&cloud).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&rotated.stdout).into_owned();
    assert!(said.contains("version 2") && said.contains("1 apps"), "{rotated:?}");
    let raw = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::STOP).unwrap();
    restart(&cloud, &id);
    assert_eq!(seen(&cloud, &id, "TOKEN"), "TOKEN=one");
    rustix::process::kill_process(raw, rustix::process::Signal::CONT).unwrap();
    cloud.kill_role("keys").unwrap();
    assert_eq!(seen(&cloud, &id, "TOKEN"), "TOKEN=one", "a machine that runs is not touched");
    assert_eq!(set(&cloud, "TOKEN", "two"), 2);
    cloud.kill_role("host").unwrap();
    restart(&cloud, &id);
    assert_eq!(seen(&cloud, &id, "TOKEN"), "TOKEN=two");
    cloud.finish().unwrap();
}

#[test]
fn t13_keys_that_is_killed_while_it_rotates_costs_no_machine_its_secrets() {
    let test = "t13_keys_that_is_killed_while_it_rotates_costs_no_machine_its_secrets";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "web", "exec sleep 1000").unwrap() else {
        cloud.finish().unwrap();
        return;
    };
    set(&cloud, "FIRST", "zero");
    let (keys, host) = (cloud.data().join("keys"), cloud.data().join("host/secrets"));
    let master = || fs::read(keys.join("master.json")).unwrap();
    let long = Duration::from_secs(60);
    for (value, is_written) in [("one", false), ("two", true)] {
        let before = master();
        let asked = rotate(&cloud);
        if is_written {
            // From here on apps' keys are wrapped with it.
            wait_for("a new version", long, || (master() != before).then_some(())).unwrap();
        }
        cloud.kill_role("keys").unwrap();
        // Whatever it was told.
        asked.wait_with_output().unwrap();
        let again = || rotate(&cloud).wait_with_output().unwrap().status.success().then_some(());
        wait_for("a rotation", long, again).unwrap();
        // The host asks for the app's key as if it had never had it.
        for file in fs::read_dir(&host).unwrap().flatten().map(|file| file.path()) {
            if file.extension().is_some_and(|ending| ending == "sealed") {
                fs::remove_file(file).unwrap();
            }
        }
        set(&cloud, "TOKEN", value);
        restart(&cloud, &id);
        assert_eq!(seen(&cloud, &id, "FIRST"), "FIRST=zero");
        assert_eq!(seen(&cloud, &id, "TOKEN"), format!("TOKEN={value}"));
    }
    let left: Vec<_> = fs::read_dir(&keys).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["master.json"], "nothing of a key is left half-way");
    cloud.finish().unwrap();
}
