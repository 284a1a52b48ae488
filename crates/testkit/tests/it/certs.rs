//! Certificates of a whole server, got from pebble, a real ACME server.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use perch_testkit::pebble::{CERTIFICATE_FILE, KEY_FILE, Pebble, Ports, free_port};
use perch_testkit::{Cloud, Options, http, skipped, wait_for};
use serde_json::{Value, json};

use crate::resolver::Resolver;

/// How long an order may take, on a busy machine.
const ORDERED: Duration = Duration::from_secs(120);
const CERTIFICATE: &str = "/v1/apps/web/certificates";
/// The platform's own, of which a public issuer could know.
const DOMAIN: &str = "perch.example";
/// A name that was shown once is not looked at again: the renewal is what is tested then.
const SETTINGS: [(&str, &str); 2] =
    [("PEBBLE_WFE_NONCEREJECT", "30"), ("PEBBLE_AUTHZREUSE", "100")];

fn port() -> u16 {
    free_port().unwrap()
}

/// Makes a certificate for pebble itself, with its key beside it.
fn of_pebble(folder: &Path) -> Option<PathBuf> {
    let (certificate, key) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=pebble", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    made.is_ok_and(|status| status.success()).then_some(certificate)
}

/// Finds pebble and makes the certificate that it shows; tells what is not there.
fn issuer(test: &str, folder: &Path) -> Option<(Pebble, PathBuf)> {
    let pebble = Pebble::find(test)?;
    let certificate = of_pebble(folder);
    if certificate.is_none() {
        skipped(test, "openssl");
    }
    Some(pebble).zip(certificate)
}

/// Writes a configuration that has the issuer and its zones; returns where.
fn config(folder: &Path, certificate: &Path, (listen, dns): (u16, u16)) -> String {
    let file = folder.join("perchd.toml");
    let text = format!(
        "[acme]\ndirectory = \"https://localhost:{listen}/dir\"\nemail = \"ops@perch.example\"\n\
         ca_file = \"{}\"\nresolvers = [\"127.0.0.1:{dns}\"]\n",
        certificate.display()
    );
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(certificate, std::fs::Permissions::from_mode(0o644)).unwrap();
    file.display().to_string()
}

/// Has the server answer for a zone of challenges, at a port.
fn serve_zone(config: &str, port: u16) {
    let text = std::fs::read_to_string(config).unwrap();
    let zone = "zone = \"acme.zone.example\"\nname_servers = [\"ns.zone.example\"]";
    std::fs::write(config, format!("{text}{zone}\ndns = [\"127.0.0.1:{port}\"]\n")).unwrap();
}

