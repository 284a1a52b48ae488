//! Requests through the edge, and what is none.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use perch_testkit::{Cloud, Moment, Options, http, skipped, wait_for};
use serde_json::{Value, json};

fn config(image: &str) -> Value {
    json!({
        "image": image,
        "services": [{"internal_port": 8080, "protocol": "tcp", "autostart": true,
            "ports": [{"port": 80, "handlers": ["http"]}]}],
    })
}

/// Public ports beside 80: one of HTTP, and one that only a server's own programs could have.
const HTTP_PORT: u16 = 15080;
const LOW_PORT: u16 = 979;

fn with_claimed_ports(image: &str) -> Value {
    let mut config = config(image);
    config["services"].as_array_mut().unwrap().extend([
        json!({"internal_port": 8080, "ports": [{"port": HTTP_PORT, "handlers": ["http"]}]}),
        json!({"internal_port": 5432, "ports": [{"port": LOW_PORT}]}),
    ]);
    config
}

#[test]
fn a_request_wakes_a_stopped_machine_and_is_held_meanwhile() {
    let test = "a_request_wakes_a_stopped_machine_and_is_held_meanwhile";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let mut config = config(&image);
    config["statics"] = json!([{"guest_path": "/etc", "url_prefix": "/files"}]);
    let id = cloud.machine("web", &config, "started").unwrap();
    assert_eq!(cloud.get("web", "/").unwrap().text(), "hello\n");
    for _ in 0..3 {
        cloud.must("POST", &format!("/v1/apps/web/machines/{id}/stop"), &json!({})).unwrap();
        cloud.reaches("web", &id, "stopped").unwrap();
        // A file of its image comes from there, and wakes nobody.
        let file = cloud.get("web", "/files/passwd").unwrap();
        assert!(file.status == 200 && file.text().starts_with("root:x:0:0:"), "{}", file.head);
        assert_eq!(file.field("fly-cache-status"), Some("HIT"), "{}", file.head);
        assert_eq!(cloud.machine_of("web", &id).unwrap()["state"], "stopped");
        let answer = cloud.get("web", "/").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"), "{}", answer.head);
        cloud.reaches("web", &id, "started").unwrap();
    }
    cloud.finish().unwrap();
}

#[test]
fn a_request_wakes_a_suspended_machine() {
    let Some(cloud) = Cloud::start("a_request_wakes_a_suspended_machine").unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let id = cloud.machine("web", &config(&image), "started").unwrap();
    assert_eq!(cloud.get("web", "/").unwrap().text(), "hello\n");
    for _ in 0..3 {
        cloud.must("POST", &format!("/v1/apps/web/machines/{id}/suspend"), &Value::Null).unwrap();
        cloud.reaches("web", &id, "suspended").unwrap();
        let answer = cloud.get("web", "/").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"), "{}", answer.head);
        cloud.reaches("web", &id, "started").unwrap();
    }
    let path = format!("/v1/apps/web/machines/{id}");
    let found =
        cloud.must("GET", &format!("{path}/ps?sort_by=rss&order=desc"), &Value::Null).unwrap();
    let listens = |process: &Value| process["listen_sockets"][0]["address"] == "0.0.0.0:8080";
    assert!(found.as_array().unwrap().iter().any(listens), "{found}");
    let memory = cloud.must("PUT", &format!("{path}/memory"), &json!({"limit_mb": 128})).unwrap();
    assert_eq!(memory["limit_mb"], 128, "{memory}");
    let refused = cloud.call("PUT", &format!("{path}/memory"), &json!({"limit_mb": 512})).unwrap();
    assert_eq!(refused.status, 422, "{}", refused.text());
    // It went on; it was not booted again.
    let events =
        cloud.must("GET", &format!("/v1/apps/web/machines/{id}/events"), &Value::Null).unwrap();
    assert!(events.as_array().unwrap().iter().all(|event| event["type"] != "exit"), "{events}");
    cloud.finish().unwrap();
}

