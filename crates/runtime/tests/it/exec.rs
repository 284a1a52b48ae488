//! Further programs in a running machine.

use std::time::Duration;

use perch_runtime::{Error, ExecEvent, ExecInput, ExecRequest, GuestExec, TerminalSize};

use crate::machine::{LIMIT, Machine, env, exec, wait};

fn sh(script: &str) -> GuestExec {
    GuestExec { argv: ["sh", "-c", script].map(str::to_owned).to_vec(), ..GuestExec::default() }
}

#[tokio::test]
async fn an_exec_gets_its_input_and_gives_its_output_and_code() {
    let Some(machine) = Machine::new("exec") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    let request = ExecRequest {
        exec: GuestExec {
            env: env(&[("MORE", "yes")]),
            user: Some("web".to_owned()),
            cwd: Some("/tmp".to_owned()),
            ..sh("cat; echo $MORE; id -u; pwd; echo bad >&2; exit 9")
        },
        stdin: b"in\n".repeat(100_000),
        ..ExecRequest::default()
    };
    let output = instance.exec(request).await.unwrap();
    assert!(output.stdout.ends_with(b"in\nyes\n33\n/tmp\n"));
    assert_eq!(output.stdout.len(), 300_000 + 12);
    assert_eq!(output.stderr, b"bad\n");
    assert_eq!((output.ended.code, output.truncated, output.timed_out), (9, false, false));

    let request = ExecRequest {
        exec: sh("yes"),
        timeout_ms: 300,
        output_bytes_max: 1000,
        ..ExecRequest::default()
    };
    let output = instance.exec(request).await.unwrap();
    assert_eq!(output.stdout.len(), 1000);
    assert!(output.truncated && output.timed_out);
    assert_eq!(output.ended.signal, Some(9));

    let request = ExecRequest {
        exec: GuestExec { argv: vec!["nothing".to_owned()], ..GuestExec::default() },
        ..ExecRequest::default()
    };
    match instance.exec(request).await {
        Err(Error::NotExecutable { code: 127, reason }) => assert!(reason.contains("nothing")),
        other => panic!("{other:?}"),
    }
    instance.kill().await.unwrap();
    wait(&*instance).await;
}

/// An agent is killed as often while output is on its way as in a quiet moment.
#[tokio::test]
async fn a_program_whose_caller_went_away_is_told() {
    let Some(machine) = Machine::new("caller gone") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    for (name, work) in [("loud", "echo some"), ("quiet", "sleep 0.01")] {
        let script = format!(
            "trap '' PIPE; trap 'touch /tmp/{name}; exit' HUP; \
             echo up; while :; do {work} 2>/dev/null; done"
        );
        let mut stream = instance.exec_stream(sh(&script)).await.unwrap();
        assert!(matches!(stream.events.recv().await, Some(ExecEvent::Stdout(_))), "{name}");
        drop(stream);
        let told = format!("until [ -e /tmp/{name} ]; do sleep 0.01; done");
        assert_eq!(exec(&*instance, &told).await.ended.code, 0, "{name}");
    }
    instance.kill().await.unwrap();
    wait(&*instance).await;
}

#[tokio::test]
async fn an_exec_with_a_terminal_has_a_size_that_changes() {
    let Some(machine) = Machine::new("terminal exec") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    let size = TerminalSize { rows: 10, cols: 20 };
    let exec = GuestExec { tty: Some(size), ..sh("stty size; read x; stty size; tty") };
    let mut stream = instance.exec_stream(exec).await.unwrap();
    let mut text = String::new();
    let mut resized = false;
    let ended = loop {
        let event = tokio::time::timeout(LIMIT, stream.events.recv()).await.unwrap();
        match event {
            Some(ExecEvent::Stdout(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Some(ExecEvent::Ended(ended)) => break ended,
            other => panic!("{other:?}"),
        }
        if text.contains("10 20") && !resized {
            resized = true;
            let size = TerminalSize { rows: 30, cols: 40 };
            stream.input.send(ExecInput::Resize(size)).await.unwrap();
            stream.input.send(ExecInput::Stdin(b"\n".to_vec())).await.unwrap();
        }
    };
    assert_eq!(ended.code, 0);
    assert!(text.contains("30 40") && text.contains("/dev/pts/"), "{text}");
    instance.kill().await.unwrap();
    wait(&*instance).await;
}

#[tokio::test]
async fn an_agent_that_hangs_up_ends_its_exec() {
    let Some(machine) = Machine::new("hang up") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    let stream = instance.exec_stream(sh("sleep 987")).await.unwrap();
    drop(stream);
    let deadline = std::time::Instant::now() + LIMIT;
    while !exec(&*instance, "ps | grep -v grep | grep 'sleep 987'").await.stdout.is_empty() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    instance.kill().await.unwrap();
    wait(&*instance).await;
}

#[tokio::test]
async fn execs_are_limited() {
    let Some(machine) = Machine::new("many execs") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    let mut streams = Vec::new();
    let refused = loop {
        match instance.exec_stream(sh("sleep 1000")).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 100);
    };
    assert_eq!(streams.len(), 16, "{refused}");
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}

#[tokio::test]
async fn a_frozen_machine_stands_still_and_goes_on() {
    let Some(machine) = Machine::new("freeze") else {
        return;
    };
    let instance = machine.boot("while :; do echo tick; sleep 0.01; done").await;
    machine.wait_for_output("tick").await;
    instance.freeze().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let count = machine.output(perch_runtime::log::Stream::Stdout).len();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(machine.output(perch_runtime::log::Stream::Stdout).len(), count);
    instance.thaw().await.unwrap();
    assert_eq!(exec(&*instance, "echo thawed").await.stdout, b"thawed\n");
    instance.freeze().await.unwrap();
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}
