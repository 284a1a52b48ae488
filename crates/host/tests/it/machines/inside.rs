//! What a program finds inside its machine: files, names, environment.

use std::os::fd::AsFd as _;

use perch_host::MachineApi;
use perch_host::handover::{self, Origin};
use perch_types::Code;
use perch_types::host::{Command, CreateMachine, MachineIdentity};
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

#[test]
fn files_names_and_resolvers_are_what_the_configuration_says_in_every_boot() {
    let test = "files_names_and_resolvers_are_what_the_configuration_says_in_every_boot";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = with(
            1,
            &json!({
                "files": [
                    {"guest_path": "/etc/app/colour", "raw_value": "Z3JlZW4K", "mode": 0o640},
                    {"guest_path": "/bin/run-me", "raw_value": "IyEvYmluL3NoCmVjaG8gcmFuCg==",
                     "mode": 0o755},
                    {"guest_path": "/image.json", "image_config": "other/busybox:1"},
                ],
                "dns": {
                    "hostname": "db", "hostname_fqdn": "db.example.com",
                    "nameservers": ["192.0.2.53"], "searches": ["internal"],
                    "options": [{"name": "ndots", "value": "2"}],
                },
            }),
        );
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        for _boot in 0..2 {
            let said = exec(
                &host,
                &id,
                "cat /etc/app/colour; stat -c '%a %u %g' /etc/app/colour; run-me; cat /image.json; \
                 echo; hostname; cat /etc/hostname; hostname -f; cat /etc/resolv.conf",
            );
            assert_eq!(
                said.await.unwrap(),
                "green\n640 0 0\nran\n{\"repository\":\"other/busybox\"}\ndb\ndb\ndb.example.com\n\
                 nameserver 192.0.2.53\nsearch internal\noptions ndots:2\n"
            );
            exec(&host, &id, "echo red > /etc/app/colour").await.unwrap();
            tell(&host, &id, Command::Stop { signal: None, timeout: None }).await;
            wait(&host, &id, "stopped").await;
            tell(&host, &id, Command::Start).await;
            wait(&host, &id, "started").await;
        }
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_machine_whose_file_cannot_be_written_does_not_start_and_says_which() {
    let test = "a_machine_whose_file_cannot_be_written_does_not_start_and_says_which";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = with(
            1,
            &json!({"files": [{"guest_path": "/bin", "raw_value": ""}],
                "restart": {"policy": "no"}}),
        );
        let id = request.id.clone();
        host.create(request).await.unwrap();
        let ended = wait(&host, &id, "stopped,failed").await;
        let text = serde_json::to_string(&ended.events).unwrap();
        assert!(text.contains("write file `/bin`"), "{text}");
        let refused = exec(&host, &id, "true").await.unwrap_err();
        assert_eq!(refused.code, Code::WrongState);
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn nobody_inside_can_take_the_api_socket_away_or_put_another_in_its_place() {
    let test = "nobody_inside_can_take_the_api_socket_away_or_put_another_in_its_place";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = with(1, &json!({}));
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        let said = exec(
            &host,
            &id,
            "for dir in /.fly /.perch; do rm -rf $dir; mv $dir/api $dir/old; touch $dir/new; \
             umount $dir; mount -t tmpfs none $dir; chmod 000 $dir/api; \
             test -S $dir/api && stat -c '%a %n' $dir $dir/*; done 2>/dev/null",
        );
        assert_eq!(said.await.unwrap(), "755 /.fly\n666 /.fly/api\n755 /.perch\n666 /.perch/api\n");
        host.remove_everything().await.unwrap();
    });
}

/// Takes connections in the API's place and says whose each is.
async fn take(listener: tokio::net::UnixListener) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    loop {
        let (mut from, _) = listener.accept().await.unwrap();
        let (who, mut inside) = handover::receive::<MachineIdentity>(&from).await.unwrap();
        handover::confirm(&mut from).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(inside.read_u8().await.unwrap());
        }
        let body = format!("{} {}", who.app, who.machine);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        inside.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[test]
fn a_connection_reaches_the_api_with_the_machines_name_and_is_declined_while_nobody_is_there() {
    let test =
        "a_connection_reaches_the_api_with_the_machines_name_and_is_declined_while_nobody_is_there";
    Server::run(test, |server| async move {
        let host = server.start().await;
        let request = with(1, &json!({}));
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        let ask = |socket: &str| {
            let (host, id) = (host.clone(), id.clone());
            let script = format!("perch-testserver --api {socket},GET,/v1/anything");
            async move { exec(&host, &id, &script).await.unwrap() }
        };
        let declined = "503 {\"error\":\"the platform does not answer";
        let answer = ask("/.fly/api").await;
        assert!(answer.starts_with(declined), "{answer}");

        // The agent is there, the API is not yet.
        let MachineApi { monitors, api } = server.config().machine_api.unwrap();
        let socket = std::os::unix::net::UnixListener::bind(&monitors).unwrap();
        tokio::spawn(perch_host::inside::serve(host.clone(), socket, api.clone()));
        let answer = ask("/.fly/api").await;
        assert!(answer.starts_with(declined), "{answer}");

        tokio::spawn(take(tokio::net::UnixListener::bind(&api).unwrap()));
        for socket in ["/.fly/api", "/.perch/api"] {
            assert_eq!(ask(socket).await.trim_end(), format!("200 web {id}"));
        }

        // Root, and yet not the machine's monitor: nobody speaks for a machine but that.
        let (_client, connection) = std::os::unix::net::UnixStream::pair().unwrap();
        let origin = Origin { machine: id.clone(), boot: 1 };
        handover::pass(&monitors, &origin, connection.as_fd()).await.unwrap_err();
        host.remove_everything().await.unwrap();
    });
}
