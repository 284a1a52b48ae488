//! Certificates of a whole server, got from pebble, a real ACME server.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use perch_testkit::{Cloud, Options, http, skipped, wait_for};
use serde_json::{Value, json};

/// How long an order may take, on a busy machine.
const ORDERED: Duration = Duration::from_secs(120);
const CERTIFICATE_FILE: &str = "pebble.pem";
const KEY_FILE: &str = "pebble.key";
const CERTIFICATE: &str = "/v1/apps/web/certificates";

fn port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn has(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|it| it.is_file())
}

struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Where pebble is asked, where it asks, and where it looks.
struct Ports {
    listen: u16,
    dns: u16,
    http: u16,
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

/// Starts pebble and its zones, in which every name is at 127.0.0.1.
fn start((pebble, names): (&Path, &Path), folder: &Path, ports: &Ports) -> Running {
    let config = json!({"pebble": {
        "listenAddress": format!("127.0.0.1:{}", ports.listen),
        "managementListenAddress": format!("127.0.0.1:{}", port()),
        "certificate": folder.join(CERTIFICATE_FILE), "privateKey": folder.join(KEY_FILE),
        "httpPort": ports.http, "tlsPort": port(), "ocspResponderURL": "",
        "externalAccountBindingRequired": false,
    }});
    let file = folder.join("pebble.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let dns = format!("127.0.0.1:{}", ports.dns);
    let mut zones = Command::new(names);
    zones
        .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
        .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
        .args(["-dns01", &dns, "-management", &format!("127.0.0.1:{}", port())]);
    let mut issuer = Command::new(pebble);
    issuer.arg("-config").arg(&file).args(["-dnsserver", &dns]);
    issuer.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "30");
    let spawn = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    Running(vec![spawn(&mut zones), spawn(&mut issuer)])
}

#[test]
fn a_host_name_gets_its_certificate_although_the_front_is_killed_again_and_again() {
    let test = "a_host_name_gets_its_certificate_although_the_front_is_killed_again_and_again";
    let (Some(pebble), Some(names)) = (has("pebble"), has("pebble-challtestsrv")) else {
        return skipped(test, "pebble");
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(certificate) = of_pebble(folder.path()) else {
        return skipped(test, "openssl");
    };
    let (listen, dns) = (port(), port());
    let config = folder.path().join("perchd.toml");
    let text = format!(
        "[acme]\ndirectory = \"https://localhost:{listen}/dir\"\nemail = \"ops@perch.example\"\n\
         ca_file = \"{}\"\nresolvers = [\"127.0.0.1:{dns}\"]\n",
        certificate.display()
    );
    std::fs::write(&config, text).unwrap();
    std::fs::set_permissions(&certificate, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut arguments: Vec<String> =
        ["--https", "127.0.0.1:0", "--config"].map(str::to_owned).into();
    arguments.push(config.display().to_string());
    let options = Options { arguments, ..Options::default() };
    let Some(cloud) = Cloud::start_with(test, options).unwrap() else {
        return;
    };
    let ports = Ports { listen, dns, http: cloud.edge.port() };
    let _running = start((&pebble, &names), folder.path(), &ports);
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
