//! Launches from source folders and images.
//!
//! Never a real build.

use perch_types::build::BuildEvent;
use perch_types::image::Digest;
use perch_types::{ApiError, Code};

use crate::fake::{Fake, Fate};
use crate::run::Perch;

fn platform() -> Fake {
    let fake = Fake::start();
    let digest = Digest::from_sha256(&[7; 32]);
    let reference = "registry.internal/shop:deployment-1".to_owned();
    let image = format!("{reference}@{}", digest.as_str());
    fake.world().build = vec![
        BuildEvent::Log { line: "installing flask".to_owned() },
        BuildEvent::Image { reference, digest, size_bytes: 80_000_000 },
    ];
    fake.world().fates.insert(image, Fate::Ready);
    fake
}

fn flask(perch: &Perch) {
    perch.file("requirements.txt", "flask\n").file("app.py", "app = Flask(__name__)\n");
}

#[test]
fn a_source_folder_becomes_a_running_app() {
    let fake = platform();
    let perch = Perch::of(&fake);
    flask(&perch);
    let ran = perch.run("launch --name shop --yes");
    insta::assert_snapshot!(ran.shown(Some(&fake)));
    assert_eq!(
        fake.changes(),
        ["POST /v1/apps", "POST /v1/apps/shop/builds", "POST /v1/apps/shop/machines"]
    );
    assert!(perch.read("Dockerfile").unwrap().contains("gunicorn"));
    assert!(perch.read(".dockerignore").is_some());
    insta::assert_snapshot!("launched_fly_toml", perch.read("fly.toml").unwrap());
    let config = fake.world().requests[0].config.clone();
    assert_eq!(config.memory_mb(), 256);
    assert_eq!(config.services[0].internal_port, 8080);
    // From here on `deploy` is enough.
    assert_eq!(perch.run("deploy").code, 0);
}

#[test]
fn nothing_happens_before_the_plan_was_agreed_to() {
    let fake = platform();
    let perch = Perch::of(&fake);
    flask(&perch);
    let ran = perch.run("launch --name shop");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("hint: add `--yes`"), "{ran:?}");
    assert_eq!(fake.changes(), Vec::<String>::new());
    assert_eq!(perch.read("fly.toml"), None);
    assert_eq!(perch.read("Dockerfile"), None);
}

#[test]
fn a_taken_name_has_a_way_out_and_leaves_nothing() {
    let fake = platform().with_app("shop");
    let perch = Perch::of(&fake);
    flask(&perch);
    let ran = perch.run("launch --name shop --yes");
    assert_eq!(ran.code, 1);
    insta::assert_snapshot!(ran.stderr.lines().rev().take(2).collect::<Vec<_>>().join("\n"));
    assert_eq!(perch.read("fly.toml"), None);
    assert_eq!(perch.read("Dockerfile"), None);
}

#[test]
fn files_that_are_there_are_never_overwritten() {
    let fake = platform();
    let perch = Perch::of(&fake);
    perch.file("Dockerfile", "FROM a\nEXPOSE 3000\n").file(".dockerignore", "x\n");
    perch.run("launch --name shop --yes --no-deploy").good();
    assert_eq!(perch.read("Dockerfile").unwrap(), "FROM a\nEXPOSE 3000\n");
    assert_eq!(perch.read(".dockerignore").unwrap(), "x\n");
    assert!(perch.read("fly.toml").unwrap().contains("internal_port = 3000"));
    assert_eq!(fake.changes(), ["POST /v1/apps"]);
}

