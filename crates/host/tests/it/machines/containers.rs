//! A machine of several containers, from the configuration to what the host says of it.

use std::path::Path;
use std::time::{Duration, Instant};

use perch_host::Host;
use perch_runtime::log;
use perch_types::api::{CheckState, ExecRequest};
use perch_types::host::{Command, CreateMachine, HostMachine};
use perch_types::{ApiError, Code, MachineId};
use serde_json::{Value, json};

use super::adoption::{AGENT, agent, pid};
use super::server::{PATIENCE, Server, machine, tell, wait};

/// The name of the test that a child runs.
const CHILD: &str = "machines::containers::agent_of_another_test";

/// Waits until a machine is as wanted.
pub(super) async fn until(
    host: &Host,
    id: &MachineId,
    wanted: impl Fn(&HostMachine) -> bool,
) -> HostMachine {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let machine = host.get(id).unwrap();
        if wanted(&machine) {
            return machine;
        }
        assert!(Instant::now() < deadline, "{machine:#?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn try_exec(
    host: &Host,
    id: &MachineId,
    container: Option<&str>,
    script: &str,
) -> Result<String, ApiError> {
    let request = ExecRequest {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        container: container.map(str::to_owned),
        ..ExecRequest::default()
    };
    host.exec(id, request).await.map(|answer| answer.stdout)
}

pub(super) async fn exec_in(host: &Host, id: &MachineId, container: &str, script: &str) -> String {
    try_exec(host, id, Some(container), script).await.unwrap()
}

pub(super) fn states(machine: &HostMachine) -> Vec<String> {
    machine.containers.iter().map(|one| format!("{} {}", one.name, one.state)).collect()
}

pub(super) fn several(number: u64, containers: &Value, volumes: &Value) -> CreateMachine {
    let mut request = machine(number, "");
    request.config = serde_json::from_value(json!({
        "guest": {"memory_mb": 256},
        "restart": {"policy": "no"},
        "rootfs": {"size_gb": 1},
        "containers": containers,
        "volumes": volumes,
    }))
    .unwrap();
    request
}

/// Returns the files that containers of a machine share on the disk.
pub(super) fn shared_files(server: &Server, id: &MachineId) -> Vec<String> {
    let folder = server.folder.join("data/machines").join(id.as_str());
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".img.v")).collect()
}

#[test]
fn containers_wait_for_health_share_folders_and_gate_requests() {
    Server::run(
        "containers_wait_for_health_share_folders_and_gate_requests",
        |server| async move {
            let host = server.start().await;
            let trap = "trap 'echo asked; kill $nc; exit 0' USR1; echo hello > /data/from-db; \
            echo $WHO; nc -ll -p 4000 -e true & nc=$!; while :; do wait; done";
            let containers = json!([
                {"name": "web", "image": "busybox:22",
                 "exec": ["sh", "-c", "cat /shared/from-db; exec sleep 1000"],
                 "stop": {"signal": "SIGKILL"},
                 "depends_on": [{"name": "db", "condition": "healthy"}],
                 "mounts": [{"name": "scratch", "path": "/shared"}],
                 "healthchecks": [{"name": "up", "interval": 1, "failure_threshold": 1,
                    "kind": "readiness", "exec": {"command": ["test", "-e", "/tmp/ready"]}}]},
                {"name": "db", "image": "busybox:1", "exec": ["sh", "-c", trap],
                 "stop": {"signal": "SIGUSR1"},
                 "env_from": [{"env_var": "WHO", "field_ref": "app_name"}],
                 "mounts": [{"name": "scratch", "path": "/data"}],
                 "healthchecks": [{"name": "port", "interval": 1, "tcp": {"port": 4000}}]},
            ]);
            let volumes = json!([{"name": "scratch", "temp_dir": {"size_mb": 8}}]);
            let request = several(1, &containers, &volumes);
            let id = request.id.clone();
            host.create(request).await.unwrap();
            wait(&host, &id, "started").await;
            let running = ["web started", "db started"];
            let found = until(&host, &id, |machine| states(machine) == running).await;
            assert!(!found.ready);
            let because = found.not_ready_because.unwrap();
            assert!(because.starts_with("check web.up"), "{because}");
            assert_eq!(found.checks[1].status, CheckState::Passing, "{:?}", found.checks);
            server.wait_for_output(&id, "hello\n").await;

            exec_in(&host, &id, "web", "touch /tmp/ready").await;
            until(&host, &id, |machine| machine.ready).await;
            exec_in(&host, &id, "web", "rm /tmp/ready").await;
            let found = until(&host, &id, |machine| !machine.ready).await;
            assert_eq!(found.checks[0].name, "web.up");
            assert_eq!(found.checks[0].status, CheckState::Critical);
            assert_eq!(exec_in(&host, &id, "db", "ls /tmp; cat /data/from-db").await, "hello\n");
            assert_eq!(try_exec(&host, &id, None, "ls -d /shared").await.unwrap(), "/shared\n");
            let error = try_exec(&host, &id, Some("no"), "true").await.unwrap_err();
            assert_eq!(error.code, Code::InvalidRequest);
            assert_eq!(error.error, "container: there is no container `no`; allowed are web, db");
            for name in ["web", "db"] {
                assert_eq!(
                    exec_in(&host, &id, name, "test -S /.fly/api && echo yes").await,
                    "yes\n"
                );
            }
            let listed = host.processes(&id).await.unwrap();
            let runs = |name: &str, program: &str| {
                let mut own = listed.iter().filter(|one| one.container.as_deref() == Some(name));
                own.any(|one| one.command.split(' ').next() == Some(program))
            };
            for (name, program) in [("web", "sleep"), ("web", "perch-init"), ("db", "nc")] {
                assert!(runs(name, program), "{program} in {name}: {listed:?}");
            }
            assert!(!runs("db", "sleep") && !runs("web", "nc"), "{listed:?}");

            let dir = server.folder.join("data/machines").join(id.as_str()).join("log");
            let named = |name: &str, line: &str| {
                let records = log::read(&dir, 0, log::RECORDS_MAX).unwrap();
                let own = |one: &log::Record| one.container.as_deref() == Some(name);
                records.iter().any(|one| own(one) && one.line == line.as_bytes())
            };
            assert!(named("db", "web") && named("web", "hello"));

            assert_eq!(shared_files(&server, &id).len(), 1);
            tell(&host, &id, Command::Stop { signal: None, timeout: None }).await;
            let stopped = wait(&host, &id, "stopped").await;
            assert_eq!(states(&stopped), ["web stopped", "db stopped"]);
            assert!(named("db", "asked"), "it was ended by its own signal");
            let exit = stopped.events[0].request.clone().unwrap();
            assert_eq!(exit["exit_event"]["requested_stop"], true);
            assert_eq!(exit["exit_event"]["container"], "db", "the one that is stopped last");
            assert_eq!(shared_files(&server, &id), [""; 0]);
            tell(&host, &id, Command::Destroy { force: true }).await;
            wait(&host, &id, "destroyed").await;
            host.remove_everything().await.unwrap();
        },
    );
}

