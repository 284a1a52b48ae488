//! What a machine sees of itself through the socket inside it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use perch_testkit::{Cloud, wait_for};
use serde_json::{Value, json};

/// Asks the API from inside a machine; returns the status and the body.
fn ask(cloud: &Cloud, id: &str, socket: &str, request: &str) -> (u16, String) {
    let command = json!({"command": ["/perch-testserver", "--api", format!("{socket},{request}")]});
    let path = format!("/v1/apps/web/machines/{id}/exec");
    let said = cloud.must("POST", &path, &command).unwrap();
    let text = said["stdout"].as_str().unwrap().trim().to_owned();
    let (status, body) = text.split_once(' ').unwrap_or((&text, ""));
    let number = status.parse();
    assert!(number.is_ok(), "{said}");
    (number.unwrap(), body.to_owned())
}

/// Has a machine suspend itself: the program that asks hears the answer once it goes on.
fn suspends_itself(cloud: &Cloud, id: &str) {
    let own = format!("/v1/apps/web/machines/{id}");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(cloud, id, "/.fly/api", &format!("POST,{own}/suspend")));
        cloud.reaches("web", id, "suspended").unwrap();
        cloud.must("POST", &format!("{own}/start"), &Value::Null).unwrap();
        cloud.reaches("web", id, "started").unwrap();
        let (status, body) = asking.join().unwrap();
        assert_eq!(status, 200, "{body}");
    });
}

#[test]
fn t2_a_machine_reaches_itself_without_a_token_and_nothing_else() {
    let test = "t2_a_machine_reaches_itself_without_a_token_and_nothing_else";
    let Some(cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let config = json!({"image": image, "restart": {"policy": "no"}});
    let id = cloud.machine("web", &config, "started").unwrap();
    let other = cloud.machine("web", &config, "started").unwrap();
    let foreign_image = cloud.app("foreign", &["--listen", "0.0.0.0:8080"]).unwrap();
    let foreign = cloud.machine("foreign", &json!({"image": foreign_image}), "started").unwrap();

    let own = format!("/v1/apps/web/machines/{id}");
    for socket in ["/.fly/api", "/.perch/api"] {
        let (status, body) = ask(&cloud, &id, socket, &format!("GET,{own}"));
        let machine: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &machine["state"]), (200, &json!("started")), "{body}");
        assert_eq!(machine["id"], json!(id));
    }
    let ask = |request: &str| ask(&cloud, &id, "/.fly/api", request);
    for (request, wanted) in [
        (format!("GET,{own}/events"), 200),
        (format!("GET,{own}/wait?state=started&timeout=5"), 200),
        (format!("GET,{own}/versions"), 200),
        (format!("GET,{own}/ps"), 200),
        (format!("GET,{own}/memory"), 200),
        (format!("POST,{own}/metadata/colour,{{\"value\": \"blue\"}}"), 204),
        (format!("PATCH,{own}/metadata,{{\"metadata\": {{\"size\": \"7\"}}}}"), 204),
        (format!("DELETE,{own}/metadata/size"), 204),
        (format!("GET,{own}/metadata/size"), 404),
        (format!("POST,{own}/cordon"), 200),
        (format!("POST,{own}/uncordon"), 200),
        (format!("POST,{own}/signal,{{\"signal\": \"SIGUSR9\"}}"), 422),
        // What would give a program more than it has.
        (format!("POST,{own},{{\"config\": {{\"image\": \"{image}\"}}}}"), 403),
        (format!("DELETE,{own}?force=true"), 403),
        (format!("POST,{own}/exec,{{\"command\": [\"/perch-testserver\"]}}"), 403),
        // Others.
        (format!("GET,/v1/apps/web/machines/{other}"), 404),
        (format!("POST,/v1/apps/web/machines/{other}/stop"), 404),
        (format!("GET,/v1/apps/foreign/machines/{foreign}"), 404),
        (format!("GET,/v1/apps/foreign/machines/{id}"), 404),
        ("GET,/v1/apps/web/machines".to_owned(), 403),
        ("GET,/v1/apps/web".to_owned(), 403),
        ("GET,/v1/apps?org_slug=personal".to_owned(), 403),
        ("POST,/v1/apps,{\"app_name\": \"x\", \"org_slug\": \"personal\"}".to_owned(), 403),
        ("GET,/v1/tokens/current".to_owned(), 403),
        ("GET,/v1/platform/usage".to_owned(), 403),
        ("GET,/v1/nothing".to_owned(), 404),
    ] {
        let (status, body) = ask(&request);
        assert_eq!(status, wanted, "{request}: {body}");
    }
    assert_eq!(cloud.machine_of("web", &other).unwrap()["state"], "started");

    let (status, body) = ask(&format!("GET,{own}/metadata"));
    let labels: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &labels["colour"]), (200, &json!("blue")), "{body}");

    // Who asks for the registry's part of the port finds that there is none.
    assert_eq!(ask("GET,/v2/").0, 404);

    // Whoever has the documents of the issuer finds the key of the machine's token there.
    let (status, token) = ask("POST,/v1/tokens/oidc,{\"aud\": \"somebody\"}");
    assert_eq!(status, 200, "{token}");
    let part = |index: usize| -> Value {
        let bytes = URL_SAFE_NO_PAD.decode(token.split('.').nth(index).unwrap()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let (header, claims) = (part(0), part(1));
    assert_eq!((&claims["machine_id"], &claims["aud"]), (&json!(id), &json!("somebody")));
    let documents = cloud.get("oidc", "/personal/.well-known/jwks").unwrap();
    assert_eq!(documents.json()["keys"][0]["kid"], header["kid"], "{}", documents.text());

    suspends_itself(&cloud, &id);
    let command = json!({"command": ["/perch-testserver", "--api",
        format!("/.fly/api,POST,{own}/stop")]});
    // The program that asks may be gone before it hears the answer.
    cloud.call("POST", &format!("{own}/exec"), &command).unwrap();
    cloud.reaches("web", &id, "stopped").unwrap();
    cloud.finish().unwrap();
}

#[test]
fn a_machine_is_told_that_the_server_is_down_and_reaches_it_again_afterwards() {
    let test = "a_machine_is_told_that_the_server_is_down_and_reaches_it_again_afterwards";
    let Some(mut cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    // Nobody knows the machine's id before it runs: a path that is refused says as much.
    let program = ["--watch-api", "/.fly/api,/v1/apps/web/machines", "--listen", "0.0.0.0:8080"];
    let image = cloud.app("web", &program).unwrap();
    let id = cloud.machine("web", &json!({"image": image}), "started").unwrap();
    let log = cloud.data().join("host/machines").join(&id).join("log");
    let heard = |wanted: &[&str]| {
        let found = wait_for("the program to notice", Duration::from_secs(20), || {
            let mut said = Vec::new();
            for entry in std::fs::read_dir(&log).ok()? {
                let bytes = std::fs::read(entry.ok()?.path()).ok()?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                said.extend(
                    text.match_indices("api ")
                        .filter_map(|(at, _)| text.get(at + 4..at + 7).map(str::to_owned)),
                );
            }
            said.ends_with(&wanted.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
                .then_some(())
        });
        found.unwrap();
    };
    heard(&["403"]);
    cloud.kill().unwrap();
    heard(&["503"]);
    cloud.boot().unwrap();
    heard(&["503", "403"]);
    cloud.finish().unwrap();
}
