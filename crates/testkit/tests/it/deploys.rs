//! `perch deploy` of programs that do not listen where they should, or not yet.

use std::time::{Duration, Instant};

use perch_testkit::Cloud;

const FILE: &str = "[http_service]\ninternal_port = 8080\n[[http_service.checks]]\n\
    interval = \"2s\"\ntimeout = \"1s\"\npath = \"/\"\n[deploy]\nwait_timeout = \"5m\"\n";
/// Far below the time that the file gives, and far above what the CLI waits, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_wrong_listener_is_reported_soon_though_the_file_has_time() {
    let test = "a_wrong_listener_is_reported_soon_though_the_file_has_time";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    for (app, listen) in [("address", "127.0.0.1:8080"), ("port", "0.0.0.0:9000")] {
        let image = cloud.app(app, &["--listen", listen]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("fly.toml"), format!("app = \"{app}\"\n{FILE}")).unwrap();
        let begun = Instant::now();
        let output = cloud
            .perch()
            .current_dir(folder.path())
            .args(["deploy", "--image", &image])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&format!("listens on {listen}, expected 0.0.0.0:8080")), "{text}");
        assert!(text.contains("is removed"), "{text}");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    cloud.finish().unwrap();
}

/// Longer than the patience with a wrong listener.
const SLOW: &str =
    "sleep 13; mkdir -p /tmp/w; echo hi > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w";

#[test]
fn a_slow_start_is_waited_for() {
    let test = "a_slow_start_is_waited_for";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "slow", SLOW).unwrap() else { return };
    let machine = cloud.machine_of("slow", &id).unwrap();
    let image = machine["config"]["image"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = "app = \"slow\"\n[http_service]\ninternal_port = 8080\n";
    std::fs::write(folder.path().join("fly.toml"), file).unwrap();
    let output = cloud
        .perch()
        .current_dir(folder.path())
        .args(["deploy", "--image", image])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("nothing listens on 0.0.0.0:8080"), "{text}");
    cloud.finish().unwrap();
}