#[test]
fn many_requests_share_one_wake() {
    let Some(cloud) = Cloud::start("many_requests_share_one_wake").unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let id = cloud.machine("web", &config(&image), "started").unwrap();
    cloud.must("POST", &format!("/v1/apps/web/machines/{id}/stop"), &json!({})).unwrap();
    cloud.reaches("web", &id, "stopped").unwrap();
    let edge = cloud.edge;
    // Connected here, so that the sockets belong to the cloud's network.
    let streams: Vec<_> = (0..20).map(|_| TcpStream::connect(edge).unwrap()).collect();
    let threads: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                stream
                    .write_all(
                        b"GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nConnection: close\r\n\r\n",
                    )
                    .unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            })
        })
        .collect();
    for thread in threads {
        let answer = thread.join().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let events =
        cloud.must("GET", &format!("/v1/apps/web/machines/{id}/events"), &Value::Null).unwrap();
    let starts = events.as_array().unwrap().iter().filter(|event| event["type"] == "start").count();
    assert_eq!(starts, 2, "one at the creation, one for all twenty requests: {events}");
    cloud.finish().unwrap();
}

#[test]
fn requests_that_are_held_for_an_app_are_answered_at_once_when_it_is_destroyed() {
    let test = "requests_that_are_held_for_an_app_are_answered_at_once_when_it_is_destroyed";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    for (app, is_awaited) in [("first", true), ("second", false)] {
        // Not where its service says: who asks is held until the time for that is over, a PC01.
        let image = cloud.app(app, &["--listen", "0.0.0.0:9090"]).unwrap();
        let id = cloud.machine(app, &config(&image), "started").unwrap();
        let path = format!("/v1/apps/{app}");
        cloud.must("POST", &format!("{path}/machines/{id}/stop"), &json!({})).unwrap();
        cloud.reaches(app, &id, "stopped").unwrap();
        std::thread::scope(|scope| {
            let requests: Vec<_> =
                (0..10).map(|_| scope.spawn(|| cloud.get(app, "/").unwrap())).collect();
            if is_awaited {
                cloud.reaches(app, &id, "started").unwrap();
            }
            cloud.must("DELETE", &path, &Value::Null).unwrap();
            for request in requests {
                let answer = request.join().unwrap();
                let page = answer.text();
                // It is stopped, has no machine, did not start, or is not there.
                let codes = ["PM08", "PR01", "PM07", "PE01"];
                assert!(codes.iter().any(|code| page.contains(code)), "{}{page}", answer.head);
                assert!(matches!(answer.status, 503 | 404), "{}", answer.head);
            }
        });
    }
    cloud.finish().unwrap();
}

#[test]
fn where_there_is_no_app_the_answer_says_nothing_more() {
    let Some(cloud) = Cloud::start("where_there_is_no_app_the_answer_says_nothing_more").unwrap()
    else {
        return;
    };
    let answer = cloud.get("nobody", "/").unwrap();
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("PE01"));
    assert!(!answer.text().contains("nobody"), "E11: {}", answer.text());
    cloud.must("POST", "/v1/apps", &json!({"name": "empty", "org_slug": "personal"})).unwrap();
    let answer = cloud.get("empty", "/").unwrap();
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("PR01"));
    cloud.finish().unwrap();
}

#[test]
fn e1_a_request_in_doubt_is_refused_and_the_connection_closed() {
    let test = "e1_a_request_in_doubt_is_refused_and_the_connection_closed";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    cloud.machine("web", &config(&image), "started").unwrap();
    for bytes in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nHost: web.perch.localhost\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: web.perch.localhost\r\nContent-Length: 3\r\n\
Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: web.perch.localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        "GET / HTTP/1.1\r\nHost : web.perch.localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\nX: a\r\n b\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: web.perch.localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    ] {
        let answer = http::raw(cloud.edge, bytes.as_bytes()).unwrap();
        assert_eq!(answer.status, 400, "{bytes:?}: {}", answer.head);
    }
    cloud.finish().unwrap();
}

