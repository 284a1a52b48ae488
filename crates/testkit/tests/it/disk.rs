//! What takes the server's disk, and what frees it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use perch_testkit::{Cloud, Options, wait_for};
use serde_json::{Value, json};

fn images(cloud: &Cloud) -> usize {
    fs::read_dir(cloud.data().join("host/images/images")).unwrap().count()
}

fn of_kind(usage: &Value, kind: &str) -> Value {
    let uses = usage["hosts"][0]["uses"].as_array().unwrap();
    uses.iter().find(|one| one["kind"] == kind).unwrap().clone()
}

#[test]
fn images_that_no_machine_uses_are_shown_and_pruned() {
    let Some(cloud) = Cloud::start("images_that_no_machine_uses_are_shown_and_pruned").unwrap()
    else {
        return;
    };
    let listen = ["--listen", "0.0.0.0:8080"];
    let first = cloud.app("web", &listen).unwrap();
    let second = cloud.push("web", "second", &["--print", "other", "--listen", "0.0.0.0:8080"]);
    let kept = cloud.machine("web", &json!({"image": first}), "started").unwrap();
    let gone = cloud.machine("web", &json!({"image": second.unwrap()}), "started").unwrap();
    let usage = || -> Value {
        let (done, text) = cloud.cli(&["system", "df", "--json"]).unwrap();
        assert!(done, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    let before = usage();
    assert_eq!(of_kind(&before, "images")["count"], 2);
    assert_eq!(of_kind(&before, "images")["reclaimable_bytes"], 0, "machines name both");
    assert_eq!(of_kind(&before, "machine disks")["count"], 2);
    for kind in ["images", "machine disks", "machine logs", "registry"] {
        assert!(of_kind(&before, kind)["bytes"].as_u64().unwrap() > 0, "{kind}: {before}");
    }
    let (done, text) = cloud.cli(&["system", "prune"]).unwrap();
    assert!(done && text.contains("0 images deleted"), "{text}");

    cloud
        .must("DELETE", &format!("/v1/apps/web/machines/{gone}?force=true"), &Value::Null)
        .unwrap();
    cloud.reaches("web", &gone, "destroyed").unwrap();
    assert_eq!(images(&cloud), 2, "under its cap the cache keeps it");
    assert!(of_kind(&usage(), "images")["reclaimable_bytes"].as_u64().unwrap() > 0);
    let (done, text) = cloud.cli(&["system", "prune"]).unwrap();
    assert!(done && text.contains("1 images deleted"), "{text}");
    assert_eq!(images(&cloud), 1);

    // What is used still starts, and what was deleted is pulled again.
    cloud.must("POST", &format!("/v1/apps/web/machines/{kept}/restart"), &json!({})).unwrap();
    cloud.reaches("web", &kept, "started").unwrap();
    cloud.machine("web", &json!({"image": "registry.internal/web:second"}), "started").unwrap();
    let (_, text) = cloud.cli(&["system", "df"]).unwrap();
    assert!(text.contains("RECLAIMABLE") && text.contains("machine logs"), "{text}");
    cloud.finish().unwrap();
}

#[test]
fn a_server_over_its_cap_deletes_by_itself_also_after_it_was_killed() {
    let test = "a_server_over_its_cap_deletes_by_itself_also_after_it_was_killed";
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("perchd.toml");
    fs::write(&file, "[image_cache]\nsize_mb = 0\nkept_s = 0\n").unwrap();
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    let options = Options { arguments, ..Options::default() };
    let Some(mut cloud) = Cloud::start_with(test, options).unwrap() else {
        return;
    };
    let listen = ["--listen", "0.0.0.0:8080"];
    let image = cloud.app("web", &listen).unwrap();
    let kept = cloud.machine("web", &json!({"image": image}), "started").unwrap();
    let long = Duration::from_secs(30);
    for round in 0..4 {
        let line = format!("round {round}");
        let tag = format!("t{round}");
        let other =
            cloud.push("web", &tag, &["--print", &line, "--listen", "0.0.0.0:8080"]).unwrap();
        let id = cloud.machine("web", &json!({"image": other}), "started").unwrap();
        assert_eq!(images(&cloud), 2);
        let path = format!("/v1/apps/web/machines/{id}?force=true");
        cloud.must("DELETE", &path, &Value::Null).unwrap();
        if round % 2 == 1 {
            // At some moment of the deletion, or before it.
            cloud.kill().unwrap();
            cloud.boot().unwrap();
        }
        wait_for("the image to go", Duration::from_secs(90), || {
            (images(&cloud) == 1).then_some(())
        })
        .unwrap();
    }
    cloud.must("POST", &format!("/v1/apps/web/machines/{kept}/restart"), &json!({})).unwrap();
    cloud.reaches("web", &kept, "started").unwrap();
    wait_for("its program", long, || {
        cloud.log("web", &kept).ok()?.iter().any(|line| line.contains("listening")).then_some(())
    })
    .unwrap();
    cloud.finish().unwrap();
}
