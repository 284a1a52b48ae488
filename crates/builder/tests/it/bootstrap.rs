//! The base images and the example apps on them. Fetches packages: long.

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use crate::bench::{Bench, limits, missing_long, request};
use perch_builder::Limits;
use perch_types::build::BuildEvent;

/// What a launch writes, and a request to the running app, under the walls of a machine that a
/// build can have too: a user namespace, no new privileges.
const FLASK: &str = r#"FROM python:3.11-slim-bookworm
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN (setpriv --no-new-privs gunicorn --bind 127.0.0.1:8081 app:app &) ; sleep 4; \
    python -c 'import urllib.request as r; print("answer", r.urlopen("http://127.0.0.1:8081/healthz").read())'
CMD ["gunicorn", "--bind", "0.0.0.0:8080", "app:app"]
"#;
const PHP: &str = r#"FROM php:8.2-apache-bookworm
COPY . /var/www/html
RUN php -m && apache2ctl -v && composer --version
RUN (PORT=8081 setpriv --no-new-privs apache2-foreground &) ; sleep 4; \
    php -r 'echo "answer ", file_get_contents("http://127.0.0.1:8081/?format=json");'
"#;

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
    if missing_long("base_images_are_made") {
        return;
    }
    let begin = Instant::now();
    let took = |what: &str| {
        let seconds = begin.elapsed().as_secs();
        let _shown = writeln!(std::io::stderr(), "measured: {what} done after {seconds} s");
    };
    let bench = Bench::open(Limits { disk_bytes: 8 << 30, time_s_max: 900, ..limits() }).await;
    let answer = bench.bootstrap(false).await;
    assert_eq!(answer.events.last(), Some(&BuildEvent::Done), "{answer:#?}");
    let images = answer.events.iter().filter(|event| matches!(event, BuildEvent::Image { .. }));
    assert_eq!(images.count(), 6);
    took("bootstrap");
    let again = bench.bootstrap(false).await;
    assert!(again.events.len() < 8, "{again:#?}");

    let flask = bench.build(&request("flask"), example("flask-notes", FLASK)).await;
    flask.image();
    took("flask");
    let (config, names) = bench.fetch("web", "flask");
    assert!(flask.log().contains(r#"answer b'{"status":"ok"}"#), "{}", flask.log());
    assert_eq!(config["config"]["Cmd"][0], "gunicorn");
    assert!(!config["config"].to_string().contains("perch-ca"));
    assert!(names.iter().any(|name| name == "usr/local/bin/gunicorn"));
    let php = bench.build(&request("php"), example("php-guestbook", PHP)).await;
    php.image();
    took("php");
    assert!(php.log().contains("pdo_sqlite") && php.log().contains("Apache/2.4"), "{}", php.log());
    assert!(php.log().contains("\"PHP\": \"8.2"), "{}", php.log());
    bench.close().await;
}