/// Returns a fact of the certificate that a host name is served with, such as `serial`.
fn fact(https: u16, name: &str, fact: &str) -> Option<String> {
    let shown = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{https}"), "-servername", name])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let mut read = Command::new("openssl")
        .args(["x509", "-noout", &format!("-{fact}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    read.stdin.take()?.write_all(&shown.stdout).ok();
    let read = read.wait_with_output().ok()?;
    let text = String::from_utf8(read.stdout).ok()?;
    text.trim().strip_prefix(&format!("{fact}=")).map(str::to_owned)
}

/// Asks the server's directory, as the host process does.
fn directory(cloud: &Cloud, path: &str, body: &Value) -> Value {
    let socket = cloud.data().parent().unwrap().join("r/directory.sock");
    let mut stream = UnixStream::connect(socket).unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v1/store/{path} HTTP/1.1\r\nHost: directory\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

/// Has an order due now, as it is when most of its certificate's time is over.
fn bring_forward(cloud: &Cloud, key: &str) {
    let entry = directory(cloud, "get", &json!({"key": key}));
    let value = STANDARD.decode(entry["value"].as_str().unwrap()).unwrap();
    let mut order: Value = serde_json::from_slice(&value).unwrap();
    assert_eq!(order["step"], "due", "{order}");
    order["due"] = json!("2026-01-01T00:00:00Z");
    let value = STANDARD.encode(order.to_string());
    let put = json!({"put": {"key": key, "value": value, "lease": null}});
    directory(cloud, "txn", &json!({"compares": [], "ops": [put]}));
}

#[test]
fn a_certificate_is_got_over_tls_and_renewed_while_it_is_served() {
    let test = "a_certificate_is_got_over_tls_and_renewed_while_it_is_served";
    let folder = tempfile::tempdir().unwrap();
    let Some((pebble, certificate)) = issuer(test, folder.path()) else { return };
    let (listen, dns, https) = (port(), port(), port());
    let config = config(folder.path(), &certificate, (listen, dns));
    let at = format!("127.0.0.1:{https}");
    let arguments = ["--https", &at, "--config", &config].map(str::to_owned).into();
    let options = Options { arguments, ..Options::default() };
    let Some(cloud) = Cloud::start_with(test, options).unwrap() else {
        return;
    };
    // Nobody answers HTTP where the issuer looks, but the edge's own TLS does.
    let ports = Ports { listen, dns, zones: port(), http: port(), tls: https };
    let _running = pebble.start(folder.path(), ports, &SETTINGS).unwrap();
    cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let wanted = json!({"hostname": "shop.example"});
    cloud.must("POST", &format!("{CERTIFICATE}/acme"), &wanted).unwrap();
    let detail = || {
        let answer = cloud.call("GET", &format!("{CERTIFICATE}/shop.example"), &Value::Null);
        answer.map(|answer| answer.json()).unwrap_or_default()
    };
    wait_for("the way over HTTP to fail", ORDERED, || {
        let detail = detail();
        let errors = detail["validation_errors"].as_array()?;
        // The issuer and its zones may not be there at first.
        let early = ["issuer_unavailable", "dns_not_configured"];
        let failed = |error: &Value| !early.contains(&error["code"].as_str().unwrap_or_default());
        errors.iter().any(failed).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{}", detail(), cloud.server_log()));
    let check = format!("{CERTIFICATE}/shop.example/check");
    cloud.must("POST", &check, &json!({})).unwrap();
    wait_for("a certificate", ORDERED, || (detail()["status"] == "active").then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", detail(), cloud.server_log()));
    let served = || fact(https, "shop.example", "serial");
    let first = wait_for("the edge to serve it", ORDERED, served).unwrap();

    bring_forward(&cloud, "certificates/personal/web/shop.example/order");
    // Whoever connects meanwhile has the one or the other.
    wait_for("the next certificate", ORDERED, || {
        (served().expect("a certificate at any time") != first).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{}", detail(), cloud.server_log()));
    assert_eq!(detail()["status"], "active");
    cloud.finish().unwrap();
}

/// Waits until names below another are served with a certificate of the issuer, and the CLI sees the
/// record that leads to the server's zone.
fn wide_name(cloud: &Cloud, https: u16) {
    let found = wait_for("a name below another to have a certificate", ORDERED, || {
        fact(https, "any.wide.example", "issuer").filter(|issuer| issuer.contains("Pebble"))
    });
    let show = || cloud.cli(&["certs", "check", "*.wide.example", "--app", "web"]).unwrap();
    assert!(found.is_ok(), "{found:?}: {:?} {}", show(), cloud.server_log());
    let (ok, text) = show();
    let line = text.lines().find(|line| line.starts_with("CNAME ")).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(ok && words.len() == 4 && words[2] == words[3], "{text}");
    assert!(words[2].ends_with(".acme.zone.example"), "{text}");
}

/// Waits until an app is served at its own name with a certificate of the issuer, and the record
/// that the one for all names needs is told.
fn own_names(cloud: &Cloud, https: u16) {
    let name = format!("web.{DOMAIN}");
    let found = wait_for("the app's own name to have a certificate", ORDERED, || {
        fact(https, &name, "issuer").filter(|issuer| issuer.contains("Pebble"))
    });
    assert!(found.is_ok(), "{found:?}: {}", cloud.server_log());
    let record = format!("CNAME _acme-challenge.{DOMAIN} ");
    let told = wait_for("the record to be told", ORDERED, || {
        let (_, text) = cloud.cli(&["doctor"]).unwrap();
        text.contains(&record).then_some(())
    });
    assert!(told.is_ok(), "{told:?}: {}", cloud.server_log());
}

#[test]
fn a_host_name_gets_its_certificate_although_the_front_is_killed_again_and_again() {
    let test = "a_host_name_gets_its_certificate_although_the_front_is_killed_again_and_again";
    let folder = tempfile::tempdir().unwrap();
    let Some((pebble, certificate)) = issuer(test, folder.path()) else { return };
    let (listen, dns, https) = (port(), port(), port());
    let (resolver, zone) = (port(), port());
    let config = config(folder.path(), &certificate, (listen, resolver));
    serve_zone(&config, zone);
    let at = format!("127.0.0.1:{https}");
    let arguments = ["--https", &at, "--domain", DOMAIN, "--config", &config];
    let arguments = arguments.map(str::to_owned).into();
    let options = Options { arguments, ..Options::default() };
    let Some(cloud) = Cloud::start_with(test, options).unwrap() else {
        return;
    };
    // Only now: the cloud has a network of its own.
    let names = Resolver::start(resolver, dns, zone);
    let ports = Ports { listen, dns, zones: port(), http: cloud.edge.port(), tls: port() };
    let _running = pebble.start_asking(folder.path(), ports, resolver, &SETTINGS).unwrap();
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let machine = json!({
        "image": image,
        "services": [{"internal_port": 8080, "protocol": "tcp",
            "ports": [{"port": 80, "handlers": ["http"]}]}],
    });
    cloud.machine("web", &machine, "started").unwrap();
    let wanted = json!({"hostname": "shop.example"});
    let made = cloud.must("POST", &format!("{CERTIFICATE}/acme"), &wanted).unwrap();
    assert_eq!(made["status"], "pending_validation", "{made}");
    // All names below another need one record, which is set once.
    let wanted = json!({"hostname": "*.wide.example"});
    let wide = cloud.must("POST", &format!("{CERTIFICATE}/acme"), &wanted).unwrap();
    let record = &wide["dns_requirements"]["acme_challenge"];
    let [name, target] = ["name", "target"].map(|field| record[field].as_str().unwrap());
    assert!(target.ends_with(".acme.zone.example"), "{wide}");
    names.lead(name, target);
    for _ in 0..2 {
        cloud.kill_role("front").unwrap();
    }
    let detail = || {
        let answer = cloud.call("GET", &format!("{CERTIFICATE}/shop.example"), &Value::Null);
        answer.map(|answer| answer.json()).unwrap_or_default()
    };
    let got = wait_for("a certificate", ORDERED, || {
        let detail = detail();
        (detail["status"] == "active").then_some(detail)
    });
    let got = got.unwrap_or_else(|error| panic!("{error}: {}\n{}", detail(), cloud.server_log()));
    let issuer = got["certificates"][0]["issuer"].as_str().unwrap();
    assert!(issuer.contains("Pebble"), "{got}");
    wide_name(&cloud, https);
    own_names(&cloud, https);
    // The host name leads to the app, and the CLI shows what there is.
    let answer = http::request(cloud.edge, "GET", "/", &[("Host", "shop.example")], b"").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"), "{}", answer.head);
    let (ok, text) = cloud.cli(&["certs", "check", "shop.example", "--app", "web"]).unwrap();
    assert!(ok && text.contains("active") && text.contains("127.0.0.1"), "{text}");
    let (ok, text) = cloud.cli(&["certs", "remove", "shop.example", "--app", "web"]).unwrap();
    assert!(ok, "{text}");
    wait_for("the host name to be forgotten", Duration::from_secs(20), || {
        let gone = http::request(cloud.edge, "GET", "/", &[("Host", "shop.example")], b"");
        gone.is_ok_and(|answer| answer.status == 404).then_some(())
    })
    .unwrap();
    cloud.finish().unwrap();
}
