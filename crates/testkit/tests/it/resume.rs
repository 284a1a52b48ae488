//! What a user does after something went wrong.

use std::fs;
use std::path::Path;

use perch_testkit::Cloud;
use serde_json::Value;

const GOOD: &str = "FROM scratch\nCOPY server /server\nEXPOSE 8080\n\
    ENTRYPOINT [\"/server\", \"--listen\", \"0.0.0.0:8080\"]\n";

fn perch(cloud: &Cloud, folder: &Path, line: &str) -> (Option<i32>, String) {
    let words = line.split_whitespace();
    let output = cloud.perch().current_dir(folder).args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_launch_that_failed_goes_on_when_its_source_is_mended() {
    let test = "a_launch_that_failed_goes_on_when_its_source_is_mended";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::copy(cloud.guest().join("perch-testserver"), folder.join("server")).unwrap();
    let broken = GOOD.replace("EXPOSE", "RUN [\"/server\", \"--exit\", \"9\"]\nEXPOSE");
    fs::write(folder.join("Dockerfile"), broken).unwrap();

    let (code, text) = perch(&cloud, folder, "launch --yes --name shop");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("next: mend it and run the same command again"), "{text}");
    assert!(folder.join("fly.toml").is_file(), "{text}");

    // The build is mended, the program is not: the new machine goes, the app stays.
    fs::write(
        folder.join("Dockerfile"),
        GOOD.replace("--listen", "--exit").replace("0.0.0.0:8080", "3"),
    )
    .unwrap();
    let (code, text) = perch(&cloud, folder, "launch --yes --name shop");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("going on with it") && text.contains("exit code 3"), "{text}");
    assert!(text.contains("is removed") && text.contains("next: "), "{text}");
    let machines = cloud.must("GET", "/v1/apps/shop/machines", &Value::Null).unwrap();
    let left = machines.as_array().unwrap().iter().filter(|it| it["state"] != "destroying");
    assert_eq!(left.count(), 0, "{machines}");

    fs::write(folder.join("Dockerfile"), GOOD).unwrap();
    let (code, text) = perch(&cloud, folder, "launch --yes");
    assert_eq!(code, Some(0), "{text}\n{}", cloud.server_log());
    assert_eq!(cloud.get("shop", "/").unwrap().status, 200);

    // What runs is not launched over.
    let (code, text) = perch(&cloud, folder, "launch --yes");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("perch deploy --app shop"), "{text}");

    // A version that does not come up is put back, and that is said.
    fs::write(
        folder.join("Dockerfile"),
        GOOD.replace("--listen", "--exit").replace("0.0.0.0:8080", "4"),
    )
    .unwrap();
    let (code, text) = perch(&cloud, folder, "deploy");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("runs the version before again"), "{text}");
    assert_eq!(cloud.get("shop", "/").unwrap().status, 200);
    cloud.finish().unwrap();
}
