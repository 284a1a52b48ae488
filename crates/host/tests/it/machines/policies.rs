//! What the agent does on its own: restarts, checks, what it says in the log, machines that are no
//! more.

use std::fs;
use std::time::{Duration, Instant};

use perch_durable::{Db, Table};
use perch_runtime::log::{self, Stream};
use perch_store::{Expected, get_doc, list_docs, put_doc};
use perch_types::directory::{MachineRecord, PlacementDoc};
use perch_types::host::{Command, HostMachine};
use perch_types::machine_config::{RestartConfig, RestartPolicy};
use perch_types::{Code, HostId, MachineId, MachineState, OrgSlug};

use super::server::{PATIENCE, Server, exec, machine, tell, wait};

const SLEEP: &str = "exec sleep 1000";

fn policy(policy: RestartPolicy, max_retries: Option<u32>) -> Option<RestartConfig> {
    Some(RestartConfig { policy: Some(policy), max_retries, ..RestartConfig::default() })
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns when events of a kind were, oldest first.
fn moments(machine: &HostMachine, kind: &str) -> Vec<i64> {
    let of_kind = machine.events.iter().rev().filter(|event| event.kind == kind);
    of_kind.map(|event| event.timestamp).collect()
}

#[test]
fn always_restarts_whatever_the_exit_with_longer_and_longer_pauses() {
    let test = "always_restarts_whatever_the_exit_with_longer_and_longer_pauses";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let mut request = machine(1, "echo again; exit 0");
        request.config.restart = policy(RestartPolicy::Always, Some(1));
        let id = request.id.clone();
        host.create(request).await.unwrap();
        until("it was restarted a few times", || {
            moments(&host.get(&id).unwrap(), "start").len() >= 5
        })
        .await;
        let found = host.get(&id).unwrap();
        let (starts, exits) = (moments(&found, "start"), moments(&found, "exit"));
        // The first start was asked for; each other comes its pause after an exit.
        for (turn, pause_ms) in [100, 200, 400, 800].into_iter().enumerate() {
            let pause = starts[turn + 1] - exits[turn];
            assert!(pause >= pause_ms, "{turn}: {pause} ms, {starts:?} {exits:?}");
        }
        // A stop is a stop, in the middle of a pause as well.
        tell(&host, &id, Command::Stop { signal: None, timeout: None }).await;
        wait(&host, &id, "stopped").await;
        let count = moments(&host.get(&id).unwrap(), "start").len();
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let stopped = host.get(&id).unwrap();
        assert_eq!(stopped.state, MachineState::Stopped);
        assert_eq!(moments(&stopped, "start").len(), count);
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn on_failure_lets_a_good_end_be_and_destroys_what_gave_up_if_it_is_to() {
    let test = "on_failure_lets_a_good_end_be_and_destroys_what_gave_up_if_it_is_to";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let mut good = machine(1, "exit 0");
        good.config.restart = policy(RestartPolicy::OnFailure, Some(5));
        let mut bad = machine(2, "exit 4");
        bad.config.restart = policy(RestartPolicy::OnFailure, Some(2));
        bad.config.auto_destroy = true;
        let (good_id, bad_id) = (good.id.clone(), bad.id.clone());
        host.create(good).await.unwrap();
        host.create(bad).await.unwrap();
        let rests = wait(&host, &good_id, "stopped").await;
        assert_eq!(moments(&rests, "start").len(), 1);
        let gone = wait(&host, &bad_id, "destroyed").await;
        assert_eq!(moments(&gone, "start").len(), 3, "once and two retries");
        assert_eq!(moments(&gone, "exit").len(), 3);
        assert!(host.list().iter().all(|machine| machine.id != bad_id));
        host.remove_everything().await.unwrap();
    });
}

