//! Machines that are stopped, restarted and updated while requests are under way.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use perch_testkit::{Cloud, http, wait_for};
use serde_json::{Value, json};

/// Clients that send one request after another.
const CLIENTS: usize = 4;
/// The pause between two requests of a client.
const PAUSE: Duration = Duration::from_millis(3);

fn config(image: &str, env: &Value) -> Value {
    json!({
        "image": image,
        "env": env,
        "guest": {"cpus": 1, "memory_mb": 256},
        "services": [{"internal_port": 8080, "protocol": "tcp", "autostart": true,
            "ports": [{"port": 80, "handlers": ["http"]}]}],
    })
}

#[test]
fn a_slow_request_survives_the_stop_of_its_machine() {
    let Some(cloud) = Cloud::start("a_slow_request_survives_the_stop_of_its_machine").unwrap()
    else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let id = cloud.machine("web", &config(&image, &json!({})), "started").unwrap();
    assert_eq!(cloud.get("web", "/").unwrap().status, 200);
    std::thread::scope(|scope| {
        let began = Instant::now();
        let slow = scope.spawn(|| cloud.get("web", "/sleep?ms=3000").unwrap());
        // Nothing tells from outside that it is under way.
        std::thread::sleep(Duration::from_millis(500));
        let (stopped, text) = cloud.cli(&["machine", "stop", &id, "-a", "web"]).unwrap();
        assert!(stopped, "{text}");
        let answer = slow.join().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "slept\n"), "{}", answer.head);
        assert!(began.elapsed() >= Duration::from_secs(3));
    });
    cloud.reaches("web", &id, "stopped").unwrap();
    cloud.finish().unwrap();
}

#[test]
fn a_request_that_takes_too_long_does_not_hold_the_stop_up_for_ever() {
    let test = "a_request_that_takes_too_long_does_not_hold_the_stop_up_for_ever";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let id = cloud.machine("web", &config(&image, &json!({})), "started").unwrap();
    assert_eq!(cloud.get("web", "/").unwrap().status, 200);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| cloud.get("web", "/sleep?ms=40000").unwrap());
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        cloud.must("POST", &format!("/v1/apps/web/machines/{id}/stop"), &json!({})).unwrap();
        cloud.reaches("web", &id, "stopped").unwrap();
        assert!(began.elapsed() >= Duration::from_secs(8), "it had its time");
        assert_eq!(slow.join().unwrap().status, 502);
        assert!(began.elapsed() < Duration::from_secs(25));
    });
    cloud.finish().unwrap();
}

#[test]
fn a_request_under_way_survives_the_polite_end_of_the_server() {
    let test = "a_request_under_way_survives_the_polite_end_of_the_server";
    let Some(mut cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    cloud.machine("web", &config(&image, &json!({})), "ready").unwrap();
    wait_for("the edge to know it", Duration::from_secs(20), || {
        (cloud.get("web", "/").ok()?.status == 200).then_some(())
    })
    .unwrap();
    let edge = cloud.edge;
    let slow = std::thread::spawn(move || {
        let host = [("Host", "web.perch.localhost")];
        http::request(edge, "GET", "/sleep?ms=3000", &host, b"").unwrap()
    });
    // Nothing tells from outside that it is under way.
    std::thread::sleep(Duration::from_millis(500));
    // A connection over which nothing is asked does not hold the end up.
    let _idle = std::net::TcpStream::connect(edge).unwrap();
    let began = Instant::now();
    cloud.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    let answer = slow.join().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    cloud.boot().unwrap();
    let answer = cloud.get("web", "/").unwrap();
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), cloud.server_log());
    cloud.finish().unwrap();
}

#[test]
fn no_request_is_lost_while_one_machine_of_two_is_restarted_or_updated() {
    let test = "no_request_is_lost_while_one_machine_of_two_is_restarted_or_updated";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let ids: Vec<String> = (0..2)
        .map(|_| cloud.machine("web", &config(&image, &json!({})), "ready").unwrap())
        .collect();
    wait_for("the edge to know them", Duration::from_secs(20), || {
        (cloud.get("web", "/").ok()?.status == 200).then_some(())
    })
    .unwrap();
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wrong = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (cloud, is_over, answered) = (&cloud, &is_over, &answered);
                // Some are short and some are under way when the machine is stopped.
                let target = if client == 0 { "/sleep?ms=150" } else { "/" };
                scope.spawn(move || ask_until(cloud, target, is_over, answered))
            })
            .collect();
        // A fault here must not leave the clients running for ever.
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            change_all(&cloud, &ids, &image);
        }));
        is_over.store(true, Ordering::SeqCst);
        let wrong: Vec<String> =
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        changed.unwrap();
        wrong
    });
    let answered = answered.load(Ordering::SeqCst);
    assert!(wrong.is_empty(), "{} of {answered}: {wrong:#?}", wrong.len());
    assert!(answered > 200, "{answered}");
    cloud.finish().unwrap();
}

/// Asks again and again; returns every answer that was none of the app's.
fn ask_until(
    cloud: &Cloud,
    target: &str,
    is_over: &AtomicBool,
    answered: &AtomicUsize,
) -> Vec<String> {
    let mut wrong = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        let answer = cloud.get("web", target);
        if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
            answered.fetch_add(1, Ordering::SeqCst);
        } else {
            wrong.push(format!("{:?}", answer.map(|answer| (answer.status, answer.text()))));
        }
        std::thread::sleep(PAUSE);
    }
    wrong
}

/// Restarts each machine twice, stops and starts one, and gives both another version.
fn change_all(cloud: &Cloud, ids: &[String], image: &str) {
    let path = |id: &str, what: &str| format!("/v1/apps/web/machines/{id}{what}");
    for id in ids.iter().chain(ids) {
        cloud.must("POST", &path(id, "/restart"), &json!({})).unwrap();
        cloud.reaches("web", id, "ready").unwrap();
    }
    let id = ids.first().unwrap();
    cloud.must("POST", &path(id, "/stop"), &json!({})).unwrap();
    cloud.reaches("web", id, "stopped").unwrap();
    cloud.must("POST", &path(id, "/start"), &Value::Null).unwrap();
    cloud.reaches("web", id, "ready").unwrap();
    for id in ids {
        let body = json!({"config": config(image, &json!({"VERSION": "2"}))});
        let updated = cloud.must("POST", &path(id, ""), &body).unwrap();
        let instance = updated["instance_id"].as_str().unwrap();
        let wait = format!("/wait?state=ready&timeout=30&instance_id={instance}");
        cloud.must("GET", &path(id, &wait), &Value::Null).unwrap();
    }
}
