//! The base images and the example apps on them. Fetches packages: long.

use std::path::Path;

use crate::bench::{Bench, limits, missing_long, request};
use perch_builder::Limits;
use perch_types::build::BuildEvent;

const FLASK: &str = "FROM python:3.11-slim-bookworm\nWORKDIR /app\nCOPY requirements.txt .\nRUN pip install --no-cache-dir -r requirements.txt\nCOPY . .\nCMD [\"gunicorn\", \"--bind\", \"0.0.0.0:8080\", \"app:app\"]\n";
const PHP: &str = "FROM php:8.2-apache-bookworm\nCOPY . /var/www/html\nRUN php -m && apache2ctl -v && composer --version\n";

fn example(name: &str, dockerfile: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all(".", folder).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(dockerfile.len()).unwrap());
    header.set_mode(0o644);
    archive.append_data(&mut header, "Dockerfile", dockerfile.as_bytes()).unwrap();
    archive.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn base_images_are_made_and_the_examples_build_on_them() {
    if missing_long("base_images_are_made").is_some() {
        return;
    }
    let bench = Bench::open(Limits { disk_bytes: 8 << 30, time_s_max: 900, ..limits() }).await;
    let answer = bench.bootstrap(false).await;
    assert_eq!(answer.events.last(), Some(&BuildEvent::Done), "{answer:#?}");
    let images = answer.events.iter().filter(|event| matches!(event, BuildEvent::Image { .. }));
    assert_eq!(images.count(), 6);
    let again = bench.bootstrap(false).await;
    assert!(again.events.len() < 8, "{again:#?}");

    let flask = bench.build(&request("flask"), example("flask-notes", FLASK)).await;
    flask.image();
    let (config, names) = bench.fetch("web", "flask");
    assert_eq!(config["config"]["Cmd"][0], "gunicorn");
    assert!(!config["config"].to_string().contains("perch-ca"));
    assert!(names.iter().any(|name| name == "usr/local/bin/gunicorn"));
    let php = bench.build(&request("php"), example("php-guestbook", PHP)).await;
    php.image();
    assert!(php.log().contains("pdo_sqlite") && php.log().contains("Apache/2.4"), "{}", php.log());
    bench.close().await;
}