/// Ends everything that runs and takes away what a reboot does: processes, mounts, sockets. The
/// state file then says that the server was another one before.
fn reboot(server: &Server) {
    let script = format!(
        "for boot in {0}/run/machines/*/boot.json; do \
           kill -9 $(grep -o '\"pid\":[0-9]*' $boot | cut -d: -f2); done; \
         for mount in $(grep -o '{0}[^ ]*' /proc/self/mounts | sort -r); do umount -l $mount; done; \
         rm -rf {0}/run",
        server.folder.display()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let db = Db::open(server.folder.join("data/host.db"), &[]).unwrap();
    let table: Table<String, serde_json::Value> = Table::new("host");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let written: Result<(), perch_durable::Error> = runtime.block_on(db.write(move |tx| {
        let only = "this".to_owned();
        let mut row = table.get(tx, &only)?.unwrap();
        row["server_boot"] = "another".into();
        table.put(tx, &only, &row)
    }));
    written.unwrap();
}

#[test]
fn after_a_reboot_machines_come_back_by_their_policy() {
    let test = "after_a_reboot_machines_come_back_by_their_policy";
    Server::run(test, |server| async move {
        let host = server.start().await;
        // It may not be restarted once: a reboot is no end of the program's own.
        let mut ran = machine(1, "echo up; exec sleep 1000");
        ran.config.restart = policy(RestartPolicy::OnFailure, Some(0));
        let stopped = machine(2, SLEEP);
        let once = machine(3, SLEEP);
        let mut suspended = machine(4, SLEEP);
        suspended.config.restart = policy(RestartPolicy::Always, None);
        let (ran_id, stopped_id) = (ran.id.clone(), stopped.id.clone());
        let (once_id, suspended_id) = (once.id.clone(), suspended.id.clone());
        for request in [ran, stopped, once, suspended] {
            let id = request.id.clone();
            host.create(request).await.unwrap();
            wait(&host, &id, "started").await;
        }
        tell(&host, &suspended_id, Command::Suspend).await;
        wait(&host, &suspended_id, "suspended").await;
        tell(&host, &stopped_id, Command::Stop { signal: None, timeout: None }).await;
        wait(&host, &stopped_id, "stopped").await;
        server.wait_for_output(&ran_id, "up").await;
        let before = host.get(&ran_id).unwrap();
        host.shutdown().await;
        drop(host);
        let rebooted = std::sync::Arc::clone(&server);
        tokio::task::spawn_blocking(move || {
            std::thread::spawn(move || reboot(&rebooted)).join().unwrap();
        })
        .await
        .unwrap();

        let host = server.start().await;
        let back = wait(&host, &ran_id, "ready").await;
        assert_eq!(back.private_ip, before.private_ip);
        assert_eq!(moments(&back, "start").len(), 2);
        let exit = back.events.iter().find(|event| event.kind == "exit").unwrap();
        let exit = exit.request.clone().unwrap();
        assert_eq!(exit["exit_event"]["restarting"], true, "{exit}");
        assert_eq!(exit["exit_event"]["requested_stop"], false, "{exit}");
        until("it writes again", || server.output(&ran_id) == "up\nup\n").await;
        assert_eq!(exec(&host, &ran_id, "echo here").await.unwrap(), "here\n");
        assert_eq!(host.get(&stopped_id).unwrap().state, MachineState::Stopped);
        for id in [&once_id, &suspended_id] {
            let rests = wait(&host, id, "stopped").await;
            let exit = rests.events[0].request.clone().unwrap();
            assert_eq!(exit["exit_event"]["restarting"], false, "{exit}");
        }
        tell(&host, &suspended_id, Command::Start).await;
        wait(&host, &suspended_id, "started").await;
        host.remove_everything().await.unwrap();
    });
}

fn system_lines(server: &Server, id: &MachineId) -> String {
    let dir = server.folder.join("data/machines").join(id.as_str()).join("log");
    let records = log::read(&dir, 0, log::RECORDS_MAX).unwrap();
    let lines = records.iter().filter(|record| record.stream == Stream::System);
    lines.map(|record| format!("{}\n", String::from_utf8_lossy(&record.line))).collect()
}

#[test]
fn checks_decide_whether_a_machine_is_ready_and_are_told_in_its_log() {
    let test = "checks_decide_whether_a_machine_is_ready_and_are_told_in_its_log";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let script = "mkdir /tmp/www; echo fine >/tmp/www/up; httpd -h /tmp/www -p 0.0.0.0:8080; \
                      httpd -f -p 0.0.0.0:9090 & echo $! >/tmp/other; exec sleep 1000";
        let mut request = machine(1, script);
        request.config.services = serde_json::from_value(serde_json::json!([{
            "internal_port": 8080, "ports": [],
            "checks": [
                {"type": "http", "path": "/up", "interval": "1s", "timeout": "1s"},
                {"type": "tcp", "port": 9090, "interval": "1s", "timeout": "1s"},
            ],
        }]))
        .unwrap();
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let is_ready = || host.get(&id).unwrap().ready;
        until("all pass", is_ready).await;

        exec(&host, &id, "rm /tmp/www/up").await.unwrap();
        until("the http check fails", || !is_ready()).await;
        let because = host.get(&id).unwrap().not_ready_because.unwrap();
        assert!(
            because.contains("servicecheck-00-http-8080") && because.contains("404"),
            "{because}"
        );
        exec(&host, &id, "echo fine >/tmp/www/up").await.unwrap();
        until("the http check passes", is_ready).await;

        exec(&host, &id, "kill $(cat /tmp/other)").await.unwrap();
        until("the tcp check fails", || !is_ready()).await;
        let because = host.get(&id).unwrap().not_ready_because.unwrap();
        assert!(because.contains("servicecheck-01-tcp-9090"), "{because}");
        assert_eq!(host.get(&id).unwrap().state, MachineState::Started, "it runs all the while");

        let wanted = [
            "Starting machine\n",
            "Health check `servicecheck-00-http-8080` is now passing\n",
            "Health check `servicecheck-00-http-8080` is failing: 404",
            "Health check `servicecheck-01-tcp-9090` is failing: connect to port 9090",
        ];
        until("the log tells of them", || {
            let lines = system_lines(&server, &id);
            wanted.iter().all(|line| lines.contains(line))
        })
        .await;
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn the_log_tells_how_a_program_was_stopped_and_how_it_ended() {
    let test = "the_log_tells_how_a_program_was_stopped_and_how_it_ended";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let exits = machine(1, "exit 3");
        let stopped = machine(2, SLEEP);
        let stubborn = machine(3, "trap '' TERM INT; while :; do sleep 0.1; done");
        let mut eats = machine(4, "x=x; while :; do x=$x$x; done");
        eats.config.guest.as_mut().unwrap().memory_mb = Some(32);
        let missing = {
            let mut request = machine(5, "");
            request.config.init.exec = vec!["/no/such/program".to_owned()];
            request
        };
        for request in [&exits, &stopped, &stubborn, &eats, &missing] {
            host.create(request.clone()).await.unwrap();
        }
        for request in [&stopped, &stubborn] {
            wait(&host, &request.id, "started").await;
        }
        tell(&host, &stopped.id, Command::Stop { signal: None, timeout: None }).await;
        let hurry = serde_json::from_value(serde_json::json!("200ms")).unwrap();
        tell(&host, &stubborn.id, Command::Stop { signal: None, timeout: Some(hurry) }).await;
        for (request, wanted) in [
            (&exits, "Main child exited normally with code: 3\nStarting clean up.\n"),
            (
                &stopped,
                "Sending signal SIGINT to main child\nMain child was ended by signal SIGINT\n",
            ),
            (&stubborn, "Main child did not end within its grace, killing it\n"),
            (&eats, "Out of memory: the machine reached its 32 MiB"),
            (&missing, "Main child was not started: "),
        ] {
            wait(&host, &request.id, "stopped").await;
            let lines = system_lines(&server, &request.id);
            assert!(lines.starts_with("Starting machine\n") && lines.contains(wanted), "{lines}");
        }
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_destroyed_machine_stays_destroyed_whatever_the_directory_lists() {
    let test = "a_destroyed_machine_stays_destroyed_whatever_the_directory_lists";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = machine(1, SLEEP);
        let id = request.id.clone();
        let created = host.create(request.clone()).await.unwrap();
        wait(&host, &id, "started").await;
        let store = server.store();
        let key = (OrgSlug::personal(), request.app.clone(), id.clone());
        let mut record = None;
        while record.is_none() {
            record = get_doc::<MachineRecord>(store.as_ref(), &key).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let record = record.unwrap().document;
        tell(&host, &id, Command::Destroy { force: true }).await;
        wait(&host, &id, "destroyed").await;

        // Asked for again, late: the answer is what became of it, and nothing is made.
        let again = host.create(request.clone()).await.unwrap();
        assert_eq!(again.state, MachineState::Destroyed);
        let mut other = request.clone();
        other.config_digest = "other".to_owned();
        assert_eq!(host.create(other).await.unwrap_err().code, Code::Conflict);
        for command in
            [Command::Start, Command::Restart { force: false, signal: None, timeout: None }]
        {
            assert_eq!(host.command(&id, command).await.unwrap_err().code, Code::WrongState);
        }
        host.shutdown().await;
        drop(host);

        // A directory that was restored lists machine and placement as if nothing had happened.
        let placement = PlacementDoc {
            app: request.app.clone(),
            host: HostId::from_bits(7),
            epoch: 1,
            instance: request.instance.clone(),
            config_digest: request.config_digest.clone(),
            name: request.name.clone(),
            region: "ams".parse().unwrap(),
            created_at: created.created_at,
        };
        let place = (OrgSlug::personal(), id.clone());
        put_doc(store.as_ref(), &place, &placement, Expected::Absent).await.unwrap();
        if let Some(found) = get_doc::<MachineRecord>(store.as_ref(), &key).await.unwrap() {
            let revision = Expected::Revision(found.revision);
            put_doc(store.as_ref(), &key, &record, revision).await.unwrap();
        } else {
            put_doc(store.as_ref(), &key, &record, Expected::Absent).await.unwrap();
        }
        let host = server.start().await;
        let deadline = Instant::now() + PATIENCE;
        while !list_docs::<MachineRecord>(store.as_ref()).await.unwrap().documents.is_empty() {
            assert!(Instant::now() < deadline, "the record stays in the directory");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(host.list().is_empty());
        assert_eq!(host.get(&id).unwrap().state, MachineState::Destroyed);
        assert!(!server.folder.join("run/machines").join(id.as_str()).join("boot.json").exists());
        assert!(fs::read_dir(server.folder.join("data/machines")).unwrap().count() <= 1);
        host.remove_everything().await.unwrap();
    });
}
