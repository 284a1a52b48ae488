//! Writes the files that tests of later releases open: the state of a server of today, killed with
//! -9 while it had every kind of record and was in the middle of work.
//!
//! Run by hand when there is a new kind of record, and its files are committed (it needs the
//! program `sqlite3`):
//! `cargo nextest run -p perch-testkit --run-ignored only -E 'test(of_a_killed_server)'`

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use perch_testkit::{Cloud, Options, wait_for};
use serde_json::{Value, json};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest file that is committed.
const BYTES_MAX: u64 = 200_000;
/// A program that takes no notice of being stopped.
const STUBBORN: &str = "trap '' INT TERM; while :; do sleep 1; done";
/// The image of the machines.
const IMAGE: &str = "registry.internal/web:latest";
const MACHINES: &str = "/v1/apps/web/machines";
const VOLUMES: &str = "/v1/apps/web/volumes";
/// Which runs are under way.
const OPEN_RUNS: &str = "SELECT kind FROM runs WHERE finished_ms IS NULL";
/// How many commands wait.
const WAITING: &str =
    "SELECT sum(json_array_length(value)) FROM records WHERE collection = 'queues'";

/// Runs SQL on a file and returns what it says.
fn sql(file: &Path, options: &[&str], script: &str) -> String {
    let output = Command::new("sqlite3").args(options).arg(file).arg(script).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A server that is being brought to have everything.
struct Rich {
    cloud: Cloud,
}

impl Rich {
    fn host_file(&self) -> PathBuf {
        self.cloud.data().join("host/host.db")
    }

    fn directory_file(&self) -> PathBuf {
        self.cloud.data().join("front/directory.db")
    }

    /// Waits until a query of a file, which its owner goes on writing, gives all of these lines.
    fn until(file: &Path, query: &str, wanted: &[&str]) {
        let mut last = String::new();
        let found = wait_for(query, PATIENCE, || {
            last = sql(file, &["-readonly", "-cmd", ".timeout 5000"], query);
            wanted.iter().all(|one| last.lines().any(|line| line == *one)).then_some(())
        });
        assert!(found.is_ok(), "{query}: wanted {wanted:?}, there is {last}");
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.cloud.must(method, path, body).unwrap()
    }

    /// Asks for what has no answer before the server is killed.
    fn ask_and_leave(&self, method: &'static str, path: String, body: Value) {
        let caller = self.cloud.caller();
        std::thread::spawn(move || drop(caller.call(method, &path, &body)));
    }

    /// Makes a machine of the stubborn program; returns its path.
    fn machine(&self, name: &str, more: Value, state: &str) -> String {
        let mut config = json!({"image": IMAGE, "restart": {"policy": "no"}});
        let Value::Object(more) = more else { unreachable!() };
        config.as_object_mut().unwrap().extend(more);
        let made = self.ask("POST", MACHINES, &json!({"name": name, "config": config}));
        let id = made["id"].as_str().unwrap();
        self.cloud.reaches("web", id, state).unwrap();
        format!("{MACHINES}/{id}")
    }

    fn volume(&self, name: &str) -> String {
        let made = self.ask("POST", VOLUMES, &json!({"name": name, "size_gb": 1}));
        made["id"].as_str().unwrap().to_owned()
    }

    fn reaches(&self, machine: &str, state: &str) {
        let path = format!("{machine}/wait?state={state}&timeout=30");
        self.ask("GET", &path, &Value::Null);
    }

    /// Machines that rest, run, are frozen, wait for their time, or are gone.
    fn make_machines(&self) {
        let services = json!([{"internal_port": 8080, "protocol": "tcp",
            "ports": [{"port": 80, "handlers": ["http"]}, {"port": 5432}]}]);
        let checks = json!({"alive": {"type": "tcp", "port": 8080, "interval": "10s"}});
        let runs = self.machine(
            "runs",
            json!({"services": services, "checks": checks, "restart": {"policy": "always"},
                "env": {"COLOUR": "green"}, "metadata": {"role": "web"},
                "files": [{"guest_path": "/tmp/file", "raw_value": "aGVsbG8="}]}),
            "started",
        );
        self.ask("POST", &format!("{runs}/cordon"), &Value::Null);
        let stop = json!({"stop_config": {"timeout": "3s", "signal": "SIGKILL"}});
        let rests = self.machine("rests", stop, "started");
        self.ask("POST", &format!("{rests}/stop"), &json!({}));
        self.reaches(&rests, "stopped");
        self.ask("POST", &format!("{rests}/lease"), &json!({"ttl": 3600, "description": "kept"}));
        let frozen = self.machine("frozen", json!({}), "started");
        self.ask("POST", &format!("{frozen}/suspend"), &Value::Null);
        self.reaches(&frozen, "suspended");
        self.machine("scheduled", json!({"schedule": "hourly"}), "started");
        let watched = runs.rsplit('/').next().unwrap();
        self.machine("standby", json!({"standbys": [watched]}), "stopped");
        let exec = ["/bin/sh", "-c", STUBBORN];
        let containers = json!([
            {"name": "web", "image": IMAGE, "exec": exec,
             "mounts": [{"name": "scratch", "path": "/shared"}],
             "depends_on": [{"name": "db", "condition": "started"}]},
            {"name": "db", "image": IMAGE, "exec": exec,
             "mounts": [{"name": "scratch", "path": "/shared"}]},
        ]);
        let volumes = json!([{"name": "scratch", "temp_dir": {"size_mb": 8}}]);
        let made = json!({"name": "crowded",
            "config": {"containers": containers, "volumes": volumes,
                "restart": {"policy": "no"}}});
        let made = self.ask("POST", MACHINES, &made);
        self.cloud.reaches("web", made["id"].as_str().unwrap(), "started").unwrap();
        let gone = self.machine("gone", json!({}), "started");
        self.ask("DELETE", &format!("{gone}?force=true"), &Value::Null);
        self.reaches(&gone, "destroyed");
        let prepared = json!({"name": "prepared", "skip_launch": true,
            "config": {"image": IMAGE, "auto_destroy": true}});
        self.ask("POST", MACHINES, &prepared);
    }

    /// A volume that is used and has a snapshot, and one that is to go.
    fn make_volumes(&self) {
        let data = self.volume("data");
        let mounts = json!([{"volume": data, "path": "/data"}]);
        self.machine("mounts", json!({"mounts": mounts}), "started");
        self.ask("POST", &format!("{VOLUMES}/{data}/snapshots"), &Value::Null);
        let gone = self.volume("gone");
        self.ask("DELETE", &format!("{VOLUMES}/{gone}"), &Value::Null);
    }

    /// What belongs to the app and to no machine.
    fn make_of_app(&self) {
        let secrets = json!({"values": {"TOKEN": "sealed"}});
        self.ask("POST", "/v1/apps/web/secrets", &secrets);
        let key = json!({"type": "nacl_secretbox"});
        self.ask("POST", "/v1/apps/web/secretkeys/box/generate", &key);
        let policy = json!({"name": "web only", "selector": {"all": true}, "rules": [{
            "action": "allow", "direction": "ingress",
            "ports": [{"protocol": "tcp", "port": 8080}]}]});
        self.ask("POST", "/v1/apps/web/network_policies", &policy);
        self.ask("POST", "/v1/apps/web/ip_assignments", &json!({"type": "shared_v4"}));
        self.ask("POST", "/v1/apps/web/deploy_token", &json!({"name": "ci"}));
    }

    /// Begins what is still under way when the server is killed.
    fn begin(&self) {
        let slow = json!({"stop_config": {"timeout": "120s"}});
        let stops = self.machine("stops", slow.clone(), "started");
        let updated = self.machine("updated", slow, "started");
        self.ask_and_leave("POST", format!("{stops}/stop"), json!({}));
        Self::until(&self.host_file(), OPEN_RUNS, &["stop"]);
        self.ask_and_leave("POST", format!("{stops}/start"), Value::Null);
        Self::until(&self.host_file(), WAITING, &["1"]);
        let config = json!({"config": {"image": IMAGE, "env": {"VERSION": "3"}}});
        self.ask_and_leave("POST", stops, config.clone());
        Self::until(&self.host_file(), WAITING, &["2"]);
        self.ask_and_leave("POST", updated, config);

        // It only goes forward, so it is tried again for a while.
        let broken = self.volume("broken");
        let image = self.cloud.place().pool.join("volumes").join(format!("{broken}.img"));
        let file = File::options().write(true).open(image).unwrap();
        file.write_all_at(&[0; 4096], 0).unwrap();
        drop(file);
        let extend = format!("{VOLUMES}/{broken}/extend");
        self.ask_and_leave("PUT", extend, json!({"size_gb": 2}));
        Self::until(&self.host_file(), OPEN_RUNS, &["stop", "update", "volume extend"]);
    }

    /// Begins what the api has promised, and its host has not heard of.
    fn promise(&self) {
        self.cloud.pause_role("host").unwrap();
        self.ask_and_leave("DELETE", "/v1/apps/old".to_owned(), Value::Null);
        let config = json!({"config": {"image": IMAGE}});
        self.ask_and_leave("POST", MACHINES.to_owned(), config);
        let query = "SELECT DISTINCT substr(key, 1, instr(key, '/')) FROM documents";
        Self::until(&self.directory_file(), query, &["tombstones/", "promises/"]);
    }
}

/// Copies a file that nobody has open, changes it and makes it small.
fn keep(source: &Path, target: &Path, change: &str) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.db");
    fs::copy(source, &copy).unwrap();
    let beside = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    if beside(source).exists() {
        fs::copy(beside(source), beside(&copy)).unwrap();
    }
    sql(&copy, &[], &format!("{change}; PRAGMA journal_mode = DELETE; VACUUM"));
    let size_bytes = fs::metadata(&copy).unwrap().len();
    assert!(size_bytes <= BYTES_MAX, "{} takes {size_bytes} bytes", target.display());
    fs::copy(&copy, target).unwrap();
}

