//! Exec sessions and logs through the API.

use std::time::Duration;

use perch_types::exec::{ExecExit, ExecSpec, Frame};
use perch_types::host::LogsQuery;
use perch_types::{Code, MachineId};
use serde_json::json;

use crate::cloud::{ADMIN, Cloud, web};

#[tokio::test]
async fn a_session_goes_through_in_both_directions_and_ends_with_the_exit() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let command = vec!["sh".to_owned(), "-c".to_owned(), "écho".to_owned()];
    let spec = ExecSpec { command, tty: true, rows: 24, cols: 80, container: None };
    let session = cloud.admin.attach(&web(), &machine.id, &spec).await.unwrap();
    let (mut reader, mut writer) = session.split();
    let said = Frame::Stdout("sh -c écho".into());
    assert_eq!(reader.receive().await.unwrap(), Some(said));
    for size in [1, 60_000, 3] {
        let data = vec![b'x'; size];
        writer.send(&Frame::Stdin(data.clone())).await.unwrap();
        assert_eq!(reader.receive().await.unwrap(), Some(Frame::Stdout(data)));
    }
    writer.send(&Frame::StdinEnd).await.unwrap();
    let exit = ExecExit { exit_code: 7, exit_signal: None };
    assert_eq!(reader.receive().await.unwrap(), Some(Frame::Exit(exit)));
    assert_eq!(reader.receive().await.unwrap(), None);
}

#[tokio::test]
async fn a_session_that_cannot_be_is_an_error_with_a_reason() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let error = cloud.admin.attach(&web(), &machine.id, &ExecSpec::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidRequest));
    assert_eq!(error.to_string(), "command: is empty");
    let none = MachineId::from_bits(9);
    let error = cloud.admin.attach(&web(), &none, &ExecSpec::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::MachineNotFound));
    let path = format!("/v1/apps/web/machines/{}/attach", machine.id);
    let (status, error) = cloud.error(("GET", &path), Some(ADMIN), "").await;
    assert_eq!(status, 400);
    assert_eq!(error.error, "the request must be upgraded to `perch-exec/1`");
}

#[tokio::test]
async fn logs_come_as_lines_and_follow_stays_open() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let machine = cloud.machine(json!({"image": "web:1"})).await;
    let follow = LogsQuery { last: Some(4), follow: true, ..LogsQuery::default() };
    let mut lines = cloud.admin.logs(&web(), &machine.id, &follow).await.unwrap();
    for seq in 6..10 {
        assert_eq!(lines.next().await.unwrap().unwrap().seq, seq);
    }
    let next = tokio::time::timeout(Duration::from_millis(100), lines.next()).await;
    assert!(next.is_err(), "the answer stays open");
}

/// L1: what a program writes cannot become anything but a string.
#[tokio::test]
async fn l1_the_logs_of_an_app_go_on_where_they_were_left() {
    let cloud = Cloud::start().await;
    cloud.app().await;
    let labels = json!({"fly_process_group": "worker"});
    let machine = cloud.machine(json!({"image": "web:1", "metadata": labels})).await;
    let first = cloud.admin.app_logs(&web(), None).await.unwrap();
    let entry = serde_json::to_string_pretty(&first.data[3].attributes.meta).unwrap();
    assert!(entry.contains("\"provider\": \"app\""), "{entry}");
    assert_eq!(first.data[3].attributes.level, "error");
    let meta = |index: usize, key: &str| first.data[index].attributes.meta.get(key).cloned();
    assert_eq!(meta(3, "process_group"), Some(json!("worker")));
    assert_eq!((meta(3, "process"), meta(4, "process")), (None, Some(json!(1))));
    assert_eq!(first.data[3].id, format!("{}-3", machine.id));
    let (_, _, body) = cloud.raw(("GET", "/api/v1/apps/web/logs"), Some(ADMIN), "").await;
    assert!(String::from_utf8(body).unwrap().contains(r"line 0\u001b[31m"));
    let token = first.meta.next_token.clone();
    let second = cloud.admin.app_logs(&web(), Some(&token)).await.unwrap();
    assert_eq!((second.data.len(), &second.meta.next_token), (0, &token));
    let since = cloud.admin.app_logs(&web(), Some("1700000000006000000")).await.unwrap();
    assert_eq!(since.data.len(), 3);
    let (status, _) =
        cloud.error(("GET", "/api/v1/apps/web/logs?next_token=x"), Some(ADMIN), "").await;
    assert_eq!(status, 400);
}