#[test]
fn bodies_and_methods_reach_the_app_as_they_were_sent() {
    let Some(cloud) = Cloud::start("bodies_and_methods_reach_the_app_as_they_were_sent").unwrap()
    else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    cloud.machine("web", &config(&image), "started").unwrap();
    let host = [("Host", "web.perch.localhost"), ("fly-client-ip", "6.6.6.6")];
    let body: Vec<u8> = (0..200_000_u32).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
    let echo = http::request(cloud.edge, "POST", "/echo", &host, &body).unwrap();
    assert!(echo.body == body, "{} bytes came back", echo.body.len());
    let method = http::request(cloud.edge, "PUT", "/method", &host, b"x").unwrap();
    assert_eq!(method.text(), "PUT");
    let head = http::request(cloud.edge, "GET", "/head?a=b%20c", &host, b"").unwrap();
    let text = head.text().to_ascii_lowercase();
    assert!(text.starts_with("get /head?a=b%20c http/1.1"), "{text}");
    assert!(text.contains("fly-client-ip: 127.0.0.1") && !text.contains("6.6.6.6"), "{text}");
    assert!(text.contains("host: web.perch.localhost"), "{text}");
    assert!(head.field("fly-request-id").is_some(), "{}", head.head);
    let missing = cloud.get("web", "/missing").unwrap();
    assert_eq!((missing.status, missing.text().as_str()), (404, "not found\n"));
    cloud.finish().unwrap();
}

/// Sends a word to a raw port and returns what comes back; nothing while nobody takes it.
fn echo(address: SocketAddr, word: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    stream.write_all(word.as_bytes()).ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

#[test]
fn a_raw_port_leads_to_its_apps_machines_alone_and_wakes_them() {
    let test = "a_raw_port_leads_to_its_apps_machines_alone_and_wakes_them";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let patience = Duration::from_secs(30);
    let words = ["--echo-udp", "0.0.0.0:15353", "--echo", "0.0.0.0:5432"];
    let image = cloud.app("db", &words).unwrap();
    let config = json!({"image": image, "services": [
        {"internal_port": 5432, "ports": [{"start_port": 15432, "end_port": 15433}]},
        {"internal_port": 15353, "protocol": "udp", "ports": [{"port": 15353}]},
    ]});
    let id = cloud.machine("db", &config, "started").unwrap();
    let at = |port| SocketAddr::new(cloud.edge.ip(), port);
    for port in [15432, 15433] {
        let answer = wait_for("the port to answer", patience, || echo(at(port), "hello"));
        assert_eq!(answer.unwrap(), "hello");
    }
    let socket = UdpSocket::bind((cloud.edge.ip(), 0)).unwrap();
    socket.connect(at(15353)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let answered = wait_for("a datagram to come back", patience, || {
        socket.send(b"datagram").ok()?;
        let mut bytes = [0; 64];
        let count = socket.recv(&mut bytes).ok()?;
        (&bytes[..count] == b"datagram").then_some(())
    });
    answered.unwrap();
    cloud.must("POST", &format!("/v1/apps/db/machines/{id}/stop"), &json!({})).unwrap();
    cloud.reaches("db", &id, "stopped").unwrap();
    assert_eq!(echo(at(15432), "awake").as_deref(), Some("awake"), "held until it runs");
    cloud.reaches("db", &id, "started").unwrap();
    let other = cloud.app("other", &["--echo", "0.0.0.0:5432"]).unwrap();
    let config = json!({"config": {"image": other, "services": [
        {"internal_port": 5432, "ports": [{"port": 15432}]}]}});
    let refused = cloud.call("POST", "/v1/apps/other/machines", &config).unwrap();
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("port_taken")));
    cloud.must("DELETE", "/v1/apps/db", &Value::Null).unwrap();
    let closed = wait_for("the port to close", patience, || {
        TcpStream::connect(at(15433)).is_err().then_some(())
    });
    closed.unwrap();
    cloud.must("POST", "/v1/apps/other/machines", &config).unwrap();
    let answer = wait_for("the port to answer", patience, || echo(at(15432), "mine"));
    assert_eq!(answer.unwrap(), "mine");
    cloud.finish().unwrap();
}

