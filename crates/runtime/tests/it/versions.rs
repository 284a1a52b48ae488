//! Agents and monitors of different versions: what one does not know, the other is told.

use std::fs;
use std::path::Path;

use perch_runtime::protocol::{Answer, FRAME_BYTES_MAX, PROTOCOL, ProcessInfo};
use perch_runtime::{
    Adopted, Config, Error, Instance, MachineDir, Runtime as _, SandboxRuntime, frame, process,
};
use perch_types::MachineId;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

use crate::machine::{Machine, wait};

/// A monitor that says what it is told to, and hangs up on what it has no answer for.
struct Recorded {
    _folder: tempfile::TempDir,
    dir: MachineDir,
    init: std::process::Child,
}

impl Recorded {
    /// Makes one whose greeting has these fields over those of version 1.
    fn new(fields: &Value, answers: &'static [(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = MachineId::from_bits(0xabc);
        let dir = MachineDir::below(&folder.path().join("s"), &folder.path().join("r"), &machine);
        fs::create_dir_all(&dir.state).unwrap();
        fs::create_dir_all(&dir.run).unwrap();
        let init = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let of = |pid: u32| ProcessInfo::of(pid.try_into().unwrap()).unwrap();
        let mut info = json!({
            "protocol": 1,
            "machine": machine,
            "instance": "01HF7YATJR0000000000000005",
            "boot": 3,
            "host_boot": process::host_boot().unwrap(),
            "monitor": of(std::process::id()),
            "init": of(init.id()),
            "cgroup": "perch-test/machines/none",
        });
        info.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        fs::write(dir.boot_file(), info.to_string()).unwrap();
        let socket = UnixListener::bind(dir.socket()).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                tokio::spawn(answer(stream, info.clone(), answers));
            }
        });
        Self { _folder: folder, dir, init }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.init.kill().unwrap();
        self.init.wait().unwrap();
    }
}

async fn answer(mut stream: UnixStream, info: Value, answers: &[(&str, &str)]) {
    let hello = json!({"hello": info});
    frame::send(&mut stream, &hello, FRAME_BYTES_MAX).await.unwrap();
    while let Ok(request) = frame::receive::<Value, _>(&mut stream, FRAME_BYTES_MAX).await {
        let verb = match &request {
            Value::String(verb) => verb.clone(),
            other => other.as_object().unwrap().keys().next().unwrap().clone(),
        };
        let Some((_, answer)) = answers.iter().find(|(known, _)| *known == verb) else { return };
        let answer: Value = serde_json::from_str(answer).unwrap();
        frame::send(&mut stream, &answer, FRAME_BYTES_MAX).await.unwrap();
    }
}

fn runtime() -> SandboxRuntime {
    let nothing = Path::new("/no/such/program").to_owned();
    let cgroup = "perch-test".to_owned();
    SandboxRuntime::new(Config { monitor: nothing.clone(), init: nothing, cgroup })
}

async fn adopt(recorded: &Recorded) -> Result<Box<dyn Instance>, Error> {
    match runtime().adopt(&recorded.dir).await? {
        Adopted::Running(instance) => Ok(instance),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn c4_a_machine_of_the_first_version_is_adopted_and_what_it_cannot_do_is_told() {
    let recorded = Recorded::new(
        &json!({}),
        &[
            (
                "stats",
                r#"{"stats":{"memory_bytes":1,"memory_max_bytes":2,"cpu_us":3,"pids":4,"oom_kills":5}}"#,
            ),
            ("stop", r#""done""#),
            ("signal", r#"{"refused":{"reason":"the program does not run"}}"#),
            ("wait", r#"{"ended":{"instance":"01HF7YATJR0000000000000005","boot":3,"code":7}}"#),
        ],
    );
    let instance = adopt(&recorded).await.unwrap();
    assert_eq!(instance.info().protocol, 1);
    assert_eq!(instance.stats().await.unwrap().oom_kills, 5);
    instance.stop(15, 10).await.unwrap();
    let refused = instance.signal(1).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    let older = instance.note("hello").await.unwrap_err();
    assert!(matches!(older, Error::Older { spoken: 1, needed: 2, .. }), "{older}");
    assert!(older.to_string().contains("protocol 1"), "{older}");
    assert_eq!(wait(&*instance).await.code, 7);
}

#[tokio::test]
async fn c4_a_machine_of_a_later_version_is_adopted_if_it_understands_this_one() {
    let stats: &[(&str, &str)] = &[(
        "stats",
        r#"{"stats":{"memory_bytes":1,"memory_max_bytes":2,"cpu_us":3,"pids":4,"oom_kills":5,"dreams":6}}"#,
    )];
    let later = json!({"protocol": 99, "understands_from": PROTOCOL, "mood": "fine"});
    let recorded = Recorded::new(&later, stats);
    let instance = adopt(&recorded).await.unwrap();
    assert_eq!(instance.stats().await.unwrap().pids, 4);
    let stranger = json!({"protocol": 99, "understands_from": PROTOCOL + 1});
    let recorded = Recorded::new(&stranger, stats);
    // Nobody may take it for one that is gone.
    let error = adopt(&recorded).await.unwrap_err();
    assert!(matches!(error, Error::Stranger { .. }), "{error}");
    assert!(error.to_string().contains(&format!("this is {PROTOCOL}")), "{error}");
}

#[tokio::test]
async fn c4_a_later_agent_is_told_what_this_monitor_does_not_know() {
    let Some(machine) = Machine::new("later agent") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    let mut stream = UnixStream::connect(machine.spec.dir.socket()).await.unwrap();
    let hello: Answer = frame::receive(&mut stream, FRAME_BYTES_MAX).await.unwrap();
    assert!(matches!(hello, Answer::Hello(_)));
    let stop = json!({"stop": {"signal": 9, "grace_ms": 0, "softly": true}});
    for (request, words) in [
        (json!({"teleport": {"to": "mars"}}), Some("`teleport`")),
        (json!("dance"), Some("`dance`")),
        (stop, Some("softly")),
        // And then it goes on.
        (json!("stats"), None),
    ] {
        frame::send(&mut stream, &request, FRAME_BYTES_MAX).await.unwrap();
        match (frame::receive(&mut stream, FRAME_BYTES_MAX).await.unwrap(), words) {
            (Answer::Refused { reason }, Some(words)) => {
                assert!(reason.contains(words), "{request}: {reason}");
            }
            (Answer::Stats(stats), None) => assert!(stats.pids > 0),
            (other, _) => panic!("{request}: {other:?}"),
        }
    }
    drop(stream);
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}
