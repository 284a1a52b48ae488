//! Properties that a whole server must show.

use perch_testkit::{Cloud, http};
use serde_json::{Value, json};

#[test]
fn t1_no_token_no_answer() {
    let Some(cloud) = Cloud::start("t1_no_token_no_answer").unwrap() else {
        return;
    };
    for path in ["/v1/apps", "/v1/apps/web", "/v1/apps/web/machines", "/v1/platform", "/v1/images"]
    {
        for fields in
            [&[("Host", "api")][..], &[("Host", "api"), ("Authorization", "Bearer wrong")]]
        {
            let answer = http::request(cloud.api, "GET", path, fields, b"").unwrap();
            assert_eq!(answer.status, 401, "{path}: {}", answer.text());
        }
    }
    let answer = http::request(cloud.api, "GET", "/v2/", &[("Host", "api")], b"").unwrap();
    assert_eq!(answer.status, 401);
    cloud.finish().unwrap();
}

#[test]
fn k7_root_in_a_machine_is_nobody_on_the_host() {
    let Some(cloud) = Cloud::start("k7_root_in_a_machine_is_nobody_on_the_host").unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    cloud.machine("web", &json!({"image": image}), "started").unwrap();
    cloud.machine("web", &json!({"image": image}), "started").unwrap();
    let output =
        std::process::Command::new("pgrep").args(["-f", "^/perch-testserver"]).output().unwrap();
    let mut owners = Vec::new();
    for pid in String::from_utf8_lossy(&output.stdout).lines() {
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if cgroup.contains(cloud.instance()) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
            owners.push(uid.split_whitespace().next().unwrap().parse::<u32>().unwrap());
        }
    }
    assert_eq!(owners.len(), 2, "{owners:?}");
    assert!(owners.iter().all(|uid| *uid >= 65_536), "{owners:?}");
    assert_ne!(owners[0] / 65_536, owners[1] / 65_536, "ranges are disjoint");
    cloud.finish().unwrap();
}

#[test]
fn x2_the_process_that_faces_the_network_is_not_root() {
    let test = "x2_the_process_that_faces_the_network_is_not_root";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let (_, front) = cloud.role_pids().into_iter().find(|(role, _)| role == "front").unwrap();
    let status = std::fs::read_to_string(format!("/proc/{front}/status")).unwrap();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    assert!(field("Uid:").split_whitespace().all(|uid| uid == "64007"), "{status}");
    assert_eq!(field("CapEff:").trim_start_matches('0'), "", "{status}");
    assert_eq!(field("Groups:"), "", "{status}");
    cloud.finish().unwrap();
}

#[test]
fn images_are_pulled_by_standard_clients_as_they_were_pushed() {
    let test = "images_are_pulled_by_standard_clients_as_they_were_pushed";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pull = |credentials: &str| {
        std::process::Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false", "--src-creds", credentials])
            .arg(format!("docker://{}/web:latest", cloud.api))
            .arg(format!("dir:{}", folder.path().join("image").display()))
            .output()
            .unwrap()
    };
    assert!(!pull("x:wrong").status.success());
    let output = pull(&format!("x:{}", cloud.token));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest = std::fs::read(folder.path().join("image/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1), "{manifest}");
    cloud.finish().unwrap();
}

#[test]
fn r1_an_image_of_another_name_is_not_pushed_or_read_without_a_token() {
    let test = "r1_an_image_of_another_name_is_not_pushed_or_read_without_a_token";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let path = "/v2/web/manifests/latest";
    let bare = http::request(cloud.api, "GET", path, &[("Host", "api")], b"").unwrap();
    assert_eq!(bare.status, 401);
    let upload = cloud.call("POST", "/v2/nobodys/blobs/uploads/", &Value::Null).unwrap();
    assert!([401, 403].contains(&upload.status), "{}", upload.text());
    cloud.finish().unwrap();
}

#[test]
fn r1_a_new_app_of_an_old_name_has_none_of_its_images() {
    let test = "r1_a_new_app_of_an_old_name_has_none_of_its_images";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let create = json!({"name": "web", "org_slug": "personal"});
    let inspect = || {
        std::process::Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false", "--creds"])
            .arg(format!("x:{}", cloud.token))
            .arg(format!("docker://{}/web:latest", cloud.api))
            .output()
            .unwrap()
    };
    cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    assert!(inspect().status.success());
    cloud.must("DELETE", "/v1/apps/web", &Value::Null).unwrap();
    cloud.must("POST", "/v1/apps", &create).unwrap();
    let output = inspect();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("manifest unknown"), "{said}");
    cloud.finish().unwrap();
}