#[test]
fn e10_the_program_is_replaced_and_no_request_is_dropped() {
    let test = "e10_the_program_is_replaced_and_no_request_is_dropped";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let words = ["--listen", "0.0.0.0:8080", "--echo", "0.0.0.0:5432"];
    let image = cloud.app("web", &words).unwrap();
    let id = cloud.machine("web", &with_claimed_ports(&image), "started").unwrap();
    let at = |port| SocketAddr::new(cloud.edge.ip(), port);
    for port in [HTTP_PORT, LOW_PORT] {
        let open = || TcpStream::connect(at(port)).ok();
        wait_for("a claimed port to open", Duration::from_secs(30), open).unwrap();
    }
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    // One that began before, and ends after the process that took it has lost its place.
    let mut slow = TcpStream::connect(cloud.edge).unwrap();
    let ask = "GET /sleep?ms=6000 HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n";
    slow.write_all(ask.as_bytes()).unwrap();
    std::thread::scope(|scope| {
        let client = || {
            while !is_over.load(Ordering::SeqCst) {
                let answer = cloud.get("web", "/").unwrap();
                assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"));
                answered.fetch_add(1, Ordering::SeqCst);
            }
        };
        // Ports of its own are the app's meanwhile too: nobody is refused there.
        let claimed = || {
            while !is_over.load(Ordering::SeqCst) {
                assert_eq!(echo(at(LOW_PORT), "on").as_deref(), Some("on"));
                let host = [("Host", "web.perch.localhost")];
                let answer = http::request(at(HTTP_PORT), "GET", "/", &host, b"").unwrap();
                assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"));
            }
        };
        let clients = [scope.spawn(client), scope.spawn(client), scope.spawn(claimed)];
        let replaced = (0..2).try_for_each(|_| cloud.replace());
        let before = answered.load(Ordering::SeqCst);
        let on = wait_for("requests to go on", Duration::from_secs(60), || {
            (answered.load(Ordering::SeqCst) > before + 20).then_some(())
        });
        is_over.store(true, Ordering::SeqCst);
        for client in clients {
            client.join().unwrap();
        }
        replaced.and(on).unwrap();
    });
    let mut answer = [0; 15];
    slow.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // The machine was not touched.
    let events =
        cloud.must("GET", &format!("/v1/apps/web/machines/{id}/events"), &Value::Null).unwrap();
    assert!(events.as_array().unwrap().iter().all(|event| event["type"] != "exit"), "{events}");
    drop(slow);
    cloud.finish().unwrap();
}

