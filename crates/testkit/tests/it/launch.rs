//! From a source folder to a running app, with the CLI.

use std::fs;

use perch_testkit::Cloud;

/// A context that needs nothing from outside: the test server on an empty image.
fn source(cloud: &Cloud, dockerfile: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = cloud.guest().join("perch-testserver");
    fs::copy(program, folder.path().join("server")).unwrap();
    fs::write(folder.path().join("Dockerfile"), dockerfile).unwrap();
    folder
}

#[test]
fn a_folder_with_a_dockerfile_is_launched_and_deployed_again() {
    let test = "a_folder_with_a_dockerfile_is_launched_and_deployed_again";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let folder = source(
        &cloud,
        "FROM scratch\nCOPY server /server\nEXPOSE 8080\n\
         ENTRYPOINT [\"/server\", \"--print\", \"first\", \"--listen\", \"0.0.0.0:8080\"]\n",
    );
    let output = cloud
        .perch()
        .current_dir(folder.path())
        .args(["launch", "--yes", "--name", "shop"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}\n{}", cloud.server_log());
    assert!(text.contains("http://shop.perch.localhost"), "{text}");
    assert_eq!(cloud.get("shop", "/").unwrap().text(), "hello\n");
    assert!(folder.path().join("fly.toml").is_file());

    fs::write(
        folder.path().join("Dockerfile"),
        "FROM scratch\nCOPY server /server\nEXPOSE 8080\n\
         ENTRYPOINT [\"/server\", \"--print\", \"second\", \"--listen\", \"0.0.0.0:8080\"]\n",
    )
    .unwrap();
    let output = cloud.perch().current_dir(folder.path()).arg("deploy").output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}\n{}", cloud.server_log());
    assert_eq!(cloud.get("shop", "/").unwrap().status, 200);
    let (fine, text) = cloud.cli(&["logs", "--app", "shop", "--no-tail"]).unwrap();
    assert!(fine && text.contains("second"), "{text}");
    cloud.finish().unwrap();
}

#[test]
fn a_dockerfile_that_fails_says_where_and_leaves_the_old_version_running() {
    let test = "a_dockerfile_that_fails_says_where_and_leaves_the_old_version_running";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let folder = source(
        &cloud,
        "FROM scratch\nCOPY server /server\nEXPOSE 8080\n\
         ENTRYPOINT [\"/server\", \"--listen\", \"0.0.0.0:8080\"]\n",
    );
    let launch = cloud
        .perch()
        .current_dir(folder.path())
        .args(["launch", "--yes", "--name", "shop"])
        .output()
        .unwrap();
    assert!(launch.status.success(), "{}", String::from_utf8_lossy(&launch.stderr));
    fs::write(
        folder.path().join("Dockerfile"),
        "FROM scratch\nCOPY server /server\nRUN [\"/server\", \"--stderr\", \"broken here\", \"--exit\", \"9\"]\n",
    )
    .unwrap();
    let output = cloud.perch().current_dir(folder.path()).arg("deploy").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in ["broken here", "9", "line 3"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    assert_eq!(cloud.get("shop", "/").unwrap().status, 200, "what served before still serves");
    cloud.finish().unwrap();
}