/// A machine whose third container waits for the health of the first, which comes with a file.
fn waiting() -> CreateMachine {
    let containers = json!([
        {"name": "db", "image": "busybox:1", "restart": {"policy": "no"},
         "exec": ["sh", "-c", "echo once >> /memory/starts; exec sleep 1000"],
         "mounts": [{"name": "memory", "path": "/memory"}],
         "healthchecks": [{"name": "up", "interval": 1,
            "exec": {"command": ["test", "-e", "/memory/healthy"]}}]},
        {"name": "worker", "image": "busybox:1", "restart": {"policy": "on-failure"},
         "exec": ["sh", "-c", "echo run >> /memory/runs; until [ -e /memory/go ]; do sleep 0.01; \
            done; [ -e /again ] && exit 0; touch /again; rm /memory/go; exit 3"],
         "mounts": [{"name": "memory", "path": "/memory"}]},
        {"name": "late", "image": "busybox:22", "exec": ["sh", "-c", "echo late"],
         "depends_on": [{"name": "db", "condition": "healthy"}]},
    ]);
    let volumes = json!([{"name": "memory", "temp_dir": {"storage_type": "memory", "size_mb": 1}}]);
    several(2, &containers, &volumes)
}

/// Not a test of its own: what the child of the test below does.
#[test]
fn agent_of_another_test() {
    let Ok(folder) = std::env::var(AGENT) else {
        return;
    };
    Server::adopt(Path::new(&folder), |server| async move {
        let host = server.start().await;
        let request = waiting();
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let running = ["db started", "worker started", "late created"];
        until(&host, &id, |machine| states(machine) == running).await;
        std::io::Write::write_all(&mut std::io::stdout(), b"ready\n").unwrap();
        std::future::pending::<()>().await;
    });
}

#[test]
fn containers_outlive_the_agent_are_started_again_and_end_the_machine_with_the_last() {
    Server::run(
        "containers_outlive_the_agent_are_started_again_and_end_the_machine_with_the_last",
        |server| async move {
            let mut child = agent(&server.folder, CHILD);
            let id = waiting().id;
            let before = pid(&server, &id);
            child.kill().unwrap();
            child.wait().unwrap();
            let host = server.start().await;
            let running = ["db started", "worker started", "late created"];
            until(&host, &id, |machine| states(machine) == running).await;
            assert_eq!(pid(&server, &id), before);

            // What waited under the agent that is gone goes on under the next.
            exec_in(&host, &id, "worker", "touch /memory/healthy").await;
            server.wait_for_output(&id, "late\n").await;
            let ended = ["db started", "worker started", "late stopped"];
            until(&host, &id, |machine| states(machine) == ended).await;

            exec_in(&host, &id, "db", "touch /memory/go").await;
            let again =
                "while [ $(wc -l < /memory/runs) -lt 2 ]; do sleep 0.01; done; cat /memory/runs";
            assert_eq!(exec_in(&host, &id, "db", again).await, "run\nrun\n");
            assert_eq!(exec_in(&host, &id, "db", "cat /memory/starts").await, "once\n");
            until(&host, &id, |machine| states(machine) == ended).await;

            exec_in(&host, &id, "db", "touch /memory/go").await;
            let ended = ["db started", "worker stopped", "late stopped"];
            until(&host, &id, |machine| states(machine) == ended).await;
            assert_eq!(host.get(&id).unwrap().state.to_string(), "started", "one runs on");
            exec_in(&host, &id, "db", "kill -9 -1").await;
            let stopped = wait(&host, &id, "stopped").await;
            let exit = stopped.events[0].request.clone().unwrap();
            assert_eq!(exit["exit_event"]["container"], "db");
            assert_eq!(exit["exit_event"]["exit_code"], 137);
            assert_eq!(exit["exit_event"]["requested_stop"], false);
            host.remove_everything().await.unwrap();
        },
    );
}
