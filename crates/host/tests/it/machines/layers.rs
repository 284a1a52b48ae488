//! The life of a machine's writable layer, and what a server cannot give.

use perch_host::Host;
use perch_types::host::{Command, CreateMachine};
use perch_types::{ApiError, Code, InstanceId, MachineConfig, MachineId};
use serde_json::json;

use super::server::{Server, exec, machine, tell, wait};

const SLEEP: &str = "trap 'exit 0' INT; while :; do sleep 0.01; done";

fn with(number: u64, more: &serde_json::Value) -> CreateMachine {
    let mut request = machine(number, SLEEP);
    let mut config = serde_json::to_value(&request.config).unwrap();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request.config = serde_json::from_value(config).unwrap();
    request
}

async fn has_file(host: &Host, id: &MachineId) -> bool {
    exec(host, id, "test -e /file && echo kept").await.unwrap() == "kept\n"
}

async fn update(
    host: &Host,
    id: &MachineId,
    number: u64,
    config: MachineConfig,
) -> Result<(), ApiError> {
    let instance = InstanceId::from_parts(1_700_000_000_001, u128::from(number));
    let command = Command::Update {
        instance: instance.clone(),
        epoch: number,
        config: Box::new(config),
        config_digest: format!("update-{number}"),
        skip_launch: false,
        cordoned: false,
        secrets: perch_types::host::SecretsWanted::default(),
    };
    host.command(id, command).await?;
    let query = perch_types::host::WaitQuery {
        states: "started".to_owned(),
        instance: Some(instance),
        from_event: None,
        timeout_ms: 20_000,
    };
    host.wait(id, &query).await.map(drop)
}

#[test]
fn a_layer_lives_as_long_as_the_configuration_says() {
    let test = "a_layer_lives_as_long_as_the_configuration_says";
    Server::run(test, |server| async move {
        let host = server.start().await;
        for (number, more, after_restart, after_stop) in [
            (1, json!({}), false, false),
            (2, json!({"rootfs": {"persist": "restart", "size_gb": 1}}), true, false),
            (3, json!({"guest": {"memory_mb": 256, "persist_rootfs": 3}}), true, true),
        ] {
            let request = with(number, &more);
            let id = request.id.clone();
            host.create(request).await.unwrap();
            wait(&host, &id, "started").await;
            exec(&host, &id, "echo mine > /file").await.unwrap();
            let restart = Command::Restart { force: false, signal: None, timeout: None };
            let before = host.get(&id).unwrap().events.len();
            tell(&host, &id, restart).await;
            super::policies::until("it started again", || {
                let now = host.get(&id).unwrap();
                now.events.len() > before + 1 && now.events[0].kind == "start"
            })
            .await;
            assert_eq!(has_file(&host, &id).await, after_restart, "{more}");
            exec(&host, &id, "echo mine > /file").await.unwrap();
            tell(&host, &id, Command::Stop { signal: None, timeout: None }).await;
            wait(&host, &id, "stopped").await;
            tell(&host, &id, Command::Start).await;
            wait(&host, &id, "started").await;
            assert_eq!(has_file(&host, &id).await, after_stop, "{more}");
        }
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn an_update_keeps_a_layer_that_is_kept_always_until_the_image_changes() {
    let test = "an_update_keeps_a_layer_that_is_kept_always_until_the_image_changes";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = with(1, &json!({"rootfs": {"persist": "always", "size_gb": 2}}));
        let (id, config) = (request.id.clone(), request.config.clone());
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        let size = exec(&host, &id, "df -k / | tail -n 1 | awk '{print $2}'").await.unwrap();
        let size_kb: u64 = size.trim().parse().unwrap();
        assert!((1_800_000..=2_097_152).contains(&size_kb), "{size_kb}");
        exec(&host, &id, "echo mine > /file").await.unwrap();

        let mut same = config.clone();
        same.env.insert("COLOUR".to_owned(), "green".to_owned());
        update(&host, &id, 2, same.clone()).await.unwrap();
        assert!(has_file(&host, &id).await);
        assert_eq!(exec(&host, &id, "echo $COLOUR").await.unwrap(), "green\n");

        let mut larger = same.clone();
        larger.rootfs.as_mut().unwrap().size_gb = Some(3);
        let refused = update(&host, &id, 3, larger.clone()).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidValue);
        assert!(refused.error.starts_with("config.rootfs.size_gb: 3 is not 2"), "{refused}");

        larger.image = "busybox:22".to_owned();
        update(&host, &id, 4, larger).await.unwrap();
        assert!(!has_file(&host, &id).await);
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn swap_is_refused_by_a_server_without_it() {
    let test = "swap_is_refused_by_a_server_without_it";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let mut request = machine(1, SLEEP);
        request.config.init.swap_size_mb = Some(64);
        let id = request.id.clone();
        let made = host.create(request).await;
        if rustix::system::sysinfo().totalswap == 0 {
            let refused = made.unwrap_err();
            assert_eq!(refused.code, Code::UnsupportedKey);
            assert_eq!(refused.error, "config.init.swap_size_mb: this server has no swap");
            assert!(host.list().is_empty());
        } else {
            made.unwrap();
            wait(&host, &id, "started").await;
        }
        host.remove_everything().await.unwrap();
    });
}
