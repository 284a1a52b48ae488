//! The agent is killed and comes back; machines do not notice.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};

use perch_store::list_docs;
use perch_types::directory::{HostDoc, MachineRecord};
use perch_types::host::Command;

use super::server::{PATIENCE, Server, exec, machine, tell, wait};

/// Set for a child that is an agent: the folder of its server.
pub(super) const AGENT: &str = "PERCH_TEST_AGENT";
/// The name of the test that the child runs.
const CHILD: &str = "machines::adoption::agent_of_another_test";

/// Not a test of its own: what the child of the tests below does.
#[test]
fn agent_of_another_test() {
    let Ok(folder) = std::env::var(AGENT) else {
        return;
    };
    Server::adopt(Path::new(&folder), |server| async move {
        let host = server.start().await;
        let request = machine(1, "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.02; done");
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        let mut half = machine(2, "echo second; exec sleep 1000");
        half.config.env.insert("A".to_owned(), "b".to_owned());
        host.create(half).await.unwrap();
        // Killed right now: the second machine is half made.
        std::io::Write::write_all(&mut std::io::stdout(), b"ready\n").unwrap();
        std::future::pending::<()>().await;
    });
}

/// Starts a process that is an agent on a server, and does what the test `child` says until it is
/// killed. Returns once it said `ready`.
pub(super) fn agent(folder: &Path, child: &str) -> Child {
    let mut program = Program::new(std::env::current_exe().unwrap());
    program
        .args(["--exact", child, "--nocapture"])
        .env(AGENT, folder)
        .stdout(Stdio::piped())
        .process_group(0);
    let mut child = program.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines {
        if line.unwrap().contains("ready") {
            return child;
        }
    }
    panic!("the agent ended: {:?}", child.wait());
}

pub(super) fn pid(server: &Server, id: &perch_types::MachineId) -> String {
    let path = server.folder.join("run/machines").join(id.as_str()).join("boot.json");
    let text = std::fs::read_to_string(path).unwrap();
    let boot: serde_json::Value = serde_json::from_str(&text).unwrap();
    boot["init"].to_string()
}

#[test]
fn c4_a_killed_agent_finds_its_machines_and_finishes_what_it_began() {
    Server::run(
        "c4_a_killed_agent_finds_its_machines_and_finishes_what_it_began",
        |server| async move {
            let mut child = agent(&server.folder, CHILD);
            let (first, second) = (machine(1, "").id, machine(2, "").id);
            let before = pid(&server, &first);
            child.kill().unwrap();
            child.wait().unwrap();
            let seen = server.output(&first);
            let host = server.start().await;
            let found = wait(&host, &first, "started").await;
            assert_eq!(pid(&server, &first), before);
            assert_eq!(found.events.len(), 2, "{:?}", found.events);
            let next = format!("tick {}\n", seen.lines().count() + 5);
            server.wait_for_output(&first, &next).await;
            assert_eq!(exec(&host, &first, "echo here").await.unwrap(), "here\n");

            wait(&host, &second, "started").await;
            server.wait_for_output(&second, "second").await;

            // Its end is seen by the new agent.
            tell(&host, &first, Command::Stop { signal: None, timeout: None }).await;
            wait(&host, &first, "stopped").await;
            host.remove_everything().await.unwrap();
        },
    );
}

#[test]
fn a_machine_that_ended_meanwhile_is_found_ended() {
    Server::run("a_machine_that_ended_meanwhile_is_found_ended", |server| async move {
        let host = server.start().await;
        let request = machine(1, "echo up; while [ ! -e /go ]; do sleep 0.01; done; exit 5");
        let id = request.id.clone();
        host.create(request).await.unwrap();
        server.wait_for_output(&id, "up").await;
        wait(&host, &id, "started").await;
        host.shutdown().await;
        exec(&host, &id, "touch /go").await.unwrap();
        drop(host);
        let exit = server.folder.join("data/machines").join(id.as_str()).join("exit.json");
        let deadline = std::time::Instant::now() + PATIENCE;
        while !exit.exists() {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let host = server.start().await;
        let stopped = wait(&host, &id, "stopped").await;
        let exit = stopped.events[0].request.clone().unwrap();
        assert_eq!(exit["exit_event"]["exit_code"], 5);
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn remains_of_machines_that_nobody_knows_are_removed() {
    Server::run("remains_of_machines_that_nobody_knows_are_removed", |server| async move {
        let host = server.start().await;
        let request = machine(1, "exec sleep 1000");
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        host.shutdown().await;
        drop(host);
        for suffix in ["", "-wal", "-shm"] {
            drop(std::fs::remove_file(server.folder.join(format!("data/host.db{suffix}"))));
        }
        let host = server.start().await;
        assert!(host.list().is_empty());
        assert!(!server.folder.join("data/machines").join(id.as_str()).exists());
        assert!(!server.folder.join("run/machines").join(id.as_str()).exists());
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn the_directory_is_told_of_machines_and_of_their_end() {
    Server::run("the_directory_is_told_of_machines_and_of_their_end", |server| async move {
        let host = server.start().await;
        let request = machine(1, "exec sleep 1000");
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        let deadline = std::time::Instant::now() + PATIENCE;
        let count = async |wanted: usize| loop {
            let found = list_docs::<MachineRecord>(server.store().as_ref()).await.unwrap();
            let started = found.documents.iter().filter(|(_, found)| found.document.ready).count();
            if started == wanted && (wanted > 0 || found.documents.is_empty()) {
                return;
            }
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        count(1).await;
        let hosts = list_docs::<HostDoc>(server.store().as_ref()).await.unwrap();
        assert_eq!(hosts.documents[0].1.document.incarnation, 1);
        let alive = server.store().get(&format!("hosts/{}/alive", host.id())).await.unwrap();
        assert!(alive.is_some());
        tell(&host, &id, Command::Destroy { force: true }).await;
        wait(&host, &id, "destroyed").await;
        count(0).await;
        host.remove_everything().await.unwrap();
    });
}
