//! The life of one machine.

use perch_types::host::Command;
use perch_types::{Code, MachineState};

use super::server::{Server, exec, machine, tell, wait};

const STOP: Command = Command::Stop { signal: None, timeout: None };

#[test]
fn a_machine_is_made_runs_stops_starts_and_goes() {
    Server::run("a_machine_is_made_runs_stops_starts_and_goes", |server| async move {
        let host = server.start().await;
        let request =
            machine(1, "echo hello; trap 'echo bye; exit 0' INT; while :; do sleep 0.01; done");
        let id = request.id.clone();
        let created = host.create(request.clone()).await.unwrap();
        assert_eq!(created.state, MachineState::Created);
        let started = wait(&host, &id, "started").await;
        server.wait_for_output(&id, "hello").await;
        let kinds: Vec<&str> = started.events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["start", "launch"]);
        assert!(started.ready);
        assert_eq!(
            exec(&host, &id, "echo $FLY_APP_NAME $PERCH_REGION; hostname").await.unwrap(),
            format!("web ams\n{id}\n")
        );
        assert_eq!(host.create(request).await.unwrap().instance, started.instance);

        exec(&host, &id, "echo mine > /file").await.unwrap();
        tell(&host, &id, STOP).await;
        let stopped = wait(&host, &id, "stopped").await;
        assert!(server.output(&id).contains("bye"));
        let exit = stopped.events[0].request.clone().unwrap();
        assert_eq!(exit["exit_event"]["requested_stop"], true);
        assert_eq!(exit["exit_event"]["exit_code"], 0);
        let refused = exec(&host, &id, "true").await.unwrap_err();
        assert_eq!(refused.code, Code::WrongState);

        tell(&host, &id, Command::Start).await;
        wait(&host, &id, "started").await;
        let listed = exec(&host, &id, "cat /file").await.unwrap();
        assert!(listed.contains("No such file"), "{listed}");

        let refused = host.command(&id, Command::Destroy { force: false }).await.unwrap_err();
        assert_eq!(refused.code, Code::PreconditionFailed);
        tell(&host, &id, Command::Destroy { force: true }).await;
        let gone = wait(&host, &id, "destroyed").await;
        assert_eq!(gone.events[0].kind, "destroy");
        assert_eq!(host.get(&id).unwrap().state, MachineState::Destroyed);
        assert!(host.list().is_empty());
        host.remove_everything().await.unwrap();
    });
}
