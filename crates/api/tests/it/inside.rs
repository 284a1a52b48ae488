//! The API as a machine has it from inside.

use perch_api::Inside;
use perch_types::host::MachineIdentity;
use perch_types::{MachineId, OrgSlug};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::cloud::{ADMIN, Cloud, web};

/// Sends requests over a connection of a machine's; returns all that comes back.
pub(crate) async fn ask(inside: &Inside, who: &MachineIdentity, requests: &str) -> String {
    let (mut outer, inner) = UnixStream::pair().unwrap();
    let serving = tokio::spawn({
        let (inside, who) = (inside.clone(), who.clone());
        async move { inside.serve(inner, who).await }
    });
    outer.write_all(requests.as_bytes()).await.unwrap();
    let mut answer = String::new();
    outer.read_to_string(&mut answer).await.unwrap();
    serving.await.unwrap();
    answer
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn t2_a_machine_reaches_itself_and_nothing_else_whatever_it_says_of_itself() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let own = cloud.machine(json!({"image": "web:1"})).await.id;
    let other = cloud.machine(json!({"image": "web:1"})).await.id;
    let who = MachineIdentity { org: OrgSlug::personal(), app: web(), machine: own.clone() };
    let inside = Inside::new(&cloud.api);
    let base = "/v1/apps/web/machines";
    // Neither a token that is somebody's nor a header with a name makes it more.
    let forged = format!("Authorization: Bearer {ADMIN}\r\nPerch-Machine: {other}\r\n");
    let labels = r#"{"metadata":{"b":"2"}}"#;
    for (method, rest, body, wanted) in [
        ("GET", "/wait?state=started&timeout=1", "", "200"),
        ("GET", "/versions", "", "200"),
        ("GET", "/ps", "", "200"),
        ("GET", "/memory", "", "200"),
        ("PUT", "/memory", r#"{"limit_mb":256}"#, "403"),
        ("POST", "/memory/reclaim", r#"{"amount_mb":1}"#, "403"),
        ("POST", "/metadata/a", r#"{"value":"1"}"#, "204"),
        ("GET", "/metadata/a", "", "200"),
        ("PATCH", "/metadata", labels, "204"),
        ("GET", "/metadata", "", "200"),
        ("DELETE", "/metadata/a", "", "204"),
        ("GET", "/metadata/a", "", "404"),
        ("PUT", "/metadata", labels, "204"),
        ("POST", "/suspend", "", "200"),
        ("POST", "/start", "", "200"),
    ] {
        let text = format!(
            "{method} {base}/{own}{rest} HTTP/1.1\r\nHost: localhost\r\n{forged}\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = ask(&inside, &who, &text).await;
        assert_eq!(status(&answer), wanted, "{method} {rest}: {answer}");
        let of_other = text.replace(own.as_str(), other.as_str());
        let answer = ask(&inside, &who, &of_other).await;
        assert_eq!(status(&answer), "404", "{method} {rest} of another: {answer}");
    }
    for (method, path, wanted) in [
        ("GET", format!("{base}/{own}"), "200"),
        ("GET", format!("{base}/{own}/events"), "200"),
        ("POST", format!("{base}/{own}/cordon"), "200"),
        ("POST", format!("{base}/{own}"), "403"),
        ("DELETE", format!("{base}/{own}?force=true"), "403"),
        ("POST", format!("{base}/{own}/exec"), "403"),
        ("GET", format!("{base}/{other}"), "404"),
        ("POST", format!("{base}/{other}/stop"), "404"),
        ("GET", format!("/v1/apps/elsewhere/machines/{own}"), "404"),
        ("GET", base.to_owned(), "403"),
        ("GET", "/v1/apps/web".to_owned(), "403"),
        ("GET", "/v1/apps?org_slug=personal".to_owned(), "403"),
        ("GET", "/v1/tokens/current".to_owned(), "403"),
        ("GET", "/v1/nothing".to_owned(), "404"),
    ] {
        let answer = ask(
            &inside,
            &who,
            &format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{forged}Content-Length: 0\r\n\
                 Connection: close\r\n\r\n"
            ),
        )
        .await;
        assert_eq!(status(&answer), wanted, "{method} {path}: {answer}");
    }
    let gone = MachineIdentity { machine: MachineId::from_bits(1), ..who.clone() };
    let text = format!(
        "GET {base}/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        gone.machine
    );
    assert_eq!(status(&ask(&inside, &gone, &text).await), "404");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_machine_has_a_bounded_number_of_connections_and_another_still_gets_in() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = |bits| MachineIdentity {
        org: OrgSlug::personal(),
        app: web(),
        machine: MachineId::from_bits(bits),
    };
    let inside = Inside::new(&cloud.api);
    let text = "GET /v1/apps HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut held = Vec::new();
    // Each is known to be served once it has answered a request.
    for _ in 0..16 {
        let (mut outer, inner) = UnixStream::pair().unwrap();
        let (served, who) = (inside.clone(), machine(1));
        tokio::spawn(async move { served.serve(inner, who).await });
        outer.write_all(b"GET /v1/apps HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        outer.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 403");
        held.push(outer);
    }
    assert_eq!(ask_or_closed(&inside, &machine(1), text).await, "");
    assert_eq!(status(&ask(&inside, &machine(2), text).await), "403");
    drop(held);
    let back = async {
        while ask_or_closed(&inside, &machine(1), text).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), back).await.unwrap();
}

/// As [`ask`], of a connection that may be closed at once.
async fn ask_or_closed(inside: &Inside, who: &MachineIdentity, text: &str) -> String {
    let (mut outer, inner) = UnixStream::pair().unwrap();
    let serving = tokio::spawn({
        let (inside, who) = (inside.clone(), who.clone());
        async move { inside.serve(inner, who).await }
    });
    let mut answer = Vec::new();
    if outer.write_all(text.as_bytes()).await.is_ok() {
        outer.read_to_end(&mut answer).await.ok();
    }
    serving.await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