/// Returns the number after the highest of the files that are there.
fn next_number(folders: [&Path; 2]) -> u32 {
    let names = folders.into_iter().flat_map(|folder| fs::read_dir(folder).unwrap().flatten());
    let number = |name: String| name.strip_suffix(".db")?.rsplit('-').next()?.parse::<u32>().ok();
    let numbers = names.filter_map(|entry| number(entry.file_name().into_string().unwrap()));
    numbers.max().unwrap_or_default() + 1
}

#[test]
#[ignore = "writes the files that other tests open"]
fn states_of_a_killed_server_are_written() {
    let test = "states_of_a_killed_server_are_written";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("perchd.toml");
    fs::write(&file, "public_ips = [\"192.0.2.1\"]\n").unwrap();
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    let options = Options { arguments, ..Options::default() };
    let cloud = Cloud::start_with(test, options).unwrap().unwrap();
    let mut rich = Rich { cloud };
    let first = rich.cloud.shell(test, "web", STUBBORN).unwrap();
    assert!(first.is_some(), "busybox is missing");
    let old = rich.cloud.app("old", &["--listen", "0.0.0.0:8080"]).unwrap();
    rich.cloud.machine("old", &json!({"image": old}), "started").unwrap();
    rich.make_of_app();
    rich.make_machines();
    rich.make_volumes();
    // It notes which images are in use.
    let (done, text) = rich.cloud.cli(&["system", "prune"]).unwrap();
    assert!(done, "{text}");
    rich.begin();
    let kinds = "SELECT DISTINCT collection FROM records";
    let all = ["machines", "queues", "volumes", "snapshots", "host", "slots", "image_uses"];
    Rich::until(&rich.host_file(), kinds, &all);
    let published = "SELECT count(*) FROM documents WHERE key LIKE 'volumes/%'";
    Rich::until(&rich.directory_file(), published, &["3"]);
    rich.promise();
    rich.cloud.crash().unwrap();

    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let state = crates.join("host/tests/fixtures");
    let directory = crates.join("store/tests/fixtures");
    let number = next_number([&state, &directory]);
    // Wherever it is opened, the server was restarted since. Of runs that ended a few are enough.
    let restarted = "UPDATE records SET value = json_set(value, '$.server_boot', 'another') \
                     WHERE collection = 'host'; PRAGMA foreign_keys = ON; \
                     DELETE FROM runs WHERE finished_ms IS NOT NULL AND id NOT IN \
                     (SELECT id FROM runs WHERE finished_ms IS NOT NULL ORDER BY id DESC LIMIT 8)";
    keep(&rich.host_file(), &state.join(format!("state-{number}.db")), restarted);
    // As the directory does by itself, later.
    let compacted = "UPDATE meta SET compacted = max(compacted, revision - 16); \
                     DELETE FROM changes WHERE revision <= (SELECT compacted FROM meta)";
    keep(&rich.directory_file(), &directory.join(format!("directory-{number}.db")), compacted);
    rich.cloud.boot().unwrap();
    rich.cloud.finish().unwrap();
}
