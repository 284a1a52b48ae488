//! Machines that end by themselves, that are updated, that are kept apart.

use perch_types::host::Command;
use perch_types::machine_config::{RestartConfig, RestartPolicy};
use perch_types::{Code, InstanceId, MachineState};

use super::server::{PATIENCE, Server, exec, machine, tell, wait};

const SLEEP: &str = "exec sleep 1000";

#[test]
fn a_program_that_exits_at_once_is_reported_with_its_code() {
    Server::run("a_program_that_exits_at_once_is_reported_with_its_code", |server| async move {
        let host = server.start().await;
        let request = machine(1, "echo no config; exit 3");
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let stopped = wait(&host, &id, "stopped").await;
        let exit = stopped.events[0].request.clone().unwrap();
        assert_eq!(stopped.events[0].kind, "exit");
        assert_eq!(exit["exit_event"]["exit_code"], 3);
        assert_eq!(exit["exit_event"]["requested_stop"], false);
        assert_eq!(exit["exit_event"]["restarting"], false);
        server.wait_for_output(&id, "no config").await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_program_that_keeps_failing_is_restarted_a_few_times() {
    Server::run("a_program_that_keeps_failing_is_restarted_a_few_times", |server| async move {
        let host = server.start().await;
        let mut request = machine(1, "echo again; exit 1");
        request.config.restart = Some(RestartConfig {
            policy: Some(RestartPolicy::OnFailure),
            max_retries: Some(2),
            ..RestartConfig::default()
        });
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let stopped = wait(&host, &id, "stopped").await;
        let exits: Vec<_> = stopped.events.iter().filter(|event| event.kind == "exit").collect();
        assert_eq!(exits.len(), 3);
        let last = exits[0].request.clone().unwrap();
        let before = exits[1].request.clone().unwrap();
        assert_eq!(last["exit_event"]["restarting"], false);
        assert_eq!(before["exit_event"]["restarting"], true);
        assert_eq!(last["restart_count"], 2);
        assert_eq!(server.output(&id), "again\n".repeat(3));
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_missing_program_is_named() {
    Server::run("a_missing_program_is_named", |server| async move {
        let host = server.start().await;
        let mut request = machine(1, "");
        request.config.init.exec = vec!["/no/such/program".to_owned()];
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let stopped = wait(&host, &id, "stopped").await;
        let exit = stopped.events[0].request.clone().unwrap();
        assert_eq!(exit["exit_event"]["exit_code"], 127);
        let error = exit["exit_event"]["error"].as_str().unwrap();
        assert!(error.contains("/no/such/program"), "{error}");
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn running_out_of_memory_is_reported() {
    Server::run("running_out_of_memory_is_reported", |server| async move {
        let host = server.start().await;
        let mut request = machine(1, "x=x; while :; do x=$x$x; done");
        request.config.guest.as_mut().unwrap().memory_mb = Some(32);
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let stopped = wait(&host, &id, "stopped").await;
        let exit = stopped.events[0].request.clone().unwrap();
        assert_eq!(exit["exit_event"]["oom_killed"], true, "{exit}");
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_machine_that_destroys_itself_can_be_asked_about_afterwards() {
    Server::run(
        "a_machine_that_destroys_itself_can_be_asked_about_afterwards",
        |server| async move {
            let host = server.start().await;
            let mut request = machine(1, "echo migrated; exit 0");
            request.config.auto_destroy = true;
            let id = request.id.clone();
            host.create(request).await.unwrap();
            let gone = wait(&host, &id, "destroyed").await;
            let kinds: Vec<&str> = gone.events.iter().map(|event| event.kind.as_str()).collect();
            assert_eq!(kinds, ["destroy", "exit", "start", "launch"]);
            server.wait_for_output(&id, "migrated").await;
            host.remove_everything().await.unwrap();
        },
    );
}

#[test]
fn an_unknown_image_is_refused_and_leaves_nothing() {
    Server::run("an_unknown_image_is_refused_and_leaves_nothing", |server| async move {
        let host = server.start().await;
        let mut request = machine(1, SLEEP);
        request.config.image = "nobody/knows:this".to_owned();
        let refused = host.create(request.clone()).await.unwrap_err();
        assert_eq!(refused.code, Code::ImageUnknown);
        assert_eq!(host.get(&request.id).unwrap_err().code, Code::MachineNotFound);
        assert!(host.list().is_empty());
        host.remove_everything().await.unwrap();
    });
}

fn update(number: u64, script: &str, old: &perch_types::host::CreateMachine) -> Command {
    let mut config = old.config.clone();
    config.init.exec = ["sh", "-c", script].map(str::to_owned).to_vec();
    Command::Update {
        instance: InstanceId::from_parts(1_800_000_000_000, u128::from(number)),
        epoch: 2,
        config: Box::new(config),
        config_digest: format!("update {number}"),
        skip_launch: false,
        cordoned: false,
        secrets: perch_types::host::SecretsWanted::default(),
    }
}

#[test]
fn an_update_takes_over_and_one_that_cannot_run_goes_back() {
    Server::run("an_update_takes_over_and_one_that_cannot_run_goes_back", |server| async move {
        let host = server.start().await;
        let request = machine(1, "echo old; exec sleep 1000");
        let id = request.id.clone();
        host.create(request.clone()).await.unwrap();
        wait(&host, &id, "started").await;

        tell(&host, &id, update(1, "echo new; exec sleep 1000", &request)).await;
        server.wait_for_output(&id, "new").await;
        let updated = wait(&host, &id, "started").await;
        let kinds: Vec<&str> = updated.events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["start", "launch", "exit", "update", "start", "launch"]);
        assert_eq!((updated.epoch, updated.private_ip), (2, host.get(&id).unwrap().private_ip));

        let broken = match update(2, "", &request) {
            Command::Update {
                instance,
                epoch,
                mut config,
                config_digest,
                skip_launch,
                cordoned,
                secrets,
            } => {
                config.init.exec = vec!["/nowhere".to_owned()];
                Command::Update {
                    instance,
                    epoch,
                    config,
                    config_digest,
                    skip_launch,
                    cordoned,
                    secrets,
                }
            }
            other => panic!("{other:?}"),
        };
        tell(&host, &id, broken).await;
        let back = wait(&host, &id, "started").await;
        assert_eq!(back.instance, updated.instance);
        assert_eq!(back.failure.unwrap().code, Code::ExitedAtOnce);
        assert_eq!(exec(&host, &id, "echo here").await.unwrap(), "here\n");
        assert_eq!(server.output(&id), "old\nnew\nnew\n");
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_machine_that_listens_elsewhere_says_where() {
    Server::run("a_machine_that_listens_elsewhere_says_where", |server| async move {
        let host = server.start().await;
        let mut request = machine(1, "httpd -p 127.0.0.1:8000; exec sleep 1000");
        request.config.services =
            serde_json::from_value(serde_json::json!([{"internal_port": 8080, "ports": []}]))
                .unwrap();
        let id = request.id.clone();
        host.create(request.clone()).await.unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let wanted = "listens on 127.0.0.1:8000, expected 0.0.0.0:8080";
        while host.get(&id).unwrap().not_ready_because.as_deref() != Some(wanted) {
            assert!(std::time::Instant::now() < deadline, "{:?}", host.get(&id));
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(!host.get(&id).unwrap().ready);
        exec(&host, &id, "httpd -p 0.0.0.0:8080").await.unwrap();
        wait(&host, &id, "ready").await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn machines_of_one_network_reach_each_other_and_no_others() {
    Server::run("machines_of_one_network_reach_each_other_and_no_others", |server| async move {
        let host = server.start().await;
        let listen = "while :; do echo hi | nc -l -p 9000; done";
        for (number, network_id) in [(1, 1), (2, 1), (3, 2)] {
            let mut request = machine(number, listen);
            request.network_id = network_id;
            let id = request.id.clone();
            host.create(request).await.unwrap();
            wait(&host, &id, "started").await;
        }
        let all = host.list();
        let ask = |to: usize| format!("nc -w 2 {} 9000 </dev/null; echo $?", all[to].private_ip);
        assert_eq!(exec(&host, &all[0].id, &ask(1)).await.unwrap(), "hi\n0\n");
        let refused = exec(&host, &all[0].id, &ask(2)).await.unwrap();
        assert!(!refused.contains("hi") && !refused.ends_with("\n0\n"), "{refused}");
        let rules = std::process::Command::new("ip")
            .args(["netns", "exec", server.tag(), "nft", "list", "ruleset"])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&rules.stdout).contains("masquerade"));
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_machine_that_is_only_prepared_is_stopped_and_can_be_started() {
    Server::run(
        "a_machine_that_is_only_prepared_is_stopped_and_can_be_started",
        |server| async move {
            let host = server.start().await;
            let mut request = machine(1, SLEEP);
            request.skip_launch = true;
            let id = request.id.clone();
            host.create(request).await.unwrap();
            wait(&host, &id, "stopped").await;
            tell(&host, &id, Command::Start).await;
            let started = wait(&host, &id, "started").await;
            assert_eq!(started.state, MachineState::Started);
            tell(&host, &id, Command::Restart { force: true, signal: None, timeout: None }).await;
            let restarted = wait(&host, &id, "started").await;
            assert_eq!(restarted.events[0].kind, "start");
            assert_eq!(restarted.events[2].kind, "restart");
            host.remove_everything().await.unwrap();
        },
    );
}
