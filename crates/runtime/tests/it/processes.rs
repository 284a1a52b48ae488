//! Several main processes in one machine.

use perch_runtime::log::{self, Stream};
use perch_runtime::{Error, GuestProcess, GuestStart};

use crate::machine::{Machine, env, exec, wait};

fn process(script: &str) -> GuestProcess {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    GuestProcess { argv, ..GuestProcess::default() }
}

fn several(processes: Vec<GuestProcess>) -> GuestStart {
    GuestStart {
        processes,
        env: env(&[("SHARED", "yes"), ("TOKEN", "secret")]),
        stop_signal: 15,
        stop_grace_ms: 20_000,
        ..GuestStart::default()
    }
}

#[tokio::test]
async fn the_first_process_that_ends_ends_the_machine_and_is_told() {
    let Some(machine) = Machine::new("processes") else {
        return;
    };
    let start = several(vec![
        process("trap 'echo asked; exit 9' TERM; echo first; while :; do sleep 0.01; done"),
        process("until [ -e /tmp/go ]; do sleep 0.01; done; exit 3"),
    ]);
    let instance = machine.boot_with(start).await;
    machine.wait_for_output("first").await;
    exec(&*instance, "touch /tmp/go").await;
    let status = wait(&*instance).await;
    assert_eq!((status.code, status.signal, status.process), (3, None, Some(1)));
    assert!(!status.requested_stop);
    assert!(machine.output(Stream::Stdout).contains("asked"), "the other was asked to end");
    let told = machine.output(Stream::System);
    assert!(told.contains("Process 1 exited with code: 3"), "{told}");
    machine.assert_clean();
}

#[tokio::test]
async fn each_process_has_its_own_user_environment_and_outputs() {
    let Some(machine) = Machine::new("process environment") else {
        return;
    };
    let script = "echo $0 $(id -u) $SHARED $OWN $TOKEN; echo $0 warns >&2; \
        until [ -e /tmp/both ]; do sleep 0.01; done; echo $0 by name > /dev/stdout; \
        until [ -e /tmp/go ]; do sleep 0.01; done";
    let mut web = process(script);
    web.argv.push("web".to_owned());
    web.user = Some("web".to_owned());
    web.env = env(&[("OWN", "1")]);
    let mut plain = process(script);
    plain.argv.push("plain".to_owned());
    plain.without = vec!["TOKEN".to_owned()];
    let instance = machine.boot_with(several(vec![web, plain])).await;
    machine.wait_for_output("web 33 yes 1 secret\n").await;
    machine.wait_for_output("plain 0 yes\n").await;
    exec(&*instance, "touch /tmp/both").await;
    machine.wait_for_output("web by name\n").await;
    machine.wait_for_output("plain by name\n").await;
    exec(&*instance, "touch /tmp/go").await;
    assert_eq!(wait(&*instance).await.code, 0);
    let records = log::read(&machine.spec.dir.log_dir(), 0, log::RECORDS_MAX).unwrap();
    for record in records {
        let process = match record.line.split(|byte| *byte == b' ').next() {
            _ if record.stream == Stream::System => None,
            Some(b"web") => Some(0),
            Some(b"plain") => Some(1),
            other => panic!("{other:?}"),
        };
        assert_eq!(record.process, process, "{}", String::from_utf8_lossy(&record.line));
    }
    assert!(machine.output(Stream::Stderr).contains("web warns"));
}

#[tokio::test]
async fn a_stop_reaches_every_process() {
    let Some(machine) = Machine::new("process stop") else {
        return;
    };
    let script = |name| {
        process(&format!(
            "trap 'echo {name} asked; exit 0' TERM; echo {name} up; while :; do sleep 0.01; done"
        ))
    };
    let instance = machine.boot_with(several(vec![script("a"), script("b")])).await;
    machine.wait_for_output("a up").await;
    machine.wait_for_output("b up").await;
    instance.stop(15, 20_000).await.unwrap();
    let status = wait(&*instance).await;
    assert_eq!((status.code, status.requested_stop), (0, true));
    let output = machine.output(Stream::Stdout);
    assert!(output.contains("a asked") && output.contains("b asked"), "{output}");
}

#[tokio::test]
async fn a_process_that_cannot_be_executed_is_named_and_none_runs() {
    let Some(machine) = Machine::new("process missing") else {
        return;
    };
    let instance = machine.runtime_create().await;
    let none = GuestProcess { argv: vec!["none".to_owned()], ..GuestProcess::default() };
    let error = instance.start(several(vec![process("sleep 1000"), none])).await.unwrap_err();
    let Error::NotExecutable { reason, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(reason.starts_with("process 1: there is no program `none`"), "{reason}");
    assert_eq!(wait(&*instance).await.code, 127);
    machine.assert_clean();
}