#[test]
fn a_fly_toml_that_is_there_is_used_as_it_is() {
    let fake = platform();
    let perch = Perch::of(&fake);
    let text = "# mine\napp = 'shop'\n[http_service]\ninternal_port = 5000\n";
    perch.file("fly.toml", text).file("Dockerfile", "FROM a\n");
    perch.run("launch --yes").good();
    assert_eq!(perch.read("fly.toml").unwrap(), text);
    assert_eq!(fake.world().requests[0].config.services[0].internal_port, 5000);
    let other = perch.run("launch --yes --name other --no-deploy");
    assert_eq!(other.code, 0, "{other:?}");
    assert_eq!(perch.read("fly.toml").unwrap(), text);
    assert!(perch.read("fly.other.toml").unwrap().starts_with("# mine\napp = \"other\"\n"));
}

#[test]
fn a_ready_image_needs_no_source() {
    let fake = platform();
    let perch = Perch::of(&fake);
    perch.run("launch --name shop --image nginx:1 --port 80 --region ams --yes").good();
    let request = fake.world().requests[0].clone();
    assert_eq!(request.config.image, "nginx:1");
    assert_eq!(request.config.services[0].internal_port, 80);
    assert_eq!(request.region.as_deref(), Some("ams"));
    assert!(perch.read("fly.toml").unwrap().contains("image = \"nginx:1\""));
}

#[test]
fn what_is_not_recognised_says_what_to_do() {
    let fake = platform();
    let perch = Perch::of(&fake);
    perch.file("index.html", "<h1>hi</h1>");
    insta::assert_snapshot!(perch.run("launch --name shop --yes").shown(Some(&fake)));
    assert_eq!(fake.changes(), Vec::<String>::new());
}

#[test]
fn a_name_is_made_of_the_folder() {
    let fake = platform();
    let perch = Perch::of(&fake);
    perch.file("My Shop_2.0/index.php", "<?php");
    let ran = perch.run_with("launch --yes --no-deploy --config x/fly.toml", "");
    // The option names the file; the folder is still the one to look at.
    assert_eq!(ran.code, 1);
    let folder = perch.folder.path().join("My-Shop_2.0");
    std::fs::rename(perch.folder.path().join("My Shop_2.0"), &folder).unwrap();
    perch.run("launch My-Shop_2.0 --yes --no-deploy").good();
    assert!(fake.world().apps.contains_key("my-shop-2-0"));
    assert!(folder.join("fly.toml").exists());
}

#[test]
fn a_failed_build_runs_nothing() {
    let fake = platform();
    let error = ApiError::new(Code::BuildFailed, "line 2 of Dockerfile: exit code 1");
    fake.world().build = vec![BuildEvent::Failed { error }];
    let perch = Perch::of(&fake);
    flask(&perch);
    let ran = perch.run("launch --name shop --yes");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("line 2 of Dockerfile"), "{ran:?}");
    assert_eq!(fake.world().machines, []);
}

#[test]
fn a_launch_that_failed_goes_on_in_the_same_folder_and_nowhere_else() {
    let fake = platform();
    let good = fake.world().build.clone();
    let error = ApiError::new(Code::BuildFailed, "line 2 of Dockerfile: exit code 1");
    fake.world().build = vec![BuildEvent::Failed { error }];
    let perch = Perch::of(&fake);
    flask(&perch);
    let failed = perch.run("launch --name shop --yes");
    insta::assert_snapshot!(failed.stderr.lines().next_back().unwrap_or_default());
    fake.world().build = good;

    // Another folder that happens to take the name, and another name for this folder.
    let elsewhere = Perch::of(&fake);
    flask(&elsewhere);
    let refused = elsewhere.run("launch --name shop --yes");
    assert!(refused.code == 1 && refused.stderr.contains("is taken"), "{refused:?}");
    perch.run("launch --name other --yes --no-deploy").good();
    let other = perch.run("launch --name other --yes");
    assert!(other.stderr.contains("going on with it"), "{other:?}");
    fake.world().machines.clear();

    let ran = perch.run("launch --yes");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("app `shop` is there from an earlier launch"), "{ran:?}");
    assert_eq!(fake.world().machines.len(), 1);

    let again = perch.run("launch --yes");
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("hint: roll out what has changed"), "{again:?}");
}