#[test]
fn e10_a_server_that_is_killed_while_it_is_replaced_serves_the_ports_of_apps_again() {
    let test = "e10_a_server_that_is_killed_while_it_is_replaced_serves_the_ports_of_apps_again";
    let Some(mut cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let words = ["--listen", "0.0.0.0:8080", "--echo", "0.0.0.0:5432"];
    let image = cloud.app("web", &words).unwrap();
    let id = cloud.machine("web", &with_claimed_ports(&image), "started").unwrap();
    let (ip, patience) = (cloud.edge.ip(), Duration::from_secs(60));
    let at = |port| SocketAddr::new(ip, port);
    let serves = |word: &str| {
        let raw = wait_for("the raw port to be served", patience, || {
            echo(at(LOW_PORT), word).filter(|back| back == word)
        });
        raw.unwrap();
        let answered = wait_for("the port of HTTP to be served", patience, || {
            let answer = http::request(at(HTTP_PORT), "GET", "/", &[("Host", NAME)], b"");
            answer.ok().filter(|answer| answer.status == 200)
        });
        answered.unwrap();
    };
    serves("before");
    for moment in [Moment::Ending, Moment::Begun, Moment::Starting] {
        cloud.kill_while_replaced(moment).unwrap();
        for port in [HTTP_PORT, LOW_PORT] {
            let free = TcpListener::bind(at(port));
            assert!(free.is_ok(), "{moment:?}: somebody has {port} still: {free:?}");
        }
        cloud.boot().unwrap();
        serves("again");
    }
    // The machine was not touched.
    let events =
        cloud.must("GET", &format!("/v1/apps/web/machines/{id}/events"), &Value::Null).unwrap();
    assert!(events.as_array().unwrap().iter().all(|event| event["type"] != "exit"), "{events}");
    // Whose the ports are is known as before: they close with the app.
    cloud.must("DELETE", "/v1/apps/web", &Value::Null).unwrap();
    for port in [HTTP_PORT, LOW_PORT] {
        let closed = || TcpStream::connect(at(port)).is_err().then_some(());
        wait_for("the port to close", patience, closed).unwrap();
    }
    cloud.finish().unwrap();
}

const NAME: &str = "web.perch.localhost";
/// How often clients that keep their connection ask.
const KEPT_ASKS: usize = 80;
/// Ports of the test's own network.
const HTTPS_PORT: u16 = 15443;
const UDP_PORT: u16 = 15353;

/// Asks over HTTPS as a client of HTTP/2 does; the status and the protocol stand behind the answer.
fn curl(path: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--insecure", "--http2", "--max-time", "60"])
        .args(["--resolve", &format!("{NAME}:{HTTPS_PORT}:127.0.0.1")])
        .args(["--write-out", "%{http_code} %{http_version}"])
        .arg(format!("https://{NAME}:{HTTPS_PORT}{path}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    curl
}

fn told(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// Opens a tunnel to the app, as for a WebSocket.
fn tunnel(edge: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(edge).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let ask = format!(
        "GET /switch HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Says a word through a tunnel, which sends it back.
fn through(mut tunnel: &TcpStream, word: &str) {
    tunnel.write_all(word.as_bytes()).unwrap();
    let mut back = vec![0; word.len()];
    tunnel.read_exact(&mut back).unwrap();
    assert_eq!(back, word.as_bytes());
}

/// Sends a datagram until it comes back: any one may be lost.
fn datagram(socket: &UdpSocket, word: &str) {
    let back = wait_for("a datagram to come back", Duration::from_secs(30), || {
        socket.send(word.as_bytes()).ok()?;
        let mut bytes = [0; 64];
        // An earlier one may be late.
        loop {
            let count = socket.recv(&mut bytes).ok()?;
            if &bytes[..count] == word.as_bytes() {
                return Some(());
            }
        }
    });
    back.unwrap();
}

#[test]
fn e10_what_is_secured_switched_or_a_datagram_goes_on_while_the_program_is_replaced() {
    let test = "e10_what_is_secured_switched_or_a_datagram_goes_on_while_the_program_is_replaced";
    if Command::new("curl").arg("--version").output().is_err() {
        return skipped(test, "curl");
    }
    let https = format!("127.0.0.1:{HTTPS_PORT}");
    let arguments = ["--https", &https].map(str::to_owned).into();
    let options = Options { arguments, ..Options::default() };
    let Some(cloud) = Cloud::start_with(test, options).unwrap() else {
        return;
    };
    let listen = format!("0.0.0.0:{UDP_PORT}");
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080", "--echo-udp", &listen]).unwrap();
    let config = json!({"image": image, "services": [
        {"internal_port": 8080, "ports": [
            {"port": 80, "handlers": ["http"]}, {"port": 443, "handlers": ["tls", "http"]}]},
        {"internal_port": UDP_PORT, "protocol": "udp", "ports": [{"port": UDP_PORT}]},
    ]});
    cloud.machine("web", &config, "started").unwrap();
    let answer = || told(&curl("/").output().unwrap());
    let served = wait_for("the app to be served", Duration::from_secs(30), || {
        (answer() == "hello\n200 2").then_some(())
    });
    served.unwrap();
    let socket = UdpSocket::bind((cloud.edge.ip(), 0)).unwrap();
    socket.connect((cloud.edge.ip(), UDP_PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    datagram(&socket, "before");
    // These begin before, and end after the process that took them has lost its place.
    let slow = curl("/sleep?ms=6000").spawn().unwrap();
    // Each asks over one connection again and again, until it is told that this takes no more.
    let kept = [("--http1.1", "1.1"), ("--http2", "2")].map(|(option, version)| {
        let mut curl = curl(&format!("/sleep?ms=100&n=[1-{KEPT_ASKS}]"));
        (curl.arg(option).spawn().unwrap(), version)
    });
    let tunnel = tunnel(cloud.edge);
    through(&tunnel, "before");
    let (is_over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                assert_eq!(answer(), "hello\n200 2");
                through(&tunnel, "meanwhile");
                datagram(&socket, &format!("d{}", rounds.fetch_add(1, Ordering::SeqCst)));
            }
        });
        let replaced = cloud.replace();
        let before = rounds.load(Ordering::SeqCst);
        let on = wait_for("rounds to go on", Duration::from_secs(60), || {
            (rounds.load(Ordering::SeqCst) > before + 10).then_some(())
        });
        is_over.store(true, Ordering::SeqCst);
        client.join().unwrap();
        replaced.and(on).unwrap();
    });
    assert_eq!(told(&slow.wait_with_output().unwrap()), "slept\n200 2");
    for (client, version) in kept {
        let answers = told(&client.wait_with_output().unwrap());
        assert_eq!(answers, format!("slept\n200 {version}").repeat(KEPT_ASKS));
    }
    through(&tunnel, "after");
    drop(tunnel);
    cloud.finish().unwrap();
}
