//! Suspend and resume with real machines.

use std::fs;
use std::time::{Duration, Instant};

use perch_runtime::cgroup::Hierarchies;
use perch_types::host::{Command, HostMachine};
use perch_types::{Code, MachineId, MachineState};

use super::server::{PATIENCE, Server, exec, machine, tell, wait};

const STOP: Command = Command::Stop { signal: None, timeout: None };
/// Writes numbers; a stop by a signal would be seen in its output.
const COUNT: &str = "trap 'echo asked; exit 0' INT; \
                     i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";

fn is_frozen(server: &Server, id: &MachineId) -> bool {
    let path = server.folder.join("run/machines").join(id.as_str()).join("boot.json");
    let boot: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let cgroup = boot["cgroup"].as_str().unwrap().to_owned();
    Hierarchies::detect().unwrap().is_frozen(cgroup.as_ref()).unwrap()
}

fn kinds(machine: &HostMachine) -> Vec<String> {
    machine.events.iter().map(|event| format!("{} {}", event.kind, event.status)).collect()
}

#[test]
fn a_suspended_machine_stands_still_and_goes_on_where_it_was() {
    let test = "a_suspended_machine_stands_still_and_goes_on_where_it_was";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let mut request = machine(1, "httpd -p 0.0.0.0:8080; echo up > /state; exec sleep 1000");
        request.config.services =
            serde_json::from_value(serde_json::json!([{"internal_port": 8080, "ports": []}]))
                .unwrap();
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "ready").await;
        for _ in 0..3 {
            tell(&host, &id, Command::Suspend).await;
            let found = wait(&host, &id, "suspended").await;
            assert!(!found.ready && is_frozen(&server, &id));
            assert_eq!(kinds(&found)[..2], ["suspend suspended", "suspend suspending"]);
            let again = host.command(&id, Command::Suspend).await.unwrap();
            assert_eq!(again.previous_state, MachineState::Suspended);
            for refused in [
                host.command(&id, Command::Signal { signal: 1 }).await.map(drop).unwrap_err(),
                exec(&host, &id, "true").await.map(drop).unwrap_err(),
            ] {
                assert_eq!(refused.code, Code::WrongState);
                assert!(refused.error.contains("suspended"), "{}", refused.error);
            }
            let started = host.command(&id, Command::Start).await.unwrap();
            assert_eq!(started.previous_state, MachineState::Suspended);
            // Looked at anew: what was known of it before it was frozen does not count.
            let back = wait(&host, &id, "ready").await;
            assert_eq!(back.state, MachineState::Started);
            assert_eq!(kinds(&back)[0], "start started");
            assert_eq!(exec(&host, &id, "cat /state").await.unwrap(), "up\n");
        }
        let exits = host.get(&id).unwrap().events;
        assert!(exits.iter().all(|event| event.kind != "exit"), "{exits:?}");
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_stop_a_restart_and_a_destruction_drop_what_is_suspended() {
    let test = "a_stop_a_restart_and_a_destruction_drop_what_is_suspended";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = machine(1, COUNT);
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        server.wait_for_output(&id, "3\n").await;
        tell(&host, &id, Command::Suspend).await;
        wait(&host, &id, "suspended").await;
        tell(&host, &id, STOP).await;
        let stopped = wait(&host, &id, "stopped").await;
        let exit = stopped.events[0].request.clone().unwrap();
        assert_eq!(exit["exit_event"]["requested_stop"], true, "{exit}");
        assert!(!server.output(&id).contains("asked"));

        tell(&host, &id, Command::Start).await;
        wait(&host, &id, "started").await;
        tell(&host, &id, Command::Suspend).await;
        wait(&host, &id, "suspended").await;
        let begun = |output: String| output.lines().filter(|line| *line == "1").count();
        let lines = begun(server.output(&id));
        tell(&host, &id, Command::Restart { force: false, signal: None, timeout: None }).await;
        wait(&host, &id, "started").await;
        let deadline = Instant::now() + PATIENCE;
        while begun(server.output(&id)) == lines {
            assert!(Instant::now() < deadline, "it did not start anew");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!server.output(&id).contains("asked"));

        tell(&host, &id, Command::Suspend).await;
        wait(&host, &id, "suspended").await;
        tell(&host, &id, Command::Destroy { force: false }).await;
        wait(&host, &id, "destroyed").await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_suspended_machine_is_found_suspended_by_the_next_agent() {
    let test = "a_suspended_machine_is_found_suspended_by_the_next_agent";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = machine(1, COUNT);
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        server.wait_for_output(&id, "3\n").await;
        tell(&host, &id, Command::Suspend).await;
        wait(&host, &id, "suspended").await;
        host.shutdown().await;
        drop(host);
        let host = server.start().await;
        assert_eq!(host.get(&id).unwrap().state, MachineState::Suspended);
        assert!(is_frozen(&server, &id));
        let refused = exec(&host, &id, "true").await.unwrap_err();
        assert_eq!(refused.code, Code::WrongState);
        host.shutdown().await;
        drop(host);

        // Somebody thawed it by hand: it is frozen again.
        let path = server.folder.join("run/machines").join(id.as_str()).join("boot.json");
        let boot: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let cgroup = boot["cgroup"].as_str().unwrap().to_owned();
        Hierarchies::detect().unwrap().freeze(cgroup.as_ref(), false).unwrap();
        assert!(!is_frozen(&server, &id));
        let host = server.start().await;
        let deadline = Instant::now() + PATIENCE;
        while !is_frozen(&server, &id) || host.get(&id).unwrap().state != MachineState::Suspended {
            assert!(Instant::now() < deadline, "{:?}", host.get(&id));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }

        let seen = server.output(&id).lines().count();
        tell(&host, &id, Command::Start).await;
        wait(&host, &id, "started").await;
        server.wait_for_output(&id, &format!("\n{}\n", seen + 3)).await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_suspended_machine_whose_monitor_is_killed_is_stopped_and_starts_anew() {
    let test = "a_suspended_machine_whose_monitor_is_killed_is_stopped_and_starts_anew";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let mut request = machine(1, COUNT);
        request.config.restart =
            serde_json::from_value(serde_json::json!({"policy": "always"})).unwrap();
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        server.wait_for_output(&id, "3\n").await;
        tell(&host, &id, Command::Suspend).await;
        wait(&host, &id, "suspended").await;
        let path = server.folder.join("run/machines").join(id.as_str()).join("boot.json");
        let info: perch_runtime::InstanceInfo =
            serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        perch_runtime::process::kill(&info.monitor.open().unwrap()).unwrap();
        let stopped = wait(&host, &id, "stopped").await;
        let exit = stopped.events[0].request.clone().unwrap();
        assert_eq!(exit["exit_event"]["restarting"], false, "{exit}");
        tell(&host, &id, Command::Start).await;
        wait(&host, &id, "started").await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_start_during_a_suspension_takes_its_place() {
    let test = "a_start_during_a_suspension_takes_its_place";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let mut request = machine(1, "httpd -p 0.0.0.0:8080; exec sleep 1000");
        request.config.services =
            serde_json::from_value(serde_json::json!([{"internal_port": 8080, "ports": []}]))
                .unwrap();
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "ready").await;
        // One that sends requests and never says that none is under way.
        let sender = host.join_senders(None);
        tell(&host, &id, Command::Suspend).await;
        wait(&host, &id, "suspending").await;
        tell(&host, &id, Command::Start).await;
        wait(&host, &id, "ready").await;
        assert!(!is_frozen(&server, &id));
        drop(sender);
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_machine_is_suspended_as_often_as_anybody_likes() {
    let test = "a_machine_is_suspended_as_often_as_anybody_likes";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = machine(1, COUNT);
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        // More often than a monitor has places for those who wait for its end.
        for _ in 0..40 {
            tell(&host, &id, Command::Suspend).await;
            wait(&host, &id, "suspended").await;
            tell(&host, &id, Command::Start).await;
            wait(&host, &id, "started").await;
        }
        host.remove_everything().await.unwrap();
    });
}
