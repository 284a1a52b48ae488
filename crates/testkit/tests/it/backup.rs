//! A backup of a server that runs, restored onto an empty one.

use std::fs;

use perch_testkit::Cloud;
use serde_json::{Value, json};

/// A machine that runs on a volume, of which there is a snapshot.
struct Mounted {
    machine: String,
    volume: String,
}

impl Mounted {
    fn new(cloud: &Cloud, image: &str) -> Self {
        let volumes = "/v1/apps/web/volumes";
        let asked = json!({"name": "data", "size_gb": 1});
        let made = cloud.must("POST", volumes, &asked).unwrap();
        let volume = made["id"].as_str().unwrap().to_owned();
        let mounts = json!([{"volume": volume, "path": "/data"}]);
        let config = json!({"image": image, "mounts": mounts});
        let machine = cloud.machine("web", &config, "started").unwrap();
        cloud.must("POST", &format!("{volumes}/{volume}/snapshots"), &Value::Null).unwrap();
        Self { machine, volume }
    }

    fn state(&self, cloud: &Cloud) -> Value {
        let path = format!("/v1/apps/web/volumes/{}", self.volume);
        cloud.must("GET", &path, &Value::Null).unwrap()["state"].clone()
    }

    /// Its image is not in the backup: that is what is said, and nothing is started on nothing.
    fn is_told_as_lost(&self, cloud: &Cloud) {
        cloud.reaches("web", &self.machine, "failed").unwrap();
        assert_eq!(self.state(cloud), "recovering");
        let start = format!("/v1/apps/web/machines/{}/start", self.machine);
        let refused = cloud.call("POST", &start, &Value::Null).unwrap();
        assert_eq!(refused.status, 409, "{}", refused.text());
        assert!(refused.text().contains("does not have its image"), "{}", refused.text());
        assert!(refused.json()["hint"].as_str().unwrap().contains(&self.volume));
        let snapshots = format!("/v1/apps/web/volumes/{}/snapshots", self.volume);
        let snapshots = cloud.must("GET", &snapshots, &Value::Null).unwrap();
        assert_eq!(snapshots[0]["status"], "missing", "{snapshots}");
    }

    /// An operator puts an image back, for which there is a pool again with the first new volume.
    fn comes_back(&self, cloud: &mut Cloud) {
        let asked = json!({"name": "new", "size_gb": 1});
        let made = cloud.must("POST", "/v1/apps/web/volumes", &asked).unwrap();
        cloud.stop().unwrap();
        let image = |id: &str| cloud.place().pool.join("volumes").join(format!("{id}.img"));
        fs::copy(image(made["id"].as_str().unwrap()), image(&self.volume)).unwrap();
        cloud.boot().unwrap();
        assert_eq!(self.state(cloud), "created");
        let start = format!("/v1/apps/web/machines/{}/start", self.machine);
        cloud.must("POST", &start, &Value::Null).unwrap();
        cloud.reaches("web", &self.machine, "started").unwrap();
    }
}

#[test]
fn a_backup_of_a_running_server_is_restored_onto_an_empty_one() {
    let test = "a_backup_of_a_running_server_is_restored_onto_an_empty_one";
    let Some(mut cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--print", "hello", "--listen", "0.0.0.0:8080"]).unwrap();
    let secrets = json!({"values": {"TOKEN": "sealed"}});
    cloud.must("POST", "/v1/apps/web/secrets", &secrets).unwrap();
    let key = "/v1/apps/web/secretkeys/box";
    let made = json!({"type": "nacl_secretbox"});
    cloud.must("POST", &format!("{key}/generate"), &made).unwrap();
    let plain = json!({"plaintext": "aGVsbG8="});
    let sealed = cloud.must("POST", &format!("{key}/encrypt"), &plain).unwrap();
    let services: Value = serde_json::from_str(super::survival::SERVICE).unwrap();
    let config = json!({"image": image, "services": services, "env": {"COLOUR": "green"}});
    let runs = cloud.machine("web", &config, "started").unwrap();
    let rests = cloud.machine("web", &config, "started").unwrap();
    let stop = format!("/v1/apps/web/machines/{rests}/stop");
    cloud.must("POST", &stop, &json!({})).unwrap();
    cloud.reaches("web", &rests, "stopped").unwrap();
    let mounted = Mounted::new(&cloud, &image);
    let before = cloud.machine_of("web", &runs).unwrap();
    let token = cloud.token.clone();

    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().display().to_string();
    let (done, text) = cloud.operator("backup", &[&target]).unwrap();
    assert!(done && text.contains("not in it: host/machines"), "{text}");
    let archive = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let archive = archive.display().to_string();

    // What happens after the backup is not in it, and a server that has a state is left alone.
    let later = cloud.machine("web", &config, "started").unwrap();
    cloud.stop().unwrap();
    let (done, text) = cloud.operator("restore", &[&archive]).unwrap();
    assert!(!done && text.contains("not empty"), "{text}");

    cloud.wipe().unwrap();
    assert!(!cloud.data().exists());
    let bytes = fs::read(&archive).unwrap();
    let cut = folder.path().join("cut.tar");
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let (done, text) = cloud.operator("restore", &[&cut.display().to_string()]).unwrap();
    assert!(!done && text.contains("cut"), "{text}");
    let (done, text) = cloud.operator("restore", &[&archive]).unwrap();
    assert!(done && text.contains("restored host"), "{text}");
    cloud.boot().unwrap();
    assert_eq!(cloud.token, token, "the administrator's token is the one from before");

    // The machine runs again: as it was, with an image out of the restored registry.
    cloud.reaches("web", &runs, "started").unwrap();
    mounted.is_told_as_lost(&cloud);
    let machines = cloud.agrees("web").unwrap();
    assert_eq!(machines.len(), 3, "{machines:#?}");
    assert!(!machines.iter().any(|machine| machine["id"] == later.as_str()));
    let after = cloud.machine_of("web", &runs).unwrap();
    for same in ["name", "private_ip", "config", "instance_id", "created_at"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    let env = cloud.get("web", "/env").unwrap();
    assert_eq!(env.status, 200);
    assert!(env.text().lines().any(|line| line == "TOKEN=sealed"), "{}", env.text());
    let opened = cloud.must("POST", &format!("{key}/decrypt"), &sealed).unwrap();
    assert_eq!(opened, plain, "what was encrypted before is decrypted after");
    assert_eq!(cloud.machine_of("web", &rests).unwrap()["state"], "stopped");
    let start = format!("/v1/apps/web/machines/{rests}/start");
    cloud.must("POST", &start, &Value::Null).unwrap();
    cloud.reaches("web", &rests, "started").unwrap();
    cloud.machine("web", &config, "started").unwrap();
    mounted.comes_back(&mut cloud);
    cloud.agrees("web").unwrap();
    cloud.finish().unwrap();
}
